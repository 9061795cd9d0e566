/* test_run.c - runs with devices that fail: a group that retires hands its work over, memory that
 * is short makes smaller micro-batches, and the output is byte-identical all the same. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "test/common.h"
#include "app/job.h"
#include "base/json.h"
#include "run/run.h"
#include "base/file.h"
#include "base/memory.h"

enum { MAX_DEVICES = 4 };

typedef struct fixture {
    char dir[64];
    td_job job;
    const td_faults *faults;
} fixture;

static void setup(fixture *f, const char *name, const char *gpus, int32_t n_cpu,
                  const char *batch_tokens) {
    td_error err = {0};
    *f = (fixture){0};
    static const char *all; /* folders of this process: setup with a known name goes on in it */
    all = all ? all : test_temp_dir();
    snprintf(f->dir, sizeof f->dir, "%s/%s", all, name);
    char *dir = td_asprintf("output.dir=%s", f->dir), *dev = td_asprintf("devices.gpus=%s", gpus);
    char *batch = td_asprintf("run.batch_tokens=%s", batch_tokens);
    const char *overrides[] = {dir,
                               dev,
                               "devices.gpus_per_model=1",
                               "model.path=" TD_SOURCE_DIR "/demo/teacher",
                               "data.path=" TD_SOURCE_DIR "/demo/demo.jsonl",
                               "data.max_samples=60",
                               "output.shard_samples=16",
                               batch,
                               "capture.top_k=8"};
    OK(td_job_configure(&f->job, false, TD_SOURCE_DIR "/conf/demo.ini", overrides,
                        TD_ARRAY_LEN(overrides), &err));
    OK(td_job_plan(&f->job, &err));
    OK(td_job_open(&f->job, &err));
    cr_assert_eq(f->job.plan.n_groups, n_cpu);
    for (int32_t i = 0; i < n_cpu; i++) /* groups of one device each, in order */
        cr_assert_eq(f->job.plan.groups[i].stages[0].device, i);
    free(dir);
    free(dev);
    free(batch);
}

static td_status run(fixture *f, td_run_summary *s, td_error *err) {
    const td_run_input in = {.cfg = f->job.cfg,
                             .plan = &f->job.plan,
                             .weights = f->job.weights,
                             .devices = f->job.devices,
                             .source = f->job.source,
                             .output = f->job.output,
                             .faults = f->faults};
    return td_run(&in, s, err);
}

static void teardown(fixture *f, const td_device_ops *real) {
    for (int32_t i = 0; i < f->job.plan.inventory.n_devices; i++)
        if (f->job.devices[i] && real)
            f->job.devices[i]->ops = real;
    td_job_close(&f->job);
}

static void finish(fixture *f, td_run_summary *s, const td_device_ops *real) {
    td_run_summary_free(s);
    teardown(f, real);
    test_remove_tree(f->dir);
}

/* All shards of b are those of a, byte for byte. */
static void assert_same_shards(const char *a, const char *b) {
    for (int i = 0; i < 4; i++) { /* 60 rows in shards of 16 */
        char name[64];
        snprintf(name, sizeof name, "shard-%06d.safetensors", i);
        cr_assert(test_same_file(a, b, name), "%s differs between %s and %s", name, a, b);
    }
}

/* The folder of a run without failures. */
static char *make_reference(void) {
    static fixture f;
    td_run_summary s;
    td_error err = {0};
    setup(&f, "ref", "cpu", 1, "512");
    OK(run(&f, &s, &err));
    cr_assert_eq(s.n_shards_written, 4);
    cr_assert_eq(s.n_retired, 0);
    td_run_summary_free(&s);
    teardown(&f, NULL);
    return f.dir;
}

/* A device table that fails on purpose. */
static const td_device_ops *g_real;
static _Atomic int g_calls_left;
static size_t g_alloc_limit;

static td_status failing_gemm(td_stream *s, const td_gemm_args *a, td_error *err) {
    if (atomic_fetch_sub(&g_calls_left, 1) <= 0)
        return td_error_set(err, TD_E_DEVICE, "cpu:1: gemm: injected failure");
    return g_real->gemm(s, a, err);
}

