/* td_plan_make: the steps of a plan in order (see plan_internal.h), and its lifetime. */
#include "plan/plan_internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { MIN_BATCH_TOKENS = 128 };

/* Bytes of a sample and of a shard beside rows and tokens: offsets, index and device of a sample;
 * header of a shard. */
static const double SAMPLE_BYTES = 4 * 8 + 1, SHARD_BYTES = 2048;

bool td_plan_warn(td_plan *plan, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    char **list = td_realloc_array(plan->warnings, (size_t)plan->n_warnings + 1, sizeof *list);
    if (!list)
        return false;
    plan->warnings = list;
    list[plan->n_warnings] = td_strdup(text);
    if (!list[plan->n_warnings])
        return false;
    plan->n_warnings++;
    return true;
}

void td_plan_free(td_plan *p) {
    if (!p)
        return;
    td_plan_drop_groups(p);
    td_inventory_free(&p->inventory);
    free(p->domains);
    free(p->alternatives);
    for (int32_t i = 0; i < p->n_warnings; i++)
        free(p->warnings[i]);
    free(p->warnings);
    *p = (td_plan){0};
}

/* --- compute ---------------------------------------------------------------------------------- */

static bool offers(const td_plan_device *d, td_dtype t) {
    return t == TD_F32 ? d->has_f32 : t == TD_BF16 ? d->has_bf16 : d->has_f16;
}

/* The first device that may be in a group and lacks the mode, or NULL. */
static const td_plan_device *lacking(const td_planner *pl, td_dtype t) {
    const td_inventory *inv = &pl->plan->inventory;
    for (int32_t i = 0; i < inv->n_devices; i++)
        if (!pl->idle[i] && !offers(&inv->devices[i], t))
            return &inv->devices[i];
    return NULL;
}

static const char *modes_of(const td_plan_device *d, char *buf, size_t buf_size) {
    static const td_dtype modes[] = {TD_F32, TD_BF16, TD_F16};
    size_t len = 0;
    buf[0] = '\0';
    for (size_t i = 0; i < TD_ARRAY_LEN(modes); i++)
        if (offers(d, modes[i]) && len < buf_size)
            len += (size_t)snprintf(buf + len, buf_size - len, "%s%s", len ? ", " : "",
                                    td_dtype_name(modes[i]));
    return buf;
}

bool td_plan_speed_known(const td_planner *pl, int32_t device) {
    const td_plan_device *d = &pl->plan->inventory.devices[device];
    return d->tflops > 0 || (pl->plan->compute == TD_F32 && d->tflops_f32 > 0);
}

/* Compute mode of the devices that are not idle, and whether their speeds are known. */
static td_status resolve_compute(td_planner *pl) {
    td_plan *plan = pl->plan;
    td_dtype stored = pl->model->weight_dtype;
    static const td_dtype requested[] = {
        [TD_COMPUTE_F32] = TD_F32, [TD_COMPUTE_BF16] = TD_BF16, [TD_COMPUTE_F16] = TD_F16};
    size_t room = sizeof plan->compute_why;
    if (pl->asked_compute != TD_COMPUTE_AUTO) {
        plan->compute = requested[pl->asked_compute];
        const td_plan_device *d = lacking(pl, plan->compute);
        char modes[32];
        if (d)
            return td_error_set(pl->err, TD_E_CONFIG,
                                "model.compute = %s: device %s (%s) does not offer it, only %s",
                                td_dtype_name(plan->compute), d->label, d->type,
                                modes_of(d, modes, sizeof modes));
        snprintf(plan->compute_why, room, "as configured");
    } else if (stored == TD_F32) {
        plan->compute = TD_F32;
        snprintf(plan->compute_why, room, "the checkpoint is f32");
    } else {
        /* The checkpoint's own format keeps its weights exact; the other 16-bit one comes next. */
        td_dtype other = stored == TD_F16 ? TD_BF16 : TD_F16;
        const td_plan_device *no_own = lacking(pl, stored), *no_other = lacking(pl, other);
        if (!no_own) {
            plan->compute = stored;
            snprintf(plan->compute_why, room,
                     "the checkpoint is %s and every device in use offers it",
                     td_dtype_name(stored));
        } else if (!no_other) {
            plan->compute = other;
            snprintf(plan->compute_why, room, "the checkpoint is %s, which device %s (%s) lacks",
                     td_dtype_name(stored), no_own->label, no_own->type);
        } else {
            plan->compute = TD_F32;
            snprintf(plan->compute_why, room,
                     "the checkpoint is %s, which device %s lacks, and device %s lacks %s",
                     td_dtype_name(stored), no_own->label, no_other->label, td_dtype_name(other));
        }
        const td_plan_device *d = lacking(pl, plan->compute);
        if (d)
            return td_error_set(pl->err, TD_E_CONFIG,
                                "model.compute = auto: no compute mode is offered by every device; "
                                "device %s (%s) lacks %s",
                                d->label, d->type, td_dtype_name(plan->compute));
    }
    pl->speeds_known = true;
    for (int32_t i = 0; i < plan->inventory.n_devices; i++)
        if (!pl->idle[i] && !td_plan_speed_known(pl, i))
            pl->speeds_known = false;
    return TD_OK;
}

