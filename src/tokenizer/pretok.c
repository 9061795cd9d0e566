/* Pre-tokenisers.
 *
 * Each becomes one to three elementary steps: cut every piece by a pattern, or change every piece's
 * text. ByteLevel's visible alphabet is left out where nothing follows it (tok_internal.h).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* --- loading ---------------------------------------------------------------------------------- */

/* NULL, with *err filled (TD_E_MODEL), when there are too many. */
static tok_pre *new_step(tok_pres *out, const char *where, tok_pre_kind kind, td_error *err) {
    if (out->n == TOK_MAX_STEPS) {
        td_error_set(err, TD_E_MODEL, "%s: more than %d pre-tokenizers", where, TOK_MAX_STEPS);
        return NULL;
    }
    tok_pre *step = &out->step[out->n++];
    *step = (tok_pre){.kind = kind};
    return step;
}

static td_status add_split(tok_pres *out, const char *where, const char *regex,
                           tok_behavior behavior, td_error *err) {
    tok_pre *step = new_step(out, where, TOK_PRE_SPLIT, err);
    if (!step)
        return TD_E_MODEL;
    step->behavior = behavior;
    return tok_pattern_compile(&step->pattern, regex, strlen(regex), where, err);
}

static td_status load_behavior(const json_t *v, const char *where, tok_behavior *out,
                               td_error *err) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name;
    td_status rc = td_json_get_str(v, "behavior", where, TD_E_MODEL, &name, err);
    if (rc != TD_OK)
        return rc;
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (tok_behavior)i;
            return TD_OK;
        }
    return td_error_set(err, TD_E_MODEL, "%s: the split behavior \"%s\" is not supported", where,
                        name);
}

static td_status load_split(const json_t *v, const char *where, tok_pres *out, td_error *err) {
    tok_pre *step = new_step(out, where, TOK_PRE_SPLIT, err);
    if (!step)
        return TD_E_MODEL;
    td_status rc = load_behavior(v, where, &step->behavior, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "invert", where, TD_E_MODEL, &step->invert, err);
    return rc == TD_OK ? tok_pattern_from_json(&step->pattern, v, where, err) : rc;
}

static td_status load_byte_level(const json_t *v, const char *where, tok_pres *out, td_error *err) {
    bool prefix = true, use_regex = true;
    td_status rc = td_json_opt_bool(v, "add_prefix_space", where, TD_E_MODEL, &prefix, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "use_regex", where, TD_E_MODEL, &use_regex, err);
    if (rc == TD_OK && prefix && !new_step(out, where, TOK_PRE_PREFIX_SPACE, err))
        rc = TD_E_MODEL;
    if (rc == TD_OK && use_regex)
        rc = add_split(out, where, GPT2_PATTERN, TOK_ISOLATED, err);
    if (rc == TD_OK && !new_step(out, where, TOK_PRE_VISIBLE, err))
        rc = TD_E_MODEL;
    return rc;
}

/* Cuts at each of a set of characters. */
static td_status add_set_split(tok_pres *out, const char *where, const tok_range *r, size_t n,
                               tok_behavior behavior, td_error *err) {
    tok_pre *step = new_step(out, where, TOK_PRE_SPLIT, err);
    if (!step)
        return TD_E_MODEL;
    step->behavior = behavior;
    return tok_pattern_ranges(&step->pattern, r, n, err);
}

static td_status load_punctuation(const json_t *v, const char *where, bool bert, tok_pres *out,
                                  td_error *err) {
    size_t n;
    const tok_range *r = tok_punctuation_ranges(&n);
    tok_behavior behavior = TOK_ISOLATED;
    td_status rc = TD_OK;
    if (bert)
        rc = add_split(out, where, "\\s", TOK_REMOVED, err);
    else if (td_json_has(v, "behavior"))
        rc = load_behavior(v, where, &behavior, err);
    return rc == TD_OK ? add_set_split(out, where, r, n, behavior, err) : rc;
}

