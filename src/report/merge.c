/* tdgen merge: folders that several workers (run.worker_id) wrote become one.
 *
 * Everything is checked before anything is made: every byte of every folder (verify), that they are
 * of one run (the manifests' identities), that their shards have no gap and no overlap. Then
 *
 *   OUT/merge.json       the mark: which run, which shards, from where
 *   OUT/shard-...        hard links; copies (temp file, hash, fsync, rename) across file systems
 *   OUT/timeline.jsonl   the folders' one after the other
 *   OUT/shards.jsonl     by number
 *   OUT/manifest.json    the first folder's, for one worker
 *   and the mark goes
 *
 * A crash at any instant leaves the sources as they were and OUT with its mark; the same command
 * goes on from there: what is in place is recognised by its hash. No file of a record is ever
 * changed in place by tdgen, so that a link is as good as a copy.
 */
#include "report/report.h"
#include "record/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/json.h"
#include "base/file.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

#define STATUS_MAX_BYTES ((size_t)1 << 24)
#define TIMELINE_MAX_BYTES ((size_t)1 << 26)

typedef struct merge_source {
    const char *dir;
    td_folder_lock lock; /* shared: no run may write there meanwhile */
    struct stat sb;
    td_manifest manifest;
    td_index index;
    int64_t n_data_shards; /* in the whole dataset, as its run found; -1 = not told */
} merge_source;

typedef struct merge_shard {
    td_index_entry entry;
    int32_t source;
    char name[TD_SHARD_NAME_SIZE];
} merge_shard;

typedef struct merger {
    const char *out_dir;
    const td_merge_options *opt;
    FILE *log;
    merge_source *sources;
    int32_t n_sources;
    merge_shard *shards; /* by number */
    size_t n_shards;
    uint64_t plan_hash; /* of the index lines of the result */
    td_folder_lock lock;
    int64_t n_linked, n_copied, n_there;
} merger;

static char *path_of(const char *dir, const char *name) {
    return td_asprintf("%s/%s", dir, name);
}

/* --- locks ------------------------------------------------------------------------------------ */

/* *fd = -1 where there is no lock file to share, or the file system has none. */
/* --- the sources ------------------------------------------------------------------------------ */

/* What status.json says of the run that wrote the folder: an unfinished one is no part of a whole.
 * A folder without the file (copied without it) leaves it to the others to say how many shards there
 * are; a file that cannot be read is an error, not an absence. */
static td_status read_status(merge_source *s, td_error *err) {
    char *path = path_of(s->dir, "status.json");
    json_t *o = NULL;
    s->n_data_shards = td_extent_n_shards(&s->manifest.extent);
    if (!path)
        return td_error_nomem(err, "a path", strlen(s->dir));
    td_status rc = TD_OK;
    if (td_path_exists(path))
        rc = td_json_load_file(path, STATUS_MAX_BYTES, TD_E_OUTPUT, &o, err);
    if (!o)
        goto done;
    const char *state = json_string_value(json_object_get(o, "state"));
    const json_t *n = json_object_get(o, "shards_in_data");
    if (state && strcmp(state, "done") != 0)
        rc = td_error_set(err, TD_E_OUTPUT,
                          "the run in %s is not finished (status.json says \"%.20s\"): run its "
                          "command again, then merge",
                          s->dir, state);
    else if (s->n_data_shards < 0 && json_is_integer(n) && json_integer_value(n) >= 0)
        s->n_data_shards = json_integer_value(n);
done:
    json_decref(o);
    free(path);
    return rc;
}

