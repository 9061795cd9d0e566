/* gpus_per_model = auto against brute force over all ways to part the devices into groups, and what
 * is told of the ways that were not taken. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan_internal.h"
#include "fixture.h"

enum { MAX_DEVICES = 6 };

/* n devices of up to three kinds, in any order. */
static void random_devices(pf *f, int32_t n) {
    td_plan_device kind[3];
    for (int32_t k = 0; k < 3; k++) {
        kind[k] = (td_plan_device){.memory_bytes = (uint64_t)(2.5 + rnd(80) / 10.0) << 30,
                                   .tflops = 20 + rnd(200),
                                   .mem_gbs = 300 + rnd(2000),
                                   .link_gbs = rnd(2) ? 0 : 5 + rnd(50),
                                   .has_f32 = true,
                                   .has_bf16 = true,
                                   .has_f16 = true};
        snprintf(kind[k].type, sizeof kind[k].type, "T%d", k);
    }
    free(f->inv.devices);
    f->inv = (td_inventory){.devices = calloc((size_t)n, sizeof *f->inv.devices), .n_devices = n};
    for (int32_t i = 0; i < n; i++) {
        td_plan_device *d = &f->inv.devices[i];
        *d = kind[rnd(3)];
        d->index = d->domain = i;
        snprintf(d->label, sizeof d->label, "%d", i);
    }
}

typedef struct brute {
    double rate[MAX_DEVICES + 1][1 << MAX_DEVICES]; /* [widest][set]; 0 = does not fit */
    const td_plan *plan;
    int32_t n, width;
    double best_score, best_rate;
} brute;

static double score_of(const brute *b, uint32_t set) {
    int32_t width = 0, kinds = 0;
    for (int32_t i = 0; i < b->n; i++) {
        if (!(set >> i & 1))
            continue;
        bool first = true;
        width++;
        for (int32_t j = 0; j < i; j++)
            first = first && !(set >> j & 1 && !strcmp(b->plan->inventory.devices[i].type,
                                                       b->plan->inventory.devices[j].type));
        kinds += first;
    }
    return b->rate[b->width][set] * (1 - 0.005 * (width - 1) - 0.01 * (kinds - 1));
}

/* All partitions of `left` into groups and devices without a group. */
static void part(brute *b, uint32_t left, double score, double rate) {
    if (!left) {
        b->best_score = fmax(b->best_score, score);
        b->best_rate = fmax(b->best_rate, rate);
        return;
    }
    uint32_t first = left & -left, rest = left & ~first;
    part(b, rest, score, rate);
    for (uint32_t with = rest;; with = (with - 1) & rest) {
        uint32_t set = first | with;
        if (__builtin_popcount(set) <= b->width && b->rate[b->width][set] > 0)
            part(b, left & ~set, score + score_of(b, set), rate + b->rate[b->width][set]);
        if (!with)
            break;
    }
}

