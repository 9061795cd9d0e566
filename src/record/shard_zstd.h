/* shard_zstd.h - shard-NNNNNN.safetensors.zst: the shard as one zstd frame with content size and
 * checksum, the safetensors within byte for byte what it would be without compression. */
#ifndef TDGEN_RECORD_SHARD_ZSTD_H
#define TDGEN_RECORD_SHARD_ZSTD_H

#include <stdint.h>
#include "base/status.h"

/* Compresses size_bytes of `from` into the new file to_path; *to_fd is left open, the caller's.
 * *file_hash, *file_size: of the compressed bytes. Bounded memory. */
td_status td_zstd_pack(int from, const char *from_path, uint64_t size_bytes, const char *to_path,
                       int *to_fd, uint64_t *file_hash, uint64_t *file_size, td_error *err);
/* The content of the open file `fd`, as a file without a name: *out is the caller's, and its space
 * is free again when it is closed. It is made in the folder of `path`, where that has no room in
 * TMPDIR (/tmp), else in memory; TD_E_OUTPUT where there is no room at all. Exactly one frame with a content size, and nothing after it. A file
 * that is no such thing is `code`. *file_hash, *file_size: of the compressed bytes. */
td_status td_zstd_unpack(int fd, const char *path, td_status code, int *out, uint64_t *file_hash,
                         uint64_t *file_size, td_error *err);

#endif
