/* The scenarios of the specification: what is printed, to the letter, and impossible requests. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

#define BANNER                                                                                     \
    "==================================================\n"                                         \
    "Multi-GPU Teacher Logits Generation\n"                                                        \
    "==================================================\n"

static void expect_text(const char *got, const char *want) {
    cr_expect_str_eq(got, want, "printed:\n%s\nexpected:\n%s", got, want);
}

static void expect_no_wide_line(const char *text) {
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, "\n");
        cr_expect(n <= 100, "%zu columns: %.*s", n, (int)n, p);
        p += n + (p[n] == '\n');
    }
}

Test(scenario, s1_small_model_eight_workers) {
    pf f;
    pf_open(&f, "llama-7b", "8xa100-80gb");
    pf_gpus(&f, "0,1,2,3,4,5,6,7");
    pf_make(&f);
    expect_text(pf_assignment(&f), BANNER "Configuration:\n"
                                          "  Total GPUs available: 8 (0,1,2,3,4,5,6,7)\n"
                                          "  GPUs per model: 1\n"
                                          "  Number of workers: 8\n"
                                          "\n"
                                          "Worker GPU assignments:\n"
                                          "  Worker 0: GPUs 0\n"
                                          "  Worker 1: GPUs 1\n"
                                          "  Worker 2: GPUs 2\n"
                                          "  Worker 3: GPUs 3\n"
                                          "  Worker 4: GPUs 4\n"
                                          "  Worker 5: GPUs 5\n"
                                          "  Worker 6: GPUs 6\n"
                                          "  Worker 7: GPUs 7\n");
    /* Equal workers are printed once. */
    expect_contains(pf_details(&f, 0), "Groups 0-7, each on 1 x A100-80GB:\n");
    expect_contains(f.text, "embed + layers 0-31 + lm_head");
    expect_no_wide_line(f.text);
    pf_close(&f);
}

Test(scenario, s2_medium_model_four_workers_of_two) {
    pf f;
    pf_open(&f, "codellama-34b", "8xa100-80gb");
    f.cfg.devices.gpus_per_model = 2;
    pf_make(&f);
    expect_text(pf_assignment(&f), BANNER "Configuration:\n"
                                          "  Total GPUs available: 8 (0,1,2,3,4,5,6,7)\n"
                                          "  GPUs per model: 2\n"
                                          "  Number of workers: 4\n"
                                          "\n"
                                          "Worker GPU assignments:\n"
                                          "  Worker 0: GPUs 0,1\n"
                                          "  Worker 1: GPUs 2,3\n"
                                          "  Worker 2: GPUs 4,5\n"
                                          "  Worker 3: GPUs 6,7\n");
    for (int32_t g = 0; g < 4; g++)
        cr_expect_eq(f.plan.groups[g].n_stages, 2);
    expect_no_wide_line(pf_details(&f, (uint64_t)1 << 40));
    expect_contains(f.text, ", of 1.00 TiB free");
    cr_expect_null(strstr(f.text, "Warnings"), "%s", f.text);
    pf_close(&f);
}

Test(scenario, s3_large_model_two_workers_of_four) {
    pf f;
    pf_open(&f, "llama-70b", "8xa100-80gb");
    f.cfg.devices.gpus_per_model = 4;
    pf_make(&f);
    expect_text(pf_assignment(&f), BANNER "Configuration:\n"
                                          "  Total GPUs available: 8 (0,1,2,3,4,5,6,7)\n"
                                          "  GPUs per model: 4\n"
                                          "  Number of workers: 2\n"
                                          "\n"
                                          "Worker GPU assignments:\n"
                                          "  Worker 0: GPUs 0,1,2,3\n"
                                          "  Worker 1: GPUs 4,5,6,7\n");
    cr_expect_lt(f.plan.groups[0].bottleneck_over_ideal, 1.05);
    pf_close(&f);
}

