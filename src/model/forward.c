/* forward.c - the forward pass of a dense Llama-style model, written once over the device table.
 *
 *   x = embed(ids)
 *   per layer:  x += o_proj(attention(rope(qk_norm(qkv(rmsnorm(x))))))
 *               x += down(silu(gate) * up) of rmsnorm(x)
 *   per recorded row:  capture(lm_head(rmsnorm(x[row])))
 *
 * The residual stream and everything between GEMMs is f32; only the inputs of GEMMs are in the
 * compute dtype. Samples are packed without padding; seq_offsets separates them in attention and
 * positions restart with each.
 */
#include "model/forward.h"

#include <math.h>

#include "tdgen/util.h"

/* One micro-batch on one stage, with the pointers that the operations take. */
typedef struct pass {
    const td_model_config *cfg;
    const td_device_ops *ops;
    td_stream *stream;
    td_dtype compute;
    int32_t n_tokens, n_seqs;
    const int32_t *positions, *seq_offsets, *seq_offsets_host;
    float *x;     /* [T, C] */
    void *narrow; /* TD_BUF_NARROW */
    float *wide;  /* TD_BUF_WIDE */
    const float *cos_table, *sin_table;
    td_error *err;
} pass;

static td_status norm(const pass *p, const float *weight) {
    int32_t C = p->cfg->n_hidden;
    return p->ops->rmsnorm(p->stream,
                           &(td_rmsnorm_args){.in = p->x,
                                              .weight = weight,
                                              .out = p->narrow,
                                              .out_dtype = p->compute,
                                              .n_rows = p->n_tokens,
                                              .n_cols = C,
                                              .n_inner = 1,
                                              .in_stride = C,
                                              .out_stride = C,
                                              .eps = p->cfg->rms_eps},
                           p->err);
}

/* wide = narrow W^T (+ bias), or x += that. */
static td_status project(const pass *p, const td_weight *w, const float *bias, bool into_x) {
    return p->ops->gemm(p->stream,
                        &(td_gemm_args){.weight = w,
                                        .in = p->narrow,
                                        .bias = bias,
                                        .out = into_x ? p->x : p->wide,
                                        .n_rows = p->n_tokens,
                                        .accumulate = into_x},
                        p->err);
}

static td_status head_norm(const pass *p, float *heads, int32_t n_heads, const float *weight,
                           int64_t stride) {
    return p->ops->rmsnorm(p->stream,
                           &(td_rmsnorm_args){.in = heads,
                                              .weight = weight,
                                              .out = heads,
                                              .out_dtype = TD_F32,
                                              .n_rows = p->n_tokens,
                                              .n_cols = p->cfg->head_dim,
                                              .n_inner = n_heads,
                                              .in_stride = stride,
                                              .out_stride = stride,
                                              .eps = p->cfg->rms_eps},
                           p->err);
}

static td_status attention_block(const pass *p, const td_layer_weights *l, int32_t layer) {
    const td_model_config *c = p->cfg;
    int32_t H = c->n_heads, Hkv = c->n_kv_heads, D = c->head_dim;
    int64_t stride = (int64_t)(H + 2 * Hkv) * D;
    float *q = p->wide, *k = q + (int64_t)H * D, *v = k + (int64_t)Hkv * D;
    td_status rc;
    if ((rc = norm(p, l->attn_norm)) != TD_OK ||
        (rc = project(p, l->qkv, l->qkv_bias, false)) != TD_OK)
        return rc;
    if (c->qk_norm && ((rc = head_norm(p, q, H, l->q_norm, stride)) != TD_OK ||
                       (rc = head_norm(p, k, Hkv, l->k_norm, stride)) != TD_OK))
        return rc;
    /* k follows q in the row: one call turns the heads of both. */
    rc = p->ops->rope(p->stream,
                      &(td_rope_args){.x = q,
                                      .positions = p->positions,
                                      .cos_table = p->cos_table,
                                      .sin_table = p->sin_table,
                                      .n_tokens = p->n_tokens,
                                      .n_heads = H + Hkv,
                                      .head_dim = D,
                                      .rotary_dim = D,
                                      .stride = stride},
                      p->err);
    if (rc != TD_OK)
        return rc;
    rc = p->ops->attention(
        p->stream,
        &(td_attention_args){.q = q,
                             .k = k,
                             .v = v,
                             .stride = stride,
                             .out = p->narrow,
                             .out_dtype = p->compute,
                             .seq_offsets = p->seq_offsets,
                             .seq_offsets_host = p->seq_offsets_host,
                             .n_seqs = p->n_seqs,
                             .n_heads = H,
                             .n_kv_heads = Hkv,
                             .head_dim = D,
                             .window = layer >= c->window_first_layer ? c->window : 0,
                             .scale = (float)(1.0 / sqrt((double)D))},
        p->err);
    if (rc != TD_OK)
        return rc;
    return project(p, l->o, l->o_bias, true);
}

