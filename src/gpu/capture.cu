/* capture.cu - rows of logits to their records: one thread block per row.
 *
 * One pass over the row, which keeps of each segment of 128 ids the maximum, the sum of exp and of
 * exp * d relative to it, and counts the logits above the target's. The segments combined give the
 * row's maximum m and S. What remains needs few segments a second time:
 *   rank    counted were the logits above the target's; to correct for ties, the segments are read
 *           that hold a logit within NEAR of it. Whether NEAR was wide enough is checked exactly
 *           (a logit that far away has another log-prob); if not, the row is read again.
 *   top-k   the K-th largest maximum of a segment bounds the K-th log-prob from below; the segments
 *           whose maximum reaches it are read, and the keys above it collected, sorted and cut.
 *   tail    segments without a taken id give the sum they had, the others are summed again.
 * That is a few percent of the row for K = 64; rows whose log-probs are mostly equal, or K near the
 * number of segments, cost a second reading, never a wrong result.
 *
 * Sums: a segment's are made by eight lanes. S is kept as S = (1 + ..) with its rounding errors
 * collected, so that log S of a row that is sure of its first id keeps its digits. f64 appears once
 * in sixteen ids: cheap even where f64 runs at 1/64 of the rate. Integer counts and the order of
 * lists come from atomics; no float sum depends on them, and what is taken is sorted.
 */
#include "gpu/capture_modes.cuh"
#include "gpu/ptx.cuh"

/* Logits closer than this to the target's are compared by log-prob, not by logit. Two log-probs
 * below 256 in size that are equal come from closer logits; see td_capture_rank. */
#define TD_CAPTURE_NEAR 6.103515625e-5f

/* What a thread takes out of the first pass. */
template <int NT> struct td_capture_lane {
    float max;       /* of its ids */
    int n_above;     /* of its ids whose z is above the target's */
    float reference; /* what tempered[] is relative to: the largest maximum of its segments */
    double tempered[NT > 0 ? NT : 1]; /* sums of exp((z - reference) / T) */
};

static __device__ __forceinline__ int td_capture_first_id(int step) {
    const int lane = threadIdx.x & 31;
    return step * TD_CAPTURE_STEP + (lane >> 3) * TD_CAPTURE_SEGMENT + (lane & 7) * 4;
}

/* Lane l reads 16 ids of segment l / 8 of the step, 4 of every 32. Not yet finished; ids past the
 * row's end are not read. */
static __device__ __forceinline__ void td_capture_load_step(float v[16], const td_capture_row &row,
                                                            int step) {
    const int first = td_capture_first_id(step);
    if (row.aligned && (step + 1) * TD_CAPTURE_STEP <= row.n) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float4 q = *reinterpret_cast<const float4 *>(row.x + first + 32 * j);
            v[4 * j] = q.x, v[4 * j + 1] = q.y, v[4 * j + 2] = q.z, v[4 * j + 3] = q.w;
        }
    } else {
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const int id = first + (j >> 2) * 32 + (j & 3);
            v[j] = id < row.n ? row.x[id] : 0.0f;
        }
    }
}

