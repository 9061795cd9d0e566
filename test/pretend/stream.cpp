/* stream.cpp - streams, events and launches of the pretend machine.
 *
 * A stream is a queue and a host thread that works it off in order; the call that enqueues returns
 * at once, so what is not ordered by an event really runs in any order (with TDGEN_PRETEND_JITTER=1
 * after small random pauses, which makes that likelier to show). An event is a handle on the last
 * mark it put into a stream. The default stream of a device is one more such stream: it does not
 * wait for the others, as if all were made with cudaStreamNonBlocking.
 *
 * A kernel that faults poisons the process: what is enqueued is dropped, its marks complete, and
 * every later call returns the error.
 */
#include "runtime.h"

#include <algorithm>
#include <thread>

#include <time.h>
#include <unistd.h>

namespace {

struct marks {
    std::mutex lock;
    std::condition_variable changed;
};
marks &the_marks() {
    static marks *m = new marks;
    return *m;
}

double now_s() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void complete(const pretend_mark_ptr &mark) {
    marks &m = the_marks();
    std::lock_guard<std::mutex> hold(m.lock);
    mark->done = true;
    mark->time_s = now_s();
    m.changed.notify_all();
}

void work(CUstream_st *s) {
    pretend_random random(s->seed);
    const bool jitter = pretend_jitter();
    std::unique_lock<std::mutex> hold(s->lock);
    for (;;) {
        while (s->queue.empty() && !s->closing)
            s->changed.wait(hold);
        if (s->queue.empty()) {
            /* Out of the table first: whoever still finds the stream there may wait for it. */
            pretend_state &m = pretend_machine();
            hold.unlock();
            m.lock.lock();
            hold.lock();
            const bool over = s->queue.empty();
            if (over)
                m.streams.erase(s);
            m.lock.unlock();
            if (over)
                break;
            continue;
        }
        pretend_command c = std::move(s->queue.front());
        s->queue.pop_front();
        s->busy = true;
        hold.unlock();
        if (jitter && random.below(2))
            usleep(random.below(8) ? random.below(200) : random.below(3000));
        if (c.hangs)
            for (;;)
                pause();
        if (c.run && !pretend_is_broken(s->device))
            c.run();
        c.run = nullptr;
        if (c.mark)
            complete(c.mark);
        hold.lock();
        s->busy = false;
        s->changed.notify_all();
    }
    hold.unlock();
    delete s;
}

/* state().lock is held. */
CUstream_st *make_stream(pretend_state &m, int device) {
    CUstream_st *s = new CUstream_st;
    s->device = device;
    s->seed = pretend_seed() * 1000003 + m.n_streams++;
    m.streams.insert(s);
    std::thread(work, s).detach();
    return s;
}

cudaError_t record_mark(CUstream_st *s, pretend_mark_ptr *out) {
    pretend_command c;
    c.mark = std::make_shared<pretend_mark>();
    *out = c.mark;
    pretend_push(s, std::move(c));
    return cudaSuccess;
}

void wake_all() {
    marks &m = the_marks();
    std::lock_guard<std::mutex> hold(m.lock);
    m.changed.notify_all();
}

CUevent_st *find_event(cudaEvent_t handle) {
    pretend_state &m = pretend_machine();
    std::lock_guard<std::mutex> hold(m.lock);
    return m.events.count(handle) ? handle : nullptr;
}
pretend_mark_ptr latest_mark(CUevent_st *e) {
    std::lock_guard<std::mutex> hold(e->lock);
    return e->latest;
}
bool is_done(const pretend_mark_ptr &mark) {
    marks &m = the_marks();
    std::lock_guard<std::mutex> hold(m.lock);
    return mark->done;
}

cudaError_t enqueue_kernel(const char *name, cudaStream_t stream, std::function<void()> run) {
    CUstream_st *s = pretend_find_stream(stream);
    if (!s || s->device != pretend_current_device())
        return pretend_failed(cudaErrorInvalidResourceHandle);
    const pretend_planned fault = pretend_planned_fault(s->device, name);
    pretend_command c;
    c.run = std::move(run);
    if (fault.kind == PRETEND_FAULT_HANG) {
        c.hangs = true;
    } else if (fault.kind == PRETEND_FAULT_ERROR) {
        const std::string text = std::string("kernel ") + name + " on device " +
                                 std::to_string(s->device) +
                                 " faults as planned: " + cudaGetErrorName(fault.error);
        const int device = s->device;
        c.run = [fault, text, device] {
            pretend_report(text);
            pretend_poison(fault.error, device);
        };
    }
    pretend_push(s, std::move(c));
    return cudaSuccess;
}

} // namespace

