/* Inventory files: what they say, and every way in which they are refused. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plan/plan.h"
#include "base/memory.h"

static td_status load_text(const char *text, size_t size, td_inventory *inv, td_error *err) {
    char path[] = "/tmp/tdgen-test-XXXXXX";
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    cr_assert_eq(write(fd, text, size), (ssize_t)size);
    close(fd);
    td_status st = td_inventory_load(path, inv, err);
    unlink(path);
    return st;
}

static td_inventory load_shipped(const char *name) {
    char path[512];
    td_inventory inv;
    td_error err;
    snprintf(path, sizeof path, "%s/conf/inventory/%s", TD_SOURCE_DIR, name);
    cr_assert_eq(td_inventory_load(path, &inv, &err), TD_OK, "%s", err.text);
    return inv;
}

Test(inventory, shipped_files_describe_what_their_name_says) {
    static const struct {
        const char *file;
        int32_t n;
        const char *first, *last;
    } want[] = {{"8xa100-80gb.ini", 8, "A100-80GB", "A100-80GB"},
                {"4xa100-4xv100.ini", 8, "A100-80GB", "V100-32GB"},
                {"8xh100.ini", 8, "H100-80GB", "H100-80GB"},
                {"1xh100.ini", 1, "H100-80GB", "H100-80GB"}};
    for (size_t i = 0; i < TD_ARRAY_LEN(want); i++) {
        td_inventory inv = load_shipped(want[i].file);
        cr_assert_eq(inv.n_devices, want[i].n, "%s", want[i].file);
        cr_assert(inv.from_file && !inv.is_cpu);
        cr_assert_str_eq(inv.devices[0].type, want[i].first);
        cr_assert_str_eq(inv.devices[inv.n_devices - 1].type, want[i].last);
        for (int32_t d = 0; d < inv.n_devices; d++) {
            char label[16];
            snprintf(label, sizeof label, "%d", d);
            cr_assert_str_eq(inv.devices[d].label, label);
            cr_assert_eq(inv.devices[d].index, d);
            cr_assert_eq(inv.devices[d].domain, d);
        }
        td_inventory_free(&inv);
    }
}

Test(inventory, compute_modes_follow_the_compute_capability) {
    td_inventory inv = load_shipped("4xa100-4xv100.ini");
    const td_plan_device *a = &inv.devices[3], *v = &inv.devices[4];
    cr_assert(a->compute_capability == 80 && a->has_f32 && a->has_bf16 && a->has_f16);
    cr_assert(v->compute_capability == 70 && v->has_f32 && !v->has_bf16 && v->has_f16);
    /* Peak rates become achievable ones, and the reserve is taken off the memory. */
    cr_assert_float_eq(a->tflops, 312 * TD_PLAN_PEAK_SHARE, 1e-9);
    cr_assert_float_eq(v->tflops_f32, 15.7 * TD_PLAN_PEAK_SHARE, 1e-9);
    cr_assert_eq(v->memory_bytes, (uint64_t)(31.7 * 0x1p30) - TD_PLAN_GPU_RESERVE_BYTES);
    td_inventory_free(&inv);
}

Test(inventory, only_memory_and_capability_are_required) {
    const char text[] = "\n; comment\n[t4]\nmemory_gib = 15 ; inline\ncompute_capability=7.5\n"
                        "[old]\r\nname = P40 24 GB\r\ncount = 2\r\nmemory_gib = 24\r\n"
                        "compute_capability = 6.1";
    td_inventory inv;
    td_error err;
    cr_assert_eq(load_text(text, sizeof text - 1, &inv, &err), TD_OK, "%s", err.text);
    cr_assert_eq(inv.n_devices, 3);
    cr_assert_str_eq(inv.devices[0].type, "t4");
    cr_assert_eq(inv.devices[0].tflops, 0);
    cr_assert_str_eq(inv.devices[2].type, "P40 24 GB");
    cr_assert_eq(inv.devices[2].compute_capability, 61);
    cr_assert(inv.devices[2].has_f32 && !inv.devices[2].has_f16);
    td_inventory_free(&inv);
}

#define MINIMAL "memory_gib = 10\ncompute_capability = 8.0\n"

