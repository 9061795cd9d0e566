/* spec.h - what a run stores per row: the capture spec, fixed for a folder.
 *
 * As JSON it stands in manifest.json ("capture") and, as text, in each shard's __metadata__, so
 * that a shard alone says how it is read. Only keys that the mode uses are in it:
 *
 *   {"mode": "topp", "n_vocab": V, "n_valid_vocab": ids at or above have no probability,
 *    "top_k", "top_p", "min_k", "n_draws", "proposal_power", "logprob_dtype": "f16|f32|q8",
 *    "dense_dtype", "n_hidden", "temperatures": [], "always_ids": [], "pack_ids", "id_bits"}
 */
#ifndef TDGEN_RECORD_SPEC_H
#define TDGEN_RECORD_SPEC_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "config/config.h"
#include "base/dtype.h"
#include "model/model.h"
#include "base/status.h"

typedef struct td_capture_spec {
    td_capture_mode mode;
    int32_t top_k; /* K = min(capture.top_k, V) where the mode has a top set, else 0 */
    td_dtype logprob_dtype;
    int32_t n_temperatures;
    int32_t n_vocab;
    int32_t n_valid;       /* ids at or above it have no probability; n_vocab = all have */
    int32_t min_k;         /* topp */
    double top_p;          /* topp */
    int32_t n_draws;       /* sample, topk+sample; else 0 */
    double proposal_power; /* of draws */
    td_dtype dense_dtype;  /* full, hidden */
    int32_t n_hidden;      /* C, mode hidden; else 0 */
    int32_t n_always;
    int32_t always_ids[TD_MAX_ALWAYS_IDS];
    double temperatures[TD_MAX_TEMPERATURES];
    bool pack_ids; /* id tensors at id_bits each */
    bool q8;       /* log-probabilities in 8 bits */
} td_capture_spec;

/* Pure. Keys that the mode does not use become 0. n_valid_vocab: 0 = all of V. */
void td_spec_of(const td_config *cfg, const td_model_config *model, int32_t n_valid_vocab,
                td_capture_spec *out);

/* A set of the most probable tokens in K places a row (topk, topk+sample). */
bool td_mode_has_topk_rows(td_capture_mode m);
/* Its rows have different numbers of entries (topp, sample, topk+sample). */
bool td_mode_is_ragged(td_capture_mode m);
/* Entries of the ragged set that a row can have at most; 0 in the other modes. */
int32_t td_spec_max_entries(const td_capture_spec *s);
/* Draws come from another distribution than the teacher's: proposal_logsumexp is stored. */
bool td_spec_has_proposal(const td_capture_spec *s);
/* Bits of a packed id: enough for V ids and "no id" (all ones). */
int32_t td_spec_id_bits(const td_capture_spec *s);

/* Names as in the INI file. */
const char *td_mode_name(td_capture_mode m);
const char *td_spec_logprob_name(const td_capture_spec *s);
/* The bound of the error that storing a log-probability makes, in words. */
const char *td_spec_logprob_error(const td_capture_spec *s);

/* New reference; NULL when out of memory. */
json_t *td_spec_json(const td_capture_spec *s);
/* Its text as it stands in the shards' metadata; freed by the caller, NULL when out of memory. */
char *td_spec_text(const td_capture_spec *s);
/* Accepts exactly what td_spec_json gives. */
td_status td_spec_parse(const json_t *o, const char *path, td_status code, td_capture_spec *out,
                        td_error *err);

#endif
