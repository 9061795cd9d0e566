/* hash.c - xxh3 in one block or in pieces. */
#include "base/hash.h"

#include <stdio.h>
#include <xxhash.h>

uint64_t td_hash64(const void *data, size_t size_bytes) {
    return XXH3_64bits(data, size_bytes);
}

/* An XXH3_state_t, which wants more alignment than malloc gives, so that the library makes it. The
 * updates cannot fail: they only do for a NULL state. */
td_hasher *td_hasher_create(void) {
    td_hasher *h = (td_hasher *)XXH3_createState();
    if (h)
        td_hasher_reset(h);
    return h;
}

void td_hasher_destroy(td_hasher *h) {
    XXH3_freeState((XXH3_state_t *)h);
}

void td_hasher_reset(td_hasher *h) {
    XXH3_64bits_reset((XXH3_state_t *)h);
}

void td_hasher_update(td_hasher *h, const void *data, size_t size_bytes) {
    if (size_bytes)
        XXH3_64bits_update((XXH3_state_t *)h, data, size_bytes);
}

uint64_t td_hasher_digest(const td_hasher *h) {
    return XXH3_64bits_digest((const XXH3_state_t *)h);
}

void td_hash_hex(uint64_t hash, char out[17]) {
    snprintf(out, 17, "%016llx", (unsigned long long)hash);
}
