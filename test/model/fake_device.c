/* fake_device.c - see fake_device.h. */
#include "fake_device.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/tensor.h"
#include "base/convert.h"

typedef struct fake_device {
    td_device base;
    fake_options opt;
} fake_device;

typedef struct fake_weight {
    td_weight base;
    char *data;
    bool discards;
} fake_weight;

typedef struct copy {
    struct copy *next;
    void *dst;
    const void *src;
    size_t size_bytes;
} copy;

struct td_stream {
    fake_device *dev;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards the rest */
    pthread_cond_t changed;
    copy *first, **last;
    uint64_t n_queued, n_done;
    bool closing, failed;
    unsigned seed;
    int users; /* threads inside an enqueue call: never more than one */
};

struct td_event {
    td_stream *stream;
    uint64_t at;
};

static atomic_int n_live, n_calls, fail_at, fail_copy;
static atomic_uint_least64_t device_bytes;

int fake_live(void) {
    return atomic_load(&n_live);
}
uint64_t fake_device_bytes(void) {
    return atomic_load(&device_bytes);
}
void fake_fail_at(int n) {
    atomic_store(&n_calls, 0);
    atomic_store(&fail_at, n);
}
int fake_calls(void) {
    return atomic_load(&n_calls);
}
void fake_fail_copy(int n) {
    atomic_store(&fail_copy, n);
}

static td_status gate(const td_device *dev, const char *op, td_error *err) {
    int n = atomic_fetch_add(&n_calls, 1) + 1;
    if (n == atomic_load(&fail_at))
        return td_error_set(err, TD_E_DEVICE, "%s: %s fails for the test", dev->info.name, op);
    return TD_OK;
}

static void fake_close(td_device *dev) {
    free(dev);
}

/* Sizes stand in front, so that free can take them off the account. */
static void *counted(size_t size_bytes, bool untouched) {
    char *p = aligned_alloc(64, (size_bytes + 64 + 63) / 64 * 64);
    memcpy(p, &size_bytes, sizeof size_bytes);
    if (!untouched)
        memset(p + 64, 0xff, size_bytes); /* NaN in every type */
    atomic_fetch_add(&n_live, 1);
    return p + 64;
}

static size_t uncounted(void *ptr, bool untouched) {
    size_t n;
    memcpy(&n, (char *)ptr - 64, sizeof n);
    if (!untouched)
        memset(ptr, 0xee, n); /* a copy that still reads it shows */
    free((char *)ptr - 64);
    atomic_fetch_sub(&n_live, 1);
    return n;
}

static td_status fake_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err) {
    td_status rc = gate(dev, "alloc", err);
    if (rc == TD_OK) {
        *out = counted(size_bytes, ((fake_device *)dev)->opt.discards);
        atomic_fetch_add(&device_bytes, size_bytes);
    }
    return rc;
}

static void fake_free(td_device *dev, void *ptr) {
    if (ptr)
        atomic_fetch_sub(&device_bytes, uncounted(ptr, ((fake_device *)dev)->opt.discards));
}

static td_status fake_host_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err) {
    td_status rc = gate(dev, "host_alloc", err);
    if (rc == TD_OK)
        *out = counted(size_bytes, ((fake_device *)dev)->opt.discards);
    return rc;
}

static void fake_host_free(td_device *dev, void *ptr) {
    if (ptr)
        uncounted(ptr, ((fake_device *)dev)->opt.discards);
}

static void run_copy(td_stream *s, const copy *c, unsigned delay_us) {
    if (delay_us)
        usleep(delay_us);
    if (!s->dev->opt.discards)
        memcpy(c->dst, c->src, c->size_bytes);
}

