/* Memory domains, micro-batch sizes, compute modes and predictions of a plan. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan_internal.h"
#include "fixture.h"

static uint64_t total(const td_stage_memory *m) {
    return m->weight_bytes + m->activation_bytes + m->workspace_bytes;
}

/* What every plan must satisfy, whatever it was made for. */
static void check_invariants(const pf *f) {
    const td_plan *p = &f->plan;
    int32_t n = p->inventory.n_devices, n_items = f->model.n_layers + 2, deepest = 0;
    bool used[64] = {0};
    cr_assert_gt(p->n_groups, 0);
    for (int32_t g = 0; g < p->n_groups; g++) {
        const td_plan_group *gr = &p->groups[g];
        int32_t at = 0;
        bool mine[64] = {0};
        for (int32_t i = 0; i < gr->n_devices; i++) {
            cr_assert(gr->devices[i] >= 0 && gr->devices[i] < n);
            cr_assert_not(mine[gr->devices[i]]);
            mine[gr->devices[i]] = used[gr->devices[i]] = true;
        }
        for (int32_t s = 0; s < gr->n_stages; s++) {
            const td_plan_stage *st = &gr->stages[s];
            td_stage_memory m;
            cr_assert(mine[st->device]);
            mine[st->device] = false; /* one stage a device */
            cr_assert_eq(st->item_begin, at);
            cr_assert_gt(st->item_end, at);
            at = st->item_end;
            td_stage_memory_estimate(&f->model, p->compute, &p->limits, &p->capture, st->item_begin,
                                     st->item_end, &m);
            if (p->inventory.is_cpu && st->item_end == n_items) /* what is captured is there too */
                m.workspace_bytes += td_session_host_bytes(&p->limits, &p->capture);
            cr_assert_eq(total(&m), total(&st->memory));
            cr_assert(p->inventory.is_cpu ||
                      total(&m) <= p->inventory.devices[st->device].memory_bytes);
        }
        cr_assert_eq(at, n_items);
        cr_assert_geq(gr->bottleneck_over_ideal, 1 - 1e-9);
        deepest = gr->n_stages > deepest ? gr->n_stages : deepest;
    }
    for (int32_t i = 0; i < p->n_leftover; i++) {
        cr_assert_not(used[p->leftover[i]]);
        used[p->leftover[i]] = true;
    }
    for (int32_t i = 0; i < n; i++)
        cr_assert(used[i], "device %d is neither used nor left over", i);
    for (int32_t i = 0; i < p->n_domains; i++) {
        const td_plan_domain *d = &p->domains[i];
        cr_assert_leq(d->weight_bytes + d->activation_bytes + d->workspace_bytes, d->memory_bytes);
    }
    cr_assert_eq(p->limits.n_slots, deepest + 1);
    cr_assert_leq(p->limits.capture_rows, p->limits.max_rows);
    cr_assert_leq((int64_t)p->limits.capture_rows * f->model.n_vocab * 4, (int64_t)1 << 30);
    cr_assert_geq(p->limits.max_tokens, p->batch_tokens);
    cr_assert_leq(p->batch_tokens, f->cfg.run.batch_tokens);
}

