/* Loading weights into devices with memory of their own (fake_device.h): every family's checkpoint,
 * array for array, against the path of packing devices, which the logits of test_families vouch
 * for; then what is read, failures at every call, and values that the compute type cannot hold. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_device.h"
#include "fixture.h"
#include "model/tensor.h"
#include "model/weights.h"
#include "base/convert.h"
#include "base/safetensors.h"
#include "base/hash.h"
#include "base/memory.h"

/* --- comparing what two domains hold ---------------------------------------------------------- */

typedef struct comparison {
    const char *what;
    int n_arrays;
    size_t n_bytes;
} comparison;

static void same_bytes(comparison *c, const void *a, const void *b, size_t n, const char *name,
                       int32_t layer) {
    cr_assert_eq(a == NULL, b == NULL, "%s: %s of layer %d is there once only", c->what, name,
                 layer);
    if (!a)
        return;
    cr_expect(!memcmp(a, b, n), "%s: %s of layer %d differs", c->what, name, layer);
    c->n_arrays++;
    c->n_bytes += n;
}

static void same_weight(comparison *c, const td_weight *a, const td_weight *b, const char *name,
                        int32_t layer) {
    cr_assert_eq(a == NULL, b == NULL, "%s: %s of layer %d is there once only", c->what, name,
                 layer);
    if (!a)
        return;
    cr_assert_eq(a->n_rows, b->n_rows, "%s: %s", c->what, name);
    cr_assert_eq(a->n_cols, b->n_cols, "%s: %s", c->what, name);
    cr_assert_eq(a->compute, b->compute);
    same_bytes(c, fake_weight_data(a), fake_weight_data(b),
               (size_t)(a->n_rows * a->n_cols) * td_dtype_size(a->compute), name, layer);
}

static size_t vector_size(const td_model_config *c, int which, int32_t layer) {
    const td_attention *a = &c->layers[layer].mixer.attention;
    const td_ffn *ffn = &c->layers[layer].ffn;
    size_t C = (size_t)c->n_hidden, D = (size_t)a->head_dim, H = (size_t)a->n_heads;
    size_t Hkv = (size_t)a->n_kv_heads;
    switch (which) {
    case TD_LV_QKV_BIAS:
        return (H + 2 * Hkv) * D;
    case TD_LV_Q_NORM:
        return a->qk_norm == TD_QK_NORM_FULL ? H * D : D;
    case TD_LV_K_NORM:
        return a->qk_norm == TD_QK_NORM_FULL ? Hkv * D : D;
    case TD_LV_UP_BIAS: /* experts have none */
        return ffn->kind == TD_FFN_DENSE ? (size_t)ffn->dense.n_ffn * (ffn->dense.gated ? 2 : 1)
                                         : C;
    default:
        return C;
    }
}