static td_status ffn_block(const pass *p, const td_layer_weights *l) {
    td_status rc;
    if ((rc = norm(p, l->ffn_norm)) != TD_OK ||
        (rc = project(p, l->gate_up, l->gate_up_bias, false)) != TD_OK)
        return rc;
    rc = p->ops->gated_act(p->stream,
                           &(td_gated_act_args){.gate_up = p->wide,
                                                .out = p->narrow,
                                                .out_dtype = p->compute,
                                                .n_tokens = p->n_tokens,
                                                .n_cols = p->cfg->n_ffn},
                           p->err);
    if (rc != TD_OK)
        return rc;
    return project(p, l->down, l->down_bias, true);
}

/* Only recorded rows pass lm_head, capture_rows at a time: [T, V] logits never exist. The output
 * block is written by this stream alone, so the next micro-batch overwrites it only after the copy
 * at the end. */
static td_status capture_rows(const pass *p, const td_session_limits *lim,
                              const td_stage_state *stage, const td_forward_batch *b) {
    td_ints_layout il = td_ints_layout_of(b->n_tokens, b->n_seqs, b->n_rows);
    td_capture_layout ol = td_capture_layout_of(b->n_rows, lim->top_k, lim->n_temperatures);
    const char *ints = stage->buf[TD_BUF_INTS];
    char *out = stage->buf[TD_BUF_OUT];
    const int32_t *rows = (const int32_t *)(ints + il.rows);
    const int32_t *targets = (const int32_t *)(ints + il.targets);
    int32_t C = p->cfg->n_hidden;
    int64_t K = lim->top_k, nT = lim->n_temperatures;
    for (int32_t r = 0; r < b->n_rows; r += lim->capture_rows) {
        int32_t n = TD_MIN(lim->capture_rows, b->n_rows - r);
        td_status rc;
        rc = p->ops->rmsnorm(p->stream,
                             &(td_rmsnorm_args){.in = p->x,
                                                .row_index = rows + r,
                                                .weight = stage->weights->final_norm,
                                                .out = stage->buf[TD_BUF_HIDDEN],
                                                .out_dtype = p->compute,
                                                .n_rows = n,
                                                .n_cols = C,
                                                .n_inner = 1,
                                                .in_stride = C,
                                                .out_stride = C,
                                                .eps = p->cfg->rms_eps},
                             p->err);
        if (rc != TD_OK)
            return rc;
        rc = p->ops->gemm(p->stream,
                          &(td_gemm_args){.weight = stage->weights->lm_head,
                                          .in = stage->buf[TD_BUF_HIDDEN],
                                          .out = stage->buf[TD_BUF_LOGITS],
                                          .n_rows = n},
                          p->err);
        if (rc != TD_OK)
            return rc;
        rc = p->ops->capture(
            p->stream,
            &(td_capture_args){.logits = stage->buf[TD_BUF_LOGITS],
                               .targets = targets + r,
                               .n_rows = n,
                               .n_vocab = p->cfg->n_vocab,
                               .top_k = lim->top_k,
                               .n_temperatures = lim->n_temperatures,
                               .temperatures = lim->temperatures,
                               .topk_ids = (int32_t *)(out + ol.topk_ids) + r * K,
                               .topk_logprobs = (float *)(out + ol.topk_logprobs) + r * K,
                               .logsumexp = (float *)(out + ol.logsumexp) + r,
                               .logsumexp_t = nT ? (float *)(out + ol.logsumexp_t) + r * nT : NULL,
                               .tail_mass = (float *)(out + ol.tail_mass) + r,
                               .target_logprob = (float *)(out + ol.target_logprob) + r,
                               .target_rank = (int32_t *)(out + ol.target_rank) + r,
                               .entropy = (float *)(out + ol.entropy) + r},
            p->err);
        if (rc != TD_OK)
            return rc;
    }
    return b->n_rows ? p->ops->copy_out(p->stream, b->host_out, out, ol.size_bytes, p->err) : TD_OK;
}

