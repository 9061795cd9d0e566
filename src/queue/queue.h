/* queue.h - the lock-free work queue, and (further down) how much of it a group takes at a time.
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
#ifndef TDGEN_QUEUE_QUEUE_H
#define TDGEN_QUEUE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include "plan/plan.h"
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

/* --- claims --------------------------------------------------------------------------------------
 *
 * How much work a group takes at a time, and when it leaves the rest to faster ones (claims.c).
 *
 * Policy only: no clock (time is an argument, in seconds from any start), no I/O, no waiting. The
 * threads of a run (src/run/group.c) and the simulator (src/sim/sim.c) drive the same code.
 *
 *   board      one for the run: the work that nobody has claimed yet, and what each group says of
 *              itself (rate, when it will have cleared what it holds)
 *   claimer    one for each group, belongs to its thread: the claims it holds and has not begun,
 *              what is in flight, its observed speed
 *
 * How much: a run of consecutive micro-batches of at most TD_CLAIM_SECONDS of the group's own work,
 * and at most a quarter of the remaining work per group (also of the group's share by its rate); at
 * least one. Remaining work = published and not claimed (exact) + the part of the dataset that is
 * not read yet (estimated).
 *
 * The tail: a group takes a micro-batch only if it finishes it no later than its peers would be
 * done with all that remains, this one included. With k micro-batches of size w remaining, a peer p
 * of rate r_p that begins new work at f_p completes the whole part of (t - f_p) r_p / w of them by
 * t; the group leaves when its peers complete k before the group's own finish. That is
 * water-filling over the peers' rates, with the granularity of a micro-batch in it.
 *
 * Not all groups leave: let g be the one with the earliest finish of one micro-batch. Before that
 * time each of its peers completes none, so they complete 0 < 1 <= k, and g takes. A peer that is
 * later than it said (it may hang) is expected to be late by as much again, so its finish moves
 * away with time, and after it another one is the earliest: nobody waits for a group that is stuck.
 *
 * What is held and not begun is given back under the same rule, with a margin. A second micro-batch
 * in flight is a claim like any other: it finishes behind the first.
 *
 * Rates are in kFLOP/s and work in kFLOP of the cost model, as integers, so that shared sums are
 * exact. All shared fields are estimates: the queue alone decides who owns what.
 */

#define TD_CLAIM_SECONDS 2.0
enum { TD_MAX_CLAIM = 64 };

/* What an item of the queue begins with. Constant from its publication on. */
typedef struct td_claim_item {
    td_work_size size;
    int64_t kflop; /* > 0 */
    bool alone;    /* nothing else may be in flight in the group (td_micro_batch.alone) */
} td_claim_item;

void td_claim_item_init(td_claim_item *it, const td_cost_model *cost, const td_work_size *size,
                        bool alone);

typedef struct td_claim_board td_claim_board;

td_status td_claim_board_create(int32_t n_groups, td_claim_board **out, td_error *err);
void td_claim_board_destroy(td_claim_board *b); /* NULL allowed */
/* Producer only; before td_queue_publish of the item. */
void td_claim_board_add(td_claim_board *b, const td_claim_item *it);
/* Producer only: what is not published yet, an estimate. 0 at the end of the data. */
void td_claim_board_set_unread(td_claim_board *b, double kflop);
/* The group takes no more work; what it had counts as unclaimed again. Any thread, while the
 * group's own thread touches its claimer no more, or by that thread. */
void td_claim_board_retire(td_claim_board *b, int32_t group);
/* kFLOP/s as the group sees itself; 0 = unknown or retired. Any thread. */
double td_claim_board_rate(const td_claim_board *b, int32_t group);
/* Unclaimed and unread, kFLOP. Any thread. */
double td_claim_board_remaining(const td_claim_board *b);

typedef struct td_claimer_setup {
    td_claim_board *board;
    td_queue *queue;
    uint32_t group;
    int32_t n_slots;   /* of its session */
    int32_t n_stages;  /* devices in its pipeline: n_stages + 1 micro-batches keep all busy */
    double depth;      /* time through the pipeline over that of the slowest stage, >= 1 */
    double rate_kflop; /* kFLOP/s by the plan; 0 = unknown until something was observed */
} td_claimer_setup;

typedef struct td_claimer {
    td_claimer_setup in;
    int32_t max_in_flight;
    td_claim held[TD_MAX_CLAIM]; /* [next_held, n_held): claimed and not begun */
    uint32_t n_held, next_held;
    int64_t held_kflop;
    int32_t n_in_flight;
    int64_t in_flight_kflop, largest_kflop; /* largest: since nothing was in flight */
    bool alone_in_flight;
    int64_t n_claims, n_released; /* queue operations that gave something; held claims given back */
    bool left;                    /* the last td_claimer_next left the rest to faster peers */
    /* Observed speed: sums that forget, over what was completed. */
    double seen_kflop, seen_s, seen_predicted_s;
    int64_t n_seen;
    double since_s; /* the last completion, or the submission after which something was in flight */
    bool filling;   /* nothing came out yet since then */
    double total_s; /* all that was observed, and the cost model's prediction of the same */
    double total_predicted_s;
} td_claimer;

/* Joins the board: at the start, and again after a retirement (td_queue_reinstate). */
void td_claimer_init(td_claimer *c, const td_claimer_setup *in);

/* The next micro-batch to submit, at time `now`. False: nothing for this group at present; see
 * td_claimer_nap_s. May give held claims back to the queue. */
bool td_claimer_next(td_claimer *c, double now, td_claim *out);
/* It was handed to the devices. */
void td_claimer_submitted(td_claimer *c, double now, const td_claim *claim);
/* The oldest in flight came out. predicted_s: the cost model's seconds for the slowest stage, 0 =
 * unknown. */
void td_claimer_completed(td_claimer *c, double now, const td_claim_item *it, double predicted_s);
/* Gives back everything that is held, without a failure. */
void td_claimer_release_held(td_claimer *c, double now);

/* How long to wait before td_claimer_next is worth another try with nothing in flight. */
double td_claimer_nap_s(const td_claimer *c);
/* Observed over predicted seconds; 1 before anything was observed, 0 without predictions. */
double td_claimer_correction(const td_claimer *c);
/* Seconds in which everything in flight should be out, counted from when the oldest could begin; 0
 * = unknown. */
double td_claimer_expected_s(const td_claimer *c);

/* A claimer's setup for a group of the plan: depth and rate by the cost model. */
td_claimer_setup td_claimer_setup_of(const td_plan *plan, int32_t group, int32_t n_slots,
                                     td_claim_board *board, td_queue *queue);

/* Shards that may be open at a time, TD_MIN_OPEN .. TD_MAX_OPEN (each is an open file): enough for
 * every group to have TD_OPEN_BATCHES micro-batches while the slowest is at its own (a shard stays
 * open until its last one is done), plus one being filled, one being committed and two in reserve;
 * at most max_bytes of host memory in all (0 = no limit). */
enum { TD_OPEN_BATCHES = 8, TD_MIN_OPEN = 3, TD_MAX_OPEN = 256 };
int32_t td_claims_max_open(const td_plan *plan, int64_t shard_samples, double max_bytes);

#endif
