/* forward.c - the forward pass of every supported family, written once over the device table.
 *
 *   x = scale * embed(ids) (+ positions)
 *   per layer:  x += s * o_proj(mixer(norm(x))),  mixer = attention(rope(qk_norm(qkv)))
 *               x += s * ffn(norm(x)),  ffn = down(act(gate) * up), down(act(up)) or experts
 *   per recorded row:  capture(lm_head(norm(x[row])))
 *
 * With post norms what a block gives passes a norm before it is added; without pre norms a block
 * reads x as it is; with a parallel residual both blocks of a layer read the same x. What the two
 * blocks of a layer are is in its description (td_layer).
 *
 * The residual stream and everything between GEMMs is f32; only the inputs of GEMMs are in the
 * compute dtype. Samples are packed without padding; seq_offsets separates them in attention and
 * positions restart with each.
 */
#include "model/forward.h"

#include <math.h>

#include "base/memory.h"

/* One micro-batch on one stage, with the pointers that the operations take. */
typedef struct pass {
    const td_model_config *cfg;
    const td_device_ops *ops;
    td_stream *stream;
    td_dtype compute;
    int32_t n_tokens, n_seqs;
    const int32_t *rope_rows[TD_MAX_ROPE_TABLES]; /* [T] rows of the tables */
    const float *cos_table[TD_MAX_ROPE_TABLES], *sin_table[TD_MAX_ROPE_TABLES];
    const int32_t *seq_offsets, *seq_offsets_host;
    float *x;               /* [T, C] */
    void *narrow, *narrow2; /* TD_BUF_NARROW, TD_BUF_NARROW2 */
    float *wide;            /* TD_BUF_WIDE */
    void *qkv;              /* TD_BUF_QKV, or NULL: attention reads wide */
    void *experts;          /* TD_BUF_EXPERTS */
    td_error *err;
} pass;

/* What a block reads: the normalised x, or x itself, in the compute dtype. */
static td_status block_input(const pass *p, const float *weight, const float *bias, void *out) {
    int32_t C = p->cfg->n_hidden;
    return p->ops->norm(p->stream,
                        &(td_norm_args){.kind = weight ? p->cfg->norm_kind : TD_NORM_NONE,
                                        .in = p->x,
                                        .weight = weight,
                                        .bias = bias,
                                        .out = out,
                                        .out_dtype = p->compute,
                                        .n_rows = p->n_tokens,
                                        .n_cols = C,
                                        .n_inner = 1,
                                        .in_stride = C,
                                        .out_stride = C,
                                        .eps = p->cfg->norm_eps,
                                        .scale = 1},
                        p->err);
}

/* wide = in W^T (+ bias). */
static td_status project(const pass *p, const void *in, const td_weight *w, const float *bias) {
    return p->ops->gemm(
        p->stream,
        &(td_gemm_args){
            .weight = w, .in = in, .bias = bias, .out = p->wide, .n_rows = p->n_tokens, .scale = 1},
        p->err);
}

/* The end of a block: x += s * (narrow W^T + bias), through the post norm if there is one. */
static td_status add_to_residual(const pass *p, const td_weight *w, const float *bias,
                                 const float *post_norm) {
    const td_model_config *c = p->cfg;
    int32_t C = c->n_hidden;
    if (!post_norm)
        return p->ops->gemm(p->stream,
                            &(td_gemm_args){.weight = w,
                                            .in = p->narrow,
                                            .bias = bias,
                                            .out = p->x,
                                            .n_rows = p->n_tokens,
                                            .scale = c->residual_scale,
                                            .accumulate = true},
                            p->err);
    td_status rc = project(p, p->narrow, w, bias);
    if (rc != TD_OK)
        return rc;
    return p->ops->norm(p->stream,
                        &(td_norm_args){.kind = c->norm_kind,
                                        .in = p->wide,
                                        .weight = post_norm,
                                        .out = p->x,
                                        .out_dtype = TD_F32,
                                        .n_rows = p->n_tokens,
                                        .n_cols = C,
                                        .n_inner = 1,
                                        .in_stride = C,
                                        .out_stride = C,
                                        .eps = c->norm_eps,
                                        .accumulate = true,
                                        .scale = c->residual_scale},
                        p->err);
}

