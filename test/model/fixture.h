/* fixture.h - temporary model folders with seeded weights, and safetensors files written by hand.
 */
#ifndef TDGEN_TEST_MODEL_FIXTURE_H
#define TDGEN_TEST_MODEL_FIXTURE_H

#include <stddef.h>
#include <stdint.h>
#include "test/common.h"
#include "base/dtype.h"
#include "model/model.h"

/* u64 header length | header | data. */
void fx_write_st(const char *dir, const char *name, const char *header, const void *data, size_t n);

/* Small checkpoints of every family, with what Transformers makes of them. */
#define FAMILIES_DIR TD_SOURCE_DIR "/test/fixtures/families"

typedef struct fx_tensor {
    char name[96];
    td_dtype dtype;
    int64_t rows, cols; /* cols 0: a vector */
    float *values;      /* [rows * max(cols, 1)] as stored, that is rounded to dtype */
} fx_tensor;

typedef struct fx_model {
    td_model_config cfg;
    fx_tensor *tensors;
    size_t n;
} fx_model;

/* A layer of a Llama: attention with these heads, all turned by rope 0, and a gated ffn. */
#define FX_LAYER(heads, kv_heads, dim, ffn_size)                                                   \
    {                                                                                              \
        .mixer = {.attention = {.n_heads = (heads), .n_kv_heads = (kv_heads), .head_dim = (dim)}}, \
        .ffn = {                                                                                   \
            .dense = {.n_ffn = (ffn_size), .gated = true}                                          \
        }                                                                                          \
    }

/* A Llama of at most 4 layers for the suites of sessions. Odd sizes on purpose: nothing is a multiple
 * of a tile. */
#define FX_SMALL_LAYER FX_LAYER(6, 2, 8, 68)
#define FX_SMALL(layers_, vocab)                                                                   \
    {                                                                                              \
        .architecture = "LlamaForCausalLM", .n_layers = (layers_), .n_hidden = 40,                 \
        .layers = {FX_SMALL_LAYER, FX_SMALL_LAYER, FX_SMALL_LAYER, FX_SMALL_LAYER},                \
        .n_vocab = (vocab), .max_positions = 512, .norm_eps = 1e-5f, .pre_norm = true, .rope = {   \
            {.theta = 10000, .factor = 1}                                                          \
        }                                                                                          \
    }

/* All tensors that the config asks for, its layers all like the first and Llama's, seeded: matrices
 * about N(0, 1/sqrt(cols)), norms about 1. */
fx_model fx_model_make(const td_model_config *cfg, td_dtype dtype, uint64_t seed);
const fx_tensor *fx_find(const fx_model *m, const char *name);
fx_tensor *fx_add(fx_model *m, const char *name, td_dtype dtype, int64_t rows, int64_t cols);
/* Writes tensors [begin, end) as one file. */
void fx_write_tensors(const fx_model *m, size_t begin, size_t end, const char *dir,
                      const char *name);
/* A fresh folder with config.json and the weights of such a model. `extra` is further JSON. */
fx_model fx_model_write(const td_model_config *cfg, td_dtype dtype, const char *extra, char **dir);
void fx_model_free(fx_model *m);

float fx_uniform(uint64_t *state); /* [-1, 1) */

#endif
