/* Byte-pair encoding of one piece.
 *
 * The piece becomes a row of symbols (bytes, or characters with byte fallback and unknown tokens);
 * then, again and again, the pair of neighbours with the lowest rank is merged, the leftmost of
 * equals first, until no pair has a rank.
 *
 * Up to SHORT_PIECE symbols the lowest rank is found by scanning, with ranks kept per pair. Longer
 * rows are a linked list and a heap of (rank, position): n log n, since a text without spaces is
 * one piece. A heap entry is stale, and skipped, when the rank stored for its position has changed:
 * a rank names one pair, so an equal rank means the same pair.
 *
 * A direct-mapped cache of short pieces sits in front: most words of a text have been seen.
 */
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include "model/tok_internal.h"

enum { SHORT_PIECE = 48 };

#define META "\xe2\x96\x81"

/* --- from text to symbols ----------------------------------------------------------------------
 */

static td_status reserve_symbols(td_tok_scratch *s, size_t n, td_error *err) {
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

static size_t symbols_of_bytes(const tok_bpe *m, int32_t *sym, const char *p, size_t n) {
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

static bool fallback(const tok_bpe *m, int32_t *sym, size_t *k, const char *p, size_t len) {
    for (size_t j = 0; j < len; j++)
        if (m->byte_id[(uint8_t)p[j]] < 0)
            return false;
    for (size_t j = 0; j < len; j++)
        sym[(*k)++] = m->byte_id[(uint8_t)p[j]];
    return true;
}

/* At most n symbols come out, since each has at least one byte of the text. */
static size_t symbols_of_chars(const tok_bpe *m, int32_t *sym, const char *p, size_t n) {
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
        } else if (m->byte_fallback && fallback(m, sym, &k, p + i, len)) {
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

/* --- merging -----------------------------------------------------------------------------------
 */

static uint32_t pair_rank(const tok_bpe *m, int32_t left, int32_t right) {
    const tok_merge *e = tok_bpe_find_merge(m, left, right);
    return e ? e->rank : TOK_NO_RANK;
}

static size_t merge_short(const tok_bpe *m, int32_t *sym, uint32_t *rank, size_t n) {
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

static uint64_t pop(td_tok_scratch *s) {
    uint64_t top = s->heap[0];
    s->heap[0] = s->heap[--s->heap_n];
    if (s->heap_n)
        sift_down(s->heap, s->heap_n, 0);
    return top;
}

static bool push(td_tok_scratch *s, uint64_t x) {
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
static bool enqueue_pair(const tok_bpe *m, td_tok_scratch *s, int32_t i) {
    int32_t next = s->sym_next[i];
    s->sym_rank[i] = next < 0 ? TOK_NO_RANK : pair_rank(m, s->sym_id[i], s->sym_id[next]);
    return s->sym_rank[i] == TOK_NO_RANK || push(s, (uint64_t)s->sym_rank[i] << 32 | (uint32_t)i);
}

static td_status merge_long(const tok_bpe *m, td_tok_scratch *s, size_t *n, td_error *err) {
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
        uint64_t top = pop(s);
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

/* --- one piece ---------------------------------------------------------------------------------
 */

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
static td_status encode_uncached(const tok_bpe *m, td_tok_scratch *s, const char *p, size_t n,
                                 size_t *n_ids, td_error *err) {
    td_status rc = reserve_symbols(s, n, err);
    if (rc != TD_OK)
        return rc;
    if (m->ignore_merges) {
        int32_t id = tok_vocab_find(m->byte_level ? &m->bytes : &m->vocab, p, n);
        if (id >= 0) {
            s->sym_id[0] = id;
            *n_ids = 1;
            return TD_OK;
        }
    }
    size_t k =
        m->byte_level ? symbols_of_bytes(m, s->sym_id, p, n) : symbols_of_chars(m, s->sym_id, p, n);
    if (k <= SHORT_PIECE)
        k = merge_short(m, s->sym_id, s->sym_rank, k);
    else
        rc = merge_long(m, s, &k, err);
    *n_ids = k;
    return rc;
}

static td_status encode_cut(const tok_bpe *m, td_tok_scratch *s, const char *p, size_t n,
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

td_status tok_bpe_encode(const tok_bpe *m, td_tok_scratch *s, const char *p, size_t n, td_ids *out,
                         td_error *err) {
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
