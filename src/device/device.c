/* device.c - what is the same for every backend. */
#include "device/device.h"

void td_device_close(td_device *dev) {
    if (dev)
        dev->ops->close(dev);
}
