/* spec.h - the capture spec as JSON.
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
#include "capture/capture.h"
#include "base/status.h"

/* "f16", "f32" or "q8", as in the INI file. */
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
