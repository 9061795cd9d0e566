#include "data/row.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "data/lines.h"
#include "base/json.h"
#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"

td_status td_row_maker_init(td_row_maker *m, const td_config *cfg, const td_tokenizer *tok,
                            const td_source_limits *lim, td_error *err) {
    td_row_maker r = {.cfg = cfg, .tok = tok, .lim = *lim};
    if (tok) {
        td_status rc = td_tok_scratch_create(tok, &r.scratch, err);
        if (rc != TD_OK)
            return rc;
    }
    *m = r;
    return TD_OK;
}

void td_row_maker_free(td_row_maker *m) {
    td_tok_scratch_free(m->scratch);
    td_strbuf_free(&m->text);
    td_strbuf_free(&m->id);
    td_ids_free(&m->ids);
    free(m->mask);
    *m = (td_row_maker){0};
}

static void clear_row(td_row_maker *m) {
    m->ids.n = 0;
    td_strbuf_clear(&m->id);
}

/* Room for `need` ids and mask bytes, at least one, so that an empty row has valid pointers. */
static td_status reserve(td_row_maker *m, size_t need, td_error *err) {
    need = TD_MAX(need, (size_t)1);
    if (!td_grow((void **)&m->ids.ids, &m->ids.cap, need, sizeof *m->ids.ids) ||
        !td_grow((void **)&m->mask, &m->mask_cap, need, 1))
        return td_error_nomem(err, "the tokens of a row", need);
    return TD_OK;
}

static td_status encode_part(td_row_maker *m, const char *text, size_t n_bytes, bool special,
                             bool target, td_error *err) {
    size_t before = m->ids.n;
    if (m->tok) {
        td_status rc =
            td_tokenizer_encode(m->tok, m->scratch, text, n_bytes, special, &m->ids, err);
        if (rc == TD_OK)
            rc = reserve(m, m->ids.n, err);
        if (rc != TD_OK)
            return rc;
    } else {
        size_t n = n_bytes / 4 + (n_bytes % 4 != 0);
        td_status rc = reserve(m, before + n, err);
        if (rc != TD_OK)
            return rc;
        memset(m->ids.ids + before, 0, n * sizeof *m->ids.ids);
        m->ids.n += n;
    }
    memset(m->mask + before, target, m->ids.n - before);
    return TD_OK;
}

/* `own`: where the ids of the row's own last part begin; behind them a second end-of-sequence is
 * not added. The BOS of an empty text is not such an end, though some models use one id for both.
 */
static td_status end_row(td_row_maker *m, size_t own, td_error *err) {
    if (!m->cfg->data.append_eos)
        return TD_OK;
    int32_t eos = m->lim.eos_id < 0 ? 0 : m->lim.eos_id; /* < 0: only while estimating */
    if (m->ids.n > own && m->lim.eos_id >= 0 && m->ids.ids[m->ids.n - 1] == eos)
        return TD_OK;
    td_status rc = reserve(m, m->ids.n + 1, err);
    if (rc != TD_OK)
        return rc;
    m->mask[m->ids.n] = 1;
    m->ids.ids[m->ids.n++] = eos;
    return TD_OK;
}

/* The model has to know what the tokenizer says. */
static td_status check_range(const td_row_maker *m, const char *where, td_error *err) {
    if (m->lim.n_vocab <= 0)
        return TD_OK;
    for (size_t i = 0; i < m->ids.n; i++)
        if (m->ids.ids[i] < 0 || m->ids.ids[i] >= m->lim.n_vocab)
            return td_error_set(
                err, TD_E_DATA,
                "%s: its token %zu is id %d, but the model's vocabulary ends at %d; "
                "does the tokenizer belong to this model?",
                where, i, (int)m->ids.ids[i], (int)m->lim.n_vocab - 1);
    return TD_OK;
}

