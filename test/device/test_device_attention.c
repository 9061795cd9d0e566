/* Attention against the formula in f64, and the bits of its rows. */
#include "fixture.h"
#include "base/memory.h"

/* One row by the formula; keys j in (i - window, i]. */
static void attention_row(const td_attention_args *a, int32_t start, int32_t i, int32_t h,
                          double *out) {
    const int32_t d = a->head_dim, kv = h / (a->n_heads / a->n_kv_heads);
    const int32_t lo = a->window && i >= a->window ? i - a->window + 1 : 0;
    double m = -INFINITY, sum = 0, *p = malloc(sizeof(double) * (size_t)(i + 1));
    for (int32_t j = lo; j <= i; j++) {
        p[j] = 0;
        for (int32_t c = 0; c < d; c++)
            p[j] += (double)((const float *)a->q)[(start + i) * a->stride + h * d + c] *
                    ((const float *)a->k)[(start + j) * a->stride + kv * d + c];
        p[j] *= (double)a->scale;
        if (a->softcap > 0)
            p[j] = (double)a->softcap * tanh(p[j] / (double)a->softcap);
        m = TD_MAX(m, p[j]);
    }
    memset(out, 0, sizeof(double) * (size_t)d);
    for (int32_t j = lo; j <= i; j++) {
        double e = exp(p[j] - m);
        sum += e;
        for (int32_t c = 0; c < d; c++)
            out[c] += e * ((const float *)a->v)[(start + j) * a->stride + kv * d + c];
    }
    for (int32_t c = 0; c < d; c++)
        out[c] /= sum;
    free(p);
}

static const int32_t seq_lens[] = {1, 2, 31, 32, 33, 64, 65, 100, 300};

Test(device_attention, follows_the_formula) {
    static const struct {
        int32_t h, hkv, d, window;
        float softcap, sharp; /* sharp: scores are that much larger than their deviation of 2 */
    } cases[] = {
        {1, 1, 8, 0, 0, 1},   {4, 2, 16, 0, 0, 1},  {4, 1, 64, 0, 0, 1},    {2, 2, 5, 0, 0, 1},
        {3, 3, 128, 0, 0, 1}, {4, 2, 16, 40, 0, 1}, {2, 1, 32, 1, 0, 1},    {2, 1, 32, 64, 0, 1},
        {2, 1, 12, 97, 0, 1}, {4, 2, 256, 0, 0, 1}, {2, 1, 256, 33, 0, 1},  {2, 1, 256, 40, 50, 1},
        {3, 1, 20, 0, 50, 1}, {2, 1, 8, 17, 50, 1}, {1, 1, 12, 0, 0.5f, 1}, {2, 2, 20, 64, 30, 60}};
    td_error err = {0};
    fixture f = fixture_open(2);
    test_rng r = {6};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++) {
        const int32_t h = cases[c].h, hkv = cases[c].hkv, d = cases[c].d;
        const int32_t n_seqs = (int32_t)TD_ARRAY_LEN(seq_lens), stride = (h + 2 * hkv) * d + 3;
        int32_t offsets[16] = {0}, total;
        for (int32_t i = 0; i < n_seqs; i++)
            offsets[i + 1] = offsets[i] + seq_lens[i];
        total = offsets[n_seqs];
        float *qkv = rng_floats(&r, (size_t)total * stride);
        float *out = malloc(sizeof(float) * (size_t)(total * h * d));
        uint16_t *out16 = malloc(sizeof(uint16_t) * (size_t)(total * h * d));
        double *want = malloc(sizeof(double) * (size_t)d);
        td_attention_args a = {.q = qkv,
                               .k = qkv + h * d,
                               .v = qkv + (h + hkv) * d,
                               .stride = stride,
                               .out = out,
                               .seq_offsets = offsets,
                               .seq_offsets_host = offsets,
                               .n_seqs = n_seqs,
                               .n_heads = h,
                               .n_kv_heads = hkv,
                               .head_dim = d,
                               .window = cases[c].window,
                               .scale = 2.0f * cases[c].sharp / sqrtf((float)d),
                               .softcap = cases[c].softcap};
        OK(f.ops->attention(f.s, &a, &err));
        a.out = out16;
        a.out_dtype = TD_BF16;
        OK(f.ops->attention(f.s, &a, &err));
        fixture_sync(&f);
        /* A score's rounding grows with the terms of its product. */
        char what[32];
        snprintf(what, sizeof(what), "attention, case %zu", c);
        const double tol = 3e-6 * sqrt(TD_MAX(d / 64.0, 1.0));
        for (int32_t s = 0; s < n_seqs; s++)
            for (int32_t i = 0; i < seq_lens[s]; i++)
                for (int32_t head = 0; head < h; head++) {
                    attention_row(&a, offsets[s], i, head, want);
                    for (int32_t j = 0; j < d; j++) {
                        int64_t at = ((int64_t)(offsets[s] + i) * h + head) * d + j;
                        near(out[at], want[j], tol, what, at);
                        cr_assert_eq(out16[at], td_f32_to_bf16(out[at]));
                    }
                }
        free(qkv), free(out), free(out16), free(want);
    }
    fixture_close(&f);
}

/* A row's bits depend on its own sequence up to itself: not on what comes after it (NaN and
 * infinities there), on other sequences, or on threads. */
