/* tdgen inspect --html: one page that needs nothing but a browser.
 *
 * No script, no font, no image, nothing from the network: the page's own Content-Security-Policy
 * says so, and that is also what stands behind the escaping of token texts. Heat and charts are
 * colours on text and inline SVG; each has its numbers as a table, too, for those who do not see
 * colours, and a title with the numbers of the place.
 *
 * Token texts are hostile by assumption: control characters, line separators and direction marks
 * become visible escapes, the five characters of HTML entities, and each token is isolated, so that
 * right-to-left text does not reorder its neighbours.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "report/inspect_html.h"
#include "base/text.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* Figures of the whole folder come from at most this many shards, spread over it. */
enum { MAX_STAT_SHARDS = 32, DEFAULT_SAMPLES = 8, DEFAULT_POSITIONS = 512, TABLE_ROWS = 200 };
enum { HISTOGRAM_WIDTH = 580 }; /* narrow enough to be read on a phone */

static const char STYLE[] =
    ":root{color-scheme:light "
    "dark;--bg:#fdfdfb;--fg:#1c1c1a;--dim:#666;--line:#d5d5cf;--bar:#3b6ea5;"
    "--hot:210 60 10;--cool:30 95 200}"
    "@media(prefers-color-scheme:dark){:root{--bg:#161614;--fg:#e8e8e2;--dim:#a0a098;--line:#"
    "3c3c38;"
    "--bar:#7fb0e0;--hot:255 110 50;--cool:110 170 255}}"
    "body{margin:0 auto;padding:1.5rem;max-width:62rem;background:var(--bg);color:var(--fg);"
    "font:16px/1.5 system-ui,sans-serif}"
    "h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem}"
    "h3{font-size:1rem;margin-bottom:.3rem}.dim{color:var(--dim)}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}"
    "dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}"
    "table{border-collapse:collapse;font-size:.85rem;margin:.5rem 0;display:block;overflow-x:auto}"
    "th,td{border-bottom:1px solid var(--line);padding:.1rem "
    ".6rem;text-align:right;white-space:pre}"
    "td.x,th.x{text-align:left;font-family:ui-monospace,monospace}"
    ".text{font-family:ui-monospace,monospace;font-size:.9rem;line-height:1.75;border:1px solid "
    "var(--line);border-radius:.4rem;padding:.6rem "
    ".8rem;white-space:pre-wrap;overflow-wrap:anywhere;"
    "direction:ltr}"
    ".text span{unicode-bidi:isolate;border-radius:.15rem;padding:.1rem 0}"
    ".text span.n{color:var(--dim)}"
    "#view-p:checked~main .text span{background:rgb(var(--hot)/calc(var(--p,0)*.55))}"
    "#view-e:checked~main .text span{background:rgb(var(--cool)/calc(var(--e,0)*.55))}"
    ".views label{margin-right:1rem}#view-p:focus-visible~label[for=view-p],"
    "#view-e:focus-visible~label[for=view-e]{outline:2px solid currentColor}"
    ".alert{border-left:.3rem solid rgb(var(--hot));padding-left:.6rem;font-weight:600}"
    ".scale{display:inline-block;width:9rem;height:.8rem;border:1px solid var(--line);"
    "vertical-align:middle;margin:0 .5rem}"
    ".scale.p{background:linear-gradient(90deg,transparent,rgb(var(--hot)/.55))}"
    ".scale.e{background:linear-gradient(90deg,transparent,rgb(var(--cool)/.55))}"
    "svg{max-width:100%;height:auto}svg text{fill:currentColor;font:12px system-ui,sans-serif}"
    "pre{overflow-x:auto;font-size:.8rem;line-height:1.35}"
    "svg rect{fill:var(--bar)}svg line{stroke:var(--line)}summary{cursor:pointer}";

/* --- text ------------------------------------------------------------------------------------- */

