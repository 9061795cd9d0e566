/* kernels_moe.c - the row-wise parts of the mixture-of-experts MLP: routing and the final sum. */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "base/memory.h"

/* logits -> softmax in place. The last, partial vector is completed with what adds nothing. */
static void softmax(float *z, int64_t n) {
    float m = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        m = z[i] > m ? z[i]
                     : m; /* a NaN stays in the terms below and reaches them all by the sum */
    vd s = {0};
    for (int64_t i = 0; i < n; i += TD_LANES) {
        const int64_t left = TD_MIN(n - i, (int64_t)TD_LANES);
        const vf x = left == TD_LANES ? vf_load(z + i) : vf_load_n(z + i, left, -INFINITY);
        const vf e = vf_exp(x - vf_set(m));
        float t[TD_LANES];
        vf_store(t, e);
        memcpy(z + i, t, (size_t)left * sizeof(float));
        s.lo += vf_lo(e);
        s.hi += vf_hi(e);
    }
    const float sum = (float)vd_sum(s);
    for (int64_t i = 0; i < n; i++)
        z[i] /= sum;
}

void TD_LEVEL_NAME(route)(float *logits, int32_t n_experts, int32_t top_k, int normalise,
                          int32_t *expert, float *weight) {
    softmax(logits, n_experts);
    /* The best so far, in descending order; an equal one stays behind those with lower numbers.
     * With NaN every comparison is false and the first experts are taken: indices stay valid. */
    int32_t n = 0;
    for (int32_t e = 0; e < n_experts; e++) {
        const float p = logits[e];
        if (n == top_k && !(p > logits[expert[n - 1]]))
            continue;
        int32_t at = n < top_k ? n++ : n - 1;
        for (; at > 0 && p > logits[expert[at - 1]]; at--)
            expert[at] = expert[at - 1];
        expert[at] = e;
    }
    for (int32_t i = 1; i < n; i++) { /* ascending number */
        const int32_t e = expert[i];
        int32_t at = i;
        for (; at > 0 && expert[at - 1] > e; at--)
            expert[at] = expert[at - 1];
        expert[at] = e;
    }
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += (double)logits[expert[i]];
    for (int32_t i = 0; i < n; i++)
        weight[i] = normalise ? (float)((double)logits[expert[i]] / sum) : logits[expert[i]];
}

void TD_LEVEL_NAME(combine)(float *out, const float *rows, int64_t n_cols, const int32_t *slot,
                            const float *weight, int32_t n, float scale) {
    enum { CHUNK = 256 };
    float sum[CHUNK];
    for (int64_t c = 0; c < n_cols; c += CHUNK) {
        const int64_t m = TD_MIN(n_cols - c, (int64_t)CHUNK);
        memset(sum, 0, sizeof(sum));
        for (int32_t j = 0; j < n; j++) {
            const float *row = rows + (int64_t)slot[j] * n_cols + c, w = weight[j];
            for (int64_t i = 0; i < m; i++)
                sum[i] += w * row[i];
        }
        for (int64_t i = 0; i < m; i++)
            out[c + i] += scale * sum[i];
    }
}
