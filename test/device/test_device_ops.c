/* Embedding, norms, rotation and activations against plain f64 formulas, and the bits of rows. */
#include "fixture.h"
#include "base/memory.h"

Test(device_ops, embed_reads_every_type) {
    enum { V = 10, C = 301, T = 5 };
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {1};
    float *table = rng_floats(&r, V * C), out[T * C], before[T * C];
    uint16_t half[V * C];
    const int32_t ids[T] = {9, 0, 3, 3, 7};
    for (td_dtype t = TD_F32; t <= TD_F16; t++) {
        for (int i = 0; i < V * C; i++)
            half[i] = t == TD_BF16 ? td_f32_to_bf16(table[i]) : td_f32_to_f16(table[i]);
        for (int mode = 0; mode < 4; mode++) { /* plain, scaled, accumulated, both */
            const float scale = mode % 2 ? 45.254834f : 1;
            memset(out, 0xff, sizeof(out));
            for (int i = 0; i < T * C && mode >= 2; i++)
                out[i] = rng_normal(&r);
            memcpy(before, out, sizeof(out));
            td_embed_args a = {ids,      t == TD_F32 ? (void *)table : half, t, out, T, C, scale,
                               mode >= 2};
            OK(f.ops->embed(f.s, &a, &err));
            fixture_sync(&f);
            for (int i = 0; i < T * C; i++) {
                const int at = ids[i / C] * C + i % C;
                const float x = t == TD_F32    ? table[at]
                                : t == TD_BF16 ? td_bf16_to_f32(half[at])
                                               : td_f16_to_f32(half[at]);
                if (mode < 2)
                    cr_assert_eq(out[i], scale * x, "mode %d", mode);
                else
                    near(out[i], (double)before[i] + (double)scale * (double)x, 2e-7 * scale,
                         "embed", i);
            }
        }
    }
    td_embed_args unset = {ids, table, TD_F32, out, T, C, 0, false};
    cr_assert_eq(f.ops->embed(f.s, &unset, &err), TD_E_INTERNAL);
    free(table);
    fixture_close(&f);
}

/* --- norms ------------------------------------------------------------------------------------ */

static void norm_row(const td_norm_args *a, const float *x, double *y) {
    const int32_t n = a->n_cols;
    double mean = 0, sum = 0;
    for (int32_t j = 0; j < n && a->kind == TD_NORM_LAYER; j++)
        mean += (double)x[j] / n;
    for (int32_t j = 0; j < n; j++)
        sum += ((double)x[j] - mean) * ((double)x[j] - mean);
    for (int32_t j = 0; j < n; j++) {
        y[j] = a->kind == TD_NORM_NONE
                   ? (double)x[j]
                   : ((double)x[j] - mean) / sqrt(sum / n + (double)a->eps) * (double)a->weight[j];
        y[j] += a->bias ? (double)a->bias[j] : 0;
    }
}

static const char *const norm_names[] = {"RMSNorm", "LayerNorm", "conversion"};

/* Every kind, with and without bias, gathered, strided, by heads, of two result types, accumulated
 * and in place. */
