/* Mixture of experts against the formula in f64, and the bits of its rows. */
#include "fixture.h"
#include "base/memory.h"

typedef struct experts {
    int32_t e, c, f;
    td_dtype compute;
    float *router, *gate_up, *down; /* [E, C], [E, 2F, C], [E, C, F] */
    td_weight *w_router, **w_gate_up, **w_down;
} experts;

static experts experts_make(fixture *fx, test_rng *r, int32_t e, int32_t c, int32_t f,
                            td_dtype compute) {
    const size_t n_gu = (size_t)2 * f * c, n_d = (size_t)c * f;
    experts x = {.e = e, .c = c, .f = f, .compute = compute};
    x.router = rng_floats(r, (size_t)e * c);
    x.gate_up = rng_floats(r, (size_t)e * n_gu);
    x.down = rng_floats(r, (size_t)e * n_d);
    const float size = 1 / sqrtf((float)c), size_down = 1 / sqrtf((float)f);
    for (size_t i = 0; i < (size_t)e * c; i++)
        x.router[i] *= size;
    for (size_t i = 0; i < (size_t)e * n_gu; i++)
        x.gate_up[i] *= size;
    for (size_t i = 0; i < (size_t)e * n_d; i++)
        x.down[i] *= size_down;
    if (compute == TD_BF16) { /* the reference works with what the device has */
        for (size_t i = 0; i < (size_t)e * c; i++)
            x.router[i] = td_bf16_to_f32(td_f32_to_bf16(x.router[i]));
        for (size_t i = 0; i < (size_t)e * n_gu; i++)
            x.gate_up[i] = td_bf16_to_f32(td_f32_to_bf16(x.gate_up[i]));
        for (size_t i = 0; i < (size_t)e * n_d; i++)
            x.down[i] = td_bf16_to_f32(td_f32_to_bf16(x.down[i]));
    }
    x.w_gate_up = malloc(sizeof(*x.w_gate_up) * (size_t)e);
    x.w_down = malloc(sizeof(*x.w_down) * (size_t)e);
    for (int32_t i = 0; i < e; i++) {
        x.w_gate_up[i] = weight_of(fx, x.gate_up + (size_t)i * n_gu, 2 * f, c, compute);
        x.w_down[i] = weight_of(fx, x.down + (size_t)i * n_d, c, f, compute);
    }
    x.w_router = weight_of(fx, x.router, e, c, compute);
    return x;
}

static void experts_free(fixture *fx, experts *x) {
    fx->ops->weight_destroy(x->w_router);
    for (int32_t i = 0; i < x->e; i++) {
        fx->ops->weight_destroy(x->w_gate_up[i]);
        fx->ops->weight_destroy(x->w_down[i]);
    }
    free(x->w_gate_up), free(x->w_down), free(x->router), free(x->gate_up), free(x->down);
}

static td_moe_args moe_args(const experts *x, const void *in, float *out, void *scratch, int32_t t,
                            int32_t k) {
    return (td_moe_args){.router = x->w_router,
                         .gate_up = (const td_weight *const *)x->w_gate_up,
                         .down = (const td_weight *const *)x->w_down,
                         .act = TD_ACT_SILU,
                         .in = in,
                         .out = out,
                         .scratch = scratch,
                         .n_tokens = t,
                         .n_cols = x->c,
                         .n_ffn = x->f,
                         .n_experts = x->e,
                         .top_k = k,
                         .normalise = true,
                         .scale = 1};
}

/* Fenced, so that a layout past the contract's size is seen; 0xff is NaN to whoever reads it
 * before writing. */
enum { FENCE = 256 };
static void *scratch_make(const experts *x, int32_t t, int32_t k, size_t *n) {
    *n = td_moe_scratch_bytes(t, x->c, x->f, x->e, k, x->compute);
    void *p = aligned_alloc(64, (*n + FENCE + 63) / 64 * 64);
    cr_assert(p);
    memset(p, 0xff, *n);
    memset((char *)p + *n, 0x5a, FENCE);
    return p;
}
static void scratch_check(void *p, size_t n) {
    for (size_t i = 0; i < FENCE; i++)
        cr_assert_eq(((unsigned char *)p)[n + i], 0x5a, "scratch written past its end");
    free(p);
}

/* One row by the formula, `row` as the device sees it. Returns the smallest gap between a chosen
 * and a left router logit: below the rounding of the router product the choice may differ. */
