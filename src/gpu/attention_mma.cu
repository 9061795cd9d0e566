/* attention_mma.cu - attention with tensor cores on sm_75 (f16) and sm_80 and above (bf16, f16).
 *
 * Flash attention 2 (Dao 2023): a block of four warps takes BM query rows of one head and walks the
 * keys in tiles of BN; S = Q K^T and O += P V by mma m16n8k16, scores and O in f32 registers, the
 * softmax online (Milakov & Gimelshein 2018). A warp owns 16 * MT rows, so a row lives in the four
 * lanes of a quad and nothing of it is ever summed across warps.
 *
 * Shared memory: Q [BM, D], STAGES tiles of K and of V [BN, D], 16-bit, in chunks of 16 bytes
 * whose place within a row is permuted by the row (place): ldmatrix, which reads a column of
 * chunks over eight rows, and the copies, which write rows, both touch every bank once. Columns
 * from head_dim to D are zeros.
 *
 * Copies are asynchronous. With two stages the next tile of K and V travels during the whole work
 * on this one, for one barrier a tile; with one stage V travels during S and the next K during the
 * softmax and P V, for two barriers and half the memory.
 *
 * Softmax: with c = scale * log2(e), p = 2^(s c - m) where m follows the row's largest s c, but
 * only when that has grown by more than TD_ATT_GROWTH: O and l are rescaled seldom, p stays below
 * 2^TD_ATT_GROWTH, and whether m moves is decided by the row's own scores alone. Rows of a warp
 * that do not move while another does are multiplied by exactly 1. The division by l cancels m.
 *
 * The tensor cores cut off what an addition to an accumulator does not keep, always towards zero, so
 * a long run of additions drifts. O of a tile is therefore summed from zero and added to the row's
 * O by an ordinary, rounding addition, as l always was: at a million keys that leaves a few parts in
 * a million, far below the rounding of a 16-bit result.
 *
 * Values that are not finite, in rows that a query row must not see, would reach it as 0 * inf.
 * Where the mask applies (and only there) the tile of V is therefore checked as it arrives; such
 * elements are put to zero and added by hand to the rows that do see them (add_poison).
 */
#include "gpu/attention.cuh"

/* How much a row's maximum (in powers of two) may grow before O is rescaled; at most 15 (f16). */
#define TD_ATT_GROWTH 8.0f

/* The shapes: X(D, MT, BN, STAGES). A head dim takes the smallest D that holds it: wide where two
 * blocks of it fit a multiprocessor's shared memory, else lean, which all chips can run. With these
 * and 255 registers a thread, two blocks share a multiprocessor: one computes while the other is
 * in its softmax. */
#define TD_ATT_WIDE(X) X(96, 2, 64, 2) X(128, 2, 64, 2) X(256, 1, 64, 1)
#define TD_ATT_LEAN(X)                                                                             \
    X(32, 2, 64, 2) X(64, 2, 64, 2) X(96, 2, 64, 1) X(128, 2, 32, 2) X(256, 1, 32, 1)

namespace {
enum { N_WARPS = 4, N_THREADS = N_WARPS * 32 };

/* Two f32 as a pair of T, the first in the lower half. */
__device__ __forceinline__ uint32_t pack(float lo, float hi, __nv_bfloat16) {
    const __nv_bfloat162 x = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<const uint32_t *>(&x);
}
__device__ __forceinline__ uint32_t pack(float lo, float hi, __half) {
    const __half2 x = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<const uint32_t *>(&x);
}

/* Where chunk `chunk` of row `row` stands, in chunks of 8 elements. */
template <int D> __device__ __forceinline__ int place(int row, int chunk) {
    constexpr int CH = D / 8;
    /* Rows of whole 128-byte lines: eight rows, eight banks' worth of chunks. Rows of an odd number
     * of half lines: neighbours fall into different halves by themselves. */
    return row * CH + (CH % 8 == 0 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3));
}
/* From the place, in elements, of chunk h (0 or 1) of a row to that of chunk 2 pair + h. A few
 * distinct terms and immediate offsets for the rest, where place costs a register each. */
template <int D> __device__ __forceinline__ int pair_place(int at, int pair) {
    constexpr int M = D / 8 % 8 == 0 ? 7 : 3;
    return (at ^ ((2 * pair & M) * 8)) + (2 * pair & ~M) * 8;
}

