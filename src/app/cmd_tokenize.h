/* cmd_tokenize.h - the command `tdgen tokenize`. */
#ifndef TDGEN_CMD_TOKENIZE_H
#define TDGEN_CMD_TOKENIZE_H

/* argv[0] is "tokenize". Reads stdin, writes stdout, messages go to stderr. Returns the exit code
 * of the process. */
int td_cmd_tokenize(int argc, char **argv);

#endif
