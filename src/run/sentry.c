/* sentry.c - see sentry.h. */
#include "run/sentry.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "run/lock.h"

struct td_sentry {
    pthread_t thread;
    double patience_s;
    td_lock lock;
    bool ended;       /* Protected by lock. */
    double tick_s;    /* Protected by lock. */
    const char *what; /* Protected by lock. */
};

/* Past the log: the main thread may hold its lock. */
static void say(const char *what, double s) {
    char line[256];
    int n =
        snprintf(line, sizeof line,
                 "warning: the main thread is held for %.0f s now: %s; the file system does not "
                 "answer, or is very slow\n",
                 s, what);
    if (n > 0 && write(STDERR_FILENO, line, TD_MIN((size_t)n, sizeof line - 1)) < 0)
        return; /* nobody reads it */
}

static void *sentry_main(void *arg) {
    td_sentry *s = arg;
    double told_s = -1; /* the tick that was told of */
    td_lock_acquire(&s->lock);
    while (!s->ended) {
        td_lock_wait_ms(&s->lock, 500);
        const double held_s = td_time_s() - s->tick_s;
        if (s->ended || held_s < s->patience_s || s->tick_s == told_s)
            continue;
        told_s = s->tick_s;
        const char *what = s->what;
        td_lock_release(&s->lock);
        say(what, held_s);
        td_lock_acquire(&s->lock);
    }
    td_lock_release(&s->lock);
    return NULL;
}

td_sentry *td_sentry_start(double patience_s) {
    td_sentry *s = td_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->patience_s = patience_s;
    s->tick_s = td_time_s();
    s->what = "it starts";
    td_lock_init(&s->lock);
    int e = pthread_create(&s->thread, NULL, sentry_main, s);
    if (e != 0) {
        td_log_debug("no thread watches the main thread: %s", strerror(e));
        td_lock_destroy(&s->lock);
        free(s);
        return NULL;
    }
    return s;
}

void td_sentry_tick(td_sentry *s, const char *what) {
    if (!s)
        return;
    td_lock_acquire(&s->lock);
    s->tick_s = td_time_s();
    s->what = what;
    td_lock_release(&s->lock);
}

void td_sentry_stop(td_sentry *s) {
    if (!s)
        return;
    td_lock_acquire(&s->lock);
    s->ended = true;
    td_lock_notify(&s->lock);
    td_lock_release(&s->lock);
    pthread_join(s->thread, NULL);
    td_lock_destroy(&s->lock);
    free(s);
}
