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
 * fail are to blame (src/run/blame.h has the rules). A micro-batch that shows no sign of life for
 * max(60 s, 20 x its expected time) says that the device hangs: the group is retired and its
 * session never touched again. TD_E_DEVICE_LOST from any group ends the run at once: nothing that
 * is not committed is kept, no device is waited for, and the caller starts the program anew
 * (td_faults).
 */
#ifndef TDGEN_RUN_RUN_H
#define TDGEN_RUN_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "config/config.h"
#include "data/data.h"
#include "device/device.h"
#include "model/model.h"
#include "plan/plan.h"
#include "record/record.h"
#include "base/status.h"

/* --- lost devices --------------------------------------------------------------------------------
 *
 * What is remembered of them from one execution of a run to the next (faults.c).
 *
 * A device that fails so that its process can use no device any more (TD_E_DEVICE_LOST) ends that
 * process. OUT/faults.json carries over what the next one has to know: which devices to leave out,
 * which samples were in flight on the device that failed (the suspects), and how often a process
 * was replaced.
 *
 * Rules:
 *   - a suspect is computed alone, so that a second failure accuses it and nothing else
 *   - a suspect that was alone in flight when two devices failed, or at the third such failure, is to
 *     blame itself: the devices that failed with it are given back, and the sample is skipped or
 *     ends the run, as run.on_bad_sample says. A device that failed while it was one of several does
 *     not count: two devices that fail for reasons of their own would blame an innocent sample. When
 *     it then fails alone elsewhere, the first device is given back, to try it alone there, too
 *   - any other failure costs the device: it is left out until the user starts the run again
 *
 * A device is known by its UUID, CPU devices by their name; a sample by its dataset row and the
 * token in that row where it begins, whatever batch_tokens is. The file is ours, but it is read
 * like anybody's: bounded and validated, and one that makes no sense is reported and not used.
 *
 * Threads: one at a time; td_run only reads.
 */

#define TD_FAULTS_NAME "faults.json"
enum {
    TD_FAULTS_MAX_REEXEC = 8, /* executions that may follow the one the user started */
    TD_FAULTS_MAX_TRIES = 3,
    TD_FAULTS_MAX_SUSPECTS = 1 << 16,
    TD_FAULTS_MAX_LOST = 64,
    TD_FAULTS_MAX_MACHINE = 4096,
    TD_DEVICE_KEY_SIZE = 48
};

typedef struct td_suspect {
    int64_t row, start; /* td_sample */
    int32_t tries;      /* failures that it was in flight at; from the first alone on
                                         * another device, those alone */
    /* The first two devices on which it was alone, "" = none. shared: device[0] failed with other
     * samples in flight, which accuses none of them. */
    char device[2][TD_DEVICE_KEY_SIZE];
    char name[2][32]; /* what they were called */
    bool shared, blamed;
} td_suspect;

typedef struct td_lost_device {
    char key[TD_DEVICE_KEY_SIZE], name[32];
    char when[24]; /* UTC, "2026-01-31T12:00:00Z" */
    char why[256];
} td_lost_device;

typedef struct td_faults {
    td_suspect *suspects; /* [n_suspects] by row, then start */
    int32_t n_suspects;
    td_lost_device *lost; /* [n_lost] left out of the plan, in the order in which they failed */
    int32_t n_lost;
    /* The machine as the user's own execution saw it: the key of device i. A card that fell off the
     * bus is not enumerated any more, and the numbers of those behind it shift. */
    char (*machine)[TD_DEVICE_KEY_SIZE]; /* [n_machine] */
    int32_t n_machine;
    char compute[8]; /* resolved there; "auto" must not come to another end without a device */
    int32_t n_reexec;
    int64_t pid; /* of the process that wrote it; a re-execution keeps it */
} td_faults;

/* One failure, as td_run reports it. */
typedef struct td_fault_sample {
    int64_t row, start;
} td_fault_sample;
typedef struct td_fault {
    char key[TD_DEVICE_KEY_SIZE], name[32]; /* of the device that failed; "" = no failure */
    char why[512];
    td_fault_sample *samples; /* [n_samples] in flight there, oldest micro-batch first; owned */
    int32_t n_samples;
} td_fault;
void td_fault_free(td_fault *f); /* NULL and {0} allowed */

/* UUID, or name where there is none. */
const char *td_device_key(const td_device_info *info);
/* Which of n devices failed first: the one that says so itself, else the one that the message of
 * the error names last (the others only waited for it). -1: cannot be told. Entries may be NULL. */
int32_t td_faults_culprit(td_device *const *devices, int32_t n, const char *message);

/* Reads DIR/faults.json; {0} when there is none. A file that makes no sense is TD_E_OUTPUT, with
 * *out {0}: the caller warns and goes on without. */
td_status td_faults_load(const char *dir, td_faults *out, td_error *err);
/* Atomic and durable. */
td_status td_faults_save(const td_faults *f, const char *dir, td_error *err);
void td_faults_remove(const char *dir); /* not there: fine */
void td_faults_free(td_faults *f);      /* {0} and NULL allowed */

/* The user started the run himself: devices get another chance, samples stay suspect. */
void td_faults_forget_devices(td_faults *f);
bool td_faults_is_lost(const td_faults *f, const char *key);
/* NULL: not a suspect. */
const td_suspect *td_faults_find(const td_faults *f, int64_t row, int64_t start);

/* Applies the rules to a failure. *blamed points to the suspect that is to blame, or is NULL: then
 * the device counts as lost. */
td_status td_faults_note(td_faults *f, const td_fault *fault, const td_suspect **blamed,
                         td_error *err);
/* TD_E_MODEL: what a run under on_bad_sample = fail says of a blamed sample. */
td_status td_faults_blame_error(const td_suspect *s, const char *dir, td_error *err);
/* Lines for the closing report; nothing without failures. */
void td_faults_print(const td_faults *f, FILE *out);

/* --- a run ------------------------------------------------------------------------------------ */

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
    int64_t n_bad_samples;                      /* skipped in this run: samples and rows */
    int64_t n_overflow_rows, n_overflow_tokens; /* tokens that were cut off or skipped with them */
    int32_t n_groups, n_retired, n_hung;        /* those that hung are retired, too */
    int32_t n_failures;                         /* of all groups, also where they worked again */
    td_group_summary *groups;                   /* freed by td_run_summary_free */
    td_device_summary *devices;                 /* [n_devices] those with sensors; freed likewise */
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

/* status.json from the moment that the output folder is this process's until td_run writes it: state
 * "starting", with the step, and a heartbeat by a thread of its own while weights are read. */
typedef struct td_beat td_beat;
/* NULL when out of memory: the calls below then do nothing. cfg is borrowed, `step` static. */
td_beat *td_beat_start(const td_config *cfg, const char *step);
void td_beat_step(td_beat *b, const char *step);
/* failed NULL: the run takes over. Else the status says so. Ends b. */
void td_beat_stop(td_beat *b, const td_error *failed);

/* From now on the process ends with TD_EXIT_HUNG unless it ends, or is replaced, within 30 s. */
void td_run_arm_watchdog(void);
/* Seconds without a sign of life after which a device hangs, at least: 60. Both times are what
 * TDGEN_DEBUG_WATCHDOG_S in the environment says, for tests. */
double td_run_patience_s(void);
/* What a person reads at the end, on `out`. */
void td_run_summary_print(const td_run_summary *s, const td_plan *plan, td_output *output,
                          FILE *out);

#endif
