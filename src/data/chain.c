/* chain.c - rows of several files of one format. One of them is open at a time; which bytes of the
 * dataset a file has (its size on disk, whatever a position of its own counts in) makes progress and
 * picks go by bytes of the files.
 */
#include "data/chain.h"

#include <stdlib.h>
#include <string.h>
#include "base/memory.h"

typedef struct chain {
    td_rows rows;
    const td_dataset_files *files;
    td_config one; /* of the file that is open */
    int32_t n_vocab;
    uint64_t *bytes_before; /* [n + 1] sizes of the files before each */
    int64_t *rows_before;   /* [n + 1] their rows, where known */
    td_rows *cur;           /* file `at`, or NULL */
    size_t at;
    char tokenizer_hash[64]; /* what its files name */
} chain;

static chain *of(td_rows *r) {
    return (chain *)r;
}

static const chain *of_const(const td_rows *r) {
    return (const chain *)r;
}

static void close_file(chain *c) {
    if (c->cur)
        c->cur->ops->close(c->cur);
    c->cur = NULL;
}

static void close_rows(td_rows *r) {
    chain *c = of(r);
    close_file(c);
    free(c->bytes_before);
    free(c->rows_before);
    free(c);
}

static td_status open_file(chain *c, size_t at, td_error *err) {
    const td_dataset_file *f = &c->files->file[at];
    close_file(c);
    c->at = at;
    c->one.data.path = f->path;
    td_status rc = c->files->format->open(&c->one, c->n_vocab, &c->cur, err);
    if (rc == TD_OK && c->cur->size_bytes != f->size_bytes)
        return td_error_set(err, TD_E_DATA,
                            "%s has %llu bytes, but had %llu when the dataset was opened; do not "
                            "change a dataset while it is read",
                            f->path, (unsigned long long)c->cur->size_bytes,
                            (unsigned long long)f->size_bytes);
    return rc;
}

/* Each file was checked when the chain was opened. */
static td_status check(const td_rows *r, td_rows_look *look, td_error *err) {
    (void)err;
    look->none = false;
    memcpy(look->tokenizer_hash, of_const(r)->tokenizer_hash, sizeof look->tokenizer_hash);
    return TD_OK;
}

static td_status next(td_rows *r, bool *end, td_error *err) {
    chain *c = of(r);
    for (;;) {
        td_status rc = c->cur ? TD_OK : open_file(c, c->at, err);
        if (rc == TD_OK)
            rc = c->cur->ops->next(c->cur, end, err);
        if (rc != TD_OK || !*end || c->at + 1 == c->files->n)
            return rc;
        rc = open_file(c, c->at + 1, err);
        if (rc != TD_OK)
            return rc;
    }
}

static void hash(const td_rows *r, XXH3_state_t *to) {
    const td_rows *cur = of_const(r)->cur;
    cur->ops->hash(cur, to);
}

static td_status make(const td_rows *r, td_row_maker *m, const char *where, td_error *err) {
    const td_rows *cur = of_const(r)->cur;
    return cur->ops->make(cur, m, where, err);
}

static void where(const td_rows *r, char *out, size_t cap) {
    const td_rows *cur = of_const(r)->cur;
    cur->ops->where(cur, out, cap);
}

static td_rows_place tell(const td_rows *r) {
    const chain *c = of_const(r);
    td_rows_place p = c->cur ? c->cur->ops->tell(c->cur) : (td_rows_place){0};
    p.file = c->at;
    return p;
}

static td_status seek(td_rows *r, const td_rows_place *to, td_error *err) {
    chain *c = of(r);
    if (!c->cur || c->at != to->file) {
        td_status rc = open_file(c, to->file, err);
        /* A file that was just opened stands at its beginning. */
        td_rows_place begin = rc == TD_OK ? c->cur->ops->tell(c->cur) : *to;
        if (rc != TD_OK || (begin.offset == to->offset && begin.number == to->number))
            return rc;
    }
    return c->cur->ops->seek(c->cur, to, err);
}

static uint64_t position(const td_rows *r) {
    const chain *c = of_const(r);
    uint64_t before = c->bytes_before[c->at], size = c->files->file[c->at].size_bytes;
    if (!c->cur)
        return before;
    uint64_t at = c->cur->ops->position(c->cur), total = c->cur->total_bytes;
    return before + (total == size || total == 0
                         ? TD_MIN(at, size)
                         : (uint64_t)((double)size * ((double)at / (double)total)));
}

