/* hf_config.c - config.json of a Hugging Face checkpoint -> td_model_config.
 *
 * The family table (families.c) says which keys and defaults an architecture has; this file reads
 * them. One layer is described from what holds for all and copied; then what differs between layers
 * (windows, ropes, experts) is changed in the copies.
 *
 * What changes the arithmetic and is not implemented is refused by name: a teacher that is computed
 * approximately is worse than none.
 */
#include "model/hf_parts.h"
#include "model/shapes.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"

enum { CONFIG_MAX_BYTES = 16 << 20 };

/* --- architecture ----------------------------------------------------------------------------- */

static td_status refuse_architecture(const td_config_reader *r, const char *what,
                                     const char *name) {
    char list_text[600];
    td_family_list(list_text, sizeof list_text);
    return td_error_set(r->err, TD_E_MODEL,
                        "%s: the %s \"%.64s\" is not supported; supported are %s", r->path, what,
                        name, list_text);
}

/* transformers' AutoModel goes by model_type and ignores "architectures", which folders of a base
 * model lack. Where both are there and speak of different models, somebody renamed one of them, and
 * following either would be a guess. */
static td_status read_architecture(const td_config_reader *r, const td_family **out) {
    const json_t *list = json_object_get(r->root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    const char *type = NULL;
    td_status rc = td_json_opt_str(r->root, "model_type", r->path, TD_E_MODEL, &type, r->err);
    if (rc != TD_OK)
        return rc;
    if (!name && !type)
        return td_error_set(
            r->err, TD_E_MODEL,
            "%s: there is neither \"architectures\", a list with the name of a class "
            "such as \"LlamaForCausalLM\", nor \"model_type\"",
            r->path);
    *out = name ? td_family_find(name) : td_family_find_type(type);
    if (!*out)
        return refuse_architecture(r, name ? "architecture" : "model_type", name ? name : type);
    if (type && strcmp(type, (*out)->model_type) != 0)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: \"model_type\" is \"%.64s\", but that of the architecture %s is "
                            "\"%s\"; correct the one that is wrong",
                            r->path, type, name, (*out)->model_type);
    return TD_OK;
}

/* A dense architecture whose config speaks of experts is some other model. */
static td_status refuse_experts(const td_config_reader *r, const td_family *f) {
    static const char *const keys[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    for (size_t i = 0; i < TD_ARRAY_LEN(keys) && !f->has_experts; i++) {
        int32_t n = 0;
        td_status rc = td_config_opt_i32(r, keys[i], 0, INT32_MAX, &n);
        if (rc != TD_OK)
            return rc;
        if (n > 0)
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: a mixture of experts (%s is %d) is not supported in %s",
                                r->path, keys[i], n, f->architecture);
    }
    return TD_OK;
}

static const char *key_or(const char *key, const char *usual) {
    return key ? key : usual;
}

static td_status read_activation(const td_config_reader *r, const td_family *f, td_act *out) {
    static const struct {
        const char *name;
        td_act act;
    } acts[] = {{"silu", TD_ACT_SILU},
                {"swish", TD_ACT_SILU},
                {"gelu", TD_ACT_GELU},
                {"gelu_new", TD_ACT_GELU_TANH},
                {"gelu_pytorch_tanh", TD_ACT_GELU_TANH}};
    const char *key = key_or(f->key_act, "hidden_act"), *act = key_or(f->default_act, "silu");
    td_status rc = td_json_opt_str(r->root, key, r->path, TD_E_MODEL, &act, r->err);
    if (rc != TD_OK)
        return rc;
    if (f->gelu_means_tanh && !strcmp(act, "gelu"))
        act = "gelu_pytorch_tanh";
    for (size_t i = 0; i < TD_ARRAY_LEN(acts); i++)
        if (!strcmp(act, acts[i].name)) {
            *out = acts[i].act;
            return TD_OK;
        }
    return td_config_refuse(r, key, act, "silu, gelu, gelu_new and gelu_pytorch_tanh are");
}

