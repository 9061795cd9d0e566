/* blame.h - who is to blame when a group fails: its device, the work, or one sample of it.
 *
 * A pure state machine: no clock, no thread, no device. recover.c and watch.c tell it what happened
 * and do what it says. They reach it by td_verdict_blame, which asserts that they hold run->lock.
 *
 * A work is a micro-batch, named by its number in the queue; its tries:
 *   1st  as it was packed, with others in flight. A failure suspends the group over everything that
 *        was in flight, and each of these works is computed ALONE from then on.
 *   2nd  alone, so that a failure is that work's. If it completes, the failure was the device's: a
 *        group all of whose works completed elsewhere is OUT, for good. If it fails, the work is to
 *        blame: the groups suspended over it probe their devices and work again, and it is SPLIT.
 *   3rd  each of its samples alone. Those that fail on a group that passes its probe afterwards (or
 *        hang) are to blame; all others are recorded as usual.
 * A work that is too large for a device's memory is split at once; the group only probes.
 *
 * When no group is left that works or probes, the suspended one that failed last probes, and plays
 * the next try; but not one that failed twice in a row over different works with no word of another
 * group against any of them and nothing completed in between.
 *
 * A group that is OUT does no more work. So ends a group that hangs, that fails its probe, over
 * which nobody is left to decide, or for which two samples in a row failed alone, likewise without
 * anybody else's word and anything completed in between. With all groups OUT the run ends. What a
 * group said before it failed its probe does not count against works and samples.
 *
 * So (test/run/test_blame.c plays it out at random): a run ends; with devices that fail only over
 * bad samples no healthy sample is blamed and no group is out; a device that fails its probe never
 * gets a sample blamed; a sample fails at most 3 times on groups that were not proved broken.
 */
#ifndef TDGEN_RUN_BLAME_H
#define TDGEN_RUN_BLAME_H

#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"

typedef struct td_blame td_blame;

typedef enum td_failure { TD_FAILURE_DEVICE, TD_FAILURE_OOM, TD_FAILURE_HUNG } td_failure;

typedef enum td_standing {
    TD_GROUP_WORKS,
    TD_GROUP_SUSPENDED, /* waits for the verdict */
    TD_GROUP_PROBES,    /* is to make a new session and try it: td_blame_probed tells the outcome */
    TD_GROUP_OUT
} td_standing;

typedef enum td_care {
    TD_CARE_NONE,
    TD_CARE_ALONE, /* nothing else in flight on the group */
    TD_CARE_SPLIT  /* so, and its samples one by one */
} td_care;

td_blame *td_blame_create(uint32_t n_groups); /* all work; NULL when out of memory */
void td_blame_destroy(td_blame *b);           /* NULL allowed */

td_standing td_blame_standing(const td_blame *b, uint32_t group);
/* Of a work that never failed: NONE. */
td_care td_blame_care(const td_blame *b, uint64_t work);

/* A working group failed with works[n] in flight (n may be 0). Only TD_E_NOMEM can come of it. */
td_status td_blame_failed(td_blame *b, uint32_t group, td_failure kind, const uint64_t *works,
                          int32_t n, td_error *err);
/* Of a group whose standing is PROBES, or of one that could not even begin (ok = false). */
void td_blame_probed(td_blame *b, uint32_t group, bool ok);
/* A working group computed a work to its end. To be told at least when the work has failed before,
 * or the group has since it last completed something. */
void td_blame_completed(td_blame *b, uint32_t group, uint64_t work);

/* --- a split work --------------------------------------------------------------------------------
 * By the group that has claimed it. What is done is remembered: the next claimer goes on. */

/* Before the others; again by each claimer. */
td_status td_blame_split(td_blame *b, uint64_t work, int32_t n_samples, td_error *err);
/* The next sample to try, or -1: then td_blame_judge. */
int32_t td_blame_next_sample(const td_blame *b, uint64_t work);
void td_blame_sample_done(td_blame *b, uint32_t group, uint64_t work, int32_t sample);
/* The group's standing is PROBES or OUT then. */
void td_blame_sample_failed(td_blame *b, uint32_t group, td_failure kind, uint64_t work,
                            int32_t sample);
/* Every sample was tried. True: those for which td_blame_is_blamed says so are to blame, and the
 * work can be completed. False: the group itself is (it is OUT), the work goes back. */
bool td_blame_judge(td_blame *b, uint32_t group, uint64_t work);
/* *kind (may be NULL): how it failed when it was alone. */
bool td_blame_is_blamed(const td_blame *b, uint64_t work, int32_t sample, td_failure *kind);

#endif