/* The first pass of one warp over its steps of the row. */
template <bool RAW, int NT>
static __device__ __forceinline__ void
td_capture_stream(td_capture_lane<NT> &t, const td_capture_params &p, const td_capture_row &row,
                  const td_capture_shared &s, float z_target) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int n_steps = (row.n + TD_CAPTURE_STEP - 1) / TD_CAPTURE_STEP;
    const float near_target = __fsub_rn(z_target, TD_CAPTURE_NEAR);
    float v[16];
    if (warp < n_steps)
        td_capture_load_step(v, row, warp);
    for (int step = warp; step < n_steps; step += TD_CAPTURE_WARPS) {
        float z[16];
#pragma unroll
        for (int j = 0; j < 16; j++)
            z[j] = td_capture_finish<RAW>(p, v[j]);
        if (step + TD_CAPTURE_WARPS < n_steps)
            td_capture_load_step(v, row, step + TD_CAPTURE_WARPS); /* on their way meanwhile */
        if ((step + 1) * TD_CAPTURE_STEP > row.n) {
            const int first = td_capture_first_id(step);
#pragma unroll
            for (int j = 0; j < 16; j++)
                if (first + (j >> 2) * 32 + (j & 3) >= row.n)
                    z[j] = -TD_CAPTURE_INFINITY;
        }
        float max = z[0]; /* a NaN may get lost here; the sum will have it */
#pragma unroll
        for (int j = 1; j < 16; j++)
            max = fmaxf(max, z[j]);
        t.max = fmaxf(t.max, max);

        if (__any_sync(TD_FULL_MASK, max >= near_target)) {
            float nearest = TD_CAPTURE_INFINITY;
#pragma unroll
            for (int j = 0; j < 16; j++) {
                const float d = __fsub_rn(z_target, z[j]);
                t.n_above += (int)(__float_as_uint(d) >> 31);
                nearest = fminf(nearest, fabsf(d));
            }
            const unsigned hit = __ballot_sync(TD_FULL_MASK, nearest <= TD_CAPTURE_NEAR);
            if ((lane & 7) == 0 && (hit >> lane & 0xff) != 0)
                s.near[atomicAdd(s.n_near, 1)] = (uint16_t)(step * 4 + (lane >> 3));
        }

        for (int d = 4; d > 0; d >>= 1)
            max = fmaxf(max, __shfl_xor_sync(TD_FULL_MASK, max, d));
        const float ref = max == -TD_CAPTURE_INFINITY ? 0.0f : max;
        /* The errors of acc are exact: acc >= 1 >= e. */
        float acc = 1.0f, low = 0.0f, weighted = 0.0f;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const float d = __fsub_rn(z[j], ref), e = expf(d);
            const float sum = __fadd_rn(acc, e);
            low = __fadd_rn(low, __fsub_rn(e, __fsub_rn(sum, acc)));
            acc = sum;
            weighted = fmaf(e, fmaxf(d, -105.0f), weighted); /* e is 0 there; not 0 * inf */
        }
        double sum = (double)__fsub_rn(acc, 1.0f) + (double)low;
        for (int d = 4; d > 0; d >>= 1) {
            sum += __shfl_xor_sync(TD_FULL_MASK, sum, d);
            weighted += __shfl_xor_sync(TD_FULL_MASK, weighted, d);
        }
        const int segment = step * 4 + (lane >> 3);
        if ((lane & 7) == 0 && segment < row.n_segments) {
            s.max[segment] = max;
            s.sum[segment] = sum;
            s.weighted[segment] = weighted;
        }

        if (NT > 0) {
            const float grown = fmaxf(t.reference, max);
            if (grown > t.reference) {
                const float d = __fsub_rn(t.reference, grown);
#pragma unroll
                for (int i = 0; i < NT; i++)
                    t.tempered[i] *= (double)td_exp2_approx(__fmul_rn(d, p.rate[i]));
                t.reference = grown;
            }
            const float base = grown == -TD_CAPTURE_INFINITY ? 0.0f : grown;
#pragma unroll
            for (int j = 0; j < 16; j++)
                z[j] = fmaxf(__fsub_rn(z[j], base), -TD_CAPTURE_FLT_MAX); /* not inf * rate_low */
#pragma unroll
            for (int i = 0; i < NT; i++)
                if (i < p.a.n_temperatures && p.temperature[i] != 1.0f) {
                    float e[4] = {0, 0, 0, 0};
#pragma unroll
                    for (int j = 0; j < 16; j++)
                        e[j & 3] +=
                            td_exp2_approx(fmaf(z[j], p.rate[i], __fmul_rn(z[j], p.rate_low[i])));
                    t.tempered[i] += (double)((e[0] + e[1]) + (e[2] + e[3]));
                }
        }
    }
}

/* Turns the segments' sums into ones relative to m. *S, and returned sum exp(z - m) (z - m). */
static __device__ __forceinline__ double td_capture_combine(const td_capture_row &row,
                                                            const td_capture_shared &s, double *S) {
    double sum = 0.0, weighted = 0.0;
    for (int i = threadIdx.x; i < row.n_segments; i += TD_CAPTURE_THREADS) {
        if (s.max[i] == -TD_CAPTURE_INFINITY) { /* 0, or NaN */
            sum += s.sum[i];
            continue;
        }
        const double scale = td_capture_scale(s.max[i], row.m), x = s.sum[i] * scale;
        s.sum[i] = x;
        sum += x;
        weighted += (double)s.weighted[i] * scale + x * ((double)s.max[i] - (double)row.m);
    }
    *S = td_capture_block_sum(sum, s.reduce);
    return td_capture_block_sum(weighted, s.reduce);
}

