/* print.c - what a simulated run shows: text, and an SVG picture of the same timeline. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/sim.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { MAX_ROWS = 40, COLUMNS = 60 };

/* A row of the timeline: consecutive groups, one of each while there are few. */
typedef struct row {
    int32_t first, n;
    int32_t n_devices, n_failed;
    double tokens, busy_s, last_done_s, failed_s;
} row;

static int32_t groups_per_row(const td_sim_result *r) {
    return (r->n_groups + MAX_ROWS - 1) / MAX_ROWS;
}

static row row_of(const td_sim_result *r, const td_plan *plan, int32_t first, int32_t n) {
    row w = {.first = first, .n = TD_MIN(n, r->n_groups - first), .failed_s = -1};
    for (int32_t g = first; g < first + w.n; g++) {
        const td_sim_group *o = &r->groups[g];
        w.n_devices += plan->groups[g].n_stages;
        w.tokens += (double)o->n_tokens;
        for (int32_t i = 0; i < plan->groups[g].n_stages; i++)
            w.busy_s += o->busy_s[i];
        w.last_done_s = fmax(w.last_done_s, o->last_done_s);
        w.n_failed += o->failed_s >= 0;
        w.failed_s = fmax(w.failed_s, o->failed_s);
    }
    return w;
}

/* Busy share of a row's devices in [begin, end). */
static double busy_share(const td_sim_result *r, const row *w, double begin, double end) {
    double sum = 0;
    if (end <= begin)
        return 0;
    for (int32_t g = w->first; g < w->first + w->n; g++)
        for (int i = TD_MAX(0, (int)(begin / r->bin_s)); i < TD_SIM_BINS && i * r->bin_s < end;
             i++) {
            double part = fmin(end, (i + 1) * r->bin_s) - fmax(begin, i * r->bin_s);
            sum += (double)r->groups[g].bins[i] * fmax(part, 0) / r->bin_s;
        }
    return fmin(1, sum / ((end - begin) * w->n_devices));
}

/* "group 3", "groups 0-24", and the types of their devices, each once. */
static void name_row(const td_plan *plan, const row *w, char *name, size_t n_name, char *what,
                     size_t n_what) {
    if (w->n == 1)
        snprintf(name, n_name, "group %d", w->first);
    else
        snprintf(name, n_name, "groups %d-%d", w->first, w->first + w->n - 1);
    what[0] = '\0';
    for (int32_t g = w->first; g < w->first + w->n; g++)
        for (int32_t i = 0; i < plan->groups[g].n_stages; i++) {
            const char *type = plan->inventory.devices[plan->groups[g].stages[i].device].type;
            size_t at = strlen(what);
            if (!strstr(what, type) && at + strlen(type) + 3 < n_what)
                snprintf(what + at, n_what - at, "%s%s", at ? ", " : "", type);
        }
}

static void print_timeline(const td_sim_result *r, const td_plan *plan, FILE *out) {
    char wall[24], name[32], what[48];
    int32_t step = groups_per_row(r);
    fprintf(out, "Timeline, 0 to %s (# busy, + over half, . less, blank idle, x failed)\n",
            td_human_seconds(r->wall_s, wall, sizeof wall));
    for (int32_t g = 0; g < r->n_groups; g += step) {
        row w = row_of(r, plan, g, step);
        name_row(plan, &w, name, sizeof name, what, sizeof what);
        fprintf(out, "  %-15s |", name);
        for (int i = 0; i < COLUMNS; i++) {
            double begin = r->wall_s * i / COLUMNS, end = r->wall_s * (i + 1) / COLUMNS;
            double share = busy_share(r, &w, begin, end);
            bool gone = w.n_failed == w.n && w.failed_s < begin;
            fputc(gone           ? 'x'
                  : share > 0.95 ? '#'
                  : share > 0.5  ? '+'
                  : share > 0.02 ? '.'
                                 : ' ',
                  out);
        }
        fputs("|\n", out);
    }
}

