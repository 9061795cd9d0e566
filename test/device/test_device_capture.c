/* Capture against a naive f64 reading of the definitions in td_capture_args. */
#include <stdarg.h>

#include "capture_check.h"
#include "fixture.h"
#include "base/memory.h"

static const finish plain = {0, 1, 0};

/* Runs capture over rows [n_rows, v] and returns freshly allocated outputs. */
static outputs run_capture(fixture *f, const float *logits, const int32_t *targets, int32_t n_rows,
                           int32_t v, int32_t k, const float *temps, int32_t n_temps, finish how) {
    td_error err = {0};
    const size_t n = (size_t)n_rows, nk = n * (size_t)k + 1, nt = n * (size_t)n_temps + 1;
    outputs o = {malloc(nk * 4), malloc(n * 4), malloc(nk * 4), malloc(n * 4),
                 malloc(nt * 4), malloc(n * 4), malloc(n * 4),  malloc(n * 4)};
    td_capture_args a = capture_args(&o, n_rows, v, k, temps, n_temps, how);
    a.logits = logits;
    a.targets = targets;
    OK(f->ops->capture(f->s, &a, &err));
    fixture_sync(f);
    return o;
}

static void outputs_free(outputs *o) {
    free(o->ids), free(o->rank), free(o->lps), free(o->lse);
    free(o->lse_t), free(o->tail), free(o->target_lp), free(o->entropy);
}

static void fail(const char *fmt, ...) {
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    cr_assert_fail("%s", text);
}

static const capture_rules rules = {.fail = fail, .tail_rel = 3e-7};

static void check_all(fixture *f, const float *logits, const int32_t *targets, int32_t n_rows,
                      int32_t v, int32_t k, const float *temps, int32_t n_temps) {
    outputs o = run_capture(f, logits, targets, n_rows, v, k, temps, n_temps, plain);
    for (int32_t r = 0; r < n_rows; r++)
        capture_check_row(&rules, &o, logits + (size_t)r * v, targets[r], r, v, k, temps, n_temps);
    outputs_free(&o);
}

Test(device_capture, random_rows) {
    static const struct {
        int32_t v, k;
    } cases[] = {{1, 1},    {1, 4},      {5, 3},       {16, 16},      {17, 1},
                 {100, 0},  {1000, 64},  {999, 999},   {300, 400},    {32000, 1024},
                 {512, 20}, {50257, 50}, {151936, 64}, {262144, 1024}};
    static const float temps[] = {1, 2, 0.5f, 4, 0.7f};
    fixture f = fixture_open(2);
    test_rng r = {31337};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++) {
        const int32_t v = cases[c].v, n_rows = v > 20000 ? 2 : 9;
        float *z = rng_floats(&r, (size_t)v * n_rows);
        int32_t targets[9];
        for (int32_t i = 0; i < n_rows; i++) {
            targets[i] = i == 3 ? -1 : rng_below(&r, v);
            for (int32_t j = 0; j < v; j++)
                z[(size_t)i * v + j] =
                    z[(size_t)i * v + j] * (float)(i + 1) - 20.0f * (float)(i % 3);
        }
        check_all(&f, z, targets, n_rows, v, cases[c].k, temps, 5);
        free(z);
    }
    fixture_close(&f);
}

Test(device_capture, ties_order_and_infinities) {
    fixture f = fixture_open(1);
    test_rng r = {77};
    float *z = rng_floats(&r, TIES_V * TIES_ROWS);
    const int32_t *targets = capture_ties_targets;
    const float temps[] = {1, 3};
    capture_ties(z, &r.s);
    check_all(&f, z, targets, TIES_ROWS, TIES_V, TIES_K, temps, 2);
    check_all(&f, z, targets, TIES_ROWS, TIES_V, 1, temps, 1);
    check_all(&f, z, targets, TIES_ROWS, TIES_V, TIES_V, temps, 0);
    free(z);
    fixture_close(&f);
}

Test(device_capture, bad_rows_are_marked_and_alone) {
    enum { V = 1234, K = 10, ROWS = 6 };
    fixture f = fixture_open(2);
    test_rng r = {5};
    float *z = rng_floats(&r, V * ROWS);
    int32_t targets[ROWS] = {0, 1, 2, 3, 4, 5};
    const float temps[] = {2};
    z[1 * V + 1233] = NAN;
    z[3 * V + 7] = INFINITY;
    for (int i = 0; i < V; i++)
        z[4 * V + i] = -INFINITY;
    outputs o = run_capture(&f, z, targets, ROWS, V, K, temps, 1, plain);
    for (int row = 0; row < ROWS; row++) {
        if (row != 1 && row != 3 && row != 4) {
            capture_check_row(&rules, &o, z + row * V, targets[row], row, V, K, temps, 1);
            continue;
        }
        cr_assert(isnan(o.lse[row]));
        cr_assert(o.tail[row] == 0 && o.entropy[row] == 0 && o.target_lp[row] == 0 &&
                  o.rank[row] == 0 && o.lse_t[row] == 0);
        for (int i = 0; i < K; i++)
            cr_assert(o.ids[row * K + i] == 0 && o.lps[row * K + i] == 0);
    }
    outputs_free(&o);
    free(z);
    fixture_close(&f);
}

