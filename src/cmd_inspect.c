#include "cmd_inspect.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tdgen/log.h"
#include "tdgen/record.h"
#include "tdgen/util.h"

static const char HELP[] =
    "usage: tdgen inspect [options] DIR\n"
    "\n"
    "Shows what an output folder holds: settings, counts and sizes, how much of the probability "
    "the\n"
    "recorded candidates cover, and one sample as a table: at each position the token, the token\n"
    "that follows in the data with the teacher's probability and rank for it, and the teacher's "
    "own\n"
    "most probable next tokens. A space at the start of a token is shown as ␣, characters that a\n"
    "line cannot hold as escapes.\n"
    "\n"
    "  --sample N       the N-th sample of the folder, from 0 (default: the first with positions)\n"
    "  --positions N    rows of the table (default 24)\n"
    "  --candidates N   candidates in a row, as far as 100 columns hold them (default 5)\n"
    "  --model DIR      where tokenizer.json is, for token texts (default: where the run found "
    "it;\n"
    "                   token ids are shown when it is gone)\n"
    "\n"
    "example\n"
    "  tdgen inspect runs/demo --sample 3 --positions 60\n"
    "\n"
    "exit codes: 0 done, 1 internal error, 2 usage, 3 the tokenizer of --model cannot be used,\n"
    "6 no output folder there, 8 the folder is damaged (see tdgen verify)\n";

static bool parse_number(const char *s, long long min, long long max, long long *out) {
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (errno || end == s || *end || v < min || v > max)
        return false;
    *out = v;
    return true;
}

static int usage_error(const char *arg) {
    static const char *const options[] = {"--sample", "--positions", "--candidates", "--model",
                                          "--help"};
    const char *near = td_nearest_name(arg, options, TD_ARRAY_LEN(options));
    td_log_error("tdgen inspect: unknown option \"%s\"%s%s%s; see tdgen inspect --help", arg,
                 near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
    return TD_EXIT_CONFIG;
}

int td_cmd_inspect(int argc, char **argv) {
    td_inspect_options opt = {.sample = -1, .n_positions = 24, .n_candidates = 5};
    const char *dir = NULL;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0) {
            fputs(HELP, stdout);
            return TD_EXIT_OK;
        }
        bool number = strcmp(a, "--sample") == 0 || strcmp(a, "--positions") == 0 ||
                      strcmp(a, "--candidates") == 0;
        if (number || strcmp(a, "--model") == 0) {
            long long v = 0;
            bool sample = strcmp(a, "--sample") == 0;
            if (i + 1 == argc || (number && !parse_number(argv[i + 1], sample ? 0 : 1,
                                                          sample ? INT64_MAX : 1000000000, &v))) {
                td_log_error("tdgen inspect: %s needs %s", a,
                             !number ? "a folder" : "a whole number after it");
                return TD_EXIT_CONFIG;
            }
            i++;
            if (sample)
                opt.sample = v;
            else if (strcmp(a, "--positions") == 0)
                opt.n_positions = (int32_t)v;
            else if (number)
                opt.n_candidates = (int32_t)v;
            else
                opt.model_dir = argv[i];
        } else if (a[0] == '-' && a[1]) {
            return usage_error(a);
        } else if (dir) {
            td_log_error("tdgen inspect takes one folder, but got \"%s\" and \"%s\"", dir, a);
            return TD_EXIT_CONFIG;
        } else {
            dir = a;
        }
    }
    if (!dir) {
        td_log_error("tdgen inspect needs the output folder of a run; see tdgen inspect --help");
        return TD_EXIT_CONFIG;
    }
    td_error err = {0};
    td_status rc = td_inspect(dir, &opt, stdout, &err);
    fflush(stdout);
    if (rc != TD_OK)
        td_log_error("%s", err.text);
    return td_status_exit_code(rc);
}
