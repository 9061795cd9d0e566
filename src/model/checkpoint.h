/* checkpoint.h - the tensors of a Hugging Face checkpoint folder, found by name and checked.
 *
 * After td_checkpoint_open every tensor that the config asks for is there with the right shape and
 * an f32, bf16 or f16 dtype, and no tensor is there that would change the result if it were left
 * out. Nothing of the data has been touched yet.
 */
#ifndef TDGEN_MODEL_CHECKPOINT_H
#define TDGEN_MODEL_CHECKPOINT_H

#include "tdgen/model.h"
#include "tdgen/safetensors.h"

/* Tensors of one layer, in the order in which the forward pass meets them. */
typedef enum td_layer_tensor {
    TD_LT_ATTN_NORM, /* [C] */
    TD_LT_Q,         /* [H*D, C] */
    TD_LT_K,         /* [Hkv*D, C] */
    TD_LT_V,         /* [Hkv*D, C] */
    TD_LT_Q_BIAS,    /* [H*D]    if qkv_bias */
    TD_LT_K_BIAS,    /* [Hkv*D] */
    TD_LT_V_BIAS,    /* [Hkv*D] */
    TD_LT_Q_NORM,    /* [D]      if qk_norm */
    TD_LT_K_NORM,    /* [D] */
    TD_LT_O,         /* [C, H*D] */
    TD_LT_O_BIAS,    /* [C]      if o_bias */
    TD_LT_FFN_NORM,  /* [C] */
    TD_LT_GATE,      /* [F, C] */
    TD_LT_UP,        /* [F, C] */
    TD_LT_GATE_BIAS, /* [F]      if mlp_bias */
    TD_LT_UP_BIAS,   /* [F] */
    TD_LT_DOWN,      /* [C, F] */
    TD_LT_DOWN_BIAS, /* [C]      if mlp_bias */
    TD_LT_COUNT
} td_layer_tensor;

/* Tensors outside the layers. */
typedef enum td_model_tensor {
    TD_MT_EMBED,      /* [V, C] */
    TD_MT_FINAL_NORM, /* [C] */
    TD_MT_LM_HEAD,    /* [V, C]  unless tied */
    TD_MT_COUNT
} td_model_tensor;

typedef struct td_ckpt_entry {
    char *name;
    const td_st_tensor *tensor; /* NULL: the config does not ask for it */
    uint64_t hash;              /* of its bytes, once it was touched */
    bool touched;
} td_ckpt_entry;

typedef struct td_checkpoint td_checkpoint;

td_status td_checkpoint_open(const char *model_dir, const td_model_config *cfg, td_checkpoint **out,
                             td_error *err);
void td_checkpoint_close(td_checkpoint *ck); /* NULL allowed */

td_ckpt_entry *td_checkpoint_model(td_checkpoint *ck, td_model_tensor which);
td_ckpt_entry *td_checkpoint_layer(td_checkpoint *ck, int32_t layer, td_layer_tensor which);
/* lm_head.weight of a checkpoint whose embeddings are tied; NULL when there is none (usual). */
const td_st_tensor *td_checkpoint_shadow_head(const td_checkpoint *ck);

/* Starts reading the tensor's pages, without waiting. No-op for an entry without tensor. */
void td_checkpoint_prefetch(const td_ckpt_entry *e);
/* Hashes the tensor's bytes when this is the first touch; adds its size to *bytes_read then. */
void td_checkpoint_touch(td_ckpt_entry *e, uint64_t *bytes_read);
/* Gives the pages of the mapping back: RSS then holds the prepared copy only. */
void td_checkpoint_drop_pages(const td_st_tensor *t);

/* Hash over (name, dtype, shape, hash of the bytes) of all tensors in name order; touches those
 * that were not yet. */
td_status td_checkpoint_hash(td_checkpoint *ck, uint64_t *out, td_error *err);
/* The widest dtype among the matrices. */
td_dtype td_checkpoint_dtype(const td_checkpoint *ck);

#endif
