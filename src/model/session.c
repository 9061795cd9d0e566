/* session.c - a group's pipeline: its stages, its slots, and the micro-batches in flight.
 *
 * A slot is the host side of one micro-batch: its integers on the way in, its captured values on
 * the way out, and the event that says it is done. A stage is the device side: one stream, whose
 * order makes one set of scratch buffers enough for all slots. Between stages two events per
 * residual buffer pass it forth (ready) and back (copied), so a stage works on micro-batch m + 1
 * while the next one works on m.
 *
 * Owned by one thread. Everything is allocated in td_session_create.
 */
#include <stdlib.h>
#include <string.h>

#include "model/forward.h"
#include "model/rope.h"
#include "base/clock.h"
#include "base/memory.h"

typedef struct slot {
    void *host_ints;  /* td_ints_layout; from the first stage's device */
    void *host_out;   /* td_capture_layout; from the last stage's device */
    void *host_dense; /* [max_rows] rows of td_dense_row_bytes or NULL; as host_out */
    float *host_rope; /* cos, then sin of each dynamic rope's long section, or NULL; as host_ints */
    td_event *done;
    int32_t n_rows;
    bool in_flight;
} slot;

struct td_session {
    td_model_config cfg;
    td_dtype compute;
    td_session_limits lim;
    td_capture_spec spec;
    td_rope_layout rope;
    td_stage_state *stages; /* [n_stages] */
    int32_t n_stages;
    slot *slots; /* [lim.n_slots] */
    uint64_t n_submitted;
    bool failed;
};

/* --- creation --------------------------------------------------------------------------------- */

static td_status check_arguments(const td_weights *w, const td_stage *stages, int32_t n_stages,
                                 const td_session_limits *lim, const td_capture_spec *spec,
                                 td_error *err) {
    const td_model_config *c = td_weights_config(w);
    /* Rows of the rotary tables, several times as many, must fit int32. */
    if (lim->max_tokens < 1 || lim->max_tokens > 1 << 28 || lim->max_seqs < 1 ||
        lim->max_rows < 0 || lim->n_slots < 1 || lim->capture_rows < 1 ||
        spec->n_temperatures < 0 || spec->n_temperatures > TD_MAX_TEMPERATURES)
        return td_error_set(
            err, TD_E_INTERNAL,
            "session limits out of range: %d tokens, %d samples, %d rows, %d slots, "
            "%d rows per chunk, %d temperatures",
            lim->max_tokens, lim->max_seqs, lim->max_rows, lim->n_slots, lim->capture_rows,
            spec->n_temperatures);
    if (td_capture_has_topk(spec->mode) ? spec->top_k < 1 || spec->top_k > c->n_vocab : spec->top_k)
        return td_error_set(err, TD_E_CONFIG,
                            "capture.top_k is %d, expected 1 to the model's vocabulary of %d",
                            spec->top_k, c->n_vocab);
    if (td_capture_has_draws(spec->mode) ? spec->n_draws < 1 || spec->n_draws > TD_MAX_DRAWS
                                         : spec->n_draws)
        return td_error_set(err, TD_E_INTERNAL, "%d draws in a mode that %s", spec->n_draws,
                            td_capture_has_draws(spec->mode) ? "draws 1 to 1024" : "draws none");
    if (spec->mode == TD_CAPTURE_HIDDEN && (spec->n_temperatures || spec->n_always))
        return td_error_set(err, TD_E_INTERNAL, "mode hidden records states alone");
    if (spec->n_always < 0 || spec->n_always > TD_MAX_ALWAYS_IDS)
        return td_error_set(err, TD_E_INTERNAL, "%d always_ids", spec->n_always);
    for (int32_t i = 0; i < spec->n_always; i++)
        if (spec->always_ids[i] < 0 || spec->always_ids[i] >= c->n_vocab)
            return td_error_set(err, TD_E_CONFIG,
                                "capture.always_ids names id %d, but the vocabulary has ids 0 to "
                                "%d",
                                spec->always_ids[i], c->n_vocab - 1);
    if (spec->n_valid < 1 || spec->n_valid > c->n_vocab || spec->n_vocab != c->n_vocab)
        return td_error_set(err, TD_E_INTERNAL, "%d valid ids in a vocabulary of %d", spec->n_valid,
                            c->n_vocab);
    for (int32_t i = 0, next = 0; i < n_stages; i++) {
        if (stages[i].item_begin != next || stages[i].item_end <= next)
            return td_error_set(err, TD_E_INTERNAL,
                                "stage %d holds items [%d, %d), expected from %d", i,
                                stages[i].item_begin, stages[i].item_end, next);
        next = stages[i].item_end;
        const td_domain_weights *d = td_weights_of(w, stages[i].device);
        if (stages[i].device->info.narrow_attention != lim->narrow_attention)
            return td_error_set(err, TD_E_INTERNAL, "%s %s q, k and v in the compute type",
                                stages[i].device->info.name,
                                lim->narrow_attention ? "does not take" : "takes only");
        for (int32_t k = stages[i].item_begin; k < next; k++)
            if (!d || k > c->n_layers + 1 || !d->has_item[k])
                return td_error_set(err, TD_E_INTERNAL, "item %d was not loaded for %s", k,
                                    stages[i].device->info.name);
    }
    if (n_stages < 1 || stages[n_stages - 1].item_end != c->n_layers + 2)
        return td_error_set(err, TD_E_INTERNAL, "the stages do not cover the %d items of the model",
                            c->n_layers + 2);
    return TD_OK;
}

