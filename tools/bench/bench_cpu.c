/* bench_cpu.c - rates of the CPU device's operations. Not a test: it asserts nothing.
 *
 *   bench_cpu [--cpu-time] [gemm|attention|capture|small ...]   (all when none is named)
 *
 * GEMM is also timed as raw oneDNN with one large primitive per half of the rows: the ceiling that
 * the tiles are measured against.
 */
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device/device.h"
#include "base/clock.h"
#include "base/memory.h"

#define CHECK(call)                                                                                \
    do {                                                                                           \
        if (call) {                                                                                \
            fprintf(stderr, "%s: %s\n", #call, err.text);                                          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static td_device *dev;
static td_stream *stream;
static td_event *done;
static td_error err;

static void *mem(size_t n_bytes) {
    void *p;
    CHECK(dev->ops->alloc(dev, n_bytes, &p, &err));
    memset(p, 0, n_bytes);
    return p;
}
static float *mem_random(size_t n) {
    float *p = mem(n * sizeof(float));
    uint32_t s = 1;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        p[i] = (float)(s >> 8) / 8388608.0f - 1.0f;
    }
    return p;
}
static void unmem(void *p) {
    dev->ops->free(dev, p);
}
static void sync_stream(void) {
    CHECK(dev->ops->event_record(done, stream, &err));
    CHECK(dev->ops->event_sync(done, 0, &err));
}

static bool by_cpu_time;

/* Seconds now: of the clock, or with --cpu-time of the process's processors divided by its threads,
 * which says what a machine shared with others would do if it were not. */
static double now_s(void) {
    struct timespec t;
    if (!by_cpu_time)
        return td_time_s();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec + (double)t.tv_nsec * 1e-9) / dev->info.n_threads;
}

/* Best seconds of one call of fn. */
static double best_of(void (*fn)(void *), void *ctx) {
    double best = 1e9, begin = td_time_s();
    for (int i = 0; i < 200 && (i < 3 || td_time_s() - begin < 1.0); i++) {
        double t0 = now_s();
        fn(ctx);
        double t = now_s() - t0;
        best = TD_MIN(best, t);
    }
    return best;
}

/* --- gemm ------------------------------------------------------------------------------------- */

static void gemm_call(void *ctx) {
    CHECK(dev->ops->gemm(stream, ctx, &err));
    sync_stream();
}

typedef struct raw_gemm {
    dnnl_engine_t engine;
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t src, weights, dst, scratchpad;
    char *in, *out;
    void *packed;
    size_t in_bytes, out_bytes;
    int n_threads;
} raw_gemm;

typedef struct raw_part {
    raw_gemm *g;
    int index;
} raw_part;

static void *raw_run(void *ctx) {
    raw_part *p = ctx;
    raw_gemm *g = p->g;
    dnnl_stream_t s;
    dnnl_memory_t m[4];
    void *scratch = aligned_alloc(64, dnnl_memory_desc_get_size(&g->scratchpad) / 64 * 64 + 64);
    omp_set_num_threads(1);
    dnnl_stream_create(&s, g->engine, dnnl_stream_default_flags);
    dnnl_memory_create(&m[0], &g->src, g->engine, g->in + g->in_bytes * (size_t)p->index);
    dnnl_memory_create(&m[1], &g->weights, g->engine, g->packed);
    dnnl_memory_create(&m[2], &g->dst, g->engine, g->out + g->out_bytes * (size_t)p->index);
    dnnl_memory_create(&m[3], &g->scratchpad, g->engine, scratch);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, m[0]},
                              {DNNL_ARG_WEIGHTS, m[1]},
                              {DNNL_ARG_DST, m[2]},
                              {DNNL_ARG_SCRATCHPAD, m[3]}};
    if (dnnl_primitive_execute(g->primitive, s, 4, args))
        fprintf(stderr, "raw oneDNN failed\n");
    for (int i = 0; i < 4; i++)
        dnnl_memory_destroy(m[i]);
    dnnl_stream_destroy(s);
    free(scratch);
    return NULL;
}

static void raw_call(void *ctx) {
    raw_gemm *g = ctx;
    pthread_t threads[64];
    raw_part parts[64];
    for (int i = 0; i < g->n_threads; i++) {
        parts[i] = (raw_part){g, i};
        pthread_create(&threads[i], NULL, raw_run, &parts[i]);
    }
    for (int i = 0; i < g->n_threads; i++)
        pthread_join(threads[i], NULL);
}

