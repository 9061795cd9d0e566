/* jsonl.c - one JSON object a line; blank lines are no rows.
 *
 * A row is made of one text (text_field), of a prompt and its completion, or of token ids that are
 * already there (ids_field, mask_field); id_field is carried along with any of them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/format.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "base/text.h"
#include "data/foreign.h"
#include "data/format.h"
#include "data/line_rows.h"

static td_status row_from_prompt(td_row_maker *m, const json_t *prompt, const json_t *completion,
                                 const char *where, td_error *err) {
    td_strbuf_clear(&m->text);
    td_strbuf_append(&m->text, json_string_value(prompt), json_string_length(prompt));
    if (m->cfg->data.separator)
        td_strbuf_puts(&m->text, m->cfg->data.separator);
    if (m->text.oom)
        return td_error_nomem(err, "a prompt", m->text.len);
    td_status rc =
        td_row_encode(m, m->text.data, m->text.len, m->cfg->data.add_special_tokens, false, err);
    size_t own = m->ids.n;
    if (rc == TD_OK)
        rc = td_row_encode(m, json_string_value(completion), json_string_length(completion), false,
                           true, err);
    if (rc == TD_OK)
        rc = td_row_end(m, own, err);
    return rc == TD_OK ? td_row_check_range(m, where, err) : rc;
}

static td_status row_from_arrays(td_row_maker *m, const json_t *ids, const json_t *mask,
                                 const char *where, td_error *err) {
    const char *ids_key = m->cfg->data.ids_field, *mask_key = m->cfg->data.mask_field;
    size_t n = json_array_size(ids);
    if (mask && json_array_size(mask) != n)
        return td_error_set(err, TD_E_DATA, "%s: \"%s\" has %zu elements, but \"%s\" has %zu",
                            where, mask_key, json_array_size(mask), ids_key, n);
    td_status rc = td_row_reserve(m, n, err);
    if (rc != TD_OK)
        return rc;
    int64_t max = td_row_max_id(m);
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
    return td_row_end(m, 0, err);
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

/* Is it a conversation: a list of {role, content}, or of ShareGPT's {from, value}? */
static bool is_conversation(const json_t *v) {
    const json_t *turn = json_array_get(v, 0);
    return json_is_object(turn) &&
           ((json_object_get(turn, "role") && json_object_get(turn, "content")) ||
            (json_object_get(turn, "from") && json_object_get(turn, "value")));
}

/* The field that holds one, also an empty one under a well-known name; NULL: none. */
static const char *conversation_field(const json_t *obj) {
    static const char *const names[] = {"messages", "conversations", "conversation"};
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++)
        if (json_is_array(json_object_get(obj, names[i])))
            return names[i];
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)obj, key, v) if (is_conversation(v)) return key;
    return NULL;
}

/* A chat template makes tokens of conversations: a text field could not. */
static td_status refuse_conversation(const td_config *cfg, const char *field, const char *where,
                                     td_error *err) {
    td_strbuf command = {0}, option = {0};
    bool known = strcmp(field, "messages") == 0 || strcmp(field, "conversations") == 0 ||
                 strcmp(field, "conversation") == 0;
    td_strbuf_puts(&option, "--messages-field ");
    td_text_shell_quote(field, &option);
    td_foreign_prepare_command(cfg, known || option.oom ? NULL : option.data, &command);
    td_status rc =
        td_error_set(err, TD_E_DATA,
                     "%s: the row is a conversation (\"%.60s\"), which the chat template "
                     "of the model makes tokens of: %s",
                     where, field, command.oom ? "tdgen prepare" : command.data);
    td_strbuf_free(&command);
    td_strbuf_free(&option);
    return rc;
}

/* "data.prompt_field = instruction and ..." for the commonest pairs of fields. */
static void suggest_pair(const json_t *obj, td_strbuf *out) {
    static const char *const pairs[][2] = {{"prompt", "completion"},  {"prompt", "response"},
                                           {"instruction", "output"}, {"instruction", "response"},
                                           {"question", "answer"},    {"input", "output"}};
    for (size_t i = 0; i < TD_ARRAY_LEN(pairs); i++)
        if (json_is_string(json_object_get(obj, pairs[i][0])) &&
            json_is_string(json_object_get(obj, pairs[i][1]))) {
            td_strbuf_printf(out, "data.prompt_field = %s and data.completion_field = %s",
                             pairs[i][0], pairs[i][1]);
            return;
        }
    td_strbuf_puts(out, "data.prompt_field and data.completion_field");
}

