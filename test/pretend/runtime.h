/* runtime.h - inside the CUDA-on-CPU layer: the state of the pretend machine, shared by
 * machine.cpp, memory.cpp and stream.cpp.
 *
 * Everything here lives until the process ends and is never destructed: stream threads may still
 * run then. Locks: state().lock guards the tables (devices' used bytes, blocks, streams, events);
 * a stream's own lock guards its queue; marks_lock guards marks and is the last one taken.
 */
#ifndef PRETEND_RUNTIME_H
#define PRETEND_RUNTIME_H

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "engine.h"

/* --- machine ---------------------------------------------------------------------------------- */

struct pretend_device {
    std::string name;
    int capability, n_multiprocessors; /* 80 for 8.0 */
    size_t total_bytes;
    unsigned char uuid[16];
    int bus; /* of its PCI id */
    /* state().lock */
    size_t used_bytes = 0, limit_bytes;
    std::set<int> peers; /* whose memory this device may reach */
    CUstream_st *default_stream = nullptr;
};
/* Largest dynamic shared memory of a block on chips of this capability. */
size_t pretend_max_shared_bytes(int capability);
size_t pretend_shared_bytes_per_multiprocessor(int capability);

/* A planned fault of a device's kernel. */
enum pretend_fault_kind { PRETEND_NO_FAULT, PRETEND_FAULT_ERROR, PRETEND_FAULT_HANG };
struct pretend_planned {
    pretend_fault_kind kind;
    cudaError_t error;
};
/* Counts a launch on the device for TDGEN_PRETEND_FAULT. */
pretend_planned pretend_planned_fault(int device, const char *kernel_name);
/* oom_after of the device, SIZE_MAX when not set. */
size_t pretend_oom_after(int device);
bool pretend_jitter();
bool pretend_no_peer();
bool pretend_no_fill();

/* Poisons the process: the first error wins. The device that broke works on nothing more, and its
 * calls are the first to say so. Wakes all that wait. */
void pretend_poison(cudaError_t error, int device);
void pretend_set_sticky(cudaError_t error, int device);
bool pretend_is_broken(int device);

/* Sets the thread's last error. */
cudaError_t pretend_failed(cudaError_t error);
/* What every call does first: counted, failed on demand with `planned`, refused when the process is
 * poisoned. */
cudaError_t pretend_enter(const char *name, cudaError_t planned);
#define PRETEND_ENTER(name, planned)                                                               \
    do {                                                                                           \
        const cudaError_t entered_ = pretend_enter(name, planned);                                 \
        if (entered_ != cudaSuccess)                                                               \
            return pretend_failed(entered_);                                                       \
    } while (0)

/* --- memory ----------------------------------------------------------------------------------- */

enum pretend_block_kind { PRETEND_DEVICE_MEMORY, PRETEND_PINNED, PRETEND_REGISTERED };
struct pretend_block {
    pretend_block_kind kind;
    int device;
    char *start;
    size_t size;
    char *map; /* large ones: a mapping, else NULL */
    size_t map_size;
};

/* --- streams ---------------------------------------------------------------------------------- */

/* One point of a stream's order. marks_lock. */
struct pretend_mark {
    bool done = false;
    double time_s = 0;
};
typedef std::shared_ptr<pretend_mark> pretend_mark_ptr;

struct pretend_command {
    std::function<void()> run; /* skipped once the process is poisoned */
    pretend_mark_ptr mark;     /* completed afterwards, in any case */
    bool hangs = false;
};

struct CUstream_st {
    int device;
    uint64_t seed;
    std::mutex lock;
    std::condition_variable changed;
    std::deque<pretend_command> queue;
    bool closing = false, busy = false;
};

struct CUevent_st {
    int device;
    bool timed;
    std::mutex lock;
    pretend_mark_ptr latest; /* NULL: never recorded, complete */
};

struct pretend_state {
    std::mutex lock;
    std::vector<pretend_device *> devices;
    std::map<uintptr_t, pretend_block> blocks; /* by start */
    std::set<CUstream_st *> streams;           /* closing ones too, until they have drained */
    std::set<CUevent_st *> events;
    uint64_t n_launches = 0, n_streams = 0;
};
/* The machine, made at the first use. */
pretend_state &pretend_machine();

bool pretend_device_exists(int device);
/* The stream behind a handle: the device's default one for NULL; NULL when it is none. Takes
 * state().lock. */
CUstream_st *pretend_find_stream(cudaStream_t handle);
void pretend_push(CUstream_st *s, pretend_command command);
/* Blocks until the mark is done; the process's error when it is poisoned. */
cudaError_t pretend_wait(const pretend_mark_ptr &mark);
/* Waits for what stands in the stream's queue. */
cudaError_t pretend_drain_stream(CUstream_st *s);
/* ... in all queues of the device. */
cudaError_t pretend_drain_device(int device);

#endif
