/* gpus_per_model = auto: the groups with the highest predicted rate together.
 *
 * A group's rate depends only on how many devices of each kind it has (its composition), and one
 * run of the placement's dynamic programme knows the rates of all compositions. A second one over
 * the counts of devices that remain then picks the compositions:
 *   total[s] = max over compositions c within s of score(c) + total[s - c]
 * The score is the rate less a small handicap for each further stage and kind: what a pipeline
 * loses between its stages is not in the model, and nobody wants four A100s chained to a V100 for
 * the last half percent. Equal totals go to narrower groups, and to groups of one kind.
 *
 * Sessions of all groups have the slots of the widest, which take memory from the others; so this
 * is done for each width that the widest may have. Where a kind has so many devices that the counts
 * are too many (a machine of hundreds), most of it is set apart in its best groups of one kind
 * first, and only the rest is searched.
 */
#include "plan/plan_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/strbuf.h"

enum {
    MIN_WIDEST = 8,       /* widths that are looked at in any case */
    WIDER = 4,            /* and how far beyond what the kinds need */
    MAX_COUNTS = 30000,   /* states of the search over what remains */
    MAX_STEPS = 10000000, /* states times compositions */
    MIXED = 64,           /* another kind in a group counts like so many devices in it */
    MAX_ALTERNATIVES = 6, /* that are told of */
    MAX_CANDIDATES = 32,
    MAX_TYPES_LEFT_OUT = 4, /* alternatives that do without one */
};

double td_plan_group_score(double tokens_per_s, int32_t width, int32_t n_kinds) {
    double handicap = TD_PLAN_STAGE_HANDICAP * (width - 1) + TD_PLAN_KIND_HANDICAP * (n_kinds - 1);
    return tokens_per_s * fmax(1 - handicap, 0.5);
}

typedef struct search {
    const td_plan_kinds *kinds;
    const td_placement_sets *sets;
    int32_t n_kinds;
    int32_t n_comps;
    int32_t *comp;        /* [n_comps][n_kinds] devices of each kind */
    double *rate, *score; /* [n_comps] */
    int32_t *penalty;     /* [n_comps] */
    int32_t *left;        /* [n_kinds] devices still to be given */
    int32_t *chosen;      /* [n_devices] compositions of the groups */
    int32_t n_chosen;
    double total, total_score;
} search;

static void close_search(search *s) {
    free(s->comp);
    free(s->rate);
    free(s->score);
    free(s->penalty);
    free(s->left);
    free(s->chosen);
}

/* Of the set with this number: how many of the kind. */
static int32_t in_set(const search *s, size_t set, int32_t kind) {
    return (int32_t)(set / s->sets->stride[kind] % ((size_t)s->sets->count[kind] + 1));
}

/* Does the set do as well without one of its devices? */
static bool is_wasteful(const search *s, size_t set) {
    for (int32_t k = 0; k < s->n_kinds; k++)
        if (in_set(s, set, k) &&
            s->sets->bottleneck[set - s->sets->stride[k]] <= s->sets->bottleneck[set] * (1 + 1e-9))
            return true;
    return false;
}

static td_status open_search(const td_planner *pl, search *s) {
    size_t n = s->sets->n_states, nk = (size_t)s->n_kinds;
    s->comp = td_calloc(n * nk, sizeof *s->comp);
    s->rate = td_calloc(n, sizeof *s->rate);
    s->score = td_calloc(n, sizeof *s->score);
    s->penalty = td_calloc(n, sizeof *s->penalty);
    s->left = td_calloc(nk, sizeof *s->left);
    s->chosen = td_calloc((size_t)s->kinds->n_devices, sizeof *s->chosen);
    if (!s->comp || !s->rate || !s->score || !s->penalty || !s->left || !s->chosen)
        return td_error_nomem(pl->err, "the plan", n * nk * sizeof *s->comp);
    for (int32_t i = 0; i < s->kinds->n_devices; i++)
        s->left[s->kinds->kind_of[i]]++;
    for (size_t set = 1; set < n; set++) {
        if (s->sets->bottleneck[set] == HUGE_VAL || is_wasteful(s, set))
            continue;
        int32_t width = 0, kinds = 0, c = s->n_comps++;
        for (int32_t k = 0; k < s->n_kinds; k++) {
            int32_t m = in_set(s, set, k);
            s->comp[(size_t)c * nk + (size_t)k] = m;
            width += m;
            kinds += m > 0;
        }
        s->rate[c] = (double)pl->plan->micro_batch.n_tokens / s->sets->bottleneck[set];
        s->score[c] = td_plan_group_score(s->rate[c], width, kinds);
        s->penalty[c] = width - 1 + MIXED * (kinds - 1);
    }
    return TD_OK;
}

