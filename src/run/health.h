/* health.h - the sensors of the run's devices: for the live line, status.json and the closing
 * report. Devices without sensors do not appear. A thread of its own asks them: a driver that does
 * not answer must not hold up the main thread, which watches for devices that hang. All functions
 * are the main thread's; those that tell something tell it of the latest sample and do not wait. */
#ifndef TDGEN_RUN_HEALTH_H
#define TDGEN_RUN_HEALTH_H

#include <jansson.h>
#include <stdbool.h>
#include "run/run.h"

typedef struct td_health td_health;

/* NULL when out of memory, or when no device in use has sensors; no thread then. */
td_health *td_health_create(const td_run_input *in);
/* False when the thread does not come back from a driver within a second: it is left there with its
 * memory, and its devices must not be closed. NULL allowed. */
bool td_health_free(td_health *h);
/* Asks the thread to read the sensors of every device, and returns. */
void td_health_sample(td_health *h);
/* " · GPU 97% 64C 650 W" of the latest sample: mean use, highest temperature, sum of the power; ""
 * when there is nothing. */
void td_health_line(td_health *h, char *buf, size_t size);
/* One object per device, from the latest sample; NULL when there is nothing. */
json_t *td_health_json(td_health *h);
/* Over all samples, for td_run_summary.devices; *n_out = 0 and NULL when there is nothing. The
 * caller frees it. */
td_device_summary *td_health_summary(td_health *h, int32_t *n_out);

#endif
