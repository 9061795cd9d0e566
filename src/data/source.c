/* source.c - walks the dataset once, front to back, through the rows of its format. Whether a row is
 * then parsed or not, the same bytes are counted and hashed, so a scanned shard has the row range
 * and source_hash of a tokenised one.
 *
 * Threads: everything belongs to the caller's one thread but the two progress counters, which are
 * atomics that any thread reads. They order nothing, so relaxed is enough.
 */
#include "data/source.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include "data/chain.h"
#include "data/files.h"
#include "data/format.h"
#include "data/lines.h"
#include "data/row.h"
#include "data/shard.h"
#include "base/file.h"
#include "base/log.h"
#include "base/hash.h"
#include "base/memory.h"

enum {
    BAD_ROWS_LISTED = 10,
    FINGERPRINT_BYTES = 1 << 20,   /* at either end of a dataset that is one file */
    FINGERPRINT_OF_MANY = 64 << 10 /* and of each of several */
};

struct td_source {
    const td_config *cfg; /* borrowed */
    td_dataset_files files;
    td_config one; /* of the file, where there is one only */
    td_data_format format;
    bool silent, at_end, failed;
    td_rows *rows;
    char tokenizer_hash[64]; /* td_rows_look */
    bool told_bos;
    td_row_maker maker;
    XXH3_state_t *hash;
    char *where; /* of the row in hand, for messages */
    size_t where_cap;
    int32_t batch_tokens; /* of a micro-batch */
    int64_t next_row, row_limit, next_number;
    int64_t n_bad_rows;
    /* Where the last shard began, for td_source_step_back. */
    struct {
        bool set;
        td_rows_place place;
        int64_t row;
    } mark;
    _Atomic uint64_t bytes_read, bytes_total;
};

td_status td_source_needs_tokenizer(const td_config *cfg, bool *out, td_error *err) {
    td_dataset_files files;
    td_status rc = td_dataset_files_find(cfg, &files, err);
    if (rc != TD_OK)
        return rc;
    *out = td_format_needs_tokenizer(cfg, files.format->format);
    td_dataset_files_free(&files);
    return TD_OK;
}

static void count_bad_row(td_source *s, td_shard *shard, const td_error *e) {
    shard->n_bad_rows++;
    int64_t n = ++s->n_bad_rows, power = 1;
    if (s->silent)
        return;
    while (power < n)
        power *= 10;
    if (n <= BAD_ROWS_LISTED)
        td_log_warn("bad row left out: %s%s", e->text,
                    n == BAD_ROWS_LISTED ? " (further ones are counted, few are listed)" : "");
    else if (n == power)
        td_log_warn("bad row left out, the %" PRId64 "th: %s", n, e->text);
}

static uint64_t position(const td_source *s) {
    return s->rows->ops->position(s->rows);
}

/* A text that begins with the BOS which the tokenizer adds again: the teacher was not trained on that. Said
 * once, with the row. */
static void note_doubled_bos(td_source *s) {
    const td_row_maker *m = &s->maker;
    if (s->told_bos || s->silent || m->bos_id < 0 || m->ids.n < 2 || m->ids.ids[0] != m->bos_id ||
        m->ids.ids[1] != m->bos_id)
        return;
    s->told_bos = true;
    td_log_warn(
        "%s: the text begins with the BOS token (id %d) that the tokenizer adds by itself, so "
        "that the row has it twice; take it out of the data, or set "
        "data.add_special_tokens = false",
        s->where, (int)m->bos_id);
}

