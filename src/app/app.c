/* app.c - arguments to commands. */
#include "app/app.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app/commands.h"
#include "app/guard.h"
#include "base/format.h"
#include "base/log.h"
#include "base/memory.h"
#include "config/config.h"
#include "device/device.h"

static const char HELP[] =
    "tdgen " TDGEN_VERSION ": teacher logits for knowledge distillation\n"
    "\n"
    "usage: tdgen [-c] run.ini [section.key=value ...] [--dry-run] [--quiet | --verbose]\n"
    "       tdgen COMMAND [...]\n"
    "\n"
    "Runs a Hugging Face checkpoint over a dataset, teacher-forced, on every device of the "
    "machine,\n"
    "and writes what it predicts at each position as safetensors shards. A run that was stopped "
    "or\n"
    "killed continues with the same command.\n"
    "\n"
    "options of a run\n"
    "  -c FILE             the configuration; conf/run.ini documents every key. - reads it from\n"
    "                      standard input; a name that ends in .ini needs no -c\n"
    "  section.key=value   replaces a setting of the file; may be repeated, the last one wins\n"
    "  --dry-run           prints the plan (groups, layers per device, memory, output size) and\n"
    "                      stops; needs config.json and no GPU\n"
    "  --restart           moves what is in output.dir aside (to DIR.old-DATE) and begins anew\n"
    "  --simulate          the planned run in virtual time: predicted time, busy shares, "
    "timeline;\n"
    "                      needs config.json, and [simulate] states a job without a dataset\n"
    "  --timeline FILE     with --simulate: the timeline as an SVG picture too\n"
    "  --quiet             only warnings and errors\n"
    "  --verbose           more about what happens\n"
    "  --keys              lists every key with its range and default\n"
    "\n"
    "commands\n"
    "  devices             what this machine offers\n"
    "  inspect DIR         what is in an output folder, with a readable table of predictions\n"
    "  status DIR          where a run is, and whether anybody is still at it\n"
    "  verify DIR          re-reads and checks every byte of an output folder\n"
    "  merge OUT DIR...    makes one folder of those that several workers wrote\n"
    "  tokenize            text on stdin to token ids on stdout\n"
    "\n"
    "commands of the Python package (pip install tdgen)\n"
    "  prepare             chat and other datasets (Parquet, CSV, messages, ...) to token files\n"
    "  export              a folder as the files that trainers read\n"
    "  logits              full logits of a folder that recorded hidden states\n"
    "  plot                mass covered, entropy and speed as pictures\n"
    "\n"
    "  COMMAND --help      more about one of them\n"
    "  --help, --version\n"
    "\n"
    "examples\n"
    "  tdgen -c conf/demo.ini\n"
    "  tdgen -c run.ini data.max_samples=10                          a trial that grows into the "
    "run\n"
    "  tdgen -c run.ini devices.gpus=0,1,2,3 devices.gpus_per_model=2\n"
    "  tdgen -c run.ini --dry-run devices.inventory=conf/inventory/8xh100.ini\n"
    "  tdgen -c run.ini --simulate simulate.lengths=lognormal:512:1:2048 "
    "simulate.n_samples=100000\n"
    "\n"
    "exit codes\n";

static void print_help(FILE *out) {
    static const struct {
        int code;
        const char *text;
    } codes[] = {
#define EXIT_LINE(NAME, code, text) {code, text},
        TD_EXIT_CODES(EXIT_LINE)
#undef EXIT_LINE
    };
    fputs(HELP, out);
    for (size_t i = 0; i < TD_ARRAY_LEN(codes); i++)
        fprintf(out, "  %2d  %s\n", codes[i].code, codes[i].text);
}

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv);
} command;

static const command COMMANDS[] = {
    {"devices", td_cmd_devices}, {"inspect", td_cmd_inspect}, {"verify", td_cmd_verify},
    {"merge", td_cmd_merge},     {"status", td_cmd_status},   {"tokenize", td_cmd_tokenize},
    {"prepare", td_cmd_prepare}, {"export", td_cmd_export},   {"logits", td_cmd_logits},
    {"plot", td_cmd_plot},
};

static int usage_error(const char *fmt, const char *arg, const char *nearest) {
    td_log_error(fmt, arg);
    if (nearest)
        fprintf(stderr, "did you mean \"%s\"? ", nearest);
    fputs("See tdgen --help\n", stderr);
    return TD_EXIT_CONFIG;
}

