/* A group's thread: claims micro-batches, keeps its pipeline full, stores what comes out.
 *
 * What to claim next, and when to leave the rest to faster groups, is claims.c's to say; slots[] is
 * a ring of micro-batches in flight, submitted and waited for in order. Only this thread touches
 * the session.
 *
 * A micro-batch that is `alone` (a suspect, see faults.h and blame.h) is submitted when nothing is
 * in flight, and nothing follows before it is done.
 *
 * Waiting is cut into slices, so that a lost device elsewhere is noticed soon, and so that time in
 * which the whole process stood still (SIGSTOP, a suspended machine) is not held against a device.
 */
#include "run/group.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/log.h"
#include "base/clock.h"
#include "base/memory.h"

#define SLICE_S 0.5
#define PATIENCE_MEANS 20.0
#define BUSY_EVERY_S 0.25

static void free_slots(td_loop *l) {
    if (l->slots)
        for (int32_t i = 0; i < l->n_slots; i++) {
            free(l->slots[i].ids);
            free(l->slots[i].seq_offsets);
            free(l->slots[i].row_token);
            free(l->slots[i].row_target);
            free(l->slots[i].row_dataset_row);
            free(l->slots[i].row_position);
        }
    free(l->slots);
    free(l->busy_since);
    free(l->busy_until);
}

static td_status make_slots(td_loop *l, td_error *err) {
    const td_session_limits *lim = &l->g->run->limits;
    l->n_slots = lim->n_slots;
    l->slots = td_calloc((size_t)l->n_slots, sizeof *l->slots);
    l->busy_since = td_calloc((size_t)l->g->plan->n_stages, sizeof *l->busy_since);
    l->busy_until = td_calloc((size_t)l->g->plan->n_stages, sizeof *l->busy_until);
    bool ok = l->slots && l->busy_since && l->busy_until;
    for (int32_t i = 0; ok && i < l->n_slots; i++) {
        td_flight *f = &l->slots[i];
        f->ids = td_calloc((size_t)lim->max_tokens, sizeof *f->ids);
        f->seq_offsets = td_calloc((size_t)lim->max_seqs + 1, sizeof *f->seq_offsets);
        f->row_token = td_calloc((size_t)lim->max_rows, sizeof *f->row_token);
        f->row_target = td_calloc((size_t)lim->max_rows, sizeof *f->row_target);
        f->row_dataset_row = td_calloc((size_t)lim->max_rows, sizeof *f->row_dataset_row);
        f->row_position = td_calloc((size_t)lim->max_rows, sizeof *f->row_position);
        ok = f->ids && f->seq_offsets && f->row_token && f->row_target && f->row_dataset_row &&
             f->row_position;
    }
    return ok ? TD_OK
              : td_error_nomem(err, "the host arrays of a group",
                               (size_t)lim->max_tokens * (size_t)l->n_slots * 32);
}

/* Lays the samples of a micro-batch end to end. Position t of a sample predicts its token t + 1; a
 * row is recorded where the loss mask of t + 1 is set. Of a work that is split only the sample that
 * is being tried is laid out. */
static void fill(td_flight *f, const td_work *w) {
    const td_shard *sh = w->open->shard;
    const td_micro_batch *mb = &sh->batches[w->batch];
    /* relaxed: ours to write */
    const int32_t only = atomic_load_explicit(&w->only, memory_order_relaxed);
    const int32_t n_samples = only ? 1 : mb->n_samples;
    int32_t n = 0, r = 0;
    for (int32_t i = 0; i < n_samples; i++) {
        const td_sample *s = &sh->samples[mb->samples[only ? only - 1 : i]];
        const int32_t *ids = sh->ids + s->token_offset;
        const uint8_t *mask = sh->loss_mask + s->token_offset;
        f->seq_offsets[i] = n;
        memcpy(f->ids + n, ids, (size_t)s->n_tokens * sizeof *ids);
        for (int32_t t = 1; t < s->n_tokens; t++)
            if (mask[t]) {
                f->row_token[r] = n + t - 1;
                f->row_target[r] = ids[t];
                f->row_dataset_row[r] = s->row;
                f->row_position[r] = s->start + t - 1;
                r++;
            }
        n += s->n_tokens;
    }
    f->seq_offsets[n_samples] = n;
    f->batch = (td_batch){.n_tokens = n,
                          .n_seqs = n_samples,
                          .n_rows = r,
                          .ids = f->ids,
                          .seq_offsets = f->seq_offsets,
                          .row_token = f->row_token,
                          .row_target = f->row_target,
                          .row_dataset_row = f->row_dataset_row,
                          .row_position = f->row_position};
}

