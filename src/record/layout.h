/* layout.h - the byte format of a shard, drawn before the code that reads or writes it.
 *
 *   0            u64 little-endian, n = length of the header
 *   8            n bytes of JSON, padded with spaces so that 8 + n is a multiple of 64
 *   8 + n        data: the tensors of td_layout in this order, no holes
 *
 * The header is {"__metadata__": {...}, "name": {"dtype", "shape", "data_offsets"}, ...}. Its
 * length depends on counts only: the three hash fields of __metadata__ have a fixed width and are
 * filled at commit.
 *   data_hash      xxh3-64 of the data part
 *   tensor_hashes  xxh3-64 of each tensor in file order, comma-separated: names the damaged one
 *   header_hash    xxh3-64 of the header's n bytes with header_hash itself as sixteen '0'
 * So a shard proves itself without the index. Nothing in it depends on the time or the machine's
 * name: equal runs give equal bytes.
 *
 * Tensors stand in descending element size, so that each begins at a multiple of its element size
 * and a mapped view is aligned.
 */
#ifndef TDGEN_RECORD_LAYOUT_H
#define TDGEN_RECORD_LAYOUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "record/spec.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/strbuf.h"

#define TD_SHARD_SCHEMA "tdgen-record-2"

/* In the order of the file. A name may have several kinds (one per element type), of which a run
 * stores one. */
typedef enum td_tensor_id {
    TD_T_SAMPLE_OFFSETS,
    TD_T_SAMPLE_INDEX,
    TD_T_SAMPLE_START,
    TD_T_ROW_OFFSETS,
    TD_T_SAMPLE_ID_OFFSETS,
    TD_T_TOPP_OFFSETS,
    TD_T_DRAW_OFFSETS,
    TD_T_INPUT_IDS,
    TD_T_ROW_POSITION,
    TD_T_TOPK_IDS,
    TD_T_TOPK_LOGPROBS_F32,
    TD_T_LOGSUMEXP,
    TD_T_LOGSUMEXP_T,
    TD_T_TAIL_MASS,
    TD_T_TARGET_LOGPROB,
    TD_T_TARGET_RANK,
    TD_T_ENTROPY,
    TD_T_ALWAYS_LOGPROBS,
    TD_T_PROPOSAL_LOGSUMEXP,
    TD_T_TOPK_Q8_RANGE,
    TD_T_TOPP_Q8_RANGE,
    TD_T_DRAW_Q8_RANGE,
    TD_T_TOPP_IDS,
    TD_T_TOPP_LOGPROBS_F32,
    TD_T_DRAW_IDS,
    TD_T_DRAW_COUNTS,
    TD_T_DRAW_LOGPROBS_F32,
    TD_T_LOGITS_F32,
    TD_T_HIDDEN_F32,
    TD_T_TOPK_LOGPROBS_F16,
    TD_T_TOPP_LOGPROBS_F16,
    TD_T_DRAW_LOGPROBS_F16,
    TD_T_LOGITS_BF16,
    TD_T_LOGITS_F16,
    TD_T_HIDDEN_BF16,
    TD_T_HIDDEN_F16,
    TD_T_LOSS_MASK,
    TD_T_SAMPLE_DEVICE,
    TD_T_SAMPLE_STATUS,
    TD_T_SAMPLE_ID_BYTES,
    TD_T_TOPK_IDS_PACKED,
    TD_T_TOPK_Q8,
    TD_T_TOPP_IDS_PACKED,
    TD_T_TOPP_Q8,
    TD_T_DRAW_IDS_PACKED,
    TD_T_DRAW_Q8,
    TD_T_COUNT
} td_tensor_id;

/* Values of sample_status. */
enum { TD_SAMPLE_OK = 0, TD_SAMPLE_SKIPPED = 1 };

typedef struct td_layout_tensor {
    const char *name;
    td_dtype dtype;
    bool present;
    int32_t n_dims; /* 1 or 2 */
    int64_t shape[2];
    uint64_t begin, end; /* within the data part */
} td_layout_tensor;

