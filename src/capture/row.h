/* row.h - captured rows: as a session hands them out, and one of them as plain numbers, whatever the
 * mode and the packing.
 */
#ifndef TDGEN_CAPTURE_ROW_H
#define TDGEN_CAPTURE_ROW_H

#include <stdbool.h>
#include <stdint.h>
#include "capture/spec.h"

/* Captured rows of one micro-batch, host memory of the slot, valid until its next submit. */
typedef struct td_captured {
    int32_t n_rows, top_k, n_temperatures;
    const int32_t *topk_ids;    /* [n_rows, top_k] */
    const float *topk_logprobs; /* [n_rows, top_k] */
    const float *logsumexp;     /* [n_rows]; NaN marks a row that must not be recorded */
    const float *logsumexp_t;   /* [n_rows, n_temperatures] */
    const float *tail_mass, *target_logprob, *entropy; /* [n_rows] */
    const int32_t *target_rank;                        /* [n_rows] */
    /* NULL (and counts 0) in the modes that do not have them; hidden has n_rows and these two. */
    const void *dense; /* full: logits [n_rows, n_vocab]; hidden: states [n_rows, n_hidden] */
    td_dtype dense_dtype;
    int32_t n_dense;       /* n_vocab or n_hidden */
    const int32_t *n_kept; /* topp: [n_rows] of topk_*, the first so many are in the set */
    int32_t n_draws;
    const int32_t *n_unique;         /* sample: [n_rows] different ids drawn */
    const int32_t *draw_ids;         /* sample: [n_rows, n_draws] ascending ids, n_unique of them */
    const int32_t *draw_counts;      /* sample: [n_rows, n_draws] how often; they sum to n_draws */
    const float *draw_logprobs;      /* sample: [n_rows, n_draws] the teacher's log p */
    const float *proposal_logsumexp; /* sample with t != 1: [n_rows] log sum p^t; log q = t log p -
                                        it */
    int32_t n_always;
    const float *always_logprobs; /* [n_rows, n_always], in the order of always_ids */
} td_captured;

/* --- one row as numbers ----------------------------------------------------------------------- */

/* How stored log-probabilities were rounded. */
typedef enum td_rounding { TD_ROUND_NONE, TD_ROUND_F16, TD_ROUND_Q8 } td_rounding;

typedef struct td_row_view {
    const td_capture_spec *spec;
    int32_t position; /* t: the row predicts token t + 1 of the sample */
    int32_t target;   /* the token that follows */

    /* Not in mode hidden. */
    float logsumexp, tail_mass, target_logprob, entropy;
    int32_t target_rank;
    const float *logsumexp_t;     /* [n_temperatures], NULL when there are none */
    const float *always_logprobs; /* [n_always], NULL when there are none */

    /* The set of most probable tokens, most probable first: topk and topk+sample (n_top = K places,
     * id -1 and -inf in those left free), topp (n_top = size of the row's set). Else n_top = 0. */
    int32_t n_top;
    const int32_t *top_ids;
    const float *top_logprobs;

    /* Draws (sample, topk+sample): different ids, ascending. Else n_drawn = 0. */
    int32_t n_drawn;
    const int32_t *draw_ids, *draw_counts;
    const float *draw_logprobs;
    float proposal_logsumexp; /* where td_capture_has_proposal; else 0 */

    /* full: V logits; hidden: C numbers; of spec->dense_dtype. Else NULL. */
    const void *dense;
    int32_t n_dense;

    td_rounding rounding;
    float top_error, draw_error; /* TD_ROUND_Q8: bound of the absolute error of the log-probs */
} td_row_view;

typedef struct td_row_problem {
    const char *tensor;
    char what[160];
} td_row_problem;

/* The n most probable of the tokens that the row has, most probable first, ties by the lower id;
 * returns how many there are (0 in mode hidden). */
int32_t td_row_top(const td_row_view *v, int32_t n, int32_t *ids, float *logprobs);
/* Element i of dense as f32. */
float td_row_dense_at(const td_row_view *v, int32_t i);
/* sqrt of the sum of squares of dense. */
double td_row_dense_norm(const td_row_view *v);

/* --- is it consistent with itself? ------------------------------------------------------------ */

/* Asked before a row is written (numbers as computed) and when a shard is verified (numbers as
 * stored). True when all holds. `deep`: in mode full the sums over the whole vocabulary are made as well (V
 * exponentials); without it only that every logit is a number. */
bool td_row_check(const td_row_view *r, bool deep, td_row_problem *p);

/* Nearest half; a finite value below the range of F16 becomes its lowest finite one, since -inf
 * would say that the token is impossible. -inf (a free place) stays. */
uint16_t td_logprob_to_f16(float x);

#endif
