/* tdgen inspect: what an output folder holds, and one sample as a table a person can read.
 *
 * Reads the manifest, the index, a few shards for the mean figures and one shard for the table;
 * never the whole folder. Values from a shard are bounds-checked where they index something;
 * whether they are right is the business of verify.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "report/inspect.h"
#include "report/report.h"
#include "record/reader.h"
#include "base/text.h"
#include "base/json.h"
#include "base/file.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

#define COLUMNS 100
/* The mean figures come from at most this many shards, spread over the folder. */
#define MAX_STAT_SHARDS 32

/* --- small pieces of text --------------------------------------------------------------------- */

/* "1,234,567" */
static const char *grouped(int64_t n, char *buf, size_t size) {
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)n);
    size_t at = 0;
    for (int i = 0; i < len && at + 2 < size; i++) {
        if (i && (len - i) % 3 == 0 && digits[i - 1] != '-')
            buf[at++] = ',';
        buf[at++] = digits[i];
    }
    buf[at] = '\0';
    return buf;
}

static void percent(double p, char *buf, size_t size) {
    p *= 100;
    if (p >= 99.95)
        snprintf(buf, size, "100%%");
    else
        snprintf(buf, size, p >= 9.95 ? "%.0f%%" : p >= 0.1 ? "%.1f%%" : "<.1%%", p);
}

/* One token as a table shows it: a leading space as ␣, escapes for what a line cannot hold. */
static void token_text(const td_inspector *in, int32_t id, td_strbuf *out) {
    td_strbuf raw = {0};
    td_strbuf_clear(out);
    if (in->tok && id >= 0)
        td_tokenizer_token_text(in->tok, id, &raw);
    if (raw.len == 0) {
        td_strbuf_printf(out, "#%d", id);
        td_strbuf_free(&raw);
        return;
    }
    size_t spaces = 0;
    for (; spaces < raw.len && raw.data[spaces] == ' '; spaces++)
        td_strbuf_puts(out, "␣");
    td_text_printable(raw.data + spaces, raw.len - spaces, out);
    td_strbuf_free(&raw);
}

static const char *cell_of(td_strbuf *b) {
    return b->oom || !b->data ? "" : b->data;
}

/* --- the folder ------------------------------------------------------------------------------- */

td_status td_inspect_shard(const td_inspector *in, const td_index_entry *e, td_shard_file **out,
                           td_error *err) {
    char *path = td_shard_path(in->dir, e->number);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = td_shard_file_open(path, &in->manifest.spec, TD_E_VERIFY, NULL, out, err);
    free(path);
    return rc;
}

typedef struct means {
    int64_t n, n_first; /* rows looked at; where the target is the most probable token */
    double tail, entropy, target;
    int64_t n_entries; /* of the ragged sets */
    double norm;       /* mode hidden */
} means;

static td_status add_means(const td_shard_file *f, means *m, td_error *err) {
    const float *tail = td_shard_file_data(f, TD_T_TAIL_MASS);
    const float *entropy = td_shard_file_data(f, TD_T_ENTROPY);
    const float *target = td_shard_file_data(f, TD_T_TARGET_LOGPROB);
    const int32_t *rank = td_shard_file_data(f, TD_T_TARGET_RANK);
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    m->n += f->layout.counts.n_rows;
    m->n_entries += f->layout.counts.n_entries;
    for (int64_t r = 0; tail && r < f->layout.counts.n_rows; r++) {
        m->tail += (double)tail[r];
        m->entropy += (double)entropy[r];
        m->target += (double)target[r];
        m->n_first += rank[r] == 0;
    }
    if (tail)
        return TD_OK;
    td_row_reader *rr = NULL;
    td_status rc = td_row_reader_create(f, &rr, err);
    for (int64_t i = 0; rc == TD_OK && i < f->layout.counts.n_samples; i++)
        for (int64_t r = rows[i]; td_row_sample_sound(f, i) && r < rows[i + 1]; r++) {
            td_row_view v;
            td_row_problem why;
            if (td_row_read(rr, i, r, &v, &why))
                m->norm += td_row_dense_norm(&v);
        }
    td_row_reader_destroy(rr);
    return rc;
}

