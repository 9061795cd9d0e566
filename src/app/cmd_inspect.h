/* cmd_inspect.h - tdgen inspect DIR */
#ifndef TDGEN_CMD_INSPECT_H
#define TDGEN_CMD_INSPECT_H

/* argv[0] is the command's name. Returns the exit code of the process; errors are on stderr. */
int td_cmd_inspect(int argc, char **argv);

#endif