static td_status upload_rope(td_stage_state *st, const float *cos_table, const float *sin_table,
                             uint64_t size_bytes, td_error *err) {
    const td_device_ops *ops = st->device->ops;
    td_event *e;
    td_status rc = ops->event_create(st->device, &e, err);
    if (rc != TD_OK)
        return rc;
    if ((rc = ops->copy_in(st->stream, st->buf[TD_BUF_COS], cos_table, size_bytes, err)) == TD_OK &&
        (rc = ops->copy_in(st->stream, st->buf[TD_BUF_SIN], sin_table, size_bytes, err)) == TD_OK &&
        (rc = ops->event_record(e, st->stream, err)) == TD_OK)
        rc = ops->event_sync(e, 0, err);
    ops->event_destroy(e);
    return rc;
}

static td_status create_stage(td_session *s, td_stage_state *st, td_error *err) {
    td_device *dev = st->device;
    const td_device_ops *ops = dev->ops;
    uint64_t size_bytes[TD_BUF_COUNT];
    td_stage_buffer_sizes(&s->cfg, s->compute, &s->lim, &s->spec, st->item_begin, st->item_end,
                          size_bytes);
    td_status rc = ops->stream_create(dev, &st->stream, err);
    for (int b = 0; rc == TD_OK && b < TD_BUF_COUNT; b++)
        if (size_bytes[b])
            rc = ops->alloc(dev, size_bytes[b], &st->buf[b], err);
    for (int i = 0; rc == TD_OK && i < 2 && st->item_end < s->cfg.n_layers + 2; i++)
        rc = ops->event_create(dev, &st->ready[i], err);
    return rc;
}

static td_status create_stages(td_session *s, td_error *err) {
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && i < s->n_stages; i++) {
        rc = create_stage(s, &s->stages[i], err);
        /* Recorded by stage i + 1, hence an event of its device. */
        const td_stage_state *next = i + 1 < s->n_stages ? &s->stages[i + 1] : NULL;
        for (int k = 0; rc == TD_OK && next && k < 2; k++)
            rc = next->device->ops->event_create(next->device, &s->stages[i].copied[k], err);
    }
    if (rc != TD_OK)
        return rc;
    size_t n = (size_t)s->rope.n_elems;
    float *cos_table = td_calloc(n, sizeof *cos_table),
          *sin_table = td_calloc(n, sizeof *sin_table);
    if (!cos_table || !sin_table)
        rc = td_error_nomem(err, "rotary tables", n * sizeof *cos_table);
    else
        td_rope_tables(&s->cfg, s->lim.max_tokens, cos_table, sin_table);
    for (int32_t i = 0; rc == TD_OK && i < s->n_stages; i++)
        if (s->stages[i].buf[TD_BUF_COS])
            rc = upload_rope(&s->stages[i], cos_table, sin_table, n * sizeof *cos_table, err);
    free(cos_table);
    free(sin_table);
    return rc;
}

