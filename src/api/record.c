/* record.c - tdgen/record.h over the reader of src/record.
 *
 * One shard is open at a time. A sample's number finds its shard through first_sample, the running
 * sum of the index's counts; the shard must then have exactly what its line of the index says. What
 * is handed out lives in the record: the sample until another is asked for, the row and the
 * distribution until the next of their kind.
 */
#include "tdgen/record.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/api.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "record/reader.h"

struct tdgen_record {
    char *dir;
    bool skip_data_hash, partial;
    td_folder_state state;
    td_manifest manifest;
    td_index index;
    int64_t *first_sample; /* [index.n + 1] */
    bool *proven;          /* [index.n] every byte of the shard was hashed */
    /* The open shard; NULL: none. `shard` is its place in the index. */
    td_shard_file *file;
    td_row_reader *rows;
    size_t shard;

    tdgen_record_info info;
    tdgen_sample sample; /* index -1: none */
    td_strbuf id;
    tdgen_row row;
    float *dense; /* [V] or [C] of the modes that have it */
    tdgen_distribution distribution;
    int32_t *ids;         /* [as many as a row's distribution can have] */
    float *probabilities; /* the same */
};

/* --- opening ---------------------------------------------------------------------------------- */

/* A new mode would silently read as the first one here. */
_Static_assert(TD_CAPTURE_MODE_COUNT == 6, "a capture mode has no tdgen_mode: see mode_of");

static tdgen_mode mode_of(td_capture_mode m) {
    static const tdgen_mode modes[TD_CAPTURE_MODE_COUNT] = {
        [TD_CAPTURE_TOPK] = TDGEN_MODE_TOPK,     [TD_CAPTURE_TOPP] = TDGEN_MODE_TOPP,
        [TD_CAPTURE_SAMPLE] = TDGEN_MODE_SAMPLE, [TD_CAPTURE_TOPK_SAMPLE] = TDGEN_MODE_TOPK_SAMPLE,
        [TD_CAPTURE_FULL] = TDGEN_MODE_FULL,     [TD_CAPTURE_HIDDEN] = TDGEN_MODE_HIDDEN,
    };
    return modes[m];
}

static void fill_info(tdgen_record *r) {
    const td_capture_spec *s = &r->manifest.spec;
    const json_t *root = r->manifest.root, *identity = r->manifest.identity;
    r->info = (tdgen_record_info){
        .mode = mode_of(s->mode),
        .n_vocab = s->n_vocab,
        .n_valid_ids = s->n_valid,
        .top_k = s->top_k,
        .n_draws = s->n_draws,
        .n_hidden = s->n_hidden,
        .top_p = s->top_p,
        .proposal_power = s->proposal_power,
        .n_temperatures = s->n_temperatures,
        .temperatures = s->temperatures,
        .n_always = s->n_always,
        .always_ids = s->always_ids,
        .logprob_storage = td_capture_has_sets(s->mode) ? td_spec_logprob_name(s) : NULL,
        .compute = json_string_value(json_object_get(identity, "model.compute")),
        .architecture = json_string_value(json_object_get(identity, "model.architecture")),
        .model_path = json_string_value(json_object_get(root, "model_path")),
        .data_path = json_string_value(json_object_get(root, "data_path")),
        .tdgen_version = json_string_value(json_object_get(root, "tdgen")),
        .fingerprint = r->manifest.fingerprint,
        .numerics_revision = r->manifest.numerics_revision,
        .n_shards = (int64_t)r->index.n,
        .n_dataset_rows = r->state.n_rows,
        .n_dataset_rows_expected = r->state.n_rows_want,
        .n_shards_expected = r->state.n_shards_want,
        .complete = r->state.known ? r->state.complete : -1};
    for (size_t i = 0; i < r->index.n; i++) {
        const td_index_entry *e = &r->index.entries[i];
        r->info.n_samples += e->n_samples;
        r->info.n_tokens += e->n_tokens;
        r->info.n_rows += e->n_rows;
        r->info.n_skipped += e->n_skipped;
    }
}