Test(grouping, is_the_best_of_all_partitions) {
    int n_wide = 0, n_mixed = 0, n_unfit = 0, n_left = 0;
    rng_state = 1;
    for (int round = 0; round < 120; round++) {
        pf f;
        pf_open(&f, "llama-8b", NULL);
        f.model.n_layers = 8 + (int32_t)rnd(4);
        f.cfg.devices.gpus_per_model = 0;
        int32_t n = 2 + (int32_t)rnd(MAX_DEVICES - 1), all[MAX_DEVICES] = {0, 1, 2, 3, 4, 5};
        random_devices(&f, n);

        td_plan plan = {
            .stats = f.stats, .inventory = f.inv, .compute = TD_BF16, .batch_tokens = 4096};
        bool idle[MAX_DEVICES] = {false};
        td_planner pl = {.cfg = &f.cfg,
                         .model = &f.model,
                         .plan = &plan,
                         .n_items = f.model.n_layers + 2,
                         .speeds_known = true,
                         .idle = idle,
                         .err = &f.err};
        td_cost_model_init(&f.model, &plan.cost);
        pl.work = td_plan_dataset_work(&f.stats, &plan.cost, 2048);

        brute b = {.plan = &plan, .n = n};
        double score = 0, rate = 0;
        for (b.width = 1; b.width <= n; b.width++) {
            td_plan_set_limits(&pl, 4096, b.width);
            for (uint32_t set = 1; set < 1u << n; set++) {
                int32_t m = 0, members[MAX_DEVICES];
                for (int32_t i = 0; i < n; i++)
                    if (set >> i & 1)
                        members[m++] = i;
                td_place_stage stages[MAX_DEVICES];
                td_placement place = {.stages = stages};
                double ideal;
                cr_assert_eq(td_plan_place_group(&pl, members, m, &place, &ideal), TD_OK);
                b.rate[b.width][set] = place.bottleneck == HUGE_VAL
                                           ? 0
                                           : (double)plan.micro_batch.n_tokens / place.bottleneck;
            }
            part(&b, (1u << n) - 1, 0, 0);
            score = fmax(score, b.best_score);
            rate = fmax(rate, b.best_rate);
        }

        td_plan_grouping got;
        cr_assert_eq(td_plan_best_grouping(&pl, all, n, &got), TD_OK, "%s", f.err.text);
        cr_assert(fabs(got.score - score) <= 3e-6 * score, "round %d: %.9g, brute force %.9g",
                  round, got.score, score);
        /* The simpler way never costs more than the handicap of the widest mixed group. */
        cr_assert_geq(got.tokens_per_s, rate * (1 - 0.005 * 5 - 0.02));
        /* It is what it says. */
        double sum = 0;
        b.width = got.width;
        for (int32_t g = 0; g < got.n_groups; g++) {
            uint32_t set = 0;
            bool mixed = false;
            int32_t first = -1;
            for (int32_t i = 0; i < n; i++) {
                if (got.group_of[i] != g)
                    continue;
                set |= 1u << i;
                first = first < 0 ? i : first;
                mixed = mixed ||
                        strcmp(plan.inventory.devices[i].type, plan.inventory.devices[first].type);
            }
            cr_assert(set);
            cr_assert_leq(__builtin_popcount(set), got.width);
            n_wide += __builtin_popcount(set) > 1;
            n_mixed += mixed;
            sum += b.rate[got.width][set];
        }
        cr_assert(fabs(sum - got.tokens_per_s) <= 1e-6 * sum);
        for (int32_t i = 0; i < n; i++)
            n_left += got.n_groups && got.group_of[i] < 0;
        n_unfit += got.n_groups == 0;
        free(got.group_of);

        /* The plan itself: no slower, unless it had to take smaller micro-batches. */
        f.cfg.run.batch_tokens = 4096;
        if (pf_make(&f) == TD_OK) {
            if (f.plan.batch_tokens == 4096)
                cr_assert_geq(f.plan.tokens_per_s, sum * (1 - 0.045), "round %d", round);
        } else {
            cr_assert_eq(score, 0);
        }
        pf_close(&f);
    }
    /* The instances exercise all that can happen. */
    cr_assert(n_wide > 50 && n_mixed > 20 && n_unfit > 1 && n_left > 1, "%d %d %d %d", n_wide,
              n_mixed, n_unfit, n_left);
}

/* 42 GiB of weights. */
Test(grouping, v100s_in_pairs_where_one_a100_is_enough) {
    pf f;
    pf_open(&f, "llama-70b", "4xa100-4xv100");
    f.model.n_layers = 24;
    f.cfg.devices.gpus_per_model = 0;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    expect_contains(pf_assignment(&f), "  GPUs per model: 1 (4 workers), 2 (2 workers)\n");
    expect_contains(f.text, "  Worker 4: GPUs 4,5\n  Worker 5: GPUs 6,7\n");
    pf_details(&f, 0);
    expect_contains(f.text, "gpus_per_model = auto: these groups for ");
    expect_contains(f.text, "  gpus_per_model = 1    does not fit on 1 x V100-32GB\n");
    expect_contains(f.text, "  without V100-32GB ");
    expect_contains(f.text, "%): 4 groups on 1 x A100-80GB\n");
    cr_expect_leq(f.plan.n_alternatives, 6);
    for (int32_t i = 0; i < f.plan.n_alternatives; i++) {
        const td_plan_alternative *a = &f.plan.alternatives[i];
        cr_expect_lt(a->tokens_per_s, 1.02 * f.plan.tokens_per_s);
        cr_expect_neq(a->tokens_per_s > 0, a->why_not[0] != 0);
        cr_expect(!i || a->tokens_per_s <= a[-1].tokens_per_s);
    }
    for (const char *p = f.text; *p; p += strcspn(p, "\n") + 1)
        cr_expect_leq(strcspn(p, "\n"), 100);
    pf_close(&f);
}

