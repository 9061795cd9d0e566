/* Captured rows against logits that third-party code computed (../shared/data/logits). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "harness.h"
#include "base/file.h"
#include "base/memory.h"

enum { MAX_V = 1000, SMALL_K = 20 };

static void need_shared(void) {
    if (access(TD_SHARED_DIR "/data/logits", R_OK) != 0) {
        fprintf(stderr, "SKIPPED: ../shared is absent, the third-party logits are not compared\n");
        cr_skip("SKIPPED: ../shared is absent");
    }
}

/* Largest absolute differences over all rows. */
typedef struct diffs {
    double logprob, lse, lse_t, target, entropy, tail;
    int32_t argmax_differs, rank_differs;
} diffs;

static void worse(double *max, double got, double want) {
    double d = fabs(got - want);
    if (!(d <= *max)) /* NaN counts as worse */
        *max = d;
}

static double log_sum_exp(const float *z, int V, double temperature) {
    double m = -INFINITY, sum = 0;
    for (int i = 0; i < V; i++)
        m = fmax(m, z[i] / temperature);
    for (int i = 0; i < V; i++)
        sum += exp(z[i] / temperature - m);
    return m + log(sum);
}

/* Row r of `rows` against reference logits z; everything expected is computed here in f64. */
static void compare_row(const hs_rows *rows, int32_t r, const float *z, int V, int32_t target,
                        const float *temperatures, diffs *d) {
    double lse = log_sum_exp(z, V, 1.0), entropy = 0, tail = 1.0;
    double stored = 0;
    int best = 0;
    for (int i = 0; i < V; i++) {
        double lp = z[i] - lse;
        entropy -= exp(lp) * lp;
        if (z[i] > z[best])
            best = i;
    }
    for (int32_t k = 0; k < rows->K; k++) {
        int32_t id = rows->topk_ids[(int64_t)r * rows->K + k];
        cr_assert(id >= 0 && id < V, "row %d: id %d", r, id);
        worse(&d->logprob, rows->topk_logprobs[(int64_t)r * rows->K + k], z[id] - lse);
        stored += exp(z[id] - lse);
    }
    tail -= stored;
    d->argmax_differs += rows->topk_ids[(int64_t)r * rows->K] != best;
    worse(&d->lse, rows->logsumexp[r], lse);
    worse(&d->tail, rows->tail_mass[r], tail);
    worse(&d->entropy, rows->entropy[r], entropy);
    worse(&d->target, rows->target_logprob[r], z[target] - lse);
    for (int32_t i = 0; i < rows->nT; i++)
        worse(&d->lse_t, rows->logsumexp_t[r * rows->nT + i], log_sum_exp(z, V, temperatures[i]));
    /* Logits closer than the tolerance may come in either order. */
    int32_t least = 0, most = 0;
    for (int i = 0; i < V; i++) {
        least += i != target && z[i] > z[target] + 1e-4;
        most += i != target && z[i] >= z[target] - 1e-4;
    }
    d->rank_differs += rows->target_rank[r] < least || rows->target_rank[r] > most;
}

static void compare(const char *name, const char *model, const char *logits, int V) {
    char *ids_path = td_asprintf(TD_SHARED_DIR "/data/logits/%s.ids.txt", name);
    char *logits_path = td_asprintf(TD_SHARED_DIR "/data/logits/%s.%s", name, logits);
    char *dir = td_asprintf(TD_SHARED_DIR "/data/models/%s", model);
    hs_samples s = hs_samples_read(ids_path);
    int32_t n = s.offsets[s.n];
    char *data;
    size_t size_bytes;
    td_error e;
    cr_assert_eq(td_file_read(logits_path, 1 << 28, TD_E_DATA, &data, &size_bytes, &e), TD_OK, "%s",
                 e.text);
    cr_assert_eq(size_bytes, (size_t)n * V * 4);
    const float *z = (const float *)data;

    /* All ids at once, then a small k for what is left outside it. */
    for (int pass = 0; pass < 2; pass++) {
        hs_setup setup = {.dir = dir,
                          .compute = TD_F32,
                          .n_stages = 1,
                          .top_k = pass ? SMALL_K : V,
                          .n_temperatures = 2,
                          .temperatures = {0.5f, 4.0f}};
        hs_rows rows = hs_run(&setup, &s);
        diffs d = {0};
        for (int32_t i = 0; i < s.n; i++)
            for (int32_t t = s.offsets[i]; t < s.offsets[i + 1]; t++)
                compare_row(&rows, t, z + (int64_t)t * V, V, hs_target(&s, i, t),
                            setup.temperatures, &d);
        printf("%s f32 k=%d, %d rows: max abs diff logprob %.2e logsumexp %.2e logsumexp_t %.2e "
               "target %.2e entropy %.2e tail %.2e; argmax differs on %d, rank on %d\n",
               name, rows.K, n, d.logprob, d.lse, d.lse_t, d.target, d.entropy, d.tail,
               d.argmax_differs, d.rank_differs);
        fflush(stdout);
        cr_expect_leq(d.logprob, 1e-4);
        cr_expect_leq(d.lse, 1e-4);
        cr_expect_leq(d.lse_t, 4e-4); /* of logits times two */
        cr_expect_leq(d.target, 1e-4);
        cr_expect_leq(d.entropy, 1e-4);
        cr_expect_leq(d.tail, 1e-4);
        cr_expect_eq(d.argmax_differs, 0);
        cr_expect_eq(d.rank_differs, 0);
        hs_rows_free(&rows);
    }
    free(data);
    free(ids_path);
    free(logits_path);
    free(dir);
    hs_samples_free(&s);
}

