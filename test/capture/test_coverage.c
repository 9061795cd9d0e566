/* What truncation loses, on numbers known beforehand. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"
#include "test/record/fixture.h"
#include "base/log.h"
#include "base/memory.h"

static void expect_near(double got, double want, double relative, const char *what) {
    cr_assert(fabs(got - want) <= relative * fabs(want), "%s is %.9g, expected %.9g", what, got,
              want);
}

Test(coverage, one_row_is_its_own_mean_and_every_quantile) {
    td_coverage c;
    const float p[8] = {0.5f, 0.2f, 0.1f, 0.05f, 0.04f, 0.03f, 0.02f, 0.01f};
    float lp[8];
    td_coverage_init(&c, 8);
    for (int i = 0; i < 8; i++)
        lp[i] = logf(p[i]);
    td_coverage_add(&c, 0.05f, lp);
    expect_near(c.sum_tail, 0.05, 1e-6, "tail");
    expect_near(c.sum_kl, -log(0.95), 1e-6, "KL");
    for (double q = 0.01; q < 1; q += 0.07)
        expect_near(td_coverage_tail_quantile(&c, q), 0.05, 0.022, "quantile");
    const int32_t k[] = {4, 2, 1};
    const double tail[] = {0.15, 0.3, 0.5};
    cr_assert_eq(c.n_levels, 3);
    cr_assert_eq(c.n_level_rows, 1);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(c.level[i].k, k[i]);
        expect_near(c.level[i].sum_tail, tail[i], 1e-6, "tail of a smaller k");
        expect_near(c.level[i].sum_kl, -log(1 - tail[i]), 1e-6, "KL of a smaller k");
    }
}

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Tails over ten orders of magnitude; the plain sorted array says what the quantiles are. */
Test(coverage, quantiles_agree_with_a_sorted_array) {
    enum { N = 20000 };
    static double tails[N];
    td_coverage c, half[2];
    td_coverage_init(&c, 16);
    td_coverage_init(&half[0], 16);
    td_coverage_init(&half[1], 16);
    uint64_t rng = 1;
    double sum = 0, kl = 0;
    for (int i = 0; i < N; i++) {
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        float t = (float)pow(10, -10 * (double)(rng >> 11) * 0x1p-53);
        tails[i] = (double)t;
        sum += (double)t;
        kl += -log1p(-(double)fminf(t, 1 - 0x1p-24f));
        td_coverage_add(&half[i % 2], t, NULL);
    }
    td_coverage_merge(&c, &half[0]);
    td_coverage_merge(&c, &half[1]);
    cr_assert_eq(c.n_rows, N);
    expect_near(c.sum_tail, sum, 1e-9, "mean tail");
    expect_near(c.sum_kl, kl, 1e-9, "mean KL");
    qsort(tails, N, sizeof tails[0], descending);
    const double shares[] = {0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95};
    for (size_t i = 0; i < TD_ARRAY_LEN(shares); i++)
        expect_near(td_coverage_tail_quantile(&c, shares[i]), tails[(int)(shares[i] * N)], 0.025,
                    "quantile");
}

Test(coverage, extremes_stay_finite) {
    td_coverage c;
    td_coverage_init(&c, 1);
    td_coverage_add(&c, 1, NULL);
    td_coverage_add(&c, 0, NULL);
    td_coverage_add(&c, -1, NULL);
    td_coverage_add(&c, NAN, NULL);
    td_coverage_add(&c, 1e-30f, NULL);
    cr_assert(isfinite(c.sum_kl) && c.sum_kl > 16 && c.sum_kl < 17);
    cr_assert_eq(td_coverage_tail_quantile(&c, 0.9), 0.0);
    cr_assert_eq(td_coverage_tail_quantile(&c, 0.01) > 0.97, true);
    td_coverage_init(&c, 0);
    td_coverage_add(&c, 0.5f, NULL);
    cr_assert_eq(c.n_rows, 0);
}

/* A run's report is that of the rows on disk, whether they were computed now or before. */
Test(coverage, a_run_counts_what_it_wrote_and_what_was_there) {
    td_fixture f;
    td_error err = {0};
    td_output *o = NULL;
    td_coverage written, mixed;
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(&f);
    OK(td_fixture_open(&f, &o, &err));
    double tail = 0;
    int64_t n = 0;
    for (int64_t k = 0; k < 3; k++) {
        td_shard *s = td_fixture_shard(&f, k, 4);
        for (int32_t i = 0; i < s->n_samples; i++) {
            td_captured c = td_fixture_capture(&f, s, i);
            for (int32_t r = 0; r < c.n_rows && i != 3; r++, n++)
                tail += (double)c.tail_mass[r];
            td_fixture_captured_free(&c);
        }
        OK(td_fixture_write(&f, o, s, 3, &err));
        td_fixture_shard_free(s);
    }
    td_output_coverage_get(o, &written);
    cr_assert_eq(written.n_rows, n);
    cr_assert_eq(written.n_rows_kept, 0);
    expect_near(written.sum_tail, tail, 1e-9, "tail");
    td_output_close(o);
    /* Again: two shards are kept, one is damaged on purpose and computed again. */
    char *path = td_asprintf("%s/shard-000001.safetensors", f.cfg.output.dir);
    cr_assert_eq(remove(path), 0);
    free(path);
    OK(td_fixture_open(&f, &o, &err));
    for (int64_t k = 0; k < 3; k++) {
        td_shard *s = td_fixture_shard(&f, k, 4);
        bool done = false;
        OK(td_output_shard_done(o, k, s->row_begin, s->row_end, s->source_hash, &done, NULL, &err));
        cr_assert_eq(done, k != 1);
        if (!done)
            OK(td_fixture_write(&f, o, s, 3, &err));
        td_fixture_shard_free(s);
    }
    td_output_coverage_get(o, &mixed);
    cr_assert_eq(mixed.n_rows, n);
    cr_assert(mixed.n_rows_kept > 0 && mixed.n_rows_kept < n);
    expect_near(mixed.sum_tail, tail, 1e-9, "tail");
    expect_near(mixed.sum_kl, written.sum_kl, 1e-9, "KL");
    cr_assert_eq(mixed.n_level_rows, written.n_level_rows);
    /* what is read back was rounded to f16 */
    expect_near(mixed.level[1].sum_tail, written.level[1].sum_tail, 1e-3, "tail of a smaller k");
    td_output_close(o);
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    td_coverage_print(&mixed, out);
    fclose(out);
    cr_assert(strstr(text, "8 candidates cover") && strstr(text, "top_k = 4:") &&
                  strstr(text, "already"),
              "%s", text);
    free(text);
    td_fixture_free(&f);
}
