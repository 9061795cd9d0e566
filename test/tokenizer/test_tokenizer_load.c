/* What the tokenizer refuses and how it says so, and how pieces are cut. Expected pieces were
 * produced with Hugging Face's `tokenizers` 0.22.2. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include "test/common.h"
#include "tokenizer/internal.h"
#include "fixture.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* --- refusals --------------------------------------------------------------------------------- */

Test(tokenizer_load, refuses_by_name) {
    static const struct {
        fixture_parts p;
        const char *says;
    } cases[] = {
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Uppercase\"}]}"},
         "normalizer: the normalizer \"Uppercase\" is not supported"},
        {{.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAA\"}"},
         "no character map in base64"},
        {{.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"BAAAAA==\"}"},
         "no character map in base64"},
        {{.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"A-==\"}"},
         "no character map in base64"},
        {{.normalizer = "{\"type\":\"Sequence\"}"}, "\"normalizers\" must be an array"},
        {{.normalizer = "{}"}, "the key \"type\" is missing"},
        {{.normalizer = "{\"type\":\"Prepend\"}"}, "\"prepend\""},
        {{.pre_tokenizer = "{\"type\":\"UnicodeScripts\"}"},
         "the pre-tokenizer \"UnicodeScripts\" is not supported"},
        {{.pre_tokenizer = "{\"type\":\"Punctuation\",\"behavior\":\"Lost\"}"}, "\"Lost\""},
        {{.pre_tokenizer = "{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"ab\"}"},
         "\"delimiter\" must be one character"},
        {{.pre_tokenizer = "{\"type\":\"FixedLength\",\"length\":0}"}, "\"length\" is 0"},
        {{.pre_tokenizer =
              "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Sideways\"}"},
         "\"Sideways\""},
        {{.pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{},\"behavior\":\"Isolated\"}"},
         "\"pattern\" must be"},
        {{.pre_tokenizer =
              "{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},\"behavior\":\"Isolated\"}"},
         "the pattern is empty"},
        {{.pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"__\"}"},
         "must be one character"},
        {{.pre_tokenizer =
              "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"often\"}"},
         "\"often\""},
        {{.post_processor = "{\"type\":\"PairProcessing\"}"},
         "the post-processor \"PairProcessing\" is not supported"},
        {{.post_processor = "{\"type\":\"BertProcessing\",\"cls\":[\"c\",0],\"sep\":\"s\"}"},
         "\"sep\" must be [\"token\", id]"},
        {{.post_processor = "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
                            "\"id\":\"<s>\"}}],\"special_tokens\":{}}"},
         "\"<s>\", which \"special_tokens\" does not define"},
        {{.post_processor =
              "{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}"},
         "no Sequence A"},
        {{.post_processor = "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":"
                            "\"A\"}},{\"SpecialToken\":{\"id\":\"s\"}}],"
                            "\"special_tokens\":{\"s\":{\"ids\":[7]}}}"},
         "adds the id 7, but the highest id is"},
        {{.decoder = "{\"type\":\"Rot13\"}"}, "the decoder \"Rot13\" is not supported"},
        {{.decoder = "{\"type\":\"CTC\",\"pad_token\":\"\"}"}, "\"word_delimiter_token\""},
        {{.added = "{}"}, "added_tokens: it must be an array"},
        {{.added = "[{\"id\":0}]"}, "\"content\""},
        {{.added = "[{\"id\":-1,\"content\":\"x\"}]"}, "\"id\" is -1"},
        {{.vocab = "[]"}, "\"vocab\" must be an object, but is an array"},
        {{.vocab = "{\"a\":-1}"}, "the id of \"a\" must be an integer from 0"},
        {{.vocab = "{\"a\":1e3}"}, "the id of \"a\" must be an integer from 0"},
        {{.vocab = "{\"a\":4000000000}"}, "the id of \"a\" must be an integer from 0"},
        {{.vocab = "{\"a\":0,\"b\":0}"}, "the id 0 is given to two tokens, \"a\" and \"b\""},
        {{.merges = "{}"}, "\"merges\" must be an array"},
        {{.vocab = "{\"a\":0}", .merges = "[\"a\"]"}, "\"merges\" entry 0 must be"},
        {{.vocab = "{\"a\":0}", .merges = "[[\"a\",\"a\",\"a\"]]"}, "\"merges\" entry 0 must be"},
        {{.vocab = "{\"a\":0}", .merges = "[\"a a\"]"},
         "entry 0 uses a token that is not in \"vocab\": \"a\" + \"a\""},
        {{.model_options = ",\"dropout\":0.1"}, "\"dropout\" makes tokenisation random"},
        {{.model_options = ",\"unk_token\":\"<unk>\""},
         "\"unk_token\" \"<unk>\" is not in \"vocab\""},
        {{.model_options = ",\"end_of_word_suffix\":1"}, "\"end_of_word_suffix\""},
        {{.model_options = ",\"type\":\"Trigram\""}, "the model type \"Trigram\" is not supported"},
        {{.model_options = ",\"type\":\"Unigram\""}, "\"vocab\" must be an array"},
        {{.vocab = "[[\"a\",0],[\"b\"]]", .model_options = ",\"type\":\"Unigram\""},
         "\"vocab\" entry 1 must be [\"token\", score]"},
        {{.vocab = "[[\"a\",0]]", .model_options = ",\"type\":\"Unigram\",\"unk_id\":1"},
         "\"unk_id\" is 1"},
        {{.model_options = ",\"fuse_unk\":3"}, "\"fuse_unk\" must be true or false"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_tokenizer *tok = NULL;
        td_error err = {0};
        char *json = fixture_json(&cases[i].p);
        cr_expect_eq(fixture_load(json, NULL, &tok, &err), TD_E_MODEL, "case %zu loads: %s", i,
                     json);
        cr_expect(strstr(err.text, cases[i].says), "case %zu: \"%s\" lacks \"%s\"", i, err.text,
                  cases[i].says);
        cr_expect(strstr(err.text, "tokenizer.json"), "case %zu names no file: %s", i, err.text);
        cr_expect_null(tok);
        td_tokenizer_free(tok);
        free(json);
    }
}

