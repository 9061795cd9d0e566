/* cpu.h - private to the CPU backend (and the registry): devices, streams, pools, kernels.
 *
 * Threads. A td_stream owns one thread that takes commands off a bounded ring, and a pool of
 * info.n_threads - 1 helpers that sleep until a command forks. Streams share nothing but read-only
 * weights and events, so several may use one device. Work items of one operation are handed out by
 * an atomic counter; no item's result depends on which thread computes it.
 *
 * Debug switches (environment, read when a device is opened):
 *   TDGEN_DEBUG_ALLOC=1            new memory is filled with NaN bytes (0xff)
 *   TDGEN_DEBUG_FAIL_ALLOC=N       the N-th allocation of the process from then on fails (from 1)
 *   TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 7"  the 7th gemm that device cpu:1 executes fails its stream
 *   TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 7 lost"  and from then on every CPU device of the process: what
 *                                  an illegal address does to CUDA (TD_E_DEVICE_LOST)
 *   TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 7 hang"  never returns
 *   TDGEN_DEBUG_FAIL_TOKEN="17 lost"  so does any embed whose ids contain 17, on any device (or
 *                                  "17 fail", "17 hang"): a sample that no device survives
 *   TDGEN_PROFILE=1                time by operation, for td_device_ops.stream_profile; read when a
 *                                  stream is made
 */
#ifndef TDGEN_CPU_CPU_H
#define TDGEN_CPU_CPU_H

#include <pthread.h>
#include <stdatomic.h>
#include "cpu/kernels.h"
#include "device/backend.h"

/* --- registry entry points -------------------------------------------------------------------- */

td_status td_cpu_enumerate(int32_t n_devices, td_device_info **out, int32_t *n_out, td_error *err);
td_status td_cpu_open(const td_device_info *info, td_device **out, td_error *err);

/* --- memory (cpu_memory.c) -------------------------------------------------------------------- */

/* The machine's memory or the cgroup's limit, whichever is lower, and what is free of it now. */
void td_cpu_memory_info(uint64_t *total_bytes, uint64_t *free_bytes);
/* 64-byte aligned; counted against the machine's memory so that an absurd size is refused here
 * instead of meeting the kernel's OOM killer later. `who` names the device in the message. */
td_status td_cpu_mem_alloc(const char *who, size_t size_bytes, void **out, td_error *err);
void td_cpu_mem_free(void *ptr);
/* Fails the n-th td_cpu_mem_alloc from now on (1 = the next); 0 turns that off. */
void td_cpu_mem_fail_at(int64_t n);
void td_cpu_mem_set_fill(bool nan_fill);
/* Bytes now held by all CPU devices of the process. */
uint64_t td_cpu_mem_held(void);

/* --- fork-join pool (cpu_pool.c) -------------------------------------------------------------- */

/* Runs one item; `thread` is in [0, n_threads). */
typedef void (*td_cpu_item_fn)(void *ctx, int64_t item, int32_t thread);

typedef struct td_cpu_pool td_cpu_pool;
td_status td_cpu_pool_create(int32_t n_threads, td_cpu_pool **out, td_error *err);
void td_cpu_pool_destroy(td_cpu_pool *p); /* NULL allowed */
/* Calls fn for every item in [0, n_items) from the calling thread and the helpers; returns when all
 * are done. One caller at a time. At most max_threads take part (waking a helper costs more than a
 * small operation). */
void td_cpu_pool_run(td_cpu_pool *p, int64_t n_items, int32_t max_threads, td_cpu_item_fn fn,
                     void *ctx);

/* --- device and stream ------------------------------------------------------------------------ */

typedef struct td_cpu_device {
    td_device base; /* first member */
    const td_cpu_kernels *kernels;
    /* TDGEN_DEBUG_FAIL_OP for this device: name of the operation, and countdown. */
    char fail_op[16];
    atomic_int fail_countdown;
    enum td_cpu_fail_kind { TD_CPU_FAIL, TD_CPU_LOSE, TD_CPU_HANG } fail_kind;
    /* TDGEN_DEBUG_FAIL_TOKEN; token -1 = none. */
    int32_t fail_token;
    enum td_cpu_fail_kind fail_token_kind;
    atomic_bool faulted; /* it is this device that made the process lose its devices */
} td_cpu_device;

/* Per-thread scratch of a stream: grows to the largest operation met and stays. */
typedef struct td_cpu_scratch {
    void *data;
    size_t size_bytes;
} td_cpu_scratch;

/* What an executing operation sees of its stream. Used by the stream's thread only. */
typedef struct td_cpu_exec {
    td_cpu_device *dev;
    td_cpu_pool *pool;
    int32_t n_threads;
    td_cpu_scratch *scratch; /* [n_threads] */
    td_cpu_scratch shared;   /* of the operation as a whole */
    void **gemm_streams;     /* [n_threads] dnnl_stream_t */
} td_cpu_exec;