Test(memory, random_machines_give_sound_plans_or_a_reason) {
    static const char *const models[] = {"llama-1b", "llama-7b", "llama-8b", "codellama-34b",
                                         "llama-70b"};
    int made = 0, refused = 0;
    rng_state = 3;
    for (int round = 0; round < 150; round++) {
        pf f;
        pf_open(&f, models[rnd(5)], NULL);
        int32_t n = 1 + rnd(8), n_types = 1 + rnd(3);
        f.inv = (td_inventory){.devices = calloc((size_t)n, sizeof *f.inv.devices), .n_devices = n};
        for (int32_t i = 0; i < n; i++) {
            int32_t t = rnd(n_types);
            td_plan_device *d = &f.inv.devices[i];
            snprintf(d->label, sizeof d->label, "%d", i);
            snprintf(d->type, sizeof d->type, "T%d", t);
            d->index = d->domain = i;
            d->memory_bytes = (uint64_t)(8 << t) << 31; /* 16, 32, 64 GiB */
            d->tflops = 50 * (t + 1);
            d->mem_gbs = 1000;
            d->has_f32 = d->has_f16 = true;
            d->has_bf16 = t > 0;
        }
        f.cfg.devices.gpus_per_model = rnd(n + 1);
        if (pf_make(&f) == TD_OK) {
            check_invariants(&f);
            cr_assert_gt(f.plan.wall_s, 0);
            made++;
        } else {
            cr_assert_eq(f.status, TD_E_DEVICE, "%s", f.err.text);
            cr_assert(strstr(f.err.text, "does not fit") && strstr(f.err.text, "What would fit"));
            refused++;
        }
        pf_close(&f);
    }
    cr_assert(made > 30 && refused > 10, "%d made, %d refused", made, refused);
}

Test(memory, cpu_devices_keep_weights_once) {
    pf f;
    pf_open(&f, "llama-8b", NULL);
    pf_cpus(&f, 4, 24);
    f.cfg.devices.gpus_per_model = 2;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    check_invariants(&f);
    /* Two copies of 15 GiB would not fit in 24 GiB: they share. */
    cr_assert_eq(f.plan.n_groups, 2);
    cr_assert_eq(f.plan.n_domains, 1);
    cr_assert_eq(f.plan.domains[0].n_stages, 4);
    cr_assert_eq(f.plan.domains[0].weight_bytes,
                 f.plan.groups[0].stages[0].memory.weight_bytes +
                     f.plan.groups[0].stages[1].memory.weight_bytes);
    cr_assert_eq(f.plan.domains[0].activation_bytes,
                 2 * (f.plan.groups[0].stages[0].memory.activation_bytes +
                      f.plan.groups[0].stages[1].memory.activation_bytes));
    expect_contains(pf_assignment(&f), "  Total devices available: 4 (cpu:0,cpu:1,cpu:2,cpu:3)\n");
    expect_contains(f.text, "\nTeacher Logits Generation\n");
    expect_contains(f.text, "  Devices per model: 2\n  Number of workers: 2\n\n"
                            "Worker device assignments:\n  Worker 0: cpu:0,cpu:1\n");
    expect_contains(f.text, "  Worker 1: cpu:2,cpu:3\n");
    cr_expect_null(strstr(f.text, "GPU"));
    expect_contains(pf_details(&f, 0), "Memory shared by cpu:0, cpu:1, cpu:2, cpu:3:\n");
    expect_contains(f.text, "Estimated rate:  unknown");
    cr_assert_eq(f.plan.limits.capture_rows, 256);
    pf_close(&f);
}

Test(memory, a_cpu_that_is_too_small_says_so) {
    pf f;
    pf_open(&f, "llama-70b", NULL);
    pf_cpus(&f, 2, 31);
    cr_assert_eq(pf_make(&f), TD_E_DEVICE);
    expect_contains(f.err.text, "the memory of device cpu:0 is too small");
    expect_contains(f.err.text, "weights in bf16 take 131.4 GiB");
    expect_contains(f.err.text, "The weights alone do not fit");
    pf_close(&f);
}

Test(memory, two_workers_on_one_gpu) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    pf_groups(&f, "0 | 0");
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    check_invariants(&f);
    cr_assert_eq(f.plan.domains[0].n_stages, 2);
    cr_assert_eq(f.plan.domains[0].activation_bytes,
                 2 * f.plan.groups[0].stages[0].memory.activation_bytes);
    /* They share its speed. */
    double together = f.plan.tokens_per_s;
    expect_contains(pf_details(&f, 0), "Memory shared by the groups on GPU 0:\n");
    pf_groups(&f, "0");
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_float_eq(f.plan.tokens_per_s, together, 1e-6 * together);
    pf_close(&f);
}

