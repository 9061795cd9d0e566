/* Checkpoint folders: what opens, and the message of each thing that is refused. No device. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"
#include "model/fused.h"
#include "model/tensor.h"
#include "model/model.h"
#include "base/memory.h"
#include "base/strbuf.h"

#define LAYER FX_LAYER(4, 2, 4, 24)
static const td_model_config small = {.architecture = "LlamaForCausalLM",
                                      .n_layers = 2,
                                      .n_hidden = 16,
                                      .layers = {LAYER, LAYER},
                                      .n_vocab = 40,
                                      .max_positions = 64,
                                      .norm_eps = 1e-5f,
                                      .pre_norm = true};

static void expect_refused(const char *dir, const td_model_config *cfg, const char *message) {
    td_weights *w = NULL;
    td_error e = {0};
    cr_expect_eq(td_weights_open(dir, cfg, &w, &e), TD_E_MODEL, "expected: %s", message);
    cr_expect(strstr(e.text, message), "\"%s\" lacks \"%s\"", e.text, message);
    td_weights_close(w);
}

static uint64_t hash_of(const char *dir, const td_model_config *cfg) {
    td_weights *w = NULL;
    td_error e = {0};
    uint64_t h = 0;
    cr_assert_eq(td_weights_open(dir, cfg, &w, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_weights_hash(w, &h, &e), TD_OK, "%s", e.text);
    td_weights_close(w);
    return h;
}

/* Writes the model in two files and an index that says so. */
static void write_sharded(const fx_model *m, const char *dir, const char *second_name) {
    td_strbuf b = {0};
    size_t half = m->n / 2;
    fx_write_tensors(m, 0, half, dir, "model-00001-of-00002.safetensors");
    fx_write_tensors(m, half, m->n, dir, "model-00002-of-00002.safetensors");
    td_strbuf_puts(&b, "{\"weight_map\":{");
    for (size_t i = 0; i < m->n; i++)
        td_strbuf_printf(&b, "%s\"%s\":\"%s\"", i ? "," : "", m->tensors[i].name,
                         i < half ? "model-00001-of-00002.safetensors" : second_name);
    td_strbuf_puts(&b, "}}");
    test_write_file(dir, "model.safetensors.index.json", b.data, b.len);
    td_strbuf_free(&b);
}

Test(checkpoint, one_file_and_two_have_the_same_hash) {
    fx_model m = fx_model_make(&small, TD_BF16, 1);
    char *one = test_temp_dir(), *two = test_temp_dir();
    fx_write_tensors(&m, 0, m.n, one, "model.safetensors");
    write_sharded(&m, two, "model-00002-of-00002.safetensors");
    uint64_t h = hash_of(one, &small);
    cr_expect_eq(hash_of(two, &small), h);
    m.tensors[3].values[5] += 1.0f;
    fx_write_tensors(&m, 0, m.n, one, "model.safetensors");
    cr_expect_neq(hash_of(one, &small), h);
    fx_model_free(&m);
}

Test(checkpoint, dtype_is_the_widest_matrix) {
    fx_model m = fx_model_make(&small, TD_BF16, 1);
    char *dir = test_temp_dir();
    td_weights *w;
    td_error e;
    m.tensors[1].dtype = TD_F32; /* a norm: does not count */
    for (int i = 0; i < 2; i++) {
        fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
        cr_assert_eq(td_weights_open(dir, &small, &w, &e), TD_OK, "%s", e.text);
        cr_expect_eq(td_weights_dtype(w), i ? TD_F32 : TD_BF16);
        td_weights_close(w);
        m.tensors[2].dtype = TD_F16; /* neither 16-bit format holds the other */
    }
    fx_model_free(&m);
}

Test(checkpoint, index_names_stay_in_the_folder) {
    static const char *const bad[] = {"/etc/passwd",         "../model.safetensors",
                                      "sub/x.safetensors",   "..",
                                      ".hidden.safetensors", "a\\\\b",
                                      "x\\u0000y",           ""};
    fx_model m = fx_model_make(&small, TD_F32, 1);
    char *dir = test_temp_dir();
    for (size_t i = 0; i < TD_ARRAY_LEN(bad); i++) {
        write_sharded(&m, dir, bad[i]);
        expect_refused(dir, &small, "is refused: it must be a plain name in the same folder");
    }
    write_sharded(&m, dir, "absent.safetensors");
    expect_refused(dir, &small, "absent.safetensors: No such file");
    write_sharded(&m, dir, "model-00001-of-00002.safetensors");
    expect_refused(dir, &small, "is in model-00001-of-00002.safetensors, but it is not");
    static const char no_map[] = "{\"weight_map\":[]}", no_name[] = "{\"weight_map\":{\"a\":3}}";
    test_write_file(dir, "model.safetensors.index.json", no_map, sizeof no_map - 1);
    expect_refused(dir, &small, "\"weight_map\" must be an object with entries");
    test_write_file(dir, "model.safetensors.index.json", no_name, sizeof no_name - 1);
    expect_refused(dir, &small, "the file of tensor a must be a string");
    fx_model_free(&m);
}