static void put_escaped(const td_page *p, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        switch (s[i]) {
        case '&':
            fputs("&amp;", p->out);
            break;
        case '<':
            fputs("&lt;", p->out);
            break;
        case '>':
            fputs("&gt;", p->out);
            break;
        case '"':
            fputs("&quot;", p->out);
            break;
        case '\'':
            fputs("&#39;", p->out);
            break;
        default:
            fputc(s[i], p->out);
        }
}

/* Any bytes, as text between tags or in a quoted attribute. */
void td_page_text(const td_page *p, const char *s, size_t n) {
    td_strbuf b = {0};
    td_text_printable(s, n, &b);
    if (b.data && !b.oom)
        put_escaped(p, b.data, b.len);
    td_strbuf_free(&b);
}

void td_page_string(const td_page *p, const char *s) {
    td_page_text(p, s ? s : "", s ? strlen(s) : 0);
}

static void put_token(const td_page *p, int32_t id) {
    td_strbuf b = {0};
    td_inspect_token(&p->in, id, &b);
    if (b.data)
        td_page_text(p, b.data, b.len);
    td_strbuf_free(&b);
}

void td_page_json(const td_page *p, const json_t *v) {
    if (json_is_string(v)) {
        td_page_text(p, json_string_value(v), json_string_length(v));
        return;
    }
    char *s = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    td_page_string(p, s ? s : "none");
    free(s);
}

/* --- the whole folder ------------------------------------------------------------------------- */

static double clamp01(double x) {
    return x > 0 ? TD_MIN(x, 1.0) : 0; /* NaN: 0 */
}

static void count_row(td_page *p, double tail, double entropy, double target, int32_t rank) {
    const double covered = clamp01(1 - tail);
    p->bins[TD_MIN((int)(covered * TD_PAGE_BINS), TD_PAGE_BINS - 1)]++;
    p->n_rows++;
    p->sum_tail += tail;
    p->sum_entropy += entropy;
    p->sum_target += target;
    p->n_first += rank == 0;
}

static td_status collect(td_page *p, td_error *err) {
    const td_capture_spec *spec = &p->in.manifest.spec;
    td_coverage_init(&p->coverage, td_capture_has_topk(spec->mode) ? spec->top_k : 0);
    size_t n = p->in.index.n, step = (n + MAX_STAT_SHARDS - 1) / MAX_STAT_SHARDS;
    for (size_t i = 0; i < n; i += step) {
        td_shard_file *f = NULL;
        td_status rc = td_inspect_shard(&p->in, &p->in.index.entries[i], &f, err);
        if (rc != TD_OK)
            return rc;
        const float *tail = td_shard_file_data(f, TD_T_TAIL_MASS);
        const float *entropy = td_shard_file_data(f, TD_T_ENTROPY);
        const float *target = td_shard_file_data(f, TD_T_TARGET_LOGPROB);
        const int32_t *rank = td_shard_file_data(f, TD_T_TARGET_RANK);
        for (int64_t r = 0; tail && r < f->layout.counts.n_rows; r++)
            count_row(p, (double)tail[r], (double)entropy[r], (double)target[r], rank[r]);
        if (p->coverage.top_k)
            td_coverage_add_shard(&p->coverage, f);
        td_shard_file_close(f);
    }
    return TD_OK;
}

static void put_term(const td_page *p, const char *term, const char *key) {
    fprintf(p->out, "<dt>%s</dt><dd>", term);
    const json_t *v = json_object_get(p->in.manifest.root, key);
    td_page_json(p, v ? v : json_object_get(p->in.manifest.identity, key));
    fputs("</dd>", p->out);
}

