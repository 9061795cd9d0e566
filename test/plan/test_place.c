/* Placement: the dynamic programme against brute force on random instances, and its tie rules. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/place.h"
#include "fixture.h"

enum { MAX_ITEMS = 12, MAX_DEVICES = 14 };

typedef struct instance {
    int32_t n_items, n_devices, n_kinds;
    int32_t kind_of[MAX_DEVICES];
    double seconds[MAX_DEVICES][MAX_ITEMS], boundary[MAX_DEVICES];
    int size[MAX_ITEMS], limit[MAX_DEVICES], fixed_size; /* memory: sum of sizes + fixed <= limit */
} instance;

static double cost(const void *user, int32_t kind, int32_t b, int32_t e) {
    const instance *in = user;
    double t = b ? in->boundary[kind] : 0;
    int size = in->fixed_size;
    for (int32_t i = b; i < e; i++) {
        t += in->seconds[kind][i];
        size += in->size[i];
    }
    return size > in->limit[kind] ? HUGE_VAL : t;
}

static instance random_instance(int32_t max_items, int32_t max_devices) {
    instance in = {0};
    in.n_items = 1 + (int32_t)rnd((uint32_t)max_items);
    in.n_devices = 1 + (int32_t)rnd((uint32_t)max_devices);
    in.n_kinds = 1 + (int32_t)rnd((uint32_t)in.n_devices);
    bool whole = rnd(2); /* small whole numbers make many ties */
    for (int32_t d = 0; d < in.n_devices; d++) {
        in.kind_of[d] = (int32_t)rnd((uint32_t)in.n_kinds);
        double speed = 0.25 * (1 + rnd(8));
        in.boundary[d] = rnd(3) ? 0 : whole ? 1 : rnd(1000) / 1000.0;
        in.limit[d] = 5 + (int)rnd(40);
        for (int32_t i = 0; i < in.n_items; i++)
            in.seconds[d][i] = whole ? 1 + rnd(4) : (1 + rnd(1000)) / (500 * speed);
    }
    in.fixed_size = (int)rnd(4);
    for (int32_t i = 0; i < in.n_items; i++)
        in.size[i] = 1 + (int)rnd(9);
    return in;
}

/* All ways to give items [b, n) to unused devices; in_order: only devices >= first. */
static void brute(const instance *in, bool in_order, int32_t first, int32_t b, bool *used,
                  double worst, double squares, double *best, double *best_squares) {
    if (b == in->n_items) {
        if (worst < *best * (1 - 1e-12)) {
            *best = worst;
            *best_squares = squares;
        } else if (worst <= *best * (1 + 1e-12)) {
            *best_squares = fmin(*best_squares, squares);
        }
        return;
    }
    for (int32_t d = in_order ? first : 0; d < in->n_devices; d++) {
        if (used[d])
            continue;
        used[d] = true;
        for (int32_t e = b + 1; e <= in->n_items; e++) {
            double c = cost(in, in->kind_of[d], b, e);
            if (c < HUGE_VAL && fmax(worst, c) <= *best * (1 + 1e-12))
                brute(in, in_order, d + 1, e, used, fmax(worst, c), squares + c * c, best,
                      best_squares);
        }
        used[d] = false;
    }
}

static td_placement place(const instance *in, td_place_stage *stages) {
    td_place_problem p = {.n_items = in->n_items,
                          .n_devices = in->n_devices,
                          .kind_of = in->kind_of,
                          .n_kinds = in->n_kinds,
                          .cost = cost,
                          .user = in};
    td_placement out = {.stages = stages};
    td_error err;
    cr_assert_eq(td_place(&p, &out, &err), TD_OK);
    return out;
}

static void check_against_brute_force(const instance *in, bool in_order, int number) {
    td_place_stage stages[MAX_DEVICES];
    td_placement out = place(in, stages);
    bool used[MAX_DEVICES] = {0};
    double best = HUGE_VAL, best_squares = HUGE_VAL;
    brute(in, in_order, 0, 0, used, 0, 0, &best, &best_squares);
    cr_assert_eq(out.exact, !in_order);
    if (best == HUGE_VAL) {
        cr_assert_eq(out.bottleneck, HUGE_VAL, "instance %d: found what cannot be", number);
        cr_assert_eq(out.n_stages, 0);
        return;
    }
    cr_assert_lt(fabs(out.bottleneck - best), 1e-9 * best, "instance %d: %.17g, brute force %.17g",
                 number, out.bottleneck, best);
    double worst = 0, squares = 0;
    int32_t at = 0;
    for (int32_t s = 0; s < out.n_stages; s++) {
        cr_assert_eq(stages[s].begin, at);
        cr_assert_gt(stages[s].end, at);
        cr_assert_not(used[stages[s].device], "instance %d: a device twice", number);
        used[stages[s].device] = true;
        double c = cost(in, in->kind_of[stages[s].device], at, stages[s].end);
        worst = fmax(worst, c);
        squares += c * c;
        at = stages[s].end;
    }
    cr_assert_eq(at, in->n_items);
    cr_assert_lt(fabs(worst - best), 1e-8 * best);
    cr_assert_lt(squares, best_squares * (1 + 1e-7), "instance %d: not the most even", number);
}

