/* claims.h - how much work a group takes at a time, and when it leaves the rest to faster ones.
 *
 * Policy only: no clock (time is an argument, in seconds from any start), no I/O, no waiting. The
 * threads of a run (group.c) and the simulator (simulate.c) drive the same code.
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
 *   Not all groups leave: let g be the one with the earliest finish of one micro-batch. Before that
 * time each of its peers completes none, so they complete 0 < 1 <= k, and g takes. A peer that is
 * later than it said (it may hang) is expected to be late by as much again, so its finish moves
 * away with time, and after it another one is the earliest: nobody waits for a group that is stuck.
 *   What is held and not begun is given back under the same rule, with a margin. A second
 * micro-batch in flight is a claim like any other: it finishes behind the first.
 *
 * Rates are in kFLOP/s and work in kFLOP of the cost model, as integers, so that shared sums are
 * exact. All shared fields are estimates: the queue alone decides who owns what.
 */
#ifndef TDGEN_SCHED_CLAIMS_H
#define TDGEN_SCHED_CLAIMS_H

#include <stdbool.h>
#include <stdint.h>
#include "queue/queue.h"
#include "plan/plan.h"
#include "base/status.h"

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
