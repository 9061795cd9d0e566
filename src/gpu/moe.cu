/* moe.cu - the experts' MLP: which experts a token takes, the order of the pairs, the final sum.
 *
 *   route    a warp per token: softmax, the top_k experts, their weights
 *   count    a block per chunk of tokens: pairs of each expert in the chunk
 *   scan     one block: first slot and first row tile of each expert; counts become, per chunk and
 *            expert, the slot of the chunk's first pair
 *   place    a warp per chunk: each pair's slot, its token to the slot
 *   gemm     gate_up of all experts, the rows read where they are, activation   (moe_gemm.cu)
 *   gemm     down of all experts                                                (moe_gemm.cu)
 *   combine  out[t] += scale * sum over its pairs
 *
 * Nothing is decided by the order in which threads run: the only atomics count integers. A token's
 * experts and weights come from its logits alone. The host knows no counts: grids are upper bounds.
 */
#include "gpu/moe.cuh"

#define TD_MOE_CHUNK 64        /* tokens */
#define TD_MOE_MAX_EXPERTS 512 /* a lane of route holds 16 */
#define TD_MOE_MAX_TOP_K 32    /* a lane of route and place per pair */
#define TD_MOE_POINTERS 128    /* experts to one call of fill: 2 KiB of kernel parameters */

typedef struct td_moe_pointers {
    const void *gate_up[TD_MOE_POINTERS], *down[TD_MOE_POINTERS];
} td_moe_pointers;

__global__ void __launch_bounds__(TD_MOE_POINTERS)
    td_moe_fill_kernel(td_moe_pointers from, const void **gate_up, const void **down, int n) {
    const int e = (int)threadIdx.x;
    if (e < n) {
        gate_up[e] = from.gate_up[e];
        down[e] = from.down[e];
    }
}

/* logits [T, E] -> expert and weight [T, top_k], ascending expert. The order of choice is that of
 * the probabilities as rounded to f32, ties by the lower expert. With a NaN among a token's logits
 * all its probabilities are NaN, which count as 0 here: the first experts are taken, with NaN for
 * weights. */
__global__ void __launch_bounds__(256)
    td_moe_route_kernel(const float *logits, int n_tokens, int n_experts, int top_k, bool normalise,
                        int32_t *expert, float *weight) {
    constexpr int PER_LANE = TD_MOE_MAX_EXPERTS / 32;
    constexpr float LOWEST = -3.402823466e38f;
    __shared__ int32_t chosen_expert[8][TD_MOE_MAX_TOP_K];
    __shared__ float chosen_p[8][TD_MOE_MAX_TOP_K];
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5;
    const int64_t t = (int64_t)blockIdx.x * 8 + warp;
    if (t >= n_tokens) /* the whole warp; no barrier of the block follows */
        return;
    const float *z = logits + t * n_experts;

    float p[PER_LANE]; /* of experts lane, lane + 32, ... */
    float m = LOWEST;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int e = i * 32 + lane;
        p[i] = e < n_experts ? z[e] : LOWEST;
        m = fmaxf(m, p[i]);
    }
    m = td_warp_max(m);
    double sum = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int e = i * 32 + lane;
        p[i] = e < n_experts ? expf(p[i] - m) : 0.0f;
        sum += (double)p[i];
    }
    const float total = (float)td_warp_sum(sum);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        p[i] /= total;

    const float poison = 0.0f / total; /* NaN where all probabilities are, else 0 */

    /* Keys order as the probabilities do, then by the lower expert; 0 stands for none. */
    uint32_t taken = 0;
    int32_t my_expert = 0; /* lane j: of the j-th best */
    float my_p = 0;
    for (int j = 0; j < top_k; j++) {
        unsigned long long best = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            const int e = i * 32 + lane;
            if (e < n_experts && !(taken >> i & 1)) {
                const uint32_t bits = p[i] > 0 ? __float_as_uint(p[i]) : 0;
                const unsigned long long key =
                    ((unsigned long long)bits << 32) | (unsigned long long)(TD_MOE_MAX_EXPERTS - e);
                best = key > best ? key : best;
            }
        }
        for (int d = 16; d > 0; d >>= 1) {
            const unsigned long long other = __shfl_xor_sync(TD_FULL_MASK, best, d);
            best = other > best ? other : best;
        }
        const int e = TD_MOE_MAX_EXPERTS - (int)(best & 0xffffffffu);
        if (lane == (e & 31))
            taken |= 1u << (e >> 5);
        if (lane == j) {
            my_expert = e;
            my_p = __uint_as_float((uint32_t)(best >> 32)) + poison;
        }
    }

    int place = 0; /* in ascending order */
    for (int j = 0; j < top_k; j++)
        place += __shfl_sync(TD_FULL_MASK, my_expert, j) < my_expert;
    if (lane < top_k) {
        chosen_expert[warp][place] = my_expert;
        chosen_p[warp][place] = my_p;
    }
    __syncwarp();
    if (lane < top_k) {
        double norm = 0;
        for (int j = 0; j < top_k; j++)
            norm += (double)chosen_p[warp][j];
        const float q = chosen_p[warp][lane];
        expert[t * top_k + lane] = chosen_expert[warp][lane];
        weight[t * top_k + lane] = normalise ? (float)((double)q / norm) : q;
    }
}

