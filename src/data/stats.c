/* Dataset statistics for the planner: exact for small inputs, sampled for large ones. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/format.h"
#include "data/lines.h"
#include "data/row.h"
#include "data/shard.h"
#include "data/source.h"
#include "base/memory.h"
#include "data/tokens.h"

enum {
    SMALL_FILE_BYTES = 16 << 20,
    SAMPLED_ROWS = 2000,
    SAMPLED_BYTES = 16 << 20, /* enough rows or enough bytes, whatever comes first */
    FRONT_ROWS = 64,
    FRONT_BYTES = 4 << 20,
    SMALL_PACKED_BYTES = 1 << 20,
    SEEK_READ_BYTES = 16 << 10,
    RATIO_BYTES = 16 << 20,
    PIECES = 32,
    PIECE_BYTES = 64 << 10
};

/* i-th of n places, in an order that is evenly spread wherever it is stopped. */
static double place(int i) {
    double x = 0.5 + 0.6180339887498949 * i;
    return x - floor(x);
}

/* Pairs of a sample; those of the whole whose parts are scaled up are scaled with them. */
static void add_pairs(td_dataset_stats *st, int32_t n_tokens, double times,
                      const td_source_limits *lim) {
    td_work_size w = {0};
    td_work_size_add(&w, n_tokens, 0, lim ? lim->window : 0);
    st->n_pairs += times * w.n_pairs;
    st->n_pairs_window += times * w.n_pairs_window;
}

static void count(const td_shard *shard, const td_source_limits *lim, td_dataset_stats *st) {
    st->n_dataset_rows = shard->row_end;
    st->n_samples += shard->n_samples;
    st->n_tokens += shard->n_tokens;
    st->n_record_rows += shard->n_rows;
    for (int32_t i = 0; i < shard->n_samples; i++) {
        st->max_tokens = TD_MAX(st->max_tokens, shard->samples[i].n_tokens);
        add_pairs(st, shard->samples[i].n_tokens, 1, lim);
    }
}

static td_status count_all(td_source *s, const td_source_limits *lim, td_dataset_stats *st,
                           td_error *err) {
    for (;;) {
        td_shard *shard;
        td_status rc = td_source_next(s, true, &shard, err);
        if (rc != TD_OK || !shard)
            return rc;
        count(shard, lim, st);
        td_shard_free(shard);
    }
}

/* The beginning of a file in which no place can be found without all before it, scaled by how far
 * it is into the file; all of it where it is short. Bad rows are left out. */
static td_status sample_front(const td_config *cfg, const td_tokenizer *tok,
                              const td_source_limits *lim, td_dataset_stats *st, td_error *err) {
    td_config few = *cfg; /* shares its strings, which nobody changes here */
    td_source *s = NULL;
    uint64_t at = 0, total = 1, plain = 0;
    few.output.shard_samples = TD_MIN(cfg->output.shard_samples, FRONT_ROWS);
    few.run.on_bad_sample = TD_BAD_SKIP;
    td_status rc = td_source_open_for(&few, tok, lim, true, &s, err);
    if (rc != TD_OK)
        return rc;
    while (plain < SAMPLED_BYTES && (st->n_dataset_rows < SAMPLED_ROWS || plain < FRONT_BYTES)) {
        td_shard *shard;
        rc = td_source_next(s, true, &shard, err);
        if (rc != TD_OK || !shard)
            goto done; /* at the end: these are the numbers */
        count(shard, lim, st);
        td_shard_free(shard);
        plain = td_source_plain_bytes(s);
    }
    td_source_progress(s, &at, &total);
    double f = at ? (double)total / (double)at : 1;
    if (cfg->data.max_samples)
        f = fmin(f, (double)cfg->data.max_samples / (double)st->n_dataset_rows);
    st->estimated = f > 1;
    st->n_dataset_rows = llround(f * (double)st->n_dataset_rows);
    st->n_samples = llround(f * (double)st->n_samples);
    st->n_tokens = llround(f * (double)st->n_tokens);
    st->n_record_rows = llround(f * (double)st->n_record_rows);
    st->n_pairs *= f;
    st->n_pairs_window *= f;
done:
    td_source_close(s);
    return rc;
}

/* What `seen` rows gave, scaled to n_rows. */
static void scale(td_dataset_stats *st, const td_source_limits *lim, const td_shard *sampled,
                  int64_t seen, double n_rows) {
    double f = seen ? n_rows / (double)seen : 0;
    st->estimated = true;
    st->n_dataset_rows = llround(n_rows);
    st->n_samples = llround(f * sampled->n_samples);
    st->n_tokens = llround(f * (double)sampled->n_tokens);
    st->n_record_rows = llround(f * (double)sampled->n_rows);
    for (int32_t i = 0; i < sampled->n_samples; i++) {
        st->max_tokens = TD_MAX(st->max_tokens, sampled->samples[i].n_tokens);
        add_pairs(st, sampled->samples[i].n_tokens, f, lim);
    }
}

