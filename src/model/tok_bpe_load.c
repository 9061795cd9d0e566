/* The "model" section of tokenizer.json: vocabulary, merges, options. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model/tok_internal.h"

#define META "\xe2\x96\x81" /* U+2581, SentencePiece's space */

static uint64_t mix(uint64_t x) {
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 32;
}

const tok_merge *tok_bpe_find_merge(const tok_bpe *m, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t mask = m->n_merge_slots - 1;
    for (size_t i = mix(pair) & mask;; i = (i + 1) & mask) {
        if (m->merges[i].pair == pair)
            return &m->merges[i];
        if (m->merges[i].pair == UINT64_MAX)
            return NULL;
    }
}

static td_status load_options(const json_t *v, const char *where, tok_bpe *m, td_error *err) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = "BPE", *s;
    double dropout = 0;
    td_status rc = td_json_opt_str(v, "type", where, TD_E_MODEL, &type, err);
    if (rc == TD_OK && strcmp(type, "BPE") != 0)
        return td_error_set(err, TD_E_MODEL,
                            "%s: the model type \"%s\" is not supported (supported: BPE)", where,
                            type);
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(affixes); i++) {
        s = "";
        rc = td_json_opt_str(v, affixes[i], where, TD_E_MODEL, &s, err);
        if (rc == TD_OK && *s)
            rc = td_error_set(err, TD_E_MODEL, "%s: a \"%s\" is not supported", where, affixes[i]);
    }
    if (rc == TD_OK)
        rc = td_json_opt_real(v, "dropout", 0, 1, where, TD_E_MODEL, &dropout, err);
    if (rc == TD_OK && dropout > 0)
        rc = td_error_set(err, TD_E_MODEL,
                          "%s: \"dropout\" makes tokenisation random and is not supported; set it "
                          "to null",
                          where);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "byte_fallback", where, TD_E_MODEL, &m->byte_fallback, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "fuse_unk", where, TD_E_MODEL, &m->fuse_unk, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "ignore_merges", where, TD_E_MODEL, &m->ignore_merges, err);
    return rc;
}

static td_status load_vocab(const json_t *v, const char *where, tok_bpe *m, td_error *err) {
    json_t *vocab = json_object_get(v, "vocab"), *id;
    const char *key;
    if (!json_is_object(vocab))
        return td_error_set(err, TD_E_MODEL, "%s: \"vocab\" must be an object, but is %s", where,
                            td_json_type_name(vocab));
    json_object_foreach(vocab, key, id) {
        json_int_t i = json_integer_value(id);
        if (!json_is_integer(id) || i < 0 || i > TOK_MAX_ID)
            return td_error_set(err, TD_E_MODEL,
                                "%s: the id of \"%.60s\" must be an integer from 0 to %d", where,
                                key, TOK_MAX_ID);
        td_status rc = tok_vocab_add(&m->vocab, key, strlen(key), (int32_t)i, err);
        if (rc != TD_OK) {
            td_error_prefix(err, "%s", where);
            return rc;
        }
    }
    m->n_vocab = json_object_size(vocab);
    return TD_OK;
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

/* The pair's last rank counts, as in HF's map. */
static void put_merge(tok_bpe *m, int32_t left, int32_t right, uint32_t rank, int32_t new_id) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t mask = m->n_merge_slots - 1, i = mix(pair) & mask;
    while (m->merges[i].pair != UINT64_MAX && m->merges[i].pair != pair)
        i = (i + 1) & mask;
    m->merges[i] = (tok_merge){pair, rank, new_id};
    m->rank_id[rank] = new_id;
}

/* Has the string U+2581 behind a different character? */
static bool meta_inside(const char *s, size_t n) {
    for (size_t i = 1; i + 3 <= n; i++)
        if (memcmp(s + i, META, 3) == 0 && (i < 3 || memcmp(s + i - 3, META, 3) != 0))
            return true;
    return false;
}

static td_status load_merges(const json_t *v, const char *where, tok_bpe *m, td_error *err) {
    const json_t *list = json_object_get(v, "merges");
    size_t n = json_array_size(list), size = 16;
    td_strbuf joined = {0};
    td_status rc = TD_OK;
    if (!json_is_array(list) || n > TOK_MAX_ID)
        return td_error_set(err, TD_E_MODEL,
                            "%s: \"merges\" must be an array of at most %d entries", where,
                            TOK_MAX_ID);
    while (size < n * 2)
        size *= 2;
    m->merges = td_calloc(size, sizeof *m->merges);
    m->rank_id = td_calloc(n, sizeof *m->rank_id);
    if (!m->merges || !m->rank_id)
        return td_error_nomem(err, "the merges", size * sizeof *m->merges);
    m->n_merge_slots = size;
    m->n_ranks = n;
    for (size_t i = 0; i < size; i++)
        m->merges[i].pair = UINT64_MAX;
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
        td_strbuf_append(&joined, b, nb);
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
        else
            put_merge(m, left, right, (uint32_t)i, both);
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

static td_status index_bytes(tok_bpe *m, td_error *err) {
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

static void index_characters(tok_bpe *m) {
    for (int i = 0; i < 128; i++) {
        char c = (char)i;
        m->ascii_id[i] = tok_vocab_find(&m->vocab, &c, 1);
    }
    for (int i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        m->byte_id[i] = m->byte_fallback ? tok_vocab_find(&m->vocab, name, 6) : -1;
    }
}

td_status tok_bpe_load(const json_t *v, bool byte_level, const char *where, tok_bpe *m,
                       td_error *err) {
    const char *unk = NULL;
    *m = (tok_bpe){.unk_id = -1, .byte_level = byte_level};
    if (!json_is_object(v))
        return td_error_set(err, TD_E_MODEL, "%s: it must be an object, but is %s", where,
                            td_json_type_name(v));
    td_status rc = load_options(v, where, m, err);
    m->cut_at_meta = !byte_level && !m->ignore_merges;
    if (rc == TD_OK)
        rc = load_vocab(v, where, m, err);
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
    if (rc == TD_OK && byte_level)
        rc = index_bytes(m, err);
    else if (rc == TD_OK)
        index_characters(m);
    /* Unknown characters in a row would fuse across the cut. */
    m->cut_at_meta = m->cut_at_meta && tok_vocab_find(&m->vocab, META, 3) >= 0;
    return rc;
}

void tok_bpe_free(tok_bpe *m) {
    tok_vocab_free(&m->vocab);
    tok_vocab_free(&m->bytes);
    free(m->merges);
    free(m->rank_id);
    *m = (tok_bpe){0};
}
