/* limits.h - the most of each that a position may keep, once: for the configuration, the backends'
 * checks and the kernels' own memory alike. Plain numbers, since NVRTC compiles this too. */
#ifndef TDGEN_CAPTURE_LIMITS_H
#define TDGEN_CAPTURE_LIMITS_H

#define TD_MAX_TEMPERATURES 16
#define TD_MAX_TOP_K 1024
#define TD_MAX_DRAWS 1024
#define TD_MAX_ALWAYS_IDS 64

#endif
