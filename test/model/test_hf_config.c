/* config.json: defaults per architecture, rope forms, windows, and what is refused by name. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"
#include "model/families.h"
#include "model/model.h"
#include "base/memory.h"

#define SIZES                                                                                      \
    "\"num_hidden_layers\":4,\"hidden_size\":64,\"intermediate_size\":96,"                         \
    "\"num_attention_heads\":32,\"vocab_size\":100"
#define ARCH(name) "\"architectures\":[\"" name "ForCausalLM\"],"
#define LLAMA "{" ARCH("Llama") SIZES

static td_status load(const char *json, td_model_config *c, td_error *e) {
    char *dir = test_temp_dir();
    test_write_file(dir, "config.json", json, strlen(json));
    return td_model_config_load(dir, c, e);
}

static td_model_config must_load(const char *json) {
    td_model_config c;
    td_error e;
    cr_assert_eq(load(json, &c, &e), TD_OK, "%s: %s", json, e.text);
    return c;
}

/* What most families have alike in all layers; the tests of windows, ropes and experts look at
 * each. */
static const td_attention *attention(const td_model_config *c, int32_t layer) {
    cr_assert_eq(c->layers[layer].mixer.kind, TD_MIXER_ATTENTION);
    return &c->layers[layer].mixer.attention;
}

static const td_dense *dense(const td_model_config *c, int32_t layer) {
    cr_assert_eq(c->layers[layer].ffn.kind, TD_FFN_DENSE);
    return &c->layers[layer].ffn.dense;
}

static bool windows_are(const td_model_config *c, const int32_t *want) {
    for (int32_t i = 0; i < 4; i++)
        if (attention(c, i)->window != want[i])
            return false;
    return c->n_layers == 4;
}

static bool has_experts(const td_model_config *c, int32_t layer) {
    return c->layers[layer].ffn.kind == TD_FFN_EXPERTS;
}

Test(hf_config, defaults_follow_the_architecture) {
    td_model_config c = must_load(LLAMA "}");
    cr_expect_eq(attention(&c, 3)->n_kv_heads, 32);
    cr_expect_eq(attention(&c, 3)->head_dim, 2);
    cr_expect_eq(c.max_positions, 2048);
    cr_expect_float_eq(c.norm_eps, 1e-6f, 1e-12f);
    cr_expect_eq(c.rope[0].theta, 10000.0);
    cr_expect_not(c.tied_embeddings);
    cr_expect_eq(c.weight_dtype, TD_F32);
    cr_expect_eq(c.bos_id, -1);
    cr_expect_eq(attention(&c, 3)->window, 0);

    c = must_load("{" ARCH("Mistral") SIZES "}");
    cr_expect_eq(attention(&c, 3)->n_kv_heads, 8);
    cr_expect(windows_are(&c, (int32_t[]){4096, 4096, 4096, 4096}));
    c = must_load("{" ARCH("Mistral") SIZES ",\"sliding_window\":null,"
                                            "\"num_key_value_heads\":null}");
    cr_expect(windows_are(&c, (int32_t[]){0, 0, 0, 0}));
    cr_expect_eq(attention(&c, 3)->n_kv_heads, 32);

    c = must_load("{" ARCH("Qwen2") SIZES ",\"num_key_value_heads\":4}");
    cr_expect(attention(&c, 3)->qkv_bias && !attention(&c, 3)->o_bias &&
              !attention(&c, 3)->qk_norm);
    cr_expect(windows_are(&c, (int32_t[]){0, 0, 0, 0}));

    c = must_load("{" ARCH("Qwen3") SIZES "}");
    cr_expect_eq(attention(&c, 3)->head_dim, 128);
    cr_expect(attention(&c, 3)->qk_norm == TD_QK_NORM_HEAD && !attention(&c, 3)->qkv_bias);
}

