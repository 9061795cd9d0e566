/* The tokenizer on small tokenizer.json files written here. Expected values that are not plain from
 * the definition were produced with Hugging Face's `tokenizers` 0.22.2. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "test/common.h"
#include "tokenizer/internal.h"
#include "base/json.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "fixture.h"

#define LETTERS "{\"a\":0,\"b\":1,\"c\":2,\" \":3,\"x\":4}"

typedef struct text_case {
    const char *text, *ids;
} text_case;

static void check(const fixture_parts *p, bool special, const text_case *cases, size_t n) {
    td_tokenizer *tok = fixture_make(p);
    td_strbuf b = {0};
    for (size_t i = 0; i < n; i++) {
        const char *got = fixture_ids(tok, cases[i].text, strlen(cases[i].text), special, &b);
        cr_expect_str_eq(got, cases[i].ids, "\"%s\" gives [%s], expected [%s]", cases[i].text, got,
                         cases[i].ids);
    }
    td_strbuf_free(&b);
    td_tokenizer_free(tok);
}

#define CHECK(parts, special, ...)                                                                 \
    do {                                                                                           \
        static const text_case cases_[] = {__VA_ARGS__};                                           \
        check(parts, special, cases_, TD_ARRAY_LEN(cases_));                                       \
    } while (0)

/* --- BPE -------------------------------------------------------------------------------------- */

static uint64_t rng_state;
static uint32_t rng(uint32_t below) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % below;
}

enum { MAX_SYMBOLS = 40, MAX_TEXT = 400 };

/* The definition, slowly: ids are those of a vocabulary where merge r makes symbol 3 + r. */
static int reference_bpe(int (*merge)[2], int n_merges, int *sym, int n) {
    for (;;) {
        int best = n_merges, at = -1;
        for (int i = 0; i + 1 < n; i++)
            for (int r = 0; r < best; r++)
                if (merge[r][0] == sym[i] && merge[r][1] == sym[i + 1]) {
                    best = r;
                    at = i;
                }
        if (at < 0)
            return n;
        sym[at] = 3 + best;
        for (int i = at + 1; i + 1 < n; i++)
            sym[i] = sym[i + 1];
        n--;
    }
}

/* Random merges over a, b, c; texts on both sides of the length where the heap takes over. */
Test(tokenizer, bpe_is_lowest_rank_then_leftmost) {
    for (int round = 0; round < 40; round++) {
        rng_state = 77 + (uint64_t)round;
        char names[MAX_SYMBOLS][80] = {"a", "b", "c"};
        int merge[MAX_SYMBOLS][2], n = 3;
        td_strbuf vocab = {0}, merges = {0};
        td_strbuf_puts(&vocab, "{\"a\":0,\"b\":1,\"c\":2");
        td_strbuf_puts(&merges, "[");
        for (int tries = 0; tries < 200 && n < MAX_SYMBOLS; tries++) {
            int l = (int)rng((uint32_t)n), r = (int)rng((uint32_t)n);
            char name[80];
            bool known = strlen(names[l]) + strlen(names[r]) > 16;
            snprintf(name, sizeof name, "%.16s%.16s", names[l], names[r]);
            for (int i = 0; i < n; i++)
                known = known || strcmp(names[i], name) == 0;
            if (known)
                continue;
            memcpy(names[n], name, sizeof name);
            td_strbuf_printf(&vocab, ",\"%s\":%d", name, n);
            /* both ways of writing a merge */
            td_strbuf_printf(&merges, n % 2 ? "%s\"%s %s\"" : "%s[\"%s\",\"%s\"]", n > 3 ? "," : "",
                             names[l], names[r]);
            merge[n - 3][0] = l;
            merge[n - 3][1] = r;
            n++;
        }
        td_strbuf_puts(&vocab, "}");
        td_strbuf_puts(&merges, "]");
        td_tokenizer *tok =
            fixture_make(&(fixture_parts){.vocab = vocab.data, .merges = merges.data});
        cr_assert_gt(n, 20);
        for (int k = 0; k < 30; k++) {
            int len = 1 + (int)rng(k < 20 ? 60 : MAX_TEXT), sym[MAX_TEXT];
            char text[MAX_TEXT];
            for (int i = 0; i < len; i++) {
                sym[i] = (int)rng(3);
                text[i] = "abc"[sym[i]];
            }
            int n_want = reference_bpe(merge, n - 3, sym, len);
            td_strbuf want = {0}, got = {0};
            for (int i = 0; i < n_want; i++)
                td_strbuf_printf(&want, "%s%d", i ? " " : "", sym[i]);
            cr_assert_str_eq(fixture_ids(tok, text, (size_t)len, true, &got), want.data,
                             "round %d text %d: %.*s", round, k, len, text);
            td_strbuf_free(&want);
            td_strbuf_free(&got);
        }
        td_strbuf_free(&vocab);
        td_strbuf_free(&merges);
        td_tokenizer_free(tok);
    }
}