static td_status read_shard(td_source *s, bool tokenise, int64_t row_stop, td_shard_builder *b,
                            td_error *err) {
    td_rows *rows = s->rows;
    XXH3_64bits_reset(s->hash);
    while (s->next_row < row_stop) {
        td_status rc = rows->ops->next(rows, &s->at_end, err);
        if (rc != TD_OK)
            return rc;
        if (s->at_end)
            break;
        rows->ops->hash(rows, s->hash);
        if (tokenise) {
            td_error e;
            rows->ops->where(rows, s->where, s->where_cap);
            rc = rows->ops->make(rows, &s->maker, s->where, &e);
            if (rc == TD_OK) {
                note_doubled_bos(s);
                rc = td_shard_builder_add(b, &s->maker, s->next_row, &e);
            } else if (rc == TD_E_DATA && s->cfg->run.on_bad_sample == TD_BAD_SKIP) {
                count_bad_row(s, b->shard, &e);
                rc = TD_OK;
            }
            if (rc != TD_OK) {
                if (err)
                    *err = e;
                return rc;
            }
        }
        s->next_row++;
        atomic_store_explicit(&s->bytes_read, position(s), memory_order_relaxed);
    }
    b->shard->row_end = s->next_row;
    b->shard->source_hash = XXH3_64bits_digest(s->hash);
    return TD_OK;
}

td_status td_source_next(td_source *s, bool tokenise, td_shard **out, td_error *err) {
    if (s->failed)
        return td_error_set(err, TD_E_INTERNAL, "%s: read on after an error", s->cfg->data.path);
    int64_t row_stop;
    if (__builtin_add_overflow(s->next_row, s->cfg->output.shard_samples, &row_stop) ||
        row_stop > s->row_limit)
        row_stop = s->row_limit;
    if (s->at_end || s->next_row >= row_stop)
        goto end_of_data;

    s->mark.set = true;
    s->mark.place = s->rows->ops->tell(s->rows);
    s->mark.row = s->next_row;
    td_shard_builder b;
    td_shard *shard = NULL;
    td_status rc =
        td_shard_builder_init(&b, s->next_number, s->next_row, s->cfg->data.id_field != NULL, err);
    if (rc != TD_OK)
        goto fail;
    rc = read_shard(s, tokenise, row_stop, &b, err);
    if (rc != TD_OK)
        goto fail_builder;
    if (b.shard->row_end == b.shard->row_begin) {
        td_shard_builder_free(&b);
        goto end_of_data;
    }
    if (tokenise) {
        rc = td_shard_builder_finish(&b, s->batch_tokens, &shard, err);
        if (rc != TD_OK)
            goto fail_builder;
    } else {
        shard = b.shard;
    }
    s->next_number++;
    *out = shard;
    return TD_OK;

end_of_data:
    s->at_end = true;
    atomic_store_explicit(&s->bytes_read, position(s), memory_order_relaxed);
    atomic_store_explicit(&s->bytes_total, position(s), memory_order_relaxed);
    *out = NULL;
    return TD_OK;

fail_builder:
    td_shard_builder_free(&b);
fail:
    s->failed = true;
    return rc;
}

td_status td_source_step_back(td_source *s, td_error *err) {
    if (!s->mark.set)
        return td_error_set(err, TD_E_INTERNAL, "%s: no shard to go back to", s->cfg->data.path);
    td_status rc = s->rows->ops->seek(s->rows, &s->mark.place, err);
    if (rc != TD_OK)
        return rc;
    s->next_row = s->mark.row;
    s->next_number--;
    s->at_end = false;
    s->mark.set = false;
    return TD_OK;
}

int64_t td_source_next_number(const td_source *s) {
    return s->next_number;
}

td_rows *td_source_rows(const td_source *s) {
    return s->rows;
}

void td_source_set_batch_tokens(td_source *s, int32_t n) {
    s->batch_tokens = n;
}

int32_t td_source_batch_tokens(const td_source *s) {
    return s->batch_tokens;
}

td_data_format td_source_format(const td_source *s) {
    return s->format;
}

void td_source_progress(const td_source *s, uint64_t *bytes_read, uint64_t *bytes_total) {
    *bytes_read = atomic_load_explicit(&s->bytes_read, memory_order_relaxed);
    *bytes_total = atomic_load_explicit(&s->bytes_total, memory_order_relaxed);
}

const td_dataset_file *td_source_files(const td_source *s, size_t *n) {
    *n = s->files.n;
    return s->files.file;
}

