/* Samples of a folder computed again by the teacher: one copy of the model on the devices, two
 * passes over the samples. The second goes the other way, in other micro-batches, each of which
 * begins with tokens that are nobody's, so that no row has the place or the neighbours that it had:
 * by the row property its bits must be those of the first pass. */
#include "app/against.h"

#include <stdlib.h>
#include <string.h>
#include "config/config.h"
#include "device/device.h"
#include "base/log.h"
#include "model/model.h"
#include "plan/plan.h"
#include "record/record.h"
#include "tokenizer/tokenizer.h"
#include "base/memory.h"

enum { BATCH_TOKENS = 4096, FILLER_TOKENS = 37, MAX_DEVICES = 64 };

typedef struct against {
    const td_against_options *opt;
    td_recheck *recheck;
    const td_recheck_sample *samples;
    int32_t n_samples;
    td_config cfg; /* not from a file: only what plan and session look at */
    int32_t gpus[MAX_DEVICES];
    td_model_config model;
    td_tokenizer *tok;
    int32_t n_valid_vocab;
    td_device_info *info;
    int32_t n_info;
    td_inventory inventory;
    td_plan plan;
    td_device **devices; /* indexed like plan.inventory.devices */
    td_weights *weights;
    td_session *session;
    char kind[256];
    /* Of one micro-batch. */
    int32_t *ids, *seq_offsets, *row_token, *row_target;
    int64_t *row_dataset_row, *row_position;
    int32_t *first_row; /* [n_samples] */
} against;

static td_status parse_devices(against *a, td_error *err) {
    const char *s = a->opt->devices;
    a->cfg.devices.n_gpus = 1;
    if (!s || strcmp(s, "auto") == 0) {
        a->cfg.devices.gpus_kind = TD_GPUS_AUTO;
        return TD_OK;
    }
    if (strcmp(s, "cpu") == 0) {
        a->cfg.devices.gpus_kind = TD_GPUS_CPU;
        return TD_OK;
    }
    a->cfg.devices.gpus_kind = TD_GPUS_LIST;
    a->cfg.devices.gpus = a->gpus;
    a->cfg.devices.n_gpus = 0;
    for (const char *p = s;;) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < 0 || v > 4096 || a->cfg.devices.n_gpus == MAX_DEVICES ||
            (*end && *end != ','))
            return td_error_set(err, TD_E_CONFIG,
                                "--devices %s: expected auto, cpu, or numbers of GPUs as in 0,1",
                                s);
        a->gpus[a->cfg.devices.n_gpus++] = (int32_t)v;
        if (!*end)
            return TD_OK;
        p = end + 1;
    }
}

static td_status find_devices(against *a, td_error *err) {
    td_status rc = TD_OK;
    if (a->cfg.devices.gpus_kind != TD_GPUS_CPU) {
        rc = td_device_enumerate("cuda", 0, &a->info, &a->n_info, err);
        if (rc != TD_OK)
            return rc;
        if (a->n_info > 0)
            return td_inventory_from_devices(a->info, a->n_info, false, &a->inventory, err);
        free(a->info);
        a->info = NULL;
        if (a->cfg.devices.gpus_kind == TD_GPUS_LIST)
            return td_error_set(err, TD_E_DEVICE,
                                "--devices %s names GPUs, but there is none that this build can "
                                "use; use --devices cpu",
                                a->opt->devices);
    }
    rc = td_device_enumerate("cpu", 1, &a->info, &a->n_info, err);
    if (rc == TD_OK)
        rc = td_inventory_from_devices(a->info, a->n_info, true, &a->inventory, err);
    return rc;
}

/* One copy of the model, on as few devices as hold it. */
static td_status make_plan(against *a, td_error *err) {
    td_dataset_stats stats = {.n_dataset_rows = a->n_samples, .n_samples = a->n_samples};
    for (int32_t i = 0; i < a->n_samples; i++) {
        stats.n_tokens += a->samples[i].n_tokens;
        stats.n_record_rows += a->samples[i].n_rows;
        stats.max_tokens = TD_MAX(stats.max_tokens, a->samples[i].n_tokens + FILLER_TOKENS);
    }
    a->cfg.data.max_length = stats.max_tokens;
    a->cfg.run.batch_tokens = BATCH_TOKENS;
    a->cfg.run.total_workers = 1;
    a->cfg.output.shard_samples = 1024;
    td_status rc = td_plan_make(&a->cfg, &a->inventory, &a->model, &stats, NULL, &a->plan, err);
    a->plan.limits.n_valid_vocab = a->n_valid_vocab;
    return rc;
}

