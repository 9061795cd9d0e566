/* test_blame.c - who is to blame: each rule by itself, then whole runs at random against what must
 * hold whatever fails, and in whatever order. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "run/blame.h"
#include "base/memory.h"

static void failed(td_blame *b, uint32_t g, td_failure kind, const uint64_t *works, int32_t n) {
    cr_assert_eq(td_blame_failed(b, g, kind, works, n, NULL), TD_OK);
}
#define FAILED(b, g, kind, ...)                                                                    \
    failed(b, g, kind, (uint64_t[]){__VA_ARGS__},                                                  \
           (int32_t)(sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t)))

Test(blame, a_device_whose_work_succeeds_elsewhere_is_out) {
    td_blame *b = td_blame_create(3);
    FAILED(b, 1, TD_FAILURE_DEVICE, 7, 8);
    cr_assert_eq(td_blame_standing(b, 1), TD_GROUP_SUSPENDED);
    cr_assert_eq(td_blame_care(b, 7), TD_CARE_ALONE);
    cr_assert_eq(td_blame_care(b, 8), TD_CARE_ALONE);
    cr_assert_eq(td_blame_care(b, 9), TD_CARE_NONE);
    td_blame_completed(b, 0, 7);
    cr_assert_eq(td_blame_standing(b, 1), TD_GROUP_SUSPENDED); /* it may have been 8 */
    td_blame_completed(b, 2, 8);
    cr_assert_eq(td_blame_standing(b, 1), TD_GROUP_OUT);
    cr_assert_eq(td_blame_care(b, 8), TD_CARE_NONE);
    td_blame_destroy(b);
}

Test(blame, work_that_fails_on_a_second_group_is_split_and_both_come_back) {
    td_blame *b = td_blame_create(3);
    FAILED(b, 1, TD_FAILURE_DEVICE, 7, 8);
    FAILED(b, 2, TD_FAILURE_DEVICE, 8);
    cr_assert_eq(td_blame_standing(b, 1), TD_GROUP_PROBES);
    cr_assert_eq(td_blame_standing(b, 2), TD_GROUP_PROBES);
    cr_assert_eq(td_blame_care(b, 8), TD_CARE_SPLIT);
    td_blame_probed(b, 1, true);
    td_blame_probed(b, 2, true);
    td_blame_completed(b, 0, 7);
    cr_assert_eq(td_blame_standing(b, 1), TD_GROUP_WORKS);
    cr_assert_eq(td_blame_split(b, 8, 3, NULL), TD_OK);
    cr_assert_eq(td_blame_next_sample(b, 8), 0);
    td_blame_sample_done(b, 0, 8, 0);
    /* A broken device does not get a sample blamed; what is done stays done. */
    td_blame_sample_failed(b, 0, TD_FAILURE_DEVICE, 8, 1);
    td_blame_probed(b, 0, false);
    cr_assert_eq(td_blame_standing(b, 0), TD_GROUP_OUT);
    cr_assert_eq(td_blame_split(b, 8, 3, NULL), TD_OK);
    cr_assert_eq(td_blame_next_sample(b, 8), 1);
    td_blame_sample_failed(b, 2, TD_FAILURE_DEVICE, 8, 1);
    cr_assert_not(td_blame_is_blamed(b, 8, 1, NULL)); /* not before the probe */
    td_blame_probed(b, 2, true);
    cr_assert_eq(td_blame_next_sample(b, 8), 2);
    td_blame_sample_done(b, 2, 8, 2);
    cr_assert_eq(td_blame_next_sample(b, 8), -1);
    cr_assert(td_blame_judge(b, 2, 8));
    td_failure kind;
    cr_assert(td_blame_is_blamed(b, 8, 1, &kind));
    cr_assert_eq(kind, TD_FAILURE_DEVICE);
    cr_assert_not(td_blame_is_blamed(b, 8, 0, NULL) || td_blame_is_blamed(b, 8, 2, NULL));
    td_blame_completed(b, 2, 8);
    cr_assert_eq(td_blame_standing(b, 1), TD_GROUP_WORKS);
    td_blame_destroy(b);
}

