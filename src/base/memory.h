/* memory.h - allocations and sizes that cannot overflow.
 *
 * Allocation functions return NULL on overflow or when memory is exhausted; callers turn that into
 * TD_E_INTERNAL with td_error_nomem(). What they return is freed with free(). Any thread.
 */
#ifndef TDGEN_BASE_MEMORY_H
#define TDGEN_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include "base/status.h"

#define TD_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define TD_MIN(a, b) ((a) < (b) ? (a) : (b))
#define TD_MAX(a, b) ((a) > (b) ? (a) : (b))

td_status td_error_nomem(td_error *err, const char *what, size_t size_bytes);

/* True and *out = a*b (a+b) when it fits in size_t; false leaves *out alone. */
bool td_mul_size(size_t a, size_t b, size_t *out);
bool td_add_size(size_t a, size_t b, size_t *out);

/* n * size bytes, zeroed; NULL on overflow. A request of 0 bytes gives a valid pointer. */
void *td_calloc(size_t n, size_t size_bytes);
/* As realloc with an overflow check; the old block stays valid on failure. */
void *td_realloc_array(void *p, size_t n, size_t size_bytes);
/* Grows *p (capacity *cap elements) to hold at least `need`, doubling; false when out of memory. */
bool td_grow(void **p, size_t *cap, size_t need, size_t elem_size_bytes);
char *td_strdup(const char *s);
char *td_strndup(const char *s, size_t n);
/* printf into a fresh string, NULL when out of memory. */
char *td_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