/* One primitive per thread over rows / threads rows, weights packed. */
static double raw_rate(int64_t rows, int64_t n, int64_t k, td_dtype compute) {
    const int nt = TD_MIN(dev->info.n_threads, 64);
    const dnnl_data_type_t type = compute == TD_BF16 ? dnnl_bf16 : dnnl_f32;
    raw_gemm g = {.n_threads = nt};
    dnnl_dims_t src = {rows / nt, k}, weights = {k, n}, dst = {rows / nt, n};
    dnnl_memory_desc_t any;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    dnnl_matmul_desc_t desc;
    omp_set_num_threads(1);
    dnnl_engine_create(&g.engine, dnnl_cpu, 0);
    dnnl_primitive_attr_create(&attr);
    dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    dnnl_memory_desc_init_by_tag(&g.src, 2, src, type, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&any, 2, weights, type, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&g.dst, 2, dst, dnnl_f32, dnnl_ab);
    dnnl_matmul_desc_init(&desc, &g.src, &any, NULL, &g.dst);
    if (dnnl_primitive_desc_create(&pd, &desc, attr, g.engine, NULL))
        return 0;
    g.weights = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    g.scratchpad = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    dnnl_primitive_create(&g.primitive, pd);
    dnnl_primitive_desc_destroy(pd);
    dnnl_primitive_attr_destroy(attr);
    g.in_bytes = dnnl_memory_desc_get_size(&g.src);
    g.out_bytes = dnnl_memory_desc_get_size(&g.dst);
    g.in = mem(g.in_bytes * (size_t)nt);
    g.out = mem(g.out_bytes * (size_t)nt);
    g.packed = mem(dnnl_memory_desc_get_size(&g.weights));
    double t = best_of(raw_call, &g);
    dnnl_primitive_destroy(g.primitive);
    dnnl_engine_destroy(g.engine);
    unmem(g.in), unmem(g.out), unmem(g.packed);
    return 2.0 * (double)rows * (double)n * (double)k / t * 1e-9;
}

static void bench_gemm(int64_t rows, int64_t n, int64_t k, td_dtype compute) {
    if (compute == TD_BF16 && !dev->info.has_bf16)
        return;
    float *w = mem_random((size_t)(n * k)), *out = mem((size_t)(rows * n) * 4);
    void *in = mem_random((size_t)(rows * k)); /* as bf16: half of it, any finite numbers */
    if (compute == TD_BF16)
        for (int64_t i = 0; i < rows * k; i++)
            ((uint16_t *)in)[i] = td_f32_to_bf16(((float *)in)[i]);
    td_host_matrix part = {w, TD_F32, n, k};
    td_weight *weight;
    double t0 = td_time_s();
    CHECK(dev->ops->weight_prepare(dev, &part, 1, compute, &weight, &err));
    double t_prepare = td_time_s() - t0;
    td_gemm_args a = {weight, in, NULL, out, (int32_t)rows, 1, false};
    double t = best_of(gemm_call, &a), rate = 2.0 * (double)rows * (double)n * (double)k / t * 1e-9;
    a.accumulate = true;
    double ta = best_of(gemm_call, &a);
    double raw = rows * n * k > 1000000 ? raw_rate(rows, n, k, compute) : 0;
    printf("gemm %-4s rows %5d N %6d K %5d: %7.1f GFLOP/s, accumulate %7.1f, raw oneDNN %7.1f, "
           "packing %.0f ms\n",
           td_dtype_name(compute), (int)rows, (int)n, (int)k, rate, rate * t / ta, raw,
           t_prepare * 1e3);
    dev->ops->weight_destroy(weight);
    unmem(w), unmem(in), unmem(out);
}

/* --- attention and capture -------------------------------------------------------------------- */

static void attention_call(void *ctx) {
    CHECK(dev->ops->attention(stream, ctx, &err));
    sync_stream();
}

