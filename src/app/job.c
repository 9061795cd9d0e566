/* job.c - see app/job.h. */
#include "app/job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app/history.h"
#include "base/file.h"
#include "base/format.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/strbuf.h"

td_status td_job_take(td_job *j, const td_job_step *steps, size_t n_steps, td_error *err) {
    td_status rc = TD_OK;
    for (size_t i = 0; rc == TD_OK && i < n_steps; i++)
        rc = td_run_stop_requested() ? td_run_stopped_error(err) : steps[i](j, err);
    return rc;
}

td_status td_job_configure(td_job *j, bool only_plan, const char *path,
                           const char *const *overrides, size_t n_overrides, td_error *err) {
    *j = (td_job){.only_plan = only_plan, .recovery.lock_fd = -1};
    td_status rc = td_config_load(path, overrides, n_overrides, &j->own_cfg, err);
    if (rc != TD_OK)
        return rc;
    j->cfg = &j->own_cfg;
    j->compute = j->cfg->model.compute;
    return TD_OK;
}

td_status td_job_recover(td_job *j, td_error *err) {
    (void)err;
    static const td_compute modes[] = {TD_COMPUTE_F32, TD_COMPUTE_BF16, TD_COMPUTE_F16};
    td_recover_begin(j->cfg->output.dir, &j->recovery);
    /* A run that lost devices goes on in the mode that the user's own execution settled on. */
    for (size_t i = 0; j->recovery.reexecuted && i < TD_ARRAY_LEN(modes); i++)
        if (strcmp(j->recovery.faults.compute, td_compute_name(modes[i])) == 0)
            j->compute = modes[i];
    return TD_OK;
}

void td_job_close(td_job *j) {
    td_beat_stop(j->beat, NULL);
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
    td_config_free(&j->own_cfg);
    td_log_open_file(NULL, NULL);
}

void td_job_leave(td_job *j, int code) {
    td_output_close(j->output);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == TD_EXIT_OK)
        code = TD_EXIT_OUTPUT;
    td_log_open_file(NULL, NULL);
    _exit(code);
}

/* --- the teacher and what is captured of it --------------------------------------------------- */

/* capture.mask_padded_vocab: how many ids keep a probability. Padding is what lies behind the
 * tokenizer's last id; an unused id among the used ones cannot be masked and is refused by name. */
