/* cmd_verify.h - tdgen verify DIR */
#ifndef TDGEN_CMD_VERIFY_H
#define TDGEN_CMD_VERIFY_H

/* argv[0] is the command's name. Returns the exit code of the process; errors are on stderr. */
int td_cmd_verify(int argc, char **argv);

#endif
