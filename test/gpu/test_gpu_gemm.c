/* Products of the CUDA device against the CPU device, how weights come to be, and the contract that
 * everything else rests on: the bits of a row do not depend on how many rows there are. */
#include <math.h>
#include <stdio.h>

#include "fixture.h"
#include "base/memory.h"

typedef struct gemm_call {
    const float *x, *bias, *before; /* host */
    int32_t m, n, k;
    float scale;
    td_dtype compute;
} gemm_call;

static float *gemm(gt_side *s, const td_weight *w, const gemm_call *c) {
    const size_t n_in = (size_t)c->m * c->k, n_out = (size_t)c->m * c->n;
    float *host = gt_host(n_out * 4), *out = gt_put(s, c->before, n_out * 4);
    td_gemm_args a = {
        .weight = w,
        .in = gt_put(s, gt_pack(c->x, n_in, c->compute), n_in * td_dtype_size(c->compute)),
        .bias = c->bias ? gt_put(s, c->bias, (size_t)c->n * 4) : NULL,
        .out = out,
        .n_rows = c->m,
        .scale = c->scale,
        .accumulate = c->before != NULL};
    GT_MUST(s->ops->gemm(s->s, &a, &gt_err));
    gt_get(s, host, out, n_out * 4);
    return host;
}

/* A sum of K products of N(0, 1) numbers in f32, in any order: the partial sums grow as sqrt(K),
 * and each of the K additions rounds to their last digit, on both sides; tensor cores add several
 * products at once and cut off what is below the largest, which adds up. Seen on an H100: 2.2e-7 K
 * in f32, 6.7e-7 K in 16-bit types. */
static double gemm_tolerance(int32_t k, td_dtype compute, float scale) {
    /* The CUDA-on-CPU layer adds in f32 whatever the type. */
    const bool tensor_cores = compute != TD_F32 && !getenv("TDGEN_PRETEND_GPUS");
    return ((tensor_cores ? 1e-6 : 3e-7) * k + 2e-6 * sqrt((double)k)) * fabs((double)scale);
}

static void check_gemm(gt_rng *r, td_dtype compute, int32_t m, int32_t n, int32_t k) {
    float *w = gt_floats_of(r, (size_t)n * k, compute),
          *x = gt_floats_of(r, (size_t)m * k, compute);
    float *bias = gt_floats(r, (size_t)n), *before = gt_floats(r, (size_t)m * n);
    td_weight *dut = gt_weight(&gt_dut, w, n, k, compute),
              *cpu = gt_weight(&gt_cpu, w, n, k, TD_F32);
    GT_CHECK(dut->n_rows == n && dut->n_cols == k && dut->compute == compute,
             "the weight says [%d, %d]", (int)dut->n_rows, (int)dut->n_cols);
    for (int mode = 0; mode < 8; mode++) { /* every choice of bias, accumulate, scale */
        gemm_call c = {x,
                       mode & 1 ? bias : NULL,
                       mode & 2 ? before : NULL,
                       m,
                       n,
                       k,
                       mode & 4 ? -0.22f : 1,
                       compute};
        float *got = gemm(&gt_dut, dut, &c);
        c.compute = TD_F32;
        float *want = gemm(&gt_cpu, cpu, &c);
        if (!gt_near(got, want, (size_t)m * n, n, 1e-6 + gemm_tolerance(k, compute, c.scale), 5e-7,
                     "%s [%d, %d] x [%d, %d]^T, mode %d", td_dtype_name(compute), m, k, n, k, mode))
            break;
    }
    gt_release();
}

