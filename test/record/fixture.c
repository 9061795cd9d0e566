/* fixture.c - a run by the definitions, without a device: see fixture.h. */
#include "fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "test/common.h"
#include "base/dtype.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

void td_fixture_init(td_fixture *f) {
    *f = (td_fixture){.dir = test_temp_dir()};
    f->cfg.model.path = td_asprintf("%s/model", f->dir);
    f->cfg.data.path = td_asprintf("%s/data.jsonl", f->dir);
    f->cfg.data.text_field = td_strdup("text");
    f->cfg.data.max_length = 64;
    f->cfg.data.add_special_tokens = true;
    f->cfg.capture.top_k = 8;
    f->cfg.capture.logprob_dtype = TD_F16;
    f->cfg.capture.top_p = 0.5;
    f->cfg.capture.min_k = 2;
    f->cfg.capture.n_draws = 20;
    f->cfg.capture.proposal_power = 1;
    f->cfg.capture.dense_dtype = TD_BF16;
    f->cfg.output.dir = td_asprintf("%s/out", f->dir);
    f->cfg.output.shard_samples = 4;
    f->cfg.run.total_workers = 1;
    f->teacher = (td_capture_teacher){.n_vocab = 50, .n_hidden = 12, .name = "the teacher"};
    f->id = (td_identity){.architecture = "LlamaForCausalLM",
                          .config_hash = 0x1234,
                          .numerics_revision = TD_NUMERICS_REVISION,
                          .compute = TD_F32,
                          .has_tokenizer = true,
                          .tokenizer_hash = 77,
                          .tokenizer_n_vocab = 49,
                          .dataset_size_bytes = 1000,
                          .dataset_hash = 99,
                          .format = TD_FORMAT_JSONL};
    f->weights_hash = 0xabcdef;
    f->skip = -1;
}

void td_fixture_free(td_fixture *f) {
    test_remove_tree(f->dir);
    td_config_free(&f->cfg);
}

td_capture_spec td_fixture_spec(const td_fixture *f) {
    td_capture_spec spec;
    td_error err;
    td_capture_settings set = f->cfg.capture;
    td_capture_teacher teacher = f->teacher;
    set.top_k = TD_MIN(set.top_k, teacher.n_vocab);
    teacher.n_valid = set.mask_padded_vocab ? f->id.tokenizer_n_vocab : 0;
    if (td_capture_resolve(&set, &teacher, f->cfg.run.seed, &spec, &err) != TD_OK)
        abort();
    return spec;
}

td_status td_fixture_open(td_fixture *f, td_output **out, td_error *err) {
    td_output *o = NULL;
    const td_capture_spec spec = td_fixture_spec(f);
    td_status rc = td_output_open(&f->cfg, &spec, &f->id, &o, err);
    if (rc == TD_OK)
        rc = td_output_bind_weights(o, f->weights_hash, err);
    if (rc != TD_OK)
        td_output_close(o);
    else
        *out = o;
    return rc;
}

/* Tokens that can follow. */
static int32_t n_valid(const td_fixture *f) {
    return f->cfg.capture.mask_padded_vocab ? f->id.tokenizer_n_vocab : f->teacher.n_vocab;
}

td_shard *td_fixture_shard(const td_fixture *f, int64_t number, int32_t n_rows) {
    uint64_t rng = (uint64_t)number * 1000 + 7;
    td_shard *s = td_calloc(1, sizeof *s);
    int32_t max = f->cfg.data.max_length;
    s->number = number;
    s->row_begin = number * f->cfg.output.shard_samples;
    s->row_end = s->row_begin + n_rows;
    s->n_samples = n_rows;
    s->samples = td_calloc((size_t)n_rows, sizeof *s->samples);
    s->ids = td_calloc((size_t)n_rows * (size_t)max, sizeof *s->ids);
    s->loss_mask = td_calloc((size_t)n_rows * (size_t)max, 1);
    s->source_hash = td_hash64(&(int64_t[]){number, n_rows}, 16);
    td_strbuf id_bytes = {0};
    s->id_offsets = td_calloc((size_t)n_rows + 1, sizeof *s->id_offsets);
    for (int32_t i = 0; i < n_rows; i++) {
        int32_t n = i == 1 ? 1 : 2 + (int32_t)(test_random(&rng) % (uint64_t)(max / 4));
        td_sample *m = &s->samples[i];
        *m = (td_sample){.row = s->row_begin + i,
                         .token_offset = s->n_tokens,
                         .n_tokens = n,
                         .row_offset = s->n_rows};
        for (int32_t p = 0; p < n; p++) {
            s->ids[s->n_tokens] = (int32_t)(test_random(&rng) % (uint64_t)n_valid(f));
            uint8_t mask = p > 0 && !(i == 2 && test_random(&rng) % 2);
            s->loss_mask[s->n_tokens++] = mask;
            m->n_rows += mask;
        }
        s->n_rows += m->n_rows;
        td_strbuf_printf(&id_bytes, "row-%lld", (long long)m->row);
        s->id_offsets[i + 1] = (int64_t)id_bytes.len;
    }
    if (f->cfg.data.id_field) {
        s->id_bytes = id_bytes.data ? id_bytes.data : td_strdup("");
    } else {
        td_strbuf_free(&id_bytes);
        free(s->id_offsets);
        s->id_offsets = NULL;
    }
    return s;
}

