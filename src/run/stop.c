/* stop.c - SIGINT and SIGTERM: the first asks to stop, the second leaves at once. */
#include "run/run.h"

#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t g_n_signals;

static void on_signal(int sig) {
    (void)sig;
    g_n_signals = g_n_signals + 1;
    if (g_n_signals > 1)
        _exit(TD_EXIT_STOPPED);
}

void td_run_catch_signals(void) {
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&sa.sa_mask);
    g_n_signals = 0;
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

bool td_run_stop_requested(void) {
    return g_n_signals != 0;
}

td_status td_run_stopped_error(td_error *err) {
    return td_error_set(err, TD_E_STOPPED,
                        "stopped by a signal; everything committed so far is saved, run the same "
                        "command again to continue");
}
