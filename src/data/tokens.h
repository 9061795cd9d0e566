/* tokens.h - what the formats of token ids share: rows are stretches of one array of integers in the
 * file, with or without a mask beside it. tokens_safetensors.c and tokens_raw.c say where each row
 * lies.
 *
 * Rows are read with pread, not through a mapping, so that resident memory does not grow with the
 * file and a file that is cut meanwhile is an error instead of a signal.
 */
#ifndef TDGEN_DATA_TOKENS_H
#define TDGEN_DATA_TOKENS_H

#include "data/format.h"

typedef struct td_tokens td_tokens;

typedef struct td_token_kind {
    /* Elements [*a, *b) of row `row`, which is below n_rows where that is known; or *end. Rows may
     * be asked for in any order; one behind another is fastest. */
    td_status (*range)(td_tokens *t, int64_t row, int64_t *a, int64_t *b, bool *end, td_error *err);
    /* td_rows_ops.check; NULL: nothing to check. */
    td_status (*check)(const td_tokens *t, td_rows_look *look, td_error *err);
    void (*free_own)(td_tokens *t); /* what the kind holds; t itself is freed after */
} td_token_kind;

/* A kind puts it first in its own struct. */
struct td_tokens {
    td_rows rows;
    const td_token_kind *kind;
    const char *path; /* borrowed */
    int64_t n_tokens;
    td_int_kind ids_kind;
    size_t ids_elem_bytes;
    uint64_t ids_pos, mask_pos; /* in the file; mask_pos 0 = no mask */
    int64_t next_row;
    uint64_t payload_read; /* bytes of ids and masks */
    /* The row in hand: ids, then mask. */
    unsigned char *buf;
    size_t cap, n, ids_bytes;
};

/* Opens the file and fills in `rows` but n_rows, total_bytes and sequential; `t` is zeroed, allocated
 * by the caller with the kind's own size. Whatever comes of it, td_tokens_close frees it. */
td_status td_tokens_begin(td_tokens *t, const td_token_kind *kind, const td_config *cfg,
                          td_error *err);
/* When n_tokens, ids_* and mask_pos are known. n_rows -1: the rows end at an id. row_kind: of td_rows. */
void td_tokens_ready(td_tokens *t, int64_t n_rows, const char *row_kind);
void td_tokens_close(td_tokens *t);
/* Bytes of the file. */
td_status td_tokens_read_at(td_tokens *t, void *data, size_t n_bytes, uint64_t pos, td_error *err);

#endif
