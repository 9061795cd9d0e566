/* launch.cuh - what every kernel file includes first: the compiler's dialect and the launch seam.
 *
 * A kernel file compiles three ways:
 *   nvcc          the real thing
 *   NVRTC         device code only: everything behind #ifndef __CUDACC_RTC__ is left out
 *   g++           on the CUDA-on-CPU layer of test/pretend, which has headers of the same names
 *
 * So a kernel file uses no <<<>>>, no `extern __shared__` and no inline PTX of its own: launches go
 * through TD_LAUNCH, dynamic shared memory through TD_DYNAMIC_SHARED, PTX lives in ptx.cuh.
 */
#ifndef TDGEN_GPU_LAUNCH_CUH
#define TDGEN_GPU_LAUNCH_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#ifndef __CUDACC_RTC__
#include <cuda_runtime.h>
#endif
#include "device/device.h"

/* TD_DYNAMIC_SHARED(float, name): name is the block's dynamic shared memory, 128-byte aligned.
 * TD_LAUNCH(kernel, grid, block, shared_bytes, stream, args...): enqueues and gives a cudaError_t;
 * a kernel with commas in its template arguments is put in parentheses. Above 48 KiB of dynamic
 * shared memory the kernel's limit is raised first (per device, as CUDA keeps it). */
#ifdef TD_PRETEND_CUDA
#include <pretend_launch.h>
#else
#define TD_DYNAMIC_SHARED(type, name)                                                              \
    extern __shared__ __align__(128) unsigned char td_dynamic_shared[];                            \
    type *name = reinterpret_cast<type *>(td_dynamic_shared)
#ifndef __CUDACC_RTC__
template <class... P, class... A>
static inline cudaError_t td_launch(void (*kernel)(P...), dim3 grid, dim3 block,
                                    size_t shared_bytes, cudaStream_t stream, A... args) {
    if (shared_bytes > 48 * 1024) {
        cudaError_t rc =
            cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
        if (rc != cudaSuccess)
            return rc;
    }
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(args)...);
    return cudaGetLastError();
}
#define TD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                  \
    td_launch(kernel, dim3(grid), dim3(block), shared_bytes, stream, __VA_ARGS__)
#endif
#endif

#endif
