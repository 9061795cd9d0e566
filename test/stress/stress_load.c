/* stress_load.c - weights loaded by several readers into devices whose copies run late
 * (model/fake_device.h), over and over, with few and small staging blocks, so that each block is
 * used many times; now and then a copy fails. Run under ThreadSanitizer as well. Exits 0 when every
 * load has each element in each domain, and each failure is reported. With STRESS_PRETEND the
 * devices are the CUDA device's own code over test/pretend, whose memory the host can read.
 *
 *   stress_load                    the stress
 *   stress_load FOLDER MEGABYTES   the speed of loading a file of that size from there
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "test/model/fake_device.h"
#include "test/model/fixture.h"
#include "model/weights.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { N_DOMAINS = 3, ROUNDS = 12 };

static int n_failed;

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, err.text);              \
            n_failed++;                                                                            \
        }                                                                                          \
    } while (0)

#ifdef STRESS_PRETEND
/* Where weight_create put each weight, seen by a table in front of the device's. */
enum { MAX_WEIGHTS = 256 };
static struct {
    const td_weight *weight;
    const void *data;
} seen[MAX_WEIGHTS];
static int n_seen;
static td_device_ops recording_ops;
static const td_device_ops *real_ops;

static td_status recording_create(td_device *dev, int64_t n_rows, int64_t n_cols, td_dtype compute,
                                  td_weight **out, void **data, td_error *err) {
    td_status rc = real_ops->weight_create(dev, n_rows, n_cols, compute, out, data, err);
    if (rc == TD_OK && n_seen < MAX_WEIGHTS) {
        seen[n_seen].weight = *out;
        seen[n_seen++].data = *data;
    }
    return rc;
}

static const void *weight_data(const td_weight *w) {
    for (int i = n_seen; i-- > 0;) /* the latest of that address */
        if (seen[i].weight == w)
            return seen[i].data;
    return NULL;
}

static td_device *open_device(int32_t index, const fake_options *opt) {
    td_device_info *info = NULL;
    td_device *dev = NULL;
    td_error err = {0};
    int32_t n = 0;
    (void)opt;
    n_seen = 0;
    EXPECT(!td_device_enumerate("cuda", 0, &info, &n, &err) && n == N_DOMAINS);
    EXPECT(!td_device_open(&info[index], &dev, &err));
    free(info);
    real_ops = dev->ops;
    recording_ops = *real_ops;
    recording_ops.weight_create = recording_create;
    dev->ops = &recording_ops;
    return dev;
}

static int n_live(void) {
    return 0;
}
#else
static const void *weight_data(const td_weight *w) {
    return fake_weight_data(w);
}

static td_device *open_device(int32_t index, const fake_options *opt) {
    return fake_open(index, opt);
}

static int n_live(void) {
    return fake_live();
}
#endif

/* Element i of tensor k, as f32 that bf16 holds exactly. */
static float element(uint32_t k, uint64_t i) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u + k * 0xbf58476d1ce4e5b9u;
    uint32_t u = 0x3f800000u | ((uint32_t)(z >> 57) << 16) | ((uint32_t)(z >> 40) & 0x80000000u);
    float f;
    memcpy(&f, &u, 4);
    return f;
}

typedef struct writer {
    td_strbuf header;
    FILE *f;
    uint64_t at;
    uint32_t n;
    td_dtype dtype;
} writer;

static void put(writer *w, bool data, const char *name, int32_t layer, int64_t rows, int64_t cols) {
    uint64_t n = (uint64_t)(rows * (cols ? cols : 1)), end = w->at + n * td_dtype_size(w->dtype);
    if (!data) {
        char shape[64], full[96];
        snprintf(shape, sizeof shape, cols ? "%lld,%lld" : "%lld", (long long)rows,
                 (long long)cols);
        snprintf(full, sizeof full, layer < 0 ? "%s" : "model.layers.%2$d.%1$s", name, layer);
        td_strbuf_printf(&w->header,
                         "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],"
                         "\"data_offsets\":[%llu,%llu]}",
                         w->n ? ',' : '{', full, w->dtype == TD_F32 ? "F32" : "BF16", shape,
                         (unsigned long long)w->at, (unsigned long long)end);
    }
    float values[1024];
    uint16_t halves[1024];
    for (uint64_t i = 0; data && i < n; i += TD_ARRAY_LEN(values)) {
        uint64_t m = TD_MIN((uint64_t)TD_ARRAY_LEN(values), n - i);
        for (uint64_t j = 0; j < m; j++) {
            values[j] = element(w->n, i + j);
            halves[j] = td_f32_to_bf16(values[j]);
        }
        if (w->dtype == TD_F32)
            fwrite(values, 4, m, w->f);
        else
            fwrite(halves, 2, m, w->f);
    }
    w->at = end;
    w->n++;
}

