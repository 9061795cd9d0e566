/* tokens.c - reading rows of token ids, wherever they lie in the file. */
#include "data/tokens.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/file.h"
#include "base/memory.h"
#include "data/lines.h"

static td_tokens *of(td_rows *r) {
    return (td_tokens *)r;
}

static const td_tokens *of_const(const td_rows *r) {
    return (const td_tokens *)r;
}

td_status td_tokens_read_at(td_tokens *t, void *data, size_t n_bytes, uint64_t pos, td_error *err) {
    return td_dataset_pread(t->rows.fd, data, n_bytes, pos, t->path, err);
}

/* Takes row `row` in hand. */
static td_status read_row(td_tokens *t, int64_t row, bool *end, td_error *err) {
    int64_t a = 0, b = 0;
    *end = t->rows.n_rows >= 0 && row >= t->rows.n_rows;
    if (*end)
        return TD_OK;
    td_status rc = t->kind->range(t, row, &a, &b, end, err);
    if (rc != TD_OK || *end)
        return rc;
    size_t n = (size_t)(b - a); /* fits: the elements are in a file of size_t bytes */
    size_t ids_bytes = n * t->ids_elem_bytes, all = ids_bytes + (t->mask_pos ? n : 0);
    if (all > TD_ROW_MAX_BYTES)
        return td_error_set(err, TD_E_DATA,
                            "%s: row %lld has %zu tokens, more than %zu bytes; cut it into rows of "
                            "sensible length",
                            t->path, (long long)row, n, TD_ROW_MAX_BYTES);
    if (!td_grow((void **)&t->buf, &t->cap, all, 1))
        return td_error_nomem(err, "a dataset row", all);
    if (ids_bytes)
        rc = td_tokens_read_at(t, t->buf, ids_bytes, t->ids_pos + (uint64_t)a * t->ids_elem_bytes,
                               err);
    if (rc == TD_OK && n && t->mask_pos)
        rc = td_tokens_read_at(t, t->buf + ids_bytes, n, t->mask_pos + (uint64_t)a, err);
    if (rc != TD_OK)
        return rc;
    t->n = n;
    t->ids_bytes = ids_bytes;
    return TD_OK;
}

static const uint8_t *mask_of(const td_tokens *t) {
    return t->mask_pos ? t->buf + t->ids_bytes : NULL;
}

static void close_rows(td_rows *r) {
    td_tokens_close(of(r));
}

static td_status check(const td_rows *r, td_rows_look *look, td_error *err) {
    const td_tokens *t = of_const(r);
    look->none = r->n_rows == 0;
    return t->kind->check ? t->kind->check(t, look, err) : TD_OK;
}

static td_status next(td_rows *r, bool *end, td_error *err) {
    td_tokens *t = of(r);
    td_status rc = read_row(t, t->next_row, end, err);
    if (rc != TD_OK || *end)
        return rc;
    t->next_row++;
    t->payload_read += t->ids_bytes + (t->mask_pos ? t->n : 0);
    return TD_OK;
}

static void hash(const td_rows *r, XXH3_state_t *to) {
    const td_tokens *t = of_const(r);
    uint64_t n = t->n;
    XXH3_64bits_update(to, &n, sizeof n);
    XXH3_64bits_update(to, t->buf, t->ids_bytes);
    if (t->mask_pos)
        XXH3_64bits_update(to, mask_of(t), t->n);
}

static td_status make(const td_rows *r, td_row_maker *m, const char *where, td_error *err) {
    const td_tokens *t = of_const(r);
    return td_row_from_ids(m, t->buf, t->ids_kind, mask_of(t), t->n, where, err);
}

static void where(const td_rows *r, char *out, size_t cap) {
    const td_tokens *t = of_const(r);
    snprintf(out, cap, "%s: row %" PRId64, t->path, t->next_row - 1);
}

static td_rows_place tell(const td_rows *r) {
    const td_tokens *t = of_const(r);
    return (td_rows_place){.offset = t->payload_read, .number = t->next_row};
}

static td_status seek(td_rows *r, const td_rows_place *to, td_error *err) {
    td_tokens *t = of(r);
    (void)err;
    t->next_row = to->number;
    t->payload_read = to->offset;
    return TD_OK;
}

static uint64_t position(const td_rows *r) {
    return of_const(r)->payload_read;
}

/* Of the rows that max_samples leaves. */
static td_status pick(td_rows *r, double place, bool *none, td_error *err) {
    int64_t n = r->n_rows, max = r->cfg->data.max_samples;
    return read_row(of(r), (int64_t)(place * (double)(max ? TD_MIN(n, max) : n)), none, err);
}

/* One more than its bytes, so that empty rows count. */
static td_status extent(td_rows *r, double *n_bytes, td_error *err) {
    (void)err;
    *n_bytes = (double)(of(r)->ids_bytes + 1);
    return TD_OK;
}

td_status td_tokens_begin(td_tokens *t, const td_token_kind *kind, const td_config *cfg,
                          td_error *err) {
    static const td_rows_ops ops = {.close = close_rows,
                                    .check = check,
                                    .next = next,
                                    .hash = hash,
                                    .make = make,
                                    .where = where,
                                    .tell = tell,
                                    .seek = seek,
                                    .position = position,
                                    .plain_bytes = position,
                                    .pick = pick,
                                    .extent = extent};
    t->kind = kind;
    t->path = cfg->data.path;
    t->rows = (td_rows){.ops = &ops, .cfg = cfg};
    t->rows.fd = -1;
    return td_file_open(t->path, TD_E_DATA, &t->rows.fd, &t->rows.size_bytes, err);
}

void td_tokens_ready(td_tokens *t, int64_t n_rows, const char *row_kind) {
    t->rows.n_rows = n_rows;
    t->rows.row_kind = row_kind;
    t->rows.sequential = n_rows < 0;
    t->rows.total_bytes = (uint64_t)t->n_tokens * (t->ids_elem_bytes + (t->mask_pos ? 1 : 0));
}

void td_tokens_close(td_tokens *t) {
    t->kind->free_own(t);
    if (t->rows.fd >= 0)
        close(t->rows.fd);
    free(t->buf);
    free(t);
}
