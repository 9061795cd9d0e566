/* Samples of a folder, drawn at random, computed again and compared: the record's side of
 * tdgen verify --against. See record.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "report/report.h"
#include "record/reader.h"
#include "capture/capture.h"
#include "base/dtype.h"
#include "base/json.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "base/text.h"

/* What log-probabilities of the same teacher may differ by between device kinds: their sums run in
 * another order, in 16-bit modes also over inputs that were rounded elsewhere. The worst of all
 * candidates, and the mean. Measured: f32 4.5e-5 on small and 1.8e-4 on 1B teachers against torch;
 * bf16 0.24 against f32 (docs/benchmarks.md). */
#define TOLERANCE_F32 2e-3
#define TOLERANCE_16 1.0
#define MEAN_TOLERANCE_F32 1e-4
#define MEAN_TOLERANCE_16 0.05

/* Differences of the rows of one kind. */
typedef struct difference {
    int64_t n_samples, n_rows, n_rows_differ; /* differ: in any bit of what is stored */
    int64_t n_ids, n_ids_differ;              /* stored candidates, and those not found again */
    int64_t n_ranks_differ;
    int64_t n_draws, n_draws_moved;
    double dense; /* of logits or states, relative to those above 1 */
    double logprob, logsumexp, target, entropy, tail; /* largest absolute ones */
    double sum_logprob;                               /* of absolute ones, over those found again */
} difference;

struct td_recheck {
    char *dir;
    td_manifest manifest;
    td_index index;
    td_recheck_sample *samples; /* ascending by shard and place */
    int32_t n_samples;
    int64_t *place;  /* [n_samples] within its shard */
    int64_t *number; /* [n_samples] of its shard */
    td_row_reader *reader;
    td_shard_file *f;   /* the one opened last */
    difference diff[2]; /* recorded on this device kind, on others */
    char other_kind[160];
    uint64_t **hashes; /* [n_samples][n_rows]: every bit that was captured, pass 0 */
    int64_t n_control, n_control_differ;
};

/* --- drawing samples -------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static td_status open_shard(td_recheck *r, int64_t number, td_error *err) {
    if (r->f && r->f->meta.number == number)
        return TD_OK;
    td_row_reader_destroy(r->reader);
    td_shard_file_close(r->f);
    r->reader = NULL;
    r->f = NULL;
    char *path = td_shard_path(r->dir, number);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = td_shard_file_open(path, &r->manifest.spec, TD_E_VERIFY, NULL, &r->f, err);
    if (rc == TD_OK)
        rc = td_row_reader_create(r->f, &r->reader, err);
    free(path);
    return rc;
}

static bool is_sound(const td_shard_file *f, int64_t i) {
    const int64_t *t = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    const int32_t *position = td_shard_file_data(f, TD_T_ROW_POSITION);
    const uint8_t *device = td_shard_file_data(f, TD_T_SAMPLE_DEVICE);
    bool sound =
        td_row_sample_sound(f, i) && device[i] < f->meta.n_kinds && t[i + 1] - t[i] <= INT32_MAX;
    for (int64_t r = rows[i] + 1; sound && r < rows[i + 1]; r++)
        sound = position[r] > position[r - 1];
    return sound;
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
    s->loss_mask = td_calloc((size_t)s->n_tokens, 1);
    r->place[r->n_samples] = i;
    r->number[r->n_samples++] = number; /* owned from here on, whatever comes */
    if (!s->device_kind || !s->ids || !s->loss_mask)
        return td_error_nomem(err, "a sample", (size_t)s->n_tokens * sizeof *s->ids);
    memcpy(s->ids, ids, (size_t)s->n_tokens * sizeof *s->ids);
    for (int32_t k = 0; k < s->n_rows; k++)
        s->loss_mask[position[k] + 1] = 1;
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
        free(r->samples[i].loss_mask);
        free(r->hashes[i]);
    }
    td_row_reader_destroy(r->reader);
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

/* --- the teacher ------------------------------------------------------------------------------ */

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