td_status td_row_from_text(td_row_maker *m, const char *text, size_t n_bytes, const char *where,
                           td_error *err) {
    clear_row(m);
    td_status rc = encode_part(m, text, n_bytes, m->cfg->data.add_special_tokens, true, err);
    if (rc == TD_OK)
        rc = end_row(m, n_bytes ? 0 : m->ids.n, err);
    return rc == TD_OK ? check_range(m, where, err) : rc;
}

static td_status row_from_prompt(td_row_maker *m, const json_t *prompt, const json_t *completion,
                                 const char *where, td_error *err) {
    td_strbuf_clear(&m->text);
    td_strbuf_append(&m->text, json_string_value(prompt), json_string_length(prompt));
    if (m->cfg->data.separator)
        td_strbuf_puts(&m->text, m->cfg->data.separator);
    if (m->text.oom)
        return td_error_nomem(err, "a prompt", m->text.len);
    td_status rc =
        encode_part(m, m->text.data, m->text.len, m->cfg->data.add_special_tokens, false, err);
    size_t own = m->ids.n;
    if (rc == TD_OK)
        rc = encode_part(m, json_string_value(completion), json_string_length(completion), false,
                         true, err);
    if (rc == TD_OK)
        rc = end_row(m, own, err);
    return rc == TD_OK ? check_range(m, where, err) : rc;
}

int64_t td_int_at(const void *data, td_int_kind kind, size_t i) {
    const unsigned char *p = data;
    switch (kind) {
    case TD_INT_U8:
        return p[i];
    case TD_INT_I8:
        return (int8_t)p[i];
    case TD_INT_U16: {
        uint16_t v;
        memcpy(&v, p + 2 * i, 2);
        return v;
    }
    case TD_INT_I16: {
        int16_t v;
        memcpy(&v, p + 2 * i, 2);
        return v;
    }
    case TD_INT_U32: {
        uint32_t v;
        memcpy(&v, p + 4 * i, 4);
        return v;
    }
    case TD_INT_I32: {
        int32_t v;
        memcpy(&v, p + 4 * i, 4);
        return v;
    }
    case TD_INT_U64: {
        uint64_t v;
        memcpy(&v, p + 8 * i, 8);
        return v > INT64_MAX ? INT64_MAX : (int64_t)v;
    }
    case TD_INT_I64: {
        int64_t v;
        memcpy(&v, p + 8 * i, 8);
        return v;
    }
    }
    return -1;
}

static int64_t max_id(const td_row_maker *m) {
    return m->lim.n_vocab > 0 ? m->lim.n_vocab - 1 : INT32_MAX - 1;
}

td_status td_row_from_ids(td_row_maker *m, const void *data, td_int_kind kind, const uint8_t *mask,
                          size_t n, const char *where, td_error *err) {
    clear_row(m);
    td_status rc = reserve(m, n, err);
    if (rc != TD_OK)
        return rc;
    int64_t max = max_id(m);
    for (size_t i = 0; i < n; i++) {
        int64_t id = td_int_at(data, kind, i);
        if (id < 0 || id > max)
            return td_error_set(err, TD_E_DATA, "%s: input_ids[%zu] is %lld, expected 0 to %lld",
                                where, i, (long long)id, (long long)max);
        if (mask && mask[i] > 1)
            return td_error_set(err, TD_E_DATA, "%s: loss_mask[%zu] is %d, expected 0 or 1", where,
                                i, mask[i]);
        m->ids.ids[i] = (int32_t)id;
        m->mask[i] = mask ? mask[i] : 1;
    }
    m->ids.n = n;
    return end_row(m, 0, err);
}

