/* Samples of a folder, drawn at random, computed again and compared: the record's side of
 * tdgen verify --against. See record.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "record/identity.h"
#include "record/index.h"
#include "record/merge.h"
#include "tdgen/dtype.h"
#include "tdgen/json.h"
#include "tdgen/record.h"
#include "tdgen/util.h"

/* What log-probabilities of the same teacher may differ by between device kinds: their sums run in
 * another order, in 16-bit modes also over inputs that were rounded elsewhere. The worst of all
 * candidates, and the mean. Measured: f32 4.5e-5 on small and 1.8e-4 on 1B teachers against torch;
 * bf16 0.24 against f32 (README, "What was measured"). */
#define TOLERANCE_F32 2e-3
#define TOLERANCE_16 1.0
#define MEAN_TOLERANCE_F32 1e-4
#define MEAN_TOLERANCE_16 0.05

/* Differences of the rows of one kind. */
typedef struct difference {
    int64_t n_samples, n_rows, n_rows_differ; /* differ: in any bit of what is stored */
    int64_t n_ids, n_ids_differ;              /* stored candidates, and those not found again */
    int64_t n_ranks_differ;
    double logprob, logsumexp, target, entropy, tail; /* largest absolute ones */
    double sum_logprob;                               /* of absolute ones, over those found again */
} difference;

struct td_recheck {
    char *dir;
    td_manifest manifest;
    td_index index;
    td_recheck_sample *samples; /* ascending by shard and place */
    int32_t n_samples;
    int64_t *place;     /* [n_samples] within its shard */
    int64_t *number;    /* [n_samples] of its shard */
    td_shard_file *f;   /* the one opened last */
    difference diff[2]; /* recorded on this device kind, on others */
    char other_kind[160];
    uint64_t **hashes; /* [n_samples][n_rows]: every bit that was captured, pass 0 */
    int64_t n_control, n_control_differ;
};

/* --- drawing samples ----------------------------------------------------------------------------
 */

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static td_status open_shard(td_recheck *r, int64_t number, td_error *err) {
    if (r->f && r->f->meta.number == number)
        return TD_OK;
    td_shard_file_close(r->f);
    r->f = NULL;
    char name[TD_SHARD_NAME_SIZE];
    td_shard_name(number, name);
    char *path = td_asprintf("%s/%s", r->dir, name);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = td_shard_file_open(path, &r->manifest.spec, TD_E_VERIFY, NULL, &r->f, err);
    free(path);
    return rc;
}

/* Offsets and positions of the sample lie in the shard. */
static bool is_sound(const td_shard_file *f, int64_t i) {
    const int64_t *t = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    const int32_t *position = td_shard_file_data(f, TD_T_ROW_POSITION);
    const uint8_t *device = td_shard_file_data(f, TD_T_SAMPLE_DEVICE);
    const td_layout_counts *c = &f->layout.counts;
    if (t[i] < 0 || t[i + 1] < t[i] || t[i + 1] > c->n_tokens || rows[i] < 0 ||
        rows[i + 1] < rows[i] || rows[i + 1] > c->n_rows || device[i] >= f->meta.n_kinds ||
        t[i + 1] - t[i] > INT32_MAX)
        return false;
    for (int64_t k = rows[i]; k < rows[i + 1]; k++)
        if (position[k] < 0 || position[k] + INT64_C(1) >= t[i + 1] - t[i])
            return false;
    return true;
}

