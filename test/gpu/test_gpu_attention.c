/* Attention of the CUDA device against the CPU device, and the bits of its rows. */
#include <math.h>
#include <stdio.h>

#include "fixture.h"
#include "base/memory.h"

typedef struct attention_case {
    int32_t h, hkv, d, window;
    float softcap, sharp; /* sharp: scores are that much larger than their deviation of 2 */
    int32_t pad;          /* of the stride; 0 with 16-bit input, which is dense */
} attention_case;

typedef struct packed {
    int32_t n_seqs, total;
    int32_t offsets[64];
} packed;

static packed pack_lengths(const int32_t *lens, int32_t n) {
    packed p = {.n_seqs = n};
    for (int32_t i = 0; i < n; i++)
        p.offsets[i + 1] = p.offsets[i] + lens[i];
    p.total = p.offsets[n];
    return p;
}

/* qkv holds total rows of `stride`, in_type; the result is widened to f32. */
static float *attention(gt_side *s, const attention_case *c, const packed *p, const void *qkv,
                        int64_t stride, td_dtype in_type, td_dtype out_type) {
    const size_t in_elem = td_dtype_size(in_type), out_elem = td_dtype_size(out_type);
    const size_t n_out = (size_t)p->total * c->h * c->d;
    char *x = gt_put(s, qkv, (size_t)p->total * (size_t)stride * in_elem);
    void *out = gt_put(s, NULL, n_out * out_elem), *host = gt_host(n_out * out_elem);
    td_attention_args a = {.q = x,
                           .k = x + (size_t)c->h * c->d * in_elem,
                           .v = x + (size_t)(c->h + c->hkv) * c->d * in_elem,
                           .in_dtype = in_type,
                           .stride = stride,
                           .out = out,
                           .out_dtype = out_type,
                           .seq_offsets = gt_put(s, p->offsets, ((size_t)p->n_seqs + 1) * 4),
                           .seq_offsets_host = p->offsets,
                           .n_seqs = p->n_seqs,
                           .n_heads = c->h,
                           .n_kv_heads = c->hkv,
                           .head_dim = c->d,
                           .window = c->window,
                           .scale = 2.0f * c->sharp / sqrtf((float)c->d),
                           .softcap = c->softcap};
    GT_MUST(s->ops->attention(s->s, &a, &gt_err));
    gt_get(s, host, out, n_out * out_elem);
    return gt_unpack(host, n_out, out_type);
}

static void check_attention(gt_rng *r, const attention_case *c, const packed *p, td_dtype in_type,
                            td_dtype out_type) {
    const int64_t stride = (int64_t)(c->h + 2 * c->hkv) * c->d + (in_type == TD_F32 ? c->pad : 0);
    const size_t n = (size_t)p->total * (size_t)stride;
    float *qkv = gt_floats_of(r, n, in_type);
    float *want = attention(&gt_cpu, c, p, qkv, stride, TD_F32, TD_F32);
    float *got = attention(&gt_dut, c, p, gt_pack(qkv, n, in_type), stride, in_type, out_type);
    /* Scores are sums of D products, their rounding grows with `sharp`; results are averages of
     * N(0, 1). 16-bit input: the probabilities are rounded to it, half an ulp each, and so is the
     * result. f32 input with a 16-bit result: the last rounding only. */
    const double score = 4e-6 * sqrt(TD_MAX(c->d / 64.0, 1.0)) * (double)TD_MAX(c->sharp, 1.0f);
    const double p_tol = in_type == TD_F32 ? 0 : gt_ulp(in_type);
    const double rel = out_type == TD_F32 ? score : gt_ulp(out_type) * 0.51 + score;
    gt_near(got, want, (size_t)p->total * c->h * c->d, c->h * c->d, score + p_tol, rel + p_tol,
            "%s to %s, %d/%d heads of %d, window %d, cap %g, sharp %g", td_dtype_name(in_type),
            td_dtype_name(out_type), c->h, c->hkv, c->d, c->window, (double)c->softcap,
            (double)c->sharp);
    gt_release();
}

