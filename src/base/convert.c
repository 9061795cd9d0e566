/* convert.c - see base/convert.h. */
#include "base/convert.h"

#include <math.h>
#include <string.h>

float td_element_load(const void *src, td_dtype dtype, size_t i) {
    if (dtype == TD_F32) {
        float f;
        memcpy(&f, (const char *)src + 4 * i, 4);
        return f;
    }
    uint16_t h;
    memcpy(&h, (const char *)src + 2 * i, 2);
    return dtype == TD_BF16 ? td_bf16_to_f32(h) : td_f16_to_f32(h);
}

/* One loop, made for each pair of types, and again for AVX2: what a loader on the way to a fast
 * device waits for. */

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE float load(const char *src, td_dtype dtype, size_t i) {
    return td_element_load(src, dtype, i);
}

/* The largest magnitude met among the results; of a finite value it is infinity's only where the
 * value did not fit. */
ALWAYS_INLINE uint32_t convert_loop(const char *src, td_dtype from, void *dst, td_dtype to,
                                    size_t n) {
    uint32_t largest = 0;
    if (to == TD_F32) {
        for (size_t i = 0; i < n; i++)
            ((float *)dst)[i] = load(src, from, i);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        float v = load(src, from, i);
        uint16_t h = to == TD_BF16 ? td_f32_to_bf16(v) : td_f32_to_f16(v);
        uint32_t a = h & 0x7fffu;
        ((uint16_t *)dst)[i] = h;
        largest = a > largest ? a : largest;
    }
    return largest;
}

ALWAYS_INLINE uint32_t convert_pair(const char *src, td_dtype from, void *dst, td_dtype to,
                                    size_t n) {
    if (from == TD_F32)
        return to == TD_BF16 ? convert_loop(src, TD_F32, dst, TD_BF16, n)
                             : convert_loop(src, TD_F32, dst, TD_F16, n);
    if (from == TD_BF16)
        return to == TD_F32 ? convert_loop(src, TD_BF16, dst, TD_F32, n)
                            : convert_loop(src, TD_BF16, dst, TD_F16, n);
    return to == TD_F32 ? convert_loop(src, TD_F16, dst, TD_F32, n)
                        : convert_loop(src, TD_F16, dst, TD_BF16, n);
}

static uint32_t convert_plain(const char *src, td_dtype from, void *dst, td_dtype to, size_t n) {
    return convert_pair(src, from, dst, to, n);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static uint32_t convert_avx2(const char *src, td_dtype from,
                                                             void *dst, td_dtype to, size_t n) {
    return convert_pair(src, from, dst, to, n);
}
#endif

bool td_convert(const void *src, td_dtype from, void *dst, td_dtype to, size_t n) {
    if (from == to) {
        memcpy(dst, src, n * td_dtype_size(to));
        return true;
    }
    uint32_t largest;
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2"))
        largest = convert_avx2(src, from, dst, to, n);
    else
#endif
        largest = convert_plain(src, from, dst, to, n);
    /* An infinity or a NaN among the results: it may have been one before. */
    if (to == TD_F32 || largest < (to == TD_BF16 ? 0x7f80u : 0x7c00u))
        return true;
    return td_convert_overflow(src, from, to, n) == n;
}

size_t td_convert_overflow(const void *src, td_dtype from, td_dtype to, size_t n) {
    for (size_t i = 0; to != TD_F32 && i < n; i++) {
        float v = td_element_load(src, from, i);
        if (isfinite(v) && (to == TD_BF16 ? (td_f32_to_bf16(v) & 0x7fffu) == 0x7f80u
                                          : (td_f32_to_f16(v) & 0x7fffu) == 0x7c00u))
            return i;
    }
    return n;
}
