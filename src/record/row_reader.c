/* Rows of a shard as numbers. See row_reader.h. */
#include "record/row_reader.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "record/pack.h"
#include "base/memory.h"

struct td_row_reader {
    const td_shard_file *f;
    /* Decoded row; sets that stand in the file as they are read are not copied. */
    int32_t top_ids[TD_MAX_TOP_K], draw_ids[TD_MAX_DRAWS];
    float top_logprobs[TD_MAX_TOP_K], draw_logprobs[TD_MAX_DRAWS];
};

td_status td_row_reader_create(const td_shard_file *f, td_row_reader **out, td_error *err) {
    td_row_reader *rr = td_calloc(1, sizeof *rr);
    if (!rr)
        return td_error_nomem(err, "a row of a shard", sizeof *rr);
    rr->f = f;
    *out = rr;
    return TD_OK;
}

void td_row_reader_destroy(td_row_reader *rr) {
    free(rr);
}

bool td_row_sample_sound(const td_shard_file *f, int64_t i) {
    const int64_t *t = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *r = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    const int32_t *position = td_shard_file_data(f, TD_T_ROW_POSITION);
    const td_layout_counts *c = &f->layout.counts;
    if (t[i] < 0 || t[i + 1] < t[i] || t[i + 1] > c->n_tokens || r[i] < 0 || r[i + 1] < r[i] ||
        r[i + 1] > c->n_rows)
        return false;
    for (int64_t k = r[i]; k < r[i + 1]; k++)
        if (position[k] < 0 || position[k] + INT64_C(1) >= t[i + 1] - t[i])
            return false;
    return true;
}

static bool __attribute__((format(printf, 3, 4)))
problem(td_row_problem *p, const char *tensor, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    p->tensor = tensor;
    vsnprintf(p->what, sizeof p->what, fmt, ap);
    va_end(ap);
    return false;
}

/* Tensors of one set of ids and log-probabilities. */
typedef struct set_tensors {
    td_tensor_id ids, packed, f32, f16, q8, range;
} set_tensors;

static const set_tensors topk_set = {TD_T_TOPK_IDS,          TD_T_TOPK_IDS_PACKED,
                                     TD_T_TOPK_LOGPROBS_F32, TD_T_TOPK_LOGPROBS_F16,
                                     TD_T_TOPK_Q8,           TD_T_TOPK_Q8_RANGE};
static const set_tensors topp_set = {TD_T_TOPP_IDS,          TD_T_TOPP_IDS_PACKED,
                                     TD_T_TOPP_LOGPROBS_F32, TD_T_TOPP_LOGPROBS_F16,
                                     TD_T_TOPP_Q8,           TD_T_TOPP_Q8_RANGE};
static const set_tensors draw_set = {TD_T_DRAW_IDS,          TD_T_DRAW_IDS_PACKED,
                                     TD_T_DRAW_LOGPROBS_F32, TD_T_DRAW_LOGPROBS_F16,
                                     TD_T_DRAW_Q8,           TD_T_DRAW_Q8_RANGE};

/* Entries [at, at + n) of a set, which belong to `row`. `packed`: the row's own stream, or the
 * whole tensor's where first_packed is an index in that. */
static void read_set(const td_shard_file *f, const set_tensors *s, int64_t row, int64_t at,
                     int32_t n, bool by_row, int32_t *id_buf, float *lp_buf, const int32_t **ids,
                     const float **logprobs, float *error) {
    const td_layout_tensor *pt = &f->layout.tensor[s->packed];
    const float *f32 = td_shard_file_data(f, s->f32);
    const uint16_t *f16 = td_shard_file_data(f, s->f16);
    const uint8_t *q8 = td_shard_file_data(f, s->q8);
    const float *range = td_shard_file_data(f, s->range);
    if (pt->present) {
        const uint8_t *stream = td_shard_file_data(f, s->packed);
        size_t size = (size_t)(pt->end - pt->begin);
        if (by_row) {
            size = (size_t)pt->shape[1];
            stream += (size_t)row * size;
        }
        td_ids_unpack(stream, size, by_row ? 0 : (uint64_t)at, (size_t)n,
                      td_capture_id_bits(&f->layout.spec), id_buf);
        *ids = id_buf;
    } else {
        *ids = (const int32_t *)td_shard_file_data(f, s->ids) + at;
    }
    *logprobs = f32 ? f32 + at : lp_buf;
    if (f16)
        for (int32_t j = 0; j < n; j++)
            lp_buf[j] = td_f16_to_f32(f16[at + j]);
    if (q8) {
        td_q8_decode(q8 + at, (size_t)n, range + 2 * row, lp_buf);
        *error = (float)(((double)range[2 * row] - (double)range[2 * row + 1]) / 508);
    }
}

