/* checkpoint.c - finds the files of a checkpoint folder and checks their tensors (checkpoint.h).
 *
 * One file (model.safetensors) or several (model.safetensors.index.json). The index is untrusted:
 * a file name in it is a plain name in the same folder and nothing else.
 */
#include "model/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tdgen/json.h"
#include "tdgen/log.h"
#include "tdgen/util.h"

enum { INDEX_MAX_BYTES = 256 << 20 };

struct td_checkpoint {
    char *dir;
    td_model_config cfg;
    td_safetensors **files; /* [n_files] */
    char **file_names;      /* [n_files], as in the index; NULL for the single file */
    size_t n_files;
    json_t *index;            /* of a sharded checkpoint, while it is being opened */
    const json_t *weight_map; /* within index */
    td_ckpt_entry *entries;   /* [TD_MT_COUNT + L * TD_LT_COUNT] */
    td_ckpt_entry **sorted;   /* [n_sorted] those with a tensor, by name */
    size_t n_entries, n_sorted;
    const td_st_tensor *shadow_head;
};

static const char *const model_names[TD_MT_COUNT] = {
    [TD_MT_EMBED] = "model.embed_tokens.weight",
    [TD_MT_FINAL_NORM] = "model.norm.weight",
    [TD_MT_LM_HEAD] = "lm_head.weight",
};

static const char *const layer_names[TD_LT_COUNT] = {
    [TD_LT_ATTN_NORM] = "input_layernorm.weight",
    [TD_LT_Q] = "self_attn.q_proj.weight",
    [TD_LT_K] = "self_attn.k_proj.weight",
    [TD_LT_V] = "self_attn.v_proj.weight",
    [TD_LT_Q_BIAS] = "self_attn.q_proj.bias",
    [TD_LT_K_BIAS] = "self_attn.k_proj.bias",
    [TD_LT_V_BIAS] = "self_attn.v_proj.bias",
    [TD_LT_Q_NORM] = "self_attn.q_norm.weight",
    [TD_LT_K_NORM] = "self_attn.k_norm.weight",
    [TD_LT_O] = "self_attn.o_proj.weight",
    [TD_LT_O_BIAS] = "self_attn.o_proj.bias",
    [TD_LT_FFN_NORM] = "post_attention_layernorm.weight",
    [TD_LT_GATE] = "mlp.gate_proj.weight",
    [TD_LT_UP] = "mlp.up_proj.weight",
    [TD_LT_GATE_BIAS] = "mlp.gate_proj.bias",
    [TD_LT_UP_BIAS] = "mlp.up_proj.bias",
    [TD_LT_DOWN] = "mlp.down_proj.weight",
    [TD_LT_DOWN_BIAS] = "mlp.down_proj.bias",
};

typedef struct shape2 {
    int64_t rows, cols; /* cols 0: a vector. rows 0: the model has no such tensor */
} shape2;

static shape2 layer_shape(const td_model_config *c, td_layer_tensor which) {
    int64_t C = c->n_hidden, F = c->n_ffn, D = c->head_dim;
    int64_t q = c->n_heads * D, kv = c->n_kv_heads * D;
    switch (which) {
    case TD_LT_ATTN_NORM:
    case TD_LT_FFN_NORM:
        return (shape2){C, 0};
    case TD_LT_Q:
        return (shape2){q, C};
    case TD_LT_K:
    case TD_LT_V:
        return (shape2){kv, C};
    case TD_LT_Q_BIAS:
        return (shape2){c->qkv_bias ? q : 0, 0};
    case TD_LT_K_BIAS:
    case TD_LT_V_BIAS:
        return (shape2){c->qkv_bias ? kv : 0, 0};
    case TD_LT_Q_NORM:
    case TD_LT_K_NORM:
        return (shape2){c->qk_norm ? D : 0, 0};
    case TD_LT_O:
        return (shape2){C, q};
    case TD_LT_O_BIAS:
        return (shape2){c->o_bias ? C : 0, 0};
    case TD_LT_GATE:
    case TD_LT_UP:
        return (shape2){F, C};
    case TD_LT_GATE_BIAS:
    case TD_LT_UP_BIAS:
        return (shape2){c->mlp_bias ? F : 0, 0};
    case TD_LT_DOWN:
        return (shape2){C, F};
    case TD_LT_DOWN_BIAS:
        return (shape2){c->mlp_bias ? C : 0, 0};
    case TD_LT_COUNT:
        break;
    }
    return (shape2){0, 0};
}

