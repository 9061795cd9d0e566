/* Every capture mode and every way of storing it: what was captured is what stands in the file, as
 * an independent decoder here reads it and as the row reader gives it. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "test/common.h"
#include "fixture.h"
#include "record/identity.h"
#include "record/pack.h"
#include "capture/capture.h"
#include "record/row_reader.h"
#include "base/text.h"
#include "base/log.h"
#include "base/safetensors.h"
#include "base/file.h"
#include "base/memory.h"

static const char *shard_name(const td_fixture *f) {
    return f->cfg.output.zstd ? "shard-000000.safetensors.zst" : "shard-000000.safetensors";
}

/* The safetensors of shard 0, unpacked by libzstd itself. */
static char *plain_shard(const td_fixture *f, size_t *n) {
    char *data = test_read_file(f->cfg.output.dir, shard_name(f), n);
    cr_assert(data, "%s is not there", shard_name(f));
    if (!f->cfg.output.zstd)
        return data;
    unsigned long long size = ZSTD_getFrameContentSize(data, *n);
    cr_assert(size < (1u << 30), "no content size");
    /* the checksum flag is bit 2 of the frame header's descriptor */
    cr_assert(data[4] & 4, "no checksum");
    cr_assert_eq(ZSTD_findFrameCompressedSize(data, *n), *n, "more than one frame");
    char *plain = malloc(size);
    cr_assert_eq(ZSTD_decompress(plain, size, data, *n), size);
    free(data);
    *n = size;
    return plain;
}

static td_safetensors *open_plain(const td_fixture *f) {
    td_error err;
    td_safetensors *st = NULL;
    size_t n = 0;
    char *data = plain_shard(f, &n), *path = td_asprintf("%s/plain.safetensors", f->dir);
    FILE *out = fopen(path, "w");
    cr_assert(out && fwrite(data, 1, n, out) == n && fclose(out) == 0);
    OK(td_safetensors_open(path, TD_E_VERIFY, &st, &err));
    free(path);
    free(data);
    return st;
}

static const void *tensor(td_safetensors *st, const char *name, const char *dtype, int64_t d0,
                          int64_t d1) {
    const td_st_tensor *t = td_safetensors_find(st, name);
    cr_assert(t, "%s is missing", name);
    cr_assert_str_eq(t->dtype_name, dtype, "%s is %s", name, t->dtype_name);
    cr_assert_eq(t->n_dims, d1 < 0 ? 1 : 2, "%s", name);
    cr_assert_eq(t->shape[0], d0, "%s has %lld", name, (long long)t->shape[0]);
    cr_assert(d1 < 0 || t->shape[1] == d1, "%s has %lld columns", name, (long long)t->shape[1]);
    return t->data;
}

static bool has(td_safetensors *st, const char *name) {
    return td_safetensors_find(st, name) != NULL;
}

/* Id i of a stream that begins at byte 0, bit by bit. */
static int32_t packed_id(const uint8_t *stream, int64_t i, int bits) {
    int32_t v = 0;
    for (int b = 0; b < bits; b++) {
        int64_t at = i * bits + b;
        v |= ((stream[at / 8] >> (at % 8)) & 1) << b;
    }
    return v == (1 << bits) - 1 ? -1 : v;
}

enum { ID_BITS = 6 }; /* 50 ids and "none" */

/* Entry `at` (of row r, place j of K) of a set in the file. */
static int32_t stored_id(td_safetensors *st, const char *set, int64_t r, int64_t j, int64_t k,
                         int64_t at, int64_t n_rows, int64_t n_entries, bool pack) {
    char name[64];
    snprintf(name, sizeof name, pack ? "%s_ids_packed" : "%s_ids", set);
    int64_t row_bytes = (k * ID_BITS + 7) / 8;
    if (!pack)
        return ((const int32_t *)(k ? tensor(st, name, "I32", n_rows, k)
                                    : tensor(st, name, "I32", n_entries, -1)))[at];
    if (k)
        return packed_id((const uint8_t *)tensor(st, name, "U8", n_rows, row_bytes) + r * row_bytes,
                         j, ID_BITS);
    return packed_id(tensor(st, name, "U8", (n_entries * ID_BITS + 7) / 8, -1), at, ID_BITS);
}

