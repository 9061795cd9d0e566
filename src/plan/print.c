/* The plan on paper. The assignment block of one process on GPUs is the specification's, to the
 * letter, and calls the copies of the model workers. Everywhere else a worker is a process, of
 * run.total_workers, and a copy of the model is a group. The details are tables for a person, with
 * groups that are alike printed once. Lines have at most TD_TEXT_COLUMNS columns. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan_internal.h"
#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "base/text.h"

enum { MAX_TITLE_TYPES = 4, LINE = TD_TEXT_COLUMNS };

/* --- assignment ------------------------------------------------------------------------------- */

/* "0,1,2", broken behind commas; `column` is where it begins, and one place is left behind it. */
static void print_labels(const td_plan *p, const int32_t *devices, int32_t n, int column,
                         FILE *out) {
    for (int32_t i = 0; i < n; i++) {
        const char *label = p->inventory.devices[devices ? devices[i] : i].label;
        const int width = (int)strlen(label) + 1;
        if (i && column + width > LINE)
            column = fprintf(out, "\n%*s", 4, "") - 1;
        column += fprintf(out, "%s%s", label, i + 1 < n ? "," : "");
    }
}

/* "2", or "1 (4 workers), 2 (2 workers)" where widths differ, in order of first appearance. */
static void print_widths(const td_plan *p, const char *noun, FILE *out) {
    if (p->gpus_per_model) {
        fprintf(out, "%d", p->gpus_per_model);
        return;
    }
    const char *sep = "";
    for (int32_t g = 0; g < p->n_groups; g++) {
        int32_t width = p->groups[g].n_devices, n = 0;
        bool first = true;
        for (int32_t i = 0; i < p->n_groups; i++) {
            n += p->groups[i].n_devices == width;
            first = first && (i >= g || p->groups[i].n_devices != width);
        }
        if (!first)
            continue;
        fprintf(out, "%s%d (%d %s%s)", sep, width, n, noun, n == 1 ? "" : "s");
        sep = ", ";
    }
}

void td_plan_print_assignment(const td_plan *p, FILE *out) {
    const bool cpu = p->inventory.is_cpu, alone = p->total_workers <= 1;
    const char *noun = alone ? "worker" : "group", *title = alone ? "Worker" : "Group";
    const char *devices = cpu ? "devices" : "GPUs", *device = cpu ? "device" : "GPU";
    fprintf(out,
            "==================================================\n"
            "%sTeacher Logits Generation\n"
            "==================================================\n"
            "Configuration:\n",
            cpu ? "" : "Multi-GPU ");
    if (!alone)
        fprintf(out, "  Worker %d/%d\n", p->worker_id, p->total_workers);
    int column = fprintf(out, "  Total %s available: %d (", devices, p->inventory.n_devices);
    print_labels(p, NULL, p->inventory.n_devices, column, out);
    fprintf(out, ")\n  %s per model: ", cpu ? "Devices" : "GPUs");
    print_widths(p, noun, out);
    fprintf(out, "\n  Number of %ss: %d\n\n%s %s assignments:\n", noun, p->n_groups, title, device);
    for (int32_t g = 0; g < p->n_groups; g++) {
        column = fprintf(out, "  %s %d: %s", title, g, cpu ? "" : "GPUs ");
        print_labels(p, p->groups[g].devices, p->groups[g].n_devices, column, out);
        fputc('\n', out);
    }
}

/* --- details ---------------------------------------------------------------------------------- */

static const td_plan_domain *domain_of(const td_plan *p, const td_plan_device *dev) {
    for (int32_t i = 0; i < p->n_domains; i++)
        if (p->domains[i].domain == dev->domain)
            return &p->domains[i];
    return NULL;
}

