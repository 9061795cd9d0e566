#include "cmd_verify.h"

#include <stdio.h>
#include <string.h>
#include "tdgen/log.h"
#include "tdgen/record.h"
#include "tdgen/util.h"

static const char HELP[] =
    "usage: tdgen verify [--verbose] DIR\n"
    "\n"
    "Reads every byte of an output folder again and checks it:\n"
    "  manifest.json   against its own hash\n"
    "  shards.jsonl    each line against its shard\n"
    "  each shard      header, data and every tensor against their hashes; then what they mean:\n"
    "                  offsets, token ids, masks, order and sum of the probabilities, the "
    "target's\n"
    "                  rank, and that it belongs to the run of the manifest\n"
    "\n"
    "Prints a line for each problem, naming file and tensor, and a summary. Nothing is changed: "
    "to\n"
    "have damaged shards computed again, run the command of the run again. May be used while a "
    "run\n"
    "is writing; what is in place is final.\n"
    "\n"
    "  --verbose   a line for each good shard, too\n"
    "\n"
    "exit codes: 0 all is well, 1 internal error, 2 usage, 6 no output folder there, 8 something\n"
    "is wrong with what is on disk\n";

int td_cmd_verify(int argc, char **argv) {
    static const char *const options[] = {"--verbose", "--help"};
    const char *dir = NULL;
    bool verbose = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(HELP, stdout);
            return TD_EXIT_OK;
        }
        if (strcmp(argv[i], "--verbose") == 0) {
            verbose = true;
        } else if (argv[i][0] == '-' && argv[i][1]) {
            const char *near = td_nearest_name(argv[i], options, TD_ARRAY_LEN(options));
            td_log_error("tdgen verify: unknown option \"%s\"%s%s%s; see tdgen verify --help",
                         argv[i], near ? ", did you mean \"" : "", near ? near : "",
                         near ? "\"" : "");
            return TD_EXIT_CONFIG;
        } else if (dir) {
            td_log_error("tdgen verify takes one folder, but got \"%s\" and \"%s\"", dir, argv[i]);
            return TD_EXIT_CONFIG;
        } else {
            dir = argv[i];
        }
    }
    if (!dir) {
        td_log_error("tdgen verify needs the output folder of a run; see tdgen verify --help");
        return TD_EXIT_CONFIG;
    }
    td_error err = {0};
    td_status rc = td_verify(dir, stdout, verbose, &err);
    fflush(stdout);
    if (rc != TD_OK)
        td_log_error("%s", err.text);
    return td_status_exit_code(rc);
}