Test(tokenizer_load, files_that_are_none) {
    td_tokenizer *tok = NULL;
    td_error err = {0};
    cr_expect_eq(fixture_load(NULL, NULL, &tok, &err), TD_E_MODEL);
    cr_expect(strstr(err.text, "tokenizer.json") && strstr(err.text, "No such file"), "%s",
              err.text);
    cr_expect_eq(fixture_load("{", NULL, &tok, &err), TD_E_MODEL);
    cr_expect(strstr(err.text, "not valid JSON"), "%s", err.text);
    cr_expect_eq(fixture_load("[]", NULL, &tok, &err), TD_E_MODEL);
    cr_expect(strstr(err.text, "it must be an object"), "%s", err.text);
    cr_expect_eq(fixture_load("{}", NULL, &tok, &err), TD_E_MODEL);
    cr_expect(strstr(err.text, "model: it must be an object, but is nothing"), "%s", err.text);
    char *json = fixture_json(&(fixture_parts){.vocab = "{\"a\":0}"});
    cr_expect_eq(fixture_load(json, "{\"bos_token\":", &tok, &err), TD_E_MODEL);
    cr_expect(strstr(err.text, "tokenizer_config.json: not valid JSON"), "%s", err.text);
    free(json);
}

/* --- patterns --------------------------------------------------------------------------------- */

/* Matches of a pattern in a text, joined with "|"; or the error. */
static const char *matches(const char *regex, const char *text, td_strbuf *out) {
    tok_pattern p;
    td_tok_scratch *s = NULL;
    td_error err = {0};
    td_strbuf_clear(out);
    td_strbuf_puts(out, "");
    if (tok_pattern_compile(&p, regex, strlen(regex), "here", &err) != TD_OK) {
        td_strbuf_puts(out, err.text);
        return out->data;
    }
    cr_assert_eq(tok_scratch_new(NULL, false, &s, &err), TD_OK);
    size_t begin, end = 0, n = strlen(text);
    bool found;
    while (tok_pattern_next(&p, s, text, n, end, &found, &begin, &end, &err) == TD_OK && found) {
        td_strbuf_puts(out, out->len ? "|" : "");
        td_strbuf_append(out, text + begin, end - begin);
    }
    td_tok_scratch_free(s);
    tok_pattern_free(&p);
    return out->data;
}

