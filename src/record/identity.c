/* manifest.json: building, hashing, comparing. See identity.h. */
#include "record/identity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* 15 digits carry every decimal a person writes (0.7, not 0.69999999999999996), and survive a
 * round trip through a double. */
#define CANONICAL (JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(15) | JSON_ENCODE_ANY)
#define READABLE (JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15))

enum { FILE_ENTRY_BYTES = 120, FILE_LIST_MAX_BYTES = 512 << 10 }; /* of TD_MANIFEST_MAX_BYTES */

/* A JSON string of bytes that may be no UTF-8 (a path): such bytes become \xNN. null for NULL. */
static json_t *text_value(const char *s) {
    if (!s)
        return json_null();
    json_t *v = json_string(s);
    if (v)
        return v;
    td_strbuf b = {0};
    for (; *s; s++) {
        if ((unsigned char)*s < 0x80)
            td_strbuf_append(&b, s, 1);
        else
            td_strbuf_printf(&b, "\\x%02X", (unsigned char)*s);
    }
    v = b.oom ? NULL : json_string(b.data ? b.data : "");
    td_strbuf_free(&b);
    return v;
}

static json_t *hash_value(uint64_t h) {
    char s[17];
    td_hash_hex(h, s);
    return json_string(s);
}

/* JSON integers of the parser are signed. */
static json_t *u64_value(uint64_t v) {
    if (v <= INT64_MAX)
        return json_integer((json_int_t)v);
    char s[24];
    snprintf(s, sizeof s, "%llu", (unsigned long long)v);
    return json_string(s);
}

static bool put(json_t *o, const char *key, json_t *v) {
    return v && json_object_set_new(o, key, v) == 0;
}

/* Revision 1 has no key: the folders that were there before the key are of it. */
static bool put_revision(json_t *o, int32_t revision) {
    return revision == 1 || put(o, TD_IDENTITY_NUMERICS, json_integer(revision));
}

static bool build_data_keys(json_t *o, const td_config *cfg, const td_identity *id) {
    bool ids = cfg->data.ids_field || !td_data_format_serves(id->format, TD_DATA_TEXT);
    bool ok = put(o, "data.size_bytes", u64_value(id->dataset_size_bytes)) &&
              put(o, "data.hash", hash_value(id->dataset_hash)) &&
              put(o, "data.format", json_string(td_data_format_name(id->format))) &&
              put(o, "data.append_eos", json_boolean(id->append_eos)) &&
              put(o, "data.max_length", json_integer(cfg->data.max_length)) &&
              put(o, "data.overflow", json_string(td_overflow_name(cfg->data.overflow))) &&
              put(o, "data.id_field", text_value(cfg->data.id_field));
    /* As with one file before there could be several. */
    if (ok && id->n_files > 1)
        ok = put(o, "data.n_files", json_integer((json_int_t)id->n_files));
    /* Keys that this kind of row does not use are left out: changing them changes nothing. */
    if (ok && id->append_eos)
        ok = put(o, "data.eos_id", json_integer(id->eos_id));
    if (ok && td_data_format_serves(id->format, TD_DATA_TEXT_UNIT))
        ok = put(o, "data.text_unit", json_string(td_text_unit_name(cfg->data.text_unit)));
    if (ok && ids)
        ok = put(o, "data.ids_field", text_value(cfg->data.ids_field)) &&
             put(o, "data.mask_field", text_value(cfg->data.mask_field));
    if (ok && td_data_format_serves(id->format, TD_DATA_RAW_IDS))
        ok = put(o, "data.token_dtype", json_string(td_token_dtype_name(cfg->data.token_dtype))) &&
             put(o, "data.document_eos", json_integer(cfg->data.document_eos));
    if (ok && !ids)
        ok = put(o, "data.add_special_tokens", json_boolean(cfg->data.add_special_tokens));
    if (ok && !ids && td_data_format_serves(id->format, TD_DATA_FIELDS)) {
        if (cfg->data.prompt_field)
            ok = put(o, "data.prompt_field", text_value(cfg->data.prompt_field)) &&
                 put(o, "data.completion_field", text_value(cfg->data.completion_field)) &&
                 put(o, "data.separator",
                     text_value(cfg->data.separator ? cfg->data.separator : "")) &&
                 put(o, "data.joint_tokenisation", json_false());
        else
            ok = put(o, "data.text_field", text_value(cfg->data.text_field));
    }
    return ok;
}

