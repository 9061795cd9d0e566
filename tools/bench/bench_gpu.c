/* bench_gpu.c - what a GPU can do, and what the device table's operations make of it: the first
 * part of tools/bench_gpu. Not a test: it asserts nothing.
 *
 *   bench_gpu [BACKEND[:INDEX]] [PART...] [C F H HKV D V T LENGTH]
 *
 * BACKEND: cuda (default) or cpu. PART: ceiling, copies, ops; all when none is named. The eight
 * numbers are the model's shape and the micro-batch of T tokens in samples of LENGTH; default is an
 * 8B Llama at 8192 tokens in samples of 2048.
 *
 *   ceiling   bf16 products of 8192 x 8192 x 8192 by cuBLASLt called directly, the best of its
 * first eight algorithms, kept up for a second: what the card sustains with random data. bf16 and
 * f32 results. Only with CUDA. copies    on the device (read + written), to and from pinned host
 * memory ops       each operation of a layer through the device table, in bf16 (cpu: f32)
 *
 * Prints a line each: NAME VALUE UNIT SECONDS_OF_ONE.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/device.h"
#include "base/clock.h"
#include "base/memory.h"
#ifdef TD_BENCH_CUDA
#include <cuda_runtime_api.h>
#include "gpu/gpu_blas.h"
#endif

enum { POOL = 1 << 24 };
static td_device *dev;
static td_stream *stream;
static td_event *done;
static td_error err;
static float *pool; /* [POOL] normal numbers */
static td_dtype compute;
static double measure_s = 0.5;

static void check(td_status st, const char *what) {
    if (st) {
        fprintf(stderr, "%s: %s\n", what, err.text);
        exit(1);
    }
}
#define CHECK(call) check((call), #call)

static void *must(void *p) {
    if (!p) {
        fprintf(stderr, "out of host memory\n");
        exit(1);
    }
    return p;
}

static void fill_pool(void) {
    uint64_t s = 1;
    pool = must(malloc(POOL * sizeof *pool));
    for (int i = 0; i < POOL; i += 2) { /* Box and Muller */
        s = s * 6364136223846793005u + 1442695040888963407u;
        const double u = ((double)(s >> 40) + 1) / 16777217.0;
        s = s * 6364136223846793005u + 1442695040888963407u;
        const double v = (double)(s >> 40) / 16777216.0, r = sqrt(-2 * log(u));
        pool[i] = (float)(r * cos(6.283185307179586 * v));
        pool[i + 1] = (float)(r * sin(6.283185307179586 * v));
    }
}

/* n numbers of type t, scale times the pool's from `from` on. Host memory, to be freed. */
static void *random_host(size_t n, td_dtype t, float scale, size_t from) {
    const size_t size = td_dtype_size(t);
    unsigned char *p = must(malloc(n * size));
    for (size_t i = 0; i < n; i++) {
        if (i >= POOL && i % POOL == 0) { /* the rest repeats */
            for (; i < n; i += POOL)
                memcpy(p + i * size, p, TD_MIN(n - i, (size_t)POOL) * size);
            break;
        }
        const float x = scale * pool[(from + i) % POOL];
        if (t == TD_BF16)
            ((uint16_t *)(void *)p)[i] = td_f32_to_bf16(x);
        else if (t == TD_F16)
            ((uint16_t *)(void *)p)[i] = td_f32_to_f16(x);
        else
            ((float *)(void *)p)[i] = x;
    }
    return p;
}

static void sync_stream(void) {
    CHECK(dev->ops->event_record(done, stream, &err));
    CHECK(dev->ops->event_sync(done, 0, &err));
}

/* Device memory with the bytes of host, which is freed; NULL: not initialised. */
static void *put(size_t size_bytes, void *host) {
    void *p;
    CHECK(dev->ops->alloc(dev, size_bytes, &p, &err));
    if (host) {
        CHECK(dev->ops->copy_in(stream, p, host, size_bytes, &err));
        sync_stream();
        free(host);
    }
    return p;
}
static void *put_random(size_t n, td_dtype t, float scale) {
    static size_t from;
    from += 999983;
    return put(n * td_dtype_size(t), random_host(n, t, scale, from));
}

