/* Embedding, norms, rotation and activations of the CUDA device against the CPU device, and the
 * bits of their rows. */
#include <math.h>
#include <stdio.h>

#include "fixture.h"
#include "base/memory.h"

/* --- embedding -------------------------------------------------------------------------------- */

static void embed(gt_side *s, const int32_t *ids, const float *table, td_dtype type, int32_t v,
                  int32_t c, int32_t t, float scale, const float *before, float *out) {
    const size_t n = (size_t)t * c;
    float *d_out = gt_put(s, before, n * 4);
    td_embed_args a = {
        gt_put(s, ids, (size_t)t * 4),
        gt_put(s, gt_pack(table, (size_t)v * c, type), (size_t)v * c * td_dtype_size(type)),
        type,
        d_out,
        t,
        c,
        scale,
        before != NULL};
    GT_MUST(s->ops->embed(s->s, &a, &gt_err));
    gt_get(s, out, d_out, n * 4);
}

static void case_embed(void) {
    static const int32_t cols[] = {1, 3, 8, 301, 1024};
    enum { V = 50, T = 21 };
    gt_rng r = {1};
    for (size_t i = 0; i < TD_ARRAY_LEN(cols); i++)
        for (td_dtype type = TD_F32; type <= TD_F16; type++)
            for (int mode = 0; mode < 4; mode++) { /* plain, scaled, accumulated, both */
                const int32_t c = cols[i];
                const float scale = mode % 2 ? 45.254834f : 1;
                float *table = gt_floats_of(&r, (size_t)V * c, type);
                float *before = mode >= 2 ? gt_floats(&r, (size_t)T * c) : NULL;
                float *got = gt_host((size_t)T * c * 4), *want = gt_host((size_t)T * c * 4);
                int32_t ids[T];
                for (int t = 0; t < T; t++)
                    ids[t] = t == 0 ? V - 1 : t == 1 ? 0 : gt_below(&r, V);
                embed(&gt_cpu, ids, table, type, V, c, T, scale, before, want);
                embed(&gt_dut, ids, table, type, V, c, T, scale, before, got);
                /* One product, rounded once: the same bits. With a sum, a fused multiply-add. */
                if (!before)
                    gt_same_bits(got, want, (size_t)T * c * 4, "%s, %d columns, scale %g",
                                 td_dtype_name(type), c, (double)scale);
                else
                    gt_near(got, want, (size_t)T * c, c, 2.4e-7 * (double)scale, 2.4e-7,
                            "accumulated %s, %d columns", td_dtype_name(type), c);
                gt_release();
            }
    const td_embed_args unset = {NULL, NULL, TD_F32, NULL, 1, 1, 0, false};
    GT_CHECK(gt_dut.ops->embed(gt_dut.s, &unset, &gt_err) == TD_E_INTERNAL,
             "a scale that was not set is refused");
}

/* --- norms ------------------------------------------------------------------------------------ */

typedef struct norm_case {
    td_norm_kind kind;
    int32_t rows, cols, inner;
    bool bias, gather, accumulate, in_place;
    td_dtype out_type;
    float offset; /* of every element: a mean far above the deviation */
    int32_t in_pad, out_pad;
} norm_case;

static const char *norm_text(const norm_case *c) {
    static char text[160];
    static const char *const names[] = {"RMSNorm", "LayerNorm", "conversion"};
    snprintf(text, sizeof(text), "%s to %s, %d rows of %d x %d%s%s%s%s, mean %g", names[c->kind],
             td_dtype_name(c->out_type), c->rows, c->inner, c->cols, c->bias ? ", bias" : "",
             c->gather ? ", gathered" : "", c->accumulate ? ", accumulated" : "",
             c->in_place ? ", in place" : "", (double)c->offset);
    return text;
}

typedef struct norm_data {
    float *x, *w, *b, *before;
    int32_t *index, n_source;
} norm_data;

