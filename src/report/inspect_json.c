/* tdgen inspect --json: one document for programs.
 *
 *   {"schema": "tdgen-inspect-1",
 *    "dir", "tdgen", "fingerprint", "model_path", "data_path",   of the manifest
 *    "identity": {...}, "capture": {...},                         of the manifest
 *    "shards", "samples", "tokens", "rows", "skipped_samples", "bad_rows", "size_bytes",
 *    "index_needs_repair": bool,
 *    "sample": null when nothing is recorded, else
 *     {"number", "shard", "place", "dataset_row", "start", "id" (or null), "device_kind", "status",
 *      "tokens": [{"id", "text"}],
 *      "rows": [{"position": t, "target": {"id", "text", "logprob", "rank"},
 *                "logsumexp", "logsumexp_t": [], "entropy", "tail_mass", "covered",
 *                "candidates": [{"id", "text", "logprob", "draws" where there are any}],
 *                "always": [{"id", "text", "logprob"}]}]   in mode hidden only position and "norm"
 *      "rows_left_out": behind --positions}}
 *
 * Logarithms are natural; a number that JSON does not have (-inf) is null. "text" is the token as
 * it stands inside a line, with escapes for what a line cannot hold, or "#ID" without a tokenizer.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "report/inspect.h"
#include "base/memory.h"
#include "base/strbuf.h"

static json_t *number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *token(const td_inspector *in, int32_t id) {
    td_strbuf text = {0};
    td_inspect_token(in, id, &text);
    json_t *o = json_pack("{s:i, s:o}", "id", id, "text",
                          text.oom ? json_null() : json_stringn(text.data, text.len));
    td_strbuf_free(&text);
    return o;
}

static json_t *candidate(const td_inspector *in, int32_t id, float logprob) {
    json_t *o = token(in, id);
    if (o)
        json_object_set_new(o, "logprob", number((double)logprob));
    return o;
}

static json_t *candidates(const td_inspector *in, const td_row_view *v, int32_t max) {
    int32_t ids[TD_MAX_TOP_K];
    float lps[TD_MAX_TOP_K];
    int32_t n = td_row_top(v, TD_MIN(max, TD_MAX_TOP_K), ids, lps);
    json_t *a = json_array();
    for (int32_t i = 0; a && i < n; i++) {
        json_t *o = candidate(in, ids[i], lps[i]);
        for (int32_t j = 0; o && j < v->n_drawn; j++)
            if (v->draw_ids[j] == ids[i])
                json_object_set_new(o, "draws", json_integer(v->draw_counts[j]));
        json_array_append_new(a, o);
    }
    return a;
}

static json_t *row(const td_inspector *in, const td_row_view *v, int32_t n_candidates) {
    json_t *o = json_pack("{s:i}", "position", v->position);
    if (!o)
        return NULL;
    if (v->spec->mode == TD_CAPTURE_HIDDEN) {
        json_object_set_new(o, "norm", number(td_row_dense_norm(v)));
        return o;
    }
    json_t *target = candidate(in, v->target, v->target_logprob);
    json_object_set_new(target, "rank", json_integer(v->target_rank));
    json_object_set_new(o, "target", target);
    json_object_set_new(o, "logsumexp", number((double)v->logsumexp));
    json_t *at_t = json_array();
    for (int32_t i = 0; v->logsumexp_t && i < v->spec->n_temperatures; i++)
        json_array_append_new(at_t, number((double)v->logsumexp_t[i]));
    json_object_set_new(o, "logsumexp_t", at_t);
    json_object_set_new(o, "entropy", number((double)v->entropy));
    json_object_set_new(o, "tail_mass", number((double)v->tail_mass));
    json_object_set_new(o, "covered", number(1 - (double)v->tail_mass));
    json_object_set_new(o, "candidates", candidates(in, v, n_candidates));
    json_t *always = json_array();
    for (int32_t i = 0; v->always_logprobs && i < v->spec->n_always; i++)
        json_array_append_new(always, candidate(in, v->spec->always_ids[i], v->always_logprobs[i]));
    json_object_set_new(o, "always", always);
    return o;
}

static td_status rows_of(const td_inspector *in, const td_shard_file *f, int64_t place,
                         const td_inspect_options *opt, json_t *sample, td_error *err) {
    const int64_t *r = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    int64_t n = r[place + 1] - r[place];
    int64_t shown = opt->n_positions > 0 ? TD_MIN(n, (int64_t)opt->n_positions) : n;
    td_row_reader *rr = NULL;
    json_t *rows = json_array();
    td_status rc = td_row_reader_create(f, &rr, err);
    for (int64_t k = 0; rc == TD_OK && k < shown; k++) {
        td_row_view v;
        td_row_problem why;
        if (!td_row_read(rr, place, r[place] + k, &v, &why))
            rc = td_error_set(err, TD_E_VERIFY, "%s: row %lld: tensor %s %s", f->path,
                              (long long)(r[place] + k), why.tensor, why.what);
        else if (json_array_append_new(rows, row(in, &v, opt->n_candidates)) != 0)
            rc = td_error_nomem(err, "the rows", 0);
    }
    td_row_reader_destroy(rr);
    json_object_set_new(sample, "rows", rows);
    json_object_set_new(sample, "rows_left_out", json_integer(n - shown));
    return rc;
}

static td_status sample_of(const td_inspector *in, const td_shard_file *f, int64_t place,
                           int64_t sample_number, const td_inspect_options *opt, json_t *doc,
                           td_error *err) {
    const int64_t *t = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *id_at = td_shard_file_data(f, TD_T_SAMPLE_ID_OFFSETS);
    const int32_t *ids = (const int32_t *)td_shard_file_data(f, TD_T_INPUT_IDS) + t[place];
    uint8_t device = ((const uint8_t *)td_shard_file_data(f, TD_T_SAMPLE_DEVICE))[place];
    uint8_t status = ((const uint8_t *)td_shard_file_data(f, TD_T_SAMPLE_STATUS))[place];
    json_t *id = NULL, *tokens = json_array();
    if (id_at && id_at[place] >= 0 && id_at[place + 1] >= id_at[place] &&
        id_at[place + 1] <= f->layout.counts.n_id_bytes)
        id = json_stringn((const char *)td_shard_file_data(f, TD_T_SAMPLE_ID_BYTES) + id_at[place],
                          (size_t)(id_at[place + 1] - id_at[place]));
    for (int64_t i = 0; tokens && i < t[place + 1] - t[place]; i++)
        json_array_append_new(tokens, token(in, ids[i]));
    json_t *o = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:s, s:o}", "number", (json_int_t)sample_number,
        "shard", (json_int_t)f->meta.number, "place", (json_int_t)place, "dataset_row",
        (json_int_t)((const int64_t *)td_shard_file_data(f, TD_T_SAMPLE_INDEX))[place], "start",
        (json_int_t)((const int64_t *)td_shard_file_data(f, TD_T_SAMPLE_START))[place], "id",
        id ? id : json_null(), "device_kind",
        device < f->meta.n_kinds ? json_string(f->meta.device_kinds[device]) : json_null(),
        "status", status == TD_SAMPLE_OK ? "recorded" : "skipped", "tokens", tokens);
    if (!o)
        return td_error_nomem(err, "the sample", 0);
    json_object_set_new(doc, "sample", o);
    return rows_of(in, f, place, opt, o, err);
}

static json_t *counts(const td_inspector *in) {
    td_index_entry sum = {0};
    for (size_t i = 0; i < in->index.n; i++) {
        const td_index_entry *e = &in->index.entries[i];
        sum.n_samples += e->n_samples;
        sum.n_tokens += e->n_tokens;
        sum.n_rows += e->n_rows;
        sum.n_skipped += e->n_skipped;
        sum.n_bad_rows += e->n_bad_rows;
        sum.size_bytes += e->size_bytes;
    }
    bool repair = in->faults.missing || in->faults.n_damaged || in->faults.n_doubled;
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "schema",
                     "tdgen-inspect-1", "dir", in->dir, "shards", (json_int_t)in->index.n,
                     "samples", (json_int_t)sum.n_samples, "tokens", (json_int_t)sum.n_tokens,
                     "rows", (json_int_t)sum.n_rows, "skipped_samples", (json_int_t)sum.n_skipped,
                     "bad_rows", (json_int_t)sum.n_bad_rows, "size_bytes",
                     (json_int_t)sum.size_bytes, "index_needs_repair", repair);
}

td_status td_inspect_json(const char *dir, const td_inspect_options *opt, FILE *out,
                          td_error *err) {
    static const char *const copied[] = {"tdgen",     "fingerprint", "model_path",
                                         "data_path", "identity",    "capture"};
    td_inspector in;
    td_shard_file *f = NULL;
    int64_t place = 0, sample_number = 0;
    char *text = NULL;
    td_inspect_options o = *opt;
    if (o.n_candidates <= 0)
        o.n_candidates = 5;
    td_status rc = td_inspector_open(&in, dir, o.model_dir, err);
    if (rc != TD_OK)
        return rc;
    json_t *doc = counts(&in);
    if (!doc)
        rc = td_error_set(err, TD_E_OUTPUT, "the name of the folder is not UTF-8");
    if (rc == TD_OK)
        rc = td_inspect_find(&in, o.sample, &f, &place, &sample_number, err);
    if (rc != TD_OK)
        goto done;
    for (size_t i = 0; i < TD_ARRAY_LEN(copied); i++)
        if (json_object_get(in.manifest.root, copied[i]))
            json_object_set(doc, copied[i], json_object_get(in.manifest.root, copied[i]));
    const td_folder_state *s = &in.state;
    json_object_set_new(doc, "complete", s->known ? json_boolean(s->complete) : json_null());
    json_object_set_new(doc, "dataset_rows", json_integer((json_int_t)s->n_rows));
    json_object_set_new(doc, "dataset_rows_expected",
                        s->n_rows_want < 0 ? json_null()
                                           : json_integer((json_int_t)s->n_rows_want));
    json_object_set_new(doc, "shards_expected",
                        s->n_shards_want < 0 ? json_null()
                                             : json_integer((json_int_t)s->n_shards_want));
    json_object_set_new(doc, "sample", json_null());
    if (f)
        rc = sample_of(&in, f, place, sample_number, &o, doc, err);
    if (rc != TD_OK)
        goto done;
    text = json_dumps(doc, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    if (text)
        fprintf(out, "%s\n", text);
    else
        rc = td_error_nomem(err, "the document", 0);
done:
    free(text);
    json_decref(doc);
    td_shard_file_close(f);
    td_inspector_close(&in);
    return rc;
}
