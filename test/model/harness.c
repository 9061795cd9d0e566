/* harness.c - samples through a session, and main: see harness.h. */
#include "harness.h"

#include <criterion/criterion.h>
#include <criterion/options.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

hs_samples hs_samples_read(const char *path) {
    hs_samples s = {.offsets = calloc(1, sizeof *s.offsets)};
    FILE *f = fopen(path, "r");
    cr_assert(f, "cannot read %s", path);
    char *line = NULL;
    size_t cap = 0;
    while (getline(&line, &cap, f) > 0) {
        int32_t n = s.offsets[s.n];
        char *p = line, *end;
        for (;;) {
            long v = strtol(p, &end, 10);
            if (end == p)
                break;
            s.ids = realloc(s.ids, (size_t)(n + 1) * sizeof *s.ids);
            s.ids[n++] = (int32_t)v;
            p = end;
        }
        if (n == s.offsets[s.n])
            continue;
        s.offsets = realloc(s.offsets, (size_t)(s.n + 2) * sizeof *s.offsets);
        s.offsets[++s.n] = n;
    }
    free(line);
    fclose(f);
    cr_assert_gt(s.n, 0);
    return s;
}

hs_samples hs_samples_random(int32_t n, int32_t min_len, int32_t max_len, int32_t n_vocab,
                             uint64_t seed) {
    hs_samples s = {.n = n, .offsets = calloc((size_t)n + 1, sizeof *s.offsets)};
    for (int32_t i = 0; i < n; i++)
        s.offsets[i + 1] = s.offsets[i] + min_len +
                           (int32_t)(test_random(&seed) % (uint64_t)(max_len - min_len + 1));
    s.ids = calloc((size_t)s.offsets[n], sizeof *s.ids);
    for (int32_t i = 0; i < s.offsets[n]; i++)
        s.ids[i] = (int32_t)(test_random(&seed) % (uint64_t)n_vocab);
    return s;
}

void hs_samples_free(hs_samples *s) {
    free(s->offsets);
    free(s->ids);
    *s = (hs_samples){0};
}

int32_t hs_target(const hs_samples *s, int32_t sample, int32_t token) {
    return token + 1 < s->offsets[sample + 1] ? s->ids[token + 1] : 5;
}

static hs_rows rows_alloc(int32_t n, int32_t K, int32_t nT) {
    size_t m = (size_t)n;
    return (hs_rows){.n = n,
                     .K = K,
                     .nT = nT,
                     .topk_ids = calloc(m * (size_t)K, 4),
                     .topk_logprobs = calloc(m * (size_t)K, 4),
                     .logsumexp = calloc(m, 4),
                     .logsumexp_t = calloc(m * (size_t)nT + 1, 4),
                     .tail_mass = calloc(m, 4),
                     .target_logprob = calloc(m, 4),
                     .target_rank = calloc(m, 4),
                     .entropy = calloc(m, 4)};
}

void hs_rows_free(hs_rows *r) {
    free(r->topk_ids);
    free(r->topk_logprobs);
    free(r->logsumexp);
    free(r->logsumexp_t);
    free(r->tail_mass);
    free(r->target_logprob);
    free(r->target_rank);
    free(r->entropy);
    *r = (hs_rows){0};
}

static bool same(const void *a, int32_t a0, const void *b, int32_t b0, int32_t n, int32_t width) {
    size_t row = (size_t)width * 4;
    return !memcmp((const char *)a + (size_t)a0 * row, (const char *)b + (size_t)b0 * row,
                   (size_t)n * row);
}

bool hs_rows_equal(const hs_rows *a, int32_t a0, const hs_rows *b, int32_t b0, int32_t n) {
    return a->K == b->K && a->nT == b->nT && a0 + n <= a->n && b0 + n <= b->n &&
           same(a->topk_ids, a0, b->topk_ids, b0, n, a->K) &&
           same(a->topk_logprobs, a0, b->topk_logprobs, b0, n, a->K) &&
           same(a->logsumexp_t, a0, b->logsumexp_t, b0, n, a->nT) &&
           same(a->logsumexp, a0, b->logsumexp, b0, n, 1) &&
           same(a->tail_mass, a0, b->tail_mass, b0, n, 1) &&
           same(a->target_logprob, a0, b->target_logprob, b0, n, 1) &&
           same(a->target_rank, a0, b->target_rank, b0, n, 1) &&
           same(a->entropy, a0, b->entropy, b0, n, 1);
}