/* Norm of q or k in place, over each head or over all of them at once. */
static td_status qk_norm(const pass *p, const td_attention *a, float *heads, int32_t n_heads,
                         const float *weight, int64_t stride) {
    const td_model_config *c = p->cfg;
    bool full = a->qk_norm == TD_QK_NORM_FULL;
    return p->ops->norm(p->stream,
                        &(td_norm_args){.kind = c->norm_kind,
                                        .in = heads,
                                        .weight = weight,
                                        .out = heads,
                                        .out_dtype = TD_F32,
                                        .n_rows = p->n_tokens,
                                        .n_cols = full ? n_heads * a->head_dim : a->head_dim,
                                        .n_inner = full ? 1 : n_heads,
                                        .in_stride = stride,
                                        .out_stride = stride,
                                        .eps = c->norm_eps,
                                        .scale = 1},
                        p->err);
}

/* From the block's input to what o_proj reads, in narrow. */
static td_status attend(const pass *p, const td_layer_weights *l, const td_attention *a,
                        const void *in) {
    int32_t H = a->n_heads, Hkv = a->n_kv_heads, D = a->head_dim, table = a->rope;
    int64_t stride = (int64_t)(H + 2 * Hkv) * D;
    float *q = p->wide, *k = q + (int64_t)H * D;
    td_status rc = project(p, in, l->mat[TD_LM_QKV], l->vec[TD_LV_QKV_BIAS]);
    if (rc != TD_OK)
        return rc;
    if (a->qk_norm != TD_QK_NORM_NONE &&
        ((rc = qk_norm(p, a, q, H, l->vec[TD_LV_Q_NORM], stride)) != TD_OK ||
         (rc = qk_norm(p, a, k, Hkv, l->vec[TD_LV_K_NORM], stride)) != TD_OK))
        return rc;
    /* k follows q in the row: one call turns the heads of both, and takes v along where attention
     * reads all three in the compute dtype. */
    if (table >= 0 || p->qkv)
        rc = p->ops->rope(
            p->stream,
            &(td_rope_args){.x = q,
                            .out = p->qkv,
                            .out_dtype = p->compute,
                            .n_plain_heads = p->qkv ? Hkv : 0,
                            .positions = table >= 0 ? p->rope_rows[table] : NULL,
                            .cos_table = table >= 0 ? p->cos_table[table] : NULL,
                            .sin_table = table >= 0 ? p->sin_table[table] : NULL,
                            .n_tokens = p->n_tokens,
                            .n_heads = H + Hkv,
                            .head_dim = D,
                            .rotary_dim = table >= 0 ? p->cfg->rope[table].rotary_dim : D,
                            .stride = stride},
            p->err);
    if (rc != TD_OK)
        return rc;
    size_t elem = td_dtype_size(p->qkv ? p->compute : TD_F32);
    const char *heads = p->qkv ? p->qkv : q;
    return p->ops->attention(p->stream,
                             &(td_attention_args){.q = heads,
                                                  .k = heads + (size_t)H * (size_t)D * elem,
                                                  .v = heads + (size_t)(H + Hkv) * (size_t)D * elem,
                                                  .in_dtype = p->qkv ? p->compute : TD_F32,
                                                  .stride = stride,
                                                  .out = p->narrow,
                                                  .out_dtype = p->compute,
                                                  .seq_offsets = p->seq_offsets,
                                                  .seq_offsets_host = p->seq_offsets_host,
                                                  .n_seqs = p->n_seqs,
                                                  .n_heads = H,
                                                  .n_kv_heads = Hkv,
                                                  .head_dim = D,
                                                  .window = a->window,
                                                  .scale = a->scale,
                                                  .softcap = a->softcap},
                             p->err);
}

