/* tdgen verify: every byte of an output folder against what it says of itself.
 *
 * Layers, each finding what the one before cannot:
 *   manifest   its hash covers its content, and the file is exactly its own serialisation
 *   index      each line must be, byte for byte, the line that its shard gives
 *   header     header_hash
 *   data       data_hash, tensor_hashes: name the tensor
 *   meaning    offsets, ids, masks, order, sums: what a bug would break with all hashes intact
 * After a damaged hash the meaning is checked as well, so every access below is bounds-checked
 * against counts that were compared with the file's real size, never against values in the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "report/report.h"
#include "record/reader.h"
#include "capture/capture.h"
#include "base/json.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "base/text.h"

/* Problems printed per shard; the rest is counted. */
#define MAX_SHOWN 4

typedef struct verifier {
    const char *dir;
    FILE *out;
    bool verbose;
    td_manifest manifest;
    td_index index;
    int32_t *seen; /* [V], stamp of the row that last had the id: finds doubled candidates */
    int32_t stamp;
    int64_t n_problems;
    int64_t n_shown;     /* of the current shard */
    const char *current; /* file name that problems belong to */
    int64_t n_good, n_samples, n_tokens, n_rows, n_skipped;
    uint64_t size_bytes;
} verifier;

static void __attribute__((format(printf, 2, 3))) found(verifier *v, const char *fmt, ...) {
    va_list ap;
    v->n_problems++;
    if (v->n_shown++ >= MAX_SHOWN)
        return;
    fprintf(v->out, "BAD  %s: ", v->current);
    char text[1200];
    td_strbuf clean = {0}; /* names and values come from the file */
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    td_text_printable(text, strlen(text), &clean);
    fprintf(v->out, "%s\n", clean.oom || !clean.data ? "(out of memory)" : clean.data);
    td_strbuf_free(&clean);
}

/* A message of another function already names the path; only its tail is wanted. */
static const char *without_dir(const verifier *v, const char *text) {
    size_t n = strlen(v->dir);
    if (strncmp(text, v->dir, n) == 0 && text[n] == '/') {
        text += n + 1;
        size_t m = strlen(v->current);
        if (strncmp(text, v->current, m) == 0)
            text += m + (text[m] == ':' ? 1 : 0);
        while (*text == ' ')
            text++;
    }
    return text;
}

/* --- meaning ---------------------------------------------------------------------------------- */

/* 0 = o[0] <= ... <= o[n] = end. */
static bool check_offsets(verifier *v, const char *name, const int64_t *o, int64_t n, int64_t end) {
    if (o[0] != 0) {
        found(v, "%s begins at %lld, expected 0", name, (long long)o[0]);
        return false;
    }
    for (int64_t i = 0; i < n; i++)
        if (o[i + 1] < o[i] || o[i + 1] > end) {
            found(v, "%s is not ascending up to %lld at %lld", name, (long long)end, (long long)i);
            return false;
        }
    if (o[n] != end) {
        found(v, "%s ends at %lld, expected %lld", name, (long long)o[n], (long long)end);
        return false;
    }
    return true;
}

static bool check_samples(verifier *v, const td_shard_file *f) {
    const td_layout_counts *c = &f->layout.counts;
    const int64_t *index = td_shard_file_data(f, TD_T_SAMPLE_INDEX);
    const int64_t *start = td_shard_file_data(f, TD_T_SAMPLE_START);
    const int64_t *tokens = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    const int64_t *ids = td_shard_file_data(f, TD_T_SAMPLE_ID_OFFSETS);
    const uint8_t *device = td_shard_file_data(f, TD_T_SAMPLE_DEVICE);
    const uint8_t *status = td_shard_file_data(f, TD_T_SAMPLE_STATUS);
    int64_t n_skipped = 0;
    bool ok = check_offsets(v, "sample_offsets", tokens, c->n_samples, c->n_tokens);
    ok &= check_offsets(v, "row_offsets", rows, c->n_samples, c->n_rows);
    if (ids)
        ok &= check_offsets(v, "sample_id_offsets", ids, c->n_samples, c->n_id_bytes);
    for (int64_t i = 0; ok && i < c->n_samples; i++) {
        n_skipped += status[i] == TD_SAMPLE_SKIPPED;
        if (index[i] < f->meta.row_begin || index[i] >= f->meta.row_end ||
            (i && index[i] < index[i - 1]))
            found(v, "sample_index of sample %lld is %lld, rows are %lld to %lld and ascend",
                  (long long)i, (long long)index[i], (long long)f->meta.row_begin,
                  (long long)f->meta.row_end);
        else if (start[i] < 0 || (i && index[i] == index[i - 1] && start[i] <= start[i - 1]))
            found(v, "sample_start of sample %lld is %lld", (long long)i, (long long)start[i]);
        else if (device[i] && device[i] >= f->meta.n_kinds)
            found(v, "sample_device of sample %lld is %d of %d kinds", (long long)i, device[i],
                  f->meta.n_kinds);
        else if (status[i] > TD_SAMPLE_SKIPPED)
            found(v, "sample_status of sample %lld is %d", (long long)i, status[i]);
        else if (status[i] == TD_SAMPLE_SKIPPED && rows[i] != rows[i + 1])
            found(v, "sample %lld is marked as skipped, but row_offsets give it rows",
                  (long long)i);
    }
    if (ok && n_skipped != f->meta.n_skipped)
        found(v, "sample_status marks %lld skipped samples, the metadata says %lld",
              (long long)n_skipped, (long long)f->meta.n_skipped);
    return ok;
}