Test(blame, the_only_group_plays_the_next_try_itself) {
    td_blame *b = td_blame_create(1);
    FAILED(b, 0, TD_FAILURE_DEVICE, 1, 2);
    cr_assert_eq(td_blame_standing(b, 0), TD_GROUP_PROBES);
    td_blame_probed(b, 0, true);
    FAILED(b, 0, TD_FAILURE_DEVICE, 1);
    cr_assert_eq(td_blame_care(b, 1), TD_CARE_SPLIT);
    td_blame_probed(b, 0, true);
    td_blame_completed(b, 0, 2);
    cr_assert_eq(td_blame_standing(b, 0), TD_GROUP_WORKS);
    td_blame_destroy(b);
}

Test(blame, twice_in_a_row_over_different_work_breaks_a_group) {
    td_blame *b = td_blame_create(1);
    FAILED(b, 0, TD_FAILURE_DEVICE, 1);
    td_blame_probed(b, 0, true);
    td_blame_completed(b, 0, 5);
    FAILED(b, 0, TD_FAILURE_DEVICE, 2);
    cr_assert_eq(td_blame_standing(b, 0), TD_GROUP_PROBES);
    td_blame_probed(b, 0, true);
    FAILED(b, 0, TD_FAILURE_DEVICE, 3);
    cr_assert_eq(td_blame_standing(b, 0), TD_GROUP_OUT);
    td_blame_destroy(b);
    /* So do samples of one work. */
    b = td_blame_create(1);
    FAILED(b, 0, TD_FAILURE_DEVICE, 1);
    td_blame_probed(b, 0, true);
    FAILED(b, 0, TD_FAILURE_DEVICE, 1);
    td_blame_probed(b, 0, true);
    td_blame_split(b, 1, 2, NULL);
    for (int32_t i = 0; i < 2; i++) {
        td_blame_sample_failed(b, 0, TD_FAILURE_DEVICE, 1, i);
        td_blame_probed(b, 0, true);
    }
    cr_assert_not(td_blame_judge(b, 0, 1));
    cr_assert_eq(td_blame_standing(b, 0), TD_GROUP_OUT);
    td_blame_destroy(b);
}

Test(blame, hung_groups_stay_out_and_their_work_follows_the_same_rule) {
    td_blame *b = td_blame_create(4);
    FAILED(b, 0, TD_FAILURE_HUNG, 1, 2);
    cr_assert_eq(td_blame_standing(b, 0), TD_GROUP_OUT);
    cr_assert_eq(td_blame_care(b, 1), TD_CARE_ALONE);
    FAILED(b, 1, TD_FAILURE_HUNG, 1);
    cr_assert_eq(td_blame_care(b, 1), TD_CARE_SPLIT);
    td_blame_split(b, 1, 2, NULL);
    td_blame_sample_failed(b, 2, TD_FAILURE_HUNG, 1, 0);
    cr_assert_eq(td_blame_standing(b, 2), TD_GROUP_OUT);
    cr_assert_eq(td_blame_next_sample(b, 1), 1);
    td_blame_sample_done(b, 3, 1, 1);
    cr_assert(td_blame_judge(b, 3, 1));
    cr_assert(td_blame_is_blamed(b, 1, 0, NULL));
    td_blame_completed(b, 3, 1);
    cr_assert_eq(td_blame_standing(b, 3), TD_GROUP_WORKS);
    td_blame_destroy(b);
}

Test(blame, work_too_large_for_memory_is_split_at_once) {
    td_blame *b = td_blame_create(2);
    FAILED(b, 0, TD_FAILURE_OOM, 1);
    cr_assert_eq(td_blame_standing(b, 0), TD_GROUP_PROBES);
    cr_assert_eq(td_blame_care(b, 1), TD_CARE_SPLIT);
    td_blame_destroy(b);
}

/* --- whole runs ------------------------------------------------------------------------------- */

enum { MAX_GROUPS = 5, MAX_WORKS = 40, MAX_SAMPLES = 5, SLOTS = 2 };
typedef enum ailment { FINE, BREAKS, FALTERS, HANGS } ailment;

