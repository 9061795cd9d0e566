/* row_reader.h - the recorded rows of a shard as numbers (td_row_view), whatever the packing.
 *
 * Readers of a shard (verify, inspect, reports) use it like so:
 *
 *   td_row_reader *rr;                     buffers for one row, one thread
 *   td_row_reader_create(f, &rr, err);     f: a td_shard_file, outlives rr
 *   for each sample i: if (td_row_sample_sound(f, i, ...)) for its rows r:
 *       td_row_read(rr, i, r, &view, &why)
 *       n = td_row_top(&view, 5, ids, logprobs)    the most probable tokens, in every mode but hidden
 *
 * Files are not trusted: every offset and index is checked before it is followed; whether the
 * numbers are right is the business of td_row_check.
 */
#ifndef TDGEN_RECORD_ROW_READER_H
#define TDGEN_RECORD_ROW_READER_H

#include "capture/capture.h"
#include "record/shard_file.h"

typedef struct td_row_reader td_row_reader;

td_status td_row_reader_create(const td_shard_file *f, td_row_reader **out, td_error *err);
void td_row_reader_destroy(td_row_reader *rr); /* NULL allowed */

/* Offsets of sample i and the positions of its rows lie in the shard: needed before td_row_read. */
bool td_row_sample_sound(const td_shard_file *f, int64_t sample);
/* Row `row` of the shard, which belongs to `sample`. False, with *why, when its offsets are bad.
 * The view points into the shard and into rr: valid until the next read. */
bool td_row_read(td_row_reader *rr, int64_t sample, int64_t row, td_row_view *out,
                 td_row_problem *why);

#endif