static const attention_case shapes[] = {
    {1, 1, 8, 0, 0, 1, 3},    {4, 2, 16, 0, 0, 1, 0},   {4, 1, 64, 0, 0, 1, 4},
    {2, 2, 24, 0, 0, 1, 1},   {3, 3, 128, 0, 0, 1, 0},  {4, 2, 16, 40, 0, 1, 0},
    {2, 1, 32, 1, 0, 1, 0},   {2, 1, 32, 64, 0, 1, 8},  {2, 1, 40, 97, 0, 1, 3},
    {2, 1, 256, 0, 0, 1, 0},  {2, 1, 256, 33, 0, 1, 0}, {2, 1, 256, 40, 50, 1, 0},
    {3, 1, 48, 0, 50, 1, 0},  {2, 1, 8, 17, 50, 1, 0},  {1, 1, 16, 0, 0.5f, 1, 2},
    {2, 2, 80, 64, 30, 8, 0}, {2, 1, 96, 0, 0, 8, 0},   {2, 1, 112, 0, 0, 1, 0},
    {1, 1, 160, 0, 0, 1, 0},  {1, 1, 192, 50, 0, 1, 0}, {7, 1, 64, 128, 0, 1, 0},
    {1, 1, 72, 0, 0, 1, 0},   {2, 2, 64, 63, 0, 1, 0},  {1, 1, 32, 65, 0, 1, 0}};

/* Head dims that no kernel likes: f32 input only, as rope's 16-bit result would not be aligned. */
static const attention_case odd_dims[] = {
    {2, 2, 5, 0, 0, 1, 0}, {2, 1, 12, 97, 0, 1, 0}, {3, 1, 20, 0, 50, 1, 3}, {1, 1, 1, 0, 0, 1, 0}};

static const int32_t small_lengths[] = {1, 2, 15, 16, 17, 33, 64, 65, 130};

static void case_f32(void) {
    gt_rng r = {20};
    const packed p = pack_lengths(small_lengths, (int32_t)TD_ARRAY_LEN(small_lengths));
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++)
        check_attention(&r, &shapes[i], &p, TD_F32, TD_F32);
    for (size_t i = 0; i < TD_ARRAY_LEN(odd_dims); i++)
        check_attention(&r, &odd_dims[i], &p, TD_F32, TD_F32);
    /* Devices that read q, k and v in the compute type do not mix the two. */
    for (int32_t t = 1; t < n_types && !gt_dut.dev->info.narrow_attention; t++)
        for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i += 5)
            check_attention(&r, &shapes[i], &p, TD_F32, types[t]);
}

static void case_16_bits(void) {
    if (!gt_turns_into())
        return;
    gt_rng r = {21};
    const packed p = pack_lengths(small_lengths, (int32_t)TD_ARRAY_LEN(small_lengths));
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 1; t < n_types; t++)
        for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++)
            check_attention(&r, &shapes[i], &p, types[t], types[t]);
}

/* One sequence, many short ones, one long among short ones. */
static void case_lengths(void) {
    gt_rng r = {22};
    static const int32_t ones[40] = {[0 ... 39] = 1};
    static const int32_t mixed[] = {1, 300, 1, 2, 77, 1};
    static const int32_t one[] = {1}, two[] = {128, 129};
    const packed packs[] = {pack_lengths(one, 1), pack_lengths(ones, 40), pack_lengths(mixed, 6),
                            pack_lengths(two, 2)};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (size_t i = 0; i < TD_ARRAY_LEN(packs); i++)
        for (int32_t t = 0; t < (gt_turns_into() ? n_types : 1); t++) {
            attention_case c = {4, 2, 32, 0, 0, 1, 0};
            check_attention(&r, &c, &packs[i], types[t], types[t]);
            c.window = 70, c.d = 64;
            check_attention(&r, &c, &packs[i], types[t], types[t]);
        }
}

