/* config.c - run.ini and the command line into one validated td_config.
 *
 * Order: defaults (from the table, by the same parser), the file, the overrides, then the checks
 * that look at more than one key. Those know where each key came from, and name the place.
 */
#include "config/config.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/keys.h"
#include "base/log.h"
#include "base/memory.h"

/* td_config_set_value stores every enum as an int. */
_Static_assert(sizeof(td_compute) == sizeof(int) && sizeof(td_data_format) == sizeof(int) &&
                   sizeof(td_text_unit) == sizeof(int) && sizeof(td_overflow) == sizeof(int) &&
                   sizeof(td_on_bad_sample) == sizeof(int) &&
                   sizeof(td_capture_mode) == sizeof(int) && sizeof(td_dtype) == sizeof(int),
               "enums of td_config have the size of int");

/* ---- overrides ---- */

static void trim(char **s) {
    while (isspace((unsigned char)**s))
        (*s)++;
    char *end = *s + strlen(*s);
    while (end > *s && isspace((unsigned char)end[-1]))
        *--end = '\0';
}

/* Takes `copy` of an override apart; it ends up modified. */
static td_status apply_override(td_config_load_state *st, char *copy, int32_t number,
                                td_error *err) {
    char *equals = strchr(copy, '=');
    if (!equals)
        return td_error_set(err, TD_E_CONFIG,
                            "expected section.key=value, such as capture.top_k=32");
    char *value = equals + 1;
    *equals = '\0';
    trim(&copy);
    char *dot = strchr(copy, '.');
    if (!dot) {
        int k = td_config_key_index(NULL, copy);
        if (k >= 0)
            return td_error_set(err, TD_E_CONFIG,
                                "expected section.key=value; did you mean %s.%s=...?",
                                td_config_keys[k].section, td_config_keys[k].name);
        return td_error_set(err, TD_E_CONFIG,
                            "expected section.key=value, such as capture.top_k=32");
    }
    *dot = '\0';
    const char *section = copy, *name = dot + 1;
    bool known = false;
    for (size_t i = 0; i < TD_ARRAY_LEN(td_config_sections); i++)
        known = known || !strcmp(section, td_config_sections[i]);
    if (!known)
        return td_config_unknown_section(section, err);
    int k = td_config_key_index(section, name);
    if (k < 0)
        return td_config_unknown_key(section, name, err);
    if (td_config_keys[k].type != TD_KEY_ESCAPED) /* there blanks at the ends count */
        trim(&value);
    td_status rc = td_config_set_value(&st->cfg, &td_config_keys[k], value, err);
    if (rc == TD_OK)
        rc = td_config_keep(st, k, value, err);
    if (rc == TD_OK)
        st->origin[k].override = number + 1;
    return rc;
}

/* ---- checks across keys ---- */

static bool given(const td_config_load_state *st, int k) {
    return st->origin[k].line || st->origin[k].override;
}

/* "run.ini:12: [data] mask_field", "command line 'data.mask_field=m': [data] mask_field". */
static const char *place(const td_config_load_state *st, int k, char *buf, size_t buf_size) {
    const td_config_key *key = &td_config_keys[k];
    if (st->origin[k].override)
        snprintf(buf, buf_size, "command line '%.120s': [%s] %s",
                 st->overrides[st->origin[k].override - 1], key->section, key->name);
    else if (st->origin[k].line)
        snprintf(buf, buf_size, "%.200s:%d: [%s] %s", st->cfg.file, (int)st->origin[k].line,
                 key->section, key->name);
    else
        snprintf(buf, buf_size, "%.200s: [%s] %s", st->cfg.file, key->section, key->name);
    return buf;
}

static td_status refuse(const td_config_load_state *st, int k, const char *text, td_error *err) {
    char where[400];
    return td_error_set(err, TD_E_CONFIG, "%s %s", place(st, k, where, sizeof where), text);
}

static void note(const td_config_load_state *st, int k, const char *text) {
    char where[400];
    td_log_warn("%s %s", place(st, k, where, sizeof where), text);
}

void td_config_say_where(const td_config_load_state *st, int k, td_error *err) {
    char where[400];
    td_error_prefix(err, "%s", place(st, k, where, sizeof where));
}

#define KEY(section, name) td_config_key_index(section, name)

static td_status check_required(const td_config_load_state *st, td_error *err) {
    for (int k = 0; k < td_config_n_keys; k++) {
        const td_config_key *key = &td_config_keys[k];
        if (key->def || strcmp(key->def_text, "required") || given(st, k))
            continue;
        return td_error_set(err, TD_E_CONFIG,
                            "%s: [%s] %s is missing; set it there, or give %s.%s=... on the "
                            "command line (%s)",
                            st->cfg.file, key->section, key->name, key->section, key->name,
                            key->doc);
    }
    return TD_OK;
}

