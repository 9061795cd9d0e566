#include "data/format.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/memory.h"
#include "data/unpack.h"

typedef struct {
    unsigned char bytes[4096]; /* the first ones, of the plain text where the file is compressed */
    size_t n;
    uint64_t size_bytes; /* of the file */
    td_packing packing;
} file_head;

static td_status unpack_head(int fd, const char *path, file_head *h, td_error *err) {
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

/* The head of a regular, readable file. */
static td_status read_head(const char *path, file_head *h, td_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block us here */
    if (fd < 0)
        return td_error_errno(err, TD_E_DATA, errno, "data.path: cannot open %s", path);
    struct stat st;
    td_status rc = TD_OK;
    ssize_t got = 0;
    if (fstat(fd, &st) != 0)
        rc = td_error_errno(err, TD_E_DATA, errno, "data.path: cannot look at %s", path);
    else if (S_ISDIR(st.st_mode))
        rc = td_error_set(err, TD_E_DATA, "data.path: %s is a folder, expected one dataset file",
                          path);
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
        h->packing = td_packing_of(h->bytes, h->n);
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

static bool has_suffix(const char *path, const char *suffix) {
    return has_suffix_n(path, strlen(path), suffix);
}

/* Length of the name without .gz or .zst where the file is compressed. */
static size_t inner_length(const char *path, td_packing packing) {
    size_t n = strlen(path);
    if (packing != TD_PACK_NONE)
        n -= has_suffix(path, ".gz") ? 3 : has_suffix(path, ".zst") ? 4 : 0;
    return n;
}

bool td_format_is_raw(const td_config *cfg) {
    return has_suffix(cfg->data.path, ".bin") || cfg->data.token_dtype != TD_TOKEN_AUTO;
}

static td_status refuse_containers(const char *path, const unsigned char *head, size_t n,
                                   td_error *err) {
    static const struct {
        const char *magic, *name, *hint;
        size_t len;
    } kinds[] = {
        {"\xfd"
         "7zXZ",
         "xz-compressed", "decompress it first: unxz -k FILE", 5},
        {"PK\x03\x04", "a zip archive", "unpack it first: unzip FILE", 4},
        {"PAR1", "a Parquet file", "make a token file of it with tools/prepare", 4},
        {"ARROW1", "an Arrow file", "make a token file of it with tools/prepare", 6},
    };
    if (n >= 10 && memcmp(head, "BZh", 3) == 0 && memcmp(head + 4, "1AY&SY", 6) == 0)
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s is bzip2-compressed, which is not read directly; "
                            "decompress it first: bunzip2 -k FILE",
                            path);
    /* A plain text may begin with "PK" or "PAR1": those need binary content behind. */
    bool binary = memchr(head, 0, n) != NULL;
    for (size_t i = 0; i < TD_ARRAY_LEN(kinds); i++)
        if ((binary || (unsigned char)kinds[i].magic[0] < ' ' ||
             (unsigned char)kinds[i].magic[0] > '~') &&
            n >= kinds[i].len && memcmp(head, kinds[i].magic, kinds[i].len) == 0)
            return td_error_set(err, TD_E_DATA,
                                "data.path: %s is %s, which is not read directly; %s", path,
                                kinds[i].name, kinds[i].hint);
    return TD_OK;
}

static td_status refuse_by_extension(const char *path, td_packing packing, td_error *err) {
    static const char *const packed[] = {".xz", ".bz2", ".zip"}, *const tables[] = {".parquet",
                                                                                    ".arrow"};
    for (size_t i = 0; i < TD_ARRAY_LEN(packed); i++)
        if (has_suffix(path, packed[i]))
            return td_error_set(err, TD_E_DATA,
                                "data.path: %s: %s files are not read directly (.gz and .zst are); "
                                "decompress it first (or set data.format if the name misleads)",
                                path, packed[i]);
    for (size_t i = 0; i < TD_ARRAY_LEN(tables); i++)
        if (has_suffix(path, tables[i]))
            return td_error_set(err, TD_E_DATA,
                                "data.path: %s: %s files are not read directly; make a token file "
                                "of it with tools/prepare (or set data.format if the name "
                                "misleads)",
                                path, tables[i]);
    if (has_suffix(path, ".idx"))
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s looks like the index of a Megatron dataset; name the "
                            ".bin file beside it",
                            path);
    if (packing == TD_PACK_NONE && (has_suffix(path, ".gz") || has_suffix(path, ".zst")))
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s does not begin as a %s file does; set data.format if "
                            "the name misleads",
                            path, has_suffix(path, ".gz") ? "gzip" : "zstd");
    return TD_OK;
}