/* Only keys that the mode uses: changing another one changes nothing. */
static bool build_capture_keys(json_t *o, const td_config *cfg, const td_capture_spec *s) {
    json_t *spec = td_spec_json(s), *v;
    const char *key;
    bool ok = spec != NULL;
    json_object_foreach(spec, key, v) {
        /* Not a key of run.ini: the vocabulary is model.n_vocab, id_bits follows from it. */
        if (strcmp(key, "n_vocab") == 0 || strcmp(key, "n_valid_vocab") == 0 ||
            strcmp(key, "id_bits") == 0)
            continue;
        char *name = td_asprintf(strcmp(key, "n_hidden") == 0 ? "model.%s" : "capture.%s", key);
        ok = ok && name && json_object_set(o, name, v) == 0;
        free(name);
    }
    json_decref(spec);
    if (ok && td_capture_has_stats(s->mode))
        ok = put(o, "capture.mask_padded_vocab", json_boolean(cfg->capture.mask_padded_vocab));
    if (ok && td_capture_has_draws(s->mode))
        ok = put(o, "run.seed", u64_value(s->seed));
    return ok;
}

td_status td_identity_build(const td_config *cfg, const td_capture_spec *spec,
                            const td_identity *id, json_t **out, td_error *err) {
    static const char *const compute_names[TD_DTYPE_COUNT] = {"f32", "bf16", "f16"};
    json_t *o = json_object();
    bool ok = o && put(o, "schema", json_integer(TD_RECORD_SCHEMA)) &&
              put(o, "model.architecture", text_value(id->architecture)) &&
              put(o, "model.config_hash", hash_value(id->config_hash)) &&
              put(o, "model.n_vocab", json_integer(spec->n_vocab)) &&
              put(o, "model.compute",
                  json_string(id->compute <= TD_F16 ? compute_names[id->compute] : "unknown")) &&
              put_revision(o, id->numerics_revision) &&
              put(o, "tokenizer.hash",
                  id->has_tokenizer ? hash_value(id->tokenizer_hash) : json_null()) &&
              put(o, "tokenizer.n_vocab",
                  id->has_tokenizer ? json_integer(id->tokenizer_n_vocab) : json_null()) &&
              build_data_keys(o, cfg, id) && build_capture_keys(o, cfg, spec) &&
              put(o, "output.shard_samples", json_integer(cfg->output.shard_samples));
    if (!ok) {
        json_decref(o);
        return td_error_nomem(err, "the manifest", 0);
    }
    *out = o;
    return TD_OK;
}

td_status td_identity_set_weights(json_t *identity, uint64_t weights_hash, td_error *err) {
    if (!put(identity, "model.weights_hash", hash_value(weights_hash)))
        return td_error_nomem(err, "the manifest", 0);
    return TD_OK;
}

td_status td_identity_fingerprint(const json_t *identity, uint64_t *out, td_error *err) {
    char *text = json_dumps(identity, CANONICAL);
    if (!text)
        return td_error_nomem(err, "the manifest", 0);
    *out = td_hash64(text, strlen(text));
    free(text);
    return TD_OK;
}

