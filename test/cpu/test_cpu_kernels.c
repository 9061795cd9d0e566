/* The kernels of every level that this machine can run: exp, tanh and GELU within their errors, and
 * allocation behaviour of the CPU device. */
#include <inttypes.h>

#include "cpu/cpu.h"
#include "test/device/fixture.h"
#include "base/memory.h"

static const td_cpu_kernels *level_kernels(int i) {
    if (i == 0)
        return &td_cpu_kernels_v1;
    if (i == 1)
        return td_cpu_runs_level(3) ? &td_cpu_kernels_v3 : NULL;
    return td_cpu_runs_level(4) ? &td_cpu_kernels_v4 : NULL;
}

Test(cpu_kernels, exp_is_within_two_ulp) {
    enum { N = 400000 };
    float *x = malloc(sizeof(float) * N), *y = malloc(sizeof(float) * N);
    for (int level = 0; level < 3; level++) {
        const td_cpu_kernels *k = level_kernels(level);
        if (!k)
            continue;
        for (int i = 0; i < N; i++)
            x[i] = -104.0f + 192.7f * (float)i / N;
        k->exp(x, y, N);
        double worst = 0;
        for (int i = 0; i < N; i++) {
            double want = exp((double)x[i]);
            float w = (float)want;
            double ulp = (double)nextafterf(w, INFINITY) - (double)w;
            worst = TD_MAX(worst, fabs(y[i] - want) / ulp);
        }
        cr_assert_leq(worst, 2.0, "level %d: %.3f ulp", k->level, worst);
        const float special[] = {-INFINITY, INFINITY, NAN, 0, -0.0f, 100, -200, 1e30f, -1e30f};
        float got[TD_ARRAY_LEN(special)];
        k->exp(special, got, TD_ARRAY_LEN(special));
        cr_assert(got[0] == 0 && got[1] == INFINITY && isnan(got[2]) && got[3] == 1 && got[4] == 1);
        cr_assert(got[5] == INFINITY && got[6] == 0 && got[7] == INFINITY && got[8] == 0);
    }
    free(x), free(y);
}

Test(cpu_kernels, tanh_is_within_two_ulp) {
    enum { N = 400000 };
    float *x = malloc(sizeof(float) * N), *y = malloc(sizeof(float) * N);
    for (int level = 0; level < 3; level++) {
        const td_cpu_kernels *k = level_kernels(level);
        if (!k)
            continue;
        for (int i = 0; i < N; i++) /* all magnitudes from 1e-9 to 20 */
            x[i] = (i % 2 ? 1 : -1) * 1e-9f * expf(23.7f * (float)i / N);
        k->tanh(x, y, N);
        double worst = 0;
        for (int i = 0; i < N; i++) {
            const double want = tanh((double)x[i]);
            const float w = fabsf((float)want);
            const double ulp = (double)w - (double)nextafterf(w, 0);
            worst = TD_MAX(worst, fabs(y[i] - want) / ulp);
        }
        cr_assert_leq(worst, 2.0, "level %d: %.3f ulp", k->level, worst);
        const float special[] = {-INFINITY, INFINITY, NAN, 0, -0.0f, 100, -1e30f};
        float got[TD_ARRAY_LEN(special)];
        k->tanh(special, got, TD_ARRAY_LEN(special));
        cr_assert(got[0] == -1 && got[1] == 1 && isnan(got[2]) && got[5] == 1 && got[6] == -1);
        cr_assert(got[3] == 0 && !signbit(got[3]) && got[4] == 0 && signbit(got[4]));
    }
    free(x), free(y);
}

