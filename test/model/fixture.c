/* fixture.c - seeded weights, written as checkpoints: see fixture.h. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"
#include "base/memory.h"
#include "base/strbuf.h"

void fx_write_st(const char *dir, const char *name, const char *header, const void *data,
                 size_t n) {
    td_strbuf b = {0};
    uint64_t len = strlen(header);
    unsigned char le[8];
    for (int i = 0; i < 8; i++)
        le[i] = (unsigned char)(len >> (8 * i));
    td_strbuf_append(&b, le, 8);
    td_strbuf_append(&b, header, len);
    td_strbuf_append(&b, data, n);
    cr_assert(!b.oom);
    test_write_file(dir, name, b.data, b.len);
    td_strbuf_free(&b);
}

float fx_uniform(uint64_t *state) {
    return (float)(test_random(state) >> 40) * 0x1p-23f - 1.0f;
}

fx_tensor *fx_add(fx_model *m, const char *name, td_dtype dtype, int64_t rows, int64_t cols) {
    m->tensors = realloc(m->tensors, (m->n + 1) * sizeof *m->tensors);
    fx_tensor *t = &m->tensors[m->n++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->dtype = dtype;
    t->rows = rows;
    t->cols = cols;
    t->values = calloc((size_t)(rows * TD_MAX(cols, 1)), sizeof *t->values);
    return t;
}

static void add_random(fx_model *m, const char *name, td_dtype dtype, int64_t rows, int64_t cols,
                       uint64_t *seed) {
    fx_tensor *t = fx_add(m, name, dtype, rows, cols);
    bool is_norm = strstr(name, "norm") != NULL;
    for (int64_t i = 0; i < rows * TD_MAX(cols, 1); i++) {
        float v = fx_uniform(seed);
        v = is_norm ? 1.0f + 0.3f * v : cols ? v * sqrtf(3.0f / (float)cols) : 0.5f * v;
        t->values[i] = dtype == TD_BF16  ? td_bf16_to_f32(td_f32_to_bf16(v))
                       : dtype == TD_F16 ? td_f16_to_f32(td_f32_to_f16(v))
                                         : v;
    }
}

fx_model fx_model_make(const td_model_config *c, td_dtype dtype, uint64_t seed) {
    fx_model m = {.cfg = *c};
    const td_attention *a = &c->layers[0].mixer.attention;
    const td_dense *d = &c->layers[0].ffn.dense;
    int64_t C = c->n_hidden, F = d->n_ffn, D = a->head_dim, V = c->n_vocab;
    int64_t q = a->n_heads * D, kv = a->n_kv_heads * D;
    const struct {
        const char *name;
        int64_t rows, cols;
        bool there;
    } layer[] = {
        {"input_layernorm.weight", C, 0, true},
        {"self_attn.q_proj.weight", q, C, true},
        {"self_attn.k_proj.weight", kv, C, true},
        {"self_attn.v_proj.weight", kv, C, true},
        {"self_attn.o_proj.weight", C, q, true},
        {"self_attn.q_proj.bias", q, 0, a->qkv_bias},
        {"self_attn.k_proj.bias", kv, 0, a->qkv_bias},
        {"self_attn.v_proj.bias", kv, 0, a->qkv_bias},
        {"self_attn.o_proj.bias", C, 0, a->o_bias},
        {"self_attn.q_norm.weight", D, 0, a->qk_norm != TD_QK_NORM_NONE},
        {"self_attn.k_norm.weight", D, 0, a->qk_norm != TD_QK_NORM_NONE},
        {"post_attention_layernorm.weight", C, 0, true},
        {"mlp.gate_proj.weight", F, C, true},
        {"mlp.up_proj.weight", F, C, true},
        {"mlp.down_proj.weight", C, F, true},
        {"mlp.gate_proj.bias", F, 0, d->bias},
        {"mlp.up_proj.bias", F, 0, d->bias},
        {"mlp.down_proj.bias", C, 0, d->bias},
    };
    add_random(&m, "model.embed_tokens.weight", dtype, V, C, &seed);
    for (int32_t l = 0; l < c->n_layers; l++)
        for (size_t i = 0; i < TD_ARRAY_LEN(layer); i++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.%d.%s", l, layer[i].name);
            if (layer[i].there)
                add_random(&m, name, dtype, layer[i].rows, layer[i].cols, &seed);
        }
    add_random(&m, "model.norm.weight", dtype, C, 0, &seed);
    if (!c->tied_embeddings)
        add_random(&m, "lm_head.weight", dtype, V, C, &seed);
    return m;
}

const fx_tensor *fx_find(const fx_model *m, const char *name) {
    for (size_t i = 0; i < m->n; i++)
        if (!strcmp(m->tensors[i].name, name))
            return &m->tensors[i];
    cr_assert(false, "the fixture has no tensor %s", name);
    return NULL;
}

void fx_write_tensors(const fx_model *m, size_t begin, size_t end, const char *dir,
                      const char *name) {
    static const char *const dtype_names[] = {
        [TD_F32] = "F32", [TD_BF16] = "BF16", [TD_F16] = "F16"};
    td_strbuf header = {0}, data = {0};
    td_strbuf_puts(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = begin; i < end; i++) {
        const fx_tensor *t = &m->tensors[i];
        size_t at = data.len, n = (size_t)(t->rows * TD_MAX(t->cols, 1));
        for (size_t k = 0; k < n; k++) {
            uint16_t h =
                t->dtype == TD_BF16 ? td_f32_to_bf16(t->values[k]) : td_f32_to_f16(t->values[k]);
            if (t->dtype == TD_F32)
                td_strbuf_append(&data, &t->values[k], 4);
            else
                td_strbuf_append(&data, &h, 2);
        }
        td_strbuf_printf(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld", t->name,
                         dtype_names[t->dtype], (long long)t->rows);
        if (t->cols)
            td_strbuf_printf(&header, ",%lld", (long long)t->cols);
        td_strbuf_printf(&header, "],\"data_offsets\":[%zu,%zu]}", at, data.len);
    }
    td_strbuf_puts(&header, "}");
    fx_write_st(dir, name, header.data, data.data, data.len);
    td_strbuf_free(&header);
    td_strbuf_free(&data);
}

void fx_model_free(fx_model *m) {
    for (size_t i = 0; i < m->n; i++)
        free(m->tensors[i].values);
    free(m->tensors);
    *m = (fx_model){0};
}

fx_model fx_model_write(const td_model_config *c, td_dtype dtype, const char *extra, char **dir) {
    const td_attention *a = &c->layers[0].mixer.attention;
    fx_model m = fx_model_make(c, dtype, 7);
    *dir = test_temp_dir();
    fx_write_tensors(&m, 0, m.n, *dir, "model.safetensors");
    char *json = td_asprintf(
        "{\"architectures\":[\"%s\"],\"num_hidden_layers\":%d,\"hidden_size\":%d,"
        "\"intermediate_size\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
        "\"head_dim\":%d,\"vocab_size\":%d,\"rms_norm_eps\":1e-5,\"max_position_embeddings\":512,"
        "\"tie_word_embeddings\":%s%s}",
        c->architecture, c->n_layers, c->n_hidden, c->layers[0].ffn.dense.n_ffn, a->n_heads,
        a->n_kv_heads, a->head_dim, c->n_vocab, c->tied_embeddings ? "true" : "false", extra);
    test_write_file(*dir, "config.json", json, strlen(json));
    free(json);
    return m;
}