/* What a hash stands for, in words. */
static const char *key_meaning(const char *key) {
    static const char *const words[][2] = {
        {"model.config_hash", "the teacher's config.json"},
        {"model.weights_hash", "the teacher's weights"},
        {"tokenizer.hash", "tokenizer.json"},
        {"data.hash", "the dataset's content"},
        {"data.size_bytes", "the size of the dataset"},
        {"data.n_files", "how many files the dataset has"},
        {"schema", "the layout of the record"},
        {TD_IDENTITY_NUMERICS, "which bits this version computes"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(words); i++)
        if (strcmp(key, words[i][0]) == 0)
            return words[i][1];
    return NULL;
}

static void show_value(const char *key, const json_t *v, td_strbuf *b) {
    char *text = v ? json_dumps(v, CANONICAL) : NULL;
    const char *absent = strcmp(key, TD_IDENTITY_NUMERICS) == 0 || strcmp(key, "data.n_files") == 0
                             ? "1"
                             : "not set";
    td_strbuf_puts(b, !v || json_is_null(v) ? absent : text ? text : "?");
    free(text);
}

static bool same_value(const json_t *a, const json_t *b) {
    if (!a || !b)
        return (!a || json_is_null(a)) && (!b || json_is_null(b));
    char *s = json_dumps(a, CANONICAL), *t = json_dumps(b, CANONICAL);
    bool same = s && t && strcmp(s, t) == 0;
    free(s);
    free(t);
    return same;
}

static void show_difference(const char *key, const json_t *a, const json_t *b, const char *in_a,
                            const char *in_b, int n, td_strbuf *out) {
    const char *meaning = key_meaning(key);
    td_strbuf_puts(out, n ? "; " : "");
    td_strbuf_puts(out, key);
    if (meaning)
        td_strbuf_printf(out, " (%s)", meaning);
    td_strbuf_puts(out, " is ");
    show_value(key, a, out);
    td_strbuf_printf(out, " in %s and ", in_a);
    show_value(key, b, out);
    td_strbuf_printf(out, " in %s", in_b);
}

int td_identity_differences(const json_t *a, const json_t *b, bool skip_weights, const char *in_a,
                            const char *in_b, td_strbuf *out) {
    int n = 0;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)b, key, v) {
        const json_t *f = json_object_get(a, key);
        if (!same_value(f, v))
            show_difference(key, f, v, in_a, in_b, n++, out);
    }
    json_object_foreach((json_t *)a, key, v) {
        if (json_object_get(b, key) || json_is_null(v))
            continue;
        if (skip_weights && strcmp(key, "model.weights_hash") == 0)
            continue;
        show_difference(key, v, NULL, in_a, in_b, n++, out);
    }
    return n;
}

td_status td_identity_compare(const json_t *folder, const json_t *run, bool skip_weights,
                              const char *dir, td_error *err) {
    td_strbuf b = {0};
    int n = td_identity_differences(folder, run, skip_weights, "the folder", "this run", &b);
    td_status rc = TD_OK;
    if (!same_value(json_object_get(folder, TD_IDENTITY_NUMERICS),
                    json_object_get(run, TD_IDENTITY_NUMERICS)))
        rc =
            td_error_set(err, TD_E_OUTPUT,
                         "%s was begun by a tdgen that computes other bits: %s. Finish it with the "
                         "version that began it, or choose another output.dir; reading, verifying "
                         "and exporting it work with this one",
                         dir, b.oom ? "(out of memory)" : b.data);
    else if (n)
        rc =
            td_error_set(err, TD_E_OUTPUT,
                         "%s belongs to a run with other settings: %s. Restore %s to continue that "
                         "run, choose another output.dir, or add --restart, which moves the old "
                         "folder aside",
                         dir, b.oom ? "(out of memory)" : b.data, n == 1 ? "it" : "them");
    td_strbuf_free(&b);
    return rc;
}

/* --- the file --------------------------------------------------------------------------------- */

static json_t *tensor_docs(const td_capture_spec *spec, bool has_ids) {
    json_t *a = json_array();
    for (int i = 0; a && i < TD_T_COUNT; i++) {
        if (!td_layout_has(spec, has_ids, (td_tensor_id)i))
            continue;
        const td_tensor_doc *d = td_layout_doc((td_tensor_id)i);
        json_t *o =
            json_pack("{s:s,s:s,s:s,s:s}", "name", d->name, "dtype", td_layout_dtype_name(d->dtype),
                      "shape", d->shape, "meaning", d->meaning);
        if (!o || json_array_append_new(a, o) != 0) {
            json_decref(a);
            return NULL;
        }
    }
    return a;
}

