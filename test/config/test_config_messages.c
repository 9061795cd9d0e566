/* Configuration: what is refused, and that the message names the place and what to do. */
#include "test/common.h"
#include "fixture.h"

#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"

typedef struct refusal {
    const char *text; /* after BASE_INI, or whole when `whole` */
    const char *overrides[4];
    const char *message[3]; /* parts that must be there */
    bool whole;
} refusal;

#define BASE_LINES 6 /* lines of BASE_INI: the appended text starts at line 7 */

static const refusal refusals[] = {
    /* names */
    {"[capure]\n", {NULL}, {"run.ini:7: ", "no section [capure]", "did you mean [capture]?"}, 0},
    {"[zzzzzzzzzzzzzzzzz]\nx=1\n", {NULL}, {"run.ini:7: ", "sections: model, data"}, 0},
    {"[ run ]\n", {NULL}, {"run.ini:7: ", "no section [ run ]", "did you mean [run]?"}, 0},
    {"[data]\nmax_lenght = 3\n",
     {NULL},
     {"run.ini:8: ", "no key 'max_lenght' in [data]", "did you mean 'max_length'?"},
     0},
    {"[run]\n\ntop_k = 3\n", {NULL}, {"run.ini:9: ", "belongs to [capture]: capture.top_k"}, 0},
    {"[output]\nqqqqqqqqqqqqqqqqqqqqqqq = 3\n", {NULL}, {"(keys: dir, shard_samples, zstd)"}, 0},
    {"top_k = 3\n" BASE_INI, {NULL}, {"run.ini:1: ", "'top_k' stands before the first section"}, 1},
    /* shape of the file */
    {"[run]\nseed\n", {NULL}, {"run.ini:8: expected `key = value`"}, 0},
    {"[run\nseed=1\n", {NULL}, {"run.ini:7: ", "needs a closing bracket"}, 0},
    {"[run] seed=1\n", {NULL}, {"run.ini:7: ", "found 'seed=1' behind it"}, 0},
    {"what\n[run]\nseed = x\n", {NULL}, {"run.ini:7: expected `key = value`"}, 0},
    {"[output]\ndir = p\n", {NULL}, {"run.ini:8: [output] dir is given twice, first in line 6"}, 0},
    {"[capture]\ntop_k = 1\n top_k = 1\n", {NULL}, {"run.ini:9: ", "given twice", "line 8"}, 0},
    /* types and ranges */
    {"[capture]\ntop_k =\n", {NULL}, {"run.ini:8: [capture] top_k: the value is empty"}, 0},
    {"[capture]\ntop_k = ; 5\n", {NULL}, {"run.ini:8: [capture] top_k: the value is empty"}, 0},
    {"[capture]\ntop_k = many\n",
     {NULL},
     {"run.ini:8: [capture] top_k: expected an integer from 1 to 1024, found 'many'"},
     0},
    {"[capture]\ntop_k = 64 # comment\n", {NULL}, {"found '64 # comment'", "starts with ' ;'"}, 0},
    {"[capture]\ntop_k = 1025\n", {NULL}, {"from 1 to 1024, found '1025'"}, 0},
    {"[capture]\ntop_k = 0\n", {NULL}, {"from 1 to 1024, found '0'"}, 0},
    {"[capture]\ntop_k = 1.5\n", {NULL}, {"found '1.5'"}, 0},
    {"[capture]\ntop_k = +1\n", {NULL}, {"found '+1'"}, 0},
    {"[capture]\ntop_k = 18446744073709551617\n", {NULL}, {"found '18446744073709551617'"}, 0},
    {"[capture]\nmode = top\n",
     {NULL},
     {"expected topk, topp, sample, topk+sample, full or hidden, found 'top'"},
     0},
    {"[capture]\nlogprob_dtype = bf16\n", {NULL}, {"expected f16, f32 or q8, found 'bf16'"}, 0},
    {"[model]\ncompute = fp16\n",
     {NULL},
     {"run.ini:8: [model] compute: expected auto, f32, bf16 or f16"},
     0},
    {"[data]\nmax_length = 0\n", {NULL}, {"an integer from 1 to 1048576, found '0'"}, 0},
    {"[data]\nmax_samples = -1\n", {NULL}, {"an integer of at least 0, found '-1'"}, 0},
    {"[data]\nmax_samples = 9223372036854775808\n", {NULL}, {"an integer of at least 0"}, 0},
    {"[data]\nappend_eos = maybe\n", {NULL}, {"true or false", "found 'maybe'"}, 0},
    {"[data]\noverflow = wrap\n", {NULL}, {"truncate, split or skip, found 'wrap'"}, 0},
    {"[data]\nformat = csv\n", {NULL}, {"auto, jsonl, text or tokens, found 'csv'"}, 0},
    {"[data]\nseparator = \\q\n", {NULL}, {"run.ini:8: [data] separator", "backslash"}, 0},
    {"[data]\nseparator = a\\\n", {NULL}, {"run.ini:8: [data] separator", "backslash"}, 0},
    {"[output]\nshard_samples = 16777217\n", {NULL}, {"from 1 to 16777216"}, 0},
    {"[run]\nbatch_tokens = 0\n", {NULL}, {"run.ini:8: [run] batch_tokens", "1 to 1048576"}, 0},
    {"[run]\nseed = -1\n", {NULL}, {"from 0 to 18446744073709551615, found '-1'"}, 0},
    {"[run]\nseed = 18446744073709551616\n", {NULL}, {"from 0 to 18446744073709551615"}, 0},
    {"[run]\non_bad_sample = ignore\n", {NULL}, {"fail or skip, found 'ignore'"}, 0},
    /* devices */
    {"[devices]\ngpus = all\n", {NULL}, {"expected auto, cpu, cpu*N", "found 'all'"}, 0},
    {"[devices]\ngpus = cpu*0\n", {NULL}, {"N is out of range"}, 0},
    {"[devices]\ngpus = cpu*257\n", {NULL}, {"N is out of range"}, 0},
    {"[devices]\ngpus = cpu4\n", {NULL}, {"found 'cpu4'"}, 0},
    {"[devices]\ngpus = cpu*\n", {NULL}, {"found 'cpu*'"}, 0},
    {"[devices]\ngpus = 0,1,0\n", {NULL}, {"a GPU is named twice"}, 0},
    {"[devices]\ngpus = 0,,1\n", {NULL}, {"not a list of devices"}, 0},
    {"[devices]\ngpus = -1\n", {NULL}, {"a device number is out of range"}, 0},
    {"[devices]\ngpus = cpu:1\n", {NULL}, {"count from cpu:0 without a gap"}, 0},
    {"[devices]\ngpus = cpu:0,cpu:0\n", {NULL}, {"a device is named twice"}, 0},
    {"[devices]\ngpus = cpu:0,1\n", {NULL}, {"CPU devices and GPUs cannot be in one run"}, 0},
    {"[devices]\ngpus = GPU-\n", {NULL}, {"not a list of devices"}, 0},
    {"[devices]\ngpus = GPU-xyz\n", {NULL}, {"not a list of devices"}, 0},
    {"[devices]\ngpus = 0:0:0:0\n", {NULL}, {"not a list of devices"}, 0},
    {"[devices]\ngpus = 123:00.0\n", {NULL}, {"not a list of devices"}, 0},
    {"[devices]\ngpus = 65:00.9\n", {NULL}, {"not a list of devices"}, 0},
    {"[devices]\ngpus = cpu*2\ngroups = cuda:0 | cuda:1\n",
     {NULL},
     {"run.ini:9: [devices] groups names GPUs, but [devices] gpus = cpu*2"},
     0},
    {"[devices]\ngroups = cpu:0\n",
     {NULL},
     {"run.ini:8: [devices] groups names CPU devices, which needs [devices] gpus = cpu*N"},
     0},
    {"[devices]\ngpus = cpu:0,cpu:1\ngroups = cpu:0 | cpu:2\n",
     {NULL},
     {"run.ini:9: [devices] groups names device 2, but [devices] gpus = cpu*2 has 0 to 1"},
     0},
    {"[devices]\ngpus_per_model = 0\n", {NULL}, {"auto, or an integer from 1 to 1024"}, 0},
    {"[devices]\ngroups = 0 | 1,1\n", {NULL}, {"a group names a device twice"}, 0},
    {"[devices]\ngroups = 0 | | 1\n", {NULL}, {"a group is empty"}, 0},
    {"[devices]\ngroups = 0 |\n", {NULL}, {"a group is empty"}, 0},
    {"[devices]\ngroups = a\n", {NULL}, {"groups of devices such as 0 | 1 | 2,3"}, 0},
    {"[devices]\ngroups = 0 | 2\ngpus = cpu*2\n",
     {NULL},
     {"run.ini:8: [devices] groups names device 2, but [devices] gpus = cpu*2 has 0 to 1"},
     0},
    {"[devices]\ngroups = 0 | 2\ngpus = 0,1\n",
     {NULL},
     {"run.ini:8: [devices] groups names GPU 2, which is not in the list"},
     0},
    {"[devices]\ngpus = cpu*3\ncpu_speeds = 1,0.5\n",
     {NULL},
     {"run.ini:9: [devices] cpu_speeds lists 2 devices, but [devices] gpus = cpu*3 has 3"},
     0},
    {"[devices]\ngpus = cpu*2\ncpu_threads = 1,2,1\n",
     {NULL},
     {"run.ini:9: [devices] cpu_threads lists 3 devices, but [devices] gpus = cpu*2 has 2"},
     0},
    {"[devices]\ngpus = 0,1\ncpu_speeds = 1,1\n",
     {NULL},
     {"run.ini:9: [devices] cpu_speeds needs [devices] gpus = cpu*N"},
     0},
    {"[devices]\ncpu_speeds = 1,2\n", {NULL}, {"outside 0.001 to 1", "found '1,2'"}, 0},
    {"[devices]\ncpu_speeds = 1,0\n", {NULL}, {"outside 0.001 to 1"}, 0},
    {"[devices]\ncpu_speeds = nan\n", {NULL}, {"found 'nan'"}, 0},
    {"[devices]\ncpu_speeds = 1,\n", {NULL}, {"this is not a list of numbers"}, 0},
    {"[devices]\ncpu_threads = 1,0\n", {NULL}, {"out of range", "from 1 to 1024"}, 0},
    {"[devices]\ncpu_threads = 1.5\n", {NULL}, {"this is not a list of whole numbers"}, 0},
    /* temperatures */
    {"[capture]\ntop_p = 0\n", {NULL}, {"run.ini:8: ", "a number from 0.001 to 1, found '0'"}, 0},
    {"[capture]\ntop_p = 1.5\n", {NULL}, {"a number from 0.001 to 1, found '1.5'"}, 0},
    {"[capture]\ntop_p = nan\n", {NULL}, {"found 'nan'"}, 0},
    {"[capture]\ntop_p = -nan\n", {NULL}, {"found '-nan'"}, 0},
    {"[capture]\ntop_p = 0.5 0.6\n", {NULL}, {"found '0.5 0.6'"}, 0},
    {"[capture]\ntop_p = 0x1p-1\n", {NULL}, {"found '0x1p-1'"}, 0},
    {"[capture]\nproposal_power = 0\n", {NULL}, {"a number from 0.01 to 100, found '0'"}, 0},
    {"[capture]\nproposal_power = -inf\n", {NULL}, {"found '-inf'"}, 0},
    {"[capture]\nn_draws = 1025\n", {NULL}, {"from 1 to 1024, found '1025'"}, 0},
    {"[capture]\nmin_k = 0\n", {NULL}, {"from 1 to 1024, found '0'"}, 0},
    {"[capture]\nmode = topp\nmin_k = 9\ntop_k = 8\n",
     {NULL},
     {"run.ini:9: [capture] min_k is 9, more than [capture] top_k = 8"},
     0},
    {"[capture]\ndense_dtype = q8\n", {NULL}, {"expected bf16, f16 or f32, found 'q8'"}, 0},
    {"[capture]\nalways_ids = 1,,2\n", {NULL}, {"this is not a list of token ids"}, 0},
    {"[capture]\nalways_ids = </s>\n", {NULL}, {"up to 64 different token ids", "not a list"}, 0},
    {"[capture]\nalways_ids = -1\n", {NULL}, {"a token id is out of range"}, 0},
    {"[capture]\nalways_ids = 2147483648\n", {NULL}, {"a token id is out of range"}, 0},
    {"[capture]\nalways_ids = 3, 03\n", {NULL}, {"a token id is given twice"}, 0},
    {"[capture]\npack_ids = 16\n", {NULL}, {"expected true or false"}, 0},
    {"[output]\nzstd = 3\n", {NULL}, {"expected true or false"}, 0},
    {"[capture]\ntemperatures = 1, 0\n", {NULL}, {"run.ini:8: ", "lies outside 1e-6 to 1e6"}, 0},
    {"[capture]\ntemperatures = -2\n", {NULL}, {"lies outside 1e-6 to 1e6"}, 0},
    {"[capture]\ntemperatures = nan\n", {NULL}, {"not a list of numbers"}, 0},
    {"[capture]\ntemperatures = 1e999\n", {NULL}, {"lies outside 1e-6 to 1e6"}, 0},
    {"[capture]\ntemperatures = 0x2\n", {NULL}, {"not a list of numbers"}, 0},
    {"[capture]\ntemperatures = 2, 2.0\n", {NULL}, {"a temperature is given twice"}, 0},
    {"[capture]\ntemperatures = 2,\n", {NULL}, {"not a list of numbers"}, 0},
    {"[capture]\ntemperatures = 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17\n",
     {NULL},
     {"the list is too long"},
     0},
    /* missing */
    {"[model]\npath = m\n[data]\npath = d\n",
     {NULL},
     {"run.ini: [output] dir is missing", "output.dir=..."},
     1},
    {"", {NULL}, {"run.ini: [model] path is missing"}, 1},
    /* contradictions */
    {"[data]\nids_field = i\ntext_field = t\n",
     {NULL},
     {"run.ini:9: [data] text_field contradicts [data] ids_field"},
     0},
    {"[data]\nprompt_field = p\ncompletion_field = c\n",
     {"data.ids_field=i"},
     {"run.ini:8: [data] prompt_field contradicts [data] ids_field"},
     0},
    {"[data]\nmask_field = m\n",
     {NULL},
     {"run.ini:8: [data] mask_field needs [data] ids_field"},
     0},
    {"[data]\nprompt_field = p\n", {NULL}, {"run.ini:8: [data] prompt_field needs"}, 0},
    {"[data]\ncompletion_field = p\n", {NULL}, {"run.ini:8: [data] completion_field needs"}, 0},
    {"[data]\nprompt_field = p\ncompletion_field = c\ntext_field = t\n",
     {NULL},
     {"run.ini:10: [data] text_field contradicts [data] prompt_field"},
     0},
    {"[data]\nseparator = x\n",
     {NULL},
     {"run.ini:8: [data] separator needs [data] prompt_field"},
     0},
    {"[data]\ntext_unit = line\nformat = jsonl\n",
     {NULL},
     {"run.ini:8: [data] text_unit contradicts [data] format = jsonl"},
     0},
    {"[data]\nid_field = x\nformat = text\n",
     {NULL},
     {"run.ini:8: [data] id_field contradicts [data] format = text"},
     0},
    {"[data]\nids_field = x\nformat = tokens\n",
     {NULL},
     {"run.ini:8: [data] ids_field contradicts [data] format = tokens"},
     0},
    {"[run]\nworker_id = 4\ntotal_workers = 4\n",
     {NULL},
     {"run.ini:8: [run] worker_id is 4", "total_workers = 4", "from 0 to 3"},
     0},
    /* overrides */
    {"", {"x"}, {"command line 'x': expected section.key=value"}, 0},
    {"", {"x=1"}, {"command line 'x=1': expected section.key=value"}, 0},
    {"", {"top_k=1"}, {"command line 'top_k=1'", "did you mean capture.top_k=...?"}, 0},
    {"", {"captur.top_k=1"}, {"command line 'captur.top_k=1'", "did you mean [capture]?"}, 0},
    {"", {"capture.topk=1"}, {"command line 'capture.topk=1'", "did you mean 'top_k'?"}, 0},
    {"", {"run.top_k=1"}, {"command line 'run.top_k=1'", "belongs to [capture]"}, 0},
    {"", {"capture.top_k="}, {"command line 'capture.top_k=': the value is empty"}, 0},
    {"",
     {"capture.top_k=1", "capture.top_k=x"},
     {"command line 'capture.top_k=x': expected an"},
     0},
    {"",
     {"data.mask_field=m"},
     {"command line 'data.mask_field=m': [data] mask_field needs [data] ids_field"},
     0},
    {"[run]\nworker_id = 1\ntotal_workers = 4\n",
     {"run.total_workers=1"},
     {"run.ini:8: [run] worker_id is 1"},
     0},
};