Test(hf_config, constants_of_the_families) {
    td_model_config c = must_load("{" ARCH("Gemma") SIZES "}");
    cr_expect_eq(attention(&c, 3)->n_kv_heads, 16);
    cr_expect_eq(attention(&c, 3)->head_dim, 256);
    cr_expect_eq(c.embed_scale, 8.0f);
    cr_expect(c.norm_plus_one && c.tied_embeddings && dense(&c, 3)->act == TD_ACT_GELU_TANH);
    cr_expect(!c.post_norm && c.logits_softcap == 0);
    c = must_load("{" ARCH("Gemma") SIZES ",\"hidden_act\":\"gelu\"}");
    cr_expect_eq(dense(&c, 3)->act, TD_ACT_GELU_TANH);

    c = must_load("{" ARCH("Gemma2") SIZES ",\"query_pre_attn_scalar\":64}");
    cr_expect(c.post_norm && c.pre_norm);
    cr_expect_eq(c.logits_softcap, 30.0f);
    cr_expect_eq(attention(&c, 3)->softcap, 50.0f);
    cr_expect_eq(attention(&c, 3)->scale, 0.125f);
    c = must_load("{" ARCH("Gemma2") SIZES ",\"final_logit_softcapping\":null,"
                                           "\"attn_logit_softcapping\":20}");
    cr_expect_eq(c.logits_softcap, 0.0f);
    cr_expect_eq(attention(&c, 3)->softcap, 20.0f);

    c = must_load("{" ARCH("Gemma3") SIZES
                  ",\"sliding_window_pattern\":2,"
                  "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8}}");
    cr_expect_eq(c.n_ropes, 2);
    cr_expect(c.rope[0].theta == 1e6 && c.rope[0].type == TD_ROPE_LINEAR);
    cr_expect(c.rope[1].theta == 1e4 && c.rope[1].type == TD_ROPE_DEFAULT);
    cr_expect(attention(&c, 0)->rope == 1 && attention(&c, 1)->rope == 0);
    c = must_load("{" ARCH("Gemma3") SIZES
                  ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":5e5},"
                  "\"sliding_attention\":{\"rope_theta\":77}}}");
    cr_expect(c.rope[0].theta == 5e5 && c.rope[1].theta == 77);

    c = must_load("{\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":4,\"n_embd\":64,"
                  "\"n_head\":4,\"n_inner\":null,\"vocab_size\":100}");
    cr_expect_eq(dense(&c, 3)->n_ffn, 256);
    cr_expect_eq(c.max_positions, 1024);
    cr_expect(c.learned_positions && c.n_ropes == 0 && attention(&c, 0)->rope == -1 &&
              c.tied_embeddings);
    cr_expect(c.norm_kind == TD_NORM_LAYER && !dense(&c, 3)->gated && dense(&c, 3)->bias &&
              attention(&c, 3)->o_bias);

    /* A top-level original length is not for nested parameters, an empty rope_scaling for nothing.
     */
    c = must_load("{" ARCH("Gemma3") SIZES
                  ",\"original_max_position_embeddings\":7,\"rope_scaling\":{},"
                  "\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"yarn\",\"factor\":2,"
                  "\"original_max_position_embeddings\":64}}}");
    cr_expect(c.rope[0].type == TD_ROPE_YARN && c.rope[0].original_positions == 64);
    /* Folders of a base model name no class. */
    c = must_load("{\"model_type\":\"qwen3\"," SIZES "}");
    cr_expect_str_eq(c.architecture, "Qwen3ForCausalLM");

    c = must_load("{" ARCH("GPTNeoX") "\"num_hidden_layers\":4,\"hidden_size\":64,"
                                      "\"intermediate_size\":96,\"num_attention_heads\":2,"
                                      "\"vocab_size\":100,\"rotary_emb_base\":500}");
    cr_expect_eq(c.rope[0].rotary_dim, 8);
    cr_expect_eq(c.rope[0].theta, 500.0);
    cr_expect(c.parallel_residual && dense(&c, 3)->act == TD_ACT_GELU &&
              attention(&c, 3)->qkv_bias);

    c = must_load("{" ARCH("Olmo2") SIZES "}");
    cr_expect(!c.pre_norm && c.post_norm && attention(&c, 3)->qk_norm == TD_QK_NORM_FULL);
    c = must_load("{" ARCH("SmolLM3") SIZES "}");
    cr_expect(attention(&c, 2)->rope == 0 && attention(&c, 3)->rope == -1 &&
              c.rope[0].theta == 2e6);
    c = must_load("{" ARCH("Granite") SIZES ",\"embedding_multiplier\":12,\"logits_scaling\":8,"
                                            "\"residual_multiplier\":0.25}");
    cr_expect(c.embed_scale == 12 && c.logits_divisor == 8 && c.residual_scale == 0.25f);
    cr_expect_eq(attention(&c, 3)->scale, 1.0f);
    c = must_load("{" ARCH("StableLm") SIZES ",\"use_parallel_residual\":true,"
                                             "\"partial_rotary_factor\":1}");
    cr_expect(c.shared_norm && c.parallel_residual && c.rope[0].rotary_dim == 2);
}

