/* cpu_stream.c - streams and events.
 *
 * A stream is a bounded ring of commands and one thread that executes them in order. Enqueueing
 * copies the argument struct into the ring; when the ring is full the caller waits. That cannot
 * deadlock: a command waits only for events recorded before it was enqueued, so some stream of any
 * set of waiting ones can always go on.
 *
 * An event counts its records (`recorded`) and completions (`completed`). A wait or a sync is for
 * the number of records at the time it was asked for. Events are counted references: the owner's,
 * and one per command in flight, so an event may be destroyed while streams still refer to it.
 *
 * A device that works at a share of its speed rests after its operations. What is short is saved
 * up: a sleep costs a context switch and oversleeps, so what was overslept is taken off the next
 * rest. The rest is the stream's, like the work: what waits for an event behind it waits for the
 * rest too. It ends early when the stream is destroyed. Work is measured as time on the core where
 * the stream's thread is all of the device, so that other programs do not slow the device down
 * twice.
 *
 * A failure sticks to the stream: later commands are skipped, except that event records still
 * complete, carrying the failure to whoever waits.
 */
#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "capture/limits.h"
#include "base/clock.h"
#include "base/memory.h"

enum { RING = 512, SHORTEST_REST_NS = 2000000 };

struct td_event {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    uint64_t recorded, completed; /* Protected by lock */
    td_error failure;             /* Protected by lock: of the last completion; code 0 = none */
    atomic_int n_refs;
    char device[32];
};

typedef enum cmd_kind { CMD_OP, CMD_RECORD, CMD_WAIT } cmd_kind;

typedef struct command {
    cmd_kind kind;
    td_op op;
    const char *name; /* static string */
    td_event *event;
    uint64_t number; /* of the event's record */
    td_cpu_args args;
    /* What host arrays of the arguments are copied to: the caller's may go away. */
    float temperatures[TD_MAX_TEMPERATURES];
    int32_t always_ids[TD_MAX_ALWAYS_IDS];
} command;

struct td_stream {
    td_cpu_exec x; /* used by the stream's thread */
    pthread_mutex_t lock;
    pthread_cond_t not_empty, not_full;
    uint64_t head, tail; /* Protected by lock: executed up to head, enqueued up to tail */
    bool stop;           /* Protected by lock */
    atomic_uint_least64_t busy_ns;
    atomic_uint_least64_t rest_ns; /* earned in all */
    int64_t owed_ns; /* the stream's thread only: earned and not taken; < 0: overslept */
    bool profile;    /* TDGEN_PROFILE=1 */
    atomic_uint_least64_t op_ns[TD_OP_COUNT];
    td_error failure; /* the stream's thread only */
    pthread_t thread;
    bool started;
    command ring[RING];
};

/* --- events ----------------------------------------------------------------------------------- */

td_status td_cpu_event_create(td_device *dev, td_event **out, td_error *err) {
    td_event *e = td_calloc(1, sizeof(*e));
    if (!e)
        return td_error_nomem(err, "event", sizeof(*e));
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->cond, &attr);
    pthread_condattr_destroy(&attr);
    memcpy(e->device, dev->info.name, sizeof(e->device));
    atomic_init(&e->n_refs, 1);
    *out = e;
    return TD_OK;
}

