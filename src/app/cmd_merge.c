/* cmd_merge.c - tdgen merge: arguments to td_merge. */
#include "app/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "report/report.h"
#include "base/format.h"
#include "base/memory.h"

static const char HELP[] =
    "usage: tdgen merge [--copy] [--assume-complete] OUT DIR DIR...\n"
    "\n"
    "Makes one folder of those that several workers wrote (run.worker_id, run.total_workers): the\n"
    "same bytes that one worker alone would have written. OUT is a new folder.\n"
    "\n"
    "First every byte of every DIR is verified, then their manifests are compared (teacher,\n"
    "tokenizer, dataset, settings) and their shards counted: folders of different runs, a damaged\n"
    "or unfinished folder, a gap and an overlap are refused, and nothing is written. The DIRs are\n"
    "only read. Shards become hard links, or copies where OUT is on another file system.\n"
    "\n"
    "Interrupted, even by kill -9 or a full disk: run the same command again, it completes OUT.\n"
    "Until then OUT has a merge.json, and nothing else accepts the folder.\n"
    "\n"
    "  --copy              copies instead of hard links\n"
    "  --assume-complete   where no DIR has a status.json, which says how many shards there are: the\n"
    "                      last one there is the last one\n"
    "\n"
    "example\n"
    "  tdgen merge runs/all runs/worker-0 runs/worker-1\n"
    "\n"
    "exit codes: 0 done, 1 internal error, 2 usage, 6 a folder is missing, in use, unfinished or "
    "not\nof the same run, 8 a folder is damaged\n";

int td_cmd_merge(int argc, char **argv) {
    static const char *const options[] = {"--copy", "--assume-complete", "--help"};
    td_merge_options opt = {0};
    int32_t n = 0;
    const char **dirs = td_calloc((size_t)argc, sizeof *dirs);
    if (!dirs) {
        td_log_error("out of memory");
        return TD_EXIT_INTERNAL;
    }
    int code = TD_EXIT_CONFIG;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(HELP, stdout);
            code = TD_EXIT_OK;
            goto done;
        }
        if (strcmp(argv[i], "--copy") == 0) {
            opt.copy = true;
        } else if (strcmp(argv[i], "--assume-complete") == 0) {
            opt.assume_complete = true;
        } else if (argv[i][0] == '-' && argv[i][1]) {
            const char *near = td_nearest_name(argv[i], options, TD_ARRAY_LEN(options));
            td_log_error("tdgen merge: unknown option \"%s\"%s%s%s; see tdgen merge --help",
                         argv[i], near ? ", did you mean \"" : "", near ? near : "",
                         near ? "\"" : "");
            goto done;
        } else {
            dirs[n++] = argv[i];
        }
    }
    if (n < 2) {
        td_log_error("tdgen merge needs a new folder and the folders to merge into it; see tdgen "
                     "merge --help");
        goto done;
    }
    td_error err = {0};
    td_status rc = td_merge(dirs[0], dirs + 1, n - 1, &opt, stdout, &err);
    fflush(stdout);
    if (rc != TD_OK)
        td_log_error("%s", err.text);
    code = td_status_exit_code(rc);
done:
    free(dirs);
    return code;
}