static td_status short_alloc(td_device *dev, size_t n, void **out, td_error *err) {
    if (n > g_alloc_limit)
        return td_error_set(err, TD_E_DEVICE_OOM, "%s: no memory for %zu bytes", dev->info.name, n);
    return g_real->alloc(dev, n, out, err);
}

Test(run, retired_group_hands_its_work_over) {
    setenv("TDGEN_DEBUG_WATCHDOG_S", "600", 1); /* several runs in a process that goes on */
    const char *ref = make_reference();
    /* At the first product, in the middle, late. */
    static const int after[] = {0, 40, 150};
    for (size_t i = 0; i < TD_ARRAY_LEN(after); i++) {
        fixture f;
        td_run_summary s;
        td_error err = {0};
        setup(&f, "retire", "cpu*2", 2, "512");
        td_device_ops ops = *(g_real = f.job.devices[1]->ops);
        ops.gemm = failing_gemm;
        f.job.devices[1]->ops = &ops;
        atomic_store(&g_calls_left, after[i]);
        OK(run(&f, &s, &err));
        cr_assert_eq(s.n_shards_written, 4);
        cr_assert_leq(s.n_retired, 1);
        if (after[i] < 100) {
            cr_assert_eq(s.n_retired, 1);
            cr_assert(s.groups[1].retired);
            cr_assert(strstr(s.groups[1].retired_why, "group 1"));
            cr_assert(strstr(s.groups[1].retired_why, "injected failure"));
        }
        assert_same_shards(ref, f.dir);
        finish(&f, &s, g_real);
    }
}

Test(run, the_last_group_failing_ends_the_run_and_a_rerun_continues) {
    setenv("TDGEN_DEBUG_WATCHDOG_S", "600", 1);
    const char *ref = make_reference();
    fixture f;
    td_run_summary s;
    td_error err = {0};
    setup(&f, "last", "cpu", 1, "512");
    td_device_ops ops = *(g_real = f.job.devices[0]->ops);
    ops.gemm = failing_gemm;
    f.job.devices[0]->ops = &ops;
    atomic_store(&g_calls_left, 60);
    cr_assert_eq(run(&f, &s, &err), TD_E_DEVICE);
    cr_assert(strstr(err.text, "injected failure"));
    td_run_summary_free(&s);
    teardown(&f, g_real);
    setup(&f, "last", "cpu", 1, "512");
    OK(run(&f, &s, &err));
    assert_same_shards(ref, f.dir);
    finish(&f, &s, NULL);
}

Test(run, short_memory_makes_smaller_micro_batches) {
    const char *ref = make_reference();
    fixture f;
    td_run_summary s;
    td_error err = {0};
    setup(&f, "oom", "cpu", 1, "2048");
    td_device_ops ops = *(g_real = f.job.devices[0]->ops);
    ops.alloc = short_alloc;
    f.job.devices[0]->ops = &ops;
    /* The gate-and-up buffer of the planned micro-batch does not fit, that of half of it does. */
    g_alloc_limit = (size_t)f.job.plan.limits.max_tokens * 2 *
                        (size_t)f.job.model.layers[0].ffn.dense.n_ffn * 4 -
                    1;
    OK(run(&f, &s, &err));
    cr_assert_lt(td_source_batch_tokens(f.job.source), 2048);
    assert_same_shards(ref, f.dir);
    finish(&f, &s, g_real);

    setup(&f, "oom2", "cpu", 1, "512");
    f.job.devices[0]->ops = &ops;
    g_alloc_limit = 1000;
    cr_assert_eq(run(&f, &s, &err), TD_E_DEVICE_OOM);
    cr_assert(strstr(err.text, "data.max_length"));
    finish(&f, &s, g_real);
}

/* The fixture stays reachable: what a lost device leaves behind is left, not leaked. */
static fixture g_lost;

static void leave_lost(td_run_summary *s) {
    td_run_summary_free(s);
    td_output_close(g_lost.job.output);
    test_remove_tree(g_lost.dir);
}

