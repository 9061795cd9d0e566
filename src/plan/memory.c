/* Memory: session limits, what a stage and a domain need, and what to say when it is too much. */
#include "plan/plan_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum {
    CAPTURE_ROWS_CPU = 256, /* one row tile of the CPU's GEMM */
    CAPTURE_ROWS_GPU = 1024,
    MIN_CAPTURE_ROWS = 16,
    MAX_SUGGESTED_DEVICES = 512
};
static const uint64_t MAX_LOGITS_BYTES = (uint64_t)1 << 30;
/* Dense rows of one micro-batch in host memory, unless the longest sample has more. */
static const uint64_t MAX_DENSE_BYTES = (uint64_t)1 << 29;

int32_t td_plan_longest_sample(const td_planner *pl) {
    const td_dataset_stats *st = &pl->plan->stats;
    /* Of a sampled dataset the longest sample is not known, only what it cannot exceed. */
    return st->estimated || st->tokens_from_bytes
               ? pl->cfg->data.max_length
               : TD_MIN(TD_MAX(st->max_tokens, 1), pl->cfg->data.max_length);
}

/* Micro-batches do not reach over the end of a shard, and a sample is never cut. */
static td_work_size typical_batch(const td_planner *pl, int32_t batch_tokens) {
    const td_work_size *w = &pl->work;
    const td_dataset_stats *st = &pl->plan->stats;
    double tokens = (double)w->n_tokens, room = TD_MAX(batch_tokens, 1);
    if (st->n_tokens <= 0)
        return td_plan_scale_work(w, TD_MAX(room / tokens, 1));
    double shards = ceil((double)st->n_dataset_rows / TD_MAX(pl->cfg->output.shard_samples, 1));
    double n = TD_MAX(shards, 1) * ceil(tokens / TD_MAX(shards, 1) / room);
    if ((double)st->n_samples * room < tokens)
        n = TD_MAX(n, (double)st->n_samples);
    return td_plan_scale_work(w, 1 / n);
}

void td_plan_set_limits(td_planner *pl, int32_t batch_tokens, int32_t width) {
    td_session_limits *lim = &pl->plan->limits;
    *lim = (td_session_limits){
        .max_tokens = TD_MAX(batch_tokens, td_plan_longest_sample(pl)),
        .n_slots = TD_MIN(width, pl->n_items) + 1,
        .narrow_attention = !pl->plan->inventory.is_cpu,
    };
    /* A sample in a micro-batch has a row, so at least two tokens. */
    lim->max_seqs = TD_MAX(lim->max_tokens / 2, 1);
    lim->max_rows = lim->max_tokens;
    int64_t rows = pl->plan->inventory.is_cpu ? CAPTURE_ROWS_CPU : CAPTURE_ROWS_GPU;
    int64_t row_bytes = 4 * (int64_t)TD_MAX(pl->model->n_vocab, 1);
    while (rows > MIN_CAPTURE_ROWS && rows * row_bytes > (int64_t)MAX_LOGITS_BYTES)
        rows /= 2;
    lim->capture_rows = (int32_t)TD_MIN(rows, lim->max_rows);
    pl->plan->batch_tokens = batch_tokens;
    pl->plan->micro_batch = typical_batch(pl, batch_tokens);
}

td_stage_memory td_plan_stage_memory(const td_planner *pl, int32_t begin, int32_t end) {
    td_stage_memory m = {0};
    td_stage_memory_estimate(pl->model, pl->plan->compute, &pl->plan->limits, &pl->plan->capture,
                             begin, end, &m);
    /* On CPU devices the host's memory is the device's. */
    if (pl->plan->inventory.is_cpu && end == pl->n_items && begin < end)
        m.workspace_bytes += td_session_host_bytes(&pl->plan->limits, &pl->plan->capture);
    return m;
}

