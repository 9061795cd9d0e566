/* What the planner is told about a dataset: exact when small, near when large. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "suite.h"
#include "base/strbuf.h"

TestSuite(data_stats, .init = data_setup, .fini = data_teardown);

static td_dataset_stats stats_of(const td_tokenizer *tok) {
    td_dataset_stats st;
    td_error err;
    cr_assert_eq(td_dataset_stats_sample(&F.cfg, tok, &F.lim, &st, &err), TD_OK, "%s", err.text);
    return st;
}

Test(data_stats, statistics_of_a_small_file_are_exact) {
    fixture_text(&F, "a.txt", "0123456789\nabc\n\nx");
    F.cfg.data.max_length = 4;
    F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
    F.cfg.output.shard_samples = 1;
    td_dataset_stats st = stats_of(F.tok);
    cr_assert_eq(st.n_dataset_rows, 4);
    cr_assert_eq(st.n_samples, 6);
    cr_assert_eq(st.n_tokens, 14);
    cr_assert_eq(st.n_record_rows, 9);
    cr_assert_eq(st.max_tokens, 4);
    cr_assert_float_eq(st.n_pairs, 10 + 10 + 3 + 6 + 0 + 1, 1e-9);
    cr_assert_float_eq(st.n_pairs_window, 10 + 10 + 3 + 6 + 0 + 1, 1e-9);
    F.lim.window = 2; /* a token sees itself and one before */
    cr_assert_float_eq(stats_of(F.tok).n_pairs_window, 7 + 7 + 3 + 5 + 0 + 1, 1e-9);
    F.lim.window = 0;
    cr_assert_not(st.estimated);
    cr_assert_not(st.tokens_from_bytes);
    F.cfg.data.append_eos = true; /* nothing about tokens is known without a tokenizer */
    F.lim.eos_id = -1;
    st = stats_of(NULL);
    cr_assert(st.tokens_from_bytes);
    cr_assert_eq(st.n_tokens, 3 + 1 + 1 + 1 + 0 + 1 + 1 + 1);
}

Test(data_stats, statistics_of_a_large_file_are_near) {
    /* 20 MB of ragged rows, blank lines between some. */
    td_strbuf b = {0}, word = {0};
    uint64_t rnd = 3;
    double rows = 0, tokens = 0, pairs = 0;
    while (b.len < 20u << 20) {
        size_t n = test_random(&rnd) % 800;
        td_strbuf_clear(&word);
        for (size_t i = 0; i < n; i++)
            td_strbuf_append(&word, &"abcdefgh "[test_random(&rnd) % 9], 1);
        td_strbuf_printf(&b, "{\"text\": \"%s\"}\n", n ? word.data : "");
        if (n % 3 == 0) /* blank lines count as bytes, not as rows */
            td_strbuf_printf(&b, "%600s\n", "");
        rows++;
        tokens += (double)n;
        pairs += (double)(n * (n + 1) / 2);
    }
    fixture_file(&F, "a.jsonl", b.data, b.len);
    td_dataset_stats st = stats_of(F.tok);
    cr_assert(st.estimated);
    estimate_near("rows", st.n_dataset_rows, rows, 0.1);
    estimate_near("samples", st.n_samples, rows, 0.1);
    estimate_near("tokens", st.n_tokens, tokens, 0.1);
    estimate_near("longest", st.max_tokens, 800, 0.05);
    estimate_near("pairs", (int64_t)st.n_pairs, pairs, 0.1);
    F.cfg.data.max_samples = 1500;
    st = stats_of(F.tok);
    cr_assert_not(st.estimated);
    cr_assert_eq(st.n_dataset_rows, 1500);
    F.cfg.data.max_samples = 10000;
    st = stats_of(NULL);
    cr_assert(st.estimated && st.tokens_from_bytes);
    cr_assert_eq(st.n_dataset_rows, 10000);
    estimate_near("tokens of 10000", st.n_tokens, 10000 * tokens / rows / 4, 0.1);

    F.cfg.data.max_samples = 0;
    F.cfg.data.format = TD_FORMAT_TEXT;
    F.cfg.data.text_unit = TD_TEXT_FILE;
    F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
    st = stats_of(F.tok);
    cr_assert(st.estimated);
    estimate_near("tokens of the file", st.n_tokens, (double)b.len, 0.01);
    estimate_near("pairs of the file", (int64_t)st.n_pairs,
                  (double)b.len * (F.cfg.data.max_length + 1) / 2, 0.01);
    estimate_near("samples of the file", st.n_samples, (double)b.len / F.cfg.data.max_length, 0.01);
    td_strbuf_free(&b);
    td_strbuf_free(&word);
}