/* --- fitting ---------------------------------------------------------------------------------- */

/* Groups, placements and memory domains for the largest micro-batch that fits, at most
 * run.batch_tokens. */
static td_status fit(td_planner *pl) {
    td_plan *plan = pl->plan;
    int32_t batch = td_plan_first_batch(pl), longest = td_plan_longest_sample(pl);
    int32_t n_warn = plan->n_warnings;
    bool fits = false;
    for (;;) {
        while (plan->n_warnings > n_warn) /* of a larger micro-batch */
            free(plan->warnings[--plan->n_warnings]);
        pl->n_failed_devices = 0;
        plan->batch_tokens = batch;
        td_status rc = td_plan_form_groups(pl, &fits);
        if (rc == TD_OK && fits) {
            pl->n_failed_devices = 0; /* of narrower groups that were tried */
            rc = td_plan_count_domains(pl, &fits);
        }
        if (rc != TD_OK)
            return rc;
        if (fits)
            break;
        /* Below the longest sample a smaller micro-batch saves nothing. */
        if (batch / 2 < MIN_BATCH_TOKENS || batch <= longest) {
            if (pl->n_failed_devices)
                return td_plan_explain_no_fit(pl);
            for (int32_t i = 0; i < plan->n_domains; i++) {
                const td_plan_domain *d = &plan->domains[i];
                if (d->weight_bytes + d->activation_bytes + d->workspace_bytes > d->memory_bytes)
                    return td_plan_explain_domain(pl, i);
            }
        }
        batch /= 2;
    }
    if (batch < pl->cfg->run.batch_tokens &&
        !td_plan_warn(plan,
                      "Micro-batches are reduced from run.batch_tokens = %d to %d tokens so that "
                      "everything fits in memory.",
                      pl->cfg->run.batch_tokens, batch))
        return td_error_nomem(pl->err, "the plan", 0);
    return TD_OK;
}

/* A device that ends in no group must not decide the compute mode of the others, nor whether their
 * speeds are known: without it the plan is made once more where that changes either. */
static td_status fit_without_leftovers(td_planner *pl) {
    td_plan *plan = pl->plan;
    td_status rc = fit(pl);
    if (rc != TD_OK || !plan->n_leftover)
        return rc;
    td_dtype before = plan->compute;
    bool were_known = pl->speeds_known;
    for (int32_t i = 0; i < plan->n_leftover; i++)
        pl->idle[plan->leftover[i]] = true;
    rc = resolve_compute(pl);
    if (rc != TD_OK || (plan->compute == before && pl->speeds_known == were_known))
        return rc;
    return fit(pl);
}

/* Sessions keep one micro-batch more in flight than the deepest pipeline has stages; the placement
 * was made for as many slots as devices, which can only be more. */
