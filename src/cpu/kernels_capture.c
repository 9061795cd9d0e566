/* kernels_capture.c - one row of logits to its record; the definitions are in td_capture_args.
 *
 * Two full passes over the row, which stays in the second-level cache after the first: maximum and
 * validity; sums. Selection, the sum of what was not selected, and the target's rank then read only
 * the blocks whose maximum says that they matter. Selection keeps a buffer of candidates above a
 * threshold and cuts it to the best K when it is full (quickselect), so that a row in ascending
 * order costs O(V), too. A candidate is one 64-bit key: the log-prob mapped to an ordered integer
 * in the upper half, the complement of the id in the lower: one comparison is the record's order.
 */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "capture/philox.h"
#include "base/memory.h"

/* Ordered like the float; no NaN comes here. -0 does not either: it is mapped to +0 first. */
TD_INLINE uint32_t order_of(float f) {
    uint32_t u;
    f += 0.0f; /* -0 -> +0 */
    memcpy(&u, &f, 4);
    return u >> 31 ? ~u : u | 0x80000000u;
}
TD_INLINE float float_of(uint32_t o) {
    uint32_t u = o >> 31 ? o & 0x7fffffffu : ~o;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
TD_INLINE uint64_t key_of(float logprob, int32_t id) {
    return (uint64_t)order_of(logprob) << 32 | (uint32_t)~id;
}

/* Moves the k largest keys to the front (in any order). Keys are distinct. Hoare's selection with
 * the median of three; the two ends are narrowed until the border is at k. */
static void select_top(uint64_t *key, int64_t n, int64_t k) {
    int64_t lo = 0, hi = n - 1;
    while (lo < hi) {
        uint64_t x = key[lo], y = key[lo + (hi - lo) / 2], z = key[hi];
        uint64_t pivot = TD_MAX(TD_MIN(x, y), TD_MIN(TD_MAX(x, y), z));
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (key[i] > pivot)
                i++;
            while (key[j] < pivot)
                j--;
            if (i <= j) {
                uint64_t t = key[i];
                key[i++] = key[j];
                key[j--] = t;
            }
        }
        if (k - 1 <= j)
            hi = j;
        else if (k - 1 >= i)
            lo = i;
        else
            return;
    }
}

/* Descending, in place: heap sort, which needs no memory and has no bad case. */
static void sort_descending(uint64_t *key, int64_t n) {
    for (int64_t end = n, start = n / 2; end > 1;) {
        uint64_t v;
        if (start > 0) {
            v = key[--start];
        } else {
            v = key[--end];
            key[end] = key[0];
        }
        int64_t i = start;
        for (int64_t c = 2 * i + 1; c < end; c = 2 * i + 1) { /* a heap with the least on top */
            if (c + 1 < end && key[c + 1] < key[c])
                c++;
            if (key[c] >= v)
                break;
            key[i] = key[c];
            i = c;
        }
        key[i] = v;
    }
}

static void store_invalid(const td_capture_args *a, int64_t row) {
    for (int32_t i = 0; i < a->top_k; i++) {
        a->topk_ids[row * a->top_k + i] = 0;
        a->topk_logprobs[row * a->top_k + i] = 0;
    }
    for (int32_t i = 0; a->logsumexp_t && i < a->n_temperatures; i++)
        a->logsumexp_t[row * a->n_temperatures + i] = 0;
    a->logsumexp[row] = NAN;
    a->tail_mass[row] = a->target_logprob[row] = a->entropy[row] = 0;
    a->target_rank[row] = 0;
    if (a->top_p > 0)
        a->n_kept[row] = 0;
    if (a->n_draws)
        a->n_unique[row] = 0;
    for (int32_t i = 0; i < a->n_draws; i++) {
        a->draw_ids[row * a->n_draws + i] = a->draw_counts[row * a->n_draws + i] = 0;
        a->draw_logprobs[row * a->n_draws + i] = 0;
    }
    if (a->n_draws && a->proposal_logsumexp)
        a->proposal_logsumexp[row] = 0;
    for (int32_t i = 0; i < a->n_always; i++)
        a->always_logprobs[row * a->n_always + i] = 0;
    if (a->dense) {
        const size_t size_bytes = (size_t)a->n_vocab * td_dtype_size(a->dense_dtype);
        memset((char *)a->dense + (size_t)row * size_bytes, 0, size_bytes);
    }
}

