/* Post-processors: the special tokens around a text. ByteLevel adds none: it concerns offsets,
 * which we do not have. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"

static td_status push_special(const json_t *table, const char *name, const char *where, td_ids *out,
                              td_error *err) {
    const json_t *ids = json_object_get(json_object_get(table, name), "ids");
    if (!json_is_array(ids))
        return td_error_set(err, TD_E_MODEL,
                            "%s: the template uses \"%.60s\", which \"special_tokens\" does not "
                            "define",
                            where, name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > TOK_MAX_ID)
            return td_error_set(err, TD_E_MODEL, "%s: the ids of \"%.60s\" must be integers", where,
                                name);
        if (!tok_ids_push(out, (int32_t)json_integer_value(id)))
            return td_error_nomem(err, "the template", out->n * sizeof *out->ids);
    }
    return TD_OK;
}

static bool append(td_ids *to, const td_ids *from) {
    for (size_t i = 0; i < from->n; i++)
        if (!tok_ids_push(to, from->ids[i]))
            return false;
    return true;
}

/* A later processor wraps what the earlier ones gave: its prefix goes in front of theirs, its
 * suffix behind. Takes both lists. */
static td_status wrap(td_ids *prefix, td_ids *suffix, tok_post *out, td_error *err) {
    td_status rc = TD_OK;
    if (!append(prefix, &out->prefix) || !append(&out->suffix, suffix)) {
        rc = td_error_nomem(err, "the template", prefix->n * sizeof *prefix->ids);
    } else {
        td_ids t = out->prefix;
        out->prefix = *prefix;
        *prefix = t;
    }
    td_ids_free(prefix);
    td_ids_free(suffix);
    return rc;
}

/* BertProcessing and RobertaProcessing: "cls" in front, "sep" behind, each ["token", id]. */
static td_status load_pair(const json_t *v, const char *where, tok_post *out, td_error *err) {
    static const char *const keys[] = {"cls", "sep"};
    td_ids ids[2] = {0};
    for (size_t i = 0; i < TD_ARRAY_LEN(keys); i++) {
        const json_t *id = json_array_get(json_object_get(v, keys[i]), 1);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > TOK_MAX_ID) {
            td_ids_free(&ids[0]);
            return td_error_set(err, TD_E_MODEL, "%s: \"%s\" must be [\"token\", id]", where,
                                keys[i]);
        }
        if (!tok_ids_push(&ids[i], (int32_t)json_integer_value(id))) {
            td_ids_free(&ids[0]);
            return td_error_nomem(err, "the template", sizeof *ids[i].ids);
        }
    }
    return wrap(&ids[0], &ids[1], out, err);
}

static td_status load_template(const json_t *v, const char *where, tok_post *out, td_error *err) {
    const json_t *single = json_object_get(v, "single");
    const json_t *table = json_object_get(v, "special_tokens");
    td_ids prefix = {0}, suffix = {0};
    bool seen = false;
    td_status rc = TD_OK;
    if (!json_is_array(single))
        return td_error_set(err, TD_E_MODEL, "%s: \"single\" must be an array, but is %s", where,
                            td_json_type_name(single));
    for (size_t i = 0; i < json_array_size(single) && rc == TD_OK; i++) {
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken");
        const char *id = json_string_value(json_object_get(special, "id"));
        const char *seq =
            json_string_value(json_object_get(json_object_get(item, "Sequence"), "id"));
        if (id)
            rc = push_special(table, id, where, seen ? &suffix : &prefix, err);
        else if (seq && strcmp(seq, "A") == 0 && !seen)
            seen = true;
        else
            rc = td_error_set(err, TD_E_MODEL,
                              "%s: \"single\" entry %zu is not supported (one Sequence A with "
                              "special tokens around it is)",
                              where, i);
    }
    if (rc == TD_OK && !seen)
        rc = td_error_set(err, TD_E_MODEL, "%s: \"single\" has no Sequence A", where);
    if (rc == TD_OK)
        return wrap(&prefix, &suffix, out, err);
    td_ids_free(&prefix);
    td_ids_free(&suffix);
    return rc;
}

static td_status load_step(const json_t *v, const char *type, const char *where, void *arg,
                           td_error *err) {
    tok_post *out = arg;
    if (strcmp(type, "ByteLevel") == 0)
        return TD_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(v, where, out, err);
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0)
        return load_pair(v, where, out, err);
    return td_error_set(err, TD_E_MODEL,
                        "%s: the post-processor \"%s\" is not supported (supported: "
                        "TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing, "
                        "Sequence)",
                        where, type);
}

td_status tok_post_load(const json_t *v, const char *where, tok_post *out, td_error *err) {
    return tok_each_step(v, "processors", where, load_step, out, err);
}

void tok_post_free(tok_post *p) {
    td_ids_free(&p->prefix);
    td_ids_free(&p->suffix);
}
