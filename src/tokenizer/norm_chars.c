/* Normalisers that look at one character at a time. */
#include "tokenizer/internal.h"
#include "base/strbuf.h"

enum { MAX_OUT = 3 };

static size_t keep_or_space(bool gone, bool space, uint32_t cp, uint32_t *out) {
    out[0] = space ? ' ' : cp;
    return !gone;
}

static size_t nmt(uint32_t c, uint32_t *out) {
    bool gone = (c >= 1 && c <= 8) || c == 0xb || (c >= 0xe && c <= 0x1f) || c == 0x7f ||
                c == 0x8f || c == 0x9f;
    bool space = c == 9 || c == 0xa || c == 0xc || c == 0xd || c == 0x1680 ||
                 (c >= 0x200b && c <= 0x200f) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                 c == 0xfeff || c == 0xfffd;
    return keep_or_space(gone, space, c, out);
}

static size_t bert_clean(uint32_t c, uint32_t *out) {
    return keep_or_space(c == 0 || c == 0xfffd || tok_is_bert_control(c), tok_is_space(c), c, out);
}

/* HF's list of CJK blocks, which leaves out the newer ones and begins one of them late. */
static size_t bert_chinese(uint32_t c, uint32_t *out) {
    bool chinese = (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) ||
                   (c >= 0x20000 && c <= 0x2a6df) || (c >= 0x2a700 && c <= 0x2b81f) ||
                   (c >= 0x2b920 && c <= 0x2ceaf) || (c >= 0xf900 && c <= 0xfaff) ||
                   (c >= 0x2f800 && c <= 0x2fa1f);
    out[0] = chinese ? ' ' : c;
    out[1] = c;
    out[2] = ' ';
    return chinese ? 3 : 1;
}

static size_t change(tok_norm_kind kind, uint32_t c, uint32_t *out) {
    out[0] = c;
    switch (kind) {
    case TOK_NORM_LOWERCASE:
        out[0] = tok_lowercase(c, &out[1]);
        return out[1] ? 2 : 1;
    case TOK_NORM_STRIP_ACCENTS:
        return !tok_is_mark(c);
    case TOK_NORM_BERT_ACCENTS:
        return !tok_is_bert_accent(c);
    case TOK_NORM_NMT:
        return nmt(c, out);
    case TOK_NORM_BERT_CLEAN:
        return bert_clean(c, out);
    case TOK_NORM_BERT_CHINESE:
        return bert_chinese(c, out);
    default:
        return 1;
    }
}

static void append(td_strbuf *out, uint32_t cp) {
    char c[4];
    td_strbuf_append(out, c, tok_utf8_put(cp, c));
}

void tok_norm_chars(tok_norm_kind kind, const char *text, size_t n, td_strbuf *out,
                    bool *first_gone) {
    size_t len;
    uint32_t to[MAX_OUT];
    *first_gone = false;
    for (size_t i = 0; i < n; i += len) {
        uint32_t cp = tok_utf8_get(text + i, n - i, &len);
        if (kind == TOK_NORM_BYTE_LEVEL) {
            for (size_t k = 0; k < len; k++)
                append(out, tok_byte_to_char((uint8_t)text[i + k]));
            continue;
        }
        size_t n_to = change(kind, cp, to);
        for (size_t k = 0; k < n_to; k++)
            append(out, to[k]);
        *first_gone = *first_gone || (i == 0 && n_to == 0);
    }
}
