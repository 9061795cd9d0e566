/* weights.c - checkpoint tensors -> prepared weights, once per memory domain.
 *
 * Items are walked in order. Of each item every tensor is touched once: hashed, prepared or
 * uploaded for all domains that hold the item, and its pages given back, so that the process holds
 * the prepared copies and about one layer of the mapping, whatever the model's size. The pages of
 * the next item are read ahead meanwhile. A tied embedding serves the table and the lm_head from
 * the same touch.
 */
#include "model/weights.h"

#include <stdlib.h>
#include <string.h>

#include "model/checkpoint.h"
#include "model/tensor.h"
#include "tdgen/util.h"

struct td_weights {
    td_model_config cfg;
    td_checkpoint *ckpt;
    td_dtype compute;
    td_domain_weights *domains; /* [n_domains] */
    int32_t n_domains;
    bool loaded, hash_known;
    uint64_t hash;
};

/* Staging for what is converted on the way to a device; fits any vector of a layer. */
enum { STAGING_BYTES = 8 << 20 };

/* What one td_weights_load needs beside the weights. */
typedef struct loader {
    td_weights *w;
    td_stream **streams; /* [n_domains] uploads */
    td_event **events;   /* [n_domains] */
    void *staging;       /* STAGING_BYTES */
    uint64_t bytes_read;
    td_error *err;
} loader;

td_status td_weights_open(const char *model_dir, const td_model_config *cfg, td_weights **out,
                          td_error *err) {
    td_weights *w = td_calloc(1, sizeof *w);
    if (!w)
        return td_error_nomem(err, "weights", sizeof *w);
    w->cfg = *cfg;
    td_status rc = td_checkpoint_open(model_dir, cfg, &w->ckpt, err);
    if (rc != TD_OK) {
        free(w);
        return rc;
    }
    *out = w;
    return TD_OK;
}

static void free_domain(td_domain_weights *d, int32_t n_layers, int32_t n_experts) {
    if (!d->device)
        return;
    const td_device_ops *ops = d->device->ops;
    for (int32_t i = 0; d->layers && i < n_layers; i++) {
        td_layer_weights *l = &d->layers[i];
        for (int k = 0; k < TD_LM_COUNT; k++)
            if (l->mat[k])
                ops->weight_destroy(l->mat[k]);
        for (int k = 0; k < TD_LV_COUNT; k++)
            if (l->vec[k])
                ops->free(d->device, l->vec[k]);
        for (int32_t x = 0; l->expert_up && l->expert_down && x < n_experts; x++) {
            if (l->expert_up[x])
                ops->weight_destroy(l->expert_up[x]);
            if (l->expert_down[x])
                ops->weight_destroy(l->expert_down[x]);
        }
        free(l->expert_up);
        free(l->expert_down);
    }
    void *plain[] = {d->embed_table, d->position_table, d->final_norm, d->final_norm_bias};
    for (size_t k = 0; k < TD_ARRAY_LEN(plain); k++)
        if (plain[k])
            ops->free(d->device, plain[k]);
    if (d->lm_head)
        ops->weight_destroy(d->lm_head);
    free(d->layers);
    free(d->has_item);
}

static void free_domains(td_weights *w) {
    for (int32_t i = 0; i < w->n_domains; i++)
        free_domain(&w->domains[i], w->cfg.n_layers, w->cfg.n_experts);
    free(w->domains);
    w->domains = NULL;
    w->n_domains = 0;
}

void td_weights_close(td_weights *w) {
    if (!w)
        return;
    free_domains(w);
    td_checkpoint_close(w->ckpt);
    free(w);
}

td_status td_weights_hash(td_weights *w, uint64_t *out, td_error *err) {
    if (!w->hash_known) {
        td_status rc = td_checkpoint_hash(w->ckpt, &w->hash, err);
        if (rc != TD_OK)
            return rc;
        w->hash_known = true;
    }
    *out = w->hash;
    return TD_OK;
}

td_dtype td_weights_dtype(const td_weights *w) {
    return td_checkpoint_dtype(w->ckpt);
}

