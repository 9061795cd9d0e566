/* hash.h - xxh3 of 64 bits: identity and integrity of files, no defence against an adversary. */
#ifndef TDGEN_BASE_HASH_H
#define TDGEN_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t td_hash64(const void *data, size_t size_bytes);
/* Its 16 lower-case hex digits + NUL. */
void td_hash_hex(uint64_t hash, char out[17]);

/* The same hash of bytes that come in pieces: reset, update ..., digest. One thread at a time. NULL
 * when out of memory. */
typedef struct td_hasher td_hasher;
td_hasher *td_hasher_create(void);
void td_hasher_destroy(td_hasher *h); /* NULL allowed */
void td_hasher_reset(td_hasher *h);
void td_hasher_update(td_hasher *h, const void *data, size_t size_bytes);
uint64_t td_hasher_digest(const td_hasher *h);

#endif
