/* plan_internal.h - shared by the files of this room.
 *
 * td_plan_make() works in steps over one td_planner:
 *   choose devices -> resolve compute -> for each micro-batch size, largest first:
 *   form groups -> place each -> check every memory domain -> done
 */
#ifndef TDGEN_PLAN_PLAN_INTERNAL_H
#define TDGEN_PLAN_PLAN_INTERNAL_H

#include "plan/place.h"
#include "plan/plan.h"

/* A grouping must be this much faster to be taken instead of a simpler one. */
#define TD_PLAN_BETTER (1 + 1e-6)

typedef struct td_planner {
    const td_config *cfg;
    td_compute asked_compute;
    const td_model_config *model;
    td_plan *plan; /* under construction: inventory, compute, limits, stats are set in this order */
    bool speeds_known; /* every chosen device that is not idle has a rate */
    int32_t n_items;   /* embedding, layers, norm + lm_head */
    td_work_size work; /* of the whole dataset, or of one full sample where it is not known */
    bool *idle;        /* [n_devices] chosen, but known to be in no group; owned */
    /* What did not fit, for the message: the devices of the group that failed. */
    int32_t *failed_devices; /* [n_devices] owned */
    int32_t n_failed_devices;
    td_error *err;
} td_planner;

/* --- cost.c: predicted time ------------------------------------------------------------------- */

/* Work of the whole dataset; of one sample of max_length where the statistics are empty. */
td_work_size td_plan_dataset_work(const td_dataset_stats *st, const td_cost_model *c,
                                  int32_t max_length);
td_work_size td_plan_scale_work(const td_work_size *w, double factor);
/* Items [begin, end) on a device, the copy of the hidden state to it included; with unknown speeds
 * as if it did 1 TFLOP/s and 1 TB/s. The seconds of a stage are the sum of its items' (taken as
 * stages of their own, with one copy), as the layers of one class are alike. */
td_stage_cost td_plan_stage_cost(const td_planner *pl, const td_plan_device *dev, int32_t begin,
                                 int32_t end);
/* The same on a device that n stages share. */
void td_plan_scale_cost(td_stage_cost *c, double n);
/* Seconds of a typical micro-batch for one item without the copy, > 0; and for the copy alone. */
double td_plan_item_seconds(const td_planner *pl, const td_plan_device *dev, int32_t item);
double td_plan_boundary_seconds(const td_planner *pl, const td_plan_device *dev);

/* --- memory.c: what fits ---------------------------------------------------------------------- */

/* Limits of a session for micro-batches of batch_tokens, on groups of at most `width` devices; and
 * what a typical micro-batch is then. */
void td_plan_set_limits(td_planner *pl, int32_t batch_tokens, int32_t width);
/* The largest micro-batch to try: run.batch_tokens, or less where its dense rows (modes full and
 * hidden) would fill the host's memory. */
int32_t td_plan_first_batch(const td_planner *pl);
/* The longest sample that a micro-batch must hold. */
int32_t td_plan_longest_sample(const td_planner *pl);
td_stage_memory td_plan_stage_memory(const td_planner *pl, int32_t begin, int32_t end);
uint64_t td_plan_total_bytes(const td_stage_memory *m);
/* Devices of `limit` bytes that one copy needs, packing each to the brim in turn, which is optimal
 * for equal devices; 0 when a single item is too large or there would be too many. */
int32_t td_plan_devices_needed(const td_planner *pl, uint64_t limit);
/* Fills plan->domains from the groups. *fits is false when one needs more than it has. */
td_status td_plan_count_domains(td_planner *pl, bool *fits);
/* "X does not fit, by how much, and what would" for the devices that failed. TD_E_DEVICE. */
td_status td_plan_explain_no_fit(td_planner *pl);
/* The same for a domain (index into plan->domains) that all stages together overfill. */
td_status td_plan_explain_domain(td_planner *pl, int32_t domain);

/* --- kinds.c: interchangeable devices, and the placement of one group ------------------------- */

