/* gpu.h - private to the CUDA backend (and the registry): devices, streams, events, memory.
 *
 * Threads. Every entry point makes its device current in the calling thread first, so any thread
 * may call; one td_stream is driven by one thread at a time. The arena and the GEMM plans of a
 * device are protected by its lock. Contexts are the primary ones: all threads of the process share
 * them, and two groups on one device are two streams in one context.
 *
 * Errors. Each CUDA and cuBLAS call goes through td_gpu_check / td_gpu_check_blas, which name the
 * call and the device. An error that CUDA keeps returning afterwards ("sticky") becomes
 * TD_E_DEVICE_LOST, for this call and every later one of the process.
 *
 * Debug switches (environment, read when a device is opened):
 *   TDGEN_DEBUG_ALLOC=1   no arena: every allocation is one of CUDA's own, filled with 0xff bytes,
 *                         so that compute-sanitizer (or AddressSanitizer on the CUDA-on-CPU layer)
 *                         sees overruns and NaN shows what was never written
 *   TDGEN_PROFILE=1       time by operation, for td_device_ops.stream_profile
 */
#ifndef TDGEN_GPU_GPU_H
#define TDGEN_GPU_GPU_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include "gpu/kernels.h"
#include "device/backend.h"

/* --- registry entry points -------------------------------------------------------------------- */

/* All devices that CUDA_VISIBLE_DEVICES leaves, numbered as nvidia-smi does, by PCI id: the variable
 * CUDA_DEVICE_ORDER is set so before CUDA is called first, unless the user has set it. None when
 * there is no driver. Creates no context. */
td_status td_gpu_enumerate(td_device_info **out, int32_t *n_out, td_error *err);
/* What of the environment chose or numbered them, in a sentence, or "". */
const char *td_gpu_numbering(void);
td_status td_gpu_open(const td_device_info *info, td_device **out, td_error *err);
/* "cuda-13.0" */
const char *td_gpu_backend_version(void);

/* --- device ----------------------------------------------------------------------------------- */

typedef struct td_gpu_plan td_gpu_plan;   /* gpu_gemm.c */
typedef struct td_gpu_block td_gpu_block; /* gpu_memory.c */

typedef struct td_gpu_device {
    td_device base; /* first member */
    td_gpu_chip chip;
    cublasLtHandle_t blas;
    pthread_mutex_t lock; /* protects the rest */

    /* The arena, NULL before reserve (and with TDGEN_DEBUG_ALLOC: allocations are CUDA's own). */
    unsigned char *arena;
    uint64_t arena_bytes;
    td_gpu_block *blocks; /* [n_blocks] in address order, the whole arena without gaps */
    size_t n_blocks, cap_blocks;
    bool own_allocations; /* TDGEN_DEBUG_ALLOC */
    td_gpu_plan *plans;   /* list */
    uint64_t peers_open;  /* bit i: access to device i has been opened */
} td_gpu_device;

/* Makes the device current in this thread. */
td_status td_gpu_use(const td_gpu_device *d, td_error *err);
/* Was this the first device of the process to be lost? */
bool td_gpu_faulted(const td_device *dev);
/* TD_OK for cudaSuccess; else the error with call and device, as TD_E_DEVICE_OOM, TD_E_DEVICE_LOST
 * or TD_E_DEVICE. Clears CUDA's last error. */
td_status td_gpu_check(cudaError_t rc, const td_device_info *info, const char *call, td_error *err);
td_status td_gpu_check_blas(cublasStatus_t rc, const td_device_info *info, const char *call,
                            td_error *err);

/* --- memory (gpu_memory.c): slots of the table ------------------------------------------------ */

td_status td_gpu_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err);
void td_gpu_free(td_device *dev, void *ptr);
td_status td_gpu_reserve(td_device *dev, uint64_t size_bytes, uint64_t *got_bytes, td_error *err);
td_status td_gpu_host_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err);
void td_gpu_host_free(td_device *dev, void *ptr);
void td_gpu_memory_close(td_gpu_device *d);

/* --- streams and events (gpu_stream.c) -------------------------------------------------------- */

/* A piece of a stream's work between two timing events. */
typedef struct td_gpu_span {
    cudaEvent_t begin, end;
    td_op op;
} td_gpu_span;

/* Copies from a device that ours cannot reach: through two pinned blocks in turn, the source's copy
 * engine filling one while ours empties the other. Made at the first such copy. */
typedef struct td_gpu_hop {
    td_gpu_device *src;
    cudaStream_t stream; /* of the source's device */
    void *block[2];
    cudaEvent_t filled[2], emptied[2];
    cudaEvent_t start; /* what the source's stream waits for first */
    struct td_gpu_hop *next;
} td_gpu_hop;