static void put_head(const td_page *p) {
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
          "'unsafe-inline'\">\n<meta name=\"viewport\" content=\"width=device-width, "
          "initial-scale=1\">\n<title>tdgen: ",
          p->out);
    td_page_string(p, p->in.dir);
    fprintf(p->out, "</title><style>%s</style></head>\n<body>\n<h1>Teacher logits: ", STYLE);
    td_page_string(p, p->in.dir);
    fputs("</h1>\n", p->out);
    char state[TD_FOLDER_STATE_TEXT_SIZE];
    td_strbuf capture = {0};
    if (!p->in.state.known)
        fputs(
            "<p class=\"dim\">Whether it is complete is not known: the folder is of a version that "
            "did not record it.</p>\n",
            p->out);
    else
        fprintf(p->out, "<p class=\"%s\">%s: %s</p>\n", p->in.state.complete ? "dim" : "alert",
                p->in.state.complete ? "Complete" : "Not finished",
                td_folder_state_text(&p->in.state, state, sizeof state));
    int64_t n_samples = 0, n_tokens = 0, n_rows = 0, n_skipped = 0;
    uint64_t size = 0;
    char text[32];
    for (size_t i = 0; i < p->in.index.n; i++) {
        const td_index_entry *e = &p->in.index.entries[i];
        n_samples += e->n_samples;
        n_tokens += e->n_tokens;
        n_rows += e->n_rows;
        n_skipped += e->n_skipped + e->n_bad_rows;
        size += e->size_bytes;
    }
    fputs("<dl>", p->out);
    put_term(p, "teacher", "model_path");
    put_term(p, "architecture", "model.architecture");
    put_term(p, "computed in", "model.compute");
    put_term(p, "data", "data_path");
    td_inspect_capture_text(&p->in.manifest.spec, &capture);
    fputs("<dt>capture</dt><dd>", p->out);
    td_page_string(p, capture.data ? capture.data : "");
    fputs("</dd>", p->out);
    td_strbuf_free(&capture);
    put_term(p, "fingerprint", "fingerprint");
    fprintf(p->out,
            "<dt>content</dt><dd>%zu shards, %lld samples (%lld skipped), %lld tokens, %lld "
            "recorded positions, %s</dd>\n",
            p->in.index.n, (long long)n_samples, (long long)n_skipped, (long long)n_tokens,
            (long long)n_rows, td_human_bytes(size, text, sizeof text));
    td_page_put_rate(p);
    fputs("</dl>\n", p->out);
    if (p->n_rows)
        fprintf(
            p->out,
            "<p>At a position the record covers %.2f%% of the probability, the entropy is %.2f "
            "nats; of the data's next token the perplexity is %.2f, and it is the most probable "
            "one at %.1f%% of the positions.</p>\n",
            100 * (1 - p->sum_tail / (double)p->n_rows), p->sum_entropy / (double)p->n_rows,
            exp(-p->sum_target / (double)p->n_rows), 100 * (double)p->n_first / (double)p->n_rows);
}

static void bin_name(int b, char *buf, size_t size) {
    snprintf(buf, size, "%d to %d%%", 100 * b / TD_PAGE_BINS, 100 * (b + 1) / TD_PAGE_BINS);
}

/* What a student that is trained on the renormalised candidates cannot get back (coverage.h). */
static void put_loss(const td_page *p) {
    const td_coverage *c = &p->coverage;
    if (c->n_rows == 0)
        return;
    const double n = (double)c->n_rows;
    const struct {
        const char *name;
        double share;
    } marks[] = {{"median", 0.5}, {"95% below", 0.05}, {"99% below", 0.01}};
    fprintf(
        p->out,
        "<p>Renormalised targets differ from the teacher by KL = -log(mass covered): %.3g nats on "
        "average",
        c->sum_kl / n);
    for (size_t i = 0; i < TD_ARRAY_LEN(marks); i++)
        fprintf(p->out, ", %s %.3g", marks[i].name,
                -log1p(-td_coverage_tail_quantile(c, marks[i].share)));
    fputs(".</p>\n", p->out);
    if (!c->n_level_rows)
        return;
    fputs("<table><tr><th>top_k</th><th>mean mass</th><th>mean KL</th></tr>", p->out);
    fprintf(p->out, "<tr><td>%d</td><td>%.3f%%</td><td>%.3g</td></tr>", (int)c->top_k,
            100 * (1 - c->sum_tail / n), c->sum_kl / n);
    for (int32_t i = 0; i < c->n_levels; i++)
        fprintf(p->out, "<tr><td>%d</td><td>%.3f%%</td><td>%.3g</td></tr>", (int)c->level[i].k,
                100 * (1 - c->level[i].sum_tail / (double)c->n_level_rows),
                c->level[i].sum_kl / (double)c->n_level_rows);
    fputs("</table>\n", p->out);
}

