/* Every checkpoint of test/fixtures/families against transformers' float64 forward
 * (tools/fixtures/make_families.py): all log-probabilities of all tokens, then the same bytes for a
 * sample wherever it stands in a micro-batch, and on two stages. Prints a table with one row per
 * checkpoint.
 *
 * The bound is twice the largest error of transformers' own f32 forward, and 1e-4 at most. That is
 * a lenient bound on an extreme value; the root mean square, which is not one, may be half as large
 * again. Below FLOOR the bound says nothing about the forward pass: a log-probability is a
 * difference of f32 numbers of up to about 16 in these models, so that its own rounding, the one of
 * logsumexp and the one of the stored reference, half an ulp of 16 (1e-6) each, already make 3e-6.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "base/memory.h"

#define FLOOR 5e-6
#define CEILING 1e-4

typedef struct family_name {
    char name[64];
} family_name;

enum { MAX_FAMILIES = 128 };
static family_name found[MAX_FAMILIES];

static int by_name(const void *a, const void *b) {
    return strcmp(((const family_name *)a)->name, ((const family_name *)b)->name);
}

/* With TDGEN_TEST_FAMILIES, a list with commas, only those: a slice for slow devices. */
static bool selected(const char *name) {
    const char *list = getenv("TDGEN_TEST_FAMILIES");
    const size_t n = strlen(name);
    if (!list || !*list)
        return true;
    for (const char *p = list; (p = strstr(p, name)) != NULL; p += n)
        if ((p == list || p[-1] == ',') && (p[n] == ',' || !p[n]))
            return true;
    return false;
}

/* Folders that hold a checkpoint with its expected logits. */
static size_t list_families(bool all) {
    DIR *dir = opendir(FAMILIES_DIR);
    size_t n = 0;
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;)
        if (e->d_name[0] != '.' && !strchr(e->d_name, '.') && n < MAX_FAMILIES &&
            (all || selected(e->d_name)))
            snprintf(found[n++].name, sizeof found[0].name, "%s", e->d_name);
    if (dir)
        closedir(dir);
    qsort(found, n, sizeof *found, by_name);
    return n;
}

/* What expected.safetensors holds. */
typedef struct family {
    char *dir;
    td_safetensors *file;
    hs_samples samples;  /* borrowed from the file */
    const float *logits; /* [N, V] */
    int32_t n_vocab;
    double hf_f32_error, hf_f32_rms, hf_bf16_mean_kl, hf_bf16_median_kl;
    const char *class;
} family;

static double meta_number(const td_safetensors *st, const char *key) {
    const char *text = td_safetensors_meta(st, key);
    cr_assert(text, "%s lacks %s", td_safetensors_path(st), key);
    return strtod(text, NULL);
}

static family family_open(const char *name) {
    family f = {.dir = td_asprintf(FAMILIES_DIR "/%s", name)};
    char *path = td_asprintf("%s/expected.safetensors", f.dir);
    td_error e;
    cr_assert_eq(td_safetensors_open(path, TD_E_DATA, &f.file, &e), TD_OK, "%s", e.text);
    free(path);
    const td_st_tensor *ids = td_safetensors_find(f.file, "input_ids"),
                       *offsets = td_safetensors_find(f.file, "sample_offsets"),
                       *logits = td_safetensors_find(f.file, "logits");
    cr_assert(ids && offsets && logits);
    cr_assert_eq(logits->dtype, TD_F32);
    cr_assert_eq(logits->shape[0], ids->n_elems);
    f.logits = logits->data;
    f.n_vocab = (int32_t)logits->shape[1];
    f.samples.n = (int32_t)offsets->n_elems - 1;
    f.samples.ids = calloc((size_t)ids->n_elems, sizeof *f.samples.ids);
    memcpy(f.samples.ids, ids->data, ids->size_bytes);
    f.samples.offsets = calloc((size_t)offsets->n_elems, sizeof *f.samples.offsets);
    for (int64_t i = 0; i < offsets->n_elems; i++)
        f.samples.offsets[i] = (int32_t)((const int64_t *)offsets->data)[i];
    f.hf_f32_error = meta_number(f.file, "hf_f32_max_abs_error");
    f.hf_f32_rms = meta_number(f.file, "hf_f32_rms_error");
    f.hf_bf16_mean_kl = meta_number(f.file, "hf_bf16_mean_kl");
    f.hf_bf16_median_kl = meta_number(f.file, "hf_bf16_median_kl");
    f.class = td_safetensors_meta(f.file, "class");
    return f;
}

