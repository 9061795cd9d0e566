/* api.h - what the files of src/api share: between the public types and the program's own. */
#ifndef TDGEN_API_API_H
#define TDGEN_API_API_H

#include "base/status.h"
#include "tdgen/tdgen.h"

/* To be called by every function that opens something: nothing is logged unless the user asked. */
void td_api_begin(void);

/* Fills *err (NULL allowed) and returns `code`. */
tdgen_status td_api_fail(tdgen_error *err, tdgen_status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The same of a failure inside. from->code is not looked at: `rc` is what the function returned. */
tdgen_status td_api_error(tdgen_error *err, td_status rc, const td_error *from);

/* Copies options that begin with struct_size into known[known_size], which holds zeros. `given` may
 * be NULL. TDGEN_E_ARGUMENT when struct_size is below least_size, the size of the struct in version
 * 0, or when a field behind known_size is set. */
tdgen_status td_api_options(void *known, size_t known_size, size_t least_size, const void *given,
                            const char *name, tdgen_error *err);

#endif
