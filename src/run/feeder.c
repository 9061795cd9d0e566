/* The feeder reads ahead of the groups: at most max_open shards are open at a time (see
 * td_claims_max_open), which bounds memory and holds the reader back. The writer closes them. */
#include "run/run_state.h"

#include <stdlib.h>
#include <time.h>
#include "base/log.h"
#include "base/memory.h"

/* What was read and given to the groups so far. */
typedef struct td_feeder {
    double kflop, bytes, rows;
    uint64_t bytes_before; /* the shard that is being read */
} td_feeder;

static void nap(void) {
    struct timespec ts = {.tv_nsec = 1000000};
    nanosleep(&ts, NULL);
}

/* A free place for a shard, or NULL when the run stops. */
static td_open_shard *acquire_place(td_run_state *run) {
    td_open_shard *o = NULL;
    pthread_mutex_lock(&run->lock);
    while (run->n_open == run->max_open && !td_run_stopping(run))
        pthread_cond_wait(&run->changed, &run->lock);
    if (!td_run_stopping(run)) {
        for (int32_t i = 0; i < run->max_open && !o; i++)
            if (!run->open[i].in_use)
                o = &run->open[i];
        o->in_use = true;
        run->n_open++;
    }
    pthread_mutex_unlock(&run->lock);
    return o;
}

static void release_place(td_run_state *run, td_open_shard *o) {
    td_shard_free(o->shard);
    free(o->work);
    pthread_mutex_lock(&run->lock);
    o->shard = NULL;
    o->work = NULL;
    o->writer = NULL;
    o->in_use = false;
    run->n_open--;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

/* Is the next shard one that need not be computed? Then it is passed over. */
static td_status skip_if_finished(td_run_state *run, bool *skipped, bool *at_end, td_error *err) {
    const td_run_input *in = run->in;
    int64_t number = td_source_next_number(in->source);
    bool mine = number % in->cfg->run.total_workers == in->cfg->run.worker_id;
    td_shard *scanned = NULL;
    *skipped = *at_end = false;
    if (mine && !td_output_has_shard(in->output, number))
        return TD_OK;
    td_status rc = td_source_next(in->source, false, &scanned, err);
    if (rc != TD_OK)
        return rc;
    if (!scanned) {
        *at_end = true;
        return TD_OK;
    }
    bool done = !mine;
    td_shard_totals totals = {0};
    if (mine) {
        rc = td_output_shard_done(in->output, scanned->number, scanned->row_begin, scanned->row_end,
                                  scanned->source_hash, &done, &totals, err);
        if (rc == TD_OK && done) {
            atomic_fetch_add(&run->n_shards_kept, 1);
            atomic_fetch_add(&run->n_tokens_kept, totals.n_tokens);
            atomic_fetch_add(&run->n_samples_kept, totals.n_samples);
        }
    }
    td_shard_free(scanned);
    if (rc == TD_OK && !done)
        rc = td_source_step_back(in->source, err);
    *skipped = done;
    return rc;
}

/* Samples that no group will count. */
static void count_idle(td_run_state *run, const td_shard *shard) {
    for (int32_t i = 0; i < shard->n_samples; i++)
        if (shard->samples[i].n_rows == 0) {
            atomic_fetch_add(&run->n_samples_idle, 1);
            atomic_fetch_add(&run->n_tokens_idle, shard->samples[i].n_tokens);
        }
}

/* What is known of the shard's samples from devices that failed over them: suspects are packed
 * alone, and a blamed sample is left out, or ends the run. *marks is NULL when there are none. */
static td_status mark_suspects(td_run_state *run, td_shard *shard, uint8_t **marks, td_error *err) {
    const td_faults *f = run->in->faults;
    const td_config *cfg = run->in->cfg;
    *marks = NULL;
    for (int32_t i = 0; f && f->n_suspects && i < shard->n_samples; i++) {
        const td_sample *s = &shard->samples[i];
        const td_suspect *suspect = s->n_rows ? td_faults_find(f, s->row, s->start) : NULL;
        if (!suspect)
            continue;
        if (suspect->blamed && cfg->run.on_bad_sample == TD_BAD_FAIL)
            return td_faults_blame_error(suspect, cfg->output.dir, err);
        if (!*marks && !(*marks = td_calloc((size_t)shard->n_samples, 1)))
            return td_error_nomem(err, "the suspects of a shard", (size_t)shard->n_samples);
        (*marks)[i] = suspect->blamed ? TD_PACK_OUT : TD_PACK_ALONE;
    }
    return *marks ? td_shard_repack(shard, td_source_batch_tokens(run->in->source), *marks, err)
                  : TD_OK;
}

static td_status skip_blamed(td_run_state *run, const td_open_shard *o, const uint8_t *marks,
                             td_error *err) {
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && marks && i < o->shard->n_samples; i++)
        if (marks[i] == TD_PACK_OUT) {
            td_log_warn("dataset row %lld: computing it made devices fail, the sample is skipped",
                        (long long)o->shard->samples[i].row);
            atomic_fetch_add(&run->n_bad, 1);
            rc = td_shard_writer_skip(o->writer, i, err);
        }
    return rc;
}

