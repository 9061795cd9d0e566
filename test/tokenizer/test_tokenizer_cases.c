/* The tokenizer against what Hugging Face gave for hard cases (test/fixtures/tokenizers: cases,
 * numbers and classes; made by tools/fixtures/make_tokenizer_cases.py and _classes.py), and the
 * hash that leaves truncation and padding out. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "test/common.h"
#include "tokenizer/internal.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "fixture.h"

#define FIXTURES TD_SOURCE_DIR "/test/fixtures/tokenizers/"

/* The next line of a file as JSON, and the line itself; NULL at the end. */
static json_t *next_row(FILE *in, char **line, size_t *cap) {
    json_t *row = NULL;
    td_error err = {0};
    ssize_t n = getline(line, cap, in);
    if (n > 0)
        OK(td_json_parse(*line, (size_t)n, "a fixture", TD_E_DATA, &row, &err));
    return row;
}

static FILE *open_fixture(const char *name) {
    char *path = td_asprintf("%s%s", FIXTURES, name);
    FILE *in = fopen(path, "r");
    cr_assert(in, "%s", path);
    free(path);
    return in;
}

/* --- ids -------------------------------------------------------------------------------------- */

static void join(const json_t *ids, td_strbuf *out) {
    td_strbuf_clear(out);
    td_strbuf_puts(out, "");
    for (size_t i = 0; i < json_array_size(ids); i++)
        td_strbuf_printf(out, "%s%d", i ? " " : "",
                         (int)json_integer_value(json_array_get(ids, i)));
}

/* The tokenizer as the line has it: to print it anew would change its numbers. */
static char *tokenizer_text(const char *line) {
    tok_text whole = {line, strlen(line)}, value;
    cr_assert(tok_text_member(whole, "tokenizer", &value));
    return td_strndup(value.p, value.n);
}

Test(tokenizer_cases, ids_are_those_of_the_reference) {
    FILE *in = open_fixture("cases.jsonl");
    char *line = NULL;
    size_t cap = 0, n_texts = 0, n_ties = 0;
    int n_bad = 0;
    td_strbuf want = {0}, got = {0};
    for (json_t *row; (row = next_row(in, &line, &cap)) != NULL; json_decref(row)) {
        const char *name = json_string_value(json_object_get(row, "name"));
        const json_t *texts = json_object_get(row, "texts"), *ids = json_object_get(row, "ids");
        char *json = tokenizer_text(line);
        td_tokenizer *tok = NULL;
        td_error err = {0};
        OK(fixture_load(json, NULL, &tok, &err));
        free(json);
        n_ties += strcmp(name, "ties") == 0;
        for (size_t i = 0; i < json_array_size(texts); i++, n_texts++) {
            const json_t *text = json_array_get(texts, i);
            join(json_array_get(ids, i), &want);
            fixture_ids(tok, json_string_value(text), json_string_length(text), false, &got);
            if (strcmp(want.data, got.data) == 0 || ++n_bad > 20)
                continue;
            fprintf(stderr, "%s \"%s\": got [%s], expected [%s]\n", name, json_string_value(text),
                    got.data, want.data);
        }
        td_tokenizer_free(tok);
    }
    cr_expect_eq(n_bad, 0, "%d of %zu texts differ", n_bad, n_texts);
    cr_expect_geq(n_texts, 2000);
    cr_expect_eq(n_ties, 12);
    td_strbuf_free(&want);
    td_strbuf_free(&got);
    free(line);
    fclose(in);
}

/* Where HF splits at every byte and fails beyond ASCII, nothing sensible can be said. */
Test(tokenizer_cases, an_added_token_that_becomes_nothing_is_refused) {
    char *json = fixture_json(&(fixture_parts){
        .vocab = "{\"a\":0}",
        .normalizer = "{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
        .added = "[{\"id\":1,\"content\":\" \",\"normalized\":true,\"special\":false}]"});
    td_tokenizer *tok = NULL;
    td_error err = {0};
    cr_expect_eq(fixture_load(json, NULL, &tok, &err), TD_E_MODEL);
    cr_expect(strstr(err.text, "leaves nothing of the token \" \" (id 1)"), "%s", err.text);
    free(json);
}

