/* unpack.h - a gzip or zstd file as a stream of its plain bytes.
 *
 * Front to back, in bounded memory: 256 KiB of input and the decoder's window (gzip 32 KiB; zstd
 * what the frame asks for, at most 128 MiB, as the zstd program). Files of several members or
 * frames, as `cat a.gz b.gz`, pigz or pzstd write them, are one stream. Checksums are checked where
 * there are any. Whatever is wrong with the file is TD_E_DATA with its name and the offset in it.
 *
 * One thread owns a td_unpack.
 */
#ifndef TDGEN_DATA_UNPACK_H
#define TDGEN_DATA_UNPACK_H

#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

typedef enum td_packing { TD_PACK_NONE, TD_PACK_GZIP, TD_PACK_ZSTD } td_packing;

/* By the first bytes of a file. */
td_packing td_packing_of(const void *head, size_t n_bytes);
const char *td_packing_name(td_packing p);

typedef struct td_unpack td_unpack;

/* `fd` and `path` are borrowed until td_unpack_close; only the first size_bytes are read, with
 * pread.
 */
td_status td_unpack_open(int fd, const char *path, uint64_t size_bytes, td_packing packing,
                         td_unpack **out, td_error *err);
void td_unpack_close(td_unpack *u); /* NULL allowed */

/* Up to `cap` > 0 more plain bytes; *n = 0 only at the end of the file. After a failure the stream
 * can only be closed. */
td_status td_unpack_read(td_unpack *u, void *data, size_t cap, size_t *n, td_error *err);
/* Goes on at plain offset `offset`, at most what was read so far: from the last member or frame
 * that begins at or before it if that is the current one, else from the beginning of the file. */
td_status td_unpack_seek(td_unpack *u, uint64_t offset, td_error *err);
/* Bytes of the file that were used for what has been read; all of them at the end. */
uint64_t td_unpack_packed_pos(const td_unpack *u);
uint64_t td_unpack_plain_pos(const td_unpack *u);

#endif