/* Seconds of one call, from a stretch of about measure_s behind a warm-up. */
static double seconds_of(void (*enqueue)(void *), void *ctx) {
    enqueue(ctx);
    sync_stream();
    double t0 = td_time_s();
    enqueue(ctx);
    sync_stream();
    const double one = TD_MAX(td_time_s() - t0, 1e-6);
    const int n = (int)TD_MIN(TD_MAX(measure_s / one, 2.0), 5000.0);
    t0 = td_time_s();
    for (int i = 0; i < n; i++)
        enqueue(ctx);
    sync_stream();
    return (td_time_s() - t0) / n;
}

static void result(const char *name, double work, double scale, const char *unit, double s) {
    printf("%-28s %10.1f %-8s %.6f\n", name, work / s * scale, unit, s);
    fflush(stdout);
}

/* --- ceiling ---------------------------------------------------------------------------------- */

#ifdef TD_BENCH_CUDA
static void must_cuda(int rc, const char *what) {
    if (rc) {
        fprintf(stderr, "%s failed with %d\n", what, rc);
        exit(1);
    }
}
#define CUDA(call) must_cuda((int)(call), #call)

/* D[M, N] = A[M, K] W[N, K]^T, all row-major, as tdgen computes it: cuBLASLt's column-major D^T. */
static void ceiling_of(const td_gpu_blas *blas, cublasLtHandle_t lt, cudaStream_t cs, const void *w,
                       const void *a, void *d, void *workspace, size_t workspace_bytes, int n,
                       cudaDataType_t out_type, const char *name) {
    enum { TRIED = 8 };
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t lw, la, ld;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[TRIED];
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const float one = 1, zero = 0;
    int n_found = 0, best = 0, n_runs;
    float best_ms = 1e30f, ms;
    cudaEvent_t e0, e1;
    CUDA(cudaEventCreate(&e0));
    CUDA(cudaEventCreate(&e1));
    CUDA(blas->MatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUDA(blas->MatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                      sizeof transposed));
    CUDA(blas->MatrixLayoutCreate(&lw, CUDA_R_16BF, (uint64_t)n, (uint64_t)n, n));
    CUDA(blas->MatrixLayoutCreate(&la, CUDA_R_16BF, (uint64_t)n, (uint64_t)n, n));
    CUDA(blas->MatrixLayoutCreate(&ld, out_type, (uint64_t)n, (uint64_t)n, n));
    CUDA(blas->MatmulPreferenceCreate(&preference));
    CUDA(blas->MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                            &workspace_bytes, sizeof workspace_bytes));
    CUDA(blas->MatmulAlgoGetHeuristic(lt, op, lw, la, ld, ld, preference, TRIED, found, &n_found));
    for (int i = 0; i < n_found; i++) {
        for (int turn = 0; turn < 4; turn++) { /* the first is a warm-up */
            if (turn == 1)
                CUDA(cudaEventRecord(e0, cs));
            CUDA(blas->Matmul(lt, op, &one, w, lw, a, la, &zero, d, ld, d, ld, &found[i].algo,
                              workspace, workspace_bytes, cs));
        }
        CUDA(cudaEventRecord(e1, cs));
        CUDA(cudaEventSynchronize(e1));
        CUDA(cudaEventElapsedTime(&ms, e0, e1));
        if (ms < best_ms) {
            best_ms = ms;
            best = i;
        }
    }
    if (n_found == 0) {
        fprintf(stderr, "cuBLASLt offers no algorithm for the ceiling\n");
        exit(1);
    }
    n_runs = (int)TD_MAX(1000.0f / (best_ms / 3), 3.0f);
    CUDA(cudaEventRecord(e0, cs));
    for (int i = 0; i < n_runs; i++)
        CUDA(blas->Matmul(lt, op, &one, w, lw, a, la, &zero, d, ld, d, ld, &found[best].algo,
                          workspace, workspace_bytes, cs));
    CUDA(cudaEventRecord(e1, cs));
    CUDA(cudaEventSynchronize(e1));
    CUDA(cudaEventElapsedTime(&ms, e0, e1));
    result(name, 2.0 * n * n * (double)n, 1e-12, "TFLOP/s", 1e-3 * ms / n_runs);
    blas->MatmulPreferenceDestroy(preference);
    blas->MatrixLayoutDestroy(lw);
    blas->MatrixLayoutDestroy(la);
    blas->MatrixLayoutDestroy(ld);
    blas->MatmulDescDestroy(op);
    cudaEventDestroy(e0);
    cudaEventDestroy(e1);
}