Test(config_messages, refusals) {
    for (size_t i = 0; i < TD_ARRAY_LEN(refusals); i++) {
        const refusal *r = &refusals[i];
        char *text = r->whole ? td_strdup(r->text) : td_asprintf("%s%s", BASE_INI, r->text);
        td_config untouched, cfg;
        td_error err;
        memset(&untouched, 0xA5, sizeof untouched);
        memset(&cfg, 0xA5, sizeof cfg);
        td_status rc = load_text(text, r->overrides, &cfg, &err);
        cr_expect_eq(rc, TD_E_CONFIG, "accepted: %s", text + (r->whole ? 0 : sizeof BASE_INI - 1));
        cr_expect_eq(err.code, TD_E_CONFIG);
        cr_expect_eq(memcmp(&cfg, &untouched, sizeof cfg), 0, "output touched: %s", r->text);
        for (size_t m = 0; m < 3 && r->message[m]; m++)
            cr_expect(strstr(err.text, r->message[m]), "for %s: '%s' is not in '%s'", r->text,
                      r->message[m], err.text);
        free(text);
    }
}

/* The longest line passes, one character more does not; nothing is ever cut. */
Test(config_messages, line_length) {
    enum { LONGEST = 198 };
    for (int longer = 0; longer < 300; longer += longer < 3 ? 1 : 99) {
        char text[1200], value[600];
        size_t n = LONGEST - strlen("dir = ") + (size_t)longer;
        memset(value, 'v', n);
        value[n] = '\0';
        snprintf(text, sizeof text, "[model]\npath=m\n[data]\npath=d\n[output]\ndir = %s\n", value);
        td_config cfg;
        td_error err;
        td_status rc = load_text(text, NULL, &cfg, &err);
        if (longer == 0) {
            cr_assert_eq(rc, TD_OK, "%s", err.text);
            cr_expect_str_eq(cfg.output.dir, value);
            td_config_free(&cfg);
        } else {
            char part[100];
            snprintf(part, sizeof part, "run.ini:6: the line has %d characters, at most %d fit",
                     LONGEST + longer, LONGEST);
            cr_assert_eq(rc, TD_E_CONFIG);
            cr_expect(strstr(err.text, part), "%s", err.text);
            cr_expect(strstr(err.text, "output.dir=..."), "%s", err.text);
        }
    }
}