/* Words, or runs of what is neither word nor space; the rest goes. */
static td_status load_whitespace(const char *where, tok_pres *out, td_error *err) {
    size_t n;
    const tok_range *r = tok_word_ranges(&n);
    td_strbuf regex = {0};
    td_strbuf_puts(&regex, "[");
    tok_put_ranges(&regex, r, n);
    td_strbuf_puts(&regex, "]+|[^\\s");
    tok_put_ranges(&regex, r, n);
    td_strbuf_puts(&regex, "]+");
    td_status rc = regex.oom ? td_error_nomem(err, "a pattern", regex.len)
                             : add_split(out, where, regex.data, TOK_REMOVED, err);
    if (rc == TD_OK)
        out->step[out->n - 1].invert = true;
    td_strbuf_free(&regex);
    return rc;
}

static td_status load_delimiter(const json_t *v, const char *where, tok_pres *out, td_error *err) {
    const char *c;
    size_t len;
    td_status rc = td_json_get_str(v, "delimiter", where, TD_E_MODEL, &c, err);
    if (rc != TD_OK)
        return rc;
    size_t n = json_string_length(json_object_get(v, "delimiter"));
    if (n == 0 || (tok_utf8_get(c, n, &len), len != n))
        return td_error_set(err, TD_E_MODEL, "%s: \"delimiter\" must be one character", where);
    tok_pre *step = new_step(out, where, TOK_PRE_SPLIT, err);
    if (!step)
        return TD_E_MODEL;
    step->behavior = TOK_REMOVED;
    return tok_pattern_literal(&step->pattern, c, n, err);
}

static td_status load_fixed_length(const json_t *v, const char *where, tok_pres *out,
                                   td_error *err) {
    int64_t length = 5;
    char regex[64];
    /* PCRE2 counts repeats up to 65535 */
    td_status rc = td_json_opt_int(v, "length", 1, 65535, where, TD_E_MODEL, &length, err);
    if (rc != TD_OK)
        return rc;
    snprintf(regex, sizeof regex, "[\\x{0}-\\x{10FFFF}]{1,%d}", (int)length);
    return add_split(out, where, regex, TOK_ISOLATED, err);
}

static td_status load_digits(const json_t *v, const char *where, tok_pres *out, td_error *err) {
    bool individual = false;
    size_t n;
    const tok_range *r = tok_numeric_ranges(&n);
    td_status rc = td_json_opt_bool(v, "individual_digits", where, TD_E_MODEL, &individual, err);
    if (rc != TD_OK)
        return rc;
    return add_set_split(out, where, r, n, individual ? TOK_ISOLATED : TOK_CONTIGUOUS, err);
}

/* Shared with the decoder's idea of Metaspace: files before 0.19 say add_prefix_space. */
static td_status load_metaspace(const json_t *v, const char *where, tok_pres *out, td_error *err) {
    const json_t *r = json_object_get(v, "replacement");
    const char *scheme = "always";
    bool legacy = true, split = true;
    size_t len;
    td_status rc = td_json_opt_bool(v, "add_prefix_space", where, TD_E_MODEL, &legacy, err);
    if (rc == TD_OK && !legacy)
        scheme = "never";
    if (rc == TD_OK)
        rc = td_json_opt_str(v, "prepend_scheme", where, TD_E_MODEL, &scheme, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "split", where, TD_E_MODEL, &split, err);
    if (rc != TD_OK)
        return rc;
    tok_pre *step = new_step(out, where, TOK_PRE_METASPACE, err);
    if (!step)
        return TD_E_MODEL;
    if (strcmp(scheme, "first") == 0)
        step->prepend = TOK_PREPEND_FIRST;
    else if (strcmp(scheme, "always") == 0)
        step->prepend = TOK_PREPEND_ALWAYS;
    else if (strcmp(scheme, "never") == 0)
        step->prepend = TOK_PREPEND_NEVER;
    else
        return td_error_set(err, TD_E_MODEL, "%s: the prepend_scheme \"%s\" is not supported",
                            where, scheme);
    size_t n = json_string_length(r);
    if (n == 0 || (tok_utf8_get(json_string_value(r), n, &len), len != n))
        return td_error_set(err, TD_E_MODEL, "%s: \"replacement\" must be one character", where);
    memcpy(step->replacement, json_string_value(r), n);
    step->n_replacement = n;
    if (!split)
        return TD_OK;
    step = new_step(out, where, TOK_PRE_SPLIT, err);
    if (!step)
        return TD_E_MODEL;
    step->behavior = TOK_MERGED_WITH_NEXT;
    return tok_pattern_literal(&step->pattern, json_string_value(r), n, err);
}

