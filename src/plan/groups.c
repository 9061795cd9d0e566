/* Groups: which devices hold a copy of the model together, and the placement inside each.
 *
 * Explicit groups win; else the chosen devices are cut, in their order, into groups of
 * gpus_per_model; with `auto` each device type is cut on its own, into the narrowest groups that
 * hold the model. Devices that remain are `leftover`, reported and never dropped silently.
 */
#include "plan/plan_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

char *td_plan_labels(const td_plan *plan, const int32_t *devices, int32_t n, char *buf,
                     size_t buf_size) {
    size_t len = 0;
    buf[0] = '\0';
    for (int32_t i = 0; i < n; i++) {
        const char *label = plan->inventory.devices[devices[i]].label;
        size_t need = strlen(label) + (i ? 1 : 0), reserve = i + 1 < n ? 4 : 0; /* ",..." */
        if (len + need + reserve >= buf_size) {
            if (len + 5 <= buf_size)
                memcpy(buf + len, i ? ",..." : "...", i ? 5 : 4);
            break;
        }
        len += (size_t)snprintf(buf + len, buf_size - len, "%s%s", i ? "," : "", label);
    }
    return buf;
}

/* --- choosing --------------------------------------------------------------------------------- */

static const td_plan_device *find_device(const td_inventory *inv, int32_t number) {
    for (int32_t i = 0; i < inv->n_devices; i++)
        if (inv->devices[i].index == number)
            return &inv->devices[i];
    return NULL;
}

/* Position of the device in plan->inventory, -1 when it is not chosen. */
static int32_t chosen_position(const td_plan *plan, int32_t number) {
    for (int32_t i = 0; i < plan->inventory.n_devices; i++)
        if (plan->inventory.devices[i].index == number)
            return i;
    return -1;
}

static td_status unknown_device(const td_planner *pl, const char *key, int32_t number,
                                const td_inventory *inv) {
    const char *noun = inv->is_cpu ? "CPU device" : "GPU", *where = "this machine";
    const char *file = pl->cfg->devices.inventory;
    if (inv->from_file)
        where = file ? file : "the inventory";
    if (inv->n_devices == 1)
        return td_error_set(pl->err, TD_E_CONFIG, "devices.%s names %s %d, but %s has only %s %d",
                            key, noun, number, where, noun, inv->devices[0].index);
    return td_error_set(pl->err, TD_E_CONFIG, "devices.%s names %s %d, but %s has %d: %d to %d",
                        key, noun, number, where, inv->n_devices, inv->devices[0].index,
                        inv->devices[inv->n_devices - 1].index);
}

/* Does explicit group g name a device that was lost? */
static bool group_is_lost(const td_planner *pl, int32_t g) {
    const td_config *cfg = pl->cfg;
    for (int32_t i = 0; i < cfg->devices.n_group_entries; i++)
        if (cfg->devices.group_of[i] == g &&
            chosen_position(pl->plan, cfg->devices.group_device[i]) < 0)
            return true;
    return false;
}

/* Takes the lost devices out of what was chosen and tells of them. */
static td_status leave_out_lost(td_planner *pl) {
    const td_config *cfg = pl->cfg;
    td_inventory *chosen = &pl->plan->inventory;
    const char *noun = chosen->is_cpu ? "CPU device" : "GPU";
    int32_t n = 0, n_all = chosen->n_devices;
    for (int32_t i = 0; i < n_all; i++) {
        const td_plan_device *d = &chosen->devices[i];
        if (!d->lost)
            chosen->devices[n++] = *d;
        else if (!td_plan_warn(pl->plan, "Going on without %s %s, which failed.", noun, d->label))
            return td_error_nomem(pl->err, "the plan", 0);
    }
    chosen->n_devices = n;
    if (n == n_all)
        return TD_OK;
    bool any = cfg->devices.n_groups == 0;
    for (int32_t g = 0; g < cfg->devices.n_groups; g++)
        if (!group_is_lost(pl, g))
            any = true;
        else if (!td_plan_warn(pl->plan,
                               "Group %d of devices.groups has lost a device and is left out.", g))
            return td_error_nomem(pl->err, "the plan", 0);
    if (n == 0 || !any)
        return td_error_set(pl->err, TD_E_DEVICE,
                            "no %s is left: all that the configuration gives to this run failed",
                            n == 0 ? noun : "group");
    return TD_OK;
}

