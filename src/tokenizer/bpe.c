/* Byte-pair encoding of one piece.
 *
 * The piece becomes a row of symbols (bytes, or characters with byte fallback and unknown tokens);
 * then, again and again, the pair of neighbours with the lowest rank is merged, the leftmost of
 * equals first, until no pair has a rank.
 *
 * Up to SHORT_PIECE symbols the lowest rank is found by scanning, with ranks kept per pair. Longer
 * rows are a linked list and a heap of (rank, position): n log n, since a text without spaces is
 * one piece. From HUGE_PIECE on, tok_bpe_huge.c takes over. A heap entry is stale, and
 * skipped, when the rank stored for its position has changed: a rank names one pair, so an equal
 * rank means the same pair.
 */
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { SHORT_PIECE = 48, HUGE_PIECE = 1 << 14 };

/* --- from text to symbols --------------------------------------------------------------------- */

static size_t symbols_of_bytes(const tok_model *m, int32_t *sym, const char *p, size_t n) {
    size_t k = 0;
    int32_t unk = -1; /* an unknown symbol that is still to be written */
    for (size_t i = 0; i < n; i++) {
        int32_t id = m->byte_id[(uint8_t)p[i]];
        if (id >= 0) {
            if (unk >= 0)
                sym[k++] = unk;
            unk = -1;
            sym[k++] = id;
        } else if (m->unk_id >= 0) {
            if (unk >= 0 && !m->fuse_unk)
                sym[k++] = unk;
            unk = m->unk_id;
        }
    }
    if (unk >= 0)
        sym[k++] = unk;
    return k;
}

/* At most n symbols come out, since each has at least one byte of the text. */
static size_t symbols_of_chars(const tok_model *m, int32_t *sym, const char *p, size_t n) {
    size_t k = 0, len;
    int32_t unk = -1;
    for (size_t i = 0; i < n; i += len) {
        uint32_t cp = tok_utf8_get(p + i, n - i, &len);
        int32_t id = cp < 0x80 ? m->ascii_id[cp] : tok_vocab_find(&m->vocab, p + i, len);
        if (id >= 0) {
            if (unk >= 0)
                sym[k++] = unk;
            unk = -1;
            sym[k++] = id;
        } else if (m->byte_fallback && tok_byte_fallback(m, sym, &k, p + i, len)) {
            /* HF leaves an unknown token from before pending here, behind these bytes. */
        } else if (m->unk_id >= 0) {
            if (unk >= 0 && !m->fuse_unk)
                sym[k++] = unk;
            unk = m->unk_id;
        }
    }
    if (unk >= 0)
        sym[k++] = unk;
    return k;
}

/* The symbol p[0..len) with its affixes, in the scratch. */
static const td_strbuf *with_affixes(const tok_model *m, td_tok_scratch *s, const char *p,
                                     size_t len, bool first, bool last) {
    td_strbuf *b = &s->word;
    td_strbuf_clear(b);
    if (!first && m->prefix.n)
        td_strbuf_append(b, m->prefix.text, m->prefix.n);
    td_strbuf_append(b, p, len);
    if (last && m->suffix.n)
        td_strbuf_append(b, m->suffix.text, m->suffix.n);
    return b;
}

/* As symbols_of_chars, for models that write symbols differently inside a word and at its end. Each
 * symbol may become as many bytes as its affixes have, hence the growing. */
static td_status symbols_with_affixes(const tok_model *m, td_tok_scratch *s, const char *p,
                                      size_t n, size_t *out, td_error *err) {
    size_t k = 0, len;
    int32_t unk = -1;
    for (size_t i = 0; i < n; i += len) {
        (void)tok_utf8_get(p + i, n - i, &len);
        const td_strbuf *b = with_affixes(m, s, p + i, len, i == 0, i + len == n);
        if (b->oom)
            return td_error_nomem(err, "a symbol", len);
        td_status rc = tok_reserve_symbols(s, k + b->len + (n - i) + 1, err);
        if (rc != TD_OK)
            return rc;
        int32_t id = tok_vocab_find(&m->vocab, b->data, b->len);
        if (id >= 0) {
            if (unk >= 0)
                s->sym_id[k++] = unk;
            unk = -1;
            s->sym_id[k++] = id;
        } else if (m->byte_fallback && tok_byte_fallback(m, s->sym_id, &k, b->data, b->len)) {
            continue;
        } else if (m->unk_id >= 0) {
            if (unk >= 0 && !m->fuse_unk)
                s->sym_id[k++] = unk;
            unk = m->unk_id;
        }
    }
    if (unk >= 0)
        s->sym_id[k++] = unk;
    *out = k;
    return TD_OK;
}

/* --- merging ---------------------------------------------------------------------------------- */

static uint32_t pair_rank(const tok_model *m, int32_t left, int32_t right) {
    const tok_merge *e = tok_merges_find(m, left, right);
    return e ? e->rank : TOK_NO_RANK;
}

static size_t merge_short(const tok_model *m, int32_t *sym, uint32_t *rank, size_t n) {
    for (size_t i = 0; i + 1 < n; i++)
        rank[i] = pair_rank(m, sym[i], sym[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == TOK_NO_RANK)
            break;
        sym[best] = m->rank_id[rank[best]];
        n--;
        /* [best+1] goes: symbols behind it move down, and so do the ranks of their pairs. */
        for (size_t i = best + 1; i < n; i++)
            sym[i] = sym[i + 1];
        for (size_t i = best + 1; i + 1 < n; i++)
            rank[i] = rank[i + 1];
        if (best > 0)
            rank[best - 1] = pair_rank(m, sym[best - 1], sym[best]);
        if (best + 1 < n)
            rank[best] = pair_rank(m, sym[best], sym[best + 1]);
    }
    return n;
}

