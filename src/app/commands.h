/* commands.h - the commands of the program, for the table in app.c. argv[0] is the command's name. */
#ifndef TDGEN_APP_COMMANDS_H
#define TDGEN_APP_COMMANDS_H

#include <stdbool.h>
#include <stddef.h>

int td_cmd_devices(int argc, char **argv);
int td_cmd_inspect(int argc, char **argv);
/* Commands of the Python package; on success they do not return. */
int td_cmd_prepare(int argc, char **argv);
int td_cmd_export(int argc, char **argv);
int td_cmd_logits(int argc, char **argv);
int td_cmd_plot(int argc, char **argv);
int td_cmd_merge(int argc, char **argv);
/* Reads lines from stdin, writes JSON rows {"text":..., "ids":[...]} to stdout. */
int td_cmd_tokenize(int argc, char **argv);
int td_cmd_status(int argc, char **argv);
int td_cmd_verify(int argc, char **argv);

/* What the command without a name is asked for: a run, its plan, or its simulation. */
typedef struct td_run_options {
    const char *config_path;
    const char *const *overrides; /* "section.key=value" */
    size_t n_overrides;
    char *const *argv;    /* of the process, for its re-execution without a lost device */
    const char *timeline; /* of a simulation: SVG file to write, or NULL */
    bool quiet, restart;
} td_run_options;
int td_cmd_run(const td_run_options *opt);
int td_cmd_dry_run(const td_run_options *opt);
int td_cmd_simulate(const td_run_options *opt);

#endif
