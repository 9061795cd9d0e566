/* watch.h - the main thread's eye on a run: threads that a driver keeps, signals, lost devices, the
 * end. All of it is that thread's, which is asserted. */
#ifndef TDGEN_RUN_WATCH_H
#define TDGEN_RUN_WATCH_H

#include "run/progress.h"
#include "run/state.h"

typedef struct td_watch td_watch;

td_watch *td_watch_create(td_run_state *run); /* NULL when out of memory */
/* Ticks until feeder, groups and writer have ended; after the loss of a device until they should
 * have. True when all did. Once. */
bool td_watch_run(td_watch *w, td_progress *progress);
void td_watch_free(td_watch *w); /* NULL allowed */

#endif
