/* group.c - a group's thread: claims micro-batches, keeps its pipeline full, stores what comes out.
 *
 * What to claim next, and when to leave the rest to faster groups, is queue.h's to say; flight.h
 * has the micro-batches in flight, recover.h what is done when a device fails. Only this thread
 * touches the session.
 *
 * A micro-batch that is `alone` (a suspect, see run.h and blame.h) is submitted when nothing is in
 * flight, and nothing follows before it is done.
 */
#include "run/flight.h"
#include "run/recover.h"

#include <time.h>
#include "base/clock.h"
#include "base/memory.h"

#define BUSY_EVERY_S 0.25

/* For status.json: only the group's thread may ask the session. With the sessions before it. */
static void tell_busy(td_loop *l) {
    td_group *g = l->g;
    for (int32_t i = 0; i < g->plan->n_stages; i++) {
        double before = i < (int32_t)TD_ARRAY_LEN(g->own.busy_s) ? g->own.busy_s[i] : 0;
        double s = before + td_session_stage_busy_s(g->own.session, i);
        atomic_store(&g->counters.busy_us[i], (int64_t)(1e6 * s));
    }
}

/* The oldest micro-batch is done. The pipeline was full then if every stage could have had one, and
 * one stood ready for the first. */
static void note_done(td_loop *l, double now) {
    td_group *g = l->g;
    atomic_store(&g->counters.last_done_us, (int64_t)(1e6 * (now - g->run->start_s)));
    if (now - l->busy_told_s >= BUSY_EVERY_S) {
        l->busy_told_s = now;
        tell_busy(l);
    }
    if (l->n_in_flight <= g->plan->n_stages)
        return;
    bool first = l->full_since_s <= 0;
    *(first ? &l->full_since_s : &l->full_until_s) = now;
    for (int32_t i = 0; i < g->plan->n_stages; i++)
        (first ? l->busy_since : l->busy_until)[i] = td_session_stage_busy_s(g->own.session, i);
}

/* Share of the time in which each stage computed while the pipeline was full; -1: not known. */
static void steady_shares(const td_loop *l, double share[TD_VERDICT_STAGES]) {
    double dt = l->full_until_s - l->full_since_s;
    for (int32_t i = 0; i < TD_MIN(l->g->plan->n_stages, (int32_t)TD_VERDICT_STAGES); i++)
        share[i] = l->full_until_s > 0 && dt > 0 ? (l->busy_until[i] - l->busy_since[i]) / dt : -1;
}

static td_status complete_oldest(td_loop *l, bool *device_failed, bool *hung, td_error *err) {
    td_flight *f = &l->slots[l->head];
    td_captured cap;
    bool got;
    td_status rc = td_flight_wait(l, &cap, &got, hung, err);
    *device_failed = rc != TD_OK;
    if (rc != TD_OK)
        return rc;
    if (!got)
        return TD_OK;
    td_work *w = f->claim.item;
    td_activity_begin(&l->g->storing, w->open->shard->number, td_time_s());
    rc = td_flight_store(l, f, &cap, err);
    td_activity_end(&l->g->storing);
    if (rc != TD_OK)
        return rc;
    const double now = td_time_s();
    note_done(l, now);
    atomic_store(&l->g->signs.in_flight[l->head], NULL);
    l->head = (l->head + 1) % l->n_slots;
    atomic_store(&l->g->signs.oldest, l->head);
    l->n_in_flight--;
    td_claimer_completed(&l->claimer, now, &f->item, f->predicted_s);
    atomic_store(&l->g->counters.observed_us, (int64_t)(1e6 * l->claimer.total_s));
    atomic_store(&l->g->counters.predicted_us, (int64_t)(1e6 * l->claimer.total_predicted_s));
    return TD_OK;
}

static void wait_for_work(td_loop *l) {
    double t0 = td_time_s();
    struct timespec ts = {.tv_nsec = (long)(1e9 * td_claimer_nap_s(&l->claimer))};
    nanosleep(&ts, NULL);
    atomic_fetch_add(&l->g->counters.wait_us, (int64_t)(1e6 * (td_time_s() - t0)));
}

