/* Compressed shards. See shard_zstd.h. */
#include "record/shard_zstd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"

/* Level 3 is zstd's own default. Windows are at most 8 MiB there; a frame that asks for more than
 * 128 MiB is not ours. */
enum { LEVEL = 3, WINDOW_LOG_MAX = 27, CHUNK = 1 << 20 };
#define RATIO_MAX 1000u
#define RATIO_FREE_BYTES ((uint64_t)64 << 20)

td_status td_zstd_pack(int from, const char *from_path, uint64_t size_bytes, const char *to_path,
                       int *to_fd, uint64_t *file_hash, uint64_t *file_size, td_error *err) {
    td_status rc = TD_OK;
    int fd = -1;
    uint64_t written = 0;
    ZSTD_CCtx *z = ZSTD_createCCtx();
    td_hasher *hasher = td_hasher_create();
    char *in = malloc(CHUNK), *out = malloc(CHUNK);
    if (!z || !hasher || !in || !out) {
        rc = td_error_nomem(err, "compressing a shard", 2 * (size_t)CHUNK);
        goto done;
    }
    td_hasher_reset(hasher);
    size_t e = ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, LEVEL);
    if (!ZSTD_isError(e))
        e = ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1);
    if (!ZSTD_isError(e))
        e = ZSTD_CCtx_setPledgedSrcSize(z, size_bytes); /* puts the content size into the frame */
    if (ZSTD_isError(e)) {
        rc = td_error_set(err, TD_E_INTERNAL, "zstd: %s", ZSTD_getErrorName(e));
        goto done;
    }
    rc = td_file_create(to_path, TD_CREATE_NEW, &fd, err);
    if (rc != TD_OK)
        goto done;
    bool ended = false;
    for (uint64_t at = 0; !ended;) {
        size_t n = (size_t)TD_MIN((uint64_t)CHUNK, size_bytes - at);
        rc = td_pread_all(from, in, n, at, from_path, err);
        if (rc != TD_OK)
            goto done;
        at += n;
        ZSTD_inBuffer src = {in, n, 0};
        ZSTD_EndDirective mode = at == size_bytes ? ZSTD_e_end : ZSTD_e_continue;
        bool taken = false;
        while (!taken) {
            ZSTD_outBuffer dst = {out, CHUNK, 0};
            size_t left = ZSTD_compressStream2(z, &dst, &src, mode);
            if (ZSTD_isError(left)) {
                rc = td_error_set(err, TD_E_INTERNAL, "compressing %s: %s", from_path,
                                  ZSTD_getErrorName(left));
                goto done;
            }
            rc = td_pwrite_all(fd, out, dst.pos, written, to_path, err);
            if (rc != TD_OK)
                goto done;
            td_hasher_update(hasher, out, dst.pos);
            written += dst.pos;
            ended = mode == ZSTD_e_end && left == 0;
            taken = mode == ZSTD_e_end ? ended : src.pos == src.size;
        }
    }
    *file_hash = td_hasher_digest(hasher);
    *file_size = written;
    *to_fd = fd;
    fd = -1;
done:
    if (fd >= 0) {
        close(fd);
        unlink(to_path);
    }
    free(in);
    free(out);
    td_hasher_destroy(hasher);
    ZSTD_freeCCtx(z);
    return rc;
}

/* --- reading ---------------------------------------------------------------------------------- */

struct td_zstd_reader {
    int fd;
    const char *path;
    td_status code;
    ZSTD_DCtx *z;
    td_hasher *hasher; /* of the compressed bytes */
    char *in;
    ZSTD_inBuffer src;
    uint64_t content, read_at, given;
    size_t left; /* of the frame; 0 = it ended */
};

/* The size that the frame says it has, held against what a shard can shrink to: a file that grows by
 * more is made to fill a disk. */
