/* weights_targets.c - what a model consists of: tensors of the checkpoint -> targets.
 *
 * The order is that of loading: the embedding, the layers, then the final norm and lm_head.
 */
#include <stdlib.h>

#include "model/shapes.h"
#include "model/weights_internal.h"
#include "base/memory.h"

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

/* Appends `t` with those of the entries that have a tensor as its parts; nothing when none has. */
static td_status add(td_target_list *l, td_target t, td_ckpt_entry *const *entries, int32_t n,
                     td_error *err) {
    for (int32_t i = 0; i < n; i++) {
        if (!entries[i]->tensor)
            continue;
        if (t.n_parts == (int32_t)TD_ARRAY_LEN(t.parts))
            return td_error_set(err, TD_E_INTERNAL, "tensor %s is one too many of its matrix",
                                entries[i]->name);
        t.parts[t.n_parts++] = entries[i];
    }
    if (!t.n_parts)
        return TD_OK;
    if (!td_grow((void **)&l->targets, &l->cap, l->n + 1, sizeof *l->targets))
        return td_error_nomem(err, "list of weights", (l->n + 1) * sizeof *l->targets);
    l->targets[l->n++] = t;
    return TD_OK;
}

/* Does the part of a layer's target hold q, k and v head by head? */
static void set_by_head(td_target *t, bool by_head, const td_model_config *cfg) {
    const td_attention *a = &cfg->layers[t->layer].mixer.attention;
    t->n_heads = by_head ? a->n_heads : 0;
    t->head_rows = by_head ? a->head_dim : 0;
}

static td_status add_layer(td_target_list *l, const td_model_config *cfg, td_checkpoint *ck,
                           int32_t layer, td_error *err) {
    bool by_head = td_checkpoint_family(ck)->qkv_by_head;
    td_ckpt_entry *e[TD_LT_COUNT];
    td_status rc = TD_OK;
    for (int32_t i = 0; i < TD_LT_COUNT; i++)
        e[i] = td_checkpoint_layer(ck, layer, (td_layer_tensor)i);
    td_target t = {.layer = layer, .item = layer + 1};
    for (int i = 0; rc == TD_OK && i < TD_LV_COUNT; i++) {
        t.place = TD_AT_VECTOR;
        t.index = i;
        set_by_head(&t, by_head && i == TD_LV_QKV_BIAS, cfg);
        t.plus_one = cfg->norm_plus_one && is_norm_weight(i);
        rc = add(l, t, &e[vector_recipes[i].first], vector_recipes[i].n, err);
    }
    t.plus_one = false;
    for (int i = 0; rc == TD_OK && i < TD_LM_COUNT; i++) {
        t.place = TD_AT_MATRIX;
        t.index = i;
        set_by_head(&t, by_head && i == TD_LM_QKV, cfg);
        rc = add(l, t, &e[matrix_recipes[i].first], matrix_recipes[i].n, err);
    }
    set_by_head(&t, false, cfg);
    for (int32_t x = 0; rc == TD_OK && x < td_layer_experts(&cfg->layers[layer]); x++) {
        td_ckpt_entry *up[] = {td_checkpoint_expert(ck, layer, x, TD_ET_GATE),
                               td_checkpoint_expert(ck, layer, x, TD_ET_UP)};
        td_ckpt_entry *down = td_checkpoint_expert(ck, layer, x, TD_ET_DOWN);
        t.index = x;
        t.place = TD_AT_EXPERT_UP;
        rc = add(l, t, up, 2, err);
        t.place = TD_AT_EXPERT_DOWN;
        if (rc == TD_OK)
            rc = add(l, t, &down, 1, err);
    }
    return rc;
}

static td_status add_model_tensor(td_target_list *l, td_checkpoint *ck, td_model_tensor which,
                                  td_target t, td_error *err) {
    td_ckpt_entry *e = td_checkpoint_model(ck, which);
    return add(l, t, &e, 1, err);
}