Test(scenario, s4_405b_on_eight_does_not_fit_and_what_would) {
    pf f;
    pf_open(&f, "llama-405b", "8xa100-80gb");
    f.cfg.devices.gpus_per_model = 8;
    cr_assert_eq(pf_make(&f), TD_E_DEVICE);
    expect_contains(f.err.text, "does not fit on 8 x A100-80GB (GPUs 0,1,2,3,4,5,6,7)");
    expect_contains(f.err.text, "756.0 GiB of it weights"); /* 405.85e9 parameters of 2 bytes */
    expect_contains(f.err.text, "624.8 GiB usable there: 142.3 GiB are missing");
    expect_contains(f.err.text, "11 x A100-80GB (gpus_per_model = 11)");
    expect_contains(f.err.text, "FP8 ones are dequantised as they are read");
    /* What the message says is true: eleven such devices do, ten do not. */
    td_inventory eight = f.inv;
    td_plan_device many[11];
    for (int32_t i = 0; i < 11; i++) {
        many[i] = eight.devices[0];
        many[i].index = many[i].domain = i;
        snprintf(many[i].label, sizeof many[i].label, "%d", i);
    }
    f.inv = (td_inventory){.devices = many, .n_devices = 11, .from_file = true};
    f.cfg.devices.gpus_per_model = 11;
    cr_expect_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    f.inv.n_devices = f.cfg.devices.gpus_per_model = 10;
    cr_expect_eq(pf_make(&f), TD_E_DEVICE);
    f.inv = eight;
    pf_close(&f);
}

Test(scenario, s4_one_worker_of_eight) {
    pf f; /* the same request with a model that does fit */
    pf_open(&f, "llama-70b", "8xh100");
    f.cfg.devices.gpus_per_model = 8;
    pf_make(&f);
    expect_text(pf_assignment(&f), BANNER "Configuration:\n"
                                          "  Total GPUs available: 8 (0,1,2,3,4,5,6,7)\n"
                                          "  GPUs per model: 8\n"
                                          "  Number of workers: 1\n"
                                          "\n"
                                          "Worker GPU assignments:\n"
                                          "  Worker 0: GPUs 0,1,2,3,4,5,6,7\n");
    cr_expect_eq(f.plan.groups[0].n_stages, 8);
    expect_contains(pf_details(&f, 0), "Group 0 on 8 x H100-80GB:\n");
    pf_close(&f);
}

Test(scenario, s5_only_specific_gpus) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    pf_gpus(&f, "1,3,5,7");
    pf_make(&f);
    expect_text(pf_assignment(&f), BANNER "Configuration:\n"
                                          "  Total GPUs available: 4 (1,3,5,7)\n"
                                          "  GPUs per model: 1\n"
                                          "  Number of workers: 4\n"
                                          "\n"
                                          "Worker GPU assignments:\n"
                                          "  Worker 0: GPUs 1\n"
                                          "  Worker 1: GPUs 3\n"
                                          "  Worker 2: GPUs 5\n"
                                          "  Worker 3: GPUs 7\n");
    cr_expect_eq(f.plan.n_leftover, 0);
    pf_close(&f);
}

Test(scenario, s6_auto_detect_takes_all_devices) {
    pf f;
    pf_open(&f, "llama-8b", "1xh100");
    pf_make(&f);
    expect_text(pf_assignment(&f), BANNER "Configuration:\n"
                                          "  Total GPUs available: 1 (0)\n"
                                          "  GPUs per model: 1\n"
                                          "  Number of workers: 1\n"
                                          "\n"
                                          "Worker GPU assignments:\n"
                                          "  Worker 0: GPUs 0\n");
    pf_close(&f);
    pf_open(&f, "llama-8b", "8xh100");
    pf_make(&f);
    expect_contains(pf_assignment(&f), "  Total GPUs available: 8 (0,1,2,3,4,5,6,7)\n");
    cr_expect_eq(f.plan.n_groups, 8);
    pf_close(&f);
}

