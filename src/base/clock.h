/* clock.h - seconds of a monotonic clock: differences are durations, the zero means nothing. */
#ifndef TDGEN_BASE_CLOCK_H
#define TDGEN_BASE_CLOCK_H

double td_time_s(void);

#endif
