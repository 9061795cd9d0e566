/* history.h - OUT/run.json: what was executed here, each time, and how it ended.
 *
 *   {"schema": 1, "weights_stamp": "0123456789abcdef", "executions": [{"command": [...],
 *     "directory", "tdgen", "host", "pid", "started", "ended", "exit_code", "error", "report"}]}
 *
 * An execution that was killed has no exit_code. `report` is the text that closed it, with the plan
 * that was executed. weights_stamp: of names, sizes and times of the teacher's files when their
 * content was hashed last; with the same stamp a rerun need not read them to know that they are the
 * same. No part of the record: it is not verified, merged or compared.
 */
#ifndef TDGEN_APP_HISTORY_H
#define TDGEN_APP_HISTORY_H

#include <jansson.h>
#include "app/job.h"

enum { TD_HISTORY_MAX = 100 }; /* executions that are kept */

/* Reads OUT/run.json; one that is not there or makes no sense is an empty one. NULL: out of memory. */
json_t *td_history_load(const char *dir);
/* Notes that this execution began. Before the weights are read: the stamp is taken here, so that files
 * which are exchanged later do not pass for those that were hashed. */
void td_history_begin(td_job *j, char *const *argv);
/* And that it ended. report NULL: the run was not at work, and nothing is known of the weights. */
void td_history_end(const td_job *j, int exit_code, const td_error *err, const char *report);
/* The exit code of the last execution that came to the end of the data, or -1. */
int td_history_exit_code(const json_t *history);
/* Are the teacher's files those whose content was hashed? */
bool td_history_same_weights(const json_t *history, const char *model_path);

#endif
