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

static void free_domain(td_domain_weights *d, int32_t n_layers) {
    if (!d->device)
        return;
    const td_device_ops *ops = d->device->ops;
    for (int32_t i = 0; d->layers && i < n_layers; i++) {
        td_layer_weights *l = &d->layers[i];
        td_weight *mats[] = {l->qkv, l->o, l->gate_up, l->down};
        float *vecs[] = {l->attn_norm, l->ffn_norm, l->q_norm,    l->k_norm,
                         l->qkv_bias,  l->o_bias,   l->down_bias, l->gate_up_bias};
        for (size_t k = 0; k < TD_ARRAY_LEN(mats); k++)
            if (mats[k])
                ops->weight_destroy(mats[k]);
        for (size_t k = 0; k < TD_ARRAY_LEN(vecs); k++)
            if (vecs[k])
                ops->free(d->device, vecs[k]);
    }
    if (d->embed_table)
        ops->free(d->device, d->embed_table);
    if (d->final_norm)
        ops->free(d->device, d->final_norm);
    if (d->lm_head)
        ops->weight_destroy(d->lm_head);
    free(d->layers);
    free(d->has_item);
}

static void free_domains(td_weights *w) {
    for (int32_t i = 0; i < w->n_domains; i++)
        free_domain(&w->domains[i], w->cfg.n_layers);
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

/* --- conversion and upload -------------------------------------------------------------------- */

/* memcpy per element: the data of a mapped file need not be aligned. */
static float load_elem(const void *src, td_dtype dtype, size_t i) {
    if (dtype == TD_F32) {
        float f;
        memcpy(&f, (const char *)src + 4 * i, 4);
        return f;
    }
    uint16_t h;
    memcpy(&h, (const char *)src + 2 * i, 2);
    return dtype == TD_BF16 ? td_bf16_to_f32(h) : td_f16_to_f32(h);
}

static void convert(const void *src, td_dtype from, void *dst, td_dtype to, size_t n) {
    if (from == to) {
        memcpy(dst, src, n * td_dtype_size(to));
    } else if (to == TD_F32) {
        for (size_t i = 0; i < n; i++)
            ((float *)dst)[i] = load_elem(src, from, i);
    } else if (to == TD_BF16) {
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)dst)[i] = td_f32_to_bf16(load_elem(src, from, i));
    } else {
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)dst)[i] = td_f32_to_f16(load_elem(src, from, i));
    }
}

/* Converts t into the memory at dst, through the staging buffer; returns when it is there. */
static td_status upload(loader *ld, int32_t domain, const td_st_tensor *t, td_dtype to, char *dst) {
    const td_device_ops *ops = ld->w->domains[domain].device->ops;
    size_t from_size = td_dtype_size((td_dtype)t->dtype), to_size = td_dtype_size(to);
    size_t chunk = STAGING_BYTES / to_size, n = (size_t)t->n_elems;
    for (size_t i = 0; i < n; i += chunk) {
        size_t m = TD_MIN(chunk, n - i);
        convert((const char *)t->data + i * from_size, (td_dtype)t->dtype, ld->staging, to, m);
        td_status rc;
        if ((rc = ops->copy_in(ld->streams[domain], dst + i * to_size, ld->staging, m * to_size,
                               ld->err)) != TD_OK ||
            (rc = ops->event_record(ld->events[domain], ld->streams[domain], ld->err)) != TD_OK ||
            (rc = ops->event_sync(ld->events[domain], 0, ld->err)) != TD_OK)
            return rc;
    }
    return TD_OK;
}

/* The vectors of the entries, one after the other, as one F32 array; nothing when absent. */
static td_status load_vectors(loader *ld, int32_t domain, td_ckpt_entry *const *parts, int32_t n,
                              float **out) {
    td_device *dev = ld->w->domains[domain].device;
    size_t n_elems = 0;
    for (int32_t i = 0; i < n; i++)
        n_elems += parts[i]->tensor ? (size_t)parts[i]->tensor->n_elems : 0;
    if (!n_elems)
        return TD_OK;
    void *p;
    td_status rc = dev->ops->alloc(dev, n_elems * 4, &p, ld->err);
    if (rc != TD_OK)
        return rc;
    *out = p; /* from here on owned by the domain */
    for (int32_t i = 0; rc == TD_OK && i < n; i++) {
        td_checkpoint_touch(parts[i], &ld->bytes_read);
        rc = upload(ld, domain, parts[i]->tensor, TD_F32, p);
        p = (float *)p + parts[i]->tensor->n_elems;
    }
    return rc;
}

static td_status load_vector(loader *ld, int32_t domain, td_ckpt_entry *e, float **out) {
    return load_vectors(ld, domain, &e, 1, out);
}

