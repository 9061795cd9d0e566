/* families.c - the table of supported model families (families.h says what each field means).
 *
 * A family whose parts exist is one entry at the end of this file: its tensor names, the keys and
 * defaults of its config.json, the constants of its architecture. What no field says goes into a
 * `finish` function. Beside the entry it needs a tiny checkpoint (test/fixtures/families/README.md)
 * and its line in docs/teachers.md. A part that does not exist is first a tag and a
 * member in model.h's td_mixer or td_ffn.
 *
 * Defaults are those of the configuration classes of transformers 4.57 and 5.x, names those of the
 * published checkpoints.
 */
#include "model/families.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"

/* With the limits of hf_config.c the bytes of a model stay below 2^64. */
enum { MAX_EXPERTS = 512 };

/* --- names that many share -------------------------------------------------------------------- */

/* Llama's names, which most follow. With family.prefix and family.layer before it the name of a
 * layer's q_proj is model.layers.7.self_attn.q_proj.weight. Shapes: families.h. */

#define LLAMA_MODEL                                                                                \
    .prefix = "model.", .layer = "layers.#.",                                                      \
    .model_names = {[TD_MT_EMBED] = "embed_tokens.weight",                                         \
                    [TD_MT_FINAL_NORM] = "norm.weight",                                            \
                    [TD_MT_FINAL_NORM_BIAS] = "norm.bias",                                         \
                    [TD_MT_LM_HEAD] = "lm_head.weight"},                                           \
    .ignored = {".rotary_emb.inv_freq"}

#define SPLIT_ATTENTION                                                                            \
    [TD_LT_Q] = "self_attn.q_proj.weight", [TD_LT_K] = "self_attn.k_proj.weight",                  \
    [TD_LT_V] = "self_attn.v_proj.weight", [TD_LT_Q_BIAS] = "self_attn.q_proj.bias",               \
    [TD_LT_K_BIAS] = "self_attn.k_proj.bias", [TD_LT_V_BIAS] = "self_attn.v_proj.bias",            \
    [TD_LT_Q_NORM] = "self_attn.q_norm.weight", [TD_LT_K_NORM] = "self_attn.k_norm.weight",        \
    [TD_LT_O] = "self_attn.o_proj.weight", [TD_LT_O_BIAS] = "self_attn.o_proj.bias"

#define SPLIT_MLP                                                                                  \
    [TD_LT_GATE] = "mlp.gate_proj.weight", [TD_LT_UP] = "mlp.up_proj.weight",                      \
    [TD_LT_GATE_BIAS] = "mlp.gate_proj.bias", [TD_LT_UP_BIAS] = "mlp.up_proj.bias",                \
    [TD_LT_DOWN] = "mlp.down_proj.weight", [TD_LT_DOWN_BIAS] = "mlp.down_proj.bias"

#define PRE_NORMS                                                                                  \
    [TD_LT_ATTN_NORM] = "input_layernorm.weight", [TD_LT_ATTN_NORM_BIAS] = "input_layernorm.bias", \
    [TD_LT_FFN_NORM] = "post_attention_layernorm.weight",                                          \
    [TD_LT_FFN_NORM_BIAS] = "post_attention_layernorm.bias"

#define LLAMA_NAMES LLAMA_MODEL, .layer_names = {PRE_NORMS, SPLIT_ATTENTION, SPLIT_MLP}

#define SANDWICH_NAMES                                                                             \
    LLAMA_MODEL, .layer_names = {[TD_LT_ATTN_NORM] = "input_layernorm.weight",                     \
                                 [TD_LT_POST_ATTN_NORM] = "post_attention_layernorm.weight",       \
                                 [TD_LT_FFN_NORM] = "pre_feedforward_layernorm.weight",            \
                                 [TD_LT_POST_FFN_NORM] = "post_feedforward_layernorm.weight",      \
                                 SPLIT_ATTENTION,                                                  \
                                 SPLIT_MLP}

/* --- what flags do not say -------------------------------------------------------------------- */

static void set_scale(td_model_config *c, float scale) {
    for (int32_t i = 0; i < c->n_layers; i++)
        c->layers[i].mixer.attention.scale = scale;
}

static void set_softcap(td_model_config *c, float softcap) {
    for (int32_t i = 0; i < c->n_layers; i++)
        c->layers[i].mixer.attention.softcap = softcap;
}

