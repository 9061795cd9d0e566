/* flight.h - the micro-batches that a group has in flight: a ring of slots, submitted and waited
 * for in order. All of it belongs to the group's thread, which is asserted.
 *
 * Steps: td_flight_begin with a claim, td_flight_submit, td_flight_wait for the oldest, and
 * td_flight_store; or td_flight_record for each sample and then td_flight_done, for a work that is
 * computed sample by sample. group.c is the usual course, recover.c what is done after a failure.
 */
#ifndef TDGEN_RUN_FLIGHT_H
#define TDGEN_RUN_FLIGHT_H

#include "run/state.h"

typedef struct td_flight {
    td_claim claim;
    td_batch_builder b; /* the slot's host arrays, and what is laid out in them */
    td_claim_item item; /* a copy: the claim's own may be gone once it is done */
    double submitted_s;
    double predicted_s; /* of the slowest stage; 0 = unknown */
} td_flight;

typedef struct td_loop {
    td_group *g;
    td_flight *slots;
    int32_t n_slots, head, n_in_flight; /* head: the oldest */
    td_claimer claimer;
    double busy_told_s; /* see td_group_counters.busy_us */
    bool failed;        /* and completed nothing since: blame.c is to hear of the next completion */
    bool gone;          /* the watch gave this thread up */
    double last_stored_s; /* when the last micro-batch was done, for the timeline */
    /* Busy seconds of the stages when the pipeline was full for the first and for the last time. */
    double full_since_s, full_until_s;
    double *busy_since, *busy_until; /* [n_stages] */
} td_loop;

/* The slots of the session, and the host arrays of each. TD_E_NOMEM; free in either case. */
td_status td_flight_make_slots(td_loop *l, td_error *err);
void td_flight_free_slots(td_loop *l); /* {0} allowed */
/* The next slot for a claim, which is in flight from now on. */
td_flight *td_flight_begin(td_loop *l, const td_claim *claim);
/* Hands it to the devices: all of its samples, or the one that its work says. Sets l->gone when the
 * watch gave the thread up meanwhile. */
td_status td_flight_submit(td_loop *l, td_flight *f, td_error *err);
/* Waits for the oldest in flight. TD_OK without *got: a device was lost meanwhile. */
td_status td_flight_wait(td_loop *l, td_captured *cap, bool *got, bool *hung, td_error *err);
/* Writes the rows of the oldest, which came out, and marks it done; nothing when it is no longer
 * the group's to answer for. */
td_status td_flight_store(td_loop *l, td_flight *f, const td_captured *cap, td_error *err);
/* Records sample i of the micro-batch from row `row` of cap on; `seq`: its place in the batch. */
td_status td_flight_record(td_loop *l, const td_flight *f, int32_t i, const td_captured *cap,
                           int32_t row, int32_t seq, td_error *err);
/* Marks the oldest in flight done; it is COMMITTING and all of it is written or skipped. */
void td_flight_done(td_loop *l, td_flight *f);

/* "cpu:0, cpu:1" */
void td_group_devices(const td_group *g, char *buf, size_t size);
/* Around calls that a driver may keep: the watch gives up a thread that is inside for too long.
 * False: it did, and the thread touches nothing any more. */
int64_t td_group_enter(td_group *g);
bool td_group_leave(td_group *g, int64_t ticket);

#endif
