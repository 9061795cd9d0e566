/* One row at a time: what becomes of fields, and what a person is told about a bad row. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suite.h"
#include "base/memory.h"
#include "base/strbuf.h"

TestSuite(data_rows, .init = data_setup, .fini = data_teardown);

/* The first shard of a JSONL file with this content. */
static td_shard *shard_of(const char *content, size_t n) {
    td_error err;
    td_source *s = NULL;
    td_shard *h = NULL;
    fixture_file(&F, "a.jsonl", content, n);
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_OK, "%s", err.text);
    cr_assert_eq(td_source_next(s, true, &h, &err), TD_OK, "%s", err.text);
    td_source_close(s);
    return h;
}

/* `ids` as text: bytes as themselves, BOS as ^, EOS as $; `mask` as 0 and 1. */
static void expect_sample(const td_shard *h, int32_t i, const char *ids, const char *mask) {
    const td_sample *p = &h->samples[i];
    cr_assert_eq((size_t)p->n_tokens, strlen(ids), "sample %d has %d tokens", i, p->n_tokens);
    for (int32_t t = 0; t < p->n_tokens; t++) {
        int32_t id = h->ids[p->token_offset + t];
        int32_t want = ids[t] == '^' ? BYTE_BOS : ids[t] == '$' ? BYTE_EOS : (uint8_t)ids[t];
        cr_assert_eq(id, want, "sample %d token %d: %d", i, t, id);
        cr_assert_eq(h->loss_mask[p->token_offset + t], mask[t] - '0', "sample %d mask %d", i, t);
    }
}

Test(data_rows, prompt_and_completion) {
    static const char rows[] = "{\"p\":\"ab\",\"c\":\"xyz\"}\n"
                               "{\"p\":\"\",\"c\":\"x\"}\n"
                               "{\"p\":\"a\",\"c\":\"\"}\n"
                               "{\"p\":\"a\",\"c\":\"x</s>\"}\n";
    F.cfg.data.prompt_field = "p";
    F.cfg.data.completion_field = "c";
    F.cfg.data.separator = "> ";
    F.cfg.data.add_special_tokens = true;
    F.cfg.data.append_eos = true;
    td_shard *h = shard_of(rows, sizeof rows - 1);
    expect_sample(h, 0, "^ab> xyz$", "000001111");
    expect_sample(h, 1, "^> x$", "00011");
    expect_sample(h, 2, "^a> $", "00001");
    expect_sample(h, 3, "^a> x$", "000011"); /* ends with it already: not doubled */
    cr_assert_eq(h->n_rows, 4 + 2 + 1 + 2);
    td_shard_free(h);

    F.cfg.data.append_eos = false;
    F.cfg.data.add_special_tokens = false;
    F.cfg.data.separator = NULL;
    h = shard_of(rows, sizeof rows - 1);
    expect_sample(h, 0, "abxyz", "00111");
    expect_sample(h, 1, "x", "0"); /* a sample's first token is never a target */
    expect_sample(h, 2, "a", "0");
    td_shard_free(h);
}

Test(data_rows, text_with_eos) {
    static const char rows[] = "{\"text\":\"ab\"}\n{\"text\":\"\"}\n{\"text\":\"a\\u0000</s>\"}\n";
    F.cfg.data.append_eos = true;
    F.cfg.data.add_special_tokens = true;
    td_shard *h = shard_of(rows, sizeof rows - 1);
    expect_sample(h, 0, "^ab$", "0111");
    expect_sample(h, 1, "^$", "01");
    cr_assert_eq(h->samples[2].n_tokens, 4);
    cr_assert_eq(h->ids[h->samples[2].token_offset + 2], 0);
    td_shard_free(h);
    /* One id for both ends: an empty text still gets its end. */
    F.lim.eos_id = BYTE_BOS;
    h = shard_of(rows, sizeof rows - 1);
    expect_sample(h, 1, "^^", "01");
    td_shard_free(h);
}

