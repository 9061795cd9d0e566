/* queue.c - the protocol is in queue.h. Memory orders are argued at each atomic operation. */
#include "queue/queue.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include "base/memory.h"

enum { EMPTY = 0, FREE, CLAIMED, COMMITTING, DONE };

/* The state word: generation 24 | tries 8 | epoch 16 | owner 12 | state 4. The generation (how
 * often the slot was used) makes a word of an earlier item in the same slot never match. */
static inline uint64_t word(uint64_t gen, uint64_t tries, uint64_t epoch, uint64_t owner,
                            uint64_t st) {
    return (gen & 0xffffff) << 40 | (tries & 0xff) << 32 | (epoch & 0xffff) << 16 |
           (owner & 0xfff) << 4 | st;
}
static inline uint32_t word_state(uint64_t w) {
    return w & 15;
}
static inline uint32_t word_owner(uint64_t w) {
    return (uint32_t)(w >> 4) & 0xfff;
}
static inline uint32_t word_epoch(uint64_t w) {
    return (uint32_t)(w >> 16) & 0xffff;
}
static inline uint32_t word_tries(uint64_t w) {
    return (uint32_t)(w >> 32) & 0xff;
}
static inline uint64_t word_gen(uint64_t w) {
    return w >> 40;
}

#define CACHE_LINE 64

typedef struct slot {
    _Atomic uint64_t state;
    void *item; /* written by the producer before state becomes FREE, read by the claimer after */
} slot;

/* A cell of the retry ring; seq says whose turn it is (Vyukov, "Bounded MPMC queue"). */
typedef struct retry_cell {
    _Atomic uint64_t seq;
    uint64_t number;
} retry_cell;

struct td_queue {
    uint32_t capacity, n_owners;
    uint32_t shift; /* log2 capacity */
    slot *slots;
    retry_cell *retry;
    _Atomic uint32_t *epochs; /* [n_owners]; odd = retired */
    /* Each on a line of its own: the producer, the claimers and the finishers write different
     * ones. */
    _Alignas(CACHE_LINE) _Atomic uint64_t published;
    _Alignas(CACHE_LINE) _Atomic uint64_t cursor;
    _Alignas(CACHE_LINE) _Atomic uint64_t n_done;
    _Alignas(CACHE_LINE) _Atomic uint64_t retry_head;
    _Alignas(CACHE_LINE) _Atomic uint64_t retry_tail;
    _Alignas(CACHE_LINE) _Atomic bool closed;
};

td_status td_queue_create(uint32_t capacity, uint32_t n_owners, td_queue **out, td_error *err) {
    if (capacity < 2 || capacity > 1u << 24 || (capacity & (capacity - 1)) || n_owners < 1 ||
        n_owners > TD_QUEUE_MAX_OWNERS)
        return td_error_set(err, TD_E_INTERNAL, "work queue: capacity %u for %u groups", capacity,
                            n_owners);
    td_queue *q = aligned_alloc(CACHE_LINE, sizeof *q);
    if (!q)
        return td_error_nomem(err, "the work queue", sizeof *q);
    *q = (td_queue){.capacity = capacity, .n_owners = n_owners};
    while ((1u << q->shift) < capacity)
        q->shift++;
    q->slots = td_calloc(capacity, sizeof *q->slots);
    q->retry = td_calloc(capacity, sizeof *q->retry);
    q->epochs = td_calloc(n_owners, sizeof *q->epochs);
    if (!q->slots || !q->retry || !q->epochs) {
        td_queue_destroy(q);
        return td_error_nomem(err, "the work queue", capacity * sizeof *q->slots);
    }
    for (uint32_t i = 0; i < capacity; i++)
        atomic_init(&q->retry[i].seq, i);
    *out = q;
    return TD_OK;
}

void td_queue_destroy(td_queue *q) {
    if (!q)
        return;
    free(q->slots);
    free(q->retry);
    free(q->epochs);
    free(q);
}

static inline slot *slot_of(const td_queue *q, uint64_t number) {
    return &q->slots[number & (q->capacity - 1)];
}

static inline uint64_t gen_of(const td_queue *q, uint64_t number) {
    return (number >> q->shift) & 0xffffff;
}

