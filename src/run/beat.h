/* beat.h - status.json before there is a run: the process is there, and what it does.
 *
 * The head of status.json, of every state alike (docs/monitoring.md has the schema):
 *
 *   schema, state, started, updated, heartbeat_s, host, boot_id, pid, process_start, worker_id,
 *   total_workers
 */
#ifndef TDGEN_RUN_BEAT_H
#define TDGEN_RUN_BEAT_H

#include <jansson.h>
#include <stdbool.h>
#include <time.h>
#include "config/config.h"

/* A status is written at least that often while the process is there: who reads an older one knows
 * that it ended, or stands still. */
enum { TD_HEARTBEAT_S = 10 };

/* New reference, NULL when out of memory. */
json_t *td_status_head(const td_config *cfg, const char *state, time_t started);
/* Writes OUT/status.json and takes the reference. A courtesy: a full disk ends the run where it matters,
 * at the shards. `last`: of this process, synced. */
void td_status_write(const td_config *cfg, json_t *status, bool last);

#endif
