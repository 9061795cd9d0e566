/* Capture of the CUDA device against a naive f64 reading of the definitions in td_capture_args. The
 * order of the ids is exact given log S, which is read from the largest log-prob. */
#include <math.h>
#include <stdio.h>

#include "test/device/gpu_fixture.h"
#include "base/memory.h"

/* How logits are finished; n_valid 0 stands for all. */
typedef struct finish {
    int32_t n_valid;
    float divisor, softcap;
} finish;
static const finish plain = {0, 1, 0};

typedef struct outputs {
    int32_t *ids, *rank;
    float *lps, *lse, *lse_t, *tail, *target_lp, *entropy;
} outputs;

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
    td_capture_args a = {.logits = gt_put(s, logits, n * (size_t)v),
                         .targets = gt_put(s, targets, n),
                         .n_rows = n_rows,
                         .n_vocab = v,
                         .top_k = k,
                         .n_temperatures = n_temps,
                         .n_valid = how.n_valid ? how.n_valid : v,
                         .divisor = how.divisor,
                         .softcap = how.softcap,
                         .temperatures = t,
                         .topk_ids = d.ids,
                         .topk_logprobs = d.lps,
                         .logsumexp = d.lse,
                         .logsumexp_t = n_temps ? d.lse_t : NULL,
                         .tail_mass = d.tail,
                         .target_logprob = d.target_lp,
                         .target_rank = d.rank,
                         .entropy = d.entropy};
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

static bool close_to(double got, double want, double abs_tol, double rel_tol, const char *what,
                     int32_t row) {
    if (fabs(got - want) <= abs_tol + rel_tol * fabs(want))
        return true;
    gt_fail("row %d: %s is %.9g, expected %.9g", row, what, got, want);
    return false;
}

typedef struct cand {
    float lp;
    int32_t id;
} cand;

