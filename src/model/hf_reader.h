/* hf_reader.h - the getters that everything which reads config.json goes through.
 *
 * Each names the file and the key in its error, TD_E_MODEL. A key that is absent or null leaves
 * *out alone, unless the getter says that it is required.
 */
#ifndef TDGEN_MODEL_HF_READER_H
#define TDGEN_MODEL_HF_READER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* A config.json being read. Nothing is owned. */
typedef struct td_config_reader {
    const json_t *root;
    const char *path;
    td_error *err;
} td_config_reader;

td_status td_config_i32(const td_config_reader *r, const char *key, int32_t min, int32_t max,
                        int32_t *out); /* required */
td_status td_config_opt_i32(const td_config_reader *r, const char *key, int32_t min, int32_t max,
                            int32_t *out);
td_status td_config_opt_bool(const td_config_reader *r, const char *key, bool *out);
td_status td_config_opt_float(const td_config_reader *r, const char *key, double min, double max,
                              float *out);
/* "PATH: WHAT "VALUE" is not supported; INSTEAD" */
td_status td_config_refuse(const td_config_reader *r, const char *what, const char *value,
                           const char *instead);
/* Refuses a true `key`. */
td_status td_config_refuse_true(const td_config_reader *r, const char *key);

#endif
