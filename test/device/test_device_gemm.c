/* GEMM: right within rounding, and the bits of a row depend on the row alone - not on its place in
 * the batch, its neighbours (NaN among them), the number of rows or of threads; also when oneDNN is
 * held to AVX2 in a child process. */
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "base/memory.h"

static double as_computed(float x, td_dtype compute) {
    return compute == TD_BF16 ? (double)td_bf16_to_f32(td_f32_to_bf16(x)) : (double)x;
}

static const struct {
    int32_t n, k;
} shapes[] = {{64, 64},    {192, 64},  {100, 37},   {1, 1},    {7, 129},  {1100, 96},
              {333, 1000}, {512, 172}, {130, 2500}, {70, 513}, {40, 5376}};

static void check_values(td_dtype compute) {
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {0x1234567};
    for (size_t c = 0; c < TD_ARRAY_LEN(shapes); c++) {
        const int32_t n = shapes[c].n, k = shapes[c].k, m = 150;
        float *w = rng_floats(&r, (size_t)n * k), *x = rng_floats(&r, (size_t)m * k);
        float *bias = rng_floats(&r, (size_t)n), *out = rng_floats(&r, (size_t)m * n);
        float *before = malloc(sizeof(float) * (size_t)m * n);
        void *in = to_compute(x, (size_t)m * k, compute);
        td_weight *weight = weight_of(&f, w, n, k, compute);
        cr_assert_eq(weight->n_rows, n);
        cr_assert_eq(weight->n_cols, k);
        cr_assert_geq(weight->size_bytes, (size_t)n * k * td_dtype_size(compute));
        for (int mode = 0; mode < 8; mode++) { /* every choice of bias, accumulate, scale */
            const bool add = mode & 2;
            const float scale = mode & 4 ? -0.22f : 1;
            const float *b = mode & 1 ? bias : NULL;
            memcpy(before, out, sizeof(float) * (size_t)m * n);
            td_gemm_args a = {weight, in, b, out, m, scale, add};
            OK(f.ops->gemm(f.s, &a, &err));
            fixture_sync(&f);
            for (int32_t i = 0; i < m; i++)
                for (int32_t j = 0; j < n; j++) {
                    double want = b ? bias[j] : 0, size = 1;
                    for (int32_t l = 0; l < k; l++) {
                        double p =
                            as_computed(x[i * k + l], compute) * as_computed(w[j * k + l], compute);
                        want += p;
                        size += fabs(p);
                    }
                    want = (double)scale * want + (add ? (double)before[i * n + j] : 0);
                    cr_assert_lt(fabs(out[i * n + j] - want), 1e-6 * size,
                                 "[%d,%d] mode %d row %d col %d: %g, expected %g", n, k, mode, i, j,
                                 out[i * n + j], want);
                }
        }
        f.ops->weight_destroy(weight);
        free(w), free(x), free(bias), free(out), free(before), free(in);
    }
    fixture_close(&f);
}

Test(device_gemm, values_f32) {
    check_values(TD_F32);
}

Test(device_gemm, values_bf16) {
    fixture f = fixture_open(1);
    bool has = f.dev->info.has_bf16;
    fixture_close(&f);
    if (!has)
        cr_skip("SKIPPED: this CPU has no bf16 of its own\n");
    check_values(TD_BF16);
}

/* The error of an f32 row product grows as the square root of K does, not faster: no f32 sum runs
 * over more than 512 elements, on any instruction set. From theory: products of N(0, 1) numbers make
 * partial sums of deviation sqrt(n); each addition rounds off u / sqrt 3 of its sum's power of two,
 * which makes 0.3 n u for a run of n, and so 0.3 sqrt(512) u sqrt(K) for parts of 512, joined by
 * sums of K / 512 terms. One run over K has 0.3 sqrt(K) u sqrt(K): 22 and 44 where 9 is allowed. */