/* The number of ids before the target: n_above of all threads, corrected for the ids whose log-prob
 * is the target's though their z is not, and for equal ids before it. Log-probs never fall when z
 * grows, so if a z that is NEAR away from the target's has another log-prob, only ids in `near`
 * segments can need correction. */
template <bool RAW>
static __device__ __forceinline__ int
td_capture_rank(const td_capture_params &p, const td_capture_row &row, const td_capture_shared &s,
                float z_target, int target, int n_above) {
    const float lp = td_capture_logprob(row, z_target);
    const bool narrow = td_capture_logprob(row, __fadd_rn(z_target, TD_CAPTURE_NEAR)) > lp &&
                        td_capture_logprob(row, __fsub_rn(z_target, TD_CAPTURE_NEAR)) < lp;
    int n = narrow ? n_above : 0;
    td_capture_walk<RAW>(
        p, row, narrow ? s.near : NULL, 0, narrow ? *s.n_near : row.n_segments,
        [](int) { return true; },
        [&](int, int first, const float *z) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float x = td_capture_logprob(row, z[i]);
                n += (x > lp || (x == lp && first + i < target)) - (narrow && z[i] > z_target);
            }
        });
    return td_capture_block_sum(n, s.reduce);
}

/* A log-prob, in order, that at least K ids reach (or all finite ones do): the K-th largest maximum
 * of a segment, or a little less. */
static __device__ __forceinline__ uint32_t td_capture_bound(const td_capture_row &row,
                                                            const td_capture_shared &s, int k) {
    uint32_t low = TD_CAPTURE_LEAST_FINITE;
    uint32_t high = td_capture_order(td_capture_logprob(row, row.m)) + 1;
    if (row.n_segments <= k)
        return low;
    while (high - low > 1) { /* at least K maxima, or all, reach low; fewer than K high */
        const uint32_t middle = low + (high - low) / 2;
        int n = 0;
        for (int i = threadIdx.x; i < row.n_segments; i += TD_CAPTURE_THREADS)
            n += td_capture_order(td_capture_logprob(row, s.max[i])) >= middle;
        n = td_capture_block_sum(n, s.reduce);
        if (n < k) {
            high = middle;
        } else {
            low = middle;
            if (n <= k + k / 8)
                break;
        }
    }
    return low;
}

/* Leaves the best min(K, finite ids) keys in s.key, sorted; returns their number. s.list becomes
 * the segments that can hold any of them. */
template <bool RAW>
static __device__ __forceinline__ int td_capture_select(const td_capture_params &p,
                                                        const td_capture_row &row,
                                                        const td_capture_shared &s, int k) {
    const int lane = threadIdx.x & 31;
    const uint32_t bound = td_capture_bound(row, s, k);
    for (int i = threadIdx.x; i < row.n_segments; i += TD_CAPTURE_THREADS)
        if (td_capture_order(td_capture_logprob(row, s.max[i])) >= bound)
            s.list[atomicAdd(s.n_list, 1)] = (uint16_t)i;
    __syncthreads();

    const int n_list = *s.n_list;
    uint64_t limit = ((uint64_t)bound << 32) - 1; /* keys above it are candidates */
    int n = 0, per_round = 4 * TD_CAPTURE_WARPS;
    for (int at = 0; at < n_list;) {
        const int end = n_list - at > per_round ? at + per_round : n_list;
        if (threadIdx.x == 0)
            *s.n_keys = n;
        __syncthreads();
        td_capture_walk<RAW>(
            p, row, s.list, at, end,
            [&](int segment) {
                return td_capture_key(td_capture_logprob(row, s.max[segment]), 0) > limit;
            },
            [&](int, int first, const float *z) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint64_t key = td_capture_key(td_capture_logprob(row, z[i]), first + i);
                    const unsigned in = __ballot_sync(TD_FULL_MASK, key > limit);
                    if (in == 0)
                        continue;
                    int place = 0;
                    if (lane == 0)
                        place = atomicAdd(s.n_keys, __popc(in));
                    place = __shfl_sync(TD_FULL_MASK, place, 0) + __popc(in & ((1u << lane) - 1));
                    if (key > limit && place < TD_CAPTURE_KEYS)
                        s.key[place] = key;
                }
            });
        __syncthreads();
        const int grown = *s.n_keys;
        __syncthreads();
        if (grown <= TD_CAPTURE_KEYS) {
            n = grown;
            at = end;
        } else if (n > k) { /* make room, then the same round again */
            td_capture_sort(s.key, n);
            n = k;
            limit = s.key[k - 1];
            per_round = 4 * TD_CAPTURE_WARPS;
        } else {
            per_round = TD_CAPTURE_WARPS; /* always fits */
        }
    }
    td_capture_sort(s.key, n);
    return n < k ? n : k;
}

