/* In every capture mode: wrong numbers are never written, and verify finds them where they stand.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/record/fixture.h"
#include "record/identity.h"
#include "record/shard_file.h"
#include "base/log.h"
#include "base/hash.h"
#include "base/memory.h"

static void must(td_status rc, const td_error *err) {
    cr_assert_eq(rc, TD_OK, "%s", err->text);
}

static td_status verify_text(const char *dir, char **text) {
    size_t n;
    td_error err = {0};
    FILE *out = open_memstream(text, &n);
    td_status rc = td_verify(dir, out, false, &err);
    if (rc != TD_OK)
        fprintf(out, "error: %s\n", err.text);
    fclose(out);
    return rc;
}

static const td_fixture_mode *mode_named(const char *name) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++)
        if (strcmp(td_fixture_modes[i].name, name) == 0)
            return &td_fixture_modes[i];
    cr_assert_fail("no mode %s", name);
    return NULL;
}

/* --- wrong numbers are never written ---------------------------------------------------------- */

typedef void (*spoil)(td_captured *c);

#define SPOIL(name, type, field, index, value)                                                     \
    static void name(td_captured *c) {                                                             \
        type *p = (type *)c->field;                                                                \
        p[index] = (type)(value);                                                                  \
    }
SPOIL(kept_none, int32_t, n_kept, 0, 0)
SPOIL(kept_too_many, int32_t, n_kept, 0, p[0] + 1)
SPOIL(kept_too_few, int32_t, n_kept, 0, p[0] - 1)
SPOIL(kept_beyond, int32_t, n_kept, 0, 9)
SPOIL(kept_id, int32_t, topk_ids, 1, 50)
SPOIL(kept_order, float, topk_logprobs, 0, p[0] - 3)
SPOIL(kept_nan, float, topk_logprobs, 1, NAN)
SPOIL(kept_free, int32_t, topk_ids, 1, -1)
SPOIL(tail_lost, float, tail_mass, 0, p[0] * 0.5f)
SPOIL(unique_none, int32_t, n_unique, 0, 0)
SPOIL(unique_beyond, int32_t, n_unique, 0, 21)
SPOIL(draw_order, int32_t, draw_ids, 1, p[0])
SPOIL(draw_range, int32_t, draw_ids, 0, -1)
SPOIL(draw_count, int32_t, draw_counts, 0, p[0] + 1)
SPOIL(draw_count_none, int32_t, draw_counts, 1, 0)
SPOIL(draw_nan, float, draw_logprobs, 0, NAN)
SPOIL(draw_above, float, draw_logprobs, 0, 0.5f)
SPOIL(proposal_nan, float, proposal_logsumexp, 0, NAN)
SPOIL(proposal_small, float, proposal_logsumexp, 0, p[0] - 3)
SPOIL(always_nan, float, always_logprobs, 1, NAN)
SPOIL(always_above, float, always_logprobs, 0, 0.1f)
SPOIL(always_large, float, always_logprobs, 1, -1e-4f)
SPOIL(logit_nan, uint16_t, dense, 3, 0x7fc0)
SPOIL(logit_inf, uint16_t, dense, 77, 0x7f80)
SPOIL(logsumexp_off, float, logsumexp, 0, p[0] + 1)
SPOIL(target_off, float, target_logprob, 0, p[0] - 0.3f)
SPOIL(rank_off, int32_t, target_rank, 0, p[0] > 25 ? 0 : 49)
SPOIL(entropy_off, float, entropy, 0, p[0] - 0.5f)
SPOIL(tail_not_zero, float, tail_mass, 0, 0.01f)
SPOIL(state_nan, uint16_t, dense, 3, 0x7fc0)
SPOIL(state_inf, uint16_t, dense, 4, 0xff80)