/* From the block's input to what the output projection reads, in narrow. */
static td_status mix(const pass *p, const td_layer_weights *l, const td_mixer *m, const void *in) {
    switch (m->kind) {
    case TD_MIXER_ATTENTION:
        return attend(p, l, &m->attention, in);
    }
    return td_error_set(p->err, TD_E_INTERNAL, "there is no mixer of kind %d", (int)m->kind);
}

static td_status run_dense(const pass *p, const td_layer_weights *l, const td_dense *d,
                           const void *in) {
    td_status rc = project(p, in, l->mat[TD_LM_UP], l->vec[TD_LV_UP_BIAS]);
    if (rc != TD_OK)
        return rc;
    rc = p->ops->act(p->stream,
                     &(td_act_args){.act = d->act,
                                    .gated = d->gated,
                                    .in = p->wide,
                                    .out = p->narrow,
                                    .out_dtype = p->compute,
                                    .n_tokens = p->n_tokens,
                                    .n_cols = d->n_ffn},
                     p->err);
    if (rc != TD_OK)
        return rc;
    return add_to_residual(p, l->mat[TD_LM_DOWN], l->vec[TD_LV_DOWN_BIAS],
                           l->vec[TD_LV_POST_FFN_NORM]);
}

static td_status run_experts(const pass *p, const td_layer_weights *l, const td_experts *e,
                             const void *in) {
    return p->ops->moe(p->stream,
                       &(td_moe_args){.router = l->mat[TD_LM_ROUTER],
                                      .gate_up = (const td_weight *const *)l->expert_up,
                                      .down = (const td_weight *const *)l->expert_down,
                                      .act = e->act,
                                      .in = in,
                                      .out = p->x,
                                      .scratch = p->experts,
                                      .n_tokens = p->n_tokens,
                                      .n_cols = p->cfg->n_hidden,
                                      .n_ffn = e->n_ffn,
                                      .n_experts = e->n_experts,
                                      .top_k = e->n_used,
                                      .normalise = e->normalise,
                                      .scale = p->cfg->residual_scale},
                       p->err);
}

/* From the block's input to x. */
static td_status run_ffn(const pass *p, const td_layer_weights *l, const td_ffn *f,
                         const void *in) {
    switch (f->kind) {
    case TD_FFN_DENSE:
        return run_dense(p, l, &f->dense, in);
    case TD_FFN_EXPERTS:
        return run_experts(p, l, &f->experts, in);
    }
    return td_error_set(p->err, TD_E_INTERNAL, "there is no ffn of kind %d", (int)f->kind);
}

static td_status layer_forward(const pass *p, const td_layer *layer, const td_layer_weights *l) {
    const td_model_config *c = p->cfg;
    const float *norm2 = l->vec[c->shared_norm ? TD_LV_ATTN_NORM : TD_LV_FFN_NORM];
    const float *bias2 = l->vec[c->shared_norm ? TD_LV_ATTN_NORM_BIAS : TD_LV_FFN_NORM_BIAS];
    void *ffn_in = c->parallel_residual ? p->narrow2 : p->narrow;
    td_status rc = block_input(p, l->vec[TD_LV_ATTN_NORM], l->vec[TD_LV_ATTN_NORM_BIAS], p->narrow);
    /* Before the mixer changes x. */
    if (rc == TD_OK && c->parallel_residual)
        rc = block_input(p, norm2, bias2, ffn_in);
    if (rc == TD_OK)
        rc = mix(p, l, &layer->mixer, p->narrow);
    if (rc == TD_OK)
        rc =
            add_to_residual(p, l->mat[TD_LM_O], l->vec[TD_LV_O_BIAS], l->vec[TD_LV_POST_ATTN_NORM]);
    if (rc == TD_OK && !c->parallel_residual)
        rc = block_input(p, norm2, bias2, ffn_in);
    return rc == TD_OK ? run_ffn(p, l, &layer->ffn, ffn_in) : rc;
}