/* The row is walked in blocks; what is kept of each decides which blocks later passes can skip. */
enum { BLOCK = TD_CAPTURE_BLOCK };
_Static_assert(BLOCK % TD_LANES == 0, "blocks are whole vectors");

/* Calls step(state, vector, id of its first lane, arguments...) over z[begin, end). The last,
 * partial vector is completed with -inf, which adds nothing to any sum and is never selected. */
#define WALK(step, state, z, begin, end, ...)                                                      \
    do {                                                                                           \
        int64_t i_ = (begin);                                                                      \
        for (; i_ + TD_LANES <= (end); i_ += TD_LANES)                                             \
            step(state, vf_load((z) + i_), i_, __VA_ARGS__);                                       \
        if (i_ < (end))                                                                            \
            step(state, vf_load_n((z) + i_, (end)-i_, -INFINITY), i_, __VA_ARGS__);                \
    } while (0)

/* What is known of a row while it is being captured. */
typedef struct row_state {
    const float *z; /* [n] */
    int64_t n, n_blocks;
    float m, log_s;
    double s;
    float *block_max;  /* [n_blocks] */
    double *block_sum; /* [n_blocks] of exp(z - m) */
    uint64_t *key;     /* [4k + 1024] candidates */
} row_state;

typedef struct max_state {
    vf max;
    vi bad;
} max_state;

TD_INLINE void max_step(max_state *t, vf x, int64_t i, int unused) {
    (void)i, (void)unused;
    t->max = vf_max(x, t->max);
    t->bad |= (x != x) | (x == vf_set(INFINITY));
}

/* z[0..n) = the row's logits, finished. +inf stays so: a soft cap would hide it. */
static void finish_row(const td_capture_args *a, const float *x, float *z, int64_t n) {
    const vf inf = vf_set(INFINITY), div = vf_set(a->divisor), cap = vf_set(a->softcap);
    for (int64_t i = 0; i < n; i += TD_LANES) {
        const int64_t left = n - i;
        const vf raw = left >= TD_LANES ? vf_load(x + i) : vf_load_n(x + i, left, 0);
        vf v = raw / div;
        if (a->softcap > 0)
            v = cap * vf_tanh(v / cap);
        vf_store(z + i, vf_sel(raw == inf, inf, v)); /* z is whole vectors long */
    }
}

/* False when the row has a NaN, +inf, or nothing finite. */
static int find_max(row_state *r) {
    vi bad = (vi)vf_set(0);
    r->m = -INFINITY;
    for (int64_t b = 0; b < r->n_blocks; b++) {
        max_state t = {vf_set(-INFINITY), bad};
        WALK(max_step, &t, r->z, b * BLOCK, TD_MIN((b + 1) * BLOCK, r->n), 0);
        bad = t.bad;
        float max = -INFINITY;
        for (int i = 0; i < TD_LANES; i++)
            max = TD_MAX(max, t.max[i]);
        r->block_max[b] = max;
        r->m = TD_MAX(r->m, max);
    }
    return !vi_any(bad) && r->m > -INFINITY;
}

typedef struct sum_state {
    vd sum, weighted;
} sum_state;

TD_INLINE void add_exp(vd *s, vf e) {
    s->lo += vf_lo(e);
    s->hi += vf_hi(e);
}

