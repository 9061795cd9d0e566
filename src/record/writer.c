/* The shard writer: temp file, rows to their places, atomic commit.
 *
 *   open    layout from the shard's counts; a temporary file reserved at full size (in
 *           ragged modes: without the sets' entries); tokens and sample tables written
 *   put     one sample's rows, checked, each tensor's part written with pwrite at its place;
 *           entries of a ragged set appended to the side file (spool.h), their numbers kept where
 *           the offsets will be
 *   commit  ragged modes, and shards with skipped samples: everything is copied in order to a
 *           second temp file; then device and status of the samples, hashes, header, compression
 *           (output.zstd), fsync, rename, fsync of the folder, index line
 *
 * Invariant: the file gets its final name only after everything in it was checked, written and
 * synced. Host memory: tables of n samples, never the row tensors.
 *
 * Threads: put and skip of distinct samples may run at once; each writes ranges of its own. open,
 * commit and abort belong to one thread, with no put or skip running.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "record/output.h"
#include "record/pack.h"
#include "capture/capture.h"
#include "record/shard_zstd.h"
#include "record/spool.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { SAMPLE_EMPTY, SAMPLE_BUSY, SAMPLE_PUT, SAMPLE_SKIPPED };

struct td_shard_writer {
    td_output *o;
    const td_shard *shard;
    shard_temp temp;
    td_spool *spool;    /* NULL where every row has the same size */
    const char **kinds; /* sorted, each once; owned */
    int32_t n_kinds;
    uint8_t *kind_of; /* index in the run's list -> index in `kinds` */
    int32_t n_run_kinds;
    /* [n_samples]. EMPTY -> BUSY by the one thread that puts (compare-and-swap, so a second put is
     * refused) -> PUT or, on failure, EMPTY again. Relaxed order suffices: commit reads them after
     * the caller joined or otherwise synchronised with the putting threads. */
    _Atomic uint8_t *state;
    uint8_t *device; /* [n_samples]; written by the putting thread */
    pthread_mutex_t mutex;
    td_coverage coverage; /* of the rows put. Protected by mutex */
};

static td_shard_meta meta_of(const td_shard_writer *w, int64_t n_skipped) {
    const td_shard *s = w->shard;
    return (td_shard_meta){.number = s->number,
                           .row_begin = s->row_begin,
                           .row_end = s->row_end,
                           .fingerprint = w->o->fingerprint,
                           .source_hash = s->source_hash,
                           .n_skipped = n_skipped,
                           .n_bad_rows = s->n_bad_rows,
                           .n_overflow_rows = s->n_overflow_rows,
                           .device_kinds = w->kinds,
                           .n_kinds = w->n_kinds};
}

static bool is_skipped(const td_shard_writer *w, int32_t i) {
    return atomic_load_explicit(&w->state[i], memory_order_relaxed) == SAMPLE_SKIPPED;
}

static int64_t count_skipped(const td_shard_writer *w) {
    int64_t n = 0;
    for (int32_t i = 0; i < w->shard->n_samples; i++)
        n += is_skipped(w, i);
    return n;
}

static td_status temp_create(td_shard_writer *w, int64_t n_rows, int64_t n_entries,
                             int64_t n_skipped, shard_temp *out, td_error *err) {
    const td_shard *s = w->shard;
    td_layout layout;
    char name[TD_SHARD_NAME_SIZE];
    td_layout_counts counts = {.n_samples = s->n_samples,
                               .n_tokens = s->n_tokens,
                               .n_rows = n_rows,
                               .n_id_bytes = w->o->has_ids ? s->id_offsets[s->n_samples] : -1,
                               .n_entries = n_entries};
    if (!td_layout_init(&layout, &w->o->spec, &counts))
        return td_error_set(err, TD_E_INTERNAL, "shard %lld is too large: its size overflows",
                            (long long)s->number);
    td_shard_name(s->number, false, name);
    td_shard_meta meta = meta_of(w, n_skipped);
    return shard_temp_create(w->o->dir, name, &layout, &meta, out, err);
}

/* --- tokens and sample tables ----------------------------------------------------------------- */

static void push_i64(column *c, int64_t v) {
    column_push(c, &v, sizeof v);
}

