/* The main job from a configuration to a finished folder: everything is checked that can be checked
 * before weights are read, and the dry run stops at the plan that a real run would execute. */
#include "app/cmd_run.h"
#include "app/restart.h"
#include "app/cmd_simulate.h"
#include "app/speeds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "config/config.h"
#include "data/data.h"
#include "device/device.h"
#include "base/log.h"
#include "model/model.h"
#include "plan/plan.h"
#include "record/record.h"
#include "run/run.h"
#include "sim/sim.h"
#include "tokenizer/tokenizer.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* All that a run owns, so that one function can take it down. */
typedef struct job {
    td_config cfg;
    td_model_config model;
    td_tokenizer *tok;
    td_source_limits limits;
    td_device_info *info; /* of the machine's devices; NULL with an inventory file */
    int32_t n_info;
    td_inventory inventory;
    int32_t n_unmeasured; /* GPUs whose speed is not in the cache */
    td_dataset_stats stats;
    td_plan plan;
    td_device **devices;           /* opened, indexed like plan.inventory.devices */
    const td_device_info *opening; /* the one that td_device_open is at work on, or failed on */
    td_source *source;
    td_weights *weights;
    td_output *output;
    td_recovery recovery;
    int32_t *number; /* [n_info] the plan's number of a device, -1 = none */
    bool simulate;
    bool abandoned; /* devices were lost or hang: nothing of them may be touched any more */
} job;

static void job_free(job *j) {
    td_output_close(j->output);
    td_weights_close(j->weights);
    td_source_close(j->source);
    for (int32_t i = 0; j->devices && i < j->plan.inventory.n_devices; i++)
        td_device_close(j->devices[i]);
    free(j->devices);
    td_plan_free(&j->plan);
    td_inventory_free(&j->inventory);
    free(j->info);
    free(j->number);
    td_recover_end(&j->recovery);
    td_tokenizer_free(j->tok);
    td_config_free(&j->cfg);
    td_log_open_file(NULL, NULL);
}

/* --- before the plan -------------------------------------------------------------------------- */

static td_status load_tokenizer(job *j, bool dry_run, td_error *err) {
    bool needed;
    td_status rc = td_source_needs_tokenizer(&j->cfg, &needed, err);
    if (rc != TD_OK)
        return rc;
    if (!needed)
        return TD_OK;
    rc = td_tokenizer_load(j->cfg.model.path, &j->tok, err);
    if (rc != TD_OK && dry_run) {
        td_log_warn("%s; token counts are estimated from bytes", err->text);
        *err = (td_error){0};
        return TD_OK;
    }
    return rc;
}

static td_status look_at_data(job *j, bool dry_run, td_error *err) {
    const int32_t n_always = j->cfg.capture.mode == TD_CAPTURE_HIDDEN ? 0 : j->cfg.capture.n_always;
    if (n_always && j->cfg.capture.always_ids[n_always - 1] >= j->model.n_vocab)
        return td_error_set(err, TD_E_CONFIG,
                            "capture.always_ids names id %d, but the vocabulary of %s has ids 0 to "
                            "%d",
                            j->cfg.capture.always_ids[n_always - 1], j->cfg.model.path,
                            j->model.n_vocab - 1);
    if (td_capture_has_topk(j->cfg.capture.mode) && j->cfg.capture.top_k > j->model.n_vocab)
        return td_error_set(err, TD_E_CONFIG,
                            "capture.top_k = %d, but the vocabulary of %s has %d tokens; set "
                            "capture.top_k = %d or less",
                            j->cfg.capture.top_k, j->cfg.model.path, j->model.n_vocab,
                            j->model.n_vocab);
    if (j->model.learned_positions && j->cfg.data.max_length > j->model.max_positions)
        return td_error_set(err, TD_E_CONFIG,
                            "data.max_length = %d, but %s has learned %d positions and no others; "
                            "set data.max_length = %d",
                            j->cfg.data.max_length, j->model.architecture, j->model.max_positions,
                            j->model.max_positions);
    td_cost_model cost;
    td_cost_model_init(&j->model, &cost);
    j->limits = (td_source_limits){.n_vocab = j->model.n_vocab,
                                   .eos_id = j->model.eos_id,
                                   .max_positions = j->model.max_positions,
                                   .window = cost.window};
    td_status rc;
    if (j->simulate && j->cfg.simulate.law != TD_LENGTHS_NONE) {
        td_sim_stats(&j->cfg, cost.window, &j->stats);
        return TD_OK;
    }
    if (dry_run && !td_path_exists(j->cfg.data.path)) {
        td_log_warn("the dataset %s is not there", j->cfg.data.path);
        return TD_OK;
    }
    rc = load_tokenizer(j, dry_run, err);
    if (rc != TD_OK)
        return rc;
    /* As trainers append it: config.json names what ends generation, which can be another id. */
    if (j->tok && td_tokenizer_eos_id(j->tok) >= 0)
        j->limits.eos_id = td_tokenizer_eos_id(j->tok);
    if (j->tok && td_tokenizer_n_vocab(j->tok) > j->model.n_vocab)
        td_log_warn("the tokenizer knows %d ids, the model only %d: texts that use the others will "
                    "be refused",
                    td_tokenizer_n_vocab(j->tok), j->model.n_vocab);
    return td_dataset_stats_sample(&j->cfg, j->tok, &j->limits, &j->stats, err);
}

