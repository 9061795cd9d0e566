/* td_gpu_moe called directly, against the formula in f64 and against itself: on a GPU, or on the
 * CUDA-on-CPU layer. The chip is an argument of the launcher, so one device runs the kernels of
 * older ones too.
 *
 * Every tensor has memory of its own: an overrun is seen by AddressSanitizer or compute-sanitizer.
 *
 * Usage: test_gpu_moe_host [bench]     bench: times two known shapes in bf16 instead (needs 16 GB)
 * Exit 77: no device.
 */
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gpu/kernels.h"

#define MUST(call)                                                                                 \
    do {                                                                                           \
        const cudaError_t rc_ = (call);                                                            \
        if (rc_ != cudaSuccess) {                                                                  \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call,                          \
                    cudaGetErrorString(rc_));                                                      \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static int n_failed;

#define CHECK(x, ...)                                                                              \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #x);                                \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
            n_failed++;                                                                            \
        }                                                                                          \
    } while (0)

/* --- numbers ---------------------------------------------------------------------------------- */

static uint64_t rng_state;
static double uniform() { /* [-1, 1) */
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return (double)(int64_t)rng_state * 0x1p-63;
}

static float rounded(float x, td_dtype t) {
    return t == TD_F32    ? x
           : t == TD_BF16 ? td_bf16_to_f32(td_f32_to_bf16(x))
                          : td_f16_to_f32(td_f32_to_f16(x));
}

/* As the device has them; `lead` elements stand in front. */
static std::vector<unsigned char> packed(const std::vector<float> &v, td_dtype t, size_t lead) {
    const size_t size = td_dtype_size(t);
    std::vector<unsigned char> out((v.size() + lead) * size, 0xff);
    for (size_t i = 0; i < v.size(); i++) {
        const uint16_t h = t == TD_BF16 ? td_f32_to_bf16(v[i]) : td_f32_to_f16(v[i]);
        memcpy(&out[(i + lead) * size], t == TD_F32 ? (const void *)&v[i] : &h, size);
    }
    return out;
}

static void *upload(const void *data, size_t size_bytes) {
    void *p;
    MUST(cudaMalloc(&p, size_bytes));
    MUST(cudaMemcpy(p, data, size_bytes, cudaMemcpyHostToDevice));
    return p;
}

/* --- a layer of experts ----------------------------------------------------------------------- */

struct shape {
    int E, C, F;
    td_dtype dtype;
};

struct experts {
    shape s;
    std::vector<std::vector<float>> gate_up, down; /* [E] of [2F, C], [C, F] */
    std::vector<void *> d_gate_up, d_down;

    explicit experts(const shape &of)
        : s(of), gate_up(s.E), down(s.E), d_gate_up(s.E), d_down(s.E) {
        for (int e = 0; e < s.E; e++) {
            gate_up[e].resize((size_t)2 * s.F * s.C);
            down[e].resize((size_t)s.C * s.F);
            for (float &w : gate_up[e])
                w = rounded((float)(uniform() * 1.7 / sqrt(s.C)), s.dtype);
            for (float &w : down[e])
                w = rounded((float)(uniform() * 1.7 / sqrt(s.F)), s.dtype);
            const auto g = packed(gate_up[e], s.dtype, 0), d = packed(down[e], s.dtype, 0);
            d_gate_up[e] = upload(g.data(), g.size());
            d_down[e] = upload(d.data(), d.size());
        }
    }
    ~experts() {
        for (int e = 0; e < s.E; e++) {
            cudaFree(d_gate_up[e]);
            cudaFree(d_down[e]);
        }
    }
    experts(const experts &) = delete;
    experts &operator=(const experts &) = delete;
};

/* One call: T tokens with their logits. */
struct batch {
    int T, top_k;
    td_act act;
    bool normalise;
    float scale;
    std::vector<float> logits, in, out; /* [T, E], [T, C]; out: what is there before */
};

static batch make_batch(const shape &s, int T, int top_k, td_act act, bool normalise, float scale) {
    batch b = {T, top_k, act, normalise, scale, {}, {}, {}};
    b.logits.resize((size_t)T * s.E);
    b.in.resize((size_t)T * s.C);
    b.out.resize((size_t)T * s.C);
    for (float &x : b.logits)
        x = (float)(uniform() * 3);
    for (float &x : b.in)
        x = rounded((float)(uniform() * 1.7), s.dtype);
    for (float &x : b.out)
        x = (float)uniform();
    return b;
}

