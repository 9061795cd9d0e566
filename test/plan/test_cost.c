/* The cost model against plain counting: every multiplication of every token, row and visible key
 * of samples, and the parameter counts that the models' authors publish. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "plan/plan_internal.h"
#include "fixture.h"

typedef struct sample {
    int32_t n_tokens, n_rows;
} sample;

/* FLOPs of the items [begin, end), counted position by position. */
static double count_flops(const td_model_config *m, int32_t begin, int32_t end, const sample *s,
                          int n) {
    double sum = 0, C = m->n_hidden;
    for (int i = 0; i < n; i++) {
        if (end == m->n_layers + 2)
            sum += 2.0 * s[i].n_rows * C * m->n_vocab;
        for (int32_t l = begin > 1 ? begin - 1 : 0; l < end - 1 && l < m->n_layers; l++) {
            const td_attention *a = &m->layers[l].mixer.attention;
            const td_ffn *f = &m->layers[l].ffn;
            const td_experts *e = &f->experts;
            double D = a->head_dim;
            double ffn = f->kind == TD_FFN_EXPERTS
                             ? C * e->n_experts + e->n_used * 3.0 * C * e->n_ffn
                             : (f->dense.gated ? 3.0 : 2.0) * C * f->dense.n_ffn;
            for (int32_t t = 0; t < s[i].n_tokens; t++) {
                int32_t seen = t + 1;
                if (a->window && seen > a->window)
                    seen = a->window;
                sum += 2 * C * D * a->n_heads * 2;    /* q and o */
                sum += 2 * C * D * a->n_kv_heads * 2; /* k and v */
                sum += 2 * ffn;
                sum += 2.0 * a->n_heads * D * seen * 2; /* q k^T, p v */
            }
        }
    }
    return sum;
}

static td_work_size size_of(const sample *s, int n, int32_t window) {
    td_work_size w = {0};
    for (int i = 0; i < n; i++)
        td_work_size_add(&w, s[i].n_tokens, s[i].n_rows, window);
    return w;
}

static const sample SAMPLES[] = {{1, 0}, {2, 1}, {15, 14}, {16, 3}, {17, 16}, {700, 250}};
enum { N_SAMPLES = sizeof SAMPLES / sizeof *SAMPLES };

static void close_to(double got, double want, double tolerance, const char *what) {
    cr_expect(fabs(got - want) <= tolerance * fabs(want), "%s: %.17g instead of %.17g", what, got,
              want);
}

/* Dense; with windows on two of three layers; a mixture of experts on every second layer. */
static void make_variant(td_model_config *m, int variant) {
    for (int32_t l = 0; l < m->n_layers; l++) {
        if (variant == 1)
            m->layers[l].mixer.attention.window = l % 3 ? 16 : 0;
        if (variant == 2 && l % 2)
            m->layers[l].ffn = (td_ffn){.kind = TD_FFN_EXPERTS,
                                        .experts = {.n_experts = 8,
                                                    .n_used = 2,
                                                    .n_ffn = m->layers[0].ffn.dense.n_ffn / 2}};
    }
}

Test(cost, flops_are_those_counted_position_by_position) {
    for (int variant = 0; variant < 3; variant++) {
        pf f;
        pf_open(&f, "llama-1b", NULL);
        make_variant(&f.model, variant);
        td_cost_model c;
        td_cost_model_init(&f.model, &c);
        cr_expect_eq(c.window, variant == 1 ? 16 : 0);
        td_work_size w = size_of(SAMPLES, N_SAMPLES, c.window);
        close_to(td_cost_flops(&c, &w),
                 count_flops(&f.model, 0, f.model.n_layers + 2, SAMPLES, N_SAMPLES), 1e-12,
                 "FLOPs");
        pf_close(&f);
    }
}

/* A matrix parameter is 2 FLOPs a token: the published counts less the embedding (not multiplied)
 * and the norms' weights. */
