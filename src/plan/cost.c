/* Cost model: predicted seconds per token of one item on one device.
 *
 * A GEMM takes the longer of its arithmetic and the reading of its weights, which a micro-batch
 * shares; what lies between GEMMs (norms, rope, gated activation, residuals, capture) is bound by
 * memory and comes on top. It serves to balance stages and to give a person an idea of the time.
 */
#include "plan_internal.h"

#include <math.h>

#include "tdgen/util.h"

/* Work of one item per token of the dataset. */
typedef struct item_work {
    double flops;         /* of GEMMs and attention */
    double weight_params; /* read once per micro-batch */
    double stream_bytes;  /* activations read and written between GEMMs */
} item_work;

static item_work work_of(const td_planner *pl, int32_t item) {
    const td_model_config *m = pl->model;
    const td_dataset_stats *st = &pl->plan->stats;
    double C = m->n_hidden, D = m->head_dim, H = m->n_heads, Hkv = m->n_kv_heads;
    double qkv = (H + 2 * Hkv) * D, tokens = (double)TD_MAX(st->n_tokens, 1);
    if (item == 0) /* a gathered row in, a row of f32 out */
        return (item_work){.stream_bytes = 6 * C};
    if (item == pl->n_items - 1) {
        /* Only recorded rows pass lm_head; logits are written once and read twice by capture. */
        double rows = st->n_tokens ? (double)st->n_record_rows / tokens : 1, V = m->n_vocab;
        return (item_work){.flops = rows * 2 * C * V,
                           .weight_params = C * V,
                           .stream_bytes = rows * (3 * 4 * V + 8 * C)};
    }
    /* Of a mixture of experts a token passes the router and the chosen ones, but a micro-batch has
     * tokens for all of them. */
    bool moe = m->moe[item - 1];
    double mats = m->gated ? 3 : 2, F = m->n_ffn, attention = qkv * C + H * D * C;
    double used = attention + mats * F * C, read = used;
    if (moe) {
        F = m->n_ffn_expert;
        used = attention + m->n_experts * C + m->n_experts_used * mats * F * C;
        read = attention + m->n_experts * C + m->n_experts * mats * F * C;
        F *= m->n_experts_used;
    }
    /* A causal token sees half of its sequence on average, or the window. */
    double mean_length = st->n_samples ? tokens / (double)st->n_samples : 1;
    double seen = mean_length / 2;
    if (m->window[item - 1])
        seen = fmin(seen, m->window[item - 1]);
    return (item_work){.flops = 2 * used + 4 * H * D * seen,
                       .weight_params = read,
                       /* two norms, residuals, q k v through rope and attention, gate and up */
                       .stream_bytes = 4 * (6 * C + 3 * qkv + 2 * H * D + mats * F)};
}

double td_plan_item_seconds(const td_planner *pl, const td_plan_device *dev, int32_t item) {
    item_work w = work_of(pl, item);
    if (!pl->speeds_known) /* equal devices: the unit does not matter, but must not be 0 */
        return fmax(w.flops, w.stream_bytes) * 1e-12;
    double rate = dev->tflops;
    if (pl->plan->compute == TD_F32)
        rate = dev->tflops_f32 > 0 ? dev->tflops_f32 : dev->tflops / 16;
    double gemm = w.flops / (rate * 1e12), stream = 0;
    if (dev->mem_gbs > 0) {
        double weight_bytes = w.weight_params * (double)td_dtype_size(pl->plan->compute);
        gemm = fmax(gemm, weight_bytes / (double)TD_MAX(pl->plan->limits.max_tokens, 1) /
                              (dev->mem_gbs * 1e9));
        stream = w.stream_bytes / (dev->mem_gbs * 1e9);
    }
    /* A stage of the embedding alone must still cost something. */
    return fmax(gemm + stream, 1e-15);
}

double td_plan_boundary_seconds(const td_planner *pl, const td_plan_device *dev) {
    if (!pl->speeds_known || dev->link_gbs <= 0)
        return 0;
    return 4.0 * pl->model->n_hidden / (dev->link_gbs * 1e9);
}
