/* file.h - whole reads, atomic writes, positioned I/O.
 *
 * Errors name the file and carry errno's text. Any thread; nothing is kept between calls.
 */
#ifndef TDGEN_BASE_FILE_H
#define TDGEN_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

/* Reads a whole regular file of at most max_bytes; *data is NUL-terminated, freed by the caller.
 * `code` is the status to report (TD_E_MODEL for a model file, ...). */
td_status td_file_read(const char *path, size_t max_bytes, td_status code, char **data,
                       size_t *size_bytes, td_error *err);

/* Writes a file so that it is there whole or not at all, and survives power loss when it returns:
 * PATH.tmp, fsync, rename, fsync of the folder. `durable` false leaves out both fsyncs
 * (status.json). */
td_status td_file_write_atomic(const char *path, const void *data, size_t size_bytes, bool durable,
                               td_error *err);
/* fsync of the folder that holds `path`. */
td_status td_file_sync_dir_of(const char *path, td_error *err);
/* mkdir -p */
td_status td_mkdir_p(const char *path, td_error *err);
/* Writes all bytes at `offset`, restarting on EINTR and short writes. */
td_status td_pwrite_all(int fd, const void *data, size_t size_bytes, uint64_t offset,
                        const char *path, td_error *err);
td_status td_pread_all(int fd, void *data, size_t size_bytes, uint64_t offset, const char *path,
                       td_error *err);
bool td_path_exists(const char *path);

#endif
