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

static td_status unpack_all(int fd, const char *path, td_status code, uint64_t content, int to,
                            ZSTD_DCtx *z, td_hasher *hasher, char *in, char *out,
                            uint64_t *file_size, td_error *err) {
    uint64_t read_at = 0, plain = 0;
    size_t left = 1; /* of the frame; 0 = it ended */
    for (;;) {
        ssize_t got;
        do
            got = pread(fd, in, CHUNK, (off_t)read_at);
        while (got < 0 && errno == EINTR);
        if (got < 0)
            return td_error_errno(err, code, errno, "cannot read %s", path);
        if (got == 0)
            break;
        read_at += (uint64_t)got;
        td_hasher_update(hasher, in, (size_t)got);
        for (ZSTD_inBuffer src = {in, (size_t)got, 0}; src.pos < src.size;) {
            if (left == 0)
                return td_error_set(err, code, "%s: there are bytes after the compressed shard",
                                    path);
            ZSTD_outBuffer dst = {out, CHUNK, 0};
            left = ZSTD_decompressStream(z, &dst, &src);
            if (ZSTD_isError(left))
                return td_error_set(err, code, "%s is damaged: zstd: %s", path,
                                    ZSTD_getErrorName(left));
            if (dst.pos > content - plain)
                return td_error_set(err, code, "%s: holds more than its content size", path);
            td_status rc = td_pwrite_all(to, out, dst.pos, plain, path, err);
            if (rc != TD_OK)
                return td_error_prefix(err, "unpacking it");
            plain += dst.pos;
        }
    }
    /* What the last input left within the decoder. */
    while (left != 0) {
        ZSTD_inBuffer none = {in, 0, 0};
        ZSTD_outBuffer dst = {out, CHUNK, 0};
        left = ZSTD_decompressStream(z, &dst, &none);
        if (ZSTD_isError(left) || (left && dst.pos == 0) || dst.pos > content - plain)
            return td_error_set(err, code, "%s: the compressed shard ends early", path);
        td_status rc = td_pwrite_all(to, out, dst.pos, plain, path, err);
        if (rc != TD_OK)
            return td_error_prefix(err, "unpacking it");
        plain += dst.pos;
    }
    if (plain != content)
        return td_error_set(err, code, "%s: holds %llu bytes, its frame says %llu", path,
                            (unsigned long long)plain, (unsigned long long)content);
    *file_size = read_at;
    return TD_OK;
}

td_status td_zstd_unpack(int fd, const char *path, td_status code, int *out, uint64_t *file_hash,
                         uint64_t *file_size, td_error *err) {
    td_status rc = TD_OK;
    ZSTD_DCtx *z = ZSTD_createDCtx();
    td_hasher *hasher = td_hasher_create();
    char *in = malloc(CHUNK), *plain = malloc(CHUNK);
    int to = -1;
    uint64_t content = 0;
    if (!z || !hasher || !in || !plain) {
        rc = td_error_nomem(err, "unpacking a shard", 2 * (size_t)CHUNK);
        goto done;
    }
    rc = content_size(fd, path, code, &content, err);
    if (rc != TD_OK)
        goto done;
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
        (void)ZSTD_DCtx_reset(z, ZSTD_reset_session_and_parameters);
        (void)ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
        td_hasher_reset(hasher);
        rc = unpack_all(fd, path, code, content, to, z, hasher, in, plain, file_size, err);
        if (rc == TD_OK || rc == code) /* else there was no room: the next place */
            break;
    }
    if (rc != TD_OK)
        goto done;
    *file_hash = td_hasher_digest(hasher);
    *out = to;
    to = -1;
done:
    if (to >= 0)
        close(to);
    free(in);
    free(plain);
    td_hasher_destroy(hasher);
    ZSTD_freeDCtx(z);
    return rc;
}