/* Doubling merges: n letters become the binary digits of n. */
Test(tokenizer, one_letter_two_hundred_thousand_times) {
    td_strbuf vocab = {0}, merges = {0}, name = {0}, half = {0};
    td_strbuf_puts(&vocab, "{\"a\":0");
    td_strbuf_puts(&name, "a");
    for (int i = 1; i <= 10; i++) {
        td_strbuf_clear(&half);
        td_strbuf_append(&half, name.data, name.len);
        td_strbuf_append(&name, half.data, half.len);
        td_strbuf_printf(&vocab, ",\"%s\":%d", name.data, i);
        td_strbuf_printf(&merges, "%s\"%s %s\"", i > 1 ? "," : "[", half.data, half.data);
    }
    td_strbuf_puts(&vocab, "}");
    td_strbuf_puts(&merges, "]");
    td_tokenizer *tok = fixture_make(&(fixture_parts){.vocab = vocab.data, .merges = merges.data});
    td_tok_scratch *s = NULL;
    td_error err = {0};
    cr_assert_eq(td_tok_scratch_create(tok, &s, &err), TD_OK);
    enum { N = 200000 };
    char *text = malloc(N);
    memset(text, 'a', N);
    td_ids ids = {0};
    OK(td_tokenizer_encode(tok, s, text, N, true, &ids, &err));
    size_t at = 0;
    for (int bit = 10; bit >= 0; bit--)
        for (int k = bit == 10 ? N / 1024 : (N >> bit) & 1; k > 0; k--, at++)
            cr_assert(at < ids.n && ids.ids[at] == bit, "token %zu", at);
    cr_expect_eq(ids.n, at);
    free(text);
    td_ids_free(&ids);
    td_tok_scratch_free(s);
    td_tokenizer_free(tok);
    td_strbuf_free(&vocab);
    td_strbuf_free(&merges);
    td_strbuf_free(&name);
    td_strbuf_free(&half);
}

/* Rank by rank gives what the heap gives, also where a merge ("ab") ranks below one that uses its
 * result. */
Test(tokenizer, huge_pieces_are_merged_alike) {
    static const char *const merges[] = {
        "[\"a a\",\"a b\",\"aa aa\",\"c ab\",\"ab ab\",\"b b\",\"bb bb\",\"aaaa c\",\"cab bb\"]",
        "[\"ab ab\",\"cab bb\",\"bb bb\",\"aa aa\",\"c ab\",\"a b\",\"b b\",\"aaaa c\",\"a a\"]",
    };
    enum { N = 3000, ROUNDS = 60 };
    for (int round = 0; round < ROUNDS; round++) {
        td_tokenizer *tok = fixture_make(&(fixture_parts){
            .vocab = "{\"a\":0,\"b\":1,\"c\":2,\"aa\":3,\"ab\":4,\"aaaa\":5,\"cab\":6,\"abab\":7,"
                     "\"bb\":8,\"bbbb\":9,\"aaaac\":10,\"cabbb\":11}",
            .merges = merges[round % 2]});
        td_tok_scratch *s[2] = {0};
        size_t n[2];
        td_error err = {0};
        for (int k = 0; k < 2; k++) {
            rng_state = 5 + (uint64_t)round;
            cr_assert_eq(td_tok_scratch_create(tok, &s[k], &err), TD_OK);
            cr_assert_eq(tok_reserve_symbols(s[k], N, &err), TD_OK);
            for (size_t i = 0; i < N; i++)
                s[k]->sym_id[i] = rng(10) < (uint32_t)round % 8 ? 0 : (int32_t)rng(3);
            n[k] = N;
            cr_assert_eq(k ? tok_bpe_merge_by_rank(&tok->model, s[k], &n[k], &err)
                           : tok_bpe_merge_by_heap(&tok->model, s[k], &n[k], &err),
                         TD_OK);
        }
        cr_expect_eq(n[0], n[1], "round %d", round);
        cr_expect_eq(memcmp(s[0]->sym_id, s[1]->sym_id, n[0] * sizeof *s[0]->sym_id), 0, "round %d",
                     round);
        td_tok_scratch_free(s[0]);
        td_tok_scratch_free(s[1]);
        td_tokenizer_free(tok);
    }
}

