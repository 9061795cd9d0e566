/* capture_check.c - see capture_check.h. */
#include "capture_check.h"

#include <math.h>
#include <stdlib.h>

#include "test/common.h"
#include "base/memory.h"

td_capture_args capture_args(const outputs *to, int32_t n_rows, int32_t v, int32_t k,
                             const float *temps, int32_t n_temps, finish how) {
    return (td_capture_args){.n_rows = n_rows,
                             .n_vocab = v,
                             .top_k = k,
                             .n_temperatures = n_temps,
                             .n_valid = how.n_valid ? how.n_valid : v,
                             .divisor = how.divisor,
                             .softcap = how.softcap,
                             .temperatures = temps,
                             .topk_ids = to->ids,
                             .topk_logprobs = to->lps,
                             .logsumexp = to->lse,
                             .logsumexp_t = n_temps ? to->lse_t : NULL,
                             .tail_mass = to->tail,
                             .target_logprob = to->target_lp,
                             .target_rank = to->rank,
                             .entropy = to->entropy};
}

typedef struct candidate {
    float lp;
    int32_t id;
} candidate;

static int in_order(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->lp != y->lp)
        return x->lp > y->lp ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static void close_to(const capture_rules *rules, double got, double want, double abs_tol,
                     double rel_tol, const char *what, int32_t row) {
    if (!(fabs(got - want) <= abs_tol + rel_tol * fabs(want)))
        rules->fail("row %d: %s is %.9g, expected %.9g", row, what, got, want);
}

/* Sums of a row over n logits: exp(z - max), that times (z - max), and of each temperature. */
typedef struct sums {
    double max, s, w, st[16];
} sums;

static sums sum_row(const double *z, int32_t n, const float *temps, int32_t n_temps) {
    sums r = {.max = -INFINITY};
    for (int32_t i = 0; i < n; i++)
        r.max = TD_MAX(r.max, z[i]);
    for (int32_t i = 0; i < n; i++) {
        if (!(z[i] > -INFINITY))
            continue;
        const double d = z[i] - r.max;
        r.s += exp(d);
        r.w += exp(d) * d;
        for (int32_t t = 0; t < n_temps; t++)
            r.st[t] += exp(d / (double)temps[t]);
    }
    return r;
}

/* Absolute tolerances of each; the relative ones are those of the sums. */
static void check_sums(const capture_rules *rules, const outputs *o, const sums *r, int32_t row,
                       const float *temps, int32_t n_temps, double lse_abs, double entropy_abs,
                       double lse_t_abs) {
    const double log_s = log(r->s);
    close_to(rules, (double)o->lse[row], r->max + log_s, lse_abs, 1e-7, "logsumexp", row);
    close_to(rules, (double)o->entropy[row], log_s - r->w / r->s, entropy_abs, 1e-6, "entropy",
             row);
    for (int32_t t = 0; t < n_temps; t++)
        close_to(rules, (double)o->lse_t[row * n_temps + t],
                 r->max / (double)temps[t] + log(r->st[t]), lse_t_abs, 2e-7, "logsumexp_t", row);
}

static void check_target(const capture_rules *rules, const outputs *o, const candidate *c,
                         int32_t target, int32_t row, int32_t v, int32_t k) {
    const float got = o->target_lp[row];
    int32_t rank = 0;
    if (target < 0) {
        if (o->rank[row] != -1 || got != -INFINITY)
            rules->fail("row %d: no target, but rank %d", row, o->rank[row]);
        return;
    }
    for (int32_t i = 0; i < v; i++)
        rank += in_order(&c[i], &c[target]) < 0;
    if (abs(o->rank[row] - rank) > (k == 0 && rules->near_ranks ? 1 + v / 1000 : 0))
        rules->fail("row %d: rank %d, expected %d", row, o->rank[row], rank);
    if (k == 0 && c[target].lp > -INFINITY) /* log S may differ in its last bit */
        close_to(rules, (double)got, (double)c[target].lp, rules->target_abs, 3e-7,
                 "target_logprob", row);
    else if (got != c[target].lp)
        rules->fail("row %d: target_logprob %.9g, not %.9g", row, (double)got,
                    (double)c[target].lp);
}

void capture_check_row(const capture_rules *rules, const outputs *o, const float *z, int32_t target,
                       int32_t row, int32_t v, int32_t k, const float *temps, int32_t n_temps) {
    double *wide = td_calloc((size_t)v, sizeof *wide), tail = 0;
    candidate *c = td_calloc((size_t)v, sizeof *c);
    MUST(wide && c);
    for (int32_t i = 0; i < v; i++)
        wide[i] = (double)z[i];
    const sums r = sum_row(wide, v, temps, n_temps);
    check_sums(rules, o, &r, row, temps, n_temps, 1e-6, 2e-6, 1e-6);
    /* The order uses the f32 log-probs of the definition; log S may differ in its last bit from the
     * kernel's, so take it from the largest, whose log-prob is exactly -fl32(log S). */
    float log_s = (float)log(r.s);
    if (k > 0) {
        close_to(rules, -(double)o->lps[row * k], (double)log_s, 1e-7, 1.3e-7, "log S", row);
        log_s = -o->lps[row * k];
    }
    for (int32_t i = 0; i < v; i++) {
        const float d = z[i] - (float)r.max;
        c[i] = (candidate){d - log_s, i};
    }
    check_target(rules, o, c, target, row, v, k);
    qsort(c, (size_t)v, sizeof *c, in_order);
    for (int32_t i = 0; i < k; i++) {
        const bool there = i < v && c[i].lp > -INFINITY;
        const int32_t id = there ? c[i].id : -1;
        const float lp = there ? c[i].lp : -INFINITY;
        if (o->ids[row * k + i] != id || o->lps[row * k + i] != lp) {
            rules->fail("row %d of [%d], place %d of %d: id %d at %.9g, expected %d at %.9g", row,
                        v, i, k, o->ids[row * k + i], (double)o->lps[row * k + i], id, (double)lp);
            break;
        }
    }
    for (int32_t i = k; i < v; i++)
        if (z[c[i].id] > -INFINITY)
            tail += exp(wide[c[i].id] - r.max);
    close_to(rules, (double)o->tail[row], tail / r.s, 1e-37, rules->tail_rel, "tail_mass", row);
    free(wide);
    free(c);
}

