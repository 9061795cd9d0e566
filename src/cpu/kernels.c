/* kernels.c - the element-wise operations, RMSNorm, and the table of one level. */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "tdgen/util.h"

static void embed(const td_embed_args *a, int64_t begin, int64_t end) {
    const int64_t c = a->n_cols;
    for (int64_t t = begin; t < end; t++) {
        float *out = a->out + t * c;
        const int64_t at = (int64_t)a->ids[t] * c;
        if (a->table_dtype == TD_F32) {
            memcpy(out, (const float *)a->table + at, (size_t)c * sizeof(float));
        } else {
            const uint16_t *in = (const uint16_t *)a->table + at;
            if (a->table_dtype == TD_BF16)
                for (int64_t i = 0; i < c; i++)
                    out[i] = td_bf16_to_f32(in[i]);
            else
                for (int64_t i = 0; i < c; i++)
                    out[i] = td_f16_to_f32(in[i]);
        }
    }
}

static void rmsnorm(const td_rmsnorm_args *a, int64_t begin, int64_t end) {
    const int64_t c = a->n_cols, n_inner = TD_MAX(a->n_inner, 1);
    for (int64_t r = begin; r < end; r++) {
        const int64_t from = a->row_index ? a->row_index[r] : r;
        for (int64_t h = 0; h < n_inner; h++) {
            const float *x = a->in + from * a->in_stride + h * c;
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
            const float inv = (float)(1.0 / sqrt(sum / (double)c + (double)a->eps));
            if (a->out_dtype == TD_F32) {
                float *y = (float *)a->out + r * a->out_stride + h * c;
                for (i = 0; i < c; i++)
                    y[i] = x[i] * inv * a->weight[i];
            } else {
                uint16_t *y = (uint16_t *)a->out + r * a->out_stride + h * c;
                for (i = 0; i < c; i++)
                    y[i] = td_f32_to_bf16(x[i] * inv * a->weight[i]);
            }
        }
    }
}

static void rope(const td_rope_args *a, int64_t begin, int64_t end) {
    const int64_t half = a->rotary_dim / 2;
    for (int64_t t = begin; t < end; t++) {
        const float *restrict c = a->cos_table + a->positions[t] * half;
        const float *restrict s = a->sin_table + a->positions[t] * half;
        for (int64_t h = 0; h < a->n_heads; h++) {
            float *restrict lo = a->x + t * a->stride + h * a->head_dim;
            float *restrict hi = lo + half;
            for (int64_t i = 0; i < half; i++) {
                const float x = lo[i], y = hi[i];
                lo[i] = x * c[i] - y * s[i];
                hi[i] = y * c[i] + x * s[i];
            }
        }
    }
}

/* silu(g) = g / (1 + exp(-g)). For g below -88 exp is infinite and the quotient -0, its limit. */
TD_INLINE vf silu_mul(vf g, vf u) {
    return g / (vf_set(1) + vf_exp(-g)) * u;
}

static void gated_act(const td_gated_act_args *a, int64_t begin, int64_t end) {
    const int64_t f = a->n_cols;
    for (int64_t t = begin; t < end; t++) {
        const float *g = a->gate_up + t * 2 * f, *u = g + f;
        for (int64_t i = 0; i < f; i += TD_LANES) {
            float y[TD_LANES];
            const int64_t n = TD_MIN(f - i, (int64_t)TD_LANES);
            if (n == TD_LANES)
                vf_store(y, silu_mul(vf_load(g + i), vf_load(u + i)));
            else
                vf_store(y, silu_mul(vf_load_n(g + i, n, 0), vf_load_n(u + i, n, 0)));
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

static void tile_out(float *dst, int64_t dst_stride, const float *src, int64_t src_stride,
                     int64_t n_rows, int64_t n_cols, const float *bias, int accumulate) {
    for (int64_t r = 0; r < n_rows; r++) {
        float *d = dst + r * dst_stride;
        const float *s = src + r * src_stride;
        if (accumulate)
            for (int64_t i = 0; i < n_cols; i++)
                d[i] += s[i];
        else if (bias)
            for (int64_t i = 0; i < n_cols; i++)
                d[i] = s[i] + bias[i];
        else if (d != s)
            memcpy(d, s, (size_t)n_cols * sizeof(float));
    }
}

static void exp_array(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += TD_LANES) {
        float t[TD_LANES];
        const int64_t m = TD_MIN(n - i, (int64_t)TD_LANES);
        vf_store(t, vf_exp(m == TD_LANES ? vf_load(x + i) : vf_load_n(x + i, m, 0)));
        memcpy(y + i, t, (size_t)m * sizeof(float));
    }
}

const td_cpu_kernels TD_LEVEL_NAME(kernels) = {
    .level = TD_KERNEL_LEVEL,
    .embed = embed,
    .rmsnorm = rmsnorm,
    .rope = rope,
    .gated_act = gated_act,
    .attention = TD_LEVEL_NAME(attention),
    .capture = TD_LEVEL_NAME(capture),
    .tile_out = tile_out,
    .exp = exp_array,
};
