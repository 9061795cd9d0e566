/* gpu_stream.c - streams, events, and the time that a stream spends working.
 *
 * Time is measured by pairs of timing events ("spans") on the stream itself, so nothing waits for
 * it: a span opens with the first operation after a wait or a record and closes at the next one,
 * which leaves out the time a stage waits for its neighbour. With TDGEN_PROFILE=1 a span ends where
 * another kind of operation begins. Finished spans are added up when somebody asks or the ring
 * fills; the lock is for that somebody, who may be another thread.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gpu/gpu.h"
#include "base/clock.h"
#include "base/memory.h"

enum { SPANS = 64, PROFILE_SPANS = 4096 };

struct td_event {
    td_gpu_device *dev;
    cudaEvent_t cuda;
    td_error failure; /* of the stream at the latest record */
};

/* --- spans ------------------------------------------------------------------------------------ */

/* Adds finished spans, oldest first; with `wait` all that are closed. Failures lose time only. */
static void harvest(td_stream *s, bool wait) {
    while (s->n_spans > (s->span_open ? 1u : 0u)) {
        const td_gpu_span *p = &s->spans[s->first_span];
        float ms = 0;
        cudaError_t cu = wait ? cudaEventSynchronize(p->end) : cudaEventQuery(p->end);
        if (cu == cudaErrorNotReady) {
            (void)cudaGetLastError();
            return;
        }
        if (cu == cudaSuccess && cudaEventElapsedTime(&ms, p->begin, p->end) == cudaSuccess) {
            const int64_t ns = (int64_t)(1e6 * (double)ms);
            if (s->profile) /* else the span is named after its first operation only */
                atomic_fetch_add_explicit(&s->op_ns[p->op], ns, memory_order_relaxed);
            atomic_fetch_add_explicit(&s->busy_ns, ns, memory_order_relaxed);
        }
        s->first_span = (s->first_span + 1) % s->cap_spans;
        s->n_spans--;
    }
}

/* A record that fails shows at the next checked call. */
static void close_span(td_stream *s) {
    if (!s->span_open)
        return;
    const uint32_t at = (s->first_span + s->n_spans - 1) % s->cap_spans;
    (void)cudaEventRecord(s->spans[at].end, s->cuda);
    s->span_open = false;
}

static void open_span(td_stream *s, td_op op) {
    if (s->span_open) {
        const uint32_t at = (s->first_span + s->n_spans - 1) % s->cap_spans;
        if (!s->profile || s->spans[at].op == op)
            return;
        close_span(s);
    }
    if (s->n_spans >= s->cap_spans / 2)
        harvest(s, false);
    if (s->n_spans == s->cap_spans)
        return; /* far ahead of the device: this piece of time is not counted */
    td_gpu_span *p = &s->spans[(s->first_span + s->n_spans) % s->cap_spans];
    p->op = op;
    if (cudaEventRecord(p->begin, s->cuda) == cudaSuccess) {
        s->n_spans++;
        s->span_open = true;
    }
}

double td_gpu_stream_busy_s(const td_stream *cs) {
    td_stream *s = (td_stream *)cs; /* only what its lock protects is changed */
    if (td_gpu_use(s->dev, NULL) == TD_OK) {
        pthread_mutex_lock(&s->timing_lock);
        harvest(s, false);
        pthread_mutex_unlock(&s->timing_lock);
    }
    return 1e-9 * (double)atomic_load_explicit(&s->busy_ns, memory_order_relaxed);
}

void td_gpu_stream_profile(td_stream *s, double seconds[TD_OP_COUNT]) {
    (void)td_gpu_stream_busy_s(s);
    for (int i = 0; i < TD_OP_COUNT; i++)
        seconds[i] = 1e-9 * (double)atomic_load_explicit(&s->op_ns[i], memory_order_relaxed);
}

/* --- enqueueing ------------------------------------------------------------------------------- */

