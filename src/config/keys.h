/* keys.h - the one table of what can be set, private to the configuration's own files.
 *
 * A key's row drives its parsing, its default (parsed from `def` by the same code as a user's
 * value), the suggestions in messages, and what td_config_print_keys prints. To add a setting: a
 * field in td_config, a row in config_keys.c, a line in conf/run.ini (a test compares them).
 */
#ifndef TDGEN_CONFIG_KEYS_H
#define TDGEN_CONFIG_KEYS_H

#include <stddef.h>
#include <stdint.h>

#include "config/config.h"

typedef enum td_key_type {
    TD_KEY_STRING,       /* char *, never empty */
    TD_KEY_INPUT,        /* the same: a path (paths.c) that is read */
    TD_KEY_INPUTS,       /* the same: a list of such (base/path_list.h) */
    TD_KEY_OUTPUT,       /* the same: a path that is written */
    TD_KEY_ESCAPED,      /* char *, "quotes" taken off and \n \t \r \\ \" decoded; may be empty */
    TD_KEY_INT32,        /* int32_t in min..max */
    TD_KEY_INT32_AUTO,   /* the same, or `auto`, stored as 0 */
    TD_KEY_INT64,        /* int64_t in min..max */
    TD_KEY_UINT64,       /* uint64_t, whole range */
    TD_KEY_BOOL,         /* bool */
    TD_KEY_CHOICE,       /* an enum, by `choices` */
    TD_KEY_GPUS,         /* [devices] gpus */
    TD_KEY_GROUPS,       /* [devices] groups */
    TD_KEY_CPU_SPEEDS,   /* [devices] cpu_speeds */
    TD_KEY_CPU_THREADS,  /* [devices] cpu_threads */
    TD_KEY_TEMPERATURES, /* [capture] temperatures */
    TD_KEY_LENGTHS,      /* [simulate] lengths */
    TD_KEY_DOUBLE,       /* double in min..max, which are in thousandths */
    TD_KEY_LOGPROBS,     /* [capture] logprob_dtype: a choice that sets two fields */
    TD_KEY_ALWAYS_IDS,   /* [capture] always_ids */
} td_key_type;

typedef struct td_key_choice {
    const char *name; /* NULL ends the list */
    int value;
} td_key_choice;

typedef struct td_config_key {
    const char *section, *name;
    td_key_type type;
    size_t offset; /* of the field in td_config; unused by the types that fill several */
    int64_t min, max;
    const td_key_choice *choices;
    const char *def;      /* as a user would write it; NULL: not set, or said in `def_text` */
    const char *def_text; /* what the help says instead of `def`; "required" marks such keys */
    const char *doc;      /* one or two sentences */
} td_config_key;

enum { TD_CONFIG_MAX_KEYS = 96 };
extern const td_config_key td_config_keys[];
extern const int td_config_n_keys;
extern const char *const td_config_sections[7];

/* The choice of logprob_dtype that is no dtype: 8 bits between a row's extremes. */
enum { TD_LOGPROBS_Q8 = -1 };

/* Index of a key in the table, or -1. `section` NULL: in any section. */
int td_config_key_index(const char *section, const char *name);

/* What a value must look like, for messages and help: "an integer from 1 to 1024". */
const char *td_config_key_expected(const td_config_key *key, char *buf, size_t buf_size);

/* Parses `value` into the key's field, which is left alone on failure. The error says what was
 * expected and what was found; the caller puts the place in front. */
td_status td_config_set_value(td_config *cfg, const td_config_key *key, const char *value,
                              td_error *err);

/* The one shape of "this value is wrong"; `why` adds what the expectation does not show, or "". */
td_status td_config_bad_value(const td_config_key *key, const char *value, const char *why,
                              td_error *err);
/* Decimal integer over the whole of `s`, blanks around it allowed. False when it is none, or does
 * not fit. */
bool td_config_parse_int(const char *s, int64_t *out);

/* devices.c: lists of devices and groups of them. */
enum { TD_MAX_CPU_DEVICES = 256 };
td_status td_config_set_gpus(td_config *cfg, const td_config_key *key, const char *value,
                             td_error *err);
td_status td_config_set_groups(td_config *cfg, const td_config_key *key, const char *value,
                               td_error *err);
/* Do the groups name devices of [devices] gpus only? False: `why` continues "[devices] groups ".
 * A name that is not resolved yet passes. */
bool td_config_groups_fit(const td_config *cfg, char *why, size_t why_size);

/* Where each key got its value, for messages about settings that contradict each other. */
typedef struct td_config_origin {
    int32_t line;     /* of the INI file; 0: not there */
    int32_t override; /* 1 + number of the override; 0: not there. Wins over `line` */
} td_config_origin;

typedef struct td_config_load_state {
    td_config cfg;
    td_config_origin origin[TD_CONFIG_MAX_KEYS];
    const char *const *overrides;
    char *given[TD_CONFIG_MAX_KEYS]; /* the value as it was written; NULL: the default */
} td_config_load_state;

/* Expands and places the paths that were given. Once, before anybody uses them. */
td_status td_config_place_paths(td_config_load_state *st, td_error *err);
/* cfg->effective: every key that was given, paths absolute, as an INI file. */
td_status td_config_write_effective(td_config_load_state *st, td_error *err);
/* Notes the text of a value. */
td_status td_config_keep(td_config_load_state *st, int k, const char *value, td_error *err);
/* Puts the place of key k in front of the error: "run.ini:12: [data] path". */
void td_config_say_where(const td_config_load_state *st, int k, td_error *err);

/* Reads the INI file into *st. */
td_status td_config_read_file(td_config_load_state *st, const char *path, td_error *err);

/* Fills *err for a section or key that does not exist, with the nearest one that does. */
td_status td_config_unknown_section(const char *section, td_error *err);
td_status td_config_unknown_key(const char *section, const char *name, td_error *err);

#endif
