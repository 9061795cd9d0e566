/* timeline.h - which group worked on which shards when, in bounded memory.
 *
 * OUT/timeline.jsonl, one line per execution of the run, for people and inspect --html; no part of
 * the record:
 *   {"started": seconds of the epoch, "worker_id",
 *    "groups": [{"group", "devices", "kind",
 *                "segments": [[begin_s, end_s, first_shard, last_shard, samples, tokens], ...]}]}
 * A group has at most TD_TIMELINE_SEGMENTS; when they are used up neighbours are joined and those
 * to come are twice as long. The file keeps the last TD_TIMELINE_EXECUTIONS lines.
 */
#ifndef TDGEN_RUN_TIMELINE_H
#define TDGEN_RUN_TIMELINE_H

#include <stdint.h>

enum { TD_TIMELINE_SEGMENTS = 256, TD_TIMELINE_EXECUTIONS = 16 };

struct td_run_state;
typedef struct td_timeline td_timeline;

td_timeline *td_timeline_create(const struct td_run_state *run); /* NULL when out of memory */
void td_timeline_free(td_timeline *t);                           /* NULL allowed */
/* A micro-batch of the shard was done; times in td_time_s(). The group's thread. NULL allowed. */
void td_timeline_note(td_timeline *t, uint32_t group, int64_t shard, int64_t n_samples,
                      int64_t n_tokens, double begin_s, double end_s);
/* Writes the file anew. One thread. A full disk is not its business. NULL allowed. */
void td_timeline_write(td_timeline *t);

#endif
