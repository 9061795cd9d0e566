/* attention_wmma.cu - f16 attention with the tensor cores of sm_70, through nvcuda::wmma, as their
 * instructions have no documented operand layout.
 *
 * A block of four warps takes 64 query rows of one head, sixteen to a warp, and walks the keys in
 * tiles of 32. S goes through shared memory, where two lanes have a row each for the softmax (base
 * 2, online) and write P as f16. O stays in accumulator fragments: that these are all laid out
 * alike is promised, so they are rescaled by a fragment loaded from a tile of factors, row by row.
 * Copies are plain: nothing is asynchronous on sm_70. A tile's O is summed from zero and then added
 * to the row's, as attention_mma.cu says.
 *
 * Values that are not finite are kept from rows that do not see them as attention_mma.cu does:
 * put to zero in the tiles where the mask applies and added to the result at the end.
 */
#include <mma.h>

#include "gpu/attention.cuh"

namespace {
enum {
    W_WARPS = 4,
    W_THREADS = W_WARPS * 32,
    W_ROWS = W_WARPS * 16,
    W_KEYS = 32,
    W_S_LD = W_KEYS + 4, /* f32; the strides of WMMA are multiples of 16 bytes */
    W_P_LD = W_KEYS + 8, /* f16 */
};
using nvcuda::wmma::accumulator;
using nvcuda::wmma::col_major;
using nvcuda::wmma::matrix_a;
using nvcuda::wmma::matrix_b;
using nvcuda::wmma::row_major;
template <class Use, class... Layout>
using fragment = nvcuda::wmma::fragment<Use, 16, 16, 16, Layout...>;

/* What a warp has for itself; all parts begin on 32 bytes, as WMMA wants. */
struct warp_shared {
    float s[16 * W_S_LD]; /* scores; at the end, sixteen columns of O */
    float corr[16 * 16];  /* row r: sixteen times the factor of row r */
    __half p[16 * W_P_LD];
};
static_assert(sizeof(warp_shared) % 32 == 0, "the next warp's parts begin on 32 bytes");

/* ROWS rows of D f16, from row r0 of global memory (row r at src + r * stride), to dst with rows of
 * D + 8; zeros from n_rows and n_cols on. With `scrub`, what is not finite becomes zero too; 1 when
 * there was any. */
template <int ROWS, int D>
__device__ __forceinline__ int load_rows(__half *dst, const __half *src, int64_t stride, int32_t r0,
                                         int32_t n_rows, int32_t n_cols, bool aligned, bool scrub) {
    int found = 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < ROWS * D / 8; i += W_THREADS) {
        const int r = i / (D / 8), c = i % (D / 8) * 8;
        const uint16_t *from = reinterpret_cast<const uint16_t *>(src) + (r0 + r) * stride + c;
        const bool row = r0 + r < n_rows;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (aligned) {
            if (row && c < n_cols)
                x = *reinterpret_cast<const uint4 *>(from);
        } else {
            uint32_t e[8];
#pragma unroll
            for (int j = 0; j < 8; j++)
                e[j] = row && c + j < n_cols ? from[j] : 0;
            x = make_uint4(e[0] | e[1] << 16, e[2] | e[3] << 16, e[4] | e[5] << 16,
                           e[6] | e[7] << 16);
        }
        if (scrub) {
            x.x = td_att_scrub<__half>(x.x, &found);
            x.y = td_att_scrub<__half>(x.y, &found);
            x.z = td_att_scrub<__half>(x.z, &found);
            x.w = td_att_scrub<__half>(x.w, &found);
        }
        *reinterpret_cast<uint4 *>(dst + r * (D + 8) + c) = x;
    }
    return found;
}
} // namespace

