/* The "model" section of tokenizer.json: what all models share, and a cache of pieces before them.
 *
 * The cache is direct-mapped and holds short pieces: most words of a text have been seen.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include "tokenizer/internal.h"
#include "base/memory.h"

#define META "\xe2\x96\x81" /* U+2581, SentencePiece's space */

/* --- loading ---------------------------------------------------------------------------------- */

static td_status load_kind(const json_t *v, const char *where, tok_model_kind *out, td_error *err) {
    static const char *const names[] = {"BPE", "WordPiece", "WordLevel", "Unigram"};
    const char *type = NULL;
    td_status rc = td_json_opt_str(v, "type", where, TD_E_MODEL, &type, err);
    if (rc != TD_OK)
        return rc;
    if (!type) { /* old files do not say; HF takes the first model that fits */
        *out = json_is_array(json_object_get(v, "vocab")) ? TOK_MODEL_UNIGRAM
               : json_object_get(v, "continuing_subword_prefix") && !json_object_get(v, "merges")
                   ? TOK_MODEL_WORDPIECE
                   : TOK_MODEL_BPE;
        return TD_OK;
    }
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++)
        if (strcmp(type, names[i]) == 0) {
            *out = (tok_model_kind)i;
            return TD_OK;
        }
    return td_error_set(err, TD_E_MODEL,
                        "%s: the model type \"%s\" is not supported (supported: BPE, WordPiece, "
                        "WordLevel, Unigram)",
                        where, type);
}

bool tok_model_takes_bytes(const json_t *v) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    tok_model_kind kind = TOK_MODEL_BPE;
    if (load_kind(v, "", &kind, NULL) != TD_OK || kind != TOK_MODEL_BPE)
        return false;
    for (size_t i = 0; i < TD_ARRAY_LEN(affixes); i++)
        if (json_string_length(json_object_get(v, affixes[i])))
            return false;
    return !json_is_true(json_object_get(v, "byte_fallback"));
}

