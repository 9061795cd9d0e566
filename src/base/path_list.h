/* path_list.h - several paths in one setting: a.jsonl, more-*.jsonl, "with, comma.jsonl"
 *
 * Commas separate, blanks around an item do not count. An item in double quotes is taken as it stands;
 * \" and \\ are decoded in it. A setting without a comma and without quotes is one item.
 */
#ifndef TDGEN_BASE_PATH_LIST_H
#define TDGEN_BASE_PATH_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include "base/status.h"
#include "base/strbuf.h"

typedef struct td_path_item {
    char *text;  /* never empty */
    bool quoted; /* its characters mean nothing but themselves */
} td_path_item;

/* *items [*n], n >= 1, freed with td_path_list_free. TD_E_CONFIG: an item is empty, a quote is not
 * closed, or something stands behind one. */
td_status td_path_list_split(const char *setting, td_path_item **items, size_t *n, td_error *err);
void td_path_list_free(td_path_item *items, size_t n); /* NULL allowed */

/* Appends one item, in quotes where it needs them, behind a comma where `out` is not empty: the
 * reverse of td_path_list_split. False when out of memory. */
bool td_path_list_join(const td_path_item *item, td_strbuf *out);

#endif