/* GPU numbers on a machine without GPUs: enough for a dry run, which then knows neither their
 * memory nor their speed. */
static td_status assume_gpus(job *j, td_error *err) {
    int32_t n = 0;
    for (int32_t i = 0; i < j->cfg.devices.n_gpus; i++)
        n = TD_MAX(n, j->cfg.devices.gpus[i] + 1);
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
    td_log_warn("this machine has no GPU: planning for GPUs of unknown memory and speed "
                "(devices.inventory describes a machine, see conf/inventory)");
    return td_inventory_from_devices(j->info, n, false, &j->inventory, err);
}

/* devices.cpu_speeds and cpu_threads. */
static void apply_cpu_settings(job *j) {
    const td_config *cfg = &j->cfg;
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
static td_status measure_cpus(job *j, td_error *err) {
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

/* The inventory of this machine's GPUs, with their speeds as measured before. */
static td_status list_gpus(job *j, td_error *err) {
    td_inventory_free(&j->inventory);
    td_status rc = td_inventory_from_devices(j->info, j->n_info, false, &j->inventory, err);
    bool *want = rc == TD_OK ? td_calloc((size_t)j->n_info, sizeof *want) : NULL;
    if (rc == TD_OK && !want)
        rc = td_error_nomem(err, "the device list", (size_t)j->n_info);
    for (int32_t i = 0; rc == TD_OK && i < j->n_info; i++)
        want[i] = is_chosen(&j->cfg, j->info[i].index);
    if (rc == TD_OK)
        rc = td_speeds_from_cache(j->info, j->n_info, want, &j->inventory, &j->n_unmeasured, err);
    free(want);
    return rc;
}

static td_status find_devices(job *j, bool dry_run, td_error *err) {
    const td_config *cfg = &j->cfg;
    if (cfg->devices.inventory) {
        if (!dry_run)
            return td_error_set(err, TD_E_CONFIG,
                                "devices.inventory = %s describes another machine: it goes with "
                                "--dry-run and --simulate only",
                                cfg->devices.inventory);
        return td_inventory_load(cfg->devices.inventory, &j->inventory, err);
    }
    td_status rc;
    if (cfg->devices.gpus_kind != TD_GPUS_CPU) {
        rc = td_device_enumerate("cuda", 0, &j->info, &j->n_info, err);
        if (rc != TD_OK)
            return rc;
        if (j->n_info > 0)
            return list_gpus(j, err);
        free(j->info);
        j->info = NULL;
        if (cfg->devices.gpus_kind == TD_GPUS_LIST) {
            if (dry_run)
                return assume_gpus(j, err);
            return td_error_set(
                err, TD_E_DEVICE,
                "devices.gpus names GPU %d, but there is no GPU that this build can "
                "use (it computes on: %s); use devices.gpus = cpu, or --dry-run to "
                "see the plan",
                cfg->devices.gpus[0], td_device_backends());
        }
        td_log_info("No GPU found: running on the CPU (devices.gpus = cpu says so explicitly)");
    }
    int32_t n_cpu = cfg->devices.gpus_kind == TD_GPUS_CPU ? cfg->devices.n_gpus : 1;
    rc = td_device_enumerate("cpu", n_cpu, &j->info, &j->n_info, err);
    if (rc == TD_OK) {
        apply_cpu_settings(j);
        rc = td_inventory_from_devices(j->info, j->n_info, true, &j->inventory, err);
    }
    if (rc == TD_OK)
        rc = measure_cpus(j, err);
    return rc;
}

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

/* capture.mask_padded_vocab: how many ids keep a probability. Padding is what lies behind the
 * tokenizer's last id; an unused id among the used ones cannot be masked and is refused by name. */
static td_status mask_padding(job *j, bool dry_run, td_error *err) {
    if (!j->cfg.capture.mask_padded_vocab || j->cfg.capture.mode == TD_CAPTURE_HIDDEN)
        return TD_OK;
    td_status rc = TD_OK;
    if (!j->tok)
        rc = td_tokenizer_load(j->cfg.model.path, &j->tok, err);
    if (rc != TD_OK && dry_run) {
        td_log_warn("%s; the padding of the vocabulary is not known", err->text);
        *err = (td_error){0};
        return TD_OK;
    }
    if (rc != TD_OK)
        return td_error_prefix(err, "capture.mask_padded_vocab needs the tokenizer");
    int32_t n = TD_MIN(td_tokenizer_n_vocab(j->tok), j->model.n_vocab);
    td_strbuf text = {0};
    for (int32_t id = 0; rc == TD_OK && id < n; id++) {
        td_strbuf_clear(&text);
        td_tokenizer_token_text(j->tok, id, &text);
        if (text.len == 0)
            rc = td_error_set(err, TD_E_CONFIG,
                              "capture.mask_padded_vocab: id %d has no token though higher ids "
                              "have; only padding behind the last token can be masked, set it to "
                              "false",
                              id);
    }
    td_strbuf_free(&text);
    if (rc == TD_OK)
        j->plan.limits.n_valid_vocab = n;
    return rc;
}

/* A run that lost devices goes on with the others, numbered as before, in the compute mode that the
 * user's own execution settled on. */
static td_status apply_recovery(job *j, td_error *err) {
    const td_faults *f = &j->recovery.faults;
    static const td_compute modes[] = {TD_COMPUTE_F32, TD_COMPUTE_BF16, TD_COMPUTE_F16};
    j->number = td_calloc((size_t)j->n_info, sizeof *j->number);
    if (!j->number)
        return td_error_nomem(err, "the device list", (size_t)j->n_info * sizeof *j->number);
    for (size_t i = 0; j->recovery.reexecuted && i < TD_ARRAY_LEN(modes); i++)
        if (strcmp(f->compute, td_compute_name(modes[i])) == 0)
            j->cfg.model.compute = modes[i];
    return td_recover_mark_lost(&j->recovery, j->info, j->n_info, &j->inventory, j->number, err);
}

static const td_device_info *info_of(const job *j, const td_plan_device *d) {
    for (int32_t i = 0; i < j->n_info; i++)
        if (j->number[i] == d->index)
            return &j->info[i];
    return NULL;
}

static td_status make_plan_of_speeds(job *j, bool dry_run, td_error *err) {
    td_status rc = TD_OK;
    if (!dry_run) {
        free(j->number);
        j->number = NULL;
        rc = apply_recovery(j, err);
    }
    td_plan_free(&j->plan);
    if (rc == TD_OK)
        rc = td_plan_make(&j->cfg, &j->inventory, &j->model, &j->stats,
                          &(td_plan_record_cost){
                              .bytes_per_row = td_record_bytes_per_row(&j->cfg, &j->model),
                              .bytes_per_token = td_record_bytes_per_token(&j->cfg),
                              .at_most = td_record_bytes_is_bound(&j->cfg) || j->cfg.output.zstd,
                          },
                          &j->plan, err);
    if (rc == TD_OK)
        rc = mask_padding(j, dry_run, err);
    return rc;
}

/* The chosen GPUs that are not in the cache, each once in its life. What is refused is refused
 * before that, by a plan with estimated speeds. */
static td_status measure_gpus(job *j, td_error *err) {
    bool *want = td_calloc((size_t)j->n_info, sizeof *want);
    if (!want)
        return td_error_nomem(err, "the device list", (size_t)j->n_info);
    for (int32_t i = 0; i < j->plan.inventory.n_devices; i++) {
        const td_device_info *info = info_of(j, &j->plan.inventory.devices[i]);
        if (info)
            want[info - j->info] = true;
    }
    td_status rc = td_speeds_measure(j->info, j->n_info, want, false, &j->opening, err);
    free(want);
    if (rc == TD_OK)
        rc = list_gpus(j, err);
    return rc;
}

static td_status make_plan(job *j, bool dry_run, td_error *err) {
    td_status rc = look_at_data(j, dry_run, err);
    if (rc == TD_OK)
        rc = find_devices(j, dry_run, err);
    if (rc == TD_OK)
        rc = make_plan_of_speeds(j, dry_run, err);
    if (rc != TD_OK || dry_run || !j->n_unmeasured || td_run_stop_requested())
        return rc;
    rc = measure_gpus(j, err);
    return rc == TD_OK ? make_plan_of_speeds(j, dry_run, err) : rc;
}

/* --- the run ---------------------------------------------------------------------------------- */

static td_status open_devices(job *j, td_error *err) {
    const td_plan *p = &j->plan;
    j->devices = td_calloc((size_t)p->inventory.n_devices, sizeof *j->devices);
    if (!j->devices)
        return td_error_nomem(err, "the devices", (size_t)p->inventory.n_devices * 8);
    for (int32_t g = 0; g < p->n_groups; g++)
        for (int32_t s = 0; s < p->groups[g].n_stages; s++) {
            int32_t d = p->groups[g].stages[s].device;
            if (j->devices[d])
                continue;
            j->opening = info_of(j, &p->inventory.devices[d]);
            td_status rc = td_device_open(j->opening, &j->devices[d], err);
            if (rc != TD_OK)
                return rc;
        }
    j->opening = NULL;
    return TD_OK;
}

/* The plan's memory of each device in one piece, before anything else is allocated there. Less than
 * planned is not the end: sessions take smaller micro-batches then. */
static td_status reserve_memory(job *j, td_error *err) {
    const td_plan *p = &j->plan;
    for (int32_t i = 0; i < p->n_domains; i++) {
        const td_plan_domain *d = &p->domains[i];
        td_device *dev = NULL;
        for (int32_t k = 0; !dev && k < p->inventory.n_devices; k++)
            if (p->inventory.devices[k].domain == d->domain)
                dev = j->devices[k];
        if (!dev || !dev->ops->reserve)
            continue;
        /* Allocations are rounded up to what the device aligns to: a few hundred bytes each. */
        uint64_t need = d->weight_bytes + d->activation_bytes + d->workspace_bytes, got;
        need += need / 1024 + ((uint64_t)64 << 20);
        /* One stream for each stage, and one that the weights come by. */
        need += ((uint64_t)d->n_stages + 1) * dev->info.stream_bytes;
        td_status rc = dev->ops->reserve(dev, need, &got, err);
        if (rc != TD_OK)
            return rc;
        char want[32], have[32];
        if (got < need)
            td_log_warn("%s: %s of the planned %s are there; another program may be using the card",
                        dev->info.name, td_human_bytes(got, have, sizeof have),
                        td_human_bytes(need, want, sizeof want));
    }
    return TD_OK;
}

static td_status load_weights(job *j, td_error *err) {
    const td_plan *p = &j->plan;
    int32_t n = 0, at = 0;
    for (int32_t g = 0; g < p->n_groups; g++)
        n += p->groups[g].n_stages;
    td_stage *stages = td_calloc((size_t)n, sizeof *stages);
    if (!stages)
        return td_error_nomem(err, "the stages", (size_t)n * sizeof *stages);
    for (int32_t g = 0; g < p->n_groups; g++)
        for (int32_t s = 0; s < p->groups[g].n_stages; s++)
            stages[at++] = (td_stage){.device = j->devices[p->groups[g].stages[s].device],
                                      .item_begin = p->groups[g].stages[s].item_begin,
                                      .item_end = p->groups[g].stages[s].item_end};
    td_load_stats stats;
    td_status rc = td_weights_load(j->weights, stages, n, p->compute, &stats, err);
    free(stages);
    if (rc != TD_OK)
        return rc;
    char size[32], sent[32], line[128] = "";
    double dt = stats.seconds > 0 ? stats.seconds : 1e-9;
    if (stats.bytes_sent)
        snprintf(line, sizeof line, ", %s sent to %d device%s (%.2f GB/s)",
                 td_human_bytes(stats.bytes_sent, sent, sizeof sent), stats.n_domains,
                 stats.n_domains == 1 ? "" : "s", 1e-9 * (double)stats.bytes_sent / dt);
    td_log_info("Weights: %s read once in %.1f s (%.2f GB/s)%s for %d group%s",
                td_human_bytes(stats.bytes_read, size, sizeof size), dt,
                1e-9 * (double)stats.bytes_read / dt, line, p->n_groups,
                p->n_groups == 1 ? "" : "s");
    return TD_OK;
}

static td_status open_output(job *j, td_error *err) {
    td_identity id = {.model = &j->model,
                      .compute = j->plan.compute,
                      .has_tokenizer = j->tok != NULL,
                      .append_eos = j->cfg.data.append_eos,
                      .eos_id = j->limits.eos_id};
    if (j->tok) {
        id.tokenizer_hash = td_tokenizer_hash(j->tok);
        id.tokenizer_n_vocab = td_tokenizer_n_vocab(j->tok);
    }
    td_status rc = td_source_fingerprint(j->source, &id.dataset_size_bytes, &id.dataset_hash, err);
    if (rc != TD_OK)
        return rc;
    id.format = td_source_format(j->source);
    rc = td_output_open_locked(&j->cfg, &id, j->recovery.lock_fd, &j->output, err);
    if (rc != TD_OK)
        return rc;
    char *path = td_asprintf("%s/tdgen.log", j->cfg.output.dir);
    if (!path)
        return td_error_nomem(err, "a path", strlen(j->cfg.output.dir));
    rc = td_log_open_file(path, err);
    free(path);
    return rc;
}

static td_status open_source(job *j, td_error *err) {
    return td_source_open(&j->cfg, j->tok, &j->limits, &j->source, err);
}

static td_status open_weights(job *j, td_error *err) {
    return td_weights_open(j->cfg.model.path, &j->model, &j->weights, err);
}

static td_status bind_weights(job *j, td_error *err) {
    uint64_t hash = 0;
    td_status rc = td_weights_hash(j->weights, &hash, err);
    return rc == TD_OK ? td_output_bind_weights(j->output, hash, err) : rc;
}

/* What is quick to refuse comes before what takes long. A signal between two steps stops here; what
 * an earlier run committed is untouched. */
static td_status prepare(job *j, td_error *err) {
    static td_status (*const step[])(job *, td_error *) = {
        open_source,    open_weights, open_output, open_devices,
        reserve_memory, load_weights, bind_weights};
    td_status rc = TD_OK;
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(step); i++)
        rc = td_run_stop_requested() ? td_run_stopped_error(err) : step[i](j, err);
    return rc;
}

/* Which device was lost before td_run could tell: nothing was in flight. One that could not be
 * opened is not among those that td_faults_culprit asks. */
static void describe_early_loss(const job *j, const td_error *err, td_fault *out) {
    int32_t n = j->plan.inventory.n_devices;
    int32_t which = j->devices && !j->opening ? td_faults_culprit(j->devices, n, err->text) : -1;
    const td_device_info *info = j->opening;
    if (which >= 0)
        info = &j->devices[which]->info;
    else if (!info)
        info = info_of(j, &j->plan.inventory.devices[j->plan.groups[0].stages[0].device]);
    snprintf(out->key, sizeof out->key, "%s", td_device_key(info));
    snprintf(out->name, sizeof out->name, "%s", info->name);
    snprintf(out->why, sizeof out->why, "%s", err->text);
}

/* Does not return when the program starts anew. */
static int after_loss(job *j, const td_fault *fault, char *const *argv, td_error *err) {
    td_loss loss = {
        .fault = fault, .plan = &j->plan, .cfg = &j->cfg, .output = j->output, .argv = argv};
    j->abandoned = true;
    td_run_arm_watchdog();
    return td_recover_after_loss(&j->recovery, &loss, err);
}

static int run(job *j, bool quiet, char *const *argv, td_error *err) {
    td_run_summary summary = {0};
    td_status rc = prepare(j, err);
    if (rc == TD_E_DEVICE_LOST) {
        td_fault fault = {0};
        describe_early_loss(j, err, &fault);
        return after_loss(j, &fault, argv, err);
    }
    if (rc != TD_OK)
        return td_status_exit_code(rc);

    td_run_input in = {.cfg = &j->cfg,
                       .plan = &j->plan,
                       .weights = j->weights,
                       .devices = j->devices,
                       .source = j->source,
                       .output = j->output,
                       .faults = &j->recovery.faults};
    rc = td_run(&in, &summary, err);
    int code = td_status_exit_code(rc);
    j->abandoned = summary.abandoned;
    if (rc == TD_E_DEVICE_LOST)
        code = after_loss(j, &summary.fault, argv, err);
    else if (rc == TD_E_DEVICE && summary.n_hung && summary.n_hung == summary.n_retired)
        code = TD_EXIT_HUNG;
    const td_faults *faults = &j->recovery.faults;
    if (rc == TD_OK || rc == TD_E_STOPPED) {
        td_output_totals totals;
        td_output_totals_get(j->output, &totals);
        if (!quiet) {
            td_run_summary_print(&summary, &j->plan, j->output, stdout);
            td_faults_print(faults, stdout);
        }
        if (rc == TD_OK && (summary.n_bad_samples || summary.n_failures || summary.n_retired ||
                            totals.n_skipped || faults->n_lost))
            code = TD_EXIT_PARTIAL;
        if (rc == TD_OK)
            td_faults_remove(j->cfg.output.dir);
        if (rc == TD_OK && !quiet)
            printf("Look at it with: tdgen inspect %s\n", j->cfg.output.dir);
    }
    if (summary.output_busy)
        j->output = NULL; /* its writer is at work: the next execution puts the folder in order */
    td_run_summary_free(&summary);
    return code;
}

/* The end of a process whose devices must not be touched: its threads end with it. */
static void leave(job *j, int code) {
    td_output_close(j->output);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == TD_EXIT_OK)
        code = TD_EXIT_OUTPUT;
    td_log_open_file(NULL, NULL);
    _exit(code);
}

