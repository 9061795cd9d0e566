/* Placement: an exact dynamic programme over used-device set x items.
 *
 * Devices of one kind are interchangeable, so a used-device set is a vector of counts, one a kind;
 * eight equal devices have 9 states, eight different ones 256. With
 *   cost(k, b, e)   items [b, e) on a device of kind k
 *   best[s][b]      items [b, n) on the devices that state s still has, best[s][n] = 0
 * the bottleneck is
 *   best[s][b] = min over k in s, e > b of max(cost(k, b, e), best[s - k][e])
 * and a second pass of the same shape minimises the sum of squares among the cuts that keep every
 * stage at or below that bottleneck. Running from the last item backwards lets the reconstruction
 * go forwards and take the first device of the given order among equals. As a stage costs no less
 * with one more item, the search for e ends at the first that cannot help any more: that is what
 * makes 130 layers on eight different devices a matter of milliseconds.
 *
 * The first pass knows the bottleneck of every subset of the devices when it is done: that is what
 * td_place_sets gives to those who form groups.
 *
 * When the states are too many (a dozen devices that all differ), the devices are tried in their
 * given order only: best[j][b] over devices j.., each used once or skipped.
 */
#include "plan/place.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Costs this close count as equal: sums of the same terms in another order differ by rounding. */
static const double TIE = 1 + 1e-9;

/* One run of the recursion: how stage costs combine, and the limit that a stage must keep. */
typedef struct objective {
    bool sum_squares; /* else the maximum */
    double limit;     /* stages above it are not allowed */
} objective;

typedef struct solver {
    const td_place_problem *p;
    double *cost; /* [n_kinds][n_items + 1][n_items + 1] */
    double *best; /* [n_states][n_items + 1] */
    size_t n_states;
    bool ordered;   /* states are positions in the given order instead of counts */
    size_t *stride; /* [n_kinds] of the count of a kind in the state's number */
    int32_t *count; /* [n_kinds] devices of a kind */
    int32_t width;  /* states of more devices are left out */
} solver;

static const double *cost_row(const solver *s, int32_t kind, int32_t b) {
    size_t m = (size_t)s->p->n_items + 1;
    return &s->cost[((size_t)kind * m + (size_t)b) * m];
}

static double *best_row(const solver *s, size_t state) {
    return &s->best[state * ((size_t)s->p->n_items + 1)];
}

static double combine(objective o, double cost, double rest) {
    if (!(cost <= o.limit) || rest == HUGE_VAL)
        return HUGE_VAL;
    return o.sum_squares ? cost * cost + rest : fmax(cost, rest);
}

/* Kinds that a state offers at one step, with the state that remains. In counts mode all kinds that
 * are left; in ordered mode the device at the state's position (skipping is handled by the caller).
 */
static int32_t left_of(const solver *s, size_t state, int32_t kind) {
    return (int32_t)(state / s->stride[kind] % ((size_t)s->count[kind] + 1));
}

/* The best of v and what begins with items [b, e) on the kind, for all e. */
static double best_cut(const solver *s, objective o, int32_t kind, int32_t b, const double *rest,
                       double v) {
    const double *cost = cost_row(s, kind, b);
    for (int32_t e = b + 1; e <= s->p->n_items; e++) {
        double c = cost[e];
        /* Longer stages only cost more. */
        if (!(c <= o.limit) || (o.sum_squares ? c * c : c) >= v)
            break;
        v = fmin(v, combine(o, c, rest[e]));
    }
    return v;
}

static void solve_state(const solver *s, objective o, size_t state) {
    const td_place_problem *p = s->p;
    double *best = best_row(s, state);
    best[p->n_items] = 0;
    for (int32_t b = p->n_items - 1; b >= 0; b--) {
        double v = HUGE_VAL;
        if (s->ordered && state < (size_t)p->n_devices) {
            const double *rest = best_row(s, state + 1);
            v = best_cut(s, o, p->kind_of[state], b, rest, rest[b]);
        }
        for (int32_t k = 0; !s->ordered && k < p->n_kinds; k++)
            if (left_of(s, state, k))
                v = best_cut(s, o, k, b, best_row(s, state - s->stride[k]), v);
        best[b] = v;
    }
}

/* A state comes after those that it looks at: fewer devices, or later ones. */
static void solve(const solver *s, objective o) {
    for (size_t i = 0; i < s->n_states; i++) {
        int32_t width = 0;
        for (int32_t k = 0; !s->ordered && k < s->p->n_kinds; k++)
            width += left_of(s, i, k);
        if (width <= s->width)
            solve_state(s, o, s->ordered ? s->n_states - 1 - i : i);
    }
}

/* Walks from item 0, at each point the first device in the given order that keeps the optimum, with
 * as many items as it allows. */