static shape2 model_shape(const td_model_config *c, td_model_tensor which) {
    if (which == TD_MT_FINAL_NORM)
        return (shape2){c->n_hidden, 0};
    if (which == TD_MT_LM_HEAD && c->tied_embeddings)
        return (shape2){0, 0};
    return (shape2){c->n_vocab, c->n_hidden};
}

/* --- files ------------------------------------------------------------------------------------ */

static td_status add_file(td_checkpoint *ck, const char *name, td_error *err) {
    char *path = td_asprintf("%s/%s", ck->dir, name);
    char *copy = td_strdup(name);
    td_safetensors **files = td_realloc_array(ck->files, ck->n_files + 1, sizeof *files);
    if (files)
        ck->files = files;
    char **names = td_realloc_array(ck->file_names, ck->n_files + 1, sizeof *names);
    if (names)
        ck->file_names = names;
    td_status rc = TD_OK;
    if (!path || !copy || !files || !names)
        rc = td_error_nomem(err, "list of checkpoint files", strlen(name));
    else
        rc = td_safetensors_open(path, TD_E_MODEL, &ck->files[ck->n_files], err);
    if (rc == TD_OK) {
        ck->file_names[ck->n_files++] = copy;
        copy = NULL;
    }
    free(copy);
    free(path);
    return rc;
}

/* A plain file name: no folder, nothing that leaves the model's own. */
static bool is_plain_name(const char *s, size_t n) {
    return n > 0 && n == strlen(s) && !strchr(s, '/') && !strchr(s, '\\') && s[0] != '.';
}

static size_t find_file(const td_checkpoint *ck, const char *name) {
    size_t i = 0;
    while (i < ck->n_files && strcmp(ck->file_names[i], name) != 0)
        i++;
    return i;
}

static td_status open_index(td_checkpoint *ck, const char *path, td_error *err) {
    td_status rc = td_json_load_file(path, INDEX_MAX_BYTES, TD_E_MODEL, &ck->index, err);
    if (rc != TD_OK)
        return rc;
    ck->weight_map = json_object_get(ck->index, "weight_map");
    if (!json_is_object(ck->weight_map) || json_object_size(ck->weight_map) == 0)
        return td_error_set(err, TD_E_MODEL, "%s: \"weight_map\" must be an object with entries",
                            path);
    const char *tensor;
    json_t *v;
    json_object_foreach((json_t *)ck->weight_map, tensor, v) {
        const char *name = json_string_value(v);
        if (!name)
            return td_error_set(err, TD_E_MODEL, "%s: the file of tensor %s must be a string", path,
                                tensor);
        if (!is_plain_name(name, json_string_length(v)))
            return td_error_set(
                err, TD_E_MODEL,
                "%s: the file \"%.100s\" of tensor %s is refused: it must be a plain "
                "name in the same folder",
                path, name, tensor);
        if (find_file(ck, name) == ck->n_files && (rc = add_file(ck, name, err)) != TD_OK)
            return rc;
    }
    return TD_OK;
}

