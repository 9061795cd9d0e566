/* line_rows.c - rows that are lines: reading on, going back, and the checks and samples that need
 * nothing but where lines begin.
 */
#include "data/line_rows.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"

enum {
    FIRST_ROWS = 100,
    SEEK_READ_BYTES = 16 << 10,
    NO_ROWS_PASSED = 1000 /* lines that are no rows, before a pick is given up */
};

typedef struct line_rows {
    td_rows rows;
    td_lines lines;
    const td_line_kind *kind;
    const char *line; /* the row in hand, [n_bytes] */
    size_t n_bytes;
    uint64_t pick_begin; /* of it, where it was picked */
} line_rows;

static line_rows *of(td_rows *r) {
    return (line_rows *)r;
}

static const line_rows *of_const(const td_rows *r) {
    return (const line_rows *)r;
}

static void close_rows(td_rows *r) {
    td_lines_close(&of(r)->lines);
    free(r);
}

static void set_where(const td_lines *l, char *out, size_t cap) {
    if (l->whole)
        snprintf(out, cap, "%s", l->path);
    else
        snprintf(out, cap, "%s:%" PRId64, l->path, l->line_no);
}

/* Line NULL at the end. */
static td_status next_row(td_lines *l, const td_line_kind *kind, const char **line, size_t *n_bytes,
                          td_error *err) {
    td_status rc;
    do
        rc = td_lines_next(l, line, n_bytes, err);
    while (rc == TD_OK && *line && kind->is_row && !kind->is_row(*line, *n_bytes));
    return rc;
}

/* With on_bad_sample = skip one good row among the first suffices. Reads a file of its own, and as little
 * of it as will do: there may be thousands of files. */
static td_status check(const td_rows *r, td_rows_look *look, td_error *err) {
    const td_line_kind *kind = of_const(r)->kind;
    const char *path = r->cfg->data.path;
    size_t where_cap = strlen(path) + 64;
    td_lines l = {.fd = -1};
    td_error first = {0};
    td_status rc = TD_OK;
    look->none = false;
    char *where = td_calloc(where_cap, 1);
    if (!where)
        return td_error_nomem(err, "the dataset", where_cap);
    rc = td_lines_open(&l, path, r->one_row, err);
    if (rc != TD_OK)
        goto done;
    if (!kind->check && !l.unpack && r->size_bytes > l.start)
        goto done; /* whatever follows is a row */
    l.read_bytes = SEEK_READ_BYTES;
    int want = r->cfg->run.on_bad_sample == TD_BAD_SKIP ? FIRST_ROWS : 1, n = 0;
    for (; n < want; n++) {
        const char *line;
        size_t n_bytes;
        rc = next_row(&l, kind, &line, &n_bytes, err);
        if (rc != TD_OK)
            goto done;
        if (!line)
            break;
        td_error e;
        set_where(&l, where, where_cap);
        rc = kind->check ? kind->check(r->cfg, line, n_bytes, where, &e) : TD_OK;
        if (rc == TD_OK)
            goto done;
        if (n == 0)
            first = e;
    }
    look->none = n == 0;
    rc = n ? first.code : TD_OK;
    if (n && want > 1)
        td_error_prefix(&first, "none of the first %d row%s is good (run.on_bad_sample = skip)", n,
                        n == 1 ? "" : "s");
    if (n && err)
        *err = first;
done:
    td_lines_close(&l);
    free(where);
    return rc;
}

static td_status next(td_rows *r, bool *end, td_error *err) {
    line_rows *t = of(r);
    td_status rc = next_row(&t->lines, t->kind, &t->line, &t->n_bytes, err);
    *end = rc == TD_OK && !t->line;
    return rc;
}

static void hash(const td_rows *r, XXH3_state_t *to) {
    const line_rows *t = of_const(r);
    XXH3_64bits_update(to, t->line, t->n_bytes);
    /* A last line hashes the same with and without its LF: it is the same row. */
    if (!r->one_row && (t->n_bytes == 0 || t->line[t->n_bytes - 1] != '\n'))
        XXH3_64bits_update(to, "\n", 1);
}