/* Same devices by type, memory and speed, same stages: one table serves both. */
static bool alike(const td_plan *p, const td_plan_group *a, const td_plan_group *b) {
    if (a->n_devices != b->n_devices || a->n_stages != b->n_stages ||
        fabs(a->tokens_per_s - b->tokens_per_s) > 0.05 * fmax(a->tokens_per_s, b->tokens_per_s))
        return false;
    for (int32_t s = 0; s < a->n_stages; s++) {
        const td_plan_stage *x = &a->stages[s], *y = &b->stages[s];
        const td_plan_device *dx = &p->inventory.devices[x->device],
                             *dy = &p->inventory.devices[y->device];
        const td_plan_domain *mx = domain_of(p, dx), *my = domain_of(p, dy);
        if (x->item_begin != y->item_begin || x->item_end != y->item_end ||
            strcmp(dx->type, dy->type) || (mx && my && mx->n_stages != my->n_stages))
            return false;
        /* What is free differs a little between the GPUs of a real machine. */
        double m = (double)dx->memory_bytes, n = (double)dy->memory_bytes;
        if (fabs(m - n) > 0.02 * fmax(m, n))
            return false;
    }
    return true;
}

/* "embed + layers 0-15", "layer 31 + lm_head" */
static void describe_items(int32_t begin, int32_t end, int32_t n_layers, td_strbuf *b) {
    int32_t first = TD_MAX(begin, 1) - 1, last = TD_MIN(end, n_layers + 1) - 2;
    const char *sep = "";
    td_strbuf_clear(b);
    if (begin == 0) {
        td_strbuf_puts(b, "embed");
        sep = " + ";
    }
    if (first <= last) {
        if (first == last)
            td_strbuf_printf(b, "%slayer %d", sep, first);
        else
            td_strbuf_printf(b, "%slayers %d-%d", sep, first, last);
        sep = " + ";
    }
    if (end == n_layers + 2)
        td_strbuf_printf(b, "%slm_head", sep);
}

/* Devices of one type in a row, from position i of the group on. */
static int32_t run_of_type(const td_plan *p, const td_plan_group *g, int32_t i) {
    int32_t run = 1;
    while (i + run < g->n_devices && !strcmp(p->inventory.devices[g->devices[i]].type,
                                             p->inventory.devices[g->devices[i + run]].type))
        run++;
    return run;
}

/* Three digits, without an exponent for what is met in practice. */
static const char *format_number(double v, char *buf, size_t size) {
    snprintf(buf, size, v >= 100 && v < 1e7 ? "%.0f" : "%.3g", v);
    return buf;
}

static void print_group_title(const td_plan *p, int32_t first, int32_t n, FILE *out) {
    const td_plan_group *g = &p->groups[first];
    if (n == 1)
        fprintf(out, "\nGroup %d on ", first);
    else
        fprintf(out, "\nGroups %d-%d, each on ", first, first + n - 1);
    int32_t runs = 0;
    for (int32_t i = 0; i < g->n_devices; i += run_of_type(p, g, i))
        runs++;
    if (runs > MAX_TITLE_TYPES) {
        fprintf(out, "%d devices of several types", g->n_devices);
    } else {
        for (int32_t i = 0, run; i < g->n_devices; i += run) {
            run = run_of_type(p, g, i);
            fprintf(out, "%s%d x %s", i ? " + " : "", run,
                    p->inventory.devices[g->devices[i]].type);
        }
    }
    fputs(":\n", out);
}

