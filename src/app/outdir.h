/* outdir.h - what the output folder means to a run that is about to begin. */
#ifndef TDGEN_APP_OUTDIR_H
#define TDGEN_APP_OUTDIR_H

#include <stdio.h>
#include "app/job.h"

/* After td_job_plan, before any device is opened: is everything that the run is for there already?
 * Then every byte was read and proven, the dataset's rows compared and the teacher's files found
 * unchanged, nothing was written, a word is said on `out` (NULL: none) and *exit_code is that of the
 * execution that finished the folder. In doubt *complete is false, and the run finds out. */
td_status td_outdir_complete(td_job *j, FILE *out, bool *complete, int *exit_code, td_error *err);
/* For a dry run, likewise: which paths the run reads and writes, once names and variables are in place; what is there, what is left, and whether the run would be refused. */
void td_outdir_describe(td_job *j, FILE *out);
/* --restart: moves DIR aside, to DIR.old-DATE, and says so. Only a folder that a run made, and that no
 * process uses; one that is not there is fine. Nothing is deleted. */
td_status td_outdir_move_aside(const char *dir, td_error *err);

#endif
