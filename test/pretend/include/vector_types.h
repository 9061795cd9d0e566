/* vector_types.h - CUDA's small vector types and dim3, for the CUDA-on-CPU layer (C and C++). */
#ifndef PRETEND_VECTOR_TYPES_H
#define PRETEND_VECTOR_TYPES_H

#include <stddef.h>
#include <stdint.h>

#define PRETEND_VEC2(name, T, align)                                                               \
    typedef struct name {                                                                          \
        T x, y;                                                                                    \
    } __attribute__((aligned(align))) name;
#define PRETEND_VEC3(name, T)                                                                      \
    typedef struct name {                                                                          \
        T x, y, z;                                                                                 \
    } name;
#define PRETEND_VEC4(name, T, align)                                                               \
    typedef struct name {                                                                          \
        T x, y, z, w;                                                                              \
    } __attribute__((aligned(align))) name;

PRETEND_VEC2(char2, signed char, 2)
PRETEND_VEC2(uchar2, unsigned char, 2)
PRETEND_VEC2(short2, short, 4)
PRETEND_VEC2(ushort2, unsigned short, 4)
PRETEND_VEC2(int2, int, 8)
PRETEND_VEC2(uint2, unsigned, 8)
PRETEND_VEC2(longlong2, long long, 16)
PRETEND_VEC2(ulonglong2, unsigned long long, 16)
PRETEND_VEC2(float2, float, 8)
PRETEND_VEC2(double2, double, 16)
PRETEND_VEC3(int3, int)
PRETEND_VEC3(uint3, unsigned)
PRETEND_VEC3(float3, float)
PRETEND_VEC4(char4, signed char, 4)
PRETEND_VEC4(uchar4, unsigned char, 4)
PRETEND_VEC4(short4, short, 8)
PRETEND_VEC4(ushort4, unsigned short, 8)
PRETEND_VEC4(int4, int, 16)
PRETEND_VEC4(uint4, unsigned, 16)
PRETEND_VEC4(float4, float, 16)

#ifdef __cplusplus
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {
    }
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {
    }
};

#define PRETEND_MAKE2(name, T)                                                                     \
    static inline name make_##name(T x, T y) {                                                     \
        return name{x, y};                                                                         \
    }
#define PRETEND_MAKE3(name, T)                                                                     \
    static inline name make_##name(T x, T y, T z) {                                                \
        return name{x, y, z};                                                                      \
    }
#define PRETEND_MAKE4(name, T)                                                                     \
    static inline name make_##name(T x, T y, T z, T w) {                                           \
        return name{x, y, z, w};                                                                   \
    }
PRETEND_MAKE2(char2, signed char)
PRETEND_MAKE2(uchar2, unsigned char)
PRETEND_MAKE2(short2, short)
PRETEND_MAKE2(ushort2, unsigned short)
PRETEND_MAKE2(int2, int)
PRETEND_MAKE2(uint2, unsigned)
PRETEND_MAKE2(longlong2, long long)
PRETEND_MAKE2(ulonglong2, unsigned long long)
PRETEND_MAKE2(float2, float)
PRETEND_MAKE2(double2, double)
PRETEND_MAKE3(int3, int)
PRETEND_MAKE3(uint3, unsigned)
PRETEND_MAKE3(float3, float)
PRETEND_MAKE4(char4, signed char)
PRETEND_MAKE4(uchar4, unsigned char)
PRETEND_MAKE4(short4, short)
PRETEND_MAKE4(ushort4, unsigned short)
PRETEND_MAKE4(int4, int)
PRETEND_MAKE4(uint4, unsigned)
PRETEND_MAKE4(float4, float)
#else
typedef struct dim3 {
    unsigned x, y, z;
} dim3;
#endif

#undef PRETEND_VEC2
#undef PRETEND_VEC3
#undef PRETEND_VEC4
#undef PRETEND_MAKE2
#undef PRETEND_MAKE3
#undef PRETEND_MAKE4

#endif