static td_status add_step(td_target_list *l, const td_model_config *cfg, td_checkpoint *ck,
                          int32_t step, td_error *err) {
    int32_t last = cfg->n_layers + 1;
    td_target head = {.place = TD_AT_LM_HEAD, .layer = -1, .item = last};
    td_target norm = {
        .place = TD_AT_FINAL_NORM, .layer = -1, .item = last, .plus_one = cfg->norm_plus_one};
    td_target bias = {.place = TD_AT_FINAL_NORM_BIAS, .layer = -1, .item = last};
    td_target embed = {.place = TD_AT_EMBED, .layer = -1};
    td_target positions = {.place = TD_AT_POSITIONS, .layer = -1};
    td_status rc;
    if (step > 0 && step < last)
        return add_layer(l, cfg, ck, step - 1, err);
    if (step == 0) {
        rc = add_model_tensor(l, ck, TD_MT_EMBED, embed, err);
        if (rc == TD_OK && cfg->tied_embeddings)
            rc = add_model_tensor(l, ck, TD_MT_EMBED, head, err);
        return rc == TD_OK ? add_model_tensor(l, ck, TD_MT_POSITIONS, positions, err) : rc;
    }
    rc = add_model_tensor(l, ck, TD_MT_FINAL_NORM, norm, err);
    if (rc == TD_OK)
        rc = add_model_tensor(l, ck, TD_MT_FINAL_NORM_BIAS, bias, err);
    if (rc == TD_OK && !cfg->tied_embeddings)
        rc = add_model_tensor(l, ck, TD_MT_LM_HEAD, head, err);
    return rc;
}

td_status td_target_list_make(const td_model_config *cfg, td_checkpoint *ck, td_target_list *out,
                              td_error *err) {
    td_target_list l = {.n_steps = cfg->n_layers + 2};
    l.begin = td_calloc((size_t)l.n_steps + 1, sizeof *l.begin);
    td_status rc = l.begin ? TD_OK : td_error_nomem(err, "list of weights", sizeof l);
    for (int32_t s = 0; rc == TD_OK && s < l.n_steps; s++) {
        rc = add_step(&l, cfg, ck, s, err);
        l.begin[s + 1] = l.n;
    }
    if (rc != TD_OK)
        td_target_list_free(&l);
    else
        *out = l;
    return rc;
}

void td_target_list_free(td_target_list *l) {
    free(l->targets);
    free(l->begin);
    *l = (td_target_list){0};
}

td_target_kind td_target_kind_of(const td_target *t) {
    switch (t->place) {
    case TD_AT_EMBED:
    case TD_AT_POSITIONS:
        return TD_TARGET_TABLE;
    case TD_AT_FINAL_NORM:
    case TD_AT_FINAL_NORM_BIAS:
    case TD_AT_VECTOR:
        return TD_TARGET_VECTOR;
    default:
        return TD_TARGET_MATRIX;
    }
}

void td_target_set(td_domain_weights *d, const td_target *t, void *array, td_weight *weight) {
    td_layer_weights *l = t->layer >= 0 ? &d->layers[t->layer] : NULL;
    switch (t->place) {
    case TD_AT_EMBED:
        d->embed_table = array;
        break;
    case TD_AT_POSITIONS:
        d->position_table = array;
        break;
    case TD_AT_LM_HEAD:
        d->lm_head = weight;
        break;
    case TD_AT_FINAL_NORM:
        d->final_norm = array;
        break;
    case TD_AT_FINAL_NORM_BIAS:
        d->final_norm_bias = array;
        break;
    case TD_AT_VECTOR:
        l->vec[t->index] = array;
        break;
    case TD_AT_MATRIX:
        l->mat[t->index] = weight;
        break;
    case TD_AT_EXPERT_UP:
        l->expert_up[t->index] = weight;
        break;
    case TD_AT_EXPERT_DOWN:
        l->expert_down[t->index] = weight;
        break;
    }
}