/* Tables whose content follows from the shard and from which samples are skipped. */
static td_status write_tables(const td_shard_writer *w, const shard_temp *t, td_error *err) {
    static const uint8_t zeros[4096];
    const td_shard *s = w->shard;
    column c;
    td_status rc;
    column_begin(&c, t, TD_T_SAMPLE_OFFSETS, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++)
        push_i64(&c, s->samples[i].token_offset);
    push_i64(&c, s->n_tokens);
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_SAMPLE_INDEX, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++)
        push_i64(&c, s->samples[i].row);
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_SAMPLE_START, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++)
        push_i64(&c, s->samples[i].start);
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_ROW_OFFSETS, 0, err);
    int64_t rows = 0;
    for (int32_t i = 0; i < s->n_samples; i++) {
        push_i64(&c, rows);
        rows += is_skipped(w, i) ? 0 : s->samples[i].n_rows;
    }
    push_i64(&c, rows);
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_ROW_POSITION, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++) {
        const td_sample *m = &s->samples[i];
        for (int32_t p = 1; p < m->n_tokens && !is_skipped(w, i); p++)
            if (s->loss_mask[m->token_offset + p])
                column_push(&c, &(int32_t){p - 1}, sizeof(int32_t));
    }
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_LOSS_MASK, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++) {
        const td_sample *m = &s->samples[i];
        if (!is_skipped(w, i)) {
            column_push(&c, s->loss_mask + m->token_offset, (size_t)m->n_tokens);
            continue;
        }
        for (int32_t p = 0; p < m->n_tokens; p += (int32_t)sizeof zeros)
            column_push(&c, zeros, (size_t)TD_MIN(m->n_tokens - p, (int32_t)sizeof zeros));
    }
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    rc = shard_temp_write(t, TD_T_INPUT_IDS, 0, s->ids, (uint64_t)s->n_tokens, err);
    if (rc == TD_OK && w->o->has_ids)
        rc = shard_temp_write(t, TD_T_SAMPLE_ID_OFFSETS, 0, s->id_offsets,
                              (uint64_t)s->n_samples + 1, err);
    if (rc == TD_OK && w->o->has_ids)
        rc = shard_temp_write(t, TD_T_SAMPLE_ID_BYTES, 0, s->id_bytes,
                              (uint64_t)t->layout.counts.n_id_bytes, err);
    return rc;
}

/* What the writer relies on. A wrong count here would put rows over each other. */
static td_status check_shard(const td_output *o, const td_shard *s, td_error *err) {
    int64_t tokens = 0, rows = 0;
    for (int32_t i = 0; i < s->n_samples; i++) {
        const td_sample *m = &s->samples[i];
        int32_t n = 0;
        if (m->token_offset != tokens || m->row_offset != rows || m->n_tokens < 0 ||
            m->n_tokens > s->n_tokens - tokens)
            goto wrong;
        for (int32_t p = 0; p < m->n_tokens; p++) {
            uint8_t mask = s->loss_mask[tokens + p];
            if (mask > 1 || (p == 0 && mask) || s->ids[tokens + p] < 0 ||
                s->ids[tokens + p] >= o->spec.n_vocab)
                goto wrong;
            n += mask;
        }
        if (n != m->n_rows)
            goto wrong;
        tokens += m->n_tokens;
        rows += n;
        continue;
    wrong:
        return td_error_set(err, TD_E_INTERNAL,
                            "shard %lld: the tables of sample %d contradict its tokens",
                            (long long)s->number, i);
    }
    if (tokens != s->n_tokens || rows != s->n_rows || (o->has_ids && !s->id_offsets))
        return td_error_set(err, TD_E_INTERNAL, "shard %lld: its counts contradict its samples",
                            (long long)s->number);
    return TD_OK;
}

/* --- open ------------------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The list in the shard is sorted and has each kind once: which group came first, or how many
 * groups there were, is not told by the bytes. */
static td_status set_kinds(td_shard_writer *w, const char *const *kinds, int32_t n, td_error *err) {
    if (n < 0 || n > 255)
        return td_error_set(err, TD_E_INTERNAL, "%d device kinds, at most 255 fit a shard", n);
    w->kinds = td_calloc((size_t)n, sizeof *w->kinds);
    w->kind_of = td_calloc((size_t)n, 1);
    if (!w->kinds || !w->kind_of)
        return td_error_nomem(err, "the device kinds", (size_t)n);
    w->n_run_kinds = n;
    const char **sorted = td_calloc((size_t)n, sizeof *sorted);
    if (!sorted)
        return td_error_nomem(err, "the device kinds", (size_t)n);
    for (int32_t i = 0; i < n; i++)
        sorted[i] = kinds[i];
    qsort(sorted, (size_t)n, sizeof *sorted, compare_names);
    td_status rc = TD_OK;
    for (int32_t i = 0; i < n && rc == TD_OK; i++) {
        if (i && strcmp(sorted[i], sorted[i - 1]) == 0)
            continue;
        w->kinds[w->n_kinds] = td_strdup(sorted[i]);
        if (!w->kinds[w->n_kinds])
            rc = td_error_nomem(err, "the device kinds", strlen(sorted[i]));
        else
            w->n_kinds++;
    }
    for (int32_t i = 0; i < n && rc == TD_OK; i++)
        for (int32_t j = 0; j < w->n_kinds; j++)
            if (strcmp(kinds[i], w->kinds[j]) == 0)
                w->kind_of[i] = (uint8_t)j;
    free(sorted);
    return rc;
}

