/* memory.c - overflow-checked sizes and allocations. */
#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
