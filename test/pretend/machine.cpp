/* machine.cpp - the pretend machine: its devices and planned failures, read from the environment,
 * the device queries and the error state.
 *
 *   TDGEN_PRETEND_GPUS     "NAME:CC:SMS:GIB[*COUNT],..." (default "Pretend H100:9.0:132:1"); "" or
 *                          "none": no device
 *   CUDA_DEVICE_ORDER, CUDA_VISIBLE_DEVICES: as of CUDA; TDGEN_PRETEND_GPUS is in PCI order
 *   TDGEN_PRETEND_NO_PEER  1: no device reaches another's memory
 *   TDGEN_PRETEND_RUNTIME  what cudaRuntimeGetVersion says (default 13000, or 12090 when a device
 *                          older than 7.5 is there; 13000 has no kernels for those)
 *   TDGEN_PRETEND_FAIL     "CALL N[;...]": the N-th call of that function ("any" counts all) fails
 *   TDGEN_PRETEND_FAULT    "DEVICE kernel TEXT N KIND[;...]": the N-th launch on DEVICE of a kernel
 *                          whose name contains TEXT ("*": any) meets KIND: illegal_address,
 *                          launch_failure, ecc, hang. "DEVICE oom_after BYTES"
 *   TDGEN_PRETEND_SEED, TDGEN_PRETEND_JITTER=1, TDGEN_PRETEND_NO_FILL=1 (for Valgrind)
 */
#include "runtime.h"

#include <algorithm>
#include <atomic>

#include <stdlib.h>

#include "pretend.h"

