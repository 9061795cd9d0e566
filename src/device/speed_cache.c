/* speed_cache.c - measured device speeds, kept between runs.
 *
 * A small JSON file:
 *   {"format": 1, "devices": {"GPU-8f2e...": {"kind": "NVIDIA A100 sm_80 cublaslt-13.0.0",
 *    "date": "2026-03-01", "f32": 17.1, "bf16": 231.0, "f16": 228.4, "mem_gbs": 1710.5}}}
 * with TFLOP/s by compute mode.
 *
 * It is a cache: whatever is wrong with it, it reads as empty, is written anew, and costs a
 * measurement. Processes may read and write at the same time: a file is replaced as a whole, and
 * writers take turns.
 */
#include "device/device.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"

enum { FORMAT = 1, MAX_FILE_BYTES = 1 << 20, MAX_ENTRIES = 2048 };
static const double MAX_RATE = 1e7;

char *td_speed_cache_path(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && cache[0] == '/') /* the XDG specification: others are to be ignored */
        return td_asprintf("%s/tdgen/device-speeds.json", cache);
    return home && home[0] == '/' ? td_asprintf("%s/.cache/tdgen/device-speeds.json", home) : NULL;
}

static bool get_text(const json_t *obj, const char *key, char *buf, size_t size) {
    const json_t *v = json_object_get(obj, key);
    const char *s = json_string_value(v);
    if (!s || !s[0] || json_string_length(v) >= size || strlen(s) != json_string_length(v))
        return false;
    memcpy(buf, s, json_string_length(v) + 1);
    return true;
}

static bool get_rate(const json_t *obj, const char *key, double *out) {
    const json_t *v = json_object_get(obj, key);
    *out = json_number_value(v);
    return json_is_number(v) && isfinite(*out) && *out >= 0 && *out <= MAX_RATE;
}

static bool read_entry(const char *uuid, const json_t *obj, td_speed_entry *e) {
    *e = (td_speed_entry){0};
    if (!uuid[0] || strlen(uuid) >= sizeof e->uuid)
        return false;
    memcpy(e->uuid, uuid, strlen(uuid) + 1);
    return get_text(obj, "kind", e->kind, sizeof e->kind) &&
           get_text(obj, "date", e->date, sizeof e->date) && get_rate(obj, "f32", &e->f32) &&
           get_rate(obj, "bf16", &e->bf16) && get_rate(obj, "f16", &e->f16) &&
           get_rate(obj, "mem_gbs", &e->mem_gbs) && e->f32 > 0 && e->mem_gbs > 0;
}

void td_speed_cache_load(const char *path, td_speed_cache *out) {
    json_t *root = NULL, *obj;
    td_error err = {0};
    const char *uuid;
    *out = (td_speed_cache){0};
    if (!path || !td_path_exists(path))
        return;
    if (td_json_load_file(path, MAX_FILE_BYTES, TD_E_CONFIG, &root, &err) != TD_OK) {
        td_log_debug("%s; the speeds of devices are measured anew", err.text);
        return;
    }
    json_t *devices = json_object_get(root, "devices");
    if (json_integer_value(json_object_get(root, "format")) == FORMAT && json_is_object(devices) &&
        json_object_size(devices) <= MAX_ENTRIES)
        out->entries = td_calloc(json_object_size(devices) + 1, sizeof *out->entries);
    if (out->entries)
        json_object_foreach(devices, uuid, obj) {
            if (read_entry(uuid, obj, &out->entries[out->n_entries]))
                out->n_entries++;
        }
    else
        td_log_debug("%s is not a cache of device speeds that this version reads", path);
    json_decref(root);
}

void td_speed_cache_free(td_speed_cache *c) {
    free(c->entries);
    *c = (td_speed_cache){0};
}

const td_speed_entry *td_speed_cache_find(const td_speed_cache *c, const char *uuid,
                                          const char *kind) {
    for (int32_t i = 0; uuid[0] && i < c->n_entries; i++)
        if (!strcmp(c->entries[i].uuid, uuid) && !strcmp(c->entries[i].kind, kind))
            return &c->entries[i];
    return NULL;
}

static int put_entry(json_t *devices, const td_speed_entry *e) {
    json_t *obj = json_pack("{s:s, s:s, s:f, s:f, s:f, s:f}", "kind", e->kind, "date", e->date,
                            "f32", e->f32, "bf16", e->bf16, "f16", e->f16, "mem_gbs", e->mem_gbs);
    return obj ? json_object_set_new(devices, e->uuid, obj) : -1;
}

td_status td_speed_cache_store(const char *path, const td_speed_entry *entries, int32_t n,
                               td_error *err) {
    td_speed_cache old = {0};
    td_status rc = TD_OK;
    char *text = NULL, *dir = td_strdup(path), *lock = td_asprintf("%s.lock", path);
    json_t *root = json_object(), *devices = json_object();
    int fd = -1, bad = 0;
    if (!dir || !lock || !root || !devices) {
        rc = td_error_nomem(err, "the cache of device speeds", strlen(path));
        goto done;
    }
    char *slash = strrchr(dir, '/');
    if (slash && slash != dir) {
        *slash = '\0';
        rc = td_mkdir_p(dir, err);
        if (rc != TD_OK)
            goto done;
    }
    /* Without the lock (a file system that has none) a writer at the same time may win. */
    if (td_file_create(lock, TD_CREATE_KEEP, &fd, NULL) == TD_OK)
        (void)flock(fd, LOCK_EX);
    td_speed_cache_load(path, &old);
    for (int32_t i = 0; i < old.n_entries; i++)
        bad |= put_entry(devices, &old.entries[i]);
    for (int32_t i = 0; i < n; i++)
        bad |= put_entry(devices, &entries[i]);
    bad |= json_object_set_new(root, "format", json_integer(FORMAT));
    bad |= json_object_set(root, "devices", devices);
    text = bad ? NULL : json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS | JSON_REAL_PRECISION(6));
    if (!text)
        rc = td_error_nomem(err, "the cache of device speeds", MAX_FILE_BYTES);
    else
        rc = td_file_write_atomic(path, text, strlen(text), false, err);
done:
    if (fd >= 0)
        close(fd);
    td_speed_cache_free(&old);
    json_decref(root);
    json_decref(devices);
    free(text);
    free(dir);
    free(lock);
    return rc;
}