int32_t td_plan_first_batch(const td_planner *pl) {
    uint64_t row_bytes = td_capture_dense_bytes(&pl->plan->capture);
    int32_t batch = pl->cfg->run.batch_tokens, longest = td_plan_longest_sample(pl);
    if (row_bytes && (uint64_t)batch > MAX_DENSE_BYTES / row_bytes)
        batch = (int32_t)TD_MAX(MAX_DENSE_BYTES / row_bytes, 1);
    return TD_MIN(pl->cfg->run.batch_tokens, TD_MAX(batch, longest));
}

uint64_t td_plan_total_bytes(const td_stage_memory *m) {
    return m->weight_bytes + m->activation_bytes + m->workspace_bytes;
}

static td_plan_domain *domain_of(td_plan *plan, int32_t domain) {
    for (int32_t i = 0; i < plan->n_domains; i++)
        if (plan->domains[i].domain == domain)
            return &plan->domains[i];
    return NULL;
}

/* Marks the items that the domain holds and sums the weights of each consecutive run of them. */
static uint64_t domain_weights(const td_planner *pl, int32_t domain, bool *has) {
    const td_plan *plan = pl->plan;
    uint64_t sum = 0;
    memset(has, 0, (size_t)pl->n_items * sizeof *has);
    for (int32_t g = 0; g < plan->n_groups; g++) {
        for (int32_t s = 0; s < plan->groups[g].n_stages; s++) {
            const td_plan_stage *st = &plan->groups[g].stages[s];
            if (plan->inventory.devices[st->device].domain == domain)
                for (int32_t i = st->item_begin; i < st->item_end; i++)
                    has[i] = true;
        }
    }
    for (int32_t b = 0; b < pl->n_items; b++) {
        int32_t e = b;
        while (e < pl->n_items && has[e])
            e++;
        if (e > b) {
            sum += td_plan_stage_memory(pl, b, e).weight_bytes;
            b = e;
        }
    }
    return sum;
}

td_status td_plan_count_domains(td_planner *pl, bool *fits) {
    td_plan *plan = pl->plan;
    bool *has = td_calloc((size_t)pl->n_items, sizeof *has);
    free(plan->domains);
    plan->n_domains = 0;
    plan->domains = td_calloc((size_t)plan->inventory.n_devices, sizeof *plan->domains);
    if (!has || !plan->domains) {
        free(has);
        return td_error_nomem(pl->err, "the plan", (size_t)plan->inventory.n_devices);
    }
    for (int32_t g = 0; g < plan->n_groups; g++) {
        const td_plan_group *gr = &plan->groups[g];
        for (int32_t s = 0; s < gr->n_stages; s++) {
            const td_plan_device *dev = &plan->inventory.devices[gr->stages[s].device];
            td_plan_domain *d = domain_of(plan, dev->domain);
            if (!d) {
                d = &plan->domains[plan->n_domains++];
                *d = (td_plan_domain){.domain = dev->domain};
            }
            d->n_stages++;
            d->activation_bytes += gr->stages[s].memory.activation_bytes;
            d->workspace_bytes += gr->stages[s].memory.workspace_bytes;
        }
    }
    *fits = true;
    for (int32_t i = 0; i < plan->n_domains; i++) {
        td_plan_domain *d = &plan->domains[i];
        d->weight_bytes = domain_weights(pl, d->domain, has);
        for (int32_t j = 0; j < plan->inventory.n_devices; j++) {
            const td_plan_device *dev = &plan->inventory.devices[j];
            if (dev->domain == d->domain) {
                d->n_devices++;
                d->memory_bytes = TD_MAX(d->memory_bytes, dev->memory_bytes);
            }
        }
        if (d->weight_bytes + d->activation_bytes + d->workspace_bytes > d->memory_bytes)
            *fits = false;
    }
    free(has);
    return TD_OK;
}

/* --- messages --------------------------------------------------------------------------------- */

int32_t td_plan_devices_needed(const td_planner *pl, uint64_t limit) {
    int32_t n = 0;
    for (int32_t b = 0; b < pl->n_items; n++) {
        int32_t e = b;
        while (e < pl->n_items) {
            td_stage_memory m = td_plan_stage_memory(pl, b, e + 1);
            if (td_plan_total_bytes(&m) > limit)
                break;
            e++;
        }
        if (e == b || n == MAX_SUGGESTED_DEVICES)
            return 0;
        b = e;
    }
    return n;
}

