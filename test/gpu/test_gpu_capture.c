/* Capture of the CUDA device against a naive f64 reading of the definitions in td_capture_args. The
 * order of the ids is exact given log S, which is read from the largest log-prob. */
#include <math.h>
#include <stdio.h>

#include "fixture.h"
#include "test/device/capture_check.h"
#include "base/memory.h"

static const finish plain = {0, 1, 0};

static outputs capture(gt_side *s, const float *logits, const int32_t *targets, int32_t n_rows,
                       int32_t v, int32_t k, const float *temps, int32_t n_temps, finish how) {
    const size_t n = (size_t)n_rows * 4, nk = n * (size_t)k, nt = n * (size_t)n_temps;
    outputs d = {gt_put(s, NULL, nk + 4), gt_put(s, NULL, n),      gt_put(s, NULL, nk + 4),
                 gt_put(s, NULL, n),      gt_put(s, NULL, nt + 4), gt_put(s, NULL, n),
                 gt_put(s, NULL, n),      gt_put(s, NULL, n)};
    outputs o = {gt_host(nk), gt_host(n), gt_host(nk), gt_host(n),
                 gt_host(nt), gt_host(n), gt_host(n),  gt_host(n)};
    float t[16];
    for (int32_t i = 0; i < n_temps; i++)
        t[i] = temps[i];
    td_capture_args a = capture_args(&d, n_rows, v, k, t, n_temps, how);
    a.logits = gt_put(s, logits, n * (size_t)v);
    a.targets = gt_put(s, targets, n);
    GT_MUST(s->ops->capture(s->s, &a, &gt_err));
    memset(t, 0xff, sizeof(t)); /* temperatures were copied at the call */
    gt_get(s, o.ids, d.ids, nk);
    gt_get(s, o.lps, d.lps, nk);
    gt_get(s, o.lse, d.lse, n);
    gt_get(s, o.lse_t, d.lse_t, nt);
    gt_get(s, o.tail, d.tail, n);
    gt_get(s, o.target_lp, d.target_lp, n);
    gt_get(s, o.rank, d.rank, n);
    gt_get(s, o.entropy, d.entropy, n);
    return o;
}

/* z - m is rounded to f32 before the exponential: in tails half an ulp of up to 32. */
static const capture_rules rules = {
    .fail = gt_fail, .tail_rel = 2.5e-6, .target_abs = 1e-7, .near_ranks = true};

static void check_all(const float *logits, const int32_t *targets, int32_t n_rows, int32_t v,
                      int32_t k, const float *temps, int32_t n_temps) {
    outputs o = capture(&gt_dut, logits, targets, n_rows, v, k, temps, n_temps, plain);
    for (int32_t r = 0; r < n_rows; r++)
        capture_check_row(&rules, &o, logits + (size_t)r * v, targets[r], r, v, k, temps, n_temps);
    gt_release();
}

static const float some_temps[] = {1, 2, 0.5f, 4, 0.7f};

static void random_rows(gt_rng *r, int32_t v, int32_t k, int32_t n_rows) {
    float *z = gt_floats(r, (size_t)v * n_rows);
    int32_t *targets = gt_host((size_t)n_rows * 4);
    for (int32_t i = 0; i < n_rows; i++) {
        targets[i] = i == 3 ? -1 : gt_below(r, v);
        for (int32_t j = 0; j < v; j++)
            z[(size_t)i * v + j] =
                z[(size_t)i * v + j] * (float)(i % 9 + 1) - 20.0f * (float)(i % 3);
    }
    check_all(z, targets, n_rows, v, k, some_temps, 5);
}

static void case_random_rows(void) {
    static const int32_t cases[][2] = {{1, 1},    {1, 4},     {5, 3},     {16, 16},   {17, 1},
                                       {100, 0},  {1000, 64}, {999, 999}, {300, 400}, {512, 20},
                                       {1025, 1}, {2048, 33}, {4099, 128}};
    gt_rng r = {31337};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++)
        random_rows(&r, cases[c][0], cases[c][1], 9);
}

/* Rows as sure of themselves as those of real models: one id far ahead, the rest spread over many
 * orders of magnitude. log S is tiny then, and its digits are those of the sum behind the first. */