static td_status create_slots(td_session *s, td_error *err) {
    td_device *first = s->stages[0].device, *last = s->stages[s->n_stages - 1].device;
    uint64_t n_in =
        td_ints_layout_of(&s->cfg, &s->spec, s->lim.max_tokens, s->lim.max_seqs, s->lim.max_rows)
            .size_bytes;
    uint64_t n_out = td_capture_layout_of(&s->spec, s->lim.max_rows).size_bytes;
    uint64_t n_dense = (uint64_t)s->lim.max_rows * td_capture_dense_bytes(&s->spec);
    uint64_t n_rope = (uint64_t)s->rope.n_dynamic_elems * 2 * sizeof(float);
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && i < s->lim.n_slots; i++) {
        slot *sl = &s->slots[i];
        if ((rc = first->ops->host_alloc(first, n_in, &sl->host_ints, err)) != TD_OK)
            break;
        memset(sl->host_ints, 0, n_in); /* the gaps between parts are copied too */
        void *rope = NULL;
        if (n_rope && (rc = first->ops->host_alloc(first, n_rope, &rope, err)) != TD_OK)
            break;
        if ((sl->host_rope = rope))
            memset(rope, 0, n_rope); /* rows of shorter sequences are copied too, unused */
        if (n_out && (rc = last->ops->host_alloc(last, n_out, &sl->host_out, err)) != TD_OK)
            break;
        if (n_dense && (rc = last->ops->host_alloc(last, n_dense, &sl->host_dense, err)) != TD_OK) {
            td_error_prefix(err, "host memory for the dense rows of %d tokens", s->lim.max_rows);
            break;
        }
        rc = last->ops->event_create(last, &sl->done, err);
    }
    return rc;
}

td_status td_session_create(const td_weights *w, const td_stage *stages, int32_t n_stages,
                            const td_session_limits *lim, const td_capture_spec *spec,
                            td_session **out, td_error *err) {
    td_status rc = check_arguments(w, stages, n_stages, lim, spec, err);
    if (rc != TD_OK)
        return rc;
    td_session *s = td_calloc(1, sizeof *s);
    if (!s)
        return td_error_nomem(err, "session", sizeof *s);
    s->cfg = *td_weights_config(w);
    s->compute = td_weights_compute(w);
    s->lim = *lim;
    s->spec = *spec;
    s->rope = td_rope_layout_of(&s->cfg, lim->max_tokens);
    s->stages = td_calloc((size_t)n_stages, sizeof *s->stages);
    s->slots = td_calloc((size_t)lim->n_slots, sizeof *s->slots);
    if (!s->stages || !s->slots) {
        rc = td_error_nomem(err, "session", (size_t)n_stages * sizeof *s->stages);
        goto fail;
    }
    s->n_stages = n_stages;
    for (int32_t i = 0; i < n_stages; i++) {
        s->stages[i].device = stages[i].device;
        s->stages[i].item_begin = stages[i].item_begin;
        s->stages[i].item_end = stages[i].item_end;
        s->stages[i].weights = td_weights_of(w, stages[i].device);
    }
    if ((rc = create_stages(s, err)) != TD_OK || (rc = create_slots(s, err)) != TD_OK)
        goto fail;
    *out = s;
    return TD_OK;
fail:
    td_session_destroy(s);
    return rc;
}

