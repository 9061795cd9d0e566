/* test_claims.c - the claim policy: limits of a claim, the tail, and that never all groups leave.
 * The reference for the tail is a plain search over time for the moment when the peers are done. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "queue/queue.h"

enum { MAX_GROUPS = 12, MAX_ITEMS = 4096 };

typedef struct world {
    td_queue *queue;
    td_claim_board *board;
    td_claimer *c; /* [n] */
    td_claim_item *items;
    int32_t n, n_items;
} world;

static void open_world(world *w, int32_t n) {
    td_error err;
    *w = (world){.n = n};
    cr_assert_eq(td_queue_create(4096, (uint32_t)n, &w->queue, &err), TD_OK);
    cr_assert_eq(td_claim_board_create(n, &w->board, &err), TD_OK);
    w->c = calloc((size_t)n, sizeof *w->c);
    w->items = calloc(MAX_ITEMS, sizeof *w->items);
    cr_assert(w->c && w->items);
}

static void close_world(world *w) {
    td_queue_destroy(w->queue);
    td_claim_board_destroy(w->board);
    free(w->c);
    free(w->items);
}

static void join(world *w, int32_t g, double rate, int32_t n_stages, double depth) {
    td_claimer_setup in = {.board = w->board,
                           .queue = w->queue,
                           .group = (uint32_t)g,
                           .n_slots = n_stages + 1,
                           .n_stages = n_stages,
                           .depth = depth,
                           .rate_kflop = rate};
    td_claimer_init(&w->c[g], &in);
}

static void publish(world *w, int32_t n, int64_t kflop) {
    for (int32_t i = 0; i < n; i++) {
        td_claim_item *it = &w->items[w->n_items++];
        it->kflop = kflop;
        td_claim_board_add(w->board, it);
        cr_assert(td_queue_publish(w->queue, it));
    }
}

static double uniform(uint64_t *s) {
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (double)(*s >> 11) * 0x1p-53;
}

/* Claims, and gives it all back: how many were claimed at once. */
static uint32_t claim_length(world *w, int32_t g, double now) {
    td_claim claim;
    bool got = td_claimer_next(&w->c[g], now, &claim);
    uint32_t n = w->c[g].n_held;
    if (got) /* the one that was taken out: back into the list, to be released with the others */
        w->c[g].next_held--;
    td_claimer_release_held(&w->c[g], now);
    return got ? n : 0;
}

Test(claims, a_claim_is_two_seconds_of_the_claimers_own_work) {
    world w;
    open_world(&w, 2);
    join(&w, 0, 1000, 1, 1);
    join(&w, 1, 3000, 1, 1);
    publish(&w, 4000, 100); /* 10 a second, 30 a second */
    td_claim claim;
    cr_assert(td_claimer_next(&w.c[0], 0, &claim));
    cr_expect_eq(w.c[0].n_held, 20);
    cr_assert(td_claimer_next(&w.c[1], 0, &claim));
    cr_expect_eq(w.c[1].n_held, 60);
    close_world(&w);
}

Test(claims, a_claim_is_a_quarter_of_what_remains_for_each_group) {
    world w;
    open_world(&w, 2);
    join(&w, 0, 100000, 1, 1);
    join(&w, 1, 100000, 1, 1);
    publish(&w, 80, 100);
    cr_expect_eq(claim_length(&w, 0, 0), 10);
    td_claim_board_set_unread(w.board, 80 * 100); /* as much again is not read yet */
    cr_expect_eq(claim_length(&w, 0, 0), 1);      /* what came back is claimed one by one */
    close_world(&w);
    open_world(&w, 2);
    join(&w, 0, 100000, 1, 1);
    join(&w, 1, 100000, 1, 1);
    publish(&w, 80, 100);
    td_claim_board_set_unread(w.board, 80 * 100);
    cr_expect_eq(claim_length(&w, 0, 0), 20);
    close_world(&w);
}

Test(claims, never_less_than_one_and_one_at_a_time_while_nothing_is_known) {
    world w;
    open_world(&w, 2);
    join(&w, 0, 10, 1, 1); /* 10 s for one */
    join(&w, 1, 0, 1, 1);
    publish(&w, 3000, 100);
    cr_expect_eq(claim_length(&w, 0, 0), 1);
    cr_expect_eq(claim_length(&w, 1, 0), 1);
    close_world(&w);
}

Test(claims, the_observed_speed_replaces_the_plans) {
    world w;
    td_claim claim;
    open_world(&w, 1);
    join(&w, 0, 1000, 1, 1); /* the plan says 0.1 s for one, it takes 0.4 s */
    publish(&w, 3000, 100);
    double now = 0;
    for (int i = 0; i < 60; i++) {
        cr_assert(td_claimer_next(&w.c[0], now, &claim));
        td_claimer_submitted(&w.c[0], now, &claim);
        now += 0.4;
        td_claimer_completed(&w.c[0], now, claim.item, 0.1);
    }
    cr_expect_float_eq(td_claim_board_rate(w.board, 0), 250, 1);
    cr_expect_float_eq(td_claimer_correction(&w.c[0]), 4, 0.02);
    /* Two in flight: what the watchdog multiplies. */
    for (int i = 0; i < 2; i++) {
        cr_assert(td_claimer_next(&w.c[0], now, &claim));
        td_claimer_submitted(&w.c[0], now, &claim);
    }
    cr_expect_float_eq(td_claimer_expected_s(&w.c[0]), 0.8, 0.01);
    cr_expect_not(td_claimer_next(&w.c[0], now, &claim), "a third one in flight of one stage");
    close_world(&w);
}

