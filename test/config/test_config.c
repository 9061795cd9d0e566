/* Configuration: what accepted settings become. */
#include "fixture.h"

#include "config/keys.h"
#include "base/log.h"
#include "base/memory.h"
#include "device/device.h"

static td_config load_ok(const char *text, const char *const overrides[4]) {
    td_config cfg;
    td_error err;
    td_status rc = load_text(text, overrides, &cfg, &err);
    cr_assert_eq(rc, TD_OK, "refused: %s", err.text);
    return cfg;
}

Test(config, defaults) {
    td_config c = load_ok(BASE_INI, NULL);
    cr_expect_str_eq(c.file, "run.ini");
    cr_expect_str_eq(c.model.path, "m");
    cr_expect_eq(c.model.compute, TD_COMPUTE_AUTO);
    cr_expect_str_eq(c.data.path, "d.jsonl");
    cr_expect_eq(c.data.format, TD_FORMAT_AUTO);
    cr_expect_eq(c.data.text_unit, TD_TEXT_LINE);
    cr_expect_str_eq(c.data.text_field, "text");
    cr_expect_null(c.data.prompt_field);
    cr_expect_null(c.data.completion_field);
    cr_expect_str_eq(c.data.separator, "");
    cr_expect_not(c.data.append_eos);
    cr_expect_not(c.data.append_eos_set);
    cr_expect_null(c.data.ids_field);
    cr_expect_null(c.data.mask_field);
    cr_expect_null(c.data.id_field);
    cr_expect_eq(c.data.max_samples, 0);
    cr_expect_eq(c.data.max_length, 2048);
    cr_expect_eq(c.data.overflow, TD_OVERFLOW_TRUNCATE);
    cr_expect(c.data.add_special_tokens);
    cr_expect_eq(c.devices.gpus_kind, TD_GPUS_AUTO);
    cr_expect_eq(c.devices.gpus_per_model, 0);
    cr_expect_eq(c.devices.n_group_entries, 0);
    cr_expect_eq(c.devices.n_groups, 0);
    cr_expect_null(c.devices.inventory);
    cr_expect_eq(c.capture.mode, TD_CAPTURE_TOPK);
    cr_expect_eq(c.capture.top_k, 64);
    cr_expect_eq(c.capture.logprob_dtype, TD_F16);
    cr_expect_eq(c.capture.n_temperatures, 0);
    cr_expect_not(c.capture.mask_padded_vocab);
    cr_expect_eq(c.capture.top_p, 0.98);
    cr_expect_eq(c.capture.min_k, 1);
    cr_expect_eq(c.capture.n_draws, 50);
    cr_expect_eq(c.capture.proposal_power, 1.0);
    cr_expect_eq(c.capture.dense_dtype, TD_BF16);
    cr_expect_eq(c.capture.n_always, 0);
    cr_expect_not(c.capture.pack_ids);
    cr_expect_not(c.capture.quantise_logprobs);
    cr_expect_not(c.output.zstd);
    cr_expect_str_eq(c.output.dir, "o");
    cr_expect_eq(c.output.shard_samples, 1024);
    cr_expect_eq(c.run.batch_tokens, 8192);
    cr_expect_eq(c.run.seed, 0);
    cr_expect_eq(c.run.on_bad_sample, TD_BAD_FAIL);
    cr_expect_eq(c.run.worker_id, 0);
    cr_expect_eq(c.run.total_workers, 1);
    td_config_free(&c);
}