const td_domain_weights *td_weights_of(const td_weights *w, const td_device *device) {
    for (int32_t i = 0; i < w->n_domains; i++) {
        const td_device *d = w->domains[i].device;
        if (!strcmp(d->ops->backend, device->ops->backend) && d->info.domain == device->info.domain)
            return &w->domains[i];
    }
    return NULL;
}

const td_model_config *td_weights_config(const td_weights *w) {
    return &w->cfg;
}

td_dtype td_weights_compute(const td_weights *w) {
    return w->compute;
}

/* --- upload ----------------------------------------------------------------------------------- */

/* Converts n elements into the memory at dst, through the staging buffer; returns when they are
 * there. src need not be aligned. */
static td_status upload(loader *ld, int32_t domain, const void *src, td_dtype from, size_t n,
                        td_dtype to, char *dst) {
    const td_device_ops *ops = ld->w->domains[domain].device->ops;
    size_t from_size = td_dtype_size(from), to_size = td_dtype_size(to);
    size_t chunk = STAGING_BYTES / to_size;
    for (size_t i = 0; i < n; i += chunk) {
        size_t m = TD_MIN(chunk, n - i);
        td_tensor_convert((const char *)src + i * from_size, from, ld->staging, to, m);
        td_status rc;
        if ((rc = ops->copy_in(ld->streams[domain], dst + i * to_size, ld->staging, m * to_size,
                               ld->err)) != TD_OK ||
            (rc = ops->event_record(ld->events[domain], ld->streams[domain], ld->err)) != TD_OK ||
            (rc = ops->event_sync(ld->events[domain], 0, ld->err)) != TD_OK)
            return rc;
    }
    return TD_OK;
}

/* Rows of a fused qkv are q, k, v of one head after the other: where part (0 q, 1 k, 2 v) of a head
 * begins. */
static int64_t by_head_row(const td_model_config *c, int32_t part, int32_t head) {
    return ((int64_t)head * 3 + part) * c->head_dim;
}

/* The vectors of the entries, one after the other, as one F32 array; nothing when absent. */
static td_status load_vectors(loader *ld, int32_t domain, td_ckpt_entry *const *parts, int32_t n,
                              bool by_head, bool plus_one, float **out) {
    const td_model_config *c = &ld->w->cfg;
    td_device *dev = ld->w->domains[domain].device;
    size_t n_elems = 0, at = 0;
    for (int32_t i = 0; i < n; i++)
        n_elems += parts[i]->tensor ? (size_t)parts[i]->tensor->n_elems : 0;
    if (!n_elems)
        return TD_OK;
    float *host = td_calloc(n_elems, sizeof *host);
    if (!host)
        return td_error_nomem(ld->err, "vector of a layer", n_elems * sizeof *host);
    for (int32_t i = 0; i < n; i++) {
        const td_st_tensor *t = parts[i]->tensor;
        if (!t)
            continue;
        td_checkpoint_touch(parts[i], &ld->bytes_read);
        for (int32_t part = 0; by_head && part < 3; part++)
            for (int32_t h = 0; h < c->n_heads; h++)
                for (int32_t d = 0; d < c->head_dim; d++)
                    host[at++] = td_tensor_load(t->data, (td_dtype)t->dtype,
                                                (size_t)(by_head_row(c, part, h) + d));
        for (int64_t k = 0; !by_head && k < t->n_elems; k++)
            host[at++] = td_tensor_load(t->data, (td_dtype)t->dtype, (size_t)k);
    }
    for (size_t k = 0; plus_one && k < n_elems; k++)
        host[k] = 1.0f + host[k];
    void *p;
    td_status rc = dev->ops->alloc(dev, n_elems * 4, &p, ld->err);
    if (rc == TD_OK) {
        *out = p; /* from here on owned by the domain */
        rc = upload(ld, domain, host, TD_F32, n_elems, TD_F32, p);
    }
    free(host);
    return rc;
}