/* One left, a slow group is free now, a fast one in a moment. */
Test(claims, the_last_one_goes_to_whoever_finishes_it_first) {
    td_claim claim;
    for (int busy = 1; busy <= 2; busy++) {
        world w;
        open_world(&w, 2);
        join(&w, 0, 100, 1, 1); /* 3 s for one */
        join(&w, 1, 300, 1, 1); /* 1 s */
        publish(&w, busy, 300);
        for (int i = 0; i < busy; i++) { /* the fast one has 1 or 2 before it */
            cr_assert(td_claimer_next(&w.c[1], 0, &claim));
            td_claimer_submitted(&w.c[1], 0, &claim);
        }
        publish(&w, 1, 300);
        /* It would have it done at 2 or 3 s: with 2 the slow one leaves it, with 3 it is no later.
         */
        cr_expect_eq(td_claimer_next(&w.c[0], 0, &claim), busy == 2);
        cr_expect_eq(w.c[0].left, busy == 1);
        if (busy == 1) /* later, it would be 3.5 against 2 */
            cr_expect_not(td_claimer_next(&w.c[0], 0.5, &claim));
        close_world(&w);
    }
}

Test(claims, two_left_are_shared) {
    world w;
    td_claim claim;
    open_world(&w, 2);
    join(&w, 0, 100, 1, 1); /* 3 s for one */
    join(&w, 1, 300, 1, 1); /* 1 s */
    publish(&w, 2, 300);
    cr_expect_not(td_claimer_next(&w.c[0], 0, &claim), "the fast one has both done in 2 s");
    publish(&w, 1, 300);
    cr_expect(td_claimer_next(&w.c[0], 0, &claim), "three take it 3 s");
    close_world(&w);
}

Test(claims, what_is_held_goes_back_when_a_peer_would_be_sooner) {
    world w;
    td_claim claim;
    open_world(&w, 2);
    join(&w, 0, 100, 1, 1);
    publish(&w, 40, 10); /* alone: a quarter of 40 */
    cr_assert(td_claimer_next(&w.c[0], 0, &claim));
    uint32_t held = w.c[0].n_held - w.c[0].next_held;
    cr_assert_geq(held, 4);
    td_claimer_submitted(&w.c[0], 0, &claim);
    join(&w, 1, 100000, 1, 1); /* it does all that remains in 4 ms */
    cr_expect_not(td_claimer_next(&w.c[0], 0.01, &claim));
    cr_expect_eq(w.c[0].n_held, w.c[0].next_held);
    /* The other one gets them all. */
    int n = 0;
    for (double now = 0.01; td_claimer_next(&w.c[1], now, &claim); n++) {
        td_claimer_submitted(&w.c[1], now, &claim);
        now += 1e-4;
        td_claimer_completed(&w.c[1], now, claim.item, 0);
    }
    cr_expect_eq(n, 39);
    close_world(&w);
}

Test(claims, an_alone_one_has_the_group_for_itself) {
    world w;
    td_claim a, b;
    open_world(&w, 1);
    join(&w, 0, 1000, 1, 1);
    publish(&w, 3, 10);
    w.items[1].alone = true;
    cr_assert(td_claimer_next(&w.c[0], 0, &a));
    td_claimer_submitted(&w.c[0], 0, &a);
    cr_expect_not(td_claimer_next(&w.c[0], 0, &b), "something is in flight");
    td_claimer_completed(&w.c[0], 1, a.item, 0);
    cr_assert(td_claimer_next(&w.c[0], 1, &b));
    cr_assert_eq(b.item, &w.items[1]);
    td_claimer_submitted(&w.c[0], 1, &b);
    cr_expect_not(td_claimer_next(&w.c[0], 1, &a), "it is in flight");
    close_world(&w);
}

Test(claims, a_group_that_hangs_is_not_waited_for) {
    world w;
    td_claim claim;
    open_world(&w, 2);
    join(&w, 0, 100, 1, 1);
    join(&w, 1, 1000, 1, 1);
    publish(&w, 1, 100);
    cr_assert(td_claimer_next(&w.c[1], 0, &claim)); /* until 0.1 s, it says */
    td_claimer_submitted(&w.c[1], 0, &claim);
    publish(&w, 1, 100);
    cr_expect_not(td_claimer_next(&w.c[0], 0, &claim));
    cr_expect_not(td_claimer_next(&w.c[0], 0.5, &claim));
    cr_expect(td_claimer_next(&w.c[0], 2, &claim), "it is late by more than this group needs");
    close_world(&w);
}