Test(config, capture_modes) {
    static const struct {
        const char *name;
        td_capture_mode mode;
        bool topk, draws, dense;
    } modes[] = {
        {"topk", TD_CAPTURE_TOPK, 1, 0, 0},     {"topp", TD_CAPTURE_TOPP, 1, 0, 0},
        {"sample", TD_CAPTURE_SAMPLE, 0, 1, 0}, {"topk+sample", TD_CAPTURE_TOPK_SAMPLE, 1, 1, 0},
        {"full", TD_CAPTURE_FULL, 0, 0, 1},     {"hidden", TD_CAPTURE_HIDDEN, 0, 0, 1}};
    for (size_t i = 0; i < TD_ARRAY_LEN(modes); i++) {
        char mode[64];
        snprintf(mode, sizeof mode, "capture.mode=%s", modes[i].name);
        td_config c = load_ok(BASE_INI "[capture]\n"
                                       "top_p = .5 ; half\nmin_k = 2\nn_draws = 1024\n"
                                       "proposal_power = 2.5e-1\nlogprob_dtype = q8\n"
                                       "dense_dtype = f32\nalways_ids = 7, 2,2147483647\n"
                                       "pack_ids = yes\n[output]\nzstd = true\n",
                              (const char *[4]){mode});
        cr_expect_eq(c.capture.mode, modes[i].mode);
        cr_expect_str_eq(td_capture_mode_name(c.capture.mode), modes[i].name);
        cr_expect_eq(td_capture_has_topk(c.capture.mode), modes[i].topk);
        cr_expect_eq(td_capture_has_draws(c.capture.mode), modes[i].draws);
        cr_expect_eq(td_capture_is_dense(c.capture.mode), modes[i].dense);
        cr_expect_eq(c.capture.top_p, 0.5);
        cr_expect_eq(c.capture.min_k, 2);
        cr_expect_eq(c.capture.n_draws, 1024);
        cr_expect_eq(c.capture.proposal_power, 0.25);
        cr_expect(c.capture.quantise_logprobs);
        cr_expect_eq(c.capture.logprob_dtype, TD_F32);
        cr_expect_eq(c.capture.dense_dtype, TD_F32);
        cr_assert_eq(c.capture.n_always, 3);
        cr_expect_eq(c.capture.always_ids[0], 7);
        cr_expect_eq(c.capture.always_ids[1], 2);
        cr_expect_eq(c.capture.always_ids[2], INT32_MAX);
        cr_expect(c.capture.pack_ids);
        cr_expect(c.output.zstd);
        td_config_free(&c);
    }
    td_config c =
        load_ok(BASE_INI "[capture]\nlogprob_dtype = q8\nalways_ids = 1\n",
                (const char *[4]){"capture.logprob_dtype=f16", "capture.always_ids=none"});
    cr_expect_not(c.capture.quantise_logprobs);
    cr_expect_eq(c.capture.logprob_dtype, TD_F16);
    cr_expect_eq(c.capture.n_always, 0);
    td_config_free(&c);
}

