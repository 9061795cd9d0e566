/* fuzz_config.c - mutated INI files and overrides through td_config_load.
 *
 *   fuzz_config [iterations [seed]]
 *
 * Whatever the bytes: the load ends with TD_OK or TD_E_CONFIG, a refusal has a message, an accepted
 * configuration holds what the header promises. Memory errors are for the sanitizers to see. The
 * same seed gives the same inputs; a failure prints the input's number, so that it can be run
 * again.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mutate.h"
#include "config/config.h"
#include "base/log.h"
#include "base/memory.h"

static uint64_t g_state;

static uint32_t rnd(uint32_t below) {
    return (uint32_t)(mutate_rand(&g_state) >> 32) % below;
}

static const char *const pieces[] = {"[model]\n",
                                     "[data]\n",
                                     "[devices]\n",
                                     "[capture]\n",
                                     "[output]\n",
                                     "[run]\n",
                                     "path = x\n",
                                     "gpus = cpu*3\n",
                                     "gpus = 0,1\n",
                                     "gpus = GPU-8f2e,0000:65:00.0,cuda:1\n",
                                     "gpus = cpu:0,cpu:1\n",
                                     "groups = MIG-ab | 65:00.0\n",
                                     "groups = 0 | 1,2 | 0\n",
                                     "top_k = 7\n",
                                     "top_p = 0.5\n",
                                     "always_ids = 3,1\n",
                                     "mode = sample\n",
                                     "separator = \"",
                                     "\\n",
                                     "\\",
                                     "\"",
                                     "=",
                                     ":",
                                     "[",
                                     "]",
                                     ";",
                                     " ;",
                                     "#",
                                     "\n",
                                     "\r\n",
                                     "\t",
                                     "\xEF\xBB\xBF",
                                     "\xFF",
                                     "-",
                                     "99999999999",
                                     "temperatures = 1,2\n",
                                     "|",
                                     ",",
                                     "max_samples = 3\n",
                                     "format = text\n",
                                     "worker_id = 1\n",
                                     "1e308",
                                     "nan",
                                     "cpu*",
                                     "auto",
                                     "append_eos = yes\n",
                                     "dir = o\n",
                                     "ids_field = i\n",
                                     "prompt_field = p\n"};

static const char base[] =
    "; comment\n[model]\npath = m\ncompute = f32\n[data]\npath = d.jsonl\nformat = jsonl\n"
    "max_length = 512\noverflow = split\n[devices]\ngpus = 0,1,2,3\ngroups = 0 | 1 | 2,3\n"
    "[capture]\ntop_k = 16 ; inline\ntemperatures = 0.5, 2\n[output]\ndir = o\n"
    "[run]\nseed = 7\nbatch_tokens = 4096\n";

/* A few insertions, deletions, byte changes and copies within. NUL bytes occur. */
static size_t mutate_ini(char *buf, size_t n, size_t cap) {
    for (uint32_t k = 1 + rnd(6); k > 0; k--) {
        size_t at = rnd((uint32_t)n + 1);
        switch (rnd(5)) {
        case 0: { /* insert a piece */
            const char *p = pieces[rnd(TD_ARRAY_LEN(pieces))];
            n = put_in(buf, n, cap, at, p, strlen(p));
            break;
        }
        case 1: { /* delete a run */
            size_t want = 1 + rnd(20), len = TD_MIN(want, n - at);
            n = cut_out(buf, n, at, len);
            break;
        }
        case 2: /* change a byte */
            if (at < n)
                buf[at] = (char)rnd(256);
            break;
        case 3: { /* stretch: one byte many times, to reach the line limit */
            size_t len = 1 + rnd(300);
            if (n + len > cap || at >= n)
                break;
            memmove(buf + at + len, buf + at, n - at);
            memset(buf + at, buf[at + len], len);
            n += len;
            break;
        }
        default: { /* copy a run to the end */
            size_t want = rnd(60), len = TD_MIN(want, n - at);
            if (n + len > cap)
                break;
            memmove(buf + n, buf + at, len);
            n += len;
            break;
        }
        }
    }
    return n;
}