/* The numbers of the tensors follow from this order: what check() relies on. */
static void put_all(writer *w, bool data, const td_model_config *c) {
    const td_attention *a = &c->layers[0].mixer.attention;
    int64_t C = c->n_hidden, F = c->layers[0].ffn.dense.n_ffn;
    int64_t q = a->n_heads * a->head_dim, kv = a->n_kv_heads * a->head_dim;
    w->at = w->n = 0;
    put(w, data, "model.embed_tokens.weight", -1, c->n_vocab, C);
    put(w, data, "model.norm.weight", -1, C, 0);
    for (int32_t l = 0; l < c->n_layers; l++) {
        put(w, data, "input_layernorm.weight", l, C, 0);
        put(w, data, "post_attention_layernorm.weight", l, C, 0);
        put(w, data, "self_attn.q_proj.weight", l, q, C);
        put(w, data, "self_attn.k_proj.weight", l, kv, C);
        put(w, data, "self_attn.v_proj.weight", l, kv, C);
        put(w, data, "self_attn.o_proj.weight", l, C, q);
        put(w, data, "mlp.gate_proj.weight", l, F, C);
        put(w, data, "mlp.up_proj.weight", l, F, C);
        put(w, data, "mlp.down_proj.weight", l, C, F);
    }
}

static bool write_model(const char *dir, const td_model_config *c, td_dtype dtype) {
    char *path = td_asprintf("%s/model.safetensors", dir);
    writer w = {.f = fopen(path, "wb"), .dtype = dtype};
    free(path);
    if (!w.f)
        return false;
    put_all(&w, false, c);
    td_strbuf_puts(&w.header, "}");
    uint64_t n = w.header.len; /* x86-64: little-endian, as the format wants it */
    fwrite(&n, 8, 1, w.f);
    fwrite(w.header.data, 1, n, w.f);
    put_all(&w, true, c);
    td_strbuf_free(&w.header);
    return fclose(w.f) == 0;
}

static bool rows_are(const void *data, td_dtype dtype, uint32_t tensor, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        float want = element(tensor, i);
        bool same = dtype == TD_F32 ? ((const float *)data)[i] == want
                                    : td_bf16_to_f32(((const uint16_t *)data)[i]) == want;
        if (!same)
            return false;
    }
    return true;
}

static bool check(const td_model_config *c, const td_domain_weights *d, td_dtype compute) {
    const td_attention *a = &c->layers[0].mixer.attention;
    uint64_t C = (uint64_t)c->n_hidden, V = (uint64_t)c->n_vocab;
    uint64_t F = (uint64_t)c->layers[0].ffn.dense.n_ffn;
    uint64_t q = (uint64_t)(a->n_heads * a->head_dim), kv = (uint64_t)(a->n_kv_heads * a->head_dim);
    size_t elem = td_dtype_size(compute);
    bool ok = true;
    if (d->has_item[0])
        ok &= rows_are(d->embed_table, compute, 0, V * C);
    if (d->has_item[c->n_layers + 1])
        ok &= rows_are(weight_data(d->lm_head), compute, 0, V * C) &&
              rows_are(d->final_norm, TD_F32, 1, C);
    for (int32_t l = 0; l < c->n_layers; l++) {
        const td_layer_weights *x = &d->layers[l];
        uint32_t t = 2 + 9 * (uint32_t)l;
        if (!d->has_item[l + 1])
            continue;
        const char *qkv = weight_data(x->mat[TD_LM_QKV]);
        const char *up = weight_data(x->mat[TD_LM_UP]);
        ok &= rows_are(x->vec[TD_LV_ATTN_NORM], TD_F32, t, C) &&
              rows_are(x->vec[TD_LV_FFN_NORM], TD_F32, t + 1, C) &&
              rows_are(qkv, compute, t + 2, q * C) &&
              rows_are(qkv + q * C * elem, compute, t + 3, kv * C) &&
              rows_are(qkv + (q + kv) * C * elem, compute, t + 4, kv * C) &&
              rows_are(weight_data(x->mat[TD_LM_O]), compute, t + 5, C * q) &&
              rows_are(up, compute, t + 6, F * C) &&
              rows_are(up + F * C * elem, compute, t + 7, F * C) &&
              rows_are(weight_data(x->mat[TD_LM_DOWN]), compute, t + 8, C * F);
    }
    return ok;
}

static void open_devices(td_device **devices, td_stage *stages, int32_t n, fake_options opt,
                         int32_t n_items) {
    for (int32_t i = 0; i < n; i++) {
        devices[i] = open_device(i, &opt);
        stages[i] = (td_stage){devices[i], 0, n_items};
    }
}

