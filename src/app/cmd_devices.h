/* cmd_devices.h - `tdgen devices`. */
#ifndef TDGEN_CMD_DEVICES_H
#define TDGEN_CMD_DEVICES_H

/* argv[0] is the command's name; returns the exit code. */
int td_cmd_devices(int argc, char **argv);

#endif