Test(run, lost_device_ends_the_run_at_once) {
    td_run_summary s;
    td_error err = {0};
    setenv("TDGEN_DEBUG_FAIL_OP", "cpu:1 gemm 20 lost", 1);
    setup(&g_lost, "lost", "cpu*2", 2, "512");
    cr_assert_eq(run(&g_lost, &s, &err), TD_E_DEVICE_LOST);
    cr_assert(strstr(err.text, "cpu:"), "%s", err.text);
    cr_assert(s.abandoned);
    cr_assert(!s.output_busy);
    cr_assert_str_eq(s.fault.key, "cpu:1");
    cr_assert_eq(s.n_retired, 0);
    cr_assert_gt(s.fault.n_samples, 0);
    cr_assert_leq(s.fault.n_samples, 2 * g_lost.job.plan.limits.max_seqs);
    for (int32_t i = 0; i < s.fault.n_samples; i++)
        cr_assert(s.fault.samples[i].row >= 0 && s.fault.samples[i].row < 60);
    leave_lost(&s);
    /* What the other device was computing goes on in its thread, which nobody joins; the program
     * leaves with _exit, but a test's exit would take libraries down under it. */
    nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
}

Test(run, suspects_are_computed_alone_and_blamed_ones_skipped) {
    const char *ref = make_reference();
    fixture f;
    td_run_summary s;
    td_error err = {0};
    td_suspect suspects[] = {
        {.row = 3, .tries = 1}, {.row = 20, .tries = 1}, {.row = 21, .tries = 2}};
    td_faults faults = {.suspects = suspects, .n_suspects = 3};
    setup(&f, "suspects", "cpu*2", 2, "512");
    f.faults = &faults;
    OK(run(&f, &s, &err));
    assert_same_shards(ref, f.dir);
    cr_assert_eq(s.n_bad_samples, 0);
    finish(&f, &s, NULL);

    suspects[1].blamed = true;
    setup(&f, "suspects", "cpu*2", 2, "512");
    f.faults = &faults;
    cr_assert_eq(run(&f, &s, &err), TD_E_MODEL);
    cr_assert(strstr(err.text, "dataset row 20 "), "%s", err.text);
    td_run_summary_free(&s);
    teardown(&f, NULL);

    setup(&f, "suspects", "cpu*2", 2, "512");
    f.faults = &faults;
    f.job.own_cfg.run.on_bad_sample = TD_BAD_SKIP;
    OK(run(&f, &s, &err));
    cr_assert_eq(s.n_bad_samples, 1);
    td_run_summary_free(&s);
    td_output_totals t;
    td_output_totals_get(f.job.output, &t);
    cr_assert_eq(t.n_skipped, 1);
    teardown(&f, NULL);
    test_remove_tree(f.dir);
}

/* A device that takes no more work keeps the thread that gives it some. */
static td_status blocking_gemm(td_stream *s, const td_gemm_args *a, td_error *err) {
    while (atomic_fetch_sub(&g_calls_left, 1) <= 0)
        pause();
    return g_real->gemm(s, a, err);
}

Test(run, a_thread_that_does_not_come_back_is_given_up, .timeout = 60) {
    const char *ref = make_reference();
    td_run_summary s;
    td_error err = {0};
    setenv("TDGEN_DEBUG_WATCHDOG_S", "3", 1);
    setup(&g_lost, "stuck", "cpu*2", 2, "512");
    static td_device_ops ops; /* its thread outlives this function */
    ops = *(g_real = g_lost.job.devices[1]->ops);
    ops.gemm = blocking_gemm;
    g_lost.job.devices[1]->ops = &ops;
    atomic_store(&g_calls_left, 40);
    OK(run(&g_lost, &s, &err));
    cr_assert(s.abandoned);
    cr_assert_eq(s.n_hung, 1);
    cr_assert_eq(s.n_retired, 1);
    cr_assert(s.groups[1].hung && strstr(s.groups[1].retired_why, "has taken no more work"));
    assert_same_shards(ref, g_lost.dir);
    leave_lost(&s);
}

static _Atomic int g_health_calls;
static int g_health_answers; /* after so many calls the driver keeps whoever asks */

static void counting_health(td_device *dev, td_device_health *out) {
    (void)dev;
    while (atomic_fetch_add(&g_health_calls, 1) >= g_health_answers)
        pause();
    *out = (td_device_health){.known = true, .utilization_percent = 50, .power_w = 100};
}

