/* Settings to spec: what each mode takes, what a teacher cannot give, and the table of modes. */
#include <criterion/criterion.h>
#include <string.h>

#include "capture/capture.h"
#include "test/common.h"

static const td_capture_teacher teacher = {.n_vocab = 100, .n_hidden = 24, .name = "T"};

/* Every setting has a value, whatever the mode. */
static td_capture_settings all_set(td_capture_mode mode) {
    return (td_capture_settings){.mode = mode,
                                 .top_k = 20,
                                 .logprob_dtype = TD_F16,
                                 .temperatures = {2, 0.5},
                                 .n_temperatures = 2,
                                 .top_p = 0.9,
                                 .min_k = 3,
                                 .n_draws = 7,
                                 .proposal_power = 0.8,
                                 .dense_dtype = TD_BF16,
                                 .always_ids = {9, 1},
                                 .n_always = 2,
                                 .pack_ids = true};
}

static td_capture_spec resolve(const td_capture_settings *set, const td_capture_teacher *t) {
    td_capture_spec spec;
    td_error err;
    OK(td_capture_resolve(set, t, 77, &spec, &err));
    return spec;
}

Test(spec, a_mode_takes_what_it_uses_and_nothing_else) {
    /* Written out, not asked of the table: top_k, top_p, n_draws, dense, temperatures, packed. */
    static const struct {
        td_capture_mode mode;
        int32_t top_k, min_k, n_draws, n_always, n_hidden;
        double top_p;
        uint64_t seed;
        bool dense, packed;
    } want[] = {
        {TD_CAPTURE_TOPK, 20, 0, 0, 2, 0, 0, 0, false, true},
        {TD_CAPTURE_TOPP, 20, 3, 0, 2, 0, 0.9, 0, false, true},
        {TD_CAPTURE_SAMPLE, 0, 0, 7, 2, 0, 0, 77, false, true},
        {TD_CAPTURE_TOPK_SAMPLE, 20, 0, 7, 2, 0, 0, 77, false, true},
        {TD_CAPTURE_FULL, 0, 0, 0, 2, 0, 0, 0, true, false},
        {TD_CAPTURE_HIDDEN, 0, 0, 0, 0, 24, 0, 0, true, false},
    };
    cr_assert_eq(sizeof want / sizeof want[0], TD_CAPTURE_MODE_COUNT);
    for (int i = 0; i < TD_CAPTURE_MODE_COUNT; i++) {
        const char *name = td_capture_mode_name(want[i].mode);
        const td_capture_settings set = all_set(want[i].mode);
        const td_capture_spec s = resolve(&set, &teacher);
        td_capture_mode found;
        cr_assert(td_capture_mode_find(name, &found) && found == want[i].mode, "%s", name);
        cr_expect_eq(s.top_k, want[i].top_k, "%s", name);
        cr_expect_eq(s.min_k, want[i].min_k, "%s", name);
        cr_expect_eq(s.top_p, want[i].top_p, "%s", name);
        cr_expect_eq(s.n_draws, want[i].n_draws, "%s", name);
        cr_expect_eq(s.proposal_power, want[i].n_draws ? 0.8 : 0, "%s", name);
        cr_expect_eq(s.seed, want[i].seed, "%s", name);
        cr_expect_eq(s.n_always, want[i].n_always, "%s", name);
        cr_expect_eq(s.n_temperatures, want[i].n_always, "%s", name); /* two of each, or none */
        cr_expect_eq(s.n_hidden, want[i].n_hidden, "%s", name);
        cr_expect_eq(s.dense_dtype, want[i].dense ? TD_BF16 : TD_F32, "%s", name);
        cr_expect_eq(s.pack_ids, want[i].packed, "%s", name);
        cr_expect_eq(s.logprob_dtype, want[i].packed ? TD_F16 : TD_F32, "%s", name);
        cr_expect(s.n_vocab == 100 && s.n_valid == 100, "%s", name);
    }
    td_capture_mode untouched = TD_CAPTURE_FULL;
    cr_expect_not(td_capture_mode_find("top", &untouched));
    cr_expect_not(td_capture_mode_find(NULL, &untouched));
    cr_expect_eq(untouched, TD_CAPTURE_FULL);
}

Test(spec, padding_is_masked_where_there_are_probabilities) {
    td_capture_teacher padded = teacher;
    td_capture_settings set = all_set(TD_CAPTURE_TOPK);
    padded.n_valid = 90;
    cr_expect_eq(resolve(&set, &padded).n_valid, 90);
    set.mode = TD_CAPTURE_HIDDEN;
    cr_expect_eq(resolve(&set, &padded).n_valid, 100);
    padded.n_valid = 120; /* a tokenizer that knows more ids than the model */
    set.mode = TD_CAPTURE_FULL;
    cr_expect_eq(resolve(&set, &padded).n_valid, 100);
}

Test(spec, what_the_teacher_cannot_give_is_refused_by_key) {
    td_capture_settings set = all_set(TD_CAPTURE_TOPK);
    td_capture_spec spec = {.n_draws = 42};
    td_error err;
    set.top_k = 101;
    cr_assert_eq(td_capture_resolve(&set, &teacher, 0, &spec, &err), TD_E_CONFIG);
    cr_expect(strstr(err.text, "capture.top_k = 101") && strstr(err.text, "T has 100 tokens"), "%s",
              err.text);
    cr_expect_eq(spec.n_draws, 42, "the output was touched");
    set.mode = TD_CAPTURE_FULL; /* which has no top_k */
    OK(td_capture_resolve(&set, &teacher, 0, &spec, &err));
    set.always_ids[0] = 100; /* not the last of the list */
    cr_assert_eq(td_capture_resolve(&set, &teacher, 0, &spec, &err), TD_E_CONFIG);
    cr_expect(strstr(err.text, "capture.always_ids names id 100") && strstr(err.text, "0 to 99"),
              "%s", err.text);
    set.mode = TD_CAPTURE_HIDDEN; /* nor always_ids */
    OK(td_capture_resolve(&set, &teacher, 0, &spec, &err));
}

Test(spec, sizes_follow_from_it) {
    td_capture_spec s = {.mode = TD_CAPTURE_FULL, .n_vocab = 100, .dense_dtype = TD_BF16};
    cr_expect_eq(td_capture_dense_bytes(&s), 200);
    s.mode = TD_CAPTURE_HIDDEN;
    s.n_hidden = 24;
    s.dense_dtype = TD_F32;
    cr_expect_eq(td_capture_dense_bytes(&s), 96);
    s.mode = TD_CAPTURE_TOPK;
    cr_expect_eq(td_capture_dense_bytes(&s), 0);
    /* 2^b - 1 stands for "no id", so a vocabulary of 2^b - 1 still fits b bits and one of 2^b not. */
    s.n_vocab = 127;
    cr_expect_eq(td_capture_id_bits(&s), 7);
    s.n_vocab = 128;
    cr_expect_eq(td_capture_id_bits(&s), 8);
}
