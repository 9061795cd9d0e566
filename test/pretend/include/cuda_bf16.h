/* cuda_bf16.h - __nv_bfloat16 and __nv_bfloat162 on the CPU: every operation in f32, rounded to
 * nearest even. */
#ifndef PRETEND_CUDA_BF16_H
#define PRETEND_CUDA_BF16_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vector_types.h"

#ifdef __cplusplus

static inline float pretend_bf16_bits_to_float(uint16_t bits) {
    const uint32_t u = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
/* To nearest, ties to even. */
static inline uint16_t pretend_float_to_bf16_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff; /* CUDA's canonical NaN */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

struct __nv_bfloat16_raw {
    unsigned short x;
};
struct __nv_bfloat16 {
    uint16_t pretend_bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) : pretend_bits(pretend_float_to_bf16_bits(f)) {
    }
    __nv_bfloat16(double f) : pretend_bits(pretend_float_to_bf16_bits((float)f)) {
    }
    __nv_bfloat16(int i) : pretend_bits(pretend_float_to_bf16_bits((float)i)) {
    }
    __nv_bfloat16(const __nv_bfloat16_raw &r) : pretend_bits(r.x) {
    }
    operator float() const {
        return pretend_bf16_bits_to_float(pretend_bits);
    }
    __nv_bfloat16 &operator=(float f) {
        pretend_bits = pretend_float_to_bf16_bits(f);
        return *this;
    }
};
typedef __nv_bfloat16 nv_bfloat16;
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(const __nv_bfloat16 &a, const __nv_bfloat16 &b) : x(a), y(b) {
    }
};
typedef __nv_bfloat162 nv_bfloat162;

static inline float __bfloat162float(__nv_bfloat16 x) {
    return pretend_bf16_bits_to_float(x.pretend_bits);
}
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 r;
    r.pretend_bits = bits;
    return r;
}
static inline __nv_bfloat16 __short_as_bfloat16(short bits) {
    return __ushort_as_bfloat16((unsigned short)bits);
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return x.pretend_bits;
}
static inline short __bfloat16_as_short(__nv_bfloat16 x) {
    return (short)x.pretend_bits;
}
static inline __nv_bfloat16 __float2bfloat16(float x) {
    return __ushort_as_bfloat16(pretend_float_to_bf16_bits(x));
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return __float2bfloat16(x);
}
static inline __nv_bfloat16 __float2bfloat16_rz(float x) {
    __nv_bfloat16 r = __float2bfloat16(x);
    if (fabsf((float)r) > fabsf(x)) /* rounded away from zero: one back */
        r.pretend_bits--;
    return r;
}
static inline __nv_bfloat16 __double2bfloat16(double x) {
    return __float2bfloat16((float)x);
}
static inline __nv_bfloat16 __int2bfloat16_rn(int x) {
    return __float2bfloat16((float)x);
}
static inline int __bfloat162int_rn(__nv_bfloat16 x) {
    return (int)rintf((float)x);
}
static inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return __nv_bfloat162(x, y);
}
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return __nv_bfloat162(x, y);
}
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) {
    return __nv_bfloat162(x, x);
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return __nv_bfloat162(__float2bfloat16(x), __float2bfloat16(y));
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return __floats2bfloat162_rn(v.x, v.y);
}
static inline __nv_bfloat162 __float2bfloat162_rn(float x) {
    return __floats2bfloat162_rn(x, x);
}
static inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return float2{(float)v.x, (float)v.y};
}
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) {
    return v.x;
}
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) {
    return v.y;
}

#define PRETEND_T __nv_bfloat16
#define PRETEND_T2 __nv_bfloat162
#define PRETEND_FROM_FLOAT __float2bfloat16
#define PRETEND_FROM_BITS __ushort_as_bfloat16
#include "pretend_half_ops.h"

#endif

#endif
