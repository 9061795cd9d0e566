/* Normalisers: their list, Unicode's normal forms, Prepend, Replace, Strip.
 *
 * Normal forms come from utf8proc (350 kB; ICU would bring 30 MB for the same job). HF's tables are
 * those of an older Unicode: characters that it does not know neither move nor compose nor
 * decompose there, so we normalise the runs between them and copy them as they are.
 */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* --- loading ---------------------------------------------------------------------------------- */

/* Those without settings. */
static const struct {
    const char *name;
    tok_norm_kind kind;
    tok_form form;
} plain[] = {
    {"NFC", TOK_NORM_FORM, TOK_NFC},
    {"NFD", TOK_NORM_FORM, TOK_NFD},
    {"NFKC", TOK_NORM_FORM, TOK_NFKC},
    {"NFKD", TOK_NORM_FORM, TOK_NFKD},
    {"Lowercase", TOK_NORM_LOWERCASE, 0},
    {"StripAccents", TOK_NORM_STRIP_ACCENTS, 0},
    {"Nmt", TOK_NORM_NMT, 0},
    {"ByteLevel", TOK_NORM_BYTE_LEVEL, 0},
};

static td_status load_one(const json_t *v, const char *type, const char *where, tok_norm *n,
                          td_error *err) {
    td_status rc;
    for (size_t i = 0; i < TD_ARRAY_LEN(plain); i++)
        if (strcmp(type, plain[i].name) == 0) {
            n->kind = plain[i].kind;
            n->form = plain[i].form;
            return TD_OK;
        }
    if (strcmp(type, "Precompiled") == 0) {
        n->kind = TOK_NORM_PRECOMPILED;
        return tok_charsmap_load(v, where, &n->map, err);
    }
    if (strcmp(type, "Prepend") == 0) {
        n->kind = TOK_NORM_PREPEND;
        return tok_json_dup(v, "prepend", where, &n->content, &n->n_content, err);
    }
    if (strcmp(type, "Replace") == 0) {
        n->kind = TOK_NORM_REPLACE;
        rc = tok_pattern_from_json(&n->pattern, v, where, err);
        return rc != TD_OK ? rc
                           : tok_json_dup(v, "content", where, &n->content, &n->n_content, err);
    }
    if (strcmp(type, "Strip") == 0) {
        n->kind = TOK_NORM_STRIP;
        n->left = n->right = true;
        rc = td_json_opt_bool(v, "strip_left", where, TD_E_MODEL, &n->left, err);
        return rc != TD_OK ? rc
                           : td_json_opt_bool(v, "strip_right", where, TD_E_MODEL, &n->right, err);
    }
    return td_error_set(err, TD_E_MODEL,
                        "%s: the normalizer \"%s\" is not supported (supported: NFC, NFD, "
                        "NFKC, NFKD, Lowercase, StripAccents, Nmt, ByteLevel, BertNormalizer, "
                        "Precompiled, Prepend, Replace, Strip, Sequence)",
                        where, type);
}

static td_status new_step(tok_norms *out, const char *where, tok_norm **step, td_error *err) {
    if (out->n == TOK_MAX_STEPS)
        return td_error_set(err, TD_E_MODEL, "%s: more than %d normalizers", where, TOK_MAX_STEPS);
    *step = &out->step[out->n++];
    return TD_OK;
}

static td_status load_bert(const json_t *v, const char *where, tok_norms *out, td_error *err) {
    bool clean = true, chinese = true, lower = true;
    td_status rc = td_json_opt_bool(v, "clean_text", where, TD_E_MODEL, &clean, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "handle_chinese_chars", where, TD_E_MODEL, &chinese, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "lowercase", where, TD_E_MODEL, &lower, err);
    bool accents = lower; /* what null stands for */
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "strip_accents", where, TD_E_MODEL, &accents, err);
    const struct {
        bool on;
        tok_norm_kind kind;
    } steps[] = {
        {clean, TOK_NORM_BERT_CLEAN}, {chinese, TOK_NORM_BERT_CHINESE},
        {accents, TOK_NORM_FORM},     {accents, TOK_NORM_BERT_ACCENTS},
        {lower, TOK_NORM_LOWERCASE},
    };
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(steps); i++) {
        tok_norm *step = NULL;
        if (!steps[i].on)
            continue;
        rc = new_step(out, where, &step, err);
        if (rc == TD_OK) {
            step->kind = steps[i].kind;
            step->form = TOK_NFD;
        }
    }
    return rc;
}

static td_status load_step(const json_t *v, const char *type, const char *where, void *arg,
                           td_error *err) {
    tok_norms *out = arg;
    if (strcmp(type, "BertNormalizer") == 0)
        return load_bert(v, where, out, err);
    tok_norm *step = NULL;
    td_status rc = new_step(out, where, &step, err);
    return rc == TD_OK ? load_one(v, type, where, step, err) : rc;
}

