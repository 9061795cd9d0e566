/* lines.h - a file's lines through one growing buffer.
 *
 * Memory is the longest line met (at least TD_LINES_BUF_BYTES), at most TD_ROW_MAX_BYTES. A
 * byte order mark at the start of the file belongs to no line. The file's size is taken once, at
 * open: what is appended later is not read, and a file that shrinks is an error.
 *
 * gzip and zstd files are recognised by their first bytes and give the lines of their plain text.
 * All offsets below but size_bytes are then offsets in the plain text, whose length is not known
 * before its end.
 */
#ifndef TDGEN_DATA_LINES_H
#define TDGEN_DATA_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "data/unpack.h"

#define TD_LINES_BUF_BYTES ((size_t)1 << 20)
#define TD_ROW_MAX_BYTES ((size_t)1 << 30)

typedef struct td_lines {
    const char *path; /* borrowed */
    int fd;
    bool whole;        /* one "line": the whole file */
    td_unpack *unpack; /* of a compressed file, else NULL */
    bool at_end;       /* all of the file is in buf or was returned */
    char *buf;         /* file bytes [file_pos - (end - begin), file_pos) at [begin, end) */
    size_t cap, begin, end;
    size_t max_bytes;    /* of a line: TD_ROW_MAX_BYTES; a test may lower it */
    size_t read_bytes;   /* at most so much in one read; callers that seek a lot lower it */
    uint64_t file_pos;   /* of the next read */
    uint64_t size_bytes; /* of the file, at open */
    uint64_t start;      /* first byte after a byte order mark */
    int64_t line_no;     /* of the line last returned, from 1; -1 after a seek */
    bool given_whole;
} td_lines;

/* `path` is borrowed until td_lines_close. On failure nothing is left open. */
td_status td_lines_open(td_lines *l, const char *path, bool whole, td_error *err);
void td_lines_close(td_lines *l); /* also after {.fd = -1} */

/* The next line with its line end, as it is in the file; valid until the next call. *line = NULL at
 * the end. */
td_status td_lines_next(td_lines *l, const char **line, size_t *n_bytes, td_error *err);

/* Goes on with the first line that starts at or after `offset`. In a compressed file `offset` must
 * be where a line starts, not behind what was read, and what lies before it is decompressed again.
 */
td_status td_lines_seek(td_lines *l, uint64_t offset, td_error *err);

/* Where the line begins that byte `offset` of a plain file lies in; looks back as far as it takes. */
td_status td_lines_start_of(const td_lines *l, uint64_t offset, uint64_t *start, td_error *err);

/* File offset of the first byte after the line last returned. */
uint64_t td_lines_offset(const td_lines *l);
/* The same in bytes of the file, estimated where it is compressed: from 0 to size_bytes. */
uint64_t td_lines_file_offset(const td_lines *l);

/* td_pread_all, its failure told as one of the dataset (TD_E_DATA). */
td_status td_dataset_pread(int fd, void *data, size_t n_bytes, uint64_t pos, const char *path,
                           td_error *err);

/* Only spaces, tabs and line ends. */
bool td_line_is_blank(const char *line, size_t n_bytes);
/* Length without a final LF or CRLF. */
size_t td_line_content(const char *line, size_t n_bytes);

#endif
