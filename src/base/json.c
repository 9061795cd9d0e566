/* json.c - Jansson with messages: what was expected, what was found, in which file. */
#include "base/json.h"

#include <stdlib.h>
#include <string.h>
#include "base/file.h"

const char *td_json_type_name(const json_t *v) {
    if (!v)
        return "nothing";
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

td_status td_json_parse(const char *text, size_t n, const char *where, td_status code, json_t **out,
                        td_error *err) {
    json_error_t e;
    json_t *v = json_loadb(text, n, JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (!v)
        return td_error_set(err, code, "%s: not valid JSON at line %d, column %d: %s", where,
                            e.line, e.column, e.text);
    *out = v;
    return TD_OK;
}

td_status td_json_load_file(const char *path, size_t max_bytes, td_status code, json_t **out,
                            td_error *err) {
    char *data;
    size_t n;
    td_status rc = td_file_read(path, max_bytes, code, &data, &n, err);
    if (rc != TD_OK)
        return rc;
    rc = td_json_parse(data, n, path, code, out, err);
    free(data);
    return rc;
}

bool td_json_has(const json_t *obj, const char *key) {
    const json_t *v = json_object_get(obj, key);
    return v && !json_is_null(v);
}

static td_status wrong_type(const char *where, const char *key, const char *expected,
                            const json_t *v, td_status code, td_error *err) {
    if (!v)
        return td_error_set(err, code, "%s: the key \"%s\" is missing (expected %s)", where, key,
                            expected);
    return td_error_set(err, code, "%s: \"%s\" must be %s, but is %s", where, key, expected,
                        td_json_type_name(v));
}

td_status td_json_get_int(const json_t *obj, const char *key, int64_t min, int64_t max,
                          const char *where, td_status code, int64_t *out, td_error *err) {
    const json_t *v = json_object_get(obj, key);
    if (!json_is_integer(v))
        return wrong_type(where, key, "an integer", v, code, err);
    int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return td_error_set(err, code, "%s: \"%s\" is %lld, expected %lld to %lld", where, key,
                            (long long)i, (long long)min, (long long)max);
    *out = i;
    return TD_OK;
}

td_status td_json_opt_int(const json_t *obj, const char *key, int64_t min, int64_t max,
                          const char *where, td_status code, int64_t *out, td_error *err) {
    return td_json_has(obj, key) ? td_json_get_int(obj, key, min, max, where, code, out, err)
                                 : TD_OK;
}

td_status td_json_get_real(const json_t *obj, const char *key, double min, double max,
                           const char *where, td_status code, double *out, td_error *err) {
    const json_t *v = json_object_get(obj, key);
    if (!json_is_number(v))
        return wrong_type(where, key, "a number", v, code, err);
    double x = json_number_value(v);
    if (!(x >= min && x <= max))
        return td_error_set(err, code, "%s: \"%s\" is %g, expected %g to %g", where, key, x, min,
                            max);
    *out = x;
    return TD_OK;
}

td_status td_json_opt_real(const json_t *obj, const char *key, double min, double max,
                           const char *where, td_status code, double *out, td_error *err) {
    return td_json_has(obj, key) ? td_json_get_real(obj, key, min, max, where, code, out, err)
                                 : TD_OK;
}

td_status td_json_opt_bool(const json_t *obj, const char *key, const char *where, td_status code,
                           bool *out, td_error *err) {
    const json_t *v = json_object_get(obj, key);
    if (!v || json_is_null(v))
        return TD_OK;
    if (!json_is_boolean(v))
        return wrong_type(where, key, "true or false", v, code, err);
    *out = json_is_true(v);
    return TD_OK;
}

td_status td_json_get_str(const json_t *obj, const char *key, const char *where, td_status code,
                          const char **out, td_error *err) {
    const json_t *v = json_object_get(obj, key);
    if (!json_is_string(v))
        return wrong_type(where, key, "a string", v, code, err);
    *out = json_string_value(v);
    return TD_OK;
}

td_status td_json_opt_str(const json_t *obj, const char *key, const char *where, td_status code,
                          const char **out, td_error *err) {
    return td_json_has(obj, key) ? td_json_get_str(obj, key, where, code, out, err) : TD_OK;
}
