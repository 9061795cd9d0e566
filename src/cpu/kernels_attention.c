/* kernels_attention.c - causal attention of one block of query rows of one head.
 *
 * The sixteen lanes of a vector are sixteen *query rows*: scores, maxima, sums and outputs of
 * different rows never meet in one number, so a row's bits cannot depend on its neighbours.
 * Online softmax (Milakov & Gimelshein 2018) over tiles of TD_ATT_KEYS keys that count from the
 * sequence's start. Layout: q transposed [D][Q], scores [keys][Q], output [D][Q].
 */
#include "cpu/kernels_level.h"
#include "cpu/vec.h"
#include "base/memory.h"

enum { Q = TD_ATT_QUERIES, KT = TD_ATT_KEYS, NV = Q / TD_LANES };
/* Accumulators held in registers: WIDE x NV vectors of sixteen lanes. */
#if TD_KERNEL_LEVEL >= 4
enum { WIDE = 8 };
#else
enum { WIDE = 4 };
#endif
_Static_assert(NV == 2, "the loops below hold two vectors of rows");
_Static_assert(KT % Q == 0, "the masked tiles are those that the diagonal block meets");

/* s[j][rows] = sum_d k[j][d] * qt[d][rows], WIDE keys at a time. */
TD_INLINE void scores_n(const float *qt, const float *k, int64_t stride, int32_t dim, int nk,
                        float *s) {
    vf a[WIDE][NV];
    for (int j = 0; j < nk; j++)
        for (int v = 0; v < NV; v++)
            a[j][v] = vf_set(0);
    for (int32_t d = 0; d < dim; d++) {
        vf q0 = vf_load(qt + (size_t)d * Q), q1 = vf_load(qt + (size_t)d * Q + TD_LANES);
        for (int j = 0; j < nk; j++) {
            vf kj = vf_set(k[j * stride + d]);
            a[j][0] += kj * q0;
            a[j][1] += kj * q1;
        }
    }
    for (int j = 0; j < nk; j++)
        for (int v = 0; v < NV; v++)
            vf_store(s + j * Q + v * TD_LANES, a[j][v]);
}

/* o[d][rows] = o[d][rows] * corr[rows] + sum_j p[j][rows] * v[j][d], WIDE d at a time. `masked`:
 * a row takes key j only where lo <= j' <= hi (by select, not by adding 0 * v: v may be infinite
 * in a token that this row must not see). */
TD_INLINE void values_n(float *o, const float *p, const float *val, int64_t stride, int n_keys,
                        int nd, const vf *corr, int masked, const vi *first, const vi *last) {
    vf a[WIDE][NV];
    for (int d = 0; d < nd; d++)
        for (int v = 0; v < NV; v++)
            a[d][v] = vf_load(o + d * Q + v * TD_LANES) * corr[v];
    for (int j = 0; j < n_keys; j++) {
        vf p0 = vf_load(p + j * Q), p1 = vf_load(p + j * Q + TD_LANES);
        vi m0, m1;
        if (masked) {
            m0 = (first[0] <= j) & (last[0] >= j);
            m1 = (first[1] <= j) & (last[1] >= j);
        }
        for (int d = 0; d < nd; d++) {
            vf x = vf_set(val[j * stride + d]);
            if (masked) {
                a[d][0] = vf_sel(m0, a[d][0] + p0 * x, a[d][0]);
                a[d][1] = vf_sel(m1, a[d][1] + p1 * x, a[d][1]);
            } else {
                a[d][0] += p0 * x;
                a[d][1] += p1 * x;
            }
        }
    }
    for (int d = 0; d < nd; d++)
        for (int v = 0; v < NV; v++)
            vf_store(o + d * Q + v * TD_LANES, a[d][v]);
}

static void values(float *o, const float *p, const float *val, int64_t stride, int n_keys,
                   int32_t dim, const vf *corr, int masked, const vi *first, const vi *last) {
    int32_t d = 0;
    if (masked) {
        for (; d + WIDE <= dim; d += WIDE)
            values_n(o + (size_t)d * Q, p, val + d, stride, n_keys, WIDE, corr, 1, first, last);
        for (; d < dim; d++)
            values_n(o + (size_t)d * Q, p, val + d, stride, n_keys, 1, corr, 1, first, last);
    } else {
        for (; d + WIDE <= dim; d += WIDE)
            values_n(o + (size_t)d * Q, p, val + d, stride, n_keys, WIDE, corr, 0, first, last);
        for (; d < dim; d++)
            values_n(o + (size_t)d * Q, p, val + d, stride, n_keys, 1, corr, 0, first, last);
    }
}