/* Older versions recorded the hash of all of tokenizer.json's bytes. */
static bool is_bytes_hash(const td_recheck *r, const uint64_t *hash) {
    const char *want = json_string_value(json_object_get(r->manifest.identity, "tokenizer.hash"));
    char hex[17];
    if (!want || !hash)
        return false;
    td_hash_hex(*hash, hex);
    return strcmp(want, hex) == 0;
}

td_status td_recheck_teacher(const td_recheck *r, const char *model_dir,
                             const td_recheck_teacher_hashes *have, td_error *err) {
    td_status rc = TD_OK;
    if (have->config)
        rc = compare_hash(r, "model.config_hash", "config.json", model_dir, *have->config, err);
    if (rc == TD_OK && have->tokenizer && !is_bytes_hash(r, have->tokenizer_bytes))
        rc = compare_hash(r, "tokenizer.hash", "tokenizer.json", model_dir, *have->tokenizer, err);
    if (rc == TD_OK && have->weights)
        rc = compare_hash(r, "model.weights_hash", "the weights", model_dir, *have->weights, err);
    return rc;
}

bool td_recheck_needs_tokenizer(const td_recheck *r) {
    return td_json_has(r->manifest.identity, "tokenizer.hash");
}

const td_capture_spec *td_recheck_capture(const td_recheck *r) {
    return &r->manifest.spec;
}

td_status td_recheck_compute(const td_recheck *r, td_dtype *out, td_error *err) {
    const char *name = json_string_value(json_object_get(r->manifest.identity, "model.compute"));
    for (int t = TD_F32; name && t <= TD_F16; t++)
        if (strcmp(name, td_dtype_name((td_dtype)t)) == 0) {
            *out = (td_dtype)t;
            return TD_OK;
        }
    return td_error_set(err, TD_E_VERIFY, "%s: its manifest names no compute mode", r->dir);
}

/* --- comparing -------------------------------------------------------------------------------- */

/* Of numbers, how far they are apart: infinite where one of them is no number, which fmax would
 * pass over. */
static double gap(float a, float b) {
    if (a == b) /* also equal infinities */
        return 0;
    return isfinite(a) && isfinite(b) ? fabs((double)a - (double)b) : INFINITY;
}

/* The most that rounding to the normal f16 x moved it by: 11 significant bits. */
static double half_ulp_f16(float x) {
    int e = -14;
    if (x != 0 && isfinite(x))
        frexp((double)x, &e); /* |x| in [2^(e-1), 2^e) */
    return ldexp(1, TD_MAX(e, -13) - 12);
}

static uint64_t hash_at(const void *array, size_t row, size_t row_bytes) {
    return array ? td_hash64((const char *)array + row * row_bytes, row_bytes) : 0;
}

static int32_t dense_width(const td_capture_spec *spec) {
    return spec->mode == TD_CAPTURE_FULL ? spec->n_vocab : spec->n_hidden;
}

/* Every bit that was captured for the row. */
static uint64_t hash_row(const td_capture_spec *spec, const td_captured *c, size_t r) {
    size_t nd = (size_t)c->n_draws, n_unique = c->n_unique ? (size_t)c->n_unique[r] : 0;
    const uint64_t h[] = {
        hash_at(c->topk_ids, r, (size_t)c->top_k * 4),
        hash_at(c->topk_logprobs, r, (size_t)c->top_k * 4),
        hash_at(c->logsumexp_t, r, (size_t)c->n_temperatures * 4), hash_at(c->logsumexp, r, 4),
        hash_at(c->tail_mass, r, 4), hash_at(c->target_logprob, r, 4), hash_at(c->entropy, r, 4),
        hash_at(c->target_rank, r, 4), hash_at(c->n_kept, r, 4),
        hash_at(c->proposal_logsumexp, r, 4),
        hash_at(c->always_logprobs, r, (size_t)c->n_always * 4), n_unique,
        /* what stands behind the last entry is nobody's */
        n_unique ? td_hash64(c->draw_ids + r * nd, n_unique * 4) : 0,
        n_unique ? td_hash64(c->draw_counts + r * nd, n_unique * 4) : 0,
        n_unique ? td_hash64(c->draw_logprobs + r * nd, n_unique * 4) : 0,
        hash_at(c->dense, r, (size_t)dense_width(spec) * td_dtype_size(c->dense_dtype))};
    return td_hash64(h, sizeof h);
}