/* NULL, or which promise of config.h an accepted configuration breaks. */
static const char *broken_promise(const td_config *c) {
    if (!c->model.path || !*c->model.path || !c->data.path || !c->output.dir)
        return "a required path is absent";
    if (c->data.max_length < 1 || c->capture.top_k < 1 || c->capture.top_k > TD_MAX_TOP_K ||
        c->run.batch_tokens < 1 || c->output.shard_samples < 1 || c->data.max_samples < 0)
        return "a number is out of range";
    if (!(c->capture.top_p > 0 && c->capture.top_p <= 1) || !(c->capture.proposal_power > 0) ||
        c->capture.n_draws < 1 || c->capture.n_draws > TD_MAX_DRAWS || c->capture.min_k < 1)
        return "a setting of the capture is out of range";
    for (int32_t i = 0; i < c->capture.n_always; i++)
        for (int32_t k = 0; k <= i; k++)
            if (c->capture.always_ids[i] < 0 ||
                (k < i && c->capture.always_ids[i] == c->capture.always_ids[k]))
                return "always_ids hold an id twice, or none";
    if (c->run.worker_id < 0 || c->run.worker_id >= c->run.total_workers)
        return "worker_id is out of range";
    if (!c->data.separator || !c->data.prompt_field != !c->data.completion_field ||
        (c->data.mask_field && !c->data.ids_field))
        return "fields contradict each other";
    if (c->devices.gpus_kind == TD_GPUS_LIST && (c->devices.n_gpus < 1 || !c->devices.gpus))
        return "the list of GPUs is empty";
    for (int32_t i = 0; c->devices.gpus && i < c->devices.n_gpus; i++)
        if (c->devices.gpus[i] < -c->devices.n_names)
            return "a GPU has a name that is not there";
    if ((c->devices.n_groups > 0) != (c->devices.n_group_entries > 0))
        return "groups and entries disagree";
    for (int32_t i = 0; i < c->devices.n_group_entries; i++)
        if (c->devices.group_of[i] < 0 || c->devices.group_of[i] >= c->devices.n_groups ||
            c->devices.group_device[i] < -c->devices.n_names)
            return "a group entry is out of range";
    for (int32_t i = 0; i < c->capture.n_temperatures; i++)
        if (!(c->capture.temperatures[i] > 0))
            return "a temperature is not positive";
    return NULL;
}

int main(int argc, char **argv) {
    long iterations = argc > 1 ? atol(argv[1]) : 20000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    td_log_set_level(TD_LOG_ERROR);
    int fd = memfd_create("fuzz_config", MFD_CLOEXEC);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (fd < 0) {
        perror("memfd_create");
        return 1;
    }

    long accepted = 0, refused = 0;
    for (long i = 0; i < iterations; i++) {
        char file[4096], override[512];
        td_error err = {0};
        td_config cfg;
        g_state = (seed * 0x9E3779B97F4A7C15u) ^ ((uint64_t)i * 0xD1B54A32D192ED03u) ^ 1;
        g_state += g_state == 0;

        size_t n = sizeof base - 1;
        memcpy(file, base, n);
        if (rnd(8) > 0)
            n = mutate_ini(file, n, sizeof file);
        size_t m = (size_t)snprintf(override, sizeof override, "devices.groups=0 | 1,2");
        if (rnd(2))
            m = mutate_ini(override, m, sizeof override - 1);
        override[m] = '\0';
        if (ftruncate(fd, 0) != 0 || pwrite(fd, file, n, 0) != (ssize_t)n) {
            perror("pwrite");
            return 1;
        }

        const char *overrides[1] = {override};
        td_status rc = td_config_load(path, overrides, rnd(3) == 0, &cfg, &err);
        const char *wrong = NULL;
        if (rc == TD_OK) {
            wrong = broken_promise(&cfg);
            td_config_free(&cfg);
            accepted++;
        } else {
            if (rc != TD_E_CONFIG || err.code != TD_E_CONFIG)
                wrong = "a refusal that is not TD_E_CONFIG";
            else if (strlen(err.text) < 20)
                wrong = "a refusal without a message";
            refused++;
        }
        if (wrong) {
            fprintf(stderr, "input %ld of seed %" PRIu64 ": %s: %s\n%.*s\n", i, seed, wrong,
                    err.text, (int)n, file);
            return 1;
        }
    }
    close(fd);
    printf("%ld inputs: %ld accepted, %ld refused\n", iterations, accepted, refused);
    /* Both outcomes must be common, or the mutations have stopped testing anything. */
    return accepted * 50 > iterations && refused * 50 > iterations ? 0 : 1;
}