static void sift_down(uint64_t *h, size_t n, size_t i) {
    uint64_t x = h[i];
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && h[c + 1] < h[c])
            c++;
        if (h[c] >= x)
            break;
        h[i] = h[c];
    }
    h[i] = x;
}

uint64_t tok_heap_pop(td_tok_scratch *s) {
    uint64_t top = s->heap[0];
    s->heap[0] = s->heap[--s->heap_n];
    if (s->heap_n)
        sift_down(s->heap, s->heap_n, 0);
    return top;
}

bool tok_heap_push(td_tok_scratch *s, uint64_t x) {
    if (s->heap_n == s->heap_cap &&
        !td_grow((void **)&s->heap, &s->heap_cap, s->heap_n + 1, sizeof *s->heap))
        return false;
    size_t i = s->heap_n++;
    while (i > 0 && s->heap[(i - 1) / 2] > x) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = x;
    return true;
}

static td_status reserve_links(td_tok_scratch *s, size_t n, td_error *err) {
    size_t cap = s->link_cap;
    if (!td_grow((void **)&s->sym_prev, &cap, n, sizeof *s->sym_prev))
        return td_error_nomem(err, "the symbols of a piece", n * 4);
    cap = s->link_cap;
    if (!td_grow((void **)&s->sym_next, &cap, n, sizeof *s->sym_next))
        return td_error_nomem(err, "the symbols of a piece", n * 4);
    s->link_cap = cap;
    if (!td_grow((void **)&s->heap, &s->heap_cap, n, sizeof *s->heap))
        return td_error_nomem(err, "the heap of a piece", n * 8);
    return TD_OK;
}

/* Ranks the pair that begins at i and queues it. */
static bool enqueue_pair(const tok_model *m, td_tok_scratch *s, int32_t i) {
    int32_t next = s->sym_next[i];
    s->sym_rank[i] = next < 0 ? TOK_NO_RANK : pair_rank(m, s->sym_id[i], s->sym_id[next]);
    return s->sym_rank[i] == TOK_NO_RANK ||
           tok_heap_push(s, (uint64_t)s->sym_rank[i] << 32 | (uint32_t)i);
}

td_status tok_bpe_merge_by_heap(const tok_model *m, td_tok_scratch *s, size_t *n, td_error *err) {
    td_status rc = reserve_links(s, *n, err);
    if (rc != TD_OK)
        return rc;
    s->heap_n = 0;
    for (size_t i = 0; i < *n; i++) {
        s->sym_prev[i] = (int32_t)i - 1;
        s->sym_next[i] = i + 1 < *n ? (int32_t)i + 1 : -1;
        s->sym_rank[i] = i + 1 < *n ? pair_rank(m, s->sym_id[i], s->sym_id[i + 1]) : TOK_NO_RANK;
        if (s->sym_rank[i] != TOK_NO_RANK)
            s->heap[s->heap_n++] = (uint64_t)s->sym_rank[i] << 32 | i;
    }
    for (size_t i = s->heap_n / 2; i-- > 0;)
        sift_down(s->heap, s->heap_n, i);
    while (s->heap_n) {
        uint64_t top = tok_heap_pop(s);
        int32_t i = (int32_t)(top & INT32_MAX);
        uint32_t rank = (uint32_t)(top >> 32);
        if (s->sym_rank[i] != rank)
            continue;
        int32_t gone = s->sym_next[i], next = s->sym_next[gone];
        s->sym_id[i] = m->rank_id[rank];
        s->sym_rank[gone] = TOK_NO_RANK; /* makes its heap entries stale for good */
        s->sym_next[i] = next;
        if (next >= 0)
            s->sym_prev[next] = i;
        if (!enqueue_pair(m, s, i) || (s->sym_prev[i] >= 0 && !enqueue_pair(m, s, s->sym_prev[i])))
            return td_error_nomem(err, "the heap of a piece", s->heap_cap * 16);
    }
    size_t k = 0;
    for (int32_t i = 0; i >= 0; i = s->sym_next[i])
        s->sym_id[k++] = s->sym_id[i];
    *n = k;
    return TD_OK;
}

/* --- one piece -------------------------------------------------------------------------------- */

td_status tok_bpe_piece(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                        size_t *n_ids, td_error *err) {
    td_status rc = TD_OK;
    size_t k = 0;
    if (m->ignore_merges) {
        int32_t id = tok_vocab_find(m->byte_level ? &m->bytes : &m->vocab, p, n);
        if (id >= 0) {
            s->sym_id[0] = id;
            *n_ids = 1;
            return TD_OK;
        }
    }
    if (m->byte_level)
        k = symbols_of_bytes(m, s->sym_id, p, n);
    else if (m->prefix.n || m->suffix.n)
        rc = symbols_with_affixes(m, s, p, n, &k, err);
    else
        k = symbols_of_chars(m, s->sym_id, p, n);
    if (rc != TD_OK)
        return rc;
    if (k <= SHORT_PIECE)
        k = merge_short(m, s->sym_id, s->sym_rank, k);
    else if (k >= HUGE_PIECE)
        rc = tok_bpe_merge_by_rank(m, s, &k, err);
    else
        rc = tok_bpe_merge_by_heap(m, s, &k, err);
    *n_ids = k;
    return rc;
}
