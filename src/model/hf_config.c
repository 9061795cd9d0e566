/* hf_config.c - config.json of a Hugging Face checkpoint -> td_model_config.
 *
 * Defaults for absent keys are those of the configuration classes of transformers 4.57 and 5.x
 * (they agree; tie_word_embeddings is false in all four). What changes the arithmetic and is not
 * implemented is refused by name: a teacher that is computed approximately is worse than none.
 */
#include "tdgen/model.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tdgen/json.h"
#include "tdgen/util.h"

enum { CONFIG_MAX_BYTES = 16 << 20 };

typedef struct arch_traits {
    const char *name;
    int32_t default_kv_heads; /* when the key is absent; 0 = as many as heads */
    int32_t default_head_dim; /* when the key is absent; 0 = hidden / heads */
    int32_t default_max_positions;
    bool has_attention_bias_key, has_mlp_bias_key; /* else the key means nothing to HF */
    bool qkv_bias;                                 /* always there, without a key */
    bool qk_norm;
    enum { WINDOW_NONE, WINDOW_ALL_LAYERS, WINDOW_SWITCHED } window;
} arch_traits;

static const arch_traits architectures[] = {
    {.name = "LlamaForCausalLM",
     .default_max_positions = 2048,
     .has_attention_bias_key = true,
     .has_mlp_bias_key = true},
    {.name = "MistralForCausalLM",
     .default_kv_heads = 8,
     .default_max_positions = 131072,
     .window = WINDOW_ALL_LAYERS},
    {.name = "Qwen2ForCausalLM",
     .default_kv_heads = 32,
     .default_max_positions = 32768,
     .qkv_bias = true,
     .window = WINDOW_SWITCHED},
    {.name = "Qwen3ForCausalLM",
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .default_max_positions = 32768,
     .has_attention_bias_key = true,
     .qk_norm = true,
     .window = WINDOW_SWITCHED},
};

/* The document being read: every getter below names `path` in its error. */
typedef struct reader {
    const json_t *root;
    const char *path;
    td_error *err;
} reader;

static td_status get_i32(const reader *r, const char *key, int32_t min, int32_t max, int32_t *out) {
    int64_t v;
    td_status rc = td_json_get_int(r->root, key, min, max, r->path, TD_E_MODEL, &v, r->err);
    if (rc == TD_OK)
        *out = (int32_t)v;
    return rc;
}

/* Leaves *out alone when the key is absent or null. */
static td_status opt_i32(const reader *r, const char *key, int32_t min, int32_t max, int32_t *out) {
    return td_json_has(r->root, key) ? get_i32(r, key, min, max, out) : TD_OK;
}

static td_status opt_bool(const reader *r, const char *key, bool *out) {
    return td_json_opt_bool(r->root, key, r->path, TD_E_MODEL, out, r->err);
}

static td_status refuse(const reader *r, const char *what, const char *value, const char *instead) {
    return td_error_set(r->err, TD_E_MODEL, "%s: %s \"%.64s\" is not supported; %s", r->path, what,
                        value, instead);
}

static td_status read_architecture(const reader *r, const arch_traits **out) {
    const json_t *list = json_object_get(r->root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name) {
        const char *type = json_string_value(json_object_get(r->root, "model_type"));
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: \"architectures\" must be a list with the name of a class such as "
                            "\"LlamaForCausalLM\" (model_type is \"%.64s\")",
                            r->path, type ? type : "absent");
    }
    for (size_t i = 0; i < TD_ARRAY_LEN(architectures); i++)
        if (!strcmp(name, architectures[i].name)) {
            *out = &architectures[i];
            return TD_OK;
        }
    return refuse(r, "the architecture", name,
                  "supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and "
                  "Qwen3ForCausalLM");
}