static bool fits_in(const search *s, int32_t c, const int32_t *counts) {
    const int32_t *comp = &s->comp[(size_t)c * (size_t)s->n_kinds];
    for (int32_t k = 0; k < s->n_kinds; k++)
        if (comp[k] > counts[k])
            return false;
    return true;
}

static void take(search *s, int32_t c) {
    const int32_t *comp = &s->comp[(size_t)c * (size_t)s->n_kinds];
    for (int32_t k = 0; k < s->n_kinds; k++)
        s->left[k] -= comp[k];
    s->chosen[s->n_chosen++] = c;
    s->total += s->rate[c];
    s->total_score += s->score[c];
}

/* The composition of this kind alone with the highest rate for each device; -1 = none. */
static int32_t best_pure(const search *s, int32_t kind, int32_t *width) {
    int32_t best = -1;
    double most = 0;
    for (int32_t c = 0; c < s->n_comps; c++) {
        const int32_t *comp = &s->comp[(size_t)c * (size_t)s->n_kinds];
        int32_t n = 0;
        for (int32_t k = 0; k < s->n_kinds; k++)
            n += comp[k];
        if (n == comp[kind] && s->score[c] / n > most * TD_PLAN_BETTER) {
            most = s->score[c] / n;
            best = c;
            *width = n;
        }
    }
    return best;
}

/* What may remain of a kind of `have` devices when `reserve` are kept for the search. */
static int32_t kept(int32_t have, int32_t pure_width, int32_t reserve) {
    return !pure_width || have <= reserve + pure_width - 1
               ? have
               : reserve + (have - reserve) % pure_width;
}

static double steps_of(const search *s, const int32_t *width, int32_t reserve, double *states) {
    *states = 1;
    for (int32_t k = 0; k < s->n_kinds; k++)
        *states *= kept(s->left[k], width[k], reserve) + 1.0;
    return *states * s->n_comps;
}

/* Sets groups of one kind apart until the rest can be searched; false: it still cannot. */
static bool set_apart(search *s, int32_t *width, int32_t *pure) {
    int32_t reserve = 0;
    double states;
    for (int32_t k = 0; k < s->n_kinds; k++) {
        width[k] = 0;
        pure[k] = best_pure(s, k, &width[k]);
        reserve = TD_MAX(reserve, s->left[k]);
    }
    while (steps_of(s, width, reserve, &states) > MAX_STEPS || states > MAX_COUNTS)
        if (reserve-- == 0)
            return false;
    for (int32_t k = 0; k < s->n_kinds; k++)
        for (int32_t keep = kept(s->left[k], width[k], reserve); s->left[k] > keep;)
            take(s, pure[k]);
    return true;
}

