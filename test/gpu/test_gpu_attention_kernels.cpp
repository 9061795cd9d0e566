/* test_gpu_attention_kernels.cpp - the attention kernels through their launchers, against a
 * reference in f64 on the host. Runs on the CUDA-on-CPU layer and on a GPU.
 *
 * Without an argument: every kernel that the device can run; the exit status is 1 on failure and 77
 * without a device. With `bench`: TFLOP/s of long and ragged batches, for a GPU.
 *
 * Checked: values for packed sequences of awkward lengths, head dims, head groups, windows and soft
 * caps; that a sequence gives the same bytes wherever it stands in a batch and whatever follows
 * it; that what a row must not see cannot reach it, be it infinite or not a number.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>
#include <vector>

#include "gpu/kernels.h"
#include "base/dtype.h"

namespace {

struct shape {
    std::vector<int32_t> lens;
    int32_t n_heads, n_kv_heads, head_dim, window;
    float scale, softcap;
    int32_t pad; /* elements between q, k and v slices, and behind them: 0, or odd to misalign */
};

enum kernel { CHOOSER, WMMA };

int n_failures = 0;
td_gpu_chip chip;

void fail(const char *what, const shape &s, td_dtype dtype, kernel k, const char *detail) {
    n_failures++;
    printf("FAILED %s: %s%s H %d/%d D %d window %d softcap %g pad %d, %zu sequences: %s\n", what,
           td_dtype_name(dtype), k == WMMA ? " wmma" : "", s.n_heads, s.n_kv_heads, s.head_dim,
           s.window, s.softcap, s.pad, s.lens.size(), detail);
}

void must(cudaError_t rc, const char *what) {
    if (rc != cudaSuccess) {
        printf("%s: %s\n", what, cudaGetErrorString(rc));
        exit(1);
    }
}

float to_f32(td_dtype t, const void *p, size_t i) {
    const uint16_t *h = static_cast<const uint16_t *>(p);
    return t == TD_F32    ? static_cast<const float *>(p)[i]
           : t == TD_BF16 ? td_bf16_to_f32(h[i])
                          : td_f16_to_f32(h[i]);
}
void from_f32(td_dtype t, void *p, size_t i, float x) {
    uint16_t *h = static_cast<uint16_t *>(p);
    if (t == TD_F32)
        static_cast<float *>(p)[i] = x;
    else
        h[i] = t == TD_BF16 ? td_f32_to_bf16(x) : td_f32_to_f16(x);
}

struct batch {
    shape s;
    td_dtype dtype;
    std::vector<int32_t> offsets;
    std::vector<unsigned char> qkv; /* [T, stride] */
    int64_t stride, at_k, at_v;     /* elements */
    int32_t n_tokens() const {
        return offsets.back();
    }
    size_t index(int64_t row, int64_t slice, int32_t head, int32_t d) const {
        return (size_t)(row * stride + slice + (int64_t)head * s.head_dim + d);
    }
};

/* Values depend on the position in `seeds`' sequence only, so that one sequence can be built into
 * several batches. */
batch make(const shape &s, td_dtype dtype, const std::vector<uint64_t> &seeds) {
    batch b = {s, dtype, {0}, {}, 0, 0, 0};
    const int64_t q = (int64_t)s.n_heads * s.head_dim, kv = (int64_t)s.n_kv_heads * s.head_dim;
    b.at_k = q + s.pad;
    b.at_v = b.at_k + kv + s.pad;
    b.stride = b.at_v + kv + s.pad;
    for (int32_t len : s.lens)
        b.offsets.push_back(b.offsets.back() + len);
    b.qkv.resize((size_t)(b.n_tokens() * b.stride) * td_dtype_size(dtype));
    for (size_t i = 0; i < s.lens.size(); i++) {
        uint64_t x = seeds[i] * 2 + 1;
        for (int64_t at = b.offsets[i] * b.stride; at < b.offsets[i + 1] * b.stride; at++) {
            x = x * 6364136223846793005ull + 1442695040888963407ull;
            const float u = (float)(x >> 40) / (float)(1 << 24) * 2.0f - 1.0f;
            from_f32(dtype, b.qkv.data(), (size_t)at, 2.0f * u);
        }
    }
    return b;
}
batch make(const shape &s, td_dtype dtype) {
    std::vector<uint64_t> seeds;
    for (size_t i = 0; i < s.lens.size(); i++)
        seeds.push_back(i + 1);
    return make(s, dtype, seeds);
}

