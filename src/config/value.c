/* value.c - the text of one value into its field of td_config.
 *
 * Grammar: integers are decimal digits (a leading '-' is read, to say that it is out of range);
 * lists are separated by commas, groups by '|', blanks around separators are free.
 */
#include "config/keys.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

td_status td_config_bad_value(const td_config_key *key, const char *value, const char *why,
                              td_error *err) {
    char expected[200];
    const char *comment = strstr(value, " #");
    return td_error_set(err, TD_E_CONFIG, "expected %s, found '%.120s'%s%s%s",
                        td_config_key_expected(key, expected, sizeof expected), value,
                        *why ? ": " : "", why,
                        comment ? " (a comment behind a value starts with ' ;', not ' #')" : "");
}

bool td_config_parse_int(const char *s, int64_t *out) {
    while (isspace((unsigned char)*s))
        s++;
    if (!isdigit((unsigned char)s[*s == '-']))
        return false;
    char *end;
    errno = 0;
    *out = strtoll(s, &end, 10);
    while (isspace((unsigned char)*end))
        end++;
    return *end == '\0' && errno == 0;
}

static td_status set_int(void *field, const td_config_key *key, const char *value, td_error *err) {
    int64_t v;
    if (!td_config_parse_int(value, &v) || v < key->min || v > key->max)
        return td_config_bad_value(key, value, "", err);
    if (key->type == TD_KEY_INT64)
        *(int64_t *)field = v;
    else
        *(int32_t *)field = (int32_t)v;
    return TD_OK;
}

static td_status set_uint64(uint64_t *field, const td_config_key *key, const char *value,
                            td_error *err) {
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 10);
    /* strtoull accepts a sign and blanks; the first character excludes them. */
    if (!isdigit((unsigned char)*value) || *end || errno == ERANGE)
        return td_config_bad_value(key, value, "", err);
    *field = v;
    return TD_OK;
}

static td_status set_bool(bool *field, const td_config_key *key, const char *value, td_error *err) {
    static const struct {
        const char *name;
        bool value;
    } names[] = {{"true", true}, {"false", false}, {"yes", true},
                 {"no", false},  {"1", true},      {"0", false}};
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++)
        if (!strcasecmp(names[i].name, value)) {
            *field = names[i].value;
            return TD_OK;
        }
    return td_config_bad_value(key, value, "", err);
}

/* The number that starts at *s, which is moved behind it and the blanks there. False when there is
 * none; an overflow is an infinity. strtod would take "nan", "inf" and hexadecimal too. */
static bool parse_double(const char **s, double *out) {
    char *end;
    size_t blanks = strspn(*s, " \t");
    *out = strtod(*s, &end);
    bool plain = (*s)[blanks] && strchr("+-.0123456789", (*s)[blanks]) && end != *s &&
                 !memchr(*s, 'x', (size_t)(end - *s)) && !memchr(*s, 'X', (size_t)(end - *s)) &&
                 !memchr(*s, 'n', (size_t)(end - *s)) && !memchr(*s, 'N', (size_t)(end - *s));
    *s = end + strspn(end, " \t");
    return plain;
}

static td_status set_double(double *field, const td_config_key *key, const char *value,
                            td_error *err) {
    const char *s = value;
    double v;
    if (!parse_double(&s, &v) || *s || !(v >= (double)key->min / 1000) ||
        !(v <= (double)key->max / 1000))
        return td_config_bad_value(key, value, "", err);
    *field = v;
    return TD_OK;
}

static td_status set_choice(void *field, const td_config_key *key, const char *value,
                            td_error *err) {
    for (const td_key_choice *c = key->choices; c->name; c++)
        if (!strcmp(c->name, value)) {
            /* Every enum here has the size of int (checked in config.c). */
            memcpy(field, &c->value, sizeof c->value);
            return TD_OK;
        }
    return td_config_bad_value(key, value, "", err);
}

static td_status replace_string(char **field, char *fresh, td_error *err) {
    if (!fresh)
        return td_error_nomem(err, "a setting", 0);
    free(*field);
    *field = fresh;
    return TD_OK;
}

static td_status set_escaped(char **field, const td_config_key *key, const char *value,
                             td_error *err) {
    size_t n = strlen(value);
    if (n >= 2 && value[0] == '"' && value[n - 1] == '"') {
        value++;
        n -= 2;
    }
    char *text = malloc(n + 1);
    size_t len = 0;
    if (!text)
        return td_error_nomem(err, "a setting", n + 1);
    for (size_t i = 0; i < n; i++) {
        char c = value[i];
        if (c == '\\') {
            static const char escapes[] = "n\nt\tr\r\\\\\"\"";
            const char *e = i + 1 < n ? escapes : NULL;
            i++;
            while (e && *e && *e != value[i])
                e += 2;
            if (!e || !*e) {
                free(text);
                return td_config_bad_value(key, value,
                                           "there is a backslash that starts none of these", err);
            }
            c = e[1];
        }
        text[len++] = c;
    }
    text[len] = '\0';
    return replace_string(field, text, err);
}