td_status td_plan_choose_devices(td_planner *pl, const td_inventory *inv) {
    const td_config *cfg = pl->cfg;
    td_inventory *chosen = &pl->plan->inventory;
    chosen->from_file = inv->from_file;
    chosen->is_cpu = inv->is_cpu;
    memcpy(chosen->speeds, inv->speeds, sizeof chosen->speeds);
    if (!inv->n_devices)
        return td_error_set(
            pl->err, TD_E_CONFIG,
            "no GPU was found: set devices.gpus = cpu (or cpu*N), or plan for another "
            "machine with --dry-run and devices.inventory");
    if (cfg->devices.gpus_kind == TD_GPUS_CPU && !inv->is_cpu)
        return td_error_set(pl->err, TD_E_CONFIG,
                            "devices.gpus = cpu, but the inventory lists GPUs: give a list of GPUs "
                            "or auto, or leave out devices.inventory");
    size_t room = (size_t)inv->n_devices;
    chosen->devices = td_calloc(room, sizeof *chosen->devices);
    pl->failed_devices = td_calloc(room, sizeof *pl->failed_devices);
    pl->idle = td_calloc(room, sizeof *pl->idle);
    if (!chosen->devices || !pl->failed_devices || !pl->idle)
        return td_error_nomem(pl->err, "the plan", room * sizeof *chosen->devices);

    if (cfg->devices.gpus_kind == TD_GPUS_LIST) {
        for (int32_t i = 0; i < cfg->devices.n_gpus; i++) {
            const td_plan_device *d = find_device(inv, cfg->devices.gpus[i]);
            if (!d)
                return unknown_device(pl, "gpus", cfg->devices.gpus[i], inv);
            if (chosen_position(pl->plan, d->index) >= 0)
                return td_error_set(
                    pl->err, TD_E_CONFIG,
                    "devices.gpus names device %d twice: several copies of the model "
                    "on one device are made with devices.groups, such as %d | %d",
                    d->index, d->index, d->index);
            chosen->devices[chosen->n_devices++] = *d;
        }
    } else {
        memcpy(chosen->devices, inv->devices, room * sizeof *chosen->devices);
        chosen->n_devices = inv->n_devices;
    }
    /* Explicit groups win: what they name is chosen, too. */
    for (int32_t i = 0; i < cfg->devices.n_group_entries; i++) {
        const td_plan_device *d = find_device(inv, cfg->devices.group_device[i]);
        if (!d)
            return unknown_device(pl, "groups", cfg->devices.group_device[i], inv);
        if (chosen_position(pl->plan, d->index) < 0)
            chosen->devices[chosen->n_devices++] = *d;
    }
    td_status rc = leave_out_lost(pl);
    if (rc != TD_OK)
        return rc;
    for (int32_t i = 0; cfg->devices.n_group_entries && i < chosen->n_devices; i++) {
        pl->idle[i] = true;
        for (int32_t j = 0; j < cfg->devices.n_group_entries; j++)
            if (cfg->devices.group_device[j] == chosen->devices[i].index &&
                !group_is_lost(pl, cfg->devices.group_of[j]))
                pl->idle[i] = false;
    }
    return TD_OK;
}

bool td_plan_shares_memory(const td_inventory *inv, const td_plan_device *dev) {
    for (int32_t i = 0; i < inv->n_devices; i++)
        if (inv->devices[i].domain == dev->domain && inv->devices[i].index != dev->index)
            return true;
    return false;
}

/* --- forming ---------------------------------------------------------------------------------- */

void td_plan_drop_groups(td_plan *plan) {
    for (int32_t g = 0; g < plan->n_groups; g++) {
        free(plan->groups[g].devices);
        free(plan->groups[g].stages);
    }
    free(plan->groups);
    free(plan->leftover);
    plan->groups = NULL;
    plan->leftover = NULL;
    plan->n_groups = plan->n_leftover = 0;
}

