/* lock.c - see lock.h. */
#include "run/lock.h"

#include <time.h>

/* Its address tells a thread from all others that live. */
static _Thread_local char self;

/* relaxed, here and below: a thread asks only whether it is the holder itself, and the answer turns
 * to yes and to no by that thread's own stores. What the lock protects is ordered by the mutex. */
static void set_holder(td_lock *l, const void *holder) {
    atomic_store_explicit(&l->holder, holder, memory_order_relaxed);
}

bool td_lock_is_held(const td_lock *l) {
    return atomic_load_explicit(&((td_lock *)l)->holder, memory_order_relaxed) == &self;
}

void td_lock_init(td_lock *l) {
    pthread_mutex_init(&l->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC); /* a clock that is set delays nothing */
    pthread_cond_init(&l->changed, &attr);
    pthread_condattr_destroy(&attr);
    atomic_init(&l->holder, NULL);
}

void td_lock_destroy(td_lock *l) {
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->mutex);
}

void td_lock_acquire(td_lock *l) {
    assert(!td_lock_is_held(l));
    pthread_mutex_lock(&l->mutex);
    set_holder(l, &self);
}

void td_lock_release(td_lock *l) {
    TD_ASSERT_HELD(l);
    set_holder(l, NULL);
    pthread_mutex_unlock(&l->mutex);
}

void td_lock_wait(td_lock *l) {
    TD_ASSERT_HELD(l);
    set_holder(l, NULL);
    pthread_cond_wait(&l->changed, &l->mutex);
    set_holder(l, &self);
}

void td_lock_wait_ms(td_lock *l, int ms) {
    TD_ASSERT_HELD(l);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    set_holder(l, NULL);
    pthread_cond_timedwait(&l->changed, &l->mutex, &until);
    set_holder(l, &self);
}

void td_lock_notify(td_lock *l) {
    TD_ASSERT_HELD(l);
    pthread_cond_broadcast(&l->changed);
}
