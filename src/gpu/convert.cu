/* convert.cu - elements from one float type to another. */
#include "gpu/common.cuh"

template <class In, class Out>
__global__ void __launch_bounds__(256) td_convert_kernel(td_convert_args a) {
    const In *in = static_cast<const In *>(a.in);
    Out *out = static_cast<Out *>(a.out);
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.n; i += step)
        out[i] = td_type<Out>::from_f32(td_type<In>::to_f32(in[i]));
}

#define TD_CONVERT_INSTANTIATE(In)                                                                 \
    template __global__ void td_convert_kernel<In, float>(td_convert_args);                        \
    template __global__ void td_convert_kernel<In, __half>(td_convert_args);                       \
    template __global__ void td_convert_kernel<In, __nv_bfloat16>(td_convert_args);
TD_CONVERT_INSTANTIATE(float)
TD_CONVERT_INSTANTIATE(__half)
TD_CONVERT_INSTANTIATE(__nv_bfloat16)

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

template <class In> static cudaError_t launch(const td_convert_args *a, cudaStream_t stream) {
    const int64_t blocks = (a->n + 1023) / 1024;
    const unsigned grid = (unsigned)(blocks < 65536 ? blocks : 65536);
    switch (a->out_dtype) {
    case TD_BF16:
        return TD_LAUNCH((td_convert_kernel<In, __nv_bfloat16>), grid, 256, 0, stream, *a);
    case TD_F16:
        return TD_LAUNCH((td_convert_kernel<In, __half>), grid, 256, 0, stream, *a);
    default:
        return TD_LAUNCH((td_convert_kernel<In, float>), grid, 256, 0, stream, *a);
    }
}

cudaError_t td_gpu_convert(const td_convert_args *a, cudaStream_t stream) {
    switch (a->in_dtype) {
    case TD_BF16:
        return launch<__nv_bfloat16>(a, stream);
    case TD_F16:
        return launch<__half>(a, stream);
    default:
        return launch<float>(a, stream);
    }
}
#endif
