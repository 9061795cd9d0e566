/* Death and failure at every system call that writes: the folder is repaired by running again, and
 * its bytes are those of an uninterrupted run. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test/common.h"
#include "faults.h"
#include "fixture.h"
#include "base/log.h"
#include "base/memory.h"

WRAP_WRITE(write, (int fd, const void *p, size_t n), (fd, p, n), (fd, p, n / 2))

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    if ((flags & O_ACCMODE) != O_RDONLY && plain_fault())
        return -1;
    return __real_open(path, flags, mode);
}

WRAP(int, ftruncate, (int fd, off_t n), (fd, n), -1)
WRAP(int, posix_fallocate, (int fd, off_t at, off_t n), (fd, at, n), ENOSPC)

/* --- the folder, all of it -------------------------------------------------------------------- */

/* A ragged mode (with the side file, packed ids and compression) goes through the same deaths with
 * fewer shards. */
typedef struct way {
    const char *mode; /* of td_fixture_modes */
    int64_t n_shards;
    const char *suffix;
    long n_calls; /* that are met at least: is the wrapping in place? */
} way;
static const way plain = {"topk", 3, "", 100};
static const way ragged = {"topk+sample packed, q8, zstd", 2, ".zst", 90};
static const way *the_way;

enum { N_FILES = 5 };

static int64_t n_files(void) {
    return 2 + the_way->n_shards;
}

static char *file_name(int64_t i) {
    return i < 2 ? td_strdup(i ? "shards.jsonl" : "manifest.json")
                 : td_asprintf("shard-%06lld.safetensors%s", (long long)i - 2, the_way->suffix);
}

typedef struct snapshot {
    char *data[N_FILES];
    size_t n[N_FILES];
} snapshot;

static void take(const td_fixture *f, snapshot *s) {
    *s = (snapshot){0};
    for (int64_t i = 0; i < n_files(); i++) {
        char *name = file_name(i);
        s->data[i] = test_read_file(f->cfg.output.dir, name, &s->n[i]);
        cr_assert(s->data[i], "%s is missing", name);
        free(name);
    }
}

static void drop(snapshot *s) {
    for (int i = 0; i < N_FILES; i++)
        free(s->data[i]);
}

static void same(const td_fixture *f, const snapshot *want, const char *what, long k) {
    snapshot have;
    take(f, &have);
    for (int64_t i = 0; i < n_files(); i++)
        cr_assert(have.n[i] == want->n[i] && memcmp(have.data[i], want->data[i], want->n[i]) == 0,
                  "%s at call %ld: file %lld differs", what, k, (long long)i);
    drop(&have);
}

static void begin(td_fixture *f, const way *w, snapshot *reference) {
    td_error err;
    the_way = w;
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(f);
    if (w != &plain)
        td_fixture_set_mode(f, td_fixture_mode_named(w->mode));
    f->skip = 3; /* so that commit rewrites the shard without that sample's rows */
    OK(td_fixture_run(f, the_way->n_shards, NULL, &err));
    take(f, reference);
}

/* Nothing but the record, the lock and what other parts of the program write. */
static void no_temp_files(const td_fixture *f, const char *what, long k) {
    DIR *d = opendir(f->cfg.output.dir);
    for (struct dirent *e; (e = readdir(d));)
        cr_assert_not(strstr(e->d_name, ".tmp"), "%s at call %ld left %s", what, k, e->d_name);
    closedir(d);
}

static void finish_run(td_fixture *f, const snapshot *reference, const char *what, long k) {
    td_error err;
    cr_assert_eq(td_fixture_run(f, the_way->n_shards, NULL, &err), TD_OK, "%s at call %ld: %s",
                 what, k, err.text);
    same(f, reference, what, k);
    VERIFY_OK(f, what);
    no_temp_files(f, what, k);
}

static void die_at_every_call(const way *w, enum fault how, const char *what) {
    td_fixture f;
    snapshot reference;
    begin(&f, w, &reference);
    long k = 1;
    for (;; k++) {
        test_remove_tree(f.cfg.output.dir);
        pid_t child = fork();
        cr_assert_geq(child, 0);
        if (child == 0) {
            td_error err;
            fault = how;
            countdown = k;
            _exit(td_fixture_run(&f, the_way->n_shards, NULL, &err) == TD_OK ? 0 : 1);
        }
        int status;
        cr_assert_eq(waitpid(child, &status, 0), child);
        cr_assert(WIFEXITED(status), "%s at call %ld: signal %d", what, k, WTERMSIG(status));
        if (WEXITSTATUS(status) == 0)
            break; /* fewer calls than k: every one was met */
        cr_assert_eq(WEXITSTATUS(status), DIED, "%s at call %ld", what, k);
        finish_run(&f, &reference, what, k);
    }
    cr_assert_gt(k, w->n_calls, "only %ld calls were met: is the wrapping in place?", k);
    drop(&reference);
    td_fixture_free(&f);
}

