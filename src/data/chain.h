/* chain.h - several files as one: the rows of each behind those of the one before. */
#ifndef TDGEN_DATA_CHAIN_H
#define TDGEN_DATA_CHAIN_H

#include "data/files.h"

/* Opens and checks each file once, then reads one at a time: rows of the result come from the files in
 * their order, in messages under their own file's name and line. `files` and cfg are borrowed until
 * close. Its `check` has nothing more to do. */
td_status td_chain_open(const td_config *cfg, const td_dataset_files *files, int32_t n_vocab,
                        td_rows **out, td_error *err);

#endif
