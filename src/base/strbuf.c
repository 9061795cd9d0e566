/* strbuf.c - a growing byte buffer. */
#include "base/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"

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