/* A run makes its index with the first shard. */
static td_status check_no_shards(const char *dir, td_error *err) {
    td_dir *d = NULL;
    const char *name = NULL;
    td_status rc = td_dir_open(dir, TD_E_OUTPUT, &d, err);
    while (rc == TD_OK && (rc = td_dir_next(d, &name, err)) == TD_OK && name)
        if (td_shard_name_parse(name, NULL) >= 0)
            rc = td_error_set(err, TD_E_VERIFY,
                              "%s has shards, but no " TD_INDEX_NAME
                              "; run the same command again to make it anew",
                              dir);
    td_dir_close(d);
    return rc;
}

static td_status load_index(tdgen_record *r, td_error *err) {
    td_index_faults faults;
    td_status rc = td_index_load(r->dir, &r->index, &faults, err);
    if (rc == TD_OK && faults.missing)
        rc = check_no_shards(r->dir, err);
    if (rc == TD_OK && faults.n_damaged)
        rc = td_error_set(err, TD_E_VERIFY,
                          "%s/" TD_INDEX_NAME " has %lld damaged lines; run the same command again "
                          "to repair it",
                          r->dir, (long long)faults.n_damaged);
    if (rc == TD_OK)
        rc = td_folder_state_read(r->dir, &r->manifest.extent, &r->index, TD_E_OUTPUT, &r->state,
                                  err);
    char text[TD_FOLDER_STATE_TEXT_SIZE];
    if (rc == TD_OK && r->state.known && !r->state.complete && !r->partial)
        rc = td_error_set(
            err, TD_E_UNFINISHED,
            "%s is not finished: it holds %s. Run its command again to complete it, or "
            "open it with options.partial",
            r->dir, td_folder_state_text(&r->state, text, sizeof text));
    if (rc != TD_OK)
        return rc;
    r->first_sample = td_calloc(r->index.n + 1, sizeof *r->first_sample);
    r->proven = td_calloc(r->index.n, sizeof *r->proven);
    if (!r->first_sample || !r->proven)
        return td_error_nomem(err, "the index", r->index.n * 9);
    for (size_t i = 0; i < r->index.n; i++)
        r->first_sample[i + 1] = r->first_sample[i] + r->index.entries[i].n_samples;
    return TD_OK;
}

static td_status make_buffers(tdgen_record *r, td_error *err) {
    const td_capture_spec *s = &r->manifest.spec;
    const size_t n_dense = (size_t)td_capture_dense_width(s);
    const size_t n = s->mode == TD_CAPTURE_FULL ? n_dense : (size_t)s->top_k + (size_t)s->n_draws;
    r->dense = td_calloc(n_dense, sizeof *r->dense);
    r->ids = td_calloc(n, sizeof *r->ids);
    r->probabilities = td_calloc(n, sizeof *r->probabilities);
    return r->dense && r->ids && r->probabilities ? TD_OK
                                                  : td_error_nomem(err, "a row", (n + n_dense) * 8);
}

static td_status open_folder(tdgen_record *r, td_error *err) {
    char *path = td_asprintf("%s/" TD_MANIFEST_NAME, r->dir);
    if (!path)
        return td_error_nomem(err, "a path", strlen(r->dir));
    td_status rc = TD_OK;
    if (access(path, R_OK) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "%s: no output folder of tdgen, %s", r->dir,
                            path);
    free(path);
    if (rc == TD_OK)
        rc = td_manifest_load(r->dir, TD_E_VERIFY, &r->manifest, err);
    if (rc == TD_OK)
        rc = load_index(r, err);
    return rc == TD_OK ? make_buffers(r, err) : rc;
}

tdgen_status tdgen_record_open(const char *dir, const tdgen_record_options *options,
                               tdgen_record **out, tdgen_error *err) {
    tdgen_record_options o = {0};
    td_error why = {0};
    td_api_begin();
    if (!dir || !out)
        return td_api_fail(err, TDGEN_E_ARGUMENT, "tdgen_record_open: %s is NULL",
                           dir ? "out" : "dir");
    tdgen_status code = td_api_options(&o, sizeof o, offsetof(tdgen_record_options, partial),
                                       options, "tdgen_record_options", err);
    if (code != TDGEN_OK)
        return code;
    tdgen_record *r = td_calloc(1, sizeof *r);
    if (!r || !(r->dir = td_strdup(dir))) {
        free(r);
        return td_api_fail(err, TDGEN_E_INTERNAL, "out of memory");
    }
    r->skip_data_hash = o.skip_data_hash != 0;
    r->partial = o.partial != 0;
    r->sample.index = -1;
    td_status rc = open_folder(r, &why);
    if (rc != TD_OK) {
        tdgen_record_close(r);
        return td_api_error(err, rc, &why);
    }
    fill_info(r);
    *out = r;
    return TDGEN_OK;
}

