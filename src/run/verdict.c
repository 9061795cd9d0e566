/* verdict.c - see verdict.h. */
#include "run/verdict.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"

struct td_verdict {
    td_lock *lock;
    /* Written under the lock, read by anybody. */
    _Atomic bool stop, lost;
    /* The rest: protected by the lock. */
    td_blame *blame;
    td_group_verdict *groups; /* [n_groups] */
    int32_t n_groups;
    td_phase phase;
    int32_t phase_serial; /* grows with each phase */
    int32_t n_acked;      /* groups that finished the phase */
    td_error phase_error; /* first failure in the phase */
    bool failed;
    td_error error;     /* first failure of the run */
    int32_t lost_group; /* where TD_E_DEVICE_LOST was met first, -1: on behalf of none */
    td_error lost_error;
    bool feeder_ended, writer_ended;
    int32_t n_groups_ended, n_retired, n_hung;
};

td_verdict *td_verdict_create(td_lock *lock, int32_t n_groups) {
    td_verdict *v = td_calloc(1, sizeof *v);
    if (!v)
        return NULL;
    v->lock = lock;
    v->n_groups = n_groups;
    v->lost_group = -1;
    v->groups = td_calloc((size_t)n_groups, sizeof *v->groups);
    v->blame = td_blame_create((uint32_t)n_groups);
    if (!v->groups || !v->blame) {
        td_verdict_destroy(v);
        return NULL;
    }
    return v;
}

void td_verdict_destroy(td_verdict *v) {
    if (!v)
        return;
    td_blame_destroy(v->blame);
    free(v->groups);
    free(v);
}

bool td_verdict_stopping(const td_verdict *v) {
    /* relaxed: a hint; what it protects is ordered by the lock or the queue */
    return atomic_load_explicit(&((td_verdict *)v)->stop, memory_order_relaxed);
}

bool td_verdict_is_lost(const td_verdict *v) {
    /* acquire: a group that was last asked before the loss shows what it had in flight then */
    return atomic_load_explicit(&((td_verdict *)v)->lost, memory_order_acquire);
}

/* --- failure ---------------------------------------------------------------------------------- */

void td_verdict_stop(td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    atomic_store(&v->stop, true);
}

void td_verdict_fail(td_verdict *v, const td_error *err) {
    TD_ASSERT_HELD(v->lock);
    if (!v->failed) {
        v->failed = true;
        v->error = *err;
    }
    atomic_store(&v->stop, true);
}

const td_error *td_verdict_failure(const td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    return v->failed ? &v->error : NULL;
}

void td_verdict_lose(td_verdict *v, int32_t group, const td_error *err) {
    TD_ASSERT_HELD(v->lock);
    v->lost_group = group;
    v->lost_error = *err;
    atomic_store_explicit(&v->lost, true, memory_order_release);
}

int32_t td_verdict_lost_group(const td_verdict *v, td_error *err) {
    TD_ASSERT_HELD(v->lock);
    if (err)
        *err = v->lost_error;
    return v->lost_group;
}

bool td_verdict_retire(td_verdict *v, uint32_t group, bool hung, const td_error *why) {
    TD_ASSERT_HELD(v->lock);
    td_group_verdict *g = &v->groups[group];
    assert(!g->retired);
    g->retired = true;
    g->hung = hung;
    v->n_retired++;
    v->n_hung += hung;
    snprintf(g->retired_why, sizeof g->retired_why, "%.*s", (int)sizeof g->retired_why - 1,
             why->text);
    return v->n_retired == v->n_groups;
}

td_blame *td_verdict_blame(td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    return v->blame;
}

/* --- phases ----------------------------------------------------------------------------------- */

void td_verdict_announce(td_verdict *v, td_phase phase) {
    TD_ASSERT_HELD(v->lock);
    v->phase = phase;
    v->phase_serial++;
    v->n_acked = 0;
    v->phase_error = (td_error){0};
}

const td_error *td_verdict_await(td_verdict *v, int32_t n) {
    TD_ASSERT_HELD(v->lock);
    while (v->n_acked < n)
        td_lock_wait(v->lock);
    return v->phase_error.code != TD_OK ? &v->phase_error : NULL;
}

td_phase td_verdict_next_phase(td_verdict *v, int32_t *serial) {
    TD_ASSERT_HELD(v->lock);
    while (v->phase_serial == *serial)
        td_lock_wait(v->lock);
    *serial = v->phase_serial;
    return v->phase;
}

void td_verdict_acknowledge(td_verdict *v, const td_error *err) {
    TD_ASSERT_HELD(v->lock);
    v->n_acked++;
    if (err && v->phase_error.code == TD_OK)
        v->phase_error = *err;
}

/* --- who has ended ---------------------------------------------------------------------------- */

const td_group_verdict *td_verdict_group(const td_verdict *v, uint32_t group) {
    TD_ASSERT_HELD(v->lock);
    return &v->groups[group];
}

static void end_group(td_verdict *v, td_group_verdict *g, double finished_s) {
    if (!g->ended)
        v->n_groups_ended++;
    g->ended = true;
    g->finished_s = finished_s;
}

void td_verdict_group_ended(td_verdict *v, uint32_t group, double finished_s,
                            const double *steady_share, int32_t n) {
    TD_ASSERT_HELD(v->lock);
    td_group_verdict *g = &v->groups[group];
    end_group(v, g, finished_s);
    if (steady_share)
        memcpy(g->steady_share, steady_share,
               (size_t)TD_MIN(n, (int32_t)TD_VERDICT_STAGES) * sizeof *steady_share);
}

void td_verdict_group_stuck(td_verdict *v, uint32_t group, double finished_s) {
    TD_ASSERT_HELD(v->lock);
    td_group_verdict *g = &v->groups[group];
    assert(g->hung);
    g->stuck = true;
    end_group(v, g, finished_s);
}

void td_verdict_feeder_ended(td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    v->feeder_ended = true;
}

void td_verdict_writer_ended(td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    v->writer_ended = true;
}

bool td_verdict_feeder_has_ended(const td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    return v->feeder_ended;
}

bool td_verdict_groups_have_ended(const td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    return v->n_groups_ended == v->n_groups;
}

bool td_verdict_all_ended(const td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    return v->feeder_ended && v->writer_ended && v->n_groups_ended == v->n_groups;
}

int32_t td_verdict_n_retired(const td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    return v->n_retired;
}

int32_t td_verdict_n_hung(const td_verdict *v) {
    TD_ASSERT_HELD(v->lock);
    return v->n_hung;
}
