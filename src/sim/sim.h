/* sim.h - a run in virtual time: the plan, the work queue and the claim code of a real run,
 * driven by an event loop in place of threads and devices.
 *
 *   td_sim_stats      (a stated job) what the planner wants to know of its lengths
 *   td_plan_make      as for a run
 *   td_sim_load_make  or td_sim_load_from_source: the micro-batches, packed by the data room
 *   td_simulate       -> td_sim_result
 *   td_sim_print, td_sim_write_svg
 *
 * What is modelled: every stage of a group is a server that takes td_cost_stage_seconds, times 1 +
 * noise * u with u uniform in [-1, 1) drawn for each micro-batch and stage; a group has as many
 * micro-batches in flight as its session would; the feeder reads in no time but keeps the bounds of
 * open shards and of the queue; a group that fails is retired and its work requeued as in a run.
 * What is not: reading and tokenising, loading weights, commits, the start of devices.
 *
 * Deterministic: one thread, and every random number is a function of (seed, what it is for,
 * index).
 */
#ifndef TDGEN_SIM_SIM_H
#define TDGEN_SIM_SIM_H

#include <stdint.h>
#include <stdio.h>
#include "data/data.h"
#include "plan/plan.h"
#include "base/status.h"

/* Length of sample i of the job that cfg->simulate states (law is not NONE), in tokens. */
int32_t td_sim_length(const td_config *cfg, int64_t i);
/* All of its lengths. window: td_cost_model's. */
void td_sim_stats(const td_config *cfg, int32_t window, td_dataset_stats *out);

/* The micro-batches of a job in the order of their publication. */
typedef struct td_sim_batch {
    td_work_size size;
    int32_t n_samples;
    int32_t shard; /* counted from 0 over the shards that are there */
} td_sim_batch;

typedef struct td_sim_sample {
    int32_t n_tokens, n_rows;
} td_sim_sample;

typedef struct td_sim_load {
    td_sim_batch *batches;
    td_sim_sample *samples;                 /* [n_samples] in dataset order */
    int64_t n_batches, n_samples, n_tokens; /* samples that have rows to compute */
    int32_t n_shards;
    size_t cap, samples_cap;
} td_sim_load;

/* Packs with plan->batch_tokens and output.shard_samples. On failure *out is freed. */
td_status td_sim_load_make(const td_config *cfg, const td_plan *plan, td_sim_load *out,
                           td_error *err);
/* Reads a source that packs already (td_source_limits.batch_tokens) to its end, and keeps
 * this worker's shards. */
td_status td_sim_load_from_source(td_source *src, const td_config *cfg, const td_plan *plan,
                                  td_sim_load *out, td_error *err);
void td_sim_load_free(td_sim_load *l);

enum { TD_SIM_BINS = 120 };

typedef struct td_sim_group {
    int64_t n_batches, n_tokens;
    double *busy_s;     /* [n_stages] */
    double last_done_s; /* its last micro-batch */
    double failed_s;    /* < 0: it did not fail */
    float *bins;        /* [TD_SIM_BINS] busy device-seconds in each slice of bin_s */
} td_sim_group;

typedef struct td_sim_result {
    double wall_s;
    double ideal_s;       /* total work over total rate (until each failure), without noise */
    double static_s;      /* the samples split 1/N by count, contiguous, with the same noise */
    td_sim_group *groups; /* [n_groups] */
    int32_t n_groups;
    int64_t n_claims, n_requeued; /* queue operations; micro-batches that came back */
    int64_t n_released;           /* held claims that went to a faster group */
    int32_t max_open;
    double bin_s;
} td_sim_result;

/* TD_E_CONFIG when the devices' speeds are unknown or more groups are to fail than can. */
td_status td_simulate(const td_config *cfg, const td_plan *plan, const td_sim_load *load,
                      td_sim_result *out, td_error *err);
void td_sim_result_free(td_sim_result *r);

/* For a person; the last line is for programs: "makespan_over_ideal=1.013 static_over_ideal=1.41".
 */
void td_sim_print(const td_sim_result *r, const td_config *cfg, const td_plan *plan,
                  const td_sim_load *load, FILE *out);
/* The timeline as an SVG picture. TD_E_OUTPUT. */
td_status td_sim_write_svg(const td_sim_result *r, const td_plan *plan, const char *path,
                           td_error *err);

#endif