static void put_histogram(const td_page *p) {
    char name[48];
    int64_t max = 1;
    for (int b = 0; b < TD_PAGE_BINS; b++)
        max = TD_MAX(max, p->bins[b]);
    fputs("<section id=\"coverage\"><h2>Probability covered</h2>\n", p->out);
    if (p->n_rows == 0) {
        fputs("<p class=\"dim\">This mode records no covered mass.</p></section>\n", p->out);
        return;
    }
    fprintf(
        p->out,
        "<p class=\"dim\">How much of the teacher's probability is recorded, at %lld positions "
        "of %zu shards.</p>\n<svg viewBox=\"0 0 %d %d\" width=\"%d\" role=\"img\" "
        "aria-label=\"Histogram of covered probability; the numbers are in the table below\">\n",
        (long long)p->n_rows, TD_MIN(p->in.index.n, (size_t)MAX_STAT_SHARDS), HISTOGRAM_WIDTH,
        TD_PAGE_BINS * 24 + 4, HISTOGRAM_WIDTH);
    for (int b = 0; b < TD_PAGE_BINS; b++) {
        double share = (double)p->bins[b] / (double)p->n_rows;
        bin_name(b, name, sizeof name);
        fprintf(p->out,
                "<g><title>%s: %lld positions</title><text x=\"120\" y=\"%d\" "
                "text-anchor=\"end\">%s</text><rect x=\"130\" y=\"%d\" width=\"%.1f\" "
                "height=\"16\"/><text x=\"%.1f\" y=\"%d\">%.1f%%</text></g>\n",
                name, (long long)p->bins[b], b * 24 + 16, name, b * 24 + 4,
                380.0 * (double)p->bins[b] / (double)max,
                136 + 380.0 * (double)p->bins[b] / (double)max, b * 24 + 16, 100 * share);
    }
    fputs("</svg><details><summary>As a table</summary><table><tr><th class=\"x\">covered</th>"
          "<th>positions</th></tr>",
          p->out);
    for (int b = 0; b < TD_PAGE_BINS; b++) {
        bin_name(b, name, sizeof name);
        fprintf(p->out, "<tr><td class=\"x\">%s</td><td>%lld</td></tr>", name,
                (long long)p->bins[b]);
    }
    fputs("</table></details>\n", p->out);
    put_loss(p);
    fputs("</section>\n", p->out);
}

/* --- samples ---------------------------------------------------------------------------------- */

/* What the record says of the token: it was predicted by the row of the position before it. */
static void put_heat_token(const td_page *p, int32_t id, const td_row_view *v) {
    if (!v) {
        fputs("<span class=\"n\">", p->out);
        put_token(p, id);
        fputs("</span>", p->out);
        return;
    }
    fprintf(p->out, "<span style=\"--p:%.3f;--e:%.3f\" title=\"",
            clamp01(-(double)v->target_logprob / 10), clamp01((double)v->entropy / p->max_entropy));
    put_token(p, id);
    fprintf(p->out, " · probability %.3g%%, rank %d, entropy %.2f nats, %.2f%% covered · ",
            100 * exp((double)v->target_logprob), v->target_rank, (double)v->entropy,
            100 * (1 - (double)v->tail_mass));
    int32_t ids[5];
    float lps[5];
    int32_t n = td_row_top(v, 5, ids, lps);
    for (int32_t i = 0; i < n; i++) {
        fputs(i ? ", " : "", p->out);
        put_token(p, ids[i]);
        fprintf(p->out, " %.3g%%", 100 * exp((double)lps[i]));
    }
    fputs("\">", p->out);
    put_token(p, id);
    fputs("</span>", p->out);
}

