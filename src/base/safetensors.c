/* safetensors.c - the one parser of safetensors files; every byte it reads may be hostile.
 *
 *   u64 little-endian n | n bytes of JSON | data
 *
 * The rules are those of the reference implementation (huggingface/safetensors, Rust), so that a
 * file that opens here opens there: a header of at most 100 MB that begins with '{', no duplicate
 * names, and data that the tensors cover from the first byte to the last without gap or overlap.
 *
 * The mapping is private and read-only. A file that another process truncates while it is mapped
 * raises SIGBUS at the next touch; mapped.h tells the program which file it was, and bulk reads go
 * through td_safetensors_read, which returns an error.
 */
#include "base/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/file.h"
#include "base/mapped.h"
#include "base/memory.h"

enum { PREFIX_BYTES = 8 };
static const uint64_t max_header_bytes = 100u * 1000 * 1000;

struct td_safetensors {
    char *path;
    td_status code;     /* of failures */
    int fd;             /* -1: not open */
    json_t *header;     /* owns the tensors' names */
    const uint8_t *map; /* NULL: the header alone was given */
    size_t map_bytes;
    const uint8_t *data; /* NULL without a mapping */
    size_t data_bytes;
    td_st_tensor *tensors;        /* [n], by data_begin */
    const td_st_tensor **by_name; /* [n], by strcmp */
    size_t n;
};

static const struct {
    const char *name;
    uint8_t size_bytes;
    int8_t dtype; /* td_dtype, or -1 */
} known_dtypes[] = {
    {"F32", 4, TD_F32},     {"BF16", 2, TD_BF16},   {"F16", 2, TD_F16}, {"I32", 4, TD_I32},
    {"I64", 8, TD_I64},     {"U8", 1, TD_U8},       {"F64", 8, -1},     {"U64", 8, -1},
    {"U32", 4, -1},         {"I16", 2, -1},         {"U16", 2, -1},     {"I8", 1, -1},
    {"BOOL", 1, -1},        {"F8_E4M3", 1, -1},     {"F8_E5M2", 1, -1}, {"F8_E8M0", 1, -1},
    {"F8_E4M3FNUZ", 1, -1}, {"F8_E5M2FNUZ", 1, -1}, {"C64", 8, -1},
};