/* Where the captured values of the micro-batch's rows lie on the device. */
typedef struct capture_block {
    td_ints_layout in;
    td_capture_layout out;
    const char *ints;
    char *values;
} capture_block;

static td_capture_args capture_args(const pass *p, const td_capture_spec *spec,
                                    const float *temperatures, const td_stage_state *stage,
                                    const capture_block *c, int32_t r, int32_t n) {
    int64_t K = spec->top_k, nT = spec->n_temperatures, D = spec->n_draws;
    const td_capture_layout *l = &c->out;
    char *out = c->values;
    td_capture_args a = {.logits = stage->buf[TD_BUF_LOGITS],
                         .targets = (const int32_t *)(c->ints + c->in.targets) + r,
                         .n_rows = n,
                         .n_vocab = p->cfg->n_vocab,
                         .n_valid = spec->n_valid,
                         .divisor = p->cfg->logits_divisor,
                         .softcap = p->cfg->logits_softcap,
                         .top_k = spec->top_k,
                         .n_temperatures = spec->n_temperatures,
                         .temperatures = temperatures,
                         .topk_ids = (int32_t *)(out + l->topk_ids) + r * K,
                         .topk_logprobs = (float *)(out + l->topk_logprobs) + r * K,
                         .logsumexp = (float *)(out + l->logsumexp) + r,
                         .logsumexp_t = nT ? (float *)(out + l->logsumexp_t) + r * nT : NULL,
                         .tail_mass = (float *)(out + l->tail_mass) + r,
                         .target_logprob = (float *)(out + l->target_logprob) + r,
                         .target_rank = (int32_t *)(out + l->target_rank) + r,
                         .entropy = (float *)(out + l->entropy) + r,
                         .n_always = spec->n_always,
                         .always_ids = spec->always_ids,
                         .always_logprobs =
                             (float *)(out + l->always_logprobs) + (int64_t)r * spec->n_always};
    if (td_capture_has_topp(spec->mode)) {
        a.top_p = spec->top_p;
        a.min_k = spec->min_k;
        a.n_kept = (int32_t *)(out + l->n_kept) + r;
    }
    if (D) {
        a.n_draws = spec->n_draws;
        a.proposal_power = (float)spec->proposal_power;
        a.seed = spec->seed;
        a.dataset_rows = (const int64_t *)(c->ints + c->in.dataset_rows) + r;
        a.positions = (const int64_t *)(c->ints + c->in.row_positions) + r;
        a.n_unique = (int32_t *)(out + l->n_unique) + r;
        a.draw_ids = (int32_t *)(out + l->draw_ids) + r * D;
        a.draw_counts = (int32_t *)(out + l->draw_counts) + r * D;
        a.draw_logprobs = (float *)(out + l->draw_logprobs) + r * D;
        a.proposal_logsumexp = (float *)(out + l->proposal_logsumexp) + r;
    }
    if (spec->mode == TD_CAPTURE_FULL) {
        a.dense = stage->buf[TD_BUF_DENSE];
        a.dense_dtype = spec->dense_dtype;
    }
    return a;
}

/* A chunk of rows, from its normalised states in TD_BUF_HIDDEN on. *dense: what is to be copied
 * out, or NULL. */
static td_status capture_chunk(const pass *p, const td_capture_spec *spec,
                               const td_stage_state *stage, const capture_block *c, int32_t r,
                               int32_t n, const void **dense) {
    *dense = stage->buf[TD_BUF_DENSE];
    if (spec->mode == TD_CAPTURE_HIDDEN) {
        if (*dense)
            return p->ops->convert(p->stream,
                                   &(td_convert_args){.in = stage->buf[TD_BUF_HIDDEN],
                                                      .in_dtype = p->compute,
                                                      .out = stage->buf[TD_BUF_DENSE],
                                                      .out_dtype = spec->dense_dtype,
                                                      .n = (int64_t)n * p->cfg->n_hidden},
                                   p->err);
        *dense = stage->buf[TD_BUF_HIDDEN];
        return TD_OK;
    }
    td_status rc = p->ops->gemm(p->stream,
                                &(td_gemm_args){.weight = stage->weights->lm_head,
                                                .in = stage->buf[TD_BUF_HIDDEN],
                                                .out = stage->buf[TD_BUF_LOGITS],
                                                .n_rows = n,
                                                .scale = 1},
                                p->err);
    if (rc != TD_OK)
        return rc;
    float temperatures[TD_MAX_TEMPERATURES];
    for (int32_t i = 0; i < spec->n_temperatures; i++)
        temperatures[i] = (float)spec->temperatures[i];
    td_capture_args a = capture_args(p, spec, temperatures, stage, c, r, n);
    return p->ops->capture(p->stream, &a, p->err);
}

