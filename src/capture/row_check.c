/* row_check.c - is one recorded row consistent with itself? */
#include "capture/row.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include "base/dtype.h"
#include "base/memory.h"

/* Slack of f32 sums over a vocabulary, and of a log-probability that rounding lifts above 0. */
#define MASS_TOLERANCE 1e-3
#define LOGPROB_MAX 1e-6f
/* The set of mode topp is chosen by a sum in f64: what another exp() may change in it. */
#define TOP_P_TOLERANCE 1e-6

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

/* --- rounding --------------------------------------------------------------------------------- */

/* What storing may have moved a log-probability by. q8's back and forth ends in f32. */
static double error_of(const td_row_view *r, float q8_error, double lp) {
    switch (r->rounding) {
    case TD_ROUND_F16: /* half a unit in the last of 11 bits; below the range: to its end */
        return lp <= -65504 ? INFINITY : fabs(lp) * 0x1p-11 + 0x1p-25;
    case TD_ROUND_Q8:
        return (double)q8_error * (1 + 1e-6) + fabs(lp) * 0x1p-22;
    default:
        return 0;
    }
}

/* By how much the sum of exp() may differ because of it. */
static double mass_error(const td_row_view *r, float q8_error, double lp) {
    double e = error_of(r, q8_error, lp);
    return e > 60 ? exp(lp) : exp(lp) * expm1(e);
}

/* Is `stored` what `exact` (f32) becomes? */
static bool same_logprob(const td_row_view *r, float q8_error, float stored, float exact) {
    if (r->rounding == TD_ROUND_F16)
        return stored == td_f16_to_f32(td_logprob_to_f16(exact));
    if (r->rounding == TD_ROUND_Q8)
        return fabs((double)stored - (double)exact) <= error_of(r, q8_error, (double)exact);
    return stored == exact;
}

/* Is `exact` above `stored` by more than rounding explains? */
static bool is_above(const td_row_view *r, float q8_error, float exact, float stored) {
    if (r->rounding == TD_ROUND_F16)
        return td_f16_to_f32(td_logprob_to_f16(exact)) > stored;
    return (double)exact - (double)stored > error_of(r, q8_error, (double)exact);
}

static bool is_logprob(float lp) {
    return isfinite(lp) && lp <= LOGPROB_MAX;
}

/* --- the sets --------------------------------------------------------------------------------- */

static const char *top_name(const td_row_view *r, bool ids) {
    bool topp = td_capture_has_topp(r->spec->mode);
    return ids ? (topp ? "topp_ids" : "topk_ids") : topp ? "topp_logprobs" : "topk_logprobs";
}

/* Smallest prefix with the mass asked for. `before`: mass without the last entry. */
static bool check_topp_size(const td_row_view *r, double mass, double before, double slack,
                            td_row_problem *p) {
    const td_capture_spec *s = r->spec;
    int32_t n = r->n_top;
    slack += TOP_P_TOLERANCE;
    if (n < TD_MIN(s->min_k, s->n_valid) && (double)r->tail_mass > MASS_TOLERANCE)
        return problem(p, "topp_ids", "holds %d tokens, min_k is %d", n, s->min_k);
    if (mass < s->top_p - slack && n < s->top_k && (double)r->tail_mass > MASS_TOLERANCE)
        return problem(p, "topp_ids", "%d tokens have mass %.6f, top_p is %g", n, mass, s->top_p);
    if (n > s->min_k && before > s->top_p + slack)
        return problem(p, "topp_ids", "%d tokens already have mass %.6f, %d are stored", n - 1,
                       before, n);
    return true;
}

