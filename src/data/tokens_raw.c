/* Raw token files: a stream of integers, with or without Megatron's index. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/lines.h"
#include "base/memory.h"
#include "data/tokens_layout.h"

enum { WINDOW_TOKENS = 64 << 10, IDX_HEADER_BYTES = 34, LOOK_TOKENS = 4096 };

static const char IDX_MAGIC[9] = "MMIDIDX\0";

/* ---- Megatron's index ---- */

static td_status read_idx(td_tokens *t, void *data, size_t n_bytes, uint64_t pos, td_error *err) {
    return td_dataset_pread(t->idx_fd, data, n_bytes, pos, t->idx_path, err);
}

static td_status idx_dtype(td_tokens *t, int code, td_token_dtype asked, td_error *err) {
    static const struct {
        int code;
        td_int_kind kind;
        size_t bytes;
    } kinds[] = {{1, TD_INT_U8, 1},  {2, TD_INT_I8, 1},  {3, TD_INT_I16, 2},
                 {4, TD_INT_I32, 4}, {5, TD_INT_I64, 8}, {8, TD_INT_U16, 2}};
    for (size_t i = 0; i < TD_ARRAY_LEN(kinds); i++)
        if (kinds[i].code == code) {
            t->ids_kind = kinds[i].kind;
            t->ids_elem_bytes = kinds[i].bytes;
            if (asked != TD_TOKEN_AUTO && (asked == TD_TOKEN_U16 ? 2 : 4) != kinds[i].bytes)
                return td_error_set(err, TD_E_CONFIG,
                                    "data.token_dtype = %s contradicts %s, whose integers have %zu "
                                    "bytes; take the key out",
                                    td_token_dtype_name(asked), t->idx_path, kinds[i].bytes);
            return TD_OK;
        }
    return td_error_set(err, TD_E_DATA,
                        "%s: dtype code %d is none of integers (1 u8, 2 i8, 3 i16, 4 i32, 5 i64, "
                        "8 u16)",
                        t->idx_path, code);
}

/* The header, and whether the tables it announces are the file. */
static td_status open_index(td_tokens *t, const td_config *cfg, td_error *err) {
    unsigned char h[IDX_HEADER_BYTES];
    struct stat st;
    if (fstat(t->idx_fd, &st) != 0)
        return td_error_errno(err, TD_E_DATA, errno, "cannot look at %s", t->idx_path);
    uint64_t size = (uint64_t)st.st_size, version, n_seq, n_doc;
    if (size < sizeof h)
        return td_error_set(err, TD_E_DATA,
                            "%s has %llu bytes, a Megatron index has at least %d; if it is none, "
                            "move it away from %s",
                            t->idx_path, (unsigned long long)size, IDX_HEADER_BYTES, t->path);
    td_status rc = read_idx(t, h, sizeof h, 0, err);
    if (rc != TD_OK)
        return rc;
    memcpy(&version, h + 9, 8);
    memcpy(&n_seq, h + 18, 8);
    memcpy(&n_doc, h + 26, 8);
    if (memcmp(h, IDX_MAGIC, sizeof IDX_MAGIC) != 0 || version != 1)
        return td_error_set(err, TD_E_DATA,
                            "%s is no Megatron index that is known here (MMIDIDX version 1); if it "
                            "is none, move it away from %s",
                            t->idx_path, t->path);
    rc = idx_dtype(t, h[17], cfg->data.token_dtype, err);
    if (rc != TD_OK)
        return rc;
    /* 12 bytes a sequence, 8 a document: counts above the file's size need no sums. */
    uint64_t tables = size - sizeof h;
    if (n_seq > tables / 12 || n_doc > tables / 8 || n_doc < 1 ||
        (12 * n_seq + 8 * n_doc != tables && 13 * n_seq + 8 * n_doc != tables))
        return td_error_set(err, TD_E_DATA,
                            "%s: %llu sequences and %llu document borders do not make a file of "
                            "%llu bytes; it is damaged or incomplete",
                            t->idx_path, (unsigned long long)n_seq, (unsigned long long)n_doc,
                            (unsigned long long)size);
    if (n_doc == 1)
        return td_error_set(err, TD_E_DATA, "%s has no documents: there are no rows", t->idx_path);
    t->layout = TD_LAYOUT_MEGATRON;
    t->n_sequences = (int64_t)n_seq;
    t->n_rows = (int64_t)n_doc - 1;
    t->sizes_pos = sizeof h;
    t->pointers_pos = t->sizes_pos + 4 * n_seq;
    t->documents_pos = t->pointers_pos + 8 * n_seq;
    return TD_OK;
}

