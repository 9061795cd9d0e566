/* Loads mutated config.json files; what is accepted must give sizes that can be planned with.
 * Usage: fuzz_hf_config [iterations [seed]]. Run it under the sanitizers. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "mutate.h"
#include "tdgen/model.h"
#include "tdgen/util.h"

static int is_sane(const td_model_config *c) {
    td_session_limits lim = {.max_tokens = 8192,
                             .max_seqs = 8192,
                             .max_rows = 8192,
                             .n_slots = 2,
                             .capture_rows = 256,
                             .top_k = 8};
    td_stage_memory m;
    td_stage_memory_estimate(c, TD_BF16, &lim, 0, c->n_layers + 2, &m);
    return c->n_layers > 0 && c->n_hidden > 0 && c->n_heads % c->n_kv_heads == 0 &&
           c->head_dim % 2 == 0 && c->head_dim <= 1024 && c->n_params > 0 && c->window >= 0 &&
           c->window_first_layer >= 0 && m.weight_bytes >= (uint64_t)c->n_params;
}

int main(int argc, char **argv) {
    static const char base[] =
        "{\"architectures\":[\"Qwen3ForCausalLM\"],\"num_hidden_layers\":4,\"hidden_size\":64,"
        "\"intermediate_size\":96,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
        "\"vocab_size\":100,\"head_dim\":32,\"max_position_embeddings\":256,"
        "\"rms_norm_eps\":1e-6,\"rope_theta\":1e6,\"rope_scaling\":{\"rope_type\":\"llama3\","
        "\"factor\":8.0,\"low_freq_factor\":1,\"high_freq_factor\":4,"
        "\"original_max_position_embeddings\":64},\"tie_word_embeddings\":true,"
        "\"use_sliding_window\":true,\"sliding_window\":16,\"max_window_layers\":2,"
        "\"eos_token_id\":[2,3],\"torch_dtype\":\"bfloat16\",\"hidden_act\":\"silu\"}";
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
        memcpy(buf, base, sizeof base - 1);
        size_t n = i == 0 ? sizeof base - 1 : mutate(buf, sizeof base - 1, sizeof buf, &seed);
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
        } else if (e.code != TD_E_MODEL || !e.text[0]) {
            fprintf(stderr, "iteration %ld: refused without a reason\n", i);
            rc = 1;
        }
    }
    unlink(path);
    rmdir(dir);
    free(path);
    if (n_accepted == 0) {
        fprintf(stderr, "not even the valid file was accepted\n");
        rc = 1;
    }
    printf("%ld inputs, %ld accepted\n", n_iterations, n_accepted);
    return rc;
}
