/* fixture.c - plans without files of the user's: see fixture.h. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"

void pf_open(pf *f, const char *model, const char *inventory) {
    *f = (pf){0};
    char path[512];
    f->cfg.data.max_length = 2048;
    f->cfg.capture.top_k = 64;
    f->cfg.capture.logprob_dtype = TD_F16;
    f->cfg.output.shard_samples = 1024;
    f->cfg.run.batch_tokens = 8192;
    f->cfg.run.total_workers = 1;
    f->cfg.devices.gpus_per_model = 1;
    f->stats = (td_dataset_stats){.n_dataset_rows = 100000,
                                  .n_samples = 100000,
                                  .n_tokens = 50000000,
                                  .n_record_rows = 49900000,
                                  .max_tokens = 2048};
    f->record = (td_plan_record_cost){.bytes_per_row = 408, .bytes_per_token = 5};
    snprintf(path, sizeof path, "%s/test/fixtures/configs/%s", TD_SOURCE_DIR, model);
    cr_assert_eq(td_model_config_load(path, &f->model, &f->err), TD_OK, "%s", f->err.text);
    if (inventory) {
        snprintf(path, sizeof path, "%s/conf/inventory/%s.ini", TD_SOURCE_DIR, inventory);
        cr_assert_eq(td_inventory_load(path, &f->inv, &f->err), TD_OK, "%s", f->err.text);
    }
}

void pf_cpus(pf *f, int32_t n, double memory_gib) {
    td_device_info *info = calloc((size_t)n, sizeof *info);
    cr_assert(info);
    for (int32_t i = 0; i < n; i++) {
        snprintf(info[i].name, sizeof info[i].name, "cpu:%d", i);
        info[i].index = i;
        info[i].memory_total_bytes = info[i].memory_free_bytes = (uint64_t)(memory_gib * 0x1p30);
        info[i].has_f32 = info[i].has_bf16 = true;
    }
    cr_assert_eq(td_inventory_from_devices(info, n, true, &f->inv, &f->err), TD_OK);
    f->cfg.devices.gpus_kind = TD_GPUS_CPU;
    f->cfg.devices.n_gpus = n;
    free(info);
}

void pf_gpus(pf *f, const char *list) {
    free(f->cfg.devices.gpus);
    f->cfg.devices.gpus = calloc(strlen(list) + 1, sizeof(int32_t));
    f->cfg.devices.gpus_kind = TD_GPUS_LIST;
    f->cfg.devices.n_gpus = 0;
    for (const char *p = list; *p; p += *p == ',') {
        char *end;
        f->cfg.devices.gpus[f->cfg.devices.n_gpus++] = (int32_t)strtol(p, &end, 10);
        p = end;
    }
}

void pf_groups(pf *f, const char *groups) {
    size_t room = strlen(groups) + 1;
    free(f->cfg.devices.group_of);
    free(f->cfg.devices.group_device);
    f->cfg.devices.group_of = calloc(room, sizeof(int32_t));
    f->cfg.devices.group_device = calloc(room, sizeof(int32_t));
    int32_t g = 0, n = 0;
    for (const char *p = groups; *p;) {
        if (*p == '|') {
            g++;
            p++;
        } else if (*p == ' ' || *p == ',') {
            p++;
        } else {
            char *end;
            f->cfg.devices.group_of[n] = g;
            f->cfg.devices.group_device[n++] = (int32_t)strtol(p, &end, 10);
            p = end;
        }
    }
    f->cfg.devices.n_group_entries = n;
    f->cfg.devices.n_groups = g + 1;
}

td_status pf_make(pf *f) {
    td_plan_free(&f->plan);
    td_capture_spec capture = {0};
    const td_capture_teacher teacher = {
        .n_vocab = f->model.n_vocab, .n_hidden = f->model.n_hidden, .name = f->cfg.model.path};
    f->status = td_capture_resolve(&f->cfg.capture, &teacher, f->cfg.run.seed, &capture, &f->err);
    const td_plan_input in = {.cfg = &f->cfg,
                              .compute = f->cfg.model.compute,
                              .inventory = &f->inv,
                              .model = &f->model,
                              .capture = &capture,
                              .stats = &f->stats,
                              .record = &f->record};
    if (f->status == TD_OK)
        f->status = td_plan_make(&in, &f->plan, &f->err);
    return f->status;
}

static const char *print(pf *f, bool details, uint64_t free_bytes) {
    size_t size = 0;
    free(f->text);
    f->text = NULL;
    FILE *out = open_memstream(&f->text, &size);
    cr_assert(out);
    if (details)
        td_plan_print_details(&f->plan, &f->model, free_bytes, out);
    else
        td_plan_print_assignment(&f->plan, out);
    fclose(out);
    return f->text;
}

const char *pf_assignment(pf *f) {
    cr_assert_eq(f->status, TD_OK, "%s", f->err.text);
    return print(f, false, 0);
}

const char *pf_details(pf *f, uint64_t free_bytes) {
    cr_assert_eq(f->status, TD_OK, "%s", f->err.text);
    const char *text = print(f, true, free_bytes);
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1) {
        int n = (int)strcspn(line, "\n");
        cr_expect_leq(n, 100, "%d columns: %.*s", n, n, line);
    }
    return text;
}

void pf_close(pf *f) {
    td_plan_free(&f->plan);
    td_inventory_free(&f->inv);
    free(f->cfg.devices.gpus);
    free(f->cfg.devices.group_of);
    free(f->cfg.devices.group_device);
    free(f->text);
}

void expect_contains(const char *got, const char *want) {
    cr_expect(strstr(got, want), "not found: \"%s\" in:\n%s", want, got);
}

uint64_t rng_state;

uint32_t rnd(uint32_t n) {
    return (uint32_t)(test_random(&rng_state) >> 32) % n;
}
