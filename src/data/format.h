/* format.h - which kind of dataset a file is. */
#ifndef TDGEN_DATA_FORMAT_H
#define TDGEN_DATA_FORMAT_H

#include <stdbool.h>
#include "config/config.h"
#include "base/status.h"

/* cfg->data.format, or what extension and first bytes say when it is auto. Refuses what cannot be
 * read (folders, devices, archives, compressed token files) and keys that the format cannot serve.
 */
td_status td_format_resolve(const td_config *cfg, td_data_format *out, td_error *err);

/* Is a file of format tokens a raw one (nanoGPT, Megatron) and no safetensors file? */
bool td_format_is_raw(const td_config *cfg);

#endif
