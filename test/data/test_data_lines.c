/* The line reader against a naive split, with reads of any size; and the demo's own files. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/lines.h"
#include "suite.h"
#include "base/strbuf.h"

TestSuite(data_lines, .init = data_setup, .fini = data_teardown);

/* Bytes with many line ends and runs without any. */
static char *random_bytes(uint64_t *rnd, size_t n) {
    char *p = malloc(n + 1);
    uint64_t often = 1 + test_random(rnd) % 50;
    for (size_t i = 0; i < n; i++) {
        uint64_t r = test_random(rnd);
        p[i] = r % often == 0 ? '\n' : r % 7 == 0 ? '\r' : (char)(r >> 32);
    }
    return p;
}

/* Length of the line at `at`, its LF included. */
static size_t line_at(const char *text, size_t n, size_t at) {
    const char *lf = memchr(text + at, '\n', n - at);
    return lf ? (size_t)(lf + 1 - (text + at)) : n - at;
}

Test(data_lines, agree_with_a_naive_split) {
    uint64_t rnd = 9;
    for (int k = 0; k < 200; k++) {
        size_t n = test_random(&rnd) % 3000, at = 0;
        char *text = random_bytes(&rnd, n);
        fixture_file(&F, "a", text, n);
        td_lines l;
        td_error err;
        cr_assert_eq(td_lines_open(&l, F.path, false, &err), TD_OK, "%s", err.text);
        l.read_bytes = 1 + test_random(&rnd) % 40;
        const char *line;
        size_t len;
        int64_t n_lines = 0;
        while (td_lines_next(&l, &line, &len, &err) == TD_OK && line) {
            size_t want = line_at(text, n, at);
            cr_assert_eq(len, want);
            cr_assert_arr_eq(line, text + at, want);
            at += want;
            cr_assert_eq(td_lines_offset(&l), at);
            cr_assert_eq(l.line_no, ++n_lines);
        }
        cr_assert_eq(at, n);

        for (int j = 0; j < 20; j++) {
            size_t offset = test_random(&rnd) % (n + 2), begin = 0;
            while (begin < offset && begin < n)
                begin += line_at(text, n, begin);
            cr_assert_eq(td_lines_seek(&l, offset, &err), TD_OK, "%s", err.text);
            cr_assert_eq(td_lines_next(&l, &line, &len, &err), TD_OK);
            if (begin >= n) {
                cr_assert_null(line);
            } else {
                cr_assert_eq(len, line_at(text, n, begin), "offset %zu", offset);
                cr_assert_arr_eq(line, text + begin, len);
            }
        }
        td_lines_close(&l);
        free(text);
    }
}

Test(data_lines, a_line_has_a_limit) {
    size_t n = 3 << 20;
    char *text = malloc(n);
    memset(text, 'x', n);
    text[9] = '\n';
    fixture_file(&F, "a", text, n);
    td_lines l;
    td_error err;
    const char *line;
    size_t len;
    cr_assert_eq(td_lines_open(&l, F.path, false, &err), TD_OK);
    l.max_bytes = 2 << 20;
    cr_assert_eq(td_lines_next(&l, &line, &len, &err), TD_OK);
    cr_assert_eq(td_lines_next(&l, &line, &len, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "starts at byte 10 (after line 1) is longer than 2097152 bytes"),
              "%s", err.text);
    td_lines_close(&l);
    cr_assert_eq(td_lines_open(&l, F.path, false, &err), TD_OK);
    cr_assert_eq(td_lines_next(&l, &line, &len, &err), TD_OK);
    cr_assert_eq(td_lines_next(&l, &line, &len, &err), TD_OK);
    cr_assert_eq(len, n - 10);
    td_lines_close(&l);
    free(text);
}

Test(data_lines, content_and_blanks) {
    cr_assert_eq(td_line_content("a\r\n", 3), 1);
    cr_assert_eq(td_line_content("a\n", 2), 1);
    cr_assert_eq(td_line_content("a\r", 2), 2);
    cr_assert_eq(td_line_content("\r\r\n", 3), 1);
    cr_assert_eq(td_line_content("", 0), 0);
    cr_assert(td_line_is_blank(" \t\r\n", 4));
    cr_assert(td_line_is_blank("", 0));
    cr_assert_not(td_line_is_blank(" \0\n", 3));
}

/* The embedded demo with its own tokenizer: decoding a row gives its text back. */
Test(data_lines, demo_rows) {
    td_tokenizer *tok = NULL;
    td_error err;
    cr_assert_eq(td_tokenizer_load(TD_SOURCE_DIR "/demo/teacher", &tok, &err), TD_OK, "%s",
                 err.text);
    F.cfg.data.path = TD_SOURCE_DIR "/demo/qa.jsonl";
    F.cfg.data.prompt_field = "prompt";
    F.cfg.data.completion_field = "completion";
    F.cfg.data.add_special_tokens = true;
    F.cfg.data.append_eos = true;
    F.lim = (td_source_limits){.n_vocab = td_tokenizer_n_vocab(tok),
                               .eos_id = td_tokenizer_eos_id(tok),
                               .batch_tokens = 8192};
    td_source *s = NULL;
    td_shard *h = NULL;
    cr_assert_eq(td_source_open(&F.cfg, tok, &F.lim, &s, &err), TD_OK, "%s", err.text);
    cr_assert_eq(td_source_next(s, true, &h, &err), TD_OK, "%s", err.text);
    const td_sample *p = &h->samples[0];
    const int32_t *ids = h->ids + p->token_offset;
    cr_assert_eq(ids[0], td_tokenizer_bos_id(tok));
    cr_assert_eq(ids[p->n_tokens - 1], td_tokenizer_eos_id(tok));
    int32_t border = p->n_tokens - p->n_rows;
    td_strbuf prompt = {0}, completion = {0};
    cr_assert_eq(td_tokenizer_decode(tok, ids, (size_t)border, true, &prompt, &err), TD_OK);
    cr_assert_eq(td_tokenizer_decode(tok, ids + border, (size_t)p->n_rows, true, &completion, &err),
                 TD_OK);
    cr_assert_str_eq(prompt.data, "In the beginning God created");
    cr_assert_str_eq(completion.data, " the heaven and the earth.");
    td_strbuf_free(&prompt);
    td_strbuf_free(&completion);
    td_shard_free(h);
    td_source_close(s);
    td_tokenizer_free(tok);
}