static td_status megatron_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b, td_error *err) {
    int64_t doc[2], pointer;
    td_status rc = read_idx(t, doc, sizeof doc, t->documents_pos + 8 * (uint64_t)row, err);
    if (rc != TD_OK)
        return rc;
    if (doc[0] < 0 || doc[1] < doc[0] || doc[1] > t->n_sequences)
        return td_error_set(err, TD_E_DATA,
                            "%s: document %lld goes from sequence %lld to %lld, expected ascending "
                            "numbers from 0 to %lld",
                            t->idx_path, (long long)row, (long long)doc[0], (long long)doc[1],
                            (long long)t->n_sequences);
    *a = *b = 0;
    int64_t elem = (int64_t)t->ids_elem_bytes;
    for (int64_t s = doc[0]; s < doc[1]; s++) {
        int32_t size;
        rc = read_idx(t, &size, sizeof size, t->sizes_pos + 4 * (uint64_t)s, err);
        if (rc == TD_OK)
            rc = read_idx(t, &pointer, sizeof pointer, t->pointers_pos + 8 * (uint64_t)s, err);
        if (rc != TD_OK)
            return rc;
        if (size < 0 || pointer < 0 || pointer % elem || pointer / elem > t->n_tokens - size)
            return td_error_set(err, TD_E_DATA,
                                "%s: sequence %lld has %d tokens from byte %lld on, expected "
                                "whole tokens within the %llu bytes of %s",
                                t->idx_path, (long long)s, (int)size, (long long)pointer,
                                (unsigned long long)t->size_bytes, t->path);
        if (s == doc[0])
            *a = *b = pointer / elem;
        if (pointer / elem != *b)
            return td_error_set(err, TD_E_DATA,
                                "%s: sequence %lld of document %lld begins at byte %lld, but the "
                                "one before ends at %lld; documents in pieces are not read",
                                t->idx_path, (long long)s, (long long)row, (long long)pointer,
                                (long long)(*b * elem));
        *b += size;
    }
    return TD_OK;
}

/* ---- documents that end at an id ---- */

/* Makes the window begin at element `at`, which there is. */
static td_status load_window(td_tokens *t, int64_t at, td_error *err) {
    int64_t n = TD_MIN(t->n_tokens - at, (int64_t)WINDOW_TOKENS);
    t->window_n = 0;
    td_status rc = td_dataset_pread(t->fd, t->window, (size_t)n * t->ids_elem_bytes,
                                    (uint64_t)at * t->ids_elem_bytes, t->path, err);
    if (rc == TD_OK) {
        t->window_begin = at;
        t->window_n = n;
    }
    return rc;
}

/* The element behind the row that begins at `at`. */
static td_status find_end(td_tokens *t, int64_t at, int64_t *end, td_error *err) {
    while (at < t->n_tokens) {
        if (at < t->window_begin || at >= t->window_begin + t->window_n) {
            td_status rc = load_window(t, at, err);
            if (rc != TD_OK)
                return rc;
        }
        for (int64_t stop = t->window_begin + t->window_n; at < stop; at++)
            if (td_int_at(t->window, t->ids_kind, (size_t)(at - t->window_begin)) ==
                t->document_eos) {
                *end = at + 1;
                return TD_OK;
            }
    }
    *end = at;
    return TD_OK;
}

static td_status document_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b, bool *end,
                                td_error *err) {
    if (row < t->next_row) {
        t->next_row = row / TD_TOKENS_MARK_ROWS * TD_TOKENS_MARK_ROWS;
        t->next_begin = t->marks[row / TD_TOKENS_MARK_ROWS];
    }
    for (;;) {
        if (t->next_begin >= t->n_tokens) {
            *end = true;
            return TD_OK;
        }
        if (t->next_row % TD_TOKENS_MARK_ROWS == 0 &&
            t->next_row / TD_TOKENS_MARK_ROWS == (int64_t)t->n_marks) {
            if (!td_grow((void **)&t->marks, &t->marks_cap, t->n_marks + 1, sizeof *t->marks))
                return td_error_nomem(err, "the places of rows", t->n_marks * sizeof *t->marks);
            t->marks[t->n_marks++] = t->next_begin;
        }
        int64_t begin = t->next_begin, stop;
        td_status rc = find_end(t, begin, &stop, err);
        if (rc != TD_OK)
            return rc;
        t->next_begin = stop;
        if (t->next_row++ == row) {
            *a = begin;
            *b = stop;
            return TD_OK;
        }
    }
}

/* ---- opening ---- */

