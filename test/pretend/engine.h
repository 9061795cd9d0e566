/* engine.h - inside the CUDA-on-CPU layer: what its files tell each other. */
#ifndef PRETEND_ENGINE_H
#define PRETEND_ENGINE_H

#include <stdint.h>

#include <functional>
#include <memory>
#include <string>

#include "cuda_runtime_api.h"
#include "pretend_launch.h"

#if defined(__SANITIZE_ADDRESS__)
#define PRETEND_ASAN 1
#else
#define PRETEND_ASAN 0
#endif

/* xorshift64*: the layer's only source of disorder. */
struct pretend_random {
    uint64_t state;
    explicit pretend_random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 0x1234567) {
        if (!state)
            state = 1;
        for (int i = 0; i < 4; i++)
            next();
    }
    uint32_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return (uint32_t)((state * 0x2545f4914f6cdd1du) >> 32);
    }
    uint32_t below(uint32_t n) {
        return (uint32_t)((uint64_t)next() * n >> 32);
    }
};

struct pretend_launch_info {
    pretend_kernel kernel;
    dim3 grid, block;
    size_t shared_bytes;
    int device, capability;
    uint64_t seed;
};
/* Runs a whole grid on the calling host thread. cudaSuccess, or the error of pretend_fault. */
cudaError_t pretend_run_grid(const pretend_launch_info &launch);

/* TDGEN_PRETEND_SEED, 1 when not set. */
uint64_t pretend_seed();
/* Prints "pretend: ..." to stderr and keeps the text for pretend_last_report. */
void pretend_report(const std::string &text);

/* --- runtime.cpp, for cublaslt.cpp ------------------------------------------------------------ */

/* Counts a call for TDGEN_PRETEND_FAIL. True: this call shall fail. */
bool pretend_shall_fail(const char *name);
/* The error that poisons the process, or cudaSuccess: first for the device that broke. */
cudaError_t pretend_sticky();
int pretend_device_capability(int device);
int pretend_current_device();
/* Enqueues work that counts as a launch of a kernel of this name. */
cudaError_t pretend_enqueue_work(const char *kernel_name, cudaStream_t stream,
                                 std::function<void()> work);

#endif
