/* file.c - see base/file.h. */
#include "base/file.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool td_path_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

td_status td_file_read(const char *path, size_t max_bytes, td_status code, char **data,
                       size_t *size_bytes, td_error *err) {
    td_status rc = TD_OK;
    char *buf = NULL;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return td_error_errno(err, code, errno, "cannot open %s", path);
    if (fstat(fd, &st) != 0) {
        rc = td_error_errno(err, code, errno, "cannot stat %s", path);
        goto done;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = td_error_set(err, code, "%s is not a regular file", path);
        goto done;
    }
    if ((uint64_t)st.st_size > max_bytes) {
        rc = td_error_set(err, code, "%s is too large: %lld bytes, at most %zu are accepted", path,
                          (long long)st.st_size, max_bytes);
        goto done;
    }
    size_t n = (size_t)st.st_size;
    buf = malloc(n + 1);
    if (!buf) {
        rc = td_error_nomem(err, path, n);
        goto done;
    }
    rc = td_pread_all(fd, buf, n, 0, path, err);
    if (rc != TD_OK) {
        if (err)
            err->code = code;
        rc = code;
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
    /* Some file systems refuse fsync on folders with EINVAL; they order renames themselves. */
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL))
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot sync the folder %s", dir);
    if (fd >= 0)
        close(fd);
    free(dir);
    return rc;
}

td_status td_file_write_atomic(const char *path, const void *data, size_t size_bytes, bool durable,
                               td_error *err) {
    td_status rc;
    char *tmp = td_asprintf("%s.tmp", path);
    if (!tmp)
        return td_error_nomem(err, "a path", strlen(path));
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot create %s", tmp);
        goto done;
    }
    rc = td_pwrite_all(fd, data, size_bytes, 0, tmp, err);
    if (rc == TD_OK && durable && fsync(fd) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot sync %s", tmp);
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
        if (mkdir(p, 0777) != 0 && (errno != EEXIST || stat(p, &st) != 0 || !S_ISDIR(st.st_mode)))
            rc = td_error_errno(err, TD_E_OUTPUT, errno == EEXIST ? ENOTDIR : errno,
                                "cannot create the folder %s", p);
        *s = c;
        if (c == '\0')
            break;
    }
    free(p);
    return rc;
}
