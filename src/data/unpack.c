/* unpack.c - gzip and zstd behind one stream: members and frames are begun one after another, and
 * where the current one began is kept, so that going back a little need not start at the beginning.
 */
#include "data/unpack.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>
#include "base/memory.h"

enum { INPUT_BYTES = 256 << 10, ZSTD_WINDOW_LOG = 27 };

/* Text packs 3 to 20 times smaller, the same line over and over some 200 times. What grows more, after the
 * first 64 MiB, is made to fill memory with one row. */
#define RATIO_MAX 250u
#define RATIO_FREE_BYTES ((uint64_t)64 << 20)

struct td_unpack {
    td_packing packing;
    int fd;
    const char *path;
    uint64_t size_bytes, file_pos; /* of the file; of the next read from it */
    unsigned char *in;             /* file bytes [file_pos - (end - begin), file_pos) */
    size_t begin, end;
    uint64_t plain_pos;
    bool inside; /* a member or frame has begun and not ended */
    bool at_end;
    /* Where the member or frame in hand, or the next one, begins. */
    uint64_t frame_packed, frame_plain;
    z_stream z;
    bool z_open;
    ZSTD_DCtx *zstd;
};

td_packing td_packing_of(const void *head, size_t n_bytes) {
    const unsigned char *p = head;
    if (n_bytes >= 2 && p[0] == 0x1f && p[1] == 0x8b)
        return TD_PACK_GZIP;
    /* A frame, or a skippable one, which pzstd and seekable files begin with. */
    if (n_bytes >= 4 && (memcmp(p, "\x28\xb5\x2f\xfd", 4) == 0 ||
                         ((p[0] & 0xf0) == 0x50 && memcmp(p + 1, "\x2a\x4d\x18", 3) == 0)))
        return TD_PACK_ZSTD;
    return TD_PACK_NONE;
}

const char *td_packing_name(td_packing p) {
    return p == TD_PACK_GZIP ? "gzip" : p == TD_PACK_ZSTD ? "zstd" : "plain";
}

td_status td_unpack_open(int fd, const char *path, uint64_t size_bytes, td_packing packing,
                         td_unpack **out, td_error *err) {
    td_unpack *u = td_calloc(1, sizeof *u);
    if (!u)
        return td_error_nomem(err, "a compressed dataset", sizeof *u);
    u->packing = packing;
    u->fd = fd;
    u->path = path;
    u->size_bytes = size_bytes;
    u->in = malloc(INPUT_BYTES);
    if (u->in && packing == TD_PACK_GZIP)
        u->z_open = inflateInit2(&u->z, 15 + 16) == Z_OK; /* 15: largest window; 16: gzip only */
    else if (u->in)
        u->zstd = ZSTD_createDCtx();
    if (!u->z_open && !u->zstd) {
        td_unpack_close(u);
        return td_error_nomem(err, "a compressed dataset", INPUT_BYTES);
    }
    if (u->zstd)
        (void)ZSTD_DCtx_setParameter(u->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG);
    *out = u;
    return TD_OK;
}

void td_unpack_close(td_unpack *u) {
    if (!u)
        return;
    if (u->z_open)
        inflateEnd(&u->z);
    ZSTD_freeDCtx(u->zstd);
    free(u->in);
    free(u);
}

uint64_t td_unpack_packed_pos(const td_unpack *u) {
    return u->file_pos - (u->end - u->begin);
}

uint64_t td_unpack_plain_pos(const td_unpack *u) {
    return u->plain_pos;
}

/* Fills the empty input buffer, with nothing at the end of the file. */
static td_status refill(td_unpack *u, td_error *err) {
    uint64_t left = u->size_bytes - u->file_pos;
    size_t want = left < INPUT_BYTES ? (size_t)left : INPUT_BYTES;
    u->begin = u->end = 0;
    if (!want)
        return TD_OK;
    ssize_t n;
    do
        n = pread(u->fd, u->in, want, (off_t)u->file_pos);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return td_error_errno(err, TD_E_DATA, errno, "cannot read the dataset %s at byte %llu",
                              u->path, (unsigned long long)u->file_pos);
    if (n == 0)
        return td_error_set(err, TD_E_DATA,
                            "%s: ends at byte %llu, but had %llu bytes when it was opened; do not "
                            "change a dataset while it is read",
                            u->path, (unsigned long long)u->file_pos,
                            (unsigned long long)u->size_bytes);
    u->file_pos += (uint64_t)n;
    u->end = (size_t)n;
    return TD_OK;
}

static td_status corrupt(const td_unpack *u, const char *why, td_error *err) {
    return td_error_set(err, TD_E_DATA,
                        "%s: corrupt %s data at byte %llu of the file (%llu plain bytes were read "
                        "before): %s; check it with %s -t and fetch it again",
                        u->path, td_packing_name(u->packing),
                        (unsigned long long)td_unpack_packed_pos(u),
                        (unsigned long long)u->plain_pos, why, td_packing_name(u->packing));
}

static td_status truncated(const td_unpack *u, td_error *err) {
    return td_error_set(err, TD_E_DATA,
                        "%s: truncated: the file ends at byte %llu in the middle of its %s data "
                        "(%llu plain bytes were read before); fetch it again",
                        u->path, (unsigned long long)u->size_bytes, td_packing_name(u->packing),
                        (unsigned long long)u->plain_pos);
}

