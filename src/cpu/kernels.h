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
#include "tdgen/device.h"

/* Query rows of one attention item, and keys of one tile; tiles count from the sequence's start. */
enum { TD_ATT_QUERIES = 32, TD_ATT_KEYS = 64 };

typedef struct td_cpu_kernels {
    int level;
    void (*embed)(const td_embed_args *a, int64_t begin, int64_t end);
    void (*rmsnorm)(const td_rmsnorm_args *a, int64_t begin, int64_t end);
    void (*rope)(const td_rope_args *a, int64_t begin, int64_t end);
    void (*gated_act)(const td_gated_act_args *a, int64_t begin, int64_t end);
    /* Rows [q0, min(q0 + TD_ATT_QUERIES, len)) of one head of one sequence that starts at token
     * `start`. scratch: td_cpu_attention_scratch_bytes. q0 is a multiple of TD_ATT_QUERIES. */
    void (*attention)(const td_attention_args *a, int32_t start, int32_t len, int32_t head,
                      int32_t q0, float *scratch);
    /* One row. scratch: td_cpu_capture_scratch_bytes. */
    void (*capture)(const td_capture_args *a, const float *temperatures, int64_t row,
                    uint64_t *scratch);
    /* dst[r, c] (+)= src[r, c] + bias[c]; the tile of a GEMM on its way to the result. */
    void (*tile_out)(float *dst, int64_t dst_stride, const float *src, int64_t src_stride,
                     int64_t n_rows, int64_t n_cols, const float *bias, int accumulate);
    /* y[i] = exp(x[i]), at most 2 ulp off; 0 below -104, inf above 88.73; NaN stays NaN. */
    void (*exp)(const float *x, float *y, int64_t n);
} td_cpu_kernels;

extern const td_cpu_kernels td_cpu_kernels_v1, td_cpu_kernels_v3, td_cpu_kernels_v4;

static inline size_t td_cpu_attention_scratch_bytes(int32_t head_dim) {
    return sizeof(float) *
           (TD_ATT_QUERIES * ((size_t)head_dim * 2 + TD_ATT_KEYS) + (size_t)head_dim * TD_ATT_KEYS);
}
/* Elements of a row of logits whose maximum and sum are kept for the later passes. */
enum { TD_CAPTURE_BLOCK = 512 };
static inline size_t td_cpu_capture_scratch_bytes(int32_t top_k, int32_t n_vocab) {
    const size_t n_blocks = ((size_t)n_vocab + TD_CAPTURE_BLOCK - 1) / TD_CAPTURE_BLOCK;
    return sizeof(uint64_t) * (n_blocks * 2 + (size_t)top_k * 4 + 1024);
}

#endif