static void reconstruct(const solver *s, objective o, bool *used, td_placement *out) {
    const td_place_problem *p = s->p;
    size_t state = s->ordered ? 0 : s->n_states - 1;
    int32_t b = 0;
    out->n_stages = 0;
    while (b < p->n_items) {
        double want = best_row(s, state)[b] * TIE;
        int32_t dev = -1, end = 0;
        size_t next = 0;
        for (int32_t d = s->ordered ? (int32_t)state : 0; d < p->n_devices && dev < 0; d++) {
            int32_t k = p->kind_of[d];
            if (used[d])
                continue;
            size_t after = s->ordered ? (size_t)d + 1 : state - s->stride[k];
            for (int32_t e = p->n_items; e > b && dev < 0; e--) {
                if (combine(o, cost_row(s, k, b)[e], best_row(s, after)[e]) <= want) {
                    dev = d;
                    end = e;
                    next = after;
                }
            }
        }
        if (dev < 0) /* cannot be: best was reached by one of these steps */
            break;
        used[dev] = true;
        out->stages[out->n_stages++] = (td_place_stage){dev, b, end};
        b = end;
        state = next;
    }
}

static void free_solver(solver *s) {
    free(s->stride);
    free(s->count);
    free(s->cost);
    free(s->best);
}

/* Counts, states and the table of costs; at most `width` devices of a kind are of interest. */
static td_status open_solver(solver *s, int32_t width, bool may_order, td_error *err) {
    const td_place_problem *p = s->p;
    size_t m = (size_t)p->n_items + 1, cells = 0, table = 0, n_states = 1;
    s->width = width;
    s->stride = td_calloc((size_t)p->n_kinds, sizeof *s->stride);
    s->count = td_calloc((size_t)p->n_kinds, sizeof *s->count);
    if (!s->stride || !s->count)
        goto nomem;
    for (int32_t d = 0; d < p->n_devices; d++)
        s->count[p->kind_of[d]]++;
    for (int32_t k = 0; k < p->n_kinds && n_states <= TD_PLACE_MAX_STATES; k++) {
        s->count[k] = TD_MIN(s->count[k], width);
        s->stride[k] = n_states;
        n_states *= (size_t)s->count[k] + 1;
    }
    s->n_states = n_states;
    if (n_states > TD_PLACE_MAX_STATES) {
        s->ordered = may_order;
        s->n_states = may_order ? (size_t)p->n_devices + 1 : 0;
    }
    if (!s->n_states)
        return TD_OK;
    if (!td_mul_size(m, m, &cells) || !td_mul_size(cells, (size_t)p->n_kinds, &cells) ||
        !td_mul_size(m, s->n_states, &table))
        goto nomem;
    s->cost = td_calloc(cells, sizeof *s->cost);
    s->best = td_calloc(table, sizeof *s->best);
    if (!s->cost || !s->best)
        goto nomem;
    for (size_t i = 0; i < table; i++)
        s->best[i] = HUGE_VAL;
    for (int32_t k = 0; k < p->n_kinds; k++) {
        for (int32_t b = 0; b < p->n_items; b++) {
            double *row = &s->cost[((size_t)k * m + (size_t)b) * m], c = 0;
            for (int32_t e = b + 1; e <= p->n_items; e++)
                row[e] = c = c == HUGE_VAL ? c : p->cost(p->user, k, b, e);
        }
    }
    return TD_OK;
nomem:
    return td_error_nomem(err, "placing layers on devices", cells * sizeof(double));
}

static const objective SLOWEST = {.sum_squares = false, .limit = DBL_MAX};

td_status td_place(const td_place_problem *p, td_placement *out, td_error *err) {
    solver s = {.p = p};
    out->n_stages = 0;
    out->bottleneck = HUGE_VAL;
    bool *used = td_calloc((size_t)p->n_devices, sizeof *used);
    td_status rc = used ? open_solver(&s, p->n_devices, true, err)
                        : td_error_nomem(err, "placing layers on devices", (size_t)p->n_devices);
    if (rc != TD_OK)
        goto done;
    out->exact = !s.ordered;
    solve(&s, SLOWEST);
    out->bottleneck = best_row(&s, s.ordered ? 0 : s.n_states - 1)[0];
    if (out->bottleneck < HUGE_VAL) {
        objective even = {.sum_squares = true, .limit = out->bottleneck * TIE};
        solve(&s, even);
        reconstruct(&s, even, used, out);
    }
done:
    free(used);
    free_solver(&s);
    return rc;
}

td_status td_place_sets(const td_place_problem *p, int32_t width, td_placement_sets *out,
                        td_error *err) {
    solver s = {.p = p};
    *out = (td_placement_sets){0};
    td_status rc = open_solver(&s, width, false, err);
    if (rc == TD_OK && s.n_states) {
        out->bottleneck = td_calloc(s.n_states, sizeof *out->bottleneck);
        if (!out->bottleneck)
            rc = td_error_nomem(err, "placing layers on devices", s.n_states);
    }
    if (rc == TD_OK && s.n_states) {
        solve(&s, SLOWEST);
        for (size_t i = 0; i < s.n_states; i++)
            out->bottleneck[i] = i ? best_row(&s, i)[0] : HUGE_VAL;
        out->n_states = s.n_states;
        out->stride = s.stride;
        out->count = s.count;
        s.stride = NULL;
        s.count = NULL;
    }
    free_solver(&s);
    return rc;
}

void td_placement_sets_free(td_placement_sets *s) {
    free(s->bottleneck);
    free(s->stride);
    free(s->count);
    *s = (td_placement_sets){0};
}
