/* health.h - the sensors of the run's devices: for the live line, status.json and the closing
 * report. Used by the main thread only; devices without sensors do not appear. */
#ifndef TDGEN_SCHED_HEALTH_H
#define TDGEN_SCHED_HEALTH_H

#include <jansson.h>
#include "tdgen/run.h"

typedef struct td_health td_health;

/* NULL when out of memory, or when no device in use has sensors. */
td_health *td_health_create(const td_run_input *in);
void td_health_free(td_health *h); /* NULL allowed */
/* Reads the sensors of every device; about a millisecond each. */
void td_health_sample(td_health *h);
/* " · GPU 97% 64C 650 W" of the latest sample: mean use, highest temperature, sum of the power; ""
 * when there is nothing. */
void td_health_line(const td_health *h, char *buf, size_t size);
/* One object per device, from the latest sample; NULL when there is nothing. */
json_t *td_health_json(const td_health *h);
/* Over all samples, for td_run_summary.devices; *n_out = 0 and NULL when there is nothing. The
 * caller frees it. */
td_device_summary *td_health_summary(const td_health *h, int32_t *n_out);

#endif
