#include "tdgen/util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

td_status td_error_nomem(td_error *err, const char *what, size_t size_bytes) {
    return td_error_set(err, TD_E_INTERNAL, "out of host memory: %zu bytes for %s", size_bytes,
                        what);
}

bool td_mul_size(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

bool td_add_size(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

void *td_calloc(size_t n, size_t size_bytes) {
    return calloc(n ? n : 1, size_bytes ? size_bytes : 1);
}

void *td_realloc_array(void *p, size_t n, size_t size_bytes) {
    size_t total;
    if (!td_mul_size(n, size_bytes, &total))
        return NULL;
    return realloc(p, total ? total : 1);
}

bool td_grow(void **p, size_t *cap, size_t need, size_t elem_size_bytes) {
    if (need <= *cap)
        return true;
    size_t n = *cap ? *cap : 16;
    while (n < need)
        if (!td_mul_size(n, 2, &n))
            return false;
    void *q = td_realloc_array(*p, n, elem_size_bytes);
    if (!q)
        return false;
    *p = q;
    *cap = n;
    return true;
}

char *td_strndup(const char *s, size_t n) {
    char *r = malloc(n + 1);
    if (r) {
        memcpy(r, s, n);
        r[n] = '\0';
    }
    return r;
}

char *td_strdup(const char *s) {
    return td_strndup(s, strlen(s));
}

char *td_asprintf(const char *fmt, ...) {
    va_list ap, aq;
    va_start(ap, fmt);
    va_copy(aq, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *r = n < 0 ? NULL : malloc((size_t)n + 1);
    if (r)
        vsnprintf(r, (size_t)n + 1, fmt, aq);
    va_end(aq);
    return r;
}

void td_strbuf_append(td_strbuf *b, const void *data, size_t n) {
    size_t need;
    if (b->oom)
        return;
    if (!td_add_size(b->len, n, &need) || !td_add_size(need, 1, &need) ||
        !td_grow((void **)&b->data, &b->cap, need, 1)) {
        b->oom = true;
        return;
    }
    if (n)
        memcpy(b->data + b->len, data, n);
    b->len += n;
    b->data[b->len] = '\0';
}

void td_strbuf_puts(td_strbuf *b, const char *s) {
    td_strbuf_append(b, s, strlen(s));
}

void td_strbuf_printf(td_strbuf *b, const char *fmt, ...) {
    va_list ap, aq;
    va_start(ap, fmt);
    va_copy(aq, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || b->oom || !td_grow((void **)&b->data, &b->cap, b->len + (size_t)n + 1, 1)) {
        b->oom = true;
    } else {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, aq);
        b->len += (size_t)n;
    }
    va_end(aq);
}

void td_strbuf_clear(td_strbuf *b) {
    b->len = 0;
    b->oom = false;
    if (b->data)
        b->data[0] = '\0';
}

void td_strbuf_free(td_strbuf *b) {
    free(b->data);
    *b = (td_strbuf){0};
}

double td_time_s(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

uint64_t td_hash64(const void *data, size_t size_bytes) {
    return XXH3_64bits(data, size_bytes);
}

/* An XXH3_state_t, which wants more alignment than malloc gives, so that the library makes it. The
 * updates cannot fail: they only do for a NULL state. */
td_hasher *td_hasher_create(void) {
    td_hasher *h = (td_hasher *)XXH3_createState();
    if (h)
        td_hasher_reset(h);
    return h;
}

void td_hasher_destroy(td_hasher *h) {
    XXH3_freeState((XXH3_state_t *)h);
}

void td_hasher_reset(td_hasher *h) {
    XXH3_64bits_reset((XXH3_state_t *)h);
}

void td_hasher_update(td_hasher *h, const void *data, size_t size_bytes) {
    if (size_bytes)
        XXH3_64bits_update((XXH3_state_t *)h, data, size_bytes);
}

uint64_t td_hasher_digest(const td_hasher *h) {
    return XXH3_64bits_digest((const XXH3_state_t *)h);
}

void td_hash_hex(uint64_t hash, char out[17]) {
    snprintf(out, 17, "%016llx", (unsigned long long)hash);
}

char *td_human_bytes(uint64_t size_bytes, char *buf, size_t buf_size) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)size_bytes;
    size_t i = 0;
    while (v >= 1024 && i + 1 < TD_ARRAY_LEN(unit)) {
        v /= 1024;
        i++;
    }
    snprintf(buf, buf_size, i == 0 ? "%.0f %s" : v < 10 ? "%.2f %s" : "%.1f %s", v, unit[i]);
    return buf;
}

char *td_human_count(double n, char *buf, size_t buf_size) {
    static const char *const unit[] = {"", "k", "M", "B", "T"};
    size_t i = 0;
    while (n >= 1000 && i + 1 < TD_ARRAY_LEN(unit)) {
        n /= 1000;
        i++;
    }
    snprintf(buf, buf_size, i == 0 ? "%.0f%s" : n < 10 ? "%.2f%s" : "%.1f%s", n, unit[i]);
    return buf;
}

char *td_human_seconds(double s, char *buf, size_t buf_size) {
    if (s < 60)
        snprintf(buf, buf_size, "%.1fs", s);
    else if (s < 3600)
        snprintf(buf, buf_size, "%dm%02ds", (int)s / 60, (int)s % 60);
    else if (s < 48 * 3600.0)
        snprintf(buf, buf_size, "%dh%02dm", (int)(s / 3600), (int)(s / 60) % 60);
    else
        snprintf(buf, buf_size, "%.1f days", s / 86400);
    return buf;
}

/* Damerau-Levenshtein (adjacent transpositions count as one edit), bounded by short names. */
static size_t edit_distance(const char *a, const char *b) {
    enum { MAX_NAME = 64 };
    size_t na = strlen(a), nb = strlen(b);
    size_t row[3][MAX_NAME + 1];
    if (na > MAX_NAME || nb > MAX_NAME)
        return MAX_NAME;
    size_t *prev2 = row[0], *prev = row[1], *cur = row[2];
    for (size_t j = 0; j <= nb; j++)
        prev[j] = j;
    for (size_t i = 1; i <= na; i++) {
        cur[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t d = prev[j - 1] + (a[i - 1] != b[j - 1]);
            d = TD_MIN(d, TD_MIN(prev[j], cur[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d = TD_MIN(d, prev2[j - 2] + 1);
            cur[j] = d;
        }
        size_t *t = prev2;
        prev2 = prev;
        prev = cur;
        cur = t;
    }
    return prev[nb];
}

const char *td_nearest_name(const char *name, const char *const *candidates, size_t n) {
    const char *best = NULL;
    size_t best_d = (size_t)-1;
    for (size_t i = 0; i < n; i++) {
        size_t d = edit_distance(name, candidates[i]);
        if (d < best_d) {
            best_d = d;
            best = candidates[i];
        }
    }
    return best && best_d <= TD_MAX(strlen(best), strlen(name)) / 2 ? best : NULL;
}

bool td_parse_int(const char *s, long long min, long long max, long long *out) {
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (errno || end == s || *end || v < min || v > max)
        return false;
    *out = v;
    return true;
}