static void print_groups(const td_sim_result *r, const td_plan *plan, const td_sim_load *load,
                         FILE *out) {
    char name[32], what[48], last[24], when[24];
    int32_t step = groups_per_row(r);
    for (int32_t g = 0; g < r->n_groups; g += step) {
        row w = row_of(r, plan, g, step);
        name_row(plan, &w, name, sizeof name, what, sizeof what);
        fprintf(out, "  %-15s %-21s %5.1f%% of the tokens   busy", name, what,
                100 * w.tokens / (double)load->n_tokens);
        if (w.n == 1)
            for (int32_t i = 0; i < plan->groups[g].n_stages; i++)
                fprintf(out, " %.1f%%", 100 * r->groups[g].busy_s[i] / r->wall_s);
        else
            fprintf(out, " %.1f%%", 100 * w.busy_s / (r->wall_s * w.n_devices));
        fprintf(out, "   last done at %s", td_human_seconds(w.last_done_s, last, sizeof last));
        if (w.n_failed && w.n == 1)
            fprintf(out, "   failed at %s", td_human_seconds(w.failed_s, when, sizeof when));
        else if (w.n_failed)
            fprintf(out, "   %d failed", w.n_failed);
        fputc('\n', out);
    }
}

static void print_job(const td_config *cfg, const td_sim_load *load, FILE *out) {
    char a[16], b[16], c[16];
    fprintf(out, "Simulated job: %s samples, %s tokens, %s micro-batches in %d shard%s (",
            td_human_count((double)load->n_samples, a, sizeof a),
            td_human_count((double)load->n_tokens, b, sizeof b),
            td_human_count((double)load->n_batches, c, sizeof c), load->n_shards,
            load->n_shards == 1 ? "" : "s");
    if (cfg->simulate.law == TD_LENGTHS_LOGNORMAL)
        fprintf(out, "lengths lognormal:%g:%g:%d", cfg->simulate.median, cfg->simulate.sigma,
                cfg->simulate.max_length);
    else if (cfg->simulate.law == TD_LENGTHS_FIXED)
        fprintf(out, "lengths fixed:%d", cfg->simulate.fixed_length);
    else
        fprintf(out, "lengths of %s", cfg->data.path);
    fprintf(out, "; noise %g, seed %llu)\n", cfg->simulate.noise,
            (unsigned long long)cfg->simulate.seed);
}

void td_sim_print(const td_sim_result *r, const td_config *cfg, const td_plan *plan,
                  const td_sim_load *load, FILE *out) {
    char wall[24], ideal[24], fixed[24];
    print_job(cfg, load, out);
    fprintf(out, "Predicted wall time: %s; ideal %s (all work at the sum of all rates): %+.2f%%\n",
            td_human_seconds(r->wall_s, wall, sizeof wall),
            td_human_seconds(r->ideal_s, ideal, sizeof ideal), 100 * (r->wall_s / r->ideal_s - 1));
    fprintf(out, "The same samples dealt out beforehand, 1/%d to each group: %s%s\n", r->n_groups,
            td_human_seconds(r->static_s, fixed, sizeof fixed),
            cfg->simulate.failures ? " (if no group failed)" : "");
    fprintf(out, "Claims: %lld; held claims left to a faster group: %lld; up to %d shards open\n",
            (long long)r->n_claims, (long long)r->n_released, r->max_open);
    if (cfg->simulate.failures)
        fprintf(out, "Failures: %d; micro-batches that others took over: %lld\n",
                cfg->simulate.failures, (long long)r->n_requeued);
    print_groups(r, plan, load, out);
    print_timeline(r, plan, out);
    fprintf(out, "makespan_over_ideal=%.4f static_over_ideal=%.4f\n", r->wall_s / r->ideal_s,
            r->static_s / r->ideal_s);
}

