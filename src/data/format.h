/* format.h - the dataset formats: how a file is recognised, and how its rows are read.
 *
 * A format is a file of this room that defines `td_format_NAME`, and a line of TD_DATA_FORMATS
 * (config/config.h), which gives its name in data.format and the keys that it serves. source.c and
 * stats.c read rows through the functions below and know no format. Formats of lines share
 * line_rows.h, those of token ids tokens.h.
 *
 * Order of use: td_format_resolve -> format->open -> check -> next, then hash and make of the row
 * in hand, until *end -> close. One thread owns an open file.
 */
#ifndef TDGEN_DATA_FORMAT_H
#define TDGEN_DATA_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>
#include "config/config.h"
#include "base/status.h"
#include "base/strbuf.h"
#include "data/row.h"
#include "data/unpack.h"

/* --- rows of an open file --------------------------------------------------------------------- */

typedef struct td_rows td_rows;

/* Where a row begins; what the two numbers count is the format's. */
typedef struct td_rows_place {
    uint64_t offset; /* bytes before it, of the plain text or of ids and masks */
    int64_t number;  /* of its row, or of the line before it */
    size_t file;     /* of a dataset of several files, else 0 */
} td_rows_place;

/* What was found out when files of one dataset were checked, one after the other. */
typedef struct td_rows_look {
    bool none;               /* the last one has no rows: no failure by itself */
    char tokenizer_hash[64]; /* said by token files, and found to be the model's; "" = none yet */
} td_rows_look;

/* What a format does with an open file. A failure of `make` with TD_E_DATA is the row's
 * (on_bad_sample decides what follows); all others are the file's. */
typedef struct td_rows_ops {
    void (*close)(td_rows *r); /* frees r, too */
    /* Are there rows (look->none), have they the configured fields, do they belong to this model?
     * Before the first row; what `next` gives stays the same. */
    td_status (*check)(const td_rows *r, td_rows_look *look, td_error *err);

    /* Takes the next row in hand, as it lies in the file, or sets *end. */
    td_status (*next)(td_rows *r, bool *end, td_error *err);
    /* Of the row in hand: its bytes as td_shard.source_hash counts them; its token ids; its place
     * for messages, at most strlen(path) + 64 bytes. */
    void (*hash)(const td_rows *r, XXH3_state_t *to);
    td_status (*make)(const td_rows *r, td_row_maker *m, const char *where, td_error *err);
    void (*where)(const td_rows *r, char *out, size_t cap);

    /* The place of the row that `next` would give, and going back there. */
    td_rows_place (*tell)(const td_rows *r);
    td_status (*seek)(td_rows *r, const td_rows_place *to, td_error *err);
    /* How far `next` has come: of td_rows.total_bytes; in plain text or ids and masks (NULL: of
     * several files). */
    uint64_t (*position)(const td_rows *r);
    uint64_t (*plain_bytes)(const td_rows *r);

    /* For statistics of a file that is not sequential, which is only closed afterwards. `pick` takes
     * in hand the row at `place`, from 0 to below 1, of the rows where their number is known, else of
     * the bytes; *none where no row has them. `extent` then gives the bytes that it was picked by, and
     * the row is no longer in hand. */
    td_status (*pick)(td_rows *r, double place, bool *none, td_error *err);
    td_status (*extent)(td_rows *r, double *n_bytes, td_error *err);
    /* Of a file that is one_row, else NULL: its number of tokens, estimated from pieces. */
    td_status (*count_tokens)(td_rows *r, td_row_maker *m, double *n_tokens, td_error *err);
} td_rows_ops;

/* What every open file has; formats put it first in their own struct. Set by open, then const. */
struct td_rows {
    const td_rows_ops *ops;
    const td_config *cfg; /* borrowed; its data.path is the file */
    const char *row_kind; /* what rows are, in the plural, where one format has several kinds */
    int fd;               /* -1: several files */
    uint64_t size_bytes;  /* of the file, at open */
    uint64_t total_bytes; /* what `position` counts to */
    uint64_t begin_bytes; /* rows begin there: behind a byte order mark */
    int64_t n_rows;       /* -1: not known before the end */
    bool sequential; /* rows are found only by reading all before them (compressed, document_eos) */
    bool one_row;    /* the whole file is the row */
};

/* i-th of n places from 0 to below 1, in an order that is evenly spread wherever it is stopped. */
double td_rows_spread(int i);

/* --- formats ---------------------------------------------------------------------------------- */

/* The beginning of a regular, readable file that is not empty. */
typedef struct td_file_head {
    unsigned char bytes[4096]; /* the first ones, of the plain text where the file is compressed */
    size_t n;
    uint64_t size_bytes; /* of the file */
    td_packing packing;
} td_file_head;

typedef enum td_sniff {
    TD_SNIFF_NO,
    TD_SNIFF_MAYBE, /* as any text may be one; a format that is sure wins */
    TD_SNIFF_SURE
} td_sniff;

typedef struct td_row_format {
    td_data_format format;       /* its name in data.format */
    const char *const *suffixes; /* ending with NULL; in small letters, found in any case */
    bool packed;                 /* may be compressed; its suffix then stands before .gz or .zst */
    /* The keys and the name alone say that it is this format, whatever bytes it begins with. NULL:
     * they never do. */
    bool (*claims)(const td_config *cfg);
    /* What the first bytes say where the name says nothing. NULL: never found so. */
    td_sniff (*sniff)(const td_file_head *h);
    /* Refuses keys (TD_E_CONFIG) beyond what TD_DATA_FORMATS says. NULL: there are none. */
    td_status (*check_keys)(const td_config *cfg, td_error *err);
    /* n_vocab: of the model, 0 = unknown. cfg is borrowed until close. */
    td_status (*open)(const td_config *cfg, int32_t n_vocab, td_rows **out, td_error *err);
} td_row_format;

#define TD_FORMAT_DECLARE(name, NAME, keys) extern const td_row_format td_format_##name;
TD_DATA_FORMATS(TD_FORMAT_DECLARE)
#undef TD_FORMAT_DECLARE
extern const td_row_format td_format_raw_tokens; /* the other kind of data.format = tokens */

/* Of one file: data.format, or what keys, extension and first bytes say when it is auto. Refuses what
 * cannot be read (folders, devices, archives, tables, compressed token files) and keys that the format
 * cannot serve. Appends lines worth a warning to `notes` (NULL allowed). */
td_status td_format_resolve(const td_config *cfg, const td_row_format **out, td_strbuf *notes,
                            td_error *err);

/* The format that a name promises, in front of .gz and .zst too; NULL where it promises none. */
const td_row_format *td_format_of_name(const char *path);

/* Is text to be tokenised, or are there ids? `format` is resolved. */
bool td_format_needs_tokenizer(const td_config *cfg, td_data_format format);

/* Does the path end so, in whatever case, with something before it? */
bool td_path_has_suffix(const char *path, const char *suffix);

#endif