Test(hf_config, experts) {
    td_model_config c = must_load("{" ARCH("Qwen3Moe") SIZES
                                  ",\"decoder_sparse_step\":2,\"num_experts\":8,"
                                  "\"moe_intermediate_size\":10,\"num_experts_per_tok\":3,"
                                  "\"mlp_only_layers\":[3]}");
    cr_expect(!has_experts(&c, 0) && has_experts(&c, 1) && !has_experts(&c, 2) &&
              !has_experts(&c, 3));
    const td_experts *e = &c.layers[1].ffn.experts;
    cr_expect(e->n_experts == 8 && e->n_used == 3 && e->n_ffn == 10);
    cr_expect_not(e->normalise);
    /* Three dense MLPs, and one of 8 experts with a router. */
    int64_t attention = 2 * 64 * 64 + 2 * 64 * 8 + 2 * 2;
    cr_expect_eq(c.n_params, 4 * (attention + 128) + 3 * (3 * 64 * 96) + 8 * 64 + 8 * 3 * 64 * 10 +
                                 2 * 6400 + 64);
    c = must_load("{" ARCH("Mixtral") SIZES "}");
    cr_expect(has_experts(&c, 0) && has_experts(&c, 3) && c.rope[0].theta == 1e6);
    e = &c.layers[3].ffn.experts;
    cr_expect(e->n_experts == 8 && e->n_used == 2 && e->n_ffn == 96 && e->normalise);
    c = must_load("{" ARCH("Qwen3Moe") SIZES ",\"num_experts\":0}");
    for (int32_t i = 0; i < 4; i++)
        cr_expect_eq(dense(&c, i)->n_ffn, 96);
}

Test(hf_config, quantised_to_fp8) {
    td_model_config c = must_load(LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\","
                                        "\"weight_block_size\":[128,64]}}");
    cr_expect(c.fp8 && c.fp8_block[0] == 128 && c.fp8_block[1] == 64);
    cr_expect_str_eq(c.fp8_scale_suffix, "_scale_inv");
    c = must_load(LLAMA
                  ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
                  "\"format\":\"float-quantized\",\"config_groups\":{\"group_0\":{\"weights\":"
                  "{\"type\":\"float\",\"num_bits\":8,\"strategy\":\"channel\"}}}}}");
    cr_expect(c.fp8 && c.fp8_scale_first && c.fp8_block[0] == 0);
    cr_expect_str_eq(c.fp8_scale_suffix, "_scale");
}

Test(hf_config, biases_only_where_the_architecture_reads_the_key) {
    td_model_config c =
        must_load("{" ARCH("Mistral") SIZES ",\"attention_bias\":true,\"mlp_bias\":true}");
    cr_expect(!attention(&c, 3)->qkv_bias && !attention(&c, 3)->o_bias && !dense(&c, 3)->bias);
    c = must_load("{" ARCH("Qwen2") SIZES ",\"attention_bias\":true,\"mlp_bias\":true}");
    cr_expect(attention(&c, 3)->qkv_bias && !attention(&c, 3)->o_bias && !dense(&c, 3)->bias);
}