/* TDGEN_TEST_DEVICE: the backend whose devices run the suites, "cpu" when unset. */
static const char *backend(void) {
    const char *b = getenv("TDGEN_TEST_DEVICE");
    return b && *b ? b : "cpu";
}

bool hs_can_compute(td_dtype compute) {
    td_device_info *info;
    int32_t n;
    td_error e;
    cr_assert_eq(td_device_enumerate(backend(), 1, &info, &n, &e), TD_OK, "%s", e.text);
    cr_assert_geq(n, 1);
    bool can = compute == TD_F32    ? info->has_f32
               : compute == TD_BF16 ? info->has_bf16
                                    : info->has_f16;
    if (!can)
        fprintf(stderr, "SKIPPED: %s (%s) has no %s\n", info->name, info->kind,
                td_dtype_name(compute));
    free(info);
    return can;
}

/* GPUs are not divided: where there are fewer than n, several stages share one, each with a handle
 * and a stream of its own. */
void hs_devices_open(td_device **devices, int32_t n) {
    td_device_info *info;
    int32_t n_found;
    td_error e;
    cr_assert_eq(td_device_enumerate(backend(), n, &info, &n_found, &e), TD_OK, "%s", e.text);
    cr_assert(n_found == n || (n_found > 0 && strcmp(backend(), "cpu") != 0));
    for (int32_t i = 0; i < n; i++)
        cr_assert_eq(td_device_open(&info[i % n_found], &devices[i], &e), TD_OK, "%s", e.text);
    free(info);
}

void hs_devices_close(td_device **devices, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        td_device_close(devices[i]);
}

void hs_stages(const td_model_config *cfg, td_device **devices, int32_t n, td_stage *stages) {
    int32_t n_items = cfg->n_layers + 2;
    cr_assert_leq(n, n_items);
    for (int32_t i = 0; i < n; i++)
        stages[i] = (td_stage){devices[i], n_items * i / n, n_items * (i + 1) / n};
}

static void store(hs_rows *dst, int32_t at, const td_captured *c) {
    size_t n = (size_t)c->n_rows * 4, K = (size_t)c->top_k, nT = (size_t)c->n_temperatures;
    memcpy(dst->topk_ids + (size_t)at * K, c->topk_ids, n * K);
    memcpy(dst->topk_logprobs + (size_t)at * K, c->topk_logprobs, n * K);
    memcpy(dst->logsumexp_t + (size_t)at * nT, c->logsumexp_t, n * nT);
    memcpy(dst->logsumexp + at, c->logsumexp, n);
    memcpy(dst->tail_mass + at, c->tail_mass, n);
    memcpy(dst->target_logprob + at, c->target_logprob, n);
    memcpy(dst->target_rank + at, c->target_rank, n);
    memcpy(dst->entropy + at, c->entropy, n);
}

/* Arrays of one micro-batch in a slot, which the session may read until its wait. */
typedef struct flight {
    int32_t first_row;
    int32_t *seq_offsets, *row_token, *row_target;
} flight;

static void land(td_session *session, int32_t slot, flight *f, hs_rows *out) {
    td_captured c;
    td_error e;
    cr_assert_eq(td_session_wait(session, slot, 0, &c, &e), TD_OK, "%s", e.text);
    store(out, f->first_row, &c);
    free(f->seq_offsets);
    free(f->row_token);
    free(f->row_target);
    *f = (flight){0};
}

td_capture_spec hs_spec(const td_model_config *cfg, td_capture_spec spec) {
    spec.n_vocab = cfg->n_vocab;
    if (spec.n_valid == 0)
        spec.n_valid = cfg->n_vocab;
    if (spec.mode == TD_CAPTURE_HIDDEN)
        spec.n_hidden = cfg->n_hidden;
    return spec;
}

