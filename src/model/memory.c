/* memory.c - sizes of a stage's weights and buffers (stage_buffers.h): pure arithmetic over the
 * descriptions of its layers. The planner asks for many ranges of many layers, so a range costs a
 * few comparisons per layer.
 */
#include "model/stage_buffers.h"

#include <string.h>

#include "model/shapes.h"
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
        int64_t n_rows = limit;
        if (limit < max_tokens) {
            n_rows += max_tokens;
            if (r->type == TD_ROPE_DYNAMIC)
                l.n_dynamic_elems += (int64_t)max_tokens * (r->rotary_dim / 2);
        }
        l.limit[k] = limit;
        l.first_elem[k] = l.n_elems;
        l.n_elems += n_rows * (r->rotary_dim / 2);
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
    l.n_kept = take(&l.size_bytes, td_capture_has_topp(spec->mode) ? n_rows : 0);
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

/* The layers of a range, by what they need: models have many layers of few kinds. */
typedef struct layer_kinds {
    int32_t n;
    const td_layer *like[TD_MAX_LAYERS]; /* the first of its kind */
    int32_t count[TD_MAX_LAYERS];
} layer_kinds;

static bool same_mixer_size(const td_mixer *x, const td_mixer *y) {
    const td_attention *a = &x->attention, *b = &y->attention;
    return x->kind == y->kind && a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads &&
           a->head_dim == b->head_dim && a->qk_norm == b->qk_norm && a->qkv_bias == b->qkv_bias &&
           a->o_bias == b->o_bias;
}

static bool same_ffn_size(const td_ffn *x, const td_ffn *y) {
    if (x->kind != y->kind)
        return false;
    if (x->kind == TD_FFN_DENSE)
        return x->dense.n_ffn == y->dense.n_ffn && x->dense.gated == y->dense.gated &&
               x->dense.bias == y->dense.bias;
    return x->experts.n_experts == y->experts.n_experts && x->experts.n_ffn == y->experts.n_ffn &&
           x->experts.n_used == y->experts.n_used;
}

static void find_kinds(const td_model_config *cfg, int32_t item_begin, int32_t item_end,
                       layer_kinds *out) {
    out->n = 0;
    for (int32_t i = TD_MAX(item_begin, 1); i < TD_MIN(item_end, cfg->n_layers + 1); i++) {
        const td_layer *l = &cfg->layers[i - 1];
        int32_t k = 0;
        while (k < out->n && !(same_ffn_size(&l->ffn, &out->like[k]->ffn) &&
                               same_mixer_size(&l->mixer, &out->like[k]->mixer)))
            k++;
        if (k == out->n) {
            out->like[k] = l;
            out->count[out->n++] = 0;
        }
        out->count[k]++;
    }
}

/* Of the buffers that all layers of a stage share: the largest of what each needs. */
typedef struct layer_needs {
    int64_t narrow_cols, wide_cols, qkv_cols; /* of TD_BUF_NARROW, TD_BUF_WIDE, TD_BUF_QKV */
    uint64_t expert_bytes;                    /* TD_BUF_EXPERTS */
} layer_needs;

static void add_mixer_needs(const td_mixer *m, layer_needs *n) {
    switch (m->kind) {
    case TD_MIXER_ATTENTION: {
        const td_attention *a = &m->attention;
        int64_t q = (int64_t)a->n_heads * a->head_dim, kv = (int64_t)a->n_kv_heads * a->head_dim;
        n->narrow_cols = TD_MAX(n->narrow_cols, q);
        n->wide_cols = TD_MAX(n->wide_cols, q + 2 * kv);
        n->qkv_cols = TD_MAX(n->qkv_cols, q + 2 * kv);
        break;
    }
    }
}

static void add_ffn_needs(const td_model_config *cfg, const td_ffn *f, int32_t max_tokens,
                          td_dtype compute, layer_needs *n) {
    switch (f->kind) {
    case TD_FFN_DENSE: {
        int64_t F = f->dense.n_ffn;
        n->narrow_cols = TD_MAX(n->narrow_cols, F);
        n->wide_cols = TD_MAX(n->wide_cols, f->dense.gated ? 2 * F : F);
        break;
    }
    case TD_FFN_EXPERTS: {
        const td_experts *e = &f->experts;
        uint64_t size_bytes = td_moe_scratch_bytes(max_tokens, cfg->n_hidden, e->n_ffn,
                                                   e->n_experts, e->n_used, compute);
        n->expert_bytes = TD_MAX(n->expert_bytes, size_bytes);
        break;
    }
    }
}

