/* config.h - run.ini and the command line as one validated structure.
 *
 * Everything a user can set is here, once. td_config_load() reads the INI file (inih), applies the
 * overrides in order, and refuses before any work: unknown sections and keys (naming the nearest
 * valid one), values of the wrong type or out of range, lines that are too long, keys given twice,
 * settings that contradict each other. Messages name file, line, key and what was expected; for an
 * override they name the argument.
 *
 * In the file: `key = value` lines under [section] headings, comments on lines that start with ';'
 * or '#' and behind a value after ' ;'; a line has at most 198 characters, an override any number.
 * Relative paths are relative to the folder the program is started in, not to the file.
 *
 * Strings are owned by the struct; absent strings are NULL. Plain data after loading: read-only,
 * shared by all threads.
 */
#ifndef TDGEN_CONFIG_CONFIG_H
#define TDGEN_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "capture/capture.h"
#include "base/dtype.h"
#include "base/status.h"

typedef enum td_compute {
    TD_COMPUTE_AUTO,
    TD_COMPUTE_F32,
    TD_COMPUTE_BF16,
    TD_COMPUTE_F16
} td_compute;

/* Keys of [data] that not every format serves. */
enum {
    TD_DATA_FIELDS = 1,    /* rows have fields: text_field, prompt_field, ids_field, id_field ... */
    TD_DATA_TEXT = 2,      /* rows are text, or may be: add_special_tokens; needs a tokenizer */
    TD_DATA_TEXT_UNIT = 4, /* text_unit */
    TD_DATA_RAW_IDS = 8    /* token_dtype, document_eos */
};
/* The dataset formats: name in data.format, constant, keys it serves. How each is read:
 * data/format.h. */
#define TD_DATA_FORMATS(X)                                                                         \
    X(jsonl, JSONL, TD_DATA_FIELDS | TD_DATA_TEXT)                                                 \
    X(text, TEXT, TD_DATA_TEXT | TD_DATA_TEXT_UNIT)                                                \
    X(tokens, TOKENS, TD_DATA_RAW_IDS)
#define TD_FORMAT_CONSTANT(name, NAME, keys) TD_FORMAT_##NAME,
typedef enum td_data_format { TD_FORMAT_AUTO, TD_DATA_FORMATS(TD_FORMAT_CONSTANT) } td_data_format;
#undef TD_FORMAT_CONSTANT

typedef enum td_text_unit { TD_TEXT_LINE, TD_TEXT_FILE } td_text_unit;
typedef enum td_token_dtype { TD_TOKEN_AUTO, TD_TOKEN_U16, TD_TOKEN_U32 } td_token_dtype;
typedef enum td_overflow { TD_OVERFLOW_TRUNCATE, TD_OVERFLOW_SPLIT, TD_OVERFLOW_SKIP } td_overflow;
typedef enum td_on_bad_sample { TD_BAD_FAIL, TD_BAD_SKIP } td_on_bad_sample;

#define TD_MAX_CPU_THREADS 1024 /* of one device */

/* [simulate] lengths: of the samples of a job that is only stated. */
typedef enum td_length_law {
    TD_LENGTHS_NONE,
    TD_LENGTHS_FIXED,
    TD_LENGTHS_LOGNORMAL
} td_length_law;

/* [devices] gpus: what the user asked for, before the machine is looked at. */
typedef enum td_gpus_kind { TD_GPUS_AUTO, TD_GPUS_LIST, TD_GPUS_CPU } td_gpus_kind;