static void writer_free(td_shard_writer *w) {
    shard_temp_discard(&w->temp);
    td_spool_close(w->spool);
    for (int32_t i = 0; i < w->n_kinds; i++)
        free((char *)w->kinds[i]);
    free(w->kinds);
    free(w->kind_of);
    free(w->state);
    free(w->device);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

td_status td_shard_writer_open(td_output *o, const td_shard *shard, const char *const *device_kinds,
                               int32_t n_kinds, td_shard_writer **out, td_error *err) {
    if (!o->bound)
        return td_error_set(err, TD_E_INTERNAL,
                            "td_output_bind_weights must come before td_shard_writer_open");
    td_status rc = check_shard(o, shard, err);
    if (rc != TD_OK)
        return rc;
    td_shard_writer *w = td_calloc(1, sizeof *w);
    if (!w)
        return td_error_nomem(err, "a shard writer", sizeof *w);
    w->o = o;
    w->shard = shard;
    w->temp.fd = -1;
    pthread_mutex_init(&w->mutex, NULL);
    td_coverage_init(&w->coverage, o->coverage.top_k);
    size_t n = (size_t)shard->n_samples;
    w->state = td_calloc(n, sizeof *w->state);
    w->device = td_calloc(n, 1);
    rc = !w->state || !w->device ? td_error_nomem(err, "a shard writer", 2 * n)
                                 : set_kinds(w, device_kinds, n_kinds, err);
    if (rc == TD_OK)
        rc = temp_create(w, shard->n_rows, 0, 0, &w->temp, err);
    if (rc == TD_OK)
        rc = write_tables(w, &w->temp, err);
    if (rc == TD_OK && td_capture_is_ragged(o->spec.mode)) {
        char name[TD_SHARD_NAME_SIZE];
        td_shard_name(shard->number, false, name);
        rc = td_spool_open(o->dir, name, &o->spec, shard->n_samples, &w->spool, err);
    }
    if (rc != TD_OK) {
        writer_free(w);
        return rc;
    }
    *out = w;
    return TD_OK;
}

/* --- put and skip ----------------------------------------------------------------------------- */

/* Row `r` of what was captured; `p`: its position. */
static td_row_view view_of(const td_capture_spec *s, const td_captured *cap, size_t r, int32_t p,
                           int32_t target) {
    td_row_view v = {.spec = s, .position = p, .target = target};
    if (s->mode == TD_CAPTURE_FULL || s->mode == TD_CAPTURE_HIDDEN) {
        v.n_dense = s->mode == TD_CAPTURE_FULL ? s->n_vocab : s->n_hidden;
        v.dense = (const char *)cap->dense + r * (size_t)v.n_dense * td_dtype_size(s->dense_dtype);
    }
    if (s->mode == TD_CAPTURE_HIDDEN)
        return v;
    v.logsumexp = cap->logsumexp[r];
    v.tail_mass = cap->tail_mass[r];
    v.target_logprob = cap->target_logprob[r];
    v.entropy = cap->entropy[r];
    v.target_rank = cap->target_rank[r];
    if (s->n_temperatures)
        v.logsumexp_t = cap->logsumexp_t + r * (size_t)s->n_temperatures;
    if (s->n_always)
        v.always_logprobs = cap->always_logprobs + r * (size_t)s->n_always;
    if (td_capture_has_topk(s->mode)) {
        v.n_top = td_capture_has_topp(s->mode) ? cap->n_kept[r] : s->top_k;
        v.top_ids = cap->topk_ids + r * (size_t)cap->top_k;
        v.top_logprobs = cap->topk_logprobs + r * (size_t)cap->top_k;
    }
    if (td_capture_has_draws(s->mode)) {
        v.n_drawn = cap->n_unique[r];
        v.draw_ids = cap->draw_ids + r * (size_t)cap->n_draws;
        v.draw_counts = cap->draw_counts + r * (size_t)cap->n_draws;
        v.draw_logprobs = cap->draw_logprobs + r * (size_t)cap->n_draws;
        v.proposal_logsumexp = td_capture_has_proposal(s) ? cap->proposal_logsumexp[r] : 0;
    }
    return v;
}

/* Sizes that what follows indexes with. */
static bool sizes_fit(const td_row_view *v, td_row_problem *why) {
    const td_capture_spec *s = v->spec;
    bool topp = td_capture_has_topp(s->mode);
    why->tensor = topp ? "topp_offsets" : "draw_offsets";
    int32_t n = topp ? v->n_top : v->n_drawn, max = td_capture_max_entries(s);
    snprintf(why->what, sizeof why->what, "the row has %d entries of at most %d", n, max);
    return !td_capture_is_ragged(s->mode) || (n >= 1 && n <= max);
}

static td_status check_rows(const td_shard_writer *w, const td_sample *m, int32_t sample,
                            const td_captured *cap, int32_t first_row, td_error *err) {
    size_t r = (size_t)first_row;
    for (int32_t p = 1; p < m->n_tokens; p++) {
        if (!w->shard->loss_mask[m->token_offset + p])
            continue;
        td_row_view v = view_of(&w->o->spec, cap, r, p - 1, w->shard->ids[m->token_offset + p]);
        td_row_problem why;
        /* Sums over the vocabulary are made for the first row only: verify makes them all. */
        if (!sizes_fit(&v, &why) || !td_row_check(&v, r == (size_t)first_row, &why))
            return td_error_set(err, TD_E_INTERNAL,
                                "dataset row %lld (shard %lld, sample %d), position %d: the device "
                                "gave numbers that must not be recorded: %s %s",
                                (long long)m->row, (long long)w->shard->number, sample, p - 1,
                                why.tensor, why.what);
        r++;
    }
    return TD_OK;
}

static td_status write_topk_ids(const td_shard_writer *w, uint64_t first, int32_t n_rows,
                                const int32_t *ids, size_t stride, td_error *err) {
    const td_capture_spec *s = &w->o->spec;
    size_t k = (size_t)s->top_k;
    column c;
    if (!s->pack_ids) {
        column_begin(&c, &w->temp, TD_T_TOPK_IDS, first * k, err);
        for (int32_t r = 0; r < n_rows; r++)
            column_push(&c, ids + (size_t)r * stride, k * sizeof *ids);
        return column_end(&c);
    }
    int32_t bits = td_capture_id_bits(s);
    uint8_t packed[TD_MAX_TOP_K * 4];
    column_begin(&c, &w->temp, TD_T_TOPK_IDS_PACKED,
                 first * td_layout_row_bytes(&w->temp.layout, TD_T_TOPK_IDS_PACKED), err);
    for (int32_t r = 0; r < n_rows; r++) {
        td_bit_packer p = {0};
        size_t n = td_ids_pack(&p, ids + (size_t)r * stride, k, bits, packed);
        n += td_ids_pack_end(&p, packed + n);
        column_push(&c, packed, n);
    }
    return column_end(&c);
}

static td_status write_topk_logprobs(const td_shard_writer *w, uint64_t first, int32_t n_rows,
                                     const float *lp, size_t stride, float *q8_range,
                                     td_error *err) {
    const td_capture_spec *s = &w->o->spec;
    size_t k = (size_t)s->top_k;
    column c;
    column_begin(&c, &w->temp,
                 s->q8                        ? TD_T_TOPK_Q8
                 : s->logprob_dtype == TD_F16 ? TD_T_TOPK_LOGPROBS_F16
                                              : TD_T_TOPK_LOGPROBS_F32,
                 first * k, err);
    for (int32_t r = 0; r < n_rows; r++) {
        const float *row = lp + (size_t)r * stride;
        uint8_t q[TD_MAX_TOP_K];
        if (s->q8) {
            td_q8_encode(row, k, q, q8_range + 2 * (size_t)r);
            column_push(&c, q, k);
        } else if (s->logprob_dtype == TD_F32) {
            column_push(&c, row, k * sizeof *row);
        } else {
            for (size_t j = 0; j < k; j++) {
                uint16_t h = td_logprob_to_f16(row[j]);
                column_push(&c, &h, sizeof h);
            }
        }
    }
    return column_end(&c);
}

/* The sets of a sample: of K places each, and the ragged one. */
static td_status write_sets(const td_shard_writer *w, int32_t sample, const td_captured *cap,
                            int32_t first_row, td_error *err) {
    const td_capture_spec *s = &w->o->spec;
    const td_sample *m = &w->shard->samples[sample];
    uint64_t at = (uint64_t)m->row_offset, n = (uint64_t)m->n_rows;
    size_t r = (size_t)first_row * (size_t)cap->top_k;
    td_status rc = TD_OK;
    float *range = NULL;
    if (s->q8 && !(range = td_calloc(n, 2 * sizeof *range)))
        return td_error_nomem(err, "a sample", n * 2 * sizeof *range);
    if (td_capture_has_topk_rows(s->mode)) {
        rc = write_topk_ids(w, at, m->n_rows, cap->topk_ids + r, (size_t)cap->top_k, err);
        if (rc == TD_OK)
            rc = write_topk_logprobs(w, at, m->n_rows, cap->topk_logprobs + r, (size_t)cap->top_k,
                                     range, err);
        if (rc == TD_OK && range)
            rc = shard_temp_write(&w->temp, TD_T_TOPK_Q8_RANGE, 2 * at, range, 2 * n, err);
    }
    if (rc == TD_OK && w->spool) {
        bool topp = td_capture_has_topp(s->mode);
        rc = td_spool_put(w->spool, sample, cap, first_row, m->n_rows, range, err);
        if (rc == TD_OK && range)
            rc = shard_temp_write(&w->temp, topp ? TD_T_TOPP_Q8_RANGE : TD_T_DRAW_Q8_RANGE, 2 * at,
                                  range, 2 * n, err);
        column c; /* sizes, where commit makes offsets of them */
        if (rc == TD_OK) {
            column_begin(&c, &w->temp, topp ? TD_T_TOPP_OFFSETS : TD_T_DRAW_OFFSETS, at, err);
            for (int32_t i = 0; i < m->n_rows; i++)
                push_i64(&c, td_ragged_row_of(s, cap, first_row + i).n);
            rc = column_end(&c);
        }
    }
    free(range);
    return rc;
}

static td_status write_rows(const td_shard_writer *w, int32_t sample, const td_captured *cap,
                            int32_t first_row, td_error *err) {
    const shard_temp *t = &w->temp;
    const td_capture_spec *s = &w->o->spec;
    const td_sample *m = &w->shard->samples[sample];
    uint64_t at = (uint64_t)m->row_offset, n = (uint64_t)m->n_rows;
    size_t r = (size_t)first_row;
    td_status rc = write_sets(w, sample, cap, first_row, err);
    /* One entry a row and column: where it comes from. */
    const struct {
        td_tensor_id id;
        const void *data;
        size_t n_columns;
    } plain[] = {
        {TD_T_LOGSUMEXP, cap->logsumexp, 1},
        {TD_T_LOGSUMEXP_T, cap->logsumexp_t, (size_t)s->n_temperatures},
        {TD_T_TAIL_MASS, cap->tail_mass, 1},
        {TD_T_TARGET_LOGPROB, cap->target_logprob, 1},
        {TD_T_TARGET_RANK, cap->target_rank, 1},
        {TD_T_ENTROPY, cap->entropy, 1},
        {TD_T_ALWAYS_LOGPROBS, cap->always_logprobs, (size_t)s->n_always},
        {TD_T_PROPOSAL_LOGSUMEXP, cap->proposal_logsumexp, 1},
        {TD_T_LOGITS_F32, cap->dense, (size_t)s->n_vocab},
        {TD_T_LOGITS_BF16, cap->dense, (size_t)s->n_vocab},
        {TD_T_LOGITS_F16, cap->dense, (size_t)s->n_vocab},
        {TD_T_HIDDEN_F32, cap->dense, (size_t)s->n_hidden},
        {TD_T_HIDDEN_BF16, cap->dense, (size_t)s->n_hidden},
        {TD_T_HIDDEN_F16, cap->dense, (size_t)s->n_hidden},
    };
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(plain); i++) {
        size_t columns = plain[i].n_columns,
               es = td_dtype_size(t->layout.tensor[plain[i].id].dtype);
        if (t->layout.tensor[plain[i].id].present)
            rc = shard_temp_write(t, plain[i].id, at * columns,
                                  (const char *)plain[i].data + r * columns * es, n * columns, err);
    }
    return rc;
}

