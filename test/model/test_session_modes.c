/* Sessions in every capture mode: the same bytes wherever a row is computed, what is dense against
 * what is sparse and against the weights, memory, and refusals. The modes themselves are tested on
 * the device (test_device_modes.c). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "reference.h"
#include "base/memory.h"

enum { V = 300, C = 40, MAX_ROW_BYTES = 8192 };

static const td_model_config base = FX_SMALL(3, V);

static const td_capture_spec modes[] = {
    {.mode = TD_CAPTURE_TOPP,
     .top_k = 30,
     .top_p = 0.6,
     .min_k = 2,
     .n_always = 2,
     .always_ids = {2, 299}},
    {.mode = TD_CAPTURE_SAMPLE, .n_draws = 50, .proposal_power = 1, .seed = 77},
    {.mode = TD_CAPTURE_TOPK_SAMPLE,
     .top_k = 4,
     .n_draws = 9,
     .proposal_power = 0.5,
     .seed = 1ull << 63,
     .n_temperatures = 1,
     .temperatures = {2}},
    {.mode = TD_CAPTURE_FULL, .dense_dtype = TD_BF16, .n_always = 1, .always_ids = {0}},
    {.mode = TD_CAPTURE_FULL, .dense_dtype = TD_F32, .n_valid = 290},
    {.mode = TD_CAPTURE_HIDDEN, .dense_dtype = TD_F32},
    {.mode = TD_CAPTURE_HIDDEN, .dense_dtype = TD_F16},
    {.mode = TD_CAPTURE_HIDDEN, .dense_dtype = TD_BF16},
};

typedef struct model {
    fx_model fx;
    char *dir;
} model;

static model model_make(void) {
    model m;
    m.fx = fx_model_write(&base, TD_BF16, "", &m.dir);
    return m;
}

/* What was captured of each token, as bytes: [tokens of all samples][MAX_ROW_BYTES]. */
typedef struct rows {
    unsigned char *bytes;
    int32_t n;
} rows;

static const unsigned char *row_of(const rows *r, int32_t i) {
    return r->bytes + (size_t)i * MAX_ROW_BYTES;
}

static void put(unsigned char **to, const void *from, int64_t row, int64_t n, size_t size_bytes) {
    if (from)
        memcpy(*to, (const char *)from + (size_t)(row * n) * size_bytes, (size_t)n * size_bytes);
    *to += (size_t)n * size_bytes;
}

static void put_row(unsigned char *to, const td_captured *c, int32_t r) {
    const unsigned char *begin = to;
    put(&to, c->dense, r, c->n_dense, td_dtype_size(c->dense_dtype)); /* first: easy to find */
    put(&to, c->logsumexp, r, 1, 4), put(&to, c->tail_mass, r, 1, 4);
    put(&to, c->target_logprob, r, 1, 4), put(&to, c->entropy, r, 1, 4);
    put(&to, c->target_rank, r, 1, 4), put(&to, c->logsumexp_t, r, c->n_temperatures, 4);
    put(&to, c->topk_ids, r, c->top_k, 4), put(&to, c->topk_logprobs, r, c->top_k, 4);
    put(&to, c->n_kept, r, 1, 4), put(&to, c->n_unique, r, 1, 4);
    put(&to, c->draw_ids, r, c->n_draws, 4), put(&to, c->draw_counts, r, c->n_draws, 4);
    put(&to, c->draw_logprobs, r, c->n_draws, 4), put(&to, c->proposal_logsumexp, r, 1, 4);
    put(&to, c->always_logprobs, r, c->n_always, 4);
    cr_assert_leq(to - begin, MAX_ROW_BYTES);
}

