/* rope.h - rotary tables as Hugging Face computes them. */
#ifndef TDGEN_MODEL_ROPE_H
#define TDGEN_MODEL_ROPE_H

#include "tdgen/model.h"

/* inv_freq [D/2] of the config's rope type. */
void td_rope_inv_freq(const td_model_config *cfg, float *inv_freq);
/* cos_table, sin_table [n_positions, D/2]. */
void td_rope_tables(const td_model_config *cfg, int32_t n_positions, float *cos_table,
                    float *sin_table);

#endif