/* Things that a supported class name can carry and that would change the arithmetic. */
static td_status refuse_unsupported(const reader *r) {
    static const char *const quant_keys[] = {"quantization_config", "compression_config"};
    for (size_t i = 0; i < TD_ARRAY_LEN(quant_keys); i++)
        if (td_json_has(r->root, quant_keys[i])) {
            const json_t *q = json_object_get(r->root, quant_keys[i]);
            const char *method = json_string_value(json_object_get(q, "quant_method"));
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: the checkpoint is quantised (%s: method \"%.64s\"), which is "
                                "not supported; use the unquantised checkpoint",
                                r->path, quant_keys[i], method ? method : "unnamed");
        }
    static const char *const expert_keys[] = {"num_experts", "num_local_experts",
                                              "n_routed_experts"};
    for (size_t i = 0; i < TD_ARRAY_LEN(expert_keys); i++) {
        int32_t n = 0;
        td_status rc = opt_i32(r, expert_keys[i], 0, INT32_MAX, &n);
        if (rc != TD_OK)
            return rc;
        if (n > 0)
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: a mixture of experts (%s is %d) is not supported", r->path,
                                expert_keys[i], n);
    }
    const char *act = "silu";
    td_status rc = td_json_opt_str(r->root, "hidden_act", r->path, TD_E_MODEL, &act, r->err);
    if (rc != TD_OK)
        return rc;
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return refuse(r, "hidden_act", act, "only \"silu\" is");
    return TD_OK;
}

static td_status read_sizes(const reader *r, const arch_traits *a, td_model_config *c) {
    td_status rc;
    if ((rc = get_i32(r, "num_hidden_layers", 1, 4096, &c->n_layers)) != TD_OK ||
        (rc = get_i32(r, "hidden_size", 1, 1 << 20, &c->n_hidden)) != TD_OK ||
        (rc = get_i32(r, "intermediate_size", 1, 1 << 22, &c->n_ffn)) != TD_OK ||
        (rc = get_i32(r, "num_attention_heads", 1, 4096, &c->n_heads)) != TD_OK ||
        (rc = get_i32(r, "vocab_size", 1, 1 << 24, &c->n_vocab)) != TD_OK)
        return rc;
    c->max_positions = a->default_max_positions;
    /* An absent key has the class's default; an explicit null means "as many as heads". */
    bool has_key = json_object_get(r->root, "num_key_value_heads") != NULL;
    c->n_kv_heads = has_key || !a->default_kv_heads ? c->n_heads : a->default_kv_heads;
    c->head_dim = a->default_head_dim ? a->default_head_dim : c->n_hidden / c->n_heads;
    if ((rc = opt_i32(r, "max_position_embeddings", 1, 1 << 30, &c->max_positions)) != TD_OK ||
        (rc = opt_i32(r, "num_key_value_heads", 1, 4096, &c->n_kv_heads)) != TD_OK ||
        (rc = opt_i32(r, "head_dim", 1, 1024, &c->head_dim)) != TD_OK)
        return rc;
    if (c->n_heads % c->n_kv_heads)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: num_attention_heads (%d) is no multiple of num_key_value_heads "
                            "(%d)",
                            r->path, c->n_heads, c->n_kv_heads);
    if (c->head_dim < 2 || c->head_dim > 1024 || c->head_dim % 2)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: head_dim is %d, but it must be even and from 2 to 1024", r->path,
                            c->head_dim);
    double eps = 1e-6;
    rc = td_json_opt_real(r->root, "rms_norm_eps", 0, 1, r->path, TD_E_MODEL, &eps, r->err);
    c->rms_eps = (float)eps;
    return rc;
}