/* counts[chunk, e]: pairs of expert e in the chunk. */
__global__ void __launch_bounds__(256)
    td_moe_count_kernel(const int32_t *expert, int n_tokens, int n_experts, int top_k,
                        int32_t *counts) {
    __shared__ int32_t n[TD_MOE_MAX_EXPERTS];
    for (int e = (int)threadIdx.x; e < n_experts; e += (int)blockDim.x)
        n[e] = 0;
    __syncthreads();
    const int64_t t = (int64_t)blockIdx.x * TD_MOE_CHUNK;
    const int n_rows = n_tokens - t < TD_MOE_CHUNK ? (int)(n_tokens - t) : TD_MOE_CHUNK;
    for (int i = (int)threadIdx.x; i < n_rows * top_k; i += (int)blockDim.x)
        atomicAdd(&n[expert[t * top_k + i]], 1);
    __syncthreads();
    for (int e = (int)threadIdx.x; e < n_experts; e += (int)blockDim.x)
        counts[(int64_t)blockIdx.x * n_experts + e] = n[e];
}

/* counts[chunk, e] becomes the slot of the chunk's first pair of e; first and first_tile [E + 1].
 * One block of TD_MOE_MAX_EXPERTS threads, one per expert. */
__global__ void __launch_bounds__(TD_MOE_MAX_EXPERTS)
    td_moe_scan_kernel(int32_t *counts, int n_chunks, int n_experts, int32_t *first,
                       int32_t *first_tile) {
    constexpr int AHEAD = 8; /* loads under way at once: the sums are short, memory is far */
    __shared__ int32_t warp_slots[32], warp_tiles[32];
    const int e = (int)threadIdx.x, lane = e & 31, warp = e >> 5;
    int32_t n = 0;
    if (e < n_experts)
        for (int c = 0; c < n_chunks; c += AHEAD) {
            int32_t v[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                v[i] = c + i < n_chunks ? counts[(int64_t)(c + i) * n_experts + e] : 0;
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                n += v[i];
        }
    const int32_t n_tiles = (n + TD_MOE_TILE_ROWS - 1) / TD_MOE_TILE_ROWS;

    int32_t slots = n, tiles = n_tiles; /* inclusive sums over the warp */
    for (int d = 1; d < 32; d <<= 1) {
        const int32_t s = __shfl_up_sync(TD_FULL_MASK, slots, d);
        const int32_t t = __shfl_up_sync(TD_FULL_MASK, tiles, d);
        if (lane >= d) {
            slots += s;
            tiles += t;
        }
    }
    if (lane == 31) {
        warp_slots[warp] = slots;
        warp_tiles[warp] = tiles;
    }
    __syncthreads();
    for (int w = 0; w < warp; w++) {
        slots += warp_slots[w];
        tiles += warp_tiles[w];
    }
    if (e >= n_experts)
        return;
    if (e == 0)
        first[0] = first_tile[0] = 0;
    first[e + 1] = slots;
    first_tile[e + 1] = tiles;

    int32_t slot = slots - n;
    for (int c = 0; c < n_chunks; c += AHEAD) {
        int32_t v[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            v[i] = c + i < n_chunks ? counts[(int64_t)(c + i) * n_experts + e] : 0;
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (c + i < n_chunks) {
                counts[(int64_t)(c + i) * n_experts + e] = slot;
                slot += v[i];
            }
    }
}

/* slot [P] of each pair, token [P] of each slot; token by token, so that the pairs of an expert are
 * in token order. A token's experts differ: its lanes never meet. */
__global__ void __launch_bounds__(32)
    td_moe_place_kernel(const int32_t *expert, const int32_t *slots, int n_tokens, int n_experts,
                        int top_k, int32_t *slot, int32_t *token) {
    __shared__ int32_t next[TD_MOE_MAX_EXPERTS];
    const int lane = (int)threadIdx.x;
    for (int e = lane; e < n_experts; e += 32)
        next[e] = slots[(int64_t)blockIdx.x * n_experts + e];
    __syncwarp();
    const int64_t begin = (int64_t)blockIdx.x * TD_MOE_CHUNK;
    const int64_t end = begin + TD_MOE_CHUNK < n_tokens ? begin + TD_MOE_CHUNK : n_tokens;
    int32_t e = lane < top_k ? expert[begin * top_k + lane] : 0;
    for (int64_t t = begin; t < end; t++) {
        const int32_t e_next = lane < top_k && t + 1 < end ? expert[(t + 1) * top_k + lane] : 0;
        if (lane < top_k) {
            const int32_t s = next[e]++;
            slot[t * top_k + lane] = s;
            token[s] = (int32_t)t;
        }
        e = e_next;
        __syncwarp();
    }
}

template <class V> struct td_moe_vector;
template <> struct td_moe_vector<float> {
    static __device__ __forceinline__ float zero() {
        return 0.0f;
    }
    static __device__ __forceinline__ float add(float sum, float w, float x) {
        return fmaf(w, x, sum);
    }
};
template <> struct td_moe_vector<float4> {
    static __device__ __forceinline__ float4 zero() {
        return make_float4(0, 0, 0, 0);
    }
    static __device__ __forceinline__ float4 add(float4 sum, float w, float4 x) {
        return make_float4(fmaf(w, x.x, sum.x), fmaf(w, x.y, sum.y), fmaf(w, x.z, sum.z),
                           fmaf(w, x.w, sum.w));
    }
};

/* out[t] += scale * sum of weight * y[slot], in ascending expert; n_cols in units of V. The two
 * instances give the same bits. */
template <class V>
__global__ void __launch_bounds__(256)
    td_moe_combine_kernel(const float *y, const int32_t *slot, const float *weight, int n_cols,
                          int top_k, float scale, float *out) {
    __shared__ int32_t slots[TD_MOE_MAX_TOP_K];
    __shared__ float weights[TD_MOE_MAX_TOP_K];
    const int64_t t = blockIdx.x;
    if ((int)threadIdx.x < top_k) {
        slots[threadIdx.x] = slot[t * top_k + threadIdx.x];
        weights[threadIdx.x] = weight[t * top_k + threadIdx.x];
    }
    __syncthreads();
    const V *rows = reinterpret_cast<const V *>(y);
    V *row = reinterpret_cast<V *>(out) + t * n_cols;
    for (int i = (int)threadIdx.x; i < n_cols; i += (int)blockDim.x) {
        V sum = td_moe_vector<V>::zero();
#pragma unroll 4
        for (int j = 0; j < top_k; j++)
            sum = td_moe_vector<V>::add(sum, weights[j], rows[(int64_t)slots[j] * n_cols + i]);
        row[i] = td_moe_vector<V>::add(row[i], scale, sum);
    }
}
template __global__ void td_moe_combine_kernel<float>(const float *, const int32_t *, const float *,
                                                      int, int, float, float *);
template __global__ void td_moe_combine_kernel<float4>(const float *, const int32_t *,
                                                       const float *, int, int, float, float *);

#ifndef __CUDACC_RTC__

/* Where the parts stand in td_moe_args.scratch, each on a 64-byte border; what td_moe_scratch_bytes
 * has for gathered rows and for gate and up stays unused here. */
typedef struct td_moe_run {
    float *logits;                /* [T, E]; read by route, then free for counts */
    int32_t *counts;              /* [chunks, E], chunks <= T, in the place of logits */
    int32_t *expert;              /* [P] of pair t * top_k + j, ascending in j */
    float *weight;                /* [P] of the pair */
    int32_t *slot;                /* [P] of the pair */
    int32_t *token;               /* [P] of the slot */
    int32_t *first;               /* [E + 1] */
    int32_t *first_tile;          /* [E + 1] */
    const void **gate_up, **down; /* [E] each */
    void *h;                      /* [P, F], compute dtype */
    float *y;                     /* [P, C] */
} td_moe_run;

static void *take(unsigned char **at, size_t size_bytes) {
    void *p = *at;
    *at += (size_bytes + 63) / 64 * 64;
    return p;
}

static td_moe_run scratch_layout(const td_moe_args *a, td_dtype compute) {
    const size_t T = (size_t)a->n_tokens, E = (size_t)a->n_experts, P = T * (size_t)a->top_k;
    td_moe_run r;
    unsigned char *at = static_cast<unsigned char *>(a->scratch);
    r.logits = static_cast<float *>(take(&at, T * E * sizeof(float)));
    r.counts = reinterpret_cast<int32_t *>(r.logits);
    r.expert = static_cast<int32_t *>(take(&at, P * 16));
    r.weight = reinterpret_cast<float *>(r.expert + P);
    r.slot = r.expert + 2 * P;
    r.token = r.expert + 3 * P;
    r.first = static_cast<int32_t *>(take(&at, (E + 1) * 8));
    r.first_tile = r.first + E + 1;
    r.gate_up = static_cast<const void **>(take(&at, E * 16));
    r.down = r.gate_up + E;
    r.h = take(&at, P * (size_t)a->n_ffn * td_dtype_size(compute));
    r.y = static_cast<float *>(take(&at, P * (size_t)a->n_cols * sizeof(float)));
    return r;
}

static bool on_16(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

static cudaError_t fill_pointers(const td_moe_run *r, const void *const *gate_up,
                                 const void *const *down, int n_experts, cudaStream_t stream) {
    cudaError_t rc = cudaSuccess;
    for (int e = 0; e < n_experts && rc == cudaSuccess; e += TD_MOE_POINTERS) {
        const int n = n_experts - e < TD_MOE_POINTERS ? n_experts - e : TD_MOE_POINTERS;
        td_moe_pointers from = {};
        for (int i = 0; i < n; i++) {
            from.gate_up[i] = gate_up[e + i];
            from.down[i] = down[e + i];
        }
        rc = TD_LAUNCH(td_moe_fill_kernel, 1, TD_MOE_POINTERS, 0, stream, from, r->gate_up + e,
                       r->down + e, n);
    }
    return rc;
}

/* Experts, weights and slots of all pairs. */
static cudaError_t route_and_group(const td_moe_args *a, const td_moe_run *r, cudaStream_t stream) {
    const int T = a->n_tokens, E = a->n_experts, K = a->top_k;
    const int n_chunks = (T + TD_MOE_CHUNK - 1) / TD_MOE_CHUNK;
    cudaError_t rc = TD_LAUNCH(td_moe_route_kernel, (unsigned)(T + 7) / 8, 256, 0, stream,
                               r->logits, T, E, K, a->normalise, r->expert, r->weight);
    if (rc == cudaSuccess)
        rc = TD_LAUNCH(td_moe_count_kernel, (unsigned)n_chunks, 256, 0, stream, r->expert, T, E, K,
                       r->counts);
    if (rc == cudaSuccess)
        rc = TD_LAUNCH(td_moe_scan_kernel, 1, TD_MOE_MAX_EXPERTS, 0, stream, r->counts, n_chunks, E,
                       r->first, r->first_tile);
    if (rc == cudaSuccess)
        rc = TD_LAUNCH(td_moe_place_kernel, (unsigned)n_chunks, 32, 0, stream, r->expert, r->counts,
                       T, E, K, r->slot, r->token);
    return rc;
}

static cudaError_t combine(const td_moe_args *a, const td_moe_run *r, cudaStream_t stream) {
    const unsigned T = (unsigned)a->n_tokens;
    if (a->n_cols % 4 == 0 && on_16(a->out))
        return TD_LAUNCH(td_moe_combine_kernel<float4>, T, 256, 0, stream, r->y, r->slot, r->weight,
                         a->n_cols / 4, a->top_k, a->scale, a->out);
    return TD_LAUNCH(td_moe_combine_kernel<float>, T, 256, 0, stream, r->y, r->slot, r->weight,
                     a->n_cols, a->top_k, a->scale, a->out);
}

cudaError_t td_gpu_moe(const td_moe_args *a, td_dtype compute, const void *const *gate_up,
                       const void *const *down, const td_gpu_chip *chip, cudaStream_t stream) {
    if (a->n_experts < 1 || a->n_experts > TD_MOE_MAX_EXPERTS || a->top_k < 1 ||
        a->top_k > TD_MOE_MAX_TOP_K || a->top_k > a->n_experts)
        return cudaErrorInvalidValue;
    const td_moe_run r = scratch_layout(a, compute);
    const int64_t n_pairs = (int64_t)a->n_tokens * a->top_k;
    bool gate_up_aligned = on_16(a->in), down_aligned = on_16(r.h);
    for (int32_t e = 0; e < a->n_experts; e++) {
        gate_up_aligned = gate_up_aligned && on_16(gate_up[e]);
        down_aligned = down_aligned && on_16(down[e]);
    }
    td_moe_gemm_args first = {}, second = {};
    first.in = a->in;
    first.row = r.token;
    first.weight = r.gate_up;
    first.out = r.h;
    first.first = r.first;
    first.first_tile = r.first_tile;
    first.n_experts = a->n_experts;
    first.n_out = a->n_ffn;
    first.n_in = a->n_cols;
    first.act = a->act;
    second = first;
    second.in = r.h;
    second.row = NULL;
    second.weight = r.down;
    second.out = r.y;
    second.n_out = a->n_cols;
    second.n_in = a->n_ffn;

    cudaError_t rc = fill_pointers(&r, gate_up, down, a->n_experts, stream);
    if (rc == cudaSuccess)
        rc = route_and_group(a, &r, stream);
    if (rc == cudaSuccess)
        rc = td_moe_gemm(&first, true, gate_up_aligned, n_pairs, compute, chip, stream);
    if (rc == cudaSuccess)
        rc = td_moe_gemm(&second, false, down_aligned, n_pairs, compute, chip, stream);
    if (rc == cudaSuccess)
        rc = combine(a, &r, stream);
    return rc;
}
#endif
