/* progress.c - what a person watching sees: a live line on a terminal, a plain line in the log
 * every half minute (also in a batch log), status.json every second, metrics for Prometheus. All from counters that the threads bump; nothing
 * here holds them up. */
#include "run/progress.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "run/beat.h"
#include "run/health.h"
#include "base/log.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"

#define LINE_EVERY_S 0.5
#define STATUS_EVERY_S 1.0
#define TIMELINE_EVERY_S 30.0
#define METRICS_EVERY_S 10.0
#define RATE_WINDOW_S 15.0

struct td_progress {
    td_run_state *run;
    td_health *health; /* NULL: no sensors */
    time_t started;
    double next_line_s, next_status_s, next_log_s, next_metrics_s, next_timeline_s;
    double log_every_s; /* 0: never */
    bool told_metrics;
    /* The rate shown is that of about the last RATE_WINDOW_S: two marks, moved in turn. */
    double mark_s[2];
    int64_t mark_tokens[2];
};

typedef struct view {
    double elapsed_s, rate, fraction, eta_s; /* fraction, eta_s < 0: unknown */
    int64_t n_tokens, n_samples, n_rows, n_all_samples, n_all_tokens;
} view;

td_progress *td_progress_create(td_run_state *run) {
    td_progress *p = td_calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->run = run;
    p->health = td_health_create(run->in);
    p->started = time(NULL);
    double now = td_time_s();
    p->log_every_s = run->in->cfg->run.progress_s;
    p->next_log_s = now + p->log_every_s;
    p->next_timeline_s = now + TIMELINE_EVERY_S;
    p->mark_s[0] = p->mark_s[1] = now;
    return p;
}

bool td_progress_free(td_progress *p) {
    if (!p)
        return true;
    bool ended = td_health_free(p->health);
    free(p);
    return ended;
}

static view look(td_progress *p, double now) {
    td_run_state *run = p->run;
    view v = {.elapsed_s = now - run->start_s,
              .fraction = -1,
              .eta_s = -1,
              .n_tokens = atomic_load(&run->counters.n_tokens_idle),
              .n_samples = atomic_load(&run->counters.n_samples_idle)};
    for (int32_t g = 0; g < run->n_groups; g++) {
        v.n_tokens += atomic_load(&run->groups[g].counters.n_tokens);
        v.n_samples += atomic_load(&run->groups[g].counters.n_samples);
        v.n_rows += atomic_load(&run->groups[g].counters.n_rows);
    }
    if (now - p->mark_s[1] > RATE_WINDOW_S) {
        p->mark_s[0] = p->mark_s[1];
        p->mark_tokens[0] = p->mark_tokens[1];
        p->mark_s[1] = now;
        p->mark_tokens[1] = v.n_tokens;
    }
    double dt = now - p->mark_s[0];
    v.rate = dt > 0.05 ? (double)(v.n_tokens - p->mark_tokens[0]) / dt : 0;
    v.n_all_tokens = v.n_tokens + atomic_load(&run->counters.n_tokens_kept);
    v.n_all_samples = v.n_samples + atomic_load(&run->counters.n_samples_kept);
    double total = (double)run->in->plan->stats.n_tokens / run->in->cfg->run.total_workers;
    if (total > 0) {
        v.fraction = TD_MIN(0.999, (double)v.n_all_tokens / total);
        if (v.rate > 0)
            v.eta_s = TD_MAX(0.0, total - (double)v.n_all_tokens) / v.rate;
    }
    return v;
}

static void group_shares(const td_run_state *run, int64_t total, char *buf, size_t n) {
    enum { SHOWN = 8 };
    size_t at = 0;
    buf[0] = '\0';
    if (run->n_groups < 2 || total == 0)
        return;
    at += (size_t)snprintf(buf, n, " · groups");
    for (int32_t g = 0; g < TD_MIN(run->n_groups, SHOWN) && at < n; g++)
        at += (size_t)snprintf(buf + at, n - at, "%c%.0f%%", g ? '/' : ' ',
                               100.0 * (double)atomic_load(&run->groups[g].counters.n_tokens) /
                                   (double)total);
    if (run->n_groups > SHOWN && at < n)
        snprintf(buf + at, n - at, "/..");
}