Test(grouping, leftovers_are_joined_where_they_fit_together) {
    pf f;
    pf_open(&f, "llama-70b", "4xa100-4xv100");
    f.cfg.devices.gpus_per_model = 0;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    /* Four V100s hold 123 of 131 GiB. */
    cr_expect_eq(f.plan.n_leftover, 0);
    expect_contains(pf_details(&f, 0), "  without V100-32GB ");
    pf_close(&f);
    /* Seven devices in pairs leave one over; it is better as a third of a group. */
    pf_open(&f, "llama-70b", "8xa100-80gb");
    pf_gpus(&f, "0,1,2,3,4,5,6");
    f.cfg.devices.gpus_per_model = 0;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    cr_expect_eq(f.plan.n_leftover, 0);
    expect_contains(pf_assignment(&f), "  Number of workers: 3\n");
    pf_close(&f);
}

/* A few tenths of a percent are no reason for groups of three where pairs do. */
Test(grouping, simple_groups_win_ties) {
    pf f;
    pf_open(&f, "llama-70b", "8xa100-80gb");
    f.cfg.devices.gpus_per_model = 0;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    expect_contains(pf_assignment(&f), "  GPUs per model: 2\n  Number of workers: 4\n");
    expect_contains(f.text, "  Worker 0: GPUs 0,1\n");
    pf_close(&f);
    pf_open(&f, "llama-8b", "8xa100-80gb");
    f.cfg.devices.gpus_per_model = 0;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    expect_contains(pf_assignment(&f), "  GPUs per model: 1\n  Number of workers: 8\n");
    pf_close(&f);
}

/* Counts that are too many to search: most of each kind is set apart first. */
Test(grouping, hundreds_of_devices) {
    pf f;
    pf_open(&f, "llama-70b", NULL);
    f.model.n_layers = 24;
    int32_t n = 301;
    f.inv = (td_inventory){.devices = calloc((size_t)n, sizeof *f.inv.devices), .n_devices = n};
    for (int32_t i = 0; i < n; i++) {
        td_plan_device *d = &f.inv.devices[i];
        int32_t k = i % 3;
        snprintf(d->label, sizeof d->label, "%d", i);
        snprintf(d->type, sizeof d->type, "T%d", k);
        d->index = d->domain = i;
        d->memory_bytes = (uint64_t)(k == 0 ? 80 : k == 1 ? 32 : 20) << 30; /* 1, 2, 3 of them */
        d->tflops = 150 - 40 * k;
        d->has_f32 = d->has_bf16 = true;
    }
    f.cfg.devices.gpus_per_model = 0;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    /* Of 101, 100 and 100: 101 alone, 50 pairs, the others in threes or more. */
    cr_expect(f.plan.n_groups >= 101 + 50 + 20 && f.plan.n_groups <= 101 + 50 + 33, "%d",
              f.plan.n_groups);
    cr_expect_eq(f.plan.n_leftover, 0);
    double ideal = 0;
    for (int32_t g = 0; g < f.plan.n_groups; g++)
        ideal += f.plan.groups[g].tokens_per_s * f.plan.groups[g].bottleneck_over_ideal;
    cr_expect_gt(f.plan.tokens_per_s, 0.95 * ideal);
    pf_close(&f);
}
