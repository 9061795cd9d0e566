/* report.h - looking at a folder again: verify, recheck, merge, inspect. Nothing here computes a
 * teacher: samples that are to be computed again come back from the caller as captured rows.
 */
#ifndef TDGEN_REPORT_REPORT_H
#define TDGEN_REPORT_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "base/status.h"
#include "capture/capture.h"

typedef struct td_verify_options {
    bool verbose; /* a line for each good shard, too */
    bool partial; /* a folder that is sound so far is good */
} td_verify_options;
/* Checks every byte of DIR; prints one line a shard that fails and a summary. TD_E_VERIFY when
 * anything is wrong; TD_E_UNFINISHED when nothing is, but the folder does not hold all that its run
 * is for. */
td_status td_verify(const char *dir, const td_verify_options *opt, FILE *out, td_error *err);

/* Where a run is by its folder, whoever makes it, wherever. */
typedef enum td_run_state_seen {
    TD_SEEN_NOTHING, /* no status.json */
    TD_SEEN_WORKING,
    TD_SEEN_DONE,
    TD_SEEN_STOPPED,
    TD_SEEN_FAILED,
    TD_SEEN_DIED,  /* its process is gone, on this host */
    TD_SEEN_SILENT /* its heartbeats ended, on another one */
} td_run_state_seen;
/* A readable screen on `out`, or one JSON document. *complete: the folder holds all that its run is
 * for. TD_E_OUTPUT: DIR is no output folder, or cannot be read; TD_E_VERIFY: a damaged manifest. */
td_status td_status_report(const char *dir, bool json, FILE *out, td_run_state_seen *seen,
                           bool *complete, td_error *err);

typedef struct td_merge_options {
    bool copy; /* copies instead of hard links */
    bool
        assume_complete; /* no status.json says how many shards there are: take what there is for all */
} td_merge_options;
/* Makes OUT of folders that workers of one run wrote: what one worker alone would have written.
 * Verifies them first, refuses other runs, unfinished ones, gaps and overlaps (TD_E_OUTPUT, both
 * sides shown; TD_E_VERIFY for damage) before it writes anything, only reads them, and completes an
 * OUT that an interrupted merge left. What it does is told on `log`. */
td_status td_merge(const char *out_dir, const char *const *dirs, int32_t n_dirs,
                   const td_merge_options *opt, FILE *log, td_error *err);

/* Samples of a folder, drawn at random, to be computed again and compared with what is on disk.
 *
 * Order of use: td_recheck_open -> td_recheck_teacher (is it the teacher of the folder?) ->
 * td_recheck_capture and td_recheck_compute (how was it computed?) -> the caller computes each sample, in order, and hands it to
 * td_recheck_compare; then each once more among other samples, to td_recheck_control ->
 * td_recheck_report -> td_recheck_close. One thread. */
typedef struct td_recheck td_recheck;
typedef struct td_recheck_sample {
    int32_t n_tokens, n_rows;
    int32_t *ids;        /* [n_tokens] */
    uint8_t *loss_mask;  /* [n_tokens] 1: the row at t - 1 that predicts ids[t] is recorded */
    int64_t dataset_row; /* and the token offset in it where the sample begins */
    int64_t start;
    const char *device_kind; /* that recorded it */
} td_recheck_sample;
/* At most n_samples different samples with rows: a function of the folder and the seed. */
td_status td_recheck_open(const char *dir, int32_t n_samples, uint64_t seed, td_recheck **out,
                          td_error *err);
void td_recheck_close(td_recheck *r); /* NULL allowed */
const td_recheck_sample *td_recheck_samples(const td_recheck *r, int32_t *n);
bool td_recheck_needs_tokenizer(const td_recheck *r);
/* What a teacher at hand is, for td_recheck_teacher; NULL: not looked at yet. */
typedef struct td_recheck_teacher_hashes {
    const uint64_t *config, *tokenizer, *weights;
    const uint64_t *tokenizer_bytes; /* td_tokenizer_bytes_hash: serves as well as `tokenizer` */
} td_recheck_teacher_hashes;
/* Those that are not NULL are compared with the manifest: TD_E_MODEL shows both sides. */
td_status td_recheck_teacher(const td_recheck *r, const char *model_dir,
                             const td_recheck_teacher_hashes *have, td_error *err);
/* As the folder's run had them; the spec with its seed. */
const td_capture_spec *td_recheck_capture(const td_recheck *r);
/* "bf16"; TD_E_VERIFY when the manifest names none that exists. */
td_status td_recheck_compute(const td_recheck *r, td_dtype *out, td_error *err);
/* The rows of one sample, from first_row of cap on. */
td_status td_recheck_compare(td_recheck *r, int32_t sample, const char *device_kind,
                             const td_captured *cap, int32_t first_row, td_error *err);
void td_recheck_control(td_recheck *r, int32_t sample, const td_captured *cap, int32_t first_row);
/* Prints what differs. TD_E_VERIFY when the control differs, when anything differs that the same
 * device kind recorded, or when other kinds differ by more than the tolerance that is printed. */
td_status td_recheck_report(const td_recheck *r, const char *device_kind, FILE *out, td_error *err);

typedef struct td_inspect_options {
    int64_t sample;        /* -1 = the first sample with rows */
    int32_t n_positions;   /* rows of the table, default 24 */
    int32_t n_candidates;  /* top candidates a row, default 5 */
    int32_t n_samples;     /* of the HTML page */
    const char *model_dir; /* for token texts; NULL = the manifest's, when it still exists */
} td_inspect_options;
td_status td_inspect(const char *dir, const td_inspect_options *opt, FILE *out, td_error *err);
/* The same for programs: one JSON document, as td_inspect_json's file describes it. n_positions 0:
 * all. */
td_status td_inspect_json(const char *dir, const td_inspect_options *opt, FILE *out, td_error *err);
/* One self-contained HTML page: no script, nothing from the network. opt->sample -1: n_samples
 * samples spread over the folder, 0 = 8. */
td_status td_inspect_html(const char *dir, const td_inspect_options *opt, FILE *out, td_error *err);

#endif