const td_dataset_files *td_source_dataset(const td_source *s) {
    return &s->files;
}

/* xxh3 over the first and last `part` bytes of a file, which have room in `buf`. */
static td_status hash_ends(int fd, const td_dataset_file *f, size_t part, char *buf, uint64_t *hash,
                           td_error *err) {
    size_t head = (size_t)TD_MIN(f->size_bytes, (uint64_t)part);
    size_t tail = (size_t)TD_MIN(f->size_bytes - head, (uint64_t)part);
    td_status rc = td_dataset_pread(fd, buf, head, 0, f->path, err);
    if (rc == TD_OK)
        rc = td_dataset_pread(fd, buf + head, tail, f->size_bytes - tail, f->path, err);
    if (rc == TD_OK)
        *hash = td_hash64(buf, head + tail);
    return rc;
}

/* Of each file size and hash; of these, in order, the dataset's. */
static td_status fingerprint_many(td_dataset_files *files, char *buf, uint64_t *hash,
                                  td_error *err) {
    XXH3_state_t *all = XXH3_createState();
    if (!all)
        return td_error_nomem(err, "the dataset's fingerprint", 0);
    XXH3_64bits_reset(all);
    td_status rc = TD_OK;
    for (size_t i = 0; rc == TD_OK && i < files->n; i++) {
        td_dataset_file *f = &files->file[i];
        uint64_t size;
        int fd;
        rc = td_file_open(f->path, TD_E_DATA, &fd, &size, err);
        if (rc != TD_OK)
            break;
        rc = hash_ends(fd, f, FINGERPRINT_OF_MANY, buf, &f->hash, err);
        close(fd);
        XXH3_64bits_update(all, &f->size_bytes, sizeof f->size_bytes);
        XXH3_64bits_update(all, &f->hash, sizeof f->hash);
    }
    if (rc == TD_OK)
        *hash = XXH3_64bits_digest(all);
    XXH3_freeState(all);
    return rc;
}

const char *td_source_tokenizer_hash(const td_source *s) {
    return s->tokenizer_hash;
}

td_status td_source_fingerprint(td_source *s, uint64_t *size_bytes, uint64_t *hash, td_error *err) {
    td_dataset_files *files = &s->files;
    char *buf = malloc(2 * FINGERPRINT_BYTES);
    if (!buf)
        return td_error_nomem(err, "the dataset's fingerprint", 2 * FINGERPRINT_BYTES);
    uint64_t h = 0;
    td_status rc;
    if (files->n == 1) {
        /* What is open: its size then is what will be read. */
        td_dataset_file *f = &files->file[0];
        f->size_bytes = files->size_bytes = s->rows->size_bytes;
        rc = hash_ends(s->rows->fd, f, FINGERPRINT_BYTES, buf, &h, err);
        f->hash = h;
    } else {
        rc = fingerprint_many(files, buf, &h, err);
    }
    free(buf);
    if (rc != TD_OK)
        return rc;
    *size_bytes = files->size_bytes;
    *hash = h;
    return TD_OK;
}

static td_status check_limits(const td_config *cfg, const td_tokenizer *tok,
                              const td_source_limits *lim, td_data_format format, td_error *err) {
    if (!tok && td_format_needs_tokenizer(cfg, format))
        return td_error_set(err, TD_E_MODEL,
                            "the rows of %s are text: the model's tokenizer.json is needed",
                            cfg->data.path);
    if (cfg->data.append_eos && lim->eos_id < 0)
        return td_error_set(err, TD_E_CONFIG,
                            "data.append_eos = true, but the model names no end-of-sequence token "
                            "(eos_token in tokenizer_config.json); set data.append_eos = false");
    if (cfg->data.append_eos && lim->n_vocab > 0 && lim->eos_id >= lim->n_vocab)
        return td_error_set(
            err, TD_E_CONFIG,
            "data.append_eos = true, but the end-of-sequence id %d is not below the "
            "model's vocabulary of %d; set data.append_eos = false",
            (int)lim->eos_id, (int)lim->n_vocab);
    return TD_OK;
}

