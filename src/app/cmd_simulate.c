/* cmd_simulate.c - the planned run in virtual time: nothing of the machine is used, no weight is
 * read. */
#include "app/commands.h"

#include <stdio.h>

#include "app/job.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "sim/sim.h"

/* A job that is only stated needs no dataset. */
static td_status look_at_lengths(td_job *j, td_error *err) {
    if (j->cfg->simulate.law == TD_LENGTHS_NONE)
        return td_job_look_at_data(j, err);
    td_cost_model cost;
    td_cost_model_init(&j->model, &cost);
    td_sim_stats(j->cfg, cost.window, &j->stats);
    return TD_OK;
}

static td_status load_job(td_job *j, td_sim_load *load, td_error *err) {
    const td_config *cfg = j->cfg;
    if (cfg->simulate.law != TD_LENGTHS_NONE)
        return td_sim_load_make(cfg, &j->plan, load, err);
    bool needs_tok;
    td_status rc = TD_OK;
    if (!td_dataset_is_there(cfg))
        return td_error_set(err, TD_E_DATA,
                            "the dataset %s is not there; without it give the job's lengths: "
                            "simulate.lengths=lognormal:512:1:2048 simulate.n_samples=100000",
                            cfg->data.path);
    rc = td_source_needs_tokenizer(cfg, &needs_tok, err);
    if (rc == TD_OK && needs_tok && !j->tok)
        return td_error_set(err, TD_E_MODEL,
                            "the lengths of %s need the tokenizer of %s; without it give the job's "
                            "lengths: simulate.lengths=lognormal:512:1:2048 "
                            "simulate.n_samples=100000",
                            cfg->data.path, cfg->model.path);
    if (rc == TD_OK)
        rc = td_job_open_source(j, err);
    return rc == TD_OK ? td_sim_load_from_source(j->source, cfg, &j->plan, load, err) : rc;
}

static td_status simulate(td_job *j, const char *timeline, td_error *err) {
    td_sim_load load = {0};
    td_sim_result result = {0};
    for (int32_t i = 0; i < j->plan.n_warnings; i++)
        td_log_warn("%s", j->plan.warnings[i]);
    td_status rc = load_job(j, &load, err);
    if (rc == TD_OK)
        rc = td_simulate(j->cfg, &j->plan, &load, &result, err);
    if (rc == TD_OK && timeline)
        rc = td_sim_write_svg(&result, &j->plan, timeline, err);
    if (rc == TD_OK)
        td_sim_print(&result, j->cfg, &j->plan, &load, stdout);
    td_sim_result_free(&result);
    td_sim_load_free(&load);
    return rc;
}

int td_cmd_simulate(const td_run_options *opt) {
    static const td_job_step steps[] = {td_job_read_teacher, look_at_lengths, td_job_find_devices,
                                        td_job_find_speeds, td_job_make_plan};
    td_job j;
    td_error err = {0};
    td_run_catch_signals();
    td_status rc =
        td_job_configure(&j, true, opt->config_path, opt->overrides, opt->n_overrides, &err);
    if (rc == TD_OK) {
        rc = td_job_take(&j, steps, TD_ARRAY_LEN(steps), &err);
        if (rc == TD_OK)
            rc = simulate(&j, opt->timeline, &err);
        td_job_close(&j);
    }
    if (rc == TD_E_STOPPED)
        td_log_info("%s", err.text);
    else if (rc != TD_OK)
        td_log_error("%s", err.text);
    return td_status_exit_code(rc);
}