static td_status read_heads(const td_config_reader *r, const td_family *f, int32_t n_hidden,
                            td_attention *a) {
    td_status rc;
    /* An absent key has the class's default; an explicit null means "as many as heads". */
    bool has_key = json_object_get(r->root, "num_key_value_heads") != NULL;
    a->n_kv_heads = has_key || !f->default_kv_heads ? a->n_heads : f->default_kv_heads;
    a->head_dim = f->default_head_dim ? f->default_head_dim : n_hidden / a->n_heads;
    if (f->fixed_heads && f->rope != TD_ROPE_RULE_NONE) {
        /* transformers would size only the rotary table by it. */
        int32_t head_dim = a->head_dim;
        if ((rc = td_config_opt_i32(r, "head_dim", 1, 1 << 16, &head_dim)) != TD_OK)
            return rc;
        if (head_dim != a->head_dim)
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: head_dim %d contradicts hidden_size / num_attention_heads, "
                                "which is %d, in %s",
                                r->path, head_dim, a->head_dim, f->architecture);
    }
    if (f->fixed_heads)
        a->n_kv_heads = a->n_heads;
    else if ((rc = td_config_opt_i32(r, "num_key_value_heads", 1, 4096, &a->n_kv_heads)) != TD_OK ||
             (rc = td_config_opt_i32(r, "head_dim", 1, 1024, &a->head_dim)) != TD_OK)
        return rc;
    if (a->n_heads % a->n_kv_heads)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: num_attention_heads (%d) is no multiple of num_key_value_heads "
                            "(%d)",
                            r->path, a->n_heads, a->n_kv_heads);
    if (f->fixed_heads && n_hidden % a->n_heads)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: the hidden size (%d) is no multiple of the number of heads (%d)",
                            r->path, n_hidden, a->n_heads);
    if (a->head_dim < 2 || a->head_dim > 1024 || a->head_dim % 2)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: head_dim is %d, but it must be even and from 2 to 1024", r->path,
                            a->head_dim);
    a->scale = (float)(1.0 / sqrt((double)a->head_dim));
    return TD_OK;
}

/* Sizes of the model, and of the layer that all are copies of. */
static td_status read_sizes(const td_config_reader *r, const td_family *f, td_model_config *c,
                            td_layer *layer) {
    const char *ffn = key_or(f->key_ffn, "intermediate_size");
    td_attention *a = &layer->mixer.attention;
    td_dense *d = &layer->ffn.dense;
    td_status rc;
    if ((rc = td_config_i32(r, key_or(f->key_layers, "num_hidden_layers"), 1, TD_MAX_LAYERS,
                            &c->n_layers)) != TD_OK ||
        (rc = td_config_i32(r, key_or(f->key_hidden, "hidden_size"), 1, 1 << 20, &c->n_hidden)) !=
            TD_OK ||
        (rc = td_config_i32(r, key_or(f->key_heads, "num_attention_heads"), 1, 4096,
                            &a->n_heads)) != TD_OK ||
        (rc = td_config_i32(r, "vocab_size", 1, 1 << 24, &c->n_vocab)) != TD_OK)
        return rc;
    d->n_ffn = 4 * c->n_hidden;
    rc = f->ffn_is_4x ? td_config_opt_i32(r, ffn, 1, 1 << 22, &d->n_ffn)
                      : td_config_i32(r, ffn, 1, 1 << 22, &d->n_ffn);
    if (rc != TD_OK)
        return rc;
    c->max_positions = f->default_positions;
    if ((rc = td_config_opt_i32(r, key_or(f->key_positions, "max_position_embeddings"), 1, 1 << 30,
                                &c->max_positions)) != TD_OK ||
        (rc = read_heads(r, f, c->n_hidden, a)) != TD_OK)
        return rc;
    c->norm_eps = f->default_eps > 0 ? (float)f->default_eps : 1e-6f;
    return td_config_opt_float(r, key_or(f->key_eps, "rms_norm_eps"), 0, 1, &c->norm_eps);
}

/* Constants of the architecture, and the keys that turn parts on; as read_sizes. */
static td_status read_switches(const td_config_reader *r, const td_family *f, td_model_config *c,
                               td_layer *layer) {
    bool attention_bias = f->default_attention_bias, mlp_bias = false;
    td_attention *a = &layer->mixer.attention;
    td_dense *d = &layer->ffn.dense;
    td_status rc;
    c->tied_embeddings = f->default_tied;
    if ((rc = td_config_opt_bool(r, "tie_word_embeddings", &c->tied_embeddings)) != TD_OK ||
        (rc = td_config_opt_bool(r, "attention_bias", &attention_bias)) != TD_OK ||
        (rc = td_config_opt_bool(r, "mlp_bias", &mlp_bias)) != TD_OK)
        return rc;
    a->qkv_bias = f->qkv_bias || (f->attention_bias && attention_bias);
    a->o_bias = f->o_bias || (f->attention_bias && attention_bias);
    a->qk_norm = f->qk_norm;
    d->bias = f->mlp_always_bias || (f->mlp_bias && mlp_bias);
    d->gated = !f->not_gated;
    c->norm_kind = f->norm_kind;
    c->norm_bias = f->norm_bias;
    c->norm_plus_one = f->norm_plus_one;
    c->pre_norm = !f->no_pre_norm;
    c->post_norm = f->post_norm;
    c->learned_positions = f->learned_positions;
    c->embed_scale = c->residual_scale = c->logits_divisor = 1;
    return TD_OK;
}

