/* Unigram (SentencePiece's default): the way through a piece with the highest sum of scores.
 *
 * As in HF's encode_optimized: at each character, the tokens that begin there (a trie of bytes)
 * and, when none of them is that one character, the unknown token with a score below all. Scores
 * add up in double from the left, and a later way wins only when it is better.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"

#define UNK_PENALTY 10.0

/* Edges of the trie: at most one per byte of the vocabulary. */
static td_status build_trie(tok_model *m, td_error *err) {
    size_t n_nodes = 1, n_bytes = m->vocab.blob_len;
    td_status rc = tok_merges_alloc(m, n_bytes, err);
    if (rc != TD_OK)
        return rc;
    m->node_id = td_calloc(n_bytes + 1, sizeof *m->node_id);
    if (!m->node_id || n_bytes >= INT32_MAX)
        return td_error_nomem(err, "the trie of the vocabulary", n_bytes * sizeof *m->node_id);
    for (size_t i = 0; i <= n_bytes; i++)
        m->node_id[i] = -1;
    for (size_t i = 0; i < m->vocab.n_ids; i++) {
        size_t n;
        const char *p = tok_vocab_text(&m->vocab, (int32_t)i, &n);
        int32_t at = 0;
        for (size_t k = 0; p && k < n; k++) {
            const tok_merge *e = tok_merges_find(m, at, (uint8_t)p[k]);
            if (!e) {
                tok_merges_put(m, at, (uint8_t)p[k], 0, (int32_t)n_nodes);
                at = (int32_t)n_nodes++;
            } else {
                at = e->new_id;
            }
        }
        if (p && n)
            m->node_id[at] = tok_vocab_find(&m->vocab, p, n); /* of equal strings the last */
    }
    for (int b = 0; b < 256; b++) {
        const tok_merge *e = tok_merges_find(m, 0, b);
        m->first[b] = e ? e->new_id : -1;
    }
    return TD_OK;
}

/* The score of the next [token, score] pair of the text. */
static bool next_score(tok_text_walk *pairs, double *out) {
    tok_text none, pair, token, score;
    if (!tok_text_next(pairs, &none, &pair))
        return false;
    tok_text_walk both = tok_text_parts(pair);
    if (!tok_text_next(&both, &none, &token) || !tok_text_next(&both, &none, &score))
        return false;
    *out = tok_text_number(score);
    return isfinite(*out);
}

/* Scores come from the text: where two ways through a piece are all but equal, the last bit of a
 * score decides, and HF's parser does not give the nearest double. */
td_status tok_unigram_load(const json_t *v, tok_text text, const char *where, tok_model *m,
                           td_error *err) {
    const json_t *list = json_object_get(v, "vocab");
    size_t n = json_array_size(list);
    double min = 0;
    int64_t unk = -1;
    tok_text vocab = {0};
    if (!json_is_array(list) || n > TOK_MAX_ID)
        return td_error_set(err, TD_E_MODEL,
                            "%s: \"vocab\" must be an array of at most %d [token, score] pairs",
                            where, TOK_MAX_ID);
    if (!tok_text_member(text, "vocab", &vocab))
        return td_error_set(err, TD_E_MODEL, "%s: write the key \"vocab\" without escapes", where);
    tok_text_walk pairs = tok_text_parts(vocab);
    m->n_vocab = n;
    m->score = td_calloc(n, sizeof *m->score);
    if (!m->score)
        return td_error_nomem(err, "the scores", n * sizeof *m->score);
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_array_get(list, i), *s = json_array_get(e, 0);
        const json_t *score = json_array_get(e, 1);
        if (json_array_size(e) != 2 || !json_is_string(s) || !json_is_number(score))
            return td_error_set(err, TD_E_MODEL,
                                "%s: \"vocab\" entry %zu must be [\"token\", score]", where, i);
        td_status rc =
            tok_vocab_add(&m->vocab, json_string_value(s), json_string_length(s), (int32_t)i, err);
        if (rc != TD_OK)
            return rc;
        if (!next_score(&pairs, &m->score[i]))
            return td_error_set(
                err, TD_E_MODEL,
                "%s: the score of \"vocab\" entry %zu is beyond what a double holds", where, i);
        min = i == 0 ? m->score[i] : TD_MIN(min, m->score[i]);
    }
    td_status rc = td_json_opt_int(v, "unk_id", 0, (int64_t)n - 1, where, TD_E_MODEL, &unk, err);
    m->unk_id = (int32_t)unk;
    m->unk_score = min - UNK_PENALTY;
    return rc == TD_OK ? build_trie(m, err) : rc;
}