bool td_queue_publish(td_queue *q, void *item) {
    /* relaxed: only this thread writes it */
    uint64_t n = atomic_load_explicit(&q->published, memory_order_relaxed);
    slot *s = slot_of(q, n);
    /* acquire: pairs with the release of done(), so that the last reads of the old item happened
     * before it is overwritten here */
    uint32_t st = word_state(atomic_load_explicit(&s->state, memory_order_acquire));
    if (st != EMPTY && st != DONE)
        return false;
    s->item = item;
    /* relaxed: the release of `published` below orders both item and state for cursor claimers, and
     * the retry ring has a release of its own */
    atomic_store_explicit(&s->state, word(gen_of(q, n), 0, 0, 0, FREE), memory_order_relaxed);
    /* release: whoever sees n + 1 sees the slot filled */
    atomic_store_explicit(&q->published, n + 1, memory_order_release);
    return true;
}

void td_queue_close(td_queue *q) {
    /* release: whoever sees closed sees the final `published` */
    atomic_store_explicit(&q->closed, true, memory_order_release);
}

/* --- retry ring ------------------------------------------------------------------------------- */

static void retry_push(td_queue *q, uint64_t number) {
    /* relaxed, here and in pop: a guess at the position, which the cell's seq confirms */
    uint64_t pos = atomic_load_explicit(&q->retry_tail, memory_order_relaxed);
    for (;;) {
        retry_cell *c = &q->retry[pos & (q->capacity - 1)];
        /* acquire: pairs with the pop's release, the cell's old number was read */
        uint64_t seq = atomic_load_explicit(&c->seq, memory_order_acquire);
        int64_t d = (int64_t)(seq - pos);
        if (d == 0) {
            /* relaxed: the position is only a ticket; the data is ordered by seq */
            if (atomic_compare_exchange_weak_explicit(&q->retry_tail, &pos, pos + 1,
                                                      memory_order_relaxed, memory_order_relaxed)) {
                c->number = number;
                /* release: publishes number, and the FREE state stored before the call */
                atomic_store_explicit(&c->seq, pos + 1, memory_order_release);
                return;
            }
        } else {
            /* d < 0 means full, which cannot last: an item is in the ring at most once and there
             * are as many cells as slots, so a pop is on its way; d > 0: another push took pos. */
            pos = atomic_load_explicit(&q->retry_tail, memory_order_relaxed);
        }
    }
}

static bool retry_pop(td_queue *q, uint64_t *number) {
    uint64_t pos = atomic_load_explicit(&q->retry_head, memory_order_relaxed);
    for (;;) {
        retry_cell *c = &q->retry[pos & (q->capacity - 1)];
        /* acquire: pairs with the push's release */
        uint64_t seq = atomic_load_explicit(&c->seq, memory_order_acquire);
        int64_t d = (int64_t)(seq - (pos + 1));
        if (d == 0) {
            /* relaxed: the ticket again; the data is ordered by seq */
            if (atomic_compare_exchange_weak_explicit(&q->retry_head, &pos, pos + 1,
                                                      memory_order_relaxed, memory_order_relaxed)) {
                *number = c->number;
                /* release: the cell may be filled again after our read */
                atomic_store_explicit(&c->seq, pos + q->capacity, memory_order_release);
                return true;
            }
        } else if (d < 0) {
            return false;
        } else {
            pos = atomic_load_explicit(&q->retry_head, memory_order_relaxed);
        }
    }
}

/* --- claims ----------------------------------------------------------------------------------- */

/* FREE -> CLAIMED. acquire: the producer's item is visible. release: who sees the item CLAIMED also
 * sees the cursor behind it (retire rebuilds numbers from the cursor). seq_cst: see td_queue_claim.
 */
static bool take(td_queue *q, uint32_t owner, uint32_t epoch, uint64_t number, td_claim *out) {
    slot *s = slot_of(q, number);
    uint64_t w = atomic_load_explicit(&s->state, memory_order_acquire);
    if (word_state(w) != FREE || word_gen(w) != gen_of(q, number))
        return false;
    /* Read while it is FREE and only we have its number. Once it is CLAIMED a retirement may take
     * it back, a peer finish it, and the producer fill the slot anew. */
    void *item = s->item;
    if (!atomic_compare_exchange_strong_explicit(
            &s->state, &w, word(word_gen(w), word_tries(w), epoch, owner, CLAIMED),
            memory_order_seq_cst, memory_order_relaxed))
        return false;
    *out = (td_claim){.number = number, .item = item, .tries = word_tries(w)};
    return true;
}

