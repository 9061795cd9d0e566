/* shapes.c - the tensors of a layer, from its description (shapes.h). */
#include "model/shapes.h"

#include "base/memory.h"

static td_shape matrix_if(bool there, int64_t rows, int64_t cols) {
    return (td_shape){there ? rows : 0, cols};
}

static td_shape vector_if(bool there, int64_t n) {
    return (td_shape){there ? n : 0, 0};
}

td_shape td_model_tensor_shape(const td_model_config *c, td_model_tensor which) {
    switch (which) {
    case TD_MT_EMBED:
        return matrix_if(true, c->n_vocab, c->n_hidden);
    case TD_MT_POSITIONS:
        return matrix_if(c->learned_positions, c->max_positions, c->n_hidden);
    case TD_MT_FINAL_NORM:
        return vector_if(true, c->n_hidden);
    case TD_MT_FINAL_NORM_BIAS:
        return vector_if(c->norm_bias, c->n_hidden);
    case TD_MT_LM_HEAD:
        return matrix_if(!c->tied_embeddings, c->n_vocab, c->n_hidden);
    case TD_MT_COUNT:
        break;
    }
    return vector_if(false, 0);
}

/* NULL where the layer has another mixer. */
static const td_attention *attention_of(const td_layer *l) {
    return l->mixer.kind == TD_MIXER_ATTENTION ? &l->mixer.attention : NULL;
}

static const td_dense *dense_of(const td_layer *l) {
    return l->ffn.kind == TD_FFN_DENSE ? &l->ffn.dense : NULL;
}

static td_shape attention_shape(const td_attention *a, int64_t C, td_layer_tensor which) {
    int64_t D = a->head_dim, q = a->n_heads * D, kv = a->n_kv_heads * D;
    bool over_all = a->qk_norm == TD_QK_NORM_FULL;
    switch (which) {
    case TD_LT_Q:
        return matrix_if(true, q, C);
    case TD_LT_K:
    case TD_LT_V:
        return matrix_if(true, kv, C);
    case TD_LT_QKV:
        return matrix_if(true, q + 2 * kv, C);
    case TD_LT_Q_BIAS:
        return vector_if(a->qkv_bias, q);
    case TD_LT_K_BIAS:
    case TD_LT_V_BIAS:
        return vector_if(a->qkv_bias, kv);
    case TD_LT_QKV_BIAS:
        return vector_if(a->qkv_bias, q + 2 * kv);
    case TD_LT_Q_NORM:
        return vector_if(a->qk_norm != TD_QK_NORM_NONE, over_all ? q : D);
    case TD_LT_K_NORM:
        return vector_if(a->qk_norm != TD_QK_NORM_NONE, over_all ? kv : D);
    case TD_LT_O:
        return matrix_if(true, C, q);
    default: /* TD_LT_O_BIAS */
        return vector_if(a->o_bias, C);
    }
}

static td_shape dense_shape(const td_dense *d, int64_t C, td_layer_tensor which) {
    int64_t F = d->n_ffn;
    switch (which) {
    case TD_LT_GATE:
        return matrix_if(d->gated, F, C);
    case TD_LT_UP:
        return matrix_if(true, F, C);
    case TD_LT_GATE_UP:
        return matrix_if(true, 2 * F, C);
    case TD_LT_GATE_BIAS:
        return vector_if(d->gated && d->bias, F);
    case TD_LT_UP_BIAS:
        return vector_if(d->bias, F);
    case TD_LT_DOWN:
        return matrix_if(true, C, F);
    default: /* TD_LT_DOWN_BIAS */
        return vector_if(d->bias, C);
    }
}

td_shape td_layer_tensor_shape(const td_model_config *c, const td_family *f, int32_t layer,
                               td_layer_tensor which) {
    const td_layer *l = &c->layers[layer];
    const td_attention *attention = attention_of(l);
    const td_dense *dense = dense_of(l);
    int64_t C = c->n_hidden;
    if (!f->layer_names[which])
        return vector_if(false, 0);
    switch (which) {
    case TD_LT_ATTN_NORM:
        return vector_if(c->pre_norm, C);
    case TD_LT_FFN_NORM:
        return vector_if(c->pre_norm && !c->shared_norm, C);
    case TD_LT_ATTN_NORM_BIAS:
        return vector_if(c->pre_norm && c->norm_bias, C);
    case TD_LT_FFN_NORM_BIAS:
        return vector_if(c->pre_norm && c->norm_bias && !c->shared_norm, C);
    case TD_LT_POST_ATTN_NORM:
    case TD_LT_POST_FFN_NORM:
        return vector_if(c->post_norm, C);
    case TD_LT_Q:
    case TD_LT_K:
    case TD_LT_V:
    case TD_LT_QKV:
    case TD_LT_Q_BIAS:
    case TD_LT_K_BIAS:
    case TD_LT_V_BIAS:
    case TD_LT_QKV_BIAS:
    case TD_LT_Q_NORM:
    case TD_LT_K_NORM:
    case TD_LT_O:
    case TD_LT_O_BIAS:
        return attention ? attention_shape(attention, C, which) : vector_if(false, 0);
    case TD_LT_GATE:
    case TD_LT_UP:
    case TD_LT_GATE_UP:
    case TD_LT_GATE_BIAS:
    case TD_LT_UP_BIAS:
    case TD_LT_DOWN:
    case TD_LT_DOWN_BIAS:
        return dense ? dense_shape(dense, C, which) : vector_if(false, 0);
    case TD_LT_ROUTER:
        return matrix_if(!dense, td_layer_experts(l), C);
    case TD_LT_COUNT:
        break;
    }
    return vector_if(false, 0);
}

int32_t td_layer_experts(const td_layer *l) {
    return l->ffn.kind == TD_FFN_EXPERTS ? l->ffn.experts.n_experts : 0;
}

td_shape td_expert_tensor_shape(const td_model_config *c, int32_t layer, td_expert_tensor which) {
    int64_t C = c->n_hidden, F = c->layers[layer].ffn.experts.n_ffn;
    return which == TD_ET_DOWN ? matrix_if(true, C, F) : matrix_if(true, F, C);
}

void td_layer_elements(const td_model_config *c, const td_family *f, int32_t layer,
                       int64_t *in_matrices, int64_t *in_vectors) {
    int64_t n_experts = td_layer_experts(&c->layers[layer]);
    *in_matrices = *in_vectors = 0;
    for (int i = 0; i < TD_LT_COUNT; i++) {
        td_shape s = td_layer_tensor_shape(c, f, layer, (td_layer_tensor)i);
        *(s.cols ? in_matrices : in_vectors) += s.rows * TD_MAX(s.cols, 1);
    }
    for (int i = 0; n_experts && i < TD_ET_COUNT; i++) {
        td_shape s = td_expert_tensor_shape(c, layer, (td_expert_tensor)i);
        *in_matrices += n_experts * s.rows * s.cols;
    }
}
