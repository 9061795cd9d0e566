/* Capture against a naive f64 reading of the definitions in td_capture_args. */
#include "fixture.h"
#include "base/memory.h"

typedef struct record {
    int32_t *ids, rank;
    float *lps, lse, tail, target_lp, entropy, lse_t[16];
} record;

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

/* Runs capture over rows [n_rows, v] and returns freshly allocated outputs. */
typedef struct outputs {
    int32_t *ids, *rank;
    float *lps, *lse, *lse_t, *tail, *target_lp, *entropy;
} outputs;

/* How logits are finished; n_valid 0 stands for all. */
typedef struct finish {
    int32_t n_valid;
    float divisor, softcap;
} finish;
static const finish plain = {0, 1, 0};

static outputs run_capture(fixture *f, const float *logits, const int32_t *targets, int32_t n_rows,
                           int32_t v, int32_t k, const float *temps, int32_t n_temps, finish how) {
    td_error err = {0};
    const size_t n = (size_t)n_rows, nk = n * (size_t)k + 1, nt = n * (size_t)n_temps + 1;
    outputs o = {malloc(nk * 4), malloc(n * 4), malloc(nk * 4), malloc(n * 4),
                 malloc(nt * 4), malloc(n * 4), malloc(n * 4),  malloc(n * 4)};
    td_capture_args a = {.logits = logits,
                         .targets = targets,
                         .n_rows = n_rows,
                         .n_vocab = v,
                         .top_k = k,
                         .n_temperatures = n_temps,
                         .n_valid = how.n_valid ? how.n_valid : v,
                         .divisor = how.divisor,
                         .softcap = how.softcap,
                         .temperatures = temps,
                         .topk_ids = o.ids,
                         .topk_logprobs = o.lps,
                         .logsumexp = o.lse,
                         .logsumexp_t = o.lse_t,
                         .tail_mass = o.tail,
                         .target_logprob = o.target_lp,
                         .target_rank = o.rank,
                         .entropy = o.entropy};
    MUST(f->ops->capture(f->s, &a, &err));
    fixture_sync(f);
    return o;
}

static void outputs_free(outputs *o) {
    free(o->ids), free(o->rank), free(o->lps), free(o->lse);
    free(o->lse_t), free(o->tail), free(o->target_lp), free(o->entropy);
}

static void close_to(double got, double want, double abs_tol, double rel_tol, const char *what,
                     int row) {
    cr_assert(fabs(got - want) <= abs_tol + rel_tol * fabs(want),
              "row %d: %s is %.9g, expected %.9g", row, what, got, want);
}

static void check_row(const outputs *o, const float *z, int32_t target, int32_t row, int32_t v,
                      int32_t k, const float *temps, int32_t n_temps) {
    float m = -INFINITY;
    for (int32_t i = 0; i < v; i++)
        m = TD_MAX(m, z[i]);
    double s = 0, w = 0, tail = 0;
    for (int32_t i = 0; i < v; i++)
        if (z[i] > -INFINITY) {
            double d = (double)z[i] - m;
            s += exp(d);
            w += exp(d) * d;
        }
    close_to(o->lse[row], m + log(s), 1e-6, 1e-7, "logsumexp", row);
    close_to(o->entropy[row], log(s) - w / s, 2e-6, 1e-6, "entropy", row);
    for (int32_t i = 0; i < n_temps; i++) {
        double st = 0;
        for (int32_t j = 0; j < v; j++)
            st += exp(((double)z[j] - m) / temps[i]);
        close_to(o->lse_t[row * n_temps + i], m / (double)temps[i] + log(st), 1e-6, 2e-7,
                 "logsumexp_t", row);
    }
    /* The order uses the f32 log-probs of the definition; log S may differ in its last bit from the
     * kernel's, so take it from the largest, whose log-prob is exactly -fl32(log S). */
    float log_s = (float)log(s);
    if (k > 0) {
        close_to(-o->lps[row * k], log_s, 1e-7, 1.3e-7, "log S", row);
        log_s = -o->lps[row * k];
    }
    cand *c = malloc(sizeof(*c) * (size_t)v);
    for (int32_t i = 0; i < v; i++) {
        float d = z[i] - m;
        c[i] = (cand){d - log_s, i};
    }
    if (target >= 0) {
        int32_t rank = 0;
        for (int32_t i = 0; i < v; i++)
            rank += cand_order(&c[i], &c[target]) < 0;
        cr_assert_eq(o->rank[row], rank, "row %d: rank %d, expected %d", row, o->rank[row], rank);
        if (k == 0 && c[target].lp > -INFINITY) /* log S may differ in its last bit */
            close_to(o->target_lp[row], c[target].lp, 0, 3e-7, "target_logprob", row);
        else
            cr_assert(o->target_lp[row] == c[target].lp);
    } else {
        cr_assert_eq(o->rank[row], -1);
        cr_assert(o->target_lp[row] == -INFINITY);
    }
    qsort(c, (size_t)v, sizeof(*c), cand_order);
    for (int32_t i = 0; i < k; i++) {
        const bool there = i < v && c[i].lp > -INFINITY;
        cr_assert_eq(o->ids[row * k + i], there ? c[i].id : -1, "row %d place %d: id %d", row, i,
                     o->ids[row * k + i]);
        cr_assert(o->lps[row * k + i] == (there ? c[i].lp : -INFINITY), "row %d place %d", row, i);
    }
    for (int32_t i = k; i < v; i++)
        if (z[c[i].id] > -INFINITY)
            tail += exp((double)z[c[i].id] - m);
    close_to(o->tail[row], tail / s, 1e-37, 3e-7, "tail_mass", row);
    free(c);
}