/* Blocks of W_THREADS; grid and rows as attention.cuh describes with BM = 64. */
template <int D>
__global__ void __launch_bounds__(W_THREADS)
    td_attention_wmma_kernel(td_attention_args a, int32_t n_slots, bool aligned) {
    constexpr int LD = D + 8;
    TD_DYNAMIC_SHARED(__half, shared);
    __half *const sq = shared, *const sk = sq + W_ROWS * LD, *const sv = sk + W_KEYS * LD;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    warp_shared *const own = reinterpret_cast<warp_shared *>(sv + W_KEYS * LD) + warp;

    td_att_task t;
    if (!td_att_locate<W_ROWS, W_KEYS>(a, n_slots, &t))
        return;
    const int64_t origin = t.start * a.stride;
    const __half *const q =
        static_cast<const __half *>(a.q) + origin + (int64_t)t.head * a.head_dim;
    const __half *const k =
        static_cast<const __half *>(a.k) + origin + (int64_t)t.kv_head * a.head_dim;
    const __half *const v =
        static_cast<const __half *>(a.v) + origin + (int64_t)t.kv_head * a.head_dim;
    const int32_t w0 = t.q0 + warp * 16;
    const int r = lane >> 1, odd = lane & 1; /* the lane's row of the warp and its odd columns */
    const int32_t row = w0 + r;
    const float inv_softcap = a.softcap > 0 ? 1.0f / a.softcap : 0.0f;

    fragment<accumulator, float> o[D / 16];
#pragma unroll
    for (int n = 0; n < D / 16; n++)
        nvcuda::wmma::fill_fragment(o[n], 0.0f);
    float m_row = td_att_ninf(), l_row = 0.0f;
    int poisoned = 0;

    load_rows<W_ROWS, D>(sq, q, a.stride, t.q0, t.len, a.head_dim, aligned, false);
#pragma unroll 1
    for (int32_t k0 = t.k_begin; k0 < t.k_end; k0 += W_KEYS) {
        __syncthreads(); /* behind all reads of the previous tile and of the warp's own parts */
        load_rows<W_KEYS, D>(sk, k, a.stride, k0, t.len, a.head_dim, aligned, false);
        poisoned |=
            __syncthreads_or(load_rows<W_KEYS, D>(sv, v, a.stride, k0, t.len, a.head_dim, aligned,
                                                  td_att_edge(t.q0, W_ROWS, k0, W_KEYS, a.window)));
        if (w0 >= t.len || td_att_blind(w0, 16, k0, W_KEYS, a.window))
            continue;

        fragment<accumulator, float> s[W_KEYS / 16];
#pragma unroll
        for (int n = 0; n < W_KEYS / 16; n++)
            nvcuda::wmma::fill_fragment(s[n], 0.0f);
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            fragment<matrix_a, __half, row_major> fq;
            nvcuda::wmma::load_matrix_sync(fq, sq + warp * 16 * LD + d, LD);
#pragma unroll
            for (int n = 0; n < W_KEYS / 16; n++) {
                fragment<matrix_b, __half, col_major> fk;
                nvcuda::wmma::load_matrix_sync(fk, sk + n * 16 * LD + d, LD);
                nvcuda::wmma::mma_sync(s[n], fq, fk, s[n]);
            }
        }
#pragma unroll
        for (int n = 0; n < W_KEYS / 16; n++)
            nvcuda::wmma::store_matrix_sync(own->s + n * 16, s[n], W_S_LD,
                                            nvcuda::wmma::mem_row_major);
        __syncwarp();

        float x[W_KEYS / 2], top = td_att_ninf();
#pragma unroll
        for (int j = 0; j < W_KEYS / 2; j++) {
            x[j] = own->s[r * W_S_LD + 2 * j + odd] * a.scale;
            if (a.softcap > 0)
                x[j] = td_att_softcap(x[j], a.softcap, inv_softcap);
            if (!td_att_sees(row, k0 + 2 * j + odd, a.window))
                x[j] = td_att_ninf();
            top = fmaxf(top, x[j]);
        }
        top = fmaxf(top, __shfl_xor_sync(TD_FULL_MASK, top, 1));
        top = fmaxf(top * TD_LOG2E, m_row);
        /* Nothing seen so far: the state stays, and 2^(-inf - 0) = 0. */
        const bool none = top == td_att_ninf();
        const float corr = none ? 1.0f : td_exp2_approx(m_row - top), shift = none ? 0.0f : top;
        const bool moved = __any_sync(TD_FULL_MASK, top > m_row);
        m_row = top;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < W_KEYS / 2; j++) {
            const float p = td_exp2_approx(fmaf(x[j], TD_LOG2E, -shift));
            sum += p;
            own->p[r * W_P_LD + 2 * j + odd] = __float2half_rn(p);
        }
        sum += __shfl_xor_sync(TD_FULL_MASK, sum, 1);
        l_row = l_row * corr + sum;
        if (moved)