static td_status remember_failed(td_planner *pl, const int32_t *devices, int32_t n, bool *fits) {
    memcpy(pl->failed_devices, devices, (size_t)n * sizeof *devices);
    pl->n_failed_devices = n;
    *fits = false;
    return TD_OK;
}

/* Appends a placed group; room was made by the caller. */
static td_status add_group(td_planner *pl, const int32_t *devices, int32_t n, bool *fits) {
    td_plan *plan = pl->plan;
    td_plan_group *g = &plan->groups[plan->n_groups++];
    td_status rc = TD_OK;
    double ideal = 0;
    *g = (td_plan_group){.n_devices = n};
    td_placement place = {.stages = td_calloc((size_t)n, sizeof *place.stages)};
    g->devices = td_calloc((size_t)n, sizeof *g->devices);
    g->stages = td_calloc((size_t)n, sizeof *g->stages);
    if (!place.stages || !g->devices || !g->stages) {
        rc = td_error_nomem(pl->err, "the plan", (size_t)n * sizeof *g->stages);
        goto done;
    }
    memcpy(g->devices, devices, (size_t)n * sizeof *devices);
    rc = td_plan_place_group(pl, devices, n, &place, &ideal);
    if (rc != TD_OK)
        goto done;
    if (place.bottleneck == HUGE_VAL) {
        rc = remember_failed(pl, devices, n, fits);
        goto done;
    }
    g->bottleneck_over_ideal = place.bottleneck / ideal;
    if (pl->speeds_known)
        g->tokens_per_s = (double)plan->micro_batch.n_tokens / place.bottleneck;
    for (int32_t i = 0; i < place.n_stages; i++) {
        td_plan_stage *s = &g->stages[g->n_stages++];
        *s = (td_plan_stage){.device = devices[place.stages[i].device],
                             .item_begin = place.stages[i].begin,
                             .item_end = place.stages[i].end};
        s->memory = td_plan_stage_memory(pl, s->item_begin, s->item_end);
        const td_plan_device *d = &plan->inventory.devices[s->device];
        if (pl->speeds_known) {
            s->cost = td_plan_stage_cost(pl, d, s->item_begin, s->item_end);
            s->seconds_per_token = td_stage_cost_seconds(&s->cost, &plan->micro_batch) /
                                   (double)plan->micro_batch.n_tokens;
        }
    }
    if (!place.exact && !td_plan_warn(plan,
                                      "Group %d has too many different devices for an exact "
                                      "placement: only their given order was tried.",
                                      plan->n_groups - 1))
        rc = td_error_nomem(pl->err, "the plan", 0);
done:
    free(place.stages);
    return rc;
}

/* Cuts devices[0..n) into groups of `width`; what remains is leftover. Stops at the first group
 * that does not fit. */
static td_status cut_groups(td_planner *pl, const int32_t *devices, int32_t n, int32_t width,
                            bool *fits) {
    td_plan *plan = pl->plan;
    int32_t i = 0;
    for (; *fits && i + width <= n; i += width) {
        td_status rc = add_group(pl, devices + i, width, fits);
        if (rc != TD_OK)
            return rc;
    }
    for (; *fits && i < n; i++)
        plan->leftover[plan->n_leftover++] = devices[i];
    return TD_OK;
}