/* The three ways to name what a row is made of, and what belongs to each. */
static td_status check_row_fields(const td_config_load_state *st, td_error *err) {
    const td_config *c = &st->cfg;
    int text = KEY("data", "text_field"), prompt = KEY("data", "prompt_field"),
        completion = KEY("data", "completion_field"), ids = KEY("data", "ids_field"),
        mask = KEY("data", "mask_field");

    if (given(st, ids)) {
        static const char *const other[] = {"text_field", "prompt_field", "completion_field"};
        for (size_t i = 0; i < TD_ARRAY_LEN(other); i++)
            if (given(st, KEY("data", other[i])))
                return refuse(st, KEY("data", other[i]),
                              "contradicts [data] ids_field: a row is either token ids or text; "
                              "remove one of the two",
                              err);
    }
    if (given(st, mask) && !given(st, ids))
        return refuse(st, mask,
                      "needs [data] ids_field: the mask has one entry per token id of the row",
                      err);
    if (given(st, prompt) && !given(st, completion))
        return refuse(st, prompt, "needs [data] completion_field too", err);
    if (given(st, completion) && !given(st, prompt))
        return refuse(st, completion,
                      "needs [data] prompt_field too (for text without a prompt use text_field)",
                      err);
    if (given(st, prompt) && given(st, text))
        return refuse(st, text,
                      "contradicts [data] prompt_field: a row is either one text or a prompt and "
                      "its completion; remove one of the two",
                      err);
    if (c->data.separator && *c->data.separator && !given(st, prompt))
        return refuse(st, KEY("data", "separator"),
                      "needs [data] prompt_field and completion_field: it stands between them",
                      err);
    bool tokenised = given(st, ids) || !td_data_format_serves(c->data.format, TD_DATA_TEXT);
    if (tokenised && given(st, KEY("data", "add_special_tokens")))
        note(st, KEY("data", "add_special_tokens"),
             "has no effect: the rows are already tokenised");
    return TD_OK;
}

static td_status check_format(const td_config_load_state *st, td_error *err) {
    static const char *const jsonl_only[] = {"prompt_field", "completion_field", "ids_field",
                                             "mask_field", "id_field"};
    const td_config *c = &st->cfg;
    int unit = KEY("data", "text_unit"), text = KEY("data", "text_field");
    char why[160];

    if (!td_data_format_serves(c->data.format, TD_DATA_FIELDS)) {
        snprintf(why, sizeof why,
                 "contradicts [data] format = %s: only the objects of format = jsonl have fields",
                 td_data_format_name(c->data.format));
        for (size_t i = 0; i < TD_ARRAY_LEN(jsonl_only); i++)
            if (given(st, KEY("data", jsonl_only[i])))
                return refuse(st, KEY("data", jsonl_only[i]), why, err);
        if (given(st, text)) {
            snprintf(why, sizeof why, "has no effect with [data] format = %s",
                     td_data_format_name(c->data.format));
            note(st, text, why);
        }
    }
    if (given(st, unit) && !td_data_format_serves(c->data.format, TD_DATA_TEXT_UNIT)) {
        snprintf(why, sizeof why, "contradicts [data] format = %s: it is for format = text",
                 td_data_format_name(c->data.format));
        return refuse(st, unit, why, err);
    }
    return TD_OK;
}

static td_status check_devices(const td_config_load_state *st, td_error *err) {
    const td_config *c = &st->cfg;
    char misfit[400];
    if (!td_config_groups_fit(c, misfit, sizeof misfit))
        return refuse(st, KEY("devices", "groups"), misfit, err);
    const int lists[] = {KEY("devices", "cpu_speeds"), KEY("devices", "cpu_threads")};
    const int32_t n_listed[] = {c->devices.n_cpu_speeds, c->devices.n_cpu_threads};
    for (size_t i = 0; i < TD_ARRAY_LEN(lists); i++) {
        char why[160];
        if (!given(st, lists[i]))
            continue;
        if (c->devices.gpus_kind != TD_GPUS_CPU)
            return refuse(st, lists[i], "needs [devices] gpus = cpu*N: it is for CPU devices", err);
        snprintf(why, sizeof why, "lists %d devices, but [devices] gpus = cpu*%d has %d",
                 (int)n_listed[i], (int)c->devices.n_gpus, (int)c->devices.n_gpus);
        if (n_listed[i] != c->devices.n_gpus)
            return refuse(st, lists[i], why, err);
    }
    if (c->devices.n_groups > 0 && given(st, KEY("devices", "gpus_per_model")))
        note(st, KEY("devices", "gpus_per_model"), "has no effect: [devices] groups wins");
    return TD_OK;
}