/* Sum of exp(z - m) over the ids that were not taken. */
template <bool RAW>
static __device__ __forceinline__ double td_capture_tail(const td_capture_params &p,
                                                         const td_capture_row &row,
                                                         const td_capture_shared &s, int n_taken) {
    for (int i = threadIdx.x; i < n_taken; i += TD_CAPTURE_THREADS) {
        const uint32_t segment = ~(uint32_t)s.key[i] / TD_CAPTURE_SEGMENT;
        atomicOr(&s.taken[segment >> 5], 1u << (segment & 31));
    }
    __syncthreads();
    if (n_taken > 0) {
        const uint64_t last = s.key[n_taken - 1];
        td_capture_walk<RAW>(
            p, row, s.list, 0, *s.n_list,
            [&](int segment) { return (s.taken[segment >> 5] >> (segment & 31) & 1) != 0; },
            [&](int segment, int first, const float *z) {
                const float max = s.max[segment];
                float e[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const bool out =
                        td_capture_key(td_capture_logprob(row, z[i]), first + i) < last;
                    e[i] = out ? expf(__fsub_rn(z[i], max)) : 0.0f;
                }
                const double sum = td_warp_sum((double)((e[0] + e[1]) + (e[2] + e[3])));
                if ((threadIdx.x & 31) == 0)
                    s.sum[segment] = sum * td_capture_scale(max, row.m);
            });
        __syncthreads();
    }
    double sum = 0.0;
    for (int i = threadIdx.x; i < row.n_segments; i += TD_CAPTURE_THREADS)
        sum += s.sum[i];
    return td_capture_block_sum(sum, s.reduce);
}

/* logsumexp_t of the row. S is that of T = 1. */
template <int NT>
static __device__ __forceinline__ void
td_capture_store_tempered(const td_capture_params &p, const td_capture_row &row,
                          const td_capture_shared &s, const td_capture_lane<NT> &t, double S,
                          float *out) {
#pragma unroll
    for (int i = 0; i < NT; i++) {
        if (i >= p.a.n_temperatures)
            break;
        double sum = S;
        if (p.temperature[i] != 1.0f) {
            /* Without any finite id the reference is -inf: the factor is 0, as the sum is. */
            const float d = __fsub_rn(t.reference, row.m);
            sum = t.tempered[i] * (double)td_exp2_approx(__fmul_rn(d, p.rate[i]));
            sum = td_capture_block_sum(sum, s.reduce);
        }
        if (threadIdx.x == 0)
            out[i] = (float)((double)row.m / (double)p.temperature[i] + log(sum));
    }
}

static __device__ __forceinline__ void td_capture_store_invalid(const td_capture_args &a,
                                                                int64_t r) {
    for (int i = threadIdx.x; i < a.top_k; i += TD_CAPTURE_THREADS) {
        a.topk_ids[r * a.top_k + i] = 0;
        a.topk_logprobs[r * a.top_k + i] = 0.0f;
    }
    if (a.logsumexp_t != NULL && (int)threadIdx.x < a.n_temperatures)
        a.logsumexp_t[r * a.n_temperatures + threadIdx.x] = 0.0f;
    if (threadIdx.x == 0) {
        a.logsumexp[r] = __int_as_float(0x7fc00000); /* NaN */
        a.tail_mass[r] = a.target_logprob[r] = a.entropy[r] = 0.0f;
        a.target_rank[r] = 0;
    }
}

/* RAW: divisor 1 and no soft cap. NT: the number of temperatures or more. MORE: anything beside a
 * top-k and statistics; without it nothing of the other modes costs anything. */
