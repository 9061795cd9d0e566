/* tensor.c - see tensor.h.
 *
 * FP8: the value of an element is f32(e4m3) * scale in f32. transformers rounds it to the dtype
 * that the model is loaded in, which the device does when it prepares the weight for its compute
 * dtype; compressed-tensors computes the product in the dtype of the scale, so it is rounded to
 * that first.
 */
#include "model/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tdgen/util.h"

float td_tensor_load(const void *src, td_dtype dtype, size_t i) {
    if (dtype == TD_F32) {
        float f;
        memcpy(&f, (const char *)src + 4 * i, 4);
        return f;
    }
    uint16_t h;
    memcpy(&h, (const char *)src + 2 * i, 2);
    return dtype == TD_BF16 ? td_bf16_to_f32(h) : td_f16_to_f32(h);
}

static void store(void *dst, td_dtype dtype, size_t i, float v) {
    if (dtype == TD_F32)
        ((float *)dst)[i] = v;
    else
        ((uint16_t *)dst)[i] = dtype == TD_BF16 ? td_f32_to_bf16(v) : td_f32_to_f16(v);
}

void td_tensor_convert(const void *src, td_dtype from, void *dst, td_dtype to, size_t n) {
    if (from == to) {
        memcpy(dst, src, n * td_dtype_size(to));
        return;
    }
    for (size_t i = 0; i < n; i++)
        store(dst, to, i, td_tensor_load(src, from, i));
}

float td_e4m3_to_f32(uint8_t b) {
    int exponent = (b >> 3) & 15, mantissa = b & 7;
    float v;
    if ((b & 0x7f) == 0x7f)
        v = NAN;
    else if (exponent)
        v = ldexpf(1.0f + (float)mantissa / 8, exponent - 7);
    else
        v = (float)mantissa * 0x1p-9f;
    return b & 0x80 ? -v : v;
}

static float round_to(float v, td_dtype dtype) {
    return dtype == TD_BF16  ? td_bf16_to_f32(td_f32_to_bf16(v))
           : dtype == TD_F16 ? td_f16_to_f32(td_f32_to_f16(v))
                             : v;
}

static void dequantise(const td_ckpt_entry *e, const td_model_config *cfg, float *dst) {
    const td_st_tensor *t = e->tensor, *s = e->scale->tensor;
    int64_t rows = t->shape[0], cols = t->shape[1], br = e->scale_block[0], bc = e->scale_block[1];
    int64_t scales_per_row = (cols + bc - 1) / bc;
    td_dtype scale_dtype = (td_dtype)s->dtype;
    const uint8_t *q = t->data;
    float values[256];
    for (int i = 0; i < 256; i++)
        values[i] = td_e4m3_to_f32((uint8_t)i);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c0 = 0; c0 < cols; c0 += bc) {
            float scale =
                td_tensor_load(s->data, scale_dtype, (size_t)(r / br * scales_per_row + c0 / bc));
            for (int64_t c = c0; c < TD_MIN(c0 + bc, cols); c++) {
                float v = values[q[r * cols + c]] * scale;
                if (cfg->fp8_scale_first)
                    v = round_to(v, scale_dtype);
                dst[r * cols + c] = v;
            }
        }
}

/* dst [cols, rows] of src [rows, cols], elements of size_bytes. Blocks keep both sides in cache. */
static void transpose(const char *src, char *dst, int64_t rows, int64_t cols, size_t size_bytes) {
    enum { BLOCK = 32 };
    for (int64_t r0 = 0; r0 < rows; r0 += BLOCK)
        for (int64_t c0 = 0; c0 < cols; c0 += BLOCK)
            for (int64_t c = c0; c < TD_MIN(c0 + BLOCK, cols); c++)
                for (int64_t r = r0; r < TD_MIN(r0 + BLOCK, rows); r++)
                    memcpy(dst + (size_t)(c * rows + r) * size_bytes,
                           src + (size_t)(r * cols + c) * size_bytes, size_bytes);
}

td_status td_tensor_open(const td_ckpt_entry *e, const td_model_config *cfg, td_tensor_view *out,
                         td_error *err) {
    const td_st_tensor *t = e->tensor;
    td_dtype dtype = e->scale ? TD_F32 : (td_dtype)t->dtype;
    size_t elem = td_dtype_size(dtype), size_bytes;
    td_host_matrix m = {t->data, dtype, t->shape[0], t->shape[1]};
    *out = (td_tensor_view){.matrix = m};
    /* An old file with an unpadded header puts tensors at odd addresses. */
    bool is_aligned = (uintptr_t)t->data % elem == 0;
    if (!e->scale && !e->transposed && is_aligned)
        return TD_OK;
    void *p = td_mul_size((size_t)t->n_elems, elem, &size_bytes) ? malloc(size_bytes) : NULL;
    if (!p)
        return td_error_nomem(err, e->name, t->size_bytes);
    if (e->scale)
        dequantise(e, cfg, p);
    else if (!e->transposed)
        memcpy(p, t->data, size_bytes);
    if (e->transposed) {
        void *turned = e->scale ? malloc(size_bytes) : p;
        if (!turned) {
            free(p);
            return td_error_nomem(err, e->name, size_bytes);
        }
        transpose(e->scale ? p : t->data, turned, m.n_rows, m.n_cols, elem);
        if (e->scale)
            free(p);
        p = turned;
        m.n_rows = t->shape[1];
        m.n_cols = t->shape[0];
    }
    m.data = p;
    *out = (td_tensor_view){m, p};
    return TD_OK;
}

void td_tensor_release(td_tensor_view *v) {
    free(v->owned);
    *v = (td_tensor_view){0};
}