/* Digits up to `stop` (a character, or the end), 1 .. 2^20. */
static bool parse_tokens(const char **s, char stop, int32_t *out) {
    int64_t v = 0;
    const char *p = *s;
    for (; isdigit((unsigned char)*p) && v <= 1 << 20; p++)
        v = 10 * v + (*p - '0');
    if (p == *s || *p != stop || v < 1 || v > 1 << 20)
        return false;
    *out = (int32_t)v;
    *s = p + (stop != '\0');
    return true;
}

static td_status set_lengths(td_config *cfg, const td_config_key *key, const char *value,
                             td_error *err) {
    const char *s = value;
    if (!strncmp(s, "fixed:", 6)) {
        int32_t n;
        s += 6;
        if (!parse_tokens(&s, '\0', &n))
            return td_config_bad_value(key, value, "N is 1 to 1048576", err);
        cfg->simulate.law = TD_LENGTHS_FIXED;
        cfg->simulate.fixed_length = n;
        return TD_OK;
    }
    if (strncmp(s, "lognormal:", 10) != 0)
        return td_config_bad_value(key, value, "", err);
    int32_t median, max;
    double sigma;
    s += 10;
    if (!parse_tokens(&s, ':', &median))
        return td_config_bad_value(key, value, "MEDIAN is a whole number from 1 to 1048576", err);
    if (!parse_double(&s, &sigma) || *s != ':' || !(sigma >= 0 && sigma <= 5))
        return td_config_bad_value(key, value, "SIGMA is a number from 0 to 5", err);
    s++;
    if (!parse_tokens(&s, '\0', &max) || max < median)
        return td_config_bad_value(key, value, "MAX is a whole number from MEDIAN to 1048576", err);
    cfg->simulate.law = TD_LENGTHS_LOGNORMAL;
    cfg->simulate.median = median;
    cfg->simulate.sigma = sigma;
    cfg->simulate.max_length = max;
    return TD_OK;
}

static td_status set_cpu_speeds(td_config *cfg, const td_config_key *key, const char *value,
                                td_error *err) {
    double *list = NULL;
    int32_t n = 0;
    size_t cap = 0;
    const char *s = value;
    for (;;) {
        double share;
        const char *why = NULL;
        if (!parse_double(&s, &share) || (*s && *s != ','))
            why = "this is not a list of numbers";
        else if (!(share >= 1e-3 && share <= 1))
            why = "a share lies outside 0.001 to 1";
        else if (n == TD_MAX_CPU_DEVICES)
            why = "the list is too long";
        td_status rc = why ? td_config_bad_value(key, value, why, err) : TD_OK;
        if (rc == TD_OK && !td_grow((void **)&list, &cap, (size_t)n + 1, sizeof *list))
            rc = td_error_nomem(err, "a setting", sizeof *list * ((size_t)n + 1));
        if (rc != TD_OK) {
            free(list);
            return rc;
        }
        list[n++] = share;
        if (!*s++)
            break;
    }
    free(cfg->devices.cpu_speeds);
    cfg->devices.cpu_speeds = list;
    cfg->devices.n_cpu_speeds = n;
    return TD_OK;
}

static td_status set_cpu_threads(td_config *cfg, const td_config_key *key, const char *value,
                                 td_error *err) {
    char *copy = td_strdup(value), *rest = copy, *word;
    if (!copy)
        return td_error_nomem(err, "a setting", strlen(value));
    td_status rc = TD_OK;
    int32_t *list = NULL, n = 0;
    size_t cap = 0;
    while (rc == TD_OK && (word = strsep(&rest, ","))) {
        int64_t n_threads;
        if (!td_config_parse_int(word, &n_threads))
            rc = td_config_bad_value(key, value, "this is not a list of whole numbers", err);
        else if (n_threads < 1 || n_threads > TD_MAX_CPU_THREADS)
            rc = td_config_bad_value(key, value, "a number of threads is out of range", err);
        else if (n == TD_MAX_CPU_DEVICES)
            rc = td_config_bad_value(key, value, "the list is too long", err);
        else if (!td_grow((void **)&list, &cap, (size_t)n + 1, sizeof *list))
            rc = td_error_nomem(err, "a setting", sizeof *list * ((size_t)n + 1));
        else
            list[n++] = (int32_t)n_threads;
    }
    free(copy);
    if (rc != TD_OK) {
        free(list);
        return rc;
    }
    free(cfg->devices.cpu_threads);
    cfg->devices.cpu_threads = list;
    cfg->devices.n_cpu_threads = n;
    return TD_OK;
}

