/* gpu_nvml.c - what NVIDIA's management library knows, where it is there.
 *
 * The library comes with the driver, has no header in the toolkit here, and is optional: it is
 * opened at run time, its few functions are declared below as its API reference gives them (their
 * ABI is stable since NVML 5). Devices are found by PCI id, so CUDA's numbering does not matter.
 * Critical Xid errors come as events; they are read without waiting whenever health is asked for.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "gpu/gpu.h"

typedef struct nvml_device *nvml_device;
typedef struct nvml_event_set *nvml_event_set;
typedef struct nvml_memory {
    unsigned long long total, free, used;
} nvml_memory;
typedef struct nvml_utilization {
    unsigned gpu, memory;
} nvml_utilization;
typedef struct nvml_event_data {
    nvml_device device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} nvml_event_data;

enum {
    NVML_SUCCESS = 0,
    NVML_TEMPERATURE_GPU = 0,
    NVML_CLOCK_SM = 1,
    NVML_ECC_UNCORRECTED = 1,
    NVML_ECC_VOLATILE = 0,
    NVML_EVENT_XID = 8
};

static struct {
    bool ok;
    int (*init)(void);
    int (*by_pci)(const char *, nvml_device *);
    int (*memory)(nvml_device, nvml_memory *);
    int (*utilization)(nvml_device, nvml_utilization *);
    int (*temperature)(nvml_device, int, unsigned *);
    int (*power)(nvml_device, unsigned *);
    int (*power_limit)(nvml_device, unsigned *);
    int (*clock)(nvml_device, int, unsigned *);
    int (*max_clock)(nvml_device, int, unsigned *);
    int (*ecc)(nvml_device, int, int, unsigned long long *);
    int (*throttle)(nvml_device, unsigned long long *);
    int (*event_set_create)(nvml_event_set *);
    int (*register_events)(nvml_device, unsigned long long, nvml_event_set);
    int (*event_wait)(nvml_event_set, nvml_event_data *, unsigned);
    int (*by_uuid)(const char *, nvml_device *);
} nvml;

static pthread_once_t once = PTHREAD_ONCE_INIT;
/* Xid events of the cards seen so far; protected by the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static nvml_event_set events;
static struct {
    nvml_device device;
    unsigned long long last_xid;
} watched[64];
static int n_watched;

static void load(void) {
    const struct {
        void **function;
        const char *name;
    } symbols[] = {
        {(void **)&nvml.init, "nvmlInit_v2"},
        {(void **)&nvml.by_pci, "nvmlDeviceGetHandleByPciBusId_v2"},
        {(void **)&nvml.memory, "nvmlDeviceGetMemoryInfo"},
        {(void **)&nvml.utilization, "nvmlDeviceGetUtilizationRates"},
        {(void **)&nvml.temperature, "nvmlDeviceGetTemperature"},
        {(void **)&nvml.power, "nvmlDeviceGetPowerUsage"},
        {(void **)&nvml.power_limit, "nvmlDeviceGetEnforcedPowerLimit"},
        {(void **)&nvml.clock, "nvmlDeviceGetClockInfo"},
        {(void **)&nvml.max_clock, "nvmlDeviceGetMaxClockInfo"},
        {(void **)&nvml.ecc, "nvmlDeviceGetTotalEccErrors"},
        {(void **)&nvml.throttle, "nvmlDeviceGetCurrentClocksThrottleReasons"},
        {(void **)&nvml.event_set_create, "nvmlEventSetCreate"},
        {(void **)&nvml.register_events, "nvmlDeviceRegisterEvents"},
        {(void **)&nvml.event_wait, "nvmlEventSetWait_v2"},
        {(void **)&nvml.by_uuid, "nvmlDeviceGetHandleByUUID"},
    };
    void *lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; lib && i < sizeof symbols / sizeof symbols[0]; i++)
        if (!(*symbols[i].function = dlsym(lib, symbols[i].name)))
            return;
    nvml.ok = lib && nvml.init() == NVML_SUCCESS;
    if (nvml.ok && nvml.event_set_create(&events) != NVML_SUCCESS)
        events = NULL;
}

static bool find(const td_device_info *info, nvml_device *out) {
    pthread_once(&once, load);
    return nvml.ok && nvml.by_pci(info->pci, out) == NVML_SUCCESS;
}

void td_gpu_nvml_uuid(char *uuid) {
    nvml_device dev;
    char slice[48];
    pthread_once(&once, load);
    if (!nvml.ok || nvml.by_uuid(uuid, &dev) == NVML_SUCCESS)
        return;
    snprintf(slice, sizeof slice, "MIG-%.43s", uuid + 4);
    if (nvml.by_uuid(slice, &dev) == NVML_SUCCESS)
        memcpy(uuid, "MIG-", 4);
}

bool td_gpu_nvml_memory(const td_device_info *info, uint64_t *free_bytes) {
    nvml_device dev;
    nvml_memory m;
    if (!find(info, &dev) || nvml.memory(dev, &m) != NVML_SUCCESS)
        return false;
    *free_bytes = m.free;
    return true;
}

/* The latest Xid of the card since it was first looked at. */
static int64_t last_xid(nvml_device dev) {
    nvml_event_data e;
    int64_t xid = 0;
    int at = 0;
    pthread_mutex_lock(&lock);
    while (at < n_watched && watched[at].device != dev)
        at++;
    if (at == n_watched && events && at < (int)(sizeof watched / sizeof watched[0]) &&
        nvml.register_events(dev, NVML_EVENT_XID, events) == NVML_SUCCESS)
        watched[n_watched++].device = dev;
    while (events && nvml.event_wait(events, &e, 0) == NVML_SUCCESS)
        for (int i = 0; i < n_watched; i++)
            if (watched[i].device == e.device)
                watched[i].last_xid = e.data;
    if (at < n_watched)
        xid = (int64_t)watched[at].last_xid;
    pthread_mutex_unlock(&lock);
    return xid;
}