void td_session_destroy(td_session *s) {
    if (!s)
        return;
    /* All streams first, from the first stage on: each waits for what is enqueued, and a later
     * stage may still wait for an event of an earlier one. */
    for (int32_t i = 0; i < s->n_stages; i++)
        if (s->stages[i].stream)
            s->stages[i].device->ops->stream_destroy(s->stages[i].stream);
    for (int32_t i = 0; i < s->n_stages; i++) {
        td_stage_state *st = &s->stages[i];
        for (int k = 0; k < 2; k++) {
            if (st->ready[k])
                st->device->ops->event_destroy(st->ready[k]);
            if (st->copied[k])
                s->stages[i + 1].device->ops->event_destroy(st->copied[k]);
        }
        for (int b = 0; b < TD_BUF_COUNT; b++)
            if (st->buf[b])
                st->device->ops->free(st->device, st->buf[b]);
    }
    for (int32_t i = 0; s->n_stages && i < s->lim.n_slots; i++) {
        td_device *first = s->stages[0].device, *last = s->stages[s->n_stages - 1].device;
        slot *sl = &s->slots[i];
        if (sl->done)
            last->ops->event_destroy(sl->done);
        if (sl->host_out)
            last->ops->host_free(last, sl->host_out);
        if (sl->host_dense)
            last->ops->host_free(last, sl->host_dense);
        if (sl->host_rope)
            first->ops->host_free(first, sl->host_rope);
        if (sl->host_ints)
            first->ops->host_free(first, sl->host_ints);
    }
    free(s->slots);
    free(s->stages);
    free(s);
}

/* --- micro-batches ---------------------------------------------------------------------------- */

/* The devices index memory with these numbers: nothing unchecked reaches them. */
static td_status check_batch(const td_session *s, const td_batch *b, td_error *err) {
    if (b->n_tokens < 1 || b->n_tokens > s->lim.max_tokens || b->n_seqs < 1 ||
        b->n_seqs > s->lim.max_seqs || b->n_rows < 0 || b->n_rows > s->lim.max_rows)
        return td_error_set(err, TD_E_INTERNAL,
                            "a micro-batch of %d tokens, %d samples and %d rows does not fit a "
                            "session made for %d, %d and %d",
                            b->n_tokens, b->n_seqs, b->n_rows, s->lim.max_tokens, s->lim.max_seqs,
                            s->lim.max_rows);
    if (b->seq_offsets[0] != 0 || b->seq_offsets[b->n_seqs] != b->n_tokens)
        return td_error_set(err, TD_E_INTERNAL, "seq_offsets run from %d to %d, expected 0 to %d",
                            b->seq_offsets[0], b->seq_offsets[b->n_seqs], b->n_tokens);
    for (int32_t i = 0; i < b->n_seqs; i++)
        if (b->seq_offsets[i] >= b->seq_offsets[i + 1])
            return td_error_set(err, TD_E_INTERNAL, "sample %d of the micro-batch is empty", i);
    for (int32_t i = 0; s->cfg.learned_positions && i < b->n_seqs; i++)
        if (b->seq_offsets[i + 1] - b->seq_offsets[i] > s->cfg.max_positions)
            return td_error_set(err, TD_E_DATA,
                                "a sample of %d tokens is longer than the %d learned positions of "
                                "the model; set data.max_length to at most that",
                                b->seq_offsets[i + 1] - b->seq_offsets[i], s->cfg.max_positions);
    for (int32_t i = 0; i < b->n_tokens; i++)
        if (b->ids[i] < 0 || b->ids[i] >= s->cfg.n_vocab)
            return td_error_set(err, TD_E_DATA,
                                "token id %d (token %d of the micro-batch) is not in the model's "
                                "vocabulary of %d; do tokenizer and model belong together?",
                                b->ids[i], i, s->cfg.n_vocab);
    for (int32_t r = 0, prev = -1; r < b->n_rows; prev = b->row_token[r++]) {
        if (b->row_token[r] <= prev || b->row_token[r] >= b->n_tokens)
            return td_error_set(err, TD_E_INTERNAL, "row %d is at token %d, after %d and of %d", r,
                                b->row_token[r], prev, b->n_tokens);
        if (b->row_target[r] < -1 || b->row_target[r] >= s->cfg.n_vocab)
            return td_error_set(err, TD_E_DATA,
                                "target id %d (row %d) is not in the model's vocabulary of %d",
                                b->row_target[r], r, s->cfg.n_vocab);
    }
    for (int32_t r = 0; s->spec.n_draws && r < b->n_rows; r++)
        if (!b->row_dataset_row || !b->row_position || b->row_dataset_row[r] < 0 ||
            b->row_position[r] < 0 || b->row_position[r] > UINT32_MAX)
            return td_error_set(err, TD_E_INTERNAL, "row %d has nothing to draw by", r);
    return TD_OK;
}

