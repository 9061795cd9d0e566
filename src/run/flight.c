/* flight.c - see flight.h.
 *
 * Waiting is cut into slices, so that a lost device elsewhere is noticed soon, and so that time in
 * which the whole process stood still (SIGSTOP, a suspended machine) is not held against a device.
 */
#include "run/flight.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "base/clock.h"
#include "base/memory.h"

#define SLICE_S 0.5
#define PATIENCE_MEANS 20.0

void td_flight_free_slots(td_loop *l) {
    for (int32_t i = 0; l->slots && i < l->n_slots; i++)
        td_batch_builder_free(&l->slots[i].b);
    free(l->slots);
    free(l->busy_since);
    free(l->busy_until);
}

td_status td_flight_make_slots(td_loop *l, td_error *err) {
    const td_session_limits *lim = &l->g->run->limits;
    l->n_slots = lim->n_slots;
    l->slots = td_calloc((size_t)l->n_slots, sizeof *l->slots);
    l->busy_since = td_calloc((size_t)l->g->plan->n_stages, sizeof *l->busy_since);
    l->busy_until = td_calloc((size_t)l->g->plan->n_stages, sizeof *l->busy_until);
    if (!l->slots || !l->busy_since || !l->busy_until)
        return td_error_nomem(err, "the slots of a group", (size_t)l->n_slots * sizeof *l->slots);
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && i < l->n_slots; i++)
        rc = td_batch_builder_init(&l->slots[i].b, lim, err);
    return rc;
}

/* Lays the samples of a micro-batch end to end; of a work that is split only the sample that is being
 * tried. The packing saw to it that they fit. */
static void fill(td_flight *f, const td_work *w) {
    const td_shard *sh = w->open->shard;
    const td_micro_batch *mb = &sh->batches[w->batch];
    /* relaxed: ours to write */
    const int32_t only = atomic_load_explicit(&w->only, memory_order_relaxed);
    const int32_t n_samples = only ? 1 : mb->n_samples;
    td_batch_clear(&f->b);
    for (int32_t i = 0; i < n_samples; i++) {
        const td_sample *s = &sh->samples[mb->samples[only ? only - 1 : i]];
        td_batch_add(&f->b, sh->ids + s->token_offset, sh->loss_mask + s->token_offset, s->n_tokens,
                     s->row, s->start);
    }
}

/* Are the n elements of a dense row finite? A 16-bit float is not where its exponent is all
 * ones. */
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
td_status td_flight_record(td_loop *l, const td_flight *f, int32_t i, const td_captured *cap,
                           int32_t row, int32_t seq, td_error *err) {
    td_group_assert_own(l->g);
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
                          f->b.batch.row_token[bad_row] - f->b.batch.seq_offsets[seq],
                          td_dtype_name(run->in->plan->compute), g->id);
    } else {
        td_log_warn("dataset row %lld: logits are not finite, the sample is skipped",
                    (long long)s->row);
        atomic_fetch_add(&run->counters.n_bad, 1);
        rc = td_shard_writer_skip(w->open->writer, index, err);
    }
    if (rc != TD_OK)
        return rc;
    atomic_fetch_add(&g->counters.n_tokens, s->n_tokens);
    atomic_fetch_add(&g->counters.n_rows, s->n_rows);
    atomic_fetch_add(&g->counters.n_samples, 1);
    return TD_OK;
}