static td_status explicit_groups(td_planner *pl, bool *fits) {
    const td_config *cfg = pl->cfg;
    td_plan *plan = pl->plan;
    int32_t n_entries = cfg->devices.n_group_entries, n_all = plan->inventory.n_devices;
    td_status rc = TD_OK;
    int32_t *members = td_calloc((size_t)n_entries, sizeof *members);
    if (!members) {
        rc = td_error_nomem(pl->err, "the plan", (size_t)n_entries * sizeof *members);
        goto done;
    }
    for (int32_t g = 0; rc == TD_OK && *fits && g < cfg->devices.n_groups; g++) {
        int32_t n = 0;
        if (group_is_lost(pl, g))
            continue;
        for (int32_t i = 0; i < n_entries; i++) {
            if (cfg->devices.group_of[i] != g)
                continue;
            int32_t at = chosen_position(plan, cfg->devices.group_device[i]);
            for (int32_t j = 0; j < n; j++) {
                if (members[j] == at) {
                    rc = td_error_set(pl->err, TD_E_CONFIG,
                                      "devices.groups names device %s twice in its group %d",
                                      plan->inventory.devices[at].label, g);
                    goto done;
                }
            }
            members[n++] = at;
        }
        if (!n) {
            rc = td_error_set(pl->err, TD_E_CONFIG, "devices.groups: group %d has no device", g);
            goto done;
        }
        rc = add_group(pl, members, n, fits);
    }
    for (int32_t i = 0; i < n_all; i++)
        if (pl->idle[i])
            plan->leftover[plan->n_leftover++] = i;
done:
    free(members);
    return rc;
}

/* Forgets groups, leftovers and warnings from these counts on. */
static void roll_back(td_plan *plan, int32_t n_groups, int32_t n_leftover, int32_t n_warnings) {
    while (plan->n_groups > n_groups) {
        plan->n_groups--;
        free(plan->groups[plan->n_groups].devices);
        free(plan->groups[plan->n_groups].stages);
    }
    plan->n_leftover = n_leftover;
    while (plan->n_warnings > n_warnings)
        free(plan->warnings[--plan->n_warnings]);
}

/* The narrowest groups of one type, 0 in *width when not even all of its devices hold the model. */
static td_status auto_type(td_planner *pl, const int32_t *devices, int32_t n, int32_t slots_width,
                           int32_t *width) {
    td_plan *plan = pl->plan;
    int32_t n_groups = plan->n_groups, n_leftover = plan->n_leftover, n_warn = plan->n_warnings;
    for (int32_t w = 1; w <= n; w++) {
        bool fits = true;
        td_plan_set_limits(pl, plan->batch_tokens, TD_MAX(w, slots_width));
        td_status rc = cut_groups(pl, devices, n, w, &fits);
        if (rc != TD_OK)
            return rc;
        if (fits) {
            *width = w;
            return TD_OK;
        }
        roll_back(plan, n_groups, n_leftover, n_warn);
    }
    *width = 0;
    return TD_OK;
}

int32_t td_plan_active_devices(const td_planner *pl, int32_t *out) {
    int32_t n = 0;
    for (int32_t i = 0; i < pl->plan->inventory.n_devices; i++)
        if (!pl->idle[i])
            out[n++] = i;
    return n;
}

/* The same; the idle ones become leftover. */
static int32_t active_devices(td_planner *pl, int32_t *out) {
    td_plan *plan = pl->plan;
    for (int32_t i = 0; i < plan->inventory.n_devices; i++)
        if (pl->idle[i])
            plan->leftover[plan->n_leftover++] = i;
    return td_plan_active_devices(pl, out);
}

/* All types once, sessions having slots for groups of slots_width. *widest: of the groups made. */
static td_status auto_pass(td_planner *pl, int32_t *members, bool *done, int32_t slots_width,
                           int32_t *widest) {
    td_plan *plan = pl->plan;
    int32_t n_all = plan->inventory.n_devices;
    *widest = 0;
    active_devices(pl, members);
    memcpy(done, pl->idle, (size_t)n_all * sizeof *done);
    for (int32_t i = 0; i < n_all; i++) {
        const char *type = plan->inventory.devices[i].type;
        int32_t n = 0, width = 0;
        for (int32_t j = i; j < n_all; j++) {
            if (!done[j] && !strcmp(plan->inventory.devices[j].type, type)) {
                done[j] = true;
                members[n++] = j;
            }
        }
        if (!n)
            continue;
        td_status rc = auto_type(pl, members, n, slots_width, &width);
        if (rc != TD_OK)
            return rc;
        *widest = TD_MAX(*widest, width);
        if (width)
            continue;
        memcpy(plan->leftover + plan->n_leftover, members, (size_t)n * sizeof *members);
        plan->n_leftover += n;
        char labels[64];
        if (!td_plan_warn(plan, "The model does not fit on all %d x %s (%s) together.", n, type,
                          td_plan_labels(plan, members, n, labels, sizeof labels)))
            return td_error_nomem(pl->err, "the plan", 0);
    }
    return TD_OK;
}

