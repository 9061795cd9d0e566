/* checkpoint_internal.h - what checkpoint.c and checkpoint_layers.c share. */
#ifndef TDGEN_MODEL_CHECKPOINT_INTERNAL_H
#define TDGEN_MODEL_CHECKPOINT_INTERNAL_H

#include <stdbool.h>

#include "model/checkpoint.h"
#include "model/fused.h"
#include "model/shapes.h"

struct td_checkpoint {
    char *dir;
    td_model_config cfg;
    td_safetensors **files; /* [n_files] */
    char **file_names;      /* [n_files], as in the index; NULL for the single file */
    size_t n_files;
    json_t *index;            /* of a sharded checkpoint, while it is being opened */
    const json_t *weight_map; /* within index */
    const td_family *family;
    const char *prefix;     /* family->prefix, or "" in a file of the bare model */
    td_ckpt_entry *entries; /* [n_entries] the model's TD_MT_COUNT, then those of each layer */
    size_t layer_at[TD_MAX_LAYERS]; /* where a layer's begin: TD_LT_COUNT, E * TD_ET_COUNT */
    td_ckpt_entry **sorted;         /* [n_sorted] those with a tensor, by name, scales among them */
    size_t n_entries, n_sorted;
    td_fused *fused;      /* [n_layers] */
    td_st_tensor *slices; /* [n_slices] of them, two for each expert */
    size_t n_slices;
    const td_st_tensor *shadow_head;
    bool has_fp8;
};

/* *out NULL when the checkpoint has none of that name. An index entry without it in its file is an
 * error. */
td_status td_ckpt_find(const td_checkpoint *ck, const char *name, const td_st_tensor **out,
                       td_error *err);
/* `pattern` with the number in the place of its '#', behind `front`; NULL when out of memory. */
char *td_ckpt_expand(const char *front, const char *pattern, int32_t number);
/* The entry's tensor, found and checked. `name` is taken over; NULL is an out-of-memory. */
td_status td_ckpt_require(td_checkpoint *ck, td_ckpt_entry *e, char *name, td_shape want,
                          bool transposed, td_error *err);

/* checkpoint_layers.c */
/* The name of a layer's tensor: the family's, or the other one (td_family.renamed) where the file
 * has that. */
td_status td_ckpt_layer_name(const td_checkpoint *ck, const char *front, const char *pattern,
                             int32_t number, char **out, td_error *err);
/* All tensors of the layer's experts, of whichever layout; nothing in a layer without. */
td_status td_ckpt_require_experts(td_checkpoint *ck, int32_t layer, const char *front,
                                  td_error *err);
/* Does it hold all experts of a layer that was required? */
bool td_ckpt_is_fused(const td_checkpoint *ck, const td_st_tensor *t);

#endif