/* GELU's two kinds keep their relative precision on the negative side, at every level. */
Test(cpu_kernels, gelu_errors_are_small) {
    enum { N = 200000 };
    float *x = malloc(sizeof(float) * N), *y = malloc(sizeof(float) * N);
    for (int level = 0; level < 3; level++) {
        const td_cpu_kernels *k = level_kernels(level);
        if (!k)
            continue;
        for (int i = 0; i < N; i++)
            x[i] = -9.0f + 18.0f * (float)i / N;
        for (td_act act = TD_ACT_GELU; act <= TD_ACT_GELU_TANH; act++) {
            const td_act_args a = {act, false, x, y, TD_F32, 1, N};
            double worst = 0;
            k->act(&a, 0, 1);
            for (int i = 0; i < N; i++) {
                const double g = x[i], want = act_of(act, g);
                const double ulp = fabs(want) * 0x1p-23 + 1e-37;
                /* Below 0 the exponent's own rounding is multiplied by its size. */
                const double size = g > 0 ? 1 : 1 + g * g / (act == TD_ACT_GELU ? 2 : 1);
                worst = TD_MAX(worst, fabs(y[i] - want) / ulp / size);
            }
            cr_assert_leq(worst, 4.0, "level %d, kind %d: %.3f ulp", k->level, (int)act, worst);
        }
    }
    free(x), free(y);
}

/* An average of equal values is that value, over however many keys: the last rows of a long sequence,
 * at every level. From theory, in units of u = 2^-24 and relative to the value: p v of a tile are 64
 * additions and tiles are joined with an error of 2, the probabilities are 18 and 2, the quotient 1.
 * One running f32 sum of equal terms drifts: 75 times that bound. */
Test(cpu_kernels, attention_over_many_keys_does_not_drift) {
    enum { N = 40000, D = 8, STRIDE = 3 * D, FIRST = N - TD_ATT_QUERIES };
    const double bound = (64 + 2 + 18 + 2 + 1) * 0x1p-24;
    float *qkv = calloc((size_t)N * STRIDE, sizeof(float)),
          *out = calloc((size_t)N * D, sizeof(float));
    float *scratch = malloc(td_cpu_attention_scratch_bytes(D));
    const int32_t offsets[] = {0, N};
    for (int32_t t = 0; t < N; t++) {
        float *q = qkv + (size_t)t * STRIDE, *k = q + D, *v = k + D;
        q[0] = t % 2 ? 1 : 0; /* even rows: all probabilities alike, so only p v is at stake */
        k[0] = t ? -2.3025851f : 0; /* odd rows: one key ten times as likely as each other */
        for (int d = 0; d < D; d++)
            v[d] = 0.1f * (float)(d + 1);
    }
    const td_attention_args a = {.q = qkv,
                                 .k = qkv + D,
                                 .v = qkv + 2 * D,
                                 .stride = STRIDE,
                                 .out = out,
                                 .seq_offsets = offsets,
                                 .seq_offsets_host = offsets,
                                 .n_seqs = 1,
                                 .n_heads = 1,
                                 .n_kv_heads = 1,
                                 .head_dim = D,
                                 .scale = 1};
    for (int level = 0; level < 3; level++) {
        const td_cpu_kernels *k = level_kernels(level);
        if (!k)
            continue;
        double worst = 0;
        k->attention(&a, 0, N, 0, FIRST, scratch);
        for (int32_t t = FIRST; t < N; t++)
            for (int d = 0; d < D; d++) {
                const double v = (double)(0.1f * (float)(d + 1));
                worst = TD_MAX(worst, fabs((double)out[(size_t)t * D + d] - v) / v);
            }
        cr_assert_leq(worst, bound, "level %d: %.3g, allowed %.3g", k->level, worst, bound);
    }
    free(qkv), free(out), free(scratch);
}

