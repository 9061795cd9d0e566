/* progress.h - what a person watching a run sees. The main thread's, which is asserted. */
#ifndef TDGEN_RUN_PROGRESS_H
#define TDGEN_RUN_PROGRESS_H

#include "run/state.h"

typedef struct td_progress td_progress;

td_progress *td_progress_create(td_run_state *run); /* NULL when out of memory */
/* Called often; shows what is due. state: "running", "stopping", "done", "stopped", "device_lost"
 * (the program starts anew), "failed". */
void td_progress_tick(td_progress *p, const char *state, bool final);
void td_progress_devices(const td_progress *p, td_run_summary *out); /* what sensors said */
/* False: a thread is still at the sensors, the devices must not be closed (td_health_free). NULL
 * allowed. */
bool td_progress_free(td_progress *p);

#endif