static void family_close(family *f) {
    td_safetensors_close(f->file);
    hs_samples_free(&f->samples);
    free(f->dir);
}

/* Samples begin, begin + 1, ..., around the end, n of them, and where each one's rows then are. */
static hs_samples rotated(const hs_samples *s, int32_t begin, int32_t n) {
    hs_samples r = {.n = n, .offsets = calloc((size_t)n + 1, 4)};
    r.ids = calloc((size_t)s->offsets[s->n], 4);
    for (int32_t k = 0; k < n; k++) {
        int32_t i = (begin + k) % s->n, len = s->offsets[i + 1] - s->offsets[i];
        memcpy(r.ids + r.offsets[k], s->ids + s->offsets[i], (size_t)len * 4);
        r.offsets[k + 1] = r.offsets[k] + len;
    }
    return r;
}

/* log softmax of a row of logits, in f64. */
static double row_lse(const float *z, int32_t n) {
    double m = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++)
        m = fmax(m, z[i]);
    for (int32_t i = 0; i < n; i++)
        sum += exp(z[i] - m);
    return m + log(sum);
}

typedef struct comparison {
    double max, rms, max_lse, mean_kl, median_kl;
    int32_t argmax_differs;
} comparison;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* All V log-probabilities of every row against the reference. */
static comparison compare(const family *f, const hs_rows *rows) {
    comparison c = {0};
    int32_t V = f->n_vocab;
    double squares = 0;
    bool *seen = calloc((size_t)V, sizeof *seen);
    double *kls = calloc((size_t)rows->n, sizeof *kls);
    for (int32_t r = 0; r < rows->n; r++) {
        const float *z = f->logits + (int64_t)r * V;
        double lse = row_lse(z, V), best = -INFINITY;
        for (int32_t i = 0; i < V; i++)
            seen[i] = false;
        for (int32_t k = 0; k < V; k++) {
            int32_t id = rows->topk_ids[(int64_t)r * V + k];
            cr_assert(id >= 0 && id < V && !seen[id], "row %d: id %d", r, id);
            seen[id] = true;
            double want = z[id] - lse, got = rows->topk_logprobs[(int64_t)r * V + k];
            double d = fabs(got - want);
            if (!(d <= c.max)) /* NaN counts as worse */
                c.max = d;
            squares += d * d;
            kls[r] += exp(want) * (want - got);
            best = fmax(best, z[id]);
        }
        double d = fabs(rows->logsumexp[r] - lse);
        if (!(d <= c.max_lse))
            c.max_lse = d;
        /* Logits closer than what either side can resolve are a tie. */
        c.argmax_differs += best - z[rows->topk_ids[(int64_t)r * V]] > 2 * FLOOR;
    }
    c.rms = sqrt(squares / ((double)rows->n * V));
    for (int32_t r = 0; r < rows->n; r++)
        c.mean_kl += kls[r] / rows->n;
    qsort(kls, (size_t)rows->n, sizeof *kls, by_value);
    c.median_kl = kls[(rows->n - 1) / 2]; /* as torch.median: the lower of two */
    free(kls);
    free(seen);
    return c;
}

static void check_positions(const family *f, const hs_setup *setup, const hs_rows *all) {
    const hs_samples *s = &f->samples;
    for (int32_t i = 0; i < s->n; i++) {
        int32_t len = s->offsets[i + 1] - s->offsets[i];
        hs_samples one = rotated(s, i, 1);
        hs_rows alone = hs_run(setup, &one);
        cr_expect(hs_rows_equal(all, s->offsets[i], &alone, 0, len),
                  "%s: sample %d alone gives other bytes than among others", f->dir, i);
        hs_rows_free(&alone);
        hs_samples_free(&one);

        /* Sample i comes first here, i - 1 last, the others between. */
        hs_samples turned = rotated(s, i, s->n);
        hs_rows rows = hs_run(setup, &turned);
        for (int32_t k = 0; k < s->n; k++) {
            int32_t j = (i + k) % s->n, n = s->offsets[j + 1] - s->offsets[j];
            cr_expect(hs_rows_equal(all, s->offsets[j], &rows, turned.offsets[k], n),
                      "%s: sample %d at place %d of a micro-batch gives other bytes than at %d",
                      f->dir, j, k, j);
        }
        hs_rows_free(&rows);
        hs_samples_free(&turned);
    }
}

ParameterizedTestParameters(families, against_transformers_float64) {
    size_t n = list_families(false);
    return cr_make_param_array(family_name, found, n);
}