Test(config_messages, a_long_comment_is_no_long_line) {
    char text[2000];
    snprintf(text, sizeof text, "; %01000d\n%s  # %0500d\n", 0, BASE_INI, 0);
    td_config cfg;
    td_error err;
    OK(load_text(text, NULL, &cfg, &err));
    td_config_free(&cfg);
}

Test(config_messages, bytes_that_are_no_text) {
    static const char text[] = "[model]\npath = a\0b\n";
    td_config cfg;
    td_error err;
    write_run_ini(text, sizeof text - 1);
    cr_assert_eq(td_config_load("run.ini", NULL, 0, &cfg, &err), TD_E_CONFIG);
    cr_expect(strstr(err.text, "run.ini:2: there is a NUL byte"), "%s", err.text);
}

Test(config_messages, files_that_cannot_be_read) {
    td_config cfg;
    td_error err;
    cr_assert_eq(td_config_load("/nowhere/run.ini", NULL, 0, &cfg, &err), TD_E_CONFIG);
    cr_expect(strstr(err.text, "/nowhere/run.ini: No such file"), "%s", err.text);
    cr_assert_eq(td_config_load("/", NULL, 0, &cfg, &err), TD_E_CONFIG);
    cr_assert_eq(td_config_load("/", NULL, 0, &cfg, NULL), TD_E_CONFIG);
}