/* Everything of the items that `a` holds. */
static comparison compare(const char *what, const td_weights *w, const td_domain_weights *a,
                          const td_domain_weights *b) {
    const td_model_config *cfg = td_weights_config(w);
    comparison c = {.what = what};
    int32_t last = cfg->n_layers + 1;
    size_t elem = td_dtype_size(td_weights_compute(w)), C = (size_t)cfg->n_hidden;
    if (a->has_item[0]) {
        cr_assert(a->embed_table);
        same_bytes(&c, a->embed_table, b->embed_table, (size_t)cfg->n_vocab * C * elem,
                   "the embedding", -1);
        cr_assert_eq(a->position_table != NULL, cfg->learned_positions);
        same_bytes(&c, a->position_table, b->position_table, (size_t)cfg->max_positions * C * elem,
                   "positions", -1);
    }
    for (int32_t l = 0; l < cfg->n_layers; l++) {
        const td_layer_weights *x = &a->layers[l], *y = &b->layers[l];
        if (!a->has_item[l + 1]) {
            cr_expect(!x->mat[TD_LM_QKV] && !x->vec[TD_LV_ATTN_NORM] && !x->expert_up);
            continue;
        }
        cr_assert(x->mat[TD_LM_QKV] && x->mat[TD_LM_O]);
        for (int k = 0; k < TD_LV_COUNT; k++)
            same_bytes(&c, x->vec[k], y->vec[k], 4 * vector_size(cfg, k, l), "a vector", l);
        for (int k = 0; k < TD_LM_COUNT; k++)
            same_weight(&c, x->mat[k], y->mat[k], "a matrix", l);
        const td_ffn *ffn = &cfg->layers[l].ffn;
        for (int32_t e = 0; ffn->kind == TD_FFN_EXPERTS && e < ffn->experts.n_experts; e++) {
            cr_assert(x->expert_up[e] && x->expert_down[e]);
            same_weight(&c, x->expert_up[e], y->expert_up[e], "gate and up of an expert", l);
            same_weight(&c, x->expert_down[e], y->expert_down[e], "down of an expert", l);
        }
    }
    if (a->has_item[last]) {
        cr_assert(a->lm_head && a->final_norm);
        same_bytes(&c, a->final_norm, b->final_norm, 4 * C, "the final norm", -1);
        same_bytes(&c, a->final_norm_bias, b->final_norm_bias, 4 * C, "its bias", -1);
        same_weight(&c, a->lm_head, b->lm_head, "lm_head", -1);
    }
    return c;
}

/* --- loading a fixture ------------------------------------------------------------------------ */

enum { N_PLAIN = 3 };

typedef struct rig {
    td_model_config cfg;
    td_weights *w;
    td_device *devices[N_PLAIN + 1]; /* the last one packs */
    td_stage stages[2 * N_PLAIN];
} rig;

/* Domain 0 holds the first half, domain 1 the second, domain 2 everything; the last is a device
 * that packs, and holds everything. */