typedef struct td_config {
    char *file; /* path of the INI file, as given */
    /* An INI file that says the same: every key that was given, paths absolute. */
    char *effective;

    struct {
        char *path;         /* HF folder, required */
        td_compute compute; /* auto */
    } model;

    struct {
        char *
            path; /* dataset: a file, a folder, a glob, or a list of these (data/files.h); required */
        /* data/'s own copies, whose path is one file: the setting that the file is of. Else NULL. */
        const char *whole;
        td_data_format format;
        td_text_unit text_unit;
        char *text_field;   /* "text"; not looked at when prompt_field or ids_field is set */
        char *prompt_field; /* with completion_field: loss on the completion only */
        char *completion_field;
        char *separator;     /* between prompt and completion, ""; C escapes \n \t \\ decoded */
        bool append_eos;     /* resolved default: true with prompt/completion, else false */
        bool append_eos_set; /* the user gave it */
        char *ids_field;     /* already tokenised rows */
        char *mask_field;    /* optional, with ids_field */
        td_token_dtype token_dtype; /* of a raw .bin token file; auto */
        int32_t document_eos;       /* id that ends each row of a raw stream; -1: none, rows are
                                       max_length ids each */
        char *id_field;             /* carried through to the record */
        int64_t max_samples;        /* dataset rows; 0 = all */
        int32_t max_length;         /* tokens per sample, 2048 */
        td_overflow overflow;       /* truncate */
        bool add_special_tokens;    /* true */
    } data;

    struct {
        td_gpus_kind gpus_kind;
        /* Numbers of devices. A negative one stands for a name, names[-1 - number], until
         * td_config_resolve_devices has put the machine's number in its place. */
        int32_t *gpus;           /* TD_GPUS_LIST: in the order given */
        int32_t n_gpus;          /* TD_GPUS_LIST: length; TD_GPUS_CPU: N of cpu*N */
        int32_t gpus_per_model;  /* 0 = auto */
        int32_t *group_of;       /* explicit groups: group number of each entry of group_device */
        int32_t *group_device;   /* devices, as in gpus */
        int32_t n_group_entries; /* 0 = no explicit groups */
        int32_t n_groups;
        bool groups_name_cpus, groups_name_gpus; /* as "cpu:0", as "cuda:0" or the names below */
        char *
            *names; /* GPUs by UUID ("GPU-8f2e", "MIG-...") or PCI id ("0000:65:00.0", "65:00.0") */
        int32_t n_names;
        /* Of cpu*N, both for experiments: share of its speed that each device works at, in (0, 1],
         * and its threads. 0 entries: full speed, and an even share of the cores. */
        double *cpu_speeds;
        int32_t n_cpu_speeds;
        int32_t *cpu_threads;
        int32_t n_cpu_threads;
        char *inventory; /* file, or NULL */
    } devices;

    td_capture_settings capture; /* the run goes by the td_capture_spec of its plan */

    struct {
        char *dir;             /* required */
        int64_t shard_samples; /* 1024 dataset rows */
        bool zstd;             /* each shard compressed; false */
    } output;

    struct {
        int32_t batch_tokens;           /* 8192 */
        uint64_t seed;                  /* 0 */
        td_on_bad_sample on_bad_sample; /* fail */
        int32_t worker_id;              /* 0 */
        int32_t total_workers;          /* 1 */
        int32_t progress_s;             /* 30; 0: none */
        char *metrics;                  /* NULL */
    } run;

    struct {                  /* --simulate only */
        td_length_law law;    /* none: the dataset's own lengths */
        int32_t fixed_length; /* TD_LENGTHS_FIXED */
        double median, sigma; /* TD_LENGTHS_LOGNORMAL: tokens; of the logarithm */
        int32_t max_length;   /* TD_LENGTHS_LOGNORMAL: longer ones are cut to it */
        int64_t n_samples;    /* of a stated job; 0 = not given */
        double noise;         /* relative: 0.05 makes each time up to 5% shorter or longer */
        int32_t failures;     /* groups that fail at a random time, 0 */
        uint64_t seed;        /* 0 */
    } simulate;
} td_config;

/* Reads `path` (NULL: no file), then applies overrides "section.key=value" in order: they win over the file, and
 * the last one of a key over those before it. On success the caller owns *out and
 * ends it with td_config_free. Notes worth telling the user (a key that the mode does not use) are
 * logged as warnings. */
td_status td_config_load(const char *path, const char *const *overrides, size_t n_overrides,
                         td_config *out, td_error *err);
void td_config_free(td_config *cfg); /* {0} and NULL allowed */

/* Puts numbers in the place of names in devices.gpus and devices.groups, asking `find` for each (its
 * errors are passed on), and checks what could not be checked before: that no device is listed
 * twice and that the groups' devices are in the list. Once the machine is known. */
typedef td_status (*td_config_find_device)(const void *machine, const char *name, int32_t *number,
                                           td_error *err);
td_status td_config_resolve_devices(td_config *cfg, td_config_find_device find, const void *machine,
                                    td_error *err);

/* Every section and key with its default, meaning and range, for --help. */
void td_config_print_keys(FILE *out);

/* Names as written in the INI file, for messages and the manifest. */
const char *td_compute_name(td_compute c);
const char *td_data_format_name(td_data_format f);
/* Does the format serve these keys (TD_DATA_...)? auto may turn out to. */
bool td_data_format_serves(td_data_format f, int keys);
const char *td_overflow_name(td_overflow o);
const char *td_on_bad_sample_name(td_on_bad_sample b);
const char *td_token_dtype_name(td_token_dtype t);
const char *td_text_unit_name(td_text_unit u);

#endif
