/* cost.c - the cost model: FLOPs and bytes of each item of the model, seconds of a stage on a device.
 *
 * A GEMM takes the longer of its arithmetic and the reading of its weights, which a micro-batch
 * does once; attention costs by query-key pairs; what lies between GEMMs (norms, rope, gated
 * activation, residuals, capture) is bound by memory and comes on top.
 */
#include "plan/plan_internal.h"

#include <math.h>

#include "base/memory.h"

/* --- the size of work ------------------------------------------------------------------------- */

td_work_size td_plan_dataset_work(const td_dataset_stats *st, const td_cost_model *c,
                                  int32_t max_length) {
    td_work_size w = {0};
    if (st->n_tokens <= 0 || st->n_samples <= 0) { /* unknown: full samples, every row recorded */
        td_work_size_add(&w, max_length, TD_MAX(max_length - 1, 1), c->window);
        return w;
    }
    w = (td_work_size){st->n_tokens, st->n_record_rows, st->n_pairs, st->n_pairs_window};
    if (w.n_pairs > 0)
        return w;
    /* Only the mean is known. */
    td_work_size mean = {0};
    td_work_size_add(&mean, (int32_t)TD_MIN(st->n_tokens / st->n_samples + 1, INT32_MAX), 0,
                     c->window);
    double n = (double)st->n_tokens / (double)mean.n_tokens;
    w.n_pairs = n * mean.n_pairs;
    w.n_pairs_window = n * mean.n_pairs_window;
    return w;
}

td_work_size td_plan_scale_work(const td_work_size *w, double factor) {
    return (td_work_size){.n_tokens = TD_MAX(llround((double)w->n_tokens * factor), 1),
                          .n_rows = llround((double)w->n_rows * factor),
                          .n_pairs = w->n_pairs * factor,
                          .n_pairs_window = w->n_pairs_window * factor};
}

/* --- what items cost -------------------------------------------------------------------------- */

/* FLOPs and bytes of one item per unit of work, and the weights that a micro-batch reads once. */
typedef struct item_work {
    double token_flops, row_flops, pair_flops;
    bool windowed; /* its pairs are those under the window */
    bool moe;      /* a mixture of experts */
    double weight_params;
    double token_bytes, row_bytes; /* activations read and written between GEMMs */
} item_work;

static void add_mixer_work(const td_mixer *m, double C, item_work *w) {
    switch (m->kind) {
    case TD_MIXER_ATTENTION: {
        const td_attention *a = &m->attention;
        double D = a->head_dim, H = a->n_heads, qkv = (H + 2 * a->n_kv_heads) * D;
        double params = qkv * C + H * D * C;
        w->token_flops += 2 * params;
        w->weight_params += params;
        w->pair_flops += 4 * H * D; /* q k^T, and the weighted sum of v */
        w->windowed = a->window > 0;
        w->token_bytes += 4 * (3 * qkv + 2 * H * D); /* q k v through rope and attention */
        break;
    }
    }
}

static void add_ffn_work(const td_ffn *f, double C, item_work *w) {
    switch (f->kind) {
    case TD_FFN_DENSE: {
        double mats = f->dense.gated ? 3 : 2, F = f->dense.n_ffn;
        w->token_flops += 2 * mats * F * C;
        w->weight_params += mats * F * C;
        w->token_bytes += 4 * mats * F; /* gate and up */
        break;
    }
    case TD_FFN_EXPERTS: {
        /* A token passes the router and the chosen ones, but a micro-batch has tokens for all. */
        const td_experts *e = &f->experts;
        double F = e->n_ffn, E = e->n_experts, used = e->n_used;
        w->moe = true;
        w->token_flops += 2 * (E * C + used * 3 * F * C);
        w->weight_params += E * C + E * 3 * F * C;
        w->token_bytes += 4 * 3 * used * F;
        break;
    }
    }
}

/* Whole numbers, of any real model below 2^53: it does not matter in which order they add up. */
static item_work work_of(const td_model_config *m, int32_t item) {
    double C = m->n_hidden;
    if (item == 0) /* a gathered row in, a row of f32 out */
        return (item_work){.token_bytes = 6 * C};
    if (item == m->n_layers + 1) {
        double V = m->n_vocab;
        /* Logits are written once and read twice by capture. */
        return (item_work){
            .row_flops = 2 * C * V, .weight_params = C * V, .row_bytes = 3 * 4 * V + 8 * C};
    }
    const td_layer *l = &m->layers[item - 1];
    item_work w = {.token_bytes = 4 * 6 * C}; /* two norms, residuals */
    add_mixer_work(&l->mixer, C, &w);
    add_ffn_work(&l->ffn, C, &w);
    return w;
}

/* 0 = the layer sees all tokens before, or its mixer counts no pairs. */
static int32_t window_of(const td_layer *l) {
    return l->mixer.kind == TD_MIXER_ATTENTION ? l->mixer.attention.window : 0;
}

/* The window that most layers with a window have. */
static int32_t common_window(const td_model_config *m) {
    int32_t best = 0, most = 0;
    for (int32_t i = 0; i < m->n_layers; i++) {
        int32_t window = window_of(&m->layers[i]), n = 0;
        for (int32_t j = 0; window > 0 && j < m->n_layers; j++)
            n += window_of(&m->layers[j]) == window;
        if (n > most) {
            most = n;
            best = window;
        }
    }
    return best;
}

