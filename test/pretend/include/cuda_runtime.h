/* cuda_runtime.h - the runtime API and, in C++, the device dialect on top of the fiber engine. */
#ifndef PRETEND_CUDA_RUNTIME_H
#define PRETEND_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"
#ifdef __cplusplus
#include "pretend_device.h"
#endif

#endif