static void rig_open(rig *r, const char *dir, const fake_options *opt) {
    td_error e;
    cr_assert_eq(td_model_config_load(dir, &r->cfg, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_weights_open(dir, &r->cfg, &r->w, &e), TD_OK, "%s", e.text);
    int32_t n_items = r->cfg.n_layers + 2;
    for (int32_t i = 0; i < N_PLAIN; i++)
        cr_assert(r->devices[i] = fake_open(i, opt));
    cr_assert(r->devices[N_PLAIN] = fake_open(0, &(fake_options){.packs = true}));
    r->stages[0] = (td_stage){r->devices[0], 0, n_items / 2};
    r->stages[1] = (td_stage){r->devices[1], n_items / 2, n_items};
    r->stages[2] = (td_stage){r->devices[2], 0, n_items};
    r->stages[3] = (td_stage){r->devices[N_PLAIN], 0, n_items};
}

static void rig_close(rig *r) {
    td_weights_close(r->w);
    for (int32_t i = 0; i <= N_PLAIN; i++)
        td_device_close(r->devices[i]);
}

static void expect_nothing_left(void) {
    cr_expect_eq(fake_live(), 0, "%d objects are left", fake_live());
    cr_expect_eq(fake_device_bytes(), 0);
}

/* Bytes of all tensors of the file. */
static uint64_t file_bytes(const char *dir) {
    char *path = td_asprintf("%s/model.safetensors", dir);
    td_safetensors *st;
    td_error e;
    size_t n;
    cr_assert_eq(td_safetensors_open(path, TD_E_MODEL, &st, &e), TD_OK, "%s", e.text);
    td_safetensors_data(st, &n);
    td_safetensors_close(st);
    free(path);
    return n;
}

static void check_family(const char *name, td_dtype compute, const char *staging) {
    char *dir = td_asprintf(FAMILIES_DIR "/%s", name);
    fake_options opt = {.max_delay_us = 30};
    rig oracle, r;
    td_error e;
    td_load_stats stats = {0}, want_stats = {0};
    uint64_t want_hash, hash;
    rig_open(&oracle, dir, &opt);
    cr_assert_eq(td_weights_load(oracle.w, &oracle.stages[3], 1, compute, &want_stats, &e), TD_OK,
                 "%s: %s", name, e.text);
    cr_assert_eq(td_weights_hash(oracle.w, &want_hash, &e), TD_OK);
    const td_domain_weights *want = td_weights_of(oracle.w, oracle.devices[N_PLAIN]);
    uint64_t oracle_bytes = fake_device_bytes();

    setenv("TDGEN_DEBUG_STAGING", staging, 1);
    rig_open(&r, dir, &opt);
    cr_assert_eq(td_weights_load(r.w, r.stages, 3, compute, &stats, &e), TD_OK, "%s: %s", name,
                 e.text);
    char *what = td_asprintf("%s in %s, staging %s", name, td_dtype_name(compute), staging);
    for (int32_t i = 0; i < N_PLAIN; i++) {
        const td_domain_weights *d = td_weights_of(r.w, r.devices[i]);
        cr_assert(d);
        comparison c = compare(what, r.w, d, want);
        cr_expect_gt(c.n_arrays, 3);
        if (i == 2)
            cr_expect_eq(c.n_bytes, oracle_bytes, "%s: everything was compared", what);
    }
    cr_expect_eq(stats.bytes_sent, fake_device_bytes() - oracle_bytes, "%s", what);
    cr_expect_eq(stats.n_domains, 3);
    cr_expect_eq(td_weights_hash(r.w, &hash, &e), TD_OK);
    cr_expect_eq(hash, want_hash, "%s", what);
    cr_expect_eq(stats.bytes_read, want_stats.bytes_read, "%s: each tensor is read once", what);
    cr_expect(stats.bytes_read > 0 && stats.bytes_read <= file_bytes(dir));
    free(what);
    rig_close(&r);
    unsetenv("TDGEN_DEBUG_STAGING");
    rig_close(&oracle);
    expect_nothing_left();
    free(dir);
}

Test(weights, every_family_arrives_as_packing_devices_have_it) {
    /* Blocks of one run of a few rows, of odd pieces of rows, and all at once. */
    static const char *const stagings[] = {"3 3 4096", "8 16 192", "4 4 8388608"};
    static const td_dtype computes[] = {TD_F32, TD_BF16, TD_F16};
    DIR *list = opendir(FAMILIES_DIR);
    int n = 0;
    cr_assert(list);
    for (struct dirent *d; (d = readdir(list)) != NULL;) {
        if (strchr(d->d_name, '.'))
            continue;
        check_family(d->d_name, computes[n % 3], stagings[n / 3 % 3]);
        check_family(d->d_name, computes[(n + 1) % 3], stagings[(n / 3 + 1) % 3]);
        n++;
    }
    closedir(list);
    cr_expect_gt(n, 40);
}

/* Devices that pack and devices that do not, in one run: both are served step by step. */
Test(weights, both_kinds_of_devices_in_one_run) {
    static const char *const names[] = {"llama_bf16_tied", "gpt_neox", "qwen3_moe_fp8", "gpt2"};
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++) {
        char *dir = td_asprintf(FAMILIES_DIR "/%s", names[i]);
        rig r;
        td_error e;
        td_load_stats stats, want;
        rig_open(&r, dir, &(fake_options){0});
        cr_assert_eq(td_weights_load(r.w, &r.stages[3], 1, TD_BF16, &want, &e), TD_OK);
        rig_close(&r);
        rig_open(&r, dir, &(fake_options){.max_delay_us = 50});
        cr_assert_eq(td_weights_load(r.w, r.stages, 4, TD_BF16, &stats, &e), TD_OK, "%s", e.text);
        for (int32_t k = 0; k < N_PLAIN; k++)
            compare(names[i], r.w, td_weights_of(r.w, r.devices[k]),
                    td_weights_of(r.w, r.devices[N_PLAIN]));
        cr_expect_eq(stats.bytes_read, want.bytes_read, "%s", names[i]);
        cr_expect_eq(stats.n_domains, 4);
        rig_close(&r);
        expect_nothing_left();
        free(dir);
    }
}

