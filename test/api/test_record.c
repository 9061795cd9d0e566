/* tdgen/record.h, through libtdgen.so itself: every capture mode against the row reader, and what is
 * missing, damaged or asked for wrongly. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "tdgen/record.h"
#include "test/common.h"
#include "test/record/fixture.h"

/* What programs were compiled against. */
_Static_assert(TDGEN_OK == 0 && TDGEN_E_INTERNAL == 1 && TDGEN_E_ARGUMENT == 2 &&
                   TDGEN_E_MODEL == 3 && TDGEN_E_DATA == 4 && TDGEN_E_DEVICE == 5 &&
                   TDGEN_E_FOLDER == 6 && TDGEN_E_MEMORY == 7 && TDGEN_E_DAMAGED == 8 &&
                   TDGEN_E_NUMBERS == 9 && TDGEN_E_STOPPED == 10 && TDGEN_E_DEVICE_LOST == 11,
               "status values are fixed");
_Static_assert(TDGEN_MODE_TOPK == 0 && TDGEN_MODE_TOPP == 1 && TDGEN_MODE_SAMPLE == 2 &&
                   TDGEN_MODE_TOPK_SAMPLE == 3 && TDGEN_MODE_FULL == 4 && TDGEN_MODE_HIDDEN == 5,
               "modes are fixed");
_Static_assert(sizeof(tdgen_error) == 1024, "tdgen_error is fixed");

enum { SHARDS = 3, SHARD_ROWS = 4 };

static void make(td_fixture *f) {
    td_error err = {0};
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(f);
    cr_assert_eq(td_fixture_run(f, SHARDS, NULL, &err), TD_OK, "%s", err.text);
}

static tdgen_record *open_record(const td_fixture *f, const tdgen_record_options *o) {
    tdgen_record *r = NULL;
    tdgen_error err = {0};
    cr_assert_eq(tdgen_record_open(f->cfg.output.dir, o, &r, &err), TDGEN_OK, "%s", err.text);
    cr_assert_eq(err.code, TDGEN_OK, "untouched on success");
    return r;
}

