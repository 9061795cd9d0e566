/* run.c - the life of a run: sessions on every group (with smaller micro-batches when memory is
 * short), then feeder, groups and writer until the data ends, a failure, or a signal, and what is
 * said of it at the end. See run.h for the threads, state.h for what they share.
 */
#include "run/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "run/progress.h"
#include "run/state.h"
#include "run/watch.h"
#include "base/log.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { QUEUE_CAPACITY = 1 << 14 };
#define OPEN_MEMORY_SHARE (1.0 / 16) /* of the machine's, for shards that are open */

/* Runs that could not be taken apart, for leak checkers: they are not lost, they are left. Nobody
 * reads it, so without volatile no compiler would write it. */
static td_run_state *volatile g_abandoned;

/* --- set-up ----------------------------------------------------------------------------------- */

/* The device kind of a group: that of its stages, joined when they differ. */
static td_status find_kinds(td_run_state *run, td_error *err) {
    run->kinds = td_calloc((size_t)run->n_groups, sizeof *run->kinds);
    run->group_kind = td_calloc((size_t)run->n_groups, sizeof *run->group_kind);
    if (!run->kinds || !run->group_kind)
        return td_error_nomem(err, "the device kinds", (size_t)run->n_groups * 16);
    for (int32_t g = 0; g < run->n_groups; g++) {
        td_strbuf b = {0};
        for (int32_t i = 0; i < run->groups[g].plan->n_stages; i++) {
            const char *kind = run->groups[g].stages[i].device->info.kind;
            if (b.len == 0)
                td_strbuf_puts(&b, kind);
            else if (!strstr(b.data, kind))
                td_strbuf_printf(&b, " + %s", kind);
        }
        if (b.oom) {
            td_strbuf_free(&b);
            return td_error_nomem(err, "the device kinds", b.len);
        }
        int32_t k = 0;
        while (k < run->n_kinds && strcmp(run->kinds[k], b.data) != 0)
            k++;
        if (k == run->n_kinds)
            run->kinds[run->n_kinds++] = b.data;
        else
            td_strbuf_free(&b);
        run->group_kind[g] = k;
    }
    return TD_OK;
}

static td_status make_groups(td_run_state *run, td_error *err) {
    const td_plan *plan = run->in->plan;
    run->groups = td_calloc((size_t)plan->n_groups, sizeof *run->groups);
    if (!run->groups)
        return td_error_nomem(err, "the groups", (size_t)plan->n_groups * sizeof *run->groups);
    run->n_groups = plan->n_groups;
    for (int32_t g = 0; g < run->n_groups; g++) {
        td_group *grp = &run->groups[g];
        grp->run = run;
        grp->id = (uint32_t)g;
        grp->plan = &plan->groups[g];
        grp->stages = td_calloc((size_t)grp->plan->n_stages, sizeof *grp->stages);
        grp->signs.in_flight = td_calloc((size_t)run->limits.n_slots, sizeof *grp->signs.in_flight);
        grp->counters.busy_us =
            td_calloc((size_t)grp->plan->n_stages, sizeof *grp->counters.busy_us);
        if (!grp->stages || !grp->signs.in_flight || !grp->counters.busy_us)
            return td_error_nomem(err, "the stages", (size_t)grp->plan->n_stages * 16);
        td_plan_stages(grp->plan, run->in->devices, grp->stages);
    }
    return find_kinds(run, err);
}

static void free_state(td_run_state *run) {
    for (int32_t k = 0; k < run->n_kinds; k++)
        free((char *)run->kinds[k]);
    free(run->kinds);
    free(run->group_kind);
    for (int32_t g = 0; run->groups && g < run->n_groups; g++) {
        free(run->groups[g].stages);
        free(run->groups[g].signs.in_flight);
        free(run->groups[g].counters.busy_us);
    }
    free(run->groups);
    td_open_shards_destroy(run->open);
    td_timeline_free(run->timeline);
    td_queue_destroy(run->queue);
    td_claim_board_destroy(run->board);
    td_verdict_destroy(run->verdict);
    td_lock_destroy(&run->lock);
    free(run);
}

/* --- phases of the group threads -------------------------------------------------------------- */

static void announce(td_run_state *run, td_phase phase) {
    td_lock_acquire(&run->lock);
    td_verdict_announce(run->verdict, phase);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
}

static td_status await_groups(td_run_state *run, int32_t n_threads, td_error *err) {
    td_lock_acquire(&run->lock);
    const td_error *failed = td_verdict_await(run->verdict, n_threads);
    td_status rc = failed ? failed->code : TD_OK;
    if (failed && err)
        *err = *failed;
    td_lock_release(&run->lock);
    return rc;
}

