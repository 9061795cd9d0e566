/* model.h - the teacher: its configuration, its weights, and forward passes over the device API.
 *
 * Order of use:
 *   td_model_config_load   config.json -> td_model_config            (plan needs only this)
 *   td_weights_open        safetensors mmapped and checked against the config, nothing copied yet
 *   td_weights_load        each tensor read once and prepared for every memory domain that needs it
 *   td_session_create      per group: activations, streams, slots on the devices of its stages
 *   td_session_submit / td_session_wait   micro-batches in flight, first in first out
 */
#ifndef TDGEN_MODEL_MODEL_H
#define TDGEN_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include "capture/capture.h"
#include "device/device.h"
#include "base/dtype.h"
#include "base/status.h"

/* The folder of the model that a user calls `asked`: a folder with config.json, or a name of the hub
 * ("Qwen/Qwen3-0.6B", "ORG/NAME@REVISION") whose snapshot is in the local Hugging Face cache. TD_E_MODEL
 * for anything else, saying what it is (a cache root, an adapter, a GGUF file, an unfinished download,
 * ...) and what would work. *dir is the caller's. */
td_status td_model_locate(const char *asked, char **dir, td_error *err);

/* --- configuration: pure data ----------------------------------------------------------------- */

enum {
    TD_MAX_LAYERS = 512,
    TD_MAX_ROPE_TABLES = 2, /* layers differ in their rope at most so (Gemma 3: local, global) */
    TD_MAX_ROPE_PAIRS = 512 /* half of the largest rotary_dim */
};

typedef enum td_rope_type {
    TD_ROPE_DEFAULT,
    TD_ROPE_LINEAR,
    TD_ROPE_DYNAMIC, /* frequencies depend on the length of a sequence beyond max_positions */
    TD_ROPE_LLAMA3,
    TD_ROPE_YARN,
    TD_ROPE_LONGROPE /* two sets of frequencies, chosen by the length of the sequence */
} td_rope_type;

/* Parameters of one rotary table, as transformers' modeling_rope_utils.py names them. */
typedef struct td_rope {
    td_rope_type type;
    int32_t rotary_dim; /* leading elements of a head that are turned; even, <= D */
    double theta, factor;
    double low_freq, high_freq;  /* llama3 */
    double beta_fast, beta_slow; /* yarn */
    bool truncate;               /* yarn */
    double attention_factor;     /* multiplies cos and sin; 1 where the type has none */
    int32_t original_positions;  /* llama3, yarn, longrope */
    float short_factor[TD_MAX_ROPE_PAIRS], long_factor[TD_MAX_ROPE_PAIRS]; /* longrope */
} td_rope;

typedef enum td_qk_norm {
    TD_QK_NORM_NONE,
    TD_QK_NORM_HEAD, /* over each head, one weight [D] for all (Qwen3, Gemma 3) */
    TD_QK_NORM_FULL  /* over the whole projection (OLMo 2) */
} td_qk_norm;

/* A layer is a mixer, which carries information from token to token, and an ffn, which works on
 * each token alone. Both are described by a tag and by what that kind needs. Families translate
 * config.json into such descriptions; tensor shapes, weights, memory, cost and the forward pass
 * follow from them and know no family. Layers of one model may differ in all of this. */

typedef enum td_mixer_kind { TD_MIXER_ATTENTION } td_mixer_kind;

typedef struct td_attention {
    int32_t n_heads, n_kv_heads; /* H, Hkv; H a multiple of Hkv */
    int32_t head_dim;            /* D, even */
    int32_t window;        /* tokens that a token sees, itself among them; 0 = all before it */
    int32_t rope;          /* which of td_model_config.rope turns q and k; -1 = none */
    td_qk_norm qk_norm;    /* before rope */
    float scale;           /* of q k^T */
    float softcap;         /* of scaled q k^T; 0 = none */
    bool qkv_bias, o_bias; /* what the weights have */
} td_attention;

typedef struct td_mixer {
    td_mixer_kind kind;
    union {
        td_attention attention;
    };
} td_mixer;

typedef enum td_ffn_kind { TD_FFN_DENSE, TD_FFN_EXPERTS } td_ffn_kind;

typedef struct td_dense {
    int32_t n_ffn; /* F */
    td_act act;
    bool gated; /* down(act(gate) * up); else down(act(up)) */
    bool bias;  /* of all its projections */
} td_dense;

/* A router gives each token its n_used most probable experts, weighted by a softmax over all. */
typedef struct td_experts {
    int32_t n_experts; /* E */
    int32_t n_used;    /* <= E */
    int32_t n_ffn;     /* F of one expert, which is gated and has no bias */
    td_act act;
    bool normalise; /* the weights of the chosen ones are divided by their sum */
} td_experts;