struct device_batch {
    td_attention_args a;
    void *memory, *offsets;
};
device_batch upload(const batch &b, td_dtype out_dtype) {
    device_batch d;
    const size_t e = td_dtype_size(b.dtype);
    const size_t out_bytes =
        (size_t)b.n_tokens() * b.s.n_heads * b.s.head_dim * td_dtype_size(out_dtype);
    must(cudaMalloc(&d.memory, b.qkv.size()), "cudaMalloc");
    must(cudaMalloc(&d.offsets, b.offsets.size() * 4), "cudaMalloc");
    must(cudaMemcpy(d.memory, b.qkv.data(), b.qkv.size(), cudaMemcpyHostToDevice), "copy in");
    must(cudaMemcpy(d.offsets, b.offsets.data(), b.offsets.size() * 4, cudaMemcpyHostToDevice),
         "copy in");
    memset(&d.a, 0, sizeof d.a);
    d.a.q = d.memory;
    d.a.k = static_cast<char *>(d.memory) + b.at_k * (int64_t)e;
    d.a.v = static_cast<char *>(d.memory) + b.at_v * (int64_t)e;
    d.a.in_dtype = b.dtype;
    d.a.out_dtype = out_dtype;
    d.a.stride = b.stride;
    d.a.seq_offsets = static_cast<int32_t *>(d.offsets);
    d.a.seq_offsets_host = b.offsets.data();
    d.a.n_seqs = (int32_t)b.s.lens.size();
    d.a.n_heads = b.s.n_heads;
    d.a.n_kv_heads = b.s.n_kv_heads;
    d.a.head_dim = b.s.head_dim;
    d.a.window = b.s.window;
    d.a.scale = b.s.scale;
    d.a.softcap = b.s.softcap;
    must(cudaMalloc(&d.a.out, out_bytes), "cudaMalloc");
    must(cudaMemset(d.a.out, 0xff, out_bytes), "cudaMemset"); /* NaN */
    return d;
}
void release(const device_batch &d) {
    cudaFree(d.memory);
    cudaFree(d.offsets);
    cudaFree(d.a.out);
}

std::vector<unsigned char> run(const batch &b, td_dtype out_dtype, kernel k) {
    device_batch d = upload(b, out_dtype);
    cudaStream_t stream;
    must(cudaStreamCreate(&stream), "cudaStreamCreate");
    must(k == WMMA ? td_gpu_attention_wmma(&d.a, &chip, stream)
                   : td_gpu_attention(&d.a, &chip, stream),
         "launch");
    must(cudaStreamSynchronize(stream), "attention");
    std::vector<unsigned char> out((size_t)b.n_tokens() * b.s.n_heads * b.s.head_dim *
                                   td_dtype_size(out_dtype));
    must(cudaMemcpy(out.data(), d.a.out, out.size(), cudaMemcpyDeviceToHost), "copy out");
    must(cudaStreamDestroy(stream), "cudaStreamDestroy");
    release(d);
    return out;
}

/* Row i of a sequence and one head, in f64. */
void reference(const batch &b, int32_t start, int32_t i, int32_t head, double *out) {
    const shape &s = b.s;
    const int32_t kv = head / (s.n_heads / s.n_kv_heads);
    const int32_t first = s.window > 0 && i >= s.window ? i - s.window + 1 : 0;
    std::vector<double> score((size_t)(i + 1 - first));
    double top = -INFINITY, sum = 0;
    for (int32_t j = first; j <= i; j++) {
        double x = 0;
        for (int32_t d = 0; d < s.head_dim; d++)
            x += (double)to_f32(b.dtype, b.qkv.data(), b.index(start + i, 0, head, d)) *
                 (double)to_f32(b.dtype, b.qkv.data(), b.index(start + j, b.at_k, kv, d));
        x *= s.scale;
        if (s.softcap > 0)
            x = s.softcap * tanh(x / s.softcap);
        score[(size_t)(j - first)] = x;
        top = fmax(top, x);
    }
    for (double &x : score)
        sum += x = exp(x - top);
    for (int32_t d = 0; d < s.head_dim; d++) {
        double o = 0;
        for (int32_t j = first; j <= i; j++)
            o += score[(size_t)(j - first)] *
                 (double)to_f32(b.dtype, b.qkv.data(), b.index(start + j, b.at_v, kv, d));
        out[d] = o / sum;
    }
}

/* Largest error as a share of what is allowed: the rounding of P and of the result, each within
 * half an ulp of the largest value, and a little for the arithmetic in f32. */
