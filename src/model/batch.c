/* batch.c - samples laid end to end as one micro-batch. */
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "base/memory.h"

td_status td_batch_builder_init(td_batch_builder *b, const td_session_limits *lim, td_error *err) {
    *b = (td_batch_builder){
        .max_tokens = lim->max_tokens, .max_seqs = lim->max_seqs, .max_rows = lim->max_rows};
    b->ids = td_calloc((size_t)lim->max_tokens, sizeof *b->ids);
    b->seq_offsets = td_calloc((size_t)lim->max_seqs + 1, sizeof *b->seq_offsets);
    b->row_token = td_calloc((size_t)lim->max_rows, sizeof *b->row_token);
    b->row_target = td_calloc((size_t)lim->max_rows, sizeof *b->row_target);
    b->row_dataset_row = td_calloc((size_t)lim->max_rows, sizeof *b->row_dataset_row);
    b->row_position = td_calloc((size_t)lim->max_rows, sizeof *b->row_position);
    if (!b->ids || !b->seq_offsets || !b->row_token || !b->row_target || !b->row_dataset_row ||
        !b->row_position) {
        td_batch_builder_free(b);
        return td_error_nomem(err, "the host arrays of a micro-batch",
                              (size_t)lim->max_tokens * 32);
    }
    td_batch_clear(b);
    return TD_OK;
}

void td_batch_builder_free(td_batch_builder *b) {
    free(b->ids);
    free(b->seq_offsets);
    free(b->row_token);
    free(b->row_target);
    free(b->row_dataset_row);
    free(b->row_position);
    *b = (td_batch_builder){0};
}

void td_batch_clear(td_batch_builder *b) {
    b->batch = (td_batch){.ids = b->ids,
                          .seq_offsets = b->seq_offsets,
                          .row_token = b->row_token,
                          .row_target = b->row_target,
                          .row_dataset_row = b->row_dataset_row,
                          .row_position = b->row_position};
}

bool td_batch_fits(const td_batch_builder *b, int32_t n_tokens, int32_t n_rows) {
    return b->batch.n_tokens + n_tokens <= b->max_tokens && b->batch.n_seqs < b->max_seqs &&
           b->batch.n_rows + n_rows <= b->max_rows;
}

void td_batch_add(td_batch_builder *b, const int32_t *ids, const uint8_t *loss_mask,
                  int32_t n_tokens, int64_t dataset_row, int64_t start) {
    int32_t n = b->batch.n_tokens, r = b->batch.n_rows;
    memcpy(b->ids + n, ids, (size_t)n_tokens * sizeof *ids);
    for (int32_t t = 1; loss_mask && t < n_tokens; t++)
        if (loss_mask[t]) {
            b->row_token[r] = n + t - 1;
            b->row_target[r] = ids[t];
            b->row_dataset_row[r] = dataset_row;
            b->row_position[r] = start + t - 1;
            r++;
        }
    b->batch.n_tokens = n + n_tokens;
    b->batch.n_rows = r;
    b->seq_offsets[++b->batch.n_seqs] = b->batch.n_tokens;
}
