/* hf_rope.c - the rotary parameters of a config.json, in both of their spellings.
 *
 * transformers 4: "rope_scaling" beside "rope_theta" and "partial_rotary_factor". transformers 5:
 * all within "rope_parameters", where Gemma 3 nests one object per layer type. Where a file has
 * both, the old one wins, as it does there.
 */
#include "model/hf_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"

static const double max_theta = 1e15;

/* An object of rope parameters, its place for messages, and what holds when a key is absent. */
typedef struct rope_source {
    const json_t *obj; /* NULL: none, all default */
    const char *where;
    int32_t max_positions;
    int32_t head_dim; /* D of the layers that turn by it */
    int64_t original; /* of a top-level key, which wins; 0 = none */
    bool longrope_only;
    td_error *err;
} rope_source;

static td_status real(const rope_source *s, const char *key, double min, double max, double *out) {
    return td_json_opt_real(s->obj, key, min, max, s->where, TD_E_MODEL, out, s->err);
}

/* The factor: required, or for some types the ratio of the context lengths. */
static td_status read_factor(const rope_source *s, double otherwise, td_rope *r) {
    if (otherwise > 0 && !td_json_has(s->obj, "factor")) {
        r->factor = otherwise;
        return TD_OK;
    }
    return td_json_get_real(s->obj, "factor", 1e-6, 1e6, s->where, TD_E_MODEL, &r->factor, s->err);
}

static td_status read_original(const rope_source *s, td_rope *r) {
    int64_t n = s->max_positions;
    td_status rc = td_json_opt_int(s->obj, "original_max_position_embeddings", 1, 1 << 30, s->where,
                                   TD_E_MODEL, &n, s->err);
    r->original_positions = (int32_t)(s->original ? s->original : n);
    return rc;
}

static td_status read_llama3(const rope_source *s, td_rope *r) {
    td_status rc;
    if ((rc = read_factor(s, 0, r)) != TD_OK || (rc = read_original(s, r)) != TD_OK ||
        (rc = td_json_get_real(s->obj, "low_freq_factor", 1e-6, 1e6, s->where, TD_E_MODEL,
                               &r->low_freq, s->err)) != TD_OK ||
        (rc = td_json_get_real(s->obj, "high_freq_factor", 1e-6, 1e6, s->where, TD_E_MODEL,
                               &r->high_freq, s->err)) != TD_OK)
        return rc;
    if (r->high_freq <= r->low_freq)
        return td_error_set(s->err, TD_E_MODEL,
                            "%s: high_freq_factor (%g) must be above low_freq_factor (%g)",
                            s->where, r->high_freq, r->low_freq);
    return TD_OK;
}

static double mscale_of(double scale, double mscale) {
    return scale <= 1 ? 1.0 : 0.1 * mscale * log(scale) + 1.0;
}

static td_status read_yarn(const rope_source *s, td_rope *r) {
    double mscale = 0, all_dim = 0;
    td_status rc;
    r->truncate = true;
    if ((rc = read_original(s, r)) != TD_OK ||
        (rc = read_factor(s, (double)s->max_positions / r->original_positions, r)) != TD_OK ||
        (rc = real(s, "mscale", 0, 1e6, &mscale)) != TD_OK ||
        (rc = real(s, "mscale_all_dim", 0, 1e6, &all_dim)) != TD_OK ||
        (rc = real(s, "beta_fast", 0, 1e6, &r->beta_fast)) != TD_OK ||
        (rc = real(s, "beta_slow", 0, 1e6, &r->beta_slow)) != TD_OK ||
        (rc = td_json_opt_bool(s->obj, "truncate", s->where, TD_E_MODEL, &r->truncate, s->err)) !=
            TD_OK)
        return rc;
    if (r->beta_fast <= 0)
        r->beta_fast = 32;
    if (r->beta_slow <= 0)
        r->beta_slow = 1;
    r->attention_factor = mscale > 0 && all_dim > 0
                              ? mscale_of(r->factor, mscale) / mscale_of(r->factor, all_dim)
                              : mscale_of(r->factor, 1);
    return real(s, "attention_factor", 1e-6, 1e6, &r->attention_factor);
}

