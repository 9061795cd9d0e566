/* spool.h - a shard's ragged set while the shard is being filled.
 *
 * How many entries a sample has is known only when it was computed, so its entries cannot go to
 * their place at once. They are appended to a side file as they arrive, and copied in sample order
 * when the shard is complete: the bytes of the shard do not depend on the order of arrival, and
 * host memory holds two numbers a sample.
 *
 * A block of the side file, one a sample with E entries:
 *   ids I32 [E] | draws: counts I32 [E] | log-probabilities [E] as they are stored
 *
 * Threads: td_spool_put of distinct samples may run at once; the rest belongs to one thread.
 */
#ifndef TDGEN_RECORD_SPOOL_H
#define TDGEN_RECORD_SPOOL_H

#include "record/shard_temp.h"

typedef struct td_spool td_spool;

/* Creates DIR/NAME.spool.tmp. */
td_status td_spool_open(const char *dir, const char *name, const td_capture_spec *spec,
                        int32_t n_samples, td_spool **out, td_error *err);
void td_spool_close(td_spool *s); /* removes the file; NULL allowed */

/* The ragged set of rows [first_row, first_row + n_rows) of what was captured, which were checked.
 * q8_range: [n_rows, 2] to be filled, with spec.q8. A sample that was not put counts as empty; one
 * that is put again replaces what was there. */
td_status td_spool_put(td_spool *s, int32_t sample, const td_captured *cap, int32_t first_row,
                       int32_t n_rows, float *q8_range, td_error *err);
/* Entries of one sample. */
int64_t td_spool_entries(const td_spool *s, int32_t sample);
/* Writes the ragged tensors of `to`: the entries of samples with keep[i], in order. */
td_status td_spool_copy(const td_spool *s, const bool *keep, const shard_temp *to, td_error *err);

/* The ragged set in a captured row: its size and where its values lie. */
typedef struct td_ragged_row {
    int32_t n;
    const int32_t *ids, *counts; /* counts NULL: topp */
    const float *logprobs;
} td_ragged_row;
td_ragged_row td_ragged_row_of(const td_capture_spec *spec, const td_captured *cap, int32_t row);

#endif