template <bool RAW, int NT, bool MORE>
__global__ void __launch_bounds__(TD_CAPTURE_THREADS) td_capture_kernel(td_capture_params p) {
    TD_DYNAMIC_SHARED(unsigned char, memory);
    const td_capture_args &a = p.a;
    const int64_t r = blockIdx.x;
    td_capture_row row;
    row.x = a.logits + r * a.n_vocab;
    row.n = a.n_valid;
    row.n_segments = (row.n + TD_CAPTURE_SEGMENT - 1) / TD_CAPTURE_SEGMENT;
    row.aligned = (reinterpret_cast<uintptr_t>(row.x) & 15) == 0;
    row.m = row.log_s = 0.0f;
    const td_capture_shared s = td_capture_shared_of(memory, row.n_segments);
    const int target = a.targets[r];
    const bool has_target = target >= 0 && target < row.n;
    const float z_target =
        has_target ? td_capture_finish<RAW>(p, row.x[target]) : TD_CAPTURE_INFINITY;

    for (int i = threadIdx.x; i < (row.n_segments + 31) / 32; i += TD_CAPTURE_THREADS)
        s.taken[i] = 0;
    if (threadIdx.x == 0)
        *s.n_list = *s.n_near = 0;
    __syncthreads();

    td_capture_lane<NT> t;
    t.max = t.reference = -TD_CAPTURE_INFINITY;
    t.n_above = 0;
#pragma unroll
    for (int i = 0; i < NT; i++)
        t.tempered[i] = 0.0;
    td_capture_stream<RAW, NT>(t, p, row, s, z_target);
    row.m = td_capture_block_max(t.max, s.reduce); /* and every segment is visible */

    double S = 0.0;
    const double weighted = td_capture_combine(row, s, &S);
    if (!(row.m > -TD_CAPTURE_INFINITY && row.m < TD_CAPTURE_INFINITY) || S != S ||
        (MORE && a.dense != NULL && !td_capture_holds(a.dense_dtype, row.m))) {
        td_capture_store_invalid(a, r);
        if (MORE)
            td_capture_clear_modes(a, r);
        return;
    }
    const double log_s = log(S), entropy = log_s - weighted / S;
    row.log_s = (float)log_s;
    if (NT > 0)
        td_capture_store_tempered<NT>(p, row, s, t, S, a.logsumexp_t + r * a.n_temperatures);

    /* Before the selection, whose keys overwrite `near`; the sum inside orders the two. */
    int rank = -1;
    if (has_target)
        rank = td_capture_rank<RAW>(p, row, s, z_target, target, t.n_above);

    int n_unique = 0;
    if (MORE && a.n_draws > 0) {
        td_capture_draws d;
        d.start = reinterpret_cast<double *>(memory + td_capture_draws_offset(row.n_segments));
        d.sum = a.proposal_power != 1.0f ? d.start + TD_CAPTURE_THREADS + 1 : s.sum;
        n_unique = td_capture_draw<RAW>(p, row, s, d, log_s, r);
    }
    if (MORE && (int)threadIdx.x < a.n_always) {
        const int id = p.always[threadIdx.x];
        a.always_logprobs[r * a.n_always + threadIdx.x] =
            id < row.n ? td_capture_logprob(row, td_capture_finish<RAW>(p, row.x[id]))
                       : -TD_CAPTURE_INFINITY;
    }

    int n_taken = 0;
    if (a.top_k > 0)
        n_taken = td_capture_select<RAW>(p, row, s, a.top_k);
    if (MORE && a.top_p > 0.0) {
        n_taken = td_capture_keep(a, s, n_taken);
        if (threadIdx.x == 0)
            a.n_kept[r] = n_taken;
    }
    for (int i = threadIdx.x; i < a.top_k; i += TD_CAPTURE_THREADS) {
        const uint64_t key = i < n_taken ? s.key[i] : 0;
        a.topk_ids[r * a.top_k + i] = i < n_taken ? (int32_t) ~(uint32_t)key : -1;
        a.topk_logprobs[r * a.top_k + i] =
            i < n_taken ? td_capture_unorder((uint32_t)(key >> 32)) : -TD_CAPTURE_INFINITY;
    }
    double tail = 0.0;
    if (!MORE || a.top_k > 0 || (a.n_draws == 0 && a.dense == NULL))
        tail = td_capture_tail<RAW>(p, row, s, n_taken);
    else if (a.n_draws > 0)
        tail = td_capture_tail_of_draws<RAW>(p, row, s, n_unique);
    if (threadIdx.x == 0) {
        a.logsumexp[r] = (float)((double)row.m + log_s);
        a.entropy[r] = entropy > 0.0 ? (float)entropy : 0.0f;
        a.tail_mass[r] = (float)(tail / S);
        a.target_logprob[r] = has_target ? td_capture_logprob(row, z_target) : -TD_CAPTURE_INFINITY;
        a.target_rank[r] = rank;
    }
}

