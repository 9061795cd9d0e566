/* queue.h - the lock-free work queue.
 *
 * One producer publishes items (micro-batches) in order; any number of owners (groups) claim runs
 * of them, work on them, and commit. Items live in a ring of `capacity` slots that is never
 * reallocated: item number i (counted from 0 over the whole run) sits in slot i % capacity, and the
 * slot is used again only after item i is DONE. That is the bound on memory and the back-pressure.
 *
 *   publish      cursor              claims hand out [cursor, published) in order, so no item is
 *      |            |                given twice and there is nothing to reclaim
 *   ...FREE FREE | CLAIMED CLAIMED COMMITTING DONE DONE | EMPTY (slot free for reuse)
 *
 * State of an item, one 64-bit word moved by compare-and-swap:
 *
 *   FREE -> CLAIMED(owner, epoch) -> COMMITTING(owner, epoch) -> DONE
 *             |  td_queue_fail, td_queue_retire: tries + 1
 *             v
 *           FREE, and its number goes through the retry ring, which claims try before the cursor
 *
 * COMMITTING is the point of no return: only the owner that got there may write the results, and
 * retire leaves it alone, so the answer of a retired owner is discarded by one failed
 * compare-and-swap and no item is ever written by two owners.
 *
 * Termination: td_queue_finished() is true if and only if the producer closed the queue and every
 * published item is DONE. An owner leaves then, not when the cursor ends: a peer may still fail.
 *
 * Progress guarantees: claim, begin_commit, done, finished are lock-free (a failed CAS means that
 * another thread's succeeded); done and finished are wait-free. publish is wait-free and belongs to
 * one thread. fail and retire push to the retry ring, which is lock-free except that a thread
 * stopped inside a push delays pops of that one cell (Vyukov's bounded MPMC ring).
 *
 * test/spin/queue.pml models this protocol; change both together (tools/lib/check_spin.sh).
 */
#ifndef TDGEN_SCHED_QUEUE_H
#define TDGEN_SCHED_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include "tdgen/status.h"

#define TD_QUEUE_MAX_OWNERS 4096 /* owner numbers are 12 bits of the state word */

typedef struct td_queue td_queue;

/* capacity: a power of two, 2 .. 2^24. n_owners: 1 .. TD_QUEUE_MAX_OWNERS. */
td_status td_queue_create(uint32_t capacity, uint32_t n_owners, td_queue **out, td_error *err);
void td_queue_destroy(td_queue *q); /* no thread may be inside; NULL allowed */

/* Producer only. False when the ring is full: item number published - capacity is not DONE yet. */
bool td_queue_publish(td_queue *q, void *item);
/* Producer only: nothing more will be published. */
void td_queue_close(td_queue *q);

typedef struct td_claim {
    uint64_t number; /* of the item, over the whole run */
    void *item;
    uint32_t tries; /* failures so far */
} td_claim;

/* Claims up to `want` items for `owner` into out[]: one item that came back, or else a run of
 * consecutive new ones. Returns how many (0: nothing to claim now). A retired owner gets none. */
uint32_t td_queue_claim(td_queue *q, uint32_t owner, uint32_t want, td_claim *out);

/* The owner is about to write results. False: the claim is no longer his; he must discard them. */
bool td_queue_begin_commit(td_queue *q, uint32_t owner, uint64_t number);
/* After begin_commit succeeded and the results are written. */
void td_queue_done(td_queue *q, uint32_t owner, uint64_t number);

/* Gives one claimed item back. Returns its failures so far (1, 2, ...), or 0 when the claim was no
 * longer his. */
uint32_t td_queue_fail(td_queue *q, uint32_t owner, uint64_t number);
/* As fail, without counting a failure: work that was claimed and not begun. */
bool td_queue_release(td_queue *q, uint32_t owner, uint64_t number);

/* Takes everything that `owner` has claimed and not begun to commit away from it, and lets it claim
 * nothing more. Any thread. Returns how many items came back. */
uint32_t td_queue_retire(td_queue *q, uint32_t owner);

bool td_queue_finished(const td_queue *q);
/* Published and not claimed yet (the retry ring not counted): a moment's estimate. */
uint64_t td_queue_available(const td_queue *q);

#endif
