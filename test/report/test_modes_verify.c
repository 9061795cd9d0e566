/* In every capture mode: wrong numbers are never written, and verify finds them where they stand.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/common.h"
#include "fixture.h"
#include "record/identity.h"
#include "record/shard_file.h"
#include "base/log.h"
#include "base/hash.h"
#include "base/memory.h"

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
        td_fixture_set_mode(&f, td_fixture_mode_named(spoils[i].mode));
        OK(td_fixture_open(&f, &o, &err));
        td_shard *s = td_fixture_shard(&f, 0, 4);
        OK(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err));
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
            OK(td_shard_writer_put(w, k, 0, &c, 0, &err));
            td_fixture_captured_free(&c);
        }
        OK(td_shard_writer_commit(w, &err));
        td_output_close(o);
        VERIFY_OK(&f, spoils[i].mode);
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
        OK(td_fixture_open(&f, &o, &err));
        td_shard *s = td_fixture_shard(&f, 0, 1);
        OK(td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err));
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
        OK(td_shard_writer_put(w, 0, 0, &c, 0, &err));
        OK(td_shard_writer_commit(w, &err));
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
        td_fixture_init(&f);
        td_fixture_set_mode(&f, td_fixture_mode_named(modes[i]));
        f.cfg.capture.mask_padded_vocab = true;
        f.id.tokenizer_n_vocab = 30;
        OK(td_fixture_run(&f, 2, NULL, &err));
        VERIFY_OK(&f, modes[i]);
        td_fixture_free(&f);
    }
}

/* --- meaning: numbers changed in the file and all hashes made right again --------------------- */

typedef void (*forge)(forged *s);

#define FORGE(name, type, id, index, value)                                                        \
    static void name(forged *s) {                                                                  \
        type *p = forged_tensor(s, id);                                                            \
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
    uint8_t *p = forged_tensor(s, TD_T_TOPP_IDS_PACKED);
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
    td_fixture_set_mode(&f, td_fixture_mode_named(c->mode));
    OK(td_fixture_run(&f, 1, NULL, &err));
    forged s = forged_read(&f);
    for (int sealed_only = 1; sealed_only >= 0; sealed_only--) {
        if (!sealed_only)
            c->forge(&s);
        forged_write(&s, &f);
        td_status rc = td_fixture_verify(f.cfg.output.dir, &text);
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
    td_fixture_set_mode(&f, td_fixture_mode_named("topp"));
    OK(td_fixture_run(&f, 1, NULL, &err));
    char *data = test_read_file(f.cfg.output.dir, "shard-000000.safetensors", &n);
    char *at = memmem(data, n, "\\\"top_p\\\":0.5", 12);
    cr_assert(at, "the metadata has no capture spec");
    at[11] = '6';
    uint64_t header, h;
    memcpy(&header, data, 8);
    cr_assert(td_layout_header_hash(data + 8, header, &h));
    cr_assert(td_fixture_put_hash(data + 8, header, "\"header_hash\":\"", 0, h));
    test_write_file(f.cfg.output.dir, "shard-000000.safetensors", data, n);
    cr_assert_eq(td_fixture_verify(f.cfg.output.dir, &text), TD_E_VERIFY);
    cr_assert(strstr(text, "\"capture\" in its metadata"), "%s", text);
    free(text);
    free(data);
    td_fixture_free(&f);
}
