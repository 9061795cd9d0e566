/* model.h - the teacher: its configuration, its weights, and forward passes over the device API.
 *
 * Order of use:
 *   td_model_config_load   config.json -> td_model_config            (plan needs only this)
 *   td_weights_open        safetensors mmapped and checked against the config, nothing copied yet
 *   td_weights_load        each tensor read once and prepared for every memory domain that needs it
 *   td_session_create      per group: activations, streams, slots on the devices of its stages
 *   td_session_submit / td_session_wait   micro-batches in flight, first in first out
 */
#ifndef TDGEN_MODEL_H
#define TDGEN_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include "tdgen/device.h"
#include "tdgen/dtype.h"
#include "tdgen/status.h"

/* --- configuration: pure data ----------------------------------------------------------------- */

typedef enum td_rope_type { TD_ROPE_DEFAULT, TD_ROPE_LINEAR, TD_ROPE_LLAMA3 } td_rope_type;

typedef struct td_model_config {
    char architecture[64];       /* "LlamaForCausalLM" */
    int32_t n_layers;            /* L */
    int32_t n_hidden;            /* C */
    int32_t n_ffn;               /* F */
    int32_t n_heads, n_kv_heads; /* H, Hkv; H a multiple of Hkv */
    int32_t head_dim;            /* D, even */
    int32_t n_vocab;             /* V, padded size: rows of the embedding */
    int32_t max_positions;       /* the model's own limit */
    float rms_eps;
    bool tied_embeddings;
    bool qkv_bias, o_bias, mlp_bias; /* what the weights have; config_load refuses the last two */
    bool qk_norm;                    /* RMSNorm over each head of q and k before rope (Qwen3) */
    int32_t window;                  /* sliding window, 0 = full; per layer below */
    int32_t window_first_layer;      /* layers >= this use the window (Qwen2 max_window_layers) */
    td_rope_type rope_type;
    double rope_theta, rope_factor, rope_low_freq, rope_high_freq;
    int32_t rope_original_positions;
    td_dtype weight_dtype;  /* torch_dtype; TD_F32 when absent */
    int32_t bos_id, eos_id; /* -1 when absent; the first when a list */
    int64_t n_params;       /* parameters of the whole model, counted from the shapes */
    uint64_t config_hash;   /* xxh3 of config.json's bytes */
} td_model_config;

/* Reads MODEL_DIR/config.json. What is not supported is refused by name (architecture, rope type,
 * activation, quantisation), with TD_E_MODEL. */
td_status td_model_config_load(const char *model_dir, td_model_config *out, td_error *err);

/* --- weights -----------------------------------------------------------------------------------
 */

typedef struct td_weights td_weights;

/* Opens model.safetensors or the shards of model.safetensors.index.json, validates every header and
 * the presence, shape and dtype of each tensor that the config asks for. Path escapes in the index
 * are refused, and so is a tensor of the language model that the config has no use for: leaving it
 * out would change the teacher. `cfg` is copied. */
td_status td_weights_open(const char *model_dir, const td_model_config *cfg, td_weights **out,
                          td_error *err);
void td_weights_close(td_weights *w); /* NULL allowed; after all sessions are gone */
/* Identity of the weights: xxh3 over (name, dtype, shape, xxh3 of the bytes) of the tensors that
 * the model uses, in name order, so it does not depend on how they are spread over files. The
 * bytes of each tensor are hashed when td_weights_load touches it: after a load of the whole model
 * this reads nothing more. Cached. */
td_status td_weights_hash(td_weights *w, uint64_t *out, td_error *err);
/* The dtype of the checkpoint's matrices (the widest met). */
td_dtype td_weights_dtype(const td_weights *w);

/* What sits where. Items of a model in order: 0 = embedding, 1..L = layers, L+1 = final norm +
 * lm_head. A stage holds items [item_begin, item_end). */
