/* Opening and proving a finished shard. See shard_file.h. */
#include "record/shard_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "record/shard_zstd.h"
#include "base/json.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* A header of ours is some KiB; the list of device kinds is the only part that grows. */
#define HEADER_MAX_BYTES ((uint64_t)1 << 20)
#define MAX_KINDS 256

/* --- metadata --------------------------------------------------------------------------------- */

static td_status meta_text(const td_safetensors *st, const char *key, td_status code,
                           const char **out, td_error *err) {
    const char *s = td_safetensors_meta(st, key);
    if (!s)
        return td_error_set(err, code,
                            "%s: its metadata has no \"%s\": no shard of tdgen, or damaged",
                            td_safetensors_path(st), key);
    *out = s;
    return TD_OK;
}

/* Canonical decimal only: no sign, blanks or leading zeros. */
static td_status meta_number(const td_safetensors *st, const char *key, td_status code,
                             int64_t *out, td_error *err) {
    const char *s = NULL;
    td_status rc = meta_text(st, key, code, &s, err);
    if (rc != TD_OK)
        return rc;
    size_t n = strlen(s);
    if (n < 1 || n > 18 || strspn(s, "0123456789") != n || (n > 1 && s[0] == '0'))
        return td_error_set(err, code, "%s: \"%s\" in its metadata is \"%.40s\", expected a number",
                            td_safetensors_path(st), key, s);
    *out = strtoll(s, NULL, 10);
    return TD_OK;
}

static bool parse_hex16(const char *s, uint64_t *out) {
    if (strspn(s, "0123456789abcdef") < 16)
        return false;
    char digits[17];
    memcpy(digits, s, 16);
    digits[16] = '\0';
    *out = strtoull(digits, NULL, 16);
    return true;
}

static td_status meta_hash(const td_safetensors *st, const char *key, td_status code, uint64_t *out,
                           td_error *err) {
    const char *s = NULL;
    td_status rc = meta_text(st, key, code, &s, err);
    if (rc != TD_OK)
        return rc;
    if (strlen(s) != 16 || !parse_hex16(s, out))
        return td_error_set(err, code,
                            "%s: \"%s\" in its metadata is \"%.40s\", expected 16 hex digits",
                            td_safetensors_path(st), key, s);
    return TD_OK;
}

static td_status meta_kinds(td_shard_file *f, td_status code, td_error *err) {
    const char *s = NULL;
    json_t *a = NULL;
    td_status rc = meta_text(f->st, "device_kinds", code, &s, err);
    if (rc == TD_OK)
        rc = td_json_parse(s, strlen(s), f->path, code, &a, err);
    if (rc != TD_OK)
        return rc;
    size_t n = json_array_size(a);
    if (!json_is_array(a) || n > MAX_KINDS) {
        rc = td_error_set(err, code, "%s: \"device_kinds\" must be a list of at most %d names",
                          f->path, MAX_KINDS);
        goto done;
    }
    f->kinds = td_calloc(n, sizeof *f->kinds);
    if (!f->kinds) {
        rc = td_error_nomem(err, f->path, n * sizeof *f->kinds);
        goto done;
    }
    f->meta.device_kinds = (const char *const *)f->kinds;
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_array_get(a, i));
        if (!name) {
            rc = td_error_set(err, code, "%s: \"device_kinds\" must hold strings", f->path);
            goto done;
        }
        f->kinds[i] = td_strdup(name);
        if (!f->kinds[i]) {
            rc = td_error_nomem(err, f->path, strlen(name));
            goto done;
        }
        f->meta.n_kinds++;
    }
done:
    json_decref(a);
    return rc;
}

static td_status meta_tensor_hashes(td_shard_file *f, td_status code, td_error *err) {
    const char *s = NULL;
    td_status rc = meta_text(f->st, "tensor_hashes", code, &s, err);
    if (rc != TD_OK)
        return rc;
    int32_t n = f->layout.n_present;
    bool ok = strlen(s) == (size_t)n * 17 - 1;
    for (int32_t i = 0; ok && i < n; i++)
        ok = parse_hex16(s + i * 17, &f->hashes.tensor[i]) &&
             s[i * 17 + 16] == (i + 1 < n ? ',' : '\0');
    if (!ok)
        return td_error_set(err, code, "%s: \"tensor_hashes\" in its metadata is damaged", f->path);
    return TD_OK;
}