td_status td_gpu_begin(td_stream *s, td_op op, td_error *err) {
    if (s->failure.code != TD_OK) {
        if (err)
            *err = s->failure;
        return s->failure.code;
    }
    td_status rc = td_gpu_use(s->dev, err);
    if (rc != TD_OK)
        return rc;
    pthread_mutex_lock(&s->timing_lock);
    open_span(s, op);
    pthread_mutex_unlock(&s->timing_lock);
    return TD_OK;
}

td_status td_gpu_end(td_stream *s, cudaError_t cu, const char *call, td_error *err) {
    if (cu == cudaSuccess)
        return TD_OK;
    td_status rc = td_gpu_check(cu, &s->dev->base.info, call, &s->failure);
    if (err)
        *err = s->failure;
    return rc;
}

/* --- events ----------------------------------------------------------------------------------- */

td_status td_gpu_event_create(td_device *dev, td_event **out, td_error *err) {
    td_gpu_device *d = (td_gpu_device *)dev;
    td_status rc = td_gpu_use(d, err);
    if (rc != TD_OK)
        return rc;
    td_event *e = td_calloc(1, sizeof *e);
    if (!e)
        return td_error_nomem(err, "event", sizeof *e);
    e->dev = d;
    /* Blocking: a group's thread sleeps while its devices work. */
    rc = td_gpu_check(
        cudaEventCreateWithFlags(&e->cuda, cudaEventDisableTiming | cudaEventBlockingSync),
        &dev->info, "cudaEventCreateWithFlags", err);
    if (rc != TD_OK) {
        free(e);
        return rc;
    }
    *out = e;
    return TD_OK;
}

void td_gpu_event_destroy(td_event *e) {
    if (!e)
        return;
    if (td_gpu_use(e->dev, NULL) == TD_OK && cudaEventDestroy(e->cuda) != cudaSuccess)
        (void)cudaGetLastError();
    free(e);
}

/* A failed stream records all the same: whoever waits gets the failure. */
td_status td_gpu_event_record(td_event *e, td_stream *s, td_error *err) {
    td_status rc = td_gpu_use(s->dev, err);
    if (rc != TD_OK)
        return rc;
    pthread_mutex_lock(&s->timing_lock);
    close_span(s);
    pthread_mutex_unlock(&s->timing_lock);
    rc = td_gpu_end(s, cudaEventRecord(e->cuda, s->cuda), "cudaEventRecord", err);
    e->failure = s->failure;
    return rc;
}

td_status td_gpu_stream_wait(td_stream *s, td_event *e, td_error *err) {
    td_status rc = td_gpu_use(s->dev, err);
    if (rc != TD_OK)
        return rc;
    if (e->failure.code != TD_OK && s->failure.code == TD_OK) {
        s->failure = e->failure;
        td_error_prefix(&s->failure, "%s waited for another stream", s->dev->base.info.name);
    }
    pthread_mutex_lock(&s->timing_lock);
    close_span(s);
    pthread_mutex_unlock(&s->timing_lock);
    return td_gpu_end(s, cudaStreamWaitEvent(s->cuda, e->cuda, 0), "cudaStreamWaitEvent", err);
}

static cudaError_t wait_until(cudaEvent_t e, double timeout_s) {
    const double until = td_time_s() + timeout_s;
    struct timespec pause = {.tv_nsec = 20000};
    cudaError_t cu;
    while ((cu = cudaEventQuery(e)) == cudaErrorNotReady && td_time_s() < until) {
        nanosleep(&pause, NULL);
        pause.tv_nsec = TD_MIN(2 * pause.tv_nsec, 1000000);
    }
    /* "Not ready" may be kept as the thread's last error, which a launch would report as its own.
     */
    if (cu == cudaSuccess || cu == cudaErrorNotReady)
        (void)cudaGetLastError();
    return cu;
}

