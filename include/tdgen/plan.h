/* plan.h - who computes what: devices -> groups -> stages. Pure: touches no hardware.
 *
 * The plan is a function of (config, device inventory, model config, dataset statistics) alone;
 * what --dry-run prints is what a run executes.
 */
#ifndef TDGEN_PLAN_H
#define TDGEN_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "tdgen/config.h"
#include "tdgen/data.h"
#include "tdgen/device.h"
#include "tdgen/model.h"
#include "tdgen/status.h"

/* A device as the planner sees it. */
typedef struct td_plan_device {
    char label[32];        /* what is printed in assignments: "3" for GPU 3, "cpu:1" */
    char type[64];         /* "A100-80GB", "cpu" */
    int32_t index;         /* number within the machine */
    int32_t domain;        /* devices that share memory (td_device_info.domain) */
    uint64_t memory_bytes; /* usable */
    double tflops;         /* dense rate in the run's compute mode, 0 = unknown */
    double mem_gbs;        /* memory bandwidth */
    double link_gbs;       /* to its neighbours */
    int32_t compute_capability; /* 80 for 8.0; 0 on CPUs */
    bool has_f32, has_bf16, has_f16;
} td_plan_device;

typedef struct td_inventory {
    td_plan_device *devices;
    int32_t n_devices;
    bool from_file;
    bool is_cpu;
} td_inventory;

/* conf/inventory/(name).ini: one section per device type, in order, with name, count, memory_gib,
 * tflops, mem_gbs, link_gbs, compute_capability. */
td_status td_inventory_load(const char *path, td_inventory *out, td_error *err);
/* From the machine's own devices. */
td_status td_inventory_from_devices(const td_device_info *info, int32_t n, bool is_cpu,
                                    td_inventory *out, td_error *err);
void td_inventory_free(td_inventory *inv);

typedef struct td_plan_stage {
    int32_t device;               /* index into plan->inventory devices */
    int32_t item_begin, item_end; /* items as in td_stage; empty stages do not appear */
    td_stage_memory memory;
    double seconds_per_token;     /* predicted; 0 = unknown */
} td_plan_stage;

typedef struct td_plan_group {
    int32_t *devices;   /* all devices of the group, in the order given */
    int32_t n_devices;
    td_plan_stage *stages; /* in pipeline order; n_stages <= n_devices */
    int32_t n_stages;
    double tokens_per_s;   /* predicted; 0 = unknown */
    double bottleneck_over_ideal;
} td_plan_group;

typedef struct td_plan {
    td_inventory inventory;   /* owned copy of the devices in use */
    td_plan_group *groups;
    int32_t n_groups;
    int32_t *leftover;        /* devices chosen by the user but in no group */
    int32_t n_leftover;
    int32_t gpus_per_model;   /* 0 = groups differ in width */
    td_dtype compute;         /* resolved */
    char compute_why[160];
    td_session_limits limits; /* max_tokens, max_seqs, max_rows, n_slots (of the widest group) ... */
    td_dataset_stats stats;
    double bytes_per_row;     /* record size */
    uint64_t output_bytes;    /* predicted; */
    char **warnings;          /* for a person, each one sentence */
    int32_t n_warnings;
} td_plan;

/* Makes the plan. TD_E_CONFIG for impossible requests, saying what is needed ("needs 8 devices, 4
 * are there"); TD_E_DEVICE when the model does not fit, saying by how much and what would fit.
 * weight_dtype: of the checkpoint (for compute = auto). */
td_status td_plan_make(const td_config *cfg, const td_inventory *inv, const td_model_config *model,
                       const td_dataset_stats *stats, td_plan *out, td_error *err);
void td_plan_free(td_plan *p);

/* The assignment block of the specification (banner, Configuration, Worker GPU assignments). */
void td_plan_print_assignment(const td_plan *p, FILE *out);
/* Then the details: per group layers per device, memory, micro-batch, output size against
 * free_bytes of the output's disk (0 = unknown), estimated rate and time. */
void td_plan_print_details(const td_plan *p, const td_model_config *model, uint64_t free_bytes,
                           FILE *out);

#endif
