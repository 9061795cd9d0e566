/* attention.cu - picks the attention kernel for a dtype and a chip. The choice depends on nothing
 * else, so that all batches of a run on one chip are computed alike. */
#include "gpu/launch.cuh"

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

cudaError_t td_gpu_attention(const td_attention_args *a, const td_gpu_chip *chip,
                             cudaStream_t stream) {
    const int32_t cc = chip->compute_capability;
    switch (a->in_dtype) {
    case TD_F32:
        return td_gpu_attention_f32(a, chip, stream);
    case TD_BF16:
        return cc >= 80 ? td_gpu_attention_mma(a, chip, stream) : cudaErrorNotSupported;
    case TD_F16:
        if (cc >= 75)
            return td_gpu_attention_mma(a, chip, stream);
        return cc >= 70 ? td_gpu_attention_wmma(a, chip, stream) : cudaErrorNotSupported;
    default:
        return cudaErrorInvalidValue;
    }
}
#endif