/* Fills the slot's integers and, for dynamic ropes, what b->dynamic points to. */
static void fill_slot(const td_session *s, const td_batch *batch, slot *sl, td_forward_batch *b) {
    td_ints_layout l =
        td_ints_layout_of(&s->cfg, &s->spec, batch->n_tokens, batch->n_seqs, batch->n_rows);
    char *dst = sl->host_ints;
    memcpy(dst + l.ids, batch->ids, (size_t)batch->n_tokens * 4);
    memcpy(dst + l.seq_offsets, batch->seq_offsets, ((size_t)batch->n_seqs + 1) * 4);
    if (batch->n_rows) {
        memcpy(dst + l.rows, batch->row_token, (size_t)batch->n_rows * 4);
        memcpy(dst + l.targets, batch->row_target, (size_t)batch->n_rows * 4);
    }
    if (batch->n_rows && s->spec.n_draws) {
        memcpy(dst + l.dataset_rows, batch->row_dataset_row, (size_t)batch->n_rows * 8);
        memcpy(dst + l.row_positions, batch->row_position, (size_t)batch->n_rows * 8);
    }
    int32_t *positions = (int32_t *)(dst + l.positions);
    for (int32_t i = 0; s->cfg.learned_positions && i < batch->n_seqs; i++)
        for (int32_t t = batch->seq_offsets[i]; t < batch->seq_offsets[i + 1]; t++)
            positions[t] = t - batch->seq_offsets[i];
    float *cos_rows = sl->host_rope;
    for (int32_t k = 0; k < s->cfg.n_ropes; k++) {
        const td_rope *r = &s->cfg.rope[k];
        const int32_t half = r->rotary_dim / 2, limit = s->rope.limit[k];
        const size_t n = (size_t)s->lim.max_tokens * (size_t)half;
        bool has_rows = r->type == TD_ROPE_DYNAMIC && limit < s->lim.max_tokens;
        float *sin_rows = has_rows ? cos_rows + n : NULL;
        if (td_rope_rows(&s->cfg, &s->rope, k, batch, (int32_t *)(dst + l.rope_rows[k]), cos_rows,
                         sin_rows))
            b->dynamic[b->n_dynamic++] = (td_dynamic_rope){
                s->rope.first_elem[k] + (int64_t)limit * half, half, cos_rows, sin_rows};
        if (has_rows)
            cos_rows += 2 * n;
    }
}

td_status td_session_submit(td_session *s, int32_t slot_index, const td_batch *batch,
                            td_error *err) {
    if (s->failed)
        return td_error_set(err, TD_E_DEVICE, "the session failed before and cannot be used");
    if (slot_index < 0 || slot_index >= s->lim.n_slots || s->slots[slot_index].in_flight)
        return td_error_set(err, TD_E_INTERNAL, "slot %d is not free (of %d)", slot_index,
                            s->lim.n_slots);
    td_status rc = check_batch(s, batch, err);
    if (rc != TD_OK)
        return rc;
    slot *sl = &s->slots[slot_index];
    td_forward_batch b = {.n_tokens = batch->n_tokens,
                          .n_seqs = batch->n_seqs,
                          .n_rows = batch->n_rows,
                          .parity = (int32_t)(s->n_submitted++ & 1),
                          .host_ints = sl->host_ints,
                          .host_out = sl->host_out,
                          .host_dense = sl->host_dense};
    fill_slot(s, batch, sl, &b);
    for (int32_t i = 0; rc == TD_OK && i < s->n_stages; i++) {
        rc = td_stage_forward(&s->cfg, s->compute, &s->lim, &s->spec, i ? &s->stages[i - 1] : NULL,
                              &s->stages[i], &b, err);
        if (rc != TD_OK)
            td_error_prefix(err, "%s", s->stages[i].device->info.name);
    }
    td_stage_state *last = &s->stages[s->n_stages - 1];
    if (rc == TD_OK)
        rc = last->device->ops->event_record(sl->done, last->stream, err);
    if (rc != TD_OK) {
        s->failed = true;
        return rc;
    }
    sl->n_rows = batch->n_rows;
    sl->in_flight = true;
    return TD_OK;
}

