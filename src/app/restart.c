/* restart.c - see app/restart.h and run/run.h. */
#include "app/restart.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"

#define REEXEC_ENV "TDGEN_REEXEC"

/* Descriptors that were there before this program opened any go on to the next execution, the
 * others do not: a driver's would keep the old execution's device memory alive. Returns those above
 * 2 that are open now, -1 terminated, NULL when they cannot be told. */
static int *open_descriptors(void) {
    DIR *d = opendir("/proc/self/fd");
    int *list = NULL;
    size_t n = 0, cap = 0;
    struct dirent *e;
    while (d && (e = readdir(d))) {
        int fd = atoi(e->d_name);
        if (fd <= 2 || fd == dirfd(d))
            continue;
        if (!td_grow((void **)&list, &cap, n + 2, sizeof *list))
            break;
        list[n++] = fd;
        list[n] = -1;
    }
    if (d)
        closedir(d);
    return list;
}

static bool contains(const int *list, int fd) {
    while (list && *list >= 0 && *list != fd)
        list++;
    return list && *list == fd;
}

static void close_on_exec(const int *keep) {
    int *now = open_descriptors();
    for (int *p = now; p && *p >= 0; p++) {
        int flags = contains(keep, *p) ? -1 : fcntl(*p, F_GETFD);
        if (flags >= 0)
            fcntl(*p, F_SETFD, flags | FD_CLOEXEC);
    }
    free(now);
}

/* --- the new execution ------------------------------------------------------------------------ */

void td_recover_begin(const char *dir, td_recovery *out) {
    td_error err = {0};
    int fd = -1, number = 0;
    *out = (td_recovery){.lock_fd = -1, .inherited = open_descriptors()};
    if (td_faults_load(dir, &out->faults, &err) != TD_OK)
        td_log_warn("%s; it is ignored: samples that made a device fail are not known", err.text);
    const char *env = getenv(REEXEC_ENV);
    bool told = env && sscanf(env, "%d,%d", &fd, &number) == 2;
    unsetenv(REEXEC_ENV); /* for this execution only */
    if (told && number >= 1 && number <= TD_FAULTS_MAX_REEXEC &&
        out->faults.pid == (int64_t)getpid()) {
        out->reexecuted = true;
        out->lock_fd = fd;
        out->faults.n_reexec = TD_MAX(out->faults.n_reexec, number);
    } else {
        td_faults_forget_devices(&out->faults);
        if (out->faults.n_suspects)
            td_log_info("%d sample%s of an earlier run that lost a device: computed one by one",
                        out->faults.n_suspects, out->faults.n_suspects == 1 ? "" : "s");
    }
}

bool td_recover_is_reexecution(void) {
    return getenv(REEXEC_ENV) != NULL;
}

void td_recover_end(td_recovery *r) {
    td_faults_free(&r->faults);
    free(r->inherited);
    r->inherited = NULL;
}

static td_status note_machine(td_faults *f, const td_device_info *info, int32_t n, td_error *err) {
    free(f->machine);
    f->n_machine = 0;
    f->machine = td_calloc((size_t)n, sizeof *f->machine);
    if (!f->machine)
        return td_error_nomem(err, "the device list", (size_t)n * sizeof *f->machine);
    f->n_machine = TD_MIN(n, (int32_t)TD_FAULTS_MAX_MACHINE);
    for (int32_t i = 0; i < f->n_machine; i++)
        snprintf(f->machine[i], sizeof f->machine[i], "%s", td_device_key(&info[i]));
    return TD_OK;
}

td_status td_recover_mark_lost(td_recovery *r, const td_device_info *info, int32_t n,
                               td_inventory *inv, int32_t *number, td_error *err) {
    td_faults *f = &r->faults;
    for (int32_t i = 0; i < n; i++)
        number[i] = inv->devices[i].index;
    if (!r->reexecuted || f->n_machine == 0)
        return note_machine(f, info, n, err);
    td_plan_device *list = td_calloc((size_t)f->n_machine, sizeof *list);
    if (!list)
        return td_error_nomem(err, "the device list", (size_t)f->n_machine * sizeof *list);
    for (int32_t i = 0; i < n; i++)
        number[i] = -1;
    for (int32_t k = 0; k < f->n_machine; k++) {
        int32_t i = 0;
        while (i < n && (number[i] >= 0 || strcmp(td_device_key(&info[i]), f->machine[k]) != 0))
            i++;
        td_plan_device *d = &list[k];
        if (i < n) {
            *d = inv->devices[i];
            number[i] = k;
        } else { /* it is not even enumerated any more */
            d->domain = -1 - k;
            d->lost = true;
        }
        if (!inv->is_cpu)
            snprintf(d->label, sizeof d->label, "%d", k);
        else if (i == n)
            snprintf(d->label, sizeof d->label, "%.31s", f->machine[k]);
        d->index = k;
        d->lost = d->lost || td_faults_is_lost(f, f->machine[k]);
    }
    free(inv->devices);
    inv->devices = list;
    inv->n_devices = f->n_machine;
    return TD_OK;
}

/* --- the old one ------------------------------------------------------------------------------ */

