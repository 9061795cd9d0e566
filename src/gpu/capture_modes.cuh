/* capture_modes.cuh - what capture.cu makes of a row in modes other than top-k: which of the best
 * are kept, and draws.
 *
 * Draws. The sums of the segments (128 ids each) are joined to 256 chunks, one to a thread, and
 * their running sums made by one thread, so that a chunk of nothing has no width. Each warp then
 * takes a draw: x = u * total lies in one chunk, in one segment of it, and in one id of that. Sums
 * on the way differ in their last bits from those of the level above, so x can pass the end of
 * what it lies in: it then means the last id there that is not impossible.
 */
#ifndef TDGEN_GPU_CAPTURE_MODES_CUH
#define TDGEN_GPU_CAPTURE_MODES_CUH

#include "gpu/capture.cuh"
#define TD_PHILOX_FN static __host__ __device__ __forceinline__
#include "capture/philox.h"

static_assert(TD_CAPTURE_KEYS >= 2 * TD_MAX_DRAWS, "draws, and where each id begins");
static_assert(TD_CAPTURE_THREADS * 4 >= TD_MAX_DRAWS, "four draws to a thread");

/* Shared memory behind td_capture_shared, for draws. */
typedef struct td_capture_draws {
    double *start; /* [TD_CAPTURE_THREADS + 1] of each chunk; the last is the total */
    double *sum;   /* [n_segments] of exp(t (z - m)); for t = 1 td_capture_shared.sum */
} td_capture_draws;
static __host__ __device__ inline size_t td_capture_draws_offset(size_t n_segments) {
    return (td_capture_shared_bytes(n_segments) + 7) / 8 * 8;
}
static __host__ __device__ inline size_t td_capture_draws_bytes(size_t n_segments, float power) {
    return (TD_CAPTURE_THREADS + 1 + (power != 1.0f ? n_segments : 0)) * sizeof(double);
}

/* Of the n best keys, how many it takes to reach top_p: sums in their order. All threads. */
static __device__ inline int td_capture_keep(const td_capture_args &a, const td_capture_shared &s,
                                             int n) {
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        double sum = 0.0;
        int kept = 0;
        for (int at = 0; at < n && kept == at; at += 32) {
            const double e =
                at + lane < n ? exp((double)td_capture_unorder((uint32_t)(s.key[at + lane] >> 32)))
                              : 0.0;
            for (int j = 0; j < 32; j++) { /* every lane the same */
                const double x = __shfl_sync(TD_FULL_MASK, e, j);
                if (kept == at + j && kept < n && (kept < a.min_k || sum < a.top_p)) {
                    sum += x;
                    kept++;
                }
            }
        }
        if (lane == 0)
            *s.n_keys = kept;
    }
    __syncthreads();
    const int kept = *s.n_keys;
    __syncthreads();
    return kept;
}

static __device__ __forceinline__ float td_capture_weight(const td_capture_row &row, float z,
                                                          float power) {
    return expf(__fmul_rn(__fsub_rn(z, row.m), power)); /* 1 changes nothing */
}

/* Fills d.sum (t != 1) and d.start. All threads; visible to all on return. */
template <bool RAW>
static __device__ __forceinline__ void td_capture_draw_sums(const td_capture_params &p,
                                                            const td_capture_row &row,
                                                            const td_capture_draws &d) {
    const float power = p.a.proposal_power;
    if (power != 1.0f) {
        td_capture_walk<RAW>(
            p, row, NULL, 0, row.n_segments, [](int) { return true; },
            [&](int segment, int, const float *z) {
                const float e0 = td_capture_weight(row, z[0], power),
                            e1 = td_capture_weight(row, z[1], power),
                            e2 = td_capture_weight(row, z[2], power),
                            e3 = td_capture_weight(row, z[3], power);
                const double sum = td_warp_sum((double)((e0 + e1) + (e2 + e3)));
                if ((threadIdx.x & 31) == 0)
                    d.sum[segment] = sum;
            });
    }
    __syncthreads();
    const int per = (row.n_segments + TD_CAPTURE_THREADS - 1) / TD_CAPTURE_THREADS;
    const int first = threadIdx.x * per;
    double sum = 0.0;
    for (int i = first; i < first + per && i < row.n_segments; i++)
        sum += d.sum[i];
    d.start[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double run = 0.0;
#pragma unroll 16
        for (int i = 0; i < TD_CAPTURE_THREADS; i++) {
            const double x = d.start[i];
            d.start[i] = run;
            run += x;
        }
        d.start[TD_CAPTURE_THREADS] = run;
    }
    __syncthreads();
}

