/* runtime.cpp - streams, events, copies, errors and planned failures, and cuBLASLt's products. */
#include <math.h>
#include <unistd.h>

#include <vector>

#include "check.h"
#include "cublasLt.h"
#include "gpu/launch.cuh"
#include "pretend.h"

namespace {

__global__ void fill(int *out, int n, int value) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        out[i] = value;
}
__global__ void copy_plus(int *out, const int *in, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        out[i] = in[i] + 1;
}

/* Writes in one stream, reads in another. How many of the rounds went wrong? */
int wrong_rounds(bool waits) {
    const int n = 4096, n_rounds = 60;
    test_stream first, second;
    device_array<int> a(n), b(n);
    std::vector<int> got(n);
    cudaEvent_t written, read;
    MUST(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
    MUST(cudaEventCreateWithFlags(&read, cudaEventDisableTiming));
    int wrong = 0;
    for (int round = 0; round < n_rounds; round++) {
        MUST(TD_LAUNCH(fill, 4, 128, 0, first.s, a.data, n, round));
        if (waits) {
            MUST(cudaEventRecord(written, first.s));
            MUST(cudaStreamWaitEvent(second.s, written, 0));
        }
        MUST(TD_LAUNCH(copy_plus, 4, 128, 0, second.s, b.data, a.data, n));
        if (waits) {
            MUST(cudaEventRecord(read, second.s));
            MUST(cudaStreamWaitEvent(first.s, read, 0));
        }
        MUST(cudaMemcpyAsync(got.data(), b.data, (size_t)n * 4, cudaMemcpyDeviceToHost, second.s));
        MUST(cudaStreamSynchronize(second.s));
        bool bad = false;
        for (int x : got)
            bad |= x != round + 1;
        wrong += bad;
    }
    MUST(cudaStreamSynchronize(first.s));
    MUST(cudaEventDestroy(written));
    MUST(cudaEventDestroy(read));
    return wrong;
}

void jitter(const char *on) {
    setenv("TDGEN_PRETEND_JITTER", on, 1);
    pretend_reload();
}

/* ThreadSanitizer would report what is planted here, and is right. */
#if defined(__SANITIZE_THREAD__)
const bool RACES_ALLOWED = false;
#else
const bool RACES_ALLOWED = true;
#endif

cublasStatus_t product(cublasLtHandle_t lt, int m, int n, int k, cudaDataType_t type,
                       cudaDataType_t out_type, const void *w, const void *x, void *out,
                       const float *bias, uint32_t reductions, bool *split) {
    /* out[n rows, m] = x [n, k] w[m, k]^T, all row-major: column-major out = w^T x. */
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t la, lb, lc;
    cublasLtMatmulPreference_t wish;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, 4);
    if (bias) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        const cudaDataType_t f32 = CUDA_R_32F;
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, 4);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, 8);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &f32, 4);
    }
    cublasLtMatrixLayoutCreate(&la, type, (uint64_t)k, (uint64_t)m, k);
    cublasLtMatrixLayoutCreate(&lb, type, (uint64_t)k, (uint64_t)n, k);
    cublasLtMatrixLayoutCreate(&lc, out_type, (uint64_t)m, (uint64_t)n, m);
    cublasLtMatmulPreferenceCreate(&wish);
    const uint64_t workspace_bytes = 1 << 20;
    cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &workspace_bytes, 8);
    cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                         &reductions, 4);
    cublasLtMatmulHeuristicResult_t found[4];
    int n_found = 0;
    cublasStatus_t rc =
        cublasLtMatmulAlgoGetHeuristic(lt, op, la, lb, lc, lc, wish, 4, found, &n_found);
    if (rc == CUBLAS_STATUS_SUCCESS) {
        uint32_t splits = 0;
        cublasLtMatmulAlgoConfigGetAttribute(&found[0].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                             &splits, 4, nullptr);
        *split = splits > 1;
        const float one = 1.0f, zero = 0.0f;
        device_array<char> workspace(workspace_bytes);
        rc = cublasLtMatmul(lt, op, &one, w, la, x, lb, &zero, out, lc, out, lc, &found[0].algo,
                            workspace.data, workspace_bytes, nullptr);
        MUST(cudaStreamSynchronize(nullptr));
    }
    cublasLtMatmulPreferenceDestroy(wish);
    cublasLtMatrixLayoutDestroy(la);
    cublasLtMatrixLayoutDestroy(lb);
    cublasLtMatrixLayoutDestroy(lc);
    cublasLtMatmulDescDestroy(op);
    return rc;
}

} // namespace

