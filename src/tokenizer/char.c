/* Sets and maps of characters, by the tables that Hugging Face's engine goes by. */
#include <string.h>
#include "tokenizer/tables.h"
#include "tokenizer/unicode.h"
#include "base/memory.h"
#include "base/strbuf.h"

bool tok_in_ranges(const tok_range *r, size_t n, uint32_t cp) {
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (cp > r[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && cp >= r[lo].first;
}

#define IN(table, cp) tok_in_ranges(table, TD_ARRAY_LEN(table), cp)

const tok_range *tok_property(const char *name, size_t *n) {
    for (size_t i = 0; i < TD_ARRAY_LEN(tok_properties); i++)
        if (strcmp(tok_properties[i].name, name) == 0) {
            *n = tok_properties[i].n;
            return tok_properties[i].range;
        }
    return NULL;
}

const tok_range *tok_word_ranges(size_t *n) {
    *n = TD_ARRAY_LEN(tok_word);
    return tok_word;
}

const tok_range *tok_punctuation_ranges(size_t *n) {
    *n = TD_ARRAY_LEN(tok_punctuation);
    return tok_punctuation;
}

const tok_range *tok_numeric_ranges(size_t *n) {
    *n = TD_ARRAY_LEN(tok_numeric);
    return tok_numeric;
}

bool tok_is_mark(uint32_t cp) {
    return IN(tok_mark, cp);
}

bool tok_is_bert_accent(uint32_t cp) {
    return IN(tok_bert_accent, cp);
}

bool tok_is_bert_control(uint32_t cp) {
    return IN(tok_bert_control, cp);
}

uint32_t tok_lowercase(uint32_t cp, uint32_t *second) {
    size_t lo = 0, hi = TD_ARRAY_LEN(tok_lower);
    *second = 0;
    if (cp == 0x130) {
        *second = 0x307;
        return 'i';
    }
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (cp > tok_lower[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == TD_ARRAY_LEN(tok_lower) || cp < tok_lower[lo].first ||
        (cp - tok_lower[lo].first) % tok_lower[lo].step)
        return cp;
    return (uint32_t)((int32_t)cp + tok_lower[lo].delta);
}

bool tok_is_inert(tok_form form, uint32_t cp) {
    /* The base of Hangul's final consonants is none itself, and composes with nothing; utf8proc
     * composes it with the syllable before it, and so loses it. */
    if (cp == 0x11a7)
        return true;
    switch (form) {
    case TOK_NFC:
        return IN(tok_nfc_inert, cp);
    case TOK_NFD:
        return IN(tok_nfd_inert, cp);
    case TOK_NFKC:
        return IN(tok_nfkc_inert, cp);
    case TOK_NFKD:
        return IN(tok_nfkd_inert, cp);
    }
    return false;
}

void tok_put_ranges(td_strbuf *out, const tok_range *r, size_t n) {
    for (size_t i = 0; i < n; i++)
        td_strbuf_printf(out, r[i].first == r[i].last ? "\\x{%X}" : "\\x{%X}-\\x{%X}",
                         (unsigned)r[i].first, (unsigned)r[i].last);
}