hs_rows hs_run(const hs_setup *setup, const hs_samples *s) {
    td_model_config cfg;
    td_weights *w;
    td_session *session;
    td_device *devices[8];
    td_stage stages[8];
    td_error e;
    int32_t n_tokens = s->offsets[s->n],
            max_tokens = setup->max_tokens ? setup->max_tokens : n_tokens;
    cr_assert_eq(td_model_config_load(setup->dir, &cfg, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_weights_open(setup->dir, &cfg, &w, &e), TD_OK, "%s", e.text);
    hs_devices_open(devices, setup->n_stages);
    hs_stages(&cfg, devices, setup->n_stages, stages);
    cr_assert_eq(td_weights_load(w, stages, setup->n_stages, setup->compute, NULL, &e), TD_OK, "%s",
                 e.text);
    td_session_limits lim = {.max_tokens = max_tokens,
                             .max_seqs = s->n,
                             .max_rows = max_tokens,
                             .n_slots = setup->n_stages + 1,
                             .capture_rows = setup->capture_rows ? setup->capture_rows : 64,
                             .narrow_attention = devices[0]->info.narrow_attention};
    const td_capture_spec spec =
        hs_spec(&cfg, (td_capture_spec){.top_k = setup->top_k,
                                        .n_temperatures = setup->n_temperatures,
                                        .n_valid = setup->n_valid_vocab,
                                        .temperatures = {(double)setup->temperatures[0],
                                                         (double)setup->temperatures[1]}});
    cr_assert_eq(td_session_create(w, stages, setup->n_stages, &lim, &spec, &session, &e), TD_OK,
                 "%s", e.text);

    hs_rows out = rows_alloc(n_tokens, setup->top_k, setup->n_temperatures);
    out.narrow_attention = lim.narrow_attention;
    flight *flights = calloc((size_t)lim.n_slots, sizeof *flights);
    int32_t n_batches = 0;
    for (int32_t i = 0; i < s->n;) {
        int32_t begin = i, t0 = s->offsets[i];
        while (i < s->n && s->offsets[i + 1] - t0 <= max_tokens)
            i++;
        cr_assert_gt(i, begin, "sample %d is longer than a micro-batch", begin);
        int32_t slot = n_batches++ % lim.n_slots, n = s->offsets[i] - t0;
        flight *f = &flights[slot];
        if (f->row_token)
            land(session, slot, f, &out);
        f->first_row = t0;
        f->seq_offsets = calloc((size_t)(i - begin + 1), 4);
        f->row_token = calloc((size_t)n, 4);
        f->row_target = calloc((size_t)n, 4);
        for (int32_t k = begin; k < i; k++) {
            f->seq_offsets[k - begin + 1] = s->offsets[k + 1] - t0;
            for (int32_t t = s->offsets[k]; t < s->offsets[k + 1]; t++) {
                f->row_token[t - t0] = t - t0;
                f->row_target[t - t0] = hs_target(s, k, t);
            }
        }
        td_batch b = {.n_tokens = n,
                      .n_seqs = i - begin,
                      .n_rows = n,
                      .ids = s->ids + t0,
                      .seq_offsets = f->seq_offsets,
                      .row_token = f->row_token,
                      .row_target = f->row_target};
        cr_assert_eq(td_session_submit(session, slot, &b, &e), TD_OK, "%s", e.text);
    }
    for (int32_t k = 0; k < lim.n_slots; k++) {
        int32_t slot = (n_batches + k) % lim.n_slots;
        if (flights[slot].row_token)
            land(session, slot, &flights[slot], &out);
    }
    free(flights);
    for (int32_t i = 0; i < setup->n_stages; i++)
        cr_assert_gt(td_session_stage_busy_s(session, i), 0.0, "stage %d did nothing", i);
    td_session_destroy(session);
    td_weights_close(w);
    hs_devices_close(devices, setup->n_stages);
    return out;
}

/* In place of Criterion's main: without the device that was asked for, nothing runs, and that is
 * exit 77, not success. Criterion's workers start here too and have the same devices. */
int main(int argc, char **argv) {
    td_device_info *info = NULL;
    int32_t n = 0;
    td_error e;
    if (td_device_enumerate(backend(), 1, &info, &n, &e) != TD_OK) {
        fprintf(stderr, "TDGEN_TEST_DEVICE=%s: %s\n", backend(), e.text);
        return 1;
    }
    free(info);
    if (n == 0) {
        printf("%s: SKIPPED: this build (%s) or machine has no %s device; NOTHING was tested\n",
               argv[0], td_device_backends(), backend());
        return 77;
    }
    struct criterion_test_set *tests = criterion_initialize();
    int result = 0;
    if (criterion_handle_args(argc, argv, true))
        result = !criterion_run_all_tests(tests);
    criterion_finalize(tests);
    return result;
}