Test(config, every_key_in_a_file) {
    td_config c = load_ok("\xEF\xBB\xBF; with a byte order mark, CRLF, indentation and comments\r\n"
                          "[model] ; heading\r\n"
                          "    path = /m/x y ; inline\r\n"
                          "\tcompute=bf16\r\n"
                          "[data]\r\n"
                          "path : d;x\r\n"
                          "format = jsonl\r\n"
                          "prompt_field = q\r\n"
                          "completion_field = a = b\r\n"
                          "separator = \" \\n\\t\\r\\\\\\\"\"\r\n"
                          "append_eos = no\r\n"
                          "id_field = id\r\n"
                          "max_samples = 9223372036854775807\r\n"
                          "max_length = 1048576\r\n"
                          "overflow = split\r\n"
                          "add_special_tokens = FALSE\r\n"
                          "[devices]\r\n"
                          "gpus = 4, 0,2\r\n"
                          "gpus_per_model = 3\r\n"
                          "inventory = inv.ini\r\n"
                          "[capture]\r\n"
                          "mode = topk\r\n"
                          "top_k = 1024\r\n"
                          "logprob_dtype = f32\r\n"
                          "temperatures = .5, 2 ,1e1\r\n"
                          "[output]\r\n"
                          "dir = o\r\n"
                          "shard_samples = 16777216\r\n"
                          "[run]\r\n"
                          "# another comment\r\n"
                          "batch_tokens = 1\r\n"
                          "seed = 18446744073709551615\r\n"
                          "on_bad_sample = skip\r\n"
                          "worker_id = 2\r\n"
                          "total_workers = 3",
                          NULL);
    cr_expect_str_eq(c.model.path, "/m/x y");
    cr_expect_eq(c.model.compute, TD_COMPUTE_BF16);
    cr_expect_str_eq(c.data.path, "d;x");
    cr_expect_eq(c.data.format, TD_FORMAT_JSONL);
    cr_expect_str_eq(c.data.prompt_field, "q");
    cr_expect_str_eq(c.data.completion_field, "a = b");
    cr_expect_str_eq(c.data.separator, " \n\t\r\\\"");
    cr_expect_not(c.data.append_eos);
    cr_expect(c.data.append_eos_set);
    cr_expect_str_eq(c.data.id_field, "id");
    cr_expect_eq(c.data.max_samples, INT64_MAX);
    cr_expect_eq(c.data.max_length, 1 << 20);
    cr_expect_eq(c.data.overflow, TD_OVERFLOW_SPLIT);
    cr_expect_not(c.data.add_special_tokens);
    cr_expect_eq(c.devices.gpus_kind, TD_GPUS_LIST);
    cr_assert_eq(c.devices.n_gpus, 3);
    cr_expect_eq(c.devices.gpus[0], 4);
    cr_expect_eq(c.devices.gpus[1], 0);
    cr_expect_eq(c.devices.gpus[2], 2);
    cr_expect_eq(c.devices.gpus_per_model, 3);
    cr_expect_str_eq(c.devices.inventory, "inv.ini");
    cr_expect_eq(c.capture.top_k, 1024);
    cr_expect_eq(c.capture.logprob_dtype, TD_F32);
    cr_assert_eq(c.capture.n_temperatures, 3);
    cr_expect_eq(c.capture.temperatures[0], 0.5);
    cr_expect_eq(c.capture.temperatures[1], 2.0);
    cr_expect_eq(c.capture.temperatures[2], 10.0);
    cr_expect_eq(c.output.shard_samples, 1 << 24);
    cr_expect_eq(c.run.batch_tokens, 1);
    cr_expect_eq(c.run.seed, UINT64_MAX);
    cr_expect_eq(c.run.on_bad_sample, TD_BAD_SKIP);
    cr_expect_eq(c.run.worker_id, 2);
    cr_expect_eq(c.run.total_workers, 3);
    td_config_free(&c);
}

Test(config, cpu_devices_of_unlike_speed_and_width) {
    td_config c = load_ok(BASE_INI "[devices]\ngpus = cpu*3\ncpu_speeds = 0.25, 0.5,1\n"
                                   "cpu_threads = 2,1, 8\n",
                          (const char *[4]){"devices.cpu_speeds=0.001,.5,1"});
    cr_assert_eq(c.devices.n_cpu_speeds, 3);
    cr_expect_eq(c.devices.cpu_speeds[0], 0.001);
    cr_expect_eq(c.devices.cpu_speeds[1], 0.5);
    cr_expect_eq(c.devices.cpu_speeds[2], 1.0);
    cr_assert_eq(c.devices.n_cpu_threads, 3);
    cr_expect_eq(c.devices.cpu_threads[0], 2);
    cr_expect_eq(c.devices.cpu_threads[1], 1);
    cr_expect_eq(c.devices.cpu_threads[2], 8);
    td_config_free(&c);
}

Test(config, overrides_win_and_the_last_wins) {
    td_config c = load_ok(BASE_INI "[capture]\ntop_k = 5\ntemperatures = 2, 3\n",
                          (const char *[4]){"capture.top_k=6", " capture.top_k = 7 ",
                                            "capture.temperatures=4",
                                            "data.separator="
                                            "\"\""});
    cr_expect_eq(c.capture.top_k, 7);
    cr_expect_eq(c.capture.n_temperatures, 1);
    cr_expect_eq(c.capture.temperatures[0], 4.0);
    td_config_free(&c);
}

Test(config, an_override_has_no_length_limit) {
    char *long_path = td_calloc(1, 5000 + 12);
    memcpy(long_path, "output.dir=", 11);
    memset(long_path + 11, 'x', 5000);
    td_config c = load_ok(BASE_INI, (const char *[4]){long_path});
    cr_expect_eq(strlen(c.output.dir), 5000);
    td_config_free(&c);
    free(long_path);
}