/* Order, ranges and mass of the top set; *n_valid = places in use. */
static bool check_top(const td_row_view *r, int32_t *n_valid, td_row_problem *p) {
    double mass = 0, before = 0, slack = 0;
    int32_t n = 0;
    bool topp = td_capture_has_topp(r->spec->mode);
    const char *ids_name = top_name(r, true), *lp_name = top_name(r, false);
    for (int32_t j = 0; j < r->n_top; j++) {
        int32_t id = r->top_ids[j];
        float lp = r->top_logprobs[j];
        if (id == -1 && !topp) {
            if (lp != -INFINITY)
                return problem(p, lp_name, "place %d is free, but holds %g", j, (double)lp);
            continue;
        }
        if (id < 0 || id >= r->spec->n_valid)
            return problem(p, ids_name, "place %d holds id %d, the vocabulary has %d", j, id,
                           r->spec->n_valid);
        if (n < j)
            return problem(p, ids_name, "place %d is used after a free one", j);
        if (!is_logprob(lp))
            return problem(p, lp_name, "place %d holds %g, no log-probability", j, (double)lp);
        if (j && (lp > r->top_logprobs[j - 1] ||
                  (r->rounding == TD_ROUND_NONE && lp == r->top_logprobs[j - 1] &&
                   id <= r->top_ids[j - 1])))
            return problem(p, lp > r->top_logprobs[j - 1] ? lp_name : ids_name,
                           "places %d and %d are not in order", j - 1, j);
        n++;
        before = mass;
        mass += exp((double)lp);
        slack += mass_error(r, r->top_error, (double)lp);
    }
    if (n == 0)
        return problem(p, ids_name, "no candidate at all");
    if (fabs(mass + (double)r->tail_mass - 1) > slack + MASS_TOLERANCE)
        return problem(p, "tail_mass", "candidates (%.6f) and tail (%.6f) do not add up to 1", mass,
                       (double)r->tail_mass);
    *n_valid = n;
    return !topp || check_topp_size(r, mass, before, slack, p);
}