/* input_ids, loss_mask and row_position of one sample agree. The offsets were checked. */
static bool check_positions(verifier *v, const td_shard_file *f, int64_t sample) {
    const int64_t *tokens = td_shard_file_data(f, TD_T_SAMPLE_OFFSETS);
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    const int32_t *ids = td_shard_file_data(f, TD_T_INPUT_IDS);
    const uint8_t *mask = td_shard_file_data(f, TD_T_LOSS_MASK);
    const int32_t *position = td_shard_file_data(f, TD_T_ROW_POSITION);
    int64_t r = rows[sample];
    for (int64_t t = tokens[sample]; t < tokens[sample + 1]; t++) {
        if (ids[t] < 0 || ids[t] >= v->manifest.spec.n_vocab) {
            found(v, "input_ids[%lld] is %d, the vocabulary has %d", (long long)t, ids[t],
                  v->manifest.spec.n_vocab);
            return false;
        }
        if (mask[t] > 1 || (t == tokens[sample] && mask[t])) {
            found(v, "loss_mask[%lld] is %d", (long long)t, mask[t]);
            return false;
        }
        if (!mask[t])
            continue;
        if (r == rows[sample + 1] || position[r] != t - 1 - tokens[sample]) {
            found(v, "row_position and loss_mask of sample %lld disagree at token %lld",
                  (long long)sample, (long long)(t - tokens[sample]));
            return false;
        }
        r++;
    }
    if (r != rows[sample + 1]) {
        found(v, "row_offsets give sample %lld more rows than its loss_mask has targets",
              (long long)sample);
        return false;
    }
    return true;
}

/* The ragged set: offsets over the rows. */
static bool check_entries(verifier *v, const td_shard_file *f) {
    const int64_t *topp = td_shard_file_data(f, TD_T_TOPP_OFFSETS);
    const int64_t *draw = td_shard_file_data(f, TD_T_DRAW_OFFSETS);
    const td_layout_counts *c = &f->layout.counts;
    return (!topp || check_offsets(v, "topp_offsets", topp, c->n_rows, c->n_entries)) &&
           (!draw || check_offsets(v, "draw_offsets", draw, c->n_rows, c->n_entries));
}

static bool ids_differ(verifier *v, const int32_t *ids, int32_t k) {
    if (v->stamp == INT32_MAX) {
        memset(v->seen, 0, (size_t)v->manifest.spec.n_vocab * sizeof *v->seen);
        v->stamp = 0;
    }
    v->stamp++;
    for (int32_t j = 0; j < k; j++) {
        if (ids[j] < 0 || ids[j] >= v->manifest.spec.n_vocab)
            continue;
        if (v->seen[ids[j]] == v->stamp)
            return false;
        v->seen[ids[j]] = v->stamp;
    }
    return true;
}

static void check_row(verifier *v, const td_shard_file *f, td_row_reader *rr, int64_t sample,
                      int64_t r) {
    td_row_view row;
    td_row_problem why;
    if (!td_row_read(rr, sample, r, &row, &why) || !td_row_check(&row, true, &why))
        found(v, "tensor %s, row %lld (sample %lld, position %d): %s", why.tensor, (long long)r,
              (long long)sample, row.position, why.what);
    else if (!ids_differ(v, row.top_ids, row.n_top))
        found(v, "tensor %s, row %lld (sample %lld, position %d): an id occurs twice",
              td_capture_has_topp(f->layout.spec.mode) ? "topp_ids" : "topk_ids", (long long)r,
              (long long)sample, row.position);
}