Test(scenario, mixed_machine_in_one_run) {
    pf f;
    pf_open(&f, "llama-8b", "4xa100-4xv100");
    pf_groups(&f, "0 | 1 | 2 | 3 | 4,5 | 6,7");
    pf_make(&f);
    expect_text(pf_assignment(&f), BANNER "Configuration:\n"
                                          "  Total GPUs available: 8 (0,1,2,3,4,5,6,7)\n"
                                          "  GPUs per model: 1 (4 workers), 2 (2 workers)\n"
                                          "  Number of workers: 6\n"
                                          "\n"
                                          "Worker GPU assignments:\n"
                                          "  Worker 0: GPUs 0\n"
                                          "  Worker 1: GPUs 1\n"
                                          "  Worker 2: GPUs 2\n"
                                          "  Worker 3: GPUs 3\n"
                                          "  Worker 4: GPUs 4,5\n"
                                          "  Worker 5: GPUs 6,7\n");
    cr_expect_eq(f.plan.gpus_per_model, 0);
    cr_expect_eq(f.plan.compute, TD_F16);
    cr_expect_eq(f.plan.limits.n_slots, 3);
    expect_contains(pf_details(&f, 0), "Groups 0-3, each on 1 x A100-80GB:\n");
    expect_contains(f.text, "Groups 4-5, each on 2 x V100-32GB:\n");
    expect_contains(f.text, "device 4 (V100-32GB) lacks");
    expect_no_wide_line(f.text);
    pf_close(&f);
}

Test(scenario, auto_width_per_device_type) {
    pf f;
    pf_open(&f, "codellama-34b", "4xa100-4xv100");
    f.cfg.devices.gpus_per_model = 0;
    pf_make(&f);
    /* 62.9 GiB of weights: one A100 holds them, two V100s (61.4 GiB usable) do not; three do, and
     * the fourth is better used with them than not at all. */
    expect_contains(pf_assignment(&f), "  GPUs per model: 1 (4 workers), 4 (1 worker)\n");
    expect_contains(f.text, "  Worker 4: GPUs 4,5,6,7\n");
    cr_assert_eq(f.plan.n_leftover, 0);
    pf_gpus(&f, "0,4,5,6");
    pf_make(&f);
    expect_contains(pf_assignment(&f), "  GPUs per model: 1 (1 worker), 3 (1 worker)\n");
    pf_groups(&f, "4,5");
    cr_expect_eq(pf_make(&f), TD_E_DEVICE);
    expect_contains(f.err.text, "does not fit on 2 x V100-32GB (GPUs 4,5)");
    pf_close(&f);
}

/* Without speeds each type is on its own. */
Test(scenario, auto_leaves_out_a_type_that_is_too_small) {
    pf f;
    pf_open(&f, "llama-70b", "4xa100-4xv100");
    f.cfg.devices.gpus_per_model = 0;
    for (int32_t i = 0; i < f.inv.n_devices; i++)
        f.inv.devices[i].tflops = f.inv.devices[i].tflops_f32 = 0;
    pf_make(&f);
    expect_contains(pf_assignment(&f), "  Worker 1: GPUs 2,3\n");
    cr_expect_eq(f.plan.n_groups, 2);
    cr_expect_eq(f.plan.n_leftover, 4);
    /* Idle devices do not decide the compute mode: without the V100s it is bf16. */
    cr_expect_eq(f.plan.compute, TD_BF16);
    expect_contains(pf_details(&f, 0), "The model does not fit on all 4 x V100-32GB");
    pf_close(&f);
}

Test(scenario, auto_mixes_types_when_none_is_enough_alone) {
    pf f;
    pf_open(&f, "llama-70b", "4xa100-4xv100");
    pf_gpus(&f, "0,4,5,6,7"); /* one A100, four V100s: 131 GiB of weights fit on neither */
    f.cfg.devices.gpus_per_model = 0;
    pf_make(&f);
    expect_contains(pf_assignment(&f), "  Worker 0: GPUs 0,4,5,6,7\n");
    cr_expect_eq(f.plan.groups[0].n_stages, 5);
    expect_contains(pf_details(&f, 0), "Group 0 on 1 x A100-80GB + 4 x V100-32GB:\n");
    pf_close(&f);
}

