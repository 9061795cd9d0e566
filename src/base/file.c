/* file.c - see base/file.h. */
#include "base/file.h"
#include "base/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct td_dir {
    DIR *dir;
    char *path;
    td_status code;
};

bool td_path_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

/* --- opening ---------------------------------------------------------------------------------- */

/* O_NONBLOCK only keeps the opening of a FIFO from waiting; it says nothing to a regular file. */
static td_status check_regular(int fd, const char *path, td_status code, uint64_t *size_bytes,
                               td_error *err) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return td_error_errno(err, code, errno, "cannot stat %s", path);
    if (!S_ISREG(st.st_mode))
        return td_error_set(err, code, "%s is not a regular file", path);
    if (size_bytes)
        *size_bytes = (uint64_t)st.st_size;
    return TD_OK;
}

td_status td_file_open(const char *path, td_status code, int *fd, uint64_t *size_bytes,
                       td_error *err) {
    int f = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (f < 0)
        return td_error_errno(err, code, errno, "cannot open %s", path);
    td_status rc = check_regular(f, path, code, size_bytes, err);
    if (rc != TD_OK)
        close(f);
    else
        *fd = f;
    return rc;
}

td_status td_file_create(const char *path, td_create how, int *fd, td_error *err) {
    const int more = how == TD_CREATE_NEW ? O_EXCL : how == TD_CREATE_APPEND ? O_APPEND : 0;
    int f =
        open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | more, 0666);
    if (f < 0 && errno == ELOOP)
        return td_error_set(err, TD_E_OUTPUT,
                            "%s is a symbolic link, and nothing is written through one: remove it",
                            path);
    if (f < 0)
        return td_error_errno(err, TD_E_OUTPUT, errno, "cannot create %s", path);
    td_status rc = check_regular(f, path, TD_E_OUTPUT, NULL, err);
    if (rc != TD_OK)
        close(f);
    else
        *fd = f;
    return rc;
}

/* --- temporary names -------------------------------------------------------------------------- */

enum { TAG_DIGITS = 16 };

static uint32_t g_tag; /* of this process; written once */

static void make_tag(void) {
    if (getrandom(&g_tag, sizeof g_tag, GRND_NONBLOCK) != (ssize_t)sizeof g_tag) {
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        g_tag = (uint32_t)ts.tv_nsec ^ (uint32_t)getpid() << 12;
    }
}

char *td_temp_path(const char *path) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static atomic_uint n;
    pthread_once(&once, make_tag);
    return td_asprintf("%s.tmp-%08x%08x", path, (unsigned)g_tag, atomic_fetch_add(&n, 1));
}

bool td_temp_is_name(const char *name) {
    size_t n = strlen(name);
    if (n > 4 && strcmp(name + n - 4, ".tmp") == 0)
        return true;
    return n > 5 + TAG_DIGITS && strncmp(name + n - TAG_DIGITS - 5, ".tmp-", 5) == 0 &&
           strspn(name + n - TAG_DIGITS, "0123456789abcdef") == TAG_DIGITS;
}

td_status td_temp_check(int fd, const char *path, td_error *err) {
    struct stat a, b;
    if (fstat(fd, &a) != 0)
        return td_error_errno(err, TD_E_OUTPUT, errno, "cannot stat %s", path);
    const bool there = lstat(path, &b) == 0;
    if (!there && errno != ENOENT)
        return td_error_errno(err, TD_E_OUTPUT, errno, "cannot stat %s", path);
    if (!there || a.st_dev != b.st_dev || a.st_ino != b.st_ino)
        return td_error_set(err, TD_E_OUTPUT,
                            "%s was removed or replaced while it was written: another process "
                            "writes into its folder; end it, then run the same command again",
                            path);
    return TD_OK;
}

/* --- folders ---------------------------------------------------------------------------------- */

td_status td_dir_open(const char *path, td_status code, td_dir **out, td_error *err) {
    td_dir *d = td_calloc(1, sizeof *d);
    if (!d || !(d->path = td_strdup(path))) {
        free(d);
        return td_error_nomem(err, path, sizeof *d);
    }
    d->code = code;
    d->dir = opendir(path);
    if (!d->dir) {
        int e = errno;
        td_dir_close(d);
        return td_error_errno(err, code, e, "cannot read the folder %s", path);
    }
    *out = d;
    return TD_OK;
}

td_status td_dir_next(td_dir *d, const char **name, td_error *err) {
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d->dir);
        if (!e && errno)
            return td_error_errno(err, d->code, errno, "cannot read the folder %s", d->path);
        *name = e ? e->d_name : NULL;
        if (!e || (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0))
            return TD_OK;
    }
}

int td_dir_fd(const td_dir *d) {
    return dirfd(d->dir);
}

void td_dir_close(td_dir *d) {
    if (!d)
        return;
    if (d->dir)
        closedir(d->dir);
    free(d->path);
    free(d);
}

/* --- reading and writing ---------------------------------------------------------------------- */

bool td_file_is_lfs_pointer(const void *head, size_t n) {
    static const char first[] = "version https://git-lfs";
    return n >= sizeof first - 1 && memcmp(head, first, sizeof first - 1) == 0;
}