static void ceiling(int32_t index) {
    const int n = 8192;
    const size_t n_elements = (size_t)n * (size_t)n, workspace_bytes = 64u << 20;
    void *w, *a, *d, *workspace;
    cublasLtHandle_t lt;
    cudaStream_t cs;
    const td_gpu_blas *blas = td_gpu_blas_load(&err);
    if (!blas)
        check(TD_E_DEVICE, "cuBLASLt");
    CUDA(cudaSetDevice(index));
    CUDA(cudaStreamCreate(&cs));
    CUDA(blas->Create(&lt));
    CUDA(cudaMalloc(&w, n_elements * 2));
    CUDA(cudaMalloc(&a, n_elements * 2));
    CUDA(cudaMalloc(&d, n_elements * 4));
    CUDA(cudaMalloc(&workspace, workspace_bytes));
    for (int i = 0; i < 2; i++) {
        void *host = random_host(n_elements, TD_BF16, 1, (size_t)i * 7919);
        CUDA(cudaMemcpy(i ? a : w, host, n_elements * 2, cudaMemcpyHostToDevice));
        free(host);
    }
    ceiling_of(blas, lt, cs, w, a, d, workspace, workspace_bytes, n, CUDA_R_16BF,
               "ceiling.bf16_to_bf16");
    ceiling_of(blas, lt, cs, w, a, d, workspace, workspace_bytes, n, CUDA_R_32F,
               "ceiling.bf16_to_f32");
    CUDA(cudaFree(w));
    CUDA(cudaFree(a));
    CUDA(cudaFree(d));
    CUDA(cudaFree(workspace));
    blas->Destroy(lt);
    cudaStreamDestroy(cs);
}
#else
static void ceiling(int32_t index) {
    (void)index;
    puts("# ceiling: SKIPPED, this build has no CUDA");
}
#endif

/* --- copies ----------------------------------------------------------------------------------- */

typedef struct copy_ctx {
    void *a, *b, *host;
    size_t size_bytes;
} copy_ctx;
static void copy_d2d(void *ctx) {
    copy_ctx *c = ctx;
    CHECK(dev->ops->copy_peer(stream, c->b, dev, c->a, c->size_bytes, &err));
}
static void copy_h2d(void *ctx) {
    copy_ctx *c = ctx;
    CHECK(dev->ops->copy_in(stream, c->a, c->host, c->size_bytes, &err));
}
static void copy_d2h(void *ctx) {
    copy_ctx *c = ctx;
    CHECK(dev->ops->copy_out(stream, c->host, c->a, c->size_bytes, &err));
}
static void copies(void) {
    copy_ctx c = {.size_bytes = (size_t)POOL * sizeof(float)};
    c.a = put_random(POOL, TD_F32, 1);
    c.b = put(c.size_bytes, NULL);
    CHECK(dev->ops->host_alloc(dev, c.size_bytes, &c.host, &err));
    memcpy(c.host, pool, c.size_bytes);
    result("copy.device", 2.0 * (double)c.size_bytes, 1e-9, "GB/s", seconds_of(copy_d2d, &c));
    result("copy.host_to_device", (double)c.size_bytes, 1e-9, "GB/s", seconds_of(copy_h2d, &c));
    result("copy.device_to_host", (double)c.size_bytes, 1e-9, "GB/s", seconds_of(copy_d2h, &c));
    dev->ops->host_free(dev, c.host);
    dev->ops->free(dev, c.a);
    dev->ops->free(dev, c.b);
}

