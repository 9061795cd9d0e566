/* format.c - which format a dataset file has: by data.format, by keys and name, by its suffix, by its
 * first bytes, in this order; what cannot be read is refused by name before anything else is done.
 */
#include "data/format.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/memory.h"
#include "base/strbuf.h"
#include "data/foreign.h"
#include "data/unpack.h"

/* clang-format off */
#define TD_FORMAT_ENTRY(name, NAME, keys) &td_format_##name,
static const td_row_format *const formats[] = {
    TD_DATA_FORMATS(TD_FORMAT_ENTRY)
    &td_format_raw_tokens, /* behind `tokens`: data.format = tokens alone means safetensors */
};
#undef TD_FORMAT_ENTRY
/* clang-format on */

static td_status unpack_head(int fd, const char *path, td_file_head *h, td_error *err) {
    td_unpack *u;
    td_status rc = td_unpack_open(fd, path, h->size_bytes, h->packing, &u, err);
    if (rc != TD_OK)
        return rc;
    size_t got = 1;
    for (h->n = 0; rc == TD_OK && got && h->n < sizeof h->bytes; h->n += got)
        rc = td_unpack_read(u, h->bytes + h->n, sizeof h->bytes - h->n, &got, err);
    td_unpack_close(u);
    return rc;
}

/* The head of a regular, readable file. as_it_stands: it is not compressed, whatever its bytes say. */
static td_status read_head(const char *path, bool as_it_stands, td_file_head *h, td_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block us here */
    if (fd < 0)
        return td_error_errno(err, TD_E_DATA, errno, "data.path: cannot open %s", path);
    struct stat st;
    td_status rc = TD_OK;
    ssize_t got = 0;
    if (fstat(fd, &st) != 0)
        rc = td_error_errno(err, TD_E_DATA, errno, "data.path: cannot look at %s", path);
    else if (S_ISDIR(st.st_mode))
        rc = td_error_set(err, TD_E_DATA, "data.path: %s is a folder, expected a file", path);
    else if (!S_ISREG(st.st_mode))
        rc =
            td_error_set(err, TD_E_DATA,
                         "data.path: %s is no regular file; a resumable run reads its dataset more "
                         "than once, so write it to a file first",
                         path);
    else if (st.st_size == 0)
        rc = td_error_set(err, TD_E_DATA, "data.path: %s is empty, there are no rows", path);
    else if ((got = pread(fd, h->bytes, sizeof h->bytes, 0)) < 0)
        rc = td_error_errno(err, TD_E_DATA, errno, "data.path: cannot read %s", path);
    if (rc == TD_OK) {
        h->n = (size_t)got;
        h->size_bytes = (uint64_t)st.st_size;
        h->packing = as_it_stands ? TD_PACK_NONE : td_packing_of(h->bytes, h->n);
        if (h->packing != TD_PACK_NONE)
            rc = unpack_head(fd, path, h, err);
    }
    close(fd);
    return rc;
}

/* Of the first n characters of `path`. */
static bool has_suffix_n(const char *path, size_t n, const char *suffix) {
    size_t k = strlen(suffix);
    return n > k && strncasecmp(path + n - k, suffix, k) == 0;
}

bool td_path_has_suffix(const char *path, const char *suffix) {
    return has_suffix_n(path, strlen(path), suffix);
}

/* Length of the name without .gz or .zst where the file is compressed. */
static size_t inner_length(const char *path, td_packing packing) {
    size_t n = strlen(path);
    if (packing != TD_PACK_NONE)
        n -= td_path_has_suffix(path, ".gz") ? 3 : td_path_has_suffix(path, ".zst") ? 4 : 0;
    return n;
}

/* "jsonl, text or tokens". */
static void list_names(td_strbuf *out) {
#define FORMAT_NAME(name, NAME, keys) #name,
    static const char *const names[] = {TD_DATA_FORMATS(FORMAT_NAME)};
#undef FORMAT_NAME
    const size_t n = TD_ARRAY_LEN(names);
    for (size_t i = 0; i < n; i++)
        td_strbuf_printf(out, "%s%s", i == 0 ? "" : i + 1 == n ? " or " : ", ", names[i]);
}

static const td_row_format *by_suffix(const char *path, td_packing packing) {
    size_t n = inner_length(path, packing);
    for (size_t i = 0; i < TD_ARRAY_LEN(formats); i++)
        for (const char *const *suffix = formats[i]->suffixes; *suffix; suffix++)
            if (has_suffix_n(path, n, *suffix))
                return formats[i];
    return NULL;
}

const td_row_format *td_format_of_name(const char *path) {
    bool packed = td_path_has_suffix(path, ".gz") || td_path_has_suffix(path, ".zst");
    const td_row_format *f = by_suffix(path, packed ? TD_PACK_GZIP : TD_PACK_NONE);
    return f && (f->packed || !packed) ? f : NULL;
}

