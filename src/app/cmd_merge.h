/* cmd_merge.h - tdgen merge OUT DIR... */
#ifndef TDGEN_CMD_MERGE_H
#define TDGEN_CMD_MERGE_H

/* argv[0] is the command's name. Returns the exit code of the process; errors are on stderr. */
int td_cmd_merge(int argc, char **argv);

#endif
