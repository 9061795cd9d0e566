/* tokens_raw.c - rows of a file of integers without header, with or without Megatron's index.
 *
 *   blocks     a .bin as nanoGPT writes it, and no id that ends rows: row i = elements
 *              [i*L, (i+1)*L), L = data.max_length, the last one shorter
 *   documents  the same file with data.document_eos: a row ends behind each such id, and at the end
 *              of the file
 *   megatron   NAME.bin with NAME.idx, Megatron's indexed dataset: row i = document i
 *
 * NAME.idx, all little-endian:
 *   "MMIDIDX" 0 0 | u64 version = 1 | u8 dtype | u64 S | u64 D+1
 *   i32 sizes[S]        elements of each sequence
 *   i64 pointers[S]     its byte in NAME.bin
 *   i64 documents[D+1]  document i = sequences [documents[i], documents[i+1])
 *   i8 modes[S]         in multimodal sets, not looked at
 * dtype: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16. The sequences of a document must lie end to end, as
 * Megatron writes them.
 *
 * Nothing is kept per row but, for documents, the place of every MARK_ROWS-th: 8 bytes.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/memory.h"
#include "data/lines.h"
#include "data/tokens.h"

enum {
    WINDOW_TOKENS = 64 << 10,
    MARK_ROWS = 1024, /* of so many documents the first one's place is kept */
    IDX_HEADER_BYTES = 34,
    LOOK_TOKENS = 4096
};

typedef struct raw_tokens {
    td_tokens t;
    /* blocks */
    int64_t block_tokens;
    /* documents */
    int64_t document_eos;
    int64_t *marks; /* [n_marks] first element of rows 0, MARK_ROWS, 2*MARK_ROWS ... */
    size_t n_marks, marks_cap;
    int64_t next_row, next_begin; /* the row behind the one last found */
    unsigned char *window;        /* elements [window_begin, window_begin + window_n) */
    int64_t window_begin, window_n;
    /* megatron */
    char *idx_path;
    int idx_fd;
    int64_t n_documents, n_sequences;
    uint64_t sizes_pos, pointers_pos, documents_pos;
} raw_tokens;

static raw_tokens *of(td_tokens *t) {
    return (raw_tokens *)t;
}

static const char IDX_MAGIC[9] = "MMIDIDX\0";

/* ---- Megatron's index ---- */

static td_status read_idx(raw_tokens *w, void *data, size_t n_bytes, uint64_t pos, td_error *err) {
    return td_dataset_pread(w->idx_fd, data, n_bytes, pos, w->idx_path, err);
}

static td_status idx_dtype(raw_tokens *w, int code, td_token_dtype asked, td_error *err) {
    static const struct {
        int code;
        td_int_kind kind;
        size_t bytes;
    } kinds[] = {{1, TD_INT_U8, 1},  {2, TD_INT_I8, 1},  {3, TD_INT_I16, 2},
                 {4, TD_INT_I32, 4}, {5, TD_INT_I64, 8}, {8, TD_INT_U16, 2}};
    for (size_t i = 0; i < TD_ARRAY_LEN(kinds); i++)
        if (kinds[i].code == code) {
            w->t.ids_kind = kinds[i].kind;
            w->t.ids_elem_bytes = kinds[i].bytes;
            if (asked != TD_TOKEN_AUTO && (asked == TD_TOKEN_U16 ? 2 : 4) != kinds[i].bytes)
                return td_error_set(err, TD_E_CONFIG,
                                    "data.token_dtype = %s contradicts %s, whose integers have %zu "
                                    "bytes; take the key out",
                                    td_token_dtype_name(asked), w->idx_path, kinds[i].bytes);
            return TD_OK;
        }
    return td_error_set(err, TD_E_DATA,
                        "%s: dtype code %d is none of integers (1 u8, 2 i8, 3 i16, 4 i32, 5 i64, "
                        "8 u16)",
                        w->idx_path, code);
}

