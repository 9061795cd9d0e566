/* The shard writer: layout, values, skipping, refusals, threads. */
#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fixture.h"
#include "tdgen/safetensors.h"
#include "tdgen/util.h"

static td_safetensors *open_shard(const td_fixture *f, int64_t number) {
    td_safetensors *st = NULL;
    td_error err;
    char *path = td_asprintf("%s/shard-%06lld.safetensors", f->cfg.output.dir, (long long)number);
    cr_assert_eq(td_safetensors_open(path, TD_E_VERIFY, &st, &err), TD_OK, "%s", err.text);
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

static void must(td_status rc, const td_error *err) {
    cr_assert_eq(rc, TD_OK, "%s", err->text);
}

/* Writes shard 0 and compares every tensor with the shard and the captured rows. */
static void check_values(td_fixture *f) {
    td_error err;
    td_output *o;
    must(td_fixture_open(f, &o, &err), &err);
    td_shard *s = td_fixture_shard(f, 0, 4);
    must(td_fixture_write(f, o, s, -1, &err), &err);
    td_output_close(o);
    td_safetensors *st = open_shard(f, 0);
    int64_t k = TD_MIN(f->cfg.capture.top_k, f->model.n_vocab), nt = f->cfg.capture.n_temperatures;
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
    must(td_fixture_run(&f, 1, NULL, &err), &err);
    size_t n;
    char *file = td_fixture_read(f.cfg.output.dir, "shard-000000.safetensors", &n);
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