static void compose_line(const td_progress *p, const view *v, bool final, char *line, size_t n) {
    const td_run_state *run = p->run;
    char samples[16], tokens[16], rate[16], eta[32] = "", shares[128], percent[16] = "", gpus[64];
    double mean = v->elapsed_s > 0 ? (double)v->n_tokens / v->elapsed_s : 0;
    td_human_count((double)v->n_all_samples, samples, sizeof samples);
    td_human_count((double)v->n_all_tokens, tokens, sizeof tokens);
    td_human_count(final ? mean : v->rate, rate, sizeof rate);
    group_shares(run, v->n_tokens, shares, sizeof shares);
    if (!final && v->fraction >= 0)
        snprintf(percent, sizeof percent, "[%3.0f%%] ", 100 * v->fraction);
    if (!final && v->eta_s >= 0) {
        char s[24];
        snprintf(eta, sizeof eta, " · ETA %s", td_human_seconds(v->eta_s, s, sizeof s));
    }
    td_health_line(p->health, gpus, sizeof gpus);
    /* The group shares last: they are what a narrow terminal cuts. */
    snprintf(line, n, "%s%s samples · %s tokens · %s tokens/s · %lld shards%s%s%s", percent,
             samples, tokens, rate,
             (long long)(atomic_load(&run->counters.n_shards_written) +
                         atomic_load(&run->counters.n_shards_kept)),
             eta, gpus, shares);
}

static json_t *group_json(const td_group *g, bool retired, double elapsed_s) {
    json_t *busy = json_array(); /* share of the time that each of its devices computed */
    for (int32_t i = 0; i < g->plan->n_stages; i++)
        json_array_append_new(
            busy, json_real(elapsed_s > 0
                                ? TD_MIN(1.0, 1e-6 * (double)atomic_load(&g->counters.busy_us[i]) /
                                                  elapsed_s)
                                : 0.0));
    int64_t tokens = atomic_load(&g->counters.n_tokens);
    double wait_s = 1e-6 * (double)atomic_load(&g->counters.wait_us);
    double seen_s = 1e-6 * (double)atomic_load(&g->counters.observed_us);
    double planned_s = 1e-6 * (double)atomic_load(&g->counters.predicted_us);
    /* Idle: nothing to claim. Observed and planned: tokens/s while it had work; 0 = not known. */
    return json_pack(
        "{s:i, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:f, s:f, s:f, s:b}", "group", (int)g->id,
        "tokens", (json_int_t)tokens, "samples", (json_int_t)atomic_load(&g->counters.n_samples),
        "micro_batches", (json_int_t)atomic_load(&g->counters.n_batches), "tokens_per_s",
        elapsed_s > 0 ? (double)tokens / elapsed_s : 0.0, "waiting_s", wait_s, "idle_share",
        elapsed_s > 0 ? TD_MIN(1.0, wait_s / elapsed_s) : 0.0, "busy_shares", busy,
        "observed_tokens_per_s", seen_s > 0 ? (double)tokens / seen_s : 0.0, "planned_tokens_per_s",
        planned_s > 0 ? (double)tokens / planned_s : 0.0, "last_done_s",
        1e-6 * (double)atomic_load(&g->counters.last_done_us), "retired", retired);
}

/* What truncation loses so far (td_coverage), NULL when no row was recorded. */
static json_t *coverage_json(td_run_state *run) {
    td_coverage c;
    td_output_coverage_get(run->in->output, &c);
    if (c.n_rows == 0)
        return NULL;
    double n = (double)c.n_rows, p1 = td_coverage_tail_quantile(&c, 0.01),
           p5 = td_coverage_tail_quantile(&c, 0.05), p50 = td_coverage_tail_quantile(&c, 0.5);
    json_t *levels = json_array();
    for (int32_t i = 0; levels && c.n_level_rows && i < c.n_levels; i++)
        json_array_append_new(levels,
                              json_pack("{s:i, s:f, s:f}", "top_k", c.level[i].k, "mean_tail",
                                        c.level[i].sum_tail / (double)c.n_level_rows, "mean_kl",
                                        c.level[i].sum_kl / (double)c.n_level_rows));
    return json_pack("{s:i, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "top_k", c.top_k, "rows",
                     (json_int_t)c.n_rows, "rows_of_kept_shards", (json_int_t)c.n_rows_kept,
                     "mean_mass", 1 - c.sum_tail / n, "p1_mass", 1 - p1, "p5_mass", 1 - p5,
                     "p50_mass", 1 - p50, "mean_tail", c.sum_tail / n, "mean_kl", c.sum_kl / n,
                     "smaller_k", levels);
}