static void close_shard(tdgen_record *r) {
    td_row_reader_destroy(r->rows);
    td_shard_file_close(r->file);
    r->rows = NULL;
    r->file = NULL;
    r->sample.index = -1;
}

void tdgen_record_close(tdgen_record *r) {
    if (!r)
        return;
    close_shard(r);
    td_manifest_free(&r->manifest);
    td_index_free(&r->index);
    td_strbuf_free(&r->id);
    free(r->first_sample);
    free(r->proven);
    free(r->dense);
    free(r->ids);
    free(r->probabilities);
    free(r->dir);
    free(r);
}

const tdgen_record_info *tdgen_record_get_info(const tdgen_record *r) {
    return r ? &r->info : NULL;
}

/* --- samples ---------------------------------------------------------------------------------- */

/* The shard is the one that its line in the index describes. Without having hashed the file its
 * hash is not known, and taken from the line. */
static td_status check_line(const tdgen_record *r, size_t shard, const td_shard_file *f,
                            const uint64_t *file_hash, td_error *err) {
    const td_index_entry *line = &r->index.entries[shard];
    td_index_entry found;
    td_index_entry_of(f, file_hash ? *file_hash : line->file_hash, &found);
    if (f->meta.fingerprint != r->manifest.fingerprint)
        return td_error_set(err, TD_E_VERIFY,
                            "%s belongs to another run than the folder's " TD_MANIFEST_NAME,
                            f->path);
    if (!td_index_entry_equal(line, &found))
        return td_error_set(err, TD_E_VERIFY,
                            "%s is not what its line in " TD_INDEX_NAME
                            " says; run the same command again to repair the index",
                            f->path);
    return TD_OK;
}

static td_status open_shard(tdgen_record *r, size_t shard, td_error *err) {
    const td_capture_spec *spec = &r->manifest.spec;
    const bool prove = !r->skip_data_hash && !r->proven[shard];
    if (r->file && r->shard == shard)
        return TD_OK;
    close_shard(r);
    char *path = td_shard_path(r->dir, r->index.entries[shard].number);
    if (!path)
        return td_error_nomem(err, "a path", strlen(r->dir));
    td_shard_file *f = NULL;
    uint64_t hash = 0;
    td_status rc = prove ? td_shard_file_prove(path, TD_SHARD_READ, spec, r->manifest.fingerprint,
                                               TD_E_VERIFY, &f, &hash, err)
                         : td_shard_file_open(path, spec, TD_E_VERIFY, NULL, &f, err);
    free(path);
    if (rc == TD_OK)
        rc = check_line(r, shard, f, prove ? &hash : NULL, err);
    if (rc == TD_OK)
        rc = td_row_reader_create(f, &r->rows, err);
    if (rc != TD_OK) {
        td_shard_file_close(f);
        return rc;
    }
    r->proven[shard] |= prove;
    r->file = f;
    r->shard = shard;
    return TD_OK;
}