static td_status open_source(merger *m, int32_t i, td_error *err) {
    merge_source *s = &m->sources[i];
    struct stat out;
    char *path = path_of(s->dir, TD_MANIFEST_NAME);
    if (!path)
        return td_error_nomem(err, "a path", strlen(s->dir));
    td_status rc = TD_OK;
    if (stat(s->dir, &s->sb) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot read the folder %s", s->dir);
    else if (stat(m->out_dir, &out) == 0 && out.st_dev == s->sb.st_dev &&
             out.st_ino == s->sb.st_ino)
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s is both the result and one of the folders to merge; the first "
                          "argument is a new folder",
                          s->dir);
    for (int32_t k = 0; rc == TD_OK && k < i; k++)
        if (m->sources[k].sb.st_dev == s->sb.st_dev && m->sources[k].sb.st_ino == s->sb.st_ino)
            rc = td_error_set(err, TD_E_OUTPUT, "%s and %s are the same folder", m->sources[k].dir,
                              s->dir);
    if (rc == TD_OK)
        rc = td_merge_check_unfinished(s->dir, err);
    if (rc == TD_OK && !td_path_exists(path))
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s is no output folder of tdgen: it has no " TD_MANIFEST_NAME, s->dir);
    if (rc == TD_OK)
        rc = td_folder_lock_read(s->dir, &s->lock, err);
    if (rc == TD_OK)
        rc = td_manifest_load(s->dir, TD_E_VERIFY, &s->manifest, err);
    if (rc == TD_OK && s->manifest.extent.known && s->manifest.extent.n_rows < 0)
        rc = td_error_set(
            err, TD_E_OUTPUT,
            "the run in %s is not finished (it did not come to the end of the dataset): "
            "run its command again, then merge",
            s->dir);
    if (rc == TD_OK)
        rc = read_status(s, err);
    free(path);
    return rc;
}

static td_status compare_source(const merger *m, int32_t i, td_error *err) {
    const merge_source *a = &m->sources[0], *b = &m->sources[i];
    td_strbuf text = {0};
    td_status rc = TD_OK;
    if (td_identity_differences(a->manifest.identity, b->manifest.identity, false, a->dir, b->dir,
                                &text))
        rc = td_error_set(err, TD_E_OUTPUT, "%s and %s are not of the same run: %s", a->dir, b->dir,
                          text.oom ? "(out of memory)" : text.data);
    else if (a->n_data_shards >= 0 && b->n_data_shards >= 0 && a->n_data_shards != b->n_data_shards)
        rc = td_error_set(err, TD_E_OUTPUT,
                          "the runs differ in how much of the data they were for: %lld shards in "
                          "%s and %lld in %s (data.max_samples?)",
                          (long long)a->n_data_shards, a->dir, (long long)b->n_data_shards, b->dir);
    td_strbuf_free(&text);
    return rc;
}

static td_status verify_source(merger *m, int32_t i, td_error *err) {
    fprintf(m->log, "Checking %s\n", m->sources[i].dir);
    fflush(m->log);
    const td_verify_options opt = {.partial = true}; /* gaps of the whole are ours to find */
    return td_verify(m->sources[i].dir, &opt, m->log, err);
}

/* --- the plan --------------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b) {
    const merge_shard *x = a, *y = b;
    if (x->entry.number != y->entry.number)
        return x->entry.number > y->entry.number ? 1 : -1;
    return (x->source > y->source) - (x->source < y->source);
}

/* The file of each shard as it is called in its folder. */
static td_status list_source(merger *m, int32_t i, size_t *cap, td_error *err) {
    merge_source *s = &m->sources[i];
    td_dir *d = NULL;
    const char *name = NULL;
    td_status rc = td_dir_open(s->dir, TD_E_OUTPUT, &d, err);
    while (rc == TD_OK && (rc = td_dir_next(d, &name, err)) == TD_OK && name) {
        int64_t number = td_shard_name_parse(name, NULL);
        const td_index_entry *entry = number < 0 ? NULL : td_index_find(&s->index, number);
        if (!entry || strlen(name) >= TD_SHARD_NAME_SIZE)
            continue;
        if (!td_grow((void **)&m->shards, cap, m->n_shards + 1, sizeof *m->shards)) {
            rc = td_error_nomem(err, "a list of shards", m->n_shards * sizeof *m->shards);
            break;
        }
        merge_shard *sh = &m->shards[m->n_shards++];
        *sh = (merge_shard){.entry = *entry, .source = i};
        snprintf(sh->name, sizeof sh->name, "%s", name);
    }
    td_dir_close(d);
    return rc;
}

