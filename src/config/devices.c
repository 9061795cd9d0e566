/* devices.c - [devices] gpus and groups: lists of devices, by number or by name.
 *
 * A word of a list is a number; "cuda:3" or "cpu:0", as `tdgen devices` prints them; or a name of a
 * GPU that holds for good: its UUID (a unique beginning of it is enough) or its PCI id. Those are
 * kept as text, and become numbers when the machine is known (td_config_resolve_devices).
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/keys.h"
#include "base/memory.h"

enum { MAX_DEVICE_NUMBER = 4095, MAX_DEVICE_ENTRIES = 4096, MAX_NAME = 80 };

/* What sort of device the word names. */
typedef enum sort { SORT_ANY, SORT_CPU, SORT_GPU } sort;

/* --- one word --------------------------------------------------------------------------------- */

/* "[dddddddd:]bb:dd[.f]", as nvidia-smi and lspci print it: the shortest way of writing it, with
 * the domain in four digits where there is one. */
static bool read_pci_id(const char *word, char *out, size_t out_size) {
    unsigned long part[3] = {0};
    int n = 0;
    const char *p = word;
    for (; n < 3; n++) {
        char *end;
        size_t digits = strspn(p, "0123456789abcdefABCDEF");
        if (digits == 0 || digits > 8)
            return false;
        part[n] = strtoul(p, &end, 16);
        p = end;
        if (*p != ':')
            break;
        p++;
    }
    if (n < 1 || n > 2)
        return false;
    unsigned long domain = n == 2 ? part[0] : 0, bus = part[n - 1], device = part[n], function = 0;
    if (*p == '.') {
        if (p[1] < '0' || p[1] > '7')
            return false;
        function = (unsigned long)(p[1] - '0');
        p += 2;
    }
    if (*p || bus > 0xff || device > 0x1f)
        return false;
    if (n == 2)
        snprintf(out, out_size, "%04lx:%02lx:%02lx.%lx", domain, bus, device, function);
    else
        snprintf(out, out_size, "%02lx:%02lx.%lx", bus, device, function);
    return true;
}

/* "GPU-8f2e..." or "MIG-...", also "MIG-GPU-8f2e.../1/0" of older drivers. */
static bool read_uuid(const char *word, char *out, size_t out_size) {
    bool mig = strncasecmp(word, "MIG-", 4) == 0;
    if (!mig && strncasecmp(word, "GPU-", 4) != 0)
        return false;
    const char *rest = word + 4;
    if (mig && strncasecmp(rest, "GPU-", 4) == 0)
        rest += 4;
    size_t n = strlen(word);
    if (!*rest || rest[strspn(rest, mig ? "0123456789abcdefABCDEF-/" : "0123456789abcdefABCDEF-")])
        return false;
    if (n >= out_size)
        return false;
    for (size_t i = 0; i <= n; i++)
        out[i] = (char)(word + i < rest ? toupper((unsigned char)word[i])
                                        : tolower((unsigned char)word[i]));
    return true;
}

/* The number that stands for a name; the table grows by it when it is new. -1 - n is never 0. */
static td_status name_number(td_config *cfg, const char *name, int32_t *out, td_error *err) {
    int32_t n = cfg->devices.n_names;
    for (int32_t i = 0; i < n; i++)
        if (!strcmp(cfg->devices.names[i], name)) {
            *out = -1 - i;
            return TD_OK;
        }
    char **more = realloc(cfg->devices.names, ((size_t)n + 1) * sizeof *more);
    if (more)
        cfg->devices.names = more;
    if (!more || !(more[n] = td_strdup(name)))
        return td_error_nomem(err, "a setting", strlen(name));
    cfg->devices.n_names = n + 1;
    *out = -1 - n;
    return TD_OK;
}

/* TD_OK with *why set: the word names no device. */
static td_status read_device(td_config *cfg, char *word, int32_t *out, sort *what, const char **why,
                             td_error *err) {
    char name[MAX_NAME];
    int64_t number;
    word += strspn(word, " \t");
    for (size_t n = strlen(word); n > 0 && isspace((unsigned char)word[n - 1]);)
        word[--n] = '\0';
    *why = NULL;
    *what = SORT_ANY;
    if (read_uuid(word, name, sizeof name) || read_pci_id(word, name, sizeof name)) {
        *what = SORT_GPU;
        return name_number(cfg, name, out, err);
    }
    if (!strncmp(word, "cuda:", 5)) {
        *what = SORT_GPU;
        word += 5;
    } else if (!strncmp(word, "cpu:", 4)) {
        *what = SORT_CPU;
        word += 4;
    }
    if (!td_config_parse_int(word, &number))
        *why = "this is not a list of devices";
    else if (number < 0 || number > MAX_DEVICE_NUMBER)
        *why = "a device number is out of range";
    else
        *out = (int32_t)number;
    return TD_OK;
}

/* --- gpus ------------------------------------------------------------------------------------- */

typedef struct device_list {
    int32_t *numbers, n;
    size_t cap;
} device_list;