void pretend_poison(cudaError_t error, int device) {
    pretend_set_sticky(error, device);
    wake_all();
}

void pretend_push(CUstream_st *s, pretend_command command) {
    std::lock_guard<std::mutex> hold(s->lock);
    s->queue.push_back(std::move(command));
    s->changed.notify_all();
}

CUstream_st *pretend_find_stream(cudaStream_t handle) {
    pretend_state &m = pretend_machine();
    std::lock_guard<std::mutex> hold(m.lock);
    if (!handle || handle == cudaStreamLegacy) {
        pretend_device *d = m.devices[(size_t)pretend_current_device()];
        if (!d->default_stream)
            d->default_stream = make_stream(m, pretend_current_device());
        return d->default_stream;
    }
    return m.streams.count(handle) && !handle->closing ? handle : nullptr;
}

cudaError_t pretend_wait(const pretend_mark_ptr &mark) {
    marks &m = the_marks();
    std::unique_lock<std::mutex> hold(m.lock);
    while (!mark->done && pretend_sticky() == cudaSuccess)
        m.changed.wait(hold);
    return pretend_sticky();
}

cudaError_t pretend_drain_stream(CUstream_st *s) {
    pretend_mark_ptr mark;
    record_mark(s, &mark);
    return pretend_wait(mark);
}
cudaError_t pretend_drain_device(int device) {
    pretend_state &m = pretend_machine();
    std::vector<pretend_mark_ptr> all;
    {
        /* Under the lock: a closing stream goes away once it is out of the table. */
        std::lock_guard<std::mutex> hold(m.lock);
        for (CUstream_st *s : m.streams)
            if (s->device == device) {
                all.emplace_back();
                record_mark(s, &all.back());
            }
    }
    for (const pretend_mark_ptr &mark : all) {
        const cudaError_t rc = pretend_wait(mark);
        if (rc != cudaSuccess)
            return rc;
    }
    return pretend_sticky();
}

