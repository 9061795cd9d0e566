/* cmd_verify.c - tdgen verify: every byte, and with --against samples computed again. */
#include "app/commands.h"
#include "app/against.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "report/report.h"
#include "base/format.h"
#include "base/memory.h"

static const char HELP[] =
    "usage: tdgen verify [--verbose] [--partial] DIR\n"
    "       tdgen verify DIR --against MODEL_DIR [--samples N] [--seed S] [--devices "
    "auto|cpu|0,1]\n"
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
    "With --against, then, samples drawn at random are computed again by the teacher in MODEL_DIR\n"
    "and compared with what is on disk, beside a control: each sample computed twice, among other\n"
    "samples. On the device kind that recorded them (sample_device) every bit must be the same; "
    "on\n"
    "another kind the largest differences are shown and held against a tolerance. Another teacher\n"
    "or tokenizer than that of the manifest is an error that shows both sides.\n"
    "\n"
    "  --verbose    a line for each good shard, too\n"
    "  --partial    a folder that does not hold all that its run is for is good as far as it goes\n"
    "  --against M  the teacher's folder\n"
    "  --samples N  how many samples (default 16)\n"
    "  --seed S     draws other samples (default 0)\n"
    "  --devices D  where to compute, as [devices] gpus says it: auto (GPUs, or else the CPU),\n"
    "               cpu, cpu*N, or GPUs (0,1 or GPU-8f2e)\n"
    "\n"
    "exit codes: 0 all is well, 1 internal error, 2 usage, 3 not that teacher, 5 device, 6 no "
    "output\nfolder there, 8 something is wrong with what is on disk, 10 what is there is sound, but "
    "the\nrun is not finished (without --partial)\n";

static int unknown_option(const char *arg) {
    static const char *const options[] = {"--verbose", "--partial", "--help", "--against",
                                          "--samples", "--devices", "--seed"};
    const char *near = td_nearest_name(arg, options, TD_ARRAY_LEN(options));
    td_log_error("tdgen verify: unknown option \"%s\"%s%s%s; see tdgen verify --help", arg,
                 near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
    return TD_EXIT_CONFIG;
}

int td_cmd_verify(int argc, char **argv) {
    td_against_options opt = {.n_samples = 16};
    const char *dir = NULL, *only_against = NULL;
    td_verify_options check = {0};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0) {
            fputs(HELP, stdout);
            return TD_EXIT_OK;
        }
        bool samples = strcmp(a, "--samples") == 0, seed = strcmp(a, "--seed") == 0;
        bool against = strcmp(a, "--against") == 0, devices = strcmp(a, "--devices") == 0;
        if (samples || seed || against || devices) {
            long long v = 0;
            if (i + 1 == argc ||
                ((samples || seed) &&
                 !td_parse_int(argv[i + 1], samples, samples ? 1000000 : INT64_MAX, &v))) {
                td_log_error("tdgen verify: %s needs %s", a,
                             samples || seed ? "a whole number after it"
                             : against       ? "the teacher's folder"
                                             : "auto, cpu, cpu*N or GPUs");
                return TD_EXIT_CONFIG;
            }
            i++;
            if (samples)
                opt.n_samples = (int32_t)v;
            else if (seed)
                opt.seed = (uint64_t)v;
            else if (against)
                opt.model_dir = argv[i];
            else
                opt.devices = argv[i];
            if (!against)
                only_against = a;
        } else if (strcmp(a, "--verbose") == 0) {
            check.verbose = true;
        } else if (strcmp(a, "--partial") == 0) {
            check.partial = true;
        } else if (a[0] == '-' && a[1]) {
            return unknown_option(a);
        } else if (dir) {
            td_log_error("tdgen verify takes one folder, but got \"%s\" and \"%s\"", dir, a);
            return TD_EXIT_CONFIG;
        } else {
            dir = a;
        }
    }
    if (!dir) {
        td_log_error("tdgen verify needs the output folder of a run; see tdgen verify --help");
        return TD_EXIT_CONFIG;
    }
    if (only_against && !opt.model_dir) {
        td_log_error("tdgen verify: %s goes with --against MODEL_DIR", only_against);
        return TD_EXIT_CONFIG;
    }
    td_error err = {0};
    td_status rc = td_verify(dir, &check, stdout, &err);
    fflush(stdout);
    if (rc == TD_OK && opt.model_dir)
        rc = td_against(dir, &opt, stdout, &err);
    fflush(stdout);
    if (rc != TD_OK)
        td_log_error("%s", err.text);
    return td_status_exit_code(rc);
}
