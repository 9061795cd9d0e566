/* beat.c - see beat.h; td_beat in run.h. */
#include "run/beat.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/process.h"
#include "run/lock.h"
#include "run/run.h"

static void stamp(time_t t, char buf[32]) {
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(buf, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

json_t *td_status_head(const td_config *cfg, const char *state, time_t started) {
    const td_process self = td_process_self();
    char from[32], now[32];
    stamp(started, from);
    stamp(time(NULL), now);
    return json_pack("{s:i, s:s, s:s, s:s, s:i, s:s, s:s, s:I, s:I, s:i, s:i}", "schema", 1,
                     "state", state, "started", from, "updated", now, "heartbeat_s", TD_HEARTBEAT_S,
                     "host", self.host, "boot_id", self.boot, "pid", (json_int_t)self.pid,
                     "process_start", (json_int_t)self.start, "worker_id", (int)cfg->run.worker_id,
                     "total_workers", (int)cfg->run.total_workers);
}

void td_status_write(const td_config *cfg, json_t *status, bool last) {
    char *path = td_asprintf("%s/status.json", cfg->output.dir);
    char *text = status ? json_dumps(status, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) : NULL;
    td_error err;
    json_decref(status);
    if (path && text && td_file_write_atomic(path, text, strlen(text), last, &err) != TD_OK)
        td_log_debug("%s", err.text);
    free(text);
    free(path);
}

/* --- while a run starts ----------------------------------------------------------------------- */

struct td_beat {
    const td_config *cfg;
    time_t started;
    pthread_t thread;
    bool threaded;
    td_lock lock;
    const char *step; /* Protected by lock, like all below. */
    bool ended, gone; /* asked to end; its thread did */
};

static void write_step(const td_beat *b, const char *step) {
    json_t *j = td_status_head(b->cfg, "starting", b->started);
    if (j)
        json_object_set_new(j, "step", json_string(step));
    td_status_write(b->cfg, j, false);
}

static void *beat_main(void *arg) {
    td_beat *b = arg;
    const char *told = NULL;
    double told_s = 0;
    td_lock_acquire(&b->lock);
    while (!b->ended) {
        const char *step = b->step;
        if (step != told || td_time_s() - told_s >= TD_HEARTBEAT_S) {
            told = step;
            told_s = td_time_s();
            td_lock_release(&b->lock);
            write_step(b, step);
            td_lock_acquire(&b->lock);
            continue; /* the step may be another one by now */
        }
        td_lock_wait_ms(&b->lock, 1000);
    }
    b->gone = true;
    td_lock_notify(&b->lock);
    td_lock_release(&b->lock);
    return NULL;
}

td_beat *td_beat_start(const td_config *cfg, const char *step) {
    td_beat *b = td_calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->cfg = cfg;
    b->started = time(NULL);
    b->step = step;
    td_lock_init(&b->lock);
    /* Without the thread the status is only as fresh as the steps. */
    b->threaded = pthread_create(&b->thread, NULL, beat_main, b) == 0;
    if (!b->threaded)
        write_step(b, step);
    return b;
}

void td_beat_step(td_beat *b, const char *step) {
    if (!b)
        return;
    td_lock_acquire(&b->lock);
    b->step = step;
    td_lock_notify(&b->lock);
    td_lock_release(&b->lock);
    if (!b->threaded)
        write_step(b, step);
}

void td_beat_stop(td_beat *b, const td_error *failed) {
    if (!b)
        return;
    td_lock_acquire(&b->lock);
    b->ended = true;
    td_lock_notify(&b->lock);
    const double since_s = td_time_s();
    bool told = false;
    while (b->threaded && !b->gone) {
        td_lock_wait_ms(&b->lock, 500);
        if (!told && td_time_s() - since_s >= td_run_patience_s()) {
            told = true;
            td_log_warn("status.json is being written for %.0f s now; the file system does not "
                        "answer, or is very slow",
                        td_time_s() - since_s);
        }
    }
    td_lock_release(&b->lock);
    if (b->threaded)
        pthread_join(b->thread, NULL);
    if (failed) {
        const bool stopped = failed->code == TD_E_STOPPED;
        json_t *j = td_status_head(b->cfg, stopped ? "stopped" : "failed", b->started);
        if (j && !stopped)
            json_object_set_new(j, "error", json_string(failed->text));
        td_status_write(b->cfg, j, true);
    }
    td_lock_destroy(&b->lock);
    free(b);
}