static void bench_attention(int32_t len, int32_t n_seqs, int32_t h, int32_t hkv, int32_t d) {
    const int64_t stride = (h + 2 * hkv) * d, t = (int64_t)len * n_seqs;
    float *qkv = mem_random((size_t)(t * stride)), *out = mem((size_t)(t * h * d) * 4);
    int32_t *offsets = mem(sizeof(int32_t) * ((size_t)n_seqs + 1));
    for (int32_t i = 0; i <= n_seqs; i++)
        offsets[i] = i * len;
    td_attention_args a = {.q = qkv,
                           .k = qkv + h * d,
                           .v = qkv + (h + hkv) * d,
                           .stride = stride,
                           .out = out,
                           .seq_offsets = offsets,
                           .seq_offsets_host = offsets,
                           .n_seqs = n_seqs,
                           .n_heads = h,
                           .n_kv_heads = hkv,
                           .head_dim = d,
                           .scale = 0.088f};
    double s = best_of(attention_call, &a);
    double flop = 4.0 * h * d * ((double)len * (len + 1) / 2) * n_seqs;
    printf("attention T %d x %d H %d Hkv %d D %d: %.0f tokens/s, %.1f GFLOP/s\n", len, n_seqs, h,
           hkv, d, (double)t / s, flop / s * 1e-9);
    unmem(qkv), unmem(out), unmem(offsets);
}

static void capture_call(void *ctx) {
    CHECK(dev->ops->capture(stream, ctx, &err));
    sync_stream();
}

static void bench_capture(int32_t rows, int32_t v, int32_t k, int32_t n_temps) {
    float *z = mem_random((size_t)rows * (size_t)v);
    for (size_t i = 0; i < (size_t)rows * (size_t)v; i++)
        z[i] *= 8;
    const size_t n = (size_t)rows * 4;
    static const float temps[] = {2, 4, 8, 16};
    td_capture_args a = {.logits = z,
                         .targets = mem(n),
                         .n_rows = rows,
                         .n_vocab = v,
                         .top_k = k,
                         .n_temperatures = n_temps,
                         .n_valid = v,
                         .divisor = 1,
                         .temperatures = temps,
                         .topk_ids = mem(n * (size_t)k),
                         .topk_logprobs = mem(n * (size_t)k),
                         .logsumexp = mem(n),
                         .logsumexp_t = mem(n * 4),
                         .tail_mass = mem(n),
                         .target_logprob = mem(n),
                         .target_rank = mem(n),
                         .entropy = mem(n)};
    double s = best_of(capture_call, &a);
    printf("capture V %d K %d temperatures %d: %.0f rows/s, %.1f GB/s of logits\n", v, k, n_temps,
           rows / s, (double)rows * v * 4 / s * 1e-9);
    unmem(z), unmem((void *)a.targets), unmem(a.topk_ids), unmem(a.topk_logprobs);
    unmem(a.logsumexp), unmem(a.logsumexp_t), unmem(a.tail_mass), unmem(a.target_logprob);
    unmem(a.target_rank), unmem(a.entropy);
}

/* --- experts ---------------------------------------------------------------------------------- */

static void moe_call(void *ctx) {
    CHECK(dev->ops->moe(stream, ctx, &err));
    sync_stream();
}

static void bench_moe(int32_t t, int32_t e, int32_t k, int32_t c, int32_t f) {
    enum { MAX_EXPERTS = 128 };
    td_weight *gate_up[MAX_EXPERTS], *down[MAX_EXPERTS], *router;
    float *w = mem_random((size_t)2 * (size_t)f * (size_t)c), *in = mem_random((size_t)(t * c));
    float *r = mem_random((size_t)(e * c)), *out = mem((size_t)(t * c) * 4);
    const td_host_matrix m_router = {r, TD_F32, e, c}, m_gate_up = {w, TD_F32, 2 * f, c};
    const td_host_matrix m_down = {w, TD_F32, c, f};
    CHECK(dev->ops->weight_prepare(dev, &m_router, 1, TD_F32, &router, &err));
    for (int32_t i = 0; i < e; i++) {
        CHECK(dev->ops->weight_prepare(dev, &m_gate_up, 1, TD_F32, &gate_up[i], &err));
        CHECK(dev->ops->weight_prepare(dev, &m_down, 1, TD_F32, &down[i], &err));
    }
    td_moe_args a = {.router = router,
                     .gate_up = (const td_weight *const *)gate_up,
                     .down = (const td_weight *const *)down,
                     .in = in,
                     .out = out,
                     .scratch = mem(td_moe_scratch_bytes(t, c, f, e, k, TD_F32)),
                     .n_tokens = t,
                     .n_cols = c,
                     .n_ffn = f,
                     .n_experts = e,
                     .top_k = k,
                     .normalise = true,
                     .scale = 1};
    double s = best_of(moe_call, &a);
    printf("moe T %d E %d top-%d C %d F %d: %.0f tokens/s, %.1f GFLOP/s of the chosen experts\n", t,
           e, k, c, f, t / s, 6.0 * t * k * (double)c * f / s * 1e-9);
    dev->ops->weight_destroy(router);
    for (int32_t i = 0; i < e; i++) {
        dev->ops->weight_destroy(gate_up[i]);
        dev->ops->weight_destroy(down[i]);
    }
    unmem(w), unmem(in), unmem(r), unmem(out), unmem(a.scratch);
}