int run_race() {
    jitter("1");
    (void)wrong_rounds(false);
    return 0;
}

void test_streams() {
    jitter("1");
    CHECK(wrong_rounds(true) == 0, "ordered streams are out of order");
    if (RACES_ALLOWED) {
        CHECK(wrong_rounds(false) > 0, "a missing wait hides");
    }
    /* Pageable sources are taken at the call, pinned ones later. */
    const int n = 1000;
    test_stream s;
    device_array<int> a(n);
    int *pinned;
    MUST(cudaMallocHost(&pinned, n * 4));
    std::vector<int> pageable(n), got(n);
    int late = 0, early = 0;
    for (int round = 0; round < 40; round++) {
        for (int i = 0; i < n; i++)
            pageable[(size_t)i] = round;
        MUST(cudaMemcpyAsync(a.data, pageable.data(), n * 4, cudaMemcpyHostToDevice, s.s));
        pageable.assign(n, -1);
        MUST(cudaMemcpyAsync(got.data(), a.data, n * 4, cudaMemcpyDeviceToHost, s.s));
        for (int x : got) /* into pageable memory: the call has waited */
            early += x != round;
        if (!RACES_ALLOWED)
            continue;
        for (int i = 0; i < n; i++)
            pinned[i] = round;
        MUST(cudaMemcpyAsync(a.data, pinned, n * 4, cudaMemcpyHostToDevice, s.s));
        for (int i = 0; i < n; i++)
            pinned[i] = -1;
        MUST(cudaMemcpyAsync(got.data(), a.data, n * 4, cudaMemcpyDeviceToHost, s.s));
        for (int x : got)
            late += x != round;
    }
    CHECK(early == 0, "a pageable source was read after the call");
    CHECK(late > 0 || !RACES_ALLOWED, "a pinned source was never read after the call");
    MUST(cudaFreeHost(pinned));

    cudaEvent_t from, to;
    float ms = -1;
    MUST(cudaEventCreate(&from));
    MUST(cudaEventCreate(&to));
    CHECK(cudaEventQuery(from) == cudaSuccess, "an event that was never recorded is complete");
    MUST(cudaEventRecord(from, s.s));
    MUST(cudaLaunchHostFunc(
        s.s, [](void *) { usleep(3000); }, nullptr));
    MUST(cudaEventRecord(to, s.s));
    CHECK(cudaEventQuery(to) == cudaErrorNotReady, "too early");
    CHECK(cudaStreamQuery(s.s) == cudaErrorNotReady, "too early");
    MUST(cudaEventSynchronize(to));
    MUST(cudaEventElapsedTime(&ms, from, to));
    CHECK(ms >= 2.9f && ms < 1000, "%g ms", (double)ms);
    MUST(cudaEventDestroy(from));
    MUST(cudaEventDestroy(to));
    jitter("0");
}

