/* reader.h - what is on disk, for those who read it: manifest, index, shards, rows.
 *
 * Order of use: td_manifest_load and td_index_load -> td_shard_file_open of each entry ->
 * td_row_reader_create -> td_row_read. Files are not trusted: every offset is checked before it is
 * followed.
 */
#ifndef TDGEN_RECORD_READER_H
#define TDGEN_RECORD_READER_H

#include "record/coverage.h"
#include "record/extent.h"
#include "record/folder_lock.h"
#include "record/identity.h"
#include "record/index.h"
#include "record/layout.h"
#include "record/merge_mark.h"
#include "record/pack.h"
#include "record/row_reader.h"
#include "record/shard_file.h"
#include "record/spec.h"

#endif