Test(cost, flops_agree_with_the_published_parameter_counts) {
    static const struct {
        const char *model;
        double n_params;
    } cases[] = {{"llama-8b", 8030261248.0}, {"llama-70b", 70553706496.0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pf f;
        pf_open(&f, cases[i].model, NULL);
        td_cost_model c;
        td_cost_model_init(&f.model, &c);
        double C = f.model.n_hidden, V = f.model.n_vocab;
        double norms = (2.0 * f.model.n_layers + 1) * C;
        close_to(c.flops_token + c.flops_row, 2 * (cases[i].n_params - C * V - norms), 1e-12,
                 cases[i].model);
        pf_close(&f);
    }
}

Test(cost, stages_add_up_and_take_the_longer_of_arithmetic_and_weights) {
    for (int variant = 0; variant < 3; variant++) {
        pf f;
        pf_open(&f, "llama-8b", "8xa100-80gb");
        make_variant(&f.model, variant);
        f.cfg.devices.gpus_per_model = 4;
        cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
        const td_plan_group *g = &f.plan.groups[0];
        const td_plan_device *d = &f.plan.inventory.devices[g->stages[0].device];
        double rate = 0.5 * 312e12, bandwidth = 2039e9;
        cr_assert_float_eq(d->tflops, 156, 1e-9);

        /* Much work: arithmetic, plus what streams through memory, which stays below. */
        sample full[16];
        for (int i = 0; i < 16; i++)
            full[i] = (sample){512, 511};
        td_work_size w = size_of(full, 16, f.plan.cost.window);
        double slowest = 0;
        for (int32_t s = 0; s < g->n_stages; s++) {
            double t = td_cost_stage_seconds(&f.plan, 0, s, &w);
            double flops =
                count_flops(&f.model, g->stages[s].item_begin, g->stages[s].item_end, full, 16);
            cr_expect(t > flops / rate && t < 1.5 * flops / rate, "stage %d: %g s, %g", s, t,
                      flops / rate);
            slowest = fmax(slowest, t);
        }
        cr_expect_eq(td_cost_group_seconds(&f.plan, 0, &w), slowest);

        /* One token: its layers' weights have to be read all the same. */
        td_work_size one = {0};
        td_work_size_add(&one, 1, 1, f.plan.cost.window);
        td_stage_memory all = {0};
        double sum = 0;
        for (int32_t s = 0; s < g->n_stages; s++) {
            sum += td_cost_stage_seconds(&f.plan, 0, s, &one);
            all.weight_bytes += g->stages[s].memory.weight_bytes;
        }
        if (variant != 2) { /* the embedding is gathered from, not read */
            double read = (double)all.weight_bytes - 2.0 * f.model.n_hidden * f.model.n_vocab;
            close_to(sum, read / bandwidth, 0.01, "reading the weights");
        }
        pf_close(&f);
    }
}

/* What placement minimises is what the finished stage is said to take. */
Test(cost, a_stage_is_the_sum_of_its_items) {
    pf f;
    pf_open(&f, "llama-8b", "4xa100-4xv100");
    make_variant(&f.model, 2);
    f.model.layers[5].mixer.attention.window = 16;
    f.plan.compute = TD_F16;
    td_planner pl = {
        .model = &f.model, .plan = &f.plan, .speeds_known = true, .n_items = f.model.n_layers + 2};
    static const sample batches[][1] = {{{1, 1}}, {{60, 30}}, {{8192, 8191}}};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        f.plan.micro_batch = size_of(batches[i], 1, 16);
        for (int32_t b = 0; b < pl.n_items; b += 3) {
            const td_plan_device *d = &f.inv.devices[b % f.inv.n_devices];
            double sum = b ? td_plan_boundary_seconds(&pl, d) : 0;
            for (int32_t e = b + 1; e <= pl.n_items; e++) {
                sum += td_plan_item_seconds(&pl, d, e - 1);
                td_stage_cost c = td_plan_stage_cost(&pl, d, b, e);
                close_to(td_stage_cost_seconds(&c, &f.plan.micro_batch), sum, 1e-9, "stage");
            }
        }
    }
    pf_close(&f);
}

/* A device whose attention and capture are slower than its products and copies (CPUs): the time of
 * pairs and logits follows those rates, and nothing else changes. */
Test(cost, attention_and_capture_have_rates_of_their_own) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    f.plan.compute = TD_BF16;
    td_planner pl = {
        .model = &f.model, .plan = &f.plan, .speeds_known = true, .n_items = f.model.n_layers + 2};
    const td_plan_device plain = f.inv.devices[0];
    td_plan_device slow = plain;
    slow.attention_tflops = plain.tflops / 4;
    slow.capture_gbs = plain.mem_gbs / 8;
    td_stage_cost a = td_plan_stage_cost(&pl, &plain, 0, pl.n_items);
    td_stage_cost b = td_plan_stage_cost(&pl, &slow, 0, pl.n_items);
    const td_work_size w = size_of(SAMPLES, N_SAMPLES, 0);
    const td_attention *attention = &f.model.layers[0].mixer.attention;
    double pairs_s = 4.0 * f.model.n_layers * attention->n_heads * attention->head_dim * w.n_pairs /
                     (plain.tflops * 1e12);
    /* logits written once and read twice, and the states before and behind the last norm */
    double rows_s = (double)w.n_rows * (12.0 * f.model.n_vocab + 8.0 * f.model.n_hidden) /
                    (plain.mem_gbs * 1e9);
    close_to(td_stage_cost_seconds(&b, &w) - td_stage_cost_seconds(&a, &w),
             3 * pairs_s + 7 * rows_s, 1e-9, "slower attention and capture");
    pf_close(&f);
}

Test(cost, unknown_speeds_give_no_seconds) {
    pf f;
    pf_open(&f, "llama-8b", NULL);
    pf_cpus(&f, 2, 64);
    f.cfg.devices.gpus_per_model = 2;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    td_work_size w = size_of(SAMPLES, N_SAMPLES, 0);
    cr_expect_eq(td_cost_stage_seconds(&f.plan, 0, 0, &w), 0);
    cr_expect_eq(td_cost_group_seconds(&f.plan, 0, &w), 0);
    cr_expect_gt(td_cost_flops(&f.plan.cost, &w), 0);
    pf_close(&f);
}

/* Two datasets with the same tokens and samples: the ragged one has more attention to compute. */
Test(cost, the_datasets_own_pairs_count) {
    pf f;
    pf_open(&f, "llama-1b", "1xh100");
    f.cfg.data.max_length = 32768;
    f.stats.max_tokens = 32768;
    f.stats.n_pairs = f.stats.n_pairs_window = 50000000.0 * 501 / 2; /* each of 500 tokens */
    cr_assert_eq(pf_make(&f), TD_OK);
    double even = f.plan.wall_s;
    f.stats.n_pairs = f.stats.n_pairs_window = 0; /* estimated from the mean */
    cr_assert_eq(pf_make(&f), TD_OK);
    close_to(f.plan.wall_s, even, 1e-3, "from the mean");
    f.stats.n_pairs = f.stats.n_pairs_window = 50000000.0 * 16000;
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_expect_gt(f.plan.wall_s, 1.5 * even);
    pf_close(&f);
}
