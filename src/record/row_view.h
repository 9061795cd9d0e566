/* row_view.h - a recorded row as numbers, whatever the mode and the packing.
 *
 * Readers of a shard (verify, inspect, reports) use it like so:
 *
 *   td_row_reader *rr;                     buffers for one row, one thread
 *   td_row_reader_create(f, &rr, err);     f: a td_shard_file, outlives rr
 *   for each sample i: if (td_row_sample_sound(f, i, ...)) for its rows r:
 *       td_row_read(rr, i, r, &view, &why)
 *       n = td_row_top(&view, 5, ids, logprobs)    the most probable tokens, in every mode but
 * hidden
 *
 * Files are not trusted: every offset and index is checked before it is followed; whether the
 * numbers are right is the business of td_row_check.
 */
#ifndef TDGEN_RECORD_ROW_VIEW_H
#define TDGEN_RECORD_ROW_VIEW_H

#include "record/shard_file.h"

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
    float proposal_logsumexp; /* where td_spec_has_proposal; else 0 */

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

typedef struct td_row_reader td_row_reader;

td_status td_row_reader_create(const td_shard_file *f, td_row_reader **out, td_error *err);
void td_row_reader_destroy(td_row_reader *rr); /* NULL allowed */

/* Offsets of sample i and the positions of its rows lie in the shard: needed before td_row_read. */
bool td_row_sample_sound(const td_shard_file *f, int64_t sample);
/* Row `row` of the shard, which belongs to `sample`. False, with *why, when its offsets are bad.
 * The view points into the shard and into rr: valid until the next read. */
bool td_row_read(td_row_reader *rr, int64_t sample, int64_t row, td_row_view *out,
                 td_row_problem *why);

/* The n most probable of the tokens that the row has, most probable first, ties by the lower id;
 * returns how many there are (0 in mode hidden). */
int32_t td_row_top(const td_row_view *v, int32_t n, int32_t *ids, float *logprobs);
/* Element i of dense as f32. */
float td_row_dense_at(const td_row_view *v, int32_t i);
/* sqrt of the sum of squares of dense. */
double td_row_dense_norm(const td_row_view *v);

#endif
