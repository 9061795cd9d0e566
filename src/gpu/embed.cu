/* embed.cu - rows of the embedding table as f32: one block per token. */
#include "gpu/common.cuh"

template <class T> __global__ void __launch_bounds__(256) td_embed_kernel(td_embed_args a) {
    const int64_t t = blockIdx.x;
    const T *row = static_cast<const T *>(a.table) + (int64_t)a.ids[t] * a.n_cols;
    float *out = a.out + t * a.n_cols;
    for (int i = threadIdx.x; i < a.n_cols; i += blockDim.x) {
        const float x = a.scale * td_type<T>::to_f32(row[i]);
        out[i] = a.accumulate ? out[i] + x : x;
    }
}

template __global__ void td_embed_kernel<float>(td_embed_args);
template __global__ void td_embed_kernel<__half>(td_embed_args);
template __global__ void td_embed_kernel<__nv_bfloat16>(td_embed_args);

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

cudaError_t td_gpu_embed(const td_embed_args *a, cudaStream_t stream) {
    const dim3 grid((unsigned)a->n_tokens), block(256);
    switch (a->table_dtype) {
    case TD_BF16:
        return TD_LAUNCH(td_embed_kernel<__nv_bfloat16>, grid, block, 0, stream, *a);
    case TD_F16:
        return TD_LAUNCH(td_embed_kernel<__half>, grid, block, 0, stream, *a);
    default:
        return TD_LAUNCH(td_embed_kernel<float>, grid, block, 0, stream, *a);
    }
}
#endif
