/* capture.cuh - the pieces of capture.cu: a row, how it is read, keys, reductions of a block.
 *
 * A row of logits belongs to one thread block. It is cut into segments of 128 consecutive ids; what
 * is known of each segment lies in shared memory. Which thread handles which id, and so the order
 * of every sum, follows from the id alone: neither the row's address nor the number of rows
 * matters.
 */
#ifndef TDGEN_GPU_CAPTURE_CUH
#define TDGEN_GPU_CAPTURE_CUH

#include "capture/limits.h"
#include "gpu/common.cuh"

enum {
    TD_CAPTURE_THREADS = 256,
    TD_CAPTURE_WARPS = TD_CAPTURE_THREADS / 32,
    TD_CAPTURE_SEGMENT = 128,
    TD_CAPTURE_STEP = 4 * TD_CAPTURE_SEGMENT, /* ids that a warp takes at a time, 16 to a lane */
    /* Room for keys: the best K and a round of one segment to each warp always fit. */
    TD_CAPTURE_KEYS = 2048
};
static_assert(TD_CAPTURE_KEYS >= TD_MAX_TOP_K + TD_CAPTURE_WARPS * TD_CAPTURE_SEGMENT,
              "a round always fits behind the best");

#define TD_CAPTURE_INFINITY __int_as_float(0x7f800000)
#define TD_CAPTURE_FLT_MAX __int_as_float(0x7f7fffff)

/* The kernel's argument. */
typedef struct td_capture_params {
    td_capture_args a;
    float inverse_divisor; /* 1 / divisor where that is exact (powers of two), else 0 */
    float temperature[TD_MAX_TEMPERATURES];
    /* log2(e) / T as the sum of two floats */
    float rate[TD_MAX_TEMPERATURES], rate_low[TD_MAX_TEMPERATURES];
    int32_t always[TD_MAX_ALWAYS_IDS]; /* of a.always_ids */
} td_capture_params;

#ifndef __CUDACC_RTC__
cudaError_t td_capture_dense_launch(const td_capture_params *p, cudaStream_t stream);
#endif

/* The row as its block sees it; m and log_s are set after the first pass. */
typedef struct td_capture_row {
    const float *x; /* the raw logits */
    int n;          /* ids that count: n_valid */
    int n_segments;
    bool aligned; /* x is a multiple of 16 bytes */
    float m, log_s;
} td_capture_row;

/* The block's shared memory. `weighted` and `near` are read for the last time before the first key
 * is written: they share their place with `key`. */
typedef struct td_capture_shared {
    double *sum;     /* [n_segments] of exp(z - the segment's maximum), later of exp(z - m) */
    float *max;      /* [n_segments] */
    float *weighted; /* [n_segments] sum of exp(d) d, d = z - the segment's maximum */
    uint16_t *near;  /* [n_segments] segments that may hold ids whose logprob is the target's */
    uint64_t *key;   /* [TD_CAPTURE_KEYS] */
    uint16_t *list;  /* [n_segments] segments that may hold ids of the best K */
    uint32_t *taken; /* [n_segments bits] segments that do */
    double *reduce;  /* [TD_CAPTURE_WARPS] */
    int *n_keys, *n_list, *n_near;
} td_capture_shared;

/* Bytes of shared memory by number of segments; the places of td_capture_shared_of. */
static __host__ __device__ inline size_t td_capture_keys_bytes(size_t n_segments) {
    const size_t first = n_segments * (sizeof(float) + sizeof(uint16_t));
    const size_t keys = TD_CAPTURE_KEYS * sizeof(uint64_t);
    return ((first > keys ? first : keys) + 7) / 8 * 8;
}
static __host__ __device__ inline size_t td_capture_shared_bytes(size_t n_segments) {
    return n_segments * sizeof(double) + td_capture_keys_bytes(n_segments) +
           TD_CAPTURE_WARPS * sizeof(double) + n_segments * sizeof(float) +
           (n_segments + 31) / 32 * sizeof(uint32_t) + 4 * sizeof(int) +
           n_segments * sizeof(uint16_t);
}
static __device__ __forceinline__ td_capture_shared td_capture_shared_of(unsigned char *base,
                                                                         int n_segments) {
    td_capture_shared s;
    s.sum = reinterpret_cast<double *>(base);
    s.key = reinterpret_cast<uint64_t *>(s.sum + n_segments);
    s.weighted = reinterpret_cast<float *>(s.key);
    s.near = reinterpret_cast<uint16_t *>(s.weighted + n_segments);
    s.reduce = reinterpret_cast<double *>(reinterpret_cast<unsigned char *>(s.key) +
                                          td_capture_keys_bytes(n_segments));
    s.max = reinterpret_cast<float *>(s.reduce + TD_CAPTURE_WARPS);
    s.taken = reinterpret_cast<uint32_t *>(s.max + n_segments);
    s.n_keys = reinterpret_cast<int *>(s.taken + (n_segments + 31) / 32);
    s.n_list = s.n_keys + 1;
    s.n_near = s.n_keys + 2;
    s.list = reinterpret_cast<uint16_t *>(s.n_keys + 4);
    return s;
}

/* --- logits and log-probs --------------------------------------------------------------------- */

/* The finished logit. Every operation is spelled with its rounding, so that no place where this is
 * inlined fuses it with its surroundings: all passes must see the same bits. +inf stays: a soft cap
 * would hide it. */
template <bool RAW>
static __device__ __forceinline__ float td_capture_finish(const td_capture_params &p, float x) {
    if (RAW)
        return x;
    float z =
        p.inverse_divisor != 0.0f ? __fmul_rn(x, p.inverse_divisor) : __fdiv_rn(x, p.a.divisor);
    if (p.a.softcap > 0.0f)
        z = __fmul_rn(p.a.softcap, tanhf(__fdiv_rn(z, p.a.softcap)));
    return x == TD_CAPTURE_INFINITY ? x : z;
}