static const struct spoil_case {
    const char *mode;
    spoil spoil;
    const char *tensor;
} spoils[] = {{"topp", kept_none, "topp_offsets"},
              {"topp", kept_too_many, "topp_ids|tail_mass"},
              {"topp", kept_too_few, "topp_ids|tail_mass"},
              {"topp", kept_beyond, "topp_offsets"},
              {"topp", kept_id, "topp_ids"},
              {"topp", kept_order, "topp_logprobs"},
              {"topp", kept_nan, "topp_logprobs"},
              {"topp", kept_free, "topp_ids"},
              {"topp", tail_lost, "tail_mass"},
              {"topp", always_nan, "always_logprobs"},
              {"topp", always_above, "always_logprobs"},
              {"topp", always_large, "always_logprobs"},
              {"sample", unique_none, "draw_offsets"},
              {"sample", unique_beyond, "draw_offsets"},
              {"sample", draw_order, "draw_ids"},
              {"sample", draw_range, "draw_ids"},
              {"sample", draw_count, "draw_counts"},
              {"sample", draw_count_none, "draw_counts"},
              {"sample", draw_nan, "draw_logprobs"},
              {"sample", draw_above, "draw_logprobs"},
              {"sample", tail_lost, "tail_mass"},
              {"sample", always_above, "always_logprobs"},
              {"sample from p^0.5, packed, q8", proposal_nan, "proposal_logsumexp"},
              {"sample from p^0.5, packed, q8", proposal_small, "proposal_logsumexp"},
              {"topk+sample", draw_count, "draw_counts"},
              {"topk+sample", tail_lost, "tail_mass"},
              {"topk+sample", kept_order, "topk_logprobs"},
              {"full bf16", logit_nan, "logits"},
              {"full bf16", logit_inf, "logits"},
              {"full bf16", logsumexp_off, "logsumexp"},
              {"full bf16", target_off, "target_logprob"},
              {"full bf16", rank_off, "target_rank"},
              {"full bf16", entropy_off, "entropy"},
              {"full bf16", tail_not_zero, "tail_mass"},
              {"hidden bf16", state_nan, "hidden"},
              {"hidden bf16", state_inf, "hidden"}};

/* One of the words, separated by '|'. */
static bool names_one(const char *text, const char *words) {
    bool found = false;
    char *copy = td_strdup(words), *save = NULL;
    for (char *w = strtok_r(copy, "|", &save); w; w = strtok_r(NULL, "|", &save))
        found |= strstr(text, w) != NULL;
    free(copy);
    return found;
}

Test(modes, wrong_numbers_are_never_written) {
    for (size_t i = 0; i < TD_ARRAY_LEN(spoils); i++) {
        td_fixture f;
        td_error err = {0};
        td_output *o;
        td_shard_writer *w;
        td_fixture_init(&f);
        td_fixture_set_mode(&f, mode_named(spoils[i].mode));
        must(td_fixture_open(&f, &o, &err), &err);
        td_shard *s = td_fixture_shard(&f, 0, 4);
        must(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err), &err);
        td_captured c = td_fixture_capture(&f, s, 3);
        spoils[i].spoil(&c);
        cr_assert_eq(td_shard_writer_put(w, 3, 0, &c, 0, &err), TD_E_INTERNAL, "case %zu of %s", i,
                     spoils[i].mode);
        cr_assert(names_one(err.text, spoils[i].tensor), "case %zu of %s: %s", i, spoils[i].mode,
                  err.text);
        td_fixture_captured_free(&c);
        /* It can still be put with good numbers: what the failure left is not in the shard. */
        for (int32_t k = 0; k < 4; k++) {
            c = td_fixture_capture(&f, s, k);
            must(td_shard_writer_put(w, k, 0, &c, 0, &err), &err);
            td_fixture_captured_free(&c);
        }
        must(td_shard_writer_commit(w, &err), &err);
        td_output_close(o);
        char *text;
        cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_OK, "%s", text);
        free(text);
        td_fixture_shard_free(s);
        td_fixture_free(&f);
    }
}

/* What was captured for another mode, or with other sizes, does not fit. */
Test(modes, captured_rows_of_other_sizes_are_refused) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++) {
        td_fixture f;
        td_error err;
        td_output *o;
        td_shard_writer *w;
        td_fixture_init(&f);
        td_fixture_set_mode(&f, &td_fixture_modes[i]);
        must(td_fixture_open(&f, &o, &err), &err);
        td_shard *s = td_fixture_shard(&f, 0, 1);
        must(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err), &err);
        td_captured c = td_fixture_capture(&f, s, 0), bad = c;
        if (c.dense) {
            bad.dense_dtype = c.dense_dtype == TD_F32 ? TD_BF16 : TD_F32;
            cr_assert_eq(td_shard_writer_put(w, 0, 0, &bad, 0, &err), TD_E_INTERNAL);
            bad.dense = NULL;
        } else if (c.n_draws) {
            bad.n_draws--;
        } else {
            bad.top_k--;
        }
        cr_assert_eq(td_shard_writer_put(w, 0, 0, &bad, 0, &err), TD_E_INTERNAL);
        bad = c;
        bad.n_always++;
        if (td_fixture_modes[i].mode != TD_CAPTURE_HIDDEN)
            cr_assert_eq(td_shard_writer_put(w, 0, 0, &bad, 0, &err), TD_E_INTERNAL);
        must(td_shard_writer_put(w, 0, 0, &c, 0, &err), &err);
        must(td_shard_writer_commit(w, &err), &err);
        td_output_close(o);
        td_fixture_captured_free(&c);
        td_fixture_shard_free(s);
        td_fixture_free(&f);
    }
}