Test(hf_config, windows) {
    td_model_config c =
        must_load("{" ARCH("Qwen2") SIZES ",\"use_sliding_window\":true,"
                                          "\"sliding_window\":16,\"max_window_layers\":2}");
    cr_expect(windows_are(&c, (int32_t[]){0, 0, 16, 16}));
    c = must_load("{" ARCH("Qwen2") SIZES ",\"use_sliding_window\":true,\"sliding_window\":16}");
    cr_expect(windows_are(&c, (int32_t[]){0, 0, 0, 0})); /* max_window_layers is 28 */
    c = must_load("{" ARCH("Qwen3") SIZES
                  ",\"use_sliding_window\":true,\"sliding_window\":16,"
                  "\"max_window_layers\":4,\"layer_types\":[\"full_attention\","
                  "\"sliding_attention\",\"sliding_attention\",\"sliding_attention\"]}");
    cr_expect(windows_are(&c, (int32_t[]){0, 16, 16, 16}));
    c = must_load("{" ARCH("Qwen3") SIZES
                  ",\"use_sliding_window\":true,\"sliding_window\":16,"
                  "\"layer_types\":[\"sliding_attention\","
                  "\"full_attention\",\"sliding_attention\",\"full_attention\"]}");
    cr_expect(windows_are(&c, (int32_t[]){16, 0, 16, 0}));
    /* transformers reads the width only when the window is used. */
    c = must_load("{" ARCH("Qwen3Moe") SIZES ",\"sliding_window\":0}");
    cr_expect(windows_are(&c, (int32_t[]){0, 0, 0, 0}));
    c = must_load("{" ARCH("Qwen3Moe") SIZES ",\"use_sliding_window\":true}");
    cr_expect(windows_are(&c, (int32_t[]){4096, 4096, 4096, 4096}));
    c = must_load("{" ARCH("Gemma2") SIZES "}");
    cr_expect(windows_are(&c, (int32_t[]){4096, 0, 4096, 0}));
    c = must_load("{" ARCH("Gemma3") SIZES ",\"sliding_window\":9}");
    cr_expect(windows_are(&c, (int32_t[]){9, 9, 9, 9}));
    c = must_load("{" ARCH("Gemma3") SIZES ",\"sliding_window\":9,\"sliding_window_pattern\":3}");
    cr_expect(windows_are(&c, (int32_t[]){9, 9, 0, 9}));
    c = must_load("{" ARCH("SmolLM3") SIZES ",\"use_sliding_window\":true,\"sliding_window\":9,"
                                            "\"no_rope_layers\":[1,0,1,1]}");
    cr_expect(windows_are(&c, (int32_t[]){0, 9, 0, 0}));
}

Test(hf_config, rope_forms) {
    td_model_config c = must_load(LLAMA ",\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"linear\","
                                        "\"factor\":4}}");
    cr_expect_eq(c.rope[0].type, TD_ROPE_LINEAR);
    cr_expect_eq(c.rope[0].factor, 4.0);
    cr_expect_eq(c.rope[0].theta, 5e5);
    /* transformers 5 */
    c = must_load(LLAMA ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":1e6,"
                        "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
                        "\"original_max_position_embeddings\":64}}");
    cr_expect_eq(c.rope[0].type, TD_ROPE_LLAMA3);
    cr_expect_eq(c.rope[0].theta, 1e6);
    cr_expect_eq(c.rope[0].original_positions, 64);
    c = must_load(LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7}}");
    cr_expect_eq(c.rope[0].type, TD_ROPE_DEFAULT);
    cr_expect_eq(c.rope[0].theta, 7.0);
}

Test(hf_config, ids_dtype_and_parameter_count) {
    td_model_config c = must_load(LLAMA ",\"eos_token_id\":[7,8],\"bos_token_id\":3,"
                                        "\"dtype\":\"bfloat16\",\"tie_word_embeddings\":true}");
    cr_expect_eq(c.eos_id, 7);
    cr_expect_eq(c.bos_id, 3);
    cr_expect_eq(c.weight_dtype, TD_BF16);
    /* q, k, v, o: 4 * 64^2; gate, up, down: 3 * 64 * 96; two norms; table; final norm */
    cr_expect_eq(c.n_params, 4 * (4 * 4096 + 3 * 6144 + 128) + 6400 + 64);
    td_model_config d = must_load(LLAMA ",\"torch_dtype\":\"float16\"}");
    cr_expect_eq(d.weight_dtype, TD_F16);
    cr_expect_eq(d.n_params, c.n_params + 6400);
    cr_expect_neq(d.config_hash, c.config_hash);
}

