/* gpu_device.c - enumeration, errors, opening, and the table of the CUDA backend. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu.h"
#include "base/memory.h"

/* Pretend or real, the oldest chip that the kernels are written for. */
enum { MIN_COMPUTE_CAPABILITY = 70 };

/* --- errors ----------------------------------------------------------------------------------- */

/* Set once a device of the process is lost; read before every call. The text is written before. */
static atomic_bool lost;
static pthread_mutex_t lost_lock = PTHREAD_MUTEX_INITIALIZER;
static td_error lost_error;
static int32_t lost_index = -1; /* of the device that reported it first */

enum {
    CONTAINED = 226,
    TENSOR_MEMORY_LEAK = 721,
    MPS_CLIENT_TERMINATED = 810,
    EXTERNAL_DEVICE = 911
};

/* Errors after which CUDA says that the process must be ended (cuda_runtime_api.h). */
static bool is_sticky(cudaError_t cu) {
    switch (cu) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorUnknown:
        return true;
    default: /* not in the headers of every toolkit that builds this */
        return (int)cu == CONTAINED || (int)cu == TENSOR_MEMORY_LEAK ||
               (int)cu == MPS_CLIENT_TERMINATED || (int)cu == EXTERNAL_DEVICE;
    }
}

td_status td_gpu_check(cudaError_t cu, const td_device_info *info, const char *call,
                       td_error *err) {
    if (cu == cudaSuccess)
        return TD_OK;
    (void)cudaGetLastError();
    const bool sticky = is_sticky(cu);
    const char *advice = "";
    if (cu == cudaErrorNoKernelImageForDevice || cu == cudaErrorInvalidDeviceFunction)
        advice = "; this build has no kernels for this chip: build with its architecture in "
                 "TDGEN_CUDA_ARCHS (a V100 needs a CUDA 12 toolkit)";
    else if (cu == cudaErrorInsufficientDriver)
        advice = "; the driver is older than this build's CUDA: update it, or build with an older "
                 "toolkit";
    td_status rc = td_error_set(err,
                                cu == cudaErrorMemoryAllocation ? TD_E_DEVICE_OOM
                                : sticky                        ? TD_E_DEVICE_LOST
                                                                : TD_E_DEVICE,
                                "%s (%s): %s failed: %s (%s)%s", info->name, info->model, call,
                                cudaGetErrorString(cu), cudaGetErrorName(cu), advice);
    if (sticky) {
        pthread_mutex_lock(&lost_lock);
        if (!atomic_load(&lost)) {
            td_error_set(&lost_error, TD_E_DEVICE_LOST, "%s (%s) was lost: %s failed: %s (%s)",
                         info->name, info->model, call, cudaGetErrorString(cu),
                         cudaGetErrorName(cu));
            lost_index = info->index;
            atomic_store(&lost, true);
        }
        pthread_mutex_unlock(&lost_lock);
    }
    return rc;
}

bool td_gpu_faulted(const td_device *dev) {
    return atomic_load(&lost) && lost_index == dev->info.index;
}

td_status td_gpu_use(const td_gpu_device *d, td_error *err) {
    if (atomic_load_explicit(&lost, memory_order_acquire)) {
        if (err)
            *err = lost_error; /* not written any more */
        return TD_E_DEVICE_LOST;
    }
    return td_gpu_check(cudaSetDevice(d->base.info.index), &d->base.info, "cudaSetDevice", err);
}

/* --- enumeration ------------------------------------------------------------------------------ */

const char *td_gpu_backend_version(void) {
    static char text[32];
    snprintf(text, sizeof text, "cuda-%d.%d", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return text;
}

/* Dense 16-bit products of one multiprocessor in a cycle, in FLOP with f32 sums; NVIDIA's
 * architecture whitepapers (V100, Turing, A100, GA102, AD102, H100, Blackwell). GeForce chips
 * of 8.6 and 8.9 reach half of it with f32 sums. */
static double flops_per_cycle(int32_t capability) {
    switch (capability / 10) {
    case 7:
        return 1024;
    case 8:
        return capability == 80 ? 2048 : 1024;
    case 9:
        return 4096;
    default:
        return capability >= 120 ? 1024 : 8192;
    }
}
/* f32 multiply-adds of one multiprocessor in a cycle, times two. */
static double f32_flops_per_cycle(int32_t capability) {
    return capability < 86 ? 128 : 256;
}

static int32_t attribute(int32_t device, enum cudaDeviceAttr which) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, device) != cudaSuccess)
        (void)cudaGetLastError();
    return value;
}

