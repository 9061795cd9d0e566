/* hf_reader.c - see hf_reader.h. */
#include "model/hf_reader.h"

#include "base/json.h"

td_status td_config_i32(const td_config_reader *r, const char *key, int32_t min, int32_t max,
                        int32_t *out) {
    int64_t v;
    td_status rc = td_json_get_int(r->root, key, min, max, r->path, TD_E_MODEL, &v, r->err);
    if (rc == TD_OK)
        *out = (int32_t)v;
    return rc;
}

td_status td_config_opt_i32(const td_config_reader *r, const char *key, int32_t min, int32_t max,
                            int32_t *out) {
    return td_json_has(r->root, key) ? td_config_i32(r, key, min, max, out) : TD_OK;
}

td_status td_config_opt_bool(const td_config_reader *r, const char *key, bool *out) {
    return td_json_opt_bool(r->root, key, r->path, TD_E_MODEL, out, r->err);
}

td_status td_config_opt_float(const td_config_reader *r, const char *key, double min, double max,
                              float *out) {
    double v = *out;
    td_status rc = td_json_opt_real(r->root, key, min, max, r->path, TD_E_MODEL, &v, r->err);
    if (rc == TD_OK)
        *out = (float)v;
    return rc;
}

td_status td_config_refuse(const td_config_reader *r, const char *what, const char *value,
                           const char *instead) {
    return td_error_set(r->err, TD_E_MODEL, "%s: %s \"%.64s\" is not supported; %s", r->path, what,
                        value, instead);
}

td_status td_config_refuse_true(const td_config_reader *r, const char *key) {
    bool v = false;
    td_status rc = td_config_opt_bool(r, key, &v);
    if (rc != TD_OK || !v)
        return rc;
    return td_error_set(r->err, TD_E_MODEL, "%s: \"%s\" is true, which is not supported", r->path,
                        key);
}