static td_status append(device_list *list, int32_t number, td_error *err) {
    if (!td_grow((void **)&list->numbers, &list->cap, (size_t)list->n + 1, sizeof *list->numbers))
        return td_error_nomem(err, "a setting", sizeof *list->numbers * ((size_t)list->n + 1));
    list->numbers[list->n++] = number;
    return TD_OK;
}

/* "cpu:0,cpu:1" says what cpu*2 says: devices without a gap, as all of them split the cores. */
static const char *cpu_list_fault(const device_list *list) {
    for (int32_t i = 0; i < list->n; i++)
        if (list->numbers[i] >= list->n)
            return "CPU devices count from cpu:0 without a gap (cpu:0,cpu:1 is cpu*2), and split the "
                   "cores among them; devices.groups leaves some of them idle";
    return list->n > TD_MAX_CPU_DEVICES ? "the list is too long" : NULL;
}

static td_status read_list(td_config *cfg, const td_config_key *key, const char *value, char *copy,
                           device_list *list, bool *is_cpu, td_error *err) {
    char *rest = copy, *word;
    bool cpus = false, gpus = false;
    const char *why = NULL;
    while (!why && (word = strsep(&rest, ","))) {
        int32_t number = 0;
        sort what;
        td_status rc = read_device(cfg, word, &number, &what, &why, err);
        if (rc != TD_OK)
            return rc;
        cpus = cpus || what == SORT_CPU;
        gpus = gpus || what != SORT_CPU;
        if (!why && cpus && gpus)
            why = "CPU devices and GPUs cannot be in one run";
        for (int32_t i = 0; !why && i < list->n; i++)
            if (list->numbers[i] == number)
                why = cpus ? "a device is named twice" : "a GPU is named twice";
        if (!why && list->n >= MAX_DEVICE_ENTRIES)
            why = "the list is too long";
        if (!why)
            rc = append(list, number, err);
        if (rc != TD_OK)
            return rc;
    }
    if (!why && cpus)
        why = cpu_list_fault(list);
    *is_cpu = cpus;
    return why ? td_config_bad_value(key, value, why, err) : TD_OK;
}

/* cpu, cpu*N */
static td_status read_cpu_count(const td_config_key *key, const char *value, int32_t *out,
                                td_error *err) {
    const char *star = value + 3 + strspn(value + 3, " \t");
    int64_t count = 1;
    if (*star && (*star != '*' || !td_config_parse_int(star + 1, &count)))
        return td_config_bad_value(key, value, "", err);
    if (count < 1 || count > TD_MAX_CPU_DEVICES)
        return td_config_bad_value(key, value, "N is out of range", err);
    *out = (int32_t)count;
    return TD_OK;
}

td_status td_config_set_gpus(td_config *cfg, const td_config_key *key, const char *value,
                             td_error *err) {
    td_status rc = TD_OK;
    td_gpus_kind kind = TD_GPUS_AUTO;
    device_list list = {0};
    char *copy = NULL;
    bool is_cpu = false;

    if (!strncmp(value, "cpu", 3) && value[3] != ':') {
        kind = TD_GPUS_CPU;
        rc = read_cpu_count(key, value, &list.n, err);
    } else if (strcmp(value, "auto") != 0) {
        copy = td_strdup(value);
        rc = copy ? read_list(cfg, key, value, copy, &list, &is_cpu, err)
                  : td_error_nomem(err, "a setting", strlen(value));
        kind = is_cpu ? TD_GPUS_CPU : TD_GPUS_LIST;
    }
    if (rc == TD_OK) {
        if (is_cpu) {
            free(list.numbers);
            list.numbers = NULL;
        }
        free(cfg->devices.gpus);
        cfg->devices.gpus = list.numbers;
        cfg->devices.n_gpus = list.n;
        cfg->devices.gpus_kind = kind;
        list.numbers = NULL;
    }
    free(list.numbers);
    free(copy);
    return rc;
}

/* --- groups ----------------------------------------------------------------------------------- */

td_status td_config_set_groups(td_config *cfg, const td_config_key *key, const char *value,
                               td_error *err) {
    td_status rc = TD_OK;
    device_list group_of = {0}, device_of = {0};
    int32_t n_groups = 0;
    bool cpus = false, gpus = false;
    char *copy = td_strdup(value), *rest = copy, *group;
    if (!copy)
        return td_error_nomem(err, "a setting", strlen(value));

    while ((group = strsep(&rest, "|"))) {
        char *word;
        int32_t first = device_of.n;
        if (group[strspn(group, " \t")] == '\0') {
            rc = td_config_bad_value(key, value, "a group is empty", err);
            goto done;
        }
        while ((word = strsep(&group, ","))) {
            int32_t device = 0;
            sort what;
            const char *why;
            rc = read_device(cfg, word, &device, &what, &why, err);
            if (rc != TD_OK)
                goto done;
            cpus = cpus || what == SORT_CPU;
            gpus = gpus || what == SORT_GPU;
            if (!why && cpus && gpus)
                why = "CPU devices and GPUs cannot be in one run";
            /* Within a group only: `0 | 0` is two copies of the model on one device. */
            for (int32_t i = first; !why && i < device_of.n; i++)
                if (device_of.numbers[i] == device)
                    why = "a group names a device twice";
            if (!why && device_of.n >= MAX_DEVICE_ENTRIES)
                why = "there are too many entries";
            rc = why ? td_config_bad_value(key, value, why, err) : append(&group_of, n_groups, err);
            if (rc == TD_OK)
                rc = append(&device_of, device, err);
            if (rc != TD_OK)
                goto done;
        }
        n_groups++;
    }
    free(cfg->devices.group_of);
    free(cfg->devices.group_device);
    cfg->devices.group_of = group_of.numbers;
    cfg->devices.group_device = device_of.numbers;
    cfg->devices.n_group_entries = device_of.n;
    cfg->devices.n_groups = n_groups;
    cfg->devices.groups_name_cpus = cpus;
    cfg->devices.groups_name_gpus = gpus;
    group_of.numbers = device_of.numbers = NULL;
done:
    free(group_of.numbers);
    free(device_of.numbers);
    free(copy);
    return rc;
}