typedef struct sim_work {
    int32_t n, tries;
    bool poison[MAX_SAMPLES], hangs[MAX_SAMPLES], blamed[MAX_SAMPLES], put[MAX_SAMPLES];
    int32_t fails[MAX_SAMPLES]; /* on each sample, by groups that were not out when all was over */
    int32_t fails_by[MAX_SAMPLES][MAX_GROUPS];
    bool done;
} sim_work;

typedef struct sim_group {
    ailment what;
    int32_t ops_left; /* until it breaks, falters or hangs */
    bool failed;
    int32_t claims[SLOTS], n;
    bool failed_probe;
} sim_group;

typedef struct sim {
    td_blame *b;
    uint64_t rng;
    sim_work w[MAX_WORKS];
    int32_t n_works, next, queue[4 * MAX_WORKS], head, tail; /* the retry ring */
    sim_group g[MAX_GROUPS];
    uint32_t n_groups;
    int32_t n_done;
} sim;

static uint32_t dice(sim *s, uint32_t n) {
    s->rng ^= s->rng << 13;
    s->rng ^= s->rng >> 7;
    s->rng ^= s->rng << 17;
    return (uint32_t)((s->rng >> 20) % n);
}

/* One forward pass of one sample (-1: of all). 0 fine, 1 fails, 2 hangs. */
static int compute(sim *s, uint32_t g, const sim_work *w, int32_t only) {
    sim_group *grp = &s->g[g];
    int32_t left = --grp->ops_left;
    if (grp->what == BREAKS && left <= 0)
        return 1;
    if (grp->what == FALTERS && left == 0)
        return 1;
    if (grp->what == HANGS && left <= 0)
        return 2;
    for (int32_t i = 0; w && i < w->n; i++)
        if (only < 0 || only == i) {
            if (w->hangs[i] && !w->put[i])
                return 2;
            if (w->poison[i] && !w->put[i])
                return 1;
        }
    return 0;
}

static void requeue(sim *s, int32_t w) {
    s->w[w].tries++;
    s->queue[s->tail++ % TD_ARRAY_LEN(s->queue)] = w;
}

static void give_back(sim *s, uint32_t g) {
    for (int32_t i = 0; i < s->g[g].n; i++)
        requeue(s, s->g[g].claims[i]);
    s->g[g].n = 0;
}

static void count_failure(sim_work *w, int32_t only, uint32_t g) {
    for (int32_t i = 0; i < w->n; i++)
        if ((only < 0 || only == i) && !w->put[i])
            w->fails_by[i][g]++;
}

/* As try_again of recover.c. */
static bool probe(sim *s, uint32_t g) {
    int r = compute(s, g, NULL, 0);
    td_blame_probed(s->b, g, r == 0);
    if (r == 0)
        return true;
    s->g[g].failed_probe = true;
    give_back(s, g);
    return false;
}

static void complete(sim *s, uint32_t g, int32_t i) {
    cr_assert_not(s->w[i].done);
    if (s->w[i].tries > 0 || s->g[g].failed)
        td_blame_completed(s->b, g, (uint64_t)i);
    s->g[g].failed = false;
    s->w[i].done = true;
    s->n_done++;
}

static void split(sim *s, uint32_t g) {
    int32_t at = s->g[g].claims[0];
    sim_work *w = &s->w[at];
    cr_assert_eq(s->g[g].n, 1);
    cr_assert_eq(td_blame_split(s->b, (uint64_t)at, w->n, NULL), TD_OK);
    for (int32_t i; (i = td_blame_next_sample(s->b, (uint64_t)at)) >= 0;) {
        int r = compute(s, g, w, i);
        if (r == 0) {
            cr_assert_not(w->put[i], "a sample was written twice");
            w->put[i] = true;
            td_blame_sample_done(s->b, g, (uint64_t)at, i);
            continue;
        }
        count_failure(w, i, g);
        s->g[g].failed = true;
        td_blame_sample_failed(s->b, g, r == 2 ? TD_FAILURE_HUNG : TD_FAILURE_DEVICE, (uint64_t)at,
                               i);
        if (r == 2) {
            give_back(s, g);
            return;
        }
        if (!probe(s, g))
            return;
    }
    if (!td_blame_judge(s->b, g, (uint64_t)at)) {
        give_back(s, g);
        return;
    }
    for (int32_t i = 0; i < w->n; i++)
        w->blamed[i] = td_blame_is_blamed(s->b, (uint64_t)at, i, NULL);
    s->g[g].n = 0;
    complete(s, g, at);
}