static void case_values(void) {
    static const int32_t shapes[][2] = {{64, 64},   {192, 64},  {100, 37}, {1, 1},
                                        {7, 129},   {8, 8},     {520, 96}, {133, 1000},
                                        {512, 172}, {40, 2500}, {3, 264},  {264, 3}};
    static const int32_t rows[] = {1, 2, 17, 150};
    gt_rng r = {10};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++) {
        for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++)
            for (size_t j = 0; j < TD_ARRAY_LEN(rows); j++)
                if (gt_large || (int64_t)shapes[i][0] * shapes[i][1] * rows[j] < 4000000)
                    check_gemm(&r, types[t], rows[j], shapes[i][0], shapes[i][1]);
        check_gemm(&r, types[t], 1100, 24, 40);
        if (gt_large) {
            check_gemm(&r, types[t], 300, 4096, 4096);
            check_gemm(&r, types[t], 77, 28672, 4096);
            check_gemm(&r, types[t], 130, 4096, 14336);
            check_gemm(&r, types[t], 16, 128256, 2048);
        }
    }
}

/* NaN and infinity reach their row and no other. */
static void case_bad_rows_stay_alone(void) {
    enum { M = 70, N = 40, K = 72 };
    gt_rng r = {11};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++) {
        const td_dtype compute = types[t];
        float *w = gt_floats_of(&r, N * K, compute), *x = gt_floats_of(&r, M * K, compute);
        td_weight *weight = gt_weight(&gt_dut, w, N, K, compute);
        gemm_call c = {x, NULL, NULL, M, N, K, 1, compute};
        float *clean = gemm(&gt_dut, weight, &c);
        x[5 * K + 3] = NAN, x[M / 2 * K] = INFINITY, x[(M - 1) * K + K - 1] = -INFINITY;
        float *got = gemm(&gt_dut, weight, &c);
        for (int32_t i = 0; i < M; i++)
            if (i == 5 || i == M / 2 || i == M - 1)
                GT_CHECK(!isfinite(got[i * N]), "%s: row %d is finite", td_dtype_name(compute), i);
            else
                gt_same_bits(got + i * N, clean + i * N, N * 4, "%s: row %d",
                             td_dtype_name(compute), i);
        gt_release();
    }
}

static void case_parts_of_any_type_are_stacked(void) {
    enum { K = 48, N1 = 5, N2 = 70, N3 = 2, N = N1 + N2 + N3 };
    gt_rng r = {12};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++) {
        /* Values of 8 significant bits and middling size: exact in all three types. */
        float *w = gt_floats_of(&r, N * K, TD_BF16), *x = gt_floats_of(&r, 3 * K, types[t]);
        for (int i = 0; i < N * K; i++)
            w[i] = fabsf(w[i]) < 0x1p-6f ? 0.5f : w[i];
        const td_host_matrix parts[] = {
            {w, TD_F32, N1, K},
            {gt_pack(w + N1 * K, N2 * K, TD_BF16), TD_BF16, N2, K},
            {gt_pack(w + (N1 + N2) * K, N3 * K, TD_F16), TD_F16, N3, K}};
        td_weight *stacked;
        GT_MUST(gt_dut.ops->weight_prepare(gt_dut.dev, parts, 3, types[t], &stacked, &gt_err));
        gemm_call c = {x, NULL, NULL, 3, N, K, 1, types[t]};
        float *got = gemm(&gt_dut, stacked, &c);
        float *want = gemm(&gt_dut, gt_weight(&gt_dut, w, N, K, types[t]), &c);
        gt_same_bits(got, want, 3 * N * 4, "%s", td_dtype_name(types[t]));
        gt_dut.ops->weight_destroy(stacked);
        const td_host_matrix odd[] = {{w, TD_F32, 1, K}, {w, TD_F32, 1, K - 1}};
        GT_CHECK(gt_dut.ops->weight_prepare(gt_dut.dev, odd, 2, types[t], &stacked, &gt_err) !=
                     TD_OK,
                 "parts of unlike widths are refused");
        gt_release();
    }
    td_weight *w;
    const float one = 1;
    const td_host_matrix part = {&one, TD_F32, 1, 1};
    for (td_dtype t = TD_F32; t <= TD_F16; t++) {
        const td_device_info *i = &gt_dut.dev->info;
        const bool has = t == TD_F32 ? i->has_f32 : t == TD_BF16 ? i->has_bf16 : i->has_f16;
        if (has)
            continue;
        GT_CHECK(gt_dut.ops->weight_prepare(gt_dut.dev, &part, 1, t, &w, &gt_err) == TD_E_DEVICE,
                 "a weight for %s, which the device lacks", td_dtype_name(t));
    }
}

