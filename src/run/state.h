/* state.h - what the threads of one run share (private to the room), split by who writes it:
 *
 *   td_run_state itself   set up by the main thread; const while a phase runs
 *   td_run_counters,      atomics, each with its writer
 *   td_group_counters
 *   verdict.h             phases, failures, who is retired or has ended, who is to blame: under the
 *                         lock, asserted
 *   open_shards.h         the places of open shards and the list of complete ones: under the lock,
 *                         asserted
 *   td_group_signs        what a group shows of itself while its thread may hang: atomics
 *   td_group_own          the group's thread only, asserted
 *   watch.h, progress.h   the main thread only, asserted
 *
 * Memory orders of the atomics. Where no order is written they are seq_cst, C11's default: counters
 * and flags that are touched a few times per micro-batch, so that a weaker order would save
 * nothing, and that are read either after their threads were joined or acknowledged (run->lock
 * orders that) or as a moment's value to show. Three of them carry more than their own value and
 * need what seq_cst includes:
 *
 *   signs.n_submits: the thread's exchange on leaving and the watch's exchange to TD_SUBMIT_GONE
 *   are on one word, and one of them fails. The watch's acquires what the thread wrote before it
 *   went in (the works in flight); the thread that fails touches nothing.
 *
 *   signs.in_flight: who loads a work sees what was stored in it before (release on the store,
 *   acquire on the load).
 *
 *   stop (verdict.c): set under run->lock; those that wait for the condition see it there.
 *
 * Orders that are weaker, or that carry an argument, have it next to them. */
#ifndef TDGEN_RUN_STATE_H
#define TDGEN_RUN_STATE_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include "queue/queue.h"
#include "run/lock.h"
#include "run/open_shards.h"
#include "run/run.h"
#include "run/timeline.h"
#include "run/verdict.h"

#define TD_SUBMIT_GONE (-2)

/* Written by the group's thread (n_failures also by the watch, for a thread that it gives up), read
 * by anybody. */
typedef struct td_group_counters {
    _Atomic int64_t n_tokens, n_rows, n_samples, n_batches;
    _Atomic int64_t wait_us;
    _Atomic int64_t last_done_us; /* after the start of the run; 0: nothing was done */
    /* Of what it completed: how long it took, and by the cost model (0 = speeds unknown). */
    _Atomic int64_t observed_us, predicted_us;
    _Atomic int64_t *busy_us; /* [n_stages] of each device, told a few times a second */
    _Atomic int32_t n_failures, n_reinstated;
} td_group_counters;

/* What the others may ask of a group whose thread does not answer. Written by the group's thread,
 * and by the watch once it has given that thread up. */
typedef struct td_group_signs {
    /* What is in flight, for whoever has to tell it after a device was lost: in_flight[i] is in the
     * session's slot i, and `oldest` the slot of the oldest. A work is taken out before it is done,
     * so what is seen here is in an open shard. */
    _Atomic(struct td_work *) *in_flight; /* [limits.n_slots] */
    _Atomic int32_t oldest;
    /* For the watch on a thread that does not come back from enqueueing: odd while it is inside.
     * The thread leaves with a compare-and-swap, and the watch gives it up with one, to
     * TD_SUBMIT_GONE: a thread that lost its work this way touches nothing any more. */
    _Atomic int64_t n_submits;
    _Atomic int64_t patience_ms; /* without a sign of life: the device hangs */
} td_group_signs;

/* The group's thread only; the main thread reads it when that thread has ended for good (ended, and
 * not hung), which run->lock orders. */
typedef struct td_group_own {
    pthread_t self; /* set by the thread when it begins */
    td_session *session;
    /* Of its sessions before the present one. busy_s is without what the first one did before the
     * run began: a share of the run's time is at most 1. */
    double busy_s[64], op_s[TD_OP_COUNT];
} td_group_own;

/* What a thread that no device can hold is at, for the watch: a disk or a network file system that does
 * not answer is named. Written by that thread. */
