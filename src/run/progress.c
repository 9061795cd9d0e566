/* progress.c - what a person watching sees: a live line on a terminal, a plain line in the log
 * every half minute, status.json every second. All from counters that the threads bump; nothing
 * here holds them up. */
#include "run/progress.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "run/health.h"
#include "base/log.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"

#define LINE_EVERY_S 0.5
#define STATUS_EVERY_S 1.0
#define LOG_EVERY_S 30.0
#define RATE_WINDOW_S 15.0

struct td_progress {
    td_run_state *run;
    char *status_path;
    td_health *health; /* NULL: no sensors */
    time_t started;
    double next_line_s, next_status_s, next_log_s;
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
    p->status_path = td_asprintf("%s/status.json", run->in->cfg->output.dir);
    double now = td_time_s();
    p->next_log_s = now + LOG_EVERY_S;
    p->mark_s[0] = p->mark_s[1] = now;
    if (!p->status_path) {
        td_progress_free(p);
        return NULL;
    }
    return p;
}

bool td_progress_free(td_progress *p) {
    if (!p)
        return true;
    bool ended = td_health_free(p->health);
    free(p->status_path);
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

static void stamp(time_t t, char *buf, size_t n) {
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(buf, n, "%Y-%m-%dT%H:%M:%SZ", &tm);
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
    char started[32], updated[32];
    stamp(p->started, started, sizeof started);
    stamp(time(NULL), updated, sizeof updated);
    json_t *groups = json_array();
    for (int32_t g = 0; g < run->n_groups; g++) {
        bool retired = td_run_group_verdict(run, &run->groups[g]).retired;
        json_array_append_new(groups, group_json(&run->groups[g], retired, v->elapsed_s));
    }
    json_t *j = json_pack("{s:s, s:s, s:s, s:i, s:f, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:o}",
                          "state", state, "started", started, "updated", updated, "pid",
                          (int)getpid(), "elapsed_s", v->elapsed_s, "samples",
                          (json_int_t)v->n_all_samples, "tokens", (json_int_t)v->n_all_tokens,
                          "rows", (json_int_t)v->n_rows, "tokens_per_s", v->rate, "shards_written",
                          (json_int_t)atomic_load(&run->counters.n_shards_written), "shards_kept",
                          (json_int_t)atomic_load(&run->counters.n_shards_kept), "skipped_samples",
                          (json_int_t)atomic_load(&run->counters.n_bad), "groups", groups);
    if (!j)
        return;
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
    json_object_set_new(j, "worker_id", json_integer(run->in->cfg->run.worker_id));
    json_object_set_new(j, "total_workers", json_integer(run->in->cfg->run.total_workers));
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
    char *text = json_dumps(j, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    json_decref(j);
    td_error err;
    /* The status is a courtesy: a full disk ends the run where it matters, at the shards. The last one
     * tells merge how much there is, so it is synced. */
    const bool last = strcmp(state, "running") != 0 && strcmp(state, "stopping") != 0;
    if (text && td_file_write_atomic(p->status_path, text, strlen(text), last, &err) != TD_OK)
        td_log_debug("%s", err.text);
    free(text);
}

/* A driver that hangs can keep whoever asks it: then nothing is asked any more. */
static bool sensors_answer(td_run_state *run) {
    return td_run_n_hung(run) == 0 && !td_run_is_lost(run);
}

void td_progress_tick(td_progress *p, const char *state, bool final) {
    td_run_assert_main(p->run);
    double now = td_time_s();
    bool line_due = now >= p->next_line_s && td_log_is_live();
    bool status_due = now >= p->next_status_s, log_due = now >= p->next_log_s;
    if (!final && !line_due && !status_due && !log_due)
        return;
    if (status_due && !final && sensors_answer(p->run))
        td_health_sample(p->health);
    view v = look(p, now);
    char line[384];
    compose_line(p, &v, final, line, sizeof line);
    if (final) {
        td_log_progress("");
        td_log_file_only(line);
        write_status(p, &v, state);
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
    if (log_due) {
        td_log_file_only(line);
        td_timeline_write(p->run->timeline);
        p->next_log_s = now + LOG_EVERY_S;
    }
}

void td_progress_devices(const td_progress *p, td_run_summary *out) {
    out->devices = td_health_summary(p->health, &out->n_devices);
}