/* The recursion over what is left. */
static td_status search_rest(const td_planner *pl, search *s) {
    size_t nk = (size_t)s->n_kinds, n_states = 1;
    td_status rc = TD_OK;
    size_t *stride = td_calloc(nk, sizeof *stride);
    int32_t *counts = td_calloc(nk, sizeof *counts);
    for (size_t k = 0; stride && k < nk; k++) {
        stride[k] = n_states;
        n_states *= (size_t)s->left[k] + 1;
    }
    double *total = td_calloc(n_states, sizeof *total);
    int64_t *penalty = td_calloc(n_states, sizeof *penalty);
    int32_t *choice = td_calloc(n_states, sizeof *choice); /* composition, or -1 - kind left out */
    size_t *shift = td_calloc((size_t)s->n_comps + 1, sizeof *shift);
    if (!stride || !counts || !total || !penalty || !choice || !shift) {
        rc = td_error_nomem(pl->err, "the plan", n_states * sizeof *total);
        goto done;
    }
    for (int32_t c = 0; c < s->n_comps; c++)
        for (size_t k = 0; k < nk; k++)
            shift[c] += (size_t)s->comp[(size_t)c * nk + k] * stride[k];
    for (size_t state = 1; state < n_states; state++) {
        double best = -1;
        for (size_t k = 0; k < nk; k++) {
            counts[k] = (int32_t)(state / stride[k] % ((size_t)s->left[k] + 1));
            size_t rest = state - stride[k];
            if (counts[k] && (total[rest] > best * (1 + 1e-9) ||
                              (total[rest] >= best && penalty[rest] < penalty[state]))) {
                best = total[rest];
                penalty[state] = penalty[rest];
                choice[state] = -1 - (int32_t)k;
            }
        }
        for (int32_t c = 0; c < s->n_comps; c++) {
            if (!fits_in(s, c, counts))
                continue;
            size_t rest = state - shift[c];
            double v = s->score[c] + total[rest];
            int64_t p = s->penalty[c] + penalty[rest];
            if (v > best * (1 + 1e-9) || (v > best * (1 - 1e-9) && p < penalty[state])) {
                best = v;
                penalty[state] = p;
                choice[state] = c;
            }
        }
        total[state] = best;
    }
    for (size_t state = n_states - 1; state;) {
        int32_t c = choice[state];
        if (c < 0) {
            state -= stride[-1 - c];
            continue;
        }
        state -= shift[c];
        take(s, c);
    }
done:
    free(stride);
    free(counts);
    free(total);
    free(penalty);
    free(choice);
    free(shift);
    return rc;
}

/* Gives the chosen compositions their devices, in order: narrow groups of one kind first. */
static td_status hand_out(const td_planner *pl, const search *s, td_plan_grouping *out) {
    int32_t n = s->kinds->n_devices;
    size_t nk = (size_t)s->n_kinds;
    int32_t *number = td_calloc((size_t)n, sizeof *number);
    if (!number)
        return td_error_nomem(pl->err, "the plan", (size_t)n * sizeof *number);
    for (int32_t i = 0; i < n; i++)
        out->group_of[i] = -1;
    bool *done = td_calloc((size_t)s->n_comps + 1, sizeof *done);
    if (!done) {
        free(number);
        return td_error_nomem(pl->err, "the plan", (size_t)s->n_comps);
    }
    int32_t g = 0;
    while (g < s->n_chosen) {
        int32_t next = -1;
        for (int32_t i = 0; i < s->n_chosen; i++) {
            int32_t c = s->chosen[i];
            if (!done[c] && (next < 0 || s->penalty[c] < s->penalty[next]))
                next = c;
        }
        done[next] = true;
        for (int32_t i = 0; i < s->n_chosen; i++) {
            if (s->chosen[i] != next)
                continue;
            for (size_t k = 0; k < nk; k++) {
                int32_t want = s->comp[(size_t)next * nk + k];
                for (int32_t d = 0; d < n && want; d++) {
                    if (s->kinds->kind_of[d] == (int32_t)k && out->group_of[d] < 0) {
                        out->group_of[d] = g;
                        want--;
                    }
                }
            }
            g++;
        }
    }
    /* Numbered by their first devices. */
    for (int32_t i = 0; i < n; i++)
        number[i] = -1;
    out->n_groups = 0;
    for (int32_t d = 0; d < n; d++) {
        int32_t *mine = out->group_of[d] < 0 ? NULL : &number[out->group_of[d]];
        if (!mine)
            continue;
        if (*mine < 0)
            *mine = out->n_groups++;
        out->group_of[d] = *mine;
    }
    free(number);
    free(done);
    return TD_OK;
}

/* The best groups of at most `width` devices; taken over where they are better than *best.
 * *possible = false: too many kinds of devices for this width. */
