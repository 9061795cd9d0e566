/* row.h - one dataset row to token ids, targets and id text.
 *
 * A td_row_maker holds the buffers of one row and is used by one thread. Each td_row_from_*
 * replaces the row. TD_E_DATA means that this row is bad (on_bad_sample decides what follows); any
 * other failure is not the row's.
 */
#ifndef TDGEN_DATA_ROW_H
#define TDGEN_DATA_ROW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "config/config.h"
#include "data/data.h"
#include "base/status.h"
#include "tokenizer/tokenizer.h"
#include "base/strbuf.h"

typedef struct td_row_maker {
    const td_config *cfg;    /* borrowed */
    const td_tokenizer *tok; /* borrowed; NULL: text becomes ceil(bytes / 4) ids of value 0 */
    td_tok_scratch *scratch; /* NULL without tok */
    td_source_limits lim;
    td_strbuf text; /* prompt + separator */
    td_ids ids;     /* of the row */
    uint8_t *mask;  /* [ids.n] 1 = target */
    size_t mask_cap;
    td_strbuf id; /* text of id_field */
} td_row_maker;

td_status td_row_maker_init(td_row_maker *m, const td_config *cfg, const td_tokenizer *tok,
                            const td_source_limits *lim, td_error *err);
void td_row_maker_free(td_row_maker *m); /* a zeroed one is allowed */

/* A JSONL line; `where` ("file:line") goes in front of messages. */
td_status td_row_from_json(td_row_maker *m, const char *line, size_t n_bytes, const char *where,
                           td_error *err);
/* Are the configured fields there, with the right types? Tokenises nothing. */
td_status td_row_check_json(const td_config *cfg, const char *line, size_t n_bytes,
                            const char *where, td_error *err);
td_status td_row_from_text(td_row_maker *m, const char *text, size_t n_bytes, const char *where,
                           td_error *err);

/* Integer elements of a tokens file. */
typedef enum td_int_kind {
    TD_INT_U8,
    TD_INT_I8,
    TD_INT_U16,
    TD_INT_I16,
    TD_INT_U32,
    TD_INT_I32,
    TD_INT_U64,
    TD_INT_I64
} td_int_kind;
/* Little-endian element i of unaligned `data`; a U64 above INT64_MAX gives INT64_MAX. */
int64_t td_int_at(const void *data, td_int_kind kind, size_t i);
/* `mask` [n] of 0 and 1, or NULL. */
td_status td_row_from_ids(td_row_maker *m, const void *data, td_int_kind kind, const uint8_t *mask,
                          size_t n, const char *where, td_error *err);

#endif