/* The rows of the result, dense. */
static float *norm(gt_side *s, const norm_case *c, const norm_data *d, td_dtype out_type) {
    const int64_t width = (int64_t)c->inner * c->cols;
    const int64_t in_stride = width + c->in_pad,
                  out_stride = c->in_place ? in_stride : width + c->out_pad;
    const size_t elem = td_dtype_size(out_type), n_out = (size_t)c->rows * (size_t)out_stride;
    float *x = gt_put(s, d->x, (size_t)d->n_source * (size_t)in_stride * 4);
    void *out = c->in_place ? x : gt_put(s, c->accumulate ? d->before : NULL, n_out * elem);
    td_norm_args a = {.kind = c->kind,
                      .in = x,
                      .row_index = c->gather ? gt_put(s, d->index, (size_t)c->rows * 4) : NULL,
                      .weight =
                          c->kind == TD_NORM_NONE ? NULL : gt_put(s, d->w, (size_t)c->cols * 4),
                      .bias = c->bias ? gt_put(s, d->b, (size_t)c->cols * 4) : NULL,
                      .out = out,
                      .out_dtype = out_type,
                      .n_rows = c->rows,
                      .n_cols = c->cols,
                      .n_inner = c->inner,
                      .in_stride = in_stride,
                      .out_stride = out_stride,
                      .eps = 1e-5f,
                      .accumulate = c->accumulate,
                      .scale = c->accumulate ? -0.75f : 0};
    GT_MUST(s->ops->norm(s->s, &a, &gt_err));
    char *host = gt_host(n_out * elem);
    gt_get(s, host, out, n_out * elem);
    float *dense = gt_host((size_t)c->rows * width * 4);
    for (int32_t i = 0; i < c->rows; i++)
        memcpy(dense + i * width,
               gt_unpack(host + (size_t)(i * out_stride) * elem, (size_t)width, out_type),
               (size_t)width * 4);
    /* What lies between the rows is not the operation's. */
    if (!c->in_place && gt_fills) {
        const float *all = gt_unpack(host, n_out, out_type);
        for (size_t i = 0; i < n_out; i++)
            if ((int64_t)i % out_stride >= width &&
                !(c->accumulate ? all[i] == d->before[i] : isnan(all[i]))) {
                gt_fail("%s: wrote between the rows", norm_text(c));
                break;
            }
    }
    return dense;
}

static void check_norm(gt_rng *r, const norm_case *c) {
    const int64_t width = (int64_t)c->inner * c->cols, stride = width + c->in_pad;
    norm_data d = {.n_source = c->gather ? c->rows + 3 : c->rows};
    d.x = gt_floats(r, (size_t)d.n_source * (size_t)stride);
    for (int64_t i = 0; i < d.n_source * stride; i++)
        d.x[i] += c->offset;
    d.w = gt_floats(r, (size_t)c->cols);
    d.b = gt_floats(r, (size_t)c->cols);
    d.before = gt_floats(r, (size_t)c->rows * (size_t)(width + c->out_pad));
    d.index = gt_host((size_t)c->rows * 4);
    for (int32_t i = 0; i < c->rows; i++)
        d.index[i] = gt_below(r, d.n_source);
    float *want = norm(&gt_cpu, c, &d, TD_F32), *got = norm(&gt_dut, c, &d, c->out_type);
    /* f32: sums in another order, a few ulp; where the mean is large its rounding counts against a
     * deviation of 1. 16 bits: one rounding of the same value, next to a tie to the other side. */
    const double f32_tol = 3e-6 + 1e-6 * (double)fabsf(c->offset) * 0.3;
    gt_near(got, want, (size_t)c->rows * (size_t)width, width, f32_tol,
            c->out_type == TD_F32 ? 3e-6 : gt_ulp(c->out_type), "%s", norm_text(c));
    gt_release();
}

static void case_norm(void) {
    static const int32_t cols[] = {1, 2, 8, 15, 31, 64, 100, 129, 640, 1000};
    gt_rng r = {2};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (size_t i = 0; i < TD_ARRAY_LEN(cols); i++)
        for (td_norm_kind kind = TD_NORM_RMS; kind <= TD_NORM_NONE; kind++)
            for (int32_t k = 0; k < n_types; k++) {
                norm_case c = {.kind = kind,
                               .rows = 5,
                               .cols = cols[i],
                               .inner = 1,
                               .bias = kind != TD_NORM_NONE && i % 2,
                               .out_type = types[k]};
                check_norm(&r, &c);
                c.gather = true, c.in_pad = 5, c.out_pad = 3;
                c.inner = cols[i] <= 129 ? 3 : 1;
                check_norm(&r, &c);
            }
}