/* A shard says how it is read, as the manifest does. */
static td_status meta_capture(const td_shard_file *f, const td_capture_spec *spec, td_status code,
                              td_error *err) {
    const char *s = NULL;
    td_status rc = meta_text(f->st, "capture", code, &s, err);
    if (rc != TD_OK)
        return rc;
    char *want = td_spec_text(spec);
    if (!want)
        return td_error_nomem(err, f->path, 0);
    if (strcmp(s, want) != 0)
        rc = td_error_set(err, code,
                          "%s: \"capture\" in its metadata is %.200s, but the manifest says %.200s",
                          f->path, s, want);
    free(want);
    return rc;
}

static td_status read_meta(td_shard_file *f, const td_capture_spec *spec, td_status code,
                           td_error *err) {
    td_layout_counts c = {.n_id_bytes = -1, .n_entries = 0};
    td_shard_meta *m = &f->meta;
    struct {
        const char *key;
        int64_t *out;
    } numbers[] = {{"shard", &m->number},          {"row_begin", &m->row_begin},
                   {"row_end", &m->row_end},       {"n_samples", &c.n_samples},
                   {"n_tokens", &c.n_tokens},      {"n_rows", &c.n_rows},
                   {"n_entries", &c.n_entries},    {"n_skipped", &m->n_skipped},
                   {"n_bad_rows", &m->n_bad_rows}, {"n_overflow_rows", &m->n_overflow_rows}};
    const char *schema = NULL;
    td_status rc = meta_text(f->st, "schema", code, &schema, err);
    if (rc != TD_OK)
        return rc;
    if (strcmp(schema, TD_SHARD_SCHEMA) != 0)
        return td_error_set(err, code, "%s: schema \"%.40s\", expected \"" TD_SHARD_SCHEMA "\"",
                            f->path, schema);
    for (size_t i = 0; i < TD_ARRAY_LEN(numbers); i++) {
        rc = meta_number(f->st, numbers[i].key, code, numbers[i].out, err);
        if (rc != TD_OK)
            return rc;
    }
    rc = meta_capture(f, spec, code, err);
    if (rc == TD_OK)
        rc = meta_hash(f->st, "fingerprint", code, &m->fingerprint, err);
    if (rc == TD_OK)
        rc = meta_hash(f->st, "source_hash", code, &m->source_hash, err);
    if (rc == TD_OK)
        rc = meta_hash(f->st, "data_hash", code, &f->hashes.data, err);
    if (rc == TD_OK)
        rc = meta_kinds(f, code, err);
    if (rc != TD_OK)
        return rc;
    const td_st_tensor *ids = td_safetensors_find(f->st, "sample_id_bytes");
    if (ids)
        c.n_id_bytes = ids->n_elems;
    if ((c.n_entries && !td_capture_is_ragged(spec->mode)) || !td_layout_init(&f->layout, spec, &c))
        return td_error_set(err, code, "%s: the counts in its metadata are impossible", f->path);
    return meta_tensor_hashes(f, code, err);
}

/* The tensors of the file are exactly the layout's: names, types, shapes, places. */
static td_status check_layout(const td_shard_file *f, td_status code, td_error *err) {
    size_t n = td_safetensors_count(f->st), data_size;
    for (int i = 0; i < TD_T_COUNT; i++) {
        const td_layout_tensor *t = &f->layout.tensor[i];
        if (!t->present)
            continue;
        const td_st_tensor *s = td_safetensors_find(f->st, t->name);
        if (!s)
            return td_error_set(err, code, "%s: the tensor %s is missing", f->path, t->name);
        bool same = strcmp(s->dtype_name, td_layout_dtype_name(t->dtype)) == 0 &&
                    s->n_dims == t->n_dims && s->shape[0] == t->shape[0] &&
                    (t->n_dims == 1 || s->shape[1] == t->shape[1]) && s->data_begin == t->begin &&
                    s->size_bytes == t->end - t->begin;
        if (!same)
            return td_error_set(err, code,
                                "%s: the tensor %s has not the type, shape or place that the "
                                "shard's counts and the manifest ask for",
                                f->path, t->name);
    }
    if (n != (size_t)f->layout.n_present)
        return td_error_set(err, code, "%s: holds %zu tensors, expected %d", f->path, n,
                            f->layout.n_present);
    td_safetensors_data(f->st, &data_size);
    if (data_size != f->layout.data_size_bytes)
        return td_error_set(err, code, "%s: its data part has %zu bytes, expected %llu", f->path,
                            data_size, (unsigned long long)f->layout.data_size_bytes);
    return TD_OK;
}