void test_products() {
    const int m = 37, n = 9, k = 131;
    cublasLtHandle_t lt;
    CHECK(cublasLtCreate(&lt) == CUBLAS_STATUS_SUCCESS, "cublasLtCreate");
    device_array<__nv_bfloat16> w((size_t)(m * k)), x((size_t)(n * k));
    device_array<float> out((size_t)(m * n)), one((size_t)m), bias((size_t)m);
    std::vector<__nv_bfloat16> hw(w.n), hx(x.n);
    std::vector<float> hb(bias.n), got(out.n), row(one.n);
    uint32_t r = 12345;
    const auto draw = [&r] {
        return (float)((r = r * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
    };
    for (auto &v : hw)
        v = __nv_bfloat16(draw());
    for (auto &v : hx)
        v = __nv_bfloat16(draw());
    for (auto &v : hb)
        v = draw();
    w.put(hw.data());
    x.put(hx.data());
    bias.put(hb.data());
    bool split;
    CHECK(product(lt, m, n, k, CUDA_R_16BF, CUDA_R_32F, w.data, x.data, out.data, bias.data,
                  CUBLASLT_REDUCTION_SCHEME_NONE, &split) == CUBLAS_STATUS_SUCCESS,
          "a product");
    CHECK(!split, "split-K where reductions are forbidden");
    out.get(got.data());
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            double sum = hb[(size_t)j];
            for (int q = 0; q < k; q++)
                sum +=
                    (double)(float)hx[(size_t)(i * k + q)] * (double)(float)hw[(size_t)(j * k + q)];
            CHECK(fabs(sum - (double)got[(size_t)(i * m + j)]) < 1e-4, "product [%d, %d]", i, j);
        }
    int other_bits = 0;
    for (int i = 0; i < n; i++) {
        CHECK(product(lt, m, 1, k, CUDA_R_16BF, CUDA_R_32F, w.data, x.data + i * k, one.data,
                      bias.data, CUBLASLT_REDUCTION_SCHEME_NONE, &split) == CUBLAS_STATUS_SUCCESS,
              "a product");
        one.get(row.data());
        CHECK(!memcmp(row.data(), &got[(size_t)(i * m)], (size_t)m * 4),
              "row %d alone has other bits", i);
    }
    CHECK(product(lt, m, n, k, CUDA_R_16BF, CUDA_R_32F, w.data, x.data, out.data, bias.data,
                  CUBLASLT_REDUCTION_SCHEME_MASK, &split) == CUBLAS_STATUS_SUCCESS &&
              split,
          "split-K comes first where it is allowed");
    out.get(got.data());
    CHECK(product(lt, m, 1, k, CUDA_R_16BF, CUDA_R_32F, w.data, x.data, one.data, bias.data,
                  CUBLASLT_REDUCTION_SCHEME_MASK, &split) == CUBLAS_STATUS_SUCCESS,
          "a product");
    one.get(row.data());
    for (int j = 0; j < m; j++)
        other_bits += row[(size_t)j] != got[(size_t)j];
    CHECK(other_bits > 0, "split-K keeps a row's bits: nobody would notice it");
    MUST(cudaSetDevice(2));
    CHECK(product(lt, m, n, k, CUDA_R_16BF, CUDA_R_32F, w.data, x.data, out.data, nullptr, 0,
                  &split) == CUBLAS_STATUS_NOT_SUPPORTED,
          "bf16 on sm_70");
    MUST(cudaSetDevice(0));
    CHECK(cublasLtDestroy(lt) == CUBLAS_STATUS_SUCCESS, "cublasLtDestroy");
}

void test_runtime_errors() {
    int n = 0;
    MUST(cudaGetDeviceCount(&n));
    CHECK(n == 3, "%d devices", n);
    cudaDeviceProp a, b;
    MUST(cudaGetDeviceProperties(&a, 0));
    MUST(cudaGetDeviceProperties(&b, 1));
    CHECK(!strcmp(a.name, "Pretend H100") && a.major == 9 && a.multiProcessorCount == 132 &&
              a.sharedMemPerBlockOptin == 232448,
          "properties");
    CHECK(memcmp(&a.uuid, &b.uuid, 16) && a.pciBusID != b.pciBusID, "two devices are the same");

    /* Memory is counted. */
    size_t free_before, free_after, total;
    const size_t held = pretend_live_allocations(nullptr);
    MUST(cudaMemGetInfo(&free_before, &total));
    CHECK(total == 512u << 20, "%zu bytes", total);
    void *p;
    MUST(cudaMalloc(&p, 100 << 20));
    MUST(cudaMemGetInfo(&free_after, &total));
    CHECK(free_before - free_after == 100 << 20, "memory is not counted");
    void *q;
    CHECK(cudaMalloc(&q, 500 << 20) == cudaErrorMemoryAllocation, "more than there is");
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess,
          "the last error is kept once");
    MUST(cudaFree(p));
    CHECK(pretend_live_allocations(nullptr) == held, "cudaFree");

    /* Launches over the limits; other devices' streams. */
    device_array<int> ints(1024);
    CHECK(TD_LAUNCH(fill, 1, 1025, 0, nullptr, ints.data, 1, 1) == cudaErrorInvalidConfiguration,
          "block");
    CHECK(TD_LAUNCH(fill, 0, 32, 0, nullptr, ints.data, 1, 1) == cudaErrorInvalidConfiguration,
          "grid");
    CHECK(TD_LAUNCH(fill, 1, 32, 232449, nullptr, ints.data, 1, 1) == cudaErrorInvalidValue,
          "shared memory");
    MUST(TD_LAUNCH(fill, 1, 32, 232448, nullptr, ints.data, 1, 1));
    MUST(cudaSetDevice(1));
    test_stream other;
    void *there;
    MUST(cudaMalloc(&there, 64));
    MUST(cudaSetDevice(0));
    CHECK(TD_LAUNCH(fill, 1, 32, 0, other.s, ints.data, 1, 1) == cudaErrorInvalidResourceHandle,
          "another device's stream");

    /* Copies. */
    std::vector<int> host(1025);
    CHECK(cudaMemcpy(host.data(), ints.data, 1025 * 4, cudaMemcpyDeviceToHost) ==
              cudaErrorInvalidValue,
          "a copy beyond the allocation");
    CHECK(cudaMemcpy(host.data(), ints.data, 4, cudaMemcpyHostToDevice) == cudaErrorInvalidValue,
          "a copy the wrong way");
    CHECK(cudaMemcpy(ints.data, there, 64, cudaMemcpyDeviceToDevice) ==
              cudaErrorPeerAccessNotEnabled,
          "a copy between devices");
    MUST(cudaMemcpyPeer(ints.data, 0, there, 1, 64));
    CHECK(cudaMemcpyPeer(ints.data, 1, there, 0, 64) != cudaSuccess, "the wrong devices");
    MUST(cudaDeviceEnablePeerAccess(1, 0));
    CHECK(cudaDeviceEnablePeerAccess(1, 0) == cudaErrorPeerAccessAlreadyEnabled, "twice");
    MUST(cudaMemcpy(ints.data, there, 64, cudaMemcpyDeviceToDevice));
    (void)cudaGetLastError();
    MUST(cudaFree(there));

    /* Planned failures. */
    setenv("TDGEN_PRETEND_FAIL", "cudaMalloc 2;cudaStreamSynchronize 1", 1);
    pretend_reload();
    MUST(cudaMalloc(&p, 16));
    CHECK(cudaMalloc(&q, 16) == cudaErrorMemoryAllocation, "the second cudaMalloc");
    CHECK(cudaStreamSynchronize(nullptr) == cudaErrorUnknown, "the first synchronisation");
    MUST(cudaStreamSynchronize(nullptr));
    MUST(cudaFree(p));
    setenv("TDGEN_PRETEND_FAIL", "any 3", 1);
    pretend_reload();
    MUST(cudaStreamSynchronize(nullptr));
    MUST(cudaGetDevice(&n));
    CHECK(cudaGetDevice(&n) == cudaErrorUnknown, "the third call");
    unsetenv("TDGEN_PRETEND_FAIL");
    setenv("TDGEN_PRETEND_FAULT",
           "0 oom_after 1000000;0 kernel fill 2 illegal_address;"
           "1 kernel * 1 hang",
           1);
    pretend_reload();
    CHECK(cudaMalloc(&p, 1000000) == cudaErrorMemoryAllocation, "oom_after");
    (void)cudaGetLastError();
    MUST(TD_LAUNCH(fill, 1, 32, 0, nullptr, ints.data, 1024, 5));
    MUST(TD_LAUNCH(copy_plus, 1, 32, 0, nullptr, ints.data, ints.data, 8));
    MUST(cudaStreamSynchronize(nullptr));
    (void)TD_LAUNCH(fill, 1, 32, 0, nullptr, ints.data, 1024, 7);
    CHECK(cudaStreamSynchronize(nullptr) == cudaErrorIllegalAddress, "the planned fault");
    CHECK(cudaMemcpy(host.data(), ints.data, 4, cudaMemcpyDeviceToHost) == cudaErrorIllegalAddress,
          "not sticky");
    CHECK(TD_LAUNCH(fill, 1, 32, 0, nullptr, ints.data, 1, 1) == cudaErrorIllegalAddress,
          "not sticky");
    pretend_forgive();
    MUST(cudaMemcpy(host.data(), ints.data, 4096, cudaMemcpyDeviceToHost));
    CHECK(host[0] == 6 && host[1023] == 5, "the faulty kernel ran all the same");

    MUST(cudaSetDevice(1));
    cudaEvent_t never;
    MUST(cudaEventCreate(&never));
    MUST(TD_LAUNCH(fill, 1, 32, 0, other.s, ints.data, 1, 1));
    MUST(cudaEventRecord(never, other.s));
    usleep(20000);
    CHECK(cudaEventQuery(never) == cudaErrorNotReady, "it does not hang");
    MUST(cudaSetDevice(0));
    unsetenv("TDGEN_PRETEND_FAULT");
}