static td_status detect(const char *path, const file_head *h, td_data_format *out, td_error *err) {
    const unsigned char *head = h->bytes;
    size_t n = h->n;
    td_status rc = refuse_by_extension(path, h->packing, err);
    if (rc != TD_OK)
        return rc;
    static const struct {
        const char *suffix;
        td_data_format format;
    } known[] = {{".jsonl", TD_FORMAT_JSONL}, {".ndjson", TD_FORMAT_JSONL},
                 {".json", TD_FORMAT_JSONL},  {".txt", TD_FORMAT_TEXT},
                 {".text", TD_FORMAT_TEXT},   {".safetensors", TD_FORMAT_TOKENS},
                 {".bin", TD_FORMAT_TOKENS}};
    size_t name_n = inner_length(path, h->packing);
    for (size_t i = 0; i < TD_ARRAY_LEN(known); i++)
        if (has_suffix_n(path, name_n, known[i].suffix)) {
            *out = known[i].format;
            return TD_OK;
        }

    /* safetensors: u64 length of the header, which is JSON. */
    uint64_t header = 0;
    for (size_t i = 0; i < 8 && i < n; i++)
        header |= (uint64_t)head[i] << (8 * i);
    if (n > 8 && head[8] == '{' && header >= 2 && h->packing == TD_PACK_NONE &&
        header <= h->size_bytes - 8) {
        *out = TD_FORMAT_TOKENS;
        return TD_OK;
    }
    if (memchr(head, 0, n))
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s looks like binary data; if it is not, set data.format "
                            "(jsonl, text or tokens; raw token ids also need data.token_dtype)",
                            path);
    size_t i = n >= 3 && memcmp(head, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (i < n && strchr(" \t\r\n", head[i]))
        i++;
    *out = i < n && head[i] == '{' ? TD_FORMAT_JSONL : TD_FORMAT_TEXT;
    return TD_OK;
}

/* Keys of raw token files. */
static td_status check_token_keys(const td_config *cfg, td_data_format f, td_error *err) {
    bool dtype = cfg->data.token_dtype != TD_TOKEN_AUTO, eos = cfg->data.document_eos >= 0;
    const char *key = dtype ? "token_dtype" : "document_eos";
    if ((dtype || eos) && f != TD_FORMAT_TOKENS)
        return td_error_set(err, TD_E_CONFIG,
                            "data.%s is for raw token files (.bin), but %s is read as format %s; "
                            "take the key out or set data.format = tokens",
                            key, cfg->data.path, td_data_format_name(f));
    if ((dtype || eos) && (has_suffix(cfg->data.path, ".safetensors") || !td_format_is_raw(cfg)))
        return td_error_set(err, TD_E_CONFIG,
                            "data.%s is for raw token files (.bin), but %s is read as safetensors, "
                            "which says these things itself; take the key out%s",
                            key, cfg->data.path,
                            dtype ? "" : " (or set data.token_dtype for a raw file)");
    return TD_OK;
}

/* What config.c cannot know while format is auto. */
static td_status check_keys(const td_config *cfg, td_data_format f, td_error *err) {
    td_status rc = check_token_keys(cfg, f, err);
    if (rc != TD_OK)
        return rc;
    if (f == TD_FORMAT_JSONL) {
        if (cfg->data.text_unit == TD_TEXT_FILE)
            return td_error_set(err, TD_E_CONFIG,
                                "data.text_unit = file is for format text, but %s is jsonl (set "
                                "data.format = text to read it as plain text)",
                                cfg->data.path);
        return TD_OK;
    }
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
                                fields[i].key, fields[i].value, cfg->data.path,
                                f == TD_FORMAT_TEXT ? "text" : "tokens");
    return TD_OK;
}

td_status td_format_resolve(const td_config *cfg, td_data_format *out, td_error *err) {
    const char *path = cfg->data.path;
    file_head h = {0};
    td_data_format f = cfg->data.format;
    if (f == TD_FORMAT_AUTO && cfg->data.token_dtype != TD_TOKEN_AUTO)
        f = TD_FORMAT_TOKENS; /* the key speaks of nothing else; then a name needs no .bin */
    td_status rc = read_head(path, &h, err);
    /* Raw token ids may begin with any bytes. */
    bool raw = td_format_is_raw(cfg) && (f == TD_FORMAT_AUTO || f == TD_FORMAT_TOKENS);
    if (rc == TD_OK && !raw)
        rc = refuse_containers(path, h.bytes, h.n, err);
    if (rc == TD_OK && f == TD_FORMAT_AUTO)
        rc = detect(path, &h, &f, err);
    if (rc == TD_OK)
        rc = check_keys(cfg, f, err);
    if (rc == TD_OK && f == TD_FORMAT_TOKENS && h.packing != TD_PACK_NONE && !raw)
        rc = td_error_set(err, TD_E_DATA,
                          "data.path: %s is a compressed token file; rows of token files are read "
                          "by their offset, so decompress it first: %s -d -k FILE",
                          path, td_packing_name(h.packing));
    if (rc == TD_OK)
        *out = f;
    return rc;
}
