/* checkpoint.c - finds the files of a checkpoint folder and checks their tensors (checkpoint.h).
 *
 * One file (model.safetensors) or several (model.safetensors.index.json). The index is untrusted:
 * a file name in it is a plain name in the same folder and nothing else.
 */
#include "model/checkpoint_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/tensor.h"
#include "base/json.h"
#include "base/log.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { INDEX_MAX_BYTES = 256 << 20 };

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

/* NULL when the checkpoint has none of that name. An index entry without it in its file is an
 * error. */
td_status td_ckpt_find(const td_checkpoint *ck, const char *name, const td_st_tensor **out,
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

static bool ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && !strcmp(s + n - m, suffix);
}

static td_status shape_error(const td_checkpoint *ck, const char *name, const td_st_tensor *t,
                             const int64_t *shape, int32_t n_dims, td_error *err) {
    char has[200], need[64];
    print_shape(t->shape, t->n_dims, has, sizeof has);
    print_shape(shape, n_dims, need, sizeof need);
    return td_error_set(err, TD_E_MODEL, "%s: tensor %s has shape %s, config.json asks for %s",
                        ck->dir, name, has, need);
}

/* Bytes that stand for powers of two: the config must say so, and none may be the NaN. */
static td_status check_e8m0(const td_checkpoint *ck, const td_st_tensor *t, td_error *err) {
    uint8_t piece[4096];
    if (!ck->cfg.fp8_scale_e8m0)
        return td_error_set(err, TD_E_MODEL,
                            "%s: tensor %s has dtype %s, which is a scale only where config.json's "
                            "quantization_config has scale_fmt \"ue8m0\"",
                            ck->dir, t->name, t->dtype_name);
    for (size_t at = 0, n; at < t->size_bytes; at += n) {
        n = TD_MIN(sizeof piece, t->size_bytes - at);
        td_status rc = td_safetensors_read(t, at, piece, n, err);
        if (rc != TD_OK)
            return rc;
        const uint8_t *bad = memchr(piece, TD_E8M0_NAN, n);
        if (bad)
            return td_error_set(err, TD_E_MODEL,
                                "%s: tensor %s: element %zu is 255, which is not a number in E8M0; "
                                "the checkpoint is damaged",
                                ck->dir, t->name, at + (size_t)(bad - piece));
    }
    return TD_OK;
}

/* The scale of an F8_E4M3 matrix: one number for all, one per row, or one per block. */
static td_status check_scale(td_checkpoint *ck, td_ckpt_entry *e, td_error *err) {
    const td_st_tensor *w = e->tensor, *t;
    char *name = td_asprintf("%s%s", e->name, ck->cfg.fp8_scale_suffix);
    e->scale = td_calloc(1, sizeof *e->scale);
    if (!name || !e->scale) {
        free(name);
        return td_error_nomem(err, "scale of a tensor", 64);
    }
    e->scale->name = name;
    e->scale->is_scale = true;
    td_status rc = td_ckpt_find(ck, name, &t, err);
    if (rc == TD_OK && !t && ends_with(name, "_scale_inv")) {
        /* Other tools write quant_method "fp8" with this name, and mean the same factor. */
        name[strlen(name) - strlen("_inv")] = '\0';
        rc = td_ckpt_find(ck, name, &t, err);
    }
    if (rc != TD_OK)
        return rc;
    if (!t)
        return td_error_set(err, TD_E_MODEL,
                            "%s: tensor %s has dtype F8_E4M3, but its scale %s is "
                            "missing",
                            ck->dir, e->name, name);
    if (td_scale_is_e8m0(t)) {
        if ((rc = check_e8m0(ck, t, err)) != TD_OK)
            return rc;
    } else if (t->dtype != TD_F32 && t->dtype != TD_BF16 && t->dtype != TD_F16) {
        return td_error_set(err, TD_E_MODEL,
                            "%s: tensor %s has dtype %s; scales in F32, BF16, F16 and, with "
                            "scale_fmt \"ue8m0\", F8_E8M0 are supported",
                            ck->dir, name, t->dtype_name);
    }
    e->scale->tensor = t;
    ck->sorted[ck->n_sorted++] = e->scale;
    const int32_t *block = ck->cfg.fp8_block;
    int64_t rows = w->shape[0], cols = w->shape[1];
    e->scale_block[0] = rows;
    e->scale_block[1] = cols;
    if (t->n_elems == 1)
        return TD_OK;
    if (block[0] > 0) {
        int64_t want[2] = {(rows + block[0] - 1) / block[0], (cols + block[1] - 1) / block[1]};
        if (t->n_dims != 2 || t->shape[0] != want[0] || t->shape[1] != want[1])
            return shape_error(ck, name, t, want, 2, err);
        e->scale_block[0] = block[0];
        e->scale_block[1] = block[1];
        return TD_OK;
    }
    int64_t per_row[2] = {rows, 1};
    if (t->n_elems != rows || t->shape[0] != rows || t->n_dims > 2)
        return shape_error(ck, name, t, per_row, 2, err);
    e->scale_block[0] = 1;
    return TD_OK;
}

