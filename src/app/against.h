/* against.h - tdgen verify DIR --against MODEL_DIR: samples computed again. */
#ifndef TDGEN_APP_AGAINST_H
#define TDGEN_APP_AGAINST_H

#include <stdint.h>
#include <stdio.h>
#include "base/status.h"

typedef struct td_against_options {
    const char *model_dir;
    int32_t n_samples;
    uint64_t seed;       /* which samples */
    const char *devices; /* "auto", "cpu" or numbers: "0,1" */
} td_against_options;

/* TD_E_VERIFY when the record is not what the teacher gives; TD_E_MODEL when MODEL_DIR is another
 * teacher than the folder's. */
td_status td_against(const char *dir, const td_against_options *opt, FILE *out, td_error *err);

#endif