static void check_norm(fixture *f, test_rng *r, td_norm_kind kind, int32_t n, bool with_bias,
                       float offset) {
    enum { R = 7, STRIDE = 660, OUT_STRIDE = 670, MAX = 640 };
    td_error err = {0};
    const int32_t inner = n <= 200 ? 3 : 1;
    float *x = rng_floats(r, R * STRIDE), *w = rng_floats(r, (size_t)n), *b = rng_floats(r, MAX);
    float *out = malloc(sizeof(float) * R * OUT_STRIDE), *acc = rng_floats(r, R * OUT_STRIDE);
    float *before = malloc(sizeof(float) * R * OUT_STRIDE), *y = malloc(sizeof(float) * R * STRIDE);
    uint16_t *out16 = malloc(sizeof(uint16_t) * R * OUT_STRIDE);
    double want[MAX];
    static const int32_t index[R] = {6, 0, 0, 3, 2, 5, 1};
    for (int i = 0; i < R * STRIDE; i++)
        x[i] += offset;
    memcpy(before, acc, sizeof(float) * R * OUT_STRIDE);
    td_norm_args a = {.kind = kind,
                      .in = x,
                      .row_index = index,
                      .weight = kind == TD_NORM_NONE ? NULL : w,
                      .bias = with_bias ? b : NULL,
                      .out = out,
                      .n_rows = R,
                      .n_cols = n,
                      .n_inner = inner,
                      .in_stride = STRIDE,
                      .out_stride = OUT_STRIDE,
                      .eps = 1e-5f};
    OK(f->ops->norm(f->s, &a, &err));
    a.out = out16;
    a.out_dtype = TD_BF16;
    OK(f->ops->norm(f->s, &a, &err));
    a.out = acc;
    a.out_dtype = TD_F32;
    a.accumulate = true;
    a.scale = -0.75f;
    OK(f->ops->norm(f->s, &a, &err));
    fixture_sync(f);
    for (int i = 0; i < R; i++)
        for (int h = 0; h < inner; h++) {
            norm_row(&a, x + index[i] * STRIDE + h * n, want);
            for (int j = 0; j < n; j++) {
                const int64_t at = i * OUT_STRIDE + h * n + j;
                near(out[at], want[j], 1e-6, norm_names[kind], at);
                cr_assert_eq(out16[at], td_f32_to_bf16(out[at]));
                near(acc[at], (double)before[at] - 0.75 * want[j], 2e-6, norm_names[kind], at);
            }
        }
    memcpy(y, x, sizeof(float) * R * STRIDE);
    a = (td_norm_args){.kind = kind,
                       .in = y,
                       .weight = a.weight,
                       .bias = a.bias,
                       .out = y,
                       .n_rows = R,
                       .n_cols = n,
                       .n_inner = inner,
                       .in_stride = STRIDE,
                       .out_stride = STRIDE,
                       .eps = 1e-5f};
    OK(f->ops->norm(f->s, &a, &err));
    fixture_sync(f);
    for (int i = 0; i < R; i++)
        cr_assert_arr_eq(y + index[i] * STRIDE, out + i * OUT_STRIDE,
                         sizeof(float) * (size_t)(n * inner));
    free(x), free(w), free(b), free(out), free(acc), free(before), free(y), free(out16);
}

Test(device_ops, norms_plain_gathered_inner_accumulated_and_in_place) {
    static const int32_t cols[] = {1, 2, 15, 16, 31, 64, 100, 200, 640};
    fixture f = fixture_open(2);
    test_rng r = {2};
    for (size_t c = 0; c < TD_ARRAY_LEN(cols); c++)
        for (td_norm_kind kind = TD_NORM_RMS; kind <= TD_NORM_NONE; kind++) {
            check_norm(&f, &r, kind, cols[c], false, 0);
            if (kind != TD_NORM_NONE)
                check_norm(&f, &r, kind, cols[c], true, 0);
        }
    /* A mean far above the deviation, as in late layers of GPT-2: two passes lose nothing. */
    check_norm(&f, &r, TD_NORM_LAYER, 640, true, 3000);
    fixture_close(&f);
}

Test(device_ops, norm_arguments_are_checked) {
    td_error err = {0};
    fixture f = fixture_open(1);
    float x[4] = {1, 2, 3, 4}, w[4] = {1, 1, 1, 1}, out[4];
    const td_norm_args good = {
        .in = x, .weight = w, .out = out, .n_rows = 1, .n_cols = 4, .n_inner = 1};
    OK(f.ops->norm(f.s, &good, &err));
    td_norm_args a = good;
    a.kind = TD_NORM_NONE;
    cr_assert_eq(f.ops->norm(f.s, &a, &err), TD_E_INTERNAL, "a conversion with a weight");
    a = good, a.weight = NULL;
    cr_assert_eq(f.ops->norm(f.s, &a, &err), TD_E_INTERNAL, "no weight");
    a = good, a.accumulate = true;
    cr_assert_eq(f.ops->norm(f.s, &a, &err), TD_E_INTERNAL, "scale is not set");
    a.scale = 1, a.out_dtype = TD_BF16;
    cr_assert_eq(f.ops->norm(f.s, &a, &err), TD_E_INTERNAL, "bf16 sums");
    fixture_sync(&f);
    fixture_close(&f);
}

