/* capture_dense.cu - rows of finished logits in the type they are stored in; after
 * td_capture_kernel on the same stream, whose mark of a bad row it reads. */
#include "gpu/capture.cuh"

enum { TD_DENSE_PER_BLOCK = 4096 }; /* ids */

template <bool RAW, class T>
__global__ void __launch_bounds__(256) td_capture_dense_kernel(td_capture_params p) {
    const int64_t r = blockIdx.x;
    const float *x = p.a.logits + r * p.a.n_vocab;
    T *out = static_cast<T *>(p.a.dense) + r * p.a.n_vocab;
    const bool bad = p.a.logsumexp[r] != p.a.logsumexp[r];
    const int first = blockIdx.y * TD_DENSE_PER_BLOCK;
    const int end =
        first + TD_DENSE_PER_BLOCK < p.a.n_vocab ? first + TD_DENSE_PER_BLOCK : p.a.n_vocab;
    for (int i = first + threadIdx.x; i < end; i += blockDim.x) {
        const float z = i < p.a.n_valid ? td_capture_finish<RAW>(p, x[i]) : -TD_CAPTURE_INFINITY;
        out[i] = td_type<T>::from_f32(bad ? 0.0f : z);
    }
}

#define TD_DENSE_INSTANTIATE(T)                                                                    \
    template __global__ void td_capture_dense_kernel<true, T>(td_capture_params);                  \
    template __global__ void td_capture_dense_kernel<false, T>(td_capture_params);
TD_DENSE_INSTANTIATE(float)
TD_DENSE_INSTANTIATE(__half)
TD_DENSE_INSTANTIATE(__nv_bfloat16)

#ifndef __CUDACC_RTC__
template <class T> static cudaError_t launch(const td_capture_params *p, cudaStream_t stream) {
    const dim3 grid((unsigned)p->a.n_rows,
                    (unsigned)((p->a.n_vocab + TD_DENSE_PER_BLOCK - 1) / TD_DENSE_PER_BLOCK));
    return p->a.divisor == 1.0f && !(p->a.softcap > 0.0f)
               ? TD_LAUNCH((td_capture_dense_kernel<true, T>), grid, 256, 0, stream, *p)
               : TD_LAUNCH((td_capture_dense_kernel<false, T>), grid, 256, 0, stream, *p);
}

cudaError_t td_capture_dense_launch(const td_capture_params *p, cudaStream_t stream) {
    switch (p->a.dense_dtype) {
    case TD_BF16:
        return launch<__nv_bfloat16>(p, stream);
    case TD_F16:
        return launch<__half>(p, stream);
    default:
        return launch<float>(p, stream);
    }
}
#endif