/* A u32 file that is read as u16 has a zero in every other place. */
static td_status check_u16_guess(td_tokens *t, td_error *err) {
    uint16_t look[LOOK_TOKENS];
    size_t n = (size_t)TD_MIN(t->n_tokens, (int64_t)LOOK_TOKENS);
    td_status rc = td_dataset_pread(t->fd, look, n * 2, 0, t->path, err);
    if (rc != TD_OK || n < 16)
        return rc;
    bool even = false, odd = false;
    for (size_t i = 0; i < n; i++)
        if (i % 2)
            odd |= look[i] != 0;
        else
            even |= look[i] != 0;
    if (odd || !even)
        return TD_OK;
    return td_error_set(err, TD_E_DATA,
                        "%s looks like 32-bit ids (every other 16-bit number is 0); set "
                        "data.token_dtype = u32, or u16 if it is not so",
                        t->path);
}

td_status td_tokens_open_raw(td_tokens *t, const td_config *cfg, int32_t n_vocab, td_error *err) {
    size_t n = strlen(t->path), stem = n > 4 && t->path[n - 4] == '.' ? n - 4 : n;
    t->idx_path = td_asprintf("%.*s.idx", (int)stem, t->path);
    if (!t->idx_path)
        return td_error_nomem(err, "a path", n);
    t->idx_fd = open(t->idx_path, O_RDONLY | O_CLOEXEC);
    if (t->idx_fd < 0 && errno != ENOENT)
        return td_error_errno(err, TD_E_DATA, errno, "cannot open %s", t->idx_path);
    td_token_dtype dtype = cfg->data.token_dtype;
    td_status rc = TD_OK;
    if (t->idx_fd >= 0) {
        if (cfg->data.document_eos >= 0)
            return td_error_set(err, TD_E_CONFIG,
                                "data.document_eos is for raw files without index, but %s says "
                                "where the documents of %s end; take the key out",
                                t->idx_path, t->path);
        rc = open_index(t, cfg, err);
        if (rc != TD_OK)
            return rc;
    } else {
        bool wide = dtype == TD_TOKEN_U32 || (dtype == TD_TOKEN_AUTO && n_vocab > 65536);
        t->ids_kind = wide ? TD_INT_U32 : TD_INT_U16;
        t->ids_elem_bytes = wide ? 4 : 2;
    }
    if (t->size_bytes % t->ids_elem_bytes)
        return td_error_set(err, TD_E_DATA,
                            "%s has %llu bytes, no whole number of ids of %zu bytes each; it is "
                            "incomplete, or data.token_dtype is another",
                            t->path, (unsigned long long)t->size_bytes, t->ids_elem_bytes);
    t->n_tokens = (int64_t)(t->size_bytes / t->ids_elem_bytes);
    if (t->idx_fd >= 0)
        return TD_OK;
    if (dtype == TD_TOKEN_AUTO && t->ids_kind == TD_INT_U16) {
        rc = check_u16_guess(t, err);
        if (rc != TD_OK)
            return rc;
    }
    if (cfg->data.document_eos >= 0) {
        t->layout = TD_LAYOUT_DOCUMENTS;
        t->document_eos = cfg->data.document_eos;
        t->n_rows = -1;
        t->window = td_calloc(WINDOW_TOKENS, t->ids_elem_bytes);
        return t->window ? TD_OK : td_error_nomem(err, "a tokens dataset", WINDOW_TOKENS);
    }
    if (cfg->data.append_eos)
        return td_error_set(err, TD_E_CONFIG,
                            "data.append_eos = true, but the rows of %s are cut every "
                            "data.max_length tokens, not where a text ends; set data.append_eos = "
                            "false, or data.document_eos to the id that ends a text",
                            t->path);
    t->layout = TD_LAYOUT_BLOCKS;
    t->block_tokens = cfg->data.max_length;
    t->n_rows = (t->n_tokens + t->block_tokens - 1) / t->block_tokens;
    return TD_OK;
}

td_status td_tokens_raw_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b, bool *end,
                              td_error *err) {
    *end = false;
    switch (t->layout) {
    case TD_LAYOUT_BLOCKS:
        *a = row * t->block_tokens;
        *b = TD_MIN(*a + t->block_tokens, t->n_tokens);
        return TD_OK;
    case TD_LAYOUT_DOCUMENTS:
        return document_range(t, row, a, b, end, err);
    case TD_LAYOUT_MEGATRON:
        return megatron_range(t, row, a, b, err);
    case TD_LAYOUT_SAFETENSORS:
        break;
    }
    return td_error_set(err, TD_E_INTERNAL, "%s: no raw token file", t->path);
}