/* A weight filled by copies gives the bits of one that was prepared. */
static void case_plain_weights(void) {
    enum { M = 33, N = 50, K = 36 };
    gt_rng r = {13};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    if (!gt_dut.ops->weight_create) {
        GT_CHECK(!gt_turns_into(), "GPUs create plain weights");
        return;
    }
    for (int32_t t = 0; t < n_types; t++) {
        const td_dtype compute = types[t];
        const size_t elem = td_dtype_size(compute);
        float *w = gt_floats_of(&r, N * K, compute), *x = gt_floats_of(&r, M * K, compute);
        td_weight *plain;
        void *data;
        GT_MUST(gt_dut.ops->weight_create(gt_dut.dev, N, K, compute, &plain, &data, &gt_err));
        GT_CHECK(plain->n_rows == N && plain->n_cols == K && plain->compute == compute &&
                     plain->size_bytes >= N * K * elem,
                 "a plain weight says what it is");
        char *packed = gt_pack(w, N * K, compute);
        for (int i = 0; i < N; i++) /* row by row, as tensors are stacked */
            GT_MUST(gt_dut.ops->copy_in(gt_dut.s, (char *)data + (size_t)i * K * elem,
                                        packed + (size_t)i * K * elem, K * elem, &gt_err));
        gemm_call c = {x, NULL, NULL, M, N, K, 1, compute};
        float *got = gemm(&gt_dut, plain, &c);
        float *want = gemm(&gt_dut, gt_weight(&gt_dut, w, N, K, compute), &c);
        gt_same_bits(got, want, M * N * 4, "%s", td_dtype_name(compute));
        gt_dut.ops->weight_destroy(plain);
        gt_release();
    }
}

/* --- bits of rows ----------------------------------------------------------------------------- */

typedef struct row_gemm {
    const td_weight *weight;
    float *bias; /* device or NULL */
    int32_t n, k;
    td_dtype compute;
    bool accumulate;
    void *in, *out; /* device, for the largest count */
    float *zeros;   /* host, for the largest count */
} row_gemm;

static void draw_gemm(gt_rng *r, void *row, void *ctx) {
    const row_gemm *g = ctx;
    for (int32_t i = 0; i < g->k; i++) {
        const float x = gt_normal(r);
        const uint16_t h = g->compute == TD_BF16 ? td_f32_to_bf16(x) : td_f32_to_f16(x);
        if (g->compute == TD_F32)
            ((float *)row)[i] = x;
        else
            ((uint16_t *)row)[i] = h;
    }
}

static void run_gemm_rows(const void *rows, int32_t n, void *out, void *ctx) {
    const row_gemm *g = ctx;
    gt_side *s = &gt_dut;
    const size_t in_bytes = (size_t)n * g->k * td_dtype_size(g->compute),
                 out_bytes = (size_t)n * g->n * 4;
    GT_MUST(s->ops->copy_in(s->s, g->in, rows, in_bytes, &gt_err));
    GT_MUST(s->ops->copy_in(s->s, g->out, g->zeros, out_bytes, &gt_err));
    td_gemm_args a = {.weight = g->weight,
                      .in = g->in,
                      .bias = g->bias,
                      .out = g->out,
                      .n_rows = n,
                      .scale = g->accumulate ? 0.5f : 1,
                      .accumulate = g->accumulate};
    GT_MUST(s->ops->gemm(s->s, &a, &gt_err));
    gt_get(s, out, g->out, out_bytes);
}