static td_status try_width(td_planner *pl, const int32_t *devices, int32_t n, int32_t width,
                           td_plan_grouping *best, bool *possible, double *ideal) {
    td_plan_kinds kinds;
    td_placement_sets sets = {0};
    td_plan_set_limits(pl, pl->plan->batch_tokens, width);
    td_status rc = td_plan_kinds_open(pl, devices, n, &kinds);
    if (rc != TD_OK)
        return rc;
    search s = {.kinds = &kinds, .sets = &sets, .n_kinds = kinds.n_kinds};
    size_t nk = (size_t)kinds.n_kinds;
    int32_t *scratch = td_calloc(2 * nk, sizeof *scratch);
    td_place_problem problem = td_plan_kinds_problem(&kinds);
    rc = scratch ? td_place_sets(&problem, width, &sets, pl->err)
                 : td_error_nomem(pl->err, "the plan", nk);
    *ideal = 0;
    for (int32_t i = 0; i < n; i++)
        *ideal +=
            (double)pl->plan->micro_batch.n_tokens / td_plan_kind_seconds(&kinds, kinds.kind_of[i]);
    *possible = sets.n_states > 0;
    if (rc == TD_OK && *possible)
        rc = open_search(pl, &s);
    if (rc == TD_OK && *possible && set_apart(&s, scratch, scratch + nk))
        rc = search_rest(pl, &s);
    if (rc == TD_OK && s.total_score > best->score * TD_PLAN_BETTER) {
        best->score = s.total_score;
        best->tokens_per_s = s.total;
        best->width = width;
        rc = hand_out(pl, &s, best);
    }
    free(scratch);
    close_search(&s);
    td_placement_sets_free(&sets);
    td_plan_kinds_close(&kinds);
    return rc;
}

/* The widest groups that are worth a look: beyond what each kind needs, only leftovers gain. */
static int32_t widest_of_interest(td_planner *pl, const int32_t *devices, int32_t n) {
    const td_inventory *inv = &pl->plan->inventory;
    int32_t widest = MIN_WIDEST;
    for (int32_t i = 0; i < n; i++) {
        const td_plan_device *d = &inv->devices[devices[i]];
        bool first = true;
        int32_t same = 0;
        for (int32_t j = 0; j < n; j++) {
            const td_plan_device *o = &inv->devices[devices[j]];
            if (strcmp(o->type, d->type))
                continue;
            first = first && j >= i;
            same++;
        }
        if (!first)
            continue;
        int32_t need = td_plan_devices_needed(pl, d->memory_bytes);
        if (need && need <= same)
            widest = TD_MAX(widest, need + WIDER);
    }
    return TD_MIN(widest, n);
}

td_status td_plan_best_grouping(td_planner *pl, const int32_t *devices, int32_t n,
                                td_plan_grouping *out) {
    td_status rc = TD_OK;
    bool possible = true;
    double ideal = 0;
    *out = (td_plan_grouping){.group_of = td_calloc((size_t)TD_MAX(n, 1), sizeof *out->group_of)};
    if (!out->group_of)
        return td_error_nomem(pl->err, "the plan", (size_t)n);
    td_plan_set_limits(pl, pl->plan->batch_tokens, 1);
    int32_t widest = widest_of_interest(pl, devices, n);
    for (int32_t w = 1; rc == TD_OK && possible && w <= widest; w++) {
        rc = try_width(pl, devices, n, w, out, &possible, &ideal);
        if (out->tokens_per_s >= ideal * (1 - 1e-9))
            break; /* wider ones cannot be better */
    }
    return rc;
}

/* --- what else there was ---------------------------------------------------------------------- */

/* "2 A100-80GB + 1 V100-32GB": the devices of group g. */
static void describe_group(const td_planner *pl, const int32_t *active, int32_t n,
                           const int32_t *group_of, int32_t g, td_strbuf *b) {
    td_strbuf_clear(b);
    const char *type = NULL;
    int32_t run = 0;
    for (int32_t i = 0; i <= n; i++) {
        const char *t = i < n ? pl->plan->inventory.devices[active[i]].type : NULL;
        if (i < n && group_of[i] != g)
            continue;
        if (type && (!t || strcmp(t, type))) {
            td_strbuf_printf(b, "%s%d x %s", b->len ? " + " : "", run, type);
            run = 0;
        }
        type = t;
        run++;
    }
}

