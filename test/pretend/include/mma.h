/* mma.h - nvcuda::wmma on the CPU: fragments of 16-bit operands with f32 or f16 accumulators.
 *
 * Where an element of a fragment lives is unspecified in CUDA, only the same for all fragments of
 * one type. Here it is scrambled, so that code which assumes a place fails. Loads read when the
 * lane arrives and stores write when it leaves: a missing __syncwarp in front of a load or behind a
 * store shows.
 */
#ifndef PRETEND_MMA_H
#define PRETEND_MMA_H

#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

/* Element number i of lane l stands at this place of the row-major matrix of n elements (a power of
 * two from 128 on). */
static inline int pretend_place(int lane, int i, int n) {
    return (lane * (n / 32) + i) * 37 & (n - 1);
}

template <class Use, int M, int N, int K, class T, class Layout = void> class fragment {
    static_assert(M * N * K == 4096, "16x16x16, 32x8x16 or 8x32x16");

  public:
    static constexpr int pretend_rows = std::is_same<Use, matrix_b>::value ? K : M;
    static constexpr int pretend_cols = std::is_same<Use, matrix_a>::value ? K : N;
    static constexpr int num_elements = pretend_rows * pretend_cols / 32;
    T x[num_elements];
};

template <class Use, int M, int N, int K, class T, class L>
static inline void fill_fragment(fragment<Use, M, N, K, T, L> &f,
                                 const typename std::common_type<T>::type &value) {
    for (int i = 0; i < f.num_elements; i++)
        f.x[i] = value;
}

template <class F, class T>
static inline void pretend_load(F &f, const T *p, unsigned ld, bool rows, const char *file,
                                int line) {
    if ((uintptr_t)p % 32)
        pretend_fault(cudaErrorMisalignedAddress, "load_matrix_sync at %s:%d: address %p", file,
                      line, (const void *)p);
    if (ld * sizeof(T) % 16)
        pretend_fault(cudaErrorMisalignedAddress, "load_matrix_sync at %s:%d: stride %u", file,
                      line, ld);
    pretend_need(70, "wmma");
    for (int i = 0; i < f.num_elements; i++) {
        const int at = pretend_place((int)pretend_now->lane, i, f.num_elements * 32);
        const unsigned r = (unsigned)(at / f.pretend_cols), c = (unsigned)(at % f.pretend_cols);
        f.x[i] = rows ? p[r * ld + c] : p[c * ld + r];
    }
    pretend_collective(0xffffffffu, "load_matrix_sync", (int)ld, file, line, nullptr, nullptr);
}
template <class Use, int M, int N, int K, class T, class L>
static inline void load_matrix_sync(fragment<Use, M, N, K, T, L> &f, const T *p, unsigned ld,
                                    PRETEND_HERE) {
    static_assert(!std::is_same<Use, accumulator>::value, "an accumulator's load takes a layout");
    pretend_load(f, p, ld, std::is_same<L, row_major>::value, file, line);
}
template <int M, int N, int K, class T>
static inline void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const T *p, unsigned ld,
                                    layout_t layout, PRETEND_HERE) {
    pretend_load(f, p, ld, layout == mem_row_major, file, line);
}
template <int M, int N, int K, class T>
static inline void store_matrix_sync(T *p, const fragment<accumulator, M, N, K, T> &f, unsigned ld,
                                     layout_t layout, PRETEND_HERE) {
    if ((uintptr_t)p % 32)
        pretend_fault(cudaErrorMisalignedAddress, "store_matrix_sync at %s:%d: address %p", file,
                      line, (const void *)p);
    if (ld * sizeof(T) % 16)
        pretend_fault(cudaErrorMisalignedAddress, "store_matrix_sync at %s:%d: stride %u", file,
                      line, ld);
    pretend_collective(0xffffffffu, "store_matrix_sync", (int)ld, file, line, nullptr, nullptr);
    for (int i = 0; i < f.num_elements; i++) {
        const int at = pretend_place((int)pretend_now->lane, i, f.num_elements * 32);
        const unsigned r = (unsigned)(at / f.pretend_cols), c = (unsigned)(at % f.pretend_cols);
        p[layout == mem_row_major ? r * ld + c : c * ld + r] = f.x[i];
    }
}

template <int M, int N, int K, class T, class TD, class TC> struct pretend_wmma {
    TD *d;
    const TC *c;
    const T *a, *b;
    static void combine(void *const args[32], unsigned lanes, int) {
        if (lanes != 0xffffffffu)
            pretend_fault(cudaErrorLaunchFailure, "wmma::mma_sync with lanes missing");
        multiply(args);
    }
    static PRETEND_HOT void multiply(void *const args[32]) {
        float a[M][K], b[K][N], c[M][N];
        for (int lane = 0; lane < 32; lane++) {
            const pretend_wmma *w = static_cast<const pretend_wmma *>(args[lane]);
            for (int i = 0; i < M * K / 32; i++)
                (&a[0][0])[pretend_place(lane, i, M * K)] = (float)w->a[i];
            for (int i = 0; i < K * N / 32; i++)
                (&b[0][0])[pretend_place(lane, i, K * N)] = (float)w->b[i];
            for (int i = 0; i < M * N / 32; i++)
                (&c[0][0])[pretend_place(lane, i, M * N)] = (float)w->c[i];
        }
        for (int m = 0; m < M; m++)
            for (int k = 0; k < K; k++)
                for (int n = 0; n < N; n++)
                    c[m][n] += a[m][k] * b[k][n];
        for (int lane = 0; lane < 32; lane++) {
            const pretend_wmma *w = static_cast<const pretend_wmma *>(args[lane]);
            for (int i = 0; i < M * N / 32; i++)
                w->d[i] = (TD)(&c[0][0])[pretend_place(lane, i, M * N)];
        }
    }
};
template <int M, int N, int K, class T, class LA, class LB, class TD, class TC>
static inline void mma_sync(fragment<accumulator, M, N, K, TD> &d,
                            const fragment<matrix_a, M, N, K, T, LA> &a,
                            const fragment<matrix_b, M, N, K, T, LB> &b,
                            const fragment<accumulator, M, N, K, TC> &c, PRETEND_HERE) {
    pretend_need(std::is_same<T, __nv_bfloat16>::value ? 80 : 70, "wmma");
    pretend_wmma<M, N, K, T, TD, TC> w = {d.x, c.x, a.x, b.x};
    pretend_collective(0xffffffffu, "wmma::mma_sync", 0, file, line, &w,
                       pretend_wmma<M, N, K, T, TD, TC>::combine);
}

} // namespace wmma
} // namespace nvcuda

#endif
