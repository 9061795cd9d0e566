/* shim.c - a file system or a moment that is not at hand, for reliability.sh (LD_PRELOAD).
 *
 *   TD_SHIM_NOLOCK=1     flock fails, as on NFS without lockd
 *   TD_SHIM_PRIVATE=1    besides, the file that takes the lock's place is one of each process alone: two
 *                        writers are really at work in one folder
 *   TD_SHIM_NOTMP=1      O_TMPFILE fails, as on most parallel file systems
 *   TD_SHIM_NOMEMFD=1    memfd_create fails
 *   TD_SHIM_UNREADABLE=S opening a path that contains S fails with EMFILE
 *   TD_SHIM_SLOW=N       fsync takes N seconds
 *   TD_SHIM_SLOW_STATUS="N K"  the K-th rename to status.json takes N seconds: the first is of a heartbeat, the
 *                        later ones are the main thread's
 *   TD_SHIM_CUT=PATH     PATH is cut to 8192 bytes when the program first advises the kernel of a mapping
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef int (*open_fn)(const char *, int, ...);

static int open_as(const char *which, const char *path, int flags, int mode) {
    const char *unreadable = getenv("TD_SHIM_UNREADABLE");
    char own[4096];
    if (getenv("TD_SHIM_NOTMP") && (flags & O_TMPFILE) == O_TMPFILE) {
        errno = EOPNOTSUPP;
        return -1;
    }
    if (unreadable && strstr(path, unreadable)) {
        errno = EMFILE;
        return -1;
    }
    if (getenv("TD_SHIM_PRIVATE") && strstr(path, ".lock-holder")) {
        snprintf(own, sizeof own, "/tmp/tdgen-shim-%ld", (long)getpid());
        path = own;
    }
    open_fn real;
    *(void **)&real = dlsym(RTLD_NEXT, which);
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, int) : 0;
    va_end(ap);
    return open_as("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, int) : 0;
    va_end(ap);
    return open_as("open64", path, flags, mode);
}

int unlink(const char *path) {
    char own[4096];
    if (getenv("TD_SHIM_PRIVATE") && strstr(path, ".lock-holder")) {
        snprintf(own, sizeof own, "/tmp/tdgen-shim-%ld", (long)getpid());
        path = own;
    }
    return (int)syscall(SYS_unlink, path);
}

int fsync(int fd) {
    const char *s = getenv("TD_SHIM_SLOW");
    if (s)
        sleep((unsigned)atoi(s));
    return (int)syscall(SYS_fsync, fd);
}

int memfd_create(const char *name, unsigned flags) {
    if (getenv("TD_SHIM_NOMEMFD")) {
        errno = ENOMEM;
        return -1;
    }
    return (int)syscall(SYS_memfd_create, name, flags);
}

int flock(int fd, int op) {
    if (getenv("TD_SHIM_NOLOCK")) {
        errno = ENOLCK;
        return -1;
    }
    return (int)syscall(SYS_flock, fd, op);
}

int renameat(int a, const char *from, int b, const char *to) {
    static int count;
    int seconds, which;
    const char *s = getenv("TD_SHIM_SLOW_STATUS");
    if (s && sscanf(s, "%d %d", &seconds, &which) == 2 && strstr(to, "status.json") &&
        __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED) == which)
        sleep((unsigned)seconds);
    return (int)syscall(SYS_renameat, a, from, b, to);
}

int rename(const char *from, const char *to) {
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int madvise(void *p, size_t n, int advice) {
    static int done;
    const char *path = getenv("TD_SHIM_CUT");
    if (path && advice == MADV_WILLNEED && !done) {
        done = 1;
        if (truncate(path, 8192) != 0)
            abort();
    }
    return (int)syscall(SYS_madvise, p, n, advice);
}
