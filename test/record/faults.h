/* faults.h - system calls that fail. The linker's --wrap sends the calls of the code under test
 * through the functions below, so nothing in the program knows of it. Each counts; the chosen one
 * ends the process (before it acts, or half way through a write), or fails as on a full disk. For
 * one file of a program, which wraps further calls of its own. */
#ifndef TDGEN_TEST_RECORD_FAULTS_H
#define TDGEN_TEST_RECORD_FAULTS_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

enum fault { FAULT_NONE, FAULT_DIE, FAULT_DIE_HALF, FAULT_ENOSPC, FAULT_SHORT };
enum { DIED = 99 };

static enum fault fault;
static long countdown; /* the call that meets the fault, from 1 */

/* Is this the call? */
static inline bool hit(void) {
    return fault != FAULT_NONE && --countdown == 0;
}

/* The fault of a call that moves no bytes; true = it must fail with errno set. */
static inline bool plain_fault(void) {
    if (!hit())
        return false;
    if (fault == FAULT_DIE || fault == FAULT_DIE_HALF)
        _exit(DIED);
    if (fault == FAULT_SHORT)
        return false;
    errno = ENOSPC;
    return true;
}

#define WRAP(type, name, params, args, failure)                                                    \
    type __real_##name params;                                                                     \
    type __wrap_##name params;                                                                     \
    type __wrap_##name params {                                                                    \
        return plain_fault() ? (failure) : __real_##name args;                                     \
    }
WRAP(int, fsync, (int fd), (fd), -1)
WRAP(int, rename, (const char *from, const char *to), (from, to), -1)
WRAP(int, unlink, (const char *path), (path), -1)

/* A write of n bytes may also end half way: HALF writes them. A short write is no error, the caller
 * goes on. */
#define WRAP_WRITE(name, params, args, half)                                                       \
    ssize_t __real_##name params;                                                                  \
    ssize_t __wrap_##name params;                                                                  \
    ssize_t __wrap_##name params {                                                                 \
        if (!hit())                                                                                \
            return __real_##name args;                                                             \
        if (fault == FAULT_DIE_HALF || fault == FAULT_SHORT) {                                     \
            ssize_t r = __real_##name half;                                                        \
            if (fault == FAULT_SHORT)                                                              \
                return r;                                                                          \
        }                                                                                          \
        if (fault != FAULT_ENOSPC)                                                                 \
            _exit(DIED);                                                                           \
        errno = ENOSPC;                                                                            \
        return -1;                                                                                 \
    }
WRAP_WRITE(pwrite, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at),
           (fd, p, n > 1 ? n / 2 : n, at))

#endif
