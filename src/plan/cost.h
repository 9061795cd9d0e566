/* cost.h - what a piece of work costs: FLOPs, and predicted seconds on the stages of a plan. Pure.
 *
 * A micro-batch is described by four counts (td_work_size). FLOPs and seconds follow from them and
 * from coefficients that the plan holds, so nobody needs the model's configuration: sched sizes
 * claims with it, the simulator runs on it, the watchdog derives its limits from it.
 *
 * Work adds up: the size of two micro-batches together is the sum of their sizes. FLOPs are linear
 * in it; seconds are not, as a micro-batch reads the weights once however few tokens it has.
 */
#ifndef TDGEN_COST_H
#define TDGEN_COST_H

#include <stdint.h>

struct td_model_config;
struct td_plan;

/* What a micro-batch (or a whole dataset) consists of. */
typedef struct td_work_size {
    int64_t n_tokens, n_rows; /* n_rows: recorded ones, which alone pass lm_head */
    double n_pairs; /* query-key pairs of full causal attention: sum of L(L+1)/2 over samples */
    double n_pairs_window; /* the same under the model's sliding window (== n_pairs without one) */
} td_work_size;

/* Adds one sample. window: td_cost_model's, 0 = none. */
static inline void td_work_size_add(td_work_size *w, int32_t n_tokens, int32_t n_rows,
                                    int32_t window) {
    double L = n_tokens, W = window, pairs = L * (L + 1) / 2;
    w->n_tokens += n_tokens;
    w->n_rows += n_rows;
    w->n_pairs += pairs;
    w->n_pairs_window += window > 0 && L > W ? W * (W + 1) / 2 + (L - W) * W : pairs;
}

/* FLOPs of the whole model (a multiplication and an addition are 2) per unit of each count. */
typedef struct td_cost_model {
    int32_t window; /* of the layers with a sliding window; 0 = none has one. Where they differ, the
                     * most frequent one stands for all */
    double flops_token, flops_row, flops_pair, flops_pair_window;
} td_cost_model;

void td_cost_model_init(const struct td_model_config *model, td_cost_model *out);

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

/* Predicted seconds of one micro-batch on a stage while its pipeline is full; of several groups
 * that share the device each gets its part of it. 0 = speeds unknown. Indices as in the plan. */
double td_cost_stage_seconds(const struct td_plan *p, int32_t group, int32_t stage,
                             const td_work_size *w);
/* Of the slowest stage: what a micro-batch adds to the group's time when the pipeline is full. */
double td_cost_group_seconds(const struct td_plan *p, int32_t group, const td_work_size *w);

#endif
