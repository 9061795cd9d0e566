/* moe.cuh - what the parts of the experts' MLP share: the grouped product's arguments and tiles.
 *
 * A slot is a chosen (token, expert) pair's place among the pairs sorted by expert, then token. The
 * slots of an expert are one run, [first[e], first[e + 1]); the grouped product cuts each run into
 * tiles of TD_MOE_TILE_ROWS slots, counted from the run's start. How many tiles there are is known
 * on the device only: the grid is as large as it can get and blocks without a tile return.
 *
 * Row contract: an element of a product is one accumulator that takes its k steps in order from 0,
 * in the same instructions whatever tile and place in it the row has.
 */
#ifndef TDGEN_GPU_MOE_CUH
#define TDGEN_GPU_MOE_CUH

#include "gpu/common.cuh"
#include "gpu/ptx.cuh"

#define TD_MOE_TILE_ROWS 128
#define TD_MOE_TILE_COLS 128 /* rows of weight that a tile reads */

/* out[slot, n] = in[row of slot] * W_e[n]^T (f32), or, gated, out[slot, f] = act(gate) * up (T),
 * where gate is the product with W_e[f] and up that with W_e[F + f]. */
typedef struct td_moe_gemm_args {
    const void *in;            /* [*, K] */
    const int32_t *row;        /* [P] row of `in` of each slot, or NULL: the slot itself */
    const void *const *weight; /* device [E] of [N, K], gated [2F, K] */
    void *out;                 /* [P, N], gated [P, F] */
    const int32_t *first;      /* [E + 1] first slot of each expert */
    const int32_t *first_tile; /* [E + 1] first row tile of each expert */
    int32_t n_experts;
    int32_t n_out; /* columns of out: N or F */
    int32_t n_in;  /* K */
    td_act act;    /* gated */
} td_moe_gemm_args;

typedef struct td_moe_tile {
    int32_t expert;
    int32_t slot;   /* its first */
    int32_t n_rows; /* in [1, TD_MOE_TILE_ROWS] */
    int32_t col;    /* first column of out */
} td_moe_tile;

template <bool GATED> struct td_moe_shape {
    static constexpr int OUT_COLS = GATED ? TD_MOE_TILE_COLS / 2 : TD_MOE_TILE_COLS;
};

/* The tile of this block, or false for all its threads. Tiles are numbered by expert; within an
 * expert they go down TILE_GROUP row tiles before the next column, so that the blocks that run at
 * one time share both rows and weights in L2. shared: [3], in use until the caller's next barrier.
 */
template <int OUT_COLS>
static __device__ __forceinline__ bool td_moe_find_tile(const td_moe_gemm_args &a, int32_t *shared,
                                                        td_moe_tile &tile) {
    constexpr int TILE_GROUP = 16;
    const int n_cols = (a.n_out + OUT_COLS - 1) / OUT_COLS;
    const int block = (int)blockIdx.x;
    if (block >= a.first_tile[a.n_experts] * n_cols)
        return false;
    for (int e = (int)threadIdx.x; e < a.n_experts; e += (int)blockDim.x) {
        const int begin = a.first_tile[e] * n_cols, end = a.first_tile[e + 1] * n_cols;
        if (begin <= block && block < end) { /* of one thread */
            shared[0] = e;
            shared[1] = block - begin;
            shared[2] = a.first_tile[e + 1] - a.first_tile[e];
        }
    }
    __syncthreads();
    const int e = shared[0], at = shared[1], n_row_tiles = shared[2];
    const int group = at / (TILE_GROUP * n_cols), in_group = at % (TILE_GROUP * n_cols);
    const int left = n_row_tiles - group * TILE_GROUP;
    const int rows = left < TILE_GROUP ? left : TILE_GROUP;
    tile.expert = e;
    const int offset = (group * TILE_GROUP + in_group % rows) * TD_MOE_TILE_ROWS;
    tile.slot = a.first[e] + offset;
    tile.n_rows = a.first[e + 1] - tile.slot;
    if (tile.n_rows > TD_MOE_TILE_ROWS)
        tile.n_rows = TD_MOE_TILE_ROWS;
    tile.col = in_group / rows * OUT_COLS;
    return true;
}

template <td_act ACT> static __device__ __forceinline__ float td_moe_act(float x) {
    if (ACT == TD_ACT_SILU)
        return x / (1.0f + expf(-x));
    if (ACT == TD_ACT_GELU)
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

/* The same to a few f32 ulp, for results that are then rounded to 16 bits: an epilogue has 64 of
 * them per thread. GELU_TANH by 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)). */
template <td_act ACT> static __device__ __forceinline__ float td_moe_act_16(float x) {
    constexpr float LOG2_E = 1.4426950408889634f;
    if (ACT == TD_ACT_SILU)
        return __fdividef(x, 1.0f + td_exp2_approx(-LOG2_E * x));
    if (ACT == TD_ACT_GELU)
        return td_moe_act<ACT>(x);
    const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + td_exp2_approx(-2.0f * LOG2_E * u));
}

/* Eight elements from global to shared memory where 16-byte alignment or a row's end forbids
 * td_cp_async_16: elements k .. k + 7 of the row, zeros from n on and in rows that are not valid.
 */
template <class T>
static __device__ __forceinline__ void td_moe_copy_8(T *dst, const T *row, int k, int n,
                                                     bool valid) {
    for (int i = 0; i < 8; i++)
        dst[i] = valid && k + i < n ? row[k + i] : td_type<T>::from_f32(0.0f);
}

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

/* Row tiles of any distribution of n_pairs slots over the experts. */
static inline int64_t td_moe_max_row_tiles(int64_t n_pairs, int64_t n_experts) {
    return n_pairs / TD_MOE_TILE_ROWS + (n_experts < n_pairs ? n_experts : n_pairs);
}

/* aligned: `in` and all weights are on 16-byte borders; K and N decide the rest. */
cudaError_t td_moe_gemm(const td_moe_gemm_args *a, bool gated, bool aligned, int64_t n_pairs,
                        td_dtype compute, const td_gpu_chip *chip, cudaStream_t stream);
cudaError_t td_moe_gemm_wmma(const td_moe_gemm_args *a, bool gated, bool aligned, unsigned n_blocks,
                             cudaStream_t stream);
#endif

#endif