/* Appends the kind to the list unless it is in it as a whole: "gpu A" is not in "gpu A2". */
static void list_device(const char *kind, td_strbuf *list) {
    td_strbuf name = {0};
    td_text_printable(kind, strlen(kind), &name);
    const char *p = name.len ? list->data : NULL;
    for (; p && (p = strstr(p, name.data)); p += name.len)
        if ((p == list->data || (p >= list->data + 2 && memcmp(p - 2, ", ", 2) == 0)) &&
            (p[name.len] == ',' || p[name.len] == '\0'))
            break;
    if (name.len && !p) {
        td_strbuf_puts(list, list->len ? ", " : "");
        td_strbuf_puts(list, name.data);
    }
    td_strbuf_free(&name);
}

static td_status collect_means(const td_inspector *in, means *m, td_strbuf *devices,
                               td_error *err) {
    size_t n = in->index.n, step = (n + MAX_STAT_SHARDS - 1) / MAX_STAT_SHARDS;
    for (size_t i = 0; i < n; i += step) {
        td_shard_file *f = NULL;
        td_status rc = td_inspect_shard(in, &in->index.entries[i], &f, err);
        if (rc == TD_OK)
            rc = add_means(f, m, err);
        if (rc != TD_OK) {
            td_shard_file_close(f);
            return rc;
        }
        for (int32_t k = 0; k < f->meta.n_kinds; k++)
            list_device(f->meta.device_kinds[k], devices);
        td_shard_file_close(f);
    }
    return TD_OK;
}

/* The value of an identity key as text: strings bare, null as "none". */
static void key_text(const td_inspector *in, const char *key, td_strbuf *out) {
    const json_t *v = json_object_get(in->manifest.identity, key);
    td_strbuf_clear(out);
    if (json_is_string(v)) {
        td_text_printable(json_string_value(v), json_string_length(v), out);
        return;
    }
    char *text = v && !json_is_null(v) && !(json_is_array(v) && json_array_size(v) == 0)
                     ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6))
                     : NULL;
    td_strbuf_puts(out, text ? text : "none");
    free(text);
}

static void print_field(const td_inspector *in, const char *label, const char *text) {
    fprintf(in->out, "  %-10s %s\n", label, text);
}

void td_inspect_capture_text(const td_capture_spec *s, td_strbuf *line) {
    switch (s->mode) {
    case TD_CAPTURE_TOPK:
    case TD_CAPTURE_TOPK_SAMPLE:
        td_strbuf_printf(line, "top %d of %d tokens", s->top_k, s->n_vocab);
        break;
    case TD_CAPTURE_TOPP:
        td_strbuf_printf(line, "tokens that cover %g (%d to %d) of %d tokens", s->top_p, s->min_k,
                         s->top_k, s->n_vocab);
        break;
    case TD_CAPTURE_SAMPLE:
        break;
    case TD_CAPTURE_FULL:
        td_strbuf_printf(line, "all %d logits as %s", s->n_vocab, td_dtype_name(s->dense_dtype));
        break;
    case TD_CAPTURE_HIDDEN:
        td_strbuf_printf(line, "final-norm states of %d numbers as %s", s->n_hidden,
                         td_dtype_name(s->dense_dtype));
        break;
    }
    if (td_capture_has_draws(s->mode)) {
        td_strbuf_printf(line, "%s%d draws a position", line->len ? " and " : "", s->n_draws);
        if (td_capture_has_proposal(s))
            td_strbuf_printf(line, " from p^%g", s->proposal_power);
    }
    if (s->mode != TD_CAPTURE_FULL && s->mode != TD_CAPTURE_HIDDEN)
        td_strbuf_printf(line, " as %s", td_spec_logprob_name(s));
    if (s->pack_ids)
        td_strbuf_printf(line, ", ids in %d bits", td_capture_id_bits(s));
}

/* What else is stored at every position; empty when nothing. */
static void extras_text(const td_capture_spec *s, td_strbuf *line) {
    td_strbuf_clear(line);
    if (s->n_temperatures)
        td_strbuf_puts(line, "log-sum-exp at temperatures ");
    for (int32_t i = 0; i < s->n_temperatures; i++)
        td_strbuf_printf(line, "%s%g", i ? "," : "", s->temperatures[i]);
    if (s->n_always)
        td_strbuf_printf(line, "%s%d ids at every position", line->len ? "; " : "", s->n_always);
}

