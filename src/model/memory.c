/* memory.c - sizes of a stage's weights and buffers; pure arithmetic (see stage_buffers.h). */
#include "model/stage_buffers.h"

#include <string.h>

#include "model/families.h"
#include "base/memory.h"

static uint64_t take(uint64_t *cursor, int64_t n) {
    uint64_t at = *cursor;
    *cursor += ((uint64_t)n * 4 + 63) & ~(uint64_t)63;
    return at;
}

td_rope_layout td_rope_layout_of(const td_model_config *cfg, int32_t max_tokens) {
    td_rope_layout l = {0};
    for (int32_t k = 0; k < cfg->n_ropes; k++) {
        const td_rope *r = &cfg->rope[k];
        int32_t limit = max_tokens; /* sequences up to here use the first section */
        if (r->type == TD_ROPE_LONGROPE)
            limit = TD_MIN(r->original_positions, max_tokens);
        else if (r->type == TD_ROPE_DYNAMIC)
            limit = TD_MIN(cfg->max_positions, max_tokens);
        l.first_row[k] = l.n_rows;
        l.limit[k] = limit;
        l.n_rows += limit;
        l.long_row[k] = l.n_rows;
        if (limit < max_tokens) {
            l.n_rows += max_tokens;
            l.by_length = true;
            if (r->type == TD_ROPE_DYNAMIC)
                l.n_dynamic++;
        }
    }
    return l;
}

td_ints_layout td_ints_layout_of(const td_model_config *cfg, const td_capture_spec *spec,
                                 int64_t n_tokens, int64_t n_seqs, int64_t n_rows) {
    td_ints_layout l = {0};
    l.ids = take(&l.size_bytes, n_tokens);
    l.positions = take(&l.size_bytes, cfg->learned_positions ? n_tokens : 0);
    for (int32_t k = 0; k < cfg->n_ropes; k++)
        l.rope_rows[k] = take(&l.size_bytes, n_tokens);
    l.seq_offsets = take(&l.size_bytes, n_seqs + 1);
    l.rows = take(&l.size_bytes, n_rows);
    l.targets = take(&l.size_bytes, n_rows);
    l.dataset_rows = take(&l.size_bytes, spec->n_draws ? 2 * n_rows : 0);
    l.row_positions = take(&l.size_bytes, spec->n_draws ? 2 * n_rows : 0);
    return l;
}

td_capture_layout td_capture_layout_of(const td_capture_spec *spec, int64_t n_rows) {
    td_capture_layout l = {0};
    if (spec->mode == TD_CAPTURE_HIDDEN)
        return l;
    l.topk_ids = take(&l.size_bytes, n_rows * spec->top_k);
    l.topk_logprobs = take(&l.size_bytes, n_rows * spec->top_k);
    l.logsumexp_t = take(&l.size_bytes, n_rows * spec->n_temperatures);
    l.logsumexp = take(&l.size_bytes, n_rows);
    l.tail_mass = take(&l.size_bytes, n_rows);
    l.target_logprob = take(&l.size_bytes, n_rows);
    l.entropy = take(&l.size_bytes, n_rows);
    l.target_rank = take(&l.size_bytes, n_rows);
    l.n_kept = take(&l.size_bytes, spec->mode == TD_CAPTURE_TOPP ? n_rows : 0);
    l.n_unique = take(&l.size_bytes, spec->n_draws ? n_rows : 0);
    l.draw_ids = take(&l.size_bytes, n_rows * spec->n_draws);
    l.draw_counts = take(&l.size_bytes, n_rows * spec->n_draws);
    l.draw_logprobs = take(&l.size_bytes, n_rows * spec->n_draws);
    l.proposal_logsumexp = take(&l.size_bytes, spec->n_draws ? n_rows : 0);
    l.always_logprobs = take(&l.size_bytes, n_rows * spec->n_always);
    return l;
}

uint64_t td_session_host_bytes(const td_session_limits *lim, const td_capture_spec *spec) {
    return (uint64_t)lim->n_slots * (td_capture_layout_of(spec, lim->max_rows).size_bytes +
                                     (uint64_t)lim->max_rows * td_capture_dense_bytes(spec));
}