Test(checkpoint, other_formats_are_named) {
    char *dir = test_temp_dir();
    expect_refused(dir, &small, "there is neither model.safetensors nor");
    test_write_file(dir, "pytorch_model.bin", "x", 1);
    expect_refused(dir, &small,
                   "the weights are in pytorch_model.bin, which is not read; convert "
                   "them to safetensors");
}

Test(checkpoint, tensors_are_checked_by_name) {
    char *dir = test_temp_dir();
    fx_model m = fx_model_make(&small, TD_F32, 1);
    fx_tensor *q = (fx_tensor *)fx_find(&m, "model.layers.1.self_attn.q_proj.weight");
    q->rows = 8;
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    expect_refused(dir, &small,
                   "tensor model.layers.1.self_attn.q_proj.weight has shape [8, 16], config.json "
                   "asks for [16, 16]");
    strcpy(q->name, "model.layers.1.self_attn.query.weight");
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    expect_refused(dir, &small, "tensor model.layers.1.self_attn.q_proj.weight is missing");
    fx_model_free(&m);

    fx_write_st(dir, "model.safetensors",
                "{\"model.embed_tokens.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[40,16],"
                "\"data_offsets\":[0,640]}}",
                (char[640]){0}, 640);
    expect_refused(dir, &small,
                   "tensor model.embed_tokens.weight has dtype F8_E4M3; F32, BF16 and F16 are");
}

Test(checkpoint, what_would_be_dropped_silently_is_refused) {
    static const struct {
        const char *name, *message; /* NULL: accepted */
    } cases[] = {
        {"model.layers.0.self_attn.q_proj.bias", "asks for no such bias"},
        {"model.layers.0.self_attn.q_norm.weight", "has no use for it"},
        {"model.layers.2.input_layernorm.weight", "has no use for it"},
        {"lm_head.bias", "asks for no such bias"},
        {"model.layers.0.self_attn.rotary_emb.inv_freq", NULL},
        {"value_head.weight", NULL}, /* not of the language model: a warning */
    };
    char *dir = test_temp_dir();
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        fx_model m = fx_model_make(&small, TD_F32, 1);
        fx_add(&m, cases[i].name, TD_F32, 16, 0);
        fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
        if (cases[i].message) {
            expect_refused(dir, &small, cases[i].message);
            expect_refused(dir, &small, cases[i].name);
        } else {
            hash_of(dir, &small);
        }
        fx_model_free(&m);
    }
}

Test(checkpoint, a_tied_model_does_not_need_lm_head) {
    td_model_config tied = small;
    tied.tied_embeddings = true;
    char *dir = test_temp_dir();
    fx_model m = fx_model_make(&tied, TD_F32, 1);
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    uint64_t h = hash_of(dir, &tied);
    expect_refused(dir, &small, "tensor lm_head.weight is missing");
    fx_add(&m, "lm_head.weight", TD_F32, 40, 16);
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    cr_expect_eq(hash_of(dir, &tied), h, "an ignored tensor is no part of the identity");
    fx_model_free(&m);
}

/* --- families --------------------------------------------------------------------------------- */

/* Files saved from the model without its head have no "model." before their names. */
Test(checkpoint, a_bare_model_has_no_prefix) {
    char *dir = test_temp_dir();
    td_model_config tied = small;
    tied.tied_embeddings = true;
    fx_model m = fx_model_make(&tied, TD_F32, 1);
    for (size_t i = 0; i < m.n; i++)
        memmove(m.tensors[i].name, m.tensors[i].name + 6, strlen(m.tensors[i].name + 6) + 1);
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    hash_of(dir, &tied);
    fx_add(&m, "layers.0.self_attn.sinks", TD_F32, 4, 0);
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    expect_refused(dir, &tied, "tensor layers.0.self_attn.sinks is there, but LlamaForCausalLM");
    fx_model_free(&m);
}

