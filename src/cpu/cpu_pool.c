/* cpu_pool.c - fork and join of one operation's work items.
 *
 * Threads: the caller (a stream's thread) is thread 0; helpers 1..n-1 sleep on `wake` between
 * operations. A run is numbered; helpers below `n_active` join the run of a new number. Items are
 * claimed by an atomic counter. `wake`, `run` and `n_busy` are protected by `lock`; the fields of a
 * run (fn, ctx, n_items) are written before the number changes under that lock and read after.
 */
#include <errno.h>
#include <omp.h>
#include <stdlib.h>

#include "cpu/cpu.h"
#include "base/memory.h"

struct td_cpu_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    uint64_t run;      /* Protected by lock */
    int32_t n_active;  /* Protected by lock: helpers that take part in this run */
    int32_t n_busy;    /* Protected by lock: of those, not yet finished */
    bool stop;         /* Protected by lock */
    td_cpu_item_fn fn; /* of the current run */
    void *ctx;
    int64_t n_items;
    _Atomic int64_t next;
    int32_t n_threads, n_started;
    pthread_t *threads; /* [n_threads - 1] */
};

typedef struct helper_start {
    td_cpu_pool *pool;
    int32_t thread;
} helper_start;

/* Claims in order; relaxed suffices, as the lock orders what the items read and write. */
static void take_items(td_cpu_pool *p, int32_t thread) {
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (i >= p->n_items)
            return;
        p->fn(p->ctx, i, thread);
    }
}

static void *helper_main(void *arg) {
    helper_start start = *(helper_start *)arg;
    free(arg);
    td_cpu_pool *p = start.pool;
    omp_set_num_threads(1); /* oneDNN primitives are made and run single-threaded */
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stop && (p->run == seen || start.thread > p->n_active)) {
            seen = p->run;
            pthread_cond_wait(&p->wake, &p->lock);
        }
        if (p->stop)
            break;
        seen = p->run;
        pthread_mutex_unlock(&p->lock);
        take_items(p, start.thread);
        pthread_mutex_lock(&p->lock);
        if (--p->n_busy == 0)
            pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

td_status td_cpu_pool_create(int32_t n_threads, td_cpu_pool **out, td_error *err) {
    td_cpu_pool *p = td_calloc(1, sizeof(*p));
    if (!p)
        return td_error_nomem(err, "thread pool", sizeof(*p));
    p->n_threads = n_threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    p->threads = td_calloc((size_t)n_threads, sizeof(*p->threads));
    if (!p->threads) {
        td_cpu_pool_destroy(p);
        return td_error_nomem(err, "thread pool", (size_t)n_threads * sizeof(*p->threads));
    }
    for (int32_t i = 1; i < n_threads; i++) {
        helper_start *start = td_calloc(1, sizeof(*start));
        int e = ENOMEM;
        if (start) {
            *start = (helper_start){p, i};
            e = pthread_create(&p->threads[i - 1], NULL, helper_main, start);
        }
        if (e) {
            free(start);
            td_cpu_pool_destroy(p);
            return td_error_errno(err, TD_E_DEVICE, e, "cannot start worker thread %d of %d", i,
                                  n_threads);
        }
        p->n_started++;
    }
    *out = p;
    return TD_OK;
}

void td_cpu_pool_destroy(td_cpu_pool *p) {
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int32_t i = 0; i < p->n_started; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

void td_cpu_pool_run(td_cpu_pool *p, int64_t n_items, int32_t max_threads, td_cpu_item_fn fn,
                     void *ctx) {
    int64_t n = TD_MIN(TD_MIN(n_items, (int64_t)max_threads), (int64_t)p->n_threads);
    if (n <= 1) {
        for (int64_t i = 0; i < n_items; i++)
            fn(ctx, i, 0);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->ctx = ctx;
    p->n_items = n_items;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    p->n_active = p->n_busy = (int32_t)n - 1;
    p->run++;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    take_items(p, 0);
    pthread_mutex_lock(&p->lock);
    while (p->n_busy)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}