#pragma unroll
            for (int j = 0; j < 8; j++)
                own->corr[r * 16 + odd * 8 + j] = corr;
        __syncwarp();

        if (moved) { /* else all factors are 1 */
            fragment<accumulator, float> f;
            nvcuda::wmma::load_matrix_sync(f, own->corr, 16, nvcuda::wmma::mem_row_major);
#pragma unroll
            for (int n = 0; n < D / 16; n++)
#pragma unroll
                for (int e = 0; e < f.num_elements; e++)
                    o[n].x[e] *= f.x[e];
        }
        fragment<matrix_a, __half, row_major> fp[W_KEYS / 16];
#pragma unroll
        for (int j = 0; j < W_KEYS / 16; j++)
            nvcuda::wmma::load_matrix_sync(fp[j], own->p + j * 16, W_P_LD);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            fragment<accumulator, float> tile_o;
            nvcuda::wmma::fill_fragment(tile_o, 0.0f);
#pragma unroll
            for (int j = 0; j < W_KEYS / 16; j++) {
                fragment<matrix_b, __half, row_major> fv;
                nvcuda::wmma::load_matrix_sync(fv, sv + j * 16 * LD + n * 16, LD);
                nvcuda::wmma::mma_sync(tile_o, fp[j], fv, tile_o);
            }
#pragma unroll
            for (int e = 0; e < tile_o.num_elements; e++)
                o[n].x[e] += tile_o.x[e];
        }
    }
    if (w0 >= t.len)
        return;

    __half *const out =
        static_cast<__half *>(a.out) + ((t.start + row) * a.n_heads + t.head) * (int64_t)a.head_dim;
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        nvcuda::wmma::store_matrix_sync(own->s, o[n], W_S_LD, nvcuda::wmma::mem_row_major);
        __syncwarp();
#pragma unroll 1
        for (int e = 0; e < 8; e++) {
            const int col = n * 16 + odd * 8 + e;
            if (row >= t.len || col >= a.head_dim)
                break;
            float x = own->s[r * W_S_LD + odd * 8 + e];
            if (poisoned)
                for (int32_t j = t.k_begin; j < t.k_end; j++) {
                    const float y = __half2float(v[j * a.stride + col]);
                    if (td_att_edge(t.q0, W_ROWS, j / W_KEYS * W_KEYS, W_KEYS, a.window) &&
                        td_att_sees(row, j, a.window) && !(y - y == 0.0f))
                        x += y;
                }
            out[col] = __float2half_rn(x / l_row);
        }
        __syncwarp();
    }
}

template __global__ void td_attention_wmma_kernel<32>(td_attention_args, int32_t, bool);
template __global__ void td_attention_wmma_kernel<64>(td_attention_args, int32_t, bool);
template __global__ void td_attention_wmma_kernel<96>(td_attention_args, int32_t, bool);
template __global__ void td_attention_wmma_kernel<128>(td_attention_args, int32_t, bool);
template __global__ void td_attention_wmma_kernel<256>(td_attention_args, int32_t, bool);

#ifndef __CUDACC_RTC__
static constexpr size_t wmma_shared_bytes(int d) {
    return (size_t)(W_ROWS + 2 * W_KEYS) * (d + 8) * sizeof(__half) + W_WARPS * sizeof(warp_shared);
}

template <int D> static cudaError_t launch(const td_attention_args *a, cudaStream_t stream) {
    const int32_t n_slots = td_att_n_slots(a, W_ROWS);
    const int64_t n_blocks = (int64_t)n_slots * a->n_heads;
    if (n_blocks > INT32_MAX)
        return cudaErrorInvalidValue;
    return TD_LAUNCH((td_attention_wmma_kernel<D>), (unsigned)n_blocks, (unsigned)W_THREADS,
                     wmma_shared_bytes(D), stream, *a, n_slots, td_att_aligned(a));
}

cudaError_t td_gpu_attention_wmma(const td_attention_args *a, const td_gpu_chip *chip,
                                  cudaStream_t stream) {
    if (a->in_dtype != TD_F16 || a->out_dtype != TD_F16 || a->head_dim > 256 ||
        chip->compute_capability < 70)
        return cudaErrorInvalidValue;
    if (a->head_dim <= 32)
        return launch<32>(a, stream);
    if (a->head_dim <= 64)
        return launch<64>(a, stream);
    if (a->head_dim <= 96)
        return launch<96>(a, stream);
    if (a->head_dim <= 128)
        return launch<128>(a, stream);
    return launch<256>(a, stream);
}
#endif