/* The matrices of the entries, one under the other, as one GEMM weight; nothing when absent. */
static td_status load_matrix(loader *ld, int32_t domain, td_ckpt_entry *const *parts, int32_t n,
                             bool by_head, td_weight **out) {
    const td_model_config *c = &ld->w->cfg;
    td_device *dev = ld->w->domains[domain].device;
    td_tensor_view views[3] = {{{0}, NULL}};
    int32_t n_mats = 0, first = -1;
    td_status rc = TD_OK;
    td_host_matrix *mats = td_calloc(by_head ? 3 * (size_t)c->n_heads : 3, sizeof *mats);
    if (!mats)
        return td_error_nomem(ld->err, "parts of a matrix", 3 * sizeof *mats);
    for (int32_t i = 0, k = 0; i < n && rc == TD_OK; i++) {
        if (!parts[i]->tensor)
            continue;
        first = first < 0 ? i : first;
        td_checkpoint_touch(parts[i], &ld->bytes_read);
        td_tensor_view *v = &views[k++];
        rc = td_tensor_open(parts[i], c, v, ld->err);
        if (!by_head)
            mats[n_mats++] = v->matrix;
        size_t row_bytes = (size_t)v->matrix.n_cols * td_dtype_size(v->matrix.dtype);
        for (int32_t part = 0; rc == TD_OK && by_head && part < 3; part++)
            for (int32_t h = 0; h < c->n_heads; h++)
                mats[n_mats++] = (td_host_matrix){(const char *)v->matrix.data +
                                                      (size_t)by_head_row(c, part, h) * row_bytes,
                                                  v->matrix.dtype, c->head_dim, v->matrix.n_cols};
    }
    if (rc == TD_OK && n_mats > 0 &&
        (rc = dev->ops->weight_prepare(dev, mats, n_mats, ld->w->compute, out, ld->err)) != TD_OK)
        td_error_prefix(ld->err, "%s: preparing %s", dev->info.name, parts[first]->name);
    for (size_t i = 0; i < TD_ARRAY_LEN(views); i++)
        td_tensor_release(&views[i]);
    free(mats);
    return rc;
}

static td_status load_table(loader *ld, int32_t domain, td_ckpt_entry *e, void **out) {
    td_domain_weights *d = &ld->w->domains[domain];
    td_dtype compute = ld->w->compute;
    td_tensor_view v;
    if (!e->tensor)
        return TD_OK;
    size_t n = (size_t)e->tensor->n_elems;
    td_status rc = d->device->ops->alloc(d->device, n * td_dtype_size(compute), out, ld->err);
    if (rc != TD_OK)
        return td_error_prefix(ld->err, "%s", e->name);
    td_checkpoint_touch(e, &ld->bytes_read);
    if ((rc = td_tensor_open(e, &ld->w->cfg, &v, ld->err)) == TD_OK)
        rc = upload(ld, domain, v.matrix.data, v.matrix.dtype, n, compute, *out);
    if (rc == TD_OK)
        td_tensor_release(&v);
    return rc;
}

/* --- items ------------------------------------------------------------------------------------ */

/* transformers 4 ties whatever the file holds, transformers 5 does not when the two differ: only
 * when they are equal is it clear which teacher is meant. */
static td_status check_shadow_head(td_checkpoint *ck, td_error *err) {
    const td_st_tensor *head = td_checkpoint_shadow_head(ck);
    const td_st_tensor *embed = td_checkpoint_model(ck, TD_MT_EMBED)->tensor;
    if (!head)
        return TD_OK;
    bool same = head->dtype == embed->dtype && head->size_bytes == embed->size_bytes &&
                !memcmp(head->data, embed->data, embed->size_bytes);
    td_checkpoint_drop_pages(head);
    if (same)
        return TD_OK;
    return td_error_set(
        err, TD_E_MODEL,
        "config.json ties the embeddings, but %s is there and differs from %s; set "
        "tie_word_embeddings to false, or remove %s, whichever the model was trained with",
        head->name, embed->name, head->name);
}

/* What is stacked into one vector or matrix: the slots [first, first + n) that are there. */
typedef struct recipe {
    td_layer_tensor first;
    int32_t n;
} recipe;