static double moe_row(const td_moe_args *a, const experts *x, const float *row, double *out,
                      int32_t *n_used) {
    const int32_t e = x->e, c = x->c, f = x->f;
    double *p = calloc((size_t)e, sizeof(double)), max = -INFINITY, sum = 0, taken_sum = 0;
    double *h = malloc(sizeof(double) * (size_t)f), gap = INFINITY;
    bool *taken = calloc((size_t)e, sizeof(bool));
    for (int32_t i = 0; i < e; i++) {
        for (int32_t j = 0; j < c; j++)
            p[i] += (double)row[j] * (double)x->router[(size_t)i * c + j];
        max = TD_MAX(max, p[i]);
    }
    for (int32_t k = 0; k < a->top_k; k++) {
        int32_t best = -1;
        for (int32_t i = 0; i < e; i++)
            if (!taken[i] && (best < 0 || p[i] > p[best]))
                best = i;
        taken[best] = true;
    }
    for (int32_t i = 0; i < e; i++)
        for (int32_t j = 0; j < e; j++)
            if (taken[i] && !taken[j])
                gap = TD_MIN(gap, fabs(p[i] - p[j]));
    for (int32_t i = 0; i < e; i++)
        sum += exp(p[i] - max);
    for (int32_t i = 0; i < e; i++) {
        p[i] = exp(p[i] - max) / sum;
        taken_sum += taken[i] ? p[i] : 0;
    }
    for (int32_t j = 0; j < c; j++)
        out[j] = 0;
    for (int32_t i = 0; i < e; i++) {
        if (!taken[i])
            continue;
        n_used[i]++;
        const float *gu = x->gate_up + (size_t)i * 2 * f * c, *d = x->down + (size_t)i * c * f;
        for (int32_t l = 0; l < f; l++) {
            double g = 0, u = 0;
            for (int32_t j = 0; j < c; j++) {
                g += (double)row[j] * (double)gu[(size_t)l * c + j];
                u += (double)row[j] * (double)gu[(size_t)(f + l) * c + j];
            }
            h[l] = act_of(a->act, g) * u;
        }
        for (int32_t j = 0; j < c; j++) {
            double y = 0;
            for (int32_t l = 0; l < f; l++)
                y += h[l] * (double)d[(size_t)j * f + l];
            out[j] += p[i] / (a->normalise ? taken_sum : 1) * y * (double)a->scale;
        }
    }
    free(p), free(h), free(taken);
    return gap;
}

static const struct {
    int32_t t, e, k, c, f;
} shapes[] = {{1, 1, 1, 1, 1},    {5, 1, 1, 37, 20},    {1, 8, 2, 32, 48},
              {3, 40, 1, 24, 17}, {50, 4, 4, 33, 40},   {300, 8, 2, 48, 56},
              {64, 60, 4, 16, 8}, {17, 128, 8, 64, 24}, {40, 3, 2, 600, 530}};

static void check_values(td_dtype compute) {
    td_error err = {0};
    fixture fx = fixture_open(2);
    if (compute == TD_BF16 && !fx.dev->info.has_bf16) {
        fixture_close(&fx);
        cr_skip("SKIPPED: this CPU has no bf16 of its own\n");
    }
    test_rng r = {0x51ed + (uint64_t)compute};
    int n_rows = 0, n_unclear = 0, n_empty = 0;
    for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++) {
        const int32_t t = shapes[i].t, c = shapes[i].c, k = shapes[i].k, e = shapes[i].e;
        experts x = experts_make(&fx, &r, e, c, shapes[i].f, compute);
        float *in = rng_floats(&r, (size_t)t * c), *out = rng_floats(&r, (size_t)t * c);
        float *before = malloc(sizeof(float) * (size_t)t * c);
        double *want = malloc(sizeof(double) * (size_t)c);
        int32_t *n_used = calloc((size_t)e, sizeof(*n_used));
        void *rows = to_compute(in, (size_t)t * c, compute);
        if (compute == TD_BF16)
            for (int32_t j = 0; j < t * c; j++)
                in[j] = td_bf16_to_f32(((uint16_t *)rows)[j]);
        for (int mode = 0; mode < 4; mode++) {
            size_t n_scratch;
            void *scratch = scratch_make(&x, t, k, &n_scratch);
            memcpy(before, out, sizeof(float) * (size_t)t * c);
            td_moe_args a = moe_args(&x, rows, out, scratch, t, k);
            a.act = (td_act[]){TD_ACT_SILU, TD_ACT_GELU_TANH, TD_ACT_GELU, TD_ACT_SILU}[mode];
            a.normalise = mode % 2 == 0;
            a.scale = mode == 3 ? -0.22f : 1;
            OK(fx.ops->moe(fx.s, &a, &err));
            fixture_sync(&fx);
            for (int32_t row = 0; row < t; row++) {
                n_rows++;
                if (moe_row(&a, &x, in + (size_t)row * c, want, n_used) <
                    (compute == TD_BF16 ? 1e-5 : 1e-6)) {
                    n_unclear++;
                    continue;
                }
                const double tol = compute == TD_BF16 ? 2e-2 : 5e-6;
                for (int32_t j = 0; j < c; j++) {
                    const size_t at = (size_t)row * c + (size_t)j;
                    const double w = want[j] + (double)before[at];
                    cr_assert(fabs((double)out[at] - w) <= tol * (1 + fabs(w)),
                              "shape %zu mode %d row %d column %d: %.9g, expected %.9g", i, mode,
                              row, j, (double)out[at], w);
                }
            }
            scratch_check(scratch, n_scratch);
        }
        for (int32_t j = 0; j < e; j++)
            n_empty += n_used[j] == 0;
        free(in), free(out), free(before), free(want), free(rows), free(n_used);
        experts_free(&fx, &x);
    }
    fixture_close(&fx);
    cr_assert_lt(n_unclear * 50, n_rows, "%d of %d rows have no clear choice", n_unclear, n_rows);
    cr_assert_gt(n_empty, 10, "experts without tokens are part of this test");
}

