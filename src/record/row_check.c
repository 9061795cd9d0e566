/* Consistency of one recorded row. See row_check.h. */
#include "record/row_check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include "tdgen/dtype.h"

/* Slack of f32 sums over a vocabulary, and of a log-probability that rounding lifts above 0. */
#define MASS_TOLERANCE 1e-3
#define LOGPROB_MAX 1e-6f

uint16_t td_logprob_to_f16(float x) {
    uint16_t h = td_f32_to_f16(x);
    return h == 0xfc00 && isfinite(x) ? 0xfbff : h;
}

static bool __attribute__((format(printf, 3, 4)))
problem(td_row_problem *p, const char *tensor, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    p->tensor = tensor;
    vsnprintf(p->what, sizeof p->what, fmt, ap);
    va_end(ap);
    return false;
}

/* Order, ranges and mass of the stored candidates; *n_valid = places in use. */
static bool check_topk(const td_row *r, int32_t *n_valid, td_row_problem *p) {
    double mass = 0, slack = MASS_TOLERANCE;
    int32_t n = 0;
    for (int32_t j = 0; j < r->top_k; j++) {
        int32_t id = r->ids[j];
        float lp = r->logprobs[j];
        if (id == -1) {
            if (lp != -INFINITY)
                return problem(p, "topk_logprobs", "place %d is free, but holds %g", j, (double)lp);
            continue;
        }
        if (id < 0 || id >= r->n_vocab)
            return problem(p, "topk_ids", "place %d holds id %d, the vocabulary has %d", j, id,
                           r->n_vocab);
        if (n < j)
            return problem(p, "topk_ids", "place %d is used after a free one", j);
        if (!isfinite(lp) || lp > LOGPROB_MAX)
            return problem(p, "topk_logprobs", "place %d holds %g, no log-probability", j,
                           (double)lp);
        if (j && (lp > r->logprobs[j - 1] ||
                  (!r->rounded && lp == r->logprobs[j - 1] && id <= r->ids[j - 1])))
            return problem(p, lp > r->logprobs[j - 1] ? "topk_logprobs" : "topk_ids",
                           "places %d and %d are not in order", j - 1, j);
        n++;
        mass += exp((double)lp);
        if (r->rounded) /* half a unit in the last of 11 bits */
            slack += exp((double)lp) * fabs((double)lp) * 0x1p-11;
    }
    if (n == 0)
        return problem(p, "topk_ids", "no candidate at all");
    if (!(r->tail_mass >= 0 && r->tail_mass <= 1 + MASS_TOLERANCE))
        return problem(p, "tail_mass", "holds %g, expected 0 to 1", (double)r->tail_mass);
    if (fabs(mass + (double)r->tail_mass - 1) > slack)
        return problem(p, "tail_mass", "candidates (%.6f) and tail (%.6f) do not add up to 1", mass,
                       (double)r->tail_mass);
    *n_valid = n;
    return true;
}

static bool same_logprob(const td_row *r, float stored, float exact) {
    return r->rounded ? stored == td_f16_to_f32(td_logprob_to_f16(exact)) : stored == exact;
}

static bool check_target(const td_row *r, int32_t n_valid, td_row_problem *p) {
    if (!isfinite(r->target_logprob) || r->target_logprob > LOGPROB_MAX)
        return problem(p, "target_logprob", "holds %g, no log-probability",
                       (double)r->target_logprob);
    if (r->target_rank < 0 || r->target_rank >= r->n_vocab)
        return problem(p, "target_rank", "holds %d, the vocabulary has %d", r->target_rank,
                       r->n_vocab);
    if (r->target_rank < n_valid) {
        int32_t at = r->target_rank;
        if (r->ids[at] != r->target)
            return problem(p, "target_rank", "is %d, where topk_ids has %d and not the target %d",
                           at, r->ids[at], r->target);
        if (!same_logprob(r, r->logprobs[at], r->target_logprob))
            return problem(p, "target_logprob", "%g differs from topk_logprobs at its rank, %g",
                           (double)r->target_logprob, (double)r->logprobs[at]);
        return true;
    }
    for (int32_t j = 0; j < n_valid; j++)
        if (r->ids[j] == r->target)
            return problem(p, "target_rank", "is %d, but topk_ids has the target at %d",
                           r->target_rank, j);
    float last = r->logprobs[n_valid - 1];
    float mine =
        r->rounded ? td_f16_to_f32(td_logprob_to_f16(r->target_logprob)) : r->target_logprob;
    if (mine > last)
        return problem(p, "target_logprob",
                       "%g is above the last candidate's %g, but its rank is %d",
                       (double)r->target_logprob, (double)last, r->target_rank);
    return true;
}

bool td_row_check(const td_row *r, td_row_problem *p) {
    int32_t n_valid = 0;
    if (!isfinite(r->logsumexp))
        return problem(p, "logsumexp", "holds %g", (double)r->logsumexp);
    for (int32_t i = 0; i < r->n_temperatures; i++)
        if (!isfinite(r->logsumexp_t[i]))
            return problem(p, "logsumexp_t", "temperature %d holds %g", i,
                           (double)r->logsumexp_t[i]);
    if (!check_topk(r, &n_valid, p) || !check_target(r, n_valid, p))
        return false;
    if (!(r->entropy >= -1e-4f && (double)r->entropy <= log((double)r->n_vocab) + 1e-3))
        return problem(p, "entropy", "holds %g, expected 0 to log(%d)", (double)r->entropy,
                       r->n_vocab);
    return true;
}
