/* record.h - what is on disk, for those who write it: output folder, shard files, manifest, resume.
 * reader.h is the face for those who read a folder.
 *
 * OUT/manifest.json          identity of the run, written once; and how many rows there are to be
 *                                (extent.h), as soon as that is known
 * OUT/shard-NNNNNN.safetensors   canonical record (layout.h draws it), whole or not there;
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
#ifndef TDGEN_RECORD_RECORD_H
#define TDGEN_RECORD_RECORD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "capture/capture.h"
#include "data/data.h"
#include "base/status.h"

#define TD_RECORD_SCHEMA 2

/* The numerics revision: which bits the same inputs give on the same device kind. Whoever changes a
 * recorded bit raises it (docs/design.md). It is part of a run's identity, so that no folder mixes
 * two.
 *   1  commit c4d9fb0; has no key in the manifest: folders older than the key are of revision 1
 *   2  sums over keys and over K by parts, so that f32's error does not grow with them */
#define TD_NUMERICS_REVISION 2

/* Bytes a recorded row costs on disk, all row tensors; in the ragged modes the most it
 * can be. Before compression by output.zstd. Pure. */
double td_record_bytes_per_row(const td_capture_spec *spec);
/* Bytes per token (input_ids, loss_mask) beside the rows. */
double td_record_bytes_per_token(void);

/* What makes two runs the same run, beside the config's own keys. */
typedef struct td_identity {
    char architecture[64];
    uint64_t config_hash; /* of the teacher's config.json */
    td_dtype compute;
    int32_t numerics_revision; /* TD_NUMERICS_REVISION */
    bool has_tokenizer;
    /* "": none. Rows that came as ids: the tokenizer that their files name, found to be the model's.
     * In the manifest, for those who ask later; no part of what makes two runs the same. */
    char data_tokenizer_hash[17];
    uint64_t tokenizer_hash;
    int32_t tokenizer_n_vocab;
    uint64_t dataset_size_bytes, dataset_hash;
    const td_dataset_file
        *files;            /* [n_files] of the dataset; borrowed until the output is closed */
    size_t n_files;        /* one leaves no trace in the manifest */
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
td_status td_output_open(const td_config *cfg, const td_capture_spec *spec, const td_identity *id,
                         td_output **out, td_error *err);
/* The same with a lock that an earlier execution of this process holds: lock_fd is an open file
 * descriptor of it, or -1. It is taken over only if it is the lock file of this very folder. */
td_status td_output_open_locked(const td_config *cfg, const td_capture_spec *spec,
                                const td_identity *id, int lock_fd, td_output **out, td_error *err);
/* Looks only: nothing is created, repaired or written, and no line of the index is added. The same
 * refusals; TD_E_OUTPUT also when the folder is not there. Of the calls below it takes
 * td_output_state, td_output_shard_done (what would be repaired is not done), td_output_totals_get
 * and close. */
td_status td_output_open_reading(const td_config *cfg, const td_capture_spec *spec,
                                 const td_identity *id, td_output **out, td_error *err);
/* How much of what this run is for is there, by the index; not complete where the index is to be
 * repaired. Any thread. */
typedef struct td_folder_state td_folder_state; /* extent.h */
void td_output_state(td_output *o, td_folder_state *out);
/* Descriptor of the lock, -1 where the file system has none. Close-on-exec; still the output's. */
int td_output_lock_fd(const td_output *o);
void td_output_close(td_output *o);
/* After the weights were read: writes the manifest of a new run, or compares the hash. */
td_status td_output_bind_weights(td_output *o, uint64_t weights_hash, td_error *err);

/* What the source has passed so far: n_rows dataset rows, and with at_end there are no more (or no
 * more that max_samples asks for). Goes into the manifest's extent, durably, where it is news; after
 * bind. Any thread. */
td_status td_output_note_rows(td_output *o, int64_t n_rows, bool at_end, td_error *err);

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

#endif