/* Equal router logits: the lowest experts win, whatever the number of experts. */
Test(cpu_kernels, route_takes_the_lowest_of_equal_experts) {
    enum { MAX_E = 300, K = 8 };
    for (int level = 0; level < 3; level++) {
        const td_cpu_kernels *k = level_kernels(level);
        if (!k)
            continue;
        for (int32_t n = K; n <= MAX_E; n += 73) {
            float logits[MAX_E], weight[K];
            int32_t expert[K];
            for (int32_t e = 0; e < n; e++)
                logits[e] = 1.25f;
            k->route(logits, n, K, true, expert, weight);
            for (int32_t j = 0; j < K; j++)
                cr_assert(expert[j] == j && weight[j] == 1.0f / K, "level %d, %d experts: %d is %d",
                          k->level, n, j, expert[j]);
            /* The last one alone is better; the last place goes to the lowest of the others. */
            for (int32_t e = 0; e < n; e++)
                logits[e] = e == n - 1 ? 2 : -3;
            k->route(logits, n, 2, true, expert, weight);
            cr_assert(expert[0] == 0 && expert[1] == n - 1, "level %d, %d experts: %d and %d",
                      k->level, n, expert[0], expert[1]);
        }
    }
}

Test(cpu_memory, absurd_sizes_are_refused_by_name) {
    td_error err = {0};
    fixture f = fixture_open(1);
    void *p = NULL;
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX / 2, (size_t)1 << 46};
    for (size_t i = 0; i < TD_ARRAY_LEN(sizes); i++) {
        char digits[32];
        cr_assert_eq(f.ops->alloc(f.dev, sizes[i], &p, &err), TD_E_DEVICE_OOM);
        snprintf(digits, sizeof(digits), "%zu bytes", sizes[i]);
        cr_assert(strstr(err.text, "cpu:0") && strstr(err.text, digits), "%s", err.text);
        cr_assert_null(p);
    }
    const uint64_t held = td_cpu_mem_held();
    OK(f.ops->alloc(f.dev, 0, &p, &err));
    cr_assert_eq((uintptr_t)p % 64, 0);
    f.ops->free(f.dev, p);
    OK(f.ops->alloc(f.dev, 12345678, &p, &err));
    cr_assert_eq((uintptr_t)p % 64, 0);
    cr_assert_geq(td_cpu_mem_held(), held + 12345678);
    f.ops->free(f.dev, p);
    cr_assert_eq(td_cpu_mem_held(), held);
    fixture_close(&f);
}

Test(cpu_memory, debug_fill_and_injected_failure) {
    td_error err = {0};
    setenv("TDGEN_DEBUG_ALLOC", "1", 1);
    fixture f = fixture_open(1);
    void *p;
    OK(f.ops->alloc(f.dev, 1000, &p, &err));
    for (int i = 0; i < 250; i++)
        cr_assert(isnan(((float *)p)[i]));
    f.ops->free(f.dev, p);
    td_cpu_mem_fail_at(2);
    OK(f.ops->alloc(f.dev, 10, &p, &err));
    void *q = NULL;
    cr_assert_eq(f.ops->alloc(f.dev, 10, &q, &err), TD_E_DEVICE_OOM);
    OK(f.ops->alloc(f.dev, 10, &q, &err));
    f.ops->free(f.dev, p);
    f.ops->free(f.dev, q);
    fixture_close(&f);
}

/* Every allocation of weight_prepare may fail: the error comes back and nothing is leaked. */
Test(cpu_memory, weight_prepare_gives_back_what_it_took) {
    td_error err = {0};
    fixture f = fixture_open(1);
    static float w[100 * 30];
    td_host_matrix part = {w, TD_F32, 100, 30};
    const uint64_t held = td_cpu_mem_held();
    int n_failed = 0;
    for (int at = 1;; at++) {
        td_weight *weight = NULL;
        td_cpu_mem_fail_at(at);
        td_status st = f.ops->weight_prepare(f.dev, &part, 1, TD_F32, &weight, &err);
        td_cpu_mem_fail_at(0);
        if (!st) {
            f.ops->weight_destroy(weight);
            break;
        }
        n_failed++;
        cr_assert_eq(st, TD_E_DEVICE_OOM);
        cr_assert(strstr(err.text, "cpu:0"), "%s", err.text);
        cr_assert_eq(td_cpu_mem_held(), held);
    }
    cr_assert_geq(n_failed, 2);
    cr_assert_eq(td_cpu_mem_held(), held);
    fixture_close(&f);
}

