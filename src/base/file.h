/* file.h - opening, whole reads, atomic writes, positioned I/O, names of a folder.
 *
 * Errors name the file and carry errno's text. Any thread; nothing is kept between calls.
 *
 * Folders may be hostile, or shared with another writer. So: what is read is a regular file (a FIFO
 * does not block), what is created or truncated is never reached through a symbolic link, and a file
 * that gets its name by a rename has a temporary name of this process alone.
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

/* A Git LFS pointer, which stands where the file itself was not fetched. Reading one is an error that says
 * so; those who read a file by parts ask with its first bytes. */
bool td_file_is_lfs_pointer(const void *head, size_t n);
td_status td_file_lfs_error(const char *path, td_status code, td_error *err);

/* Opens a regular file for reading; *size_bytes may be NULL. Anything else is `code`, and so is what
 * cannot be opened (TD_E_OUTPUT for TD_E_VERIFY, see status.h). */
td_status td_file_open(const char *path, td_status code, int *fd, uint64_t *size_bytes,
                       td_error *err);

typedef enum td_create {
    TD_CREATE_NEW,    /* there is none of that name */
    TD_CREATE_APPEND, /* every write goes to its end */
    TD_CREATE_KEEP    /* created where it is not there, else as it is */
} td_create;

/* Opens a regular file for reading and writing that is, or is created, at `path` itself: a symbolic
 * link there is refused. TD_E_OUTPUT. */
td_status td_file_create(const char *path, td_create how, int *fd, td_error *err);

/* PATH.tmp-XXXXXXXXXXXXXXXX, another one for each call and process; NULL when out of memory. */
char *td_temp_path(const char *path);
/* Is it the name of such a file, or of an older version's (NAME.tmp)? */
bool td_temp_is_name(const char *name);
/* Is the open temporary file still the one at `path`? TD_E_OUTPUT, with what to do, when somebody
 * removed or replaced it: then the rename would put another's bytes in place. */
td_status td_temp_check(int fd, const char *path, td_error *err);

/* The names of a folder one by one, in no order, "." and ".." left out. A read error is no end. */
typedef struct td_dir td_dir;
td_status td_dir_open(const char *path, td_status code, td_dir **out, td_error *err);
/* *name: NULL at the end; valid until the next call. */
td_status td_dir_next(td_dir *d, const char **name, td_error *err);
int td_dir_fd(const td_dir *d);
void td_dir_close(td_dir *d); /* NULL allowed */

/* Writes a file so that it is there whole or not at all, and survives power loss when it returns:
 * a temporary file, fsync, rename, fsync of the folder. `durable` false leaves out both fsyncs
 * (status.json). */
td_status td_file_write_atomic(const char *path, const void *data, size_t size_bytes, bool durable,
                               td_error *err);
/* fsync of the folder that holds `path`. */
td_status td_file_sync_dir_of(const char *path, td_error *err);
/* mkdir -p; the parent of each new folder is synced, so that the folder survives power loss. */
td_status td_mkdir_p(const char *path, td_error *err);
/* Writes all bytes at `offset`, restarting on EINTR and short writes. */
td_status td_pwrite_all(int fd, const void *data, size_t size_bytes, uint64_t offset,
                        const char *path, td_error *err);
td_status td_pread_all(int fd, void *data, size_t size_bytes, uint64_t offset, const char *path,
                       td_error *err);
/* False only when nothing is there. What cannot be looked at counts as there: who opens it then says
 * why it cannot. */
bool td_path_exists(const char *path);

#endif
