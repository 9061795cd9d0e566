/* tokenizer.json as a whole, and its small sister tokenizer_config.json. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"

enum { MAX_FILE_BYTES = 256 << 20, MAX_CONFIG_BYTES = 16 << 20 };

void td_ids_free(td_ids *ids) {
    free(ids->ids);
    *ids = (td_ids){0};
}

bool tok_ids_push(td_ids *ids, int32_t id) {
    if (ids->n == ids->cap && !td_grow((void **)&ids->ids, &ids->cap, ids->n + 1, sizeof *ids->ids))
        return false;
    ids->ids[ids->n++] = id;
    return true;
}

/* --- steps ------------------------------------------------------------------------------------ */

static td_status each_step(const json_t *v, const char *list_key, const char *where, int depth,
                           tok_step_loader one, void *out, td_error *err) {
    const char *type;
    td_status rc = td_json_get_str(v, "type", where, TD_E_MODEL, &type, err);
    if (rc != TD_OK)
        return rc;
    if (strcmp(type, "Sequence") != 0)
        return one(v, type, where, out, err);
    const json_t *list = json_object_get(v, list_key);
    if (!json_is_array(list) || depth >= TOK_MAX_NESTING)
        return td_error_set(err, TD_E_MODEL, "%s: \"%s\" must be an array, nested at most %d deep",
                            where, list_key, TOK_MAX_NESTING);
    for (size_t i = 0; rc == TD_OK && i < json_array_size(list); i++)
        rc = each_step(json_array_get(list, i), list_key, where, depth + 1, one, out, err);
    return rc;
}

td_status tok_each_step(const json_t *v, const char *list_key, const char *where,
                        tok_step_loader one, void *out, td_error *err) {
    return !v || json_is_null(v) ? TD_OK : each_step(v, list_key, where, 0, one, out, err);
}

td_status tok_json_dup(const json_t *obj, const char *key, const char *where, char **out, size_t *n,
                       td_error *err) {
    const char *s;
    td_status rc = td_json_get_str(obj, key, where, TD_E_MODEL, &s, err);
    if (rc != TD_OK)
        return rc;
    size_t len = json_string_length(json_object_get(obj, key));
    char *copy = td_strndup(s, len);
    if (!copy)
        return td_error_nomem(err, key, len);
    *out = copy;
    *n = len;
    return TD_OK;
}

/* A token named in tokenizer_config.json: a string, or an object with "content". */
static int32_t named_id(const td_tokenizer *tok, const json_t *config, const char *key) {
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v))
        v = json_object_get(v, "content");
    if (!json_is_string(v))
        return -1;
    int32_t id = tok_vocab_find(&tok->added.names, json_string_value(v), json_string_length(v));
    return id >= 0 ? id
                   : tok_vocab_find(&tok->model.vocab, json_string_value(v), json_string_length(v));
}

/* Of config.json only two names are of interest: what else is wrong with it, its reader says. */
static void make_note(const char *model_dir, const json_t *root, const json_t *config,
                      td_tokenizer *tok) {
    char *path = td_asprintf("%s/config.json", model_dir);
    json_t *model_config = NULL;
    if (path && td_path_exists(path))
        (void)td_json_load_file(path, MAX_CONFIG_BYTES, TD_E_MODEL, &model_config, NULL);
    tok->note = tok_class_note(&(tok_class_sources){root, config, model_config});
    json_decref(model_config);
    free(path);
}

/* Many of these files give model_max_length as 1e30 written out, which no integer holds. */
static td_status load_config(const char *model_dir, const json_t *root, td_tokenizer *tok,
                             td_error *err) {
    td_status rc = TD_OK;
    json_t *config = NULL;
    json_error_t why;
    char *path = td_asprintf("%s/tokenizer_config.json", model_dir), *data = NULL;
    size_t n;
    tok->bos_id = tok->eos_id = -1;
    if (!path)
        return td_error_nomem(err, "a path", strlen(model_dir));
    if (!td_path_exists(path)) {
        make_note(model_dir, root, NULL, tok);
        goto done;
    }
    rc = td_file_read(path, MAX_CONFIG_BYTES, TD_E_MODEL, &data, &n, err);
    if (rc != TD_OK)
        goto done;
    config = json_loadb(data, n, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &why);
    if (!config) {
        rc = td_error_set(err, TD_E_MODEL, "%s: not valid JSON at line %d, column %d: %s", path,
                          why.line, why.column, why.text);
        goto done;
    }
    tok->bos_id = named_id(tok, config, "bos_token");
    tok->eos_id = named_id(tok, config, "eos_token");
    make_note(model_dir, root, config, tok);
done:
    json_decref(config);
    free(data);
    free(path);
    return rc;
}

static td_status check_ids(const char *path, const td_tokenizer *tok, td_error *err) {
    const td_ids *both[] = {&tok->post.prefix, &tok->post.suffix};
    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < both[k]->n; i++)
            if (both[k]->ids[i] >= tok->n_vocab)
                return td_error_set(err, TD_E_MODEL,
                                    "%s: the post-processor adds the id %d, but the highest id is "
                                    "%d",
                                    path, both[k]->ids[i], tok->n_vocab - 1);
    return TD_OK;
}

