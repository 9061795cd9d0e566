/* moe_gemm.cu - products of each expert's rows with its weights, all experts in one launch.
 *
 * Tensor cores (bf16 from sm_80, f16 from sm_75): a block computes 128 rows x 128 rows of weight,
 * in k tiles of 32 elements that come through a ring of STAGES buffers by cp.async; four warps of
 * 64 x 64 each, whose fragments are read one k step ahead of their mma. Two blocks to a
 * multiprocessor: one's epilogue hides behind the other's products. Rows of `in` are read where
 * the pair's token has them, so gathering costs no pass.
 *
 *   shared memory: per stage A [128][32], B [128][32]. A row is four 16-byte pieces; piece c of row
 *   r stands at place c ^ (r / 2 % 4), so that the eight rows of an ldmatrix matrix (same c) and
 *   the writes of a warp each touch all 32 banks once.
 *
 * Gated: a block's B is 64 gate rows and the 64 up rows that belong to them, laid out so that each
 * thread holds gate and up of the same element; the activation is applied to the accumulators and
 * gate and up never reach memory.
 *
 * f32: FMAs, 256 threads of 8 x 8, k tiles of 16 through registers into two buffers. No TF32.
 *
 * Rows past a tile's end and elements past K are zeros in shared memory: they add +0 to sums that
 * are then not stored, or nothing. With `ALIGNED` every row starts on a 16-byte border and N is
 * even; the others are read and written element by element, to the same bits.
 */
#include "gpu/moe.cuh"
#include "gpu/ptx.cuh"

/* --- tensor cores ----------------------------------------------------------------------------- */

#define TD_MOE_MMA_K 32
#define TD_MOE_MMA_THREADS 128
#define TD_MOE_MMA_STAGE (2 * 128 * TD_MOE_MMA_K) /* elements */

/* Where piece c (of 8 elements) of row r stands in a [128][32] tile. */
static __device__ __forceinline__ int td_moe_piece(int r, int c) {
    return r * TD_MOE_MMA_K + ((c ^ (r >> 1 & 3)) << 3);
}

/* Fragments of one k16 step: 64 rows of A, 64 of B. */
struct td_moe_fragments {
    uint32_t a[4][4], b[8][2];
};

/* step: 0 or 1 of the k tile; a, b: the warp's 64 rows of the tile. */
template <class T>
static __device__ __forceinline__ void td_moe_load_fragments(td_moe_fragments &f, const T *a,
                                                             const T *b, int step, int lane) {
    const int a_at = td_moe_piece(lane & 15, step * 2 + (lane >> 4));
    const int b_at = td_moe_piece((lane & 7) + (lane >> 4) * 8, step * 2 + (lane >> 3 & 1));
#pragma unroll
    for (int i = 0; i < 4; i++)
        td_ldmatrix_x4(f.a[i], a + i * 16 * TD_MOE_MMA_K + a_at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t r[4];
        td_ldmatrix_x4(r, b + i * 16 * TD_MOE_MMA_K + b_at);
        f.b[2 * i][0] = r[0];
        f.b[2 * i][1] = r[1];
        f.b[2 * i + 1][0] = r[2];
        f.b[2 * i + 1][1] = r[3];
    }
}

/* What a thread copies into each stage: the same piece of four rows of A and of four of B. */
template <class T> struct td_moe_source {
    const T *a[4], *b[4];
    uint32_t valid; /* bit i: a[i], bit 4 + i: b[i] */
};

template <class T, bool ALIGNED>
static __device__ __forceinline__ void td_moe_load_stage(T *stage, const td_moe_source<T> &from,
                                                         int k, int n_in) {
    const int r = (int)threadIdx.x >> 2, c = (int)threadIdx.x & 3;
    k += c * 8;
    T *a = stage + td_moe_piece(r, c), *b = a + 128 * TD_MOE_MMA_K;
#pragma unroll
    for (int i = 0; i < 4; i++) { /* 32 rows on, the same place */
        if (ALIGNED) {
            const bool in_k = k < n_in;
            td_cp_async_16(a + i * 32 * TD_MOE_MMA_K, from.a[i] + (in_k ? k : 0),
                           in_k && (from.valid >> i & 1));
            td_cp_async_16(b + i * 32 * TD_MOE_MMA_K, from.b[i] + (in_k ? k : 0),
                           in_k && (from.valid >> (4 + i) & 1));
        } else {
            td_moe_copy_8(a + i * 32 * TD_MOE_MMA_K, from.a[i], k, n_in, from.valid >> i & 1);
            td_moe_copy_8(b + i * 32 * TD_MOE_MMA_K, from.b[i], k, n_in, from.valid >> (4 + i) & 1);
        }
    }
}

