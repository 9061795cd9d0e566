#ifndef PRETEND_DRIVER_TYPES_H
#define PRETEND_DRIVER_TYPES_H
#include "cuda_runtime_api.h"
#endif
