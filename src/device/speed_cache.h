/* speed_cache.h - measured device speeds, kept between runs.
 *
 * A small JSON file, $XDG_CACHE_HOME/tdgen/device-speeds.json or ~/.cache/tdgen/device-speeds.json:
 *   {"format": 1, "devices": {"GPU-8f2e...": {"kind": "NVIDIA A100 sm_80 cublaslt-13.0.0",
 *    "date": "2026-03-01", "f32": 17.1, "bf16": 231.0, "f16": 228.4, "mem_gbs": 1710.5}}}
 * with TFLOP/s by compute mode. A card is found again by its UUID, and only while its kind (model
 * and version of the library that computes) is the same.
 *
 * It is a cache: whatever is wrong with it, it reads as empty, is written anew, and costs a
 * measurement. Processes may read and write at the same time: a file is replaced as a whole, and
 * writers take turns.
 */
#ifndef TDGEN_SPEED_CACHE_H
#define TDGEN_SPEED_CACHE_H

#include <stdint.h>
#include "base/status.h"

typedef struct td_speed_entry {
    char uuid[48];
    char kind[160];
    char date[11];         /* of the measurement, "2026-03-01" */
    double f32, bf16, f16; /* TFLOP/s of products; 0 = the card does not offer the mode */
    double mem_gbs;        /* 1e9 bytes/s */
} td_speed_entry;

typedef struct td_speed_cache {
    td_speed_entry *entries;
    int32_t n_entries;
} td_speed_cache;

/* Where the file is, to be freed; NULL when neither XDG_CACHE_HOME nor HOME is set (absolute). */
char *td_speed_cache_path(void);
/* Entries that make no sense are left out. No file, or a damaged one: *out is empty. */
void td_speed_cache_load(const char *path, td_speed_cache *out);
void td_speed_cache_free(td_speed_cache *c);
/* NULL when the card was not measured, or with another library. */
const td_speed_entry *td_speed_cache_find(const td_speed_cache *c, const char *uuid,
                                          const char *kind);
/* Adds these to what the file holds now, or replaces them by UUID. Makes the folder. */
td_status td_speed_cache_store(const char *path, const td_speed_entry *entries, int32_t n,
                               td_error *err);

#endif
