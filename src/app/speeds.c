/* Speeds of GPUs: from the cache, or measured once and cached.
 *
 * TDGEN_DEBUG_GPU_SPEEDS=clocks leaves the estimates by clocks in place: nothing is measured and no
 * cache is read. It is for tests that count the calls a device gets. */
#include "app/speeds.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device/device.h"
#include "base/log.h"
#include "base/memory.h"

static bool by_clocks(void) {
    const char *v = getenv("TDGEN_DEBUG_GPU_SPEEDS");
    return v && !strcmp(v, "clocks");
}

static void take_entry(td_plan_device *d, const td_speed_entry *e) {
    d->tflops = e->bf16 > 0 ? e->bf16 : e->f16;
    if (d->tflops <= 0)
        d->tflops = e->f32;
    d->tflops_f32 = e->f32;
    d->mem_gbs = e->mem_gbs;
}

/* Of a card of the same model and library, measured in another run. */
static const td_speed_entry *find_sibling(const td_speed_cache *c, const td_device_info *info,
                                          int32_t n, const td_device_info *like) {
    const td_speed_entry *e = NULL;
    for (int32_t i = 0; !e && i < n; i++)
        if (!strcmp(info[i].kind, like->kind) && !strcmp(info[i].model, like->model))
            e = td_speed_cache_find(c, info[i].uuid, info[i].kind);
    return e;
}

td_status td_speeds_from_cache(const td_device_info *info, int32_t n, const bool *want,
                               td_inventory *inv, int32_t *n_missing, td_error *err) {
    td_speed_cache cache = {0};
    td_status rc = TD_OK;
    const char *first = NULL, *last = NULL;
    int32_t n_known = 0, n_want = 0;
    *n_missing = 0;
    if (by_clocks())
        return TD_OK;
    char *path = td_speed_cache_path();
    td_speed_cache_load(path, &cache);
    const td_speed_entry **of = td_calloc((size_t)n + 1, sizeof *of);
    if (!of) {
        rc = td_error_nomem(err, "the device list", (size_t)n * sizeof *of);
        goto done;
    }
    for (int32_t i = 0; i < n; i++) {
        if (!want[i])
            continue;
        n_want++;
        of[i] = td_speed_cache_find(&cache, info[i].uuid, info[i].kind);
        *n_missing += !of[i];
        if (!of[i])
            of[i] = find_sibling(&cache, info, n, &info[i]);
        if (!of[i])
            continue;
        n_known++;
        first = !first || strcmp(of[i]->date, first) < 0 ? of[i]->date : first;
        last = !last || strcmp(of[i]->date, last) > 0 ? of[i]->date : last;
    }
    if (n_known == n_want && n_want > 0) {
        for (int32_t i = 0; i < n; i++)
            if (of[i])
                take_entry(&inv->devices[i], of[i]);
        td_inventory_equalise(inv);
        if (strcmp(first, last))
            snprintf(inv->speeds, sizeof inv->speeds, "measured from %s to %s", first, last);
        else
            snprintf(inv->speeds, sizeof inv->speeds, "measured on %s", first);
    }
done:
    free(of);
    free(path);
    td_speed_cache_free(&cache);
    return rc;
}

static void today(char *buf, size_t size) {
    time_t now = time(NULL);
    struct tm tm;
    if (!gmtime_r(&now, &tm) || !strftime(buf, size, "%Y-%m-%d", &tm))
        snprintf(buf, size, "unknown");
}

static td_status measure_one(const td_device_info *info, td_speed_entry *e, td_error *err) {
    const struct {
        td_dtype mode;
        bool offered;
        double *tflops;
    } modes[] = {{TD_F32, info->has_f32, &e->f32},
                 {TD_BF16, info->has_bf16, &e->bf16},
                 {TD_F16, info->has_f16, &e->f16}};
    td_device *dev = NULL;
    *e = (td_speed_entry){0};
    snprintf(e->uuid, sizeof e->uuid, "%s", info->uuid);
    snprintf(e->kind, sizeof e->kind, "%s", info->kind);
    today(e->date, sizeof e->date);
    td_status rc = td_device_open(info, &dev, err);
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(modes); i++) {
        td_device_speed speed;
        if (!modes[i].offered)
            continue;
        rc = td_device_measure(dev, modes[i].mode, &speed, err);
        if (rc == TD_OK) {
            *modes[i].tflops = speed.tflops;
            e->mem_gbs = TD_MAX(e->mem_gbs, speed.mem_gbs);
        }
    }
    /* Of a lost one nothing may be touched any more. */
    if (rc != TD_E_DEVICE_LOST)
        td_device_close(dev);
    return rc;
}

td_status td_speeds_measure(const td_device_info *info, int32_t n, const bool *want, bool force,
                            const td_device_info **at, td_error *err) {
    td_speed_cache cache = {0};
    td_status rc = TD_OK;
    int32_t n_new = 0, n_todo = 0;
    if (by_clocks())
        return TD_OK;
    char *path = td_speed_cache_path();
    if (!path)
        return TD_OK; /* nowhere to remember it */
    td_speed_entry *fresh = td_calloc((size_t)n + 1, sizeof *fresh);
    bool *todo = td_calloc((size_t)n + 1, sizeof *todo);
    td_speed_cache_load(path, &cache);
    if (!fresh || !todo) {
        rc = td_error_nomem(err, "the device list", (size_t)n * sizeof *fresh);
        goto done;
    }
    for (int32_t i = 0; i < n; i++) {
        todo[i] = info[i].uuid[0] && (!want || want[i]) &&
                  (force || !td_speed_cache_find(&cache, info[i].uuid, info[i].kind));
        n_todo += todo[i];
    }
    if (n_todo && !force)
        td_log_info("Measuring the speed of %d GPU%s (once: it is remembered in %s)", n_todo,
                    n_todo == 1 ? "" : "s", path);
    for (int32_t i = 0; i < n; i++) {
        if (!todo[i])
            continue;
        if (at)
            *at = &info[i];
        rc = measure_one(&info[i], &fresh[n_new], err);
        if (rc == TD_E_DEVICE_LOST)
            goto done;
        if (rc != TD_OK) { /* the run will say what is wrong with it, if it matters */
            td_log_warn("%s: its speed could not be measured: %s", info[i].name, err->text);
            *err = (td_error){0};
            rc = TD_OK;
            continue;
        }
        const td_speed_entry *e = &fresh[n_new++];
        td_log_debug("%s: %.1f TFLOP/s f32, %.1f bf16, %.1f f16, %.0f GB/s", info[i].name, e->f32,
                     e->bf16, e->f16, e->mem_gbs);
    }
    if (at)
        *at = NULL;
    td_error e = {0};
    if (n_new && td_speed_cache_store(path, fresh, n_new, &e) != TD_OK)
        td_log_warn("the measured speeds are not remembered: %s", e.text);
done:
    free(fresh);
    free(todo);
    free(path);
    td_speed_cache_free(&cache);
    return rc;
}
