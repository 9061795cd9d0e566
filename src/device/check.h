/* device_check.h - what every backend refuses in the arguments of an operation, for backends only.
 *
 * Each returns NULL, or why the arguments cannot be right: a caller's bug, so TD_E_INTERNAL. What
 * one kind of device alone cannot do is that backend's own check.
 */
#ifndef TDGEN_DEVICE_CHECK_H
#define TDGEN_DEVICE_CHECK_H

#include "device/device.h"

#define TD_CAPTURE_MAX_TEMPERATURES 16
#define TD_CAPTURE_MAX_DRAWS 1024
#define TD_CAPTURE_MAX_ALWAYS 64

const char *td_embed_check(const td_embed_args *a);
const char *td_norm_check(const td_norm_args *a);
const char *td_gemm_check(const td_gemm_args *a);
const char *td_rope_check(const td_rope_args *a);
const char *td_attention_check(const td_attention_args *a);
const char *td_act_check(const td_act_args *a);
const char *td_moe_check(const td_moe_args *a);
const char *td_capture_check(const td_capture_args *a);
const char *td_convert_check(const td_convert_args *a);

#endif
