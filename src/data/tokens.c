#include "data/tokens.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "data/format.h"
#include "data/lines.h"
#include "base/safetensors.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "data/tokens_layout.h"

enum { OFFSETS_CHUNK = TD_TOKENS_CHUNK };

static bool int_kind(const char *name, td_int_kind *out) {
    static const char *const names[] = {"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"};
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (td_int_kind)i;
            return true;
        }
    return false;
}

static td_status missing_tensor(const td_safetensors *st, const char *what, td_error *err) {
    td_strbuf b = {0};
    size_t n = td_safetensors_count(st);
    for (size_t i = 0; i < n && i < 12; i++)
        td_strbuf_printf(&b, "%s%.60s", i ? ", " : "", td_safetensors_at(st, i)->name);
    if (n > 12)
        td_strbuf_printf(&b, ", and %zu more", n - 12);
    td_status rc =
        td_error_set(err, TD_E_DATA, "%s: a tokens dataset needs the tensor %s; the file has: %s",
                     td_safetensors_path(st), what, b.len && !b.oom ? b.data : "none");
    td_strbuf_free(&b);
    return rc;
}

/* Finds the tensors and takes down where they lie. `data_pos`: of the data part in the file. */
static td_status take_layout(td_tokens *t, const td_safetensors *st, uint64_t data_pos,
                             td_error *err) {
    const td_st_tensor *ids = td_safetensors_find(st, "input_ids");
    const td_st_tensor *off = td_safetensors_find(st, "sample_offsets");
    const td_st_tensor *mask = td_safetensors_find(st, "loss_mask");
    if (!off)
        off = td_safetensors_find(st, "offsets");
    if (!ids)
        return missing_tensor(st, "input_ids", err);
    if (!off)
        return missing_tensor(st, "sample_offsets (or offsets)", err);
    if (ids->n_dims != 1 || !int_kind(ids->dtype_name, &t->ids_kind))
        return td_error_set(err, TD_E_DATA,
                            "%s: input_ids is %s with %d dimensions, expected one dimension of "
                            "integers with the rows end to end (and sample_offsets)",
                            t->path, ids->dtype_name, (int)ids->n_dims);
    if (off->n_dims != 1 || off->n_elems < 1 || !int_kind(off->dtype_name, &t->offsets_kind) ||
        (t->offsets_kind != TD_INT_I64 && t->offsets_kind != TD_INT_I32))
        return td_error_set(
            err, TD_E_DATA,
            "%s: %s is %s with %d dimensions and %lld elements, expected I64 or I32 "
            "[rows + 1]",
            t->path, off->name, off->dtype_name, (int)off->n_dims, (long long)off->n_elems);
    if (mask && (mask->n_dims != 1 || mask->n_elems != ids->n_elems ||
                 (strcmp(mask->dtype_name, "U8") != 0 && strcmp(mask->dtype_name, "BOOL") != 0)))
        return td_error_set(err, TD_E_DATA,
                            "%s: loss_mask is %s with %lld elements, expected U8 or BOOL [%lld] as "
                            "input_ids",
                            t->path, mask->dtype_name, (long long)mask->n_elems,
                            (long long)ids->n_elems);
    if (off->n_elems == 1)
        return td_error_set(err, TD_E_DATA, "%s: %s has one element: there are no rows", t->path,
                            off->name);
    t->offsets_name = strcmp(off->name, "offsets") == 0 ? "offsets" : "sample_offsets";
    t->n_rows = off->n_elems - 1;
    t->n_tokens = ids->n_elems;
    t->ids_elem_bytes = ids->elem_size_bytes;
    t->offsets_elem_bytes = off->elem_size_bytes;
    t->ids_pos = data_pos + ids->data_begin;
    t->offsets_pos = data_pos + off->data_begin;
    t->mask_pos = mask ? data_pos + mask->data_begin : 0;
    return TD_OK;
}

static td_status open_safetensors(td_tokens *t, td_error *err) {
    td_safetensors *st = NULL;
    td_status rc = td_safetensors_open(t->path, TD_E_DATA, &st, err);
    if (rc != TD_OK)
        return rc;
    t->offsets = td_calloc(OFFSETS_CHUNK + 1, sizeof *t->offsets);
    t->chunk_raw = td_calloc(OFFSETS_CHUNK + 1, sizeof(int64_t));
    const char *hash = td_safetensors_meta(st, "tokenizer_hash");
    if (hash)
        t->tokenizer_hash = td_strdup(hash);
    if (!t->offsets || !t->chunk_raw || (hash && !t->tokenizer_hash)) {
        rc = td_error_nomem(err, "a tokens dataset", OFFSETS_CHUNK * 16);
        goto done;
    }
    /* The data part is the end of the file. */
    size_t data_bytes;
    td_safetensors_data(st, &data_bytes);
    if (data_bytes > t->size_bytes)
        rc = td_error_set(err, TD_E_DATA, "%s changed while it was opened", t->path);
    else
        rc = take_layout(t, st, t->size_bytes - data_bytes, err);
done:
    td_safetensors_close(st);
    return rc;
}

