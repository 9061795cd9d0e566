/* norm.cu - RMSNorm, LayerNorm and plain conversion: one block per vector, one warp for short ones.
 *
 * Each thread takes the elements threadIdx + i * blockDim of its vector and sums them in order,
 * then the warps' butterflies: the order depends on n_cols alone. The vector is read twice, the
 * second time from the caches. LayerNorm takes the variance from (x - mean), as the definition has
 * it. */
#include "gpu/common.cuh"

template <int THREADS> static __device__ __forceinline__ float td_norm_sum(float x, float *shared) {
    if (THREADS == 32)
        return td_warp_sum(x);
    return td_block_sum(x, shared);
}

template <class T, int THREADS>
__global__ void __launch_bounds__(256) td_norm_kernel(td_norm_args a) {
    __shared__ float shared[33];
    /* With one warp per vector a block holds blockDim / 32 of them. */
    const int per_block = blockDim.x / THREADS, lane = threadIdx.x % THREADS;
    const int64_t vector = (int64_t)blockIdx.x * per_block + threadIdx.x / THREADS;
    if (vector >= (int64_t)a.n_rows * a.n_inner)
        return; /* whole warps of the short variant only: its sums need no barrier */
    const int64_t row = vector / a.n_inner, inner = vector % a.n_inner;
    const int64_t from = a.row_index ? a.row_index[row] : row;
    const float *in = a.in + from * a.in_stride + inner * a.n_cols;
    T *out = static_cast<T *>(a.out) + row * a.out_stride + inner * a.n_cols;
    const int n = a.n_cols;
    float mean = 0, scale = 1;
    if (a.kind == TD_NORM_LAYER) {
        float sum = 0;
        for (int i = lane; i < n; i += THREADS)
            sum += in[i];
        mean = td_norm_sum<THREADS>(sum, shared) / (float)n;
    }
    if (a.kind != TD_NORM_NONE) {
        float sum = 0;
        for (int i = lane; i < n; i += THREADS) {
            const float x = in[i] - mean;
            sum = fmaf(x, x, sum);
        }
        scale = 1.0f / sqrtf(td_norm_sum<THREADS>(sum, shared) / (float)n + a.eps);
    }
    for (int i = lane; i < n; i += THREADS) {
        float y = in[i];
        if (a.kind != TD_NORM_NONE)
            y = (y - mean) * scale * a.weight[i];
        if (a.bias)
            y += a.bias[i];
        if (a.accumulate)
            y = td_type<T>::to_f32(out[i]) + a.scale * y;
        out[i] = td_type<T>::from_f32(y);
    }
}

/* The common case of a large model: RMSNorm of dense rows whose length is a multiple of 4 * 256,
 * kept in registers between the two passes, 16 bytes at a time. */
template <class T, int QUADS> __global__ void __launch_bounds__(256) td_rms_kernel(td_norm_args a) {
    __shared__ float shared[33];
    const int64_t row = blockIdx.x, from = a.row_index ? a.row_index[row] : row;
    const float4 *in = reinterpret_cast<const float4 *>(a.in + from * a.in_stride);
    const float4 *weight = reinterpret_cast<const float4 *>(a.weight);
    T *out = static_cast<T *>(a.out) + row * a.out_stride;
    float4 x[QUADS];
    float sum = 0;
#pragma unroll
    for (int q = 0; q < QUADS; q++)
        x[q] = in[q * 256 + threadIdx.x];
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        sum = fmaf(x[q].x, x[q].x, sum);
        sum = fmaf(x[q].y, x[q].y, sum);
        sum = fmaf(x[q].z, x[q].z, sum);
        sum = fmaf(x[q].w, x[q].w, sum);
    }
    const float scale = 1.0f / sqrtf(td_block_sum(sum, shared) / (float)a.n_cols + a.eps);
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int i = q * 256 + threadIdx.x;
        const float4 w = weight[i];
        const float y[4] = {x[q].x * scale * w.x, x[q].y * scale * w.y, x[q].z * scale * w.z,
                            x[q].w * scale * w.w};
        td_store4(out + 4 * i, y);
    }
}