/* The scratch's links serve as: where the best way's last token begins, and its id. */
static td_status reserve(td_tok_scratch *s, size_t n, td_error *err) {
    size_t cap = s->link_cap;
    if (!td_grow((void **)&s->sym_prev, &cap, n + 1, sizeof *s->sym_prev))
        return td_error_nomem(err, "the ways through a piece", n * 4);
    cap = s->link_cap;
    if (!td_grow((void **)&s->sym_next, &cap, n + 1, sizeof *s->sym_next))
        return td_error_nomem(err, "the ways through a piece", n * 4);
    s->link_cap = cap;
    if (!td_grow((void **)&s->best, &s->best_cap, n + 1, sizeof *s->best))
        return td_error_nomem(err, "the ways through a piece", n * 8);
    return TD_OK;
}

static void offer(td_tok_scratch *s, size_t from, size_t to, double score, int32_t id) {
    if (s->sym_prev[to] >= 0 && !(score > s->best[to]))
        return;
    s->best[to] = score;
    s->sym_prev[to] = (int32_t)from;
    s->sym_next[to] = id;
}

static td_status find_best(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                           td_error *err) {
    size_t len;
    s->best[0] = 0;
    for (size_t i = 0; i <= n; i++)
        s->sym_prev[i] = -1;
    for (size_t at = 0; at < n; at += len) {
        bool single = false;
        (void)tok_utf8_get(p + at, n - at, &len);
        int32_t node = m->first[(uint8_t)p[at]];
        for (size_t end = at + 1; node >= 0; end++) {
            int32_t id = m->node_id[node];
            if (id >= 0) {
                offer(s, at, end, m->score[id] + s->best[at], id);
                single = single || end == at + len;
            }
            const tok_merge *e = end < n ? tok_merges_find(m, node, (uint8_t)p[end]) : NULL;
            node = e ? e->new_id : -1;
        }
        if (single)
            continue;
        if (m->unk_id < 0)
            return td_error_set(err, TD_E_DATA,
                                "the tokenizer knows no \"%.*s\" and has no unknown token",
                                (int)len, p + at);
        offer(s, at, at + len, m->unk_score + s->best[at], m->unk_id);
    }
    return TD_OK;
}

/* Ids of one token's text, written from the back. */
static size_t put_back(const tok_model *m, int32_t *sym, size_t k, const char *p, size_t n) {
    int32_t id = tok_vocab_find(&m->vocab, p, n);
    size_t n_bytes = 0;
    if (id < 0 && m->byte_fallback) {
        /* Bytes that are still to be overwritten or read lie below: k >= n as each id has a byte.
         */
        if (tok_byte_fallback(m, sym + k - n, &n_bytes, p, n))
            return k - n;
    }
    sym[k - 1] = id >= 0 ? id : m->unk_id;
    return k - 1;
}

td_status tok_unigram_piece(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                            size_t *n_ids, td_error *err) {
    td_status rc = reserve(s, n, err);
    if (rc == TD_OK)
        rc = find_best(m, s, p, n, err);
    if (rc != TD_OK)
        return rc;
    size_t k = n; /* ids are written downwards from here */
    for (size_t end = n, begin; end > 0; end = begin) {
        begin = (size_t)s->sym_prev[end];
        /* Unknown tokens in a row are one. */
        if (m->unk_id >= 0 && s->sym_next[end] == m->unk_id)
            while (begin > 0 && s->sym_next[begin] == m->unk_id)
                begin = (size_t)s->sym_prev[begin];
        k = put_back(m, s->sym_id, k, p + begin, end - begin);
    }
    memmove(s->sym_id, s->sym_id + k, (n - k) * sizeof *s->sym_id);
    *n_ids = n - k;
    return TD_OK;
}
