/* json.h - checked access to JSON (parser: Jansson, U+0000 allowed in strings).
 *
 * Each getter names `where` (a file, or file:line) and the key in its error, with what was expected
 * and what was found. `code` says which room's error it is. Optional getters leave *out alone when
 * the key is absent or null.
 */
#ifndef TDGEN_BASE_JSON_H
#define TDGEN_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"

/* Parses a whole file (at most max_bytes). The caller json_decref()s *out. */
td_status td_json_load_file(const char *path, size_t max_bytes, td_status code, json_t **out,
                            td_error *err);
/* Parses a block; `where` appears in messages. */
td_status td_json_parse(const char *text, size_t n, const char *where, td_status code, json_t **out,
                        td_error *err);

/* True when the key is present and not null. */
bool td_json_has(const json_t *obj, const char *key);

td_status td_json_get_int(const json_t *obj, const char *key, int64_t min, int64_t max,
                          const char *where, td_status code, int64_t *out, td_error *err);
td_status td_json_opt_int(const json_t *obj, const char *key, int64_t min, int64_t max,
                          const char *where, td_status code, int64_t *out, td_error *err);
/* Accepts integers and reals. */
td_status td_json_get_real(const json_t *obj, const char *key, double min, double max,
                           const char *where, td_status code, double *out, td_error *err);
td_status td_json_opt_real(const json_t *obj, const char *key, double min, double max,
                           const char *where, td_status code, double *out, td_error *err);
td_status td_json_opt_bool(const json_t *obj, const char *key, const char *where, td_status code,
                           bool *out, td_error *err);
/* Borrowed from `obj`; may hold U+0000, use json_string_length on the value where that matters. */
td_status td_json_get_str(const json_t *obj, const char *key, const char *where, td_status code,
                          const char **out, td_error *err);
td_status td_json_opt_str(const json_t *obj, const char *key, const char *where, td_status code,
                          const char **out, td_error *err);
/* "object", "array", "string", ... for messages. */
const char *td_json_type_name(const json_t *v);

#endif
