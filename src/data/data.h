/* data.h - from the files of a dataset to shards of token ids, packed into micro-batches.
 *
 * A *shard* is `shard_samples` consecutive dataset rows, the unit of commit and resume; numbers are
 * global: shard k holds rows [k*shard_samples, (k+1)*shard_samples), cut by max_samples and the end
 * of the data. Several files are one dataset, the rows of each behind those of the one before, in the
 * order of their paths' bytes (files.h); a shard may begin in one and end in another. A row gives one sample, none (overflow = skip, or a bad row under on_bad_sample =
 * skip), or several (overflow = split: consecutive pieces of max_length tokens).
 *
 * Rows by format:
 *   jsonl   a line with one JSON object; blank lines are no rows
 *   text    a line without its line end (LF or CRLF), empty lines included; or the whole file
 *   tokens  row i = input_ids[sample_offsets[i] .. sample_offsets[i+1]) of a safetensors file
 *           (input_ids any integer dtype [N]; sample_offsets or offsets I64/I32 [n+1]; optional
 *           loss_mask U8/BOOL [N]). Shards that tdgen wrote and what tdgen prepare makes are such
 *           files; one whose metadata names another tokenizer_hash than the model's tokenizer.json
 *           has is refused. Or a raw .bin file: nanoGPT's stream of u16 or u32, in rows of
 *           max_length ids or ended by document_eos; Megatron's .bin + .idx, a row for each
 *           document (tokens_raw.c draws them).
 * Each is one file behind format.h; the list is TD_DATA_FORMATS (config/config.h).
 * jsonl and text may be compressed with gzip or zstd, whatever they are called; a name ends in .gz
 * or .zst behind the extension that tells the format. A UTF-8 byte order mark at the start of a
 * jsonl or text file is skipped. Text may hold any byte; JSON must be valid (UTF-8 included), else
 * the row is bad.
 *
 * Tokens of a row:
 *   text                     encode(text), with the post-processor's special tokens as
 *                            add_special_tokens says; every token is a target
 *   prompt + completion      encode(prompt + separator, with special tokens) ++ encode(completion,
 *                            without): two separate encodings, NOT one of the joined text, so the
 *                            border between the parts is always a token border. Only completion
 *                            tokens are targets
 *   ids (jsonl), tokens      as they stand; targets as the mask says, all without a mask
 *   append_eos               adds the end-of-sequence id as a target, unless the row's own text (or
 *                            ids) already ends with it
 * The first token of a sample is never a target (nothing predicts it).
 *
 * Memory: one row, and one shard at 5 bytes a token (twice that while it is built) + 40 bytes a
 * sample; never the file, and for a compressed one the decoder's window (gzip 32 KiB, zstd up to
 * 128 MiB as its frames ask). With shard_samples rows of max_length tokens (1024 x 2048) that is 10
 * MiB a shard; overflow = split keeps all tokens of its rows, however long they are.
 *
 * One thread owns a td_source. A td_shard is immutable once returned.
 */
#ifndef TDGEN_DATA_DATA_H
#define TDGEN_DATA_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "config/config.h"
#include "base/status.h"
#include "base/strbuf.h"
#include "tokenizer/tokenizer.h"

typedef struct td_sample {
    int64_t row;          /* dataset row, from 0 */
    int64_t start;        /* token offset within the row's tokens (split), else 0 */
    int64_t token_offset; /* into the shard's arrays */
    int32_t n_tokens;     /* 0 .. max_length */
    int32_t n_rows;       /* positions to record: tokens t >= 1 with loss_mask 1 */
    int64_t row_offset;   /* of its first recorded row within the shard */
} td_sample;

typedef struct td_micro_batch {
    const int32_t *samples; /* indices into the shard's samples */
    int32_t n_samples, n_tokens, n_rows;
    bool alone; /* nothing else may be in flight on its group's devices (td_shard_repack) */
} td_micro_batch;

