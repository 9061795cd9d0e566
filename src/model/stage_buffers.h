/* stage_buffers.h - the one list of what a session allocates on a stage's device.
 *
 * td_stage_memory_estimate adds it up, td_session_create allocates it: the planner's figures are
 * the allocations by construction. Letters as in device.h; cs = bytes of the compute dtype.
 */
#ifndef TDGEN_MODEL_STAGE_BUFFERS_H
#define TDGEN_MODEL_STAGE_BUFFERS_H

#include <stdint.h>
#include "model/model.h"

typedef enum td_stage_buffer {
    /* activations */
    TD_BUF_INTS,    /* td_ints_layout of a micro-batch */
    TD_BUF_X0,      /* F32 [T, C] residual stream */
    TD_BUF_X1,      /* its double, so that a stage runs ahead while the next still copies */
    TD_BUF_NARROW,  /* compute dtype [T, max(C, H*D, F)]: GEMM inputs, one live at a time */
    TD_BUF_NARROW2, /* compute dtype [T, C]: the ffn's input, with a parallel residual */
    /* F32 [T, max((H + 2 Hkv) * D, 2F)]: qkv, then gate and up; [T, C] before post norms */
    TD_BUF_WIDE,
    TD_BUF_QKV, /* compute dtype [T, (H + 2 Hkv) * D], with narrow_attention and 16-bit compute */
    TD_BUF_COS, /* F32, td_rope_layout */
    TD_BUF_SIN,
    TD_BUF_EXPERTS, /* scratch of the experts, if a layer has them */
    /* capture workspace, last stage only */
    TD_BUF_HIDDEN, /* compute dtype [Rc, C]: normalised rows of one chunk */
    TD_BUF_LOGITS, /* F32 [Rc, V]; not in mode hidden */
    TD_BUF_DENSE,  /* dense_dtype [Rc, V or C] in modes full and hidden, where conversion is due */
    TD_BUF_OUT,    /* captured values of a micro-batch, td_capture_layout of max_rows */
    TD_BUF_COUNT,
    TD_BUF_FIRST_WORKSPACE = TD_BUF_HIDDEN
} td_stage_buffer;

/* size_bytes[b] of each buffer of a stage that holds items [item_begin, item_end); 0 = not there.
 * Layers share the buffers: where they differ, the largest need counts. Values from a validated
 * config and limits cannot overflow 64 bits. */
void td_stage_buffer_sizes(const td_model_config *cfg, td_dtype compute,
                           const td_session_limits *lim, const td_capture_spec *spec,
                           int32_t item_begin, int32_t item_end, uint64_t size_bytes[TD_BUF_COUNT]);

/* Where the rotary tables of a model lie in TD_BUF_COS and TD_BUF_SIN, one after the other. A row
 * of table k is rotary_dim / 2 elements. First come limit[k] rows, for sequences of at most so many
 * tokens. Where the rope depends on the length of a sequence and longer ones fit a micro-batch,
 * max_tokens rows follow, the long section: of longrope by position, of a dynamic rope by token of
 * the micro-batch, filled with each. Positions never pass the micro-batch, so that is all. */
typedef struct td_rope_layout {
    int64_t first_elem[TD_MAX_ROPE_TABLES];
    int32_t limit[TD_MAX_ROPE_TABLES];
    int64_t n_elems;
    int64_t n_dynamic_elems; /* of the long sections of dynamic ropes */
} td_rope_layout;
td_rope_layout td_rope_layout_of(const td_model_config *cfg, int32_t max_tokens);

/* Where each part lies in the block of one micro-batch's integers or captured values. Parts are
 * packed for the actual counts, each from a multiple of 64 bytes, so that one copy moves them. */
typedef struct td_ints_layout {
    uint64_t ids, positions, seq_offsets, rows, targets; /* byte offsets; positions if learned */
    uint64_t rope_rows[TD_MAX_ROPE_TABLES];              /* rows of the tables, per token */
    uint64_t dataset_rows, row_positions;                /* I64, in modes that draw */
    uint64_t size_bytes;
} td_ints_layout;
td_ints_layout td_ints_layout_of(const td_model_config *cfg, const td_capture_spec *spec,
                                 int64_t n_tokens, int64_t n_seqs, int64_t n_rows);

typedef struct td_capture_layout {
    uint64_t topk_ids, topk_logprobs, logsumexp_t, logsumexp, tail_mass, target_logprob, entropy,
        target_rank, n_kept, n_unique, draw_ids, draw_counts, draw_logprobs, proposal_logsumexp,
        always_logprobs, size_bytes; /* byte offsets; 0 bytes in mode hidden */
} td_capture_layout;
td_capture_layout td_capture_layout_of(const td_capture_spec *spec, int64_t n_rows);

#endif
