/* open_shards.c - see open_shards.h. */
#include "run/open_shards.h"

#include <stdlib.h>
#include "base/memory.h"

typedef struct place {
    td_open_shard o;    /* first: what the others have of it */
    struct place *next; /* in the list of complete shards, protected by the lock */
    bool in_use;        /* protected by the lock */
} place;

struct td_open_shards {
    td_lock *lock;
    place *places; /* [max] */
    int32_t max;
    /* Protected by the lock. */
    int32_t n_open;
    place *head, *tail; /* complete shards, in the order of their completion */
};

td_open_shards *td_open_shards_create(td_lock *lock, int32_t max) {
    td_open_shards *s = td_calloc(1, sizeof *s);
    place *places = td_calloc((size_t)max, sizeof *places);
    if (!s || !places) {
        free(s);
        free(places);
        return NULL;
    }
    s->lock = lock;
    s->places = places;
    s->max = max;
    return s;
}

void td_open_shards_destroy(td_open_shards *s) {
    if (!s)
        return;
    free(s->places);
    free(s);
}

bool td_open_shards_full(const td_open_shards *s) {
    TD_ASSERT_HELD(s->lock);
    return s->n_open == s->max;
}

bool td_open_shards_empty(const td_open_shards *s) {
    TD_ASSERT_HELD(s->lock);
    return s->n_open == 0;
}

td_open_shard *td_open_shards_take(td_open_shards *s) {
    TD_ASSERT_HELD(s->lock);
    assert(s->n_open < s->max);
    place *p = s->places;
    while (p->in_use)
        p++;
    p->in_use = true;
    s->n_open++;
    return &p->o;
}

td_open_shard *td_open_shards_pop(td_open_shards *s) {
    TD_ASSERT_HELD(s->lock);
    place *p = s->head;
    if (!p)
        return NULL;
    s->head = p->next;
    if (!s->head)
        s->tail = NULL;
    return &p->o;
}

static place *place_of(td_open_shard *o) {
    return (place *)o;
}

void td_open_shards_complete(td_open_shards *s, td_open_shard *o) {
    place *p = place_of(o);
    td_lock_acquire(s->lock);
    p->next = NULL;
    if (s->tail)
        s->tail->next = p;
    else
        s->head = p;
    s->tail = p;
    td_lock_notify(s->lock);
    td_lock_release(s->lock);
}

void td_open_shards_release(td_open_shards *s, td_open_shard *o) {
    td_shard_free(o->shard);
    free(o->work);
    td_lock_acquire(s->lock);
    o->shard = NULL;
    o->work = NULL;
    o->writer = NULL;
    place_of(o)->in_use = false;
    s->n_open--;
    td_lock_notify(s->lock);
    td_lock_release(s->lock);
}

void td_open_shards_drop(td_open_shards *s) {
    for (int32_t i = 0; i < s->max; i++) {
        td_lock_acquire(s->lock);
        bool in_use = s->places[i].in_use;
        td_lock_release(s->lock);
        if (!in_use)
            continue;
        td_shard_writer_abort(s->places[i].o.writer);
        td_open_shards_release(s, &s->places[i].o);
    }
}
