/* foreign.c - see foreign.h. Nothing is unpacked or loaded to find out what a file is. */
#include "data/foreign.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include "base/memory.h"
#include "base/text.h"

/* What helps. */
typedef enum remedy {
    PREPARE, /* tdgen prepare reads it */
    UNPACK,  /* `hint` is a command, the file's name goes behind it */
    WRITE    /* its texts are to be written as JSONL; `hint` says with what, or is "" */
} remedy;

typedef struct foreign_kind {
    const char *name;
    size_t at, n; /* the first bytes: [n] at offset `at`; n = 0: by name only */
    const char *magic;
    const char *const *suffixes; /* ending with NULL */
    remedy remedy;
    const char *hint;
    bool plain; /* a text may begin so: binary content must follow */
} foreign_kind;

#define SUFFIXES(...) ((const char *const[]){__VA_ARGS__, NULL})
/* clang-format off */
static const foreign_kind kinds[] = {
    {"a Parquet file",      0, 4, "PAR1",   SUFFIXES(".parquet", ".pq"), PREPARE, "", true},
    {"an Arrow file",       0, 6, "ARROW1", SUFFIXES(".arrow", ".feather"), PREPARE, "", true},
    {"an Arrow stream",     0, 4, "\xff\xff\xff\xff", SUFFIXES(".arrows"), PREPARE, "", false},
    {"a Git LFS pointer",   0, 23, "version https://git-lfs", SUFFIXES(".lfs"), UNPACK, "git lfs pull --include", false},
    {"a CSV file",          0, 0, NULL, SUFFIXES(".csv"), PREPARE, "", false},
    {"a file of tab-separated values", 0, 0, NULL, SUFFIXES(".tsv", ".tab"), PREPARE, "", false},
    {"a spreadsheet",       0, 8, "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", SUFFIXES(".xlsx", ".xls", ".ods"), WRITE, "or save it as CSV, which tdgen prepare reads", false},
    {"a NumPy array",       0, 6, "\x93NUMPY", SUFFIXES(".npy", ".npz"), WRITE, "with numpy.load", false},
    {"an SQLite database",  0, 16, "SQLite format 3", SUFFIXES(".sqlite", ".sqlite3", ".db"), WRITE, "with SELECT json_object('text', COLUMN) FROM TABLE;", false},
    {"an HDF5 file",        0, 8, "\x89HDF\r\n\x1a\n", SUFFIXES(".h5", ".hdf5"), WRITE, "with h5py", false},
    {"a PDF document",      0, 5, "%PDF-", SUFFIXES(".pdf"), WRITE, "with pdftotext", true},
    {"a pickle",            0, 1, "\x80", SUFFIXES(".pkl", ".pickle"), WRITE, "in the program that made it (loading a pickle runs the code in it)", false},
    {"a PyTorch file",      0, 0, NULL, SUFFIXES(".pt", ".pth"), WRITE, "with torch.load(..., weights_only=True), or save its ids as safetensors", false},
    {"xz-compressed",       0, 6, "\xfd" "7zXZ", SUFFIXES(".xz"), UNPACK, "unxz -k", false},
    {"bzip2-compressed",    4, 6, "1AY&SY", SUFFIXES(".bz2"), UNPACK, "bunzip2 -k", false},
    {"lz4-compressed",      0, 4, "\x04\x22\x4d\x18", SUFFIXES(".lz4"), UNPACK, "unlz4 -k", false},
    {"a 7z archive",        0, 6, "7z\xbc\xaf\x27\x1c", SUFFIXES(".7z"), UNPACK, "7z x", false},
    {"a tar archive",       257, 5, "ustar", SUFFIXES(".tar", ".tgz"), UNPACK, "tar -xf", true},
    {"a zip archive",       0, 4, "PK\x03\x04", SUFFIXES(".zip"), UNPACK, "unzip", true},
};
/* clang-format on */

static bool contains(const td_file_head *h, const char *s) {
    return memmem(h->bytes, h->n, s, strlen(s)) != NULL;
}

static const foreign_kind *kind_of_suffix(const char *suffix) {
    for (size_t i = 0; i < TD_ARRAY_LEN(kinds); i++)
        for (const char *const *s = kinds[i].suffixes; *s; s++)
            if (strcasecmp(*s, suffix) == 0)
                return &kinds[i];
    return NULL;
}

/* By the name, also in front of .gz and .zst. */
static const foreign_kind *kind_of_name(const char *path) {
    char name[64];
    size_t n = strlen(path);
    n -= td_path_has_suffix(path, ".gz") ? 3 : td_path_has_suffix(path, ".zst") ? 4 : 0;
    for (size_t i = 0; i < TD_ARRAY_LEN(kinds); i++)
        for (const char *const *s = kinds[i].suffixes; *s; s++) {
            size_t k = strlen(*s);
            if (n <= k || k >= sizeof name)
                continue;
            memcpy(name, path + n - k, k);
            name[k] = '\0';
            if (strcasecmp(name, *s) == 0)
                return &kinds[i];
        }
    return NULL;
}