static const recipe vector_recipes[TD_LV_COUNT] = {
    [TD_LV_ATTN_NORM] = {TD_LT_ATTN_NORM, 1},
    [TD_LV_ATTN_NORM_BIAS] = {TD_LT_ATTN_NORM_BIAS, 1},
    [TD_LV_QKV_BIAS] = {TD_LT_Q_BIAS, 4},
    [TD_LV_Q_NORM] = {TD_LT_Q_NORM, 1},
    [TD_LV_K_NORM] = {TD_LT_K_NORM, 1},
    [TD_LV_O_BIAS] = {TD_LT_O_BIAS, 1},
    [TD_LV_POST_ATTN_NORM] = {TD_LT_POST_ATTN_NORM, 1},
    [TD_LV_FFN_NORM] = {TD_LT_FFN_NORM, 1},
    [TD_LV_FFN_NORM_BIAS] = {TD_LT_FFN_NORM_BIAS, 1},
    [TD_LV_UP_BIAS] = {TD_LT_GATE_BIAS, 2},
    [TD_LV_DOWN_BIAS] = {TD_LT_DOWN_BIAS, 1},
    [TD_LV_POST_FFN_NORM] = {TD_LT_POST_FFN_NORM, 1},
};

static const recipe matrix_recipes[TD_LM_COUNT] = {
    [TD_LM_QKV] = {TD_LT_Q, 4},         [TD_LM_O] = {TD_LT_O, 1},
    [TD_LM_UP] = {TD_LT_GATE, 3},       [TD_LM_DOWN] = {TD_LT_DOWN, 1},
    [TD_LM_ROUTER] = {TD_LT_ROUTER, 1},
};

static bool is_norm_weight(int which) {
    return which == TD_LV_ATTN_NORM || which == TD_LV_Q_NORM || which == TD_LV_K_NORM ||
           which == TD_LV_POST_ATTN_NORM || which == TD_LV_FFN_NORM || which == TD_LV_POST_FFN_NORM;
}

static td_status load_experts(loader *ld, int32_t domain, int32_t layer) {
    td_weights *w = ld->w;
    td_layer_weights *l = &w->domains[domain].layers[layer];
    size_t E = (size_t)w->cfg.n_experts;
    l->expert_up = td_calloc(E, sizeof *l->expert_up);
    l->expert_down = td_calloc(E, sizeof *l->expert_down);
    if (!l->expert_up || !l->expert_down)
        return td_error_nomem(ld->err, "list of experts", E * sizeof *l->expert_up);
    td_status rc = TD_OK;
    for (int32_t x = 0; rc == TD_OK && x < w->cfg.n_experts; x++) {
        td_ckpt_entry *up[] = {td_checkpoint_expert(w->ckpt, layer, x, TD_ET_GATE),
                               td_checkpoint_expert(w->ckpt, layer, x, TD_ET_UP)};
        td_ckpt_entry *down = td_checkpoint_expert(w->ckpt, layer, x, TD_ET_DOWN);
        rc = load_matrix(ld, domain, up, 2, false, &l->expert_up[x]);
        if (rc == TD_OK)
            rc = load_matrix(ld, domain, &down, 1, false, &l->expert_down[x]);
    }
    return rc;
}

static td_status load_layer(loader *ld, int32_t domain, int32_t layer) {
    td_weights *w = ld->w;
    td_layer_weights *l = &w->domains[domain].layers[layer];
    bool by_head = td_checkpoint_family(w->ckpt)->qkv_by_head;
    td_ckpt_entry *e[TD_LT_COUNT];
    td_status rc = TD_OK;
    for (int32_t i = 0; i < TD_LT_COUNT; i++)
        e[i] = td_checkpoint_layer(w->ckpt, layer, (td_layer_tensor)i);
    for (int i = 0; rc == TD_OK && i < TD_LV_COUNT; i++)
        rc = load_vectors(ld, domain, &e[vector_recipes[i].first], vector_recipes[i].n,
                          by_head && i == TD_LV_QKV_BIAS, w->cfg.norm_plus_one && is_norm_weight(i),
                          &l->vec[i]);
    for (int i = 0; rc == TD_OK && i < TD_LM_COUNT; i++)
        rc = load_matrix(ld, domain, &e[matrix_recipes[i].first], matrix_recipes[i].n,
                         by_head && i == TD_LM_QKV, &l->mat[i]);
    if (rc == TD_OK && w->cfg.moe[layer])
        rc = load_experts(ld, domain, layer);
    return rc == TD_OK ? rc : td_error_prefix(ld->err, "layer %d", layer);
}