static void put_table_row(const td_page *p, const int32_t *ids, const td_row_view *v) {
    int32_t top[TD_MAX_TOP_K];
    float lps[TD_MAX_TOP_K];
    fprintf(p->out, "<tr><td>%d</td><td class=\"x\">", v->position);
    put_token(p, ids[v->position]);
    fputs("</td><td class=\"x\">", p->out);
    put_token(p, v->target);
    if (v->spec->mode == TD_CAPTURE_HIDDEN) {
        fprintf(p->out, "</td><td>norm %.4g</td></tr>\n", td_row_dense_norm(v));
        return;
    }
    fprintf(p->out, "</td><td>%.3g%%</td><td>%d</td><td>%.3f</td><td>%.2f%%</td><td class=\"x\">",
            100 * exp((double)v->target_logprob), v->target_rank, (double)v->entropy,
            100 * (1 - (double)v->tail_mass));
    int32_t n = td_row_top(v, TD_MIN(p->opt.n_candidates, TD_MAX_TOP_K), top, lps);
    for (int32_t i = 0; i < n; i++) {
        fputs(i ? "  " : "", p->out);
        put_token(p, top[i]);
        fprintf(p->out, " %.3g%%", 100 * exp((double)lps[i]));
    }
    fputs("</td></tr>\n", p->out);
}

static td_status put_sample(const td_page *p, const td_shard_file *f, int64_t place, int64_t number,
                            td_error *err) {
    const int64_t *t = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *r = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    const int32_t *ids = (const int32_t *)td_shard_file_data(f, TD_T_INPUT_IDS) + t[place];
    uint8_t device = ((const uint8_t *)td_shard_file_data(f, TD_T_SAMPLE_DEVICE))[place];
    int64_t n = t[place + 1] - t[place], n_rows = r[place + 1] - r[place], k = 0;
    int64_t shown = TD_MIN(n, (int64_t)p->opt.n_positions);
    bool hidden = p->in.manifest.spec.mode == TD_CAPTURE_HIDDEN;
    td_row_reader *rr = NULL;
    td_row_view v;
    td_row_problem why = {0};
    td_status rc = td_row_reader_create(f, &rr, err);
    if (rc != TD_OK)
        return rc;
    fprintf(p->out,
            "<article><h3>Sample %lld</h3><p class=\"dim\">shard %lld, dataset row %lld, %lld "
            "tokens, %lld recorded positions, computed on ",
            (long long)number, (long long)f->meta.number,
            (long long)((const int64_t *)td_shard_file_data(f, TD_T_SAMPLE_INDEX))[place],
            (long long)n, (long long)n_rows);
    td_page_string(p, device < f->meta.n_kinds ? f->meta.device_kinds[device] : "?");
    fputs("</p>\n<div class=\"text\">", p->out);
    for (int64_t i = 0; i < shown; i++) {
        const td_row_view *row = NULL;
        if (!hidden && k < n_rows && i > 0) {
            if (!td_row_read(rr, place, r[place] + k, &v, &why))
                goto damaged;
            if (v.position + INT64_C(1) == i) {
                row = &v;
                k++;
            }
        }
        put_heat_token(p, ids[i], row);
    }
    if (shown < n)
        fprintf(p->out, "<span class=\"n\"> … %lld more tokens</span>", (long long)(n - shown));
    fputs("</div>\n<details><summary>As a table</summary><table><tr><th>position</th>"
          "<th class=\"x\">token</th><th class=\"x\">next in data</th>",
          p->out);
    fputs(hidden ? "<th>state</th></tr>\n"
                 : "<th>probability</th><th>rank</th><th>entropy</th><th>covered</th>"
                   "<th class=\"x\">most probable</th></tr>\n",
          p->out);
    int64_t n_table = TD_MIN(n_rows, (int64_t)TABLE_ROWS);
    for (int64_t i = 0; i < n_table; i++) {
        if (!td_row_read(rr, place, r[place] + i, &v, &why))
            goto damaged;
        put_table_row(p, ids, &v);
    }
    fputs("</table>", p->out);
    if (n_table < n_rows)
        fprintf(p->out, "<p class=\"dim\">%lld more positions; tdgen inspect --json has all.</p>",
                (long long)(n_rows - n_table));
    fputs("</details></article>\n", p->out);
    td_row_reader_destroy(rr);
    return TD_OK;
damaged:
    td_row_reader_destroy(rr);
    return td_error_set(err, TD_E_VERIFY, "%s is damaged: tensor %s %s; run tdgen verify %s",
                        f->path, why.tensor, why.what, p->in.dir);
}