/* Table of the groups [first, first + n), which are alike. */
static void print_groups(const td_plan *p, const td_model_config *model, int32_t first, int32_t n,
                         FILE *out) {
    const td_plan_group *g = &p->groups[first];
    td_strbuf items = {0};
    char labels[10], x[4][24], share[48], ms[16] = "";
    bool timed = g->tokens_per_s > 0;
    int32_t *same = td_calloc((size_t)n, sizeof *same);
    print_group_title(p, first, n, out);
    fprintf(out, "  %-9s  %-30s %6s %9s %11s %9s  %s\n", p->inventory.is_cpu ? "device" : "GPU",
            "holds", timed ? "ms" : "", "weights", "activations", "workspace", "memory used");
    for (int32_t s = 0; s < g->n_stages; s++) {
        const td_plan_stage *st = &g->stages[s];
        const td_plan_device *dev = &p->inventory.devices[st->device];
        const td_plan_domain *d = domain_of(p, dev);
        describe_items(st->item_begin, st->item_end, model->n_layers, &items);
        for (int32_t i = 0; same && i < n; i++)
            same[i] = p->groups[first + i].stages[s].device;
        if (d && d->n_stages > 1)
            snprintf(share, sizeof share, "shared");
        else if (dev->memory_bytes == TD_PLAN_MEMORY_UNKNOWN)
            snprintf(share, sizeof share, "%s of ?",
                     td_human_bytes(td_plan_total_bytes(&st->memory), x[3], sizeof x[3]));
        else
            snprintf(share, sizeof share, "%.0f%% of %s",
                     100.0 * (double)td_plan_total_bytes(&st->memory) /
                         (double)TD_MAX(dev->memory_bytes, 1),
                     td_human_bytes(dev->memory_bytes, x[3], sizeof x[3]));
        if (timed)
            format_number(1e3 * td_cost_stage_seconds(p, first, s, &p->micro_batch), ms, sizeof ms);
        fprintf(out, "  %-9s  %-30s %6s %9s %11s %9s  %s\n",
                td_plan_labels(p, same ? same : &st->device, same ? n : 1, labels, sizeof labels),
                items.data ? items.data : "", ms,
                td_human_bytes(st->memory.weight_bytes, x[0], sizeof x[0]),
                td_human_bytes(st->memory.activation_bytes, x[1], sizeof x[1]),
                td_human_bytes(st->memory.workspace_bytes, x[2], sizeof x[2]), share);
    }
    if (timed)
        fprintf(
            out, "  bottleneck %s ms, bottleneck / ideal = %.3f, estimated %s tokens/s%s\n",
            format_number(1e3 * td_cost_group_seconds(p, first, &p->micro_batch), ms, sizeof ms),
            g->bottleneck_over_ideal, td_human_count(g->tokens_per_s, x[0], sizeof x[0]),
            n > 1 ? " each" : "");
    else
        fprintf(out, "  bottleneck / ideal = %.3f by counted work\n", g->bottleneck_over_ideal);
    free(same);
    td_strbuf_free(&items);
}

/* What gpus_per_model = auto weighed against each other. */
static void print_alternatives(const td_plan *p, FILE *out) {
    if (!p->n_alternatives)
        return;
    char rate[24];
    fprintf(
        out,
        "\ngpus_per_model = auto: these groups for %s tokens/s together. What else there was:\n",
        td_human_count(p->tokens_per_s, rate, sizeof rate));
    for (int32_t i = 0; i < p->n_alternatives; i++) {
        const td_plan_alternative *a = &p->alternatives[i];
        if (a->tokens_per_s <= 0) {
            fprintf(out, "  %-20s  %s\n", a->what, a->why_not);
            continue;
        }
        double d = 100 * (a->tokens_per_s / p->tokens_per_s - 1);
        fprintf(out, "  %-20s  %s tokens/s (%+.*f%%): %s\n", a->what,
                td_human_count(a->tokens_per_s, rate, sizeof rate), fabs(d) < 1 ? 1 : 0, d,
                a->groups);
    }
}

/* Memory that several stages share: CPU devices, or copies on one GPU. */
static void print_shared_memory(const td_plan *p, FILE *out) {
    for (int32_t i = 0; i < p->n_domains; i++) {
        const td_plan_domain *d = &p->domains[i];
        char x[5][24];
        if (d->n_stages < 2)
            continue;
        uint64_t used = d->weight_bytes + d->activation_bytes + d->workspace_bytes;
        /* With blanks, at which a long line is broken. */
        fprintf(out, "\nMemory shared by %s", p->inventory.is_cpu ? "" : "the groups on GPU ");
        const char *sep = "";
        for (int32_t j = 0; j < p->inventory.n_devices; j++)
            if (p->inventory.devices[j].domain == d->domain) {
                fprintf(out, "%s%s", sep, p->inventory.devices[j].label);
                sep = ", ";
            }
        fprintf(out, ":\n  weights once %s + activations %s + workspace %s = %s, %.0f%% of %s\n",
                td_human_bytes(d->weight_bytes, x[0], sizeof x[0]),
                td_human_bytes(d->activation_bytes, x[1], sizeof x[1]),
                td_human_bytes(d->workspace_bytes, x[2], sizeof x[2]),
                td_human_bytes(used, x[3], sizeof x[3]),
                100.0 * (double)used / (double)TD_MAX(d->memory_bytes, 1),
                td_human_bytes(d->memory_bytes, x[4], sizeof x[4]));
    }
}

static const char *speed_source(const td_plan *p) {
    if (p->inventory.speeds[0])
        return p->inventory.speeds;
    if (p->inventory.from_file)
        return "the inventory's figures, not measured";
    return p->inventory.is_cpu ? "measured just now" : "estimated from clocks; a run measures once";
}

