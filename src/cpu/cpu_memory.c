/* cpu_memory.c - what memory there is, and allocations counted against it.
 *
 * Linux grants almost any malloc and kills the process when the pages are touched. A plan that does
 * not fit must meet an error instead, so every allocation is checked against the machine's total
 * (or the cgroup's limit) minus what the process's CPU devices already hold, touched or not.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/cpu.h"
#include "base/format.h"
#include "base/memory.h"

/* In front of each block: its size, for the account. One cache line, so that alignment stays. */
enum { HEADER_BYTES = 64, HUGE_BYTES = 2 << 20, LARGE_BYTES = 64 << 20 };

static atomic_uint_least64_t held_bytes;
static _Atomic int64_t fail_countdown; /* 0 = off */
static atomic_bool nan_fill;

void td_cpu_mem_fail_at(int64_t n) {
    atomic_store(&fail_countdown, n);
}

void td_cpu_mem_set_fill(bool fill) {
    atomic_store(&nan_fill, fill);
}

uint64_t td_cpu_mem_held(void) {
    return atomic_load(&held_bytes);
}

/* A number alone in a file; false for "max" and missing files. */
static bool read_number(const char *path, uint64_t *out) {
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool ok = fscanf(f, "%" SCNu64, out) == 1;
    fclose(f);
    return ok;
}

/* Page cache that the kernel gives back when memory is asked for counts as used in a cgroup, and fills
 * it in time: memory.stat's inactive_file (v2) or total_inactive_file (v1, with the children). */
static uint64_t reclaimable(const char *root, const char *path, bool v2) {
    char file[1200], key[64];
    uint64_t n, found = 0;
    snprintf(file, sizeof(file), "%s%s/memory.stat", root, path);
    FILE *f = fopen(file, "re");
    while (f && fscanf(f, "%63s %" SCNu64, key, &n) == 2)
        if (!strcmp(key, v2 ? "inactive_file" : "total_inactive_file"))
            found = n;
    if (f)
        fclose(f);
    return found;
}

/* Applies the memory limits of the process's cgroup and of each of its parents (v2, or v1's hierarchy):
 * any of them may be the tightest. */
static void apply_cgroup(uint64_t *total, uint64_t *available) {
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[1024];
    const uint64_t host = *total;
    while (f && fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'),
             *path = controllers ? strchr(++controllers, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        const bool v2 = !*controllers, v1 = !strcmp(controllers, "memory");
        if (!v2 && !v1)
            continue;
        for (;;) {
            char file[1200];
            uint64_t limit, used;
            const char *root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
            snprintf(file, sizeof(file), "%s%s/%s", root, path,
                     v2 ? "memory.max" : "memory.limit_in_bytes");
            if (read_number(file, &limit) && limit < host) { /* v1's "no limit" is a huge number */
                *total = TD_MIN(*total, limit);
                snprintf(file, sizeof(file), "%s%s/%s", root, path,
                         v2 ? "memory.current" : "memory.usage_in_bytes");
                if (read_number(file, &used)) {
                    used -= TD_MIN(used, reclaimable(root, path, v2));
                    *available = TD_MIN(*available, limit > used ? limit - used : 0);
                }
            }
            char *slash = strrchr(path, '/');
            if (!slash)
                break;
            *slash = 0;
        }
    }
    if (f)
        fclose(f);
}

void td_cpu_memory_info(uint64_t *total_bytes, uint64_t *free_bytes) {
    uint64_t total = 0, available = 0, kib;
    FILE *f = fopen("/proc/meminfo", "re");
    char line[256];
    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "MemTotal: %" SCNu64 " kB", &kib) == 1)
            total = kib * 1024;
        else if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
            available = kib * 1024;
    }
    if (f)
        fclose(f);
    apply_cgroup(&total, &available);
    *total_bytes = total;
    *free_bytes = TD_MIN(available, total);
}

/* False when `n` more bytes cannot be had; otherwise they are on the account. */
static bool account(uint64_t n) {
    static atomic_uint_least64_t total; /* does not change: read once */
    uint64_t t = atomic_load(&total);
    if (!t) {
        uint64_t available;
        td_cpu_memory_info(&t, &available);
        atomic_store(&total, t);
    }
    if (atomic_load(&fail_countdown) > 0 && atomic_fetch_sub(&fail_countdown, 1) == 1)
        return false;
    uint64_t before = atomic_fetch_add(&held_bytes, n);
    bool fits = !t || (n <= t && before <= t - n);
    if (fits && n >= LARGE_BYTES) { /* worth a look at what other processes hold */
        uint64_t now, available;
        td_cpu_memory_info(&now, &available);
        fits = !now || n <= available;
    }
    if (!fits)
        atomic_fetch_sub(&held_bytes, n);
    return fits;
}

td_status td_cpu_mem_alloc(const char *who, size_t size_bytes, void **out, td_error *err) {
    char human[32];
    size_t all;
    if (!td_add_size(size_bytes, HEADER_BYTES + HUGE_BYTES, &all))
        goto fail;
    const bool huge = size_bytes >= 2 * (size_t)HUGE_BYTES;
    const size_t align = huge ? HUGE_BYTES : 64;
    /* Up to the next multiple of the alignment, as aligned_alloc asks; at least 64 bytes of data.
     */
    all = (TD_MAX(size_bytes, (size_t)1) + HEADER_BYTES + align - 1) / align * align;
    if (!account(all))
        goto fail;
    char *block = aligned_alloc(align, all);
    if (!block) {
        atomic_fetch_sub(&held_bytes, all);
        goto fail;
    }
    if (huge)
        madvise(block, all, MADV_HUGEPAGE); /* advice only */
    memcpy(block, &all, sizeof(all));
    if (atomic_load(&nan_fill))
        memset(block + HEADER_BYTES, 0xff, all - HEADER_BYTES);
    *out = block + HEADER_BYTES;
    return TD_OK;
fail:
    return td_error_set(err, TD_E_DEVICE_OOM,
                        "%s: out of memory: %zu bytes (%s) asked for, CPU devices hold %" PRIu64
                        " bytes; lower run.batch_tokens or use fewer devices",
                        who, size_bytes, td_human_bytes(size_bytes, human, sizeof(human)),
                        td_cpu_mem_held());
}

void td_cpu_mem_free(void *ptr) {
    if (!ptr)
        return;
    char *block = (char *)ptr - HEADER_BYTES;
    size_t all;
    memcpy(&all, block, sizeof(all));
    atomic_fetch_sub(&held_bytes, all);
    free(block);
}
