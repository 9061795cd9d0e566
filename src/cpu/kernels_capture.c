/* kernels_capture.c - one row of logits to its record; the definitions are in td_capture_args.
 *
 * Four passes over the row, which stays in the second-level cache after the first: maximum and
 * validity; sums; selection; the sum of what was not selected. Selection keeps a buffer of
 * candidates above a threshold and cuts it to the best K when it is full (quickselect), so that a
 * row in ascending order costs O(V), too. A candidate is one 64-bit key: the log-prob mapped to an
 * ordered integer in the upper half, the complement of the id in the lower: one comparison is the
 * record's order.
 */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "tdgen/util.h"

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
}

/* The last, partial vector of the row is completed with -inf, which adds nothing to any sum. */
#define FOR_VECTORS(z, n, i, x)                                                                    \
    for (int64_t i = 0; i < (n); i += TD_LANES)                                                    \
        for (vf x = i + TD_LANES <= (n) ? vf_load((z) + i) : vf_load_n((z) + i, (n)-i, -INFINITY), \
                *once_ = &x;                                                                       \
             once_; once_ = NULL)

TD_INLINE void add_exp(vd *s, vf e) {
    s->lo += vf_lo(e);
    s->hi += vf_hi(e);
}

/* sum exp((z - m) * inv_t) in f64. */
static double sum_exp(const float *z, int64_t n, float m, float t) {
    vd s = {0};
    const vf vm = vf_set(m), vt = vf_set(t);
    FOR_VECTORS(z, n, i, x) {
        add_exp(&s, vf_exp((x - vm) / vt));
    }
    return vd_sum(s);
}

/* Fills key[] with the min(K, finite entries) best, sorted; returns their number. */
static int64_t select_row(const float *z, int64_t n, float m, float log_s, int64_t k,
                          uint64_t *key) {
    if (k == 0)
        return 0;
    const int64_t cap = 4 * k + 1024 - TD_LANES; /* td_cpu_capture_scratch_bytes */
    const vf vm = vf_set(m), vl = vf_set(log_s);
    int64_t len = 0;
    float limit = -INFINITY; /* an equal log-prob with a later id never gets in: strictly above */
    FOR_VECTORS(z, n, i, x) {
        vf lp = (x - vm) - vl;
        if (!vi_any(lp > vf_set(limit)))
            continue;
        for (int j = 0; j < TD_LANES; j++)
            if (lp[j] > limit)
                key[len++] = key_of(lp[j], (int32_t)(i + j));
        if (len >= cap - TD_LANES || (limit == -INFINITY && len >= k)) {
            select_top(key, len, k);
            len = TD_MIN(len, k);
            uint64_t least = key[0];
            for (int64_t j = 1; j < len; j++)
                least = TD_MIN(least, key[j]);
            if (len == k)
                limit = float_of((uint32_t)(least >> 32));
        }
    }
    if (len > k) {
        select_top(key, len, k);
        len = k;
    }
    sort_descending(key, len);
    return len;
}

void TD_LEVEL_NAME(capture)(const td_capture_args *a, const float *temperatures, int64_t row,
                            uint64_t *scratch) {
    const int64_t n = a->n_vocab;
    const float *z = a->logits + row * n;

    vf vmax = vf_set(-INFINITY);
    vi bad = (vi)vf_set(0);
    FOR_VECTORS(z, n, i, x) {
        vmax = vf_max(x, vmax);
        bad |= (x != x) | (x == vf_set(INFINITY));
    }
    float m = -INFINITY;
    for (int i = 0; i < TD_LANES; i++)
        m = TD_MAX(m, vmax[i]);
    if (vi_any(bad) || m == -INFINITY) {
        store_invalid(a, row);
        return;
    }

    vd sum = {0}, weighted = {0};
    FOR_VECTORS(z, n, i, x) {
        vf d = x - vf_set(m);
        vf e = vf_exp(d);
        d = vf_sel(d < vf_set(-105.0f), vf_set(-105.0f),
                   d); /* there e is 0; 0 * inf would be NaN */
        add_exp(&sum, e);
        weighted.lo += vf_lo(e) * vf_lo(d);
        weighted.hi += vf_hi(e) * vf_hi(d);
    }
    const double s = vd_sum(sum), log_s64 = log(s);
    const float log_s = (float)log_s64;
    a->logsumexp[row] = (float)((double)m + log_s64);
    const double entropy = log_s64 - vd_sum(weighted) / s;
    a->entropy[row] = (float)TD_MAX(entropy, 0.0);
    for (int32_t i = 0; a->logsumexp_t && i < a->n_temperatures; i++) {
        const float t = temperatures[i];
        const double st = t == 1.0f ? s : sum_exp(z, n, m, t);
        a->logsumexp_t[row * a->n_temperatures + i] = (float)((double)m / (double)t + log(st));
    }

    const int64_t n_taken = select_row(z, n, m, log_s, a->top_k, scratch);
    for (int64_t i = 0; i < a->top_k; i++) {
        const int64_t at = row * a->top_k + i;
        a->topk_ids[at] = i < n_taken ? (int32_t) ~(uint32_t)scratch[i] : -1;
        a->topk_logprobs[at] = i < n_taken ? float_of((uint32_t)(scratch[i] >> 32)) : -INFINITY;
    }

    /* Not taken: after the last taken one in the order. Rank: before the target in the order. */
    const float last_lp = n_taken ? float_of((uint32_t)(scratch[n_taken - 1] >> 32)) : INFINITY;
    const int32_t last_id = n_taken ? (int32_t) ~(uint32_t)scratch[n_taken - 1] : -1;
    const int32_t target = a->targets[row];
    const float target_lp = target >= 0 ? (z[target] - m) - log_s : -INFINITY;
    const vf vm = vf_set(m), vl = vf_set(log_s);
    vd tail = {0};
    vi before = (vi)vf_set(0);
    FOR_VECTORS(z, n, i, x) {
        vf d = x - vm, lp = d - vl;
        vi id = vi_iota() + (int32_t)i;
        vi out = (lp < vf_set(last_lp)) | ((lp == vf_set(last_lp)) & (id > last_id));
        add_exp(&tail, vf_sel(out, vf_exp(d), vf_set(0)));
        before -= (lp > vf_set(target_lp)) | ((lp == vf_set(target_lp)) & (id < target));
    }
    a->tail_mass[row] = (float)(vd_sum(tail) / s);
    int32_t rank = 0;
    for (int i = 0; i < TD_LANES; i++)
        rank += before[i];
    a->target_logprob[row] = target_lp;
    a->target_rank[row] = target >= 0 ? rank : -1;
}
