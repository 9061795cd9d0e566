/* checkpoint.h - the tensors of a Hugging Face checkpoint folder, found by name and checked.
 *
 * After td_checkpoint_open every tensor that the config asks for is there with the right shape and
 * an f32, bf16 or f16 dtype, or FP8 with its scale, and no tensor is there that would change the
 * result if it were left out. Nothing of the data has been touched yet.
 */
#ifndef TDGEN_MODEL_CHECKPOINT_H
#define TDGEN_MODEL_CHECKPOINT_H

#include "model/families.h"
#include "base/safetensors.h"

typedef struct td_ckpt_entry {
    char *name;                 /* NULL: the config does not ask for it, nor is there a tensor */
    const td_st_tensor *tensor; /* NULL: the config does not ask for it */
    uint64_t hash;              /* of its bytes, once it was touched */
    bool touched;
    bool transposed; /* a matrix that is stored [in, out] */
    bool is_scale;
    struct td_ckpt_entry *scale; /* of an F8_E4M3 matrix, else NULL; owned by the checkpoint */
    int64_t scale_block[2];      /* rows and columns that share one scale */
} td_ckpt_entry;

typedef struct td_checkpoint td_checkpoint;

td_status td_checkpoint_open(const char *model_dir, const td_model_config *cfg, td_checkpoint **out,
                             td_error *err);
void td_checkpoint_close(td_checkpoint *ck); /* NULL allowed */

td_ckpt_entry *td_checkpoint_model(td_checkpoint *ck, td_model_tensor which);
td_ckpt_entry *td_checkpoint_layer(td_checkpoint *ck, int32_t layer, td_layer_tensor which);
td_ckpt_entry *td_checkpoint_expert(td_checkpoint *ck, int32_t layer, int32_t expert,
                                    td_expert_tensor which);
const td_family *td_checkpoint_family(const td_checkpoint *ck);
/* lm_head.weight of a checkpoint whose embeddings are tied; NULL when there is none (usual). */
const td_st_tensor *td_checkpoint_shadow_head(const td_checkpoint *ck);

/* Starts reading the tensor's pages, without waiting. No-op for an entry without tensor. */
void td_checkpoint_prefetch(const td_ckpt_entry *e);
/* The same for bytes [offset, offset + n) of it, cut to what it has, without its scale. */
void td_checkpoint_prefetch_range(const td_ckpt_entry *e, size_t offset, size_t n);
/* Hashes the tensor's bytes, and its scale's, when this is the first touch; adds their size to
 * *bytes_read then. */
void td_checkpoint_touch(td_ckpt_entry *e, uint64_t *bytes_read);
/* Gives the pages of the mapping back: RSS then holds the prepared copy only. */
void td_checkpoint_drop_pages(const td_st_tensor *t);

/* Hash over (name, dtype, shape, hash of the bytes) of all tensors in name order; touches those
 * that were not yet. */
td_status td_checkpoint_hash(td_checkpoint *ck, uint64_t *out, td_error *err);
/* The widest dtype among the matrices. */
td_dtype td_checkpoint_dtype(const td_checkpoint *ck);

#endif