Test(data_rows, ids_and_masks) {
    static const char rows[] = "{\"i\":[97,98,256],\"m\":[1,0,1]}\n"
                               "{\"i\":[],\"m\":[]}\n"
                               "{\"m\":[true,true,false],\"i\":[99,99,99]}\n";
    F.cfg.data.ids_field = "i";
    F.cfg.data.mask_field = "m";
    F.tok = (td_tokenizer_free(F.tok), NULL); /* none is needed */
    td_shard *h = shard_of(rows, sizeof rows - 1);
    expect_sample(h, 0, "ab^", "001");
    expect_sample(h, 1, "", "");
    expect_sample(h, 2, "ccc", "010");
    td_shard_free(h);
    F.cfg.data.mask_field = NULL;
    h = shard_of(rows, sizeof rows - 1);
    expect_sample(h, 0, "ab^", "011");
    td_shard_free(h);
}

Test(data_rows, ids_are_carried_with_each_sample) {
    static const char rows[] = "{\"text\":\"abcde\",\"id\":\"k\\u0000\\u00e9\"}\n"
                               "{\"text\":\"\",\"id\":-17}\n"
                               "{\"id\":\"\",\"text\":\"x\"}\n";
    F.cfg.data.id_field = "id";
    F.cfg.data.max_length = 3;
    F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
    td_shard *h = shard_of(rows, sizeof rows - 1);
    static const struct {
        const char *s;
        int64_t n;
    } ids[] = {{"k\0\xc3\xa9", 4}, {"k\0\xc3\xa9", 4}, {"-17", 3}, {"", 0}};
    cr_assert_eq(h->n_samples, 4);
    cr_assert_eq(h->id_offsets[0], 0);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(h->id_offsets[i + 1] - h->id_offsets[i], ids[i].n);
        cr_assert_arr_eq(h->id_bytes + h->id_offsets[i], ids[i].s, (size_t)ids[i].n);
    }
    td_shard_free(h);
}

/* ---- bad rows ---- */

typedef struct {
    const char *row, *says;
} bad_case;

#define GOOD_ROW "{\"text\":\"x\",\"p\":\"x\",\"c\":\"x\",\"i\":[1,2],\"m\":[0,1],\"id\":7}\n"

static void expect_bad(const bad_case *c, size_t n_cases) {
    td_error err;
    for (size_t i = 0; i < n_cases; i++) {
        td_source *s = NULL;
        td_shard *h = NULL;
        char place[160];
        td_strbuf b = {0};
        td_strbuf_printf(&b, "%s\n%s\n%s", GOOD_ROW, c[i].row, GOOD_ROW);
        fixture_file(&F, "a.jsonl", b.data, b.len);
        snprintf(place, sizeof place, "%s:3: ", F.path);

        F.cfg.run.on_bad_sample = TD_BAD_FAIL;
        cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_OK, "%s", err.text);
        cr_assert_eq(td_source_next(s, true, &h, &err), TD_E_DATA, "accepted: %s", c[i].row);
        cr_assert(strstr(err.text, c[i].says), "%s: %s", c[i].row, err.text);
        cr_assert_eq(strncmp(err.text, place, strlen(place)), 0, "%s", err.text);
        td_source_close(s);

        F.cfg.run.on_bad_sample = TD_BAD_SKIP;
        cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_OK, "%s", err.text);
        cr_assert_eq(td_source_next(s, true, &h, &err), TD_OK, "%s", err.text);
        cr_assert_eq(h->n_bad_rows, 1);
        cr_assert_eq(h->n_samples, 2);
        cr_assert_eq(h->samples[1].row, 2);
        cr_assert_eq(h->row_end, 3);
        td_shard_free(h);
        td_source_close(s);
        td_strbuf_free(&b);
    }
}

Test(data_rows, bad_json) {
    static const bad_case cases[] = {
        {"{\"text\":\"x\"", "not valid JSON at column 11: "},
        {"{\"text\":\"x\"} x", "not valid JSON"},
        {"{\"text\":\"\xff\"}", "not valid JSON"},
        {"{\"text\":\"\\ud800\"}", "not valid JSON"},
        {"\xef\xbb\xbf{\"text\":\"x\"}", "not valid JSON"}, /* only the first line may have one */
        {"[\"text\"]", "must be a JSON object, but is an array"},
        {"\"text\"", "must be a JSON object, but is a string"},
    };
    expect_bad(cases, TD_ARRAY_LEN(cases));
}

