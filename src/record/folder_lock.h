/* folder_lock.h - one writer in an output folder.
 *
 * flock where the file system has it. Where it has none (NFS without lockd, some parallel file systems
 * and object mounts) a file that only one process can create takes its place: DIR/.lock-holder, with
 * host, boot, process and start time. A holder of this host that is gone is replaced; one of another
 * host cannot be asked, so the message says what to remove.
 */
#ifndef TDGEN_RECORD_FOLDER_LOCK_H
#define TDGEN_RECORD_FOLDER_LOCK_H

#include <stdbool.h>
#include "base/status.h"

#define TD_LOCK_NAME ".lock"
#define TD_LOCK_HOLDER_NAME ".lock-holder"

typedef struct td_folder_lock {
    int fd;       /* -1: none, or the file system has no locks */
    char *holder; /* path of the file that is ours; NULL: flock holds, or only reading */
} td_folder_lock;

#define TD_FOLDER_LOCK_NONE ((td_folder_lock){.fd = -1})

/* For writing. inherited_fd: a descriptor that may hold the lock already (the program started anew),
 * else -1; it is taken over. TD_E_OUTPUT when another process has the folder. */
td_status td_folder_lock_write(const char *dir, int inherited_fd, td_folder_lock *out,
                               td_error *err);
/* For reading: no writer may be at work. A folder that was never locked needs no lock. */
td_status td_folder_lock_read(const char *dir, td_folder_lock *out, td_error *err);
void td_folder_lock_release(td_folder_lock *l);

#endif