void td_fixture_shard_free(td_shard *s) {
    if (!s)
        return;
    free(s->ids);
    free(s->loss_mask);
    free(s->samples);
    free(s->id_bytes);
    free(s->id_offsets);
    free(s);
}

typedef struct candidate {
    int32_t id;
    float lp;
} candidate;

static int by_logprob(const void *x, const void *y) {
    const candidate *a = x, *b = y;
    if (a->lp != b->lp)
        return a->lp > b->lp ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

static bool has_draws(const td_fixture *f) {
    return f->cfg.capture.mode == TD_CAPTURE_SAMPLE ||
           f->cfg.capture.mode == TD_CAPTURE_TOPK_SAMPLE;
}

static bool has_top(const td_fixture *f) {
    return f->cfg.capture.mode != TD_CAPTURE_SAMPLE && f->cfg.capture.mode != TD_CAPTURE_FULL;
}

/* Element i of an array of dense_dtype. */
static void put_dense(const td_captured *c, size_t i, float x) {
    if (c->dense_dtype == TD_F32)
        ((float *)c->dense)[i] = x;
    else
        ((uint16_t *)c->dense)[i] =
            c->dense_dtype == TD_BF16 ? td_f32_to_bf16(x) : td_f32_to_f16(x);
}

/* n_draws from q ~ p^t by inverse CDF over ascending ids; returns the mass of what was drawn. */
static double draw_row(const td_fixture *f, uint64_t *rng, const double *p, const candidate *by_id,
                       td_captured *c, int32_t r) {
    int32_t v = f->teacher.n_vocab, n = c->n_draws, n_unique = 0;
    double t = f->cfg.capture.proposal_power, sum = 0, mass = 0;
    int32_t *counts = td_calloc((size_t)v, sizeof *counts);
    for (int32_t i = 0; i < v; i++)
        sum += p[i] > 0 ? pow(p[i], t) : 0;
    for (int32_t d = 0; d < n; d++) {
        double u = (double)(test_random(rng) >> 11) * 0x1p-53 * sum, at = 0;
        int32_t pick = -1;
        for (int32_t i = 0; i < v; i++) {
            if (p[i] <= 0)
                continue;
            pick = i;
            at += pow(p[i], t);
            if (u < at)
                break;
        }
        counts[pick]++;
    }
    for (int32_t i = 0; i < v; i++) {
        size_t at = (size_t)r * (size_t)n + (size_t)n_unique;
        if (!counts[i])
            continue;
        ((int32_t *)c->draw_ids)[at] = i;
        ((int32_t *)c->draw_counts)[at] = counts[i];
        ((float *)c->draw_logprobs)[at] = by_id[i].lp;
        mass += p[i];
        n_unique++;
    }
    ((int32_t *)c->n_unique)[r] = n_unique;
    if (c->proposal_logsumexp)
        ((float *)c->proposal_logsumexp)[r] = (float)log(sum);
    free(counts);
    return mass;
}

/* One row, by the definitions at td_capture_args: a plain softmax in f64. */
static void capture_row(const td_fixture *f, uint64_t *rng, int32_t target, td_captured *c,
                        int32_t r) {
    int32_t v = f->teacher.n_vocab, valid = n_valid(f), k = c->top_k;
    float *z = td_calloc((size_t)v, sizeof *z), m = -INFINITY;
    double *p = td_calloc((size_t)v, sizeof *p);
    candidate *all = td_calloc((size_t)v, sizeof *all), *by_id = td_calloc((size_t)v, sizeof *all);
    for (int32_t i = 0; i < v; i++) {
        /* coarse values, so that ties occur */
        z[i] = (float)(int64_t)(test_random(rng) % 64) / 8.0f - 4.0f;
        if (i < valid)
            m = fmaxf(m, z[i]);
    }
    double sum = 0, dot = 0, tail = 0, kept = 0;
    for (int32_t i = 0; i < valid; i++) {
        double e = exp((double)z[i] - (double)m);
        sum += e;
        dot += e * ((double)z[i] - (double)m);
    }
    float log_sum = (float)log(sum);
    for (int32_t i = 0; i < v; i++) {
        by_id[i] = all[i] = (candidate){i, i < valid ? (z[i] - m) - log_sum : -INFINITY};
        p[i] = i < valid ? exp((double)z[i] - (double)m) / sum : 0;
    }
    qsort(all, (size_t)v, sizeof *all, by_logprob);
    int32_t n_kept = k;
    if (f->cfg.capture.mode == TD_CAPTURE_TOPP)
        for (n_kept = 0;
             n_kept < k && (n_kept < f->cfg.capture.min_k || kept < f->cfg.capture.top_p); n_kept++)
            kept += exp((double)all[n_kept].lp);
    for (int32_t i = 0; i < v; i++) {
        if (i < k) {
            bool there = all[i].lp > -INFINITY;
            ((int32_t *)c->topk_ids)[(int64_t)r * k + i] = there ? all[i].id : -1;
            ((float *)c->topk_logprobs)[(int64_t)r * k + i] = all[i].lp;
        }
        if (i >= n_kept)
            tail += p[all[i].id];
        if (all[i].id == target) {
            ((int32_t *)c->target_rank)[r] = i;
            ((float *)c->target_logprob)[r] = all[i].lp;
        }
    }
    if (c->n_kept)
        ((int32_t *)c->n_kept)[r] = n_kept;
    if (has_draws(f)) {
        double mass = draw_row(f, rng, p, by_id, c, r);
        tail = f->cfg.capture.mode == TD_CAPTURE_SAMPLE ? fmax(1 - mass, 0) : tail;
    }
    if (f->cfg.capture.mode == TD_CAPTURE_FULL)
        tail = 0;
    for (int32_t i = 0; c->dense && i < v; i++)
        put_dense(c, (size_t)r * (size_t)v + (size_t)i, z[i]);
    for (int32_t i = 0; i < c->n_always; i++)
        ((float *)c->always_logprobs)[(int64_t)r * c->n_always + i] =
            by_id[f->cfg.capture.always_ids[i]].lp;
    ((float *)c->logsumexp)[r] = (float)((double)m + log(sum));
    ((float *)c->tail_mass)[r] = (float)tail;
    ((float *)c->entropy)[r] = (float)(log(sum) - dot / sum);
    for (int32_t t = 0; t < c->n_temperatures; t++) {
        double st = 0, temp = f->cfg.capture.temperatures[t];
        for (int32_t i = 0; i < valid; i++)
            st += exp((double)z[i] / temp);
        ((float *)c->logsumexp_t)[(int64_t)r * c->n_temperatures + t] = (float)log(st);
    }
    free(by_id);
    free(all);
    free(p);
    free(z);
}

static void *floats(size_t n) {
    return td_calloc(n, sizeof(float));
}

static void *ints(size_t n) {
    return td_calloc(n, sizeof(int32_t));
}

td_captured td_fixture_capture(const td_fixture *f, const td_shard *s, int32_t sample) {
    const td_sample *m = &s->samples[sample];
    td_capture_mode mode = f->cfg.capture.mode;
    uint64_t rng = (uint64_t)m->row * 31 + 5;
    size_t n = (size_t)m->n_rows, nt = (size_t)f->cfg.capture.n_temperatures;
    td_captured c = {.n_rows = m->n_rows};
    int32_t r = 0;
    if (mode == TD_CAPTURE_FULL || mode == TD_CAPTURE_HIDDEN) {
        size_t width = (size_t)(mode == TD_CAPTURE_FULL ? f->teacher.n_vocab : f->teacher.n_hidden);
        c.dense_dtype = f->cfg.capture.dense_dtype;
        c.dense = floats(n * width);
        for (size_t i = 0; mode == TD_CAPTURE_HIDDEN && i < n * width; i++)
            put_dense(&c, i, (float)(int64_t)(test_random(&rng) % 999) / 100.0f - 5.0f);
    }
    if (mode == TD_CAPTURE_HIDDEN)
        return c;
    c.top_k = has_top(f) ? TD_MIN(f->cfg.capture.top_k, f->teacher.n_vocab) : 0;
    c.n_temperatures = (int32_t)nt;
    c.topk_ids = ints(n * (size_t)c.top_k);
    c.topk_logprobs = floats(n * (size_t)c.top_k);
    c.logsumexp = floats(n);
    c.logsumexp_t = floats(n * nt);
    c.tail_mass = floats(n);
    c.target_logprob = floats(n);
    c.entropy = floats(n);
    c.target_rank = ints(n);
    if (mode == TD_CAPTURE_TOPP)
        c.n_kept = ints(n);
    c.n_always = f->cfg.capture.n_always;
    c.always_logprobs = floats(n * (size_t)c.n_always);
    if (has_draws(f)) {
        c.n_draws = f->cfg.capture.n_draws;
        size_t e = n * (size_t)c.n_draws;
        c.n_unique = ints(n);
        c.draw_ids = ints(e);
        c.draw_counts = ints(e);
        c.draw_logprobs = floats(e);
        if (f->cfg.capture.proposal_power != 1)
            c.proposal_logsumexp = floats(n);
    }
    for (int32_t p = 1; p < m->n_tokens; p++)
        if (s->loss_mask[m->token_offset + p])
            capture_row(f, &rng, s->ids[m->token_offset + p], &c, r++);
    return c;
}

void td_fixture_captured_free(td_captured *c) {
    const void *const all[] = {c->topk_ids,       c->topk_logprobs, c->logsumexp,
                               c->logsumexp_t,    c->tail_mass,     c->target_logprob,
                               c->entropy,        c->target_rank,   c->dense,
                               c->n_kept,         c->n_unique,      c->draw_ids,
                               c->draw_counts,    c->draw_logprobs, c->proposal_logsumexp,
                               c->always_logprobs};
    for (size_t i = 0; i < TD_ARRAY_LEN(all); i++)
        free((void *)all[i]);
}

td_status td_fixture_write(td_fixture *f, td_output *o, const td_shard *s, int32_t skip,
                           td_error *err) {
    static const char *const kinds[] = {"cpu:test"};
    td_shard_writer *w;
    td_status rc = td_shard_writer_open(o, s, kinds, 1, &w, err);
    if (rc != TD_OK)
        return rc;
    for (int32_t i = 0; i < s->n_samples && rc == TD_OK; i++) {
        if (s->samples[i].n_rows == 0)
            continue;
        if (i == skip) {
            rc = td_shard_writer_skip(w, i, err);
            continue;
        }
        td_captured c = td_fixture_capture(f, s, i);
        rc = td_shard_writer_put(w, i, 0, &c, 0, err);
        td_fixture_captured_free(&c);
    }
    if (rc != TD_OK) {
        td_shard_writer_abort(w);
        return rc;
    }
    return td_shard_writer_commit(w, err);
}

td_status td_fixture_run(td_fixture *f, int64_t n_shards, int64_t *n_written, td_error *err) {
    td_output *o;
    td_status rc = td_fixture_open(f, &o, err);
    if (n_written)
        *n_written = 0;
    if (rc != TD_OK)
        return rc;
    int64_t n_rows = 0;
    for (int64_t k = 0; k < n_shards && rc == TD_OK; k++) {
        td_shard *s = td_fixture_shard(f, k, (int32_t)f->cfg.output.shard_samples);
        bool done = false;
        n_rows = s->row_end;
        rc = td_output_shard_done(o, k, s->row_begin, s->row_end, s->source_hash, &done, NULL, err);
        if (rc == TD_OK && !done) {
            rc = td_fixture_write(f, o, s, f->skip, err);
            if (rc == TD_OK && n_written)
                ++*n_written;
        }
        td_fixture_shard_free(s);
    }
    if (rc == TD_OK)
        rc = td_output_note_rows(o, n_rows, true, err);
    td_output_close(o);
    return rc;
}

const td_fixture_mode td_fixture_modes[TD_FIXTURE_MODES] = {
    {"topk", TD_CAPTURE_TOPK, TD_BF16, false, false, false, 1},
    {"topk packed, q8", TD_CAPTURE_TOPK, TD_BF16, true, true, false, 1},
    {"topp", TD_CAPTURE_TOPP, TD_BF16, false, false, false, 1},
    {"topp packed, q8", TD_CAPTURE_TOPP, TD_BF16, true, true, false, 1},
    {"sample", TD_CAPTURE_SAMPLE, TD_BF16, false, false, false, 1},
    {"sample from p^0.5, packed, q8", TD_CAPTURE_SAMPLE, TD_BF16, true, true, false, 0.5},
    {"topk+sample", TD_CAPTURE_TOPK_SAMPLE, TD_BF16, false, false, false, 1},
    {"topk+sample packed, q8, zstd", TD_CAPTURE_TOPK_SAMPLE, TD_BF16, true, true, true, 1},
    {"full bf16", TD_CAPTURE_FULL, TD_BF16, false, false, false, 1},
    {"full f16 zstd", TD_CAPTURE_FULL, TD_F16, false, false, true, 1},
    {"full f32", TD_CAPTURE_FULL, TD_F32, false, false, false, 1},
    {"hidden bf16", TD_CAPTURE_HIDDEN, TD_BF16, false, false, false, 1},
    {"hidden f32", TD_CAPTURE_HIDDEN, TD_F32, false, false, false, 1},
};

const td_fixture_mode *td_fixture_mode_named(const char *name) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++)
        if (strcmp(td_fixture_modes[i].name, name) == 0)
            return &td_fixture_modes[i];
    fprintf(stderr, "no mode %s\n", name);
    abort();
}