/* --- opening ---------------------------------------------------------------------------------- */

/* The next bytes of the content, from its first to its last. */
static td_status next_bytes(const td_shard_file *f, void *dst, size_t n, uint64_t at,
                            td_error *err) {
    return f->stream ? td_zstd_reader_read(f->stream, dst, n, err)
                     : td_pread_all(f->fd, dst, n, at, f->path, err);
}

/* The header as it is on disk, into f->header, and the sizes. */
static td_status read_header(td_shard_file *f, td_status code, td_error *err) {
    struct stat sb;
    unsigned char word[8];
    if (f->stream) {
        f->size_bytes = td_zstd_reader_size(f->stream);
    } else if (fstat(f->fd, &sb) != 0) {
        return td_error_errno(err, code, errno, "cannot stat %s", f->path);
    } else {
        f->size_bytes = (uint64_t)sb.st_size;
        if (!f->packed)
            f->disk_bytes = f->size_bytes;
    }
    if (f->size_bytes < sizeof word)
        return td_error_set(err, code, "%s: %llu bytes are too few for a safetensors file", f->path,
                            (unsigned long long)f->size_bytes);
    td_status rc = next_bytes(f, word, sizeof word, 0, err);
    if (rc != TD_OK)
        return rc;
    uint64_t n = 0;
    for (int i = sizeof word; i-- > 0;)
        n = n << 8 | word[i];
    if (n > HEADER_MAX_BYTES || n + 8 > f->size_bytes)
        return td_error_set(err, code, "%s: its size does not fit its header", f->path);
    f->header_size_bytes = n + 8;
    if (f->header_size_bytes % 64) /* tensors are read in place: they must be aligned */
        return td_error_set(err, code, "%s: its data part begins at byte %llu, no multiple of 64",
                            f->path, (unsigned long long)f->header_size_bytes);
    f->header = malloc((size_t)n + 9);
    if (!f->header)
        return td_error_nomem(err, f->path, (size_t)n);
    memcpy(f->header, word, sizeof word);
    return next_bytes(f, f->header + 8, (size_t)n, 8, err);
}

/* The plain content, or for TD_SHARD_STREAM what reads it. */
static td_status open_file(td_shard_file *f, td_shard_use use, td_status code, td_error *err) {
    size_t n = strlen(f->path);
    f->packed = n > 4 && strcmp(f->path + n - 4, ".zst") == 0;
    if (!td_path_exists(f->path))
        return td_error_set(err, code, "%s is not there", f->path);
    td_status rc = td_file_open(f->path, code, &f->fd, NULL, err);
    if (rc != TD_OK || !f->packed)
        return rc;
    if (use == TD_SHARD_STREAM)
        return td_zstd_reader_open(f->fd, f->path, code, &f->stream, err);
    int plain = -1;
    rc = td_zstd_unpack(f->fd, f->path, code, &plain, &f->packed_hash, &f->disk_bytes, err);
    close(f->fd);
    f->fd = plain;
    return rc;
}

static td_status open_tensors(td_shard_file *f, td_status code, td_error *err) {
    if (f->stream)
        return td_safetensors_open_header(f->header, (size_t)f->header_size_bytes, f->size_bytes,
                                          f->path, code, &f->st, err);
    int own = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0)
        return td_error_errno(err, code, errno, "%s: cannot open", f->path);
    return td_safetensors_open_fd(own, f->path, code, &f->st, err);
}

static bool header_hash_right(const td_shard_file *f) {
    uint64_t found, stated;
    const char *s = td_safetensors_meta(f->st, "header_hash");
    return s && strlen(s) == 16 && parse_hex16(s, &stated) &&
           td_layout_header_hash(f->header + 8, (size_t)f->header_size_bytes - 8, &found) &&
           found == stated;
}