const char *td_foreign_name_kind(const char *path) {
    const foreign_kind *k = kind_of_name(path);
    return k ? k->name : NULL;
}

bool td_foreign_is_table(const char *name) {
    const foreign_kind *k = kind_of_name(name);
    return k && k->remedy == PREPARE;
}

/* A zip by what is in it. */
static const foreign_kind *kind_of_zip(const td_file_head *h, const foreign_kind *zip) {
    if (contains(h, "[Content_Types].xml") || contains(h, "xl/") ||
        contains(h, "mimetypeapplication/vnd.oasis"))
        return kind_of_suffix(".xlsx");
    if (contains(h, "data.pkl"))
        return kind_of_suffix(".pt");
    return contains(h, ".npy") ? kind_of_suffix(".npy") : zip;
}

/* What a stretch of fixed bytes does not say: bzip2's block size stands before it, a pickle's protocol,
 * 2 to 5, behind. */
static bool is_complete(const td_file_head *h, const foreign_kind *k) {
    if (k->at == 4)
        return memcmp(h->bytes, "BZh", 3) == 0;
    return k->n > 1 || (h->n > 1 && h->bytes[1] >= 2 && h->bytes[1] <= 5);
}

static const foreign_kind *kind_of_bytes(const td_file_head *h) {
    bool binary = memchr(h->bytes, 0, h->n) != NULL;
    for (size_t i = 0; i < TD_ARRAY_LEN(kinds); i++) {
        const foreign_kind *k = &kinds[i];
        if (k->n == 0 || h->n < k->at + k->n || memcmp(h->bytes + k->at, k->magic, k->n) != 0 ||
            (k->plain && !binary) || !is_complete(h, k))
            continue;
        return memcmp(k->magic, "PK", 2) == 0 ? kind_of_zip(h, k) : k;
    }
    return NULL;
}

/* The name without the extensions that say what it is: "d/train" of d/train.jsonl.gz. */
static size_t stem_length(const char *path) {
    const char *slash = strrchr(path, '/');
    size_t base = slash ? (size_t)(slash + 1 - path) : 0, n = strlen(path);
    if (td_path_has_suffix(path, ".gz") || td_path_has_suffix(path, ".zst"))
        n -= td_path_has_suffix(path, ".gz") ? 3 : 4;
    for (size_t i = n; i > base + 1; i--)
        if (path[i - 1] == '.' && n - i <= 8)
            return i - 1;
    return n;
}

void td_foreign_prepare_command(const td_config *cfg, const char *option, td_strbuf *out) {
    struct stat st;
    const char *source = cfg->data.path, *whole = cfg->data.whole;
    bool folder = false;
    if (whole && stat(whole, &st) == 0 && S_ISDIR(st.st_mode))
        source = whole;
    folder = stat(source, &st) == 0 && S_ISDIR(st.st_mode);
    size_t n = folder ? strlen(source) : stem_length(source);
    while (folder && n > 1 && source[n - 1] == '/')
        n--;
    bool here = folder && (strncmp(source, ".", n) == 0 || (n >= 2 && source[n - 1] == '.'));
    char *made =
        here ? td_strdup("dataset.safetensors") : td_asprintf("%.*s.safetensors", (int)n, source);
    td_strbuf_puts(out, "tdgen prepare ");
    td_text_shell_quote(source, out);
    td_strbuf_puts(out, " --model ");
    td_text_shell_quote(cfg->model.path ? cfg->model.path : "DIR", out);
    td_strbuf_puts(out, " --out ");
    td_text_shell_quote(made ? made : "FILE.safetensors", out);
    if (option)
        td_strbuf_printf(out, " %s", option);
    td_strbuf_printf(out, " (then set data.path = %s)", made ? made : "FILE.safetensors");
    if (whole && source != whole && strcmp(whole, source) != 0)
        td_strbuf_puts(out, "; the other files of data.path likewise");
    free(made);
}

td_status td_foreign_to_prepare(const td_config *cfg, const char *what, td_error *err) {
    td_strbuf b = {0};
    td_foreign_prepare_command(cfg, NULL, &b);
    td_status rc = td_error_set(err, TD_E_DATA,
                                "data.path: %s is %s, which is not read directly; this makes a "
                                "token file of it: %s",
                                cfg->data.path, what, b.oom ? "tdgen prepare --help" : b.data);
    td_strbuf_free(&b);
    return rc;
}