/* Waits until the previous stage has filled its residual buffer, takes a copy, and hands the
 * buffer back. */
static td_status take_residual(const pass *p, td_stage_state *prev, int32_t i) {
    size_t size_bytes = (size_t)p->n_tokens * (size_t)p->cfg->n_hidden * 4;
    td_status rc;
    if ((rc = p->ops->stream_wait(p->stream, prev->ready[i], p->err)) != TD_OK ||
        (rc = p->ops->copy_peer(p->stream, p->x, prev->device, prev->buf[TD_BUF_X0 + i], size_bytes,
                                p->err)) != TD_OK ||
        (rc = p->ops->event_record(prev->copied[i], p->stream, p->err)) != TD_OK)
        return rc;
    prev->was_copied[i] = true;
    return TD_OK;
}

td_status td_stage_forward(const td_model_config *cfg, td_dtype compute,
                           const td_session_limits *lim, td_stage_state *prev,
                           td_stage_state *stage, const td_forward_batch *b, td_error *err) {
    bool is_last = stage->item_end == cfg->n_layers + 2;
    int32_t x = is_last ? 0 : b->parity;
    td_ints_layout il = td_ints_layout_of(b->n_tokens, b->n_seqs, b->n_rows);
    char *ints = stage->buf[TD_BUF_INTS];
    const td_device_ops *ops = stage->device->ops;
    pass p = {.cfg = cfg,
              .ops = ops,
              .stream = stage->stream,
              .compute = compute,
              .n_tokens = b->n_tokens,
              .n_seqs = b->n_seqs,
              .positions = (const int32_t *)(ints + il.positions),
              .seq_offsets = (const int32_t *)(ints + il.seq_offsets),
              .seq_offsets_host = (const int32_t *)((const char *)b->host_ints + il.seq_offsets),
              .x = stage->buf[TD_BUF_X0 + x],
              .narrow = stage->buf[TD_BUF_NARROW],
              .wide = stage->buf[TD_BUF_WIDE],
              .cos_table = stage->buf[TD_BUF_COS],
              .sin_table = stage->buf[TD_BUF_SIN],
              .err = err};
    td_status rc = ops->copy_in(stage->stream, ints, b->host_ints, il.size_bytes, err);
    if (rc != TD_OK)
        return rc;
    /* The next stage may still be reading what the micro-batch before last left here. */
    if (!is_last && stage->was_copied[x] &&
        (rc = ops->stream_wait(stage->stream, stage->copied[x], err)) != TD_OK)
        return rc;
    if (prev) {
        rc = take_residual(&p, prev, b->parity);
    } else {
        rc = ops->embed(stage->stream,
                        &(td_embed_args){.ids = (const int32_t *)(ints + il.ids),
                                         .table = stage->weights->embed_table,
                                         .table_dtype = compute,
                                         .out = p.x,
                                         .n_tokens = b->n_tokens,
                                         .n_cols = cfg->n_hidden},
                        err);
    }
    for (int32_t item = TD_MAX(stage->item_begin, 1);
         rc == TD_OK && item < TD_MIN(stage->item_end, cfg->n_layers + 1); item++) {
        const td_layer_weights *l = &stage->weights->layers[item - 1];
        rc = attention_block(&p, l, item - 1);
        if (rc == TD_OK)
            rc = ffn_block(&p, l);
    }
    if (rc != TD_OK)
        return rc;
    if (is_last)
        return capture_rows(&p, lim, stage, b);
    return ops->event_record(stage->ready[x], stage->stream, err);
}