static void stress(const char *dir) {
    td_model_config c = {.architecture = "LlamaForCausalLM",
                         .n_layers = 3,
                         .n_hidden = 96,
                         .n_vocab = 1000,
                         .pre_norm = true,
                         .tied_embeddings = true};
    for (int32_t i = 0; i < c.n_layers; i++)
        c.layers[i] = (td_layer)FX_LAYER(6, 2, 16, 200);
    td_error err = {0};
    uint64_t first_hash = 0;
    EXPECT(write_model(dir, &c, TD_F32));
    for (int round = 0; round < ROUNDS; round++) {
        td_device *devices[N_DOMAINS];
        td_stage stages[N_DOMAINS];
        td_weights *w;
        td_load_stats stats;
        uint64_t hash = 0;
        char staging[64];
        td_dtype compute = round % 2 ? TD_F32 : TD_BF16;
        snprintf(staging, sizeof staging, "%d %d %d", 2 + round % 4, 2 + round % 5,
                 2048 + round * 1000);
        setenv("TDGEN_DEBUG_STAGING", staging, 1);
        open_devices(devices, stages, N_DOMAINS, (fake_options){.max_delay_us = 100},
                     c.n_layers + 2);
        stages[0].item_end = 3;
        stages[1].item_begin = 3;
        EXPECT(!td_weights_open(dir, &c, &w, &err));
#ifndef STRESS_PRETEND
        if (round % 4 == 3) { /* a failure, then all of it again */
            fake_fail_copy(50 + round);
            EXPECT(td_weights_load(w, stages, N_DOMAINS, compute, NULL, &err) == TD_E_DEVICE);
            EXPECT(strstr(err.text, "a copy failed for the test") && n_live() == 0);
            fake_fail_copy(0);
        }
#endif
        EXPECT(!td_weights_load(w, stages, N_DOMAINS, compute, &stats, &err));
        for (int32_t i = 0; i < N_DOMAINS; i++)
            EXPECT(check(&c, td_weights_of(w, devices[i]), compute));
        EXPECT(!td_weights_hash(w, &hash, &err));
        first_hash = round ? first_hash : hash;
        EXPECT(hash == first_hash);
        td_weights_close(w);
        for (int32_t i = 0; i < N_DOMAINS; i++)
            td_device_close(devices[i]);
        EXPECT(n_live() == 0);
    }
    printf("stress_load: %d rounds, %d failures\n", ROUNDS, n_failed);
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A model of about `mega` MB in bf16, shaped like an 8B one on a smaller scale. */
static void measure(const char *dir, int mega) {
    td_model_config c = {.architecture = "LlamaForCausalLM",
                         .n_hidden = 2048,
                         .n_vocab = 32000,
                         .pre_norm = true,
                         .tied_embeddings = true};
    c.n_layers = TD_MIN(TD_MAX((mega - 131) / 109, 1), TD_MAX_LAYERS);
    for (int32_t i = 0; i < c.n_layers; i++)
        c.layers[i] = (td_layer)FX_LAYER(16, 4, 128, 7168);
    td_error err = {0};
    for (int stored = 0; stored < 2; stored++) {
        td_dtype dtype = stored ? TD_F32 : TD_BF16;
        EXPECT(write_model(dir, &c, dtype));
        for (int k = 0; k < 8; k++) {
            td_device *devices[2];
            td_stage stages[2];
            td_weights *w;
            td_load_stats s = {0};
            int32_t n = 1 + k % 2;
            bool packs = k / 2 % 2 == 0;
            open_devices(devices, stages, n, (fake_options){.packs = packs, .discards = true},
                         c.n_layers + 2);
            EXPECT(!td_weights_open(dir, &c, &w, &err));
            double cpu0 = cpu_seconds();
            EXPECT(!td_weights_load(w, stages, n, TD_BF16, &s, &err));
            double cpu = cpu_seconds() - cpu0;
            printf("%s -> bf16, %s, %d device%s: %.2f GB read in %.2f s, %.2f GB/s; %.2f GB per "
                   "CPU second; sent %.2f GB\n",
                   td_dtype_name(dtype), packs ? "packing  " : "streaming", n, n == 1 ? " " : "s",
                   1e-9 * (double)s.bytes_read, s.seconds, 1e-9 * (double)s.bytes_read / s.seconds,
                   1e-9 * (double)s.bytes_read / cpu, 1e-9 * (double)s.bytes_sent);
            fflush(stdout);
            td_weights_close(w);
            for (int32_t i = 0; i < n; i++)
                td_device_close(devices[i]);
        }
    }
}

int main(int argc, char **argv) {
#ifdef STRESS_PRETEND
    setenv("TDGEN_PRETEND_GPUS", "A100:8.0:108:1*3", 1);
    setenv("TDGEN_PRETEND_JITTER", "1", 0);
#endif
    char dir[] = "/tmp/tdgen-stress-load-XXXXXX";
    const char *where = argc == 3 ? argv[1] : mkdtemp(dir);
    if (!where) {
        perror("mkdtemp");
        return 1;
    }
    if (argc == 3)
        measure(where, atoi(argv[2]));
    else
        stress(where);
    char *path = td_asprintf("%s/model.safetensors", where);
    unlink(path);
    free(path);
    if (argc != 3)
        rmdir(where);
    return n_failed ? 1 : 0;
}