static td_status row_from_arrays(td_row_maker *m, const json_t *ids, const json_t *mask,
                                 const char *where, td_error *err) {
    const char *ids_key = m->cfg->data.ids_field, *mask_key = m->cfg->data.mask_field;
    size_t n = json_array_size(ids);
    if (mask && json_array_size(mask) != n)
        return td_error_set(err, TD_E_DATA, "%s: \"%s\" has %zu elements, but \"%s\" has %zu",
                            where, mask_key, json_array_size(mask), ids_key, n);
    td_status rc = reserve(m, n, err);
    if (rc != TD_OK)
        return rc;
    int64_t max = max_id(m);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(ids, i);
        if (!json_is_integer(v))
            return td_error_set(err, TD_E_DATA, "%s: \"%s\"[%zu] must be an integer, but is %s",
                                where, ids_key, i, td_json_type_name(v));
        int64_t id = json_integer_value(v);
        if (id < 0 || id > max)
            return td_error_set(err, TD_E_DATA, "%s: \"%s\"[%zu] is %lld, expected 0 to %lld",
                                where, ids_key, i, (long long)id, (long long)max);
        m->ids.ids[i] = (int32_t)id;
        m->mask[i] = 1;
        if (!mask)
            continue;
        const json_t *t = json_array_get(mask, i);
        bool is_int = json_is_integer(t);
        if ((!is_int && !json_is_boolean(t)) ||
            (is_int && json_integer_value(t) != 0 && json_integer_value(t) != 1))
            return td_error_set(err, TD_E_DATA,
                                "%s: \"%s\"[%zu] must be 0, 1, true or false (1 = training target)",
                                where, mask_key, i);
        m->mask[i] = is_int ? json_integer_value(t) == 1 : json_is_true(t);
    }
    m->ids.n = n;
    return end_row(m, 0, err);
}

/* `"a", "b", "c"`: the row's keys, cut to what a message can hold. */
static void list_keys(const json_t *obj, td_strbuf *out) {
    size_t n = 0, n_all = json_object_size(obj);
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)obj, key, v) {
        if (n == 12) {
            td_strbuf_printf(out, ", and %zu more", n_all - n);
            return;
        }
        size_t len = strlen(key), cut = len;
        if (len > 40)
            for (cut = 40; cut > 0 && ((unsigned char)key[cut] & 0xc0) == 0x80;)
                cut--;
        td_strbuf_printf(out, "%s\"%.*s%s\"", n++ ? ", " : "", (int)cut, key,
                         cut < len ? "..." : "");
    }
}

static td_status missing_field(const json_t *obj, const char *field, const char *config_key,
                               const char *where, td_error *err) {
    td_strbuf keys = {0};
    list_keys(obj, &keys);
    size_t n = 0, cap = json_object_size(obj);
    const char **names = td_calloc(cap, sizeof *names);
    const char *key;
    json_t *v;
    if (names)
        json_object_foreach((json_t *)obj, key, v) names[n++] = key;
    const char *near = names ? td_nearest_name(field, names, n) : NULL;
    bool is_text = strcmp(config_key, "text_field") == 0;
    td_status rc = td_error_set(
        err, TD_E_DATA,
        "%s: the row has no \"%.100s\" (data.%s)%s%.100s%s; row has keys: %s; set data.%s%s", where,
        field, config_key, near ? ", did you mean \"" : "", near ? near : "", near ? "\"?" : "",
        keys.len && !keys.oom ? keys.data : "none", config_key,
        is_text ? ", or data.prompt_field and data.completion_field" : " to the one that is meant");
    free(names);
    td_strbuf_free(&keys);
    return rc;
}

typedef enum { WANT_STRING, WANT_ARRAY, WANT_ID } want;

static td_status get_field(const json_t *obj, const char *field, const char *config_key, want w,
                           const char *where, const json_t **out, td_error *err) {
    static const char *const expected[] = {"a string", "an array of integers",
                                           "a string or an integer"};
    const json_t *v = json_object_get(obj, field);
    if (!v)
        return missing_field(obj, field, config_key, where, err);
    bool ok = w == WANT_STRING  ? json_is_string(v)
              : w == WANT_ARRAY ? json_is_array(v)
                                : json_is_string(v) || json_is_integer(v);
    if (!ok)
        return td_error_set(err, TD_E_DATA, "%s: \"%.100s\" (data.%s) must be %s, but is %s", where,
                            field, config_key, expected[w], td_json_type_name(v));
    *out = v;
    return TD_OK;
}

