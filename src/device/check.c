/* check.c - what every backend refuses in the arguments of an operation: see device/backend.h. */
#include "capture/limits.h"
#include "device/backend.h"

#include <math.h>

static bool is_activation(td_dtype t) {
    return t == TD_F32 || t == TD_BF16 || t == TD_F16;
}

/* A factor that a caller forgot to set is 0. */
static bool is_factor(float f) {
    return isfinite(f) && f != 0;
}

static bool is_act(td_act act) {
    return act >= TD_ACT_SILU && act <= TD_ACT_GELU_TANH;
}

static const char *check_embed(const td_embed_args *a) {
    if (a->n_tokens < 0 || a->n_cols < 1 || !is_activation(a->table_dtype))
        return "bad shape or table type";
    if (!is_factor(a->scale))
        return "scale is 0 or not finite (1 = none)";
    return NULL;
}

static const char *check_norm(const td_norm_args *a) {
    if (a->n_rows < 0 || a->n_cols < 1 || !is_activation(a->out_dtype) || a->kind < TD_NORM_RMS ||
        a->kind > TD_NORM_NONE)
        return "bad shape, kind or result type";
    if (a->n_rows > 0 && (a->kind == TD_NORM_NONE ? a->weight || a->bias : !a->weight))
        return "a norm needs a weight, a mere conversion has none";
    if (a->in == a->out && (a->out_dtype != TD_F32 || a->row_index))
        return "in place needs an f32 result and no row_index";
    if (a->accumulate && (a->out_dtype != TD_F32 || !is_factor(a->scale)))
        return "accumulate needs an f32 result and a finite scale above or below 0";
    return NULL;
}

static const char *check_gemm(const td_gemm_args *a) {
    if (a->n_rows < 0 || !a->weight || !is_factor(a->scale))
        return "no weight, or scale is 0 or not finite (1 = none)";
    return NULL;
}

static const char *check_rope(const td_rope_args *a) {
    if (a->n_tokens < 0 || a->n_heads < 1 || a->rotary_dim < 0 || a->rotary_dim % 2 ||
        a->rotary_dim > a->head_dim)
        return "bad shape";
    if (a->out && (a->n_plain_heads < 0 || !is_activation(a->out_dtype)))
        return "bad result type or number of plain heads";
    if (!a->cos_table && !a->out && a->n_tokens > 0 && a->rotary_dim > 0)
        return "no tables, and nowhere to convert to";
    return NULL;
}

static const char *check_attention(const td_attention_args *a) {
    if (a->n_seqs < 0 || a->n_heads < 1 || a->n_kv_heads < 1 || a->n_heads % a->n_kv_heads ||
        a->head_dim < 1 || a->window < 0 || !(a->softcap >= 0) || !is_activation(a->out_dtype))
        return "bad shape or result type";
    if (a->in_dtype != TD_F32 && a->in_dtype != a->out_dtype)
        return "q, k and v are neither f32 nor of the result's type";
    return NULL;
}

static const char *check_act(const td_act_args *a) {
    if (a->n_tokens < 0 || a->n_cols < 1 || !is_activation(a->out_dtype) || !is_act(a->act))
        return "bad shape, function or result type";
    return NULL;
}

static bool is_shape(const td_weight *w, int64_t n, int64_t k, td_dtype compute) {
    return w && w->n_rows == n && w->n_cols == k && w->compute == compute;
}

static const char *check_moe(const td_moe_args *a) {
    const int32_t n_ffn = a->n_ffn, c = a->n_cols;
    if (a->n_tokens < 0 || c < 1 || n_ffn < 1 || n_ffn > INT32_MAX / 2 || a->n_experts < 1 ||
        a->top_k < 1 || a->top_k > a->n_experts || a->n_tokens > INT32_MAX / a->top_k)
        return "bad shape";
    if (!is_act(a->act) || !is_factor(a->scale))
        return "bad function, or scale is 0 or not finite (1 = none)";
    if (!a->router || !is_shape(a->router, a->n_experts, c, a->router->compute))
        return "the router is not [experts, columns]";
    for (int32_t e = 0; e < a->n_experts; e++)
        if (!is_shape(a->gate_up[e], 2 * n_ffn, c, a->router->compute) ||
            !is_shape(a->down[e], c, n_ffn, a->router->compute))
            return "an expert's weights do not go with the router's";
    return NULL;
}

static const char *check_capture(const td_capture_args *a) {
    if (a->n_rows < 0 || a->n_vocab < 1 || a->top_k < 0 || a->n_temperatures < 0 ||
        a->n_temperatures > TD_MAX_TEMPERATURES)
        return "bad shape, or more than 16 temperatures";
    if (a->n_valid < 1 || a->n_valid > a->n_vocab || !(a->divisor > 0) || !(a->softcap >= 0))
        return "n_valid is not in [1, n_vocab], or bad divisor or softcap";
    for (int32_t i = 0; i < a->n_temperatures; i++)
        if (!(a->temperatures[i] > 0))
            return "temperatures must be above 0";
    if (a->top_p != 0 && (!(a->top_p > 0 && a->top_p <= 1) || a->top_k < 1 || a->min_k < 0))
        return "top_p is not in (0, 1], or without a top_k";
    if (a->n_draws < 0 || a->n_draws > TD_MAX_DRAWS)
        return "the number of draws is not in [0, 1024]";
    if (a->n_draws && (!(a->proposal_power > 0) || !isfinite(a->proposal_power) ||
                       (a->n_rows > 0 && (!a->dataset_rows || !a->positions))))
        return "draws need a power above 0, dataset rows and positions";
    if (a->n_always < 0 || a->n_always > TD_MAX_ALWAYS_IDS)
        return "more than 64 ids whose log-prob is always recorded";
    for (int32_t i = 0; i < a->n_always; i++)
        if (a->always_ids[i] < 0 || a->always_ids[i] >= a->n_vocab)
            return "an id whose log-prob is always recorded is not in the vocabulary";
    if (a->dense && !is_activation(a->dense_dtype))
        return "bad type of dense logits";
    return NULL;
}

static const char *check_convert(const td_convert_args *a) {
    if (a->n < 0 || !is_activation(a->in_dtype) || !is_activation(a->out_dtype) ||
        (a->n > 0 && a->in == a->out))
        return "bad size or type, or in place";
    return NULL;
}

const char *td_op_check(td_op op, const void *args) {
    switch (op) {
    case TD_OP_COPY:
    case TD_OP_COUNT:
        break;
#define CHECK(name, NAME, n_rows, how)                                                             \
    case TD_OP_##NAME:                                                                             \
        return check_##name(args);
        TD_DEVICE_OPERATIONS(CHECK)
#undef CHECK
    }
    return NULL;
}
