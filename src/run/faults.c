/* faults.c - what is remembered of lost devices; the rules are in run.h. The file:
 *
 *   {"version": 1, "pid": 4711, "reexecutions": 1, "compute": "bf16",
 *    "machine": ["GPU-8f2e...", ...],
 *    "lost": [{"device": "GPU-8f2e...", "name": "cuda:1", "when": "2026-...", "why": "..."}],
 *    "suspects": [{"row": 17, "start": 0, "tries": 1, "shared": true, "blamed": false,
 *                  "devices": [{"device": "GPU-8f2e...", "name": "cuda:1"}]}]}
 */
#include "run/run.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/json.h"
#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"

enum { MAX_FILE_BYTES = 64 << 20, VERSION = 1 };

void td_fault_free(td_fault *f) {
    if (!f)
        return;
    free(f->samples);
    *f = (td_fault){0};
}

void td_faults_free(td_faults *f) {
    if (!f)
        return;
    free(f->suspects);
    free(f->lost);
    free(f->machine);
    *f = (td_faults){0};
}

static void copy_text(char *dst, size_t size, const char *src) {
    snprintf(dst, size, "%s", src);
}

/* --- whose fault ------------------------------------------------------------------------------ */

const char *td_device_key(const td_device_info *info) {
    return info->uuid[0] ? info->uuid : info->name;
}

/* Where `name` stands last in the text as a whole word ("cuda:1" is not in "cuda:10"), or NULL. */
static const char *last_mention(const char *text, const char *name) {
    const char *found = NULL;
    size_t n = strlen(name);
    for (const char *p = text; n && (p = strstr(p, name)); p += n)
        if (!isdigit((unsigned char)p[n]))
            found = p;
    return found;
}

int32_t td_faults_culprit(td_device *const *devices, int32_t n, const char *message) {
    const char *last = NULL;
    int32_t which = -1;
    for (int32_t i = 0; i < n; i++)
        if (devices[i] && devices[i]->ops->faulted && devices[i]->ops->faulted(devices[i]))
            return i;
    for (int32_t i = 0; i < n; i++) {
        const char *p = devices[i] ? last_mention(message, devices[i]->info.name) : NULL;
        if (p && (!last || p > last)) {
            last = p;
            which = i;
        }
    }
    return which;
}

/* --- suspects --------------------------------------------------------------------------------- */

static int compare_suspects(const void *pa, const void *pb) {
    const td_suspect *a = pa, *b = pb;
    if (a->row != b->row)
        return a->row < b->row ? -1 : 1;
    return a->start < b->start ? -1 : a->start > b->start;
}

static td_suspect *find(const td_faults *f, int64_t row, int64_t start) {
    td_suspect key = {.row = row, .start = start};
    if (f->n_suspects == 0)
        return NULL;
    return bsearch(&key, f->suspects, (size_t)f->n_suspects, sizeof key, compare_suspects);
}

const td_suspect *td_faults_find(const td_faults *f, int64_t row, int64_t start) {
    return find(f, row, start);
}

bool td_faults_is_lost(const td_faults *f, const char *key) {
    for (int32_t i = 0; i < f->n_lost; i++)
        if (!strcmp(f->lost[i].key, key))
            return true;
    return false;
}

void td_faults_forget_devices(td_faults *f) {
    f->n_lost = 0;
    f->n_machine = 0;
    f->n_reexec = 0;
    f->compute[0] = '\0';
}

static void give_back(td_faults *f, const char *key) {
    int32_t n = 0;
    for (int32_t i = 0; i < f->n_lost; i++)
        if (strcmp(f->lost[i].key, key) != 0)
            f->lost[n++] = f->lost[i];
    f->n_lost = n;
}

static void name_device(td_suspect *s, int i, const td_fault *fault) {
    copy_text(s->device[i], sizeof s->device[i], fault->key);
    copy_text(s->name[i], sizeof s->name[i], fault->name);
}

static void accuse(td_faults *f, td_suspect *s, const td_fault *fault) {
    const bool alone = fault->n_samples == 1;
    s->tries = TD_MIN(s->tries + 1, 1000);
    if (!s->device[0][0]) {
        name_device(s, 0, fault);
        s->shared = !alone;
    } else if (alone && s->shared) {
        if (strcmp(s->device[0], fault->key) != 0) {
            give_back(f, s->device[0]);
            s->tries = 1; /* those before, elsewhere and with others, accused it of nothing */
        }
        name_device(s, 0, fault);
        s->shared = false;
    } else if (alone && !s->device[1][0] && strcmp(s->device[0], fault->key) != 0) {
        name_device(s, 1, fault);
    }
}

