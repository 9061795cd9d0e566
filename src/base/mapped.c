/* mapped.c - see mapped.h. A slot is taken by its `begin` and complete when `end` is set, so the signal
 * handler needs no lock. */
#include "base/mapped.h"

#include <stdatomic.h>
#include <stdint.h>

enum { N_SLOTS = 4096 };

static struct {
    atomic_uintptr_t begin, end; /* begin 0: free; end 0: being filled */
    const char *path;
    td_status code;
} g_slots[N_SLOTS];

void td_mapped_add(const void *begin, size_t size_bytes, const char *path, td_status code) {
    for (int i = 0; i < N_SLOTS; i++) {
        uintptr_t none = 0;
        if (!atomic_compare_exchange_strong(&g_slots[i].begin, &none, (uintptr_t)begin))
            continue;
        g_slots[i].path = path;
        g_slots[i].code = code;
        atomic_store(&g_slots[i].end, (uintptr_t)begin + size_bytes);
        return;
    }
}

void td_mapped_remove(const void *begin) {
    for (int i = 0; i < N_SLOTS; i++)
        if (atomic_load(&g_slots[i].begin) == (uintptr_t)begin) {
            atomic_store(&g_slots[i].end, 0);
            atomic_store(&g_slots[i].begin, 0);
            return;
        }
}

const char *td_mapped_find(const void *p, td_status *code) {
    for (int i = 0; i < N_SLOTS; i++) {
        uintptr_t begin = atomic_load(&g_slots[i].begin), end = atomic_load(&g_slots[i].end);
        if (begin && (uintptr_t)p >= begin && (uintptr_t)p < end) {
            *code = g_slots[i].code;
            return g_slots[i].path;
        }
    }
    return NULL;
}