struct td_stream {
    td_gpu_device *dev;
    cudaStream_t cuda;
    td_error failure; /* code TD_OK while all is well; then sticky */
    void *blas_workspace;
    /* Filled anew for each product: nothing is made on the hot path. */
    cublasLtMatrixLayout_t layout_w, layout_in, layout_out;
    cublasLtMatmulDesc_t product[2]; /* plain, with a bias */
    void *capture_scratch;
    size_t capture_scratch_bytes;
    td_gpu_hop *hops;
    /* Timing: spans [first_span, first_span + n_spans) of the ring are recorded and not yet added
     * to op_ns; the last one may be open. Protected by timing_lock but for the sums. */
    pthread_mutex_t timing_lock;
    bool profile, span_open;
    td_gpu_span *spans;
    uint32_t cap_spans, first_span, n_spans;
    _Atomic int64_t op_ns[TD_OP_COUNT], busy_ns;
};

td_status td_gpu_stream_create(td_device *dev, td_stream **out, td_error *err);
void td_gpu_stream_destroy(td_stream *s);
td_status td_gpu_event_create(td_device *dev, td_event **out, td_error *err);
void td_gpu_event_destroy(td_event *e);
td_status td_gpu_event_record(td_event *e, td_stream *s, td_error *err);
td_status td_gpu_stream_wait(td_stream *s, td_event *e, td_error *err);
td_status td_gpu_event_sync(td_event *e, double timeout_s, td_error *err);
double td_gpu_stream_busy_s(const td_stream *s);
void td_gpu_stream_profile(td_stream *s, double seconds[TD_OP_COUNT]);

/* Before anything is enqueued: makes the device current, returns the stream's failure, opens a
 * span.
 */
td_status td_gpu_begin(td_stream *s, td_op op, td_error *err);
/* After it: a failed call becomes the stream's failure. `call` is the name for the message. */
td_status td_gpu_end(td_stream *s, cudaError_t rc, const char *call, td_error *err);

/* --- products (gpu_gemm.c) -------------------------------------------------------------------- */

enum { TD_GPU_BLAS_WORKSPACE_BYTES = 32 << 20 };

typedef struct td_gpu_weight {
    td_weight base; /* first member */
    td_gpu_device *dev;
    void *data; /* row-major [N, K], compute dtype */
} td_gpu_weight;

td_status td_gpu_weight_create(td_device *dev, int64_t n_rows, int64_t n_cols, td_dtype compute,
                               td_weight **out, void **data, td_error *err);
td_status td_gpu_weight_prepare(td_device *dev, const td_host_matrix *parts, int32_t n_parts,
                                td_dtype compute, td_weight **out, td_error *err);
void td_gpu_weight_destroy(td_weight *w);
/* A stream's own part: workspace and layouts. */
td_status td_gpu_stream_blas_open(td_stream *s, td_error *err);
void td_gpu_stream_blas_close(td_stream *s);
void td_gpu_blas_close(td_gpu_device *d);
/* Loads cuBLASLt (once per process) and makes the device's handle. */
td_status td_gpu_blas_open(td_gpu_device *d, td_error *err);
/* "13.0.2", or "" when it cannot be loaded. */
const char *td_gpu_blas_version(void);

/* --- operations (gpu_ops.c) ------------------------------------------------------------------- */

/* td_gpu_op_embed and so on: the slots of the table. */
#define TD_GPU_OP(name, NAME, n_rows, how)                                                         \
    td_status td_gpu_op_##name(td_stream *s, const td_##name##_args *a, td_error *err);
TD_DEVICE_OPERATIONS(TD_GPU_OP)
#undef TD_GPU_OP
/* gpu_gemm.c: enqueues the product between a td_gpu_begin and what follows. */
td_status td_gpu_enqueue_gemm(td_stream *s, const td_gemm_args *a, td_error *err);
td_status td_gpu_copy_in(td_stream *s, void *dst, const void *src, size_t n, td_error *err);
td_status td_gpu_copy_out(td_stream *s, void *dst, const void *src, size_t n, td_error *err);
td_status td_gpu_copy_peer(td_stream *s, void *dst, td_device *src_dev, const void *src, size_t n,
                           td_error *err);
void td_gpu_hops_close(td_stream *s);

/* --- sensors (gpu_nvml.c) --------------------------------------------------------------------- */

/* CUDA tells the bytes of a UUID alone: "GPU-..." becomes "MIG-..." where they are a slice's. */
void td_gpu_nvml_uuid(char *uuid);
/* Free bytes of the card without making a context; false where NVML is absent. */
bool td_gpu_nvml_memory(const td_device_info *info, uint64_t *free_bytes);
void td_gpu_nvml_health(td_device *dev, td_device_health *out);

#endif