/* Row and chunk of the i-th of a thread's chunks. */
template <int CH> __device__ __forceinline__ void chunk_of(int tid, int i, int *r, int *c) {
    if (N_THREADS % CH == 0) {
        *r = i * (N_THREADS / CH) + tid / CH;
        *c = tid % CH;
    } else {
        *r = (i * N_THREADS + tid) / CH;
        *c = (i * N_THREADS + tid) % CH;
    }
}

/* ROWS rows of D elements, from row `first` of global memory (row r at src + r * stride), to `dst`;
 * rows from n_rows on and columns from n_cols on become zeros. Thread i moves the chunks i, i +
 * N_THREADS, ... */
template <class T, int D, int ROWS>
__device__ __forceinline__ void load_tile(T *dst, const T *src, int32_t first, int32_t stride,
                                          int32_t n_rows, int32_t n_cols, bool aligned) {
    constexpr int CH = D / 8, N = ROWS * CH / N_THREADS;
    static_assert(ROWS * CH % N_THREADS == 0, "every thread moves the same number of chunks");
    const int tid = td_opaque((int)threadIdx.x); /* or all offsets would live in registers */
    if (aligned) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            int r, c;
            chunk_of<CH>(tid, i, &r, &c);
            td_cp_async_16(dst + place<D>(r, c) * 8, src + (int64_t)(first + r) * stride + c * 8,
                           first + r < n_rows && c * 8 < n_cols);
        }
        return;
    }
#pragma unroll 1
    for (int i = 0; i < N; i++) {
        int r, c;
        chunk_of<CH>(tid, i, &r, &c);
        const uint16_t *from =
            reinterpret_cast<const uint16_t *>(src) + (int64_t)(first + r) * stride + c * 8;
        uint32_t w[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int col = c * 8 + 2 * e;
            const uint32_t lo = first + r < n_rows && col < n_cols ? from[2 * e] : 0;
            const uint32_t hi = first + r < n_rows && col + 1 < n_cols ? from[2 * e + 1] : 0;
            w[e] = lo | hi << 16;
        }
        *reinterpret_cast<uint4 *>(dst + place<D>(r, c) * 8) = make_uint4(w[0], w[1], w[2], w[3]);
    }
}

/* Puts what is not finite in the chunks that this thread loaded to zero; 1 when there was any. */
template <class T, int D, int ROWS> __device__ __forceinline__ int scrub_tile(T *tile) {
    constexpr int CH = D / 8, N = ROWS * CH / N_THREADS;
    const int tid = td_opaque((int)threadIdx.x);
    int found = 0;
#pragma unroll 1
    for (int i = 0; i < N; i++) {
        int r, c;
        chunk_of<CH>(tid, i, &r, &c);
        uint4 *p = reinterpret_cast<uint4 *>(tile + place<D>(r, c) * 8);
        uint4 x = *p;
        int bad = 0;
        x.x = td_att_scrub<T>(x.x, &bad);
        x.y = td_att_scrub<T>(x.y, &bad);
        x.z = td_att_scrub<T>(x.z, &bad);
        x.w = td_att_scrub<T>(x.w, &bad);
        if (bad)
            *p = x;
        found |= bad;
    }
    return found;
}

/* O += what scrub_tile took out of values, for the rows that see them. v: the values of the
 * sequence in global memory. Rare: written to take few registers and little code. */
template <class T, int D, int MT, int BN>
__device__ __forceinline__ void add_poison(float (&o)[MT][D / 8][4], const T *v, int32_t stride,
                                           int32_t n_cols, const td_att_task &t, int32_t row0,
                                           int32_t window) {
    const int col0 = ((int)threadIdx.x & 3) * 2;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll 1
        for (int32_t j = t.k_begin; j < t.k_end; j++) {
            if (!td_att_edge(t.q0, 64 * MT, j / BN * BN, BN, window))
                continue;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int32_t col = n * 8 + col0 + e;
                const float x =
                    col < n_cols ? td_type<T>::to_f32(v[(int64_t)j * stride + col]) : 0.0f;
                const bool finite = x - x == 0.0f;
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        if (!finite && td_att_sees(row0 + m * 16 + h * 8, j, window))
                            o[m][n][2 * h + e] += x;
            }
        }
    }
}
} // namespace

