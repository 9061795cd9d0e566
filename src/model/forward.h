/* forward.h - one stage of a session: what it owns, and how a micro-batch passes through it. */
#ifndef TDGEN_MODEL_FORWARD_H
#define TDGEN_MODEL_FORWARD_H

#include "model/stage_buffers.h"
#include "model/weights.h"

typedef struct td_stage_state {
    td_device *device;
    int32_t item_begin, item_end;
    const td_domain_weights *weights; /* borrowed */
    td_stream *stream;
    void *buf[TD_BUF_COUNT]; /* device memory, NULL where the stage has no use for it */
    /* The residual buffers X0 and X1 alternate between micro-batches (X1 only before the last
     * stage). ready[i]: this stage filled Xi. copied[i]: the next stage has taken it, and it may
     * be written again; recorded on the next stage's stream. */
    td_event *ready[2], *copied[2];
    bool was_copied[2]; /* copied[i] has been recorded at least once */
} td_stage_state;

/* Rows that one dynamic rope table gets for one micro-batch: its long section, from the start. */
typedef struct td_dynamic_rope {
    int64_t first_elem;               /* of that section, td_rope_layout */
    int32_t n_cols;                   /* rotary_dim / 2 */
    const float *cos_rows, *sin_rows; /* host, [n_tokens, n_cols] */
} td_dynamic_rope;

/* What the stages need to know of a micro-batch. */
typedef struct td_forward_batch {
    int32_t n_tokens, n_seqs, n_rows;
    int32_t parity;        /* which residual buffer of a stage before the last */
    const void *host_ints; /* td_ints_layout_of(cfg, spec, n_tokens, n_seqs, n_rows) */
    void *host_out;        /* td_capture_layout_of(spec, n_rows) */
    void *host_dense;      /* [n_rows] rows of td_dense_row_bytes, or NULL */
    td_dynamic_rope dynamic[TD_MAX_ROPE_TABLES]; /* [n_dynamic] */
    int32_t n_dynamic;
} td_forward_batch;

/* Enqueues the micro-batch on the stage's stream. prev is the stage before it, NULL for the first.
 * The last stage copies the captured values to host_out and host_dense. */
td_status td_stage_forward(const td_model_config *cfg, td_dtype compute,
                           const td_session_limits *lim, const td_capture_spec *spec,
                           td_stage_state *prev, td_stage_state *stage, const td_forward_batch *b,
                           td_error *err);

#endif