static bool any_left(const td_faults *f, const td_plan *plan) {
    for (int32_t i = 0; i < plan->inventory.n_devices; i++) {
        int32_t number = plan->inventory.devices[i].index;
        if (number < f->n_machine && !td_faults_is_lost(f, f->machine[number]))
            return true;
    }
    return false;
}

/* "dataset row 17" or "12 samples, the oldest of dataset row 17" */
static const char *in_flight(const td_fault *fault, char *buf, size_t n) {
    if (fault->n_samples == 0)
        snprintf(buf, n, "nothing in flight there");
    else if (fault->n_samples == 1)
        snprintf(buf, n, "dataset row %lld in flight there", (long long)fault->samples[0].row);
    else
        snprintf(buf, n, "%d samples in flight there, among the oldest dataset row %lld",
                 fault->n_samples, (long long)fault->samples[0].row);
    return buf;
}

/* The arguments of the next execution. A configuration that came through a pipe is gone: OUT/run.ini
 * says the same. */
static char *const *arguments(const td_loss *loss) {
    int n = 0;
    struct stat st;
    while (loss->argv[n])
        n++;
    char **argv = td_calloc((size_t)n + 1, sizeof *argv);
    for (int i = 0; argv && i < n; i++) {
        argv[i] = loss->argv[i];
        if (i > 0 && strcmp(loss->argv[i - 1], "-c") == 0 &&
            (stat(argv[i], &st) != 0 || !S_ISREG(st.st_mode)))
            argv[i] = td_asprintf("%s/run.ini", loss->cfg->output.dir);
    }
    return argv;
}

/* Only on failure does it return. */
static td_status execute_anew(const td_recovery *r, const td_loss *loss, td_error *err) {
    char text[48];
    int fd = loss->output ? td_output_lock_fd(loss->output) : -1;
    snprintf(text, sizeof text, "%d,%d", fd, r->faults.n_reexec);
    if (setenv(REEXEC_ENV, text, 1) != 0)
        return td_error_errno(err, TD_E_INTERNAL, errno, "cannot set %s", REEXEC_ENV);
    close_on_exec(r->inherited);
    if (fd >= 0 && fcntl(fd, F_SETFD, 0) != 0)
        return td_error_errno(err, TD_E_OUTPUT, errno, "cannot keep the lock of %s",
                              loss->cfg->output.dir);
    fflush(NULL);
    /* The program that runs now, also when its file was replaced meanwhile. */
    char *const *argv = arguments(loss);
    execv("/proc/self/exe", argv ? argv : loss->argv);
    return td_error_errno(err, TD_E_INTERNAL, errno, "cannot start the program anew");
}

int td_recover_after_loss(td_recovery *r, const td_loss *loss, td_error *err) {
    td_faults *f = &r->faults;
    const td_fault *fault = loss->fault;
    const char *dir = loss->cfg->output.dir;
    const td_suspect *blamed = NULL;
    char flight[128];
    in_flight(fault, flight, sizeof flight);
    td_log_error("%s; it was lost with %s", fault->why, flight);
    const int32_t n_lost = f->n_lost;
    td_status rc = td_faults_note(f, fault, &blamed, err);
    /* This plan may be without a device that is to try again. */
    const bool given_back = f->n_lost <= n_lost;
    bool again = rc == TD_OK && f->n_reexec < TD_FAULTS_MAX_REEXEC && !td_run_stop_requested() &&
                 !(blamed && loss->cfg->run.on_bad_sample == TD_BAD_FAIL) &&
                 (given_back || any_left(f, loss->plan));
    f->pid = getpid();
    snprintf(f->compute, sizeof f->compute, "%s", td_dtype_name(loss->plan->compute));
    f->n_reexec += again;
    if (rc == TD_OK)
        rc = td_faults_save(f, dir, err);
    if (rc != TD_OK) {
        td_error_prefix(err, "after the loss of %s", fault->name);
        return td_status_exit_code(rc);
    }
    if (again) {
        if (blamed)
            td_log_warn("dataset row %lld made %s fail as well: the sample is to blame and will be "
                        "skipped, the devices are used again",
                        (long long)blamed->row, fault->name);
        td_log_info("starting anew %s%s (%d of at most %d times); what is committed stays",
                    blamed ? "with all devices but those lost before" : "without ",
                    blamed ? "" : fault->name, f->n_reexec, TD_FAULTS_MAX_REEXEC);
        rc = execute_anew(r, loss, err);
        td_error_prefix(err, "after the loss of %s", fault->name);
        return TD_EXIT_DEVICE;
    }
    if (blamed && loss->cfg->run.on_bad_sample == TD_BAD_FAIL)
        rc = td_faults_blame_error(blamed, dir, err);
    else if (td_run_stop_requested())
        rc = td_run_stopped_error(err);
    else if (f->n_reexec >= TD_FAULTS_MAX_REEXEC)
        rc =
            td_error_set(err, TD_E_DEVICE,
                         "%s was lost with %s, and the program was started anew %d times already; "
                         "look at the machine (dmesg, nvidia-smi), then run the same command again "
                         "to continue",
                         fault->name, flight, f->n_reexec);
    else
        rc = td_error_set(err, TD_E_DEVICE,
                          "%s was lost with %s, and no other device is left; everything committed "
                          "so far is saved, run the same command again to continue",
                          fault->name, flight);
    return td_status_exit_code(rc);
}