void TD_LEVEL_NAME(attention)(const td_attention_args *a, int32_t start, int32_t len, int32_t head,
                              int32_t q0, float *scratch) {
    const int32_t dim = a->head_dim, n_q = TD_MIN((int32_t)Q, len - q0);
    const int64_t stride = a->stride;
    const int32_t kv_head = head / (a->n_heads / a->n_kv_heads);
    const float *q = (const float *)a->q + (int64_t)(start + q0) * stride + (int64_t)head * dim;
    const float *k = (const float *)a->k + (int64_t)start * stride + (int64_t)kv_head * dim;
    const float *val = (const float *)a->v + (int64_t)start * stride + (int64_t)kv_head * dim;
    float *qt = scratch, *o = qt + (size_t)dim * Q, *s = o + (size_t)dim * Q, *vt = s + KT * Q;
    const float ninf = -INFINITY;

    for (int32_t d = 0; d < dim; d++)
        for (int32_t i = 0; i < Q; i++) {
            qt[(size_t)d * Q + i] = i < n_q ? q[i * stride + d] * a->scale : 0.0f;
            o[(size_t)d * Q + i] = 0;
        }
    vf m[NV], l[NV];
    vi row[NV]; /* position in the sequence of each lane's row */
    for (int v = 0; v < NV; v++) {
        m[v] = vf_set(ninf);
        l[v] = vf_set(0);
        row[v] = vi_iota() + (q0 + v * TD_LANES);
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
        vi first[NV], last[NV];
        int32_t j = 0;
        const float *kt = k + (int64_t)k0 * stride;
        for (; j + WIDE <= n_k; j += WIDE)
            scores_n(qt, kt + j * stride, stride, dim, WIDE, s + j * Q);
        for (; j < n_k; j++)
            scores_n(qt, kt + j * stride, stride, dim, 1, s + j * Q);
        if (a->softcap > 0) {
            const vf cap = vf_set(a->softcap);
            for (float *x = s; x < s + n_k * Q; x += TD_LANES)
                vf_store(x, cap * vf_tanh(vf_load(x) / cap));
        }
        vf m_new[NV] = {m[0], m[1]}, corr[NV];
        for (int v = 0; v < NV; v++) {
            last[v] = row[v] - k0;
            first[v] = window == INT32_MAX ? last[v] * 0 : last[v] - (window - 1);
        }
        for (j = 0; j < n_k; j++)
            for (int v = 0; v < NV; v++) {
                vf x = vf_load(s + j * Q + v * TD_LANES);
                if (masked) {
                    x = vf_sel((first[v] <= j) & (last[v] >= j), x, vf_set(ninf));
                    vf_store(s + j * Q + v * TD_LANES, x);
                }
                /* A NaN score must reach the result: it wins the maximum. */
                m_new[v] = vf_sel((x > m_new[v]) | (x != x), x, m_new[v]);
            }
        for (int v = 0; v < NV; v++) {
            vi none = m_new[v] == vf_set(ninf); /* no key seen so far */
            corr[v] = vf_sel(none, vf_set(1), vf_exp(m[v] - m_new[v]));
            l[v] = l[v] * corr[v];
            m[v] = m_new[v];
            for (j = 0; j < n_k; j++) {
                float *sj = s + j * Q + v * TD_LANES;
                vf e = vf_sel(none, vf_set(0), vf_exp(vf_load(sj) - m[v]));
                l[v] += e;
                vf_store(sj, e);
            }
        }
        /* Dense, as `values` walks the tile once per WIDE columns: at the stride of qkv, a power of
         * two times the head, all its rows would fall into the same few cache sets. */
        for (j = 0; j < n_k; j++)
            memcpy(vt + (size_t)j * dim, val + (int64_t)(k0 + j) * stride,
                   (size_t)dim * sizeof(float));
        values(o, s, vt, dim, n_k, dim, corr, masked, first, last);
    }
    for (int v = 0; v < NV; v++)
        for (int32_t d = 0; d < dim; d++) {
            float *od = o + (size_t)d * Q + v * TD_LANES;
            vf_store(od, vf_load(od) / l[v]);
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
