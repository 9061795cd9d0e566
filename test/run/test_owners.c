/* test_owners.c - what is protected by a run's lock, or belongs to one thread, cannot be reached
 * without it: each call is made in a process of its own
 *   - by the holder of the lock (or the owner): it returns
 *   - while nobody holds the lock, and while another thread does (or by another thread): the
 *     assertion of that very function ends the process
 * A plain program, so that it runs under ThreadSanitizer, too: the check itself must be no race.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "run/state.h"
#include "run/watch.h"
#include "base/memory.h"

#define CHECK(x, ...)                                                                              \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: check failed: %s: ", __FILE__, __LINE__, #x);                  \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { N_GROUPS = 2 };

static td_run_state run; /* of the child that makes a call; the parent has none */
static td_error failure;

static void set_up(void) {
    td_error_set(&failure, TD_E_DEVICE, "planted");
    run.main = pthread_self();
    run.n_groups = N_GROUPS;
    run.groups = td_calloc(N_GROUPS, sizeof *run.groups);
    td_lock_init(&run.lock);
    run.verdict = td_verdict_create(&run.lock, N_GROUPS);
    run.open = td_open_shards_create(&run.lock, 2);
    CHECK(run.groups && run.verdict && run.open, "out of memory");
    for (uint32_t g = 0; g < N_GROUPS; g++) {
        run.groups[g].id = g;
        run.groups[g].run = &run;
        run.groups[g].own.self = pthread_self();
    }
}

/* --- under the lock --------------------------------------------------------------------------- */

static void call_stop(void) {
    td_verdict_stop(run.verdict);
}
static void call_fail(void) {
    td_verdict_fail(run.verdict, &failure);
}
static void call_failure(void) {
    td_verdict_failure(run.verdict);
}
static void call_lose(void) {
    td_verdict_lose(run.verdict, 1, &failure);
}
static void call_lost_group(void) {
    td_verdict_lost_group(run.verdict, NULL);
}
static void call_retire(void) {
    td_verdict_retire(run.verdict, 0, true, &failure);
}
static void call_blame(void) {
    td_verdict_blame(run.verdict);
}
static void call_announce(void) {
    td_verdict_announce(run.verdict, TD_PHASE_RUN);
}
static void call_await(void) {
    td_verdict_await(run.verdict, 0);
}
static void call_next_phase(void) {
    int32_t serial = -1;
    td_verdict_next_phase(run.verdict, &serial);
}
static void call_acknowledge(void) {
    td_verdict_acknowledge(run.verdict, &failure);
}
static void call_group(void) {
    td_verdict_group(run.verdict, 1);
}
static void call_group_ended(void) {
    td_verdict_group_ended(run.verdict, 0, 1.0, (double[]){0.5}, 1);
}
static void call_group_stuck(void) {
    if (td_lock_is_held(&run.lock)) /* only one that hangs is stuck */
        td_verdict_retire(run.verdict, 1, true, &failure);
    td_verdict_group_stuck(run.verdict, 1, 1.0);
}
static void call_feeder_ended(void) {
    td_verdict_feeder_ended(run.verdict);
}
static void call_writer_ended(void) {
    td_verdict_writer_ended(run.verdict);
}
static void call_feeder_has_ended(void) {
    td_verdict_feeder_has_ended(run.verdict);
}
static void call_groups_have_ended(void) {
    td_verdict_groups_have_ended(run.verdict);
}
static void call_all_ended(void) {
    td_verdict_all_ended(run.verdict);
}
static void call_n_retired(void) {
    td_verdict_n_retired(run.verdict);
}
static void call_n_hung(void) {
    td_verdict_n_hung(run.verdict);
}
static void call_full(void) {
    td_open_shards_full(run.open);
}
static void call_empty(void) {
    td_open_shards_empty(run.open);
}
static void call_take(void) {
    td_open_shards_take(run.open);
}
static void call_pop(void) {
    td_open_shards_pop(run.open);
}
static void call_notify(void) {
    td_lock_notify(&run.lock);
}
static void call_wait_ms(void) {
    td_lock_wait_ms(&run.lock, 1);
}
static void call_release(void) {
    td_lock_release(&run.lock);
}

typedef struct protected_call {
    const char *function; /* named by the assertion */
    void (*call)(void);
} protected_call;

