/* weights.h - the prepared weights of one memory domain, as the forward pass reads them. */
#ifndef TDGEN_MODEL_WEIGHTS_H
#define TDGEN_MODEL_WEIGHTS_H

#include "tdgen/model.h"

/* Vectors are device F32. NULL where the architecture has none. */
typedef struct td_layer_weights {
    float *attn_norm, *ffn_norm; /* [C] */
    float *q_norm, *k_norm;      /* [D] */
    float *qkv_bias;             /* [(H + 2 Hkv) * D] */
    float *o_bias, *down_bias;   /* [C] */
    float *gate_up_bias;         /* [2F] */
    td_weight *qkv;              /* [(H + 2 Hkv) * D, C] */
    td_weight *o;                /* [C, H * D] */
    td_weight *gate_up;          /* [2F, C] */
    td_weight *down;             /* [C, F] */
} td_layer_weights;

/* Devices of one backend with the same info.domain share this. Read-only after td_weights_load. */
typedef struct td_domain_weights {
    td_device *device;        /* the domain's first: allocates and frees */
    bool *has_item;           /* [L + 2] items that some stage of this domain holds */
    void *embed_table;        /* [V, C] in the compute dtype */
    td_layer_weights *layers; /* [L] */
    float *final_norm;        /* [C] */
    td_weight *lm_head;       /* [V, C] */
} td_domain_weights;

/* NULL when nothing was loaded for the device's domain. */
const td_domain_weights *td_weights_of(const td_weights *w, const td_device *device);
const td_model_config *td_weights_config(const td_weights *w);
td_dtype td_weights_compute(const td_weights *w);

#endif