/* Takes the sample for this thread. */
static td_status claim(td_shard_writer *w, int32_t sample, td_error *err) {
    uint8_t expected = SAMPLE_EMPTY;
    if (sample < 0 || sample >= w->shard->n_samples)
        return td_error_set(err, TD_E_INTERNAL, "shard %lld has no sample %d",
                            (long long)w->shard->number, sample);
    if (!atomic_compare_exchange_strong_explicit(&w->state[sample], &expected, SAMPLE_BUSY,
                                                 memory_order_relaxed, memory_order_relaxed))
        return td_error_set(err, TD_E_INTERNAL, "shard %lld: sample %d was put or skipped already",
                            (long long)w->shard->number, sample);
    return TD_OK;
}

/* The rows count for the report of what truncation loses. */
static void count_rows(td_shard_writer *w, const td_sample *m, const td_captured *cap,
                       int32_t first_row) {
    td_coverage c;
    td_coverage_init(&c, w->coverage.top_k);
    if (c.top_k == 0)
        return;
    for (int32_t i = 0; i < m->n_rows; i++) {
        size_t r = (size_t)first_row + (size_t)i;
        td_coverage_add(&c, cap->tail_mass[r],
                        td_capture_has_topk_rows(w->o->spec.mode) &&
                                td_coverage_wants_levels(&c, m->row_offset + i)
                            ? cap->topk_logprobs + r * (size_t)cap->top_k
                            : NULL);
    }
    pthread_mutex_lock(&w->mutex);
    td_coverage_merge(&w->coverage, &c);
    pthread_mutex_unlock(&w->mutex);
}

