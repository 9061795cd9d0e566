/* What is remembered of lost devices: whose fault it was, who is to blame, the file, the numbering
 * of a machine that lost a card, suspects packed alone, the watchdog. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test/common.h"
#include "app/restart.h"
#include "data/data.h"
#include "run/run.h"
#include "base/file.h"
#include "base/memory.h"

static td_fault fault_on(const char *key, const char *name, td_fault_sample *samples, int32_t n) {
    td_fault f = {.samples = samples, .n_samples = n};
    snprintf(f.key, sizeof f.key, "%s", key);
    snprintf(f.name, sizeof f.name, "%s", name);
    snprintf(f.why, sizeof f.why, "%s: illegal address", name);
    return f;
}

static td_status note(td_faults *f, const char *key, td_fault_sample *samples, int32_t n,
                      const td_suspect **blamed) {
    td_fault fault = fault_on(key, key, samples, n);
    return td_faults_note(f, &fault, blamed, NULL);
}

Test(faults, second_device_that_fails_over_it_alone_blames_the_sample) {
    td_faults f = {0};
    const td_suspect *blamed;
    td_fault_sample in_flight[] = {{7, 0}, {3, 256}, {3, 0}};
    cr_assert_eq(note(&f, "GPU-a", in_flight, 3, &blamed), TD_OK);
    cr_assert_null(blamed);
    cr_assert(td_faults_is_lost(&f, "GPU-a"));
    cr_assert_eq(f.n_suspects, 3);
    cr_assert_not_null(td_faults_find(&f, 3, 256));
    cr_assert_null(td_faults_find(&f, 3, 255));
    /* Not alone: the second device is lost as well, and nobody is blamed. */
    cr_assert_eq(note(&f, "GPU-b", in_flight, 2, &blamed), TD_OK);
    cr_assert_null(blamed);
    cr_assert_eq(f.n_lost, 2);
    /* Alone on a third one: GPU-a may have failed for another reason, and is to try it alone. */
    td_fault_sample alone = {3, 0};
    cr_assert_eq(note(&f, "GPU-c", &alone, 1, &blamed), TD_OK);
    cr_assert_null(blamed, "an innocent sample that was there twice is blamed");
    cr_assert(!td_faults_is_lost(&f, "GPU-a"));
    cr_assert(td_faults_is_lost(&f, "GPU-c"));
    /* Alone there as well: to blame; the devices it brought down are given back. */
    cr_assert_eq(note(&f, "GPU-a", &alone, 1, &blamed), TD_OK);
    cr_assert_not_null(blamed);
    cr_assert_eq(blamed->row, 3);
    cr_assert_eq(blamed->start, 0);
    cr_assert(!td_faults_is_lost(&f, "GPU-a"));
    cr_assert(!td_faults_is_lost(&f, "GPU-c"));
    cr_assert(td_faults_is_lost(&f, "GPU-b"));
    cr_assert(!td_faults_find(&f, 7, 0)->blamed);
    td_error err = {0};
    cr_assert_eq(td_faults_blame_error(blamed, "out", &err), TD_E_MODEL);
    cr_assert(strstr(err.text, "dataset row 3 ") && strstr(err.text, "GPU-a") &&
                  strstr(err.text, "GPU-c") && strstr(err.text, "run.on_bad_sample = skip"),
              "%s", err.text);
    td_faults_free(&f);
}

Test(faults, third_failure_on_one_device_blames_the_sample) {
    td_faults f = {0};
    const td_suspect *blamed;
    td_fault_sample s = {5, 0};
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(note(&f, "GPU-a", &s, 1, &blamed), TD_OK);
        cr_assert_null(blamed);
        cr_assert(td_faults_is_lost(&f, "GPU-a"));
        td_faults_forget_devices(&f); /* the user starts again */
        cr_assert(!td_faults_is_lost(&f, "GPU-a"));
    }
    cr_assert_eq(note(&f, "GPU-a", &s, 1, &blamed), TD_OK);
    cr_assert_not_null(blamed);
    cr_assert_eq(f.n_lost, 0);
    td_faults_free(&f);
}

static bool never(const td_device *dev) {
    (void)dev;
    return false;
}
static bool is_second(const td_device *dev) {
    return !strcmp(dev->info.name, "cuda:10");
}

