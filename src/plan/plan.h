/* plan.h - who computes what: devices -> groups -> stages. Pure: touches no hardware.
 *
 * The plan is a function of (config, device inventory, model config, dataset statistics) alone;
 * what --dry-run prints is what a run executes.
 *
 * Order of use: td_inventory_load or td_inventory_from_devices -> td_plan_make -> the caller opens
 * the dataset with the plan's batch_tokens -> td_plan_free.
 *
 * Memory is counted per domain (devices that share memory): the weights of an item once in a
 * domain, however many stages there hold it; activations and workspace once per stage.
 */
#ifndef TDGEN_PLAN_PLAN_H
#define TDGEN_PLAN_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "capture/capture.h"
#include "config/config.h"
#include "data/data.h"
#include "device/device.h"
#include "model/model.h"
#include "base/status.h"

/* The share of a vendor's peak rate that packed GEMMs of a transformer reach; td_inventory_load
 * scales the file's peak tflops with it, so that td_plan_device holds achievable rates. */
#define TD_PLAN_PEAK_SHARE 0.5
/* Of each GPU's memory, what stays for the context, kernels and the libraries' own workspace. */
#define TD_PLAN_GPU_RESERVE_BYTES ((uint64_t)1 << 30)
/* Of the memory of a machine whose CPU computes, the share left to everything else. */
#define TD_PLAN_CPU_RESERVE_SHARE 0.1

/* Of a device that is only assumed (a dry run for GPUs on a machine without any): everything fits.
 */
#define TD_PLAN_MEMORY_UNKNOWN ((uint64_t)1 << 60)

/* A device as the planner sees it. */
typedef struct td_plan_device {
    char label[32];             /* what is printed in assignments: "3" for GPU 3, "cpu:1" */
    char type[64];              /* "A100-80GB", "cpu" */
    int32_t index;              /* number within the machine */
    int32_t domain;             /* devices that share memory (td_device_info.domain) */
    uint64_t memory_bytes;      /* usable: the reserve is taken off; or TD_PLAN_MEMORY_UNKNOWN */
    double tflops;              /* achievable dense 16-bit rate, 0 = unknown */
    double tflops_f32;          /* achievable f32 rate, 0 = unknown: 1/16 of the 16-bit rate */
    double attention_tflops;    /* 0 = as the products */
    double mem_gbs;             /* memory bandwidth, 1e9 bytes/s, 0 = unknown */
    double capture_gbs;         /* of logits, 0 = mem_gbs */
    double link_gbs;            /* from its neighbours, 1e9 bytes/s, 0 = unknown */
    int32_t compute_capability; /* 80 for 8.0; 0 on CPUs or unknown */
    bool has_f32, has_bf16, has_f16;
    bool lost; /* failed in an earlier execution of this run: to be planned without */
} td_plan_device;

typedef struct td_inventory {
    td_plan_device *devices;
    int32_t n_devices;
    bool from_file;
    bool is_cpu;
    char speeds[96]; /* where the speeds come from, for a person; "" = as is usual for such devices
                      */
} td_inventory;

/* conf/inventory/(name).ini: one section per device type, in order, with name (default: the
 * section's), count (1), memory_gib, tflops (vendor's dense 16-bit peak), tflops_f32, mem_gbs,
 * link_gbs, compute_capability ("8.0"). Devices are numbered through the file. TD_E_CONFIG names
 * file, line and key. */
td_status td_inventory_load(const char *path, td_inventory *out, td_error *err);
/* From the machine's own devices. Speeds are the GPUs' own peak rates, scaled in the same way, so
 * that a dry run and the run make the same plan; of CPU devices the caller fills in measured ones.
 */
td_status td_inventory_from_devices(const td_device_info *info, int32_t n, bool is_cpu,
                                    td_inventory *out, td_error *err);
void td_inventory_free(td_inventory *inv);
/* Measurements of equal cards differ a little: devices of one type whose speeds are within 3% of
 * the first of them all get their mean, so that they count as interchangeable. */
void td_inventory_equalise(td_inventory *inv);

/* --- what work costs: FLOPs, and predicted seconds on the stages of a plan -----------------------
 *
 * A micro-batch is described by four counts (td_work_size). FLOPs and seconds follow from them and
 * from coefficients that the plan holds, so nobody needs the model's configuration: the queue sizes
 * claims with it, the simulator runs on it, the watchdog derives its limits from it. FLOPs are
 * linear in the size of work; seconds are not, as a micro-batch reads the weights once however few
 * tokens it has.
 */

/* FLOPs of the whole model (a multiplication and an addition are 2) per unit of each count. */
typedef struct td_cost_model {
    int32_t window; /* of the layers with a sliding window; 0 = none has one. Where they differ, the
                     * most frequent one stands for all */
    double flops_token, flops_row, flops_pair, flops_pair_window;
} td_cost_model;

void td_cost_model_init(const td_model_config *model, td_cost_model *out);

/* The currency of remaining work; > 0 for work that has tokens. */
double td_cost_flops(const td_cost_model *c, const td_work_size *w);

/* Seconds of one stage on its device. A GEMM takes the longer of its arithmetic and the reading of
 * its weights. All 0 where the speed is unknown. */
typedef struct td_stage_cost {
    struct {
        double token_s, weights_s; /* max(n_tokens * token_s, weights_s) */
    } gemm[2];                     /* of dense layers, of mixtures of experts */
    double head_row_s, head_weights_s;
    double token_s, row_s;        /* activations between GEMMs, the copy from the stage before */
    double pair_s, pair_window_s; /* attention */
} td_stage_cost;

double td_stage_cost_seconds(const td_stage_cost *c, const td_work_size *w);

/* --- the plan ----------------------------------------------------------------------------------- */

