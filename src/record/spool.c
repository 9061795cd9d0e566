/* The side file of a ragged set. See spool.h. */
#include "record/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "record/pack.h"
#include "capture/capture.h"
#include "base/file.h"
#include "base/memory.h"

struct td_spool {
    td_capture_spec spec;
    char *path;
    int fd;
    int32_t n_samples;
    _Atomic uint64_t end; /* of the file: each block takes its range by adding its size */
    uint64_t *at;         /* [n_samples] begin of the sample's block; written by its thread */
    int64_t *n_entries;   /* [n_samples] likewise */
};

static size_t logprob_size(const td_capture_spec *s) {
    return s->q8 ? 1 : td_dtype_size(s->logprob_dtype);
}

static size_t entry_size(const td_capture_spec *s) {
    return sizeof(int32_t) * (td_capture_has_draws(s->mode) ? 2 : 1) + logprob_size(s);
}

td_ragged_row td_ragged_row_of(const td_capture_spec *spec, const td_captured *cap, int32_t row) {
    size_t r = (size_t)row;
    if (td_capture_has_topp(spec->mode))
        return (td_ragged_row){.n = cap->n_kept[r],
                               .ids = cap->topk_ids + r * (size_t)cap->top_k,
                               .logprobs = cap->topk_logprobs + r * (size_t)cap->top_k};
    return (td_ragged_row){.n = cap->n_unique[r],
                           .ids = cap->draw_ids + r * (size_t)cap->n_draws,
                           .counts = cap->draw_counts + r * (size_t)cap->n_draws,
                           .logprobs = cap->draw_logprobs + r * (size_t)cap->n_draws};
}

td_status td_spool_open(const char *dir, const char *name, const td_capture_spec *spec,
                        int32_t n_samples, td_spool **out, td_error *err) {
    td_spool *s = td_calloc(1, sizeof *s);
    if (!s)
        return td_error_nomem(err, "a side file", sizeof *s);
    td_status rc = TD_OK;
    s->spec = *spec;
    s->fd = -1;
    s->n_samples = n_samples;
    s->at = td_calloc((size_t)n_samples, sizeof *s->at);
    s->n_entries = td_calloc((size_t)n_samples, sizeof *s->n_entries);
    char *final = td_asprintf("%s/%s.spool", dir, name);
    s->path = final ? td_temp_path(final) : NULL;
    free(final);
    if (!s->at || !s->n_entries || !s->path) {
        rc = td_error_nomem(err, "a side file", 2 * (size_t)n_samples * sizeof *s->at);
        goto fail;
    }
    rc = td_file_create(s->path, TD_CREATE_NEW, &s->fd, err);
    if (rc != TD_OK)
        goto fail;
    *out = s;
    return TD_OK;
fail:
    td_spool_close(s);
    return rc;
}

void td_spool_close(td_spool *s) {
    if (!s)
        return;
    if (s->fd >= 0) {
        close(s->fd);
        unlink(s->path);
    }
    free(s->path);
    free(s->at);
    free(s->n_entries);
    free(s);
}

static void push_logprobs(const td_spool *s, column *c, const td_ragged_row *row, float *range) {
    enum { PART = 1024 };
    if (s->spec.q8) {
        uint8_t q[TD_MAX_TOP_K > TD_MAX_DRAWS ? TD_MAX_TOP_K : TD_MAX_DRAWS];
        td_q8_encode(row->logprobs, (size_t)row->n, q, range);
        column_push(c, q, (size_t)row->n);
        return;
    }
    if (s->spec.logprob_dtype == TD_F32) {
        column_push(c, row->logprobs, (size_t)row->n * sizeof(float));
        return;
    }
    for (int32_t j = 0; j < row->n; j++) {
        uint16_t h = td_logprob_to_f16(row->logprobs[j]);
        column_push(c, &h, sizeof h);
    }
}

