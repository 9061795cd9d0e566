/* Decoders: from ids back to text.
 *
 * As in HF, a decoder maps a list of strings, one per token, to a list of strings; the steps run
 * one after the other and the result is joined. The list lives in one buffer with the end of each
 * string beside it.
 */
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* --- loading ---------------------------------------------------------------------------------- */

static td_status load_char(const json_t *v, const char *key, const char *where, tok_dec *d,
                           td_error *err) {
    size_t len;
    td_status rc = tok_json_dup(v, key, where, &d->content, &d->n_content, err);
    if (rc == TD_OK &&
        (d->n_content == 0 || (tok_utf8_get(d->content, d->n_content, &len), len != d->n_content)))
        rc = td_error_set(err, TD_E_MODEL, "%s: \"%s\" must be one character", where, key);
    return rc;
}

static td_status load_one(const json_t *v, const char *type, const char *where, tok_dec *d,
                          td_error *err) {
    static const struct {
        const char *name;
        tok_dec_kind kind;
    } kinds[] = {
        {"ByteLevel", TOK_DEC_BYTE_LEVEL},
        {"Replace", TOK_DEC_REPLACE},
        {"ByteFallback", TOK_DEC_BYTE_FALLBACK},
        {"Fuse", TOK_DEC_FUSE},
        {"Strip", TOK_DEC_STRIP},
        {"Metaspace", TOK_DEC_METASPACE},
        {"WordPiece", TOK_DEC_WORDPIECE},
        {"CTC", TOK_DEC_CTC},
        {"BPEDecoder", TOK_DEC_BPE},
    };
    td_status rc = TD_OK;
    size_t k = 0;
    while (k < TD_ARRAY_LEN(kinds) && strcmp(type, kinds[k].name) != 0)
        k++;
    if (k == TD_ARRAY_LEN(kinds))
        return td_error_set(err, TD_E_MODEL,
                            "%s: the decoder \"%s\" is not supported (supported: ByteLevel, "
                            "Replace, ByteFallback, Fuse, Strip, Metaspace, WordPiece, CTC, "
                            "BPEDecoder, Sequence)",
                            where, type);
    d->kind = kinds[k].kind;
    if (d->kind == TOK_DEC_REPLACE) {
        rc = tok_pattern_from_json(&d->pattern, v, where, err);
        if (rc == TD_OK)
            rc = tok_json_dup(v, "content", where, &d->content, &d->n_content, err);
    } else if (d->kind == TOK_DEC_STRIP) {
        int64_t start = 0, stop = 0;
        rc = load_char(v, "content", where, d, err);
        if (rc == TD_OK)
            rc = td_json_opt_int(v, "start", 0, INT32_MAX, where, TD_E_MODEL, &start, err);
        if (rc == TD_OK)
            rc = td_json_opt_int(v, "stop", 0, INT32_MAX, where, TD_E_MODEL, &stop, err);
        d->start = (size_t)start;
        d->stop = (size_t)stop;
    } else if (d->kind == TOK_DEC_WORDPIECE) {
        d->cleanup = true;
        rc = tok_json_dup(v, "prefix", where, &d->content, &d->n_content, err);
        if (rc == TD_OK)
            rc = td_json_opt_bool(v, "cleanup", where, TD_E_MODEL, &d->cleanup, err);
    } else if (d->kind == TOK_DEC_CTC) {
        d->cleanup = true;
        rc = tok_json_dup(v, "pad_token", where, &d->content, &d->n_content, err);
        if (rc == TD_OK)
            rc =
                tok_json_dup(v, "word_delimiter_token", where, &d->delimiter, &d->n_delimiter, err);
        if (rc == TD_OK)
            rc = td_json_opt_bool(v, "cleanup", where, TD_E_MODEL, &d->cleanup, err);
    } else if (d->kind == TOK_DEC_BPE) {
        rc = tok_json_dup(v, "suffix", where, &d->content, &d->n_content, err);
    } else if (d->kind == TOK_DEC_METASPACE) {
        const char *scheme = "always";
        bool legacy = true;
        rc = load_char(v, "replacement", where, d, err);
        if (rc == TD_OK)
            rc = td_json_opt_bool(v, "add_prefix_space", where, TD_E_MODEL, &legacy, err);
        if (rc == TD_OK && !legacy)
            scheme = "never";
        if (rc == TD_OK)
            rc = td_json_opt_str(v, "prepend_scheme", where, TD_E_MODEL, &scheme, err);
        d->prepend = strcmp(scheme, "never") == 0 ? TOK_PREPEND_NEVER : TOK_PREPEND_ALWAYS;
    }
    return rc;
}