void td_fixture_set_mode(td_fixture *f, const td_fixture_mode *m) {
    f->cfg.capture.mode = m->mode;
    f->cfg.capture.dense_dtype = m->dense_dtype;
    f->cfg.capture.pack_ids = m->pack;
    f->cfg.capture.quantise_logprobs = m->q8;
    f->cfg.capture.logprob_dtype = m->q8 ? TD_F32 : TD_F16;
    f->cfg.output.zstd = m->zstd;
    f->cfg.capture.proposal_power = m->proposal_power;
    f->cfg.capture.n_always = 2;
    f->cfg.capture.always_ids[0] = 2;
    f->cfg.capture.always_ids[1] = 17;
    f->cfg.capture.n_temperatures = 1;
    f->cfg.capture.temperatures[0] = 2;
}

static td_status end_text(FILE *out, td_status rc, const td_error *err) {
    if (rc != TD_OK)
        fprintf(out, "error: %s\n", err->text);
    fclose(out);
    return rc;
}

td_status td_fixture_verify(const char *dir, char **text) {
    size_t n;
    td_error err = {0};
    FILE *out = open_memstream(text, &n);
    return end_text(out, td_verify(dir, &(td_verify_options){.partial = true}, out, &err), &err);
}

td_status td_fixture_inspect(td_fixture_form form, const char *dir, const td_inspect_options *opt,
                             char **text) {
    size_t n;
    td_error err = {0};
    FILE *out = open_memstream(text, &n);
    return end_text(out, form(dir, opt, out, &err), &err);
}

