/* attention_f32.cu - attention in f32 throughout, on any chip: the exact mode. No tensor cores.
 *
 * A block takes BM query rows of one head and walks the keys in tiles of 64, with the softmax
 * online in natural exponentials (expf). Threads form a grid of BM / 4 by 16; thread (ty, tx) has
 * rows 4 ty .. 4 ty + 3 and, of the scores, keys tx, tx + 16, tx + 32, tx + 48. K and V pass
 * through one buffer in slices of DC columns, so that head dims to 256 fit the 64 KiB of sm_75.
 *
 * Every sum of a row has one order: scores over d by one thread, slice by slice; the sum of the
 * probabilities four a thread, then a butterfly over the sixteen threads of the row; O over the keys
 * by one thread. A tile's sums begin at zero and are added to the row's with compensation
 * (td_att_add), so that their error is a tile's, however long the sample.
 * Where a row does not see a key, its value is left out by choice, not multiplied by 0: it may be
 * infinite.
 */
#include "gpu/attention.cuh"

namespace {
enum { F32_KEYS = 64, F32_KEYS_LD = F32_KEYS + 4 };

__host__ __device__ constexpr int f32_slice(int d) {
    return d % 64 == 0 ? 64 : 32;
}

/* ROWS rows of COLS columns, from row r0 and column c0 of global memory (row r at src + r *
 * stride), times `scale`, to dst with rows of LD; zeros from n_rows and n_cols on. */
template <int ROWS, int COLS, int LD, int THREADS>
__device__ __forceinline__ void load_slice(float *dst, const float *src, int64_t stride, int32_t r0,
                                           int32_t n_rows, int32_t c0, int32_t n_cols, float scale,
                                           bool aligned) {
    static_assert(ROWS * COLS / 4 % THREADS == 0, "every thread moves the same number");
    const int tid = td_opaque((int)threadIdx.x); /* or the offsets would live in registers */
#pragma unroll 2
    for (int i = tid; i < ROWS * COLS / 4; i += THREADS) {
        const int r = i / (COLS / 4), c = i % (COLS / 4) * 4;
        const float *from = src + (r0 + r) * stride + c0 + c;
        const bool row = r0 + r < n_rows;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (aligned) {
            if (row && c0 + c < n_cols)
                x = *reinterpret_cast<const float4 *>(from);
        } else {
            x.x = row && c0 + c < n_cols ? from[0] : 0.0f;
            x.y = row && c0 + c + 1 < n_cols ? from[1] : 0.0f;
            x.z = row && c0 + c + 2 < n_cols ? from[2] : 0.0f;
            x.w = row && c0 + c + 3 < n_cols ? from[3] : 0.0f;
        }
        *reinterpret_cast<float4 *>(dst + r * LD + c) =
            make_float4(x.x * scale, x.y * scale, x.z * scale, x.w * scale);
    }
}

/* o[i][w] = sum over the tile's keys of p[i][key] * v[key][w], for the thread's four rows and W
 * columns of a slice. EDGE: key by key as the row sees them. */
template <bool EDGE, int W, int LD>
__device__ __forceinline__ void tile_values(float (&o)[4][W], const float *p, const float *v,
                                            int32_t row0, int32_t k0, int32_t window) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int w = 0; w < W; w++)
            o[i][w] = 0.0f;
#pragma unroll 2
    for (int j = 0; j < F32_KEYS; j += 4) {
        float pj[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float4 x = *reinterpret_cast<const float4 *>(p + i * F32_KEYS_LD + j);
            pj[i][0] = x.x;
            pj[i][1] = x.y;
            pj[i][2] = x.z;
            pj[i][3] = x.w;
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float vj[W];
#pragma unroll
            for (int w = 0; w < W; w += 2) {
                const float2 x = *reinterpret_cast<const float2 *>(v + (j + e) * LD + w);
                vj[w] = x.x;
                vj[w + 1] = x.y;
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool sees = !EDGE || td_att_sees(row0 + i, k0 + j + e, window);
#pragma unroll
                for (int w = 0; w < W; w++)
                    o[i][w] = sees ? fmaf(pj[i][e], vj[w], o[i][w]) : o[i][w];
            }
        }
    }
}
} // namespace

