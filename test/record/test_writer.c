/* The shard writer: layout, values, skipping, refusals, threads. */
#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/common.h"
#include "fixture.h"
#include "base/safetensors.h"
#include "base/memory.h"

static td_safetensors *open_shard(const td_fixture *f, int64_t number) {
    td_safetensors *st = NULL;
    td_error err;
    char *path = td_asprintf("%s/shard-%06lld.safetensors", f->cfg.output.dir, (long long)number);
    OK(td_safetensors_open(path, TD_E_VERIFY, &st, &err));
    free(path);
    return st;
}

static const void *data_of(td_safetensors *st, const char *name, int64_t n_elems,
                           const char *dtype) {
    const td_st_tensor *t = td_safetensors_find(st, name);
    cr_assert(t, "%s is missing", name);
    cr_assert_str_eq(t->dtype_name, dtype);
    cr_assert_eq(t->n_elems, n_elems, "%s has %lld elements", name, (long long)t->n_elems);
    return t->data;
}

/* Writes shard 0 and compares every tensor with the shard and the captured rows. */
static void check_values(td_fixture *f) {
    td_error err;
    td_output *o;
    OK(td_fixture_open(f, &o, &err));
    td_shard *s = td_fixture_shard(f, 0, 4);
    OK(td_fixture_write(f, o, s, -1, &err));
    td_output_close(o);
    td_safetensors *st = open_shard(f, 0);
    int64_t k = TD_MIN(f->cfg.capture.top_k, f->teacher.n_vocab),
            nt = f->cfg.capture.n_temperatures;
    bool f16 = f->cfg.capture.logprob_dtype == TD_F16;
    const int64_t *so = data_of(st, "sample_offsets", 5, "I64");
    const int64_t *ro = data_of(st, "row_offsets", 5, "I64");
    const int64_t *index = data_of(st, "sample_index", 4, "I64");
    const int32_t *pos = data_of(st, "row_position", s->n_rows, "I32");
    const int32_t *ids = data_of(st, "topk_ids", s->n_rows * k, "I32");
    const void *lp = data_of(st, "topk_logprobs", s->n_rows * k, f16 ? "F16" : "F32");
    const float *lse = data_of(st, "logsumexp", s->n_rows, "F32");
    const float *tail = data_of(st, "tail_mass", s->n_rows, "F32");
    const float *tlp = data_of(st, "target_logprob", s->n_rows, "F32");
    const float *entropy = data_of(st, "entropy", s->n_rows, "F32");
    const int32_t *rank = data_of(st, "target_rank", s->n_rows, "I32");
    const float *lse_t = nt ? data_of(st, "logsumexp_t", s->n_rows * nt, "F32") : NULL;
    cr_assert(nt || !td_safetensors_find(st, "logsumexp_t"));
    cr_assert_arr_eq(data_of(st, "input_ids", s->n_tokens, "I32"), s->ids,
                     (size_t)s->n_tokens * sizeof *s->ids);
    cr_assert_arr_eq(data_of(st, "loss_mask", s->n_tokens, "U8"), s->loss_mask,
                     (size_t)s->n_tokens);
    data_of(st, "sample_device", 4, "U8");
    for (int32_t i = 0; i < 4; i++) {
        const td_sample *m = &s->samples[i];
        cr_assert_eq(so[i], m->token_offset);
        cr_assert_eq(ro[i], m->row_offset);
        cr_assert_eq(index[i], m->row);
        td_captured c = td_fixture_capture(f, s, i);
        for (int32_t r = 0; r < m->n_rows; r++) {
            int64_t at = m->row_offset + r;
            cr_assert_eq(s->loss_mask[m->token_offset + pos[at] + 1], 1);
            cr_assert(r == 0 || pos[at] > pos[at - 1]);
            cr_assert_eq(lse[at], c.logsumexp[r]);
            cr_assert_eq(tail[at], c.tail_mass[r]);
            cr_assert_eq(tlp[at], c.target_logprob[r]);
            cr_assert_eq(rank[at], c.target_rank[r]);
            cr_assert_eq(entropy[at], c.entropy[r]);
            for (int64_t t = 0; t < nt; t++)
                cr_assert_eq(lse_t[at * nt + t], c.logsumexp_t[r * nt + t]);
            for (int64_t j = 0; j < k; j++) {
                float want = c.topk_logprobs[r * k + j];
                cr_assert_eq(ids[at * k + j], c.topk_ids[r * k + j]);
                if (f16)
                    cr_assert_eq(((const uint16_t *)lp)[at * k + j], td_f32_to_f16(want));
                else
                    cr_assert_eq(((const float *)lp)[at * k + j], want);
            }
        }
        td_fixture_captured_free(&c);
    }
    cr_assert_eq(so[4], s->n_tokens);
    cr_assert_eq(ro[4], s->n_rows);
    td_safetensors_close(st);
    td_fixture_shard_free(s);
}