static void describe_work(const td_run_state *run, td_open_shard *o) {
    const td_plan *plan = run->in->plan;
    for (int32_t i = 0; i < o->shard->n_batches; i++) {
        const td_micro_batch *mb = &o->shard->batches[i];
        td_work_size size = {0};
        for (int32_t k = 0; k < mb->n_samples; k++) {
            const td_sample *s = &o->shard->samples[mb->samples[k]];
            td_work_size_add(&size, s->n_tokens, s->n_rows, plan->cost.window);
        }
        o->work[i] = (td_work){.open = o, .batch = i};
        td_claim_item_init(&o->work[i].item, &plan->cost, &size, mb->alone);
    }
}

/* What is left to read, by the work per byte so far (and per row, where max_samples ends the data
 * before the file does). Shards that needed no computing count for neither. */
static void estimate_unread(td_run_state *run, td_feeder *f, const td_open_shard *o) {
    const td_config *cfg = run->in->cfg;
    uint64_t at, total;
    for (int32_t i = 0; i < o->shard->n_batches; i++)
        f->kflop += (double)o->work[i].item.kflop;
    td_source_progress(run->in->source, &at, &total);
    f->bytes += at > f->bytes_before ? (double)(at - f->bytes_before) : 0;
    f->rows += (double)(o->shard->row_end - o->shard->row_begin);
    double unread = f->bytes > 0 && total > at ? f->kflop / f->bytes * (double)(total - at) : 0;
    if (cfg->data.max_samples > 0 && f->rows > 0)
        unread = TD_MIN(unread, f->kflop / f->rows *
                                    (double)TD_MAX(cfg->data.max_samples - o->shard->row_end, 0));
    td_claim_board_set_unread(run->board, unread / cfg->run.total_workers);
}

static td_status open_and_publish(td_run_state *run, td_feeder *f, td_open_shard *o,
                                  td_error *err) {
    td_shard *shard = o->shard;
    uint8_t *marks;
    td_status rc = mark_suspects(run, shard, &marks, err);
    if (rc != TD_OK)
        goto fail;
    o->work = td_calloc((size_t)shard->n_batches, sizeof *o->work);
    if (!o->work) {
        rc = td_error_nomem(err, "the micro-batches of a shard",
                            (size_t)shard->n_batches * sizeof *o->work);
        goto fail;
    }
    rc = td_shard_writer_open(run->in->output, shard, run->kinds, run->n_kinds, &o->writer, err);
    if (rc == TD_OK)
        rc = skip_blamed(run, o, marks, err);
    if (rc != TD_OK)
        goto fail;
    free(marks);
    /* The shard can be complete, committed and freed as soon as its last micro-batch is published
     * (or at once without any): from there on neither it nor o->work is touched. */
    int32_t n = shard->n_batches;
    describe_work(run, o);
    estimate_unread(run, f, o);
    atomic_store(&o->n_left, n);
    if (n == 0)
        td_run_shard_complete(run, o);
    for (int32_t i = 0; i < n; i++) {
        td_claim_board_add(run->board, &o->work[i].item);
        while (!td_queue_publish(run->queue, &o->work[i])) {
            if (td_run_stopping(run))
                return TD_OK;
            nap();
        }
    }
    return TD_OK;
fail:
    free(marks);
    return rc;
}

