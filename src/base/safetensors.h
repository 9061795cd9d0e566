/* safetensors.h - bounds-checked reader of the safetensors format (memory-mapped).
 *
 * Layout: u64 little-endian n | n bytes of JSON header, space-padded | data. The header maps each
 * name to {dtype, shape, data_offsets [begin, end) within the data part}; "__metadata__" holds
 * strings. Checked on open, before anything is used: header size, JSON, every dtype and shape
 * (overflow), offsets inside the file, size = product of shape x element size, no overlaps, no
 * duplicate names. Read-only and shared by threads after open.
 */
#ifndef TDGEN_BASE_SAFETENSORS_H
#define TDGEN_BASE_SAFETENSORS_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"

#define TD_ST_MAX_DIMS 8

typedef struct td_safetensors td_safetensors;

typedef struct td_st_tensor {
    const char *name;    /* owned by the file */
    char dtype_name[12]; /* as in the header: "BF16", "F8_E4M3", ... */
    int32_t dtype;       /* td_dtype, or -1 for a dtype that tdgen does not compute with */
    size_t elem_size_bytes;
    int32_t n_dims;
    int64_t shape[TD_ST_MAX_DIMS];
    int64_t n_elems;
    const void *data; /* into the mapping; alignment is only that of the file's layout */
    size_t size_bytes;
    uint64_t data_begin; /* offset within the data part */
    const td_safetensors *file;
} td_st_tensor;

/* `code` is the status that failures report (TD_E_MODEL, TD_E_DATA, TD_E_VERIFY). */
td_status td_safetensors_open(const char *path, td_status code, td_safetensors **out,
                              td_error *err);
/* The same of an open file, which is taken over (closed, also on failure); `path` is for messages.
 */
td_status td_safetensors_open_fd(int fd, const char *path, td_status code, td_safetensors **out,
                                 td_error *err);
/* Of a file that is only streamed: its first head_bytes, with the whole header, and its size. What
 * the tensors are is known, their `data` is NULL. `head` is not kept. */
td_status td_safetensors_open_header(const void *head, size_t head_bytes, uint64_t file_bytes,
                                     const char *path, td_status code, td_safetensors **out,
                                     td_error *err);
void td_safetensors_close(td_safetensors *st);
size_t td_safetensors_count(const td_safetensors *st);
/* i-th tensor in file order (by offset). */
const td_st_tensor *td_safetensors_at(const td_safetensors *st, size_t i);
/* NULL when there is none of that name. */
const td_st_tensor *td_safetensors_find(const td_safetensors *st, const char *name);
/* A string of __metadata__, or NULL. */
const char *td_safetensors_meta(const td_safetensors *st, const char *key);
const char *td_safetensors_path(const td_safetensors *st);
/* Bytes [offset, offset + n) of the tensor, which must be within it, by a read of the file instead
 * of the mapping: no page of it becomes resident, and a disk's error or a file that was cut since
 * it was opened is an error, not a signal. */
td_status td_safetensors_read(const td_st_tensor *t, size_t offset, void *dst, size_t n,
                              td_error *err);
/* The data part of the file, for hashing. */
const void *td_safetensors_data(const td_safetensors *st, size_t *size_bytes);

#endif