static double cut_rows(const td_config *cfg, double n_rows) {
    return cfg->data.max_samples ? fmin(n_rows, (double)cfg->data.max_samples) : n_rows;
}

/* Adds the row that was just made, unless it is bad. */
static td_status take(td_shard_builder *b, td_row_maker *m, td_status made, td_error *e) {
    if (made == TD_OK)
        return td_shard_builder_add(b, m, 0, e);
    return made == TD_E_DATA ? TD_OK : made;
}

static td_status sample_lines(const td_config *cfg, td_data_format format,
                              const td_source_limits *lim, td_row_maker *m, td_shard_builder *b,
                              td_dataset_stats *st, td_error *err) {
    td_lines l;
    td_status rc = td_lines_open(&l, cfg->data.path, false, err);
    if (rc != TD_OK)
        return rc;
    l.read_bytes = SEEK_READ_BYTES;
    bool jsonl = format == TD_FORMAT_JSONL;
    double bytes = 0;
    int64_t seen = 0;
    for (int i = 0; i < SAMPLED_ROWS && bytes < SAMPLED_BYTES; i++) {
        const char *line;
        size_t n;
        uint64_t at = l.start + (uint64_t)(place(i) * (double)(l.size_bytes - l.start));
        rc = td_lines_seek(&l, at, err);
        if (rc != TD_OK)
            goto done;
        uint64_t begin;
        do {
            begin = td_lines_offset(&l);
            rc = td_lines_next(&l, &line, &n, err);
        } while (rc == TD_OK && line && jsonl && td_line_is_blank(line, n));
        if (rc != TD_OK)
            goto done;
        if (!line)
            continue; /* behind the start of the last row */
        uint64_t end = td_lines_offset(&l);
        seen++;
        td_error e;
        rc = take(b, m,
                  jsonl ? td_row_from_json(m, line, n, cfg->data.path, &e)
                        : td_row_from_text(m, line, td_line_content(line, n), cfg->data.path, &e),
                  &e);
        if (rc != TD_OK) {
            if (err)
                *err = e;
            goto done;
        }
        /* Blank lines count with the row before them: then the chance of a row to be met depends on
         * its predecessor's bytes alone, and the mean is unbiased. */
        while (jsonl) {
            rc = td_lines_next(&l, &line, &n, err);
            if (rc != TD_OK)
                goto done;
            if (!line || !td_line_is_blank(line, n))
                break;
            end = td_lines_offset(&l);
        }
        bytes += (double)(end - begin);
    }
    /* No line start was met but the first: a few giant rows. */
    double n_rows = seen ? (double)(l.size_bytes - l.start) / (bytes / (double)seen) : 1;
    if (!seen) {
        double n_tokens = (double)l.size_bytes / 4;
        *st = (td_dataset_stats){.n_dataset_rows = 1,
                                 .n_samples = 1,
                                 .n_tokens = llround(fmin(n_tokens, cfg->data.max_length)),
                                 .max_tokens = cfg->data.max_length,
                                 .tokens_from_bytes = true,
                                 .estimated = true};
        st->n_record_rows = TD_MAX(st->n_tokens - 1, 0);
        add_pairs(st, (int32_t)st->n_tokens, 1, lim);
    } else {
        scale(st, lim, b->shard, seen, cut_rows(cfg, n_rows));
    }
done:
    td_lines_close(&l);
    return rc;
}

static td_status sample_tokens(const td_config *cfg, const td_source_limits *lim, td_row_maker *m,
                               td_shard_builder *b, td_dataset_stats *st, td_error *err) {
    td_tokens *t = NULL;
    td_status rc = td_tokens_open(cfg, lim ? lim->n_vocab : 0, &t, err);
    if (rc != TD_OK)
        return rc;
    double n_rows = cut_rows(cfg, (double)td_tokens_n_rows(t)), bytes = 0;
    int64_t seen = 0;
    for (int i = 0; i < SAMPLED_ROWS && bytes < SAMPLED_BYTES; i++) {
        td_tokens_row r;
        bool end;
        rc = td_tokens_row_read(t, (int64_t)(place(i) * n_rows), &r, &end, err);
        if (rc != TD_OK)
            goto done;
        bytes += (double)(r.ids_bytes + 1);
        seen++;
        td_error e;
        rc = take(b, m, td_row_from_ids(m, r.ids, r.kind, r.mask, r.n, cfg->data.path, &e), &e);
        if (rc != TD_OK) {
            if (err)
                *err = e;
            goto done;
        }
    }
    scale(st, lim, b->shard, seen, n_rows);
done:
    td_tokens_close(t);
    return rc;
}