Test(memory, the_micro_batch_shrinks_before_a_refusal) {
    pf f;
    pf_open(&f, "llama-8b", "1xh100");
    f.cfg.run.batch_tokens = 8192;
    f.stats.max_tokens = 300;
    f.inv.devices[0].memory_bytes = (uint64_t)(15.6 * 0x1p30); /* 14.96 GiB of weights */
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    check_invariants(&f);
    cr_assert_lt(f.plan.batch_tokens, 8192);
    cr_assert_geq(f.plan.batch_tokens, 128);
    cr_assert_eq(8192 % f.plan.batch_tokens, 0);
    expect_contains(pf_details(&f, 0), "reduced from run.batch_tokens = 8192");
    f.inv.devices[0].memory_bytes = (uint64_t)14 << 30;
    cr_assert_eq(pf_make(&f), TD_E_DEVICE);
    expect_contains(f.err.text, "2 x H100-80GB (gpus_per_model = 2)");
    pf_close(&f);
}

Test(memory, the_longest_sample_sets_the_limit) {
    pf f;
    pf_open(&f, "llama-8b", "1xh100");
    f.cfg.run.batch_tokens = 512;
    f.stats.max_tokens = 1500;
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_eq(f.plan.batch_tokens, 512);
    cr_assert_eq(f.plan.limits.max_tokens, 1500);
    cr_assert_eq(f.plan.limits.max_seqs, 750);
    expect_contains(pf_details(&f, 0), "(a longer sample, up to 1500 tokens, is one of its own)");
    /* A sampled dataset may hold longer ones than were met. */
    f.stats.estimated = true;
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_eq(f.plan.limits.max_tokens, 2048);
    expect_contains(pf_details(&f, 0), "Dataset:         about ");
    pf_close(&f);
}

Test(memory, logits_workspace_is_bounded_for_large_vocabularies) {
    pf f;
    pf_open(&f, "llama-8b", "1xh100");
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_eq(f.plan.limits.capture_rows, 1024); /* 128k vocabulary: 525 MB */
    f.model.n_vocab = 1000000;
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_eq(f.plan.limits.capture_rows, 256);
    check_invariants(&f);
    pf_close(&f);
}