static void check_all(fixture *f, const float *logits, const int32_t *targets, int32_t n_rows,
                      int32_t v, int32_t k, const float *temps, int32_t n_temps) {
    outputs o = run_capture(f, logits, targets, n_rows, v, k, temps, n_temps, plain);
    for (int32_t r = 0; r < n_rows; r++)
        check_row(&o, logits + (size_t)r * v, targets[r], r, v, k, temps, n_temps);
    outputs_free(&o);
}

Test(device_capture, random_rows) {
    static const struct {
        int32_t v, k;
    } cases[] = {{1, 1},    {1, 4},      {5, 3},       {16, 16},      {17, 1},
                 {100, 0},  {1000, 64},  {999, 999},   {300, 400},    {32000, 1024},
                 {512, 20}, {50257, 50}, {151936, 64}, {262144, 1024}};
    static const float temps[] = {1, 2, 0.5f, 4, 0.7f};
    fixture f = fixture_open(2);
    test_rng r = {31337};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++) {
        const int32_t v = cases[c].v, n_rows = v > 20000 ? 2 : 9;
        float *z = rng_floats(&r, (size_t)v * n_rows);
        int32_t targets[9];
        for (int32_t i = 0; i < n_rows; i++) {
            targets[i] = i == 3 ? -1 : rng_below(&r, v);
            for (int32_t j = 0; j < v; j++)
                z[(size_t)i * v + j] =
                    z[(size_t)i * v + j] * (float)(i + 1) - 20.0f * (float)(i % 3);
        }
        check_all(&f, z, targets, n_rows, v, cases[c].k, temps, 5);
        free(z);
    }
    fixture_close(&f);
}

Test(device_capture, ties_order_and_infinities) {
    enum { V = 3000, K = 48, ROWS = 8 };
    fixture f = fixture_open(1);
    test_rng r = {77};
    float *z = rng_floats(&r, V * ROWS);
    int32_t targets[ROWS] = {0, V - 1, 17, 40, 2000, 100, 5, 9};
    for (int i = 0; i < V; i++) {
        z[0 * V + i] = 1.5f;                               /* all equal */
        z[1 * V + i] = (float)(rng_below(&r, 5));          /* many ties */
        z[2 * V + i] = (float)i * 0.01f;                   /* ascending: selection's worst */
        z[3 * V + i] = (float)-i * 0.01f;                  /* descending */
        z[4 * V + i] = i % 100 ? -INFINITY : z[4 * V + i]; /* fewer finite than K; masked target */
        z[5 * V + i] = i == 100 ? 3.0f : -INFINITY;        /* one finite */
        z[6 * V + i] = 1e-9f * (float)i + 20.0f;           /* ties after rounding only */
        z[7 * V + i] = i == 9 ? 200.0f : -200.0f;          /* everything else underflows */
    }
    z[4 * V + 2000] = -INFINITY;
    const float temps[] = {1, 3};
    check_all(&f, z, targets, ROWS, V, K, temps, 2);
    check_all(&f, z, targets, ROWS, V, 1, temps, 1);
    check_all(&f, z, targets, ROWS, V, V, temps, 0);
    free(z);
    fixture_close(&f);
}