/* How the counts came about. */
static void print_basis(const td_dataset_stats *st, FILE *out) {
    char x[3][24];
    td_human_count((double)st->n_rows_read, x[0], sizeof x[0]);
    td_human_bytes(st->bytes_read, x[1], sizeof x[1]);
    td_human_bytes(st->bytes_total, x[2], sizeof x[2]);
    if (st->bytes_total == 0)
        return; /* a job that is only stated */
    fputs("                 (", out);
    if (!st->estimated)
        fprintf(out, "counted: all %s rows were read", x[0]);
    else if (st->basis == TD_STATS_SPREAD)
        fprintf(out, "estimated from %s rows, %s, spread evenly over %s", x[0], x[1], x[2]);
    else if (st->basis == TD_STATS_FRONT && st->n_files == 1)
        fprintf(out, "estimated from %s rows, the first %s of %s", x[0], x[1], x[2]);
    else if (st->basis == TD_STATS_FRONT)
        fprintf(out, "estimated from %s rows, %s at the beginnings of %lld files, of %s", x[0],
                x[1], (long long)st->n_files_read, x[2]);
    else
        fprintf(out, "estimated from pieces of %lld row%s, %s of %s", (long long)st->n_files_read,
                st->n_files_read == 1 ? "" : "s", x[1], x[2]);
    if (st->n_files > 1)
        fprintf(out, " in %lld files", (long long)st->n_files);
    fputs(")\n", out);
}

/* What max_length does to the rows. */
static void print_overflow(const td_plan *p, FILE *out) {
    static const char *const verbs[] = {"cut", "split", "skipped"};
    const td_dataset_stats *st = &p->stats;
    char x[2][24];
    if (st->n_overflow_rows) {
        fprintf(out, "Too long:        %s%s rows exceed data.max_length = %d and are %s",
                st->estimated ? "about " : "",
                td_human_count((double)st->n_overflow_rows, x[0], sizeof x[0]), p->max_length,
                verbs[p->overflow]);
        if (p->overflow == TD_OVERFLOW_SPLIT)
            fputs(", which loses no token\n", out);
        else
            fprintf(out, ", which loses %s tokens (%.1f%%)\n",
                    td_human_count((double)st->n_overflow_tokens, x[1], sizeof x[1]),
                    100 * (double)st->n_overflow_tokens /
                        fmax((double)(st->n_tokens + st->n_overflow_tokens), 1));
    }
    if (st->n_bad_rows)
        fprintf(out, "Bad rows:        %s are left out (run.on_bad_sample = skip)\n",
                td_human_count((double)st->n_bad_rows, x[0], sizeof x[0]));
}

static void print_output(const td_plan *p, uint64_t free_bytes, FILE *out) {
    const td_dataset_stats *st = &p->stats;
    char x[4][24];
    if (st->n_dataset_rows == 0) {
        fputs("\nDataset:         not there, so there is no estimate of output size and time\n",
              out);
        if (p->tokens_per_s > 0)
            fprintf(out, "Estimated rate:  %s tokens/s\n                 (speeds: %s)\n",
                    td_human_count(p->tokens_per_s, x[0], sizeof x[0]), speed_source(p));
        return;
    }
    fprintf(out, "\nDataset:         %s%s rows -> %s samples, %s tokens, %s rows to record\n",
            st->estimated ? "about " : "",
            td_human_count((double)st->n_dataset_rows, x[0], sizeof x[0]),
            td_human_count((double)st->n_samples, x[1], sizeof x[1]),
            td_human_count((double)st->n_tokens, x[2], sizeof x[2]),
            td_human_count((double)st->n_record_rows, x[3], sizeof x[3]));
    if (st->tokens_from_bytes)
        fputs("                 (token counts are guessed at 4 bytes a token: there is no "
              "tokenizer)\n",
              out);
    print_basis(st, out);
    print_overflow(p, out);
    if (p->total_workers > 1)
        fprintf(out, "This process:    worker %d of %d, about 1/%d of it\n", p->worker_id,
                p->total_workers, p->total_workers);
    if (p->bytes_per_row > 0) {
        fprintf(out, "Expected output: %s%s%s (%s%.0f bytes per recorded row",
                p->bytes_at_most ? "at most " : "", st->estimated ? "about " : "",
                td_human_bytes(p->output_bytes, x[0], sizeof x[0]),
                p->bytes_at_most ? "at most " : "", p->bytes_per_row);
        if (st->n_tokens > 0)
            fprintf(out, ", %.1f per token",
                    (double)p->output_bytes * TD_MAX(p->total_workers, 1) / (double)st->n_tokens);
        fputc(')', out);
        if (free_bytes)
            fprintf(out, ", of %s free", td_human_bytes(free_bytes, x[1], sizeof x[1]));
        fputc('\n', out);
    }
    if (p->tokens_per_s > 0)
        fprintf(out, "Estimated rate:  %s%s tokens/s, %s%s in all\n                 (speeds: %s)\n",
                p->inventory.from_file ? "" : "at most ",
                td_human_count(p->tokens_per_s, x[0], sizeof x[0]),
                p->inventory.from_file ? "" : "at least ",
                td_human_seconds(p->wall_s, x[1], sizeof x[1]), speed_source(p));
    else
        fputs("Estimated rate:  unknown, as the speed of the devices is not known\n", out);
}