/* What the published checkpoints of these sizes hold. */
Test(hf_config, parameters_of_published_models) {
#define DIMS(L, C, F, H, V)                                                                        \
    "\"num_hidden_layers\":" #L ",\"hidden_size\":" #C ",\"intermediate_size\":" #F                \
    ",\"num_attention_heads\":" #H ",\"vocab_size\":" #V
    static const struct {
        const char *json;
        int64_t n_params;
    } cases[] = {
        {"{\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":12,\"n_embd\":768,\"n_head\":12,"
         "\"vocab_size\":50257}",
         124439808},
        {"{" ARCH("GPTNeoX") DIMS(6, 512, 2048, 8, 50304) "}", 70426624},
        {"{" ARCH("Mixtral") DIMS(32, 4096, 14336, 32, 32000) "}", 46702792704},
        {"{" ARCH("Qwen3Moe") DIMS(48, 2048, 6144, 32, 151936) ",\"head_dim\":128}", 30532122624},
        {"{" ARCH("Phi3") DIMS(32, 3072, 8192, 32, 32064) "}", 3821079552},
        {"{" ARCH("Gemma") DIMS(18, 2048, 16384, 8, 256000) ",\"num_key_value_heads\":1}",
         2506172416},
        {"{" ARCH("Gemma2") DIMS(26, 2304, 9216, 8, 256000) "}", 2614341888},
        {"{" ARCH("Gemma3") DIMS(26, 1152, 6912, 4, 262144) ",\"num_key_value_heads\":1}",
         999885952},
        {"{" ARCH("SmolLM3") DIMS(36, 2048, 11008, 16, 128256) "}", 3075098624},
        {"{" ARCH("Llama") DIMS(32, 4096, 14336, 32, 128256) ",\"num_key_value_heads\":8}",
         8030261248},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_model_config c = must_load(cases[i].json);
        cr_expect_eq(c.n_params, cases[i].n_params, "%s: %lld", c.architecture,
                     (long long)c.n_params);
    }
}

