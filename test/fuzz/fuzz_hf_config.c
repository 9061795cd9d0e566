/* Loads mutated config.json files; what is accepted must give sizes that can be planned with.
 * Usage: fuzz_hf_config [iterations [seed]]. Run it under the sanitizers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mutate.h"
#include "model/model.h"
#include "base/memory.h"

static int layer_is_sane(const td_model_config *c, const td_layer *l) {
    const td_attention *a = &l->mixer.attention;
    const td_experts *e = &l->ffn.experts;
    const td_rope *r = a->rope >= 0 ? &c->rope[a->rope] : NULL;
    if (l->mixer.kind != TD_MIXER_ATTENTION || a->window < 0 || a->rope < -1 ||
        a->rope >= c->n_ropes || a->n_heads < 1 || a->n_kv_heads < 1 ||
        a->n_heads % a->n_kv_heads != 0 || a->head_dim < 2 || a->head_dim % 2 != 0 ||
        a->head_dim > 1024 || !(a->scale > 0) || a->softcap < 0)
        return 0;
    if (r && (r->rotary_dim < 2 || r->rotary_dim % 2 != 0 || r->rotary_dim > a->head_dim))
        return 0;
    if (l->ffn.kind == TD_FFN_DENSE)
        return l->ffn.dense.n_ffn >= 1;
    return l->ffn.kind == TD_FFN_EXPERTS && e->n_experts >= 1 && e->n_used >= 1 &&
           e->n_used <= e->n_experts && e->n_ffn >= 1;
}

static int is_sane(const td_model_config *c) {
    td_session_limits lim = {
        .max_tokens = 8192, .max_seqs = 8192, .max_rows = 8192, .n_slots = 2, .capture_rows = 256};
    const td_capture_spec spec = {.top_k = 8, .n_vocab = c->n_vocab, .n_valid = c->n_vocab};
    td_stage_memory m;
    td_stage_memory_estimate(c, TD_BF16, &lim, &spec, 0, c->n_layers + 2, &m);
    for (int32_t i = 0; i < c->n_layers; i++)
        if (!layer_is_sane(c, &c->layers[i]))
            return 0;
    return c->n_layers > 0 && c->n_layers <= TD_MAX_LAYERS && c->n_hidden > 0 && c->n_params > 0 &&
           c->embed_scale > 0 && c->residual_scale > 0 && c->logits_divisor > 0 &&
           m.weight_bytes >= (uint64_t)c->n_params;
}

/* One of each way to read things. */
static const char *const bases[] = {
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"num_hidden_layers\":4,\"hidden_size\":64,"
    "\"intermediate_size\":96,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"vocab_size\":100,\"head_dim\":32,\"max_position_embeddings\":256,"
    "\"rms_norm_eps\":1e-6,\"rope_theta\":1e6,\"rope_scaling\":{\"rope_type\":\"llama3\","
    "\"factor\":8.0,\"low_freq_factor\":1,\"high_freq_factor\":4,"
    "\"original_max_position_embeddings\":64},\"tie_word_embeddings\":true,"
    "\"use_sliding_window\":true,\"sliding_window\":16,\"max_window_layers\":2,"
    "\"eos_token_id\":[2,3],\"torch_dtype\":\"bfloat16\",\"hidden_act\":\"silu\"}",
    "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"num_hidden_layers\":4,\"hidden_size\":64,"
    "\"intermediate_size\":96,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"vocab_size\":100,\"decoder_sparse_step\":2,\"mlp_only_layers\":[3],\"num_experts\":8,"
    "\"num_experts_per_tok\":2,\"moe_intermediate_size\":10,\"rope_scaling\":{\"type\":\"yarn\","
    "\"factor\":4,\"beta_fast\":32,\"mscale\":1,\"mscale_all_dim\":0.5},"
    "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}}",
    "{\"architectures\":[\"Gemma3ForCausalLM\"],\"num_hidden_layers\":4,\"hidden_size\":64,"
    "\"intermediate_size\":96,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"vocab_size\":100,\"head_dim\":32,\"sliding_window\":5,\"rope_parameters\":{"
    "\"full_attention\":{\"rope_type\":\"linear\",\"factor\":8,\"rope_theta\":1e6},"
    "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":1e4}},"
    "\"layer_types\":[\"sliding_attention\",\"full_attention\",\"full_attention\","
    "\"sliding_attention\"],\"final_logit_softcapping\":30}",
    "{\"architectures\":[\"Phi3ForCausalLM\"],\"num_hidden_layers\":2,\"hidden_size\":16,"
    "\"intermediate_size\":24,\"num_attention_heads\":2,\"vocab_size\":50,"
    "\"max_position_embeddings\":64,\"original_max_position_embeddings\":16,"
    "\"partial_rotary_factor\":0.5,\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,2],"
    "\"long_factor\":[2,4.5]}}",
    "{\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":2,\"n_embd\":16,\"n_head\":2,"
    "\"n_inner\":null,\"n_positions\":64,\"vocab_size\":50,\"scale_attn_weights\":false}",
    "{\"architectures\":[\"SmolLM3ForCausalLM\"],\"num_hidden_layers\":4,\"hidden_size\":64,"
    "\"intermediate_size\":96,\"num_attention_heads\":8,\"vocab_size\":100,"
    "\"no_rope_layers\":[1,1,0,1],\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}",
};

int main(int argc, char **argv) {
    long n_iterations = argc > 1 ? atol(argv[1]) : 2000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    /* In memory where there is such a file system: thousands of files on a disk take minutes. */
    char shm[] = "/dev/shm/tdgen-fuzz-XXXXXX", disk[] = "/tmp/tdgen-fuzz-XXXXXX";
    const char *dir = mkdtemp(shm) ? shm : mkdtemp(disk);
    if (!dir) {
        perror("mkdtemp");
        return 1;
    }
    char *path = td_asprintf("%s/config.json", dir);
    unsigned char buf[2048];
    long n_accepted = 0;
    int rc = 0;
    for (long i = 0; i < n_iterations && rc == 0; i++) {
        const char *base = bases[i % (long)TD_ARRAY_LEN(bases)];
        size_t base_len = strlen(base);
        bool is_whole = i < (long)TD_ARRAY_LEN(bases);
        memcpy(buf, base, base_len);
        size_t n = is_whole ? base_len : mutate(buf, base_len, sizeof buf, &seed);
        FILE *f = fopen(path, "wb");
        if (!f || fwrite(buf, 1, n, f) != n || fclose(f) != 0) {
            perror(path);
            rc = 1;
            break;
        }
        td_model_config c;
        td_error e = {0};
        if (td_model_config_load(dir, &c, &e) == TD_OK) {
            n_accepted++;
            if (!is_sane(&c)) {
                fprintf(stderr, "iteration %ld: accepted what cannot be: %.*s\n", i, (int)n, buf);
                rc = 1;
            }
        } else if (is_whole || e.code != TD_E_MODEL || !e.text[0]) {
            fprintf(stderr, "iteration %ld: refused%s: %s\n", i,
                    is_whole ? ", though it is valid" : " without a reason", e.text);
            rc = 1;
        }
    }
    unlink(path);
    rmdir(dir);
    free(path);
    printf("%ld inputs, %ld accepted\n", n_iterations, n_accepted);
    return rc;
}