static td_status check_workers(const td_config_load_state *st, td_error *err) {
    const td_config *c = &st->cfg;
    char why[160];
    if (c->run.worker_id < c->run.total_workers)
        return TD_OK;
    snprintf(why, sizeof why,
             "is %d, but with total_workers = %d workers are numbered from 0 to %d",
             (int)c->run.worker_id, (int)c->run.total_workers, (int)c->run.total_workers - 1);
    int k = KEY("run", "worker_id");
    return refuse(st, given(st, k) ? k : KEY("run", "total_workers"), why, err);
}

static void note_unused(const td_config_load_state *st, const char *section, const char *name,
                        bool (*used_by)(td_capture_mode m)) {
    char why[160];
    int k = td_config_key_index(section, name);
    if (!given(st, k) || used_by(st->cfg.capture.mode))
        return;
    snprintf(why, sizeof why, "has no effect with [capture] mode = %s%s",
             td_capture_mode_name(st->cfg.capture.mode),
             !strcmp(name, "seed") ? ", which draws nothing" : "");
    note(st, k, why);
}

/* What each mode does not use is noted; what it cannot honour is refused. */
static td_status check_capture(const td_config_load_state *st, td_error *err) {
    static const struct {
        const char *section, *name;
        bool (*used_by)(td_capture_mode m);
    } keys[] = {
        {"run", "seed", td_capture_has_draws},
        {"capture", "dense_dtype", td_capture_is_dense},
        {"capture", "logprob_dtype", td_capture_has_sets},
        {"capture", "pack_ids", td_capture_has_sets},
        {"capture", "temperatures", td_capture_has_stats},
        {"capture", "always_ids", td_capture_has_stats},
        {"capture", "mask_padded_vocab", td_capture_has_stats},
    };
    const td_config *c = &st->cfg;
    char why[160];
    for (size_t i = 0; i < TD_ARRAY_LEN(td_capture_params); i++)
        note_unused(st, "capture", td_capture_params[i].name, td_capture_params[i].used_by);
    for (size_t i = 0; i < TD_ARRAY_LEN(keys); i++)
        note_unused(st, keys[i].section, keys[i].name, keys[i].used_by);
    if (td_capture_has_topp(c->capture.mode) && c->capture.min_k > c->capture.top_k) {
        snprintf(why, sizeof why, "is %d, more than [capture] top_k = %d", (int)c->capture.min_k,
                 (int)c->capture.top_k);
        return refuse(st, KEY("capture", "min_k"), why, err);
    }
    return TD_OK;
}

static td_status check_simulate(const td_config_load_state *st, td_error *err) {
    const td_config *c = &st->cfg;
    int lengths = KEY("simulate", "lengths"), n = KEY("simulate", "n_samples");
    char why[200];
    if (given(st, lengths) && !given(st, n))
        return refuse(st, lengths, "needs [simulate] n_samples, the number of samples", err);
    if (given(st, n) && !given(st, lengths))
        return refuse(st, n,
                      "needs [simulate] lengths; with the dataset's own lengths [data] max_samples "
                      "says how many rows",
                      err);
    int32_t longest =
        c->simulate.law == TD_LENGTHS_FIXED ? c->simulate.fixed_length : c->simulate.max_length;
    snprintf(why, sizeof why,
             "has samples of up to %d tokens, but [data] max_length = %d cuts them; set max_length "
             "to %d or more",
             (int)longest, (int)c->data.max_length, (int)longest);
    return longest > c->data.max_length ? refuse(st, lengths, why, err) : TD_OK;
}

static td_status check(td_config_load_state *st, td_error *err) {
    td_config *c = &st->cfg;
    td_status rc = check_required(st, err);
    if (rc == TD_OK)
        rc = check_format(st, err);
    if (rc == TD_OK)
        rc = check_row_fields(st, err);
    if (rc == TD_OK)
        rc = check_devices(st, err);
    if (rc == TD_OK)
        rc = check_workers(st, err);
    if (rc == TD_OK)
        rc = check_simulate(st, err);
    if (rc == TD_OK)
        rc = check_capture(st, err);
    if (rc != TD_OK)
        return rc;

    c->data.append_eos_set = given(st, KEY("data", "append_eos"));
    if (!c->data.append_eos_set)
        c->data.append_eos = c->data.prompt_field != NULL;
    return TD_OK;
}

