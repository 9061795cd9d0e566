/* lock.h - the lock of a run: a mutex and its one condition, which know who holds them.
 *
 * What is "protected by the lock" is reached through functions that begin with TD_ASSERT_HELD, so
 * a caller that forgot the lock, or whose lock another thread holds, ends the process at once and
 * with the name of the function, instead of corrupting a verdict now and then.
 *
 * No other lock of the run is taken under it, and nothing is waited for but its condition.
 */
#ifndef TDGEN_RUN_LOCK_H
#define TDGEN_RUN_LOCK_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

typedef struct td_lock {
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* anything that the lock protects */
    /* An address that is the holding thread's own, NULL: nobody holds it. Written by the holder. */
    _Atomic(const void *) holder;
} td_lock;

void td_lock_init(td_lock *l);
void td_lock_destroy(td_lock *l); /* nobody may hold it or wait */

/* Asserts that the caller does not hold it yet: it would wait for itself. */
void td_lock_acquire(td_lock *l);

/* These assert that the caller holds it. A wait gives it up meanwhile, and may return for no
 * reason. */
void td_lock_release(td_lock *l);
void td_lock_wait(td_lock *l);
void td_lock_wait_ms(td_lock *l, int ms); /* at most */
void td_lock_notify(td_lock *l);          /* wakes all that wait */

/* Does the calling thread hold it? */
bool td_lock_is_held(const td_lock *l);
/* A macro, so that the message names the function that was called without the lock. */
#define TD_ASSERT_HELD(l) assert(td_lock_is_held(l))

#endif