/* --- operations ------------------------------------------------------------------------------- */

static td_weight *random_weight(int64_t n, int64_t k) {
    static size_t from;
    td_weight *w;
    from += 1299709;
    void *host = random_host((size_t)(n * k), compute, 0.02f, from);
    if (dev->ops->weight_create) {
        void *data;
        CHECK(dev->ops->weight_create(dev, n, k, compute, &w, &data, &err));
        CHECK(
            dev->ops->copy_in(stream, data, host, (size_t)(n * k) * td_dtype_size(compute), &err));
        sync_stream();
    } else {
        const td_host_matrix part = {.data = host, .dtype = compute, .n_rows = n, .n_cols = k};
        CHECK(dev->ops->weight_prepare(dev, &part, 1, compute, &w, &err));
    }
    free(host);
    return w;
}

static void run_gemm(void *ctx) {
    CHECK(dev->ops->gemm(stream, ctx, &err));
}
static void run_norm(void *ctx) {
    CHECK(dev->ops->norm(stream, ctx, &err));
}
static void run_rope(void *ctx) {
    CHECK(dev->ops->rope(stream, ctx, &err));
}
static void run_attention(void *ctx) {
    CHECK(dev->ops->attention(stream, ctx, &err));
}
static void run_act(void *ctx) {
    CHECK(dev->ops->act(stream, ctx, &err));
}
static void run_embed(void *ctx) {
    CHECK(dev->ops->embed(stream, ctx, &err));
}
static void run_capture(void *ctx) {
    CHECK(dev->ops->capture(stream, ctx, &err));
}

static void gemm_case(const char *name, int64_t n, int64_t k, int32_t m, bool accumulate) {
    td_gemm_args a = {.weight = random_weight(n, k),
                      .in = put_random((size_t)(m * k), compute, 1),
                      .out = put_random((size_t)(m * n), TD_F32, 1),
                      .n_rows = m,
                      .scale = 1,
                      .accumulate = accumulate};
    result(name, 2.0 * (double)m * (double)n * (double)k, 1e-12, "TFLOP/s",
           seconds_of(run_gemm, &a));
    dev->ops->weight_destroy((td_weight *)(uintptr_t)a.weight);
    dev->ops->free(dev, (void *)(uintptr_t)a.in);
    dev->ops->free(dev, a.out);
}