/* A set of candidates on disk and the one computed again; true when a stored bit differs. */
static bool compare_set(const td_row_view *v, const int32_t *ids, const float *logprobs, int32_t n,
                        float q8_error, const int32_t *ids2, const float *logprobs2, int32_t n2,
                        difference *d) {
    float again[TD_MAX_TOP_K];
    uint8_t q8[TD_MAX_TOP_K];
    bool differ = n != n2;
    n2 = TD_MIN(n2, TD_MAX_TOP_K);
    memcpy(again, logprobs2, (size_t)n2 * sizeof *again);
    if (v->rounding == TD_ROUND_Q8) {
        float range[2];
        td_q8_encode(logprobs2, (size_t)n2, q8, range);
        td_q8_decode(q8, (size_t)n2, range, again);
    }
    for (int32_t j = 0; j < n2 && v->rounding == TD_ROUND_F16; j++)
        again[j] = td_f16_to_f32(td_logprob_to_f16(logprobs2[j]));
    for (int32_t j = 0; j < n; j++) {
        int32_t m = j;
        if (j < n2)
            differ |= ids[j] != ids2[j] || logprobs[j] != again[j];
        if (ids[j] < 0)
            continue; /* a free place */
        d->n_ids++;
        if (j >= n2 || ids[j] != ids2[j])
            for (m = 0; m < n2 && ids2[m] != ids[j]; m++)
                ;
        if (m == n2) {
            d->n_ids_differ++;
            continue;
        }
        /* what storing it in few bits may have moved it by is no difference of the numbers */
        double moved = v->rounding == TD_ROUND_Q8    ? (double)q8_error
                       : v->rounding == TD_ROUND_F16 ? half_ulp_f16(logprobs[j])
                                                     : 0;
        double by = fmax(0, gap(logprobs[j], logprobs2[m]) - moved);
        d->logprob = fmax(d->logprob, by);
        d->sum_logprob += by;
    }
    return differ;
}

/* Of the draws, how many went to other tokens. */
static bool compare_draws(const td_row_view *v, const td_captured *c, size_t r, difference *d) {
    size_t at = r * (size_t)c->n_draws;
    const int32_t *ids2 = c->draw_ids + at, *counts2 = c->draw_counts + at;
    int32_t n2 = c->n_unique[r], i = 0, j = 0;
    int64_t moved = 0, n = 0;
    bool differ = compare_set(v, v->draw_ids, v->draw_logprobs, v->n_drawn, v->draw_error, ids2,
                              c->draw_logprobs + at, n2, d);
    while (i < v->n_drawn || j < n2) {
        int32_t a = i < v->n_drawn ? v->draw_ids[i] : INT32_MAX, b = j < n2 ? ids2[j] : INT32_MAX;
        int64_t x = a <= b ? v->draw_counts[i++] : 0, y = b <= a ? counts2[j++] : 0;
        moved += x > y ? x - y : 0;
        n += x;
    }
    d->n_draws += n;
    d->n_draws_moved += moved;
    if (c->proposal_logsumexp && td_capture_has_proposal(v->spec)) {
        d->logsumexp = fmax(d->logsumexp, gap(v->proposal_logsumexp, c->proposal_logsumexp[r]));
        differ |= v->proposal_logsumexp != c->proposal_logsumexp[r];
    }
    return differ || moved;
}

static bool compare_dense(const td_row_view *v, const td_captured *c, size_t r, difference *d) {
    size_t bytes = (size_t)v->n_dense * td_dtype_size(c->dense_dtype);
    td_row_view again = *v;
    again.dense = (const char *)c->dense + r * bytes;
    if (memcmp(v->dense, again.dense, bytes) == 0)
        return false;
    /* both were rounded to the stored type */
    double eps = c->dense_dtype == TD_F32 ? 0 : ldexp(1, c->dense_dtype == TD_BF16 ? -8 : -11);
    for (int32_t i = 0; i < v->n_dense; i++) {
        float x = td_row_dense_at(v, i), y = td_row_dense_at(&again, i);
        double by = gap(x, y);
        if (isfinite(by))
            by = fmax(0, by / fmax(1, fabs((double)x)) - eps);
        d->dense = fmax(d->dense, by);
    }
    return true;
}

