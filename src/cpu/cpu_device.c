/* cpu_device.c - enumeration, opening, and the table of the CPU backend. */
#include <errno.h>
#include <inttypes.h>
#include <oneapi/dnnl/dnnl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "base/memory.h"

enum { CPU_DOMAIN = 0, MAX_CPU_DEVICES = 1024 };

/* Cores this process may run on. */
static int32_t count_cores(void) {
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof(set), &set))
        return TD_MAX(CPU_COUNT(&set), 1);
    return 1;
}

static void cpu_model_name(char *out, size_t size) {
    snprintf(out, size, "x86-64 CPU");
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[512];
    while (f && fgets(line, sizeof(line), f)) {
        char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !value)
            continue;
        value[strcspn(value, "\n")] = 0;
        snprintf(out, size, "%s", value + 1 + (value[1] == ' '));
        break;
    }
    if (f)
        fclose(f);
}

td_status td_cpu_enumerate(int32_t n_devices, td_device_info **out, int32_t *n_out, td_error *err) {
    const int32_t n = n_devices == 0 ? 1 : n_devices;
    if (n < 0 || n > MAX_CPU_DEVICES)
        return td_error_set(err, TD_E_CONFIG, "cpu*%d: expected 1 to %d CPU devices", n_devices,
                            MAX_CPU_DEVICES);
    td_device_info *list = td_calloc((size_t)n, sizeof(*list));
    if (!list)
        return td_error_nomem(err, "device list", (size_t)n * sizeof(*list));
    const int32_t n_cores = count_cores();
    const dnnl_version_t *v = dnnl_version();
    uint64_t total, available;
    td_cpu_memory_info(&total, &available);
    for (int32_t i = 0; i < n; i++) {
        td_device_info *d = &list[i];
        snprintf(d->name, sizeof(d->name), "cpu:%d", i);
        cpu_model_name(d->model, sizeof(d->model));
        snprintf(d->kind, sizeof(d->kind), "cpu %s onednn-%d.%d.%d", td_cpu_isa_name(), v->major,
                 v->minor, v->patch);
        d->index = i;
        d->domain = CPU_DOMAIN;
        d->n_threads = TD_MAX(n_cores / n, 1);
        d->memory_total_bytes = total; /* of the domain: CPU devices share it */
        d->memory_free_bytes = available;
        d->has_f32 = true;
        d->has_bf16 = td_cpu_isa_has_bf16();
        d->has_f16 = false;
    }
    *out = list;
    *n_out = n;
    return TD_OK;
}

/* --- memory and copies ------------------------------------------------------------------------ */

static td_status cpu_alloc(td_device *dev, size_t size_bytes, void **out, td_error *err) {
    return td_cpu_mem_alloc(dev->info.name, size_bytes, out, err);
}

static void cpu_free(td_device *dev, void *ptr) {
    (void)dev;
    td_cpu_mem_free(ptr);
}

static td_status enqueue_copy(td_stream *s, const char *name, void *dst, const void *src,
                              size_t size_bytes, td_error *err) {
    if (!size_bytes || dst == src)
        return TD_OK;
    return td_cpu_enqueue(s, TD_OP_COPY, name, &(td_cpu_args){.copy = {dst, src, size_bytes}}, err);
}

static td_status cpu_copy_in(td_stream *s, void *dst, const void *src, size_t size_bytes,
                             td_error *err) {
    return enqueue_copy(s, "copy_in", dst, src, size_bytes, err);
}
static td_status cpu_copy_out(td_stream *s, void *dst, const void *src, size_t size_bytes,
                              td_error *err) {
    return enqueue_copy(s, "copy_out", dst, src, size_bytes, err);
}
static td_status cpu_copy_peer(td_stream *s, void *dst, td_device *src_dev, const void *src,
                               size_t size_bytes, td_error *err) {
    (void)src_dev; /* all CPU devices share one address space */
    return enqueue_copy(s, "copy_peer", dst, src, size_bytes, err);
}

/* --- operations: checks at the call, then into the stream ------------------------------------- */

/* CPU devices compute in f32 and bf16. */
static bool offers(td_dtype t) {
    return t == TD_F32 || t == TD_BF16;
}