static void check_presence(const td_captured *c, td_capture_mode mode, bool weighted) {
    const bool hidden = mode == TD_CAPTURE_HIDDEN;
    cr_expect_eq(c->logsumexp == NULL, hidden);
    cr_expect_eq(c->target_rank == NULL, hidden);
    cr_expect_eq(c->topk_ids != NULL, td_capture_has_topk(mode));
    cr_expect_eq(c->n_kept != NULL, mode == TD_CAPTURE_TOPP);
    cr_expect_eq(c->draw_ids != NULL, td_capture_has_draws(mode));
    cr_expect_eq(c->draw_counts != NULL, td_capture_has_draws(mode));
    cr_expect_eq(c->proposal_logsumexp != NULL, weighted);
    cr_expect_eq(c->always_logprobs != NULL, c->n_always > 0);
    cr_expect_eq(c->dense != NULL, td_capture_is_dense(mode));
    cr_expect_eq(c->n_dense, hidden ? C : mode == TD_CAPTURE_FULL ? V : 0);
}

typedef struct setup {
    td_dtype compute;
    int32_t n_stages, max_tokens, capture_rows;
    bool backwards; /* samples in reverse order */
} setup;

/* Runs the samples; rows are in the samples' own order whatever the setup. */
static rows run(const model *m, const td_capture_spec *mode, const setup *u, const hs_samples *s) {
    td_model_config cfg;
    td_weights *w;
    td_session *session;
    td_device *devices[4];
    td_stage stages[4];
    td_error e;
    cr_assert_eq(td_model_config_load(m->dir, &cfg, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_weights_open(m->dir, &cfg, &w, &e), TD_OK, "%s", e.text);
    hs_devices_open(devices, u->n_stages);
    hs_stages(&cfg, devices, u->n_stages, stages);
    cr_assert_eq(td_weights_load(w, stages, u->n_stages, u->compute, NULL, &e), TD_OK, "%s",
                 e.text);
    const td_capture_spec spec = hs_spec(&cfg, *mode);
    const td_session_limits lim = {.max_tokens = u->max_tokens,
                                   .max_rows = u->max_tokens,
                                   .max_seqs = s->n,
                                   .n_slots = 2,
                                   .capture_rows = u->capture_rows,
                                   .narrow_attention = devices[0]->info.narrow_attention};
    cr_assert_eq(td_session_create(w, stages, u->n_stages, &lim, &spec, &session, &e), TD_OK, "%s",
                 e.text);
    rows out = {calloc((size_t)s->offsets[s->n], MAX_ROW_BYTES), s->offsets[s->n]};
    int32_t *ints = calloc((size_t)u->max_tokens * 6 + 8, 4);
    int32_t *ids = ints, *token = ids + u->max_tokens, *target = token + u->max_tokens,
            *from = target + u->max_tokens, *offsets = from + u->max_tokens;
    int64_t *keys = calloc((size_t)u->max_tokens * 2, 8), *positions = keys + u->max_tokens;
    for (int32_t i = 0, slot = 0; i < s->n; slot ^= 1) {
        int32_t n = 0, n_seqs = 0;
        for (; i < s->n; i++, n_seqs++) {
            const int32_t k = u->backwards ? s->n - 1 - i : i, t0 = s->offsets[k];
            const int32_t len = s->offsets[k + 1] - t0;
            if (n + len > u->max_tokens)
                break;
            for (int32_t t = 0; t < len; t++, n++) {
                ids[n] = s->ids[t0 + t];
                token[n] = n;
                target[n] = hs_target(s, k, t0 + t);
                from[n] = t0 + t;
                keys[n] = ((int64_t)k << 33) + 5;
                positions[n] = t;
            }
            offsets[n_seqs + 1] = n;
        }
        cr_assert_gt(n_seqs, 0);
        const td_batch b = {.n_tokens = n,
                            .n_seqs = n_seqs,
                            .n_rows = n,
                            .ids = ids,
                            .seq_offsets = offsets,
                            .row_token = token,
                            .row_target = target,
                            .row_dataset_row = spec.n_draws ? keys : NULL,
                            .row_position = spec.n_draws ? positions : NULL};
        td_captured c;
        cr_assert_eq(td_session_submit(session, slot, &b, &e), TD_OK, "%s", e.text);
        cr_assert_eq(td_session_wait(session, slot, 0, &c, &e), TD_OK, "%s", e.text);
        cr_assert_eq(c.n_rows, n);
        check_presence(&c, spec.mode, spec.n_draws && spec.proposal_power != 1);
        for (int32_t r = 0; r < n; r++)
            put_row(out.bytes + (size_t)from[r] * MAX_ROW_BYTES, &c, r);
    }
    free(ints);
    free(keys);
    td_session_destroy(session);
    td_weights_close(w);
    hs_devices_close(devices, u->n_stages);
    return out;
}

static int32_t size_of(const hs_samples *s) {
    return s->offsets[s->n];
}

Test(session_modes, rows_are_the_same_wherever_they_are_computed) {
    hs_samples s = hs_samples_random(4, 5, 24, V, 3);
    model m = model_make();
    for (size_t i = 0; i < TD_ARRAY_LEN(modes); i++)
        for (int compute = TD_F32; compute <= TD_BF16; compute++) {
            if (!hs_can_compute((td_dtype)compute))
                continue;
            const setup plain = {(td_dtype)compute, 1, size_of(&s), 64, false};
            const setup others[] = {{(td_dtype)compute, 1, 24, 3, true},
                                    {(td_dtype)compute, 2, 25, 64, false},
                                    {(td_dtype)compute, 3, size_of(&s), 16, true}};
            rows want = run(&m, &modes[i], &plain, &s);
            for (size_t k = 0; k < TD_ARRAY_LEN(others); k++) {
                rows got = run(&m, &modes[i], &others[k], &s);
                for (int32_t r = 0; r < got.n; r++)
                    cr_assert_arr_eq(row_of(&got, r), row_of(&want, r), MAX_ROW_BYTES,
                                     "mode %zu in %s, setup %zu, token %d", i,
                                     td_dtype_name((td_dtype)compute), k, r);
                free(got.bytes);
            }
            /* Distinct tokens have distinct rows: the comparison compared something. */
            cr_expect(memcmp(row_of(&want, 0), row_of(&want, 1), MAX_ROW_BYTES));
            free(want.bytes);
        }
    fx_model_free(&m.fx);
    hs_samples_free(&s);
}

/* Draws hang on the dataset row, the position and the seed: another seed gives others. */
Test(session_modes, the_seed_changes_draws_and_nothing_else) {
    hs_samples s = hs_samples_random(2, 8, 12, V, 4);
    model m = model_make();
    const setup u = {TD_F32, 1, size_of(&s), 64, false};
    td_capture_spec other = modes[2];
    other.seed++;
    rows a = run(&m, &modes[2], &u, &s), b = run(&m, &other, &u, &s);
    const size_t head = (5 + 1 + 2 * 4 + 1) * 4; /* put_row: up to n_kept */
    for (int32_t r = 0; r < a.n; r++) {
        cr_expect_arr_eq(row_of(&a, r), row_of(&b, r), head);
        cr_expect(memcmp(row_of(&a, r) + head, row_of(&b, r) + head, MAX_ROW_BYTES - head));
    }
    free(a.bytes), free(b.bytes);
    fx_model_free(&m.fx);
    hs_samples_free(&s);
}

/* Full logits are those of a plain forward pass, and hidden states times lm_head give them back:
 * f64 products of the recorded states against the f32 ones of the device. */
Test(session_modes, dense_rows_agree_with_the_model) {
    hs_samples s = hs_samples_random(3, 5, 20, V, 5);
    model m = model_make();
    const setup u = {TD_F32, 2, size_of(&s), 7, false};
    const td_capture_spec full = {.mode = TD_CAPTURE_FULL, .dense_dtype = TD_F32},
                          hidden = {.mode = TD_CAPTURE_HIDDEN, .dense_dtype = TD_F32};
    rows f = run(&m, &full, &u, &s), h = run(&m, &hidden, &u, &s);
    const float *head = fx_find(&m.fx, "lm_head.weight")->values;
    double max_ref = 0, max_head = 0;
    for (int32_t i = 0; i < s.n; i++) {
        const int32_t t0 = s.offsets[i], n = s.offsets[i + 1] - t0;
        double *z = calloc((size_t)n * V, sizeof *z);
        ref_forward(&m.fx, s.ids + t0, n, z);
        for (int32_t t = 0; t < n; t++) {
            const float *logit = (const float *)(const void *)row_of(&f, t0 + t);
            const float *state = (const float *)(const void *)row_of(&h, t0 + t);
            for (int32_t v = 0; v < V; v++) {
                double x = 0;
                for (int32_t c = 0; c < C; c++)
                    x += (double)state[c] * (double)head[v * C + c];
                max_ref = fmax(max_ref, fabs(z[t * V + v] - (double)logit[v]));
                max_head = fmax(max_head, fabs(x - (double)logit[v]));
            }
        }
        free(z);
    }
    printf("full logits: max abs diff to f64 %.2e, of states times lm_head %.2e\n", max_ref,
           max_head);
    fflush(stdout);
    cr_expect_lt(max_ref, 2e-5);
    cr_expect_lt(max_head, 5e-6);
    free(f.bytes), free(h.bytes);

    /* In bf16 the states are what the product reads: exact in bf16, and in f32 the same numbers.
     * From f32 compute, 16-bit states are the f32 ones rounded once. */
    const td_dtype computes[] = {TD_F32, TD_BF16};
    for (int i = 0; i < 2; i++) {
        if (!hs_can_compute(computes[i]))
            continue;
        const setup v = {computes[i], 1, size_of(&s), 64, false};
        rows wide = run(&m, &modes[5], &v, &s), f16 = run(&m, &modes[6], &v, &s),
             bf16 = run(&m, &modes[7], &v, &s);
        for (int32_t r = 0; r < wide.n; r++) {
            const float *x = (const float *)(const void *)row_of(&wide, r);
            const uint16_t *a = (const uint16_t *)(const void *)row_of(&f16, r),
                           *b = (const uint16_t *)(const void *)row_of(&bf16, r);
            for (int32_t c = 0; c < C; c++) {
                cr_assert_eq(a[c], td_f32_to_f16(x[c]));
                cr_assert_eq(b[c], td_f32_to_bf16(x[c]));
                cr_assert(i == 0 || td_bf16_to_f32(b[c]) == x[c]);
            }
        }
        free(wide.bytes), free(f16.bytes), free(bf16.bytes);
    }
    fx_model_free(&m.fx);
    hs_samples_free(&s);
}

/* --- memory and refusals ---------------------------------------------------------------------- */

static const td_device_ops *real_ops;
static uint64_t device_bytes, host_bytes;

static td_status counting_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err) {
    device_bytes += size_bytes;
    return real_ops->alloc(dev, size_bytes, out, err);
}

