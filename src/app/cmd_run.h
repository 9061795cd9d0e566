/* cmd_run.h - the main job: plan, and run or print the plan. */
#ifndef TDGEN_CMD_RUN_H
#define TDGEN_CMD_RUN_H

#include <stdbool.h>
#include <stddef.h>

typedef struct td_cmd_run_options {
    const char *config_path;
    const char *const *overrides; /* "section.key=value" */
    size_t n_overrides;
    char *const *argv; /* of the process, for its re-execution without a lost device */
    bool dry_run;
    bool simulate;        /* dry_run is set, too */
    const char *timeline; /* with simulate: SVG file to write, or NULL */
    bool quiet;
} td_cmd_run_options;

/* Returns the exit code of the process; errors are on stderr. */
int td_cmd_run(const td_cmd_run_options *opt);

#endif