/* The files of a dataset of several, so that a change can be named: no part of the identity, and left
 * out where the list is long. NULL: out of memory, or none. */
static json_t *file_list(const td_identity *id, bool *ok) {
    size_t n_bytes = 0;
    *ok = true;
    for (size_t i = 0; i < id->n_files; i++)
        n_bytes += strlen(id->files[i].path) + FILE_ENTRY_BYTES;
    if (id->n_files < 2 || n_bytes > FILE_LIST_MAX_BYTES)
        return NULL;
    json_t *a = json_array();
    for (size_t i = 0; a && *ok && i < id->n_files; i++) {
        json_t *o = json_object();
        *ok = o && put(o, "path", text_value(id->files[i].path)) &&
              put(o, "size_bytes", u64_value(id->files[i].size_bytes)) &&
              put(o, "hash", hash_value(id->files[i].hash)) && json_array_append(a, o) == 0;
        json_decref(o);
    }
    *ok = *ok && a;
    return a;
}

/* Bytes of `a` up to and with the last slash that both paths share: of a sorted list's first and last,
 * what all of its paths share. */
static size_t common_folder(const char *a, const char *b) {
    size_t slash = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '/')
            slash = i + 1;
    return slash;
}

static const char *listed_path(const json_t *list, size_t i) {
    const char *s = json_string_value(json_object_get(json_array_get(list, i), "path"));
    return s ? s : "";
}

typedef struct change_note {
    const char *what;
    int64_t n;
    td_strbuf first;
} change_note;

static void note_change(change_note *c, const char *path) {
    if (c->n++ == 0)
        td_strbuf_puts(&c->first, path);
}

/* Paths are compared behind the folder that each list shares: a dataset may have been moved. */
void td_manifest_file_changes(const td_manifest *m, const td_identity *id, td_strbuf *out) {
    const json_t *list = json_object_get(m->root, "data_files");
    size_t n = json_array_size(list), k = id->n_files, i = 0, j = 0;
    if (n < 2 || k < 2)
        return;
    size_t skip_old = common_folder(listed_path(list, 0), listed_path(list, n - 1));
    size_t skip_new = common_folder(id->files[0].path, id->files[k - 1].path);
    change_note notes[] = {{"was added", 0, {0}}, {"is gone", 0, {0}}, {"changed", 0, {0}}};
    while (i < n || j < k) {
        const char *old = i < n ? listed_path(list, i) : NULL;
        const char *now = j < k ? id->files[j].path : NULL;
        int d = !old ? 1 : !now ? -1 : strcmp(old + TD_MIN(skip_old, strlen(old)), now + skip_new);
        if (d > 0) {
            note_change(&notes[0], id->files[j++].path);
        } else if (d < 0) {
            note_change(&notes[1], listed_path(list, i++));
        } else {
            json_t *hash = hash_value(id->files[j].hash),
                   *size = u64_value(id->files[j].size_bytes);
            const json_t *o = json_array_get(list, i);
            if (!json_equal(hash, json_object_get(o, "hash")) ||
                !json_equal(size, json_object_get(o, "size_bytes")))
                note_change(&notes[2], id->files[j].path);
            json_decref(hash);
            json_decref(size);
            i++;
            j++;
        }
    }
    const char *sep = "; of its files ";
    for (size_t c = 0; c < TD_ARRAY_LEN(notes); c++) {
        if (notes[c].n && !notes[c].first.oom) {
            td_strbuf_printf(out, "%s%s %s", sep, notes[c].first.data, notes[c].what);
            if (notes[c].n > 1)
                td_strbuf_printf(out, " (and %lld more)", (long long)notes[c].n - 1);
            sep = ", ";
        }
        td_strbuf_free(&notes[c].first);
    }
}