Test(cpu_memory, info_is_plausible) {
    uint64_t total, available;
    td_cpu_memory_info(&total, &available);
    cr_assert_gt(total, (uint64_t)64 << 20);
    cr_assert_gt(available, 0);
    cr_assert_leq(available, total);
}

/* A device at a share of its speed: the rest that its work earns, and the same bits. */
Test(cpu_throttle, rest_is_what_run_and_rest_make_of_the_share) {
    cr_expect_eq(td_cpu_rest_ns(1000, 0.25), 3000);
    cr_expect_eq(td_cpu_rest_ns(1000, 0.5), 1000);
    cr_expect_eq(td_cpu_rest_ns(0, 0.5), 0);
    cr_expect_eq(td_cpu_rest_ns(1000, 1), 0);
    cr_expect_eq(td_cpu_rest_ns(1000, 0), 0, "not set is full speed");
    cr_expect_eq(td_cpu_rest_ns(1000, -1), 0);
    cr_expect_eq(td_cpu_rest_ns(3600000000000, 0.001), 3596400000000000);
}

Test(cpu_throttle, each_operation_earns_its_rest_and_results_are_the_same) {
    enum { R = 64, C = 512, OPS = 40 };
    td_error err = {0};
    test_rng r = {9};
    float *in = rng_floats(&r, (size_t)R * C), *w = rng_floats(&r, C);
    float *want = malloc(sizeof(float) * R * C), *got = malloc(sizeof(float) * R * C);
    const double shares[] = {1, 0.5, 0.25};
    for (int32_t n_threads = 1; n_threads <= 2; n_threads++)
        for (size_t i = 0; i < TD_ARRAY_LEN(shares); i++) {
            fixture f = fixture_open_at(n_threads, shares[i]);
            td_norm_args a = {.kind = TD_NORM_RMS,
                              .in = in,
                              .weight = w,
                              .out = i ? got : want,
                              .out_dtype = TD_F32,
                              .n_rows = R,
                              .n_cols = C,
                              .n_inner = 1,
                              .in_stride = C,
                              .out_stride = C,
                              .eps = 1e-6f};
            for (int k = 0; k < OPS; k++)
                OK(f.ops->norm(f.s, &a, &err));
            fixture_sync(&f);
            double busy_s = f.ops->stream_busy_s(f.s), rest_s = td_cpu_stream_rest_s(f.s);
            double full = busy_s * (1 / shares[i] - 1);
            cr_expect_gt(busy_s, 0);
            /* Work is told in whole nanoseconds; of one thread it is time on the core, which is
             * never more than the time that passed (and a clock call). */
            if (n_threads > 1)
                cr_expect_float_eq(rest_s, full, OPS * 1e-6, "share %g: %g of %g s", shares[i],
                                   rest_s, full);
            else
                cr_expect(rest_s <= full + OPS * 1e-5 && (rest_s > 0) == (shares[i] < 1),
                          "share %g: %g of %g s", shares[i], rest_s, full);
            if (i)
                cr_expect_eq(memcmp(got, want, sizeof(float) * R * C), 0, "share %g", shares[i]);
            fixture_close(&f);
        }
    free(in);
    free(w);
    free(want);
    free(got);
}

/* Many minutes of rest are owed; nobody waits for them. */
Test(cpu_throttle, a_stream_that_is_destroyed_does_not_finish_its_rest, .timeout = 60) {
    enum { N = 16 << 20 };
    td_error err = {0};
    fixture f = fixture_open_at(1, 1e-5);
    char *a = calloc(1, N), *b = malloc(N);
    OK(f.ops->copy_in(f.s, b, a, N, &err));
    OK(f.ops->event_record(f.done, f.s, &err));
    /* The rest holds up what is behind it: like a slow device, not like an idle one. */
    cr_expect_eq(f.ops->event_sync(f.done, 0.05, &err), TD_E_DEVICE);
    f.ops->stream_destroy(f.s);
    OK(f.ops->event_sync(f.done, 0, &err));
    f.ops->event_destroy(f.done);
    td_device_close(f.dev);
    free(a);
    free(b);
}