/* What CPU devices cannot do of what the table allows. */
static const char *refusal(td_op op, const td_cpu_args *a) {
    if ((op == TD_OP_NORM && !offers(a->norm.out_dtype)) ||
        (op == TD_OP_ACT && !offers(a->act.out_dtype)))
        return "CPU devices write f32 and bf16";
    if (op == TD_OP_ROPE && a->rope.out)
        return "CPU devices turn in place";
    if (op == TD_OP_ATTENTION &&
        (a->attention.in_dtype != TD_F32 || !offers(a->attention.out_dtype)))
        return "CPU devices read q, k and v in f32 and write f32 and bf16";
    return NULL;
}

static td_status enqueue(td_stream *s, td_op op, const td_cpu_args *a, td_error *err) {
    const char *why = td_op_check(op, a);
    if (!why)
        why = refusal(op, a);
    if (why)
        return td_error_set(err, TD_E_INTERNAL, "%s: %s: %s", td_cpu_stream_device_name(s),
                            td_op_name(op), why);
    return td_cpu_enqueue(s, op, td_op_name(op), a, err);
}

#define ENQUEUE(name, NAME, n_rows, how)                                                           \
    static td_status cpu_##name(td_stream *s, const td_##name##_args *a, td_error *err) {          \
        return enqueue(s, TD_OP_##NAME, &(td_cpu_args){.name = *a}, err);                          \
    }
TD_DEVICE_OPERATIONS(ENQUEUE)

/* --- open and close --------------------------------------------------------------------------- */

static void cpu_close(td_device *dev) {
    free(dev);
}

#define SLOT(name, NAME, n_rows, how) , .name = cpu_##name
static const td_device_ops cpu_ops = {
    .backend = "cpu",
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .host_alloc = cpu_alloc,
    .host_free = cpu_free,
    .stream_create = td_cpu_stream_create,
    .stream_destroy = td_cpu_stream_destroy,
    .event_create = td_cpu_event_create,
    .event_destroy = td_cpu_event_destroy,
    .event_record = td_cpu_event_record,
    .stream_wait = td_cpu_stream_wait,
    .event_sync = td_cpu_event_sync,
    .copy_in = cpu_copy_in,
    .copy_out = cpu_copy_out,
    .copy_peer = cpu_copy_peer,
    .weight_prepare = td_cpu_weight_prepare,
    .weight_destroy = td_cpu_weight_destroy TD_DEVICE_OPERATIONS(SLOT),
    .stream_busy_s = td_cpu_stream_busy_s,
    .stream_profile = td_cpu_stream_profile,
    .faulted = td_cpu_faulted,
};

static enum td_cpu_fail_kind fail_kind(const char *word) {
    return !strcmp(word, "lost") ? TD_CPU_LOSE : !strcmp(word, "hang") ? TD_CPU_HANG : TD_CPU_FAIL;
}

static void read_debug_switches(td_cpu_device *d) {
    const char *s = getenv("TDGEN_DEBUG_ALLOC");
    if (s)
        td_cpu_mem_set_fill(strcmp(s, "0") != 0);
    s = getenv("TDGEN_DEBUG_FAIL_ALLOC");
    if (s)
        td_cpu_mem_fail_at(strtoll(s, NULL, 10));
    char name[32], op[16], kind[16] = "";
    int n;
    s = getenv("TDGEN_DEBUG_FAIL_OP");
    if (s && sscanf(s, "%31s %15s %d %15s", name, op, &n, kind) >= 3 &&
        !strcmp(name, d->base.info.name)) {
        memcpy(d->fail_op, op, sizeof(op));
        d->fail_kind = fail_kind(kind);
        atomic_store(&d->fail_countdown, n);
    }
    d->fail_token = -1;
    kind[0] = '\0';
    s = getenv("TDGEN_DEBUG_FAIL_TOKEN");
    if (s && sscanf(s, "%d %15s", &n, kind) >= 1) {
        d->fail_token = n;
        d->fail_token_kind = fail_kind(kind);
    }
}

td_status td_cpu_open(const td_device_info *info, td_device **out, td_error *err) {
    td_cpu_device *d = td_calloc(1, sizeof(*d));
    if (!d)
        return td_error_nomem(err, "device", sizeof(*d));
    d->base.ops = &cpu_ops;
    d->base.info = *info;
    d->base.info.n_threads = TD_MAX(info->n_threads, 1);
    const int level = td_cpu_isa_level();
    d->kernels = level == 4   ? &td_cpu_kernels_v4
                 : level == 3 ? &td_cpu_kernels_v3
                              : &td_cpu_kernels_v1;
    read_debug_switches(d);
    *out = &d->base;
    return TD_OK;
}