static const protected_call under_lock[] = {
    {"td_verdict_stop", call_stop},
    {"td_verdict_fail", call_fail},
    {"td_verdict_failure", call_failure},
    {"td_verdict_lose", call_lose},
    {"td_verdict_lost_group", call_lost_group},
    {"td_verdict_retire", call_retire},
    {"td_verdict_blame", call_blame},
    {"td_verdict_announce", call_announce},
    {"td_verdict_await", call_await},
    {"td_verdict_next_phase", call_next_phase},
    {"td_verdict_acknowledge", call_acknowledge},
    {"td_verdict_group", call_group},
    {"td_verdict_group_ended", call_group_ended},
    {"td_verdict_group_stuck", call_group_stuck},
    {"td_verdict_feeder_ended", call_feeder_ended},
    {"td_verdict_writer_ended", call_writer_ended},
    {"td_verdict_feeder_has_ended", call_feeder_has_ended},
    {"td_verdict_groups_have_ended", call_groups_have_ended},
    {"td_verdict_all_ended", call_all_ended},
    {"td_verdict_n_retired", call_n_retired},
    {"td_verdict_n_hung", call_n_hung},
    {"td_open_shards_full", call_full},
    {"td_open_shards_empty", call_empty},
    {"td_open_shards_take", call_take},
    {"td_open_shards_pop", call_pop},
    {"td_lock_notify", call_notify},
    {"td_lock_wait_ms", call_wait_ms},
    {"td_lock_release", call_release},
};

/* --- by one thread ---------------------------------------------------------------------------- */

static void call_main(void) {
    td_run_assert_main(&run);
}
static void call_watch(void) {
    td_watch_free(td_watch_create(&run));
}
static void call_own(void) {
    td_group_assert_own(&run.groups[0]);
}

static const protected_call by_owner[] = {
    {"td_run_assert_main", call_main},
    {"td_run_assert_main", call_watch},
    {"td_group_assert_own", call_own},
};

/* --- children --------------------------------------------------------------------------------- */

typedef enum circumstance {
    HELD,
    FREE,
    HELD_BY_ANOTHER,
    OWNER,
    ANOTHER_THREAD,
    TWICE
} circumstance;

static pthread_barrier_t other_holds;

static void *hold_for_ever(void *arg) {
    td_lock_acquire(&run.lock);
    pthread_barrier_wait(&other_holds);
    pause();
    return arg;
}

static void *call_it(void *arg) {
    ((const protected_call *)arg)->call();
    return NULL;
}

static void child(const protected_call *c, circumstance how) {
    const struct rlimit no_core = {0, 0};
    pthread_t other;
    setrlimit(RLIMIT_CORE, &no_core);
    set_up();
    if (how == HELD || how == TWICE)
        td_lock_acquire(&run.lock);
    if (how == HELD_BY_ANOTHER) {
        pthread_barrier_init(&other_holds, NULL, 2);
        CHECK(pthread_create(&other, NULL, hold_for_ever, NULL) == 0, "no thread");
        pthread_barrier_wait(&other_holds);
    }
    if (how == TWICE) {
        td_lock_acquire(&run.lock);
    } else if (how == ANOTHER_THREAD) {
        CHECK(pthread_create(&other, NULL, call_it, (void *)c) == 0, "no thread");
        pthread_join(other, NULL);
    } else {
        c->call();
    }
    _exit(0);
}

/* Runs it in a process of its own; its exit status, and in text what it wrote to stderr. */
static int outcome(const protected_call *c, circumstance how, char *text, size_t size) {
    int ends[2], status;
    size_t n = 0;
    CHECK(pipe(ends) == 0, "no pipe");
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        child(c, how);
    }
    close(ends[1]);
    for (ssize_t got; n + 1 < size && (got = read(ends[0], text + n, size - 1 - n)) > 0;)
        n += (size_t)got;
    text[n] = '\0';
    close(ends[0]);
    CHECK(waitpid(pid, &status, 0) == pid, "no child");
    return status;
}

static void returns(const protected_call *c, circumstance how) {
    char text[4096];
    int status = outcome(c, how, text, sizeof text);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %#x, %s", c->function, status,
          text);
}

static void aborts(const protected_call *c, circumstance how) {
    char text[4096], name[64];
    int status = outcome(c, how, text, sizeof text);
    snprintf(name, sizeof name, "%s: Assertion", c->function);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && strstr(text, name),
          "%s, circumstance %d: status %#x, %s", c->function, how, status, text);
}

int main(void) {
    int n = 0;
    for (size_t i = 0; i < TD_ARRAY_LEN(under_lock); i++, n++) {
        returns(&under_lock[i], HELD);
        aborts(&under_lock[i], FREE);
        aborts(&under_lock[i], HELD_BY_ANOTHER);
    }
    for (size_t i = 0; i < TD_ARRAY_LEN(by_owner); i++, n++) {
        returns(&by_owner[i], OWNER);
        aborts(&by_owner[i], ANOTHER_THREAD);
    }
    aborts(&(protected_call){"td_lock_acquire", NULL}, TWICE);
    printf("%d calls, each refused without its lock or outside its thread\n", n);
    return 0;
}
