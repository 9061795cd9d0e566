/* watchdog.c - the last resort: a thread that ends the process when tearing down, or starting anew,
 * hangs in a driver. What is committed is safe at any instant, so _exit loses nothing. */
#include "run/run.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"

#define PATIENCE_S 60.0 /* a micro-batch without a sign of life, at least */
#define TEARDOWN_S 30.0

static double override_s(double otherwise) {
    const char *s = getenv("TDGEN_DEBUG_WATCHDOG_S");
    double v = s ? strtod(s, NULL) : 0;
    return v > 0 && v < 1e6 ? v : otherwise;
}

double td_run_patience_s(void) {
    return override_s(PATIENCE_S);
}

static void *watchdog_main(void *arg) {
    static const char text[] =
        "error: a device hangs and the process cannot be ended in good order; everything committed "
        "is saved, run the same command again (exit code 9)\n";
    double end = td_time_s() + *(double *)arg;
    free(arg);
    /* In short sleeps: a process that was stopped (SIGSTOP) gets its time when it goes on. */
    for (double now = td_time_s(); now < end;) {
        struct timespec ts = {.tv_nsec = 100000000};
        nanosleep(&ts, NULL);
        double then = now;
        now = td_time_s();
        if (now - then > 5)
            end += now - then;
    }
    ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);
    (void)n;
    _exit(TD_EXIT_HUNG);
    return NULL;
}

void td_run_arm_watchdog(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static bool armed; /* protected by lock */
    pthread_t thread;
    pthread_mutex_lock(&lock);
    double *seconds = armed ? NULL : malloc(sizeof *seconds);
    if (seconds) {
        *seconds = override_s(TEARDOWN_S);
        armed = pthread_create(&thread, NULL, watchdog_main, seconds) == 0;
        if (armed)
            pthread_detach(thread);
        else
            free(seconds);
    }
    pthread_mutex_unlock(&lock);
}
