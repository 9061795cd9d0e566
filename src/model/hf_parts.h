/* hf_parts.h - the parts of config.json that hf_config.c leaves to files of their own. */
#ifndef TDGEN_MODEL_HF_PARTS_H
#define TDGEN_MODEL_HF_PARTS_H

#include "model/families.h"

/* hf_rope.c. Which layers turn q and k: sets each attention's `rope`, but for
 * TD_ROPE_RULE_BY_WINDOW, which needs the windows. */
td_status td_config_read_rope_layers(const td_config_reader *r, const td_family *f,
                                     td_model_config *c);
/* hf_rope.c. Fills c->rope and n_ropes; the layers' heads and windows are known. */
td_status td_config_read_rope(const td_config_reader *r, const td_family *f, td_model_config *c);
/* hf_quant.c. Fills the fp8 fields from quantization_config; refuses every other method. */
td_status td_config_read_quantisation(const td_config_reader *r, td_model_config *c);

#endif