Test(device_moe, values_f32) {
    check_values(TD_F32);
}
Test(device_moe, values_bf16) {
    check_values(TD_BF16);
}

/* Equal router rows give equal probabilities: the lower experts are chosen. */
Test(device_moe, ties_go_to_the_lower_expert) {
    enum { E = 20, C = 16, F = 12, K = 3, T = 9 };
    td_error err = {0};
    fixture fx = fixture_open(2);
    test_rng r = {77};
    experts x = experts_make(&fx, &r, E, C, F, TD_F32);
    /* All experts alike but 5 and 13, which are alike, and first or last by the sign of the row. */
    for (int e = 0; e < E; e++)
        for (int c = 0; c < C; c++)
            x.router[e * C + c] = e == 5 || e == 13 ? 0.5f : 0.25f;
    fx.ops->weight_destroy(x.w_router);
    x.w_router = weight_of(&fx, x.router, E, C, TD_F32);
    float in[T * C], out[T * C] = {0};
    for (int i = 0; i < T * C; i++)
        in[i] = i / C % 2 ? 1.0f : -1.0f;
    size_t n;
    void *scratch = scratch_make(&x, T, K, &n);
    td_moe_args a = moe_args(&x, in, out, scratch, T, K);
    OK(fx.ops->moe(fx.s, &a, &err));
    fixture_sync(&fx);
    for (int t = 0; t < T; t++) {
        /* The same row through a router of which the chosen ones stand out. */
        static const int32_t chosen[2][K] = {{0, 1, 2}, {0, 5, 13}};
        double want[C];
        int32_t n_used[E] = {0};
        experts y = x;
        y.router = malloc(sizeof(float) * E * C);
        memcpy(y.router, x.router, sizeof(float) * E * C);
        for (int e = 0; e < E; e++) {
            bool in_set = false;
            for (int j = 0; j < K; j++)
                in_set |= chosen[t % 2][j] == e;
            /* A hair: it decides the reference's choice and leaves its probabilities. */
            for (int c = 0; c < C && in_set; c++)
                y.router[e * C + c] += t % 2 ? 1e-7f : -1e-7f;
        }
        moe_row(&a, &y, in + t * C, want, n_used);
        for (int j = 0; j < K; j++)
            cr_assert_eq(n_used[chosen[t % 2][j]], 1);
        for (int c = 0; c < C; c++)
            cr_assert_float_eq(out[t * C + c], want[c], 1e-5, "row %d column %d", t, c);
        free(y.router);
    }
    scratch_check(scratch, n);
    experts_free(&fx, &x);
    fixture_close(&fx);
}

/* The probe row alone, and among others: other experts' load, place in its groups, NaN neighbours
 * (which all choose the first experts), number of rows and of threads. */
