/* families.h - what the model families call things, and how their config.json reads.
 *
 * A family is one entry of the table in families.c. It says which tensor of a checkpoint fills
 * which slot, and how config.json becomes the descriptions of a td_model_config. The forward pass,
 * the loader, the planner and the hash know no family by name: they see those descriptions and the
 * slots below.
 */
#ifndef TDGEN_MODEL_FAMILIES_H
#define TDGEN_MODEL_FAMILIES_H

#include "model/hf_reader.h"
#include "model/model.h"

/* Tensors outside the layers. */
typedef enum td_model_tensor {
    TD_MT_EMBED,      /* [V, C] */
    TD_MT_POSITIONS,  /* [max_positions, C]  if learned_positions */
    TD_MT_FINAL_NORM, /* [C] */
    TD_MT_FINAL_NORM_BIAS,
    TD_MT_LM_HEAD, /* [V, C]  unless tied */
    TD_MT_COUNT
} td_model_tensor;

/* Tensors of one layer, with the shape that shapes.c asks for and when. Those that are stacked into
 * one matrix or vector when they are loaded stand next to each other; of a fused tensor and its
 * parts a family has one. */
typedef enum td_layer_tensor {
    TD_LT_ATTN_NORM,      /* [C]      if pre_norm */
    TD_LT_ATTN_NORM_BIAS, /* [C]      if norm_bias */
    TD_LT_Q,              /* [H*D, C] */
    TD_LT_K,              /* [Hkv*D, C] */
    TD_LT_V,              /* [Hkv*D, C] */
    TD_LT_QKV,            /* [(H + 2 Hkv)*D, C], fused */
    TD_LT_Q_BIAS,         /* [H*D]    if qkv_bias */
    TD_LT_K_BIAS,         /* [Hkv*D] */
    TD_LT_V_BIAS,         /* [Hkv*D] */
    TD_LT_QKV_BIAS,       /* [(H + 2 Hkv)*D] */
    TD_LT_Q_NORM,         /* [D] or [H*D]    if qk_norm */
    TD_LT_K_NORM,         /* [D] or [Hkv*D] */
    TD_LT_O,              /* [C, H*D] */
    TD_LT_O_BIAS,         /* [C]      if o_bias */
    TD_LT_POST_ATTN_NORM, /* [C]      if post_norm */
    TD_LT_FFN_NORM,       /* [C]      if pre_norm, unless shared_norm */
    TD_LT_FFN_NORM_BIAS,  /* [C]      if norm_bias */
    TD_LT_GATE,           /* [F, C]   if dense and gated */
    TD_LT_UP,             /* [F, C]   if dense */
    TD_LT_GATE_UP,        /* [2F, C]  if dense, fused */
    TD_LT_GATE_BIAS,      /* [F]      if dense and gated, with bias */
    TD_LT_UP_BIAS,        /* [F]      if dense, with bias */
    TD_LT_DOWN,           /* [C, F]   if dense */
    TD_LT_DOWN_BIAS,      /* [C]      if dense, with bias */
    TD_LT_ROUTER,         /* [E, C]   if experts */
    TD_LT_POST_FFN_NORM,  /* [C]      if post_norm */
    TD_LT_COUNT
} td_layer_tensor;

/* Tensors of one expert. */
typedef enum td_expert_tensor {
    TD_ET_GATE, /* [F, C] */
    TD_ET_UP,   /* [F, C] */
    TD_ET_DOWN, /* [C, F] */
    TD_ET_COUNT
} td_expert_tensor;

typedef enum td_window_rule {
    TD_WINDOW_NONE,
    TD_WINDOW_ALL,      /* "sliding_window" in all layers */
    TD_WINDOW_SWITCHED, /* "use_sliding_window", from "max_window_layers" on (Qwen2, Qwen3) */
    TD_WINDOW_USED,     /* "use_sliding_window", in all layers (Qwen3-MoE) */
    TD_WINDOW_PATTERN,  /* every n-th layer is full, the others slide (Gemma 2 and 3) */
    TD_WINDOW_NO_ROPE   /* "use_sliding_window", in the layers without rope (SmolLM3) */
} td_window_rule;