typedef struct td_shard {
    int64_t number;
    int64_t row_begin, row_end; /* dataset rows */
    int32_t *ids;               /* [n_tokens] */
    uint8_t *loss_mask;         /* [n_tokens], 0 at each sample's first token */
    int64_t n_tokens, n_rows;
    td_sample *samples; /* [n_samples], in dataset order */
    int32_t n_samples;
    /* id_field: UTF-8 of sample i at id_bytes[id_offsets[i] .. id_offsets[i+1]); NULL without. */
    char *id_bytes;
    int64_t *id_offsets; /* [n_samples + 1] */
    /* xxh3 of the rows' raw (plain) bytes in file order: lines with their line end (a missing last
     * LF counts as there); of tokens: u64 number of ids, ids, mask of each row. Bad rows count. */
    uint64_t source_hash;
    int32_t n_bad_rows;        /* rows left out under on_bad_sample = skip */
    int32_t n_overflow_rows;   /* rows cut, split or skipped because of max_length */
    int64_t n_overflow_tokens; /* of these, what was cut off or skipped; not in the record */
    /* Samples with n_rows > 0, longest first, packed up to batch_tokens; a longer sample is a
     * micro-batch of its own. Samples without rows are in none: nothing has to be computed. */
    td_micro_batch *batches;
    int32_t n_batches;
    int32_t *batch_samples; /* backing store of the lists */
} td_shard;

void td_shard_free(td_shard *s); /* NULL allowed */

/* What a micro-batch (or a whole dataset) consists of: the counts that its cost follows from. Work
 * adds up: the size of two micro-batches together is the sum of their sizes. */
typedef struct td_work_size {
    int64_t n_tokens, n_rows; /* n_rows: recorded ones, which alone pass lm_head */
    double n_pairs; /* query-key pairs of full causal attention: sum of L(L+1)/2 over samples */
    double n_pairs_window; /* the same under the model's sliding window (== n_pairs without one) */
} td_work_size;

/* Adds one sample. window: the model's sliding window in tokens (td_cost_model's), 0 = none. */
static inline void td_work_size_add(td_work_size *w, int32_t n_tokens, int32_t n_rows,
                                    int32_t window) {
    double L = n_tokens, W = window, pairs = L * (L + 1) / 2;
    w->n_tokens += n_tokens;
    w->n_rows += n_rows;
    w->n_pairs += pairs;
    w->n_pairs_window += window > 0 && L > W ? W * (W + 1) / 2 + (L - W) * W : pairs;
}

typedef enum td_pack_mark {
    TD_PACK_TOGETHER, /* with others, as td_source_next packs */
    TD_PACK_ALONE,    /* a micro-batch of its own with `alone` set */
    TD_PACK_OUT       /* in no micro-batch: it will not be computed */
} td_pack_mark;
/* Packs a shard anew: marks [n_samples] are td_pack_mark values. The micro-batches with one sample
 * come first. No bits of a result depend on it. Before the shard is shared with other threads; on
 * failure it is as it was. */
td_status td_shard_repack(td_shard *s, int32_t batch_tokens, const uint8_t *marks, td_error *err);

typedef struct td_source td_source;

typedef struct td_source_limits {
    int32_t n_vocab; /* all ids must be below it (the model's padded vocabulary); 0 = unknown */
    int32_t eos_id;  /* for append_eos; -1: none known, then append_eos is refused by name */
    int32_t max_positions; /* the model's own limit, for the warning; 0 = unknown */
    int32_t window;        /* its sliding window, for the statistics (td_cost_model); 0 = none */
    int32_t batch_tokens;  /* tokens of a micro-batch, from the plan; not looked at by statistics */
} td_source_limits;

/* Resolves format = auto by extension and first bytes, checks that the file is there, readable and
 * has rows and, for JSONL, that the first row has the configured fields (under on_bad_sample =
 * skip: one of the first rows). `tok` may be NULL when the rows are already tokenised. cfg and tok
 * are borrowed. */
td_status td_source_open(const td_config *cfg, const td_tokenizer *tok, const td_source_limits *lim,
                         td_source **out, td_error *err);
void td_source_close(td_source *s); /* NULL allowed */
/* From the next shard on, micro-batches of up to n >= 1 tokens: less memory was there than planned.
 * Like all but td_source_progress it belongs to the source's one thread; before another thread
 * takes the source over, the one that hands it over may call it. No bits of a result depend on it.
 */
void td_source_set_batch_tokens(td_source *s, int32_t n);
int32_t td_source_batch_tokens(const td_source *s);
/* The resolved format, never TD_FORMAT_AUTO. */
td_data_format td_source_format(const td_source *s);
/* The hash of the tokenizer that its token files name, which was found to be the model's; "": they name none,
 * or the rows are text. */
const char *td_source_tokenizer_hash(const td_source *s);

/* Does this configuration need a tokenizer (text), or does it bring ids? The format is resolved. */
td_status td_source_needs_tokenizer(const td_config *cfg, bool *out, td_error *err);

