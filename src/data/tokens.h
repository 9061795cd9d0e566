/* tokens.h - rows of an already tokenised dataset: a safetensors file, or raw ids.
 *
 * safetensors: the header is checked by its reader; rows are then read with pread, not through its
 * mapping, so that resident memory does not grow with the file and a file that is cut meanwhile is
 * an error instead of a signal. Raw: see tokens_layout.h.
 */
#ifndef TDGEN_DATA_TOKENS_H
#define TDGEN_DATA_TOKENS_H

#include <stdbool.h>
#include <stdint.h>
#include "data/row.h"
#include "base/status.h"

typedef struct td_tokens td_tokens;

/* n_vocab: of the model, 0 = unknown; it decides between u16 and u32 where nothing else does. */
td_status td_tokens_open(const td_config *cfg, int32_t n_vocab, td_tokens **out, td_error *err);
void td_tokens_close(td_tokens *t); /* NULL allowed */

/* Refuses (TD_E_DATA) a file that says it was made with another tokenizer.json than model_dir's.
 * Nothing to check, and TD_OK, when either is absent. */
td_status td_tokens_check_tokenizer(const td_tokens *t, const char *model_dir, td_error *err);

/* -1: not known before the end, the rows end at an id. */
int64_t td_tokens_n_rows(const td_tokens *t);
int td_tokens_fd(const td_tokens *t);              /* for pread; owned by t */
uint64_t td_tokens_size_bytes(const td_tokens *t); /* of the file */
/* Bytes of ids and mask: what progress counts. */
uint64_t td_tokens_payload_bytes(const td_tokens *t);

typedef struct td_tokens_row {
    const void *ids; /* [n] elements of `kind`, unaligned; valid until the next call */
    td_int_kind kind;
    size_t n, ids_bytes;
    const uint8_t *mask; /* [n] or NULL */
} td_tokens_row;
/* *end instead of a row behind the last one. Rows may be read in any order; one behind another is
 * fastest. */
td_status td_tokens_row_read(td_tokens *t, int64_t row, td_tokens_row *out, bool *end,
                             td_error *err);

#endif