static td_status missing_field(const td_config *cfg, const json_t *obj, const char *field,
                               const char *config_key, const char *where, td_error *err) {
    const char *chat = conversation_field(obj);
    if (chat)
        return refuse_conversation(cfg, chat, where, err);
    td_strbuf keys = {0};
    list_keys(obj, &keys);
    size_t n = 0, cap = json_object_size(obj);
    const char **names = td_calloc(cap, sizeof *names);
    const char *key;
    json_t *v;
    if (names)
        json_object_foreach((json_t *)obj, key, v) names[n++] = key;
    const char *near = names ? td_nearest_name(field, names, n) : NULL;
    td_strbuf instead = {0};
    if (strcmp(config_key, "text_field") == 0) {
        td_strbuf_puts(&instead, ", or ");
        suggest_pair(obj, &instead);
    } else {
        td_strbuf_puts(&instead, " to the one that is meant");
    }
    td_status rc = td_error_set(
        err, TD_E_DATA,
        "%s: the row has no \"%.100s\" (data.%s)%s%.100s%s; row has keys: %s; set data.%s%s", where,
        field, config_key, near ? ", did you mean \"" : "", near ? near : "", near ? "\"?" : "",
        keys.len && !keys.oom ? keys.data : "none", config_key, instead.oom ? "" : instead.data);
    free(names);
    td_strbuf_free(&instead);
    td_strbuf_free(&keys);
    return rc;
}

/* Appends a hint to the error, with the file's own name, as a shell takes it, for FILE. */
static td_status add_hint(const td_config *cfg, const char *hint, td_status rc, td_error *err) {
    td_strbuf b = {0};
    const char *file = strstr(hint, "FILE");
    td_strbuf_append(&b, hint, file ? (size_t)(file - hint) : strlen(hint));
    if (file) {
        td_text_shell_quote(cfg->data.path, &b);
        td_strbuf_puts(&b, file + 4);
    }
    if (err && b.len && !b.oom) {
        size_t n = strlen(err->text);
        snprintf(err->text + n, sizeof err->text - n, "%s", b.data);
    }
    td_strbuf_free(&b);
    return rc;
}

/* What helps where a text is expected. */
static const char *no_text_hint(const td_config *cfg, const json_t *v) {
    if (json_is_null(v))
        return cfg->run.on_bad_sample == TD_BAD_SKIP
                   ? ""
                   : "; a row without text can be left out: run.on_bad_sample = skip";
    if (json_is_object(v))
        return "; a nested text must be brought to the top, such as with jq -c '{text: .a.b}'";
    if (json_is_array(v))
        return "; several texts must be joined, such as with jq -c '{text: join(\"\\n\")}', or be rows "
               "of their own; lists of token ids go by data.ids_field";
    return "; write it as a string, such as with jq -c '.KEY |= tostring'";
}

typedef enum { WANT_STRING, WANT_ARRAY, WANT_ID } wanted;

static td_status get_field(const td_config *cfg, const json_t *obj, const char *field,
                           const char *config_key, wanted w, const char *where, const json_t **out,
                           td_error *err) {
    static const char *const expected[] = {"a string", "an array of integers",
                                           "a string or an integer"};
    const json_t *v = json_object_get(obj, field);
    if (!v)
        return missing_field(cfg, obj, field, config_key, where, err);
    bool ok = w == WANT_STRING  ? json_is_string(v)
              : w == WANT_ARRAY ? json_is_array(v)
                                : json_is_string(v) || json_is_integer(v);
    if (!ok && w == WANT_STRING && is_conversation(v))
        return refuse_conversation(cfg, field, where, err);
    if (!ok)
        return td_error_set(err, TD_E_DATA, "%s: \"%.100s\" (data.%s) must be %s, but is %s%s",
                            where, field, config_key, expected[w], td_json_type_name(v),
                            w == WANT_STRING ? no_text_hint(cfg, v) : "");
    *out = v;
    return TD_OK;
}

/* Of a row that is no object, or "": what makes objects of such rows. */
static const char *no_object_hint(const json_t *row) {
    const json_t *first = json_array_get(row, 0);
    if (json_is_string(row))
        return "; make objects of such rows: jq -c '{text: .}' FILE";
    if (json_is_integer(first))
        return "; make objects of such rows: jq -c '{input_ids: .}' FILE, and set data.ids_field = "
               "input_ids";
    if (json_is_string(first))
        return "; make objects of such rows, joined or one by one: jq -c '.[] | {text: .}' FILE";
    if (is_conversation(row))
        return "; make objects of such rows: jq -c '{messages: .}' FILE, which tdgen prepare reads";
    return "";
}

/* Borrowed from the row's object; NULL where not configured. */
typedef struct {
    const json_t *text, *prompt, *completion, *ids, *mask, *id;
} row_fields;