Test(config, blanks_at_the_ends_of_a_separator) {
    td_config c = load_ok(BASE_INI "[data]\nprompt_field = p\ncompletion_field = c\n",
                          (const char *[4]){"data.separator= -> "});
    cr_expect_str_eq(c.data.separator, " -> ");
    td_config_free(&c);
}

Test(config, append_eos_follows_the_prompt) {
    td_config c = load_ok(BASE_INI "[data]\nprompt_field = p\ncompletion_field = c\n", NULL);
    cr_expect(c.data.append_eos);
    cr_expect_not(c.data.append_eos_set);
    td_config_free(&c);
    c = load_ok(BASE_INI, (const char *[4]){"data.append_eos=yes"});
    cr_expect(c.data.append_eos);
    cr_expect(c.data.append_eos_set);
    td_config_free(&c);
}

Test(config, cpu_devices) {
    static const struct {
        const char *value;
        int32_t n;
    } cases[] = {{"cpu", 1},
                 {"cpu*4", 4},
                 {"cpu * 2", 2},
                 {"cpu*256", 256},
                 /* as tdgen devices prints them */
                 {"cpu:0", 1},
                 {"cpu:0,cpu:1", 2},
                 {" cpu:2, cpu:0 ,cpu:1", 3}};
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        char text[100];
        snprintf(text, sizeof text, "devices.gpus=%s", cases[i].value);
        /* A list set before is gone. */
        td_config c = load_ok(BASE_INI "[devices]\ngpus = 0,1\n", (const char *[4]){text});
        cr_expect_eq(c.devices.gpus_kind, TD_GPUS_CPU);
        cr_expect_eq(c.devices.n_gpus, cases[i].n);
        cr_expect_null(c.devices.gpus);
        td_config_free(&c);
    }
}

/* A machine of the names that nvidia-smi, lspci and NVIDIA's documentation show. */
static td_status find_here(const void *machine, const char *name, int32_t *number, td_error *err) {
    return td_device_find(machine, 4, name, number, err);
}

