/* coverage.c - what truncation loses: td_coverage of capture/coverage.h has the formulas. */
#include "capture/coverage.h"

#include <math.h>
#include <stdio.h>
#include "base/format.h"
#include "base/memory.h"

/* Above so many candidates the smaller k are looked at in a part of the rows only: the exponentials
 * are to stay a small part of what a group's thread does. */
#define FULL_LEVELS_TOP_K 64

void td_coverage_init(td_coverage *c, int32_t top_k) {
    *c = (td_coverage){.top_k = top_k, .level_stride = TD_MAX(1, top_k / FULL_LEVELS_TOP_K)};
    for (int32_t k = top_k / 2; k >= 1 && c->n_levels < TD_COVERAGE_LEVELS; k /= 2)
        c->level[c->n_levels++].k = k;
}

/* -log(1 - tail); a tail of 1 would be infinite: what f32 can tell from it counts. */
static double kl_of(double tail) {
    return -log1p(-TD_MIN(tail, 1 - 0x1p-24));
}

static int bin_of(double tail) {
    const int last = TD_COVERAGE_OCTAVES * TD_COVERAGE_PER_OCTAVE;
    if (!(tail >= ldexp(1, -TD_COVERAGE_OCTAVES)))
        return 0;
    int b = 1 + (int)((log2(tail) + TD_COVERAGE_OCTAVES) * TD_COVERAGE_PER_OCTAVE);
    return TD_MIN(b, last);
}

bool td_coverage_wants_levels(const td_coverage *c, int64_t row) {
    return row % c->level_stride == 0;
}

void td_coverage_add(td_coverage *c, float tail_mass, const float *logprobs) {
    double tail = tail_mass > 0 ? TD_MIN((double)tail_mass, 1.0) : 0; /* NaN: 0 */
    if (c->top_k == 0)
        return;
    c->n_rows++;
    c->sum_tail += tail;
    c->sum_kl += kl_of(tail);
    c->bins[bin_of(tail)]++;
    if (!logprobs || c->n_levels == 0)
        return;
    c->n_level_rows++;
    /* From the last candidate on, so that small terms are added first. */
    int32_t j = c->top_k;
    for (int32_t i = 0; i < c->n_levels; i++) {
        for (; j > c->level[i].k; j--) {
            double p = exp((double)logprobs[j - 1]);
            tail += p > 0 ? p : 0;
        }
        tail = TD_MIN(tail, 1.0);
        c->level[i].sum_tail += tail;
        c->level[i].sum_kl += kl_of(tail);
    }
}

void td_coverage_merge(td_coverage *into, const td_coverage *from) {
    into->n_rows += from->n_rows;
    into->n_rows_kept += from->n_rows_kept;
    into->sum_tail += from->sum_tail;
    into->sum_kl += from->sum_kl;
    for (size_t i = 0; i < TD_ARRAY_LEN(into->bins); i++)
        into->bins[i] += from->bins[i];
    into->n_level_rows += from->n_level_rows;
    for (int32_t i = 0; i < into->n_levels; i++) {
        into->level[i].sum_tail += from->level[i].sum_tail;
        into->level[i].sum_kl += from->level[i].sum_kl;
    }
}

double td_coverage_tail_quantile(const td_coverage *c, double share) {
    /* Small mass is a large tail: the rows are passed from the largest tail on. */
    double want = share * (double)c->n_rows, seen = 0;
    for (int b = (int)TD_ARRAY_LEN(c->bins) - 1; b >= 1; b--) {
        double n = (double)c->bins[b];
        if (n > 0 && seen + n >= want) {
            /* evenly spread over the bin, on the logarithmic scale */
            double within = TD_MIN(1.0, TD_MAX(0.0, (want - seen) / n));
            return exp2((b - within) / TD_COVERAGE_PER_OCTAVE - TD_COVERAGE_OCTAVES);
        }
        seen += n;
    }
    return 0;
}

/* "96.31%", "99.9992%": as many digits as tell it from 100%. */
static const char *mass_text(double tail, char *buf, size_t size) {
    int digits = tail > 0 && tail < 0.01 ? TD_MIN(8, (int)ceil(-log10(tail))) : 2;
    snprintf(buf, size, tail > 0 ? "%.*f%%" : "100%%", digits, 100 * (1 - tail));
    return buf;
}

void td_coverage_print(const td_coverage *c, FILE *out) {
    char a[32], b[32], d[32], e[32], rows[32], kept[32];
    if (c->n_rows == 0)
        return;
    double n = (double)c->n_rows;
    double p1 = td_coverage_tail_quantile(c, 0.01), p5 = td_coverage_tail_quantile(c, 0.05),
           p50 = td_coverage_tail_quantile(c, 0.5);
    fprintf(
        out,
        "Truncation: the (at most) %d candidates cover %s of the probability on average (median "
        "%s, 5%% of the positions below %s, 1%% below %s); renormalised targets differ from the "
        "teacher by KL = -log(mass covered): %.3g nats on average (median %.3g, 95%% below %.3g, "
        "99%% below %.3g)\n",
        c->top_k, mass_text(c->sum_tail / n, a, sizeof a), mass_text(p50, b, sizeof b),
        mass_text(p5, d, sizeof d), mass_text(p1, e, sizeof e), c->sum_kl / n, kl_of(p50),
        kl_of(p5), kl_of(p1));
    if (c->n_level_rows && c->n_levels) {
        fprintf(out, "  fewer candidates:");
        for (int32_t i = 0; i < TD_MIN(c->n_levels, 3); i++)
            fprintf(out, "%s top_k = %d: %s, KL %.3g", i ? " ·" : "", c->level[i].k,
                    mass_text(c->level[i].sum_tail / (double)c->n_level_rows, a, sizeof a),
                    c->level[i].sum_kl / (double)c->n_level_rows);
        fputc('\n', out);
    }
    fprintf(out, "  (of %s recorded positions", td_human_count(n, rows, sizeof rows));
    if (c->n_rows_kept)
        fprintf(out, ", %s of them in shards that were there already",
                td_human_count((double)c->n_rows_kept, kept, sizeof kept));
    fprintf(out, ")\n");
}
