/* tdgen verify --against, the record's side: samples drawn, teachers compared, and any bit that
 * differs from what is on disk found. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"
#include "test/record/fixture.h"
#include "base/log.h"
#include "base/memory.h"

enum { SHARDS = 6 };

static void setup(td_fixture *f) {
    td_error err = {0};
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(f);
    f->cfg.capture.n_temperatures = 1;
    f->cfg.capture.temperatures[0] = 2;
    OK(td_fixture_run(f, SHARDS, NULL, &err));
}

/* What the fixture's teacher gives for the sample. */
static td_captured compute(const td_fixture *f, const td_recheck_sample *s) {
    int64_t n = f->cfg.output.shard_samples;
    td_shard *shard = td_fixture_shard(f, s->dataset_row / n, (int32_t)n);
    const td_sample *m = &shard->samples[s->dataset_row % n];
    cr_assert_eq(m->n_tokens, s->n_tokens);
    cr_assert_eq(m->n_rows, s->n_rows);
    cr_assert_eq(memcmp(shard->ids + m->token_offset, s->ids, (size_t)s->n_tokens * 4), 0);
    td_captured c = td_fixture_capture(f, shard, (int32_t)(s->dataset_row % n));
    td_fixture_shard_free(shard);
    return c;
}

enum change { NOTHING, LOGPROB, ID, LOGSUMEXP, LOGSUMEXP_T, TAIL, TARGET, RANK, ENTROPY, CHANGES };

static void apply(td_captured *c, enum change what, float by) {
    float *const field[CHANGES] = {
        [LOGPROB] = (float *)c->topk_logprobs,   [LOGSUMEXP] = (float *)c->logsumexp,
        [LOGSUMEXP_T] = (float *)c->logsumexp_t, [TAIL] = (float *)c->tail_mass,
        [TARGET] = (float *)c->target_logprob,   [ENTROPY] = (float *)c->entropy};
    if (field[what])
        field[what][0] += by;
    else if (what == RANK)
        ((int32_t *)c->target_rank)[0] ^= 1;
    else if (what == ID) {
        int32_t *ids = (int32_t *)c->topk_ids, first = ids[0];
        ids[0] = ids[1];
        ids[1] = first;
    }
}

/* Both passes, with a change in the first sample of one of them; the report's text. */
static td_status report(const td_fixture *f, const char *kind, enum change what, float by,
                        bool in_control, char **text, td_error *err) {
    td_recheck *r = NULL;
    int32_t n = 0;
    size_t size;
    *err = (td_error){0};
    cr_assert_eq(td_recheck_open(f->cfg.output.dir, 9, 1, &r, err), TD_OK, "%s", err->text);
    const td_recheck_sample *s = td_recheck_samples(r, &n);
    cr_assert(n > 5 && n <= 9);
    for (int32_t i = 0; i < n; i++) {
        td_captured c = compute(f, &s[i]);
        if (i == 0 && !in_control)
            apply(&c, what, by);
        cr_assert_eq(td_recheck_compare(r, i, kind, &c, 0, err), TD_OK, "%s", err->text);
        td_fixture_captured_free(&c);
    }
    for (int32_t i = n - 1; i >= 0; i--) {
        td_captured c = compute(f, &s[i]);
        if (i == 0)
            apply(&c, what, by);
        td_recheck_control(r, i, &c, 0);
        td_fixture_captured_free(&c);
    }
    FILE *out = open_memstream(text, &size);
    td_status rc = td_recheck_report(r, kind, out, err);
    fclose(out);
    td_recheck_close(r);
    return rc;
}

Test(recheck, the_same_numbers_are_the_record) {
    td_fixture f;
    td_error err;
    char *text = NULL;
    setup(&f);
    OK(report(&f, "cpu:test", NOTHING, 0, false, &text, &err));
    cr_assert(strstr(text, "0 of") && strstr(text, "must be 0") && strstr(text, "OK:"), "%s", text);
    free(text);
    OK(report(&f, "gpu:other", NOTHING, 0, false, &text, &err));
    cr_assert(strstr(text, "another device kind (cpu:test)"), "%s", text);
    free(text);
    td_fixture_free(&f);
}

Test(recheck, one_changed_bit_of_any_number_fails_on_the_same_kind) {
    td_fixture f;
    td_error err;
    char *text = NULL;
    setup(&f);
    for (int what = LOGPROB; what < CHANGES; what++) {
        float by = what == LOGPROB ? 0.01f : 1e-6f; /* a log-prob is stored as f16 */
        cr_assert_eq(report(&f, "cpu:test", (enum change)what, by, false, &text, &err), TD_E_VERIFY,
                     "change %d went unnoticed: %s", what, text);
        cr_assert(strstr(err.text, "1 of"), "%s", err.text);
        free(text);
    }
    td_fixture_free(&f);
}

Test(recheck, another_kind_may_differ_within_the_tolerance_that_is_printed) {
    td_fixture f;
    td_error err;
    char *text = NULL;
    setup(&f);
    static const enum change fields[] = {LOGPROB, LOGSUMEXP, LOGSUMEXP_T, TARGET};
    for (size_t i = 0; i < TD_ARRAY_LEN(fields); i++) {
        OK(report(&f, "gpu:other", fields[i], 1e-4f, false, &text, &err));
        cr_assert(strstr(text, "may differ by 0.002"), "%s", text);
        free(text);
        static const float much[] = {0.1f, NAN, INFINITY, -INFINITY};
        for (size_t k = 0; k < TD_ARRAY_LEN(much); k++) {
            cr_assert_eq(report(&f, "gpu:other", fields[i], much[k], false, &text, &err),
                         TD_E_VERIFY, "field %zu, %g: %s", i, (double)much[k], text);
            free(text);
        }
    }
    td_fixture_free(&f);
}