static int by_offset(const void *a, const void *b) {
    const td_st_tensor *x = a, *y = b;
    if (x->data_begin != y->data_begin)
        return x->data_begin < y->data_begin ? -1 : 1;
    if (x->size_bytes != y->size_bytes) /* empty tensors come before the one that has bytes */
        return x->size_bytes < y->size_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    const td_st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int name_against(const void *key, const void *elem) {
    const td_st_tensor *const *y = elem;
    return strcmp(key, (*y)->name);
}

/* Fills t from its header entry; the data range is checked against data_bytes. */
static td_status parse_tensor(const td_safetensors *st, const char *name, const json_t *v,
                              td_status code, td_st_tensor *t, td_error *err) {
    const char *path = st->path, *dtype;
    if (!json_is_object(v))
        return td_error_set(err, code, "%s: tensor %s: expected an object in the header, found %s",
                            path, name, td_json_type_name(v));
    t->name = name;
    if (td_json_get_str(v, "dtype", path, code, &dtype, err) != TD_OK)
        return td_error_prefix(err, "tensor %s", name);
    t->dtype = -1;
    for (size_t i = 0; i < TD_ARRAY_LEN(known_dtypes); i++)
        if (!strcmp(dtype, known_dtypes[i].name)) {
            t->dtype = known_dtypes[i].dtype;
            t->elem_size_bytes = known_dtypes[i].size_bytes;
            strcpy(t->dtype_name, dtype);
        }
    if (!t->elem_size_bytes)
        return td_error_set(err, code, "%s: tensor %s has the unknown dtype \"%.40s\"", path, name,
                            dtype);

    const json_t *shape = json_object_get(v, "shape");
    if (!json_is_array(shape))
        return td_error_set(err, code, "%s: tensor %s has no \"shape\" array", path, name);
    if (json_array_size(shape) > TD_ST_MAX_DIMS)
        return td_error_set(err, code, "%s: tensor %s has %zu dimensions, at most %d are supported",
                            path, name, json_array_size(shape), TD_ST_MAX_DIMS);
    t->n_dims = (int32_t)json_array_size(shape);
    size_t n_elems = 1;
    for (int32_t i = 0; i < t->n_dims; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return td_error_set(err, code, "%s: tensor %s: dimension %d is no integer >= 0", path,
                                name, i);
        t->shape[i] = json_integer_value(d);
        if (!td_mul_size(n_elems, (size_t)t->shape[i], &n_elems) || n_elems > INT64_MAX)
            return td_error_set(err, code, "%s: tensor %s: its shape overflows", path, name);
    }
    t->n_elems = (int64_t)n_elems;
    if (!td_mul_size(n_elems, t->elem_size_bytes, &t->size_bytes))
        return td_error_set(err, code, "%s: tensor %s: its shape overflows", path, name);

    const json_t *off = json_object_get(v, "data_offsets");
    const json_t *jb = json_array_get(off, 0), *je = json_array_get(off, 1);
    if (json_array_size(off) != 2 || !json_is_integer(jb) || !json_is_integer(je))
        return td_error_set(err, code, "%s: tensor %s: \"data_offsets\" must be two integers", path,
                            name);
    int64_t begin = json_integer_value(jb), end = json_integer_value(je);
    if (begin < 0 || end < begin || (uint64_t)end > st->data_bytes)
        return td_error_set(err, code,
                            "%s: tensor %s lies at bytes %" PRId64 " to %" PRId64
                            ", but the data part has %zu bytes; is the file complete?",
                            path, name, begin, end, st->data_bytes);
    if ((uint64_t)(end - begin) != t->size_bytes)
        return td_error_set(err, code,
                            "%s: tensor %s has %" PRId64 " bytes, its shape and dtype need %zu",
                            path, name, end - begin, t->size_bytes);
    t->file = st;
    t->data_begin = (uint64_t)begin;
    t->data = st->data ? st->data + begin : NULL;
    return TD_OK;
}

static td_status check_metadata(const td_safetensors *st, const json_t *meta, td_status code,
                                td_error *err) {
    const char *key;
    json_t *v;
    if (!json_is_object(meta))
        return td_error_set(err, code, "%s: __metadata__ is no object", st->path);
    json_object_foreach((json_t *)meta, key, v) if (!json_is_string(v)) return td_error_set(
        err, code, "%s: __metadata__ \"%s\" must be a string, but is %s", st->path, key,
        td_json_type_name(v));
    return TD_OK;
}

/* Every byte of the data belongs to exactly one tensor. `tensors` is sorted by offset. */
static td_status check_cover(const td_safetensors *st, td_status code, td_error *err) {
    uint64_t next = 0;
    for (size_t i = 0; i < st->n; i++) {
        const td_st_tensor *t = &st->tensors[i];
        if (t->data_begin < next)
            return td_error_set(err, code, "%s: tensors %s and %s overlap", st->path,
                                st->tensors[i - 1].name, t->name);
        if (t->data_begin > next)
            return td_error_set(err, code, "%s: %" PRIu64 " bytes before tensor %s belong to none",
                                st->path, t->data_begin - next, t->name);
        next = t->data_begin + t->size_bytes;
    }
    if (next != st->data_bytes)
        return td_error_set(err, code, "%s: %" PRIu64 " bytes after the last tensor belong to none",
                            st->path, st->data_bytes - next);
    return TD_OK;
}

/* `head` holds the first head_bytes of a file of file_bytes. */
static td_status parse_header(td_safetensors *st, const uint8_t *head, size_t head_bytes,
                              size_t file_bytes, td_status code, td_error *err) {
    if (file_bytes < PREFIX_BYTES || head_bytes < PREFIX_BYTES)
        return td_error_set(err, code, "%s: %zu bytes are too few for a safetensors file", st->path,
                            TD_MIN(file_bytes, head_bytes));
    uint64_t n = 0;
    for (int i = PREFIX_BYTES; i-- > 0;)
        n = n << 8 | head[i];
    if (td_file_is_lfs_pointer(head, head_bytes))
        return td_file_lfs_error(st->path, code, err);
    if (n > max_header_bytes)
        return td_error_set(err, code,
                            "%s: a header of %" PRIu64
                            " bytes is over the format's limit of 100 MB; is this a safetensors "
                            "file?",
                            st->path, n);
    if (n > file_bytes - PREFIX_BYTES || n > head_bytes - PREFIX_BYTES)
        return td_error_set(err, code,
                            "%s: the header has %" PRIu64
                            " bytes, but the file ends after %zu; is the file complete?",
                            st->path, n, file_bytes);
    st->data = st->map ? st->map + PREFIX_BYTES + n : NULL;
    st->data_bytes = file_bytes - PREFIX_BYTES - n;

    const char *text = (const char *)head + PREFIX_BYTES;
    if (n == 0 || text[0] != '{')
        return td_error_set(err, code, "%s: the header does not begin with '{'", st->path);
    json_error_t je;
    st->header = json_loadb(text, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &je);
    if (!st->header)
        return td_error_set(err, code, "%s: bad header at byte %d: %s", st->path,
                            je.position + PREFIX_BYTES, je.text);

    size_t n_keys = json_object_size(st->header);
    st->tensors = td_calloc(n_keys, sizeof *st->tensors);
    st->by_name = td_calloc(n_keys, sizeof *st->by_name);
    if (!st->tensors || !st->by_name)
        return td_error_nomem(err, "safetensors header", n_keys * sizeof *st->tensors);
    const char *key;
    json_t *v;
    json_object_foreach(st->header, key, v) {
        td_status rc;
        if (!strcmp(key, "__metadata__"))
            rc = check_metadata(st, v, code, err);
        else
            rc = parse_tensor(st, key, v, code, &st->tensors[st->n++], err);
        if (rc != TD_OK)
            return rc;
    }
    qsort(st->tensors, st->n, sizeof *st->tensors, by_offset);
    for (size_t i = 0; i < st->n; i++)
        st->by_name[i] = &st->tensors[i];
    qsort(st->by_name, st->n, sizeof *st->by_name, by_name);
    return check_cover(st, code, err);
}

static td_status map_file(td_safetensors *st, td_status code, td_error *err) {
    int fd = st->fd;
    td_status rc = TD_OK;
    struct stat sb;
    if (fstat(fd, &sb) != 0) {
        rc = td_error_errno(err, code, errno, "%s: cannot stat", st->path);
    } else if (!S_ISREG(sb.st_mode)) {
        rc = td_error_set(err, code, "%s: not a regular file", st->path);
    } else if (sb.st_size > 0) { /* mmap refuses length 0; parse_header reports such a file */
        void *p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            rc = td_error_errno(err, code, errno, "%s: cannot map %lld bytes", st->path,
                                (long long)sb.st_size);
        } else {
            st->map = p;
            st->map_bytes = (size_t)sb.st_size;
            td_mapped_add(p, st->map_bytes, st->path, code);
        }
    }
    return rc;
}

