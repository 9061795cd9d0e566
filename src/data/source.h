/* source.h - what statistics share with td_source. */
#ifndef TDGEN_DATA_SOURCE_H
#define TDGEN_DATA_SOURCE_H

#include <stdbool.h>
#include "data/data.h"
#include "data/files.h"

/* td_source_open; with `estimating` text needs no tokenizer (4 bytes a token; append_eos then no
 * known id), and nothing is logged: the run says these things once. */
td_status td_source_open_for(const td_config *cfg, const td_tokenizer *tok,
                             const td_source_limits *lim, bool estimating, td_source **out,
                             td_error *err);

/* Its open file, still the source's. Who reads rows there himself only closes the source afterwards.
 */
td_rows *td_source_rows(const td_source *s);
/* What data.path names. */
const td_dataset_files *td_source_dataset(const td_source *s);

#endif