/* The row of weight that stands in row r of the tile's B, or -1. Gated: 32 gate rows and their 32
 * up rows for the left warps, then the same for the right ones. */
template <bool GATED>
static __device__ __forceinline__ int td_moe_mma_weight_row(const td_moe_tile &tile, int r,
                                                            int n_out) {
    const int col = GATED ? tile.col + (r >> 6) * 32 + (r & 31) : tile.col + r;
    if (col >= n_out)
        return -1;
    return GATED && (r & 32) ? n_out + col : col;
}

/* Two neighbouring columns of a row of n, the first one even. */
template <bool ALIGNED>
static __device__ __forceinline__ void td_moe_store_pair(float *row, int col, int n, float x,
                                                         float y) {
    if (col >= n)
        return;
    if (ALIGNED) {
        *reinterpret_cast<float2 *>(row + col) = make_float2(x, y);
    } else {
        row[col] = x;
        if (col + 1 < n)
            row[col + 1] = y;
    }
}
template <bool ALIGNED, class T>
static __device__ __forceinline__ void td_moe_store_pair(T *row, int col, int n, float x, float y) {
    struct alignas(4) pair {
        T x, y;
    };
    const pair p = {td_type<T>::from_f32(x), td_type<T>::from_f32(y)};
    if (col >= n)
        return;
    if (ALIGNED) {
        *reinterpret_cast<pair *>(row + col) = p;
    } else {
        row[col] = p.x;
        if (col + 1 < n)
            row[col + 1] = p.y;
    }
}

template <bool ALIGNED>
static __device__ __forceinline__ void
td_moe_mma_store(const td_moe_gemm_args &a, const td_moe_tile &tile, const float (&acc)[4][8][4],
                 int row0, int col0, int lane) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = row0 + i * 16 + half * 8 + (lane >> 2);
            if (r >= tile.n_rows)
                continue;
            float *row = static_cast<float *>(a.out) + (int64_t)(tile.slot + r) * a.n_out;
#pragma unroll
            for (int j = 0; j < 8; j++)
                td_moe_store_pair<ALIGNED>(row, tile.col + col0 + j * 8 + (lane & 3) * 2, a.n_out,
                                           acc[i][j][2 * half], acc[i][j][2 * half + 1]);
        }
    }
}

template <class T, td_act ACT, bool ALIGNED>
static __device__ __forceinline__ void
td_moe_mma_store_gated(const td_moe_gemm_args &a, const td_moe_tile &tile,
                       const float (&acc)[4][8][4], int row0, int col0, int lane) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = row0 + i * 16 + half * 8 + (lane >> 2);
            if (r >= tile.n_rows)
                continue;
            T *row = static_cast<T *>(a.out) + (int64_t)(tile.slot + r) * a.n_out;
#pragma unroll
            for (int j = 0; j < 4; j++) /* acc[i][j]: gate, acc[i][j + 4]: up */
                td_moe_store_pair<ALIGNED>(
                    row, tile.col + col0 + j * 8 + (lane & 3) * 2, a.n_out,
                    td_moe_act_16<ACT>(acc[i][j][2 * half]) * acc[i][j + 4][2 * half],
                    td_moe_act_16<ACT>(acc[i][j][2 * half + 1]) * acc[i][j + 4][2 * half + 1]);
        }
    }
}

