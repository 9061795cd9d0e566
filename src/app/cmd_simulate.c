/* The planned run in virtual time: nothing of the machine is used, no weight is read. */
#include "app/cmd_simulate.h"

#include <stdio.h>

#include "sim/sim.h"
#include "base/file.h"

static td_status load_job(const td_cmd_simulate_job *job, td_sim_load *load, td_error *err) {
    td_config *cfg = job->cfg;
    cfg->run.batch_tokens = job->plan->batch_tokens;
    if (cfg->simulate.law != TD_LENGTHS_NONE)
        return td_sim_load_make(cfg, job->plan, load, err);
    td_source *src;
    bool needs_tok;
    td_status rc = TD_OK;
    if (!td_path_exists(cfg->data.path))
        return td_error_set(err, TD_E_DATA,
                            "the dataset %s is not there; without it give the job's lengths: "
                            "simulate.lengths=lognormal:512:1:2048 simulate.n_samples=100000",
                            cfg->data.path);
    rc = td_source_needs_tokenizer(cfg, &needs_tok, err);
    if (rc == TD_OK && needs_tok && !job->tok)
        return td_error_set(err, TD_E_MODEL,
                            "the lengths of %s need the tokenizer of %s; without it give the job's "
                            "lengths: simulate.lengths=lognormal:512:1:2048 "
                            "simulate.n_samples=100000",
                            cfg->data.path, cfg->model.path);
    if (rc == TD_OK)
        rc = td_source_open(cfg, job->tok, job->limits, &src, err);
    if (rc != TD_OK)
        return rc;
    rc = td_sim_load_from_source(src, cfg, job->plan, load, err);
    td_source_close(src);
    return rc;
}

td_status td_cmd_simulate(const td_cmd_simulate_job *job, td_error *err) {
    td_sim_load load = {0};
    td_sim_result result = {0};
    td_status rc = load_job(job, &load, err);
    if (rc == TD_OK)
        rc = td_simulate(job->cfg, job->plan, &load, &result, err);
    if (rc == TD_OK && job->timeline)
        rc = td_sim_write_svg(&result, job->plan, job->timeline, err);
    if (rc == TD_OK)
        td_sim_print(&result, job->cfg, job->plan, &load, stdout);
    td_sim_result_free(&result);
    td_sim_load_free(&load);
    return rc;
}