/* Bits after the last packed id are zero: nothing hides there. */
static void check_padding(verifier *v, const td_shard_file *f) {
    const td_capture_spec *s = &f->layout.spec;
    static const td_tensor_id streams[] = {TD_T_TOPK_IDS_PACKED, TD_T_TOPP_IDS_PACKED,
                                           TD_T_DRAW_IDS_PACKED};
    for (size_t i = 0; i < TD_ARRAY_LEN(streams); i++) {
        const td_layout_tensor *t = &f->layout.tensor[streams[i]];
        const uint8_t *p = td_shard_file_data(f, streams[i]);
        bool by_row = streams[i] == TD_T_TOPK_IDS_PACKED;
        int64_t n_ids = by_row ? s->top_k : f->layout.counts.n_entries;
        int64_t n_streams = by_row ? t->shape[0] : 1, size = by_row ? t->shape[1] : t->shape[0];
        int32_t used = (int32_t)(n_ids * td_capture_id_bits(s) % 8);
        for (int64_t k = 0; p && used && size && k < n_streams; k++)
            if (p[k * size + size - 1] >> used) {
                found(v, "tensor %s: the bits after the last id of %s %lld are not zero", t->name,
                      by_row ? "row" : "stream", (long long)k);
                break;
            }
    }
}

static td_status check_meaning(verifier *v, const td_shard_file *f, td_error *err) {
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    td_row_reader *rr = NULL;
    if (f->meta.row_end <= f->meta.row_begin)
        found(v, "its metadata says dataset rows %lld to %lld", (long long)f->meta.row_begin,
              (long long)f->meta.row_end);
    if (!check_samples(v, f) || !check_entries(v, f))
        return TD_OK; /* without offsets nothing below has a meaning */
    check_padding(v, f);
    td_status rc = td_row_reader_create(f, &rr, err);
    for (int64_t i = 0; rc == TD_OK && i < f->layout.counts.n_samples; i++)
        if (check_positions(v, f, i))
            for (int64_t r = rows[i]; r < rows[i + 1]; r++)
                check_row(v, f, rr, i, r);
    td_row_reader_destroy(rr);
    return rc;
}

/* --- one shard -------------------------------------------------------------------------------- */

static void check_against_index(verifier *v, const td_shard_file *f, uint64_t file_hash) {
    td_index_entry have;
    const td_index_entry *line = td_index_find(&v->index, f->meta.number);
    td_index_entry_of(f, file_hash, &have);
    if (!line)
        found(v, "has no line in " TD_INDEX_NAME);
    else if (line->packed != have.packed)
        found(v, "is not the file that " TD_INDEX_NAME " lists: that one is %s",
              line->packed ? "compressed" : "not compressed");
    else if (line->file_hash != have.file_hash)
        found(v,
              "is not the file that " TD_INDEX_NAME " lists: the hash of the whole file differs");
    else if (!td_index_entry_equal(line, &have))
        found(v, "its line in " TD_INDEX_NAME " does not match it");
}

static td_status verify_open_shard(verifier *v, const td_shard_file *f, int64_t number,
                                   bool header_ok, td_error *err) {
    td_shard_hashes hashes = {0};
    uint64_t file_hash;
    td_strbuf which = {0};
    td_status rc = td_shard_file_hash(f, &hashes, &file_hash, err);
    if (rc != TD_OK) /* memory, or a read error of the disk */
        return rc;
    if (!header_ok)
        found(v, "the header is damaged: its hash does not match");
    if (td_shard_hashes_differ(&f->layout, &f->hashes, &hashes, &which))
        found(v, "damaged: the hash of %s does not match",
              which.len ? which.data : "the data part");
    if (f->meta.number != number)
        found(v, "says that it is shard %lld: it was renamed", (long long)f->meta.number);
    if (f->meta.fingerprint != v->manifest.fingerprint)
        found(v, "belongs to another run than " TD_MANIFEST_NAME " (the fingerprints differ)");
    check_against_index(v, f, file_hash);
    rc = check_meaning(v, f, err);
    td_strbuf_free(&which);
    return rc;
}