double worst_error(const batch &b, const std::vector<unsigned char> &out, td_dtype out_dtype) {
    const shape &s = b.s;
    const double unit_in = b.dtype == TD_F32 ? 0 : b.dtype == TD_BF16 ? 1.0 / 256 : 1.0 / 2048;
    const double unit_out = out_dtype == TD_F32 ? 0 : out_dtype == TD_BF16 ? 1.0 / 256 : 1.0 / 2048;
    const double v_max = 2, arithmetic = b.dtype == TD_F32 ? 1e-6 : 2e-5;
    std::vector<double> want((size_t)s.head_dim);
    double worst = 0;
    for (size_t q = 0; q < s.lens.size(); q++)
        for (int32_t i = 0; i < s.lens[q]; i++)
            for (int32_t h = 0; h < s.n_heads; h++) {
                reference(b, b.offsets[q], i, h, want.data());
                for (int32_t d = 0; d < s.head_dim; d++) {
                    const size_t at = ((size_t)(b.offsets[q] + i) * (size_t)s.n_heads + (size_t)h) *
                                          (size_t)s.head_dim +
                                      (size_t)d;
                    const double x = to_f32(out_dtype, out.data(), at), w = want[(size_t)d];
                    const double allowed = (unit_in + arithmetic) * v_max + unit_out * fabs(w);
                    const double error = fabs(x - w) / allowed;
                    if (!(error <= worst))
                        worst = error; /* a NaN too */
                }
            }
    return worst;
}

double check_values(const shape &s, td_dtype dtype, td_dtype out_dtype, kernel k) {
    const batch b = make(s, dtype);
    const double worst = worst_error(b, run(b, out_dtype, k), out_dtype);
    char detail[96];
    snprintf(detail, sizeof detail, "error %.3g of what is allowed, out %s", worst,
             td_dtype_name(out_dtype));
    if (!(worst <= 1))
        fail("values", s, dtype, k, detail);
    return worst;
}

/* The bytes of `len` rows of one sequence in a batch's result. */
const unsigned char *rows_of(const batch &b, const std::vector<unsigned char> &out, size_t seq,
                             size_t *row_bytes) {
    *row_bytes = (size_t)b.s.n_heads * b.s.head_dim * td_dtype_size(b.dtype);
    return out.data() + (size_t)b.offsets[seq] * *row_bytes;
}

/* One sequence alone, between others, and cut short. */
void check_bits(shape s, td_dtype dtype, kernel k) {
    size_t row_bytes;
    const int32_t len = 201;
    s.lens = {len};
    const batch alone = make(s, dtype, {7});
    const std::vector<unsigned char> want = run(alone, dtype, k);
    s.lens = {37, len, 1, 90, len};
    const batch packed = make(s, dtype, {3, 7, 4, 5, 7});
    const std::vector<unsigned char> got = run(packed, dtype, k);
    for (size_t seq : {(size_t)1, (size_t)4})
        if (memcmp(rows_of(packed, got, seq, &row_bytes), want.data(), want.size()) != 0)
            fail("bits", s, dtype, k, "a sequence differs with its place in the batch");
    for (int32_t cut : {1, 64, 100, 130, 190}) {
        s.lens = {5, cut, 77};
        const batch shorter = make(s, dtype, {9, 7, 8});
        const std::vector<unsigned char> head = run(shorter, dtype, k);
        if (memcmp(rows_of(shorter, head, 1, &row_bytes), want.data(), (size_t)cut * row_bytes) !=
            0)
            fail("bits", s, dtype, k, "a row depends on what follows it");
    }
}

/* An infinite value and a key that is not a number at one token: rows that do not see it keep their
 * bytes, rows that do show it, the value in its column only. */