td_status td_tokens_open(const td_config *cfg, int32_t n_vocab, td_tokens **out, td_error *err) {
    const char *path = cfg->data.path;
    td_tokens *t = td_calloc(1, sizeof *t);
    if (!t)
        return td_error_nomem(err, "a tokens dataset", sizeof *t);
    td_status rc;
    t->fd = t->idx_fd = -1;
    t->path = td_strdup(path);
    if (!t->path) {
        rc = td_error_nomem(err, "a tokens dataset", strlen(path));
        goto fail;
    }
    struct stat s;
    t->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (t->fd < 0 || fstat(t->fd, &s) != 0) {
        rc = td_error_errno(err, TD_E_DATA, errno, "cannot open the dataset %s", path);
        goto fail;
    }
    t->size_bytes = (uint64_t)s.st_size;
    rc =
        td_format_is_raw(cfg) ? td_tokens_open_raw(t, cfg, n_vocab, err) : open_safetensors(t, err);
    if (rc != TD_OK)
        goto fail;
    *out = t;
    return TD_OK;
fail:
    td_tokens_close(t);
    return rc;
}

td_status td_tokens_check_tokenizer(const td_tokens *t, const char *model_dir, td_error *err) {
    if (!t->tokenizer_hash || !model_dir)
        return TD_OK;
    char *path = td_asprintf("%s/tokenizer.json", model_dir), *text = NULL, have[17];
    size_t n;
    if (!path)
        return td_error_nomem(err, "a path", strlen(model_dir));
    td_status rc = TD_OK;
    if (!td_path_exists(path))
        goto done;
    rc = td_file_read(path, (size_t)1 << 30, TD_E_MODEL, &text, &n, err);
    if (rc != TD_OK)
        goto done;
    td_hash_hex(td_hash64(text, n), have);
    if (strcmp(have, t->tokenizer_hash) != 0)
        rc = td_error_set(err, TD_E_DATA,
                          "data.path: %s was made with another tokenizer than the model's: the "
                          "token file says tokenizer_hash %.40s, %s has %s; make it again with "
                          "tools/prepare --model %s, or set model.path to the teacher that it was "
                          "made for",
                          t->path, t->tokenizer_hash, path, have, model_dir);
done:
    free(text);
    free(path);
    return rc;
}

void td_tokens_close(td_tokens *t) {
    if (!t)
        return;
    if (t->fd >= 0)
        close(t->fd);
    if (t->idx_fd >= 0)
        close(t->idx_fd);
    free(t->idx_path);
    free(t->tokenizer_hash);
    free(t->marks);
    free(t->window);
    free(t->path);
    free(t->offsets);
    free(t->chunk_raw);
    free(t->buf);
    free(t);
}

int64_t td_tokens_n_rows(const td_tokens *t) {
    return t->n_rows;
}

int td_tokens_fd(const td_tokens *t) {
    return t->fd;
}

uint64_t td_tokens_size_bytes(const td_tokens *t) {
    return t->size_bytes;
}

uint64_t td_tokens_payload_bytes(const td_tokens *t) {
    return (uint64_t)t->n_tokens * (t->ids_elem_bytes + (t->mask_pos ? 1 : 0));
}

static td_status read_at(td_tokens *t, void *data, size_t n_bytes, uint64_t pos, td_error *err) {
    return td_dataset_pread(t->fd, data, n_bytes, pos, t->path, err);
}

/* Makes offsets[row - chunk_begin] and the one behind it valid. */
static td_status load_offsets(td_tokens *t, int64_t row, td_error *err) {
    if (t->chunk_n > 0 && row >= t->chunk_begin && row < t->chunk_begin + t->chunk_n)
        return TD_OK;
    int64_t n = TD_MIN(t->n_rows - row, (int64_t)OFFSETS_CHUNK);
    t->chunk_n = 0;
    td_status rc = read_at(t, t->chunk_raw, (size_t)(n + 1) * t->offsets_elem_bytes,
                           t->offsets_pos + (uint64_t)row * t->offsets_elem_bytes, err);
    if (rc != TD_OK)
        return rc;
    for (int64_t i = 0; i <= n; i++)
        t->offsets[i] = td_int_at(t->chunk_raw, t->offsets_kind, (size_t)i);
    t->chunk_begin = row;
    t->chunk_n = n;
    return TD_OK;
}

/* Elements [*a, *b) of the ids. */
static td_status safetensors_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b,
                                   td_error *err) {
    td_status rc = load_offsets(t, row, err);
    if (rc != TD_OK)
        return rc;
    *a = t->offsets[row - t->chunk_begin];
    *b = t->offsets[row - t->chunk_begin + 1];
    if (*a < 0 || *b < *a || *b > t->n_tokens)
        return td_error_set(err, TD_E_DATA,
                            "%s: row %lld: %s goes from %lld to %lld, expected ascending numbers "
                            "from 0 to %lld (the length of input_ids)",
                            t->path, (long long)row, t->offsets_name, (long long)*a, (long long)*b,
                            (long long)t->n_tokens);
    return TD_OK;
}

td_status td_tokens_row_read(td_tokens *t, int64_t row, td_tokens_row *out, bool *end,
                             td_error *err) {
    int64_t a = 0, b = 0;
    *end = t->n_rows >= 0 && row >= t->n_rows;
    if (*end)
        return TD_OK;
    td_status rc = t->layout == TD_LAYOUT_SAFETENSORS
                       ? safetensors_range(t, row, &a, &b, err)
                       : td_tokens_raw_range(t, row, &a, &b, end, err);
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
        rc = read_at(t, t->buf, ids_bytes, t->ids_pos + (uint64_t)a * t->ids_elem_bytes, err);
    if (rc == TD_OK && n && t->mask_pos)
        rc = read_at(t, t->buf + ids_bytes, n, t->mask_pos + (uint64_t)a, err);
    if (rc != TD_OK)
        return rc;
    *out = (td_tokens_row){.ids = t->buf,
                           .kind = t->ids_kind,
                           .n = n,
                           .ids_bytes = ids_bytes,
                           .mask = t->mask_pos ? t->buf + ids_bytes : NULL};
    return TD_OK;
}
