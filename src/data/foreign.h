/* foreign.h - files that are not read, each named as what it is, and the command that helps. */
#ifndef TDGEN_DATA_FOREIGN_H
#define TDGEN_DATA_FOREIGN_H

#include <stdbool.h>
#include "base/strbuf.h"
#include "config/config.h"
#include "data/format.h"

/* Of cfg->data.path, by its first bytes: containers, archives, databases, pickles. A text may begin as
 * some of them do: those are only told from it by binary content behind. TD_E_DATA. */
td_status td_foreign_refuse_bytes(const td_config *cfg, const td_file_head *h, td_error *err);
/* By its name, where data.format = auto: what goes by name alone (CSV), and names that promise what the
 * bytes are not. */
td_status td_foreign_refuse_name(const td_config *cfg, td_packing packing, td_error *err);
/* UTF-16 or UTF-32, whose bytes are no text for anybody here. */
td_status td_foreign_refuse_wide(const td_config *cfg, const td_file_head *h, td_error *err);

/* Has a folder's file of this name rows that `tdgen prepare` reads (Parquet, Arrow, CSV)? */
bool td_foreign_is_table(const char *name);
/* "a CSV file", or NULL where the name says nothing. */
const char *td_foreign_name_kind(const char *path);

/* Appends `tdgen prepare SOURCE --model DIR --out FILE [OPTION]`, as a shell takes it, and what to do
 * then. SOURCE is the folder that data.path names, else the file at hand. option: NULL, or a further
 * part that is in quotes already. */
void td_foreign_prepare_command(const td_config *cfg, const char *option, td_strbuf *out);
/* Sets an error: "data.path: FILE is WHAT, which ...: the command". */
td_status td_foreign_to_prepare(const td_config *cfg, const char *what, td_error *err);

#endif