/* What a layer of the shape and the end of the model cost, T tokens in samples of `length`. */
static void ops(int32_t C, int32_t F, int32_t H, int32_t Hkv, int32_t D, int32_t V, int32_t T,
                int32_t length) {
    const size_t size = td_dtype_size(compute);
    const int32_t heads = H + 2 * Hkv, n_seqs = (T + length - 1) / length, R = TD_MIN(T, 2048);
    const double t = T;
    gemm_case("gemm.qkv", (int64_t)heads * D, C, T, false);
    gemm_case("gemm.o", C, (int64_t)H * D, T, true);
    gemm_case("gemm.gate_up", 2 * (int64_t)F, C, T, false);
    gemm_case("gemm.down", C, F, T, true);
    gemm_case("gemm.lm_head", V, C, R, false);

    int32_t *ids = must(malloc((size_t)T * 4)), *positions = must(malloc((size_t)T * 4));
    int32_t *offsets = must(malloc((size_t)(n_seqs + 1) * 4));
    for (int32_t i = 0; i < T; i++) {
        ids[i] = (int32_t)(((uint32_t)i * 2654435761u) % (uint32_t)V);
        positions[i] = i % length;
    }
    for (int32_t i = 0; i <= n_seqs; i++)
        offsets[i] = TD_MIN(i * length, T);

    float *x = put_random((size_t)T * (size_t)C, TD_F32, 1);
    void *y = put_random((size_t)T * (size_t)C, compute, 1);
    float *ones = put_random((size_t)TD_MAX(C, D), TD_F32, 1);
    int32_t *d_ids = put((size_t)T * 4, ids);
    td_embed_args embed = {
        .ids = d_ids, .table_dtype = compute, .out = x, .n_tokens = T, .n_cols = C, .scale = 1};
    embed.table = put_random((size_t)V * (size_t)C, compute, 1);
    result("embed", t * C * (double)(size + 4), 1e-9, "GB/s", seconds_of(run_embed, &embed));
    dev->ops->free(dev, (void *)(uintptr_t)embed.table);

    td_norm_args norm = {.kind = TD_NORM_RMS,
                         .in = x,
                         .weight = ones,
                         .out = y,
                         .out_dtype = compute,
                         .n_rows = T,
                         .n_cols = C,
                         .n_inner = 1,
                         .in_stride = C,
                         .out_stride = C,
                         .eps = 1e-6f};
    result("norm", t * C * (double)(4 + size), 1e-9, "GB/s", seconds_of(run_norm, &norm));

    const bool narrow = dev->info.narrow_attention && compute != TD_F32;
    float *qkv = put_random((size_t)T * (size_t)(heads * D), TD_F32, 1);
    void *turned = narrow ? put_random((size_t)T * (size_t)(heads * D), compute, 1) : NULL;
    float *cosines = put_random((size_t)length * (size_t)(D / 2), TD_F32, 0.3f);
    td_rope_args rope = {.x = qkv,
                         .out = turned,
                         .out_dtype = compute,
                         .n_plain_heads = narrow ? Hkv : 0,
                         .positions = put((size_t)T * 4, positions),
                         .cos_table = cosines,
                         .sin_table = cosines,
                         .n_tokens = T,
                         .n_heads = H + Hkv,
                         .head_dim = D,
                         .rotary_dim = D,
                         .stride = heads * D};
    result("rope", t * heads * D * (double)(narrow ? 4 + size : 8), 1e-9, "GB/s",
           seconds_of(run_rope, &rope));
    /* Turning in place many times may have grown the numbers: fresh ones. */
    dev->ops->free(dev, qkv);
    qkv = put_random((size_t)T * (size_t)(heads * D), TD_F32, 1);

    const unsigned char *base = narrow ? turned : (void *)qkv;
    const size_t in_size = narrow ? size : 4;
    int32_t *host_offsets = must(malloc((size_t)(n_seqs + 1) * 4));
    memcpy(host_offsets, offsets, (size_t)(n_seqs + 1) * 4);
    td_attention_args attention = {.q = base,
                                   .k = base + (size_t)(H * D) * in_size,
                                   .v = base + (size_t)((H + Hkv) * D) * in_size,
                                   .in_dtype = narrow ? compute : TD_F32,
                                   .stride = heads * D,
                                   .out = put_random((size_t)T * (size_t)(H * D), compute, 1),
                                   .out_dtype = compute,
                                   .seq_offsets = put((size_t)(n_seqs + 1) * 4, offsets),
                                   .seq_offsets_host = host_offsets,
                                   .n_seqs = n_seqs,
                                   .n_heads = H,
                                   .n_kv_heads = Hkv,
                                   .head_dim = D,
                                   .scale = 1 / sqrtf((float)D)};
    double pairs = 0; /* of query and key */
    for (int32_t i = 0; i < n_seqs; i++) {
        const double n = host_offsets[i + 1] - host_offsets[i];
        pairs += 0.5 * n * (n + 1);
    }
    result("attention", 4.0 * pairs * H * D, 1e-12, "TFLOP/s",
           seconds_of(run_attention, &attention));

    td_act_args act = {.act = TD_ACT_SILU,
                       .gated = true,
                       .in = put_random((size_t)T * (size_t)F * 2, TD_F32, 1),
                       .out = put_random((size_t)T * (size_t)F, compute, 1),
                       .out_dtype = compute,
                       .n_tokens = T,
                       .n_cols = F};
    result("act", t * F * (double)(8 + size), 1e-9, "GB/s", seconds_of(run_act, &act));
    dev->ops->free(dev, (void *)(uintptr_t)act.in);
    dev->ops->free(dev, act.out);

    enum { K = 64 };
    int32_t *targets = must(malloc((size_t)R * 4));
    for (int32_t i = 0; i < R; i++)
        targets[i] = (int32_t)(((uint32_t)i * 40503u) % (uint32_t)V);
    td_capture_args capture = {.logits = put_random((size_t)R * (size_t)V, TD_F32, 3),
                               .targets = put((size_t)R * 4, targets),
                               .n_rows = R,
                               .n_vocab = V,
                               .top_k = K,
                               .n_valid = V,
                               .divisor = 1,
                               .topk_ids = put((size_t)R * K * 4, NULL),
                               .topk_logprobs = put((size_t)R * K * 4, NULL),
                               .logsumexp = put((size_t)R * 4, NULL),
                               .tail_mass = put((size_t)R * 4, NULL),
                               .target_logprob = put((size_t)R * 4, NULL),
                               .target_rank = put((size_t)R * 4, NULL),
                               .entropy = put((size_t)R * 4, NULL)};
    result("capture.top64", (double)R * V * 4.0, 1e-9, "GB/s", seconds_of(run_capture, &capture));
    free(host_offsets);
}