static void print_settings(const td_inspector *in) {
    td_strbuf line = {0}, v = {0};
    const char *model = json_string_value(json_object_get(in->manifest.root, "model_path"));
    const char *data = json_string_value(json_object_get(in->manifest.root, "data_path"));
    td_text_printable(model ? model : "", model ? strlen(model) : 0, &line);
    print_field(in, "teacher", cell_of(&line));
    td_strbuf_clear(&line);
    key_text(in, "model.architecture", &v);
    td_strbuf_puts(&line, cell_of(&v));
    key_text(in, "model.n_vocab", &v);
    td_strbuf_printf(&line, ", vocabulary %s", cell_of(&v));
    key_text(in, "model.compute", &v);
    td_strbuf_printf(&line, ", computed in %s", cell_of(&v));
    print_field(in, "", cell_of(&line));
    td_strbuf_clear(&line);
    td_text_printable(data ? data : "", data ? strlen(data) : 0, &line);
    print_field(in, "data", cell_of(&line));
    td_strbuf_clear(&line);
    key_text(in, "data.format", &v);
    td_strbuf_puts(&line, cell_of(&v));
    static const char *const fields[] = {"data.text_field", "data.prompt_field",
                                         "data.completion_field", "data.ids_field"};
    for (size_t i = 0; i < TD_ARRAY_LEN(fields); i++) {
        if (!td_json_has(in->manifest.identity, fields[i]))
            continue;
        key_text(in, fields[i], &v);
        td_strbuf_printf(&line, ", %s \"%s\"", fields[i] + 5, cell_of(&v));
    }
    key_text(in, "data.max_length", &v);
    td_strbuf_printf(&line, ", max_length %s", cell_of(&v));
    key_text(in, "data.overflow", &v);
    td_strbuf_printf(&line, " (%s)", cell_of(&v));
    print_field(in, "", cell_of(&line));
    td_strbuf_clear(&line);
    td_inspect_capture_text(&in->manifest.spec, &line);
    print_field(in, "capture", cell_of(&line));
    extras_text(&in->manifest.spec, &line);
    if (line.len)
        print_field(in, "", cell_of(&line));
    td_strbuf_free(&line);
    td_strbuf_free(&v);
}

static void print_means(const td_inspector *in, const means *m, double n) {
    const td_capture_spec *s = &in->manifest.spec;
    if (s->mode == TD_CAPTURE_HIDDEN) {
        fprintf(in->out, "  %-10s a state has the norm %.2f\n", "means", m->norm / n);
        return;
    }
    fprintf(in->out,
            "  %-10s %.2f%% of the probability is covered, entropy %.2f nats; the data's next "
            "token:\n  %-10s perplexity %.2f, most probable one at %.1f%% of the positions\n",
            "means", 100 * (1 - m->tail / n), m->entropy / n, "", exp(-m->target / n),
            100 * (double)m->n_first / n);
    if (td_capture_is_ragged(s->mode))
        fprintf(in->out, "  %-10s %.1f %s a position\n", "", (double)m->n_entries / n,
                td_capture_has_topp(s->mode) ? "tokens" : "different tokens drawn");
}