static void case_peaked_rows(void) {
    enum { V = 5000, K = 64, ROWS = 12 };
    gt_rng r = {4343};
    float *z = gt_floats(&r, V * ROWS);
    int32_t targets[ROWS];
    for (int32_t i = 0; i < ROWS; i++) {
        const int32_t first = gt_below(&r, V), second = (first + 1 + gt_below(&r, V - 1)) % V;
        for (int32_t j = 0; j < V; j++)
            z[i * V + j] = 3 * z[i * V + j] - 10;
        z[i * V + first] = 5.0f + 3.0f * (float)i;
        z[i * V + second] = z[i * V + first] - (float)(i % 4); /* a tie at the top in some rows */
        targets[i] = i % 3 ? gt_below(&r, V) : i % 2 ? first : second;
    }
    outputs o = capture(&gt_dut, z, targets, ROWS, V, K, some_temps, 5, plain);
    for (int32_t i = 0; i < ROWS; i++) {
        capture_check_row(&rules, &o, z + (size_t)i * V, targets[i], i, V, K, some_temps, 5);
        const float m = z[i * V + o.ids[i * K]];
        double rest = 0;
        bool first = true;
        for (int32_t j = 0; j < V; j++) {
            if (z[i * V + j] == m && first)
                first = false;
            else
                rest += exp((double)z[i * V + j] - (double)m);
        }
        const double want = log1p(rest), got = -(double)o.lps[i * K];
        GT_CHECK(fabs(got - want) <= 1e-16 + 3e-6 * want, "row %d: log S is %.9g, expected %.9g", i,
                 got, want);
    }
}

static void case_vocabularies_of_real_models(void) {
    static const int32_t cases[][2] = {{32000, 1024}, {50257, 50},    {128256, 64},
                                       {151936, 64},  {262144, 1024}, {128256, 0}};
    gt_rng r = {4242};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++)
        random_rows(&r, cases[c][0], cases[c][1], gt_large ? 9 : 1);
    if (gt_large)
        random_rows(&r, 128256, 64, 200);
}

static void case_ties_order_and_infinities(void) {
    enum { V = TIES_V };
    gt_rng r = {77};
    float *z = gt_floats(&r, V * TIES_ROWS);
    static const int32_t ks[] = {1, TIES_K, 1024};
    capture_ties(z, &r.s);
    for (size_t i = 0; i < TD_ARRAY_LEN(ks); i++) {
        outputs o =
            capture(&gt_dut, z, capture_ties_targets, TIES_ROWS, V, ks[i], some_temps, 2, plain);
        for (int32_t row = 0; row < TIES_ROWS; row++)
            capture_check_row(&rules, &o, z + (size_t)row * V, capture_ties_targets[row], row, V,
                              ks[i], some_temps, 2);
    }
}

/* All-equal and nearly equal logits in a large vocabulary: more ties at the threshold than any
 * buffer of candidates holds. */
static void case_ties_in_a_large_vocabulary(void) {
    enum { V = 40001, ROWS = 4 };
    gt_rng r = {78};
    float *z = gt_floats(&r, V * ROWS);
    const int32_t targets[ROWS] = {V - 1, 20000, 7, V / 2};
    for (int i = 0; i < V; i++) {
        z[0 * V + i] = -3;
        z[1 * V + i] = i % 2 ? 1.0f : 0.0f;
        z[2 * V + i] = i < 30 ? 9.0f - (float)i : 2.0f; /* the rest ties behind 30 different ones */
        z[3 * V + i] = (float)i * 1e-4f;                /* ascending */
    }
    check_all(z, targets, ROWS, V, 100, some_temps, 1);
}