/* ---- the public functions ---- */

static td_status set_defaults(td_config_load_state *st, td_error *err) {
    for (int k = 0; k < td_config_n_keys; k++) {
        const td_config_key *key = &td_config_keys[k];
        if (!key->def)
            continue;
        td_status rc = td_config_set_value(&st->cfg, key, key->def, err);
        if (rc != TD_OK)
            return td_error_prefix(err, "default of [%s] %s", key->section, key->name);
    }
    return TD_OK;
}

td_status td_config_load(const char *path, const char *const *overrides, size_t n_overrides,
                         td_config *out, td_error *err) {
    td_config_load_state st = {.overrides = overrides};
    td_error local = {0};
    if (!err) /* prefixes need a record to work on */
        err = &local;

    td_status rc = TD_OK;
    st.cfg.file = td_strdup(!path ? "(no file)" : strcmp(path, "-") ? path : "(standard input)");
    if (!st.cfg.file)
        rc = td_error_nomem(err, "a path", path ? strlen(path) : 16);
    if (rc == TD_OK)
        rc = set_defaults(&st, err);
    if (rc == TD_OK && path)
        rc = td_config_read_file(&st, path, err);
    for (size_t i = 0; rc == TD_OK && i < n_overrides; i++) {
        char *copy = td_strdup(overrides[i]);
        rc = copy ? apply_override(&st, copy, (int32_t)i, err)
                  : td_error_nomem(err, "an override", strlen(overrides[i]));
        free(copy);
        if (rc != TD_OK)
            td_error_prefix(err, "command line '%.120s'", overrides[i]);
    }
    if (rc == TD_OK)
        rc = td_config_place_paths(&st, err);
    if (rc == TD_OK)
        rc = check(&st, err);
    if (rc == TD_OK)
        rc = td_config_write_effective(&st, err);
    for (int k = 0; k < td_config_n_keys; k++)
        free(st.given[k]);
    if (rc != TD_OK) {
        td_config_free(&st.cfg);
        return rc;
    }
    *out = st.cfg;
    return TD_OK;
}

void td_config_free(td_config *cfg) {
    if (!cfg)
        return;
    char *const strings[] = {cfg->file,
                             cfg->effective,
                             cfg->model.path,
                             cfg->data.path,
                             cfg->data.text_field,
                             cfg->data.prompt_field,
                             cfg->data.completion_field,
                             cfg->data.separator,
                             cfg->data.ids_field,
                             cfg->data.mask_field,
                             cfg->data.id_field,
                             cfg->devices.inventory,
                             cfg->output.dir,
                             cfg->run.metrics};
    for (size_t i = 0; i < TD_ARRAY_LEN(strings); i++)
        free(strings[i]);
    free(cfg->devices.gpus);
    free(cfg->devices.group_of);
    free(cfg->devices.group_device);
    for (int32_t i = 0; i < cfg->devices.n_names; i++)
        free(cfg->devices.names[i]);
    free(cfg->devices.names);
    free(cfg->devices.cpu_speeds);
    free(cfg->devices.cpu_threads);
    memset(cfg, 0, sizeof *cfg);
}

static const char *choice_name(const char *section, const char *name, int value) {
    int k = td_config_key_index(section, name);
    for (const td_key_choice *c = k >= 0 ? td_config_keys[k].choices : NULL; c && c->name; c++)
        if (c->value == value)
            return c->name;
    return "?";
}

const char *td_compute_name(td_compute c) {
    return choice_name("model", "compute", (int)c);
}

const char *td_data_format_name(td_data_format f) {
    return choice_name("data", "format", (int)f);
}

bool td_data_format_serves(td_data_format f, int keys) {
#define FORMAT_KEYS(name, NAME, served) [TD_FORMAT_##NAME] = (served),
    static const int served[] = {[TD_FORMAT_AUTO] = ~0, TD_DATA_FORMATS(FORMAT_KEYS)};
#undef FORMAT_KEYS
    return (served[f] & keys) == keys;
}

const char *td_overflow_name(td_overflow o) {
    return choice_name("data", "overflow", (int)o);
}

const char *td_on_bad_sample_name(td_on_bad_sample b) {
    return choice_name("run", "on_bad_sample", (int)b);
}

const char *td_text_unit_name(td_text_unit u) {
    return choice_name("data", "text_unit", (int)u);
}

const char *td_token_dtype_name(td_token_dtype t) {
    return choice_name("data", "token_dtype", (int)t);
}
