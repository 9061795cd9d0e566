/* tensor.c - see tensor.h.
 *
 * FP8: the value of an element is f32(e4m3) * scale in f32. transformers rounds it to the dtype
 * that the model is loaded in, which the device does when it prepares the weight for its compute
 * dtype; compressed-tensors computes the product in the dtype of the scale, so it is rounded to
 * that first.
 */
#include "model/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/convert.h"
#include "base/memory.h"

td_status td_tensor_refuse(const td_ckpt_entry *e, int64_t i, float value, td_dtype to,
                           const char *device_name, td_error *err) {
    char at[64];
    int64_t cols = e->tensor->n_dims == 2 ? e->tensor->shape[1] : 0;
    if (cols)
        snprintf(at, sizeof at, "[%" PRId64 ", %" PRId64 "]", i / cols, i % cols);
    else
        snprintf(at, sizeof at, "[%" PRId64 "]", i);
    return td_error_set(
        err, TD_E_MODEL,
        "tensor %s: element %s is %g, beyond the range of %s, in which %s computes; "
        "set model.compute = f32%s",
        e->name, at, (double)value, td_dtype_name(to), device_name,
        to == TD_F16 ? ", or bf16 where every device has it" : "");
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

bool td_scale_is_e8m0(const td_st_tensor *t) {
    return t->dtype == TD_U8 || !strcmp(t->dtype_name, "F8_E8M0");
}

static float scale_at(const td_st_tensor *s, size_t i) {
    if (td_scale_is_e8m0(s))
        return ldexpf(1.0f, ((const uint8_t *)s->data)[i] - 127);
    return td_element_load(s->data, (td_dtype)s->dtype, i);
}

static float round_to(float v, td_dtype dtype) {
    return dtype == TD_BF16  ? td_bf16_to_f32(td_f32_to_bf16(v))
           : dtype == TD_F16 ? td_f16_to_f32(td_f32_to_f16(v))
                             : v;
}

void td_tensor_dequantise(const td_ckpt_entry *e, const td_model_config *cfg, const uint8_t *q,
                          int64_t first, int64_t n, float *dst) {
    const td_st_tensor *t = e->tensor, *s = e->scale->tensor;
    int64_t cols = t->shape[1], br = e->scale_block[0], bc = e->scale_block[1];
    int64_t scales_per_row = (cols + bc - 1) / bc;
    td_dtype scale_dtype = (td_dtype)s->dtype;
    float values[256];
    for (int i = 0; i < 256; i++)
        values[i] = td_e4m3_to_f32((uint8_t)i);
    for (int64_t i = 0; i < n;) { /* what is left of the row's block of columns */
        int64_t r = (first + i) / cols, c = (first + i) % cols;
        int64_t end = i + TD_MIN(TD_MIN((c / bc + 1) * bc, cols) - c, n - i);
        float scale = scale_at(s, (size_t)(r / br * scales_per_row + c / bc));
        for (; i < end; i++) {
            float v = values[q[i]] * scale;
            dst[i] = cfg->fp8_scale_first ? round_to(v, scale_dtype) : v;
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
        td_tensor_dequantise(e, cfg, t->data, 0, t->n_elems, p);
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
