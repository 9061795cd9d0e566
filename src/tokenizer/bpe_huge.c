/* Byte-pair encoding of a very long piece, a document without a place to split, in linear time.
 *
 * Ranks are worked off in order, all places of a rank in one sweep from left to right; a pair of a
 * higher rank that a sweep creates waits in the list of its own rank. No heap grows with the text,
 * and sweeps walk through memory in one direction.
 *
 * Some vocabularies also have merges that create a pair of a lower rank, or of the sweep's own.
 * Such a pair is urgent: it comes before the rest of the sweep, by the heap. That is the same order
 * as taking the least (rank, position) each time, since an urgent pair begins at the place just
 * merged or left of it, thus left of the rest of the sweep.
 *
 * A place is skipped when its pair has changed since. The same pair never comes back to a place,
 * since symbols only grow: no place is twice in a list.
 */
#include <stdlib.h>
#include "tokenizer/internal.h"
#include "base/memory.h"

enum { AHEAD = 12 }; /* places whose symbols are fetched in advance */

/* `sweep` is the rank that is worked off. */
static bool wait_for_rank(const tok_model *m, td_tok_scratch *s, int32_t at, int64_t sweep) {
    tok_node *node = &s->node[at];
    const tok_merge *e =
        node->next < 0 ? NULL : tok_merges_find(m, node->id, s->node[node->next].id);
    node->rank = e ? e->rank : TOK_NO_RANK;
    if (!e)
        return true;
    if (e->rank <= sweep)
        return tok_heap_push(s, (uint64_t)e->rank << 32 | (uint32_t)at);
    if (s->waiting_n == s->waiting_cap &&
        (s->waiting_n >= INT32_MAX ||
         !td_grow((void **)&s->waiting, &s->waiting_cap, s->waiting_n + 1, sizeof *s->waiting)))
        return false;
    s->waiting[s->waiting_n] = (tok_waiting){at, s->first_waiting[e->rank]};
    s->first_waiting[e->rank] = (int32_t)s->waiting_n++;
    return true;
}

static bool merge_at(const tok_model *m, td_tok_scratch *s, int32_t at, uint32_t rank,
                     uint32_t sweep) {
    tok_node *node = &s->node[at];
    if (node->rank != rank)
        return true;
    tok_node *gone = &s->node[node->next];
    node->id = m->rank_id[rank];
    node->next = gone->next;
    gone->rank = TOK_NO_RANK;
    if (node->next >= 0)
        s->node[node->next].prev = at;
    return wait_for_rank(m, s, at, sweep) &&
           (node->prev < 0 || wait_for_rank(m, s, node->prev, sweep));
}

static bool merge_urgent(const tok_model *m, td_tok_scratch *s, uint32_t sweep) {
    bool ok = true;
    while (ok && s->heap_n) {
        uint64_t top = tok_heap_pop(s);
        ok = merge_at(m, s, (int32_t)(top & INT32_MAX), (uint32_t)(top >> 32), sweep);
    }
    return ok;
}

static int by_position(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static td_status prepare(const tok_model *m, td_tok_scratch *s, size_t n, td_error *err) {
    if (!td_grow((void **)&s->node, &s->node_cap, n, sizeof *s->node) ||
        !td_grow((void **)&s->waiting, &s->waiting_cap, n, sizeof *s->waiting) ||
        !td_grow((void **)&s->first_waiting, &s->first_cap, m->n_ranks, sizeof *s->first_waiting))
        return td_error_nomem(err, "the symbols of a piece", n * sizeof *s->node);
    for (size_t i = 0; i < m->n_ranks; i++)
        s->first_waiting[i] = -1;
    s->waiting_n = 0;
    for (size_t i = 0; i < n; i++)
        s->node[i] =
            (tok_node){s->sym_id[i], TOK_NO_RANK, (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
    s->heap_n = 0;
    for (size_t i = n; i-- > 0;) /* lists give back the last one first */
        if (!wait_for_rank(m, s, (int32_t)i, -1))
            return td_error_nomem(err, "the pairs of a piece", n * sizeof *s->waiting);
    return TD_OK;
}

/* The places of a rank, into s->sym_id, in ascending order. */
static size_t gather(td_tok_scratch *s, uint32_t rank) {
    size_t k = 0;
    bool sorted = true;
    for (int32_t i = s->first_waiting[rank]; i >= 0; i = s->waiting[i].next) {
        int32_t at = s->waiting[i].at;
        if (s->node[at].rank != rank)
            continue;
        sorted = sorted && (k == 0 || s->sym_id[k - 1] < at);
        s->sym_id[k++] = at;
    }
    if (!sorted)
        qsort(s->sym_id, k, sizeof *s->sym_id, by_position);
    return k;
}

td_status tok_bpe_merge_by_rank(const tok_model *m, td_tok_scratch *s, size_t *n, td_error *err) {
    td_status rc = prepare(m, s, *n, err);
    for (uint32_t rank = 0; rc == TD_OK && rank < m->n_ranks; rank++) {
        size_t k = gather(s, rank);
        for (size_t i = 0; rc == TD_OK && i < k; i++) {
            if (i + AHEAD < k)
                __builtin_prefetch(&s->node[s->sym_id[i + AHEAD]], 1);
            if (!merge_at(m, s, s->sym_id[i], rank, rank) || !merge_urgent(m, s, rank))
                rc = td_error_nomem(err, "the pairs of a piece", *n * sizeof *s->waiting);
        }
    }
    size_t k = 0;
    for (int32_t i = 0; rc == TD_OK && i >= 0; i = s->node[i].next)
        s->sym_id[k++] = s->node[i].id;
    *n = k;
    return rc;
}