/* Sessions on all groups. Short memory is not fatal: the micro-batch is halved, down to the longest
 * sample that can come. */
static td_status create_sessions(td_run_state *run, td_error *err) {
    const td_plan *plan = run->in->plan;
    int32_t longest = plan->stats.estimated || plan->stats.max_tokens <= 0
                          ? run->in->cfg->data.max_length
                          : TD_MIN(plan->stats.max_tokens, run->in->cfg->data.max_length);
    for (;;) {
        announce(run, TD_PHASE_CREATE);
        td_status rc = await_groups(run, run->n_groups, err);
        if (rc != TD_E_DEVICE_OOM)
            return rc;
        announce(run, TD_PHASE_DESTROY);
        await_groups(run, run->n_groups, NULL);
        if (run->limits.max_tokens <= longest) {
            td_error_prefix(err,
                            "micro-batches of %d tokens, the longest sample, do not fit: lower "
                            "data.max_length or give a model more devices",
                            longest);
            return rc;
        }
        int32_t n = TD_MAX(run->limits.max_tokens / 2, longest);
        td_log_warn("%s", err->text);
        td_log_warn("trying again with micro-batches of %d tokens; set run.batch_tokens = %d to "
                    "start with that",
                    n, n);
        run->limits.max_tokens = n;
        run->limits.max_seqs = TD_MIN(run->limits.max_seqs, n);
        run->limits.max_rows = TD_MIN(run->limits.max_rows, n);
        td_source_set_batch_tokens(run->in->source, n);
    }
}

/* --- after the loss of a device --------------------------------------------------------------- */

/* Adds the samples that the group has in flight, oldest micro-batch first. */
static td_status add_in_flight(const td_run_state *run, td_group *g, td_fault *f, size_t *cap,
                               td_error *err) {
    int32_t n_slots = run->limits.n_slots, oldest = atomic_load(&g->signs.oldest);
    for (int32_t i = 0; i < n_slots; i++) {
        const td_work *w = atomic_load(&g->signs.in_flight[(oldest + i) % n_slots]);
        if (!w)
            continue;
        const td_shard *sh = w->open->shard;
        const td_micro_batch *mb = &sh->batches[w->batch];
        const int32_t only = atomic_load(&w->only); /* of a work that is split */
        const int32_t begin = only ? only - 1 : 0, end = only ? only : mb->n_samples;
        size_t n = (size_t)f->n_samples, need = n + (size_t)(end - begin);
        if (!td_grow((void **)&f->samples, cap, need, sizeof *f->samples))
            return td_error_nomem(err, "the samples in flight", need * sizeof *f->samples);
        for (int32_t k = begin; k < end; k++) {
            const td_sample *s = &sh->samples[mb->samples[k]];
            f->samples[n++] = (td_fault_sample){.row = s->row, .start = s->start};
        }
        f->n_samples = (int32_t)n;
    }
    return TD_OK;
}

/* Which device failed, and what was in flight in the groups that use it. The thread that met the
 * failure first need not be the one whose device failed. */
static td_status describe_loss(td_run_state *run, td_fault *f, td_error *err) {
    const td_run_input *in = run->in;
    td_error lost;
    td_lock_acquire(&run->lock);
    const int32_t met = td_verdict_lost_group(run->verdict, &lost);
    td_lock_release(&run->lock);
    td_device *const *devices = in->devices;
    int32_t which = td_faults_culprit(devices, in->plan->inventory.n_devices, lost.text);
    const td_device *dev =
        which >= 0 ? devices[which] : run->groups[TD_MAX(met, 0)].stages[0].device;
    snprintf(f->key, sizeof f->key, "%s", td_device_key(&dev->info));
    snprintf(f->name, sizeof f->name, "%s", dev->info.name);
    snprintf(f->why, sizeof f->why, "%s", lost.text);
    td_status rc = TD_OK;
    size_t cap = 0;
    for (int32_t g = 0; rc == TD_OK && met >= 0 && g < run->n_groups; g++) {
        td_group *grp = &run->groups[g];
        bool uses = false;
        for (int32_t i = 0; i < grp->plan->n_stages; i++)
            uses = uses || grp->stages[i].device == dev;
        if (uses && !td_run_group_verdict(run, grp).hung)
            rc = add_in_flight(run, grp, f, &cap, err);
    }
    return rc;
}

