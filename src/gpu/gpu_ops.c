/* gpu_ops.c - the operations of the table: checks at the call, then onto the stream. */
#include <stdlib.h>

#include "gpu/gpu.h"
#include "base/memory.h"

enum { MAX_EXPERTS = 512, HOP_BYTES = 4 << 20 };

/* --- what is more than a kernel --------------------------------------------------------------- */

static td_status enqueue_attention(td_stream *s, const td_attention_args *a, td_error *err) {
    if (a->seq_offsets_host[a->n_seqs] == 0)
        return TD_OK;
    return td_gpu_end(s, td_gpu_attention(a, &s->dev->chip, s->cuda), "attention", err);
}

/* The router's product puts its logits where td_gpu_moe expects them: at the start of scratch. */
static td_status enqueue_moe(td_stream *s, const td_moe_args *a, td_error *err) {
    const void *gate_up[MAX_EXPERTS], *down[MAX_EXPERTS];
    for (int32_t e = 0; e < a->n_experts; e++) {
        gate_up[e] = ((const td_gpu_weight *)a->gate_up[e])->data;
        down[e] = ((const td_gpu_weight *)a->down[e])->data;
    }
    const td_gemm_args router = {
        .weight = a->router, .in = a->in, .out = a->scratch, .n_rows = a->n_tokens, .scale = 1};
    td_status rc = td_gpu_enqueue_gemm(s, &router, err);
    if (rc != TD_OK)
        return rc;
    return td_gpu_end(s, td_gpu_moe(a, a->router->compute, gate_up, down, &s->dev->chip, s->cuda),
                      "moe", err);
}

static td_status enqueue_capture(td_stream *s, const td_capture_args *a, td_error *err) {
    /* The first chunk is the largest: this happens once. */
    const size_t need = td_gpu_capture_scratch_bytes(a, &s->dev->chip);
    if (need > s->capture_scratch_bytes) {
        td_status rc = TD_OK;
        void *p = NULL;
        if (s->capture_scratch && (rc = td_gpu_end(s, cudaStreamSynchronize(s->cuda),
                                                   "cudaStreamSynchronize", err)) != TD_OK)
            return rc;
        if ((rc = td_gpu_end(s, cudaMalloc(&p, need), "cudaMalloc", err)) != TD_OK)
            return rc;
        (void)cudaFree(s->capture_scratch);
        s->capture_scratch = p;
        s->capture_scratch_bytes = need;
    }
    return td_gpu_end(s, td_gpu_capture(a, &s->dev->chip, s->capture_scratch, s->cuda), "capture",
                      err);
}

static td_status enqueue_gemm(td_stream *s, const td_gemm_args *a, td_error *err) {
    return td_gpu_enqueue_gemm(s, a, err);
}

/* --- the slots of the table ------------------------------------------------------------------- */

static const char *attention_refusal(const td_device_info *info, const td_attention_args *a) {
    if (a->head_dim > 256)
        return "head_dim above 256";
    if (a->in_dtype == TD_F32 && a->out_dtype != TD_F32)
        return "a 16-bit result needs q, k and v in that type";
    if ((a->in_dtype == TD_BF16 && !info->has_bf16) || (a->in_dtype == TD_F16 && !info->has_f16))
        return "the chip has no products of this type";
    return NULL;
}

/* What these devices cannot do of what the table allows. */
static const char *refusal(const td_device_info *info, td_op op, const void *args) {
    if (op == TD_OP_ATTENTION)
        return attention_refusal(info, args);
    if (op == TD_OP_MOE && ((const td_moe_args *)args)->n_experts > MAX_EXPERTS)
        return "more than 512 experts";
    return NULL;
}

static td_status begin(td_stream *s, td_op op, const void *args, td_error *err) {
    const td_device_info *info = &s->dev->base.info;
    const char *why = td_op_check(op, args);
    if (!why)
        why = refusal(info, op, args);
    if (why)
        return td_error_set(err, TD_E_INTERNAL, "%s: %s: %s", info->name, td_op_name(op), why);
    return td_gpu_begin(s, op, err);
}