static td_status read_layers(const td_config_reader *r, const td_family *f, td_model_config *c) {
    td_layer layer = {.mixer = {.kind = TD_MIXER_ATTENTION}, .ffn = {.kind = TD_FFN_DENSE}};
    td_status rc;
    if ((rc = read_activation(r, f, &layer.ffn.dense.act)) != TD_OK ||
        (rc = read_sizes(r, f, c, &layer)) != TD_OK ||
        (rc = read_switches(r, f, c, &layer)) != TD_OK)
        return rc;
    for (int32_t i = 0; i < c->n_layers; i++)
        c->layers[i] = layer;
    return TD_OK;
}

/* --- windows ---------------------------------------------------------------------------------- */

/* layer_types, when there, decides where the class reads it and must agree elsewhere. */
static td_status read_layer_types(const td_config_reader *r, const td_family *f, int32_t width,
                                  td_model_config *c) {
    bool decides = f->window == TD_WINDOW_SWITCHED || f->window == TD_WINDOW_PATTERN ||
                   f->window == TD_WINDOW_NO_ROPE;
    if (!td_json_has(r->root, "layer_types"))
        return TD_OK;
    const json_t *list = json_object_get(r->root, "layer_types");
    if (!json_is_array(list) || json_array_size(list) != (size_t)c->n_layers)
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: \"layer_types\" must be a list of %d names, one per layer",
                            r->path, c->n_layers);
    for (int32_t i = 0; i < c->n_layers; i++) {
        int32_t *window = &c->layers[i].mixer.attention.window;
        const char *type = json_string_value(json_array_get(list, (size_t)i));
        bool sliding = type && !strcmp(type, "sliding_attention");
        if (!sliding && (!type || strcmp(type, "full_attention") != 0))
            return td_config_refuse(r, "the layer type", type ? type : "(not a string)",
                                    "full_attention and sliding_attention are");
        if (decides)
            *window = sliding ? width : 0;
        else if (sliding != (*window > 0))
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: \"layer_types\" contradicts sliding_window; %s has the same "
                                "attention in all layers",
                                r->path, f->architecture);
    }
    return TD_OK;
}

static td_status read_window(const td_config_reader *r, const td_family *f, td_model_config *c) {
    /* Absent means the class's default, null means none. */
    int32_t width = json_object_get(r->root, "sliding_window") ? 0 : f->default_window;
    int32_t first = 0, pattern = f->default_window_pattern;
    bool use = true;
    td_status rc = TD_OK;
    if (f->window == TD_WINDOW_NONE)
        return read_layer_types(r, f, 0, c);
    /* transformers ignores the width, 0 included, of a window that is not used. */
    if (f->window != TD_WINDOW_ALL && f->window != TD_WINDOW_PATTERN) {
        use = false;
        if ((rc = td_config_opt_bool(r, "use_sliding_window", &use)) != TD_OK)
            return rc;
    }
    if (use && (rc = td_config_opt_i32(r, "sliding_window", 1, 1 << 30, &width)) != TD_OK)
        return rc;
    if (!use)
        width = 0;
    if (f->window == TD_WINDOW_SWITCHED) {
        first = 28;
        rc = td_config_opt_i32(r, "max_window_layers", 0, INT32_MAX, &first);
    } else if (f->window == TD_WINDOW_PATTERN && f->rope == TD_ROPE_RULE_BY_WINDOW) {
        rc = td_config_opt_i32(r, "sliding_window_pattern", 1, INT32_MAX, &pattern);
    }
    if (rc != TD_OK)
        return rc;
    for (int32_t i = 0; i < c->n_layers; i++) {
        td_attention *a = &c->layers[i].mixer.attention;
        bool full = i < first || (pattern && (i + 1) % pattern == 0) ||
                    (f->window == TD_WINDOW_NO_ROPE && a->rope >= 0);
        a->window = full ? 0 : width;
    }
    return read_layer_types(r, f, width, c);
}

