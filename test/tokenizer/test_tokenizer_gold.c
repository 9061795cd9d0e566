/* The tokenizer against what Hugging Face's `tokenizers` gave: real tokenizers
 * (../shared/data/tokenizer_gold), and small ones of every kind (test/fixtures/tokenizers). */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>
#include "test/common.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/strbuf.h"

typedef struct family {
    char gold[48], folder[48];
    bool decodes; /* the gold has decoded texts and ids_special */
} family;

static bool same_ids(const json_t *want, const td_ids *got) {
    if (json_array_size(want) != got->n)
        return false;
    for (size_t i = 0; i < got->n; i++)
        if (json_integer_value(json_array_get(want, i)) != got->ids[i])
            return false;
    return true;
}

static void print_ids(const char *label, const td_ids *ids) {
    fprintf(stderr, "    %s:", label);
    for (size_t i = 0; i < ids->n && i < 60; i++)
        fprintf(stderr, " %d", ids->ids[i]);
    fputs("\n", stderr);
}

typedef struct checker {
    const family *f;
    td_tokenizer *tok;
    td_tok_scratch *s;
    int n_bad;
} checker;

static void check_encode(checker *c, const json_t *row, const char *key, bool special) {
    const json_t *text = json_object_get(row, "text");
    td_ids ids = {0};
    td_error err = {0};
    td_status rc = td_tokenizer_encode(c->tok, c->s, json_string_value(text),
                                       json_string_length(text), special, &ids, &err);
    if (rc != TD_OK || !same_ids(json_object_get(row, key), &ids)) {
        fprintf(stderr, "  %s %s: %s differs: %s %s\n", c->f->gold,
                json_string_value(json_object_get(row, "name")), key, json_string_value(text),
                err.text);
        print_ids("got", &ids);
        c->n_bad++;
    }
    td_ids_free(&ids);
}

static void check_decode(checker *c, const json_t *row, const char *key, bool skip) {
    const json_t *list = json_object_get(row, "ids"), *want = json_object_get(row, key);
    td_ids ids = {0};
    td_strbuf out = {0};
    td_error err = {0};
    ids.n = json_array_size(list);
    ids.ids = td_calloc(ids.n, sizeof *ids.ids);
    for (size_t i = 0; i < ids.n; i++)
        ids.ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    td_status rc = td_tokenizer_decode(c->tok, ids.ids, ids.n, skip, &out, &err);
    if (rc != TD_OK || out.len != json_string_length(want) ||
        (out.len && memcmp(out.data, json_string_value(want), out.len) != 0)) {
        fprintf(stderr, "  %s %s: %s differs: got %s %s\n", c->f->gold,
                json_string_value(json_object_get(row, "name")), key, out.data ? out.data : "",
                err.text);
        c->n_bad++;
    }
    td_ids_free(&ids);
    td_strbuf_free(&out);
}

/* Every row of the JSONL at `path` with the tokenizer of folder `dir`; frees both. */
static void check_file(const family *f, char *dir, char *path) {
    checker c = {.f = f};
    td_error err = {0};
    OK(td_tokenizer_load(dir, &c.tok, &err));
    OK(td_tok_scratch_create(c.tok, &c.s, &err));
    FILE *in = fopen(path, "r");
    cr_assert(in, "%s", path);
    char *line = NULL;
    size_t cap = 0, n_rows = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, in)) > 0) {
        json_t *row;
        OK(td_json_parse(line, (size_t)n, path, TD_E_DATA, &row, &err));
        check_encode(&c, row, "ids", false);
        if (f->decodes) {
            check_encode(&c, row, "ids_special", true);
            check_decode(&c, row, "decoded", false);
            check_decode(&c, row, "decoded_skip_special", true);
        }
        json_decref(row);
        n_rows++;
    }
    cr_expect_geq(n_rows, 58);
    cr_expect_eq(c.n_bad, 0, "%s: %d comparisons differ", f->gold, c.n_bad);
    fclose(in);
    free(line);
    td_tok_scratch_free(c.s);
    td_tokenizer_free(c.tok);
    free(path);
    free(dir);
}

ParameterizedTestParameters(tokenizer_gold, family) {
    static family families[] = {
        {"gpt2", "gpt2", true},
        {"llama3_1", "llama3_1", true},
        {"llama3_1-ignore-merges", "llama3_1", false},
        {"qwen3", "qwen3", true},
        {"minimind", "minimind", true},
        {"stories260K", "stories260K", true},
        {"mistral-v0.1", "mistral-v0.1", true},
        {"phi-3-mini", "phi-3-mini", true},
        {"gptneox-20b", "gptneox-20b", true},
        {"deepseek_v3", "deepseek_v3", true},
    };
    return cr_make_param_array(family, families, TD_ARRAY_LEN(families));
}

ParameterizedTest(family *f, tokenizer_gold, family) {
    if (!td_path_exists(TD_SHARED_DIR "/data"))
        cr_skip("SKIPPED: ../shared is absent");
    check_file(f, td_asprintf("%s/data/tokenizers/%s", TD_SHARED_DIR, f->folder),
               td_asprintf("%s/data/tokenizer_gold/%s.jsonl", TD_SHARED_DIR, f->gold));
}

ParameterizedTestParameters(tokenizer_gold, small) {
    static family families[] = {
        {"falcon", "falcon", true},
        {"kimi", "kimi", true},
        {"clip", "clip", true},
        {"prefixed-bpe", "prefixed-bpe", true},
        {"gemma", "gemma", true},
        {"punctuation-removed", "punctuation-removed", true},
        {"punctuation-next", "punctuation-next", true},
        {"byte-level-normalizer", "byte-level-normalizer", true},
        {"nested-classes", "nested-classes", true},
        {"misc-splits", "misc-splits", true},
        {"bert", "bert", true},
        {"bert-cased", "bert-cased", true},
        {"wordlevel", "wordlevel", true},
        {"unigram", "unigram", true},
        {"unigram-fallback", "unigram-fallback", true},
        {"unigram-charsmap", "unigram-charsmap", true},
    };
    return cr_make_param_array(family, families, TD_ARRAY_LEN(families));
}

ParameterizedTest(family *f, tokenizer_gold, small) {
    const char *root = TD_SOURCE_DIR "/test/fixtures/tokenizers";
    check_file(f, td_asprintf("%s/%s", root, f->folder),
               td_asprintf("%s/%s/gold.jsonl", root, f->gold));
}
