/* kernels.h - the launchers of the CUDA kernels; the device table's operations are made of these.
 *
 * Each enqueues on `stream` of the calling thread's current device and returns the launch's error;
 * nothing blocks, nothing is allocated. Arguments are those of device/device.h, checked by
 * gpu_ops.c before they come here, with at least one row. Every kernel keeps the row contract: the
 * bits of a row depend on nothing but that row's inputs.
 */
#ifndef TDGEN_GPU_KERNELS_H
#define TDGEN_GPU_KERNELS_H

#include <cuda_runtime_api.h>
#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What launchers choose by. */
typedef struct td_gpu_chip {
    int32_t compute_capability; /* 80 for 8.0 */
    int32_t n_multiprocessors;
    int32_t max_shared_bytes; /* of a block, opted in */
} td_gpu_chip;

/* td_gpu_embed and so on: the operations by rows, each in a file of its name. */
#define TD_GPU_KERNEL_ROWS(name)                                                                   \
    cudaError_t td_gpu_##name(const td_##name##_args *a, cudaStream_t stream);
#define TD_GPU_KERNEL_WHOLE(name)
#define TD_GPU_KERNEL(name, NAME, n_rows, how) TD_GPU_KERNEL_##how(name)
TD_DEVICE_OPERATIONS(TD_GPU_KERNEL)
#undef TD_GPU_KERNEL
#undef TD_GPU_KERNEL_WHOLE
#undef TD_GPU_KERNEL_ROWS

/* out[m, n] (+)= scale * (in[m, n] + bias[n]) with in == out or not: the cases that cuBLASLt's
 * epilogues do not cover; in may be NULL for zeros. */
cudaError_t td_gpu_bias(float *out, const float *in, const float *bias, int32_t n_rows,
                        int64_t n_cols, float scale, bool accumulate, cudaStream_t stream);

/* Attention; picks by in_dtype and chip:
 *   f32            SIMT, f32 throughout                  attention_f32.cu
 *   16-bit, >= 75  mma m16n8k16, flash, online softmax   attention_mma.cu
 *   f16, sm_70     WMMA                                  attention_wmma.cu */
cudaError_t td_gpu_attention(const td_attention_args *a, const td_gpu_chip *chip,
                             cudaStream_t stream);
cudaError_t td_gpu_attention_f32(const td_attention_args *a, const td_gpu_chip *chip,
                                 cudaStream_t stream);
cudaError_t td_gpu_attention_mma(const td_attention_args *a, const td_gpu_chip *chip,
                                 cudaStream_t stream);
cudaError_t td_gpu_attention_wmma(const td_attention_args *a, const td_gpu_chip *chip,
                                  cudaStream_t stream);

/* Bytes of scratch that capture needs for any number of rows; may be 0. */
size_t td_gpu_capture_scratch_bytes(const td_capture_args *a, const td_gpu_chip *chip);
/* a->temperatures is a host array, read before the return. */
cudaError_t td_gpu_capture(const td_capture_args *a, const td_gpu_chip *chip, void *scratch,
                           cudaStream_t stream);

/* The experts' MLP behind the router's product, whose logits F32 [T, E] stand at the start of
 * a->scratch. gate_up and down: HOST arrays [n_experts] of device pointers to the row-major weights
 * in `compute`; read before the return. */
cudaError_t td_gpu_moe(const td_moe_args *a, td_dtype compute, const void *const *gate_up,
                       const void *const *down, const td_gpu_chip *chip, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
