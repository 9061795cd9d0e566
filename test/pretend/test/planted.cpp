/* planted.cpp - kernels with a bug each, beside the same kernel without it: the layer finds the one
 * and lets the other pass. */
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "check.h"
#include "gpu/ptx.cuh"
#include "pretend.h"

namespace {

enum { SEEDS = 12 };

/* Each thread writes its place and reads another's. */
template <bool RIGHT> __global__ void reversed(int *out) {
    TD_DYNAMIC_SHARED(int, tile);
    tile[threadIdx.x] = threadIdx.x;
    if (RIGHT)
        __syncthreads();
    out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
/* The second round overwrites what slow warps still read of the first. */
template <bool RIGHT> __global__ void two_rounds(int *out) {
    TD_DYNAMIC_SHARED(int, tile);
    int sum = 0;
    for (int round = 0; round < 2; round++) {
        tile[threadIdx.x] = threadIdx.x;
        __syncthreads();
        sum += tile[(threadIdx.x + 32) % blockDim.x];
        if (RIGHT)
            __syncthreads();
        tile[threadIdx.x] = 1000000;
        __syncthreads();
    }
    out[threadIdx.x] = sum / 2 == (int)(threadIdx.x + 32) % (int)blockDim.x
                           ? (int)(blockDim.x - 1 - threadIdx.x)
                           : -1;
}
template <bool RIGHT> __global__ void across_lanes(int *out) {
    TD_DYNAMIC_SHARED(int, tile);
    const int lane = threadIdx.x & 31, base = threadIdx.x & ~31;
    tile[threadIdx.x] = threadIdx.x;
    if (RIGHT)
        __syncwarp();
    out[threadIdx.x] = (int)blockDim.x - 1 - tile[base + 31 - lane] + 31 - 2 * lane;
}
/* cp.async into a buffer that is read without a wait, or refilled while it is read. */
template <bool WAITS, bool KEEPS> __global__ void staged(const int *in, int *out) {
    TD_DYNAMIC_SHARED(int, tile);
    const int at = threadIdx.x * 4;
    td_cp_async_16(tile + at, in + at, true);
    td_cp_async_commit();
    if (WAITS)
        td_cp_async_wait<0>();
    __syncthreads();
    if (!KEEPS)
        td_cp_async_16(tile + at, in, false);
    const int x = tile[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = x;
}

__global__ void two_barriers() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void barrier_and_shuffle() {
    if (threadIdx.x == 3)
        __syncthreads();
    else
        (void)__shfl_sync(0xffffffffu, 1, 0);
}
__global__ void two_collectives() {
    if (threadIdx.x & 1)
        (void)__ballot_sync(0xffffffffu, 1);
    else
        (void)__any_sync(0xffffffffu, 1);
}
__global__ void two_masks() {
    (void)__ballot_sync(threadIdx.x == 7 ? 0xff80u : 0xffffu, 1);
}
__global__ void not_in_its_mask() {
    (void)__shfl_sync(0x00ffffffu, 1, 0);
}
__global__ void traps() {
    if (blockIdx.x == 2 && threadIdx.x == 5)
        __trap();
}
__global__ void needs_80(float *out) {
    uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    float d[4] = {0, 0, 0, 0};
    td_mma_16816(d, a, b, __nv_bfloat16());
    out[threadIdx.x] = d[0];
}
__global__ void early_ends(int *out) {
    if (threadIdx.x >= 40)
        return; /* allowed: those that have ended count as there */
    __syncthreads();
    out[threadIdx.x] = __reduce_add_sync(0xffffffffu, 1);
}
__global__ void reads_shared(float *out) {
    TD_DYNAMIC_SHARED(float, tile);
    out[blockIdx.x * blockDim.x + threadIdx.x] = tile[threadIdx.x];
    tile[threadIdx.x] = 1.0f;
}
__global__ void reads_beyond(const float *in, float *out, int n) {
    TD_DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x + n] = in[threadIdx.x];
    out[threadIdx.x] = tile[threadIdx.x + n];
}

typedef cudaError_t (*launcher)(int *out);
/* In how many seeds out[i] == n - 1 - i failed for some i. */
int wrong_seeds(launcher launch) {
    const int n = 256;
    int wrong = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        pretend_set_seed(seed);
        device_array<int> out(n);
        std::vector<int> got(n);
        MUST(launch(out.data));
        MUST(cudaStreamSynchronize(nullptr));
        out.get(got.data());
        bool bad = false;
        for (int i = 0; i < n; i++)
            bad |= got[(size_t)i] != n - 1 - i;
        wrong += bad;
    }
    pretend_set_seed(1);
    return wrong;
}

/* The kernel ends with `error` and a report that contains `text`. */
void check_report(const char *name, cudaError_t launched, cudaError_t error, const char *text) {
    MUST(launched);
    const cudaError_t rc = cudaStreamSynchronize(nullptr);
    CHECK(rc == error, "%s: %s", name, cudaGetErrorName(rc));
    CHECK(strstr(pretend_last_report(), text), "%s: '%s' lacks '%s'", name, pretend_last_report(),
          text);
    /* Sticky: everything fails from here on, on other devices too. */
    void *p;
    CHECK(cudaMalloc(&p, 16) == error, "%s is not sticky", name);
    CHECK(cudaSetDevice(1) == error, "%s does not poison the process", name);
    CHECK(cudaGetLastError() == error && cudaGetLastError() == error, "%s: last error", name);
    pretend_forgive();
}

const int *g_source;

} // namespace

