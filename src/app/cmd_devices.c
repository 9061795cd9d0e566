/* cmd_devices.c - tdgen devices: what this machine offers, and how fast its GPUs are. */
#include "app/commands.h"
#include "app/speeds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/device.h"
#include "base/log.h"
#include "base/format.h"
#include "base/memory.h"

static const char HELP[] =
    "usage: tdgen devices [--measure]\n"
    "\n"
    "Lists what this machine offers to a run: each device's name as used in [devices] gpus, its\n"
    "memory, and the compute modes of its matrix products. The last column is the device kind "
    "that\n"
    "records carry: output is byte-identical between runs on one kind. Of GPUs the second line "
    "has\n"
    "the UUID, the PCI id and the other GPUs whose memory is reached without the host.\n"
    "\n"
    "  devices.gpus = 1,3         these GPUs and no others, as nvidia-smi numbers them (PCI order)\n"
    "  devices.gpus = GPU-8f2e    by UUID, or the beginning of one; MIG-... for a slice of a GPU\n"
    "  devices.gpus = 65:00.0     by PCI id, also 0000:65:00.0\n"
    "  devices.gpus = cpu         one CPU device with all cores, cpu:0\n"
    "  devices.gpus = cpu*4       four CPU devices that split the cores, cpu:0 to cpu:3\n"
    "\n"
    "CUDA_VISIBLE_DEVICES is honoured: the GPUs that it leaves are numbered from 0 in its order.\n"
    "CUDA_DEVICE_ORDER too, where it is set; unset, it is taken to be PCI_BUS_ID.\n"
    "\n"
    "  --measure   measures the speed of each GPU anew and remembers it for plans, as a run does\n"
    "              with a GPU that it meets for the first time\n"
    "\n"
    "exit codes: 0 done, 2 usage, 5 a device could not be asked\n";

/* The GPUs that this one reaches directly, as "0,2-3"; "-" for none. */
static const char *peers_of(const td_device_info *d, char *buf, size_t size) {
    size_t at = 0;
    snprintf(buf, size, "-");
    for (int i = 0; i < 64 && at < size; i++) {
        if (!(d->peers >> i & 1))
            continue;
        int last = i;
        while (last < 63 && d->peers >> (last + 1) & 1)
            last++;
        at += (size_t)snprintf(buf + at, size - at, "%s%d", at ? "," : "", i);
        if (last > i && at < size)
            at += (size_t)snprintf(buf + at, size - at, "-%d", last);
        i = last;
    }
    return buf;
}

static void print_gpu(const td_device_info *d) {
    char peers[128];
    printf("         %s  PCI %s  compute capability %d.%d  %d multiprocessors  peers %s\n", d->uuid,
           d->pci, d->compute_capability / 10, d->compute_capability % 10, d->n_multiprocessors,
           peers_of(d, peers, sizeof peers));
}

static void print_device(const td_device_info *d) {
    char total[32], free_[32], modes[32];
    snprintf(modes, sizeof modes, "%s%s%s", d->has_f32 ? "f32 " : "", d->has_bf16 ? "bf16 " : "",
             d->has_f16 ? "f16" : "");
    printf("%-8s %-42.42s %10s %10s  %-13s %s\n", d->name, d->model,
           td_human_bytes(d->memory_total_bytes, total, sizeof total),
           td_human_bytes(d->memory_free_bytes, free_, sizeof free_), modes, d->kind);
    if (d->uuid[0])
        print_gpu(d);
}

static td_status measure_gpus(const td_device_info *info, int32_t n, td_error *err) {
    td_speed_cache cache;
    char *path = td_speed_cache_path();
    if (!path)
        return td_error_set(err, TD_E_CONFIG,
                            "speeds cannot be remembered: set HOME or XDG_CACHE_HOME");
    td_status rc = td_speeds_measure(info, n, NULL, true, NULL, err);
    td_speed_cache_load(path, &cache);
    for (int32_t i = 0; rc == TD_OK && i < n; i++) {
        const td_speed_entry *e = td_speed_cache_find(&cache, info[i].uuid, info[i].kind);
        if (e)
            printf("%-8s measured: %.3g TFLOP/s f32, %.3g bf16, %.3g f16, %.4g GB/s\n",
                   info[i].name, e->f32, e->bf16, e->f16, e->mem_gbs);
    }
    if (rc == TD_OK && n == 0)
        td_log_info("there is no GPU to measure; a CPU is measured by each run");
    td_speed_cache_free(&cache);
    free(path);
    return rc;
}

int td_cmd_devices(int argc, char **argv) {
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(HELP, stdout);
        return TD_EXIT_OK;
    }
    bool measure = argc == 2 && strcmp(argv[1], "--measure") == 0;
    if (argc > 1 && !measure) {
        td_log_error("tdgen devices takes no argument \"%s\"; see tdgen devices --help", argv[1]);
        return TD_EXIT_CONFIG;
    }
    static const char *const backends[] = {"cuda", "cpu"};
    printf("%-8s %-42s %10s %10s  %-13s %s\n", "DEVICE", "MODEL", "MEMORY", "FREE", "COMPUTE",
           "KIND");
    for (size_t b = 0; b < TD_ARRAY_LEN(backends); b++) {
        td_device_info *info = NULL;
        int32_t n = 0;
        td_error err = {0};
        td_status rc = TD_OK;
        if (td_device_enumerate(backends[b], 1, &info, &n, &err) != TD_OK) {
            td_log_error("%s", err.text);
            return td_status_exit_code(err.code);
        }
        for (int32_t i = 0; i < n; i++)
            print_device(&info[i]);
        if (measure && b == 0)
            rc = measure_gpus(info, n, &err);
        free(info);
        if (rc != TD_OK) {
            td_log_error("%s", err.text);
            return td_status_exit_code(err.code);
        }
    }
    if (td_device_numbering("cuda")[0])
        printf("\n%s\n", td_device_numbering("cuda"));
    printf("\nThis build computes on: %s\n", td_device_backends());
    return TD_EXIT_OK;
}