static td_status open_devices(against *a, td_stage *stages, td_error *err) {
    const td_plan_group *g = &a->plan.groups[0];
    a->devices = td_calloc((size_t)a->plan.inventory.n_devices, sizeof *a->devices);
    if (!a->devices)
        return td_error_nomem(err, "the devices", 64);
    for (int32_t s = 0; s < g->n_stages; s++) {
        int32_t d = g->stages[s].device;
        const td_device_info *info = NULL;
        for (int32_t i = 0; i < a->n_info; i++)
            if (a->info[i].index == a->plan.inventory.devices[d].index)
                info = &a->info[i];
        if (!info)
            return td_error_set(err, TD_E_INTERNAL, "the plan names a device that is not there");
        td_status rc = a->devices[d] ? TD_OK : td_device_open(info, &a->devices[d], err);
        if (rc != TD_OK)
            return rc;
        stages[s] = (td_stage){.device = a->devices[d],
                               .item_begin = g->stages[s].item_begin,
                               .item_end = g->stages[s].item_end};
        /* joined as a run does it */
        const char *kind = a->devices[d]->info.kind;
        size_t n = strlen(a->kind);
        if (!strstr(a->kind, kind))
            snprintf(a->kind + n, sizeof a->kind - n, "%s%s", n ? " + " : "", kind);
    }
    return TD_OK;
}

static td_status load(against *a, td_error *err) {
    const td_plan_group *g = &a->plan.groups[0];
    td_stage *stages = td_calloc((size_t)g->n_stages, sizeof *stages);
    uint64_t hash = 0;
    if (!stages)
        return td_error_nomem(err, "the stages", (size_t)g->n_stages * sizeof *stages);
    td_status rc = td_weights_open(a->opt->model_dir, &a->model, &a->weights, err);
    if (rc == TD_OK)
        rc = open_devices(a, stages, err);
    if (rc == TD_OK)
        rc = td_weights_load(a->weights, stages, g->n_stages, a->plan.compute, NULL, err);
    if (rc == TD_OK)
        rc = td_weights_hash(a->weights, &hash, err);
    if (rc == TD_OK)
        rc = td_recheck_teacher(a->recheck, a->opt->model_dir, NULL, NULL, &hash, err);
    if (rc == TD_OK)
        rc = td_session_create(a->weights, stages, g->n_stages, &a->plan.limits, &a->session, err);
    free(stages);
    const td_session_limits *lim = &a->plan.limits;
    a->ids = td_calloc((size_t)lim->max_tokens, sizeof *a->ids);
    a->seq_offsets = td_calloc((size_t)lim->max_seqs + 1, sizeof *a->seq_offsets);
    a->row_token = td_calloc((size_t)lim->max_rows, sizeof *a->row_token);
    a->row_target = td_calloc((size_t)lim->max_rows, sizeof *a->row_target);
    a->row_dataset_row = td_calloc((size_t)lim->max_rows, sizeof *a->row_dataset_row);
    a->row_position = td_calloc((size_t)lim->max_rows, sizeof *a->row_position);
    a->first_row = td_calloc((size_t)a->n_samples, sizeof *a->first_row);
    if (rc == TD_OK && (!a->ids || !a->seq_offsets || !a->row_token || !a->row_target ||
                        !a->row_dataset_row || !a->row_position || !a->first_row))
        rc = td_error_nomem(err, "a micro-batch", (size_t)lim->max_tokens * 32);
    return rc;
}

/* Appends a sample to the micro-batch when it has room. */
static bool append(against *a, td_batch *b, int32_t sample, int32_t max_tokens) {
    const td_recheck_sample *s = &a->samples[sample];
    const td_session_limits *lim = &a->plan.limits;
    if (b->n_seqs && (b->n_tokens + s->n_tokens > max_tokens || b->n_seqs == lim->max_seqs ||
                      b->n_rows + s->n_rows > lim->max_rows))
        return false;
    memcpy(a->ids + b->n_tokens, s->ids, (size_t)s->n_tokens * sizeof *s->ids);
    a->first_row[sample] = b->n_rows;
    for (int32_t i = 0; i < s->n_rows; i++) {
        a->row_token[b->n_rows] = b->n_tokens + s->position[i];
        a->row_target[b->n_rows] = s->ids[s->position[i] + 1];
        a->row_dataset_row[b->n_rows] = s->dataset_row;
        a->row_position[b->n_rows] = s->start + s->position[i];
        b->n_rows++;
    }
    b->n_tokens += s->n_tokens;
    a->seq_offsets[++b->n_seqs] = b->n_tokens;
    return true;
}