/* Logits of ids behind the tokenizer's vocabulary are stored, but have no probability. */
Test(modes, masked_ids_have_no_probability) {
    static const char *const modes[] = {"topk", "sample", "full bf16", "full f32"};
    for (size_t i = 0; i < TD_ARRAY_LEN(modes); i++) {
        td_fixture f;
        td_error err;
        char *text;
        td_fixture_init(&f);
        td_fixture_set_mode(&f, mode_named(modes[i]));
        f.cfg.capture.mask_padded_vocab = true;
        f.id.tokenizer_n_vocab = 30;
        must(td_fixture_run(&f, 2, NULL, &err), &err);
        cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_OK, "%s: %s", modes[i], text);
        free(text);
        td_fixture_free(&f);
    }
}

/* --- meaning: numbers changed in the file and all hashes made right again --------------------- */

typedef struct forged {
    char *data;
    size_t n, header;
    td_layout layout;
} forged;

static void *tensor(forged *s, td_tensor_id id) {
    cr_assert(s->layout.tensor[id].present);
    return s->data + s->header + s->layout.tensor[id].begin;
}

static void put_hex(forged *s, const char *key, size_t skip, uint64_t hash) {
    char hex[17], *at = memmem(s->data + 8, s->header - 8, key, strlen(key));
    cr_assert(at);
    td_hash_hex(hash, hex);
    memcpy(at + strlen(key) + skip, hex, 16);
}

static void seal(forged *s) {
    uint64_t h;
    put_hex(s, "\"data_hash\":\"", 0, td_hash64(s->data + s->header, s->n - s->header));
    size_t k = 0;
    for (int i = 0; i < TD_T_COUNT; i++) {
        const td_layout_tensor *t = &s->layout.tensor[i];
        if (t->present)
            put_hex(s, "\"tensor_hashes\":\"", 17 * k++,
                    td_hash64(s->data + s->header + t->begin, t->end - t->begin));
    }
    cr_assert(td_layout_header_hash(s->data + 8, s->header - 8, &h));
    put_hex(s, "\"header_hash\":\"", 0, h);
}

typedef void (*forge)(forged *s);

#define FORGE(name, type, id, index, value)                                                        \
    static void name(forged *s) {                                                                  \
        type *p = tensor(s, id);                                                                   \
        p[index] = (type)(value);                                                                  \
    }