static td_status check_neighbours(const merger *m, td_error *err) {
    int64_t next = 0, row = 0;
    for (size_t i = 0; i < m->n_shards; i++) {
        const td_index_entry *e = &m->shards[i].entry;
        const char *dir = m->sources[m->shards[i].source].dir;
        if (i && e->number == m->shards[i - 1].entry.number)
            return td_error_set(err, TD_E_OUTPUT,
                                "shard %lld is both in %s and in %s%s: the folders overlap (were "
                                "run.worker_id and run.total_workers the same?)",
                                (long long)e->number, m->sources[m->shards[i - 1].source].dir, dir,
                                e->file_hash == m->shards[i - 1].entry.file_hash
                                    ? ", byte for byte the same"
                                    : ", with different content");
        if (e->number != next)
            return td_error_set(err, TD_E_OUTPUT,
                                "shard%s %lld%s%.0lld %s in none of the folders: a worker's folder "
                                "is missing, or its run did not finish",
                                e->number - next > 1 ? "s" : "", (long long)next,
                                e->number - next > 1 ? " to " : "",
                                (long long)(e->number - next > 1 ? e->number - 1 : 0),
                                e->number - next > 1 ? "are" : "is");
        if (e->row_begin != row)
            return td_error_set(err, TD_E_OUTPUT,
                                "shard %lld in %s begins at dataset row %lld, but the one before "
                                "(in %s) ends at row %lld: it was cut short by data.max_samples; "
                                "run that worker again with the others' settings",
                                (long long)e->number, dir, (long long)e->row_begin,
                                i ? m->sources[m->shards[i - 1].source].dir : dir, (long long)row);
        next++;
        row = e->row_end;
    }
    int64_t want = -1;
    for (int32_t k = 0; k < m->n_sources; k++)
        want = TD_MAX(want, m->sources[k].n_data_shards);
    if (want >= 0 && next != want)
        return td_error_set(err, TD_E_OUTPUT,
                            "the dataset has %lld shards, the folders hold the first %lld of them: "
                            "a worker's folder is missing",
                            (long long)want, (long long)next);
    if (want < 0 && !m->opt->assume_complete)
        return td_error_set(
            err, TD_E_OUTPUT,
            "no folder has a status.json that says how many shards the data has, so "
            "whether shards behind number %lld are missing cannot be told: copy the "
            "status.json of one finished worker into its folder, or add "
            "--assume-complete if you know that there are none",
            (long long)(next - 1));
    if (want < 0)
        fprintf(
            m->log,
            "note: no folder has a status.json; taken as complete up to shard %lld, as you said\n",
            (long long)(next - 1));
    return TD_OK;
}

static td_status make_plan(merger *m, td_error *err) {
    size_t cap = 0;
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && i < m->n_sources; i++)
        rc = list_source(m, i, &cap, err);
    if (rc == TD_OK && m->n_shards == 0)
        rc =
            td_error_set(err, TD_E_OUTPUT, "the folders hold no shards: there is nothing to merge");
    if (rc != TD_OK)
        return rc;
    qsort(m->shards, m->n_shards, sizeof *m->shards, by_number);
    rc = check_neighbours(m, err);
    if (rc != TD_OK)
        return rc;
    td_strbuf lines = {0};
    for (size_t i = 0; i < m->n_shards; i++)
        td_index_line(&m->shards[i].entry, &lines);
    if (lines.oom)
        rc = td_error_nomem(err, "the index", lines.len);
    else
        m->plan_hash = td_hash64(lines.data, lines.len);
    td_strbuf_free(&lines);
    return rc;
}

/* --- the result's folder ---------------------------------------------------------------------- */

static td_status mark_text(const merger *m, char **out, td_error *err) {
    char fingerprint[17], plan[17];
    td_hash_hex(m->sources[0].manifest.fingerprint, fingerprint);
    td_hash_hex(m->plan_hash, plan);
    json_t *from = json_array();
    for (int32_t i = 0; from && i < m->n_sources; i++) {
        char *real = realpath(m->sources[i].dir, NULL);
        json_t *name = json_string(real ? real : m->sources[i].dir);
        json_array_append_new(from, name ? name : json_string("(not UTF-8)"));
        free(real);
    }
    json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:o}", "note",
                          "a merge under way: run the same tdgen merge again to complete it",
                          "fingerprint", fingerprint, "shards_hash", plan, "shards",
                          (json_int_t)m->n_shards, "from", from);
    *out = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    json_decref(o);
    return *out ? TD_OK : td_error_nomem(err, "the mark of the merge", 0);
}

