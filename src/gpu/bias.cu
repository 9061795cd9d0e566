/* bias.cu - what the epilogues of the products do not cover: a bias that is scaled with the
 * product.
 */
#include "gpu/common.cuh"

__global__ void __launch_bounds__(256)
    td_bias_kernel(float *out, const float *in, const float *bias, int64_t n_cols, float scale,
                   bool accumulate) {
    const int64_t row = blockIdx.x, col = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (col >= n_cols)
        return;
    const int64_t at = row * n_cols + col;
    const float y = scale * ((in ? in[at] : 0.0f) + bias[col]);
    out[at] = accumulate ? out[at] + y : y;
}

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

cudaError_t td_gpu_bias(float *out, const float *in, const float *bias, int32_t n_rows,
                        int64_t n_cols, float scale, bool accumulate, cudaStream_t stream) {
    const dim3 grid((unsigned)n_rows, (unsigned)((n_cols + 255) / 256));
    return TD_LAUNCH(td_bias_kernel, grid, 256, 0, stream, out, in, bias, n_cols, scale,
                     accumulate);
}
#endif
