/* job.h - one job from configuration to finished folder, as steps that read top to bottom.
 *
 * A step takes the job one step further and leaves it whole, also on failure; td_job_close takes
 * down whatever is there. A command is a short list of steps (cmd_run.c, against.c):
 *
 *   td_job_configure                  run.ini and overrides -> cfg, const from then on
 *   td_job_recover                    what an earlier execution of this process left
 *   td_job_plan                       = td_job_read_teacher    config.json, capture spec
 *                                       td_job_look_at_data    dataset statistics
 *                                       td_job_find_devices    inventory
 *                                       td_job_find_speeds     of CPUs measured, of GPUs remembered
 *                                       td_job_make_plan       without devices that were lost
 *   td_job_open                       = td_job_open_source
 *                                       td_job_open_weights    headers only
 *                                       td_job_open_output     lock, identity, what is done
 *                                       td_job_open_devices
 *                                       td_job_reserve_memory
 *                                       td_job_load_weights
 *                                       td_job_bind_weights    the manifest is complete
 *   td_job_run
 *   td_job_close
 *
 * What is quick to refuse comes before what takes long. A signal between two steps stops there
 * (TD_E_STOPPED); what an earlier run committed is untouched. One thread.
 */
#ifndef TDGEN_APP_JOB_H
#define TDGEN_APP_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "app/restart.h"
#include "capture/capture.h"
#include "config/config.h"
#include "data/data.h"
#include "device/device.h"
#include "model/model.h"
#include "plan/plan.h"
#include "record/record.h"
#include "run/run.h"
#include "tokenizer/tokenizer.h"

typedef struct td_job {
    const td_config *cfg; /* &own_cfg */
    /* Only the plan is wanted: a dataset, a tokenizer or GPUs that are not there are warned of, and
     * devices.inventory may stand in for the machine. */
    bool only_plan;

    td_config own_cfg;
    td_recovery recovery; /* {0} without td_job_recover */
    td_model_config model;
    td_tokenizer *tok;       /* NULL: rows come as ids, or (only_plan) it could not be loaded */
    td_capture_spec capture; /* resolved once; the plan's copy is what everybody takes */
    td_compute compute;      /* asked of the plan: cfg->model.compute, or what was settled before */
    td_source_limits limits;
    td_dataset_stats stats;

    td_device_info *info; /* [n_info] of the machine's devices; NULL with an inventory file */
    int32_t n_info;
    bool assumed;    /* only_plan: info are GPUs that this machine does not have */
    int32_t *number; /* [n_info] the plan's number of each, -1 = none */
    td_inventory inventory;
    int32_t n_unmeasured; /* chosen GPUs whose speed is not remembered */
    td_plan plan;
    int32_t n_groups; /* of the plan's groups, the first so many are opened: all, unless lowered */

    td_source *source;
    td_weights *weights;
    td_output *output;
    td_beat *beat;       /* from the moment that the folder is ours until the run is at work */
    td_device **devices; /* opened, indexed like plan.inventory.devices */
    const td_device_info *opening; /* the one that is being opened or measured, or failed there */
    char weights_stamp[17];        /* history.h; "": not known */
    char *const *argv; /* of the process, for the history; NULL: a job that is none of a run */
    bool abandoned;    /* devices were lost or hang: nothing of them may be touched any more */
} td_job;

typedef td_status (*td_job_step)(td_job *j, td_error *err);
/* Takes the steps in order, up to the first failure or a signal. */
td_status td_job_take(td_job *j, const td_job_step *steps, size_t n_steps, td_error *err);

/* Begins a job. path NULL: overrides alone. On failure there is nothing to close. */
td_status td_job_configure(td_job *j, bool only_plan, const char *path,
                           const char *const *overrides, size_t n_overrides, td_error *err);
td_status td_job_recover(td_job *j, td_error *err);
/* {0} allowed. Not after `abandoned`: td_job_leave. */
void td_job_close(td_job *j);
/* The end of a process whose devices must not be touched: its threads end with it. */
void td_job_leave(td_job *j, int code) __attribute__((noreturn));

td_status td_job_plan(td_job *j, td_error *err);
td_status td_job_read_teacher(td_job *j, td_error *err);
td_status td_job_look_at_data(td_job *j, td_error *err);
td_status td_job_find_devices(td_job *j, td_error *err);
td_status td_job_find_speeds(td_job *j, td_error *err);
/* Once for each inventory that td_job_find_devices made. */
td_status td_job_make_plan(td_job *j, td_error *err);
/* Measures the chosen GPUs whose speed is not remembered, each once in its life, and plans again
 * with what came out. What is refused is refused before that, by the plan with estimated speeds. */
td_status td_job_measure_gpus(td_job *j, td_error *err);

td_status td_job_open(td_job *j, td_error *err);
td_status td_job_open_source(td_job *j, td_error *err);
td_status td_job_open_weights(td_job *j, td_error *err);
/* What makes this run the one that it is, beside its weights. The source is open. */
td_status td_job_identity(td_job *j, td_identity *out, td_error *err);
td_status td_job_open_output(td_job *j, td_error *err);
td_status td_job_open_devices(td_job *j, td_error *err);
td_status td_job_reserve_memory(td_job *j, td_error *err);
td_status td_job_load_weights(td_job *j, td_error *err);
td_status td_job_bind_weights(td_job *j, td_error *err);

/* To the end of the data; *summary is filled also on failure, and freed by the caller. */
td_status td_job_run(td_job *j, td_run_summary *summary, td_error *err);

/* The machine's device that the plan calls so; NULL when there is none. */
const td_device_info *td_job_info_of(const td_job *j, const td_plan_device *d);
/* Which device was lost before td_job_run could tell: nothing was in flight there. */
void td_job_describe_loss(const td_job *j, const td_error *err, td_fault *out);

#endif
