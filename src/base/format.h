/* format.h - numbers and names for a person, and from one. */
#ifndef TDGEN_BASE_FORMAT_H
#define TDGEN_BASE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "1.5 GiB", "12.3k", "1h02m" into a caller's buffer; return it. */
char *td_human_bytes(uint64_t size_bytes, char *buf, size_t buf_size);
char *td_human_count(double n, char *buf, size_t buf_size);
char *td_human_seconds(double s, char *buf, size_t buf_size);
/* "12,345,678". */
char *td_grouped_digits(int64_t n, char buf[32]);

/* All of s as a decimal number in [min, max]; false, and *out untouched, when it is none. */
bool td_parse_int(const char *s, long long min, long long max, long long *out);
/* The candidate nearest to `name` by edit distance, or NULL when none is near enough to be a
 * plausible typing error. */
const char *td_nearest_name(const char *name, const char *const *candidates, size_t n);

#endif
