/* tokens_safetensors.c - rows of a safetensors file: row i = elements [sample_offsets[i],
 * sample_offsets[i+1]) of input_ids, the same of loss_mask where it is there. Shards that tdgen wrote
 * and what tdgen prepare makes are such files.
 *
 * The header is checked by its reader. Of the offsets a chunk is kept.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "base/strbuf.h"
#include "data/tokens.h"
#include "tokenizer/tokenizer.h"

enum { OFFSETS_CHUNK = 8192 };

typedef struct st_tokens {
    td_tokens t;
    td_int_kind offsets_kind;
    size_t offsets_elem_bytes;
    uint64_t offsets_pos;
    const char *offsets_name;
    int64_t *offsets; /* of rows [chunk_begin, chunk_begin + chunk_n), and one more */
    int64_t chunk_begin, chunk_n;
    unsigned char *chunk_raw;
    char *tokenizer_hash; /* of the metadata, or NULL */
} st_tokens;

static st_tokens *of(td_tokens *t) {
    return (st_tokens *)t;
}

static const st_tokens *of_const(const td_tokens *t) {
    return (const st_tokens *)t;
}

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
static td_status take_layout(st_tokens *s, const td_safetensors *st, uint64_t data_pos,
                             int64_t *n_rows, td_error *err) {
    td_tokens *t = &s->t;
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
    if (off->n_dims != 1 || off->n_elems < 1 || !int_kind(off->dtype_name, &s->offsets_kind) ||
        (s->offsets_kind != TD_INT_I64 && s->offsets_kind != TD_INT_I32))
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
    s->offsets_name = strcmp(off->name, "offsets") == 0 ? "offsets" : "sample_offsets";
    *n_rows = off->n_elems - 1;
    t->n_tokens = ids->n_elems;
    t->ids_elem_bytes = ids->elem_size_bytes;
    s->offsets_elem_bytes = off->elem_size_bytes;
    t->ids_pos = data_pos + ids->data_begin;
    s->offsets_pos = data_pos + off->data_begin;
    t->mask_pos = mask ? data_pos + mask->data_begin : 0;
    return TD_OK;
}

static td_status read_header(st_tokens *s, td_error *err) {
    td_safetensors *st = NULL;
    int64_t n_rows = 0;
    td_status rc = td_safetensors_open(s->t.path, TD_E_DATA, &st, err);
    if (rc != TD_OK)
        return rc;
    s->offsets = td_calloc(OFFSETS_CHUNK + 1, sizeof *s->offsets);
    s->chunk_raw = td_calloc(OFFSETS_CHUNK + 1, sizeof(int64_t));
    const char *hash = td_safetensors_meta(st, "tokenizer_hash");
    if (hash)
        s->tokenizer_hash = td_strdup(hash);
    if (!s->offsets || !s->chunk_raw || (hash && !s->tokenizer_hash)) {
        rc = td_error_nomem(err, "a tokens dataset", OFFSETS_CHUNK * 16);
        goto done;
    }
    /* The data part is the end of the file. */
    size_t data_bytes;
    td_safetensors_data(st, &data_bytes);
    if (data_bytes > s->t.rows.size_bytes)
        rc = td_error_set(err, TD_E_DATA, "%s changed while it was opened", s->t.path);
    else
        rc = take_layout(s, st, s->t.rows.size_bytes - data_bytes, &n_rows, err);
    if (rc == TD_OK)
        td_tokens_ready(&s->t, n_rows, "rows of a safetensors file");
done:
    td_safetensors_close(st);
    return rc;
}

/* Refuses a file that says it was made with another tokenizer.json than the model's. Nothing to
 * check when either is absent. */
static td_status check_tokenizer(const td_tokens *t, td_rows_look *look, td_error *err) {
    const char *said = of_const(t)->tokenizer_hash, *model_dir = t->rows.cfg->model.path;
    if (!said || !model_dir || strcmp(said, look->tokenizer_hash) == 0)
        return TD_OK;
    char *path = td_asprintf("%s/tokenizer.json", model_dir), *text = NULL;
    char have[17], of_bytes[17];
    uint64_t hash;
    size_t n;
    if (!path)
        return td_error_nomem(err, "a path", strlen(model_dir));
    td_status rc = TD_OK;
    if (!td_path_exists(path))
        goto done;
    rc = td_file_read(path, (size_t)1 << 30, TD_E_MODEL, &text, &n, err);
    if (rc != TD_OK)
        goto done;
    rc = td_tokenizer_text_hash(text, n, &hash, err);
    if (rc != TD_OK)
        goto done;
    td_hash_hex(hash, have);
    td_hash_hex(td_hash64(text, n), of_bytes); /* what older versions of tools/prepare wrote */
    if (strcmp(have, said) != 0 && strcmp(of_bytes, said) != 0)
        rc = td_error_set(err, TD_E_DATA,
                          "data.path: %s was made with another tokenizer than the model's: the "
                          "token file says tokenizer_hash %.40s, %s has %s; make it again with "
                          "tdgen prepare --model %s, or set model.path to the teacher that it was "
                          "made for",
                          t->path, said, path, have, model_dir);
    else
        snprintf(look->tokenizer_hash, sizeof look->tokenizer_hash, "%s", said);
done:
    free(text);
    free(path);
    return rc;
}