int main(int argc, char **argv) {
    int32_t shape[8] = {4096, 14336, 32, 8, 128, 128256, 8192, 2048}, n_shape = 0, n = 0;
    bool parts[3] = {false, false, false};
    static const char *const part_names[3] = {"ceiling", "copies", "ops"};
    char backend[8] = "cuda";
    int32_t index = 0;
    for (int i = 1; i < argc; i++) {
        bool known = false;
        for (int p = 0; p < 3; p++)
            if (!strcmp(argv[i], part_names[p]))
                parts[p] = known = true;
        char *end;
        const long number = strtol(argv[i], &end, 10);
        if (!known && !*end && number > 0 && number < 1 << 24 && n_shape < 8) {
            shape[n_shape++] = (int32_t)number;
            known = true;
        }
        if (!known && sscanf(argv[i], "%7[a-z]:%d", backend, &index) < 1) {
            fprintf(stderr, "usage: bench_gpu [BACKEND[:INDEX]] [ceiling] [copies] [ops] "
                            "[C F H HKV D V T LENGTH]\n");
            return 2;
        }
    }
    if (!parts[0] && !parts[1] && !parts[2])
        parts[0] = parts[1] = parts[2] = true;
    td_device_info *infos;
    CHECK(td_device_enumerate(backend, 0, &infos, &n, &err));
    if (index >= n) {
        printf("SKIPPED: no device %s:%d here (this build runs on: %s)\n", backend, index,
               td_device_backends());
        return 77;
    }
    CHECK(td_device_open(&infos[index], &dev, &err));
    printf("# %s: %s, %s\n", dev->info.name, dev->info.model, dev->info.kind);
    fill_pool();
    compute = strcmp(backend, "cpu") && dev->info.has_bf16 ? TD_BF16 : TD_F32;
    CHECK(dev->ops->stream_create(dev, &stream, &err));
    CHECK(dev->ops->event_create(dev, &done, &err));
    if (parts[0] && strcmp(backend, "cpu") != 0)
        ceiling(index);
    if (parts[1])
        copies();
    if (parts[2])
        ops(shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6], shape[7]);
    dev->ops->event_destroy(done);
    dev->ops->stream_destroy(stream);
    td_device_close(dev);
    free(infos);
    free(pool);
    return 0;
}