/* Each type on its own, in its narrowest groups: what is known without speeds. */
static td_status groups_by_type(td_planner *pl, bool *fits) {
    td_plan *plan = pl->plan;
    int32_t n_all = plan->inventory.n_devices, slots_width = 1, widest = 0;
    int32_t n_warn = plan->n_warnings;
    td_status rc = TD_OK;
    int32_t *members = td_calloc((size_t)n_all, sizeof *members);
    bool *done = td_calloc((size_t)n_all, sizeof *done);
    if (!members || !done) {
        rc = td_error_nomem(pl->err, "the plan", (size_t)n_all * sizeof *members);
        goto end;
    }
    /* Sessions of all groups get the slots of the widest, so a wide group of one type takes memory
     * from the others: repeat until the width is the one that was counted with. It only grows. */
    for (;;) {
        rc = auto_pass(pl, members, done, slots_width, &widest);
        if (rc != TD_OK)
            goto end;
        if (widest <= slots_width)
            break;
        slots_width = widest;
        roll_back(plan, 0, 0, n_warn);
    }
    td_plan_set_limits(pl, plan->batch_tokens, slots_width);
    if (plan->n_groups)
        goto end;
    /* No type alone holds the model: one group of everything. */
    roll_back(plan, 0, 0, n_warn);
    int32_t n = active_devices(pl, members);
    td_plan_set_limits(pl, plan->batch_tokens, n);
    rc = cut_groups(pl, members, n, n, fits);
end:
    free(members);
    free(done);
    return rc;
}

/* Tells of types that no group uses and that do not hold the model even all together. */
static td_status warn_small_types(td_planner *pl, const bool *in_group, int32_t *members) {
    td_plan *plan = pl->plan;
    int32_t n_all = plan->inventory.n_devices;
    for (int32_t i = 0; i < n_all; i++) {
        const char *type = plan->inventory.devices[i].type;
        int32_t n = 0;
        bool used = pl->idle[i];
        for (int32_t j = 0; j < n_all; j++) {
            if (strcmp(plan->inventory.devices[j].type, type) || pl->idle[j])
                continue;
            used = used || in_group[j] || j < i;
            members[n++] = j;
        }
        char labels[64];
        if (!used && !td_plan_warn(plan, "The model does not fit on all %d x %s (%s) together.", n,
                                   type, td_plan_labels(plan, members, n, labels, sizeof labels)))
            return td_error_nomem(pl->err, "the plan", 0);
    }
    return TD_OK;
}

/* Makes the groups that were found the best. */
static td_status adopt_grouping(td_planner *pl, const td_plan_grouping *best, bool *fits) {
    td_plan *plan = pl->plan;
    int32_t n_all = plan->inventory.n_devices;
    td_status rc = TD_OK;
    int32_t *active = td_calloc((size_t)n_all, sizeof *active);
    int32_t *members = td_calloc((size_t)n_all, sizeof *members);
    bool *in_group = td_calloc((size_t)n_all, sizeof *in_group);
    if (!active || !members || !in_group) {
        rc = td_error_nomem(pl->err, "the plan", (size_t)n_all * sizeof *members);
        goto done;
    }
    int32_t n = active_devices(pl, active);
    td_plan_set_limits(pl, plan->batch_tokens, best->width);
    for (int32_t g = 0; rc == TD_OK && *fits && g < best->n_groups; g++) {
        int32_t width = 0;
        for (int32_t i = 0; i < n; i++) {
            if (best->group_of[i] == g) {
                members[width++] = active[i];
                in_group[active[i]] = true;
            }
        }
        rc = add_group(pl, members, width, fits);
    }
    for (int32_t i = 0; i < n; i++)
        if (best->group_of[i] < 0)
            plan->leftover[plan->n_leftover++] = active[i];
    if (rc == TD_OK)
        rc = warn_small_types(pl, in_group, members);
done:
    free(active);
    free(members);
    free(in_group);
    return rc;
}

