/* cuda_fp16.h - __half and __half2 on the CPU: every operation in f32, rounded to nearest even. */
#ifndef PRETEND_CUDA_FP16_H
#define PRETEND_CUDA_FP16_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vector_types.h"

#ifdef __cplusplus

static inline float pretend_half_bits_to_float(uint16_t bits) {
    /* Exponent and mantissa at their f32 places, the exponent's bias mended by a product, which is
     * exact and takes subnormals along. */
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    uint32_t u = rest << 13;
    float f;
    if (rest >= 0x7c00u) {
        u |= 0x7f800000u | sign;
        memcpy(&f, &u, 4);
        return f;
    }
    memcpy(&f, &u, 4);
    f *= 0x1p112f;
    return sign ? -f : f;
}
/* To nearest, ties to even; over 65504 to infinity. */
static inline uint16_t pretend_float_to_half_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    const uint32_t sign = u >> 16 & 0x8000u, x = u & 0x7fffffffu;
    if (x > 0x7f800000u)
        return 0x7fff; /* CUDA's canonical NaN */
    if (x >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u);
    if (x < 0x38800000u) { /* subnormal: the adder rounds at the right place */
        float a;
        memcpy(&a, &x, 4);
        a += 0.5f;
        uint32_t r;
        memcpy(&r, &a, 4);
        return (uint16_t)(sign | (r - 0x3f000000u));
    }
    return (uint16_t)(sign | ((x - 0x38000000u + 0xfffu + (x >> 13 & 1)) >> 13));
}

struct __half_raw {
    unsigned short x;
};
struct __half {
    uint16_t pretend_bits;
    __half() = default;
    __half(float f) : pretend_bits(pretend_float_to_half_bits(f)) {
    }
    __half(double f) : pretend_bits(pretend_float_to_half_bits((float)f)) {
    }
    __half(int i) : pretend_bits(pretend_float_to_half_bits((float)i)) {
    }
    __half(const __half_raw &r) : pretend_bits(r.x) {
    }
    operator float() const {
        return pretend_half_bits_to_float(pretend_bits);
    }
    __half &operator=(float f) {
        pretend_bits = pretend_float_to_half_bits(f);
        return *this;
    }
};
typedef __half half;
struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(const __half &a, const __half &b) : x(a), y(b) {
    }
};
typedef __half2 half2;

static inline float __half2float(__half x) {
    return pretend_half_bits_to_float(x.pretend_bits);
}
static inline __half __ushort_as_half(unsigned short bits) {
    __half r;
    r.pretend_bits = bits;
    return r;
}
static inline __half __short_as_half(short bits) {
    return __ushort_as_half((unsigned short)bits);
}
static inline unsigned short __half_as_ushort(__half x) {
    return x.pretend_bits;
}
static inline short __half_as_short(__half x) {
    return (short)x.pretend_bits;
}
static inline __half __float2half(float x) {
    return __ushort_as_half(pretend_float_to_half_bits(x));
}
static inline __half __float2half_rn(float x) {
    return __float2half(x);
}
static inline __half __float2half_rz(float x) {
    __half r = __float2half(x);
    if (fabsf((float)r) > fabsf(x)) /* rounded away from zero: one back */
        r.pretend_bits--;
    return r;
}
static inline __half __double2half(double x) {
    return __float2half((float)x);
}
static inline __half __int2half_rn(int x) {
    return __float2half((float)x);
}
static inline int __half2int_rn(__half x) {
    return (int)rintf((float)x);
}
static inline __half2 make_half2(__half x, __half y) {
    return __half2(x, y);
}
static inline __half2 __halves2half2(__half x, __half y) {
    return __half2(x, y);
}
static inline __half2 __half2half2(__half x) {
    return __half2(x, x);
}
static inline __half2 __floats2half2_rn(float x, float y) {
    return __half2(__float2half(x), __float2half(y));
}
static inline __half2 __float22half2_rn(float2 v) {
    return __floats2half2_rn(v.x, v.y);
}
static inline __half2 __float2half2_rn(float x) {
    return __floats2half2_rn(x, x);
}
static inline float2 __half22float2(__half2 v) {
    return float2{(float)v.x, (float)v.y};
}
static inline __half __low2half(__half2 v) {
    return v.x;
}
static inline __half __high2half(__half2 v) {
    return v.y;
}

#define PRETEND_T __half
#define PRETEND_T2 __half2
#define PRETEND_FROM_FLOAT __float2half
#define PRETEND_FROM_BITS __ushort_as_half
#include "pretend_half_ops.h"

#endif

#endif