/* Neither form is there: says what is instead. */
static td_status no_safetensors(const td_checkpoint *ck, td_error *err) {
    static const char *const others[] = {"pytorch_model.bin",   "pytorch_model.bin.index.json",
                                         "consolidated.00.pth", "tf_model.h5",
                                         "model.ckpt.index",    "flax_model.msgpack"};
    for (size_t i = 0; i < TD_ARRAY_LEN(others); i++) {
        char *path = td_asprintf("%s/%s", ck->dir, others[i]);
        bool there = path && td_path_exists(path);
        free(path);
        if (there)
            return td_error_set(err, TD_E_MODEL,
                                "%s: the weights are in %s, which is not read; convert them to "
                                "safetensors (in Python: AutoModelForCausalLM.from_pretrained(DIR)"
                                ".save_pretrained(NEW, safe_serialization=True))",
                                ck->dir, others[i]);
    }
    return td_error_set(err, TD_E_MODEL,
                        "%s: there is neither model.safetensors nor model.safetensors.index.json",
                        ck->dir);
}

static td_status open_files(td_checkpoint *ck, td_error *err) {
    char *single = td_asprintf("%s/model.safetensors", ck->dir);
    char *index = td_asprintf("%s/model.safetensors.index.json", ck->dir);
    td_status rc;
    if (!single || !index)
        rc = td_error_nomem(err, "path of the checkpoint", strlen(ck->dir));
    else if (td_path_exists(single)) /* first, as Hugging Face looks */
        rc = add_file(ck, "model.safetensors", err);
    else if (td_path_exists(index))
        rc = open_index(ck, index, err);
    else
        rc = no_safetensors(ck, err);
    free(index);
    free(single);
    return rc;
}

/* --- tensors ---------------------------------------------------------------------------------- */

/* NULL when the checkpoint has none of that name. An index entry whose file lacks it is an error.
 */
static td_status find_tensor(const td_checkpoint *ck, const char *name, const td_st_tensor **out,
                             td_error *err) {
    *out = NULL;
    if (!ck->weight_map) {
        *out = td_safetensors_find(ck->files[0], name);
        return TD_OK;
    }
    const char *file = json_string_value(json_object_get(ck->weight_map, name));
    if (!file)
        return TD_OK;
    size_t i = find_file(ck, file);
    *out = td_safetensors_find(ck->files[i], name);
    if (!*out)
        return td_error_set(err, TD_E_MODEL,
                            "%s: the index says that tensor %s is in %s, but it is not", ck->dir,
                            name, file);
    return TD_OK;
}

static void print_shape(const int64_t *shape, int32_t n, char *buf, size_t size) {
    size_t at = (size_t)snprintf(buf, size, "[");
    for (int32_t i = 0; i < n && at < size; i++)
        at += (size_t)snprintf(buf + at, size - at, i ? ", %lld" : "%lld", (long long)shape[i]);
    if (at < size)
        snprintf(buf + at, size - at, "]");
}

static td_status check_tensor(const td_checkpoint *ck, td_ckpt_entry *e, shape2 want,
                              td_error *err) {
    const td_st_tensor *t;
    td_status rc = find_tensor(ck, e->name, &t, err);
    if (rc != TD_OK)
        return rc;
    if (!t)
        return td_error_set(err, TD_E_MODEL,
                            "%s: tensor %s is missing, but config.json asks for it", ck->dir,
                            e->name);
    int64_t shape[2] = {want.rows, want.cols};
    int32_t n_dims = want.cols ? 2 : 1;
    if (t->n_dims != n_dims || memcmp(t->shape, shape, (size_t)n_dims * sizeof *shape) != 0) {
        char has[200], need[64];
        print_shape(t->shape, t->n_dims, has, sizeof has);
        print_shape(shape, n_dims, need, sizeof need);
        return td_error_set(err, TD_E_MODEL, "%s: tensor %s has shape %s, config.json asks for %s",
                            ck->dir, e->name, has, need);
    }
    if (t->dtype != TD_F32 && t->dtype != TD_BF16 && t->dtype != TD_F16)
        return td_error_set(err, TD_E_MODEL,
                            "%s: tensor %s has dtype %s; F32, BF16 and F16 are supported", ck->dir,
                            e->name, t->dtype_name);
    e->tensor = t;
    return TD_OK;
}