/* A mark of another merge is somebody's half-finished work. */
static td_status compare_mark(const merger *m, const char *path, td_error *err) {
    char *text = NULL, *dump = NULL;
    json_t *have = NULL, *want = NULL;
    td_status rc = mark_text(m, &text, err);
    if (rc == TD_OK)
        rc = td_json_parse(text, strlen(text), "the mark", TD_E_INTERNAL, &want, err);
    if (rc == TD_OK)
        rc = td_json_load_file(path, TD_MANIFEST_MAX_BYTES, TD_E_OUTPUT, &have, err);
    if (rc != TD_OK)
        goto done;
    static const char *const keys[] = {"fingerprint", "shards_hash"};
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(keys); i++) {
        const char *a = json_string_value(json_object_get(have, keys[i]));
        const char *b = json_string_value(json_object_get(want, keys[i]));
        if (a && b && strcmp(a, b) == 0)
            continue;
        dump = json_dumps(json_object_get(have, "from"), JSON_COMPACT | JSON_ENCODE_ANY);
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s is the half of another merge: its %s is %s in %s and %s in this one; "
                          "that merge was of %.300s. Complete it, or choose another folder",
                          m->out_dir, keys[i], a ? a : "not set", path, b, dump ? dump : "?");
    }
done:
    free(dump);
    json_decref(have);
    json_decref(want);
    free(text);
    return rc;
}

/* Is OUT already what this merge gives? Then there is nothing to do; anything else is refused. */
static td_status compare_finished(const merger *m, td_error *err) {
    td_manifest manifest = {0};
    td_index index = {0};
    td_index_faults faults;
    td_strbuf text = {0};
    td_status rc = td_manifest_load(m->out_dir, TD_E_OUTPUT, &manifest, err);
    if (rc == TD_OK)
        rc = td_index_load(m->out_dir, &index, &faults, err);
    if (rc != TD_OK)
        goto done;
    if (td_identity_differences(manifest.identity, m->sources[0].manifest.identity, false,
                                m->out_dir, m->sources[0].dir, &text)) {
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s already holds another run: %s. Choose a new folder for the result",
                          m->out_dir, text.oom ? "(out of memory)" : text.data);
        goto done;
    }
    bool same = index.n == m->n_shards;
    for (size_t i = 0; same && i < m->n_shards; i++)
        same = td_index_entry_equal(&index.entries[i], &m->shards[i].entry);
    if (!same)
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s already holds a run with %zu shards that are not those of this merge "
                          "(%zu shards). Choose a new folder for the result",
                          m->out_dir, index.n, m->n_shards);
done:
    td_strbuf_free(&text);
    td_index_free(&index);
    td_manifest_free(&manifest);
    return rc;
}

/* Temp files of a crash go; shards without a mark belong to somebody else. */
static td_status sweep(const merger *m, bool marked, td_error *err) {
    static const char *const prefix[] = {"shard-", TD_MANIFEST_NAME, TD_INDEX_NAME,
                                         TD_MERGE_MARK_NAME, "timeline.jsonl"};
    td_status rc = TD_OK;
    td_dir *d = NULL;
    const char *name = NULL;
    rc = td_dir_open(m->out_dir, TD_E_OUTPUT, &d, err);
    while (rc == TD_OK && (rc = td_dir_next(d, &name, err)) == TD_OK && name) {
        if (!marked && td_shard_name_parse(name, NULL) >= 0)
            rc = td_error_set(err, TD_E_OUTPUT,
                              "%s holds %s, but no " TD_MANIFEST_NAME
                              ": whose it is cannot be told. Choose a new folder for the result",
                              m->out_dir, name);
        if (!td_temp_is_name(name))
            continue;
        for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(prefix); i++)
            if (strncmp(name, prefix[i], strlen(prefix[i])) == 0 &&
                unlinkat(td_dir_fd(d), name, 0) != 0 && errno != ENOENT)
                rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot remove %s/%s, left by a crash",
                                    m->out_dir, name);
    }
    td_dir_close(d);
    return rc;
}