static td_status read_factor_list(const rope_source *s, const char *key, int32_t n_pairs,
                                  float *out) {
    const json_t *list = json_object_get(s->obj, key);
    if (!json_is_array(list) || json_array_size(list) != (size_t)n_pairs)
        return td_error_set(s->err, TD_E_MODEL,
                            "%s: \"%s\" must be a list of %d numbers, half of the rotary "
                            "dimension",
                            s->where, key, n_pairs);
    for (int32_t i = 0; i < n_pairs; i++) {
        double v = json_number_value(json_array_get(list, (size_t)i));
        if (!(v >= 1e-6 && v <= 1e9))
            return td_error_set(s->err, TD_E_MODEL,
                                "%s: entry %d of \"%s\" must be a number above 0", s->where, i,
                                key);
        out[i] = (float)v;
    }
    return TD_OK;
}

static td_status read_longrope(const rope_source *s, int32_t n_pairs, td_rope *r) {
    td_status rc;
    if ((rc = read_original(s, r)) != TD_OK ||
        (rc = read_factor(s, (double)s->max_positions / r->original_positions, r)) != TD_OK ||
        (rc = read_factor_list(s, "short_factor", n_pairs, r->short_factor)) != TD_OK ||
        (rc = read_factor_list(s, "long_factor", n_pairs, r->long_factor)) != TD_OK)
        return rc;
    if (r->factor > 1 && r->original_positions > 1)
        r->attention_factor = sqrt(1 + log(r->factor) / log(r->original_positions));
    return real(s, "attention_factor", 1e-6, 1e6, &r->attention_factor);
}

static td_status read_type(const rope_source *s, int32_t n_pairs, td_rope *r) {
    const char *type = "default";
    td_status rc;
    if (!s->obj)
        return TD_OK;
    if ((rc = td_json_opt_str(s->obj, "type", s->where, TD_E_MODEL, &type, s->err)) != TD_OK ||
        (rc = td_json_opt_str(s->obj, "rope_type", s->where, TD_E_MODEL, &type, s->err)) != TD_OK)
        return rc;
    if (s->longrope_only && (!strcmp(type, "su") || !strcmp(type, "yarn")))
        type = "longrope";
    if (!strcmp(type, "default"))
        return TD_OK;
    if (!strcmp(type, "longrope")) {
        r->type = TD_ROPE_LONGROPE;
        return read_longrope(s, n_pairs, r);
    }
    if (s->longrope_only)
        return td_error_set(s->err, TD_E_MODEL,
                            "%s: the rope type \"%.64s\" is not supported in this architecture; "
                            "default and longrope are",
                            s->where, type);
    if (!strcmp(type, "linear") || !strcmp(type, "dynamic")) {
        r->type = type[0] == 'l' ? TD_ROPE_LINEAR : TD_ROPE_DYNAMIC;
        return read_factor(s, 0, r);
    }
    if (!strcmp(type, "llama3")) {
        r->type = TD_ROPE_LLAMA3;
        return read_llama3(s, r);
    }
    if (!strcmp(type, "yarn")) {
        r->type = TD_ROPE_YARN;
        return read_yarn(s, r);
    }
    return td_error_set(s->err, TD_E_MODEL,
                        "%s: the rope type \"%.64s\" is not supported; default, linear, dynamic, "
                        "llama3, yarn and longrope are",
                        s->where, type);
}

