/* weights.c - the weights of a run: opening, hashing, and loading them for every memory domain.
 *
 * A domain is filled in the way that its device's table asks for: weights_pack.c or
 * weights_stream.c. When a run has both kinds, each step of the list is packed first and streamed
 * right after, while the kernel still has its pages.
 */
#include <stdlib.h>
#include <string.h>

#include "model/shapes.h"
#include "model/weights_internal.h"
#include "base/clock.h"
#include "base/memory.h"

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

static void free_domain(td_domain_weights *d, const td_model_config *cfg) {
    if (!d->device)
        return;
    const td_device_ops *ops = d->device->ops;
    for (int32_t i = 0; d->layers && i < cfg->n_layers; i++) {
        int32_t n_experts = td_layer_experts(&cfg->layers[i]);
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
        free_domain(&w->domains[i], &w->cfg);
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

/* --- loading ---------------------------------------------------------------------------------- */

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

/* Is the embedding read: for itself, or as the lm_head? */
static bool anyone_needs_embedding(const td_weights *w) {
    for (int32_t d = 0; d < w->n_domains; d++)
        if (w->domains[d].has_item[0] ||
            (w->cfg.tied_embeddings && w->domains[d].has_item[w->cfg.n_layers + 1]))
            return true;
    return false;
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
    for (int32_t i = 0; i < w->n_domains; i++)
        for (int32_t k = 0; k < w->cfg.n_layers; k++) {
            td_layer_weights *l = &w->domains[i].layers[k];
            size_t E = (size_t)td_layer_experts(&w->cfg.layers[k]);
            if (!E || !w->domains[i].has_item[k + 1])
                continue;
            l->expert_up = td_calloc(E, sizeof *l->expert_up);
            l->expert_down = td_calloc(E, sizeof *l->expert_down);
            if (!l->expert_up || !l->expert_down)
                return td_error_nomem(err, "list of experts", E * sizeof *l->expert_up);
        }
    return TD_OK;
}

typedef struct stream_step {
    td_weight_stream *stream;
    td_error *err;
} stream_step;

static td_status run_step(void *ctx, int32_t step) {
    const stream_step *c = ctx;
    return td_weight_stream_run(c->stream, step, step + 1, c->err);
}

static td_status load_targets(td_weights *w, const td_target_list *list, td_load_stats *stats,
                              td_error *err) {
    bool packs = false, streams = false;
    for (int32_t d = 0; d < w->n_domains; d++) {
        packs |= td_domain_packs(&w->domains[d]);
        streams |= !td_domain_packs(&w->domains[d]);
    }
    if (!streams)
        return td_weights_pack(w, list, NULL, NULL, stats, err);
    td_weight_stream *stream = NULL;
    td_status rc = td_weight_stream_open(w, list, !packs, &stream, err);
    if (rc == TD_OK && packs)
        rc = td_weights_pack(w, list, run_step, &(stream_step){stream, err}, stats, err);
    else if (rc == TD_OK)
        rc = td_weight_stream_run(stream, 0, list->n_steps, err);
    td_weight_stream_close(stream, stats);
    return rc;
}

td_status td_weights_load(td_weights *w, const td_stage *stages, int32_t n_stages, td_dtype compute,
                          td_load_stats *stats, td_error *err) {
    if (w->loaded)
        return td_error_set(err, TD_E_INTERNAL, "the weights are loaded already");
    td_target_list list = {0};
    td_load_stats got = {0};
    double t0 = td_time_s();
    w->compute = compute;
    td_status rc = find_domains(w, stages, n_stages, compute, err);
    if (rc == TD_OK && anyone_needs_embedding(w))
        rc = check_shadow_head(w->ckpt, err);
    if (rc == TD_OK)
        rc = td_target_list_make(&w->cfg, w->ckpt, &list, err);
    if (rc == TD_OK)
        rc = load_targets(w, &list, &got, err);
    td_target_list_free(&list);
    if (rc != TD_OK) {
        free_domains(w);
        return rc;
    }
    w->loaded = true;
    got.n_domains = w->n_domains;
    got.seconds = td_time_s() - t0;
    if (stats)
        *stats = got;
    return TD_OK;
}