static void write_status(td_progress *p, const view *v, const char *state) {
    td_run_state *run = p->run;
    const td_config *cfg = run->in->cfg;
    json_t *j = td_status_head(cfg, state, p->started), *groups = json_array();
    for (int32_t g = 0; g < run->n_groups; g++) {
        bool retired = td_run_group_verdict(run, &run->groups[g]).retired;
        json_array_append_new(groups, group_json(&run->groups[g], retired, v->elapsed_s));
    }
    json_t *counts =
        json_pack("{s:f, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:o}", "elapsed_s", v->elapsed_s,
                  "samples", (json_int_t)v->n_all_samples, "tokens", (json_int_t)v->n_all_tokens,
                  "rows", (json_int_t)v->n_rows, "tokens_per_s", v->rate, "shards_written",
                  (json_int_t)atomic_load(&run->counters.n_shards_written), "shards_kept",
                  (json_int_t)atomic_load(&run->counters.n_shards_kept), "skipped_samples",
                  (json_int_t)atomic_load(&run->counters.n_bad), "overflow_rows",
                  (json_int_t)atomic_load(&run->counters.n_overflow_rows), "groups", groups);
    if (!j || !counts || json_object_update_new(j, counts) != 0) {
        json_decref(j);
        return;
    }
    const td_faults *f = run->in->faults;
    json_t *lost = f && f->n_lost ? json_array() : NULL;
    for (int32_t i = 0; lost && i < f->n_lost; i++)
        json_array_append_new(lost, json_string(f->lost[i].key));
    if (lost)
        json_object_set_new(j, "lost_devices", lost);
    if (f && f->n_reexec)
        json_object_set_new(j, "reexecutions", json_integer(f->n_reexec));
    bool done = strcmp(state, "done") == 0;
    json_t *coverage = coverage_json(run);
    if (coverage)
        json_object_set_new(j, "truncation", coverage);
    int64_t n_data_shards = atomic_load(&run->counters.n_data_shards);
    if (n_data_shards >= 0)
        json_object_set_new(j, "shards_in_data", json_integer((json_int_t)n_data_shards));
    json_t *devices = td_health_json(p->health);
    if (devices)
        json_object_set_new(j, "devices", devices);
    if (v->fraction >= 0)
        json_object_set_new(j, "fraction", json_real(done ? 1.0 : v->fraction));
    if (v->eta_s >= 0)
        json_object_set_new(j, "eta_s", json_real(done ? 0.0 : v->eta_s));
    /* The last one tells merge how much there is, so it is synced. */
    td_status_write(cfg, j, strcmp(state, "running") != 0 && strcmp(state, "stopping") != 0);
}

/* Prometheus' text format, version 0.0.4. One file may hold several runs of a machine: each has its
 * folder as a label. */