Test(device_attention, rows_keep_their_bits) {
    enum { H = 4, HKV = 2, D = 24, STRIDE = (H + 2 * HKV) * D, LEN = 230, MAX = 1200 };
    static const int32_t threads[] = {1, 2, 4};
    td_error err = {0};
    test_rng r = {8};
    fixture f[3];
    for (int t = 0; t < 3; t++)
        f[t] = fixture_open(threads[t]);
    float *seq = rng_floats(&r, LEN * STRIDE), *first = malloc(sizeof(float) * LEN * H * D);
    float *x = malloc(sizeof(float) * MAX * STRIDE), *out = malloc(sizeof(float) * MAX * H * D);
    for (int v = 0; v < 6; v++) {
        const int32_t window = v % 3 * 35;
        const float softcap = v < 3 ? 0 : 2.5f;
        int32_t offsets[8] = {0, LEN};
        td_attention_args a = {.q = seq,
                               .k = seq + H * D,
                               .v = seq + (H + HKV) * D,
                               .stride = STRIDE,
                               .out = first,
                               .seq_offsets = offsets,
                               .seq_offsets_host = offsets,
                               .n_seqs = 1,
                               .n_heads = H,
                               .n_kv_heads = HKV,
                               .head_dim = D,
                               .window = window,
                               .scale = 0.25f,
                               .softcap = softcap};
        OK(f[0].ops->attention(f[0].s, &a, &err));
        fixture_sync(&f[0]);
        for (int round = 0; round < 25; round++) {
            /* [hostile] [a prefix of seq, perhaps with hostile tokens after it] [hostile] */
            const int32_t before = rng_below(&r, 300), keep = 1 + rng_below(&r, LEN);
            const int32_t after = rng_below(&r, 100), last = rng_below(&r, 200), t = round % 3;
            const int32_t total = before + keep + after + last;
            memset(x, round % 2 ? 0xff : 0x7f, sizeof(float) * MAX * STRIDE);
            if (round % 5 == 0)
                for (int i = 0; i < MAX * STRIDE; i++)
                    x[i] = i % 2 ? INFINITY : -INFINITY;
            memcpy(x + before * STRIDE, seq, sizeof(float) * (size_t)(keep * STRIDE));
            int32_t n = 0, o[8];
            o[n++] = 0;
            if (before)
                o[n++] = before;
            o[n++] = before + keep + after;
            if (last)
                o[n++] = total;
            a.q = x;
            a.k = x + H * D;
            a.v = x + (H + HKV) * D;
            a.out = out;
            a.seq_offsets = a.seq_offsets_host = o;
            a.n_seqs = n - 1;
            OK(f[t].ops->attention(f[t].s, &a, &err));
            fixture_sync(&f[t]);
            cr_assert_arr_eq(out + before * H * D, first, sizeof(float) * (size_t)(keep * H * D),
                             "window %d: %d rows at %d, %d after, %d threads", window, keep, before,
                             after, threads[t]);
        }
    }
    free(seq), free(first), free(x), free(out);
    for (int t = 0; t < 3; t++)
        fixture_close(&f[t]);
}

/* The same over many tiles of keys: a prefix of a long sequence, somewhere in a batch, has the bits
 * that it has in the whole sequence, with what its sums rounded off carried along. */
Test(device_attention, rows_of_long_sequences_keep_their_bits) {
    enum { D = 8, STRIDE = 3 * D, LEN = 1500, MAX = LEN + 400 };
    td_error err = {0};
    test_rng r = {18};
    fixture f[2] = {fixture_open(1), fixture_open(4)};
    float *seq = rng_floats(&r, LEN * STRIDE), *first = malloc(sizeof(float) * LEN * D);
    float *x = malloc(sizeof(float) * MAX * STRIDE), *out = malloc(sizeof(float) * MAX * D);
    for (int32_t window = 0; window <= 700; window += 700) {
        int32_t offsets[4] = {0, LEN};
        td_attention_args a = {.q = seq,
                               .k = seq + D,
                               .v = seq + 2 * D,
                               .stride = STRIDE,
                               .out = first,
                               .seq_offsets = offsets,
                               .seq_offsets_host = offsets,
                               .n_seqs = 1,
                               .n_heads = 1,
                               .n_kv_heads = 1,
                               .head_dim = D,
                               .window = window,
                               .scale = 0.4f};
        OK(f[0].ops->attention(f[0].s, &a, &err));
        fixture_sync(&f[0]);
        for (int round = 0; round < 6; round++) {
            const int32_t before = 1 + rng_below(&r, 200), keep = LEN - rng_below(&r, LEN / 2);
            const int32_t after = rng_below(&r, 200), t = round % 2;
            const int32_t o[] = {0, before, before + keep + after};
            memset(x, round % 2 ? 0xff : 0x7f, sizeof(float) * MAX * STRIDE);
            memcpy(x + before * STRIDE, seq, sizeof(float) * (size_t)(keep * STRIDE));
            a.q = x;
            a.k = x + D;
            a.v = x + 2 * D;
            a.out = out;
            a.seq_offsets = a.seq_offsets_host = o;
            a.n_seqs = 2;
            OK(f[t].ops->attention(f[t].s, &a, &err));
            fixture_sync(&f[t]);
            cr_assert_arr_eq(out + before * D, first, sizeof(float) * (size_t)(keep * D),
                             "window %d: %d rows at %d, %d after", window, keep, before, after);
        }
    }
    free(seq), free(first), free(x), free(out);
    fixture_close(&f[0]);
    fixture_close(&f[1]);
}
