/* Sessions: features against a plain f64 forward pass, bit identity, memory, and refusals. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "reference.h"
#include "base/memory.h"

enum { V = 96 };

static const td_model_config base = FX_SMALL(4, V);

/* --- features --------------------------------------------------------------------------------- */

static double max_diff_to_reference(const fx_model *m, const char *dir, const hs_samples *s) {
    hs_setup setup = {.dir = dir, .compute = TD_F32, .n_stages = 2, .top_k = V, .capture_rows = 7};
    hs_rows rows = hs_run(&setup, s);
    double *z = calloc((size_t)s->offsets[s->n] * V, sizeof *z), max = 0;
    for (int32_t i = 0; i < s->n; i++) {
        int32_t t0 = s->offsets[i], n = s->offsets[i + 1] - t0;
        ref_forward(m, s->ids + t0, n, z);
        for (int32_t t = 0; t < n; t++) {
            double sum = 0;
            for (int k = 0; k < V; k++)
                sum += exp(z[t * V + k]);
            for (int k = 0; k < V; k++) {
                int64_t at = (int64_t)(t0 + t) * V + k;
                double d = fabs(rows.topk_logprobs[at] - (z[t * V + rows.topk_ids[at]] - log(sum)));
                max = d <= max ? max : d;
            }
        }
    }
    free(z);
    hs_rows_free(&rows);
    return max;
}

Test(session, every_feature_agrees_with_a_plain_forward_pass) {
    static const struct {
        const char *what, *architecture, *extra;
        td_dtype dtype;
        bool tied, qkv_bias, qk_norm;
        int32_t window, first;
        double linear;
    } cases[] = {
        {"llama", "LlamaForCausalLM", "", TD_F32, false, false, false, 0, 0, 1},
        {"llama, f16 weights, tied", "LlamaForCausalLM", "", TD_F16, true, false, false, 0, 0, 1},
        {"llama, linear rope", "LlamaForCausalLM",
         ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}", TD_F32, false, false, false, 0,
         0, 4},
        {"mistral, window 5", "MistralForCausalLM", ",\"sliding_window\":5", TD_BF16, false, false,
         false, 5, 0, 1},
        {"qwen2, biases", "Qwen2ForCausalLM", "", TD_BF16, false, true, false, 0, 0, 1},
        {"qwen2, window 5 from layer 2", "Qwen2ForCausalLM",
         ",\"use_sliding_window\":true,\"sliding_window\":5,\"max_window_layers\":2", TD_F32, true,
         true, false, 5, 2, 1},
        {"qwen3", "Qwen3ForCausalLM", "", TD_F32, true, false, true, 0, 0, 1},
    };
    hs_samples s = hs_samples_random(5, 1, 40, V, 3);
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_model_config c = base;
        char *dir;
        strcpy(c.architecture, cases[i].architecture);
        c.tied_embeddings = cases[i].tied;
        for (int32_t l = 0; l < c.n_layers; l++) {
            td_attention *a = &c.layers[l].mixer.attention;
            a->qkv_bias = cases[i].qkv_bias;
            a->qk_norm = cases[i].qk_norm ? TD_QK_NORM_HEAD : TD_QK_NORM_NONE;
            a->window = l >= cases[i].first ? cases[i].window : 0;
        }
        c.rope[0].type = cases[i].linear > 1 ? TD_ROPE_LINEAR : TD_ROPE_DEFAULT;
        c.rope[0].factor = cases[i].linear;
        fx_model m = fx_model_write(&c, cases[i].dtype, cases[i].extra, &dir);
        double d = max_diff_to_reference(&m, dir, &s);
        printf("%s: max abs diff of log-probs to f64 %.2e\n", cases[i].what, d);
        fflush(stdout);
        cr_expect_leq(d, 2e-5, "%s", cases[i].what);
        fx_model_free(&m);
    }
    hs_samples_free(&s);
}

/* --- bit identity ----------------------------------------------------------------------------- */

/* Samples a, b, ... of `s` in the order given. */
static hs_samples pick(const hs_samples *s, const int32_t *order, int32_t n) {
    hs_samples p = {.n = n, .offsets = calloc((size_t)n + 1, 4)};
    for (int32_t i = 0; i < n; i++) {
        int32_t t0 = s->offsets[order[i]], len = s->offsets[order[i] + 1] - t0, at = p.offsets[i];
        p.ids = realloc(p.ids, (size_t)(at + len) * 4);
        memcpy(p.ids + at, s->ids + t0, (size_t)len * 4);
        p.offsets[i + 1] = at + len;
    }
    return p;
}

