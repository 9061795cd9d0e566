/* recover.c - what a group's thread does when its device fails: tells blame.c, gives its work back,
 * waits for the verdict, makes a new session and probes it, computes a work sample by sample.
 *
 * Who may write a sample: a work that is split is written while it is CLAIMED, sample by sample,
 * and begins to commit when all of it is there. Nobody takes it from the claimer meanwhile: the
 * thread itself gives it back only between two samples, and the watch (watch.c) takes it only while
 * the thread is between td_group_enter and td_group_leave, where it writes nothing; the thread then
 * fails to leave and touches nothing any more. So no two threads ever write the same sample, and
 * what is done is remembered (blame.c) under run->lock, which the next claimer takes, too.
 */
#include "run/recover.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/log.h"
#include "base/clock.h"
#include "base/memory.h"

#define PROBE_PATIENCE 10.0 /* times the usual: it makes a session, too */
enum { PROBE_TOKENS = 8 };

static bool is_device_failure(td_status rc) {
    return rc == TD_E_DEVICE || rc == TD_E_DEVICE_OOM;
}

static td_failure kind_of(bool hung, td_status rc) {
    return hung ? TD_FAILURE_HUNG : rc == TD_E_DEVICE_OOM ? TD_FAILURE_OOM : TD_FAILURE_DEVICE;
}

/* Everything goes back to the queue, and nothing more is claimed. */
static void give_back(td_loop *l) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    for (int32_t i = 0; i < l->n_slots; i++)
        atomic_store(&g->signs.in_flight[i], NULL); /* soon somebody else's */
    for (int32_t i = 0; i < l->n_in_flight; i++) {
        const td_claim *c = &l->slots[(l->head + i) % l->n_slots].claim;
        td_work *w = c->item;
        /* Before it is given back: then it is somebody else's, and soon nobody's. */
        w->item.alone = true;
        atomic_store(&w->only, 0);
        td_queue_fail(run->queue, g->id, c->number);
    }
    l->n_in_flight = 0;
    td_claimer_release_held(&l->claimer, td_time_s());
    td_queue_retire(run->queue, g->id);
    td_claim_board_retire(run->board, (int32_t)g->id);
}

static void join_again(td_loop *l) {
    td_claimer before = l->claimer, *c = &l->claimer;
    td_queue_reinstate(l->g->run->queue, l->g->id);
    td_claimer_init(c, &before.in);
    c->seen_kflop = before.seen_kflop;
    c->seen_s = before.seen_s;
    c->seen_predicted_s = before.seen_predicted_s;
    c->n_seen = before.n_seen;
    c->total_s = before.total_s;
    c->total_predicted_s = before.total_predicted_s;
}

/* told: why it failed is in the log already. */
static void out_for_good(td_loop *l, bool hung, bool told, const td_error *why) {
    td_run_state *run = l->g->run;
    td_error e = *why;
    td_error_prefix(&e, "group %u", l->g->id);
    if (td_run_retire(run, l->g, hung, &e))
        td_run_fail(run, &e);
    else if (told)
        td_log_error("group %u: its work succeeded elsewhere, so its device is to blame; the group "
                     "is retired, the other groups do its work",
                     l->g->id);
    else
        td_log_error("%s; the group is retired, the other groups do its work", e.text);
}

/* --- probe ------------------------------------------------------------------------------------ */

/* What the session measured would be lost with it. */
static void keep_times(td_loop *l) {
    td_group *g = l->g;
    for (int32_t i = 0; i < TD_MIN(g->plan->n_stages, (int32_t)TD_ARRAY_LEN(g->own.busy_s)); i++)
        g->own.busy_s[i] += td_session_stage_busy_s(g->own.session, i);
    td_session_profile(g->own.session, g->own.op_s);
    l->full_since_s = l->full_until_s = 0; /* the steady shares are those of the last session */
}