static td_status verify_shard(verifier *v, int64_t number, bool packed, td_error *err) {
    char name[TD_SHARD_NAME_SIZE];
    td_shard_file *f = NULL;
    td_error why = {0};
    bool header_ok = true;
    int64_t before = v->n_problems;
    td_shard_name(number, packed, name);
    v->current = name;
    v->n_shown = 0;
    char *path = td_asprintf("%s/%s", v->dir, name);
    if (!path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = td_shard_file_open(path, &v->manifest.spec, TD_E_VERIFY, &header_ok, &f, &why);
    free(path);
    if (rc != TD_OK && rc != TD_E_VERIFY) { /* it could not be looked at: no word on its content */
        if (err)
            *err = why;
        goto done;
    }
    if (rc != TD_OK) {
        found(v, "%s", without_dir(v, why.text));
        rc = TD_OK;
        goto done;
    }
    rc = verify_open_shard(v, f, number, header_ok, err);
    if (v->n_shown > MAX_SHOWN)
        fprintf(v->out, "BAD  %s: and %lld more\n", name, (long long)(v->n_shown - MAX_SHOWN));
    if (rc == TD_OK && v->n_problems == before) {
        v->n_good++;
        v->n_samples += f->layout.counts.n_samples;
        v->n_tokens += f->layout.counts.n_tokens;
        v->n_rows += f->layout.counts.n_rows;
        v->n_skipped += f->meta.n_skipped + f->meta.n_bad_rows;
        v->size_bytes += f->disk_bytes;
        if (v->verbose)
            fprintf(v->out, "ok   %s  rows %lld to %lld, %lld samples, %lld positions\n", name,
                    (long long)f->meta.row_begin, (long long)f->meta.row_end,
                    (long long)f->layout.counts.n_samples, (long long)f->layout.counts.n_rows);
    }
done:
    td_shard_file_close(f);
    v->current = NULL;
    return rc;
}

/* --- the folder ------------------------------------------------------------------------------- */

typedef struct shard_name {
    int64_t number;
    bool packed;
} shard_name;

static int by_number(const void *a, const void *b) {
    const shard_name *x = a, *y = b;
    return x->number != y->number ? (x->number > y->number) - (x->number < y->number)
                                  : x->packed - y->packed;
}

static td_status list_shards(const char *dir, shard_name **out, size_t *n_out, td_error *err) {
    shard_name *list = NULL;
    size_t n = 0, cap = 0;
    td_dir *d = NULL;
    const char *name = NULL;
    td_status rc = td_dir_open(dir, TD_E_OUTPUT, &d, err);
    while (rc == TD_OK && (rc = td_dir_next(d, &name, err)) == TD_OK && name) {
        shard_name s = {0};
        s.number = td_shard_name_parse(name, &s.packed);
        if (s.number < 0)
            continue;
        if (!td_grow((void **)&list, &cap, n + 1, sizeof *list))
            rc = td_error_nomem(err, "a list of shards", n * sizeof *list);
        else
            list[n++] = s;
    }
    td_dir_close(d);
    if (rc != TD_OK) {
        free(list);
        return rc;
    }
    if (n)
        qsort(list, n, sizeof *list, by_number);
    *out = list;
    *n_out = n;
    return TD_OK;
}

static bool listed(const shard_name *shards, size_t n, const td_index_entry *e) {
    shard_name key = {e->number, e->packed};
    return n && bsearch(&key, shards, n, sizeof key, by_number) != NULL;
}

static td_status check_index(verifier *v, const shard_name *shards, size_t n, td_error *err) {
    td_index_faults faults;
    v->current = TD_INDEX_NAME;
    v->n_shown = 0;
    td_status rc = td_index_load(v->dir, &v->index, &faults, err);
    if (rc != TD_OK)
        return rc;
    if (faults.missing && n)
        found(v, "is missing, but there are shards; the next run writes it again");
    if (faults.n_damaged)
        found(v, "%lld line%s damaged; the next run repairs it", (long long)faults.n_damaged,
              faults.n_damaged == 1 ? " is" : "s are");
    if (faults.n_doubled)
        found(v, "lists %lld shard%s more than once; the next run repairs it",
              (long long)faults.n_doubled, faults.n_doubled == 1 ? "" : "s");
    for (size_t i = 0; i < v->index.n; i++)
        if (!listed(shards, n, &v->index.entries[i]))
            found(v, "lists shard %lld, which is not there", (long long)v->index.entries[i].number);
    return TD_OK;
}

/* Gaps in a folder that does not say how much it is to hold: another worker's shards, or a run that
 * goes on. */
static void report_gaps(verifier *v, const shard_name *shards, size_t n) {
    int64_t next = 0, n_missing = 0;
    for (size_t i = 0; i < n; i++) {
        n_missing += TD_MAX(shards[i].number - next, INT64_C(0));
        next = shards[i].number + 1;
    }
    if (n_missing)
        fprintf(
            v->out,
            "note: %lld shard%s below the last one %s not in this folder (still to be computed, "
            "or another worker's)\n",
            (long long)n_missing, n_missing == 1 ? "" : "s", n_missing == 1 ? "is" : "are");
}

static void print_summary(const verifier *v, const td_folder_state *state, size_t n_shards) {
    char size[32], text[TD_FOLDER_STATE_TEXT_SIZE];
    td_human_bytes(v->size_bytes, size, sizeof size);
    if (state->known && !state->complete)
        fprintf(v->out, "UNFINISHED: %s\n", td_folder_state_text(state, text, sizeof text));
    if (v->n_problems)
        fprintf(v->out, "FAILED: %lld problem%s; %lld of %zu shards are good\n",
                (long long)v->n_problems, v->n_problems == 1 ? "" : "s", (long long)v->n_good,
                n_shards);
    else
        fprintf(v->out,
                "OK%s: manifest, index and %zu shard%s: %lld samples (%lld skipped), %lld tokens, "
                "%lld recorded positions, %s, every byte checked\n",
                state->known && !state->complete ? " so far" : "", n_shards,
                n_shards == 1 ? "" : "s", (long long)v->n_samples, (long long)v->n_skipped,
                (long long)v->n_tokens, (long long)v->n_rows, size);
}

td_status td_verify(const char *dir, const td_verify_options *opt, FILE *out, td_error *err) {
    verifier v = {.dir = dir, .out = out, .verbose = opt->verbose};
    td_folder_state state = {0};
    shard_name *shards = NULL;
    size_t n = 0;
    td_status rc = td_merge_check_unfinished(dir, err);
    if (rc == TD_OK)
        rc = list_shards(dir, &shards, &n, err);
    if (rc != TD_OK)
        return rc;
    char *path = td_asprintf("%s/" TD_MANIFEST_NAME, dir);
    if (!path) {
        rc = td_error_nomem(err, "a path", 0);
        goto done;
    }
    if (!td_path_exists(path)) {
        rc = n ? td_error_set(err, TD_E_VERIFY, "%s is missing, but there are shards", path)
               : td_error_set(err, TD_E_OUTPUT,
                              "%s is no output folder of tdgen: it has no " TD_MANIFEST_NAME, dir);
        goto done;
    }
    rc = td_manifest_load(dir, TD_E_VERIFY, &v.manifest, err);
    if (rc != TD_OK)
        goto done;
    v.seen = td_calloc((size_t)v.manifest.spec.n_vocab, sizeof *v.seen);
    if (!v.seen) {
        rc = td_error_nomem(err, "a table of the vocabulary",
                            (size_t)v.manifest.spec.n_vocab * sizeof *v.seen);
        goto done;
    }
    rc = check_index(&v, shards, n, err);
    for (size_t i = 0; i < n && rc == TD_OK; i++)
        rc = verify_shard(&v, shards[i].number, shards[i].packed, err);
    if (rc != TD_OK)
        goto done;
    rc = td_folder_state_read(dir, &v.manifest.extent, &v.index, TD_E_OUTPUT, &state, err);
    if (rc != TD_OK)
        goto done;
    if (!state.known)
        report_gaps(&v, shards, n);
    print_summary(&v, &state, n);
    if (v.n_problems)
        rc = td_error_set(err, TD_E_VERIFY, "%s failed verification: %lld problem%s found", dir,
                          (long long)v.n_problems, v.n_problems == 1 ? "" : "s");
    else if (state.known && !state.complete && !opt->partial)
        rc = td_error_set(err, TD_E_UNFINISHED,
                          "%s is sound, but not finished: run its command again, or add --partial",
                          dir);
done:
    free(path);
    free(v.seen);
    td_index_free(&v.index);
    td_manifest_free(&v.manifest);
    free(shards);
    return rc;
}
