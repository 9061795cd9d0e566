/* Strings to ids and back: one blob of bytes, an array by id, a hash table of ids. */
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include "tokenizer/internal.h"
#include "base/memory.h"

/* A string that got a second id leaves its first id's text in place (decoding keeps working), and
 * the slot then holds the newer id. */

static bool same(const tok_vocab *v, int32_t id, const char *s, size_t n) {
    return v->length[id] == n && memcmp(v->blob + v->offset[id], s, n) == 0;
}

static void put_slot(tok_vocab *v, uint64_t hash, int32_t id) {
    size_t mask = v->n_slots - 1, i = hash & mask;
    while (v->slot[i] >= 0)
        i = (i + 1) & mask;
    v->slot[i] = id;
    v->tag[i] = (uint32_t)(hash >> 32);
}

static bool rehash(tok_vocab *v, size_t n_slots) {
    int32_t *slot = td_calloc(n_slots, sizeof *slot);
    uint32_t *tag = td_calloc(n_slots, sizeof *tag);
    if (!slot || !tag) {
        free(slot);
        free(tag);
        return false;
    }
    for (size_t i = 0; i < n_slots; i++)
        slot[i] = -1;
    int32_t *old = v->slot;
    size_t n_old = v->n_slots;
    free(v->tag);
    v->slot = slot;
    v->tag = tag;
    v->n_slots = n_slots;
    for (size_t i = 0; i < n_old; i++)
        if (old[i] >= 0)
            put_slot(v, XXH3_64bits(v->blob + v->offset[old[i]], v->length[old[i]]), old[i]);
    free(old);
    return true;
}

/* The slot of a string, or the empty one where it belongs. */
static size_t find_slot(const tok_vocab *v, const char *s, size_t n, uint64_t hash) {
    size_t mask = v->n_slots - 1, i = hash & mask;
    uint32_t tag = (uint32_t)(hash >> 32);
    while (v->slot[i] >= 0 && !(v->tag[i] == tag && same(v, v->slot[i], s, n)))
        i = (i + 1) & mask;
    return i;
}

td_status tok_vocab_add(tok_vocab *v, const char *s, size_t n, int32_t id, td_error *err) {
    if (id < 0 || id > TOK_MAX_ID || n > UINT32_MAX)
        return td_error_set(err, TD_E_INTERNAL, "tok_vocab_add: id %d or length %zu out of range",
                            id, n);
    size_t old_ids = v->n_ids, need = (size_t)id + 1, cap = v->ids_cap;
    if (need > old_ids) {
        size_t len_cap = cap;
        if (!td_grow((void **)&v->offset, &cap, need, sizeof *v->offset) ||
            !td_grow((void **)&v->length, &len_cap, need, sizeof *v->length))
            return td_error_nomem(err, "the vocabulary", need * sizeof *v->offset);
        v->ids_cap = cap;
        for (size_t i = old_ids; i < need; i++)
            v->offset[i] = SIZE_MAX;
        memset(v->length + old_ids, 0, (need - old_ids) * sizeof *v->length);
        v->n_ids = need;
    }
    if (v->n_strings * 2 >= v->n_slots && !rehash(v, v->n_slots ? v->n_slots * 2 : 64))
        return td_error_nomem(err, "the vocabulary", v->n_slots * 16);
    uint64_t hash = XXH3_64bits(s, n);
    size_t i = find_slot(v, s, n, hash);
    bool known = v->slot[i] >= 0;
    if (v->offset[id] == SIZE_MAX) {
        if (!td_grow((void **)&v->blob, &v->blob_cap, v->blob_len + n + 1, 1))
            return td_error_nomem(err, "the vocabulary", v->blob_len + n);
        memcpy(v->blob + v->blob_len, s, n);
        v->offset[id] = v->blob_len;
        v->length[id] = (uint32_t)n;
        v->blob_len += n;
    } else if (!same(v, id, s, n)) {
        return td_error_set(
            err, TD_E_MODEL, "the id %d is given to two tokens, \"%.*s\" and \"%.*s\"", id,
            (int)TD_MIN(v->length[id], 60u), v->blob + v->offset[id], (int)TD_MIN(n, 60), s);
    }
    v->slot[i] = id;
    v->tag[i] = (uint32_t)(hash >> 32);
    v->n_strings += !known;
    return TD_OK;
}

int32_t tok_vocab_find(const tok_vocab *v, const char *s, size_t n) {
    return v->n_slots ? v->slot[find_slot(v, s, n, XXH3_64bits(s, n))] : -1;
}

const char *tok_vocab_text(const tok_vocab *v, int32_t id, size_t *n) {
    if (id < 0 || (size_t)id >= v->n_ids || v->offset[id] == SIZE_MAX)
        return NULL;
    *n = v->length[id];
    return v->blob + v->offset[id];
}

void tok_vocab_free(tok_vocab *v) {
    free(v->blob);
    free(v->offset);
    free(v->length);
    free(v->slot);
    free(v->tag);
    *v = (tok_vocab){0};
}