static void case_bad_rows(void) {
    enum { V = 1000, K = 5, ROWS = 6 };
    gt_rng r = {79};
    float *z = gt_floats(&r, V * ROWS);
    const int32_t targets[ROWS] = {1, 2, 3, 4, 5, 6};
    z[1 * V + 999] = NAN;
    z[3 * V + 7] = INFINITY;
    for (int i = 0; i < V; i++)
        z[4 * V + i] = -INFINITY;
    outputs o = capture(&gt_dut, z, targets, ROWS, V, K, some_temps, 1, plain);
    for (int32_t row = 0; row < ROWS; row++) {
        if (row != 1 && row != 3 && row != 4) {
            capture_check_row(&rules, &o, z + row * V, targets[row], row, V, K, some_temps, 1);
            continue;
        }
        GT_CHECK(isnan(o.lse[row]), "row %d: logsumexp is %g", row, (double)o.lse[row]);
        bool zero = o.tail[row] == 0 && o.entropy[row] == 0 && o.target_lp[row] == 0 &&
                    o.rank[row] == 0 && o.lse_t[row] == 0;
        for (int i = 0; i < K; i++)
            zero &= o.ids[row * K + i] == 0 && o.lps[row * K + i] == 0;
        GT_CHECK(zero, "row %d: the rest is not zero", row);
    }
    gt_release();
    /* A soft cap does not hide an infinite logit. */
    z = gt_floats(&r, V * 3);
    z[7] = INFINITY, z[V + 599] = NAN;
    o = capture(&gt_dut, z, targets, 3, V, 4, NULL, 0, (finish){0, 2, 30});
    GT_CHECK(isnan(o.lse[0]) && isnan(o.lse[1]) && isfinite(o.lse[2]), "capped: %g %g %g",
             (double)o.lse[0], (double)o.lse[1], (double)o.lse[2]);
    gt_release();
    /* Nor does the mask let one through, nor count one behind it. */
    z = gt_floats(&r, V * 2);
    z[500] = INFINITY, z[V + 501] = NAN;
    o = capture(&gt_dut, z, targets, 2, V, 4, NULL, 0, (finish){501, 1, 0});
    GT_CHECK(isnan(o.lse[0]) && isfinite(o.lse[1]), "masked: %g %g", (double)o.lse[0],
             (double)o.lse[1]);
}

/* A tail far below f32's resolution of 1 is still there. */
static void case_tail_is_summed_from_its_terms(void) {
    enum { V = 100 };
    float z[V];
    const int32_t target = 0;
    for (int i = 0; i < V; i++)
        z[i] = i ? -30.0f : 10.0f;
    outputs o = capture(&gt_dut, z, &target, 1, V, 1, NULL, 0, plain);
    GT_CHECK(fabs((double)o.tail[0] / (99 * exp(-40.0)) - 1) < 1e-6, "tail %g", (double)o.tail[0]);
}

static void case_finished_logits(void) {
    enum { ROWS = 6 };
    static const struct {
        int32_t v, k;
        finish how;
    } cases[] = {{1000, 20, {0, 8, 0}},      {1000, 20, {0, 1, 30}},     {1537, 33, {1536, 1, 0}},
                 {1537, 33, {1500, 16, 30}}, {513, 600, {511, 1, 5}},    {700, 0, {3, 0.5f, 30}},
                 {33, 4, {1, 1, 0}},         {20000, 64, {19990, 1, 30}}};
    static const float temps[] = {2, 0.5f};
    gt_rng r = {808};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++) {
        const int32_t v = cases[c].v, k = cases[c].k, n_valid = cases[c].how.n_valid;
        const int32_t n = n_valid ? n_valid : v;
        const finish how = cases[c].how;
        float *x = gt_floats(&r, (size_t)ROWS * v);
        double *z = gt_host(sizeof(double) * (size_t)ROWS * v);
        int32_t targets[ROWS];
        for (int32_t i = 0; i < ROWS; i++) {
            targets[i] = i == 0 ? v - 1 : gt_below(&r, n);
            for (int32_t j = 0; j < v; j++) {
                x[i * v + j] *= (float)(1 << i); /* up to a deviation of 32: the cap is met */
                if (j >= n)
                    x[i * v + j] = i == 1 ? NAN : i == 2 ? INFINITY : 1000.0f;
            }
        }
        capture_finish(x, z, ROWS, v, how);
        outputs o = capture(&gt_dut, x, targets, ROWS, v, k, temps, 2, how);
        for (int32_t row = 0; row < ROWS; row++)
            capture_check_finished(&rules, &o, z + (size_t)row * v, targets[row], row, v, n, k,
                                   temps);
        gt_release();
    }
}

/* --- bits of rows ----------------------------------------------------------------------------- */

typedef struct row_capture {
    int32_t v, k;
    finish how;
} row_capture;

enum { N_TEMPS = 2 };