static td_status load_step(const json_t *v, const char *type, const char *where, void *arg,
                           td_error *err) {
    tok_decs *out = arg;
    if (out->n == TOK_MAX_STEPS)
        return td_error_set(err, TD_E_MODEL, "%s: more than %d decoders", where, TOK_MAX_STEPS);
    return load_one(v, type, where, &out->step[out->n++], err);
}

td_status tok_decs_load(const json_t *v, const char *where, tok_decs *out, td_error *err) {
    if (!v || json_is_null(v))
        return TD_OK;
    out->present = true;
    return tok_each_step(v, "decoders", where, load_step, out, err);
}

void tok_decs_free(tok_decs *d) {
    for (size_t i = 0; i < d->n; i++) {
        free(d->step[i].content);
        free(d->step[i].delimiter);
        tok_pattern_free(&d->step[i].pattern);
    }
    *d = (tok_decs){0};
}

/* --- a list of strings ------------------------------------------------------------------------ */

typedef struct strings {
    td_strbuf text;
    size_t *end; /* of each string; it begins where the one before ends */
    size_t n, cap;
    bool oom;
} strings;

static void strings_close(strings *l) { /* ends the string that was appended to l->text */
    if (!td_grow((void **)&l->end, &l->cap, l->n + 1, sizeof *l->end))
        l->oom = true;
    else
        l->end[l->n++] = l->text.len;
}

static const char *strings_get(const strings *l, size_t i, size_t *n) {
    size_t begin = i ? l->end[i - 1] : 0;
    *n = l->end[i] - begin;
    return l->text.data ? l->text.data + begin : "";
}

static void strings_clear(strings *l) {
    td_strbuf_clear(&l->text);
    l->n = 0;
}

static void strings_free(strings *l) {
    td_strbuf_free(&l->text);
    free(l->end);
}

/* --- steps ------------------------------------------------------------------------------------ */

static void append_byte(td_strbuf *b, int byte) {
    char c = (char)byte;
    td_strbuf_append(b, &c, 1);
}

/* The bytes that a visible string stands for; a string with a foreign character as it is. */
static void append_visible(td_strbuf *b, const char *p, size_t n) {
    size_t mark = b->len, len;
    for (size_t i = 0; i < n; i += len) {
        int byte = tok_char_to_byte(tok_utf8_get(p + i, n - i, &len));
        if (byte < 0) {
            if (!b->oom)
                b->len = mark;
            td_strbuf_append(b, p, n);
            return;
        }
        append_byte(b, byte);
    }
}