Test(writer, every_value_is_where_it_belongs_f16) {
    td_fixture f;
    td_fixture_init(&f);
    check_values(&f);
    td_fixture_free(&f);
}

Test(writer, every_value_is_where_it_belongs_f32_with_temperatures_and_ids) {
    td_fixture f;
    td_fixture_init(&f);
    f.cfg.capture.logprob_dtype = TD_F32;
    f.cfg.capture.n_temperatures = 2;
    f.cfg.capture.temperatures[0] = 2;
    f.cfg.capture.temperatures[1] = 0.7;
    f.cfg.data.id_field = td_strdup("id");
    check_values(&f);
    td_safetensors *st = open_shard(&f, 0);
    const int64_t *o = data_of(st, "sample_id_offsets", 5, "I64");
    const char *b = data_of(st, "sample_id_bytes", o[4], "U8");
    cr_assert_eq(o[3] - o[2], 5);
    cr_assert_eq(memcmp(b + o[2], "row-2", 5), 0);
    td_safetensors_close(st);
    td_fixture_free(&f);
}

Test(writer, top_k_above_the_vocabulary_stores_the_vocabulary) {
    td_fixture f;
    td_fixture_init(&f);
    f.cfg.capture.top_k = 64;
    check_values(&f);
    td_fixture_free(&f);
}

/* Each tensor begins at a multiple of its element size in the file, tensors follow each other
 * without holes, in descending element size. */
Test(writer, tensors_are_aligned_and_without_holes) {
    td_fixture f;
    td_fixture_init(&f);
    f.cfg.capture.n_temperatures = 1;
    f.cfg.capture.temperatures[0] = 3;
    td_error err;
    OK(td_fixture_run(&f, 1, NULL, &err));
    size_t n;
    char *file = test_read_file(f.cfg.output.dir, "shard-000000.safetensors", &n);
    uint64_t header;
    memcpy(&header, file, 8);
    cr_assert_eq((header + 8) % 64, 0);
    td_safetensors *st = open_shard(&f, 0);
    uint64_t at = 0;
    size_t size = 8;
    for (size_t i = 0; i < td_safetensors_count(st); i++) {
        const td_st_tensor *t = td_safetensors_at(st, i);
        cr_assert_eq(t->data_begin, at, "%s", t->name);
        cr_assert_eq(t->data_begin % t->elem_size_bytes, 0, "%s", t->name);
        cr_assert_leq(t->elem_size_bytes, size);
        size = t->elem_size_bytes;
        at += t->size_bytes;
    }
    cr_assert_eq(header + 8 + at, n);
    td_safetensors_close(st);
    free(file);
    td_fixture_free(&f);
}

Test(writer, finite_logprobs_below_the_f16_range_stay_finite) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o;
    td_shard_writer *w;
    OK(td_fixture_open(&f, &o, &err));
    td_shard *s = td_fixture_shard(&f, 0, 1);
    OK(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err));
    td_captured c = td_fixture_capture(&f, s, 0);
    float *lp = (float *)c.topk_logprobs;
    int32_t *ids = (int32_t *)c.topk_ids, v = f.teacher.n_vocab, k = c.top_k;
    /* Row 0: one certain token, the rest far below; the last place is left free (a masked word). */
    int32_t target = s->ids[s->samples[0].token_offset + 1];
    ids[0] = target;
    lp[0] = 0;
    for (int32_t j = 1; j < k; j++) {
        ids[j] = (target + j) % v;
        lp[j] = -70000.0f * (float)j;
    }
    ids[k - 1] = -1;
    lp[k - 1] = -INFINITY;
    ((float *)c.tail_mass)[0] = 0;
    ((float *)c.entropy)[0] = 0;
    ((float *)c.target_logprob)[0] = 0;
    ((int32_t *)c.target_rank)[0] = 0;
    OK(td_shard_writer_put(w, 0, 0, &c, 0, &err));
    OK(td_shard_writer_commit(w, &err));
    td_output_close(o);
    td_safetensors *st = open_shard(&f, 0);
    const uint16_t *h = data_of(st, "topk_logprobs", s->n_rows * k, "F16");
    for (int32_t j = 1; j < k - 1; j++)
        cr_assert_eq(td_f16_to_f32(h[j]), -65504.0f);
    cr_assert_eq(td_f16_to_f32(h[k - 1]), -INFINITY);
    td_safetensors_close(st);
    VERIFY_OK(&f, "afterwards");
    td_fixture_captured_free(&c);
    td_fixture_shard_free(s);
    td_fixture_free(&f);
}