static float stored_logprob(td_safetensors *st, const char *set, int64_t r, int64_t k, int64_t at,
                            int64_t n_rows, int64_t n_entries, bool q8, double *bound) {
    char name[64], range_name[64];
    int64_t d0 = k ? n_rows : n_entries, d1 = k ? k : -1;
    snprintf(name, sizeof name, q8 ? "%s_logprobs_q8" : "%s_logprobs", set);
    snprintf(range_name, sizeof range_name, "%s_logprobs_q8_range", set);
    if (!q8)
        return td_f16_to_f32(((const uint16_t *)tensor(st, name, "F16", d0, d1))[at]);
    int q = ((const uint8_t *)tensor(st, name, "U8", d0, d1))[at];
    const float *range = (const float *)tensor(st, range_name, "F32", n_rows, 2) + 2 * r;
    *bound = ((double)range[0] - (double)range[1]) / 508;
    return q == 255 ? -INFINITY : (float)(range[0] - q / 254.0 * ((double)range[0] - range[1]));
}

static void same_logprob(float have, float want, bool q8, double bound, const char *what) {
    if (!q8)
        cr_assert_eq(have, td_f16_to_f32(td_f32_to_f16(want)), "%s: %g, not %g", what, (double)have,
                     (double)want);
    else
        cr_assert(fabs((double)have - (double)want) <= bound * (1 + 1e-6) + 1e-6 ||
                      (have == want && !isfinite(want)),
                  "%s: %g, not %g +- %g", what, (double)have, (double)want, bound);
}