static td_status read_switches(const reader *r, const arch_traits *a, td_model_config *c) {
    bool attention_bias = false, mlp_bias = false;
    td_status rc;
    if ((rc = opt_bool(r, "tie_word_embeddings", &c->tied_embeddings)) != TD_OK ||
        (rc = opt_bool(r, "attention_bias", &attention_bias)) != TD_OK ||
        (rc = opt_bool(r, "mlp_bias", &mlp_bias)) != TD_OK)
        return rc;
    c->qkv_bias = a->qkv_bias || (a->has_attention_bias_key && attention_bias);
    c->o_bias = a->has_attention_bias_key && attention_bias;
    c->mlp_bias = a->has_mlp_bias_key && mlp_bias;
    c->qk_norm = a->qk_norm;
    /* Both project into the residual stream, and td_gemm_args takes no bias there. */
    if (c->o_bias || c->mlp_bias)
        return td_error_set(r->err, TD_E_MODEL, "%s: %s is true: a bias on %s is not supported",
                            r->path, c->o_bias ? "attention_bias" : "mlp_bias",
                            c->o_bias ? "o_proj" : "down_proj");
    return TD_OK;
}

/* layer_types, when there, decides for Qwen and must agree for the others. */
static td_status read_layer_types(const reader *r, const arch_traits *a, int32_t width,
                                  td_model_config *c) {
    if (!td_json_has(r->root, "layer_types"))
        return TD_OK;
    const json_t *list = json_object_get(r->root, "layer_types");
    if (!json_is_array(list) || json_array_size(list) != (size_t)c->n_layers)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: \"layer_types\" must be a list of %d names, one per layer",
                            r->path, c->n_layers);
    int32_t first = c->n_layers;
    for (int32_t i = 0; i < c->n_layers; i++) {
        const char *type = json_string_value(json_array_get(list, (size_t)i));
        bool sliding = type && !strcmp(type, "sliding_attention");
        if (!sliding && (!type || strcmp(type, "full_attention") != 0))
            return refuse(r, "the layer type", type ? type : "(not a string)",
                          "full_attention and sliding_attention are");
        if (sliding && first == c->n_layers)
            first = i;
        if (!sliding && first < i)
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: \"layer_types\" alternates between sliding and full attention "
                                "(layer %d), which is not supported",
                                r->path, i);
    }
    if (a->window == WINDOW_SWITCHED) {
        c->window = first < c->n_layers ? width : 0;
        c->window_first_layer = c->window ? first : 0;
        return TD_OK;
    }
    if (first != (c->window ? 0 : c->n_layers))
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: \"layer_types\" contradicts sliding_window; %s has the same "
                            "attention in all layers",
                            r->path, a->name);
    return TD_OK;
}

static td_status read_window(const reader *r, const arch_traits *a, td_model_config *c) {
    if (a->window == WINDOW_NONE)
        return read_layer_types(r, a, 0, c);
    /* Absent means 4096 in these classes, null means none. */
    int32_t width = json_object_get(r->root, "sliding_window") ? 0 : 4096;
    td_status rc = opt_i32(r, "sliding_window", 1, 1 << 30, &width);
    if (rc != TD_OK)
        return rc;
    if (a->window == WINDOW_ALL_LAYERS) {
        c->window = width;
        return read_layer_types(r, a, width, c);
    }
    bool use = false;
    int32_t first = 28;
    if ((rc = opt_bool(r, "use_sliding_window", &use)) != TD_OK ||
        (rc = opt_i32(r, "max_window_layers", 0, INT32_MAX, &first)) != TD_OK)
        return rc;
    if (!use)
        width = 0;
    if (width && first < c->n_layers) {
        c->window = width;
        c->window_first_layer = first;
    }
    return read_layer_types(r, a, width, c);
}

