/* folder_lock.c - see folder_lock.h. */
#include "record/folder_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/process.h"

#define HOLDER_MAX_BYTES 512

/* --- who holds a folder without locks --------------------------------------------------------- */

/* The file holds "HOST BOOT PID START". */
static bool parse_holder(const char *text, td_process *h) {
    return sscanf(text, "%95s %47s %ld %llu", h->host, h->boot, &h->pid, &h->start) == 4 &&
           h->pid > 0;
}

static td_status in_use(const char *dir, const td_process *h, const char *path, td_error *err) {
    if (!h)
        return td_error_set(
            err, TD_E_OUTPUT,
            "%s is in use by another tdgen (%s cannot be read): wait until it ends; "
            "if none is running, remove that file",
            dir, path);
    return td_error_set(err, TD_E_OUTPUT,
                        "%s is in use by another tdgen, process %ld on %s: wait until it ends, or "
                        "choose another output.dir; if it is gone, remove %s",
                        dir, h->pid, h->host, path);
}

/* Takes the name away from a holder that is gone. Of several that try, one succeeds: what was renamed
 * must be what was judged. */
static td_status remove_stale(const char *path, const char *judged, td_error *err) {
    char *aside = td_temp_path(path), *text = NULL;
    size_t n = 0;
    if (!aside)
        return td_error_nomem(err, "a path", strlen(path));
    td_status rc = TD_OK;
    if (rename(path, aside) != 0) {
        if (errno != ENOENT) /* else another one was faster, and the next look tells */
            rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot rename %s", path);
    } else {
        rc = td_file_read(aside, HOLDER_MAX_BYTES, TD_E_OUTPUT, &text, &n, err);
        if (rc == TD_OK && strcmp(text, judged) != 0 && link(aside, path) != 0)
            rc = td_error_set(err, TD_E_OUTPUT,
                              "two processes took %s at once: run the same command again", path);
        unlink(aside);
    }
    free(text);
    free(aside);
    return rc;
}

/* Creates the holder's file. *taken false: somebody else has it, or had until now. */
static td_status create_holder(const char *path, const td_process *self, bool *taken,
                               td_error *err) {
    char text[HOLDER_MAX_BYTES], *again = NULL;
    int fd;
    size_t n = 0;
    *taken = false;
    td_status rc = td_file_create(path, TD_CREATE_NEW, &fd, err);
    if (rc != TD_OK)
        return td_path_exists(path) ? TD_OK : rc;
    int len = snprintf(text, sizeof text, "%s %s %ld %llu\n", self->host, self->boot, self->pid,
                       self->start);
    rc = td_pwrite_all(fd, text, (size_t)len, 0, path, err);
    if (close(fd) != 0 && rc == TD_OK)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot write %s", path);
    if (rc == TD_OK)
        rc = td_file_read(path, HOLDER_MAX_BYTES, TD_E_OUTPUT, &again, &n, err);
    if (rc == TD_OK && strcmp(again, text) != 0)
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s: this file system lets two processes create one file; give each "
                          "worker an output.dir of its own",
                          path);
    *taken = rc == TD_OK;
    free(again);
    return rc;
}

/* out: the file's path, the caller's; NULL where it is only looked at. */
static td_status hold(const char *dir, bool write, char **out, td_error *err) {
    const td_process self = td_process_self();
    char *path = td_asprintf("%s/" TD_LOCK_HOLDER_NAME, dir), *text = NULL;
    td_status rc = path ? TD_OK : td_error_nomem(err, "a path", strlen(dir));
    bool taken = false;
    for (int tries = 0; rc == TD_OK && !taken && tries < 20; tries++) {
        td_process h;
        size_t n = 0;
        free(text);
        text = NULL;
        if (write)
            rc = create_holder(path, &self, &taken, err);
        if (rc != TD_OK || taken || !td_path_exists(path))
            break;
        rc = td_file_read(path, HOLDER_MAX_BYTES, TD_E_OUTPUT, &text, &n, err);
        if (rc != TD_OK)
            break;
        if (!parse_holder(text, &h))
            rc = in_use(dir, NULL, path, err);
        else if (td_process_same(&h, &self))
            taken = true;
        else if (!td_process_is_gone(&h, &self))
            rc = in_use(dir, &h, path, err);
        else if (!write)
            break;
        else
            rc = remove_stale(path, text, err);
    }
    if (rc == TD_OK && write && !taken)
        rc = in_use(dir, NULL, path, err);
    free(text);
    if (rc == TD_OK && taken && write)
        *out = path;
    else
        free(path);
    return rc;
}