static void scale_embedding_as_gemma(td_model_config *c) {
    c->embed_scale = (float)sqrt((double)c->n_hidden);
    c->embed_scale_rounded = true;
}

static td_status finish_gemma(const td_config_reader *r, td_model_config *c) {
    const char *act = "gelu_pytorch_tanh"; /* transformers 4 prefers this key to hidden_act */
    td_status rc = td_json_opt_str(r->root, "hidden_activation", r->path, TD_E_MODEL, &act, r->err);
    if (rc != TD_OK)
        return rc;
    if (strcmp(act, "gelu_pytorch_tanh") != 0)
        return td_config_refuse(r, "hidden_activation", act, "only gelu_pytorch_tanh is");
    scale_embedding_as_gemma(c);
    return td_config_refuse_true(r, "use_bidirectional_attention");
}

/* Scale and caps of Gemma 2 and 3. *softcap: the attention's, with its default on the way in. */
static td_status read_gemma_caps(const td_config_reader *r, td_model_config *c, float *softcap) {
    double scalar = 256;
    td_status rc;
    if ((rc = td_json_opt_real(r->root, "query_pre_attn_scalar", 1e-6, 1e6, r->path, TD_E_MODEL,
                               &scalar, r->err)) != TD_OK ||
        (rc = td_config_opt_float(r, "final_logit_softcapping", 1e-3, 1e6, &c->logits_softcap)) !=
            TD_OK ||
        (rc = td_config_opt_float(r, "attn_logit_softcapping", 1e-3, 1e6, softcap)) != TD_OK)
        return rc;
    set_scale(c, (float)(1.0 / sqrt(scalar)));
    return TD_OK;
}

static td_status finish_gemma2(const td_config_reader *r, td_model_config *c) {
    /* An absent key means these, null means none. */
    float softcap = json_object_get(r->root, "attn_logit_softcapping") ? 0 : 50;
    if (!json_object_get(r->root, "final_logit_softcapping"))
        c->logits_softcap = 30;
    td_status rc = read_gemma_caps(r, c, &softcap);
    if (rc != TD_OK)
        return rc;
    set_softcap(c, softcap);
    scale_embedding_as_gemma(c);
    return td_config_refuse_true(r, "use_bidirectional_attention");
}

static td_status finish_gemma3(const td_config_reader *r, td_model_config *c) {
    float softcap = 0;
    td_status rc = read_gemma_caps(r, c, &softcap);
    if (rc != TD_OK)
        return rc;
    /* Its code in transformers never passes it to its attention. */
    if (softcap > 0)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: attn_logit_softcapping is %g, which is not supported in "
                            "Gemma3ForCausalLM; null is",
                            r->path, (double)softcap);
    scale_embedding_as_gemma(c);
    return td_config_refuse_true(r, "use_bidirectional_attention");
}

static td_status finish_gpt2(const td_config_reader *r, td_model_config *c) {
    td_status rc;
    bool scaled = true, by_layer = false;
    if ((rc = td_config_refuse_true(r, "add_cross_attention")) != TD_OK ||
        (rc = td_config_opt_bool(r, "scale_attn_weights", &scaled)) != TD_OK ||
        (rc = td_config_opt_bool(r, "scale_attn_by_inverse_layer_idx", &by_layer)) != TD_OK)
        return rc;
    if (!scaled)
        set_scale(c, 1);
    for (int32_t i = 0; by_layer && i < c->n_layers; i++)
        c->layers[i].mixer.attention.scale /= (float)(i + 1);
    return TD_OK;
}

static td_status finish_neox(const td_config_reader *r, td_model_config *c) {
    c->parallel_residual = true;
    return td_config_opt_bool(r, "use_parallel_residual", &c->parallel_residual);
}

static td_status finish_stablelm(const td_config_reader *r, td_model_config *c) {
    td_status rc;
    bool qkv_bias = false;
    if ((rc = td_config_refuse_true(r, "qk_layernorm")) != TD_OK ||
        (rc = td_config_opt_bool(r, "use_qkv_bias", &qkv_bias)) != TD_OK ||
        (rc = td_config_opt_bool(r, "use_parallel_residual", &c->parallel_residual)) != TD_OK)
        return rc;
    for (int32_t i = 0; i < c->n_layers; i++)
        c->layers[i].mixer.attention.qkv_bias = qkv_bias;
    c->shared_norm = c->parallel_residual;
    return TD_OK;
}

