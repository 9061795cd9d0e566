/* The Precompiled normaliser: SentencePiece's character map.
 *
 *   base64( u32 n | n bytes: double-array trie, u32 units | NUL-terminated replacements )
 *
 * The trie is Darts-clone's. A unit, from the root on, is reached by XOR of its offset with the
 * next byte. As HF does, a whole grapheme cluster of less than 6 bytes is looked up first, and the
 * *shortest* entry that it begins with replaces it; then each of its characters.
 */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* --- loading ---------------------------------------------------------------------------------- */

static int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Bytes written to out, which has room for n of them, or SIZE_MAX. */
static size_t base64_decode(const char *p, size_t n, uint8_t *out) {
    size_t k = 0;
    uint32_t word = 0;
    int bits = 0;
    while (n > 0 && p[n - 1] == '=')
        n--;
    for (size_t i = 0; i < n; i++) {
        int d = base64_digit(p[i]);
        if (d < 0)
            return SIZE_MAX;
        word = word << 6 | (uint32_t)d;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            out[k++] = (uint8_t)(word >> bits);
        }
    }
    return k;
}

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

td_status tok_charsmap_load(const json_t *v, const char *where, tok_charsmap *out, td_error *err) {
    const char *text;
    td_status rc = td_json_get_str(v, "precompiled_charsmap", where, TD_E_MODEL, &text, err);
    if (rc != TD_OK)
        return rc;
    size_t n = json_string_length(json_object_get(v, "precompiled_charsmap"));
    uint8_t *raw = td_calloc(n + 1, 1);
    if (!raw)
        return td_error_nomem(err, "the character map", n);
    size_t n_raw = base64_decode(text, n, raw);
    uint32_t n_trie = n_raw != SIZE_MAX && n_raw >= 4 ? get_u32(raw) : 1;
    if (n_raw == SIZE_MAX || n_trie % 4 || n_trie > n_raw - 4) {
        rc = td_error_set(err, TD_E_MODEL,
                          "%s: \"precompiled_charsmap\" is no character map in base64", where);
        goto done;
    }
    out->n_units = n_trie / 4;
    out->n_text = n_raw - 4 - n_trie;
    out->unit = td_calloc(out->n_units, sizeof *out->unit);
    out->text = td_strndup((const char *)raw + 4 + n_trie, out->n_text);
    if (!out->unit || !out->text) {
        rc = td_error_nomem(err, "the character map", n_raw);
        goto done;
    }
    for (size_t i = 0; i < out->n_units; i++)
        out->unit[i] = get_u32(raw + 4 + i * 4);
    if (tok_utf8_valid_prefix(out->text, out->n_text) < out->n_text)
        rc = td_error_set(err, TD_E_MODEL,
                          "%s: the replacements of \"precompiled_charsmap\" are not UTF-8", where);
done:
    free(raw);
    return rc;
}

void tok_charsmap_free(tok_charsmap *m) {
    free(m->unit);
    free(m->text);
    *m = (tok_charsmap){0};
}

/* --- looking up ------------------------------------------------------------------------------- */

static size_t unit_offset(uint32_t unit) {
    return (size_t)(unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* The replacement for the shortest entry that p[0..n) begins with; NULL for none. */
static const char *find(const tok_charsmap *m, const char *p, size_t n, size_t *n_out) {
    if (m->n_units == 0)
        return NULL;
    size_t at = unit_offset(m->unit[0]);
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)p[i];
        if (byte == 0)
            return NULL;
        at ^= byte;
        if (at >= m->n_units || (m->unit[at] & (0x80000000u | 0xff)) != byte)
            return NULL;
        bool leaf = m->unit[at] >> 8 & 1;
        at ^= unit_offset(m->unit[at]);
        if (!leaf)
            continue;
        size_t value = at < m->n_units ? m->unit[at] & 0x7fffffff : SIZE_MAX;
        if (value >= m->n_text)
            return NULL;
        *n_out = strnlen(m->text + value, m->n_text - value);
        return m->text + value;
    }
    return NULL;
}

static size_t cluster_length(const char *p, size_t n) {
    size_t len, at;
    utf8proc_int32_t state = 0;
    uint32_t before = tok_utf8_get(p, n, &at);
    while (at < n) {
        uint32_t cp = tok_utf8_get(p + at, n - at, &len);
        if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)before, (utf8proc_int32_t)cp,
                                             &state))
            break;
        before = cp;
        at += len;
    }
    return at;
}

void tok_charsmap_apply(const tok_charsmap *m, const char *text, size_t n, td_strbuf *out) {
    size_t n_to, len;
    for (size_t i = 0; i < n;) {
        size_t cluster = cluster_length(text + i, n - i);
        const char *to = cluster < 6 ? find(m, text + i, cluster, &n_to) : NULL;
        if (to) {
            td_strbuf_append(out, to, n_to);
            i += cluster;
            continue;
        }
        for (size_t end = i + cluster; i < end; i += len) {
            (void)tok_utf8_get(text + i, end - i, &len);
            to = find(m, text + i, len, &n_to);
            td_strbuf_append(out, to ? to : text + i, to ? n_to : len);
        }
    }
}