Test(run, sensors_that_do_not_answer_hold_up_nothing, .timeout = 60) {
    const char *ref = make_reference();
    td_run_summary s;
    td_error err = {0};
    static td_device_ops ops;
    for (int answers = 1000; answers >= 1; answers -= 999) {
        atomic_store(&g_health_calls, 0);
        g_health_answers = answers;
        setup(&g_lost, "sensors", "cpu", 1, "512");
        ops = *(g_real = g_lost.job.devices[0]->ops);
        ops.health = counting_health;
        g_lost.job.devices[0]->ops = &ops;
        OK(run(&g_lost, &s, &err));
        cr_assert_geq(atomic_load(&g_health_calls), 2);
        cr_assert_eq(s.n_devices, 1);
        cr_assert_eq(s.abandoned, answers == 1);
        cr_assert_eq(s.devices[0].mean_utilization, answers == 1 ? -1 : 50);
        assert_same_shards(ref, g_lost.dir);
        td_run_summary_free(&s);
        if (answers == 1)
            td_output_close(g_lost.job.output);
        else
            teardown(&g_lost, g_real);
        test_remove_tree(g_lost.dir);
    }
}

/* The longest sample is a micro-batch of its own, of a length that no other has. */
static td_status embed_without_the_longest(td_stream *s, const td_embed_args *a, td_error *err) {
    while (a->n_tokens == 372)
        pause();
    return g_real->embed(s, a, err);
}

/* Three groups hang over it: as it was packed, alone, and as a sample alone; then it is blamed. */
Test(run, a_sample_that_no_group_comes_back_from_is_blamed, .timeout = 120) {
    td_run_summary s;
    td_error err = {0};
    setenv("TDGEN_DEBUG_WATCHDOG_S", "3", 1);
    setup(&g_lost, "poison", "cpu*4", 4, "512");
    cr_assert_eq(g_lost.job.plan.stats.max_tokens, 372);
    static td_device_ops ops;
    ops = *(g_real = g_lost.job.devices[0]->ops);
    ops.embed = embed_without_the_longest;
    for (int32_t i = 0; i < 4; i++)
        g_lost.job.devices[i]->ops = &ops;
    cr_assert_eq(run(&g_lost, &s, &err), TD_E_MODEL, "%s", err.text);
    cr_assert(strstr(err.text, "the sample of 372 tokens") &&
                  strstr(err.text, "makes devices hang"),
              "%s", err.text);
    cr_assert_eq(s.n_hung, 3, "%d hung, %d retired", s.n_hung, s.n_retired);
    leave_lost(&s);
}

/* A product that fails once, or a few times, and then works again. */
static _Atomic int g_n_failures;
static td_status faltering_gemm(td_stream *s, const td_gemm_args *a, td_error *err) {
    int left = atomic_fetch_sub(&g_calls_left, 1);
    if (left <= 0 && left > -atomic_load(&g_n_failures))
        return td_error_set(err, TD_E_DEVICE, "cpu:0: gemm: injected failure");
    return g_real->gemm(s, a, err);
}

/* Busy seconds of a group's only device as the last status.json tells them. */
static double told_busy_s(const char *dir, double *elapsed_s) {
    char *path = td_asprintf("%s/status.json", dir);
    json_t *j = NULL;
    td_error err = {0};
    OK(td_json_load_file(path, 1 << 20, TD_E_DATA, &j, &err));
    const json_t *group = json_array_get(json_object_get(j, "groups"), 0);
    const json_t *share = json_array_get(json_object_get(group, "busy_shares"), 0);
    cr_assert(json_is_real(share));
    *elapsed_s = json_real_value(json_object_get(j, "elapsed_s"));
    double s = json_real_value(share) * *elapsed_s;
    json_decref(j);
    free(path);
    return s;
}