TD_INLINE void sum_step(sum_state *t, vf x, int64_t i, vf m) {
    (void)i;
    vf d = x - m;
    d = vf_max(vf_set(-105.0f), d); /* e is 0 there; 0 * inf would be NaN */
    vf e = vf_exp(d);
    vd8 lo = vf_lo(e), hi = vf_hi(e);
    t->sum.lo += lo;
    t->sum.hi += hi;
    t->weighted.lo += lo * vf_lo(d);
    t->weighted.hi += hi * vf_hi(d);
}

/* S and, returned, sum exp(z - m) (z - m). */
static double sum_row(row_state *r) {
    sum_state t = {0};
    r->s = 0;
    for (int64_t b = 0; b < r->n_blocks; b++) {
        t.sum = (vd){0};
        WALK(sum_step, &t, r->z, b * BLOCK, TD_MIN((b + 1) * BLOCK, r->n), vf_set(r->m));
        r->block_sum[b] = vd_sum(t.sum);
        r->s += r->block_sum[b];
    }
    return vd_sum(t.weighted);
}

TD_INLINE void tempered_step(vd *t, vf x, int64_t i, vf m, vf temperature) {
    (void)i;
    add_exp(t, vf_exp((x - m) / temperature));
}

/* sum exp((z - m) / T) */
static double sum_tempered(const row_state *r, float temperature) {
    vd t = {0};
    WALK(tempered_step, &t, r->z, 0, r->n, vf_set(r->m), vf_set(temperature));
    return vd_sum(t);
}

typedef struct select_state {
    uint64_t *key;
    int64_t len, k, cap;
    float limit; /* strictly above gets in: an equal one has a later id than those that are in */
} select_state;

/* Keeps the k best; the limit becomes the least of them. */
static void select_cut(select_state *t) {
    if (t->len < t->k)
        return;
    select_top(t->key, t->len, t->k);
    t->len = t->k;
    uint64_t least = t->key[0];
    for (int64_t j = 1; j < t->len; j++)
        least = TD_MIN(least, t->key[j]);
    t->limit = float_of((uint32_t)(least >> 32));
}

TD_INLINE void select_step(select_state *t, vf x, int64_t i, vf m, vf log_s) {
    vf lp = (x - m) - log_s;
    if (!vi_any(lp > vf_set(t->limit)))
        return;
    float a[TD_LANES];
    vf_store(a, lp);
    for (int j = 0; j < TD_LANES; j++)
        if (a[j] > t->limit)
            t->key[t->len++] = key_of(a[j], (int32_t)(i + j));
    if (t->len >= t->cap || (t->limit == -INFINITY && t->len >= t->k))
        select_cut(t);
}

/* Leaves the min(K, finite entries) best in key[], sorted; returns their number. */
static int64_t select_row(const row_state *r, int64_t k) {
    if (k == 0)
        return 0;
    select_state t = {r->key, 0, k, 4 * k + 1024 - 2 * TD_LANES, -INFINITY};
    for (int64_t b = 0; b < r->n_blocks; b++) {
        if (!((r->block_max[b] - r->m) - r->log_s > t.limit))
            continue;
        WALK(select_step, &t, r->z, b * BLOCK, TD_MIN((b + 1) * BLOCK, r->n), vf_set(r->m),
             vf_set(r->log_s));
    }
    if (t.len > k)
        select_cut(&t);
    sort_descending(t.key, t.len);
    return t.len;
}

typedef struct tail_state {
    vd sum;
} tail_state;

TD_INLINE void tail_step(tail_state *t, vf x, int64_t i, const row_state *r, float last_lp,
                         int32_t last_id) {
    vf d = x - vf_set(r->m), lp = d - vf_set(r->log_s);
    vi id = vi_iota() + (int32_t)i;
    vi out = (lp < vf_set(last_lp)) | ((lp == vf_set(last_lp)) & (id > last_id));
    add_exp(&t->sum, vf_sel(out, vf_exp(d), vf_set(0)));
}

/* sum exp(z - m) over the ids after (last_lp, last_id) in the order. A block without any taken id
 * gives the sum that it had. */