static td_status print_counts(const td_inspector *in, td_error *err) {
    td_index_entry sum = {0};
    char a[32], b[32], c[32], d[32];
    for (size_t i = 0; i < in->index.n; i++) {
        const td_index_entry *e = &in->index.entries[i];
        sum.n_samples += e->n_samples;
        sum.n_tokens += e->n_tokens;
        sum.n_rows += e->n_rows;
        sum.n_skipped += e->n_skipped;
        sum.n_bad_rows += e->n_bad_rows;
        sum.n_overflow_rows += e->n_overflow_rows;
        sum.size_bytes += e->size_bytes;
    }
    fprintf(in->out, "  %-10s %s in %s", "shards", grouped((int64_t)in->index.n, a, sizeof a),
            td_human_bytes(sum.size_bytes, b, sizeof b));
    if (in->index.n)
        fprintf(in->out, ", numbers %lld to %lld", (long long)in->index.entries[0].number,
                (long long)in->index.entries[in->index.n - 1].number);
    if (sum.n_tokens)
        fprintf(in->out, ", %.1f bytes per token", (double)sum.size_bytes / (double)sum.n_tokens);
    fprintf(in->out, "\n  %-10s %s samples, %s tokens, %s recorded positions\n", "content",
            grouped(sum.n_samples, a, sizeof a), grouped(sum.n_tokens, b, sizeof b),
            grouped(sum.n_rows, c, sizeof c));
    if (sum.n_skipped || sum.n_bad_rows || sum.n_overflow_rows)
        fprintf(in->out,
                "  %-10s %s samples skipped, %s bad dataset rows, %s rows over max_length\n", "",
                grouped(sum.n_skipped, a, sizeof a), grouped(sum.n_bad_rows, b, sizeof b),
                grouped(sum.n_overflow_rows, d, sizeof d));
    if (sum.n_rows == 0)
        return TD_OK;
    means m = {0};
    td_strbuf devices = {0};
    td_status rc = collect_means(in, &m, &devices, err);
    if (rc == TD_OK && m.n) {
        double n = (double)m.n;
        print_field(in, "devices", cell_of(&devices));
        print_means(in, &m, n);
        if (in->index.n > MAX_STAT_SHARDS)
            fprintf(in->out, "  %-10s (of %s positions in shards spread over the folder)\n", "",
                    grouped(m.n, a, sizeof a));
    }
    td_strbuf_free(&devices);
    return rc;
}

/* --- the table -------------------------------------------------------------------------------- */

/* "text 12%" or, for draws, "text 12% x3". Returns its columns, 0 when there is no room. */
static int print_candidate(const td_inspector *in, int32_t id, float lp, int32_t count, bool first,
                           int room) {
    td_strbuf text = {0}, cell = {0};
    char p[16], times[16] = "";
    token_text(in, id, &text);
    int width = TD_MIN(td_text_width(cell_of(&text)), 14);
    td_text_cell(cell_of(&text), width, &cell);
    percent(exp((double)lp), p, sizeof p);
    if (count)
        snprintf(times, sizeof times, " x%d", count);
    int need = width + 1 + (int)(strlen(p) + strlen(times)) + (first ? 0 : 2);
    if (need <= room)
        fprintf(in->out, "%s%s %s%s", first ? "" : "  ", cell_of(&cell), p, times);
    td_strbuf_free(&cell);
    td_strbuf_free(&text);
    return need <= room ? need : 0;
}

static int32_t draws_of(const td_row_view *v, int32_t id) {
    for (int32_t j = 0; j < v->n_drawn; j++)
        if (v->draw_ids[j] == id)
            return v->draw_counts[j];
    return 0;
}

static void print_candidates(const td_inspector *in, const td_row_view *v, int32_t max, int room) {
    int32_t ids[TD_MAX_TOP_K];
    float lps[TD_MAX_TOP_K];
    int32_t n = td_row_top(v, TD_MIN(max, TD_MAX_TOP_K), ids, lps);
    for (int32_t j = 0, used; j < n; j++, room -= used) {
        used = print_candidate(in, ids[j], lps[j], draws_of(v, ids[j]), j == 0, room);
        if (used == 0)
            break;
    }
    fputc('\n', in->out);
}

static void print_always(const td_inspector *in, const td_row_view *v) {
    if (!v->always_logprobs)
        return;
    fprintf(in->out, "%8s%-12s  ", "", "always:");
    int room = COLUMNS - 22;
    for (int32_t i = 0, used; i < v->spec->n_always; i++, room -= used) {
        used = print_candidate(in, v->spec->always_ids[i], v->always_logprobs[i], 0, i == 0, room);
        if (used == 0)
            break;
    }
    fputc('\n', in->out);
}