static td_status refuse(const td_config *cfg, const foreign_kind *k, const char *if_wrong,
                        td_error *err) {
    const char *path = cfg->data.path;
    td_strbuf file = {0};
    td_status rc;
    td_text_shell_quote(path, &file);
    switch (k->remedy) {
    case PREPARE:
        rc = td_foreign_to_prepare(cfg, k->name, err);
        break;
    case UNPACK:
        rc = td_error_set(err, TD_E_DATA,
                          "data.path: %s is %s, which is not read directly (.gz and .zst are); "
                          "unpack it first: %s %s",
                          path, k->name, k->hint, file.oom ? "FILE" : file.data);
        break;
    default:
        rc = td_error_set(err, TD_E_DATA,
                          "data.path: %s is %s, which is not read; write its texts as JSONL, one "
                          "{\"text\": \"...\"} a line, %s",
                          path, k->name, k->hint);
    }
    td_strbuf_free(&file);
    if (if_wrong[0] && err) {
        size_t n = strlen(err->text);
        snprintf(err->text + n, sizeof err->text - n, "%s", if_wrong);
    }
    return rc;
}

td_status td_foreign_refuse_bytes(const td_config *cfg, const td_file_head *h, td_error *err) {
    const foreign_kind *k = kind_of_bytes(h);
    return k ? refuse(cfg, k, "", err) : TD_OK;
}

td_status td_foreign_refuse_name(const td_config *cfg, td_packing packing, td_error *err) {
    const char *path = cfg->data.path;
    const foreign_kind *k = kind_of_name(path);
    if (k)
        return refuse(cfg, k,
                      k->n ? " (or set data.format if the name misleads)"
                           : " (data.format = text reads its lines as texts)",
                      err);
    if (td_path_has_suffix(path, ".idx"))
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s looks like the index of a Megatron dataset; name the "
                            ".bin file beside it",
                            path);
    if (packing == TD_PACK_NONE &&
        (td_path_has_suffix(path, ".gz") || td_path_has_suffix(path, ".zst")))
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s does not begin as a %s file does; set data.format if "
                            "the name misleads",
                            path, td_path_has_suffix(path, ".gz") ? "gzip" : "zstd");
    return TD_OK;
}

/* Every other byte is 0 in what is mostly Latin script. */
static bool is_wide(const td_file_head *h, const char **name) {
    static const unsigned char le[] = {0xff, 0xfe}, be[] = {0xfe, 0xff};
    const unsigned char *b = h->bytes;
    size_t zeros[2] = {0}, n = TD_MIN(h->n, sizeof h->bytes) & ~(size_t)1;
    *name = "UTF-16";
    if (n >= 4 && ((memcmp(b, le, 2) == 0 && b[2] == 0 && b[3] == 0) ||
                   (b[0] == 0 && b[1] == 0 && memcmp(b + 2, be, 2) == 0))) {
        *name = "UTF-32";
        return true;
    }
    if (n >= 2 && (memcmp(b, le, 2) == 0 || memcmp(b, be, 2) == 0))
        return true;
    for (size_t i = 0; i < n; i++)
        zeros[i % 2] += b[i] == 0;
    *name = zeros[1] ? "UTF-16LE" : "UTF-16BE";
    return n >= 8 && ((zeros[0] == 0 && zeros[1] > n / 2 * 3 / 4) ||
                      (zeros[1] == 0 && zeros[0] > n / 2 * 3 / 4));
}

td_status td_foreign_refuse_wide(const td_config *cfg, const td_file_head *h, td_error *err) {
    const char *name, *path = cfg->data.path;
    if (!is_wide(h, &name))
        return TD_OK;
    td_strbuf b = {0};
    size_t stem = stem_length(path);
    char *made = td_asprintf("%.*s.utf8%s", (int)stem, path, path + stem);
    if (h->packing != TD_PACK_NONE) {
        td_strbuf_printf(&b, "%s -dc ", td_packing_name(h->packing));
        td_text_shell_quote(path, &b);
        td_strbuf_printf(&b, " | iconv -f %s -t UTF-8 > ", name);
        if (made) /* without .gz */
            made[strlen(made) - (td_path_has_suffix(made, ".gz")    ? 3
                                 : td_path_has_suffix(made, ".zst") ? 4
                                                                    : 0)] = '\0';
    } else {
        td_strbuf_printf(&b, "iconv -f %s -t UTF-8 ", name);
        td_text_shell_quote(path, &b);
        td_strbuf_puts(&b, " > ");
    }
    td_text_shell_quote(made ? made : "FILE", &b);
    td_status rc = td_error_set(err, TD_E_DATA,
                                "data.path: %s is %s text, and UTF-8 is expected; convert it: %s",
                                path, name, b.oom ? "iconv" : b.data);
    free(made);
    td_strbuf_free(&b);
    return rc;
}