Test(checkpoint, an_unknown_architecture_is_refused) {
    td_model_config c = small;
    snprintf(c.architecture, sizeof c.architecture, "FalconForCausalLM");
    expect_refused(test_temp_dir(), &c, "the architecture \"FalconForCausalLM\" is not supported");
}

Test(checkpoint, fp8_needs_a_fitting_scale) {
#define TENSOR(name, dtype, shape, begin, end)                                                     \
    "\"model.embed_tokens." name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape                    \
    ",\"data_offsets\":[" begin "," end "]}"
#define WEIGHT TENSOR("weight", "F8_E4M3", "[40,16]", "0", "640")
    static const struct {
        const char *header, *message;
        size_t size_bytes;
        int32_t block;
    } cases[] = {
        {"{" WEIGHT "}",
         "tensor model.embed_tokens.weight has dtype F8_E4M3, but its scale "
         "model.embed_tokens.weight_scale is missing",
         640, 0},
        {"{" WEIGHT "," TENSOR("weight_scale_inv", "F8_E8M0", "[3,1]", "640", "643") "}",
         "weight_scale_inv has dtype F8_E8M0, which is a scale only where", 643, 16},
        {"{" WEIGHT "," TENSOR("weight_scale_inv", "I32", "[3,1]", "640", "652") "}",
         "weight_scale_inv has dtype I32; scales in F32, BF16, F16 and", 652, 16},
        {"{" WEIGHT "," TENSOR("weight_scale_inv", "F32", "[2,1]", "640", "648") "}",
         "weight_scale_inv has shape [2, 1], config.json asks for [3, 1]", 648, 16},
        {"{" WEIGHT "," TENSOR("weight_scale_inv", "F32", "[16,1]", "640", "704") "}",
         "weight_scale_inv has shape [16, 1], config.json asks for [40, 1]", 704, 0},
        {"{" TENSOR("weight", "F8_E5M2", "[40,16]", "0", "640") "}",
         "has dtype F8_E5M2; F32, BF16 and F16 are supported, and F8_E4M3 for matrices", 640, 0},
        /* A good scale: the next tensor is the one that is missing. */
        {"{" WEIGHT "," TENSOR("weight_scale_inv", "F32", "[3,1]", "640", "652") "}",
         "tensor model.norm.weight is missing", 652, 16},
        {"{" WEIGHT "," TENSOR("weight_scale_inv", "BF16", "[40]", "640", "720") "}",
         "tensor model.norm.weight is missing", 720, 0},
        {"{" WEIGHT "," TENSOR("weight_scale", "F32", "[1]", "640", "644") "}",
         "tensor model.norm.weight is missing", 644, 0},
        {"{" WEIGHT "," TENSOR("weight_scale_inv", "F32", "[]", "640", "644") "}",
         "tensor model.norm.weight is missing", 644, 0},
    };
    char *dir = test_temp_dir(), data[720] = {0};
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_model_config c = small;
        c.fp8 = true;
        c.fp8_scale_suffix = "_scale_inv";
        c.fp8_block[0] = c.fp8_block[1] = cases[i].block;
        fx_write_st(dir, "model.safetensors", cases[i].header, data, cases[i].size_bytes);
        expect_refused(dir, &c, cases[i].message);
    }
}

/* Every e4m3 number by the definition of the format: bias 7, no infinities. */
Test(checkpoint, e4m3_values) {
    for (int b = 0; b < 256; b++) {
        int exponent = (b >> 3) & 15, mantissa = b & 7;
        double want =
            exponent ? (1 + mantissa / 8.0) * pow(2, exponent - 7) : mantissa / 8.0 * pow(2, -6);
        float got = td_e4m3_to_f32((uint8_t)b);
        if ((b & 0x7f) == 0x7f)
            cr_expect(isnan(got));
        else
            cr_expect_eq(got, (float)(b & 0x80 ? -want : want), "%d", b);
    }
    cr_expect_eq(td_e4m3_to_f32(0x7e), 448.0f);
}