/* The call must fail so, with a text that has `part` in it. */
#define FAILS(want, part, call)                                                                    \
    do {                                                                                           \
        tdgen_error failure = {0};                                                                 \
        tdgen_status got = (call);                                                                 \
        cr_assert_eq(got, want, "%s: %s, %s", #call, tdgen_status_name(got), failure.text);        \
        cr_assert_eq(failure.code, want);                                                          \
        cr_assert(strstr(failure.text, part), "no \"%s\" in: %s", part, failure.text);             \
    } while (0)

static bool same_floats(const float *a, const float *b, int32_t n) {
    return !n || (a && b && memcmp(a, b, (size_t)n * sizeof *a) == 0);
}

/* The row is the reader's, bit for bit. */
static void compare_row(const tdgen_record_info *info, const tdgen_row *row, const td_row_view *v,
                        const char *what) {
    cr_assert_eq(row->position, v->position, "%s", what);
    cr_assert_eq(row->target, v->target, "%s", what);
    if (info->mode == TDGEN_MODE_HIDDEN) {
        cr_assert(isnan(row->logsumexp) && isnan(row->tail_mass) && isnan(row->entropy) &&
                      isnan(row->target_logprob) && row->target_rank == -1,
                  "%s", what);
    } else {
        const float a[] = {row->logsumexp, row->tail_mass, row->entropy, row->target_logprob};
        const float b[] = {v->logsumexp, v->tail_mass, v->entropy, v->target_logprob};
        cr_assert(same_floats(a, b, 4), "%s", what);
        cr_assert_eq(row->target_rank, v->target_rank, "%s", what);
        cr_assert(same_floats(row->always_logprobs, v->always_logprobs, info->n_always), "%s",
                  what);
        cr_assert(same_floats(row->logsumexps_t, v->logsumexp_t, info->n_temperatures), "%s", what);
    }
    cr_assert_leq(row->n_top, v->n_top, "%s", what);
    for (int32_t i = row->n_top; i < v->n_top; i++)
        cr_assert_lt(v->top_ids[i], 0, "%s", what);
    cr_assert(same_floats(row->top_logprobs, v->top_logprobs, row->n_top), "%s", what);
    for (int32_t i = 0; i < row->n_top; i++)
        cr_assert_eq(row->top_ids[i], v->top_ids[i], "%s", what);
    cr_assert_eq(row->n_drawn, v->n_drawn, "%s", what);
    cr_assert(same_floats(row->draw_logprobs, v->draw_logprobs, row->n_drawn), "%s", what);
    int32_t n_draws = 0;
    for (int32_t i = 0; i < row->n_drawn; i++) {
        cr_assert_eq(row->draw_ids[i], v->draw_ids[i], "%s", what);
        cr_assert_eq(row->draw_counts[i], v->draw_counts[i], "%s", what);
        n_draws += row->draw_counts[i];
    }
    cr_assert_eq(n_draws, info->n_draws, "%s", what);
    cr_assert_eq(row->proposal_logsumexp, v->proposal_logsumexp, "%s", what);
    cr_assert_eq(row->n_dense, v->n_dense, "%s", what);
    for (int32_t i = 0; i < row->n_dense; i++)
        cr_assert_eq(row->dense[i], td_row_dense_at(v, i), "%s", what);
}

/* Each id once, with the probability that the row gives it; all of it sums to 1. */
static void check_distribution(const tdgen_record_info *info, const tdgen_distribution *d,
                               const td_row_view *v, const char *what) {
    double sum = (double)d->tail;
    int32_t n_drawn_only = 0;
    cr_assert_gt(d->n, 0, "%s", what);
    for (int32_t i = 0; i < d->n; i++) {
        float lp = NAN;
        for (int32_t j = 0; j < v->n_drawn; j++)
            lp = v->draw_ids[j] == d->ids[i] ? v->draw_logprobs[j] : lp;
        n_drawn_only += !isnan(lp);
        for (int32_t j = 0; j < v->n_top; j++)
            if (v->top_ids[j] == d->ids[i]) {
                n_drawn_only -= !isnan(lp);
                lp = v->top_logprobs[j];
            }
        if (v->spec->mode == TD_CAPTURE_FULL)
            lp = td_row_dense_at(v, d->ids[i]) - v->logsumexp;
        cr_assert_eq(d->probabilities[i], expf(lp), "%s: id %d", what, d->ids[i]);
        for (int32_t j = 0; j < i; j++)
            cr_assert_neq(d->ids[i], d->ids[j], "%s: id %d twice", what, d->ids[i]);
        sum += (double)d->probabilities[i];
    }
    /* The storage rounds log-probabilities: f16 and q8 by up to a percent or so. */
    cr_assert_float_eq(sum, 1, 0.02, "%s: sums to %g", what, sum);
    if (info->mode == TDGEN_MODE_TOPK || info->mode == TDGEN_MODE_TOPP)
        cr_assert_eq(d->tail, v->tail_mass, "%s", what);
    if (info->mode == TDGEN_MODE_TOPK_SAMPLE)
        cr_assert_leq(d->tail, v->tail_mass, "%s", what);
    if (info->mode == TDGEN_MODE_FULL)
        cr_assert(d->n == info->n_valid_ids && d->tail == 0, "%s", what);
    if (info->mode == TDGEN_MODE_SAMPLE)
        cr_assert(n_drawn_only == d->n && d->tail == v->tail_mass, "%s", what);
}

/* All samples, from the last to the first, so that shards are opened out of order. */
static void compare_folder(const td_fixture *f, tdgen_record *r, const char *mode) {
    const tdgen_record_info *info = tdgen_record_get_info(r);
    const td_capture_spec spec = td_fixture_spec(f);
    int64_t n_tokens = 0, n_rows = 0;
    td_error why = {0};
    cr_assert_eq(info->n_samples, (int64_t)SHARDS * SHARD_ROWS);
    for (int64_t shard = SHARDS - 1; shard >= 0; shard--) {
        td_shard_file *file;
        td_row_reader *rr;
        char *path = td_shard_path(f->cfg.output.dir, shard);
        cr_assert_eq(td_shard_file_open(path, &spec, TD_E_VERIFY, NULL, &file, &why), TD_OK, "%s",
                     why.text);
        cr_assert_eq(td_row_reader_create(file, &rr, &why), TD_OK);
        free(path);
        const int64_t *tokens = td_shard_file_data(file, TD_T_SAMPLE_OFFSETS);
        const int64_t *rows = td_shard_file_data(file, TD_T_ROW_OFFSETS);
        const int32_t *ids = td_shard_file_data(file, TD_T_INPUT_IDS);
        const uint8_t *mask = td_shard_file_data(file, TD_T_LOSS_MASK);
        for (int64_t place = SHARD_ROWS - 1; place >= 0; place--) {
            const int64_t index = shard * SHARD_ROWS + place;
            const tdgen_sample *s = NULL;
            tdgen_error err = {0};
            char what[96];
            cr_assert_eq(tdgen_record_get_sample(r, index, &s, &err), TDGEN_OK, "%s", err.text);
            cr_assert_eq(s->index, index);
            cr_assert_eq(s->shard, shard);
            cr_assert_eq(s->dataset_row, index);
            cr_assert_eq(s->skipped, 0);
            cr_assert_eq(s->n_tokens, tokens[place + 1] - tokens[place]);
            cr_assert_eq(s->n_rows, rows[place + 1] - rows[place]);
            cr_assert_eq(memcmp(s->ids, ids + tokens[place], (size_t)s->n_tokens * 4), 0);
            cr_assert_eq(memcmp(s->loss_mask, mask + tokens[place], (size_t)s->n_tokens), 0);
            cr_assert((s->device_kind != NULL) == (s->n_rows > 0));
            n_tokens += s->n_tokens;
            n_rows += s->n_rows;
            for (int32_t k = 0; k < s->n_rows; k++) {
                const tdgen_row *row = NULL;
                const tdgen_distribution *d = NULL;
                td_row_view v;
                td_row_problem problem;
                snprintf(what, sizeof what, "%s, sample %lld, row %d", mode, (long long)index, k);
                cr_assert(td_row_read(rr, place, rows[place] + k, &v, &problem), "%s", what);
                cr_assert_eq(tdgen_record_get_row(r, index, k, &row, &err), TDGEN_OK, "%s: %s",
                             what, err.text);
                cr_assert_eq(s->row_positions[k], row->position, "%s", what);
                cr_assert_eq(row->target, s->ids[row->position + 1], "%s", what);
                compare_row(info, row, &v, what);
                if (info->mode == TDGEN_MODE_HIDDEN) {
                    FAILS(TDGEN_E_ARGUMENT, "hidden states",
                          tdgen_record_get_distribution(r, index, k, &d, &failure));
                    cr_assert_null(d);
                    continue;
                }
                cr_assert_eq(tdgen_record_get_distribution(r, index, k, &d, &err), TDGEN_OK);
                check_distribution(info, d, &v, what);
            }
        }
        td_row_reader_destroy(rr);
        td_shard_file_close(file);
    }
    cr_assert_eq(n_tokens, info->n_tokens);
    cr_assert_eq(n_rows, info->n_rows);
    cr_assert_gt(n_rows, SHARDS);
}

Test(api_record, every_mode) {
    static const tdgen_mode modes[] = {
        [TD_CAPTURE_TOPK] = TDGEN_MODE_TOPK,     [TD_CAPTURE_TOPP] = TDGEN_MODE_TOPP,
        [TD_CAPTURE_SAMPLE] = TDGEN_MODE_SAMPLE, [TD_CAPTURE_TOPK_SAMPLE] = TDGEN_MODE_TOPK_SAMPLE,
        [TD_CAPTURE_FULL] = TDGEN_MODE_FULL,     [TD_CAPTURE_HIDDEN] = TDGEN_MODE_HIDDEN};
    for (int i = 0; i < TD_FIXTURE_MODES; i++) {
        const td_fixture_mode *m = &td_fixture_modes[i];
        td_fixture f;
        td_fixture_init(&f);
        td_fixture_set_mode(&f, m);
        if (m->mode == TD_CAPTURE_HIDDEN) /* which records states alone */
            f.cfg.capture.n_always = f.cfg.capture.n_temperatures = 0;
        td_error err = {0};
        cr_assert_eq(td_fixture_run(&f, SHARDS, NULL, &err), TD_OK, "%s", err.text);
        tdgen_record *r = open_record(&f, NULL);
        const tdgen_record_info *info = tdgen_record_get_info(r);
        const bool hidden = m->mode == TD_CAPTURE_HIDDEN;
        cr_assert_eq(info->mode, modes[m->mode]);
        cr_assert_eq(info->n_vocab, 50);
        cr_assert_eq(info->n_hidden, hidden ? 12 : 0);
        cr_assert_eq(info->n_always, hidden ? 0 : 2);
        cr_assert_eq(info->n_temperatures, hidden ? 0 : 1);
        cr_assert(hidden || (info->always_ids[1] == 17 && info->temperatures[0] == 2.0));
        cr_assert_str_eq(info->compute, "f32");
        cr_assert_str_eq(info->architecture, "LlamaForCausalLM");
        cr_assert(strstr(info->model_path, "/model"), "%s", info->model_path);
        cr_assert_eq(info->numerics_revision, TD_NUMERICS_REVISION);
        cr_assert(!info->logprob_storage ||
                  strcmp(info->logprob_storage, m->q8 ? "q8" : "f16") == 0);
        cr_assert_eq(info->logprob_storage != NULL, m->mode < TD_CAPTURE_FULL);
        compare_folder(&f, r, m->name);
        tdgen_record_close(r);
        td_fixture_free(&f);
    }
}

Test(api_record, ids_and_skipped) {
    td_fixture f;
    td_error why = {0};
    tdgen_error err;
    const tdgen_sample *s = NULL;
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(&f);
    f.cfg.data.id_field = td_strdup("id");
    f.skip = 2;
    cr_assert_eq(td_fixture_run(&f, SHARDS, NULL, &why), TD_OK, "%s", why.text);
    tdgen_record *r = open_record(&f, NULL);
    cr_assert_eq(tdgen_record_get_info(r)->n_skipped, SHARDS);
    for (int64_t i = 0; i < SHARDS * SHARD_ROWS; i++) {
        td_shard *shard = td_fixture_shard(&f, i / SHARD_ROWS, SHARD_ROWS);
        const td_sample *m = &shard->samples[i % SHARD_ROWS];
        cr_assert_eq(tdgen_record_get_sample(r, i, &s, &err), TDGEN_OK, "%s", err.text);
        cr_assert_eq(s->skipped, i % SHARD_ROWS == 2);
        cr_assert_eq(s->n_rows, s->skipped ? 0 : m->n_rows);
        char id[32];
        snprintf(id, sizeof id, "row-%lld", (long long)i);
        cr_assert_str_eq(s->id, id);
        cr_assert_eq(strlen(id), s->id_size_bytes);
        td_fixture_shard_free(shard);
    }
    tdgen_record_close(r);
    free(f.cfg.data.id_field);
    f.cfg.data.id_field = NULL;
    td_fixture_free(&f);
}

Test(api_record, wrong_calls) {
    td_fixture f;
    make(&f);
    tdgen_record *r = NULL;
    const tdgen_sample *s = NULL;
    const tdgen_row *row = NULL;
    const tdgen_distribution *d = NULL;
    tdgen_record_options o = {0};
    const char *dir = f.cfg.output.dir;
    FAILS(TDGEN_E_ARGUMENT, "dir is NULL", tdgen_record_open(NULL, NULL, &r, &failure));
    FAILS(TDGEN_E_ARGUMENT, "out is NULL", tdgen_record_open(dir, NULL, NULL, &failure));
    FAILS(TDGEN_E_ARGUMENT, "struct_size", tdgen_record_open(dir, &o, &r, &failure));
    o.struct_size = SIZE_MAX;
    FAILS(TDGEN_E_ARGUMENT, "struct_size", tdgen_record_open(dir, &o, &r, &failure));
    struct {
        tdgen_record_options known;
        int64_t later;
    } longer = {{sizeof longer, 0, 0}, 1};
    FAILS(TDGEN_E_ARGUMENT, "does not know", tdgen_record_open(dir, &longer.known, &r, &failure));
    cr_assert_null(r);
    longer.later = 0;
    r = open_record(&f, &longer.known);
    FAILS(TDGEN_E_ARGUMENT, "sample -1", tdgen_record_get_sample(r, -1, &s, &failure));
    FAILS(TDGEN_E_ARGUMENT, "has 12", tdgen_record_get_sample(r, 12, &s, &failure));
    FAILS(TDGEN_E_ARGUMENT, "row -1", tdgen_record_get_row(r, 0, -1, &row, &failure));
    FAILS(TDGEN_E_ARGUMENT, "has 0", tdgen_record_get_row(r, 1, 0, &row, &failure));
    FAILS(TDGEN_E_ARGUMENT, "row 1000", tdgen_record_get_distribution(r, 0, 1000, &d, &failure));
    FAILS(TDGEN_E_ARGUMENT, "record is NULL", tdgen_record_get_sample(NULL, 0, &s, &failure));
    FAILS(TDGEN_E_ARGUMENT, "out is NULL", tdgen_record_get_row(r, 0, 0, NULL, &failure));
    FAILS(TDGEN_E_ARGUMENT, "out is NULL", tdgen_record_get_distribution(r, 0, 0, NULL, &failure));
    cr_assert(!s && !row && !d, "untouched on failure");
    cr_assert_eq(tdgen_record_get_sample(r, 99, &s, NULL), TDGEN_E_ARGUMENT, "err may be NULL");
    cr_assert_null(tdgen_record_get_info(NULL));
    cr_assert_eq(tdgen_record_get_row(r, 0, 0, &row, NULL), TDGEN_OK, "usable after refusals");
    tdgen_record_close(r);
    tdgen_record_close(NULL);
    td_fixture_free(&f);
}

Test(api_record, missing) {
    td_fixture f;
    tdgen_record *r = NULL;
    char *path, *shards;
    make(&f);
    FAILS(TDGEN_E_FOLDER, "nowhere", tdgen_record_open("/nowhere", NULL, &r, &failure));
    FAILS(TDGEN_E_FOLDER, "manifest.json", tdgen_record_open(f.dir, NULL, &r, &failure));
    path = td_asprintf("%s/shards.jsonl", f.cfg.output.dir);
    shards = td_asprintf("%s/shard-000001.safetensors", f.cfg.output.dir);
    r = open_record(&f, NULL);
    cr_assert_eq(unlink(shards), 0);
    const tdgen_sample *s = NULL;
    FAILS(TDGEN_E_DAMAGED, "shard-000001", tdgen_record_get_sample(r, 4, &s, &failure));
    tdgen_error err;
    cr_assert_eq(tdgen_record_get_sample(r, 8, &s, &err), TDGEN_OK, "the others are there");
    tdgen_record_close(r);
    r = NULL;
    FAILS(TDGEN_E_UNFINISHED, "shard 1 is missing",
          tdgen_record_open(f.cfg.output.dir, NULL, &r, &failure));
    cr_assert_eq(unlink(path), 0);
    FAILS(TDGEN_E_DAMAGED, "no shards.jsonl",
          tdgen_record_open(f.cfg.output.dir, NULL, &r, &failure));
    cr_assert_null(r);
    free(path);
    free(shards);
    td_fixture_free(&f);
}

/* Flips a bit of the file, `back` bytes before its end or at `at`. */
static void flip(const td_fixture *f, const char *name, long at, int whence) {
    char *path = td_asprintf("%s/%s", f->cfg.output.dir, name);
    FILE *file = fopen(path, "r+b");
    cr_assert(file && fseek(file, at, whence) == 0);
    int c = fgetc(file);
    cr_assert_neq(c, EOF);
    cr_assert_eq(fseek(file, at, whence), 0);
    fputc(c ^ 4, file);
    cr_assert_eq(fclose(file), 0);
    free(path);
}

Test(api_record, damaged) {
    td_fixture f;
    tdgen_record *r = NULL;
    const tdgen_sample *s = NULL;
    tdgen_error err;
    const tdgen_record_options trusting = {sizeof trusting, 1, 1};
    make(&f);

    /* a byte of the last tensor, which no reader would stumble over */
    flip(&f, "shard-000001.safetensors", -1, SEEK_END);
    r = open_record(&f, NULL);
    FAILS(TDGEN_E_DAMAGED, "hash of sample_status", tdgen_record_get_sample(r, 5, &s, &failure));
    FAILS(TDGEN_E_DAMAGED, "shard-000001", tdgen_record_get_sample(r, 6, &s, &failure));
    cr_assert_null(s);
    cr_assert_eq(tdgen_record_get_sample(r, 0, &s, &err), TDGEN_OK, "the others are sound");
    tdgen_record_close(r);
    r = open_record(&f, &trusting);
    cr_assert_eq(tdgen_record_get_sample(r, 5, &s, &err), TDGEN_OK, "%s", err.text);
    tdgen_record_close(r);

    /* the header is checked all the same */
    flip(&f, "shard-000002.safetensors", 30, SEEK_SET);
    r = open_record(&f, &trusting);
    s = NULL;
    FAILS(TDGEN_E_DAMAGED, "shard-000002", tdgen_record_get_sample(r, 8, &s, &failure));
    cr_assert_null(s);
    tdgen_record_close(r);

    /* a line that was cut */
    char *index = td_asprintf("%s/shards.jsonl", f.cfg.output.dir);
    size_t n = 0;
    char *text = test_read_file(f.cfg.output.dir, "shards.jsonl", &n);
    cr_assert_eq(truncate(index, (off_t)n - 5), 0);
    r = NULL;
    FAILS(TDGEN_E_DAMAGED, "1 damaged line",
          tdgen_record_open(f.cfg.output.dir, NULL, &r, &failure));
    /* a line that is another shard's */
    FILE *out = fopen(index, "w");
    cr_assert(out);
    char *line = strchr(text, '\n') + 1;
    *strstr(line, "shard-000001.") = '\0';
    fprintf(out, "%sshard-000000.safetensors\", \"shard\": 0", line);
    line = strstr(line + strlen(line) + 1, ", \"row_begin\"");
    fprintf(out, "%.*s", (int)(strchr(line, '\n') + 1 - line), line);
    fclose(out);
    free(text);
    free(index);
    FAILS(TDGEN_E_UNFINISHED, "0% of 12 dataset rows (1 of 3 shards)",
          tdgen_record_open(f.cfg.output.dir, NULL, &r, &failure));
    r = open_record(&f, &(tdgen_record_options){sizeof(tdgen_record_options), 0, 1});
    cr_assert_eq(tdgen_record_get_info(r)->complete, 0);
    cr_assert_eq(tdgen_record_get_info(r)->n_shards_expected, 3);
    FAILS(TDGEN_E_DAMAGED, "shards.jsonl", tdgen_record_get_sample(r, 0, &s, &failure));
    tdgen_record_close(r);

    flip(&f, "manifest.json", 20, SEEK_SET);
    r = NULL;
    FAILS(TDGEN_E_DAMAGED, "manifest.json",
          tdgen_record_open(f.cfg.output.dir, NULL, &r, &failure));
    cr_assert_null(r);
    td_fixture_free(&f);
}

Test(api_record, versions) {
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", TDGEN_VERSION_MAJOR, TDGEN_VERSION_MINOR,
             TDGEN_VERSION_PATCH);
    cr_assert_str_eq(tdgen_version(), text);
    cr_assert_str_eq(tdgen_version(), TDGEN_VERSION);
    cr_assert_eq(tdgen_api_version(), TDGEN_API_VERSION);
    cr_assert_eq(strncmp(tdgen_backends(), "cpu", 3), 0);
    cr_assert_str_eq(tdgen_status_name(TDGEN_E_DAMAGED), "damaged");
    cr_assert_str_eq(tdgen_status_name((tdgen_status)99), "unknown");
}