Test(data_rows, bad_text_fields) {
    static const bad_case cases[] = {
        {"{\"txt\":\"x\",\"other\":1}", "has no \"text\" (data.text_field), did you mean \"txt\"?; "
                                        "row has keys: \"txt\", \"other\""},
        {"{}", "row has keys: none"},
        {"{\"text\":null}", "\"text\" (data.text_field) must be a string, but is null"},
        {"{\"text\":[\"x\"]}", "must be a string, but is an array"},
    };
    expect_bad(cases, TD_ARRAY_LEN(cases));
    F.cfg.data.id_field = "id";
    static const bad_case id_cases[] = {
        {"{\"text\":\"x\"}", "has no \"id\" (data.id_field)"},
        {"{\"text\":\"x\",\"id\":1.5}", "must be a string or an integer, but is a real number"},
    };
    expect_bad(id_cases, TD_ARRAY_LEN(id_cases));
}

Test(data_rows, bad_prompts) {
    F.cfg.data.prompt_field = "p";
    F.cfg.data.completion_field = "c";
    static const bad_case cases[] = {
        {"{\"p\":\"x\"}", "has no \"c\" (data.completion_field)"},
        {"{\"c\":\"x\"}", "has no \"p\" (data.prompt_field)"},
        {"{\"p\":\"x\",\"c\":3}", "\"c\" (data.completion_field) must be a string"},
    };
    expect_bad(cases, TD_ARRAY_LEN(cases));
}

Test(data_rows, bad_ids) {
    F.cfg.data.ids_field = "i";
    F.cfg.data.mask_field = "m";
    static const bad_case cases[] = {
        {"{\"i\":[1,258],\"m\":[0,1]}", "\"i\"[1] is 258, expected 0 to 257"},
        {"{\"i\":[-1],\"m\":[0]}", "\"i\"[0] is -1, expected 0 to 257"},
        {"{\"i\":[1,2.0],\"m\":[0,1]}", "\"i\"[1] must be an integer, but is a real number"},
        {"{\"i\":[1,true],\"m\":[0,1]}", "must be an integer, but is a boolean"},
        {"{\"i\":[1,2],\"m\":[0]}", "\"m\" has 1 elements, but \"i\" has 2"},
        {"{\"i\":[1,2],\"m\":[0,2]}", "\"m\"[1] must be 0, 1, true or false"},
        {"{\"i\":\"12\",\"m\":[0,2]}", "must be an array of integers, but is a string"},
        {"{\"i\":[1]}", "has no \"m\" (data.mask_field)"},
    };
    expect_bad(cases, TD_ARRAY_LEN(cases));
}

Test(data_rows, an_id_above_the_models_vocabulary) {
    F.lim.n_vocab = 'z';
    static const bad_case cases[] = {{"{\"text\":\"az\"}", "token 1 is id 122"}};
    expect_bad(cases, 1);
}

Test(data_rows, a_wrong_field_is_told_before_any_work) {
    td_error err;
    td_source *s = NULL;
    fixture_text(&F, "a.jsonl", "\n{\"prompt\":\"x\"}\n{\"text\":\"x\"}\n");
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "a.jsonl:2: "), "%s", err.text);
    cr_assert(strstr(err.text, "row has keys: \"prompt\""), "%s", err.text);
    /* Bad rows may be left out, a file without any good one is not what was meant. */
    F.cfg.run.on_bad_sample = TD_BAD_SKIP;
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_OK, "%s", err.text);
    td_source_close(s);
    fixture_text(&F, "a.jsonl", "{\"prompt\":\"x\"}\n{\"prompt\":\"y\"}\n");
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "a.jsonl:1: "), "%s", err.text);
}

Test(data_rows, very_many_and_very_long_keys) {
    td_strbuf b = {0};
    td_error err;
    td_source *s = NULL;
    td_strbuf_puts(&b, "{");
    for (int i = 0; i < 500; i++) {
        td_strbuf_printf(&b, "%s\"%d", i ? "," : "", i);
        for (int k = 0; k < 100; k++)
            td_strbuf_puts(&b, "\xc3\xa9");
        td_strbuf_puts(&b, "\":1");
    }
    td_strbuf_puts(&b, "}");
    fixture_file(&F, "a.jsonl", b.data, b.len);
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "and 488 more"), "%s", err.text);
    td_strbuf_free(&b);
}
