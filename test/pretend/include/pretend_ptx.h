/* pretend_ptx.h - the instructions of src/gpu/ptx.cuh as warp collectives, with the contracts
 * stated there. Stricter than the hardware where the contract allows it: ldmatrix reads a row when
 * the lane that names it arrives, so a missing __syncwarp in front of it shows; cp.async copies at
 * once or as late as the waits permit, at random, so both a missing wait and a buffer that is
 * refilled too early show. */
#ifndef PRETEND_PTX_H
#define PRETEND_PTX_H

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

struct pretend_mma {
    float *d;
    const uint32_t *a, *b;
};
/* detail: 0 bf16, 1 f16 */
void pretend_combine_mma(void *const args[32], unsigned lanes, int detail);
struct pretend_ldmatrix {
    unsigned char row[16];
    uint32_t *r;
};
/* detail: 1 = transposed */
void pretend_combine_ldmatrix(void *const args[32], unsigned lanes, int detail);

static inline uint32_t td_shared_address(const void *p) {
    return (uint32_t)(uintptr_t)p;
}

static inline void td_mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2], __nv_bfloat16,
                                PRETEND_HERE) {
    pretend_need(80, "mma.m16n8k16 of bf16");
    pretend_mma m = {d, a, b};
    pretend_collective(0xffffffffu, "mma.m16n8k16.bf16", 0, file, line, &m, pretend_combine_mma);
}
static inline void td_mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2], __half,
                                PRETEND_HERE) {
    pretend_need(75, "mma.m16n8k16 of f16");
    pretend_mma m = {d, a, b};
    pretend_collective(0xffffffffu, "mma.m16n8k16.f16", 1, file, line, &m, pretend_combine_mma);
}

static inline void pretend_ldmatrix_x4(uint32_t r[4], const void *row, int transposed,
                                       const char *file, int line) {
    pretend_need(75, "ldmatrix");
    if ((uintptr_t)row % 16)
        pretend_fault(cudaErrorMisalignedAddress, "ldmatrix at %s:%d: row address %p", file, line,
                      row);
    pretend_ldmatrix m;
    memcpy(m.row, row, 16);
    m.r = r;
    pretend_collective(0xffffffffu, transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4", transposed,
                       file, line, &m, pretend_combine_ldmatrix);
}
static inline void td_ldmatrix_x4(uint32_t r[4], const void *row, PRETEND_HERE) {
    pretend_ldmatrix_x4(r, row, 0, file, line);
}
static inline void td_ldmatrix_x4_trans(uint32_t r[4], const void *row, PRETEND_HERE) {
    pretend_ldmatrix_x4(r, row, 1, file, line);
}

static inline void td_cp_async_16(void *dst_shared, const void *src, bool valid) {
    pretend_cp_async(dst_shared, src, valid);
}
static inline void td_cp_async_commit() {
    pretend_cp_async_commit();
}
template <int N> static inline void td_cp_async_wait() {
    pretend_cp_async_wait(N);
}

static inline float td_exp2_approx(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y; /* .ftz; a NaN stays one */
}

#endif