static td_status manifest_hash(const json_t *root, uint64_t *out, td_error *err) {
    json_t *rest = json_copy((json_t *)root);
    if (!rest)
        return td_error_nomem(err, "the manifest", 0);
    json_object_del(rest, "hash");
    td_status rc = td_identity_fingerprint(rest, out, err);
    json_decref(rest);
    return rc;
}

/* Completes and writes out `root`, which gets its hash. */
static td_status print_manifest(json_t *root, char **text, td_error *err) {
    uint64_t hash = 0;
    td_status rc = manifest_hash(root, &hash, err);
    if (rc != TD_OK)
        return rc;
    char *t = put(root, "hash", hash_value(hash)) ? json_dumps(root, READABLE) : NULL;
    *text = t ? td_asprintf("%s\n", t) : NULL;
    free(t);
    return *text ? TD_OK : td_error_nomem(err, "the manifest", 0);
}

td_status td_manifest_text_extended(const json_t *root, const td_extent *extent, char **text,
                                    td_error *err) {
    json_t *copy = json_copy((json_t *)root);
    bool ok = copy != NULL;
    if (ok && extent->known)
        ok = put(copy, "extent", td_extent_json(extent));
    else if (ok)
        json_object_del(copy, "extent");
    td_status rc = ok ? print_manifest(copy, text, err) : td_error_nomem(err, "the manifest", 0);
    json_decref(copy);
    return rc;
}

td_status td_manifest_text(const td_config *cfg, const td_identity *id, const json_t *identity,
                           const td_capture_spec *spec, char **text, td_error *err) {
    uint64_t fingerprint = 0;
    const td_extent extent = td_extent_of(cfg);
    td_status rc = td_identity_fingerprint(identity, &fingerprint, err);
    if (rc != TD_OK)
        return rc;
    char *model_path = cfg->model.path ? realpath(cfg->model.path, NULL) : NULL;
    char *data_path = cfg->data.path ? realpath(cfg->data.path, NULL) : NULL;
    json_t *root = json_object();
    bool listed;
    json_t *files = file_list(id, &listed);
    bool ok =
        root && listed && (!files || json_object_set(root, "data_files", files) == 0) &&
        put(root, "schema", json_integer(TD_RECORD_SCHEMA)) &&
        put(root, "tdgen", json_string(TDGEN_VERSION)) &&
        put(root, "fingerprint", hash_value(fingerprint)) &&
        json_object_set(root, "identity", (json_t *)identity) == 0 &&
        put(root, "extent", td_extent_json(&extent)) &&
        put(root, "model_path", text_value(model_path ? model_path : cfg->model.path)) &&
        put(root, "data_path", text_value(data_path ? data_path : cfg->data.path)) &&
        put(root, "alignment", json_string(TD_TEXT_ALIGNMENT)) &&
        put(root, "logarithm", json_string(TD_TEXT_LOGARITHM)) &&
        put(root, "tokenisation",
            json_string(id->has_tokenizer ? TD_TEXT_TOKENISATION : "rows came as token ids")) &&
        (!id->data_tokenizer_hash[0] ||
         put(root, "data_tokenizer_hash", json_string(id->data_tokenizer_hash))) &&
        put(root, "shapes", json_string(TD_TEXT_SHAPES)) &&
        put(root, "capture", td_spec_json(spec)) &&
        put(root, "logprob_error", json_string(td_spec_logprob_error(spec))) &&
        put(root, "tensors", tensor_docs(spec, cfg->data.id_field != NULL)) &&
        put(root, td_capture_is_ragged(spec->mode) ? "bytes_per_row_at_most" : "bytes_per_row",
            json_real(td_record_bytes_per_row(spec))) &&
        put(root, "bytes_per_token", json_real(td_record_bytes_per_token()));
    json_decref(files);
    free(model_path);
    free(data_path);
    rc = ok ? print_manifest(root, text, err) : td_error_nomem(err, "the manifest", 0);
    json_decref(root);
    return rc;
}