td_status td_source_open_for(const td_config *cfg, const td_tokenizer *tok,
                             const td_source_limits *lim, bool estimating, td_source **out,
                             td_error *err) {
    static const td_source_limits unknown = {.eos_id = -1};
    if (!lim)
        lim = &unknown;
    if (cfg->data.max_length < 1 || cfg->output.shard_samples < 1 || cfg->data.max_samples < 0)
        return td_error_set(err, TD_E_CONFIG,
                            "data.max_length and output.shard_samples must be at least 1, "
                            "data.max_samples at least 0");
    td_dataset_files files;
    td_status rc = td_dataset_files_find(cfg, &files, err);
    if (rc != TD_OK)
        return rc;
    const td_row_format *reader = files.format;
    td_data_format format = reader->format;
    /* A plan may be made without the tokenizer that knows these things. */
    if (!estimating || tok || !td_format_needs_tokenizer(cfg, format))
        rc = check_limits(cfg, tok, lim, format, err);
    if (rc != TD_OK) {
        td_dataset_files_free(&files);
        return rc;
    }
    if (!estimating && lim->max_positions > 0 && cfg->data.max_length > lim->max_positions)
        td_log_warn("data.max_length = %d is above the model's own limit of %d positions; tokens "
                    "beyond it get predictions of unknown quality",
                    (int)cfg->data.max_length, (int)lim->max_positions);

    td_source *s = td_calloc(1, sizeof *s);
    if (!s) {
        td_dataset_files_free(&files);
        return td_error_nomem(err, "the dataset", sizeof *s);
    }
    s->cfg = cfg;
    s->files = files;
    s->one = td_dataset_one(cfg, files.file[0].path);
    s->format = format;
    s->silent = estimating;
    s->batch_tokens = lim->batch_tokens;
    s->row_limit = cfg->data.max_samples ? cfg->data.max_samples : INT64_MAX;
    for (size_t i = 0; i < files.n; i++)
        s->where_cap = TD_MAX(s->where_cap, strlen(files.file[i].path) + 64);
    s->where = td_calloc(s->where_cap, 1);
    s->hash = XXH3_createState();
    if (!s->where || !s->hash) {
        rc = td_error_nomem(err, "the dataset", s->where_cap);
        goto fail;
    }
    rc = td_row_maker_init(&s->maker, cfg, td_format_needs_tokenizer(cfg, format) ? tok : NULL, lim,
                           err);
    if (rc == TD_OK)
        rc = files.n == 1 ? reader->open(&s->one, lim->n_vocab, &s->rows, err)
                          : td_chain_open(cfg, &s->files, lim->n_vocab, &s->rows, err);
    td_rows_look look = {0};
    if (rc == TD_OK)
        rc = s->rows->ops->check(s->rows, &look, err);
    if (rc == TD_OK && look.none)
        rc = td_error_set(err, TD_E_DATA, "data.path: %s has no rows", files.file[0].path);
    if (rc != TD_OK)
        goto fail;
    snprintf(s->tokenizer_hash, sizeof s->tokenizer_hash, "%s", look.tokenizer_hash);
    s->bytes_total = s->rows->total_bytes;
    *out = s;
    return TD_OK;
fail:
    td_source_close(s);
    return rc;
}

td_status td_source_open(const td_config *cfg, const td_tokenizer *tok, const td_source_limits *lim,
                         td_source **out, td_error *err) {
    if (!lim || lim->batch_tokens < 1)
        return td_error_set(err, TD_E_INTERNAL, "%s: opened without the plan's batch_tokens",
                            cfg->data.path);
    return td_source_open_for(cfg, tok, lim, false, out, err);
}

void td_source_close(td_source *s) {
    if (!s)
        return;
    if (s->rows)
        s->rows->ops->close(s->rows);
    td_row_maker_free(&s->maker);
    XXH3_freeState(s->hash);
    free(s->where);
    td_dataset_files_free(&s->files);
    free(s);
}