namespace {

struct planned_call {
    std::string name;
    uint64_t at, seen;
};
struct planned_fault {
    int device;
    std::string text;
    uint64_t at, seen;
    pretend_planned what;
};

struct plan {
    std::mutex lock;
    bool read = false;
    std::vector<planned_call> calls;
    std::vector<planned_fault> faults;
    std::map<int, size_t> oom_after;
    uint64_t n_calls = 0;
    std::string report;
};
plan &the_plan() {
    static plan *p = new plan;
    return *p;
}
std::atomic<int> g_sticky{cudaSuccess};
/* The device that broke, and whether one of its own calls has said so: until then the other devices
 * work on. */
std::atomic<int> g_sticky_device{-1};
std::atomic<bool> g_sticky_seen{false};
std::atomic<uint64_t> g_seed{1};
std::atomic<bool> g_jitter{false}, g_no_fill{false};
thread_local cudaError_t t_last = cudaSuccess;
thread_local int t_device = 0;

[[noreturn]] void bad(const char *variable, const std::string &text) {
    fprintf(stderr, "pretend: %s: cannot read '%s'\n", variable, text.c_str());
    _Exit(2);
}

std::vector<std::string> split(const std::string &text, const char *separators) {
    std::vector<std::string> out;
    size_t at = 0;
    while (at <= text.size()) {
        const size_t end = std::min(text.find_first_of(separators, at), text.size());
        if (end > at)
            out.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return out;
}

/* the_plan().lock is held. */
void read_plan(plan &p) {
    p.read = true;
    p.calls.clear();
    p.faults.clear();
    p.oom_after.clear();
    p.n_calls = 0;
    const char *v = getenv("TDGEN_PRETEND_FAIL");
    for (const std::string &one : split(v ? v : "", ";")) {
        const std::vector<std::string> w = split(one, " ");
        if (w.size() != 2 || atoll(w[1].c_str()) < 1)
            bad("TDGEN_PRETEND_FAIL", one);
        p.calls.push_back({w[0], (uint64_t)atoll(w[1].c_str()), 0});
    }
    v = getenv("TDGEN_PRETEND_FAULT");
    for (const std::string &one : split(v ? v : "", ";")) {
        const std::vector<std::string> w = split(one, " ");
        if (w.size() == 3 && w[1] == "oom_after") {
            p.oom_after[atoi(w[0].c_str())] = (size_t)strtoull(w[2].c_str(), nullptr, 10);
            continue;
        }
        if (w.size() != 5 || w[1] != "kernel" || atoll(w[3].c_str()) < 1)
            bad("TDGEN_PRETEND_FAULT", one);
        pretend_planned what = {PRETEND_FAULT_ERROR, cudaErrorIllegalAddress};
        if (w[4] == "hang")
            what.kind = PRETEND_FAULT_HANG;
        else if (w[4] == "launch_failure")
            what.error = cudaErrorLaunchFailure;
        else if (w[4] == "ecc")
            what.error = cudaErrorECCUncorrectable;
        else if (w[4] != "illegal_address")
            bad("TDGEN_PRETEND_FAULT", one);
        p.faults.push_back(
            {atoi(w[0].c_str()), w[2] == "*" ? "" : w[2], (uint64_t)atoll(w[3].c_str()), 0, what});
    }
    v = getenv("TDGEN_PRETEND_SEED");
    g_seed = v ? strtoull(v, nullptr, 10) : 1;
    v = getenv("TDGEN_PRETEND_JITTER");
    g_jitter = v && *v == '1';
    v = getenv("TDGEN_PRETEND_NO_FILL");
    g_no_fill = v && *v == '1';
}
void need_plan() {
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    if (!p.read)
        read_plan(p);
}

void make_devices(pretend_state *s) {
    const char *v = getenv("TDGEN_PRETEND_GPUS");
    const std::string text = v ? v : "Pretend H100:9.0:132:1";
    if (text == "none")
        return;
    for (std::string one : split(text, ",")) {
        const std::string whole = one;
        int count = 1;
        const size_t star = one.rfind('*');
        if (star != std::string::npos) {
            count = atoi(one.c_str() + star + 1);
            one.resize(star);
        }
        const std::vector<std::string> w = split(one, ":");
        double cc, gib;
        if (w.size() != 4 || count < 1 || (cc = atof(w[1].c_str())) < 5 ||
            (gib = atof(w[3].c_str())) <= 0 || atoi(w[2].c_str()) < 1)
            bad("TDGEN_PRETEND_GPUS", whole);
        for (int i = 0; i < count; i++) {
            pretend_device *d = new pretend_device;
            d->name = w[0];
            d->capability = (int)(cc * 10 + 0.5);
            d->n_multiprocessors = atoi(w[2].c_str());
            d->total_bytes = (size_t)(gib * 1024 * 1024 * 1024) / 4096 * 4096;
            d->limit_bytes = SIZE_MAX;
            uint64_t h = 1469598103934665603u + s->devices.size();
            for (char c : d->name)
                h = (h ^ (unsigned char)c) * 1099511628211u;
            pretend_random r(h);
            for (unsigned char &b : d->uuid)
                b = (unsigned char)(r.next() >> 24);
            s->devices.push_back(d);
        }
    }
}

std::string uuid_of(const pretend_device *d) {
    char text[48];
    const unsigned char *u = d->uuid;
    snprintf(text, sizeof text,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
    return text;
}

/* As CUDA orders and leaves out: CUDA_DEVICE_ORDER (the fastest first, unless it is PCI_BUS_ID), and
 * from among those CUDA_VISIBLE_DEVICES, numbers or beginnings of UUIDs up to the first that is
 * none. A MIG- name is that of a whole device here. Slots are PCI order. */
void arrange_devices(pretend_state *s) {
    std::vector<pretend_device *> &all = s->devices;
    for (size_t i = 0; i < all.size(); i++)
        all[i]->bus = 7 + 8 * (int)i;
    const char *order = getenv("CUDA_DEVICE_ORDER"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!order || strcmp(order, "PCI_BUS_ID") != 0)
        std::stable_sort(all.begin(), all.end(), [](pretend_device *a, pretend_device *b) {
            return a->capability * a->n_multiprocessors > b->capability * b->n_multiprocessors;
        });
    if (!visible)
        return;
    std::vector<pretend_device *> chosen;
    for (const std::string &one : split(visible, ",")) {
        pretend_device *found = nullptr;
        char *end;
        const long number = strtol(one.c_str(), &end, 10);
        if (!*end && number >= 0 && (size_t)number < all.size())
            found = all[(size_t)number];
        for (pretend_device *d : all)
            if (one.size() > 4 && (one.rfind("GPU-", 0) == 0 || one.rfind("MIG-", 0) == 0) &&
                uuid_of(d).compare(4, one.size() - 4, one, 4) == 0)
                found = d;
        if (!found)
            break;
        chosen.push_back(found);
    }
    all = chosen;
}

pretend_device *device_at(int device) {
    pretend_state &s = pretend_machine();
    return device >= 0 && (size_t)device < s.devices.size() ? s.devices[(size_t)device] : nullptr;
}

} // namespace

pretend_state &pretend_machine() {
    static pretend_state *state = [] {
        pretend_state *s = new pretend_state;
        make_devices(s);
        arrange_devices(s);
        return s;
    }();
    return *state;
}
bool pretend_device_exists(int device) {
    return device_at(device) != nullptr;
}
int pretend_current_device() {
    return t_device;
}
int pretend_device_capability(int device) {
    return pretend_machine().devices[(size_t)device]->capability;
}

size_t pretend_max_shared_bytes(int capability) {
    return pretend_shared_bytes_per_multiprocessor(capability) - (capability >= 80 ? 1024 : 0);
}
size_t pretend_shared_bytes_per_multiprocessor(int capability) {
    size_t kib = 228; /* 9.0, 10.x */
    if (capability < 75)
        kib = 96;
    else if (capability < 80)
        kib = 64;
    else if (capability == 80 || capability == 87)
        kib = 164;
    else if (capability < 90 || capability >= 120)
        kib = 100;
    return kib * 1024;
}

uint64_t pretend_seed() {
    need_plan();
    return g_seed;
}
bool pretend_jitter() {
    need_plan();
    return g_jitter;
}
bool pretend_no_fill() {
    need_plan();
    return g_no_fill;
}
bool pretend_no_peer() {
    const char *v = getenv("TDGEN_PRETEND_NO_PEER");
    return v && *v == '1';
}

/* --- errors and plans ------------------------------------------------------------------------- */

void pretend_report(const std::string &text) {
    fprintf(stderr, "pretend: %s\n", text.c_str());
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    p.report = text;
}
cudaError_t pretend_sticky() {
    const int error = g_sticky.load();
    if (error == cudaSuccess || (t_device != g_sticky_device && !g_sticky_seen))
        return cudaSuccess;
    g_sticky_seen = true;
    return (cudaError_t)error;
}
bool pretend_is_broken(int device) {
    return g_sticky.load() != cudaSuccess && g_sticky_device == device;
}
void pretend_set_sticky(cudaError_t error, int device) {
    int none = -1;
    if (g_sticky_device.compare_exchange_strong(none, device))
        g_sticky = error;
}
cudaError_t pretend_failed(cudaError_t error) {
    t_last = error;
    return error;
}

bool pretend_shall_fail(const char *name) {
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    if (!p.read)
        read_plan(p);
    p.n_calls++;
    bool shall = false;
    for (planned_call &c : p.calls)
        if ((c.name == "any" || c.name == name) && ++c.seen == c.at) {
            fprintf(stderr, "pretend: %s fails as planned (%s %llu)\n", name, c.name.c_str(),
                    (unsigned long long)c.at);
            shall = true;
        }
    return shall;
}
cudaError_t pretend_enter(const char *name, cudaError_t planned) {
    if (pretend_shall_fail(name))
        return planned;
    if (pretend_machine().devices.empty())
        return cudaErrorNoDevice;
    return pretend_sticky();
}
pretend_planned pretend_planned_fault(int device, const char *kernel_name) {
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    for (planned_fault &f : p.faults)
        if (f.device == device && strstr(kernel_name, f.text.c_str()) && ++f.seen == f.at)
            return f.what;
    return {PRETEND_NO_FAULT, cudaSuccess};
}
size_t pretend_oom_after(int device) {
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    const auto it = p.oom_after.find(device);
    return it == p.oom_after.end() ? SIZE_MAX : it->second;
}

extern "C" {

const char *pretend_last_report(void) {
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    return p.report.c_str();
}
void pretend_forgive(void) {
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    p.report.clear();
    g_sticky = cudaSuccess;
    g_sticky_device = -1;
    g_sticky_seen = false;
    t_last = cudaSuccess;
}
void pretend_set_seed(uint64_t seed) {
    need_plan();
    g_seed = seed;
}
uint64_t pretend_calls(void) {
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    return p.n_calls;
}
void pretend_reload(void) {
    plan &p = the_plan();
    std::lock_guard<std::mutex> hold(p.lock);
    read_plan(p);
}

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define PRETEND_NAME(name, value, text)                                                            \
    case name:                                                                                     \
        return #name;
        PRETEND_ERRORS(PRETEND_NAME)
#undef PRETEND_NAME
    }
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define PRETEND_TEXT(name, value, text)                                                            \
    case name:                                                                                     \
        return text;
        PRETEND_ERRORS(PRETEND_TEXT)
#undef PRETEND_TEXT
    }
    return "unrecognized error code";
}
cudaError_t cudaPeekAtLastError(void) {
    return t_last; /* what this thread's own calls said */
}
cudaError_t cudaGetLastError(void) {
    const cudaError_t last = t_last;
    if (last != pretend_sticky()) /* that one stays */
        t_last = cudaSuccess;
    return last;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    const char *v = getenv("TDGEN_PRETEND_RUNTIME");
    *version = 13000;
    for (const pretend_device *d : pretend_machine().devices)
        if (d->capability < 75)
            *version = 12090;
    if (v)
        *version = atoi(v);
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = pretend_machine().devices.empty() ? 0 : 13000;
    return cudaSuccess;
}

