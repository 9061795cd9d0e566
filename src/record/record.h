/* record.h - what is on disk: output folder, shard files, manifest, resume, verify, inspect.
 *
 * OUT/manifest.json          identity of the run, written once
 * OUT/shard-NNNNNN.safetensors   canonical record (DESIGN section 6), whole or not there;
 *                                with output.zstd shard-NNNNNN.safetensors.zst, the same compressed
 * OUT/shards.jsonl           append-only index, one line a shard; can be rebuilt from the shards
 * OUT/status.json, OUT/faults.json, OUT/tdgen.log   written by sched and the main job
 *
 * Where every row has the same size (modes topk, full, hidden) the layout of a shard is known
 * before anything is computed, so the writer makes the temp file at its full size and each sample's
 * rows go to their place as they arrive. Sets of different sizes (topp, draws) go to a side file
 * and are put in order at the end. Host memory does not grow with the shard. Commit = data hash,
 * header, fsync, rename, fsync of the folder, index line.
 */
#ifndef TDGEN_RECORD_H
#define TDGEN_RECORD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "capture/coverage.h"
#include "config/config.h"
#include "data/data.h"
#include "model/model.h"
#include "base/status.h"
#include "tokenizer/tokenizer.h"

#define TD_RECORD_SCHEMA 2

/* Bytes a recorded row costs on disk, all row tensors, for this configuration; in the ragged modes
 * (topp, sample, topk+sample) the most it can be. Before compression by output.zstd. Pure. */
double td_record_bytes_per_row(const td_config *cfg, const td_model_config *model);
/* Is that a bound rather than the size of every row? */
bool td_record_bytes_is_bound(const td_config *cfg);
/* Bytes per token (input_ids, loss_mask) beside the rows. */
double td_record_bytes_per_token(const td_config *cfg);

/* What makes two runs the same run, beside the config's own keys. */
typedef struct td_identity {
    const td_model_config *model;
    td_dtype compute;
    bool has_tokenizer;
    uint64_t tokenizer_hash;
    int32_t tokenizer_n_vocab;
    uint64_t dataset_size_bytes, dataset_hash;
    td_data_format format; /* resolved */
    bool append_eos;       /* resolved */
    int32_t eos_id;        /* what append_eos appends; only compared when it does */
} td_identity;

typedef struct td_output td_output;

/* Makes or opens the output folder, takes its lock (a second process gets a clear error), removes
 * temp files of a crash, reads manifest and index (rebuilding the index from the shards where it is
 * missing or short), and compares identities: a key that differs is TD_E_OUTPUT with a message that
 * shows both sides and what may be done. Free to differ: gpus, groups, batch_tokens, worker_id,
 * total_workers; max_samples may grow. */
td_status td_output_open(const td_config *cfg, const td_identity *id, td_output **out,
                         td_error *err);
/* The same with a lock that an earlier execution of this process holds: lock_fd is an open file
 * descriptor of it, or -1. It is taken over only if it is the lock file of this very folder. */
td_status td_output_open_locked(const td_config *cfg, const td_identity *id, int lock_fd,
                                td_output **out, td_error *err);
/* Descriptor of the lock, -1 where the file system has none. Close-on-exec; still the output's. */
int td_output_lock_fd(const td_output *o);
void td_output_close(td_output *o);
/* After the weights were read: writes the manifest of a new run, or compares the hash. */
td_status td_output_bind_weights(td_output *o, uint64_t weights_hash, td_error *err);

/* What one finished shard holds, from the index. n_skipped: samples that could not be computed and
 * dataset rows left out as bad. */
typedef struct td_shard_totals {
    int64_t n_samples, n_tokens, n_rows, n_skipped;
} td_shard_totals;

/* Is this shard finished? On *done, *totals (may be NULL) is filled. Compares row range and
 * source_hash; a finished shard is re-read and its hashes checked once. A shard that is damaged, or
 * that an earlier max_samples cut short, counts as not done (with a warning that says why); one
 * that an earlier, larger max_samples made longer is done. A differing source_hash is TD_E_OUTPUT:
 * the dataset changed under the run. Any thread. */
td_status td_output_shard_done(td_output *o, int64_t number, int64_t row_begin, int64_t row_end,
                               uint64_t source_hash, bool *done, td_shard_totals *totals,
                               td_error *err);
/* Does the index know this shard at all (whatever its state)? Lets the feeder tokenise at once when
 * it does not. */
bool td_output_has_shard(const td_output *o, int64_t number);

typedef struct td_output_totals {
    int64_t n_shards, n_samples, n_tokens, n_rows, n_skipped;
    uint64_t size_bytes;
} td_output_totals;
/* Of all committed shards of the folder. Any thread. */
void td_output_totals_get(td_output *o, td_output_totals *t);

/* Of the shards that this output committed or that td_output_shard_done found done, since it was
 * opened. Any thread. */
void td_output_coverage_get(td_output *o, td_coverage *c);

typedef struct td_shard_writer td_shard_writer;

/* Reserves the file at its full size (a full disk is reported here), writes tokens and tables.
 * `shard` is borrowed until commit or abort. device_kinds: those of the run's groups, in order. */
td_status td_shard_writer_open(td_output *o, const td_shard *shard, const char *const *device_kinds,
                               int32_t n_kinds, td_shard_writer **out, td_error *err);
/* Rows of one sample, starting at first_row of `cap`; device_kind: index into device_kinds of open.
 * Threads may put different samples at once. Numbers that are not finite or contradict each other
 * are TD_E_INTERNAL, naming dataset row, position and tensor: nothing of the sample counts as
 * written, and it may be put again (computed elsewhere) or skipped. */
td_status td_shard_writer_put(td_shard_writer *w, int32_t sample, int32_t device_kind,
                              const td_captured *cap, int32_t first_row, td_error *err);
/* The sample stays in the shard (its tokens, its index) but has no rows and a zero loss mask. */
td_status td_shard_writer_skip(td_shard_writer *w, int32_t sample, td_error *err);
/* All samples with rows were put or skipped. Ends the writer, also on failure: then the folder is
 * as before, or the shard is in place and only its index line is missing (repaired on the next
 * open). */
td_status td_shard_writer_commit(td_shard_writer *w, td_error *err);
void td_shard_writer_abort(td_shard_writer *w); /* removes the temp file; NULL allowed */

/* Checks every byte of DIR; prints one line a shard that fails and a summary. TD_E_VERIFY when
 * anything is wrong. */
td_status td_verify(const char *dir, FILE *out, bool verbose, td_error *err);

typedef struct td_merge_options {
    bool copy; /* copies instead of hard links */
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
 * td_recheck_settings -> the caller computes each sample, in order, and hands it to
 * td_recheck_compare; then each once more among other samples, to td_recheck_control ->
 * td_recheck_report -> td_recheck_close. One thread. */
typedef struct td_recheck td_recheck;
typedef struct td_recheck_sample {
    int32_t n_tokens, n_rows;
    int32_t *ids;        /* [n_tokens] */
    int32_t *position;   /* [n_rows] ascending: the row at t predicts ids[t + 1] */
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
/* Those that are not NULL are compared with the manifest: TD_E_MODEL shows both sides. */
td_status td_recheck_teacher(const td_recheck *r, const char *model_dir,
                             const td_model_config *model, const td_tokenizer *tok,
                             const uint64_t *weights_hash, td_error *err);
/* Fills model.compute, capture and run.seed as the folder's run had them. */
td_status td_recheck_settings(const td_recheck *r, const td_model_config *model, td_config *cfg,
                              int32_t *n_valid_vocab, td_error *err);
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