static layer_needs needs_of(const td_model_config *cfg, td_dtype compute, int32_t max_tokens,
                            const layer_kinds *kinds) {
    layer_needs n = {.narrow_cols = cfg->n_hidden, .wide_cols = cfg->post_norm ? cfg->n_hidden : 0};
    for (int32_t k = 0; k < kinds->n; k++) {
        add_mixer_needs(&kinds->like[k]->mixer, &n);
        add_ffn_needs(cfg, &kinds->like[k]->ffn, max_tokens, compute, &n);
    }
    return n;
}

static void buffer_sizes(const td_model_config *cfg, td_dtype compute, const td_session_limits *lim,
                         const td_capture_spec *spec, int32_t item_end, const layer_kinds *kinds,
                         uint64_t size_bytes[TD_BUF_COUNT]) {
    uint64_t T = (uint64_t)lim->max_tokens, Rc = (uint64_t)TD_MIN(lim->capture_rows, lim->max_rows);
    uint64_t C = (uint64_t)cfg->n_hidden, V = (uint64_t)cfg->n_vocab, cs = td_dtype_size(compute);
    layer_needs needs = needs_of(cfg, compute, lim->max_tokens, kinds);
    bool is_last = item_end == cfg->n_layers + 2;

    memset(size_bytes, 0, TD_BUF_COUNT * sizeof *size_bytes);
    size_bytes[TD_BUF_INTS] =
        td_ints_layout_of(cfg, spec, lim->max_tokens, lim->max_seqs, lim->max_rows).size_bytes;
    size_bytes[TD_BUF_X0] = T * C * 4;
    if (!is_last)
        size_bytes[TD_BUF_X1] = T * C * 4;
    if (kinds->n) {
        size_bytes[TD_BUF_NARROW] = T * (uint64_t)needs.narrow_cols * cs;
        if (cfg->parallel_residual)
            size_bytes[TD_BUF_NARROW2] = T * C * cs;
        size_bytes[TD_BUF_WIDE] = T * (uint64_t)needs.wide_cols * 4;
        if (lim->narrow_attention && compute != TD_F32)
            size_bytes[TD_BUF_QKV] = T * (uint64_t)needs.qkv_cols * cs;
        size_bytes[TD_BUF_COS] = size_bytes[TD_BUF_SIN] =
            (uint64_t)td_rope_layout_of(cfg, lim->max_tokens).n_elems * 4;
        size_bytes[TD_BUF_EXPERTS] = needs.expert_bytes;
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

void td_stage_buffer_sizes(const td_model_config *cfg, td_dtype compute,
                           const td_session_limits *lim, const td_capture_spec *spec,
                           int32_t item_begin, int32_t item_end,
                           uint64_t size_bytes[TD_BUF_COUNT]) {
    layer_kinds kinds;
    find_kinds(cfg, item_begin, item_end, &kinds);
    buffer_sizes(cfg, compute, lim, spec, item_end, &kinds, size_bytes);
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
    uint64_t size_bytes[TD_BUF_COUNT], cs = td_dtype_size(compute);
    const td_family *f = td_family_find(cfg->architecture);
    td_stage_memory m = {0};
    layer_kinds kinds;
    find_kinds(cfg, item_begin, item_end, &kinds);
    buffer_sizes(cfg, compute, lim, spec, item_end, &kinds, size_bytes);
    for (int b = 0; b < TD_BUF_COUNT; b++)
        *(b < TD_BUF_FIRST_WORKSPACE ? &m.activation_bytes : &m.workspace_bytes) += size_bytes[b];
    for (int32_t k = 0; f && k < kinds.n; k++) {
        int32_t item = (int32_t)(kinds.like[k] - cfg->layers) + 1;
        m.weight_bytes += (uint64_t)kinds.count[k] * item_weight_bytes(cfg, f, cs, item);
    }
    if (f && item_begin == 0 && item_end > 0)
        m.weight_bytes += item_weight_bytes(cfg, f, cs, 0);
    if (f && item_begin <= cfg->n_layers + 1 && item_end > cfg->n_layers + 1)
        m.weight_bytes += item_weight_bytes(cfg, f, cs, cfg->n_layers + 1);
    *out = m;
}