Test(inventory, refusals_name_file_line_key_and_expectation) {
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"", ": no device sections, expected at least one"},
        {"[a]\n", ":1: the section has no keys"},
        {"[a]\n[b]\n" MINIMAL, ":1: the section has no keys"},
        {"count = 2\n", ":1: count stands before the first section"},
        {"[a]\n" MINIMAL "memroy_gib = 3\n",
         ":4: [a] unknown key \"memroy_gib\", did you mean \"memory_gib\"?"},
        {"[a]\nspeed_of_light = 3\n",
         ":2: [a] unknown key \"speed_of_light\", expected one of name"},
        {"[a]\n" MINIMAL "count = 0\n",
         ":4: count is \"0\", expected a whole number from 1 to 4096"},
        {"[a]\n" MINIMAL "count = 2.5\n", ":4: count is \"2.5\", expected a whole number"},
        {"[a]\n" MINIMAL "count = 0x2\n", ":4: count is \"0x2\", expected a whole number"},
        {"[a]\n" MINIMAL "tflops = fast\n", ":4: tflops is \"fast\", expected a number from"},
        {"[a]\n" MINIMAL "tflops = inf\n", ":4: tflops is \"inf\", expected a number from"},
        {"[a]\n" MINIMAL "mem_gbs = -1\n", ":4: mem_gbs is \"-1\", expected a number from"},
        {"[a]\n" MINIMAL "link_gbs =\n", ":4: link_gbs is \"\", expected a number from"},
        {"[a]\n" MINIMAL "name =\n", ":4: name is \"\", expected 1 to 48 characters"},
        {"[a]\n" MINIMAL "memory_gib = 10\n", ":4: [a] memory_gib is given twice"},
        {"[a]\n" MINIMAL "[b]\n" MINIMAL "[a]\n" MINIMAL,
         ":7: section [a] is given twice (first at line 1)"},
        {"[a]\n" MINIMAL "[a]\ncount = 2\n", ":4: section [a] is given twice (first at line 1)"},
        {"[a]\ncompute_capability = 8.0\n", ":1: [a] memory_gib is missing"},
        {"[a]\nmemory_gib = 80\n", ":1: [a] compute_capability is missing"},
        {"[a]\nmemory_gib = 1\ncompute_capability = 8.0\n",
         ":1: [a] memory_gib is 1, expected more than the 1 GiB"},
        {"[a]\nmemory_gib = 80\ncompute_capability = 8.05\n",
         ":3: compute_capability is \"8.05\", expected MAJOR.MINOR such as 8.0"},
        {"[a\n" MINIMAL, ":1: expected ] at the end of the section's name"},
        {"[a]\nmemory_gib 80\n", ":2: expected [section] or key = value"},
        {"[a]\nname = x\n  y\n" MINIMAL, ":3: the line is indented"},
        {"[a]\n" MINIMAL "count = 4000\n[b]\n" MINIMAL "count = 97\n",
         ":5: more than 4096 devices in all"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_inventory inv = {0};
        td_error err = {0};
        cr_assert_eq(load_text(cases[i].text, strlen(cases[i].text), &inv, &err), TD_E_CONFIG,
                     "case %zu: %s", i, cases[i].text);
        cr_expect(strstr(err.text, cases[i].want), "case %zu: got \"%s\", wanted \"%s\"", i,
                  err.text, cases[i].want);
        cr_expect(strstr(err.text, "/tmp/tdgen-test-") == err.text, "case %zu: no file in \"%s\"",
                  i, err.text);
        cr_expect_null(inv.devices);
    }
}

Test(inventory, a_line_that_inih_would_cut_is_refused) {
    char text[600] = "[a]\n" MINIMAL "name = ";
    td_inventory inv;
    td_error err;
    size_t n = strlen(text);
    memset(text + n, 'x', 300);
    cr_assert_eq(load_text(text, n + 300, &inv, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, ":4: the line has 307 characters, at most 190"), "%s", err.text);
    /* Comments are lines, too: a cut one would leave its rest as a key. */
    memcpy(text, ";", 1);
    memset(text + 1, 'c', 250);
    cr_assert_eq(load_text(text, 251, &inv, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, ":1: the line has 251 characters"), "%s", err.text);
}

Test(inventory, long_names_nul_bytes_and_missing_files_are_refused) {
    td_inventory inv;
    td_error err;
    char text[200] = "[";
    memset(text + 1, 's', 60);
    strcpy(text + 61, "]\n" MINIMAL);
    cr_assert_eq(load_text(text, strlen(text), &inv, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, "at most 48"), "%s", err.text);
    cr_assert_eq(load_text("[a]\n\0name = x\n", 14, &inv, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, "NUL byte"), "%s", err.text);
    cr_assert_eq(td_inventory_load("/nonexistent/x.ini", &inv, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, "devices.inventory") && strstr(err.text, "/nonexistent/x.ini"), "%s",
              err.text);
}

Test(inventory, from_the_machine) {
    td_device_info info[2] = {{.name = "cpu:0",
                               .model = "Some CPU",
                               .domain = 7,
                               .memory_total_bytes = 100u << 20,
                               .memory_free_bytes = 60u << 20,
                               .has_f32 = true},
                              {.name = "cuda:1",
                               .model = "NVIDIA A100-SXM4-80GB",
                               .index = 1,
                               .domain = 1,
                               .memory_total_bytes = (uint64_t)80 << 30,
                               .has_f32 = true,
                               .has_bf16 = true}};
    td_inventory inv;
    td_error err;
    cr_assert_eq(td_inventory_from_devices(info, 1, true, &inv, &err), TD_OK);
    cr_assert(inv.is_cpu && !inv.from_file);
    cr_assert_str_eq(inv.devices[0].label, "cpu:0");
    cr_assert_str_eq(inv.devices[0].type, "cpu");
    cr_assert_eq(inv.devices[0].domain, 7);
    cr_assert_eq(inv.devices[0].memory_bytes, 50u << 20); /* free less a tenth of all */
    td_inventory_free(&inv);
    cr_assert_eq(td_inventory_from_devices(info + 1, 1, false, &inv, &err), TD_OK);
    cr_assert_str_eq(inv.devices[0].label, "1");
    cr_assert_str_eq(inv.devices[0].type, "NVIDIA A100-SXM4-80GB");
    cr_assert_eq(inv.devices[0].memory_bytes, (uint64_t)79 << 30);
    cr_assert(inv.devices[0].has_bf16 && !inv.devices[0].has_f16);
    td_inventory_free(&inv);
    cr_assert_eq(td_inventory_from_devices(NULL, 0, false, &inv, &err), TD_OK);
    cr_assert_eq(inv.n_devices, 0);
    td_inventory_free(&inv);
}
