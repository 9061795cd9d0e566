/* The output folder: lock, repair after a crash, identity, which shards are finished.
 *
 * What a crash can leave, and what open does about it:
 *   temp files                      removed
 *   a torn or missing index line    the shard is proven from its own hashes, the line written again
 *   a line without its shard        dropped (the shard is computed again)
 *   a line older than its shard     found when the shard is proven; the line is written again
 * The order of a commit (shard in place, then its line) makes the last three rare and harmless.
 *
 * Threads: open, bind and close belong to one thread; the rest may be called by any.
 */
#include "record/output.h"
#include "record/coverage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "capture/capture.h"
#include "record/merge_mark.h"
#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"

double td_record_bytes_per_row(const td_capture_spec *spec) {
    td_layout none, one;
    td_layout_counts c0 = {.n_id_bytes = -1};
    /* 8 rows at their largest: packed ids of a ragged set share bytes */
    td_layout_counts c8 = {
        .n_rows = 8, .n_id_bytes = -1, .n_entries = 8 * (int64_t)td_capture_max_entries(spec)};
    if (!td_layout_init(&none, spec, &c0) || !td_layout_init(&one, spec, &c8))
        return 0;
    return (double)(one.data_size_bytes - none.data_size_bytes) / 8;
}

double td_record_bytes_per_token(void) {
    return (double)(td_dtype_size(td_layout_doc(TD_T_INPUT_IDS)->dtype) +
                    td_dtype_size(td_layout_doc(TD_T_LOSS_MASK)->dtype));
}

char *td_output_path(const td_output *o, const char *name) {
    return td_asprintf("%s/%s", o->dir, name);
}

/* --- repair ----------------------------------------------------------------------------------- */

/* Only names that we give: the folder may hold files of the user. */
static bool is_our_temp(const char *name) {
    static const char *const prefix[] = {"shard-",           TD_MANIFEST_NAME, TD_INDEX_NAME,
                                         "status.json",      "faults.json",    "timeline.jsonl",
                                         TD_LOCK_HOLDER_NAME};
    if (!td_temp_is_name(name))
        return false;
    for (size_t i = 0; i < TD_ARRAY_LEN(prefix); i++)
        if (strncmp(name, prefix[i], strlen(prefix[i])) == 0)
            return true;
    return false;
}

/* Removes temp files and lists the shards there are, ascending. */
static td_status scan_folder(td_output *o, int64_t **numbers, size_t *n_out, td_error *err) {
    td_status rc = TD_OK;
    int64_t *list = NULL;
    size_t n = 0, cap = 0;
    td_dir *d = NULL;
    const char *name = NULL;
    rc = td_dir_open(o->dir, TD_E_OUTPUT, &d, err);
    while (rc == TD_OK && (rc = td_dir_next(d, &name, err)) == TD_OK && name) {
        int64_t number = td_shard_name_parse(name, NULL);
        if (number >= 0) {
            if (!td_grow((void **)&list, &cap, n + 1, sizeof *list))
                rc = td_error_nomem(err, "a list of shards", n * sizeof *list);
            else
                list[n++] = number;
        } else if (!o->reading && is_our_temp(name)) {
            if (unlinkat(td_dir_fd(d), name, 0) != 0 && errno != ENOENT)
                rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot remove %s/%s, left by a crash",
                                    o->dir, name);
            else
                td_log_debug("removed %s/%s, left by an interrupted run", o->dir, name);
        }
    }
    td_dir_close(d);
    if (rc != TD_OK) {
        free(list);
        return rc;
    }
    *numbers = list;
    *n_out = n;
    return TD_OK;
}

/* TD_E_VERIFY: its content is wrong, and it is to be computed again; any other failure says nothing of
 * it. */
static td_status prove_shard(td_output *o, int64_t number, td_index_entry *out, td_error *err) {
    td_shard_file *f = NULL;
    uint64_t file_hash;
    char *path = td_shard_path(o->dir, number);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = td_shard_file_prove(path, TD_SHARD_STREAM, &o->spec, o->fingerprint, TD_E_VERIFY,
                                       &f, &file_hash, err);
    if (rc == TD_OK && f->meta.number != number)
        rc = td_error_set(err, TD_E_VERIFY, "%s says that it is shard %lld: it was renamed", path,
                          (long long)f->meta.number);
    if (rc == TD_OK) {
        td_index_entry_of(f, file_hash, out);
        out->proven = true;
    }
    td_shard_file_close(f);
    free(path);
    return rc;
}

