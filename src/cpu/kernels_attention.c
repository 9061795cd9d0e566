/* kernels_attention.c - causal attention of one block of query rows of one head.
 *
 * The lanes of a vector are *query rows*: scores, maxima, sums and outputs of different rows never
 * meet in one number, so a row's bits cannot depend on its neighbours. Online softmax (Milakov &
 * Gimelshein 2018) over tiles of TD_ATT_KEYS keys that count from the sequence's start. Layout: q
 * transposed [D][Q], scores [keys][Q], output [D][Q].
 *
 * A sum over many keys in one f32 loses more with every key. Here a tile is summed by itself, from
 * zero, and the tiles are added with compensation (Kahan 1965): what an addition rounds off is kept
 * and goes into the next one. The error of both sums, of the probabilities and of p v, is that of a
 * tile and does not grow with the length (docs/numerics.md).
 */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "base/memory.h"

enum {
    Q = TD_ATT_QUERIES,
    KT = TD_ATT_KEYS,
    NV = Q / TD_NATIVE, /* vectors of rows */
    PAIR = 2 * TD_NATIVE,
    /* Two vectors of rows by WIDE keys or columns are accumulated in registers at a time. */
    WIDE = TD_NATIVE == 16 ? 8 : 4,
    DIM_PART = 64
};
_Static_assert(Q % PAIR == 0, "rows are taken by pairs of vectors");
_Static_assert(KT % Q == 0, "the masked tiles are those that the diagonal block meets");
_Static_assert(KT % 4 == 0, "the sum of a tile's probabilities has four parts");

/* s[j][rows] = sum_d k[j][d] * qt[d][rows] for a pair of vectors of rows, n keys; or += . */
TD_INLINE void scores_n(const float *qt, const float *k, int64_t stride, int32_t dim, int n,
                        int add, float *s) {
    nf a[WIDE][2];
    for (int j = 0; j < n; j++)
        a[j][0] = a[j][1] = nf_set(0);
    for (int32_t d = 0; d < dim; d++) {
        const nf q0 = nf_load(qt + (size_t)d * Q), q1 = nf_load(qt + (size_t)d * Q + TD_NATIVE);
        for (int j = 0; j < n; j++) {
            const nf kj = nf_set(k[j * stride + d]);
            a[j][0] += kj * q0;
            a[j][1] += kj * q1;
        }
    }
    for (int j = 0; j < n; j++) {
        float *at = s + j * Q;
        if (add) {
            a[j][0] += nf_load(at);
            a[j][1] += nf_load(at + TD_NATIVE);
        }
        nf_store(at, a[j][0]);
        nf_store(at + TD_NATIVE, a[j][1]);
    }
}

/* A score is a sum over d too: by parts of DIM_PART, each from zero. */
static void scores(const float *qt, const float *k, int64_t stride, int32_t dim, int32_t n_keys,
                   float *s) {
    for (int r = 0; r < Q; r += PAIR)
        for (int32_t d = 0; d < dim; d += DIM_PART) {
            const float *q = qt + (size_t)d * Q + r, *kd = k + d;
            const int32_t n = TD_MIN(dim - d, (int32_t)DIM_PART);
            int32_t j = 0;
            for (; j + WIDE <= n_keys; j += WIDE)
                scores_n(q, kd + j * stride, stride, n, WIDE, d > 0, s + j * Q + r);
            for (; j < n_keys; j++)
                scores_n(q, kd + j * stride, stride, n, 1, d > 0, s + j * Q + r);
        }
}

/* *sum = *sum * corr + x, with what earlier additions rounded off in *lost (to be subtracted). */
TD_INLINE void add_kept(nf *sum, nf *lost, nf corr, nf x) {
    const nf before = *sum * corr, y = x - *lost * corr, after = before + y;
    const nf c = (after - before) - y;
    *sum = after;
    *lost = nf_sel(c == c, c, nf_set(0)); /* an infinite sum stays infinite */
}

/* o[d][rows] = o[d][rows] * corr[rows] + sum_j p[j][rows] * v[j][d] for a pair of vectors of rows
 * and n columns, lost[d][rows] as in add_kept. `masked`: a row takes key j only where first <= j <=
 * last (by select, not by adding 0 * v: v may be infinite in a token that this row must not see).
 */