FORGE(topp_offset_far, int64_t, TD_T_TOPP_OFFSETS, 1, 1000000)
FORGE(topp_offset_back, int64_t, TD_T_TOPP_OFFSETS, 2, -5)
FORGE(topp_offset_moved, int64_t, TD_T_TOPP_OFFSETS, 1, p[1] + 1)
FORGE(topp_offset_first, int64_t, TD_T_TOPP_OFFSETS, 0, 1)
FORGE(topp_id, int32_t, TD_T_TOPP_IDS, 0, 50)
FORGE(topp_twice, int32_t, TD_T_TOPP_IDS, 1, p[0])
FORGE(topp_lp, uint16_t, TD_T_TOPP_LOGPROBS_F16, 0, 0xcc00)
FORGE(topp_lp_nan, uint16_t, TD_T_TOPP_LOGPROBS_F16, 1, 0x7e00)
FORGE(topp_packed, uint8_t, TD_T_TOPP_IDS_PACKED, 0, 0xff)
FORGE(topp_q8_free, uint8_t, TD_T_TOPP_Q8, 1, 255)
FORGE(topp_q8_range, float, TD_T_TOPP_Q8_RANGE, 0, NAN)
FORGE(draw_offset, int64_t, TD_T_DRAW_OFFSETS, 1, INT64_MAX)
FORGE(draw_offset_moved, int64_t, TD_T_DRAW_OFFSETS, 1, p[1] - 1)
FORGE(draw_id, int32_t, TD_T_DRAW_IDS, 1, p[0])
FORGE(draw_id_range, int32_t, TD_T_DRAW_IDS, 0, INT32_MIN)
FORGE(draw_counted, int32_t, TD_T_DRAW_COUNTS, 0, p[0] + 1)
FORGE(draw_counted_back, int32_t, TD_T_DRAW_COUNTS, 0, -1)
FORGE(draw_lp, uint16_t, TD_T_DRAW_LOGPROBS_F16, 0, 0x3c00)
FORGE(draw_lp_moved, uint16_t, TD_T_DRAW_LOGPROBS_F16, 0, 0xb000)
FORGE(always_lp, float, TD_T_ALWAYS_LOGPROBS, 1, 1)
FORGE(proposal_inf, float, TD_T_PROPOSAL_LOGSUMEXP, 0, INFINITY)
FORGE(proposal_low, float, TD_T_PROPOSAL_LOGSUMEXP, 1, -30)
FORGE(topk_packed, uint8_t, TD_T_TOPK_IDS_PACKED, 0, 0xff)
FORGE(topk_q8_order, uint8_t, TD_T_TOPK_Q8, 0, 200)
FORGE(logits_nan, uint16_t, TD_T_LOGITS_BF16, 7, 0x7fff)
FORGE(logits_one, uint16_t, TD_T_LOGITS_BF16, 60, 0x4180)
FORGE(logits_lse, float, TD_T_LOGSUMEXP, 1, p[1] - 0.5f)
FORGE(logits_entropy, float, TD_T_ENTROPY, 2, p[2] + 0.5f)
FORGE(logits_rank, int32_t, TD_T_TARGET_RANK, 1, p[1] > 25 ? 1 : 48)
FORGE(logits_target, float, TD_T_TARGET_LOGPROB, 1, p[1] + 0.3f)
FORGE(hidden_inf, float, TD_T_HIDDEN_F32, 11, INFINITY)

/* Bits behind the last id of a stream. */
static void topp_padding(forged *s) {
    const td_layout_tensor *t = &s->layout.tensor[TD_T_TOPP_IDS_PACKED];
    uint8_t *p = tensor(s, TD_T_TOPP_IDS_PACKED);
    cr_assert_neq(s->layout.counts.n_entries * 6 % 8, 0, "choose a fixture with bits to spare");
    p[t->shape[0] - 1] |= 0x80;
}

static const struct forge_case {
    const char *mode;
    forge forge;
    const char *words;
} forges[] = {{"topp", topp_offset_far, "topp_offsets"},
              {"topp", topp_offset_back, "topp_offsets"},
              {"topp", topp_offset_moved, "topp_|tail_mass"},
              {"topp", topp_offset_first, "topp_offsets"},
              {"topp", topp_id, "topp_ids"},
              {"topp", topp_twice, "topp_|target_rank|always"},
              {"topp", topp_lp, "topp_logprobs|tail_mass"},
              {"topp", topp_lp_nan, "topp_logprobs"},
              {"topp", always_lp, "always_logprobs"},
              {"topp packed, q8", topp_packed, "topp_ids"},
              {"topp packed, q8", topp_padding, "bits after the last id"},
              {"topp packed, q8", topp_q8_free, "topp_logprobs"},
              {"topp packed, q8", topp_q8_range, "topp_logprobs"},
              {"sample", draw_offset, "draw_offsets"},
              {"sample", draw_offset_moved, "draw_|tail_mass"},
              {"sample", draw_id, "draw_ids"},
              {"sample", draw_id_range, "draw_ids"},
              {"sample", draw_counted, "draw_counts"},
              {"sample", draw_counted_back, "draw_counts"},
              {"sample", draw_lp, "draw_logprobs"},
              {"sample", draw_lp_moved, "draw_logprobs|tail_mass|target"},
              {"sample from p^0.5, packed, q8", proposal_inf, "proposal_logsumexp"},
              {"sample from p^0.5, packed, q8", proposal_low, "proposal_logsumexp"},
              {"topk+sample", draw_lp_moved, "draw_logprobs"},
              {"topk+sample", draw_counted, "draw_counts"},
              {"topk packed, q8", topk_packed, "topk_ids|target_rank|always|topk_logprobs"},
              {"topk packed, q8", topk_q8_order, "topk_logprobs"},
              {"full bf16", logits_nan, "logits"},
              {"full bf16", logits_one, "logsumexp|target_rank|entropy"},
              {"full bf16", logits_lse, "logsumexp"},
              {"full bf16", logits_entropy, "entropy"},
              {"full bf16", logits_rank, "target_rank"},
              {"full bf16", logits_target, "target_logprob"},
              {"hidden f32", hidden_inf, "hidden"}};