Test(run, the_only_group_goes_on_after_a_failure) {
    setenv("TDGEN_DEBUG_WATCHDOG_S", "600", 1);
    const char *ref = make_reference();
    static const int after[] = {0, 1, 57, 130};
    for (size_t i = 0; i < TD_ARRAY_LEN(after); i++) {
        fixture f;
        td_run_summary s;
        td_error err = {0};
        setup(&f, "falters", "cpu", 1, "512");
        td_device_ops ops = *(g_real = f.job.devices[0]->ops);
        ops.gemm = faltering_gemm;
        f.job.devices[0]->ops = &ops;
        atomic_store(&g_calls_left, after[i]);
        atomic_store(&g_n_failures, 1);
        OK(run(&f, &s, &err));
        cr_assert_eq(s.n_retired, 0);
        cr_assert_eq(s.n_failures, 1);
        cr_assert_eq(s.groups[0].n_reinstated, 1);
        cr_assert_eq(s.n_bad_samples, 0);
        /* Of both sessions, to the end; a share is at most 1, and JSON has six digits. */
        double elapsed_s, told = told_busy_s(f.dir, &elapsed_s);
        double busy = TD_MIN(s.groups[0].stage_busy_s[0], elapsed_s);
        cr_assert_float_eq(told, busy, 1e-3 * busy + 1e-5, "%g instead of %g s", told, busy);
        assert_same_shards(ref, f.dir);
        finish(&f, &s, g_real);
    }
}

/* The first copy of a session takes long. */
static td_status busy_copy(td_stream *s, void *dst, const void *src, size_t n, td_error *err) {
    while (atomic_fetch_sub(&g_calls_left, 1) > 0)
        if (g_real->copy_in(s, dst, src, n, err) != TD_OK)
            return err->code;
    return g_real->copy_in(s, dst, src, n, err);
}

/* A share of more than 100% would say that the rest is wrong, too. */
Test(run, what_sessions_do_before_the_run_is_not_its_busy_time) {
    setenv("TDGEN_DEBUG_WATCHDOG_S", "600", 1);
    fixture f;
    td_run_summary s;
    td_error err = {0};
    setup(&f, "busy", "cpu", 1, "512");
    td_device_ops ops = *(g_real = f.job.devices[0]->ops);
    ops.copy_in = busy_copy;
    f.job.devices[0]->ops = &ops;
    atomic_store(&g_calls_left, 50000);
    OK(run(&f, &s, &err));
    cr_assert_leq(atomic_load(&g_calls_left), 0);
    cr_assert_leq(s.groups[0].stage_busy_s[0], s.wall_s);
    cr_assert_gt(s.groups[0].stage_busy_s[0], 0);
    finish(&f, &s, g_real);
}

static td_status failing_copy(td_stream *s, void *dst, const void *src, size_t n, td_error *err) {
    (void)s, (void)dst, (void)src, (void)n;
    return td_error_set(err, TD_E_DEVICE, "cpu:1: copy_in: injected failure");
}

Test(run, a_group_whose_session_cannot_be_made_is_retired) {
    setenv("TDGEN_DEBUG_WATCHDOG_S", "600", 1);
    const char *ref = make_reference();
    for (int n_bad = 1; n_bad <= 2; n_bad++) {
        fixture f;
        td_run_summary s;
        td_error err = {0};
        setup(&f, "setup", "cpu*2", 2, "512");
        td_device_ops ops = *(g_real = f.job.devices[1]->ops);
        ops.copy_in = failing_copy;
        f.job.devices[1]->ops = &ops;
        if (n_bad == 2)
            f.job.devices[0]->ops = &ops;
        td_status rc = run(&f, &s, &err);
        cr_assert_eq(rc, n_bad == 1 ? TD_OK : TD_E_DEVICE, "%s", err.text);
        if (rc == TD_OK) {
            cr_assert_eq(s.n_retired, 1);
            cr_assert(s.groups[1].retired && strstr(s.groups[1].retired_why, "injected failure"));
            assert_same_shards(ref, f.dir);
        } else {
            cr_assert(strstr(err.text, "injected failure"));
        }
        finish(&f, &s, g_real);
    }
}

/* What is longer than the longest sample is too large. */
static td_status small_embed(td_stream *s, const td_embed_args *a, td_error *err) {
    if (a->n_tokens > 372)
        return td_error_set(err, TD_E_DEVICE_OOM, "cpu:0: no memory for %d tokens", a->n_tokens);
    return g_real->embed(s, a, err);
}

