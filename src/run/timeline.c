/* timeline.c - see timeline.h. The mutex is held for a few additions, or while the lines are
 * composed; never together with run->lock. */
#include "run/timeline.h"

#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "run/state.h"
#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/strbuf.h"

#define FIRST_LENGTH_S 0.02
#define MAX_OLD_BYTES ((size_t)1 << 24)

typedef struct segment {
    double begin_s, end_s; /* since the start of the run */
    int64_t first_shard, last_shard, n_samples, n_tokens;
} segment;

typedef struct track {
    segment segments[TD_TIMELINE_SEGMENTS];
    int32_t n;
    double length_s; /* a segment is extended up to this */
} track;

struct td_timeline {
    const td_run_state *run;
    char *path, *old; /* lines of earlier executions */
    time_t started;
    pthread_mutex_t mutex;
    track *tracks; /* [n_groups] Protected by mutex */
};

/* The last lines of the file that is there. */
static char *read_old(const char *path) {
    char *data = NULL;
    size_t n = 0;
    td_error ignored;
    if (!td_path_exists(path) ||
        td_file_read(path, MAX_OLD_BYTES, TD_E_OUTPUT, &data, &n, &ignored) != TD_OK)
        return NULL;
    int lines = 0;
    while (n && data[n - 1] != '\n')
        n--; /* a torn line */
    size_t at = n;
    while (at > 0) {
        if (data[at - 1] == '\n' && ++lines == TD_TIMELINE_EXECUTIONS)
            break;
        at--;
    }
    char *rest = td_strndup(data + at, n - at);
    free(data);
    return rest;
}

td_timeline *td_timeline_create(const td_run_state *run) {
    td_timeline *t = td_calloc(1, sizeof *t);
    if (!t)
        return NULL;
    pthread_mutex_init(&t->mutex, NULL);
    t->run = run;
    t->started = time(NULL);
    t->path = td_asprintf("%s/timeline.jsonl", run->in->cfg->output.dir);
    t->tracks = td_calloc((size_t)run->n_groups, sizeof *t->tracks);
    if (!t->path || !t->tracks) {
        td_timeline_free(t);
        return NULL;
    }
    t->old = read_old(t->path);
    for (int32_t g = 0; g < run->n_groups; g++)
        t->tracks[g].length_s = FIRST_LENGTH_S;
    return t;
}

void td_timeline_free(td_timeline *t) {
    if (!t)
        return;
    pthread_mutex_destroy(&t->mutex);
    free(t->tracks);
    free(t->old);
    free(t->path);
    free(t);
}

static void extend(segment *s, const segment *by) {
    s->end_s = by->end_s;
    s->first_shard = TD_MIN(s->first_shard, by->first_shard);
    s->last_shard = TD_MAX(s->last_shard, by->last_shard);
    s->n_samples += by->n_samples;
    s->n_tokens += by->n_tokens;
}

/* Half as many, twice as long. */
static void join_pairs(track *k) {
    for (int32_t i = 0; i < k->n / 2; i++) {
        segment s = k->segments[2 * i];
        extend(&s, &k->segments[2 * i + 1]);
        k->segments[i] = s;
    }
    k->n /= 2;
    k->length_s *= 2;
}

void td_timeline_note(td_timeline *t, uint32_t group, int64_t shard, int64_t n_samples,
                      int64_t n_tokens, double begin_s, double end_s) {
    if (!t)
        return;
    segment s = {.begin_s = TD_MAX(0.0, begin_s - t->run->start_s),
                 .end_s = TD_MAX(0.0, end_s - t->run->start_s),
                 .first_shard = shard,
                 .last_shard = shard,
                 .n_samples = n_samples,
                 .n_tokens = n_tokens};
    pthread_mutex_lock(&t->mutex);
    track *k = &t->tracks[group];
    segment *last = k->n ? &k->segments[k->n - 1] : NULL;
    /* a pause that would show is kept */
    if (last && s.end_s - last->begin_s <= k->length_s &&
        s.begin_s - last->end_s <= k->length_s / 4) {
        extend(last, &s);
    } else {
        if (k->n == TD_TIMELINE_SEGMENTS)
            join_pairs(k);
        k->segments[k->n++] = s;
    }
    pthread_mutex_unlock(&t->mutex);
}

static json_t *group_json(const td_timeline *t, int32_t g) {
    const td_group *grp = &t->run->groups[g];
    const track *k = &t->tracks[g];
    char devices[128] = "";
    for (int32_t i = 0; i < grp->plan->n_stages; i++)
        snprintf(devices + strlen(devices), sizeof devices - strlen(devices), "%s%s", i ? ", " : "",
                 grp->stages[i].device->info.name);
    json_t *list = json_array();
    for (int32_t i = 0; list && i < k->n; i++) {
        const segment *s = &k->segments[i];
        json_array_append_new(list, json_pack("[f, f, I, I, I, I]", s->begin_s, s->end_s,
                                              (json_int_t)s->first_shard, (json_int_t)s->last_shard,
                                              (json_int_t)s->n_samples, (json_int_t)s->n_tokens));
    }
    return json_pack("{s:i, s:s, s:s, s:o}", "group", g, "devices", devices, "kind",
                     t->run->kinds[t->run->group_kind[g]], "segments", list);
}

void td_timeline_write(td_timeline *t) {
    if (!t)
        return;
    td_strbuf b = {0};
    json_t *groups = json_array();
    bool any = false;
    pthread_mutex_lock(&t->mutex);
    for (int32_t g = 0; groups && g < t->run->n_groups; g++) {
        any = any || t->tracks[g].n;
        json_array_append_new(groups, group_json(t, g));
    }
    pthread_mutex_unlock(&t->mutex);
    json_t *o = json_pack("{s:I, s:i, s:o}", "started", (json_int_t)t->started, "worker_id",
                          t->run->in->cfg->run.worker_id, "groups", groups);
    char *line = o && any ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(7)) : NULL;
    json_decref(o);
    if (!line)
        return;
    td_strbuf_puts(&b, t->old ? t->old : "");
    td_strbuf_puts(&b, line);
    td_strbuf_puts(&b, "\n");
    free(line);
    td_error err;
    if (!b.oom && td_file_write_atomic(t->path, b.data, b.len, false, &err) != TD_OK)
        td_log_debug("%s", err.text);
    td_strbuf_free(&b);
}