void check_poison(shape s, td_dtype dtype, kernel k) {
    const int32_t bad = 140, d_bad = s.head_dim - 1;
    s.lens = {10, 201, 30};
    const batch clean = make(s, dtype);
    const std::vector<unsigned char> want = run(clean, dtype, k);
    for (int in_key = 0; in_key < 2; in_key++) {
        batch b = clean;
        from_f32(dtype, b.qkv.data(),
                 b.index(b.offsets[1] + bad, in_key ? b.at_k : b.at_v, 0, d_bad),
                 in_key ? NAN : INFINITY);
        const std::vector<unsigned char> got = run(b, dtype, k);
        const size_t e = td_dtype_size(dtype);
        const int32_t group = s.n_heads / s.n_kv_heads;
        int n_hidden = 0, n_leaked = 0;
        for (int32_t t = 0; t < b.n_tokens(); t++) {
            const int32_t i = t - b.offsets[1];
            const bool sees = t < b.offsets[2] && i >= bad && (s.window == 0 || i < bad + s.window);
            for (int32_t h = 0; h < s.n_heads; h++)
                for (int32_t d = 0; d < s.head_dim; d++) {
                    const size_t at =
                        ((size_t)t * (size_t)s.n_heads + (size_t)h) * (size_t)s.head_dim +
                        (size_t)d;
                    if (sees && h < group && (in_key || d == d_bad))
                        n_hidden += isfinite(to_f32(dtype, got.data(), at)) ? 1 : 0;
                    else
                        n_leaked += memcmp(&got[at * e], &want[at * e], e) != 0;
                }
        }
        char detail[96];
        snprintf(detail, sizeof detail, "bad %s: %d values hide it, %d must not have changed",
                 in_key ? "key" : "value", n_hidden, n_leaked);
        if (n_hidden != 0 || n_leaked != 0)
            fail("poison", s, dtype, k, detail);
    }
}

void check_all(td_dtype dtype, kernel k) {
    const std::vector<int32_t> lens = {1, 300, 2, 15, 16, 17, 63, 0, 64, 65, 127, 129};
    const int32_t dims[] = {8, 16, 32, 64, 80, 96, 128, 256, 33}, windows[] = {0, 1, 5, 64};
    const int32_t heads[][2] = {{4, 4}, {4, 2}, {8, 1}, {3, 1}};
    double worst = 0;
    int n = 0;
    for (int32_t dim : dims)
        for (int i = 0; i < 2; i++, n++) {
            const int32_t *h = heads[(n + i) % 4];
            const shape s = {lens,
                             dim <= 64         ? h[0]
                             : h[0] / h[1] > 2 ? 3
                                               : 2,
                             dim <= 64 ? h[1] : 1,
                             dim,
                             i == 0 ? 0 : windows[n % 4],
                             1 / sqrtf((float)dim),
                             n % 3 == 1 ? 3.0f : 0.0f,
                             0};
            worst = fmax(worst, check_values(s, dtype, dtype, k));
        }
    /* Small head dims, so that every window meets every soft cap, and the rest of the contract. */
    for (int32_t window : windows)
        for (float softcap : {0.0f, 2.0f}) {
            shape s = {lens, 2, 1, 32, window, 0.3f, softcap, 0};
            worst = fmax(worst, check_values(s, dtype, dtype, k));
        }
    const shape odd = {lens, 2, 1, 40, 0, 0.3f, 0, 3};
    worst = fmax(worst, check_values(odd, dtype, dtype, k));
    /* No difference between keys, and keys preferred by their negative score. */
    for (float scale : {0.0f, -0.5f}) {
        const shape s = {{70, 3}, 2, 2, 16, 0, scale, 0, 0};
        worst = fmax(worst, check_values(s, dtype, dtype, k));
    }
    if (dtype == TD_F32)
        for (td_dtype out : {TD_BF16, TD_F16}) {
            const shape s = {{70, 3}, 2, 2, 20, 0, 0.3f, 0, 0};
            worst = fmax(worst, check_values(s, dtype, out, k));
        }
    for (int32_t dim : {16, 96, 128, 256})
        for (int32_t window : {0, 40}) {
            shape s = {{}, 2, 1, dim, window, 1 / sqrtf((float)dim), 0, 0};
            check_bits(s, dtype, k);
            check_poison(s, dtype, k);
            s.scale *= 20; /* maxima that move far, from tile to tile */
            check_bits(s, dtype, k);
        }
    printf("%-4s %s: largest error %.2f of what is allowed\n", td_dtype_name(dtype),
           k == WMMA ? "wmma" : "    ", worst);
    fflush(stdout);
}