static void write_metrics(td_progress *p, const view *v, const char *state) {
    td_run_state *run = p->run;
    const td_config *cfg = run->in->cfg;
    td_strbuf dir = {0}, out = {0};
    for (const char *s = cfg->output.dir; *s; s++)
        td_strbuf_printf(&dir, *s == '"' || *s == '\\' ? "\\%c" : *s == '\n' ? "\\n" : "%c", *s);
    const struct {
        const char *name, *type, *help;
        double value;
    } m[] = {
        {"tdgen_up", "gauge", "1 while the run is at work", strcmp(state, "running") == 0},
        {"tdgen_done", "gauge", "1 when the run came to its end", strcmp(state, "done") == 0},
        {"tdgen_updated_seconds", "gauge", "Unix time of this file", (double)time(NULL)},
        {"tdgen_samples_total", "counter", "Samples in the folder", (double)v->n_all_samples},
        {"tdgen_tokens_total", "counter", "Tokens in the folder", (double)v->n_all_tokens},
        {"tdgen_recorded_positions_total", "counter", "Positions recorded by this process",
         (double)v->n_rows},
        {"tdgen_shards_written_total", "counter", "Shards written by this process",
         (double)atomic_load(&run->counters.n_shards_written)},
        {"tdgen_skipped_samples_total", "counter", "Samples left out by this process",
         (double)atomic_load(&run->counters.n_bad)},
        {"tdgen_groups_retired", "gauge", "Groups whose devices failed for good",
         (double)td_run_n_retired(run)},
        {"tdgen_tokens_per_second", "gauge", "Over the last seconds", v->rate},
        {"tdgen_fraction", "gauge", "Share of the work that is done; -1: not known", v->fraction},
        {"tdgen_eta_seconds", "gauge", "Until the end; -1: not known", v->eta_s},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(m); i++)
        td_strbuf_printf(&out, "# HELP %s %s\n# TYPE %s %s\n%s{dir=\"%s\",worker=\"%d\"} %.17g\n",
                         m[i].name, m[i].help, m[i].name, m[i].type, m[i].name,
                         dir.data ? dir.data : "", (int)cfg->run.worker_id, m[i].value);
    td_strbuf_printf(&out, "# HELP tdgen_group_tokens_total Tokens of each group\n"
                           "# TYPE tdgen_group_tokens_total counter\n");
    for (int32_t g = 0; g < run->n_groups; g++)
        td_strbuf_printf(&out,
                         "tdgen_group_tokens_total{dir=\"%s\",worker=\"%d\",group=\"%d\"} %lld\n",
                         dir.data ? dir.data : "", (int)cfg->run.worker_id, (int)g,
                         (long long)atomic_load(&run->groups[g].counters.n_tokens));
    td_error err;
    if (!out.oom && !dir.oom &&
        td_file_write_atomic(cfg->run.metrics, out.data, out.len, false, &err) != TD_OK &&
        !p->told_metrics) {
        p->told_metrics = true;
        td_log_warn("run.metrics: %s", err.text);
    }
    td_strbuf_free(&out);
    td_strbuf_free(&dir);
}

/* A driver that hangs can keep whoever asks it: then nothing is asked any more. */
static bool sensors_answer(td_run_state *run) {
    return td_run_n_hung(run) == 0 && !td_run_is_lost(run);
}

void td_progress_tick(td_progress *p, const char *state, bool final) {
    td_run_assert_main(p->run);
    double now = td_time_s();
    bool line_due = now >= p->next_line_s && td_log_is_live();
    bool status_due = now >= p->next_status_s;
    bool log_due = p->log_every_s > 0 && now >= p->next_log_s;
    bool metrics_due = p->run->in->cfg->run.metrics && now >= p->next_metrics_s;
    bool timeline_due = now >= p->next_timeline_s;
    if (!final && !line_due && !status_due && !log_due && !metrics_due && !timeline_due)
        return;
    if (status_due && !final && sensors_answer(p->run))
        td_health_sample(p->health);
    view v = look(p, now);
    char line[384];
    compose_line(p, &v, final, line, sizeof line);
    if (final) {
        td_log_progress("");
        td_log_periodic(line);
        write_status(p, &v, state);
        if (p->run->in->cfg->run.metrics)
            write_metrics(p, &v, state);
        td_timeline_write(p->run->timeline);
        return;
    }
    if (line_due) {
        td_log_progress(line);
        p->next_line_s = now + LINE_EVERY_S;
    }
    if (status_due) {
        write_status(p, &v, state);
        p->next_status_s = now + STATUS_EVERY_S;
    }
    if (metrics_due) {
        write_metrics(p, &v, state);
        p->next_metrics_s = now + METRICS_EVERY_S;
    }
    if (log_due) {
        td_log_periodic(line);
        p->next_log_s = now + p->log_every_s;
    }
    if (timeline_due) {
        td_timeline_write(p->run->timeline);
        p->next_timeline_s = now + TIMELINE_EVERY_S;
    }
}

void td_progress_devices(const td_progress *p, td_run_summary *out) {
    out->devices = td_health_summary(p->health, &out->n_devices);
}
