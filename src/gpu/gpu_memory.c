/* gpu_memory.c - device memory: one arena per device, cut first-fit.
 *
 * td_gpu_reserve takes the arena in one piece at the start of a run; from then on nothing asks CUDA
 * for device memory. The arena is a list of blocks in address order without gaps, free ones never
 * next to each other; there are few allocations (weights once, a session's buffers once or, with
 * short memory, a few times), so a linear search is enough. Without an arena (tests, the speed
 * measurement, TDGEN_DEBUG_ALLOC) every allocation is CUDA's own.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu.h"
#include "base/format.h"
#include "base/memory.h"

enum { ALIGN = 256 };
/* What reserve leaves to others when the card has less than was asked for. */
static const uint64_t LEFT_FREE_BYTES = (uint64_t)256 << 20;
/* How much less is asked for next: a share of the whole, at least this. */
static const uint64_t MIN_STEP_BYTES = (uint64_t)2 << 20;

struct td_gpu_block {
    uint64_t offset, size_bytes;
    bool used;
};

static td_status out_of_memory(const td_gpu_device *d, uint64_t size_bytes, uint64_t free_bytes,
                               td_error *err) {
    char want[32], have[32];
    return td_error_set(err, TD_E_DEVICE_OOM,
                        "%s: %s of device memory are not there (%s free); use smaller "
                        "run.batch_tokens, or more devices per model",
                        d->base.info.name, td_human_bytes(size_bytes, want, sizeof want),
                        td_human_bytes(free_bytes, have, sizeof have));
}

static uint64_t cuda_free_bytes(void) {
    size_t free_bytes = 0, total = 0;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        (void)cudaGetLastError();
    return free_bytes;
}

static td_status own_alloc(td_gpu_device *d, size_t size_bytes, void **out, td_error *err) {
    void *p = NULL;
    cudaError_t cu = cudaMalloc(&p, size_bytes);
    if (cu == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return out_of_memory(d, size_bytes, cuda_free_bytes(), err);
    }
    td_status rc = td_gpu_check(cu, &d->base.info, "cudaMalloc", err);
    if (rc != TD_OK)
        return rc;
    if (d->own_allocations) {
        /* The fill runs on the default stream, which our streams do not wait for. */
        cu = cudaMemset(p, 0xff, size_bytes);
        if (!cu)
            cu = cudaStreamSynchronize(NULL);
        if ((rc = td_gpu_check(cu, &d->base.info, "cudaMemset", err)) != TD_OK) {
            (void)cudaFree(p);
            return rc;
        }
    }
    *out = p;
    return TD_OK;
}

/* Opens a gap at blocks[i]. Under the lock. */
static bool insert_block(td_gpu_device *d, size_t i) {
    if (!td_grow((void **)&d->blocks, &d->cap_blocks, d->n_blocks + 1, sizeof *d->blocks))
        return false;
    memmove(d->blocks + i + 1, d->blocks + i, (d->n_blocks - i) * sizeof *d->blocks);
    d->n_blocks++;
    return true;
}

static td_status arena_alloc(td_gpu_device *d, uint64_t size_bytes, void **out, td_error *err) {
    uint64_t free_bytes = 0;
    td_status rc = TD_OK;
    pthread_mutex_lock(&d->lock);
    for (size_t i = 0; i < d->n_blocks; i++) {
        td_gpu_block *b = &d->blocks[i];
        if (b->used)
            continue;
        free_bytes += b->size_bytes;
        if (b->size_bytes < size_bytes)
            continue;
        if (b->size_bytes > size_bytes) {
            if (!insert_block(d, i + 1)) {
                rc = td_error_nomem(err, "the list of device allocations", sizeof *b);
                goto done;
            }
            b = &d->blocks[i];
            b[1] = (td_gpu_block){b->offset + size_bytes, b->size_bytes - size_bytes, false};
            b->size_bytes = size_bytes;
        }
        b->used = true;
        *out = d->arena + b->offset;
        goto done;
    }
    rc = out_of_memory(d, size_bytes, free_bytes, err);
done:
    pthread_mutex_unlock(&d->lock);
    return rc;
}

td_status td_gpu_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err) {
    td_gpu_device *d = (td_gpu_device *)dev;
    td_status rc = td_gpu_use(d, err);
    if (rc != TD_OK)
        return rc;
    if (size_bytes == 0)
        size_bytes = 1;
    if (size_bytes > SIZE_MAX - ALIGN)
        return out_of_memory(d, size_bytes, 0, err);
    if (!d->arena)
        return own_alloc(d, size_bytes, out, err);
    return arena_alloc(d, (size_bytes + ALIGN - 1) / ALIGN * ALIGN, out, err);
}

