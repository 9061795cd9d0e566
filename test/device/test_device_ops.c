/* The remaining operations against plain f64 formulas, and the row property of attention. */
#include "fixture.h"

static void near(double got, double want, double tol, const char *what, int64_t at) {
    cr_assert(fabs(got - want) <= tol * (1 + fabs(want)), "%s [%lld]: %.9g, expected %.9g", what,
              (long long)at, got, want);
}

Test(device_ops, embed_reads_every_type) {
    enum { V = 10, C = 37, T = 5 };
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {1};
    float *table = rng_floats(&r, V * C), out[T * C];
    uint16_t half[V * C];
    const int32_t ids[T] = {9, 0, 3, 3, 7};
    for (td_dtype t = TD_F32; t <= TD_F16; t++) {
        for (int i = 0; i < V * C; i++)
            half[i] = t == TD_BF16 ? td_f32_to_bf16(table[i]) : td_f32_to_f16(table[i]);
        td_embed_args a = {ids, t == TD_F32 ? (void *)table : half, t, out, T, C, 1, false};
        MUST(f.ops->embed(f.s, &a, &err));
        fixture_sync(&f);
        for (int i = 0; i < T * C; i++) {
            int at = ids[i / C] * C + i % C;
            cr_assert_eq(out[i], t == TD_F32    ? table[at]
                                 : t == TD_BF16 ? td_bf16_to_f32(half[at])
                                                : td_f16_to_f32(half[at]));
        }
    }
    free(table);
    fixture_close(&f);
}