template <class T, int STAGES, bool GATED, bool ALIGNED>
__global__ void __launch_bounds__(TD_MOE_MMA_THREADS, 2)
    td_moe_gemm_mma_kernel(td_moe_gemm_args a) {
    TD_DYNAMIC_SHARED(T, ring); /* [STAGES] of A, B; then the tile's three numbers */
    const int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5;
    td_moe_tile tile;
    if (!td_moe_find_tile<td_moe_shape<GATED>::OUT_COLS>(
            a, reinterpret_cast<int32_t *>(ring + STAGES * TD_MOE_MMA_STAGE), tile))
        return;

    td_moe_source<T> from;
    from.valid = 0;
    const T *weight = static_cast<const T *>(a.weight[tile.expert]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = i * 32 + (tid >> 2);
        const bool in_rows = r < tile.n_rows;
        const int slot = tile.slot + (in_rows ? r : 0);
        const int w = td_moe_mma_weight_row<GATED>(tile, r, a.n_out);
        from.a[i] =
            static_cast<const T *>(a.in) + (int64_t)(a.row != NULL ? a.row[slot] : slot) * a.n_in;
        from.b[i] = weight + (int64_t)(w < 0 ? 0 : w) * a.n_in;
        from.valid |= (uint32_t)in_rows << i | (uint32_t)(w >= 0) << (4 + i);
    }

    /* A warp whose rows are all past the end copies and waits with the others, and computes
     * nothing. */
    const int row0 = (warp >> 1) * 64, b_row0 = (warp & 1) * 64;
    const bool busy = row0 < tile.n_rows;
    const int n_k = (a.n_in + TD_MOE_MMA_K - 1) / TD_MOE_MMA_K;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        td_moe_load_stage<T, ALIGNED>(ring + s * TD_MOE_MMA_STAGE, from, s * TD_MOE_MMA_K, a.n_in);
        td_cp_async_commit();
    }
    const T *my_a = ring + row0 * TD_MOE_MMA_K, *my_b = ring + (128 + b_row0) * TD_MOE_MMA_K;
    float acc[4][8][4] = {};
    td_moe_fragments f[2];
    td_cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (busy)
        td_moe_load_fragments(f[0], my_a, my_b, 0, lane);

    int read = 0, write = STAGES - 1; /* stages, of k tile t and t + STAGES - 1 */
    for (int t = 0; t < n_k; t++) {
        /* Stage `write` held tile t - 1, which every warp left before the last barrier. Tiles from
         * n_k on are zeros that nobody reads. */
        td_moe_load_stage<T, ALIGNED>(ring + write * TD_MOE_MMA_STAGE, from,
                                      (t + STAGES - 1) * TD_MOE_MMA_K, a.n_in);
        td_cp_async_commit();
        write = write + 1 == STAGES ? 0 : write + 1;
        if (busy) {
            td_moe_load_fragments(f[1], my_a + read * TD_MOE_MMA_STAGE,
                                  my_b + read * TD_MOE_MMA_STAGE, 1, lane);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    td_mma_16816(acc[i][j], f[0].a[i], f[0].b[j], T());
        }
        read = read + 1 == STAGES ? 0 : read + 1;
        td_cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (busy) {
            td_moe_load_fragments(f[0], my_a + read * TD_MOE_MMA_STAGE,
                                  my_b + read * TD_MOE_MMA_STAGE, 0, lane);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    td_mma_16816(acc[i][j], f[1].a[i], f[1].b[j], T());
        }
    }
    td_cp_async_wait<0>();
    if (!busy)
        return;
    if (!GATED)
        td_moe_mma_store<ALIGNED>(a, tile, acc, row0, b_row0, lane);
    else if (a.act == TD_ACT_SILU)
        td_moe_mma_store_gated<T, TD_ACT_SILU, ALIGNED>(a, tile, acc, row0, b_row0 / 2, lane);
    else if (a.act == TD_ACT_GELU)
        td_moe_mma_store_gated<T, TD_ACT_GELU, ALIGNED>(a, tile, acc, row0, b_row0 / 2, lane);
    else
        td_moe_mma_store_gated<T, TD_ACT_GELU_TANH, ALIGNED>(a, tile, acc, row0, b_row0 / 2, lane);
}

/* Four stages where two blocks of them fit a multiprocessor (sm_80, 90, 100), else three. */
#define TD_MOE_MMA_INSTANCES(T)                                                                    \
    template __global__ void td_moe_gemm_mma_kernel<T, 4, true, true>(td_moe_gemm_args);           \
    template __global__ void td_moe_gemm_mma_kernel<T, 4, false, true>(td_moe_gemm_args);          \
    template __global__ void td_moe_gemm_mma_kernel<T, 3, true, true>(td_moe_gemm_args);           \
    template __global__ void td_moe_gemm_mma_kernel<T, 3, false, true>(td_moe_gemm_args);          \
    template __global__ void td_moe_gemm_mma_kernel<T, 3, true, false>(td_moe_gemm_args);          \
    template __global__ void td_moe_gemm_mma_kernel<T, 3, false, false>(td_moe_gemm_args);
TD_MOE_MMA_INSTANCES(__half)
TD_MOE_MMA_INSTANCES(__nv_bfloat16)

/* --- f32 -------------------------------------------------------------------------------------- */

#define TD_MOE_F32_K 16
#define TD_MOE_F32_LD 132 /* of [k][128 rows]: whole float4, and columns on different banks */

