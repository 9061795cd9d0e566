/* coverage.h - the rows of a finished shard in the report of what truncation loses. */
#ifndef TDGEN_RECORD_COVERAGE_H
#define TDGEN_RECORD_COVERAGE_H

#include "capture/capture.h"
#include "record/shard_file.h"

/* Adds all rows of the shard, as kept ones. Values are clamped, never trusted. */
void td_coverage_add_shard(td_coverage *c, const td_shard_file *f);

#endif