/* A shard with a skipped sample is the shard of a dataset whose sample had no targets, but for the
 * status. */
Test(writer, a_skipped_sample_leaves_no_rows) {
    td_fixture f, g;
    td_fixture_init(&f);
    td_fixture_init(&g);
    f.cfg.data.id_field = td_strdup("id");
    g.cfg.data.id_field = td_strdup("id");
    td_error err;
    td_output *o;
    OK(td_fixture_open(&f, &o, &err));
    td_shard *s = td_fixture_shard(&f, 0, 4);
    OK(td_fixture_write(&f, o, s, 2, &err));
    td_output_totals totals;
    td_output_totals_get(o, &totals);
    cr_assert_eq(totals.n_skipped, 1);
    cr_assert_eq(totals.n_rows, s->n_rows - s->samples[2].n_rows);
    td_output_close(o);

    OK(td_fixture_open(&g, &o, &err));
    td_sample *m = &s->samples[2];
    cr_assert_gt(m->n_rows, 0);
    cr_assert_gt(s->samples[3].n_rows, 0, "rows after the gap must move");
    memset(s->loss_mask + m->token_offset, 0, (size_t)m->n_tokens);
    s->n_rows -= m->n_rows;
    s->samples[3].row_offset -= m->n_rows;
    m->n_rows = 0;
    OK(td_fixture_write(&g, o, s, -1, &err));
    td_output_close(o);

    td_safetensors *a = open_shard(&f, 0), *b = open_shard(&g, 0);
    cr_assert_eq(td_safetensors_count(a), td_safetensors_count(b));
    for (size_t i = 0; i < td_safetensors_count(a); i++) {
        const td_st_tensor *x = td_safetensors_at(a, i), *y = td_safetensors_at(b, i);
        cr_assert_str_eq(x->name, y->name);
        cr_assert_eq(x->size_bytes, y->size_bytes, "%s", x->name);
        if (strcmp(x->name, "sample_status") == 0)
            cr_assert_eq(((const uint8_t *)x->data)[2], 1);
        else
            cr_assert_arr_eq(x->data, y->data, x->size_bytes, "%s", x->name);
    }
    cr_assert_str_eq(td_safetensors_meta(a, "n_skipped"), "1");
    td_safetensors_close(a);
    td_safetensors_close(b);
    VERIFY_OK(&f, "afterwards");
    size_t n;
    cr_assert_null(test_read_file(f.cfg.output.dir, "shard-000000.safetensors.tmp", &n));
    cr_assert_null(test_read_file(f.cfg.output.dir, "shard-000000.safetensors.compact.tmp", &n));
    td_fixture_shard_free(s);
    td_fixture_free(&f);
    td_fixture_free(&g);
}

Test(writer, all_samples_skipped_and_empty_shards_are_valid) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o;
    td_shard_writer *w;
    OK(td_fixture_open(&f, &o, &err));
    td_shard *s = td_fixture_shard(&f, 0, 4);
    OK(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err));
    for (int32_t i = 0; i < 4; i++)
        OK(td_shard_writer_skip(w, i, &err));
    OK(td_shard_writer_commit(w, &err));
    td_fixture_shard_free(s);
    td_shard *none = td_fixture_shard(&f, 1, 0); /* every row was skipped by overflow = skip */
    none->row_end = none->row_begin + 4;
    OK(td_fixture_write(&f, o, none, -1, &err));
    td_fixture_shard_free(none);
    td_output_close(o);
    td_safetensors *st = open_shard(&f, 0);
    cr_assert_eq(td_safetensors_find(st, "topk_ids")->n_elems, 0);
    td_safetensors_close(st);
    FILE *sink = fopen("/dev/null", "w");
    OK(td_verify(f.cfg.output.dir, &(td_verify_options){.partial = true}, sink, &err));
    fclose(sink);
    td_fixture_free(&f);
}

/* --- refusals --------------------------------------------------------------------------------- */

typedef void (*spoil)(td_captured *c);