void test_planted_barriers() {
    CHECK(wrong_seeds([](int *o) { return TD_LAUNCH(reversed<true>, 1, 256, 1024, nullptr, o); }) ==
              0,
          "a right kernel fails");
    CHECK(wrong_seeds(
              [](int *o) { return TD_LAUNCH(reversed<false>, 1, 256, 1024, nullptr, o); }) == SEEDS,
          "a missing barrier hides");
    CHECK(wrong_seeds(
              [](int *o) { return TD_LAUNCH(two_rounds<true>, 1, 256, 1024, nullptr, o); }) == 0,
          "a right kernel fails");
    CHECK(wrong_seeds([](int *o) {
              return TD_LAUNCH(two_rounds<false>, 1, 256, 1024, nullptr, o);
          }) == SEEDS,
          "a missing second barrier hides");
    CHECK(wrong_seeds(
              [](int *o) { return TD_LAUNCH(across_lanes<true>, 1, 256, 1024, nullptr, o); }) == 0,
          "a right kernel fails");
    CHECK(wrong_seeds([](int *o) {
              return TD_LAUNCH(across_lanes<false>, 1, 256, 1024, nullptr, o);
          }) == SEEDS,
          "a missing __syncwarp hides");

    device_array<int> source(1024);
    std::vector<int> h(1024);
    for (int i = 0; i < 1024; i++)
        h[(size_t)i] = i;
    source.put(h.data());
    g_source = source.data;
    CHECK(wrong_seeds([](int *o) {
              return TD_LAUNCH((staged<true, true>), 1, 256, 4096, nullptr, g_source, o);
          }) == 0,
          "a right kernel fails");
    CHECK(wrong_seeds([](int *o) {
              return TD_LAUNCH((staged<false, true>), 1, 256, 4096, nullptr, g_source, o);
          }) == SEEDS,
          "a missing wait hides");
    CHECK(wrong_seeds([](int *o) {
              return TD_LAUNCH((staged<true, false>), 1, 256, 4096, nullptr, g_source, o);
          }) == SEEDS,
          "a buffer refilled too early hides");

    const cudaError_t failure = cudaErrorLaunchFailure;
    check_report("two barriers", pretend_launch("two_barriers", two_barriers, 1, 64, 0, nullptr),
                 failure, "different barriers");
    check_report("lost lane",
                 pretend_launch("barrier_and_shuffle", barrier_and_shuffle, 1, 32, 0, nullptr),
                 failure, "never come");
    check_report("two collectives",
                 pretend_launch("two_collectives", two_collectives, 1, 32, 0, nullptr), failure,
                 "different collectives");
    check_report("two masks", pretend_launch("two_masks", two_masks, 1, 16, 0, nullptr), failure,
                 "different collectives");
    check_report("outside its mask",
                 pretend_launch("not_in_its_mask", not_in_its_mask, 1, 32, 0, nullptr), failure,
                 "leaves the lane out");
    check_report("trap", pretend_launch("traps", traps, 4, 64, 0, nullptr), failure,
                 "block (2,0,0), thread (5,0,0)");

    device_array<int> out(64);
    std::vector<int> got(64);
    MUST(TD_LAUNCH(early_ends, 1, 64, 0, nullptr, out.data));
    MUST(cudaStreamSynchronize(nullptr));
    out.get(got.data());
    for (int i = 0; i < 40; i++)
        CHECK(got[(size_t)i] == (i < 32 ? 32 : 8), "lanes that have ended: %d", got[(size_t)i]);

    MUST(cudaSetDevice(2)); /* sm_70 */
    {
        device_array<float> f(32);
        MUST(TD_LAUNCH(needs_80, 1, 32, 0, nullptr, f.data));
        CHECK(cudaStreamSynchronize(nullptr) == failure, "bf16 mma on sm_70");
        CHECK(strstr(pretend_last_report(), "needs sm_80"), "%s", pretend_last_report());
        pretend_forgive();
    }
    MUST(cudaSetDevice(0));
}

