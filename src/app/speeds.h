/* speeds.h - speeds of GPUs: from the cache, or measured once. */
#ifndef TDGEN_APP_SPEEDS_H
#define TDGEN_APP_SPEEDS_H

#include <stdbool.h>
#include <stdint.h>

#include "device/device.h"
#include "plan/plan.h"

/* Puts cached speeds into an inventory made from these devices, and says in inv->speeds where the
 * figures come from. As measured and estimated figures do not compare, it is all or none: a card
 * that was not measured takes those of its own model; where there is none, all stay estimated.
 * Only
 * those with want[i] count. Touches no device. *n_missing: of these that are not in the cache. */
td_status td_speeds_from_cache(const td_device_info *info, int32_t n, const bool *want,
                               td_inventory *inv, int32_t *n_missing, td_error *err);
/* Measures the GPUs for which want[i] is set (NULL: all) and that are not in the cache, and adds
 * them to it. A cache that cannot be written is a warning. *at: the device that is at work, for the
 * caller to blame when one is lost; NULL afterwards. Devices that cannot be measured are left out,
 * except lost ones (TD_E_DEVICE_LOST). force: also those that are in the cache. */
td_status td_speeds_measure(const td_device_info *info, int32_t n, const bool *want, bool force,
                            const td_device_info **at, td_error *err);

#endif