/* The header, and whether the tables it announces are the file. */
static td_status open_index(raw_tokens *w, uint64_t size, const td_config *cfg, td_error *err) {
    unsigned char h[IDX_HEADER_BYTES];
    uint64_t version, n_seq, n_doc;
    if (size < sizeof h)
        return td_error_set(err, TD_E_DATA,
                            "%s has %llu bytes, a Megatron index has at least %d; if it is none, "
                            "move it away from %s",
                            w->idx_path, (unsigned long long)size, IDX_HEADER_BYTES, w->t.path);
    td_status rc = read_idx(w, h, sizeof h, 0, err);
    if (rc != TD_OK)
        return rc;
    memcpy(&version, h + 9, 8);
    memcpy(&n_seq, h + 18, 8);
    memcpy(&n_doc, h + 26, 8);
    if (memcmp(h, IDX_MAGIC, sizeof IDX_MAGIC) != 0 || version != 1)
        return td_error_set(err, TD_E_DATA,
                            "%s is no Megatron index that is known here (MMIDIDX version 1); if it "
                            "is none, move it away from %s",
                            w->idx_path, w->t.path);
    rc = idx_dtype(w, h[17], cfg->data.token_dtype, err);
    if (rc != TD_OK)
        return rc;
    /* 12 bytes a sequence, 8 a document: counts above the file's size need no sums. */
    uint64_t tables = size - sizeof h;
    if (n_seq > tables / 12 || n_doc > tables / 8 || n_doc < 1 ||
        (12 * n_seq + 8 * n_doc != tables && 13 * n_seq + 8 * n_doc != tables))
        return td_error_set(err, TD_E_DATA,
                            "%s: %llu sequences and %llu document borders do not make a file of "
                            "%llu bytes; it is damaged or incomplete",
                            w->idx_path, (unsigned long long)n_seq, (unsigned long long)n_doc,
                            (unsigned long long)size);
    w->n_sequences = (int64_t)n_seq;
    w->n_documents = (int64_t)n_doc - 1;
    w->sizes_pos = sizeof h;
    w->pointers_pos = w->sizes_pos + 4 * n_seq;
    w->documents_pos = w->pointers_pos + 8 * n_seq;
    return TD_OK;
}

static td_status megatron_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b, bool *end,
                                td_error *err) {
    raw_tokens *w = of(t);
    *end = false;
    int64_t doc[2], pointer;
    td_status rc = read_idx(w, doc, sizeof doc, w->documents_pos + 8 * (uint64_t)row, err);
    if (rc != TD_OK)
        return rc;
    if (doc[0] < 0 || doc[1] < doc[0] || doc[1] > w->n_sequences)
        return td_error_set(err, TD_E_DATA,
                            "%s: document %lld goes from sequence %lld to %lld, expected ascending "
                            "numbers from 0 to %lld",
                            w->idx_path, (long long)row, (long long)doc[0], (long long)doc[1],
                            (long long)w->n_sequences);
    *a = *b = 0;
    int64_t elem = (int64_t)w->t.ids_elem_bytes;
    for (int64_t s = doc[0]; s < doc[1]; s++) {
        int32_t size;
        rc = read_idx(w, &size, sizeof size, w->sizes_pos + 4 * (uint64_t)s, err);
        if (rc == TD_OK)
            rc = read_idx(w, &pointer, sizeof pointer, w->pointers_pos + 8 * (uint64_t)s, err);
        if (rc != TD_OK)
            return rc;
        if (size < 0 || pointer < 0 || pointer % elem || pointer / elem > w->t.n_tokens - size)
            return td_error_set(err, TD_E_DATA,
                                "%s: sequence %lld has %d tokens from byte %lld on, expected "
                                "whole tokens within the %llu bytes of %s",
                                w->idx_path, (long long)s, (int)size, (long long)pointer,
                                (unsigned long long)w->t.rows.size_bytes, w->t.path);
        if (s == doc[0])
            *a = *b = pointer / elem;
        if (pointer / elem != *b)
            return td_error_set(err, TD_E_DATA,
                                "%s: sequence %lld of document %lld begins at byte %lld, but the "
                                "one before ends at %lld; documents in pieces are not read",
                                w->idx_path, (long long)s, (long long)row, (long long)pointer,
                                (long long)(*b * elem));
        *b += size;
    }
    return TD_OK;
}