ParameterizedTest(family_name *p, families, against_transformers_float64) {
    family f = family_open(p->name);
    hs_setup setup = {.dir = f.dir, .compute = TD_F32, .n_stages = 1, .top_k = f.n_vocab};
    hs_rows rows = hs_run(&setup, &f.samples);
    comparison c = compare(&f, &rows);
    double bound = fmin(fmax(2 * f.hf_f32_error, FLOOR), CEILING);
    printf("%-28s %-22s f32 max: tdgen %.2e transformers %.2e  rms: tdgen %.2e transformers %.2e\n",
           p->name, f.class, c.max, f.hf_f32_error, c.rms, f.hf_f32_rms);
    fflush(stdout);
    cr_expect(c.max <= bound, "%s: log-probabilities differ by %.3e, at most %.1e is allowed",
              p->name, c.max, bound);
    cr_expect(c.rms <= 1.5 * f.hf_f32_rms, "%s: the rms difference is %.3e, transformers has %.3e",
              p->name, c.rms, f.hf_f32_rms);
    cr_expect(c.max_lse <= bound, "%s: logsumexp differs by %.3e", p->name, c.max_lse);
    cr_expect_eq(c.argmax_differs, 0, "%s: the likeliest token differs on %d rows", p->name,
                 c.argmax_differs);

    check_positions(&f, &setup, &rows);
    setup.n_stages = 2;
    hs_rows staged = hs_run(&setup, &f.samples);
    cr_expect(hs_rows_equal(&rows, 0, &staged, 0, rows.n), "%s: two stages give other bytes",
              p->name);
    hs_rows_free(&staged);
    hs_rows_free(&rows);
    family_close(&f);
}

ParameterizedTestParameters(families, bf16_as_close_as_transformers) {
    size_t n = list_families(false);
    return cr_make_param_array(family_name, found, n);
}

/* The divergence of a bf16 run from the reference is that of transformers' bf16 run or less: both
 * round the weights and the inputs of products, tdgen keeps sums between layers in f32. With
 * experts the mean says little: where two experts are nearly as good, bf16 may choose the other
 * one, in either program and in different rows. */
ParameterizedTest(family_name *p, families, bf16_as_close_as_transformers) {
    if (!hs_can_compute(TD_BF16))
        cr_skip("SKIPPED: no bf16 on this CPU");
    family f = family_open(p->name);
    hs_setup setup = {.dir = f.dir, .compute = TD_BF16, .n_stages = 1, .top_k = f.n_vocab};
    hs_rows rows = hs_run(&setup, &f.samples);
    comparison c = compare(&f, &rows);
    bool experts = strstr(f.class, "Moe") || strstr(f.class, "Mixtral");
    printf("%-28s %-22s bf16 KL mean: tdgen %.2e transformers %.2e  median: tdgen %.2e "
           "transformers %.2e\n",
           p->name, f.class, c.mean_kl, f.hf_bf16_mean_kl, c.median_kl, f.hf_bf16_median_kl);
    fflush(stdout);
    cr_expect(c.median_kl <= f.hf_bf16_median_kl, "%s: median KL %.3e, transformers has %.3e",
              p->name, c.median_kl, f.hf_bf16_median_kl);
    cr_expect(experts || c.mean_kl <= f.hf_bf16_mean_kl, "%s: mean KL %.3e, transformers has %.3e",
              p->name, c.mean_kl, f.hf_bf16_mean_kl);
    cr_expect(c.max > 2 * f.hf_f32_error, "%s: bf16 compute gave the accuracy of f32", p->name);
    hs_rows_free(&rows);
    family_close(&f);
}

/* A folder that is not there would be a test that is not run. */
Test(families, every_fixture_is_there) {
    td_error e;
    json_t *root = NULL;
    cr_assert_eq(td_json_load_file(FAMILIES_DIR "/versions.json", 1 << 20, TD_E_DATA, &root, &e),
                 TD_OK, "%s", e.text);
    const json_t *cases = json_object_get(root, "cases");
    size_t n = list_families(true);
    cr_expect_geq(n, 40);
    cr_expect_eq(json_object_size(cases), n);
    for (size_t i = 0; i < n; i++)
        cr_expect(json_object_get(cases, found[i].name), "%s is not in versions.json",
                  found[i].name);
    json_decref(root);
    /* A name in the list that is no fixture would be a test that is not run, too. */
    const char *list = getenv("TDGEN_TEST_FAMILIES");
    size_t n_listed = list && *list ? 1 : 0;
    for (const char *p = list; n_listed && *p; p++)
        n_listed += *p == ',';
    cr_expect(!n_listed || n_listed == list_families(false), "TDGEN_TEST_FAMILIES=%s", list);
}
