/* record.h - the output folder of a run, read from C.
 *
 * Order of use:
 *
 *   tdgen_record *r;
 *   tdgen_record_open("out/demo", NULL, &r, &err)
 *   for i < tdgen_record_get_info(r)->n_samples:
 *       tdgen_record_get_sample(r, i, &sample, &err)          tokens, mask, where it comes from
 *       for k < sample->n_rows:
 *           tdgen_record_get_row(r, i, k, &row, &err)           what was recorded
 *           tdgen_record_get_distribution(r, i, k, &d, &err)    the same as ids and probabilities
 *   tdgen_record_close(r)
 *
 * Samples are numbered in the order of the dataset over all shards, from 0; any order of access
 * works, and going up is fast, since one shard is open at a time. The row at position t of a sample
 * predicts the token at t + 1. All logarithms are natural. Compressed shards and packed ids are
 * read like any others, and every capture mode gives the same structs; what a mode does not record
 * is absent (a count of 0, a NULL, a NaN) as said at each field.
 *
 * Files are not trusted. The manifest proves itself on opening. A shard proves itself when it is
 * first read: header, counts, the hash of every byte. Each row is checked to agree with itself.
 * TDGEN_E_DAMAGED says what is wrong; `tdgen verify DIR` tells more. Files of the folder must not
 * be cut or overwritten while it is open (shards are mapped into memory); a run may go on adding
 * shards to it, which are seen when it is opened again. Compressed shards unpack into $TMPDIR.
 */
#ifndef TDGEN_INCLUDE_RECORD_H
#define TDGEN_INCLUDE_RECORD_H

#include "tdgen/tdgen.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tdgen_record tdgen_record;

typedef enum tdgen_mode {
    TDGEN_MODE_TOPK = 0,        /* the K most probable tokens of each position */
    TDGEN_MODE_TOPP = 1,        /* as many as cover a share of the probability */
    TDGEN_MODE_SAMPLE = 2,      /* tokens drawn at random */
    TDGEN_MODE_TOPK_SAMPLE = 3, /* both sets */
    TDGEN_MODE_FULL = 4,        /* all logits */
    TDGEN_MODE_HIDDEN = 5       /* the last hidden state */
} tdgen_mode;

/* Every field but struct_size may be 0 for its default. */
typedef struct tdgen_record_options {
    size_t struct_size;
    /* Not 0: the data of a shard is not hashed when it is first read, only its header. For folders
     * that were verified before. */
    int32_t skip_data_hash;
    /* Not 0: a folder whose run is not finished, or that lost shards, is opened too. */
    int32_t partial;
} tdgen_record_options;
#define TDGEN_RECORD_OPTIONS_INIT                                                                  \
    { sizeof(tdgen_record_options), 0, 0 }

/* Opens an output folder; reads its manifest and index, no shard. `options` NULL: all defaults. On
 * success *out is to be closed; on failure it is untouched. TDGEN_E_FOLDER: DIR or its
 * manifest.json is not there. TDGEN_E_DAMAGED: the manifest does not prove itself, or the index
 * lost lines in a crash (running the same command again repairs it). TDGEN_E_UNFINISHED: the folder
 * does not hold all that its run is for, and options.partial is 0; the message says how much there is.
 * Of folders older than version 0.2 that is not known, and they are opened. */
TDGEN_API tdgen_status tdgen_record_open(const char *dir, const tdgen_record_options *options,
                                         tdgen_record **out, tdgen_error *err);
/* Frees everything that the record handed out. NULL allowed. */
TDGEN_API void tdgen_record_close(tdgen_record *r);

typedef struct tdgen_record_info {
    tdgen_mode mode;
    int32_t n_vocab;
    int32_t n_valid_ids; /* ids at or above it have no probability; n_vocab: all have */
    int32_t top_k;       /* entries of a row's top set at most; 0 in modes without one */
    int32_t n_draws;     /* draws of a row; 0 in modes without */
    int32_t n_hidden;    /* mode hidden: elements of a state, else 0 */
    double top_p;        /* mode topp, else 0 */
    /* Draws come from q ~ p^power; 1: from the teacher itself. 0 in modes without draws. */
    double proposal_power;
    int32_t n_temperatures;
    const double *temperatures; /* [n_temperatures] */
    int32_t n_always;
    const int32_t *always_ids; /* [n_always] recorded at every position, ascending */
    /* Texts of the manifest; NULL where it has none. */
    const char
        *logprob_storage;     /* "f32", "f16" or "q8": how log-probabilities of sets were rounded */
    const char *compute;      /* "f32", "bf16" or "f16": the mode that the teacher computed in */
    const char *architecture; /* "LlamaForCausalLM" */
    const char *model_path, *data_path;
    const char *tdgen_version; /* that began the run */
    uint64_t fingerprint;      /* of the run's identity; every shard carries it */
    int32_t numerics_revision;
    /* Of all shards together. */
    int64_t n_shards, n_samples, n_tokens, n_rows;
    int64_t n_skipped; /* samples that could not be computed, and dataset rows left out */
    /* How much the folder is to hold: dataset rows and shards of its worker's share; -1: not known. */
    int64_t n_dataset_rows, n_dataset_rows_expected, n_shards_expected;
    int32_t complete; /* 1: all of it is there; 0: not; -1: not known */
} tdgen_record_info;