static void *stream_main(void *arg) {
    td_stream *s = arg;
    pthread_mutex_lock(&s->mutex);
    for (;;) {
        while (!s->first && !s->closing)
            pthread_cond_wait(&s->changed, &s->mutex);
        copy *c = s->first;
        if (!c)
            break;
        s->first = c->next;
        if (!s->first)
            s->last = &s->first;
        s->seed = s->seed * 1664525u + 1013904223u;
        int32_t max = s->dev->opt.max_delay_us;
        bool skip = s->failed;
        pthread_mutex_unlock(&s->mutex);
        bool fails = atomic_load(&fail_copy) > 0 && atomic_fetch_sub(&fail_copy, 1) == 1;
        if (!skip && !fails)
            run_copy(s, c, max > 0 ? (s->seed >> 8) % (unsigned)max : 0);
        free(c);
        pthread_mutex_lock(&s->mutex);
        s->failed |= fails;
        s->n_done++;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

static td_status fake_stream_create(td_device *dev, td_stream **out, td_error *err) {
    td_status rc = gate(dev, "stream_create", err);
    if (rc != TD_OK)
        return rc;
    td_stream *s = calloc(1, sizeof *s);
    s->dev = (fake_device *)dev;
    s->last = &s->first;
    s->seed = (unsigned)dev->info.index + 1;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (pthread_create(&s->thread, NULL, stream_main, s)) {
        free(s);
        return td_error_set(err, TD_E_INTERNAL, "no thread for a stream");
    }
    atomic_fetch_add(&n_live, 1);
    *out = s;
    return TD_OK;
}

static void fake_stream_destroy(td_stream *s) {
    pthread_mutex_lock(&s->mutex);
    s->closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->changed);
    free(s);
    atomic_fetch_sub(&n_live, 1);
}

static td_status fake_event_create(td_device *dev, td_event **out, td_error *err) {
    td_status rc = gate(dev, "event_create", err);
    if (rc != TD_OK)
        return rc;
    *out = calloc(1, sizeof **out);
    atomic_fetch_add(&n_live, 1);
    return TD_OK;
}

static void fake_event_destroy(td_event *e) {
    free(e);
    atomic_fetch_sub(&n_live, 1);
}

/* Two threads inside one stream's calls break the contract of device.h: that ends the test. */
static void enter(td_stream *s) {
    pthread_mutex_lock(&s->mutex);
    if (s->users++) {
        fprintf(stderr, "two threads enqueue on one stream\n");
        abort();
    }
    pthread_mutex_unlock(&s->mutex);
    if (s->dev->opt.max_delay_us)
        sched_yield();
    pthread_mutex_lock(&s->mutex);
    s->users--;
}

static td_status fake_event_record(td_event *e, td_stream *s, td_error *err) {
    td_status rc = gate(&s->dev->base, "event_record", err);
    if (rc != TD_OK)
        return rc;
    enter(s);
    e->stream = s;
    e->at = s->n_queued;
    pthread_mutex_unlock(&s->mutex);
    return TD_OK;
}

static td_status fake_event_sync(td_event *e, double timeout_s, td_error *err) {
    (void)timeout_s;
    td_stream *s = e->stream;
    td_status rc = gate(&s->dev->base, "event_sync", err);
    if (rc != TD_OK)
        return rc;
    pthread_mutex_lock(&s->mutex);
    while (s->n_done < e->at)
        pthread_cond_wait(&s->changed, &s->mutex);
    if (s->failed)
        rc = td_error_set(err, TD_E_DEVICE, "%s: a copy failed for the test",
                          s->dev->base.info.name);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

static td_status fake_copy_in(td_stream *s, void *dst, const void *src, size_t size_bytes,
                              td_error *err) {
    td_status rc = gate(&s->dev->base, "copy_in", err);
    if (rc != TD_OK)
        return rc;
    copy *c = calloc(1, sizeof *c);
    *c = (copy){NULL, dst, src, size_bytes};
    enter(s);
    *s->last = c;
    s->last = &c->next;
    s->n_queued++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    return TD_OK;
}

static td_status fake_weight_create(td_device *dev, int64_t n_rows, int64_t n_cols,
                                    td_dtype compute, td_weight **out, void **data, td_error *err) {
    td_status rc = gate(dev, "weight_create", err);
    if (rc != TD_OK)
        return rc;
    fake_weight *w = calloc(1, sizeof *w);
    size_t n = (size_t)n_rows * (size_t)n_cols * td_dtype_size(compute);
    w->base = (td_weight){dev->ops, n_rows, n_cols, compute, n};
    w->discards = ((fake_device *)dev)->opt.discards;
    w->data = counted(n, w->discards);
    atomic_fetch_add(&device_bytes, n);
    *out = &w->base;
    *data = w->data;
    return TD_OK;
}

static void fake_weight_destroy(td_weight *weight) {
    fake_weight *w = (fake_weight *)weight;
    atomic_fetch_sub(&device_bytes, uncounted(w->data, w->discards));
    free(w);
}

static td_status fake_weight_prepare(td_device *dev, const td_host_matrix *parts, int32_t n_parts,
                                     td_dtype compute, td_weight **out, td_error *err) {
    int64_t n_rows = 0;
    for (int32_t i = 0; i < n_parts; i++)
        n_rows += parts[i].n_rows;
    void *data;
    td_status rc = fake_weight_create(dev, n_rows, parts[0].n_cols, compute, out, &data, err);
    if (rc != TD_OK)
        return rc;
    size_t at = 0, elem = td_dtype_size(compute);
    enum { SCRATCH_ELEMS = 1 << 20 };
    bool discards = ((fake_device *)dev)->opt.discards;
    char *scratch = discards ? counted((size_t)SCRATCH_ELEMS * elem, false) : NULL;
    for (int32_t i = 0; i < n_parts; i++) {
        size_t n = (size_t)(parts[i].n_rows * parts[i].n_cols);
        const char *src = parts[i].data;
        for (size_t k = 0, m; k < n; k += m) {
            m = n - k < SCRATCH_ELEMS ? n - k : SCRATCH_ELEMS;
            td_convert(src + k * td_dtype_size(parts[i].dtype), parts[i].dtype,
                       discards ? scratch : (char *)data + (at + k) * elem, compute, m);
        }
        at += n;
    }
    if (scratch)
        uncounted(scratch, false);
    return TD_OK;
}

static const td_device_ops plain_ops = {
    .backend = "fake",
    .close = fake_close,
    .alloc = fake_alloc,
    .free = fake_free,
    .host_alloc = fake_host_alloc,
    .host_free = fake_host_free,
    .stream_create = fake_stream_create,
    .stream_destroy = fake_stream_destroy,
    .event_create = fake_event_create,
    .event_destroy = fake_event_destroy,
    .event_record = fake_event_record,
    .event_sync = fake_event_sync,
    .copy_in = fake_copy_in,
    .weight_prepare = fake_weight_prepare,
    .weight_create = fake_weight_create,
    .weight_destroy = fake_weight_destroy,
};

static const td_device_ops packing_ops = {
    .backend = "packing",
    .close = fake_close,
    .alloc = fake_alloc,
    .free = fake_free,
    .host_alloc = fake_host_alloc,
    .host_free = fake_host_free,
    .stream_create = fake_stream_create,
    .stream_destroy = fake_stream_destroy,
    .event_create = fake_event_create,
    .event_destroy = fake_event_destroy,
    .event_record = fake_event_record,
    .event_sync = fake_event_sync,
    .copy_in = fake_copy_in,
    .weight_prepare = fake_weight_prepare,
    .weight_destroy = fake_weight_destroy,
};

td_device *fake_open(int32_t index, const fake_options *opt) {
    fake_device *d = calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->opt = *opt;
    d->base.ops = opt->packs ? &packing_ops : &plain_ops;
    td_device_info *info = &d->base.info;
    snprintf(info->name, sizeof info->name, "%s:%d", d->base.ops->backend, index);
    info->index = info->domain = index;
    info->has_f32 = info->has_bf16 = info->has_f16 = true;
    return &d->base;
}

const void *fake_weight_data(const td_weight *w) {
    return ((const fake_weight *)w)->data;
}