/* As work_loop of group.c: claims, or completes the oldest, or fails with all in flight. */
static void step(sim *s, uint32_t g) {
    sim_group *grp = &s->g[g];
    td_standing standing = td_blame_standing(s->b, g);
    if (standing == TD_GROUP_PROBES)
        probe(s, g);
    if (standing != TD_GROUP_WORKS)
        return;
    while (grp->n < SLOTS) {
        bool alone = grp->n && s->w[grp->claims[0]].tries > 0;
        int32_t w = s->head < s->tail      ? s->queue[s->head % TD_ARRAY_LEN(s->queue)]
                    : s->next < s->n_works ? s->next
                                           : -1;
        if (w < 0 || alone || (grp->n && s->w[w].tries > 0))
            break;
        if (s->head < s->tail)
            s->head++;
        else
            s->next++;
        grp->claims[grp->n++] = w;
        if (s->w[w].tries > 0 && td_blame_care(s->b, (uint64_t)w) == TD_CARE_SPLIT) {
            split(s, g);
            return;
        }
        if (dice(s, 3) == 0)
            break;
    }
    if (grp->n == 0)
        return;
    int32_t at = grp->claims[0];
    int r = compute(s, g, &s->w[at], -1);
    if (r == 0) {
        for (int32_t i = 0; i < s->w[at].n; i++)
            s->w[at].put[i] = true;
        memmove(grp->claims, grp->claims + 1, sizeof grp->claims - sizeof *grp->claims);
        grp->n--;
        complete(s, g, at);
        return;
    }
    uint64_t works[SLOTS];
    for (int32_t i = 0; i < grp->n; i++) {
        works[i] = (uint64_t)grp->claims[i];
        count_failure(&s->w[grp->claims[i]], -1, g);
    }
    failed(s->b, g, r == 2 ? TD_FAILURE_HUNG : TD_FAILURE_DEVICE, works, grp->n);
    grp->failed = true;
    if (td_blame_standing(s->b, g) == TD_GROUP_PROBES && grp->n == 1 &&
        td_blame_care(s->b, works[0]) == TD_CARE_SPLIT) {
        if (probe(s, g))
            split(s, g);
        return;
    }
    give_back(s, g);
}

/* Returns how many groups are out. */
static uint32_t play(sim *s, uint64_t seed, uint32_t n_groups, uint32_t n_ill, int32_t n_bad,
                     bool hangs) {
    *s = (sim){.rng = seed * 0x9e3779b97f4a7c15ull | 1, .n_groups = n_groups};
    s->b = td_blame_create(n_groups);
    s->n_works = 1 + (int32_t)dice(s, MAX_WORKS);
    for (int32_t i = 0; i < s->n_works; i++)
        s->w[i].n = 2 + (int32_t)dice(s, MAX_SAMPLES - 1);
    for (int32_t i = 0; i < n_bad; i++) {
        sim_work *w = &s->w[dice(s, (uint32_t)s->n_works)];
        int32_t k = (int32_t)dice(s, (uint32_t)w->n - 1); /* the last one is good */
        if (hangs && dice(s, 3) == 0)
            w->hangs[k] = true;
        else
            w->poison[k] = true;
    }
    for (uint32_t g = 0; g < n_groups; g++) {
        s->g[g].ops_left = 1 + (int32_t)dice(s, 60);
        if (g < n_ill)
            s->g[g].what = hangs && dice(s, 3) == 0 ? HANGS : dice(s, 2) ? BREAKS : FALTERS;
    }
    uint32_t n_out = 0;
    for (int32_t turns = 0; s->n_done < s->n_works && n_out < n_groups; turns++) {
        cr_assert_lt(turns, 100000, "seed %llu: the run does not end", (unsigned long long)seed);
        step(s, dice(s, n_groups));
        n_out = 0;
        for (uint32_t g = 0; g < n_groups; g++)
            n_out += td_blame_standing(s->b, g) == TD_GROUP_OUT;
    }
    return n_out;
}