td_status tok_norms_load(const json_t *v, const char *where, tok_norms *out, td_error *err) {
    return tok_each_step(v, "normalizers", where, load_step, out, err);
}

void tok_norms_free(tok_norms *s) {
    for (size_t i = 0; i < s->n; i++) {
        free(s->step[i].content);
        tok_pattern_free(&s->step[i].pattern);
        tok_charsmap_free(&s->step[i].map);
    }
    *s = (tok_norms){0};
}

/* --- normal forms ----------------------------------------------------------------------------- */

static td_status append_form(tok_form form, td_strbuf *out, const char *text, size_t n,
                             td_error *err) {
    static const utf8proc_option_t options[] = {
        [TOK_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [TOK_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [TOK_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [TOK_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    utf8proc_uint8_t *done = NULL;
    if (n == 0)
        return TD_OK;
    if (n > (size_t)PTRDIFF_MAX / 32)
        return td_error_nomem(err, "the normalised text", n);
    utf8proc_ssize_t len =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &done, options[form]);
    if (len < 0)
        return td_error_set(err, TD_E_INTERNAL, "normalising %zu bytes: %s", n,
                            utf8proc_errmsg(len));
    td_strbuf_append(out, done, (size_t)len);
    free(done);
    return TD_OK;
}

/* ASCII is in every form, and all below U+0300 in NFC, with itself and with its neighbours. */
static bool has_form(tok_form form, const char *text, size_t n) {
    uint8_t first = form == TOK_NFC ? 0xcc : 0x80;
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)text[i] >= first)
            return false;
    return true;
}

static td_status normal_form(tok_form form, td_strbuf *out, const char *text, size_t n,
                             td_error *err) {
    size_t begin = 0, len;
    for (size_t i = 0; i < n; i += len) {
        uint32_t cp = tok_utf8_get(text + i, n - i, &len);
        if (cp < 0x300 || !tok_is_inert(form, cp))
            continue;
        td_status rc = append_form(form, out, text + begin, i - begin, err);
        if (rc != TD_OK)
            return rc;
        td_strbuf_append(out, text + i, len);
        begin = i + len;
    }
    return append_form(form, out, text + begin, n - begin, err);
}

/* --- the others ------------------------------------------------------------------------------- */

static void strip(const tok_norm *step, const char **text, size_t *n, bool *at_start) {
    const char *p = *text;
    size_t begin = 0, end = *n, len;
    while (step->left && begin < end && tok_is_space(tok_utf8_get(p + begin, end - begin, &len)))
        begin += len;
    while (step->right && end > begin) {
        size_t last = end - 1;
        while (last > begin && ((uint8_t)p[last] & 0xc0) == 0x80)
            last--;
        if (!tok_is_space(tok_utf8_get(p + last, end - last, &len)))
            break;
        end = last;
    }
    *at_start = *at_start && begin == 0;
    *text = p + begin;
    *n = end - begin;
}

td_status tok_norms_apply(const tok_norms *steps, td_tok_scratch *s, const char *text, size_t n,
                          const char **out, size_t *n_out, bool *at_start, td_error *err) {
    size_t turn = 0;
    for (size_t i = 0; i < steps->n && n > 0; i++) {
        const tok_norm *step = &steps->step[i];
        td_strbuf *b = &s->norm[turn & 1];
        td_status rc = TD_OK;
        if (step->kind == TOK_NORM_STRIP) {
            strip(step, &text, &n, at_start);
            continue;
        }
        if (step->kind == TOK_NORM_FORM && has_form(step->form, text, n))
            continue;
        td_strbuf_clear(b);
        bool first_gone = false;
        if (step->kind == TOK_NORM_FORM) {
            rc = normal_form(step->form, b, text, n, err);
        } else if (step->kind == TOK_NORM_REPLACE) {
            rc = tok_pattern_replace(&step->pattern, s, step->content, step->n_content, text, n, b,
                                     err);
        } else if (step->kind == TOK_NORM_PREPEND) {
            td_strbuf_append(b, step->content, step->n_content);
            td_strbuf_append(b, text, n);
        } else if (step->kind == TOK_NORM_PRECOMPILED) {
            tok_charsmap_apply(&step->map, text, n, b);
        } else {
            tok_norm_chars(step->kind, text, n, b, &first_gone);
        }
        *at_start = *at_start && !first_gone;
        if (rc == TD_OK && b->oom)
            rc = td_error_nomem(err, "the normalised text", n);
        if (rc != TD_OK)
            return rc;
        text = b->data ? b->data : "";
        n = b->len;
        turn++;
    }
    *out = text;
    *n_out = n;
    return TD_OK;
}
