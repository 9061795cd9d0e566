/* fixture.h - configurations, models and inventories for the planner's tests, without files of
 * the user's. */
#ifndef TDGEN_TEST_PLAN_FIXTURE_H
#define TDGEN_TEST_PLAN_FIXTURE_H

#include "plan/plan.h"

typedef struct pf {
    td_config cfg;
    td_model_config model;
    td_inventory inv;
    td_dataset_stats stats;
    td_plan_record_cost record;
    td_plan plan;
    td_error err;
    td_status status;
    char *text; /* what was printed last */
} pf;

/* Defaults of the configuration, a dataset of 100k rows, test/fixtures/configs/MODEL and
 * conf/inventory/INVENTORY.ini (NULL: the caller fills in inv). */
void pf_open(pf *f, const char *model, const char *inventory);
/* N CPU devices of one domain with memory_gib. */
void pf_cpus(pf *f, int32_t n, double memory_gib);
/* "0,1,3" and "0 | 1 | 2,3" */
void pf_gpus(pf *f, const char *list);
void pf_groups(pf *f, const char *groups);
/* Makes the plan into f->plan, or the error into f->err. */
td_status pf_make(pf *f);
const char *pf_assignment(pf *f);
const char *pf_details(pf *f, uint64_t free_bytes);
void pf_close(pf *f);

/* The test goes on when `want` does not stand in `got`, and has failed. */
void expect_contains(const char *got, const char *want);

/* [0, n): the numbers follow from what rng_state was set to. */
extern uint64_t rng_state;
uint32_t rnd(uint32_t n);

#endif