/* Devices by kind, and what stages cost on each with the planner's present limits. */
typedef struct td_plan_kinds {
    const td_planner *pl;
    int32_t n_devices, n_kinds;
    int32_t *kind_of; /* [n_devices] */
    int32_t *first;   /* [n_kinds] a device of the kind, as an index into plan->inventory */
    double *seconds;  /* [n_kinds][n_items + 1] of a typical micro-batch, summed up to the item */
    double *boundary; /* [n_kinds] */
    uint64_t *limit;  /* [n_kinds] memory of the least of them; UINT64_MAX where it is shared */
    uint64_t *bytes;  /* [n_items + 1][n_items + 1] that a stage needs; 0 = not yet asked for */
} td_plan_kinds;

td_status td_plan_kinds_open(const td_planner *pl, const int32_t *devices, int32_t n,
                             td_plan_kinds *out);
void td_plan_kinds_close(td_plan_kinds *k);
/* Borrows k. */
td_place_problem td_plan_kinds_problem(const td_plan_kinds *k);
/* The whole model on one device of the kind, whether it fits or not. */
double td_plan_kind_seconds(const td_plan_kinds *k, int32_t kind);
/* The best placement on these devices (indices into plan->inventory); out->stages has room for n.
 * ideal: cost of an even split over all of them. bottleneck = HUGE_VAL: does not fit. */
td_status td_plan_place_group(const td_planner *pl, const int32_t *devices, int32_t n,
                              td_placement *out, double *ideal);

/* --- auto.c: the groups with the highest predicted rate --------------------------------------- */

/* Of a group's predicted rate, what each further stage and kind of device is assumed to cost, so
 * that a more complicated grouping is only taken where it gains more than predictions can tell. */
#define TD_PLAN_STAGE_HANDICAP 0.005
#define TD_PLAN_KIND_HANDICAP 0.01
double td_plan_group_score(double tokens_per_s, int32_t width, int32_t n_kinds);

typedef struct td_plan_grouping {
    double tokens_per_s; /* 0: nothing fits */
    double score;        /* sum of td_plan_group_score */
    int32_t width;       /* limits are to be set for groups of this width */
    int32_t n_groups;
    int32_t *group_of; /* [n devices given] number of the group, -1 = left over; owned */
} td_plan_grouping;

/* The way with the highest score to make groups of the devices (indices into plan->inventory) with
 * the micro-batch size of the plan. Speeds are known. Changes plan->limits. */
td_status td_plan_best_grouping(td_planner *pl, const int32_t *devices, int32_t n,
                                td_plan_grouping *out);
/* Fills plan->alternatives once the groups are settled; plan->limits stay as they are. */
td_status td_plan_list_alternatives(td_planner *pl);

/* --- groups.c: who works together ------------------------------------------------------------- */

/* plan->inventory := the devices that the configuration chooses, in the order given. */
td_status td_plan_choose_devices(td_planner *pl, const td_inventory *inv);
/* plan.c: has the device (by its position in plan->inventory) a rate in the plan's compute mode? */
bool td_plan_speed_known(const td_planner *pl, int32_t device);
/* The chosen devices that are not idle, into out [n_devices]; their number. */
int32_t td_plan_active_devices(const td_planner *pl, int32_t *out);
/* Does the device share its memory with another device of the inventory? */
bool td_plan_shares_memory(const td_inventory *inv, const td_plan_device *dev);
/* Makes plan->groups and plan->leftover, every group placed. *fits = false (and failed_devices)
 * when a copy of the model does not fit with the current limits. */
td_status td_plan_form_groups(td_planner *pl, bool *fits);
void td_plan_drop_groups(td_plan *plan);
/* "0,1,2,3" of some devices; cut with "..." where buf ends. */
char *td_plan_labels(const td_plan *plan, const int32_t *devices, int32_t n, char *buf,
                     size_t buf_size);

/* --- plan.c ----------------------------------------------------------------------------------- */

/* One more sentence for the user; false when out of memory. */
bool td_plan_warn(td_plan *plan, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