static bool parse_hex(const char *s, uint64_t *out) {
    if (!s || strlen(s) != 16 || strspn(s, "0123456789abcdef") != 16)
        return false;
    *out = strtoull(s, NULL, 16);
    return true;
}

static td_status read_spec(td_manifest *m, const char *path, td_status code, td_error *err) {
    int64_t revision = 1;
    m->has_ids = td_json_has(m->identity, "data.id_field");
    if (td_json_has(m->identity, TD_IDENTITY_NUMERICS)) {
        td_status bad = td_json_get_int(m->identity, TD_IDENTITY_NUMERICS, 1, INT32_MAX, path, code,
                                        &revision, err);
        if (bad != TD_OK)
            return bad;
    }
    m->numerics_revision = (int32_t)revision;
    td_status rc = td_spec_parse(json_object_get(m->root, "capture"), path, code, &m->spec, err);
    const json_t *seed = json_object_get(m->identity, "run.seed"); /* beyond 63 bits it is text */
    if (rc == TD_OK && seed)
        m->spec.seed = json_is_string(seed) ? strtoull(json_string_value(seed), NULL, 10)
                                            : (uint64_t)json_integer_value(seed);
    return rc;
}

static td_status check_manifest(td_manifest *m, const char *path, const char *data, size_t n,
                                td_status code, td_error *err) {
    uint64_t want = 0, have = 0;
    int64_t schema = 0;
    if (!json_is_object(m->root))
        return td_error_set(err, code, "%s: expected a JSON object", path);
    td_status rc = td_json_get_int(m->root, "schema", 0, INT32_MAX, path, code, &schema, err);
    if (rc != TD_OK)
        return rc;
    if (schema != TD_RECORD_SCHEMA)
        return td_error_set(err, code,
                            "%s: schema %lld, but this tdgen reads and writes schema %d only", path,
                            (long long)schema, TD_RECORD_SCHEMA);
    rc = manifest_hash(m->root, &have, err);
    if (rc != TD_OK)
        return rc;
    char *text = json_dumps(m->root, READABLE);
    bool exact =
        text && strlen(text) + 1 == n && memcmp(text, data, n - 1) == 0 && data[n - 1] == '\n';
    free(text);
    if (!exact || !parse_hex(json_string_value(json_object_get(m->root, "hash")), &want) ||
        want != have)
        return td_error_set(err, code,
                            "%s is damaged or was edited: its hash does not match its content. "
                            "Restore it from a copy, or choose another output.dir",
                            path);
    m->identity = json_object_get(m->root, "identity");
    if (!json_is_object(m->identity))
        return td_error_set(err, code, "%s: \"identity\" must be an object", path);
    uint64_t fp;
    rc = td_identity_fingerprint(m->identity, &fp, err);
    if (rc != TD_OK)
        return rc;
    if (!parse_hex(json_string_value(json_object_get(m->root, "fingerprint")), &m->fingerprint) ||
        fp != m->fingerprint)
        return td_error_set(err, code, "%s: the fingerprint does not match the identity", path);
    rc = td_extent_parse(json_object_get(m->root, "extent"), path, code, &m->extent, err);
    return rc == TD_OK ? read_spec(m, path, code, err) : rc;
}

td_status td_manifest_load(const char *dir, td_status code, td_manifest *out, td_error *err) {
    td_manifest m = {0};
    char *data = NULL, *path = td_asprintf("%s/" TD_MANIFEST_NAME, dir);
    size_t n = 0;
    if (!path)
        return td_error_nomem(err, "a path", strlen(dir));
    td_status rc = td_file_read(path, TD_MANIFEST_MAX_BYTES, code, &data, &n, err);
    if (rc == TD_OK)
        rc = td_json_parse(data, n, path, code, &m.root, err);
    if (rc == TD_OK)
        rc = check_manifest(&m, path, data, n, code, err);
    if (rc == TD_OK)
        *out = m;
    else
        td_manifest_free(&m);
    free(data);
    free(path);
    return rc;
}

void td_manifest_free(td_manifest *m) {
    json_decref(m->root);
    *m = (td_manifest){0};
}
