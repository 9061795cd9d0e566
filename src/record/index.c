/* shards.jsonl. See index.h. */
#include "record/index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/json.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

void td_index_free(td_index *x) {
    free(x->entries);
    *x = (td_index){0};
}

/* The first entry whose number is not below. */
static size_t lower_bound(const td_index *x, int64_t number) {
    size_t lo = 0, hi = x->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (x->entries[mid].number < number)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

td_index_entry *td_index_find(const td_index *x, int64_t number) {
    size_t i = lower_bound(x, number);
    return i < x->n && x->entries[i].number == number ? &x->entries[i] : NULL;
}

bool td_index_set(td_index *x, const td_index_entry *e, bool *replaced) {
    size_t i = lower_bound(x, e->number);
    bool same = i < x->n && x->entries[i].number == e->number;
    if (!same) {
        if (!td_grow((void **)&x->entries, &x->cap, x->n + 1, sizeof *x->entries))
            return false;
        memmove(&x->entries[i + 1], &x->entries[i], (x->n - i) * sizeof *x->entries);
        x->n++;
    }
    x->entries[i] = *e;
    if (replaced)
        *replaced = same;
    return true;
}

void td_index_remove(td_index *x, int64_t number) {
    size_t i = lower_bound(x, number);
    if (i == x->n || x->entries[i].number != number)
        return;
    memmove(&x->entries[i], &x->entries[i + 1], (x->n - i - 1) * sizeof *x->entries);
    x->n--;
}

void td_index_entry_of(const td_shard_file *f, uint64_t file_hash, td_index_entry *out) {
    *out = (td_index_entry){.number = f->meta.number,
                            .row_begin = f->meta.row_begin,
                            .row_end = f->meta.row_end,
                            .n_samples = f->layout.counts.n_samples,
                            .n_tokens = f->layout.counts.n_tokens,
                            .n_rows = f->layout.counts.n_rows,
                            .n_skipped = f->meta.n_skipped,
                            .n_bad_rows = f->meta.n_bad_rows,
                            .n_overflow_rows = f->meta.n_overflow_rows,
                            .size_bytes = f->disk_bytes,
                            .source_hash = f->meta.source_hash,
                            .data_hash = f->hashes.data,
                            .file_hash = file_hash,
                            .packed = f->packed};
}

void td_index_line(const td_index_entry *e, td_strbuf *out) {
    char name[TD_SHARD_NAME_SIZE], source[17], data[17], file[17];
    td_shard_name(e->number, e->packed, name);
    td_hash_hex(e->source_hash, source);
    td_hash_hex(e->data_hash, data);
    td_hash_hex(e->file_hash, file);
    td_strbuf_printf(out,
                     "{\"file\": \"%s\", \"shard\": %lld, \"row_begin\": %lld, \"row_end\": %lld, "
                     "\"samples\": %lld, \"tokens\": %lld, \"rows\": %lld, \"skipped\": %lld, "
                     "\"bad_rows\": %lld, \"overflow_rows\": %lld, \"size_bytes\": %llu, "
                     "\"source_hash\": \"%s\", \"data_hash\": \"%s\", \"file_hash\": \"%s\"}\n",
                     name, (long long)e->number, (long long)e->row_begin, (long long)e->row_end,
                     (long long)e->n_samples, (long long)e->n_tokens, (long long)e->n_rows,
                     (long long)e->n_skipped, (long long)e->n_bad_rows,
                     (long long)e->n_overflow_rows, (unsigned long long)e->size_bytes, source, data,
                     file);
}

bool td_index_entry_equal(const td_index_entry *a, const td_index_entry *b) {
    return a->number == b->number && a->row_begin == b->row_begin && a->row_end == b->row_end &&
           a->n_samples == b->n_samples && a->n_tokens == b->n_tokens && a->n_rows == b->n_rows &&
           a->n_skipped == b->n_skipped && a->n_bad_rows == b->n_bad_rows &&
           a->n_overflow_rows == b->n_overflow_rows && a->size_bytes == b->size_bytes &&
           a->source_hash == b->source_hash && a->data_hash == b->data_hash &&
           a->file_hash == b->file_hash && a->packed == b->packed;
}

static bool get_int(const json_t *o, const char *key, int64_t *out) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = json_integer_value(v);
    return true;
}

static bool get_hash(const json_t *o, const char *key, uint64_t *out) {
    const char *s = json_string_value(json_object_get(o, key));
    if (!s || strlen(s) != 16 || strspn(s, "0123456789abcdef") != 16)
        return false;
    *out = strtoull(s, NULL, 16);
    return true;
}