/* A large text that is one row: tokens per byte of pieces, then what overflow makes of the sum. */
static td_status sample_whole_file(const td_config *cfg, const td_source_limits *lim,
                                   td_row_maker *m, td_dataset_stats *st, td_error *err) {
    td_lines l;
    td_status rc = td_lines_open(&l, cfg->data.path, true, err);
    if (rc != TD_OK)
        return rc;
    char *buf = malloc(PIECE_BYTES);
    double n_tokens = 0;
    if (!buf)
        rc = td_error_nomem(err, "a piece of the dataset", PIECE_BYTES);
    if (rc == TD_OK && l.unpack)
        rc = td_unpack_seek(l.unpack, 0, err);
    double size = (double)l.size_bytes, n_bytes = 0;
    for (int i = 0; i < PIECES && rc == TD_OK; i++) {
        size_t n = PIECE_BYTES;
        if (l.unpack)
            rc = td_unpack_read(l.unpack, buf, PIECE_BYTES, &n, err);
        else
            rc = td_dataset_pread(l.fd, buf, PIECE_BYTES,
                                  (uint64_t)(place(i) * (size - PIECE_BYTES)), cfg->data.path, err);
        if (rc == TD_OK && n == 0)
            break;
        n_bytes += (double)n;
        if (rc == TD_OK)
            rc = td_row_from_text(m, buf, n, cfg->data.path, err);
        if (rc == TD_OK)
            n_tokens += (double)m->ids.n;
    }
    /* The plain size, if it is packed alike to the end. A decoder takes its input in blocks: their
     * border counts less in a longer piece. */
    for (size_t n = 1; rc == TD_OK && l.unpack && n && td_unpack_plain_pos(l.unpack) < RATIO_BYTES;)
        rc = td_unpack_read(l.unpack, buf, PIECE_BYTES, &n, err);
    if (rc == TD_OK && l.unpack)
        size *= (double)td_unpack_plain_pos(l.unpack) / (double)td_unpack_packed_pos(l.unpack);
    if (rc == TD_OK) {
        double all = n_bytes > 0 ? n_tokens * size / n_bytes : 0;
        double max = cfg->data.max_length, n_samples = 1;
        if (all > max && cfg->data.overflow == TD_OVERFLOW_SKIP)
            all = n_samples = 0;
        else if (all > max && cfg->data.overflow == TD_OVERFLOW_TRUNCATE)
            all = max;
        else
            n_samples = ceil(all / max);
        *st = (td_dataset_stats){.n_dataset_rows = 1,
                                 .n_samples = llround(n_samples),
                                 .n_tokens = llround(all),
                                 .n_record_rows = llround(fmax(all - n_samples, 0)),
                                 .max_tokens = (int32_t)fmin(all, max),
                                 .estimated = true};
        double whole = floor(all / max);
        add_pairs(st, (int32_t)max, whole, lim);
        add_pairs(st, (int32_t)(all - whole * max), 1, lim);
    }
    free(buf);
    td_lines_close(&l);
    return rc;
}

td_status td_dataset_stats_sample(const td_config *cfg, const td_tokenizer *tok,
                                  const td_source_limits *lim, td_dataset_stats *out,
                                  td_error *err) {
    static const td_source_limits unknown = {.eos_id = -1};
    td_source *s = NULL;
    td_row_maker m = {0};
    td_shard_builder b = {0};
    td_dataset_stats st = {0};
    /* Opening checks the file and its first rows. */
    td_status rc = td_source_open_for(cfg, tok, lim, true, &s, err);
    if (rc != TD_OK)
        return rc;
    td_data_format format = td_source_format(s);
    bool needs_tok = td_format_needs_tokenizer(cfg, format);
    bool whole = format == TD_FORMAT_TEXT && cfg->data.text_unit == TD_TEXT_FILE;
    uint64_t read, total;
    td_source_progress(s, &read, &total);
    if (td_source_is_sequential(s) && !whole) {
        rc = sample_front(cfg, tok, lim, &st, err);
        goto done;
    }
    if (total <= (td_source_is_sequential(s) ? SMALL_PACKED_BYTES : SMALL_FILE_BYTES) ||
        (!whole && cfg->data.max_samples > 0 && cfg->data.max_samples <= SAMPLED_ROWS)) {
        rc = count_all(s, lim, &st, err);
        goto done;
    }
    rc = td_row_maker_init(&m, cfg, needs_tok ? tok : NULL, lim ? lim : &unknown, err);
    if (rc == TD_OK)
        rc = td_shard_builder_init(&b, 0, 0, false, err);
    if (rc != TD_OK)
        goto done;
    if (format == TD_FORMAT_TOKENS)
        rc = sample_tokens(cfg, lim, &m, &b, &st, err);
    else if (whole)
        rc = sample_whole_file(cfg, lim, &m, &st, err);
    else
        rc = sample_lines(cfg, format, lim, &m, &b, &st, err);
done:
    if (rc == TD_OK) {
        st.tokens_from_bytes |= needs_tok && !tok;
        *out = st;
    }
    td_shard_builder_free(&b);
    td_row_maker_free(&m);
    td_source_close(s);
    return rc;
}