Test(faults, culprit) {
    td_device_ops ops = {.faulted = never}, told = {.faulted = is_second}, silent = {0};
    td_device a = {.ops = &ops, .info = {.name = "cuda:1"}},
              b = {.ops = &ops, .info = {.name = "cuda:10"}};
    td_device *all[] = {NULL, &a, &b};
    cr_assert_eq(td_faults_culprit(all, 3, "cuda:1 waited for another stream: cuda:10: gemm"), 2);
    cr_assert_eq(td_faults_culprit(all, 3, "cuda:10 waited for another stream: cuda:1: gemm"), 1);
    cr_assert_eq(td_faults_culprit(all, 3, "cuda:10: gemm"), 2);
    cr_assert_eq(td_faults_culprit(all, 3, "cuda:100: gemm"), -1);
    cr_assert_eq(td_faults_culprit(all, 3, ""), -1);
    a.ops = b.ops = &told;
    cr_assert_eq(td_faults_culprit(all, 3, "cuda:1: gemm"), 2);
    a.ops = b.ops = &silent;
    cr_assert_eq(td_faults_culprit(all, 3, "cuda:1: gemm"), 1);
}

Test(faults, file_keeps_everything) {
    const char *dir = test_temp_dir();
    td_error err = {0};
    td_faults f = {.pid = 4711, .n_reexec = 3, .compute = "bf16"}, g;
    const td_suspect *blamed;
    td_fault_sample s[] = {{INT64_MAX, 12}, {0, 0}, {9, 5}};
    td_fault fault = fault_on("GPU-a", "cuda:1", s, 3);
    snprintf(fault.why, sizeof fault.why, "not UTF-8: \xff \"quoted\"");
    OK(td_faults_note(&f, &fault, &blamed, &err));
    f.machine = td_calloc(2, sizeof *f.machine);
    f.n_machine = 2;
    strcpy(f.machine[0], "GPU-b");
    strcpy(f.machine[1], "GPU-a");
    OK(td_faults_save(&f, dir, &err));
    OK(td_faults_load(dir, &g, &err));
    cr_assert_eq(g.pid, 4711);
    cr_assert_eq(g.n_reexec, 3);
    cr_assert_str_eq(g.compute, "bf16");
    cr_assert_eq(g.n_machine, 2);
    cr_assert_str_eq(g.machine[1], "GPU-a");
    cr_assert_eq(g.n_suspects, 3);
    cr_assert_eq(td_faults_find(&g, INT64_MAX, 12)->tries, 1);
    cr_assert_str_eq(td_faults_find(&g, 9, 5)->name[0], "cuda:1");
    cr_assert(td_faults_find(&g, 9, 5)->shared);
    cr_assert_eq(g.n_lost, 1);
    cr_assert_str_eq(g.lost[0].key, "GPU-a");
    cr_assert_str_eq(g.lost[0].why, "not UTF-8: ? \"quoted\"");
    td_faults_free(&g);
    td_faults_remove(dir);
    OK(td_faults_load(dir, &g, &err));
    cr_assert_eq(g.n_suspects, 0);
    td_faults_free(&f);
}

/* Cut anywhere, or with any byte changed, the file is refused or makes some sense: no crash,
 * nothing out of bounds. */
Test(faults, damaged_files) {
    const char *dir = test_temp_dir();
    td_error err = {0};
    td_faults f = {.pid = 1, .compute = "f32"}, g;
    const td_suspect *blamed;
    td_fault_sample s[] = {{1, 0}, {2, 0}};
    OK(note(&f, "GPU-a", s, 2, &blamed));
    OK(td_faults_save(&f, dir, &err));
    td_faults_free(&f);
    size_t n;
    char *text = test_read_file(dir, TD_FAULTS_NAME, &n);
    cr_assert(text);
    int n_refused = 0;
    for (size_t i = 0; i < n; i++)
        for (int what = 0; what < 3; what++) {
            char old = text[i];
            text[i] = what == 0 ? old : what == 1 ? (char)(old ^ 4) : '9';
            test_write_file(dir, TD_FAULTS_NAME, text, what == 0 ? i : n);
            text[i] = old;
            if (td_faults_load(dir, &g, &err) == TD_OK) {
                cr_assert_leq(g.n_suspects, 2);
                cr_assert_leq(g.n_lost, 1);
            } else {
                cr_assert_eq(err.code, TD_E_OUTPUT, "%s", err.text);
                cr_assert_eq(g.n_suspects + g.n_lost + g.n_machine, 0);
                n_refused++;
            }
            td_faults_free(&g);
        }
    cr_assert_gt(n_refused, (int)n);
    td_faults_remove(dir);
    free(text);
}