/* Makes offsets[row - chunk_begin] and the one behind it valid. */
static td_status load_offsets(st_tokens *s, int64_t row, td_error *err) {
    if (s->chunk_n > 0 && row >= s->chunk_begin && row < s->chunk_begin + s->chunk_n)
        return TD_OK;
    int64_t n = TD_MIN(s->t.rows.n_rows - row, (int64_t)OFFSETS_CHUNK);
    s->chunk_n = 0;
    td_status rc = td_tokens_read_at(&s->t, s->chunk_raw, (size_t)(n + 1) * s->offsets_elem_bytes,
                                     s->offsets_pos + (uint64_t)row * s->offsets_elem_bytes, err);
    if (rc != TD_OK)
        return rc;
    for (int64_t i = 0; i <= n; i++)
        s->offsets[i] = td_int_at(s->chunk_raw, s->offsets_kind, (size_t)i);
    s->chunk_begin = row;
    s->chunk_n = n;
    return TD_OK;
}

/* Elements [*a, *b) of the ids. */
static td_status safetensors_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b, bool *end,
                                   td_error *err) {
    st_tokens *s = of(t);
    *end = false;
    td_status rc = load_offsets(s, row, err);
    if (rc != TD_OK)
        return rc;
    *a = s->offsets[row - s->chunk_begin];
    *b = s->offsets[row - s->chunk_begin + 1];
    if (*a < 0 || *b < *a || *b > t->n_tokens)
        return td_error_set(err, TD_E_DATA,
                            "%s: row %lld: %s goes from %lld to %lld, expected ascending numbers "
                            "from 0 to %lld (the length of input_ids)",
                            t->path, (long long)row, s->offsets_name, (long long)*a, (long long)*b,
                            (long long)t->n_tokens);
    return TD_OK;
}

static void free_own(td_tokens *t) {
    st_tokens *s = of(t);
    free(s->tokenizer_hash);
    free(s->offsets);
    free(s->chunk_raw);
}

static td_status open_tokens(const td_config *cfg, int32_t n_vocab, td_rows **out, td_error *err) {
    static const td_token_kind kind = {
        .range = safetensors_range, .check = check_tokenizer, .free_own = free_own};
    (void)n_vocab;
    st_tokens *s = td_calloc(1, sizeof *s);
    if (!s)
        return td_error_nomem(err, "a tokens dataset", sizeof *s);
    td_status rc = td_tokens_begin(&s->t, &kind, cfg, err);
    if (rc == TD_OK)
        rc = read_header(s, err);
    if (rc != TD_OK) {
        td_tokens_close(&s->t);
        return rc;
    }
    *out = &s->t.rows;
    return TD_OK;
}

/* u64 length of the header, which is JSON. */
static td_sniff sniff(const td_file_head *h) {
    uint64_t header = 0;
    for (size_t i = 0; i < 8 && i < h->n; i++)
        header |= (uint64_t)h->bytes[i] << (8 * i);
    bool is = h->n > 8 && h->bytes[8] == '{' && header >= 2 && h->packing == TD_PACK_NONE &&
              header <= h->size_bytes - 8;
    return is ? TD_SNIFF_SURE : TD_SNIFF_NO;
}

/* Keys of raw files. */
static td_status check_keys(const td_config *cfg, td_error *err) {
    bool dtype = cfg->data.token_dtype != TD_TOKEN_AUTO;
    if (!dtype && cfg->data.document_eos < 0)
        return TD_OK;
    return td_error_set(err, TD_E_CONFIG,
                        "data.%s is for raw token files (.bin), but %s is read as safetensors, "
                        "which says these things itself; take the key out%s",
                        dtype ? "token_dtype" : "document_eos", cfg->data.path,
                        dtype ? "" : " (or set data.token_dtype for a raw file)");
}

const td_row_format td_format_tokens = {
    .format = TD_FORMAT_TOKENS,
    .suffixes = (const char *const[]){".safetensors", NULL},
    .sniff = sniff,
    .check_keys = check_keys,
    .open = open_tokens,
};