/* ---- documents that end at an id ---- */

/* Makes the window begin at element `at`, which there is. */
static td_status load_window(raw_tokens *w, int64_t at, td_error *err) {
    int64_t n = TD_MIN(w->t.n_tokens - at, (int64_t)WINDOW_TOKENS);
    w->window_n = 0;
    td_status rc = td_dataset_pread(w->t.rows.fd, w->window, (size_t)n * w->t.ids_elem_bytes,
                                    (uint64_t)at * w->t.ids_elem_bytes, w->t.path, err);
    if (rc == TD_OK) {
        w->window_begin = at;
        w->window_n = n;
    }
    return rc;
}

/* The element behind the row that begins at `at`. */
static td_status find_end(raw_tokens *w, int64_t at, int64_t *end, td_error *err) {
    while (at < w->t.n_tokens) {
        if (at < w->window_begin || at >= w->window_begin + w->window_n) {
            td_status rc = load_window(w, at, err);
            if (rc != TD_OK)
                return rc;
        }
        for (int64_t stop = w->window_begin + w->window_n; at < stop; at++)
            if (td_int_at(w->window, w->t.ids_kind, (size_t)(at - w->window_begin)) ==
                w->document_eos) {
                *end = at + 1;
                return TD_OK;
            }
    }
    *end = at;
    return TD_OK;
}

static td_status document_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b, bool *end,
                                td_error *err) {
    raw_tokens *w = of(t);
    *end = false;
    if (row < w->next_row) {
        w->next_row = row / MARK_ROWS * MARK_ROWS;
        w->next_begin = w->marks[row / MARK_ROWS];
    }
    for (;;) {
        if (w->next_begin >= w->t.n_tokens) {
            *end = true;
            return TD_OK;
        }
        if (w->next_row % MARK_ROWS == 0 && w->next_row / MARK_ROWS == (int64_t)w->n_marks) {
            if (!td_grow((void **)&w->marks, &w->marks_cap, w->n_marks + 1, sizeof *w->marks))
                return td_error_nomem(err, "the places of rows", w->n_marks * sizeof *w->marks);
            w->marks[w->n_marks++] = w->next_begin;
        }
        int64_t begin = w->next_begin, stop;
        td_status rc = find_end(w, begin, &stop, err);
        if (rc != TD_OK)
            return rc;
        w->next_begin = stop;
        if (w->next_row++ == row) {
            *a = begin;
            *b = stop;
            return TD_OK;
        }
    }
}

/* ---- blocks ---- */

static td_status block_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b, bool *end,
                             td_error *err) {
    const raw_tokens *w = of(t);
    (void)err;
    *end = false;
    *a = row * w->block_tokens;
    *b = TD_MIN(*a + w->block_tokens, t->n_tokens);
    return TD_OK;
}

/* ---- opening ---- */

/* A u32 file that is read as u16 has a zero in every other place. */
static td_status check_u16_guess(raw_tokens *w, td_error *err) {
    uint16_t look[LOOK_TOKENS];
    size_t n = (size_t)TD_MIN(w->t.n_tokens, (int64_t)LOOK_TOKENS);
    td_status rc = td_dataset_pread(w->t.rows.fd, look, n * 2, 0, w->t.path, err);
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
                        w->t.path);
}

static void free_own(td_tokens *t) {
    raw_tokens *w = of(t);
    if (w->idx_fd >= 0)
        close(w->idx_fd);
    free(w->idx_path);
    free(w->marks);
    free(w->window);
}

static const td_token_kind blocks = {.range = block_range, .free_own = free_own},
                           documents = {.range = document_range, .free_own = free_own},
                           megatron = {.range = megatron_range, .free_own = free_own};

