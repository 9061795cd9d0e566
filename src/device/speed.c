/* speed.c - a short measurement of what a device reaches, through the device table like everything
 * else. */
#include <stdlib.h>
#include <string.h>

#include "device/device.h"
#include "base/clock.h"
#include "base/memory.h"

/* Products of [2 n, n] x [n, n]. A GPU's n grows until one takes long beside its launch. */
enum { CPU_N = 1024, GPU_MIN_N = 256, GPU_MAX_N = 4096, MAX_ROUNDS = 64 };
#define BUDGET_S 0.06
#define LONG_ENOUGH_S 1e-3

typedef struct probe {
    td_device *dev;
    int32_t n;
    td_stream *stream;
    td_event *event;
    td_weight *weight;
    void *in, *out;
} probe;

static void probe_close(probe *p) {
    const td_device_ops *ops = p->dev->ops;
    if (p->stream)
        ops->stream_destroy(p->stream);
    if (p->event)
        ops->event_destroy(p->event);
    if (p->weight)
        ops->weight_destroy(p->weight);
    ops->free(p->dev, p->in);
    ops->free(p->dev, p->out);
    *p = (probe){.dev = p->dev, .n = p->n};
}

static td_status probe_open(probe *p, td_dtype compute, td_error *err) {
    const td_device_ops *ops = p->dev->ops;
    size_t n = (size_t)p->n, n_in = 2 * n * n * td_dtype_size(compute);
    float *w = td_calloc(n * n, sizeof *w);
    void *zeros = td_calloc(1, n_in);
    if (!w || !zeros) {
        free(w);
        free(zeros);
        return td_error_nomem(err, "the speed measurement", n_in);
    }
    /* Small, regular values: no denormals, no infinities. */
    for (size_t i = 0; i < n * n; i++)
        w[i] = (float)(i % 7) * 0.125f;
    td_host_matrix m = {.data = w, .dtype = TD_F32, .n_rows = p->n, .n_cols = p->n};
    td_status rc = ops->stream_create(p->dev, &p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_create(p->dev, &p->event, err);
    if (rc == TD_OK)
        rc = ops->weight_prepare(p->dev, &m, 1, compute, &p->weight, err);
    if (rc == TD_OK)
        rc = ops->alloc(p->dev, n_in, &p->in, err);
    if (rc == TD_OK)
        rc = ops->alloc(p->dev, 2 * n * n * sizeof(float), &p->out, err);
    if (rc == TD_OK)
        rc = ops->copy_in(p->stream, p->in, zeros, n_in, err);
    if (rc == TD_OK)
        rc = ops->event_record(p->event, p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_sync(p->event, 0, err);
    free(w);
    free(zeros);
    return rc;
}

/* One product, waited for. */
static td_status probe_gemm(probe *p, double *seconds, td_error *err) {
    const td_device_ops *ops = p->dev->ops;
    td_gemm_args a = {
        .weight = p->weight, .in = p->in, .out = p->out, .n_rows = 2 * p->n, .scale = 1};
    double t0 = td_time_s();
    td_status rc = ops->gemm(p->stream, &a, err);
    if (rc == TD_OK)
        rc = ops->event_record(p->event, p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_sync(p->event, 0, err);
    *seconds = td_time_s() - t0;
    return rc;
}

static td_status probe_copy(probe *p, double *seconds, td_error *err) {
    const td_device_ops *ops = p->dev->ops;
    size_t n = 2 * (size_t)p->n * (size_t)p->n * td_dtype_size(p->weight->compute);
    double t0 = td_time_s();
    td_status rc = ops->copy_peer(p->stream, p->out, p->dev, p->in, n, err);
    if (rc == TD_OK)
        rc = ops->event_record(p->event, p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_sync(p->event, 0, err);
    *seconds = td_time_s() - t0;
    return rc;
}

/* Opens the probe and runs the first product, which pays for cold caches and sleeping threads. */
static td_status probe_warm(probe *p, td_dtype compute, double *seconds, td_error *err) {
    td_status rc = probe_open(p, compute, err);
    if (rc == TD_OK)
        rc = probe_gemm(p, seconds, err);
    if (rc == TD_OK)
        rc = probe_gemm(p, seconds, err);
    return rc;
}

td_status td_device_measure(td_device *dev, td_dtype compute, td_device_speed *out, td_error *err) {
    bool gpu = dev->info.uuid[0] != '\0';
    probe p = {.dev = dev, .n = gpu ? GPU_MIN_N : CPU_N};
    double gemm_s = 1e30, copy_s = 1e30, s;
    td_status rc = probe_warm(&p, compute, &s, err);
    while (rc == TD_OK && gpu && s < LONG_ENOUGH_S && p.n < GPU_MAX_N) {
        probe_close(&p);
        p.n *= 2;
        rc = probe_warm(&p, compute, &s, err);
    }
    double until = td_time_s() + BUDGET_S;
    for (int i = 0; rc == TD_OK && i < MAX_ROUNDS && (i < 2 || td_time_s() < until); i++) {
        rc = probe_gemm(&p, &s, err);
        gemm_s = TD_MIN(gemm_s, s);
        if (rc == TD_OK)
            rc = probe_copy(&p, &s, err);
        copy_s = TD_MIN(copy_s, s);
    }
    if (rc == TD_OK) {
        double n = p.n;
        out->tflops = 2 * 2 * n * n * n / gemm_s * 1e-12;
        /* read and written */
        out->mem_gbs = 2 * 2 * n * n * (double)td_dtype_size(compute) / copy_s * 1e-9;
    }
    if (rc != TD_E_DEVICE_LOST) /* of a lost one nothing may be touched any more */
        probe_close(&p);
    return rc;
}

/* --- attention and capture -------------------------------------------------------------------- */

enum { SEQ = 512, HEADS = 4, HEAD_DIM = 64, QKV = 3 * HEADS * HEAD_DIM };
enum { ROWS = 64, VOCAB = 4096, TOP = 16 };

typedef struct op_probe {
    td_device *dev;
    td_stream *stream;
    td_event *event;
    td_attention_args attention;
    td_capture_args capture;
} op_probe;

/* One of the two, waited for. */
static td_status probe_op(op_probe *p, bool capture, double *seconds, td_error *err) {
    const td_device_ops *ops = p->dev->ops;
    double t0 = td_time_s();
    td_status rc = capture ? ops->capture(p->stream, &p->capture, err)
                           : ops->attention(p->stream, &p->attention, err);
    if (rc == TD_OK)
        rc = ops->event_record(p->event, p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_sync(p->event, 0, err);
    *seconds = td_time_s() - t0;
    return rc;
}

td_status td_device_measure_ops(td_device *dev, td_dtype compute, td_device_op_speed *out,
                                td_error *err) {
    const td_device_ops *ops = dev->ops;
    const int32_t offsets[2] = {0, SEQ};
    op_probe p = {.dev = dev};
    /* One block of device memory, every part at a multiple of 64 bytes. */
    enum { PART = 64, N_STATS = 6 };
    size_t qkv = (size_t)SEQ * QKV * 4, att = (size_t)SEQ * HEADS * HEAD_DIM * 4;
    size_t logits = (size_t)ROWS * VOCAB * 4, top = (size_t)ROWS * TOP * 4, row = (size_t)ROWS * 4;
    size_t n = qkv + att + logits + 2 * top + N_STATS * row + 2 * PART;
    float *values = td_calloc(n, 1);
    char *base = NULL;
    void *block = NULL;
    td_status rc = TD_OK;
    if (!values) {
        rc = td_error_nomem(err, "the speed measurement", n);
        goto done;
    }
    /* Small, regular values; as ids (targets, offsets) they are written over below. */
    for (size_t i = 0; i < (qkv + att + logits) / 4; i++)
        values[i] = (float)(i * 37 % 101) * 0.03125f;
    if ((rc = ops->alloc(dev, n, &block, err)) != TD_OK ||
        (rc = ops->stream_create(dev, &p.stream, err)) != TD_OK ||
        (rc = ops->event_create(dev, &p.event, err)) != TD_OK)
        goto done;
    base = block;
    char *out_att = base + qkv, *z = out_att + att, *ids = z + logits, *probs = ids + top,
         *stats = probs + top, *seq = stats + N_STATS * row;
    memcpy((char *)values + (seq - base), offsets, sizeof offsets);
    rc = ops->copy_in(p.stream, block, values, n, err);
    p.attention = (td_attention_args){.q = base,
                                      .k = base + (size_t)HEADS * HEAD_DIM * 4,
                                      .v = base + (size_t)HEADS * HEAD_DIM * 8,
                                      .in_dtype = TD_F32,
                                      .stride = QKV,
                                      .out = out_att,
                                      .out_dtype = compute,
                                      .seq_offsets = (const int32_t *)(void *)seq,
                                      .seq_offsets_host = offsets,
                                      .n_seqs = 1,
                                      .n_heads = HEADS,
                                      .n_kv_heads = HEADS,
                                      .head_dim = HEAD_DIM,
                                      .scale = 0.125f};
    p.capture = (td_capture_args){.logits = (const float *)(void *)z,
                                  .targets = (const int32_t *)(void *)(stats + 5 * row),
                                  .n_rows = ROWS,
                                  .n_vocab = VOCAB,
                                  .top_k = TOP,
                                  .n_valid = VOCAB,
                                  .divisor = 1,
                                  .topk_ids = (int32_t *)(void *)ids,
                                  .topk_logprobs = (float *)(void *)probs,
                                  .logsumexp = (float *)(void *)stats,
                                  .tail_mass = (float *)(void *)(stats + row),
                                  .target_logprob = (float *)(void *)(stats + 2 * row),
                                  .target_rank = (int32_t *)(void *)(stats + 3 * row),
                                  .entropy = (float *)(void *)(stats + 4 * row)};
    double best[2] = {1e30, 1e30}, s = 0;
    double until = td_time_s() + BUDGET_S;
    for (int i = 0; rc == TD_OK && i < MAX_ROUNDS && (i < 3 || td_time_s() < until); i++) {
        for (int op = 0; rc == TD_OK && op < 2; op++) {
            rc = probe_op(&p, op == 1, &s, err);
            best[op] = TD_MIN(best[op], s);
        }
    }
    if (rc == TD_OK) {
        out->attention_tflops =
            4.0 * HEADS * HEAD_DIM * ((double)SEQ * (SEQ + 1) / 2) / best[0] * 1e-12;
        out->capture_gbs = 12.0 * ROWS * VOCAB / best[1] * 1e-9;
    }
done:
    if (p.stream)
        ops->stream_destroy(p.stream);
    if (p.event)
        ops->event_destroy(p.event);
    ops->free(dev, block);
    free(values);
    return rc;
}