td_status td_shard_writer_put(td_shard_writer *w, int32_t sample, int32_t device_kind,
                              const td_captured *cap, int32_t first_row, td_error *err) {
    td_status rc = claim(w, sample, err);
    if (rc != TD_OK)
        return rc;
    const td_sample *m = &w->shard->samples[sample];
    const td_capture_spec *spec = &w->o->spec;
    bool top = td_capture_has_topk(spec->mode);
    bool draws = td_capture_has_draws(spec->mode);
    bool dense = spec->mode == TD_CAPTURE_FULL || spec->mode == TD_CAPTURE_HIDDEN;
    if (device_kind < 0 || device_kind >= w->n_run_kinds || first_row < 0 ||
        first_row > cap->n_rows - m->n_rows || (top && cap->top_k < spec->top_k) ||
        (draws && cap->n_draws != spec->n_draws) ||
        (dense && (!cap->dense || cap->dense_dtype != spec->dense_dtype)) ||
        (spec->mode != TD_CAPTURE_HIDDEN &&
         (cap->n_temperatures != spec->n_temperatures || cap->n_always != spec->n_always)) ||
        (td_capture_has_topp(spec->mode) && !cap->n_kept))
        rc = td_error_set(
            err, TD_E_INTERNAL,
            "shard %lld, sample %d: what was captured does not fit mode %s (rows %d+%d of %d, "
            "top_k %d of %d, draws %d of %d, temperatures %d of %d, always_ids %d of %d, device "
            "kind %d of %d)",
            (long long)w->shard->number, sample, td_capture_mode_name(spec->mode), first_row,
            m->n_rows, cap->n_rows, cap->top_k, spec->top_k, cap->n_draws, spec->n_draws,
            cap->n_temperatures, spec->n_temperatures, cap->n_always, spec->n_always, device_kind,
            w->n_run_kinds);
    if (rc == TD_OK)
        rc = check_rows(w, m, sample, cap, first_row, err);
    if (rc == TD_OK)
        rc = write_rows(w, sample, cap, first_row, err);
    if (rc == TD_OK) {
        w->device[sample] = w->kind_of[device_kind];
        count_rows(w, m, cap, first_row);
    }
    atomic_store_explicit(&w->state[sample], rc == TD_OK ? SAMPLE_PUT : SAMPLE_EMPTY,
                          memory_order_relaxed);
    return rc;
}

