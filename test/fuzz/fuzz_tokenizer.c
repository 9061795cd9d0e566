/* Random damage to tokenizer.json, and random text through what still loads.
 *
 * usage: fuzz_tokenizer [SEED [ROUNDS]]
 * Each round takes one of the small valid files below, damages it (bytes changed, removed, doubled,
 * stretches copied from the other files) and loads it. It must load or fail with TD_E_MODEL and a
 * message. What loads must encode and decode any bytes: ids stay below n_vocab, and the same text
 * gives the same ids twice (the second time from the cache). Sanitizers and the checks abort.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "mutate.h"
#include "test/common.h"
#include "base/log.h"
#include "tokenizer/tokenizer.h"
#include "base/memory.h"
#include "base/strbuf.h"

static const char *const seeds[] = {
    "{\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"special\":true,\"lstrip\":true},{\"id\":7,"
    "\"content\":\"a "
    "b\",\"normalized\":true,\"single_word\":true}],\"normalizer\":{\"type\":\"Sequence\","
    "\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},{\"type\":\"Replace\","
    "\"pattern\":{"
    "\"String\":\" "
    "\"},\"content\":\"\\u2581\"}]},\"pre_tokenizer\":null,\"post_processor\":{\"type\":"
    "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":"
    "\"A\"}}],"
    "\"special_tokens\":{\"<s>\":{\"ids\":[6]}}},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{"
    "\"type\":"
    "\"Replace\",\"pattern\":{\"String\":\"\\u2581\"},\"content\":\" "
    "\"},{\"type\":\"ByteFallback\"},{\"type\":"
    "\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "
    "\",\"start\":1,\"stop\":0}]},\"model\":{\"type\":\"BPE\","
    "\"unk_token\":\"x\",\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":{\"x\":0,\"\\u2581\":1,"
    "\"a\":2,\"b\":3,"
    "\"\\u2581a\":4,\"ab\":5,\"<0xC3>\":6,\"<0xA9>\":7},\"merges\":[\"\\u2581 a\",[\"a\",\"b\"]]}}",
    "{\"added_tokens\":[{\"id\":5,\"content\":\"<e>\",\"special\":true,\"rstrip\":true}],"
    "\"normalizer\":{\"type\":"
    "\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
    "\"pattern\":{"
    "\"Regex\":\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|"
    "\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":true,\"use_regex\":false}]},\"post_processor\":{\"type\":\"ByteLevel\"},"
    "\"decoder\":{"
    "\"type\":\"ByteLevel\"},\"model\":{\"ignore_merges\":true,\"vocab\":{\"\\u0120\":0,\"a\":1,"
    "\"b\":2,\"\\u00c3\":3,"
    "\"\\u0120a\":4},\"merges\":[[\"\\u0120\",\"a\"]]}}",
    "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
    "\"individual_digits\":true},"
    "{\"type\":\"WhitespaceSplit\"},{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_"
    "scheme\":\"first\","
    "\"split\":true},{\"type\":\"Split\",\"pattern\":{\"String\":\"b\"},\"behavior\":"
    "\"MergedWithPrevious\","
    "\"invert\":true}]},\"normalizer\":{\"type\":\"Strip\",\"strip_left\":true},\"decoder\":{"
    "\"type\":\"Metaspace\","
    "\"replacement\":\"_\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"_\":0,\"a\":1,\"b\":2,\"1\":3,"
    "\"aa\":4,\"aaaa\":5},"
    "\"merges\":[\"a a\",\"aa aa\"]}}",
    "{\"normalizer\":{\"type\":\"BertNormalizer\"},\"pre_tokenizer\":{\"type\":"
    "\"BertPreTokenizer\"},"
    "\"decoder\":{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":true},\"post_processor\":{"
    "\"type\":"
    "\"BertProcessing\",\"cls\":[\"a\",0],\"sep\":[\"b\",1]},\"model\":{\"type\":\"WordPiece\","
    "\"unk_"
    "token\":\"u\",\"max_input_chars_per_word\":9,\"vocab\":{\"a\":0,\"b\":1,\"##a\":2,\"u\":3}}}",
    "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKD\"},{\"type\":"
    "\"Precompiled\","
    "\"precompiled_charsmap\":\"DAAAAABAAABiYgCAYWEAgGEAYgA=\"},{\"type\":\"Nmt\"},{\"type\":"
    "\"StripAccents\"},{\"type\":\"Lowercase\"},{\"type\":\"ByteLevel\"}]},\"pre_tokenizer\":{"
    "\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Punctuation\"},{\"type\":\"FixedLength\","
    "\"length\":9}]},\"decoder\":{\"type\":\"CTC\",\"pad_token\":\"b\",\"word_delimiter_token\":"
    "\"a\"},\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"byte_fallback\":true,\"vocab\":[[\"u\",-"
    "9],["
    "\"a\",-1.5],[\"aa\",-2],[\"b\",-1],[\"<0xC3>\",-3],[\"<0xA9>\",-3]]}}",
    "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{"
    "\"type\":"
    "\"Digits\"},{\"type\":\"Whitespace\"},{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"|\"}]},"
    "\"decoder\":{\"type\":\"BPEDecoder\",\"suffix\":\"</"
    "w>\"},\"model\":{\"type\":\"BPE\",\"unk_token\":"
    "\"a\",\"continuing_subword_prefix\":\"#\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0,"
    "\"#a\":1,\"#a</w>\":2,\"a</w>\":3,\"aa</w>\":4,\"#aa\":5},\"merges\":[\"a #a</w>\",\"#a "
    "#a\"]}}",
};

static uint64_t state;
static size_t rng(size_t below) {
    return (size_t)(test_xorshift(&state) >> 11) % below;
}

enum { MAX_JSON = 8192, MAX_TEXT = 300 };

static size_t damage(char *buf) {
    const char *seed = seeds[rng(TD_ARRAY_LEN(seeds))];
    size_t n = strlen(seed);
    memcpy(buf, seed, n);
    for (size_t k = rng(4); k > 0 && n > 2; k--) {
        const char *other = seeds[rng(TD_ARRAY_LEN(seeds))];
        size_t at = rng(n), len = 1 + rng(TD_MIN(n - at, (size_t)40));
        size_t from = rng(strlen(other)), other_len = 1 + rng(60);
        other_len = TD_MIN(strlen(other) - from, other_len);
        switch (rng(5)) {
        case 0:
            buf[at] = (char)rng(256);
            break;
        case 1:
            buf[at] = "{}[]\",:\\0129-e.u"[rng(16)];
            break;
        case 2:
            n = cut_out(buf, n, at, len);
            break;
        case 3:
            n = put_in(buf, n, MAX_JSON, at, NULL, len);
            break;
        default:
            n = put_in(buf, n, MAX_JSON, at, other + from, other_len);
        }
    }
    return n;
}

static size_t random_text(char *buf) {
    static const char *const parts[] = {
        "a",    "b",  " ",        "<s>",         "<e>",          "a b",
        "aaaa", "1",  "\xc3\xa9", "_",           "\xe2\x96\x81", "e\xcc\x81",
        "\n",   "'s", "\xff",     "\xf0\x9f\x98"};
    size_t n = 0;
    for (size_t k = rng(40); k > 0 && n + 8 < MAX_TEXT; k--) {
        const char *p = parts[rng(TD_ARRAY_LEN(parts))];
        if (rng(20) == 0) {
            buf[n++] = (char)rng(256);
            continue;
        }
        memcpy(buf + n, p, strlen(p));
        n += strlen(p);
    }
    return n;
}

static void use(const td_tokenizer *tok) {
    td_tok_scratch *s = NULL;
    td_error err = {0};
    td_ids a = {0}, b = {0};
    td_strbuf text = {0};
    MUST(td_tok_scratch_create(tok, &s, &err) == TD_OK);
    for (int k = 0; k < 5; k++) {
        char in[MAX_TEXT];
        size_t n = random_text(in);
        bool special = rng(2);
        a.n = b.n = 0;
        td_strbuf_clear(&text);
        td_status rc = td_tokenizer_encode(tok, s, in, n, special, &a, &err);
        MUST(rc == TD_OK || rc == TD_E_DATA); /* a damaged pattern may run away */
        MUST(td_tokenizer_encode(tok, s, in, n, special, &b, &err) == rc);
        MUST(a.n == b.n && (a.n == 0 || memcmp(a.ids, b.ids, a.n * sizeof *a.ids) == 0));
        for (size_t i = 0; i < a.n; i++) {
            MUST(a.ids[i] >= 0 && a.ids[i] < td_tokenizer_n_vocab(tok));
            td_tokenizer_token_text(tok, a.ids[i], &text);
        }
        rc = td_tokenizer_decode(tok, a.ids, a.n, rng(2), &text, &err);
        MUST(rc == TD_OK || rc == TD_E_DATA);
    }
    td_ids_free(&a);
    td_ids_free(&b);
    td_strbuf_free(&text);
    td_tok_scratch_free(s);
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    long rounds = argc > 2 ? strtol(argv[2], NULL, 10) : 1000, n_loaded = 0;
    char json[MAX_JSON], *dir = test_temp_dir();
    td_log_set_level(TD_LOG_ERROR); /* ids moved: said for every second file here */
    for (long i = 0; i < rounds; i++) {
        td_tokenizer *tok = NULL;
        td_error err = {0};
        state = (seed * 1000003 + (uint64_t)i) * 0x9e3779b97f4a7c15u | 1;
        size_t n = damage(json);
        test_write_file(dir, "tokenizer.json", json, n);
        td_status rc = td_tokenizer_load(dir, &tok, &err);
        if (rc == TD_OK) {
            n_loaded++;
            use(tok);
        } else {
            MUST(rc == TD_E_MODEL && err.text[0] && !tok);
        }
        td_tokenizer_free(tok);
    }
    printf("fuzz_tokenizer: seed %llu, %ld files, %ld loaded\n", (unsigned long long)seed, rounds,
           n_loaded);
    /* Mutations that nothing survives would test the JSON parser only. */
    return n_loaded * 20 > rounds ? 0 : 1;
}