cudaError_t pretend_enqueue(const pretend_kernel &kernel, dim3 grid, dim3 block,
                            size_t shared_bytes, cudaStream_t stream) {
    const std::shared_ptr<void> arguments(kernel.arguments, kernel.destroy);
    PRETEND_ENTER("cudaLaunchKernel", cudaErrorUnknown);
    const int device = pretend_current_device(), capability = pretend_device_capability(device);
    int version;
    cudaRuntimeGetVersion(&version);
    if (capability < 75 && version >= 13000)
        return pretend_failed(cudaErrorNoKernelImageForDevice);
    if (block.x < 1 || block.y < 1 || block.z < 1 || block.x > 1024 || block.y > 1024 ||
        block.z > 64 || (uint64_t)block.x * block.y * block.z > 1024 || grid.x < 1 || grid.y < 1 ||
        grid.z < 1 || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
        return pretend_failed(cudaErrorInvalidConfiguration);
    if (shared_bytes > pretend_max_shared_bytes(capability))
        return pretend_failed(cudaErrorInvalidValue);
    pretend_launch_info launch = {kernel, grid, block, shared_bytes, device, capability, 0};
    {
        pretend_state &m = pretend_machine();
        std::lock_guard<std::mutex> hold(m.lock);
        launch.seed = pretend_seed() * 7919 + m.n_launches++;
    }
    return enqueue_kernel(kernel.name, stream, [launch, arguments] {
        const cudaError_t rc = pretend_run_grid(launch);
        if (rc != cudaSuccess)
            pretend_poison(rc, launch.device);
    });
}

cudaError_t pretend_enqueue_work(const char *kernel_name, cudaStream_t stream,
                                 std::function<void()> run) {
    return enqueue_kernel(kernel_name, stream, std::move(run));
}

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    PRETEND_ENTER("cudaStreamCreate", cudaErrorMemoryAllocation);
    if (flags & ~(unsigned)cudaStreamNonBlocking)
        return pretend_failed(cudaErrorInvalidValue);
    pretend_state &m = pretend_machine();
    std::lock_guard<std::mutex> hold(m.lock);
    *stream = make_stream(m, pretend_current_device());
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithPriority(stream, 0, 0);
}
/* Returns at once; the thread works off what is enqueued and goes. */
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const cudaError_t rc = pretend_enter("cudaStreamDestroy", cudaErrorUnknown);
    pretend_state &m = pretend_machine();
    std::lock_guard<std::mutex> tables(m.lock);
    if (!stream || !m.streams.count(stream))
        return pretend_failed(cudaErrorInvalidResourceHandle);
    std::lock_guard<std::mutex> hold(stream->lock);
    if (stream->closing)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    stream->closing = true;
    stream->changed.notify_all();
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    PRETEND_ENTER("cudaStreamSynchronize", cudaErrorUnknown);
    CUstream_st *s = pretend_find_stream(stream);
    if (!s)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    const cudaError_t rc = pretend_drain_stream(s);
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    PRETEND_ENTER("cudaStreamQuery", cudaErrorUnknown);
    CUstream_st *s = pretend_find_stream(stream);
    if (!s)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    std::lock_guard<std::mutex> hold(s->lock);
    return s->queue.empty() && !s->busy ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    PRETEND_ENTER("cudaStreamWaitEvent", cudaErrorUnknown);
    CUstream_st *s = pretend_find_stream(stream);
    CUevent_st *e = find_event(event);
    if (!s || !e)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    const pretend_mark_ptr mark = latest_mark(e);
    if (!mark)
        return cudaSuccess;
    pretend_command c;
    c.run = [mark] { pretend_wait(mark); };
    pretend_push(s, std::move(c));
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *user_data) {
    PRETEND_ENTER("cudaLaunchHostFunc", cudaErrorUnknown);
    CUstream_st *s = pretend_find_stream(stream);
    if (!s)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    pretend_command c;
    c.run = [=] { fn(user_data); };
    pretend_push(s, std::move(c));
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    PRETEND_ENTER("cudaDeviceSynchronize", cudaErrorUnknown);
    const cudaError_t rc = pretend_drain_device(pretend_current_device());
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    PRETEND_ENTER("cudaEventCreate", cudaErrorMemoryAllocation);
    CUevent_st *e = new CUevent_st;
    e->device = pretend_current_device();
    e->timed = !(flags & cudaEventDisableTiming);
    pretend_state &m = pretend_machine();
    std::lock_guard<std::mutex> hold(m.lock);
    m.events.insert(e);
    *event = e;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const cudaError_t rc = pretend_enter("cudaEventDestroy", cudaErrorUnknown);
    pretend_state &m = pretend_machine();
    {
        std::lock_guard<std::mutex> hold(m.lock);
        if (!m.events.erase(event))
            return pretend_failed(cudaErrorInvalidResourceHandle);
    }
    delete event;
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    PRETEND_ENTER("cudaEventRecord", cudaErrorUnknown);
    CUstream_st *s = pretend_find_stream(stream);
    CUevent_st *e = find_event(event);
    if (!s || !e || e->device != s->device)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    std::lock_guard<std::mutex> hold(e->lock);
    return record_mark(s, &e->latest);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    PRETEND_ENTER("cudaEventSynchronize", cudaErrorUnknown);
    CUevent_st *e = find_event(event);
    if (!e)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    const pretend_mark_ptr mark = latest_mark(e);
    const cudaError_t rc = mark ? pretend_wait(mark) : cudaSuccess;
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    PRETEND_ENTER("cudaEventQuery", cudaErrorUnknown);
    CUevent_st *e = find_event(event);
    if (!e)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    const pretend_mark_ptr mark = latest_mark(e);
    if (mark && !is_done(mark))
        return cudaErrorNotReady;
    const cudaError_t rc = pretend_sticky();
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    PRETEND_ENTER("cudaEventElapsedTime", cudaErrorUnknown);
    CUevent_st *a = find_event(start), *b = find_event(end);
    if (!a || !b || !a->timed || !b->timed)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    const pretend_mark_ptr from = latest_mark(a), to = latest_mark(b);
    if (!from || !to)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    if (!is_done(from) || !is_done(to))
        return cudaErrorNotReady;
    marks &m = the_marks();
    std::lock_guard<std::mutex> hold(m.lock);
    *milliseconds = (float)(1e3 * (to->time_s - from->time_s));
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute attr, int value) {
    PRETEND_ENTER("cudaFuncSetAttribute", cudaErrorUnknown);
    if (attr == cudaFuncAttributeMaxDynamicSharedMemorySize &&
        (value < 0 || (size_t)value > pretend_max_shared_bytes(
                                          pretend_device_capability(pretend_current_device()))))
        return pretend_failed(cudaErrorInvalidValue);
    return cudaSuccess;
}

} // extern "C"