static td_status load_vocab(const json_t *v, const char *where, tok_model *m, td_error *err) {
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

static void index_characters(tok_model *m) {
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

td_status tok_model_load(const json_t *v, tok_text text, bool byte_level, const char *where,
                         tok_model *m, td_error *err) {
    *m = (tok_model){.unk_id = -1, .byte_level = byte_level};
    if (!json_is_object(v))
        return td_error_set(err, TD_E_MODEL, "%s: it must be an object, but is %s", where,
                            td_json_type_name(v));
    td_status rc = load_kind(v, where, &m->kind, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "byte_fallback", where, TD_E_MODEL, &m->byte_fallback, err);
    if (rc == TD_OK && m->kind != TOK_MODEL_UNIGRAM)
        rc = load_vocab(v, where, m, err);
    if (rc != TD_OK)
        return rc;
    if (m->kind == TOK_MODEL_BPE)
        rc = tok_bpe_load(v, where, m, err);
    else if (m->kind == TOK_MODEL_UNIGRAM)
        rc = tok_unigram_load(v, text, where, m, err);
    else
        rc = tok_words_load(v, where, m, err);
    if (rc == TD_OK && !byte_level)
        index_characters(m);
    return rc;
}

void tok_model_free(tok_model *m) {
    tok_vocab_free(&m->vocab);
    tok_vocab_free(&m->bytes);
    free(m->merges);
    free(m->rank_id);
    free(m->prefix.text);
    free(m->suffix.text);
    free(m->score);
    free(m->node_id);
    *m = (tok_model){0};
}

/* --- the hash table of pairs ------------------------------------------------------------------ */

static uint64_t mix(uint64_t x) {
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 32;
}

td_status tok_merges_alloc(tok_model *m, size_t n, td_error *err) {
    size_t size = 16;
    while (size < n * 2)
        size *= 2;
    m->merges = td_calloc(size, sizeof *m->merges);
    if (!m->merges)
        return td_error_nomem(err, "the merges", size * sizeof *m->merges);
    m->n_merge_slots = size;
    for (size_t i = 0; i < size; i++)
        m->merges[i].pair = UINT64_MAX;
    return TD_OK;
}

const tok_merge *tok_merges_find(const tok_model *m, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t mask = m->n_merge_slots - 1;
    for (size_t i = mix(pair) & mask;; i = (i + 1) & mask) {
        if (m->merges[i].pair == pair)
            return &m->merges[i];
        if (m->merges[i].pair == UINT64_MAX)
            return NULL;
    }
}

void tok_merges_put(tok_model *m, int32_t left, int32_t right, uint32_t rank, int32_t new_id) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t mask = m->n_merge_slots - 1, i = mix(pair) & mask;
    while (m->merges[i].pair != UINT64_MAX && m->merges[i].pair != pair)
        i = (i + 1) & mask;
    m->merges[i] = (tok_merge){pair, rank, new_id};
}

/* --- one piece -------------------------------------------------------------------------------- */

td_status tok_reserve_symbols(td_tok_scratch *s, size_t n, td_error *err) {
    if (n > INT32_MAX / 2)
        return td_error_set(err, TD_E_DATA,
                            "a piece of %zu bytes without a place to split is more than the "
                            "tokenizer takes; split the row",
                            n);
    size_t cap = s->sym_cap;
    if (!td_grow((void **)&s->sym_rank, &cap, n + 1, sizeof *s->sym_rank))
        return td_error_nomem(err, "the symbols of a piece", n * 4);
    cap = s->sym_cap;
    if (!td_grow((void **)&s->sym_id, &cap, n + 1, sizeof *s->sym_id))
        return td_error_nomem(err, "the symbols of a piece", n * 4);
    s->sym_cap = cap;
    return TD_OK;
}

bool tok_byte_fallback(const tok_model *m, int32_t *sym, size_t *k, const char *p, size_t len) {
    for (size_t j = 0; j < len; j++)
        if (m->byte_id[(uint8_t)p[j]] < 0)
            return false;
    for (size_t j = 0; j < len; j++)
        sym[(*k)++] = m->byte_id[(uint8_t)p[j]];
    return true;
}

static td_status append(td_ids *out, const int32_t *ids, size_t n, td_error *err) {
    if (out->cap - out->n < n &&
        !td_grow((void **)&out->ids, &out->cap, out->n + n, sizeof *out->ids))
        return td_error_nomem(err, "token ids", (out->n + n) * sizeof *out->ids);
    for (size_t i = 0; i < n; i++)
        out->ids[out->n + i] = ids[i];
    out->n += n;
    return TD_OK;
}

/* The piece's ids in s->sym_id[0 .. *n_ids). */
static td_status encode_uncached(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                                 size_t *n_ids, td_error *err) {
    td_status rc = tok_reserve_symbols(s, n, err);
    if (rc != TD_OK)
        return rc;
    switch (m->kind) {
    case TOK_MODEL_BPE:
        return tok_bpe_piece(m, s, p, n, n_ids, err);
    case TOK_MODEL_UNIGRAM:
        return tok_unigram_piece(m, s, p, n, n_ids, err);
    default:
        return tok_words_piece(m, s, p, n, n_ids, err);
    }
}

static td_status encode_cut(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                            td_ids *out, td_error *err) {
    size_t n_ids;
    if (n > TOK_CACHE_BYTES || !s->cache) {
        td_status rc = encode_uncached(m, s, p, n, &n_ids, err);
        return rc == TD_OK ? append(out, s->sym_id, n_ids, err) : rc;
    }
    uint64_t hash = XXH3_64bits(p, n);
    tok_cache_entry *e = &s->cache[hash & (TOK_CACHE_SLOTS - 1)];
    uint32_t tag = (uint32_t)(hash >> 32);
    if (e->tag == tag && e->n_bytes == n && memcmp(e->bytes, p, n) == 0)
        return append(out, e->ids, e->n_ids, err);
    td_status rc = encode_uncached(m, s, p, n, &n_ids, err);
    if (rc != TD_OK)
        return rc;
    if (n_ids <= TOK_CACHE_IDS) {
        e->tag = tag;
        e->n_bytes = (uint8_t)n;
        e->n_ids = (uint8_t)n_ids;
        memcpy(e->bytes, p, n);
        memcpy(e->ids, s->sym_id, n_ids * sizeof *e->ids);
    }
    return append(out, s->sym_id, n_ids, err);
}

td_status tok_model_encode(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                           td_ids *out, td_error *err) {
    if (n == 0)
        return TD_OK;
    if (!m->cut_at_meta)
        return encode_cut(m, s, p, n, out, err);
    /* Words in one long piece: no merge crosses from a character into a U+2581 behind it. */
    for (size_t at = 0; at < n;) {
        size_t end = at;
        while (end + 3 <= n && memcmp(p + end, META, 3) == 0)
            end += 3;
        const char *next = memmem(p + end, n - end, META, 3);
        end = next ? (size_t)(next - p) : n;
        td_status rc = encode_cut(m, s, p + at, end - at, out, err);
        if (rc != TD_OK)
            return rc;
        at = end;
    }
    return TD_OK;
}