#define ENQUEUE_ROWS(name) td_gpu_end(s, td_gpu_##name(a, s->cuda), #name, err)
#define ENQUEUE_WHOLE(name) enqueue_##name(s, a, err)
#define OPERATION(name, NAME, n_rows, how)                                                         \
    td_status td_gpu_op_##name(td_stream *s, const td_##name##_args *a, td_error *err) {           \
        const td_status rc = begin(s, TD_OP_##NAME, a, err);                                       \
        return rc != TD_OK || a->n_rows == 0 ? rc : ENQUEUE_##how(name);                           \
    }
TD_DEVICE_OPERATIONS(OPERATION)

/* --- copies ----------------------------------------------------------------------------------- */

static td_status copy(td_stream *s, void *dst, const void *src, size_t n, enum cudaMemcpyKind kind,
                      td_error *err) {
    if (n == 0 || dst == src)
        return TD_OK;
    td_status rc = td_gpu_begin(s, TD_OP_COPY, err);
    return rc != TD_OK
               ? rc
               : td_gpu_end(s, cudaMemcpyAsync(dst, src, n, kind, s->cuda), "cudaMemcpyAsync", err);
}

td_status td_gpu_copy_in(td_stream *s, void *dst, const void *src, size_t n, td_error *err) {
    return copy(s, dst, src, n, cudaMemcpyHostToDevice, err);
}

td_status td_gpu_copy_out(td_stream *s, void *dst, const void *src, size_t n, td_error *err) {
    return copy(s, dst, src, n, cudaMemcpyDeviceToHost, err);
}

/* Access from our device to the other's memory, asked for once; false when there is none. */
static bool reaches(td_gpu_device *d, const td_gpu_device *src) {
    const int32_t i = src->base.info.index;
    if (i >= 64)
        return false;
    pthread_mutex_lock(&d->lock);
    bool ok = d->base.info.peers >> i & 1;
    if (ok && !(d->peers_open >> i & 1)) {
        const cudaError_t cu = cudaDeviceEnablePeerAccess(i, 0);
        ok = cu == cudaSuccess || cu == cudaErrorPeerAccessAlreadyEnabled;
        (void)cudaGetLastError(); /* the other way is open */
        if (ok)
            d->peers_open |= (uint64_t)1 << i;
        else
            d->base.info.peers &= ~((uint64_t)1 << i);
    }
    pthread_mutex_unlock(&d->lock);
    return ok;
}

static void free_hop(td_gpu_hop *h) {
    cudaEvent_t events[] = {h->filled[0], h->filled[1], h->emptied[0], h->emptied[1], h->start};
    if (h->stream)
        (void)cudaStreamSynchronize(h->stream); /* a copy may have broken off midway */
    for (size_t i = 0; i < TD_ARRAY_LEN(events); i++)
        if (events[i])
            (void)cudaEventDestroy(events[i]);
    if (h->stream)
        (void)cudaStreamDestroy(h->stream);
    for (int i = 0; i < 2; i++)
        if (h->block[i])
            (void)cudaFreeHost(h->block[i]);
    (void)cudaGetLastError();
    free(h);
}

static td_status find_hop(td_stream *s, td_gpu_device *src, td_gpu_hop **out, td_error *err) {
    for (td_gpu_hop *h = s->hops; h; h = h->next)
        if (h->src == src) {
            *out = h;
            return TD_OK;
        }
    td_gpu_hop *h = td_calloc(1, sizeof *h);
    if (!h)
        return td_error_nomem(err, "a copy between devices", sizeof *h);
    h->src = src;
    const td_device_info *from = &src->base.info, *to = &s->dev->base.info;
    td_status rc = td_gpu_use(src, err);
    if (rc == TD_OK)
        rc = td_gpu_check(cudaStreamCreateWithFlags(&h->stream, cudaStreamNonBlocking), from,
                          "cudaStreamCreateWithFlags", err);
    for (int i = 0; rc == TD_OK && i < 2; i++) {
        rc = td_gpu_check(cudaHostAlloc(&h->block[i], HOP_BYTES, cudaHostAllocPortable), from,
                          "cudaHostAlloc", err);
        if (rc == TD_OK)
            rc = td_gpu_check(cudaEventCreateWithFlags(&h->filled[i], cudaEventDisableTiming), from,
                              "cudaEventCreateWithFlags", err);
    }
    if (rc == TD_OK)
        rc = td_gpu_use(s->dev, err);
    for (int i = 0; rc == TD_OK && i < 2; i++)
        rc = td_gpu_check(cudaEventCreateWithFlags(&h->emptied[i], cudaEventDisableTiming), to,
                          "cudaEventCreateWithFlags", err);
    if (rc == TD_OK)
        rc = td_gpu_check(cudaEventCreateWithFlags(&h->start, cudaEventDisableTiming), to,
                          "cudaEventCreateWithFlags", err);
    if (rc != TD_OK) {
        free_hop(h);
        return rc;
    }
    h->next = s->hops;
    s->hops = h;
    *out = h;
    return TD_OK;
}

