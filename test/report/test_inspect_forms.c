/* inspect as JSON and as a page: the numbers are those on disk, in every mode. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"
#include "test/record/fixture.h"
#include "base/log.h"
#include "base/memory.h"

static const td_capture_mode MODES[] = {TD_CAPTURE_TOPK,        TD_CAPTURE_TOPP, TD_CAPTURE_SAMPLE,
                                        TD_CAPTURE_TOPK_SAMPLE, TD_CAPTURE_FULL, TD_CAPTURE_HIDDEN};

static void make_run(td_fixture *f, td_capture_mode mode) {
    td_error err = {0};
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(f);
    f->cfg.capture.mode = mode;
    f->cfg.capture.top_p = 0.9;
    f->cfg.capture.min_k = 1;
    f->cfg.capture.n_draws = 20;
    f->cfg.capture.proposal_power = 1;
    f->cfg.capture.n_temperatures = 1;
    f->cfg.capture.temperatures[0] = 2;
    OK(td_fixture_run(f, 3, NULL, &err));
}

static double num(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

static size_t count(const char *text, const char *what) {
    size_t n = 0;
    for (const char *s = text; (s = strstr(s, what)); s += strlen(what))
        n++;
    return n;
}

Test(inspect_forms, json_has_the_numbers_that_were_captured) {
    for (size_t m = 0; m < TD_ARRAY_LEN(MODES); m++) {
        td_fixture f;
        char *text = NULL;
        make_run(&f, MODES[m]);
        td_shard *s = td_fixture_shard(&f, 1, (int32_t)f.cfg.output.shard_samples);
        td_captured c = td_fixture_capture(&f, s, 2);
        /* sample 6 of the folder is the third of shard 1 */
        cr_assert_eq(td_fixture_inspect(td_inspect_json, f.cfg.output.dir,
                                        &(td_inspect_options){.sample = 6}, &text),
                     TD_OK, "%s", text);
        json_t *doc = json_loads(text, 0, NULL), *sample = json_object_get(doc, "sample");
        const json_t *rows = json_object_get(sample, "rows");
        cr_assert(doc && sample, "%s", text);
        cr_assert_eq((int64_t)num(sample, "dataset_row"), s->samples[2].row);
        cr_assert_eq(json_array_size(json_object_get(sample, "tokens")),
                     (size_t)s->samples[2].n_tokens);
        cr_assert_eq(json_array_size(rows), (size_t)c.n_rows);
        for (int32_t r = 0; r < c.n_rows && MODES[m] != TD_CAPTURE_HIDDEN; r++) {
            const json_t *row = json_array_get(rows, (size_t)r),
                         *target = json_object_get(row, "target");
            cr_assert_float_eq(num(target, "logprob"), (double)c.target_logprob[r], 1e-6);
            cr_assert_eq((int32_t)num(target, "rank"), c.target_rank[r]);
            cr_assert_float_eq(num(row, "logsumexp"), (double)c.logsumexp[r], 1e-6);
            cr_assert_float_eq(num(row, "entropy"), (double)c.entropy[r], 1e-6);
            cr_assert_float_eq(num(row, "tail_mass"), (double)c.tail_mass[r], 1e-6);
            const json_t *list = json_object_get(row, "candidates");
            cr_assert_gt(json_array_size(list), 0);
            if (MODES[m] == TD_CAPTURE_TOPK)
                for (size_t j = 0; j < json_array_size(list); j++) {
                    const json_t *one = json_array_get(list, j);
                    size_t at = (size_t)r * (size_t)c.top_k + j;
                    cr_assert_eq((int32_t)num(one, "id"), c.topk_ids[at]);
                    cr_assert_float_eq(num(one, "logprob"), (double)c.topk_logprobs[at], 4e-3);
                }
        }
        json_decref(doc);
        free(text);
        td_fixture_captured_free(&c);
        td_fixture_shard_free(s);
        td_fixture_free(&f);
    }
}

Test(inspect_forms, the_page_colours_every_target) {
    for (size_t m = 0; m < TD_ARRAY_LEN(MODES); m++) {
        td_fixture f;
        char *text = NULL;
        size_t n_rows = 0, n_tokens = 0;
        make_run(&f, MODES[m]);
        for (int64_t k = 0; k < 3; k++) {
            td_shard *s = td_fixture_shard(&f, k, (int32_t)f.cfg.output.shard_samples);
            n_rows += (size_t)s->n_rows;
            n_tokens += (size_t)s->n_tokens;
            td_fixture_shard_free(s);
        }
        td_inspect_options all = {.sample = -1, .n_samples = 100};
        cr_assert_eq(td_fixture_inspect(td_inspect_html, f.cfg.output.dir, &all, &text), TD_OK,
                     "%s", text);
        bool hidden = MODES[m] == TD_CAPTURE_HIDDEN;
        cr_assert_eq(count(text, "<article>"), 12);
        cr_assert_eq(count(text, "<span style=\"--p:"), hidden ? 0 : n_rows);
        cr_assert_eq(count(text, "<span class=\"n\">"), hidden ? n_tokens : n_tokens - n_rows);
        cr_assert_eq(count(text, "<title>"), hidden ? 1 : 21, "histogram of twenty bins");
        cr_assert(strstr(text, "Content-Security-Policy") && !strstr(text, "<script") &&
                  !strstr(text, "http:") && !strstr(text, "https:"));
        free(text);
        td_inspect_options one = {.sample = 6};
        cr_assert_eq(td_fixture_inspect(td_inspect_html, f.cfg.output.dir, &one, &text), TD_OK,
                     "%s", text);
        cr_assert_eq(count(text, "<article>"), 1);
        cr_assert(strstr(text, "Sample 6"));
        free(text);
        td_inspect_options none = {.sample = 12};
        cr_assert_eq(td_fixture_inspect(td_inspect_html, f.cfg.output.dir, &none, &text),
                     TD_E_CONFIG);
        free(text);
        td_fixture_free(&f);
    }
}
