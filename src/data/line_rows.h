/* line_rows.h - formats whose rows are lines of a plain or compressed file, or the whole file. */
#ifndef TDGEN_DATA_LINE_ROWS_H
#define TDGEN_DATA_LINE_ROWS_H

#include "data/format.h"
#include "data/lines.h"

/* What such a format says of a line, which is as it lies in the file, with its line end. */
typedef struct td_line_kind {
    bool (*is_row)(const char *line, size_t n_bytes); /* NULL: every line is */
    /* Does the row have what the configuration asks for? Tokenises nothing. NULL: every one. */
    td_status (*check)(const td_config *cfg, const char *line, size_t n_bytes, const char *where,
                       td_error *err);
    td_status (*make)(td_row_maker *m, const char *line, size_t n_bytes, const char *where,
                      td_error *err);
    /* td_rows_ops.count_tokens of a whole file, which `lines` is at the beginning of; else NULL. */
    td_status (*count_tokens)(td_lines *lines, td_row_maker *m, double *n_tokens, td_error *err);
} td_line_kind;

/* whole: the file is one row. `kind` is borrowed until close. */
td_status td_line_rows_open(const td_config *cfg, bool whole, const td_line_kind *kind,
                            td_rows **out, td_error *err);

#endif