static double sum_tail(const row_state *r, float last_lp, int32_t last_id) {
    double sum = 0;
    for (int64_t b = 0; b < r->n_blocks; b++) {
        tail_state t = {{{0}, {0}}};
        if ((r->block_max[b] - r->m) - r->log_s < last_lp) {
            sum += r->block_sum[b];
            continue;
        }
        WALK(tail_step, &t, r->z, b * BLOCK, TD_MIN((b + 1) * BLOCK, r->n), r, last_lp, last_id);
        sum += vd_sum(t.sum);
    }
    return sum;
}

TD_INLINE void rank_step(vi *t, vf x, int64_t i, const row_state *r, float lp_target,
                         int32_t target) {
    vf lp = (x - vf_set(r->m)) - vf_set(r->log_s);
    vi id = vi_iota() + (int32_t)i;
    *t -= (lp > vf_set(lp_target)) | ((lp == vf_set(lp_target)) & (id < target));
}

static int32_t rank_of(const row_state *r, float lp_target, int32_t target) {
    vi t = (vi)vf_set(0);
    for (int64_t b = 0; b < r->n_blocks; b++)
        if ((r->block_max[b] - r->m) - r->log_s >= lp_target)
            WALK(rank_step, &t, r->z, b * BLOCK, TD_MIN((b + 1) * BLOCK, r->n), r, lp_target,
                 target);
    int32_t rank = 0;
    for (int i = 0; i < TD_LANES; i++)
        rank += t[i];
    return rank;
}

/* --- draws ------------------------------------------------------------------------------------ */

TD_INLINE void power_step(vd *s, vf x, int64_t i, vf m, vf t) {
    (void)i;
    add_exp(s, vf_exp((x - m) * t));
}

/* e[0..BLOCK) = exp(t (z - m)) of block b, 0 behind the row's end. */
static void block_weights(const row_state *r, int64_t b, float t, float *e) {
    const int64_t begin = b * BLOCK;
    for (int64_t i = 0; i < BLOCK; i += TD_LANES) {
        const int64_t left = r->n - begin - i;
        const vf x = left >= TD_LANES ? vf_load(r->z + begin + i)
                     : left > 0       ? vf_load_n(r->z + begin + i, left, -INFINITY)
                                      : vf_set(-INFINITY);
        vf_store(e + i, vf_exp((x - vf_set(r->m)) * vf_set(t)));
    }
}

/* Makes and stores the draws of a row; returns the sum of the weights. key: [n_draws], sums:
 * [n_blocks] of scratch. In ascending order the draws meet the row's blocks, and the ids of a block
 * that has any, one after the other. */