td_status td_session_wait(td_session *s, int32_t slot_index, double timeout_s, td_captured *out,
                          td_error *err) {
    if (slot_index < 0 || slot_index >= s->lim.n_slots || !s->slots[slot_index].in_flight)
        return td_error_set(err, TD_E_INTERNAL, "nothing is in flight in slot %d (of %d)",
                            slot_index, s->lim.n_slots);
    slot *sl = &s->slots[slot_index];
    const double t0 = td_time_s();
    td_status rc = s->stages[s->n_stages - 1].device->ops->event_sync(sl->done, timeout_s, err);
    if (rc != TD_OK) {
        /* Clocks differ a little; a failure that looks like the expiry sticks to the stream and is
         * met by the next call. */
        if (rc != TD_E_DEVICE || timeout_s <= 0 || td_time_s() - t0 < 0.9 * timeout_s)
            s->failed = true;
        return rc;
    }
    sl->in_flight = false;
    const td_capture_spec *spec = &s->spec;
    td_capture_layout l = td_capture_layout_of(spec, sl->n_rows);
    const int32_t n_dense = td_capture_dense_width(spec);
    const char *p = sl->host_out;
    if (!p) { /* mode hidden, or a session without recorded rows (max_rows = 0) */
        *out = (td_captured){.n_rows = sl->n_rows,
                             .top_k = spec->top_k,
                             .n_temperatures = spec->n_temperatures,
                             .n_draws = spec->n_draws,
                             .n_always = spec->n_always,
                             .dense = sl->host_dense,
                             .dense_dtype = spec->dense_dtype,
                             .n_dense = n_dense};
        return TD_OK;
    }
    *out = (td_captured){.n_rows = sl->n_rows,
                         .top_k = spec->top_k,
                         .n_temperatures = spec->n_temperatures,
                         .n_draws = spec->n_draws,
                         .n_always = spec->n_always,
                         .dense = sl->host_dense,
                         .dense_dtype = spec->dense_dtype,
                         .n_dense = n_dense,
                         .topk_ids = (const int32_t *)(p + l.topk_ids),
                         .topk_logprobs = (const float *)(p + l.topk_logprobs),
                         .logsumexp = (const float *)(p + l.logsumexp),
                         .logsumexp_t = (const float *)(p + l.logsumexp_t),
                         .tail_mass = (const float *)(p + l.tail_mass),
                         .target_logprob = (const float *)(p + l.target_logprob),
                         .entropy = (const float *)(p + l.entropy),
                         .target_rank = (const int32_t *)(p + l.target_rank)};
    if (td_capture_has_topp(spec->mode))
        out->n_kept = (const int32_t *)(p + l.n_kept);
    if (spec->n_draws) {
        out->n_unique = (const int32_t *)(p + l.n_unique);
        out->draw_ids = (const int32_t *)(p + l.draw_ids);
        out->draw_counts = (const int32_t *)(p + l.draw_counts);
        out->draw_logprobs = (const float *)(p + l.draw_logprobs);
        if (td_capture_has_proposal(spec))
            out->proposal_logsumexp = (const float *)(p + l.proposal_logsumexp);
    }
    if (spec->n_always)
        out->always_logprobs = (const float *)(p + l.always_logprobs);
    if (spec->top_k == 0)
        out->topk_ids = NULL, out->topk_logprobs = NULL;
    return TD_OK;
}

void td_session_profile(const td_session *s, double seconds[TD_OP_COUNT]) {
    for (int32_t i = 0; i < s->n_stages; i++) {
        const td_device_ops *ops = s->stages[i].device->ops;
        double stage[TD_OP_COUNT] = {0};
        if (ops->stream_profile)
            ops->stream_profile(s->stages[i].stream, stage);
        for (int op = 0; op < TD_OP_COUNT; op++)
            seconds[op] += stage[op];
    }
}

double td_session_stage_busy_s(const td_session *s, int32_t stage) {
    if (stage < 0 || stage >= s->n_stages)
        return 0;
    return s->stages[stage].device->ops->stream_busy_s(s->stages[stage].stream);
}