Test(tokenizer_load, patterns_are_read_as_oniguruma_in_unicode_16) {
    static const struct {
        const char *regex, *text, *want;
    } cases[] = {
        {"\\p{L}+", "ab\u1c89 \U000323af,7", "ab\u1c89|\U000323af"}, /* letters of Unicode 15, 16 */
        {"[^\\p{L}]+", "ab\u1c89 7", " 7"},
        {"\\P{L}+", "ab\u1c89 7", " 7"},
        {"\\p{^L}+", "ab\u1c89 7", " 7"},
        {"\\s+",
         "a\u180eb\u3000\xc2\x85"
         "c",
         "\u3000\xc2\x85"}, /* U+180E is no space */
        {"\\S+", "a\u180eb c", "a\u180eb|c"},
        {"[\\S]+", "a\u180eb\u3000c", "a\u180eb|c"},
        {"[\\s\\d]+", "a 1\u0663b", " 1\u0663"},
        {"(?i:'s)", "'S'\u017f's", "'S|'\u017f|'s"},
        {"\\u0041\\x{42}\\x43", "ABC", "ABC"},
        {"a{2,3}", "aaaaa", "aaa|aa"},
        {"a.c", "a\rc a\nc", "a\rc"},
        {"^b", "a\nb", "b"},
        {"[a&b]+", "a&b", "a&b"},
        {"\\w+", "a\u00b2_-\u1c89", "a\u00b2_|\u1c89"},
        {"\\W+", "a-\u1c89", "-"},
        {"\\h+", "xa9Fg", "a9F"},
        {"[a[b]]+", "abc", "ab"},
        {"[a-f&&[^b]&&[^c]]+", "abcdefg", "a|def"},
        {"[^a[^b]]+", "abb", "bb"},
        {"[\\p{L}&&[^\\p{Han}]]+", "a\u4e2d\u0436b", "a|\u0436b"},
        {"\\p{Han}+", "\u4e2d\U000323afa", "\u4e2d\U000323af"},
        {"\\P{Han}+", "\u4e2da\u4e2d", "a"},
        {"\\p{Lowercase_Letter}\\p{lu}", "aB", "aB"},
        {"[\\P{L}]+", "a1-b", "1-"},
        {"[^\\P{L}b]+", "a1-bc", "a|c"},
        {"[a&&b]", "",
         "here: the pattern uses a class of no character, which is not supported, at \"[a&&b]\""},
        {"[a[:alpha:]]", "",
         "here: the pattern uses this character class, which is not supported, at \"[:alpha:]]\""},
        {"[a[b]", "",
         "here: the pattern uses a character class that is not closed, which is not supported, at "
         "\"[a[b]\""},
        {"\\p{Klingon}", "",
         "here: the pattern uses a property that is not known here, which is not supported, at "
         "\"\\p{Klingon}\""},
        {"a{2}+", "",
         "here: the pattern uses a quantified {n}, which is not supported, at \"{2}+\""},
        {"a{,3}", "",
         "here: the pattern uses a brace that is no {n}, {n,} or {n,m}, which is not supported, at "
         "\"{,3}\""},
        {"(?m:a)", "", "here: the pattern uses this group, which is not supported, at \"(?m:a)\""},
        {"(*ACCEPT)", "",
         "here: the pattern uses this group, which is not supported, at \"(*ACCEPT)\""},
        {"a*", "", "here: the pattern can match nothing at all, which is not supported"},
        {"(a", "", "here: the pattern does not compile: missing closing parenthesis"},
        {"\\", "",
         "here: the pattern uses a backslash at its end, which is not supported, at \"\\\""},
        {"", "", "here: the pattern is empty"},
    };
    td_strbuf b = {0};
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++)
        cr_expect_str_eq(matches(cases[i].regex, cases[i].text, &b), cases[i].want, "%s: %s",
                         cases[i].regex, b.data);
    td_strbuf_free(&b);
}

/* --- pieces ----------------------------------------------------------------------------------- */

static const char *pieces(const char *json, const char *text, bool at_start, td_strbuf *out) {
    tok_pres p = {0};
    td_tok_scratch *s = NULL;
    td_error err = {0};
    json_t *v = NULL;
    const char *base;
    const tok_spans *spans;
    cr_assert_eq(td_json_parse(json, strlen(json), "case", TD_E_MODEL, &v, &err), TD_OK, "%s",
                 json);
    OK(tok_pres_load(v, "case", &p, &err));
    cr_assert_eq(tok_scratch_new(NULL, false, &s, &err), TD_OK);
    cr_assert_eq(tok_pres_apply(&p, s, text, strlen(text), at_start, &base, &spans, &err), TD_OK);
    td_strbuf_clear(out);
    td_strbuf_puts(out, "");
    for (size_t i = 0; i < spans->n; i++) {
        td_strbuf_puts(out, i ? "|" : "");
        td_strbuf_append(out, base + spans->at[i].begin, spans->at[i].end - spans->at[i].begin);
    }
    td_tok_scratch_free(s);
    tok_pres_free(&p);
    json_decref(v);
    return out->data;
}

