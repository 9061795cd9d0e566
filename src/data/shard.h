/* shard.h - rows to a shard: overflow, targets, micro-batches. */
#ifndef TDGEN_DATA_SHARD_H
#define TDGEN_DATA_SHARD_H

#include <stdbool.h>
#include "data/row.h"
#include "data/data.h"

typedef struct td_shard_builder {
    td_shard *shard;
    size_t ids_cap, mask_cap, samples_cap, id_bytes_cap, id_offsets_cap;
    bool with_ids; /* id_field is configured */
} td_shard_builder;

/* An empty shard that begins at `row_begin`. */
td_status td_shard_builder_init(td_shard_builder *b, int64_t number, int64_t row_begin,
                                bool with_ids, td_error *err);
/* Adds the maker's row as dataset row `row`: no sample, one, or several. */
td_status td_shard_builder_add(td_shard_builder *b, const td_row_maker *m, int64_t row,
                               td_error *err);
/* Packs, trims memory and hands the shard over. On failure the builder still owns it. */
td_status td_shard_builder_finish(td_shard_builder *b, int32_t batch_tokens, td_shard **out,
                                  td_error *err);
void td_shard_builder_free(td_shard_builder *b);

#endif
