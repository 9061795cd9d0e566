/* cmd_python.c - tdgen prepare, export, logits, plot: the commands of the Python package.
 *
 * They are found as an installed package has them (tdgen-prepare on the PATH, or beside this program),
 * else in the source tree that this program was built in (python/src, run by python3). All arguments
 * are theirs, and so is the exit code: this process becomes the command.
 */
#include "app/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/status.h"

/* The folder of this program; the caller's. */
static char *own_folder(void) {
    char *path = realpath("/proc/self/exe", NULL);
    char *slash = path ? strrchr(path, '/') : NULL;
    if (slash)
        *slash = '\0';
    return path;
}

/* The source tree above `dir` that holds the package, at most a few folders up (build/release/src). */
static char *package_above(const char *dir) {
    char *at = td_strdup(dir);
    for (int up = 0; at && up < 5; up++) {
        char *package = td_asprintf("%s/python/src", at);
        char *file = td_asprintf("%s/python/src/tdgen/cli/prepare.py", at);
        const bool there = file && td_path_exists(file);
        free(file);
        if (package && there) {
            free(at);
            return package;
        }
        free(package);
        char *slash = strrchr(at, '/');
        if (!slash || slash == at)
            break;
        *slash = '\0';
    }
    free(at);
    return NULL;
}

static int become(const char *name, int argc, char **argv) {
    char *command = td_asprintf("tdgen-%s", name),
         *code = td_asprintf("import sys\nsys.argv[0] = 'tdgen-%s'\nfrom tdgen.cli.%s import main\n"
                             "sys.exit(main())",
                             name, name);
    char *folder = own_folder();
    char *beside = folder ? td_asprintf("%s/tdgen-%s", folder, name) : NULL;
    char *package = folder ? package_above(folder) : NULL;
    char **args = td_calloc((size_t)argc + 3, sizeof *args);
    if (!command || !code || !args) {
        td_log_error("out of memory");
        return TD_EXIT_INTERNAL;
    }
    /* The command's own name, then what the user gave it. */
    for (int i = 1; i < argc; i++)
        args[i] = argv[i];
    args[0] = command;
    execvp(command, args);
    if (beside) {
        args[0] = beside;
        execv(beside, args);
    }
    if (package) {
        const char *path = getenv("PYTHONPATH");
        char *all = path && *path ? td_asprintf("%s:%s", package, path) : td_strdup(package);
        for (int i = argc; i-- > 1;)
            args[i + 2] = argv[i];
        args[0] = (char *)"python3";
        args[1] = (char *)"-c";
        args[2] = code;
        if (all && setenv("PYTHONPATH", all, 1) == 0)
            execvp("python3", args);
    }
    const char *extra = strcmp(name, "logits") == 0 ? "" : name;
    td_log_error(
        "tdgen %s is a command of the Python package tdgen, which is not installed here%s: "
        "pip install \"tdgen%s%s%s\" (of a source tree: pip install \"./python%s%s%s\")",
        name, package ? ", and there is no python3" : "", *extra ? "[" : "", extra,
        *extra ? "]" : "", *extra ? "[" : "", extra, *extra ? "]" : "");
    free(args);
    free(package);
    free(beside);
    free(folder);
    free(code);
    free(command);
    return TD_EXIT_CONFIG;
}

int td_cmd_prepare(int argc, char **argv) {
    return become("prepare", argc, argv);
}

int td_cmd_export(int argc, char **argv) {
    return become("export", argc, argv);
}

int td_cmd_logits(int argc, char **argv) {
    return become("logits", argc, argv);
}

int td_cmd_plot(int argc, char **argv) {
    return become("plot", argc, argv);
}
