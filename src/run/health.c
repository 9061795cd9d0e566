/* health.c - see health.h. The lock protects what the thread writes and others read; it is never
 * held while the driver is asked. */
#include "run/health.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/log.h"
#include "base/memory.h"

enum { LEAVE_S = 1 }; /* what the thread gets to come back from the driver */

typedef struct watched {
    td_device *device;
    td_device_health now, first; /* first: the counters when the run began */
    td_device_summary sum;       /* means are sums until they are asked for */
    int64_t n_utilization, n_power, n_samples, n_throttled;
} watched;

struct td_health {
    watched *devices; /* now, sum and the counts: written by the thread, under the lock */
    int32_t n;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool requested, stop; /* protected by the lock */
};

/* What a person should hear of at once. */
static void warn_changes(const watched *w, const td_device_health *now) {
    if (now->last_xid != w->now.last_xid)
        td_log_warn("%s: the driver reported Xid %lld (see NVIDIA's Xid catalogue)", w->sum.name,
                    (long long)now->last_xid);
    if (now->ecc_uncorrected > w->now.ecc_uncorrected && w->now.ecc_uncorrected >= 0)
        td_log_warn("%s: %lld uncorrectable memory errors since the driver was loaded", w->sum.name,
                    (long long)now->ecc_uncorrected);
}

static void add_sample(watched *w, const td_device_health *now) {
    w->now = *now;
    w->n_samples++;
    if (now->utilization_percent >= 0) {
        w->sum.mean_utilization += now->utilization_percent;
        w->n_utilization++;
    }
    if (now->power_w >= 0) {
        w->sum.mean_power_w += now->power_w;
        w->n_power++;
    }
    w->sum.max_temperature_c = TD_MAX(w->sum.max_temperature_c, now->temperature_c);
    if (now->throttle[0]) {
        w->n_throttled++;
        memcpy(w->sum.throttle, now->throttle, sizeof w->sum.throttle);
    }
}

static void *health_main(void *arg) {
    td_health *h = arg;
    pthread_mutex_lock(&h->lock);
    for (;;) {
        while (!h->requested && !h->stop)
            pthread_cond_wait(&h->changed, &h->lock);
        h->requested = false;
        for (int32_t i = 0; i < h->n && !h->stop; i++) {
            watched *w = &h->devices[i];
            td_device_health now;
            pthread_mutex_unlock(&h->lock);
            w->device->ops->health(w->device, &now);
            if (now.known)
                warn_changes(w, &now);
            pthread_mutex_lock(&h->lock);
            if (now.known)
                add_sample(w, &now);
        }
        if (h->stop)
            break;
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

static void free_memory(td_health *h) {
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    free(h->devices);
    free(h);
}

td_health *td_health_create(const td_run_input *in) {
    const int32_t n = in->plan->inventory.n_devices;
    td_health *h = td_calloc(1, sizeof *h);
    if (!h || !(h->devices = td_calloc((size_t)n, sizeof *h->devices))) {
        free(h);
        return NULL;
    }
    for (int32_t i = 0; i < n; i++) {
        td_device *d = in->devices[i];
        td_device_health first;
        if (!d || !d->ops->health)
            continue;
        d->ops->health(d, &first);
        if (!first.known)
            continue;
        watched *w = &h->devices[h->n++];
        *w = (watched){.device = d, .now = first, .first = first};
        snprintf(w->sum.name, sizeof w->sum.name, "%s", d->info.name);
        snprintf(w->sum.model, sizeof w->sum.model, "%s", d->info.model);
    }
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->changed, NULL);
    if (h->n == 0 || pthread_create(&h->thread, NULL, health_main, h) != 0) {
        free_memory(h);
        return NULL;
    }
    return h;
}

bool td_health_free(td_health *h) {
    if (!h)
        return true;
    pthread_mutex_lock(&h->lock);
    h->stop = true;
    pthread_cond_signal(&h->changed);
    pthread_mutex_unlock(&h->lock);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until); /* a clock that is set meanwhile changes nothing */
    until.tv_sec += LEAVE_S;
    if (pthread_clockjoin_np(h->thread, NULL, CLOCK_MONOTONIC, &until) != 0) {
        /* It is inside the driver and may come back at any time: what it then writes to stays. */
        pthread_detach(h->thread);
        return false;
    }
    free_memory(h);
    return true;
}