static void check_row(td_safetensors *st, const td_fixture *f, const td_fixture_mode *m,
                      const td_captured *c, int32_t r, int64_t at, int64_t n_rows,
                      const td_row_view *v) {
    double bound = 0;
    bool topk = m->mode == TD_CAPTURE_TOPK || m->mode == TD_CAPTURE_TOPK_SAMPLE;
    bool draws = m->mode == TD_CAPTURE_SAMPLE || m->mode == TD_CAPTURE_TOPK_SAMPLE;
    int64_t k = c->top_k;
    for (int64_t j = 0; topk && j < k; j++) {
        int32_t id = stored_id(st, "topk", at, j, k, at * k + j, n_rows, 0, m->pack);
        float lp = stored_logprob(st, "topk", at, k, at * k + j, n_rows, 0, m->q8, &bound);
        cr_assert_eq(id, c->topk_ids[r * k + j], "%s", m->name);
        same_logprob(lp, c->topk_logprobs[r * k + j], m->q8, bound, m->name);
        cr_assert_eq(v->top_ids[j], id, "%s", m->name);
        cr_assert_eq(v->top_logprobs[j], lp, "%s", m->name);
    }
    int64_t n_entries = atoll(td_safetensors_meta(st, "n_entries"));
    if (m->mode == TD_CAPTURE_TOPP) {
        const int64_t *o = tensor(st, "topp_offsets", "I64", n_rows + 1, -1);
        cr_assert_eq(o[at + 1] - o[at], c->n_kept[r], "%s", m->name);
        cr_assert_eq(o[n_rows], n_entries);
        cr_assert_eq(v->n_top, c->n_kept[r]);
        for (int32_t j = 0; j < c->n_kept[r]; j++) {
            int32_t id = stored_id(st, "topp", at, 0, 0, o[at] + j, n_rows, n_entries, m->pack);
            float lp =
                stored_logprob(st, "topp", at, 0, o[at] + j, n_rows, n_entries, m->q8, &bound);
            cr_assert_eq(id, c->topk_ids[r * k + j], "%s", m->name);
            same_logprob(lp, c->topk_logprobs[r * k + j], m->q8, bound, m->name);
            cr_assert_eq(v->top_ids[j], id, "%s", m->name);
            cr_assert_eq(v->top_logprobs[j], lp, "%s", m->name);
        }
    }
    if (draws) {
        const int64_t *o = tensor(st, "draw_offsets", "I64", n_rows + 1, -1);
        const int32_t *counts = tensor(st, "draw_counts", "I32", n_entries, -1);
        int32_t n = c->n_unique[r];
        cr_assert_eq(o[at + 1] - o[at], n, "%s", m->name);
        cr_assert_eq(v->n_drawn, n);
        for (int32_t j = 0; j < n; j++) {
            int32_t id = stored_id(st, "draw", at, 0, 0, o[at] + j, n_rows, n_entries, m->pack);
            float lp =
                stored_logprob(st, "draw", at, 0, o[at] + j, n_rows, n_entries, m->q8, &bound);
            cr_assert_eq(id, c->draw_ids[r * c->n_draws + j], "%s", m->name);
            cr_assert_eq(counts[o[at] + j], c->draw_counts[r * c->n_draws + j], "%s", m->name);
            same_logprob(lp, c->draw_logprobs[r * c->n_draws + j], m->q8, bound, m->name);
            cr_assert_eq(v->draw_ids[j], id, "%s", m->name);
            cr_assert_eq(v->draw_counts[j], counts[o[at] + j], "%s", m->name);
            cr_assert_eq(v->draw_logprobs[j], lp, "%s", m->name);
        }
        cr_assert_eq(has(st, "proposal_logsumexp"), m->proposal_power != 1, "%s", m->name);
        if (m->proposal_power != 1) {
            const float *p = tensor(st, "proposal_logsumexp", "F32", n_rows, -1);
            cr_assert_eq(p[at], c->proposal_logsumexp[r]);
            cr_assert_eq(v->proposal_logsumexp, p[at]);
        }
    }
    if (c->dense) {
        static const char *const types[] = {"F32", "BF16", "F16"};
        bool full = m->mode == TD_CAPTURE_FULL;
        size_t n = (size_t)(full ? f->teacher.n_vocab : f->teacher.n_hidden),
               bytes = n * td_dtype_size(m->dense_dtype);
        const char *all =
            tensor(st, full ? "logits" : "hidden", types[m->dense_dtype], n_rows, (int64_t)n);
        cr_assert_arr_eq(all + (size_t)at * bytes, (const char *)c->dense + (size_t)r * bytes,
                         bytes, "%s", m->name);
        cr_assert_eq(v->n_dense, (int32_t)n);
        cr_assert_arr_eq(v->dense, (const char *)c->dense + (size_t)r * bytes, bytes);
    }
    if (m->mode == TD_CAPTURE_HIDDEN)
        return;
    const float *lse = tensor(st, "logsumexp", "F32", n_rows, -1);
    const float *lse_t = tensor(st, "logsumexp_t", "F32", n_rows, 1);
    const float *tail = tensor(st, "tail_mass", "F32", n_rows, -1);
    const float *target = tensor(st, "target_logprob", "F32", n_rows, -1);
    const int32_t *rank = tensor(st, "target_rank", "I32", n_rows, -1);
    const float *entropy = tensor(st, "entropy", "F32", n_rows, -1);
    const float *always = tensor(st, "always_logprobs", "F32", n_rows, 2);
    cr_assert(lse[at] == c->logsumexp[r] && lse_t[at] == c->logsumexp_t[r] &&
                  tail[at] == c->tail_mass[r] && target[at] == c->target_logprob[r] &&
                  rank[at] == c->target_rank[r] && entropy[at] == c->entropy[r],
              "%s", m->name);
    cr_assert(always[2 * at] == c->always_logprobs[2 * r] &&
                  always[2 * at + 1] == c->always_logprobs[2 * r + 1],
              "%s", m->name);
    cr_assert(v->logsumexp == lse[at] && v->logsumexp_t[0] == lse_t[at] &&
                  v->tail_mass == tail[at] && v->target_logprob == target[at] &&
                  v->target_rank == rank[at] && v->entropy == entropy[at] &&
                  v->always_logprobs[1] == always[2 * at + 1],
              "%s", m->name);
}