/* CLAIMED by this owner -> `to`; false when the claim is no longer his. release: what the owner
 * wrote before giving the item away is visible to the next one. */
static bool leave(td_queue *q, uint32_t owner, uint64_t number, uint32_t to, uint32_t add_tries,
                  uint32_t *tries) {
    slot *s = slot_of(q, number);
    /* relaxed: only to know what to compare with; the exchange decides and orders */
    uint64_t w = atomic_load_explicit(&s->state, memory_order_relaxed);
    if (word_state(w) != CLAIMED || word_owner(w) != owner || word_gen(w) != gen_of(q, number))
        return false;
    uint32_t n = TD_MIN(word_tries(w) + add_tries, 255u);
    uint64_t next = to == FREE ? word(word_gen(w), n, 0, 0, FREE)
                               : word(word_gen(w), n, word_epoch(w), owner, to);
    if (!atomic_compare_exchange_strong_explicit(&s->state, &w, next, memory_order_acq_rel,
                                                 memory_order_relaxed))
        return false;
    if (tries)
        *tries = n;
    return true;
}

uint32_t td_queue_claim(td_queue *q, uint32_t owner, uint32_t want, td_claim *out) {
    assert(owner < q->n_owners);
    if (want == 0)
        return 0;
    /* We write CLAIMED and then read the epoch again; retire() writes the epoch and then reads the
     * states. All four are seq_cst: either its scan sees our word, or we see its new epoch and give
     * the item back ourselves. With weaker orders both could miss (store buffering) and the item
     * would be lost with its owner. */
    uint32_t epoch = atomic_load_explicit(&q->epochs[owner], memory_order_seq_cst);
    if (epoch & 1)
        return 0;
    uint32_t got = 0;
    uint64_t number;
    if (retry_pop(q, &number)) {
        if (take(q, owner, epoch, number, &out[0]))
            got = 1;
        /* An item is FREE from before its push until it is popped, and popped once. */
        assert(got == 1);
    } else {
        /* relaxed: a guess, confirmed by the exchange */
        uint64_t c = atomic_load_explicit(&q->cursor, memory_order_relaxed);
        uint64_t n;
        do {
            /* acquire: pairs with publish, the slots below p are filled */
            uint64_t p = atomic_load_explicit(&q->published, memory_order_acquire);
            if (c >= p)
                return 0;
            n = TD_MIN((uint64_t)want, p - c);
            /* relaxed: the cursor only hands out numbers, and it never goes back (no ABA) */
        } while (!atomic_compare_exchange_weak_explicit(&q->cursor, &c, c + n, memory_order_relaxed,
                                                        memory_order_relaxed));
        for (uint64_t i = 0; i < n; i++)
            if (take(q, owner, epoch, c + i, &out[got]))
                got++;
        assert(got == n);
    }
    if (atomic_load_explicit(&q->epochs[owner], memory_order_seq_cst) != epoch) {
        /* Retired meanwhile: whatever its scan did not take back, we do. */
        for (uint32_t i = 0; i < got; i++)
            td_queue_release(q, owner, out[i].number);
        return 0;
    }
    return got;
}

bool td_queue_begin_commit(td_queue *q, uint32_t owner, uint64_t number) {
    return leave(q, owner, number, COMMITTING, 0, NULL);
}

void td_queue_done(td_queue *q, uint32_t owner, uint64_t number) {
    slot *s = slot_of(q, number);
    /* relaxed: nobody but us moves a COMMITTING item, so it is what we wrote */
    uint64_t w = atomic_load_explicit(&s->state, memory_order_relaxed);
    assert(word_state(w) == COMMITTING && word_owner(w) == owner);
    (void)owner;
    /* release: our use of the item ends here; the producer may put another one in the slot */
    atomic_store_explicit(&s->state,
                          word(word_gen(w), word_tries(w), word_epoch(w), word_owner(w), DONE),
                          memory_order_release);
    /* release: whoever sees the count complete sees all results */
    atomic_fetch_add_explicit(&q->n_done, 1, memory_order_release);
}