td_status td_shard_writer_skip(td_shard_writer *w, int32_t sample, td_error *err) {
    td_status rc = claim(w, sample, err);
    if (rc == TD_OK)
        atomic_store_explicit(&w->state[sample], SAMPLE_SKIPPED, memory_order_relaxed);
    return rc;
}

/* --- commit ----------------------------------------------------------------------------------- */

/* Copies the rows of one tensor that are kept, in runs of neighbouring samples. */
static td_status copy_rows(const td_shard_writer *w, const shard_temp *to, td_tensor_id id,
                           char *buf, size_t buf_size, td_error *err) {
    const td_shard *s = w->shard;
    const td_layout_tensor *a = &w->temp.layout.tensor[id], *b = &to->layout.tensor[id];
    uint64_t row_bytes = td_layout_row_bytes(&w->temp.layout, id);
    uint64_t dst = to->header_size_bytes + b->begin;
    for (int32_t i = 0; i < s->n_samples;) {
        if (is_skipped(w, i)) {
            i++;
            continue;
        }
        int64_t first = s->samples[i].row_offset, n = 0;
        for (; i < s->n_samples && !is_skipped(w, i); i++)
            n += s->samples[i].n_rows;
        uint64_t src = w->temp.header_size_bytes + a->begin + (uint64_t)first * row_bytes;
        uint64_t left = (uint64_t)n * row_bytes;
        while (left) {
            size_t part = (size_t)TD_MIN(left, (uint64_t)buf_size);
            td_status rc = td_pread_all(w->temp.fd, buf, part, src, w->temp.path, err);
            if (rc == TD_OK)
                rc = td_pwrite_all(to->fd, buf, part, dst, to->path, err);
            if (rc != TD_OK)
                return rc;
            src += part;
            dst += part;
            left -= part;
        }
    }
    return TD_OK;
}

