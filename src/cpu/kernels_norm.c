/* kernels_norm.c - RMSNorm and LayerNorm of rows or of the heads of a row, and conversion. */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "base/memory.h"

/* sum x^2: sixteen f32 lanes, two vectors deep, joined in f64. */
TD_INLINE double sum_squares(const float *x, int64_t c) {
    vf s0 = vf_set(0), s1 = vf_set(0);
    int64_t i = 0;
    for (; i + 2 * TD_LANES <= c; i += 2 * TD_LANES) {
        vf x0 = vf_load(x + i), x1 = vf_load(x + i + TD_LANES);
        s0 += x0 * x0;
        s1 += x1 * x1;
    }
    double sum = vf_sum(s0 + s1);
    for (; i < c; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

/* sum x and sum (x - mean)^2, in f64 throughout: rows whose mean is far above their deviation lose
 * nothing. */
TD_INLINE double sum_plain(const float *x, int64_t c) {
    vd s = {0};
    int64_t i = 0;
    for (; i + TD_LANES <= c; i += TD_LANES) {
        vf v = vf_load(x + i);
        s.lo += vf_lo(v);
        s.hi += vf_hi(v);
    }
    double sum = vd_sum(s);
    for (; i < c; i++)
        sum += (double)x[i];
    return sum;
}
TD_INLINE double sum_deviations(const float *x, int64_t c, double mean) {
    vd s = {0};
    int64_t i = 0;
    for (; i + TD_LANES <= c; i += TD_LANES) {
        vf v = vf_load(x + i);
        vd8 lo = vf_lo(v) - mean, hi = vf_hi(v) - mean;
        s.lo += lo * lo;
        s.hi += hi * hi;
    }
    double sum = vd_sum(s);
    for (; i < c; i++)
        sum += ((double)x[i] - mean) * ((double)x[i] - mean);
    return sum;
}

/* c elements on their way out; `at` counts elements of the result, y is element i without bias. */
#define STORE(y)                                                                                   \
    do {                                                                                           \
        const float *b_ = a->bias;                                                                 \
        float *f_ = (float *)a->out + at;                                                          \
        uint16_t *h_ = (uint16_t *)a->out + at;                                                    \
        if (a->accumulate)                                                                         \
            for (int64_t i = 0; i < c; i++)                                                        \
                f_[i] += a->scale * (b_ ? (y) + b_[i] : (y));                                      \
        else if (a->out_dtype == TD_F32)                                                           \
            for (int64_t i = 0; i < c; i++)                                                        \
                f_[i] = b_ ? (y) + b_[i] : (y);                                                    \
        else                                                                                       \
            for (int64_t i = 0; i < c; i++)                                                        \
                h_[i] = td_f32_to_bf16(b_ ? (y) + b_[i] : (y));                                    \
    } while (0)

void TD_LEVEL_NAME(norm)(const td_norm_args *a, int64_t begin, int64_t end) {
    const int64_t c = a->n_cols, n_inner = TD_MAX(a->n_inner, 1);
    for (int64_t r = begin; r < end; r++) {
        const int64_t from = a->row_index ? a->row_index[r] : r;
        for (int64_t h = 0; h < n_inner; h++) {
            const float *x = a->in + from * a->in_stride + h * c;
            const int64_t at = r * a->out_stride + h * c;
            const float *w = a->weight;
            if (a->kind == TD_NORM_RMS) {
                const double mean_square = sum_squares(x, c) / (double)c;
                const float inv = (float)(1.0 / sqrt(mean_square + (double)a->eps));
                STORE(x[i] * inv * w[i]);
            } else if (a->kind == TD_NORM_LAYER) {
                const double mean = sum_plain(x, c) / (double)c;
                const double variance = sum_deviations(x, c, mean) / (double)c;
                const double inv = 1.0 / sqrt(variance + (double)a->eps);
                STORE((float)(((double)x[i] - mean) * inv) * w[i]);
            } else {
                STORE(x[i]);
            }
        }
    }
}