static size_t record_floats(int32_t k) {
    return 2 * (size_t)k + N_TEMPS + 5;
}

static void draw_logits(gt_rng *r, void *row, void *ctx) {
    const row_capture *c = ctx;
    float *z = row;
    for (int32_t i = 0; i < c->v; i++)
        z[i] = 5 * gt_normal(r);
}

/* A record as one row of 32-bit words. */
static void run_capture_rows(const void *rows, int32_t n, void *out, void *ctx) {
    static const float temps[N_TEMPS] = {2, 0.5f};
    const row_capture *c = ctx;
    int32_t *targets = gt_host((size_t)n * 4);
    for (int32_t i = 0; i < n; i++)
        targets[i] = 77 % c->v;
    outputs o = capture(&gt_dut, rows, targets, n, c->v, c->k, temps, N_TEMPS, c->how);
    const size_t k = (size_t)c->k;
    for (int32_t i = 0; i < n; i++) {
        float *w = (float *)out + (size_t)i * record_floats(c->k);
        memcpy(w, o.ids + (size_t)i * k, k * 4);
        memcpy(w + k, o.lps + (size_t)i * k, k * 4);
        memcpy(w + 2 * k, o.lse_t + i * N_TEMPS, N_TEMPS * 4);
        w += 2 * k + N_TEMPS;
        memcpy(w, &o.rank[i], 4);
        w[1] = o.lse[i], w[2] = o.tail[i], w[3] = o.target_lp[i], w[4] = o.entropy[i];
    }
    gt_release();
}

static void check_rows(int32_t v, int32_t k, finish how, int32_t max) {
    row_capture c = {v, k, how};
    int32_t counts[16], n_counts = gt_row_counts(max, counts);
    char name[80];
    snprintf(name, sizeof(name), "capture of %d from %d, %d valid, / %g, cap %g", k, v, how.n_valid,
             (double)how.divisor, (double)how.softcap);
    const gt_rows t = {name,        (size_t)v * 4, record_floats(k) * 4, run_capture_rows, &c,
                       draw_logits, true};
    gt_check_rows(&t, counts, n_counts, (uint64_t)v);
}

static void case_rows_keep_their_bits(void) {
    check_rows(3333, 17, plain, gt_large ? 300 : 65);
    check_rows(100, 16, plain, 300);
    check_rows(1500, 17, (finish){1401, 2, 20}, gt_large ? 300 : 65);
    check_rows(12000, 64, plain, gt_large ? 300 : 7);
    if (!gt_large)
        return;
    check_rows(32000, 64, plain, 1000);
    check_rows(128256, 64, plain, 300);
    check_rows(262144, 1024, (finish){262000, 1, 30}, 129);
}

static void case_refusals(void) {
    td_capture_args a = {.n_rows = 1, .n_vocab = 3, .top_k = 1, .n_valid = 4, .divisor = 1};
    GT_CHECK(gt_dut.ops->capture(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL,
             "more valid ids than there are");
    a.n_valid = 3, a.n_temperatures = 17;
    GT_CHECK(gt_dut.ops->capture(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL, "17 temperatures");
    a.n_temperatures = 0, a.divisor = 0;
    GT_CHECK(gt_dut.ops->capture(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL, "a divisor of 0");
    a.divisor = 1, a.n_rows = 0;
    GT_MUST(gt_dut.ops->capture(gt_dut.s, &a, &gt_err)); /* nothing to do */
    gt_sync(&gt_dut);
}

static const gt_case cases[] = {
    {"random_rows", case_random_rows},
    {"peaked_rows", case_peaked_rows},
    {"vocabularies_of_real_models", case_vocabularies_of_real_models},
    {"ties_order_and_infinities", case_ties_order_and_infinities},
    {"ties_in_a_large_vocabulary", case_ties_in_a_large_vocabulary},
    {"bad_rows", case_bad_rows},
    {"tail_is_summed_from_its_terms", case_tail_is_summed_from_its_terms},
    {"finished_logits", case_finished_logits},
    {"rows_keep_their_bits", case_rows_keep_their_bits},
    {"refusals", case_refusals},
};

int main(int argc, char **argv) {
    return gt_main("test_gpu_capture", argc, argv, cases, TD_ARRAY_LEN(cases));
}