void td_stage_buffer_sizes(const td_model_config *cfg, td_dtype compute,
                           const td_session_limits *lim, const td_capture_spec *spec,
                           int32_t item_begin, int32_t item_end,
                           uint64_t size_bytes[TD_BUF_COUNT]) {
    uint64_t T = (uint64_t)lim->max_tokens, Rc = (uint64_t)TD_MIN(lim->capture_rows, lim->max_rows);
    uint64_t C = (uint64_t)cfg->n_hidden, F = 0, V = (uint64_t)cfg->n_vocab;
    uint64_t D = (uint64_t)cfg->head_dim, q = (uint64_t)cfg->n_heads * D;
    uint64_t kv = (uint64_t)cfg->n_kv_heads * D, cs = td_dtype_size(compute);
    bool has_layers = item_begin <= cfg->n_layers && item_end > 1 && item_begin < item_end;
    bool is_last = item_end == cfg->n_layers + 2, has_experts = false;
    for (int32_t i = TD_MAX(item_begin, 1); i < TD_MIN(item_end, cfg->n_layers + 1); i++) {
        if (cfg->moe[i - 1])
            has_experts = true;
        else
            F = (uint64_t)cfg->n_ffn;
    }

    memset(size_bytes, 0, TD_BUF_COUNT * sizeof *size_bytes);
    size_bytes[TD_BUF_INTS] =
        td_ints_layout_of(cfg, spec, lim->max_tokens, lim->max_seqs, lim->max_rows).size_bytes;
    size_bytes[TD_BUF_X0] = T * C * 4;
    if (!is_last)
        size_bytes[TD_BUF_X1] = T * C * 4;
    if (has_layers) {
        size_bytes[TD_BUF_NARROW] = T * TD_MAX(TD_MAX(C, q), F) * cs;
        if (cfg->parallel_residual)
            size_bytes[TD_BUF_NARROW2] = T * C * cs;
        size_bytes[TD_BUF_WIDE] =
            T * TD_MAX(TD_MAX(q + 2 * kv, cfg->gated ? 2 * F : F), cfg->post_norm ? C : 0) * 4;
        if (lim->narrow_attention && compute != TD_F32)
            size_bytes[TD_BUF_QKV] = T * (q + 2 * kv) * cs;
        uint64_t n_rows = (uint64_t)td_rope_layout_of(cfg, lim->max_tokens).n_rows;
        size_bytes[TD_BUF_COS] = size_bytes[TD_BUF_SIN] =
            n_rows * (uint64_t)(cfg->rotary_dim / 2) * 4;
        if (has_experts)
            size_bytes[TD_BUF_EXPERTS] =
                td_moe_scratch_bytes(lim->max_tokens, cfg->n_hidden, cfg->n_ffn_expert,
                                     cfg->n_experts, cfg->n_experts_used, compute);
    }
    if (is_last && lim->max_rows > 0) {
        size_bytes[TD_BUF_HIDDEN] = Rc * C * cs;
        if (spec->mode != TD_CAPTURE_HIDDEN)
            size_bytes[TD_BUF_LOGITS] = Rc * V * 4;
        if (spec->mode != TD_CAPTURE_HIDDEN || spec->dense_dtype != compute)
            size_bytes[TD_BUF_DENSE] = Rc * td_capture_dense_bytes(spec);
        size_bytes[TD_BUF_OUT] = td_capture_layout_of(spec, lim->max_rows).size_bytes;
    }
}

/* An item's tensors as they lie on a device: matrices and tables in the compute dtype, vectors in
 * f32. A tied embedding is there twice, as a table and as a GEMM weight. */
static uint64_t item_weight_bytes(const td_model_config *c, const td_family *f, uint64_t cs,
                                  int32_t item) {
    uint64_t head = (uint64_t)c->n_vocab * (uint64_t)c->n_hidden;
    int64_t matrices, vectors;
    if (item == 0) {
        td_shape p = td_model_tensor_shape(c, TD_MT_POSITIONS);
        return (head + (uint64_t)(p.rows * p.cols)) * cs;
    }
    if (item == c->n_layers + 1)
        return head * cs + (uint64_t)c->n_hidden * (c->norm_bias ? 8 : 4);
    td_layer_elements(c, f, item - 1, &matrices, &vectors);
    return (uint64_t)matrices * cs + (uint64_t)vectors * 4;
}

void td_stage_memory_estimate(const td_model_config *cfg, td_dtype compute,
                              const td_session_limits *lim, const td_capture_spec *spec,
                              int32_t item_begin, int32_t item_end, td_stage_memory *out) {
    uint64_t size_bytes[TD_BUF_COUNT], layer_bytes[2] = {0}; /* dense, with experts */
    const td_family *f = td_family_find(cfg->architecture);
    td_stage_memory m = {0};
    td_stage_buffer_sizes(cfg, compute, lim, spec, item_begin, item_end, size_bytes);
    for (int b = 0; b < TD_BUF_COUNT; b++)
        *(b < TD_BUF_FIRST_WORKSPACE ? &m.activation_bytes : &m.workspace_bytes) += size_bytes[b];
    /* The planner asks for many ranges: each kind of layer is counted once. */
    for (int32_t i = item_begin; f && i < item_end; i++) {
        if (i == 0 || i == cfg->n_layers + 1) {
            m.weight_bytes += item_weight_bytes(cfg, f, td_dtype_size(compute), i);
            continue;
        }
        uint64_t *kind = &layer_bytes[cfg->moe[i - 1]];
        if (!*kind)
            *kind = item_weight_bytes(cfg, f, td_dtype_size(compute), i);
        m.weight_bytes += *kind;
    }
    *out = m;
}