Test(device_capture, bad_rows_are_marked_and_alone) {
    enum { V = 1234, K = 10, ROWS = 6 };
    fixture f = fixture_open(2);
    test_rng r = {5};
    float *z = rng_floats(&r, V * ROWS);
    int32_t targets[ROWS] = {0, 1, 2, 3, 4, 5};
    const float temps[] = {2};
    z[1 * V + 1233] = NAN;
    z[3 * V + 7] = INFINITY;
    for (int i = 0; i < V; i++)
        z[4 * V + i] = -INFINITY;
    outputs o = run_capture(&f, z, targets, ROWS, V, K, temps, 1, plain);
    for (int row = 0; row < ROWS; row++) {
        if (row != 1 && row != 3 && row != 4) {
            check_row(&o, z + row * V, targets[row], row, V, K, temps, 1);
            continue;
        }
        cr_assert(isnan(o.lse[row]));
        cr_assert(o.tail[row] == 0 && o.entropy[row] == 0 && o.target_lp[row] == 0 &&
                  o.rank[row] == 0 && o.lse_t[row] == 0);
        for (int i = 0; i < K; i++)
            cr_assert(o.ids[row * K + i] == 0 && o.lps[row * K + i] == 0);
    }
    outputs_free(&o);
    free(z);
    fixture_close(&f);
}

/* A tail far below f32's resolution of 1 is still there. */
Test(device_capture, tail_is_summed_from_its_terms) {
    enum { V = 100 };
    fixture f = fixture_open(1);
    float z[V];
    int32_t target = 0;
    for (int i = 0; i < V; i++)
        z[i] = i ? -30.0f : 10.0f;
    outputs o = run_capture(&f, z, &target, 1, V, 1, NULL, 0, plain);
    cr_assert_float_eq(o.tail[0] / (99 * exp(-40.0)), 1, 1e-6);
    outputs_free(&o);
    fixture_close(&f);
}

/* --- finished logits -------------------------------------------------------------------------- */

/* The formula, in f64, rounded once. */
static void finish_rows(const float *logits, double *z, int32_t n_rows, int32_t v, finish how) {
    for (int32_t i = 0; i < n_rows * v; i++) {
        z[i] = (double)logits[i] / (double)how.divisor;
        if (how.softcap > 0)
            z[i] = (double)how.softcap * tanh(z[i] / (double)how.softcap);
        if (how.n_valid && i % v >= how.n_valid)
            z[i] = -INFINITY;
    }
}

/* Divided, capped and masked, against the definitions in f64. The device's z may differ in its last
 * bits: what was taken must be right up to that, and consistent with itself. */
