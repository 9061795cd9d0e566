/* attention.cuh - what the three attention kernels share: how blocks find their work in a packed
 * batch, and what a row may see.
 *
 * The grid is one-dimensional, n_slots * H blocks, with no loop over sequences on the host: for
 * tiles of BM rows, sequence s owns the slots from floor(seq_offsets[s] / BM) + s up to where the
 * next one begins, which is at least ceil(len / BM) of them, and n_slots = floor(T / BM) + B covers
 * all. A block finds its sequence by bisection; a slot behind the last tile has nothing to do.
 *
 * Order of the blocks: kv heads outside, then slots, then the query heads that share a kv head, so
 * that what runs at the same time reads the same keys and values (L2). Within a sequence the last
 * tile comes first: it has the most keys, and what is left at the end of the grid is short.
 *
 * Row contract (docs/design.md, invariants): tiles of rows and of keys count from the start of the sequence,
 * so a row meets its keys in the same tiles and in the same lanes wherever its sequence stands in
 * the batch. A tile in which a row sees nothing leaves the row's state as it is, bit for bit, so
 * it does not matter whether a kernel skips it or computes it for the sake of other rows.
 */
#ifndef TDGEN_GPU_ATTENTION_CUH
#define TDGEN_GPU_ATTENTION_CUH

#include "gpu/common.cuh"
#include "gpu/ptx.cuh"

#define TD_LOG2E 1.4426950408889634f

/* One block's work: rows q0 .. q0 + BM - 1 of a sequence, for one query head. */
typedef struct td_att_task {
    int64_t start; /* the sequence's first row in the batch */
    int32_t len;   /* its length */
    int32_t q0;    /* < len */
    int32_t head, kv_head;
    int32_t k_begin; /* keys to visit, in tiles from k_begin (a multiple of BN) up to k_end */
    int32_t k_end;   /* <= len */
} td_att_task;

static __device__ __forceinline__ int32_t td_att_min(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static __device__ __forceinline__ float td_att_ninf() {
    return __uint_as_float(0xff800000u);
}

/* False: the slot is empty and the block returns. Uniform over the block. */
template <int BM, int BN>
static __device__ __forceinline__ bool td_att_locate(const td_attention_args &a, int32_t n_slots,
                                                     td_att_task *t) {
    const int32_t group = a.n_heads / a.n_kv_heads;
    const int32_t b = (int32_t)blockIdx.x, per_kv = n_slots * group;
    t->kv_head = b / per_kv;
    const int32_t rest = b - t->kv_head * per_kv, slot = rest / group;
    t->head = t->kv_head * group + (rest - slot * group);
    /* The last sequence whose first slot is at or before `slot`: first slots ascend strictly. */
    int32_t lo = 0, hi = a.n_seqs - 1;
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo + 1) / 2;
        if (a.seq_offsets[mid] / BM + mid <= slot)
            lo = mid;
        else
            hi = mid - 1;
    }
    const int32_t start = a.seq_offsets[lo];
    t->start = start;
    t->len = a.seq_offsets[lo + 1] - start;
    const int32_t n_tiles = (t->len + BM - 1) / BM;
    const int32_t tile = n_tiles - 1 - (slot - (start / BM + lo));
    if (tile < 0)
        return false;
    t->q0 = tile * BM;
    t->k_end = td_att_min(t->q0 + BM, t->len);
    t->k_begin = a.window > 0 && t->q0 >= a.window ? (t->q0 - a.window + 1) / BN * BN : 0;
    return true;
}

/* Whether row i sees key j. */
static __device__ __forceinline__ bool td_att_sees(int32_t i, int32_t j, int32_t window) {
    return j <= i && (window == 0 || j > i - window);
}

/* Whether some row of [q0, q0 + n_q) does not see some key of [k0, k0 + n_k): the tile needs the
 * mask. */
static __device__ __forceinline__ bool td_att_edge(int32_t q0, int32_t n_q, int32_t k0, int32_t n_k,
                                                   int32_t window) {
    return k0 + n_k - 1 > q0 || (window > 0 && k0 <= q0 + n_q - 1 - window);
}

/* Whether no row of [q0, q0 + n_q) sees any key of [k0, k0 + n_k). */
static __device__ __forceinline__ bool td_att_blind(int32_t q0, int32_t n_q, int32_t k0,
                                                    int32_t n_k, int32_t window) {
    return k0 > q0 + n_q - 1 || (window > 0 && k0 + n_k - 1 <= q0 - window);
}

/* softcap * tanh(s / softcap), with an absolute error of about 1e-7 * softcap. */
static __device__ __forceinline__ float td_att_softcap(float s, float softcap, float inv_softcap) {
    const float e = td_exp2_approx(s * inv_softcap * (2.0f * TD_LOG2E));
    return softcap - softcap * __fdividef(2.0f, e + 1.0f);
}

/* *sum = *sum * corr + x; *lost is what earlier additions rounded off, to be subtracted (Kahan
 * 1965). With corr = 1 and x = 0 both stay as they are, bit for bit. */
static __device__ __forceinline__ void td_att_add(float *sum, float *lost, float corr, float x) {
    const float before = __fmul_rn(*sum, corr), y = __fmaf_rn(-*lost, corr, x);
    const float after = __fadd_rn(before, y);
    const float c = __fsub_rn(__fsub_rn(after, before), y);
    *sum = after;
    *lost = c == c ? c : 0.0f; /* an infinite sum stays infinite */
}

/* 16-bit elements, two to a word: the words in which an element is infinite or NaN. */
template <class T> struct td_att_bits;
template <> struct td_att_bits<__half> { static const uint32_t ulp_of_exponent = 0x0400; };
template <> struct td_att_bits<__nv_bfloat16> { static const uint32_t ulp_of_exponent = 0x0080; };

/* w with elements that are not finite put to zero; *found is set when there were any. */
template <class T> static __device__ __forceinline__ uint32_t td_att_scrub(uint32_t w, int *found) {
    /* An exponent of all ones carries into the sign's place when one is added to it. */
    const uint32_t ulp = td_att_bits<T>::ulp_of_exponent;
    const uint32_t bad = ((w & 0x7fff7fffu) + (ulp << 16 | ulp)) & 0x80008000u;
    if (bad == 0)
        return w;
    *found = 1;
    return w & ~((bad >> 15) * 0xffffu);
}

#ifndef __CUDACC_RTC__
#include "gpu/kernels.h"

/* floor(T / BM) + B. */
static inline int32_t td_att_n_slots(const td_attention_args *a, int32_t block_rows) {
    return a->seq_offsets_host[a->n_seqs] / block_rows + a->n_seqs;
}

/* Whether rows of q, k, v and out can be moved in pieces of 16 bytes. */
static inline bool td_att_aligned(const td_attention_args *a) {
    const uintptr_t all = (uintptr_t)a->q | (uintptr_t)a->k | (uintptr_t)a->v | (uintptr_t)a->out;
    const int64_t per_16 = a->in_dtype == TD_F32 ? 4 : 8;
    return all % 16 == 0 && a->stride % per_16 == 0 && a->head_dim % per_16 == 0;
}
#endif

#endif