/* A version that computes other bits makes no claim about those of an older one. */
Test(recheck, another_numerics_revision_counts_as_another_kind) {
    td_fixture f;
    td_error err = {0};
    char *text = NULL, named[80];
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(&f);
    f.cfg.capture.n_temperatures = 1;
    f.cfg.capture.temperatures[0] = 2;
    f.id.numerics_revision = TD_NUMERICS_REVISION + 1;
    snprintf(named, sizeof named, "another device kind (cpu:test at numerics revision %d)",
             TD_NUMERICS_REVISION + 1);
    cr_assert_eq(td_fixture_run(&f, SHARDS, NULL, &err), TD_OK, "%s", err.text);
    cr_assert_eq(report(&f, "cpu:test", LOGSUMEXP, 1e-4f, false, &text, &err), TD_OK, "%s",
                 err.text);
    cr_assert(strstr(text, named), "%s", text);
    free(text);
    cr_assert_eq(report(&f, "cpu:test", LOGSUMEXP, 0.1f, false, &text, &err), TD_E_VERIFY);
    free(text);
    td_fixture_free(&f);
}

Test(recheck, a_control_that_differs_fails_whatever_the_kind) {
    td_fixture f;
    td_error err;
    char *text = NULL;
    setup(&f);
    for (int what = LOGPROB; what < CHANGES; what++) {
        cr_assert_eq(report(&f, "gpu:other", (enum change)what, 1e-6f, true, &text, &err),
                     TD_E_VERIFY, "change %d went unnoticed: %s", what, text);
        cr_assert(strstr(err.text, "among other samples"), "%s", err.text);
        free(text);
    }
    td_fixture_free(&f);
}

Test(recheck, samples_are_different_ones_and_follow_from_the_seed) {
    td_fixture f;
    td_error err = {0};
    td_recheck *a = NULL, *b = NULL;
    int32_t n = 0, m = 0, n_other = 0;
    setup(&f);
    for (uint64_t seed = 0; seed < 20; seed++) {
        OK(td_recheck_open(f.cfg.output.dir, 5, seed, &a, &err));
        cr_assert_eq(td_recheck_open(f.cfg.output.dir, 5, seed + seed % 2, &b, &err), TD_OK);
        const td_recheck_sample *s = td_recheck_samples(a, &n), *t = td_recheck_samples(b, &m);
        cr_assert(n > 0 && n <= 5);
        for (int32_t i = 0; i < n; i++) {
            cr_assert_gt(s[i].n_rows, 0);
            cr_assert(i == 0 || s[i].dataset_row > s[i - 1].dataset_row);
            if (seed % 2 == 0)
                cr_assert(m == n && t[i].dataset_row == s[i].dataset_row);
            else
                n_other += m != n || t[i].dataset_row != s[i].dataset_row;
        }
        td_recheck_close(a);
        td_recheck_close(b);
    }
    cr_assert_gt(n_other, 10, "the seed hardly matters");
    /* All of them, when more are asked for: one in four has no rows. */
    OK(td_recheck_open(f.cfg.output.dir, 1000, 0, &a, &err));
    td_recheck_samples(a, &n);
    cr_assert_geq(n, SHARDS * 3 - 1);
    td_recheck_close(a);
    td_fixture_free(&f);
}

Test(recheck, another_teacher_is_refused_with_both_sides) {
    td_fixture f;
    td_error err = {0};
    td_recheck *r = NULL;
    setup(&f);
    OK(td_recheck_open(f.cfg.output.dir, 5, 0, &r, &err));
    const uint64_t weights = f.weights_hash, other = 0x77;
    td_recheck_teacher_hashes have = {.config = &f.id.config_hash, .weights = &weights};
    OK(td_recheck_teacher(r, "M", &have, &err));
    have = (td_recheck_teacher_hashes){.weights = &other};
    cr_assert_eq(td_recheck_teacher(r, "M", &have, &err), TD_E_MODEL);
    cr_assert(strstr(err.text, "0000000000abcdef in the folder") &&
                  strstr(err.text, "0000000000000077 in the model"),
              "%s", err.text);
    f.id.config_hash = 5;
    have = (td_recheck_teacher_hashes){.config = &f.id.config_hash};
    cr_assert_eq(td_recheck_teacher(r, "M", &have, &err), TD_E_MODEL);
    cr_assert(strstr(err.text, "0000000000001234 in the folder") && strstr(err.text, "config.json"),
              "%s", err.text);
    cr_assert(td_recheck_needs_tokenizer(r));
    /* Of a tokenizer either hash may be the folder's. */
    const uint64_t recorded = f.id.tokenizer_hash;
    have = (td_recheck_teacher_hashes){.tokenizer = &recorded, .tokenizer_bytes = &weights};
    OK(td_recheck_teacher(r, "M", &have, &err));
    have = (td_recheck_teacher_hashes){.tokenizer = &weights, .tokenizer_bytes = &recorded};
    OK(td_recheck_teacher(r, "M", &have, &err));
    have = (td_recheck_teacher_hashes){.tokenizer = &weights, .tokenizer_bytes = &weights};
    cr_assert_eq(td_recheck_teacher(r, "M", &have, &err), TD_E_MODEL);
    cr_assert(strstr(err.text, "tokenizer.json"), "%s", err.text);
    td_recheck_close(r);
    td_fixture_free(&f);
}
