/* coverage.h - what truncation to the stored candidates loses: a report in bounded memory, filled
 * row by row.
 *
 * A row whose candidates cover the mass m leaves the tail 1 - m. A student that is trained on the
 * renormalised candidates has the target p' = p / m on them, and KL(p' || p) = sum p' log(p' / p) =
 * -log m: so much of the teacher is lost even to a student that reaches its target. (KL(p || p') is
 * infinite: p' is 0 where the teacher is not.)
 *
 * Means are exact sums. Quantiles come from a histogram of log2(tail), TD_COVERAGE_PER_OCTAVE bins
 * to a factor of two: a tail mass read from it is right within 2.2%. */
#ifndef TDGEN_CAPTURE_COVERAGE_H
#define TDGEN_CAPTURE_COVERAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { TD_COVERAGE_OCTAVES = 40, TD_COVERAGE_PER_OCTAVE = 32, TD_COVERAGE_LEVELS = 10 };
typedef struct td_coverage {
    int32_t top_k;               /* 0: the mode stores no truncated set, nothing is counted */
    int64_t n_rows, n_rows_kept; /* kept: of them, in shards that were finished before */
    double sum_tail, sum_kl;     /* nats */
    int64_t bins[TD_COVERAGE_OCTAVES * TD_COVERAGE_PER_OCTAVE + 1]; /* [0]: tails below 2^-40 */
    /* What smaller k would have covered, from the stored log-probabilities: k = top_k / 2, / 4, ...
     * 1. Of every row, with large top_k of a part of them. */
    int32_t n_levels;
    struct {
        int32_t k;
        double sum_tail, sum_kl;
    } level[TD_COVERAGE_LEVELS];
    int64_t n_level_rows, level_stride;
} td_coverage;
void td_coverage_init(td_coverage *c, int32_t top_k);
/* Is this row of a shard one of those that the smaller k are looked at in? */
bool td_coverage_wants_levels(const td_coverage *c, int64_t row);
/* logprobs: the row's top_k candidates, most probable first, -inf in free places; NULL when the
 * row is not to count for the smaller k. */
void td_coverage_add(td_coverage *c, float tail_mass, const float *logprobs);
void td_coverage_merge(td_coverage *into, const td_coverage *from);
/* The mass that the fraction `share` of the rows does not reach: 0.05 gives the 5th percentile of
 * covered mass. 0 < share < 1, n_rows > 0. As its complement, the tail, which keeps its digits. */
double td_coverage_tail_quantile(const td_coverage *c, double share);
/* A few statements for a person, each a line of any length (td_text_flow); nothing when no rows were
 * counted. */
void td_coverage_print(const td_coverage *c, FILE *out);

#endif
