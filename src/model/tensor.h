/* tensor.h - tensors of a checkpoint as the host arrays that devices take. */
#ifndef TDGEN_MODEL_TENSOR_H
#define TDGEN_MODEL_TENSOR_H

#include "model/checkpoint.h"

/* A matrix [out, in], f32, bf16 or f16: in the mapping where it lies there so, else in memory of
 * its own. */
typedef struct td_tensor_view {
    td_host_matrix matrix;
    void *owned; /* NULL or what td_tensor_release frees */
} td_tensor_view;

/* Transposes, dequantises (to f32) and aligns as the entry needs it. */
td_status td_tensor_open(const td_ckpt_entry *e, const td_model_config *cfg, td_tensor_view *out,
                         td_error *err);
void td_tensor_release(td_tensor_view *v);

/* The refusal of element `i` of the entry's tensor (as stored) for that reason. */
td_status td_tensor_refuse(const td_ckpt_entry *e, int64_t i, float value, td_dtype to,
                           const char *device_name, td_error *err);
/* Elements [first, first + n) of an F8_E4M3 matrix, of which q are the bytes, with its scale. */
void td_tensor_dequantise(const td_ckpt_entry *e, const td_model_config *cfg, const uint8_t *q,
                          int64_t first, int64_t n, float *dst);
/* Is it a scale of E8M0 bytes, 2^(b - 127), in their own dtype or as U8? */
bool td_scale_is_e8m0(const td_st_tensor *t);
enum { TD_E8M0_NAN = 255 };
/* An e4m3 (no infinities, NaN 0x7f and 0xff). */
float td_e4m3_to_f32(uint8_t b);

#endif
