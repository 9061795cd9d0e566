/* backend.h - the device API for those who implement it: cpu/ and gpu/.
 *
 * A backend fills a td_device_ops, embeds td_device and td_weight as the first member of its own
 * structs, and defines td_stream and td_event. For each line of TD_DEVICE_OPERATIONS it has a slot
 * that, at the call, refuses what td_op_check refuses and what it cannot do itself, copies what the
 * caller may take away (the argument struct, and the host arrays that the struct's description says
 * are copied), and enqueues the rest. backends.c lists its enumerate and open.
 */
#ifndef TDGEN_DEVICE_BACKEND_H
#define TDGEN_DEVICE_BACKEND_H

#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* NULL, or why the arguments (a td_norm_args for TD_OP_NORM, ...) cannot be right on any device: a
 * caller's bug, so TD_E_INTERNAL. Reads host memory only. */
const char *td_op_check(td_op op, const void *args);

#ifdef __cplusplus
}
#endif
#endif
