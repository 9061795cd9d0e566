/* run_state.h - what the threads of one run share (private to sched). */
#ifndef TDGEN_SCHED_RUN_STATE_H
#define TDGEN_SCHED_RUN_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include "run/blame.h"
#include "queue/queue.h"
#include "queue/queue.h"
#include "run/timeline.h"
#include "run/run.h"

/* Memory orders of the atomics below. Where no order is written they are seq_cst, C11's default:
 * counters and flags that are touched a few times per micro-batch, so that a weaker order would
 * save nothing, and that are read either after their threads were joined or acknowledged (run->lock
 * orders that) or as a moment's value to show. Three of them carry more than their own value and
 * need what seq_cst includes:
 *
 *   n_submits: the thread's exchange on leaving and the watch's exchange to TD_SUBMIT_GONE are on
 *   one word, and one of them fails. The watch's acquires what the thread wrote before it went in
 *   (the works in flight); the thread that fails touches nothing.
 *
 *   in_flight: who loads a work sees what was stored in it before (release on the store, acquire
 *   on the load).
 *
 *   stop: set under run->lock; those that wait for the condition see it there.
 *
 * Orders that are weaker, or that carry an argument, have it next to them. */

/* A shard between its opening and its commit. Lives in one of run->open. */
typedef struct td_open_shard {
    td_shard *shard;
    td_shard_writer *writer;
    struct td_work *work; /* [shard->n_batches], the items of the queue */
    _Atomic int32_t
        n_left; /* micro-batches not done; the one who takes the last queues the commit */
    struct td_open_shard *next; /* in the commit list, protected by run->lock */
    bool in_use;                /* protected by run->lock */
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

typedef enum td_phase { TD_PHASE_CREATE, TD_PHASE_DESTROY, TD_PHASE_RUN, TD_PHASE_QUIT } td_phase;

#define TD_SUBMIT_GONE (-2)

typedef struct td_group {
    struct td_run_state *run;
    uint32_t id;
    const td_plan_group *plan;
    td_stage *stages;
    pthread_t thread;
    td_session *session;
    /* Progress, written by the group's thread, read by main. */
    _Atomic int64_t n_tokens, n_rows, n_samples, n_batches;
    _Atomic int64_t wait_us;
    _Atomic int64_t last_done_us; /* after the start of the run; 0: nothing was done */
    /* Of what it completed: how long it took, and by the cost model (0 = speeds unknown). */
    _Atomic int64_t observed_us, predicted_us;
    _Atomic int64_t *busy_us; /* [n_stages] of each device, told a few times a second */
    /* What is in flight, for whoever has to tell it after a device was lost: in_flight[i] is in the
     * session's slot i, and `oldest` the slot of the oldest. Written by the group's thread. A
     * work is taken out before it is done, so what is seen here is in an open shard. */
    _Atomic(struct td_work *) *in_flight; /* [limits.n_slots] */
    _Atomic int32_t oldest;
    /* For the watch on a thread that does not come back from enqueueing: odd while it is inside.
     * The thread leaves with a compare-and-swap, and the watch gives it up with one, to
     * SUBMIT_GONE: a thread that lost its work this way touches nothing any more. */
    _Atomic int64_t n_submits;
    _Atomic int64_t patience_ms; /* without a sign of life: the device hangs */
    /* Of its sessions before the present one; written by the group's thread, and what it may tell
     * is read when it has ended. busy_s is without what the first one did before the run began: a
     * share of the run's time is at most 1. */
    double busy_s[64], op_s[TD_OP_COUNT];
    _Atomic int32_t n_failures, n_reinstated;
    /* The watch's own. */
    int64_t seen_submits;
    double stuck_s;
    /* Final, protected by run->lock. */
    bool ended, retired;
    bool hung;  /* the session must not be touched any more */
    bool stuck; /* hung, and so does the thread: it cannot be joined */
    double finished_s;
    double *steady_share; /* [n_stages] see td_group_summary */
    char retired_why[256];
} td_group;

typedef struct td_run_state {
    const td_run_input *in;
    td_session_limits limits;
    td_queue *queue;
    td_claim_board *board;
    td_blame *blame; /* protected by lock */
    td_group *groups;
    int32_t n_groups;
    const char **kinds;  /* device kinds of the groups, without repetition */
    int32_t *group_kind; /* [n_groups] index into kinds */
    int32_t n_kinds;
    double start_s;
    td_timeline *timeline; /* NULL: out of memory, nothing is noted */

    _Atomic bool stop; /* claim nothing more; set on failure and by signals */
    _Atomic bool lost; /* a device was lost: leave at once, keep nothing; set with stop */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* any change of the fields below */
    td_phase phase;
    int32_t phase_serial; /* grows with each phase */
    int32_t n_acked;      /* groups that finished the phase */
    td_error phase_error; /* first failure in the phase */
    bool failed;
    td_error error;       /* first failure of the run */
    td_group *lost_group; /* where TD_E_DEVICE_LOST was met first */
    td_error lost_error;
    td_open_shard *open; /* [max_open] */
    int32_t max_open, n_open;
    td_open_shard *commit_head, *commit_tail;
    bool feeder_ended, writer_ended;
    int32_t n_groups_ended, n_retired, n_hung;

    _Atomic int64_t n_shards_written, n_shards_kept, n_bad, n_overflow_rows;
    _Atomic int64_t n_tokens_idle, n_samples_idle; /* without a target: nothing to compute */
    _Atomic int64_t n_data_shards; /* of the dataset, all workers'; -1 until its end was met */
    _Atomic int64_t n_tokens_kept, n_samples_kept; /* in shards that were finished before */
} td_run_state;

/* Records the first failure and stops the run. Any thread. */
void td_run_fail(td_run_state *run, const td_error *err);
static inline bool td_run_stopping(const td_run_state *run) {
    /* relaxed: a hint; what it protects is ordered by the lock or the queue */
    return atomic_load_explicit(&((td_run_state *)run)->stop, memory_order_relaxed);
}
static inline bool td_run_is_lost(const td_run_state *run) {
    /* acquire: a group that was last asked before the loss shows what it had in flight then */
    return atomic_load_explicit(&((td_run_state *)run)->lost, memory_order_acquire);
}
/* TD_E_DEVICE_LOST was met, on behalf of a group or (NULL) of none. Any thread. */
void td_run_lost(td_run_state *run, td_group *g, const td_error *err);
/* Marks the group retired with its reason. True when no other is left. Any thread. */
bool td_run_retire(td_run_state *run, td_group *g, bool hung, const td_error *why);
/* Drops every shard that is not committed. After all threads that could touch them ended. */
void td_run_drop_open(td_run_state *run);

/* Queues a complete shard for the writer. Any thread. */
void td_run_shard_complete(td_run_state *run, td_open_shard *o);

void *td_feeder_main(void *run);
void *td_writer_main(void *run);
void *td_group_main(void *group);

/* progress.c */
typedef struct td_progress td_progress;
td_progress *td_progress_create(td_run_state *run); /* NULL when out of memory */
/* Called often; shows what is due. state: "running", "stopping", "done", "stopped",
 * "device_lost" (the program starts anew), "failed". */
void td_progress_tick(td_progress *p, const char *state, bool final);
void td_progress_devices(const td_progress *p, td_run_summary *out); /* what sensors said */
/* False: a thread is still at the sensors, the devices must not be closed (td_health_free). */
bool td_progress_free(td_progress *p);

#endif