#define TD_CAPTURE_INSTANTIATE(NT)                                                                 \
    template __global__ void td_capture_kernel<true, NT, false>(td_capture_params);                \
    template __global__ void td_capture_kernel<false, NT, false>(td_capture_params);               \
    template __global__ void td_capture_kernel<true, NT, true>(td_capture_params);                 \
    template __global__ void td_capture_kernel<false, NT, true>(td_capture_params);
TD_CAPTURE_INSTANTIATE(0)
TD_CAPTURE_INSTANTIATE(4)
TD_CAPTURE_INSTANTIATE(16)

#ifndef __CUDACC_RTC__
#include <cfloat>
#include <cmath>
#include "gpu/kernels.h"

/* 1 / divisor where multiplying by it gives the quotient's bits, else 0. */
static float exact_inverse(float divisor) {
    int exponent;
    const float fraction = std::frexp(divisor, &exponent), inverse = 1.0f / divisor;
    return fraction == 0.5f && inverse >= FLT_MIN && inverse <= FLT_MAX ? inverse : 0.0f;
}

template <bool MORE> static void (*kernel_of(bool raw, int n_temperatures))(td_capture_params) {
    return n_temperatures == 0
               ? (raw ? td_capture_kernel<true, 0, MORE> : td_capture_kernel<false, 0, MORE>)
           : n_temperatures <= 4
               ? (raw ? td_capture_kernel<true, 4, MORE> : td_capture_kernel<false, 4, MORE>)
               : (raw ? td_capture_kernel<true, 16, MORE> : td_capture_kernel<false, 16, MORE>);
}

size_t td_gpu_capture_scratch_bytes(const td_capture_args *a, const td_gpu_chip *chip) {
    (void)a, (void)chip;
    return 0;
}

cudaError_t td_gpu_capture(const td_capture_args *a, const td_gpu_chip *chip, void *scratch,
                           cudaStream_t stream) {
    (void)scratch;
    const size_t n_segments = ((size_t)a->n_valid + TD_CAPTURE_SEGMENT - 1) / TD_CAPTURE_SEGMENT;
    const size_t shared_bytes = a->n_draws
                                    ? td_capture_draws_offset(n_segments) +
                                          td_capture_draws_bytes(n_segments, a->proposal_power)
                                    : td_capture_shared_bytes(n_segments);
    const int n_temperatures = a->logsumexp_t ? a->n_temperatures : 0;
    if (a->top_k < 0 || a->top_k > TD_MAX_TOP_K || n_temperatures < 0 ||
        n_temperatures > TD_MAX_TEMPERATURES || a->n_draws > TD_MAX_DRAWS ||
        a->n_always > TD_MAX_ALWAYS_IDS || n_segments > UINT16_MAX ||
        shared_bytes > (size_t)chip->max_shared_bytes)
        return cudaErrorInvalidValue;

    td_capture_params p = {};
    p.a = *a;
    p.a.n_temperatures = n_temperatures;
    p.a.temperatures = NULL;
    p.inverse_divisor = exact_inverse(a->divisor);
    for (int i = 0; i < n_temperatures; i++) {
        const double rate = 1.4426950408889634074 / (double)a->temperatures[i];
        p.temperature[i] = a->temperatures[i];
        p.rate[i] = rate < FLT_MAX ? (float)rate : FLT_MAX;
        /* -FLT_MAX * rate_low stays finite */
        p.rate_low[i] = rate < 16777216.0 ? (float)(rate - (double)p.rate[i]) : 0.0f;
    }
    p.a.always_ids = NULL;
    for (int i = 0; i < a->n_always; i++)
        p.always[i] = a->always_ids[i];
    const bool raw = a->divisor == 1.0f && !(a->softcap > 0.0f);
    const bool more = a->top_p > 0 || a->n_draws || a->n_always || a->dense;
    const cudaError_t rc = TD_LAUNCH(
        more ? kernel_of<true>(raw, n_temperatures) : kernel_of<false>(raw, n_temperatures),
        (unsigned)a->n_rows, TD_CAPTURE_THREADS, shared_bytes, stream, p);
    return rc == cudaSuccess && a->dense ? td_capture_dense_launch(&p, stream) : rc;
}
#endif
