/* moe_gemm_wmma.cu - the grouped product of moe_gemm.cu for f16 on sm_70, whose tensor cores the
 * fragments of nvcuda::wmma reach.
 *
 * A block computes 128 rows x 128 rows of weight with eight warps of 64 x 32, in k tiles of 32
 * through registers into two buffers. Gated: of a warp's 32 B rows 16 are gate rows and 16 their up
 * rows, so gate and up are two accumulators alike, element by element (fragments of one type map
 * elements alike). Results leave through a 16 x 16 patch per warp, as a fragment's layout is not
 * ours to know.
 */
#include <mma.h>

#include "gpu/moe.cuh"

#define TD_MOE_WMMA_K 32
#define TD_MOE_WMMA_LD 40 /* halfs between rows: the rows of a fragment on different banks */
#define TD_MOE_WMMA_TILE (128 * TD_MOE_WMMA_LD)

typedef nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> td_moe_wmma_acc;

template <td_act ACT>
static __device__ __forceinline__ void td_moe_wmma_gate(td_moe_wmma_acc &gate,
                                                        const td_moe_wmma_acc &up) {
#pragma unroll
    for (int i = 0; i < td_moe_wmma_acc::num_elements; i++)
        gate.x[i] = td_moe_act_16<ACT>(gate.x[i]) * up.x[i];
}

/* What a thread copies from one k tile to the next: the same piece (of 8 elements) of two rows of A
 * and of two of B; zeros past n and in rows not valid. */
struct td_moe_wmma_source {
    const __half *row[2][2]; /* A, B; r, r + 64 */
    bool valid[2][2];
};
/* To be in flight while the tile before is computed. */
static __device__ __forceinline__ void
td_moe_wmma_read(uint4 (&next)[2][2], const td_moe_wmma_source &from, int k, int n) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            next[m][i] = from.valid[m][i] && k < n
                             ? *reinterpret_cast<const uint4 *>(from.row[m][i] + k)
                             : make_uint4(0, 0, 0, 0);
}
template <bool ALIGNED>
static __device__ __forceinline__ void
td_moe_wmma_put(__half (&tiles)[2][TD_MOE_WMMA_TILE], int r, int c, const uint4 (&next)[2][2],
                const td_moe_wmma_source &from, int k, int n) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            __half *to = &tiles[m][(r + i * 64) * TD_MOE_WMMA_LD + c * 8];
            if (ALIGNED)
                *reinterpret_cast<uint4 *>(to) = next[m][i];
            else
                td_moe_copy_8(to, from.row[m][i], k, n, from.valid[m][i]);
        }
}