/* Borrowed from the row's object; NULL where not configured. */
typedef struct {
    const json_t *text, *prompt, *completion, *ids, *mask, *id;
} row_fields;

static td_status get_fields(const td_config *cfg, const json_t *obj, const char *where,
                            row_fields *f, td_error *err) {
    td_status rc = TD_OK;
    if (!json_is_object(obj))
        return td_error_set(err, TD_E_DATA, "%s: a row must be a JSON object, but is %s", where,
                            td_json_type_name(obj));
    if (cfg->data.ids_field) {
        rc = get_field(obj, cfg->data.ids_field, "ids_field", WANT_ARRAY, where, &f->ids, err);
        if (rc == TD_OK && cfg->data.mask_field)
            rc = get_field(obj, cfg->data.mask_field, "mask_field", WANT_ARRAY, where, &f->mask,
                           err);
    } else if (cfg->data.prompt_field && cfg->data.completion_field) {
        rc = get_field(obj, cfg->data.prompt_field, "prompt_field", WANT_STRING, where, &f->prompt,
                       err);
        if (rc == TD_OK)
            rc = get_field(obj, cfg->data.completion_field, "completion_field", WANT_STRING, where,
                           &f->completion, err);
    } else {
        rc = get_field(obj, cfg->data.text_field ? cfg->data.text_field : "text", "text_field",
                       WANT_STRING, where, &f->text, err);
    }
    if (rc == TD_OK && cfg->data.id_field)
        rc = get_field(obj, cfg->data.id_field, "id_field", WANT_ID, where, &f->id, err);
    return rc;
}

/* As td_json_parse, but the row is one line: only the column says something. Its line end is left
 * out, or an early end would be reported on a second line. */
static td_status parse_row(const char *line, size_t n_bytes, const char *where, json_t **out,
                           td_error *err) {
    json_error_t e;
    json_t *v =
        json_loadb(line, td_line_content(line, n_bytes), JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (!v)
        return td_error_set(err, TD_E_DATA, "%s: not valid JSON at column %d: %s", where, e.column,
                            e.text);
    *out = v;
    return TD_OK;
}

td_status td_row_check_json(const td_config *cfg, const char *line, size_t n_bytes,
                            const char *where, td_error *err) {
    json_t *obj = NULL;
    row_fields f = {0};
    td_status rc = parse_row(line, n_bytes, where, &obj, err);
    if (rc == TD_OK)
        rc = get_fields(cfg, obj, where, &f, err);
    json_decref(obj);
    return rc;
}

td_status td_row_from_json(td_row_maker *m, const char *line, size_t n_bytes, const char *where,
                           td_error *err) {
    clear_row(m);
    json_t *obj = NULL;
    row_fields f = {0};
    td_status rc = parse_row(line, n_bytes, where, &obj, err);
    if (rc == TD_OK)
        rc = get_fields(m->cfg, obj, where, &f, err);
    if (rc == TD_OK) {
        if (f.ids)
            rc = row_from_arrays(m, f.ids, f.mask, where, err);
        else if (f.prompt)
            rc = row_from_prompt(m, f.prompt, f.completion, where, err);
        else
            rc = td_row_from_text(m, json_string_value(f.text), json_string_length(f.text), where,
                                  err);
    }
    if (rc == TD_OK && f.id) {
        if (json_is_string(f.id))
            td_strbuf_append(&m->id, json_string_value(f.id), json_string_length(f.id));
        else
            td_strbuf_printf(&m->id, "%lld", (long long)json_integer_value(f.id));
        if (m->id.oom)
            rc = td_error_nomem(err, "a row's id", json_string_length(f.id));
    }
    json_decref(obj);
    return rc;
}
