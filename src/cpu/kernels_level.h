/* kernels_level.h - names of the functions of the level being compiled (TD_KERNEL_LEVEL = 1, 3 or
 * 4, set by src/cpu/CMakeLists.txt together with the matching -march). */
#ifndef TDGEN_CPU_KERNELS_LEVEL_H
#define TDGEN_CPU_KERNELS_LEVEL_H

#include "cpu/kernels.h"

#ifndef TD_KERNEL_LEVEL
#error "kernels_*.c are compiled once per level, see src/cpu/CMakeLists.txt"
#endif
#define TD_LEVEL_JOIN2(name, level) td_cpu_##name##_v##level
#define TD_LEVEL_JOIN(name, level) TD_LEVEL_JOIN2(name, level)
#define TD_LEVEL_NAME(name) TD_LEVEL_JOIN(name, TD_KERNEL_LEVEL)

/* The operations by rows: rows [begin, end). */
#define TD_LEVEL_ROWS(name)                                                                        \
    void TD_LEVEL_NAME(name)(const td_##name##_args *a, int64_t begin, int64_t end);
#define TD_LEVEL_WHOLE(name)
#define TD_LEVEL_PROTOTYPE(name, NAME, n_rows, how) TD_LEVEL_##how(name)
TD_DEVICE_OPERATIONS(TD_LEVEL_PROTOTYPE)
#undef TD_LEVEL_PROTOTYPE
#undef TD_LEVEL_WHOLE
#undef TD_LEVEL_ROWS
/* The others, as td_cpu_kernels describes them. */
void TD_LEVEL_NAME(attention)(const td_attention_args *a, int32_t start, int32_t len, int32_t head,
                              int32_t q0, float *scratch);
void TD_LEVEL_NAME(capture)(const td_capture_args *a, int64_t row, uint64_t *scratch);
void TD_LEVEL_NAME(route)(float *logits, int32_t n_experts, int32_t top_k, int normalise,
                          int32_t *expert, float *weight);
void TD_LEVEL_NAME(combine)(float *out, const float *rows, int64_t n_cols, const int32_t *slot,
                            const float *weight, int32_t n, float scale);

#endif