Test(logits, stories260K_against_run_c) {
    need_shared();
    compare("stories260K", "stories260K-hf", "run_c.f32", 512);
}

Test(logits, llama3_rope_scaling) {
    need_shared();
    compare("tiny-random-llama3", "tiny-random-llama3", "torch.f32", 512);
}

Test(logits, qwen3_qk_norm) {
    need_shared();
    compare("tiny-random-qwen3", "tiny-random-qwen3", "torch.f32", 512);
}

Test(logits, qwen3_moe) {
    need_shared();
    compare("tiny-random-qwen3moe", "tiny-random-qwen3moe", "torch.f32", 512);
}

Test(logits, gpt2) {
    need_shared();
    compare("tiny-random-gpt2", "tiny-random-gpt2", "ort.f32", 1000);
}

/* KL(f32 || bf16) of a row, over the full distribution. */
static double row_kl(const hs_rows *a, const hs_rows *b, int32_t r) {
    double lp[MAX_V], kl = 0;
    int32_t V = a->K;
    for (int k = 0; k < V; k++)
        lp[b->topk_ids[r * V + k]] = b->topk_logprobs[r * V + k];
    for (int k = 0; k < V; k++) {
        double p = a->topk_logprobs[r * V + k];
        kl += exp(p) * (p - lp[a->topk_ids[r * V + k]]);
    }
    return kl;
}

Test(logits, bf16_stays_close_to_f32) {
    enum { V = 512 };
    static const char *const names[][2] = {{"stories260K", "stories260K-hf"},
                                           {"tiny-random-llama3", "tiny-random-llama3"},
                                           {"tiny-random-qwen3", "tiny-random-qwen3"}};
    need_shared();
    if (!hs_can_compute(TD_BF16))
        cr_skip("SKIPPED: no bf16 on this CPU");
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++) {
        char *ids_path = td_asprintf(TD_SHARED_DIR "/data/logits/%s.ids.txt", names[i][0]);
        char *dir = td_asprintf(TD_SHARED_DIR "/data/models/%s", names[i][1]);
        hs_samples s = hs_samples_read(ids_path);
        hs_setup setup = {.dir = dir, .compute = TD_F32, .n_stages = 1, .top_k = V};
        hs_rows a = hs_run(&setup, &s);
        setup.compute = TD_BF16;
        hs_rows b = hs_run(&setup, &s);
        double sum = 0, max = 0;
        for (int32_t r = 0; r < a.n; r++) {
            double kl = row_kl(&a, &b, r);
            sum += kl;
            max = fmax(max, kl);
        }
        printf("%s bf16, %d rows: KL against f32 mean %.2e, max %.2e\n", names[i][0], a.n,
               sum / a.n, max);
        fflush(stdout);
        /* GPUs round q, k and v to bf16 too, as transformers does. */
        cr_expect_lt(sum / a.n, b.narrow_attention ? 2e-3 : 1e-3);
        cr_expect_gt(max, 0.0, "bf16 compute gave the bits of f32");
        hs_rows_free(&a);
        hs_rows_free(&b);
        hs_samples_free(&s);
        free(ids_path);
        free(dir);
    }
}
