/* memory.cpp - device, pinned and registered memory of the pretend machine, and copies.
 *
 * Device memory is host memory. Each allocation is its own, of exactly its size, so that
 * AddressSanitizer finds overruns, and filled with 0xff bytes, which are NaN in every float type
 * and -1 in integers. Large ones are mapped copy-on-write onto a file of such bytes, so an arena of
 * gigabytes costs only what is written to it.
 *
 * Copies go by the kind of memory, as CUDA's do: from pageable host memory the source is taken at
 * the call, into pageable memory the call waits; with pinned memory both happen when the stream
 * gets there. A copy that leaves its allocation or names the wrong direction is refused.
 */
#include "runtime.h"

#include <algorithm>

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pretend.h"

#if PRETEND_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace {

const size_t LARGE_BYTES = 16 << 20, FILE_BYTES = 16 << 20, PAGE = 4096;

/* A file of FILE_BYTES of 0xff. */
int nan_file() {
    static const int fd = [] {
        const int made = memfd_create("pretend-nan", MFD_CLOEXEC);
        if (made < 0)
            return -1;
        std::vector<unsigned char> page(1 << 20, 0xff);
        for (size_t at = 0; at < FILE_BYTES; at += page.size())
            if (write(made, page.data(), page.size()) != (ssize_t)page.size()) {
                close(made);
                return -1;
            }
        return made;
    }();
    return fd;
}