/* The id at which the running sum of weights passes x, 0 <= x < total. One warp, which agrees. */
template <bool RAW>
static __device__ __forceinline__ int td_capture_invert(const td_capture_params &p,
                                                        const td_capture_row &row,
                                                        const td_capture_draws &d, double x) {
    const int lane = threadIdx.x & 31;
    const int per = (row.n_segments + TD_CAPTURE_THREADS - 1) / TD_CAPTURE_THREADS;
    int chunk = 0; /* the last one that begins at or before x: not an empty one */
    for (int step = TD_CAPTURE_THREADS / 2; step > 0; step /= 2)
        if (d.start[chunk + step] <= x)
            chunk += step;
    double begin = d.start[chunk], run = begin;
    int segment = chunk * per;
    for (int i = chunk * per; i < chunk * per + per && i < row.n_segments; i++) {
        const double sum = d.sum[i];
        if (sum > 0.0) {
            segment = i;
            begin = run;
            if (x < run + sum)
                break;
        }
        run += sum;
    }

    float z[4], e[4];
    td_capture_read_quad<RAW>(z, p, row, segment * TD_CAPTURE_SEGMENT + 4 * lane);
#pragma unroll
    for (int i = 0; i < 4; i++)
        e[i] = td_capture_weight(row, z[i], p.a.proposal_power);
    const double own = (((double)e[0] + (double)e[1]) + (double)e[2]) + (double)e[3];
    double upto = own; /* sum of the lanes up to this one */
    for (int step = 1; step < 32; step *= 2) {
        const double before = __shfl_up_sync(TD_FULL_MASK, upto, step);
        if (lane >= step)
            upto += before;
    }
    const double y = x - begin;
    const unsigned some = __ballot_sync(TD_FULL_MASK, own > 0.0);
    const unsigned past = __ballot_sync(TD_FULL_MASK, own > 0.0 && upto > y);
    const int winner = past ? __ffs(past) - 1 : 31 - __clz(some);
    double sum = upto - own;
    int pick = -1;
    bool done = false;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum += (double)e[i];
        if (!done && e[i] > 0.0f) {
            pick = i;
            done = sum > y;
        }
    }
    return __shfl_sync(TD_FULL_MASK, segment * TD_CAPTURE_SEGMENT + 4 * lane + pick, winner);
}

/* Makes and stores the draws of row r. s.key then holds ~id of every draw, in ascending order of
 * ids, and from TD_MAX_DRAWS on the places where a new id begins. Returns the number of
 * different ids. All threads. */
template <bool RAW>
static __device__ __forceinline__ int
td_capture_draw(const td_capture_params &p, const td_capture_row &row, const td_capture_shared &s,
                const td_capture_draws &d, double log_s, int64_t r) {
    const td_capture_args &a = p.a;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = a.n_draws;
    td_capture_draw_sums<RAW>(p, row, d);
    const double total = d.start[TD_CAPTURE_THREADS];
    for (int i = warp; i < n; i += TD_CAPTURE_WARPS) {
        const double u = td_draw_uniform(a.seed, a.dataset_rows[r], a.positions[r], i);
        const int id = td_capture_invert<RAW>(p, row, d, __dmul_rn(u, total));
        if (lane == 0)
            s.key[i] = ~(uint64_t)id;
    }
    __syncthreads();
    td_capture_sort(s.key, n);

    /* Thread t looks at draws 4t to 4t + 3. */
    uint64_t *begin = s.key + TD_MAX_DRAWS;
    int n_new = 0;
    for (int i = 4 * threadIdx.x; i < 4 * (int)threadIdx.x + 4 && i < n; i++)
        n_new += i == 0 || s.key[i] != s.key[i - 1];
    int upto = n_new;
    for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(TD_FULL_MASK, upto, step);
        if (lane >= step)
            upto += before;
    }
    __syncthreads();
    if (lane == 31)
        s.reduce[warp] = (double)upto;
    __syncthreads();
    int at = upto - n_new, n_unique = 0;
    for (int i = 0; i < TD_CAPTURE_WARPS; i++) {
        at += i < warp ? (int)s.reduce[i] : 0;
        n_unique += (int)s.reduce[i];
    }
    for (int i = 4 * threadIdx.x; i < 4 * (int)threadIdx.x + 4 && i < n; i++)
        if (i == 0 || s.key[i] != s.key[i - 1])
            begin[at++] = (uint64_t)i;
    __syncthreads();

    for (int i = threadIdx.x; i < n; i += TD_CAPTURE_THREADS) {
        const int64_t out = r * n + i;
        const bool there = i < n_unique;
        const int first = there ? (int)begin[i] : 0;
        const int next = there && i + 1 < n_unique ? (int)begin[i + 1] : n;
        const int id = there ? (int)~s.key[first] : -1;
        a.draw_ids[out] = id;
        a.draw_counts[out] = there ? next - first : 0;
        a.draw_logprobs[out] = there ? td_capture_logprob(row, td_capture_finish<RAW>(p, row.x[id]))
                                     : -TD_CAPTURE_INFINITY;
    }
    if (threadIdx.x == 0) {
        a.n_unique[r] = n_unique;
        if (a.proposal_logsumexp != NULL)
            a.proposal_logsumexp[r] = (float)(log(total) - (double)a.proposal_power * log_s);
    }
    __syncthreads();
    return n_unique;
}