/* --- what is read ----------------------------------------------------------------------------- */

/* Bytes that this process has read by system calls. */
static uint64_t bytes_read_so_far(void) {
    unsigned long long n = 0;
    FILE *f = fopen("/proc/self/io", "r");
    cr_assert(f && fscanf(f, "rchar: %llu", &n) == 1);
    fclose(f);
    return n;
}

Test(weights, three_domains_cost_one_read) {
#define LAYER FX_LAYER(4, 2, 64, 512)
    td_model_config cfg = {.architecture = "LlamaForCausalLM",
                           .n_layers = 3,
                           .n_hidden = 256,
                           .layers = {LAYER, LAYER, LAYER},
                           .n_vocab = 2000,
                           .pre_norm = true,
                           .tied_embeddings = true};
    fx_model m = fx_model_make(&cfg, TD_BF16, 3);
    char *dir = test_temp_dir();
    td_device *devices[3];
    td_stage stages[3];
    td_weights *w;
    td_error e;
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    for (int32_t n = 1; n <= 3; n++) {
        td_load_stats stats;
        for (int32_t i = 0; i < n; i++) {
            cr_assert(devices[i] = fake_open(i, &(fake_options){0}));
            stages[i] = (td_stage){devices[i], 0, cfg.n_layers + 2};
        }
        cr_assert_eq(td_weights_open(dir, &cfg, &w, &e), TD_OK, "%s", e.text);
        uint64_t before = bytes_read_so_far();
        cr_assert_eq(td_weights_load(w, stages, n, TD_BF16, &stats, &e), TD_OK, "%s", e.text);
        uint64_t read = bytes_read_so_far() - before, file = file_bytes(dir);
        cr_expect_eq(stats.bytes_read, file);
        /* And what /proc/self/io itself and the table of cores took. */
        cr_expect(read >= file && read < file + 4096, "%llu of %llu bytes for %d domains",
                  (unsigned long long)read, (unsigned long long)file, n);
        /* The table, and lm_head again; the vectors as f32. */
        cr_expect_eq(stats.bytes_sent, fake_device_bytes());
        cr_expect_gt(stats.bytes_sent, (uint64_t)n * file);
        td_weights_close(w);
        for (int32_t i = 0; i < n; i++)
            td_device_close(devices[i]);
        cr_expect_eq(fake_live(), 0);
    }
    fx_model_free(&m);
}

/* --- pieces of the way ------------------------------------------------------------------------ */

/* The loops over arrays against the functions of one value; odd addresses and lengths. */
Test(weights, conversion_of_arrays_is_that_of_values) {
    enum { N = 4099 };
    static const td_dtype types[] = {TD_F32, TD_BF16, TD_F16};
    unsigned char *src = malloc(4 * N + 3), *dst = malloc(4 * N);
    uint64_t seed = 5;
    for (int round = 0; round < 200; round++)
        for (size_t f = 0; f < 3; f++)
            for (size_t t = 0; t < 3; t++) {
                size_t shift = test_random(&seed) % 4, n = test_random(&seed) % N, overflow = n;
                unsigned char *p = src + shift;
                for (size_t i = 0; i < n;
                     i++) { /* any bits; exponents near f16's half of the time */
                    uint32_t u = (uint32_t)test_random(&seed);
                    if (types[f] == TD_F32 && u & 1)
                        u = (u & 0x80ffffffu) + ((0x36u + (u >> 8) % 20) << 24);
                    memcpy(p + i * td_dtype_size(types[f]), &u, td_dtype_size(types[f]));
                }
                bool fits = td_convert(p, types[f], dst, types[t], n);
                for (size_t i = 0; i < n; i++) {
                    float v = td_element_load(p, types[f], i), w = v;
                    uint16_t h = 0;
                    if (types[t] == TD_F32) {
                        cr_assert(!memcmp(&v, dst + 4 * i, 4));
                        continue;
                    }
                    memcpy(&h, dst + 2 * i, 2);
                    if (types[f] == types[t]) {
                        cr_assert(!memcmp(&h, p + 2 * i, 2));
                        continue;
                    }
                    cr_assert_eq(h, types[t] == TD_BF16 ? td_f32_to_bf16(v) : td_f32_to_f16(v));
                    w = types[t] == TD_BF16 ? td_bf16_to_f32(h) : td_f16_to_f32(h);
                    if (isfinite(v) && isinf(w) && overflow == n)
                        overflow = i;
                }
                cr_expect_eq(fits, overflow == n);
                cr_expect_eq(td_convert_overflow(p, types[f], types[t], n), overflow);
            }
    free(src);
    free(dst);
}

