/* memory.c - sizes of a stage's weights and buffers; pure arithmetic (see stage_buffers.h). */
#include "model/stage_buffers.h"

#include <string.h>

#include "tdgen/util.h"

static uint64_t take(uint64_t *cursor, int64_t n) {
    uint64_t at = *cursor;
    *cursor += ((uint64_t)n * 4 + 63) & ~(uint64_t)63;
    return at;
}

td_ints_layout td_ints_layout_of(int64_t n_tokens, int64_t n_seqs, int64_t n_rows) {
    td_ints_layout l = {0};
    l.ids = take(&l.size_bytes, n_tokens);
    l.positions = take(&l.size_bytes, n_tokens);
    l.seq_offsets = take(&l.size_bytes, n_seqs + 1);
    l.rows = take(&l.size_bytes, n_rows);
    l.targets = take(&l.size_bytes, n_rows);
    return l;
}

td_capture_layout td_capture_layout_of(int64_t n_rows, int64_t top_k, int64_t n_temperatures) {
    td_capture_layout l = {0};
    l.topk_ids = take(&l.size_bytes, n_rows * top_k);
    l.topk_logprobs = take(&l.size_bytes, n_rows * top_k);
    l.logsumexp_t = take(&l.size_bytes, n_rows * n_temperatures);
    l.logsumexp = take(&l.size_bytes, n_rows);
    l.tail_mass = take(&l.size_bytes, n_rows);
    l.target_logprob = take(&l.size_bytes, n_rows);
    l.entropy = take(&l.size_bytes, n_rows);
    l.target_rank = take(&l.size_bytes, n_rows);
    return l;
}

void td_stage_buffer_sizes(const td_model_config *cfg, td_dtype compute,
                           const td_session_limits *lim, int32_t item_begin, int32_t item_end,
                           uint64_t size_bytes[TD_BUF_COUNT]) {
    uint64_t T = (uint64_t)lim->max_tokens, Rc = (uint64_t)TD_MIN(lim->capture_rows, lim->max_rows);
    uint64_t C = (uint64_t)cfg->n_hidden, F = (uint64_t)cfg->n_ffn, V = (uint64_t)cfg->n_vocab;
    uint64_t D = (uint64_t)cfg->head_dim, q = (uint64_t)cfg->n_heads * D;
    uint64_t kv = (uint64_t)cfg->n_kv_heads * D, cs = td_dtype_size(compute);
    bool has_layers = item_begin <= cfg->n_layers && item_end > 1 && item_begin < item_end;
    bool is_last = item_end == cfg->n_layers + 2;

    memset(size_bytes, 0, TD_BUF_COUNT * sizeof *size_bytes);
    size_bytes[TD_BUF_INTS] =
        td_ints_layout_of(lim->max_tokens, lim->max_seqs, lim->max_rows).size_bytes;
    size_bytes[TD_BUF_X0] = T * C * 4;
    if (!is_last)
        size_bytes[TD_BUF_X1] = T * C * 4;
    if (has_layers) {
        size_bytes[TD_BUF_NARROW] = T * TD_MAX(TD_MAX(C, q), F) * cs;
        size_bytes[TD_BUF_WIDE] = T * TD_MAX(q + 2 * kv, 2 * F) * 4;
        size_bytes[TD_BUF_COS] = size_bytes[TD_BUF_SIN] = T * (D / 2) * 4;
    }
    if (is_last && lim->max_rows > 0) {
        size_bytes[TD_BUF_HIDDEN] = Rc * C * cs;
        size_bytes[TD_BUF_LOGITS] = Rc * V * 4;
        size_bytes[TD_BUF_OUT] =
            td_capture_layout_of(lim->max_rows, lim->top_k, lim->n_temperatures).size_bytes;
    }
}

static uint64_t item_weight_bytes(const td_model_config *c, uint64_t cs, int32_t item) {
    uint64_t C = (uint64_t)c->n_hidden, F = (uint64_t)c->n_ffn, V = (uint64_t)c->n_vocab;
    uint64_t D = (uint64_t)c->head_dim, q = (uint64_t)c->n_heads * D;
    uint64_t kv = (uint64_t)c->n_kv_heads * D;
    if (item == 0)
        return V * C * cs;
    if (item == c->n_layers + 1)
        return V * C * cs + C * 4;
    uint64_t vectors = 2 * C + (c->qkv_bias ? q + 2 * kv : 0) + (c->o_bias ? C : 0) +
                       (c->mlp_bias ? 2 * F + C : 0) + (c->qk_norm ? 2 * D : 0);
    return ((q + 2 * kv) * C + C * q + 3 * F * C) * cs + vectors * 4;
}

void td_stage_memory_estimate(const td_model_config *cfg, td_dtype compute,
                              const td_session_limits *lim, int32_t item_begin, int32_t item_end,
                              td_stage_memory *out) {
    uint64_t size_bytes[TD_BUF_COUNT];
    td_stage_memory m = {0};
    td_stage_buffer_sizes(cfg, compute, lim, item_begin, item_end, size_bytes);
    for (int b = 0; b < TD_BUF_COUNT; b++)
        *(b < TD_BUF_FIRST_WORKSPACE ? &m.activation_bytes : &m.workspace_bytes) += size_bytes[b];
    for (int32_t i = item_begin; i < item_end; i++)
        m.weight_bytes += item_weight_bytes(cfg, td_dtype_size(compute), i);
    *out = m;
}