/* Between td_queue_begin_commit and this the results were written. */
void td_flight_done(td_loop *l, td_flight *f) {
    td_group_assert_own(l->g);
    td_group *g = l->g;
    td_run_state *run = g->run;
    td_work *w = f->claim.item;
    td_open_shard *o = w->open;
    /* Before it is done: then groups that wait for the verdict may see the queue finished. */
    if (f->claim.tries > 0 || l->failed) {
        td_lock_acquire(&run->lock);
        td_blame_completed(td_verdict_blame(run->verdict), g->id, f->claim.number);
        td_lock_notify(&run->lock);
        td_lock_release(&run->lock);
        l->failed = false;
    }
    atomic_fetch_add(&g->counters.n_batches, 1);
    const td_micro_batch *mb = &o->shard->batches[w->batch];
    double now = td_time_s();
    td_timeline_note(run->timeline, g->id, o->shard->number, mb->n_samples, mb->n_tokens,
                     TD_MAX(f->submitted_s, l->last_stored_s), now);
    l->last_stored_s = now;
    /* Before it is done: then it is nobody's any more. */
    atomic_store(&g->signs.in_flight[l->head], NULL);
    td_queue_done(run->queue, g->id, f->claim.number);
    /* acq_rel: the last one sees the rows of all others written; after it the shard may be freed */
    if (atomic_fetch_sub_explicit(&o->n_left, 1, memory_order_acq_rel) == 1)
        td_open_shards_complete(run->open, o);
}

td_status td_flight_store(td_loop *l, td_flight *f, const td_captured *cap, td_error *err) {
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
        td_status rc = td_flight_record(l, f, i, cap, row, i, err);
        if (rc != TD_OK)
            return rc;
        row += sh->samples[mb->samples[i]].n_rows;
    }
    td_flight_done(l, f);
    return TD_OK;
}

/* How long the oldest micro-batch may take: a multiple of what the cost model says of all that is
 * in flight, corrected by what was observed. Before any was done only the plan's speeds stand in,
 * and where they are not known, ten times the usual patience: the first one also pays for what
 * drivers and libraries do once. */
static void set_patience(td_loop *l) {
    double least = td_run_patience_s(), expected = td_claimer_expected_s(&l->claimer);
    double seconds = expected > 0 ? PATIENCE_MEANS * expected : 10 * least;
    atomic_store(&l->g->signs.patience_ms, (int64_t)(1e3 * TD_MAX(least, seconds)));
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
                               f->b.batch.n_tokens);
    return td_error_prefix(err,
                           "micro-batch %d of shard %lld (%d tokens, %d samples from dataset row "
                           "%lld on)",
                           w->batch, (long long)sh->number, f->b.batch.n_tokens, mb->n_samples,
                           (long long)sh->samples[mb->samples[0]].row);
}

int64_t td_group_enter(td_group *g) {
    td_group_assert_own(g);
    /* seq_cst: the watch that gives us up sees what was stored before */
    return atomic_fetch_add(&g->signs.n_submits, 1) + 1;
}

bool td_group_leave(td_group *g, int64_t ticket) {
    td_group_assert_own(g);
    return atomic_compare_exchange_strong(&g->signs.n_submits, &ticket, ticket + 1);
}

td_status td_flight_submit(td_loop *l, td_flight *f, td_error *err) {
    td_group_assert_own(l->g);
    td_work *w = f->claim.item;
    int32_t slot = (int32_t)(f - l->slots);
    fill(f, w);
    set_patience(l);
    w->number = f->claim.number;
    atomic_store(&l->g->signs.in_flight[slot], w);
    int64_t ticket = td_group_enter(l->g);
    td_status rc = td_session_submit(l->g->own.session, slot, &f->b.batch, err);
    l->gone = !td_group_leave(l->g, ticket);
    return rc == TD_OK || l->gone ? rc : name_batch(f, err);
}

td_flight *td_flight_begin(td_loop *l, const td_claim *claim) {
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

td_status td_flight_wait(td_loop *l, td_captured *cap, bool *got, bool *hung, td_error *err) {
    td_group_assert_own(l->g);
    double waited = 0, patience = 1e-3 * (double)atomic_load(&l->g->signs.patience_ms);
    *got = *hung = false;
    for (;;) {
        double slice = TD_MIN(SLICE_S, patience), t0 = td_time_s();
        td_status rc = td_session_wait(l->g->own.session, l->head, slice, cap, err);
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
