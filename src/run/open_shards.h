/* open_shards.h - the shards between their opening and their commit, in a fixed number of places.
 *
 *   feeder    td_open_shards_take, then fills the shard and publishes its works
 *   group     writes the rows of its works; the one that takes n_left to 0 calls ..._complete
 *   writer    td_open_shards_pop, commits, td_open_shards_release
 *
 * Which places are in use, and the list of complete shards, are protected by the run's lock and
 * asserted. What stands in a place belongs to whoever took it until it is published, then to the
 * groups that claimed its works, and to the writer once it is complete; the queue, n_left and the
 * lock order these.
 */
#ifndef TDGEN_RUN_OPEN_SHARDS_H
#define TDGEN_RUN_OPEN_SHARDS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "data/data.h"
#include "queue/queue.h"
#include "record/record.h"
#include "run/lock.h"

typedef struct td_open_shard {
    td_shard *shard;
    td_shard_writer *writer;
    struct td_work *work; /* [shard->n_batches], the items of the queue */
    /* Micro-batches not done; the one who takes the last queues the commit. */
    _Atomic int32_t n_left;
} td_open_shard;

typedef struct td_work {
    td_claim_item item; /* first: all that claims.c knows of it */
    td_open_shard *open;
    int32_t batch;
    uint64_t number; /* in the queue; written by its claimer before it is in flight */
    /* 1 + the index of the one sample that is in flight, of a work that is split; 0 = all. Written
     * by the claimer; whoever tells what was in flight when a device was lost reads it. */
    _Atomic int32_t only;
} td_work;

typedef struct td_open_shards td_open_shards;

/* max > 0 places. NULL when out of memory. The lock outlives them. */
td_open_shards *td_open_shards_create(td_lock *lock, int32_t max);
void td_open_shards_destroy(td_open_shards *s); /* no other thread left; NULL allowed */

/* The caller holds the lock. */
bool td_open_shards_full(const td_open_shards *s);
bool td_open_shards_empty(const td_open_shards *s);
/* A free place; there must be one. */
td_open_shard *td_open_shards_take(td_open_shards *s);
/* The complete shard that waits longest, now the caller's to commit; NULL: none. */
td_open_shard *td_open_shards_pop(td_open_shards *s);

/* These take the lock themselves and wake who waits. */

/* Queues a complete shard for the writer. Any thread, once. */
void td_open_shards_complete(td_open_shards *s, td_open_shard *o);
/* Frees shard and works, and the place; what becomes of the writer is the caller's business. */
void td_open_shards_release(td_open_shards *s, td_open_shard *o);
/* Aborts and releases every shard that is not committed. When all threads that could touch them
 * have ended. */
void td_open_shards_drop(td_open_shards *s);

#endif