Test(session, a_sample_has_the_same_bytes_wherever_it_is_computed) {
    static const int32_t orders[][4] = {{0, 1, 2, 3}, {1, 0, 2, 3}, {3, 2, 1, 0}, {2, 3, 0, 1}};
    static const int32_t stage_counts[] = {1, 2, 4};
    hs_samples s = hs_samples_random(4, 60, 300, V, 11);
    td_model_config c = base;
    strcpy(c.architecture, "Qwen3ForCausalLM");
    for (int32_t l = 0; l < c.n_layers; l++)
        c.layers[l].mixer.attention.qk_norm = TD_QK_NORM_HEAD;
    char *dir;
    fx_model m = fx_model_write(&c, TD_BF16, "", &dir);
    int32_t n_compared = 0;
    for (int compute = TD_F32; compute <= TD_BF16; compute++) {
        if (!hs_can_compute((td_dtype)compute))
            continue;
        hs_setup setup = {.dir = dir,
                          .compute = (td_dtype)compute,
                          .n_stages = 1,
                          .top_k = 9,
                          .n_temperatures = 1,
                          .temperatures = {2.0f}};
        hs_samples alone = pick(&s, (int32_t[]){0}, 1);
        hs_rows want = hs_run(&setup, &alone);
        for (size_t k = 0; k < TD_ARRAY_LEN(stage_counts); k++)
            for (size_t o = 0; o < TD_ARRAY_LEN(orders); o++)
                for (int small = 0; small < 2; small++) {
                    hs_samples p = pick(&s, orders[o], 4);
                    int32_t at = 0;
                    while (orders[o][at])
                        at++;
                    setup.n_stages = stage_counts[k];
                    setup.max_tokens = small ? 300 : 0; /* several micro-batches in flight */
                    setup.capture_rows = small ? 33 : 128;
                    hs_rows got = hs_run(&setup, &p);
                    cr_expect(hs_rows_equal(&got, p.offsets[at], &want, 0, want.n),
                              "%s, %d stages, order %zu, %s micro-batches",
                              td_dtype_name((td_dtype)compute), stage_counts[k], o,
                              small ? "small" : "one");
                    n_compared++;
                    hs_rows_free(&got);
                    hs_samples_free(&p);
                }
        hs_rows_free(&want);
        hs_samples_free(&alone);
    }
    cr_expect_gt(n_compared, 0);
    printf("bit identity: %d arrangements compared\n", n_compared);
    fx_model_free(&m);
    hs_samples_free(&s);
}

Test(session, many_micro_batches_in_flight_stay_apart) {
    hs_samples s = hs_samples_random(60, 1, 40, V, 5);
    char *dir;
    fx_model m = fx_model_write(&base, TD_F32, "", &dir);
    hs_setup setup = {.dir = dir, .compute = TD_F32, .n_stages = 1, .top_k = 4};
    hs_rows want = hs_run(&setup, &s);
    setup.max_tokens = 48;
    for (int32_t n = 1; n <= 4; n++) {
        setup.n_stages = n;
        hs_rows got = hs_run(&setup, &s);
        cr_expect(hs_rows_equal(&got, 0, &want, 0, want.n), "%d stages", n);
        hs_rows_free(&got);
    }
    hs_rows_free(&want);
    fx_model_free(&m);
    hs_samples_free(&s);
}

/* --- memory and refusals ---------------------------------------------------------------------- */

/* A device whose allocations are counted, and can be made to fail. */
static td_device_ops counting_ops;
static const td_device_ops *real_ops;
static const td_device *counted[2];
static uint64_t allocated_bytes[2]; /* of counted[i] */
static int32_t n_live, fail_after = -1;

static td_status counting_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err) {
    if (fail_after == 0)
        return td_error_set(err, TD_E_DEVICE_OOM, "%s: no memory for the test", dev->info.name);
    td_status rc = real_ops->alloc(dev, size_bytes, out, err);
    if (rc == TD_OK) {
        allocated_bytes[dev == counted[1]] += size_bytes;
        n_live++;
        fail_after -= fail_after > 0;
    }
    return rc;
}

static void counting_free(td_device *dev, void *ptr) {
    n_live -= ptr != NULL;
    real_ops->free(dev, ptr);
}