/* The driver does not see the lost card any more, and numbers the others anew. */
Test(faults, numbers_keep_their_meaning) {
    const char *dir = test_temp_dir();
    td_error err = {0};
    td_device_info info[4];
    memset(info, 0, sizeof info);
    for (int i = 0; i < 4; i++) {
        snprintf(info[i].name, sizeof info[i].name, "cuda:%d", i);
        snprintf(info[i].uuid, sizeof info[i].uuid, "GPU-%c", 'a' + i);
        info[i].index = info[i].domain = i;
        info[i].memory_total_bytes = UINT64_C(80) << 30;
    }
    td_inventory inv = {0};
    int32_t number[4];
    td_recovery r;
    td_recover_begin(dir, &r);
    cr_assert(!r.reexecuted);
    OK(td_inventory_from_devices(info, 4, false, &inv, &err));
    OK(td_recover_mark_lost(&r, info, 4, &inv, number, &err));
    for (int i = 0; i < 4; i++)
        cr_assert(number[i] == i && !inv.devices[i].lost);
    td_inventory_free(&inv);
    td_fault fault = fault_on("GPU-b", "cuda:1", NULL, 0);
    const td_suspect *blamed;
    OK(td_faults_note(&r.faults, &fault, &blamed, &err));
    r.faults.pid = getpid();
    r.faults.n_reexec = 1;
    OK(td_faults_save(&r.faults, dir, &err));
    td_recover_end(&r);

    setenv("TDGEN_REEXEC", "-1,1", 1);
    td_recover_begin(dir, &r);
    cr_assert(r.reexecuted);
    cr_assert_null(getenv("TDGEN_REEXEC"));
    for (int i = 1; i < 3; i++) { /* c and d moved up */
        memcpy(info[i].uuid, info[i + 1].uuid, sizeof info[i].uuid);
        cr_assert_eq(info[i].index, i);
    }
    OK(td_inventory_from_devices(info, 3, false, &inv, &err));
    OK(td_recover_mark_lost(&r, info, 3, &inv, number, &err));
    cr_assert_eq(inv.n_devices, 4);
    cr_assert(number[0] == 0 && number[1] == 2 && number[2] == 3);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(inv.devices[i].index, i);
        cr_assert_eq(inv.devices[i].lost, i == 1);
    }
    cr_assert_str_eq(inv.devices[3].label, "3");
    cr_assert_eq(inv.devices[3].domain, 2); /* of the card where it is now */
    td_inventory_free(&inv);
    td_recover_end(&r);
    /* Somebody else's file: the user started anew. */
    OK(td_faults_load(dir, &r.faults, &err));
    r.faults.pid++;
    OK(td_faults_save(&r.faults, dir, &err));
    td_recover_end(&r);
    setenv("TDGEN_REEXEC", "-1,1", 1);
    td_recover_begin(dir, &r);
    cr_assert(!r.reexecuted);
    cr_assert_eq(r.faults.n_lost, 0);
    td_recover_end(&r);
    td_faults_remove(dir);
}

Test(faults, repack) {
    td_error err = {0};
    td_shard *s = td_calloc(1, sizeof *s);
    enum { N = 6 };
    static const int32_t n_tokens[N] = {5, 9, 3, 7, 1, 4};
    s->n_samples = N;
    s->samples = td_calloc(N, sizeof *s->samples);
    for (int i = 0; i < N; i++)
        s->samples[i] = (td_sample){.row = i, .n_tokens = n_tokens[i], .n_rows = n_tokens[i] - 1};
    uint8_t marks[N] = {
        [1] = TD_PACK_ALONE, [3] = TD_PACK_OUT, [4] = TD_PACK_ALONE, [5] = TD_PACK_ALONE};
    for (int round = 0; round < 2; round++) { /* a second time over its own result */
        OK(td_shard_repack(s, 100, marks, &err));
        cr_assert_eq(s->n_batches, 3); /* sample 4 has no rows */
        cr_assert(s->batches[0].alone && s->batches[0].n_samples == 1 &&
                  s->batches[0].samples[0] == 1 && s->batches[0].n_tokens == 9);
        cr_assert(s->batches[1].alone && s->batches[1].samples[0] == 5);
        cr_assert(!s->batches[2].alone && s->batches[2].n_samples == 2 &&
                  s->batches[2].samples[0] == 0 && s->batches[2].samples[1] == 2);
        cr_assert_eq(s->batches[2].n_rows, 6);
    }
    td_shard_free(s);
}

Test(faults, watchdog_ends_the_process, .timeout = 30) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        setenv("TDGEN_DEBUG_WATCHDOG_S", "0.3", 1);
        td_run_arm_watchdog();
        td_run_arm_watchdog();
        for (;;)
            pause();
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == TD_EXIT_HUNG, "status %x", status);
}