/* Loads item `item` for one domain. The lm_head of a tied model is loaded with item 0 when that is
 * loaded at all (it comes first), so that the embedding is touched once. */
static td_status load_item(loader *ld, int32_t domain, int32_t item) {
    td_weights *w = ld->w;
    td_domain_weights *d = &w->domains[domain];
    int32_t last = w->cfg.n_layers + 1;
    td_ckpt_entry *embed = td_checkpoint_model(w->ckpt, TD_MT_EMBED);
    if (item > 0 && item < last)
        return d->has_item[item] ? load_layer(ld, domain, item - 1) : TD_OK;
    td_status rc = TD_OK;
    if (item == 0) {
        if (d->has_item[0])
            rc = load_table(ld, domain, embed, &d->embed_table);
        if (rc == TD_OK && d->has_item[0])
            rc = load_table(ld, domain, td_checkpoint_model(w->ckpt, TD_MT_POSITIONS),
                            &d->position_table);
        if (rc == TD_OK && d->has_item[last] && w->cfg.tied_embeddings)
            rc = load_matrix(ld, domain, &embed, 1, false, &d->lm_head);
        return rc;
    }
    if (!d->has_item[last])
        return TD_OK;
    td_ckpt_entry *head = td_checkpoint_model(w->ckpt, TD_MT_LM_HEAD);
    td_ckpt_entry *norm = td_checkpoint_model(w->ckpt, TD_MT_FINAL_NORM);
    td_ckpt_entry *bias = td_checkpoint_model(w->ckpt, TD_MT_FINAL_NORM_BIAS);
    rc = load_vectors(ld, domain, &norm, 1, false, w->cfg.norm_plus_one, &d->final_norm);
    if (rc == TD_OK)
        rc = load_vectors(ld, domain, &bias, 1, false, false, &d->final_norm_bias);
    if (rc == TD_OK && !w->cfg.tied_embeddings)
        rc = load_matrix(ld, domain, &head, 1, false, &d->lm_head);
    return rc;
}

/* The entries of an item: calls fn on each that has a tensor. */
static void each_entry(td_weights *w, int32_t item, void (*fn)(const td_ckpt_entry *)) {
    if (item > w->cfg.n_layers + 1)
        return;
    if (item == 0) {
        fn(td_checkpoint_model(w->ckpt, TD_MT_EMBED));
        fn(td_checkpoint_model(w->ckpt, TD_MT_POSITIONS));
    } else if (item == w->cfg.n_layers + 1) {
        fn(td_checkpoint_model(w->ckpt, TD_MT_FINAL_NORM));
        fn(td_checkpoint_model(w->ckpt, TD_MT_FINAL_NORM_BIAS));
        fn(td_checkpoint_model(w->ckpt, TD_MT_LM_HEAD));
    } else {
        for (int32_t i = 0; i < TD_LT_COUNT; i++)
            fn(td_checkpoint_layer(w->ckpt, item - 1, (td_layer_tensor)i));
        for (int32_t x = 0; w->cfg.moe[item - 1] && x < w->cfg.n_experts; x++)
            for (int32_t i = 0; i < TD_ET_COUNT; i++)
                fn(td_checkpoint_expert(w->ckpt, item - 1, x, (td_expert_tensor)i));
    }
}

static void drop_entry(const td_ckpt_entry *e) {
    if (e->tensor)
        td_checkpoint_drop_pages(e->tensor);
    if (e->scale)
        drop_entry(e->scale);
}

static bool anyone_needs(const td_weights *w, int32_t item) {
    if (item > w->cfg.n_layers + 1)
        return false;
    for (int32_t d = 0; d < w->n_domains; d++)
        if (w->domains[d].has_item[item] ||
            (item == 0 && w->cfg.tied_embeddings && w->domains[d].has_item[w->cfg.n_layers + 1]))
            return true;
    return false;
}