/* Only recorded rows pass lm_head, capture_rows at a time: [T, V] logits never exist on the device.
 * The output block and the chunk's buffers are written by this stream alone, so what comes next
 * overwrites them only after the copies. */
static td_status capture_rows(const pass *p, const td_session_limits *lim,
                              const td_capture_spec *spec, const td_stage_state *stage,
                              const td_forward_batch *b) {
    capture_block c = {td_ints_layout_of(p->cfg, spec, b->n_tokens, b->n_seqs, b->n_rows),
                       td_capture_layout_of(spec, b->n_rows), stage->buf[TD_BUF_INTS],
                       stage->buf[TD_BUF_OUT]};
    const int32_t *rows = (const int32_t *)(c.ints + c.in.rows);
    const uint64_t dense_row = td_capture_dense_bytes(spec);
    int32_t C = p->cfg->n_hidden;
    for (int32_t r = 0; r < b->n_rows; r += lim->capture_rows) {
        int32_t n = TD_MIN(lim->capture_rows, b->n_rows - r);
        td_status rc;
        rc = p->ops->norm(p->stream,
                          &(td_norm_args){.kind = p->cfg->norm_kind,
                                          .in = p->x,
                                          .row_index = rows + r,
                                          .weight = stage->weights->final_norm,
                                          .bias = stage->weights->final_norm_bias,
                                          .out = stage->buf[TD_BUF_HIDDEN],
                                          .out_dtype = p->compute,
                                          .n_rows = n,
                                          .n_cols = C,
                                          .n_inner = 1,
                                          .in_stride = C,
                                          .out_stride = C,
                                          .eps = p->cfg->norm_eps,
                                          .scale = 1},
                          p->err);
        const void *dense = NULL;
        if (rc == TD_OK)
            rc = capture_chunk(p, spec, stage, &c, r, n, &dense);
        if (rc == TD_OK && dense)
            rc = p->ops->copy_out(p->stream, (char *)b->host_dense + (uint64_t)r * dense_row, dense,
                                  (uint64_t)n * dense_row, p->err);
        if (rc != TD_OK)
            return rc;
    }
    return b->n_rows && c.out.size_bytes
               ? p->ops->copy_out(p->stream, b->host_out, c.values, c.out.size_bytes, p->err)
               : TD_OK;
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

static td_status embed(const pass *p, const td_stage_state *stage, const char *ints,
                       const td_ints_layout *il) {
    const td_model_config *c = p->cfg;
    float scale = c->embed_scale;
    if (c->embed_scale_rounded && p->compute == TD_BF16)
        scale = td_bf16_to_f32(td_f32_to_bf16(scale));
    else if (c->embed_scale_rounded && p->compute == TD_F16)
        scale = td_f16_to_f32(td_f32_to_f16(scale));
    td_embed_args a = {.ids = (const int32_t *)(ints + il->ids),
                       .table = stage->weights->embed_table,
                       .table_dtype = p->compute,
                       .out = p->x,
                       .n_tokens = p->n_tokens,
                       .n_cols = c->n_hidden,
                       .scale = scale};
    td_status rc = p->ops->embed(p->stream, &a, p->err);
    if (rc != TD_OK || !c->learned_positions)
        return rc;
    a.ids = (const int32_t *)(ints + il->positions);
    a.table = stage->weights->position_table;
    a.scale = 1;
    a.accumulate = true;
    return p->ops->embed(p->stream, &a, p->err);
}

/* The rows of dynamic ropes for the sequences that are longer than the model's context. */
static td_status take_dynamic_ropes(const pass *p, const td_stage_state *stage,
                                    const td_forward_batch *b) {
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && i < b->n_dynamic; i++) {
        const td_dynamic_rope *d = &b->dynamic[i];
        size_t at = (size_t)d->first_elem, n = (size_t)b->n_tokens * (size_t)d->n_cols;
        rc = p->ops->copy_in(p->stream, (float *)stage->buf[TD_BUF_COS] + at, d->cos_rows, n * 4,
                             p->err);
        if (rc == TD_OK)
            rc = p->ops->copy_in(p->stream, (float *)stage->buf[TD_BUF_SIN] + at, d->sin_rows,
                                 n * 4, p->err);
    }
    return rc;
}