static __device__ __forceinline__ float td_capture_logprob(const td_capture_row &row, float z) {
    return __fsub_rn(__fsub_rn(z, row.m), row.log_s);
}

/* Ordered like the float, and back. No NaN comes here; -0 is mapped to +0. */
static __device__ __forceinline__ uint32_t td_capture_order(float f) {
    const uint32_t u = __float_as_uint(__fadd_rn(f, 0.0f));
    return u >> 31 ? ~u : u | 0x80000000u;
}
static __device__ __forceinline__ float td_capture_unorder(uint32_t o) {
    return __uint_as_float(o >> 31 ? o & 0x7fffffffu : ~o);
}
#define TD_CAPTURE_LEAST_FINITE 0x00800000u /* td_capture_order(-FLT_MAX) */

/* One comparison of keys is the record's order: the better id has the larger key. */
static __device__ __forceinline__ uint64_t td_capture_key(float logprob, int id) {
    return (uint64_t)td_capture_order(logprob) << 32 | (uint32_t)~id;
}

/* exp(max - m) to f32's precision, however large the two are. */
static __device__ __forceinline__ double td_capture_scale(float max, float m) {
    const double d = (double)max - (double)m;
    const float head = (float)d;
    return (double)expf(head) * (1.0 + (d - (double)head));
}

/* --- reading ---------------------------------------------------------------------------------- */

/* z[0..4) = the finished logits of the ids from `first` (a multiple of 4) on, -inf past the end. */
template <bool RAW>
static __device__ __forceinline__ void td_capture_read_quad(float z[4], const td_capture_params &p,
                                                            const td_capture_row &row, int first) {
    if (row.aligned && first + 4 <= row.n) {
        const float4 q = *reinterpret_cast<const float4 *>(row.x + first);
        z[0] = q.x, z[1] = q.y, z[2] = q.z, z[3] = q.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            z[i] = first + i < row.n ? row.x[first + i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        z[i] = first + i < row.n ? td_capture_finish<RAW>(p, z[i]) : -TD_CAPTURE_INFINITY;
}

/* visit(segment, first, z) for those of the segments list[begin, end), or begin .. end - 1 without
 * a list, that are wanted(segment): one warp to a segment, four loads of a warp in flight; each
 * lane gets four finished logits z of the ids from `first` on. */
template <bool RAW, class Wanted, class Visit>
static __device__ __forceinline__ void
td_capture_walk(const td_capture_params &p, const td_capture_row &row, const uint16_t *list,
                int begin, int end, Wanted wanted, Visit visit) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int at = begin + warp; at < end; at += 4 * TD_CAPTURE_WARPS) {
        float z[4][4];
        int segment[4];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            const int i = at + u * TD_CAPTURE_WARPS;
            segment[u] = i < end ? (list ? list[i] : i) : -1;
            if (segment[u] >= 0 && !wanted(segment[u]))
                segment[u] = -1;
            if (segment[u] >= 0)
                td_capture_read_quad<RAW>(z[u], p, row, segment[u] * TD_CAPTURE_SEGMENT + 4 * lane);
        }
#pragma unroll
        for (int u = 0; u < 4; u++)
            if (segment[u] >= 0)
                visit(segment[u], segment[u] * TD_CAPTURE_SEGMENT + 4 * lane, z[u]);
    }
}

/* --- the block -------------------------------------------------------------------------------- */

static __device__ __forceinline__ int td_capture_warp_sum(int x) {
    for (int d = 16; d > 0; d >>= 1)
        x += __shfl_xor_sync(TD_FULL_MASK, x, d);
    return x;
}
static __device__ __forceinline__ double td_capture_warp_sum(double x) {
    return td_warp_sum(x);
}

/* Sum over the block, in one order; every thread gets it. reduce: [TD_CAPTURE_WARPS]. */
template <class T> static __device__ __forceinline__ T td_capture_block_sum(T x, double *reduce) {
    x = td_capture_warp_sum(x);
    __syncthreads();
    if ((threadIdx.x & 31) == 0)
        reduce[threadIdx.x >> 5] = (double)x;
    __syncthreads();
    double y = reduce[0];
    for (int i = 1; i < TD_CAPTURE_WARPS; i++)
        y += reduce[i];
    return (T)y;
}
static __device__ __forceinline__ float td_capture_block_max(float x, double *reduce) {
    x = td_warp_max(x);
    __syncthreads();
    if ((threadIdx.x & 31) == 0)
        reduce[threadIdx.x >> 5] = (double)x;
    __syncthreads();
    double y = reduce[0];
    for (int i = 1; i < TD_CAPTURE_WARPS; i++)
        y = reduce[i] > y ? reduce[i] : y;
    return (float)y;
}

/* key[0..n) in descending order: a bitonic network over the next power of two, the rest filled with
 * zeros, which no id has. All threads; visible to all on return. */
static __device__ inline void td_capture_sort(uint64_t *key, int n) {
    int size = 2;
    while (size < n)
        size *= 2;
    for (int i = n + (int)threadIdx.x; i < size; i += TD_CAPTURE_THREADS)
        key[i] = 0;
    for (int run = 2; run <= size; run *= 2)
        for (int apart = run / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size / 2; i += TD_CAPTURE_THREADS) {
                const int low = 2 * i - (i & (apart - 1)), high = low + apart;
                const uint64_t a = key[low], b = key[high];
                if ((a < b) == ((low & run) == 0)) {
                    key[low] = b;
                    key[high] = a;
                }
            }
        }
    __syncthreads();
}

#endif
