/* util.h - small leaf helpers: checked memory, growing buffers, files, time, hashes.
 *
 * Allocation functions return NULL on overflow or when memory is exhausted; callers turn that into
 * TD_E_INTERNAL with td_error_nomem().
 */
#ifndef TDGEN_UTIL_H
#define TDGEN_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "tdgen/status.h"

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

/* A growing byte buffer. {0} is an empty one. `data` is NUL-terminated after each append (the NUL
 * is not counted); `oom` sticks once an append failed, so that a chain is checked once at its end.
 */
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

/* Reads a whole regular file of at most max_bytes; *data is NUL-terminated, freed by the caller.
 * `code` is the status to report (TD_E_MODEL for a model file, ...). */
td_status td_file_read(const char *path, size_t max_bytes, td_status code, char **data,
                       size_t *size_bytes, td_error *err);

/* Writes a file so that it is there whole or not at all, and survives power loss when it returns:
 * PATH.tmp, fsync, rename, fsync of the folder. `durable` false leaves out both fsyncs
 * (status.json). */
td_status td_file_write_atomic(const char *path, const void *data, size_t size_bytes, bool durable,
                               td_error *err);
/* fsync of the folder that holds `path`. */
td_status td_file_sync_dir_of(const char *path, td_error *err);
/* mkdir -p */
td_status td_mkdir_p(const char *path, td_error *err);
/* Writes all bytes at `offset`, restarting on EINTR and short writes. */
td_status td_pwrite_all(int fd, const void *data, size_t size_bytes, uint64_t offset,
                        const char *path, td_error *err);
td_status td_pread_all(int fd, void *data, size_t size_bytes, uint64_t offset, const char *path,
                       td_error *err);
bool td_path_exists(const char *path);

/* Seconds of a monotonic clock. */
double td_time_s(void);

/* xxh3-64 of a block, and its 16 lower-case hex digits + NUL. */
uint64_t td_hash64(const void *data, size_t size_bytes);
/* The same hash of bytes that come in pieces: reset, update ..., digest. One thread at a time. NULL
 * when out of memory. */
typedef struct td_hasher td_hasher;
td_hasher *td_hasher_create(void);
void td_hasher_destroy(td_hasher *h); /* NULL allowed */
void td_hasher_reset(td_hasher *h);
void td_hasher_update(td_hasher *h, const void *data, size_t size_bytes);
uint64_t td_hasher_digest(const td_hasher *h);
void td_hash_hex(uint64_t hash, char out[17]);

/* "1.5 GiB", "12.3k", "1h02m" into a caller's buffer; return it. */
char *td_human_bytes(uint64_t size_bytes, char *buf, size_t buf_size);
char *td_human_count(double n, char *buf, size_t buf_size);
char *td_human_seconds(double s, char *buf, size_t buf_size);

/* All of s as a decimal number in [min, max]; false, and *out untouched, when it is none. */
bool td_parse_int(const char *s, long long min, long long max, long long *out);
/* The candidate nearest to `name` by edit distance, or NULL when none is near enough to be a
 * plausible typing error. */
const char *td_nearest_name(const char *name, const char *const *candidates, size_t n);

#endif