/* Sum of exp(z - m) over the ids that td_capture_draw left in s.key. All threads. */
template <bool RAW>
static __device__ __forceinline__ double
td_capture_tail_of_draws(const td_capture_params &p, const td_capture_row &row,
                         const td_capture_shared &s, int n_unique) {
    const uint64_t *begin = s.key + TD_MAX_DRAWS;
    for (int i = threadIdx.x; i < n_unique; i += TD_CAPTURE_THREADS) {
        const uint32_t segment = (uint32_t)~s.key[begin[i]] / TD_CAPTURE_SEGMENT;
        atomicOr(&s.taken[segment >> 5], 1u << (segment & 31));
    }
    __syncthreads();
    td_capture_walk<RAW>(
        p, row, NULL, 0, row.n_segments,
        [&](int segment) { return (s.taken[segment >> 5] >> (segment & 31) & 1) != 0; },
        [&](int segment, int first, const float *z) {
            int low = 0, high = n_unique; /* the first drawn id of the segment or behind */
            while (low < high) {
                const int middle = (low + high) / 2;
                if ((int)~s.key[begin[middle]] < segment * TD_CAPTURE_SEGMENT)
                    low = middle + 1;
                else
                    high = middle;
            }
            const float max = s.max[segment];
            float e[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                e[i] = expf(__fsub_rn(z[i], max));
            for (; low < n_unique; low++) {
                const int id = (int)~s.key[begin[low]];
                if (id >= (segment + 1) * TD_CAPTURE_SEGMENT)
                    break;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    e[i] = id == first + i ? 0.0f : e[i];
            }
            const double sum = td_warp_sum((double)((e[0] + e[1]) + (e[2] + e[3])));
            if ((threadIdx.x & 31) == 0)
                s.sum[segment] = sum * td_capture_scale(max, row.m);
        });
    __syncthreads();
    double sum = 0.0;
    for (int i = threadIdx.x; i < row.n_segments; i += TD_CAPTURE_THREADS)
        sum += s.sum[i];
    return td_capture_block_sum(sum, s.reduce);
}

/* Does the largest logit stay finite in the type that the logits are stored in? */
static __device__ __forceinline__ bool td_capture_holds(td_dtype t, float m) {
    const uint32_t size = __float_as_uint(fabsf(m));
    return t == TD_F16 ? size < 0x477ff000u : t == TD_BF16 ? size < 0x7f7f8000u : true;
}

static __device__ __forceinline__ void td_capture_clear_modes(const td_capture_args &a, int64_t r) {
    for (int i = threadIdx.x; i < a.n_draws; i += TD_CAPTURE_THREADS) {
        a.draw_ids[r * a.n_draws + i] = a.draw_counts[r * a.n_draws + i] = 0;
        a.draw_logprobs[r * a.n_draws + i] = 0.0f;
    }
    for (int i = threadIdx.x; i < a.n_always; i += TD_CAPTURE_THREADS)
        a.always_logprobs[r * a.n_always + i] = 0.0f;
    if (threadIdx.x == 0) {
        if (a.top_p > 0.0)
            a.n_kept[r] = 0;
        if (a.n_draws > 0)
            a.n_unique[r] = 0;
        if (a.n_draws > 0 && a.proposal_logsumexp != NULL)
            a.proposal_logsumexp[r] = 0.0f;
    }
}

#endif
