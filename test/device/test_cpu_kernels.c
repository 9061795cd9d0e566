/* The kernels of every level that this machine can run: exp, tanh and GELU within their errors, and
 * allocation behaviour of the CPU device. */
#include <inttypes.h>

#include "cpu/cpu.h"
#include "fixture.h"

static const td_cpu_kernels *level_kernels(int i) {
    if (i == 0)
        return &td_cpu_kernels_v1;
    if (i == 1)
        return __builtin_cpu_supports("x86-64-v3") ? &td_cpu_kernels_v3 : NULL;
    return __builtin_cpu_supports("x86-64-v4") ? &td_cpu_kernels_v4 : NULL;
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
                const double g = x[i], c = sqrt(2 / 3.14159265358979323846);
                const double want = act == TD_ACT_GELU
                                        ? g * erfc(-g / sqrt(2.0)) / 2
                                        : g / (1 + exp(-2 * c * (g + 0.044715 * g * g * g)));
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
    MUST(f.ops->alloc(f.dev, 0, &p, &err));
    cr_assert_eq((uintptr_t)p % 64, 0);
    f.ops->free(f.dev, p);
    MUST(f.ops->alloc(f.dev, 12345678, &p, &err));
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
    MUST(f.ops->alloc(f.dev, 1000, &p, &err));
    for (int i = 0; i < 250; i++)
        cr_assert(isnan(((float *)p)[i]));
    f.ops->free(f.dev, p);
    td_cpu_mem_fail_at(2);
    MUST(f.ops->alloc(f.dev, 10, &p, &err));
    void *q = NULL;
    cr_assert_eq(f.ops->alloc(f.dev, 10, &q, &err), TD_E_DEVICE_OOM);
    MUST(f.ops->alloc(f.dev, 10, &q, &err));
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