Test(device_ops, rmsnorm_plain_gathered_inner_and_in_place) {
    enum { R = 7, STRIDE = 200 };
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {2};
    static const int32_t cols[] = {1, 16, 31, 64, 100};
    for (size_t c = 0; c < TD_ARRAY_LEN(cols); c++) {
        const int32_t n = cols[c], inner = n <= 64 ? 3 : 1;
        float *x = rng_floats(&r, R * STRIDE), *w = rng_floats(&r, (size_t)n), out[R * 300];
        uint16_t out16[R * 300];
        int32_t index[R] = {6, 0, 0, 3, 2, 5, 1};
        td_norm_args a = {.in = x,
                          .row_index = index,
                          .weight = w,
                          .out = out,
                          .n_rows = R,
                          .n_cols = n,
                          .n_inner = inner,
                          .in_stride = STRIDE,
                          .out_stride = 300,
                          .eps = 1e-5f};
        MUST(f.ops->norm(f.s, &a, &err));
        a.out = out16;
        a.out_dtype = TD_BF16;
        MUST(f.ops->norm(f.s, &a, &err));
        fixture_sync(&f);
        for (int i = 0; i < R; i++)
            for (int h = 0; h < inner; h++) {
                const float *row = x + index[i] * STRIDE + h * n;
                double s = 0;
                for (int j = 0; j < n; j++)
                    s += (double)row[j] * row[j];
                for (int j = 0; j < n; j++) {
                    int64_t at = i * 300 + h * n + j;
                    near(out[at], row[j] / sqrt(s / n + 1e-5) * w[j], 1e-6, "rmsnorm", at);
                    cr_assert_eq(out16[at], td_f32_to_bf16(out[at]));
                }
            }
        float *y = malloc(sizeof(float) * R * STRIDE);
        memcpy(y, x, sizeof(float) * R * STRIDE);
        a = (td_norm_args){.in = y,
                           .weight = w,
                           .out = y,
                           .n_rows = R,
                           .n_cols = n,
                           .n_inner = inner,
                           .in_stride = STRIDE,
                           .out_stride = STRIDE,
                           .eps = 1e-5f};
        MUST(f.ops->norm(f.s, &a, &err));
        fixture_sync(&f);
        for (int i = 0; i < R; i++)
            cr_assert_arr_eq(y + index[i] * STRIDE, out + i * 300,
                             sizeof(float) * (size_t)(n * inner));
        free(x), free(w), free(y);
    }
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
        td_rope_args a = {y, pos, cs, sn, T, H, D, rot, STRIDE};
        MUST(f.ops->rope(f.s, &a, &err));
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

Test(device_ops, gated_act_over_the_whole_range) {
    enum { T = 40, F = 45 };
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {4};
    float *x = rng_floats(&r, T * 2 * F), out[T * F];
    uint16_t out16[T * F];
    for (int i = 0; i < T * 2 * F; i++)
        x[i] *= (float)pow(2, i % 9);
    x[0] = -1e30f, x[1] = 1e30f, x[2] = -88.5f, x[3] = 0;
    td_act_args a = {TD_ACT_SILU, true, x, out, TD_F32, T, F};
    MUST(f.ops->act(f.s, &a, &err));
    a.out = out16;
    a.out_dtype = TD_BF16;
    MUST(f.ops->act(f.s, &a, &err));
    fixture_sync(&f);
    for (int i = 0; i < T * F; i++) {
        double g = x[i / F * 2 * F + i % F], u = x[i / F * 2 * F + F + i % F];
        double want = g / (1 + exp(-g)) * u;
        cr_assert(fabs(out[i] - want) <= 5e-7 * fabs(want) + 1e-33, "silu(%g) * %g = %g not %g", g,
                  u, out[i], want);
        cr_assert_eq(out16[i], td_f32_to_bf16(out[i]));
    }
    free(x);
    fixture_close(&f);
}

/* --- attention -------------------------------------------------------------------------------- */

/* One row by the formula; keys j in (i - window, i]. */
static void attention_row(const td_attention_args *a, int32_t start, int32_t i, int32_t h,
                          double *out) {
    const int32_t d = a->head_dim, kv = h / (a->n_heads / a->n_kv_heads);
    const int32_t lo = a->window && i >= a->window ? i - a->window + 1 : 0;
    double m = -INFINITY, sum = 0, *p = malloc(sizeof(double) * (size_t)(i + 1));
    for (int32_t j = lo; j <= i; j++) {
        p[j] = 0;
        for (int32_t c = 0; c < d; c++)
            p[j] += (double)a->q[(start + i) * a->stride + h * d + c] *
                    a->k[(start + j) * a->stride + kv * d + c];
        p[j] *= (double)a->scale;
        m = TD_MAX(m, p[j]);
    }
    memset(out, 0, sizeof(double) * (size_t)d);
    for (int32_t j = lo; j <= i; j++) {
        double e = exp(p[j] - m);
        sum += e;
        for (int32_t c = 0; c < d; c++)
            out[c] += e * a->v[(start + j) * a->stride + kv * d + c];
    }
    for (int32_t c = 0; c < d; c++)
        out[c] /= sum;
    free(p);
}

static const int32_t seq_lens[] = {1, 2, 31, 32, 33, 64, 65, 100, 300};

Test(device_ops, attention_follows_the_formula) {
    static const struct {
        int32_t h, hkv, d, window;
    } cases[] = {{1, 1, 8, 0},   {4, 2, 16, 0}, {4, 1, 64, 0},  {2, 2, 5, 0},  {3, 3, 128, 0},
                 {4, 2, 16, 40}, {2, 1, 32, 1}, {2, 1, 32, 64}, {2, 1, 12, 97}};
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {6};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++) {
        const int32_t h = cases[c].h, hkv = cases[c].hkv, d = cases[c].d;
        const int32_t n_seqs = (int32_t)TD_ARRAY_LEN(seq_lens), stride = (h + 2 * hkv) * d + 3;
        int32_t offsets[16] = {0}, total;
        for (int32_t i = 0; i < n_seqs; i++)
            offsets[i + 1] = offsets[i] + seq_lens[i];
        total = offsets[n_seqs];
        float *qkv = rng_floats(&r, (size_t)total * stride);
        float *out = malloc(sizeof(float) * (size_t)(total * h * d));
        uint16_t *out16 = malloc(sizeof(uint16_t) * (size_t)(total * h * d));
        double *want = malloc(sizeof(double) * (size_t)d);
        td_attention_args a = {qkv,
                               qkv + h * d,
                               qkv + (h + hkv) * d,
                               stride,
                               out,
                               TD_F32,
                               offsets,
                               offsets,
                               n_seqs,
                               h,
                               hkv,
                               d,
                               cases[c].window,
                               2.0f / sqrtf((float)d),
                               0};
        MUST(f.ops->attention(f.s, &a, &err));
        a.out = out16;
        a.out_dtype = TD_BF16;
        MUST(f.ops->attention(f.s, &a, &err));
        fixture_sync(&f);
        for (int32_t s = 0; s < n_seqs; s++)
            for (int32_t i = 0; i < seq_lens[s]; i++)
                for (int32_t head = 0; head < h; head++) {
                    attention_row(&a, offsets[s], i, head, want);
                    for (int32_t j = 0; j < d; j++) {
                        int64_t at = ((int64_t)(offsets[s] + i) * h + head) * d + j;
                        near(out[at], want[j], 3e-6, "attention", at);
                        cr_assert_eq(out16[at], td_f32_to_bf16(out[at]));
                    }
                }
        free(qkv), free(out), free(out16), free(want);
    }
    fixture_close(&f);
}