Test(claims, a_retired_group_is_not_waited_for_and_its_work_counts_again) {
    world w;
    td_claim claim;
    open_world(&w, 2);
    join(&w, 0, 100, 1, 1);
    join(&w, 1, 1000, 1, 1);
    publish(&w, 1, 100);
    cr_expect_not(td_claimer_next(&w.c[0], 0, &claim));
    cr_assert(td_claimer_next(&w.c[1], 0, &claim));
    cr_expect_float_eq(td_claim_board_remaining(w.board), 0, 1e-9);
    td_queue_retire(w.queue, 1);
    td_claim_board_retire(w.board, 1);
    cr_expect_float_eq(td_claim_board_remaining(w.board), 100, 1e-9);
    cr_expect(td_claimer_next(&w.c[0], 0, &claim));
    close_world(&w);
}

/* Random speeds, pipelines and backlogs: what a claimer decides is what a plain list schedule of
 * its peers says, and of the groups that are asked at least one takes. */
Test(claims, never_all_leave_and_the_tail_agrees_with_a_list_schedule) {
    uint64_t seed = 1;
    for (int round = 0; round < 3000; round++) {
        world w;
        td_claim claim;
        int32_t n = 1 + (int32_t)(uniform(&seed) * MAX_GROUPS);
        double rate[MAX_GROUPS], depth[MAX_GROUPS], now;
        open_world(&w, n);
        for (int32_t g = 0; g < n; g++) {
            int32_t stages = 1 + (int32_t)(uniform(&seed) * 3);
            rate[g] = floor(exp(4 * uniform(&seed)) * 100); /* the board keeps whole numbers */
            depth[g] = 1 + (stages - 1) * uniform(&seed);
            join(&w, g, rate[g], stages, depth[g]);
        }
        int32_t k = 1 + (int32_t)(uniform(&seed) * 20);
        /* Backlogs: each gets some items of its own before the tail begins. */
        double start = 0;
        for (int32_t g = 0; g < n; g++)
            for (int i = (int)(uniform(&seed) * 4); i > 0; i--) {
                publish(&w, 1, 100);
                if (td_claimer_next(&w.c[g], start, &claim))
                    td_claimer_submitted(&w.c[g], start, &claim);
            }
        /* Whatever somebody left to others is taken by those. */
        bool any = true;
        while (any && td_claim_board_remaining(w.board) > 0) {
            any = false;
            for (int32_t g = 0; g < n; g++)
                if (td_claimer_next(&w.c[g], start, &claim)) {
                    td_claimer_submitted(&w.c[g], start, &claim);
                    any = true;
                }
        }
        if (td_claim_board_remaining(w.board) > 0) { /* all are full */
            close_world(&w);
            continue;
        }
        publish(&w, k, 100);
        now = uniform(&seed) * 2;
        double begin[MAX_GROUPS], first = HUGE_VAL;
        int32_t fastest = 0;
        for (int32_t g = 0; g < n; g++) {
            begin[g] = now + (depth[g] - 1) * 100 / rate[g];
            if (w.c[g].n_in_flight) {
                double end = ((depth[g] - 1) * 100 + 100.0 * w.c[g].n_in_flight) / rate[g];
                begin[g] = fmax(begin[g], end >= now ? end : 2 * now - end);
            }
            if (begin[g] + 100 / rate[g] < first) {
                first = begin[g] + 100 / rate[g];
                fastest = g;
            }
        }
        for (int32_t g = 0; g < n; g++) {
            if (w.c[g].n_in_flight >= w.c[g].max_in_flight)
                continue;
            /* The list schedule of the k items on the peers. */
            double at[MAX_GROUPS], last = 0;
            for (int32_t p = 0; p < n; p++)
                at[p] = begin[p];
            for (int32_t i = 0; i < k; i++) {
                int32_t best = -1;
                for (int32_t p = 0; p < n; p++)
                    if (p != g && (best < 0 || at[p] + 100 / rate[p] < at[best] + 100 / rate[best]))
                        best = p;
                last = best < 0 ? HUGE_VAL : (at[best] += 100 / rate[best]);
            }
            double mine = begin[g] + 100 / rate[g];
            if (fabs(mine - last) < 1e-4 * mine)
                continue; /* a tie within rounding */
            td_claimer copy = w.c[g];
            bool got = td_claimer_next(&w.c[g], now, &claim);
            cr_assert_eq(got, mine < last, "round %d: group %d of %d, %d left: %g against %g",
                         round, g, n, k, mine, last);
            cr_assert(g != fastest || got, "round %d: the fastest leaves", round);
            if (!got)
                continue;
            /* Back, for the next group's turn. */
            w.c[g].next_held--;
            td_claimer_release_held(&w.c[g], now);
            cr_assert_eq(w.c[g].n_in_flight, copy.n_in_flight);
        }
        close_world(&w);
    }
}
