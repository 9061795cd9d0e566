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
static inline float __low2float(__nv_bfloat162 v) {
    return (float)v.x;
}
static inline float __high2float(__nv_bfloat162 v) {
    return (float)v.y;
}
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) {
    return v.x;
}
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) {
    return v.y;
}
static inline __nv_bfloat16 __ldg(const __nv_bfloat16 *p) {
    return *p;
}

static inline __nv_bfloat16 __hadd(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __float2bfloat16((float)a + (float)b);
}
static inline __nv_bfloat16 __hsub(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __float2bfloat16((float)a - (float)b);
}
static inline __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __float2bfloat16((float)a * (float)b);
}
static inline __nv_bfloat16 __hdiv(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __float2bfloat16((float)a / (float)b);
}
/* The exact sum of product and addend, in f64, is rounded twice here: f64 to f32 to 16 bits. */
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __float2bfloat16((float)((double)(float)a * (double)(float)b + (double)(float)c));
}
static inline __nv_bfloat16 __hneg(__nv_bfloat16 a) {
    return __ushort_as_bfloat16(a.pretend_bits ^ 0x8000u);
}
static inline __nv_bfloat16 __habs(__nv_bfloat16 a) {
    return __ushort_as_bfloat16(a.pretend_bits & 0x7fffu);
}
static inline __nv_bfloat16 __hmax(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __float2bfloat16(fmaxf((float)a, (float)b));
}
static inline __nv_bfloat16 __hmin(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __float2bfloat16(fminf((float)a, (float)b));
}
static inline bool __hisnan(__nv_bfloat16 a) {
    return (float)a != (float)a;
}
static inline int __hisinf(__nv_bfloat16 a) {
    return isinf((float)a) ? ((float)a < 0 ? -1 : 1) : 0;
}
static inline bool __heq(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a == (float)b;
}
static inline bool __hlt(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a < (float)b;
}
static inline bool __hle(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a <= (float)b;
}
static inline bool __hgt(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a > (float)b;
}
static inline bool __hge(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a >= (float)b;
}
static inline __nv_bfloat16 hexp(__nv_bfloat16 a) {
    return __float2bfloat16(expf((float)a));
}
static inline __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hadd(a, b);
}
static inline __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hsub(a, b);
}
static inline __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hmul(a, b);
}
static inline __nv_bfloat16 operator/(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hdiv(a, b);
}
static inline __nv_bfloat16 operator-(__nv_bfloat16 a) {
    return __hneg(a);
}
static inline __nv_bfloat16 &operator+=(__nv_bfloat16 &a, __nv_bfloat16 b) {
    return a = __hadd(a, b);
}
static inline __nv_bfloat16 &operator*=(__nv_bfloat16 &a, __nv_bfloat16 b) {
    return a = __hmul(a, b);
}
static inline bool operator==(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __heq(a, b);
}
static inline bool operator!=(__nv_bfloat16 a, __nv_bfloat16 b) {
    return !__heq(a, b);
}
static inline bool operator<(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hlt(a, b);
}
static inline bool operator>(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hgt(a, b);
}
static inline bool operator<=(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hle(a, b);
}
static inline bool operator>=(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hge(a, b);
}
static inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __nv_bfloat162(__hadd(a.x, b.x), __hadd(a.y, b.y));
}
static inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __nv_bfloat162(__hsub(a.x, b.x), __hsub(a.y, b.y));
}
static inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __nv_bfloat162(__hmul(a.x, b.x), __hmul(a.y, b.y));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return __nv_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __nv_bfloat162(__hmax(a.x, b.x), __hmax(a.y, b.y));
}

#endif

#endif
