/* mapped.h - which file a mapped address belongs to.
 *
 * A file that another process cuts, or whose disk fails, raises SIGBUS at the next touch of its
 * mapping. Only a program may catch that (tdgen does, a library must not); this table tells it whose
 * fault it was. Bulk reads use pread instead, which returns an error.
 */
#ifndef TDGEN_BASE_MAPPED_H
#define TDGEN_BASE_MAPPED_H

#include <stddef.h>
#include "base/status.h"

/* `path` is borrowed until td_mapped_remove. A full table forgets the mapping: then its SIGBUS has no
 * name. Any thread. */
void td_mapped_add(const void *begin, size_t size_bytes, const char *path, td_status code);
void td_mapped_remove(const void *begin);
/* The path of the mapping that holds `p`, NULL: none; *code as it was given. May be called from a
 * signal handler. */
const char *td_mapped_find(const void *p, td_status *code);

#endif
