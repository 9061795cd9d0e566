/* pretend.h - what a test may ask the CUDA-on-CPU layer beyond CUDA's own calls (C and C++). */
#ifndef PRETEND_H
#define PRETEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The last thing that the layer found wrong in a kernel or a copy ("" when nothing was). Valid
 * until the next report; read it behind a synchronisation. */
const char *pretend_last_report(void);
/* Forgets the sticky error and the report: a new process, as far as the layer is concerned. For
 * tests that plant one fault after another; nothing may be under way. */
void pretend_forgive(void);
/* Seeds what runs from here on. */
void pretend_set_seed(uint64_t seed);
/* Allocations of device memory that are still held, and their bytes; all devices. */
size_t pretend_live_allocations(size_t *size_bytes);
/* Runtime and cuBLASLt calls so far, those that TDGEN_PRETEND_FAIL counts. */
uint64_t pretend_calls(void);
/* Re-reads TDGEN_PRETEND_FAIL, _FAULT, _JITTER and _SEED and sets their counts to 0. The machine
 * (_GPUS, _NO_PEER) is read once, at the first call. */
void pretend_reload(void);

#ifdef __cplusplus
}
#endif

#endif
