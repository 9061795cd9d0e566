/* summary.c - the closing report of a run. */
#include "run/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/format.h"
#include "base/memory.h"
#include "base/text.h"

/* Shares of the devices' busy time; nothing without TDGEN_PROFILE=1. */
static void print_profile(const double op_s[TD_OP_COUNT], FILE *out) {
    double sum = 0;
    for (int op = 0; op < TD_OP_COUNT; op++)
        sum += op_s[op];
    if (sum <= 0)
        return;
    fprintf(out, "    profile  ");
    for (int op = 0; op < TD_OP_COUNT; op++)
        if (op_s[op] > 0)
            fprintf(out, " %s %.1f%%", td_op_name((td_op)op), 100 * op_s[op] / sum);
    fputc('\n', out);
}

static void print_group(const td_run_summary *s, const td_plan *plan, int32_t g, FILE *out) {
    const td_group_summary *grp = &s->groups[g];
    const td_plan_group *pg = &plan->groups[g];
    char tokens[16];
    int width = fprintf(out, "  group %-3d ", g);
    const int column = width + 16;
    for (int32_t i = 0; i < pg->n_devices; i++)
        width += fprintf(out, "%s%s", i ? "," : "", plan->inventory.devices[pg->devices[i]].label);
    fprintf(out, "%*s %8s tokens %5.1f%%   idle %5.1f%%   busy", TD_MAX(column - width, 0), "",
            td_human_count((double)grp->n_tokens, tokens, sizeof tokens),
            s->n_tokens ? 100.0 * (double)grp->n_tokens / (double)s->n_tokens : 0.0,
            s->wall_s > 0
                ? 100 * (grp->wait_s + TD_MAX(0.0, s->wall_s - grp->finished_s)) / s->wall_s
                : 0.0);
    for (int32_t i = 0; i < grp->n_stages; i++) {
        double whole = s->wall_s > 0 ? grp->stage_busy_s[i] / s->wall_s : 0.0;
        fprintf(out, " %.0f%%", 100 * (grp->stage_steady[i] >= 0 ? grp->stage_steady[i] : whole));
    }
    if (grp->last_done_s > 0)
        fprintf(out, "   last done at %.1fs", grp->last_done_s);
    fputc('\n', out);
    if (grp->observed_s > 0) {
        char seen[16], plan_rate[16];
        double n = (double)grp->n_tokens;
        fprintf(out, "    speed     %s tokens/s while it had work",
                td_human_count(n / grp->observed_s, seen, sizeof seen));
        if (grp->predicted_s > 0)
            fprintf(out, ", planned %s (%.0f%%)",
                    td_human_count(n / grp->predicted_s, plan_rate, sizeof plan_rate),
                    100 * grp->predicted_s / grp->observed_s);
        fputc('\n', out);
    }
    print_profile(grp->op_s, out);
    if (grp->retired)
        fprintf(out, "    retired: %s\n", grp->retired_why);
    else if (grp->n_failures)
        fprintf(out, "    failed %d time%s, worked again %d time%s\n", grp->n_failures,
                grp->n_failures == 1 ? "" : "s", grp->n_reinstated,
                grp->n_reinstated == 1 ? "" : "s");
}

static void print_device(const td_device_summary *d, FILE *out) {
    fprintf(out, "  %-9s %s", d->name, d->model);
    if (d->mean_utilization >= 0)
        fprintf(out, " · mean use %.0f%%", d->mean_utilization);
    if (d->max_temperature_c > 0)
        fprintf(out, " · up to %d C", d->max_temperature_c);
    if (d->mean_power_w >= 0)
        fprintf(out, " · mean %.0f W", d->mean_power_w);
    if (d->throttled_share > 0)
        fprintf(out, " · clocks held down %.0f%% of the time (%s)", 100 * d->throttled_share,
                d->throttle);
    if (d->new_ecc_errors > 0)
        fprintf(out, " · %lld uncorrectable memory errors", (long long)d->new_ecc_errors);
    if (d->last_xid > 0)
        fprintf(out, " · Xid %lld", (long long)d->last_xid);
    fputc('\n', out);
}

static void print_summary(const td_run_summary *s, const td_plan *plan, td_output *output,
                          FILE *out) {
    char a[32], b[32], c[32], d[32];
    td_output_totals t;
    td_output_totals_get(output, &t);
    fprintf(out, "%s in %s: %s samples, %s tokens, %s recorded rows, %s tokens/s\n",
            s->stopped ? "Stopped" : "Done", td_human_seconds(s->wall_s, d, sizeof d),
            td_human_count((double)s->n_samples, a, sizeof a),
            td_human_count((double)s->n_tokens, b, sizeof b),
            td_human_count((double)s->n_rows, c, sizeof c),
            td_human_count(s->wall_s > 0 ? (double)s->n_tokens / s->wall_s : 0, (char[16]){0}, 16));
    for (int32_t g = 0; g < s->n_groups; g++)
        print_group(s, plan, g, out);
    for (int32_t i = 0; i < s->n_devices; i++)
        print_device(&s->devices[i], out);
    fprintf(out,
            "Shards: %lld written, %lld already there; the folder holds %lld shards, %s, "
            "%.1f bytes per token\n",
            (long long)s->n_shards_written, (long long)s->n_shards_kept, (long long)t.n_shards,
            td_human_bytes(t.size_bytes, a, sizeof a),
            t.n_tokens ? (double)t.size_bytes / (double)t.n_tokens : 0.0);
    td_coverage coverage;
    td_output_coverage_get(output, &coverage);
    td_coverage_print(&coverage, out);
    if (s->n_overflow_rows)
        fprintf(out, "Rows longer than data.max_length = %d: %lld %s\n", plan->max_length,
                (long long)s->n_overflow_rows,
                plan->overflow == TD_OVERFLOW_SPLIT  ? "were split"
                : plan->overflow == TD_OVERFLOW_SKIP ? "were skipped"
                                                     : "were cut");
    if (s->n_overflow_tokens)
        fprintf(out, "Tokens lost by that: %s\n",
                td_human_count((double)s->n_overflow_tokens, a, sizeof a));
    if (t.n_skipped || s->n_bad_samples)
        fprintf(out, "Skipped samples: %lld in this run, %lld in the folder\n",
                (long long)s->n_bad_samples, (long long)t.n_skipped);
}

void td_run_summary_print(const td_run_summary *s, const td_plan *plan, td_output *output,
                          FILE *out) {
    char *text = NULL, *line;
    size_t n = 0;
    FILE *lines = open_memstream(&text, &n);
    print_summary(s, plan, output, lines ? lines : out);
    /* A message stays one line, to be found again; it may be long. */
    char *rest = lines && fclose(lines) == 0 ? text : NULL;
    while (rest && *rest && (line = strsep(&rest, "\n"))) {
        if (strstr(line, "retired: "))
            fprintf(out, "%s\n", line);
        else
            td_text_flow(*line ? line : "\n", TD_TEXT_COLUMNS, out);
    }
    free(text);
}