Test(device_capture, finished_logits) {
    enum { ROWS = 6 };
    static const struct {
        int32_t v, k;
        finish how;
    } cases[] = {{1000, 20, {0, 8, 0}},      {1000, 20, {0, 1, 30}},     {1537, 33, {1536, 1, 0}},
                 {1537, 33, {1500, 16, 30}}, {513, 600, {511, 1, 5}},    {700, 0, {3, 0.5f, 30}},
                 {33, 4, {1, 1, 0}},         {40000, 64, {39990, 1, 30}}};
    static const float temps[] = {2, 0.5f};
    fixture f = fixture_open(2);
    test_rng r = {808};
    for (size_t c = 0; c < TD_ARRAY_LEN(cases); c++) {
        const int32_t v = cases[c].v, k = cases[c].k, n_valid = cases[c].how.n_valid;
        const int32_t n = n_valid ? n_valid : v;
        float *x = rng_floats(&r, (size_t)ROWS * v);
        double *z = malloc(sizeof(double) * (size_t)ROWS * v);
        int32_t targets[ROWS];
        for (int32_t i = 0; i < ROWS; i++) {
            targets[i] = i == 0 ? v - 1 : rng_below(&r, n);
            for (int32_t j = 0; j < v; j++) {
                x[i * v + j] *= (float)(1 << i); /* up to a deviation of 32: the cap is met */
                if (j >= n)
                    x[i * v + j] = i == 1 ? NAN : i == 2 ? INFINITY : 1000.0f;
            }
        }
        finish_rows(x, z, ROWS, v, cases[c].how);
        outputs o = run_capture(&f, x, targets, ROWS, v, k, temps, 2, cases[c].how);
        for (int32_t row = 0; row < ROWS; row++) {
            const double *zr = z + (size_t)row * v;
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
            close_to(o.lse[row], m + log(s), tol, 1e-7, "logsumexp", row);
            close_to(o.entropy[row], log(s) - w / s, 20 * tol, 1e-6, "entropy", row);
            for (int t = 0; t < 2; t++)
                close_to(o.lse_t[row * 2 + t], m / (double)temps[t] + log(st[t]), 4 * tol, 2e-7,
                         "logsumexp_t", row);
            bool *taken = calloc((size_t)v, sizeof(bool));
            for (int32_t i = 0; i < k; i++) {
                const int32_t id = o.ids[row * k + i];
                const float lp = o.lps[row * k + i];
                if (i >= n) {
                    cr_assert(id == -1 && lp == -INFINITY, "row %d place %d", row, i);
                    continue;
                }
                cr_assert(id >= 0 && id < n && !taken[id], "row %d place %d: id %d", row, i, id);
                taken[id] = true;
                close_to(lp, zr[id] - m - log(s), tol, 2e-7, "logprob", row);
                cr_assert(i == 0 || lp < o.lps[row * k + i - 1] ||
                              (lp == o.lps[row * k + i - 1] && id > o.ids[row * k + i - 1]),
                          "row %d: order at place %d", row, i);
            }
            for (int32_t j = 0; j < n; j++)
                if (!taken[j]) {
                    tail += exp(zr[j] - m);
                    cr_assert(k == 0 || zr[j] - m - log(s) <= o.lps[row * k + k - 1] + 2 * tol,
                              "row %d: id %d belongs to the best", row, j);
                }
            close_to(o.tail[row], tail / s, 1e-37, 4 * tol, "tail_mass", row);
            free(taken);
            const int32_t target = targets[row];
            if (target >= n) {
                cr_assert(o.target_lp[row] == -INFINITY && o.rank[row] == -1);
                continue;
            }
            close_to(o.target_lp[row], zr[target] - m - log(s), tol, 2e-7, "target", row);
            int32_t least = 0, most = 0;
            for (int32_t j = 0; j < n; j++) {
                least += zr[j] > zr[target] + 2 * tol;
                most += j != target && zr[j] >= zr[target] - 2 * tol;
            }
            cr_assert(o.rank[row] >= least && o.rank[row] <= most, "row %d: rank %d, not %d to %d",
                      row, o.rank[row], least, most);
        }
        outputs_free(&o);
        free(x), free(z);
    }
    fixture_close(&f);
}

/* A mask gives the bits of the smaller vocabulary: nothing behind it is looked at. */
Test(device_capture, mask_is_a_smaller_vocabulary) {
    enum { V = 2000, N = 1803, K = 40, ROWS = 5 };
    static const float temps[] = {3};
    fixture f = fixture_open(2);
    test_rng r = {909};
    float *x = rng_floats(&r, V * ROWS), *small = malloc(sizeof(float) * N * ROWS);
    const int32_t targets[ROWS] = {0, 5, N - 1, N, V - 1}, inside[ROWS] = {0, 5, N - 1, -1, -1};
    for (int i = 0; i < V * ROWS; i++)
        if (i % V >= N)
            x[i] = i % 3 ? INFINITY : NAN;
    for (int i = 0; i < ROWS; i++)
        memcpy(small + i * N, x + i * V, sizeof(float) * N);
    outputs a = run_capture(&f, x, targets, ROWS, V, K, temps, 1, (finish){N, 1, 0});
    outputs b = run_capture(&f, small, inside, ROWS, N, K, temps, 1, plain);
    cr_assert_arr_eq(a.ids, b.ids, sizeof(int32_t) * ROWS * K);
    cr_assert_arr_eq(a.lps, b.lps, sizeof(float) * ROWS * K);
    cr_assert_arr_eq(a.lse, b.lse, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.lse_t, b.lse_t, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.tail, b.tail, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.entropy, b.entropy, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.target_lp, b.target_lp, sizeof(float) * ROWS);
    cr_assert_arr_eq(a.rank, b.rank, sizeof(int32_t) * ROWS);
    for (int i = 0; i < ROWS; i++)
        check_row(&b, small + i * N, inside[i], i, N, K, temps, 1);
    outputs_free(&a), outputs_free(&b);
    free(x), free(small);
    fixture_close(&f);
}

