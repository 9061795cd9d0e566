/* convert.h - arrays of f32, bf16 and f16 elements, one type to another. Source arrays need not be
 * aligned; rounding is to nearest even. */
#ifndef TDGEN_BASE_CONVERT_H
#define TDGEN_BASE_CONVERT_H

#include <stdbool.h>
#include <stddef.h>
#include "base/dtype.h"

/* Element i as f32. */
float td_element_load(const void *src, td_dtype dtype, size_t i);
/* n elements from one type to another. False when a finite value became an infinity (the array is
 * filled all the same): td_convert_overflow finds it. */
bool td_convert(const void *src, td_dtype from, void *dst, td_dtype to, size_t n);
/* The first element whose conversion is such, or n. */
size_t td_convert_overflow(const void *src, td_dtype from, td_dtype to, size_t n);

#endif