/* `transposed`: the file holds [cols, rows]. */
static td_status check_tensor(td_checkpoint *ck, td_ckpt_entry *e, td_shape want, bool transposed,
                              td_error *err) {
    const td_st_tensor *t;
    td_status rc = td_ckpt_find(ck, e->name, &t, err);
    if (rc != TD_OK)
        return rc;
    if (!t && e == &ck->entries[TD_MT_LM_HEAD])
        return td_error_set(err, TD_E_MODEL,
                            "%s: tensor %s is missing, and tie_word_embeddings is false: "
                            "transformers would fill it with random numbers; take a checkpoint "
                            "with its head, or set tie_word_embeddings to true in config.json if "
                            "the embedding is the head",
                            ck->dir, e->name);
    if (!t)
        return td_error_set(err, TD_E_MODEL,
                            "%s: tensor %s is missing, but config.json asks for it", ck->dir,
                            e->name);
    int64_t shape[2] = {want.rows, want.cols};
    int32_t n_dims = want.cols ? 2 : 1;
    if (n_dims == 2 && transposed) {
        shape[0] = want.cols;
        shape[1] = want.rows;
    }
    if (t->n_dims != n_dims || memcmp(t->shape, shape, (size_t)n_dims * sizeof *shape) != 0)
        return shape_error(ck, e->name, t, shape, n_dims, err);
    e->tensor = t;
    e->transposed = n_dims == 2 && transposed;
    ck->sorted[ck->n_sorted++] = e;
    if (t->dtype == TD_F32 || t->dtype == TD_BF16 || t->dtype == TD_F16)
        return TD_OK;
    if (ck->cfg.fp8 && n_dims == 2 && !strcmp(t->dtype_name, "F8_E4M3")) {
        ck->has_fp8 = true;
        return check_scale(ck, e, err);
    }
    return td_error_set(err, TD_E_MODEL,
                        "%s: tensor %s has dtype %s; F32, BF16 and F16 are supported%s", ck->dir,
                        e->name, t->dtype_name, ck->cfg.fp8 ? ", and F8_E4M3 for matrices" : "");
}

