/* reference.c - see reference.h. */
#include "reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"

static const float *tensor(const fx_model *m, int32_t layer, const char *name) {
    char full[96];
    snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    return fx_find(m, full)->values;
}

static void norm(const double *x, const float *w, double eps, int32_t n, double *out) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (int32_t i = 0; i < n; i++)
        out[i] = x[i] / sqrt(sum / n + eps) * w[i];
}

static void project(const double *x, const float *w, const float *bias, int32_t n_in, int32_t n_out,
                    double *out) {
    for (int32_t o = 0; o < n_out; o++) {
        out[o] = bias ? bias[o] : 0;
        for (int32_t i = 0; i < n_in; i++)
            out[o] += w[(int64_t)o * n_in + i] * x[i];
    }
}

/* Only what the fixtures use: default and linear scaling. */
static void rotate(const td_model_config *c, double *head, int32_t position) {
    int32_t D = c->layers[0].mixer.attention.head_dim, half = D / 2;
    double factor = c->rope[0].type == TD_ROPE_LINEAR ? c->rope[0].factor : 1.0;
    for (int32_t i = 0; i < half; i++) {
        double angle = position / factor / pow(c->rope[0].theta, 2.0 * i / D);
        double a = head[i], b = head[i + half];
        head[i] = a * cos(angle) - b * sin(angle);
        head[i + half] = b * cos(angle) + a * sin(angle);
    }
}

static void attend(const td_model_config *c, int32_t layer, const double *qkv, int32_t t,
                   double *out) {
    const td_attention *a = &c->layers[layer].mixer.attention;
    int32_t D = a->head_dim, H = a->n_heads, Hkv = a->n_kv_heads, width = (H + 2 * Hkv) * D;
    int32_t window = a->window;
    int32_t first = window && t - window + 1 > 0 ? t - window + 1 : 0;
    double *p = calloc((size_t)t + 1, sizeof *p);
    for (int32_t h = 0; h < H; h++) {
        const double *q = qkv + (int64_t)t * width + h * D;
        int32_t g = h / (H / Hkv);
        double max = -INFINITY, sum = 0;
        for (int32_t j = first; j <= t; j++) {
            const double *k = qkv + (int64_t)j * width + (H + g) * D;
            p[j] = 0;
            for (int32_t d = 0; d < D; d++)
                p[j] += q[d] * k[d] / sqrt(D);
            max = fmax(max, p[j]);
        }
        for (int32_t j = first; j <= t; j++)
            sum += p[j] = exp(p[j] - max);
        for (int32_t d = 0; d < D; d++) {
            out[h * D + d] = 0;
            for (int32_t j = first; j <= t; j++)
                out[h * D + d] += p[j] / sum * qkv[(int64_t)j * width + (H + Hkv + g) * D + d];
        }
    }
    free(p);
}

void ref_forward(const fx_model *m, const int32_t *ids, int32_t n, double *logits) {
    const td_model_config *c = &m->cfg;
    const td_attention *mixer = &c->layers[0].mixer.attention; /* layers differ in windows alone */
    int32_t C = c->n_hidden, F = c->layers[0].ffn.dense.n_ffn;
    int32_t D = mixer->head_dim, H = mixer->n_heads, Hkv = mixer->n_kv_heads;
    int32_t width = (H + 2 * Hkv) * D;
    double *x = calloc((size_t)(n * C), sizeof *x), *qkv = calloc((size_t)(n * width), sizeof *qkv);
    size_t widest = (size_t)TD_MAX(TD_MAX(C, F), H * D);
    double *a = calloc(widest, sizeof *a), *b = calloc(widest, sizeof *b);
    double *up = calloc(widest, sizeof *up);
    const float *embed = fx_find(m, "model.embed_tokens.weight")->values;
    for (int32_t t = 0; t < n; t++)
        for (int32_t i = 0; i < C; i++)
            x[t * C + i] = embed[ids[t] * C + i];
    for (int32_t l = 0; l < c->n_layers; l++) {
        bool qb = mixer->qkv_bias;
        for (int32_t t = 0; t < n; t++) {
            double *q = qkv + t * width, *k = q + H * D, *v = k + Hkv * D;
            norm(x + t * C, tensor(m, l, "input_layernorm.weight"), c->norm_eps, C, a);
            project(a, tensor(m, l, "self_attn.q_proj.weight"),
                    qb ? tensor(m, l, "self_attn.q_proj.bias") : NULL, C, H * D, q);
            project(a, tensor(m, l, "self_attn.k_proj.weight"),
                    qb ? tensor(m, l, "self_attn.k_proj.bias") : NULL, C, Hkv * D, k);
            project(a, tensor(m, l, "self_attn.v_proj.weight"),
                    qb ? tensor(m, l, "self_attn.v_proj.bias") : NULL, C, Hkv * D, v);
            for (int32_t h = 0; h < H + Hkv; h++) {
                if (mixer->qk_norm)
                    norm(
                        q + h * D,
                        tensor(m, l, h < H ? "self_attn.q_norm.weight" : "self_attn.k_norm.weight"),
                        c->norm_eps, D, q + h * D);
                rotate(c, q + h * D, t);
            }
        }
        for (int32_t t = 0; t < n; t++) {
            attend(c, l, qkv, t, a);
            project(a, tensor(m, l, "self_attn.o_proj.weight"), NULL, H * D, C, b);
            for (int32_t i = 0; i < C; i++)
                x[t * C + i] += b[i];
            norm(x + t * C, tensor(m, l, "post_attention_layernorm.weight"), c->norm_eps, C, a);
            project(a, tensor(m, l, "mlp.gate_proj.weight"), NULL, C, F, b);
            project(a, tensor(m, l, "mlp.up_proj.weight"), NULL, C, F, up);
            for (int32_t i = 0; i < F; i++)
                up[i] *= b[i] / (1 + exp(-b[i]));
            project(up, tensor(m, l, "mlp.down_proj.weight"), NULL, F, C, b);
            for (int32_t i = 0; i < C; i++)
                x[t * C + i] += b[i];
        }
    }
    const char *head = c->tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    for (int32_t t = 0; t < n; t++) {
        norm(x + t * C, fx_find(m, "model.norm.weight")->values, c->norm_eps, C, a);
        project(a, fx_find(m, head)->values, NULL, C, c->n_vocab, logits + (int64_t)t * c->n_vocab);
    }
    free(x);
    free(qkv);
    free(a);
    free(b);
    free(up);
}
