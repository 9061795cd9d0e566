/* lines.c - the buffer behind td_lines: refilled from the file or its decompressor, searched for line
 * ends, grown when a line does not fit.
 */
#include "data/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/memory.h"

enum { BACK_BYTES = 16 << 10 };

static const char BOM[3] = {'\xef', '\xbb', '\xbf'};

static td_status fill(td_lines *l, td_error *err);

/* The first bytes of a compressed file, without a byte order mark. */
static td_status begin_packed(td_lines *l, td_error *err) {
    l->file_pos = l->start = 0;
    l->at_end = false;
    while (!l->at_end && l->end < 3) {
        td_status rc = fill(l, err);
        if (rc != TD_OK)
            return rc;
    }
    if (l->end >= 3 && memcmp(l->buf, BOM, 3) == 0)
        l->begin = l->start = 3;
    return TD_OK;
}

td_status td_lines_open(td_lines *l, const char *path, bool whole, td_error *err) {
    *l = (td_lines){.fd = -1};
    int fd;
    uint64_t size_bytes;
    td_status rc = td_file_open(path, TD_E_DATA, &fd, &size_bytes, err);
    if (rc != TD_OK)
        return rc;
    char head[4];
    ssize_t n = pread(fd, head, sizeof head, 0); /* a failure will come back at the first line */
    bool has_bom = n >= 3 && memcmp(head, BOM, 3) == 0;
    td_packing packing = td_packing_of(head, n > 0 ? (size_t)n : 0);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* a hint; failure changes nothing */
    *l = (td_lines){.path = path,
                    .fd = fd,
                    .whole = whole,
                    .max_bytes = TD_ROW_MAX_BYTES,
                    .read_bytes = TD_ROW_MAX_BYTES,
                    .file_pos = has_bom ? 3 : 0,
                    .start = has_bom ? 3 : 0,
                    .size_bytes = size_bytes};
    l->at_end = l->file_pos >= l->size_bytes;
    if (packing == TD_PACK_NONE)
        return TD_OK;
    rc = td_unpack_open(fd, path, l->size_bytes, packing, &l->unpack, err);
    if (rc == TD_OK)
        rc = begin_packed(l, err);
    if (rc != TD_OK)
        td_lines_close(l);
    return rc;
}

void td_lines_close(td_lines *l) {
    td_unpack_close(l->unpack);
    free(l->buf);
    if (l->fd >= 0)
        close(l->fd);
    *l = (td_lines){.fd = -1};
}

/* Reads into [end, cap); *n = 0 only at the end of the file, which a plain one must not come to
 * before its size. */
static td_status read_plain(td_lines *l, size_t *n, td_error *err) {
    uint64_t left = l->size_bytes - l->file_pos;
    size_t want = TD_MIN(l->cap - l->end, l->read_bytes);
    want = (size_t)TD_MIN((uint64_t)want, left);
    ssize_t got;
    do
        got = pread(l->fd, l->buf + l->end, want, (off_t)l->file_pos);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return td_error_errno(err, TD_E_DATA, errno, "cannot read the dataset %s at byte %llu",
                              l->path, (unsigned long long)l->file_pos);
    if (got == 0)
        return td_error_set(err, TD_E_DATA,
                            "%s: ends at byte %llu, but had %llu bytes when it was opened; do not "
                            "change a dataset while it is read",
                            l->path, (unsigned long long)l->file_pos,
                            (unsigned long long)l->size_bytes);
    *n = (size_t)got;
    return TD_OK;
}

/* Reads more of the file behind `end`; not at the end. */
static td_status fill(td_lines *l, td_error *err) {
    if (l->begin > 0) {
        memmove(l->buf, l->buf + l->begin, l->end - l->begin);
        l->end -= l->begin;
        l->begin = 0;
    }
    if (l->end == l->cap) {
        if (l->cap >= l->max_bytes)
            return td_error_set(err, TD_E_DATA,
                                "%s: the row that starts at byte %llu (after line %lld) is longer "
                                "than %zu bytes; cut it into rows of sensible length",
                                l->path, (unsigned long long)(l->file_pos - l->end),
                                (long long)l->line_no, l->max_bytes);
        size_t cap = l->cap ? l->cap * 2 : TD_LINES_BUF_BYTES;
        char *p = realloc(l->buf, cap);
        if (!p)
            return td_error_nomem(err, "a dataset row", cap);
        l->buf = p;
        l->cap = cap;
    }
    size_t n;
    td_status rc = l->unpack ? td_unpack_read(l->unpack, l->buf + l->end,
                                              TD_MIN(l->cap - l->end, l->read_bytes), &n, err)
                             : read_plain(l, &n, err);
    if (rc != TD_OK)
        return rc;
    l->end += n;
    l->file_pos += n;
    l->at_end = l->unpack ? n == 0 : l->file_pos >= l->size_bytes;
    return TD_OK;
}