/* The sizes that put left in the temp file, as offsets. */
static td_status write_offsets(const td_shard_writer *w, const shard_temp *to, char *buf,
                               size_t buf_size, td_error *err) {
    const td_shard *s = w->shard;
    td_tensor_id id = td_capture_has_topp(w->o->spec.mode) ? TD_T_TOPP_OFFSETS : TD_T_DRAW_OFFSETS;
    const td_layout_tensor *from = &w->temp.layout.tensor[id];
    int64_t offset = 0;
    column c;
    column_begin(&c, to, id, 0, err);
    push_i64(&c, 0);
    for (int32_t i = 0; i < s->n_samples; i++) {
        int64_t left = is_skipped(w, i) ? 0 : s->samples[i].n_rows,
                first = s->samples[i].row_offset;
        while (left) {
            int64_t n = TD_MIN(left, (int64_t)(buf_size / sizeof(int64_t)));
            td_status rc = td_pread_all(w->temp.fd, buf, (size_t)n * sizeof(int64_t),
                                        w->temp.header_size_bytes + from->begin +
                                            (uint64_t)first * sizeof(int64_t),
                                        w->temp.path, err);
            if (rc != TD_OK)
                return rc;
            for (int64_t k = 0; k < n; k++)
                push_i64(&c, offset += ((const int64_t *)(const void *)buf)[k]);
            first += n;
            left -= n;
        }
    }
    return column_end(&c);
}

static td_status copy_ragged(const td_shard_writer *w, const shard_temp *to, char *buf,
                             size_t buf_size, td_error *err) {
    bool *keep = td_calloc((size_t)w->shard->n_samples, sizeof *keep);
    if (!keep)
        return td_error_nomem(err, "a shard", (size_t)w->shard->n_samples);
    for (int32_t i = 0; i < w->shard->n_samples; i++)
        keep[i] = !is_skipped(w, i);
    td_status rc = write_offsets(w, to, buf, buf_size, err);
    if (rc == TD_OK)
        rc = td_spool_copy(w->spool, keep, to, err);
    free(keep);
    return rc;
}

/* Replaces the temp file by one without the rows of skipped samples, and with the entries of the
 * ragged set. */
static td_status assemble(td_shard_writer *w, int64_t n_rows, int64_t n_entries, int64_t n_skipped,
                          td_error *err) {
    enum { BUF = 1 << 20 };
    shard_temp to = {.fd = -1};
    char *buf = malloc(BUF);
    if (!buf)
        return td_error_nomem(err, "putting a shard's rows in order", BUF);
    td_status rc = temp_create(w, n_rows, n_entries, n_skipped, &to, err);
    if (rc == TD_OK)
        rc = write_tables(w, &to, err);
    for (int i = 0; rc == TD_OK && i < TD_T_COUNT; i++)
        if (to.layout.tensor[i].present && td_layout_doc((td_tensor_id)i)->row_tensor &&
            i != TD_T_ROW_POSITION) /* written by write_tables */
            rc = copy_rows(w, &to, (td_tensor_id)i, buf, BUF, err);
    if (rc == TD_OK && w->spool)
        rc = copy_ragged(w, &to, buf, BUF, err);
    free(buf);
    if (rc != TD_OK) {
        shard_temp_discard(&to);
        return rc;
    }
    shard_temp_discard(&w->temp);
    w->temp = to;
    td_spool_close(w->spool);
    w->spool = NULL;
    return TD_OK;
}

/* Hashes and header of the complete data part. */
static td_status seal(td_shard_writer *w, int64_t n_skipped, td_index_entry *e, td_error *err) {
    shard_temp *t = &w->temp;
    td_shard_hashes hashes = {0};
    td_strbuf header = {0};
    uint64_t file_hash;
    td_shard_meta meta = meta_of(w, n_skipped);
    td_status rc =
        td_shard_hash_fd(t->fd, t->path, &t->layout, t->header_size_bytes, &hashes, NULL, err);
    if (rc == TD_OK)
        rc = td_layout_header(&t->layout, &meta, &hashes, &header, err);
    if (rc == TD_OK && header.len != t->header_size_bytes)
        rc = td_error_set(err, TD_E_INTERNAL, "%s: the header changed its size", t->path);
    if (rc == TD_OK)
        rc = td_pwrite_all(t->fd, header.data, header.len, 0, t->path, err);
    if (rc == TD_OK)
        rc = td_shard_hash_fd(t->fd, t->path, &t->layout, t->header_size_bytes, &hashes, &file_hash,
                              err);
    td_strbuf_free(&header);
    if (rc != TD_OK)
        return rc;
    td_shard_file as_file = {.layout = t->layout,
                             .meta = meta,
                             .hashes = hashes,
                             .disk_bytes = t->header_size_bytes + t->layout.data_size_bytes};
    td_index_entry_of(&as_file, file_hash, e);
    e->proven = true;
    return TD_OK;
}