/* Blocks of N_THREADS, grid and rows as attention.cuh describes with BM = 64 * MT. */
template <class T, int D, int MT, int BN, int STAGES>
__global__ void __launch_bounds__(N_THREADS, D <= 32 ? 3 : 2)
    td_attention_mma_kernel(td_attention_args a, int32_t n_slots, bool aligned) {
    constexpr int BM = 16 * MT * N_WARPS, NK = BN / 8, ND = D / 8, TILE = BN * D;
    static_assert(D % 32 == 0 && BN % 16 == 0 && (STAGES == 1 || STAGES == 2), "shape");
    TD_DYNAMIC_SHARED(T, shared);
    T *const sq = shared, *const sk = shared + BM * D, *const sv = sk + STAGES * TILE;

    td_att_task t;
    if (!td_att_locate<BM, BN>(a, n_slots, &t))
        return;
    const int32_t stride = (int32_t)a.stride, dim = a.head_dim, window = a.window;
    const int64_t origin = t.start * a.stride;
    const T *const q = static_cast<const T *>(a.q) + origin + (int64_t)t.head * dim;
    /* Key 0 of the sequence in k and in v. */
    const int64_t at_kv = origin + (int64_t)t.kv_head * dim;
    const T *const k = static_cast<const T *>(a.k) + at_kv;
    const T *const v = static_cast<const T *>(a.v) + at_kv;

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int32_t w0 = t.q0 + warp * 16 * MT;    /* the warp's first row */
    const int32_t row0 = w0 + (lane >> 2);       /* of the lane: row0 + 16 m + 8 h */
    const bool idle = w0 >= t.len;               /* no row of the warp exists */
    const T *const wq = sq + warp * 16 * MT * D; /* the warp's rows of Q */

    /* The lane's row of the four 8x8 matrices that ldmatrix takes at once, in the first 16 rows and
     * 16 columns: of Q and V by rows, of K (whose rows are the columns of S) by columns. */
    const int at_qv = place<D>(lane & 15, lane >> 4) * 8;
    const int at_k = place<D>((lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1) * 8;

    /* A negative or zero scale and the soft cap change the order of scores, so those are applied
     * first; otherwise the scale is part of the exponent. */
    const bool finish_first = a.softcap > 0 || !(a.scale > 0);
    const float c = finish_first ? TD_LOG2E : a.scale * TD_LOG2E;
    const float inv_softcap = a.softcap > 0 ? 1.0f / a.softcap : 0.0f;

    float o[MT][ND][4], m_row[MT][2], l_row[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < ND; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[m][n][e] = 0.0f;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            m_row[m][h] = td_att_ninf();
            l_row[m][h] = 0.0f;
        }
    }

    load_tile<T, D, BM>(sq, q, t.q0, stride, t.len, dim, aligned);
    load_tile<T, D, BN>(sk, k, t.k_begin, stride, t.len, dim, aligned);
    if (STAGES == 2)
        load_tile<T, D, BN>(sv, v, t.k_begin, stride, t.len, dim, aligned);
    td_cp_async_commit();

    int stage = 0, poisoned = 0;
#pragma unroll 1
    for (int32_t k0 = t.k_begin; k0 < t.k_end; k0 += BN) {
        const bool edge = td_att_edge(t.q0, BM, k0, BN, window);
        T *const tile_k = sk + stage * TILE, *const tile_v = sv + stage * TILE;
        td_cp_async_wait<0>();
        if (STAGES == 2 && edge)
            poisoned |= __syncthreads_or(scrub_tile<T, D, BN>(tile_v));
        else
            __syncthreads();
        /* Behind the barrier this tile is visible to all, and nobody reads the previous one. */
        if (STAGES == 2) {
            stage ^= 1;
            if (k0 + BN < t.k_end) {
                load_tile<T, D, BN>(sk + stage * TILE, k, k0 + BN, stride, t.len, dim, aligned);
                load_tile<T, D, BN>(sv + stage * TILE, v, k0 + BN, stride, t.len, dim, aligned);
            }
        } else {
            load_tile<T, D, BN>(tile_v, v, k0, stride, t.len, dim, aligned);
        }
        td_cp_async_commit();

        const bool busy = !idle && !td_att_blind(w0, 16 * MT, k0, BN, window);
        float s[MT][NK][4];
        if (busy) {
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int n = 0; n < NK; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        s[m][n][e] = 0.0f;
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t fq[MT][4], fk[NK / 2][4];
#pragma unroll
                for (int m = 0; m < MT; m++)
                    td_ldmatrix_x4(fq[m], wq + m * 16 * D + pair_place<D>(at_qv, d));
#pragma unroll
                for (int n = 0; n < NK / 2; n++)
                    td_ldmatrix_x4(fk[n], tile_k + n * 16 * D + pair_place<D>(at_k, d));
#pragma unroll
                for (int n = 0; n < NK; n++)
#pragma unroll
                    for (int m = 0; m < MT; m++)
                        td_mma_16816(s[m][n], fq[m], fk[n / 2] + (n & 1) * 2, T());
            }
        }
        if (STAGES == 1) {
            td_cp_async_wait<0>();
            if (edge)
                poisoned |= __syncthreads_or(scrub_tile<T, D, BN>(tile_v));
            else
                __syncthreads();
            if (k0 + BN < t.k_end)
                load_tile<T, D, BN>(tile_k, k, k0 + BN, stride, t.len, dim, aligned);
            td_cp_async_commit();
        }
        if (busy) {
            if (finish_first) {
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int n = 0; n < NK; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            s[m][n][e] *= a.scale;
                            if (a.softcap > 0)
                                s[m][n][e] = td_att_softcap(s[m][n][e], a.softcap, inv_softcap);
                        }
            }
            if (td_att_edge(w0, 16 * MT, k0, BN, window)) {
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int n = 0; n < NK; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            if (!td_att_sees(row0 + m * 16 + (e >> 1) * 8,
                                             k0 + n * 8 + (lane & 3) * 2 + (e & 1), window))
                                s[m][n][e] = td_att_ninf();
            }
            float corr[MT][2];
            bool moved = false;
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float x = s[m][0][2 * h];
#pragma unroll
                    for (int n = 0; n < NK; n++)
                        x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                    x = fmaxf(x, __shfl_xor_sync(TD_FULL_MASK, x, 1));
                    x = fmaxf(x, __shfl_xor_sync(TD_FULL_MASK, x, 2));
                    x *= c;
                    /* False for a row that sees nothing yet, as -inf > -inf is. */
                    const bool moves = x > m_row[m][h] + TD_ATT_GROWTH;
                    corr[m][h] = moves ? td_exp2_approx(m_row[m][h] - x) : 1.0f;
                    m_row[m][h] = moves ? x : m_row[m][h];
                    moved |= moves;
                }
            if (__any_sync(TD_FULL_MASK, moved)) {
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        l_row[m][h] *= corr[m][h];
#pragma unroll
                        for (int n = 0; n < ND; n++) {
                            o[m][n][2 * h] *= corr[m][h];
                            o[m][n][2 * h + 1] *= corr[m][h];
                        }
                    }
            }
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    /* Nothing seen yet: 2^(-inf - 0) = 0, where -inf - -inf would be NaN. */
                    const float top = m_row[m][h] == td_att_ninf() ? 0.0f : m_row[m][h];
                    float sum = 0.0f;
