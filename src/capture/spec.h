/* spec.h - what is kept of each predicted position: the modes, the user's settings, and the spec
 * that a run resolves them to.
 *
 * Order of use: config fills td_capture_settings -> td_capture_resolve, once, when the teacher's
 * config.json (and, for mask_padded_vocab, its tokenizer) is known and before anything is planned ->
 * the td_capture_spec goes into the plan, const from then on. Session, planner, shard writer and
 * recheck take that one; nobody looks at the settings again. A folder's manifest holds it as JSON
 * (record/spec.h), so that `verify --against` has it without a configuration.
 *
 * To add a mode: docs/design.md, "Adding something".
 */
#ifndef TDGEN_CAPTURE_SPEC_H
#define TDGEN_CAPTURE_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"
#include "capture/limits.h"

/* Each mode once: its enumerator and its name in the INI file and the manifest. */
#define TD_CAPTURE_MODES(X)                                                                        \
    X(TOPK, "topk")                                                                                \
    X(TOPP, "topp")                                                                                \
    X(SAMPLE, "sample")                                                                            \
    X(TOPK_SAMPLE, "topk+sample")                                                                  \
    X(FULL, "full")                                                                                \
    X(HIDDEN, "hidden")

#define X(id, name) TD_CAPTURE_##id,
typedef enum td_capture_mode { TD_CAPTURE_MODES(X) } td_capture_mode;
#undef X
#define X(id, name) +1
enum { TD_CAPTURE_MODE_COUNT = TD_CAPTURE_MODES(X) };
#undef X

/* The one table of what a mode stores of each position. */
typedef struct td_capture_mode_info {
    bool topk;      /* a set of the most probable tokens, at most top_k */
    bool topk_rows; /* of those, in top_k places a row */
    bool draws;     /* ids drawn at random, n_draws a row */
    bool dense;     /* a number for each id or hidden element */
    bool ragged;    /* rows have different numbers of entries */
    bool stats;     /* logsumexp, tail_mass, entropy and their like, and what always_ids asks */
} td_capture_mode_info;
const td_capture_mode_info *td_capture_mode_of(td_capture_mode m);

static inline bool td_capture_has_topk(td_capture_mode m) {
    return td_capture_mode_of(m)->topk;
}
static inline bool td_capture_has_topk_rows(td_capture_mode m) {
    return td_capture_mode_of(m)->topk_rows;
}
/* Of those, a row's own number: the first ones until a rule is met, n_kept of them. */
static inline bool td_capture_has_topp(td_capture_mode m) {
    return td_capture_has_topk(m) && !td_capture_has_topk_rows(m);
}
static inline bool td_capture_has_draws(td_capture_mode m) {
    return td_capture_mode_of(m)->draws;
}
static inline bool td_capture_is_dense(td_capture_mode m) {
    return td_capture_mode_of(m)->dense;
}
static inline bool td_capture_is_ragged(td_capture_mode m) {
    return td_capture_mode_of(m)->ragged;
}
static inline bool td_capture_has_stats(td_capture_mode m) {
    return td_capture_mode_of(m)->stats;
}
/* Ids and log-probabilities of single tokens, to which pack_ids and logprob_dtype apply. */
static inline bool td_capture_has_sets(td_capture_mode m) {
    return td_capture_has_topk(m) || td_capture_has_draws(m);
}
const char *td_capture_mode_name(td_capture_mode m);
/* The mode of that name; false when there is none. */
bool td_capture_mode_find(const char *name, td_capture_mode *out);