/* Notes go to the log, and only for settings that have no effect. */
Test(config_messages, notes) {
    static const struct {
        const char *override, *note; /* NULL: none */
    } cases[] = {
        {"capture.top_k=3", NULL},
        {"devices.gpus_per_model=2",
         "'devices.gpus_per_model=2': [devices] gpus_per_model has no effect: "
         "[devices] groups wins"},
        {"run.seed=3", "[run] seed has no effect with [capture] mode = topk, which draws nothing"},
        {"capture.top_p=0.5", "[capture] top_p has no effect with [capture] mode = topk"},
        {"capture.n_draws=5", "[capture] n_draws has no effect with [capture] mode = topk"},
        {"capture.dense_dtype=f32", "[capture] dense_dtype has no effect"},
        {"capture.min_k=99", "[capture] min_k has no effect"},
        {"capture.pack_ids=true", NULL},
        {"data.add_special_tokens=true", "[data] add_special_tokens has no effect"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_config cfg;
        td_error err;
        write_run_ini("", 0);
        cr_assert_eq(td_log_open_file("log.txt", &err), TD_OK);
        OK(load_text(BASE_INI "[devices]\ngroups = 0|1\n[data]\nids_field = i\n",
                     (const char *[4]){cases[i].override}, &cfg, &err));
        td_config_free(&cfg);
        cr_assert_eq(td_log_open_file(NULL, &err), TD_OK);
        char *text;
        size_t size_bytes;
        cr_assert_eq(td_file_read("log.txt", 1 << 20, TD_E_INTERNAL, &text, &size_bytes, &err),
                     TD_OK);
        if (cases[i].note)
            cr_expect(strstr(text, cases[i].note), "no '%s' in: %s", cases[i].note, text);
        else
            cr_expect_eq(size_bytes, 0, "%s", text);
        free(text);
        unlink("log.txt");
    }
}