static td_status load_step(const json_t *v, const char *type, const char *where, void *arg,
                           td_error *err) {
    tok_pres *out = arg;
    if (strcmp(type, "Split") == 0)
        return load_split(v, where, out, err);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(v, where, out, err);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(v, where, out, err);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return add_split(out, where, "\\s", TOK_REMOVED, err);
    if (strcmp(type, "Whitespace") == 0)
        return load_whitespace(where, out, err);
    if (strcmp(type, "Punctuation") == 0 || strcmp(type, "BertPreTokenizer") == 0)
        return load_punctuation(v, where, type[0] == 'B', out, err);
    if (strcmp(type, "CharDelimiterSplit") == 0)
        return load_delimiter(v, where, out, err);
    if (strcmp(type, "FixedLength") == 0)
        return load_fixed_length(v, where, out, err);
    if (strcmp(type, "Digits") == 0)
        return load_digits(v, where, out, err);
    return td_error_set(err, TD_E_MODEL,
                        "%s: the pre-tokenizer \"%s\" is not supported (supported: Split, "
                        "ByteLevel, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, "
                        "BertPreTokenizer, CharDelimiterSplit, FixedLength, Sequence)",
                        where, type);
}

td_status tok_pres_load(const json_t *v, const char *where, tok_pres *out, td_error *err) {
    td_status rc = tok_each_step(v, "pretokenizers", where, load_step, out, err);
    if (rc != TD_OK)
        return rc;
    size_t n_visible = 0;
    for (size_t i = 0; i < out->n; i++)
        n_visible += out->step[i].kind == TOK_PRE_VISIBLE;
    out->byte_level = n_visible == 1 && out->step[out->n - 1].kind == TOK_PRE_VISIBLE;
    out->n -= out->byte_level;
    return TD_OK;
}

void tok_pres_make_visible(tok_pres *p) {
    if (p->byte_level)
        p->step[p->n++] = (tok_pre){.kind = TOK_PRE_VISIBLE};
    p->byte_level = false;
}

void tok_pres_free(tok_pres *p) {
    for (size_t i = 0; i < p->n; i++)
        tok_pattern_free(&p->step[i].pattern);
    *p = (tok_pres){0};
}

/* --- cutting ---------------------------------------------------------------------------------- */

static bool push(tok_spans *l, size_t begin, size_t end) {
    if (l->n == l->cap && !td_grow((void **)&l->at, &l->cap, l->n + 1, sizeof *l->at))
        return false;
    l->at[l->n++] = (tok_span){begin, end};
    return true;
}

/* Adds one stretch of a piece, a match or the text between two, by the behaviour. */
typedef struct cutter {
    tok_behavior behavior;
    bool invert;
    tok_spans *out;
    size_t first;  /* where this piece's spans start in out */
    bool previous; /* the stretch before was a match */
} cutter;

static bool add_stretch(cutter *c, size_t begin, size_t end, bool match) {
    bool previous = c->previous, any = c->out->n > c->first;
    match = match != c->invert;
    c->previous = match;
    switch (c->behavior) {
    case TOK_REMOVED:
        return match || push(c->out, begin, end);
    case TOK_ISOLATED:
        break;
    case TOK_CONTIGUOUS:
        if (match == previous && any) {
            c->out->at[c->out->n - 1].end = end;
            return true;
        }
        break;
    case TOK_MERGED_WITH_PREVIOUS:
        if (match && !previous && any) {
            c->out->at[c->out->n - 1].end = end;
            return true;
        }
        break;
    case TOK_MERGED_WITH_NEXT:
        /* HF folds from the end: a match joins what follows it, unless that is a match too. */
        if (!match && previous && any) {
            c->out->at[c->out->n - 1].end = end;
            return true;
        }
        break;
    }
    return push(c->out, begin, end);
}

