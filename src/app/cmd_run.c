/* cmd_run.c - the main command: a run, or with --dry-run the plan that it would execute. */
#include "app/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "app/history.h"
#include "app/job.h"
#include "app/outdir.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/text.h"
#include "base/strbuf.h"

static td_status show_assignment(td_job *j, td_error *err) {
    (void)err;
    td_plan_print_assignment(&j->plan, stdout);
    fflush(stdout);
    return TD_OK;
}

static td_status show_warnings(td_job *j, td_error *err) {
    (void)err;
    for (int32_t i = 0; i < j->plan.n_warnings; i++)
        td_log_warn("%s", j->plan.warnings[i]);
    return TD_OK;
}

/* A run that records nothing is no success, however smooth it goes. To `out`, else to the log. */
static void tell_of_nothing(const td_config *cfg, const char *what, const td_data_counts *n,
                            FILE *out) {
    td_strbuf b = {0};
    td_strbuf_printf(&b, "%s: ", what);
    td_data_why_nothing(cfg, n, &b);
    if (out)
        fprintf(out, "%s\n", b.oom ? what : b.data);
    else
        td_log_warn("%s", b.oom ? what : b.data);
    td_strbuf_free(&b);
}

/* Do the statistics say so? They may be estimated. */
static bool foresees_nothing(const td_job *j) {
    return j->stats.n_dataset_rows > 0 && j->stats.n_record_rows == 0;
}

static td_status warn_early(td_job *j, td_error *err) {
    const td_dataset_stats *st = &j->stats;
    const td_data_counts n = {st->n_samples, st->n_tokens, st->n_bad_rows, st->n_overflow_rows};
    (void)err;
    if (foresees_nothing(j))
        tell_of_nothing(
            j->cfg, st->estimated ? "Perhaps nothing will be recorded" : "Nothing will be recorded",
            &n, NULL);
    return TD_OK;
}

/* The text of a failure, once; a stop that was asked for is none. */
static void report_error(const td_error *err) {
    if (err->code == TD_E_STOPPED)
        td_log_info("%s", err->text);
    else if (err->code != TD_OK)
        td_log_error("%s", err->text);
}

/* --- the plan alone --------------------------------------------------------------------------- */

/* Free bytes where the output folder is or will be; 0 when that cannot be told. */
static uint64_t free_disk_bytes(const char *dir) {
    char *p = td_strdup(dir);
    uint64_t n = 0;
    struct statvfs vfs;
    while (p) {
        if (statvfs(p[0] ? p : "/", &vfs) == 0) {
            n = (uint64_t)vfs.f_bavail * vfs.f_frsize;
            break;
        }
        char *slash = strrchr(p, '/');
        if (!slash) {
            if (strcmp(p, ".") == 0)
                break;
            strcpy(p, p[0] ? "." : "");
            continue;
        }
        *slash = '\0';
    }
    free(p);
    return n;
}

static td_status show_details(td_job *j, td_error *err) {
    (void)err;
    /* A run is told so by its data source. */
    if (j->cfg->data.max_length > j->model.max_positions)
        td_log_warn("data.max_length = %d is above the model's own limit of %d positions",
                    j->cfg->data.max_length, j->model.max_positions);
    td_plan_print_details(&j->plan, &j->model, free_disk_bytes(j->cfg->output.dir), stdout);
    /* A folder of another machine's run is not here. */
    if (!j->cfg->devices.inventory)
        td_outdir_describe(j, stdout);
    return TD_OK;
}

int td_cmd_dry_run(const td_run_options *opt) {
    static const td_job_step steps[] = {td_job_plan, show_assignment, show_details, warn_early};
    td_job j;
    td_error err = {0};
    bool nothing = false;
    td_run_catch_signals();
    td_status rc =
        td_job_configure(&j, true, opt->config_path, opt->overrides, opt->n_overrides, &err);
    if (rc == TD_OK) {
        rc = td_job_take(&j, steps, TD_ARRAY_LEN(steps), &err);
        if (rc == TD_OK && opt->restart)
            puts("With --restart what is in the output folder would be moved aside first");
        nothing = rc == TD_OK && foresees_nothing(&j) && !j.stats.estimated;
        td_job_close(&j);
    }
    report_error(&err);
    return nothing ? TD_EXIT_PARTIAL : td_status_exit_code(rc);
}

/* --- the run ---------------------------------------------------------------------------------- */

/* Does not return when the program starts anew. */
static int after_loss(td_job *j, const td_fault *fault, char *const *argv, td_error *err) {
    td_loss loss = {
        .fault = fault, .plan = &j->plan, .cfg = j->cfg, .output = j->output, .argv = argv};
    j->abandoned = true;
    td_run_arm_watchdog();
    return td_recover_after_loss(&j->recovery, &loss, err);
}

