/* files.h - data.path to the files of the dataset, in their order.
 *
 *   data.path = FILE | FOLDER | GLOB, or several of these with commas (base/path_list.h)
 *
 * Each of them is first taken as it stands: what is there under that very name is meant, whatever its
 * characters. Else * ? [ ] match names, but in double quotes. A folder stands for its own files (not
 * those of its subfolders) that have an extension of a format; names that begin with . or _ and the
 * descriptions that Hugging Face writes beside data are passed over, and so is all but the shards in a
 * folder of tdgen. What else is there is told in a note; tables (Parquet, Arrow, CSV) beside readable
 * files are refused. Files are sorted by the bytes of their paths. Those of 0 bytes are left out with a
 * note, which changes no row. All have one format.
 */
#ifndef TDGEN_DATA_FILES_H
#define TDGEN_DATA_FILES_H

#include "base/strbuf.h"
#include "data/data.h"
#include "data/format.h"

typedef struct td_dataset_files {
    td_dataset_file *file; /* [n], n >= 1 */
    size_t n;
    uint64_t size_bytes; /* of all */
    const td_row_format *format;
    td_strbuf notes; /* lines for the user */
} td_dataset_files;

/* TD_E_DATA, TD_E_CONFIG (keys, data.path itself). On failure nothing is left. */
td_status td_dataset_files_find(const td_config *cfg, td_dataset_files *out, td_error *err);
void td_dataset_files_free(td_dataset_files *f); /* {0} allowed */

/* The configuration as it is for one file of its dataset: shares all strings, is not freed. */
td_config td_dataset_one(const td_config *cfg, const char *path);

/* Logs the notes. */
void td_dataset_files_tell(const td_dataset_files *f);

#endif