static td_status settle(td_planner *pl) {
    td_plan *plan = pl->plan;
    bool fits = true;
    int32_t deepest = 1;
    int32_t *load = td_calloc((size_t)plan->inventory.n_devices, sizeof *load);
    if (!load)
        return td_error_nomem(pl->err, "the plan", sizeof *load);
    for (int32_t g = 0; g < plan->n_groups; g++)
        deepest = TD_MAX(deepest, plan->groups[g].n_stages);
    plan->limits.n_slots = TD_MIN(plan->limits.n_slots, deepest + 1);
    for (int32_t g = 0; g < plan->n_groups; g++) {
        for (int32_t s = 0; s < plan->groups[g].n_stages; s++) {
            td_plan_stage *st = &plan->groups[g].stages[s];
            st->memory = td_plan_stage_memory(pl, st->item_begin, st->item_end);
            load[st->device]++;
        }
    }
    /* Groups that share a device share its speed. */
    for (int32_t g = 0; pl->speeds_known && g < plan->n_groups; g++) {
        for (int32_t s = 0; s < plan->groups[g].n_stages; s++) {
            td_plan_stage *st = &plan->groups[g].stages[s];
            td_plan_scale_cost(&st->cost, load[st->device]);
            st->seconds_per_token *= load[st->device];
        }
        plan->groups[g].tokens_per_s =
            (double)plan->micro_batch.n_tokens / td_cost_group_seconds(plan, g, &plan->micro_batch);
    }
    free(load);
    return td_plan_count_domains(pl, &fits);
}

/* --- what to tell ----------------------------------------------------------------------------- */

static const char *device_noun(const td_plan *plan, int32_t n) {
    return plan->inventory.is_cpu ? (n == 1 ? "device" : "devices") : n == 1 ? "GPU" : "GPUs";
}

/* Tells of devices of a group that got no stage. */
static bool warn_empty_devices(const td_planner *pl, int32_t group) {
    td_plan *plan = pl->plan;
    const td_plan_group *g = &plan->groups[group];
    int32_t empty[64], n = 0;
    char labels[64];
    for (int32_t i = 0; i < g->n_devices; i++) {
        bool used = false;
        for (int32_t s = 0; s < g->n_stages; s++)
            used = used || g->stages[s].device == g->devices[i];
        if (!used && n < (int32_t)TD_ARRAY_LEN(empty))
            empty[n++] = g->devices[i];
    }
    if (!n)
        return true;
    td_plan_labels(plan, empty, n, labels, sizeof labels);
    if (g->n_devices > pl->n_items)
        return td_plan_warn(plan,
                            "Group %d has %d devices for the %d parts of the model (embedding, %d "
                            "layers, lm_head): %s %s will be empty.",
                            group, g->n_devices, pl->n_items, pl->model->n_layers,
                            device_noun(plan, n), labels);
    return td_plan_warn(plan, "Group %d is fastest without %s %s, which will be empty.", group,
                        device_noun(plan, n), labels);
}

static td_status add_warnings(td_planner *pl) {
    td_plan *plan = pl->plan;
    char labels[64];
    for (int32_t g = 0; g < plan->n_groups; g++)
        if (!warn_empty_devices(pl, g))
            goto nomem;
    td_plan_labels(plan, plan->leftover, plan->n_leftover, labels, sizeof labels);
    if (plan->n_leftover && !td_plan_warn(plan, "Left over: no group uses %s %s.",
                                          device_noun(plan, plan->n_leftover), labels))
        goto nomem;
    if (plan->compute == TD_F16 && pl->model->weight_dtype != TD_F16 &&
        !td_plan_warn(plan,
                      "A %s checkpoint computed in f16 can overflow; model.compute = f32 is the "
                      "safe, slower choice.",
                      td_dtype_name(pl->model->weight_dtype)))
        goto nomem;
    return TD_OK;
nomem:
    return td_error_nomem(pl->err, "the plan", 0);
}