static td_status find_rows(raw_tokens *w, const td_config *cfg, int32_t n_vocab, td_error *err) {
    size_t n = strlen(w->t.path), stem = n > 4 && w->t.path[n - 4] == '.' ? n - 4 : n;
    w->idx_path = td_asprintf("%.*s.idx", (int)stem, w->t.path);
    if (!w->idx_path)
        return td_error_nomem(err, "a path", n);
    uint64_t idx_size = 0;
    td_status rc = TD_OK;
    w->idx_fd = -1;
    if (td_path_exists(w->idx_path))
        rc = td_file_open(w->idx_path, TD_E_DATA, &w->idx_fd, &idx_size, err);
    if (rc != TD_OK)
        return rc;
    td_token_dtype dtype = cfg->data.token_dtype;
    if (w->idx_fd >= 0) {
        if (cfg->data.document_eos >= 0)
            return td_error_set(err, TD_E_CONFIG,
                                "data.document_eos is for raw files without index, but %s says "
                                "where the documents of %s end; take the key out",
                                w->idx_path, w->t.path);
        rc = open_index(w, idx_size, cfg, err);
        if (rc != TD_OK)
            return rc;
    } else {
        bool wide = dtype == TD_TOKEN_U32 || (dtype == TD_TOKEN_AUTO && n_vocab > 65536);
        w->t.ids_kind = wide ? TD_INT_U32 : TD_INT_U16;
        w->t.ids_elem_bytes = wide ? 4 : 2;
    }
    if (w->t.rows.size_bytes % w->t.ids_elem_bytes)
        return td_error_set(err, TD_E_DATA,
                            "%s has %llu bytes, no whole number of ids of %zu bytes each; it is "
                            "incomplete, or data.token_dtype is another",
                            w->t.path, (unsigned long long)w->t.rows.size_bytes,
                            w->t.ids_elem_bytes);
    w->t.n_tokens = (int64_t)(w->t.rows.size_bytes / w->t.ids_elem_bytes);
    if (w->idx_fd >= 0) {
        w->t.kind = &megatron;
        td_tokens_ready(&w->t, w->n_documents, "the documents of an .idx file");
        return TD_OK;
    }
    if (dtype == TD_TOKEN_AUTO && w->t.ids_kind == TD_INT_U16) {
        rc = check_u16_guess(w, err);
        if (rc != TD_OK)
            return rc;
    }
    if (cfg->data.document_eos >= 0) {
        w->t.kind = &documents;
        w->document_eos = cfg->data.document_eos;
        w->window = td_calloc(WINDOW_TOKENS, w->t.ids_elem_bytes);
        if (!w->window)
            return td_error_nomem(err, "a tokens dataset", WINDOW_TOKENS);
        td_tokens_ready(&w->t, -1, "rows that end at data.document_eos");
        return TD_OK;
    }
    if (cfg->data.append_eos)
        return td_error_set(err, TD_E_CONFIG,
                            "data.append_eos = true, but the rows of %s are cut every "
                            "data.max_length tokens, not where a text ends; set data.append_eos = "
                            "false, or data.document_eos to the id that ends a text",
                            w->t.path);
    w->block_tokens = cfg->data.max_length;
    td_tokens_ready(&w->t, (w->t.n_tokens + w->block_tokens - 1) / w->block_tokens,
                    "rows of data.max_length ids (no .idx file)");
    return TD_OK;
}

static td_status open_raw(const td_config *cfg, int32_t n_vocab, td_rows **out, td_error *err) {
    raw_tokens *w = td_calloc(1, sizeof *w);
    if (!w)
        return td_error_nomem(err, "a tokens dataset", sizeof *w);
    w->idx_fd = -1;
    td_status rc = td_tokens_begin(&w->t, &blocks, cfg, err);
    if (rc == TD_OK)
        rc = find_rows(w, cfg, n_vocab, err);
    if (rc != TD_OK) {
        td_tokens_close(&w->t);
        return rc;
    }
    *out = &w->t.rows;
    return TD_OK;
}

/* Raw ids may begin with any bytes. token_dtype speaks of nothing else; then a name needs no .bin. */
static bool claims(const td_config *cfg) {
    const char *path = cfg->data.path;
    return td_path_has_suffix(path, ".bin") ||
           (cfg->data.token_dtype != TD_TOKEN_AUTO && !td_path_has_suffix(path, ".safetensors"));
}

const td_row_format td_format_raw_tokens = {
    .format = TD_FORMAT_TOKENS,
    .suffixes = (const char *const[]){".bin", NULL},
    .claims = claims,
    .open = open_raw,
};