static void check_mode(const td_fixture_mode *m) {
    td_fixture f;
    td_error err;
    td_output *o;
    td_fixture_init(&f);
    td_fixture_set_mode(&f, m);
    OK(td_fixture_open(&f, &o, &err));
    td_shard *s = td_fixture_shard(&f, 0, 4);
    OK(td_fixture_write(&f, o, s, -1, &err));
    td_output_close(o);
    VERIFY_OK(&f, m->name);

    td_safetensors *st = open_plain(&f);
    td_manifest manifest;
    OK(td_manifest_load(f.cfg.output.dir, TD_E_VERIFY, &manifest, &err));
    char *path = td_shard_path(f.cfg.output.dir, 0), *spec = td_spec_text(&manifest.spec);
    cr_assert_str_eq(td_safetensors_meta(st, "capture"), spec);
    cr_assert_str_eq(td_safetensors_meta(st, "schema"), "tdgen-record-2");
    td_shard_file *file;
    td_row_reader *rr;
    OK(td_shard_file_open(path, &manifest.spec, TD_E_VERIFY, NULL, &file, &err));
    OK(td_row_reader_create(file, &rr, &err));
    size_t size = 8;
    for (size_t i = 0; i < td_safetensors_count(st); i++) { /* aligned, and as the manifest says */
        const td_st_tensor *t = td_safetensors_at(st, i);
        const json_t *doc = json_array_get(json_object_get(manifest.root, "tensors"), i);
        cr_assert_leq(t->elem_size_bytes, size, "%s: %s", m->name, t->name);
        cr_assert_eq(t->data_begin % t->elem_size_bytes, 0);
        cr_assert_str_eq(json_string_value(json_object_get(doc, "name")), t->name);
        cr_assert_str_eq(json_string_value(json_object_get(doc, "dtype")), t->dtype_name);
        size = t->elem_size_bytes;
    }
    int64_t n_seen = 0;
    for (int32_t i = 0; i < 4; i++) {
        td_captured c = td_fixture_capture(&f, s, i);
        cr_assert(td_row_sample_sound(file, i));
        for (int32_t r = 0; r < c.n_rows; r++) {
            td_row_view v;
            td_row_problem why;
            int64_t at = s->samples[i].row_offset + r;
            cr_assert(td_row_read(rr, i, at, &v, &why), "%s: %s %s", m->name, why.tensor, why.what);
            check_row(st, &f, m, &c, r, at, s->n_rows, &v);
            n_seen++;
        }
        td_fixture_captured_free(&c);
    }
    cr_assert_eq(n_seen, s->n_rows);
    td_row_reader_destroy(rr);
    td_shard_file_close(file);
    td_safetensors_close(st);
    td_manifest_free(&manifest);
    free(spec);
    free(path);
    td_fixture_shard_free(s);
    td_fixture_free(&f);
}

Test(modes, every_value_is_in_the_file_and_in_the_view) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++)
        check_mode(&td_fixture_modes[i]);
}

/* A second run finds everything done; without the index it is made again, byte for byte. */
Test(modes, resume_and_repair) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++) {
        const td_fixture_mode *m = &td_fixture_modes[i];
        td_fixture f;
        td_error err;
        int64_t n_written = -1;
        size_t na = 0, nb = 0;
        td_log_set_level(TD_LOG_ERROR);
        td_fixture_init(&f);
        td_fixture_set_mode(&f, m);
        f.skip = 2;
        OK(td_fixture_run(&f, 2, &n_written, &err));
        cr_assert_eq(n_written, 2);
        char *a = test_read_file(f.cfg.output.dir, "shards.jsonl", &na);
        char *path = td_asprintf("%s/shards.jsonl", f.cfg.output.dir);
        cr_assert_eq(unlink(path), 0);
        OK(td_fixture_run(&f, 2, &n_written, &err));
        cr_assert_eq(n_written, 0, "%s", m->name);
        char *b = test_read_file(f.cfg.output.dir, "shards.jsonl", &nb);
        cr_assert(na == nb && memcmp(a, b, na) == 0, "%s", m->name);
        VERIFY_OK(&f, m->name);
        free(path);
        free(a);
        free(b);
        td_fixture_free(&f);
    }
}

/* Samples put backwards, one of them skipped: the same bytes as in order. */
Test(modes, bytes_do_not_tell_the_order_of_arrival) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++) {
        const td_fixture_mode *m = &td_fixture_modes[i];
        td_fixture f, g;
        td_error err;
        td_output *o;
        td_shard_writer *w;
        td_fixture_init(&f);
        td_fixture_init(&g);
        td_fixture_set_mode(&f, m);
        td_fixture_set_mode(&g, m);
        td_shard *s = td_fixture_shard(&f, 0, 9);
        OK(td_fixture_open(&f, &o, &err));
        OK(td_fixture_write(&f, o, s, 4, &err));
        td_output_close(o);
        OK(td_fixture_open(&g, &o, &err));
        OK(td_shard_writer_open(o, s, (const char *[]){"cpu:test"}, 1, &w, &err));
        for (int32_t k = 8; k >= 0; k--) {
            td_captured c = td_fixture_capture(&g, s, k);
            OK(k == 4 ? td_shard_writer_skip(w, k, &err)
                      : td_shard_writer_put(w, k, 0, &c, 0, &err));
            td_fixture_captured_free(&c);
        }
        OK(td_shard_writer_commit(w, &err));
        td_output_close(o);
        cr_assert(test_same_file(f.cfg.output.dir, g.cfg.output.dir, shard_name(&f)), "%s",
                  m->name);
        VERIFY_OK(&g, m->name);
        td_fixture_shard_free(s);
        td_fixture_free(&f);
        td_fixture_free(&g);
    }
}