/* One table from the object `s->obj`; `theta` and `partial` hold when it has no such keys. */
static td_status read_table(const rope_source *s, const td_family *f, double theta, double partial,
                            td_rope *r) {
    td_status rc = TD_OK;
    *r = (td_rope){.theta = theta, .factor = 1, .attention_factor = 1};
    if (s->obj && ((rc = real(s, "rope_theta", 1, max_theta, &r->theta)) != TD_OK ||
                   (rc = real(s, "partial_rotary_factor", 0, 1, &partial)) != TD_OK))
        return rc;
    if (partial != 1.0 && !f->partial_rotary)
        return td_error_set(s->err, TD_E_MODEL,
                            "%s: partial_rotary_factor %g is not supported in %s, only 1 is",
                            s->where, partial, f->architecture);
    r->rotary_dim = (int32_t)(s->head_dim * partial);
    if (r->rotary_dim < 2 || r->rotary_dim % 2)
        return td_error_set(s->err, TD_E_MODEL,
                            "%s: the rotary dimension (%g of head_dim %d) is %d, but it must be "
                            "even and at least 2",
                            s->where, partial, s->head_dim, r->rotary_dim);
    return read_type(s, r->rotary_dim / 2, r);
}

static bool is_nested(const json_t *obj) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)obj, key, v) {
        if (json_is_object(v))
            return true;
    }
    return false;
}

/* Gemma 3: table 0 for full layers, table 1 for sliding ones. */
static td_status read_by_window(const td_config_reader *r, const td_family *f, rope_source *s,
                                const json_t *obj, bool is_old, double theta, td_model_config *c) {
    double local = 10000;
    const json_t *full = NULL, *sliding = NULL;
    td_status rc = td_json_opt_real(r->root, "rope_local_base_freq", 1, max_theta, r->path,
                                    TD_E_MODEL, &local, r->err);
    if (rc != TD_OK)
        return rc;
    if (obj && is_old) {
        full = obj;
    } else if (obj) {
        full = json_object_get(obj, "full_attention");
        sliding = json_object_get(obj, "sliding_attention");
        if (!json_is_object(full) && !json_is_object(sliding))
            return td_error_set(r->err, TD_E_MODEL,
                                "%s must hold one object each for full_attention and "
                                "sliding_attention in %s",
                                s->where, f->architecture);
    }
    s->obj = json_is_object(full) ? full : NULL;
    if ((rc = read_table(s, f, theta, 1, &c->rope[0])) != TD_OK)
        return rc;
    s->obj = json_is_object(sliding) ? sliding : NULL;
    if ((rc = read_table(s, f, local, 1, &c->rope[1])) != TD_OK)
        return rc;
    /* transformers looks for "truncate" outside of the nested parameters and never finds it. */
    for (int i = 0; i < 2; i++)
        if (c->rope[i].type == TD_ROPE_YARN && !c->rope[i].truncate)
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: \"truncate\" false is not supported in %s, whose code in "
                                "transformers ignores it; take it out",
                                s->where, f->architecture);
    c->n_ropes = 2;
    for (int32_t i = 0; i < c->n_layers; i++) {
        td_attention *a = &c->layers[i].mixer.attention;
        a->rope = a->window > 0;
    }
    return TD_OK;
}

static td_status read_tables(const td_config_reader *r, const td_family *f, rope_source *s,
                             const json_t *obj, bool is_old, td_model_config *c) {
    double theta = f->default_theta > 0 ? f->default_theta : 10000;
    double partial = f->default_partial > 0 ? f->default_partial : 1;
    const char *theta_key = f->key_theta ? f->key_theta : "rope_theta";
    const char *partial_key = f->key_partial ? f->key_partial : "partial_rotary_factor";
    td_status rc;
    if ((rc = td_json_opt_real(r->root, theta_key, 1, max_theta, r->path, TD_E_MODEL, &theta,
                               r->err)) != TD_OK ||
        (rc = td_json_opt_real(r->root, partial_key, 0, 1, r->path, TD_E_MODEL, &partial,
                               r->err)) != TD_OK ||
        (rc = td_json_opt_int(r->root, "original_max_position_embeddings", 1, 1 << 30, r->path,
                              TD_E_MODEL, &s->original, r->err)) != TD_OK)
        return rc;
    if (f->longrope_only && !s->original)
        s->original = 4096;
    if (f->rope == TD_ROPE_RULE_BY_WINDOW) {
        /* transformers reads the top-level key for parameters that are not nested alone. */
        s->original = 0;
        if (obj && is_old && td_json_has(r->root, "rope_parameters"))
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: rope_scaling and rope_parameters are both there; put the "
                                "scaling into rope_parameters.full_attention and take rope_scaling "
                                "out",
                                r->path);
        if (obj && is_old && is_nested(obj))
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: parameters per layer type belong into rope_parameters",
                                s->where);
        /* "type" alone is honoured by transformers 4 and ignored by 5. */
        if (obj && is_old && !td_json_has(obj, "rope_type"))
            return td_error_set(
                r->err, TD_E_MODEL,
                "%s: \"rope_type\" is missing; versions of transformers disagree on "
                "what that means in %s",
                s->where, f->architecture);
        return read_by_window(r, f, s, obj, is_old, theta, c);
    }
    if (obj && is_nested(obj))
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: parameters per layer type are not supported in %s", s->where,
                            f->architecture);
    s->obj = obj;
    c->n_ropes = 1;
    return read_table(s, f, theta, partial, &c->rope[0]);
}

