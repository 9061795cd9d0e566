/* common.cuh - small device functions that several kernels share. */
#ifndef TDGEN_GPU_COMMON_CUH
#define TDGEN_GPU_COMMON_CUH

#include "gpu/launch.cuh"

#define TD_FULL_MASK 0xffffffffu

/* Sums and maxima over a warp by butterflies: every lane gets the result, and the order of the
 * additions is the same whatever the data (reproducibility, docs/design.md, invariants). */
static __device__ __forceinline__ float td_warp_sum(float x) {
    for (int d = 16; d > 0; d >>= 1)
        x += __shfl_xor_sync(TD_FULL_MASK, x, d);
    return x;
}
static __device__ __forceinline__ double td_warp_sum(double x) {
    for (int d = 16; d > 0; d >>= 1)
        x += __shfl_xor_sync(TD_FULL_MASK, x, d);
    return x;
}
static __device__ __forceinline__ float td_warp_max(float x) {
    for (int d = 16; d > 0; d >>= 1)
        x = fmaxf(x, __shfl_xor_sync(TD_FULL_MASK, x, d));
    return x;
}

/* Sum over a block of whole warps (at most 32); every thread gets it. shared: [33], free again
 * after the next __syncthreads of the caller. */
static __device__ __forceinline__ float td_block_sum(float x, float *shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    x = td_warp_sum(x);
    __syncthreads();
    if (lane == 0)
        shared[warp] = x;
    __syncthreads();
    if (warp == 0) {
        float y = lane < n_warps ? shared[lane] : 0.0f;
        y = td_warp_sum(y);
        if (lane == 0)
            shared[32] = y;
    }
    __syncthreads();
    return shared[32];
}

/* One type's conversions: td_type<__half>, td_type<__nv_bfloat16>, td_type<float>. Rounding is to
 * nearest even everywhere. */
template <class T> struct td_type;
template <> struct td_type<float> {
    static __device__ __forceinline__ float to_f32(float x) {
        return x;
    }
    static __device__ __forceinline__ float from_f32(float x) {
        return x;
    }
};
template <> struct td_type<__half> {
    static __device__ __forceinline__ float to_f32(__half x) {
        return __half2float(x);
    }
    static __device__ __forceinline__ __half from_f32(float x) {
        return __float2half_rn(x);
    }
};
template <> struct td_type<__nv_bfloat16> {
    static __device__ __forceinline__ float to_f32(__nv_bfloat16 x) {
        return __bfloat162float(x);
    }
    static __device__ __forceinline__ __nv_bfloat16 from_f32(float x) {
        return __float2bfloat16_rn(x);
    }
};

/* Four neighbours as f32 from or to memory that is aligned to four of them. */
static __device__ __forceinline__ void td_store4(float *p, const float x[4]) {
    *reinterpret_cast<float4 *>(p) = make_float4(x[0], x[1], x[2], x[3]);
}
template <class T> static __device__ __forceinline__ void td_store4(T *p, const float x[4]) {
    __align__(8) T y[4] = {td_type<T>::from_f32(x[0]), td_type<T>::from_f32(x[1]),
                           td_type<T>::from_f32(x[2]), td_type<T>::from_f32(x[3])};
    *reinterpret_cast<uint2 *>(p) = *reinterpret_cast<const uint2 *>(y);
}
static __device__ __forceinline__ void td_load4(float x[4], const float *p) {
    const float4 v = *reinterpret_cast<const float4 *>(p);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

#ifndef __CUDACC_RTC__
/* May 16 bytes be read there at once? */
static inline bool td_is_aligned(const void *p) {
    return (uintptr_t)p % 16 == 0;
}
#endif

#endif