Test(request, leftover_devices_are_reported) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    f.cfg.devices.gpus_per_model = 3;
    pf_make(&f);
    expect_contains(pf_assignment(&f), "  Number of workers: 2\n");
    cr_assert_eq(f.plan.n_leftover, 2);
    cr_expect_eq(f.plan.leftover[0], 6);
    expect_contains(pf_details(&f, 0), "Left over: no group uses GPUs 6,7.");
    pf_groups(&f, "0,1,2 | 7");
    pf_make(&f);
    cr_expect_eq(f.plan.n_leftover, 4);
    expect_contains(pf_details(&f, 0), "Left over: no group uses GPUs 3,4,5,6.");
    pf_close(&f);
}

/* Without the device nobody uses, all speeds are known: the plan is made with them. */
Test(request, a_leftover_device_of_unknown_speed_does_not_count) {
    pf f;
    pf_open(&f, "llama-8b", "4xa100-4xv100");
    pf_gpus(&f, "0");
    f.cfg.devices.gpus_per_model = 0;
    pf_make(&f);
    double rate = f.plan.tokens_per_s;
    cr_expect(isfinite(rate) && rate > 100);
    pf_gpus(&f, "0,4");
    td_plan_device *small = &f.inv.devices[4];
    small->has_bf16 = true; /* the compute mode is the same with it and without it */
    small->memory_bytes = (uint64_t)2 << 30;
    small->tflops = small->tflops_f32 = 0;
    pf_make(&f);
    cr_assert_eq(f.plan.n_leftover, 1);
    cr_expect_eq(f.plan.tokens_per_s, rate);
    cr_expect_gt(td_cost_group_seconds(&f.plan, 0, &f.plan.micro_batch), 0);
    cr_expect_eq(f.plan.n_alternatives, 0); /* what it would give cannot be said */
    expect_contains(pf_details(&f, 0), "Left over: no group uses GPU 4.");
    pf_close(&f);
}

Test(request, not_enough_devices_says_how_many) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    f.cfg.devices.gpus_per_model = 9;
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_text(f.err.text, "devices.gpus_per_model = 9: one copy of the model needs 9 GPUs, but "
                            "there are only 8 (0,1,2,3,4,5,6,7)");
    f.cfg.devices.gpus_per_model = 2;
    pf_gpus(&f, "5");
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_text(f.err.text, "devices.gpus_per_model = 2: one copy of the model needs 2 GPUs, but "
                            "there is only 1 (5)");
    pf_close(&f);
}

Test(request, unknown_and_repeated_devices) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    pf_gpus(&f, "1,9");
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_text(f.err.text, "devices.gpus names GPU 9, but the inventory has 8: 0 to 7");
    pf_gpus(&f, "1,3,1");
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_contains(f.err.text, "devices.gpus names device 1 twice");
    pf_gpus(&f, "1");
    pf_groups(&f, "1 | 8");
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_contains(f.err.text, "devices.groups names GPU 8");
    pf_close(&f);
    pf_open(&f, "llama-8b", "8xa100-80gb");
    pf_groups(&f, "0 | 1,1");
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_text(f.err.text, "devices.groups names device 1 twice in its group 1");
    pf_close(&f);
    pf_open(&f, "llama-8b", "1xh100");
    f.cfg.devices.inventory = (char *)"one.ini";
    pf_gpus(&f, "1");
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_text(f.err.text, "devices.gpus names GPU 1, but one.ini has only GPU 0");
    pf_close(&f);
}