typedef struct td_activity {
    _Atomic int64_t since_us; /* of td_time_s; 0: at nothing that can hang */
    _Atomic int64_t shard;
} td_activity;

static inline void td_activity_begin(td_activity *a, int64_t shard, double now_s) {
    atomic_store(&a->shard, shard);
    atomic_store(&a->since_us, (int64_t)(1e6 * now_s) + 1);
}
static inline void td_activity_end(td_activity *a) {
    atomic_store(&a->since_us, 0);
}

typedef struct td_group {
    /* Set up by the main thread, const while the group's thread lives. */
    struct td_run_state *run;
    uint32_t id;
    const td_plan_group *plan;
    td_stage *stages;
    pthread_t thread; /* the main thread's, to join it */
    td_group_counters counters;
    td_group_signs signs;
    td_activity storing; /* the group's thread */
    td_group_own own;
} td_group;

static inline void td_group_assert_own(const td_group *g) {
    assert(pthread_equal(g->own.self, pthread_self()));
    (void)g;
}

typedef struct td_run_counters {
    _Atomic int64_t n_shards_written; /* writer */
    _Atomic int64_t n_shards_kept;    /* feeder */
    _Atomic int64_t n_bad;            /* feeder and groups */
    _Atomic int64_t n_overflow_rows;  /* feeder, and so on below */
    _Atomic int64_t n_overflow_tokens;
    _Atomic int64_t n_tokens_idle, n_samples_idle; /* without a target: nothing to compute */
    _Atomic int64_t n_data_shards; /* of the dataset, all workers'; -1 until its end was met */
    _Atomic int64_t n_tokens_kept, n_samples_kept; /* in shards that were finished before */
} td_run_counters;

typedef struct td_run_state {
    /* Written by the main thread before there is another one, limits and start_s also while the
     * groups wait for a phase (run->lock orders that). */
    const td_run_input *in;
    pthread_t main; /* who that is */
    td_session_limits limits;
    double start_s;
    td_queue *queue;
    td_claim_board *board;
    td_group *groups;
    int32_t n_groups;
    const char **kinds;  /* device kinds of the groups, without repetition */
    int32_t *group_kind; /* [n_groups] index into kinds */
    int32_t n_kinds;
    td_timeline *timeline; /* has a lock of its own; NULL: out of memory, nothing is noted */
    td_run_counters counters;
    td_activity writing, reading; /* the writer's thread, the feeder's */
    td_lock lock;
    td_verdict *verdict;  /* protected by lock */
    td_open_shards *open; /* protected by lock */
} td_run_state;

static inline void td_run_assert_main(const td_run_state *run) {
    assert(pthread_equal(run->main, pthread_self()));
    (void)run;
}

/* Without the lock, see td_verdict_stopping and td_verdict_is_lost. */
static inline bool td_run_stopping(const td_run_state *run) {
    return td_verdict_stopping(run->verdict);
}
static inline bool td_run_is_lost(const td_run_state *run) {
    return td_verdict_is_lost(run->verdict);
}

/* These take the lock; any thread that does not hold it. */

/* Records the first failure and stops the run. */
void td_run_fail(td_run_state *run, const td_error *err);
/* Stops the run without a failure. */
void td_run_stop(td_run_state *run);
/* TD_E_DEVICE_LOST was met, on behalf of a group or (NULL) of none. */
void td_run_lost(td_run_state *run, td_group *g, const td_error *err);
/* Marks the group retired with its reason. True when no other is left. */
bool td_run_retire(td_run_state *run, td_group *g, bool hung, const td_error *why);
/* A copy of what is decided about a group. */
td_group_verdict td_run_group_verdict(td_run_state *run, const td_group *g);
int32_t td_run_n_hung(td_run_state *run);
int32_t td_run_n_retired(td_run_state *run);

/* The threads. */
void *td_feeder_main(void *run);
void *td_writer_main(void *run);
void *td_group_main(void *group);

#endif