/* Saved from the model without its head, under the name that transformers gives that class. */
Test(hf_config, bare_models) {
    static const struct {
        const char *bare, *type, *architecture;
    } cases[] = {
        {"LlamaModel", "llama", "LlamaForCausalLM"},
        {"MistralModel", "mistral", "MistralForCausalLM"},
        {"Qwen2Model", "qwen2", "Qwen2ForCausalLM"},
        {"Qwen3Model", "qwen3", "Qwen3ForCausalLM"},
        {"Qwen3MoeModel", "qwen3_moe", "Qwen3MoeForCausalLM"},
        {"MixtralModel", "mixtral", "MixtralForCausalLM"},
        {"GemmaModel", "gemma", "GemmaForCausalLM"},
        {"Gemma2Model", "gemma2", "Gemma2ForCausalLM"},
        {"Gemma3TextModel", "gemma3_text", "Gemma3ForCausalLM"},
        {"Phi3Model", "phi3", "Phi3ForCausalLM"},
        {"GPT2Model", "gpt2", "GPT2LMHeadModel"},
        {"GPTNeoXModel", "gpt_neox", "GPTNeoXForCausalLM"},
        {"Olmo2Model", "olmo2", "Olmo2ForCausalLM"},
        {"SmolLM3Model", "smollm3", "SmolLM3ForCausalLM"},
        {"GraniteModel", "granite", "GraniteForCausalLM"},
        {"StableLmModel", "stablelm", "StableLmForCausalLM"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        const td_family *f = td_family_find(cases[i].bare);
        cr_assert(f, "%s", cases[i].bare);
        cr_expect_str_eq(f->architecture, cases[i].architecture);
        cr_expect_str_eq(f->model_type, cases[i].type);
    }
    td_model_config c =
        must_load("{\"architectures\":[\"LlamaModel\"],\"model_type\":\"llama\"," SIZES "}");
    cr_expect_str_eq(c.architecture, "LlamaForCausalLM");
}

Test(hf_config, an_adapter_beside_the_model_is_refused) {
    char *dir = test_temp_dir();
    td_model_config c;
    td_error e = {0};
    test_write_file(dir, "config.json", LLAMA "}", strlen(LLAMA "}"));
    cr_expect_eq(td_model_config_load(dir, &c, &e), TD_OK, "%s", e.text);
    test_write_file(dir, "adapter_config.json", "{}", 2);
    cr_expect_eq(td_model_config_load(dir, &c, &e), TD_E_MODEL);
    cr_expect(strstr(e.text, "adapter_config.json: an adapter"), "%s", e.text);
}

Test(hf_config, refuses_by_name) {
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"[]", "expected an object"},
        {"{", "not valid JSON"},
        {"{}", "neither \"architectures\""},
        {"{\"model_type\":\"mamba\"}", "the model_type \"mamba\" is not supported"},
        {LLAMA ",\"model_type\":\"mistral\"}", "\"model_type\" is \"mistral\", but that of the "
                                               "architecture LlamaForCausalLM is \"llama\""},
        {"{" ARCH("Gemma3") SIZES ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8},"
                                  "\"rope_parameters\":{\"full_attention\":{}}}",
         "rope_scaling and rope_parameters are both there"},
        {"{" ARCH("Gemma3") SIZES ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":8}}",
         "\"rope_type\" is missing"},
        {"{" ARCH("Gemma3") SIZES
         ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"yarn\",\"factor\":2,"
         "\"original_max_position_embeddings\":64,\"truncate\":false}}}",
         "truncate"},
        {"{" ARCH("GPTNeoX") "\"num_hidden_layers\":4,\"hidden_size\":64,"
                             "\"intermediate_size\":96,\"num_attention_heads\":2,"
                             "\"vocab_size\":100,\"head_dim\":64}",
         "head_dim 64 contradicts"},
        {"{\"architectures\":[\"FalconForCausalLM\"]}",
         "the architecture \"FalconForCausalLM\" is not supported; supported are LlamaForCausalLM"},
        {"{\"architectures\":[\"Gemma3ForConditionalGeneration\"]}",
         "\"Gemma3ForConditionalGeneration\" is not"},
        {LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}}",
         "quantised (quantization_config: method \"gptq\")"},
        {LLAMA ",\"num_local_experts\":8}", "mixture of experts (num_local_experts is 8)"},
        {LLAMA ",\"hidden_act\":\"relu\"}", "hidden_act \"relu\" is not supported"},
        {"{" ARCH("Gemma2") SIZES ",\"hidden_activation\":\"quick_gelu\"}",
         "hidden_activation \"quick_gelu\" is not supported"},
        {"{" ARCH("Gemma") SIZES ",\"hidden_activation\":\"gelu\"}",
         "hidden_activation \"gelu\" is not supported"},
        {"{" ARCH("Gemma3") SIZES ",\"use_bidirectional_attention\":true}",
         "\"use_bidirectional_attention\" is true, which is not supported"},
        {"{" ARCH("Gemma3") SIZES ",\"attn_logit_softcapping\":50}",
         "attn_logit_softcapping is 50, which is not supported in Gemma3ForCausalLM"},
        {"{" ARCH("Gemma3") SIZES ",\"rope_parameters\":{\"rope_theta\":3}}",
         "one object each for full_attention and sliding_attention"},
        {"{" ARCH("Gemma3") SIZES ",\"rope_scaling\":{\"full_attention\":{}}}",
         "parameters per layer type belong into rope_parameters"},
        {"{" ARCH("StableLm") SIZES ",\"partial_rotary_factor\":1,\"qk_layernorm\":true}",
         "\"qk_layernorm\" is true"},
        {"{" ARCH("StableLm") SIZES "}", "the rotary dimension (0.25 of head_dim 2) is 0"},
        {"{\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":4,\"n_embd\":64,\"n_head\":4,"
         "\"vocab_size\":100,\"add_cross_attention\":true}",
         "\"add_cross_attention\" is true"},
        {"{\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":4,\"n_embd\":62,\"n_head\":4,"
         "\"vocab_size\":100}",
         "the hidden size (62) is no multiple of the number of heads (4)"},
        {"{" ARCH("Qwen3Moe") SIZES ",\"num_experts\":4}",
         "num_experts_per_tok (8) is above the number of experts (4)"},
        {"{" ARCH("Qwen3Moe") SIZES ",\"mlp_only_layers\":3}", "must be a list of layers"},
        {"{" ARCH("Qwen3Moe") SIZES ",\"mlp_only_layers\":[\"a\"]}", "entry 0 is none"},
        {"{" ARCH("SmolLM3") SIZES ",\"no_rope_layers\":[1]}",
         "\"no_rope_layers\" must be a list of 4 numbers"},
        {"{" ARCH("SmolLM3") SIZES ",\"no_rope_layers\":[1,1,1,\"x\"]}",
         "entry 3 of \"no_rope_layers\" must be 0 or 1"},
        {"{" ARCH("Granite") SIZES ",\"logits_scaling\":0}", "\"logits_scaling\" is 0"},
        {LLAMA ",\"quantization_config\":{}}", "method \"unnamed\""},
        {LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}}",
         "fmt other than e4m3"},
        {LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\",\"scale_fmt\":\"int8\"}}",
         "scale_fmt other than float and ue8m0"},
        {LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}}",
         "\"weight_block_size\" must be a list of two sizes"},
        {LLAMA ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
               "\"format\":\"pack-quantized\"}}",
         "format other than float-quantized"},
        {LLAMA ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
               "\"format\":\"float-quantized\",\"config_groups\":{\"g\":{\"weights\":"
               "{\"type\":\"int\",\"num_bits\":8}}}}}",
         "weights other than symmetric 8-bit floats"},
        {LLAMA ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
               "\"format\":\"float-quantized\",\"config_groups\":{\"g\":{\"weights\":"
               "{\"type\":\"float\",\"num_bits\":8,\"strategy\":\"group\"}}}}}",
         "a strategy other than tensor, channel, block"},
        {LLAMA ",\"rope_scaling\":{\"rope_type\":\"mrope\",\"factor\":4}}",
         "the rope type \"mrope\" is not supported; default, linear, dynamic, llama3, yarn and "
         "longrope are"},
        {"{" ARCH("Phi3") SIZES ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}",
         "the rope type \"linear\" is not supported in this architecture"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"factor\":4}}",
         "\"short_factor\" must be a list of 1 numbers"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"factor\":4,\"short_factor\":[1],"
               "\"long_factor\":[0]}}",
         "entry 0 of \"long_factor\" must be a number above 0"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\"}}", "rope_scaling: the key \"factor\" is"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "rope_scaling: the key \"factor\" is"},
        {LLAMA ",\"rope_scaling\":3}", "rope_scaling must be an object, but is an integer"},
        {LLAMA ",\"rope_parameters\":{\"full_attention\":{}}}",
         "parameters per layer type are not supported in LlamaForCausalLM"},
        {LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
               "\"high_freq_factor\":4}}",
         "high_freq_factor (4) must be above low_freq_factor (4)"},
        {LLAMA ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor 0.5 is not supported"},
        {LLAMA ",\"torch_dtype\":\"float64\"}", "torch_dtype \"float64\" is not supported"},
        {LLAMA ",\"num_key_value_heads\":5}", "is no multiple of num_key_value_heads (5)"},
        {LLAMA ",\"head_dim\":7}", "head_dim is 7, but it must be even"},
        {LLAMA ",\"head_dim\":4096}", "\"head_dim\" is 4096, expected 1 to 1024"},
        {LLAMA ",\"rms_norm_eps\":-1}", "\"rms_norm_eps\" is -1"},
        {LLAMA ",\"eos_token_id\":\"x\"}", "\"eos_token_id\" must be a token id"},
        {LLAMA ",\"tie_word_embeddings\":1}", "\"tie_word_embeddings\" must be true or false"},
        {LLAMA ",\"layer_types\":[\"sliding_attention\",\"sliding_attention\","
               "\"sliding_attention\",\"sliding_attention\"]}",
         "contradicts sliding_window"},
        {"{" ARCH("Qwen3") SIZES ",\"layer_types\":[\"linear_attention\",\"full_attention\","
                                 "\"full_attention\",\"full_attention\"]}",
         "the layer type \"linear_attention\" is not supported"},
        {"{" ARCH("Llama") "\"num_hidden_layers\":4}", "\"hidden_size\" is missing"},
        {"{" ARCH("Llama") "\"num_hidden_layers\":513}", "is 513, expected 1 to 512"},
        {"{" ARCH("Llama") "\"num_hidden_layers\":0}", "\"num_hidden_layers\" is 0"},
        {"{" ARCH("Llama") "\"num_hidden_layers\":\"4\"}", "must be an integer, but is a string"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_model_config c;
        td_error e = {0};
        cr_expect_eq(load(cases[i].json, &c, &e), TD_E_MODEL, "case %zu", i);
        cr_expect(strstr(e.text, cases[i].message), "case %zu: \"%s\" lacks \"%s\"", i, e.text,
                  cases[i].message);
        cr_expect(strstr(e.text, "config.json"), "case %zu does not name the file: %s", i, e.text);
    }
    td_model_config c;
    td_error e;
    cr_expect_eq(td_model_config_load("/nonexistent", &c, &e), TD_E_MODEL);
    cr_expect(strstr(e.text, "/nonexistent/config.json"), "%s", e.text);
}