static td_status make(const td_rows *r, td_row_maker *m, const char *where, td_error *err) {
    const line_rows *t = of_const(r);
    return t->kind->make(m, t->line, t->n_bytes, where, err);
}

static void where(const td_rows *r, char *out, size_t cap) {
    set_where(&of_const(r)->lines, out, cap);
}

static td_rows_place tell(const td_rows *r) {
    const td_lines *l = &of_const(r)->lines;
    return (td_rows_place){.offset = td_lines_offset(l), .number = l->line_no};
}

static td_status seek(td_rows *r, const td_rows_place *to, td_error *err) {
    td_lines *l = &of(r)->lines;
    td_status rc = td_lines_seek(l, to->offset, err);
    if (rc != TD_OK)
        return rc;
    l->line_no = to->number;
    l->given_whole = false;
    return TD_OK;
}

static uint64_t position(const td_rows *r) {
    return td_lines_file_offset(&of_const(r)->lines);
}

static uint64_t plain_bytes(const td_rows *r) {
    return td_lines_offset(&of_const(r)->lines);
}

/* The row that the byte at `place` lies in, lines that are no rows being part of the row before them: a
 * row's chance is its extent. */
static td_status pick(td_rows *r, double place, bool *none, td_error *err) {
    line_rows *t = of(r);
    td_lines *l = &t->lines;
    uint64_t at = l->start + (uint64_t)(place * (double)(l->size_bytes - l->start));
    l->read_bytes = SEEK_READ_BYTES;
    *none = true;
    for (int i = 0; i < NO_ROWS_PASSED; i++) {
        td_status rc = td_lines_start_of(l, at, &t->pick_begin, err);
        if (rc == TD_OK)
            rc = td_lines_seek(l, t->pick_begin, err);
        if (rc == TD_OK)
            rc = td_lines_next(l, &t->line, &t->n_bytes, err);
        if (rc != TD_OK || !t->line)
            return rc;
        *none = t->kind->is_row && !t->kind->is_row(t->line, t->n_bytes);
        if (!*none || t->pick_begin <= l->start)
            return TD_OK;
        at = t->pick_begin - 1;
    }
    return TD_OK;
}

static td_status extent(td_rows *r, double *n_bytes, td_error *err) {
    line_rows *t = of(r);
    uint64_t end = td_lines_offset(&t->lines);
    while (t->kind->is_row) {
        td_status rc = td_lines_next(&t->lines, &t->line, &t->n_bytes, err);
        if (rc != TD_OK)
            return rc;
        if (!t->line || t->kind->is_row(t->line, t->n_bytes))
            break;
        end = td_lines_offset(&t->lines);
    }
    *n_bytes = (double)(end - t->pick_begin);
    return TD_OK;
}

static td_status count_tokens(td_rows *r, td_row_maker *m, double *n_tokens, td_error *err) {
    line_rows *t = of(r);
    return t->kind->count_tokens(&t->lines, m, n_tokens, err);
}

td_status td_line_rows_open(const td_config *cfg, bool whole, const td_line_kind *kind,
                            td_rows **out, td_error *err) {
    static const td_rows_ops ops = {.close = close_rows,
                                    .check = check,
                                    .next = next,
                                    .hash = hash,
                                    .make = make,
                                    .where = where,
                                    .tell = tell,
                                    .seek = seek,
                                    .position = position,
                                    .plain_bytes = plain_bytes,
                                    .pick = pick,
                                    .extent = extent,
                                    .count_tokens = count_tokens};
    line_rows *t = td_calloc(1, sizeof *t);
    if (!t)
        return td_error_nomem(err, "the dataset", sizeof *t);
    td_status rc = td_lines_open(&t->lines, cfg->data.path, whole, err);
    if (rc != TD_OK) {
        free(t);
        return rc;
    }
    t->kind = kind;
    t->rows = (td_rows){.ops = &ops,
                        .cfg = cfg,
                        .fd = t->lines.fd,
                        .size_bytes = t->lines.size_bytes,
                        .total_bytes = t->lines.size_bytes,
                        .begin_bytes = t->lines.start,
                        .n_rows = -1,
                        .sequential = t->lines.unpack != NULL,
                        .one_row = whole};
    *out = &t->rows;
    return TD_OK;
}
