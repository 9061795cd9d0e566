/* shard_zstd.h - shard-NNNNNN.safetensors.zst: the shard as one zstd frame with content size and
 * checksum, the safetensors within byte for byte what it would be without compression. */
#ifndef TDGEN_RECORD_SHARD_ZSTD_H
#define TDGEN_RECORD_SHARD_ZSTD_H

#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

/* Compresses size_bytes of `from` into the new file to_path; *to_fd is left open, the caller's.
 * *file_hash, *file_size: of the compressed bytes. Bounded memory. */
td_status td_zstd_pack(int from, const char *from_path, uint64_t size_bytes, const char *to_path,
                       int *to_fd, uint64_t *file_hash, uint64_t *file_size, td_error *err);
/* The content of a compressed shard, from its first byte to its last: exactly one frame with a content
 * size, and nothing after it. A file that is no such thing is `code`; so is a read that fails, with
 * errno (td_error_errno). Needs no disk, and memory that does not grow with the shard. One thread. */
typedef struct td_zstd_reader td_zstd_reader;

/* `fd` and `path` are borrowed. */
td_status td_zstd_reader_open(int fd, const char *path, td_status code, td_zstd_reader **out,
                              td_error *err);
void td_zstd_reader_close(td_zstd_reader *r); /* NULL allowed */
/* Of the content, as the frame states it. */
uint64_t td_zstd_reader_size(const td_zstd_reader *r);
/* The next n bytes; fewer are `code`. */
td_status td_zstd_reader_read(td_zstd_reader *r, void *dst, size_t n, td_error *err);
/* After the last byte: the frame's own checksum is right, and nothing follows. *file_hash,
 * *file_size: of the compressed bytes. */
td_status td_zstd_reader_end(td_zstd_reader *r, uint64_t *file_hash, uint64_t *file_size,
                             td_error *err);

/* The same as a file without a name, for those who need any byte at any time: *out is the caller's,
 * and its space is free again when it is closed. It is made in the folder of `path`, where that has
 * no room in TMPDIR (/tmp), else in memory; TD_E_OUTPUT where there is no room at all. */
td_status td_zstd_unpack(int fd, const char *path, td_status code, int *out, uint64_t *file_hash,
                         uint64_t *file_size, td_error *err);

#endif