/* Sizes of one shard. */
typedef struct td_layout_counts {
    int64_t n_samples, n_tokens, n_rows;
    int64_t n_id_bytes; /* -1: no id_field */
    int64_t n_entries;  /* E: of the ragged set (topp, draws), all rows together; else 0 */
} td_layout_counts;

typedef struct td_layout {
    td_capture_spec spec;
    td_layout_counts counts;
    td_layout_tensor tensor[TD_T_COUNT]; /* in file order; those not present are empty */
    int32_t n_present;
    uint64_t data_size_bytes;
} td_layout;

/* False when a size overflows or a count is negative. Pure. */
bool td_layout_init(td_layout *l, const td_capture_spec *spec, const td_layout_counts *counts);

/* Bytes that one entry of the first dimension takes. */
uint64_t td_layout_row_bytes(const td_layout *l, td_tensor_id id);

/* Name, element type, shape in words ("R, K") and meaning of the i-th tensor kind, for the
 * manifest. */
typedef struct td_tensor_doc {
    const char *name;
    td_dtype dtype;
    const char *shape, *meaning;
    /* One entry per recorded row, as many bytes for each: such tensors have a place for every row
     * before anything is computed. */
    bool row_tensor;
    bool ragged; /* as long as the ragged set */
} td_tensor_doc;
const td_tensor_doc *td_layout_doc(td_tensor_id id);
/* Does a run of this spec store it? */
bool td_layout_has(const td_capture_spec *spec, bool has_ids, td_tensor_id id);
/* Safetensors' name of the element type: "I32". */
const char *td_layout_dtype_name(td_dtype t);

/* What __metadata__ says about a shard, beside the hashes. */
typedef struct td_shard_meta {
    int64_t number, row_begin, row_end;
    uint64_t fingerprint, source_hash;
    int64_t n_skipped; /* samples with sample_status 1 */
    int64_t n_bad_rows, n_overflow_rows;
    const char *const *device_kinds;
    int32_t n_kinds;
} td_shard_meta;

typedef struct td_shard_hashes {
    uint64_t data;
    uint64_t tensor[TD_T_COUNT]; /* those present, in file order */
} td_shard_hashes;

/* Appends the length word and the header to *out. hashes == NULL gives the header of the same
 * length with zeros in the three hash fields. */
td_status td_layout_header(const td_layout *l, const td_shard_meta *m,
                           const td_shard_hashes *hashes, td_strbuf *out, td_error *err);
/* xxh3 of a header (n bytes after the length word) with its header_hash as zeros; false when it has
 * no such field. The header is changed during the call and restored. */
bool td_layout_header_hash(char *header, size_t n, uint64_t *out);

/* "shard-000012.safetensors", packed: "shard-000012.safetensors.zst" */
#define TD_SHARD_NAME_SIZE 48
void td_shard_name(int64_t number, bool packed, char out[TD_SHARD_NAME_SIZE]);
/* The number in a shard's file name, -1 when it is no such name. `packed` may be NULL. */
int64_t td_shard_name_parse(const char *name, bool *packed);

#define TD_TEXT_ALIGNMENT                                                                          \
    "the row at position t of a sample predicts the token at position t+1; a row exists where "    \
    "loss_mask[t+1] is 1"
#define TD_TEXT_SHAPES                                                                             \
    "n samples, N tokens, R recorded rows, K capture.top_k, nT capture.temperatures, nA "          \
    "capture.always_ids, E entries of all rows' sets together, V vocabulary, C hidden size, B "    \
    "bytes"
#define TD_TEXT_LOGARITHM "all logarithms are natural (base e)"
#define TD_TEXT_TOKENISATION                                                                       \
    "prompt + separator and completion are tokenised separately and their ids concatenated; "      \
    "special tokens, where added, belong to the prompt part"

#endif