uint32_t td_queue_fail(td_queue *q, uint32_t owner, uint64_t number) {
    uint32_t tries = 0;
    if (!leave(q, owner, number, FREE, 1, &tries))
        return 0;
    retry_push(q, number);
    return tries;
}

bool td_queue_release(td_queue *q, uint32_t owner, uint64_t number) {
    if (!leave(q, owner, number, FREE, 0, NULL))
        return false;
    retry_push(q, number);
    return true;
}

uint32_t td_queue_retire(td_queue *q, uint32_t owner) {
    assert(owner < q->n_owners);
    /* relaxed: a guess, confirmed by the exchange */
    uint32_t e = atomic_load_explicit(&q->epochs[owner], memory_order_relaxed);
    do {
        if (e & 1)
            return 0;
        /* seq_cst: see td_queue_claim */
    } while (!atomic_compare_exchange_weak_explicit(&q->epochs[owner], &e, e + 1,
                                                    memory_order_seq_cst, memory_order_relaxed));
    /* All slots: an item of this owner can be anywhere in the ring, also behind finished ones. */
    uint32_t n = 0;
    for (uint32_t i = 0; i < q->capacity; i++) {
        slot *s = &q->slots[i];
        uint64_t w = atomic_load_explicit(&s->state, memory_order_seq_cst);
        /* Of the epoch that ends here: an owner may be reinstated while this scan goes on. */
        if (word_state(w) != CLAIMED || word_owner(w) != owner || word_epoch(w) != (e & 0xffff))
            continue;
        uint64_t tries = TD_MIN(word_tries(w) + 1u, 255u);
        /* acq_rel: as in leave(); a failed exchange means that the owner got to commit first */
        if (!atomic_compare_exchange_strong_explicit(&s->state, &w,
                                                     word(word_gen(w), tries, 0, 0, FREE),
                                                     memory_order_acq_rel, memory_order_relaxed))
            continue;
        /* relaxed: take() released the word after the cursor moved, and we acquired the word.
         * The number is rebuilt from the cursor's era: slot i holds the one item with that index
         * in [cursor - capacity, cursor). */
        uint64_t c = atomic_load_explicit(&q->cursor, memory_order_relaxed);
        uint64_t back = ((c - 1) - i) & (q->capacity - 1);
        retry_push(q, c - 1 - back);
        n++;
    }
    return n;
}

bool td_queue_reinstate(td_queue *q, uint32_t owner) {
    assert(owner < q->n_owners);
    /* relaxed: only this owner's thread makes an odd epoch even */
    uint32_t e = atomic_load_explicit(&q->epochs[owner], memory_order_relaxed);
    if (!(e & 1))
        return false;
    /* seq_cst: a later retire must find it in the one order that td_queue_claim argues with. It
     * publishes nothing: the owner's next claims are ordered by their own words. */
    return atomic_compare_exchange_strong_explicit(&q->epochs[owner], &e, e + 1,
                                                   memory_order_seq_cst, memory_order_relaxed);
}

bool td_queue_is_retired(const td_queue *q, uint32_t owner) {
    /* relaxed: a hint; claim and begin_commit find out for certain */
    return atomic_load_explicit(&q->epochs[owner], memory_order_relaxed) & 1;
}

bool td_queue_finished(const td_queue *q) {
    /* acquire on closed: `published` is final; acquire on n_done: all results are visible */
    if (!atomic_load_explicit(&q->closed, memory_order_acquire))
        return false;
    /* relaxed: final, and ordered by the acquire above */
    uint64_t p = atomic_load_explicit(&q->published, memory_order_relaxed);
    return atomic_load_explicit(&q->n_done, memory_order_acquire) == p;
}

uint64_t td_queue_available(const td_queue *q) {
    /* relaxed: two moments' values, an estimate only */
    uint64_t c = atomic_load_explicit(&q->cursor, memory_order_relaxed);
    uint64_t p = atomic_load_explicit(&q->published, memory_order_relaxed);
    return p > c ? p - c : 0;
}