static void work_loop(td_loop *l) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    td_error err = {0};
    while (!td_queue_finished(run->queue) && !td_run_is_lost(run)) {
        td_claim claim;
        bool device_failed = true, hung = false, split = false;
        td_status rc = TD_OK;
        while (rc == TD_OK && !l->gone && !split && l->n_in_flight < l->n_slots &&
               !td_run_stopping(run) && td_claimer_next(&l->claimer, td_time_s(), &claim)) {
            td_flight *f = td_flight_begin(l, &claim);
            split =
                td_recover_care(l, &claim) == TD_CARE_SPLIT; /* then nothing else is in flight */
            if (!split)
                rc = td_flight_submit(l, f, &err);
        }
        if (l->gone)
            return;
        if (split) {
            if (!td_recover_split(l))
                return;
            continue;
        }
        if (rc == TD_OK) {
            if (l->n_in_flight > 0)
                rc = complete_oldest(l, &device_failed, &hung, &err);
            else if (td_run_stopping(run))
                return;
            else
                wait_for_work(l);
        }
        if (rc == TD_OK)
            continue;
        if (!device_failed || !td_recover_failed(l, hung, &err)) {
            if (!device_failed)
                td_run_fail(run, &err);
            return;
        }
    }
}

static void acknowledge(td_run_state *run, const td_error *err) {
    td_lock_acquire(&run->lock);
    td_verdict_acknowledge(run->verdict, err);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
}

static td_phase next_phase(td_run_state *run, int32_t *serial) {
    td_lock_acquire(&run->lock);
    td_phase phase = td_verdict_next_phase(run->verdict, serial);
    td_lock_release(&run->lock);
    return phase;
}

static void say_ended(const td_loop *l) {
    td_run_state *run = l->g->run;
    double share[TD_VERDICT_STAGES];
    steady_shares(l, share);
    td_lock_acquire(&run->lock);
    td_verdict_group_ended(run->verdict, l->g->id, td_time_s() - run->start_s, share,
                           l->g->plan->n_stages);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
}

/* TD_PHASE_RUN, to the end of the data, of the run or of this group. */
static void do_run(td_loop *l) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    td_error err = {0};
    if (td_run_group_verdict(run, g).retired) /* its session could not be made */
        return;
    if (td_flight_make_slots(l, &err) != TD_OK) {
        td_run_fail(run, &err);
        return;
    }
    td_claimer_setup in =
        td_claimer_setup_of(run->in->plan, (int32_t)g->id, l->n_slots, run->board, run->queue);
    td_claimer_init(&l->claimer, &in);
    for (int32_t i = 0; i < TD_MIN(g->plan->n_stages, (int32_t)TD_ARRAY_LEN(g->own.busy_s)); i++)
        g->own.busy_s[i] = -td_session_stage_busy_s(g->own.session, i);
    work_loop(l);
    /* The last of it; a device that is lost, hangs or failed is not asked again. */
    if (!l->gone && !td_run_group_verdict(run, g).retired && !td_run_is_lost(run))
        tell_busy(l);
}

/* The group's devices are driven from this thread alone, session creation included. */
void *td_group_main(void *arg) {
    td_group *g = arg;
    td_run_state *run = g->run;
    int32_t serial = 0;
    td_loop l = {.g = g};
    g->own.self = pthread_self();
    for (td_phase phase; (phase = next_phase(run, &serial)) != TD_PHASE_QUIT;) {
        td_error err = {0};
        td_status rc = TD_OK;
        if (phase == TD_PHASE_RUN) {
            do_run(&l);
            say_ended(&l);
            continue;
        }
        if (phase == TD_PHASE_CREATE) {
            rc = td_recover_create(g, &err);
        } else {
            td_session_destroy(g->own.session);
            g->own.session = NULL;
        }
        acknowledge(run, rc == TD_OK ? NULL : &err);
    }
    if (td_run_group_verdict(run, g).hung) /* never to be seen again, with all it may write to */
        return NULL;
    td_flight_free_slots(&l);
    td_session_destroy(g->own.session);
    g->own.session = NULL;
    return NULL;
}