/* "[" and then a row: one JSON array, in a file whose name says nothing. */
static bool is_json_array(const td_file_head *h) {
    size_t i = h->n >= 3 && memcmp(h->bytes, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    bool open = false;
    for (; i < h->n; i++) {
        if (h->bytes[i] == '[' && !open)
            open = true;
        else if (!memchr(" \t\r\n", h->bytes[i], 4))
            return open && h->bytes[i] == '{';
    }
    return false;
}

static td_status detect(const td_config *cfg, const td_file_head *h, const td_row_format **out,
                        td_error *err) {
    const char *path = cfg->data.path;
    td_status rc = td_foreign_refuse_name(cfg, h->packing, err);
    if (rc != TD_OK)
        return rc;
    *out = by_suffix(path, h->packing);
    if (*out)
        return TD_OK;
    if (is_json_array(h))
        return td_foreign_to_prepare(cfg, "one JSON array", err);
    td_sniff best = TD_SNIFF_NO;
    for (size_t i = 0; i < TD_ARRAY_LEN(formats); i++) {
        td_sniff sniff = formats[i]->sniff ? formats[i]->sniff(h) : TD_SNIFF_NO;
        if (sniff > best) {
            best = sniff;
            *out = formats[i];
        }
    }
    if (*out)
        return TD_OK;
    td_strbuf names = {0};
    list_names(&names);
    rc = td_error_set(err, TD_E_DATA,
                      "data.path: %s looks like binary data; if it is not, set data.format "
                      "(%s; raw token ids also need data.token_dtype)",
                      path, names.oom ? "see --help" : names.data);
    td_strbuf_free(&names);
    return rc;
}

/* What config.c cannot know while format is auto. */
static td_status check_keys(const td_config *cfg, const td_row_format *f, td_error *err) {
    const char *path = cfg->data.path, *name = td_data_format_name(f->format);
    bool dtype = cfg->data.token_dtype != TD_TOKEN_AUTO, eos = cfg->data.document_eos >= 0;
    if ((dtype || eos) && !td_data_format_serves(f->format, TD_DATA_RAW_IDS))
        return td_error_set(err, TD_E_CONFIG,
                            "data.%s is for raw token files (.bin), but %s is read as format %s; "
                            "take the key out or set data.format = tokens",
                            dtype ? "token_dtype" : "document_eos", path, name);
    td_status rc = f->check_keys ? f->check_keys(cfg, err) : TD_OK;
    if (rc != TD_OK)
        return rc;
    /* Of token ids it says nothing, and is let pass. */
    if (cfg->data.text_unit == TD_TEXT_FILE && td_data_format_serves(f->format, TD_DATA_TEXT) &&
        !td_data_format_serves(f->format, TD_DATA_TEXT_UNIT))
        return td_error_set(err, TD_E_CONFIG,
                            "data.text_unit = file is for format text, but %s is %s (set "
                            "data.format = text to read it as plain text)",
                            path, name);
    if (td_data_format_serves(f->format, TD_DATA_FIELDS))
        return TD_OK;
    const struct {
        const char *key, *value;
    } fields[] = {{"prompt_field", cfg->data.prompt_field},
                  {"completion_field", cfg->data.completion_field},
                  {"ids_field", cfg->data.ids_field},
                  {"mask_field", cfg->data.mask_field},
                  {"id_field", cfg->data.id_field}};
    for (size_t i = 0; i < TD_ARRAY_LEN(fields); i++)
        if (fields[i].value)
            return td_error_set(err, TD_E_CONFIG,
                                "data.%s = %s needs rows with fields (jsonl), but %s is read as "
                                "format %s; take the key out or set data.format = jsonl",
                                fields[i].key, fields[i].value, path, name);
    return TD_OK;
}

/* A token file is binary: its first bytes are a length, or ids, and may look like anything. */
static bool is_token_file(const char *path, const td_row_format *f, const td_file_head *h) {
    if (!f)
        f = by_suffix(path, h->packing);
    if (f)
        return f->format == TD_FORMAT_TOKENS;
    for (size_t i = 0; i < TD_ARRAY_LEN(formats); i++)
        if (formats[i]->format == TD_FORMAT_TOKENS && formats[i]->sniff &&
            formats[i]->sniff(h) != TD_SNIFF_NO)
            return true;
    return false;
}

td_status td_format_resolve(const td_config *cfg, const td_row_format **out, td_strbuf *notes,
                            td_error *err) {
    const char *path = cfg->data.path;
    const td_row_format *f = NULL;
    td_file_head h = {0};
    for (size_t i = 0; !f && i < TD_ARRAY_LEN(formats); i++)
        if ((cfg->data.format == TD_FORMAT_AUTO || cfg->data.format == formats[i]->format) &&
            formats[i]->claims && formats[i]->claims(cfg))
            f = formats[i];
    bool claimed = f != NULL;
    for (size_t i = 0; !f && i < TD_ARRAY_LEN(formats); i++)
        if (cfg->data.format == formats[i]->format)
            f = formats[i];
    bool chosen = f != NULL;
    td_status rc = read_head(path, claimed, &h, err);
    const bool text = rc == TD_OK && !claimed && !is_token_file(path, f, &h);
    if (text)
        rc = td_foreign_refuse_bytes(cfg, &h, err);
    if (rc == TD_OK && text)
        rc = td_foreign_refuse_wide(cfg, &h, err);
    if (rc == TD_OK && !f)
        rc = detect(cfg, &h, &f, err);
    if (rc == TD_OK)
        rc = check_keys(cfg, f, err);
    if (rc == TD_OK && h.packing != TD_PACK_NONE && !f->packed)
        rc = td_error_set(err, TD_E_DATA,
                          "data.path: %s is a compressed token file; rows of token files are read "
                          "by their offset, so decompress it first: %s -d -k FILE",
                          path, td_packing_name(h.packing));
    const char *kind = chosen && !claimed ? td_foreign_name_kind(path) : NULL;
    if (rc == TD_OK && kind && notes)
        td_strbuf_printf(notes, "data.path: %s is named as %s, and read as data.format = %s says\n",
                         path, kind, td_data_format_name(f->format));
    if (rc == TD_OK)
        *out = f;
    return rc;
}

bool td_format_needs_tokenizer(const td_config *cfg, td_data_format format) {
    return td_data_format_serves(format, TD_DATA_TEXT) && !cfg->data.ids_field;
}

double td_rows_spread(int i) {
    double x = 0.5 + 0.6180339887498949 * i;
    return x - floor(x);
}