td_status td_file_lfs_error(const char *path, td_status code, td_error *err) {
    return td_error_set(err, code,
                        "%s is a Git LFS pointer, not the file itself: run \"git lfs pull\" in its "
                        "repository, or download the file",
                        path);
}

td_status td_file_read(const char *path, size_t max_bytes, td_status code, char **data,
                       size_t *size_bytes, td_error *err) {
    char *buf = NULL;
    uint64_t size;
    int fd;
    td_status rc = td_file_open(path, code, &fd, &size, err);
    if (rc != TD_OK)
        return rc;
    if (size > max_bytes) {
        rc = td_error_set(err, code, "%s is too large: %llu bytes, at most %zu are accepted", path,
                          (unsigned long long)size, max_bytes);
        goto done;
    }
    size_t n = (size_t)size;
    buf = malloc(n + 1);
    if (!buf) {
        rc = td_error_nomem(err, path, n);
        goto done;
    }
    rc = td_pread_all(fd, buf, n, 0, path, err);
    if (rc != TD_OK) {
        rc = code == TD_E_VERIFY ? TD_E_OUTPUT : code; /* it could not be looked at */
        if (err)
            err->code = rc;
        goto done;
    }
    if (td_file_is_lfs_pointer(buf, n)) {
        rc = td_file_lfs_error(path, code, err);
        goto done;
    }
    buf[n] = '\0';
    *data = buf;
    *size_bytes = n;
    buf = NULL;
done:
    free(buf);
    close(fd);
    return rc;
}

td_status td_pwrite_all(int fd, const void *data, size_t size_bytes, uint64_t offset,
                        const char *path, td_error *err) {
    const char *p = data;
    while (size_bytes) {
        ssize_t n = pwrite(fd, p, size_bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return td_error_errno(err, TD_E_OUTPUT, n < 0 ? errno : EIO, "cannot write %s", path);
        p += n;
        offset += (uint64_t)n;
        size_bytes -= (size_t)n;
    }
    return TD_OK;
}

td_status td_pread_all(int fd, void *data, size_t size_bytes, uint64_t offset, const char *path,
                       td_error *err) {
    char *p = data;
    while (size_bytes) {
        ssize_t n = pread(fd, p, size_bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return td_error_errno(err, TD_E_OUTPUT, errno, "cannot read %s", path);
        if (n == 0)
            return td_error_set(err, TD_E_OUTPUT, "%s ended early: it is shorter than expected",
                                path);
        p += n;
        offset += (uint64_t)n;
        size_bytes -= (size_t)n;
    }
    return TD_OK;
}

td_status td_file_sync_dir_of(const char *path, td_error *err) {
    char *dir = td_strdup(path);
    if (!dir)
        return td_error_nomem(err, "a path", strlen(path));
    char *slash = strrchr(dir, '/');
    if (!slash)
        strcpy(dir, path[0] ? "." : "");
    else if (slash == dir)
        dir[1] = '\0';
    else
        *slash = '\0';
    td_status rc = TD_OK;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* The parent of a new folder may let us in and not let us read it: its owner's to sync. */
    if (fd < 0 && errno == EACCES)
        goto done;
    /* Some file systems refuse fsync on folders with EINVAL; they order renames themselves. */
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL))
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot sync the folder %s", dir);
    if (fd >= 0)
        close(fd);
done:
    free(dir);
    return rc;
}

td_status td_file_write_atomic(const char *path, const void *data, size_t size_bytes, bool durable,
                               td_error *err) {
    int fd;
    char *tmp = td_temp_path(path);
    if (!tmp)
        return td_error_nomem(err, "a path", strlen(path));
    td_status rc = td_file_create(tmp, TD_CREATE_NEW, &fd, err);
    if (rc != TD_OK)
        goto done;
    rc = td_pwrite_all(fd, data, size_bytes, 0, tmp, err);
    if (rc == TD_OK && durable && fsync(fd) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot sync %s", tmp);
    if (rc == TD_OK)
        rc = td_temp_check(fd, tmp, err);
    if (close(fd) != 0 && rc == TD_OK)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot close %s", tmp);
    if (rc == TD_OK && rename(tmp, path) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot rename %s to %s", tmp, path);
    if (rc != TD_OK)
        unlink(tmp);
    else if (durable)
        rc = td_file_sync_dir_of(path, err);
done:
    free(tmp);
    return rc;
}

td_status td_mkdir_p(const char *path, td_error *err) {
    char *p = td_strdup(path);
    if (!p)
        return td_error_nomem(err, "a path", strlen(path));
    td_status rc = TD_OK;
    for (char *s = p + 1; rc == TD_OK; s++) {
        if (*s != '/' && *s != '\0')
            continue;
        char c = *s;
        *s = '\0';
        struct stat st;
        if (mkdir(p, 0777) == 0) {
            rc = td_file_sync_dir_of(p, err);
            if (rc != TD_OK)
                td_error_prefix(err, "the new folder %s", p);
        } else if (errno != EEXIST || stat(p, &st) != 0 || !S_ISDIR(st.st_mode)) {
            rc = td_error_errno(err, TD_E_OUTPUT, errno == EEXIST ? ENOTDIR : errno,
                                "cannot create the folder %s", p);
        }
        *s = c;
        if (c == '\0')
            break;
    }
    free(p);
    return rc;
}
