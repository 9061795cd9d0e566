/* device.c - the registry: which backends exist. The only file that asks what was compiled in. */
#include "tdgen/device.h"

#include <string.h>

#include <stdio.h>

#include "cpu/cpu.h"
#ifdef TDGEN_CUDA
#include "gpu/gpu.h"
#endif

const char *td_device_backends(void) {
#ifdef TDGEN_CUDA
    static char text[48];
    snprintf(text, sizeof text, "cpu %s", td_gpu_backend_version());
    return text;
#else
    return "cpu";
#endif
}

td_status td_device_enumerate(const char *backend, int32_t n_cpu_devices, td_device_info **out,
                              int32_t *n_out, td_error *err) {
    if (!strcmp(backend, "cpu"))
        return td_cpu_enumerate(n_cpu_devices, out, n_out, err);
    if (!strcmp(backend, "cuda")) {
#ifdef TDGEN_CUDA
        return td_gpu_enumerate(out, n_out, err);
#endif
        *out = NULL; /* built for CPU devices: this machine offers none */
        *n_out = 0;
        return TD_OK;
    }
    return td_error_set(err, TD_E_CONFIG, "no device backend is called '%s'; this build has: %s",
                        backend, td_device_backends());
}

td_status td_device_open(const td_device_info *info, td_device **out, td_error *err) {
    if (!strncmp(info->name, "cpu:", 4))
        return td_cpu_open(info, out, err);
#ifdef TDGEN_CUDA
    if (!strncmp(info->name, "cuda:", 5))
        return td_gpu_open(info, out, err);
#endif
    return td_error_set(err, TD_E_DEVICE, "%.31s: this build runs %s devices only", info->name,
                        td_device_backends());
}

void td_device_close(td_device *dev) {
    if (dev)
        dev->ops->close(dev);
}