Test(compute, follows_checkpoint_and_devices) {
    static const struct {
        td_dtype stored;
        bool bf16, f16;
        td_dtype want;
        const char *why;
    } cases[] = {
        {TD_BF16, true, true, TD_BF16, "the checkpoint is bf16 and every device in use offers it"},
        {TD_BF16, false, true, TD_F16, "the checkpoint is bf16, which device 0 (H100-80GB) lacks"},
        {TD_BF16, false, false, TD_F32,
         "the checkpoint is bf16, which device 0 lacks, and device 0 lacks f16"},
        {TD_F16, true, true, TD_F16, "the checkpoint is f16 and every device in use offers it"},
        {TD_F16, true, false, TD_BF16, "the checkpoint is f16, which device 0 (H100-80GB) lacks"},
        {TD_F32, true, true, TD_F32, "the checkpoint is f32"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pf f;
        pf_open(&f, "llama-1b", "1xh100");
        f.model.weight_dtype = cases[i].stored;
        f.inv.devices[0].has_bf16 = cases[i].bf16;
        f.inv.devices[0].has_f16 = cases[i].f16;
        cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
        cr_expect_eq(f.plan.compute, cases[i].want, "case %zu: %s", i, f.plan.compute_why);
        cr_expect_str_eq(f.plan.compute_why, cases[i].why);
        cr_expect_eq(strstr(pf_details(&f, 0), "can overflow") != NULL,
                     cases[i].want == TD_F16 && cases[i].stored == TD_BF16);
        pf_close(&f);
    }
}

Test(compute, a_mode_that_a_device_lacks_is_refused_by_name) {
    pf f;
    pf_open(&f, "llama-1b", "4xa100-4xv100");
    f.cfg.model.compute = TD_COMPUTE_BF16;
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    cr_expect_str_eq(f.err.text,
                     "model.compute = bf16: device 4 (V100-32GB) does not offer it, only f32, f16");
    pf_groups(&f, "0 | 1"); /* the V100s are not in use */
    cr_expect_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    f.cfg.model.compute = TD_COMPUTE_F32;
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_expect_eq(f.plan.compute, TD_F32);
    cr_expect_str_eq(f.plan.compute_why, "as configured");
    pf_close(&f);
}

Test(predict, output_size_rate_and_worker_share) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    cr_assert_eq(pf_make(&f), TD_OK);
    uint64_t whole = f.plan.output_bytes;
    /* rows, tokens, 33 bytes a sample, 2 KiB a shard */
    cr_assert_eq(whole, (uint64_t)(49900000.0 * 408 + 50000000.0 * 5 + 100000 * 33 + 98 * 2048));
    double wall = f.plan.wall_s, sum = 0;
    for (int32_t g = 0; g < f.plan.n_groups; g++)
        sum += f.plan.groups[g].tokens_per_s;
    cr_assert_float_eq(f.plan.tokens_per_s, sum, 1e-9 * sum);
    cr_assert_float_eq(wall, 50000000.0 / sum, 1e-9 * wall);
    /* 8 billion parameters, 2 FLOPs each, at half the peak: near 9.7k tokens/s a device */
    cr_assert(sum / 8 > 5000 && sum / 8 < 10000, "%g", sum / 8);
    f.cfg.run.worker_id = 1;
    f.cfg.run.total_workers = 4;
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_float_eq((double)f.plan.output_bytes, (double)whole / 4, 2);
    cr_assert_float_eq(f.plan.wall_s, wall / 4, 1e-9 * wall);
    expect_contains(pf_details(&f, f.plan.output_bytes - 1), "worker 1 of 4");
    expect_contains(f.text, "The output does not fit on its disk");
    /* A worker is a process then, and its copies of the model are groups. */
    expect_contains(pf_assignment(&f), "Configuration:\n  Worker 1/4\n  Total GPUs available: 8 (");
    expect_contains(f.text, "  Number of groups: 8\n\nGroup GPU assignments:\n  Group 0: GPUs 0\n");
    pf_details(&f, f.plan.output_bytes + 1);
    cr_assert_null(strstr(f.text, "does not fit"));
    pf_close(&f);
}

Test(predict, faster_devices_get_more_layers) {
    pf f;
    pf_open(&f, "llama-8b", "4xa100-4xv100");
    pf_groups(&f, "0,4");
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    const td_plan_group *g = &f.plan.groups[0];
    cr_assert_eq(g->n_stages, 2);
    int32_t items[8] = {0}; /* of each device */
    for (int32_t s = 0; s < 2; s++)
        items[g->stages[s].device] = g->stages[s].item_end - g->stages[s].item_begin;
    cr_assert_gt(items[0], 2 * items[4]); /* 312 against 125 TFLOP/s */
    cr_assert_lt(g->bottleneck_over_ideal, 1.1);
    pf_close(&f);
}

Test(predict, a_slow_link_counts_for_the_stage_behind_it) {
    pf f;
    pf_open(&f, "llama-1b", "8xa100-80gb");
    pf_groups(&f, "0,1");
    cr_assert_eq(pf_make(&f), TD_OK);
    const td_plan_stage *s = f.plan.groups[0].stages;
    int32_t cut = s[1].item_begin;
    double first = s[0].seconds_per_token, second = s[1].seconds_per_token;
    /* 8 KiB a token over 2 GB/s are 4.1 us, some four layers' time: they move to the other side. */
    for (int32_t i = 0; i < f.inv.n_devices; i++)
        f.inv.devices[i].link_gbs = 2;
    cr_assert_eq(pf_make(&f), TD_OK);
    s = f.plan.groups[0].stages;
    cr_assert_eq(f.plan.groups[0].n_stages, 2);
    cr_assert_gt(s[1].item_begin, cut);
    cr_assert_float_eq(s[0].seconds_per_token + s[1].seconds_per_token - first - second,
                       4 * 2048 / 2e9 - 4 * 2048 / 300e9, 1e-9);
    /* Over 0.5 GB/s the second device costs more than it computes. */
    for (int32_t i = 0; i < f.inv.n_devices; i++)
        f.inv.devices[i].link_gbs = 0.5;
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_eq(f.plan.groups[0].n_stages, 1);
    expect_contains(pf_details(&f, 0), "Group 0 is fastest without GPU 1, which will be empty.");
    pf_close(&f);
}