static td_status prepare_out(merger *m, bool *finished, td_error *err) {
    char *mark = path_of(m->out_dir, TD_MERGE_MARK_NAME), *text = NULL;
    char *manifest = path_of(m->out_dir, TD_MANIFEST_NAME);
    td_status rc = TD_OK;
    *finished = false;
    if (!mark || !manifest)
        rc = td_error_nomem(err, "a path", strlen(m->out_dir));
    if (rc == TD_OK)
        rc = td_mkdir_p(m->out_dir, err);
    if (rc == TD_OK)
        rc = td_folder_lock_write(m->out_dir, -1, &m->lock, err);
    if (rc != TD_OK)
        goto done;
    bool marked = td_path_exists(mark);
    if (marked) {
        rc = compare_mark(m, mark, err);
    } else if (td_path_exists(manifest)) {
        rc = compare_finished(m, err);
        *finished = rc == TD_OK;
        goto done;
    }
    if (rc == TD_OK)
        rc = sweep(m, marked, err);
    if (rc == TD_OK && !marked)
        rc = mark_text(m, &text, err);
    if (rc == TD_OK && !marked)
        rc = td_file_write_atomic(mark, text, strlen(text), true, err);
done:
    free(text);
    free(manifest);
    free(mark);
    return rc;
}

/* --- shards ----------------------------------------------------------------------------------- */