typedef struct td_stage {
    td_device *device;
    int32_t item_begin, item_end;
} td_stage;

/* Prepares the items of all given stages (of all groups) in `compute`. Each tensor is read from the
 * mapping once, and its pages are given back; stages whose devices share a domain share the
 * prepared weight. Call once, before any session; after a failure it may be called again.
 * bytes_read (may be NULL) counts file bytes touched. The devices outlive w. */
td_status td_weights_load(td_weights *w, const td_stage *stages, int32_t n_stages, td_dtype compute,
                          uint64_t *bytes_read, td_error *err);

/* --- sessions ----------------------------------------------------------------------------------
 */

typedef struct td_session_limits {
    int32_t max_tokens;   /* tokens of the largest micro-batch */
    int32_t max_seqs;     /* samples of the largest micro-batch */
    int32_t max_rows;     /* recorded rows of the largest micro-batch */
    int32_t n_slots;      /* micro-batches in flight, at least the number of stages + 1 */
    int32_t capture_rows; /* rows per lm_head + capture chunk */
    int32_t top_k, n_temperatures;
    float temperatures[16];
} td_session_limits;

/* Bytes that a session needs on the device of stage i beside the weights: activations (boundary
 * buffers + scratch) and capture workspace. The planner uses the same function as the allocation.
 */
typedef struct td_stage_memory {
    uint64_t weight_bytes, activation_bytes, workspace_bytes;
} td_stage_memory;
void td_stage_memory_estimate(const td_model_config *cfg, td_dtype compute,
                              const td_session_limits *lim, int32_t item_begin, int32_t item_end,
                              td_stage_memory *out);

/* One micro-batch, host arrays; td_session_submit copies what it needs of them. */
typedef struct td_batch {
    int32_t n_tokens, n_seqs, n_rows;
    const int32_t *ids;         /* [n_tokens], 0 <= id < V checked by submit (TD_E_DATA) */
    const int32_t *seq_offsets; /* [n_seqs + 1], from 0 to n_tokens; no empty sequences */
    const int32_t *row_token;   /* [n_rows] ascending: the row's hidden state is at this token */
    const int32_t *row_target;  /* [n_rows] the token it predicts, or -1 for none */
} td_batch;

/* Captured rows of one micro-batch, host memory of the slot, valid until its next submit. */
typedef struct td_captured {
    int32_t n_rows, top_k, n_temperatures;
    const int32_t *topk_ids;    /* [n_rows, top_k] */
    const float *topk_logprobs; /* [n_rows, top_k] */
    const float *logsumexp;     /* [n_rows]; NaN marks a row that must not be recorded */
    const float *logsumexp_t;   /* [n_rows, n_temperatures] */
    const float *tail_mass, *target_logprob, *entropy; /* [n_rows] */
    const int32_t *target_rank;                        /* [n_rows] */
} td_captured;

typedef struct td_session td_session;

/* All memory is allocated here; nothing on the hot path. Owned and used by one thread. `stages` is
 * copied; w outlives the session. On TD_E_DEVICE_OOM nothing is left allocated and the caller may
 * try smaller limits. */
td_status td_session_create(const td_weights *w, const td_stage *stages, int32_t n_stages,
                            const td_session_limits *lim, td_session **out, td_error *err);
void td_session_destroy(td_session *s); /* waits for what is in flight; NULL allowed */
/* Enqueues a micro-batch in `slot` (0 .. n_slots-1), which must not be in flight. */
td_status td_session_submit(td_session *s, int32_t slot, const td_batch *batch, td_error *err);
/* Waits for the slot's micro-batch. timeout_s <= 0: no limit. On failure the session is unusable
 * and can only be destroyed. */
td_status td_session_wait(td_session *s, int32_t slot, double timeout_s, td_captured *out,
                          td_error *err);
/* Busy seconds of the stage's stream since creation. */
double td_session_stage_busy_s(const td_session *s, int32_t stage);

#endif