typedef struct fullness {
    const td_planner *pl;
    const uint64_t *limit; /* per kind */
} fullness;

static double fullness_cost(const void *user, int32_t kind, int32_t b, int32_t e) {
    const fullness *f = user;
    td_stage_memory m = td_plan_stage_memory(f->pl, b, e);
    return (double)td_plan_total_bytes(&m) / (double)TD_MAX(f->limit[kind], 1);
}

/* The fullest device's share of its memory in the most even placement by memory, and the bytes that
 * all devices need together there. */
static td_status even_fullness(const td_planner *pl, const int32_t *devices, int32_t n,
                               double *fullest, uint64_t *need_bytes) {
    td_status rc = TD_OK;
    int32_t *kind = td_calloc((size_t)n, sizeof *kind);
    uint64_t *limit = td_calloc((size_t)n, sizeof *limit);
    td_place_stage *stages = td_calloc((size_t)n, sizeof *stages);
    if (!kind || !limit || !stages) {
        rc = td_error_nomem(pl->err, "the plan", (size_t)n);
        goto done;
    }
    int32_t n_kinds = 0;
    for (int32_t i = 0; i < n; i++) {
        uint64_t bytes = pl->plan->inventory.devices[devices[i]].memory_bytes;
        int32_t k = 0;
        while (k < n_kinds && limit[k] != bytes)
            k++;
        if (k == n_kinds)
            limit[n_kinds++] = bytes;
        kind[i] = k;
    }
    fullness user = {pl, limit};
    td_place_problem problem = {.n_items = pl->n_items,
                                .n_devices = n,
                                .kind_of = kind,
                                .n_kinds = n_kinds,
                                .cost = fullness_cost,
                                .user = &user};
    td_placement place = {.stages = stages};
    rc = td_place(&problem, &place, pl->err);
    if (rc != TD_OK)
        goto done;
    *fullest = place.bottleneck;
    *need_bytes = 0;
    for (int32_t i = 0; i < place.n_stages; i++) {
        td_stage_memory m = td_plan_stage_memory(pl, stages[i].begin, stages[i].end);
        *need_bytes += td_plan_total_bytes(&m);
    }
done:
    free(kind);
    free(limit);
    free(stages);
    return rc;
}

/* "8 x A100-80GB" or "4 x A100-80GB + 4 x V100-32GB" */
static void type_list(const td_plan *plan, const int32_t *devices, int32_t n, td_strbuf *b) {
    for (int32_t i = 0; i < n;) {
        const char *type = plan->inventory.devices[devices[i]].type;
        int32_t run = 1;
        while (i + run < n && !strcmp(plan->inventory.devices[devices[i + run]].type, type))
            run++;
        td_strbuf_printf(b, "%s%d x %s", i ? " + " : "", run, type);
        i += run;
    }
}