typedef enum td_rope_rule {
    TD_ROPE_RULE_NONE,      /* no rotary embedding at all (GPT-2) */
    TD_ROPE_RULE_ONE,       /* one table for all layers */
    TD_ROPE_RULE_BY_WINDOW, /* one for full layers, one for sliding ones (Gemma 3) */
    TD_ROPE_RULE_LISTED     /* one, but not in the layers that no_rope_layers excludes (SmolLM3) */
} td_rope_rule;

typedef struct td_family {
    const char *architecture; /* config.json: architectures[0] */
    const char *bare;         /* or this one: saved from the model without its head */
    const char *model_type;   /* transformers goes by this one, so it must agree */

    /* --- tensor names. '#' stands for the number of the layer, then of the expert. */
    const char *prefix; /* before every name but lm_head's; files of the bare model lack it */
    const char *layer;  /* before the names of a layer */
    const char *model_names[TD_MT_COUNT];
    const char *layer_names[TD_LT_COUNT]; /* NULL: the family has no such tensor */
    const char *expert_names[TD_ET_COUNT];
    /* gate and up, and down, of all experts in one tensor each; where the file has the first, it
     * has no expert_names (fused.h). */
    const char *fused_experts[2];
    /* Names of a layer that begin with the first begin with the second in other files. */
    const char *renamed[2];
    const char *ignored[3]; /* ends of the names of buffers that are no weights */
    bool transposed;        /* matrices of layers are stored [in, out] (GPT-2's Conv1D) */
    bool qkv_by_head;       /* QKV rows are q, k, v of head 0, then of head 1, ... (NeoX) */

    /* --- config.json. Keys: NULL = the usual name. Defaults: for an absent key. */
    const char *key_layers, *key_hidden, *key_ffn, *key_heads, *key_positions, *key_eps, *key_act;
    const char *key_theta, *key_partial;
    bool ffn_is_4x;           /* the default of an absent key_ffn is 4 C, else it is required */
    int32_t default_kv_heads; /* 0 = as many as heads */
    int32_t default_head_dim; /* 0 = hidden / heads */
    int32_t default_positions;
    int32_t default_window;                             /* 0 = none */
    int32_t default_window_pattern;                     /* TD_WINDOW_PATTERN */
    double default_eps, default_theta, default_partial; /* 0: 1e-6, 1e4, 1 */
    const char *default_act;                            /* NULL: "silu" */
    bool gelu_means_tanh;                               /* as in Gemma's first configs */
    bool default_tied;
    bool fixed_heads;              /* no num_key_value_heads and no head_dim key */
    bool partial_rotary;           /* reads key_partial; elsewhere it must be 1 */
    bool attention_bias, mlp_bias; /* the keys of these names are read */
    bool default_attention_bias;
    td_window_rule window;
    td_rope_rule rope;
    /* "su" and "yarn" mean longrope, from a top-level original length (Phi-3). */
    bool longrope_only;

    /* --- constants of the architecture, copied into the td_model_config and its layers */
    td_norm_kind norm_kind;
    bool norm_bias, norm_plus_one, post_norm, no_pre_norm;
    bool not_gated, qkv_bias, o_bias, mlp_always_bias;
    td_qk_norm qk_norm;
    bool learned_positions;
    /* `finish` describes them. Elsewhere a config.json that speaks of experts is refused. */
    bool has_experts;

    /* What nothing above says; may refuse. It is called last: all layers are described, with a
     * dense ffn, and it changes what differs. NULL = nothing. */
    td_status (*finish)(const td_config_reader *r, td_model_config *c);
} td_family;

/* NULL when no family has that name, be it that of the bare model. */
const td_family *td_family_find(const char *architecture);
const td_family *td_family_find_type(const char *model_type);
/* "LlamaForCausalLM, ... and Z" for messages; cut where buf ends. */
void td_family_list(char *buf, size_t buf_size);

#endif