bool td_fixture_put_hash(char *header, size_t n, const char *key, size_t skip, uint64_t hash) {
    char hex[17], *at = memmem(header, n, key, strlen(key));
    if (!at || (size_t)(header + n - at) < strlen(key) + skip + 16)
        return false;
    td_hash_hex(hash, hex);
    memcpy(at + strlen(key) + skip, hex, 16);
    return true;
}

bool td_fixture_seal(char *shard, size_t n, const td_layout *l) {
    uint64_t header_n, h;
    if (n < 8)
        return false;
    memcpy(&header_n, shard, 8);
    if (header_n > n - 8)
        return false;
    char *header = shard + 8;
    const char *body = header + header_n;
    size_t body_n = n - 8 - (size_t)header_n, k = 0;
    bool all =
        td_fixture_put_hash(header, header_n, "\"data_hash\":\"", 0, td_hash64(body, body_n));
    for (int i = 0; i < TD_T_COUNT; i++) {
        const td_layout_tensor *t = &l->tensor[i];
        if (!t->present)
            continue;
        all &= t->end <= body_n &&
               td_fixture_put_hash(header, header_n, "\"tensor_hashes\":\"", 17 * k,
                                   td_hash64(body + t->begin, t->end - t->begin));
        k++;
    }
    return td_layout_header_hash(header, header_n, &h) &&
           td_fixture_put_hash(header, header_n, "\"header_hash\":\"", 0, h) && all;
}