static td_status read_rope(const reader *r, td_model_config *c) {
    static const double max = 1e15;
    td_status rc;
    c->rope_type = TD_ROPE_DEFAULT;
    c->rope_theta = 10000.0;
    c->rope_factor = 1.0;
    double partial = 1.0;
    if ((rc = td_json_opt_real(r->root, "rope_theta", 1, max, r->path, TD_E_MODEL, &c->rope_theta,
                               r->err)) != TD_OK ||
        (rc = td_json_opt_real(r->root, "partial_rotary_factor", 0, 1, r->path, TD_E_MODEL,
                               &partial, r->err)) != TD_OK)
        return rc;

    /* transformers 5 writes rope_parameters; an old rope_scaling in the same file wins there. */
    const char *key = td_json_has(r->root, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    if (td_json_has(r->root, key)) {
        const json_t *p = json_object_get(r->root, key);
        char *where = td_asprintf("%s: %s", r->path, key);
        if (!where)
            return td_error_nomem(r->err, "rope parameters", strlen(r->path));
        if (!json_is_object(p)) {
            rc = td_error_set(r->err, TD_E_MODEL, "%s must be an object, but is %s", where,
                              td_json_type_name(p));
            goto out;
        }
        const char *type = "default";
        if ((rc = td_json_opt_str(p, "type", where, TD_E_MODEL, &type, r->err)) != TD_OK ||
            (rc = td_json_opt_str(p, "rope_type", where, TD_E_MODEL, &type, r->err)) != TD_OK ||
            (rc = td_json_opt_real(p, "rope_theta", 1, max, where, TD_E_MODEL, &c->rope_theta,
                                   r->err)) != TD_OK ||
            (rc = td_json_opt_real(p, "partial_rotary_factor", 0, 1, where, TD_E_MODEL, &partial,
                                   r->err)) != TD_OK)
            goto out;
        const char *k;
        json_t *v;
        json_object_foreach((json_t *)p, k, v) {
            if (json_is_object(v)) {
                rc = td_error_set(r->err, TD_E_MODEL,
                                  "%s: parameters per layer type (\"%.64s\") are not supported",
                                  where, k);
                goto out;
            }
        }
        if (!strcmp(type, "linear")) {
            c->rope_type = TD_ROPE_LINEAR;
            rc = td_json_get_real(p, "factor", 1e-6, 1e6, where, TD_E_MODEL, &c->rope_factor,
                                  r->err);
        } else if (!strcmp(type, "llama3")) {
            c->rope_type = TD_ROPE_LLAMA3;
            int64_t original = c->max_positions;
            if ((rc = td_json_get_real(p, "factor", 1e-6, 1e6, where, TD_E_MODEL, &c->rope_factor,
                                       r->err)) != TD_OK ||
                (rc = td_json_get_real(p, "low_freq_factor", 1e-6, 1e6, where, TD_E_MODEL,
                                       &c->rope_low_freq, r->err)) != TD_OK ||
                (rc = td_json_get_real(p, "high_freq_factor", 1e-6, 1e6, where, TD_E_MODEL,
                                       &c->rope_high_freq, r->err)) != TD_OK ||
                (rc = td_json_opt_int(p, "original_max_position_embeddings", 1, 1 << 30, where,
                                      TD_E_MODEL, &original, r->err)) != TD_OK)
                goto out;
            c->rope_original_positions = (int32_t)original;
            if (c->rope_high_freq <= c->rope_low_freq)
                rc = td_error_set(r->err, TD_E_MODEL,
                                  "%s: high_freq_factor (%g) must be above low_freq_factor (%g)",
                                  where, c->rope_high_freq, c->rope_low_freq);
        } else if (strcmp(type, "default") != 0) {
            rc = td_error_set(r->err, TD_E_MODEL,
                              "%s: the rope type \"%.64s\" is not supported; default, linear and "
                              "llama3 are",
                              where, type);
        }
    out:
        free(where);
        if (rc != TD_OK)
            return rc;
    }
    if (partial != 1.0)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: partial_rotary_factor %g is not supported, only 1 is", r->path,
                            partial);
    return TD_OK;
}