/* 2^(b - 127), and 255 is no number. */
Test(checkpoint, e8m0_scales) {
    static const char header[] =
        "{" WEIGHT "," TENSOR("weight_scale_inv", "F8_E8M0", "[3,1]", "640", "643") "}";
    char *dir = test_temp_dir(), data[643] = {0};
    td_model_config c = small;
    c.fp8 = c.fp8_scale_e8m0 = true;
    c.fp8_scale_suffix = "_scale_inv";
    c.fp8_block[0] = c.fp8_block[1] = 16;
    fx_write_st(dir, "model.safetensors", header, data, sizeof data);
    expect_refused(dir, &c, "tensor model.norm.weight is missing"); /* the scale is a good one */
    data[642] = (char)255;
    fx_write_st(dir, "model.safetensors", header, data, sizeof data);
    expect_refused(dir, &c, "weight_scale_inv: element 2 is 255, which is not a number in E8M0");

    const uint8_t bytes[] = {0, 126, 254}, weights[] = {0x38, 0x38, 0x38}; /* e4m3: 1 */
    const double want[] = {0x1p-127, 0.5, 0x1p127};
    td_st_tensor scale = {.dtype_name = "F8_E8M0", .dtype = -1, .data = bytes};
    td_st_tensor weight = {.n_dims = 2, .shape = {3, 1}};
    td_ckpt_entry es = {.tensor = &scale};
    td_ckpt_entry e = {.tensor = &weight, .scale = &es, .scale_block = {1, 1}};
    float got[3];
    td_tensor_dequantise(&e, &c, weights, 0, 3, got);
    for (size_t i = 0; i < 3; i++)
        cr_expect_eq((double)got[i], want[i], "%a", (double)got[i]);
}

/* Without the head transformers would make one of random numbers. */
Test(checkpoint, a_missing_head_is_refused) {
    fx_model m = fx_model_make(&small, TD_F32, 1);
    char *dir = test_temp_dir();
    size_t head = (size_t)(fx_find(&m, "lm_head.weight") - m.tensors);
    fx_tensor last = m.tensors[m.n - 1];
    m.tensors[m.n - 1] = m.tensors[head];
    m.tensors[head] = last;
    fx_write_tensors(&m, 0, m.n - 1, dir, "model.safetensors");
    expect_refused(dir, &small,
                   "tensor lm_head.weight is missing, and tie_word_embeddings is "
                   "false: transformers would fill it with random numbers");
    fx_model_free(&m);
}

/* A layer's experts in two tensors: shapes, dtypes, and the half that is missing. */
Test(checkpoint, fused_experts_need_a_fitting_shape) {
    static const td_st_tensor up = {
        .name = "up", .dtype_name = "F32", .n_dims = 3, .shape = {4, 20, 16}};
    static const td_st_tensor down = {
        .name = "down", .dtype_name = "F32", .n_dims = 3, .shape = {4, 16, 10}};
    static const struct {
        int64_t up[3], down[3];
        const char *message; /* NULL: fits */
        bool transposed;
    } cases[] = {
        {{4, 20, 16}, {4, 16, 10}, NULL, false},
        {{4, 16, 20}, {4, 10, 16}, NULL, true},
        {{4, 20, 16}, {4, 10, 16}, "tensor down holds the experts of a layer", false},
        {{4, 16, 20}, {4, 16, 10}, "tensor up holds the experts of a layer", false},
        {{5, 20, 16}, {5, 16, 10}, "not [4, 20, 16]", false},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_st_tensor u = up, d = down;
        td_fused f = {.up = &u, .down = &d};
        td_error e = {0};
        memcpy(u.shape, cases[i].up, sizeof cases[i].up);
        memcpy(d.shape, cases[i].down, sizeof cases[i].down);
        td_status rc = td_fused_check(&f, 4, 10, 16, "dir", &e);
        cr_expect_eq(rc, cases[i].message ? TD_E_MODEL : TD_OK, "case %zu", i);
        cr_expect(!cases[i].message || strstr(e.text, cases[i].message), "%s", e.text);
        cr_expect(cases[i].message || f.transposed == cases[i].transposed, "case %zu", i);
    }
    /* Where a size equals another, the other tensor tells. */
    td_st_tensor u = up, d = down;
    u.shape[1] = u.shape[2] = 16;
    d.shape[1] = 8, d.shape[2] = 16;
    td_fused f = {.up = &u, .down = &d};
    td_error e = {0};
    cr_expect_eq(td_fused_check(&f, 4, 8, 16, "dir", &e), TD_OK, "%s", e.text);
    cr_expect(f.transposed);
    u.dtype = -1;
    snprintf(u.dtype_name, sizeof u.dtype_name, "F8_E4M3");
    cr_expect_eq(td_fused_check(&f, 4, 8, 16, "dir", &e), TD_E_MODEL);
    cr_expect(strstr(e.text, "tensor up has dtype F8_E4M3"), "%s", e.text);
}