/* A soft cap does not hide an infinite logit. */
Test(device_capture, bad_logits_stay_bad_under_a_cap) {
    enum { V = 600, ROWS = 3 };
    fixture f = fixture_open(1);
    test_rng r = {11};
    float *x = rng_floats(&r, V * ROWS);
    const int32_t targets[ROWS] = {1, 2, 3};
    x[7] = INFINITY;
    x[V + 599] = NAN;
    outputs o = run_capture(&f, x, targets, ROWS, V, 4, NULL, 0, (finish){0, 2, 30});
    cr_assert(isnan(o.lse[0]) && isnan(o.lse[1]) && isfinite(o.lse[2]));
    outputs_free(&o);
    free(x);
    fixture_close(&f);
}

/* A row's record does not depend on its place, its neighbours, the number of rows or of threads. */
Test(device_capture, rows_keep_their_bits) {
    enum { V = 3333, K = 17, MAX = 120 };
    static const int32_t threads[] = {1, 2, 4};
    static const float temps[] = {2, 0.5f};
    static const finish how[] = {{0, 1, 0}, {3000, 1, 0}, {0, 4, 0}, {3001, 2, 20}};
    fixture f[3];
    test_rng r = {12};
    for (int t = 0; t < 3; t++)
        f[t] = fixture_open(threads[t]);
    float *x = rng_floats(&r, V * MAX), *probe = rng_floats(&r, V);
    int32_t targets[MAX];
    for (int i = 0; i < V * MAX; i++)
        x[i] *= 9;
    for (size_t h = 0; h < TD_ARRAY_LEN(how); h++) {
        const int32_t target = 77;
        outputs one = run_capture(&f[0], probe, &target, 1, V, K, temps, 2, how[h]);
        for (int round = 0; round < 12; round++) {
            const int32_t n = 1 + rng_below(&r, MAX), at = rng_below(&r, n), t = round % 3;
            for (int i = 0; i < n; i++)
                targets[i] = rng_below(&r, V);
            targets[at] = target;
            if (round == 8)
                memset(x, 0xff, sizeof(float) * V * MAX);
            else if (round == 0)
                for (int i = 0; i < V * MAX; i++)
                    x[i] = 9 * rng_normal(&r);
            memcpy(x + at * V, probe, sizeof(float) * V);
            outputs o = run_capture(&f[t], x, targets, n, V, K, temps, 2, how[h]);
            cr_assert_arr_eq(o.ids + at * K, one.ids, sizeof(int32_t) * K);
            cr_assert_arr_eq(o.lps + at * K, one.lps, sizeof(float) * K);
            cr_assert_arr_eq(o.lse_t + at * 2, one.lse_t, sizeof(float) * 2);
            cr_assert(o.lse[at] == one.lse[0] && o.tail[at] == one.tail[0] &&
                      o.entropy[at] == one.entropy[0] && o.target_lp[at] == one.target_lp[0] &&
                      o.rank[at] == one.rank[0]);
            outputs_free(&o);
        }
        outputs_free(&one);
    }
    free(x), free(probe);
    for (int t = 0; t < 3; t++)
        fixture_close(&f[t]);
}

Test(device_capture, arguments_are_checked) {
    fixture f = fixture_open(1);
    td_error err = {0};
    float t = 0;
    td_capture_args a = {.n_rows = 1,
                         .n_vocab = 4,
                         .n_valid = 4,
                         .divisor = 1,
                         .n_temperatures = 1,
                         .temperatures = &t};
    cr_assert_eq(f.ops->capture(f.s, &a, &err), TD_E_INTERNAL);
    cr_assert(strstr(err.text, "temperature"), "%s", err.text);
    a.n_temperatures = 17;
    cr_assert_eq(f.ops->capture(f.s, &a, &err), TD_E_INTERNAL);
    for (int i = 0; i < 4; i++) {
        a = (td_capture_args){.n_rows = 1, .n_vocab = 4, .n_valid = 4, .divisor = 1};
        a.n_valid = i == 0 ? 0 : i == 1 ? 5 : 4;
        a.divisor = i == 2 ? 0 : 1;
        a.softcap = i == 3 ? -1 : 0;
        cr_assert_eq(f.ops->capture(f.s, &a, &err), TD_E_INTERNAL, "case %d", i);
    }
    fixture_close(&f);
}
