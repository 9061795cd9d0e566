/* kernels.h - the inner loops of the CPU device, compiled once per instruction-set level.
 *
 * kernels_*.c are compiled three times (plain x86-64, AVX2 + FMA, AVX512), each time with another
 * TD_KERNEL_LEVEL; a table per level holds the entry points. The level follows the instruction set
 * that oneDNN reports, because that one names the device kind: the same kind gives the same bits.
 *
 * Every reduction has a fixed order: TD_LANES lanes by index modulo TD_LANES, then the lanes one
 * after the other. Nothing here is compiled with -ffast-math.
 */
#ifndef TDGEN_CPU_KERNELS_H
#define TDGEN_CPU_KERNELS_H

#include <stdint.h>
#include "device/device.h"

/* Query rows of one attention item, and keys of one tile; tiles count from the sequence's start. */
enum { TD_ATT_QUERIES = 32, TD_ATT_KEYS = 64 };

typedef struct td_cpu_kernels {
    int level;
    /* void (*embed)(const td_embed_args *a, int64_t begin, int64_t end), and so on for the other
     * operations by rows: rows [begin, end). */
#define TD_CPU_KERNEL_ROWS(name) void (*name)(const td_##name##_args *, int64_t, int64_t);
#define TD_CPU_KERNEL_WHOLE(name)
#define TD_CPU_KERNEL(name, NAME, n_rows, how) TD_CPU_KERNEL_##how(name)
    TD_DEVICE_OPERATIONS(TD_CPU_KERNEL)
#undef TD_CPU_KERNEL
#undef TD_CPU_KERNEL_WHOLE
#undef TD_CPU_KERNEL_ROWS
    /* Rows [q0, min(q0 + TD_ATT_QUERIES, len)) of one head of one sequence that starts at token
     * `start`. scratch: td_cpu_attention_scratch_bytes. q0 is a multiple of TD_ATT_QUERIES. */
    void (*attention)(const td_attention_args *a, int32_t start, int32_t len, int32_t head,
                      int32_t q0, float *scratch);
    /* One row. scratch: td_cpu_capture_scratch_bytes. */
    void (*capture)(const td_capture_args *a, int64_t row, uint64_t *scratch);
    /* One row of router logits [n_experts] to its top_k experts, in ascending number, and their
     * weights. The logits are overwritten. */
    void (*route)(float *logits, int32_t n_experts, int32_t top_k, int normalise, int32_t *expert,
                  float *weight);
    /* out[c] += scale * sum over j of weight[j] * rows[slot[j], c], in the order of j. */
    void (*combine)(float *out, const float *rows, int64_t n_cols, const int32_t *slot,
                    const float *weight, int32_t n, float scale);
    /* dst[r, c] (+)= scale * (src[r, c] + bias[c]); the tile of a GEMM on its way to the result. */
    void (*tile_out)(float *dst, int64_t dst_stride, const float *src, int64_t src_stride,
                     int64_t n_rows, int64_t n_cols, const float *bias, float scale,
                     int accumulate);
    /* y[i] = exp(x[i]), at most 2 ulp off; 0 below -104, inf above 88.73; NaN stays NaN. */
    void (*exp)(const float *x, float *y, int64_t n);
    /* y[i] = tanh(x[i]), at most 2 ulp off; NaN stays NaN. */
    void (*tanh)(const float *x, float *y, int64_t n);
} td_cpu_kernels;

extern const td_cpu_kernels td_cpu_kernels_v1, td_cpu_kernels_v3, td_cpu_kernels_v4;

static inline size_t td_cpu_attention_scratch_bytes(int32_t head_dim) {
    return sizeof(float) *
           (TD_ATT_QUERIES * ((size_t)head_dim * 3 + TD_ATT_KEYS) + (size_t)head_dim * TD_ATT_KEYS);
}
/* Elements of a row of logits whose maximum and sum are kept for the later passes. */
enum { TD_CAPTURE_BLOCK = 512 };
/* Are the finished logits the raw ones? Else a finished row is kept in scratch. */
static inline int td_cpu_capture_is_raw(const td_capture_args *a) {
    return a->divisor == 1.0f && !(a->softcap > 0);
}
static inline size_t td_cpu_capture_scratch_bytes(const td_capture_args *a) {
    const size_t n_blocks = ((size_t)a->n_valid + TD_CAPTURE_BLOCK - 1) / TD_CAPTURE_BLOCK;
    const size_t row = td_cpu_capture_is_raw(a) ? 0 : n_blocks * TD_CAPTURE_BLOCK * sizeof(float);
    const size_t draws = a->n_draws ? (size_t)a->n_draws + n_blocks : 0;
    return sizeof(uint64_t) * (n_blocks * 2 + (size_t)a->top_k * 4 + 1024 + draws) + row;
}

#endif
