/* sentry.h - an eye on the main thread, which has its own on all others (watch.h).
 *
 * The main thread writes status.json, timeline.jsonl and tdgen.log; a file system that does not answer
 * holds it there, and with it everything that watches. The sentry is a thread that only sleeps and
 * compares times; it says once on stderr what holds the main thread. Nothing is given up: the call may
 * come back, and the groups go on meanwhile.
 */
#ifndef TDGEN_RUN_SENTRY_H
#define TDGEN_RUN_SENTRY_H

typedef struct td_sentry td_sentry;

/* NULL: no memory or no thread; the run goes on without, and the calls below do nothing. */
td_sentry *td_sentry_start(double patience_s);
/* The main thread is alive, and about to do `what` (static storage). */
void td_sentry_tick(td_sentry *s, const char *what);
/* Ends its thread, which never waits for long. */
void td_sentry_stop(td_sentry *s);

#endif