static void print_row(const td_inspector *in, const td_shard_file *f, td_row_reader *rr,
                      int64_t sample, int64_t row, int32_t n_candidates) {
    const int64_t *tokens = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int32_t *ids = td_shard_file_data(f, TD_T_INPUT_IDS);
    td_row_view v;
    td_row_problem why;
    char p[16], covered[16];
    td_strbuf text = {0}, cells = {0};
    bool good = td_row_read(rr, sample, row, &v, &why);
    token_text(in, ids[tokens[sample] + v.position], &text);
    td_text_cell(cell_of(&text), 12, &cells);
    td_strbuf_puts(&cells, "  ");
    token_text(in, v.target, &text);
    td_text_cell(cell_of(&text), 12, &cells);
    int used = fprintf(in->out, "%6d  ", v.position) + 26;
    fputs(cell_of(&cells), in->out);
    if (!good) {
        fprintf(in->out, "  damaged: %s %s\n", why.tensor, why.what);
    } else if (v.spec->mode == TD_CAPTURE_HIDDEN) {
        fprintf(in->out, "%10.3f   ", td_row_dense_norm(&v));
        for (int32_t i = 0; i < TD_MIN(v.n_dense, n_candidates); i++)
            fprintf(in->out, "%s%.4g", i ? " " : "", (double)td_row_dense_at(&v, i));
        fputs(v.n_dense > n_candidates ? " ...\n" : "\n", in->out);
    } else {
        percent(exp((double)v.target_logprob), p, sizeof p);
        percent(1 - (double)v.tail_mass, covered, sizeof covered);
        used += fprintf(in->out, "%6s %5d %6s   ", p, v.target_rank, covered);
        print_candidates(in, &v, n_candidates, COLUMNS - used);
        print_always(in, &v);
    }
    td_strbuf_free(&cells);
    td_strbuf_free(&text);
}

static void print_quoted_text(const td_inspector *in, const int32_t *ids, int64_t n) {
    enum { LINES = 3 };
    td_strbuf raw = {0}, text = {0};
    td_error ignored;
    if (!in->tok || td_tokenizer_decode(in->tok, ids, (size_t)TD_MIN(n, INT64_C(400)), false, &raw,
                                        &ignored) != TD_OK)
        goto done;
    td_text_printable(cell_of(&raw), raw.len, &text);
    const char *s = cell_of(&text);
    for (int line = 0; line < LINES && *s; line++) {
        /* as many bytes as fit the columns; never within a character */
        size_t len = 0;
        while (s[len]) {
            size_t next = len + 1;
            while (((unsigned char)s[next] & 0xc0) == 0x80)
                next++;
            char *part = td_strndup(s, next);
            int width = part ? td_text_width(part) : COLUMNS;
            free(part);
            if (width > COLUMNS - 8)
                break;
            len = next;
        }
        bool more = line + 1 == LINES && s[len];
        fprintf(in->out, "  | %.*s%s\n", (int)len, s, more ? "…" : "");
        s += len;
    }
done:
    td_strbuf_free(&raw);
    td_strbuf_free(&text);
}