static td_status finish_granite(const td_config_reader *r, td_model_config *c) {
    td_status rc;
    float scale = 1;
    if ((rc = td_config_opt_float(r, "embedding_multiplier", 1e-6, 1e6, &c->embed_scale)) !=
            TD_OK ||
        (rc = td_config_opt_float(r, "residual_multiplier", 1e-6, 1e6, &c->residual_scale)) !=
            TD_OK ||
        (rc = td_config_opt_float(r, "attention_multiplier", 1e-6, 1e6, &scale)) != TD_OK)
        return rc;
    set_scale(c, scale);
    return td_config_opt_float(r, "logits_scaling", 1e-6, 1e6, &c->logits_divisor);
}

/* Gives the chosen layers such experts. e.n_used is the default of its key, which is read only
 * when a layer has some. */
static td_status set_experts(const td_config_reader *r, td_experts e, const bool *chosen,
                             td_model_config *c) {
    int32_t n = 0;
    for (int32_t i = 0; i < c->n_layers; i++)
        n += chosen[i];
    if (!n)
        return TD_OK;
    td_status rc = td_config_opt_i32(r, "num_experts_per_tok", 1, 4096, &e.n_used);
    if (rc != TD_OK)
        return rc;
    if (e.n_used > e.n_experts)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: num_experts_per_tok (%d) is above the number of experts (%d)",
                            r->path, e.n_used, e.n_experts);
    for (int32_t i = 0; i < c->n_layers; i++)
        if (chosen[i])
            c->layers[i].ffn = (td_ffn){.kind = TD_FFN_EXPERTS, .experts = e};
    return TD_OK;
}

static td_status finish_qwen3_moe(const td_config_reader *r, td_model_config *c) {
    int32_t step = 1;
    td_experts e = {.n_experts = 128, .n_used = 8, .n_ffn = 768, .act = c->layers[0].ffn.dense.act};
    bool chosen[TD_MAX_LAYERS];
    td_status rc;
    if ((rc = td_config_opt_i32(r, "decoder_sparse_step", 1, INT32_MAX, &step)) != TD_OK ||
        (rc = td_config_opt_i32(r, "num_experts", 0, MAX_EXPERTS, &e.n_experts)) != TD_OK ||
        (rc = td_config_opt_i32(r, "num_local_experts", 0, MAX_EXPERTS, &e.n_experts)) != TD_OK ||
        (rc = td_config_opt_i32(r, "moe_intermediate_size", 1, 1 << 22, &e.n_ffn)) != TD_OK ||
        (rc = td_config_opt_bool(r, "norm_topk_prob", &e.normalise)) != TD_OK)
        return rc;
    for (int32_t i = 0; i < c->n_layers; i++)
        chosen[i] = e.n_experts > 0 && (i + 1) % step == 0;
    if (!td_json_has(r->root, "mlp_only_layers"))
        return set_experts(r, e, chosen, c);
    const json_t *list = json_object_get(r->root, "mlp_only_layers"), *v;
    size_t i;
    if (!json_is_array(list))
        return td_error_set(r->err, TD_E_MODEL, "%s: \"mlp_only_layers\" must be a list of layers",
                            r->path);
    json_array_foreach((json_t *)list, i, v) {
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: \"mlp_only_layers\" must be a list of layers, but entry %zu "
                                "is none",
                                r->path, i);
        if (json_integer_value(v) < c->n_layers)
            chosen[json_integer_value(v)] = false;
    }
    return set_experts(r, e, chosen, c);
}

static td_status finish_mixtral(const td_config_reader *r, td_model_config *c) {
    const td_dense *d = &c->layers[0].ffn.dense;
    td_experts e = {
        .n_experts = 8, .n_used = 2, .n_ffn = d->n_ffn, .act = d->act, .normalise = true};
    bool chosen[TD_MAX_LAYERS];
    memset(chosen, true, sizeof chosen);
    td_status rc = td_config_opt_i32(r, "num_local_experts", 1, MAX_EXPERTS, &e.n_experts);
    return rc == TD_OK ? set_experts(r, e, chosen, c) : rc;
}

/* --- the table -------------------------------------------------------------------------------- */