static void event_release(td_event *e) {
    if (atomic_fetch_sub(&e->n_refs, 1) != 1)
        return;
    pthread_cond_destroy(&e->cond);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

void td_cpu_event_destroy(td_event *e) {
    if (e)
        event_release(e);
}

static void event_complete(td_event *e, uint64_t number, const td_error *failure) {
    pthread_mutex_lock(&e->lock);
    if (number > e->completed) {
        e->completed = number;
        e->failure = *failure;
        pthread_cond_broadcast(&e->cond);
    }
    pthread_mutex_unlock(&e->lock);
}

/* Waits until the record `number` has completed and returns its failure. */
static td_status event_await(td_event *e, uint64_t number, const struct timespec *until,
                             double timeout_s, td_error *err) {
    td_status rc = TD_OK;
    pthread_mutex_lock(&e->lock);
    while (e->completed < number && rc == TD_OK) {
        if (!until)
            pthread_cond_wait(&e->cond, &e->lock);
        else if (pthread_cond_timedwait(&e->cond, &e->lock, until) == ETIMEDOUT &&
                 e->completed < number)
            rc =
                td_error_set(err, TD_E_DEVICE, "%s: no answer within %.3g s", e->device, timeout_s);
    }
    if (rc == TD_OK && number && e->failure.code) {
        rc = e->failure.code;
        if (err)
            *err = e->failure;
    }
    pthread_mutex_unlock(&e->lock);
    return rc;
}

td_status td_cpu_event_sync(td_event *e, double timeout_s, td_error *err) {
    struct timespec until;
    pthread_mutex_lock(&e->lock);
    uint64_t number = e->recorded;
    pthread_mutex_unlock(&e->lock);
    if (timeout_s <= 0)
        return event_await(e, number, NULL, 0, err);
    clock_gettime(CLOCK_MONOTONIC, &until);
    double s = TD_MIN(timeout_s, 1e9);
    until.tv_sec += (time_t)s;
    until.tv_nsec += (long)((s - (double)(time_t)s) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    return event_await(e, number, &until, timeout_s, err);
}

/* --- the stream's thread ---------------------------------------------------------------------- */

/* TDGEN_DEBUG_FAIL_OP with "lost": the process has no CPU devices any more. */
static atomic_bool g_lost;

bool td_cpu_faulted(const td_device *dev) {
    return atomic_load(&((td_cpu_device *)dev)->faulted);
}

static td_status lost_error(const char *device, td_error *err) {
    return td_error_set(err, TD_E_DEVICE_LOST, "%s: the process has lost its devices", device);
}

static td_status inject(td_cpu_device *d, enum td_cpu_fail_kind kind, const char *by,
                        td_error *err) {
    while (kind == TD_CPU_HANG) {
        struct timespec ts = {.tv_sec = 3600};
        nanosleep(&ts, NULL);
    }
    if (kind == TD_CPU_FAIL)
        return td_error_set(err, TD_E_DEVICE, "failure injected by %s", by);
    if (!atomic_exchange(&g_lost, true))
        atomic_store(&d->faulted, true);
    return td_error_set(err, TD_E_DEVICE_LOST, "loss of the device injected by %s", by);
}

static td_status injected_failure(td_cpu_device *d, const command *c, td_error *err) {
    if (d->fail_op[0] && !strcmp(d->fail_op, c->name) &&
        atomic_fetch_sub(&d->fail_countdown, 1) == 1)
        return inject(d, d->fail_kind, "TDGEN_DEBUG_FAIL_OP", err);
    if (d->fail_token < 0 || c->op != TD_OP_EMBED)
        return TD_OK;
    const td_embed_args *a = &c->args.embed;
    for (int32_t i = 0; i < a->n_tokens && !a->accumulate; i++) /* accumulate: ids are positions */
        if (a->ids[i] == d->fail_token)
            return inject(d, d->fail_token_kind, "TDGEN_DEBUG_FAIL_TOKEN", err);
    return TD_OK;
}

/* Of the stream's thread, time on its core. */
static double core_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void rest(td_stream *s, uint64_t earned_ns) {
    if (!earned_ns)
        return;
    atomic_fetch_add_explicit(&s->rest_ns, earned_ns, memory_order_relaxed);
    s->owed_ns += (int64_t)earned_ns;
    if (s->owed_ns < SHORTEST_REST_NS)
        return;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    const double t0 = td_time_s();
    until.tv_sec += s->owed_ns / 1000000000;
    until.tv_nsec += s->owed_ns % 1000000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&s->lock);
    while (!s->stop && pthread_cond_timedwait(&s->not_empty, &s->lock, &until) != ETIMEDOUT)
        ;
    const bool stop = s->stop;
    pthread_mutex_unlock(&s->lock);
    s->owed_ns = stop ? 0 : s->owed_ns - (int64_t)(1e9 * (td_time_s() - t0));
    /* A machine that stood still is not to be made up for by a device that outruns its share. */
    s->owed_ns = TD_MAX(s->owed_ns, -(int64_t)SHORTEST_REST_NS);
}

static void execute(td_stream *s, command *c) {
    const char *name = s->x.dev->base.info.name;
    td_error err = {0};
    switch (c->kind) {
    case CMD_RECORD:
        if (atomic_load(&g_lost) && !s->failure.code)
            lost_error(name, &s->failure);
        event_complete(c->event, c->number, &s->failure);
        event_release(c->event);
        return;
    case CMD_WAIT:
        /* A failed stream waits all the same: what follows it may free what the other one uses. */
        if (event_await(c->event, c->number, NULL, 0, &err) && !s->failure.code) {
            s->failure = err;
            td_error_prefix(&s->failure, "%s waited for another stream", name);
        }
        event_release(c->event);
        return;
    case CMD_OP:
        break;
    }
    if (s->failure.code)
        return;
    const double t0 = td_time_s(), core0 = core_s();
    td_status rc = injected_failure(s->x.dev, c, &err);
    if (rc == TD_OK)
        rc = td_cpu_execute(&s->x, c->op, &c->args, &err);
    if (rc != TD_OK) {
        err.code = rc;
        s->failure = err;
        td_error_prefix(&s->failure, "%s: %s", name, c->name);
    }
    const double core = core_s() - core0;
    const uint64_t ns = (uint64_t)((td_time_s() - t0) * 1e9);
    atomic_fetch_add_explicit(&s->busy_ns, ns, memory_order_relaxed);
    if (s->profile)
        atomic_fetch_add_explicit(&s->op_ns[c->op], ns, memory_order_relaxed);
    if (rc == TD_OK)
        rest(s, td_cpu_rest_ns(s->x.n_threads > 1 ? ns : (uint64_t)(1e9 * TD_MAX(core, 0.0)),
                               s->x.dev->base.info.speed_share));
}

static void *stream_main(void *arg) {
    td_stream *s = arg;
    omp_set_num_threads(1); /* oneDNN primitives are made and run single-threaded */
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (s->head == s->tail && !s->stop)
            pthread_cond_wait(&s->not_empty, &s->lock);
        if (s->head == s->tail)
            break;
        command *c = &s->ring[s->head % RING];
        pthread_mutex_unlock(&s->lock);
        execute(s, c);
        pthread_mutex_lock(&s->lock);
        s->head++;
        pthread_cond_signal(&s->not_full);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* --- enqueueing ------------------------------------------------------------------------------- */

static command *ring_claim(td_stream *s) {
    pthread_mutex_lock(&s->lock);
    while (s->tail - s->head == RING)
        pthread_cond_wait(&s->not_full, &s->lock);
    return &s->ring[s->tail % RING];
}

static void ring_publish(td_stream *s) {
    s->tail++;
    pthread_cond_signal(&s->not_empty);
    pthread_mutex_unlock(&s->lock);
}

/* Points the arguments at copies of their host arrays. The ring does not move and the command's
 * place is not used again before it has run. */
static void keep_host_arrays(command *c) {
    if (c->op != TD_OP_CAPTURE)
        return;
    td_capture_args *a = &c->args.capture;
    for (int32_t i = 0; i < a->n_temperatures; i++)
        c->temperatures[i] = a->temperatures[i];
    for (int32_t i = 0; i < a->n_always; i++)
        c->always_ids[i] = a->always_ids[i];
    a->temperatures = c->temperatures;
    a->always_ids = c->always_ids;
}

td_status td_cpu_enqueue(td_stream *s, td_op op, const char *name, const td_cpu_args *args,
                         td_error *err) {
    if (atomic_load(&g_lost))
        return lost_error(s->x.dev->base.info.name, err);
    command *c = ring_claim(s);
    c->kind = CMD_OP;
    c->op = op;
    c->name = name;
    c->event = NULL;
    c->args = *args;
    keep_host_arrays(c);
    ring_publish(s);
    return TD_OK;
}

td_status td_cpu_event_record(td_event *e, td_stream *s, td_error *err) {
    (void)err;
    atomic_fetch_add(&e->n_refs, 1);
    command *c = ring_claim(s);
    c->kind = CMD_RECORD;
    c->event = e;
    pthread_mutex_lock(&e->lock);
    c->number = ++e->recorded;
    pthread_mutex_unlock(&e->lock);
    ring_publish(s);
    return TD_OK;
}

td_status td_cpu_stream_wait(td_stream *s, td_event *e, td_error *err) {
    (void)err;
    atomic_fetch_add(&e->n_refs, 1);
    pthread_mutex_lock(&e->lock);
    const uint64_t number = e->recorded;
    pthread_mutex_unlock(&e->lock);
    command *c = ring_claim(s);
    c->kind = CMD_WAIT;
    c->event = e;
    c->number = number;
    ring_publish(s);
    return TD_OK;
}

/* --- life ------------------------------------------------------------------------------------- */

void td_cpu_stream_destroy(td_stream *s) {
    if (!s)
        return;
    if (s->started) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->not_empty);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    td_cpu_pool_destroy(s->x.pool);
    for (int32_t i = 0; i < s->x.n_threads; i++) {
        if (s->x.scratch)
            td_cpu_mem_free(s->x.scratch[i].data);
        if (s->x.gemm_streams)
            td_cpu_gemm_thread_destroy(s->x.gemm_streams[i]);
    }
    td_cpu_mem_free(s->x.shared.data);
    free(s->x.scratch);
    free(s->x.gemm_streams);
    pthread_cond_destroy(&s->not_full);
    pthread_cond_destroy(&s->not_empty);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

td_status td_cpu_stream_create(td_device *dev, td_stream **out, td_error *err) {
    const int32_t n = TD_MAX(dev->info.n_threads, 1);
    td_stream *s = td_calloc(1, sizeof(*s));
    if (!s)
        return td_error_nomem(err, "stream", sizeof(*s));
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC); /* a rest is waited for on it, too */
    pthread_cond_init(&s->not_empty, &attr);
    pthread_condattr_destroy(&attr);
    pthread_cond_init(&s->not_full, NULL);
    s->x.dev = (td_cpu_device *)dev;
    s->x.n_threads = n;
    const char *profile = getenv("TDGEN_PROFILE");
    s->profile = profile && !strcmp(profile, "1");
    s->x.scratch = td_calloc((size_t)n, sizeof(*s->x.scratch));
    s->x.gemm_streams = td_calloc((size_t)n, sizeof(*s->x.gemm_streams));
    td_status rc = TD_OK;
    if (!s->x.scratch || !s->x.gemm_streams)
        rc = td_error_nomem(err, "stream", (size_t)n * sizeof(*s->x.scratch));
    for (int32_t i = 0; i < n && rc == TD_OK; i++)
        rc = td_cpu_gemm_thread_create(&s->x.gemm_streams[i], err);
    if (rc == TD_OK)
        rc = td_cpu_pool_create(n, &s->x.pool, err);
    if (rc == TD_OK) {
        int e = pthread_create(&s->thread, NULL, stream_main, s);
        if (e)
            rc = td_error_errno(err, TD_E_DEVICE, e, "cannot start a stream's thread");
    }
    if (rc != TD_OK) {
        td_cpu_stream_destroy(s);
        td_error_prefix(err, "%s", dev->info.name);
        return rc;
    }
    s->started = true;
    *out = s;
    return TD_OK;
}

void td_cpu_stream_profile(td_stream *s, double seconds[TD_OP_COUNT]) {
    for (int i = 0; i < TD_OP_COUNT; i++)
        seconds[i] = (double)atomic_load_explicit(&s->op_ns[i], memory_order_relaxed) * 1e-9;
}

double td_cpu_stream_rest_s(const td_stream *s) {
    return (double)atomic_load_explicit(&s->rest_ns, memory_order_relaxed) * 1e-9;
}

double td_cpu_stream_busy_s(const td_stream *s) {
    return (double)atomic_load_explicit(&s->busy_ns, memory_order_relaxed) * 1e-9;
}

const char *td_cpu_stream_device_name(const td_stream *s) {
    return s->x.dev->base.info.name;
}

/* --- scratch ---------------------------------------------------------------------------------- */

td_status td_cpu_scratch_need(td_cpu_exec *x, td_cpu_scratch *s, size_t size_bytes, td_error *err) {
    if (s->size_bytes >= size_bytes && s->data)
        return TD_OK;
    td_cpu_mem_free(s->data);
    *s = (td_cpu_scratch){0};
    td_status rc = td_cpu_mem_alloc(x->dev->base.info.name, size_bytes, &s->data, err);
    if (rc == TD_OK)
        s->size_bytes = size_bytes;
    return rc;
}

td_status td_cpu_scratch_need_all(td_cpu_exec *x, size_t size_bytes, td_error *err) {
    for (int32_t i = 0; i < x->n_threads; i++) {
        td_status rc = td_cpu_scratch_need(x, &x->scratch[i], size_bytes, err);
        if (rc != TD_OK)
            return rc;
    }
    return TD_OK;
}