Test(place, equals_brute_force_on_random_instances) {
    int feasible = 0;
    rng_state = 1;
    for (int i = 0; i < 600; i++) {
        instance in = random_instance(8, 5);
        check_against_brute_force(&in, false, i);
        td_place_stage stages[MAX_DEVICES];
        feasible += place(&in, stages).n_stages > 0;
    }
    /* The instances exercise both outcomes. */
    cr_assert(feasible > 100 && feasible < 590, "%d feasible", feasible);
}

Test(place, too_many_kinds_fall_back_to_the_given_order) {
    rng_state = 2;
    for (int i = 0; i < 40; i++) {
        instance in = random_instance(6, 1);
        in.n_devices = in.n_kinds = 13; /* 8192 used-device sets */
        for (int32_t d = 0; d < in.n_devices; d++) {
            in.kind_of[d] = d;
            in.limit[d] = 8 + (int)rnd(30);
            for (int32_t j = 0; j < in.n_items; j++)
                in.seconds[d][j] = (1 + rnd(1000)) / 500.0;
        }
        check_against_brute_force(&in, true, i);
    }
}

/* The bottleneck of each set of devices is that of a placement on these devices alone. */
Test(place, sets_equal_brute_force_on_their_devices) {
    rng_state = 3;
    int too_wide = 0, feasible = 0;
    for (int i = 0; i < 200; i++) {
        instance in = random_instance(8, 5);
        int32_t width = 1 + (int32_t)rnd((uint32_t)in.n_devices);
        td_place_problem p = {.n_items = in.n_items,
                              .n_devices = in.n_devices,
                              .kind_of = in.kind_of,
                              .n_kinds = in.n_kinds,
                              .cost = cost,
                              .user = &in};
        td_placement_sets sets;
        td_error err;
        cr_assert_eq(td_place_sets(&p, width, &sets, &err), TD_OK);
        for (uint32_t mask = 0; mask < 1u << in.n_devices; mask++) {
            bool used[MAX_DEVICES];
            int32_t n = 0, count[MAX_DEVICES] = {0};
            size_t state = 0;
            for (int32_t d = 0; d < in.n_devices; d++) {
                used[d] = !(mask >> d & 1);
                n += !used[d];
                count[in.kind_of[d]] += !used[d];
            }
            if (n > width) {
                too_wide++;
                continue;
            }
            for (int32_t k = 0; k < in.n_kinds; k++)
                state += (size_t)count[k] * sets.stride[k];
            double best = HUGE_VAL, squares = HUGE_VAL, got = sets.bottleneck[state];
            brute(&in, false, 0, 0, used, 0, 0, &best, &squares);
            cr_assert_lt(state, sets.n_states);
            cr_assert(got == best || fabs(got - best) < 1e-9 * best, "instance %d, set %x: %g, %g",
                      i, mask, got, best);
            feasible += best < HUGE_VAL;
        }
        td_placement_sets_free(&sets);
    }
    cr_assert(too_wide > 100 && feasible > 100, "%d %d", too_wide, feasible);
}

static instance even_items(int32_t n_items, int32_t n_devices) {
    instance in = {.n_items = n_items, .n_devices = n_devices, .n_kinds = 1, .limit = {1000}};
    for (int32_t i = 0; i < n_items; i++) {
        in.seconds[0][i] = 1;
        in.size[i] = 1;
    }
    return in;
}

Test(place, equal_devices_are_taken_in_the_given_order) {
    instance in = even_items(12, 4);
    td_place_stage s[MAX_DEVICES];
    td_placement out = place(&in, s);
    cr_assert_eq(out.n_stages, 4);
    for (int32_t i = 0; i < 4; i++) {
        cr_assert_eq(s[i].device, i);
        cr_assert_eq(s[i].end - s[i].begin, 3);
    }
}

Test(place, surplus_devices_stay_empty) {
    instance in = even_items(3, 5);
    td_place_stage s[MAX_DEVICES];
    td_placement out = place(&in, s);
    cr_assert_eq(out.n_stages, 3);
    for (int32_t i = 0; i < 3; i++)
        cr_assert_eq(s[i].device, i);
}

Test(place, order_follows_memory_where_speed_does_not_care) {
    /* The large last item only fits on device 0, which the given order would use first. */
    instance in = even_items(4, 2);
    in.n_kinds = 2;
    in.kind_of[1] = 1;
    for (int32_t i = 0; i < 4; i++)
        in.seconds[1][i] = 1;
    in.size[3] = 50;
    in.limit[0] = 100;
    in.limit[1] = 10;
    td_place_stage s[MAX_DEVICES];
    td_placement out = place(&in, s);
    cr_assert_eq(out.n_stages, 2);
    cr_assert_eq(s[0].device, 1);
    cr_assert_eq(s[1].device, 0);
    cr_assert_eq(out.bottleneck, 2);
}

Test(place, a_slow_device_that_does_not_help_is_left_out) {
    instance in = even_items(4, 2);
    in.n_kinds = 2;
    in.kind_of[1] = 1;
    in.limit[1] = 1000;
    for (int32_t i = 0; i < 4; i++)
        in.seconds[1][i] = 100;
    td_place_stage s[MAX_DEVICES];
    td_placement out = place(&in, s);
    cr_assert_eq(out.n_stages, 1);
    cr_assert_eq(s[0].device, 0);
    cr_assert_eq(out.bottleneck, 4);
}