static td_status open_shard(const char *path, td_shard_use use, const td_capture_spec *spec,
                            td_status code, bool *header_hash_ok, td_shard_file **out,
                            td_error *err) {
    td_shard_file *f = td_calloc(1, sizeof *f);
    bool ok = false;
    if (!f || !(f->path = td_strdup(path))) {
        free(f);
        return td_error_nomem(err, path, sizeof *f);
    }
    f->fd = -1;
    td_status rc = open_file(f, use, code, err);
    if (rc == TD_OK)
        rc = read_header(f, code, err);
    if (rc == TD_OK)
        rc = open_tensors(f, code, err);
    if (rc == TD_OK) {
        ok = header_hash_right(f);
        if (!ok && !header_hash_ok)
            rc = td_error_set(err, code, "%s: the hash of its header does not match: it is damaged",
                              path);
    }
    if (rc == TD_OK)
        rc = read_meta(f, spec, code, err);
    if (rc == TD_OK)
        rc = check_layout(f, code, err);
    if (rc != TD_OK) {
        td_shard_file_close(f);
        return rc;
    }
    if (!f->stream) {
        free(f->header);
        f->header = NULL;
    }
    if (header_hash_ok)
        *header_hash_ok = ok;
    *out = f;
    return TD_OK;
}

td_status td_shard_file_open(const char *path, const td_capture_spec *spec, td_status code,
                             bool *header_hash_ok, td_shard_file **out, td_error *err) {
    return open_shard(path, TD_SHARD_READ, spec, code, header_hash_ok, out, err);
}

void td_shard_file_close(td_shard_file *f) {
    if (!f)
        return;
    td_safetensors_close(f->st);
    td_zstd_reader_close(f->stream);
    free(f->header);
    if (f->fd >= 0)
        close(f->fd);
    for (int32_t i = 0; i < f->meta.n_kinds; i++)
        free(f->kinds[i]);
    free(f->kinds);
    free(f->path);
    free(f);
}

const void *td_shard_file_data(const td_shard_file *f, td_tensor_id id) {
    const td_layout_tensor *t = &f->layout.tensor[id];
    size_t n;
    const char *data = td_safetensors_data(f->st, &n);
    return data && t->present ? data + t->begin : NULL;
}

char *td_shard_path(const char *dir, int64_t number) {
    char name[TD_SHARD_NAME_SIZE];
    td_shard_name(number, false, name);
    char *path = td_asprintf("%s/%s", dir, name);
    if (!path || td_path_exists(path))
        return path;
    td_shard_name(number, true, name);
    char *packed = td_asprintf("%s/%s", dir, name);
    if (!packed || !td_path_exists(packed)) {
        free(packed);
        return path;
    }
    free(path);
    return packed;
}

/* --- hashing ---------------------------------------------------------------------------------- */

/* Feeds the bytes [at, at + n) of the data part to the tensors they belong to. Tensors are
 * contiguous, so each byte belongs to one. */
static void feed_tensors(XXH3_state_t *state, const td_layout *l, int *cur, td_shard_hashes *out,
                         int32_t *n_done, const char *p, uint64_t at, size_t n) {
    for (;;) {
        while (*cur < TD_T_COUNT && (!l->tensor[*cur].present || l->tensor[*cur].end <= at)) {
            if (l->tensor[*cur].present)
                out->tensor[(*n_done)++] = XXH3_64bits_digest(state);
            XXH3_64bits_reset(state);
            ++*cur;
        }
        if (n == 0 || *cur == TD_T_COUNT)
            return;
        size_t part = (size_t)TD_MIN((uint64_t)n, l->tensor[*cur].end - at);
        XXH3_64bits_update(state, p, part);
        p += part;
        at += part;
        n -= part;
    }
}

typedef td_status (*bytes_fn)(const void *from, void *dst, size_t n, uint64_t at, td_error *err);