Test(device_ops, rope_turns_halves) {
    enum { T = 9, H = 3, D = 20, P = 50, STRIDE = 100 };
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {3};
    for (int32_t rot = 0; rot <= D; rot += 10) {
        float *x = rng_floats(&r, T * STRIDE), *y = malloc(sizeof(float) * T * STRIDE);
        float *cs = rng_floats(&r, P * 10), *sn = rng_floats(&r, P * 10);
        int32_t pos[T];
        for (int i = 0; i < T; i++)
            pos[i] = rng_below(&r, P);
        memcpy(y, x, sizeof(float) * T * STRIDE);
        td_rope_args a = {.x = y,
                          .positions = pos,
                          .cos_table = cs,
                          .sin_table = sn,
                          .n_tokens = T,
                          .n_heads = H,
                          .head_dim = D,
                          .rotary_dim = rot,
                          .stride = STRIDE};
        OK(f.ops->rope(f.s, &a, &err));
        fixture_sync(&f);
        for (int t = 0; t < T; t++)
            for (int i = 0; i < STRIDE; i++) {
                int in_head = i % D, half = rot / 2, at = t * STRIDE + i;
                double want = x[at];
                if (i < H * D && in_head < half)
                    want = (double)x[at] * cs[pos[t] * half + in_head] -
                           (double)x[at + half] * sn[pos[t] * half + in_head];
                else if (i < H * D && in_head < rot)
                    want = (double)x[at] * cs[pos[t] * half + in_head - half] +
                           (double)x[at - half] * sn[pos[t] * half + in_head - half];
                near(y[at], want, 1e-6, "rope", at);
            }
        free(x), free(y), free(cs), free(sn);
    }
    fixture_close(&f);
}

/* --- activations ------------------------------------------------------------------------------ */

/* Relative all the way down the negative side; there the exponent's rounding counts, too. */
static double act_tolerance(td_act act, double g) {
    if (act == TD_ACT_SILU || g > 0)
        return 5e-7;
    return 5e-7 + (act == TD_ACT_GELU ? 1e-7 * g * g : 2e-7 * (fabs(g) + fabs(g * g * g) * 0.05));
}

Test(device_ops, act_over_the_whole_range) {
    enum { T = 40, F = 45 };
    static const char *const names[] = {"silu", "gelu", "gelu_tanh"};
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {4};
    float *x = rng_floats(&r, T * 2 * F), out[T * F];
    uint16_t out16[T * F];
    for (int i = 0; i < T * 2 * F; i++)
        x[i] *= (float)pow(2, i % 14 - 5);
    x[0] = -1e30f, x[1] = 1e30f, x[2] = -88.5f, x[3] = 0, x[4] = -14.5f, x[5] = -1e-30f;
    for (td_act act = TD_ACT_SILU; act <= TD_ACT_GELU_TANH; act++)
        for (int gated = 0; gated < 2; gated++) {
            td_act_args a = {act, gated, x, out, TD_F32, T, F};
            OK(f.ops->act(f.s, &a, &err));
            a.out = out16;
            a.out_dtype = TD_BF16;
            OK(f.ops->act(f.s, &a, &err));
            fixture_sync(&f);
            for (int i = 0; i < T * F; i++) {
                const double g = x[gated ? i / F * 2 * F + i % F : i];
                const double u = gated ? x[i / F * 2 * F + F + i % F] : 1;
                const double want = act_of(act, g) * u;
                cr_assert(fabs(out[i] - want) <= act_tolerance(act, g) * fabs(want) +
                                                     1e-33 * (1 + fabs(g)) * (1 + fabs(u)),
                          "%s(%g) * %g = %g not %g", names[act], g, u, out[i], want);
                cr_assert_eq(out16[i], td_f32_to_bf16(out[i]));
            }
        }
    const float special[] = {NAN, INFINITY};
    for (td_act act = TD_ACT_SILU; act <= TD_ACT_GELU_TANH; act++) {
        td_act_args a = {act, false, special, out, TD_F32, 1, 2};
        OK(f.ops->act(f.s, &a, &err));
        fixture_sync(&f);
        cr_assert(isnan(out[0]) && out[1] == INFINITY, "%s: %g %g", names[act], out[0], out[1]);
    }
    free(x);
    fixture_close(&f);
}

/* --- bits of rows ----------------------------------------------------------------------------- */

/* Runs `op` on rows [n] of x (width elements each), results of `out_width` each. */
typedef void (*row_op)(fixture *f, const float *x, float *out, int32_t n, const float *w);

enum { ROW_C = 75, ROW_MAX = 900 };