static double draw_row(const td_capture_args *a, const row_state *r, int64_t row, uint64_t *key,
                       double *sums) {
    const int64_t at = row * a->n_draws;
    const float t = a->proposal_power;
    double total = r->s, before = 0; /* `before`: of the blocks before b, added as in `total` */
    int64_t b = 0;
    int32_t n = 0; /* different ids so far */
    float e[BLOCK];
    if (t == 1.0f) {
        memcpy(sums, r->block_sum, (size_t)r->n_blocks * sizeof *sums);
    } else {
        total = 0;
        for (int64_t i = 0; i < r->n_blocks; i++) {
            vd s = {{0}, {0}};
            WALK(power_step, &s, r->z, i * BLOCK, TD_MIN((i + 1) * BLOCK, r->n), vf_set(r->m),
                 vf_set(t));
            sums[i] = vd_sum(s);
            total += sums[i];
        }
    }
    for (int32_t i = 0; i < a->n_draws; i++) { /* numbers >= 0 are ordered like their bits */
        const double x =
            td_draw_uniform(a->seed, a->dataset_rows[row], a->positions[row], i) * total;
        memcpy(&key[i], &x, sizeof x);
    }
    sort_descending(key, a->n_draws);
    for (int32_t left = a->n_draws; left > 0;) {
        double x;
        memcpy(&x, &key[left - 1], sizeof x);
        while (b + 1 < r->n_blocks && before + sums[b] <= x)
            before += sums[b++];
        block_weights(r, b, t, e);
        const double end = before + sums[b];
        double sum = before; /* of the ids before j; x >= sum, so an e of 0 is passed over */
        for (int64_t j = 0; left > 0; left--) {
            memcpy(&x, &key[left - 1], sizeof x);
            if (x >= end && b + 1 < r->n_blocks)
                break;
            while (j < BLOCK && sum + (double)e[j] <= x)
                sum += (double)e[j++];
            int64_t in = j;
            /* The block's sum was made in another order: rounding may leave it a little short. */
            for (; in == BLOCK || !(e[in] > 0); in--)
                if (in == 0)
                    break;
            const int32_t id = (int32_t)(b * BLOCK + in);
            if (n && a->draw_ids[at + n - 1] == id) {
                a->draw_counts[at + n - 1]++;
                continue;
            }
            a->draw_ids[at + n] = id;
            a->draw_counts[at + n] = 1;
            a->draw_logprobs[at + n++] = (r->z[id] - r->m) - r->log_s;
        }
    }
    a->n_unique[row] = n;
    for (; n < a->n_draws; n++) {
        a->draw_ids[at + n] = -1;
        a->draw_counts[at + n] = 0;
        a->draw_logprobs[at + n] = -INFINITY;
    }
    return total;
}

TD_INLINE void exp_step(vd *s, vf x, int64_t i, vf m) {
    (void)i;
    add_exp(s, vf_exp(x - m));
}

/* sum exp(z - m) over the ids that are not in id[0..n), which ascend. */
static double sum_without(const row_state *r, const int32_t *id, int32_t n) {
    double sum = 0;
    float z[BLOCK];
    for (int64_t b = 0, i = 0; b < r->n_blocks; b++) {
        const int64_t begin = b * BLOCK, size = TD_MIN(BLOCK, r->n - begin);
        if (i == n || id[i] >= begin + BLOCK) {
            sum += r->block_sum[b];
            continue;
        }
        memcpy(z, r->z + begin, (size_t)size * sizeof *z);
        for (; i < n && id[i] < begin + BLOCK; i++)
            z[id[i] - begin] = -INFINITY;
        vd s = {{0}, {0}};
        WALK(exp_step, &s, z, 0, size, vf_set(r->m));
        sum += vd_sum(s);
    }
    return sum;
}

/* --- dense ------------------------------------------------------------------------------------ */

static int holds_finite(td_dtype t, float x) {
    return isfinite(t == TD_F16    ? td_f16_to_f32(td_f32_to_f16(x))
                    : t == TD_BF16 ? td_bf16_to_f32(td_f32_to_bf16(x))
                                   : x);
}

static void store_dense(const td_capture_args *a, const row_state *r, int64_t row) {
    const int64_t at = row * a->n_vocab, n = r->n, n_vocab = a->n_vocab;
    const float *z = r->z;
    uint16_t *h = (uint16_t *)a->dense + at;
    float *f = (float *)a->dense + at;
    if (a->dense_dtype == TD_F32) {
        memcpy(f, z, (size_t)n * sizeof *f);
        for (int64_t i = n; i < n_vocab; i++)
            f[i] = -INFINITY;
        return;
    }
    if (a->dense_dtype == TD_BF16)
        for (int64_t i = 0; i < n; i++)
            h[i] = td_f32_to_bf16(z[i]);
    else
        for (int64_t i = 0; i < n; i++)
            h[i] = td_f32_to_f16(z[i]);
    for (int64_t i = n; i < n_vocab; i++)
        h[i] = a->dense_dtype == TD_BF16 ? 0xff80 : 0xfc00;
}

/* --- the row ---------------------------------------------------------------------------------- */

