/* shard_temp.h - files that a shard is made in: the temp file of a layout, and the side file for
 * entries whose number is not known beforehand.
 */
#ifndef TDGEN_RECORD_SHARD_TEMP_H
#define TDGEN_RECORD_SHARD_TEMP_H

#include "record/layout.h"

/* A file of a given layout that is being filled. {.fd = -1} is none. */
typedef struct shard_temp {
    td_layout layout;
    uint64_t header_size_bytes;
    char *path;
    int fd;
} shard_temp;

/* Creates a temporary file for DIR/NAME at the full size of the layout. A full disk is reported here. */
td_status shard_temp_create(const char *dir, const char *name, const td_layout *l,
                            const td_shard_meta *meta, shard_temp *out, td_error *err);
/* Closes and removes it, if it is there. */
void shard_temp_discard(shard_temp *t);

/* n_elems elements of a tensor, from element `elem` on. */
td_status shard_temp_write(const shard_temp *t, td_tensor_id id, uint64_t elem, const void *data,
                           uint64_t n_elems, td_error *err);

/* Sequential writes of small pieces to a file, through a buffer. After a failure the rest is not
 * written; column_end tells. */
typedef struct column {
    int fd;
    const char *path;
    uint64_t at; /* file offset of buf[0] */
    size_t n;
    td_status rc;
    td_error *err;
    char buf[16384];
} column;

void column_begin_at(column *c, int fd, const char *path, uint64_t at, td_error *err);
void column_begin(column *c, const shard_temp *t, td_tensor_id id, uint64_t elem, td_error *err);
void column_push(column *c, const void *data, size_t size_bytes);
td_status column_end(column *c);

#endif
