/* The life of a run: sessions on every group (with smaller micro-batches when memory is short),
 * then feeder, groups and writer until the data ends, a failure, or a signal. See run.h for the
 * threads.
 */
#include "sched/run_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "tdgen/log.h"
#include "tdgen/util.h"

enum { QUEUE_CAPACITY = 1 << 14, TICK_MS = 100 };

/* --- failure -----------------------------------------------------------------------------------
 */

void td_run_fail(td_run_state *run, const td_error *err) {
    pthread_mutex_lock(&run->lock);
    if (!run->failed) {
        run->failed = true;
        run->error = *err;
    }
    atomic_store(&run->stop, true);
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

static void request_stop(td_run_state *run) {
    pthread_mutex_lock(&run->lock);
    atomic_store(&run->stop, true);
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

/* --- set-up ------------------------------------------------------------------------------------
 */

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
        *grp = (td_group){.run = run, .id = (uint32_t)g, .plan = &plan->groups[g]};
        grp->stages = td_calloc((size_t)grp->plan->n_stages, sizeof *grp->stages);
        if (!grp->stages)
            return td_error_nomem(err, "the stages", (size_t)grp->plan->n_stages * 16);
        for (int32_t i = 0; i < grp->plan->n_stages; i++)
            grp->stages[i] = (td_stage){.device = run->in->devices[grp->plan->stages[i].device],
                                        .item_begin = grp->plan->stages[i].item_begin,
                                        .item_end = grp->plan->stages[i].item_end};
    }
    return find_kinds(run, err);
}

static void free_state(td_run_state *run) {
    for (int32_t k = 0; k < run->n_kinds; k++)
        free((char *)run->kinds[k]);
    free(run->kinds);
    free(run->group_kind);
    for (int32_t g = 0; run->groups && g < run->n_groups; g++)
        free(run->groups[g].stages);
    free(run->groups);
    free(run->open);
    td_queue_destroy(run->queue);
    pthread_cond_destroy(&run->changed);
    pthread_mutex_destroy(&run->lock);
}

/* --- phases of the group threads ----------------------------------------------------------------
 */

static void announce(td_run_state *run, td_phase phase) {
    pthread_mutex_lock(&run->lock);
    run->phase = phase;
    run->phase_serial++;
    run->n_acked = 0;
    run->phase_error = (td_error){0};
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

static td_status await_groups(td_run_state *run, int32_t n_threads, td_error *err) {
    pthread_mutex_lock(&run->lock);
    while (run->n_acked < n_threads)
        pthread_cond_wait(&run->changed, &run->lock);
    td_error e = run->phase_error;
    pthread_mutex_unlock(&run->lock);
    if (e.code != TD_OK && err)
        *err = e;
    return e.code;
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
        run->in->cfg->run.batch_tokens = n;
    }
}

/* --- the run -----------------------------------------------------------------------------------
 */

/* Ticks until feeder, groups and writer have ended. */
static void watch(td_run_state *run, td_progress *progress) {
    bool told = false;
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += TICK_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_mutex_lock(&run->lock);
        if (!run->writer_ended || run->n_groups_ended < run->n_groups)
            pthread_cond_timedwait(&run->changed, &run->lock, &until);
        bool ended = run->feeder_ended && run->writer_ended && run->n_groups_ended == run->n_groups;
        pthread_mutex_unlock(&run->lock);
        if (td_run_stop_requested() && !told) {
            told = true;
            td_log_info(
                "stopping: what is in flight is finished and saved; press again to leave at "
                "once (a rerun continues in either case)");
            request_stop(run);
        }
        if (ended)
            return;
        td_progress_tick(progress, told ? "stopping" : "running", false);
    }
}