static int entry_by_name(const void *a, const void *b) {
    const td_ckpt_entry *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int name_against_entry(const void *key, const void *elem) {
    const td_ckpt_entry *const *y = elem;
    return strcmp(key, (*y)->name);
}

/* `pattern` with the number in the place of its '#', behind `front`; NULL when out of memory. */
char *td_ckpt_expand(const char *front, const char *pattern, int32_t number) {
    const char *hash = strchr(pattern, '#');
    if (!hash)
        return td_asprintf("%s%s", front, pattern);
    return td_asprintf("%s%.*s%d%s", front, (int)(hash - pattern), pattern, number, hash + 1);
}

/* `name` is taken over; NULL is an out-of-memory. */
td_status td_ckpt_require(td_checkpoint *ck, td_ckpt_entry *e, char *name, td_shape want,
                          bool transposed, td_error *err) {
    e->name = name;
    if (!name)
        return td_error_nomem(err, "name of a tensor", 64);
    return want.rows ? check_tensor(ck, e, want, transposed, err) : TD_OK;
}

static td_status require_layer(td_checkpoint *ck, int32_t layer, td_error *err) {
    const td_model_config *c = &ck->cfg;
    const td_family *f = ck->family;
    char *front = td_ckpt_expand(ck->prefix, f->layer, layer);
    td_status rc = front ? TD_OK : td_error_nomem(err, "name of a tensor", 64);
    for (int32_t i = 0; rc == TD_OK && i < TD_LT_COUNT; i++) {
        td_shape want = td_layer_tensor_shape(c, f, layer, (td_layer_tensor)i);
        char *name = NULL;
        if (want.rows &&
            (rc = td_ckpt_layer_name(ck, front, f->layer_names[i], 0, &name, err)) == TD_OK)
            rc = td_ckpt_require(ck, td_checkpoint_layer(ck, layer, (td_layer_tensor)i), name, want,
                                 f->transposed, err);
    }
    if (rc == TD_OK)
        rc = td_ckpt_require_experts(ck, layer, front, err);
    free(front);
    return rc;
}

/* Files that were saved from the model without its head lack the prefix. */
static td_status find_prefix(td_checkpoint *ck, td_error *err) {
    const char *embed = ck->family->model_names[TD_MT_EMBED];
    const td_st_tensor *with = NULL, *without = NULL;
    char *name = td_asprintf("%s%s", ck->family->prefix, embed);
    td_status rc =
        name ? td_ckpt_find(ck, name, &with, err) : td_error_nomem(err, "name of a tensor", 64);
    free(name);
    if (rc == TD_OK)
        rc = td_ckpt_find(ck, embed, &without, err);
    ck->prefix = !with && without ? "" : ck->family->prefix;
    return rc;
}

static td_status find_required(td_checkpoint *ck, td_error *err) {
    const td_model_config *c = &ck->cfg;
    ck->n_entries = TD_MT_COUNT;
    for (int32_t i = 0; i < c->n_layers; i++) {
        ck->layer_at[i] = ck->n_entries;
        ck->n_entries += TD_LT_COUNT + (size_t)td_layer_experts(&c->layers[i]) * TD_ET_COUNT;
    }
    ck->entries = td_calloc(ck->n_entries, sizeof *ck->entries);
    ck->sorted = td_calloc(ck->n_entries, 2 * sizeof *ck->sorted); /* each may have a scale */
    ck->fused = td_calloc((size_t)c->n_layers, sizeof *ck->fused);
    ck->slices = td_calloc(ck->n_entries, sizeof *ck->slices);
    if (!ck->entries || !ck->sorted || !ck->fused || !ck->slices)
        return td_error_nomem(err, "list of tensors", ck->n_entries * sizeof *ck->entries);
    td_status rc = find_prefix(ck, err);
    for (int32_t i = 0; rc == TD_OK && i < TD_MT_COUNT; i++) {
        const char *name = ck->family->model_names[i];
        if (name)
            rc = td_ckpt_require(ck, &ck->entries[i],
                                 td_asprintf("%s%s", i == TD_MT_LM_HEAD ? "" : ck->prefix, name),
                                 td_model_tensor_shape(c, (td_model_tensor)i), false, err);
    }
    for (int32_t i = 0; rc == TD_OK && i < c->n_layers; i++)
        rc = require_layer(ck, i, err);
    if (rc == TD_OK)
        qsort(ck->sorted, ck->n_sorted, sizeof *ck->sorted, entry_by_name);
    return rc;
}

/* Buffers that old versions saved, and scales of activations, which are not quantised here. */
static bool is_ignored(const td_checkpoint *ck, const char *name) {
    static const char *const fp8[] = {".input_scale", ".output_scale", ".k_scale",
                                      ".v_scale",     ".q_scale",      ".activation_scale"};
    for (size_t i = 0; i < TD_ARRAY_LEN(ck->family->ignored); i++)
        if (ck->family->ignored[i] && ends_with(name, ck->family->ignored[i]))
            return true;
    for (size_t i = 0; ck->cfg.fp8 && i < TD_ARRAY_LEN(fp8); i++)
        if (ends_with(name, fp8[i]))
            return true;
    return false;
}

/* Does the name belong to the language model? */
static bool is_own(const td_checkpoint *ck, const char *name) {
    const char *head = ck->family->model_names[TD_MT_LM_HEAD], *layer = ck->family->layer;
    if (!strncmp(name, head, (size_t)(strchr(head, '.') + 1 - head)))
        return true;
    return ck->prefix[0] ? !strncmp(name, ck->prefix, strlen(ck->prefix))
                         : !strncmp(name, layer, (size_t)(strchr(layer, '#') - layer));
}

/* A tensor of the language model that the config does not ask for would be dropped silently, and
 * the teacher would not be the one that was trained. */
static td_status check_unexpected(td_checkpoint *ck, td_error *err) {
    for (size_t f = 0; f < ck->n_files; f++)
        for (size_t i = 0; i < td_safetensors_count(ck->files[f]); i++) {
            const td_st_tensor *t = td_safetensors_at(ck->files[f], i);
            if (bsearch(t->name, ck->sorted, ck->n_sorted, sizeof *ck->sorted,
                        name_against_entry) ||
                td_ckpt_is_fused(ck, t) || is_ignored(ck, t->name))
                continue;
            if (ck->cfg.tied_embeddings &&
                !strcmp(t->name, ck->family->model_names[TD_MT_LM_HEAD])) {
                ck->shadow_head = t;
                continue;
            }
            const char *path = td_safetensors_path(ck->files[f]);
            if (ends_with(t->name, ".bias"))
                return td_error_set(err, TD_E_MODEL,
                                    "%s: tensor %s is there, but config.json asks for no such bias "
                                    "(%s; attention_bias, mlp_bias)",
                                    path, t->name, ck->cfg.architecture);
            if (is_own(ck, t->name))
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
    ck->family = td_family_find(cfg->architecture);
    td_status rc = TD_OK;
    if (!ck->family)
        rc = td_error_set(err, TD_E_MODEL, "%s: the architecture \"%s\" is not supported",
                          model_dir, cfg->architecture);
    if (rc == TD_OK)
        rc = open_files(ck, err);
    if (rc == TD_OK)
        rc = find_required(ck, err);
    if (rc == TD_OK)
        rc = check_unexpected(ck, err);
    if (rc != TD_OK) {
        td_checkpoint_close(ck);
        return rc;
    }
    if (ck->has_fp8)
        td_log_info("%s: FP8 weights are dequantised; activations are not quantised, as in "
                    "transformers with dequantize=True",
                    model_dir);
    json_decref(ck->index);
    ck->index = NULL;
    ck->weight_map = NULL;
    *out = ck;
    return TD_OK;
}

void td_checkpoint_close(td_checkpoint *ck) {
    if (!ck)
        return;
    for (size_t i = 0; ck->entries && i < ck->n_entries; i++) {
        td_ckpt_entry *e = &ck->entries[i];
        if (e->scale)
            free(e->scale->name);
        free(e->scale);
        free(e->name);
    }
    for (size_t i = 0; i < ck->n_files; i++) {
        td_safetensors_close(ck->files[i]);
        free(ck->file_names[i]);
    }
    json_decref(ck->index);
    free(ck->entries);
    free(ck->sorted);
    free(ck->fused);
    free(ck->slices);
    free(ck->files);
    free(ck->file_names);
    free(ck->dir);
    free(ck);
}

td_ckpt_entry *td_checkpoint_model(td_checkpoint *ck, td_model_tensor which) {
    return &ck->entries[which];
}

td_ckpt_entry *td_checkpoint_layer(td_checkpoint *ck, int32_t layer, td_layer_tensor which) {
    return &ck->entries[ck->layer_at[layer] + which];
}

td_ckpt_entry *td_checkpoint_expert(td_checkpoint *ck, int32_t layer, int32_t expert,
                                    td_expert_tensor which) {
    return td_checkpoint_layer(ck, layer, TD_LT_COUNT) + (size_t)expert * TD_ET_COUNT + which;
}

const td_family *td_checkpoint_family(const td_checkpoint *ck) {
    return ck->family;
}

const td_st_tensor *td_checkpoint_shadow_head(const td_checkpoint *ck) {
    return ck->shadow_head;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Advice on the pages that hold bytes [offset, offset + n) of the tensor. Pages that it shares with
 * a neighbour are covered too: both kinds of advice cost at most another fault there. */
static void advise(const td_st_tensor *t, size_t offset, size_t n, int advice) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)t->data + offset) & ~(page - 1);
    uintptr_t end = ((uintptr_t)t->data + offset + n + page - 1) & ~(page - 1);
    if (n)
        madvise((void *)begin, end - begin, advice); /* only advice: failure changes nothing */
}

