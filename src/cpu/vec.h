/* vec.h - sixteen floats at a time, in the compiler's vector extension, and their exp. Included by
 * kernels_*.c only, so that each instruction-set level gets its own code.
 *
 * A product followed by a sum may be contracted to one fused operation where the level has one:
 * consistently, as all lanes and all rows run the same instructions. */
#ifndef TDGEN_CPU_VEC_H
#define TDGEN_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { TD_LANES = 16 };
typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));
typedef double vd8 __attribute__((vector_size(64), aligned(8), may_alias));
typedef float vf8 __attribute__((vector_size(32), aligned(4), may_alias));

/* Vector arguments of always-inlined functions never cross an ABI boundary. */
#pragma GCC diagnostic ignored "-Wpsabi"
#define TD_INLINE static inline __attribute__((always_inline))

/* What one register of the level holds. gcc keeps every intermediate value of a wider vector in
 * memory, so what is computed at length is computed on these; lane by lane it is the same. */
#if defined(__AVX512F__)
enum { TD_NATIVE = 16 };
#elif defined(__AVX__)
enum { TD_NATIVE = 8 };
#else
enum { TD_NATIVE = 4 };
#endif
typedef float nf __attribute__((vector_size(TD_NATIVE * 4), aligned(4), may_alias));
typedef int32_t ni __attribute__((vector_size(TD_NATIVE * 4), aligned(4), may_alias));