/* A text without pre-tokeniser is cut before U+2581 only while no merge could see it. */
Test(tokenizer, cutting_at_metaspace_changes_nothing) {
    const char *norm =
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}";
    const char *vocab =
        "{\"a\":0,\"b\":1,\"q\":2,\"\\u2581\":3,\"\\u2581a\":4,\"ab\":5,\"\\u2581\\u2581\":6,"
        "\"\\u2581ab\":7,\"q\\u2581\":8,\"b\\u2581\":9}";
    fixture_parts cut = {.normalizer = norm,
                         .vocab = vocab,
                         .merges = "[\"\\u2581 \\u2581\",\"\\u2581 a\",\"a b\",\"\\u2581a b\"]"};
    fixture_parts whole = cut, crossing = cut;
    whole.merges = "[\"\\u2581 \\u2581\",\"\\u2581 a\",\"a b\",\"\\u2581a b\",\"q \\u2581\"]";
    crossing.merges = "[\"b \\u2581\",\"\\u2581 \\u2581\",\"\\u2581 a\",\"a b\",\"\\u2581a b\"]";
    td_tokenizer *x = fixture_make(&cut), *y = fixture_make(&whole);
    for (int k = 0; k < 300; k++) {
        char text[300];
        td_strbuf p = {0}, r = {0};
        rng_state = 900 + (uint64_t)k;
        size_t n = 1 + rng(sizeof text - 1);
        for (size_t i = 0; i < n; i++)
            text[i] = "aab  b"[rng(6)];
        cr_assert_str_eq(fixture_ids(x, text, n, true, &p), fixture_ids(y, text, n, true, &r));
        td_strbuf_free(&p);
        td_strbuf_free(&r);
    }
    td_tokenizer_free(x);
    td_tokenizer_free(y);
    CHECK(&crossing, true, {"ab a", "0 9 0"}, {" ab", "7"});
}

Test(tokenizer, unknown_characters) {
    fixture_parts p = {.vocab = LETTERS, .model_options = ",\"unk_token\":\"x\""};
    CHECK(&p, true, {"aéébé", "0 4 4 1 4"});
    p.model_options = ",\"unk_token\":\"x\",\"fuse_unk\":true";
    CHECK(&p, true, {"aéébé", "0 4 1 4"}, {"éé", "4"});
    p.model_options = NULL;
    CHECK(&p, true, {"aéébé", "0 1"}, {"é", ""}, {"", ""});
    /* bytes when all of a character's are there, else unknown */
    p.vocab = "{\"a\":0,\"x\":1,\"<0xC3>\":2,\"<0xA9>\":3}";
    p.model_options = ",\"unk_token\":\"x\",\"byte_fallback\":true";
    CHECK(&p, true, {"aéa", "0 2 3 0"}, {"aß", "0 1"});
}

Test(tokenizer, ignore_merges_takes_a_known_piece_whole) {
    char *vocab = fixture_byte_vocab(",\"\\u0120ab\":256,\"ab\":257,\"ba\":258");
    fixture_parts p = {.vocab = vocab,
                       .merges = "[\"b a\"]",
                       .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}",
                       .model_options = ",\"ignore_merges\":true"};
    CHECK(&p, true, {"ab ab", "257 256"}, {"aba", "97 258"});
    p.model_options = ",\"ignore_merges\":false";
    CHECK(&p, true, {"ab ab", "97 98 32 97 98"});
    free(vocab);
}