static void print_details(const td_plan *p, const td_model_config *model, uint64_t free_bytes,
                          FILE *out) {
    char x[2][24];
    fprintf(out, "\nModel:           %s, %d layers, %s parameters\n", model->architecture,
            model->n_layers, td_human_count((double)model->n_params, x[0], sizeof x[0]));
    fprintf(out, "Groups:          %d, each with one copy of the model%s\n", p->n_groups,
            p->total_workers > 1 ? "" : " (the workers above)");
    fprintf(out, "Computed in:     %s (%s)\n", td_dtype_name(p->compute), p->compute_why);
    fprintf(out,
            "Micro-batch:     %d tokens, up to %d in flight per group, lm_head over %d rows at a "
            "time\n",
            p->batch_tokens, p->limits.n_slots, p->limits.capture_rows);
    if (p->limits.max_tokens > p->batch_tokens)
        fprintf(out, "                 (a longer sample, up to %d tokens, is one of its own)\n",
                p->limits.max_tokens);
    if (td_capture_is_dense(p->capture.mode))
        fprintf(out, "Host memory:     %s per group for the rows of micro-batches in flight\n",
                td_human_bytes(td_session_host_bytes(&p->limits, &p->capture), x[0], sizeof x[0]));
    if (p->tokens_per_s > 0)
        fprintf(out, "Stage times:     for a mean micro-batch of %lld tokens, %s TFLOP\n",
                (long long)p->micro_batch.n_tokens,
                format_number(1e-12 * td_cost_flops(&p->cost, &p->micro_batch), x[0], sizeof x[0]));
    for (int32_t g = 0; g < p->n_groups;) {
        int32_t n = 1;
        while (g + n < p->n_groups && alike(p, &p->groups[g], &p->groups[g + n]))
            n++;
        print_groups(p, model, g, n, out);
        g += n;
    }
    print_alternatives(p, out);
    print_shared_memory(p, out);
    print_output(p, free_bytes, out);
    bool full = free_bytes && p->output_bytes > free_bytes;
    if (!p->n_warnings && !full)
        return;
    fputs("\nWarnings:\n", out);
    for (int32_t i = 0; i < p->n_warnings; i++)
        fprintf(out, "  - %s\n", p->warnings[i]);
    if (full) {
        fprintf(out,
                "  - The output does not fit on its disk: %s %s are needed, %s are free. Lower "
                "capture.top_k or data.max_samples, or choose another output.dir.\n",
                p->bytes_at_most ? "at most" : "about",
                td_human_bytes(p->output_bytes, x[0], sizeof x[0]),
                td_human_bytes(free_bytes, x[1], sizeof x[1]));
    }
}

void td_plan_print_details(const td_plan *p, const td_model_config *model, uint64_t free_bytes,
                           FILE *out) {
    char *text = NULL;
    size_t n = 0;
    FILE *lines = open_memstream(&text, &n);
    print_details(p, model, free_bytes, lines ? lines : out);
    if (lines && fclose(lines) == 0)
        td_text_flow(text, td_text_columns(out), out);
    free(text);
}