static int entry_by_name(const void *a, const void *b) {
    const td_ckpt_entry *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int name_against_entry(const void *key, const void *elem) {
    const td_ckpt_entry *const *y = elem;
    return strcmp(key, (*y)->name);
}

static td_status find_required(td_checkpoint *ck, td_error *err) {
    const td_model_config *c = &ck->cfg;
    ck->n_entries = TD_MT_COUNT + (size_t)c->n_layers * TD_LT_COUNT;
    ck->entries = td_calloc(ck->n_entries, sizeof *ck->entries);
    ck->sorted = td_calloc(ck->n_entries, sizeof *ck->sorted);
    if (!ck->entries || !ck->sorted)
        return td_error_nomem(err, "list of tensors", ck->n_entries * sizeof *ck->entries);
    for (size_t i = 0; i < ck->n_entries; i++) {
        td_ckpt_entry *e = &ck->entries[i];
        shape2 want;
        if (i < TD_MT_COUNT) {
            want = model_shape(c, (td_model_tensor)i);
            e->name = td_strdup(model_names[i]);
        } else {
            size_t layer = (i - TD_MT_COUNT) / TD_LT_COUNT, which = (i - TD_MT_COUNT) % TD_LT_COUNT;
            want = layer_shape(c, (td_layer_tensor)which);
            e->name = td_asprintf("model.layers.%zu.%s", layer, layer_names[which]);
        }
        if (!e->name)
            return td_error_nomem(err, "name of a tensor", 64);
        if (!want.rows)
            continue;
        td_status rc = check_tensor(ck, e, want, err);
        if (rc != TD_OK)
            return rc;
        ck->sorted[ck->n_sorted++] = e;
    }
    qsort(ck->sorted, ck->n_sorted, sizeof *ck->sorted, entry_by_name);
    return TD_OK;
}

static bool ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && !strcmp(s + n - m, suffix);
}

/* A tensor of the language model that the config does not ask for would be dropped silently, and
 * the teacher would not be the one that was trained. */
static td_status check_unexpected(td_checkpoint *ck, td_error *err) {
    for (size_t f = 0; f < ck->n_files; f++)
        for (size_t i = 0; i < td_safetensors_count(ck->files[f]); i++) {
            const td_st_tensor *t = td_safetensors_at(ck->files[f], i);
            if (bsearch(t->name, ck->sorted, ck->n_sorted, sizeof *ck->sorted, name_against_entry))
                continue;
            if (ends_with(t->name, ".rotary_emb.inv_freq")) /* a buffer that old versions saved */
                continue;
            if (ck->cfg.tied_embeddings && !strcmp(t->name, model_names[TD_MT_LM_HEAD])) {
                ck->shadow_head = t;
                continue;
            }
            const char *path = td_safetensors_path(ck->files[f]);
            if (ends_with(t->name, ".bias"))
                return td_error_set(err, TD_E_MODEL,
                                    "%s: tensor %s is there, but config.json asks for no such bias "
                                    "(%s; attention_bias, mlp_bias)",
                                    path, t->name, ck->cfg.architecture);
            if (!strncmp(t->name, "model.", 6) || !strncmp(t->name, "lm_head.", 8))
                return td_error_set(err, TD_E_MODEL,
                                    "%s: tensor %s is there, but %s with this config.json has no "
                                    "use for it",
                                    path, t->name, ck->cfg.architecture);
            td_log_warn("%s: tensor %s is not part of %s and is ignored", path, t->name,
                        ck->cfg.architecture);
        }
    return TD_OK;
}

td_status td_checkpoint_open(const char *model_dir, const td_model_config *cfg, td_checkpoint **out,
                             td_error *err) {
    td_checkpoint *ck = td_calloc(1, sizeof *ck);
    if (!ck || !(ck->dir = td_strdup(model_dir))) {
        free(ck);
        return td_error_nomem(err, "checkpoint", sizeof *ck);
    }
    ck->cfg = *cfg;
    td_status rc = open_files(ck, err);
    if (rc == TD_OK)
        rc = find_required(ck, err);
    if (rc == TD_OK)
        rc = check_unexpected(ck, err);
    if (rc != TD_OK) {
        td_checkpoint_close(ck);
        return rc;
    }
    json_decref(ck->index);
    ck->index = NULL;
    ck->weight_map = NULL;
    *out = ck;
    return TD_OK;
}