/* --- bytes and characters --------------------------------------------------------------------- */

static td_tokenizer *byte_tokenizer(void) {
    char *vocab = fixture_byte_vocab(",\"ab\":256,\"\\u0120a\":257");
    fixture_parts p = {.vocab = vocab,
                       .merges = "[\"a b\",\"\\u0120 a\"]",
                       .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}",
                       .decoder = "{\"type\":\"ByteLevel\"}"};
    td_tokenizer *tok = fixture_make(&p);
    free(vocab);
    return tok;
}

static size_t put_utf8(uint32_t c, char *out) {
    if (c < 0x80)
        return out[0] = (char)c, 1;
    if (c < 0x800)
        return out[0] = (char)(0xc0 | c >> 6), out[1] = (char)(0x80 | (c & 63)), 2;
    if (c < 0x10000)
        return out[0] = (char)(0xe0 | c >> 12), out[1] = (char)(0x80 | (c >> 6 & 63)),
               out[2] = (char)(0x80 | (c & 63)), 3;
    return out[0] = (char)(0xf0 | c >> 18), out[1] = (char)(0x80 | (c >> 12 & 63)),
           out[2] = (char)(0x80 | (c >> 6 & 63)), out[3] = (char)(0x80 | (c & 63)), 4;
}

Test(tokenizer, any_text_comes_back) {
    td_tokenizer *tok = byte_tokenizer();
    td_tok_scratch *s = NULL;
    td_error err = {0};
    cr_assert_eq(td_tok_scratch_create(tok, &s, &err), TD_OK);
    for (int k = 0; k < 500; k++) {
        char text[4 * 200];
        size_t n = 0;
        rng_state = 5 + (uint64_t)k;
        for (uint32_t i = rng(200); i > 0; i--) {
            uint32_t top = (uint32_t[]){0x80, 3, 0x800, 0x10000, 0x110000}[rng(5)], c = rng(top);
            if (c < 0xd800 || c > 0xdfff)
                n += put_utf8(c, text + n);
        }
        td_ids ids = {0};
        td_strbuf back = {0};
        cr_assert_eq(td_tokenizer_encode(tok, s, text, n, true, &ids, &err), TD_OK);
        cr_assert_eq(td_tokenizer_decode(tok, ids.ids, ids.n, false, &back, &err), TD_OK);
        cr_assert(back.len == n && (n == 0 || memcmp(back.data, text, n) == 0), "text %d", k);
        td_ids_free(&ids);
        td_strbuf_free(&back);
    }
    td_tok_scratch_free(s);
    td_tokenizer_free(tok);
}

Test(tokenizer, nul_is_a_character) {
    td_tokenizer *tok = byte_tokenizer();
    td_strbuf b = {0};
    cr_expect_str_eq(fixture_ids(tok, "a\0b", 3, true, &b), "97 0 98");
    cr_expect_str_eq(fixture_ids(tok, "\0", 1, true, &b), "0");
    td_strbuf_free(&b);
    td_tokenizer_free(tok);
}