/* Values at the ends of the range: scores so far apart that one key takes all, and equal ones. */
static void case_extreme_scores(void) {
    enum { T = 70, H = 1, D = 32, STRIDE = 3 * D };
    gt_rng r = {23};
    const int32_t len = T;
    const packed p = pack_lengths(&len, 1);
    td_dtype types[3];
    const int32_t n_types = gt_turns_into() ? gt_computes(types) : 1;
    types[0] = TD_F32;
    for (int32_t t = 0; t < n_types; t++)
        for (int mode = 0; mode < 3; mode++) {
            float *qkv = gt_floats(&r, T * STRIDE);
            for (int i = 0; i < T * STRIDE; i++)
                if (i % STRIDE < 2 * D) /* all scores 0; all far below 0; far apart */
                    qkv[i] = mode == 0   ? 0
                             : mode == 1 ? (i % STRIDE < D ? 30.f : -30.f)
                                         : 40 * qkv[i];
            gt_round(qkv, T * STRIDE, types[t]);
            const attention_case c = {H, H, D, 0, 0, 1, 0};
            float *want = attention(&gt_cpu, &c, &p, qkv, STRIDE, TD_F32, TD_F32);
            float *got = attention(&gt_dut, &c, &p, gt_pack(qkv, T * STRIDE, types[t]), STRIDE,
                                   types[t], types[t]);
            /* Scores of thousands: their rounding, 1e-4 and more, is in the exponent. */
            const double tol =
                (mode == 2 ? 5e-3 : 1e-5) + (types[t] == TD_F32 ? 0 : 2 * gt_ulp(types[t]));
            gt_near(got, want, T * D, D, tol, tol, "%s, mode %d", td_dtype_name(types[t]), mode);
            gt_release();
        }
}

/* --- bits of rows ----------------------------------------------------------------------------- */

/* A row's bits depend on its own sequence up to itself: not on what comes after it (NaN and
 * infinities there), nor on other sequences. */
static void check_prefixes(gt_rng *r, const attention_case *c, td_dtype type, int32_t len,
                           int32_t rounds) {
    const int32_t stride = (c->h + 2 * c->hkv) * c->d, width = c->h * c->d;
    const size_t elem = td_dtype_size(type);
    float *seq_f32 = gt_floats_of(r, (size_t)len * stride, type);
    char *seq = gt_pack(seq_f32, (size_t)len * stride, type);
    const packed alone = pack_lengths(&len, 1);
    float *first = attention(&gt_dut, c, &alone, seq, stride, type, type);
    for (int32_t round = 0; round < rounds; round++) {
        const int32_t before = gt_below(r, len), keep = 1 + gt_below(r, len);
        const int32_t after = round % 4 == 3 ? 0 : gt_below(r, 100), last = gt_below(r, 150);
        const int32_t total = before + keep + after + last;
        const size_t n = (size_t)total * stride;
        char *x = gt_host(n * elem);
        if (round % 3 == 2) {
            float *inf = gt_host(n * 4);
            for (size_t i = 0; i < n; i++)
                inf[i] = i % 2 ? INFINITY : -INFINITY;
            x = gt_pack(inf, n, type);
        } else {
            memset(x, round % 3 ? 0xff : 0x7f, n * elem);
        }
        memcpy(x + (size_t)before * stride * elem, seq, (size_t)keep * stride * elem);
        int32_t lens[3], n_seqs = 0;
        if (before)
            lens[n_seqs++] = before;
        lens[n_seqs++] = keep + after;
        if (last)
            lens[n_seqs++] = last;
        const packed p = pack_lengths(lens, n_seqs);
        float *got = attention(&gt_dut, c, &p, x, stride, type, type);
        if (!gt_same_bits(got + (size_t)before * width, first, (size_t)keep * width * 4,
                          "%s, %d/%d heads of %d, window %d, cap %g: %d rows at %d, %d after",
                          td_dtype_name(type), c->h, c->hkv, c->d, c->window, (double)c->softcap,
                          keep, before, after))
            break;
    }
    gt_release();
}

static void case_rows_keep_their_bits(void) {
    static const attention_case probes[] = {{4, 2, 16, 0, 0, 1, 0},    {2, 1, 64, 0, 0, 1, 0},
                                            {2, 1, 64, 35, 0, 1, 0},   {2, 1, 32, 70, 0, 1, 0},
                                            {2, 2, 24, 0, 2.5f, 1, 0}, {1, 1, 128, 64, 2.5f, 1, 0}};
    gt_rng r = {24};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (size_t i = 0; i < TD_ARRAY_LEN(probes); i++)
        for (int32_t t = 0; t < (gt_turns_into() ? n_types : 1); t++)
            check_prefixes(&r, &probes[i], types[t], 150, gt_large ? 25 : 5);
    if (!gt_large)
        return;
    for (int32_t t = 0; t < n_types; t++) {
        check_prefixes(&r, &(attention_case){32, 8, 128, 0, 0, 1, 0}, types[t], 2000, 6);
        check_prefixes(&r, &(attention_case){16, 8, 256, 1024, 50, 1, 0}, types[t], 1500, 6);
    }
}

