/* place.h - cuts a row of items into consecutive stages on the devices of one group. */
#ifndef TDGEN_PLAN_PLACE_H
#define TDGEN_PLAN_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

typedef struct td_place_problem {
    int32_t n_items;
    int32_t n_devices;
    const int32_t *kind_of; /* [n_devices], 0 .. n_kinds-1; equal kinds are interchangeable */
    int32_t n_kinds;
    /* Cost (> 0) of the items [begin, end) as one stage on a device of this kind; HUGE_VAL where
     * they do not fit. It must not fall as end grows. */
    double (*cost)(const void *user, int32_t kind, int32_t begin, int32_t end);
    const void *user;
} td_place_problem;

typedef struct td_place_stage {
    int32_t device; /* index into kind_of */
    int32_t begin, end;
} td_place_stage;

typedef struct td_placement {
    td_place_stage *stages; /* caller's array of n_devices */
    int32_t n_stages;
    double bottleneck; /* cost of the slowest stage; HUGE_VAL: nothing fits, n_stages is 0 */
    bool exact;        /* false: too many kinds, only the given order of the devices was tried */
} td_placement;

/* Minimises the slowest stage; among those solutions the sum of squared stage costs (an even split,
 * on as many devices as help); among those the given order of devices. Items are covered in order,
 * each device holds at most one stage and may stay empty. */
td_status td_place(const td_place_problem *p, td_placement *out, td_error *err);

/* The bottleneck of every set of at most `width` devices. A set is a vector of counts n[k], and its
 * number the sum of n[k] * stride[k]; n[k] <= count[k], the devices of the kind or `width`. */
typedef struct td_placement_sets {
    double *bottleneck; /* [n_states] HUGE_VAL: does not fit, or has more than `width` devices */
    size_t *stride;     /* [n_kinds] */
    int32_t *count;     /* [n_kinds] */
    size_t n_states;    /* 0: too many to look at, nothing is filled in */
} td_placement_sets;

enum { TD_PLACE_MAX_STATES = 4096 };

td_status td_place_sets(const td_place_problem *p, int32_t width, td_placement_sets *out,
                        td_error *err);
void td_placement_sets_free(td_placement_sets *s);

#endif
