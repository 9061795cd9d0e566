/* merge_mark.c - see record/merge_mark.h. */
#include "record/merge_mark.h"

#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/memory.h"

td_status td_merge_check_unfinished(const char *dir, td_error *err) {
    char *path = td_asprintf("%s/%s", dir, TD_MERGE_MARK_NAME);
    if (!path)
        return td_error_nomem(err, "a path", strlen(dir));
    td_status rc = TD_OK;
    if (td_path_exists(path))
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s is half a merge (it has a " TD_MERGE_MARK_NAME
                          ", which says of which folders): run the same tdgen merge again to "
                          "complete it, or remove the folder",
                          dir);
    free(path);
    return rc;
}