Test(predict, f32_runs_at_the_f32_rate) {
    pf f;
    pf_open(&f, "llama-8b", "1xh100");
    cr_assert_eq(pf_make(&f), TD_OK);
    double bf16 = f.plan.tokens_per_s;
    f.cfg.model.compute = TD_COMPUTE_F32;
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_gt(bf16,
                 8 * f.plan.tokens_per_s); /* 989 against 67 TFLOP/s, less what memory bounds */
    double given = f.plan.tokens_per_s;
    f.inv.devices[0].tflops_f32 = 0; /* then a sixteenth is assumed */
    cr_assert_eq(pf_make(&f), TD_OK);
    cr_assert_lt(fabs(f.plan.tokens_per_s / given - 989.0 / 16 / 67), 0.05);
    pf_close(&f);
}

Test(predict, filling_a_pipeline_takes_time) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    f.cfg.devices.gpus_per_model = 8;
    cr_assert_eq(pf_make(&f), TD_OK);
    double bubble = 7 * (double)f.plan.micro_batch.n_tokens / f.plan.tokens_per_s;
    cr_assert(f.plan.micro_batch.n_tokens > 8000 && f.plan.micro_batch.n_tokens <= 8192);
    cr_assert_float_eq(f.plan.wall_s, 50000000 / f.plan.tokens_per_s + bubble,
                       1e-9 * f.plan.wall_s);
    pf_close(&f);
}

Test(memory, nearly_equal_devices_are_interchangeable_and_the_least_is_the_limit) {
    pf f;
    pf_open(&f, "llama-70b", "8xa100-80gb");
    for (int32_t i = 0; i < 8; i++)
        f.inv.devices[i].memory_bytes -= (uint64_t)i << 26;
    f.cfg.devices.gpus_per_model = 2;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    check_invariants(&f);
    expect_contains(pf_details(&f, 0), "Groups 0-3, each on 2 x A100-80GB:\n");
    /* Around the size at which the model just fits, the smaller one is never overfilled. */
    int fitted = 0;
    for (int32_t i = 0; i < 60; i++) {
        f.inv.n_devices = 2;
        f.inv.devices[0].memory_bytes = (uint64_t)((66 + 0.1 * i) * 0x1p30);
        f.inv.devices[1].memory_bytes = f.inv.devices[0].memory_bytes / 1000 * 992;
        if (pf_make(&f) == TD_OK) {
            check_invariants(&f);
            fitted++;
        }
    }
    cr_assert(fitted > 0 && fitted < 60, "%d", fitted);
    pf_close(&f);
}

Test(memory, many_different_devices_are_placed_in_their_order_with_a_warning) {
    pf f;
    pf_open(&f, "llama-70b", NULL);
    int32_t n = 16;
    f.inv = (td_inventory){.devices = calloc((size_t)n, sizeof *f.inv.devices), .n_devices = n};
    for (int32_t i = 0; i < n; i++) {
        td_plan_device *d = &f.inv.devices[i];
        snprintf(d->label, sizeof d->label, "%d", i);
        snprintf(d->type, sizeof d->type, "T%d", i);
        d->index = d->domain = i;
        d->memory_bytes = (uint64_t)40 << 30;
        d->tflops = 100 + i;
        d->has_f32 = d->has_bf16 = true;
    }
    f.cfg.devices.gpus_per_model = n;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    check_invariants(&f);
    expect_contains(pf_details(&f, 0), "Group 0 on 16 devices of several types:\n");
    expect_contains(f.text, "too many different devices for an exact placement");
    pf_close(&f);
}

/* A token pays for the experts that it passes, memory holds them all; a window bounds what
 * attention reads, layer by layer. */