static void count_allocations(td_device *const devices[2]) {
    real_ops = devices[0]->ops;
    counting_ops = *real_ops;
    counting_ops.alloc = counting_alloc;
    counting_ops.free = counting_free;
    for (int i = 0; i < 2; i++) {
        devices[i]->ops = &counting_ops;
        counted[i] = devices[i];
        allocated_bytes[i] = 0;
    }
}

typedef struct rig {
    char *dir;
    td_model_config cfg;
    td_weights *w;
    td_device *devices[2];
    td_stage stages[2];
    td_session_limits lim;
    td_capture_spec spec;
} rig;

static void rig_open(rig *r) {
    td_error e;
    fx_model m = fx_model_write(&base, TD_BF16, "", &r->dir);
    uint64_t file_bytes = 0;
    td_load_stats stats;
    for (size_t i = 0; i < m.n; i++)
        file_bytes += (uint64_t)(m.tensors[i].rows * TD_MAX(m.tensors[i].cols, 1)) * 2;
    fx_model_free(&m);
    cr_assert_eq(td_model_config_load(r->dir, &r->cfg, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_weights_open(r->dir, &r->cfg, &r->w, &e), TD_OK, "%s", e.text);
    hs_devices_open(r->devices, 2);
    hs_stages(&r->cfg, r->devices, 2, r->stages);
    cr_assert_eq(td_weights_load(r->w, r->stages, 2, TD_F32, &stats, &e), TD_OK, "%s", e.text);
    cr_expect_eq(stats.bytes_read, file_bytes, "each tensor is read once");
    r->lim = (td_session_limits){.narrow_attention = r->devices[0]->info.narrow_attention,
                                 .max_tokens = 50,
                                 .max_seqs = 7,
                                 .max_rows = 45,
                                 .n_slots = 3,
                                 .capture_rows = 16};
    r->spec =
        hs_spec(&r->cfg, (td_capture_spec){.top_k = 5, .n_temperatures = 1, .temperatures = {2}});
}

static void rig_close(rig *r) {
    td_weights_close(r->w);
    hs_devices_close(r->devices, 2);
}

Test(session, the_memory_estimate_is_what_is_allocated) {
    rig r;
    td_error e;
    td_session *s;
    rig_open(&r);
    count_allocations(r.devices);
    cr_assert_eq(td_session_create(r.w, r.stages, 2, &r.lim, &r.spec, &s, &e), TD_OK, "%s", e.text);
    for (int i = 0; i < 2; i++) {
        td_stage_memory m;
        td_stage_memory_estimate(&r.cfg, TD_F32, &r.lim, &r.spec, r.stages[i].item_begin,
                                 r.stages[i].item_end, &m);
        cr_expect_eq(allocated_bytes[i], m.activation_bytes + m.workspace_bytes);
        cr_expect_gt(m.activation_bytes, 0);
        /* One chunk of hidden rows and of logits, never all rows; then the captured values: top-k
         * ids and log-probs, one temperature, and five numbers per row, each from 64 bytes. */
        uint64_t chunk = 16 * (uint64_t)(base.n_hidden + V) * 4, row = (45 * 4 + 63) / 64 * 64;
        cr_expect_eq(m.workspace_bytes,
                     i ? chunk + 2 * ((45 * 5 * 4 + 63) / 64 * 64) + 6 * row : 0);
    }
    int32_t n_allocations = n_live;
    td_session_destroy(s);
    cr_expect_eq(n_live, 0);
    /* Out of memory at each allocation: named, and nothing is kept. */
    for (int32_t i = 0; i < n_allocations; i++) {
        fail_after = i;
        cr_expect_eq(td_session_create(r.w, r.stages, 2, &r.lim, &r.spec, &s, &e), TD_E_DEVICE_OOM);
        cr_expect(strstr(e.text, "no memory for the test"), "%s", e.text);
        cr_expect_eq(n_live, 0, "%d kept after failure %d", n_live, i);
    }
    for (int i = 0; i < 2; i++)
        r.devices[i]->ops = real_ops;
    rig_close(&r);
}

/* Experts, parallel and post norms, two and length-dependent ropes, learned positions: what each
 * kind of model allocates, on each of two stages, is what the planner was told. */
Test(session, the_memory_estimate_holds_for_every_family) {
    static const char *const names[] = {
        "qwen3_moe_mlp_only",
        "mixtral",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "phi3_longrope",
        "llama_rope_dynamic",
        "olmo2",
        "smollm3",
        "llama_fp8_block",
        "stablelm",
    };
    for (size_t f = 0; f < TD_ARRAY_LEN(names); f++) {
        char *dir = td_asprintf("%s/test/fixtures/families/%s", TD_SOURCE_DIR, names[f]);
        td_model_config cfg;
        td_weights *w;
        td_session *s;
        td_device *devices[2];
        td_stage stages[2];
        td_error e;
        cr_assert_eq(td_model_config_load(dir, &cfg, &e), TD_OK, "%s", e.text);
        cr_assert_eq(td_weights_open(dir, &cfg, &w, &e), TD_OK, "%s", e.text);
        hs_devices_open(devices, 2);
        hs_stages(&cfg, devices, 2, stages);
        cr_assert_eq(td_weights_load(w, stages, 2, TD_F32, NULL, &e), TD_OK, "%s", e.text);
        /* Above every limit of these models, so that ropes have their long sections. */
        td_session_limits lim = {.narrow_attention = devices[0]->info.narrow_attention,
                                 .max_tokens = 1500,
                                 .max_seqs = 9,
                                 .max_rows = 30,
                                 .n_slots = 3,
                                 .capture_rows = 8};
        const td_capture_spec spec = hs_spec(&cfg, (td_capture_spec){.top_k = 4});
        count_allocations(devices);
        cr_assert_eq(td_session_create(w, stages, 2, &lim, &spec, &s, &e), TD_OK, "%s", e.text);
        uint64_t weight_bytes = 0;
        for (int i = 0; i < 2; i++) {
            td_stage_memory m;
            td_stage_memory_estimate(&cfg, TD_F32, &lim, &spec, stages[i].item_begin,
                                     stages[i].item_end, &m);
            cr_expect_eq(allocated_bytes[i], m.activation_bytes + m.workspace_bytes, "%s, stage %d",
                         names[f], i);
            weight_bytes += m.weight_bytes;
        }
        uint64_t tied = cfg.tied_embeddings ? (uint64_t)cfg.n_vocab * (uint64_t)cfg.n_hidden : 0;
        cr_expect_eq(weight_bytes, ((uint64_t)cfg.n_params + tied) * 4, "%s", names[f]);
        td_session_destroy(s);
        cr_expect_eq(n_live, 0, "%s", names[f]);
        for (int i = 0; i < 2; i++)
            devices[i]->ops = real_ops;
        td_weights_close(w);
        hs_devices_close(devices, 2);
        free(dir);
    }
}

Test(session, ids_above_the_valid_vocabulary_get_no_probability) {
    enum { VALID = V - 11 };
    char *dir;
    fx_model m = fx_model_write(&base, TD_F32, "", &dir);
    hs_samples s = hs_samples_random(3, 5, 20, V, 21);
    hs_setup setup = {.dir = dir, .compute = TD_F32, .n_stages = 1, .top_k = V};
    hs_rows all = hs_run(&setup, &s);
    setup.n_valid_vocab = VALID;
    hs_rows some = hs_run(&setup, &s);
    for (int32_t r = 0; r < all.n; r++) {
        double mass = 0;
        for (int k = 0; k < V; k++) {
            if (all.topk_ids[r * V + k] < VALID)
                mass += exp(all.topk_logprobs[r * V + k]);
            cr_expect_lt(some.topk_ids[r * V + k], VALID, "row %d", r);
            cr_expect_eq(some.topk_ids[r * V + k] < 0, k >= VALID, "row %d", r);
        }
        cr_expect_lt(fabs(some.logsumexp[r] - (all.logsumexp[r] + log(mass))), 1e-5, "row %d", r);
    }
    hs_rows_free(&all);
    hs_rows_free(&some);
    hs_samples_free(&s);
    fx_model_free(&m);
}

/* transformers raises an index error there; rotary models go on, as theirs do. */
Test(session, refuses_samples_beyond_learned_positions) {
    static const char dir[] = TD_SOURCE_DIR "/test/fixtures/families/gpt2";
    td_model_config cfg;
    td_weights *w;
    td_session *s;
    td_device *device;
    td_stage stage;
    td_error e;
    td_captured cap;
    cr_assert_eq(td_model_config_load(dir, &cfg, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_weights_open(dir, &cfg, &w, &e), TD_OK, "%s", e.text);
    hs_devices_open(&device, 1);
    hs_stages(&cfg, &device, 1, &stage);
    cr_assert_eq(td_weights_load(w, &stage, 1, TD_F32, NULL, &e), TD_OK, "%s", e.text);
    int32_t P = cfg.max_positions, *ids = td_calloc((size_t)P + 1, sizeof *ids);
    td_session_limits lim = {.narrow_attention = device->info.narrow_attention,
                             .max_tokens = P + 1,
                             .max_seqs = 2,
                             .max_rows = 1,
                             .n_slots = 2,
                             .capture_rows = 1};
    td_capture_spec spec = hs_spec(&cfg, (td_capture_spec){.top_k = 1});
    cr_assert_eq(td_session_create(w, &stage, 1, &lim, &spec, &s, &e), TD_OK, "%s", e.text);
    int32_t row = P - 1, target = -1, too_long[] = {0, P + 1}, fits[] = {0, P, P + 1};
    td_batch b = {P + 1, 1, 1, ids, too_long, &row, &target, NULL, NULL};
    cr_expect_eq(td_session_submit(s, 0, &b, &e), TD_E_DATA);
    cr_expect(strstr(e.text, "learned positions of the model; set data.max_length"), "%s", e.text);
    b.n_seqs = 2;
    b.seq_offsets = fits;
    cr_assert_eq(td_session_submit(s, 0, &b, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_session_wait(s, 0, 0, &cap, &e), TD_OK, "%s", e.text);
    cr_expect(isfinite(cap.logsumexp[0]));
    spec.n_valid = cfg.n_vocab + 1;
    td_session_destroy(s);
    cr_expect_eq(td_session_create(w, &stage, 1, &lim, &spec, &s, &e), TD_E_INTERNAL);
    cr_expect(strstr(e.text, "valid ids in a vocabulary of"), "%s", e.text);
    td_weights_close(w);
    hs_devices_close(&device, 1);
    free(ids);
}

Test(session, weight_bytes_add_up_to_the_parameters) {
    td_session_limits lim = {.max_tokens = 1, .max_seqs = 1, .max_rows = 1, .capture_rows = 1};
    td_model_config c = base;
    char *dir;
    td_error e;
    fx_model m = fx_model_write(&base, TD_F32, "", &dir);
    cr_assert_eq(td_model_config_load(dir, &c, &e), TD_OK, "%s", e.text);
    const td_capture_spec spec = hs_spec(&c, (td_capture_spec){.top_k = 1});
    uint64_t sum = 0;
    for (int32_t i = 0; i < c.n_layers + 2; i++) {
        td_stage_memory one;
        td_stage_memory_estimate(&c, TD_F32, &lim, &spec, i, i + 1, &one);
        sum += one.weight_bytes;
    }
    cr_expect_eq(sum, (uint64_t)c.n_params * 4);
    fx_model_free(&m);
}

Test(session, refuses_what_does_not_fit_and_stays_usable) {
    rig r;
    td_error e;
    td_session *s;
    td_captured cap;
    rig_open(&r);
    cr_assert_eq(td_session_create(r.w, r.stages, 2, &r.lim, &r.spec, &s, &e), TD_OK, "%s", e.text);
    int32_t ids[60] = {1, 2, 3, 4}, offsets[] = {0, 2, 4}, rows[] = {0, 2}, targets[] = {2, 4};
    const td_batch good = {4, 2, 2, ids, offsets, rows, targets, NULL, NULL};
    td_batch b;
    int32_t bad_ids[] = {1, V, 3, 4}, negative[] = {1, -1, 3, 4}, bad_offsets[] = {0, 0, 4};
    int32_t short_offsets[] = {0, 2, 3}, bad_rows[] = {2, 2}, far_rows[] = {0, 4};
    int32_t bad_targets[] = {2, V};
#define REFUSED(change, code, message)                                                             \
    do {                                                                                           \
        b = good;                                                                                  \
        change;                                                                                    \
        cr_expect_eq(td_session_submit(s, 0, &b, &e), code);                                       \
        cr_expect(strstr(e.text, message), "%s", e.text);                                          \
    } while (0)
    REFUSED(b.ids = bad_ids, TD_E_DATA,
            "token id 96 (token 1 of the micro-batch) is not in the "
            "model's vocabulary of 96");
    REFUSED(b.ids = negative, TD_E_DATA, "token id -1");
    REFUSED(b.row_target = bad_targets, TD_E_DATA, "target id 96 (row 1)");
    REFUSED(b.seq_offsets = bad_offsets, TD_E_INTERNAL, "sample 0 of the micro-batch is empty");
    REFUSED(b.seq_offsets = short_offsets, TD_E_INTERNAL, "seq_offsets run from 0 to 3");
    REFUSED(b.row_token = bad_rows, TD_E_INTERNAL, "row 1 is at token 2");
    REFUSED(b.row_token = far_rows, TD_E_INTERNAL, "row 1 is at token 4");
    REFUSED(b.n_tokens = 51, TD_E_INTERNAL, "does not fit a session made for 50, 7 and 45");
    cr_expect_eq(td_session_wait(s, 0, 0, &cap, &e), TD_E_INTERNAL);
    cr_expect_eq(td_session_submit(s, 3, &good, &e), TD_E_INTERNAL);
    cr_assert_eq(td_session_submit(s, 0, &good, &e), TD_OK, "%s", e.text);
    cr_expect_eq(td_session_submit(s, 0, &good, &e), TD_E_INTERNAL);
    cr_expect(strstr(e.text, "slot 0 is not free"), "%s", e.text);
    cr_assert_eq(td_session_wait(s, 0, 0, &cap, &e), TD_OK, "%s", e.text);
    cr_expect_eq(cap.n_rows, 2);
    cr_expect(isfinite(cap.logsumexp[1]) && cap.target_rank[1] >= 0);
    /* A micro-batch without recorded rows. */
    b = good;
    b.n_rows = 0;
    cr_assert_eq(td_session_submit(s, 1, &b, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_session_wait(s, 1, 0, &cap, &e), TD_OK, "%s", e.text);
    cr_expect_eq(cap.n_rows, 0);
    td_session_destroy(s);

    td_capture_spec spec = r.spec;
    spec.top_k = V + 1;
    cr_expect_eq(td_session_create(r.w, r.stages, 2, &r.lim, &spec, &s, &e), TD_E_CONFIG);
    cr_expect(strstr(e.text, "capture.top_k is 97, expected 1 to"), "%s", e.text);
    cr_expect_eq(td_session_create(r.w, r.stages, 1, &r.lim, &r.spec, &s, &e), TD_E_INTERNAL);
    cr_expect(strstr(e.text, "do not cover"), "%s", e.text);
    cr_expect_eq(td_weights_load(r.w, r.stages, 2, TD_F32, NULL, &e), TD_E_INTERNAL);
    rig_close(&r);
}

Test(session, a_tied_model_with_another_lm_head_is_refused) {
    td_model_config c = base;
    td_device *device;
    td_stage stage;
    td_weights *w;
    td_error e;
    c.tied_embeddings = true;
    char *dir;
    fx_model m = fx_model_write(&c, TD_F32, "", &dir);
    fx_tensor *head = fx_add(&m, "lm_head.weight", TD_F32, V, c.n_hidden);
    size_t n = (size_t)V * (size_t)c.n_hidden * sizeof *head->values;
    memcpy(head->values, fx_find(&m, "model.embed_tokens.weight")->values, n);
    hs_devices_open(&device, 1);
    hs_stages(&c, &device, 1, &stage);
    for (int differs = 0; differs < 2; differs++) {
        head->values[3] += (float)differs;
        fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
        cr_assert_eq(td_weights_open(dir, &c, &w, &e), TD_OK, "%s", e.text);
        cr_expect_eq(td_weights_load(w, &stage, 1, TD_F32, NULL, &e), differs ? TD_E_MODEL : TD_OK);
        if (differs)
            cr_expect(strstr(e.text, "lm_head.weight is there and differs"), "%s", e.text);
        td_weights_close(w);
    }
    device->info.has_f16 = false;
    head->values[3] -= 1.0f;
    fx_write_tensors(&m, 0, m.n, dir, "model.safetensors");
    cr_assert_eq(td_weights_open(dir, &c, &w, &e), TD_OK, "%s", e.text);
    cr_expect_eq(td_weights_load(w, &stage, 1, TD_F16, NULL, &e), TD_E_DEVICE);
    cr_expect(strstr(e.text, "cannot compute in f16"), "%s", e.text);
    td_weights_close(w);
    hs_devices_close(&device, 1);
    fx_model_free(&m);
}