/* Hashes a file, and with out_fd >= 0 writes the same bytes there. */
static td_status pass_over(int fd, const char *path, int out_fd, const char *out_path,
                           uint64_t *hash, td_error *err) {
    enum { CHUNK = 1 << 20 };
    char *buf = malloc(CHUNK);
    td_hasher *h = td_hasher_create();
    uint64_t at = 0;
    td_status rc = !buf || !h ? td_error_nomem(err, path, CHUNK) : TD_OK;
    while (rc == TD_OK) {
        ssize_t n = read(fd, buf, CHUNK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot read %s", path);
        if (n <= 0)
            break;
        td_hasher_update(h, buf, (size_t)n);
        if (out_fd >= 0)
            rc = td_pwrite_all(out_fd, buf, (size_t)n, at, out_path, err);
        at += (uint64_t)n;
    }
    if (rc == TD_OK)
        *hash = td_hasher_digest(h);
    td_hasher_destroy(h);
    free(buf);
    return rc;
}

static td_status copy_shard(const char *from, const char *to, uint64_t file_hash, td_error *err) {
    char *tmp = td_temp_path(to);
    int in = -1, out = -1;
    uint64_t hash = 0;
    if (!tmp)
        return td_error_nomem(err, "a path", strlen(to));
    bool made = false;
    td_status rc = td_file_open(from, TD_E_OUTPUT, &in, NULL, err);
    if (rc == TD_OK) {
        rc = td_file_create(tmp, TD_CREATE_NEW, &out, err);
        made = rc == TD_OK;
    }
    if (rc == TD_OK)
        rc = pass_over(in, from, out, tmp, &hash, err);
    if (rc == TD_OK && hash != file_hash)
        rc = td_error_set(err, TD_E_VERIFY, "%s changed while it was merged", from);
    if (rc == TD_OK && fsync(out) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot sync %s", tmp);
    if (rc == TD_OK)
        rc = td_temp_check(out, tmp, err);
    if (made && close(out) != 0 && rc == TD_OK)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot close %s", tmp);
    if (rc == TD_OK && rename(tmp, to) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot rename %s to %s", tmp, to);
    if (rc != TD_OK && made)
        unlink(tmp);
    if (in >= 0)
        close(in);
    free(tmp);
    return rc;
}

static td_status check_there(const char *from, const char *to, uint64_t file_hash, td_error *err) {
    struct stat a, b;
    if (stat(from, &a) == 0 && stat(to, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return TD_OK;
    uint64_t hash = 0;
    int fd;
    td_status rc = td_file_open(to, TD_E_OUTPUT, &fd, NULL, err);
    if (rc != TD_OK)
        return rc;
    rc = pass_over(fd, to, -1, NULL, &hash, err);
    close(fd);
    if (rc == TD_OK && hash != file_hash)
        rc =
            td_error_set(err, TD_E_OUTPUT,
                         "%s is there, but it is not the shard of %s. Remove it, or choose another "
                         "folder for the result",
                         to, from);
    return rc;
}

static td_status place_shard(merger *m, const merge_shard *sh, td_error *err) {
    char *from = path_of(m->sources[sh->source].dir, sh->name), *to = path_of(m->out_dir, sh->name);
    td_status rc = TD_OK;
    if (!from || !to) {
        rc = td_error_nomem(err, "a path", 0);
    } else if (td_path_exists(to)) {
        rc = check_there(from, to, sh->entry.file_hash, err);
        m->n_there += rc == TD_OK;
    } else if (!m->opt->copy && linkat(AT_FDCWD, from, AT_FDCWD, to, AT_SYMLINK_FOLLOW) == 0) {
        m->n_linked++;
    } else if (!m->opt->copy && errno != EXDEV && errno != EPERM && errno != EMLINK &&
               errno != EOPNOTSUPP && errno != ENOSYS) {
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot link %s to %s", from, to);
    } else {
        rc = copy_shard(from, to, sh->entry.file_hash, err);
        m->n_copied += rc == TD_OK;
    }
    free(from);
    free(to);
    return rc;
}

/* --- the rest --------------------------------------------------------------------------------- */

/* A courtesy for inspect --html: what cannot be read is left out. */
static td_status join_timelines(const merger *m, td_error *err) {
    td_strbuf all = {0};
    td_status rc = TD_OK;
    char *to = path_of(m->out_dir, "timeline.jsonl");
    for (int32_t i = 0; to && i < m->n_sources; i++) {
        char *path = path_of(m->sources[i].dir, "timeline.jsonl"), *data = NULL;
        size_t n = 0;
        td_error ignored;
        if (path && td_path_exists(path) &&
            td_file_read(path, TIMELINE_MAX_BYTES, TD_E_OUTPUT, &data, &n, &ignored) == TD_OK)
            td_strbuf_append(&all, data, n);
        free(data);
        free(path);
    }
    if (!to || all.oom)
        rc = td_error_nomem(err, "the timeline", all.len);
    else if (all.len)
        rc = td_file_write_atomic(to, all.data, all.len, false, err);
    td_strbuf_free(&all);
    free(to);
    return rc;
}

static td_status write_index(const merger *m, td_error *err) {
    td_index x = {0};
    td_status rc = TD_OK;
    for (size_t i = 0; rc == TD_OK && i < m->n_shards; i++)
        if (!td_index_set(&x, &m->shards[i].entry, NULL))
            rc = td_error_nomem(err, "the index", sizeof m->shards[i].entry);
    if (rc == TD_OK)
        rc = td_index_rewrite(m->out_dir, &x, err);
    td_index_free(&x);
    return rc;
}

/* That of the first folder, for one worker that did it all. */
static td_status write_manifest(const merger *m, td_error *err) {
    char *data = NULL, *to = path_of(m->out_dir, TD_MANIFEST_NAME);
    const td_manifest *first = &m->sources[0].manifest;
    td_extent x = first->extent;
    td_status rc = to ? TD_OK : td_error_nomem(err, "a path", 0);
    x.worker_id = 0;
    x.total_workers = 1;
    if (rc == TD_OK)
        rc = td_manifest_text_extended(first->root, &x, &data, err);
    if (rc == TD_OK)
        rc = td_file_write_atomic(to, data, strlen(data), true, err);
    free(data);
    free(to);
    return rc;
}

static td_status remove_mark(const merger *m, td_error *err) {
    char *path = path_of(m->out_dir, TD_MERGE_MARK_NAME);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = unlink(path) != 0
                       ? td_error_errno(err, TD_E_OUTPUT, errno, "cannot remove %s", path)
                       : td_file_sync_dir_of(path, err);
    free(path);
    return rc;
}

static void print_result(const merger *m, bool finished) {
    int64_t n_samples = 0, n_tokens = 0, n_rows = 0;
    uint64_t size = 0;
    char text[32];
    for (size_t i = 0; i < m->n_shards; i++) {
        n_samples += m->shards[i].entry.n_samples;
        n_tokens += m->shards[i].entry.n_tokens;
        n_rows += m->shards[i].entry.n_rows;
        size += m->shards[i].entry.size_bytes;
    }
    fprintf(
        m->log,
        "%s: %zu shards of %d folders, %lld samples, %lld tokens, %lld recorded positions, %s; ",
        m->out_dir, m->n_shards, m->n_sources, (long long)n_samples, (long long)n_tokens,
        (long long)n_rows, td_human_bytes(size, text, sizeof text));
    if (finished)
        fprintf(m->log, "all of it was there already\n");
    else
        fprintf(m->log, "%lld linked, %lld copied%s\n", (long long)m->n_linked,
                (long long)m->n_copied,
                m->n_there ? ", the others were there from an interrupted merge" : "");
}

/* Gaps and overlaps are told by the indexes, at once; that these say the truth is told by verify.
 * An index that cannot be read is verify's to report. */
static td_status check_sources(merger *m, td_error *err) {
    bool sound = true;
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && i < m->n_sources; i++) {
        td_index_faults faults;
        rc = td_index_load(m->sources[i].dir, &m->sources[i].index, &faults, err);
        sound = sound && !faults.missing && !faults.n_damaged && !faults.n_doubled;
    }
    if (rc == TD_OK && sound)
        rc = make_plan(m, err);
    for (int32_t i = 0; rc == TD_OK && i < m->n_sources; i++)
        rc = verify_source(m, i, err);
    if (rc == TD_OK && !sound)
        rc = make_plan(m, err);
    return rc;
}

static td_status merge(merger *m, td_error *err) {
    bool finished;
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && i < m->n_sources; i++)
        rc = open_source(m, i, err);
    for (int32_t i = 1; rc == TD_OK && i < m->n_sources; i++)
        rc = compare_source(m, i, err);
    if (rc == TD_OK)
        rc = check_sources(m, err);
    if (rc == TD_OK)
        rc = prepare_out(m, &finished, err);
    if (rc != TD_OK || finished) {
        if (rc == TD_OK)
            print_result(m, finished);
        return rc;
    }
    for (size_t i = 0; rc == TD_OK && i < m->n_shards; i++)
        rc = place_shard(m, &m->shards[i], err);
    static td_status (*const step[])(const merger *, td_error *) = {join_timelines, write_index,
                                                                    write_manifest, remove_mark};
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(step); i++)
        rc = step[i](m, err);
    if (rc == TD_OK)
        print_result(m, finished);
    return rc;
}

td_status td_merge(const char *out_dir, const char *const *dirs, int32_t n_dirs,
                   const td_merge_options *opt, FILE *log, td_error *err) {
    merger m = {.out_dir = out_dir, .opt = opt, .log = log, .lock = TD_FOLDER_LOCK_NONE};
    m.sources = td_calloc((size_t)n_dirs, sizeof *m.sources);
    if (!m.sources)
        return td_error_nomem(err, "the folders", (size_t)n_dirs * sizeof *m.sources);
    m.n_sources = n_dirs;
    for (int32_t i = 0; i < n_dirs; i++) {
        m.sources[i].dir = dirs[i];
        m.sources[i].lock = TD_FOLDER_LOCK_NONE;
    }
    td_status rc = merge(&m, err);
    for (int32_t i = 0; i < n_dirs; i++) {
        td_folder_lock_release(&m.sources[i].lock);
        td_index_free(&m.sources[i].index);
        td_manifest_free(&m.sources[i].manifest);
    }
    td_folder_lock_release(&m.lock);
    free(m.sources);
    free(m.shards);
    return rc;
}