static void summarise(td_run_state *run, td_run_summary *out) {
    *out = (td_run_summary){.wall_s = td_time_s() - run->start_s,
                            .n_samples = atomic_load(&run->n_samples_idle),
                            .n_tokens = atomic_load(&run->n_tokens_idle),
                            .n_shards_written = atomic_load(&run->n_shards_written),
                            .n_shards_kept = atomic_load(&run->n_shards_kept),
                            .n_bad_samples = atomic_load(&run->n_bad),
                            .n_overflow_rows = atomic_load(&run->n_overflow_rows),
                            .n_groups = run->n_groups,
                            .n_retired = run->n_retired,
                            .stopped = td_run_stop_requested()};
    out->groups = td_calloc((size_t)run->n_groups, sizeof *out->groups);
    for (int32_t g = 0; g < run->n_groups; g++) {
        const td_group *grp = &run->groups[g];
        td_group_summary s = {.n_tokens = atomic_load(&grp->n_tokens),
                              .n_rows = atomic_load(&grp->n_rows),
                              .n_samples = atomic_load(&grp->n_samples),
                              .n_batches = atomic_load(&grp->n_batches),
                              .wait_s = 1e-6 * (double)atomic_load(&grp->wait_us),
                              .finished_s = grp->finished_s,
                              .retired = grp->retired};
        memcpy(s.retired_why, grp->retired_why, sizeof s.retired_why);
        s.n_stages = TD_MIN(grp->plan->n_stages, (int32_t)TD_ARRAY_LEN(s.stage_busy_s));
        for (int32_t i = 0; i < s.n_stages && grp->session; i++)
            s.stage_busy_s[i] = td_session_stage_busy_s(grp->session, i);
        if (grp->session)
            td_session_profile(grp->session, s.op_s);
        out->n_tokens += s.n_tokens;
        out->n_rows += s.n_rows;
        out->n_samples += s.n_samples;
        if (out->groups)
            out->groups[g] = s;
    }
    if (!out->groups)
        out->n_groups = 0;
}

td_status td_run(const td_run_input *in, td_run_summary *out, td_error *err) {
    td_run_state run = {.in = in, .limits = in->plan->limits, .start_s = td_time_s()};
    td_progress *progress = NULL;
    pthread_t feeder, writer;
    int32_t n_threads = 0;
    bool feeding = false, writing = false;
    td_status rc;
    *out = (td_run_summary){0};
    pthread_mutex_init(&run.lock, NULL);
    pthread_cond_init(&run.changed, NULL);

    rc = make_groups(&run, err);
    if (rc != TD_OK)
        goto done;
    rc = td_queue_create(QUEUE_CAPACITY, (uint32_t)run.n_groups, &run.queue, err);
    if (rc != TD_OK)
        goto done;
    run.max_open = TD_MIN(4 + run.n_groups, 64);
    run.open = td_calloc((size_t)run.max_open, sizeof *run.open);
    progress = td_progress_create(&run);
    if (!run.open || !progress) {
        rc = td_error_nomem(err, "the run", 4096);
        goto done;
    }
    for (; n_threads < run.n_groups; n_threads++)
        if (pthread_create(&run.groups[n_threads].thread, NULL, td_group_main,
                           &run.groups[n_threads]) != 0) {
            rc = td_error_set(err, TD_E_INTERNAL, "cannot start the thread of group %d", n_threads);
            goto quit;
        }
    rc = create_sessions(&run, err);
    if (rc != TD_OK)
        goto quit;

    run.start_s = td_time_s();
    writing = pthread_create(&writer, NULL, td_writer_main, &run) == 0;
    feeding = writing && pthread_create(&feeder, NULL, td_feeder_main, &run) == 0;
    if (!feeding) {
        rc = td_error_set(err, TD_E_INTERNAL, "cannot start the threads of the run");
        td_run_fail(&run, err);
        pthread_mutex_lock(&run.lock);
        run.feeder_ended = true;
        run.writer_ended = !writing;
        pthread_mutex_unlock(&run.lock);
    }
    announce(&run, TD_PHASE_RUN);
    watch(&run, progress);
    if (feeding)
        pthread_join(feeder, NULL);
    if (writing)
        pthread_join(writer, NULL);
    summarise(&run, out);
    if (run.failed) {
        if (err)
            *err = run.error;
        rc = run.error.code;
    } else if (out->stopped) {
        rc = td_run_stopped_error(err);
    }
    td_progress_tick(progress,
                     rc == TD_OK          ? "done"
                     : rc == TD_E_STOPPED ? "stopped"
                                          : "failed",
                     true);
quit:
    if (rc != TD_OK && out->groups == NULL)
        td_progress_tick(progress, "failed", true);
    announce(&run, TD_PHASE_QUIT);
    for (int32_t g = 0; g < n_threads; g++)
        pthread_join(run.groups[g].thread, NULL);
done:
    td_progress_free(progress);
    free_state(&run);
    return rc;
}

void td_run_summary_free(td_run_summary *s) {
    free(s->groups);
    s->groups = NULL;
}