/* Are the n elements of a dense row finite? 16-bit floats are not where their exponent is all ones.
 */
static bool row_is_finite(const void *row, td_dtype dtype, int64_t n) {
    const uint16_t *h = row, ones = dtype == TD_F16 ? 0x7c00 : 0x7f80;
    const float *f = row;
    int bad = 0;
    if (dtype == TD_F32)
        for (int64_t i = 0; i < n; i++)
            bad |= !isfinite(f[i]);
    else
        for (int64_t i = 0; i < n; i++)
            bad |= (h[i] & ones) == ones;
    return !bad;
}

/* A target of probability 0 (its logit was -inf) cannot be learnt from either. */
static bool sample_is_finite(const td_captured *cap, int32_t first, int32_t n, int32_t *bad) {
    const size_t row_bytes = (size_t)cap->n_dense * td_dtype_size(cap->dense_dtype);
    for (int32_t r = first; r < first + n; r++) {
        bool good = cap->logsumexp ? isfinite(cap->logsumexp[r]) && isfinite(cap->target_logprob[r])
                                   : row_is_finite((const char *)cap->dense + (size_t)r * row_bytes,
                                                   cap->dense_dtype, cap->n_dense);
        if (!good) {
            *bad = r;
            return false;
        }
    }
    return true;
}

/* Writes the rows of sample i of the micro-batch, which begin at `row` of what was captured and are
 * sequence `seq` of the batch. Numbers that are not finite are the sample's failure. Numbers that
 * contradict each other (TD_E_INTERNAL of td_shard_writer_put) end the run: they come of a device
 * or a kernel that computes wrong without noticing, and skipping what it is caught at would record
 * the rest of it. */
td_status td_group_record(td_loop *l, const td_flight *f, int32_t i, const td_captured *cap,
                          int32_t row, int32_t seq, td_error *err) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    const td_work *w = f->claim.item;
    const td_shard *sh = w->open->shard;
    int32_t index = sh->batches[w->batch].samples[i], bad_row = 0;
    const td_sample *s = &sh->samples[index];
    td_status rc;
    if (sample_is_finite(cap, row, s->n_rows, &bad_row)) {
        rc = td_shard_writer_put(w->open->writer, index, run->group_kind[g->id], cap, row, err);
    } else if (run->in->cfg->run.on_bad_sample == TD_BAD_FAIL) {
        rc = td_error_set(err, TD_E_MODEL,
                          "dataset row %lld (sample of %d tokens): the teacher's logits are not "
                          "finite at position %d, computed in %s on group %u; set "
                          "run.on_bad_sample = skip to leave such samples out, or try "
                          "model.compute = f32",
                          (long long)s->row, s->n_tokens,
                          f->batch.row_token[bad_row] - f->batch.seq_offsets[seq],
                          td_dtype_name(run->in->plan->compute), g->id);
    } else {
        td_log_warn("dataset row %lld: logits are not finite, the sample is skipped",
                    (long long)s->row);
        atomic_fetch_add(&run->n_bad, 1);
        rc = td_shard_writer_skip(w->open->writer, index, err);
    }
    if (rc != TD_OK)
        return rc;
    atomic_fetch_add(&g->n_tokens, s->n_tokens);
    atomic_fetch_add(&g->n_rows, s->n_rows);
    atomic_fetch_add(&g->n_samples, 1);
    return TD_OK;
}