static td_status load_items(loader *ld) {
    td_weights *w = ld->w;
    td_status rc = TD_OK;
    if (anyone_needs(w, 0))
        rc = check_shadow_head(w->ckpt, ld->err);
    for (int32_t item = 0; rc == TD_OK && item < w->cfg.n_layers + 2; item++) {
        if (!anyone_needs(w, item))
            continue;
        if (anyone_needs(w, item + 1))
            each_entry(w, item + 1, td_checkpoint_prefetch);
        for (int32_t d = 0; rc == TD_OK && d < w->n_domains; d++)
            rc = load_item(ld, d, item);
        each_entry(w, item, drop_entry);
    }
    return rc;
}

static bool device_computes(const td_device_info *info, td_dtype compute) {
    return compute == TD_F32    ? info->has_f32
           : compute == TD_BF16 ? info->has_bf16
                                : compute == TD_F16 && info->has_f16;
}

/* Fills w->domains from the stages. */
static td_status find_domains(td_weights *w, const td_stage *stages, int32_t n_stages,
                              td_dtype compute, td_error *err) {
    int32_t n_items = w->cfg.n_layers + 2;
    w->domains = td_calloc((size_t)n_stages, sizeof *w->domains);
    if (!w->domains)
        return td_error_nomem(err, "weights", (size_t)n_stages * sizeof *w->domains);
    for (int32_t i = 0; i < n_stages; i++) {
        td_device *dev = stages[i].device;
        if (stages[i].item_begin < 0 || stages[i].item_begin >= stages[i].item_end ||
            stages[i].item_end > n_items)
            return td_error_set(err, TD_E_INTERNAL, "stage %d holds items [%d, %d) of %d", i,
                                stages[i].item_begin, stages[i].item_end, n_items);
        if (!device_computes(&dev->info, compute))
            return td_error_set(err, TD_E_DEVICE,
                                "%s cannot compute in %s; choose another "
                                "model.compute",
                                dev->info.name, td_dtype_name(compute));
        td_domain_weights *d = (td_domain_weights *)td_weights_of(w, dev);
        if (!d) {
            d = &w->domains[w->n_domains++];
            d->device = dev;
            d->has_item = td_calloc((size_t)n_items, sizeof *d->has_item);
            d->layers = td_calloc((size_t)w->cfg.n_layers, sizeof *d->layers);
            if (!d->has_item || !d->layers)
                return td_error_nomem(err, "weights", (size_t)n_items * sizeof *d->layers);
        }
        for (int32_t k = stages[i].item_begin; k < stages[i].item_end; k++)
            d->has_item[k] = true;
    }
    return TD_OK;
}

td_status td_weights_load(td_weights *w, const td_stage *stages, int32_t n_stages, td_dtype compute,
                          uint64_t *bytes_read, td_error *err) {
    if (w->loaded)
        return td_error_set(err, TD_E_INTERNAL, "the weights are loaded already");
    loader ld = {.w = w, .err = err};
    w->compute = compute;
    td_status rc = find_domains(w, stages, n_stages, compute, err);
    if (rc != TD_OK)
        goto out;
    ld.staging = malloc(STAGING_BYTES);
    ld.streams = td_calloc((size_t)w->n_domains, sizeof *ld.streams);
    ld.events = td_calloc((size_t)w->n_domains, sizeof *ld.events);
    if (!ld.staging || !ld.streams || !ld.events) {
        rc = td_error_nomem(err, "staging memory of the weights", STAGING_BYTES);
        goto out;
    }
    for (int32_t d = 0; d < w->n_domains; d++) {
        td_device *dev = w->domains[d].device;
        if ((rc = dev->ops->stream_create(dev, &ld.streams[d], err)) != TD_OK ||
            (rc = dev->ops->event_create(dev, &ld.events[d], err)) != TD_OK)
            goto out;
    }
    rc = load_items(&ld);
out:
    for (int32_t d = 0; ld.streams && ld.events && d < w->n_domains; d++) {
        const td_device_ops *ops = w->domains[d].device->ops;
        if (ld.streams[d])
            ops->stream_destroy(ld.streams[d]);
        if (ld.events[d])
            ops->event_destroy(ld.events[d]);
    }
    free(ld.streams);
    free(ld.events);
    free(ld.staging);
    if (rc != TD_OK) {
        free_domains(w);
        return rc;
    }
    w->loaded = true;
    if (bytes_read)
        *bytes_read = ld.bytes_read;
    return TD_OK;
}
