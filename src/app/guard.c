/* guard.c - see guard.h.
 *
 *   descriptors 0 to 2 closed at start   /dev/null: else a shard would get one of these numbers, and a
 *                                        message would be written into it
 *   SIGPIPE, SIGXFSZ                     ignored: the write fails with EPIPE or EFBIG, which has a
 *                                        message and exit code 6
 *   SIGBUS in a mapped file              the file's name; 3 model, 4 data, 6 else
 *   abort() in a library                 oneDNN's and the C++ runtime's answer to a failed allocation:
 *                                        a message, exit code 1
 *   exit() in a library                  libgomp's answer to a thread that cannot be started: the same
 *   malloc fails inside Jansson          a message, exit code 1: its lexer (2.14) ignores a failed
 *                                        growth and then works on a text with holes
 *
 * All that was committed is safe at any instant, so ending at once loses nothing.
 */
#include "app/guard.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/mapped.h"
#include "base/status.h"

static atomic_bool g_leaving;

/* write() only: a handler may have interrupted printf or malloc. */
static void say(const char *text) {
    ssize_t n = write(STDERR_FILENO, text, strlen(text));
    (void)n;
}

static void on_bus(int sig, siginfo_t *info, void *context) {
    (void)context;
    td_status code = TD_E_INTERNAL;
    const char *path = td_mapped_find(info->si_addr, &code);
    if (!path) {
        signal(sig, SIG_DFL); /* the touch is repeated, and ends the process as it always would */
        return;
    }
    say("error: ");
    say(path);
    say(": cannot be read any more: it was cut short or replaced while it was read, or its disk "
        "failed. Restore it and run the same command again; everything committed is saved\n");
    _exit(td_status_exit_code(code == TD_E_VERIFY ? TD_E_OUTPUT : code));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static void on_abort(int sig) {
    (void)sig;
    say("error: a library gave up (see the lines above; mostly an allocation that failed: use fewer "
        "devices or a lower run.batch_tokens). Everything committed is saved, run the same command "
        "again\n");
    _exit(TD_EXIT_INTERNAL);
}
#endif

static void on_exit_call(void) {
    if (atomic_load(&g_leaving))
        return;
    say("error: a library ended the process (see the lines above; mostly no memory or no threads "
        "left: see ulimit -u and -v). Everything committed is saved, run the same command again\n");
    _exit(TD_EXIT_INTERNAL);
}

static void *json_malloc(size_t size_bytes) {
    void *p = malloc(size_bytes);
    if (p || !size_bytes)
        return p;
    char text[160];
    snprintf(text, sizeof text,
             "error: out of host memory: %zu bytes for JSON (a dataset row, a configuration, a "
             "tokenizer). Everything committed is saved\n",
             size_bytes);
    say(text);
    _exit(TD_EXIT_INTERNAL);
}

static void open_standard_files(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            (void)!open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY); /* the lowest free number */
}

void td_guard_install(void) {
    open_standard_files();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    struct sigaction sa = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGBUS, &sa, NULL);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    signal(SIGABRT, on_abort);
#endif
    (void)atexit(on_exit_call);
    json_set_alloc_funcs(json_malloc, free);
}

void td_guard_leave(void) {
    atomic_store(&g_leaving, true);
}