typedef struct td_ffn {
    td_ffn_kind kind;
    union {
        td_dense dense;
        td_experts experts;
    };
} td_ffn;

typedef struct td_layer {
    td_mixer mixer;
    td_ffn ffn;
} td_layer;

/* A model in the terms of the one forward pass (src/model/forward.c); which config.json gives
 * which value is the business of src/model/families.c. What stands outside of `layers` holds for
 * the whole model. */
typedef struct td_model_config {
    char architecture[64];  /* "LlamaForCausalLM"; finds the family (tensor names, layouts) */
    int32_t n_layers;       /* L, at most TD_MAX_LAYERS */
    int32_t n_hidden;       /* C */
    int32_t n_vocab;        /* V, padded size: rows of the embedding */
    int32_t max_positions;  /* the model's own limit */
    bool learned_positions; /* max_positions rows are added to the embedding (GPT-2) */
    bool tied_embeddings;

    /* Norms, and how the blocks of a layer stand in the residual stream. */
    td_norm_kind norm_kind;
    float norm_eps;
    bool norm_bias;         /* LayerNorm with a bias */
    bool norm_plus_one;     /* y * (1 + weight): the 1 is added when the weight is loaded (Gemma) */
    bool pre_norm;          /* x + block(norm(x)) */
    bool post_norm;         /* x + norm(block(...)) */
    bool parallel_residual; /* x + mixer(norm1(x)) + ffn(norm2(x)) */
    bool shared_norm;       /* parallel, with norm2 = norm1 (StableLM) */

    float embed_scale;                    /* 1 = none */
    bool embed_scale_rounded;             /* rounded to the compute dtype first, as Gemma does */
    float residual_scale;                 /* of what a block adds; 1 = none */
    float logits_softcap, logits_divisor; /* 0 and 1 = none */

    td_rope rope[TD_MAX_ROPE_TABLES];
    int32_t n_ropes;
    td_layer layers[TD_MAX_LAYERS]; /* [n_layers] */

    td_dtype weight_dtype;        /* torch_dtype; TD_F32 when absent; of FP8 ones the others */
    bool fp8;                     /* matrices may be F8_E4M3 with scales */
    bool fp8_scale_e8m0;          /* scales may be E8M0 bytes: 2^(b - 127), 255 is NaN */
    bool fp8_scale_first;         /* the product is rounded to the scale's dtype first */
    const char *fp8_scale_suffix; /* appended to the weight's name: "_scale_inv" or "_scale" */
    int32_t fp8_block[2];         /* rows and columns that share a scale; 0 = per tensor or row */
    int32_t bos_id, eos_id;       /* -1 when absent; the first when a list */
    int64_t n_params;             /* parameters of the whole model, counted from the shapes */
    uint64_t config_hash;         /* xxh3 of config.json's bytes */
} td_model_config;

/* Reads MODEL_DIR/config.json; an adapter_config.json beside it is refused. What is not supported is refused by name (architecture, rope type,
 * activation, quantisation), with TD_E_MODEL.
 * FP8 checkpoints (block-scaled e4m3 and compressed-tensors' float-quantized) are dequantised as
 * transformers does when asked to dequantise; quantisation of activations is not emulated. */
td_status td_model_config_load(const char *model_dir, td_model_config *out, td_error *err);

/* --- weights ---------------------------------------------------------------------------------- */

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

typedef struct td_load_stats {
    uint64_t bytes_read; /* of the files; each tensor counts once */
    uint64_t bytes_sent; /* copied to devices that have memory of their own */
    int32_t n_domains;   /* that hold weights */
    double seconds;
} td_load_stats;

/* Prepares the items of all given stages (of all groups) in `compute`. Each tensor is read once and
 * goes to every domain that needs it; stages whose devices share a domain share the prepared
 * weight. Host memory stays bounded by a staging area and about one layer. A finite value that
 * `compute` cannot hold is refused (TD_E_MODEL). Call once, before any session; after a failure it
 * may be called again. stats may be NULL. Starts threads of its own and joins them. The devices
 * outlive w. */
td_status td_weights_load(td_weights *w, const td_stage *stages, int32_t n_stages, td_dtype compute,
                          td_load_stats *stats, td_error *err);

/* --- sessions --------------------------------------------------------------------------------- */

typedef struct td_session_limits {
    int32_t max_tokens;   /* tokens of the largest micro-batch */
    int32_t max_seqs;     /* samples of the largest micro-batch */
    int32_t max_rows;     /* recorded rows of the largest micro-batch */
    int32_t n_slots;      /* micro-batches in flight, at least the number of stages + 1 */
    int32_t capture_rows; /* rows per lm_head + capture chunk */
    /* The devices' info.narrow_attention: with 16-bit compute, q, k and v get a buffer in that
     * type.
     */
    bool narrow_attention;
} td_session_limits;