/* A row's bits depend on its own sequence up to itself: not on what comes after it (NaN and
 * infinities there), on other sequences, or on threads. */
Test(device_ops, attention_rows_keep_their_bits) {
    enum { H = 4, HKV = 2, D = 24, STRIDE = (H + 2 * HKV) * D, LEN = 230, MAX = 1200 };
    static const int32_t threads[] = {1, 2, 4};
    td_error err = {0};
    test_rng r = {8};
    fixture f[3];
    for (int t = 0; t < 3; t++)
        f[t] = fixture_open(threads[t]);
    float *seq = rng_floats(&r, LEN * STRIDE), *first = malloc(sizeof(float) * LEN * H * D);
    float *x = malloc(sizeof(float) * MAX * STRIDE), *out = malloc(sizeof(float) * MAX * H * D);
    for (int32_t window = 0; window <= 70; window += 35) {
        int32_t offsets[8] = {0, LEN};
        td_attention_args a = {seq,     seq + H * D, seq + (H + HKV) * D,
                               STRIDE,  first,       TD_F32,
                               offsets, offsets,     1,
                               H,       HKV,         D,
                               window,  0.25f,       0};
        MUST(f[0].ops->attention(f[0].s, &a, &err));
        fixture_sync(&f[0]);
        for (int round = 0; round < 25; round++) {
            /* [hostile] [a prefix of seq, perhaps with hostile tokens after it] [hostile] */
            const int32_t before = rng_below(&r, 300), keep = 1 + rng_below(&r, LEN);
            const int32_t after = rng_below(&r, 100), last = rng_below(&r, 200), t = round % 3;
            const int32_t total = before + keep + after + last;
            memset(x, round % 2 ? 0xff : 0x7f, sizeof(float) * MAX * STRIDE);
            if (round % 5 == 0)
                for (int i = 0; i < MAX * STRIDE; i++)
                    x[i] = i % 2 ? INFINITY : -INFINITY;
            memcpy(x + before * STRIDE, seq, sizeof(float) * (size_t)(keep * STRIDE));
            int32_t n = 0, o[8];
            o[n++] = 0;
            if (before)
                o[n++] = before;
            o[n++] = before + keep + after;
            if (last)
                o[n++] = total;
            a = (td_attention_args){x,      x + H * D, x + (H + HKV) * D,
                                    STRIDE, out,       TD_F32,
                                    o,      o,         n - 1,
                                    H,      HKV,       D,
                                    window, 0.25f,     0};
            MUST(f[t].ops->attention(f[t].s, &a, &err));
            fixture_sync(&f[t]);
            cr_assert_arr_eq(out + before * H * D, first, sizeof(float) * (size_t)(keep * H * D),
                             "window %d: %d rows at %d, %d after, %d threads", window, keep, before,
                             after, threads[t]);
        }
    }
    free(seq), free(first), free(x), free(out);
    for (int t = 0; t < 3; t++)
        fixture_close(&f[t]);
}
