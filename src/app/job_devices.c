/* job_devices.c - which devices a job may use, and how fast they are. */
#include "app/job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app/speeds.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* GPUs by name, on a machine that has none: each is the first number that is not taken. */
typedef struct assumed_names {
    const td_config *cfg;
    char *const *names;
    int32_t *number; /* [n_names] of each, -1 = none yet */
} assumed_names;

static bool is_taken(const assumed_names *a, int32_t number) {
    const td_config *cfg = a->cfg;
    for (int32_t i = 0; i < cfg->devices.n_gpus; i++)
        if (cfg->devices.gpus[i] == number)
            return true;
    for (int32_t i = 0; i < cfg->devices.n_group_entries; i++)
        if (cfg->devices.group_device[i] == number)
            return true;
    return false;
}

static td_status assume_number(const void *machine, const char *name, int32_t *out, td_error *err) {
    const assumed_names *a = machine;
    (void)err;
    int32_t i = 0;
    while (strcmp(a->names[i], name) != 0)
        i++;
    for (int32_t n = 0; a->number[i] < 0; n++)
        if (!is_taken(a, n))
            a->number[i] = n;
    *out = a->number[i];
    return TD_OK;
}

static td_status assume_names(td_config *cfg, td_error *err) {
    size_t n = (size_t)cfg->devices.n_names;
    assumed_names a = {.cfg = cfg, .names = cfg->devices.names};
    a.number = td_calloc(n + 1, sizeof *a.number);
    if (!a.number)
        return td_error_nomem(err, "the device list", n * sizeof *a.number);
    for (size_t i = 0; i < n; i++)
        a.number[i] = -1;
    td_status rc = td_config_resolve_devices(cfg, assume_number, &a, err);
    free(a.number);
    return rc;
}

/* GPU numbers on a machine without GPUs: enough for a dry run, which then knows neither their
 * memory nor their speed. */
static td_status assume_gpus(td_job *j, td_error *err) {
    int32_t n = 0;
    td_status rc = assume_names(&j->own_cfg, err);
    if (rc != TD_OK)
        return rc;
    for (int32_t i = 0; i < j->cfg->devices.n_gpus; i++)
        n = TD_MAX(n, j->cfg->devices.gpus[i] + 1);
    j->info = td_calloc((size_t)n, sizeof *j->info);
    if (!j->info)
        return td_error_nomem(err, "the device list", (size_t)n * sizeof *j->info);
    j->n_info = n;
    for (int32_t i = 0; i < n; i++) {
        j->info[i] = (td_device_info){
            .index = i, .domain = 1 + i, .has_f32 = true, .has_bf16 = true, .has_f16 = true};
        snprintf(j->info[i].name, sizeof j->info[i].name, "cuda:%d", i);
        snprintf(j->info[i].model, sizeof j->info[i].model, "unknown GPU");
    }
    j->assumed = true;
    td_log_warn("this machine has no GPU: planning for GPUs of unknown memory and speed "
                "(devices.inventory describes a machine, see conf/inventory)");
    return td_inventory_from_devices(j->info, n, false, &j->inventory, err);
}

/* devices.cpu_speeds and cpu_threads. */
static void apply_cpu_settings(td_job *j) {
    const td_config *cfg = j->cfg;
    for (int32_t i = 0; i < j->n_info; i++) {
        j->info[i].speed_share = i < cfg->devices.n_cpu_speeds ? cfg->devices.cpu_speeds[i] : 1;
        if (i < cfg->devices.n_cpu_threads)
            j->info[i].n_threads = cfg->devices.cpu_threads[i];
    }
}

/* At full speed, as the first device of that many threads. */
static td_status measure_cpu(const td_device_info *info, td_device_speed *f32,
                             td_device_speed *half, td_device_op_speed *ops, td_error *err) {
    td_device_info whole = *info;
    whole.speed_share = 1;
    td_device *dev;
    td_status rc = td_device_open(&whole, &dev, err);
    if (rc != TD_OK)
        return rc;
    rc = td_device_measure(dev, TD_F32, f32, err);
    *half = *f32;
    if (rc == TD_OK && info->has_bf16)
        rc = td_device_measure(dev, TD_BF16, half, err);
    if (rc == TD_OK)
        rc = td_device_measure_ops(dev, info->has_bf16 ? TD_BF16 : TD_F32, ops, err);
    td_device_close(dev);
    if (rc == TD_OK)
        td_log_debug("a CPU device of %d threads: %.3f TFLOP/s f32, %.3f TFLOP/s bf16, %.1f GB/s; "
                     "attention %.3f TFLOP/s, capture %.1f GB/s",
                     info->n_threads, f32->tflops, half->tflops, f32->mem_gbs,
                     ops->attention_tflops, ops->capture_gbs);
    return rc;
}