/* Python: bytes.decode(errors="replace") */
Test(tokenizer, invalid_utf8_becomes_replacement_characters) {
    static const struct {
        const char *bad, *good;
    } cases[] = {
        {"\xff\xfe", "\uFFFD\uFFFD"},
        {"a\xe2\x82", "a\uFFFD"},
        {"\xe2\x82z", "\uFFFDz"},
        {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xc0\xaf", "\uFFFD\uFFFD"},
        {"\xf0\x9f\x98z", "\uFFFDz"},
        {"\xf4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
        {"\x80q", "\uFFFDq"},
        {"12345678\xc3", "12345678\uFFFD"},
        {"\xe0\x9f\xbf", "\uFFFD\uFFFD\uFFFD"},
    };
    td_tokenizer *tok = byte_tokenizer();
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_strbuf x = {0}, y = {0};
        cr_expect_str_eq(fixture_ids(tok, cases[i].bad, strlen(cases[i].bad), true, &x),
                         fixture_ids(tok, cases[i].good, strlen(cases[i].good), true, &y),
                         "case %zu", i);
        td_strbuf_free(&x);
        td_strbuf_free(&y);
    }
    td_tokenizer_free(tok);
}

Test(tokenizer, byte_level_prefix_space) {
    char *vocab = fixture_byte_vocab("");
    fixture_parts p = {.vocab = vocab,
                       .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"};
    CHECK(&p, true, {"a", "32 97"}, {" a", "32 97"}, {"", ""});
    free(vocab);
}

/* --- normalisers ------------------------------------------------------------------------------ */

Test(tokenizer, normalizers) {
    fixture_parts p = {
        .vocab = "{\"a\":0,\"\\u00e9\":1,\"e\":2,\"\\u0301\":3,\"_\":4,\"b\":5,\"\\u030a\":6,"
                 "\"\\u0323\":7}"};
    p.normalizer = "{\"type\":\"NFC\"}";
    CHECK(&p, true, {"ae\u0301", "0 1"}, {"\u00e9", "1"}, {"_\u030a\u0323", "4 7 6"});
    p.normalizer =
        "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Strip\",\"strip_left\":true,"
        "\"strip_right\":true},{\"type\":\"Prepend\",\"prepend\":\"_\"},{\"type\":\"Replace\","
        "\"pattern\":{\"Regex\":\" +\"},\"content\":\"b\"}]}";
    CHECK(&p, true, {"\u3000a  a \n", "4 0 5 0"}, {"  ", ""}, {"", ""});
    p.normalizer = "{\"type\":\"Strip\",\"strip_left\":false,\"strip_right\":true}";
    p.vocab = LETTERS;
    CHECK(&p, true, {" a ", "3 0"});
}

/* --- added tokens ----------------------------------------------------------------------------- */

#define ADDED(id, content, flag)                                                                   \
    "{\"id\":" id ",\"content\":\"" content "\",\"single_word\":false,\"lstrip\":false,"           \
    "\"rstrip\":false,\"normalized\":false,\"special\":true" flag "}"

Test(tokenizer, added_tokens) {
    fixture_parts p = {
        .vocab = LETTERS,
        .added = "[" ADDED("5", "<t>", "") "," ADDED("6", "<tt>", ",\"lstrip\":true") "," ADDED(
            "7", "<r>", ",\"rstrip\":true") "," ADDED("8", "wd",
                                                      ",\"single_word\":true") "," ADDED("9",
                                                                                         "<t><t>",
                                                                                         "") "]"};
    CHECK(&p, false, {"a<t><tt>b", "0 5 6 1"}, {"a  <tt> b", "0 6 3 1"}, {"a <r>  b", "0 3 7 1"},
          {"xwd wd wdx", "4 3 8 3 4"}, {"wd", "8"}, {"<t><t><t>", "9 5"}, {"<t", ""},
          {"a <r> <tt> c", "0 3 7 6 3 2"});
}

Test(tokenizer, added_tokens_of_the_normalised_text) {
    fixture_parts p = {
        .vocab = "{\"_\":0,\"a\":1}",
        .normalizer = "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"_\"}",
        .added = "[" ADDED("2", "a a", ",\"normalized\":true") "," ADDED("3", "_a", "") "]"};
    CHECK(&p, false, {"a_a", "1 3"}, {"a a", "2"}, {"aa a", "1 2"}, {"a  a", "1 0 0 1"});
}

Test(tokenizer, added_ids_continue_the_vocabulary) {
    /* the file says 10, 12, 1; HF numbers on from the vocabulary, and knows "b" */
    fixture_parts p = {.vocab = LETTERS,
                       .added = "[" ADDED("10", "<p>", "") "," ADDED("12", "<q>", "") "," ADDED(
                           "1", "b", "") "," ADDED("7", "", "") "]"};
    CHECK(&p, true, {"a<p><q>b", "0 5 6 1"});
    td_tokenizer *tok = fixture_make(&p);
    cr_expect_eq(td_tokenizer_n_vocab(tok), 7);
    td_tokenizer_free(tok);
}

/* --- around the text -------------------------------------------------------------------------- */

#define TEMPLATE(name, id)                                                                         \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"" name               \
    "\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"SpecialToken\":{\"id\":"    \
    "\"" name "\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"" name "\":{\"id\":\"" name   \
    "\",\"ids\":[" id "],\"tokens\":[\"" name "\"]}}}"

Test(tokenizer, templates) {
    fixture_parts p = {.vocab = LETTERS, .post_processor = TEMPLATE("c", "2")};
    CHECK(&p, true, {"a", "2 0 2"}, {"", "2 2"});
    CHECK(&p, false, {"a", "0"});
    p.post_processor = "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"}," TEMPLATE(
        "c", "2") "," TEMPLATE("x", "4,1") "]}";
    CHECK(&p, true, {"a", "4 1 2 0 2 4 1"});
}

