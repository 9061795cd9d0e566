/* The "model" section of tokenizer.json for BPE: merges and options. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

#define META "\xe2\x96\x81" /* U+2581, SentencePiece's space */

static td_status load_affix(const json_t *v, const char *key, const char *where, tok_affix *out,
                            td_error *err) {
    const char *s = "";
    td_status rc = td_json_opt_str(v, key, where, TD_E_MODEL, &s, err);
    if (rc != TD_OK || !*s)
        return rc;
    out->n = strlen(s);
    out->text = td_strndup(s, out->n);
    return out->text ? TD_OK : td_error_nomem(err, key, out->n);
}

static td_status load_options(const json_t *v, const char *where, tok_model *m, td_error *err) {
    double dropout = 0;
    td_status rc = load_affix(v, "continuing_subword_prefix", where, &m->prefix, err);
    if (rc == TD_OK)
        rc = load_affix(v, "end_of_word_suffix", where, &m->suffix, err);
    if (rc == TD_OK)
        rc = td_json_opt_real(v, "dropout", 0, 1, where, TD_E_MODEL, &dropout, err);
    if (rc == TD_OK && dropout > 0)
        rc = td_error_set(err, TD_E_MODEL,
                          "%s: \"dropout\" makes tokenisation random and is not supported; set it "
                          "to null",
                          where);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "fuse_unk", where, TD_E_MODEL, &m->fuse_unk, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "ignore_merges", where, TD_E_MODEL, &m->ignore_merges, err);
    return rc;
}

/* "a b" or ["a", "b"]. */
static bool merge_parts(const json_t *e, const char **a, size_t *na, const char **b, size_t *nb) {
    if (json_is_string(e)) {
        *a = json_string_value(e);
        size_t n = json_string_length(e);
        const char *space = memchr(*a, ' ', n);
        if (!space)
            return false;
        *na = (size_t)(space - *a);
        *b = space + 1;
        *nb = n - *na - 1;
        return !memchr(*b, ' ', *nb);
    }
    const json_t *x = json_array_get(e, 0), *y = json_array_get(e, 1);
    if (json_array_size(e) != 2 || !json_is_string(x) || !json_is_string(y))
        return false;
    *a = json_string_value(x);
    *na = json_string_length(x);
    *b = json_string_value(y);
    *nb = json_string_length(y);
    return true;
}

/* Has the string U+2581 behind a different character? */
static bool meta_inside(const char *s, size_t n) {
    for (size_t i = 1; i + 3 <= n; i++)
        if (memcmp(s + i, META, 3) == 0 && (i < 3 || memcmp(s + i - 3, META, 3) != 0))
            return true;
    return false;
}

static td_status load_merges(const json_t *v, const char *where, tok_model *m, td_error *err) {
    const json_t *list = json_object_get(v, "merges");
    size_t n = json_array_size(list);
    td_strbuf joined = {0};
    td_status rc = TD_OK;
    if (!json_is_array(list) || n > TOK_MAX_ID)
        return td_error_set(err, TD_E_MODEL,
                            "%s: \"merges\" must be an array of at most %d entries", where,
                            TOK_MAX_ID);
    m->rank_id = td_calloc(n, sizeof *m->rank_id);
    if (!m->rank_id)
        return td_error_nomem(err, "the merges", n * sizeof *m->rank_id);
    m->n_ranks = n;
    rc = tok_merges_alloc(m, n, err);
    for (size_t i = 0; i < n && rc == TD_OK; i++) {
        const char *a, *b;
        size_t na, nb;
        if (!merge_parts(json_array_get(list, i), &a, &na, &b, &nb)) {
            rc = td_error_set(err, TD_E_MODEL,
                              "%s: \"merges\" entry %zu must be \"a b\" or [\"a\", \"b\"]", where,
                              i);
            break;
        }
        td_strbuf_clear(&joined);
        td_strbuf_append(&joined, a, na);
        td_strbuf_append(&joined, b + TD_MIN(nb, m->prefix.n), nb - TD_MIN(nb, m->prefix.n));
        if (joined.oom) {
            rc = td_error_nomem(err, "the merges", joined.len);
            break;
        }
        int32_t left = tok_vocab_find(&m->vocab, a, na), right = tok_vocab_find(&m->vocab, b, nb);
        int32_t both = tok_vocab_find(&m->vocab, joined.data, joined.len);
        if (left < 0 || right < 0 || both < 0)
            rc = td_error_set(err, TD_E_MODEL,
                              "%s: \"merges\" entry %zu uses a token that is not in \"vocab\": "
                              "\"%.*s\" + \"%.*s\"",
                              where, i, (int)TD_MIN(na, 60), a, (int)TD_MIN(nb, 60), b);
        else {
            /* Of a pair given twice the last rank counts, as in HF's map. */
            tok_merges_put(m, left, right, (uint32_t)i, both);
            m->rank_id[i] = both;
        }
        m->cut_at_meta = m->cut_at_meta && !meta_inside(joined.data, joined.len);
    }
    td_strbuf_free(&joined);
    return rc;
}

/* The bytes that a token's visible characters stand for; false when one stands for none. */
static bool visible_to_bytes(const char *s, size_t n, td_strbuf *out) {
    size_t len;
    td_strbuf_clear(out);
    for (size_t i = 0; i < n; i += len) {
        int byte = tok_char_to_byte(tok_utf8_get(s + i, n - i, &len));
        if (byte < 0)
            return false;
        char c = (char)byte;
        td_strbuf_append(out, &c, 1);
    }
    return true;
}

static td_status index_bytes(tok_model *m, td_error *err) {
    td_strbuf b = {0};
    td_status rc = TD_OK;
    for (int i = 0; i < 256; i++) {
        char c[4];
        m->byte_id[i] = tok_vocab_find(&m->vocab, c, tok_utf8_put(tok_byte_to_char((uint8_t)i), c));
    }
    for (size_t id = 0; m->ignore_merges && id < m->vocab.n_ids && rc == TD_OK; id++) {
        size_t n;
        const char *s = tok_vocab_text(&m->vocab, (int32_t)id, &n);
        if (!s || n == 0 || !visible_to_bytes(s, n, &b))
            continue;
        rc = b.oom ? td_error_nomem(err, "the vocabulary", b.len)
                   : tok_vocab_add(&m->bytes, b.data, b.len, (int32_t)id, err);
    }
    td_strbuf_free(&b);
    return rc;
}

td_status tok_bpe_load(const json_t *v, const char *where, tok_model *m, td_error *err) {
    const char *unk = NULL;
    td_status rc = load_options(v, where, m, err);
    m->cut_at_meta = !m->byte_level && !m->ignore_merges && !m->prefix.n && !m->suffix.n;
    if (rc == TD_OK)
        rc = load_merges(v, where, m, err);
    if (rc == TD_OK)
        rc = td_json_opt_str(v, "unk_token", where, TD_E_MODEL, &unk, err);
    if (rc == TD_OK && unk) {
        m->unk_id = tok_vocab_find(&m->vocab, unk, strlen(unk));
        if (m->unk_id < 0)
            rc = td_error_set(err, TD_E_MODEL, "%s: \"unk_token\" \"%.60s\" is not in \"vocab\"",
                              where, unk);
    }
    if (rc == TD_OK && m->byte_level)
        rc = index_bytes(m, err);
    /* Unknown characters in a row would fuse across the cut. */
    m->cut_at_meta = m->cut_at_meta && tok_vocab_find(&m->vocab, META, 3) >= 0;
    return rc;
}