/* The shard that has the sample; empty ones have none. */
static size_t shard_of(const tdgen_record *r, int64_t sample) {
    size_t lo = 0, hi = r->index.n;
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (r->first_sample[mid] <= sample)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static td_status read_id(tdgen_record *r, int64_t place, td_error *err) {
    const td_shard_file *f = r->file;
    const int64_t *at = td_shard_file_data(f, TD_T_SAMPLE_ID_OFFSETS);
    r->sample.id = NULL;
    if (!at)
        return TD_OK;
    if (at[place] < 0 || at[place + 1] < at[place] || at[place + 1] > f->layout.counts.n_id_bytes)
        return td_error_set(err, TD_E_VERIFY, "%s: the id of sample %lld lies outside of the shard",
                            f->path, (long long)place);
    td_strbuf_clear(&r->id);
    td_strbuf_append(&r->id, (const char *)td_shard_file_data(f, TD_T_SAMPLE_ID_BYTES) + at[place],
                     (size_t)(at[place + 1] - at[place]));
    if (r->id.oom)
        return td_error_nomem(err, "the id of a sample", 0);
    r->sample.id = r->id.data ? r->id.data : "";
    r->sample.id_size_bytes = r->id.len;
    return TD_OK;
}

static td_status read_sample(tdgen_record *r, int64_t index, td_error *err) {
    td_status rc = open_shard(r, shard_of(r, index), err);
    if (rc != TD_OK)
        return rc;
    const td_shard_file *f = r->file;
    const int64_t place = index - r->first_sample[r->shard];
    r->sample.index = -1;
    const int64_t *tokens = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    if (!td_row_sample_sound(f, place) || tokens[place + 1] - tokens[place] > INT32_MAX)
        return td_error_set(err, TD_E_VERIFY,
                            "%s: tokens or rows of sample %lld lie outside of the shard", f->path,
                            (long long)place);
    const uint8_t device = ((const uint8_t *)td_shard_file_data(f, TD_T_SAMPLE_DEVICE))[place];
    const uint8_t status = ((const uint8_t *)td_shard_file_data(f, TD_T_SAMPLE_STATUS))[place];
    tdgen_sample *s = &r->sample;
    *s = (tdgen_sample){
        .index = -1,
        .shard = f->meta.number,
        .dataset_row = ((const int64_t *)td_shard_file_data(f, TD_T_SAMPLE_INDEX))[place],
        .start = ((const int64_t *)td_shard_file_data(f, TD_T_SAMPLE_START))[place],
        .skipped = status == TD_SAMPLE_SKIPPED,
        .n_tokens = (int32_t)(tokens[place + 1] - tokens[place]),
        .n_rows = (int32_t)(rows[place + 1] - rows[place]),
        .ids = (const int32_t *)td_shard_file_data(f, TD_T_INPUT_IDS) + tokens[place],
        .loss_mask = (const uint8_t *)td_shard_file_data(f, TD_T_LOSS_MASK) + tokens[place],
        .row_positions = (const int32_t *)td_shard_file_data(f, TD_T_ROW_POSITION) + rows[place]};
    if (s->n_rows && device < f->meta.n_kinds)
        s->device_kind = f->meta.device_kinds[device];
    for (int32_t i = 0; i < s->n_tokens; i++)
        if (s->ids[i] < 0 || s->ids[i] >= f->layout.spec.n_vocab)
            return td_error_set(err, TD_E_VERIFY,
                                "%s: token %d of sample %lld has the id %d, the vocabulary has %d",
                                f->path, i, (long long)place, s->ids[i], f->layout.spec.n_vocab);
    rc = read_id(r, place, err);
    if (rc == TD_OK)
        s->index = index;
    return rc;
}

static tdgen_status find_sample(tdgen_record *r, int64_t index, tdgen_error *err) {
    td_error why = {0};
    if (index < 0 || index >= r->info.n_samples)
        return td_api_fail(err, TDGEN_E_ARGUMENT, "sample %lld: %s has %lld, numbered from 0",
                           (long long)index, r->dir, (long long)r->info.n_samples);
    td_status rc = r->sample.index == index ? TD_OK : read_sample(r, index, &why);
    return rc == TD_OK ? TDGEN_OK : td_api_error(err, rc, &why);
}

tdgen_status tdgen_record_get_sample(tdgen_record *r, int64_t index, const tdgen_sample **out,
                                     tdgen_error *err) {
    if (!r || !out)
        return td_api_fail(err, TDGEN_E_ARGUMENT, "tdgen_record_get_sample: %s is NULL",
                           r ? "out" : "the record");
    tdgen_status code = find_sample(r, index, err);
    if (code == TDGEN_OK)
        *out = &r->sample;
    return code;
}

/* --- rows ------------------------------------------------------------------------------------- */

static void fill_row(tdgen_record *r, const td_row_view *v) {
    const bool stats = td_capture_has_stats(v->spec->mode);
    tdgen_row *row = &r->row;
    *row = (tdgen_row){.position = v->position,
                       .target = v->target,
                       .target_logprob = stats ? v->target_logprob : NAN,
                       .logsumexp = stats ? v->logsumexp : NAN,
                       .entropy = stats ? v->entropy : NAN,
                       .tail_mass = stats ? v->tail_mass : NAN,
                       .target_rank = stats ? v->target_rank : -1,
                       .top_ids = v->top_ids,
                       .top_logprobs = v->top_logprobs,
                       .n_drawn = v->n_drawn,
                       .draw_ids = v->draw_ids,
                       .draw_counts = v->draw_counts,
                       .draw_logprobs = v->draw_logprobs,
                       .proposal_logsumexp = v->proposal_logsumexp,
                       .always_logprobs = v->always_logprobs,
                       .logsumexps_t = v->logsumexp_t,
                       .n_dense = v->n_dense,
                       .dense = v->n_dense ? r->dense : NULL};
    /* Places that are left free stand at the end. */
    while (row->n_top < v->n_top && v->top_ids[row->n_top] >= 0)
        row->n_top++;
    for (int32_t i = 0; i < v->n_dense; i++)
        r->dense[i] = td_row_dense_at(v, i);
}

/* Into r->row. */
static tdgen_status read_row(tdgen_record *r, int64_t sample, int32_t k, tdgen_error *err) {
    tdgen_status code = find_sample(r, sample, err);
    if (code != TDGEN_OK)
        return code;
    if (k < 0 || k >= r->sample.n_rows)
        return td_api_fail(err, TDGEN_E_ARGUMENT, "row %d: sample %lld has %d, numbered from 0", k,
                           (long long)sample, r->sample.n_rows);
    const int64_t place = sample - r->first_sample[r->shard];
    const int64_t *rows = td_shard_file_data(r->file, TD_T_ROW_OFFSETS);
    td_row_view v;
    td_row_problem why;
    if (!td_row_read(r->rows, place, rows[place] + k, &v, &why) || !td_row_check(&v, false, &why))
        return td_api_fail(err, TDGEN_E_DAMAGED, "%s: row %d of sample %lld: tensor %s %s",
                           r->file->path, k, (long long)place, why.tensor, why.what);
    fill_row(r, &v);
    return TDGEN_OK;
}

tdgen_status tdgen_record_get_row(tdgen_record *r, int64_t sample, int32_t k, const tdgen_row **out,
                                  tdgen_error *err) {
    if (!r || !out)
        return td_api_fail(err, TDGEN_E_ARGUMENT, "tdgen_record_get_row: %s is NULL",
                           r ? "out" : "the record");
    tdgen_status code = read_row(r, sample, k, err);
    if (code == TDGEN_OK)
        *out = &r->row;
    return code;
}

static void candidate(tdgen_record *r, int32_t id, float logprob) {
    int32_t at = r->distribution.n++;
    r->ids[at] = id;
    r->probabilities[at] = expf(logprob);
}

static bool in_top(const tdgen_row *row, int32_t id) {
    for (int32_t j = 0; j < row->n_top; j++)
        if (row->top_ids[j] == id)
            return true;
    return false;
}

static void fill_distribution(tdgen_record *r) {
    const tdgen_row *row = &r->row;
    double tail = (double)row->tail_mass;
    r->distribution = (tdgen_distribution){.ids = r->ids, .probabilities = r->probabilities};
    for (int32_t j = 0; j < row->n_top; j++)
        candidate(r, row->top_ids[j], row->top_logprobs[j]);
    for (int32_t j = 0; j < row->n_drawn; j++) {
        if (in_top(row, row->draw_ids[j]))
            continue;
        candidate(r, row->draw_ids[j], row->draw_logprobs[j]);
        /* In mode sample the tail leaves them out already. */
        if (r->info.mode == TDGEN_MODE_TOPK_SAMPLE)
            tail -= (double)r->probabilities[r->distribution.n - 1];
    }
    for (int32_t i = 0; i < row->n_dense && i < r->info.n_valid_ids; i++)
        if (isfinite(row->dense[i]))
            candidate(r, i, row->dense[i] - row->logsumexp);
    r->distribution.tail = (float)TD_MAX(tail, 0);
}

tdgen_status tdgen_record_get_distribution(tdgen_record *r, int64_t sample, int32_t k,
                                           const tdgen_distribution **out, tdgen_error *err) {
    if (!r || !out)
        return td_api_fail(err, TDGEN_E_ARGUMENT, "tdgen_record_get_distribution: %s is NULL",
                           r ? "out" : "the record");
    if (r->info.mode == TDGEN_MODE_HIDDEN)
        return td_api_fail(err, TDGEN_E_ARGUMENT,
                           "%s holds hidden states: their distribution needs the teacher's head",
                           r->dir);
    tdgen_status code = read_row(r, sample, k, err);
    if (code != TDGEN_OK)
        return code;
    fill_distribution(r);
    *out = &r->distribution;
    return TDGEN_OK;
}