Test(tokenizer, bos_and_eos) {
    static const struct {
        const char *config;
        int bos, eos;
    } cases[] = {
        {NULL, -1, -1},
        {"{\"bos_token\":\"a\",\"eos_token\":\"<e>\"}", 0, 5},
        {"{\"bos_token\":{\"content\":\"b\",\"lstrip\":false},\"eos_token\":null}", 1, -1},
        {"{\"eos_token\":\"nowhere\",\"model_max_length\":1000000000000000019884624838656}", -1,
         -1},
    };
    char *json =
        fixture_json(&(fixture_parts){.vocab = LETTERS, .added = "[" ADDED("5", "<e>", "") "]"});
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_tokenizer *tok = NULL;
        td_error err = {0};
        OK(fixture_load(json, cases[i].config, &tok, &err));
        cr_expect_eq(td_tokenizer_bos_id(tok), cases[i].bos, "case %zu", i);
        cr_expect_eq(td_tokenizer_eos_id(tok), cases[i].eos, "case %zu", i);
        cr_expect_eq(td_tokenizer_bytes_hash(tok), td_hash64(json, strlen(json)));
        td_tokenizer_free(tok);
    }
    free(json);
}

/* --- decoding --------------------------------------------------------------------------------- */

static void check_decode(const fixture_parts *p, const int32_t *ids, size_t n, bool skip,
                         const char *want) {
    td_tokenizer *tok = fixture_make(p);
    td_strbuf b = {0};
    td_error err = {0};
    td_strbuf_puts(&b, ">");
    OK(td_tokenizer_decode(tok, ids, n, skip, &b, &err));
    cr_expect_str_eq(b.data + 1, want);
    td_strbuf_free(&b);
    td_tokenizer_free(tok);
}

Test(tokenizer, decoders) {
    fixture_parts p = {.vocab = LETTERS, .added = "[" ADDED("5", "<t>", "") "]"};
    const int32_t plain[] = {0, 5, 3, 1, 99, -7};
    check_decode(&p, plain, 6, false, "a <t>   b");
    check_decode(&p, plain, 6, true, "a   b");
    p.vocab = "{\"\\u2581a\":0,\"<0xC3>\":1,\"<0xA9>\":2,\"b\\u2581\":3}";
    p.added = NULL;
    p.decoder =
        "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
        "\"\\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
        "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}]}";
    const int32_t bytes[] = {0, 1, 2, 1, 3, 0, 1, 2, 3};
    check_decode(&p, bytes, 9, false, "a\uFFFD\uFFFD\uFFFDb  aéb");
    p.decoder =
        "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"always\"}";
    const int32_t words[] = {0, 0, 3};
    check_decode(&p, words, 3, false, "a ab ");
    p.decoder = "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"never\"}";
    check_decode(&p, words, 3, false, " a ab ");
}