/* --- numbers ---------------------------------------------------------------------------------- */

Test(tokenizer_cases, numbers_are_read_as_serde_json_reads_them) {
    FILE *in = open_fixture("numbers.jsonl");
    char *line = NULL;
    size_t cap = 0, n = 0, n_not_nearest = 0;
    for (json_t *row; (row = next_row(in, &line, &cap)) != NULL; json_decref(row), n++) {
        const char *text = json_string_value(json_array_get(row, 0));
        double want = strtod(json_string_value(json_array_get(row, 1)), NULL);
        double got = tok_text_number((tok_text){text, strlen(text)});
        cr_expect(memcmp(&got, &want, sizeof got) == 0, "%s: %a, expected %a", text, got, want);
        n_not_nearest += strtod(text, NULL) != want;
    }
    cr_expect_geq(n, 250);
    cr_expect_geq(n_not_nearest, 20); /* else the fixture would not tell the two apart */
    free(line);
    fclose(in);
}

/* --- classes ---------------------------------------------------------------------------------- */

static td_tokenizer *load_folder(const char *tokenizer, const json_t *config,
                                 const json_t *model_config) {
    char *dir = test_temp_dir();
    const struct {
        const char *name;
        const json_t *v;
    } files[] = {{"tokenizer_config.json", config}, {"config.json", model_config}};
    td_tokenizer *tok = NULL;
    td_error err = {0};
    test_write_file(dir, "tokenizer.json", tokenizer, strlen(tokenizer));
    for (size_t i = 0; i < 2; i++) {
        char *text = json_is_object(files[i].v) ? json_dumps(files[i].v, 0) : NULL;
        if (text)
            test_write_file(dir, files[i].name, text, strlen(text));
        free(text);
    }
    OK(td_tokenizer_load(dir, &tok, &err));
    test_remove_tree(dir);
    return tok;
}

Test(tokenizer_cases, another_tokenizer_of_the_class_is_noted) {
    FILE *in = open_fixture("classes.jsonl");
    char *line = NULL;
    size_t cap = 0, n = 0, n_different = 0;
    int n_missed = 0, n_needless = 0;
    json_t *kinds = json_object();
    for (json_t *row; (row = next_row(in, &line, &cap)) != NULL; json_decref(row)) {
        const char *kind = json_string_value(json_object_get(row, "kind"));
        if (json_object_get(row, "tokenizer")) {
            char *text = tokenizer_text(line);
            json_object_set_new(kinds, kind, json_string(text));
            free(text);
            continue;
        }
        td_tokenizer *tok =
            load_folder(json_string_value(json_object_get(kinds, kind)),
                        json_object_get(row, "config"), json_object_get(row, "model_config"));
        bool differs = json_is_true(json_object_get(row, "differs"));
        const char *note = td_tokenizer_note(tok);
        if (differs && !note)
            n_missed++;
        if (!differs && note)
            n_needless++;
        if (differs && !note)
            fprintf(stderr, "missed: %s", line);
        n++;
        n_different += differs;
        td_tokenizer_free(tok);
    }
    cr_expect_geq(n, 1000);
    cr_expect_geq(n_different, 300);
    cr_expect_eq(n_missed, 0, "%d of %zu folders with another tokenizer are not noted", n_missed,
                 n_different);
    /* Two pipelines may be written differently and yet do the same. */
    cr_expect_leq(n_needless, (int)(n / 20), "%d of %zu notes are needless", n_needless, n);
    json_decref(kinds);
    free(line);
    fclose(in);
}

