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
 * Invariants (each is an assertion of test/spin/queue.pml or a check of
 * test/stress/stress_queue.c):
 *
 *   I1: an item reaches COMMITTING exactly once, and by its one live claimer.
 *
 *   I2: an item that is FREE is either at or behind the cursor or in the retry ring, exactly once;
 *   so none is lost, and none is given to two.
 *
 *   I3: an owner whose epoch is odd has no item CLAIMED under an earlier epoch once retire returned
 *   and every td_queue_claim of his that was under way has returned; it gets no new one.
 *
 *   I4: a slot holds another item only after its last one is DONE.
 *
 *   I5: n_done <= published; both are equal and the queue is closed if and only if nothing is
 *   outstanding: that is the termination.
 *
 * An owner's life: its epoch is even while it may claim. td_queue_retire makes it odd and takes its
 * claims back; td_queue_reinstate makes it even again, a new one: what was taken from the owner
 * under an earlier epoch stays taken. The owner itself must have dropped those claims before (it
 * answers for none of them any more), or an answer to an old claim could meet a new one of the same
 * item.
 *
 * Termination: td_queue_finished() is true if and only if the producer closed the queue and every
 * published item is DONE. An owner leaves then, not when the cursor ends: a peer may still fail.
 *
 * Progress of each operation (in any of them a thread that stops for ever holds up nobody else,
 * but for the one case under "retry ring"):
 *   publish        wait-free; one thread only; false instead of waiting when the ring is full
 *   close          wait-free
 *   claim          lock-free: a failed exchange means that another claim got its items
 *   begin_commit   wait-free: one exchange, which fails only when the claim is lost
 *   done, finished, available, is_retired   wait-free
 *   fail, release  one exchange and a push to the retry ring
 *   retire         one exchange on the epoch, then `capacity` slots, a push for each taken back
 *   reinstate      wait-free: one exchange
 *   retry ring     lock-free pushes and pops (Vyukov's bounded MPMC ring), except that a thread
 *                  stopped between its ticket and its write delays the pops behind that one cell
 *
 * test/spin/queue.pml models this protocol; change both together (tools/lib/check_spin.sh).
 */
#ifndef TDGEN_SCHED_QUEUE_H
#define TDGEN_SCHED_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"

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

/* Takes everything that `owner` has claimed and not begun to commit away from it (a failure of
 * each), and lets it claim nothing more until it is reinstated. Any thread. Returns how many items
 * came back. */
uint32_t td_queue_retire(td_queue *q, uint32_t owner);
/* Lets a retired owner claim again, under a new epoch. Called by the owner's own thread, which has
 * dropped all claims of its earlier life. False: it is not retired. */
bool td_queue_reinstate(td_queue *q, uint32_t owner);
bool td_queue_is_retired(const td_queue *q, uint32_t owner); /* a moment's answer */

bool td_queue_finished(const td_queue *q);
/* Published and not claimed yet (the retry ring not counted): a moment's estimate. */
uint64_t td_queue_available(const td_queue *q);

#endif