static bool makes_visible(const td_tokenizer *tok) {
    bool visible = tok->pres.byte_level;
    for (size_t i = 0; i < tok->pres.n; i++)
        visible = visible || tok->pres.step[i].kind == TOK_PRE_VISIBLE;
    for (size_t i = 0; i < tok->norms.n; i++)
        visible = visible || tok->norms.step[i].kind == TOK_NORM_BYTE_LEVEL;
    return visible;
}

/* `text`: that of `root`. */
static td_status load_sections(const char *path, const json_t *root, tok_text text,
                               td_tokenizer *tok, td_error *err) {
    static const char *const names[] = {"normalizer",   "pre_tokenizer",  "model",
                                        "added_tokens", "post_processor", "decoder"};
    td_tok_scratch *s = NULL;
    tok_text model = {0};
    td_status rc = TD_OK;
    if (!json_is_object(root))
        return td_error_set(err, TD_E_MODEL, "%s: it must be an object, but is %s", path,
                            td_json_type_name(root));
    rc = tok_scratch_new(NULL, false, &s, err);
    for (size_t i = 0; i < TD_ARRAY_LEN(names) && rc == TD_OK; i++) {
        const json_t *v = json_object_get(root, names[i]);
        char *where = td_asprintf("%s: %s", path, names[i]);
        if (!where) {
            rc = td_error_nomem(err, "a path", strlen(path));
            break;
        }
        switch (i) {
        case 0:
            rc = tok_norms_load(v, where, &tok->norms, err);
            break;
        case 1:
            rc = tok_pres_load(v, where, &tok->pres, err);
            break;
        case 2:
            tok->visible = makes_visible(tok);
            if (!tok_model_takes_bytes(v))
                tok_pres_make_visible(&tok->pres);
            if (v && !tok_text_member(text, "model", &model))
                rc = td_error_set(err, TD_E_MODEL, "%s: write this key without escapes", where);
            else
                rc = tok_model_load(v, model, tok->pres.byte_level, where, &tok->model, err);
            break;
        case 3:
            rc = tok_added_load(v, &tok->model, &tok->norms, s, where, &tok->added, err);
            break;
        case 4:
            rc = tok_post_load(v, where, &tok->post, err);
            break;
        default:
            rc = tok_decs_load(v, where, &tok->decs, err);
        }
        free(where);
    }
    td_tok_scratch_free(s);
    tok->n_vocab = (int32_t)TD_MAX(tok->model.vocab.n_ids, tok->added.names.n_ids);
    return rc == TD_OK ? check_ids(path, tok, err) : rc;
}

td_status td_tokenizer_load(const char *model_dir, td_tokenizer **out, td_error *err) {
    td_status rc;
    char *path = td_asprintf("%s/tokenizer.json", model_dir), *data = NULL;
    td_tokenizer *tok = td_calloc(1, sizeof *tok);
    json_t *root = NULL;
    size_t n;
    if (!path || !tok) {
        rc = td_error_nomem(err, "the tokenizer", sizeof *tok);
        goto done;
    }
    rc = td_file_read(path, MAX_FILE_BYTES, TD_E_MODEL, &data, &n, err);
    if (rc != TD_OK)
        goto done;
    tok->bytes_hash = td_hash64(data, n);
    rc = td_json_parse(data, n, path, TD_E_MODEL, &root, err);
    if (rc == TD_OK)
        rc = td_tokenizer_text_hash(data, n, &tok->hash, err);
    if (rc == TD_OK)
        rc = load_sections(path, root, (tok_text){data, n}, tok, err);
    if (rc == TD_OK)
        rc = load_config(model_dir, root, tok, err);
    if (rc == TD_OK) {
        *out = tok;
        tok = NULL;
    }
done:
    json_decref(root);
    free(data);
    free(path);
    td_tokenizer_free(tok);
    return rc;
}

void td_tokenizer_free(td_tokenizer *tok) {
    if (!tok)
        return;
    tok_model_free(&tok->model);
    tok_added_free(&tok->added);
    tok_norms_free(&tok->norms);
    tok_pres_free(&tok->pres);
    tok_decs_free(&tok->decs);
    tok_post_free(&tok->post);
    free(tok->note);
    free(tok);
}

int32_t td_tokenizer_n_vocab(const td_tokenizer *tok) {
    return tok->n_vocab;
}

int32_t td_tokenizer_bos_id(const td_tokenizer *tok) {
    return tok->bos_id;
}

int32_t td_tokenizer_eos_id(const td_tokenizer *tok) {
    return tok->eos_id;
}

const char *td_tokenizer_note(const td_tokenizer *tok) {
    return tok->note;
}

uint64_t td_tokenizer_hash(const td_tokenizer *tok) {
    return tok->hash;
}

uint64_t td_tokenizer_bytes_hash(const td_tokenizer *tok) {
    return tok->bytes_hash;
}