void td_checkpoint_prefetch_range(const td_ckpt_entry *e, size_t offset, size_t n) {
    if (e->tensor && offset < e->tensor->size_bytes)
        advise(e->tensor, offset, TD_MIN(n, e->tensor->size_bytes - offset), MADV_WILLNEED);
}

void td_checkpoint_prefetch(const td_ckpt_entry *e) {
    td_checkpoint_prefetch_range(e, 0, SIZE_MAX);
    if (e->scale)
        td_checkpoint_prefetch(e->scale);
}

void td_checkpoint_drop_pages(const td_st_tensor *t) {
    advise(t, 0, t->size_bytes, MADV_DONTNEED);
}

void td_checkpoint_touch(td_ckpt_entry *e, uint64_t *bytes_read) {
    if (!e->tensor || e->touched)
        return;
    e->hash = td_hash64(e->tensor->data, e->tensor->size_bytes);
    e->touched = true;
    if (bytes_read)
        *bytes_read += e->tensor->size_bytes;
    if (e->scale)
        td_checkpoint_touch(e->scale, bytes_read);
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
    bool has_bf16 = ck->has_fp8 && ck->cfg.weight_dtype == TD_BF16;
    bool has_f16 = ck->has_fp8 && ck->cfg.weight_dtype == TD_F16;
    if (ck->has_fp8 && ck->cfg.weight_dtype == TD_F32)
        return TD_F32;
    for (size_t i = 0; i < ck->n_sorted; i++) {
        const td_st_tensor *t = ck->sorted[i]->tensor;
        if (t->n_dims != 2 || ck->sorted[i]->is_scale)
            continue;
        if (t->dtype == TD_F32)
            return TD_F32;
        has_bf16 |= t->dtype == TD_BF16;
        has_f16 |= t->dtype == TD_F16;
    }
    /* Neither 16-bit format holds the other. */
    return has_bf16 && has_f16 ? TD_F32 : has_f16 ? TD_F16 : TD_BF16;
}
