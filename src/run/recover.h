/* recover.h - what a group's thread does when its device fails. All of it belongs to that
 * thread. */
#ifndef TDGEN_RUN_RECOVER_H
#define TDGEN_RUN_RECOVER_H

#include "run/flight.h"

/* TD_PHASE_CREATE. A group whose device fails here is retired, and it is no failure of the phase
 * unless it was the last. */
td_status td_recover_create(td_group *g, td_error *err);
/* How a claim is to be computed, by what happened to it. */
td_care td_recover_care(td_loop *l, const td_claim *claim);
/* A device failed (why->code says how) with n_in_flight micro-batches. False: the thread is to
 * leave its loop. True: the group works again. */
bool td_recover_failed(td_loop *l, bool hung, const td_error *why);
/* Computes the samples of the one work in flight one by one. The return value is that of failed. */
bool td_recover_split(td_loop *l);

#endif
