/* kernels_act.c - activation functions, alone or times a gate's partner. */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "base/memory.h"

/* All three are x times a number in [0, 1] that keeps its relative precision on both sides, so that
 * nothing cancels where x is negative. */

/* x / (1 + exp(-x)). For x below -88 exp is infinite and the quotient -0, its limit. */
TD_INLINE vf silu(vf x) {
    return x / (vf_set(1) + vf_exp(-x));
}
/* 0.5 (1 + tanh y) is 1 / (1 + exp(-2y)). */
TD_INLINE vf gelu_tanh(vf x) {
    const vf y2 = x * (vf_set(1.5957691216f) + vf_set(0.0713548162726f) * (x * x));
    return x / (vf_set(1) + vf_exp(-y2));
}
TD_INLINE vf gelu(vf x) {
    const vf tail = vf_normal_tail(x);
    return x * vf_sel(x < vf_set(0), tail, vf_set(1) - tail);
}

TD_INLINE void act_rows(const td_act_args *a, int64_t begin, int64_t end, vf (*fn)(vf)) {
    const int64_t f = a->n_cols;
    for (int64_t t = begin; t < end; t++) {
        const float *g = a->in + t * f * (a->gated ? 2 : 1), *u = g + f;
        for (int64_t i = 0; i < f; i += TD_LANES) {
            float y[TD_LANES];
            const int64_t n = TD_MIN(f - i, (int64_t)TD_LANES);
            vf v = fn(n == TD_LANES ? vf_load(g + i) : vf_load_n(g + i, n, 0));
            if (a->gated)
                v *= n == TD_LANES ? vf_load(u + i) : vf_load_n(u + i, n, 0);
            vf_store(y, v);
            if (a->out_dtype == TD_F32) {
                memcpy((float *)a->out + t * f + i, y, (size_t)n * sizeof(float));
            } else {
                uint16_t *out = (uint16_t *)a->out + t * f + i;
                for (int64_t j = 0; j < n; j++)
                    out[j] = td_f32_to_bf16(y[j]);
            }
        }
    }
}

void TD_LEVEL_NAME(act)(const td_act_args *a, int64_t begin, int64_t end) {
    switch (a->act) {
    case TD_ACT_SILU:
        act_rows(a, begin, end, silu);
        return;
    case TD_ACT_GELU:
        act_rows(a, begin, end, gelu);
        return;
    case TD_ACT_GELU_TANH:
        act_rows(a, begin, end, gelu_tanh);
        return;
    }
}