/* Lives as long as r; NULL for NULL. */
TDGEN_API const tdgen_record_info *tdgen_record_get_info(const tdgen_record *r);

typedef struct tdgen_sample {
    int64_t index;        /* among all samples of the folder, as asked for */
    int64_t shard;        /* the number in the name of its file */
    int64_t dataset_row;  /* which row of the dataset it comes from, from 0 */
    int64_t start;        /* of its first token within that row's tokens */
    const char *id;       /* the row's own id (data.id_field), UTF-8, NUL-terminated; else NULL */
    size_t id_size_bytes; /* of it, without the NUL; an id may hold NULs of its own */
    const char *device_kind;      /* that computed it; NULL when it has no rows */
    int32_t skipped;              /* 1: could not be computed; its rows are missing */
    int32_t n_tokens;             /* L */
    int32_t n_rows;               /* R */
    const int32_t *ids;           /* [L] token ids, in [0, n_vocab) */
    const uint8_t *loss_mask;     /* [L] as the run used it */
    const int32_t *row_positions; /* [R] ascending; row k predicts ids[row_positions[k] + 1] */
} tdgen_sample;

/* Sample `index` in [0, n_samples), else TDGEN_E_ARGUMENT. *out is untouched on failure; what it
 * points to is valid until the next call that names another sample, or the close. Takes long where
 * it opens a shard, which is then read and hashed as a whole. */
TDGEN_API tdgen_status tdgen_record_get_sample(tdgen_record *r, int64_t index,
                                               const tdgen_sample **out, tdgen_error *err);

/* A recorded position. */
typedef struct tdgen_row {
    int32_t position; /* t */
    int32_t target;   /* the token at t + 1 */
    /* In mode hidden NaN, and the rank -1. */
    float target_logprob;
    float logsumexp; /* of the logits: logit = log-probability + logsumexp */
    float entropy;   /* nats */
    float tail_mass; /* probability outside of the top set; in mode sample, of what was not drawn */
    int32_t target_rank; /* how many tokens are more probable */

    int32_t n_top;             /* topk, topk+sample, topp: tokens in the set, else 0 */
    const int32_t *top_ids;    /* [n_top] most probable first */
    const float *top_logprobs; /* [n_top] */

    int32_t n_drawn;            /* sample, topk+sample: different ids drawn, else 0 */
    const int32_t *draw_ids;    /* [n_drawn] ascending */
    const int32_t *draw_counts; /* [n_drawn] how often each; they sum to info n_draws */
    const float *draw_logprobs; /* [n_drawn] under the teacher */
    /* log q(v) = proposal_power * log p(v) - this; 0 where the power is 1. */
    float proposal_logsumexp;

    const float *always_logprobs; /* [info n_always], of always_ids; NULL when there are none */
    const float *logsumexps_t; /* [info n_temperatures] of logits / T; NULL when there are none */

    int32_t n_dense; /* full: n_vocab; hidden: n_hidden; else 0 */
    const float
        *dense; /* [n_dense] logits (-inf from n_valid_ids on) or hidden state, widened to f32 */
} tdgen_row;

/* Row k in [0, n_rows) of a sample, else TDGEN_E_ARGUMENT. *out is untouched on failure; what it
 * points to is valid until the next tdgen_record_get_row or tdgen_record_get_distribution, or what
 * ends the sample. */
TDGEN_API tdgen_status tdgen_record_get_row(tdgen_record *r, int64_t sample, int32_t k,
                                            const tdgen_row **out, tdgen_error *err);

/* Candidates and the rest: probabilities and tail sum to 1 up to the rounding of the storage. */
typedef struct tdgen_distribution {
    int32_t n;
    const int32_t *ids;         /* [n] each once */
    const float *probabilities; /* [n] exp of the teacher's log-probabilities */
    float tail;                 /* probability of all other ids */
} tdgen_distribution;

/* What a row says of the teacher's distribution, in every mode but hidden (TDGEN_E_ARGUMENT there).
 *   topk, topp    the set, most probable first
 *   sample        the ids that were drawn, ascending, with the teacher's own probabilities. (What
 *                 trainers on draws use is an unbiased estimate instead, count / n_draws * p / q of
 *                 the row.)
 *   topk+sample   the top set, then the drawn ids outside of it
 *   full          all ids of finite logit, ascending; tail 0
 * Valid as a row is. */
TDGEN_API tdgen_status tdgen_record_get_distribution(tdgen_record *r, int64_t sample, int32_t k,
                                                     const tdgen_distribution **out,
                                                     tdgen_error *err);

#ifdef __cplusplus
}
#endif
#endif