/* A new session, and a few tokens through all of its stages. */
static td_status probe(td_loop *l, bool *hung, td_error *err) {
    td_group *g = l->g;
    const td_run_state *run = g->run;
    const td_session_limits *lim = &run->limits;
    static const int32_t ids[PROBE_TOKENS]; /* id 0 is in every vocabulary */
    const int32_t n = TD_MIN((int32_t)PROBE_TOKENS, lim->max_tokens);
    const int32_t offsets[2] = {0, n}, last = n - 1, target = 0;
    const int64_t zero = 0;
    const td_batch batch = {.n_tokens = n,
                            .n_seqs = 1,
                            .n_rows = TD_MIN(1, lim->max_rows),
                            .ids = ids,
                            .seq_offsets = offsets,
                            .row_token = &last,
                            .row_target = &target,
                            .row_dataset_row = &zero,
                            .row_position = &zero};
    const double patience = PROBE_PATIENCE * td_run_patience_s();
    atomic_store(&g->signs.patience_ms, (int64_t)(1e3 * patience));
    int64_t ticket = td_group_enter(g);
    if (g->own.session)
        keep_times(l);
    td_session_destroy(g->own.session);
    g->own.session = NULL;
    td_status rc = td_session_create(run->in->weights, g->stages, g->plan->n_stages, lim,
                                     &run->in->plan->capture, &g->own.session, err);
    if (rc == TD_OK)
        rc = td_session_submit(g->own.session, 0, &batch, err);
    l->gone = !td_group_leave(g, ticket);
    for (double waited = 0; rc == TD_OK && !l->gone && !td_run_is_lost(run);) {
        td_captured cap;
        double t0 = td_time_s();
        rc = td_session_wait(g->own.session, 0, 0.5, &cap, err);
        double dt = td_time_s() - t0;
        if (rc != TD_E_DEVICE || dt < 0.45)
            break;
        waited += TD_MIN(dt, 1.0);
        *hung = waited >= patience;
        rc = *hung ? rc : TD_OK; /* td_session_wait: no failure of the session */
    }
    return rc;
}

/* PROBES: true, and the group works again; or false, and the thread is to leave its loop. */
static bool try_again(td_loop *l) {
    td_run_state *run = l->g->run;
    bool hung = false;
    td_error err = {0};
    td_status rc = probe(l, &hung, &err);
    if (l->gone)
        return false;
    if (rc == TD_E_DEVICE_LOST)
        td_run_lost(run, l->g, &err);
    if (td_run_is_lost(run))
        return false;
    td_lock_acquire(&run->lock);
    td_blame_probed(td_verdict_blame(run->verdict), l->g->id, rc == TD_OK);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
    if (rc == TD_OK) {
        atomic_fetch_add(&l->g->counters.n_reinstated, 1);
        td_log_info("group %u: a new session on its devices works, the group goes on", l->g->id);
        return true;
    }
    give_back(l);
    td_error_prefix(&err, "it failed, and so did a new session on it");
    out_for_good(l, hung, false, &err);
    return false;
}

td_status td_recover_create(td_group *g, td_error *err) {
    td_run_state *run = g->run;
    if (td_run_group_verdict(run, g).retired) /* when it was tried with larger micro-batches */
        return TD_OK;
    td_status rc = td_session_create(run->in->weights, g->stages, g->plan->n_stages, &run->limits,
                                     &run->in->plan->capture, &g->own.session, err);
    if (rc == TD_OK)
        return TD_OK;
    td_error_prefix(err, "group %u", g->id);
    if (rc != TD_E_DEVICE)
        return rc;
    td_lock_acquire(&run->lock);
    td_blame_probed(td_verdict_blame(run->verdict), g->id, false);
    td_lock_release(&run->lock);
    td_queue_retire(run->queue, g->id);
    td_claim_board_retire(run->board, (int32_t)g->id);
    if (td_run_retire(run, g, false, err))
        return rc;
    td_log_error("%s; the group is retired, the other groups do its work", err->text);
    return TD_OK;
}

/* --- verdict ---------------------------------------------------------------------------------- */

td_care td_recover_care(td_loop *l, const td_claim *claim) {
    if (claim->tries == 0)
        return TD_CARE_NONE;
    td_run_state *run = l->g->run;
    td_lock_acquire(&run->lock);
    td_care care = td_blame_care(td_verdict_blame(run->verdict), claim->number);
    td_lock_release(&run->lock);
    return care;
}