/* Rows [begin, begin + n) of a batch. */
static batch part(const shape &s, const batch &b, int begin, int n) {
    batch p = b;
    p.T = n;
    p.logits.assign(b.logits.begin() + (long)begin * s.E,
                    b.logits.begin() + (long)(begin + n) * s.E);
    p.in.assign(b.in.begin() + (long)begin * s.C, b.in.begin() + (long)(begin + n) * s.C);
    p.out.assign(b.out.begin() + (long)begin * s.C, b.out.begin() + (long)(begin + n) * s.C);
    return p;
}

/* lead: elements in front of `in`, which take it off its 16-byte border. */
static std::vector<float> run(const experts &x, const batch &b, const td_gpu_chip &chip,
                              size_t lead = 0) {
    const shape &s = x.s;
    constexpr size_t FENCE = 256;
    const size_t n_scratch = td_moe_scratch_bytes(b.T, s.C, s.F, s.E, b.top_k, s.dtype);
    std::vector<unsigned char> scratch(n_scratch + FENCE, 0xff); /* NaN to whoever reads it */
    memcpy(scratch.data(), b.logits.data(), b.logits.size() * sizeof(float));
    void *d_scratch = upload(scratch.data(), scratch.size());
    const auto in = packed(b.in, s.dtype, lead);
    unsigned char *d_in = static_cast<unsigned char *>(upload(in.data(), in.size()));
    float *d_out = static_cast<float *>(upload(b.out.data(), b.out.size() * sizeof(float)));

    td_moe_args a;
    memset(&a, 0, sizeof(a));
    a.act = b.act;
    a.in = d_in + lead * td_dtype_size(s.dtype);
    a.out = d_out;
    a.scratch = d_scratch;
    a.n_tokens = b.T;
    a.n_cols = s.C;
    a.n_ffn = s.F;
    a.n_experts = s.E;
    a.top_k = b.top_k;
    a.normalise = b.normalise;
    a.scale = b.scale;
    cudaStream_t stream;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    {
        /* Copies that die before the stream has run: the launcher must not keep them. */
        std::vector<const void *> gate_up(x.d_gate_up.begin(), x.d_gate_up.end());
        std::vector<const void *> down(x.d_down.begin(), x.d_down.end());
        MUST(td_gpu_moe(&a, s.dtype, gate_up.data(), down.data(), &chip, stream));
        std::fill(gate_up.begin(), gate_up.end(), nullptr);
        std::fill(down.begin(), down.end(), nullptr);
        memset(&a, 0xff, sizeof(a));
    }
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaStreamDestroy(stream));

    std::vector<float> out(b.out.size());
    MUST(cudaMemcpy(out.data(), d_out, out.size() * sizeof(float), cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(scratch.data(), d_scratch, scratch.size(), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < FENCE; i++)
        CHECK(scratch[n_scratch + i] == 0xff, "byte %zu behind the scratch was written", i);
    MUST(cudaFree(d_scratch));
    MUST(cudaFree(d_in));
    MUST(cudaFree(d_out));
    return out;
}

/* --- the formula ------------------------------------------------------------------------------ */

static double activation(td_act act, double x) {
    if (act == TD_ACT_SILU)
        return x / (1 + exp(-x));
    if (act == TD_ACT_GELU)
        return 0.5 * x * (1 + erf(x / sqrt(2.0)));
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

/* Result and, per element, how far off rounding can take it: the activation is rounded to the
 * compute dtype once, everything else is f32. */
static void expected(const experts &x, const batch &b, int t, std::vector<double> &want,
                     std::vector<double> &bound) {
    const shape &s = x.s;
    /* Half a unit in the last place, and a little for what is rounded. */
    const double unit = s.dtype == TD_F32 ? 0x1p-21 : s.dtype == TD_BF16 ? 0x1.03p-8 : 0x1.03p-11;
    const double tiny = s.dtype == TD_F16 ? 0x1p-25 : 0;
    const float *z = &b.logits[(size_t)t * s.E];
    std::vector<double> p(s.E);
    double sum = 0;
    for (int e = 0; e < s.E; e++)
        sum += p[e] = exp((double)z[e] - *std::max_element(z, z + s.E));
    std::vector<int> order(s.E);
    for (int e = 0; e < s.E; e++) {
        order[e] = e;
        p[e] /= sum;
    }
    std::stable_sort(order.begin(), order.end(), [&](int i, int j) { return p[i] > p[j]; });
    order.resize(b.top_k);
    double chosen = 0;
    for (int e : order)
        chosen += p[e];

    std::vector<double> y(s.C), size(s.C);
    std::vector<double> h(s.F), h_bound(s.F);
    for (int e : order) {
        const double w = p[e] / (b.normalise ? chosen : 1);
        for (int f = 0; f < s.F; f++) {
            double gate = 0, up = 0, gate_size = 0, up_size = 0;
            for (int c = 0; c < s.C; c++) {
                const double v = b.in[(size_t)t * s.C + c];
                const double g = v * x.gate_up[e][(size_t)f * s.C + c];
                const double u = v * x.gate_up[e][(size_t)(s.F + f) * s.C + c];
                gate += g, up += u, gate_size += fabs(g), up_size += fabs(u);
            }
            h[f] = activation(b.act, gate) * up;
            /* slope of the activations: below 1.2 */
            h_bound[f] = unit * fabs(h[f]) + tiny +
                         0x1p-20 * (1.2 * gate_size * (fabs(up) + up_size) + fabs(gate) * up_size);
        }
        for (int c = 0; c < s.C; c++)
            for (int f = 0; f < s.F; f++) {
                const double d = x.down[e][(size_t)c * s.F + f];
                y[c] += w * h[f] * d;
                size[c] += w * (h_bound[f] + 0x1p-20 * fabs(h[f])) * fabs(d);
            }
    }
    want.resize(s.C);
    bound.resize(s.C);
    for (int c = 0; c < s.C; c++) {
        const double before = b.out[(size_t)t * s.C + c];
        want[c] = before + (double)b.scale * y[c];
        bound[c] = fabs((double)b.scale) * size[c] + 0x1p-22 * (fabs(before) + fabs(want[c]));
    }
}

static void compare(const char *name, const experts &x, const batch &b,
                    const std::vector<float> &got) {
    std::vector<double> want, bound;
    double worst = 0;
    int worst_t = 0, worst_c = 0;
    for (int t = 0; t < b.T; t++) {
        /* All rows of small batches, of large ones those around the tiles' borders and a few. */
        if (b.T > 160 && t % 7 != 0 && t % 128 > 1 && t % 128 < 126)
            continue;
        expected(x, b, t, want, bound);
        for (int c = 0; c < x.s.C; c++) {
            const float y = got[(size_t)t * x.s.C + c];
            const double off = std::isfinite(y) ? fabs(y - want[c]) / bound[c] : INFINITY;
            if (off > worst)
                worst = off, worst_t = t, worst_c = c;
        }
    }
    CHECK(worst <= 1, "%s T=%d E=%d C=%d F=%d top_k=%d %s: %.3g times the bound at [%d, %d]", name,
          b.T, x.s.E, x.s.C, x.s.F, b.top_k, td_dtype_name(x.s.dtype), worst, worst_t, worst_c);
}

static void same_bytes(const char *name, const shape &s, const std::vector<float> &a,
                       const std::vector<float> &b, size_t b_row, size_t n_rows) {
    CHECK(memcmp(a.data(), &b[b_row * s.C], n_rows * s.C * sizeof(float)) == 0,
          "%s: E=%d C=%d F=%d %s, rows from %zu", name, s.E, s.C, s.F, td_dtype_name(s.dtype),
          b_row);
}

/* --- cases ------------------------------------------------------------------------------------ */

static void against_formula(const shape &s, const td_gpu_chip &chip) {
    static const struct {
        int T, top_k;
        td_act act;
        bool normalise;
        float scale;
    } calls[] = {
        {1, 1, TD_ACT_SILU, true, 1},         {3, 2, TD_ACT_GELU, false, 1},
        {130, 2, TD_ACT_GELU_TANH, true, -2}, {3, 8, TD_ACT_SILU, false, 0.5f},
        {300, 1, TD_ACT_SILU, false, 1},
    };
    rng_state = 88172645463325252u + (uint64_t)s.E * 1000003u + (uint64_t)s.C;
    const experts x(s);
    for (const auto &c : calls) {
        if (c.top_k > s.E)
            continue;
        const batch b = make_batch(s, c.T, c.top_k, c.act, c.normalise, c.scale);
        const std::vector<float> all = run(x, b, chip);
        compare("formula", x, b, all);
        if (c.T < 130 || (c.T > 130 && s.E > 1))
            continue;
        /* A row's bytes: alone, at another place, among fewer, read element by element, in
         * a ring of another length. */
        same_bytes("again", s, run(x, b, chip), all, 0, (size_t)b.T);
        same_bytes("alone", s, run(x, part(s, b, 129, 1), chip), all, 129, 1);
        same_bytes("moved", s, run(x, part(s, b, 37, 71), chip), all, 37, 71);
        same_bytes("off the border", s, run(x, b, chip, 1), all, 0, (size_t)b.T);
        if (chip.compute_capability >= 80 && s.dtype != TD_F32) { /* of little shared memory */
            const td_gpu_chip small = {86, 82, 99 * 1024};
            same_bytes("three stages", s, run(x, b, small), all, 0, (size_t)b.T);
        }
    }
}

/* Ties go to the lower experts; unused experts are not touched. */
static void distributions(const td_gpu_chip &chip, td_dtype dtype) {
    const shape s = {8, 24, 16, dtype};
    rng_state = 362436069;
    const experts x(s);
    batch b = make_batch(s, 300, 2, TD_ACT_SILU, true, 1);
    std::fill(b.logits.begin(), b.logits.end(), 0.25f);
    compare("ties", x, b, run(x, b, chip));
    for (int t = 0; t < b.T; t++) /* ties at the second place only */
        b.logits[(size_t)t * s.E + 5] = 1;
    compare("ties behind one", x, b, run(x, b, chip));
    for (int t = 0; t < b.T; t++)
        for (int e = 0; e < s.E; e++)
            b.logits[(size_t)t * s.E + e] = e == 3 ? 2.0f : e == 6 ? 1.0f : -1.0f;
    const std::vector<float> two = run(x, b, chip);
    compare("two experts", x, b, two);
    b.top_k = 1;
    compare("one expert", x, b, run(x, b, chip));
    b.top_k = 2;
    for (size_t i = 0; i < b.logits.size(); i++)
        if (b.logits[i] < 0)
            b.logits[i] = -INFINITY;
    compare("never these", x, b, run(x, b, chip));

    /* A NaN in one token's logits is that token's alone. */
    batch bad = b;
    bad.logits[(size_t)17 * s.E + 2] = NAN;
    const std::vector<float> clean = run(x, b, chip), got = run(x, bad, chip);
    for (int c = 0; c < s.C; c++)
        CHECK(std::isnan(got[(size_t)17 * s.C + c]), "column %d of the token with the NaN", c);
    same_bytes("before the NaN", s, got, clean, 0, 17);
    const std::vector<float> behind(got.begin() + 18 * s.C, got.end());
    same_bytes("behind the NaN", s, behind, clean, 18, (size_t)b.T - 18);
}

static void limits(const td_gpu_chip &chip, td_dtype dtype) {
    rng_state = 521288629;
    {
        const experts x({512, 8, 8, dtype});
        const batch b = make_batch(x.s, 70, 32, TD_ACT_SILU, true, 1);
        compare("512 experts, 32 chosen", x, b, run(x, b, chip));
    }
    {
        const experts x({32, 8, 8, dtype});
        const batch b = make_batch(x.s, 5, 32, TD_ACT_SILU, false, 1);
        compare("all chosen", x, b, run(x, b, chip));
    }
    { /* more row tiles than are walked in one go */
        const experts x({2, 8, 72, dtype});
        batch b = make_batch(x.s, 2200, 1, TD_ACT_SILU, false, 1);
        for (int t = 0; t < b.T; t++)
            b.logits[2 * (size_t)t] = t % 50 ? 4.0f : -4.0f;
        compare("long group", x, b, run(x, b, chip));
    }
}

/* Time of a call and the rate of its products, balanced routing. */
static void bench(const char *name, const shape &s, int T, int top_k, const td_gpu_chip &chip) {
    const size_t n_gate_up = (size_t)2 * s.F * s.C, n_down = (size_t)s.C * s.F;
    rng_state = 88172645463325252u;
    std::vector<uint16_t> noise(n_gate_up);
    for (uint16_t &w : noise)
        w = td_f32_to_bf16((float)uniform() / 32);
    std::vector<void *> gate_up(s.E), down(s.E);
    for (int e = 0; e < s.E; e++) {
        gate_up[e] = upload(noise.data(), n_gate_up * 2);
        down[e] = upload(noise.data(), n_down * 2);
    }
    const batch b = make_batch(s, T, top_k, TD_ACT_SILU, true, 1);
    const auto in = packed(b.in, s.dtype, 0);
    void *d_in = upload(in.data(), in.size()), *d_logits, *d_scratch;
    d_logits = upload(b.logits.data(), b.logits.size() * sizeof(float));
    float *d_out = static_cast<float *>(upload(b.out.data(), b.out.size() * sizeof(float)));
    MUST(cudaMalloc(&d_scratch, td_moe_scratch_bytes(T, s.C, s.F, s.E, top_k, s.dtype)));
    td_moe_args a;
    memset(&a, 0, sizeof(a));
    a.act = b.act;
    a.in = d_in;
    a.out = d_out;
    a.scratch = d_scratch;
    a.n_tokens = T;
    a.n_cols = s.C;
    a.n_ffn = s.F;
    a.n_experts = s.E;
    a.top_k = top_k;
    a.normalise = true;
    a.scale = 1;
    cudaStream_t stream;
    cudaEvent_t start, stop;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MUST(cudaEventCreate(&start));
    MUST(cudaEventCreate(&stop));
    std::vector<float> times;
    for (int i = 0; i < 12; i++) {
        MUST(cudaMemcpyAsync(d_scratch, d_logits, b.logits.size() * sizeof(float),
                             cudaMemcpyDeviceToDevice, stream));
        MUST(cudaEventRecord(start, stream));
        MUST(td_gpu_moe(&a, s.dtype, gate_up.data(), down.data(), &chip, stream));
        MUST(cudaEventRecord(stop, stream));
        MUST(cudaStreamSynchronize(stream));
        float ms = 0;
        MUST(cudaEventElapsedTime(&ms, start, stop));
        if (i >= 2)
            times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    const double ms = times[times.size() / 2];
    const double flop = 6.0 * T * top_k * (double)s.C * s.F;
    printf("%-14s T=%d: %.3f ms, %.0f TFLOP/s in all\n", name, T, ms, flop / ms / 1e9);
    MUST(cudaEventDestroy(start));
    MUST(cudaEventDestroy(stop));
    MUST(cudaStreamDestroy(stream));
    for (int e = 0; e < s.E; e++) {
        MUST(cudaFree(gate_up[e]));
        MUST(cudaFree(down[e]));
    }
    MUST(cudaFree(d_in));
    MUST(cudaFree(d_logits));
    MUST(cudaFree(d_out));
    MUST(cudaFree(d_scratch));
}

int main(int argc, char **argv) {
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("SKIPPED: no CUDA device\n");
        return 77;
    }
    int major = 0, minor = 0, shared_bytes = 0, n_multiprocessors = 0;
    MUST(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    MUST(cudaDeviceGetAttribute(&n_multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    MUST(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    MUST(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        const td_gpu_chip chip = {major * 10 + minor, n_multiprocessors, shared_bytes};
        for (int T : {1024, 8192, 16384})
            bench("Qwen3-30B-A3B", {128, 2048, 768, TD_BF16}, T, 8, chip);
        for (int T : {1024, 8192})
            bench("Mixtral-8x7B", {8, 4096, 14336, TD_BF16}, T, 2, chip);
        return 0;
    }
    static const struct {
        td_gpu_chip chip;
        td_dtype dtype;
    } kinds[] = {
        {{90, 132, 227 * 1024}, TD_BF16}, {{90, 132, 227 * 1024}, TD_F16},
        {{90, 132, 227 * 1024}, TD_F32},  {{75, 40, 64 * 1024}, TD_F16},
        {{70, 80, 96 * 1024}, TD_F16},
    };
    /* Whole pieces; down unaligned; all odd; several tiles both ways with ends of each. */
    static const struct {
        int C, F;
        std::vector<int> E;
    } sizes[] = {{64, 48, {1, 4, 8, 64}}, {64, 20, {4, 64}}, {36, 27, {1, 8}}, {200, 136, {4}}};
    for (const auto &k : kinds) {
        if (k.chip.compute_capability > major * 10 + minor)
            continue;
        const int failed_before = n_failed;
        for (const auto &size : sizes)
            for (int E : size.E)
                against_formula({E, size.C, size.F, k.dtype}, k.chip);
        distributions(k.chip, k.dtype);
        limits(k.chip, k.dtype);
        printf("sm_%d %s: %s\n", k.chip.compute_capability, td_dtype_name(k.dtype),
               n_failed == failed_before ? "passed" : "FAILED");
        fflush(stdout);
    }
    return n_failed != 0;
}