static td_status cut(const tok_pre *step, td_tok_scratch *s, const char *text, const tok_spans *in,
                     tok_spans *out, td_error *err) {
    for (size_t i = 0; i < in->n; i++) {
        size_t at = in->at[i].begin, stop = in->at[i].end, begin, end;
        cutter c = {step->behavior, step->invert, out, out->n, false};
        /* Each piece is matched as a text of its own: lookarounds do not see beyond it. */
        const char *base = text + at;
        size_t n = stop - at, from = 0;
        bool ok = true;
        while (ok && from < n) {
            bool found;
            td_status rc =
                tok_pattern_next(&step->pattern, s, base, n, from, &found, &begin, &end, err);
            if (rc != TD_OK)
                return rc;
            if (!found)
                begin = end = n;
            if (begin > from)
                ok = add_stretch(&c, at + from, at + begin, false);
            if (found && ok)
                ok = add_stretch(&c, at + begin, at + end, true);
            from = end;
        }
        if (!ok)
            return td_error_nomem(err, "the pieces of a text", out->n * sizeof *out->at);
    }
    return TD_OK;
}

/* --- changing --------------------------------------------------------------------------------- */

static bool starts_with(const char *p, size_t n, const char *what, size_t n_what) {
    return n >= n_what && memcmp(p, what, n_what) == 0;
}

static bool change_piece(const tok_pre *step, td_strbuf *b, const char *p, size_t n,
                         bool at_start) {
    if (step->kind == TOK_PRE_PREFIX_SPACE) {
        if (p[0] != ' ')
            td_strbuf_append(b, " ", 1);
        td_strbuf_append(b, p, n);
        return !b->oom;
    }
    if (step->kind == TOK_PRE_VISIBLE) {
        bool unused;
        tok_norm_chars(TOK_NORM_BYTE_LEVEL, p, n, b, &unused);
        return !b->oom;
    }
    const char *r = step->replacement;
    size_t nr = step->n_replacement;
    bool wanted =
        step->prepend == TOK_PREPEND_ALWAYS || (step->prepend == TOK_PREPEND_FIRST && at_start);
    if (wanted && p[0] != ' ' && !starts_with(p, n, r, nr))
        td_strbuf_append(b, r, nr);
    for (size_t i = 0; i < n;) {
        const char *space = memchr(p + i, ' ', n - i);
        size_t len = space ? (size_t)(space - p) - i : n - i;
        td_strbuf_append(b, p + i, len);
        if (space)
            td_strbuf_append(b, r, nr);
        i += len + (space != NULL);
    }
    return !b->oom;
}

static td_status change(const tok_pre *step, const char *text, const tok_spans *in, bool at_start,
                        td_strbuf *b, tok_spans *out, td_error *err) {
    td_strbuf_clear(b);
    for (size_t i = 0; i < in->n; i++) {
        size_t begin = b->len, from = in->at[i].begin;
        if (!change_piece(step, b, text + from, in->at[i].end - from, at_start && from == 0) ||
            !push(out, begin, b->len))
            return td_error_nomem(err, "the pieces of a text", b->len);
    }
    return TD_OK;
}

td_status tok_pres_apply(const tok_pres *p, td_tok_scratch *s, const char *text, size_t n,
                         bool at_start, const char **out_text, const tok_spans **pieces,
                         td_error *err) {
    tok_spans *in = &s->spans[0], *out = &s->spans[1];
    size_t turn = 0;
    in->n = 0;
    if (n > 0 && !push(in, 0, n))
        return td_error_nomem(err, "the pieces of a text", sizeof *in->at);
    for (size_t i = 0; i < p->n; i++) {
        td_status rc;
        out->n = 0;
        if (p->step[i].kind == TOK_PRE_SPLIT) {
            rc = cut(&p->step[i], s, text, in, out, err);
        } else {
            td_strbuf *b = &s->pre[turn++ & 1];
            rc = change(&p->step[i], text, in, at_start, b, out, err);
            text = b->data ? b->data : "";
        }
        if (rc != TD_OK)
            return rc;
        tok_spans *t = in;
        in = out;
        out = t;
    }
    *out_text = text;
    *pieces = in;
    return TD_OK;
}