/* Some input into some output. *ended: the member or frame is complete. */
static td_status step_gzip(td_unpack *u, void *data, size_t cap, size_t *n, bool *ended,
                           td_error *err) {
    size_t have = u->end - u->begin;
    uInt room = (uInt)TD_MIN(cap, (size_t)1 << 30);
    u->z.next_in = u->in + u->begin;
    u->z.avail_in = (uInt)have;
    u->z.next_out = data;
    u->z.avail_out = room;
    int rc = inflate(&u->z, Z_NO_FLUSH);
    u->begin += have - u->z.avail_in;
    *n = room - u->z.avail_out;
    *ended = rc == Z_STREAM_END;
    if (rc == Z_MEM_ERROR)
        return td_error_nomem(err, "gzip's window", 32 << 10);
    if (rc == Z_NEED_DICT || (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR))
        return corrupt(u, u->z.msg ? u->z.msg : "it needs a dictionary", err);
    return TD_OK;
}

static td_status step_zstd(td_unpack *u, void *data, size_t cap, size_t *n, bool *ended,
                           td_error *err) {
    ZSTD_inBuffer in = {u->in, u->end, u->begin};
    ZSTD_outBuffer out = {data, cap, 0};
    size_t rc = ZSTD_decompressStream(u->zstd, &out, &in);
    u->begin = in.pos;
    *n = out.pos;
    *ended = rc == 0;
    if (!ZSTD_isError(rc))
        return TD_OK;
    if (strstr(ZSTD_getErrorName(rc), "too much memory"))
        return td_error_set(err, TD_E_DATA,
                            "%s: the zstd frame at byte %llu asks for a window of more than %d "
                            "MiB; compress it again without --long or --ultra",
                            u->path, (unsigned long long)u->frame_packed,
                            1 << (ZSTD_WINDOW_LOG - 20));
    return corrupt(u, ZSTD_getErrorName(rc), err);
}

/* Between members: is there another one? gzip files may be padded with zeros. */
static td_status begin_frame(td_unpack *u, td_error *err) {
    while (u->packing == TD_PACK_GZIP && td_unpack_packed_pos(u) > 0) {
        while (u->begin < u->end && u->in[u->begin] == 0)
            u->begin++;
        if (u->begin < u->end || u->file_pos == u->size_bytes)
            break;
        td_status rc = refill(u, err);
        if (rc != TD_OK)
            return rc;
    }
    if (u->begin == u->end) {
        td_status rc = refill(u, err);
        if (rc != TD_OK)
            return rc;
        if (u->begin == u->end) {
            u->at_end = true;
            return TD_OK;
        }
    }
    if (u->z_open)
        (void)inflateReset(&u->z);
    else
        (void)ZSTD_DCtx_reset(u->zstd, ZSTD_reset_session_only);
    u->frame_packed = td_unpack_packed_pos(u);
    u->frame_plain = u->plain_pos;
    u->inside = true;
    return TD_OK;
}

td_status td_unpack_read(td_unpack *u, void *data, size_t cap, size_t *n, td_error *err) {
    *n = 0;
    while (*n == 0 && !u->at_end) {
        td_status rc;
        if (!u->inside) {
            rc = begin_frame(u, err);
            if (rc != TD_OK || u->at_end)
                return rc;
        }
        /* The decoder may hold plain bytes although all input is used: it is asked first, and only
         * when it gives nothing must there be more input. */
        bool ended;
        size_t had = u->end - u->begin;
        rc = u->packing == TD_PACK_GZIP ? step_gzip(u, data, cap, n, &ended, err)
                                        : step_zstd(u, data, cap, n, &ended, err);
        if (rc != TD_OK)
            return rc;
        u->plain_pos += *n;
        if (u->plain_pos > RATIO_FREE_BYTES &&
            (u->plain_pos - RATIO_FREE_BYTES) / RATIO_MAX > td_unpack_packed_pos(u))
            return td_error_set(
                err, TD_E_DATA,
                "%s: %llu bytes of the file unpacked to %llu: more than %u times, as no "
                "text does; if it is one, decompress it first",
                u->path, (unsigned long long)td_unpack_packed_pos(u),
                (unsigned long long)u->plain_pos, RATIO_MAX);
        if (ended) {
            u->inside = false;
        } else if (*n == 0 && u->begin == u->end) {
            rc = refill(u, err);
            if (rc == TD_OK && u->begin == u->end)
                rc = truncated(u, err);
            if (rc != TD_OK)
                return rc;
        } else if (*n == 0 && u->end - u->begin == had) {
            return corrupt(u, "the decoder makes no progress", err);
        }
    }
    return TD_OK;
}

td_status td_unpack_seek(td_unpack *u, uint64_t offset, td_error *err) {
    if (offset < u->frame_plain)
        u->frame_packed = u->frame_plain = 0;
    if (offset != u->plain_pos) {
        u->file_pos = u->frame_packed;
        u->plain_pos = u->frame_plain;
        u->begin = u->end = 0;
        u->inside = u->at_end = false;
    }
    char *waste = offset > u->plain_pos ? malloc(INPUT_BYTES) : NULL;
    if (offset > u->plain_pos && !waste)
        return td_error_nomem(err, "a compressed dataset", INPUT_BYTES);
    td_status rc = TD_OK;
    while (rc == TD_OK && u->plain_pos < offset) {
        size_t n;
        rc = td_unpack_read(u, waste, (size_t)TD_MIN(offset - u->plain_pos, (uint64_t)INPUT_BYTES),
                            &n, err);
        if (rc == TD_OK && n == 0)
            rc = td_error_set(err, TD_E_DATA, "%s: changed while it was read", u->path);
    }
    free(waste);
    return rc;
}
