#include "format.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tdgen/util.h"

/* Reads up to `cap` first bytes of a regular, readable file. */
static td_status read_head(const char *path, unsigned char *head, size_t cap, size_t *n,
                           uint64_t *size_bytes, td_error *err) {
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
    else if ((got = pread(fd, head, cap, 0)) < 0)
        rc = td_error_errno(err, TD_E_DATA, errno, "data.path: cannot read %s", path);
    close(fd);
    if (rc != TD_OK)
        return rc;
    *n = (size_t)got;
    *size_bytes = (uint64_t)st.st_size;
    return TD_OK;
}

static bool has_suffix(const char *path, const char *suffix) {
    size_t n = strlen(path), k = strlen(suffix);
    return n > k && strcasecmp(path + n - k, suffix) == 0;
}

static td_status refuse_containers(const char *path, const unsigned char *head, size_t n,
                                   td_error *err) {
    static const struct {
        const char *magic, *name, *hint;
        size_t len;
    } kinds[] = {
        {"\x1f\x8b", "gzip-compressed", "decompress it first: gunzip -k FILE", 2},
        {"\x28\xb5\x2f\xfd", "zstd-compressed", "decompress it first: unzstd FILE", 4},
        {"\xfd"
         "7zXZ",
         "xz-compressed", "decompress it first: unxz -k FILE", 5},
        {"PK\x03\x04", "a zip archive", "unpack it first: unzip FILE", 4},
        {"PAR1", "a Parquet file", "export it as JSON Lines first", 4},
        {"ARROW1", "an Arrow file", "export it as JSON Lines first", 6},
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

static td_status refuse_by_extension(const char *path, td_error *err) {
    static const char *const packed[] = {".gz",  ".zst",     ".xz",   ".bz2",
                                         ".zip", ".parquet", ".arrow"};
    for (size_t i = 0; i < TD_ARRAY_LEN(packed); i++)
        if (has_suffix(path, packed[i]))
            return td_error_set(err, TD_E_DATA,
                                "data.path: %s: %s files are not read directly; decompress or "
                                "export it as JSON Lines first (or set data.format if the name "
                                "misleads)",
                                path, packed[i]);
    return TD_OK;
}

static td_status detect(const char *path, const unsigned char *head, size_t n, uint64_t size_bytes,
                        td_data_format *out, td_error *err) {
    td_status rc = refuse_by_extension(path, err);
    if (rc != TD_OK)
        return rc;
    static const struct {
        const char *suffix;
        td_data_format format;
    } known[] = {{".jsonl", TD_FORMAT_JSONL}, {".ndjson", TD_FORMAT_JSONL},
                 {".json", TD_FORMAT_JSONL},  {".txt", TD_FORMAT_TEXT},
                 {".text", TD_FORMAT_TEXT},   {".safetensors", TD_FORMAT_TOKENS}};
    for (size_t i = 0; i < TD_ARRAY_LEN(known); i++)
        if (has_suffix(path, known[i].suffix)) {
            *out = known[i].format;
            return TD_OK;
        }

    /* safetensors: u64 length of the header, which is JSON. */
    uint64_t header = 0;
    for (size_t i = 0; i < 8 && i < n; i++)
        header |= (uint64_t)head[i] << (8 * i);
    if (n > 8 && head[8] == '{' && header >= 2 && header <= size_bytes - 8) {
        *out = TD_FORMAT_TOKENS;
        return TD_OK;
    }
    if (memchr(head, 0, n))
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s looks like binary data; if it is not, set data.format "
                            "(jsonl, text or tokens)",
                            path);
    size_t i = n >= 3 && memcmp(head, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (i < n && strchr(" \t\r\n", head[i]))
        i++;
    *out = i < n && head[i] == '{' ? TD_FORMAT_JSONL : TD_FORMAT_TEXT;
    return TD_OK;
}

/* What config.c cannot know while format is auto. */
static td_status check_keys(const td_config *cfg, td_data_format f, td_error *err) {
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
    unsigned char head[4096];
    size_t n = 0;
    uint64_t size_bytes = 0;
    td_data_format f = cfg->data.format;
    td_status rc = read_head(path, head, sizeof head, &n, &size_bytes, err);
    if (rc == TD_OK)
        rc = refuse_containers(path, head, n, err);
    if (rc == TD_OK && f == TD_FORMAT_AUTO)
        rc = detect(path, head, n, size_bytes, &f, err);
    if (rc == TD_OK)
        rc = check_keys(cfg, f, err);
    if (rc == TD_OK)
        *out = f;
    return rc;
}
