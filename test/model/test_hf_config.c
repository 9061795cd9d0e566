/* config.json: defaults per architecture, rope forms, windows, and what is refused by name. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"
#include "tdgen/model.h"
#include "tdgen/util.h"

#define SIZES                                                                                      \
    "\"num_hidden_layers\":4,\"hidden_size\":64,\"intermediate_size\":96,"                         \
    "\"num_attention_heads\":32,\"vocab_size\":100"
#define ARCH(name) "\"architectures\":[\"" name "ForCausalLM\"],"
#define LLAMA "{" ARCH("Llama") SIZES

static td_status load(const char *json, td_model_config *c, td_error *e) {
    char *dir = fx_temp_dir();
    fx_write(dir, "config.json", json, strlen(json));
    return td_model_config_load(dir, c, e);
}

static td_model_config must_load(const char *json) {
    td_model_config c;
    td_error e;
    cr_assert_eq(load(json, &c, &e), TD_OK, "%s: %s", json, e.text);
    return c;
}

Test(hf_config, defaults_follow_the_architecture) {
    td_model_config c = must_load(LLAMA "}");
    cr_expect_eq(c.n_kv_heads, 32);
    cr_expect_eq(c.head_dim, 2);
    cr_expect_eq(c.max_positions, 2048);
    cr_expect_float_eq(c.rms_eps, 1e-6f, 1e-12f);
    cr_expect_eq(c.rope_theta, 10000.0);
    cr_expect_not(c.tied_embeddings);
    cr_expect_eq(c.weight_dtype, TD_F32);
    cr_expect_eq(c.bos_id, -1);
    cr_expect_eq(c.window, 0);

    c = must_load("{" ARCH("Mistral") SIZES "}");
    cr_expect_eq(c.n_kv_heads, 8);
    cr_expect_eq(c.window, 4096);
    cr_expect_eq(c.window_first_layer, 0);
    c = must_load("{" ARCH("Mistral") SIZES ",\"sliding_window\":null,"
                                            "\"num_key_value_heads\":null}");
    cr_expect_eq(c.window, 0);
    cr_expect_eq(c.n_kv_heads, 32);

    c = must_load("{" ARCH("Qwen2") SIZES ",\"num_key_value_heads\":4}");
    cr_expect(c.qkv_bias && !c.o_bias && !c.qk_norm);
    cr_expect_eq(c.window, 0);

    c = must_load("{" ARCH("Qwen3") SIZES "}");
    cr_expect_eq(c.head_dim, 128);
    cr_expect(c.qk_norm && !c.qkv_bias);
}

Test(hf_config, biases_only_where_the_architecture_reads_the_key) {
    td_model_config c =
        must_load("{" ARCH("Mistral") SIZES ",\"attention_bias\":true,\"mlp_bias\":true}");
    cr_expect(!c.qkv_bias && !c.o_bias && !c.mlp_bias);
    c = must_load("{" ARCH("Qwen2") SIZES ",\"attention_bias\":true,\"mlp_bias\":true}");
    cr_expect(c.qkv_bias && !c.o_bias && !c.mlp_bias);
}

Test(hf_config, windows) {
    td_model_config c =
        must_load("{" ARCH("Qwen2") SIZES ",\"use_sliding_window\":true,"
                                          "\"sliding_window\":16,\"max_window_layers\":2}");
    cr_expect_eq(c.window, 16);
    cr_expect_eq(c.window_first_layer, 2);
    c = must_load("{" ARCH("Qwen2") SIZES ",\"use_sliding_window\":true,\"sliding_window\":16}");
    cr_expect_eq(c.window, 0); /* max_window_layers is 28 */
    c = must_load("{" ARCH("Qwen3") SIZES
                  ",\"use_sliding_window\":true,\"sliding_window\":16,"
                  "\"max_window_layers\":4,\"layer_types\":[\"full_attention\","
                  "\"sliding_attention\",\"sliding_attention\",\"sliding_attention\"]}");
    cr_expect_eq(c.window, 16);
    cr_expect_eq(c.window_first_layer, 1);
}

Test(hf_config, rope_forms) {
    td_model_config c = must_load(LLAMA ",\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"linear\","
                                        "\"factor\":4}}");
    cr_expect_eq(c.rope_type, TD_ROPE_LINEAR);
    cr_expect_eq(c.rope_factor, 4.0);
    cr_expect_eq(c.rope_theta, 5e5);
    /* transformers 5 */
    c = must_load(LLAMA ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":1e6,"
                        "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
                        "\"original_max_position_embeddings\":64}}");
    cr_expect_eq(c.rope_type, TD_ROPE_LLAMA3);
    cr_expect_eq(c.rope_theta, 1e6);
    cr_expect_eq(c.rope_original_positions, 64);
    c = must_load(LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7}}");
    cr_expect_eq(c.rope_type, TD_ROPE_DEFAULT);
    cr_expect_eq(c.rope_theta, 7.0);
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

Test(hf_config, refuses_by_name) {
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"[]", "expected an object"},
        {"{", "not valid JSON"},
        {"{\"model_type\":\"gpt2\"}", "(model_type is \"gpt2\")"},
        {"{\"architectures\":[\"GPT2LMHeadModel\"]}",
         "the architecture \"GPT2LMHeadModel\" is not supported; supported are LlamaForCausalLM"},
        {"{\"architectures\":[\"Qwen3MoeForCausalLM\"]}", "\"Qwen3MoeForCausalLM\" is not"},
        {LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}}",
         "quantised (quantization_config: method \"gptq\")"},
        {LLAMA ",\"num_local_experts\":8}", "mixture of experts (num_local_experts is 8)"},
        {LLAMA ",\"attention_bias\":true}", "attention_bias is true: a bias on o_proj is not"},
        {LLAMA ",\"mlp_bias\":true}", "mlp_bias is true: a bias on down_proj is not"},
        {"{" ARCH("Qwen3") SIZES ",\"attention_bias\":true}", "attention_bias is true"},
        {LLAMA ",\"hidden_act\":\"gelu\"}", "hidden_act \"gelu\" is not supported"},
        {LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}}",
         "the rope type \"yarn\" is not supported; default, linear and llama3 are"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}}", "rope type \"dynamic\""},
        {LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "rope_scaling: the key \"factor\" is"},
        {LLAMA ",\"rope_scaling\":3}", "rope_scaling must be an object, but is an integer"},
        {LLAMA ",\"rope_parameters\":{\"full_attention\":{}}}",
         "parameters per layer type (\"full_attention\") are not supported"},
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
        {"{" ARCH("Qwen3") SIZES ",\"layer_types\":[\"sliding_attention\",\"full_attention\","
                                 "\"full_attention\",\"full_attention\"]}",
         "alternates between sliding and full attention (layer 1)"},
        {"{" ARCH("Qwen3") SIZES ",\"layer_types\":[\"linear_attention\",\"full_attention\","
                                 "\"full_attention\",\"full_attention\"]}",
         "the layer type \"linear_attention\" is not supported"},
        {"{" ARCH("Llama") "\"num_hidden_layers\":4}", "\"hidden_size\" is missing"},
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
