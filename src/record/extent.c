/* extent.c - see extent.h. */
#include "record/extent.h"

#include <stdio.h>
#include <stdlib.h>
#include "base/file.h"
#include "base/format.h"
#include "base/json.h"
#include "base/memory.h"

td_extent td_extent_of(const td_config *cfg) {
    return (td_extent){.known = true,
                       .n_rows = -1,
                       .max_samples = cfg->data.max_samples,
                       .shard_samples = cfg->output.shard_samples,
                       .worker_id = cfg->run.worker_id,
                       .total_workers = cfg->run.total_workers};
}

bool td_extent_same_share(const td_extent *a, const td_extent *b) {
    return a->known && b->known && a->max_samples == b->max_samples &&
           a->shard_samples == b->shard_samples && a->worker_id == b->worker_id &&
           a->total_workers == b->total_workers;
}

json_t *td_extent_json(const td_extent *x) {
    json_t *n_rows = x->n_rows < 0 ? json_null() : json_integer((json_int_t)x->n_rows);
    return json_pack("{s:o, s:I, s:I, s:I, s:i, s:i}", "n_rows", n_rows, "n_rows_at_least",
                     (json_int_t)x->n_rows_at_least, "max_samples", (json_int_t)x->max_samples,
                     "shard_samples", (json_int_t)x->shard_samples, "worker_id", (int)x->worker_id,
                     "total_workers", (int)x->total_workers);
}

td_status td_extent_parse(const json_t *o, const char *where, td_status code, td_extent *out,
                          td_error *err) {
    td_extent x = {.known = true, .n_rows = -1};
    int64_t worker = 0, workers = 0;
    if (!o) {
        *out = (td_extent){.n_rows = -1};
        return TD_OK;
    }
    if (!json_is_object(o))
        return td_error_set(err, code, "%s: \"extent\" must be an object", where);
    td_status rc = td_json_opt_int(o, "n_rows", 0, INT64_MAX / 2, where, code, &x.n_rows, err);
    if (rc == TD_OK)
        rc = td_json_get_int(o, "n_rows_at_least", 0, INT64_MAX / 2, where, code,
                             &x.n_rows_at_least, err);
    if (rc == TD_OK)
        rc = td_json_get_int(o, "max_samples", 0, INT64_MAX, where, code, &x.max_samples, err);
    if (rc == TD_OK)
        rc = td_json_get_int(o, "shard_samples", 1, INT32_MAX, where, code, &x.shard_samples, err);
    if (rc == TD_OK)
        rc = td_json_get_int(o, "total_workers", 1, INT32_MAX, where, code, &workers, err);
    if (rc == TD_OK)
        rc = td_json_get_int(o, "worker_id", 0, workers - 1, where, code, &worker, err);
    if (rc != TD_OK)
        return rc;
    x.worker_id = (int32_t)worker;
    x.total_workers = (int32_t)workers;
    *out = x;
    return TD_OK;
}

int64_t td_extent_n_shards(const td_extent *x) {
    return x->n_rows < 0 ? -1 : (x->n_rows + x->shard_samples - 1) / x->shard_samples;
}

/* Where shard k ends: a lower bound while the end of the data is not known. */
static int64_t end_of_shard(const td_extent *x, int64_t k) {
    int64_t end = (k + 1) * x->shard_samples;
    return x->n_rows < 0 ? end : TD_MIN(end, x->n_rows);
}