void capture_finish(const float *logits, double *z, int32_t n_rows, int32_t v, finish how) {
    for (int32_t i = 0; i < n_rows * v; i++) {
        z[i] = (double)logits[i] / (double)how.divisor;
        if (how.softcap > 0)
            z[i] = (double)how.softcap * tanh(z[i] / (double)how.softcap);
        if (how.n_valid && i % v >= how.n_valid)
            z[i] = -INFINITY;
    }
}

void capture_check_finished(const capture_rules *rules, const outputs *o, const double *z,
                            int32_t target, int32_t row, int32_t v, int32_t n, int32_t k,
                            const float temps[2]) {
    const sums r = sum_row(z, n, temps, 2);
    const double lse = r.max + log(r.s);
    double big = 1, tail = 0;
    for (int32_t i = 0; i < n; i++)
        big = TD_MAX(big, fabs(z[i]));
    const double tol = 4e-7 * big; /* of a logit, and so of every log-prob */
    check_sums(rules, o, &r, row, temps, 2, tol, 20 * tol, 4 * tol);
    bool *taken = td_calloc((size_t)v, sizeof *taken);
    MUST(taken);
    for (int32_t i = 0; i < k; i++) {
        const int32_t id = o->ids[row * k + i];
        const float lp = o->lps[row * k + i];
        if (i >= n) {
            if (id != -1 || lp != -INFINITY)
                rules->fail("row %d place %d: id %d", row, i, id);
            continue;
        }
        if (id < 0 || id >= n || taken[id]) {
            rules->fail("row %d place %d: id %d", row, i, id);
            goto done;
        }
        taken[id] = true;
        close_to(rules, (double)lp, z[id] - lse, tol, 2e-7, "logprob", row);
        if (i > 0 && !(lp < o->lps[row * k + i - 1] ||
                       (lp == o->lps[row * k + i - 1] && id > o->ids[row * k + i - 1])))
            rules->fail("row %d: order at place %d", row, i);
    }
    for (int32_t i = 0; i < n; i++)
        if (!taken[i]) {
            tail += exp(z[i] - r.max);
            if (k > 0 && !(z[i] - lse <= (double)o->lps[row * k + k - 1] + 2 * tol))
                rules->fail("row %d: id %d belongs to the best", row, i);
        }
    close_to(rules, (double)o->tail[row], tail / r.s, 1e-37, 4 * tol, "tail_mass", row);
    if (target >= n) {
        if (o->target_lp[row] != -INFINITY || o->rank[row] != -1)
            rules->fail("row %d: masked target", row);
        goto done;
    }
    close_to(rules, (double)o->target_lp[row], z[target] - lse, tol, 2e-7, "target", row);
    int32_t least = 0, most = 0;
    for (int32_t i = 0; i < n; i++) {
        least += z[i] > z[target] + 2 * tol;
        most += i != target && z[i] >= z[target] - 2 * tol;
    }
    if (o->rank[row] < least || o->rank[row] > most)
        rules->fail("row %d: rank %d, not %d to %d", row, o->rank[row], least, most);
done:
    free(taken);
}

const int32_t capture_ties_targets[TIES_ROWS] = {0, TIES_V - 1, 17, 40, 2000, 100, 5, 9};

void capture_ties(float *z, uint64_t *rng) {
    enum { V = TIES_V };
    for (int i = 0; i < V; i++) {
        z[0 * V + i] = 1.5f;                                    /* all equal */
        z[1 * V + i] = (float)((test_xorshift(rng) >> 33) % 5); /* many ties */
        z[2 * V + i] = (float)i * 0.01f;                        /* ascending: selection's worst */
        z[3 * V + i] = (float)-i * 0.01f;                       /* descending */
        z[4 * V + i] = i % 100 ? -INFINITY : z[4 * V + i];      /* fewer finite than K */
        z[5 * V + i] = i == 100 ? 3.0f : -INFINITY;             /* one finite */
        z[6 * V + i] = 1e-9f * (float)i + 20.0f;                /* ties after rounding only */
        z[7 * V + i] = i == 9 ? 200.0f : -200.0f;               /* everything else underflows */
    }
    z[4 * V + 2000] = -INFINITY; /* a masked target */
}