static bool compare_stats(const td_row_view *v, const td_captured *c, size_t r, difference *d) {
    size_t nt = (size_t)v->spec->n_temperatures, na = (size_t)v->spec->n_always;
    bool differ = v->target_rank != c->target_rank[r] || v->logsumexp != c->logsumexp[r] ||
                  v->target_logprob != c->target_logprob[r] || v->entropy != c->entropy[r] ||
                  v->tail_mass != c->tail_mass[r];
    d->n_ranks_differ += v->target_rank != c->target_rank[r];
    d->logsumexp = fmax(d->logsumexp, gap(v->logsumexp, c->logsumexp[r]));
    d->target = fmax(d->target, gap(v->target_logprob, c->target_logprob[r]));
    d->entropy = fmax(d->entropy, gap(v->entropy, c->entropy[r]));
    d->tail = fmax(d->tail, gap(v->tail_mass, c->tail_mass[r]));
    for (size_t t = 0; t < nt; t++) {
        float other = c->logsumexp_t[r * nt + t];
        d->logsumexp = fmax(d->logsumexp, gap(v->logsumexp_t[t], other));
        differ |= v->logsumexp_t[t] != other;
    }
    for (size_t i = 0; i < na; i++) {
        float other = c->always_logprobs[r * na + i];
        d->logprob = fmax(d->logprob, gap(v->always_logprobs[i], other));
        differ |= v->always_logprobs[i] != other;
    }
    return differ;
}

static void compare_row(const td_row_view *v, const td_captured *c, size_t r, difference *d) {
    td_capture_mode mode = v->spec->mode;
    bool differ = false;
    d->n_rows++;
    if (mode != TD_CAPTURE_HIDDEN)
        differ |= compare_stats(v, c, r, d);
    if (td_capture_has_topk(mode)) {
        int32_t n = td_capture_has_topp(mode) ? c->n_kept[r] : c->top_k;
        size_t at = r * (size_t)c->top_k;
        differ |= compare_set(v, v->top_ids, v->top_logprobs, v->n_top, v->top_error,
                              c->topk_ids + at, c->topk_logprobs + at, n, d);
    }
    if (td_capture_has_draws(mode))
        differ |= compare_draws(v, c, r, d);
    if (v->dense)
        differ |= compare_dense(v, c, r, d);
    d->n_rows_differ += differ;
}

/* Has what was captured the shape that the folder's spec asks for? */
static bool fits(const td_capture_spec *s, const td_captured *c) {
    bool hidden = s->mode == TD_CAPTURE_HIDDEN, full = s->mode == TD_CAPTURE_FULL;
    bool top = td_capture_has_topk(s->mode);
    return (!top || (c->topk_ids && c->top_k == s->top_k)) &&
           (!td_capture_has_topp(s->mode) || c->n_kept) &&
           (!td_capture_has_draws(s->mode) || (c->draw_ids && c->n_draws == s->n_draws)) &&
           (hidden || (c->n_temperatures == s->n_temperatures && c->n_always == s->n_always)) &&
           (!(hidden || full) || (c->dense && c->dense_dtype == s->dense_dtype));
}

