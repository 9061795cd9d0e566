/* output.h - the inside of td_output, for the writer. */
#ifndef TDGEN_RECORD_OUTPUT_H
#define TDGEN_RECORD_OUTPUT_H

#include <pthread.h>
#include "record/folder_lock.h"
#include "record/identity.h"
#include "record/index.h"

struct td_output {
    char *dir;
    bool reading; /* nothing is written: td_output_open_reading */
    td_folder_lock lock;
    td_capture_spec spec;
    bool has_ids;

    const td_config *cfg; /* borrowed */
    td_identity id;
    json_t *identity; /* of this run; complete once bound */
    bool manifest_there, bound;
    uint64_t fingerprint; /* valid when manifest_there or bound */
    td_extent extent;     /* Protected by mutex, once bound: what manifest.json says */

    pthread_mutex_t mutex;
    td_index index;       /* Protected by mutex. */
    bool index_dirty;     /* Protected by mutex: the file is not what `index` says, in order */
    td_coverage coverage; /* Protected by mutex. */
    bool index_torn;      /* Protected by mutex: an append failed, half a line may be there */
};

/* "DIR/NAME", NULL when out of memory. */
char *td_output_path(const td_output *o, const char *name);
/* The shard's file is in place: adds its line. Any thread. */
td_status td_output_add_entry(td_output *o, const td_index_entry *e, td_error *err);
/* Counts the rows of a shard that is in place. Any thread. */
void td_output_add_coverage(td_output *o, const td_coverage *c);

#endif