static td_status describe(int32_t index, int32_t n_devices, td_device_info *d, td_error *err) {
    struct cudaDeviceProp p;
    memset(&p, 0, sizeof p);
    *d = (td_device_info){.index = index,
                          .domain = 1 + index,
                          .narrow_attention = true,
                          .stream_bytes = TD_GPU_BLAS_WORKSPACE_BYTES};
    snprintf(d->name, sizeof d->name, "cuda:%d", index);
    td_status rc =
        td_gpu_check(cudaGetDeviceProperties(&p, index), d, "cudaGetDeviceProperties", err);
    if (rc != TD_OK)
        return rc;
    const unsigned char *u = (const unsigned char *)p.uuid.bytes;
    snprintf(d->model, sizeof d->model, "%.100s", p.name);
    snprintf(d->uuid, sizeof d->uuid,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
    td_gpu_nvml_uuid(d->uuid);
    snprintf(d->pci, sizeof d->pci, "%04x:%02x:%02x.0", (unsigned)p.pciDomainID & 0xffffu,
             (unsigned)p.pciBusID & 0xffu, (unsigned)p.pciDeviceID & 0xffu);
    d->compute_capability = p.major * 10 + p.minor;
    d->n_multiprocessors = p.multiProcessorCount;
    d->memory_total_bytes = p.totalGlobalMem;
    d->memory_free_bytes = p.totalGlobalMem;
    (void)td_gpu_nvml_memory(d, &d->memory_free_bytes);
    /* NVML speaks of the whole card, CUDA of the slice of it that is ours. */
    d->memory_free_bytes = TD_MIN(d->memory_free_bytes, d->memory_total_bytes);
    d->has_f32 = d->compute_capability >= MIN_COMPUTE_CAPABILITY;
    d->has_f16 = d->has_f32;
    d->has_bf16 = d->compute_capability >= 80;
    const double hz = 1e3 * (double)attribute(index, cudaDevAttrClockRate);
    const double cycles = hz * d->n_multiprocessors;
    d->peak_tflops = 1e-12 * cycles * flops_per_cycle(d->compute_capability);
    d->peak_tflops_f32 = 1e-12 * cycles * f32_flops_per_cycle(d->compute_capability);
    d->peak_mem_gbs = 2e-6 * (double)attribute(index, cudaDevAttrMemoryClockRate) *
                      attribute(index, cudaDevAttrGlobalMemoryBusWidth) / 8;
    snprintf(d->kind, sizeof d->kind, "%.80s sm_%d cublaslt-%s", p.name, d->compute_capability,
             td_gpu_blas_version());
    for (int32_t i = 0; i < TD_MIN(n_devices, 64); i++) {
        int can = 0;
        if (i != index && cudaDeviceCanAccessPeer(&can, index, i) == cudaSuccess && can)
            d->peers |= (uint64_t)1 << i;
    }
    (void)cudaGetLastError();
    return TD_OK;
}

/* CUDA's own order is by speed, which is nobody else's: nvidia-smi, NVML and a scheduler count by
 * PCI id, and the numbers in CUDA_VISIBLE_DEVICES are meant so. The runtime reads the variable at
 * its first call. */
static pthread_once_t order_once = PTHREAD_ONCE_INIT;
static bool order_is_users; /* the user has asked for another; written once */

static void order_by_pci(void) {
    const char *set = getenv("CUDA_DEVICE_ORDER");
    order_is_users = set && strcmp(set, "PCI_BUS_ID") != 0;
    if (!set)
        setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 0);
}

const char *td_gpu_numbering(void) {
    static char text[512]; /* the same bytes at every call */
    char made[sizeof text] = "";
    int n = 0;
    const char *order = getenv("CUDA_DEVICE_ORDER"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    pthread_once(&order_once, order_by_pci);
    if (order_is_users && order)
        n = snprintf(made, sizeof made,
                     "CUDA_DEVICE_ORDER=%.60s is set: the numbers of the GPUs need not be those of "
                     "nvidia-smi. ",
                     order);
    if (visible)
        snprintf(made + n, sizeof made - (size_t)n,
                 "CUDA_VISIBLE_DEVICES=%.300s is set: the GPUs are numbered from 0 in its order. ",
                 visible);
    size_t len = strlen(made);
    if (len > 0)
        made[len - 1] = '\0';
    if (strcmp(made, text) != 0)
        memcpy(text, made, sizeof text);
    return text;
}

td_status td_gpu_enumerate(td_device_info **out, int32_t *n_out, td_error *err) {
    int n = 0, driver = 0;
    pthread_once(&order_once, order_by_pci);
    cudaError_t cu = cudaGetDeviceCount(&n);
    /* The same code says "no driver" and "a driver that is too old". */
    if (cu == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) != cudaSuccess)
        driver = 0;
    if (cu == cudaErrorNoDevice || cu == cudaErrorStubLibrary ||
        (cu == cudaErrorInsufficientDriver && driver == 0)) {
        (void)cudaGetLastError();
        n = 0;
    } else if (cu != cudaSuccess) {
        const td_device_info none = {.name = "cuda", .model = "driver"};
        return td_gpu_check(cu, &none, "cudaGetDeviceCount", err);
    }
    td_device_info *list = n > 0 ? td_calloc((size_t)n, sizeof *list) : NULL;
    if (n > 0 && !list)
        return td_error_nomem(err, "device list", (size_t)n * sizeof *list);
    for (int32_t i = 0; i < n; i++) {
        td_status rc = describe(i, n, &list[i], err);
        if (rc != TD_OK) {
            free(list);
            return rc;
        }
    }
    *out = list;
    *n_out = n;
    return TD_OK;
}