td_status td_spool_put(td_spool *s, int32_t sample, const td_captured *cap, int32_t first_row,
                       int32_t n_rows, float *q8_range, td_error *err) {
    int64_t n = 0;
    for (int32_t r = 0; r < n_rows; r++)
        n += td_ragged_row_of(&s->spec, cap, first_row + r).n;
    uint64_t size = (uint64_t)n * entry_size(&s->spec);
    /* Relaxed: only the ranges must differ. What a failed put leaves is a hole nobody reads. */
    uint64_t at = atomic_fetch_add_explicit(&s->end, size, memory_order_relaxed);
    column c;
    column_begin_at(&c, s->fd, s->path, at, err);
    for (int32_t r = 0; r < n_rows; r++) {
        td_ragged_row row = td_ragged_row_of(&s->spec, cap, first_row + r);
        column_push(&c, row.ids, (size_t)row.n * sizeof *row.ids);
    }
    for (int32_t r = 0; td_capture_has_draws(s->spec.mode) && r < n_rows; r++) {
        td_ragged_row row = td_ragged_row_of(&s->spec, cap, first_row + r);
        column_push(&c, row.counts, (size_t)row.n * sizeof *row.counts);
    }
    for (int32_t r = 0; r < n_rows; r++) {
        td_ragged_row row = td_ragged_row_of(&s->spec, cap, first_row + r);
        push_logprobs(s, &c, &row, q8_range ? q8_range + 2 * (size_t)r : NULL);
    }
    td_status rc = column_end(&c);
    if (rc == TD_OK) {
        s->at[sample] = at;
        s->n_entries[sample] = n;
    }
    return rc;
}

int64_t td_spool_entries(const td_spool *s, int32_t sample) {
    return s->n_entries[sample];
}

/* One tensor of the set: the part of each block from entry_offset bytes an entry on, elem_size
 * each. packed: ids go through the bit packer. */
static td_status copy_part(const td_spool *s, const bool *keep, const shard_temp *to,
                           td_tensor_id id, size_t entry_offset, size_t elem_size, bool packed,
                           char *buf, size_t buf_size, td_error *err) {
    int32_t bits = td_capture_id_bits(&s->spec);
    td_bit_packer packer = {0};
    uint8_t *out = (uint8_t *)buf + buf_size / 2; /* ids shrink: the other half is enough */
    size_t room = packed ? buf_size / 2 : buf_size;
    column c;
    column_begin(&c, to, id, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++) {
        uint64_t at = s->at[i] + (uint64_t)s->n_entries[i] * entry_offset;
        uint64_t left = keep[i] ? (uint64_t)s->n_entries[i] * elem_size : 0;
        while (left) {
            size_t part = (size_t)TD_MIN(left, (uint64_t)room);
            td_status rc = td_pread_all(s->fd, buf, part, at, s->path, err);
            if (rc != TD_OK)
                return rc;
            if (packed)
                column_push(&c, out,
                            td_ids_pack(&packer, (const int32_t *)(const void *)buf,
                                        part / sizeof(int32_t), bits, out));
            else
                column_push(&c, buf, part);
            at += part;
            left -= part;
        }
    }
    if (packed)
        column_push(&c, out, td_ids_pack_end(&packer, out));
    return column_end(&c);
}

td_status td_spool_copy(const td_spool *s, const bool *keep, const shard_temp *to, td_error *err) {
    enum { BUF = 1 << 20 };
    bool draws = td_capture_has_draws(s->spec.mode), pack = s->spec.pack_ids;
    size_t before = sizeof(int32_t) * (draws ? 2 : 1);
    td_tensor_id ids = draws  ? (pack ? TD_T_DRAW_IDS_PACKED : TD_T_DRAW_IDS)
                       : pack ? TD_T_TOPP_IDS_PACKED
                              : TD_T_TOPP_IDS;
    td_tensor_id lp = s->spec.q8 ? (draws ? TD_T_DRAW_Q8 : TD_T_TOPP_Q8)
                      : s->spec.logprob_dtype == TD_F32
                          ? (draws ? TD_T_DRAW_LOGPROBS_F32 : TD_T_TOPP_LOGPROBS_F32)
                      : draws ? TD_T_DRAW_LOGPROBS_F16
                              : TD_T_TOPP_LOGPROBS_F16;
    char *buf = malloc(BUF);
    if (!buf)
        return td_error_nomem(err, "putting a shard's rows in order", BUF);
    td_status rc = copy_part(s, keep, to, ids, 0, sizeof(int32_t), pack, buf, BUF, err);
    if (rc == TD_OK && draws)
        rc = copy_part(s, keep, to, TD_T_DRAW_COUNTS, sizeof(int32_t), sizeof(int32_t), false, buf,
                       BUF, err);
    if (rc == TD_OK)
        rc = copy_part(s, keep, to, lp, before, logprob_size(&s->spec), false, buf, BUF, err);
    free(buf);
    return rc;
}