/* Called when the groups ended, or were given up: then their devices are not asked any more. */
static void summarise(td_run_state *run, bool ask_devices, td_run_summary *out) {
    td_lock_acquire(&run->lock);
    *out = (td_run_summary){.wall_s = td_time_s() - run->start_s,
                            .n_samples = atomic_load(&run->counters.n_samples_idle),
                            .n_tokens = atomic_load(&run->counters.n_tokens_idle),
                            .n_shards_written = atomic_load(&run->counters.n_shards_written),
                            .n_shards_kept = atomic_load(&run->counters.n_shards_kept),
                            .n_bad_samples = atomic_load(&run->counters.n_bad),
                            .n_overflow_rows = atomic_load(&run->counters.n_overflow_rows),
                            .n_overflow_tokens = atomic_load(&run->counters.n_overflow_tokens),
                            .n_groups = run->n_groups,
                            .n_retired = td_verdict_n_retired(run->verdict),
                            .n_hung = td_verdict_n_hung(run->verdict),
                            .stopped = td_run_stop_requested()};
    out->groups = td_calloc((size_t)run->n_groups, sizeof *out->groups);
    for (int32_t g = 0; g < run->n_groups; g++) {
        const td_group *grp = &run->groups[g];
        const td_group_counters *c = &grp->counters;
        const td_group_verdict *v = td_verdict_group(run->verdict, grp->id);
        td_group_summary s = {.n_tokens = atomic_load(&c->n_tokens),
                              .n_rows = atomic_load(&c->n_rows),
                              .n_samples = atomic_load(&c->n_samples),
                              .n_batches = atomic_load(&c->n_batches),
                              .wait_s = 1e-6 * (double)atomic_load(&c->wait_us),
                              .finished_s = v->finished_s,
                              .last_done_s = 1e-6 * (double)atomic_load(&c->last_done_us),
                              .observed_s = 1e-6 * (double)atomic_load(&c->observed_us),
                              .predicted_s = 1e-6 * (double)atomic_load(&c->predicted_us),
                              .n_failures = atomic_load(&c->n_failures),
                              .n_reinstated = atomic_load(&c->n_reinstated),
                              .retired = v->retired,
                              .hung = v->hung};
        memcpy(s.retired_why, v->retired_why, sizeof s.retired_why);
        s.n_stages = TD_MIN(grp->plan->n_stages, (int32_t)TD_ARRAY_LEN(s.stage_busy_s));
        const td_group_own *own = &grp->own;
        if (ask_devices && !v->hung) { /* its thread has ended: what it wrote can be read */
            memcpy(s.op_s, own->op_s, sizeof s.op_s);
            for (int32_t i = 0; i < s.n_stages; i++)
                s.stage_busy_s[i] =
                    own->busy_s[i] + (own->session ? td_session_stage_busy_s(own->session, i) : 0);
            if (own->session)
                td_session_profile(own->session, s.op_s);
        }
        out->n_failures += s.n_failures;
        for (int32_t i = 0; i < s.n_stages; i++)
            s.stage_steady[i] = v->ended ? v->steady_share[i] : -1;
        out->n_tokens += s.n_tokens;
        out->n_rows += s.n_rows;
        out->n_samples += s.n_samples;
        if (out->groups)
            out->groups[g] = s;
    }
    if (!out->groups)
        out->n_groups = 0;
    td_lock_release(&run->lock);
}

/* The run's first failure. */
static td_status run_status(td_run_state *run, td_error *err) {
    td_lock_acquire(&run->lock);
    const td_error *failed = td_verdict_failure(run->verdict);
    td_status rc = failed ? failed->code : TD_OK;
    if (failed && err)
        *err = *failed;
    td_lock_release(&run->lock);
    return rc;
}

/* Joins what can be joined. After the loss of a device no thread is asked to tear anything down. */
static void end_groups(td_run_state *run, int32_t n_threads, td_run_summary *out) {
    if (td_run_is_lost(run)) {
        out->abandoned = true;
        return;
    }
    if (td_run_n_hung(run) > 0)
        out->abandoned = true;
    announce(run, TD_PHASE_QUIT);
    for (int32_t g = 0; g < n_threads; g++)
        if (!td_run_group_verdict(run, &run->groups[g]).stuck)
            pthread_join(run->groups[g].thread, NULL);
}