TD_INLINE void values_n(float *o, float *lost, const float *p, const float *val, int64_t stride,
                        int n_keys, int n, const nf *corr, int masked, const ni *first,
                        const ni *last) {
    nf a[WIDE][2];
    for (int d = 0; d < n; d++)
        a[d][0] = a[d][1] = nf_set(0);
    for (int j = 0; j < n_keys; j++) {
        const nf p0 = nf_load(p + j * Q), p1 = nf_load(p + j * Q + TD_NATIVE);
        ni m0, m1;
        if (masked) {
            m0 = (first[0] <= j) & (last[0] >= j);
            m1 = (first[1] <= j) & (last[1] >= j);
        }
        for (int d = 0; d < n; d++) {
            const nf x = nf_set(val[j * stride + d]);
            if (masked) {
                a[d][0] = nf_sel(m0, a[d][0] + p0 * x, a[d][0]);
                a[d][1] = nf_sel(m1, a[d][1] + p1 * x, a[d][1]);
            } else {
                a[d][0] += p0 * x;
                a[d][1] += p1 * x;
            }
        }
    }
    for (int d = 0; d < n; d++)
        for (int v = 0; v < 2; v++) {
            float *at = o + d * Q + v * TD_NATIVE, *lost_at = lost + d * Q + v * TD_NATIVE;
            nf sum = nf_load(at), c = nf_load(lost_at);
            add_kept(&sum, &c, corr[v], a[d][v]);
            nf_store(at, sum);
            nf_store(lost_at, c);
        }
}

TD_INLINE void values(float *o, float *lost, const float *p, const float *val, int64_t stride,
                      int n_keys, int32_t dim, const nf *corr, int masked, const ni *first,
                      const ni *last) {
    for (int r = 0, v = 0; r < Q; r += PAIR, v += 2) {
        int32_t d = 0;
        for (; d + WIDE <= dim; d += WIDE)
            values_n(o + (size_t)d * Q + r, lost + (size_t)d * Q + r, p + r, val + d, stride,
                     n_keys, WIDE, corr + v, masked, first + v, last + v);
        for (; d < dim; d++)
            values_n(o + (size_t)d * Q + r, lost + (size_t)d * Q + r, p + r, val + d, stride,
                     n_keys, 1, corr + v, masked, first + v, last + v);
    }
}

/* s[j] = exp(s[j] - m) for the tile's keys; returns their sum, four parts by the key's number, so
 * that keys which a row does not see (0) change nothing. */
TD_INLINE nf exponentials(float *s, int32_t n_keys, nf m, ni none) {
    nf part[4] = {nf_set(0), nf_set(0), nf_set(0), nf_set(0)};
    for (int32_t j = 0; j < n_keys; j += 4)
        for (int i = 0; i < 4; i++) { /* s has KT rows: those behind the last key count as 0 */
            float *sj = s + (j + i) * Q;
            nf e = nf_sel(none, nf_set(0), nf_exp(nf_load(sj) - m));
            if (j + i >= n_keys)
                e = nf_set(0);
            part[i] += e;
            nf_store(sj, e);
        }
    return (part[0] + part[1]) + (part[2] + part[3]);
}