Test(crash, death_before_every_call, .timeout = 300) {
    die_at_every_call(&plain, FAULT_DIE, "death");
}

Test(crash, death_before_every_call_ragged, .timeout = 300) {
    die_at_every_call(&ragged, FAULT_DIE, "death");
}

Test(crash, death_half_way_through_every_write, .timeout = 300) {
    die_at_every_call(&plain, FAULT_DIE_HALF, "death half way");
}

Test(crash, death_half_way_through_every_write_ragged, .timeout = 300) {
    die_at_every_call(&ragged, FAULT_DIE_HALF, "death half way");
}

/* A full disk at every call: an output error that says so (or no error, where the call does not
 * matter), nothing left that a second run does not put right. */
static void full_disk_at_every_call(const way *w) {
    td_fixture f;
    snapshot reference;
    begin(&f, w, &reference);
    long k = 1, n_failed = 0;
    for (;; k++) {
        td_error err = {0};
        test_remove_tree(f.cfg.output.dir);
        fault = FAULT_ENOSPC;
        countdown = k;
        td_status rc = td_fixture_run(&f, the_way->n_shards, NULL, &err);
        bool met = countdown <= 0;
        fault = FAULT_NONE;
        if (!met)
            break;
        if (rc != TD_OK) {
            n_failed++;
            cr_assert_eq(rc, TD_E_OUTPUT, "call %ld: %s", k, err.text);
            cr_assert(strstr(err.text, "No space left"), "call %ld: %s", k, err.text);
            cr_assert(strstr(err.text, f.cfg.output.dir), "call %ld: %s", k, err.text);
        }
        finish_run(&f, &reference, "a full disk", k);
    }
    cr_assert_gt(n_failed, w->n_calls);
    drop(&reference);
    td_fixture_free(&f);
}

Test(crash, a_full_disk_at_every_call, .timeout = 300) {
    full_disk_at_every_call(&plain);
}

Test(crash, a_full_disk_at_every_call_ragged, .timeout = 300) {
    full_disk_at_every_call(&ragged);
}

/* Short writes are legal and must change nothing but the index, whose line is one write: there it
 * is an error, and repaired. */
Test(crash, short_writes_lose_nothing, .timeout = 300) {
    const way *w = &plain;
    td_fixture f;
    snapshot reference;
    begin(&f, w, &reference);
    for (long k = 1;; k++) {
        td_error err = {0};
        test_remove_tree(f.cfg.output.dir);
        fault = FAULT_SHORT;
        countdown = k;
        td_status rc = td_fixture_run(&f, the_way->n_shards, NULL, &err);
        bool met = countdown <= 0;
        fault = FAULT_NONE;
        if (!met)
            break;
        if (rc == TD_OK)
            same(&f, &reference, "a short write", k);
        else
            cr_assert(strstr(err.text, "shards.jsonl"), "call %ld: %s", k, err.text);
        finish_run(&f, &reference, "a short write", k);
    }
    drop(&reference);
    td_fixture_free(&f);
}

/* The real thing: the kernel refuses a file of that size. */
Test(crash, a_shard_that_does_not_fit_is_refused_before_anything_is_computed) {
    td_fixture f;
    td_error err;
    td_output *o;
    td_shard_writer *w;
    td_fixture_init(&f);
    cr_assert_eq(td_fixture_open(&f, &o, &err), TD_OK);
    td_shard *s = td_fixture_shard(&f, 0, 4);
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){1000, limit.rlim_max});
    td_status rc = td_shard_writer_open(o, s, (const char *[]){"cpu"}, 1, &w, &err);
    setrlimit(RLIMIT_FSIZE, &limit);
    cr_assert_eq(rc, TD_E_OUTPUT);
    cr_assert(strstr(err.text, "cannot reserve") && strstr(err.text, "is free") &&
                  strstr(err.text, "output.dir"),
              "%s", err.text);
    size_t n;
    cr_assert_null(test_read_file(f.cfg.output.dir, "shard-000000.safetensors.tmp", &n));
    OK(td_fixture_write(&f, o, s, -1, &err));
    td_output_close(o);
    td_fixture_shard_free(s);
    td_fixture_free(&f);
}
