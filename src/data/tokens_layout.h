/* tokens_layout.h - where the rows of a token file lie; private to tokens.c and tokens_raw.c.
 *
 *   safetensors  row i = elements [offsets[i], offsets[i+1]) of input_ids
 *   blocks       a .bin of integers without header, as nanoGPT writes it, and no id that ends rows:
 *                row i = elements [i*L, (i+1)*L), L = data.max_length, the last one shorter
 *   documents    the same file with data.document_eos: a row ends behind each such id, and at the
 * end of the file megatron     NAME.bin with NAME.idx, Megatron's indexed dataset; row i = document
 * i: "MMIDIDX" 0 0 | u64 version = 1 | u8 dtype | u64 S | u64 D+1 | i32 sizes[S], elements of each
 * sequence | i64 pointers[S], its byte in .bin | i64 documents[D+1], document i = sequences
 * [documents[i], documents[i+1]) | i8 modes[S] in multimodal sets, not looked at dtype: 1 u8, 2 i8,
 * 3 i16, 4 i32, 5 i64, 8 u16; all little-endian. The sequences of a document must lie end to end,
 * as Megatron writes them
 *
 * Nothing is kept per row but, for documents, the place of every TD_TOKENS_MARK_ROWS-th: 8 bytes.
 */
#ifndef TDGEN_DATA_TOKENS_LAYOUT_H
#define TDGEN_DATA_TOKENS_LAYOUT_H

#include "data/tokens.h"

enum { TD_TOKENS_CHUNK = 8192, TD_TOKENS_MARK_ROWS = 1024 };

typedef enum td_tokens_layout {
    TD_LAYOUT_SAFETENSORS,
    TD_LAYOUT_BLOCKS,
    TD_LAYOUT_DOCUMENTS,
    TD_LAYOUT_MEGATRON
} td_tokens_layout;

struct td_tokens {
    char *path;
    int fd;
    uint64_t size_bytes;
    td_tokens_layout layout;
    int64_t n_rows, n_tokens; /* n_rows -1: not known yet */
    td_int_kind ids_kind;
    size_t ids_elem_bytes;
    uint64_t ids_pos, mask_pos; /* in the file; mask_pos 0 = no mask */
    unsigned char *buf;         /* ids, then mask, of one row */
    size_t cap;
    /* safetensors */
    td_int_kind offsets_kind;
    size_t offsets_elem_bytes;
    uint64_t offsets_pos;
    const char *offsets_name;
    int64_t *offsets; /* of rows [chunk_begin, chunk_begin + chunk_n), and one more */
    int64_t chunk_begin, chunk_n;
    unsigned char *chunk_raw;
    char *tokenizer_hash; /* of the metadata, or NULL */
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
    int64_t n_sequences;
    uint64_t sizes_pos, pointers_pos, documents_pos;
};

/* t->path, fd and size_bytes are set. */
td_status td_tokens_open_raw(td_tokens *t, const td_config *cfg, int32_t n_vocab, td_error *err);
/* Elements [*a, *b) of row `row`, which is below n_rows where that is known; or *end. */
td_status td_tokens_raw_range(td_tokens *t, int64_t row, int64_t *a, int64_t *b, bool *end,
                              td_error *err);

#endif