/* Blocks of 4 BM threads; grid and rows as attention.cuh describes. */
template <int D, int BM>
__global__ void __launch_bounds__(4 * BM, BM == 64 ? 2 : 3)
    td_attention_f32_kernel(td_attention_args a, int32_t n_slots, bool aligned) {
    constexpr int DC = f32_slice(D), N_SLICES = D / DC, W = DC / 16, LD = DC + 4, THREADS = 4 * BM;
    TD_DYNAMIC_SHARED(float, shared);
    float *const sq = shared, *const skv = sq + BM * (D + 4), *const sp = skv + F32_KEYS * LD;

    td_att_task t;
    if (!td_att_locate<BM, F32_KEYS>(a, n_slots, &t))
        return;
    const int64_t origin = t.start * a.stride;
    const float *const q = static_cast<const float *>(a.q) + origin + (int64_t)t.head * a.head_dim;
    const float *const k =
        static_cast<const float *>(a.k) + origin + (int64_t)t.kv_head * a.head_dim;
    const float *const v =
        static_cast<const float *>(a.v) + origin + (int64_t)t.kv_head * a.head_dim;

    const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    const int32_t row0 = t.q0 + ty * 4;                        /* the thread's first row */
    const int32_t w0 = t.q0 + ((int32_t)threadIdx.x >> 5) * 8; /* its warp's */
    const float *const my_q = sq + ty * 4 * (D + 4), *const my_k = skv + tx * LD;
    float *const my_p = sp + ty * 4 * F32_KEYS_LD;

    float o[N_SLICES][4][W], o_lost[N_SLICES][4][W], m_row[4], l_row[4], l_lost[4], corr[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        m_row[i] = td_att_ninf();
        l_row[i] = l_lost[i] = 0.0f;
        corr[i] = 1.0f;
#pragma unroll
        for (int c = 0; c < N_SLICES; c++)
#pragma unroll
            for (int w = 0; w < W; w++)
                o[c][i][w] = o_lost[c][i][w] = 0.0f;
    }
    load_slice<BM, D, D + 4, THREADS>(sq, q, a.stride, t.q0, t.len, 0, a.head_dim, a.scale,
                                      aligned);

#pragma unroll 1
    for (int32_t k0 = t.k_begin; k0 < t.k_end; k0 += F32_KEYS) {
        const bool busy = w0 < t.len && !td_att_blind(w0, 8, k0, F32_KEYS, a.window);
        const bool edge = td_att_edge(w0, 8, k0, F32_KEYS, a.window);
        float s[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[i][j] = 0.0f;
#pragma unroll 1
        for (int c = 0; c < N_SLICES; c++) {
            __syncthreads();
            load_slice<F32_KEYS, DC, LD, THREADS>(skv, k, a.stride, k0, t.len, c * DC, a.head_dim,
                                                  1.0f, aligned);
            __syncthreads();
            if (!busy)
                continue;
            float part[4][4] = {}; /* a score is summed by slices, each from zero */
#pragma unroll 2
            for (int d = 0; d < DC; d += 4) {
                float4 x[4], y[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    x[i] = *reinterpret_cast<const float4 *>(my_q + i * (D + 4) + c * DC + d);
                    y[i] = *reinterpret_cast<const float4 *>(my_k + i * 16 * LD + d);
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        part[i][j] = fmaf(x[i].x, y[j].x, part[i][j]);
                        part[i][j] = fmaf(x[i].y, y[j].y, part[i][j]);
                        part[i][j] = fmaf(x[i].z, y[j].z, part[i][j]);
                        part[i][j] = fmaf(x[i].w, y[j].w, part[i][j]);
                    }
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    s[i][j] += part[i][j];
        }
        if (busy) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float top = td_att_ninf();
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    if (a.softcap > 0)
                        s[i][j] = a.softcap * tanhf(s[i][j] / a.softcap);
                    if (edge && !td_att_sees(row0 + i, k0 + tx + 16 * j, a.window))
                        s[i][j] = td_att_ninf();
                    top = fmaxf(top, s[i][j]);
                }
#pragma unroll
                for (int d = 8; d > 0; d >>= 1)
                    top = fmaxf(top, __shfl_xor_sync(TD_FULL_MASK, top, d));
                top = fmaxf(top, m_row[i]);
                /* Nothing seen so far: the state stays. */
                corr[i] = top == td_att_ninf() ? 1.0f : expf(m_row[i] - top);
                m_row[i] = top;
                float sum = 0.0f;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float p = s[i][j] == td_att_ninf() ? 0.0f : expf(s[i][j] - top);
                    my_p[i * F32_KEYS_LD + tx + 16 * j] = p;
                    sum += p;
                }
#pragma unroll
                for (int d = 8; d > 0; d >>= 1)
                    sum += __shfl_xor_sync(TD_FULL_MASK, sum, d);
                td_att_add(&l_row[i], &l_lost[i], corr[i], sum);
            }
        }
