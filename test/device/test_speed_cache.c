/* The cache of device speeds: what is stored comes back, whatever else is in the file does not
 * matter. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test/common.h"
#include "plan/plan.h"
#include "device/device.h"
#include "base/file.h"
#include "base/strbuf.h"

static const char *dir;
static char path[128];

static void setup(void) {
    dir = test_temp_dir();
    snprintf(path, sizeof path, "%s/a/b/device-speeds.json", dir);
}

TestSuite(speed_cache, .init = setup);

static td_speed_entry entry(int i) {
    td_speed_entry e = {.f32 = 10 + i, .bf16 = 200 + i, .f16 = 201, .mem_gbs = 1500.5};
    snprintf(e.uuid, sizeof e.uuid, "GPU-%d", i);
    snprintf(e.kind, sizeof e.kind, "NVIDIA A100 sm_80 cublaslt-13.0");
    snprintf(e.date, sizeof e.date, "2026-03-01");
    return e;
}

static void write_file(const char *text, size_t n) {
    snprintf(path, sizeof path, "%s/device-speeds.json", dir);
    test_write_file(dir, "device-speeds.json", text, n);
}

Test(speed_cache, what_is_stored_comes_back) {
    td_speed_cache c;
    td_speed_cache_load(path, &c); /* nothing there */
    cr_assert_eq(c.n_entries, 0);
    td_speed_entry two[] = {entry(0), entry(1)};
    cr_assert_eq(td_speed_cache_store(path, two, 2, NULL), TD_OK);
    two[0].bf16 = 150;
    cr_assert_eq(td_speed_cache_store(path, two, 1, NULL), TD_OK); /* the other one stays */
    td_speed_cache_load(path, &c);
    cr_assert_eq(c.n_entries, 2);
    const td_speed_entry *e = td_speed_cache_find(&c, "GPU-0", two[0].kind);
    cr_assert(e && e->bf16 == 150 && e->f32 == 10 && e->mem_gbs == 1500.5);
    cr_assert_str_eq(e->date, "2026-03-01");
    e = td_speed_cache_find(&c, "GPU-1", two[0].kind);
    cr_assert(e && e->bf16 == 201);
    /* Another card, another library, a device without a UUID. */
    cr_assert_null(td_speed_cache_find(&c, "GPU-2", two[0].kind));
    cr_assert_null(td_speed_cache_find(&c, "GPU-1", "NVIDIA A100 sm_80 cublaslt-13.1"));
    cr_assert_null(td_speed_cache_find(&c, "", two[0].kind));
    td_speed_cache_free(&c);
}

Test(speed_cache, damaged_foreign_and_old_files_read_as_empty) {
    static const char *const texts[] = {
        "", "{", "[]", "null", "\xff\xfe", "{\"format\": 1}", "{\"format\": 1, \"devices\": []}",
        /* clang takes two literals side by side for a comma that was forgotten */
        ("{\"format\": 2, \"devices\": {\"GPU-0\": {\"kind\": \"k\", \"date\": \"d\", \"f32\": 1, "
         "\"bf16\": 1, \"f16\": 1, \"mem_gbs\": 1}}}"),
        "{\"devices\": {\"GPU-0\": {}}}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        td_speed_cache c;
        write_file(texts[i], strlen(texts[i]));
        td_speed_cache_load(path, &c);
        cr_expect_eq(c.n_entries, 0, "%s", texts[i]);
        td_speed_cache_free(&c);
        td_speed_entry e = entry(0); /* and is written anew */
        cr_assert_eq(td_speed_cache_store(path, &e, 1, NULL), TD_OK);
        td_speed_cache_load(path, &c);
        cr_expect_eq(c.n_entries, 1);
        td_speed_cache_free(&c);
    }
}

