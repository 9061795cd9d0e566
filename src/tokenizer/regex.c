/* Patterns of tokenizer.json: Oniguruma syntax (Ruby flavour) in Unicode 16, run by PCRE2.
 *
 * translate() copies the pattern and rewrites what the two engines read differently:
 *   \s \S        the White_Space property, spelled out (PCRE2's takes U+180E)
 *   \d           \p{Nd}
 *   \p{category} with the code points that PCRE2's older tables lack, so outside a class it
 *                becomes a class of its own
 *   \w \p{script} ranges of our own tables
 *   [a[b]&&c]    worked out at load, as ranges
 *   \uHHHH       \x{HHHH}
 * It passes on what means the same in both, and refuses the rest by name, because a pattern that is
 * nearly right would give wrong ids without a word.
 *
 * A hand-written scanner per known pattern would be a little faster; PCRE2's JIT is not the
 * bottleneck.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "tokenizer/internal.h"
#include "tokenizer/unicode.h"
#include "base/memory.h"
#include "base/strbuf.h"

#define SPACE_ITEMS                                                                                \
    "\\x{9}-\\x{D} "                                                                               \
    "\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define NOT_SPACE_ITEMS                                                                            \
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}!-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{"  \
    "200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{"       \
    "10FFFF}"

enum { MATCH_LIMIT = 10000000 };

typedef struct translation {
    const char *p; /* what is left of the pattern */
    const char *end;
    td_strbuf out;
    bool in_class;
    bool ignore_negation; /* the caller takes the complement of what a negated escape stands for */
    const char *where;
    td_error *err;
} translation;

static td_status refuse(translation *t, const char *what, const char *at) {
    return td_error_set(t->err, TD_E_MODEL,
                        "%s: the pattern uses %s, which is not supported, at \"%.*s\"", t->where,
                        what, (int)TD_MIN((size_t)(t->end - at), 40), at);
}

/* Items of a class, put where we are: inside a class as they are, else in brackets. */
static void put_items(translation *t, const char *items, const char *more, bool negated) {
    if (!t->in_class)
        td_strbuf_puts(&t->out, negated && !t->ignore_negation ? "[^" : "[");
    td_strbuf_puts(&t->out, items);
    td_strbuf_puts(&t->out, more);
    if (!t->in_class)
        td_strbuf_puts(&t->out, "]");
}

/* Long names of general categories, as plain_name() leaves them. */
static const char *const category_alias[][2] = {
    {"letter", "l"},           {"mark", "m"},
    {"number", "n"},           {"punctuation", "p"},
    {"symbol", "s"},           {"separator", "z"},
    {"lowercaseletter", "ll"}, {"uppercaseletter", "lu"},
    {"titlecaseletter", "lt"}, {"modifierletter", "lm"},
    {"otherletter", "lo"},     {"decimalnumber", "nd"},
    {"nonspacingmark", "mn"},  {"spacingmark", "mc"},
    {"digit", "nd"},
};

/* Oniguruma ignores case, spaces, hyphens and underscores in names of properties. */
static void plain_name(const char *name, size_t n, char out[32]) {
    size_t k = 0;
    for (size_t i = 0; i < n && k < 31; i++)
        if (name[i] != ' ' && name[i] != '-' && name[i] != '_')
            out[k++] = name[i] >= 'A' && name[i] <= 'Z' ? (char)(name[i] - 'A' + 'a') : name[i];
    out[k] = '\0';
    for (size_t i = 0; i < TD_ARRAY_LEN(category_alias); i++)
        if (strcmp(out, category_alias[i][0]) == 0)
            strcpy(out, category_alias[i][1]);
}

static td_status put_property(translation *t, const char *name, size_t n, bool negated,
                              const char *at) {
    char plain[32], items[16];
    td_strbuf ranges = {0};
    size_t n_ranges;
    plain_name(name, n, plain);
    for (size_t i = 0; i < TD_ARRAY_LEN(tok_category); i++) {
        if (strcasecmp(tok_category[i].name, plain) != 0)
            continue;
        snprintf(items, sizeof items, "\\p{%s}", tok_category[i].name);
        put_items(t, items, tok_category[i].more, negated);
        return TD_OK;
    }
    const tok_range *r = tok_property(plain, &n_ranges);
    if (!r)
        return refuse(t, "a property that is not known here", at);
    tok_put_ranges(&ranges, r, n_ranges);
    put_items(t, ranges.oom ? "" : ranges.data, "", negated);
    t->out.oom = t->out.oom || ranges.oom;
    td_strbuf_free(&ranges);
    return TD_OK;
}

