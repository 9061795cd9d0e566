/* restart.h - the process's side of lost devices: what one execution hands to the next.
 *
 *   execution 1                              execution 2, the same process
 *   td_run: TD_E_DEVICE_LOST
 *   td_recover_after_loss:
 *     OUT/faults.json, durable
 *     lock stays open, number in TDGEN_REEXEC
 *     execv of the same program and arguments -> td_recover_begin: reads and checks both
 *                                               td_recover_mark_lost before planning
 *                                               td_output_open_locked with the lock
 *
 * TDGEN_REEXEC is "LOCK_FD,NUMBER": descriptor of the lock (-1: none) and which re-execution this
 * is. It is believed only together with a faults.json that this very process wrote; the lock only
 * if it is the folder's.
 */
#ifndef TDGEN_APP_RESTART_H
#define TDGEN_APP_RESTART_H

#include "device/device.h"
#include "plan/plan.h"
#include "record/record.h"
#include "run/run.h"

typedef struct td_recovery {
    td_faults faults;
    bool reexecuted; /* this is not the execution that the user started */
    int lock_fd;     /* inherited, or -1 */
    int *inherited;  /* descriptors that were open before the program opened any; owned */
} td_recovery;

/* Reads what an earlier execution left in `dir`. Never fails: what cannot be used is warned of. */
void td_recover_begin(const char *dir, td_recovery *out);
/* Before td_recover_begin: does an earlier execution of this process say that it was replaced? */
bool td_recover_is_reexecution(void);
void td_recover_end(td_recovery *r);

/* Numbers the machine's devices as the first execution saw them, and marks the lost ones. info [n]
 * and *inv are of this execution, in the same order; number[i] becomes the plan's number of
 * info[i], or -1. In the first execution it notes the numbering. */
td_status td_recover_mark_lost(td_recovery *r, const td_device_info *info, int32_t n,
                               td_inventory *inv, int32_t *number, td_error *err);

typedef struct td_loss {
    const td_fault *fault;
    const td_plan *plan;
    const td_config *cfg;
    const td_output *output;
    char *const *argv;
} td_loss;

/* Notes the failure and replaces the process. Returns only if that is not to be, or cannot be: the
 * exit code, with *err saying why. */
int td_recover_after_loss(td_recovery *r, const td_loss *loss, td_error *err);

#endif