td_status td_lines_next(td_lines *l, const char **line, size_t *n_bytes, td_error *err) {
    size_t scanned = 0; /* bytes from `begin` on that hold no LF */
    for (;;) {
        size_t have = l->end - l->begin;
        const char *lf = l->whole || have == scanned
                             ? NULL
                             : memchr(l->buf + l->begin + scanned, '\n', have - scanned);
        if (lf || l->at_end) {
            size_t n = lf ? (size_t)(lf + 1 - (l->buf + l->begin)) : have;
            bool one_more = n > 0 || (l->whole && !l->given_whole && l->file_pos > 0);
            *line = one_more ? (n ? l->buf + l->begin : "") : NULL;
            *n_bytes = n;
            l->begin += n;
            l->given_whole = true;
            if (one_more && l->line_no >= 0)
                l->line_no++;
            return TD_OK;
        }
        scanned = have;
        td_status rc = fill(l, err);
        if (rc != TD_OK)
            return rc;
    }
}

td_status td_lines_seek(td_lines *l, uint64_t offset, td_error *err) {
    l->begin = l->end = 0;
    l->line_no = -1;
    if (l->unpack) {
        td_status rc = td_unpack_seek(l->unpack, offset <= l->start ? 0 : offset, err);
        if (rc == TD_OK && offset <= l->start)
            return begin_packed(l, err);
        l->file_pos = offset;
        l->at_end = false;
        return rc;
    }
    l->file_pos = l->start;
    l->at_end = l->file_pos >= l->size_bytes;
    if (offset <= l->start)
        return TD_OK;
    /* From the byte before: a line that starts exactly at `offset` is found whole. */
    l->file_pos = TD_MIN(offset - 1, l->size_bytes);
    l->at_end = l->file_pos >= l->size_bytes;
    const char *line;
    size_t n;
    return td_lines_next(l, &line, &n, err);
}

td_status td_lines_start_of(const td_lines *l, uint64_t offset, uint64_t *start, td_error *err) {
    char *buf = NULL;
    size_t cap = 0, n = BACK_BYTES;
    td_status rc = TD_OK;
    uint64_t end = TD_MIN(offset, l->size_bytes); /* the search is in front of it */
    *start = l->start;
    while (rc == TD_OK && end > l->start) {
        n = (size_t)TD_MIN((uint64_t)n, end - l->start);
        if (!td_grow((void **)&buf, &cap, n, 1)) {
            rc = td_error_nomem(err, "a piece of the dataset", n);
            break;
        }
        rc = td_dataset_pread(l->fd, buf, n, end - n, l->path, err);
        const char *lf = rc == TD_OK ? memrchr(buf, '\n', n) : NULL;
        if (lf) {
            *start = end - n + (size_t)(lf + 1 - buf);
            break;
        }
        end -= n;
        n = TD_MIN(2 * cap, TD_LINES_BUF_BYTES);
    }
    free(buf);
    return rc;
}

uint64_t td_lines_offset(const td_lines *l) {
    return l->file_pos - (l->end - l->begin);
}

uint64_t td_lines_file_offset(const td_lines *l) {
    uint64_t offset = td_lines_offset(l);
    if (!l->unpack)
        return offset;
    /* What is in the buffer is taken to be packed as well as what was before. */
    uint64_t packed = td_unpack_packed_pos(l->unpack);
    if (l->at_end && offset == l->file_pos)
        return l->size_bytes;
    return l->file_pos ? (uint64_t)((double)packed * ((double)offset / (double)l->file_pos)) : 0;
}

td_status td_dataset_pread(int fd, void *data, size_t n_bytes, uint64_t pos, const char *path,
                           td_error *err) {
    td_status rc = td_pread_all(fd, data, n_bytes, pos, path, err);
    if (rc == TD_OK)
        return TD_OK;
    if (err)
        err->code = TD_E_DATA;
    return TD_E_DATA;
}

bool td_line_is_blank(const char *line, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r' && line[i] != '\n')
            return false;
    return true;
}

size_t td_line_content(const char *line, size_t n_bytes) {
    if (n_bytes > 0 && line[n_bytes - 1] == '\n') {
        n_bytes--;
        if (n_bytes > 0 && line[n_bytes - 1] == '\r')
            n_bytes--;
    }
    return n_bytes;
}