static void note_end(td_run_state *run) {
    atomic_store(&run->n_data_shards, td_source_next_number(run->in->source));
}

void *td_feeder_main(void *arg) {
    td_run_state *run = arg;
    td_feeder f = {0};
    td_error err = {0};
    td_status rc = TD_OK;
    while (!td_run_stopping(run)) {
        bool skipped, at_end;
        uint64_t total;
        td_source_progress(run->in->source, &f.bytes_before, &total);
        rc = skip_if_finished(run, &skipped, &at_end, &err);
        if (rc == TD_OK && at_end)
            note_end(run);
        if (rc != TD_OK || at_end)
            break;
        if (skipped)
            continue;
        td_open_shard *o = acquire_place(run);
        if (!o)
            break;
        rc = td_source_next(run->in->source, true, &o->shard, &err);
        if (rc != TD_OK || !o->shard) {
            if (rc == TD_OK)
                note_end(run);
            release_place(run, o);
            break;
        }
        atomic_fetch_add(&run->n_bad, o->shard->n_bad_rows);
        atomic_fetch_add(&run->n_overflow_rows, o->shard->n_overflow_rows);
        count_idle(run, o->shard);
        rc = open_and_publish(run, &f, o, &err);
        if (rc != TD_OK)
            break;
    }
    if (rc != TD_OK)
        td_run_fail(run, &err);
    td_claim_board_set_unread(run->board, 0);
    td_queue_close(run->queue);
    pthread_mutex_lock(&run->lock);
    run->feeder_ended = true;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
    return NULL;
}

void td_run_shard_complete(td_run_state *run, td_open_shard *o) {
    pthread_mutex_lock(&run->lock);
    o->next = NULL;
    if (run->commit_tail)
        run->commit_tail->next = o;
    else
        run->commit_head = o;
    run->commit_tail = o;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

void td_run_drop_open(td_run_state *run) {
    for (int32_t i = 0; i < run->max_open; i++)
        if (run->open[i].in_use) {
            td_shard_writer_abort(run->open[i].writer);
            release_place(run, &run->open[i]);
        }
}

/* Ends when every opened shard is committed, or, when the run stops, as soon as no group can
 * complete another one; then it drops what is incomplete. After the loss of a device it ends at
 * once and leaves what is open, complete or not, to the thread that asks what was in flight. */
void *td_writer_main(void *arg) {
    td_run_state *run = arg;
    for (;;) {
        pthread_mutex_lock(&run->lock);
        while (!td_run_is_lost(run) && !run->commit_head &&
               !(run->feeder_ended && run->n_open == 0) &&
               !(td_run_stopping(run) && run->feeder_ended && run->n_groups_ended == run->n_groups))
            pthread_cond_wait(&run->changed, &run->lock);
        td_open_shard *o = td_run_is_lost(run) ? NULL : run->commit_head;
        if (o) {
            run->commit_head = o->next;
            if (!run->commit_head)
                run->commit_tail = NULL;
        }
        pthread_mutex_unlock(&run->lock);
        if (!o)
            break;
        td_error err = {0};
        td_status rc = td_shard_writer_commit(o->writer, &err);
        if (rc == TD_OK)
            atomic_fetch_add(&run->n_shards_written, 1);
        else
            td_run_fail(run, &err);
        release_place(run, o);
    }
    if (!td_run_is_lost(run))
        td_run_drop_open(run);
    pthread_mutex_lock(&run->lock);
    run->writer_ended = true;
    bool hung = run->n_hung > 0;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
    if (hung) /* all is saved; the main thread may be held by the driver that hangs */
        td_run_arm_watchdog();
    return NULL;
}