/* --- SVG -------------------------------------------------------------------------------------- */

enum { LEFT = 230, WIDTH = 720, ROW = 16, TOP = 28 };

/* Text of XML: types come from the user's inventory. */
static void put_text(td_strbuf *b, const char *s) {
    for (; *s; s++)
        switch (*s) {
        case '&':
            td_strbuf_puts(b, "&amp;");
            break;
        case '<':
            td_strbuf_puts(b, "&lt;");
            break;
        case '>':
            td_strbuf_puts(b, "&gt;");
            break;
        default:
            td_strbuf_printf(b, "%c", (unsigned char)*s < 32 ? ' ' : *s);
        }
}

static void put_row(td_strbuf *b, const td_sim_result *r, const td_plan *plan, const row *w,
                    int32_t y) {
    char name[32], what[48];
    name_row(plan, w, name, sizeof name, what, sizeof what);
    td_strbuf_printf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">", LEFT - 6, y + 12);
    put_text(b, name);
    td_strbuf_puts(b, "  ");
    put_text(b, what);
    td_strbuf_puts(b, "</text>\n");
    double scale = WIDTH / r->wall_s;
    for (int i = 0; i < TD_SIM_BINS && i * r->bin_s < r->wall_s; i++) {
        double begin = i * r->bin_s, end = fmin(r->wall_s, (i + 1) * r->bin_s);
        double share = busy_share(r, w, begin, end);
        if (share < 0.005)
            continue;
        td_strbuf_printf(b,
                         "<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\" fill-opacity="
                         "\"%.2f\"/>\n",
                         LEFT + begin * scale, y + 2, (end - begin) * scale, ROW - 4, share);
    }
    for (int32_t g = w->first; g < w->first + w->n; g++)
        if (r->groups[g].failed_s >= 0)
            td_strbuf_printf(b, "<path d=\"M%.2f %dv%d\" stroke=\"#c0392b\" stroke-width=\"2\"/>\n",
                             LEFT + r->groups[g].failed_s * scale, y, ROW);
}

td_status td_sim_write_svg(const td_sim_result *r, const td_plan *plan, const char *path,
                           td_error *err) {
    td_strbuf b = {0};
    char wall[24];
    int32_t step = groups_per_row(r), rows = (r->n_groups + step - 1) / step;
    int32_t height = TOP + rows * ROW + 24;
    td_strbuf_printf(&b,
                     "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
                     "font-family=\"sans-serif\" font-size=\"11\">\n"
                     "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
                     "<text x=\"%d\" y=\"18\">Busy share of the groups over time; makespan over "
                     "ideal %.3f, dealt out beforehand %.3f</text>\n<g fill=\"#2471a3\">\n",
                     LEFT + WIDTH + 20, height, LEFT, r->wall_s / r->ideal_s,
                     r->static_s / r->ideal_s);
    td_strbuf rows_text = {0};
    for (int32_t k = 0; k < rows; k++) {
        row w = row_of(r, plan, k * step, step);
        put_row(&rows_text, r, plan, &w, TOP + k * ROW);
    }
    if (rows_text.data)
        td_strbuf_puts(&b, rows_text.data);
    td_strbuf_printf(
        &b,
        "</g>\n<path d=\"M%d %dh%d\" stroke=\"black\"/>\n<text x=\"%d\" y=\"%d\">0</text>"
        "\n<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n</svg>\n",
        LEFT, height - 22, WIDTH, LEFT, height - 8, LEFT + WIDTH, height - 8,
        td_human_seconds(r->wall_s, wall, sizeof wall));
    td_status rc = b.oom || rows_text.oom ? td_error_nomem(err, "the timeline", b.len)
                                          : td_file_write_atomic(path, b.data, b.len, false, err);
    td_strbuf_free(&b);
    td_strbuf_free(&rows_text);
    return rc == TD_OK ? rc : td_error_prefix(err, "--timeline");
}