Test(config, gpus_by_name) {
    static const td_device_info machine[] = {
        {.name = "cuda:0",
         .uuid = "GPU-8f2e11aa-0000-0000-0000-000000000001",
         .pci = "0000:17:00.0"},
        {.name = "cuda:1",
         .index = 1,
         .uuid = "GPU-8f2f22bb-0000-0000-0000-000000000002",
         .pci = "0000:65:00.0"},
        {.name = "cuda:2",
         .index = 2,
         .uuid = "GPU-c0ffee00-0000-0000-0000-000000000003",
         .pci = "0001:65:00.0"},
        {.name = "cuda:3",
         .index = 3,
         .uuid = "MIG-ab000000-0000-0000-0000-000000000004",
         .pci = "0001:ca:00.0"},
    };
    static const struct {
        const char *gpus, *groups;
        int32_t n, want[4];
        const char *refused;
    } cases[] = {
        {"cuda:1,0", NULL, 2, {1, 0}, NULL},
        {"GPU-8f2f,gpu-C0FFEE00-0000-0000-0000-000000000003", NULL, 2, {1, 2}, NULL},
        {"0000:65:00.0, 17:00.0", NULL, 2, {1, 0}, NULL},
        {"00000001:65:00.0,17:00,00000001:CA:00.0", NULL, 3, {2, 0, 3}, NULL},
        {"MIG-ab, GPU-8f2e", NULL, 2, {3, 0}, NULL},
        {"GPU-8f2e,2", "GPU-8f2e | cuda:2", 2, {0, 2}, NULL},
        {"auto", "17:00.0 | GPU-8f2f,MIG-ab", 0, {0}, NULL},
        {"GPU-8f2", NULL, 0, {0}, "GPU-8f2 is both cuda:0"},
        {"65:00.0", NULL, 0, {0}, "65:00.0 is both cuda:1"},
        {"GPU-dead", NULL, 0, {0}, "[devices] gpus: this machine shows no GPU GPU-dead"},
        {"18:00.0", NULL, 0, {0}, "this machine shows no GPU 18:00.0"},
        {"MIG-dead", NULL, 0, {0}, "one slice to a process"},
        {"GPU-8f2f,0000:65:00.0", NULL, 0, {0}, "gpus names GPU 1 twice, under different names"},
        {"1,65:00.0,GPU-8f2f", NULL, 0, {0}, "is both"},
        {"GPU-8f2e", "17:00.0 | GPU-8f2f", 0, {0}, "groups names GPU 1, which is not in the list"},
        {"auto", "0,17:00.0", 0, {0}, "a group of [devices] groups names GPU 0 twice"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        char gpus[120], groups[120];
        td_error err = {0};
        snprintf(gpus, sizeof gpus, "devices.gpus=%s", cases[i].gpus);
        snprintf(groups, sizeof groups, "devices.groups=%s", cases[i].groups);
        td_config c =
            load_ok(BASE_INI, (const char *[4]){gpus, cases[i].groups ? groups : NULL, NULL, NULL});
        td_status rc = td_config_resolve_devices(&c, find_here, machine, &err);
        if (cases[i].refused) {
            cr_expect_neq(rc, TD_OK, "%s", gpus);
            cr_expect(strstr(err.text, cases[i].refused), "%s: %s", gpus, err.text);
        } else {
            cr_assert_eq(rc, TD_OK, "%s: %s", gpus, err.text);
            cr_expect_eq(c.devices.n_gpus, cases[i].n, "%s", gpus);
            for (int32_t k = 0; k < cases[i].n; k++)
                cr_expect_eq(c.devices.gpus[k], cases[i].want[k], "%s: %d", gpus,
                             c.devices.gpus[k]);
        }
        td_config_free(&c);
    }
    td_error err;
    td_config c = load_ok(BASE_INI, (const char *[4]){"devices.groups=17:00.0|GPU-8f2f,MIG-ab"});
    cr_assert_eq(td_config_resolve_devices(&c, find_here, machine, &err), TD_OK, "%s", err.text);
    cr_expect_eq(c.devices.group_device[0], 0);
    cr_expect_eq(c.devices.group_device[1], 1);
    cr_expect_eq(c.devices.group_device[2], 3);
    td_config_free(&c);
}

Test(config, groups) {
    td_config c = load_ok(BASE_INI "[devices]\ngroups = 0 | 1|5, 6 ,7 | 0\n", NULL);
    static const int32_t group[] = {0, 1, 2, 2, 2, 3}, device[] = {0, 1, 5, 6, 7, 0};
    cr_assert_eq(c.devices.n_group_entries, 6);
    cr_expect_eq(c.devices.n_groups, 4);
    for (int i = 0; i < 6; i++) {
        cr_expect_eq(c.devices.group_of[i], group[i]);
        cr_expect_eq(c.devices.group_device[i], device[i]);
    }
    td_config_free(&c);
}

Test(config, names_as_in_the_file) {
    cr_expect_str_eq(td_compute_name(TD_COMPUTE_AUTO), "auto");
    cr_expect_str_eq(td_compute_name(TD_COMPUTE_F16), "f16");
    cr_expect_str_eq(td_data_format_name(TD_FORMAT_TOKENS), "tokens");
    cr_expect_str_eq(td_overflow_name(TD_OVERFLOW_SKIP), "skip");
    cr_expect_str_eq(td_on_bad_sample_name(TD_BAD_SKIP), "skip");
    cr_expect_str_eq(td_text_unit_name(TD_TEXT_FILE), "file");
}

Test(config, help_prints_every_key_and_default) {
    char *text = NULL;
    size_t size_bytes = 0;
    FILE *f = open_memstream(&text, &size_bytes);
    td_config_print_keys(f);
    fclose(f);
    for (int i = 0; i < td_config_n_keys; i++) {
        char line[200];
        snprintf(line, sizeof line, "  %s.%s (default: %s)\n", td_config_keys[i].section,
                 td_config_keys[i].name,
                 td_config_keys[i].def ? td_config_keys[i].def : td_config_keys[i].def_text);
        cr_expect(strstr(text, line), "the help lacks: %s", line);
    }
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        cr_expect_leq(strlen(line), 100, "too wide: %s", line);
    free(text);
}

Test(config, free_takes_null_and_empty) {
    td_config c = {0};
    td_config_free(&c);
    td_config_free(&c);
    td_config_free(NULL);
}