/* Between td_queue_begin_commit and this the results were written. */
void td_group_done(td_loop *l, td_flight *f) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    td_work *w = f->claim.item;
    td_open_shard *o = w->open;
    /* Before it is done: then groups that wait for the verdict may see the queue finished. */
    if (f->claim.tries > 0 || l->failed) {
        pthread_mutex_lock(&run->lock);
        td_blame_completed(run->blame, g->id, f->claim.number);
        pthread_cond_broadcast(&run->changed);
        pthread_mutex_unlock(&run->lock);
        l->failed = false;
    }
    atomic_fetch_add(&g->n_batches, 1);
    const td_micro_batch *mb = &o->shard->batches[w->batch];
    double now = td_time_s();
    td_timeline_note(run->timeline, g->id, o->shard->number, mb->n_samples, mb->n_tokens,
                     TD_MAX(f->submitted_s, l->last_stored_s), now);
    l->last_stored_s = now;
    /* Before it is done: then it is nobody's any more. */
    atomic_store(&g->in_flight[l->head], NULL);
    td_queue_done(run->queue, g->id, f->claim.number);
    /* acq_rel: the last one sees the rows of all others written; after it the shard may be freed */
    if (atomic_fetch_sub_explicit(&o->n_left, 1, memory_order_acq_rel) == 1)
        td_run_shard_complete(run, o);
}

/* Writes the rows of a finished micro-batch and marks it done. */
static td_status store(td_loop *l, td_flight *f, const td_captured *cap, td_error *err) {
    td_group *g = l->g;
    td_run_state *run = g->run;
    td_work *w = f->claim.item;
    if (td_run_is_lost(run))
        return TD_OK; /* it may be good, but nobody can tell: it is computed again */
    if (!td_queue_begin_commit(run->queue, g->id, f->claim.number))
        return TD_OK; /* we were retired meanwhile: the answer is somebody else's to give */
    const td_shard *sh = w->open->shard;
    const td_micro_batch *mb = &sh->batches[w->batch];
    int32_t row = 0;
    for (int32_t i = 0; i < mb->n_samples; i++) {
        td_status rc = td_group_record(l, f, i, cap, row, i, err);
        if (rc != TD_OK)
            return rc;
        row += sh->samples[mb->samples[i]].n_rows;
    }
    td_group_done(l, f);
    return TD_OK;
}

/* How long the oldest micro-batch may take: a multiple of what the cost model says of all that is
 * in flight, corrected by what was observed. Before any was done only the plan's speeds stand in,
 * and where they are not known, ten times the usual patience: the first one also pays for what
 * drivers and libraries do once. */
static void set_patience(td_loop *l) {
    double least = td_run_patience_s(), expected = td_claimer_expected_s(&l->claimer);
    double seconds = expected > 0 ? PATIENCE_MEANS * expected : 10 * least;
    atomic_store(&l->g->patience_ms, (int64_t)(1e3 * TD_MAX(least, seconds)));
}

/* Which micro-batch a device failed on: the oldest in flight, or the one it was given. */
static td_status name_batch(const td_flight *f, td_error *err) {
    const td_work *w = f->claim.item;
    const td_shard *sh = w->open->shard;
    const td_micro_batch *mb = &sh->batches[w->batch];
    const int32_t only = atomic_load_explicit(&w->only, memory_order_relaxed); /* ours */
    if (only)
        return td_error_prefix(err, "dataset row %lld alone (%d tokens)",
                               (long long)sh->samples[mb->samples[only - 1]].row,
                               f->batch.n_tokens);
    return td_error_prefix(err,
                           "micro-batch %d of shard %lld (%d tokens, %d samples from dataset row "
                           "%lld on)",
                           w->batch, (long long)sh->number, f->batch.n_tokens, mb->n_samples,
                           (long long)sh->samples[mb->samples[0]].row);
}

int64_t td_group_enter(td_group *g) {
    /* seq_cst: the watch that gives us up sees what was stored before */
    return atomic_fetch_add(&g->n_submits, 1) + 1;
}

bool td_group_leave(td_group *g, int64_t ticket) {
    return atomic_compare_exchange_strong(&g->n_submits, &ticket, ticket + 1);
}

/* Hands what f holds to the devices. */
td_status td_group_submit(td_loop *l, td_flight *f, td_error *err) {
    td_work *w = f->claim.item;
    int32_t slot = (int32_t)(f - l->slots);
    fill(f, w);
    set_patience(l);
    w->number = f->claim.number;
    atomic_store(&l->g->in_flight[slot], w);
    int64_t ticket = td_group_enter(l->g);
    td_status rc = td_session_submit(l->g->session, slot, &f->batch, err);
    l->gone = !td_group_leave(l->g, ticket);
    return rc == TD_OK || l->gone ? rc : name_batch(f, err);
}