/* "4 groups of 1 x A100-80GB, 1 of 4 x V100-32GB" */
static td_status describe(const td_planner *pl, const int32_t *active, int32_t n,
                          const int32_t *group_of, int32_t n_groups, char *buf, size_t size) {
    td_strbuf text = {0}, g = {0}, other = {0};
    bool *done = td_calloc((size_t)n_groups + 1, sizeof *done);
    if (!done)
        return td_error_nomem(pl->err, "the plan", (size_t)n_groups);
    for (int32_t i = 0, distinct = 0; i < n_groups; i++) {
        int32_t same = 1;
        if (done[i])
            continue;
        if (distinct++ == 4) { /* no line has room for more */
            td_strbuf_puts(&text, ", ...");
            break;
        }
        describe_group(pl, active, n, group_of, i, &g);
        for (int32_t j = i + 1; j < n_groups; j++) {
            if (done[j])
                continue;
            describe_group(pl, active, n, group_of, j, &other);
            if (g.len == other.len && !memcmp(g.data, other.data, g.len)) {
                done[j] = true;
                same++;
            }
        }
        td_strbuf_printf(&text, "%s%d%s on %.*s", text.len ? ", " : "", same,
                         text.len    ? ""
                         : same == 1 ? " group"
                                     : " groups",
                         (int)g.len, g.data);
    }
    snprintf(buf, size, "%s", text.data ? text.data : "");
    td_strbuf_free(&text);
    td_strbuf_free(&g);
    td_strbuf_free(&other);
    free(done);
    return TD_OK;
}

/* Rate of given groups; 0 and the reason in `alt` where one does not fit. */
static td_status rate_groups(td_planner *pl, const int32_t *active, int32_t n,
                             const int32_t *group_of, int32_t n_groups, int32_t width,
                             td_plan_alternative *alt, bool *possible) {
    td_plan_kinds kinds;
    td_placement_sets sets = {0};
    td_plan_set_limits(pl, pl->plan->batch_tokens, width);
    td_status rc = td_plan_kinds_open(pl, active, n, &kinds);
    if (rc != TD_OK)
        return rc;
    td_place_problem problem = td_plan_kinds_problem(&kinds);
    rc = td_place_sets(&problem, width, &sets, pl->err);
    *possible = sets.n_states > 0;
    for (int32_t g = 0; rc == TD_OK && *possible && g < n_groups; g++) {
        size_t set = 0;
        for (int32_t i = 0; i < n; i++)
            if (group_of[i] == g)
                set += sets.stride[kinds.kind_of[i]];
        if (sets.bottleneck[set] < HUGE_VAL) {
            alt->tokens_per_s += (double)pl->plan->micro_batch.n_tokens / sets.bottleneck[set];
            continue;
        }
        td_strbuf text = {0};
        describe_group(pl, active, n, group_of, g, &text);
        snprintf(alt->why_not, sizeof alt->why_not, "does not fit on %s",
                 text.data ? text.data : "");
        td_strbuf_free(&text);
        alt->tokens_per_s = 0;
        break;
    }
    td_placement_sets_free(&sets);
    td_plan_kinds_close(&kinds);
    return rc;
}

/* Among the alternatives by rate, unless it is the plan itself or is there already. */
static void keep_alternative(td_plan *plan, const td_plan_alternative *a, const char *chosen) {
    if (!strcmp(a->groups, chosen))
        return;
    for (int32_t i = 0; i < plan->n_alternatives; i++)
        if (!strcmp(plan->alternatives[i].groups, a->groups))
            return;
    if (plan->n_alternatives == MAX_CANDIDATES)
        return;
    int32_t at = plan->n_alternatives++;
    while (at > 0 && plan->alternatives[at - 1].tokens_per_s < a->tokens_per_s)
        at--;
    for (int32_t i = plan->n_alternatives - 1; i > at; i--)
        plan->alternatives[i] = plan->alternatives[i - 1];
    plan->alternatives[at] = *a;
}

/* The fastest, and at least one of those that do not fit: the narrowest, which says why the groups
 * are not narrower. */
static void trim_alternatives(td_plan *plan) {
    int32_t n = plan->n_alternatives, n_fit = 0;
    while (n_fit < n && plan->alternatives[n_fit].tokens_per_s > 0)
        n_fit++;
    int32_t keep = TD_MIN(n_fit, MAX_ALTERNATIVES - (n > n_fit));
    int32_t others = TD_MIN(n - n_fit, MAX_ALTERNATIVES - keep);
    memmove(&plan->alternatives[keep], &plan->alternatives[n_fit],
            (size_t)others * sizeof *plan->alternatives);
    plan->n_alternatives = keep + others;
}

/* gpus_per_model = 1, 2, 4, 8 ... and all. */
static int32_t next_width(int32_t w, int32_t n) {
    return w == n ? n + 1 : TD_MIN(2 * w, n);
}

