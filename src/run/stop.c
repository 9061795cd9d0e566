/* stop.c - signals that ask to stop: save what is in flight, exit code 75.
 *
 *   INT         Ctrl-C; the second one leaves at once
 *   TERM, HUP, USR1, USR2, XCPU
 *               schedulers, a terminal that is gone, a CPU limit. They may come several times: the same
 *               one again within 10 s is one; later it leaves at once
 * HUP stays ignored where it was at the start (nohup).
 */
#include "run/run.h"

#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#include "base/memory.h"

enum { SAME_SIGNAL_S = 10 };

static const int stop_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU};

static volatile sig_atomic_t g_stop;
/* [as stop_signals] when it came first, in seconds of the monotonic clock from 1; 0: it did not. */
static _Atomic long g_first_s[TD_ARRAY_LEN(stop_signals)];

static void on_signal(int sig) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    g_stop = 1;
    for (size_t i = 0; i < TD_ARRAY_LEN(stop_signals); i++) {
        long first = 0, now = (long)ts.tv_sec + 1;
        if (stop_signals[i] != sig || atomic_compare_exchange_strong(&g_first_s[i], &first, now))
            continue;
        if (sig == SIGINT || now - first >= SAME_SIGNAL_S)
            _exit(TD_EXIT_STOPPED);
    }
}

void td_run_catch_signals(void) {
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&sa.sa_mask);
    g_stop = 0;
    for (size_t i = 0; i < TD_ARRAY_LEN(stop_signals); i++) {
        struct sigaction old;
        atomic_store(&g_first_s[i], 0);
        if (stop_signals[i] == SIGHUP && sigaction(SIGHUP, NULL, &old) == 0 &&
            old.sa_handler == SIG_IGN)
            continue;
        sigaction(stop_signals[i], &sa, NULL);
    }
}

bool td_run_stop_requested(void) {
    return g_stop != 0;
}

td_status td_run_stopped_error(td_error *err) {
    return td_error_set(err, TD_E_STOPPED,
                        "stopped by a signal; everything committed so far is saved, run the same "
                        "command again to continue");
}