void td_cost_model_init(const td_model_config *model, td_cost_model *out) {
    *out = (td_cost_model){.window = common_window(model)};
    for (int32_t i = 0; i < model->n_layers + 2; i++) {
        item_work w = work_of(model, i);
        out->flops_token += w.token_flops;
        out->flops_row += w.row_flops;
        *(w.windowed ? &out->flops_pair_window : &out->flops_pair) += w.pair_flops;
    }
}

double td_cost_flops(const td_cost_model *c, const td_work_size *w) {
    return c->flops_token * (double)w->n_tokens + c->flops_row * (double)w->n_rows +
           c->flops_pair * w->n_pairs + c->flops_pair_window * w->n_pairs_window;
}

/* --- seconds ---------------------------------------------------------------------------------- */

static void add_item(const td_planner *pl, const td_plan_device *dev, int32_t item,
                     td_stage_cost *c) {
    item_work w = work_of(pl->model, item);
    double flop_s = 1e-12, byte_s = 1e-12, weights_s = 0, pair_flop_s = flop_s, row_byte_s = byte_s;
    if (pl->speeds_known) {
        double rate = dev->tflops;
        if (pl->plan->compute == TD_F32)
            rate = dev->tflops_f32 > 0 ? dev->tflops_f32 : dev->tflops / 16;
        flop_s = 1 / (rate * 1e12);
        byte_s = dev->mem_gbs > 0 ? 1 / (dev->mem_gbs * 1e9) : 0;
        weights_s = w.weight_params * (double)td_dtype_size(pl->plan->compute) * byte_s;
        pair_flop_s = dev->attention_tflops > 0 ? 1 / (dev->attention_tflops * 1e12) : flop_s;
        row_byte_s = dev->capture_gbs > 0 ? 1 / (dev->capture_gbs * 1e9) : byte_s;
    }
    if (w.row_flops > 0) {
        c->head_row_s += w.row_flops * flop_s;
        c->head_weights_s += weights_s;
    } else {
        c->gemm[w.moe].token_s += w.token_flops * flop_s;
        c->gemm[w.moe].weights_s += weights_s;
    }
    *(w.windowed ? &c->pair_window_s : &c->pair_s) += w.pair_flops * pair_flop_s;
    c->token_s += w.token_bytes * byte_s;
    c->row_s += w.row_bytes * row_byte_s;
}

static double copy_s_per_token(const td_planner *pl, const td_plan_device *dev) {
    return pl->speeds_known && dev->link_gbs > 0 ? 4.0 * pl->model->n_hidden / (dev->link_gbs * 1e9)
                                                 : 0;
}

td_stage_cost td_plan_stage_cost(const td_planner *pl, const td_plan_device *dev, int32_t begin,
                                 int32_t end) {
    td_stage_cost c = {0};
    for (int32_t i = begin; i < end; i++)
        add_item(pl, dev, i, &c);
    if (begin > 0)
        c.token_s += copy_s_per_token(pl, dev);
    return c;
}

void td_plan_scale_cost(td_stage_cost *c, double n) {
    for (int i = 0; i < 2; i++) {
        c->gemm[i].token_s *= n;
        c->gemm[i].weights_s *= n;
    }
    c->head_row_s *= n;
    c->head_weights_s *= n;
    c->token_s *= n;
    c->row_s *= n;
    c->pair_s *= n;
    c->pair_window_s *= n;
}

double td_plan_item_seconds(const td_planner *pl, const td_plan_device *dev, int32_t item) {
    td_stage_cost c = {0};
    add_item(pl, dev, item, &c);
    /* A stage of the embedding alone must still cost something. */
    return fmax(td_stage_cost_seconds(&c, &pl->plan->micro_batch), 1e-12);
}

double td_plan_boundary_seconds(const td_planner *pl, const td_plan_device *dev) {
    return copy_s_per_token(pl, dev) * (double)pl->plan->micro_batch.n_tokens;
}

double td_stage_cost_seconds(const td_stage_cost *c, const td_work_size *w) {
    double tokens = (double)w->n_tokens, rows = (double)w->n_rows, s = 0;
    for (int i = 0; i < 2; i++)
        s += fmax(c->gemm[i].token_s * tokens, c->gemm[i].weights_s);
    if (w->n_rows > 0)
        s += fmax(c->head_row_s * rows, c->head_weights_s);
    return s + c->token_s * tokens + c->row_s * rows + c->pair_s * w->n_pairs +
           c->pair_window_s * w->n_pairs_window;
}

double td_cost_stage_seconds(const td_plan *p, int32_t group, int32_t stage,
                             const td_work_size *w) {
    return td_stage_cost_seconds(&p->groups[group].stages[stage].cost, w);
}

double td_cost_group_seconds(const td_plan *p, int32_t group, const td_work_size *w) {
    double slowest = 0;
    for (int32_t s = 0; s < p->groups[group].n_stages; s++)
        slowest = fmax(slowest, td_cost_stage_seconds(p, group, s, w));
    return slowest;
}