static void check_rows(gt_rng *r, td_dtype compute, int32_t n, int32_t k, int mode, int32_t max) {
    int32_t counts[16], n_counts = gt_row_counts(max, counts);
    row_gemm g = {.n = n, .k = k, .compute = compute, .accumulate = mode & 2};
    g.weight = gt_weight(&gt_dut, gt_floats_of(r, (size_t)n * k, compute), n, k, compute);
    g.bias = mode & 1 ? gt_put(&gt_dut, gt_floats(r, (size_t)n), (size_t)n * 4) : NULL;
    g.in = gt_put(&gt_dut, NULL, (size_t)max * k * td_dtype_size(compute));
    g.out = gt_put(&gt_dut, NULL, (size_t)max * n * 4);
    g.zeros = gt_host((size_t)max * n * 4);
    for (size_t i = 0; i < (size_t)max * n; i++)
        g.zeros[i] = 0.25f;
    char name[100];
    snprintf(name, sizeof(name), "%s [N %d, K %d] mode %d", td_dtype_name(compute), n, k, mode);
    const gt_rows t = {
        name, (size_t)k * td_dtype_size(compute), (size_t)n * 4, run_gemm_rows, &g, draw_gemm,
        true};
    gt_check_rows(&t, counts, n_counts, (uint64_t)(n + k));
    gt_release();
}

static void case_rows_keep_their_bits(void) {
    static const int32_t shapes[][2] = {{64, 64}, {100, 37}, {1, 1},   {7, 129},
                                        {8, 8},   {24, 520}, {192, 64}};
    gt_rng r = {14};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++)
        for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++)
            for (int mode = 0; mode < 4; mode++)
                if (gt_large || mode == (int)i % 4)
                    check_rows(&r, types[t], shapes[i][0], shapes[i][1], mode,
                               gt_large || i < 2 ? 1000 : 300);
}

/* The products of real models, of which cuBLASLt knows many algorithms. */
static void case_rows_of_real_models_keep_their_bits(void) {
    static const int32_t shapes[][2] = {{6144, 4096},  {4096, 4096},  {28672, 4096}, {4096, 14336},
                                        {2560, 2048},  {2048, 2048},  {11008, 2048}, {2048, 8192},
                                        {16384, 2048}, {1024, 1024},  {768, 768},    {3072, 768},
                                        {151936, 896}, {128256, 2048}};
    if (!gt_large)
        return;
    gt_rng r = {15};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++)
        for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++) {
            if (types[t] == TD_F16 && i % 3)
                continue;
            check_rows(&r, types[t], shapes[i][0], shapes[i][1], (int)i % 4,
                       shapes[i][0] > 100000 ? 300 : 1000);
        }
}

static void case_refusals(void) {
    td_gemm_args a = {.n_rows = 1};
    GT_CHECK(gt_dut.ops->gemm(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL, "no weight");
    const float one = 1;
    a = (td_gemm_args){.weight = gt_weight(&gt_dut, &one, 1, 1, TD_F32), .n_rows = 1};
    GT_CHECK(gt_dut.ops->gemm(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL, "a scale that was not set");
    a.scale = 1, a.n_rows = 0;
    GT_MUST(gt_dut.ops->gemm(gt_dut.s, &a, &gt_err));
    gt_sync(&gt_dut);
}

static const gt_case cases[] = {
    {"values", case_values},
    {"bad_rows_stay_alone", case_bad_rows_stay_alone},
    {"parts_of_any_type_are_stacked", case_parts_of_any_type_are_stacked},
    {"plain_weights", case_plain_weights},
    {"rows_keep_their_bits", case_rows_keep_their_bits},
    {"rows_of_real_models_keep_their_bits", case_rows_of_real_models_keep_their_bits},
    {"refusals", case_refusals},
};

int main(int argc, char **argv) {
    return gt_main("test_gpu_gemm", argc, argv, cases, TD_ARRAY_LEN(cases));
}