Test(weights, pieces_hash_as_the_whole) {
    enum { N = 100000 };
    unsigned char *data = malloc(N);
    td_hasher *h = td_hasher_create();
    uint64_t seed = 9;
    for (size_t i = 0; i < N; i++)
        data[i] = (unsigned char)test_random(&seed);
    cr_assert(h);
    for (int round = 0; round < 50; round++) {
        size_t n = test_random(&seed) % N;
        td_hasher_reset(h);
        for (size_t i = 0, m; i < n; i += m) {
            m = test_random(&seed) % 5000;
            m = TD_MIN(m, n - i);
            td_hasher_update(h, data + i, m);
        }
        cr_expect_eq(td_hasher_digest(h), td_hash64(data, n));
    }
    td_hasher_destroy(h);
    td_hasher_destroy(NULL);
    free(data);
}

/* --- failures --------------------------------------------------------------------------------- */

Test(weights, a_failure_at_each_call_is_named_and_leaves_nothing) {
    static const char *const names[] = {"llama_bf16_tied", "gpt_neox"};
    int n_failed = 0;
    setenv("TDGEN_DEBUG_STAGING", "3 4 2048", 1);
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++) {
        char *dir = td_asprintf(FAMILIES_DIR "/%s", names[i]);
        rig r;
        td_error e;
        rig_open(&r, dir, &(fake_options){0});
        fake_fail_at(0);
        cr_assert_eq(td_weights_load(r.w, r.stages, 3, TD_F32, NULL, &e), TD_OK, "%s", e.text);
        int n = fake_calls();
        rig_close(&r);
        rig_open(&r, dir, &(fake_options){0});
        for (int k = 1; k <= n; k += k < 300 || k > n - 50 ? 1 : 13) {
            fake_fail_at(k);
            td_status rc = td_weights_load(r.w, r.stages, 3, TD_F32, NULL, &e);
            cr_assert_eq(rc, TD_E_DEVICE, "call %d of %d: %s", k, n, e.text);
            cr_expect(strstr(e.text, "fails for the test") && strstr(e.text, "fake:"), "%s",
                      e.text);
            cr_expect_eq(fake_live(), 0, "call %d leaves %d objects", k, fake_live());
            n_failed++;
        }
        fake_fail_at(0);
        for (int k = 1; k <= 40; k++) { /* copies that fail when they run */
            fake_fail_copy(k);
            cr_assert_eq(td_weights_load(r.w, r.stages, 3, TD_F32, NULL, &e), TD_E_DEVICE);
            cr_expect(strstr(e.text, "sending tensor ") &&
                          strstr(e.text, "or one before it: fake:") &&
                          strstr(e.text, "a copy failed for the test"),
                      "%s", e.text);
            cr_expect_eq(fake_live(), 0);
        }
        fake_fail_copy(0);
        cr_expect_eq(td_weights_load(r.w, r.stages, 3, TD_F32, NULL, &e), TD_OK, "%s", e.text);
        rig_close(&r);
        expect_nothing_left();
        free(dir);
    }
    cr_expect_gt(n_failed, 300);
    printf("weights: %d failing calls\n", n_failed);
}