static bool is_config(const char *arg) {
    const char *dot = strrchr(arg, '.');
    return arg[0] != '-' && dot && (strcmp(dot, ".ini") == 0 || strcmp(dot, ".cfg") == 0);
}

static int run_main(int argc, char **argv) {
    static const char *const options[] = {"-c",         "--dry-run", "--quiet", "--verbose",
                                          "--version",  "--help",    "--keys",  "--simulate",
                                          "--timeline", "--restart"};
    td_run_options opt = {.argv = argv};
    int code;
    const char **overrides = td_calloc((size_t)argc, sizeof *overrides);
    if (!overrides) {
        td_log_error("out of memory");
        return TD_EXIT_INTERNAL;
    }
    bool verbose = false, dry_run = false, simulate = false;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "-c") == 0) {
            if (++i == argc) {
                code = usage_error("%s needs the path of a configuration file", a, NULL);
                goto done;
            }
            if (opt.config_path) {
                code = usage_error("-c was given twice; one run has one configuration (%s is the "
                                   "second)",
                                   argv[i], NULL);
                goto done;
            }
            opt.config_path = argv[i];
        } else if (strcmp(a, "--dry-run") == 0) {
            dry_run = true;
        } else if (strcmp(a, "--simulate") == 0) {
            simulate = true;
        } else if (strcmp(a, "--timeline") == 0) {
            if (++i == argc || opt.timeline) {
                code = usage_error("%s needs the path of one SVG file to write", a, NULL);
                goto done;
            }
            opt.timeline = argv[i];
        } else if (strcmp(a, "--restart") == 0) {
            opt.restart = true;
        } else if (strcmp(a, "--quiet") == 0) {
            opt.quiet = true;
        } else if (strcmp(a, "--verbose") == 0) {
            verbose = true;
        } else if (a[0] != '-' && strchr(a, '=')) {
            overrides[opt.n_overrides++] = a;
        } else if (is_config(a) && !opt.config_path) {
            opt.config_path = a;
        } else {
            code = usage_error("unknown argument \"%s\" (settings are given as section.key=value)",
                               a, td_nearest_name(a, options, TD_ARRAY_LEN(options)));
            goto done;
        }
    }
    if (!opt.config_path) {
        code = usage_error("%s: a run needs -c FILE", argv[0], NULL);
        goto done;
    }
    if (opt.timeline && !simulate) {
        code = usage_error("--timeline %s goes with --simulate only", opt.timeline, NULL);
        goto done;
    }
    if (opt.quiet && verbose) {
        code = usage_error("--quiet and %s contradict each other", "--verbose", NULL);
        goto done;
    }
    td_log_set_level(opt.quiet ? TD_LOG_WARN : verbose ? TD_LOG_DEBUG : TD_LOG_INFO);
    opt.overrides = overrides;
    code = simulate ? td_cmd_simulate(&opt) : dry_run ? td_cmd_dry_run(&opt) : td_cmd_run(&opt);
done:
    free(overrides);
    return code;
}

static int dispatch(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return TD_EXIT_CONFIG;
    }
    const char *first = argv[1];
    if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 || strcmp(first, "help") == 0) {
        print_help(stdout);
        return TD_EXIT_OK;
    }
    if (strcmp(first, "--version") == 0) {
        printf("tdgen %s (devices: %s)\n", TDGEN_VERSION, td_device_backends());
        return TD_EXIT_OK;
    }
    if (strcmp(first, "--keys") == 0) {
        td_config_print_keys(stdout);
        return TD_EXIT_OK;
    }
    const char *names[TD_ARRAY_LEN(COMMANDS)];
    for (size_t i = 0; i < TD_ARRAY_LEN(COMMANDS); i++) {
        if (strcmp(first, COMMANDS[i].name) == 0)
            return COMMANDS[i].run(argc - 1, argv + 1);
        names[i] = COMMANDS[i].name;
    }
    /* `tdgen run.ini` means -c run.ini; no command looks like a path of a configuration. */
    if (first[0] != '-' && !strchr(first, '=') && !is_config(first))
        return usage_error("unknown command \"%s\"", first,
                           td_nearest_name(first, names, TD_ARRAY_LEN(names)));
    return run_main(argc, argv);
}

int td_app_main(int argc, char **argv) {
    td_guard_install();
    int code = dispatch(argc, argv);
    /* What was to be read by somebody and got lost is no success. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == TD_EXIT_OK) {
        td_log_error("standard output could not be written");
        code = TD_EXIT_OUTPUT;
    }
    td_guard_leave();
    return code;
}
