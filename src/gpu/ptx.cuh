/* ptx.cuh - the only inline PTX of the project, each instruction as a function with the meaning of
 * its operands. The CUDA-on-CPU layer replaces the bodies (TD_PRETEND_CUDA) and keeps the
 * contracts.
 *
 * mma m16n8k16, row-major A [16, 16], column-major B [16, 8] (so B is read as rows of B^T [8, 16]),
 * f32 C and D [16, 8]. Lane l of a warp, g = l / 4, t = l % 4, holds (PTX ISA, "Matrix Fragments
 * for mma.m16n8k16"):
 *   a[0] = A[g][2t, 2t+1]       a[1] = A[g+8][2t, 2t+1]
 *   a[2] = A[g][2t+8, 2t+9]     a[3] = A[g+8][2t+8, 2t+9]
 *   b[0] = B[2t, 2t+1][g]       b[1] = B[2t+8, 2t+9][g]
 *   c[0] = C[g][2t]             c[1] = C[g][2t+1]
 *   c[2] = C[g+8][2t]           c[3] = C[g+8][2t+1]
 * two 16-bit elements to a register, the lower index in the lower half.
 *
 * bf16 needs sm_80; f16 works from sm_75, there as two m16n8k8. On older chips the bodies trap: the
 * launchers never choose such a kernel there.
 */
#ifndef TDGEN_GPU_PTX_CUH
#define TDGEN_GPU_PTX_CUH

#include "gpu/launch.cuh"

#ifdef TD_PRETEND_CUDA
#include <pretend_ptx.h>
#else

static __device__ __forceinline__ uint32_t td_shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* D = A B + D for one warp. The type argument only picks the instruction. */
static __device__ __forceinline__ void td_mma_16816(float d[4], const uint32_t a[4],
                                                    const uint32_t b[2], __nv_bfloat16) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}
static __device__ __forceinline__ void td_mma_16816(float d[4], const uint32_t a[4],
                                                    const uint32_t b[2], __half) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#else
    __trap();
#endif
}

/* Four 8x8 matrices of 16-bit elements from shared memory. Lane l passes the address of a row (16
 * bytes, 16-byte aligned): lanes 0-7 the rows of matrix 0, 8-15 of matrix 1, and so on. Lane l gets
 * r[i] = elements [l / 4][2 (l % 4), +1] of matrix i; with _trans of its transpose. sm_75. */
static __device__ __forceinline__ void td_ldmatrix_x4(uint32_t r[4], const void *row) {
#if __CUDA_ARCH__ >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(td_shared_address(row))
                 : "memory");
#else
    __trap();
#endif
}
static __device__ __forceinline__ void td_ldmatrix_x4_trans(uint32_t r[4], const void *row) {
#if __CUDA_ARCH__ >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(td_shared_address(row))
                 : "memory");
#else
    __trap();
#endif
}

/* 16 bytes from global to shared memory, both 16-byte aligned; zeros instead when !valid (src is
 * then not read). Asynchronous from sm_80 on: complete after td_cp_async_wait, and visible to the
 * other threads after a barrier behind it. */
static __device__ __forceinline__ void td_cp_async_16(void *dst_shared, const void *src,
                                                      bool valid) {
#if __CUDA_ARCH__ >= 800
    const int n = valid ? 16 : 0;
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(td_shared_address(dst_shared)),
        "l"(src), "r"(n)
        : "memory");
#else
    *reinterpret_cast<uint4 *>(dst_shared) =
        valid ? *reinterpret_cast<const uint4 *>(src) : make_uint4(0, 0, 0, 0);
#endif
}
static __device__ __forceinline__ void td_cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* Waits until at most N of this thread's committed groups are still under way. */
template <int N> static __device__ __forceinline__ void td_cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

/* 2^x, about 2 ulp; -inf gives 0. */
static __device__ __forceinline__ float td_exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif

/* x, as a value that the compiler knows nothing of: what is computed from it inside a loop stays
 * there, where hoisting it would take registers for the loop's whole length. */
static __device__ __forceinline__ int td_opaque(int x) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(x));
#endif
    return x;
}

#endif