static td_status copy_sample(td_recheck *r, int64_t number, int64_t i, td_error *err) {
    const td_shard_file *f = r->f;
    const int64_t *t = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    const int32_t *ids = (const int32_t *)td_shard_file_data(f, TD_T_INPUT_IDS) + t[i];
    const int32_t *position = (const int32_t *)td_shard_file_data(f, TD_T_ROW_POSITION) + rows[i];
    td_recheck_sample *s = &r->samples[r->n_samples];
    *s = (td_recheck_sample){.n_tokens = (int32_t)(t[i + 1] - t[i]),
                             .n_rows = (int32_t)(rows[i + 1] - rows[i])};
    s->dataset_row = ((const int64_t *)td_shard_file_data(f, TD_T_SAMPLE_INDEX))[i];
    s->start = ((const int64_t *)td_shard_file_data(f, TD_T_SAMPLE_START))[i];
    s->device_kind = td_strdup(
        f->meta.device_kinds[((const uint8_t *)td_shard_file_data(f, TD_T_SAMPLE_DEVICE))[i]]);
    s->ids = td_calloc((size_t)s->n_tokens, sizeof *s->ids);
    s->position = td_calloc((size_t)s->n_rows, sizeof *s->position);
    r->place[r->n_samples] = i;
    r->number[r->n_samples++] = number; /* owned from here on, whatever comes */
    if (!s->device_kind || !s->ids || !s->position)
        return td_error_nomem(err, "a sample", (size_t)s->n_tokens * sizeof *s->ids);
    memcpy(s->ids, ids, (size_t)s->n_tokens * sizeof *s->ids);
    memcpy(s->position, position, (size_t)s->n_rows * sizeof *s->position);
    return TD_OK;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* n different ones of 0 .. total-1, ascending (Floyd's algorithm). */
static void draw_numbers(int64_t *out, int64_t n, int64_t total, uint64_t seed) {
    uint64_t state = seed;
    int64_t k = 0;
    for (int64_t j = total - n; j < total; j++) {
        int64_t x = (int64_t)(next_random(&state) % (uint64_t)(j + 1));
        for (int64_t i = 0; i < k; i++)
            if (out[i] == x) {
                x = j;
                break;
            }
        out[k++] = x;
    }
    qsort(out, (size_t)n, sizeof *out, by_value);
}

/* Of all samples in shards that have rows; one without rows stands for the next that has some, so
 * that there may be fewer than asked for. */
static td_status draw_samples(td_recheck *r, int32_t n_wanted, uint64_t seed, td_error *err) {
    int64_t total = 0, first = 0;
    size_t e = 0;
    for (size_t i = 0; i < r->index.n; i++)
        total += r->index.entries[i].n_rows ? r->index.entries[i].n_samples : 0;
    int64_t n = TD_MIN(total, (int64_t)n_wanted);
    int64_t *numbers = td_calloc((size_t)n, sizeof *numbers);
    r->samples = td_calloc((size_t)n, sizeof *r->samples);
    r->place = td_calloc((size_t)n, sizeof *r->place);
    r->number = td_calloc((size_t)n, sizeof *r->number);
    r->hashes = td_calloc((size_t)n, sizeof *r->hashes);
    td_status rc = TD_OK;
    if (!numbers || !r->samples || !r->place || !r->number || !r->hashes) {
        rc = td_error_nomem(err, "the samples", (size_t)n * sizeof *r->samples);
        goto done;
    }
    draw_numbers(numbers, n, total, seed);
    for (int64_t k = 0; rc == TD_OK && k < n; k++) {
        while (e < r->index.n && (!r->index.entries[e].n_rows ||
                                  numbers[k] >= first + r->index.entries[e].n_samples)) {
            first += r->index.entries[e].n_rows ? r->index.entries[e].n_samples : 0;
            e++;
        }
        rc = open_shard(r, r->index.entries[e].number, err);
        if (rc != TD_OK)
            break;
        /* a sample without rows gives way to the next one that has some, and is not yet drawn */
        int64_t i = numbers[k] - first, n_here = r->f->layout.counts.n_samples;
        const int64_t *rows = td_shard_file_data(r->f, TD_T_ROW_OFFSETS);
        while (i < n_here && rows[i + 1] == rows[i])
            i++;
        bool again = r->n_samples && r->number[r->n_samples - 1] == r->f->meta.number &&
                     r->place[r->n_samples - 1] >= i;
        if (i >= n_here || again)
            continue;
        rc = is_sound(r->f, i)
                 ? copy_sample(r, r->f->meta.number, i, err)
                 : td_error_set(err, TD_E_VERIFY, "%s is damaged; run tdgen verify %s", r->f->path,
                                r->dir);
    }
done:
    free(numbers);
    return rc;
}

td_status td_recheck_open(const char *dir, int32_t n_samples, uint64_t seed, td_recheck **out,
                          td_error *err) {
    td_index_faults faults;
    td_recheck *r = td_calloc(1, sizeof *r);
    if (!r)
        return td_error_nomem(err, "the samples", sizeof *r);
    r->dir = td_strdup(dir);
    td_status rc = r->dir ? td_merge_check_unfinished(dir, err) : td_error_nomem(err, "a path", 0);
    if (rc == TD_OK)
        rc = td_manifest_load(dir, TD_E_VERIFY, &r->manifest, err);
    if (rc == TD_OK)
        rc = td_index_load(dir, &r->index, &faults, err);
    if (rc == TD_OK)
        rc = draw_samples(r, n_samples, seed, err);
    if (rc == TD_OK && r->n_samples == 0)
        rc = td_error_set(err, TD_E_OUTPUT, "%s has no recorded positions yet", dir);
    if (rc != TD_OK) {
        td_recheck_close(r);
        return rc;
    }
    *out = r;
    return TD_OK;
}

void td_recheck_close(td_recheck *r) {
    if (!r)
        return;
    for (int32_t i = 0; i < r->n_samples; i++) {
        free((char *)r->samples[i].device_kind);
        free(r->samples[i].ids);
        free(r->samples[i].position);
        free(r->hashes[i]);
    }
    td_shard_file_close(r->f);
    free(r->hashes);
    free(r->number);
    free(r->place);
    free(r->samples);
    td_index_free(&r->index);
    td_manifest_free(&r->manifest);
    free(r->dir);
    free(r);
}

const td_recheck_sample *td_recheck_samples(const td_recheck *r, int32_t *n) {
    *n = r->n_samples;
    return r->samples;
}

/* --- the teacher --------------------------------------------------------------------------------
 */

static td_status compare_hash(const td_recheck *r, const char *key, const char *what,
                              const char *model_dir, uint64_t have, td_error *err) {
    const char *want = json_string_value(json_object_get(r->manifest.identity, key));
    char hex[17];
    td_hash_hex(have, hex);
    if (!want || strcmp(want, hex) == 0)
        return TD_OK;
    return td_error_set(err, TD_E_MODEL,
                        "%s is not the teacher that %s was made with: %s (%s) is %s in the folder "
                        "and %s in the model",
                        model_dir, r->dir, key, what, want, hex);
}

td_status td_recheck_teacher(const td_recheck *r, const char *model_dir,
                             const td_model_config *model, const td_tokenizer *tok,
                             const uint64_t *weights_hash, td_error *err) {
    td_status rc = TD_OK;
    if (model)
        rc =
            compare_hash(r, "model.config_hash", "config.json", model_dir, model->config_hash, err);
    if (rc == TD_OK && tok)
        rc = compare_hash(r, "tokenizer.hash", "tokenizer.json", model_dir, td_tokenizer_hash(tok),
                          err);
    if (rc == TD_OK && weights_hash)
        rc = compare_hash(r, "model.weights_hash", "the weights", model_dir, *weights_hash, err);
    return rc;
}

bool td_recheck_needs_tokenizer(const td_recheck *r) {
    return td_json_has(r->manifest.identity, "tokenizer.hash");
}

td_status td_recheck_settings(const td_recheck *r, const td_model_config *model, td_config *cfg,
                              int32_t *n_valid_vocab, td_error *err) {
    static const td_compute modes[] = {TD_COMPUTE_F32, TD_COMPUTE_BF16, TD_COMPUTE_F16};
    const json_t *id = r->manifest.identity;
    const char *compute = json_string_value(json_object_get(id, "model.compute"));
    cfg->model.compute = TD_COMPUTE_AUTO;
    for (size_t i = 0; compute && i < TD_ARRAY_LEN(modes); i++)
        if (strcmp(compute, td_compute_name(modes[i])) == 0)
            cfg->model.compute = modes[i];
    if (cfg->model.compute == TD_COMPUTE_AUTO)
        return td_error_set(err, TD_E_VERIFY, "%s: its manifest names no compute mode", r->dir);
    const td_capture_spec *spec = &r->manifest.spec;
    cfg->capture.top_k = spec->top_k;
    cfg->capture.logprob_dtype = spec->logprob_dtype;
    cfg->capture.n_temperatures = spec->n_temperatures;
    const json_t *temps = json_object_get(id, "capture.temperatures");
    for (int32_t i = 0; i < spec->n_temperatures; i++)
        cfg->capture.temperatures[i] = json_number_value(json_array_get(temps, (size_t)i));
    *n_valid_vocab = 0;
    int64_t n = 0;
    if (json_is_true(json_object_get(id, "capture.mask_padded_vocab"))) {
        td_status rc =
            td_json_get_int(id, "tokenizer.n_vocab", 1, INT32_MAX, r->dir, TD_E_VERIFY, &n, err);
        if (rc != TD_OK)
            return rc;
        *n_valid_vocab = TD_MIN((int32_t)n, model->n_vocab);
    }
    return TD_OK;
}

/* --- comparing ----------------------------------------------------------------------------------
 */

static double gap(float a, float b) {
    return a == b ? 0 : fabs((double)a - (double)b); /* equal infinities */
}

/* The most that rounding to the normal f16 x moved it by: 11 significant bits. */
static double half_ulp_f16(float x) {
    int e = -14;
    if (x != 0 && isfinite(x))
        frexp((double)x, &e); /* |x| in [2^(e-1), 2^e) */
    return ldexp(1, TD_MAX(e, -13) - 12);
}

/* Every bit that was captured for the row. */
static uint64_t hash_row(const td_captured *c, size_t r) {
    uint64_t h[11] = {0};
    size_t k = (size_t)c->top_k, nt = (size_t)c->n_temperatures;
    h[0] = c->topk_ids ? td_hash64(c->topk_ids + r * k, k * sizeof(int32_t)) : 0;
    h[1] = c->topk_logprobs ? td_hash64(c->topk_logprobs + r * k, k * sizeof(float)) : 0;
    h[2] = nt ? td_hash64(c->logsumexp_t + r * nt, nt * sizeof(float)) : 0;
    const float *scalars[] = {c->logsumexp, c->tail_mass, c->target_logprob, c->entropy};
    for (size_t i = 0; i < TD_ARRAY_LEN(scalars); i++)
        if (scalars[i])
            memcpy(&h[3 + i], &scalars[i][r], sizeof(float));
    h[7] = c->target_rank ? (uint64_t)c->target_rank[r] : 0;
    return td_hash64(h, sizeof h);
}

static void compare_row(const td_shard_file *f, int64_t row, const td_captured *c, size_t r,
                        difference *d) {
    const td_capture_spec *spec = &f->layout.spec;
    size_t k = (size_t)spec->top_k, nt = (size_t)spec->n_temperatures;
    const int32_t *ids = (const int32_t *)td_shard_file_data(f, TD_T_TOPK_IDS) + row * spec->top_k;
    const float *f32 = td_shard_file_data(f, TD_T_TOPK_LOGPROBS_F32);
    const uint16_t *f16 = td_shard_file_data(f, TD_T_TOPK_LOGPROBS_F16);
    const float *lse_t = td_shard_file_data(f, TD_T_LOGSUMEXP_T);
    float lse = ((const float *)td_shard_file_data(f, TD_T_LOGSUMEXP))[row];
    float tail = ((const float *)td_shard_file_data(f, TD_T_TAIL_MASS))[row];
    float target = ((const float *)td_shard_file_data(f, TD_T_TARGET_LOGPROB))[row];
    float entropy = ((const float *)td_shard_file_data(f, TD_T_ENTROPY))[row];
    int32_t rank = ((const int32_t *)td_shard_file_data(f, TD_T_TARGET_RANK))[row];
    const int32_t *ids2 = c->topk_ids + r * (size_t)c->top_k;
    const float *lp2 = c->topk_logprobs + r * (size_t)c->top_k;
    bool differ = rank != c->target_rank[r] || lse != c->logsumexp[r] ||
                  target != c->target_logprob[r] || entropy != c->entropy[r] ||
                  tail != c->tail_mass[r];
    d->n_rows++;
    d->n_ranks_differ += rank != c->target_rank[r];
    d->logsumexp = fmax(d->logsumexp, gap(lse, c->logsumexp[r]));
    d->target = fmax(d->target, gap(target, c->target_logprob[r]));
    d->entropy = fmax(d->entropy, gap(entropy, c->entropy[r]));
    d->tail = fmax(d->tail, gap(tail, c->tail_mass[r]));
    for (size_t t = 0; t < nt; t++) {
        float other = c->logsumexp_t[r * (size_t)c->n_temperatures + t];
        d->logsumexp = fmax(d->logsumexp, gap(lse_t[(size_t)row * nt + t], other));
        differ |= lse_t[(size_t)row * nt + t] != other;
    }
    for (size_t j = 0; j < k; j++) {
        size_t at = (size_t)row * k + j, m = j;
        float lp = f16 ? td_f16_to_f32(f16[at]) : f32[at];
        if (ids[j] < 0) {
            differ |= ids2[j] >= 0;
            continue;
        }
        d->n_ids++;
        differ |= ids[j] != ids2[j];
        if (ids[j] != ids2[j])
            for (m = 0; m < k && ids2[m] != ids[j]; m++)
                ;
        if (m == k) {
            d->n_ids_differ++;
            continue;
        }
        float again = f16 ? td_f16_to_f32(td_f32_to_f16(lp2[m])) : lp2[m];
        /* what storing it in 16 bits may have moved it by is no difference of the numbers */
        double by = fmax(0, gap(lp, lp2[m]) - (f16 ? half_ulp_f16(lp) : 0));
        d->logprob = fmax(d->logprob, by);
        d->sum_logprob += by;
        differ |= lp != again;
    }
    d->n_rows_differ += differ;
}

td_status td_recheck_compare(td_recheck *r, int32_t sample, const char *device_kind,
                             const td_captured *cap, int32_t first_row, td_error *err) {
    const td_recheck_sample *s = &r->samples[sample];
    bool same_kind = strcmp(s->device_kind, device_kind) == 0;
    difference *d = &r->diff[!same_kind];
    td_status rc = open_shard(r, r->number[sample], err);
    if (rc != TD_OK)
        return rc;
    if (!same_kind)
        snprintf(r->other_kind, sizeof r->other_kind, "%s", s->device_kind);
    r->hashes[sample] = td_calloc((size_t)s->n_rows, sizeof **r->hashes);
    if (!r->hashes[sample])
        return td_error_nomem(err, "a sample", (size_t)s->n_rows * 8);
    int64_t row = ((const int64_t *)td_shard_file_data(r->f, TD_T_ROW_OFFSETS))[r->place[sample]];
    d->n_samples++;
    for (int32_t i = 0; i < s->n_rows; i++) {
        size_t at = (size_t)(first_row + i);
        compare_row(r->f, row + i, cap, at, d);
        r->hashes[sample][i] = hash_row(cap, at);
    }
    return TD_OK;
}

void td_recheck_control(td_recheck *r, int32_t sample, const td_captured *cap, int32_t first_row) {
    const td_recheck_sample *s = &r->samples[sample];
    for (int32_t i = 0; r->hashes[sample] && i < s->n_rows; i++) {
        r->n_control++;
        r->n_control_differ += hash_row(cap, (size_t)(first_row + i)) != r->hashes[sample][i];
    }
}

static void print_difference(const difference *d, FILE *out) {
    fprintf(
        out,
        "    log-probabilities %.3g (mean %.2g) · logsumexp %.3g · target %.3g · entropy %.3g · "
        "tail %.3g\n    %lld of %lld candidates not among those computed again · rank of the "
        "target differs at %lld positions\n",
        d->logprob,
        d->n_ids > d->n_ids_differ ? d->sum_logprob / (double)(d->n_ids - d->n_ids_differ) : 0.0,
        d->logsumexp, d->target, d->entropy, d->tail, (long long)d->n_ids_differ,
        (long long)d->n_ids, (long long)d->n_ranks_differ);
}

td_status td_recheck_report(const td_recheck *r, const char *device_kind, FILE *out,
                            td_error *err) {
    const difference *same = &r->diff[0], *other = &r->diff[1];
    const char *compute = json_string_value(json_object_get(r->manifest.identity, "model.compute"));
    bool f32 = compute && strcmp(compute, "f32") == 0;
    double tolerance = f32 ? TOLERANCE_F32 : TOLERANCE_16;
    double mean_tolerance = f32 ? MEAN_TOLERANCE_F32 : MEAN_TOLERANCE_16;
    fprintf(out, "Computed again: %d samples, %lld positions, in %s on %s\n", r->n_samples,
            (long long)(same->n_rows + other->n_rows), compute ? compute : "?", device_kind);
    fprintf(out,
            "  control (each sample twice, among other samples): %lld of %lld positions differ\n",
            (long long)r->n_control_differ, (long long)r->n_control);
    if (same->n_rows) {
        fprintf(out,
                "  recorded on the same device kind, %lld samples: %lld of %lld positions differ "
                "(must be 0); largest differences\n",
                (long long)same->n_samples, (long long)same->n_rows_differ,
                (long long)same->n_rows);
        print_difference(same, out);
    }
    if (other->n_rows) {
        fprintf(out,
                "  recorded on another device kind (%s), %lld samples: largest differences "
                "(log-probabilities may differ by %g, by %g on average)\n",
                r->other_kind, (long long)other->n_samples, tolerance, mean_tolerance);
        print_difference(other, out);
    }
    if (r->n_control_differ)
        return td_error_set(err, TD_E_VERIFY,
                            "the same sample gave different numbers among other samples: this "
                            "device (%s) does not compute as it should",
                            device_kind);
    if (same->n_rows_differ)
        return td_error_set(err, TD_E_VERIFY,
                            "%s: %lld of %lld positions are not what the teacher gives on the "
                            "device kind that they were recorded on",
                            r->dir, (long long)same->n_rows_differ, (long long)same->n_rows);
    double mean = other->n_ids > other->n_ids_differ
                      ? other->sum_logprob / (double)(other->n_ids - other->n_ids_differ)
                      : 0;
    if (fmax(fmax(other->logprob, other->target), other->logsumexp) > tolerance ||
        mean > mean_tolerance || other->n_ids_differ * 10 > other->n_ids)
        return td_error_set(
            err, TD_E_VERIFY,
            "%s: what was recorded on %s differs by more than the tolerance between "
            "device kinds",
            r->dir, r->other_kind);
    fprintf(out, "OK: the record is what this teacher gives\n");
    return TD_OK;
}