#define SPLIT(behavior, invert)                                                                    \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[0-9]\"},\"behavior\":\"" behavior               \
    "\",\"invert\":" invert "}"
#define META(rest) "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\"," rest "}"

Test(tokenizer_load, pre_tokenizers_cut_as_hugging_face_does) {
    static const struct {
        const char *json, *text, *want;
        bool inner; /* not at the start of the whole text */
    } cases[] = {
        {SPLIT("Removed", "false"), "12ab3c4", "ab|c", false},
        {SPLIT("Removed", "true"), "12ab3c4", "1|2|3|4", false},
        {SPLIT("Isolated", "false"), "12ab3c4", "1|2|ab|3|c|4", false},
        {SPLIT("Isolated", "true"), "12ab3c4", "1|2|ab|3|c|4", false},
        {SPLIT("MergedWithPrevious", "false"), "12ab3c4", "1|2|ab3|c4", false},
        {SPLIT("MergedWithPrevious", "true"), "12ab3c4", "1|2ab|3c|4", false},
        {SPLIT("MergedWithNext", "false"), "12ab3c4", "1|2ab|3c|4", false},
        {SPLIT("MergedWithNext", "true"), "12ab3c4", "1|2|ab3|c4", false},
        {SPLIT("Contiguous", "false"), "12ab3c4", "12|ab|3|c|4", false},
        {SPLIT("Contiguous", "true"), "12ab3c4", "12|ab|3|c|4", false},
        {META("\"prepend_scheme\":\"always\""), "Hi  you", "▁Hi|▁|▁you", false},
        {META("\"prepend_scheme\":\"always\",\"split\":false"), "Hi  you", "▁Hi▁▁you", false},
        {META("\"prepend_scheme\":\"always\""), " x", "▁x", true},
        {META("\"prepend_scheme\":\"first\""), "Hi  you", "▁Hi|▁|▁you", false},
        {META("\"prepend_scheme\":\"first\""), "Hi  you", "Hi|▁|▁you", true},
        {META("\"prepend_scheme\":\"never\""), "Hi  you", "Hi|▁|▁you", false},
        {META("\"add_prefix_space\":false"), "Hi", "Hi", false},
        {META("\"add_prefix_space\":true"), "Hi", "▁Hi", true},
        {"{\"type\":\"Digits\",\"individual_digits\":true}", "a12b", "a|1|2|b", false},
        {"{\"type\":\"Digits\",\"individual_digits\":false}", "a12b", "a|12|b", false},
        {"{\"type\":\"WhitespaceSplit\"}", " a\u3000b\n", "a|b", false},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"},{\"type\":\"ByteLevel\","
         "\"add_prefix_space\":false}]}",
         "it's 12 x", "it|'s| |12| x", false},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"ab\"},\"behavior\":\"Isolated\"}", "xababy",
         "x|ab|ab|y", false},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[]}", "a b", "a b", false},
        {"null", "a b", "a b", false},
        {SPLIT("Isolated", "false"), "", "", false},
    };
    td_strbuf b = {0};
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++)
        cr_expect_str_eq(pieces(cases[i].json, cases[i].text, !cases[i].inner, &b), cases[i].want,
                         "%s of \"%s\": %s", cases[i].json, cases[i].text, b.data);
    td_strbuf_free(&b);
}

/* PCRE2's own match limit would stop this one: the first alternative walks the whole run back. */
Test(tokenizer_load, a_long_run_is_no_runaway_pattern) {
    enum { N = 11000000 };
    char *text = malloc(N + 2);
    td_strbuf b = {0};
    memset(text, ' ', N);
    memcpy(text + N, "x", 2);
    const char *got = pieces("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s*[\\r\\n]+|"
                             "\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\"}",
                             text, true, &b);
    cr_expect_eq(b.len, N + 3);
    cr_expect(strcmp(got + N - 1, "| |x") == 0);
    free(text);
    td_strbuf_free(&b);
}