bool td_index_parse(const char *line, size_t n, td_index_entry *out) {
    td_index_entry e = {0};
    int64_t size = 0;
    json_t *o = json_loadb(line, n, 0, NULL);
    const char *file = json_string_value(json_object_get(o, "file"));
    if (file)
        td_shard_name_parse(file, &e.packed);
    bool ok = get_int(o, "shard", &e.number) && get_int(o, "row_begin", &e.row_begin) &&
              get_int(o, "row_end", &e.row_end) && get_int(o, "samples", &e.n_samples) &&
              get_int(o, "tokens", &e.n_tokens) && get_int(o, "rows", &e.n_rows) &&
              get_int(o, "skipped", &e.n_skipped) && get_int(o, "bad_rows", &e.n_bad_rows) &&
              get_int(o, "overflow_rows", &e.n_overflow_rows) && get_int(o, "size_bytes", &size) &&
              get_hash(o, "source_hash", &e.source_hash) &&
              get_hash(o, "data_hash", &e.data_hash) && get_hash(o, "file_hash", &e.file_hash);
    json_decref(o);
    if (!ok)
        return false;
    e.size_bytes = (uint64_t)size;
    td_strbuf again = {0};
    td_index_line(&e, &again);
    ok = !again.oom && again.len == n + 1 && memcmp(again.data, line, n) == 0;
    td_strbuf_free(&again);
    if (ok)
        *out = e;
    return ok;
}

static char *index_path(const char *dir) {
    return td_asprintf("%s/" TD_INDEX_NAME, dir);
}

td_status td_index_load(const char *dir, td_index *x, td_index_faults *faults, td_error *err) {
    char *path = index_path(dir), *data = NULL;
    size_t n = 0;
    *faults = (td_index_faults){0};
    if (!path)
        return td_error_nomem(err, "a path", strlen(dir));
    td_status rc = TD_OK;
    if (!td_path_exists(path)) {
        faults->missing = true;
        goto done;
    }
    rc = td_file_read(path, (size_t)1 << 31, TD_E_OUTPUT, &data, &n, err);
    if (rc != TD_OK)
        goto done;
    for (const char *p = data, *end = data + n; p < end;) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        td_index_entry e;
        bool replaced = false, in_order;
        if (!nl || !td_index_parse(p, (size_t)(nl - p), &e)) {
            faults->n_damaged++;
            if (!nl)
                break;
            p = nl + 1;
            continue;
        }
        in_order = x->n == 0 || x->entries[x->n - 1].number < e.number;
        if (!td_index_set(x, &e, &replaced)) {
            rc = td_error_nomem(err, path, sizeof e);
            goto done;
        }
        faults->n_doubled += replaced;
        faults->out_of_order |= !replaced && !in_order;
        p = nl + 1;
    }
done:
    free(data);
    free(path);
    return rc;
}

td_status td_index_rewrite(const char *dir, const td_index *x, td_error *err) {
    td_strbuf b = {0};
    char *path = index_path(dir);
    for (size_t i = 0; i < x->n; i++)
        td_index_line(&x->entries[i], &b);
    td_status rc;
    if (!path || b.oom)
        rc = td_error_nomem(err, "the index", b.len);
    else
        rc = td_file_write_atomic(path, b.data ? b.data : "", b.len, true, err);
    td_strbuf_free(&b);
    free(path);
    return rc;
}

td_status td_index_append(const char *dir, const td_index_entry *e, td_error *err) {
    td_strbuf b = {0};
    td_status rc = TD_OK;
    char *path = index_path(dir);
    td_index_line(e, &b);
    if (!path || b.oom) {
        rc = td_error_nomem(err, "the index", b.len);
        goto done;
    }
    bool fresh = !td_path_exists(path);
    int fd;
    rc = td_file_create(path, TD_CREATE_APPEND, &fd, err);
    if (rc != TD_OK)
        goto done;
    /* One write: a reader or a crash sees the line or a torn tail of it, never a mixture. */
    ssize_t n;
    do
        n = write(fd, b.data, b.len);
    while (n < 0 && errno == EINTR);
    if (n < 0 || (size_t)n != b.len)
        rc = td_error_errno(err, TD_E_OUTPUT, n < 0 ? errno : ENOSPC, "cannot append to %s", path);
    if (rc == TD_OK && fsync(fd) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot sync %s", path);
    if (close(fd) != 0 && rc == TD_OK)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot close %s", path);
    if (rc == TD_OK && fresh)
        rc = td_file_sync_dir_of(path, err);
done:
    td_strbuf_free(&b);
    free(path);
    return rc;
}