Test(predict, layers_cost_what_they_compute) {
    pf f;
    pf_open(&f, "llama-8b", NULL);
    td_planner pl = {.model = &f.model, .plan = &f.plan, .n_items = f.model.n_layers + 2};
    td_plan_device dev = {0};
    f.plan.micro_batch = (td_work_size){0};
    td_work_size_add(&f.plan.micro_batch, 30000, 30000, 16); /* a long one: attention counts */
    double tokens = 30000;
    double dense = td_plan_item_seconds(&pl, &dev, 3);
    f.model.layers[3].mixer.attention.window = 16;
    cr_expect_lt(td_plan_item_seconds(&pl, &dev, 4), dense);
    cr_expect_eq(td_plan_item_seconds(&pl, &dev, 3), dense);

    double C = f.model.n_hidden, E = 64, router = tokens * 2 * E * C * 1e-12;
    const td_ffn one = f.model.layers[2].ffn;
    const td_ffn many = {
        .kind = TD_FFN_EXPERTS,
        .experts = {.n_experts = (int32_t)E, .n_used = 4, .n_ffn = one.dense.n_ffn / 4}};
    f.model.layers[2].ffn = many;
    cr_expect_float_eq(td_plan_item_seconds(&pl, &dev, 3), dense + router, 1e-9 * dense);
    f.model.layers[2].ffn = one;

    td_stage_memory moe, plain;
    const td_session_limits lim = {
        .max_tokens = 100, .max_seqs = 1, .max_rows = 1, .capture_rows = 1};
    const td_capture_spec spec = {
        .top_k = 1, .n_vocab = f.model.n_vocab, .n_valid = f.model.n_vocab};
    td_stage_memory_estimate(&f.model, TD_BF16, &lim, &spec, 3, 4, &plain);
    f.model.layers[2].ffn = many;
    strcpy(f.model.architecture, "Qwen3MoeForCausalLM");
    td_stage_memory_estimate(&f.model, TD_BF16, &lim, &spec, 3, 4, &moe);
    double mlp = 3 * C * one.dense.n_ffn;
    cr_expect_eq(moe.weight_bytes - plain.weight_bytes,
                 (uint64_t)(2 * (E * C + mlp * (E / 4 - 1))));
    cr_expect_gt(moe.activation_bytes,
                 td_moe_scratch_bytes(100, f.model.n_hidden, many.experts.n_ffn, 64, 4, TD_BF16));
    pf_close(&f);
}

/* Mode full: a row of a micro-batch is a whole vocabulary in the host's memory, so micro-batches
 * are cut to half a GiB of it, though never below the longest sample; the plan says so. */
Test(memory, dense_rows_bound_the_micro_batch) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    const uint64_t row_bytes = (uint64_t)f.model.n_vocab * 2, bound = (uint64_t)1 << 29;
    f.cfg.capture.mode = TD_CAPTURE_FULL;
    f.cfg.capture.dense_dtype = TD_BF16;
    f.cfg.data.max_length = f.stats.max_tokens = 512;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    cr_expect_eq(f.plan.capture.top_k, 0);
    cr_expect_eq(f.plan.batch_tokens, (int32_t)(bound / row_bytes));
    cr_expect_leq(td_session_host_bytes(&f.plan.limits, &f.plan.capture),
                  (uint64_t)f.plan.limits.n_slots * (bound + ((uint64_t)1 << 20)));
    cr_expect_eq(f.plan.n_warnings, 1);
    cr_expect(strstr(f.plan.warnings[0], "Micro-batches are reduced"));
    td_plan_free(&f.plan);
    f.cfg.data.max_length = f.stats.max_tokens = 4096; /* more than the bound holds */
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    cr_expect_eq(f.plan.batch_tokens, 4096);
    /* States are small: no reason to cut. */
    td_plan_free(&f.plan);
    f.cfg.capture.mode = TD_CAPTURE_HIDDEN;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    cr_expect_eq(f.plan.batch_tokens, 8192);
    pf_close(&f);
}