/* --- devices ---------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    PRETEND_ENTER("cudaGetDeviceCount", cudaErrorUnknown);
    *count = (int)pretend_machine().devices.size();
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device) {
    PRETEND_ENTER("cudaGetDeviceProperties", cudaErrorUnknown);
    const pretend_device *d = device_at(device);
    if (!d)
        return pretend_failed(cudaErrorInvalidDevice);
    memset(prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "%s", d->name.c_str());
    memcpy(prop->uuid.bytes, d->uuid, 16);
    prop->totalGlobalMem = d->total_bytes;
    prop->sharedMemPerBlock = 48 * 1024;
    prop->regsPerBlock = prop->regsPerMultiprocessor = 65536;
    prop->warpSize = 32;
    prop->maxThreadsPerBlock = 1024;
    prop->maxThreadsDim[0] = prop->maxThreadsDim[1] = 1024;
    prop->maxThreadsDim[2] = 64;
    prop->maxGridSize[0] = 2147483647;
    prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
    prop->totalConstMem = 65536;
    prop->major = d->capability / 10;
    prop->minor = d->capability % 10;
    prop->multiProcessorCount = d->n_multiprocessors;
    prop->canMapHostMemory = prop->concurrentKernels = prop->unifiedAddressing = 1;
    prop->ECCEnabled = 1;
    prop->pciBusID = d->bus;
    prop->asyncEngineCount = 2;
    prop->memoryBusWidth = 5120;
    prop->l2CacheSize = 40 << 20;
    prop->maxThreadsPerMultiProcessor = 2048;
    prop->streamPrioritiesSupported = prop->managedMemory = prop->hostRegisterSupported = 1;
    prop->sharedMemPerMultiprocessor = pretend_shared_bytes_per_multiprocessor(d->capability);
    prop->sharedMemPerBlockOptin = pretend_max_shared_bytes(d->capability);
    prop->reservedSharedMemPerBlock = d->capability >= 80 ? 1024 : 0;
    prop->maxBlocksPerMultiProcessor = 32;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device) {
    PRETEND_ENTER("cudaDeviceGetAttribute", cudaErrorUnknown);
    const pretend_device *d = device_at(device);
    if (!d)
        return pretend_failed(cudaErrorInvalidDevice);
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
        *value = 1024;
        break;
    case cudaDevAttrMaxGridDimX:
        *value = 2147483647;
        break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        *value = 65535;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 48 * 1024;
        break;
    case cudaDevAttrWarpSize:
        *value = 32;
        break;
    case cudaDevAttrClockRate:
        *value = 1400000;
        break;
    case cudaDevAttrMemoryClockRate:
        *value = 1200000;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *value = 5120;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = d->n_multiprocessors;
        break;
    case cudaDevAttrKernelExecTimeout:
    case cudaDevAttrIntegrated:
    case cudaDevAttrPciDeviceId:
    case cudaDevAttrPciDomainId:
    case cudaDevAttrMemoryPoolsSupported:
        *value = 0;
        break;
    case cudaDevAttrComputeMode:
        *value = cudaComputeModeDefault;
        break;
    case cudaDevAttrPciBusId:
        *value = d->bus;
        break;
    case cudaDevAttrL2CacheSize:
        *value = 40 << 20;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = 2048;
        break;
    case cudaDevAttrAsyncEngineCount:
        *value = 2;
        break;
    case cudaDevAttrEccEnabled:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrHostRegisterSupported:
        *value = 1;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = d->capability / 10;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = d->capability % 10;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)pretend_shared_bytes_per_multiprocessor(d->capability);
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)pretend_max_shared_bytes(d->capability);
        break;
    default:
        return pretend_failed(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device) {
    PRETEND_ENTER("cudaDeviceGetPCIBusId", cudaErrorUnknown);
    if (!device_at(device))
        return pretend_failed(cudaErrorInvalidDevice);
    if (snprintf(id, (size_t)size, "%04x:%02x:%02x.0", 0, device_at(device)->bus, 0) >= size)
        return pretend_failed(cudaErrorInvalidValue);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetByPCIBusId(int *device, const char *id) {
    PRETEND_ENTER("cudaDeviceGetByPCIBusId", cudaErrorUnknown);
    unsigned domain, bus;
    if (sscanf(id, "%x:%x:", &domain, &bus) != 2 || domain)
        return pretend_failed(cudaErrorInvalidDevice);
    for (*device = 0; device_at(*device); ++*device)
        if (device_at(*device)->bus == (int)bus)
            return cudaSuccess;
    return pretend_failed(cudaErrorInvalidDevice);
}
cudaError_t cudaSetDevice(int device) {
    PRETEND_ENTER("cudaSetDevice", cudaErrorUnknown);
    if (!device_at(device))
        return pretend_failed(cudaErrorInvalidDevice);
    t_device = device;
    return cudaSuccess;
}
cudaError_t cudaInitDevice(int device, unsigned, unsigned) {
    PRETEND_ENTER("cudaInitDevice", cudaErrorUnknown);
    return device_at(device) ? cudaSuccess : pretend_failed(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int *device) {
    PRETEND_ENTER("cudaGetDevice", cudaErrorUnknown);
    *device = t_device;
    return cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned) {
    PRETEND_ENTER("cudaSetDeviceFlags", cudaErrorUnknown);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    PRETEND_ENTER("cudaDeviceGetStreamPriorityRange", cudaErrorUnknown);
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    PRETEND_ENTER("cudaDeviceCanAccessPeer", cudaErrorUnknown);
    if (!device_at(device) || !device_at(peer))
        return pretend_failed(cudaErrorInvalidDevice);
    *can = device != peer && !pretend_no_peer();
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
    PRETEND_ENTER("cudaDeviceEnablePeerAccess", cudaErrorUnknown);
    if (!device_at(peer) || peer == t_device)
        return pretend_failed(cudaErrorInvalidDevice);
    if (flags)
        return pretend_failed(cudaErrorInvalidValue);
    if (pretend_no_peer())
        return pretend_failed(cudaErrorPeerAccessUnsupported);
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    if (!s.devices[(size_t)t_device]->peers.insert(peer).second)
        return pretend_failed(cudaErrorPeerAccessAlreadyEnabled);
    return cudaSuccess;
}
cudaError_t cudaDeviceDisablePeerAccess(int peer) {
    PRETEND_ENTER("cudaDeviceDisablePeerAccess", cudaErrorUnknown);
    if (!device_at(peer))
        return pretend_failed(cudaErrorInvalidDevice);
    pretend_state &s = pretend_machine();
    std::lock_guard<std::mutex> hold(s.lock);
    if (!s.devices[(size_t)t_device]->peers.erase(peer))
        return pretend_failed(cudaErrorPeerAccessNotEnabled);
    return cudaSuccess;
}

} // extern "C"
