/* tokens.h - rows of an already tokenised dataset: a safetensors file.
 *
 * The header is checked by the safetensors reader; rows are then read with pread, not through its
 * mapping, so that resident memory does not grow with the file and a file that is cut meanwhile is
 * an error instead of a signal.
 */
#ifndef TDGEN_DATA_TOKENS_H
#define TDGEN_DATA_TOKENS_H

#include <stdint.h>
#include "row.h"
#include "tdgen/status.h"

typedef struct td_tokens td_tokens;

td_status td_tokens_open(const char *path, td_tokens **out, td_error *err);
void td_tokens_close(td_tokens *t); /* NULL allowed */

int64_t td_tokens_n_rows(const td_tokens *t);
int td_tokens_fd(const td_tokens *t);              /* for pread; owned by t */
uint64_t td_tokens_size_bytes(const td_tokens *t); /* of the file */
/* Bytes of ids and mask of all rows: what progress counts. */
uint64_t td_tokens_payload_bytes(const td_tokens *t);

typedef struct td_tokens_row {
    const void *ids; /* [n] elements of `kind`, unaligned; valid until the next call */
    td_int_kind kind;
    size_t n, ids_bytes;
    const uint8_t *mask; /* [n] or NULL */
} td_tokens_row;
td_status td_tokens_row_read(td_tokens *t, int64_t row, td_tokens_row *out, td_error *err);

#endif