static void op_norm(fixture *f, const float *x, float *out, int32_t n, td_norm_kind kind,
                    const float *w, bool accumulate) {
    td_error err = {0};
    td_norm_args a = {.kind = kind,
                      .in = x,
                      .weight = w,
                      .bias = kind == TD_NORM_LAYER ? w + ROW_C : NULL,
                      .out = out,
                      .n_rows = n,
                      .n_cols = ROW_C,
                      .n_inner = 2,
                      .in_stride = 2 * ROW_C,
                      .out_stride = 2 * ROW_C,
                      .eps = 1e-6f,
                      .accumulate = accumulate,
                      .scale = 0.3f};
    OK(f->ops->norm(f->s, &a, &err));
    fixture_sync(f);
}
static void op_rms(fixture *f, const float *x, float *out, int32_t n, const float *w) {
    op_norm(f, x, out, n, TD_NORM_RMS, w, false);
}
static void op_layer(fixture *f, const float *x, float *out, int32_t n, const float *w) {
    op_norm(f, x, out, n, TD_NORM_LAYER, w, false);
}
static void op_layer_accumulate(fixture *f, const float *x, float *out, int32_t n, const float *w) {
    for (int32_t i = 0; i < n * 2 * ROW_C; i++)
        out[i] = 0.1f;
    op_norm(f, x, out, n, TD_NORM_LAYER, w, true);
}
static void op_act(fixture *f, const float *x, float *out, int32_t n, td_act act, bool gated) {
    td_error err = {0};
    td_act_args a = {act, gated, x, out, TD_F32, n, gated ? ROW_C : 2 * ROW_C};
    OK(f->ops->act(f->s, &a, &err));
    fixture_sync(f);
}
static void op_silu(fixture *f, const float *x, float *out, int32_t n, const float *w) {
    (void)w;
    op_act(f, x, out, n, TD_ACT_SILU, true);
}
static void op_gelu(fixture *f, const float *x, float *out, int32_t n, const float *w) {
    (void)w;
    op_act(f, x, out, n, TD_ACT_GELU, false);
}
static void op_gelu_tanh(fixture *f, const float *x, float *out, int32_t n, const float *w) {
    (void)w;
    op_act(f, x, out, n, TD_ACT_GELU_TANH, true);
}

/* A row's bits do not depend on its place, its neighbours (NaN among them), the number of rows or
 * of threads. */
Test(device_ops, rows_keep_their_bits) {
    static const struct {
        const char *name;
        row_op op;
        int32_t out_width;
    } ops[] = {{"RMSNorm", op_rms, 2 * ROW_C},
               {"LayerNorm", op_layer, 2 * ROW_C},
               {"LayerNorm, accumulated", op_layer_accumulate, 2 * ROW_C},
               {"gated silu", op_silu, ROW_C},
               {"gelu", op_gelu, 2 * ROW_C},
               {"gated gelu_tanh", op_gelu_tanh, ROW_C}};
    enum { W = 2 * ROW_C };
    static const int32_t threads[] = {1, 2, 4};
    test_rng r = {66};
    fixture f[3];
    for (int t = 0; t < 3; t++)
        f[t] = fixture_open(threads[t]);
    float *x = rng_floats(&r, ROW_MAX * W), *w = rng_floats(&r, W), *probe = rng_floats(&r, W);
    float *out = malloc(sizeof(float) * ROW_MAX * W), first[W];
    for (size_t o = 0; o < TD_ARRAY_LEN(ops); o++) {
        ops[o].op(&f[0], probe, first, 1, w);
        for (int round = 0; round < 20; round++) {
            const int32_t n = 1 + rng_below(&r, ROW_MAX), at = rng_below(&r, n), t = round % 3;
            if (round > 15)
                memset(x, round % 2 ? 0xff : 0x7f, sizeof(float) * ROW_MAX * W);
            else if (round == 0)
                for (int i = 0; i < ROW_MAX * W; i++)
                    x[i] = rng_normal(&r);
            memcpy(x + at * W, probe, sizeof(float) * W);
            ops[o].op(&f[t], x, out, n, w);
            cr_assert_arr_eq(
                out + at * ops[o].out_width, first, sizeof(float) * (size_t)ops[o].out_width,
                "%s: row %d of %d, %d threads: other bits", ops[o].name, at, n, threads[t]);
        }
    }
    free(x), free(w), free(probe), free(out);
    for (int t = 0; t < 3; t++)
        fixture_close(&f[t]);
}