/* output.zstd changes nothing but the file's form, and may change between runs. */
Test(modes, compression_is_no_part_of_the_identity) {
    td_fixture f, g;
    td_error err;
    int64_t n_written;
    size_t na, nb;
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(&f);
    td_fixture_init(&g);
    f.cfg.output.zstd = true;
    OK(td_fixture_run(&f, 1, NULL, &err));
    OK(td_fixture_run(&g, 1, NULL, &err));
    char *a = plain_shard(&f, &na), *b = plain_shard(&g, &nb);
    cr_assert(na == nb && memcmp(a, b, na) == 0, "another shard within");
    free(a);
    free(b);
    f.cfg.output.zstd = false; /* goes on without */
    OK(td_fixture_run(&f, 2, &n_written, &err));
    cr_assert_eq(n_written, 1);
    VERIFY_OK(&f, "both forms in one folder");

    /* Damaged, so computed again, in the other form: the old one goes. */
    char *old = td_asprintf("%s/shard-000000.safetensors.zst", f.cfg.output.dir);
    char *plain = td_asprintf("%s/shard-000000.safetensors", f.cfg.output.dir);
    cr_assert_eq(truncate(old, 100), 0);
    OK(td_fixture_run(&f, 2, &n_written, &err));
    cr_assert_eq(n_written, 1);
    cr_assert(!td_path_exists(old) && td_path_exists(plain));
    VERIFY_OK(&f, "written again");

    /* Two forms of one shard are somebody else's doing. */
    FILE *x = fopen(old, "w");
    fclose(x);
    cr_assert_eq(td_fixture_run(&f, 2, &n_written, &err), TD_E_OUTPUT);
    cr_assert(strstr(err.text, "remove one of them"), "%s", err.text);
    free(old);
    free(plain);
    td_fixture_free(&f);
    td_fixture_free(&g);
}

/* The sizes that the dry run and the manifest state. */
Test(modes, bytes_per_row_are_what_is_written) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++) {
        const td_fixture_mode *m = &td_fixture_modes[i];
        td_fixture f;
        td_error err;
        td_fixture_init(&f);
        td_fixture_set_mode(&f, m);
        OK(td_fixture_run(&f, 1, NULL, &err));
        td_safetensors *st = open_plain(&f);
        double n_rows = atof(td_safetensors_meta(st, "n_rows")), bytes = 0;
        for (size_t k = 0; k < td_safetensors_count(st); k++) {
            const td_st_tensor *t = td_safetensors_at(st, k);
            if (strncmp(t->name, "sample_", 7) && strcmp(t->name, "row_offsets") &&
                strcmp(t->name, "input_ids") && strcmp(t->name, "loss_mask"))
                bytes += (double)t->size_bytes;
        }
        const td_capture_spec spec = td_fixture_spec(&f);
        double stated = td_record_bytes_per_row(&spec);
        if (td_capture_is_ragged(spec.mode))
            cr_assert(bytes - 8 <= stated * n_rows && bytes > 0.3 * stated * n_rows,
                      "%s: %g bytes of at most %g", m->name, bytes, stated * n_rows);
        else
            cr_assert_eq(bytes, stated * n_rows, "%s: %g bytes, stated %g", m->name, bytes,
                         stated * n_rows);
        td_safetensors_close(st);
        td_fixture_free(&f);
    }
}

/* --- identity --------------------------------------------------------------------------------- */

static void change(td_fixture *f, int key) {
    switch (key) {
    case 0:
        f->cfg.capture.top_k++;
        break;
    case 1:
        f->cfg.capture.top_p = 0.6;
        break;
    case 2:
        f->cfg.capture.min_k++;
        break;
    case 3:
        f->cfg.capture.n_draws++;
        break;
    case 4:
        f->cfg.capture.proposal_power = 0.7;
        break;
    case 5:
        f->cfg.capture.dense_dtype = TD_F32;
        break;
    case 6:
        f->cfg.capture.logprob_dtype = TD_F32;
        break;
    case 7:
        f->cfg.capture.quantise_logprobs = true;
        break;
    case 8:
        f->cfg.capture.pack_ids = true;
        break;
    case 9:
        f->cfg.capture.always_ids[0]++;
        break;
    case 10:
        f->cfg.capture.temperatures[0]++;
        break;
    case 11:
        f->cfg.capture.mask_padded_vocab = true;
        break;
    case 12:
        f->cfg.run.seed++;
        break;
    default:
        f->cfg.output.zstd = true;
        break;
    }
}

