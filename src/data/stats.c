/* stats.c - dataset statistics for the planner: exact for small inputs, sampled for large ones. */
#include <math.h>
#include <stdlib.h>

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
    SMALL_PACKED_BYTES = 1 << 20,
    ONE_ROW_BYTES = 2 << 20, /* what count_tokens looks at, about */
    SAMPLED_FILES = 64       /* of those of which only the beginnings can be looked at */
};

/* How much of a file's beginning is read: until there are so many plain bytes, or so many rows in at
 * least so many bytes. */
typedef struct front {
    uint64_t most_bytes, rows_bytes;
    int64_t rows;
} front;

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
    st->n_overflow_rows += shard->n_overflow_rows;
    st->n_overflow_tokens += shard->n_overflow_tokens;
    st->n_bad_rows += shard->n_bad_rows;
    for (int32_t i = 0; i < shard->n_samples; i++) {
        st->max_tokens = TD_MAX(st->max_tokens, shard->samples[i].n_tokens);
        add_pairs(st, shard->samples[i].n_tokens, 1, lim);
    }
}

static td_status count_all(td_source *s, const td_source_limits *lim, td_dataset_stats *st,
                           td_error *err) {
    uint64_t at, total;
    for (;;) {
        td_shard *shard;
        td_status rc = td_source_next(s, true, &shard, err);
        if (rc == TD_OK && !shard) {
            td_source_progress(s, &at, &total);
            st->n_rows_read = st->n_dataset_rows;
            st->n_files_read = st->n_files;
            st->bytes_read = at;
        }
        if (rc != TD_OK || !shard)
            return rc;
        count(shard, lim, st);
        td_shard_free(shard);
    }
}

static void multiply(td_dataset_stats *st, double f) {
    int64_t *const counts[] = {&st->n_dataset_rows, &st->n_samples,       &st->n_tokens,
                               &st->n_record_rows,  &st->n_overflow_rows, &st->n_overflow_tokens,
                               &st->n_bad_rows};
    for (size_t i = 0; i < TD_ARRAY_LEN(counts); i++)
        *counts[i] = llround(f * (double)*counts[i]);
    st->n_pairs *= f;
    st->n_pairs_window *= f;
}

/* The beginning of a file in which no place can be found without all before it, scaled by how far
 * it is into the file; all of it where it is short. Bad rows are left out. */