td_status td_plan_explain_no_fit(td_planner *pl) {
    td_plan *plan = pl->plan;
    const int32_t *devices = pl->failed_devices;
    int32_t n = pl->n_failed_devices, biggest = devices[0];
    uint64_t have = 0, need = 0, weights = td_plan_stage_memory(pl, 0, pl->n_items).weight_bytes;
    double fullest = 0;
    for (int32_t i = 0; i < n; i++) {
        uint64_t bytes = plan->inventory.devices[devices[i]].memory_bytes;
        have += bytes;
        if (bytes > plan->inventory.devices[biggest].memory_bytes)
            biggest = devices[i];
    }
    td_status rc = even_fullness(pl, devices, n, &fullest, &need);
    if (rc != TD_OK)
        return rc;

    td_strbuf b = {0};
    char labels[64], x[3][24];
    td_strbuf_puts(&b, "one copy of the model does not fit on ");
    type_list(plan, devices, n, &b);
    td_strbuf_printf(
        &b,
        " (%s %s): in %s, with micro-batches of %d tokens, it needs %s (%s of it "
        "weights) of the %s usable there",
        plan->inventory.is_cpu ? "devices" : "GPUs",
        td_plan_labels(plan, devices, n, labels, sizeof labels), td_dtype_name(plan->compute),
        plan->limits.max_tokens, td_human_bytes(need, x[0], sizeof x[0]),
        td_human_bytes(weights, x[1], sizeof x[1]), td_human_bytes(have, x[2], sizeof x[2]));
    if (need > have)
        td_strbuf_printf(&b, ": %s are missing", td_human_bytes(need - have, x[0], sizeof x[0]));
    else
        td_strbuf_puts(&b, ", but its layers cannot be cut so that each device has enough");
    td_strbuf_puts(&b, ". What would fit: ");

    const td_plan_device *big = &plan->inventory.devices[biggest];
    int32_t needed = td_plan_devices_needed(pl, big->memory_bytes);
    const char *sep = "";
    if (needed > n) {
        td_strbuf_printf(&b, "%d x %s (gpus_per_model = %d)", needed, big->type, needed);
        sep = "; ";
    } else if (!needed) {
        td_strbuf_printf(&b, "no number of %s, as one layer is larger than the device", big->type);
        sep = "; ";
    }
    if (fullest < 100)
        td_strbuf_printf(&b, "%s%d device%s with %.0f%% more memory", sep, n, n == 1 ? "" : "s",
                         ceil((fullest - 1) * 100));
    else /* next to nothing is usable: a percentage says nothing */
        td_strbuf_printf(&b, "%s%d device%s with more memory", sep, n, n == 1 ? "" : "s");
    if (plan->compute == TD_F32 && pl->asked_compute == TD_COMPUTE_F32)
        td_strbuf_puts(&b, "; model.compute = bf16 or f16 for half the weights");
    if (plan->limits.max_tokens > 4 * TD_MAX(plan->stats.max_tokens, 1024))
        td_strbuf_puts(&b, "; a smaller data.max_length for less activation memory");
    /* A checkpoint of 8 bits is no way to have less here. */
    td_strbuf_printf(&b, ". Devices hold weights in %s; FP8 ones are dequantised as they are read",
                     td_dtype_name(plan->compute));
    if (b.oom)
        rc = td_error_nomem(pl->err, "a message", b.len);
    else
        rc = td_error_set(pl->err, TD_E_DEVICE, "%s", b.data);
    td_strbuf_free(&b);
    return rc;
}

td_status td_plan_explain_domain(td_planner *pl, int32_t domain) {
    const td_plan_domain *d = &pl->plan->domains[domain];
    const td_inventory *inv = &pl->plan->inventory;
    const char *label = "";
    for (int32_t i = inv->n_devices - 1; i >= 0; i--)
        if (inv->devices[i].domain == d->domain)
            label = inv->devices[i].label;
    uint64_t scratch = d->activation_bytes + d->workspace_bytes;
    char x[4][24], advice[200];
    if (d->weight_bytes >= d->memory_bytes)
        snprintf(advice, sizeof advice,
                 "The weights alone do not fit: use a device with more memory%s",
                 pl->plan->compute == TD_F32 ? ", or model.compute = bf16 for half of it" : "");
    else
        snprintf(
            advice, sizeof advice,
            "Use fewer groups on this memory, a smaller data.max_length, or a device with more");
    return td_error_set(
        pl->err, TD_E_DEVICE,
        "the memory of %s %s is too small for the %d stage%s there: weights in %s take %s, "
        "activations and workspace %s with micro-batches of %d tokens, and %s are usable. %s",
        inv->is_cpu ? "device" : "GPU", label, d->n_stages, d->n_stages == 1 ? "" : "s",
        td_dtype_name(pl->plan->compute), td_human_bytes(d->weight_bytes, x[0], sizeof x[0]),
        td_human_bytes(scratch, x[1], sizeof x[1]), pl->plan->limits.max_tokens,
        td_human_bytes(d->memory_bytes, x[2], sizeof x[2]), advice);
}
