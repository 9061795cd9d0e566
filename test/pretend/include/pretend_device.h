/* pretend_device.h - CUDA's device dialect in C++: qualifiers, built-in variables, barriers, warp
 * collectives, atomics and intrinsics.
 *
 * The threads of a block are fibers (test/pretend/fiber.cpp). Barriers and warp collectives are the
 * points where one fiber hands over to another; between them a thread runs undisturbed. Lanes,
 * warps and blocks come in a seeded random order, so what depends on a missing barrier reads what
 * is not there yet.
 *
 * Call sites are compared: all threads of a block must meet at the same __syncthreads (file and
 * line), all lanes of a mask at the same collective with the same mask. A lane that a collective
 * names and that never comes is reported, not waited for.
 */
#ifndef PRETEND_DEVICE_H
#define PRETEND_DEVICE_H

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __maxnreg__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(x) ((void)0)
#define __CUDA_ALIGN__(n) __attribute__((aligned(n)))

/* --- the engine's side ------------------------------------------------------------------------ */

/* Inner loops of the layer itself, over its own arrays: optimised and not instrumented in sanitizer
 * builds either. */
#ifdef __clang__ /* it has no such attribute */
#define PRETEND_HOT __attribute__((no_sanitize("address", "undefined", "thread"), noinline))
#else
#define PRETEND_HOT                                                                                \
    __attribute__((optimize("O3"), no_sanitize("address", "undefined", "thread"), noinline))
#endif

struct pretend_thread {
    uint3 index; /* threadIdx */
    unsigned lane;
    const uint3 *block_index; /* blockIdx */
    const dim3 *block_dim, *grid_dim;
    unsigned char *dynamic_shared;
};
/* The fiber that runs on this host thread. Changes at suspension points only. */
extern __thread pretend_thread *pretend_now __attribute__((tls_model("initial-exec")));

/* Which value of a lane's argument a collective wants; combine runs once, when the last lane has
 * come, over the arguments of all lanes that take part (NULL for the others). */
typedef void (*pretend_combine)(void *const args[32], unsigned lanes, int detail);
void pretend_collective(unsigned mask, const char *what, int detail, const char *file, int line,
                        void *arg, pretend_combine combine);
/* One __syncthreads; gives the sum, the conjunction (bit 0) or disjunction as __syncthreads_*. */
int pretend_barrier(int kind, int predicate, const char *file, int line);
enum { PRETEND_BARRIER, PRETEND_BARRIER_COUNT, PRETEND_BARRIER_AND, PRETEND_BARRIER_OR };
/* Ends the kernel: the process's error becomes `error`; the text is printed with kernel, block and
 * thread in front. */
