/* verdict.h - what is decided about a run and its groups: the phase, failures, who was retired, who
 * has ended, and who is to blame (blame.h).
 *
 * All of it is protected by the run's lock. The struct is verdict.c's, and every function asserts
 * that the caller holds the lock, except where "without the lock" is written. Whoever changes what
 * others may wait for calls td_lock_notify before it releases the lock.
 *
 * Order of use: create; phases CREATE and DESTROY until every group has a session; RUN, in which
 * groups, feeder and writer end one by one; QUIT; destroy.
 */
#ifndef TDGEN_RUN_VERDICT_H
#define TDGEN_RUN_VERDICT_H

#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"
#include "run/blame.h"
#include "run/lock.h"

typedef struct td_verdict td_verdict;

/* What the groups' threads are to do. */
typedef enum td_phase { TD_PHASE_CREATE, TD_PHASE_DESTROY, TD_PHASE_RUN, TD_PHASE_QUIT } td_phase;

enum { TD_VERDICT_STAGES = 64 }; /* of a group, that have a steady share */

/* Of one group, final once it is set. */
typedef struct td_group_verdict {
    bool ended, retired;
    bool hung;                              /* the session must not be touched any more */
    bool stuck;                             /* hung, and so does the thread: it cannot be joined */
    double finished_s;                      /* after the start of the run */
    double steady_share[TD_VERDICT_STAGES]; /* see td_group_summary.stage_steady */
    char retired_why[256];
} td_group_verdict;

/* Without the lock. NULL when out of memory. The lock outlives the verdict. */
td_verdict *td_verdict_create(td_lock *lock, int32_t n_groups);
void td_verdict_destroy(td_verdict *v); /* without the lock, no other thread left; NULL allowed */

/* Claim nothing more: after a failure, a loss or a signal. Without the lock, a hint: what it
 * protects is ordered by the lock or the queue; who waits for the condition sees it there. */
bool td_verdict_stopping(const td_verdict *v);
/* A device was lost: leave at once, keep nothing. Without the lock: a group that was last asked
 * before the loss shows what it had in flight then. Never true without stopping for long: both are
 * set under one hold of the lock, the loss first. */
bool td_verdict_is_lost(const td_verdict *v);

/* --- failure ---------------------------------------------------------------------------------- */

void td_verdict_stop(td_verdict *v);
/* Stops, too. The first failure is the run's. */
void td_verdict_fail(td_verdict *v, const td_error *err);
/* The first failure, or NULL. */
const td_error *td_verdict_failure(const td_verdict *v);

/* TD_E_DEVICE_LOST was met, by `group` or (-1) on behalf of none; replaces what was said before. */
void td_verdict_lose(td_verdict *v, int32_t group, const td_error *err);
/* Who met it, -1: none; *err (may be NULL) what it said. Only after td_verdict_is_lost. */
int32_t td_verdict_lost_group(const td_verdict *v, td_error *err);

/* Marks the group retired, with its reason. True when no other is left. Once for each group. */
bool td_verdict_retire(td_verdict *v, uint32_t group, bool hung, const td_error *why);

/* Who is to blame; every call of blame.h is made under the lock. */
td_blame *td_verdict_blame(td_verdict *v);

/* --- phases ----------------------------------------------------------------------------------- */

/* Main thread, when the groups have acknowledged the phase before. */
void td_verdict_announce(td_verdict *v, td_phase phase);
/* Waits until n groups have acknowledged the phase; the first failure in it, or NULL. */
const td_error *td_verdict_await(td_verdict *v, int32_t n);
/* A group's thread: waits for the phase after *serial (0 at first). */
td_phase td_verdict_next_phase(td_verdict *v, int32_t *serial);
/* A group's thread has done what the phase asks; err: it could not, NULL: it could. */
void td_verdict_acknowledge(td_verdict *v, const td_error *err);

/* --- who has ended ---------------------------------------------------------------------------- */

const td_group_verdict *td_verdict_group(const td_verdict *v, uint32_t group);
/* steady_share: [n], NULL: not known (0). Again by a thread that comes back after it was given up:
 * its group counts once. */
void td_verdict_group_ended(td_verdict *v, uint32_t group, double finished_s,
                            const double *steady_share, int32_t n);
/* Its thread was given up: it has ended as far as anybody waits for it. */
void td_verdict_group_stuck(td_verdict *v, uint32_t group, double finished_s);
void td_verdict_feeder_ended(td_verdict *v);
void td_verdict_writer_ended(td_verdict *v);
bool td_verdict_feeder_has_ended(const td_verdict *v);
bool td_verdict_groups_have_ended(const td_verdict *v);
bool td_verdict_all_ended(const td_verdict *v); /* groups, feeder and writer */
int32_t td_verdict_n_retired(const td_verdict *v);
int32_t td_verdict_n_hung(const td_verdict *v); /* they are retired, too */

#endif