Test(tokenizer, token_text_fits_in_a_line) {
    char *vocab = fixture_byte_vocab(",\"\\u0120ab\":256,\"\\u010a\\u00c3\":257");
    td_tokenizer *tok =
        fixture_make(&(fixture_parts){.vocab = vocab,
                                      .pre_tokenizer = "{\"type\":\"ByteLevel\"}",
                                      .added = "[" ADDED("258", "<\u00e9>", "") "]"});
    static const struct {
        int32_t id;
        const char *want;
    } cases[] = {{256, " ab"},      {257, "\\n\\xC3"}, {0, "\\x00"}, {0xe9, "\\xE9"},
                 {258, "<\u00e9>"}, {9999, ""},        {-1, ""}};
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_strbuf b = {0};
        td_strbuf_puts(&b, "");
        td_tokenizer_token_text(tok, cases[i].id, &b);
        cr_expect_str_eq(b.data, cases[i].want, "id %d", cases[i].id);
        td_strbuf_free(&b);
    }
    td_tokenizer_free(tok);
    tok = fixture_make(&(fixture_parts){.vocab = "{\"\\u2581a\":0,\"<0xC3>\":1,\"<0x0A>\":2}"});
    td_strbuf b = {0};
    for (int32_t id = 0; id < 3; id++)
        td_tokenizer_token_text(tok, id, &b);
    cr_expect_str_eq(b.data, " a\\xC3\\n");
    td_strbuf_free(&b);
    td_tokenizer_free(tok);
    free(vocab);
}

/* A pattern that runs away stops with a message, and the ids of before stay. */
Test(tokenizer, a_failed_text_leaves_the_output_alone) {
    td_tokenizer *tok = fixture_make(
        &(fixture_parts){.vocab = LETTERS,
                         .pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?:a|aa)+"
                                          "[0-9]\"},\"behavior\":\"Isolated\"}"});
    td_tok_scratch *s = NULL;
    td_ids ids = {0};
    td_error err = {0};
    char text[400];
    memset(text, 'a', sizeof text);
    cr_assert_eq(td_tok_scratch_create(tok, &s, &err), TD_OK);
    cr_assert_eq(td_tokenizer_encode(tok, s, "aa1b", 4, true, &ids, &err), TD_OK);
    cr_expect_eq(td_tokenizer_encode(tok, s, text, sizeof text, true, &ids, &err), TD_E_DATA);
    cr_expect(strstr(err.text, "split pattern gave up"), "%s", err.text);
    cr_expect_eq(ids.n, 3);
    td_ids_free(&ids);
    td_tok_scratch_free(s);
    td_tokenizer_free(tok);
}

/* The demo teacher's own tokenizer: every demo text comes back, BOS in front. */
Test(tokenizer, demo_teacher) {
    td_tokenizer *tok = NULL;
    td_tok_scratch *s = NULL;
    td_error err = {0};
    char *line = NULL;
    size_t cap = 0, n_rows = 0;
    ssize_t n;
    OK(td_tokenizer_load(TD_SOURCE_DIR "/demo/teacher", &tok, &err));
    cr_assert_eq(td_tok_scratch_create(tok, &s, &err), TD_OK);
    cr_expect_geq(td_tokenizer_bos_id(tok), 0);
    cr_expect_geq(td_tokenizer_eos_id(tok), 0);
    FILE *in = fopen(TD_SOURCE_DIR "/demo/demo.jsonl", "r");
    cr_assert(in);
    while ((n = getline(&line, &cap, in)) > 0) {
        json_t *row = NULL;
        td_ids ids = {0};
        td_strbuf back = {0};
        cr_assert_eq(td_json_parse(line, (size_t)n, "demo", TD_E_DATA, &row, &err), TD_OK);
        const char *text = json_string_value(json_object_get(row, "text"));
        cr_assert_eq(td_tokenizer_encode(tok, s, text, strlen(text), true, &ids, &err), TD_OK);
        cr_assert_eq(ids.ids[0], td_tokenizer_bos_id(tok));
        cr_expect_lt(ids.n, 2 + strlen(text) * 2 / 3, "merges apply: %zu tokens of %zu bytes",
                     ids.n, strlen(text));
        cr_assert_eq(td_tokenizer_decode(tok, ids.ids, ids.n, true, &back, &err), TD_OK);
        cr_expect_str_eq(back.data, text);
        td_ids_free(&ids);
        td_strbuf_free(&back);
        json_decref(row);
        n_rows++;
    }
    cr_expect_gt(n_rows, 10);
    fclose(in);
    free(line);
    td_tok_scratch_free(s);
    td_tokenizer_free(tok);
}