/* \xHH, \x{H..}, \uHHHH: t->p is behind the letter. */
static td_status put_code_point(translation *t, char letter, const char *at) {
    uint32_t cp = 0;
    int digits = 0;
    bool braces = letter == 'x' && t->p < t->end && *t->p == '{';
    int max_digits = braces ? 6 : letter == 'u' ? 4 : 2;
    t->p += braces;
    for (; t->p < t->end && digits < max_digits; digits++, t->p++) {
        char c = *t->p;
        int v = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (v < 0)
            break;
        cp = cp * 16 + (uint32_t)v;
    }
    if (braces && (t->p >= t->end || *t->p++ != '}'))
        return refuse(t, "a code point that is not closed", at);
    if (digits == 0 || (letter == 'u' && digits != 4) || cp > 0x10ffff ||
        (cp >= 0xd800 && cp <= 0xdfff) || (letter == 'x' && !braces && cp > 0x7f))
        return refuse(t, "this code point", at);
    td_strbuf_printf(&t->out, "\\x{%X}", (unsigned)cp);
    return TD_OK;
}

static td_status escape(translation *t) {
    const char *at = t->p++;
    if (t->p >= t->end)
        return refuse(t, "a backslash at its end", at);
    char c = *t->p++;
    switch (c) {
    case 's':
        put_items(t, SPACE_ITEMS, "", false);
        return TD_OK;
    case 'S':
        put_items(t, t->in_class ? NOT_SPACE_ITEMS : SPACE_ITEMS, "", true);
        return TD_OK;
    case 'w':
        return put_property(t, "word", 4, false, at);
    case 'W':
        return put_property(t, "word", 4, true, at);
    case 'h':
        put_items(t, "0-9A-Fa-f", "", false);
        return TD_OK;
    case 'd':
        return put_property(t, "Nd", 2, false, at);
    case 'D':
        return put_property(t, "Nd", 2, true, at);
    case 'p':
    case 'P': {
        bool negated = c == 'P';
        if (t->p >= t->end || *t->p != '{')
            return refuse(t, "a property without braces", at);
        const char *name = ++t->p;
        const char *close = memchr(name, '}', (size_t)(t->end - name));
        if (!close)
            return refuse(t, "a property that is not closed", at);
        t->p = close + 1;
        if (*name == '^') {
            negated = !negated;
            name++;
        }
        return put_property(t, name, (size_t)(close - name), negated, at);
    }
    case 'x':
    case 'u':
        return put_code_point(t, c, at);
    case 'n':
        td_strbuf_puts(&t->out, "\\x{A}");
        return TD_OK;
    case 'r':
        td_strbuf_puts(&t->out, "\\x{D}");
        return TD_OK;
    case 't':
        td_strbuf_puts(&t->out, "\\x{9}");
        return TD_OK;
    case 'f':
        td_strbuf_puts(&t->out, "\\x{C}");
        return TD_OK;
    default:
        break;
    }
    bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (alnum || (unsigned char)c >= 0x80 || (unsigned char)c < 0x20)
        return refuse(t, "this escape", at);
    td_strbuf_append(&t->out, at, 2);
    return TD_OK;
}

/* {n}, {n,} and {n,m}; t->p is at the brace. */
static td_status counted(translation *t) {
    const char *at = t->p++, *first = t->p;
    while (t->p < t->end && *t->p >= '0' && *t->p <= '9')
        t->p++;
    bool exact = true, ok = t->p > first;
    if (t->p < t->end && *t->p == ',') {
        exact = false;
        t->p++;
        while (t->p < t->end && *t->p >= '0' && *t->p <= '9')
            t->p++;
    }
    if (!ok || t->p >= t->end || *t->p != '}')
        return refuse(t, "a brace that is no {n}, {n,} or {n,m}", at);
    t->p++;
    /* Ruby reads {n,m}+ as a repeated repeat and {n}? as an optional one. */
    if (t->p < t->end && (*t->p == '+' || (*t->p == '?' && exact)))
        return refuse(t, "a quantified {n}", at);
    td_strbuf_append(&t->out, at, (size_t)(t->p - at));
    return TD_OK;
}