#define TD_NORM_INSTANTIATE(T)                                                                     \
    template __global__ void td_norm_kernel<T, 32>(td_norm_args);                                  \
    template __global__ void td_norm_kernel<T, 256>(td_norm_args);                                 \
    template __global__ void td_rms_kernel<T, 1>(td_norm_args);                                    \
    template __global__ void td_rms_kernel<T, 2>(td_norm_args);                                    \
    template __global__ void td_rms_kernel<T, 3>(td_norm_args);                                    \
    template __global__ void td_rms_kernel<T, 4>(td_norm_args);                                    \
    template __global__ void td_rms_kernel<T, 5>(td_norm_args);                                    \
    template __global__ void td_rms_kernel<T, 6>(td_norm_args);                                    \
    template __global__ void td_rms_kernel<T, 7>(td_norm_args);                                    \
    template __global__ void td_rms_kernel<T, 8>(td_norm_args);
TD_NORM_INSTANTIATE(float)
TD_NORM_INSTANTIATE(__half)
TD_NORM_INSTANTIATE(__nv_bfloat16)

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

template <class T> static cudaError_t launch_rms(const td_norm_args *a, cudaStream_t stream) {
    const dim3 grid((unsigned)a->n_rows), block(256);
    switch (a->n_cols / 1024) {
    case 1:
        return TD_LAUNCH((td_rms_kernel<T, 1>), grid, block, 0, stream, *a);
    case 2:
        return TD_LAUNCH((td_rms_kernel<T, 2>), grid, block, 0, stream, *a);
    case 3:
        return TD_LAUNCH((td_rms_kernel<T, 3>), grid, block, 0, stream, *a);
    case 4:
        return TD_LAUNCH((td_rms_kernel<T, 4>), grid, block, 0, stream, *a);
    case 5:
        return TD_LAUNCH((td_rms_kernel<T, 5>), grid, block, 0, stream, *a);
    case 6:
        return TD_LAUNCH((td_rms_kernel<T, 6>), grid, block, 0, stream, *a);
    case 7:
        return TD_LAUNCH((td_rms_kernel<T, 7>), grid, block, 0, stream, *a);
    default:
        return TD_LAUNCH((td_rms_kernel<T, 8>), grid, block, 0, stream, *a);
    }
}

/* Which kernel computes a norm depends on what does not change from row to row. */
template <class T> static cudaError_t launch_norm(const td_norm_args *a, cudaStream_t stream) {
    const int64_t n_vectors = (int64_t)a->n_rows * a->n_inner;
    if (a->kind == TD_NORM_RMS && a->n_inner == 1 && !a->bias && !a->accumulate &&
        a->n_cols % 1024 == 0 && a->n_cols <= 8192 && a->in_stride % 4 == 0 &&
        a->out_stride % 4 == 0 && td_is_aligned(a->in) && td_is_aligned(a->out) &&
        td_is_aligned(a->weight))
        return launch_rms<T>(a, stream);
    if (a->n_cols <= 512)
        return TD_LAUNCH((td_norm_kernel<T, 32>), (unsigned)((n_vectors + 7) / 8), 256, 0, stream,
                         *a);
    return TD_LAUNCH((td_norm_kernel<T, 256>), (unsigned)n_vectors, 256, 0, stream, *a);
}

cudaError_t td_gpu_norm(const td_norm_args *a, cudaStream_t stream) {
    td_norm_args n = *a;
    if (n.n_inner < 1)
        n.n_inner = 1;
    switch (a->out_dtype) {
    case TD_BF16:
        return launch_norm<__nv_bfloat16>(&n, stream);
    case TD_F16:
        return launch_norm<__half>(&n, stream);
    default:
        return launch_norm<float>(&n, stream);
    }
}
#endif
