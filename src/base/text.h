/* text.h - token texts in a terminal's columns. */
#ifndef TDGEN_BASE_TEXT_H
#define TDGEN_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include "base/strbuf.h"

/* Columns of what is written for a file as well as for a screen: the plan, the closing report. */
enum { TD_TEXT_COLUMNS = 100 };

/* Appends s[0..n) as it may stand in one line of a terminal: control characters, line separators,
 * direction marks and bytes that are no UTF-8 as escapes, the rest as it is. */
void td_text_printable(const char *s, size_t n, td_strbuf *out);

/* Columns that printable UTF-8 takes: 0 for combining marks, 2 for wide East Asian and emoji. */
int td_text_width(const char *s);

/* Appends s in exactly `width` columns: filled with spaces, or cut with "…". */
void td_text_cell(const char *s, int width, td_strbuf *out);

/* Writes `text` and a newline to `out`, broken at blanks into lines of at most `columns` columns (of one
 * a character), those after the first indented. A word that is longer stays whole: it may be a path
 * that is to be copied. */
void td_text_wrap(const char *text, int columns, int indent, FILE *out);

/* Columns for lines that go to `out`: a terminal's own where it is a narrow one, TD_TEXT_COLUMNS for
 * wider ones and for files. */
int td_text_columns(FILE *out);

/* Writes lines, each broken at blanks where it has more columns. What follows of a line stands under
 * its first entry: behind the first two blanks in a row ("Dataset:   ..."), else two columns further
 * in than the line itself. */
void td_text_flow(const char *lines, int columns, FILE *out);

/* Appends s as one word of a POSIX shell: as it stands where no character means anything there, else in
 * single quotes. False when out of memory. */
bool td_text_shell_quote(const char *s, td_strbuf *out);

#endif