static td_status print_sample(const td_inspector *in, const td_shard_file *f, int64_t i,
                              int64_t number, const td_inspect_options *opt, td_error *err) {
    const int64_t *t = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *r = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    const int64_t *id_at = td_shard_file_data(f, TD_T_SAMPLE_ID_OFFSETS);
    const int64_t *start = td_shard_file_data(f, TD_T_SAMPLE_START);
    const int32_t *ids = (const int32_t *)td_shard_file_data(f, TD_T_INPUT_IDS) + t[i];
    int64_t n_rows = r[i + 1] - r[i];
    int64_t row = ((const int64_t *)td_shard_file_data(f, TD_T_SAMPLE_INDEX))[i];
    fprintf(in->out, "\nSample %lld (shard %lld, dataset row %lld", (long long)number,
            (long long)f->meta.number, (long long)row);
    if (start[i])
        fprintf(in->out, " from token %lld", (long long)start[i]);
    if (id_at && id_at[i] >= 0 && id_at[i + 1] >= id_at[i] &&
        id_at[i + 1] <= f->layout.counts.n_id_bytes) {
        td_strbuf id = {0};
        td_text_printable((const char *)td_shard_file_data(f, TD_T_SAMPLE_ID_BYTES) + id_at[i],
                          (size_t)TD_MIN(id_at[i + 1] - id_at[i], INT64_C(40)), &id);
        fprintf(in->out, ", id \"%s\"", cell_of(&id));
        td_strbuf_free(&id);
    }
    fprintf(in->out, "): %lld tokens, %lld recorded positions\n", (long long)(t[i + 1] - t[i]),
            (long long)n_rows);
    print_quoted_text(in, ids, t[i + 1] - t[i]);
    if (n_rows == 0) {
        bool skipped = ((const uint8_t *)td_shard_file_data(f, TD_T_SAMPLE_STATUS))[i];
        fprintf(in->out, "  no positions: %s\n",
                skipped ? "the sample could not be computed and was skipped"
                        : "none of its tokens is a training target");
        return TD_OK;
    }
    const td_capture_spec *s = &in->manifest.spec;
    bool hidden = s->mode == TD_CAPTURE_HIDDEN;
    if (hidden)
        fprintf(in->out, "\n%6s  %-12s  %-12s%10s   %s\n", "pos", "token", "next in data", "norm",
                "the first numbers of the state");
    else
        fprintf(in->out, "\n%6s  %-12s  %-12s%6s %5s %6s   %s\n", "pos", "token", "next in data",
                "prob", "rank", "cover",
                s->mode == TD_CAPTURE_SAMPLE ? "the most probable of the tokens drawn"
                                             : "the teacher's most probable next tokens");
    td_row_reader *rr = NULL;
    td_status rc = td_row_reader_create(f, &rr, err);
    if (rc != TD_OK)
        return rc;
    int64_t shown = TD_MIN(n_rows, (int64_t)opt->n_positions);
    for (int64_t k = 0; k < shown; k++)
        print_row(in, f, rr, i, r[i] + k, opt->n_candidates);
    td_row_reader_destroy(rr);
    if (shown < n_rows)
        fprintf(in->out, "        ... %lld more positions (--positions N shows more)\n",
                (long long)(n_rows - shown));
    if (!hidden)
        fprintf(in->out,
                "\n        prob: the teacher's probability of the token that follows in the data; "
                "rank: its place,\n        from 0; cover: probability of all %s",
                s->mode == TD_CAPTURE_FULL     ? "tokens\n"
                : td_capture_has_topp(s->mode) ? "tokens recorded for the position\n"
                : s->mode == TD_CAPTURE_SAMPLE ? "tokens drawn\n"
                                               : "");
    if (td_capture_has_topk_rows(s->mode))
        fprintf(in->out, "%d recorded candidates\n", s->top_k);
    if (td_capture_has_draws(s->mode))
        fprintf(in->out, "        xN: how often the token was drawn, of %d draws\n", s->n_draws);
    if (in->tok_note)
        fprintf(in->out, "        #N are token ids: %s\n", in->tok_note);
    return TD_OK;
}

/* The sample asked for: its shard, opened, and its place in it. */
td_status td_inspect_find(const td_inspector *in, int64_t sample, td_shard_file **out,
                          int64_t *place, int64_t *number, td_error *err) {
    int64_t first = 0;
    for (size_t e = 0; e < in->index.n; e++) {
        const td_index_entry *entry = &in->index.entries[e];
        td_shard_file *f = NULL;
        bool here = sample >= 0 ? sample < first + entry->n_samples : entry->n_rows > 0;
        if (!here) {
            first += entry->n_samples;
            continue;
        }
        td_status rc = td_inspect_shard(in, entry, &f, err);
        if (rc != TD_OK)
            return rc;
        int64_t n = f->layout.counts.n_samples, i = sample >= 0 ? sample - first : 0;
        const int64_t *r = td_shard_file_data(f, TD_T_ROW_OFFSETS);
        while (sample < 0 && i < n && r[i + 1] == r[i])
            i++;
        if (i < 0 || i >= n || !td_row_sample_sound(f, i)) {
            rc = td_error_set(err, TD_E_VERIFY, "%s is damaged; run tdgen verify %s", f->path,
                              in->dir);
            td_shard_file_close(f);
            return rc;
        }
        *out = f;
        *place = i;
        *number = first + i;
        return TD_OK;
    }
    if (sample >= 0)
        return td_error_set(err, TD_E_CONFIG,
                            "there is no sample %lld: the folder has %lld, from 0",
                            (long long)sample, (long long)first);
    *out = NULL;
    return TD_OK;
}

/* --- token texts ------------------------------------------------------------------------------ */

