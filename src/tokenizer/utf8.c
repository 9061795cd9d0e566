/* UTF-8 and the byte alphabet of byte-level BPE. */
#include <string.h>
#include "tokenizer/internal.h"
#include "base/strbuf.h"

uint32_t tok_utf8_get(const char *p, size_t n, size_t *len) {
    const uint8_t *s = (const uint8_t *)p;
    if (s[0] < 0x80 || n < 2) {
        *len = 1;
        return s[0];
    }
    if (s[0] < 0xe0 || n < 3) {
        *len = 2;
        return (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
    }
    if (s[0] < 0xf0 || n < 4) {
        *len = 3;
        return (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
    }
    *len = 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 |
           (uint32_t)(s[2] & 0x3f) << 6 | (s[3] & 0x3f);
}

size_t tok_utf8_put(uint32_t cp, char out[4]) {
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

/* Length of the well-formed sequence at s (Unicode table 3-7), or 0 with *bad = length of the
 * maximal part that one U+FFFD replaces. */
static size_t sequence_length(const uint8_t *s, size_t n, size_t *bad) {
    uint8_t lo = 0x80, hi = 0xbf;
    size_t len;
    *bad = 1;
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    if (s[0] < 0xe0) {
        len = 2;
    } else if (s[0] < 0xf0) {
        len = 3;
        if (s[0] == 0xe0)
            lo = 0xa0;
        else if (s[0] == 0xed)
            hi = 0x9f; /* no surrogates */
    } else {
        len = 4;
        if (s[0] == 0xf0)
            lo = 0x90;
        else if (s[0] == 0xf4)
            hi = 0x8f;
    }
    for (size_t i = 1; i < len; i++) {
        if (i >= n || s[i] < lo || s[i] > hi) {
            *bad = i;
            return 0;
        }
        lo = 0x80;
        hi = 0xbf;
    }
    return len;
}

size_t tok_utf8_valid_prefix(const char *p, size_t n) {
    const uint8_t *s = (const uint8_t *)p;
    size_t i = 0, bad;
    while (i < n) {
        uint64_t w;
        if (i + 8 <= n) {
            memcpy(&w, s + i, 8);
            if (!(w & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        size_t len = sequence_length(s + i, n - i, &bad);
        if (!len)
            return i;
        i += len;
    }
    return n;
}

void tok_utf8_append_lossy(td_strbuf *out, const char *p, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t good = tok_utf8_valid_prefix(p + i, n - i), bad;
        td_strbuf_append(out, p + i, good);
        i += good;
        if (i < n) {
            sequence_length((const uint8_t *)p + i, n - i, &bad);
            td_strbuf_append(out, "\xef\xbf\xbd", 3);
            i += bad;
        }
    }
}

bool tok_is_space(uint32_t cp) {
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}

/* GPT-2's table: printable Latin-1 bytes stand for themselves, the other 68 in ascending order for
 * U+0100 and up. The four runs of the others: 00-20, 7f-a0, ad. */
uint32_t tok_byte_to_char(uint8_t byte) {
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte < 0x7f)
        return byte;
    if (byte <= 0xa0)
        return 0x121u + (byte - 0x7fu);
    return byte == 0xad ? 0x143u : byte;
}

int tok_char_to_byte(uint32_t cp) {
    if ((cp >= 0x21 && cp <= 0x7e) || (cp >= 0xa1 && cp <= 0xff && cp != 0xad))
        return (int)cp;
    if (cp >= 0x100 && cp <= 0x120)
        return (int)(cp - 0x100);
    if (cp >= 0x121 && cp <= 0x142)
        return (int)(cp - 0x121 + 0x7f);
    return cp == 0x143 ? 0xad : -1;
}
