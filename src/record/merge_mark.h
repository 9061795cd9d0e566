/* merge_mark.h - the mark of a merge under way.
 *
 * OUT/merge.json is written before the first shard and removed after everything else is in place,
 * so a folder that has it is half a merge: the same command again completes it.
 */
#ifndef TDGEN_RECORD_MERGE_MARK_H
#define TDGEN_RECORD_MERGE_MARK_H

#include "base/status.h"

#define TD_MERGE_MARK_NAME "merge.json"

/* TD_E_OUTPUT with the advice when DIR is half a merge. */
td_status td_merge_check_unfinished(const char *dir, td_error *err);

#endif