static void nan_logsumexp(td_captured *c) {
    ((float *)c->logsumexp)[1] = NAN;
}
static void infinite_lse_t(td_captured *c) {
    ((float *)c->logsumexp_t)[1] = INFINITY;
}
static void nan_candidate(td_captured *c) {
    ((float *)c->topk_logprobs)[2] = NAN;
}
static void infinite_candidate(td_captured *c) {
    ((float *)c->topk_logprobs)[c->top_k - 1] = -INFINITY;
}
static void wrong_order(td_captured *c) {
    ((float *)c->topk_logprobs)[0] -= 20;
}
static void tie_order(td_captured *c) {
    /* equal log-probabilities, the higher id first */
    ((float *)c->topk_logprobs)[1] = c->topk_logprobs[0];
    ((int32_t *)c->topk_ids)[0] = 7;
    ((int32_t *)c->topk_ids)[1] = 3;
}
static void id_out_of_range(td_captured *c) {
    ((int32_t *)c->topk_ids)[3] = 50;
}
static void id_negative(td_captured *c) {
    ((int32_t *)c->topk_ids)[0] = -2;
}
static void mass_lost(td_captured *c) {
    ((float *)c->tail_mass)[0] *= 0.5f;
}
static void tail_negative(td_captured *c) {
    ((float *)c->tail_mass)[0] = -0.01f;
}
static void target_infinite(td_captured *c) {
    ((float *)c->target_logprob)[0] = -INFINITY;
}
static void rank_wrong(td_captured *c) {
    ((int32_t *)c->target_rank)[0] = c->target_rank[0] < c->top_k ? c->top_k : 0;
}
static void rank_out_of_range(td_captured *c) {
    ((int32_t *)c->target_rank)[0] = 50;
}
static void entropy_nan(td_captured *c) {
    ((float *)c->entropy)[0] = NAN;
}
static void entropy_too_large(td_captured *c) {
    ((float *)c->entropy)[0] = 4.5f; /* log(50) = 3.9 */
}

Test(writer, inconsistent_numbers_are_never_written) {
    static const struct {
        spoil spoil;
        const char *tensor;
    } cases[] = {{nan_logsumexp, "logsumexp"},
                 {infinite_lse_t, "logsumexp_t"},
                 {nan_candidate, "topk_logprobs"},
                 {infinite_candidate, "topk_logprobs"},
                 {wrong_order, "topk_logprobs"},
                 {tie_order, "topk_ids"},
                 {id_out_of_range, "topk_ids"},
                 {id_negative, "topk_ids"},
                 {mass_lost, "tail_mass"},
                 {tail_negative, "tail_mass"},
                 {target_infinite, "target_logprob"},
                 {rank_wrong, "target_rank"},
                 {rank_out_of_range, "target_rank"},
                 {entropy_nan, "entropy"},
                 {entropy_too_large, "entropy"}};
    td_fixture f;
    td_fixture_init(&f);
    f.cfg.capture.n_temperatures = 1;
    f.cfg.capture.temperatures[0] = 2;
    td_error err;
    td_output *o;
    td_shard_writer *w;
    OK(td_fixture_open(&f, &o, &err));
    td_shard *s = td_fixture_shard(&f, 0, 4);
    OK(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err));
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_captured c = td_fixture_capture(&f, s, 3);
        cases[i].spoil(&c);
        err.text[0] = '\0';
        cr_assert_eq(td_shard_writer_put(w, 3, 0, &c, 0, &err), TD_E_INTERNAL, "case %zu", i);
        cr_assert(strstr(err.text, cases[i].tensor), "case %zu says: %s", i, err.text);
        cr_assert(strstr(err.text, "dataset row 3"), "case %zu says: %s", i, err.text);
        td_fixture_captured_free(&c);
    }
    /* The sample can still be put with good numbers. */
    for (int32_t i = 0; i < 4; i++) {
        td_captured c = td_fixture_capture(&f, s, i);
        OK(td_shard_writer_put(w, i, 0, &c, 0, &err));
        cr_assert_eq(td_shard_writer_put(w, i, 0, &c, 0, &err), TD_E_INTERNAL, "put twice");
        td_fixture_captured_free(&c);
    }
    OK(td_shard_writer_commit(w, &err));
    td_output_close(o);
    td_fixture_shard_free(s);
    td_fixture_free(&f);
}