td_status td_recheck_compare(td_recheck *r, int32_t sample, const char *device_kind,
                             const td_captured *cap, int32_t first_row, td_error *err) {
    const td_recheck_sample *s = &r->samples[sample];
    /* Another version may compute other bits on the same device. */
    bool same_revision = r->manifest.numerics_revision == TD_NUMERICS_REVISION;
    bool same_kind = same_revision && strcmp(s->device_kind, device_kind) == 0;
    difference *d = &r->diff[!same_kind];
    td_status rc = open_shard(r, r->number[sample], err);
    if (rc != TD_OK)
        return rc;
    if (!same_kind) {
        td_strbuf kind = {0}; /* from the shard, and to be printed */
        td_text_printable(s->device_kind, strlen(s->device_kind), &kind);
        snprintf(r->other_kind, sizeof r->other_kind,
                 same_revision ? "%s" : "%s at numerics revision %d", kind.data ? kind.data : "?",
                 (int)r->manifest.numerics_revision);
        td_strbuf_free(&kind);
    }
    r->hashes[sample] = td_calloc((size_t)s->n_rows, sizeof **r->hashes);
    if (!r->hashes[sample])
        return td_error_nomem(err, "a sample", (size_t)s->n_rows * 8);
    if (!fits(&r->manifest.spec, cap) || first_row < 0 || first_row > cap->n_rows - s->n_rows)
        return td_error_set(err, TD_E_INTERNAL, "what was captured does not fit the folder's spec");
    int64_t place = r->place[sample];
    int64_t row = ((const int64_t *)td_shard_file_data(r->f, TD_T_ROW_OFFSETS))[place];
    d->n_samples++;
    for (int32_t i = 0; i < s->n_rows; i++) {
        size_t at = (size_t)(first_row + i);
        td_row_view v;
        td_row_problem why;
        if (!td_row_read(r->reader, place, row + i, &v, &why))
            return td_error_set(err, TD_E_VERIFY, "%s: row %lld: tensor %s %s", r->f->path,
                                (long long)(row + i), why.tensor, why.what);
        compare_row(&v, cap, at, d);
        r->hashes[sample][i] = hash_row(&r->manifest.spec, cap, at);
    }
    return TD_OK;
}

void td_recheck_control(td_recheck *r, int32_t sample, const td_captured *cap, int32_t first_row) {
    const td_recheck_sample *s = &r->samples[sample];
    for (int32_t i = 0; r->hashes[sample] && i < s->n_rows; i++) {
        uint64_t hash = hash_row(&r->manifest.spec, cap, (size_t)(first_row + i));
        r->n_control++;
        r->n_control_differ += hash != r->hashes[sample][i];
    }
}

static double mean_logprob(const difference *d) {
    int64_t n = d->n_ids - d->n_ids_differ;
    return n > 0 ? d->sum_logprob / (double)n : 0;
}

static void print_difference(const td_capture_spec *spec, const difference *d, FILE *out) {
    if (spec->mode != TD_CAPTURE_HIDDEN)
        fprintf(out,
                "    logsumexp %.3g · target %.3g · entropy %.3g · tail %.3g · rank of the target "
                "at %lld positions\n",
                d->logsumexp, d->target, d->entropy, d->tail, (long long)d->n_ranks_differ);
    if (d->n_ids)
        fprintf(out,
                "    log-probabilities %.3g (mean %.2g), beyond what storing rounds · %lld of %lld "
                "ids not among those computed again\n",
                d->logprob, mean_logprob(d), (long long)d->n_ids_differ, (long long)d->n_ids);
    if (d->n_draws)
        fprintf(out, "    %lld of %lld draws went to other tokens\n", (long long)d->n_draws_moved,
                (long long)d->n_draws);
    if (spec->mode == TD_CAPTURE_FULL || spec->mode == TD_CAPTURE_HIDDEN)
        fprintf(out, "    %s %.3g (of those above 1 relative), beyond what storing rounds\n",
                spec->mode == TD_CAPTURE_FULL ? "logits" : "states", d->dense);
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
        print_difference(&r->manifest.spec, same, out);
    }
    if (other->n_rows) {
        fprintf(out,
                "  recorded on another device kind (%s), %lld samples: largest differences "
                "(log-probabilities may differ by %g, by %g on average, one id or draw in ten)\n",
                r->other_kind, (long long)other->n_samples, tolerance, mean_tolerance);
        print_difference(&r->manifest.spec, other, out);
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
    double worst = fmax(fmax(other->logprob, other->target), fmax(other->logsumexp, other->dense));
    if (worst > tolerance || mean_logprob(other) > mean_tolerance ||
        other->n_ids_differ * 10 > other->n_ids || other->n_draws_moved * 10 > other->n_draws)
        return td_error_set(
            err, TD_E_VERIFY,
            "%s: what was recorded on %s differs by more than the tolerance between "
            "device kinds",
            r->dir, r->other_kind);
    fprintf(out, "OK: the record is what this teacher gives\n");
    return TD_OK;
}