/* --- open and close --------------------------------------------------------------------------- */

static void gpu_close(td_device *dev) {
    td_gpu_device *d = (td_gpu_device *)dev;
    td_gpu_blas_close(d);
    td_gpu_memory_close(d);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

#define SLOT(name, NAME, n_rows, how) , .name = td_gpu_op_##name
static const td_device_ops gpu_ops = {
    .backend = "cuda",
    .close = gpu_close,
    .alloc = td_gpu_alloc,
    .free = td_gpu_free,
    .reserve = td_gpu_reserve,
    .host_alloc = td_gpu_host_alloc,
    .host_free = td_gpu_host_free,
    .stream_create = td_gpu_stream_create,
    .stream_destroy = td_gpu_stream_destroy,
    .event_create = td_gpu_event_create,
    .event_destroy = td_gpu_event_destroy,
    .event_record = td_gpu_event_record,
    .stream_wait = td_gpu_stream_wait,
    .event_sync = td_gpu_event_sync,
    .copy_in = td_gpu_copy_in,
    .copy_out = td_gpu_copy_out,
    .copy_peer = td_gpu_copy_peer,
    .weight_prepare = td_gpu_weight_prepare,
    .weight_create = td_gpu_weight_create,
    .weight_destroy = td_gpu_weight_destroy TD_DEVICE_OPERATIONS(SLOT),
    .stream_busy_s = td_gpu_stream_busy_s,
    .stream_profile = td_gpu_stream_profile,
    .faulted = td_gpu_faulted,
    .health = td_gpu_nvml_health,
};

/* Runs one small kernel: a chip that this build has no kernels for is refused here, by name, and
 * not in the middle of a run. */
static td_status probe_kernels(td_gpu_device *d, td_error *err) {
    float *p = NULL;
    td_status rc =
        td_gpu_check(cudaMalloc((void **)&p, 2 * sizeof *p), &d->base.info, "cudaMalloc", err);
    if (rc != TD_OK)
        return rc;
    cudaError_t cu = cudaMemset(p, 0, 2 * sizeof *p);
    if (!cu)
        cu = td_gpu_bias(p, NULL, p + 1, 1, 1, 1, false, NULL);
    if (!cu)
        cu = cudaStreamSynchronize(NULL);
    rc = td_gpu_check(cu, &d->base.info, "the first kernel", err);
    if (cudaFree(p) != cudaSuccess)
        (void)cudaGetLastError();
    return rc;
}

td_status td_gpu_open(const td_device_info *info, td_device **out, td_error *err) {
    const char *debug = getenv("TDGEN_DEBUG_ALLOC");
    if (info->compute_capability < MIN_COMPUTE_CAPABILITY)
        return td_error_set(
            err, TD_E_DEVICE, "%s (%s) has compute capability %d.%d; at least 7.0 is needed",
            info->name, info->model, info->compute_capability / 10, info->compute_capability % 10);
    td_gpu_device *d = td_calloc(1, sizeof *d);
    if (!d)
        return td_error_nomem(err, "device", sizeof *d);
    d->base.ops = &gpu_ops;
    d->base.info = *info;
    d->own_allocations = debug && debug[0] && strcmp(debug, "0") != 0;
    pthread_mutex_init(&d->lock, NULL);
    td_status rc = td_gpu_use(d, err);
    if (rc == TD_OK) {
        d->chip = (td_gpu_chip){
            .compute_capability = info->compute_capability,
            .n_multiprocessors = info->n_multiprocessors,
            .max_shared_bytes = attribute(info->index, cudaDevAttrMaxSharedMemoryPerBlockOptin)};
        rc = probe_kernels(d, err);
    }
    if (rc == TD_OK)
        rc = td_gpu_blas_open(d, err);
    if (rc != TD_OK) {
        gpu_close(&d->base);
        return rc;
    }
    *out = &d->base;
    return TD_OK;
}