static td_status list_widths(td_planner *pl, const int32_t *active, int32_t n, int32_t *group_of,
                             const char *chosen) {
    for (int32_t w = 1; w <= n; w = next_width(w, n)) {
        td_plan_alternative a = {0};
        bool possible;
        int32_t n_groups = n / w;
        for (int32_t i = 0; i < n; i++)
            group_of[i] = i / w < n_groups ? i / w : -1;
        snprintf(a.what, sizeof a.what, "gpus_per_model = %d", w);
        td_status rc = describe(pl, active, n, group_of, n_groups, a.groups, sizeof a.groups);
        if (rc == TD_OK)
            rc = rate_groups(pl, active, n, group_of, n_groups, w, &a, &possible);
        if (rc != TD_OK)
            return rc;
        if (!possible)
            break;
        keep_alternative(pl->plan, &a, chosen);
    }
    return TD_OK;
}

/* The best that can be done without the devices of one type. */
static td_status list_without_type(td_planner *pl, const int32_t *active, int32_t n,
                                   const char *type, int32_t *some, const char *chosen) {
    td_plan_alternative a = {0};
    td_plan_grouping best = {0};
    int32_t m = 0;
    for (int32_t i = 0; i < n; i++)
        if (strcmp(pl->plan->inventory.devices[active[i]].type, type))
            some[m++] = active[i];
    if (!m)
        return TD_OK;
    td_status rc = td_plan_best_grouping(pl, some, m, &best);
    snprintf(a.what, sizeof a.what, "without %.50s", type);
    a.tokens_per_s = best.tokens_per_s;
    if (rc == TD_OK && a.tokens_per_s > 0) {
        rc = describe(pl, some, m, best.group_of, best.n_groups, a.groups, sizeof a.groups);
    } else {
        snprintf(a.groups, sizeof a.groups, "none without %.50s", type);
        snprintf(a.why_not, sizeof a.why_not, "does not fit");
    }
    if (rc == TD_OK)
        keep_alternative(pl->plan, &a, chosen);
    free(best.group_of);
    return rc;
}

td_status td_plan_list_alternatives(td_planner *pl) {
    td_plan *plan = pl->plan;
    const td_config *cfg = pl->cfg;
    if (!pl->speeds_known || cfg->devices.gpus_per_model || cfg->devices.n_group_entries)
        return TD_OK;
    td_session_limits limits = plan->limits;
    size_t n_all = (size_t)plan->inventory.n_devices;
    char chosen[sizeof plan->alternatives->groups];
    td_status rc = TD_OK;
    plan->alternatives = td_calloc(MAX_CANDIDATES, sizeof *plan->alternatives);
    int32_t *active = td_calloc(n_all, sizeof *active), *some = td_calloc(n_all, sizeof *some);
    int32_t *group_of = td_calloc(n_all, sizeof *group_of);
    if (!plan->alternatives || !active || !some || !group_of) {
        rc = td_error_nomem(pl->err, "the plan", n_all * sizeof *active);
        goto done;
    }
    int32_t n = 0; /* idle ones, too, if they were tried: leftovers of an automatic plan */
    for (int32_t i = 0; i < plan->inventory.n_devices; i++)
        if (td_plan_speed_known(pl, i)) /* only idle ones can lack it */
            active[n++] = i;
    for (int32_t d = 0; d < n; d++) {
        group_of[d] = -1;
        for (int32_t g = 0; g < plan->n_groups; g++)
            for (int32_t i = 0; i < plan->groups[g].n_devices; i++)
                if (plan->groups[g].devices[i] == active[d])
                    group_of[d] = g;
    }
    rc = describe(pl, active, n, group_of, plan->n_groups, chosen, sizeof chosen);
    if (rc == TD_OK)
        rc = list_widths(pl, active, n, group_of, chosen);
    for (int32_t i = 0, n_types = 0; rc == TD_OK && i < n && n_types < MAX_TYPES_LEFT_OUT; i++) {
        const char *type = plan->inventory.devices[active[i]].type;
        bool first = true;
        for (int32_t j = 0; j < i; j++)
            first = first && strcmp(plan->inventory.devices[active[j]].type, type);
        if (!first)
            continue;
        n_types++;
        rc = list_without_type(pl, active, n, type, some, chosen);
    }
    trim_alternatives(plan);
done:
    plan->limits = limits;
    free(active);
    free(some);
    free(group_of);
    return rc;
}