static void name_throttle(unsigned long long reasons, char *out, size_t out_size) {
    static const struct {
        unsigned long long bits;
        const char *name;
    } names[] = {{0x4, "power cap"},
                 {0x8 | 0x80, "hardware slowdown"},
                 {0x20 | 0x40, "thermal"},
                 {0x10, "sync boost"}};
    size_t len = 0;
    out[0] = '\0';
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (reasons & names[i].bits && len < out_size)
            len +=
                (size_t)snprintf(out + len, out_size - len, "%s%s", len ? ", " : "", names[i].name);
}

void td_gpu_nvml_health(td_device *dev, td_device_health *out) {
    nvml_device n;
    nvml_utilization u;
    unsigned v;
    unsigned long long big;
    *out = (td_device_health){.utilization_percent = -1,
                              .temperature_c = -1,
                              .sm_clock_mhz = -1,
                              .sm_clock_max_mhz = -1,
                              .power_w = -1,
                              .power_limit_w = -1,
                              .ecc_uncorrected = -1};
    if (!find(&dev->info, &n))
        return;
    out->known = true;
    if (nvml.utilization(n, &u) == NVML_SUCCESS)
        out->utilization_percent = (int32_t)u.gpu;
    if (nvml.temperature(n, NVML_TEMPERATURE_GPU, &v) == NVML_SUCCESS)
        out->temperature_c = (int32_t)v;
    if (nvml.power(n, &v) == NVML_SUCCESS)
        out->power_w = 1e-3 * v;
    if (nvml.power_limit(n, &v) == NVML_SUCCESS)
        out->power_limit_w = 1e-3 * v;
    if (nvml.clock(n, NVML_CLOCK_SM, &v) == NVML_SUCCESS)
        out->sm_clock_mhz = (int32_t)v;
    if (nvml.max_clock(n, NVML_CLOCK_SM, &v) == NVML_SUCCESS)
        out->sm_clock_max_mhz = (int32_t)v;
    if (nvml.ecc(n, NVML_ECC_UNCORRECTED, NVML_ECC_VOLATILE, &big) == NVML_SUCCESS)
        out->ecc_uncorrected = (int64_t)big;
    if (nvml.throttle(n, &big) == NVML_SUCCESS)
        name_throttle(big, out->throttle, sizeof out->throttle);
    out->last_xid = last_xid(n);
}