static void predict(td_planner *pl, const td_plan_record_cost *record) {
    td_plan *plan = pl->plan;
    const td_config *cfg = pl->cfg;
    const td_dataset_stats *st = &plan->stats;
    plan->worker_id = cfg->run.worker_id;
    plan->total_workers = TD_MAX(cfg->run.total_workers, 1);
    double share = 1.0 / plan->total_workers;
    if (record) {
        double shards =
            ceil((double)st->n_dataset_rows / (double)TD_MAX(cfg->output.shard_samples, 1));
        plan->bytes_per_row = record->bytes_per_row;
        plan->bytes_at_most = record->at_most;
        plan->output_bytes =
            (uint64_t)(share * ((double)st->n_record_rows * record->bytes_per_row +
                                (double)st->n_tokens * record->bytes_per_token +
                                (double)st->n_samples * SAMPLE_BYTES + shards * SHARD_BYTES));
    }
    if (!pl->speeds_known)
        return;
    double tokens = share * (double)st->n_tokens, bubble = 0;
    for (int32_t g = 0; g < plan->n_groups; g++)
        plan->tokens_per_s += plan->groups[g].tokens_per_s;
    if (plan->tokens_per_s <= 0)
        return;
    /* Filling and draining a pipeline of p stages costs p - 1 micro-batches of its slowest stage.
     */
    for (int32_t g = 0; g < plan->n_groups; g++) {
        const td_plan_group *gr = &plan->groups[g];
        double batch_s = (double)plan->micro_batch.n_tokens / gr->tokens_per_s;
        bubble = fmax(bubble, (gr->n_stages - 1) * batch_s);
    }
    /* However little there is: a micro-batch is computed by one group. */
    double least = HUGE_VAL;
    for (int32_t g = 0; g < plan->n_groups; g++)
        least = fmin(least, td_cost_group_seconds(plan, g, &plan->micro_batch));
    plan->wall_s = fmax(tokens / plan->tokens_per_s, tokens > 0 ? least : 0) + bubble;
}

td_status td_plan_make(const td_plan_input *in, td_plan *out, td_error *err) {
    td_plan plan = {.stats = *in->stats,
                    .max_length = in->cfg->data.max_length,
                    .overflow = in->cfg->data.overflow,
                    .capture = *in->capture};
    td_planner pl = {.cfg = in->cfg,
                     .asked_compute = in->compute,
                     .model = in->model,
                     .plan = &plan,
                     .n_items = in->model->n_layers + 2,
                     .err = err};
    td_cost_model_init(in->model, &plan.cost);
    pl.work = td_plan_dataset_work(in->stats, &plan.cost, in->cfg->data.max_length);
    td_status rc = td_plan_choose_devices(&pl, in->inventory);
    if (rc == TD_OK)
        rc = resolve_compute(&pl);
    if (rc != TD_OK)
        goto fail;
    if ((rc = fit_without_leftovers(&pl)) != TD_OK || (rc = settle(&pl)) != TD_OK ||
        (rc = add_warnings(&pl)) != TD_OK || (rc = td_plan_list_alternatives(&pl)) != TD_OK)
        goto fail;
    plan.gpus_per_model = plan.groups[0].n_devices;
    for (int32_t g = 1; g < plan.n_groups; g++)
        if (plan.groups[g].n_devices != plan.gpus_per_model)
            plan.gpus_per_model = 0;
    predict(&pl, in->record);
    free(pl.failed_devices);
    free(pl.idle);
    *out = plan;
    return TD_OK;
fail:
    free(pl.failed_devices);
    free(pl.idle);
    td_plan_free(&plan);
    return rc;
}

void td_plan_stages(const td_plan_group *group, td_device *const *devices, td_stage *out) {
    for (int32_t i = 0; i < group->n_stages; i++)
        out[i] = (td_stage){.device = devices[group->stages[i].device],
                            .item_begin = group->stages[i].item_begin,
                            .item_end = group->stages[i].item_end};
}