#pragma unroll
                    for (int n = 0; n < NK; n++)
#pragma unroll
                        for (int e = 2 * h; e < 2 * h + 2; e++) {
                            s[m][n][e] = td_exp2_approx(fmaf(s[m][n][e], c, -top));
                            sum += s[m][n][e];
                        }
                    l_row[m][h] += sum;
                }
            uint32_t fp[BN / 16][MT][4];
#pragma unroll
            for (int j = 0; j < BN / 16; j++)
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    fp[j][m][0] = pack(s[m][2 * j][0], s[m][2 * j][1], T());
                    fp[j][m][1] = pack(s[m][2 * j][2], s[m][2 * j][3], T());
                    fp[j][m][2] = pack(s[m][2 * j + 1][0], s[m][2 * j + 1][1], T());
                    fp[j][m][3] = pack(s[m][2 * j + 1][2], s[m][2 * j + 1][3], T());
                }
#pragma unroll
            for (int n = 0; n < ND; n += 2) {
                float x[MT][2][4] = {};
#pragma unroll
                for (int j = 0; j < BN / 16; j++) {
                    uint32_t fv[4];
                    td_ldmatrix_x4_trans(fv, tile_v + j * 16 * D + pair_place<D>(at_qv, n / 2));
#pragma unroll
                    for (int m = 0; m < MT; m++) {
                        td_mma_16816(x[m][0], fp[j][m], fv, T());
                        td_mma_16816(x[m][1], fp[j][m], fv + 2, T());
                    }
                }
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        o[m][n][e] += x[m][0][e];
                        o[m][n + 1][e] += x[m][1][e];
                    }
            }
        }
    }
    if (idle)
        return;
    if (poisoned)
        add_poison<T, D, MT, BN>(o, v, stride, dim, t, row0, window);

    /* O / l. The rows of Q that the warp alone has read hold the result for stores of 16 bytes. */
    float inv[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float l = l_row[m][h];
            l += __shfl_xor_sync(TD_FULL_MASK, l, 1);
            l += __shfl_xor_sync(TD_FULL_MASK, l, 2);
            inv[m][h] = 1.0f / l;
        }
    T *const wo = sq + warp * 16 * MT * D;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < ND; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *reinterpret_cast<uint32_t *>(wo + place<D>(m * 16 + h * 8 + (lane >> 2), n) * 8 +
                                              (lane & 3) * 2) =
                    pack(o[m][n][2 * h] * inv[m][h], o[m][n][2 * h + 1] * inv[m][h], T());
    __syncwarp();
    T *const out = static_cast<T *>(a.out) + ((t.start + w0) * a.n_heads + t.head) * dim;
    const int64_t out_stride = (int64_t)a.n_heads * dim;
    const int32_t n_rows = td_att_min(16 * MT, t.len - w0);
