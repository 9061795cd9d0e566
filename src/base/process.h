/* process.h - which process it was, told apart from every other one, also later and elsewhere. */
#ifndef TDGEN_BASE_PROCESS_H
#define TDGEN_BASE_PROCESS_H

#include <stdbool.h>

/* No two processes have all four. start (field 22 of /proc/PID/stat) tells a process from a later one
 * with its number, and stays over execve. */
typedef struct td_process {
    char host[96], boot[48]; /* printable, without blanks; "?" where the system does not say */
    long pid;
    unsigned long long start;
} td_process;

td_process td_process_self(void);
bool td_process_same(const td_process *a, const td_process *b);
/* Of a process of this host: it ended, or the host was started anew. False for those of other hosts,
 * which cannot be asked. */
bool td_process_is_gone(const td_process *p, const td_process *self);

#endif
