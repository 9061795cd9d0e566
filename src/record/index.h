/* index.h - shards.jsonl: one line a finished shard.
 *
 * Every field of a line follows from the shard itself, so a line is checked by writing it again,
 * and the file can be rebuilt. Lines are appended with one write and fsync; whatever a crash leaves
 * (a torn last line, a shard without a line, a line whose shard was replaced) is repaired on open
 * by writing the whole file anew, atomically.
 */
#ifndef TDGEN_RECORD_INDEX_H
#define TDGEN_RECORD_INDEX_H

#include "record/shard_file.h"
#include "base/strbuf.h"

#define TD_INDEX_NAME "shards.jsonl"

typedef struct td_index_entry {
    int64_t number, row_begin, row_end;
    int64_t n_samples, n_tokens, n_rows, n_skipped, n_bad_rows, n_overflow_rows;
    uint64_t size_bytes, source_hash, data_hash, file_hash;
    bool packed; /* the file is compressed; size_bytes and file_hash are of it as it is on disk */
    bool proven; /* every byte was read and agreed, in this process */
} td_index_entry;

typedef struct td_index {
    td_index_entry *entries; /* ascending by number, each once */
    size_t n, cap;
} td_index;

void td_index_free(td_index *x);
td_index_entry *td_index_find(const td_index *x, int64_t number);
/* Inserts, or replaces the entry of that number; *replaced may be NULL. False: out of memory. */
bool td_index_set(td_index *x, const td_index_entry *e, bool *replaced);
void td_index_remove(td_index *x, int64_t number);

void td_index_entry_of(const td_shard_file *f, uint64_t file_hash, td_index_entry *out);
/* Apart from `proven`. */
bool td_index_entry_equal(const td_index_entry *a, const td_index_entry *b);
/* The line with its newline. */
void td_index_line(const td_index_entry *e, td_strbuf *out);
/* Only what td_index_line would write is accepted (without the newline). */
bool td_index_parse(const char *line, size_t n, td_index_entry *out);

typedef struct td_index_faults {
    bool missing;      /* no file */
    bool out_of_order; /* harmless: shards were finished in another order */
    int64_t n_doubled; /* a shard with more than one line; the last counts */
    int64_t n_damaged; /* lines that could not be read, or a last one without its newline */
} td_index_faults;

/* Reads DIR/shards.jsonl; a missing file gives an empty index. */
td_status td_index_load(const char *dir, td_index *x, td_index_faults *faults, td_error *err);
td_status td_index_rewrite(const char *dir, const td_index *x, td_error *err);
td_status td_index_append(const char *dir, const td_index_entry *e, td_error *err);

#endif
