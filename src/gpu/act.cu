/* act.cu - the activation between the MLP's products, gated or not: VEC elements per thread. */
#include "gpu/common.cuh"

template <int ACT> static __device__ __forceinline__ float td_activate(float x) {
    if (ACT == TD_ACT_SILU)
        return x / (1.0f + expf(-x));
    if (ACT == TD_ACT_GELU)
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

template <class T, int ACT, int VEC>
__global__ void __launch_bounds__(256) td_act_kernel(td_act_args a) {
    const int64_t t = blockIdx.x;
    const int64_t f = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * VEC;
    if (f >= a.n_cols)
        return;
    const float *in = a.in + t * a.n_cols * (a.gated ? 2 : 1) + f;
    T *out = static_cast<T *>(a.out) + t * a.n_cols + f;
    float x[VEC], up[VEC];
    if (VEC == 4) {
        td_load4(x, in);
        if (a.gated)
            td_load4(up, in + a.n_cols);
    } else {
        x[0] = in[0];
        if (a.gated)
            up[0] = in[a.n_cols];
    }
#pragma unroll
    for (int k = 0; k < VEC; k++)
        x[k] = a.gated ? td_activate<ACT>(x[k]) * up[k] : td_activate<ACT>(x[k]);
    if (VEC == 4)
        td_store4(out, x);
    else
        out[0] = td_type<T>::from_f32(x[0]);
}

#define TD_ACT_INSTANTIATE(T, ACT)                                                                 \
    template __global__ void td_act_kernel<T, ACT, 1>(td_act_args);                                \
    template __global__ void td_act_kernel<T, ACT, 4>(td_act_args);
#define TD_ACT_INSTANTIATE_ALL(T)                                                                  \
    TD_ACT_INSTANTIATE(T, TD_ACT_SILU)                                                             \
    TD_ACT_INSTANTIATE(T, TD_ACT_GELU)                                                             \
    TD_ACT_INSTANTIATE(T, TD_ACT_GELU_TANH)
TD_ACT_INSTANTIATE_ALL(float)
TD_ACT_INSTANTIATE_ALL(__half)
TD_ACT_INSTANTIATE_ALL(__nv_bfloat16)

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

template <class T, int ACT> static cudaError_t launch(const td_act_args *a, cudaStream_t stream) {
    const bool by_four = a->n_cols % 4 == 0 && td_is_aligned(a->in) && td_is_aligned(a->out);
    const unsigned per_block = by_four ? 1024 : 256;
    const dim3 grid((unsigned)a->n_tokens, ((unsigned)a->n_cols + per_block - 1) / per_block);
    return by_four ? TD_LAUNCH((td_act_kernel<T, ACT, 4>), grid, 256, 0, stream, *a)
                   : TD_LAUNCH((td_act_kernel<T, ACT, 1>), grid, 256, 0, stream, *a);
}

template <class T> static cudaError_t launch_act(const td_act_args *a, cudaStream_t stream) {
    switch (a->act) {
    case TD_ACT_SILU:
        return launch<T, TD_ACT_SILU>(a, stream);
    case TD_ACT_GELU:
        return launch<T, TD_ACT_GELU>(a, stream);
    default:
        return launch<T, TD_ACT_GELU_TANH>(a, stream);
    }
}

cudaError_t td_gpu_act(const td_act_args *a, cudaStream_t stream) {
    switch (a->out_dtype) {
    case TD_BF16:
        return launch_act<__nv_bfloat16>(a, stream);
    case TD_F16:
        return launch_act<__half>(a, stream);
    default:
        return launch_act<float>(a, stream);
    }
}
#endif