/* Causal attention's useful work: 4 D per visible pair and head. */
void bench_one(const char *what, const std::vector<int32_t> &lens, int32_t n_heads,
               int32_t n_kv_heads, int32_t dim, int32_t window, float softcap, td_dtype dtype,
               kernel k) {
    const shape s = {lens, n_heads, n_kv_heads, dim, window, 1 / sqrtf((float)dim), softcap, 0};
    const batch b = make(s, dtype);
    device_batch d = upload(b, dtype);
    cudaStream_t stream;
    cudaEvent_t from, to;
    must(cudaStreamCreate(&stream), "cudaStreamCreate");
    must(cudaEventCreate(&from), "cudaEventCreate");
    must(cudaEventCreate(&to), "cudaEventCreate");
    double pairs = 0, best_s = 1e30;
    for (int32_t len : lens)
        for (int32_t i = 0; i < len; i++)
            pairs += window > 0 && i >= window ? window : i + 1;
    for (int i = 0; i < 8; i++) {
        float ms;
        must(cudaEventRecord(from, stream), "cudaEventRecord");
        for (int j = 0; j < 4; j++)
            must(k == WMMA ? td_gpu_attention_wmma(&d.a, &chip, stream)
                           : td_gpu_attention(&d.a, &chip, stream),
                 "launch");
        must(cudaEventRecord(to, stream), "cudaEventRecord");
        must(cudaEventSynchronize(to), "attention");
        must(cudaEventElapsedTime(&ms, from, to), "cudaEventElapsedTime");
        best_s = fmin(best_s, (double)ms / 4e3);
    }
    printf("%-4s %-4s %-22s H %d/%d D %3d: %8.1f us, %6.1f TFLOP/s\n", td_dtype_name(dtype),
           k == WMMA ? "wmma" : "", what, n_heads, n_kv_heads, dim, best_s * 1e6,
           4.0 * dim * pairs * n_heads / best_s / 1e12);
    fflush(stdout);
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    cudaStreamDestroy(stream);
    release(d);
}

void bench() {
    const td_dtype narrow = chip.compute_capability >= 80 ? TD_BF16 : TD_F16;
    std::vector<int32_t> ragged;
    for (int32_t i = 0, total = 0; total < 8192; i++, total += ragged.back())
        ragged.push_back(40 + i * 397 % 700);
    bench_one("1 x 8192", {8192}, 32, 8, 128, 0, 0, narrow, CHOOSER);
    bench_one("4 x 2048", {2048, 2048, 2048, 2048}, 32, 8, 128, 0, 0, narrow, CHOOSER);
    bench_one("16 x 512", std::vector<int32_t>(16, 512), 32, 8, 128, 0, 0, narrow, CHOOSER);
    bench_one("ragged 40..740", ragged, 32, 8, 128, 0, 0, narrow, CHOOSER);
    bench_one("1 x 8192 window 1024", {8192}, 32, 8, 128, 1024, 0, narrow, CHOOSER);
    bench_one("1 x 8192 softcap", {8192}, 32, 8, 128, 0, 50, narrow, CHOOSER);
    bench_one("1 x 8192", {8192}, 32, 8, 64, 0, 0, narrow, CHOOSER);
    bench_one("1 x 8192", {8192}, 32, 8, 96, 0, 0, narrow, CHOOSER);
    bench_one("1 x 8192", {8192}, 16, 8, 256, 0, 0, narrow, CHOOSER);
    bench_one("4 x 2048", {2048, 2048, 2048, 2048}, 32, 8, 128, 0, 0, TD_F16, WMMA);
    bench_one("4 x 2048", {2048, 2048, 2048, 2048}, 32, 8, 128, 0, 0, TD_F32, CHOOSER);
    bench_one("4 x 2048", {2048, 2048, 2048, 2048}, 32, 8, 64, 0, 0, TD_F32, CHOOSER);
}
} // namespace

int main(int argc, char **argv) {
    int n_devices = 0, major, minor;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("SKIPPED: no CUDA device\n");
        return 77;
    }
    must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "attribute");
    must(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "attribute");
    must(cudaDeviceGetAttribute(&chip.n_multiprocessors, cudaDevAttrMultiProcessorCount, 0),
         "attribute");
    must(cudaDeviceGetAttribute(&chip.max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
         "attribute");
    chip.compute_capability = major * 10 + minor;
    printf("compute capability %d, %d bytes of shared memory\n", chip.compute_capability,
           chip.max_shared_bytes);
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        bench();
        return 0;
    }
    check_all(TD_F32, CHOOSER);
    if (chip.compute_capability >= 80)
        check_all(TD_BF16, CHOOSER);
    if (chip.compute_capability >= 75)
        check_all(TD_F16, CHOOSER);
    if (chip.max_shared_bytes >= 96 * 1024) /* what sm_70 has: not sm_75 */
        check_all(TD_F16, WMMA);
    printf(n_failures == 0 ? "ok\n" : "%d failures\n", n_failures);
    return n_failures != 0;
}
