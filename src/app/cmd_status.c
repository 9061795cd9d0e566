/* cmd_status.c - tdgen status: one look at a run, or a look every two seconds. */
#include "app/commands.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/format.h"
#include "base/log.h"
#include "base/memory.h"
#include "report/report.h"
#include "run/run.h"

static const char HELP[] =
    "usage: tdgen status [--json | --watch] DIR\n"
    "\n"
    "Where a run is, from any machine that sees its output folder: state, progress, speed, and\n"
    "whether anybody is still at it. A process that was killed cannot say so itself: on the same\n"
    "host it is looked for, elsewhere its last heartbeat (one every 10 s) tells.\n"
    "\n"
    "  --json     one JSON document: status.json as \"status\", beside it what became of it\n"
    "  --watch    again every two seconds, until the run is not at work any more\n"
    "\n"
    "exit codes: 0 at work or complete, 2 usage, 6 no output folder there, 8 its manifest is "
    "damaged,\n"
    "10 nobody is at work and the folder is not complete\n";

static int usage_error(const char *arg) {
    static const char *const options[] = {"--json", "--watch", "--help"};
    const char *near = td_nearest_name(arg, options, TD_ARRAY_LEN(options));
    td_log_error("tdgen status: unknown option \"%s\"%s%s%s; see tdgen status --help", arg,
                 near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
    return TD_EXIT_CONFIG;
}

int td_cmd_status(int argc, char **argv) {
    const char *dir = NULL;
    bool json = false, watch = false;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0) {
            fputs(HELP, stdout);
            return TD_EXIT_OK;
        }
        if (strcmp(a, "--json") == 0)
            json = true;
        else if (strcmp(a, "--watch") == 0)
            watch = true;
        else if (a[0] == '-' && a[1])
            return usage_error(a);
        else if (dir) {
            td_log_error("tdgen status takes one folder, but got \"%s\" and \"%s\"", dir, a);
            return TD_EXIT_CONFIG;
        } else
            dir = a;
    }
    if (!dir || (json && watch)) {
        td_log_error(
            dir ? "tdgen status: --json and --watch do not go together"
                : "tdgen status needs the output folder of a run; see tdgen status --help");
        return TD_EXIT_CONFIG;
    }
    td_error err = {0};
    td_run_state_seen seen;
    bool complete;
    td_status rc;
    for (;;) {
        if (watch && isatty(STDOUT_FILENO))
            fputs("\033[H\033[2J", stdout); /* the screen, from its top */
        rc = td_status_report(dir, json, stdout, &seen, &complete, &err);
        fflush(stdout);
        if (rc != TD_OK || !watch || seen != TD_SEEN_WORKING || ferror(stdout))
            break;
        nanosleep(&(struct timespec){.tv_sec = 2}, NULL);
    }
    if (rc != TD_OK) {
        td_log_error("%s", err.text);
        return td_status_exit_code(rc);
    }
    return complete || seen == TD_SEEN_WORKING ? TD_EXIT_OK : TD_EXIT_UNFINISHED;
}