TD_INLINE nf nf_load(const float *p) {
    return *(const nf *)p;
}
TD_INLINE void nf_store(float *p, nf v) {
    *(nf *)p = v;
}
TD_INLINE nf nf_set(float x) {
    return x - (nf){0}; /* x, also where it is -0 */
}
TD_INLINE ni ni_iota(void) {
    const int32_t i[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return *(const ni *)i;
}
TD_INLINE nf nf_sel(ni mask, nf a, nf b) {
    return (nf)(((ni)a & mask) | ((ni)b & ~mask));
}
/* a > b ? a : b, and min alike: with a NaN, b. */
TD_INLINE nf nf_max(nf a, nf b) {
#if defined(__AVX512F__)
    return (nf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return nf_sel(a > b, a, b);
#endif
}
TD_INLINE nf nf_min(nf a, nf b) {
#if defined(__AVX512F__)
    return (nf)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return nf_sel(a < b, a, b);
#endif
}

TD_INLINE vf vf_set(float x) {
    return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
TD_INLINE vf vf_load(const float *p) {
    return *(const vf *)p;
}
TD_INLINE void vf_store(float *p, vf v) {
    *(vf *)p = v;
}
/* The first n < 16 elements; the other lanes hold `fill`. */
TD_INLINE vf vf_load_n(const float *p, int64_t n, float fill) {
    float t[TD_LANES];
    for (int i = 0; i < TD_LANES; i++)
        t[i] = i < n ? p[i] : fill;
    return vf_load(t);
}
TD_INLINE vf vf_sel(vi mask, vf a, vf b) {
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}
/* a > b ? a : b, and min alike: with a NaN, b. */
TD_INLINE vf vf_max(vf a, vf b) {
#ifdef __AVX512F__
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return vf_sel(a > b, a, b);
#endif
}
TD_INLINE vf vf_min(vf a, vf b) {
#ifdef __AVX512F__
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return vf_sel(a < b, a, b);
#endif
}
TD_INLINE vi vi_iota(void) {
    return (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}
/* Is any lane of a comparison's result set? */
TD_INLINE int vi_any(vi m) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#elif defined(__AVX2__)
    __m256i h[2];
    memcpy(h, &m, sizeof(h));
    h[0] = _mm256_or_si256(h[0], h[1]);
    return !_mm256_testz_si256(h[0], h[0]);
#else
    int32_t t[TD_LANES], any = 0;
    memcpy(t, &m, sizeof(t));
    for (int i = 0; i < TD_LANES; i++)
        any |= t[i];
    return any != 0;
#endif
}
/* Lanes one after the other, in double. */
TD_INLINE double vf_sum(vf v) {
    double s = 0;
    for (int i = 0; i < TD_LANES; i++)
        s += (double)v[i];
    return s;
}
/* Sixteen f64 sums, by lane. */
typedef struct vd {
    vd8 lo, hi;
} vd;
#ifdef __AVX512F__ /* the compiler's own conversion goes by quarters, through memory */
TD_INLINE vd8 vf_lo(vf v) {
    return (vd8)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
}
TD_INLINE vd8 vf_hi(vf v) {
    return (vd8)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
}
#else
TD_INLINE vd8 vf_lo(vf v) {
    vf8 h;
    memcpy(&h, &v, sizeof(h));
    return __builtin_convertvector(h, vd8);
}
TD_INLINE vd8 vf_hi(vf v) {
    vf8 h;
    memcpy(&h, (const char *)&v + sizeof(h), sizeof(h));
    return __builtin_convertvector(h, vd8);
}
#endif
/* By halves: 16 -> 8 -> 4 -> 2 -> 1. */
TD_INLINE double vd_sum(vd v) {
    double t[8];
    v.lo += v.hi;
    memcpy(t, &v.lo, sizeof(t));
    for (int n = 4; n; n /= 2)
        for (int i = 0; i < n; i++)
            t[i] += t[i + n];
    return t[0];
}

/* e^x: x = n ln2 + r with |r| <= ln2/2 (ln2 in two parts, Cody & Waite), a polynomial of degree 7
 * for e^r, and the power of two in two steps so that subnormal results round once. */
TD_INLINE nf nf_exp(nf x) {
    const nf magic = nf_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = nf_max(nf_set(-105.0f), x);       /* both keep a NaN */
    x = nf_min(nf_set(89.0f), x);
    nf t = x * nf_set(1.44269504088896341f) + magic;
    nf n = t - magic;
    nf r = x - n * nf_set(0.693145751953125f);
    r = r - n * nf_set(1.42860682030941723e-6f);
    nf p = nf_set(1.9841270e-4f);
    p = p * r + nf_set(1.3888889e-3f);
    p = p * r + nf_set(8.3333333e-3f);
    p = p * r + nf_set(4.1666667e-2f);
    p = p * r + nf_set(1.6666667e-1f);
    p = p * r + nf_set(0.5f);
    p = p * (r * r) + r;
    p = p + nf_set(1.0f);
#ifdef __AVX512F__
    return (nf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    ni i = (ni)t - (ni)magic;
    ni i1 = i >> 1, i2 = i - i1;
    return p * (nf)((i1 + 127) << 23) * (nf)((i2 + 127) << 23);
#endif
}

/* tanh x, at most 2 ulp off: an odd polynomial near 0, where 1 - 2 / (e^2x + 1) cancels. */
TD_INLINE nf nf_tanh(nf x) {
    const ni sign = (ni)x & (ni)nf_set(-0.0f);
    const nf a = (nf)((ni)x & 0x7fffffff), s = x * x;
    nf p = nf_set(-5.70498872745e-3f);
    p = p * s + nf_set(2.06390887954e-2f);
    p = p * s + nf_set(-5.37397155531e-2f);
    p = p * s + nf_set(1.33314422036e-1f);
    p = p * s + nf_set(-3.33332819422e-1f);
    p = p * s * x + x;
    const nf far = nf_set(1) - nf_set(2) / (nf_exp(a + a) + nf_set(1));
    return (nf)((ni)nf_sel(a < nf_set(0.625f), p, far) | sign); /* -0 stays -0 */
}

/* Both of sixteen lanes. */
#define TD_BY_REGISTERS(name)                                                                      \
    TD_INLINE vf vf_##name(vf x) {                                                                 \
        float t[TD_LANES];                                                                         \
        vf_store(t, x);                                                                            \
        for (int i = 0; i < TD_LANES; i += TD_NATIVE)                                              \
            nf_store(t + i, nf_##name(nf_load(t + i)));                                            \
        return vf_load(t);                                                                         \
    }
TD_BY_REGISTERS(exp)
TD_BY_REGISTERS(tanh)
#undef TD_BY_REGISTERS

/* The upper tail of the normal distribution at |x|, erfc(|x| / sqrt 2) / 2, to a few parts in 1e7
 * times 1 + x^2 / 2: exp(-x^2 / 2) u P(u) with u = 1 / (1 + 0.4 |x| / sqrt 2), P fitted to
 * erfc(t) exp(t^2) / u over t in [0, 10.3] with a relative error of 2e-9. */
TD_INLINE vf vf_normal_tail(vf x) {
    const vf a = (vf)((vi)x & 0x7fffffff);
    const vf u = vf_set(1) / (vf_set(1) + vf_set(0.282842712f) * a);
    vf p = vf_set(-1.910371062e-2f);
    p = p * u + vf_set(8.185380482e-2f);
    p = p * u + vf_set(-8.702875223e-2f);
    p = p * u + vf_set(-7.868983517e-2f);
    p = p * u + vf_set(1.529973267e-1f);
    p = p * u + vf_set(-3.832876386e-2f);
    p = p * u + vf_set(1.689812567e-1f);
    p = p * u + vf_set(1.582827138e-1f);
    p = p * u + vf_set(2.098948357e-1f);
    p = p * u + vf_set(2.254561504e-1f);
    p = p * u + vf_set(2.256849719e-1f);
    return p * u * vf_set(0.5f) * vf_exp(vf_set(-0.5f) * a * a);
}

#endif