td_status td_gpu_event_sync(td_event *e, double timeout_s, td_error *err) {
    td_status rc = td_gpu_use(e->dev, err);
    if (rc != TD_OK)
        return rc;
    cudaError_t cu = timeout_s > 0 ? wait_until(e->cuda, timeout_s) : cudaEventSynchronize(e->cuda);
    if (cu == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return td_error_set(err, TD_E_DEVICE, "%s: no answer within %.1f s", e->dev->base.info.name,
                            timeout_s);
    }
    if ((rc = td_gpu_check(cu, &e->dev->base.info, "cudaEventSynchronize", err)) != TD_OK)
        return rc;
    if (e->failure.code != TD_OK && err)
        *err = e->failure;
    return e->failure.code;
}

/* --- life ------------------------------------------------------------------------------------- */

static td_status make_spans(td_stream *s, td_error *err) {
    const char *profile = getenv("TDGEN_PROFILE");
    s->profile = profile && strcmp(profile, "0") != 0 && profile[0];
    s->cap_spans = s->profile ? PROFILE_SPANS : SPANS;
    s->spans = td_calloc(s->cap_spans, sizeof *s->spans);
    if (!s->spans)
        return td_error_nomem(err, "stream", s->cap_spans * sizeof *s->spans);
    td_status rc = TD_OK;
    for (uint32_t i = 0; rc == TD_OK && i < s->cap_spans; i++) {
        rc = td_gpu_check(cudaEventCreateWithFlags(&s->spans[i].begin, cudaEventDefault),
                          &s->dev->base.info, "cudaEventCreateWithFlags", err);
        if (rc == TD_OK)
            rc = td_gpu_check(cudaEventCreateWithFlags(&s->spans[i].end, cudaEventDefault),
                              &s->dev->base.info, "cudaEventCreateWithFlags", err);
    }
    return rc;
}

td_status td_gpu_stream_create(td_device *dev, td_stream **out, td_error *err) {
    td_gpu_device *d = (td_gpu_device *)dev;
    td_status rc = td_gpu_use(d, err);
    if (rc != TD_OK)
        return rc;
    td_stream *s = td_calloc(1, sizeof *s);
    if (!s)
        return td_error_nomem(err, "stream", sizeof *s);
    s->dev = d;
    pthread_mutex_init(&s->timing_lock, NULL);
    rc = td_gpu_check(cudaStreamCreateWithFlags(&s->cuda, cudaStreamNonBlocking), &dev->info,
                      "cudaStreamCreateWithFlags", err);
    if (rc == TD_OK)
        rc = td_gpu_stream_blas_open(s, err);
    if (rc == TD_OK)
        rc = make_spans(s, err);
    if (rc != TD_OK) {
        td_gpu_stream_destroy(s);
        return rc;
    }
    *out = s;
    return TD_OK;
}

void td_gpu_stream_destroy(td_stream *s) {
    if (!s)
        return;
    /* When the process has lost its devices, what CUDA holds goes with it. */
    const bool usable = td_gpu_use(s->dev, NULL) == TD_OK;
    if (usable && s->cuda) {
        if (cudaStreamSynchronize(s->cuda) != cudaSuccess)
            (void)cudaGetLastError();
        td_gpu_hops_close(s);
    }
    td_gpu_stream_blas_close(s);
    for (uint32_t i = 0; usable && s->spans && i < s->cap_spans; i++) {
        if (s->spans[i].begin)
            (void)cudaEventDestroy(s->spans[i].begin);
        if (s->spans[i].end)
            (void)cudaEventDestroy(s->spans[i].end);
    }
    if (usable && s->capture_scratch)
        (void)cudaFree(s->capture_scratch);
    if (usable && s->cuda && cudaStreamDestroy(s->cuda) != cudaSuccess)
        (void)cudaGetLastError();
    free(s->spans);
    pthread_mutex_destroy(&s->timing_lock);
    free(s);
}
