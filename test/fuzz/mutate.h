/* mutate.h - seeded mutations of a small valid input, for the bounded fuzz programs. */
#ifndef TDGEN_TEST_FUZZ_MUTATE_H
#define TDGEN_TEST_FUZZ_MUTATE_H

#include <stdint.h>
#include <stddef.h>
#include <string.h>

static inline uint64_t mutate_rand(uint64_t *s) { /* xorshift64*: the state is never 0 */
    *s ^= *s >> 12;
    *s ^= *s << 25;
    *s ^= *s >> 27;
    return *s * 0x2545f4914f6cdd1du;
}

/* n bytes without the `len` (which are there) at `at`: the new length. */
static inline size_t cut_out(void *buf, size_t n, size_t at, size_t len) {
    unsigned char *p = buf;
    memmove(p + at, p + at + len, n - at - len);
    return n - len;
}

/* n bytes with `len` more put in at `at`; NULL doubles what stands there. Nothing changes when cap
 * is too small. */
static inline size_t put_in(void *buf, size_t n, size_t cap, size_t at, const void *more,
                            size_t len) {
    unsigned char *p = buf;
    if (n + len > cap)
        return n;
    memmove(p + at + len, p + at, n - at);
    if (more)
        memcpy(p + at, more, len);
    return n + len;
}

/* 1 to 4 changes of buf (n bytes, room for cap): a byte, a digit, a removed or doubled range, a cut
 * end. Returns the new length. */
static inline size_t mutate(unsigned char *buf, size_t n, size_t cap, uint64_t *s) {
    static const char tokens[][24] = {"18446744073709551615",
                                      "-1",
                                      "9223372036854775807",
                                      "1e999",
                                      "4294967296",
                                      "null",
                                      "[]",
                                      "{}",
                                      "\"\"",
                                      "\\u0000",
                                      "0"};
    for (uint64_t k = 1 + mutate_rand(s) % 4; k > 0 && n > 0; k--) {
        size_t at = mutate_rand(s) % n, len = 1 + mutate_rand(s) % 16;
        if (len > n - at)
            len = n - at;
        switch (mutate_rand(s) % 6) {
        case 0:
            buf[at] = (unsigned char)mutate_rand(s);
            break;
        case 1: /* another digit in place of the next one */
            while (at < n && (buf[at] < '0' || buf[at] > '9'))
                at++;
            if (at < n)
                buf[at] = (unsigned char)('0' + mutate_rand(s) % 10);
            break;
        case 2:
            n = cut_out(buf, n, at, len);
            break;
        case 3:
            n = put_in(buf, n, cap, at, NULL, len);
            break;
        case 4:
            n = at;
            break;
        case 5: {
            const char *t = tokens[mutate_rand(s) % (sizeof tokens / sizeof *tokens)];
            n = put_in(buf, n, cap, at, t, strlen(t));
            break;
        }
        }
    }
    return n;
}

#endif