static td_status counting_host_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err) {
    host_bytes += size_bytes;
    return real_ops->host_alloc(dev, size_bytes, out, err);
}

Test(session_modes, memory_is_what_the_planner_was_told) {
    model m = model_make();
    td_model_config cfg;
    td_weights *w;
    td_device *devices[1];
    td_stage stages[1];
    td_error e;
    cr_assert_eq(td_model_config_load(m.dir, &cfg, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_weights_open(m.dir, &cfg, &w, &e), TD_OK, "%s", e.text);
    hs_devices_open(devices, 1);
    hs_stages(&cfg, devices, 1, stages);
    cr_assert_eq(td_weights_load(w, stages, 1, TD_F32, NULL, &e), TD_OK, "%s", e.text);
    real_ops = devices[0]->ops;
    td_device_ops counting = *real_ops;
    counting.alloc = counting_alloc;
    counting.host_alloc = counting_host_alloc;
    for (size_t i = 0; i < TD_ARRAY_LEN(modes); i++) {
        td_session *s;
        td_stage_memory want;
        const td_capture_spec spec = hs_spec(&cfg, modes[i]);
        const td_session_limits lim = {.max_tokens = 50,
                                       .max_rows = 50,
                                       .max_seqs = 7,
                                       .n_slots = 2,
                                       .capture_rows = 16,
                                       .narrow_attention = devices[0]->info.narrow_attention};
        device_bytes = host_bytes = 0;
        devices[0]->ops = &counting;
        cr_assert_eq(td_session_create(w, stages, 1, &lim, &spec, &s, &e), TD_OK, "%s", e.text);
        td_stage_memory_estimate(&cfg, TD_F32, &lim, &spec, 0, cfg.n_layers + 2, &want);
        cr_expect_eq(device_bytes, want.activation_bytes + want.workspace_bytes, "mode %zu", i);
        const uint64_t captured = td_session_host_bytes(&lim, &spec);
        /* The rest is what goes in: a few integers for each token. */
        cr_expect(host_bytes > captured && host_bytes - captured < 2 * 50 * 60 + 4096,
                  "mode %zu: %llu and %llu", i, (unsigned long long)host_bytes,
                  (unsigned long long)captured);
        if (td_capture_is_dense(spec.mode))
            cr_expect_geq(captured, 2 * 50 * td_capture_dense_bytes(&spec));
        devices[0]->ops = real_ops;
        td_session_destroy(s);
    }
    td_weights_close(w);
    hs_devices_close(devices, 1);
    fx_model_free(&m.fx);
}

Test(session_modes, limits_and_keys_are_checked) {
    static const td_capture_spec bad[] = {
        {.mode = TD_CAPTURE_TOPP, .top_k = 0},
        {.mode = TD_CAPTURE_SAMPLE, .n_draws = 0},
        {.mode = TD_CAPTURE_SAMPLE, .n_draws = 1025, .proposal_power = 1},
        {.mode = TD_CAPTURE_SAMPLE, .n_draws = 5, .proposal_power = 1, .top_k = 5},
        {.mode = TD_CAPTURE_TOPK, .top_k = 5, .n_draws = 5},
        {.mode = TD_CAPTURE_FULL, .n_always = 1, .always_ids = {300}},
        {.mode = TD_CAPTURE_HIDDEN, .n_always = 1, .always_ids = {3}},
    };
    model m = model_make();
    td_model_config cfg;
    td_weights *w;
    td_device *devices[1];
    td_stage stages[1];
    td_session *s;
    td_error e;
    cr_assert_eq(td_model_config_load(m.dir, &cfg, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_weights_open(m.dir, &cfg, &w, &e), TD_OK, "%s", e.text);
    hs_devices_open(devices, 1);
    hs_stages(&cfg, devices, 1, stages);
    cr_assert_eq(td_weights_load(w, stages, 1, TD_F32, NULL, &e), TD_OK, "%s", e.text);
    const td_session_limits lim = {.max_tokens = 9,
                                   .max_rows = 9,
                                   .max_seqs = 1,
                                   .n_slots = 1,
                                   .capture_rows = 4,
                                   .narrow_attention = devices[0]->info.narrow_attention};
    for (size_t i = 0; i <= TD_ARRAY_LEN(bad); i++) {
        const td_capture_spec spec = hs_spec(&cfg, i < TD_ARRAY_LEN(bad) ? bad[i] : modes[1]);
        td_status rc = td_session_create(w, stages, 1, &lim, &spec, &s, &e);
        cr_assert_eq(rc != TD_OK, i < TD_ARRAY_LEN(bad), "case %zu: %s", i, e.text);
    }
    const int32_t ids[2] = {1, 2}, offsets[2] = {0, 2}, token[1] = {0}, target[1] = {2};
    int64_t row = 5, position = 1ll << 32;
    td_batch b = {.n_tokens = 2,
                  .n_seqs = 1,
                  .n_rows = 1,
                  .ids = ids,
                  .seq_offsets = offsets,
                  .row_token = token,
                  .row_target = target,
                  .row_dataset_row = &row};
    cr_expect_eq(td_session_submit(s, 0, &b, &e), TD_E_INTERNAL);
    cr_expect(strstr(e.text, "nothing to draw by"), "%s", e.text);
    b.row_position = &position;
    cr_expect_eq(td_session_submit(s, 0, &b, &e), TD_E_INTERNAL);
    position = 0;
    cr_expect_eq(td_session_submit(s, 0, &b, &e), TD_OK, "%s", e.text);
    td_session_destroy(s);
    td_weights_close(w);
    hs_devices_close(devices, 1);
    fx_model_free(&m.fx);
}