int td_cmd_run(const td_cmd_run_options *opt) {
    job j = {.simulate = opt->simulate};
    td_error err = {0};
    int code;
    td_run_catch_signals();
    td_status rc = td_config_load(opt->config_path, opt->overrides, opt->n_overrides, &j.cfg, &err);
    if (rc != TD_OK) {
        td_log_error("%s", err.text);
        return td_status_exit_code(rc); /* cfg is untouched on failure */
    }
    if (!opt->dry_run)
        td_recover_begin(j.cfg.output.dir, &j.recovery);
    rc = td_model_config_load(j.cfg.model.path, &j.model, &err);
    if (rc == TD_OK)
        rc = make_plan(&j, opt->dry_run, &err);
    if (rc != TD_OK) {
        code = td_status_exit_code(rc);
        if (rc == TD_E_DEVICE_LOST && j.opening) { /* while it was measured */
            td_fault fault = {0};
            describe_early_loss(&j, &err, &fault);
            code = after_loss(&j, &fault, opt->argv, &err);
            goto done;
        }
        /* What the user asked for was possible with the devices that are gone. */
        if (j.recovery.faults.n_lost) {
            td_error_prefix(&err,
                            "cannot go on without %s (run the same command again to continue with "
                            "all devices that work)",
                            j.recovery.faults.lost[j.recovery.faults.n_lost - 1].name);
            code = TD_EXIT_DEVICE;
        }
        goto done;
    }
    if (opt->simulate) {
        for (int32_t i = 0; i < j.plan.n_warnings; i++)
            td_log_warn("%s", j.plan.warnings[i]);
        td_cmd_simulate_job sim = {.cfg = &j.cfg,
                                   .plan = &j.plan,
                                   .tok = j.tok,
                                   .limits = &j.limits,
                                   .timeline = opt->timeline};
        code = td_status_exit_code(td_cmd_simulate(&sim, &err));
        goto done;
    }
    if (opt->dry_run || !opt->quiet) {
        td_plan_print_assignment(&j.plan, stdout);
        fflush(stdout);
    }
    if (td_run_stop_requested()) {
        code = td_status_exit_code(td_run_stopped_error(&err));
        goto done;
    }
    if (opt->dry_run) {
        /* A run is told so by its data source. */
        if (j.cfg.data.max_length > j.model.max_positions)
            td_log_warn("data.max_length = %d is above the model's own limit of %d positions",
                        j.cfg.data.max_length, j.model.max_positions);
        td_plan_print_details(&j.plan, &j.model, free_disk_bytes(j.cfg.output.dir), stdout);
        code = TD_EXIT_OK;
        goto done;
    }
    for (int32_t i = 0; i < j.plan.n_warnings; i++)
        td_log_warn("%s", j.plan.warnings[i]);
    /* What the plan reduced, the packing must obey. */
    j.cfg.run.batch_tokens = j.plan.batch_tokens;
    code = run(&j, opt->quiet, opt->argv, &err);
done:
    if (err.code != TD_OK) {
        if (err.code == TD_E_STOPPED)
            td_log_info("%s", err.text);
        else
            td_log_error("%s", err.text);
    }
    if (j.abandoned)
        leave(&j, code);
    job_free(&j);
    return code;
}