/* Bytes that a session needs on the device of stage i beside the weights: activations (boundary
 * buffers + scratch) and capture workspace. The planner uses the same function as the allocation.
 */
typedef struct td_stage_memory {
    uint64_t weight_bytes, activation_bytes, workspace_bytes;
} td_stage_memory;
void td_stage_memory_estimate(const td_model_config *cfg, td_dtype compute,
                              const td_session_limits *lim, const td_capture_spec *spec,
                              int32_t item_begin, int32_t item_end, td_stage_memory *out);
/* Bytes of host memory that all slots of a session take for what is captured. In mode full that is
 * much: a row is n_vocab numbers. */
uint64_t td_session_host_bytes(const td_session_limits *lim, const td_capture_spec *spec);
/* One micro-batch, host arrays; td_session_submit copies what it needs of them. */
typedef struct td_batch {
    int32_t n_tokens, n_seqs, n_rows;
    const int32_t *ids;         /* [n_tokens], 0 <= id < V checked by submit (TD_E_DATA) */
    const int32_t *seq_offsets; /* [n_seqs + 1], from 0 to n_tokens; no empty sequences, and none
                                   longer than learned positions reach (TD_E_DATA) */
    const int32_t *row_token;   /* [n_rows] ascending: the row's hidden state is at this token */
    const int32_t *row_target;  /* [n_rows] the token it predicts, or -1 for none */
    /* Random draws depend on these (and the seed) alone; NULL in modes that draw nothing. */
    const int64_t *row_dataset_row; /* [n_rows] row of the dataset */
    const int64_t *row_position;    /* [n_rows] token offset of row_token within that row's tokens,
                                       below 2^32 */
} td_batch;

/* Host arrays for one micro-batch within a session's limits, and samples laid end to end in them.
 * Order of use: init -> (clear -> while fits: add -> submit `batch`) ... -> free. One thread. */
typedef struct td_batch_builder {
    td_batch batch; /* what was added so far; points into the arrays below, which are owned */
    int32_t *ids, *seq_offsets, *row_token, *row_target;
    int64_t *row_dataset_row, *row_position;
    int32_t max_tokens, max_seqs, max_rows;
} td_batch_builder;
/* Empty afterwards. On failure nothing is left allocated. */
td_status td_batch_builder_init(td_batch_builder *b, const td_session_limits *lim, td_error *err);
void td_batch_builder_free(td_batch_builder *b); /* {0} allowed */
void td_batch_clear(td_batch_builder *b);
bool td_batch_fits(const td_batch_builder *b, int32_t n_tokens, int32_t n_rows);
/* Appends a sample that fits. Position t predicts token t + 1; a row is recorded where loss_mask
 * [n_tokens] of t + 1 is set, none without a mask. `start`: of the sample within the dataset row's
 * tokens. */
void td_batch_add(td_batch_builder *b, const int32_t *ids, const uint8_t *loss_mask,
                  int32_t n_tokens, int64_t dataset_row, int64_t start);

typedef struct td_session td_session;

/* All memory is allocated here; nothing on the hot path. Owned and used by one thread. `stages` is
 * copied; w outlives the session. On TD_E_DEVICE_OOM nothing is left allocated and the caller may
 * try smaller limits. */
td_status td_session_create(const td_weights *w, const td_stage *stages, int32_t n_stages,
                            const td_session_limits *lim, const td_capture_spec *spec,
                            td_session **out, td_error *err);
void td_session_destroy(td_session *s); /* waits for what is in flight; NULL allowed */
/* Enqueues a micro-batch in `slot` (0 .. n_slots-1), which must not be in flight. */
td_status td_session_submit(td_session *s, int32_t slot, const td_batch *batch, td_error *err);
/* Waits for the slot's micro-batch. timeout_s <= 0: no limit; TD_E_DEVICE no sooner than after
 * timeout_s may be its expiry: the slot stays in flight and may be waited for again. On any other
 * failure the session is unusable and can only be destroyed. */
td_status td_session_wait(td_session *s, int32_t slot, double timeout_s, td_captured *out,
                          td_error *err);
/* Busy seconds of the stage's stream since creation. */
double td_session_stage_busy_s(const td_session *s, int32_t stage);
/* Adds the seconds of each operation over all stages; nothing unless TDGEN_PROFILE=1 was in the
 * environment when the session was made. */
void td_session_profile(const td_session *s, double seconds[TD_OP_COUNT]);

#endif
