/* Placement: an exact dynamic programme over items x used-device set.
 *
 * Devices of one kind are interchangeable, so a used-device set is a vector of counts, one a kind;
 * eight equal devices have 9 states, eight different ones 256. With
 *   cost(k, b, e)   items [b, e) on a device of kind k
 *   best[b][s]      items [b, n) on the devices that state s still has, best[n][s] = 0
 * the bottleneck is
 *   best[b][s] = min over k in s, e > b of max(cost(k, b, e), best[e][s - k])
 * and a second pass of the same shape minimises the sum of squares among the cuts that keep every
 * stage at or below that bottleneck. Running from the last item backwards lets the reconstruction
 * go forwards and take the first device of the given order among equals.
 *
 * When the states are too many (a dozen devices that all differ), the devices are tried in their
 * given order only: best[b][j] over devices j.., each used once or skipped.
 */
#include "place.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tdgen/util.h"

enum { MAX_STATES = 2048 };

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
    double *best; /* [n_items + 1][n_states] */
    size_t n_states;
    bool ordered;   /* states are positions in the given order instead of counts */
    size_t *stride; /* [n_kinds] of the count of a kind in the state's number */
    int32_t *count; /* [n_kinds] devices of a kind */
} solver;

static double cost_at(const solver *s, int32_t kind, int32_t b, int32_t e) {
    size_t m = (size_t)s->p->n_items + 1;
    return s->cost[((size_t)kind * m + (size_t)b) * m + (size_t)e];
}

static double *best_at(const solver *s, int32_t b, size_t state) {
    return &s->best[(size_t)b * s->n_states + state];
}

/* Value of "items [b, e) on kind, the rest from `next`". */
static double step(const solver *s, objective o, int32_t kind, int32_t b, int32_t e, size_t next) {
    double c = cost_at(s, kind, b, e), rest = *best_at(s, e, next);
    if (!(c <= o.limit) || rest == HUGE_VAL)
        return HUGE_VAL;
    return o.sum_squares ? c * c + rest : fmax(c, rest);
}

/* Kinds that a state offers at one step, with the state that remains. In counts mode all kinds that
 * are left; in ordered mode the device at the state's position (skipping is handled by the caller).
 */
static int32_t left_of(const solver *s, size_t state, int32_t kind) {
    return (int32_t)(state / s->stride[kind] % ((size_t)s->count[kind] + 1));
}

static void solve(const solver *s, objective o) {
    const td_place_problem *p = s->p;
    int32_t n = p->n_items;
    for (size_t st = 0; st < s->n_states; st++)
        *best_at(s, n, st) = 0;
    for (int32_t b = n - 1; b >= 0; b--) {
        for (size_t i = 0; i < s->n_states; i++) {
            /* Ordered: from the last device backwards, as a skip looks at the next position. */
            size_t st = s->ordered ? s->n_states - 1 - i : i;
            double v = HUGE_VAL;
            if (s->ordered) {
                if (st < (size_t)p->n_devices) {
                    v = *best_at(s, b, st + 1);
                    for (int32_t e = b + 1; e <= n; e++)
                        v = fmin(v, step(s, o, p->kind_of[st], b, e, st + 1));
                }
            } else {
                for (int32_t k = 0; k < p->n_kinds; k++) {
                    if (!left_of(s, st, k))
                        continue;
                    for (int32_t e = b + 1; e <= n; e++)
                        v = fmin(v, step(s, o, k, b, e, st - s->stride[k]));
                }
            }
            *best_at(s, b, st) = v;
        }
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
        double want = *best_at(s, b, state) * TIE;
        int32_t dev = -1, end = 0;
        size_t next = 0;
        for (int32_t d = s->ordered ? (int32_t)state : 0; d < p->n_devices && dev < 0; d++) {
            int32_t k = p->kind_of[d];
            if (used[d])
                continue;
            size_t after = s->ordered ? (size_t)d + 1 : state - s->stride[k];
            for (int32_t e = p->n_items; e > b && dev < 0; e--) {
                if (step(s, o, k, b, e, after) <= want) {
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

td_status td_place(const td_place_problem *p, td_placement *out, td_error *err) {
    solver s = {.p = p};
    bool *used = NULL;
    td_status st = TD_OK;
    size_t m = (size_t)p->n_items + 1, cells = 0, table = 0, n_states = 1;
    out->n_stages = 0;
    out->bottleneck = HUGE_VAL;

    s.stride = td_calloc((size_t)p->n_kinds, sizeof *s.stride);
    s.count = td_calloc((size_t)p->n_kinds, sizeof *s.count);
    used = td_calloc((size_t)p->n_devices, sizeof *used);
    if (!s.stride || !s.count || !used)
        goto nomem;
    for (int32_t d = 0; d < p->n_devices; d++)
        s.count[p->kind_of[d]]++;
    for (int32_t k = 0; k < p->n_kinds && n_states <= MAX_STATES; k++) {
        s.stride[k] = n_states;
        n_states *= (size_t)s.count[k] + 1;
    }
    s.ordered = n_states > MAX_STATES;
    s.n_states = s.ordered ? (size_t)p->n_devices + 1 : n_states;
    out->exact = !s.ordered;

    if (!td_mul_size(m, m, &cells) || !td_mul_size(cells, (size_t)p->n_kinds, &cells) ||
        !td_mul_size(m, s.n_states, &table))
        goto nomem;
    s.cost = td_calloc(cells, sizeof *s.cost);
    s.best = td_calloc(table, sizeof *s.best);
    if (!s.cost || !s.best)
        goto nomem;
    for (int32_t k = 0; k < p->n_kinds; k++)
        for (int32_t b = 0; b < p->n_items; b++)
            for (int32_t e = b + 1; e <= p->n_items; e++)
                s.cost[((size_t)k * m + (size_t)b) * m + (size_t)e] = p->cost(p->user, k, b, e);

    solve(&s, (objective){.sum_squares = false, .limit = nextafter(HUGE_VAL, 0)});
    out->bottleneck = *best_at(&s, 0, s.ordered ? 0 : s.n_states - 1);
    if (out->bottleneck < HUGE_VAL) {
        objective even = {.sum_squares = true, .limit = out->bottleneck * TIE};
        solve(&s, even);
        reconstruct(&s, even, used, out);
    }
    goto done;
nomem:
    st = td_error_nomem(err, "placing layers on devices", cells * sizeof(double));
done:
    free(s.stride);
    free(s.count);
    free(used);
    free(s.cost);
    free(s.best);
    return st;
}