static td_status count_valid_ids(td_job *j, int32_t *n_valid, td_error *err) {
    if (!j->cfg->capture.mask_padded_vocab || !td_capture_has_stats(j->cfg->capture.mode))
        return TD_OK;
    td_status rc = TD_OK;
    if (!j->tok)
        rc = td_tokenizer_load(j->cfg->model.path, &j->tok, err);
    if (rc != TD_OK && j->only_plan) {
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
        *n_valid = n;
    return rc;
}

td_status td_job_read_teacher(td_job *j, td_error *err) {
    const td_config *cfg = j->cfg;
    char *dir = NULL;
    td_status rc = td_model_locate(cfg->model.path, &dir, err);
    if (rc != TD_OK)
        return rc;
    free(j->own_cfg.model.path); /* from here on the folder, whatever it was called */
    j->own_cfg.model.path = dir;
    td_capture_teacher teacher = {.name = dir};
    rc = td_model_config_load(dir, &j->model, err);
    if (rc != TD_OK)
        return rc;
    if (j->model.learned_positions && cfg->data.max_length > j->model.max_positions)
        return td_error_set(err, TD_E_CONFIG,
                            "data.max_length = %d, but %s has learned %d positions and no others; "
                            "set data.max_length = %d",
                            cfg->data.max_length, j->model.architecture, j->model.max_positions,
                            j->model.max_positions);
    teacher.n_vocab = j->model.n_vocab;
    teacher.n_hidden = j->model.n_hidden;
    rc = count_valid_ids(j, &teacher.n_valid, err);
    if (rc != TD_OK)
        return rc;
    return td_capture_resolve(&cfg->capture, &teacher, cfg->run.seed, &j->capture, err);
}

/* --- the dataset ------------------------------------------------------------------------------ */

static td_status load_tokenizer(td_job *j, td_error *err) {
    bool needed;
    td_status rc = td_source_needs_tokenizer(j->cfg, &needed, err);
    if (rc != TD_OK || !needed)
        return rc;
    if (!j->tok) /* the capture may have needed it before */
        rc = td_tokenizer_load(j->cfg->model.path, &j->tok, err);
    if (rc == TD_OK && td_tokenizer_note(j->tok))
        td_log_warn("%s: %s", j->cfg->model.path, td_tokenizer_note(j->tok));
    if (rc != TD_OK && j->only_plan) {
        td_log_warn("%s; token counts are estimated from bytes", err->text);
        *err = (td_error){0};
        return TD_OK;
    }
    return rc;
}

td_status td_job_look_at_data(td_job *j, td_error *err) {
    td_cost_model cost;
    td_cost_model_init(&j->model, &cost);
    j->limits = (td_source_limits){.n_vocab = j->model.n_vocab,
                                   .eos_id = j->model.eos_id,
                                   .max_positions = j->model.max_positions,
                                   .window = cost.window};
    if (j->only_plan && !td_dataset_is_there(j->cfg)) {
        td_log_warn("the dataset %s is not there", j->cfg->data.path);
        return TD_OK;
    }
    td_status rc = load_tokenizer(j, err);
    if (rc != TD_OK)
        return rc;
    /* As trainers append it: config.json names what ends generation, which can be another id. */
    if (j->tok && td_tokenizer_eos_id(j->tok) >= 0)
        j->limits.eos_id = td_tokenizer_eos_id(j->tok);
    if (j->tok && td_tokenizer_n_vocab(j->tok) > j->model.n_vocab)
        td_log_warn("the tokenizer knows %d ids, the model only %d: texts that use the others will "
                    "be refused",
                    td_tokenizer_n_vocab(j->tok), j->model.n_vocab);
    return td_dataset_stats_sample(j->cfg, j->tok, &j->limits, &j->stats, err);
}

/* --- the plan --------------------------------------------------------------------------------- */

/* The plan's number of each of the machine's devices; those that were lost are marked. */
static td_status number_devices(td_job *j, td_error *err) {
    free(j->number);
    j->number = td_calloc((size_t)j->n_info, sizeof *j->number);
    if (!j->number)
        return td_error_nomem(err, "the device list", (size_t)j->n_info * sizeof *j->number);
    return td_recover_mark_lost(&j->recovery, j->info, j->n_info, &j->inventory, j->number, err);
}

td_status td_job_make_plan(td_job *j, td_error *err) {
    const td_plan_record_cost record = {
        .bytes_per_row = td_record_bytes_per_row(&j->capture),
        .bytes_per_token = td_record_bytes_per_token(),
        .at_most = td_capture_is_ragged(j->capture.mode) || j->cfg->output.zstd,
    };
    const td_plan_input in = {.cfg = j->cfg,
                              .compute = j->compute,
                              .inventory = &j->inventory,
                              .model = &j->model,
                              .capture = &j->capture,
                              .stats = &j->stats,
                              .record = &record};
    td_plan_free(&j->plan);
    td_status rc = j->only_plan ? TD_OK : number_devices(j, err);
    if (rc == TD_OK)
        rc = td_plan_make(&in, &j->plan, err);
    j->n_groups = rc == TD_OK ? j->plan.n_groups : 0;
    return rc;
}

td_status td_job_plan(td_job *j, td_error *err) {
    static const td_job_step steps[] = {td_job_read_teacher, td_job_look_at_data,
                                        td_job_find_devices, td_job_find_speeds, td_job_make_plan};
    td_status rc = td_job_take(j, steps, TD_ARRAY_LEN(steps), err);
    /* What the user asked for was possible with the devices that are gone. */
    if (rc != TD_OK && rc != TD_E_STOPPED && j->recovery.faults.n_lost) {
        td_error_prefix(err,
                        "cannot go on without %s (run the same command again to continue with all "
                        "devices that work)",
                        j->recovery.faults.lost[j->recovery.faults.n_lost - 1].name);
        err->code = rc = TD_E_DEVICE;
    }
    return rc;
}

/* --- opening ---------------------------------------------------------------------------------- */

td_status td_job_open_source(td_job *j, td_error *err) {
    /* What the plan lowered, the packing obeys. */
    j->limits.batch_tokens = j->plan.batch_tokens;
    return td_source_open(j->cfg, j->tok, &j->limits, &j->source, err);
}

td_status td_job_open_weights(td_job *j, td_error *err) {
    return td_weights_open(j->cfg->model.path, &j->model, &j->weights, err);
}

td_status td_job_identity(td_job *j, td_identity *out, td_error *err) {
    td_identity id = {.config_hash = j->model.config_hash,
                      .compute = j->plan.compute,
                      .numerics_revision = TD_NUMERICS_REVISION,
                      .has_tokenizer = j->tok != NULL,
                      .append_eos = j->cfg->data.append_eos,
                      .eos_id = j->limits.eos_id};
    snprintf(id.architecture, sizeof id.architecture, "%s", j->model.architecture);
    if (j->tok) {
        id.tokenizer_hash = td_tokenizer_hash(j->tok);
        id.tokenizer_n_vocab = td_tokenizer_n_vocab(j->tok);
    }
    td_status rc = td_source_fingerprint(j->source, &id.dataset_size_bytes, &id.dataset_hash, err);
    if (rc != TD_OK)
        return rc;
    id.files = td_source_files(j->source, &id.n_files);
    id.format = td_source_format(j->source);
    snprintf(id.data_tokenizer_hash, sizeof id.data_tokenizer_hash, "%s",
             td_source_tokenizer_hash(j->source));
    *out = id;
    return TD_OK;
}

/* Who this is, of how many, on what, and what it is going to do: the beginning of a run in
 * tdgen.log. The lines "Worker 2/4" and CUDA_VISIBLE_DEVICES are the specification's. */
static void record_beginning(const td_job *j) {
    const td_plan *p = &j->plan;
    char *text = NULL, host[80] = "";
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        return;
    gethostname(host, sizeof host - 1);
    fprintf(out, "Worker %d/%d\n", p->worker_id, p->total_workers);
    if (visible && !p->inventory.is_cpu)
        fprintf(out, "CUDA_VISIBLE_DEVICES: %s\n", visible);
    fprintf(out, "tdgen " TDGEN_VERSION " on %s, process %ld\n", host, (long)getpid());
    for (int32_t i = 0; i < p->inventory.n_devices; i++) {
        const td_device_info *d = td_job_info_of(j, &p->inventory.devices[i]);
        if (d)
            fprintf(out, "Device %s: %s%s%s%s%s\n", d->name, d->model, d->uuid[0] ? ", " : "",
                    d->uuid, d->pci[0] ? ", PCI " : "", d->pci);
    }
    td_plan_print_assignment(p, out);
    td_plan_print_details(p, &j->model, 0, out);
    if (fclose(out) == 0)
        td_log_record(text);
    free(text);
}

td_status td_job_open_output(td_job *j, td_error *err) {
    td_identity id;
    td_status rc = td_job_identity(j, &id, err);
    if (rc != TD_OK)
        return rc;
    rc = td_output_open_locked(j->cfg, &j->plan.capture, &id, j->recovery.lock_fd, &j->output, err);
    if (rc != TD_OK)
        return rc;
    char *path = td_asprintf("%s/tdgen.log", j->cfg->output.dir);
    if (!path)
        return td_error_nomem(err, "a path", strlen(j->cfg->output.dir));
    rc = td_log_open_file(path, err);
    free(path);
    if (rc == TD_OK && j->argv) {
        record_beginning(j);
        j->beat = td_beat_start(j->cfg, "the devices are being opened");
        td_history_begin(j, j->argv);
    }
    return rc;
}

td_status td_job_open_devices(td_job *j, td_error *err) {
    const td_plan *p = &j->plan;
    j->devices = td_calloc((size_t)p->inventory.n_devices, sizeof *j->devices);
    if (!j->devices)
        return td_error_nomem(err, "the devices", (size_t)p->inventory.n_devices * 8);
    for (int32_t g = 0; g < j->n_groups; g++)
        for (int32_t s = 0; s < p->groups[g].n_stages; s++) {
            int32_t d = p->groups[g].stages[s].device;
            if (j->devices[d])
                continue;
            j->opening = td_job_info_of(j, &p->inventory.devices[d]);
            td_status rc = td_device_open(j->opening, &j->devices[d], err);
            if (rc != TD_OK)
                return rc;
        }
    j->opening = NULL;
    return TD_OK;
}

/* The plan's memory of each device in one piece, before anything else is allocated there. Less than
 * planned is not the end: sessions take smaller micro-batches then. */
td_status td_job_reserve_memory(td_job *j, td_error *err) {
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

td_status td_job_load_weights(td_job *j, td_error *err) {
    td_beat_step(j->beat, "the weights are being read");
    const td_plan *p = &j->plan;
    int32_t n = 0, at = 0;
    for (int32_t g = 0; g < j->n_groups; g++)
        n += p->groups[g].n_stages;
    td_stage *stages = td_calloc((size_t)n, sizeof *stages);
    if (!stages)
        return td_error_nomem(err, "the stages", (size_t)n * sizeof *stages);
    for (int32_t g = 0; g < j->n_groups; at += p->groups[g++].n_stages)
        td_plan_stages(&p->groups[g], j->devices, stages + at);
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
                1e-9 * (double)stats.bytes_read / dt, line, j->n_groups,
                j->n_groups == 1 ? "" : "s");
    return TD_OK;
}

td_status td_job_bind_weights(td_job *j, td_error *err) {
    uint64_t hash = 0;
    td_status rc = td_weights_hash(j->weights, &hash, err);
    return rc == TD_OK ? td_output_bind_weights(j->output, hash, err) : rc;
}

td_status td_job_open(td_job *j, td_error *err) {
    static const td_job_step steps[] = {
        td_job_open_source,    td_job_open_weights, td_job_open_output, td_job_open_devices,
        td_job_reserve_memory, td_job_load_weights, td_job_bind_weights};
    return td_job_take(j, steps, TD_ARRAY_LEN(steps), err);
}

/* --- running ---------------------------------------------------------------------------------- */

td_status td_job_run(td_job *j, td_run_summary *summary, td_error *err) {
    td_beat_stop(j->beat, NULL);
    j->beat = NULL;
    const td_run_input in = {.cfg = j->cfg,
                             .plan = &j->plan,
                             .weights = j->weights,
                             .devices = j->devices,
                             .source = j->source,
                             .output = j->output,
                             .faults = &j->recovery.faults};
    td_status rc = td_run(&in, summary, err);
    j->abandoned = summary->abandoned;
    return rc;
}

/* One that could not be opened is not among those that td_faults_culprit asks. */
void td_job_describe_loss(const td_job *j, const td_error *err, td_fault *out) {
    int32_t n = j->plan.inventory.n_devices;
    int32_t which = j->devices && !j->opening ? td_faults_culprit(j->devices, n, err->text) : -1;
    const td_device_info *info = j->opening;
    if (which >= 0)
        info = &j->devices[which]->info;
    else if (!info)
        info = td_job_info_of(j, &j->plan.inventory.devices[j->plan.groups[0].stages[0].device]);
    snprintf(out->key, sizeof out->key, "%s", td_device_key(info));
    snprintf(out->name, sizeof out->name, "%s", info->name);
    snprintf(out->why, sizeof out->why, "%s", err->text);
}