/* What a person reads at the end, and the exit code that says how it went. quiet: only the log is read. */
static int conclude(td_job *j, td_status rc, const td_run_summary *summary, bool quiet, FILE *out) {
    int code = td_status_exit_code(rc);
    const td_faults *faults = &j->recovery.faults;
    td_output_totals totals;
    if (rc == TD_E_DEVICE && summary->n_hung && summary->n_hung == summary->n_retired)
        code = TD_EXIT_HUNG;
    if (rc != TD_OK && rc != TD_E_STOPPED)
        return code;
    td_output_totals_get(j->output, &totals);
    td_run_summary_print(summary, &j->plan, j->output, out);
    td_faults_print(faults, out);
    if (rc != TD_OK)
        return code;
    if (summary->n_bad_samples || summary->n_failures || summary->n_retired || totals.n_skipped ||
        faults->n_lost)
        code = TD_EXIT_PARTIAL;
    /* A worker without a shard of its own has nothing to record, and that is all right. */
    if (totals.n_rows == 0 && totals.n_shards > 0) {
        const td_data_counts n = {totals.n_samples, totals.n_tokens, totals.n_skipped,
                                  summary->n_overflow_rows};
        tell_of_nothing(j->cfg, "Nothing was recorded", &n, out);
        if (quiet)
            tell_of_nothing(j->cfg, "Nothing was recorded", &n, NULL);
        code = TD_EXIT_PARTIAL;
    }
    td_faults_remove(j->cfg->output.dir);
    if (summary->n_shards_written == 0)
        fprintf(out, "%s was complete already: nothing was computed\n", j->cfg->output.dir);
    fprintf(out, "Look at it with: tdgen inspect %s\n", j->cfg->output.dir);
    return code;
}

/* A terminal's lines are broken to fit; not the command at the end, which is there to be copied. */
static void show_report(char *text) {
    char *command = strstr(text, "\nLook at it with:");
    if (!isatty(STDOUT_FILENO)) {
        fputs(text, stdout);
        return;
    }
    if (!command) {
        td_text_flow(text, td_text_columns(stdout), stdout);
        return;
    }
    *command = '\0';
    td_text_flow(text, td_text_columns(stdout), stdout);
    fputs(command + 1, stdout);
    *command = '\n';
}

/* The closing report is for who waits, and for who comes back later: OUT/run.json keeps it, after the
 * plan that was executed. */
static int report(td_job *j, td_status rc, const td_run_summary *summary, bool quiet,
                  const td_error *err) {
    char *text = NULL;
    size_t n = 0, plan_bytes = 0;
    FILE *out = open_memstream(&text, &n);
    if (out) {
        td_plan_print_assignment(&j->plan, out);
        td_plan_print_details(&j->plan, &j->model, 0, out);
        fflush(out);
        plan_bytes = n;
    }
    int code = conclude(j, rc, summary, quiet, out ? out : stdout);
    if (out)
        fclose(out);
    if (text)
        td_log_record(text + plan_bytes);
    if (text && !quiet)
        show_report(text + plan_bytes);
    td_history_end(j, code, err, text);
    free(text);
    return code;
}

static int run(td_job *j, const td_run_options *opt, td_error *err) {
    td_run_summary summary = {0};
    td_status rc = td_job_run(j, &summary, err);
    int code = rc == TD_E_DEVICE_LOST ? after_loss(j, &summary.fault, opt->argv, err)
                                      : report(j, rc, &summary, opt->quiet, err);
    if (summary.output_busy)
        j->output = NULL; /* its writer is at work: the next execution puts the folder in order */
    td_run_summary_free(&summary);
    return code;
}

static td_status say_nothing(td_job *j, td_error *err) {
    (void)j;
    (void)err;
    return TD_OK;
}

int td_cmd_run(const td_run_options *opt) {
    static const td_job_step look_steps[] = {td_job_recover, td_job_plan};
    const td_job_step steps[] = {td_job_measure_gpus, opt->quiet ? say_nothing : show_assignment,
                                 show_warnings, warn_early, td_job_open};
    td_job j;
    td_error err = {0};
    td_run_catch_signals();
    td_status rc =
        td_job_configure(&j, false, opt->config_path, opt->overrides, opt->n_overrides, &err);
    if (rc != TD_OK) {
        report_error(&err);
        return td_status_exit_code(rc);
    }
    int code = TD_EXIT_OK;
    bool complete = false;
    if (opt->restart && !td_recover_is_reexecution())
        rc = td_outdir_move_aside(j.cfg->output.dir, &err);
    if (rc == TD_OK)
        rc = td_job_take(&j, look_steps, TD_ARRAY_LEN(look_steps), &err);
    if (rc == TD_OK)
        rc = td_outdir_complete(&j, opt->quiet ? NULL : stdout, &complete, &code, &err);
    if (rc == TD_OK && complete) {
        td_job_close(&j);
        return code;
    }
    j.argv = opt->argv;
    if (rc == TD_OK)
        rc = td_job_take(&j, steps, TD_ARRAY_LEN(steps), &err);
    if (rc == TD_OK) {
        code = run(&j, opt, &err);
    } else if (rc == TD_E_DEVICE_LOST && (j.opening || j.devices)) {
        td_fault fault = {0};
        td_job_describe_loss(&j, &err, &fault);
        code = after_loss(&j, &fault, opt->argv, &err);
    } else {
        code = td_status_exit_code(rc);
        td_beat_stop(j.beat, &err);
        if (j.beat)
            td_history_end(&j, code, &err, NULL);
        j.beat = NULL;
    }
    report_error(&err);
    if (j.abandoned)
        td_job_leave(&j, code);
    td_job_close(&j);
    return code;
}