Test(run, work_too_large_for_memory_is_computed_sample_by_sample) {
    setenv("TDGEN_DEBUG_WATCHDOG_S", "600", 1);
    const char *ref = make_reference();
    for (int32_t n = 1; n <= 2; n++) {
        fixture f;
        td_run_summary s;
        td_error err = {0};
        setup(&f, "memory", n == 1 ? "cpu" : "cpu*2", n, "512");
        td_device_ops ops = *(g_real = f.job.devices[0]->ops);
        ops.embed = small_embed;
        for (int32_t i = 0; i < n; i++)
            f.job.devices[i]->ops = &ops;
        OK(run(&f, &s, &err));
        cr_assert_eq(s.n_retired, 0);
        cr_assert_eq(s.n_failures, 0);
        assert_same_shards(ref, f.dir);
        finish(&f, &s, g_real);
    }
}

/* Device 1 lacks memory once, for its first micro-batch (so that it is split while nothing else is
 * in flight), and breaks for good at the next large one; device 0 does nothing before that. */
static _Atomic bool g_lacked_memory, g_broken;
static td_status breaking_embed(td_stream *s, const td_embed_args *a, td_error *err) {
    if (!atomic_exchange(&g_lacked_memory, true))
        return td_error_set(err, TD_E_DEVICE_OOM, "cpu:1: no memory for %d tokens", a->n_tokens);
    if (a->n_tokens > 372)
        atomic_store(&g_broken, true);
    if (atomic_load(&g_broken))
        return td_error_set(err, TD_E_DEVICE, "cpu:1: embed: injected failure");
    return g_real->embed(s, a, err);
}

static td_status patient_embed(td_stream *s, const td_embed_args *a, td_error *err) {
    while (!atomic_load(&g_broken))
        usleep(1000);
    return g_real->embed(s, a, err);
}

/* Work that was split speaks for nobody and against nobody any more once it is done. */
Test(run, a_group_that_lacked_memory_is_retired_when_its_device_breaks, .timeout = 60) {
    setenv("TDGEN_DEBUG_WATCHDOG_S", "600", 1);
    const char *ref = make_reference();
    fixture f;
    td_run_summary s;
    td_error err = {0};
    setup(&f, "breaks", "cpu*2", 2, "512");
    td_device_ops patient = *(g_real = f.job.devices[0]->ops), breaking = *g_real;
    patient.embed = patient_embed;
    breaking.embed = breaking_embed;
    f.job.devices[0]->ops = &patient;
    f.job.devices[1]->ops = &breaking;
    OK(run(&f, &s, &err));
    cr_assert_eq(s.n_failures, 1);
    cr_assert_eq(s.n_retired, 1);
    cr_assert(s.groups[1].retired);
    assert_same_shards(ref, f.dir);
    finish(&f, &s, g_real);
}

/* A device that computes wrong without noticing: entropies where tail masses belong. */
static td_status swapped_capture(td_stream *s, const td_capture_args *a, td_error *err) {
    td_capture_args wrong = *a;
    wrong.tail_mass = a->entropy;
    wrong.entropy = a->tail_mass;
    return g_real->capture(s, &wrong, err);
}

Test(run, numbers_that_contradict_each_other_end_the_run) {
    setenv("TDGEN_DEBUG_WATCHDOG_S", "600", 1);
    fixture f;
    td_run_summary s;
    td_error err = {0};
    setup(&f, "wrong", "cpu", 1, "512");
    f.job.own_cfg.run.on_bad_sample = TD_BAD_SKIP; /* which is not for this */
    td_device_ops ops = *(g_real = f.job.devices[0]->ops);
    ops.capture = swapped_capture;
    f.job.devices[0]->ops = &ops;
    cr_assert_eq(run(&f, &s, &err), TD_E_INTERNAL, "%s", err.text);
    cr_assert(strstr(err.text, "dataset row ") && strstr(err.text, "must not be recorded"), "%s",
              err.text);
    cr_assert_eq(s.n_shards_written, 0);
    cr_assert_eq(s.n_bad_samples, 0);
    finish(&f, &s, g_real);
}