void td_gpu_free(td_device *dev, void *ptr) {
    td_gpu_device *d = (td_gpu_device *)dev;
    const unsigned char *p = ptr;
    if (!p)
        return;
    if (!d->arena || p < d->arena || p >= d->arena + d->arena_bytes) {
        if (td_gpu_use(d, NULL) == TD_OK && cudaFree(ptr) != cudaSuccess)
            (void)cudaGetLastError();
        return;
    }
    const uint64_t offset = (uint64_t)(p - d->arena);
    pthread_mutex_lock(&d->lock);
    for (size_t i = 0; i < d->n_blocks; i++) {
        td_gpu_block *b = &d->blocks[i];
        if (b->offset != offset)
            continue;
        b->used = false;
        size_t first = i > 0 && !b[-1].used ? i - 1 : i;
        size_t last = i + 1 < d->n_blocks && !b[1].used ? i + 1 : i;
        if (last > first) {
            td_gpu_block *f = &d->blocks[first], *l = &d->blocks[last];
            f->size_bytes = l->offset + l->size_bytes - f->offset;
            memmove(f + 1, l + 1, (d->n_blocks - last - 1) * sizeof *f);
            d->n_blocks -= last - first;
        }
        break;
    }
    pthread_mutex_unlock(&d->lock);
}

td_status td_gpu_reserve(td_device *dev, uint64_t size_bytes, uint64_t *got_bytes, td_error *err) {
    td_gpu_device *d = (td_gpu_device *)dev;
    td_status rc = td_gpu_use(d, err);
    if (rc != TD_OK)
        return rc;
    if (d->arena)
        return td_error_set(err, TD_E_INTERNAL, "%s: the arena is there already",
                            d->base.info.name);
    *got_bytes = size_bytes;
    if (d->own_allocations)
        return TD_OK;
    uint64_t want = (size_bytes + ALIGN - 1) / ALIGN * ALIGN;
    void *p = NULL;
    cudaError_t cu = cudaMalloc(&p, want);
    while (cu == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        const uint64_t free_bytes = cuda_free_bytes();
        /* Free memory may be in pieces, so what is said to be free can still be refused. */
        want = TD_MIN(want - TD_MIN(want, TD_MAX(want / 32, MIN_STEP_BYTES)),
                      free_bytes > LEFT_FREE_BYTES ? free_bytes - LEFT_FREE_BYTES : 0);
        want = want / ALIGN * ALIGN;
        if (want == 0)
            return out_of_memory(d, size_bytes, free_bytes, err);
        cu = cudaMalloc(&p, want);
    }
    if ((rc = td_gpu_check(cu, &d->base.info, "cudaMalloc", err)) != TD_OK)
        return rc;
    pthread_mutex_lock(&d->lock);
    if (insert_block(d, 0)) {
        d->blocks[0] = (td_gpu_block){0, want, false};
        d->arena = p;
        d->arena_bytes = want;
        *got_bytes = want;
    } else {
        rc = td_error_nomem(err, "the list of device allocations", sizeof *d->blocks);
    }
    pthread_mutex_unlock(&d->lock);
    if (rc != TD_OK)
        (void)cudaFree(p);
    return rc;
}

/* Portable: a block that one device's group fills may be sent to any other. */
td_status td_gpu_host_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err) {
    td_gpu_device *d = (td_gpu_device *)dev;
    td_status rc = td_gpu_use(d, err);
    void *p = NULL;
    if (rc != TD_OK)
        return rc;
    cudaError_t cu = cudaHostAlloc(&p, TD_MAX(size_bytes, (size_t)1), cudaHostAllocPortable);
    if (cu == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        char want[32];
        return td_error_set(err, TD_E_DEVICE_OOM,
                            "%s: %s of pinned host memory are not there; use smaller "
                            "run.batch_tokens or capture.top_k",
                            d->base.info.name, td_human_bytes(size_bytes, want, sizeof want));
    }
    if ((rc = td_gpu_check(cu, &d->base.info, "cudaHostAlloc", err)) == TD_OK)
        *out = p;
    return rc;
}

void td_gpu_host_free(td_device *dev, void *ptr) {
    td_gpu_device *d = (td_gpu_device *)dev;
    if (ptr && td_gpu_use(d, NULL) == TD_OK && cudaFreeHost(ptr) != cudaSuccess)
        (void)cudaGetLastError();
}

void td_gpu_memory_close(td_gpu_device *d) {
    if (d->arena && td_gpu_use(d, NULL) == TD_OK && cudaFree(d->arena) != cudaSuccess)
        (void)cudaGetLastError();
    d->arena = NULL;
    free(d->blocks);
    d->blocks = NULL;
    d->n_blocks = d->cap_blocks = 0;
}
