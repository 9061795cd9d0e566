/* rope.cu - rotary embedding in place, or into the compute dtype on the way to attention.
 *
 * A block turns one token. What each element becomes depends on its pair alone, so the vector width
 * VEC (1 or 4 neighbouring pairs at a time) changes no bits. */
#include "gpu/common.cuh"

template <class T, int VEC>
static __device__ __forceinline__ void td_rope_put(T *out, const float *x) {
    if (VEC == 4) {
        td_store4(out, x);
    } else {
        out[0] = td_type<T>::from_f32(x[0]);
    }
}

template <int VEC> static __device__ __forceinline__ void td_rope_get(float *x, const float *p) {
    if (VEC == 4) {
        td_load4(x, p);
    } else {
        x[0] = p[0];
    }
}

/* T is the type of the result; in place it is float and out is a.x. */
template <class T, int VEC>
__global__ void __launch_bounds__(256)
    td_rope_kernel(td_rope_args a, T *out_base, int64_t out_stride) {
    const int64_t t = blockIdx.x;
    const int half = a.cos_table ? a.rotary_dim / 2 : 0, per_head = half / VEC;
    const float *x = a.x + t * a.stride;
    T *out = out_base + t * out_stride;
    if (half > 0) {
        const int64_t at = (int64_t)a.positions[t] * half;
        const float *cos_row = a.cos_table + at, *sin_row = a.sin_table + at;
        for (int p = threadIdx.x; p < a.n_heads * per_head; p += blockDim.x) {
            const int i = p % per_head * VEC, j = p / per_head * a.head_dim + i;
            float u[VEC], v[VEC], c[VEC], s[VEC], first[VEC], second[VEC];
            td_rope_get<VEC>(u, x + j);
            td_rope_get<VEC>(v, x + j + half);
            td_rope_get<VEC>(c, cos_row + i);
            td_rope_get<VEC>(s, sin_row + i);
#pragma unroll
            for (int k = 0; k < VEC; k++) {
                first[k] = u[k] * c[k] - v[k] * s[k];
                second[k] = v[k] * c[k] + u[k] * s[k];
            }
            td_rope_put<T, VEC>(out + j, first);
            td_rope_put<T, VEC>(out + j + half, second);
        }
    }
    if (!a.out)
        return;
    /* What is not turned: the rest of each head, then the plain heads. */
    const int rest = (a.head_dim - 2 * half) / VEC, n_rest = a.n_heads * rest;
    const int n_plain = a.n_plain_heads * a.head_dim / VEC;
    for (int p = threadIdx.x; p < n_rest + n_plain; p += blockDim.x) {
        const int j = p < n_rest ? p / rest * a.head_dim + 2 * half + p % rest * VEC
                                 : a.n_heads * a.head_dim + (p - n_rest) * VEC;
        float y[VEC];
        td_rope_get<VEC>(y, x + j);
        td_rope_put<T, VEC>(out + j, y);
    }
}

#define TD_ROPE_INSTANTIATE(T)                                                                     \
    template __global__ void td_rope_kernel<T, 1>(td_rope_args, T *, int64_t);                     \
    template __global__ void td_rope_kernel<T, 4>(td_rope_args, T *, int64_t);
TD_ROPE_INSTANTIATE(float)
TD_ROPE_INSTANTIATE(__half)
TD_ROPE_INSTANTIATE(__nv_bfloat16)

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

template <class T> static cudaError_t launch(const td_rope_args *a, T *out, cudaStream_t stream) {
    const int64_t width = (int64_t)(a->n_heads + a->n_plain_heads) * a->head_dim;
    const int64_t out_stride = a->out ? width : a->stride;
    const int half = a->cos_table ? a->rotary_dim / 2 : 0;
    const bool by_four = half % 4 == 0 && a->head_dim % 4 == 0 && a->stride % 4 == 0 &&
                         out_stride % 4 == 0 && td_is_aligned(a->x) && td_is_aligned(out) &&
                         td_is_aligned(a->cos_table) && td_is_aligned(a->sin_table);
    const dim3 grid((unsigned)a->n_tokens), block(256);
    return by_four ? TD_LAUNCH((td_rope_kernel<T, 4>), grid, block, 0, stream, *a, out, out_stride)
                   : TD_LAUNCH((td_rope_kernel<T, 1>), grid, block, 0, stream, *a, out, out_stride);
}

cudaError_t td_gpu_rope(const td_rope_args *a, cudaStream_t stream) {
    td_rope_args in = *a;
    if (!a->out && a->rotary_dim == 0)
        return cudaSuccess;
    if (!a->out) {
        in.n_plain_heads = 0;
        return launch<float>(&in, a->x, stream);
    }
    switch (a->out_dtype) {
    case TD_BF16:
        return launch(&in, static_cast<__nv_bfloat16 *>(a->out), stream);
    case TD_F16:
        return launch(&in, static_cast<__half *>(a->out), stream);
    default:
        return launch(&in, static_cast<float *>(a->out), stream);
    }
}
#endif
