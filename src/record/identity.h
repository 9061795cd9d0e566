/* identity.h - manifest.json: what makes two runs the same run.
 *
 *   {"schema", "tdgen", "hash", "fingerprint", "identity": {...}, "extent": {...}, and notes for a
 *    reader}
 *
 * identity is one flat object, keys as in run.ini ("capture.top_k") or of the same form for what a
 * run finds out ("model.weights_hash"). fingerprint = xxh3 of its canonical text (keys sorted, no
 * blanks); every shard carries it. hash = xxh3 of the canonical text of the whole manifest without
 * `hash`, and the file is exactly the serialisation of its own content: any flipped bit is found.
 */
#ifndef TDGEN_RECORD_IDENTITY_H
#define TDGEN_RECORD_IDENTITY_H

#include <jansson.h>
#include "record/extent.h"
#include "record/layout.h"
#include "record/record.h"
#include "base/strbuf.h"

/* Of the identity; not there: revision 1. */
#define TD_IDENTITY_NUMERICS "numerics_revision"

#define TD_MANIFEST_NAME "manifest.json"
#define TD_MANIFEST_MAX_BYTES ((size_t)1 << 20)

/* All keys but model.weights_hash. New reference. */
td_status td_identity_build(const td_config *cfg, const td_capture_spec *spec,
                            const td_identity *id, json_t **out, td_error *err);
td_status td_identity_set_weights(json_t *identity, uint64_t weights_hash, td_error *err);
/* TD_E_OUTPUT with both sides of every key that differs. skip_weights: model.weights_hash is not
 * known yet. */
td_status td_identity_compare(const json_t *folder, const json_t *run, bool skip_weights,
                              const char *dir, td_error *err);
/* Appends "KEY (meaning) is X in IN_A and Y in IN_B; ..." for every key that differs; how many. */
int td_identity_differences(const json_t *a, const json_t *b, bool skip_weights, const char *in_a,
                            const char *in_b, td_strbuf *out);
td_status td_identity_fingerprint(const json_t *identity, uint64_t *out, td_error *err);

/* The bytes of manifest.json for a run; freed by the caller. `identity` is borrowed. */
td_status td_manifest_text(const td_config *cfg, const td_identity *id, const json_t *identity,
                           const td_capture_spec *spec, char **text, td_error *err);
/* The bytes of a manifest that differs from `root` in its extent alone; one that is not known is left
 * out. */
td_status td_manifest_text_extended(const json_t *root, const td_extent *extent, char **text,
                                    td_error *err);

typedef struct td_manifest {
    json_t *root;
    json_t *identity; /* borrowed from root */
    uint64_t fingerprint;
    td_capture_spec spec;
    int32_t numerics_revision;
    bool has_ids; /* data.id_field: shards carry the rows' own ids */
    td_extent extent;
} td_manifest;
/* Reads DIR/manifest.json and checks its hash, schema and fingerprint. `code` is what failures
 * report. A missing file is `code` too. */
/* Appends which files of a dataset of several were added, are gone or changed since the manifest was
 * written; nothing where it does not list them. */
void td_manifest_file_changes(const td_manifest *m, const td_identity *id, td_strbuf *out);
td_status td_manifest_load(const char *dir, td_status code, td_manifest *out, td_error *err);
void td_manifest_free(td_manifest *m);

#endif
