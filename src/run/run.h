/* run.h - the life of a run: feeder, group threads, writer, progress, shutdown.
 *
 * Threads of a run:
 *   main      starts and joins the others, shows progress, watches for signals
 *   feeder    reads rows, tokenises, packs, opens shard files, publishes micro-batches
 *   group g   claims micro-batches, drives its session (its devices, its streams), puts the rows
 *             into the shard files
 *   writer    commits shards whose last micro-batch is done (fsync keeps no group waiting)
 * and, below the device API, whatever threads the devices use.
 *
 * Devices that fail. After TD_E_DEVICE the group's micro-batches go to the others, each to be
 * computed alone; the group is retired when they succeed elsewhere, and works again, with a new
 * session, when they fail elsewhere too: then their samples are computed one by one and those that
 * fail are to blame (src/sched/blame.h has the rules). A micro-batch that shows no sign of life for
 * max(60 s, 20 x its expected time) says that the device hangs: the group is retired and its
 * session never touched again. TD_E_DEVICE_LOST from any group ends the run at once: nothing that
 * is not committed is kept, no device is waited for, and the caller starts the program anew
 * (faults.h).
 */
#ifndef TDGEN_RUN_H
#define TDGEN_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "config/config.h"
#include "data/data.h"
#include "run/faults.h"
#include "model/model.h"
#include "plan/plan.h"
#include "record/record.h"
#include "base/status.h"

typedef struct td_run_input {
    const td_config *cfg;
    const td_plan *plan;
    const td_weights *weights; /* loaded for all stages of the plan */
    td_device *const *devices; /* opened, indexed like plan->inventory.devices */
    td_source *source; /* at its beginning; its batch_tokens are lowered when the devices have not
                          enough memory */
    td_output *output; /* weights bound */
    const td_faults *faults; /* suspects are computed alone, blamed samples not; NULL = none */
} td_run_input;

typedef struct td_group_summary {
    int64_t n_tokens, n_rows, n_samples, n_batches;
    double wait_s;      /* nothing to claim */
    double finished_s;  /* when its thread ended, after the start of the run */
    double last_done_s; /* when its last micro-batch was done, likewise; 0: none was */
    /* Of what it completed: how long it took while it had work, and by the cost model (0 = the
     * plan knows no speeds). */
    double observed_s, predicted_s;
    double stage_busy_s[64];
    /* Share of time in which the stage's device computed while the pipeline was full: between the
     * first micro-batch done and the last that left as many in flight as there are stages. -1: not
     * known (too few micro-batches). Zero for a device that failed. */
    double stage_steady[64];
    double op_s[TD_OP_COUNT]; /* with TDGEN_PROFILE=1: of all stages, by operation; else 0 */
    int32_t n_stages;
    int32_t n_failures, n_reinstated; /* of its devices; memory that was short does not count */
    bool retired, hung;               /* for good */
    char retired_why[256];
} td_group_summary;

/* What the sensors of a device said during the run. */
typedef struct td_device_summary {
    char name[32], model[128];
    double mean_utilization, mean_power_w; /* percent, watts; -1: not told */
    int32_t max_temperature_c;             /* 0: not told */
    double throttled_share;                /* of the samples, with clocks held down */
    char throttle[64];                     /* why, the latest */
    int64_t new_ecc_errors, last_xid;
} td_device_summary;

typedef struct td_run_summary {
    double wall_s;
    int64_t n_tokens, n_samples, n_rows; /* computed in this run */
    int64_t n_shards_written, n_shards_kept;
    int64_t n_bad_samples; /* skipped in this run: samples and rows */
    int64_t n_overflow_rows;
    int32_t n_groups, n_retired, n_hung; /* those that hung are retired, too */
    int32_t n_failures;                  /* of all groups, also where they worked again */
    td_group_summary *groups;            /* freed by td_run_summary_free */
    td_device_summary *devices;          /* [n_devices] those with sensors; freed likewise */
    int32_t n_devices;
    bool stopped;   /* by a signal */
    td_fault fault; /* with TD_E_DEVICE_LOST: what failed, and what was in flight there */
    /* A device hangs or was lost: sessions, weights and devices were left alone and must stay so;
     * the process is to end with _exit, or to be replaced. */
    bool abandoned;
    bool output_busy; /* with abandoned: even the writer did not end, the output is in use */
} td_run_summary;

/* Catches SIGINT and SIGTERM from now to the end of the process: the first one is a request that
 * td_run and its callers look for, a second one ends the process at once with TD_EXIT_STOPPED. */
void td_run_catch_signals(void);
bool td_run_stop_requested(void);
/* TD_E_STOPPED with the advice to run again. */
td_status td_run_stopped_error(td_error *err);

/* Runs to the end of the data. TD_OK also when samples were skipped or groups retired: the summary
 * says so. TD_E_STOPPED after a caught signal. TD_E_DEVICE_LOST: see out->fault. On any failure
 * what was committed stays, *out is valid all the same.
 */
td_status td_run(const td_run_input *in, td_run_summary *out, td_error *err);
void td_run_summary_free(td_run_summary *s);

/* From now on the process ends with TD_EXIT_HUNG unless it ends, or is replaced, within 30 s. */
void td_run_arm_watchdog(void);
/* Seconds without a sign of life after which a device hangs, at least: 60. Both times are what
 * TDGEN_DEBUG_WATCHDOG_S in the environment says, for tests. */
double td_run_patience_s(void);
/* What a person reads at the end, on `out`. */
void td_run_summary_print(const td_run_summary *s, const td_plan *plan, td_output *output,
                          FILE *out);

#endif