/* A key that the mode uses is compared on resume, another one is not. */
Test(modes, identity_has_the_keys_of_the_mode_and_no_others) {
    static const char *const keys[] = {"capture.top_k",
                                       "capture.top_p",
                                       "capture.min_k",
                                       "capture.n_draws",
                                       "capture.proposal_power",
                                       "capture.dense_dtype",
                                       "capture.logprob_dtype",
                                       "capture.logprob_dtype",
                                       "capture.pack_ids",
                                       "capture.always_ids",
                                       "capture.temperatures",
                                       "capture.mask_padded_vocab",
                                       "run.seed",
                                       "output.zstd"};
    static const struct {
        td_capture_mode mode;
        const char *used; /* one letter a key */
    } modes[] = {{TD_CAPTURE_TOPK, "y-----yyyyyy--"},   {TD_CAPTURE_TOPP, "yyy---yyyyyy--"},
                 {TD_CAPTURE_SAMPLE, "---yy-yyyyyyy-"}, {TD_CAPTURE_TOPK_SAMPLE, "y--yy-yyyyyyy-"},
                 {TD_CAPTURE_FULL, "-----y---yyy--"},   {TD_CAPTURE_HIDDEN, "-----y--------"}};
    for (size_t i = 0; i < TD_ARRAY_LEN(modes); i++) {
        td_fixture f;
        td_error err;
        td_output *o;
        td_fixture_mode m = {"", modes[i].mode, TD_BF16, false, false, false, 1};
        td_fixture_init(&f);
        td_fixture_set_mode(&f, &m);
        OK(td_fixture_open(&f, &o, &err));
        td_output_close(o);
        for (int k = 0; k < (int)TD_ARRAY_LEN(keys); k++) {
            td_fixture g;
            td_fixture_init(&g);
            td_fixture_set_mode(&g, &m);
            free(g.cfg.output.dir);
            g.cfg.output.dir = td_strdup(f.cfg.output.dir);
            change(&g, k);
            bool used = modes[i].used[k] == 'y';
            td_status rc = td_fixture_open(&g, &o, &err);
            cr_assert_eq(rc, used ? TD_E_OUTPUT : TD_OK, "mode %zu, %s: %s", i, keys[k],
                         rc == TD_OK ? "not noticed" : err.text);
            if (rc == TD_OK)
                td_output_close(o);
            else
                cr_assert(strstr(err.text, keys[k]), "%s: %s", keys[k], err.text);
            td_fixture_free(&g);
        }
        td_fixture_free(&f);
    }
}

/* A manifest's spec survives the way to JSON and back; anything else is refused. */
Test(modes, the_spec_is_read_as_it_was_written) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++) {
        td_fixture f;
        td_error err;
        td_capture_spec a, b;
        td_fixture_init(&f);
        td_fixture_set_mode(&f, &td_fixture_modes[i]);
        f.cfg.capture.mask_padded_vocab = true;
        a = td_fixture_spec(&f);
        json_t *o = td_spec_json(&a);
        OK(td_spec_parse(o, "x", TD_E_VERIFY, &b, &err));
        cr_assert_eq(memcmp(&a.mode, &b.mode, sizeof a.mode), 0);
        char *s = td_spec_text(&a), *t = td_spec_text(&b);
        cr_assert_str_eq(s, t);
        const char *key;
        json_t *v;
        json_object_foreach(o, key, v) {
            json_t *bad = json_deep_copy(o);
            json_object_set_new(bad, key, json_integer(-1));
            cr_assert_eq(td_spec_parse(bad, "x", TD_E_VERIFY, &b, &err), TD_E_VERIFY, "%s", key);
            json_object_del(bad, key);
            cr_assert_eq(td_spec_parse(bad, "x", TD_E_VERIFY, &b, &err), TD_E_VERIFY, "%s", key);
            json_decref(bad);
        }
        free(s);
        free(t);
        json_decref(o);
        td_fixture_free(&f);
    }
}