/* Makes *s at least size_bytes; the contents are lost. */
td_status td_cpu_scratch_need(td_cpu_exec *x, td_cpu_scratch *s, size_t size_bytes, td_error *err);
/* The same for every thread's scratch. */
td_status td_cpu_scratch_need_all(td_cpu_exec *x, size_t size_bytes, td_error *err);

/* Nanoseconds of rest that an operation of run_ns earns a device that works at `share` of its
 * speed: run and rest together take run / share. 0 for shares outside (0, 1). */
static inline uint64_t td_cpu_rest_ns(uint64_t run_ns, double share) {
    return share > 0 && share < 1 ? (uint64_t)((double)run_ns * (1 / share - 1)) : 0;
}

/* cpu_stream.c: the stream, event and enqueue slots of the table. */
td_status td_cpu_stream_create(td_device *dev, td_stream **out, td_error *err);
void td_cpu_stream_destroy(td_stream *s);
double td_cpu_stream_busy_s(const td_stream *s);
/* Seconds of rest that the stream's operations have earned so far. */
double td_cpu_stream_rest_s(const td_stream *s);
void td_cpu_stream_profile(td_stream *s, double seconds[TD_OP_COUNT]);
td_status td_cpu_event_create(td_device *dev, td_event **out, td_error *err);
void td_cpu_event_destroy(td_event *e);
td_status td_cpu_event_record(td_event *e, td_stream *s, td_error *err);
td_status td_cpu_stream_wait(td_stream *s, td_event *e, td_error *err);
td_status td_cpu_event_sync(td_event *e, double timeout_s, td_error *err);
bool td_cpu_faulted(const td_device *dev);

/* A command's arguments: the copy that it executes with. */
typedef struct td_cpu_copy_args {
    void *dst;
    const void *src;
    size_t size_bytes;
} td_cpu_copy_args;
#define TD_CPU_ARGS_MEMBER(name, NAME, n_rows, how) td_##name##_args name;
typedef union td_cpu_args {
    td_cpu_copy_args copy;
    TD_DEVICE_OPERATIONS(TD_CPU_ARGS_MEMBER)
} td_cpu_args;
#undef TD_CPU_ARGS_MEMBER

/* Puts an operation, whose arguments have been checked, at the end of the stream. Its failure
 * becomes the stream's. `name` is a static string, for messages and TDGEN_DEBUG_FAIL_OP: that of
 * `op`, or of the kind of copy. */
td_status td_cpu_enqueue(td_stream *s, td_op op, const char *name, const td_cpu_args *args,
                         td_error *err);
const char *td_cpu_stream_device_name(const td_stream *s);

/* cpu_gemm.c */
td_status td_cpu_weight_prepare(td_device *dev, const td_host_matrix *parts, int32_t n_parts,
                                td_dtype compute, td_weight **out, td_error *err);
void td_cpu_weight_destroy(td_weight *w);
/* Several independent products as one fork and join. first_item: [n + 1], filled here; products
 * without rows are allowed. */
td_status td_cpu_gemm_batch(td_cpu_exec *x, const td_gemm_args *a, int32_t n, int64_t *first_item,
                            td_error *err);
/* Effective instruction set of oneDNN, as in "avx512_core_bf16", and whether it has bf16 of its
 * own. That set decides the bits of everything, so our kernels are chosen by it too. */
const char *td_cpu_isa_name(void);
bool td_cpu_isa_has_bf16(void);
/* Can this processor run the kernels of that level? */
bool td_cpu_runs_level(int level);
int td_cpu_isa_level(void); /* 1: anything, 3: AVX2 + FMA, 4: AVX512 */
td_status td_cpu_gemm_thread_create(void **out, td_error *err);
void td_cpu_gemm_thread_destroy(void *stream);

/* td_cpu_exec_embed and so on, on the stream's thread: gemm in cpu_gemm.c, moe in cpu_moe.c, the
 * others, over the kernels, in cpu_ops.c. */
#define TD_CPU_EXEC(name, NAME, n_rows, how)                                                       \
    td_status td_cpu_exec_##name(td_cpu_exec *x, const td_##name##_args *a, td_error *err);
TD_DEVICE_OPERATIONS(TD_CPU_EXEC)
#undef TD_CPU_EXEC
/* The one of these that `op` names, or the copy. */
td_status td_cpu_execute(td_cpu_exec *x, td_op op, const td_cpu_args *args, td_error *err);

/* Runs of rows [begin, end) of an operation over the pool; row_cost is roughly nanoseconds of one
 * row, and small operations stay on the stream's thread. */
typedef void (*td_cpu_rows_fn)(td_cpu_exec *x, const void *args, int64_t begin, int64_t end,
                               int32_t thread);
void td_cpu_run_rows(td_cpu_exec *x, const void *args, int64_t n_rows, double row_cost,
                     td_cpu_rows_fn fn);

#endif