/* [capture] of run.ini, as the user gave it or by default. */
typedef struct td_capture_settings {
    td_capture_mode mode;
    int32_t top_k;                            /* 64 */
    td_dtype logprob_dtype;                   /* TD_F16 */
    double temperatures[TD_MAX_TEMPERATURES]; /* ascending not required; each > 0 */
    int32_t n_temperatures;                   /* 0 */
    bool mask_padded_vocab;                   /* ids that no token of the tokenizer has get no
                                                 probability */
    double top_p;                             /* topp: mass to cover, 0.98 */
    int32_t min_k;                            /* topp: at least so many, 1 */
    int32_t n_draws;                          /* sample: draws per position, 50 */
    double proposal_power; /* sample: draw from q ~ p^t, 1 = the teacher itself */
    td_dtype dense_dtype;  /* full, hidden: how logits or states are stored, TD_BF16 */
    int32_t always_ids[TD_MAX_ALWAYS_IDS]; /* recorded at every position; as given, each once */
    int32_t n_always;                      /* 0 */
    bool pack_ids;                         /* ids at ceil(log2 V) bits each; false */
    bool quantise_logprobs;                /* log-probabilities in 8 bits; false */
} td_capture_settings;

/* What the settings are resolved against. */
typedef struct td_capture_teacher {
    int32_t n_vocab, n_hidden;
    int32_t n_valid; /* ids at or above it have no token and get no probability; 0 = all have one */
    const char *name; /* of its folder, for messages */
} td_capture_teacher;

/* What a run captures and stores per row, fixed for a folder. Fields that the mode does not use are
 * 0. Plain data: copied freely. */
typedef struct td_capture_spec {
    td_capture_mode mode;
    int32_t top_k; /* K where the mode has a set of most probable tokens, at most V */
    td_dtype logprob_dtype;
    int32_t n_temperatures;
    int32_t n_vocab;
    int32_t n_valid;       /* ids at or above it have no probability; n_vocab = all have */
    int32_t min_k;         /* topp */
    double top_p;          /* topp */
    int32_t n_draws;       /* sample, topk+sample */
    double proposal_power; /* of draws; devices take it as f32 */
    uint64_t seed;         /* of draws: run.seed. Not in the JSON, the identity has it */
    td_dtype dense_dtype;  /* full, hidden */
    int32_t n_hidden;      /* C, mode hidden */
    int32_t n_always;
    int32_t always_ids[TD_MAX_ALWAYS_IDS];
    double temperatures[TD_MAX_TEMPERATURES]; /* devices take them as f32 */
    bool pack_ids;                            /* id tensors at td_capture_id_bits each */
    bool q8;                                  /* log-probabilities in 8 bits */
} td_capture_spec;

/* The numbers that parametrise modes, each once: config notes those that a mode does not use,
 * td_capture_resolve copies and the manifest holds those that it uses. */
typedef struct td_capture_param {
    const char *name; /* in [capture] and in the manifest */
    bool (*used_by)(td_capture_mode m);
    bool is_real;          /* a double; else an int32_t in [1, max] */
    int32_t max;           /* of integers */
    size_t setting, field; /* offsets in td_capture_settings and td_capture_spec */
} td_capture_param;
enum { TD_CAPTURE_N_PARAMS = 5 };
extern const td_capture_param td_capture_params[TD_CAPTURE_N_PARAMS];

/* What no single number shows: top_k within the vocabulary, min_k within top_k. */
bool td_capture_spec_fits(const td_capture_spec *s);

/* TD_E_CONFIG when the teacher cannot give what the settings ask for (top_k or an always_id beyond
 * its vocabulary), naming the key; *out is then untouched. Pure. */
td_status td_capture_resolve(const td_capture_settings *settings, const td_capture_teacher *teacher,
                             uint64_t seed, td_capture_spec *out, td_error *err);

/* Entries of the ragged set that a row can have at most; 0 in the modes without one. */
int32_t td_capture_max_entries(const td_capture_spec *s);
/* Draws come from another distribution than the teacher's: proposal_logsumexp is stored. */
bool td_capture_has_proposal(const td_capture_spec *s);
/* Bits of a packed id: enough for V ids and "no id" (all ones). */
int32_t td_capture_id_bits(const td_capture_spec *s);
/* Numbers of a dense row: V logits, C of a hidden state, else 0. */
int32_t td_capture_dense_width(const td_capture_spec *s);
/* Bytes of a dense row in dense_dtype. */
uint64_t td_capture_dense_bytes(const td_capture_spec *s);

#endif