Test(tokenizer_cases, the_note_names_the_class_and_what_differs) {
    char *json = fixture_json(&(fixture_parts){
        .vocab = "{\"a\":0}", .normalizer = "{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"}"});
    td_tokenizer *tok = NULL;
    td_error err = {0};
    OK(fixture_load(json, "{\"tokenizer_class\":\"LlamaTokenizerFast\"}", &tok, &err));
    const char *note = td_tokenizer_note(tok);
    cr_assert(note);
    cr_expect(strstr(note, "a LlamaTokenizer of this folder"), "%s", note);
    cr_expect(strstr(note, "normalizer, pre_tokenizer"), "%s", note);
    cr_expect(strstr(note, "TokenizersBackend"), "%s", note);
    td_tokenizer_free(tok);
    tok = NULL;
    OK(fixture_load(json, "{\"tokenizer_class\":\"T5Tokenizer\"}", &tok, &err));
    cr_expect(strstr(td_tokenizer_note(tok), "a T5Tokenizer of this folder"));
    td_tokenizer_free(tok);
    free(json);
}

/* --- the hash --------------------------------------------------------------------------------- */

static uint64_t hash_of(const char *text) {
    uint64_t hash = 0;
    td_error err = {0};
    OK(td_tokenizer_text_hash(text, strlen(text), &hash, &err));
    return hash;
}

Test(tokenizer_cases, the_hash_leaves_truncation_and_padding_out) {
    static const char clean[] = "{\"version\": \"1.0\",\n \"truncation\": null, \"padding\": null,"
                                " \"model\": {\"truncation\": 3, \"a\": [\"}\\\"\", 1.5]} }\n";
    static const char *const same[] = {
        "{\"version\": \"1.0\",\n \"truncation\": {\"max_length\": 3, \"s\": \"}\\\"{\"}, "
        "\"padding\": null, \"model\": {\"truncation\": 3, \"a\": [\"}\\\"\", 1.5]} }\n",
        "{\"version\": \"1.0\",\n \"truncation\": {}, \"padding\": {\"strategy\": {\"Fixed\": [1, "
        "{}]}},"
        " \"model\": {\"truncation\": 3, \"a\": [\"}\\\"\", 1.5]} }\n",
    };
    static const char *const other[] = {
        /* inside another member, a blank more, another key */
        "{\"version\": \"1.0\",\n \"truncation\": null, \"padding\": null,"
        " \"model\": {\"truncation\": null, \"a\": [\"}\\\"\", 1.5]} }\n",
        "{\"version\": \"1.0\",\n \"truncation\":  null, \"padding\": null,"
        " \"model\": {\"truncation\": 3, \"a\": [\"}\\\"\", 1.5]} }\n",
        "{\"version\": \"1.1\",\n \"truncation\": null, \"padding\": null,"
        " \"model\": {\"truncation\": 3, \"a\": [\"}\\\"\", 1.5]} }\n",
    };
    cr_expect_eq(hash_of(clean), td_hash64(clean, strlen(clean)));
    for (size_t i = 0; i < TD_ARRAY_LEN(same); i++)
        cr_expect_eq(hash_of(same[i]), hash_of(clean), "%s", same[i]);
    for (size_t i = 0; i < TD_ARRAY_LEN(other); i++)
        cr_expect_neq(hash_of(other[i]), hash_of(clean), "%s", other[i]);
}

/* Texts that are no JSON, cut anywhere: the walk stays inside and ends. */
Test(tokenizer_cases, the_hash_of_broken_texts) {
    static const char text[] = "{\"truncation\": {\"a\": [\"\\\\\", {}]}, \"padding\" : \"x\\\"\"}";
    for (size_t n = 0; n <= sizeof text - 1; n++) {
        char *cut = malloc(n ? n : 1); /* its end is the end of the memory: a sanitizer sees more */
        cr_assert(cut);
        memcpy(cut, text, n);
        uint64_t hash = 0;
        td_error err = {0};
        OK(td_tokenizer_text_hash(cut, n, &hash, &err));
        free(cut);
    }
    cr_expect_eq(hash_of("[1,2"), td_hash64("[1,2", 4));
    cr_expect_eq(hash_of(""), td_hash64("", 0));
}

Test(tokenizer_cases, a_tokenizer_has_both_hashes) {
    td_tokenizer *tok = NULL;
    td_error err = {0};
    char *json = fixture_json(&(fixture_parts){.vocab = "{\"a\":0}"}); /* has a truncation block */
    OK(fixture_load(json, NULL, &tok, &err));
    cr_expect_eq(td_tokenizer_bytes_hash(tok), td_hash64(json, strlen(json)));
    cr_expect_eq(td_tokenizer_hash(tok), hash_of(json));
    cr_expect_neq(td_tokenizer_hash(tok), td_tokenizer_bytes_hash(tok));
    td_tokenizer_free(tok);
    free(json);
}