/* Four elements k .. k + 3 of a row, zeros past n and in rows that are not valid. */
template <bool ALIGNED>
static __device__ __forceinline__ float4 td_moe_read_4(const float *row, int k, int n, bool valid) {
    if (ALIGNED)
        return valid && k < n ? *reinterpret_cast<const float4 *>(row + k)
                              : make_float4(0, 0, 0, 0);
    return make_float4(valid && k < n ? row[k] : 0, valid && k + 1 < n ? row[k + 1] : 0,
                       valid && k + 2 < n ? row[k + 2] : 0, valid && k + 3 < n ? row[k + 3] : 0);
}

static __device__ __forceinline__ void td_moe_put_4(float *tile, int k, int r, float4 x) {
    tile[k * TD_MOE_F32_LD + r] = x.x;
    tile[(k + 1) * TD_MOE_F32_LD + r] = x.y;
    tile[(k + 2) * TD_MOE_F32_LD + r] = x.z;
    tile[(k + 3) * TD_MOE_F32_LD + r] = x.w;
}

/* Thread (x, y) of 16 x 16 holds rows 4 y + {0 .. 3, 64 .. 67} and B rows 4 x + {0 .. 3, 64 .. 67};
 * gated, B is 64 gate rows, then their 64 up rows. */
template <bool GATED, bool ALIGNED>
__global__ void __launch_bounds__(256, 2) td_moe_gemm_f32_kernel(td_moe_gemm_args a) {
    __shared__ __align__(16) float tiles[2][2][TD_MOE_F32_K * TD_MOE_F32_LD]; /* buffer; A, B */
    __shared__ int32_t found[3];
    constexpr int OUT_COLS = td_moe_shape<GATED>::OUT_COLS;
    const int tid = (int)threadIdx.x, x = tid & 15, y = tid >> 4;
    td_moe_tile tile;
    if (!td_moe_find_tile<OUT_COLS>(a, found, tile))
        return;

    /* Copies elements 4 c .. 4 c + 3 of rows r and r + 64 of both. */
    const int r = tid >> 2, c = (tid & 3) * 4;
    const float *from[2][2]; /* A, B; r, r + 64 */
    bool valid[2][2];
    const float *weight = static_cast<const float *>(a.weight[tile.expert]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int col = tile.col + r + (GATED ? 0 : i * 64);
        valid[0][i] = r + i * 64 < tile.n_rows;
        valid[1][i] = col < a.n_out;
        const int slot = tile.slot + (valid[0][i] ? r + i * 64 : 0);
        const int w = valid[1][i] ? (GATED && i == 1 ? a.n_out + col : col) : 0;
        from[0][i] = static_cast<const float *>(a.in) +
                     (int64_t)(a.row != NULL ? a.row[slot] : slot) * a.n_in;
        from[1][i] = weight + (int64_t)w * a.n_in;
    }

    float acc[8][8] = {};
    float4 next[2][2];
    const int n_k = (a.n_in + TD_MOE_F32_K - 1) / TD_MOE_F32_K;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            td_moe_put_4(tiles[0][m], c, r + i * 64,
                         td_moe_read_4<ALIGNED>(from[m][i], c, a.n_in, valid[m][i]));
    __syncthreads();
    for (int t = 0; t < n_k; t++) {
        const float *at = tiles[t & 1][0], *bt = tiles[t & 1][1];
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                next[m][i] = td_moe_read_4<ALIGNED>(from[m][i], (t + 1) * TD_MOE_F32_K + c, a.n_in,
                                                    valid[m][i]);
#pragma unroll
        for (int k = 0; k < TD_MOE_F32_K; k++) {
            float p[8], q[8];
            *reinterpret_cast<float4 *>(p) =
                *reinterpret_cast<const float4 *>(at + k * TD_MOE_F32_LD + 4 * y);
            *reinterpret_cast<float4 *>(p + 4) =
                *reinterpret_cast<const float4 *>(at + k * TD_MOE_F32_LD + 4 * y + 64);
            *reinterpret_cast<float4 *>(q) =
                *reinterpret_cast<const float4 *>(bt + k * TD_MOE_F32_LD + 4 * x);
            *reinterpret_cast<float4 *>(q + 4) =
                *reinterpret_cast<const float4 *>(bt + k * TD_MOE_F32_LD + 4 * x + 64);
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    acc[i][j] = fmaf(p[i], q[j], acc[i][j]);
        }
        /* The other buffer held tile t - 1, which everyone left before the last barrier. */
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                td_moe_put_4(tiles[~t & 1][m], c, r + i * 64, next[m][i]);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = (i & 3) + 4 * y + (i >> 2) * 64;
        if (row >= tile.n_rows)
            continue;
        float *out = static_cast<float *>(a.out) + (int64_t)(tile.slot + row) * a.n_out;
#pragma unroll
        for (int j = 0; j < (GATED ? 4 : 8); j++) {
            const int col = tile.col + (j & 3) + 4 * x + (j >> 2) * 64;
            if (col >= a.n_out)
                continue;
            if (!GATED)
                out[col] = acc[i][j];
            else if (a.act == TD_ACT_SILU)
                out[col] = td_moe_act<TD_ACT_SILU>(acc[i][j]) * acc[i][j + 4];
            else if (a.act == TD_ACT_GELU)
                out[col] = td_moe_act<TD_ACT_GELU>(acc[i][j]) * acc[i][j + 4];
            else
                out[col] = td_moe_act<TD_ACT_GELU_TANH>(acc[i][j]) * acc[i][j + 4];
        }
    }
}
template __global__ void td_moe_gemm_f32_kernel<true, true>(td_moe_gemm_args);
template __global__ void td_moe_gemm_f32_kernel<true, false>(td_moe_gemm_args);
template __global__ void td_moe_gemm_f32_kernel<false, true>(td_moe_gemm_args);
template __global__ void td_moe_gemm_f32_kernel<false, false>(td_moe_gemm_args);