Test(speed_cache, entries_that_make_no_sense_are_left_out) {
    static const char *const entries[] = {
        "1",
        "{}",
        "{\"kind\": \"k\", \"date\": \"d\", \"f32\": -1, \"bf16\": 1, \"f16\": 1, \"mem_gbs\": 1}",
        "{\"kind\": \"k\", \"date\": \"d\", \"f32\": 1e300, \"bf16\": 1, \"f16\": 1, \"mem_gbs\": "
        "1}",
        "{\"kind\": \"k\", \"date\": \"d\", \"f32\": 0, \"bf16\": 1, \"f16\": 1, \"mem_gbs\": 1}",
        "{\"kind\": \"k\", \"date\": \"d\", \"f32\": \"1\", \"bf16\": 1, \"f16\": 1, \"mem_gbs\": "
        "1}",
        "{\"kind\": \"k\\u0000x\", \"date\": \"d\", \"f32\": 1, \"bf16\": 1, \"f16\": 1, "
        "\"mem_gbs\": 1}",
        "{\"kind\": \"k\", \"date\": \"longer than a date\", \"f32\": 1, \"bf16\": 1, \"f16\": 1, "
        "\"mem_gbs\": 1}"};
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        td_speed_cache c;
        td_strbuf b = {0};
        td_strbuf_printf(&b,
                         "{\"format\": 1, \"devices\": {\"bad\": %s, \"GPU-1\": {\"kind\": \"k\", "
                         "\"date\": \"d\", \"f32\": 1, \"bf16\": 0, \"f16\": 2, \"mem_gbs\": 3, "
                         "\"more\": []}}}",
                         entries[i]);
        write_file(b.data, b.len);
        td_speed_cache_load(path, &c);
        cr_expect_eq(c.n_entries, 1, "%s", entries[i]);
        cr_expect(td_speed_cache_find(&c, "GPU-1", "k"));
        td_speed_cache_free(&c);
        td_strbuf_free(&b);
    }
}

/* Eight processes that store a card each at the same time: none is lost. */
Test(speed_cache, processes_at_the_same_time) {
    enum { N = 8 };
    pid_t pid[N];
    for (int i = 0; i < N; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            int bad = 0;
            for (int k = 0; k < 20; k++) {
                td_speed_entry e = entry(i * 100 + k);
                bad |= td_speed_cache_store(path, &e, 1, NULL) != TD_OK;
            }
            _exit(bad);
        }
    }
    for (int i = 0; i < N; i++) {
        int status;
        cr_assert_eq(waitpid(pid[i], &status, 0), pid[i]);
        cr_assert_eq(status, 0);
    }
    td_speed_cache c;
    td_speed_cache_load(path, &c);
    cr_expect_eq(c.n_entries, N * 20);
    td_speed_cache_free(&c);
}

Test(speed_cache, path_follows_the_environment) {
    setenv("HOME", "/home/x", 1);
    setenv("XDG_CACHE_HOME", "/var/c", 1);
    char *p = td_speed_cache_path();
    cr_expect_str_eq(p, "/var/c/tdgen/device-speeds.json");
    free(p);
    setenv("XDG_CACHE_HOME", "relative", 1);
    p = td_speed_cache_path();
    cr_expect_str_eq(p, "/home/x/.cache/tdgen/device-speeds.json");
    free(p);
    unsetenv("HOME");
    unsetenv("XDG_CACHE_HOME");
    cr_expect_null(td_speed_cache_path());
}

Test(speeds, equal_cards_get_their_mean_and_others_stay) {
    static const double tflops[] = {100, 101, 99, 60, 61, 102.5, 100};
    td_plan_device d[7];
    memset(d, 0, sizeof d);
    for (int i = 0; i < 7; i++) {
        snprintf(d[i].type, sizeof d[i].type, i == 6 ? "B" : "A");
        d[i].tflops = tflops[i];
        d[i].tflops_f32 = 10;
        d[i].mem_gbs = 1000 + i;
    }
    td_inventory inv = {.devices = d, .n_devices = 7};
    td_inventory_equalise(&inv);
    for (int i = 0; i < 7; i++) {
        static const int like[] = {0, 0, 0, 3, 3, 0, 6};
        cr_expect_eq(d[i].tflops, d[like[i]].tflops, "%d: %g", i, d[i].tflops);
        cr_expect_eq(d[i].mem_gbs, d[like[i]].mem_gbs);
    }
    cr_expect_float_eq(d[0].tflops, 100.625, 1e-9);
    cr_expect_float_eq(d[3].tflops, 60.5, 1e-9);
    cr_expect_eq(d[6].tflops, 100);
}
