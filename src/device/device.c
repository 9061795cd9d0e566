/* device.c - what is the same for every backend. */
#include "device/device.h"

#define NAME_OF(name, NAME, n_rows, how) #name,
static const char *const op_names[TD_OP_COUNT] = {"copy", TD_DEVICE_OPERATIONS(NAME_OF)};

const char *td_op_name(td_op op) {
    return op_names[op];
}

void td_device_close(td_device *dev) {
    if (dev)
        dev->ops->close(dev);
}