Test(weights, a_file_that_was_cut_is_an_error) {
    td_model_config cfg = {.architecture = "LlamaForCausalLM",
                           .n_layers = 1,
                           .n_hidden = 64,
                           .layers = {FX_LAYER(2, 2, 32, 64)},
                           .n_vocab = 4000,
                           .pre_norm = true};
    fx_model m = fx_model_make(&cfg, TD_BF16, 3);
    char *dir = test_temp_dir(), *path = td_asprintf("%s/model.safetensors", dir);
    td_weights *w;
    td_error e;
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    td_device *device = fake_open(0, &(fake_options){0});
    td_stage stage = {device, 0, cfg.n_layers + 2};
    cr_assert_eq(td_weights_open(dir, &cfg, &w, &e), TD_OK, "%s", e.text);
    /* One reader: with several, a tensor behind the embedding may be the first to fail. */
    setenv("TDGEN_DEBUG_STAGING", "1 1 8388608", 1);
    cr_assert_eq(truncate(path, 200000), 0);
    cr_expect_eq(td_weights_load(w, &stage, 1, TD_BF16, NULL, &e), TD_E_MODEL);
    cr_expect(strstr(e.text, "tensor model.embed_tokens.weight: ") &&
                  strstr(e.text, "model.safetensors ended early"),
              "%s", e.text);
    unsetenv("TDGEN_DEBUG_STAGING");
    td_weights_close(w);
    cr_expect_eq(fake_live(), 0);
    td_device_close(device);
    fx_model_free(&m);
    free(path);
}

Test(weights, values_that_the_compute_type_cannot_hold_are_refused) {
    static const struct {
        td_dtype stored, compute;
        float value;
        const char *says; /* NULL: loads */
    } cases[] = {
        {TD_BF16, TD_F16, 65536.0f,
         "tensor model.layers.0.mlp.up_proj.weight: element [3, 7] is 65536, beyond the range of "
         "f16, in which fake:0 computes; set model.compute = f32, or bf16"},
        {TD_BF16, TD_F16, -0x1p100f, "element [3, 7] is -1.26765e+30, beyond the range of f16"},
        {TD_BF16, TD_F16, 65280.0f, NULL},
        {TD_BF16, TD_F16, INFINITY, NULL}, /* the checkpoint's own */
        {TD_F32, TD_F16, 65520.0f, "element [3, 7] is 65520, beyond the range of f16"},
        {TD_F32, TD_F16, 65519.99f, NULL},
        {TD_F32, TD_BF16, 3.4e38f, "beyond the range of bf16, in which fake:0 computes"},
        {TD_F32, TD_F32, 3.4e38f, NULL},
        {TD_F16, TD_F16, 65504.0f, NULL},
        {TD_F16, TD_BF16, 65504.0f, NULL},
    };
    td_model_config cfg = {.architecture = "LlamaForCausalLM",
                           .n_layers = 1,
                           .n_hidden = 64,
                           .layers = {FX_LAYER(2, 2, 32, 64)},
                           .n_vocab = 100,
                           .pre_norm = true};
    td_device *device = fake_open(0, &(fake_options){0});
    td_stage stage = {device, 0, cfg.n_layers + 2};
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        fx_model m = fx_model_make(&cfg, cases[i].stored, 3);
        char *dir = test_temp_dir();
        td_weights *w;
        td_error e = {0};
        const fx_tensor *t = fx_find(&m, "model.layers.0.mlp.up_proj.weight");
        t->values[3 * 64 + 7] = cases[i].value;
        fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
        cr_assert_eq(td_weights_open(dir, &cfg, &w, &e), TD_OK, "%s", e.text);
        td_status rc = td_weights_load(w, &stage, 1, cases[i].compute, NULL, &e);
        cr_expect_eq(rc, cases[i].says ? TD_E_MODEL : TD_OK, "case %zu: %s", i, e.text);
        cr_expect(!cases[i].says || strstr(e.text, cases[i].says), "case %zu: %s", i, e.text);
        td_weights_close(w);
        fx_model_free(&m);
    }
    cr_expect_eq(fake_live(), 0);
    td_device_close(device);
}
