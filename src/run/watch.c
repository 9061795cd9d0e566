/* watch.c - see watch.h. */
#include "run/watch.h"

#include <stdlib.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "run/sentry.h"

enum { TICK_MS = 100 };
#define LEAVE_S 2.0 /* what the threads get to leave by themselves once a device was lost */

typedef struct watched {
    int64_t told_storing; /* as td_watch.told_writing */
    int64_t seen_submits; /* td_group_signs.n_submits at the last tick */
    double stuck_s;       /* for how long it has been the same, with the thread inside */
} watched;

struct td_watch {
    td_run_state *run;
    watched *groups;       /* [run->n_groups] */
    double last_s, lost_s; /* the last tick; when the loss of a device was seen, 0: none was */
    bool told;             /* that a signal asked to stop */
    int64_t told_writing, told_reading; /* td_activity.since_us that was warned of */
};

td_watch *td_watch_create(td_run_state *run) {
    td_run_assert_main(run);
    td_watch *w = td_calloc(1, sizeof *w);
    watched *groups = td_calloc((size_t)run->n_groups, sizeof *groups);
    if (!w || !groups) {
        free(w);
        free(groups);
        return NULL;
    }
    *w = (td_watch){.run = run, .groups = groups};
    return w;
}

void td_watch_free(td_watch *w) {
    if (!w)
        return;
    free(w->groups);
    free(w);
}

/* Tells blame.c of a thread that was given up, and makes what it had ready for others: it touches
 * nothing any more, and td_queue_retire has not given it away yet. */
static void blame_stuck(td_run_state *run, td_group *g) {
    td_error err = {0};
    td_status rc = TD_OK;
    int32_t n = 0, only = 0;
    uint64_t *works = td_calloc((size_t)run->limits.n_slots, sizeof *works);
    if (!works)
        rc = td_error_nomem(&err, "the works in flight", 64);
    for (int32_t k = 0; works && k < run->limits.n_slots; k++) {
        td_work *w = atomic_exchange(&g->signs.in_flight[k], NULL);
        if (!w)
            continue;
        works[n++] = w->number;
        w->item.alone = true;
        only = atomic_exchange(&w->only, 0);
    }
    td_lock_acquire(&run->lock);
    td_blame *blame = td_verdict_blame(run->verdict);
    if (works && td_blame_standing(blame, g->id) != TD_GROUP_WORKS)
        td_blame_probed(blame, g->id, false); /* stuck in its probe */
    else if (only)
        td_blame_sample_failed(blame, g->id, TD_FAILURE_HUNG, works[0], only - 1);
    else if (works)
        rc = td_blame_failed(blame, g->id, TD_FAILURE_HUNG, works, n, &err);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
    free(works);
    atomic_fetch_add(&g->counters.n_failures, 1);
    if (rc != TD_OK)
        td_run_fail(run, &err);
}

/* Its device takes no work any more. Its work goes to the others, it is not waited for again. */
static void give_up(td_run_state *run, td_group *g, double stuck_s) {
    td_error err;
    td_error_set(&err, TD_E_DEVICE,
                 "group %u: %s has taken no more work for %.0f s: the device hangs", g->id,
                 g->stages[0].device->info.name, stuck_s);
    blame_stuck(run, g);
    td_queue_retire(run->queue, g->id);
    td_claim_board_retire(run->board, (int32_t)g->id);
    bool last = td_run_retire(run, g, true, &err);
    td_lock_acquire(&run->lock);
    td_verdict_group_stuck(run->verdict, g->id, td_time_s() - run->start_s);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
    if (last)
        td_run_fail(run, &err);
    else
        td_log_error("%s; the group is retired, the other groups do its work", err.text);
}

/* Gives up the threads that do not come back from enqueueing. dt: since the last tick. */
static void look_for_stuck(td_watch *w, double dt) {
    for (int32_t i = 0; i < w->run->n_groups; i++) {
        td_group *g = &w->run->groups[i];
        watched *seen = &w->groups[i];
        int64_t n = atomic_load(&g->signs.n_submits);
        bool inside = n % 2 != 0;
        /* A tick that took long: the whole process stood still, which is not the device's fault. */
        seen->stuck_s = inside && n == seen->seen_submits ? seen->stuck_s + TD_MIN(dt, 1.0) : 0;
        seen->seen_submits = n;
        if (inside && 1e3 * seen->stuck_s >= (double)atomic_load(&g->signs.patience_ms) &&
            atomic_compare_exchange_strong(&g->signs.n_submits, &n, TD_SUBMIT_GONE))
            give_up(w->run, g, seen->stuck_s);
    }
}

/* Names a thread that is held by a file. Nothing is given up: the call may come back, and what is
 * committed is safe in either case. */
static void look_for_held(const td_activity *a, int64_t *told, double now, const char *what) {
    const int64_t since = atomic_load(&a->since_us);
    const double s = now - 1e-6 * (double)since;
    if (since == 0 || since == *told || s < td_run_patience_s())
        return;
    *told = since;
    td_log_warn("shard %lld: %s for %.0f s now; the file system does not answer, or is very slow",
                (long long)atomic_load(&a->shard), what, s);
}

/* Sleeps for a tick, or until something changed. Has everything ended? */
static bool await_tick(td_run_state *run) {
    td_lock_acquire(&run->lock);
    if (!td_verdict_all_ended(run->verdict))
        td_lock_wait_ms(&run->lock, TICK_MS);
    bool ended = td_verdict_all_ended(run->verdict);
    td_lock_release(&run->lock);
    return ended;
}

bool td_watch_run(td_watch *w, td_progress *progress) {
    td_run_state *run = w->run;
    td_run_assert_main(run);
    td_sentry *sentry = td_sentry_start(td_run_patience_s());
    bool ended;
    w->last_s = td_time_s();
    for (;;) {
        td_sentry_tick(sentry, "it waits for the other threads");
        ended = await_tick(run);
        double now = td_time_s();
        if (td_run_stop_requested() && !w->told) {
            w->told = true;
            td_log_info(
                "stopping: what is in flight is finished and saved; press again to leave at "
                "once (a rerun continues in either case)");
            td_run_stop(run);
        }
        if (td_run_is_lost(run) && w->lost_s == 0) {
            w->lost_s = now;
            td_run_arm_watchdog();
        }
        if (ended || (w->lost_s > 0 && now - w->lost_s > LEAVE_S))
            break;
        for (int32_t i = 0; i < run->n_groups; i++)
            look_for_held(&run->groups[i].storing, &w->groups[i].told_storing, now,
                          "rows are being stored");
        look_for_held(&run->writing, &w->told_writing, now, "it is being written to disk");
        look_for_held(&run->reading, &w->told_reading, now, "its dataset rows are being read");
        if (w->lost_s == 0)
            look_for_stuck(w, now - w->last_s);
        w->last_s = now;
        td_sentry_tick(sentry, "status.json, timeline.jsonl and tdgen.log are being written");
        td_progress_tick(progress, w->told ? "stopping" : "running", false);
    }
    td_sentry_stop(sentry);
    return ended;
}
