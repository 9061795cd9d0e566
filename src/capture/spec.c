/* spec.c - the table of capture modes, and settings to spec. */
#include "capture/spec.h"

#include <string.h>
#include "base/memory.h"

static const char *const NAMES[TD_CAPTURE_MODE_COUNT] = {
#define X(id, name) [TD_CAPTURE_##id] = name,
    TD_CAPTURE_MODES(X)
#undef X
};

static const td_capture_mode_info MODES[TD_CAPTURE_MODE_COUNT] = {
    [TD_CAPTURE_TOPK] = {.topk = true, .topk_rows = true, .stats = true},
    [TD_CAPTURE_TOPP] = {.topk = true, .ragged = true, .stats = true},
    [TD_CAPTURE_SAMPLE] = {.draws = true, .ragged = true, .stats = true},
    [TD_CAPTURE_TOPK_SAMPLE] =
        {.topk = true, .topk_rows = true, .draws = true, .ragged = true, .stats = true},
    [TD_CAPTURE_FULL] = {.dense = true, .stats = true},
    [TD_CAPTURE_HIDDEN] = {.dense = true},
};

const char *td_capture_mode_name(td_capture_mode m) {
    return NAMES[m];
}

const td_capture_mode_info *td_capture_mode_of(td_capture_mode m) {
    return &MODES[m];
}

bool td_capture_mode_find(const char *name, td_capture_mode *out) {
    for (int m = 0; name && m < TD_CAPTURE_MODE_COUNT; m++)
        if (strcmp(name, NAMES[m]) == 0) {
            *out = (td_capture_mode)m;
            return true;
        }
    return false;
}

#define PARAM(name_, used_by_, is_real_, max_)                                                     \
    {                                                                                              \
#name_, used_by_, is_real_, max_, offsetof(td_capture_settings, name_),                    \
            offsetof(td_capture_spec, name_)                                                       \
    }
const td_capture_param td_capture_params[TD_CAPTURE_N_PARAMS] = {
    PARAM(top_k, td_capture_has_topk, false, TD_MAX_TOP_K),
    PARAM(top_p, td_capture_has_topp, true, 0),
    PARAM(min_k, td_capture_has_topp, false, TD_MAX_TOP_K),
    PARAM(n_draws, td_capture_has_draws, false, TD_MAX_DRAWS),
    PARAM(proposal_power, td_capture_has_draws, true, 0),
};

bool td_capture_spec_fits(const td_capture_spec *s) {
    return s->top_k <= s->n_vocab && s->min_k <= s->top_k;
}

static td_status check(const td_capture_settings *set, const td_capture_teacher *t, td_error *err) {
    int32_t highest = -1;
    for (int32_t i = 0; td_capture_has_stats(set->mode) && i < set->n_always; i++)
        highest = TD_MAX(highest, set->always_ids[i]);
    if (highest >= t->n_vocab)
        return td_error_set(err, TD_E_CONFIG,
                            "capture.always_ids names id %d, but the vocabulary of %s has ids 0 to "
                            "%d",
                            highest, t->name, t->n_vocab - 1);
    if (td_capture_has_topk(set->mode) && set->top_k > t->n_vocab)
        return td_error_set(err, TD_E_CONFIG,
                            "capture.top_k = %d, but the vocabulary of %s has %d tokens; set "
                            "capture.top_k = %d or less",
                            set->top_k, t->name, t->n_vocab, t->n_vocab);
    return TD_OK;
}

td_status td_capture_resolve(const td_capture_settings *set, const td_capture_teacher *t,
                             uint64_t seed, td_capture_spec *out, td_error *err) {
    td_status rc = check(set, t, err);
    if (rc != TD_OK)
        return rc;
    const td_capture_mode_info *m = td_capture_mode_of(set->mode);
    td_capture_spec s = {
        .mode = set->mode, .n_vocab = t->n_vocab, .n_valid = t->n_vocab, .logprob_dtype = TD_F32};
    if (m->stats) {
        if (t->n_valid > 0)
            s.n_valid = TD_MIN(t->n_valid, t->n_vocab);
        s.n_temperatures = set->n_temperatures;
        memcpy(s.temperatures, set->temperatures, sizeof s.temperatures);
        s.n_always = set->n_always;
        memcpy(s.always_ids, set->always_ids, sizeof s.always_ids);
    } else {
        s.n_hidden = t->n_hidden;
    }
    if (m->dense)
        s.dense_dtype = set->dense_dtype;
    for (size_t i = 0; i < TD_ARRAY_LEN(td_capture_params); i++) {
        const td_capture_param *p = &td_capture_params[i];
        if (p->used_by(set->mode))
            memcpy((char *)&s + p->field, (const char *)set + p->setting,
                   p->is_real ? sizeof(double) : sizeof(int32_t));
    }
    s.min_k = TD_MIN(s.min_k, s.top_k);
    if (m->draws)
        s.seed = seed;
    if (td_capture_has_sets(set->mode)) {
        s.pack_ids = set->pack_ids;
        s.q8 = set->quantise_logprobs;
        s.logprob_dtype = s.q8 ? TD_F32 : set->logprob_dtype;
    }
    *out = s;
    return TD_OK;
}

int32_t td_capture_max_entries(const td_capture_spec *s) {
    return s->mode == TD_CAPTURE_TOPP      ? s->top_k
           : td_capture_has_draws(s->mode) ? TD_MIN(s->n_draws, s->n_vocab)
                                           : 0;
}

bool td_capture_has_proposal(const td_capture_spec *s) {
    /* Devices take the power as f32: what is 1 there draws from the teacher itself. */
    return td_capture_has_draws(s->mode) && (float)s->proposal_power != 1.0f;
}

int32_t td_capture_id_bits(const td_capture_spec *s) {
    int32_t b = 1;
    while (b < 31 && INT32_C(1) << b <= s->n_vocab) /* 2^b - 1 >= V leaves all ones free */
        b++;
    return b;
}

int32_t td_capture_dense_width(const td_capture_spec *s) {
    return s->mode == TD_CAPTURE_FULL ? s->n_vocab : s->mode == TD_CAPTURE_HIDDEN ? s->n_hidden : 0;
}

uint64_t td_capture_dense_bytes(const td_capture_spec *s) {
    return (uint64_t)td_capture_dense_width(s) * td_dtype_size(s->dense_dtype);
}