/* All samples, in order or from the last to the first; `control` says to what they go. */
static td_status pass(against *a, bool control, td_error *err) {
    int32_t max_tokens = control ? TD_MIN(BATCH_TOKENS * 2 / 3, a->plan.limits.max_tokens)
                                 : TD_MIN(BATCH_TOKENS, a->plan.limits.max_tokens);
    for (int32_t done = 0; done < a->n_samples;) {
        td_batch b = {.ids = a->ids,
                      .seq_offsets = a->seq_offsets,
                      .row_token = a->row_token,
                      .row_target = a->row_target,
                      .row_dataset_row = a->row_dataset_row,
                      .row_position = a->row_position};
        int32_t first = done;
        if (control) {
            const td_recheck_sample *s = &a->samples[0];
            b.n_tokens = TD_MIN(s->n_tokens, FILLER_TOKENS);
            memcpy(a->ids, s->ids, (size_t)b.n_tokens * sizeof *s->ids);
            a->seq_offsets[1] = b.n_tokens;
            /* room for the first sample is certain, however long it is */
            max_tokens =
                TD_MAX(max_tokens, b.n_tokens + a->samples[a->n_samples - 1 - done].n_tokens);
            b.n_seqs = 1;
        }
        while (done < a->n_samples &&
               append(a, &b, control ? a->n_samples - 1 - done : done, max_tokens))
            done++;
        td_captured cap;
        td_status rc = td_session_submit(a->session, 0, &b, err);
        if (rc == TD_OK)
            rc = td_session_wait(a->session, 0, 0, &cap, err);
        for (int32_t k = first; rc == TD_OK && k < done; k++) {
            int32_t i = control ? a->n_samples - 1 - k : k;
            if (control)
                td_recheck_control(a->recheck, i, &cap, a->first_row[i]);
            else
                rc = td_recheck_compare(a->recheck, i, a->kind, &cap, a->first_row[i], err);
        }
        if (rc != TD_OK)
            return rc;
    }
    return TD_OK;
}

static td_status check_teacher(against *a, td_error *err) {
    td_status rc = td_model_config_load(a->opt->model_dir, &a->model, err);
    if (rc == TD_OK)
        rc = td_recheck_teacher(a->recheck, a->opt->model_dir, &a->model, NULL, NULL, err);
    if (rc == TD_OK && td_recheck_needs_tokenizer(a->recheck)) {
        rc = td_tokenizer_load(a->opt->model_dir, &a->tok, err);
        if (rc == TD_OK)
            rc = td_recheck_teacher(a->recheck, a->opt->model_dir, NULL, a->tok, NULL, err);
    }
    if (rc == TD_OK)
        rc = td_recheck_settings(a->recheck, &a->model, &a->cfg, &a->n_valid_vocab, err);
    return rc;
}

td_status td_against(const char *dir, const td_against_options *opt, FILE *out, td_error *err) {
    against *a = td_calloc(1, sizeof *a);
    if (!a)
        return td_error_nomem(err, "the samples", sizeof *a);
    a->opt = opt;
    td_status rc = parse_devices(a, err);
    if (rc == TD_OK)
        rc = td_recheck_open(dir, opt->n_samples, opt->seed, &a->recheck, err);
    if (rc != TD_OK)
        goto done;
    a->samples = td_recheck_samples(a->recheck, &a->n_samples);
    static td_status (*const step[])(against *, td_error *) = {check_teacher, find_devices,
                                                               make_plan, load};
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(step); i++)
        rc = step[i](a, err);
    if (rc == TD_OK)
        rc = pass(a, false, err);
    if (rc == TD_OK)
        rc = pass(a, true, err);
    if (rc == TD_OK)
        rc = td_recheck_report(a->recheck, a->kind, out, err);
done:
    td_session_destroy(a->session);
    td_weights_close(a->weights);
    for (int32_t i = 0; a->devices && i < a->plan.inventory.n_devices; i++)
        td_device_close(a->devices[i]);
    free(a->devices);
    td_plan_free(&a->plan);
    td_inventory_free(&a->inventory);
    free(a->info);
    td_tokenizer_free(a->tok);
    td_recheck_close(a->recheck);
    free(a->ids);
    free(a->seq_offsets);
    free(a->row_token);
    free(a->row_target);
    free(a->row_dataset_row);
    free(a->row_position);
    free(a->first_row);
    free(a);
    return rc;
}