Test(device_gemm, wide_rows_lose_no_more_than_their_parts) {
    enum { N = 96, M = 48 };
    static const int32_t ks[] = {5376, 21504};
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {12};
    for (size_t c = 0; c < TD_ARRAY_LEN(ks); c++) {
        const int32_t k = ks[c];
        float *w = rng_floats(&r, (size_t)N * k), *x = rng_floats(&r, (size_t)M * k);
        float out[M * N];
        double sum = 0;
        td_weight *weight = weight_of(&f, w, N, k, TD_F32);
        td_gemm_args a = {weight, x, NULL, out, M, 1, false};
        OK(f.ops->gemm(f.s, &a, &err));
        fixture_sync(&f);
        for (int32_t i = 0; i < M; i++)
            for (int32_t j = 0; j < N; j++) {
                double want = 0;
                for (int32_t l = 0; l < k; l++)
                    want += (double)x[(size_t)i * k + l] * w[(size_t)j * k + l];
                sum += (out[i * N + j] - want) * (out[i * N + j] - want);
            }
        const double rms = sqrt(sum / (M * N)) / (0x1p-24 * sqrt(k));
        const double allowed = 1.25 * 0.3 * hypot(sqrt(512), sqrt(k / 512.0));
        cr_assert_lt(rms, allowed, "K %d: %.2f u sqrt(K), allowed %.2f", k, rms, allowed);
        f.ops->weight_destroy(weight);
        free(w), free(x);
    }
    fixture_close(&f);
}

Test(device_gemm, parts_of_any_type_are_stacked) {
    td_error err = {0};
    fixture f = fixture_open(1);
    test_rng r = {99};
    enum { K = 48, N1 = 5, N2 = 70, N3 = 2 };
    float *w = rng_floats(&r, (N1 + N2 + N3) * K), *x = rng_floats(&r, K), out[N1 + N2 + N3];
    uint16_t b[N2 * K], h[N3 * K];
    for (int i = 0; i < N2 * K; i++)
        b[i] = td_f32_to_bf16(w[N1 * K + i]), w[N1 * K + i] = td_bf16_to_f32(b[i]);
    for (int i = 0; i < N3 * K; i++)
        h[i] = td_f32_to_f16(w[(N1 + N2) * K + i]), w[(N1 + N2) * K + i] = td_f16_to_f32(h[i]);
    td_host_matrix parts[] = {{w, TD_F32, N1, K}, {b, TD_BF16, N2, K}, {h, TD_F16, N3, K}};
    td_weight *weight;
    OK(f.ops->weight_prepare(f.dev, parts, 3, TD_F32, &weight, &err));
    td_gemm_args a = {weight, x, NULL, out, 1, 1, false};
    OK(f.ops->gemm(f.s, &a, &err));
    fixture_sync(&f);
    for (int j = 0; j < N1 + N2 + N3; j++) {
        double want = 0;
        for (int l = 0; l < K; l++)
            want += (double)x[l] * w[j * K + l];
        cr_assert_float_eq(out[j], want, 1e-4, "column %d", j);
    }
    f.ops->weight_destroy(weight);
    td_host_matrix odd[] = {{w, TD_F32, 1, K}, {w, TD_F32, 1, K - 1}};
    cr_assert_eq(f.ops->weight_prepare(f.dev, odd, 2, TD_F32, &weight, &err), TD_E_DEVICE);
    cr_assert_eq(f.ops->weight_prepare(f.dev, parts, 1, TD_F16, &weight, &err), TD_E_DEVICE);
    cr_assert(strstr(err.text, "f16") && strstr(err.text, "cpu:0"), "%s", err.text);
    fixture_close(&f);
    free(w), free(x);
}

/* The probe row's bits, alone in a batch of one, against many batches. Returns a text on failure.
 */