/* CPU devices of equally many threads are alike, so one of them is measured, and each works at its
 * share of that; when all together keep more threads busy than there are cores, they share them. */
static td_status measure_cpus(td_job *j, td_error *err) {
    double n_busy = 0;
    for (int32_t i = 0; i < j->n_info; i++)
        n_busy += j->info[i].n_threads * j->info[i].speed_share;
    double crowd = TD_MIN(1.0, (double)sysconf(_SC_NPROCESSORS_ONLN) / n_busy);
    for (int32_t i = 0; i < j->n_info; i++) {
        int32_t first = 0;
        while (j->info[first].n_threads != j->info[i].n_threads)
            first++;
        td_plan_device *d = &j->inventory.devices[i];
        const td_plan_device *alike = &j->inventory.devices[first];
        double share = j->info[i].speed_share, scale = share / j->info[first].speed_share;
        if (first < i) {
            d->tflops = alike->tflops * scale;
            d->tflops_f32 = alike->tflops_f32 * scale;
            d->mem_gbs = alike->mem_gbs * scale;
            d->attention_tflops = alike->attention_tflops * scale;
            d->capture_gbs = alike->capture_gbs * scale;
            continue;
        }
        td_device_speed f32, half;
        td_device_op_speed ops;
        td_status rc = measure_cpu(&j->info[i], &f32, &half, &ops, err);
        if (rc != TD_OK)
            return rc;
        d->tflops = half.tflops * share * crowd;
        d->tflops_f32 = f32.tflops * share * crowd;
        d->mem_gbs = f32.mem_gbs * share * crowd;
        d->attention_tflops = ops.attention_tflops * share * crowd;
        d->capture_gbs = ops.capture_gbs * share * crowd;
    }
    return TD_OK;
}

/* Is the GPU one that the configuration may give work to? */
static bool is_chosen(const td_config *cfg, int32_t index) {
    bool chosen = cfg->devices.gpus_kind != TD_GPUS_LIST;
    for (int32_t i = 0; !chosen && i < cfg->devices.n_gpus; i++)
        chosen = cfg->devices.gpus[i] == index;
    for (int32_t i = 0; !chosen && i < cfg->devices.n_group_entries; i++)
        chosen = cfg->devices.group_device[i] == index;
    return chosen;
}

/* A card that was lost may not be there any more; the run began with it, under its UUID. */
static td_status find_gpu(const void *machine, const char *name, int32_t *out, td_error *err) {
    const td_job *j = machine;
    const td_faults *f = &j->recovery.faults;
    if (!j->recovery.reexecuted || f->n_machine == 0)
        return td_device_find(j->info, j->n_info, name, out, err);
    td_device_info *began = td_calloc((size_t)f->n_machine, sizeof *began);
    if (!began)
        return td_error_nomem(err, "the device list", (size_t)f->n_machine * sizeof *began);
    for (int32_t k = 0; k < f->n_machine; k++) {
        for (int32_t i = 0; i < j->n_info; i++)
            if (strcmp(td_device_key(&j->info[i]), f->machine[k]) == 0)
                began[k] = j->info[i];
        snprintf(began[k].uuid, sizeof began[k].uuid, "%.47s", f->machine[k]);
        began[k].index = k;
    }
    td_status rc = td_device_find(began, f->n_machine, name, out, err);
    free(began);
    return rc;
}

static td_status no_names_here(const void *machine, const char *name, int32_t *out, td_error *err) {
    (void)out;
    return td_error_set(err, TD_E_CONFIG,
                        "names GPU %s, but %s: name its GPUs by their numbers there", name,
                        (const char *)machine);
}

/* CUDA shows slices of a GPU to a process that asks for them by name, and to no other. */
static void ask_for_slices(const td_config *cfg) {
    td_strbuf b = {0};
    bool only = cfg->devices.n_gpus > 0;
    for (int32_t i = 0; only && i < cfg->devices.n_gpus; i++) {
        const int32_t number = cfg->devices.gpus[i];
        const char *name = number < 0 ? cfg->devices.names[-1 - number] : "";
        only = strncmp(name, "MIG-", 4) == 0;
        td_strbuf_printf(&b, "%s%s", i ? "," : "", name);
    }
    if (only && !b.oom)
        setenv("CUDA_VISIBLE_DEVICES", b.data, 0);
    td_strbuf_free(&b);
}

