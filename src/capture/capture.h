/* capture.h - what a position keeps: the face of the room.
 *
 *   spec.h      modes, the user's settings, the spec of a run
 *   row.h       captured rows, and whether one is consistent with itself
 *   coverage.h  what truncation to the stored candidates loses
 *
 * All of it is pure: no thread, no device, no file. philox.h, the random numbers of draws, is a face
 * of its own, since kernels include it.
 */
#ifndef TDGEN_CAPTURE_CAPTURE_H
#define TDGEN_CAPTURE_CAPTURE_H

#include "capture/coverage.h"
#include "capture/row.h"
#include "capture/spec.h"

#endif
