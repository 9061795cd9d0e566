/* source.h - what statistics share with td_source. */
#ifndef TDGEN_DATA_SOURCE_H
#define TDGEN_DATA_SOURCE_H

#include <stdbool.h>
#include "data/data.h"

/* td_source_open; with `estimating` text needs no tokenizer (4 bytes a token; append_eos then no
 * known id), and nothing is logged: the run says these things once. */
td_status td_source_open_for(const td_config *cfg, const td_tokenizer *tok,
                             const td_source_limits *lim, bool estimating, td_source **out,
                             td_error *err);

/* Can rows be found only by reading all before them? (compressed, or rows that end at an id) */
bool td_source_is_sequential(const td_source *s);

/* Bytes of plain text or ids that were read so far. */
uint64_t td_source_plain_bytes(const td_source *s);

bool td_format_needs_tokenizer(const td_config *cfg, td_data_format format);

#endif