td_status td_job_find_devices(td_job *j, td_error *err) {
    const td_config *cfg = j->cfg;
    if (cfg->devices.inventory) {
        if (!j->only_plan)
            return td_error_set(err, TD_E_CONFIG,
                                "devices.inventory = %s describes another machine: it goes with "
                                "--dry-run and --simulate only",
                                cfg->devices.inventory);
        td_status read = td_inventory_load(cfg->devices.inventory, &j->inventory, err);
        return read == TD_OK ? td_config_resolve_devices(&j->own_cfg, no_names_here,
                                                         "devices.inventory knows no UUID and no "
                                                         "PCI id",
                                                         err)
                             : read;
    }
    td_status rc;
    if (cfg->devices.gpus_kind == TD_GPUS_LIST)
        ask_for_slices(cfg);
    if (cfg->devices.gpus_kind != TD_GPUS_CPU) {
        rc = td_device_enumerate("cuda", 0, &j->info, &j->n_info, err);
        if (rc != TD_OK)
            return rc;
        if (j->n_info > 0)
            rc = td_config_resolve_devices(&j->own_cfg, find_gpu, j, err);
        if (rc != TD_OK)
            return rc;
        if (j->n_info > 0)
            return td_inventory_from_devices(j->info, j->n_info, false, &j->inventory, err);
        free(j->info);
        j->info = NULL;
        if (cfg->devices.gpus_kind == TD_GPUS_LIST) {
            if (j->only_plan)
                return assume_gpus(j, err);
            int32_t first = cfg->devices.gpus[0];
            char number[16];
            snprintf(number, sizeof number, "%d", first);
            return td_error_set(
                err, TD_E_DEVICE,
                "devices.gpus names GPU %s, but there is no GPU that this build can "
                "use (it computes on: %s); use devices.gpus = cpu, or --dry-run to "
                "see the plan",
                first < 0 ? cfg->devices.names[-1 - first] : number, td_device_backends());
        }
        if (cfg->devices.groups_name_gpus)
            return td_error_set(err, TD_E_DEVICE,
                                "devices.groups names GPUs, but there is none that this build can "
                                "use (it computes on: %s)",
                                td_device_backends());
        td_log_info("No GPU found: running on the CPU (devices.gpus = cpu says so explicitly)");
    }
    int32_t n_cpu = cfg->devices.gpus_kind == TD_GPUS_CPU ? cfg->devices.n_gpus : 1;
    rc = td_device_enumerate("cpu", n_cpu, &j->info, &j->n_info, err);
    if (rc == TD_OK) {
        apply_cpu_settings(j);
        rc = td_inventory_from_devices(j->info, j->n_info, true, &j->inventory, err);
    }
    return rc;
}

/* --- how fast they are ------------------------------------------------------------------------ */

static bool *chosen_gpus(const td_job *j, td_error *err) {
    bool *want = td_calloc((size_t)j->n_info, sizeof *want);
    if (!want)
        td_error_nomem(err, "the device list", (size_t)j->n_info);
    for (int32_t i = 0; want && i < j->n_info; i++)
        want[i] = is_chosen(j->cfg, j->info[i].index);
    return want;
}

static td_status remember_gpus(td_job *j, td_error *err) {
    bool *want = chosen_gpus(j, err);
    td_status rc =
        want ? td_speeds_from_cache(j->info, j->n_info, want, &j->inventory, &j->n_unmeasured, err)
             : TD_E_INTERNAL;
    free(want);
    return rc;
}

/* Neither a file's devices nor assumed ones can be measured. */
static bool is_real(const td_job *j) {
    return j->n_info > 0 && !j->assumed;
}

td_status td_job_find_speeds(td_job *j, td_error *err) {
    if (!is_real(j))
        return TD_OK;
    return j->inventory.is_cpu ? measure_cpus(j, err) : remember_gpus(j, err);
}

const td_device_info *td_job_info_of(const td_job *j, const td_plan_device *d) {
    for (int32_t i = 0; i < j->n_info; i++)
        if (j->number[i] == d->index)
            return &j->info[i];
    return NULL;
}

td_status td_job_measure_gpus(td_job *j, td_error *err) {
    if (!j->n_unmeasured)
        return TD_OK;
    bool *want = td_calloc((size_t)j->n_info, sizeof *want);
    if (!want)
        return td_error_nomem(err, "the device list", (size_t)j->n_info);
    for (int32_t i = 0; i < j->plan.inventory.n_devices; i++) {
        const td_device_info *info = td_job_info_of(j, &j->plan.inventory.devices[i]);
        if (info)
            want[info - j->info] = true;
    }
    td_status rc = td_speeds_measure(j->info, j->n_info, want, false, &j->opening, err);
    free(want);
    if (rc != TD_OK)
        return rc;
    td_inventory_free(&j->inventory);
    rc = td_inventory_from_devices(j->info, j->n_info, false, &j->inventory, err);
    if (rc == TD_OK)
        rc = remember_gpus(j, err);
    return rc == TD_OK ? td_job_make_plan(j, err) : rc;
}