static void check_rows(td_dtype compute) {
    enum { E = 6, C = 70, F = 90, K = 2, MAX = 700 };
    static const int32_t threads[] = {1, 2, 4};
    td_error err = {0};
    fixture fx[3];
    for (int t = 0; t < 3; t++)
        fx[t] = fixture_open(threads[t]);
    if (compute == TD_F32 || fx[0].dev->info.has_bf16) {
        test_rng r = {4711};
        experts x = experts_make(&fx[0], &r, E, C, F, compute);
        float *noise = rng_floats(&r, MAX * C), *first = malloc(sizeof(float) * 4 * C);
        float *probe = rng_floats(&r, 4 * C), *base = rng_floats(&r, C);
        float *out = malloc(sizeof(float) * MAX * C);
        char *rows = to_compute(noise, MAX * C, compute), *p = to_compute(probe, 4 * C, compute);
        const size_t row_bytes = C * td_dtype_size(compute);
        size_t n;
        void *scratch = scratch_make(&x, MAX, K, &n);
        for (int i = 0; i < 4; i++) {
            memcpy(first + i * C, base, sizeof(float) * C);
            td_moe_args a = moe_args(&x, p + (size_t)i * row_bytes, first + i * C, scratch, 1, K);
            OK(fx[0].ops->moe(fx[0].s, &a, &err));
            fixture_sync(&fx[0]);
        }
        for (int round = 0; round < 40; round++) {
            const int32_t m = round < 3 ? (int32_t[]){1, MAX, 129}[round] : 1 + rng_below(&r, MAX);
            const int32_t at = rng_below(&r, m), t = round % 3, i = round % 4;
            char *saved = malloc(MAX * row_bytes);
            memcpy(saved, rows, MAX * row_bytes);
            if (round % 2)
                memset(rows, round % 8 == 1 ? 0xff : 0x7f, MAX * row_bytes);
            memcpy(rows + (size_t)at * row_bytes, p + (size_t)i * row_bytes, row_bytes);
            memset(out, 0, sizeof(float) * MAX * C);
            memcpy(out + at * C, base, sizeof(float) * C);
            td_moe_args a = moe_args(&x, rows, out, scratch, m, K);
            OK(fx[t].ops->moe(fx[t].s, &a, &err));
            fixture_sync(&fx[t]);
            cr_assert_arr_eq(out + at * C, first + i * C, sizeof(float) * C,
                             "%s: row %d of %d, %d threads: other bits", td_dtype_name(compute), at,
                             m, threads[t]);
            memcpy(rows, saved, MAX * row_bytes);
            free(saved);
        }
        scratch_check(scratch, n);
        free(noise), free(first), free(probe), free(base), free(out), free(rows), free(p);
        experts_free(&fx[0], &x);
    }
    for (int t = 0; t < 3; t++)
        fixture_close(&fx[t]);
}

Test(device_moe, rows_keep_their_bits) {
    check_rows(TD_F32);
    check_rows(TD_BF16);
}

Test(device_moe, arguments_are_checked) {
    enum { E = 3, C = 8, F = 4 };
    td_error err = {0};
    fixture fx = fixture_open(1);
    test_rng r = {3};
    experts x = experts_make(&fx, &r, E, C, F, TD_F32);
    float in[C] = {0}, out[C] = {0};
    size_t n;
    void *scratch = scratch_make(&x, 1, E, &n);
    const td_moe_args good = moe_args(&x, in, out, scratch, 1, E);
    OK(fx.ops->moe(fx.s, &good, &err));
    td_moe_args a = good;
    a.n_tokens = 0;
    OK(fx.ops->moe(fx.s, &a, &err));
    fixture_sync(&fx);
    a = good, a.top_k = E + 1;
    cr_assert_eq(fx.ops->moe(fx.s, &a, &err), TD_E_INTERNAL);
    a = good, a.top_k = 0;
    cr_assert_eq(fx.ops->moe(fx.s, &a, &err), TD_E_INTERNAL);
    a = good, a.scale = 0;
    cr_assert_eq(fx.ops->moe(fx.s, &a, &err), TD_E_INTERNAL);
    a = good, a.n_ffn = F + 1;
    cr_assert_eq(fx.ops->moe(fx.s, &a, &err), TD_E_INTERNAL);
    cr_assert(strstr(err.text, "cpu:0") && strstr(err.text, "expert"), "%s", err.text);
    a = good, a.n_experts = E - 1, a.top_k = 1;
    cr_assert_eq(fx.ops->moe(fx.s, &a, &err), TD_E_INTERNAL);
    cr_assert(strstr(err.text, "router"), "%s", err.text);
    scratch_check(scratch, n);
    experts_free(&fx, &x);
    fixture_close(&fx);
}
