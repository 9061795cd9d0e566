/* fixture.h - temporary model folders with seeded weights, and safetensors files written by hand.
 */
#ifndef TDGEN_TEST_MODEL_FIXTURE_H
#define TDGEN_TEST_MODEL_FIXTURE_H

#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "model/model.h"

/* A fresh folder, removed with all it holds at exit. */
char *fx_temp_dir(void);
void fx_write(const char *dir, const char *name, const void *data, size_t n);
/* u64 header length | header | data. */
void fx_write_st(const char *dir, const char *name, const char *header, const void *data, size_t n);

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

/* All tensors that the config asks for, its layers all like the first and Llama's, seeded: matrices
 * about N(0, 1/sqrt(cols)), norms about 1. */
fx_model fx_model_make(const td_model_config *cfg, td_dtype dtype, uint64_t seed);
const fx_tensor *fx_find(const fx_model *m, const char *name);
fx_tensor *fx_add(fx_model *m, const char *name, td_dtype dtype, int64_t rows, int64_t cols);
/* Writes tensors [begin, end) as one file. */
void fx_write_tensors(const fx_model *m, size_t begin, size_t end, const char *dir,
                      const char *name);
void fx_model_free(fx_model *m);

uint64_t fx_rand(uint64_t *state); /* splitmix64 */
float fx_uniform(uint64_t *state); /* [-1, 1) */

#endif