static td_status sample_front(const td_config *cfg, const td_tokenizer *tok,
                              const td_source_limits *lim, const front *much, td_dataset_stats *st,
                              td_error *err) {
    td_config few = *cfg; /* shares its strings, which nobody changes here */
    td_source *s = NULL;
    uint64_t at = 0, total = 1, plain = 0;
    few.output.shard_samples = TD_MIN(cfg->output.shard_samples, FRONT_ROWS);
    few.run.on_bad_sample = TD_BAD_SKIP;
    td_status rc = td_source_open_for(&few, tok, lim, true, &s, err);
    if (rc != TD_OK)
        return rc;
    while (plain < much->most_bytes &&
           (st->n_dataset_rows < much->rows || plain < much->rows_bytes)) {
        td_shard *shard;
        rc = td_source_next(s, true, &shard, err);
        if (rc != TD_OK)
            goto done;
        if (!shard)
            break; /* at the end: these are the numbers */
        count(shard, lim, st);
        td_shard_free(shard);
        plain = td_source_rows(s)->ops->plain_bytes(td_source_rows(s));
    }
    td_source_progress(s, &at, &total);
    double f = at ? (double)total / (double)at : 1;
    if (cfg->data.max_samples && st->n_dataset_rows)
        f = fmin(f, (double)cfg->data.max_samples / (double)st->n_dataset_rows);
    st->n_rows_read = st->n_dataset_rows;
    st->bytes_read = at;
    st->n_files_read = 1;
    st->estimated = f > 1;
    st->basis = f > 1 ? TD_STATS_FRONT : TD_STATS_ALL_ROWS;
    multiply(st, f);
    if (f > 1)
        st->n_bad_rows = 0;
done:
    td_source_close(s);
    return rc;
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

/* Sums over rows, each as often as it stands for others. */
typedef struct weighed {
    double rows, samples, tokens, record_rows, overflow_rows, overflow_tokens, pairs, pairs_window;
} weighed;

/* What the shard's samples from `from` on and the counts since `before` are, `times` times. */
static void weigh(weighed *w, const td_shard *now, const td_shard *before, double times,
                  const td_source_limits *lim, td_dataset_stats *st) {
    w->rows += times;
    w->samples += times * (now->n_samples - before->n_samples);
    w->tokens += times * (double)(now->n_tokens - before->n_tokens);
    w->record_rows += times * (double)(now->n_rows - before->n_rows);
    w->overflow_rows += times * (now->n_overflow_rows - before->n_overflow_rows);
    w->overflow_tokens += times * (double)(now->n_overflow_tokens - before->n_overflow_tokens);
    for (int32_t i = before->n_samples; i < now->n_samples; i++) {
        td_work_size size = {0};
        td_work_size_add(&size, now->samples[i].n_tokens, 0, lim ? lim->window : 0);
        w->pairs += times * size.n_pairs;
        w->pairs_window += times * size.n_pairs_window;
        st->max_tokens = TD_MAX(st->max_tokens, now->samples[i].n_tokens);
    }
}

static void set_weighed(td_dataset_stats *st, const weighed *w, double f, double n_rows) {
    st->n_dataset_rows = TD_MAX(llround(n_rows), 1);
    st->n_samples = llround(f * w->samples);
    st->n_tokens = llround(f * w->tokens);
    st->n_record_rows = llround(f * w->record_rows);
    st->n_overflow_rows = llround(f * w->overflow_rows);
    st->n_overflow_tokens = llround(f * w->overflow_tokens);
    st->n_pairs = f * w->pairs;
    st->n_pairs_window = f * w->pairs_window;
}

/* Rows at places spread over the dataset, scaled to all of it. Where rows are picked by the bytes that
 * they lie in, a row of e bytes stands for 1/e as many rows as one of 1 byte: so the sums are right
 * however the lengths of neighbours go together. */
static td_status sample_rows(const td_config *cfg, td_rows *r, const td_source_limits *lim,
                             td_row_maker *m, td_shard_builder *b, td_dataset_stats *st,
                             td_error *err) {
    bool by_bytes = r->n_rows < 0;
    double bytes = 0;
    int64_t n_picks = 0;
    weighed w = {0};
    for (; n_picks < SAMPLED_ROWS && bytes < SAMPLED_BYTES; n_picks++) {
        bool none;
        td_status rc = r->ops->pick(r, td_rows_spread((int)n_picks), &none, err);
        if (rc != TD_OK)
            return rc;
        if (none)
            continue; /* bytes of no row */
        td_error e;
        td_shard before = *b->shard;
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
        st->n_rows_read++;
        weigh(&w, b->shard, &before, by_bytes ? 1 / n_bytes : 1, lim, st);
    }
    double all = by_bytes ? (double)(r->total_bytes - r->begin_bytes) : (double)r->n_rows;
    double f = all / (double)n_picks, n_rows = by_bytes ? f * w.rows : all;
    if (n_rows > 0)
        f *= cut_rows(cfg, n_rows) / n_rows;
    st->estimated = true;
    st->basis = TD_STATS_SPREAD;
    st->bytes_read = (uint64_t)bytes;
    st->n_files_read = st->n_files;
    set_weighed(st, &w, f, cut_rows(cfg, n_rows));
    return TD_OK;
}

/* A large file that is one row: an estimate of its tokens, then what overflow makes of them. */
static td_status sample_one_row(const td_config *cfg, td_rows *r, const td_source_limits *lim,
                                td_row_maker *m, td_dataset_stats *st, td_error *err) {
    double all = 0, max = cfg->data.max_length, n_samples = 1;
    td_status rc = r->ops->count_tokens(r, m, &all, err);
    if (rc != TD_OK)
        return rc;
    double met = all;
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
                             .n_overflow_rows = met > max,
                             .n_overflow_tokens = llround(met - all),
                             .max_tokens = (int32_t)fmin(all, max),
                             .basis = TD_STATS_PIECES,
                             .n_rows_read = 1,
                             .bytes_read = ONE_ROW_BYTES,
                             .n_files_read = 1,
                             .estimated = true};
    double whole = floor(all / max);
    add_pairs(st, (int32_t)max, whole, lim);
    add_pairs(st, (int32_t)(all - whole * max), 1, lim);
    return TD_OK;
}

static td_status stats_of(const td_config *cfg, const td_tokenizer *tok,
                          const td_source_limits *lim, const front *much, td_dataset_stats *out,
                          td_error *err);

static void add_weighed(td_dataset_stats *to, const td_dataset_stats *s, double times, weighed *w) {
    w->rows += times * (double)s->n_dataset_rows;
    w->samples += times * (double)s->n_samples;
    w->tokens += times * (double)s->n_tokens;
    w->record_rows += times * (double)s->n_record_rows;
    w->overflow_rows += times * (double)s->n_overflow_rows;
    w->overflow_tokens += times * (double)s->n_overflow_tokens;
    w->pairs += times * s->n_pairs;
    w->pairs_window += times * s->n_pairs_window;
    to->max_tokens = TD_MAX(to->max_tokens, s->max_tokens);
    to->tokens_from_bytes |= s->tokens_from_bytes;
}

/* A file that was picked, and what it gave. */
typedef struct picked_file {
    size_t file;
    td_dataset_stats stats;
} picked_file;

/* Files in which no place can be found without all before it, or which are a row each: all of them where
 * they are few and their beginnings do, else some picked by the bytes of the dataset, where a file of e
 * bytes stands for 1/e as many as one of 1 byte. Each is looked at as if it were alone. */