/* The last i with before[i] <= x, among files that are not empty in that count. */
static size_t file_of(size_t n, const void *before, bool rows, uint64_t x) {
    size_t lo = 0, hi = n;
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        uint64_t b =
            rows ? (uint64_t)((const int64_t *)before)[mid] : ((const uint64_t *)before)[mid];
        if (b <= x)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static td_status pick_in(chain *c, size_t file, double place, bool *none, td_error *err) {
    td_status rc = c->cur && c->at == file ? TD_OK : open_file(c, file, err);
    return rc == TD_OK ? c->cur->ops->pick(c->cur, place, none, err) : rc;
}

/* Where rows are counted, one of those that max_samples leaves. */
static td_status pick(td_rows *r, double place, bool *none, td_error *err) {
    chain *c = of(r);
    size_t n = c->files->n;
    if (r->n_rows >= 0) {
        int64_t max = r->cfg->data.max_samples, all = max ? TD_MIN(r->n_rows, max) : r->n_rows;
        int64_t row = (int64_t)(place * (double)all);
        size_t i = file_of(n, c->rows_before, true, (uint64_t)row);
        double have = (double)(c->rows_before[i + 1] - c->rows_before[i]);
        return pick_in(c, i, ((double)(row - c->rows_before[i]) + 0.5) / have, none, err);
    }
    double x = place * (double)r->size_bytes;
    size_t i = file_of(n, c->bytes_before, false, (uint64_t)x);
    double in = (x - (double)c->bytes_before[i]) / (double)c->files->file[i].size_bytes;
    return pick_in(c, i, in < 1 ? in : 0, none, err);
}

static td_status extent(td_rows *r, double *n_bytes, td_error *err) {
    td_rows *cur = of(r)->cur;
    return cur->ops->extent(cur, n_bytes, err);
}

/* What all files are together; each is right for itself. */
static td_status join(chain *c, td_rows_look *look, td_error *first_bad, bool *any_rows,
                      const char **row_kind, td_error *err) {
    td_rows *r = c->cur;
    const char *first = c->files->file[0].path, *path = c->one.data.path;
    td_error e;
    td_status rc = r->ops->check(r, look, &e);
    /* Under on_bad_sample = skip a file of bad rows is no failure: they will be counted. */
    if (rc == TD_E_DATA && c->one.run.on_bad_sample == TD_BAD_SKIP && r->n_rows < 0) {
        if (first_bad->code == TD_OK)
            *first_bad = e;
        rc = TD_OK;
    } else if (rc != TD_OK) {
        if (err)
            *err = e;
        return rc;
    } else {
        *any_rows |= !look->none;
    }
    if (*row_kind && r->row_kind && strcmp(*row_kind, r->row_kind) != 0)
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s has %s, but %s has %s; the files of a dataset have rows "
                            "of one kind",
                            first, *row_kind, path, r->row_kind);
    *row_kind = r->row_kind;
    c->rows.row_kind = r->row_kind;
    c->rows.sequential |= r->sequential;
    c->rows.one_row |= r->one_row;
    c->rows.begin_bytes += r->begin_bytes;
    if (r->n_rows < 0)
        c->rows.n_rows = -1;
    else if (c->rows.n_rows >= 0)
        c->rows.n_rows += r->n_rows;
    c->rows_before[c->at + 1] = c->rows.n_rows;
    c->bytes_before[c->at + 1] = c->bytes_before[c->at] + c->files->file[c->at].size_bytes;
    return rc;
}

td_status td_chain_open(const td_config *cfg, const td_dataset_files *files, int32_t n_vocab,
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
                                    .pick = pick,
                                    .extent = extent};
    chain *c = td_calloc(1, sizeof *c);
    if (!c)
        return td_error_nomem(err, "the dataset", sizeof *c);
    c->rows = (td_rows){.ops = &ops,
                        .cfg = cfg,
                        .fd = -1,
                        .size_bytes = files->size_bytes,
                        .total_bytes = files->size_bytes};
    c->files = files;
    c->one = td_dataset_one(cfg, files->file[0].path);
    c->one.data.max_samples = 0; /* of the whole: not a file's matter */
    c->n_vocab = n_vocab;
    c->bytes_before = td_calloc(files->n + 1, sizeof *c->bytes_before);
    c->rows_before = td_calloc(files->n + 1, sizeof *c->rows_before);
    td_rows_look look = {0};
    td_error first_bad = {0};
    const char *row_kind = NULL;
    bool any = false;
    td_status rc = c->bytes_before && c->rows_before
                       ? TD_OK
                       : td_error_nomem(err, "the dataset", files->n * sizeof *c->bytes_before);
    for (size_t i = 0; rc == TD_OK && i < files->n; i++) {
        rc = open_file(c, i, err);
        if (rc == TD_OK)
            rc = join(c, &look, &first_bad, &any, &row_kind, err);
    }
    if (rc == TD_OK && !any && first_bad.code != TD_OK) {
        rc = first_bad.code;
        if (err)
            *err = first_bad;
    } else if (rc == TD_OK && !any) {
        rc = td_error_set(err, TD_E_DATA, "data.path: none of its %zu files has rows (%s, ...)",
                          files->n, files->file[0].path);
    }
    memcpy(c->tokenizer_hash, look.tokenizer_hash, sizeof c->tokenizer_hash);
    if (rc == TD_OK)
        rc = open_file(c, 0, err);
    if (rc != TD_OK) {
        close_rows(&c->rows);
        return rc;
    }
    *out = &c->rows;
    return TD_OK;
}
