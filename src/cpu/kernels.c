/* kernels.c - embedding, rotation, conversion, the way out of a GEMM; the table of one level. */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "base/convert.h"
#include "base/memory.h"

void TD_LEVEL_NAME(embed)(const td_embed_args *a, int64_t begin, int64_t end) {
    const int64_t c = a->n_cols;
    const float scale = a->scale;
    for (int64_t t = begin; t < end; t++) {
        float *out = a->out + t * c;
        const int64_t at = (int64_t)a->ids[t] * c;
        const float *f = (const float *)a->table + at;
        const uint16_t *h = (const uint16_t *)a->table + at;
        enum { CHUNK = 256 };
        float wide[CHUNK];
        for (int64_t i0 = 0; i0 < c; i0 += CHUNK) {
            const int64_t n = TD_MIN(c - i0, (int64_t)CHUNK);
            float *o = out + i0;
            if (a->table_dtype == TD_F32)
                memcpy(wide, f + i0, (size_t)n * sizeof(float));
            else if (a->table_dtype == TD_BF16)
                for (int64_t i = 0; i < n; i++)
                    wide[i] = td_bf16_to_f32(h[i0 + i]);
            else
                for (int64_t i = 0; i < n; i++)
                    wide[i] = td_f16_to_f32(h[i0 + i]);
            if (scale != 1.0f)
                for (int64_t i = 0; i < n; i++)
                    wide[i] *= scale;
            if (a->accumulate)
                for (int64_t i = 0; i < n; i++)
                    o[i] += wide[i];
            else
                memcpy(o, wide, (size_t)n * sizeof(float));
        }
    }
}

void TD_LEVEL_NAME(rope)(const td_rope_args *a, int64_t begin, int64_t end) {
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

void TD_LEVEL_NAME(convert)(const td_convert_args *a, int64_t begin, int64_t end) {
    (void)td_convert((const char *)a->in + begin * (int64_t)td_dtype_size(a->in_dtype), a->in_dtype,
                     (char *)a->out + begin * (int64_t)td_dtype_size(a->out_dtype), a->out_dtype,
                     (size_t)(end - begin));
}

static void tile_out(float *dst, int64_t dst_stride, const float *src, int64_t src_stride,
                     int64_t n_rows, int64_t n_cols, const float *bias, float scale,
                     int accumulate) {
    for (int64_t r = 0; r < n_rows; r++) {
        float *d = dst + r * dst_stride;
        const float *s = src + r * src_stride;
        if (accumulate && bias)
            for (int64_t i = 0; i < n_cols; i++)
                d[i] += scale * (s[i] + bias[i]);
        else if (accumulate)
            for (int64_t i = 0; i < n_cols; i++)
                d[i] += scale * s[i];
        else if (bias)
            for (int64_t i = 0; i < n_cols; i++)
                d[i] = scale * (s[i] + bias[i]);
        else if (scale != 1.0f)
            for (int64_t i = 0; i < n_cols; i++)
                d[i] = scale * s[i];
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

static void tanh_array(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += TD_LANES) {
        float t[TD_LANES];
        const int64_t m = TD_MIN(n - i, (int64_t)TD_LANES);
        vf_store(t, vf_tanh(m == TD_LANES ? vf_load(x + i) : vf_load_n(x + i, m, 0)));
        memcpy(y + i, t, (size_t)m * sizeof(float));
    }
}

#define SLOT_ROWS(name) , .name = TD_LEVEL_NAME(name)
#define SLOT_WHOLE(name)
#define SLOT(name, NAME, n_rows, how) SLOT_##how(name)
const td_cpu_kernels TD_LEVEL_NAME(kernels) = {
    .level = TD_KERNEL_LEVEL TD_DEVICE_OPERATIONS(SLOT),
    .route = TD_LEVEL_NAME(route),
    .combine = TD_LEVEL_NAME(combine),
    .attention = TD_LEVEL_NAME(attention),
    .capture = TD_LEVEL_NAME(capture),
    .tile_out = tile_out,
    .exp = exp_array,
    .tanh = tanh_array,
};
