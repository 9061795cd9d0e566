/* stats.c - dataset statistics for the planner: exact for small inputs, sampled for large ones. */
#include <math.h>

#include "data/format.h"
#include "data/row.h"
#include "data/shard.h"
#include "data/source.h"
#include "base/memory.h"

enum {
    SMALL_FILE_BYTES = 16 << 20,
    SAMPLED_ROWS = 2000,
    SAMPLED_BYTES = 16 << 20, /* enough rows or enough bytes, whatever comes first */
    FRONT_ROWS = 64,
    FRONT_BYTES = 4 << 20,
    SMALL_PACKED_BYTES = 1 << 20
};

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
        plain = td_source_rows(s)->ops->plain_bytes(td_source_rows(s));
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

/* Rows at places spread over the file, scaled to all of it. */
static td_status sample_rows(const td_config *cfg, td_rows *r, const td_source_limits *lim,
                             td_row_maker *m, td_shard_builder *b, td_dataset_stats *st,
                             td_error *err) {
    double bytes = 0, n_rows;
    int64_t seen = 0;
    for (int i = 0; i < SAMPLED_ROWS && bytes < SAMPLED_BYTES; i++) {
        bool none;
        td_status rc = r->ops->pick(r, td_rows_spread(i), &none, err);
        if (rc != TD_OK)
            return rc;
        if (none)
            continue; /* behind the start of the last row */
        seen++;
        td_error e;
        rc = take(b, m, r->ops->make(r, m, cfg->data.path, &e), &e);
        if (rc != TD_OK) {
            if (err)
                *err = e;
            return rc;
        }
        double n_bytes;
        rc = r->ops->extent(r, &n_bytes, err);
        if (rc != TD_OK)
            return rc;
        bytes += n_bytes;
    }
    if (seen) {
        n_rows = r->n_rows >= 0
                     ? (double)r->n_rows
                     : (double)(r->total_bytes - r->begin_bytes) / (bytes / (double)seen);
        scale(st, lim, b->shard, seen, cut_rows(cfg, n_rows));
        return TD_OK;
    }
    /* No row's start was met but the first: a few giant rows. */
    double n_tokens = (double)r->total_bytes / 4;
    *st = (td_dataset_stats){.n_dataset_rows = 1,
                             .n_samples = 1,
                             .n_tokens = llround(fmin(n_tokens, cfg->data.max_length)),
                             .max_tokens = cfg->data.max_length,
                             .tokens_from_bytes = true,
                             .estimated = true};
    st->n_record_rows = TD_MAX(st->n_tokens - 1, 0);
    add_pairs(st, (int32_t)st->n_tokens, 1, lim);
    return TD_OK;
}

/* A large file that is one row: an estimate of its tokens, then what overflow makes of them. */
static td_status sample_one_row(const td_config *cfg, td_rows *r, const td_source_limits *lim,
                                td_row_maker *m, td_dataset_stats *st, td_error *err) {
    double all = 0, max = cfg->data.max_length, n_samples = 1;
    td_status rc = r->ops->count_tokens(r, m, &all, err);
    if (rc != TD_OK)
        return rc;
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
    return TD_OK;
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
    td_rows *rows = td_source_rows(s);
    bool needs_tok = td_format_needs_tokenizer(cfg, td_source_format(s));
    if (rows->sequential && !rows->one_row) {
        rc = sample_front(cfg, tok, lim, &st, err);
        goto done;
    }
    if (rows->total_bytes <= (rows->sequential ? SMALL_PACKED_BYTES : SMALL_FILE_BYTES) ||
        (!rows->one_row && cfg->data.max_samples > 0 && cfg->data.max_samples <= SAMPLED_ROWS)) {
        rc = count_all(s, lim, &st, err);
        goto done;
    }
    rc = td_row_maker_init(&m, cfg, needs_tok ? tok : NULL, lim ? lim : &unknown, err);
    if (rc == TD_OK)
        rc = td_shard_builder_init(&b, 0, 0, false, err);
    if (rc != TD_OK)
        goto done;
    rc = rows->one_row ? sample_one_row(cfg, rows, lim, &m, &st, err)
                       : sample_rows(cfg, rows, lim, &m, &b, &st, err);
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