td_status td_stage_forward(const td_model_config *cfg, td_dtype compute,
                           const td_session_limits *lim, const td_capture_spec *spec,
                           td_stage_state *prev, td_stage_state *stage, const td_forward_batch *b,
                           td_error *err) {
    bool is_last = stage->item_end == cfg->n_layers + 2;
    int32_t x = is_last ? 0 : b->parity;
    td_ints_layout il = td_ints_layout_of(cfg, spec, b->n_tokens, b->n_seqs, b->n_rows);
    char *ints = stage->buf[TD_BUF_INTS];
    const td_device_ops *ops = stage->device->ops;
    pass p = {.cfg = cfg,
              .ops = ops,
              .stream = stage->stream,
              .compute = compute,
              .n_tokens = b->n_tokens,
              .n_seqs = b->n_seqs,
              .seq_offsets = (const int32_t *)(ints + il.seq_offsets),
              .seq_offsets_host = (const int32_t *)((const char *)b->host_ints + il.seq_offsets),
              .x = stage->buf[TD_BUF_X0 + x],
              .narrow = stage->buf[TD_BUF_NARROW],
              .narrow2 = stage->buf[TD_BUF_NARROW2],
              .wide = stage->buf[TD_BUF_WIDE],
              .qkv = stage->buf[TD_BUF_QKV],
              .experts = stage->buf[TD_BUF_EXPERTS],
              .err = err};
    td_rope_layout rope = td_rope_layout_of(cfg, lim->max_tokens);
    for (int32_t k = 0; k < cfg->n_ropes && stage->buf[TD_BUF_COS]; k++) {
        p.rope_rows[k] = (const int32_t *)(ints + il.rope_rows[k]);
        p.cos_table[k] = (const float *)stage->buf[TD_BUF_COS] + rope.first_elem[k];
        p.sin_table[k] = (const float *)stage->buf[TD_BUF_SIN] + rope.first_elem[k];
    }
    td_status rc = ops->copy_in(stage->stream, ints, b->host_ints, il.size_bytes, err);
    if (rc == TD_OK && stage->buf[TD_BUF_COS])
        rc = take_dynamic_ropes(&p, stage, b);
    if (rc != TD_OK)
        return rc;
    /* The next stage may still be reading what the micro-batch before last left here. */
    if (!is_last && stage->was_copied[x] &&
        (rc = ops->stream_wait(stage->stream, stage->copied[x], err)) != TD_OK)
        return rc;
    if (prev) {
        rc = take_residual(&p, prev, b->parity);
    } else {
        rc = embed(&p, stage, ints, &il);
    }
    for (int32_t item = TD_MAX(stage->item_begin, 1);
         rc == TD_OK && item < TD_MIN(stage->item_end, cfg->n_layers + 1); item++) {
        rc = layer_forward(&p, &cfg->layers[item - 1], &stage->weights->layers[item - 1]);
    }
    if (rc != TD_OK)
        return rc;
    if (is_last)
        return capture_rows(&p, lim, spec, stage, b);
    return ops->event_record(stage->ready[x], stage->stream, err);
}