static double group_score(const td_plan *plan, const td_plan_group *g) {
    int32_t n_types = 0;
    for (int32_t i = 0; i < g->n_devices; i++) {
        bool first = true;
        for (int32_t j = 0; j < i; j++)
            first = first && strcmp(plan->inventory.devices[g->devices[j]].type,
                                    plan->inventory.devices[g->devices[i]].type);
        n_types += first;
    }
    return td_plan_group_score(g->tokens_per_s, g->n_devices, n_types);
}

static td_status auto_groups(td_planner *pl, bool *fits) {
    td_plan *plan = pl->plan;
    int32_t n_warn = plan->n_warnings;
    td_status rc = groups_by_type(pl, fits);
    if (rc != TD_OK || !pl->speeds_known)
        return rc;
    /* Exact search where it is possible; by type it stays where that is as good. */
    double score = 0;
    td_session_limits limits = plan->limits;
    for (int32_t g = 0; *fits && g < plan->n_groups; g++)
        score += group_score(plan, &plan->groups[g]);
    int32_t *active = td_calloc((size_t)plan->inventory.n_devices, sizeof *active);
    td_plan_grouping best = {0};
    if (!active)
        return td_error_nomem(pl->err, "the plan", (size_t)plan->inventory.n_devices);
    rc = td_plan_best_grouping(pl, active, td_plan_active_devices(pl, active), &best);
    if (rc == TD_OK && best.score > score * TD_PLAN_BETTER) {
        *fits = true;
        roll_back(plan, 0, 0, n_warn);
        rc = adopt_grouping(pl, &best, fits);
    } else {
        plan->limits = limits;
    }
    free(best.group_of);
    free(active);
    return rc;
}

td_status td_plan_form_groups(td_planner *pl, bool *fits) {
    const td_config *cfg = pl->cfg;
    td_plan *plan = pl->plan;
    int32_t n_all = plan->inventory.n_devices, width = cfg->devices.gpus_per_model;
    char labels[64];
    td_plan_drop_groups(plan);
    *fits = true;
    /* Explicit groups may use a device several times. */
    size_t max_groups = (size_t)TD_MAX(n_all, cfg->devices.n_groups);
    plan->groups = td_calloc(max_groups, sizeof *plan->groups);
    plan->leftover = td_calloc((size_t)n_all, sizeof *plan->leftover);
    int32_t *all = td_calloc((size_t)n_all, sizeof *all);
    td_status rc = TD_OK;
    if (!plan->groups || !plan->leftover || !all) {
        rc = td_error_nomem(pl->err, "the plan", max_groups * sizeof *plan->groups);
        goto done;
    }
    if (cfg->devices.n_group_entries) {
        width = 1;
        for (int32_t g = 0; g < cfg->devices.n_groups; g++) {
            int32_t n = 0;
            for (int32_t i = 0; i < cfg->devices.n_group_entries; i++)
                n += cfg->devices.group_of[i] == g;
            if (!group_is_lost(pl, g))
                width = TD_MAX(width, n);
        }
        td_plan_set_limits(pl, plan->batch_tokens, width);
        rc = explicit_groups(pl, fits);
    } else if (width == 0) {
        rc = auto_groups(pl, fits);
    } else if (width > n_all) {
        active_devices(pl, all);
        const char *noun = plan->inventory.is_cpu ? "device" : "GPU";
        rc = td_error_set(
            pl->err, TD_E_CONFIG,
            "devices.gpus_per_model = %d: one copy of the model needs %d %ss, but there "
            "%s only %d (%s)",
            width, width, noun, n_all == 1 ? "is" : "are", n_all,
            td_plan_labels(plan, all, n_all, labels, sizeof labels));
    } else {
        td_plan_set_limits(pl, plan->batch_tokens, width);
        rc = cut_groups(pl, all, active_devices(pl, all), width, fits);
    }
done:
    free(all);
    return rc;
}