static void forge_one(const struct forge_case *c) {
    td_fixture f;
    td_error err;
    char *text;
    td_fixture_init(&f);
    td_fixture_set_mode(&f, mode_named(c->mode));
    must(td_fixture_run(&f, 1, NULL, &err), &err);
    td_manifest manifest;
    td_shard_file *file;
    forged s = {0};
    must(td_manifest_load(f.cfg.output.dir, TD_E_VERIFY, &manifest, &err), &err);
    char *path = td_shard_path(f.cfg.output.dir, 0);
    must(td_shard_file_open(path, &manifest.spec, TD_E_VERIFY, NULL, &file, &err), &err);
    s.layout = file->layout;
    s.header = file->header_size_bytes;
    td_shard_file_close(file);
    s.data = td_fixture_read(f.cfg.output.dir, "shard-000000.safetensors", &s.n);
    for (int sealed_only = 1; sealed_only >= 0; sealed_only--) {
        if (!sealed_only)
            c->forge(&s);
        seal(&s);
        int fd = open(path, O_WRONLY | O_TRUNC);
        cr_assert(fd >= 0 && write(fd, s.data, s.n) == (ssize_t)s.n);
        close(fd);
        td_status rc = verify_text(f.cfg.output.dir, &text);
        /* sealing alone changes nothing: what follows fails for its own reason */
        cr_assert_eq(rc, sealed_only ? TD_OK : TD_E_VERIFY, "%s, %s: %s", c->mode, c->words, text);
        if (!sealed_only) {
            cr_assert(names_one(text, c->words), "%s, %s: %s", c->mode, c->words, text);
            cr_assert_not(strstr(text, "damaged"), "%s", text);
        }
        free(text);
        FILE *sink = fopen("/dev/null", "w"); /* inspect must survive it, whatever it shows */
        td_inspect_options opt = {.sample = -1, .n_positions = 50, .n_candidates = 9};
        td_inspect(f.cfg.output.dir, &opt, sink, &err);
        fclose(sink);
    }
    free(s.data);
    free(path);
    td_manifest_free(&manifest);
    td_fixture_free(&f);
}

Test(modes, meaning_is_checked_behind_the_hashes) {
    for (size_t i = 0; i < TD_ARRAY_LEN(forges); i++)
        forge_one(&forges[i]);
}

/* A shard whose own words on how to read it are not the manifest's. */
Test(modes, a_shard_of_another_spec_is_refused) {
    td_fixture f;
    td_error err;
    char *text;
    size_t n;
    td_fixture_init(&f);
    td_fixture_set_mode(&f, mode_named("topp"));
    must(td_fixture_run(&f, 1, NULL, &err), &err);
    char *path = td_asprintf("%s/shard-000000.safetensors", f.cfg.output.dir);
    char *data = td_fixture_read(f.cfg.output.dir, "shard-000000.safetensors", &n);
    char *at = memmem(data, n, "\\\"top_p\\\":0.5", 12);
    cr_assert(at, "the metadata has no capture spec");
    at[11] = '6';
    forged s = {.data = data, .n = n};
    uint64_t header, h;
    memcpy(&header, data, 8);
    s.header = header + 8;
    cr_assert(td_layout_header_hash(data + 8, header, &h));
    put_hex(&s, "\"header_hash\":\"", 0, h);
    int fd = open(path, O_WRONLY | O_TRUNC);
    cr_assert(write(fd, data, n) == (ssize_t)n);
    close(fd);
    cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_E_VERIFY);
    cr_assert(strstr(text, "\"capture\" in its metadata"), "%s", text);
    free(text);
    free(data);
    free(path);
    td_fixture_free(&f);
}