/* --- element-wise ----------------------------------------------------------------------------- */

static void act_call(void *ctx) {
    CHECK(dev->ops->act(stream, ctx, &err));
    sync_stream();
}
static void norm_call(void *ctx) {
    CHECK(dev->ops->norm(stream, ctx, &err));
    sync_stream();
}

static void bench_small(void) {
    enum { T = 4096, C = 2048 };
    float *x = mem_random((size_t)T * C * 2), *w = mem_random(C), *out = mem((size_t)T * C * 4);
    td_norm_args r = {.in = x,
                      .weight = w,
                      .out = out,
                      .n_rows = T,
                      .n_cols = C,
                      .n_inner = 1,
                      .in_stride = C,
                      .out_stride = C,
                      .eps = 1e-5f};
    for (td_dtype t = TD_F32; t <= TD_BF16; t++) {
        static const char *const names[] = {"silu", "gelu", "gelu_tanh"};
        for (td_act act = TD_ACT_SILU; act <= TD_ACT_GELU_TANH; act++) {
            td_act_args g = {act, true, x, out, t, T, C};
            printf("%s %s: %.2f G elements/s\n", td_dtype_name(t), names[act],
                   (double)T * C / best_of(act_call, &g) * 1e-9);
        }
        r.out_dtype = t;
        for (r.kind = TD_NORM_RMS; r.kind <= TD_NORM_LAYER; r.kind++)
            printf("%s %s: %.2f G elements/s\n", td_dtype_name(t), r.kind ? "LayerNorm" : "RMSNorm",
                   (double)T * C / best_of(norm_call, &r) * 1e-9);
    }
    r.kind = TD_NORM_RMS;
    r.out_dtype = TD_F32;
    r.n_rows = 1;
    r.n_cols = 64;
    printf("one tiny operation with its sync: %.1f us\n", best_of(norm_call, &r) * 1e6);
    unmem(x), unmem(w), unmem(out);
}

static bool wanted(int argc, char **argv, const char *what) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], what))
            return true;
    return argc < 2;
}

int main(int argc, char **argv) {
    td_device_info *info;
    int32_t n;
    if (argc > 1 && !strcmp(argv[1], "--cpu-time")) {
        by_cpu_time = true;
        argc--, argv++;
    }
    CHECK(td_device_enumerate("cpu", 1, &info, &n, &err));
    CHECK(td_device_open(info, &dev, &err));
    printf("%s, %s, %d threads\n", info->model, info->kind, info->n_threads);
    free(info);
    CHECK(dev->ops->stream_create(dev, &stream, &err));
    CHECK(dev->ops->event_create(dev, &done, &err));
    if (wanted(argc, argv, "gemm")) {
        static const int shapes[][3] = {{2048, 4096, 4096}, {2048, 2048, 2048}, {8192, 512, 512},
                                        {8192, 192, 64},    {8192, 64, 172},    {256, 32000, 2048}};
        for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++)
            for (td_dtype t = TD_F32; t <= TD_BF16; t++)
                bench_gemm(shapes[i][0], shapes[i][1], shapes[i][2], t);
    }
    if (wanted(argc, argv, "attention")) {
        bench_attention(2048, 1, 32, 32, 128);
        bench_attention(2048, 1, 32, 8, 128);
        bench_attention(256, 32, 8, 4, 32);
    }
    if (wanted(argc, argv, "capture")) {
        bench_capture(64, 151936, 64, 0);
        bench_capture(64, 151936, 64, 2);
        bench_capture(256, 32000, 64, 0);
        bench_capture(2048, 512, 20, 0);
    }
    if (wanted(argc, argv, "moe")) {
        bench_moe(4096, 64, 8, 512, 192);
        bench_moe(256, 64, 8, 512, 192);
        bench_moe(1024, 8, 2, 1024, 1024);
    }
    if (wanted(argc, argv, "small"))
        bench_small();
    dev->ops->stream_destroy(stream);
    dev->ops->event_destroy(done);
    td_device_close(dev);
    return 0;
}