static char *check_rows(td_dtype compute) {
    static const int32_t threads[] = {1, 2, 4};
    static char why[200];
    td_error err = {0};
    test_rng r = {0xabcdef + (uint64_t)compute};
    fixture f[3];
    for (int t = 0; t < 3; t++)
        f[t] = fixture_open(threads[t]);
    why[0] = 0;
    for (size_t c = 0; c < TD_ARRAY_LEN(shapes) && !why[0]; c++) {
        const int32_t n = shapes[c].n, k = shapes[c].k, max_m = 1000;
        const size_t elem = td_dtype_size(compute);
        float *w = rng_floats(&r, (size_t)n * k), *probe = rng_floats(&r, (size_t)k);
        float *noise = rng_floats(&r, (size_t)max_m * k);
        float *first = malloc(sizeof(float) * (size_t)n);
        float *out = malloc(sizeof(float) * (size_t)max_m * n);
        char *x = to_compute(noise, (size_t)max_m * k, compute);
        char *p = to_compute(probe, (size_t)k, compute);
        td_weight *weight = weight_of(&f[0], w, n, k, compute);
        td_gemm_args a = {weight, p, NULL, first, 1, 1, false};
        OK(f[0].ops->gemm(f[0].s, &a, &err));
        fixture_sync(&f[0]);
        for (int round = 0; round < 40 && !why[0]; round++) {
            const int32_t m =
                round < 3 ? (int32_t[]){1, 1000, 257}[round] : 1 + rng_below(&r, max_m);
            const int32_t at = rng_below(&r, m), t = rng_below(&r, 3);
            char *saved = malloc((size_t)m * k * elem);
            memcpy(saved, x, (size_t)m * k * elem);
            if (round % 2) /* hostile neighbours */
                memset(x, round % 4 == 1 ? 0xff : 0x7f, (size_t)m * k * elem);
            memcpy(x + (size_t)at * k * elem, p, (size_t)k * elem);
            memset(out, 0xff, sizeof(float) * (size_t)m * n);
            a = (td_gemm_args){weight, x, NULL, out, m, 1, false};
            OK(f[t].ops->gemm(f[t].s, &a, &err));
            fixture_sync(&f[t]);
            if (memcmp(out + (size_t)at * n, first, sizeof(float) * (size_t)n))
                snprintf(why, sizeof(why), "%s [N %d, K %d]: row %d of %d, %d threads: other bits",
                         td_dtype_name(compute), n, k, at, m, threads[t]);
            memcpy(x, saved, (size_t)m * k * elem);
            free(saved);
        }
        f[0].ops->weight_destroy(weight);
        free(w), free(probe), free(noise), free(first), free(out), free(x), free(p);
    }
    for (int t = 0; t < 3; t++)
        fixture_close(&f[t]);
    return why[0] ? why : NULL;
}

Test(device_gemm, rows_keep_their_bits) {
    const char *why = check_rows(TD_F32);
    cr_assert_null(why, "%s", why);
    fixture f = fixture_open(1);
    bool has = f.dev->info.has_bf16;
    fixture_close(&f);
    if (has) {
        why = check_rows(TD_BF16);
        cr_assert_null(why, "%s", why);
    }
}

/* oneDNN reads the limit once per process, before its first use: this test's process is fresh. */
static void rows_under(const char *isa, const char *expected_kind) {
    cr_assert_eq(setenv("ONEDNN_MAX_CPU_ISA", isa, 1), 0);
    fixture f = fixture_open(1);
    const bool limited = strstr(f.dev->info.kind, expected_kind) != NULL;
    const bool has_bf16 = f.dev->info.has_bf16;
    fixture_close(&f);
    if (!limited)
        cr_skip("SKIPPED: this CPU does not reach %s\n", isa);
    const char *why = check_rows(TD_F32);
    cr_assert_null(why, "%s: %s", isa, why);
    if (has_bf16) {
        why = check_rows(TD_BF16);
        cr_assert_null(why, "%s: %s", isa, why);
    }
}
Test(device_gemm, rows_keep_their_bits_under_avx2) {
    rows_under("AVX2", "avx2");
}
Test(device_gemm, rows_keep_their_bits_under_sse41) {
    rows_under("SSE41", "sse41");
}
Test(device_gemm, rows_keep_their_bits_under_avx512_core) {
    rows_under("AVX512_CORE", "avx512_core");
}
Test(device_gemm, rows_keep_their_bits_under_avx512_core_bf16) {
    rows_under("AVX512_CORE_BF16", "avx512_core_bf16");
}
