/* device.c - what is the same for every backend. */
#include "device/device.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define NAME_OF(name, NAME, n_rows, how) #name,
static const char *const op_names[TD_OP_COUNT] = {"copy", TD_DEVICE_OPERATIONS(NAME_OF)};

const char *td_op_name(td_op op) {
    return op_names[op];
}

void td_device_close(td_device *dev) {
    if (dev)
        dev->ops->close(dev);
}

/* --- by name ---------------------------------------------------------------------------------- */

/* Behind "GPU-" or "MIG-": a driver may tell a slice's UUID under either. */
static const char *hex_of(const char *uuid) {
    return strncasecmp(uuid, "GPU-", 4) == 0 || strncasecmp(uuid, "MIG-", 4) == 0 ? uuid + 4 : uuid;
}

static bool is_called(const td_device_info *d, const char *name) {
    if (strncasecmp(name, "GPU-", 4) == 0 || strncasecmp(name, "MIG-", 4) == 0)
        return d->uuid[0] && strncasecmp(hex_of(d->uuid), hex_of(name), strlen(hex_of(name))) == 0;
    /* A PCI id without a domain is that of any. */
    const char *pci = strchr(name, ':') != strrchr(name, ':') ? d->pci : strchr(d->pci, ':');
    pci = pci && *pci == ':' ? pci + 1 : pci;
    return pci && strcasecmp(pci, name) == 0;
}

td_status td_device_find(const td_device_info *info, int32_t n, const char *name, int32_t *out,
                         td_error *err) {
    int32_t found = -1;
    for (int32_t i = 0; i < n; i++) {
        if (!is_called(&info[i], name))
            continue;
        if (found >= 0)
            return td_error_set(err, TD_E_CONFIG,
                                "%s is both %s (%s, PCI %s) and %s (%s, PCI %s): write more of it",
                                name, info[found].name, info[found].uuid, info[found].pci,
                                info[i].name, info[i].uuid, info[i].pci);
        found = i;
    }
    if (found < 0)
        return td_error_set(err, TD_E_DEVICE,
                            "this machine shows no GPU %s; tdgen devices lists those that there "
                            "are, with UUID and PCI id%s",
                            name,
                            strncmp(name, "MIG-", 4) == 0
                                ? " (CUDA shows one slice to a process: run one for each)"
                                : "");
    *out = info[found].index;
    return TD_OK;
}