/* Puts the compressed file in the place of the plain temp file. */
static td_status compress(td_shard_writer *w, td_index_entry *e, td_error *err) {
    char name[TD_SHARD_NAME_SIZE];
    int fd = -1;
    td_shard_name(w->shard->number, true, name);
    char *final = td_output_path(w->o, name), *path = final ? td_temp_path(final) : NULL;
    free(final);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = td_zstd_pack(w->temp.fd, w->temp.path, e->size_bytes, path, &fd, &e->file_hash,
                                &e->size_bytes, err);
    if (rc != TD_OK) {
        free(path);
        return rc;
    }
    e->packed = true;
    shard_temp_discard(&w->temp);
    w->temp.path = path;
    w->temp.fd = fd;
    return TD_OK;
}

/* A shard that is computed again may be there in the other form: it goes first, so that a crash
 * never leaves both. */
static td_status remove_other_form(td_shard_writer *w, bool packed, td_error *err) {
    char name[TD_SHARD_NAME_SIZE];
    td_shard_name(w->shard->number, !packed, name);
    char *path = td_output_path(w->o, name);
    td_status rc = TD_OK;
    if (!path)
        return td_error_nomem(err, "a path", 0);
    if (td_path_exists(path) && unlink(path) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot remove %s, which is written again",
                            path);
    free(path);
    return rc;
}

static td_status publish(td_shard_writer *w, bool packed, td_error *err) {
    shard_temp *t = &w->temp;
    char name[TD_SHARD_NAME_SIZE];
    td_shard_name(w->shard->number, packed, name);
    char *final = td_output_path(w->o, name);
    if (!final)
        return td_error_nomem(err, "a path", 0);
    td_status rc = TD_OK;
    if (fsync(t->fd) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot sync %s", t->path);
    if (rc == TD_OK)
        rc = td_temp_check(t->fd, t->path, err);
    if (rc == TD_OK)
        rc = remove_other_form(w, packed, err);
    if (rc == TD_OK && rename(t->path, final) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot rename %s to %s", t->path, final);
    if (rc == TD_OK) {
        close(t->fd);
        t->fd = -1; /* the name is gone: nothing left to discard */
        rc = td_file_sync_dir_of(final, err);
    }
    free(final);
    return rc;
}

td_status td_shard_writer_commit(td_shard_writer *w, td_error *err) {
    const td_shard *s = w->shard;
    td_status rc = TD_OK;
    int64_t n_skipped = count_skipped(w), n_rows = 0, n_entries = 0;
    uint8_t *status = td_calloc((size_t)s->n_samples, 1);
    if (!status) {
        rc = td_error_nomem(err, "a shard", (size_t)s->n_samples);
        goto done;
    }
    for (int32_t i = 0; i < s->n_samples; i++) {
        uint8_t state = atomic_load_explicit(&w->state[i], memory_order_relaxed);
        if (state == SAMPLE_BUSY || (state == SAMPLE_EMPTY && s->samples[i].n_rows)) {
            rc = td_error_set(err, TD_E_INTERNAL,
                              "shard %lld: sample %d was neither put nor skipped",
                              (long long)s->number, i);
            goto done;
        }
        status[i] = state == SAMPLE_SKIPPED ? TD_SAMPLE_SKIPPED : TD_SAMPLE_OK;
        n_rows += state == SAMPLE_SKIPPED ? 0 : s->samples[i].n_rows;
        n_entries += state == SAMPLE_PUT && w->spool ? td_spool_entries(w->spool, i) : 0;
    }
    if (n_skipped || w->spool)
        rc = assemble(w, n_rows, n_entries, n_skipped, err);
    if (rc == TD_OK)
        rc = shard_temp_write(&w->temp, TD_T_SAMPLE_DEVICE, 0, w->device, (uint64_t)s->n_samples,
                              err);
    if (rc == TD_OK)
        rc = shard_temp_write(&w->temp, TD_T_SAMPLE_STATUS, 0, status, (uint64_t)s->n_samples, err);
    td_index_entry entry = {0};
    if (rc == TD_OK)
        rc = seal(w, n_skipped, &entry, err);
    if (rc == TD_OK && w->o->cfg->output.zstd)
        rc = compress(w, &entry, err);
    if (rc == TD_OK)
        rc = publish(w, entry.packed, err);
    if (rc == TD_OK)
        rc = td_output_add_entry(w->o, &entry, err);
    if (rc == TD_OK)
        td_output_add_coverage(w->o, &w->coverage);
done:
    free(status);
    writer_free(w);
    return rc;
}

void td_shard_writer_abort(td_shard_writer *w) {
    if (w)
        writer_free(w);
}
