/* teacher.h - a teacher on one device, and what it says of token sequences.
 *
 * Order of use:
 *
 *   tdgen_teacher_options o = TDGEN_TEACHER_OPTIONS_INIT;
 *   tdgen_teacher *t;
 *   tdgen_teacher_open("models/Qwen3-0.6B", &o, &t, &err)
 *   tdgen_teacher_score(t, sequences, n, take, user, &err)     as often as wanted
 *   tdgen_teacher_close(t)
 *
 * Sequences are scored teacher-forced: the row at position t predicts the token at t + 1, so a
 * sequence of L tokens has at most L - 1 rows. All logarithms are natural. The numbers are those
 * that a run of tdgen records for the same tokens, bit for bit on the same kind of device and in
 * the same compute mode, whatever the sequences beside them and whatever max_tokens (a record in
 * f16 holds them rounded to that).
 *
 * Memory. The weights, and buffers for max_tokens tokens, are taken when the teacher is opened;
 * scoring any number of sequences takes no more. Logits exist for some hundred rows at a time.
 */
#ifndef TDGEN_INCLUDE_TEACHER_H
#define TDGEN_INCLUDE_TEACHER_H

#include "tdgen/tdgen.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tdgen_teacher tdgen_teacher;

typedef enum tdgen_compute {
    /* The checkpoint's own type where the device offers it, then the other of 16 bits, then f32. */
    TDGEN_COMPUTE_AUTO = 0,
    TDGEN_COMPUTE_F32 = 1,
    TDGEN_COMPUTE_BF16 = 2,
    TDGEN_COMPUTE_F16 = 3
} tdgen_compute;

/* Every field but struct_size may be 0 or NULL for its default. */
typedef struct tdgen_teacher_options {
    size_t struct_size;
    const char *device; /* "cpu", "cuda:N", or "auto": the first GPU if there is one, else "cpu" */
    tdgen_compute compute; /* TDGEN_COMPUTE_AUTO */
    /* Tokens of the largest micro-batch, and so of the longest sequence; 4096, at most 2^24. Device
     * memory for activations grows with it. */
    int32_t max_tokens;
    int32_t top_k; /* most probable tokens of each row, 1 to 1024 and at most the vocabulary; 16 */
    /* Ids at or above it have no probability: padding of the vocabulary behind the tokenizer's last
     * id, as capture.mask_padded_vocab of a run finds it (tdgen_record_info tells it). Default: all
     * ids count. */
    int32_t n_valid_ids;
    int32_t n_threads; /* of a CPU device, at most 4096; as many as there are cores */
} tdgen_teacher_options;
#define TDGEN_TEACHER_OPTIONS_INIT                                                                 \
    { sizeof(tdgen_teacher_options), NULL, TDGEN_COMPUTE_AUTO, 0, 0, 0, 0 }

/* Opens DIR (config.json and safetensors, as Hugging Face saves them), reads all weights and makes
 * room on the device; seconds to minutes. `options` NULL: all defaults. On success *out is to be
 * closed; on failure it is untouched and nothing is left behind.
 * TDGEN_E_MODEL names what in the folder is missing or not supported, TDGEN_E_MEMORY what the
 * teacher would need. */
TDGEN_API tdgen_status tdgen_teacher_open(const char *dir, const tdgen_teacher_options *options,
                                          tdgen_teacher **out, tdgen_error *err);
/* Frees everything. NULL allowed; not from within a callback. */
TDGEN_API void tdgen_teacher_close(tdgen_teacher *t);

typedef struct tdgen_teacher_info {
    const char *architecture; /* "LlamaForCausalLM" */
    const char *device;       /* "cpu:0", "cuda:3" */
    const char *device_kind;  /* as a record names it: equal kinds give equal bits */
    tdgen_compute compute;    /* resolved: never AUTO */
    int32_t max_tokens, top_k, n_valid_ids;
    int32_t n_vocab, n_hidden, n_layers;
    int32_t max_positions;  /* the model's own limit; longer sequences are refused only where the
                               positions are learned */
    int32_t bos_id, eos_id; /* of config.json, -1 when absent */
    int64_t n_params;
    uint64_t memory_bytes; /* estimate of what weights and buffers take */
} tdgen_teacher_info;

/* Lives as long as t; NULL for NULL. */
TDGEN_API const tdgen_teacher_info *tdgen_teacher_get_info(const tdgen_teacher *t);

/* One token sequence, the caller's memory, read during the call only. */
typedef struct tdgen_sequence {
    const int32_t *ids;       /* [n_ids], each in [0, n_vocab) */
    const uint8_t *loss_mask; /* [n_ids] or NULL: position t has a row where loss_mask[t + 1] is not
                                 0; NULL: every position but the last has one */
    int32_t n_ids;            /* 0 to max_tokens */
} tdgen_sequence;

/* What the teacher says of one sequence. The library's memory, valid until the callback returns. */
typedef struct tdgen_scores {
    size_t sequence;              /* index within the call */
    int32_t n_rows;               /* R, may be 0 */
    int32_t top_k;                /* K */
    const int32_t *positions;     /* [R] t, ascending */
    const int32_t *targets;       /* [R] ids[t + 1] */
    const float *target_logprobs; /* [R]; -inf for a target at or above n_valid_ids */
    const int32_t *target_ranks;  /* [R] how many tokens are more probable; -1 for such a target */
    const float *logsumexps;      /* [R] of the row's logits */
    const float *entropies;       /* [R] nats */
    const float *tail_masses;     /* [R] probability of all ids that are not among the top K */
    const int32_t *top_ids;       /* [R, K] most probable first; -1 where there are fewer ids */
    const float *top_logprobs;    /* [R, K]; -inf there */
} tdgen_scores;

/* Called on the thread that scores, once per sequence, in order. Return 0 to go on; anything else
 * ends the call with TDGEN_E_STOPPED, after which the teacher can be used as before. Must not use
 * or close this teacher, nor leave by longjmp or an exception. */
typedef int (*tdgen_scores_fn)(const tdgen_scores *scores, void *user);

/* Scores n sequences, as many as fit max_tokens at once. All sequences are checked before anything
 * is computed; TDGEN_E_DATA names the first that is wrong. A sequence without rows costs nothing.
 * TDGEN_E_NUMBERS: a row was not finite; the sequences before it were delivered, and the teacher
 * can be used as before. After TDGEN_E_DEVICE, TDGEN_E_MEMORY or TDGEN_E_DEVICE_LOST it can only be
 * closed. */
TDGEN_API tdgen_status tdgen_teacher_score(tdgen_teacher *t, const tdgen_sequence *sequences,
                                           size_t n, tdgen_scores_fn fn, void *user,
                                           tdgen_error *err);

#ifdef __cplusplus
}
#endif
#endif
