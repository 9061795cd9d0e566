/* dtype.h - element types and the two 16-bit float formats. Header-only, C and C++. */
#ifndef TDGEN_BASE_DTYPE_H
#define TDGEN_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum td_dtype {
    TD_F32 = 0,
    TD_BF16,
    TD_F16,
    TD_I32,
    TD_I64,
    TD_U8,
    TD_DTYPE_COUNT
} td_dtype;

static inline size_t td_dtype_size(td_dtype t) {
    static const uint8_t size_bytes[TD_DTYPE_COUNT] = {4, 2, 2, 4, 8, 1};
    return size_bytes[t];
}

/* The lower-case name used in INI files and messages: "f32", "bf16", ... */
static inline const char *td_dtype_name(td_dtype t) {
    static const char *const name[TD_DTYPE_COUNT] = {"f32", "bf16", "f16", "i32", "i64", "u8"};
    return name[t];
}

/* bf16 is the upper half of an f32. */
static inline float td_bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* What follows chooses by conditional expressions and has no branches, so that loops over arrays
 * become vector code. */

/* Round to nearest, ties to even; NaN stays a (quiet) NaN. */
static inline uint16_t td_f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t nan = (u >> 16) | 0x40u, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static inline float td_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, a = h & 0x7fffu, small;
    float f = (float)(int32_t)a * 0x1p-24f; /* zero or subnormal: exact in f32 */
    memcpy(&small, &f, 4);
    uint32_t normal = (a << 13) + (112u << 23), special = (a << 13) | 0x7f800000u;
    uint32_t u = sign | (a >= 0x7c00u ? special : a < 0x400u ? small : normal);
    memcpy(&f, &u, 4);
    return f;
}

/* IEEE 754 binary16, round to nearest, ties to even; overflow gives infinity. */
static inline uint16_t td_f32_to_f16(float f) {
    uint32_t u, small;
    memcpy(&u, &f, 4);
    uint32_t sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    float g;
    memcpy(&g, &a, 4);
    g += 0.5f; /* where the result is subnormal the f32 adder does the rounding */
    memcpy(&small, &g, 4);
    small -= 0x3f000000u;
    uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    uint32_t r = a < 0x38800000u ? small : normal;
    r = a >= 0x477ff000u ? 0x7c00u : r; /* rounds to 2^16 or more */
    r = a > 0x7f800000u ? 0x7e00u : r;
    return (uint16_t)(sign | r);
}

#endif
