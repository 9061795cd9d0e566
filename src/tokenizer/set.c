/* Sets of code points. PCRE2 knows neither a class inside a class nor an intersection of classes,
 * so such a class is worked out once, at load, and handed to PCRE2 as a list of ranges. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { MAX_CODE_POINT = 0x10ffff };

td_status tok_set_init(tok_set *s, td_error *err) {
    s->bits = td_calloc(TOK_SET_WORDS, sizeof *s->bits);
    return s->bits ? TD_OK
                   : td_error_nomem(err, "a character class", TOK_SET_WORDS * sizeof *s->bits);
}

void tok_set_free(tok_set *s) {
    free(s->bits);
    s->bits = NULL;
}

void tok_set_complement(tok_set *s) {
    for (size_t i = 0; i < TOK_SET_WORDS; i++)
        s->bits[i] = ~s->bits[i];
}

void tok_set_unite(tok_set *s, const tok_set *other) {
    for (size_t i = 0; i < TOK_SET_WORDS; i++)
        s->bits[i] |= other->bits[i];
}

void tok_set_intersect(tok_set *s, const tok_set *other) {
    for (size_t i = 0; i < TOK_SET_WORDS; i++)
        s->bits[i] &= other->bits[i];
}

static bool has(const tok_set *s, uint32_t cp) {
    return s->bits[cp / 64] >> cp % 64 & 1;
}

/* All code points in order, as one text: what a class matches of it is the class. */
static char *every_character(size_t *n) {
    char *text = td_calloc(MAX_CODE_POINT + 1, 4);
    *n = 0;
    for (uint32_t cp = 0; text && cp <= MAX_CODE_POINT; cp++)
        if (cp < 0xd800 || cp > 0xdfff)
            *n += tok_utf8_put(cp, text + *n);
    return text;
}

static void add_matches(tok_set *s, pcre2_code *code, pcre2_match_data *data, const char *text,
                        size_t n) {
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(data);
    size_t len;
    for (size_t from = 0; from < n; from = at[1]) {
        if (pcre2_match(code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, data, NULL) < 0)
            return;
        for (size_t i = at[0]; i < at[1]; i += len) {
            uint32_t cp = tok_utf8_get(text + i, n - i, &len);
            s->bits[cp / 64] |= (uint64_t)1 << cp % 64;
        }
    }
}

td_status tok_set_add_class(tok_set *s, const td_strbuf *items, const char *where, td_error *err) {
    td_strbuf pattern = {0};
    size_t n;
    int code = 0;
    PCRE2_SIZE at;
    td_status rc = TD_OK;
    td_strbuf_puts(&pattern, "[");
    td_strbuf_append(&pattern, items->data, items->len);
    td_strbuf_puts(&pattern, "]+");
    char *text = every_character(&n);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_code *re = NULL;
    if (pattern.oom || items->oom || !text || !data) {
        rc = td_error_nomem(err, "a character class", pattern.len);
    } else {
        re = pcre2_compile((PCRE2_SPTR)pattern.data, pattern.len, PCRE2_UTF | PCRE2_UCP, &code, &at,
                           NULL);
        if (re) {
            (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);
            add_matches(s, re, data, text, n);
        } else {
            char why[160];
            pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
            rc = td_error_set(err, TD_E_MODEL, "%s: a character class does not compile: %s", where,
                              why);
        }
    }
    pcre2_code_free(re);
    pcre2_match_data_free(data);
    free(text);
    td_strbuf_free(&pattern);
    return rc;
}

void tok_set_put(const tok_set *s, td_strbuf *out) {
    for (uint32_t cp = 0; cp <= MAX_CODE_POINT;) {
        if (!has(s, cp)) {
            cp++;
            continue;
        }
        uint32_t first = cp;
        while (cp <= MAX_CODE_POINT && has(s, cp))
            cp++;
        /* Surrogates may not stand at the end of a range; no text has them. */
        uint32_t last = cp - 1 >= 0xd800 && cp - 1 <= 0xdfff ? 0xd7ff : cp - 1;
        if (first >= 0xd800 && first <= 0xdfff)
            first = 0xe000;
        if (first <= last)
            tok_put_ranges(out, &(tok_range){first, last}, 1);
    }
}