void TD_LEVEL_NAME(attention)(const td_attention_args *a, int32_t start, int32_t len, int32_t head,
                              int32_t q0, float *scratch) {
    const int32_t dim = a->head_dim, n_q = TD_MIN((int32_t)Q, len - q0);
    const int64_t stride = a->stride;
    const int32_t kv_head = head / (a->n_heads / a->n_kv_heads);
    const float *q = (const float *)a->q + (int64_t)(start + q0) * stride + (int64_t)head * dim;
    const float *k = (const float *)a->k + (int64_t)start * stride + (int64_t)kv_head * dim;
    const float *val = (const float *)a->v + (int64_t)start * stride + (int64_t)kv_head * dim;
    float *qt = scratch, *o = qt + (size_t)dim * Q, *lost = o + (size_t)dim * Q;
    float *s = lost + (size_t)dim * Q, *vt = s + KT * Q;
    const float ninf = -INFINITY;

    for (int32_t d = 0; d < dim; d++)
        for (int32_t i = 0; i < Q; i++) {
            qt[(size_t)d * Q + i] = i < n_q ? q[i * stride + d] * a->scale : 0.0f;
            o[(size_t)d * Q + i] = lost[(size_t)d * Q + i] = 0;
        }
    nf m[NV], l[NV], l_lost[NV];
    ni row[NV]; /* position in the sequence of each lane's row */
    for (int v = 0; v < NV; v++) {
        m[v] = nf_set(ninf);
        l[v] = l_lost[v] = nf_set(0);
        row[v] = ni_iota() + (q0 + v * TD_NATIVE);
    }
    /* With a window the block's first row sets where to begin, on a tile border. */
    int32_t window = a->window > 0 ? a->window : INT32_MAX;
    int32_t k0 = q0 >= window ? (q0 - window + 1) / KT * KT : 0;
    const int32_t k_end = q0 + n_q; /* keys that exist for this block */
    for (; k0 < k_end; k0 += KT) {
        const int32_t n_k = TD_MIN((int32_t)KT, k_end - k0);
        /* The last key of the tile is past the first row, or a row's window begins in it: then
         * lanes differ in what they see. Depends on positions in the sequence only. */
        const int masked = k0 + KT > q0 || q0 + Q - 1 - window >= k0;
        ni first[NV], last[NV];
        nf corr[NV];
        scores(qt, k + (int64_t)k0 * stride, stride, dim, n_k, s);
        if (a->softcap > 0) {
            const nf cap = nf_set(a->softcap);
            for (float *x = s; x < s + n_k * Q; x += TD_NATIVE)
                nf_store(x, cap * nf_tanh(nf_load(x) / cap));
        }
        for (int v = 0; v < NV; v++) {
            float *sv = s + v * TD_NATIVE;
            nf m_new = m[v];
            last[v] = row[v] - k0;
            first[v] = window == INT32_MAX ? last[v] * 0 : last[v] - (window - 1);
            for (int32_t j = 0; j < n_k; j++) {
                nf x = nf_load(sv + j * Q);
                if (masked) {
                    x = nf_sel((first[v] <= j) & (last[v] >= j), x, nf_set(ninf));
                    nf_store(sv + j * Q, x);
                }
                /* A NaN score must reach the result: it wins the maximum. */
                m_new = nf_sel((x > m_new) | (x != x), x, m_new);
            }
            const ni none = m_new == nf_set(ninf); /* no key seen so far */
            corr[v] = nf_sel(none, nf_set(1), nf_exp(m[v] - m_new));
            m[v] = m_new;
            add_kept(&l[v], &l_lost[v], corr[v], exponentials(sv, n_k, m_new, none));
        }
        /* Dense, as `values` walks the tile once per WIDE columns: at the stride of qkv, a power of
         * two times the head, all its rows would fall into the same few cache sets. */
        for (int32_t j = 0; j < n_k; j++)
            memcpy(vt + (size_t)j * dim, val + (int64_t)(k0 + j) * stride,
                   (size_t)dim * sizeof(float));
        if (masked)
            values(o, lost, s, vt, dim, n_k, dim, corr, 1, first, last);
        else
            values(o, lost, s, vt, dim, n_k, dim, corr, 0, first, last);
    }
    for (int v = 0; v < NV; v++)
        for (int32_t d = 0; d < dim; d++) {
            float *od = o + (size_t)d * Q + v * TD_NATIVE;
            nf_store(od, nf_load(od) / l[v]);
        }
    for (int32_t i = 0; i < n_q; i++) {
        int64_t at = ((int64_t)(start + q0 + i) * a->n_heads + head) * dim;
        if (a->out_dtype == TD_F32) {
            float *out = (float *)a->out + at;
            for (int32_t d = 0; d < dim; d++)
                out[d] = o[(size_t)d * Q + i];
        } else {
            uint16_t *out = (uint16_t *)a->out + at;
            for (int32_t d = 0; d < dim; d++)
                out[d] = td_f32_to_bf16(o[(size_t)d * Q + i]);
        }
    }
}