static td_status put_samples(const td_page *p, td_error *err) {
    int64_t total = 0, last = -1;
    for (size_t i = 0; i < p->in.index.n; i++)
        total += p->in.index.entries[i].n_samples;
    int64_t n = p->opt.sample >= 0 ? 1 : TD_MIN(total, (int64_t)p->opt.n_samples);
    fprintf(p->out,
            "<section id=\"samples\"><h2>Samples</h2>\n<p class=\"views dim\">Each token has the "
            "colour of what the teacher made of it. Target probability: <span class=\"scale "
            "p\"></span> from certain to less than e<sup>-10</sup>. Entropy: <span class=\"scale "
            "e\"></span> from 0 to log V = %.2f nats. Grey tokens are no training targets%s. Point "
            "at a token for its numbers.</p>\n",
            p->max_entropy,
            p->in.manifest.spec.mode == TD_CAPTURE_HIDDEN ? "; this mode stores no probabilities"
                                                          : "");
    if (p->in.tok_note) {
        fputs("<p>#N are token ids: ", p->out);
        td_page_string(p, p->in.tok_note);
        fputs("</p>\n", p->out);
    }
    td_status rc = TD_OK;
    for (int64_t i = 0; rc == TD_OK && i < n; i++) {
        td_shard_file *f = NULL;
        int64_t place, number, want = p->opt.sample >= 0 ? p->opt.sample : i * total / n;
        rc = td_inspect_find(&p->in, want, &f, &place, &number, err);
        if (rc == TD_OK && f && number != last)
            rc = put_sample(p, f, place, number, err);
        last = number;
        td_shard_file_close(f);
    }
    if (n == 0)
        fputs("<p>No samples yet.</p>\n", p->out);
    fputs("</section>\n", p->out);
    return rc;
}

td_status td_inspect_html(const char *dir, const td_inspect_options *opt, FILE *out,
                          td_error *err) {
    td_page p = {.out = out, .opt = *opt};
    if (p.opt.n_positions <= 0)
        p.opt.n_positions = DEFAULT_POSITIONS;
    if (p.opt.n_candidates <= 0)
        p.opt.n_candidates = 5;
    if (p.opt.n_samples <= 0)
        p.opt.n_samples = DEFAULT_SAMPLES;
    td_status rc = td_inspector_open(&p.in, dir, p.opt.model_dir, err);
    if (rc != TD_OK)
        return rc;
    p.max_entropy = log(TD_MAX(2, (double)p.in.manifest.spec.n_vocab));
    rc = collect(&p, err);
    if (rc == TD_OK) {
        put_head(&p);
        fputs("<input type=\"radio\" name=\"view\" id=\"view-p\" checked> <label "
              "for=\"view-p\">target probability</label>\n<input type=\"radio\" name=\"view\" "
              "id=\"view-e\"> <label for=\"view-e\">entropy</label>\n<main>\n",
              out);
        rc = put_samples(&p, err);
    }
    if (rc == TD_OK) {
        put_histogram(&p);
        td_page_put_run(&p);
        fprintf(out, "</main>\n<p class=\"dim\">tdgen %s</p>\n</body></html>\n", TDGEN_VERSION);
    }
    td_inspector_close(&p.in);
    return rc;
}
