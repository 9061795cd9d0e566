/* Claims per second of the work queue: bench_queue [million items]
 *
 * All items are published first; then 1 to 64 threads claim them, one or eight at a time, begin to
 * commit each and mark it done, until the queue is finished. The best of three runs.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "queue/queue.h"
#include "base/clock.h"
#include "base/memory.h"

enum { MAX_THREADS = 64, ROUNDS = 3 };

typedef struct worker {
    td_queue *q;
    uint32_t owner, want;
    pthread_barrier_t *begin;
    pthread_t thread;
    uint64_t n_claims;
    double begin_s, end_s;
} worker;

static void *work(void *arg) {
    worker *w = arg;
    td_claim c[8];
    uint64_t n_claims = 0;
    pthread_barrier_wait(w->begin);
    w->begin_s = td_time_s();
    for (uint32_t n; (n = td_queue_claim(w->q, w->owner, w->want, c)) > 0;) {
        n_claims++;
        for (uint32_t i = 0; i < n; i++)
            if (td_queue_begin_commit(w->q, w->owner, c[i].number))
                td_queue_done(w->q, w->owner, c[i].number);
    }
    w->end_s = td_time_s();
    w->n_claims = n_claims;
    return NULL;
}

/* Seconds, or a negative number when something failed; *n_claims: calls that got something. */
static double play(uint32_t n_items, uint32_t n_threads, uint32_t want, uint64_t *n_claims) {
    td_error err = {0};
    td_queue *q;
    worker w[MAX_THREADS];
    pthread_barrier_t begin;
    if (td_queue_create(n_items, n_threads, &q, &err) != TD_OK) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    while (td_queue_publish(q, q)) /* any item will do */
        ;
    td_queue_close(q);
    pthread_barrier_init(&begin, NULL, n_threads);
    for (uint32_t i = 0; i < n_threads; i++) {
        w[i] = (worker){.q = q, .owner = i, .want = want, .begin = &begin};
        if (pthread_create(&w[i].thread, NULL, work, &w[i]) != 0) {
            fprintf(stderr, "cannot start %u threads\n", n_threads);
            exit(TD_EXIT_INTERNAL);
        }
    }
    double begin_s = 1e300, end_s = 0;
    *n_claims = 0;
    for (uint32_t i = 0; i < n_threads; i++) {
        pthread_join(w[i].thread, NULL);
        *n_claims += w[i].n_claims;
        begin_s = TD_MIN(begin_s, w[i].begin_s);
        end_s = TD_MAX(end_s, w[i].end_s);
    }
    bool finished = td_queue_finished(q);
    pthread_barrier_destroy(&begin);
    td_queue_destroy(q);
    return finished ? end_s - begin_s : -1;
}

int main(int argc, char **argv) {
    uint32_t n_items = 1u << 22, want_items = argc > 1 ? (uint32_t)atoi(argv[1]) * 1000000u : 0;
    while (n_items < want_items && n_items < 1u << 24)
        n_items *= 2;
    printf("%u items\n", n_items);
    printf("threads   one at a time: claims/s   eight at a time: claims/s      items/s\n");
    for (uint32_t n = 1; n <= MAX_THREADS; n *= 2) {
        double rate[2][2] = {{0}};
        for (int k = 0; k < 2; k++)
            for (int r = 0; r < ROUNDS; r++) {
                uint64_t n_claims;
                double dt = play(n_items, n, k ? 8 : 1, &n_claims);
                if (dt <= 0)
                    return TD_EXIT_INTERNAL;
                rate[k][0] = TD_MAX(rate[k][0], (double)n_claims / dt);
                rate[k][1] = TD_MAX(rate[k][1], n_items / dt);
            }
        printf("%7u   %23.2e   %25.2e   %10.2e\n", n, rate[0][0], rate[1][0], rate[1][1]);
    }
    return 0;
}