/* --- both together ---------------------------------------------------------------------------- */

static bool has_open_name(const td_config *cfg) {
    for (int32_t i = 0; cfg->devices.gpus && i < cfg->devices.n_gpus; i++)
        if (cfg->devices.gpus[i] < 0)
            return true;
    return false;
}

bool td_config_groups_fit(const td_config *cfg, char *why, size_t why_size) {
    const td_gpus_kind kind = cfg->devices.gpus_kind;
    const int32_t n = cfg->devices.n_gpus;
    if (cfg->devices.groups_name_cpus && kind != TD_GPUS_CPU) {
        snprintf(why, why_size, "names CPU devices, which needs [devices] gpus = cpu*N");
        return false;
    }
    if (cfg->devices.groups_name_gpus && kind == TD_GPUS_CPU) {
        snprintf(why, why_size, "names GPUs, but [devices] gpus = cpu*%d has cpu:0 to cpu:%d", n,
                 n - 1);
        return false;
    }
    /* With names on either side only the machine can tell what is what. */
    if (kind == TD_GPUS_AUTO || has_open_name(cfg))
        return true;
    for (int32_t i = 0; i < cfg->devices.n_group_entries; i++) {
        int32_t device = cfg->devices.group_device[i];
        bool there = device < 0 || (kind == TD_GPUS_CPU && device < n);
        for (int32_t g = 0; kind == TD_GPUS_LIST && g < n; g++)
            there = there || cfg->devices.gpus[g] == device;
        if (there)
            continue;
        if (kind == TD_GPUS_CPU)
            snprintf(why, why_size, "names device %d, but [devices] gpus = cpu*%d has 0 to %d",
                     device, n, n - 1);
        else
            snprintf(why, why_size,
                     "names GPU %d, which is not in the list of [devices] gpus; add it there, or "
                     "set gpus = auto",
                     device);
        return false;
    }
    return true;
}

static td_status resolve(const td_config *cfg, int32_t *numbers, int32_t n, const char *key,
                         td_config_find_device find, const void *machine, td_error *err) {
    td_status rc = TD_OK;
    for (int32_t i = 0; rc == TD_OK && i < n; i++)
        if (numbers[i] < 0)
            rc = find(machine, cfg->devices.names[-1 - numbers[i]], &numbers[i], err);
    return rc == TD_OK ? rc : td_error_prefix(err, "[devices] %s", key);
}

td_status td_config_resolve_devices(td_config *cfg, td_config_find_device find, const void *machine,
                                    td_error *err) {
    int32_t *gpus = cfg->devices.gpus, *members = cfg->devices.group_device;
    const int32_t n = gpus ? cfg->devices.n_gpus : 0, n_members = cfg->devices.n_group_entries;
    char why[400];
    if (cfg->devices.n_names == 0)
        return TD_OK;
    td_status rc = resolve(cfg, gpus, n, "gpus", find, machine, err);
    if (rc == TD_OK)
        rc = resolve(cfg, members, n_members, "groups", find, machine, err);
    for (int32_t i = 0; rc == TD_OK && i < n; i++)
        for (int32_t k = 0; rc == TD_OK && k < i; k++)
            if (gpus[k] == gpus[i])
                rc = td_error_set(err, TD_E_CONFIG,
                                  "[devices] gpus names GPU %d twice, under different names",
                                  gpus[i]);
    for (int32_t i = 0; rc == TD_OK && i < n_members; i++)
        for (int32_t k = 0; rc == TD_OK && k < i; k++)
            if (members[k] == members[i] && cfg->devices.group_of[k] == cfg->devices.group_of[i])
                rc = td_error_set(err, TD_E_CONFIG,
                                  "a group of [devices] groups names GPU %d twice, under different "
                                  "names",
                                  members[i]);
    if (rc == TD_OK && !td_config_groups_fit(cfg, why, sizeof why))
        rc = td_error_set(err, TD_E_CONFIG, "[devices] groups %s", why);
    return rc;
}