void td_health_sample(td_health *h) {
    if (!h)
        return;
    pthread_mutex_lock(&h->lock);
    h->requested = true;
    pthread_cond_signal(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

void td_health_line(td_health *h, char *buf, size_t size) {
    int32_t n_used = 0, hottest = -1;
    double used = 0, power = 0;
    buf[0] = '\0';
    if (!h)
        return;
    pthread_mutex_lock(&h->lock);
    for (int32_t i = 0; i < h->n; i++) {
        const td_device_health *d = &h->devices[i].now;
        if (d->utilization_percent >= 0) {
            used += d->utilization_percent;
            n_used++;
        }
        hottest = TD_MAX(hottest, d->temperature_c);
        power += d->power_w > 0 ? d->power_w : 0;
    }
    pthread_mutex_unlock(&h->lock);
    size_t at = 0;
    if (n_used > 0)
        at += (size_t)snprintf(buf, size, " · GPU %.0f%%", used / n_used);
    if (hottest >= 0 && at < size)
        at += (size_t)snprintf(buf + at, size - at, " %dC", hottest);
    if (power > 0 && at < size)
        snprintf(buf + at, size - at, " %.0f W", power);
}

/* -1 says "not told" in the struct; in JSON the key is left out. */
static void put(json_t *j, const char *key, double value) {
    if (value >= 0)
        json_object_set_new(j, key, json_real(value));
}

json_t *td_health_json(td_health *h) {
    json_t *list = h ? json_array() : NULL;
    if (!list)
        return NULL;
    pthread_mutex_lock(&h->lock);
    for (int32_t i = 0; i < h->n; i++) {
        const watched *w = &h->devices[i];
        const td_device_info *info = &w->device->info;
        json_t *j = json_pack("{s:s, s:s, s:s}", "device", info->name, "model", info->model, "uuid",
                              info->uuid);
        if (!j)
            continue;
        put(j, "utilization_percent", w->now.utilization_percent);
        put(j, "temperature_c", w->now.temperature_c);
        put(j, "power_w", w->now.power_w);
        put(j, "power_limit_w", w->now.power_limit_w);
        put(j, "sm_clock_mhz", w->now.sm_clock_mhz);
        put(j, "sm_clock_max_mhz", w->now.sm_clock_max_mhz);
        put(j, "ecc_uncorrected", (double)w->now.ecc_uncorrected);
        json_object_set_new(j, "last_xid", json_integer((json_int_t)w->now.last_xid));
        json_object_set_new(j, "throttle", json_string(w->now.throttle));
        json_array_append_new(list, j);
    }
    pthread_mutex_unlock(&h->lock);
    return list;
}

td_device_summary *td_health_summary(td_health *h, int32_t *n_out) {
    td_device_summary *list = h ? td_calloc((size_t)h->n, sizeof *list) : NULL;
    *n_out = list ? h->n : 0;
    if (!list)
        return NULL;
    pthread_mutex_lock(&h->lock);
    for (int32_t i = 0; i < h->n; i++) {
        const watched *w = &h->devices[i];
        list[i] = w->sum;
        list[i].mean_utilization =
            w->n_utilization ? w->sum.mean_utilization / (double)w->n_utilization : -1;
        list[i].mean_power_w = w->n_power ? w->sum.mean_power_w / (double)w->n_power : -1;
        list[i].throttled_share = w->n_samples ? (double)w->n_throttled / (double)w->n_samples : 0;
        list[i].new_ecc_errors =
            w->first.ecc_uncorrected >= 0 ? w->now.ecc_uncorrected - w->first.ecc_uncorrected : 0;
        list[i].last_xid = w->now.last_xid;
    }
    pthread_mutex_unlock(&h->lock);
    return list;
}
