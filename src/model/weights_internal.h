/* weights_internal.h - what weights.c and its loaders share.
 *
 * A *target* is one array or matrix that a device will hold: the stacked rows of one to three
 * tensors. The list of them is the one description of what a model consists of; how a target gets
 * into a domain depends on the device's table:
 *   weights_pack.c    weight_prepare: the device packs from host arrays, one target at a time
 *   weights_stream.c  weight_create: plain memory, filled by copies that several threads feed
 */
#ifndef TDGEN_MODEL_WEIGHTS_INTERNAL_H
#define TDGEN_MODEL_WEIGHTS_INTERNAL_H

#include "model/checkpoint.h"
#include "model/weights.h"

typedef enum td_target_place {
    TD_AT_EMBED,
    TD_AT_POSITIONS,
    TD_AT_LM_HEAD,
    TD_AT_FINAL_NORM,
    TD_AT_FINAL_NORM_BIAS,
    TD_AT_VECTOR, /* index: td_layer_vector */
    TD_AT_MATRIX, /* index: td_layer_matrix */
    TD_AT_EXPERT_UP,
    TD_AT_EXPERT_DOWN /* index: expert */
} td_target_place;

typedef enum td_target_kind {
    TD_TARGET_TABLE,  /* array in the compute dtype */
    TD_TARGET_VECTOR, /* array of F32 */
    TD_TARGET_MATRIX  /* td_weight */
} td_target_kind;

typedef struct td_target {
    td_target_place place;
    int32_t layer, index;
    int32_t item; /* domains that hold this item hold the target */
    int32_t n_parts;
    td_ckpt_entry *parts[3]; /* all have a tensor */
    int32_t n_heads;         /* H when the one part holds q, k and v head by head, else 0 */
    int32_t head_rows;       /* D, then */
    bool plus_one;
} td_target;

/* Targets in the order in which they are loaded. Those of step s are [begin[s], begin[s + 1]). The
 * steps are the items, but for the lm_head of a tied model: it is of step 0, where the embedding
 * is read. */
typedef struct td_target_list {
    td_target *targets;
    size_t n, cap;
    size_t *begin; /* [n_steps + 1] */
    int32_t n_steps;
} td_target_list;

struct td_weights {
    td_model_config cfg;
    td_checkpoint *ckpt;
    td_dtype compute;
    td_domain_weights *domains; /* [n_domains] */
    int32_t n_domains;
    bool loaded, hash_known;
    uint64_t hash;
};

td_status td_target_list_make(const td_model_config *cfg, td_checkpoint *ck, td_target_list *out,
                              td_error *err);
void td_target_list_free(td_target_list *l);
td_target_kind td_target_kind_of(const td_target *t);
/* Gives the domain what was made for it: an array, or for TD_TARGET_MATRIX a weight. */
void td_target_set(td_domain_weights *d, const td_target *t, void *array, td_weight *weight);

/* Row of the tensor where part (0 q, 1 k, 2 v) of a head begins, when it is stored head by head. */
static inline int64_t td_by_head_row(const td_target *t, int32_t part, int32_t head) {
    return ((int64_t)head * 3 + part) * t->head_rows;
}

static inline bool td_domain_packs(const td_domain_weights *d) {
    return !d->device->ops->weight_create;
}

/* weights_pack.c: loads the targets of the steps for the domains that pack; after each step,
 * then(ctx, step) when it is not NULL. */
td_status td_weights_pack(td_weights *w, const td_target_list *list,
                          td_status (*then)(void *ctx, int32_t step), void *ctx,
                          td_load_stats *stats, td_error *err);

/* weights_stream.c: loads for the domains that do not pack. open takes all device memory and the
 * staging blocks, run the targets of steps [begin, end), close waits for the copies. After a
 * failure of any of them only close is to be called; the targets' memory belongs to the domains. */
typedef struct td_weight_stream td_weight_stream;
td_status td_weight_stream_open(td_weights *w, const td_target_list *list, bool count_touched,
                                td_weight_stream **out, td_error *err);
td_status td_weight_stream_run(td_weight_stream *s, int32_t step_begin, int32_t step_end,
                               td_error *err);
/* NULL allowed. Failures of copies that were still in flight are reported by run. */
void td_weight_stream_close(td_weight_stream *s, td_load_stats *stats);

#endif