/* False: no memory. */
bool get_memory(size_t size, size_t alignment, pretend_block *b) {
    b->size = size;
    b->map = nullptr;
    b->map_size = 0;
    const int fd = size >= LARGE_BYTES ? nan_file() : -1;
    if (fd < 0) {
        void *p = nullptr;
        if (posix_memalign(&p, alignment, size))
            return false;
        if (!pretend_no_fill())
            memset(p, 0xff, size);
        b->start = static_cast<char *>(p);
        return true;
    }
    /* One page that cannot be touched on either side. */
    const size_t body = (size + PAGE - 1) / PAGE * PAGE;
    b->map_size = body + 2 * PAGE;
    void *map =
        mmap(nullptr, b->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return false;
    b->map = static_cast<char *>(map);
    b->start = b->map + PAGE;
    for (size_t at = 0; at < body; at += FILE_BYTES) {
        const size_t n = std::min(FILE_BYTES, body - at);
        if (mmap(b->start + at, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
                 fd, 0) == MAP_FAILED) {
            munmap(map, b->map_size);
            return false;
        }
    }
#if PRETEND_ASAN
    __asan_poison_memory_region(b->start + size, body - size);
#endif
    return true;
}
void give_memory(const pretend_block &b) {
    if (!b.map) {
        free(b.start);
        return;
    }
#if PRETEND_ASAN
    __asan_unpoison_memory_region(b.map, b.map_size);
#endif
    munmap(b.map, b.map_size);
}

/* The block that holds ptr, or NULL. state().lock is held. */
pretend_block *find_block(pretend_state &s, const void *ptr) {
    const uintptr_t p = (uintptr_t)ptr;
    auto it = s.blocks.upper_bound(p);
    if (it == s.blocks.begin())
        return nullptr;
    --it;
    pretend_block &b = it->second;
    return p < it->first + std::max<size_t>(b.size, 1) ? &b : nullptr;
}

struct side {
    bool on_device, pinned;
    int device;
};
/* Where [ptr, ptr + size) lies; false when it leaves its block. state().lock is held. */
bool locate(pretend_state &s, const void *ptr, size_t size, side *out) {
    const pretend_block *b = find_block(s, ptr);
    out->on_device = b && b->kind == PRETEND_DEVICE_MEMORY;
    out->pinned = b && b->kind != PRETEND_DEVICE_MEMORY;
    out->device = b ? b->device : -1;
    if (!b)
        return true;
    const size_t left = (size_t)(b->start + b->size - static_cast<const char *>(ptr));
    return size <= left;
}

cudaError_t alloc_host(void **ptr, size_t size) {
    *ptr = nullptr;
    if (!size)
        return cudaSuccess;
    pretend_block b = {PRETEND_PINNED, pretend_current_device(), nullptr, 0, nullptr, 0};
    if (!get_memory(size, PAGE, &b))
        return pretend_failed(cudaErrorMemoryAllocation);
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    s.blocks[(uintptr_t)b.start] = b;
    *ptr = b.start;
    return cudaSuccess;
}

/* peer: the devices that the caller named, -1 when it named none. */
cudaError_t copy(const char *name, void *dst, const void *src, size_t size, cudaMemcpyKind kind,
                 cudaStream_t stream, int dst_peer, int src_peer, bool wait) {
    PRETEND_ENTER(name, cudaErrorUnknown);
    CUstream_st *s = pretend_find_stream(stream);
    if (!s)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    if (!size)
        return cudaSuccess;
    pretend_state &m = pretend_machine();
    side d, f;
    bool reach = true;
    {
        std::lock_guard<std::mutex> hold(m.lock);
        if (!locate(m, dst, size, &d) || !locate(m, src, size, &f)) {
            char text[200];
            snprintf(text, sizeof text, "%s of %zu bytes from %p to %p leaves an allocation", name,
                     size, src, dst);
            pretend_report(text);
            return pretend_failed(cudaErrorInvalidValue);
        }
        if (dst_peer < 0 && d.on_device && f.on_device && d.device != f.device)
            reach = m.devices[(size_t)d.device]->peers.count(f.device) ||
                    m.devices[(size_t)f.device]->peers.count(d.device);
    }
    const cudaMemcpyKind is =
        d.on_device ? (f.on_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                    : (f.on_device ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
    if ((kind != cudaMemcpyDefault && kind != is) ||
        (dst_peer >= 0 &&
         (is != cudaMemcpyDeviceToDevice || d.device != dst_peer || f.device != src_peer))) {
        char text[200];
        snprintf(text, sizeof text,
                 "%s of %zu bytes from %p (%s %d) to %p (%s %d): wrong direction "
                 "or device",
                 name, size, src, f.on_device ? "device" : "host", f.device, dst,
                 d.on_device ? "device" : "host", d.device);
        pretend_report(text);
        return pretend_failed(kind > cudaMemcpyDefault ? cudaErrorInvalidMemcpyDirection
                                                       : cudaErrorInvalidValue);
    }
    if (!reach) {
        char text[160];
        snprintf(text, sizeof text, "%s between devices %d and %d without peer access", name,
                 f.device, d.device);
        pretend_report(text);
        return pretend_failed(cudaErrorPeerAccessNotEnabled);
    }
    pretend_command c;
    if (is == cudaMemcpyHostToDevice && !f.pinned && !wait) {
        std::shared_ptr<std::vector<char>> staged = std::make_shared<std::vector<char>>(
            static_cast<const char *>(src), static_cast<const char *>(src) + size);
        c.run = [=] { memcpy(dst, staged->data(), size); };
    } else {
        c.run = [=] { memmove(dst, src, size); };
    }
    if (is == cudaMemcpyDeviceToHost && !d.pinned)
        wait = true;
    if (is == cudaMemcpyHostToHost && (!d.pinned || !f.pinned))
        wait = true;
    if (wait)
        c.mark = std::make_shared<pretend_mark>();
    const pretend_mark_ptr mark = c.mark;
    pretend_push(s, std::move(c));
    if (!mark)
        return cudaSuccess;
    const cudaError_t rc = pretend_wait(mark);
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}

cudaError_t fill(const char *name, void *ptr, int value, size_t size, cudaStream_t stream,
                 bool wait) {
    PRETEND_ENTER(name, cudaErrorUnknown);
    CUstream_st *s = pretend_find_stream(stream);
    if (!s)
        return pretend_failed(cudaErrorInvalidResourceHandle);
    if (!size)
        return cudaSuccess;
    pretend_state &m = pretend_machine();
    {
        side d;
        std::lock_guard<std::mutex> hold(m.lock);
        if (!locate(m, ptr, size, &d) || (!d.on_device && !d.pinned))
            return pretend_failed(cudaErrorInvalidValue);
    }
    pretend_command c;
    c.run = [=] { memset(ptr, value, size); };
    if (wait)
        c.mark = std::make_shared<pretend_mark>();
    const pretend_mark_ptr mark = c.mark;
    pretend_push(s, std::move(c));
    if (!mark)
        return cudaSuccess;
    const cudaError_t rc = pretend_wait(mark);
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}

} // namespace

extern "C" {

cudaError_t cudaMalloc(void **ptr, size_t size) {
    PRETEND_ENTER("cudaMalloc", cudaErrorMemoryAllocation);
    *ptr = nullptr;
    if (!size)
        return cudaSuccess;
    const int device = pretend_current_device();
    pretend_state &s = pretend_machine();
    pretend_device *d = s.devices[(size_t)device];
    pretend_block b = {PRETEND_DEVICE_MEMORY, device, nullptr, 0, nullptr, 0};
    const size_t limit = std::min(d->total_bytes, pretend_oom_after(device));
    std::lock_guard<std::mutex> hold(s.lock);
    if (d->used_bytes >= limit || size > limit - d->used_bytes || !get_memory(size, 256, &b))
        return pretend_failed(cudaErrorMemoryAllocation);
    d->used_bytes += size;
    s.blocks[(uintptr_t)b.start] = b;
    *ptr = b.start;
    return cudaSuccess;
}
/* Waits for the device, as CUDA does. In a poisoned process the memory stays: its last users cannot
 * be waited for. */
cudaError_t cudaFree(void *ptr) {
    const cudaError_t rc = pretend_enter("cudaFree", cudaErrorUnknown);
    if (!ptr || pretend_sticky() != cudaSuccess)
        return rc == cudaSuccess ? rc : pretend_failed(rc);
    pretend_state &s = pretend_machine();
    pretend_block b;
    {
        std::lock_guard<std::mutex> hold(s.lock);
        const auto it = s.blocks.find((uintptr_t)ptr);
        if (it == s.blocks.end() || it->second.kind != PRETEND_DEVICE_MEMORY)
            return pretend_failed(cudaErrorInvalidValue);
        b = it->second;
    }
    const cudaError_t drained = pretend_drain_device(b.device);
    if (drained != cudaSuccess)
        return pretend_failed(drained);
    {
        std::lock_guard<std::mutex> hold(s.lock);
        s.blocks.erase((uintptr_t)ptr);
        s.devices[(size_t)b.device]->used_bytes -= b.size;
    }
    give_memory(b);
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    PRETEND_ENTER("cudaMemGetInfo", cudaErrorUnknown);
    const int device = pretend_current_device();
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    const pretend_device *d = s.devices[(size_t)device];
    /* oom_after comes as a surprise: the free bytes promise more. */
    *free_bytes = d->total_bytes - d->used_bytes;
    *total_bytes = d->total_bytes;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **ptr, size_t size) {
    PRETEND_ENTER("cudaMallocHost", cudaErrorMemoryAllocation);
    return alloc_host(ptr, size);
}
cudaError_t cudaHostAlloc(void **ptr, size_t size, unsigned) {
    PRETEND_ENTER("cudaHostAlloc", cudaErrorMemoryAllocation);
    return alloc_host(ptr, size);
}
cudaError_t cudaFreeHost(void *ptr) {
    const cudaError_t rc = pretend_enter("cudaFreeHost", cudaErrorUnknown);
    if (!ptr || pretend_sticky() != cudaSuccess)
        return rc == cudaSuccess ? rc : pretend_failed(rc);
    pretend_state &s = pretend_machine();
    pretend_block b;
    {
        std::lock_guard<std::mutex> hold(s.lock);
        const auto it = s.blocks.find((uintptr_t)ptr);
        if (it == s.blocks.end() || it->second.kind != PRETEND_PINNED)
            return pretend_failed(cudaErrorInvalidValue);
        b = it->second;
        s.blocks.erase(it);
    }
    give_memory(b);
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}
cudaError_t cudaHostRegister(void *ptr, size_t size, unsigned) {
    PRETEND_ENTER("cudaHostRegister", cudaErrorMemoryAllocation);
    if (!ptr || !size)
        return pretend_failed(cudaErrorInvalidValue);
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    const auto next = s.blocks.lower_bound((uintptr_t)ptr);
    if (find_block(s, ptr) || (next != s.blocks.end() && next->first < (uintptr_t)ptr + size))
        return pretend_failed(cudaErrorHostMemoryAlreadyRegistered);
    s.blocks[(uintptr_t)ptr] = pretend_block{
        PRETEND_REGISTERED, pretend_current_device(), static_cast<char *>(ptr), size, nullptr, 0};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *ptr) {
    const cudaError_t rc = pretend_enter("cudaHostUnregister", cudaErrorUnknown);
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    const auto it = s.blocks.find((uintptr_t)ptr);
    if (it == s.blocks.end() || it->second.kind != PRETEND_REGISTERED)
        return pretend_failed(cudaErrorHostMemoryNotRegistered);
    s.blocks.erase(it);
    return rc == cudaSuccess ? rc : pretend_failed(rc);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *out, const void *ptr) {
    PRETEND_ENTER("cudaPointerGetAttributes", cudaErrorUnknown);
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    const pretend_block *b = find_block(s, ptr);
    out->type = !b                                 ? cudaMemoryTypeUnregistered
                : b->kind == PRETEND_DEVICE_MEMORY ? cudaMemoryTypeDevice
                                                   : cudaMemoryTypeHost;
    out->device = b ? b->device : -1;
    out->devicePointer = b ? const_cast<void *>(ptr) : nullptr;
    out->hostPointer = b && b->kind == PRETEND_DEVICE_MEMORY ? nullptr : const_cast<void *>(ptr);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return copy("cudaMemcpyAsync", dst, src, size, kind, stream, -1, -1, false);
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t size, cudaMemcpyKind kind) {
    return copy("cudaMemcpy", dst, src, size, kind, nullptr, -1, -1, true);
}
cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device,
                                size_t size, cudaStream_t stream) {
    if (!pretend_device_exists(dst_device) || !pretend_device_exists(src_device))
        return pretend_failed(cudaErrorInvalidDevice);
    return copy("cudaMemcpyPeerAsync", dst, src, size, cudaMemcpyDefault, stream, dst_device,
                src_device, false);
}
cudaError_t cudaMemcpyPeer(void *dst, int dst_device, const void *src, int src_device,
                           size_t size) {
    if (!pretend_device_exists(dst_device) || !pretend_device_exists(src_device))
        return pretend_failed(cudaErrorInvalidDevice);
    return copy("cudaMemcpyPeer", dst, src, size, cudaMemcpyDefault, nullptr, dst_device,
                src_device, true);
}
cudaError_t cudaMemsetAsync(void *ptr, int value, size_t size, cudaStream_t stream) {
    return fill("cudaMemsetAsync", ptr, value, size, stream, false);
}
cudaError_t cudaMemset(void *ptr, int value, size_t size) {
    return fill("cudaMemset", ptr, value, size, nullptr, true);
}

cudaError_t cudaDeviceReset(void) {
    PRETEND_ENTER("cudaDeviceReset", cudaErrorUnknown);
    const int device = pretend_current_device();
    const cudaError_t rc = pretend_drain_device(device);
    if (rc != cudaSuccess)
        return pretend_failed(rc);
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    for (auto it = s.blocks.begin(); it != s.blocks.end();)
        if (it->second.kind == PRETEND_DEVICE_MEMORY && it->second.device == device) {
            give_memory(it->second);
            it = s.blocks.erase(it);
        } else {
            ++it;
        }
    s.devices[(size_t)device]->used_bytes = 0;
    return cudaSuccess;
}

size_t pretend_live_allocations(size_t *size_bytes) {
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    size_t n = 0, sum = 0;
    for (const auto &b : s.blocks)
        if (b.second.kind == PRETEND_DEVICE_MEMORY) {
            n++;
            sum += b.second.size;
        }
    if (size_bytes)
        *size_bytes = sum;
    return n;
}

} // extern "C"