static td_status load_tokenizer(td_inspector *in, const char *asked, td_error *err) {
    const char *dir =
        asked ? asked : json_string_value(json_object_get(in->manifest.root, "model_path"));
    const char *want = json_string_value(json_object_get(in->manifest.identity, "tokenizer.hash"));
    td_error why = {0};
    char have[17], of_bytes[17];
    if (!dir)
        return TD_OK;
    td_status rc = td_tokenizer_load(dir, &in->tok, &why);
    if (rc == TD_OK && want) {
        td_hash_hex(td_tokenizer_hash(in->tok), have);
        td_hash_hex(td_tokenizer_bytes_hash(in->tok), of_bytes); /* what older versions wrote */
        if (strcmp(have, want) != 0 && strcmp(of_bytes, want) != 0) {
            rc = td_error_set(&why, TD_E_MODEL,
                              "%s/tokenizer.json is not the tokenizer that this run used", dir);
            td_tokenizer_free(in->tok);
            in->tok = NULL;
        }
    }
    if (rc == TD_OK)
        return TD_OK;
    if (asked) {
        if (err)
            *err = why;
        return rc;
    }
    in->tok_note = td_asprintf("%s (--model DIR names another place)", why.text);
    return TD_OK;
}

void td_inspect_token(const td_inspector *in, int32_t id, td_strbuf *out) {
    td_strbuf_clear(out);
    if (in->tok && id >= 0)
        td_tokenizer_token_text(in->tok, id, out);
    if (out->len == 0)
        td_strbuf_printf(out, "#%d", id);
}

td_status td_inspector_open(td_inspector *in, const char *dir, const char *model_dir,
                            td_error *err) {
    *in = (td_inspector){.dir = dir};
    char *path = td_asprintf("%s/" TD_MANIFEST_NAME, dir);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = TD_OK;
    if (!td_path_exists(path))
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s is no output folder of tdgen: it has no " TD_MANIFEST_NAME, dir);
    free(path);
    if (rc == TD_OK)
        rc = td_manifest_load(dir, TD_E_VERIFY, &in->manifest, err);
    if (rc == TD_OK)
        rc = td_index_load(dir, &in->index, &in->faults, err);
    if (rc == TD_OK)
        rc = td_folder_state_read(dir, &in->manifest.extent, &in->index, TD_E_OUTPUT, &in->state,
                                  err);
    if (rc == TD_OK)
        rc = load_tokenizer(in, model_dir, err);
    if (rc != TD_OK)
        td_inspector_close(in);
    return rc;
}

void td_inspector_close(td_inspector *in) {
    td_tokenizer_free(in->tok);
    free(in->tok_note);
    td_index_free(&in->index);
    td_manifest_free(&in->manifest);
    *in = (td_inspector){0};
}

/* What is not complete must not look complete: it comes first. */
static void print_state(const td_inspector *in) {
    char text[TD_FOLDER_STATE_TEXT_SIZE];
    if (!in->state.known)
        print_field(in, "state", "not known: the folder is of a version that did not record it");
    else
        fprintf(in->out, "  %-10s %s%s\n", "state",
                in->state.complete ? "complete, " : "NOT FINISHED, ",
                td_folder_state_text(&in->state, text, sizeof text));
}

td_status td_inspect(const char *dir, const td_inspect_options *opt, FILE *out, td_error *err) {
    td_inspector in;
    td_shard_file *f = NULL;
    int64_t place = 0, number = 0;
    td_inspect_options o = *opt;
    if (o.n_positions <= 0)
        o.n_positions = 24;
    if (o.n_candidates <= 0)
        o.n_candidates = 5;
    td_status rc = td_inspector_open(&in, dir, o.model_dir, err);
    if (rc != TD_OK)
        return rc;
    in.out = out;
    rc = td_inspect_find(&in, o.sample, &f, &place, &number, err);
    if (rc != TD_OK)
        goto done;
    fprintf(out, "%s\n", dir);
    print_state(&in);
    print_settings(&in);
    rc = print_counts(&in, err);
    if (rc != TD_OK)
        goto done;
    if (in.faults.n_damaged || in.faults.n_doubled || in.faults.missing)
        fprintf(out, "  %-10s the index needs repair (the next run does it): counts may be low\n",
                "note");
    if (f)
        rc = print_sample(&in, f, place, number, &o, err);
    else
        fprintf(out, "\nNo recorded positions yet.\n");
done:
    td_shard_file_close(f);
    td_inspector_close(&in);
    return rc;
}