#ifndef __CUDACC_RTC__

template <class T, int STAGES, bool GATED, bool ALIGNED>
static cudaError_t launch_mma(const td_moe_gemm_args *a, unsigned n_blocks, cudaStream_t stream) {
    const size_t shared_bytes = STAGES * TD_MOE_MMA_STAGE * sizeof(T) + 4 * sizeof(int32_t);
    return TD_LAUNCH((td_moe_gemm_mma_kernel<T, STAGES, GATED, ALIGNED>), n_blocks,
                     TD_MOE_MMA_THREADS, shared_bytes, stream, *a);
}

template <class T>
static cudaError_t gemm_mma(const td_moe_gemm_args *a, bool gated, bool aligned, unsigned n_blocks,
                            const td_gpu_chip *chip, cudaStream_t stream) {
    if (!aligned)
        return gated ? launch_mma<T, 3, true, false>(a, n_blocks, stream)
                     : launch_mma<T, 3, false, false>(a, n_blocks, stream);
    if (chip->max_shared_bytes >= 140 * 1024)
        return gated ? launch_mma<T, 4, true, true>(a, n_blocks, stream)
                     : launch_mma<T, 4, false, true>(a, n_blocks, stream);
    return gated ? launch_mma<T, 3, true, true>(a, n_blocks, stream)
                 : launch_mma<T, 3, false, true>(a, n_blocks, stream);
}

static cudaError_t gemm_f32(const td_moe_gemm_args *a, bool gated, bool aligned, unsigned n_blocks,
                            cudaStream_t stream) {
    if (gated)
        return aligned
                   ? TD_LAUNCH((td_moe_gemm_f32_kernel<true, true>), n_blocks, 256, 0, stream, *a)
                   : TD_LAUNCH((td_moe_gemm_f32_kernel<true, false>), n_blocks, 256, 0, stream, *a);
    return aligned
               ? TD_LAUNCH((td_moe_gemm_f32_kernel<false, true>), n_blocks, 256, 0, stream, *a)
               : TD_LAUNCH((td_moe_gemm_f32_kernel<false, false>), n_blocks, 256, 0, stream, *a);
}

cudaError_t td_moe_gemm(const td_moe_gemm_args *a, bool gated, bool aligned, int64_t n_pairs,
                        td_dtype compute, const td_gpu_chip *chip, cudaStream_t stream) {
    const int out_cols = gated ? td_moe_shape<true>::OUT_COLS : td_moe_shape<false>::OUT_COLS;
    const int64_t n_blocks =
        td_moe_max_row_tiles(n_pairs, a->n_experts) * ((a->n_out + out_cols - 1) / out_cols);
    if (n_blocks > INT32_MAX)
        return cudaErrorInvalidValue;
    const unsigned n = (unsigned)n_blocks;
    aligned = aligned && a->n_in % (int32_t)(16 / td_dtype_size(compute)) == 0 && a->n_out % 2 == 0;
    if (compute == TD_F32)
        return gemm_f32(a, gated, aligned, n, stream);
    if (compute == TD_BF16)
        return chip->compute_capability >= 80
                   ? gemm_mma<__nv_bfloat16>(a, gated, aligned, n, chip, stream)
                   : cudaErrorInvalidValue;
    return chip->compute_capability >= 75 ? gemm_mma<__half>(a, gated, aligned, n, chip, stream)
                                          : td_moe_gemm_wmma(a, gated, aligned, n, stream);
}
#endif