static td_status get_fields(const td_config *cfg, const json_t *obj, const char *where,
                            row_fields *f, td_error *err) {
    td_status rc = TD_OK;
    if (!json_is_object(obj))
        return add_hint(cfg, no_object_hint(obj),
                        td_error_set(err, TD_E_DATA, "%s: a row must be a JSON object, but is %s",
                                     where, td_json_type_name(obj)),
                        err);
    if (cfg->data.ids_field) {
        rc = get_field(cfg, obj, cfg->data.ids_field, "ids_field", WANT_ARRAY, where, &f->ids, err);
        if (rc == TD_OK && cfg->data.mask_field)
            rc = get_field(cfg, obj, cfg->data.mask_field, "mask_field", WANT_ARRAY, where,
                           &f->mask, err);
    } else if (cfg->data.prompt_field && cfg->data.completion_field) {
        rc = get_field(cfg, obj, cfg->data.prompt_field, "prompt_field", WANT_STRING, where,
                       &f->prompt, err);
        if (rc == TD_OK)
            rc = get_field(cfg, obj, cfg->data.completion_field, "completion_field", WANT_STRING,
                           where, &f->completion, err);
    } else {
        rc = get_field(cfg, obj, cfg->data.text_field ? cfg->data.text_field : "text", "text_field",
                       WANT_STRING, where, &f->text, err);
    }
    if (rc == TD_OK && cfg->data.id_field)
        rc = get_field(cfg, obj, cfg->data.id_field, "id_field", WANT_ID, where, &f->id, err);
    return rc;
}

/* What is behind the commonest lines that are no JSON, or "". */
static const char *line_hint(const char *line, size_t n_bytes) {
    size_t i = 0, n = n_bytes;
    while (i < n && strchr(" \t\r\n", line[i]))
        i++;
    while (n > i && strchr(" \t\r\n", line[n - 1]))
        n--;
    if (n == i + 1 && line[i] == '{')
        return "; the file looks like one JSON document over several lines, but one object a line "
               "is expected: convert it with jq -c . FILE";
    if (n > i + 1 && line[i] == '{' && line[n - 1] == ',')
        return "; a comma ends the line, but each line is an object by itself: take the commas off "
               "with sed 's/,[[:space:]]*$//' FILE";
    return i < n && line[i] != '{' && line[i] != '[' && line[i] != '"'
               ? "; for a file of plain text set data.format = text"
               : "";
}

/* As td_json_parse, but the row is one line: only the column says something. Its line end is left
 * out, or an early end would be reported on a second line. */
static td_status parse_row(const td_config *cfg, const char *line, size_t n_bytes,
                           const char *where, json_t **out, td_error *err) {
    json_error_t e;
    json_t *v =
        json_loadb(line, td_line_content(line, n_bytes), JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (!v)
        return add_hint(cfg, line_hint(line, n_bytes),
                        td_error_set(err, TD_E_DATA, "%s: not valid JSON at column %d: %s", where,
                                     e.column, e.text),
                        err);
    *out = v;
    return TD_OK;
}

/* One JSON array over the whole file, unless this line is a row that is an array. */
static bool is_array_file(const char *line, size_t n_bytes, const json_t *row) {
    size_t i = 0;
    while (i < n_bytes && strchr(" \t\r\n", line[i]))
        i++;
    if (i == n_bytes || line[i] != '[')
        return false;
    return !row || (json_is_object(json_array_get(row, 0)) && !is_conversation(row));
}

static td_status check_row(const td_config *cfg, const char *line, size_t n_bytes,
                           const char *where, td_error *err) {
    json_t *obj = NULL;
    row_fields f = {0};
    td_status rc = parse_row(cfg, line, n_bytes, where, &obj, err);
    if (is_array_file(line, n_bytes, obj))
        rc = td_foreign_to_prepare(cfg, "one JSON array", err);
    else if (rc == TD_OK)
        rc = get_fields(cfg, obj, where, &f, err);
    json_decref(obj);
    return rc;
}

static td_status make_row(td_row_maker *m, const char *line, size_t n_bytes, const char *where,
                          td_error *err) {
    td_row_begin(m);
    json_t *obj = NULL;
    row_fields f = {0};
    td_status rc = parse_row(m->cfg, line, n_bytes, where, &obj, err);
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

static bool is_row(const char *line, size_t n_bytes) {
    return !td_line_is_blank(line, n_bytes);
}

static td_status open_jsonl(const td_config *cfg, int32_t n_vocab, td_rows **out, td_error *err) {
    static const td_line_kind kind = {.is_row = is_row, .check = check_row, .make = make_row};
    (void)n_vocab;
    return td_line_rows_open(cfg, false, &kind, out, err);
}

/* A text whose first character is an opening brace. */
static td_sniff sniff(const td_file_head *h) {
    if (memchr(h->bytes, 0, h->n))
        return TD_SNIFF_NO;
    size_t i = h->n >= 3 && memcmp(h->bytes, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (i < h->n && strchr(" \t\r\n", h->bytes[i]))
        i++;
    return i < h->n && h->bytes[i] == '{' ? TD_SNIFF_SURE : TD_SNIFF_NO;
}

const td_row_format td_format_jsonl = {
    .format = TD_FORMAT_JSONL,
    .suffixes = (const char *const[]){".jsonl", ".ndjson", ".json", NULL},
    .packed = true,
    .sniff = sniff,
    .open = open_jsonl,
};