/* The matrices of the entries, one under the other, as one GEMM weight. */
static td_status load_matrix(loader *ld, int32_t domain, td_ckpt_entry *const *parts, int32_t n,
                             td_weight **out) {
    td_device *dev = ld->w->domains[domain].device;
    td_host_matrix mats[3] = {{0}};
    void *aligned[3] = {NULL};
    td_status rc = TD_OK;
    for (int32_t i = 0; i < n && rc == TD_OK; i++) {
        const td_st_tensor *t = parts[i]->tensor;
        td_checkpoint_touch(parts[i], &ld->bytes_read);
        mats[i] = (td_host_matrix){t->data, (td_dtype)t->dtype, t->shape[0], t->shape[1]};
        if ((uintptr_t)t->data % t->elem_size_bytes) { /* an old file with an unpadded header */
            aligned[i] = malloc(t->size_bytes);
            if (aligned[i])
                mats[i].data = memcpy(aligned[i], t->data, t->size_bytes);
            else
                rc = td_error_nomem(ld->err, parts[i]->name, t->size_bytes);
        }
    }
    if (rc == TD_OK &&
        (rc = dev->ops->weight_prepare(dev, mats, n, ld->w->compute, out, ld->err)) != TD_OK)
        td_error_prefix(ld->err, "%s: preparing %s", dev->info.name, parts[0]->name);
    for (int32_t i = 0; i < n; i++)
        free(aligned[i]);
    return rc;
}

static td_status load_table(loader *ld, int32_t domain, td_ckpt_entry *e) {
    td_domain_weights *d = &ld->w->domains[domain];
    td_dtype compute = ld->w->compute;
    td_status rc = d->device->ops->alloc(
        d->device, (size_t)e->tensor->n_elems * td_dtype_size(compute), &d->embed_table, ld->err);
    if (rc != TD_OK)
        return td_error_prefix(ld->err, "embedding table");
    td_checkpoint_touch(e, &ld->bytes_read);
    return upload(ld, domain, e->tensor, compute, d->embed_table);
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
        "config.json ties the embeddings, but lm_head.weight is there and differs "
        "from model.embed_tokens.weight; set tie_word_embeddings to false, or remove "
        "lm_head.weight, whichever the model was trained with");
}

static td_status load_layer(loader *ld, int32_t domain, int32_t layer) {
    td_checkpoint *ck = ld->w->ckpt;
    td_layer_weights *l = &ld->w->domains[domain].layers[layer];
    td_ckpt_entry *e[TD_LT_COUNT];
    for (int32_t i = 0; i < TD_LT_COUNT; i++)
        e[i] = td_checkpoint_layer(ck, layer, (td_layer_tensor)i);
    const struct {
        int32_t first, n;
        float **out;
    } vectors[] = {
        {TD_LT_ATTN_NORM, 1, &l->attn_norm},    {TD_LT_Q_BIAS, 3, &l->qkv_bias},
        {TD_LT_Q_NORM, 1, &l->q_norm},          {TD_LT_K_NORM, 1, &l->k_norm},
        {TD_LT_O_BIAS, 1, &l->o_bias},          {TD_LT_FFN_NORM, 1, &l->ffn_norm},
        {TD_LT_GATE_BIAS, 2, &l->gate_up_bias}, {TD_LT_DOWN_BIAS, 1, &l->down_bias},
    };
    const struct {
        int32_t first, n;
        td_weight **out;
    } matrices[] = {
        {TD_LT_Q, 3, &l->qkv},
        {TD_LT_O, 1, &l->o},
        {TD_LT_GATE, 2, &l->gate_up},
        {TD_LT_DOWN, 1, &l->down},
    };
    td_status rc;
    for (size_t i = 0; i < TD_ARRAY_LEN(vectors); i++)
        if ((rc = load_vectors(ld, domain, &e[vectors[i].first], vectors[i].n, vectors[i].out)) !=
            TD_OK)
            return td_error_prefix(ld->err, "layer %d", layer);
    for (size_t i = 0; i < TD_ARRAY_LEN(matrices); i++)
        if ((rc = load_matrix(ld, domain, &e[matrices[i].first], matrices[i].n, matrices[i].out)) !=
            TD_OK)
            return td_error_prefix(ld->err, "layer %d", layer);
    return TD_OK;
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
            rc = load_table(ld, domain, embed);
        if (rc == TD_OK && d->has_item[last] && w->cfg.tied_embeddings)
            rc = load_matrix(ld, domain, &embed, 1, &d->lm_head);
        return rc;
    }
    if (!d->has_item[last])
        return TD_OK;
    td_ckpt_entry *head = td_checkpoint_model(w->ckpt, TD_MT_LM_HEAD);
    rc = load_vector(ld, domain, td_checkpoint_model(w->ckpt, TD_MT_FINAL_NORM), &d->final_norm);
    if (rc == TD_OK && !w->cfg.tied_embeddings)
        rc = load_matrix(ld, domain, &head, 1, &d->lm_head);
    return rc;
}

/* The entries of an item: calls fn on each that has a tensor. */
static void each_entry(td_weights *w, int32_t item, void (*fn)(const td_ckpt_entry *)) {
    if (item > w->cfg.n_layers + 1)
        return;
    if (item == 0) {
        fn(td_checkpoint_model(w->ckpt, TD_MT_EMBED));
    } else if (item == w->cfg.n_layers + 1) {
        fn(td_checkpoint_model(w->ckpt, TD_MT_FINAL_NORM));
        fn(td_checkpoint_model(w->ckpt, TD_MT_LM_HEAD));
    } else {
        for (int32_t i = 0; i < TD_LT_COUNT; i++)
            fn(td_checkpoint_layer(w->ckpt, item - 1, (td_layer_tensor)i));
    }
}

static void drop_entry(const td_ckpt_entry *e) {
    if (e->tensor)
        td_checkpoint_drop_pages(e->tensor);
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
