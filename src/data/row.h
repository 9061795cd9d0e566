/* row.h - one dataset row to token ids, targets and id text.
 *
 * A td_row_maker holds the buffers of one row and is used by one thread. TD_E_DATA means that this row is bad (on_bad_sample decides what follows); any
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
    td_strbuf id;   /* text of id_field */
    int32_t bos_id; /* what the tokenizer puts in front of every text by itself; -1: nothing */
} td_row_maker;

td_status td_row_maker_init(td_row_maker *m, const td_config *cfg, const td_tokenizer *tok,
                            const td_source_limits *lim, td_error *err);
void td_row_maker_free(td_row_maker *m); /* a zeroed one is allowed */

/* --- a row of texts: begin, encode its parts, end, check_range --- */

/* Empties the row. */
void td_row_begin(td_row_maker *m);
/* Appends the tokens of a part. special: with the tokenizer's special tokens; target: they are
 * training targets. */
td_status td_row_encode(td_row_maker *m, const char *text, size_t n_bytes, bool special,
                        bool target, td_error *err);
/* What append_eos asks for. `own`: where the ids of the row's own last part begin; behind them a second end-of-sequence is
 * not added. The BOS of an empty text is not such an end, though some models use one id for both.
 */
td_status td_row_end(td_row_maker *m, size_t own, td_error *err);
/* The model has to know what the tokenizer says. `where` ("file:line") goes in front of messages,
 * as in all below. */
td_status td_row_check_range(const td_row_maker *m, const char *where, td_error *err);
/* All of these: a row that is one text. */
td_status td_row_from_text(td_row_maker *m, const char *text, size_t n_bytes, const char *where,
                           td_error *err);

/* --- a row of ids: begin, reserve, write ids and mask, set ids.n, end --- */

/* Room for `need` ids and mask bytes, at least one, so that an empty row has valid pointers. */
td_status td_row_reserve(td_row_maker *m, size_t need, td_error *err);
/* The largest id that is allowed. */
int64_t td_row_max_id(const td_row_maker *m);

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
