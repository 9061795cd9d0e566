/* group.h - a group's thread: what group.c (the usual course) and recover.c (failures) share. All
 * of it belongs to that thread. */
#ifndef TDGEN_SCHED_GROUP_H
#define TDGEN_SCHED_GROUP_H

#include "run/run_state.h"

typedef struct td_flight {
    td_claim claim;
    td_batch batch;
    td_claim_item item; /* a copy: the claim's own may be gone once it is done */
    double submitted_s;
    double predicted_s;                                  /* of the slowest stage; 0 = unknown */
    int32_t *ids, *seq_offsets, *row_token, *row_target; /* host arrays of the slot */
    int64_t *row_dataset_row, *row_position;
} td_flight;

typedef struct td_loop {
    td_group *g;
    td_flight *slots;
    int32_t n_slots, head, n_in_flight; /* head: the oldest */
    td_claimer claimer;
    double busy_told_s; /* see td_group.busy_us */
    bool failed;        /* and completed nothing since: blame.c is to hear of the next completion */
    bool gone;          /* the watch gave this thread up */
    double last_stored_s; /* when the last micro-batch was done, for the timeline */
    /* Busy seconds of the stages when the pipeline was full for the first and for the last time. */
    double full_since_s, full_until_s;
    double *busy_since, *busy_until; /* [n_stages] */
} td_loop;

/* --- group.c ---------------------------------------------------------------------------------- */

/* The next slot for a claim, which is in flight from now on. */
td_flight *td_group_begin(td_loop *l, const td_claim *claim);
/* Hands it to the devices: all of its samples, or the one that its work says. Sets l->gone when the
 * watch gave the thread up meanwhile. */
td_status td_group_submit(td_loop *l, td_flight *f, td_error *err);
/* Waits for the oldest in flight. TD_OK without *got: a device was lost meanwhile. */
td_status td_group_wait(td_loop *l, td_captured *cap, bool *got, bool *hung, td_error *err);
/* Records sample i of the micro-batch from row `row` of cap on; `seq`: its place in the batch. */
td_status td_group_record(td_loop *l, const td_flight *f, int32_t i, const td_captured *cap,
                          int32_t row, int32_t seq, td_error *err);
/* Marks the oldest in flight done; it is COMMITTING and all of it is written or skipped. */
void td_group_done(td_loop *l, td_flight *f);
/* "cpu:0, cpu:1" */
void td_group_devices(const td_group *g, char *buf, size_t size);
/* Around calls that a driver may keep: the watch gives up a thread that is inside for too long.
 * False: it did, and the thread touches nothing any more. */
int64_t td_group_enter(td_group *g);
bool td_group_leave(td_group *g, int64_t ticket);

/* --- recover.c -------------------------------------------------------------------------------- */

/* TD_PHASE_CREATE. A group whose device fails here is retired, and it is no failure of the phase
 * unless it was the last. */
td_status td_group_create(td_group *g, td_error *err);
/* How a claim is to be computed, by what happened to it. */
td_care td_group_care(td_loop *l, const td_claim *claim);
/* A device failed (why->code says how) with n_in_flight micro-batches. False: the thread is to
 * leave its loop. True: the group works again. */
bool td_group_failed(td_loop *l, bool hung, const td_error *why);
/* Computes the samples of the one work in flight one by one. The return value is that of failed. */
bool td_group_split(td_loop *l);

#endif
