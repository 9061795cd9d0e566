/* strbuf.h - a growing byte buffer.
 *
 * {0} is an empty one. `data` is NUL-terminated after each append (the NUL is not counted); `oom`
 * sticks once an append failed, so that a chain of appends is checked once at its end. Owned by one
 * thread at a time; ends with td_strbuf_free.
 */
#ifndef TDGEN_BASE_STRBUF_H
#define TDGEN_BASE_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

typedef struct td_strbuf {
    char *data;
    size_t len, cap;
    bool oom;
} td_strbuf;

void td_strbuf_append(td_strbuf *b, const void *data, size_t n);
void td_strbuf_puts(td_strbuf *b, const char *s);
void td_strbuf_printf(td_strbuf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void td_strbuf_clear(td_strbuf *b); /* keeps the memory */
void td_strbuf_free(td_strbuf *b);

#endif