template <bool GATED, bool ALIGNED>
__global__ void __launch_bounds__(256, 1) td_moe_gemm_wmma_kernel(td_moe_gemm_args a) {
    namespace wmma = nvcuda::wmma;
    __shared__ __align__(128) __half tiles[2][2][TD_MOE_WMMA_TILE]; /* buffer; A, B */
    __shared__ int32_t found[3];
    constexpr int OUT_COLS = td_moe_shape<GATED>::OUT_COLS;
    const int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5;
    td_moe_tile tile;
    if (!td_moe_find_tile<OUT_COLS>(a, found, tile))
        return;

    /* Copies piece c of rows r and r + 64 of both. */
    const int r = tid >> 2, c = tid & 3;
    td_moe_wmma_source from;
    const __half *weight = static_cast<const __half *>(a.weight[tile.expert]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int b = r + i * 64; /* row of the tile's B */
        const int col = tile.col + (GATED ? (b >> 5) * 16 + (b & 15) : b);
        from.valid[0][i] = r + i * 64 < tile.n_rows;
        from.valid[1][i] = col < a.n_out;
        const int slot = tile.slot + (from.valid[0][i] ? r + i * 64 : 0);
        const int w = from.valid[1][i] ? (GATED && (b & 16) ? a.n_out + col : col) : 0;
        from.row[0][i] = static_cast<const __half *>(a.in) +
                         (int64_t)(a.row != NULL ? a.row[slot] : slot) * a.n_in;
        from.row[1][i] = weight + (int64_t)w * a.n_in;
    }

    const int row0 = (warp >> 2) * 64, b_row0 = (warp & 3) * 32;
    const bool busy = row0 < tile.n_rows;
    td_moe_wmma_acc acc[4][2];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 2; j++)
            wmma::fill_fragment(acc[i][j], 0.0f);

    const int n_k = (a.n_in + TD_MOE_WMMA_K - 1) / TD_MOE_WMMA_K;
    uint4 next[2][2] = {};
    if (ALIGNED)
        td_moe_wmma_read(next, from, c * 8, a.n_in);
    td_moe_wmma_put<ALIGNED>(tiles[0], r, c, next, from, c * 8, a.n_in);
    __syncthreads();
    for (int t = 0; t < n_k; t++) {
        const int k_next = (t + 1) * TD_MOE_WMMA_K + c * 8;
        if (ALIGNED)
            td_moe_wmma_read(next, from, k_next, a.n_in);
        if (busy) {
            const __half *at = tiles[t & 1][0] + row0 * TD_MOE_WMMA_LD;
            const __half *bt = tiles[t & 1][1] + b_row0 * TD_MOE_WMMA_LD;
#pragma unroll
            for (int k = 0; k < TD_MOE_WMMA_K; k += 16) {
                wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fa[4];
                wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> fb[2];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    wmma::load_matrix_sync(fa[i], at + i * 16 * TD_MOE_WMMA_LD + k, TD_MOE_WMMA_LD);
#pragma unroll
                for (int j = 0; j < 2; j++)
                    wmma::load_matrix_sync(fb[j], bt + j * 16 * TD_MOE_WMMA_LD + k, TD_MOE_WMMA_LD);
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 2; j++)
                        wmma::mma_sync(acc[i][j], fa[i], fb[j], acc[i][j]);
            }
        }
        /* The other buffer held tile t - 1, which everyone left before the last barrier. */
        td_moe_wmma_put<ALIGNED>(tiles[~t & 1], r, c, next, from, k_next, a.n_in);
        __syncthreads();
    }
    if (!busy)
        return;

    float *patch = reinterpret_cast<float *>(&tiles[0][0][0]) + warp * 256; /* [16, 16] */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (GATED) {
            if (a.act == TD_ACT_SILU)
                td_moe_wmma_gate<TD_ACT_SILU>(acc[i][0], acc[i][1]);
            else if (a.act == TD_ACT_GELU)
                td_moe_wmma_gate<TD_ACT_GELU>(acc[i][0], acc[i][1]);
            else
                td_moe_wmma_gate<TD_ACT_GELU_TANH>(acc[i][0], acc[i][1]);
        }
#pragma unroll
        for (int j = 0; j < (GATED ? 1 : 2); j++) {
            wmma::store_matrix_sync(patch, acc[i][j], 16, wmma::mem_row_major);
            __syncwarp();
            const int col = tile.col + (GATED ? b_row0 / 2 : b_row0 + j * 16) + (lane & 15);
            for (int p = lane >> 4; p < 16; p += 2) {
                const int row = row0 + i * 16 + p;
                if (row >= tile.n_rows || col >= a.n_out)
                    continue;
                const int64_t at = (int64_t)(tile.slot + row) * a.n_out + col;
                const float value = patch[p * 16 + (lane & 15)];
                if (GATED)
                    static_cast<__half *>(a.out)[at] = __float2half_rn(value);
                else
                    static_cast<float *>(a.out)[at] = value;
            }
            __syncwarp();
        }
    }
}
template __global__ void td_moe_gemm_wmma_kernel<true, true>(td_moe_gemm_args);
template __global__ void td_moe_gemm_wmma_kernel<true, false>(td_moe_gemm_args);
template __global__ void td_moe_gemm_wmma_kernel<false, true>(td_moe_gemm_args);
template __global__ void td_moe_gemm_wmma_kernel<false, false>(td_moe_gemm_args);

#ifndef __CUDACC_RTC__
cudaError_t td_moe_gemm_wmma(const td_moe_gemm_args *a, bool gated, bool aligned, unsigned n_blocks,
                             cudaStream_t stream) {
    if (gated)
        return aligned
                   ? TD_LAUNCH((td_moe_gemm_wmma_kernel<true, true>), n_blocks, 256, 0, stream, *a)
                   : TD_LAUNCH((td_moe_gemm_wmma_kernel<true, false>), n_blocks, 256, 0, stream,
                               *a);
    return aligned
               ? TD_LAUNCH((td_moe_gemm_wmma_kernel<false, true>), n_blocks, 256, 0, stream, *a)
               : TD_LAUNCH((td_moe_gemm_wmma_kernel<false, false>), n_blocks, 256, 0, stream, *a);
}
#endif