[[noreturn]] void pretend_fault(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* cp.async of the running thread: see pretend_ptx.h. */
void pretend_cp_async(void *dst, const void *src, bool valid);
void pretend_cp_async_commit();
void pretend_cp_async_wait(int n_left);
/* Compute capability of the device that runs the kernel, as 80. */
int pretend_capability();
/* The instruction needs `capability`: ends the kernel on older chips. */
void pretend_need(int capability, const char *what);

#define PRETEND_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* --- variables and barriers ------------------------------------------------------------------- */

#define threadIdx (static_cast<const uint3 &>(pretend_now->index))
#define blockIdx (*pretend_now->block_index)
#define blockDim (*pretend_now->block_dim)
#define gridDim (*pretend_now->grid_dim)
static const int warpSize = 32;

static inline void __syncthreads(PRETEND_HERE) {
    pretend_barrier(PRETEND_BARRIER, 0, file, line);
}
static inline int __syncthreads_count(int predicate, PRETEND_HERE) {
    return pretend_barrier(PRETEND_BARRIER_COUNT, predicate, file, line);
}
static inline int __syncthreads_and(int predicate, PRETEND_HERE) {
    return pretend_barrier(PRETEND_BARRIER_AND, predicate, file, line);
}
static inline int __syncthreads_or(int predicate, PRETEND_HERE) {
    return pretend_barrier(PRETEND_BARRIER_OR, predicate, file, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    pretend_collective(mask, "__syncwarp", 0, nullptr, 0, nullptr, nullptr);
}
static inline void __threadfence_block() {
    __asm__ volatile("" ::: "memory");
}
static inline void __threadfence() {
    __asm__ volatile("" ::: "memory");
}
static inline void __threadfence_system() {
    __asm__ volatile("" ::: "memory");
}
static inline void __nanosleep(unsigned) {
}
[[noreturn]] static inline void __trap() {
    pretend_fault(cudaErrorLaunchFailure, "__trap()");
}

/* --- warp collectives ------------------------------------------------------------------------- */

struct pretend_shuffle {
    uint64_t in, out;
    int source; /* lane */
};
/* What a lane reads from one that does not take part is undefined: all ones, a NaN. */
void pretend_combine_shuffle(void *const args[32], unsigned lanes, int detail);
void pretend_combine_ballot(void *const args[32], unsigned lanes, int detail);
void pretend_combine_match(void *const args[32], unsigned lanes, int detail);
void pretend_combine_reduce(void *const args[32], unsigned lanes, int detail);

template <class T>
static inline T pretend_shuffled(const char *what, unsigned mask, T value, int source, int width,
                                 const char *file, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    pretend_shuffle s = {0, 0, source};
    memcpy(&s.in, &value, sizeof(T));
    pretend_collective(mask, what, width * 16 + (int)sizeof(T), file, line, &s,
                       pretend_combine_shuffle);
    T out;
    memcpy(&out, &s.out, sizeof(T));
    return out;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, PRETEND_HERE) {
    const int first = (int)pretend_now->lane & ~(width - 1);
    return pretend_shuffled("__shfl_sync", mask, value, first + (source & (width - 1)), width, file,
                            line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, PRETEND_HERE) {
    const int lane = (int)pretend_now->lane, source = lane ^ bits;
    return pretend_shuffled("__shfl_xor_sync", mask, value,
                            source > (lane | (width - 1)) ? lane : source, width, file, line);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                               PRETEND_HERE) {
    const int lane = (int)pretend_now->lane, source = lane - (int)delta;
    return pretend_shuffled("__shfl_up_sync", mask, value,
                            source < (lane & ~(width - 1)) ? lane : source, width, file, line);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                 PRETEND_HERE) {
    const int lane = (int)pretend_now->lane, source = lane + (int)delta;
    return pretend_shuffled("__shfl_down_sync", mask, value,
                            source > (lane | (width - 1)) ? lane : source, width, file, line);
}

struct pretend_vote {
    int64_t in;
    unsigned out;
};
static inline unsigned __ballot_sync(unsigned mask, int predicate, PRETEND_HERE) {
    pretend_vote v = {predicate != 0, 0};
    pretend_collective(mask, "__ballot_sync", 0, file, line, &v, pretend_combine_ballot);
    return v.out;
}
static inline int __any_sync(unsigned mask, int predicate, PRETEND_HERE) {
    pretend_vote v = {predicate != 0, 0};
    pretend_collective(mask, "__any_sync", 0, file, line, &v, pretend_combine_ballot);
    return v.out != 0;
}
static inline int __all_sync(unsigned mask, int predicate, PRETEND_HERE) {
    pretend_vote v = {predicate == 0, 0};
    pretend_collective(mask, "__all_sync", 0, file, line, &v, pretend_combine_ballot);
    return v.out == 0;
}
template <class T> static inline unsigned __match_any_sync(unsigned mask, T value, PRETEND_HERE) {
    static_assert(sizeof(T) <= 8, "a match compares at most 8 bytes");
    pretend_vote v = {0, 0};
    memcpy(&v.in, &value, sizeof(T));
    pretend_need(70, "match.any");
    pretend_collective(mask, "__match_any_sync", 0, file, line, &v, pretend_combine_match);
    return v.out;
}
/* Integer reductions of sm_80. */
enum {
    PRETEND_ADD,
    PRETEND_MIN_S,
    PRETEND_MIN_U,
    PRETEND_MAX_S,
    PRETEND_MAX_U,
    PRETEND_AND,
    PRETEND_OR,
    PRETEND_XOR
};
template <class T>
static inline T pretend_reduced(const char *what, unsigned mask, T value, int op, const char *file,
                                int line) {
    pretend_need(80, what);
    pretend_vote v = {(int64_t)value, 0};
    pretend_collective(mask, what, op, file, line, &v, pretend_combine_reduce);
    return (T)v.out;
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value, PRETEND_HERE) {
    return pretend_reduced("__reduce_add_sync", mask, value, PRETEND_ADD, file, line);
}
static inline int __reduce_add_sync(unsigned mask, int value, PRETEND_HERE) {
    return pretend_reduced("__reduce_add_sync", mask, value, PRETEND_ADD, file, line);
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned value, PRETEND_HERE) {
    return pretend_reduced("__reduce_min_sync", mask, value, PRETEND_MIN_U, file, line);
}
static inline int __reduce_min_sync(unsigned mask, int value, PRETEND_HERE) {
    return pretend_reduced("__reduce_min_sync", mask, value, PRETEND_MIN_S, file, line);
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned value, PRETEND_HERE) {
    return pretend_reduced("__reduce_max_sync", mask, value, PRETEND_MAX_U, file, line);
}
static inline int __reduce_max_sync(unsigned mask, int value, PRETEND_HERE) {
    return pretend_reduced("__reduce_max_sync", mask, value, PRETEND_MAX_S, file, line);
}
static inline unsigned __reduce_and_sync(unsigned mask, unsigned value, PRETEND_HERE) {
    return pretend_reduced("__reduce_and_sync", mask, value, PRETEND_AND, file, line);
}
static inline unsigned __reduce_or_sync(unsigned mask, unsigned value, PRETEND_HERE) {
    return pretend_reduced("__reduce_or_sync", mask, value, PRETEND_OR, file, line);
}
/* Any subset of the lanes that could have come together is a legal answer; the lane alone is the
 * one that code with hidden assumptions likes least. */
static inline unsigned __activemask() {
    return 1u << pretend_now->lane;
}

/* --- atomics (system-wide: other streams' kernels run on other host threads) ------------------ */

template <class T, class F> static inline T pretend_atomic(T *address, F next) {
    T old, fresh;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do
        fresh = next(old);
    while (!__atomic_compare_exchange(address, &old, &fresh, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
    return old;
}
#define PRETEND_ATOMIC(name, T, expression)                                                        \
    static inline T name(T *address, T value) {                                                    \
        return pretend_atomic(address, [=](T old) -> T { return expression; });                    \
    }
#define PRETEND_ATOMIC_INTEGERS(name, expression)                                                  \
    PRETEND_ATOMIC(name, int, expression)                                                          \
    PRETEND_ATOMIC(name, unsigned, expression)                                                     \
    PRETEND_ATOMIC(name, unsigned long long, expression)
PRETEND_ATOMIC_INTEGERS(atomicAdd, (old + value))
PRETEND_ATOMIC(atomicAdd, float, (old + value))
PRETEND_ATOMIC(atomicAdd, double, (old + value))
PRETEND_ATOMIC(atomicSub, int, (old - value))
PRETEND_ATOMIC(atomicSub, unsigned, (old - value))
PRETEND_ATOMIC_INTEGERS(atomicMax, (old > value ? old : value))
PRETEND_ATOMIC(atomicMax, long long, (old > value ? old : value))
PRETEND_ATOMIC_INTEGERS(atomicMin, (old < value ? old : value))
PRETEND_ATOMIC(atomicMin, long long, (old < value ? old : value))
PRETEND_ATOMIC_INTEGERS(atomicAnd, (old & value))
PRETEND_ATOMIC_INTEGERS(atomicOr, (old | value))
PRETEND_ATOMIC_INTEGERS(atomicXor, (old ^ value))
PRETEND_ATOMIC_INTEGERS(atomicExch, ((void)old, value))
PRETEND_ATOMIC(atomicExch, float, ((void)old, value))
PRETEND_ATOMIC(atomicInc, unsigned, (old >= value ? 0 : old + 1))
PRETEND_ATOMIC(atomicDec, unsigned, (old == 0 || old > value ? value : old - 1))
#undef PRETEND_ATOMIC
#undef PRETEND_ATOMIC_INTEGERS
template <class T> static inline T atomicCAS(T *address, T compare, T value) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "no such atomicCAS");
    T old = compare;
    __atomic_compare_exchange(address, &old, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
}

/* --- loads and stores with hints -------------------------------------------------------------- */

template <class T> static inline T __ldg(const T *p) {
    return *p;
}
template <class T> static inline T __ldcs(const T *p) {
    return *p;
}
template <class T> static inline T __ldcg(const T *p) {
    return *p;
}
template <class T> static inline T __ldca(const T *p) {
    return *p;
}
template <class T> static inline void __stcs(T *p, T value) {
    *p = value;
}
template <class T> static inline void __stcg(T *p, T value) {
    *p = value;
}

/* --- bits ------------------------------------------------------------------------------------- */

static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
static inline int __ffs(int x) {
    return __builtin_ffs(x);
}
static inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
static inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __clzll(long long x) {
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= ((x >> i) & 1u) << (31 - i);
    return r;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t both = (uint64_t)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = selector >> (4 * i) & 0xf;
        unsigned byte = (unsigned)(both >> (8 * (s & 7))) & 0xff;
        if (s & 8)
            byte = byte & 0x80 ? 0xff : 0;
        r |= byte << (8 * i);
    }
    return r;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
static inline int __mulhi(int a, int b) {
    return (int)(((int64_t)a * b) >> 32);
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)(((uint64_t)a * b) >> 32);
}
static inline unsigned __lane_id() {
    return pretend_now->lane;
}

#define PRETEND_BITCAST(name, To, From)                                                            \
    static inline To name(From x) {                                                                \
        To r;                                                                                      \
        static_assert(sizeof(To) == sizeof(From), "");                                             \
        memcpy(&r, &x, sizeof r);                                                                  \
        return r;                                                                                  \
    }
PRETEND_BITCAST(__float_as_int, int, float)
PRETEND_BITCAST(__float_as_uint, unsigned, float)
PRETEND_BITCAST(__int_as_float, float, int)
PRETEND_BITCAST(__uint_as_float, float, unsigned)
PRETEND_BITCAST(__double_as_longlong, long long, double)
PRETEND_BITCAST(__longlong_as_double, double, long long)
#undef PRETEND_BITCAST

/* --- arithmetic ------------------------------------------------------------------------------- */

#define PRETEND_F1(name, expression)                                                               \
    static inline float name(float x) {                                                            \
        return expression;                                                                         \
    }
#define PRETEND_F2(name, expression)                                                               \
    static inline float name(float x, float y) {                                                   \
        return expression;                                                                         \
    }
PRETEND_F1(__frcp_rn, 1.0f / x)
PRETEND_F1(__fsqrt_rn, sqrtf(x))
PRETEND_F1(__frsqrt_rn, (float)(1.0 / sqrt((double)x)))
PRETEND_F1(rsqrtf, (float)(1.0 / sqrt((double)x)))
PRETEND_F1(__saturatef, x >= 0.0f ? (x > 1.0f ? 1.0f : x) : 0.0f)
PRETEND_F2(__fdividef, x / y)
PRETEND_F2(fdividef, x / y)
PRETEND_F2(__fadd_rn, x + y)
PRETEND_F2(__fsub_rn, x - y)
PRETEND_F2(__fmul_rn, x *y)
PRETEND_F2(__fdiv_rn, x / y)
#undef PRETEND_F1
#undef PRETEND_F2
/* glibc has functions of these names. */
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)
static inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
static inline double rsqrt(double x) {
    return 1.0 / sqrt(x);
}
static inline double __dadd_rn(double x, double y) {
    return x + y;
}
static inline double __dsub_rn(double x, double y) {
    return x - y;
}
static inline double __dmul_rn(double x, double y) {
    return x * y;
}
static inline double __ddiv_rn(double x, double y) {
    return x / y;
}
static inline double __dsqrt_rn(double x) {
    return sqrt(x);
}
static inline double __fma_rn(double x, double y, double z) {
    return fma(x, y, z);
}

/* Conversions saturate, NaN gives 0, as cvt does. */
template <class I, class F> static inline I pretend_to_integer(F x, I low, I high) {
    if (x != x)
        return 0;
    if (x <= (F)low)
        return low;
    return x >= (F)high ? high : (I)x;
}
static inline int __float2int_rn(float x) {
    return pretend_to_integer<int>(rintf(x), INT_MIN, INT_MAX);
}
static inline int __float2int_rz(float x) {
    return pretend_to_integer<int>(truncf(x), INT_MIN, INT_MAX);
}
static inline int __float2int_rd(float x) {
    return pretend_to_integer<int>(floorf(x), INT_MIN, INT_MAX);
}
static inline int __float2int_ru(float x) {
    return pretend_to_integer<int>(ceilf(x), INT_MIN, INT_MAX);
}
static inline unsigned __float2uint_rn(float x) {
    return pretend_to_integer<unsigned>(rintf(x), 0u, UINT_MAX);
}
static inline unsigned __float2uint_rz(float x) {
    return pretend_to_integer<unsigned>(truncf(x), 0u, UINT_MAX);
}
static inline long long __double2ll_rn(double x) {
    return pretend_to_integer<long long>(rint(x), LLONG_MIN, LLONG_MAX);
}
static inline int __double2int_rn(double x) {
    return pretend_to_integer<int>(rint(x), INT_MIN, INT_MAX);
}
static inline float __int2float_rn(int x) {
    return (float)x;
}
static inline float __uint2float_rn(unsigned x) {
    return (float)x;
}
static inline float __double2float_rn(double x) {
    return (float)x;
}

#define PRETEND_MINMAX(A, B, R)                                                                    \
    static inline R min(A a, B b) {                                                                \
        return (R)a < (R)b ? (R)a : (R)b;                                                          \
    }                                                                                              \
    static inline R max(A a, B b) {                                                                \
        return (R)a > (R)b ? (R)a : (R)b;                                                          \
    }
PRETEND_MINMAX(int, int, int)
PRETEND_MINMAX(unsigned, unsigned, unsigned)
PRETEND_MINMAX(int, unsigned, unsigned)
PRETEND_MINMAX(unsigned, int, unsigned)
PRETEND_MINMAX(long, long, long)
PRETEND_MINMAX(unsigned long, unsigned long, unsigned long)
PRETEND_MINMAX(long, unsigned long, unsigned long)
PRETEND_MINMAX(unsigned long, long, unsigned long)
PRETEND_MINMAX(long long, long long, long long)
PRETEND_MINMAX(unsigned long long, unsigned long long, unsigned long long)
PRETEND_MINMAX(long long, unsigned long long, unsigned long long)
PRETEND_MINMAX(unsigned long long, long long, unsigned long long)
#undef PRETEND_MINMAX
static inline float min(float a, float b) {
    return fminf(a, b);
}
static inline float max(float a, float b) {
    return fmaxf(a, b);
}
static inline double min(double a, double b) {
    return fmin(a, b);
}
static inline double max(double a, double b) {
    return fmax(a, b);
}
static inline double min(float a, double b) {
    return fmin((double)a, b);
}
static inline double max(float a, double b) {
    return fmax((double)a, b);
}
static inline double min(double a, float b) {
    return fmin(a, (double)b);
}
static inline double max(double a, float b) {
    return fmax(a, (double)b);
}

#endif