Test(request, no_devices_and_the_wrong_kind) {
    pf f;
    pf_open(&f, "llama-8b", NULL);
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_contains(f.err.text, "no GPU was found: set devices.gpus = cpu");
    pf_close(&f);
    pf_open(&f, "llama-8b", "1xh100");
    f.cfg.devices.gpus_kind = TD_GPUS_CPU;
    f.cfg.devices.n_gpus = 1;
    cr_assert_eq(pf_make(&f), TD_E_CONFIG);
    expect_contains(f.err.text, "devices.gpus = cpu, but the inventory lists GPUs");
    pf_close(&f);
}

Test(request, surplus_devices_of_a_group_are_a_warning) {
    pf f;
    pf_open(&f, "llama-1b", "8xa100-80gb");
    f.model.n_layers = 2; /* four parts: embedding, two layers, lm_head */
    f.cfg.devices.gpus_per_model = 8;
    pf_make(&f);
    expect_contains(pf_assignment(&f), "  Worker 0: GPUs 0,1,2,3,4,5,6,7\n");
    cr_expect_leq(f.plan.groups[0].n_stages, 4);
    cr_expect_eq(f.plan.limits.n_slots, f.plan.groups[0].n_stages + 1);
    expect_contains(pf_details(&f, 0), "Group 0 has 8 devices for the 4 parts of the model");
    pf_close(&f);
}

Test(request, groups_win_over_the_list) {
    pf f;
    pf_open(&f, "llama-8b", "8xa100-80gb");
    pf_gpus(&f, "0,1");
    pf_groups(&f, "1 | 3");
    pf_make(&f);
    expect_contains(pf_assignment(&f), "  Total GPUs available: 3 (0,1,3)\n");
    expect_contains(f.text, "  Worker 0: GPUs 1\n  Worker 1: GPUs 3\n");
    cr_expect_eq(f.plan.n_leftover, 1);
    pf_close(&f);
}

/* --- devices lost in an earlier execution of the run ------------------------------------------ */

Test(lost, numbers_stay_and_the_rest_is_cut_anew) {
    pf f;
    pf_open(&f, "llama-7b", "8xa100-80gb");
    pf_gpus(&f, "0,1,2,3");
    f.cfg.devices.gpus_per_model = 1;
    f.inv.devices[1].lost = true;
    f.inv.devices[6].lost = true; /* not one of ours: no word of it */
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    expect_contains(pf_assignment(&f), "Total GPUs available: 3 (0,2,3)\n");
    expect_contains(f.text, "  Worker 1: GPUs 2\n  Worker 2: GPUs 3\n");
    expect_contains(pf_details(&f, 0), "Going on without GPU 1, which failed.");
    cr_expect(!strstr(f.text, "GPU 6"));
    pf_close(&f);
}

Test(lost, explicit_groups_that_name_it_are_left_out) {
    pf f;
    pf_open(&f, "llama-7b", "8xa100-80gb");
    pf_groups(&f, "0 | 1,2 | 3");
    f.inv.devices[2].lost = true;
    cr_assert_eq(pf_make(&f), TD_OK, "%s", f.err.text);
    expect_contains(pf_assignment(&f), "  Number of workers: 2\n");
    expect_contains(f.text, "  Worker 0: GPUs 0\n  Worker 1: GPUs 3\n");
    expect_contains(pf_details(&f, 0),
                    "Group 1 of devices.groups has lost a device and is left out.");
    pf_close(&f);
}

Test(lost, nothing_left) {
    pf f;
    pf_open(&f, "llama-7b", "8xa100-80gb");
    pf_groups(&f, "0,1");
    f.inv.devices[0].lost = true;
    cr_assert_eq(pf_make(&f), TD_E_DEVICE);
    expect_contains(f.err.text, "no group is left");
    pf_close(&f);
    pf_open(&f, "llama-7b", "8xa100-80gb");
    pf_gpus(&f, "3");
    f.inv.devices[3].lost = true;
    cr_assert_eq(pf_make(&f), TD_E_DEVICE);
    expect_contains(f.err.text, "no GPU is left");
    pf_close(&f);
}