/* Fills block b from the source, on the source's own stream. */
static cudaError_t fill_block(td_gpu_hop *h, int b, bool reused, const void *src, size_t n) {
    cudaError_t cu = reused ? cudaStreamWaitEvent(h->stream, h->emptied[b], 0) : cudaSuccess;
    if (!cu)
        cu = cudaMemcpyAsync(h->block[b], src, n, cudaMemcpyDeviceToHost, h->stream);
    return cu ? cu : cudaEventRecord(h->filled[b], h->stream);
}

/* The source's stream begins where ours stands, which is behind the event that says that src is
 * written, and behind the last use of the blocks by an earlier copy. What fails on the source's
 * side is the source's fault. */
static td_status copy_by_host(td_stream *s, void *dst, td_gpu_device *src_dev, const void *src,
                              size_t n, td_error *err) {
    static const char what[] = "a copy between devices through the host";
    td_gpu_hop *h = NULL;
    td_status rc = find_hop(s, src_dev, &h, err);
    if (rc != TD_OK)
        return rc;
    cudaError_t cu = cudaEventRecord(h->start, s->cuda), from = cudaSuccess;
    if (!cu)
        from = cudaStreamWaitEvent(h->stream, h->start, 0);
    for (size_t at = 0, i = 0; !cu && !from && at < n; at += HOP_BYTES, i++) {
        const size_t m = TD_MIN(n - at, (size_t)HOP_BYTES);
        const int b = (int)(i % 2);
        if ((rc = td_gpu_use(src_dev, err)) != TD_OK)
            return rc;
        from = fill_block(h, b, i >= 2, (const char *)src + at, m);
        if ((rc = td_gpu_use(s->dev, err)) != TD_OK)
            return rc;
        if (!from)
            cu = cudaStreamWaitEvent(s->cuda, h->filled[b], 0);
        if (!from && !cu)
            cu = cudaMemcpyAsync((char *)dst + at, h->block[b], m, cudaMemcpyHostToDevice, s->cuda);
        if (!from && !cu)
            cu = cudaEventRecord(h->emptied[b], s->cuda);
    }
    if (from) {
        rc = td_gpu_check(from, &src_dev->base.info, what, &s->failure);
        if (err)
            *err = s->failure;
        return rc;
    }
    return td_gpu_end(s, cu, what, err);
}

td_status td_gpu_copy_peer(td_stream *s, void *dst, td_device *src_dev, const void *src, size_t n,
                           td_error *err) {
    td_gpu_device *from = (td_gpu_device *)src_dev;
    if (n == 0 || dst == src)
        return TD_OK;
    if (from == s->dev)
        return copy(s, dst, src, n, cudaMemcpyDeviceToDevice, err);
    td_status rc = td_gpu_begin(s, TD_OP_COPY, err);
    if (rc != TD_OK)
        return rc;
    if (!reaches(s->dev, from))
        return copy_by_host(s, dst, from, src, n, err);
    return td_gpu_end(
        s,
        cudaMemcpyPeerAsync(dst, s->dev->base.info.index, src, from->base.info.index, n, s->cuda),
        "cudaMemcpyPeerAsync", err);
}

/* The caller has waited for its own stream. */
void td_gpu_hops_close(td_stream *s) {
    for (td_gpu_hop *h = s->hops, *next; h; h = next) {
        next = h->next;
        free_hop(h);
    }
    s->hops = NULL;
}