typedef struct td_plan_stage {
    int32_t device;               /* index into plan->inventory devices */
    int32_t item_begin, item_end; /* items as in td_stage; empty stages do not appear */
    td_stage_memory memory;
    td_stage_cost cost; /* all 0 where speeds are unknown */
    double
        seconds_per_token; /* predicted, in a micro-batch like td_plan.micro_batch; 0 = unknown */
} td_plan_stage;

typedef struct td_plan_group {
    int32_t *devices; /* all devices of the group, in the order given; indices as in stages */
    int32_t n_devices;
    td_plan_stage *stages; /* in pipeline order; n_stages <= n_devices */
    int32_t n_stages;
    double tokens_per_s;          /* predicted; 0 = unknown */
    double bottleneck_over_ideal; /* slowest stage against an even split over all its devices */
} td_plan_group;

/* Memory that the devices of one domain share. */
typedef struct td_plan_domain {
    int32_t domain;
    int32_t n_devices, n_stages;
    uint64_t memory_bytes; /* usable */
    uint64_t weight_bytes, activation_bytes, workspace_bytes;
} td_plan_domain;

/* What a record costs on disk: td_record_bytes_per_row() and td_record_bytes_per_token(). */
typedef struct td_plan_record_cost {
    double bytes_per_row, bytes_per_token;
    bool at_most; /* rows differ in size, bytes_per_row is the most; or they are compressed after */
} td_plan_record_cost;

/* A way to form groups that gpus_per_model = auto did not take. */
typedef struct td_plan_alternative {
    char what[64];       /* "gpus_per_model = 2", "without V100-32GB" */
    char groups[160];    /* "4 x [A100-80GB], 1 x [4 V100-32GB]" */
    char why_not[160];   /* it does not fit, and where; "" = it is slower */
    double tokens_per_s; /* predicted; 0 = does not fit */
} td_plan_alternative;

typedef struct td_plan {
    td_inventory inventory; /* owned copy of the devices chosen, in the order given */
    td_plan_group *groups;
    int32_t n_groups;
    int32_t *leftover; /* devices chosen by the user but in no group */
    int32_t n_leftover;
    td_plan_domain *domains; /* of the devices in use */
    int32_t n_domains;
    int32_t gpus_per_model; /* 0 = groups differ in width */
    td_dtype compute;       /* resolved */
    char compute_why[160];
    int32_t batch_tokens;     /* to pack with: run.batch_tokens, or less where memory asks for it */
    td_capture_spec capture;  /* what every session of the run captures */
    td_session_limits limits; /* n_slots: of the group with most stages */
    td_dataset_stats stats;   /* of the whole dataset */
    int32_t max_length;       /* data.max_length, data.overflow: what stats count by */
    td_overflow overflow;
    td_cost_model cost;       /* see td_cost_flops */
    td_work_size micro_batch; /* what the mean one consists of: predictions are for such ones */
    int32_t worker_id, total_workers;
    double bytes_per_row;  /* record size; 0 = unknown */
    bool bytes_at_most;    /* that and output_bytes are bounds */
    uint64_t output_bytes; /* predicted, of this worker's share of the shards; 0 = unknown */
    double tokens_per_s;   /* predicted, all groups; 0 = unknown */
    double wall_s;         /* predicted, of this worker's share; 0 = unknown */
    td_plan_alternative *alternatives; /* with gpus_per_model = auto; fastest first */
    int32_t n_alternatives;
    char **warnings; /* for a person, each one sentence */
    int32_t n_warnings;
} td_plan;

/* All that a plan depends on. Nothing of it is borrowed after td_plan_make returned. */
typedef struct td_plan_input {
    const td_config *cfg;
    td_compute compute; /* cfg->model.compute, or what an earlier execution of the run settled on */
    const td_inventory *inventory;
    const td_model_config *model;
    const td_capture_spec *capture;
    const td_dataset_stats *stats;     /* of the whole dataset */
    const td_plan_record_cost *record; /* NULL: the output's size is not predicted */
} td_plan_input;

/* Makes the plan. TD_E_CONFIG for impossible requests, saying what is needed ("needs 8 devices, 4
 * are there"); TD_E_DEVICE when the model does not fit, saying by how much and what would fit.
 * Devices that are marked lost are left out, and with them the explicit groups that name them;
 * device numbers keep their meaning, a warning says what is missing; TD_E_DEVICE when none is left.
 * compute = auto looks at model->weight_dtype. */
td_status td_plan_make(const td_plan_input *in, td_plan *out, td_error *err);
void td_plan_free(td_plan *p);

/* The stages of a group on opened devices, indexed like plan->inventory.devices; out
 * [group->n_stages]. */
void td_plan_stages(const td_plan_group *group, td_device *const *devices, td_stage *out);
/* Predicted seconds of one micro-batch on a stage while its pipeline is full; of several groups
 * that share the device each gets its part of it. 0 = speeds unknown. Indices as in the plan. */
double td_cost_stage_seconds(const td_plan *p, int32_t group, int32_t stage, const td_work_size *w);
/* Of the slowest stage: what a micro-batch adds to the group's time when the pipeline is full. */
double td_cost_group_seconds(const td_plan *p, int32_t group, const td_work_size *w);

/* The assignment block: of one process on GPUs the specification's, to the letter (banner,
 * Configuration, Worker GPU assignments); of one of run.total_workers processes "Worker 2/4" and its
 * groups; on CPU devices without a word of GPUs. */
void td_plan_print_assignment(const td_plan *p, FILE *out);
/* Then the details: per group layers per device, memory, micro-batch, output size against
 * free_bytes of the output's disk (0 = unknown), estimated rate and time. */
void td_plan_print_details(const td_plan *p, const td_model_config *model, uint64_t free_bytes,
                           FILE *out);

#endif