/* --- locks ------------------------------------------------------------------------------------ */

/* Is the descriptor the lock file that `own` has open, too? */
static bool is_same_file(int fd, int own) {
    struct stat a, b;
    return fd >= 0 && fd != own && fstat(fd, &a) == 0 && fstat(own, &b) == 0 &&
           a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int lock_fd(int fd, int how) {
    int r;
    do
        r = flock(fd, how | LOCK_NB);
    while (r != 0 && errno == EINTR);
    return r == 0 ? 0 : errno;
}

static td_status locked_elsewhere(int fd, const char *dir, td_error *err) {
    char who[32] = "";
    ssize_t n = pread(fd, who, sizeof who - 1, 0);
    who[n > 0 ? strspn(who, "0123456789") : 0] = '\0';
    return td_error_set(err, TD_E_OUTPUT,
                        "%s is in use by another tdgen%s%s: wait until it ends, or choose another "
                        "output.dir",
                        dir, who[0] ? ", process " : "", who);
}

td_status td_folder_lock_write(const char *dir, int inherited_fd, td_folder_lock *out,
                               td_error *err) {
    char *path = td_asprintf("%s/" TD_LOCK_NAME, dir), who[32];
    int fd = -1;
    *out = TD_FOLDER_LOCK_NONE;
    td_status rc = path ? td_file_create(path, TD_CREATE_KEEP, &fd, err)
                        : td_error_nomem(err, "a path", strlen(dir));
    if (rc != TD_OK)
        goto done;
    if (is_same_file(inherited_fd, fd)) {
        /* The lock belongs to the open file, which the descriptor still holds open. */
        close(fd);
        fd = inherited_fd;
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    } else if (inherited_fd >= 0) {
        td_log_warn("%s: the lock that was handed over is not that of this folder", dir);
    }
    int e = lock_fd(fd, LOCK_EX);
    if (e == EWOULDBLOCK) {
        rc = locked_elsewhere(fd, dir, err);
        goto done;
    }
    if (e) {
        td_log_info("%s: this file system has no locks (%s); " TD_LOCK_HOLDER_NAME
                    " takes their place",
                    dir, strerror(e));
        rc = hold(dir, true, &out->holder, err);
        goto done;
    }
    /* The number only serves the message above; failing to write it does no harm. */
    int n = snprintf(who, sizeof who, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, who, (size_t)n, 0) != n)
        td_log_debug("%s: cannot note the process number", path);
    out->fd = fd;
    fd = -1;
done:
    if (fd >= 0)
        close(fd);
    free(path);
    return rc;
}

td_status td_folder_lock_read(const char *dir, td_folder_lock *out, td_error *err) {
    char *path = td_asprintf("%s/" TD_LOCK_NAME, dir);
    int fd = -1;
    *out = TD_FOLDER_LOCK_NONE;
    if (!path)
        return td_error_nomem(err, "a path", strlen(dir));
    td_status rc = TD_OK;
    if (td_path_exists(path))
        rc = td_file_open(path, TD_E_OUTPUT, &fd, NULL, err);
    if (rc != TD_OK || fd < 0)
        goto done;
    int e = lock_fd(fd, LOCK_SH);
    if (e == EWOULDBLOCK)
        rc = locked_elsewhere(fd, dir, err);
    else if (e)
        rc = hold(dir, false, NULL, err);
    else
        out->fd = fd;
    if (out->fd < 0)
        close(fd);
done:
    free(path);
    return rc;
}

void td_folder_lock_release(td_folder_lock *l) {
    if (l->fd >= 0)
        close(l->fd);
    if (l->holder)
        unlink(l->holder);
    free(l->holder);
    *l = TD_FOLDER_LOCK_NONE;
}
