/* stress_queue.c - far more threads than cores claim, commit, fail, release, retire and reinstate
 * at random. Every item must be committed exactly once, by one owner, and the queue must finish
 * exactly then. Every operation that did something is counted, and the counts must balance: what
 * was claimed is what was committed, given back, taken back by a retirement, or answered too late.
 *
 * Usage: stress_queue [operations] [threads] [seed]
 * Goes on in rounds until so many operations were counted.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>

#include "test/common.h"
#include "queue/queue.h"
#include "base/memory.h"

typedef struct item {
    _Atomic uint32_t commits;
    uint32_t scribble; /* plain: written inside begin_commit..done, TSan sees a second writer */
    uint64_t number;
} item;

typedef struct shared {
    td_queue *q;
    item *items;
    uint64_t n_items;
    uint32_t n_threads;
    uint64_t seed;
    /* seq_cst, all of them: counts that are read after the threads were joined */
    _Atomic uint64_t n_claims, n_fails, n_releases, n_late, n_taken, n_commits;
    _Atomic uint64_t n_retirements, n_reinstated;
} shared;

typedef struct worker {
    shared *sh;
    uint32_t owner;
    pthread_t thread;
} worker;

static void *produce(void *arg) {
    shared *sh = arg;
    for (uint64_t i = 0; i < sh->n_items; i++) {
        sh->items[i].number = i;
        while (!td_queue_publish(sh->q, &sh->items[i]))
            sched_yield();
    }
    td_queue_close(sh->q);
    return NULL;
}

static void *work(void *arg) {
    worker *me = arg;
    shared *sh = me->sh;
    uint64_t rng = sh->seed * 0x9e3779b97f4a7c15ull + me->owner + 1;
    td_claim c[16];
    while (!td_queue_finished(sh->q)) {
        uint32_t n = td_queue_claim(sh->q, me->owner, 1 + (uint32_t)(test_xorshift(&rng) % 16), c);
        if (n == 0) {
            /* Between its claims a retired owner may come back, perhaps while the one that retired
             * it still looks for what to take back. */
            if (td_queue_is_retired(sh->q, me->owner) && test_xorshift(&rng) % 4 == 0) {
                MUST(td_queue_reinstate(sh->q, me->owner));
                atomic_fetch_add(&sh->n_reinstated, 1);
            }
            sched_yield();
            continue;
        }
        atomic_fetch_add(&sh->n_claims, n);
        for (uint32_t i = 0; i < n; i++) {
            item *it = c[i].item;
            MUST(it->number == c[i].number);
            /* Be descheduled while holding claims, or nobody's retirement would hit any. */
            if (test_xorshift(&rng) % 8 == 0)
                sched_yield();
            uint32_t dice = (uint32_t)(test_xorshift(&rng) % 100);
            if (dice < 10) {
                uint32_t before = c[i].tries;
                uint32_t tries = td_queue_fail(sh->q, me->owner, c[i].number);
                MUST(tries == 0 || tries == (before < 255 ? before + 1 : 255));
                atomic_fetch_add(tries ? &sh->n_fails : &sh->n_late, 1);
                continue;
            }
            if (dice < 15) {
                bool mine = td_queue_release(sh->q, me->owner, c[i].number);
                atomic_fetch_add(mine ? &sh->n_releases : &sh->n_late, 1);
                continue;
            }
            /* Somebody declares a random peer dead, possibly ourselves, in the middle of its work.
             * Owner 0 survives. */
            if (test_xorshift(&rng) % 256 == 0) {
                uint32_t victim = 1 + (uint32_t)(test_xorshift(&rng) % (sh->n_threads - 1));
                if (!td_queue_is_retired(sh->q, victim)) {
                    atomic_fetch_add(&sh->n_taken, td_queue_retire(sh->q, victim));
                    atomic_fetch_add(&sh->n_retirements, 1);
                }
            }
            if (!td_queue_begin_commit(sh->q, me->owner, c[i].number)) {
                atomic_fetch_add(&sh->n_late, 1);
                continue;
            }
            it->scribble++;
            MUST(atomic_fetch_add(&it->commits, 1) == 0);
            td_queue_done(sh->q, me->owner, c[i].number);
            atomic_fetch_add(&sh->n_commits, 1);
        }
    }
    return NULL;
}

/* One queue from its first item to its last. Returns the operations counted. */
static uint64_t play(uint64_t n_items, uint32_t n_threads, uint32_t capacity, uint64_t seed) {
    td_error err;
    shared sh = {.n_items = n_items, .n_threads = n_threads, .seed = seed};
    MUST(td_queue_create(capacity, n_threads, &sh.q, &err) == TD_OK);
    sh.items = td_calloc(sh.n_items, sizeof *sh.items);
    worker *w = td_calloc(n_threads, sizeof *w);
    MUST(sh.items && w);
    pthread_t producer;
    MUST(pthread_create(&producer, NULL, produce, &sh) == 0);
    for (uint32_t i = 0; i < n_threads; i++) {
        w[i] = (worker){.sh = &sh, .owner = i};
        MUST(pthread_create(&w[i].thread, NULL, work, &w[i]) == 0);
    }
    pthread_join(producer, NULL);
    for (uint32_t i = 0; i < n_threads; i++)
        pthread_join(w[i].thread, NULL);
    for (uint64_t i = 0; i < sh.n_items; i++)
        MUST(atomic_load(&sh.items[i].commits) == 1 && sh.items[i].scribble == 1);
    td_claim c;
    MUST(td_queue_claim(sh.q, 0, 1, &c) == 0);
    MUST(td_queue_finished(sh.q));
    MUST(sh.n_commits == sh.n_items);
    /* What was taken back while its owner had not even got it (claim returned 0) is in n_taken and
     * not in n_claims; each of the others is answered too late once. */
    MUST(sh.n_claims == sh.n_commits + sh.n_fails + sh.n_releases + sh.n_late);
    MUST(sh.n_late <= sh.n_taken);
    MUST(sh.n_reinstated <= sh.n_retirements);
    uint64_t n_ops = sh.n_items + sh.n_claims + sh.n_claims + sh.n_retirements + sh.n_reinstated;
    printf(
        "ring of %u: %llu published, %llu claimed, %llu committed, %llu failed, %llu released, "
        "%llu retirements (%llu items taken back, %llu late answers discarded), %llu reinstated\n",
        capacity, (unsigned long long)sh.n_items, (unsigned long long)sh.n_claims,
        (unsigned long long)sh.n_commits, (unsigned long long)sh.n_fails,
        (unsigned long long)sh.n_releases, (unsigned long long)sh.n_retirements,
        (unsigned long long)sh.n_taken, (unsigned long long)sh.n_late,
        (unsigned long long)sh.n_reinstated);
    td_queue_destroy(sh.q);
    free(sh.items);
    free(w);
    return n_ops;
}

int main(int argc, char **argv) {
    uint64_t n_ops = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000000, n = 0;
    uint32_t n_threads = argc > 2 ? (uint32_t)atoi(argv[2]) : 32;
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    /* Small rings make reuse of slots and back-pressure frequent. */
    static const uint32_t capacity[] = {4096, 64, 1024, 8};
    for (uint32_t round = 0; n < n_ops; round++)
        n +=
            play(n_ops / 16 + 1, n_threads, capacity[round % TD_ARRAY_LEN(capacity)], seed + round);
    printf("%llu operations, each item committed once\n", (unsigned long long)n);
    return 0;
}
