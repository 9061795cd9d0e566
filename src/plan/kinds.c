/* Kinds of devices: which are interchangeable, what stages cost on each, and the best placement of
 * one group. */
#include "plan/plan_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static uint64_t stage_bytes(const td_plan_kinds *k, int32_t b, int32_t e) {
    uint64_t *cell = &k->bytes[(size_t)b * ((size_t)k->pl->n_items + 1) + (size_t)e];
    if (!*cell) {
        td_stage_memory m = td_plan_stage_memory(k->pl, b, e);
        *cell = TD_MAX(td_plan_total_bytes(&m), 1);
    }
    return *cell;
}

static double stage_seconds(const void *user, int32_t kind, int32_t b, int32_t e) {
    const td_plan_kinds *k = user;
    if (k->limit[kind] != UINT64_MAX && stage_bytes(k, b, e) > k->limit[kind])
        return HUGE_VAL;
    const double *sum = k->seconds + (size_t)kind * ((size_t)k->pl->n_items + 1);
    return sum[e] - sum[b] + (b ? k->boundary[kind] : 0);
}

/* What is free differs a little between the GPUs of a real machine: up to 1% counts as equal (and
 * the least of them as the limit), or eight equal GPUs would be eight kinds. */
static bool same_kind(const td_planner *pl, const td_plan_device *a, const td_plan_device *b) {
    const td_inventory *inv = &pl->plan->inventory;
    double ma = (double)a->memory_bytes, mb = (double)b->memory_bytes;
    return !strcmp(a->type, b->type) && a->tflops == b->tflops && a->tflops_f32 == b->tflops_f32 &&
           a->mem_gbs == b->mem_gbs && a->link_gbs == b->link_gbs &&
           a->attention_tflops == b->attention_tflops && a->capture_gbs == b->capture_gbs &&
           (fabs(ma - mb) <= 0.01 * fmax(ma, mb) ||
            (td_plan_shares_memory(inv, a) && td_plan_shares_memory(inv, b)));
}

td_status td_plan_kinds_open(const td_planner *pl, const int32_t *devices, int32_t n,
                             td_plan_kinds *out) {
    const td_plan_device *inv = pl->plan->inventory.devices;
    size_t m = (size_t)pl->n_items + 1;
    td_plan_kinds k = {.pl = pl, .n_devices = n};
    k.kind_of = td_calloc((size_t)n, sizeof *k.kind_of);
    k.first = td_calloc((size_t)n, sizeof *k.first);
    if (!k.kind_of || !k.first)
        goto nomem;
    for (int32_t i = 0; i < n; i++) {
        int32_t kind = 0;
        while (kind < k.n_kinds && !same_kind(pl, &inv[devices[i]], &inv[k.first[kind]]))
            kind++;
        if (kind == k.n_kinds)
            k.first[k.n_kinds++] = devices[i];
        k.kind_of[i] = kind;
    }
    k.seconds = td_calloc((size_t)k.n_kinds * m, sizeof *k.seconds);
    k.boundary = td_calloc((size_t)k.n_kinds, sizeof *k.boundary);
    k.limit = td_calloc((size_t)k.n_kinds, sizeof *k.limit);
    k.bytes = td_calloc(m * m, sizeof *k.bytes);
    if (!k.seconds || !k.boundary || !k.limit || !k.bytes)
        goto nomem;
    for (int32_t i = 0; i < k.n_kinds; i++) {
        const td_plan_device *d = &inv[k.first[i]];
        double *sum = k.seconds + (size_t)i * m;
        k.limit[i] = td_plan_shares_memory(&pl->plan->inventory, d) ? UINT64_MAX : d->memory_bytes;
        k.boundary[i] = td_plan_boundary_seconds(pl, d);
        for (int32_t item = 0; item < pl->n_items; item++)
            sum[item + 1] = sum[item] + td_plan_item_seconds(pl, d, item);
    }
    for (int32_t i = 0; i < n; i++) {
        uint64_t *limit = &k.limit[k.kind_of[i]];
        if (*limit != UINT64_MAX)
            *limit = TD_MIN(*limit, inv[devices[i]].memory_bytes);
    }
    *out = k;
    return TD_OK;
nomem:
    td_plan_kinds_close(&k);
    return td_error_nomem(pl->err, "placing layers on devices", m * m * sizeof(uint64_t));
}

void td_plan_kinds_close(td_plan_kinds *k) {
    free(k->kind_of);
    free(k->first);
    free(k->seconds);
    free(k->boundary);
    free(k->limit);
    free(k->bytes);
    *k = (td_plan_kinds){0};
}

td_place_problem td_plan_kinds_problem(const td_plan_kinds *k) {
    return (td_place_problem){.n_items = k->pl->n_items,
                              .n_devices = k->n_devices,
                              .kind_of = k->kind_of,
                              .n_kinds = k->n_kinds,
                              .cost = stage_seconds,
                              .user = k};
}

double td_plan_kind_seconds(const td_plan_kinds *k, int32_t kind) {
    return k->seconds[(size_t)(kind + 1) * ((size_t)k->pl->n_items + 1) - 1];
}

td_status td_plan_place_group(const td_planner *pl, const int32_t *devices, int32_t n,
                              td_placement *out, double *ideal) {
    td_plan_kinds k;
    td_status rc = td_plan_kinds_open(pl, devices, n, &k);
    if (rc != TD_OK)
        return rc;
    double speed = 0;
    for (int32_t i = 0; i < n; i++)
        speed += 1 / td_plan_kind_seconds(&k, k.kind_of[i]);
    *ideal = 1 / speed;
    td_place_problem problem = td_plan_kinds_problem(&k);
    rc = td_place(&problem, out, pl->err);
    td_plan_kinds_close(&k);
    return rc;
}
