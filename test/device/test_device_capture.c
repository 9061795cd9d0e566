/* Capture against a naive f64 reading of the definitions in td_capture_args. */
#include "fixture.h"

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

static outputs run_capture(fixture *f, const float *logits, const int32_t *targets, int32_t n_rows,
                           int32_t v, int32_t k, const float *temps, int32_t n_temps) {
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
                         .n_valid = v,
                         .divisor = 1,
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

static void near(double got, double want, double abs_tol, double rel_tol, const char *what,
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
    near(o->lse[row], m + log(s), 1e-6, 1e-7, "logsumexp", row);
    near(o->entropy[row], log(s) - w / s, 2e-6, 1e-6, "entropy", row);
    for (int32_t i = 0; i < n_temps; i++) {
        double st = 0;
        for (int32_t j = 0; j < v; j++)
            st += exp(((double)z[j] - m) / temps[i]);
        near(o->lse_t[row * n_temps + i], m / (double)temps[i] + log(st), 1e-6, 2e-7, "logsumexp_t",
             row);
    }
    /* The order uses the f32 log-probs of the definition; log S may differ in its last bit from the
     * kernel's, so take it from the largest, whose log-prob is exactly -fl32(log S). */
    float log_s = (float)log(s);
    if (k > 0) {
        near(-o->lps[row * k], log_s, 1e-7, 1.3e-7, "log S", row);
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
            near(o->target_lp[row], c[target].lp, 0, 3e-7, "target_logprob", row);
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
    near(o->tail[row], tail / s, 1e-37, 3e-7, "tail_mass", row);
    free(c);
}

static void check_all(fixture *f, const float *logits, const int32_t *targets, int32_t n_rows,
                      int32_t v, int32_t k, const float *temps, int32_t n_temps) {
    outputs o = run_capture(f, logits, targets, n_rows, v, k, temps, n_temps);
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
    outputs o = run_capture(&f, z, targets, ROWS, V, K, temps, 1);
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
    outputs o = run_capture(&f, z, &target, 1, V, 1, NULL, 0);
    cr_assert_float_eq(o.tail[0] / (99 * exp(-40.0)), 1, 1e-6);
    outputs_free(&o);
    fixture_close(&f);
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
    fixture_close(&f);
}