/* The next shard in file order, or NULL in *out at the end of the data (or of max_samples).
 * tokenise = false: only row_begin, row_end, source_hash and number are filled (rows are scanned,
 * not parsed), for shards that are finished or belong to another worker. Errors name file and line.
 * After a failure the source can only be closed. */
td_status td_source_next(td_source *s, bool tokenise, td_shard **out, td_error *err);
/* Goes back to the beginning of the shard that the last td_source_next returned, so that the next
 * call returns that shard again (a scanned shard turned out to need computing). Once per shard. A
 * compressed file is decompressed again from its gzip member or zstd frame, or its beginning. */
td_status td_source_step_back(td_source *s, td_error *err);
/* Number of the shard that the next td_source_next would return. */
int64_t td_source_next_number(const td_source *s);
/* Bytes of the file, compressed ones where it is compressed. Can be called from any thread. At the
 * end of the data both are equal. */
void td_source_progress(const td_source *s, uint64_t *bytes_read, uint64_t *bytes_total);

/* A file of the dataset. */
typedef struct td_dataset_file {
    char *path;
    uint64_t size_bytes;
    uint64_t hash; /* of its ends; 0 before td_source_fingerprint */
} td_dataset_file;

/* The files in their order, [*n]; the source's. */
const td_dataset_file *td_source_files(const td_source *s, size_t *n);
/* Identity of the dataset. One file: size and xxh3 over its first and last MiB. Several: the sum of the
 * sizes, and xxh3 over size (u64) and hash (u64, of the first and last 64 KiB) of each in their order:
 * names are no part of it, borders between files are. The rows themselves are covered by each shard's
 * source_hash. */
td_status td_source_fingerprint(td_source *s, uint64_t *size_bytes, uint64_t *hash, td_error *err);

/* False when nothing that data.path names is there. */
bool td_dataset_is_there(const td_config *cfg);

/* How the statistics came about. */
typedef enum td_stats_basis {
    TD_STATS_ALL_ROWS, /* every row of the job was read: the counts are exact */
    TD_STATS_SPREAD,   /* rows at places spread over all bytes */
    TD_STATS_FRONT,    /* the beginning of the file, or of some of the files */
    TD_STATS_PIECES    /* pieces of large rows that are a file each */
} td_stats_basis;

/* What the planner wants to know. Small datasets (and small max_samples) are read whole (estimated =
 * false); of large ones some thousand rows spread over all files are tokenised and scaled up, or, where
 * no row is found without all before it (compressed files, document_eos), the beginnings of files
 * spread over the dataset; bad rows among these are left out without a word, the run will name them.
 * Without a tokenizer (tok == NULL though text needs one) token counts are estimated at 4 bytes a token
 * and `tokens_from_bytes` says so. */
typedef struct td_dataset_stats {
    int64_t n_dataset_rows, n_samples, n_tokens, n_record_rows;
    /* Of rows longer than max_length: how many, and the tokens that are cut off or skipped with them. */
    int64_t n_overflow_rows, n_overflow_tokens;
    int64_t n_bad_rows; /* left out under on_bad_sample = skip; 0 where estimated */
    /* Query-key pairs of the attention of all samples, as in td_work_size; 0 = not known. */
    double n_pairs, n_pairs_window;
    int32_t max_tokens; /* longest sample met */
    bool estimated, tokens_from_bytes;
    /* How that is known. */
    td_stats_basis basis;
    int64_t n_rows_read;
    uint64_t bytes_read, bytes_total; /* of the files, as they are on disk; of the whole dataset */
    int64_t n_files_read, n_files;
} td_dataset_stats;
/* Tells the user what was left out of data.path (empty files, other files of a folder). */
td_status td_dataset_stats_sample(const td_config *cfg, const td_tokenizer *tok,
                                  const td_source_limits *lim, td_dataset_stats *out,
                                  td_error *err);

/* Of a dataset, or a finished folder, without any position to record. */
typedef struct td_data_counts {
    int64_t n_samples, n_tokens;
    int64_t n_bad;           /* rows left out as bad, and samples that could not be computed */
    int64_t n_overflow_rows; /* 0 also where it is not known */
} td_data_counts;
/* Appends why that is so, and what to do. */
void td_data_why_nothing(const td_config *cfg, const td_data_counts *n, td_strbuf *out);

#endif
