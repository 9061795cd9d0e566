/* Files that a shard is made in. See shard_temp.h. */
#include "record/shard_temp.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"
#include "base/strbuf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* --- columns ---------------------------------------------------------------------------------- */

void column_begin_at(column *c, int fd, const char *path, uint64_t at, td_error *err) {
    c->fd = fd;
    c->path = path;
    c->at = at;
    c->n = 0;
    c->rc = TD_OK;
    c->err = err;
}

void column_begin(column *c, const shard_temp *t, td_tensor_id id, uint64_t elem, td_error *err) {
    const td_layout_tensor *lt = &t->layout.tensor[id];
    column_begin_at(c, t->fd, t->path,
                    t->header_size_bytes + lt->begin + elem * td_dtype_size(lt->dtype), err);
}

static void flush(column *c) {
    if (c->rc == TD_OK && c->n)
        c->rc = td_pwrite_all(c->fd, c->buf, c->n, c->at, c->path, c->err);
    c->at += c->n;
    c->n = 0;
}

void column_push(column *c, const void *data, size_t size_bytes) {
    if (size_bytes == 0)
        return;
    if (size_bytes >= sizeof c->buf) { /* large parts go straight to the file */
        flush(c);
        if (c->rc == TD_OK)
            c->rc = td_pwrite_all(c->fd, data, size_bytes, c->at, c->path, c->err);
        c->at += size_bytes;
        return;
    }
    if (c->n + size_bytes > sizeof c->buf)
        flush(c);
    memcpy(c->buf + c->n, data, size_bytes);
    c->n += size_bytes;
}

td_status column_end(column *c) {
    flush(c);
    return c->rc;
}

/* --- temp files ------------------------------------------------------------------------------- */

td_status shard_temp_write(const shard_temp *t, td_tensor_id id, uint64_t elem, const void *data,
                           uint64_t n_elems, td_error *err) {
    const td_layout_tensor *lt = &t->layout.tensor[id];
    size_t es = td_dtype_size(lt->dtype);
    return td_pwrite_all(t->fd, data, (size_t)n_elems * es,
                         t->header_size_bytes + lt->begin + elem * es, t->path, err);
}

static td_status reserve(const shard_temp *t, const char *dir, td_error *err) {
    uint64_t size = t->header_size_bytes + t->layout.data_size_bytes;
    int e = posix_fallocate(t->fd, 0, (off_t)size);
    /* A file system that cannot reserve reports a full disk at the write that meets it. */
    if ((e == EOPNOTSUPP || e == EINVAL || e == ENOSYS) && ftruncate(t->fd, (off_t)size) == 0)
        e = 0;
    if (e == 0)
        return TD_OK;
    char need[32], room[32] = "an unknown amount";
    struct statvfs vfs;
    if (statvfs(dir, &vfs) == 0)
        td_human_bytes((uint64_t)vfs.f_bavail * vfs.f_frsize, room, sizeof room);
    return td_error_errno(err, TD_E_OUTPUT, e,
                          "cannot reserve %s for %s (%s is free); make room or choose another "
                          "output.dir, and run the same command again",
                          td_human_bytes(size, need, sizeof need), t->path, room);
}

void shard_temp_discard(shard_temp *t) {
    if (t->fd >= 0) {
        close(t->fd);
        unlink(t->path);
    }
    free(t->path);
    t->path = NULL;
    t->fd = -1;
}

td_status shard_temp_create(const char *dir, const char *name, const td_layout *l,
                            const td_shard_meta *meta, shard_temp *out, td_error *err) {
    shard_temp t = {.layout = *l, .fd = -1};
    td_strbuf header = {0};
    char *final = td_asprintf("%s/%s", dir, name);
    t.path = final ? td_temp_path(final) : NULL;
    free(final);
    if (!t.path)
        return td_error_nomem(err, "a path", 0);
    td_status rc = td_layout_header(&t.layout, meta, NULL, &header, err);
    t.header_size_bytes = header.len;
    td_strbuf_free(&header);
    if (rc != TD_OK)
        goto fail;
    rc = td_file_create(t.path, TD_CREATE_NEW, &t.fd, err);
    if (rc != TD_OK)
        goto fail;
    rc = reserve(&t, dir, err);
    if (rc != TD_OK)
        goto fail;
    *out = t;
    return TD_OK;
fail:
    shard_temp_discard(&t);
    return rc;
}