/* A tail far below f32's resolution of 1 is still there. */
Test(device_capture, tail_is_summed_from_its_terms) {
    enum { V = 100 };
    fixture f = fixture_open(1);
    float z[V];
    int32_t target = 0;
    for (int i = 0; i < V; i++)
        z[i] = i ? -30.0f : 10.0f;
    outputs o = run_capture(&f, z, &target, 1, V, 1, NULL, 0, plain);
    cr_assert_float_eq(o.tail[0] / (99 * exp(-40.0)), 1, 1e-6);
    outputs_free(&o);
    fixture_close(&f);
}

/* --- finished logits -------------------------------------------------------------------------- */

Test(device_capture, finished_logits) {
    enum { ROWS = 6 };
    static const struct {
        int32_t v, k;
        finish how;
    } cases[] = {{1000, 20, {0, 8, 0}},      {1000, 20, {0, 1, 30}},     {1537, 33, {1536, 1, 0}},
                 {1537, 33, {1500, 16, 30}}, {513, 600, {511, 1, 5}},    {700, 0, {3, 0.5f, 30}},
                 {33, 4, {1, 1, 0}},         {40000, 64, {39990, 1, 30}}};
    static const float temps[] = {2, 0.5f};
    fixture f = fixture_open(2);
    test_rng r = {808};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++) {
        const int32_t v = cases[c].v, k = cases[c].k, n_valid = cases[c].how.n_valid;
        const int32_t n = n_valid ? n_valid : v;
        float *x = rng_floats(&r, (size_t)ROWS * v);
        double *z = malloc(sizeof(double) * (size_t)ROWS * v);
        int32_t targets[ROWS];
        for (int32_t i = 0; i < ROWS; i++) {
            targets[i] = i == 0 ? v - 1 : rng_below(&r, n);
            for (int32_t j = 0; j < v; j++) {
                x[i * v + j] *= (float)(1 << i); /* up to a deviation of 32: the cap is met */
                if (j >= n)
                    x[i * v + j] = i == 1 ? NAN : i == 2 ? INFINITY : 1000.0f;
            }
        }
        capture_finish(x, z, ROWS, v, cases[c].how);
        outputs o = run_capture(&f, x, targets, ROWS, v, k, temps, 2, cases[c].how);
        for (int32_t row = 0; row < ROWS; row++)
            capture_check_finished(&rules, &o, z + (size_t)row * v, targets[row], row, v, n, k,
                                   temps);
        outputs_free(&o);
        free(x), free(z);
    }
    fixture_close(&f);
}

/* A mask gives the bits of the smaller vocabulary: nothing behind it is looked at. */
Test(device_capture, mask_is_a_smaller_vocabulary) {
    enum { V = 2000, N = 1803, K = 40, ROWS = 5 };
    static const float temps[] = {3};
    fixture f = fixture_open(2);
    test_rng r = {909};
    float *x = rng_floats(&r, V * ROWS), *small = malloc(sizeof(float) * N * ROWS);
    const int32_t targets[ROWS] = {0, 5, N - 1, N, V - 1}, inside[ROWS] = {0, 5, N - 1, -1, -1};
    for (int i = 0; i < V * ROWS; i++)
        if (i % V >= N)
            x[i] = i % 3 ? INFINITY : NAN;
    for (int i = 0; i < ROWS; i++)
        memcpy(small + i * N, x + i * V, sizeof(float) * N);
    outputs a = run_capture(&f, x, targets, ROWS, V, K, temps, 1, (finish){N, 1, 0});
    outputs b = run_capture(&f, small, inside, ROWS, N, K, temps, 1, plain);
    cr_assert_arr_eq(a.ids, b.ids, sizeof(int32_t) * ROWS * K);
    cr_assert_arr_eq(a.lps, b.lps, sizeof(float) * ROWS * K);
    cr_assert_arr_eq(a.lse, b.lse, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.lse_t, b.lse_t, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.tail, b.tail, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.entropy, b.entropy, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.target_lp, b.target_lp, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.rank, b.rank, sizeof(int32_t) * ROWS);
    for (int i = 0; i < ROWS; i++)
        capture_check_row(&rules, &b, small + i * N, inside[i], i, N, K, temps, 1);
    outputs_free(&a), outputs_free(&b);
    free(x), free(small);
    fixture_close(&f);
}

