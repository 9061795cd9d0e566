/* Device inventories: from a file that stands in for a machine, or from the machine's own devices.
 *
 * The file is INI: one section per device type, in the order in which the devices are numbered.
 *
 *   [a100]                       any name, once
 *   name = A100-80GB             what is printed; default: the section's name
 *   count = 8                    default 1
 *   memory_gib = 79.1            usable by a process, as the driver reports it; required
 *   compute_capability = 8.0     required: decides which compute modes there are
 *   tflops = 312                 vendor's dense 16-bit peak; default unknown
 *   tflops_f32 = 19.5            default 1/16 of tflops
 *   mem_gbs = 2039               memory bandwidth, GB/s; default unknown
 *   link_gbs = 300               bandwidth from a neighbour, one direction, GB/s; default unknown
 *
 * inih cuts a line that is longer than its buffer and hands the cut value to the handler, so lines
 * are measured here before inih sees them. The reader also counts lines: inih does not tell the
 * handler where it is.
 */
#include "plan/plan.h"

#include <errno.h>
#include <ini.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"

enum {
    MAX_FILE_BYTES = 1 << 20,
    MAX_LINE_BYTES = 190, /* inih's buffer is 200 with line end and NUL */
    MAX_DEVICES = 4096,
    MAX_NAME_BYTES = 48
};

static const char *const KEYS[] = {"name",       "count",   "memory_gib", "tflops",
                                   "tflops_f32", "mem_gbs", "link_gbs",   "compute_capability"};
enum key { K_NAME, K_COUNT, K_MEMORY, K_TFLOPS, K_TFLOPS_F32, K_MEM, K_LINK, K_CC, N_KEYS };

typedef struct section {
    char name[64]; /* of the section */
    char type[64];
    int line;      /* of its first key */
    unsigned seen; /* bit per key */
    int32_t count, compute_capability;
    double memory_gib, tflops, tflops_f32, mem_gbs, link_gbs;
} section;

typedef struct parser {
    const char *path;
    const char *next; /* rest of the text */
    int line;         /* of the line that inih was given last */
    int header_line;  /* of a section header without keys so far, else 0 */
    section *sections;
    size_t n_sections, cap;
    td_status status;
    td_error *err;
} parser;