#pragma unroll
        for (int c = 0; c < N_SLICES; c++) {
            __syncthreads();
            load_slice<F32_KEYS, DC, LD, THREADS>(skv, v, a.stride, k0, t.len, c * DC, a.head_dim,
                                                  1.0f, aligned);
            __syncthreads();
            if (!busy)
                continue;
            float x[4][W];
            if (edge)
                tile_values<true, W, LD>(x, my_p, skv + tx * W, row0, k0, a.window);
            else
                tile_values<false, W, LD>(x, my_p, skv + tx * W, row0, k0, a.window);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int w = 0; w < W; w++)
                    td_att_add(&o[c][i][w], &o_lost[c][i][w], corr[i], x[i][w]);
        }
    }

#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row0 + i >= t.len)
            break;
        const int64_t at = ((t.start + row0 + i) * a.n_heads + t.head) * a.head_dim;
#pragma unroll
        for (int c = 0; c < N_SLICES; c++)
#pragma unroll
            for (int w = 0; w < W; w++) {
                const int col = c * DC + tx * W + w;
                if (col >= a.head_dim)
                    continue;
                const float x = o[c][i][w] / l_row[i];
                if (a.out_dtype == TD_F32)
                    static_cast<float *>(a.out)[at + col] = x;
                else if (a.out_dtype == TD_BF16)
                    static_cast<__nv_bfloat16 *>(a.out)[at + col] =
                        td_type<__nv_bfloat16>::from_f32(x);
                else
                    static_cast<__half *>(a.out)[at + col] = td_type<__half>::from_f32(x);
            }
    }
}

template __global__ void td_attention_f32_kernel<32, 64>(td_attention_args, int32_t, bool);
template __global__ void td_attention_f32_kernel<64, 64>(td_attention_args, int32_t, bool);
template __global__ void td_attention_f32_kernel<96, 64>(td_attention_args, int32_t, bool);
template __global__ void td_attention_f32_kernel<128, 64>(td_attention_args, int32_t, bool);
template __global__ void td_attention_f32_kernel<128, 32>(td_attention_args, int32_t, bool);
template __global__ void td_attention_f32_kernel<256, 32>(td_attention_args, int32_t, bool);

#ifndef __CUDACC_RTC__
static constexpr size_t f32_shared_bytes(int d, int bm) {
    return sizeof(float) *
           ((size_t)bm * (d + 4) + F32_KEYS * (f32_slice(d) + 4) + bm * F32_KEYS_LD);
}

template <int D, int BM>
static cudaError_t launch(const td_attention_args *a, cudaStream_t stream) {
    const int32_t n_slots = td_att_n_slots(a, BM);
    const int64_t n_blocks = (int64_t)n_slots * a->n_heads;
    if (n_blocks > INT32_MAX)
        return cudaErrorInvalidValue;
    return TD_LAUNCH((td_attention_f32_kernel<D, BM>), (unsigned)n_blocks, 4u * BM,
                     f32_shared_bytes(D, BM), stream, *a, n_slots, td_att_aligned(a));
}

cudaError_t td_gpu_attention_f32(const td_attention_args *a, const td_gpu_chip *chip,
                                 cudaStream_t stream) {
    if (a->in_dtype != TD_F32 || a->head_dim > 256)
        return cudaErrorInvalidValue;
    if (a->head_dim <= 32)
        return launch<32, 64>(a, stream);
    if (a->head_dim <= 64)
        return launch<64, 64>(a, stream);
    if (a->head_dim <= 96)
        return launch<96, 64>(a, stream);
    if (a->head_dim <= 128)
        return chip->max_shared_bytes >= (int32_t)f32_shared_bytes(128, 64)
                   ? launch<128, 64>(a, stream)
                   : launch<128, 32>(a, stream);
    return launch<256, 32>(a, stream);
}
#endif