void td_folder_state_of(const td_extent *x, const td_index *index, td_folder_state *out) {
    td_folder_state s = {.known = x->known,
                         .n_rows_want = -1,
                         .n_shards_want = -1,
                         .n_rows_at_least = x->n_rows_at_least,
                         .first_missing = -1};
    const int64_t n_all = td_extent_n_shards(x);
    int64_t next = x->worker_id; /* the shard of the share that should come now */
    for (size_t i = 0; i < index->n; i++) {
        const td_index_entry *e = &index->entries[i];
        if (!x->known) {
            s.n_shards++;
            s.n_rows += e->row_end - e->row_begin;
            continue;
        }
        s.n_rows_at_least = TD_MAX(s.n_rows_at_least, e->row_end);
        if (e->number % x->total_workers != x->worker_id || (n_all >= 0 && e->number >= n_all))
            continue; /* of another share, or of a max_samples that was larger */
        /* Before the end is known the last shard may be as short as the data; one cut by an earlier
         * max_samples is computed again. */
        const bool whole = n_all < 0 || e->row_end >= end_of_shard(x, e->number);
        if (e->number != next || !whole)
            s.first_missing = s.first_missing < 0 ? TD_MIN(next, e->number) : s.first_missing;
        next = e->number + x->total_workers;
        if (!whole)
            continue;
        s.n_shards++;
        s.n_rows += TD_MIN(e->row_end, end_of_shard(x, e->number)) - e->row_begin;
    }
    if (x->known && n_all >= 0) {
        s.n_shards_want = s.n_rows_want = 0;
        if (n_all > x->worker_id) {
            s.n_shards_want = (n_all - x->worker_id + x->total_workers - 1) / x->total_workers;
            /* All are full but the last of the run, which is ours or another's. */
            s.n_rows_want = s.n_shards_want * x->shard_samples;
            if ((n_all - 1) % x->total_workers == x->worker_id)
                s.n_rows_want -= n_all * x->shard_samples - x->n_rows;
        }
        if (s.first_missing < 0 && next < n_all)
            s.first_missing = next;
        s.complete = s.first_missing < 0;
    }
    *out = s;
}

td_status td_folder_state_read(const char *dir, const td_extent *x, td_index *index, td_status code,
                               td_folder_state *out, td_error *err) {
    td_dir *d = NULL;
    const char *name = NULL;
    bool *there = td_calloc(index->n, sizeof *there);
    if (!there)
        return td_error_nomem(err, "a list of shards", index->n);
    td_status rc = td_dir_open(dir, code, &d, err);
    while (rc == TD_OK && (rc = td_dir_next(d, &name, err)) == TD_OK && name) {
        bool packed = false;
        int64_t number = td_shard_name_parse(name, &packed);
        const td_index_entry *e = number < 0 ? NULL : td_index_find(index, number);
        if (e && e->packed == packed)
            there[e - index->entries] = true;
    }
    td_dir_close(d);
    if (rc == TD_OK) {
        size_t n = 0;
        for (size_t i = 0; i < index->n; i++)
            if (there[i])
                index->entries[n++] = index->entries[i];
        index->n = n;
        td_folder_state_of(x, index, out);
    }
    free(there);
    return rc;
}

const char *td_folder_state_text(const td_folder_state *s, char *buf, size_t n) {
    char rows[32], want[32];
    td_grouped_digits(s->n_rows, rows);
    td_grouped_digits(s->n_rows_want, want);
    int at;
    if (s->n_shards_want < 0) {
        at = snprintf(buf, n, "%s dataset row%s in %lld shard%s", rows, s->n_rows == 1 ? "" : "s",
                      (long long)s->n_shards, s->n_shards == 1 ? "" : "s");
        if (s->known && at > 0 && (size_t)at < n)
            snprintf(buf + at, n - (size_t)at, "; the run did not come to the end of the dataset");
        return buf;
    }
    /* 100% is said of what is complete only. */
    double percent = s->n_rows_want ? 100.0 * (double)s->n_rows / (double)s->n_rows_want : 100.0;
    if (!s->complete)
        percent = TD_MIN(percent, 99.9);
    at = snprintf(buf, n, "%.*f%% of %s dataset rows (%lld of %lld shards)",
                  percent < 99 || s->complete ? 0 : 1, percent, want, (long long)s->n_shards,
                  (long long)s->n_shards_want);
    if (s->first_missing >= 0 && at > 0 && (size_t)at < n)
        snprintf(buf + at, n - (size_t)at, "; shard %lld is missing", (long long)s->first_missing);
    return buf;
}