static void check_samples(const sim *s, uint64_t seed, bool all_healthy) {
    for (int32_t k = 0; k < s->n_works; k++)
        for (int32_t i = 0; i < s->w[k].n; i++) {
            const sim_work *w = &s->w[k];
            bool bad = w->poison[i] || w->hangs[i];
            if (w->done) {
                cr_assert(w->put[i] != w->blamed[i], "seed %llu", (unsigned long long)seed);
                cr_assert_not(bad && w->put[i]);
            }
            /* Whatever devices do: what a device that fails its probe said never counts, so a
             * healthy sample is blamed only by devices that falter, work again, and falter. */
            cr_assert_not(w->blamed[i] && !bad && all_healthy, "seed %llu: work %d sample %d",
                          (unsigned long long)seed, k, i);
            int32_t fails = 0;
            for (uint32_t g = 0; g < s->n_groups; g++)
                if (td_blame_standing(s->b, g) != TD_GROUP_OUT ||
                    (s->g[g].what == HANGS && !s->g[g].failed_probe))
                    fails += w->fails_by[i][g];
            cr_assert_leq(fails, 3, "seed %llu: work %d sample %d failed %d times",
                          (unsigned long long)seed, k, i, fails);
        }
}

enum { SEEDS = 20000 };

Test(blame, healthy_devices_lose_nothing_but_bad_samples) {
    static sim s;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        uint32_t n = 1 + (uint32_t)(seed % MAX_GROUPS);
        uint32_t n_out = play(&s, seed, n, 0, (int32_t)(seed % 4) / 2, false);
        cr_assert_eq(n_out, 0, "seed %llu: %u of %u groups are out", (unsigned long long)seed,
                     n_out, n);
        cr_assert_eq(s.n_done, s.n_works);
        check_samples(&s, seed, true);
        td_blame_destroy(s.b);
    }
}

Test(blame, several_bad_samples_and_two_groups_or_more) {
    static sim s;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        play(&s, seed, 2 + (uint32_t)(seed % (MAX_GROUPS - 1)), 0, 6, false);
        cr_assert_eq(s.n_done, s.n_works, "seed %llu", (unsigned long long)seed);
        check_samples(&s, seed, true);
        td_blame_destroy(s.b);
    }
}

Test(blame, devices_that_break_are_out_and_blame_nobody) {
    static sim s;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        uint32_t n = 1 + (uint32_t)(seed % MAX_GROUPS), n_ill = (uint32_t)(seed / 7) % (n + 1);
        uint32_t n_out = play(&s, seed, n, n_ill, (int32_t)(seed % 3), false);
        bool falters = false;
        for (uint32_t g = 0; g < n; g++)
            falters = falters || s.g[g].what == FALTERS;
        check_samples(&s, seed, !falters);
        /* Either all is done, or nobody is left; a device that works is left only once too often:
         * never, when the others do not falter. */
        cr_assert(s.n_done == s.n_works || n_out == n);
        if (n_ill < n && !falters && seed % 3 < 2)
            cr_assert_eq(s.n_done, s.n_works, "seed %llu", (unsigned long long)seed);
        td_blame_destroy(s.b);
    }
}

Test(blame, hanging_devices_and_samples) {
    static sim s;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        uint32_t n = 1 + (uint32_t)(seed % MAX_GROUPS);
        uint32_t n_out =
            play(&s, seed, n, (uint32_t)(seed / 7) % (n + 1), (int32_t)(seed % 3), true);
        check_samples(&s, seed, false);
        cr_assert(s.n_done == s.n_works || n_out == n);
        td_blame_destroy(s.b);
    }
}