/* SmolLM3: "no_rope_layers" holds 1 for a layer with rope; without it, every
 * no_rope_layer_interval-th layer has none. */
static td_status read_listed(const td_config_reader *r, td_model_config *c) {
    int32_t interval = 4;
    td_status rc = td_config_opt_i32(r, "no_rope_layer_interval", 1, INT32_MAX, &interval);
    if (rc != TD_OK)
        return rc;
    const json_t *list = json_object_get(r->root, "no_rope_layers");
    bool has_list = td_json_has(r->root, "no_rope_layers");
    if (has_list && (!json_is_array(list) || json_array_size(list) != (size_t)c->n_layers))
        return td_error_set(r->err, TD_E_MODEL,
                            "%s: \"no_rope_layers\" must be a list of %d numbers, one per layer",
                            r->path, c->n_layers);
    for (int32_t i = 0; i < c->n_layers; i++) {
        bool rope = (i + 1) % interval != 0;
        if (has_list) {
            const json_t *v = json_array_get(list, (size_t)i);
            if (!json_is_integer(v) && !json_is_boolean(v))
                return td_error_set(r->err, TD_E_MODEL,
                                    "%s: entry %d of \"no_rope_layers\" must be 0 or 1", r->path,
                                    i);
            rope = json_is_true(v) || json_integer_value(v) != 0;
        }
        c->layers[i].mixer.attention.rope = rope ? 0 : -1;
    }
    return TD_OK;
}

td_status td_config_read_rope_layers(const td_config_reader *r, const td_family *f,
                                     td_model_config *c) {
    for (int32_t i = 0; i < c->n_layers; i++)
        c->layers[i].mixer.attention.rope = f->rope == TD_ROPE_RULE_NONE ? -1 : 0;
    return f->rope == TD_ROPE_RULE_LISTED ? read_listed(r, c) : TD_OK;
}

td_status td_config_read_rope(const td_config_reader *r, const td_family *f, td_model_config *c) {
    if (f->rope == TD_ROPE_RULE_NONE)
        return TD_OK;
    /* An empty object is as good as none, and rope_scaling wins where both are there. */
    const json_t *old = json_object_get(r->root, "rope_scaling");
    bool is_old = td_json_has(r->root, "rope_scaling") &&
                  !(json_is_object(old) && json_object_size(old) == 0);
    const char *key = is_old ? "rope_scaling" : "rope_parameters";
    const json_t *obj = td_json_has(r->root, key) ? json_object_get(r->root, key) : NULL;
    char *where = td_asprintf("%s%s%s", r->path, obj ? ": " : "", obj ? key : "");
    if (!where)
        return td_error_nomem(r->err, "rope parameters", strlen(r->path));
    td_status rc;
    if (obj && !json_is_object(obj))
        rc = td_error_set(r->err, TD_E_MODEL, "%s must be an object, but is %s", where,
                          td_json_type_name(obj));
    else
        rc = read_tables(r, f,
                         &(rope_source){.where = where,
                                        .max_positions = c->max_positions,
                                        .head_dim = c->layers[0].mixer.attention.head_dim,
                                        .longrope_only = f->longrope_only,
                                        .err = r->err},
                         obj, is_old, c);
    free(where);
    return rc;
}