static bool await_verdict(td_loop *l, bool hung, const td_error *why) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    bool waited = false;
    for (double t0 = td_time_s();; waited = true) {
        bool others = false;
        td_lock_acquire(&run->lock);
        td_standing standing = td_blame_standing(td_verdict_blame(run->verdict), g->id);
        for (uint32_t i = 0; i < (uint32_t)run->n_groups; i++)
            others = others || td_blame_standing(td_verdict_blame(run->verdict), i) != TD_GROUP_OUT;
        td_lock_release(&run->lock);
        if (standing == TD_GROUP_OUT) {
            out_for_good(l, hung, waited && others, why);
            return false;
        }
        if (td_queue_finished(run->queue) || td_run_stopping(run))
            return false;
        if (standing == TD_GROUP_PROBES) {
            if (!try_again(l))
                return false;
            join_again(l);
            return true;
        }
        struct timespec ts = {.tv_nsec = 2000000};
        nanosleep(&ts, NULL);
        double now = td_time_s();
        atomic_fetch_add(&g->counters.wait_us, (int64_t)(1e6 * (now - t0)));
        t0 = now;
    }
}

/* What is no group's failure: true, and it is dealt with. */
static bool ends_the_run(td_loop *l, const td_error *why) {
    td_run_state *run = l->g->run;
    if (why->code == TD_E_DEVICE_LOST)
        td_run_lost(run, l->g, why);
    else if (td_run_is_lost(run))
        return true; /* whatever it is, it came of that */
    else if (is_device_failure(why->code))
        return false;
    else
        td_run_fail(run, why);
    return true;
}

static void warn_of_memory(const td_run_state *run) {
    td_log_warn("a micro-batch is too large for the memory of the device: its samples are computed "
                "one by one; set run.batch_tokens to less than %d to avoid that",
                run->limits.max_tokens);
}

bool td_recover_failed(td_loop *l, bool hung, const td_error *why) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    if (ends_the_run(l, why))
        return false;
    td_error err = {0};
    const int32_t n = l->n_in_flight;
    const bool oom = why->code == TD_E_DEVICE_OOM;
    uint64_t *works = td_calloc((size_t)TD_MAX(n, 1), sizeof *works);
    if (!works) {
        td_error_nomem(&err, "the works that failed", (size_t)n * sizeof *works);
        td_run_fail(run, &err);
        return false;
    }
    for (int32_t i = 0; i < n; i++)
        works[i] = l->slots[(l->head + i) % l->n_slots].claim.number;
    td_lock_acquire(&run->lock);
    td_status rc = td_blame_failed(td_verdict_blame(run->verdict), g->id, kind_of(hung, why->code),
                                   works, n, &err);
    td_standing standing = td_blame_standing(td_verdict_blame(run->verdict), g->id);
    td_care care = n == 1 ? td_blame_care(td_verdict_blame(run->verdict), works[0]) : TD_CARE_NONE;
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
    free(works);
    if (rc != TD_OK) {
        td_run_fail(run, &err);
        return false;
    }
    l->failed = true;
    if (oom)
        warn_of_memory(run);
    else
        atomic_fetch_add(&g->counters.n_failures, 1);
    /* It was alone, and is to blame: its samples show, and this group can go on with it. */
    if (standing == TD_GROUP_PROBES && care == TD_CARE_SPLIT) {
        td_log_warn("group %u: %s; %sits samples are computed one by one", g->id, why->text,
                    oom ? "" : "it failed before, so ");
        return try_again(l) && td_recover_split(l);
    }
    if (standing != TD_GROUP_OUT)
        td_log_warn("group %u: %s; what it had goes back, to be computed alone", g->id, why->text);
    give_back(l);
    return await_verdict(l, hung, why);
}

/* --- sample by sample ------------------------------------------------------------------------- */

static td_status leave_out(td_loop *l, const td_flight *f, int32_t i, td_failure kind,
                           td_error *err) {
    td_run_state *run = l->g->run;
    const td_work *w = f->claim.item;
    const td_shard *sh = w->open->shard;
    const td_sample *s = &sh->samples[sh->batches[w->batch].samples[i]];
    const char *what = kind == TD_FAILURE_OOM    ? "does not fit the device's memory"
                       : kind == TD_FAILURE_HUNG ? "makes devices hang"
                                                 : "makes devices fail";
    if (run->in->cfg->run.on_bad_sample == TD_BAD_FAIL)
        return td_error_set(err, kind == TD_FAILURE_OOM ? TD_E_DEVICE_OOM : TD_E_MODEL,
                            "dataset row %lld (the sample of %d tokens from its token %lld on) %s, "
                            "also when it is computed alone; the sample is to blame and not the "
                            "device: set run.on_bad_sample = skip to leave it out%s",
                            (long long)s->row, s->n_tokens, (long long)s->start, what,
                            kind == TD_FAILURE_OOM ? ", or lower data.max_length" : "");
    td_log_warn("dataset row %lld: the sample %s, it is skipped", (long long)s->row, what);
    atomic_fetch_add(&run->counters.n_bad, 1);
    return td_shard_writer_skip(w->open->writer, sh->batches[w->batch].samples[i], err);
}

