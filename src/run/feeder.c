/* feeder.c - the feeder's thread reads ahead of the groups: at most td_claims_max_open shards are
 * open at a time, which bounds memory and holds the reader back. The writer closes them. */
#include "run/state.h"

#include <stdlib.h>
#include <time.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

/* What was read and given to the groups so far. */
typedef struct td_feeder {
    double kflop, bytes, rows;
    uint64_t bytes_before; /* the shard that is being read */
    int64_t n_rows;        /* dataset rows up to where the source is */
    bool at_end;
} td_feeder;

static void nap(void) {
    struct timespec ts = {.tv_nsec = 1000000};
    nanosleep(&ts, NULL);
}

/* A free place for a shard, or NULL when the run stops. */
static td_open_shard *acquire_place(td_run_state *run) {
    td_lock_acquire(&run->lock);
    while (td_open_shards_full(run->open) && !td_run_stopping(run))
        td_lock_wait(&run->lock);
    td_open_shard *o = td_run_stopping(run) ? NULL : td_open_shards_take(run->open);
    td_lock_release(&run->lock);
    return o;
}

/* Is the next shard one that need not be computed? Then it is passed over. */
static td_status skip_if_finished(td_run_state *run, td_feeder *f, bool *skipped, td_error *err) {
    const td_run_input *in = run->in;
    int64_t number = td_source_next_number(in->source);
    bool mine = number % in->cfg->run.total_workers == in->cfg->run.worker_id;
    td_shard *scanned = NULL;
    *skipped = false;
    if (mine && !td_output_has_shard(in->output, number))
        return TD_OK;
    td_status rc = td_source_next(in->source, false, &scanned, err);
    if (rc != TD_OK)
        return rc;
    if (!scanned) {
        f->at_end = true;
        return TD_OK;
    }
    f->n_rows = scanned->row_end;
    bool done = !mine;
    td_shard_totals totals = {0};
    if (mine) {
        rc = td_output_shard_done(in->output, scanned->number, scanned->row_begin, scanned->row_end,
                                  scanned->source_hash, &done, &totals, err);
        if (rc == TD_OK && done) {
            atomic_fetch_add(&run->counters.n_shards_kept, 1);
            atomic_fetch_add(&run->counters.n_tokens_kept, totals.n_tokens);
            atomic_fetch_add(&run->counters.n_samples_kept, totals.n_samples);
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
            atomic_fetch_add(&run->counters.n_samples_idle, 1);
            atomic_fetch_add(&run->counters.n_tokens_idle, shard->samples[i].n_tokens);
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
            atomic_fetch_add(&run->counters.n_bad, 1);
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
        td_open_shards_complete(run->open, o);
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

/* How many rows there are, for those who ask later whether the folder is complete. */
static td_status note_rows(td_run_state *run, const td_feeder *f, td_error *err) {
    if (f->at_end)
        atomic_store(&run->counters.n_data_shards, td_source_next_number(run->in->source));
    return td_output_note_rows(run->in->output, f->n_rows, f->at_end, err);
}

void *td_feeder_main(void *arg) {
    td_run_state *run = arg;
    td_feeder f = {0};
    td_error err = {0};
    td_status rc = TD_OK;
    while (!td_run_stopping(run)) {
        bool skipped;
        uint64_t total;
        td_source_progress(run->in->source, &f.bytes_before, &total);
        td_activity_begin(&run->reading, td_source_next_number(run->in->source), td_time_s());
        rc = skip_if_finished(run, &f, &skipped, &err);
        td_activity_end(&run->reading);
        if (rc != TD_OK || f.at_end)
            break;
        if (skipped)
            continue;
        td_open_shard *o = acquire_place(run);
        if (!o)
            break;
        td_activity_begin(&run->reading, td_source_next_number(run->in->source), td_time_s());
        rc = td_source_next(run->in->source, true, &o->shard, &err);
        td_activity_end(&run->reading);
        if (rc != TD_OK || !o->shard) {
            f.at_end = rc == TD_OK;
            td_open_shards_release(run->open, o);
            break;
        }
        f.n_rows = o->shard->row_end;
        atomic_fetch_add(&run->counters.n_bad, o->shard->n_bad_rows);
        atomic_fetch_add(&run->counters.n_overflow_rows, o->shard->n_overflow_rows);
        atomic_fetch_add(&run->counters.n_overflow_tokens, o->shard->n_overflow_tokens);
        count_idle(run, o->shard);
        rc = open_and_publish(run, &f, o, &err);
        if (rc != TD_OK)
            break;
    }
    td_error ignored = {0};
    if (rc == TD_OK)
        rc = note_rows(run, &f, &err);
    else /* the error that ended it is the one to tell */
        (void)note_rows(run, &f, &ignored);
    if (rc != TD_OK)
        td_run_fail(run, &err);
    td_claim_board_set_unread(run->board, 0);
    td_queue_close(run->queue);
    td_lock_acquire(&run->lock);
    td_verdict_feeder_ended(run->verdict);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
    return NULL;
}