/* Bytes are taken once and in order: of the header (for file_hash), then of the data part. */
static td_status hash_bytes(bytes_fn next, const void *from, const td_layout *l,
                            uint64_t header_size_bytes, td_shard_hashes *out, uint64_t *file_hash,
                            td_error *err) {
    enum { CHUNK = 1 << 20 };
    td_status rc = TD_OK;
    char *buf = malloc(CHUNK);
    XXH3_state_t *file = XXH3_createState(), *data = XXH3_createState(),
                 *tensor = XXH3_createState();
    if (!buf || !file || !data || !tensor) {
        rc = td_error_nomem(err, "hashing a shard", CHUNK);
        goto done;
    }
    XXH3_64bits_reset(file);
    XXH3_64bits_reset(data);
    XXH3_64bits_reset(tensor);
    for (uint64_t at = 0; file_hash && at < header_size_bytes;) {
        size_t n = (size_t)TD_MIN((uint64_t)CHUNK, header_size_bytes - at);
        rc = next(from, buf, n, at, err);
        if (rc != TD_OK)
            goto done;
        XXH3_64bits_update(file, buf, n);
        at += n;
    }
    int cur = 0;
    int32_t n_done = 0;
    feed_tensors(tensor, l, &cur, out, &n_done, buf, 0, 0);
    for (uint64_t at = 0; at < l->data_size_bytes;) {
        size_t n = (size_t)TD_MIN((uint64_t)CHUNK, l->data_size_bytes - at);
        rc = next(from, buf, n, header_size_bytes + at, err);
        if (rc != TD_OK)
            goto done;
        if (file_hash)
            XXH3_64bits_update(file, buf, n);
        XXH3_64bits_update(data, buf, n);
        feed_tensors(tensor, l, &cur, out, &n_done, buf, at, n);
        at += n;
    }
    out->data = XXH3_64bits_digest(data);
    if (file_hash)
        *file_hash = XXH3_64bits_digest(file);
done:
    XXH3_freeState(tensor);
    XXH3_freeState(data);
    XXH3_freeState(file);
    free(buf);
    return rc;
}

typedef struct open_fd {
    int fd;
    const char *path;
} open_fd;

static td_status bytes_of_fd(const void *from, void *dst, size_t n, uint64_t at, td_error *err) {
    const open_fd *o = from;
    return td_pread_all(o->fd, dst, n, at, o->path, err);
}

static td_status bytes_of_shard(const void *from, void *dst, size_t n, uint64_t at, td_error *err) {
    return next_bytes(from, dst, n, at, err);
}

td_status td_shard_hash_fd(int fd, const char *path, const td_layout *l, uint64_t header_size_bytes,
                           td_shard_hashes *out, uint64_t *file_hash, td_error *err) {
    const open_fd o = {fd, path};
    return hash_bytes(bytes_of_fd, &o, l, header_size_bytes, out, file_hash, err);
}

bool td_shard_hashes_differ(const td_layout *l, const td_shard_hashes *stated,
                            const td_shard_hashes *found, td_strbuf *which) {
    bool differ = stated->data != found->data;
    int32_t k = 0;
    for (int i = 0; i < TD_T_COUNT; i++) {
        if (!l->tensor[i].present)
            continue;
        if (stated->tensor[k] != found->tensor[k]) {
            differ = true;
            td_strbuf_printf(which, "%s%s", which->len ? ", " : "", l->tensor[i].name);
        }
        k++;
    }
    return differ;
}

td_status td_shard_file_hash(const td_shard_file *f, td_shard_hashes *out, uint64_t *file_hash,
                             td_error *err) {
    td_status rc = hash_bytes(bytes_of_shard, f, &f->layout, f->header_size_bytes, out,
                              f->packed ? NULL : file_hash, err);
    if (rc == TD_OK && f->packed)
        *file_hash = f->packed_hash;
    return rc;
}

td_status td_shard_file_prove(const char *path, td_shard_use use, const td_capture_spec *spec,
                              uint64_t fingerprint, td_status code, td_shard_file **out,
                              uint64_t *file_hash, td_error *err) {
    td_shard_file *f = NULL;
    td_shard_hashes found = {0};
    uint64_t whole;
    td_strbuf which = {0};
    td_status rc = open_shard(path, use, spec, code, NULL, &f, err);
    if (rc != TD_OK)
        return rc;
    rc = td_shard_file_hash(f, &found, &whole, err);
    if (rc == TD_OK && f->stream) {
        rc = td_zstd_reader_end(f->stream, &f->packed_hash, &f->disk_bytes, err);
        whole = f->packed_hash;
    }
    if (rc != TD_OK)
        goto done;
    if (td_shard_hashes_differ(&f->layout, &f->hashes, &found, &which))
        rc = td_error_set(err, code, "%s is damaged: the hash of %s does not match", path,
                          which.len ? which.data : "its data");
    else if (f->meta.fingerprint != fingerprint)
        rc = td_error_set(err, code, "%s belongs to another run than the folder's manifest.json",
                          path);
    if (rc == TD_OK && file_hash)
        *file_hash = whole;
done:
    td_strbuf_free(&which);
    if (rc == TD_OK)
        *out = f;
    else
        td_shard_file_close(f);
    return rc;
}
