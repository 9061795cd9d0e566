/* rope.h - rotary tables as Hugging Face computes them. */
#ifndef TDGEN_MODEL_ROPE_H
#define TDGEN_MODEL_ROPE_H

#include "model/stage_buffers.h"

/* inv_freq [rotary_dim / 2] of table k for a sequence of n_tokens alone in its batch. */
void td_rope_inv_freq(const td_model_config *cfg, int32_t k, int32_t n_tokens, float *inv_freq);
/* All that does not change between micro-batches: cos_table, sin_table
 * [td_rope_layout_of(cfg, max_tokens).n_elems]; dynamic sections are left alone. */
void td_rope_tables(const td_model_config *cfg, int32_t max_tokens, float *cos_table,
                    float *sin_table);
/* The rows of table k, counted from its first, for the tokens of one micro-batch. Tokens of a
 * sequence beyond the limit of a dynamic table get rows of their own: cos_rows, sin_rows
 * [n_tokens, rotary_dim / 2] are then filled for them, and true is returned. */
bool td_rope_rows(const td_model_config *cfg, const td_rope_layout *l, int32_t k,
                  const td_batch *batch, int32_t *rows, float *cos_rows, float *sin_rows);

#endif