static void case_norm_accumulated_and_in_place(void) {
    static const int32_t cols[] = {1, 16, 20, 128, 300, 768};
    gt_rng r = {3};
    for (size_t i = 0; i < TD_ARRAY_LEN(cols); i++)
        for (td_norm_kind kind = TD_NORM_RMS; kind <= TD_NORM_LAYER; kind++) {
            norm_case c = {.kind = kind,
                           .rows = 7,
                           .cols = cols[i],
                           .inner = 1,
                           .bias = i % 2,
                           .accumulate = true,
                           .out_pad = 2 * (int32_t)i};
            check_norm(&r, &c);
            c.accumulate = false, c.in_place = true, c.in_pad = 11;
            c.inner = cols[i] <= 128 ? 4 : 1;
            check_norm(&r, &c);
        }
    norm_case c = {.kind = TD_NORM_LAYER, .rows = 4, .cols = 640, .inner = 1, .offset = 3000};
    check_norm(&r, &c);
    c = (norm_case){.kind = TD_NORM_NONE, .rows = 3, .cols = 77, .inner = 1, .in_place = true};
    check_norm(&r, &c);
}

static void case_norm_many_rows(void) {
    static const int32_t rows[] = {1, 2, 31, 32, 33, 64, 300, 1025};
    gt_rng r = {4};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (size_t i = 0; i < TD_ARRAY_LEN(rows); i++) {
        norm_case c = {
            .rows = rows[i], .cols = 72, .inner = 1, .out_type = types[(int32_t)i % n_types]};
        check_norm(&r, &c);
        c.kind = TD_NORM_LAYER, c.bias = true, c.out_type = TD_F32;
        check_norm(&r, &c);
    }
    if (!gt_large)
        return;
    static const norm_case real[] = {
        {TD_NORM_RMS, 4096, 4096, 1, false, false, false, false, TD_BF16, 0, 0, 0},
        {TD_NORM_RMS, 8192, 128, 32, false, false, false, true, TD_F32, 0, 2048, 0},
        {TD_NORM_RMS, 1000, 8192, 1, false, true, false, false, TD_BF16, 0, 0, 0},
        {TD_NORM_LAYER, 1000, 5120, 1, true, false, false, false, TD_F16, 0, 0, 0},
        {TD_NORM_RMS, 1000, 3584, 1, false, false, true, false, TD_F32, 0, 0, 0}};
    for (size_t i = 0; i < TD_ARRAY_LEN(real); i++)
        check_norm(&r, &real[i]);
}

static void case_norm_bad_numbers(void) {
    enum { C = 70 };
    gt_rng r = {5};
    float *x = gt_floats(&r, 4 * C), *w = gt_floats(&r, C), *b = gt_floats(&r, C);
    x[3] = NAN;
    for (int j = 0; j < C; j++)
        x[C + j] = 0; /* eps alone */
    for (int j = 0; j < C; j++)
        x[2 * C + j] *= 1e-20f; /* squares underflow */
    norm_data d = {.x = x, .w = w, .b = b, .n_source = 4};
    for (td_norm_kind kind = TD_NORM_RMS; kind <= TD_NORM_LAYER; kind++) {
        norm_case c = {.kind = kind, .rows = 4, .cols = C, .inner = 1, .bias = true};
        float *want = norm(&gt_cpu, &c, &d, TD_F32), *got = norm(&gt_dut, &c, &d, TD_F32);
        gt_near(got, want, 4 * C, C, 3e-6, 3e-6, "NaN, zero and tiny rows, %s", norm_text(&c));
    }
}