void test_planted_memory() {
    device_array<float> small(1000), large(5 << 20), out(512);
    std::vector<float> h(small.n), hl(large.n), ho(out.n);
    small.get(h.data());
    large.get(hl.data());
    for (float x : h)
        CHECK(isnan(x), "fresh memory holds %g", (double)x);
    size_t n_numbers = 0;
    for (float x : hl)
        n_numbers += !isnan(x);
    CHECK(n_numbers == 0, "fresh large memory holds %zu numbers", n_numbers);
    MUST(TD_LAUNCH(reads_shared, 2, 256, 1024, nullptr, out.data));
    MUST(cudaStreamSynchronize(nullptr));
    out.get(ho.data());
    for (float x : ho)
        CHECK(isnan(x), "shared memory of a fresh block holds %g", (double)x);
}

int run_planted(const char *which) {
    if (!strcmp(which, "race"))
        return run_race();
    device_array<float> in(32), out(32);
    MUST(cudaMemset(in.data, 0, 128));
    const bool shared = !strcmp(which, "shared"), none = !strcmp(which, "none");
    MUST(TD_LAUNCH(reads_beyond, 1, 32, 256, nullptr, in.data + (shared || none ? 0 : 1), out.data,
                   shared ? 33 : 32));
    return cudaStreamSynchronize(nullptr) != cudaSuccess;
}

/* The child's words are read here and not shown: CTest looks for the sanitizers' banners. */
void test_under_sanitizers(const char *program) {
    struct {
        const char *which, *banner;
    } cases[] = {
        {"none", nullptr},
#if defined(__SANITIZE_ADDRESS__)
        {"shared", "heap-buffer-overflow"},
        {"global", "heap-buffer-overflow"},
#endif
#if defined(__SANITIZE_THREAD__)
        {"race", "data race"},
#endif
    };
    for (const auto &c : cases) {
        int ends[2];
        if (pipe(ends))
            exit(1);
        const pid_t child = fork();
        if (!child) {
            dup2(ends[1], 1);
            dup2(ends[1], 2);
            close(ends[0]);
            close(ends[1]);
            execl(program, program, "planted", c.which, (char *)nullptr);
            _exit(127);
        }
        close(ends[1]);
        std::string said;
        char buffer[4096];
        for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
            said.append(buffer, (size_t)n);
        close(ends[0]);
        int status;
        waitpid(child, &status, 0);
        const bool fine = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (!c.banner)
            CHECK(fine, "nothing is wrong, yet: %.500s", said.c_str());
        else
            CHECK(!fine && said.find(c.banner) != std::string::npos, "'%s' hides: %.500s", c.which,
                  said.c_str());
    }
}
