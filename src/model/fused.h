/* fused.h - the experts of a layer as two tensors of the checkpoint.
 *
 *   gate_up [E, 2F, C]  rows of gate, then rows of up       down [E, C, F]     transformers 5
 *   gate_up [E, C, 2F]  the same, turned                    down [E, F, C]     `transposed`
 *
 * The two sizes of both together tell which of the two it is: 2F = C and F = C cannot both hold.
 */
#ifndef TDGEN_MODEL_FUSED_H
#define TDGEN_MODEL_FUSED_H

#include <stdbool.h>
#include "base/safetensors.h"

typedef struct td_fused {
    const td_st_tensor *up, *down; /* NULL: the layer's experts have tensors of their own */
    bool transposed;
} td_fused;

/* Sets `transposed`; refuses other shapes and FP8 by name. */
td_status td_fused_check(td_fused *f, int64_t n_experts, int64_t n_ffn, int64_t n_hidden,
                         const char *dir, td_error *err);
/* The matrix of one expert as a tensor of its own; its name stays that of the whole. */
td_st_tensor td_fused_slice(const td_st_tensor *t, int32_t expert);

#endif
