/* spec.c - the capture spec to JSON and back; see record/spec.h. */
#include "record/spec.h"

#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/memory.h"

const char *td_spec_logprob_name(const td_capture_spec *s) {
    return s->q8 ? "q8" : td_dtype_name(s->logprob_dtype);
}

const char *td_spec_logprob_error(const td_capture_spec *s) {
    return s->q8 ? "at most (max - min) / 508 of the row's stored log-probabilities"
           : s->logprob_dtype == TD_F16
               ? "at most 2^-11 of the value (half a unit of f16); values below -65504 are stored "
                 "as -65504"
               : "none: as computed in f32";
}

static bool put(json_t *o, const char *key, json_t *v) {
    return v && json_object_set_new(o, key, v) == 0;
}

static bool put_list(json_t *o, const char *key, const double *reals, const int32_t *ints,
                     int32_t n) {
    json_t *a = json_array();
    bool ok = a != NULL;
    for (int32_t i = 0; ok && i < n; i++)
        ok = json_array_append_new(a, reals ? json_real(reals[i]) : json_integer(ints[i])) == 0;
    if (!ok) {
        json_decref(a);
        return false;
    }
    return put(o, key, a);
}

json_t *td_spec_json(const td_capture_spec *s) {
    td_capture_mode m = s->mode;
    json_t *o = json_object();
    bool ok = o && put(o, "mode", json_string(td_capture_mode_name(m))) &&
              put(o, "n_vocab", json_integer(s->n_vocab));
    if (ok && m != TD_CAPTURE_HIDDEN)
        ok = put(o, "n_valid_vocab", json_integer(s->n_valid)) &&
             put_list(o, "temperatures", s->temperatures, NULL, s->n_temperatures) &&
             put_list(o, "always_ids", NULL, s->always_ids, s->n_always);
    for (size_t i = 0; ok && i < TD_ARRAY_LEN(td_capture_params); i++) {
        const td_capture_param *p = &td_capture_params[i];
        const void *field = (const char *)s + p->field;
        if (p->used_by(m))
            ok = put(o, p->name,
                     p->is_real ? json_real(*(const double *)field)
                                : json_integer(*(const int32_t *)field));
    }
    if (ok && td_capture_has_sets(m))
        ok = put(o, "logprob_dtype", json_string(td_spec_logprob_name(s))) &&
             put(o, "pack_ids", json_boolean(s->pack_ids));
    if (ok && s->pack_ids)
        ok = put(o, "id_bits", json_integer(td_capture_id_bits(s)));
    if (ok && !td_capture_has_sets(m))
        ok = put(o, "dense_dtype", json_string(td_dtype_name(s->dense_dtype)));
    if (ok && m == TD_CAPTURE_HIDDEN)
        ok = put(o, "n_hidden", json_integer(s->n_hidden));
    if (!ok) {
        json_decref(o);
        return NULL;
    }
    return o;
}

char *td_spec_text(const td_capture_spec *s) {
    json_t *o = td_spec_json(s);
    /* 15 digits carry every decimal a person writes and survive a round trip through a double. */
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(15)) : NULL;
    json_decref(o);
    return text;
}

static bool get_int(const json_t *o, const char *key, int64_t min, int64_t max, int32_t *out) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
        return false;
    *out = (int32_t)json_integer_value(v);
    return true;
}

static bool get_real(const json_t *o, const char *key, double *out) {
    const json_t *v = json_object_get(o, key);
    *out = json_number_value(v);
    return json_is_number(v);
}

static bool get_bool(const json_t *o, const char *key, bool *out) {
    const json_t *v = json_object_get(o, key);
    *out = json_is_true(v);
    return json_is_boolean(v);
}

static bool get_dtype(const json_t *o, const char *key, td_dtype *out) {
    const char *name = json_string_value(json_object_get(o, key));
    for (int t = TD_F32; name && t <= TD_F16; t++)
        if (strcmp(name, td_dtype_name((td_dtype)t)) == 0) {
            *out = (td_dtype)t;
            return true;
        }
    return false;
}

static bool get_lists(const json_t *o, td_capture_spec *s) {
    const json_t *temps = json_object_get(o, "temperatures"),
                 *always = json_object_get(o, "always_ids");
    if (!json_is_array(temps) || json_array_size(temps) > TD_MAX_TEMPERATURES ||
        !json_is_array(always) || json_array_size(always) > TD_MAX_ALWAYS_IDS)
        return false;
    s->n_temperatures = (int32_t)json_array_size(temps);
    s->n_always = (int32_t)json_array_size(always);
    for (int32_t i = 0; i < s->n_temperatures; i++) {
        const json_t *v = json_array_get(temps, (size_t)i);
        if (!json_is_number(v) || !(json_number_value(v) > 0))
            return false;
        s->temperatures[i] = json_number_value(v);
    }
    for (int32_t i = 0; i < s->n_always; i++) {
        const json_t *v = json_array_get(always, (size_t)i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= s->n_vocab)
            return false;
        s->always_ids[i] = (int32_t)json_integer_value(v);
    }
    return true;
}

static bool parse(const json_t *o, td_capture_spec *s) {
    if (!td_capture_mode_find(json_string_value(json_object_get(o, "mode")), &s->mode) ||
        !get_int(o, "n_vocab", 1, INT32_MAX, &s->n_vocab))
        return false;
    td_capture_mode m = s->mode;
    s->logprob_dtype = TD_F32;
    s->n_valid = s->n_vocab;
    if (m == TD_CAPTURE_HIDDEN)
        return get_dtype(o, "dense_dtype", &s->dense_dtype) &&
               get_int(o, "n_hidden", 1, INT32_MAX, &s->n_hidden);
    if (!get_int(o, "n_valid_vocab", 1, s->n_vocab, &s->n_valid) || !get_lists(o, s))
        return false;
    if (m == TD_CAPTURE_FULL)
        return get_dtype(o, "dense_dtype", &s->dense_dtype);
    for (size_t i = 0; i < TD_ARRAY_LEN(td_capture_params); i++) {
        const td_capture_param *p = &td_capture_params[i];
        void *field = (char *)s + p->field;
        if (p->used_by(m) &&
            !(p->is_real ? get_real(o, p->name, field) : get_int(o, p->name, 1, p->max, field)))
            return false;
    }
    if (!td_capture_spec_fits(s))
        return false;
    const char *dtype = json_string_value(json_object_get(o, "logprob_dtype"));
    s->q8 = dtype && strcmp(dtype, "q8") == 0;
    if (!s->q8 &&
        (!get_dtype(o, "logprob_dtype", &s->logprob_dtype) || s->logprob_dtype == TD_BF16))
        return false;
    return get_bool(o, "pack_ids", &s->pack_ids);
}

td_status td_spec_parse(const json_t *o, const char *path, td_status code, td_capture_spec *out,
                        td_error *err) {
    td_capture_spec s = {0};
    char *given = json_is_object(o)
                      ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(15))
                      : NULL;
    char *again = given && parse(o, &s) ? td_spec_text(&s) : NULL;
    bool ok = again && strcmp(given, again) == 0;
    free(given);
    free(again);
    if (!ok)
        return td_error_set(err, code, "%s: \"capture\" is not of a form that this version writes",
                            path);
    *out = s;
    return TD_OK;
}