#pragma unroll 4
    for (int i = lane; i < 16 * MT * (D / 8); i += 32) {
        const int r = i / (D / 8), ch = i % (D / 8);
        const T *from = wo + place<D>(r, ch) * 8;
        T *to = out + r * out_stride + ch * 8;
        if (r >= n_rows || ch * 8 >= dim)
            continue;
        if (aligned)
            *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
        else
            for (int e = 0; e < td_att_min(8, dim - ch * 8); e++)
                to[e] = from[e];
    }
}

#define TD_ATT_INSTANCE(D, MT, BN, STAGES)                                                         \
    template __global__ void td_attention_mma_kernel<__half, D, MT, BN, STAGES>(td_attention_args, \
                                                                                int32_t, bool);    \
    template __global__ void td_attention_mma_kernel<__nv_bfloat16, D, MT, BN, STAGES>(            \
        td_attention_args, int32_t, bool);
TD_ATT_WIDE(TD_ATT_INSTANCE)
TD_ATT_LEAN(TD_ATT_INSTANCE)

#ifndef __CUDACC_RTC__
template <class T, int D, int MT, int BN, int STAGES>
static cudaError_t launch(const td_attention_args *a, size_t shared_bytes, cudaStream_t stream) {
    const int32_t n_slots = td_att_n_slots(a, 16 * MT * N_WARPS);
    const int64_t n_blocks = (int64_t)n_slots * a->n_heads;
    if (n_blocks > INT32_MAX || a->stride > INT32_MAX)
        return cudaErrorInvalidValue;
    return TD_LAUNCH((td_attention_mma_kernel<T, D, MT, BN, STAGES>), (unsigned)n_blocks,
                     (unsigned)N_THREADS, shared_bytes, stream, *a, n_slots, td_att_aligned(a));
}

static constexpr size_t shared_bytes(int d, int mt, int bn, int stages) {
    return (size_t)(16 * mt * N_WARPS + 2 * stages * bn) * d * 2;
}

template <class T>
static cudaError_t pick(const td_attention_args *a, size_t max_shared_bytes, cudaStream_t stream) {
    const int32_t d = a->head_dim;
    const int32_t padded = d <= 32 ? 32 : d <= 64 ? 64 : d <= 96 ? 96 : d <= 128 ? 128 : 256;
#define TD_ATT_TRY(D, MT, BN, STAGES, N_BLOCKS)                                                    \
    if (padded == D && N_BLOCKS * shared_bytes(D, MT, BN, STAGES) <= max_shared_bytes)             \
        return launch<T, D, MT, BN, STAGES>(a, shared_bytes(D, MT, BN, STAGES), stream);
#define TD_ATT_TRY_WIDE(D, MT, BN, STAGES) TD_ATT_TRY(D, MT, BN, STAGES, 2)
#define TD_ATT_TRY_LEAN(D, MT, BN, STAGES) TD_ATT_TRY(D, MT, BN, STAGES, 1)
    TD_ATT_WIDE(TD_ATT_TRY_WIDE)
    TD_ATT_LEAN(TD_ATT_TRY_LEAN)
    return cudaErrorInvalidValue;
}

cudaError_t td_gpu_attention_mma(const td_attention_args *a, const td_gpu_chip *chip,
                                 cudaStream_t stream) {
    const size_t max_shared_bytes = (size_t)chip->max_shared_bytes;
    if (a->out_dtype != a->in_dtype || a->head_dim > 256)
        return cudaErrorInvalidValue;
    return a->in_dtype == TD_BF16 ? pick<__nv_bfloat16>(a, max_shared_bytes, stream)
                                  : pick<__half>(a, max_shared_bytes, stream);
}
#endif