static int32_t find_draw(const td_row_view *r, int32_t id) {
    int32_t lo = 0, hi = r->n_drawn;
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        if (r->draw_ids[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < r->n_drawn && r->draw_ids[lo] == id ? lo : -1;
}

/* Draws of ids that the top set has, too: both say the same. Two roundings by q8 may differ by both
 * bounds. */
static bool check_draws_in_top(const td_row_view *r, int32_t n_top, td_row_problem *p) {
    for (int32_t j = 0; j < n_top; j++) {
        int32_t at = find_draw(r, r->top_ids[j]);
        double a = (double)r->top_logprobs[j];
        if (at < 0)
            continue;
        double b = (double)r->draw_logprobs[at];
        double allowed = r->rounding == TD_ROUND_Q8
                             ? error_of(r, r->top_error, a) + error_of(r, r->draw_error, b)
                             : 0;
        if (fabs(a - b) > allowed)
            return problem(p, "draw_logprobs", "token %d has %g, but %g in topk_logprobs",
                           r->top_ids[j], b, a);
    }
    return true;
}

static bool check_draws(const td_row_view *r, td_row_problem *p) {
    const td_capture_spec *s = r->spec;
    double mass = 0, slack = 0, proposal = 0;
    int64_t total = 0;
    bool has_proposal = td_capture_has_proposal(s);
    if (has_proposal && !isfinite(r->proposal_logsumexp))
        return problem(p, "proposal_logsumexp", "holds %g", (double)r->proposal_logsumexp);
    for (int32_t j = 0; j < r->n_drawn; j++) {
        int32_t id = r->draw_ids[j], count = r->draw_counts[j];
        float lp = r->draw_logprobs[j];
        if (id < 0 || id >= s->n_valid)
            return problem(p, "draw_ids", "entry %d holds id %d, the vocabulary has %d", j, id,
                           s->n_valid);
        if (j && id <= r->draw_ids[j - 1])
            return problem(p, "draw_ids", "entries %d and %d do not ascend", j - 1, j);
        if (count < 1 || count > s->n_draws)
            return problem(p, "draw_counts", "entry %d holds %d, of %d draws", j, count,
                           s->n_draws);
        if (!is_logprob(lp))
            return problem(p, "draw_logprobs", "entry %d holds %g, no log-probability", j,
                           (double)lp);
        total += count;
        mass += exp((double)lp);
        slack += mass_error(r, r->draw_error, (double)lp);
        if (has_proposal)
            proposal +=
                exp(s->proposal_power * ((double)lp - error_of(r, r->draw_error, (double)lp)) -
                    (double)r->proposal_logsumexp);
    }
    if (total != s->n_draws)
        return problem(p, "draw_counts", "%lld draws are counted, n_draws is %d", (long long)total,
                       s->n_draws);
    if (mass > 1 + slack + MASS_TOLERANCE)
        return problem(p, "draw_logprobs", "the drawn tokens have mass %.6f", mass);
    if (proposal > 1 + MASS_TOLERANCE)
        return problem(p, "proposal_logsumexp",
                       "%g gives the drawn tokens mass %.6f in the proposal",
                       (double)r->proposal_logsumexp, proposal);
    if (s->mode == TD_CAPTURE_SAMPLE &&
        fabs(mass + (double)r->tail_mass - 1) > slack + MASS_TOLERANCE)
        return problem(p, "tail_mass", "drawn tokens (%.6f) and tail (%.6f) do not add up to 1",
                       mass, (double)r->tail_mass);
    return true;
}

/* --- the target ------------------------------------------------------------------------------- */

static bool check_target_in_top(const td_row_view *r, int32_t n_valid, td_row_problem *p) {
    if (r->target_rank < n_valid) {
        int32_t at = r->target_rank;
        if (r->top_ids[at] != r->target)
            return problem(p, "target_rank", "is %d, where %s has %d and not the target %d", at,
                           top_name(r, true), r->top_ids[at], r->target);
        if (!same_logprob(r, r->top_error, r->top_logprobs[at], r->target_logprob))
            return problem(p, "target_logprob", "%g differs from %s at its rank, %g",
                           (double)r->target_logprob, top_name(r, false),
                           (double)r->top_logprobs[at]);
        return true;
    }
    for (int32_t j = 0; j < n_valid; j++)
        if (r->top_ids[j] == r->target)
            return problem(p, "target_rank", "is %d, but %s has the target at %d", r->target_rank,
                           top_name(r, true), j);
    float last = r->top_logprobs[n_valid - 1];
    if (is_above(r, r->top_error, r->target_logprob, last))
        return problem(p, "target_logprob",
                       "%g is above the last candidate's %g, but its rank is %d",
                       (double)r->target_logprob, (double)last, r->target_rank);
    return true;
}

/* Every token that is surely more probable stands before the target. */
static bool check_target_in_draws(const td_row_view *r, td_row_problem *p) {
    int32_t at = find_draw(r, r->target), n_before = 0;
    if (at >= 0 && !same_logprob(r, r->draw_error, r->draw_logprobs[at], r->target_logprob))
        return problem(p, "target_logprob", "%g differs from draw_logprobs of the target, %g",
                       (double)r->target_logprob, (double)r->draw_logprobs[at]);
    for (int32_t j = 0; j < r->n_drawn; j++) {
        double lp = (double)r->draw_logprobs[j];
        n_before += lp - error_of(r, r->draw_error, lp) > (double)r->target_logprob;
    }
    if (r->target_rank < n_before)
        return problem(p, "target_rank", "is %d, but %d of the drawn tokens are more probable",
                       r->target_rank, n_before);
    return true;
}

static bool check_target(const td_row_view *r, int32_t n_valid, td_row_problem *p) {
    if (!is_logprob(r->target_logprob))
        return problem(p, "target_logprob", "holds %g, no log-probability",
                       (double)r->target_logprob);
    if (r->target_rank < 0 || r->target_rank >= r->spec->n_vocab)
        return problem(p, "target_rank", "holds %d, the vocabulary has %d", r->target_rank,
                       r->spec->n_vocab);
    return (r->n_top == 0 || check_target_in_top(r, n_valid, p)) &&
           (r->n_drawn == 0 || check_target_in_draws(r, p));
}

static bool check_always(const td_row_view *r, int32_t n_valid, td_row_problem *p) {
    for (int32_t i = 0; r->always_logprobs && i < r->spec->n_always; i++) {
        int32_t id = r->spec->always_ids[i];
        float lp = r->always_logprobs[i];
        if (isnan(lp) || lp > LOGPROB_MAX)
            return problem(p, "always_logprobs", "id %d holds %g, no log-probability", id,
                           (double)lp);
        if (id == r->target && lp != r->target_logprob)
            return problem(p, "always_logprobs", "id %d is the target, but holds %g and not %g", id,
                           (double)lp, (double)r->target_logprob);
        int32_t at = r->n_drawn ? find_draw(r, id) : -1;
        if (at >= 0 && !same_logprob(r, r->draw_error, r->draw_logprobs[at], lp))
            return problem(p, "always_logprobs", "id %d holds %g, draw_logprobs %g", id, (double)lp,
                           (double)r->draw_logprobs[at]);
        bool in_top = false;
        for (int32_t j = 0; j < n_valid; j++) {
            if (r->top_ids[j] != id)
                continue;
            in_top = true;
            if (!same_logprob(r, r->top_error, r->top_logprobs[j], lp))
                return problem(p, "always_logprobs", "id %d holds %g, %s %g", id, (double)lp,
                               top_name(r, false), (double)r->top_logprobs[j]);
        }
        if (n_valid && !in_top && is_above(r, r->top_error, lp, r->top_logprobs[n_valid - 1]))
            return problem(p, "always_logprobs", "id %d holds %g, above the last candidate's %g",
                           id, (double)lp, (double)r->top_logprobs[n_valid - 1]);
    }
    return true;
}

/* --- dense rows ------------------------------------------------------------------------------- */

/* Relative error of a stored element. */
static double dense_error(td_dtype t) {
    return t == TD_BF16 ? 0x1p-8 : t == TD_F16 ? 0x1p-11 : 0x1p-23;
}

/* Whether all exponents are below the one of infinity and NaN: loops that become vector code, since
 * a row of logits is as long as the vocabulary and each is looked at before it is written. */
static bool all_finite_16(const uint16_t *x, int32_t n, uint16_t exponent) {
    uint32_t bad = 0;
    for (int32_t i = 0; i < n; i++)
        bad |= (x[i] & exponent) == exponent;
    return !bad;
}

static bool all_finite_32(const uint32_t *x, int32_t n) {
    uint32_t bad = 0;
    for (int32_t i = 0; i < n; i++)
        bad |= (x[i] & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

/* No NaN anywhere, no +inf; -inf only where it may say that a token is impossible. */
static bool check_finite(const td_row_view *r, td_row_problem *p) {
    bool full = r->spec->mode == TD_CAPTURE_FULL;
    td_dtype t = r->spec->dense_dtype;
    if (t == TD_F32 ? all_finite_32(r->dense, r->n_dense)
                    : all_finite_16(r->dense, r->n_dense, t == TD_BF16 ? 0x7f80 : 0x7c00))
        return true;
    for (int32_t i = 0; i < r->n_dense; i++) {
        float x = td_row_dense_at(r, i);
        if (!isfinite(x) && !(full && x == -INFINITY))
            return problem(p, full ? "logits" : "hidden", "element %d holds %g", i, (double)x);
    }
    return true;
}

/* The logits' own probabilities are those that the other tensors state. */
static bool check_logits(const td_row_view *r, td_row_problem *p) {
    const td_capture_spec *s = r->spec;
    double rel = dense_error(s->dense_dtype), lse = (double)r->logsumexp;
    double zt = (double)td_row_dense_at(r, r->target), mass = 0, slack = MASS_TOLERANCE;
    double entropy = 0, entropy_slack = 1e-3;
    int32_t n_before = 0, n_not_after = 0;
    for (int32_t i = 0; i < s->n_valid; i++) {
        double z = (double)td_row_dense_at(r, i);
        if (!isfinite(z))
            continue;
        /* f16 is not relative below its normal range; f32 sums have their own slack */
        double e = fabs(z) * rel + 0x1p-14 * (s->dense_dtype == TD_F16);
        double lp = z - lse, prob = exp(lp), grown = prob * expm1(TD_MIN(e, 60));
        double near = e + fabs(zt) * rel + (fabs(lse) + fabs(z)) * 0x1p-21;
        mass += prob;
        slack += grown;
        entropy -= prob * lp;
        entropy_slack += grown * (fabs(lp) + e) + prob * e;
        n_before += z > zt + near;
        n_not_after += z >= zt - near;
    }
    if (fabs(mass - 1) > slack)
        return problem(p, "logsumexp", "%g does not fit logits: their probabilities sum to %.6f",
                       lse, mass);
    if (!isfinite(zt) || fabs(zt - lse - (double)r->target_logprob) >
                             fabs(zt) * rel + 1e-4 + (fabs(zt) + fabs(lse)) * 0x1p-21)
        return problem(p, "target_logprob", "%g, but logits give the target %g",
                       (double)r->target_logprob, zt - lse);
    if (r->target_rank < n_before || r->target_rank >= n_not_after)
        return problem(p, "target_rank", "is %d, but logits give the target %d to %d",
                       r->target_rank, n_before, n_not_after - 1);
    if (fabs(entropy - (double)r->entropy) > entropy_slack)
        return problem(p, "entropy", "%g, but logits give %g", (double)r->entropy, entropy);
    for (int32_t i = 0; i < s->n_always; i++) {
        double lp = (double)r->always_logprobs[i];
        double z = (double)td_row_dense_at(r, s->always_ids[i]);
        /* An id that is masked may have a logit all the same. */
        if (isfinite(lp) && !(fabs(z - lse - lp) <= fabs(z) * rel + 1e-4 + fabs(z) * 0x1p-21))
            return problem(p, "always_logprobs", "id %d holds %g, but logits give %g",
                           s->always_ids[i], lp, z - lse);
    }
    return true;
}

bool td_row_check(const td_row_view *r, bool deep, td_row_problem *p) {
    const td_capture_spec *s = r->spec;
    int32_t n_valid = 0;
    if (s->mode == TD_CAPTURE_HIDDEN)
        return check_finite(r, p);
    if (!isfinite(r->logsumexp))
        return problem(p, "logsumexp", "holds %g", (double)r->logsumexp);
    for (int32_t i = 0; i < s->n_temperatures; i++)
        if (!isfinite(r->logsumexp_t[i]))
            return problem(p, "logsumexp_t", "temperature %d holds %g", i,
                           (double)r->logsumexp_t[i]);
    if (!(r->tail_mass >= 0 && (double)r->tail_mass <= 1 + MASS_TOLERANCE))
        return problem(p, "tail_mass", "holds %g, expected 0 to 1", (double)r->tail_mass);
    if (td_capture_has_topk(s->mode))
        if (!check_top(r, &n_valid, p))
            return false;
    if (td_capture_has_draws(s->mode) && (!check_draws(r, p) || !check_draws_in_top(r, n_valid, p)))
        return false;
    if (!check_target(r, n_valid, p) || !check_always(r, n_valid, p))
        return false;
    if (!(r->entropy >= -1e-4f && (double)r->entropy <= log((double)s->n_vocab) + 1e-3))
        return problem(p, "entropy", "holds %g, expected 0 to log(%d)", (double)r->entropy,
                       s->n_vocab);
    if (s->mode != TD_CAPTURE_FULL)
        return true;
    if (r->tail_mass != 0)
        return problem(p, "tail_mass", "holds %g, but every token is stored", (double)r->tail_mass);
    return check_finite(r, p) && (!deep || check_logits(r, p));
}
