/* cpu_moe.c - the mixture-of-experts MLP as one command, its parts separated by joins of the pool:
 *
 *   route    router product, then per token its experts (ascending) and their weights
 *   group    count the (token, expert) pairs of each expert; a pair's slot is its place among the
 *            pairs sorted by expert, then token (the stream's thread alone)
 *   gather   x[slot] = in[token of slot]
 *   experts  gate_up products of all experts as one run of cells, activation, down products
 *   combine  out[t] += scale * sum over its pairs, by the thread that owns the row
 *
 * The products are those of cpu_gemm.c, so a row's bits do not depend on where in its expert's
 * group it sits. The layout in td_moe_args.scratch is drawn in scratch_layout; what the stream
 * needs besides (arguments of E products) is in its own shared scratch, which stays.
 */
#include <string.h>

#include "cpu/cpu.h"

typedef struct moe_run {
    const td_moe_args *a;
    int64_t n_pairs;      /* P = T * top_k */
    size_t elem;          /* bytes of the compute dtype */
    float *logits;        /* [T, E], then probabilities */
    int32_t *expert;      /* [P] of pair t * top_k + j, ascending in j */
    float *weight;        /* [P] of the pair */
    int32_t *slot;        /* [P] of the pair: its row in what follows */
    int32_t *token;       /* [P] of the slot */
    int64_t *first;       /* [E + 1] first slot of each expert */
    unsigned char *x, *h; /* [P, C] and [P, F], compute dtype */
    float *gate_up, *y;   /* [P, 2F], [P, C] */
} moe_run;

static void *take(unsigned char **at, size_t n_bytes) {
    void *p = *at;
    *at += (n_bytes + 63) / 64 * 64;
    return p;
}

/* Seven parts on 64-byte borders: within the 64 * 8 bytes that td_moe_scratch_bytes adds. */
static moe_run scratch_layout(const td_moe_args *a) {
    const size_t T = (size_t)a->n_tokens, E = (size_t)a->n_experts, P = T * (size_t)a->top_k;
    const size_t C = (size_t)a->n_cols, F = (size_t)a->n_ffn;
    moe_run r = {.a = a, .n_pairs = (int64_t)P, .elem = td_dtype_size(a->router->compute)};
    unsigned char *at = a->scratch;
    r.logits = take(&at, T * E * sizeof(float));
    r.expert = take(&at, P * 16);
    r.weight = (float *)(r.expert + P);
    r.slot = (int32_t *)(r.weight + P);
    r.token = r.slot + P;
    r.first = take(&at, (E + 1) * sizeof(int64_t));
    r.x = take(&at, P * C * r.elem);
    r.h = take(&at, P * F * r.elem);
    r.gate_up = take(&at, P * 2 * F * sizeof(float));
    r.y = take(&at, P * C * sizeof(float));
    return r;
}

static void route_rows(td_cpu_exec *x, const void *args, int64_t begin, int64_t end,
                       int32_t thread) {
    const moe_run *r = args;
    const td_moe_args *a = r->a;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        x->dev->kernels->route(r->logits + t * a->n_experts, a->n_experts, a->top_k, a->normalise,
                               r->expert + t * a->top_k, r->weight + t * a->top_k);
}

static void group_pairs(const moe_run *r) {
    const td_moe_args *a = r->a;
    int64_t *first = r->first;
    memset(first, 0, ((size_t)a->n_experts + 1) * sizeof(*first));
    for (int64_t p = 0; p < r->n_pairs; p++)
        first[r->expert[p] + 1]++;
    for (int32_t e = 0; e < a->n_experts; e++)
        first[e + 1] += first[e];
    for (int64_t p = 0; p < r->n_pairs; p++) { /* first[e] walks to first[e + 1] */
        const int64_t slot = first[r->expert[p]]++;
        r->slot[p] = (int32_t)slot;
        r->token[slot] = (int32_t)(p / a->top_k);
    }
    memmove(first + 1, first, (size_t)a->n_experts * sizeof(*first));
    first[0] = 0;
}

static void gather_rows(td_cpu_exec *x, const void *args, int64_t begin, int64_t end,
                        int32_t thread) {
    const moe_run *r = args;
    const size_t row = (size_t)r->a->n_cols * r->elem;
    (void)x, (void)thread;
    for (int64_t s = begin; s < end; s++)
        memcpy(r->x + (size_t)s * row, (const char *)r->a->in + (size_t)r->token[s] * row, row);
}

static void combine_rows(td_cpu_exec *x, const void *args, int64_t begin, int64_t end,
                         int32_t thread) {
    const moe_run *r = args;
    const td_moe_args *a = r->a;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        x->dev->kernels->combine(a->out + t * a->n_cols, r->y, a->n_cols, r->slot + t * a->top_k,
                                 r->weight + t * a->top_k, a->top_k, a->scale);
}

/* out[slot] = in[slot] * weights[expert of slot]^T, n_in and n_out columns. */
static td_status run_experts(td_cpu_exec *x, const moe_run *r, const td_weight *const *weights,
                             const unsigned char *in, int64_t n_in, float *out, int64_t n_out,
                             td_error *err) {
    td_gemm_args *gemm = x->shared.data;
    int64_t *first_item = (int64_t *)(gemm + r->a->n_experts);
    int32_t n = 0;
    for (int32_t e = 0; e < r->a->n_experts; e++) {
        const int64_t slot = r->first[e];
        if (r->first[e + 1] > slot)
            gemm[n++] = (td_gemm_args){.weight = weights[e],
                                       .in = in + (size_t)(slot * n_in) * r->elem,
                                       .out = out + slot * n_out,
                                       .n_rows = (int32_t)(r->first[e + 1] - slot),
                                       .scale = 1};
    }
    return td_cpu_gemm_batch(x, gemm, n, first_item, err);
}

td_status td_cpu_exec_moe(td_cpu_exec *x, const td_moe_args *a, td_error *err) {
    if (a->n_tokens <= 0)
        return TD_OK;
    const moe_run r = scratch_layout(a);
    const int64_t C = a->n_cols, F = a->n_ffn;
    const size_t per_expert = sizeof(td_gemm_args) + sizeof(int64_t);
    td_status rc = td_cpu_scratch_need(x, &x->shared,
                                       (size_t)a->n_experts * per_expert + sizeof(int64_t), err);
    if (rc != TD_OK)
        return rc;

    const td_gemm_args router = {
        .weight = a->router, .in = a->in, .out = r.logits, .n_rows = a->n_tokens, .scale = 1};
    if ((rc = td_cpu_exec_gemm(x, &router, err)) != TD_OK)
        return rc;
    td_cpu_run_rows(x, &r, a->n_tokens, 4.0 * a->n_experts, route_rows);
    group_pairs(&r);
    td_cpu_run_rows(x, &r, r.n_pairs, 0.3 * (double)C, gather_rows);

    if ((rc = run_experts(x, &r, a->gate_up, r.x, C, r.gate_up, 2 * F, err)) != TD_OK)
        return rc;
    const td_act_args act = {.act = a->act,
                             .gated = true,
                             .in = r.gate_up,
                             .out = r.h,
                             .out_dtype = a->router->compute,
                             .n_tokens = (int32_t)r.n_pairs,
                             .n_cols = a->n_ffn};
    if ((rc = td_cpu_exec_act(x, &act, err)) != TD_OK ||
        (rc = run_experts(x, &r, a->down, r.h, F, r.y, C, err)) != TD_OK)
        return rc;
    td_cpu_run_rows(x, &r, a->n_tokens, 0.5 * (double)C * a->top_k, combine_rows);
    return TD_OK;
}