/* Devices take the power as f32 and give no normaliser of a power that is 1 there. */
Test(modes, a_power_that_is_1_in_f32_has_no_proposal) {
    static const double powers[] = {1, 1 + 1e-9, 1 - 1e-9, 1.001, 0.999};
    for (size_t i = 0; i < TD_ARRAY_LEN(powers); i++) {
        td_fixture f;
        td_capture_spec s;
        td_fixture_init(&f);
        f.cfg.capture.mode = TD_CAPTURE_SAMPLE;
        f.cfg.capture.n_draws = 5;
        f.cfg.capture.proposal_power = powers[i];
        s = td_fixture_spec(&f);
        cr_assert_eq(td_capture_has_proposal(&s), (float)powers[i] != 1.0f, "%.12g", powers[i]);
        cr_assert_eq(td_layout_has(&s, false, TD_T_PROPOSAL_LOGSUMEXP), (float)powers[i] != 1.0f);
        td_fixture_free(&f);
    }
}

/* --- packing ---------------------------------------------------------------------------------- */

Test(pack, ids_of_any_width_go_round) {
    enum { N = 257 };
    int32_t ids[N], back[N];
    uint8_t out[N * 4 + 8];
    uint64_t rng = 1;
    for (int32_t b = 1; b <= 31; b++) {
        td_bit_packer p = {0};
        size_t n = 0;
        for (int i = 0; i < N; i++) {
            rng = rng * 6364136223846793005u + 1442695040888963407u;
            ids[i] = i % 17 == 3 ? -1 : (int32_t)((rng >> 33) % ((UINT64_C(1) << b) - 1));
        }
        for (size_t at = 0, part; at < N; at += part) { /* pieces of any length */
            part = TD_MIN((size_t)(1 + at % 11), (size_t)N - at);
            n += td_ids_pack(&p, ids + at, part, b, out + n);
        }
        n += td_ids_pack_end(&p, out + n);
        cr_assert_eq(n, ((size_t)N * (size_t)b + 7) / 8);
        td_ids_unpack(out, n, 0, N, b, back);
        cr_assert_arr_eq(ids, back, sizeof ids, "%d bits", b);
        td_ids_unpack(out, n, 100, 57, b, back);
        cr_assert_arr_eq(ids + 100, back, 57 * sizeof *ids, "%d bits, from the middle", b);
        if (b < 31)
            for (int64_t i = 0; i < N; i++)
                cr_assert_eq(packed_id(out, i, b), ids[i]);
        td_ids_unpack(out, n, N - 1, 9, b, back); /* past the end: no id, no overrun */
        cr_assert_eq(back[0], ids[N - 1]);
        cr_assert_eq(back[8], -1);
    }
}

/* The bound that the manifest states is met, and is not idle: the largest error comes close. */
Test(pack, q8_keeps_its_bound) {
    enum { N = 64 };
    double worst = 0;
    uint64_t rng = 3;
    for (int row = 0; row < 2000; row++) {
        float x[N], y[N], range[2];
        uint8_t q[N];
        double width = row % 2 ? 25 : 3;
        for (int i = 0; i < N; i++) {
            rng = rng * 6364136223846793005u + 1442695040888963407u;
            x[i] = (float)(-(double)(rng >> 40) * 0x1p-24 * width - 0.01);
        }
        x[5] = row % 3 ? x[5] : -INFINITY;
        td_q8_encode(x, N, q, range);
        td_q8_decode(q, N, range, y);
        double bound = ((double)range[0] - (double)range[1]) / 508;
        for (int i = 0; i < N; i++) {
            if (!isfinite(x[i])) {
                cr_assert_eq(y[i], -INFINITY);
                continue;
            }
            double e = fabs((double)x[i] - (double)y[i]);
            cr_assert_leq(e, bound * (1 + 1e-6) + fabs((double)x[i]) * 0x1p-24);
            worst = fmax(worst, e / bound);
            if (x[i] == range[0])
                cr_assert_eq(y[i], x[i], "the largest is exact");
        }
    }
    cr_assert(worst > 0.99 && worst < 1.0001, "the worst error is %g of the bound", worst);
    float same[2] = {-1, -1}, back[2], range[2];
    uint8_t q[2];
    td_q8_encode(same, 2, q, range);
    td_q8_decode(q, 2, range, back);
    cr_assert(back[0] == -1 && back[1] == -1);
}