static td_status group(translation *t) {
    static const char *const known[] = {
        "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
    const char *at = t->p;
    size_t left = (size_t)(t->end - at);
    if (left < 2 || (at[1] != '?' && at[1] != '*')) {
        td_strbuf_puts(&t->out, "(");
        t->p++;
        return TD_OK;
    }
    for (size_t i = 0; i < TD_ARRAY_LEN(known); i++) {
        size_t n = strlen(known[i]);
        if (left >= n && memcmp(at, known[i], n) == 0) {
            td_strbuf_append(&t->out, at, n);
            t->p += n;
            return TD_OK;
        }
    }
    return refuse(t, "this group", at);
}

/* At a backslash: does it stand for a complement, which PCRE2 takes inside a class only where it is
 * written out? \S is. */
static bool is_negated_escape(const char *p, const char *end) {
    if (end - p < 2)
        return false;
    bool caret = end - p > 3 && p[2] == '{' && p[3] == '^';
    return p[1] == 'D' || p[1] == 'W' || (p[1] == 'P' && !caret) || (p[1] == 'p' && caret);
}

/* At the bracket of a class: does it hold what only tok_set can work out? */
static bool is_composite(const char *p, const char *end) {
    for (p++; p < end && *p != ']'; p++) {
        if (*p == '[' || (*p == '&' && end - p > 1 && p[1] == '&'))
            return true;
        if (*p == '\\') {
            if (is_negated_escape(p, end))
                return true;
            p++;
        }
    }
    return false;
}

/* Adds the items gathered in t->out to the set and clears them. */
static td_status flush_items(translation *t, tok_set *set) {
    td_status rc = t->out.len ? tok_set_add_class(set, &t->out, t->where, t->err) : TD_OK;
    td_strbuf_clear(&t->out);
    return rc;
}

static td_status add_negated(translation *t, tok_set *set) {
    tok_set one = {0};
    td_status rc = flush_items(t, set);
    if (rc == TD_OK)
        rc = tok_set_init(&one, t->err);
    t->ignore_negation = true;
    if (rc == TD_OK)
        rc = escape(t);
    t->ignore_negation = false;
    if (rc == TD_OK)
        rc = flush_items(t, &one);
    if (rc == TD_OK) {
        tok_set_complement(&one);
        tok_set_unite(set, &one);
    }
    tok_set_free(&one);
    return rc;
}

/* Works out the class at t->p into the empty set; t->p ends behind its bracket. t->out is free for
 * use. */
static td_status class_set(translation *t, int depth, tok_set *set) {
    const char *at = t->p++;
    tok_set inner = {0}, left = {0}; /* left: what stands before the last && */
    bool negated = t->p < t->end && *t->p == '^';
    td_status rc = TD_OK;
    t->p += negated;
    if (depth > TOK_MAX_NESTING || t->p >= t->end || *t->p == ']' || *t->p == ':')
        return refuse(t, "this character class", at);
    while (rc == TD_OK && t->p < t->end && *t->p != ']') {
        if (*t->p == '[') {
            rc = flush_items(t, set);
            if (rc == TD_OK)
                rc = tok_set_init(&inner, t->err);
            if (rc == TD_OK)
                rc = class_set(t, depth + 1, &inner);
            if (rc == TD_OK)
                tok_set_unite(set, &inner);
            tok_set_free(&inner);
        } else if (*t->p == '&' && t->end - t->p > 1 && t->p[1] == '&') {
            t->p += 2;
            rc = flush_items(t, set);
            if (rc == TD_OK && left.bits)
                tok_set_intersect(set, &left);
            tok_set_free(&left);
            if (rc == TD_OK)
                rc = tok_set_init(&left, t->err);
            if (rc == TD_OK) {
                tok_set_unite(&left, set);
                tok_set_complement(set); /* and begin again with nothing */
                tok_set_intersect(set, &left);
            }
        } else if (*t->p == '\\') {
            rc = is_negated_escape(t->p, t->end) ? add_negated(t, set) : escape(t);
        } else if (*t->p == '\0') {
            td_strbuf_puts(&t->out, "\\x{0}");
            t->p++;
        } else {
            td_strbuf_append(&t->out, t->p++, 1);
        }
    }
    if (rc == TD_OK && t->p >= t->end)
        rc = refuse(t, "a character class that is not closed", at);
    if (rc == TD_OK)
        rc = flush_items(t, set);
    if (rc == TD_OK && left.bits)
        tok_set_intersect(set, &left);
    if (negated)
        tok_set_complement(set);
    tok_set_free(&left);
    t->p += t->p < t->end;
    return rc;
}

static td_status composite_class(translation *t) {
    const char *at = t->p;
    td_strbuf done = t->out;
    tok_set set = {0};
    t->out = (td_strbuf){0};
    t->in_class = true;
    td_status rc = tok_set_init(&set, t->err);
    if (rc == TD_OK)
        rc = class_set(t, 0, &set);
    t->in_class = false;
    td_strbuf_free(&t->out);
    t->out = done;
    if (rc == TD_OK) {
        td_strbuf_puts(&t->out, "[");
        size_t before = t->out.len;
        tok_set_put(&set, &t->out);
        if (t->out.len == before)
            rc = refuse(t, "a class of no character", at);
        td_strbuf_puts(&t->out, "]");
    }
    tok_set_free(&set);
    return rc;
}

static td_status class_open(translation *t) {
    const char *at = t->p;
    if (is_composite(at, t->end))
        return composite_class(t);
    t->p++;
    td_strbuf_puts(&t->out, "[");
    t->in_class = true;
    if (t->p < t->end && *t->p == '^') {
        td_strbuf_puts(&t->out, "^");
        t->p++;
    }
    if (t->p < t->end && *t->p == ']')
        return refuse(t, "an empty character class", at);
    return TD_OK;
}

static td_status translate(translation *t) {
    while (t->p < t->end) {
        char c = *t->p;
        td_status rc = TD_OK;
        if (c == '\\') {
            rc = escape(t);
        } else if (c == '\0') {
            td_strbuf_puts(&t->out, "\\x{0}");
            t->p++;
        } else if (!t->in_class && c == '[') {
            rc = class_open(t);
        } else if (!t->in_class && c == '(') {
            rc = group(t);
        } else if (!t->in_class && c == '{') {
            rc = counted(t);
        } else {
            if (c == ']')
                t->in_class = false;
            td_strbuf_append(&t->out, t->p++, 1);
        }
        if (rc != TD_OK)
            return rc;
    }
    return TD_OK;
}

static td_status compile(tok_pattern *p, const td_strbuf *pattern, const char *where,
                         td_error *err) {
    int code;
    PCRE2_SIZE at;
    pcre2_compile_context *ctx = pcre2_compile_context_create(NULL);
    if (!ctx)
        return td_error_nomem(err, "a pattern", 0);
    /* As in Ruby: "." takes all but a line feed, ^ and $ are those of lines. */
    pcre2_set_newline(ctx, PCRE2_NEWLINE_LF);
    /* Patterns come from an untrusted file; real ones nest three deep. */
    pcre2_set_parens_nest_limit(ctx, 50);
    p->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->len,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &code, &at, ctx);
    pcre2_compile_context_free(ctx);
    if (!p->code) {
        char why[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return td_error_set(err, TD_E_MODEL, "%s: the pattern does not compile: %s", where, why);
    }
    uint32_t empty = 0;
    pcre2_pattern_info(p->code, PCRE2_INFO_MATCHEMPTY, &empty);
    if (empty)
        return td_error_set(err, TD_E_MODEL,
                            "%s: the pattern can match nothing at all, which is not supported",
                            where);
    /* Without JIT (a hardened kernel) the interpreter gives the same matches. */
    (void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
    return TD_OK;
}

td_status tok_pattern_compile(tok_pattern *p, const char *regex, size_t n, const char *where,
                              td_error *err) {
    translation t = {.p = regex, .end = regex + n, .where = where, .err = err};
    *p = (tok_pattern){0};
    if (n == 0)
        return td_error_set(err, TD_E_MODEL, "%s: the pattern is empty", where);
    td_status rc = translate(&t);
    if (rc == TD_OK && t.out.oom)
        rc = td_error_nomem(err, "a pattern", t.out.len);
    if (rc == TD_OK)
        rc = compile(p, &t.out, where, err);
    if (rc != TD_OK)
        tok_pattern_free(p);
    td_strbuf_free(&t.out);
    return rc;
}

td_status tok_pattern_literal(tok_pattern *p, const char *s, size_t n, td_error *err) {
    char *copy = td_strndup(s, n);
    if (!copy)
        return td_error_nomem(err, "a pattern", n);
    *p = (tok_pattern){.literal = copy, .n_literal = n};
    return TD_OK;
}

td_status tok_pattern_ranges(tok_pattern *p, const tok_range *r, size_t n, td_error *err) {
    td_strbuf b = {0};
    *p = (tok_pattern){0};
    td_strbuf_puts(&b, "[");
    tok_put_ranges(&b, r, n);
    td_strbuf_puts(&b, "]");
    td_status rc = b.oom ? td_error_nomem(err, "a pattern", b.len)
                         : compile(p, &b, "a set of characters", err);
    td_strbuf_free(&b);
    return rc;
}

td_status tok_pattern_from_json(tok_pattern *p, const json_t *obj, const char *where,
                                td_error *err) {
    const json_t *v = json_object_get(obj, "pattern");
    const json_t *re = json_object_get(v, "Regex"), *str = json_object_get(v, "String");
    if (json_is_string(re))
        return tok_pattern_compile(p, json_string_value(re), json_string_length(re), where, err);
    if (!json_is_string(str))
        return td_error_set(err, TD_E_MODEL,
                            "%s: \"pattern\" must be {\"Regex\": ...} or {\"String\": ...}", where);
    if (json_string_length(str) == 0)
        return td_error_set(err, TD_E_MODEL, "%s: the pattern is empty", where);
    return tok_pattern_literal(p, json_string_value(str), json_string_length(str), err);
}

void tok_pattern_free(tok_pattern *p) {
    free(p->literal);
    pcre2_code_free(p->code);
    *p = (tok_pattern){0};
}

td_status tok_pattern_next(const tok_pattern *p, td_tok_scratch *s, const char *text, size_t n,
                           size_t from, bool *found, size_t *begin, size_t *end, td_error *err) {
    *found = false;
    if (from >= n)
        return TD_OK;
    if (!p->code) {
        const char *hit = memmem(text + from, n - from, p->literal, p->n_literal);
        if (hit) {
            *found = true;
            *begin = (size_t)(hit - text);
            *end = *begin + p->n_literal;
        }
        return TD_OK;
    }
    /* PCRE2's default limit stops a runaway pattern, but 10 MB of spaces also meet it honestly: a
     * sane pattern walks a long run back a few times, so the limit grows with the text. */
    uint32_t extra = n < UINT32_MAX / 64 ? (uint32_t)n * 32 : UINT32_MAX / 2;
    pcre2_set_match_limit(s->match_context, MATCH_LIMIT + extra);
    /* The text is valid UTF-8 by construction. */
    int rc = pcre2_match(p->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, s->match_data,
                         s->match_context);
    if (rc == PCRE2_ERROR_NOMATCH)
        return TD_OK;
    if (rc < 0) {
        char why[160];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
        return td_error_set(err, TD_E_DATA,
                            "the tokenizer's split pattern gave up on this text (%zu bytes): %s", n,
                            why);
    }
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(s->match_data);
    *found = true;
    *begin = at[0];
    *end = at[1];
    return TD_OK;
}

td_status tok_pattern_replace(const tok_pattern *p, td_tok_scratch *s, const char *content,
                              size_t n_content, const char *text, size_t n, td_strbuf *out,
                              td_error *err) {
    size_t at = 0, begin, end;
    for (;;) {
        bool found;
        td_status rc = tok_pattern_next(p, s, text, n, at, &found, &begin, &end, err);
        if (rc != TD_OK)
            return rc;
        if (!found)
            break;
        td_strbuf_append(out, text + at, begin - at);
        td_strbuf_append(out, content, n_content);
        at = end;
    }
    td_strbuf_append(out, text + at, n - at);
    return TD_OK;
}