td_flight *td_group_begin(td_loop *l, const td_claim *claim) {
    td_flight *f = &l->slots[(l->head + l->n_in_flight) % l->n_slots];
    f->claim = *claim;
    f->item = ((const td_work *)claim->item)->item;
    f->predicted_s = td_cost_group_seconds(l->g->run->in->plan, (int32_t)l->g->id, &f->item.size);
    f->submitted_s = td_time_s();
    td_claimer_submitted(&l->claimer, f->submitted_s, claim);
    l->n_in_flight++; /* also when its submission fails: the claim is then given back */
    return f;
}

void td_group_devices(const td_group *g, char *buf, size_t size) {
    buf[0] = '\0';
    for (int32_t i = 0; i < g->plan->n_stages; i++)
        snprintf(buf + strlen(buf), size - strlen(buf), "%s%s", i ? ", " : "",
                 g->stages[i].device->info.name);
}

/* TD_OK without *got: a device was lost meanwhile. */
td_status td_group_wait(td_loop *l, td_captured *cap, bool *got, bool *hung, td_error *err) {
    double waited = 0, patience = 1e-3 * (double)atomic_load(&l->g->patience_ms);
    *got = *hung = false;
    for (;;) {
        double slice = TD_MIN(SLICE_S, patience), t0 = td_time_s();
        td_status rc = td_session_wait(l->g->session, l->head, slice, cap, err);
        double dt = td_time_s() - t0;
        *got = rc == TD_OK;
        if (rc == TD_OK)
            return TD_OK;
        if (rc != TD_E_DEVICE || dt < 0.9 * slice) /* td_session_wait: no expiry */
            return name_batch(&l->slots[l->head], err);
        if (td_run_is_lost(l->g->run))
            return TD_OK;
        waited += TD_MIN(dt, 2 * slice);
        if (waited < patience)
            continue;
        *hung = true;
        char label[128];
        td_group_devices(l->g, label, sizeof label);
        td_error_set(err, TD_E_DEVICE, "%s: no sign of life for %.0f s: the device hangs", label,
                     waited);
        return name_batch(&l->slots[l->head], err);
    }
}

/* For status.json: only the group's thread may ask the session. With the sessions before it. */
static void tell_busy(td_loop *l) {
    td_group *g = l->g;
    for (int32_t i = 0; i < g->plan->n_stages; i++) {
        double before = i < (int32_t)TD_ARRAY_LEN(g->busy_s) ? g->busy_s[i] : 0;
        double s = before + td_session_stage_busy_s(g->session, i);
        atomic_store(&g->busy_us[i], (int64_t)(1e6 * s));
    }
}

/* The oldest micro-batch is done. The pipeline was full then if every stage could have had one, and
 * one stood ready for the first. */
static void note_done(td_loop *l, double now) {
    td_group *g = l->g;
    atomic_store(&g->last_done_us, (int64_t)(1e6 * (now - g->run->start_s)));
    if (now - l->busy_told_s >= BUSY_EVERY_S) {
        l->busy_told_s = now;
        tell_busy(l);
    }
    if (l->n_in_flight <= g->plan->n_stages)
        return;
    bool first = l->full_since_s <= 0;
    *(first ? &l->full_since_s : &l->full_until_s) = now;
    for (int32_t i = 0; i < g->plan->n_stages; i++)
        (first ? l->busy_since : l->busy_until)[i] = td_session_stage_busy_s(g->session, i);
}

static void set_steady_shares(const td_loop *l) {
    double dt = l->full_until_s - l->full_since_s;
    for (int32_t i = 0; i < l->g->plan->n_stages; i++)
        l->g->steady_share[i] =
            l->full_until_s > 0 && dt > 0 ? (l->busy_until[i] - l->busy_since[i]) / dt : -1;
}