/* One sample. True: go on. False: leave the loop, all is told. */
static bool try_sample(td_loop *l, td_flight *f, int32_t i) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    td_work *w = f->claim.item;
    td_error err = {0};
    td_captured cap;
    bool got = false, hung = false;
    atomic_store(&w->only, i + 1);
    td_status rc = td_flight_submit(l, f, &err);
    if (l->gone)
        return false;
    if (rc == TD_OK)
        rc = td_flight_wait(l, &cap, &got, &hung, &err);
    if (rc == TD_OK) {
        if (!got || td_run_is_lost(run))
            return false;
        rc = td_flight_record(l, f, i, &cap, 0, 0, &err);
        if (rc != TD_OK) {
            td_run_fail(run, &err);
            return false;
        }
        td_lock_acquire(&run->lock);
        td_blame_sample_done(td_verdict_blame(run->verdict), g->id, f->claim.number, i);
        td_lock_release(&run->lock);
        l->failed = false;
        return true;
    }
    if (ends_the_run(l, &err))
        return false;
    td_lock_acquire(&run->lock);
    td_blame_sample_failed(td_verdict_blame(run->verdict), g->id, kind_of(hung, rc),
                           f->claim.number, i);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
    l->failed = true;
    if (rc != TD_E_DEVICE_OOM)
        atomic_fetch_add(&g->counters.n_failures, 1);
    if (hung) {
        give_back(l);
        out_for_good(l, true, false, &err);
        return false;
    }
    td_log_warn("group %u: %s", g->id, err.text);
    return try_again(l);
}

bool td_recover_split(td_loop *l) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    td_flight *f = &l->slots[l->head];
    td_work *w = f->claim.item;
    const int32_t n = w->open->shard->batches[w->batch].n_samples;
    td_error err = {0};
    bool good = false;
    td_lock_acquire(&run->lock);
    td_status rc = td_blame_split(td_verdict_blame(run->verdict), f->claim.number, n, &err);
    td_lock_release(&run->lock);
    while (rc == TD_OK) {
        td_lock_acquire(&run->lock);
        int32_t i = td_blame_next_sample(td_verdict_blame(run->verdict), f->claim.number);
        if (i < 0)
            good = td_blame_judge(td_verdict_blame(run->verdict), g->id, f->claim.number);
        td_lock_notify(&run->lock);
        td_lock_release(&run->lock);
        if (i < 0)
            break;
        if (td_run_stopping(run)) { /* its shard will not be complete */
            give_back(l);
            return false;
        }
        if (!try_sample(l, f, i))
            return false;
    }
    if (rc == TD_OK && !good) {
        char label[128];
        td_group_devices(g, label, sizeof label);
        td_error_set(&err, TD_E_DEVICE,
                     "%s: samples failed one after the other, each alone, and nothing else "
                     "succeeded in between: the device is to blame and not the samples",
                     label);
        give_back(l);
        out_for_good(l, false, false, &err);
        return false;
    }
    for (int32_t i = 0; rc == TD_OK && i < n; i++) {
        td_failure kind;
        td_lock_acquire(&run->lock);
        bool blamed = td_blame_is_blamed(td_verdict_blame(run->verdict), f->claim.number, i, &kind);
        td_lock_release(&run->lock);
        if (blamed)
            rc = leave_out(l, f, i, kind, &err);
    }
    if (rc == TD_OK && !td_queue_begin_commit(run->queue, g->id, f->claim.number))
        rc = td_error_set(&err, TD_E_INTERNAL, "group %u lost a work that it was computing", g->id);
    if (rc != TD_OK) {
        td_run_fail(run, &err);
        return false;
    }
    atomic_store(&w->only, 0);
    /* A work that was split failed before, also when it was not given back in between, so blame.c
     * is to hear that it is done: or it would speak against this group for ever. */
    l->failed = true;
    td_flight_done(l, f);
    l->head = (l->head + 1) % l->n_slots;
    atomic_store(&g->signs.oldest, l->head);
    l->n_in_flight--;
    /* Its time says nothing of the group's speed. */
    double now = td_time_s();
    l->claimer.since_s = now;
    td_claimer_completed(&l->claimer, now, &f->item, 0);
    return true;
}
