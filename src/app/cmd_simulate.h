/* cmd_simulate.h - tdgen --simulate -c run.ini: the planned run in virtual time. */
#ifndef TDGEN_CMD_SIMULATE_H
#define TDGEN_CMD_SIMULATE_H

#include "config/config.h"
#include "data/data.h"
#include "plan/plan.h"

typedef struct td_cmd_simulate_job {
    td_config *cfg; /* run.batch_tokens is set to the plan's */
    const td_plan *plan;
    const td_tokenizer *tok; /* NULL: none needed, or none there */
    const td_source_limits *limits;
    const char *timeline; /* SVG file, or NULL */
} td_cmd_simulate_job;

/* Prints on stdout; errors are the caller's to show. */
td_status td_cmd_simulate(const td_cmd_simulate_job *job, td_error *err);

#endif