static int fail(parser *p, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Keeps the first error; 0 is inih's word for failure. */
static int fail(parser *p, int line, const char *fmt, ...) {
    if (p->status != TD_OK)
        return 0;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    p->status = td_error_set(p->err, TD_E_CONFIG, "%s:%d: %s", p->path, line, text);
    return 0;
}

/* The fgets of inih: the next line, or NULL at the end of the text or after an error. */
static char *read_line(char *buf, int size, void *stream) {
    parser *p = stream;
    if (!*p->next || p->status != TD_OK)
        return NULL;
    size_t n = strcspn(p->next, "\n");
    p->line++;
    if (n > MAX_LINE_BYTES || (int)n + 2 > size) {
        fail(p, p->line, "the line has %zu characters, at most %d are allowed", n, MAX_LINE_BYTES);
        return NULL;
    }
    size_t blank = strspn(p->next, " \t\r");
    /* inih would take an indented line as the continuation of the value above it. */
    if (blank && blank < n && p->next[blank] != ';' && p->next[blank] != '#') {
        fail(p, p->line, "the line is indented: start it in the first column");
        return NULL;
    }
    if (p->next[0] == '[') {
        if (p->header_line)
            fail(p, p->header_line, "the section has no keys");
        if (!memchr(p->next, ']', n))
            fail(p, p->line, "expected ] at the end of the section's name");
        p->header_line = p->line;
    }
    memcpy(buf, p->next, n);
    buf[n] = '\0';
    p->next += n + (p->next[n] == '\n');
    return buf;
}

/* The section that the current key belongs to, made when it is met for the first time. */
static section *section_of(parser *p, const char *name) {
    if (p->n_sections && !p->header_line && !strcmp(p->sections[p->n_sections - 1].name, name))
        return &p->sections[p->n_sections - 1];
    for (size_t i = 0; i < p->n_sections; i++) {
        if (!strcmp(p->sections[i].name, name)) {
            fail(p, p->header_line ? p->header_line : p->line,
                 "section [%s] is given twice (first at line %d)", name, p->sections[i].line);
            return NULL;
        }
    }
    if (!td_grow((void **)&p->sections, &p->cap, p->n_sections + 1, sizeof *p->sections)) {
        p->status = td_error_nomem(p->err, "the inventory", sizeof *p->sections);
        return NULL;
    }
    section *s = &p->sections[p->n_sections++];
    *s = (section){.line = p->header_line ? p->header_line : p->line, .count = 1};
    memcpy(s->name, name, strlen(name) + 1);
    memcpy(s->type, name, strlen(name) + 1);
    p->header_line = 0;
    return s;
}

/* A plain decimal number in [min, max]; strtod alone would take "inf", "0x1p3" and " 1". */
static bool parse_number(const char *text, double min, double max, double *out) {
    if (!*text || text[strspn(text, "0123456789.eE+-")])
        return false;
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (*end || errno || !isfinite(v) || v < min || v > max)
        return false;
    *out = v;
    return true;
}

static int set_number(parser *p, const char *key, const char *value, double min, double max,
                      double *out) {
    if (!parse_number(value, min, max, out))
        return fail(p, p->line, "%s is \"%s\", expected a number from %g to %g", key, value, min,
                    max);
    return 1;
}

/* inih's handler: 1 on success. */
static int on_key(void *user, const char *section_name, const char *key, const char *value) {
    parser *p = user;
    double v = 0;
    if (p->status != TD_OK)
        return 0;
    if (!*section_name)
        return fail(p, p->line,
                    "%s stands before the first section, expected [device type] above it", key);
    size_t k = 0, name_len = strlen(section_name);
    if (name_len > MAX_NAME_BYTES)
        return fail(p, p->line, "the section's name has %zu characters, at most %d are allowed",
                    name_len, MAX_NAME_BYTES);
    section *s = section_of(p, section_name);
    if (!s)
        return 0;
    while (k < N_KEYS && strcmp(key, KEYS[k]))
        k++;
    if (k == N_KEYS) {
        const char *near = td_nearest_name(key, KEYS, N_KEYS);
        if (near)
            return fail(p, p->line, "[%s] unknown key \"%s\", did you mean \"%s\"?", section_name,
                        key, near);
        return fail(p, p->line,
                    "[%s] unknown key \"%s\", expected one of name, count, memory_gib, tflops, "
                    "tflops_f32, mem_gbs, link_gbs, compute_capability",
                    section_name, key);
    }
    if (s->seen & 1u << k)
        return fail(p, p->line, "[%s] %s is given twice", section_name, key);
    s->seen |= 1u << k;
    switch ((enum key)k) {
    case K_NAME:
        if (!*value || strlen(value) > MAX_NAME_BYTES)
            return fail(p, p->line, "name is \"%s\", expected 1 to %d characters", value,
                        MAX_NAME_BYTES);
        memcpy(s->type, value, strlen(value) + 1);
        return 1;
    case K_COUNT:
        if (!parse_number(value, 1, MAX_DEVICES, &v) || v != floor(v))
            return fail(p, p->line, "count is \"%s\", expected a whole number from 1 to %d", value,
                        MAX_DEVICES);
        s->count = (int32_t)v;
        return 1;
    case K_MEMORY:
        return set_number(p, key, value, 0.001, 1e6, &s->memory_gib);
    case K_TFLOPS:
        return set_number(p, key, value, 0.001, 1e6, &s->tflops);
    case K_TFLOPS_F32:
        return set_number(p, key, value, 0.001, 1e6, &s->tflops_f32);
    case K_MEM:
        return set_number(p, key, value, 0.001, 1e6, &s->mem_gbs);
    case K_LINK:
        return set_number(p, key, value, 0.001, 1e6, &s->link_gbs);
    case K_CC:
        if (!parse_number(value, 3, 99.9, &v) || fabs(v * 10 - round(v * 10)) > 1e-6)
            return fail(p, p->line,
                        "compute_capability is \"%s\", expected MAJOR.MINOR such as 8.0", value);
        s->compute_capability = (int32_t)lround(v * 10);
        return 1;
    case N_KEYS:
        break;
    }
    return 0;
}

/* Sections -> numbered devices. Peak rates become achievable ones here. */
static td_status expand(const parser *p, td_inventory *out, td_error *err) {
    int32_t n = 0;
    for (size_t i = 0; i < p->n_sections; i++) {
        const section *s = &p->sections[i];
        for (int k = K_MEMORY; k <= K_CC; k += K_CC - K_MEMORY) {
            if (!(s->seen & 1u << k))
                return td_error_set(err, TD_E_CONFIG, "%s:%d: [%s] %s is missing", p->path, s->line,
                                    s->name, KEYS[k]);
        }
        if (s->memory_gib * 0x1p30 <= (double)TD_PLAN_GPU_RESERVE_BYTES)
            return td_error_set(err, TD_E_CONFIG,
                                "%s:%d: [%s] memory_gib is %g, expected more than the %g GiB that "
                                "stay reserved on every GPU",
                                p->path, s->line, s->name, s->memory_gib,
                                (double)TD_PLAN_GPU_RESERVE_BYTES * 0x1p-30);
        if (n + s->count > MAX_DEVICES)
            return td_error_set(err, TD_E_CONFIG, "%s:%d: more than %d devices in all", p->path,
                                s->line, MAX_DEVICES);
        n += s->count;
    }
    if (!n)
        return td_error_set(err, TD_E_CONFIG,
                            "%s: no device sections, expected at least one [device type] with "
                            "memory_gib and compute_capability",
                            p->path);
    td_plan_device *dev = td_calloc((size_t)n, sizeof *dev);
    if (!dev)
        return td_error_nomem(err, "the inventory", (size_t)n * sizeof *dev);
    int32_t at = 0;
    for (size_t i = 0; i < p->n_sections; i++) {
        const section *s = &p->sections[i];
        for (int32_t j = 0; j < s->count; j++, at++) {
            td_plan_device *d = &dev[at];
            snprintf(d->label, sizeof d->label, "%d", at);
            memcpy(d->type, s->type, sizeof d->type);
            d->index = d->domain = at;
            d->memory_bytes = (uint64_t)(s->memory_gib * 0x1p30) - TD_PLAN_GPU_RESERVE_BYTES;
            d->tflops = s->tflops * TD_PLAN_PEAK_SHARE;
            d->tflops_f32 = s->tflops_f32 * TD_PLAN_PEAK_SHARE;
            d->mem_gbs = s->mem_gbs;
            d->link_gbs = s->link_gbs;
            d->compute_capability = s->compute_capability;
            d->has_f32 = true;
            d->has_f16 = s->compute_capability >= 70; /* tensor cores */
            d->has_bf16 = s->compute_capability >= 80;
        }
    }
    *out = (td_inventory){.devices = dev, .n_devices = n, .from_file = true};
    return TD_OK;
}

td_status td_inventory_load(const char *path, td_inventory *out, td_error *err) {
    char *text = NULL;
    size_t size = 0;
    td_status rc = td_file_read(path, MAX_FILE_BYTES, TD_E_CONFIG, &text, &size, err);
    if (rc != TD_OK)
        return td_error_prefix(err, "devices.inventory");
    parser p = {.path = path, .next = text, .err = err};
    if (memchr(text, 0, size)) {
        p.status = td_error_set(err, TD_E_CONFIG, "%s: holds a NUL byte, expected text", path);
    } else {
        int bad = ini_parse_stream(read_line, &p, on_key, &p);
        if (bad < 0)
            p.status = td_error_nomem(err, "the inventory", size);
        else if (bad > 0)
            fail(&p, bad, "expected [section] or key = value");
        else if (p.header_line)
            fail(&p, p.header_line, "the section has no keys");
    }
    rc = p.status != TD_OK ? p.status : expand(&p, out, err);
    free(p.sections);
    free(text);
    return rc;
}

td_status td_inventory_from_devices(const td_device_info *info, int32_t n, bool is_cpu,
                                    td_inventory *out, td_error *err) {
    td_plan_device *dev = td_calloc((size_t)n, sizeof *dev);
    if (!dev)
        return td_error_nomem(err, "the inventory", (size_t)n * sizeof *dev);
    for (int32_t i = 0; i < n; i++) {
        td_plan_device *d = &dev[i];
        /* Enumeration creates no context, so a backend may not know what is free. */
        uint64_t mem =
            info[i].memory_free_bytes ? info[i].memory_free_bytes : info[i].memory_total_bytes;
        uint64_t reserve =
            is_cpu ? (uint64_t)((double)info[i].memory_total_bytes * TD_PLAN_CPU_RESERVE_SHARE)
                   : TD_PLAN_GPU_RESERVE_BYTES;
        if (is_cpu)
            snprintf(d->label, sizeof d->label, "%s", info[i].name);
        else
            snprintf(d->label, sizeof d->label, "%d", info[i].index);
        snprintf(d->type, sizeof d->type, "%.*s", (int)sizeof d->type - 1,
                 is_cpu ? "cpu" : info[i].model);
        d->index = info[i].index;
        d->domain = info[i].domain;
        d->memory_bytes = info[i].memory_total_bytes == 0 ? TD_PLAN_MEMORY_UNKNOWN
                          : mem > reserve                 ? mem - reserve
                                                          : 0;
        d->tflops = info[i].peak_tflops * TD_PLAN_PEAK_SHARE;
        d->tflops_f32 = info[i].peak_tflops_f32 * TD_PLAN_PEAK_SHARE;
        d->mem_gbs = info[i].peak_mem_gbs;
        d->compute_capability = info[i].compute_capability;
        d->has_f32 = info[i].has_f32;
        d->has_bf16 = info[i].has_bf16;
        d->has_f16 = info[i].has_f16;
    }
    *out = (td_inventory){.devices = dev, .n_devices = n, .is_cpu = is_cpu};
    return TD_OK;
}

static bool within(double a, double b) {
    return fabs(a - b) <= 0.03 * fmax(a, b);
}

static bool same_speed(const td_plan_device *a, const td_plan_device *b) {
    return !strcmp(a->type, b->type) && within(a->tflops, b->tflops) &&
           within(a->tflops_f32, b->tflops_f32) && within(a->mem_gbs, b->mem_gbs);
}

void td_inventory_equalise(td_inventory *inv) {
    for (int32_t i = 0; i < inv->n_devices; i++) {
        const td_plan_device first = inv->devices[i];
        double n = 0, tflops = 0, tflops_f32 = 0, mem_gbs = 0;
        bool done = false;
        /* One that was already given the mean of others has exactly their figures. */
        for (int32_t j = 0; j < i; j++)
            done = done || (same_speed(&first, &inv->devices[j]) &&
                            first.tflops == inv->devices[j].tflops &&
                            first.mem_gbs == inv->devices[j].mem_gbs);
        for (int32_t j = i; !done && j < inv->n_devices; j++) {
            const td_plan_device *d = &inv->devices[j];
            if (!same_speed(&first, d))
                continue;
            n++;
            tflops += d->tflops;
            tflops_f32 += d->tflops_f32;
            mem_gbs += d->mem_gbs;
        }
        for (int32_t j = i; !done && j < inv->n_devices; j++) {
            td_plan_device *d = &inv->devices[j];
            if (!same_speed(&first, d))
                continue;
            d->tflops = tflops / n;
            d->tflops_f32 = tflops_f32 / n;
            d->mem_gbs = mem_gbs / n;
        }
    }
}

void td_inventory_free(td_inventory *inv) {
    if (!inv)
        return;
    free(inv->devices);
    *inv = (td_inventory){0};
}