/* Range of the row in a ragged set of at most `max` entries. */
static bool entries_of(const td_shard_file *f, td_tensor_id id, int64_t row, int32_t max,
                       int64_t *at, int32_t *n, td_row_problem *why) {
    const int64_t *o = td_shard_file_data(f, id);
    if (o[row] < 0 || o[row + 1] < o[row] || o[row + 1] > f->layout.counts.n_entries ||
        o[row + 1] - o[row] > max)
        return problem(why, f->layout.tensor[id].name,
                       "gives the row entries %lld to %lld, of %lld in all and at most %d a row",
                       (long long)o[row], (long long)o[row + 1],
                       (long long)f->layout.counts.n_entries, max);
    *at = o[row];
    *n = (int32_t)(o[row + 1] - o[row]);
    return true;
}

static void read_stats(const td_shard_file *f, int64_t row, td_row_view *v) {
    const float *lse_t = td_shard_file_data(f, TD_T_LOGSUMEXP_T);
    const float *always = td_shard_file_data(f, TD_T_ALWAYS_LOGPROBS);
    const float *proposal = td_shard_file_data(f, TD_T_PROPOSAL_LOGSUMEXP);
    v->logsumexp = ((const float *)td_shard_file_data(f, TD_T_LOGSUMEXP))[row];
    v->tail_mass = ((const float *)td_shard_file_data(f, TD_T_TAIL_MASS))[row];
    v->target_logprob = ((const float *)td_shard_file_data(f, TD_T_TARGET_LOGPROB))[row];
    v->entropy = ((const float *)td_shard_file_data(f, TD_T_ENTROPY))[row];
    v->target_rank = ((const int32_t *)td_shard_file_data(f, TD_T_TARGET_RANK))[row];
    v->logsumexp_t = lse_t ? lse_t + row * v->spec->n_temperatures : NULL;
    v->always_logprobs = always ? always + row * v->spec->n_always : NULL;
    v->proposal_logsumexp = proposal ? proposal[row] : 0;
}

static void read_dense(const td_shard_file *f, int64_t row, td_row_view *v) {
    static const td_tensor_id kinds[] = {TD_T_LOGITS_F32, TD_T_LOGITS_BF16, TD_T_LOGITS_F16,
                                         TD_T_HIDDEN_F32, TD_T_HIDDEN_BF16, TD_T_HIDDEN_F16};
    for (size_t i = 0; i < TD_ARRAY_LEN(kinds); i++) {
        const td_layout_tensor *t = &f->layout.tensor[kinds[i]];
        if (!t->present)
            continue;
        v->n_dense = (int32_t)t->shape[1];
        v->dense = (const char *)td_shard_file_data(f, kinds[i]) +
                   (uint64_t)row * td_layout_row_bytes(&f->layout, kinds[i]);
    }
}

bool td_row_read(td_row_reader *rr, int64_t sample, int64_t row, td_row_view *v,
                 td_row_problem *why) {
    const td_shard_file *f = rr->f;
    const td_capture_spec *s = &f->layout.spec;
    const int64_t *tokens = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int32_t *input_ids = td_shard_file_data(f, TD_T_INPUT_IDS);
    *v = (td_row_view){.spec = s,
                       .position = ((const int32_t *)td_shard_file_data(f, TD_T_ROW_POSITION))[row],
                       .rounding = s->q8                        ? TD_ROUND_Q8
                                   : s->logprob_dtype == TD_F16 ? TD_ROUND_F16
                                                                : TD_ROUND_NONE};
    v->target = input_ids[tokens[sample] + v->position + 1];
    int64_t at = 0;
    if (s->mode != TD_CAPTURE_HIDDEN)
        read_stats(f, row, v);
    if (td_capture_has_topk_rows(s->mode)) {
        v->n_top = s->top_k;
        read_set(f, &topk_set, row, row * s->top_k, s->top_k, true, rr->top_ids, rr->top_logprobs,
                 &v->top_ids, &v->top_logprobs, &v->top_error);
    }
    if (td_capture_has_topp(s->mode)) {
        if (!entries_of(f, TD_T_TOPP_OFFSETS, row, s->top_k, &at, &v->n_top, why))
            return false;
        read_set(f, &topp_set, row, at, v->n_top, false, rr->top_ids, rr->top_logprobs, &v->top_ids,
                 &v->top_logprobs, &v->top_error);
    }
    if (td_capture_has_draws(s->mode)) {
        if (!entries_of(f, TD_T_DRAW_OFFSETS, row, td_capture_max_entries(s), &at, &v->n_drawn,
                        why))
            return false;
        v->draw_counts = (const int32_t *)td_shard_file_data(f, TD_T_DRAW_COUNTS) + at;
        read_set(f, &draw_set, row, at, v->n_drawn, false, rr->draw_ids, rr->draw_logprobs,
                 &v->draw_ids, &v->draw_logprobs, &v->draw_error);
    }
    read_dense(f, row, v);
    return true;
}