static void case_norm_refusals(void) {
    float *x = gt_put(&gt_dut, NULL, 64);
    const td_norm_args good = {
        .in = x, .weight = x, .out = x, .n_rows = 1, .n_cols = 4, .n_inner = 1};
    GT_MUST(gt_dut.ops->norm(gt_dut.s, &good, &gt_err));
    td_norm_args a = good;
    a.kind = TD_NORM_NONE;
    GT_CHECK(gt_dut.ops->norm(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL,
             "a conversion with a weight");
    a = good, a.weight = NULL;
    GT_CHECK(gt_dut.ops->norm(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL, "a norm without a weight");
    GT_CHECK(strstr(gt_err.text, gt_dut.dev->info.name) && strstr(gt_err.text, "norm"),
             "the text names neither device nor operation: %s", gt_err.text);
    a = good, a.accumulate = true;
    GT_CHECK(gt_dut.ops->norm(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL, "a scale of 0");
    a.scale = 1, a.out_dtype = TD_BF16;
    GT_CHECK(gt_dut.ops->norm(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL, "16-bit sums");
    gt_sync(&gt_dut);
}

/* --- rotation --------------------------------------------------------------------------------- */

typedef struct rope_case {
    int32_t tokens, heads, plain, head_dim, rotary, pad;
    bool out, no_table;
    td_dtype type;
} rope_case;

static void check_rope(gt_rng *r, const rope_case *c) {
    enum { P = 60 };
    const int32_t turned = c->heads * c->head_dim, width = turned + c->plain * c->head_dim;
    const int64_t stride = width + c->pad;
    const size_t n_x = (size_t)c->tokens * (size_t)stride, half = (size_t)c->rotary / 2;
    float *x = gt_floats(r, n_x), *want = gt_host(n_x * 4), *got = gt_host(n_x * 4);
    float *cs = gt_floats(r, P * half + 1), *sn = gt_floats(r, P * half + 1);
    int32_t *pos = gt_host((size_t)c->tokens * 4);
    for (int32_t i = 0; i < c->tokens; i++)
        pos[i] = gt_below(r, P);
    char text[120];
    snprintf(text, sizeof(text), "%d tokens, %d + %d heads of %d, %d turned%s, %s%s", c->tokens,
             c->heads, c->plain, c->head_dim, c->rotary, c->no_table ? " (no table)" : "",
             c->out ? "into " : "in place", c->out ? td_dtype_name(c->type) : "");
    memcpy(want, x, n_x * 4);
    if (!c->no_table) {
        float *y = gt_put(&gt_cpu, x, n_x * 4);
        td_rope_args a = {.x = y,
                          .positions = gt_put(&gt_cpu, pos, (size_t)c->tokens * 4),
                          .cos_table = gt_put(&gt_cpu, cs, P * half * 4 + 4),
                          .sin_table = gt_put(&gt_cpu, sn, P * half * 4 + 4),
                          .n_tokens = c->tokens,
                          .n_heads = c->heads,
                          .head_dim = c->head_dim,
                          .rotary_dim = c->rotary,
                          .stride = stride};
        GT_MUST(gt_cpu.ops->rope(gt_cpu.s, &a, &gt_err));
        gt_get(&gt_cpu, want, y, n_x * 4);
    }
    float *y = gt_put(&gt_dut, x, n_x * 4);
    const size_t n_out = (size_t)c->tokens * (size_t)width;
    void *out = c->out ? gt_put(&gt_dut, NULL, n_out * td_dtype_size(c->type)) : NULL;
    td_rope_args a = {.x = y,
                      .out = out,
                      .out_dtype = c->type,
                      .n_plain_heads = c->out ? c->plain : 0,
                      .positions = gt_put(&gt_dut, pos, (size_t)c->tokens * 4),
                      .cos_table = c->no_table ? NULL : gt_put(&gt_dut, cs, P * half * 4 + 4),
                      .sin_table = c->no_table ? NULL : gt_put(&gt_dut, sn, P * half * 4 + 4),
                      .n_tokens = c->tokens,
                      .n_heads = c->heads,
                      .head_dim = c->head_dim,
                      .rotary_dim = c->rotary,
                      .stride = stride};
    GT_MUST(gt_dut.ops->rope(gt_dut.s, &a, &gt_err));
    gt_get(&gt_dut, got, y, n_x * 4);
    /* Two products and a sum, fused or not: an ulp of the larger product. */
    if (!c->out) {
        gt_near(got, want, n_x, stride, 1e-6, 3e-7, "%s", text);
        return;
    }
    gt_same_bits(got, x, n_x * 4, "%s: x is left alone", text);
    void *packed = gt_host(n_out * td_dtype_size(c->type));
    gt_get(&gt_dut, packed, out, n_out * td_dtype_size(c->type));
    float *dense = gt_unpack(packed, n_out, c->type), *expected = gt_host(n_out * 4);
    for (int32_t t = 0; t < c->tokens; t++)
        memcpy(expected + (size_t)t * width, want + t * stride, (size_t)width * 4);
    gt_near(dense, expected, n_out, width, 1e-6, c->type == TD_F32 ? 3e-7 : gt_ulp(c->type) * 0.51,
            "%s", text);
}

static void case_rope(void) {
    gt_rng r = {6};
    td_dtype types[3];
    const int32_t n_types = gt_turns_into() ? gt_computes(types) : 0, n_modes = 1 + n_types;
    static const int32_t dims[] = {2, 8, 20, 64, 80, 128, 256};
    for (size_t i = 0; i < TD_ARRAY_LEN(dims); i++)
        for (int part = 0; part < 4; part++) { /* of the head: none, some, most, all */
            const int32_t d = dims[i], rotary = d * part / 3 / 2 * 2;
            for (int mode = 0; mode < n_modes; mode++) {
                const rope_case c = {.tokens = 9,
                                     .heads = 3,
                                     .plain = 2,
                                     .head_dim = d,
                                     .rotary = rotary,
                                     .pad = part % 2 ? 8 : 0,
                                     .out = mode > 0,
                                     .type = mode > 0 ? types[mode - 1] : TD_F32};
                check_rope(&r, &c);
                gt_release();
            }
        }
    for (int32_t k = 0; k < n_types; k++) {
        const td_dtype t = types[k];
        rope_case c = {.tokens = 5,
                       .heads = 3,
                       .plain = 2,
                       .head_dim = 24,
                       .out = true,
                       .no_table = true,
                       .type = t};
        check_rope(&r, &c);
        c.rotary = 24;
        check_rope(&r, &c);
        c = (rope_case){.tokens = 300,
                        .heads = 5,
                        .plain = 1,
                        .head_dim = 16,
                        .rotary = 16,
                        .out = true,
                        .type = t};
        check_rope(&r, &c);
        gt_release();
    }
    if (gt_large) {
        check_rope(&r, &(rope_case){8192, 40, 8, 128, 128, 0, true, false, TD_BF16});
        gt_release();
        check_rope(&r, &(rope_case){8192, 40, 8, 128, 64, 0, false, false, TD_F32});
    }
    const td_rope_args odd = {.n_tokens = 1, .n_heads = 1, .head_dim = 8, .rotary_dim = 10};
    GT_CHECK(gt_dut.ops->rope(gt_dut.s, &odd, &gt_err) == TD_E_INTERNAL,
             "more turned than a head has");
}

/* --- activations ------------------------------------------------------------------------------ */

static const char *const act_names[] = {"silu", "gelu", "gelu_tanh"};

static float *act(gt_side *s, const td_act_args *shape, const float *in, size_t n_in) {
    td_act_args a = *shape;
    const size_t n = (size_t)a.n_tokens * a.n_cols, elem = td_dtype_size(a.out_dtype);
    a.in = gt_put(s, in, n_in * 4);
    a.out = gt_put(s, NULL, n * elem);
    GT_MUST(s->ops->act(s->s, &a, &gt_err));
    void *host = gt_host(n * elem);
    gt_get(s, host, a.out, n * elem);
    return gt_unpack(host, n, a.out_dtype);
}

static void check_act(gt_rng *r, td_act which, bool gated, td_dtype type, int32_t t, int32_t f) {
    const size_t n_in = (size_t)t * f * (gated ? 2 : 1), n = (size_t)t * f;
    float *x = gt_floats(r, n_in);
    for (size_t i = 0; i < n_in; i++)
        x[i] *= ldexpf(1, (int)(i % 12) - 7); /* deviations 2^-7 to 16 */
    if (n_in > 8) {
        const float special[] = {-1e30f, 1e30f, -88.5f, 0, -14.5f, -1e-30f, -0.0f, 104};
        memcpy(x, special, sizeof(special));
    }
    td_act_args a = {.act = which, .gated = gated, .n_tokens = t, .n_cols = f};
    float *want = act(&gt_cpu, &a, x, n_in);
    a.out_dtype = type;
    float *got = act(&gt_dut, &a, x, n_in);
    if (type != TD_F32)
        gt_round(want, n, type);
    /* A few ulp of the result; on the negative side, where the result is a difference of nearly
     * equal numbers, a few ulp of 1 for each factor. */
    for (size_t i = 0; i < n; i++) {
        const double u = gated ? fabs((double)x[i / f * 2 * f + f + i % f]) : 1;
        const double rel = type == TD_F32 ? 4e-6 : gt_ulp(type) * 1.01;
        const double tiny = type == TD_F16 ? 6.0e-8 : 0;
        if (!gt_near(&got[i], &want[i], 1, 1, 6e-7 * u + tiny, rel, "%s%s to %s, [%d, %d], at %zu",
                     gated ? "gated " : "", act_names[which], td_dtype_name(type), t, f, i))
            break;
    }
    gt_release();
}

static void case_act(void) {
    static const int32_t shapes[][2] = {{1, 1}, {1, 7}, {3, 8}, {40, 45}, {300, 20}, {2, 2048}};
    gt_rng r = {7};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (td_act which = TD_ACT_SILU; which <= TD_ACT_GELU_TANH; which++)
        for (int gated = 0; gated < 2; gated++)
            for (int32_t k = 0; k < n_types; k++) {
                const td_dtype type = types[k];
                for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++)
                    check_act(&r, which, gated, type, shapes[i][0], shapes[i][1]);
                if (gt_large)
                    check_act(&r, which, gated, type, 1000, 14336);
            }
    for (td_act which = TD_ACT_SILU; which <= TD_ACT_GELU_TANH; which++) {
        const float x[] = {NAN, INFINITY};
        const td_act_args a = {.act = which, .n_tokens = 1, .n_cols = 2};
        float *got = act(&gt_dut, &a, x, 2);
        GT_CHECK(isnan(got[0]) && got[1] == INFINITY, "%s of NaN and infinity: %g %g",
                 act_names[which], (double)got[0], (double)got[1]);
    }
}

/* --- bits of rows ----------------------------------------------------------------------------- */

typedef struct row_op {
    enum { ROW_RMS, ROW_LAYER, ROW_SUM, ROW_SILU, ROW_GELU, ROW_GELU_TANH, ROW_EMBED, ROW_ROPE } op;
    int32_t cols; /* floats of a row */
    td_dtype type;
    const float *weight, *bias, *table, *zeros; /* device */
    const int32_t *positions;
} row_op;

static void draw_floats(gt_rng *r, void *row, void *ctx) {
    const row_op *o = ctx;
    float *x = row;
    for (int32_t i = 0; i < o->cols; i++)
        x[i] = gt_normal(r);
}

static void draw_id(gt_rng *r, void *row, void *ctx) {
    (void)ctx;
    *(int32_t *)row = gt_below(r, 10);
}

static void run_row_op(const void *rows, int32_t n, void *out, void *ctx) {
    const row_op *o = ctx;
    gt_side *s = &gt_dut;
    const size_t elem = td_dtype_size(o->type), n_in = (size_t)n * o->cols;
    const bool act_gated = o->op == ROW_SILU || o->op == ROW_GELU_TANH;
    const size_t n_out = act_gated ? n_in / 2 : n_in;
    void *in = NULL, *d_out = NULL;
    const size_t in_bytes = o->op == ROW_EMBED ? (size_t)n * 4 : n_in * 4;
    GT_MUST(s->ops->alloc(s->dev, in_bytes, &in, &gt_err));
    GT_MUST(s->ops->alloc(s->dev, n_out * elem, &d_out, &gt_err));
    GT_MUST(s->ops->copy_in(s->s, in, rows, in_bytes, &gt_err));
    if (o->op <= ROW_SUM) {
        if (o->op == ROW_SUM)
            for (int32_t i = 0; i < n; i++)
                GT_MUST(s->ops->copy_in(s->s, (float *)d_out + (size_t)i * o->cols, o->zeros,
                                        (size_t)o->cols * 4, &gt_err));
        td_norm_args a = {.kind = o->op == ROW_RMS ? TD_NORM_RMS : TD_NORM_LAYER,
                          .in = in,
                          .weight = o->weight,
                          .bias = o->op == ROW_RMS ? NULL : o->bias,
                          .out = d_out,
                          .out_dtype = o->type,
                          .n_rows = n,
                          .n_cols = o->cols / 2,
                          .n_inner = 2,
                          .in_stride = o->cols,
                          .out_stride = o->cols,
                          .eps = 1e-6f,
                          .accumulate = o->op == ROW_SUM,
                          .scale = o->op == ROW_SUM ? 0.3f : 0};
        GT_MUST(s->ops->norm(s->s, &a, &gt_err));
    } else if (o->op <= ROW_GELU_TANH) {
        td_act_args a = {.act = (td_act)(o->op - ROW_SILU),
                         .gated = act_gated,
                         .in = in,
                         .out = d_out,
                         .out_dtype = o->type,
                         .n_tokens = n,
                         .n_cols = act_gated ? o->cols / 2 : o->cols};
        GT_MUST(s->ops->act(s->s, &a, &gt_err));
    } else if (o->op == ROW_EMBED) {
        td_embed_args a = {in, o->table, TD_F32, d_out, n, o->cols, 1.7f, false};
        GT_MUST(s->ops->embed(s->s, &a, &gt_err));
    } else {
        td_rope_args a = {.x = in,
                          .out = d_out,
                          .out_dtype = o->type,
                          .n_plain_heads = 1,
                          .positions = o->positions,
                          .cos_table = o->table,
                          .sin_table = o->table + 3,
                          .n_tokens = n,
                          .n_heads = o->cols / 10 - 1,
                          .head_dim = 10,
                          .rotary_dim = 6,
                          .stride = o->cols};
        GT_MUST(s->ops->rope(s->s, &a, &gt_err));
    }
    gt_get(s, out, d_out, n_out * elem);
    s->ops->free(s->dev, in);
    s->ops->free(s->dev, d_out);
}

static void case_rows_keep_their_bits(void) {
    static const char *const names[] = {"RMSNorm",    "LayerNorm", "LayerNorm, accumulated",
                                        "gated silu", "gelu",      "gated gelu_tanh",
                                        "embed",      "rope"};
    static const int32_t widths[] = {150, 2048};
    gt_rng r = {8};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    int32_t counts[16];
    const int32_t n_counts = gt_row_counts(gt_large ? 1000 : 300, counts);
    for (size_t w = 0; w < TD_ARRAY_LEN(widths); w++)
        for (int op = ROW_RMS; op <= ROW_ROPE; op++) {
            const int32_t cols = op == ROW_ROPE ? 150 : widths[w];
            if (op == ROW_ROPE && (w || !gt_turns_into()))
                continue;
            row_op o = {.op = op,
                        .cols = cols,
                        .type = op == ROW_RMS || op == ROW_GELU || op == ROW_ROPE
                                    ? types[n_types - 1]
                                    : TD_F32,
                        .zeros = gt_floats(&r, (size_t)cols)};
            o.weight = gt_put(&gt_dut, gt_floats(&r, (size_t)cols), (size_t)cols * 4);
            o.bias = gt_put(&gt_dut, gt_floats(&r, (size_t)cols), (size_t)cols * 4);
            o.table = gt_put(&gt_dut, gt_floats(&r, 10 * (size_t)cols), 40 * (size_t)cols);
            int32_t *same_place = gt_host(4 * 1000);
            for (int i = 0; i < 1000; i++)
                same_place[i] = 7;
            o.positions = gt_put(&gt_dut, same_place, 4 * 1000);
            const size_t halves = op == ROW_SILU || op == ROW_GELU_TANH ? 2 : 1;
            const gt_rows t = {.name = names[op],
                               .row_bytes = op == ROW_EMBED ? 4 : (size_t)cols * 4,
                               .out_bytes = (size_t)cols / halves * td_dtype_size(o.type),
                               .run = run_row_op,
                               .ctx = &o,
                               .draw = op == ROW_EMBED ? draw_id : draw_floats,
                               .hostile = op != ROW_EMBED};
            gt_check_rows(&t, counts, w ? TD_MIN(n_counts, 7) : n_counts, 8 + (uint64_t)op);
            gt_release();
        }
}

static const gt_case cases[] = {
    {"embed", case_embed},
    {"norm", case_norm},
    {"norm_accumulated_and_in_place", case_norm_accumulated_and_in_place},
    {"norm_many_rows", case_norm_many_rows},
    {"norm_bad_numbers", case_norm_bad_numbers},
    {"norm_refusals", case_norm_refusals},
    {"rope", case_rope},
    {"act", case_act},
    {"rows_keep_their_bits", case_rows_keep_their_bits},
};

int main(int argc, char **argv) {
    return gt_main("test_gpu_ops", argc, argv, cases, TD_ARRAY_LEN(cases));
}
