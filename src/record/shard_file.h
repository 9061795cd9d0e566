/* shard_file.h - a finished shard, opened and proven, compressed or not.
 *
 * td_shard_file_open checks the structure: the safetensors header, the metadata, that the tensors
 * are exactly those of the layout for these counts, the header's own hash. td_shard_file_hash reads
 * every byte once. Both are for untrusted files. A compressed shard that is only to be proven is
 * streamed (TD_SHARD_STREAM): that needs no room anywhere.
 */
#ifndef TDGEN_RECORD_SHARD_FILE_H
#define TDGEN_RECORD_SHARD_FILE_H

#include "record/layout.h"
#include "base/safetensors.h"
#include "base/strbuf.h"

typedef struct td_shard_file {
    char *path;
    bool packed; /* a .zst file; fd and st are of its content */
    int fd;
    struct td_zstd_reader *stream; /* packed, TD_SHARD_STREAM: fd is of the file itself */
    char *header;                  /* the JSON text, while the shard is opened */
    td_safetensors *st;
    td_layout layout;
    td_shard_meta meta;
    char **kinds;                           /* what meta.device_kinds points to */
    td_shard_hashes hashes;                 /* as the header states them */
    uint64_t size_bytes, header_size_bytes; /* of the safetensors; the length word included */
    uint64_t disk_bytes;                    /* of the file */
    uint64_t packed_hash;                   /* packed: of the file's bytes */
} td_shard_file;

/* The shard's counts come from its metadata; spec from the manifest. All failures of content are
 * `code`. header_hash_ok == NULL: a wrong header hash is a failure; else it is only reported there,
 * so that verify can go on and name what else is wrong. */
td_status td_shard_file_open(const char *path, const td_capture_spec *spec, td_status code,
                             bool *header_hash_ok, td_shard_file **out, td_error *err);
void td_shard_file_close(td_shard_file *f); /* NULL allowed */

/* The tensor's data, NULL when this run does not store it, and in a shard that was streamed. */
const void *td_shard_file_data(const td_shard_file *f, td_tensor_id id);

/* Where shard `number` of a folder is: "DIR/shard-000012.safetensors", or with .zst when only that
 * is there. NULL when out of memory. */
char *td_shard_path(const char *dir, int64_t number);

/* One pass over an open file: hashes of the data part and of each tensor as `l` lays them out, and
 * with file_hash != NULL of the whole file. */
td_status td_shard_hash_fd(int fd, const char *path, const td_layout *l, uint64_t header_size_bytes,
                           td_shard_hashes *out, uint64_t *file_hash, td_error *err);
/* The same of an open shard; *file_hash is of the file on disk. */
td_status td_shard_file_hash(const td_shard_file *f, td_shard_hashes *out, uint64_t *file_hash,
                             td_error *err);

/* What is to be done with the shard: TD_SHARD_STREAM leaves out the data of a compressed one. */
typedef enum td_shard_use { TD_SHARD_READ, TD_SHARD_STREAM } td_shard_use;

/* Opens, hashes and compares: TD_OK only when the shard proves itself and belongs to the run of
 * `fingerprint`. *file_hash may be NULL. */
td_status td_shard_file_prove(const char *path, td_shard_use use, const td_capture_spec *spec,
                              uint64_t fingerprint, td_status code, td_shard_file **out,
                              uint64_t *file_hash, td_error *err);

/* "tensor input_ids is damaged" for each tensor hash that differs; false when all agree. */
bool td_shard_hashes_differ(const td_layout *l, const td_shard_hashes *stated,
                            const td_shard_hashes *found, td_strbuf *which);

#endif