static td_status sample_files(const td_config *cfg, const td_tokenizer *tok,
                              const td_source_limits *lim, const td_dataset_files *files,
                              bool one_row, td_dataset_stats *st, td_error *err) {
    size_t want = TD_MIN(files->n, (size_t)SAMPLED_FILES), n_seen = 0, n_picks = 0;
    bool all = !one_row && want == files->n, exact = all;
    picked_file *seen = td_calloc(SAMPLED_FILES, sizeof *seen);
    if (!seen)
        return td_error_nomem(err, "the dataset", SAMPLED_FILES * sizeof *seen);
    const front much = {.most_bytes = SAMPLED_BYTES / want,
                        .rows_bytes = FRONT_BYTES / want,
                        .rows = SAMPLED_ROWS / (int64_t)want + 1};
    weighed w = {0};
    td_error e = {0};
    td_status rc = TD_OK;
    for (; rc == TD_OK && n_picks < (all ? want : SAMPLED_FILES) && st->bytes_read < SAMPLED_BYTES;
         n_picks++) {
        uint64_t x = (uint64_t)(td_rows_spread((int)n_picks) * (double)files->size_bytes);
        size_t k = all ? n_picks : 0, i = 0;
        while (!all && k + 1 < files->n && x >= files->file[k].size_bytes)
            x -= files->file[k++].size_bytes;
        while (i < n_seen && seen[i].file != k)
            i++;
        if (i == n_seen) {
            td_config one = td_dataset_one(cfg, files->file[k].path);
            one.data.max_samples = 0;
            seen[n_seen++].file = k;
            rc = stats_of(&one, tok, lim, &much, &seen[i].stats, &e);
            /* One without a good row: the dataset's opening saw that others have some. */
            if (rc == TD_E_DATA)
                rc = TD_OK;
            st->bytes_read += seen[i].stats.bytes_read;
            st->n_rows_read += seen[i].stats.n_rows_read;
            exact = exact && !seen[i].stats.estimated;
        }
        double times = all ? 1 : (double)files->size_bytes / (double)files->file[k].size_bytes;
        add_weighed(st, &seen[i].stats, times, &w);
    }
    free(seen);
    /* Where the bytes ran out before all files were met. */
    bool rest = all && n_picks < want;
    if (rc == TD_OK && w.rows <= 0)
        rc = e.code != TD_OK
                 ? e.code
                 : td_error_set(&e, TD_E_DATA, "data.path: no row was met in %zu of %zu files",
                                n_seen, files->n);
    if (rc != TD_OK) {
        if (err)
            *err = e;
        return rc;
    }
    double f = all ? (double)want / (double)n_picks : 1 / (double)n_picks;
    double n_rows = one_row ? (double)files->n : f * w.rows;
    st->n_files_read = (int64_t)n_seen;
    st->estimated = !exact || rest || cfg->data.max_samples;
    st->basis = !st->estimated ? TD_STATS_ALL_ROWS : one_row ? TD_STATS_PIECES : TD_STATS_FRONT;
    set_weighed(st, &w, f * cut_rows(cfg, n_rows) / n_rows, cut_rows(cfg, n_rows));
    return TD_OK;
}

static td_status stats_of(const td_config *cfg, const td_tokenizer *tok,
                          const td_source_limits *lim, const front *much, td_dataset_stats *out,
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
    const td_dataset_files *files = td_source_dataset(s);
    bool needs_tok = td_format_needs_tokenizer(cfg, td_source_format(s));
    st.n_files = (int64_t)files->n;
    if (rows->sequential && !rows->one_row && files->n == 1) {
        rc = sample_front(cfg, tok, lim, much, &st, err);
        goto done;
    }
    if (rows->total_bytes <= (rows->sequential ? SMALL_PACKED_BYTES : SMALL_FILE_BYTES) ||
        (!rows->one_row && cfg->data.max_samples > 0 && cfg->data.max_samples <= SAMPLED_ROWS)) {
        rc = count_all(s, lim, &st, err);
        goto done;
    }
    if (files->n > 1 && (rows->sequential || rows->one_row)) {
        rc = sample_files(cfg, tok, lim, files, rows->one_row, &st, err);
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
        st.n_files = (int64_t)files->n;
        st.bytes_total = files->size_bytes;
        st.bytes_read = TD_MIN(st.bytes_read, st.bytes_total);
        *out = st;
    }
    td_shard_builder_free(&b);
    td_row_maker_free(&m);
    td_source_close(s);
    return rc;
}

td_status td_dataset_stats_sample(const td_config *cfg, const td_tokenizer *tok,
                                  const td_source_limits *lim, td_dataset_stats *out,
                                  td_error *err) {
    static const front much = {
        .most_bytes = SAMPLED_BYTES, .rows_bytes = FRONT_BYTES, .rows = SAMPLED_ROWS};
    td_dataset_files files;
    td_status rc = td_dataset_files_find(cfg, &files, err);
    if (rc != TD_OK)
        return rc;
    td_dataset_files_tell(&files);
    td_dataset_files_free(&files);
    return stats_of(cfg, tok, lim, &much, out, err);
}
