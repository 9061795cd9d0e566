/* extent.h - how much a folder is to hold, and how much of it is there.
 *
 * manifest.json has, beside the identity (which may not change) and under the same hash:
 *
 *   "extent": {"n_rows": 8000, "n_rows_at_least": 8000, "max_samples": 0, "shard_samples": 1024,
 *              "worker_id": 0, "total_workers": 1}
 *
 * n_rows: dataset rows of the whole run, of all workers together: those of the dataset, or
 * max_samples where these are fewer; null until a run came to their end. n_rows_at_least: those that
 * a run has seen. Shard k holds the rows [k S, min((k + 1) S, n_rows)); a worker's are those with
 * k % total_workers == worker_id. A folder without the key was written before there was one: how much
 * it is to hold is not known.
 */
#ifndef TDGEN_RECORD_EXTENT_H
#define TDGEN_RECORD_EXTENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"
#include "data/data.h"
#include "record/index.h"

typedef struct td_extent {
    bool known;
    int64_t n_rows; /* -1: the end was not reached yet */
    int64_t n_rows_at_least;
    int64_t max_samples; /* 0: all */
    int64_t shard_samples;
    int32_t worker_id, total_workers;
} td_extent;

/* Of a run that has not begun. */
td_extent td_extent_of(const td_config *cfg);
/* The same part of the same data. */
bool td_extent_same_share(const td_extent *a, const td_extent *b);
/* New reference, NULL when out of memory. */
json_t *td_extent_json(const td_extent *x);
/* `o` NULL: not known. Anything else than td_extent_json writes is `code`. */
td_status td_extent_parse(const json_t *o, const char *where, td_status code, td_extent *out,
                          td_error *err);
/* Shards of the whole run; -1 where n_rows is. */
int64_t td_extent_n_shards(const td_extent *x);

typedef struct td_folder_state {
    bool known;                         /* the extent is */
    bool complete;                      /* every row of the share is there */
    int64_t n_rows_want, n_shards_want; /* of the share; -1: the end was not reached */
    int64_t n_rows_at_least;            /* of the whole run */
    int64_t n_rows, n_shards;           /* of the share, that are there */
    int64_t first_missing; /* the lowest shard of the share that is not there, -1: none known */
} td_folder_state;

/* Of a folder on disk: `index` loses the shards whose file is not there. A folder that cannot be looked
 * at is `code`. */
td_status td_folder_state_read(const char *dir, const td_extent *x, td_index *index, td_status code,
                               td_folder_state *out, td_error *err);
/* `index` holds no shard whose file is not there. Pure. */
void td_folder_state_of(const td_extent *x, const td_index *index, td_folder_state *out);
/* "42% of 8,000 dataset rows (3 of 8 shards), shard 3 is the first that is missing", or
 * "4,096 dataset rows in 4 shards; the run did not come to the end of the dataset". */
const char *td_folder_state_text(const td_folder_state *s, char *buf, size_t n);
enum { TD_FOLDER_STATE_TEXT_SIZE = 160 };

#endif