static td_status content_size(int fd, const char *path, td_status code, uint64_t *out,
                              td_error *err) {
    unsigned char head[18]; /* the longest frame header */
    struct stat st;
    ssize_t got;
    do
        got = pread(fd, head, sizeof head, 0);
    while (got < 0 && errno == EINTR);
    if (got < 0 || fstat(fd, &st) != 0)
        return td_error_errno(err, code, errno, "cannot read %s", path);
    unsigned long long n = ZSTD_getFrameContentSize(head, (size_t)got);
    if (n == ZSTD_CONTENTSIZE_ERROR || n == ZSTD_CONTENTSIZE_UNKNOWN)
        return td_error_set(err, code,
                            "%s: no zstd frame with a content size: damaged, or not written by "
                            "tdgen",
                            path);
    if (n > RATIO_FREE_BYTES && (n - RATIO_FREE_BYTES) / RATIO_MAX > (uint64_t)st.st_size)
        return td_error_set(err, code,
                            "%s: %lld bytes that unpack to %llu are no shard: damaged, or made to "
                            "fill a disk",
                            path, (long long)st.st_size, n);
    *out = n;
    return TD_OK;
}

td_status td_zstd_reader_open(int fd, const char *path, td_status code, td_zstd_reader **out,
                              td_error *err) {
    td_zstd_reader *r = td_calloc(1, sizeof *r);
    if (r)
        *r = (td_zstd_reader){.fd = fd,
                              .path = path,
                              .code = code,
                              .z = ZSTD_createDCtx(),
                              .hasher = td_hasher_create(),
                              .in = malloc(CHUNK),
                              .left = 1};
    if (!r || !r->z || !r->hasher || !r->in) {
        td_zstd_reader_close(r);
        return td_error_nomem(err, "unpacking a shard", CHUNK);
    }
    r->src.src = r->in;
    (void)ZSTD_DCtx_setParameter(r->z, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
    td_hasher_reset(r->hasher);
    td_status rc = content_size(fd, path, code, &r->content, err);
    if (rc != TD_OK) {
        td_zstd_reader_close(r);
        return rc;
    }
    *out = r;
    return TD_OK;
}

void td_zstd_reader_close(td_zstd_reader *r) {
    if (!r)
        return;
    ZSTD_freeDCtx(r->z);
    td_hasher_destroy(r->hasher);
    free(r->in);
    free(r);
}

uint64_t td_zstd_reader_size(const td_zstd_reader *r) {
    return r->content;
}

/* The next compressed bytes; *ended at the end of the file. */
static td_status refill(td_zstd_reader *r, bool *ended, td_error *err) {
    ssize_t got;
    do
        got = pread(r->fd, r->in, CHUNK, (off_t)r->read_at);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return td_error_errno(err, r->code, errno, "cannot read %s", r->path);
    td_hasher_update(r->hasher, r->in, (size_t)got);
    r->read_at += (uint64_t)got;
    r->src.size = (size_t)got;
    r->src.pos = 0;
    *ended = got == 0;
    return TD_OK;
}

td_status td_zstd_reader_read(td_zstd_reader *r, void *dst, size_t n, td_error *err) {
    ZSTD_outBuffer out = {dst, n, 0};
    while (out.pos < n) {
        bool ended = false;
        const size_t before = out.pos;
        if (r->src.pos == r->src.size) {
            td_status rc = refill(r, &ended, err);
            if (rc != TD_OK)
                return rc;
        }
        if (r->left != 0) {
            r->left = ZSTD_decompressStream(r->z, &out, &r->src);
            if (ZSTD_isError(r->left))
                return td_error_set(err, r->code, "%s is damaged: zstd: %s", r->path,
                                    ZSTD_getErrorName(r->left));
        }
        /* What the last input left within the decoder comes without input. */
        if (out.pos == before && (ended || r->left == 0))
            return td_error_set(err, r->code, "%s: the compressed shard ends early", r->path);
    }
    r->given += n;
    return TD_OK;
}

td_status td_zstd_reader_end(td_zstd_reader *r, uint64_t *file_hash, uint64_t *file_size,
                             td_error *err) {
    char one;
    bool ended = false;
    if (r->given != r->content)
        return td_error_set(err, r->code, "%s: holds %llu bytes, its frame says %llu", r->path,
                            (unsigned long long)r->given, (unsigned long long)r->content);
    while (!ended) {
        ZSTD_outBuffer out = {&one, 1, 0};
        if (r->left != 0) {
            r->left = ZSTD_decompressStream(r->z, &out, &r->src);
            if (ZSTD_isError(r->left))
                return td_error_set(err, r->code, "%s is damaged: zstd: %s", r->path,
                                    ZSTD_getErrorName(r->left));
        }
        if (out.pos)
            return td_error_set(err, r->code, "%s: holds more than its content size", r->path);
        if (r->left == 0 && r->src.pos < r->src.size)
            return td_error_set(err, r->code, "%s: there are bytes after the compressed shard",
                                r->path);
        if (r->src.pos == r->src.size) {
            td_status rc = refill(r, &ended, err);
            if (rc != TD_OK)
                return rc;
        }
    }
    if (r->left != 0)
        return td_error_set(err, r->code, "%s: the compressed shard ends early", r->path);
    *file_hash = td_hasher_digest(r->hasher);
    *file_size = r->read_at;
    return TD_OK;
}

/* --- unpacking -------------------------------------------------------------------------------- */

/* Where the plain bytes go: files without a name, tried in this order. */
typedef enum place { PLACE_BESIDE, PLACE_TMPDIR, PLACE_MEMORY, N_PLACES } place;

static int open_beside(const char *path) {
    const char *slash = strrchr(path, '/');
    char *dir = slash ? td_strndup(path, (size_t)TD_MAX(slash - path, 1)) : td_strdup(".");
    int fd = dir ? open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
    free(dir);
    return fd;
}

static int open_in_tmpdir(void) {
    const char *tmp = getenv("TMPDIR");
    char *name = td_asprintf("%s/tdgen-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    int fd = name ? mkostemp(name, O_CLOEXEC) : -1; /* O_EXCL: no link is followed */
    if (fd >= 0)
        unlink(name);
    free(name);
    return fd;
}

/* Memory is the last resort, and at most half of what is free. */
static int open_in_memory(uint64_t size_bytes) {
    const uint64_t free_bytes =
        (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    if (size_bytes > free_bytes / 2) {
        errno = ENOMEM;
        return -1;
    }
    return memfd_create("tdgen-shard", MFD_CLOEXEC);
}

static int open_place(place where, const char *path, uint64_t size_bytes) {
    return where == PLACE_BESIDE   ? open_beside(path)
           : where == PLACE_TMPDIR ? open_in_tmpdir()
                                   : open_in_memory(size_bytes);
}

static td_status unpack_to(int to, int fd, const char *path, td_status code, uint64_t *file_hash,
                           uint64_t *file_size, char *buf, td_error *err) {
    td_zstd_reader *r = NULL;
    td_status rc = td_zstd_reader_open(fd, path, code, &r, err);
    for (uint64_t at = 0; rc == TD_OK && at < r->content;) {
        size_t n = (size_t)TD_MIN((uint64_t)CHUNK, r->content - at);
        rc = td_zstd_reader_read(r, buf, n, err);
        if (rc == TD_OK && (rc = td_pwrite_all(to, buf, n, at, path, err)) != TD_OK)
            td_error_prefix(err, "unpacking it");
        at += n;
    }
    if (rc == TD_OK)
        rc = td_zstd_reader_end(r, file_hash, file_size, err);
    td_zstd_reader_close(r);
    return rc;
}

td_status td_zstd_unpack(int fd, const char *path, td_status code, int *out, uint64_t *file_hash,
                         uint64_t *file_size, td_error *err) {
    uint64_t content = 0;
    int to = -1;
    td_status rc = content_size(fd, path, code, &content, err);
    if (rc != TD_OK)
        return rc;
    char *buf = malloc(CHUNK);
    if (!buf)
        return td_error_nomem(err, "unpacking a shard", CHUNK);
    for (place where = PLACE_BESIDE; where < N_PLACES; where++) {
        if (to >= 0)
            close(to);
        to = open_place(where, path, content);
        if (to < 0) {
            rc = td_error_errno(err, TD_E_OUTPUT, errno,
                                "%s: no room to unpack its %llu bytes, neither beside it nor in "
                                "TMPDIR (%s) nor in memory: set TMPDIR to a folder with room",
                                path, (unsigned long long)content,
                                getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
            continue;
        }
        rc = unpack_to(to, fd, path, code, file_hash, file_size, buf, err);
        if (rc == TD_OK || rc == code) /* else there was no room: the next place */
            break;
    }
    free(buf);
    if (rc == TD_OK)
        *out = to;
    else if (to >= 0)
        close(to);
    return rc;
}