Test(writer, misuse_is_refused) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o;
    td_shard_writer *w;
    OK(td_fixture_open(&f, &o, &err));
    td_shard *s = td_fixture_shard(&f, 0, 4);
    s->samples[3].row_offset++; /* rows of two samples would overlap */
    cr_assert_eq(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err), TD_E_INTERNAL);
    s->samples[3].row_offset--;
    OK(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err));
    td_captured c = td_fixture_capture(&f, s, 0);
    cr_assert_eq(td_shard_writer_put(w, 4, 0, &c, 0, &err), TD_E_INTERNAL);
    cr_assert_eq(td_shard_writer_put(w, 0, 1, &c, 0, &err), TD_E_INTERNAL);
    cr_assert_eq(td_shard_writer_put(w, 0, 0, &c, 1, &err), TD_E_INTERNAL, "rows past the end");
    c.top_k--;
    cr_assert_eq(td_shard_writer_put(w, 0, 0, &c, 0, &err), TD_E_INTERNAL, "too few candidates");
    td_fixture_captured_free(&c);
    cr_assert_eq(td_shard_writer_commit(w, &err), TD_E_INTERNAL, "samples are missing");
    bool done = true;
    OK(td_output_shard_done(o, 0, 0, 4, s->source_hash, &done, NULL, &err));
    cr_assert_not(done);
    td_output_close(o);
    td_fixture_shard_free(s);
    td_fixture_free(&f);
}

/* --- order and threads ------------------------------------------------------------------------ */

typedef struct putter {
    td_fixture *f;
    td_shard_writer *w;
    const td_shard *s;
    int32_t first, step, kind;
    td_status rc;
} putter;

static void *put_every(void *arg) {
    putter *p = arg;
    td_error err;
    for (int32_t i = p->s->n_samples - 1 - p->first; i >= 0 && p->rc == TD_OK; i -= p->step) {
        td_captured c = td_fixture_capture(p->f, p->s, i);
        p->rc = td_shard_writer_put(p->w, i, p->kind, &c, 0, &err);
        td_fixture_captured_free(&c);
    }
    return NULL;
}

/* Two runs, one put in order by one group, one backwards by four threads of four groups. */
Test(writer, bytes_do_not_tell_the_schedule) {
    enum { THREADS = 4 };
    td_fixture f, g;
    td_fixture_init(&f);
    td_fixture_init(&g);
    f.cfg.output.shard_samples = g.cfg.output.shard_samples = 40;
    td_error err;
    td_output *o;
    OK(td_fixture_open(&f, &o, &err));
    td_shard *s = td_fixture_shard(&f, 0, 40);
    OK(td_fixture_write(&f, o, s, -1, &err));
    td_output_close(o);

    static const char *const kinds[THREADS] = {"cpu:test", "cpu:test", "cpu:test", "cpu:test"};
    td_shard_writer *w;
    OK(td_fixture_open(&g, &o, &err));
    OK(td_shard_writer_open(o, s, kinds, THREADS, &w, &err));
    pthread_t thread[THREADS];
    putter p[THREADS];
    for (int i = 0; i < THREADS; i++) {
        p[i] = (putter){.f = &g, .w = w, .s = s, .first = i, .step = THREADS, .kind = i};
        cr_assert_eq(pthread_create(&thread[i], NULL, put_every, &p[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        cr_assert_eq(p[i].rc, TD_OK);
    }
    OK(td_shard_writer_commit(w, &err));
    td_output_close(o);

    static const char *const files[] = {"shard-000000.safetensors", "shards.jsonl"};
    for (size_t i = 0; i < TD_ARRAY_LEN(files); i++) {
        cr_assert(test_same_file(f.cfg.output.dir, g.cfg.output.dir, files[i]), "%s differs",
                  files[i]);
    }
    td_fixture_shard_free(s);
    td_fixture_free(&f);
    td_fixture_free(&g);
}

Test(writer, device_kinds_are_named_per_sample) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o;
    td_shard_writer *w;
    OK(td_fixture_open(&f, &o, &err));
    td_shard *s = td_fixture_shard(&f, 0, 4);
    static const char *const kinds[] = {"gpu \"B\"", "gpu A", "gpu \"B\""};
    OK(td_shard_writer_open(o, s, kinds, 3, &w, &err));
    for (int32_t i = 0; i < 4; i++) {
        td_captured c = td_fixture_capture(&f, s, i);
        OK(td_shard_writer_put(w, i, i % 3, &c, 0, &err));
        td_fixture_captured_free(&c);
    }
    OK(td_shard_writer_commit(w, &err));
    td_output_close(o);
    td_safetensors *st = open_shard(&f, 0);
    cr_assert_str_eq(td_safetensors_meta(st, "device_kinds"), "[\"gpu \\\"B\\\"\",\"gpu A\"]");
    const uint8_t *d = data_of(st, "sample_device", 4, "U8");
    cr_assert(d[0] == 0 && d[1] == 1 && d[2] == 0 && d[3] == 0);
    td_safetensors_close(st);
    td_fixture_shard_free(s);
    td_fixture_free(&f);
}