static td_status complete_oldest(td_loop *l, bool *device_failed, bool *hung, td_error *err) {
    td_flight *f = &l->slots[l->head];
    td_captured cap;
    bool got;
    td_status rc = td_group_wait(l, &cap, &got, hung, err);
    *device_failed = rc != TD_OK;
    if (rc != TD_OK)
        return rc;
    if (!got)
        return TD_OK;
    rc = store(l, f, &cap, err);
    if (rc != TD_OK)
        return rc;
    const double now = td_time_s();
    note_done(l, now);
    atomic_store(&l->g->in_flight[l->head], NULL);
    l->head = (l->head + 1) % l->n_slots;
    atomic_store(&l->g->oldest, l->head);
    l->n_in_flight--;
    td_claimer_completed(&l->claimer, now, &f->item, f->predicted_s);
    atomic_store(&l->g->observed_us, (int64_t)(1e6 * l->claimer.total_s));
    atomic_store(&l->g->predicted_us, (int64_t)(1e6 * l->claimer.total_predicted_s));
    return TD_OK;
}

static void wait_for_work(td_loop *l) {
    double t0 = td_time_s();
    struct timespec ts = {.tv_nsec = (long)(1e9 * td_claimer_nap_s(&l->claimer))};
    nanosleep(&ts, NULL);
    atomic_fetch_add(&l->g->wait_us, (int64_t)(1e6 * (td_time_s() - t0)));
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
            td_flight *f = td_group_begin(l, &claim);
            split = td_group_care(l, &claim) == TD_CARE_SPLIT; /* then nothing else is in flight */
            if (!split)
                rc = td_group_submit(l, f, &err);
        }
        if (l->gone)
            return;
        if (split) {
            if (!td_group_split(l))
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
        if (!device_failed || !td_group_failed(l, hung, &err)) {
            if (!device_failed)
                td_run_fail(run, &err);
            return;
        }
    }
}

static void ack_phase(td_run_state *run, const td_error *err) {
    pthread_mutex_lock(&run->lock);
    run->n_acked++;
    if (err && run->phase_error.code == TD_OK)
        run->phase_error = *err;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

static td_phase next_phase(td_run_state *run, int32_t *serial) {
    pthread_mutex_lock(&run->lock);
    while (run->phase_serial == *serial)
        pthread_cond_wait(&run->changed, &run->lock);
    *serial = run->phase_serial;
    td_phase phase = run->phase;
    pthread_mutex_unlock(&run->lock);
    return phase;
}

/* The group's devices are driven from this thread alone, session creation included. */
void *td_group_main(void *arg) {
    td_group *g = arg;
    td_run_state *run = g->run;
    int32_t serial = 0;
    td_loop l = {.g = g};
    for (td_phase phase; (phase = next_phase(run, &serial)) != TD_PHASE_QUIT;) {
        td_error err = {0};
        td_status rc = TD_OK;
        if (phase == TD_PHASE_CREATE) {
            rc = td_group_create(g, &err);
        } else if (phase == TD_PHASE_DESTROY) {
            td_session_destroy(g->session);
            g->session = NULL;
        } else {
            rc = g->retired ? TD_OK : make_slots(&l, &err);
            if (g->retired) { /* its session could not be made */
            } else if (rc == TD_OK) {
                td_claimer_setup in = td_claimer_setup_of(run->in->plan, (int32_t)g->id, l.n_slots,
                                                          run->board, run->queue);
                td_claimer_init(&l.claimer, &in);
                for (int32_t i = 0; i < TD_MIN(g->plan->n_stages, (int32_t)TD_ARRAY_LEN(g->busy_s));
                     i++)
                    g->busy_s[i] = -td_session_stage_busy_s(g->session, i);
                work_loop(&l);
                /* The last of it; a device that is lost, hangs or failed is not asked again. */
                if (!l.gone && !g->retired && !td_run_is_lost(run))
                    tell_busy(&l);
            } else {
                td_run_fail(run, &err);
            }
            pthread_mutex_lock(&run->lock);
            g->finished_s = td_time_s() - run->start_s;
            set_steady_shares(&l);
            if (!g->ended)
                run->n_groups_ended++;
            g->ended = true;
            pthread_cond_broadcast(&run->changed);
            pthread_mutex_unlock(&run->lock);
            continue;
        }
        ack_phase(run, rc == TD_OK ? NULL : &err);
    }
    if (g->hung) /* never to be seen again, and with it what its device may still write to */
        return NULL;
    free_slots(&l);
    td_session_destroy(g->session);
    g->session = NULL;
    return NULL;
}