void td_checkpoint_close(td_checkpoint *ck) {
    if (!ck)
        return;
    for (size_t i = 0; ck->entries && i < ck->n_entries; i++)
        free(ck->entries[i].name);
    for (size_t i = 0; i < ck->n_files; i++) {
        td_safetensors_close(ck->files[i]);
        free(ck->file_names[i]);
    }
    json_decref(ck->index);
    free(ck->entries);
    free(ck->sorted);
    free(ck->files);
    free(ck->file_names);
    free(ck->dir);
    free(ck);
}

td_ckpt_entry *td_checkpoint_model(td_checkpoint *ck, td_model_tensor which) {
    return &ck->entries[which];
}

td_ckpt_entry *td_checkpoint_layer(td_checkpoint *ck, int32_t layer, td_layer_tensor which) {
    return &ck->entries[TD_MT_COUNT + (size_t)layer * TD_LT_COUNT + which];
}

const td_st_tensor *td_checkpoint_shadow_head(const td_checkpoint *ck) {
    return ck->shadow_head;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Advice on the pages that hold the tensor. Pages that it shares with a neighbour are covered too:
 * both kinds of advice cost at most another fault there. */
static void advise(const td_st_tensor *t, int advice) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)t->data & ~(page - 1);
    uintptr_t end = ((uintptr_t)t->data + t->size_bytes + page - 1) & ~(page - 1);
    if (t->size_bytes)
        madvise((void *)begin, end - begin, advice); /* only advice: failure changes nothing */
}

void td_checkpoint_prefetch(const td_ckpt_entry *e) {
    if (e->tensor)
        advise(e->tensor, MADV_WILLNEED);
}

void td_checkpoint_drop_pages(const td_st_tensor *t) {
    advise(t, MADV_DONTNEED);
}

void td_checkpoint_touch(td_ckpt_entry *e, uint64_t *bytes_read) {
    if (!e->tensor || e->touched)
        return;
    e->hash = td_hash64(e->tensor->data, e->tensor->size_bytes);
    e->touched = true;
    if (bytes_read)
        *bytes_read += e->tensor->size_bytes;
}

td_status td_checkpoint_hash(td_checkpoint *ck, uint64_t *out, td_error *err) {
    td_strbuf b = {0};
    for (size_t i = 0; i < ck->n_sorted; i++) {
        td_ckpt_entry *e = ck->sorted[i];
        if (!e->touched) {
            td_checkpoint_prefetch(e);
            td_checkpoint_touch(e, NULL);
            td_checkpoint_drop_pages(e->tensor);
        }
        char shape[200];
        print_shape(e->tensor->shape, e->tensor->n_dims, shape, sizeof shape);
        td_strbuf_printf(&b, "%s %s %s %016llx\n", e->name, e->tensor->dtype_name, shape,
                         (unsigned long long)e->hash);
    }
    td_status rc = b.oom ? td_error_nomem(err, "weight hash", b.len) : TD_OK;
    if (rc == TD_OK)
        *out = td_hash64(b.data, b.len);
    td_strbuf_free(&b);
    return rc;
}

td_dtype td_checkpoint_dtype(const td_checkpoint *ck) {
    bool has_bf16 = false, has_f16 = false;
    for (size_t i = 0; i < ck->n_sorted; i++) {
        const td_st_tensor *t = ck->sorted[i]->tensor;
        if (t->n_dims != 2)
            continue;
        if (t->dtype == TD_F32)
            return TD_F32;
        has_bf16 |= t->dtype == TD_BF16;
        has_f16 |= t->dtype == TD_F16;
    }
    /* Neither 16-bit format holds the other. */
    return has_bf16 && has_f16 ? TD_F32 : has_f16 ? TD_F16 : TD_BF16;
}
