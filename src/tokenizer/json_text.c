/* What a parsed JSON value no longer tells: where its parts stand, and how its numbers are written.
 *
 * Two things need it. The hash of a tokenizer leaves out two members of tokenizer.json without
 * touching a byte of the others. And the scores of a Unigram model are read as the reference's
 * parser reads them, from their digits.
 *
 * The walk trusts nothing: in a text that is no JSON it finds fewer parts, and stays inside.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/hash.h"
#include "base/memory.h"

/* --- the walk --------------------------------------------------------------------------------- */

static const char *skip_blanks(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
        p++;
    return p;
}

/* p is at the opening quote; behind the closing one. */
static const char *skip_string(const char *p, const char *end) {
    for (p++; p < end && *p != '"'; p++)
        if (*p == '\\')
            p++;
    return p < end ? p + 1 : end;
}

static const char *skip_value(const char *p, const char *end) {
    size_t depth = 0;
    if (p < end && *p != '"' && *p != '{' && *p != '[') {
        while (p < end && !strchr(",]} \t\n\r", *p))
            p++;
        return p;
    }
    while (p < end) {
        char c = *p;
        p = c == '"' ? skip_string(p, end) : p + 1;
        depth += c == '{' || c == '[';
        depth -= depth > 0 && (c == '}' || c == ']');
        if (depth == 0)
            break;
    }
    return p;
}

/* The next element of an array or member of an object, which *at is within. */
static bool next_part(const char **at, const char *end, bool member, tok_text *key,
                      tok_text *value) {
    const char *p = skip_blanks(*at, end);
    if (p < end && (*p == ',' || *p == '{' || *p == '['))
        p = skip_blanks(p + 1, end);
    if (p >= end || *p == '}' || *p == ']')
        return false;
    if (member) {
        if (*p != '"')
            return false;
        const char *behind = skip_string(p, end);
        *key = (tok_text){p + 1, (size_t)(behind - p) - 2};
        p = skip_blanks(behind, end);
        if (p >= end || *p != ':')
            return false;
        p = skip_blanks(p + 1, end);
    }
    const char *behind = skip_value(p, end);
    if (behind == p)
        return false;
    *value = (tok_text){p, (size_t)(behind - p)};
    *at = behind;
    return true;
}

tok_text_walk tok_text_parts(tok_text list) {
    const char *p = skip_blanks(list.p, list.p + list.n);
    return (tok_text_walk){p, list.p + list.n, p < list.p + list.n && *p == '{'};
}

bool tok_text_next(tok_text_walk *w, tok_text *key, tok_text *value) {
    return next_part(&w->at, w->end, w->is_object, key, value);
}

static bool is_key(tok_text key, const char *name) {
    return key.n == strlen(name) && memcmp(key.p, name, key.n) == 0;
}

bool tok_text_member(tok_text object, const char *name, tok_text *out) {
    tok_text_walk w = tok_text_parts(object);
    tok_text key, value;
    bool found = false;
    while (w.is_object && tok_text_next(&w, &key, &value))
        if (is_key(key, name)) { /* of two the last, as the parser takes it */
            *out = value;
            found = true;
        }
    return found;
}

/* --- the hash --------------------------------------------------------------------------------- */

td_status td_tokenizer_text_hash(const char *text, size_t n, uint64_t *out, td_error *err) {
    tok_text_walk w = tok_text_parts((tok_text){text, n});
    tok_text key, value;
    const char *done = text;
    td_hasher *h = td_hasher_create();
    if (!h)
        return td_error_nomem(err, "the tokenizer's hash", n);
    while (w.is_object && tok_text_next(&w, &key, &value)) {
        if (!is_key(key, "truncation") && !is_key(key, "padding"))
            continue;
        td_hasher_update(h, done, (size_t)(value.p - done));
        td_hasher_update(h, "null", 4);
        done = value.p + value.n;
    }
    td_hasher_update(h, done, (size_t)(text + n - done));
    *out = td_hasher_digest(h);
    td_hasher_destroy(h);
    return TD_OK;
}

/* --- numbers ---------------------------------------------------------------------------------- */

enum { MAX_POWER = 308 };

static bool is_digit(const char *p, const char *end) {
    return p < end && *p >= '0' && *p <= '9';
}

/* Takes digits into *significand while they fit; how many. */
static int32_t take_digits(const char **p, const char *end, uint64_t *significand) {
    int32_t n = 0;
    for (; is_digit(*p, end); (*p)++, n++) {
        uint64_t digit = (uint64_t)(**p - '0');
        if (*significand > (UINT64_MAX - digit) / 10)
            break;
        *significand = *significand * 10 + digit;
    }
    return n;
}

static int32_t skip_digits(const char **p, const char *end) {
    int32_t n = 0;
    for (; is_digit(*p, end); (*p)++)
        n += n < INT32_MAX;
    return n;
}

/* serde_json's f64_from_parts. The powers of ten are the nearest doubles, and so are strtod's. */
static double from_parts(uint64_t significand, int64_t exponent) {
    double f = (double)significand;
    char power[8] = "1e";
    for (; exponent < -MAX_POWER && f != 0; exponent += MAX_POWER)
        f /= 1e308;
    if (f == 0 || exponent < -MAX_POWER)
        return f;
    if (exponent > MAX_POWER)
        return INFINITY;
    int32_t n = (int32_t)(exponent < 0 ? -exponent : exponent), at = 2;
    if (n >= 100)
        power[at++] = (char)('0' + n / 100);
    if (n >= 10)
        power[at++] = (char)('0' + n / 10 % 10);
    power[at] = (char)('0' + n % 10);
    double ten = strtod(power, NULL);
    return exponent < 0 ? f / ten : f * ten;
}

/* Digits that a u64 cannot hold are counted before the point and ignored behind it. */
double tok_text_number(tok_text t) {
    const char *p = t.p, *end = t.p + t.n;
    bool negative = p < end && *p == '-';
    uint64_t significand = 0;
    int64_t exponent;
    p += negative;
    (void)take_digits(&p, end, &significand);
    exponent = skip_digits(&p, end);
    if (p < end && *p == '.') {
        p++;
        exponent -= take_digits(&p, end, &significand);
        (void)skip_digits(&p, end);
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        int64_t e = 0;
        bool down = p + 1 < end && p[1] == '-';
        p += 1 + (p + 1 < end && (p[1] == '-' || p[1] == '+'));
        for (; is_digit(p, end); p++)
            e = TD_MIN(e * 10 + (*p - '0'), (int64_t)INT32_MAX);
        exponent += down ? -e : e;
    }
    double f = from_parts(significand, exponent);
    return negative ? -f : f;
}