/* Of the n best keys, how many it takes to reach top_p. */
static int64_t keep_mass(const td_capture_args *a, const uint64_t *key, int64_t n) {
    double sum = 0;
    int64_t kept = 0;
    while (kept < n && (kept < a->min_k || sum < a->top_p))
        sum += exp((double)float_of((uint32_t)(key[kept++] >> 32)));
    return kept;
}

void TD_LEVEL_NAME(capture)(const td_capture_args *a, int64_t row, uint64_t *scratch) {
    row_state r = {.z = a->logits + row * a->n_vocab, .n = a->n_valid};
    r.n_blocks = (r.n + BLOCK - 1) / BLOCK;
    r.block_sum = (double *)scratch;
    r.block_max = (float *)(scratch + r.n_blocks);
    r.key = scratch + r.n_blocks * 2;
    uint64_t *draws = r.key + (size_t)a->top_k * 4 + 1024;
    double *draw_sums = (double *)(draws + a->n_draws);
    if (!td_cpu_capture_is_raw(a)) {
        float *z = a->n_draws ? (float *)(draw_sums + r.n_blocks) : (float *)draws;
        finish_row(a, r.z, z, r.n);
        r.z = z;
    }
    if (!find_max(&r) || (a->dense && !holds_finite(a->dense_dtype, r.m))) {
        store_invalid(a, row);
        return;
    }

    const double weighted = sum_row(&r), log_s = log(r.s), entropy = log_s - weighted / r.s;
    r.log_s = (float)log_s;
    a->logsumexp[row] = (float)((double)r.m + log_s);
    a->entropy[row] = (float)TD_MAX(entropy, 0.0);
    for (int32_t i = 0; a->logsumexp_t && i < a->n_temperatures; i++) {
        const float t = a->temperatures[i];
        const double s = t == 1.0f ? r.s : sum_tempered(&r, t);
        a->logsumexp_t[row * a->n_temperatures + i] = (float)((double)r.m / (double)t + log(s));
    }

    int64_t n_taken = select_row(&r, a->top_k);
    if (a->top_p > 0)
        a->n_kept[row] = (int32_t)(n_taken = keep_mass(a, r.key, n_taken));
    for (int64_t i = 0; i < a->top_k; i++) {
        const int64_t at = row * a->top_k + i;
        a->topk_ids[at] = i < n_taken ? (int32_t) ~(uint32_t)r.key[i] : -1;
        a->topk_logprobs[at] = i < n_taken ? float_of((uint32_t)(r.key[i] >> 32)) : -INFINITY;
    }
    if (a->n_draws) {
        const double total = draw_row(a, &r, row, draws, draw_sums);
        if (a->proposal_logsumexp)
            a->proposal_logsumexp[row] = (float)(log(total) - (double)a->proposal_power * log_s);
    }
    for (int32_t i = 0; i < a->n_always; i++) {
        const int32_t id = a->always_ids[i];
        a->always_logprobs[row * a->n_always + i] =
            id < a->n_valid ? (r.z[id] - r.m) - r.log_s : -INFINITY;
    }
    if (a->dense)
        store_dense(a, &r, row);

    const float last_lp = n_taken ? float_of((uint32_t)(r.key[n_taken - 1] >> 32)) : INFINITY;
    const int32_t last_id = n_taken ? (int32_t) ~(uint32_t)r.key[n_taken - 1] : -1;
    double tail = 0;
    if (a->top_k > 0 || (!a->n_draws && !a->dense))
        tail = sum_tail(&r, last_lp, last_id);
    else if (a->n_draws)
        tail = sum_without(&r, a->draw_ids + row * a->n_draws, a->n_unique[row]);
    a->tail_mass[row] = (float)(tail / r.s);

    const int32_t target = a->targets[row];
    const int has_target = target >= 0 && target < a->n_valid;
    a->target_logprob[row] = has_target ? (r.z[target] - r.m) - r.log_s : -INFINITY;
    a->target_rank[row] = has_target ? rank_of(&r, a->target_logprob[row], target) : -1;
}
