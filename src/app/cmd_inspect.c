/* cmd_inspect.c - tdgen inspect: arguments to one of its three forms. */
#include "app/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "report/report.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"

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
    "  --json           one JSON document for programs instead; all positions unless --positions\n"
    "  --html FILE      a page to look at in a browser: samples with a colour for each token's\n"
    "                   probability and entropy, histogram of the mass covered, devices over "
    "time;\n"
    "                   one file, without scripts, needs no network\n"
    "  --samples N      samples of the page, spread over the folder (default 8)\n"
    "\n"
    "examples\n"
    "  tdgen inspect runs/demo --sample 3 --positions 60\n"
    "  tdgen inspect runs/demo --html demo.html\n"
    "\n"
    "exit codes: 0 done, 1 internal error, 2 usage, 3 the tokenizer of --model cannot be used,\n"
    "6 no output folder there, 8 the folder is damaged (see tdgen verify)\n";

static int usage_error(const char *arg) {
    static const char *const options[] = {"--sample", "--positions", "--candidates", "--model",
                                          "--json",   "--html",      "--samples",    "--help"};
    const char *near = td_nearest_name(arg, options, TD_ARRAY_LEN(options));
    td_log_error("tdgen inspect: unknown option \"%s\"%s%s%s; see tdgen inspect --help", arg,
                 near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
    return TD_EXIT_CONFIG;
}

/* The page is there whole or not at all. */
static td_status write_html(const char *dir, const td_inspect_options *opt, const char *path,
                            td_error *err) {
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        return td_error_nomem(err, "the page", 0);
    td_status rc = td_inspect_html(dir, opt, out, err);
    if (fclose(out) != 0 && rc == TD_OK)
        rc = td_error_nomem(err, "the page", n);
    if (rc == TD_OK)
        rc = td_file_write_atomic(path, text, n, false, err);
    if (rc == TD_OK)
        printf("%s: %.1f kB, open it in a browser\n", path, 1e-3 * (double)n);
    free(text);
    return rc;
}

int td_cmd_inspect(int argc, char **argv) {
    td_inspect_options opt = {.sample = -1, .n_candidates = 5};
    const char *dir = NULL, *html = NULL;
    bool json = false;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0) {
            fputs(HELP, stdout);
            return TD_EXIT_OK;
        }
        bool number = strcmp(a, "--sample") == 0 || strcmp(a, "--positions") == 0 ||
                      strcmp(a, "--candidates") == 0 || strcmp(a, "--samples") == 0;
        bool page = strcmp(a, "--html") == 0;
        if (strcmp(a, "--json") == 0) {
            json = true;
        } else if (number || page || strcmp(a, "--model") == 0) {
            long long v = 0;
            bool sample = strcmp(a, "--sample") == 0;
            if (i + 1 == argc || (number && !td_parse_int(argv[i + 1], sample ? 0 : 1,
                                                          sample ? INT64_MAX : 1000000000, &v))) {
                td_log_error("tdgen inspect: %s needs %s", a,
                             page      ? "the name of the file to write"
                             : !number ? "a folder"
                                       : "a whole number after it");
                return TD_EXIT_CONFIG;
            }
            i++;
            if (sample)
                opt.sample = v;
            else if (strcmp(a, "--samples") == 0)
                opt.n_samples = (int32_t)v;
            else if (page)
                html = argv[i];
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
    if (json && html) {
        td_log_error("tdgen inspect: --json and --html are two forms, choose one");
        return TD_EXIT_CONFIG;
    }
    td_error err = {0};
    td_status rc = html   ? write_html(dir, &opt, html, &err)
                   : json ? td_inspect_json(dir, &opt, stdout, &err)
                          : td_inspect(dir, &opt, stdout, &err);
    fflush(stdout);
    if (rc != TD_OK)
        td_log_error("%s", err.text);
    return td_status_exit_code(rc);
}