/* A soft cap does not hide an infinite logit. */
Test(device_capture, bad_logits_stay_bad_under_a_cap) {
    enum { V = 600, ROWS = 3 };
    fixture f = fixture_open(1);
    test_rng r = {11};
    float *x = rng_floats(&r, V * ROWS);
    const int32_t targets[ROWS] = {1, 2, 3};
    x[7] = INFINITY;
    x[V + 599] = NAN;
    outputs o = run_capture(&f, x, targets, ROWS, V, 4, NULL, 0, (finish){0, 2, 30});
    cr_assert(isnan(o.lse[0]) && isnan(o.lse[1]) && isfinite(o.lse[2]));
    outputs_free(&o);
    free(x);
    fixture_close(&f);
}

/* A row's record does not depend on its place, its neighbours, the number of rows or of threads. */
Test(device_capture, rows_keep_their_bits) {
    enum { V = 3333, K = 17, MAX = 120 };
    static const int32_t threads[] = {1, 2, 4};
    static const float temps[] = {2, 0.5f};
    static const finish how[] = {{0, 1, 0}, {3000, 1, 0}, {0, 4, 0}, {3001, 2, 20}};
    fixture f[3];
    test_rng r = {12};
    for (int t = 0; t < 3; t++)
        f[t] = fixture_open(threads[t]);
    float *x = rng_floats(&r, V * MAX), *probe = rng_floats(&r, V);
    int32_t targets[MAX];
    for (int i = 0; i < V * MAX; i++)
        x[i] *= 9;
    for (size_t h = 0; h < TD_ARRAY_LEN(how); h++) {
        const int32_t target = 77;
        outputs one = run_capture(&f[0], probe, &target, 1, V, K, temps, 2, how[h]);
        for (int round = 0; round < 12; round++) {
            const int32_t n = 1 + rng_below(&r, MAX), at = rng_below(&r, n), t = round % 3;
            for (int i = 0; i < n; i++)
                targets[i] = rng_below(&r, V);
            targets[at] = target;
            if (round == 8)
                memset(x, 0xff, sizeof(float) * V * MAX);
            else if (round == 0)
                for (int i = 0; i < V * MAX; i++)
                    x[i] = 9 * rng_normal(&r);
            memcpy(x + at * V, probe, sizeof(float) * V);
            outputs o = run_capture(&f[t], x, targets, n, V, K, temps, 2, how[h]);
            cr_assert_arr_eq(o.ids + at * K, one.ids, sizeof(int32_t) * K);
            cr_assert_arr_eq(o.lps + at * K, one.lps, sizeof(float) * K);
            cr_assert_arr_eq(o.lse_t + at * 2, one.lse_t, sizeof(float) * 2);
            cr_assert(o.lse[at] == one.lse[0] && o.tail[at] == one.tail[0] &&
                      o.entropy[at] == one.entropy[0] && o.target_lp[at] == one.target_lp[0] &&
                      o.rank[at] == one.rank[0]);
            outputs_free(&o);
        }
        outputs_free(&one);
    }
    free(x), free(probe);
    for (int t = 0; t < 3; t++)
        fixture_close(&f[t]);
}

Test(device_capture, arguments_are_checked) {
    fixture f = fixture_open(1);
    td_error err = {0};
    float t = 0;
    td_capture_args a = {.n_rows = 1,
                         .n_vocab = 4,
                         .n_valid = 4,
                         .divisor = 1,
                         .n_temperatures = 1,
                         .temperatures = &t};
    cr_assert_eq(f.ops->capture(f.s, &a, &err), TD_E_INTERNAL);
    cr_assert(strstr(err.text, "temperature"), "%s", err.text);
    a.n_temperatures = 17;
    cr_assert_eq(f.ops->capture(f.s, &a, &err), TD_E_INTERNAL);
    for (int i = 0; i < 4; i++) {
        a = (td_capture_args){.n_rows = 1, .n_vocab = 4, .n_valid = 4, .divisor = 1};
        a.n_valid = i == 0 ? 0 : i == 1 ? 5 : 4;
        a.divisor = i == 2 ? 0 : 1;
        a.softcap = i == 3 ? -1 : 0;
        cr_assert_eq(f.ops->capture(f.s, &a, &err), TD_E_INTERNAL, "case %d", i);
    }
    fixture_close(&f);
}