static void case_real_sizes(void) {
    if (!gt_large)
        return;
    gt_rng r = {25};
    static const int32_t lens[] = {2048, 1, 513, 4000, 128}, one[] = {8192};
    const packed p = pack_lengths(lens, 5), longest = pack_lengths(one, 1);
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++) {
        check_attention(&r, &(attention_case){8, 2, 128, 0, 0, 1, 0}, &p, types[t], types[t]);
        check_attention(&r, &(attention_case){4, 2, 256, 1024, 50, 1, 0}, &p, types[t], types[t]);
        check_attention(&r, &(attention_case){4, 1, 128, 0, 0, 1, 0}, &longest, types[t], types[t]);
        check_attention(&r, &(attention_case){4, 1, 64, 4096, 0, 1, 0}, &longest, types[t],
                        types[t]);
    }
}

/* An average of equal values is that value, over however many keys. From theory, in units of 2^-24
 * and relative to the value: p v of a tile are 64 additions and tiles are joined with an error of 2,
 * the probabilities are 8 and 2, the quotient 1. One running f32 sum of equal terms is three times
 * that off at 1,500 keys. A 16-bit result hides both behind its own rounding. */
static void case_many_keys(void) {
    const int32_t n = gt_large ? 40000 : 1500;
    const double bound = (64 + 2 + 8 + 2 + 1) * 0x1p-24;
    static const attention_case shapes_of[] = {
        {1, 1, 32, 0, 0, 1, 0}, {1, 1, 128, 0, 0, 1, 0}, {1, 1, 256, 0, 0, 1, 0}};
    for (size_t i = 0; i < TD_ARRAY_LEN(shapes_of); i++) {
        const attention_case *c = &shapes_of[i];
        const int32_t d = c->d, stride = 3 * d;
        const packed p = pack_lengths(&n, 1);
        float *qkv = gt_host((size_t)n * (size_t)stride * sizeof(float));
        for (int32_t t = 0; t < n; t++) {
            float *q = qkv + (size_t)t * (size_t)stride, *k = q + d, *v = k + d;
            q[0] = t % 2 ? 0.5f * sqrtf((float)d) : 0; /* against the scale: scores are k or 0 */
            k[0] = t ? -2.3025851f : 0;
            for (int32_t j = 0; j < d; j++)
                v[j] = 0.1f * (float)(j % 8 + 1);
        }
        const float *got = attention(&gt_dut, c, &p, qkv, stride, TD_F32, TD_F32);
        double worst = 0;
        for (size_t at = 0; at < (size_t)n * (size_t)d; at++) {
            const double v = (double)(0.1f * (float)(at % 8 + 1));
            worst = TD_MAX(worst, fabs((double)got[at] - v) / v);
        }
        GT_CHECK(worst <= bound, "head of %d, %d keys: %.3g off, allowed %.3g", d, n, worst, bound);
        gt_release();
    }
}

static void case_refusals(void) {
    const int32_t offsets[] = {0, 1};
    td_attention_args a = {
        .n_seqs = 1, .n_heads = 3, .n_kv_heads = 2, .head_dim = 8, .seq_offsets_host = offsets};
    GT_CHECK(gt_dut.ops->attention(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL,
             "3 heads do not share 2 evenly");
    a = (td_attention_args){.n_heads = 1, .n_kv_heads = 1, .head_dim = 8};
    GT_MUST(gt_dut.ops->attention(gt_dut.s, &a, &gt_err)); /* nothing to do */
    gt_sync(&gt_dut);
}

static const gt_case cases[] = {
    {"f32", case_f32},
    {"16_bits", case_16_bits},
    {"lengths", case_lengths},
    {"extreme_scores", case_extreme_scores},
    {"rows_keep_their_bits", case_rows_keep_their_bits},
    {"real_sizes", case_real_sizes},
    {"many_keys", case_many_keys},
    {"refusals", case_refusals},
};

int main(int argc, char **argv) {
    return gt_main("test_gpu_attention", argc, argv, cases, TD_ARRAY_LEN(cases));
}