static td_status set_temperatures(td_config *cfg, const td_config_key *key, const char *value,
                                  td_error *err) {
    double list[TD_MAX_TEMPERATURES];
    int32_t n = 0;
    const char *s = value;
    for (;;) {
        double t;
        const char *why = NULL;
        if (!parse_double(&s, &t) || (*s && *s != ','))
            why = "this is not a list of numbers";
        else if (!isfinite(t) || t < 1e-6 || t > 1e6)
            why = "a temperature lies outside 1e-6 to 1e6";
        else if (n == TD_MAX_TEMPERATURES)
            why = "the list is too long";
        for (int32_t i = 0; !why && i < n; i++)
            if (list[i] == t)
                why = "a temperature is given twice";
        if (why)
            return td_config_bad_value(key, value, why, err);
        list[n++] = t;
        if (!*s++)
            break;
    }
    memcpy(cfg->capture.temperatures, list, sizeof list[0] * (size_t)n);
    cfg->capture.n_temperatures = n;
    return TD_OK;
}

static td_status set_logprobs(td_config *cfg, const td_config_key *key, const char *value,
                              td_error *err) {
    int choice = 0;
    td_status rc = set_choice(&choice, key, value, err);
    if (rc != TD_OK)
        return rc;
    cfg->capture.quantise_logprobs = choice == TD_LOGPROBS_Q8;
    /* What is quantised is the exact value. */
    cfg->capture.logprob_dtype = choice == TD_LOGPROBS_Q8 ? TD_F32 : (td_dtype)choice;
    return TD_OK;
}

static td_status set_always_ids(td_config *cfg, const td_config_key *key, const char *value,
                                td_error *err) {
    int32_t list[TD_MAX_ALWAYS_IDS], n = 0;
    td_status rc = TD_OK;
    if (strcmp(value, "none")) {
        char *copy = td_strdup(value), *rest = copy, *word;
        if (!copy)
            return td_error_nomem(err, "a setting", strlen(value));
        while (rc == TD_OK && (word = strsep(&rest, ","))) {
            int64_t id;
            const char *why = NULL;
            if (!td_config_parse_int(word, &id))
                why = "this is not a list of token ids";
            else if (id < 0 || id > INT32_MAX)
                why = "a token id is out of range";
            else if (n == TD_MAX_ALWAYS_IDS)
                why = "the list is too long";
            for (int32_t i = 0; !why && i < n; i++)
                if (list[i] == id)
                    why = "a token id is given twice";
            if (why)
                rc = td_config_bad_value(key, value, why, err);
            else
                list[n++] = (int32_t)id;
        }
        free(copy);
        if (rc != TD_OK)
            return rc;
        memcpy(cfg->capture.always_ids, list, sizeof list[0] * (size_t)n);
    }
    cfg->capture.n_always = n;
    return TD_OK;
}

td_status td_config_set_value(td_config *cfg, const td_config_key *key, const char *value,
                              td_error *err) {
    void *field = (char *)cfg + key->offset;
    if (!*value) {
        char expected[200];
        return td_error_set(err, TD_E_CONFIG, "the value is empty; expected %s%s",
                            td_config_key_expected(key, expected, sizeof expected),
                            key->def ? " (leave the key out for its default)" : "");
    }
    switch (key->type) {
    case TD_KEY_STRING:
    case TD_KEY_INPUT:
    case TD_KEY_INPUTS:
    case TD_KEY_OUTPUT:
        return replace_string(field, td_strdup(value), err);
    case TD_KEY_ESCAPED:
        return set_escaped(field, key, value, err);
    case TD_KEY_INT32_AUTO:
        if (!strcmp(value, "auto")) {
            *(int32_t *)field = 0;
            return TD_OK;
        }
        return set_int(field, key, value, err);
    case TD_KEY_INT32:
    case TD_KEY_INT64:
        return set_int(field, key, value, err);
    case TD_KEY_UINT64:
        return set_uint64(field, key, value, err);
    case TD_KEY_BOOL:
        return set_bool(field, key, value, err);
    case TD_KEY_CHOICE:
        return set_choice(field, key, value, err);
    case TD_KEY_GPUS:
        return td_config_set_gpus(cfg, key, value, err);
    case TD_KEY_GROUPS:
        return td_config_set_groups(cfg, key, value, err);
    case TD_KEY_CPU_SPEEDS:
        return set_cpu_speeds(cfg, key, value, err);
    case TD_KEY_CPU_THREADS:
        return set_cpu_threads(cfg, key, value, err);
    case TD_KEY_TEMPERATURES:
        return set_temperatures(cfg, key, value, err);
    case TD_KEY_LENGTHS:
        return set_lengths(cfg, key, value, err);
    case TD_KEY_DOUBLE:
        return set_double(field, key, value, err);
    case TD_KEY_LOGPROBS:
        return set_logprobs(cfg, key, value, err);
    case TD_KEY_ALWAYS_IDS:
        return set_always_ids(cfg, key, value, err);
    }
    return td_error_set(err, TD_E_INTERNAL, "a setting of unknown type");
}
