/* row_check.h - is one recorded row consistent with itself? Asked before a row is written (numbers
 * as computed) and when a shard is verified (numbers as stored).
 */
#ifndef TDGEN_RECORD_ROW_CHECK_H
#define TDGEN_RECORD_ROW_CHECK_H

#include <stdbool.h>
#include <stdint.h>

typedef struct td_row {
    int32_t n_vocab, top_k, n_temperatures;
    bool rounded;             /* logprobs went through F16: order and sums hold only so far */
    int32_t target;           /* the token that follows */
    const int32_t *ids;       /* [top_k] */
    const float *logprobs;    /* [top_k] */
    const float *logsumexp_t; /* [n_temperatures] */
    float logsumexp, tail_mass, target_logprob, entropy;
    int32_t target_rank;
} td_row;

typedef struct td_row_problem {
    const char *tensor;
    char what[160];
} td_row_problem;

/* True when all holds. */
bool td_row_check(const td_row *r, td_row_problem *p);

/* Nearest half; a finite value below the range of F16 becomes its lowest finite one, since -inf
 * would say that the token is impossible. -inf (a free place) stays. */
uint16_t td_logprob_to_f16(float x);

#endif