static void byte_level(const strings *in, strings *out) {
    td_strbuf bytes = {0};
    for (size_t i = 0; i < in->n; i++) {
        size_t n;
        const char *p = strings_get(in, i, &n);
        append_visible(&bytes, p, n);
    }
    out->oom = out->oom || bytes.oom;
    if (bytes.len)
        tok_utf8_append_lossy(&out->text, bytes.data, bytes.len);
    strings_close(out);
    td_strbuf_free(&bytes);
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The byte of "<0xNN>", or -1. */
static int byte_token(const char *p, size_t n) {
    if (n != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>')
        return -1;
    int hi = hex_digit(p[3]), lo = hex_digit(p[4]);
    return hi < 0 || lo < 0 ? -1 : hi * 16 + lo;
}

static void flush_bytes(td_strbuf *bytes, strings *out) {
    if (bytes->len == 0)
        return;
    if (tok_utf8_valid_prefix(bytes->data, bytes->len) == bytes->len) {
        td_strbuf_append(&out->text, bytes->data, bytes->len);
        strings_close(out);
    } else {
        /* HF gives one U+FFFD per byte of a run that is no UTF-8 as a whole. */
        for (size_t i = 0; i < bytes->len; i++) {
            td_strbuf_puts(&out->text, "\xef\xbf\xbd");
            strings_close(out);
        }
    }
    td_strbuf_clear(bytes);
}

static void byte_fallback(const strings *in, strings *out) {
    td_strbuf bytes = {0};
    for (size_t i = 0; i < in->n; i++) {
        size_t n;
        const char *p = strings_get(in, i, &n);
        int byte = byte_token(p, n);
        if (byte >= 0) {
            append_byte(&bytes, byte);
            continue;
        }
        flush_bytes(&bytes, out);
        td_strbuf_append(&out->text, p, n);
        strings_close(out);
    }
    flush_bytes(&bytes, out);
    out->oom = out->oom || bytes.oom;
    td_strbuf_free(&bytes);
}

static void strip(const tok_dec *d, const char **p, size_t *n) {
    size_t len = d->n_content;
    for (size_t i = 0; i < d->start && *n >= len && memcmp(*p, d->content, len) == 0; i++) {
        *p += len;
        *n -= len;
    }
    for (size_t i = 0; i < d->stop && *n >= len && memcmp(*p + *n - len, d->content, len) == 0; i++)
        *n -= len;
}

static void metaspace(const tok_dec *d, bool first, const char *p, size_t n, td_strbuf *out) {
    for (size_t i = 0; i < n;) {
        if (n - i >= d->n_content && memcmp(p + i, d->content, d->n_content) == 0) {
            if (!first || d->prepend == TOK_PREPEND_NEVER)
                append_byte(out, ' ');
            i += d->n_content;
        } else {
            append_byte(out, p[i++]);
        }
    }
}

/* --- words: WordPiece, CTC, BPEDecoder -------------------------------------------------------- */

/* Replaces each `from` in *b, from the left; an empty one is nowhere. */
static void replace_all(td_strbuf *b, td_strbuf *spare, const char *from, size_t n_from,
                        const char *to, size_t n_to) {
    size_t at = 0;
    if (b->oom || b->len == 0 || n_from == 0 || !memmem(b->data, b->len, from, n_from))
        return;
    td_strbuf_clear(spare);
    for (const char *hit; (hit = memmem(b->data + at, b->len - at, from, n_from));) {
        size_t begin = (size_t)(hit - b->data);
        td_strbuf_append(spare, b->data + at, begin - at);
        td_strbuf_append(spare, to, n_to);
        at = begin + n_from;
    }
    td_strbuf_append(spare, b->data + at, b->len - at);
    td_strbuf t = *b;
    *b = *spare;
    *spare = t;
}

static void clean_up(td_strbuf *b, td_strbuf *spare) {
    static const char *const pairs[][2] = {
        {" .", "."},   {" ?", "?"},     {" !", "!"},     {" ,", ","},
        {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
        {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(pairs); i++)
        replace_all(b, spare, pairs[i][0], strlen(pairs[i][0]), pairs[i][1], strlen(pairs[i][1]));
}

static bool same_as_before(const strings *in, size_t i) {
    size_t n, n_before;
    const char *p = strings_get(in, i, &n);
    const char *before = i ? strings_get(in, i - 1, &n_before) : NULL;
    return before && n == n_before && memcmp(p, before, n) == 0;
}

static void words(const tok_dec *d, const strings *in, strings *out) {
    td_strbuf b = {0}, spare = {0};
    for (size_t i = 0; i < in->n; i++) {
        size_t n;
        const char *p = strings_get(in, i, &n);
        td_strbuf_clear(&b);
        if (d->kind == TOK_DEC_WORDPIECE && i > 0) {
            if (n >= d->n_content && memcmp(p, d->content, d->n_content) == 0) {
                p += d->n_content;
                n -= d->n_content;
            } else {
                td_strbuf_puts(&b, " ");
            }
        }
        td_strbuf_append(&b, p, n);
        if (d->kind == TOK_DEC_BPE) {
            bool last = i + 1 == in->n;
            replace_all(&b, &spare, d->content, d->n_content, " ", last ? 0 : 1);
        } else if (d->kind == TOK_DEC_CTC) {
            if (same_as_before(in, i))
                continue;
            replace_all(&b, &spare, d->content, d->n_content, "", 0);
        }
        if (d->kind != TOK_DEC_BPE && d->cleanup)
            clean_up(&b, &spare);
        if (d->kind == TOK_DEC_CTC && d->cleanup)
            replace_all(&b, &spare, d->delimiter, d->n_delimiter, " ", 1);
        if (d->kind == TOK_DEC_CTC && b.len == 0)
            continue;
        td_strbuf_append(&out->text, b.data ? b.data : "", b.len);
        strings_close(out);
    }
    out->oom = out->oom || b.oom || spare.oom;
    td_strbuf_free(&b);
    td_strbuf_free(&spare);
}

static td_status run_step(const tok_dec *d, td_tok_scratch *s, const strings *in, strings *out,
                          td_error *err) {
    td_status rc = TD_OK;
    if (d->kind == TOK_DEC_BYTE_LEVEL) {
        byte_level(in, out);
    } else if (d->kind == TOK_DEC_BYTE_FALLBACK) {
        byte_fallback(in, out);
    } else if (d->kind >= TOK_DEC_WORDPIECE) {
        words(d, in, out);
    } else if (d->kind == TOK_DEC_FUSE) {
        td_strbuf_append(&out->text, in->text.data ? in->text.data : "", in->text.len);
        strings_close(out);
    } else {
        for (size_t i = 0; i < in->n && rc == TD_OK; i++) {
            size_t n;
            const char *p = strings_get(in, i, &n);
            if (d->kind == TOK_DEC_STRIP) {
                strip(d, &p, &n);
                td_strbuf_append(&out->text, p, n);
            } else if (d->kind == TOK_DEC_METASPACE) {
                metaspace(d, i == 0, p, n, &out->text);
            } else {
                rc = tok_pattern_replace(&d->pattern, s, d->content, d->n_content, p, n, &out->text,
                                         err);
            }
            strings_close(out);
        }
    }
    if (rc == TD_OK && (out->oom || out->text.oom))
        rc = td_error_nomem(err, "the decoded text", in->text.len);
    return rc;
}

/* --- the public calls ------------------------------------------------------------------------- */

static const char *token_string(const td_tokenizer *tok, int32_t id, size_t *n) {
    const char *p = tok_vocab_text(&tok->added.names, id, n);
    return p ? p : tok_vocab_text(&tok->model.vocab, id, n);
}

/* HF asks whether the string is special, not the id. */
static bool is_special(const td_tokenizer *tok, const char *p, size_t n) {
    int32_t id = tok_vocab_find(&tok->added.names, p, n);
    const tok_added_token *t = id < 0 ? NULL : tok_added_by_id(&tok->added, id);
    return t && t->special;
}

td_status td_tokenizer_decode(const td_tokenizer *tok, const int32_t *ids, size_t n,
                              bool skip_special, td_strbuf *out, td_error *err) {
    strings a = {0}, b = {0}, *in = &a, *next = &b;
    td_tok_scratch *s = NULL;
    td_status rc = tok_scratch_new(NULL, false, &s, err);
    for (size_t i = 0; i < n && rc == TD_OK; i++) {
        size_t len;
        const char *p = token_string(tok, ids[i], &len);
        if (!p || (skip_special && is_special(tok, p, len)))
            continue;
        if (!tok->decs.present && in->n)
            td_strbuf_puts(&in->text, " ");
        td_strbuf_append(&in->text, p, len);
        strings_close(in);
    }
    for (size_t i = 0; i < tok->decs.n && rc == TD_OK; i++) {
        strings_clear(next);
        rc = run_step(&tok->decs.step[i], s, in, next, err);
        strings *t = in;
        in = next;
        next = t;
    }
    size_t before = out->len;
    if (rc == TD_OK && in->text.len)
        td_strbuf_append(out, in->text.data, in->text.len);
    if (rc == TD_OK && (in->oom || in->text.oom || out->oom)) {
        out->len = before;
        rc = td_error_nomem(err, "the decoded text", in->text.len);
    }
    strings_free(&a);
    strings_free(&b);
    td_tok_scratch_free(s);
    return rc;
}

static void append_readable(td_strbuf *out, const char *p, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t good = tok_utf8_valid_prefix(p + i, n - i), stop = i + good;
        while (i < stop) {
            size_t len;
            uint32_t cp = tok_utf8_get(p + i, stop - i, &len);
            if (cp == '\n' || cp == '\r' || cp == '\t')
                td_strbuf_puts(out, cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : "\\t");
            else if (cp < 0x20 || cp == 0x7f)
                td_strbuf_printf(out, "\\x%02X", (unsigned)cp);
            else
                td_strbuf_append(out, p + i, len);
            i += len;
        }
        if (i < n)
            td_strbuf_printf(out, "\\x%02X", (unsigned)(uint8_t)p[i++]);
    }
}

void td_tokenizer_token_text(const td_tokenizer *tok, int32_t id, td_strbuf *out) {
    size_t n;
    const char *p = token_string(tok, id, &n);
    td_strbuf bytes = {0};
    if (!p)
        return;
    if (tok_vocab_text(&tok->added.names, id, &n)) {
        td_strbuf_append(&bytes, p, n);
    } else if (tok->visible) {
        append_visible(&bytes, p, n);
    } else if (byte_token(p, n) >= 0) {
        append_byte(&bytes, byte_token(p, n));
    } else {
        const char meta[] = "\xe2\x96\x81";
        for (size_t i = 0; i < n;) {
            bool is_meta = n - i >= 3 && memcmp(p + i, meta, 3) == 0;
            append_byte(&bytes, is_meta ? ' ' : p[i]);
            i += is_meta ? 3 : 1;
        }
    }
    if (bytes.len)
        append_readable(out, bytes.data, bytes.len);
    td_strbuf_free(&bytes);
}