static const td_family families[] = {
    {.architecture = "LlamaForCausalLM",
     .bare = "LlamaModel",
     .model_type = "llama",
     LLAMA_NAMES,
     .default_positions = 2048,
     .attention_bias = true,
     .mlp_bias = true,
     .rope = TD_ROPE_RULE_ONE},

    {.architecture = "MistralForCausalLM",
     .bare = "MistralModel",
     .model_type = "mistral",
     LLAMA_NAMES,
     .default_kv_heads = 8,
     .default_positions = 131072,
     .default_window = 4096,
     .window = TD_WINDOW_ALL,
     .rope = TD_ROPE_RULE_ONE},

    {.architecture = "Qwen2ForCausalLM",
     .bare = "Qwen2Model",
     .model_type = "qwen2",
     LLAMA_NAMES,
     .default_kv_heads = 32,
     .default_positions = 32768,
     .default_window = 4096,
     .qkv_bias = true,
     .window = TD_WINDOW_SWITCHED,
     .rope = TD_ROPE_RULE_ONE},

    {.architecture = "Qwen3ForCausalLM",
     .bare = "Qwen3Model",
     .model_type = "qwen3",
     LLAMA_NAMES,
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .default_positions = 32768,
     .default_window = 4096,
     .attention_bias = true,
     .qk_norm = TD_QK_NORM_HEAD,
     .window = TD_WINDOW_SWITCHED,
     .rope = TD_ROPE_RULE_ONE},

    {.architecture = "Qwen3MoeForCausalLM",
     .bare = "Qwen3MoeModel",
     .model_type = "qwen3_moe",
     LLAMA_MODEL,
     .layer_names = {PRE_NORMS, SPLIT_ATTENTION, SPLIT_MLP, [TD_LT_ROUTER] = "mlp.gate.weight"},
     .expert_names = {[TD_ET_GATE] = "mlp.experts.#.gate_proj.weight",
                      [TD_ET_UP] = "mlp.experts.#.up_proj.weight",
                      [TD_ET_DOWN] = "mlp.experts.#.down_proj.weight"},
     .fused_experts = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
     .default_kv_heads = 4,
     .default_positions = 32768,
     .default_window = 4096,
     .attention_bias = true,
     .qk_norm = TD_QK_NORM_HEAD,
     .window = TD_WINDOW_USED,
     .rope = TD_ROPE_RULE_ONE,
     .has_experts = true,
     .finish = finish_qwen3_moe},

    {.architecture = "MixtralForCausalLM",
     .bare = "MixtralModel",
     .model_type = "mixtral",
     LLAMA_MODEL,
     .layer_names = {PRE_NORMS, SPLIT_ATTENTION, [TD_LT_ROUTER] = "block_sparse_moe.gate.weight"},
     .expert_names = {[TD_ET_GATE] = "block_sparse_moe.experts.#.w1.weight",
                      [TD_ET_UP] = "block_sparse_moe.experts.#.w3.weight",
                      [TD_ET_DOWN] = "block_sparse_moe.experts.#.w2.weight"},
     .fused_experts = {"block_sparse_moe.experts.gate_up_proj",
                       "block_sparse_moe.experts.down_proj"},
     .renamed = {"block_sparse_moe.", "mlp."},
     .default_kv_heads = 8,
     .default_positions = 131072,
     .default_eps = 1e-5,
     .default_theta = 1e6,
     .window = TD_WINDOW_ALL,
     .rope = TD_ROPE_RULE_ONE,
     .has_experts = true,
     .finish = finish_mixtral},

    {.architecture = "GemmaForCausalLM",
     .bare = "GemmaModel",
     .model_type = "gemma",
     LLAMA_NAMES,
     .default_kv_heads = 16,
     .default_head_dim = 256,
     .default_positions = 8192,
     .default_act = "gelu_pytorch_tanh",
     .gelu_means_tanh = true,
     .default_tied = true,
     .attention_bias = true,
     .rope = TD_ROPE_RULE_ONE,
     .norm_plus_one = true,
     .finish = finish_gemma},

    {.architecture = "Gemma2ForCausalLM",
     .bare = "Gemma2Model",
     .model_type = "gemma2",
     SANDWICH_NAMES,
     .key_act = "hidden_activation",
     .default_kv_heads = 4,
     .default_head_dim = 256,
     .default_positions = 8192,
     .default_window = 4096,
     .default_window_pattern = 2,
     .default_act = "gelu_pytorch_tanh",
     .default_tied = true,
     .attention_bias = true,
     .window = TD_WINDOW_PATTERN,
     .rope = TD_ROPE_RULE_ONE,
     .norm_plus_one = true,
     .post_norm = true,
     .finish = finish_gemma2},

    {.architecture = "Gemma3ForCausalLM",
     .bare = "Gemma3TextModel",
     .model_type = "gemma3_text",
     SANDWICH_NAMES,
     .key_act = "hidden_activation",
     .default_kv_heads = 4,
     .default_head_dim = 256,
     .default_positions = 131072,
     .default_window = 4096,
     .default_window_pattern = 6,
     .default_theta = 1e6,
     .default_act = "gelu_pytorch_tanh",
     .default_tied = true,
     .attention_bias = true,
     .qk_norm = TD_QK_NORM_HEAD,
     .window = TD_WINDOW_PATTERN,
     .rope = TD_ROPE_RULE_BY_WINDOW,
     .norm_plus_one = true,
     .post_norm = true,
     .finish = finish_gemma3},

    {.architecture = "Phi3ForCausalLM",
     .bare = "Phi3Model",
     .model_type = "phi3",
     LLAMA_MODEL,
     .layer_names =
         {PRE_NORMS, [TD_LT_QKV] = "self_attn.qkv_proj.weight",
          [TD_LT_O] = "self_attn.o_proj.weight", [TD_LT_GATE_UP] = "mlp.gate_up_proj.weight",
          [TD_LT_DOWN] = "mlp.down_proj.weight"},
     .default_positions = 4096,
     .default_eps = 1e-5,
     .partial_rotary = true,
     .window = TD_WINDOW_ALL,
     .rope = TD_ROPE_RULE_ONE,
     .longrope_only = true},

    {.architecture = "GPT2LMHeadModel",
     .bare = "GPT2Model",
     .model_type = "gpt2",
     .prefix = "transformer.",
     .layer = "h.#.",
     .model_names = {[TD_MT_EMBED] = "wte.weight",
                     [TD_MT_POSITIONS] = "wpe.weight",
                     [TD_MT_FINAL_NORM] = "ln_f.weight",
                     [TD_MT_FINAL_NORM_BIAS] = "ln_f.bias",
                     [TD_MT_LM_HEAD] = "lm_head.weight"},
     .layer_names = {[TD_LT_ATTN_NORM] = "ln_1.weight",
                     [TD_LT_ATTN_NORM_BIAS] = "ln_1.bias",
                     [TD_LT_QKV] = "attn.c_attn.weight",
                     [TD_LT_QKV_BIAS] = "attn.c_attn.bias",
                     [TD_LT_O] = "attn.c_proj.weight",
                     [TD_LT_O_BIAS] = "attn.c_proj.bias",
                     [TD_LT_FFN_NORM] = "ln_2.weight",
                     [TD_LT_FFN_NORM_BIAS] = "ln_2.bias",
                     [TD_LT_UP] = "mlp.c_fc.weight",
                     [TD_LT_UP_BIAS] = "mlp.c_fc.bias",
                     [TD_LT_DOWN] = "mlp.c_proj.weight",
                     [TD_LT_DOWN_BIAS] = "mlp.c_proj.bias"},
     .ignored = {".attn.bias", ".attn.masked_bias"},
     .transposed = true,
     .key_layers = "n_layer",
     .key_hidden = "n_embd",
     .key_ffn = "n_inner",
     .key_heads = "n_head",
     .key_positions = "n_positions",
     .key_eps = "layer_norm_epsilon",
     .key_act = "activation_function",
     .ffn_is_4x = true,
     .default_positions = 1024,
     .default_eps = 1e-5,
     .default_act = "gelu_new",
     .default_tied = true,
     .fixed_heads = true,
     .norm_kind = TD_NORM_LAYER,
     .norm_bias = true,
     .not_gated = true,
     .qkv_bias = true,
     .o_bias = true,
     .mlp_always_bias = true,
     .learned_positions = true,
     .finish = finish_gpt2},

    {.architecture = "GPTNeoXForCausalLM",
     .bare = "GPTNeoXModel",
     .model_type = "gpt_neox",
     .prefix = "gpt_neox.",
     .layer = "layers.#.",
     .model_names = {[TD_MT_EMBED] = "embed_in.weight",
                     [TD_MT_FINAL_NORM] = "final_layer_norm.weight",
                     [TD_MT_FINAL_NORM_BIAS] = "final_layer_norm.bias",
                     [TD_MT_LM_HEAD] = "embed_out.weight"},
     .layer_names =
         {PRE_NORMS, [TD_LT_QKV] = "attention.query_key_value.weight",
          [TD_LT_QKV_BIAS] = "attention.query_key_value.bias", [TD_LT_O] = "attention.dense.weight",
          [TD_LT_O_BIAS] = "attention.dense.bias", [TD_LT_UP] = "mlp.dense_h_to_4h.weight",
          [TD_LT_UP_BIAS] = "mlp.dense_h_to_4h.bias", [TD_LT_DOWN] = "mlp.dense_4h_to_h.weight",
          [TD_LT_DOWN_BIAS] = "mlp.dense_4h_to_h.bias"},
     .ignored = {".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"},
     .qkv_by_head = true,
     .key_eps = "layer_norm_eps",
     .key_theta = "rotary_emb_base",
     .key_partial = "rotary_pct",
     .default_positions = 2048,
     .default_eps = 1e-5,
     .default_partial = 0.25,
     .default_act = "gelu",
     .fixed_heads = true,
     .partial_rotary = true,
     .attention_bias = true,
     .default_attention_bias = true,
     .rope = TD_ROPE_RULE_ONE,
     .norm_kind = TD_NORM_LAYER,
     .norm_bias = true,
     .not_gated = true,
     .mlp_always_bias = true,
     .finish = finish_neox},

    {.architecture = "Olmo2ForCausalLM",
     .bare = "Olmo2Model",
     .model_type = "olmo2",
     LLAMA_MODEL,
     .layer_names = {SPLIT_ATTENTION,
                     SPLIT_MLP, [TD_LT_POST_ATTN_NORM] = "post_attention_layernorm.weight",
                     [TD_LT_POST_FFN_NORM] = "post_feedforward_layernorm.weight"},
     .default_positions = 2048,
     .default_eps = 1e-5,
     .attention_bias = true,
     .qk_norm = TD_QK_NORM_FULL,
     .rope = TD_ROPE_RULE_ONE,
     .post_norm = true,
     .no_pre_norm = true},

    {.architecture = "SmolLM3ForCausalLM",
     .bare = "SmolLM3Model",
     .model_type = "smollm3",
     LLAMA_NAMES,
     .default_kv_heads = 4,
     .default_positions = 32768,
     .default_theta = 2e6,
     .default_tied = true,
     .attention_bias = true,
     .mlp_bias = true,
     .window = TD_WINDOW_NO_ROPE,
     .rope = TD_ROPE_RULE_LISTED},

    {.architecture = "GraniteForCausalLM",
     .bare = "GraniteModel",
     .model_type = "granite",
     LLAMA_NAMES,
     .default_positions = 2048,
     .attention_bias = true,
     .mlp_bias = true,
     .rope = TD_ROPE_RULE_ONE,
     .finish = finish_granite},

    {.architecture = "StableLmForCausalLM",
     .bare = "StableLmModel",
     .model_type = "stablelm",
     LLAMA_NAMES,
     .key_eps = "layer_norm_eps",
     .default_kv_heads = 32,
     .default_positions = 4096,
     .default_eps = 1e-5,
     .default_partial = 0.25,
     .partial_rotary = true,
     .rope = TD_ROPE_RULE_ONE,
     .norm_kind = TD_NORM_LAYER,
     .norm_bias = true,
     .finish = finish_stablelm},
};

const td_family *td_family_find(const char *architecture) {
    for (size_t i = 0; i < TD_ARRAY_LEN(families); i++)
        if (!strcmp(architecture, families[i].architecture) ||
            !strcmp(architecture, families[i].bare))
            return &families[i];
    return NULL;
}

const td_family *td_family_find_type(const char *model_type) {
    for (size_t i = 0; i < TD_ARRAY_LEN(families); i++)
        if (!strcmp(model_type, families[i].model_type))
            return &families[i];
    return NULL;
}

void td_family_list(char *buf, size_t buf_size) {
    size_t at = 0;
    for (size_t i = 0; i < TD_ARRAY_LEN(families) && at < buf_size; i++)
        at += (size_t)snprintf(buf + at, buf_size - at, "%s%s",
                               i == 0                            ? ""
                               : i + 1 == TD_ARRAY_LEN(families) ? " and "
                                                                 : ", ",
                               families[i].architecture);
}
