/* fake_device.h - devices with plain memory of their own, whose copies happen late.
 *
 * Each stream is a thread that reads the host memory of a copy some time after the call, as the DMA
 * engine of a GPU does, so that a staging block that is reused too early shows. Every object is
 * counted, and any call of the table can be made to fail. Only what loading weights needs is there.
 * Plain C: stress programs use it as well.
 */
#ifndef TDGEN_TEST_MODEL_FAKE_DEVICE_H
#define TDGEN_TEST_MODEL_FAKE_DEVICE_H

#include "device/device.h"

typedef struct fake_options {
    bool packs;    /* no weight_create; weight_prepare stores plain rows */
    bool discards; /* for measuring: copies move nothing, as if an engine did it; weight_prepare
                      converts into one small buffer; device memory is never touched */
    int32_t max_delay_us; /* of each copy, random */
} fake_options;

/* Device "fake:INDEX" of domain INDEX. Closed with td_device_close. NULL when out of memory. */
td_device *fake_open(int32_t index, const fake_options *opt);
/* The rows of a weight, [n_rows, n_cols] in its compute type. */
const void *fake_weight_data(const td_weight *w);

/* Objects that exist: allocations, host allocations, weights, streams, events. */
int fake_live(void);
uint64_t fake_device_bytes(void);
/* The n-th call from now that can fail does; 0: none. Calls so far since the last such order. */
void fake_fail_at(int n);
int fake_calls(void);
/* The n-th copy that runs from now fails then: the call itself succeeded. 0: none. */
void fake_fail_copy(int n);

#endif