/* --- dtype and token ids ---------------------------------------------------------------------- */

static td_status read_dtype(const td_config_reader *r, td_model_config *c) {
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
    return td_config_refuse(r, key, s, "float32, bfloat16 and float16 are");
}

/* An id, a list of ids (the first counts), null or absent (-1). */
static td_status read_token_id(const td_config_reader *r, const char *key, int32_t *out) {
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

/* --- the whole ------------------------------------------------------------------------------- */

static int64_t count_params(const td_family *f, const td_model_config *c) {
    int64_t n = 0, matrices, vectors;
    for (int i = 0; i < TD_MT_COUNT; i++) {
        td_shape s = td_model_tensor_shape(c, (td_model_tensor)i);
        n += s.rows * TD_MAX(s.cols, 1);
    }
    for (int32_t i = 0; i < c->n_layers; i++) {
        td_layer_elements(c, f, i, &matrices, &vectors);
        n += matrices + vectors;
    }
    return n;
}

static td_status read_config(const td_config_reader *r, td_model_config *c) {
    const td_family *f = NULL;
    td_status rc;
    if (!json_is_object(r->root))
        return td_error_set(r->err, TD_E_MODEL, "%s: expected an object, found %s", r->path,
                            td_json_type_name(r->root));
    if ((rc = read_architecture(r, &f)) != TD_OK || (rc = refuse_experts(r, f)) != TD_OK)
        return rc;
    strcpy(c->architecture, f->architecture);
    if ((rc = read_layers(r, f, c)) != TD_OK ||
        (rc = td_config_read_rope_layers(r, f, c)) != TD_OK ||
        (rc = read_window(r, f, c)) != TD_OK || (rc = td_config_read_rope(r, f, c)) != TD_OK ||
        (rc = read_dtype(r, c)) != TD_OK || (rc = td_config_read_quantisation(r, c)) != TD_OK ||
        (f->finish && (rc = f->finish(r, c)) != TD_OK) ||
        (rc = read_token_id(r, "bos_token_id", &c->bos_id)) != TD_OK ||
        (rc = read_token_id(r, "eos_token_id", &c->eos_id)) != TD_OK)
        return rc;
    c->n_params = count_params(f, c);
    return TD_OK;
}

/* transformers with peft adds the adapter to the model that is beside it, or to the one that the
 * adapter names. tdgen reads no adapters, and the model alone would be another teacher. */
static td_status refuse_adapter(const char *model_dir, td_error *err) {
    char *path = td_asprintf("%s/adapter_config.json", model_dir);
    if (!path)
        return td_error_nomem(err, "path of adapter_config.json", strlen(model_dir));
    td_status rc = TD_OK;
    if (td_path_exists(path))
        rc =
            td_error_set(err, TD_E_MODEL,
                         "%s: an adapter (LoRA or the like) is in the model's folder: transformers "
                         "with peft adds it to the model, tdgen reads none. Merge the two (in "
                         "Python: AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload()"
                         ".save_pretrained(NEW)), or move the file away to use the model alone",
                         path);
    free(path);
    return rc;
}

td_status td_model_config_load(const char *model_dir, td_model_config *out, td_error *err) {
    char *path = td_asprintf("%s/config.json", model_dir), *text = NULL;
    if (!path)
        return td_error_nomem(err, "path of config.json", strlen(model_dir));
    json_t *root = NULL;
    size_t n;
    td_model_config c = {0};
    td_status rc = refuse_adapter(model_dir, err);
    if (rc != TD_OK)
        goto out;
    rc = td_file_read(path, CONFIG_MAX_BYTES, TD_E_MODEL, &text, &n, err);
    if (rc != TD_OK)
        goto out;
    c.config_hash = td_hash64(text, n);
    if ((rc = td_json_parse(text, n, path, TD_E_MODEL, &root, err)) != TD_OK)
        goto out;
    rc = read_config(&(td_config_reader){.root = root, .path = path, .err = err}, &c);
    if (rc == TD_OK)
        *out = c;
out:
    json_decref(root);
    free(text);
    free(path);
    return rc;
}
