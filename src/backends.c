/* backends.c - which kinds of devices this build has: the one file that knows, so that neither the
 * device room nor a backend needs to know the others. */
#include <stdio.h>
#include <string.h>

#include "cpu/cpu.h"
#include "device/device.h"
#ifdef TDGEN_CUDA
#include "gpu/gpu.h"
#endif

typedef struct backend {
    const char *name; /* what enumerations and device names ("cuda:3") begin with */
    td_status (*enumerate)(int32_t n_cpu_devices, td_device_info **out, int32_t *n_out,
                           td_error *err);
    td_status (*open)(const td_device_info *info, td_device **out, td_error *err);
    const char *(*version)(void);   /* as --version prints it */
    const char *(*numbering)(void); /* td_device_numbering; NULL: nothing to say */
} backend;

static const char *cpu_version(void) {
    return "cpu";
}

#ifdef TDGEN_CUDA
static td_status enumerate_gpus(int32_t n_cpu_devices, td_device_info **out, int32_t *n_out,
                                td_error *err) {
    (void)n_cpu_devices;
    return td_gpu_enumerate(out, n_out, err);
}
#else
/* Built for CPU devices: this machine offers no others. */
static td_status enumerate_gpus(int32_t n_cpu_devices, td_device_info **out, int32_t *n_out,
                                td_error *err) {
    (void)n_cpu_devices;
    (void)err;
    *out = NULL;
    *n_out = 0;
    return TD_OK;
}
#endif

static const backend BACKENDS[] = {
    {"cpu", td_cpu_enumerate, td_cpu_open, cpu_version, NULL},
#ifdef TDGEN_CUDA
    {"cuda", enumerate_gpus, td_gpu_open, td_gpu_backend_version, td_gpu_numbering},
#else
    {"cuda", enumerate_gpus, NULL, NULL, NULL},
#endif
};
enum { N_BACKENDS = sizeof BACKENDS / sizeof BACKENDS[0] };

const char *td_device_backends(void) {
    static char text[64]; /* the same bytes at every call */
    size_t n = 0;
    char made[sizeof text] = "";
    for (int i = 0; i < N_BACKENDS; i++)
        if (BACKENDS[i].open && n < sizeof made)
            n += (size_t)snprintf(made + n, sizeof made - n, "%s%s", n ? " " : "",
                                  BACKENDS[i].version());
    if (strcmp(made, text) != 0)
        memcpy(text, made, sizeof text);
    return text;
}

const char *td_device_numbering(const char *name) {
    for (int i = 0; i < N_BACKENDS; i++)
        if (strcmp(name, BACKENDS[i].name) == 0 && BACKENDS[i].numbering)
            return BACKENDS[i].numbering();
    return "";
}

td_status td_device_enumerate(const char *name, int32_t n_cpu_devices, td_device_info **out,
                              int32_t *n_out, td_error *err) {
    for (int i = 0; i < N_BACKENDS; i++)
        if (strcmp(name, BACKENDS[i].name) == 0)
            return BACKENDS[i].enumerate(n_cpu_devices, out, n_out, err);
    return td_error_set(err, TD_E_CONFIG, "no device backend is called '%s'; this build has: %s",
                        name, td_device_backends());
}

td_status td_device_open(const td_device_info *info, td_device **out, td_error *err) {
    for (int i = 0; i < N_BACKENDS; i++) {
        size_t n = strlen(BACKENDS[i].name);
        if (BACKENDS[i].open && strncmp(info->name, BACKENDS[i].name, n) == 0 &&
            info->name[n] == ':')
            return BACKENDS[i].open(info, out, err);
    }
    return td_error_set(err, TD_E_DEVICE, "%.31s: this build runs %s devices only", info->name,
                        td_device_backends());
}