static int by_number(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* A commit removes the other form before it puts its own in place, so this is not ours. */
static td_status refuse_both_forms(const td_output *o, int64_t *numbers, size_t n, td_error *err) {
    if (n)
        qsort(numbers, n, sizeof *numbers, by_number);
    for (size_t i = 1; i < n; i++)
        if (numbers[i] == numbers[i - 1])
            return td_error_set(err, TD_E_OUTPUT,
                                "%s holds shard %lld as .safetensors and as .safetensors.zst: "
                                "remove one of them",
                                o->dir, (long long)numbers[i]);
    return TD_OK;
}

/* Brings index and folder into agreement. */
static td_status repair_index(td_output *o, const int64_t *numbers, size_t n, td_error *err) {
    td_index_faults faults;
    size_t n_added = 0, n_dropped = 0;
    td_status rc = td_index_load(o->dir, &o->index, &faults, err);
    if (rc != TD_OK)
        return rc;
    for (size_t i = 0; i < n; i++) {
        td_index_entry e;
        td_error why = {0};
        if (td_index_find(&o->index, numbers[i]) || o->reading)
            continue;
        td_status s = prove_shard(o, numbers[i], &e, &why);
        if (s != TD_OK && s != TD_E_VERIFY) { /* it could not be looked at */
            if (err)
                *err = why;
            return s;
        }
        if (s != TD_OK) {
            td_log_warn("%s; it will be computed again", why.text);
            continue;
        }
        if (!td_index_set(&o->index, &e, NULL))
            return td_error_nomem(err, "the index", sizeof e);
        n_added++;
    }
    for (size_t i = 0; i < o->index.n;) {
        if (n && bsearch(&o->index.entries[i].number, numbers, n, sizeof *numbers, by_number)) {
            i++;
            continue;
        }
        char name[TD_SHARD_NAME_SIZE];
        td_shard_name(o->index.entries[i].number, o->index.entries[i].packed, name);
        if (!o->reading)
            td_log_warn("%s/%s is in the index, but not in the folder; it will be computed again",
                        o->dir, name);
        td_index_remove(&o->index, o->index.entries[i].number);
        n_dropped++;
    }
    if (n_added)
        td_log_info("%s: %zu finished shard%s added to the index again", o->dir, n_added,
                    n_added == 1 ? "" : "s");
    if (o->reading) { /* a run would write it anew */
        o->index_dirty = n_dropped || faults.missing || faults.out_of_order || faults.n_doubled ||
                         faults.n_damaged;
        return TD_OK;
    }
    if (n_added || n_dropped || faults.missing || faults.out_of_order || faults.n_doubled ||
        faults.n_damaged)
        rc = td_index_rewrite(o->dir, &o->index, err);
    return rc;
}

/* Of a dataset of several files, also which are others. */
static td_status compare_identity(td_output *o, const td_manifest *m, td_error *err) {
    td_status rc = td_identity_compare(m->identity, o->identity, true, o->dir, err);
    if (rc == TD_OK || !err)
        return rc;
    td_strbuf b = {0};
    td_manifest_file_changes(m, &o->id, &b);
    size_t n = strlen(err->text);
    if (b.len && !b.oom)
        snprintf(err->text + n, sizeof err->text - n, "%s", b.data);
    td_strbuf_free(&b);
    return rc;
}

static td_status load_folder(td_output *o, td_error *err) {
    int64_t *numbers = NULL;
    size_t n = 0;
    td_manifest m = {0};
    char *path = td_output_path(o, TD_MANIFEST_NAME);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = td_merge_check_unfinished(o->dir, err);
    if (rc == TD_OK)
        rc = scan_folder(o, &numbers, &n, err);
    if (rc != TD_OK)
        goto done;
    if (!td_path_exists(path)) {
        if (n)
            rc = td_error_set(err, TD_E_OUTPUT,
                              "%s holds %zu shard%s, but no manifest.json: what run they belong to "
                              "cannot be known. Restore it, or choose another output.dir",
                              o->dir, n, n == 1 ? "" : "s");
        goto done;
    }
    rc = td_manifest_load(o->dir, TD_E_OUTPUT, &m, err);
    if (rc == TD_OK)
        rc = compare_identity(o, &m, err);
    if (rc == TD_OK)
        rc = refuse_both_forms(o, numbers, n, err);
    if (rc != TD_OK)
        goto done;
    o->manifest_there = true;
    o->fingerprint = m.fingerprint;
    o->extent = m.extent;
    rc = repair_index(o, numbers, n, err);
done:
    td_manifest_free(&m);
    free(numbers);
    free(path);
    return rc;
}

/* --- open, bind, close ------------------------------------------------------------------------ */

td_status td_output_open(const td_config *cfg, const td_capture_spec *spec, const td_identity *id,
                         td_output **out, td_error *err) {
    return td_output_open_locked(cfg, spec, id, -1, out, err);
}

int td_output_lock_fd(const td_output *o) {
    return o->lock.fd;
}

static td_status open_folder(const td_config *cfg, const td_capture_spec *spec,
                             const td_identity *id, int lock_fd, bool reading, td_output **out,
                             td_error *err) {
    td_output *o = td_calloc(1, sizeof *o);
    if (!o)
        return td_error_nomem(err, "the output folder", sizeof *o);
    o->lock = TD_FOLDER_LOCK_NONE;
    pthread_mutex_init(&o->mutex, NULL);
    o->cfg = cfg;
    o->id = *id;
    o->has_ids = cfg->data.id_field != NULL;
    o->spec = *spec;
    td_coverage_init(&o->coverage, td_capture_has_topk(o->spec.mode) ? o->spec.top_k : 0);
    o->reading = reading;
    td_status rc = TD_OK;
    o->dir = td_strdup(cfg->output.dir);
    if (!o->dir)
        rc = td_error_nomem(err, "a path", strlen(cfg->output.dir));
    if (rc == TD_OK && !reading)
        rc = td_mkdir_p(o->dir, err);
    if (rc == TD_OK)
        rc = reading ? td_folder_lock_read(o->dir, &o->lock, err)
                     : td_folder_lock_write(o->dir, lock_fd, &o->lock, err);
    if (rc == TD_OK)
        rc = td_identity_build(cfg, spec, id, &o->identity, err);
    if (rc == TD_OK)
        rc = load_folder(o, err);
    if (rc != TD_OK) {
        td_output_close(o);
        return rc;
    }
    *out = o;
    return TD_OK;
}

/* The manifest with another extent; everything else of it stays. */
static td_status write_extent(td_output *o, const json_t *root, const td_extent *x, td_error *err) {
    char *text = NULL, *path = td_output_path(o, TD_MANIFEST_NAME);
    td_status rc =
        path ? td_manifest_text_extended(root, x, &text, err) : td_error_nomem(err, "a path", 0);
    if (rc == TD_OK)
        rc = td_file_write_atomic(path, text, strlen(text), true, err);
    if (rc == TD_OK)
        o->extent = *x;
    free(text);
    free(path);
    return rc;
}

td_status td_output_open_locked(const td_config *cfg, const td_capture_spec *spec,
                                const td_identity *id, int lock_fd, td_output **out,
                                td_error *err) {
    return open_folder(cfg, spec, id, lock_fd, false, out, err);
}

td_status td_output_open_reading(const td_config *cfg, const td_capture_spec *spec,
                                 const td_identity *id, td_output **out, td_error *err) {
    return open_folder(cfg, spec, id, -1, true, out, err);
}

void td_output_state(td_output *o, td_folder_state *out) {
    const td_extent mine = td_extent_of(o->cfg);
    pthread_mutex_lock(&o->mutex);
    td_extent x = o->extent;
    /* What an earlier run for another part of the data saw of its end says nothing of this one's. */
    if (!td_extent_same_share(&x, &mine))
        x = mine;
    td_folder_state_of(&x, &o->index, out);
    out->complete = out->complete && !o->index_dirty;
    pthread_mutex_unlock(&o->mutex);
}

td_status td_output_bind_weights(td_output *o, uint64_t weights_hash, td_error *err) {
    td_manifest m = {0};
    char *text = NULL, *path = NULL;
    const td_extent mine = td_extent_of(o->cfg);
    td_status rc = td_identity_set_weights(o->identity, weights_hash, err);
    if (rc != TD_OK)
        return rc;
    if (o->manifest_there) {
        rc = td_manifest_load(o->dir, TD_E_OUTPUT, &m, err);
        if (rc == TD_OK)
            rc = td_identity_compare(m.identity, o->identity, false, o->dir, err);
        o->extent = m.extent;
        /* Another share, or more of the data: its end is to be seen again. */
        if (rc == TD_OK && !td_extent_same_share(&m.extent, &mine))
            rc = write_extent(o, m.root, &mine, err);
        td_manifest_free(&m);
        if (rc == TD_OK)
            o->bound = true;
        return rc;
    }
    rc = td_identity_fingerprint(o->identity, &o->fingerprint, err);
    if (rc == TD_OK)
        rc = td_manifest_text(o->cfg, &o->id, o->identity, &o->spec, &text, err);
    if (rc != TD_OK)
        return rc;
    path = td_output_path(o, TD_MANIFEST_NAME);
    rc = path ? td_file_write_atomic(path, text, strlen(text), true, err)
              : td_error_nomem(err, "a path", 0);
    free(path);
    free(text);
    if (rc == TD_OK) {
        o->manifest_there = o->bound = true;
        o->extent = mine;
    }
    return rc;
}

td_status td_output_note_rows(td_output *o, int64_t n_rows, bool at_end, td_error *err) {
    td_manifest m = {0};
    td_status rc = TD_OK;
    pthread_mutex_lock(&o->mutex);
    td_extent x = o->extent;
    x.n_rows_at_least = TD_MAX(x.n_rows_at_least, n_rows);
    if (at_end)
        x.n_rows = x.n_rows_at_least = n_rows;
    if (x.n_rows != o->extent.n_rows || x.n_rows_at_least != o->extent.n_rows_at_least) {
        rc = td_manifest_load(o->dir, TD_E_OUTPUT, &m, err);
        if (rc == TD_OK)
            rc = write_extent(o, m.root, &x, err);
        td_manifest_free(&m);
    }
    pthread_mutex_unlock(&o->mutex);
    return rc;
}

void td_output_close(td_output *o) {
    if (!o)
        return;
    /* Groups finish shards out of order; at the end the index is put in order, so that a folder
     * does not tell how its run was scheduled. A crash before this loses nothing. */
    if (o->index_dirty && !o->reading) {
        td_error err;
        if (td_index_rewrite(o->dir, &o->index, &err) != TD_OK)
            td_log_warn("%s (the index is repaired when the folder is next opened)", err.text);
    }
    td_folder_lock_release(&o->lock);
    td_index_free(&o->index);
    json_decref(o->identity);
    pthread_mutex_destroy(&o->mutex);
    free(o->dir);
    free(o);
}

/* --- finished shards -------------------------------------------------------------------------- */

td_status td_output_add_entry(td_output *o, const td_index_entry *e, td_error *err) {
    bool replaced = false;
    td_status rc;
    pthread_mutex_lock(&o->mutex);
    bool in_order = o->index.n == 0 || o->index.entries[o->index.n - 1].number < e->number;
    if (!td_index_set(&o->index, e, &replaced)) {
        rc = td_error_nomem(err, "the index", sizeof *e);
    } else if (replaced || o->index_torn) {
        /* An older line of this shard, or half of a line, must go. */
        rc = td_index_rewrite(o->dir, &o->index, err);
        o->index_torn = o->index_dirty = rc != TD_OK;
    } else {
        rc = td_index_append(o->dir, e, err);
        if (rc != TD_OK)
            o->index_torn = true;
        if (rc != TD_OK || !in_order)
            o->index_dirty = true;
    }
    pthread_mutex_unlock(&o->mutex);
    return rc;
}

void td_output_add_coverage(td_output *o, const td_coverage *c) {
    pthread_mutex_lock(&o->mutex);
    td_coverage_merge(&o->coverage, c);
    pthread_mutex_unlock(&o->mutex);
}

void td_output_coverage_get(td_output *o, td_coverage *c) {
    pthread_mutex_lock(&o->mutex);
    *c = o->coverage;
    pthread_mutex_unlock(&o->mutex);
}

/* The rows of a finished shard, for the report: a courtesy, so a shard that cannot be read now is
 * left out. The mutex is held. */
static void count_kept(td_output *o, int64_t number) {
    td_shard_file *f = NULL;
    td_error ignored;
    char *path = td_shard_path(o->dir, number);
    if (path && o->coverage.top_k &&
        td_shard_file_open(path, &o->spec, TD_E_OUTPUT, NULL, &f, &ignored) == TD_OK)
        td_coverage_add_shard(&o->coverage, f);
    td_shard_file_close(f);
    free(path);
}

/* Proves a shard of the index once. A stale line is corrected; *good = false when its content is
 * wrong. A shard that cannot be looked at is an error: it stays as it is. */
static td_status prove_entry(td_output *o, td_index_entry *e, bool *good, td_error *err) {
    td_index_entry found;
    td_error why = {0};
    td_status rc = prove_shard(o, e->number, &found, &why);
    *good = rc == TD_OK;
    if (rc == TD_E_VERIFY) {
        if (!o->reading)
            td_log_warn("%s; it will be computed again", why.text);
        return TD_OK;
    }
    if (rc != TD_OK) {
        if (err)
            *err = why;
        return rc;
    }
    e->proven = true;
    if (!td_index_entry_equal(e, &found)) {
        if (o->reading) { /* the index is to be written again */
            *good = false;
            return TD_OK;
        }
        *e = found;
        rc = td_index_rewrite(o->dir, &o->index, err);
    }
    return rc;
}

td_status td_output_shard_done(td_output *o, int64_t number, int64_t row_begin, int64_t row_end,
                               uint64_t source_hash, bool *done, td_shard_totals *totals,
                               td_error *err) {
    td_status rc = TD_OK;
    bool is_done = false;
    pthread_mutex_lock(&o->mutex);
    td_index_entry *e = td_index_find(&o->index, number);
    if (!e)
        goto done;
    if (!e->proven) {
        bool good;
        rc = prove_entry(o, e, &good, err);
        if (rc != TD_OK)
            goto done;
        if (!good) {
            td_index_remove(&o->index, number);
            o->index_dirty = true;
            goto done;
        }
    }
    if (e->row_begin != row_begin) {
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s: shard %lld begins at dataset row %lld, expected %lld: "
                          "output.shard_samples differs. Choose another output.dir",
                          o->dir, (long long)number, (long long)e->row_begin, (long long)row_begin);
    } else if (e->row_end < row_end) {
        td_log_warn("shard %lld holds dataset rows %lld to %lld of %lld to %lld: an earlier "
                    "data.max_samples cut it short; it will be computed again",
                    (long long)number, (long long)e->row_begin, (long long)e->row_end,
                    (long long)row_begin, (long long)row_end);
    } else if (e->row_end > row_end) {
        td_log_warn(
            "shard %lld holds dataset rows up to %lld, this run needs %lld: data.max_samples "
            "was larger before; the shard is left as it is",
            (long long)number, (long long)e->row_end, (long long)row_end);
        is_done = true;
    } else if (e->source_hash != source_hash) {
        rc = td_error_set(err, TD_E_OUTPUT,
                          "dataset rows %lld to %lld are not those that shard %lld in %s was made "
                          "of: the dataset changed. Restore it, or choose another output.dir",
                          (long long)row_begin, (long long)row_end, (long long)number, o->dir);
    } else {
        is_done = true;
    }
    if (is_done)
        count_kept(o, number);
    if (is_done && totals)
        *totals = (td_shard_totals){.n_samples = e->n_samples,
                                    .n_tokens = e->n_tokens,
                                    .n_rows = e->n_rows,
                                    .n_skipped = e->n_skipped + e->n_bad_rows};
done:
    pthread_mutex_unlock(&o->mutex);
    if (rc == TD_OK)
        *done = is_done;
    return rc;
}

bool td_output_has_shard(const td_output *o, int64_t number) {
    td_output *unlocked = (td_output *)o; /* the mutex is no part of what const promises */
    pthread_mutex_lock(&unlocked->mutex);
    bool has = td_index_find(&o->index, number) != NULL;
    pthread_mutex_unlock(&unlocked->mutex);
    return has;
}

void td_output_totals_get(td_output *o, td_output_totals *t) {
    *t = (td_output_totals){0};
    pthread_mutex_lock(&o->mutex);
    for (size_t i = 0; i < o->index.n; i++) {
        const td_index_entry *e = &o->index.entries[i];
        t->n_shards++;
        t->n_samples += e->n_samples;
        t->n_tokens += e->n_tokens;
        t->n_rows += e->n_rows;
        t->n_skipped += e->n_skipped + e->n_bad_rows;
        t->size_bytes += e->size_bytes;
    }
    pthread_mutex_unlock(&o->mutex);
}