static td_status read_dtype(const reader *r, td_model_config *c) {
    static const struct {
        const char *name;
        td_dtype dtype;
    } names[] = {{"float32", TD_F32}, {"bfloat16", TD_BF16}, {"float16", TD_F16}};
    const char *key = td_json_has(r->root, "dtype") ? "dtype" : "torch_dtype";
    const char *s = "float32";
    td_status rc = td_json_opt_str(r->root, key, r->path, TD_E_MODEL, &s, r->err);
    if (rc != TD_OK)
        return rc;
    if (!strncmp(s, "torch.", 6))
        s += 6;
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++)
        if (!strcmp(s, names[i].name)) {
            c->weight_dtype = names[i].dtype;
            return TD_OK;
        }
    return refuse(r, key, s, "float32, bfloat16 and float16 are");
}

/* An id, a list of ids (the first counts), null or absent (-1). */
static td_status read_token_id(const reader *r, const char *key, int32_t *out) {
    const json_t *v = json_object_get(r->root, key);
    *out = -1;
    if (json_is_array(v))
        v = json_array_get(v, 0);
    if (!v || json_is_null(v))
        return TD_OK;
    if (!json_is_integer(v) || json_integer_value(v) < -1 || json_integer_value(v) > INT32_MAX)
        return td_error_set(r->err, TD_E_MODEL, "%s: \"%s\" must be a token id or a list of them",
                            r->path, key);
    *out = (int32_t)json_integer_value(v);
    return TD_OK;
}

static int64_t count_params(const td_model_config *c) {
    int64_t C = c->n_hidden, F = c->n_ffn, V = c->n_vocab, D = c->head_dim;
    int64_t q = c->n_heads * D, kv = c->n_kv_heads * D;
    int64_t layer = (q + 2 * kv) * C + C * q + 3 * F * C + 2 * C;
    if (c->qkv_bias)
        layer += q + 2 * kv;
    if (c->o_bias)
        layer += C;
    if (c->mlp_bias)
        layer += 2 * F + C;
    if (c->qk_norm)
        layer += 2 * D;
    return layer * c->n_layers + V * C * (c->tied_embeddings ? 1 : 2) + C;
}

static td_status read_config(const reader *r, td_model_config *c) {
    const arch_traits *arch = NULL;
    td_status rc;
    if (!json_is_object(r->root))
        return td_error_set(r->err, TD_E_MODEL, "%s: expected an object, found %s", r->path,
                            td_json_type_name(r->root));
    if ((rc = read_architecture(r, &arch)) != TD_OK || (rc = refuse_unsupported(r)) != TD_OK)
        return rc;
    strcpy(c->architecture, arch->name);
    if ((rc = read_sizes(r, arch, c)) != TD_OK || (rc = read_switches(r, arch, c)) != TD_OK ||
        (rc = read_window(r, arch, c)) != TD_OK || (rc = read_rope(r, c)) != TD_OK ||
        (rc = read_dtype(r, c)) != TD_OK ||
        (rc = read_token_id(r, "bos_token_id", &c->bos_id)) != TD_OK ||
        (rc = read_token_id(r, "eos_token_id", &c->eos_id)) != TD_OK)
        return rc;
    c->n_params = count_params(c);
    return TD_OK;
}

td_status td_model_config_load(const char *model_dir, td_model_config *out, td_error *err) {
    char *path = td_asprintf("%s/config.json", model_dir), *text = NULL;
    if (!path)
        return td_error_nomem(err, "path of config.json", strlen(model_dir));
    json_t *root = NULL;
    size_t n;
    td_model_config c = {0};
    td_status rc = td_file_read(path, CONFIG_MAX_BYTES, TD_E_MODEL, &text, &n, err);
    if (rc != TD_OK)
        goto out;
    c.config_hash = td_hash64(text, n);
    if ((rc = td_json_parse(text, n, path, TD_E_MODEL, &root, err)) != TD_OK)
        goto out;
    rc = read_config(&(reader){.root = root, .path = path, .err = err}, &c);
    if (rc == TD_OK)
        *out = c;
out:
    json_decref(root);
    free(text);
    free(path);
    return rc;
}