td_status td_safetensors_open(const char *path, td_status code, td_safetensors **out,
                              td_error *err) {
    int fd;
    td_status rc = td_file_open(path, code, &fd, NULL, err);
    if (rc != TD_OK)
        return rc;
    return td_safetensors_open_fd(fd, path, code, out, err);
}

td_status td_safetensors_open_fd(int fd, const char *path, td_status code, td_safetensors **out,
                                 td_error *err) {
    td_safetensors *st = td_calloc(1, sizeof *st);
    if (!st || !(st->path = td_strdup(path))) {
        free(st);
        close(fd);
        return td_error_nomem(err, "safetensors file", sizeof *st);
    }
    st->code = code;
    st->fd = fd;
    td_status rc = map_file(st, code, err);
    if (rc == TD_OK)
        rc = parse_header(st, st->map, st->map_bytes, st->map_bytes, code, err);
    if (rc != TD_OK) {
        td_safetensors_close(st);
        return rc;
    }
    *out = st;
    return TD_OK;
}

td_status td_safetensors_open_header(const void *head, size_t head_bytes, uint64_t file_bytes,
                                     const char *path, td_status code, td_safetensors **out,
                                     td_error *err) {
    td_safetensors *st = td_calloc(1, sizeof *st);
    if (!st || !(st->path = td_strdup(path))) {
        free(st);
        return td_error_nomem(err, "safetensors file", sizeof *st);
    }
    st->code = code;
    st->fd = -1;
    td_status rc = parse_header(st, head, head_bytes, (size_t)file_bytes, code, err);
    if (rc != TD_OK) {
        td_safetensors_close(st);
        return rc;
    }
    *out = st;
    return TD_OK;
}

void td_safetensors_close(td_safetensors *st) {
    if (!st)
        return;
    if (st->map) {
        td_mapped_remove(st->map);
        munmap((void *)st->map, st->map_bytes);
    }
    if (st->fd >= 0)
        close(st->fd);
    json_decref(st->header);
    free(st->by_name);
    free(st->tensors);
    free(st->path);
    free(st);
}

size_t td_safetensors_count(const td_safetensors *st) {
    return st->n;
}

const td_st_tensor *td_safetensors_at(const td_safetensors *st, size_t i) {
    return i < st->n ? &st->tensors[i] : NULL;
}

const td_st_tensor *td_safetensors_find(const td_safetensors *st, const char *name) {
    const td_st_tensor **p =
        st->n ? bsearch(name, st->by_name, st->n, sizeof *st->by_name, name_against) : NULL;
    return p ? *p : NULL;
}

const char *td_safetensors_meta(const td_safetensors *st, const char *key) {
    return json_string_value(json_object_get(json_object_get(st->header, "__metadata__"), key));
}

const char *td_safetensors_path(const td_safetensors *st) {
    return st->path;
}

const void *td_safetensors_data(const td_safetensors *st, size_t *size_bytes) {
    *size_bytes = st->data_bytes;
    return st->data;
}

td_status td_safetensors_read(const td_st_tensor *t, size_t offset, void *dst, size_t n,
                              td_error *err) {
    const td_safetensors *st = t->file;
    if (offset > t->size_bytes || n > t->size_bytes - offset)
        return td_error_set(err, TD_E_INTERNAL, "bytes [%zu, +%zu) of tensor %s, which has %zu",
                            offset, n, t->name, t->size_bytes);
    uint64_t at = (uint64_t)((const uint8_t *)t->data - st->map) + offset;
    td_status rc = td_pread_all(st->fd, dst, n, at, st->path, err);
    if (rc == TD_OK)
        return TD_OK;
    if (err)
        err->code = st->code;
    return st->code;
}