td_status td_run(const td_run_input *in, td_run_summary *out, td_error *err) {
    td_progress *progress = NULL;
    td_watch *watch = NULL;
    pthread_t feeder, writer;
    int32_t n_threads = 0;
    bool feeding = false, writing = false;
    td_status rc;
    *out = (td_run_summary){0};
    td_run_state *run = td_calloc(1, sizeof *run);
    if (!run)
        return td_error_nomem(err, "the run", sizeof *run);
    run->in = in;
    run->main = pthread_self();
    run->limits = in->plan->limits;
    run->start_s = td_time_s();
    atomic_store(&run->counters.n_data_shards, -1);
    td_lock_init(&run->lock);

    rc = make_groups(run, err);
    if (rc != TD_OK)
        goto done;
    rc = td_queue_create(QUEUE_CAPACITY, (uint32_t)run->n_groups, &run->queue, err);
    if (rc != TD_OK)
        goto done;
    rc = td_claim_board_create(run->n_groups, &run->board, err);
    if (rc != TD_OK)
        goto done;
    run->timeline = td_timeline_create(run);
    run->open = td_open_shards_create(
        &run->lock, td_claims_max_open(in->plan, in->cfg->output.shard_samples,
                                       OPEN_MEMORY_SHARE * (double)sysconf(_SC_PHYS_PAGES) *
                                           (double)sysconf(_SC_PAGESIZE)));
    run->verdict = td_verdict_create(&run->lock, run->n_groups);
    progress = td_progress_create(run);
    watch = td_watch_create(run);
    if (!run->open || !run->verdict || !progress || !watch) {
        rc = td_error_nomem(err, "the run", 4096);
        goto done;
    }
    for (; n_threads < run->n_groups; n_threads++) {
        int e = pthread_create(&run->groups[n_threads].thread, NULL, td_group_main,
                               &run->groups[n_threads]);
        if (e != 0) {
            rc = td_error_errno(err, TD_E_INTERNAL, e, "cannot start the thread of group %d",
                                n_threads);
            goto quit;
        }
    }
    rc = create_sessions(run, err);
    if (rc == TD_E_DEVICE_LOST) {
        td_error e = {.code = rc};
        if (err)
            e = *err;
        td_run_lost(run, NULL, &e);
        td_run_arm_watchdog();
        rc = describe_loss(run, &out->fault, err);
        rc = rc == TD_OK ? TD_E_DEVICE_LOST : rc;
    }
    if (rc != TD_OK)
        goto quit;

    run->start_s = td_time_s();
    int e = pthread_create(&writer, NULL, td_writer_main, run);
    writing = e == 0;
    e = writing ? pthread_create(&feeder, NULL, td_feeder_main, run) : e;
    feeding = writing && e == 0;
    if (!feeding) {
        rc = td_error_errno(err, TD_E_INTERNAL, e, "cannot start the threads of the run");
        td_run_fail(run, err);
        td_lock_acquire(&run->lock);
        td_verdict_feeder_ended(run->verdict);
        if (!writing)
            td_verdict_writer_ended(run->verdict);
        td_lock_release(&run->lock);
    }
    announce(run, TD_PHASE_RUN);
    bool ended = td_watch_run(watch, progress);
    if (ended && feeding)
        pthread_join(feeder, NULL);
    if (ended && writing)
        pthread_join(writer, NULL);
    out->output_busy = !ended;
    if (td_run_n_retired(run) >
        0) /* a device that failed can hold up whoever asks or frees something */
        td_run_arm_watchdog();
    summarise(run, !td_run_is_lost(run), out);
    td_progress_devices(progress, out);
    if (td_run_is_lost(run)) {
        td_error why = {0};
        if (describe_loss(run, &out->fault, &why) != TD_OK)
            td_run_fail(run, &why);
        if (ended)
            td_open_shards_drop(run->open);
    }
    rc = run_status(run, err);
    if (rc == TD_OK && out->stopped)
        rc = td_run_stopped_error(err);
    td_progress_tick(progress,
                     rc == TD_OK              ? "done"
                     : rc == TD_E_STOPPED     ? "stopped"
                     : rc == TD_E_DEVICE_LOST ? "device_lost"
                                              : "failed",
                     true);
quit:
    if (rc != TD_OK && out->groups == NULL)
        td_progress_tick(progress, "failed", true);
    end_groups(run, n_threads, out);
done:
    td_watch_free(watch);
    const bool in_use = out->abandoned; /* by threads that could not be joined */
    if (!td_progress_free(progress))
        out->abandoned = true; /* sensors are still being read, on the devices only */
    if (in_use)
        g_abandoned = run;
    else
        free_state(run);
    return rc;
}

void td_run_summary_free(td_run_summary *s) {
    free(s->groups);
    s->groups = NULL;
    free(s->devices);
    s->devices = NULL;
    td_fault_free(&s->fault);
}