/* --- what people look at ---------------------------------------------------------------------- */

Test(modes, the_most_probable_tokens_in_every_mode) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++) {
        const td_fixture_mode *m = &td_fixture_modes[i];
        td_fixture f;
        td_error err;
        td_fixture_init(&f);
        td_fixture_set_mode(&f, m);
        OK(td_fixture_run(&f, 1, NULL, &err));
        td_manifest manifest;
        td_shard_file *file;
        td_row_reader *rr;
        OK(td_manifest_load(f.cfg.output.dir, TD_E_VERIFY, &manifest, &err));
        char *path = td_shard_path(f.cfg.output.dir, 0);
        OK(td_shard_file_open(path, &manifest.spec, TD_E_VERIFY, NULL, &file, &err));
        OK(td_row_reader_create(file, &rr, &err));
        td_row_view v;
        td_row_problem why;
        int32_t ids[60];
        float lps[60];
        cr_assert(td_row_read(rr, 0, 0, &v, &why));
        int32_t n = td_row_top(&v, 60, ids, lps), n5 = td_row_top(&v, 5, ids, lps);
        int32_t want = m->mode == TD_CAPTURE_HIDDEN   ? 0
                       : m->mode == TD_CAPTURE_FULL   ? 50
                       : m->mode == TD_CAPTURE_SAMPLE ? v.n_drawn
                                                      : v.n_top;
        cr_assert(n == want && n5 == TD_MIN(5, want), "%s: %d and %d", m->name, n, n5);
        for (int32_t k = 1; k < n5; k++)
            cr_assert(lps[k] < lps[k - 1] || (lps[k] == lps[k - 1] && m->q8) ||
                          (lps[k] == lps[k - 1] && ids[k] > ids[k - 1]),
                      "%s: place %d", m->name, k);
        if (m->mode != TD_CAPTURE_HIDDEN && m->mode != TD_CAPTURE_SAMPLE && v.target_rank == 0)
            cr_assert_eq(ids[0], v.target);
        td_row_reader_destroy(rr);
        td_shard_file_close(file);
        td_manifest_free(&manifest);
        free(path);
        td_fixture_free(&f);
    }
}

Test(modes, inspect_shows_each_of_them_within_100_columns) {
    static const char *const words[][3] = {
        {"top 8 of 50 tokens as f16", "most probable next tokens", "all 8 recorded candidates"},
        {"as q8, ids in 6 bits", "most probable next tokens", "always:"},
        {"tokens that cover 0.5 (2 to 8) of 50", "tokens a position", "recorded for the position"},
        {"as q8, ids in 6 bits", "tokens a position", "always:"},
        {"20 draws a position as f16", "of the tokens drawn", " x"},
        {"20 draws a position from p^0.5", "of 20 draws", " x"},
        {"top 8 of 50 tokens and 20 draws", "all 8 recorded candidates", "of 20 draws"},
        {"top 8 of 50 tokens and 20 draws", "all 8 recorded candidates", "of 20 draws"},
        {"all 50 logits as bf16", "100.00% of the probability", "probability of all tokens"},
        {"all 50 logits as f16", "100.00% of the probability", "probability of all tokens"},
        {"all 50 logits as f32", "100.00% of the probability", "probability of all tokens"},
        {"states of 12 numbers as bf16", "a state has the norm", "first numbers of the state"},
        {"states of 12 numbers as f32", "a state has the norm", "first numbers of the state"},
    };
    for (int i = 0; i < TD_FIXTURE_MODES; i++) {
        td_fixture f;
        td_error err;
        td_fixture_init(&f);
        td_fixture_set_mode(&f, &td_fixture_modes[i]);
        OK(td_fixture_run(&f, 1, NULL, &err));
        char *text;
        td_inspect_options opt = {.sample = 0, .n_positions = 4, .n_candidates = 5};
        cr_assert_eq(td_fixture_inspect(td_inspect, f.cfg.output.dir, &opt, &text), TD_OK, "%s",
                     text);
        for (int k = 0; k < 3; k++)
            cr_assert(strstr(text, words[i][k]), "%s: no \"%s\" in\n%s", td_fixture_modes[i].name,
                      words[i][k], text);
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
            if (!strstr(line, "/tmp/"))
                cr_assert_leq(td_text_width(line), 100, "%s", line);
        free(text);
        td_fixture_free(&f);
    }
}
