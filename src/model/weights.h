/* weights.h - the prepared weights of one memory domain, as the forward pass reads them. */
#ifndef TDGEN_MODEL_WEIGHTS_H
#define TDGEN_MODEL_WEIGHTS_H

#include "model/model.h"

/* Vectors of a layer, device F32. */
typedef enum td_layer_vector {
    TD_LV_ATTN_NORM, /* [C] */
    TD_LV_ATTN_NORM_BIAS,
    TD_LV_QKV_BIAS, /* [(H + 2 Hkv) * D] */
    TD_LV_Q_NORM,   /* [D] or [H * D] */
    TD_LV_K_NORM,
    TD_LV_O_BIAS, /* [C] */
    TD_LV_POST_ATTN_NORM,
    TD_LV_FFN_NORM,
    TD_LV_FFN_NORM_BIAS,
    TD_LV_UP_BIAS, /* [2F] gate and up, or [F] */
    TD_LV_DOWN_BIAS,
    TD_LV_POST_FFN_NORM,
    TD_LV_COUNT
} td_layer_vector;

/* Matrices of a layer, for GEMM. */
typedef enum td_layer_matrix {
    TD_LM_QKV,    /* [(H + 2 Hkv) * D, C] */
    TD_LM_O,      /* [C, H * D] */
    TD_LM_UP,     /* [2F, C] gate and up, or [F, C] */
    TD_LM_DOWN,   /* [C, F] */
    TD_LM_ROUTER, /* [E, C] */
    TD_LM_COUNT
} td_layer_matrix;

/* NULL where the model has none. */
typedef struct td_layer_weights {
    float *vec[TD_LV_COUNT];
    td_weight *mat[TD_LM_COUNT];
    td_weight **expert_up;   /* [E] of [2F, C], host array */
    td_weight **expert_down; /* [E] of [C, F], host array */
} td_layer_weights;

/* Devices of one backend with the same info.domain share this. Read-only after td_weights_load. */
typedef struct td_domain_weights {
    td_device *device;        /* the domain's first: allocates and frees */
    bool *has_item;           /* [L + 2] items that some stage of this domain holds */
    void *embed_table;        /* [V, C] in the compute dtype */
    void *position_table;     /* [max_positions, C] in the compute dtype, or NULL */
    td_layer_weights *layers; /* [L] */
    float *final_norm;        /* [C] */
    float *final_norm_bias;   /* [C] or NULL */
    td_weight *lm_head;       /* [V, C] */
} td_domain_weights;

/* NULL when nothing was loaded for the device's domain. */
const td_domain_weights *td_weights_of(const td_weights *w, const td_device *device);
const td_model_config *td_weights_config(const td_weights *w);
td_dtype td_weights_compute(const td_weights *w);

#endif
