/* checkpoint_layers.c - names of a layer's tensors that differ between files of one family, and the
 * experts of a layer: a tensor for each, or two for all of them (fused.h). */
#include "model/checkpoint_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* The other name of *out where the file has a tensor of that name and none of the first. */
static td_status try_other(const td_checkpoint *ck, const char *front, const char *rest,
                           int32_t number, char **out, td_error *err) {
    const td_st_tensor *t;
    td_status rc = td_ckpt_find(ck, *out, &t, err);
    if (rc != TD_OK || t)
        return rc;
    char *other_front = td_asprintf("%s%s", front, ck->family->renamed[1]);
    char *other = other_front ? td_ckpt_expand(other_front, rest, number) : NULL;
    free(other_front);
    if (!other)
        return td_error_nomem(err, "name of a tensor", 64);
    rc = td_ckpt_find(ck, other, &t, err);
    if (rc == TD_OK && t) {
        char *first = *out;
        *out = other;
        other = first;
    }
    free(other);
    return rc;
}

td_status td_ckpt_layer_name(const td_checkpoint *ck, const char *front, const char *pattern,
                             int32_t number, char **out, td_error *err) {
    const char *from = ck->family->renamed[0];
    char *name = td_ckpt_expand(front, pattern, number);
    td_status rc = name ? TD_OK : td_error_nomem(err, "name of a tensor", 64);
    if (rc == TD_OK && from && strncmp(pattern, from, strlen(from)) == 0)
        rc = try_other(ck, front, pattern + strlen(from), number, &name, err);
    if (rc != TD_OK)
        free(name);
    else
        *out = name;
    return rc;
}

/* Both tensors with all experts of the layer, or neither (*out zero). */
static td_status find_fused(const td_checkpoint *ck, const char *front, td_fused *out,
                            td_error *err) {
    const td_st_tensor **both[] = {&out->up, &out->down};
    char *names[2] = {NULL, NULL};
    td_status rc = TD_OK;
    for (size_t i = 0; rc == TD_OK && i < 2; i++) {
        rc = td_ckpt_layer_name(ck, front, ck->family->fused_experts[i], 0, &names[i], err);
        if (rc == TD_OK)
            rc = td_ckpt_find(ck, names[i], both[i], err);
    }
    if (rc == TD_OK && !out->up != !out->down)
        rc = td_error_set(err, TD_E_MODEL, "%s: tensor %s is there, but %s is missing", ck->dir,
                          names[!out->up], names[!out->down]);
    free(names[0]);
    free(names[1]);
    return rc;
}

/* Gives each expert's entries its part of the two tensors; gate and up stay one matrix. */
static td_status add_fused(td_checkpoint *ck, int32_t layer, td_error *err) {
    const td_model_config *c = &ck->cfg;
    td_fused *f = &ck->fused[layer];
    int32_t n = td_layer_experts(&c->layers[layer]);
    td_status rc =
        td_fused_check(f, n, c->layers[layer].ffn.experts.n_ffn, c->n_hidden, ck->dir, err);
    for (int32_t x = 0; rc == TD_OK && x < 2 * n; x++) {
        const td_st_tensor *whole = x % 2 ? f->down : f->up;
        td_ckpt_entry *e = td_checkpoint_expert(ck, layer, x / 2, x % 2 ? TD_ET_DOWN : TD_ET_GATE);
        td_st_tensor *part = &ck->slices[ck->n_slices++];
        *part = td_fused_slice(whole, x / 2);
        e->name = td_asprintf("%s[%d]", whole->name, x / 2);
        if (!e->name)
            return td_error_nomem(err, "name of a tensor", 64);
        e->tensor = part;
        e->transposed = f->transposed;
        ck->sorted[ck->n_sorted++] = e;
    }
    return rc;
}

bool td_ckpt_is_fused(const td_checkpoint *ck, const td_st_tensor *t) {
    for (int32_t i = 0; ck->n_slices && i < ck->cfg.n_layers; i++)
        if (t == ck->fused[i].up || t == ck->fused[i].down)
            return true;
    return false;
}

td_status td_ckpt_require_experts(td_checkpoint *ck, int32_t layer, const char *front,
                                  td_error *err) {
    const td_model_config *c = &ck->cfg;
    const td_family *f = ck->family;
    int32_t n = td_layer_experts(&c->layers[layer]);
    td_status rc = TD_OK;
    if (n && f->fused_experts[0])
        rc = find_fused(ck, front, &ck->fused[layer], err);
    if (rc == TD_OK && ck->fused[layer].up)
        return add_fused(ck, layer, err);
    for (int32_t x = 0; rc == TD_OK && x < n; x++)
        for (int32_t i = 0; rc == TD_OK && i < TD_ET_COUNT; i++) {
            char *name = NULL;
            rc = td_ckpt_layer_name(ck, front, f->expert_names[i], x, &name, err);
            if (rc == TD_OK)
                rc = td_ckpt_require(ck, td_checkpoint_expert(ck, layer, x, (td_expert_tensor)i),
                                     name, td_expert_tensor_shape(c, layer, (td_expert_tensor)i),
                                     f->transposed, err);
        }
    return rc;
}