static td_status add_suspects(td_faults *f, const td_fault *fault, td_error *err) {
    size_t n = (size_t)f->n_suspects, room = n + (size_t)fault->n_samples;
    td_suspect *list = td_realloc_array(f->suspects, TD_MAX(room, 1), sizeof *list);
    if (!list)
        return td_error_nomem(err, "the samples in flight", room * sizeof *list);
    f->suspects = list;
    for (int32_t i = 0; i < fault->n_samples; i++) {
        const td_fault_sample *sample = &fault->samples[i];
        td_suspect *s = find(f, sample->row, sample->start);
        if (!s && n < TD_FAULTS_MAX_SUSPECTS) {
            s = &list[n++];
            *s = (td_suspect){.row = sample->row, .start = sample->start};
        }
        /* Those beyond the limit are the youngest in flight, the least likely ones. */
        if (s)
            accuse(f, s, fault);
    }
    f->n_suspects = (int32_t)n;
    qsort(list, n, sizeof *list, compare_suspects);
    return TD_OK;
}

static td_status add_lost(td_faults *f, const td_fault *fault, td_error *err) {
    if (td_faults_is_lost(f, fault->key) || f->n_lost == TD_FAULTS_MAX_LOST)
        return TD_OK;
    td_lost_device *list = td_realloc_array(f->lost, (size_t)f->n_lost + 1, sizeof *list);
    if (!list)
        return td_error_nomem(err, "the lost devices", sizeof *list);
    f->lost = list;
    td_lost_device *d = &list[f->n_lost++];
    *d = (td_lost_device){0};
    copy_text(d->key, sizeof d->key, fault->key);
    copy_text(d->name, sizeof d->name, fault->name);
    copy_text(d->why, sizeof d->why, fault->why);
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(d->when, sizeof d->when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return TD_OK;
}

td_status td_faults_note(td_faults *f, const td_fault *fault, const td_suspect **blamed,
                         td_error *err) {
    *blamed = NULL;
    td_status rc = add_suspects(f, fault, err);
    if (rc != TD_OK)
        return rc;
    if (fault->n_samples == 1) {
        td_suspect *s = find(f, fault->samples[0].row, fault->samples[0].start);
        if (s && (s->device[1][0] || s->tries >= TD_FAULTS_MAX_TRIES)) {
            s->blamed = true;
            for (int i = 0; i < 2; i++)
                give_back(f, s->device[i]);
            *blamed = s;
            return TD_OK;
        }
    }
    return add_lost(f, fault, err);
}

/* "device cuda:1 (GPU-8f2e...)" and, with a second one, " and ..." */
static char *devices_of(const td_suspect *s, char *buf, size_t n) {
    size_t at = 0;
    buf[0] = '\0';
    for (int i = 0; i < 2 && s->device[i][0] && at < n; i++) {
        at += (size_t)snprintf(buf + at, n - at, "%s%s", i ? " and " : "", s->name[i]);
        if (at < n && strcmp(s->name[i], s->device[i]) != 0)
            at += (size_t)snprintf(buf + at, n - at, " (%s)", s->device[i]);
    }
    return buf;
}

td_status td_faults_blame_error(const td_suspect *s, const char *dir, td_error *err) {
    char devices[256];
    return td_error_set(
        err, TD_E_MODEL,
        "dataset row %lld (the sample from its token %lld on): computing it made "
        "%s fail, so the sample is to blame and not the device; set "
        "run.on_bad_sample = skip to leave it out, or remove %s/" TD_FAULTS_NAME " to try it again",
        (long long)s->row, (long long)s->start, devices_of(s, devices, sizeof devices), dir);
}

void td_faults_print(const td_faults *f, FILE *out) {
    char devices[256];
    for (int32_t i = 0; i < f->n_lost; i++)
        fprintf(out, "Lost device: %s%s%s%s at %s (%s); the others did its work\n", f->lost[i].name,
                strcmp(f->lost[i].name, f->lost[i].key) ? " (" : "",
                strcmp(f->lost[i].name, f->lost[i].key) ? f->lost[i].key : "",
                strcmp(f->lost[i].name, f->lost[i].key) ? ")" : "", f->lost[i].when,
                f->lost[i].why);
    for (int32_t i = 0; i < f->n_suspects; i++)
        if (f->suspects[i].blamed)
            fprintf(
                out,
                "Skipped for making devices fail: dataset row %lld, from token %lld on (it made "
                "%s fail)\n",
                (long long)f->suspects[i].row, (long long)f->suspects[i].start,
                devices_of(&f->suspects[i], devices, sizeof devices));
    if (f->n_reexec)
        fprintf(out, "The program was started anew %d time%s without losing what was committed\n",
                f->n_reexec, f->n_reexec == 1 ? "" : "s");
}

/* --- file ------------------------------------------------------------------------------------- */

static char *path_of(const char *dir) {
    return td_asprintf("%s/" TD_FAULTS_NAME, dir);
}

void td_faults_remove(const char *dir) {
    char *path = path_of(dir);
    if (path)
        unlink(path);
    free(path);
}

/* Strings that came from elsewhere (a driver's message) need not be UTF-8; JSON must be. */
static json_t *text_json(const char *s) {
    json_t *v = json_string(s);
    if (v)
        return v;
    char clean[512];
    size_t n = 0;
    for (; s[n] && n + 1 < sizeof clean; n++)
        clean[n] = (unsigned char)s[n] < 0x80 ? s[n] : '?';
    clean[n] = '\0';
    return json_string(clean);
}

static json_t *suspect_json(const td_suspect *s) {
    json_t *devices = json_array();
    for (int i = 0; i < 2 && s->device[i][0]; i++)
        json_array_append_new(devices, json_pack("{s:o, s:o}", "device", text_json(s->device[i]),
                                                 "name", text_json(s->name[i])));
    return json_pack("{s:I, s:I, s:i, s:b, s:b, s:o}", "row", (json_int_t)s->row, "start",
                     (json_int_t)s->start, "tries", (int)s->tries, "shared", (int)s->shared,
                     "blamed", (int)s->blamed, "devices", devices);
}

td_status td_faults_save(const td_faults *f, const char *dir, td_error *err) {
    td_status rc;
    char *text = NULL, *path = path_of(dir);
    json_t *machine = json_array(), *lost = json_array(), *suspects = json_array();
    for (int32_t i = 0; i < f->n_machine; i++)
        json_array_append_new(machine, text_json(f->machine[i]));
    for (int32_t i = 0; i < f->n_lost; i++)
        json_array_append_new(
            lost, json_pack("{s:o, s:o, s:o, s:o}", "device", text_json(f->lost[i].key), "name",
                            text_json(f->lost[i].name), "when", text_json(f->lost[i].when), "why",
                            text_json(f->lost[i].why)));
    for (int32_t i = 0; i < f->n_suspects; i++)
        json_array_append_new(suspects, suspect_json(&f->suspects[i]));
    json_t *j = json_pack("{s:i, s:I, s:i, s:s, s:o, s:o, s:o}", "version", (int)VERSION, "pid",
                          (json_int_t)f->pid, "reexecutions", (int)f->n_reexec, "compute",
                          f->compute, "machine", machine, "lost", lost, "suspects", suspects);
    if (j)
        text = json_dumps(j, JSON_INDENT(1));
    /* An array that is short of an element ran out of memory: half the truth is not saved. */
    if (!path || !text || json_array_size(machine) != (size_t)f->n_machine ||
        json_array_size(lost) != (size_t)f->n_lost ||
        json_array_size(suspects) != (size_t)f->n_suspects)
        rc = td_error_nomem(err, TD_FAULTS_NAME, (size_t)f->n_suspects * 256);
    else
        rc = td_file_write_atomic(path, text, strlen(text), true, err);
    json_decref(j);
    free(text);
    free(path);
    return rc;
}

typedef struct reader {
    const char *path;
    td_error *err;
} reader;

static td_status read_text(const reader *r, const json_t *obj, const char *key, char *out,
                           size_t size) {
    const char *s;
    td_status rc = td_json_get_str(obj, key, r->path, TD_E_OUTPUT, &s, r->err);
    if (rc != TD_OK)
        return rc;
    if (json_string_length(json_object_get(obj, key)) >= size || strlen(s) >= size)
        return td_error_set(r->err, TD_E_OUTPUT, "%s: \"%s\" is longer than %zu bytes", r->path,
                            key, size - 1);
    copy_text(out, size, s);
    return TD_OK;
}

static td_status read_array(const reader *r, const json_t *obj, const char *key, size_t max,
                            json_t **out) {
    json_t *a = json_object_get(obj, key);
    if (!json_is_array(a) || json_array_size(a) > max)
        return td_error_set(r->err, TD_E_OUTPUT,
                            "%s: \"%s\" must be an array of at most %zu elements", r->path, key,
                            max);
    *out = a;
    return TD_OK;
}

static td_status read_suspect(const reader *r, const json_t *o, td_suspect *s) {
    json_t *devices = NULL;
    bool blamed = false, shared = false;
    int64_t tries = 0;
    td_status rc = td_json_get_int(o, "row", 0, INT64_MAX, r->path, TD_E_OUTPUT, &s->row, r->err);
    if (rc == TD_OK)
        rc = td_json_get_int(o, "start", 0, INT64_MAX, r->path, TD_E_OUTPUT, &s->start, r->err);
    if (rc == TD_OK)
        rc = td_json_get_int(o, "tries", 1, 1000, r->path, TD_E_OUTPUT, &tries, r->err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(o, "blamed", r->path, TD_E_OUTPUT, &blamed, r->err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(o, "shared", r->path, TD_E_OUTPUT, &shared, r->err);
    if (rc == TD_OK)
        rc = read_array(r, o, "devices", 2, &devices);
    for (size_t i = 0; rc == TD_OK && i < json_array_size(devices); i++) {
        const json_t *d = json_array_get(devices, i);
        rc = read_text(r, d, "device", s->device[i], sizeof s->device[i]);
        if (rc == TD_OK)
            rc = read_text(r, d, "name", s->name[i], sizeof s->name[i]);
        if (rc == TD_OK && !s->device[i][0])
            rc = td_error_set(r->err, TD_E_OUTPUT, "%s: a device without a name", r->path);
    }
    s->tries = (int32_t)tries;
    s->blamed = blamed;
    s->shared = shared;
    return rc;
}

static td_status read_lists(const reader *r, const json_t *j, td_faults *f) {
    json_t *machine = NULL, *lost = NULL, *suspects = NULL;
    td_status rc = read_array(r, j, "machine", TD_FAULTS_MAX_MACHINE, &machine);
    if (rc == TD_OK)
        rc = read_array(r, j, "lost", TD_FAULTS_MAX_LOST, &lost);
    if (rc == TD_OK)
        rc = read_array(r, j, "suspects", TD_FAULTS_MAX_SUSPECTS, &suspects);
    if (rc != TD_OK)
        return rc;
    f->machine = td_calloc(json_array_size(machine), sizeof *f->machine);
    f->lost = td_calloc(json_array_size(lost), sizeof *f->lost);
    f->suspects = td_calloc(json_array_size(suspects), sizeof *f->suspects);
    if (!f->machine || !f->lost || !f->suspects)
        return td_error_nomem(r->err, TD_FAULTS_NAME, json_array_size(suspects) * 256);
    for (size_t i = 0; i < json_array_size(machine); i++) {
        const json_t *v = json_array_get(machine, i);
        const char *s = json_string_value(v);
        if (!s || !s[0] || json_string_length(v) >= TD_DEVICE_KEY_SIZE)
            return td_error_set(r->err, TD_E_OUTPUT,
                                "%s: \"machine\" holds something that is no device", r->path);
        copy_text(f->machine[f->n_machine++], TD_DEVICE_KEY_SIZE, s);
    }
    for (size_t i = 0; rc == TD_OK && i < json_array_size(lost); i++) {
        const json_t *o = json_array_get(lost, i);
        td_lost_device *d = &f->lost[f->n_lost++];
        rc = read_text(r, o, "device", d->key, sizeof d->key);
        if (rc == TD_OK)
            rc = read_text(r, o, "name", d->name, sizeof d->name);
        if (rc == TD_OK)
            rc = read_text(r, o, "when", d->when, sizeof d->when);
        if (rc == TD_OK)
            rc = read_text(r, o, "why", d->why, sizeof d->why);
    }
    for (size_t i = 0; rc == TD_OK && i < json_array_size(suspects); i++)
        rc = read_suspect(r, json_array_get(suspects, i), &f->suspects[f->n_suspects++]);
    if (rc == TD_OK)
        qsort(f->suspects, (size_t)f->n_suspects, sizeof *f->suspects, compare_suspects);
    return rc;
}

td_status td_faults_load(const char *dir, td_faults *out, td_error *err) {
    *out = (td_faults){0};
    char *path = path_of(dir);
    if (!path)
        return td_error_nomem(err, "a path", strlen(dir));
    td_status rc = TD_OK;
    json_t *j = NULL;
    td_faults f = {0};
    if (!td_path_exists(path))
        goto done;
    reader r = {path, err};
    int64_t version, n_reexec = 0;
    rc = td_json_load_file(path, MAX_FILE_BYTES, TD_E_OUTPUT, &j, err);
    if (rc == TD_OK)
        rc = td_json_get_int(j, "version", VERSION, VERSION, path, TD_E_OUTPUT, &version, err);
    if (rc == TD_OK)
        rc = td_json_get_int(j, "pid", 0, INT64_MAX, path, TD_E_OUTPUT, &f.pid, err);
    if (rc == TD_OK)
        rc = td_json_get_int(j, "reexecutions", 0, TD_FAULTS_MAX_REEXEC, path, TD_E_OUTPUT,
                             &n_reexec, err);
    if (rc == TD_OK)
        rc = read_text(&r, j, "compute", f.compute, sizeof f.compute);
    if (rc == TD_OK)
        rc = read_lists(&r, j, &f);
    f.n_reexec = (int32_t)n_reexec;
    if (rc == TD_OK) {
        *out = f;
        f = (td_faults){0};
    }
done:
    td_faults_free(&f);
    json_decref(j);
    free(path);
    return rc;
}