static int cand_order(const void *a, const void *b) {
    const cand *x = a, *y = b;
    if (x->lp != y->lp)
        return x->lp > y->lp ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* One row whose logits are finished already: everything, ids in their order included. */
static void check_row(const outputs *o, const float *z, int32_t target, int32_t row, int32_t v,
                      int32_t k, const float *temps, int32_t n_temps) {
    float m = -INFINITY;
    for (int32_t i = 0; i < v; i++)
        m = TD_MAX(m, z[i]);
    double s = 0, w = 0, tail = 0;
    for (int32_t i = 0; i < v; i++)
        if (z[i] > -INFINITY) {
            const double d = (double)z[i] - (double)m;
            s += exp(d);
            w += exp(d) * d;
        }
    close_to(o->lse[row], m + log(s), 1e-6, 1e-7, "logsumexp", row);
    close_to(o->entropy[row], log(s) - w / s, 2e-6, 1e-6, "entropy", row);
    for (int32_t i = 0; i < n_temps; i++) {
        double st = 0;
        for (int32_t j = 0; j < v; j++)
            st += exp(((double)z[j] - (double)m) / (double)temps[i]);
        close_to(o->lse_t[row * n_temps + i], (double)m / (double)temps[i] + log(st), 1e-6, 2e-7,
                 "logsumexp_t", row);
    }
    /* log S may differ in its last bit from the one computed here. */
    float log_s = (float)log(s);
    if (k > 0) {
        close_to(-o->lps[row * k], log_s, 1e-7, 1.3e-7, "log S", row);
        log_s = -o->lps[row * k];
    }
    cand *c = gt_host(sizeof(*c) * (size_t)v);
    for (int32_t i = 0; i < v; i++) {
        const float d = z[i] - m;
        c[i] = (cand){d - log_s, i};
    }
    if (target >= 0) {
        int32_t rank = 0;
        for (int32_t i = 0; i < v; i++)
            rank += cand_order(&c[i], &c[target]) < 0;
        if (k > 0)
            GT_CHECK(o->rank[row] == rank, "row %d: rank %d, expected %d", row, o->rank[row], rank);
        else /* log S unknown to the last bit: so are ties */
            GT_CHECK(abs(o->rank[row] - rank) <= 1 + v / 1000, "row %d: rank %d, expected %d", row,
                     o->rank[row], rank);
        if (k == 0 && c[target].lp > -INFINITY)
            close_to(o->target_lp[row], c[target].lp, 1e-7, 3e-7, "target_logprob", row);
        else
            GT_CHECK(o->target_lp[row] == c[target].lp, "row %d: target_logprob %.9g, not %.9g",
                     row, (double)o->target_lp[row], (double)c[target].lp);
    } else {
        GT_CHECK(o->rank[row] == -1 && o->target_lp[row] == -INFINITY, "row %d: no target", row);
    }
    qsort(c, (size_t)v, sizeof(*c), cand_order);
    for (int32_t i = 0; i < k; i++) {
        const bool there = i < v && c[i].lp > -INFINITY;
        const int32_t id = there ? c[i].id : -1;
        const float lp = there ? c[i].lp : -INFINITY;
        if (o->ids[row * k + i] != id || o->lps[row * k + i] != lp) {
            gt_fail("row %d of [%d], place %d of %d: id %d at %.9g, expected %d at %.9g", row, v, i,
                    k, o->ids[row * k + i], (double)o->lps[row * k + i], id, (double)lp);
            break;
        }
    }
    for (int32_t i = k; i < v; i++)
        if (z[c[i].id] > -INFINITY)
            tail += exp((double)z[c[i].id] - (double)m);
    /* z - m is rounded to f32 before the exponential: half an ulp of up to 32. */
    close_to(o->tail[row], tail / s, 1e-37, 2.5e-6, "tail_mass", row);
}

static void check_all(const float *logits, const int32_t *targets, int32_t n_rows, int32_t v,
                      int32_t k, const float *temps, int32_t n_temps) {
    outputs o = capture(&gt_dut, logits, targets, n_rows, v, k, temps, n_temps, plain);
    for (int32_t r = 0; r < n_rows; r++)
        check_row(&o, logits + (size_t)r * v, targets[r], r, v, k, temps, n_temps);
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
        check_row(&o, z + (size_t)i * V, targets[i], i, V, K, some_temps, 5);
        const float m = z[i * V + o.ids[i * K]];
        double rest = 0;
        bool first = true;
        for (int32_t j = 0; j < V; j++) {
            if (z[i * V + j] == m && first)
                first = false;
            else
                rest += exp((double)z[i * V + j] - (double)m);
        }
        close_to(-o.lps[i * K], log1p(rest), 1e-16, 3e-6, "log S of a sure row", i);
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
    enum { V = 3000, K = 48, ROWS = 8 };
    gt_rng r = {77};
    float *z = gt_floats(&r, V * ROWS);
    int32_t targets[ROWS] = {0, V - 1, 17, 40, 2000, 100, 5, 9};
    for (int i = 0; i < V; i++) {
        z[0 * V + i] = 1.5f;                               /* all equal */
        z[1 * V + i] = (float)(gt_below(&r, 5));           /* many ties */
        z[2 * V + i] = (float)i * 0.01f;                   /* ascending: selection's worst */
        z[3 * V + i] = (float)-i * 0.01f;                  /* descending */
        z[4 * V + i] = i % 100 ? -INFINITY : z[4 * V + i]; /* fewer finite than K; masked target */
        z[5 * V + i] = i == 100 ? 3.0f : -INFINITY;        /* one finite */
        z[6 * V + i] = 1e-9f * (float)i + 20.0f;           /* ties after rounding only */
        z[7 * V + i] = i == 9 ? 200.0f : -200.0f;          /* everything else underflows */
    }
    z[4 * V + 2000] = -INFINITY;
    static const int32_t ks[] = {1, K, 1024};
    for (size_t i = 0; i < TD_ARRAY_LEN(ks); i++) {
        outputs o = capture(&gt_dut, z, targets, ROWS, V, ks[i], some_temps, 2, plain);
        for (int32_t row = 0; row < ROWS; row++)
            check_row(&o, z + (size_t)row * V, targets[row], row, V, ks[i], some_temps, 2);
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
            check_row(&o, z + row * V, targets[row], row, V, K, some_temps, 1);
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

/* Divided, capped and masked, against the formula in f64. The device's z may differ in its last
 * bits: what was taken must be right up to that, and consistent with itself. */
static void check_finished(const outputs *o, const double *zr, int32_t row, int32_t v, int32_t n,
                           int32_t k, int32_t target, const float *temps) {
    double m = -INFINITY, s = 0, w = 0, tail = 0, st[2] = {0, 0}, big = 1;
    for (int32_t j = 0; j < n; j++)
        m = TD_MAX(m, zr[j]);
    for (int32_t j = 0; j < n; j++) {
        const double d = zr[j] - m;
        big = TD_MAX(big, fabs(zr[j]));
        s += exp(d), w += exp(d) * d;
        for (int t = 0; t < 2; t++)
            st[t] += exp(d / (double)temps[t]);
    }
    const double tol = 4e-7 * big; /* of a logit, and so of every log-prob */
    close_to(o->lse[row], m + log(s), tol, 1e-7, "logsumexp", row);
    close_to(o->entropy[row], log(s) - w / s, 20 * tol, 1e-6, "entropy", row);
    for (int t = 0; t < 2; t++)
        close_to(o->lse_t[row * 2 + t], m / (double)temps[t] + log(st[t]), 4 * tol, 2e-7,
                 "logsumexp_t", row);
    bool *taken = gt_host((size_t)v * sizeof(bool));
    for (int32_t i = 0; i < k; i++) {
        const int32_t id = o->ids[row * k + i];
        const float lp = o->lps[row * k + i];
        if (i >= n) {
            GT_CHECK(id == -1 && lp == -INFINITY, "row %d place %d: id %d", row, i, id);
            continue;
        }
        if (id < 0 || id >= n || taken[id]) {
            gt_fail("row %d place %d: id %d", row, i, id);
            return;
        }
        taken[id] = true;
        close_to(lp, zr[id] - m - log(s), tol, 2e-7, "logprob", row);
        GT_CHECK(i == 0 || lp < o->lps[row * k + i - 1] ||
                     (lp == o->lps[row * k + i - 1] && id > o->ids[row * k + i - 1]),
                 "row %d: order at place %d", row, i);
    }
    for (int32_t j = 0; j < n; j++)
        if (!taken[j]) {
            tail += exp(zr[j] - m);
            GT_CHECK(k == 0 || zr[j] - m - log(s) <= (double)o->lps[row * k + k - 1] + 2 * tol,
                     "row %d: id %d belongs to the best", row, j);
        }
    close_to(o->tail[row], tail / s, 1e-37, 4 * tol, "tail_mass", row);
    if (target >= n) {
        GT_CHECK(o->target_lp[row] == -INFINITY && o->rank[row] == -1, "row %d: masked target",
                 row);
        return;
    }
    close_to(o->target_lp[row], zr[target] - m - log(s), tol, 2e-7, "target", row);
    int32_t least = 0, most = 0;
    for (int32_t j = 0; j < n; j++) {
        least += zr[j] > zr[target] + 2 * tol;
        most += j != target && zr[j] >= zr[target] - 2 * tol;
    }
    GT_CHECK(o->rank[row] >= least && o->rank[row] <= most, "row %d: rank %d, not %d to %d", row,
             o->rank[row], least, most);
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
                double y = (double)x[i * v + j] / (double)how.divisor;
                if (how.softcap > 0)
                    y = (double)how.softcap * tanh(y / (double)how.softcap);
                z[i * v + j] = j >= n ? -INFINITY : y;
            }
        }
        outputs o = capture(&gt_dut, x, targets, ROWS, v, k, temps, 2, how);
        for (int32_t row = 0; row < ROWS; row++)
            check_finished(&o, z + (size_t)row * v, row, v, n, k, targets[row], temps);
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
