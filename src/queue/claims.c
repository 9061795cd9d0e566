/* claims.c - how much a group claims; the policy is in queue.h.
 *
 * Memory orders: every atomic of this file is relaxed. They are estimates that steer who asks the
 * queue for how much; what an item holds, and who owns it, is ordered by the queue. A sum that is
 * read while another thread moves an item from one field to the next is off by that item for a
 * moment, which costs a claim of another size. Progress needs only that stores become visible in
 * the end, which C11 asks of all of them (7.17.3).
 */
#include "queue/queue.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"

#define FORGET 0.85        /* weight of what was seen before, at each completion */
#define PLAN_WEIGHT 3.0    /* completions that the plan's own rate counts for at the start */
#define RELEASE_MARGIN 0.1 /* of a micro-batch's time: what is held is not given back for less */
#define TIE 1e-6           /* relative: a peer that is faster by less than this is not faster */
static const double NAP_MIN_S = 5e-4, NAP_MAX_S = 0.05;

/* What a group says of itself. Written by its thread; n_claimed, claimed_kflop and live also by
 * td_claim_board_retire. */
typedef struct peer {
    _Atomic int64_t rate; /* kFLOP/s; 0: unknown, or not taking work */
    _Atomic double free_s, depth;
    _Atomic int64_t n_claimed, claimed_kflop; /* claimed and not done */
    _Atomic bool live;
} peer;

struct td_claim_board {
    int32_t n_groups;
    peer *peers;
    _Atomic int64_t ready_kflop, n_ready; /* published and not claimed, retries included */
    _Atomic double unread_kflop;          /* written by the producer */
    _Atomic int64_t total_rate;           /* of all peers */
    _Atomic int32_t n_live;
};

#define LOAD(x) atomic_load_explicit(&(x), memory_order_relaxed)
#define STORE(x, v) atomic_store_explicit(&(x), v, memory_order_relaxed)
#define ADD(x, v) atomic_fetch_add_explicit(&(x), v, memory_order_relaxed)
#define SWAP(x, v) atomic_exchange_explicit(&(x), v, memory_order_relaxed)

void td_claim_item_init(td_claim_item *it, const td_cost_model *cost, const td_work_size *size,
                        bool alone) {
    double kflop = td_cost_flops(cost, size) / 1000;
    *it = (td_claim_item){
        .size = *size, .kflop = (int64_t)fmin(fmax(kflop, 1), 1e15), .alone = alone};
}

/* --- the board -------------------------------------------------------------------------------- */

td_status td_claim_board_create(int32_t n_groups, td_claim_board **out, td_error *err) {
    td_claim_board *b = td_calloc(1, sizeof *b);
    peer *peers = td_calloc((size_t)n_groups, sizeof *peers);
    if (!b || !peers) {
        free(b);
        free(peers);
        return td_error_nomem(err, "the groups' claims", (size_t)n_groups * sizeof *peers);
    }
    b->n_groups = n_groups;
    b->peers = peers;
    for (int32_t i = 0; i < n_groups; i++) /* they will join: who is first must not take it all */
        atomic_init(&peers[i].live, true);
    atomic_init(&b->n_live, n_groups);
    *out = b;
    return TD_OK;
}

void td_claim_board_destroy(td_claim_board *b) {
    if (!b)
        return;
    free(b->peers);
    free(b);
}

void td_claim_board_add(td_claim_board *b, const td_claim_item *it) {
    ADD(b->ready_kflop, it->kflop);
    ADD(b->n_ready, 1);
}

void td_claim_board_set_unread(td_claim_board *b, double kflop) {
    STORE(b->unread_kflop, fmax(kflop, 0));
}

static void set_rate(td_claim_board *b, peer *p, int64_t rate) {
    int64_t before = SWAP(p->rate, rate);
    ADD(b->total_rate, rate - before);
}

void td_claim_board_retire(td_claim_board *b, int32_t group) {
    peer *p = &b->peers[group];
    if (!SWAP(p->live, false))
        return;
    set_rate(b, p, 0);
    ADD(b->n_live, -1);
    ADD(b->ready_kflop, SWAP(p->claimed_kflop, 0));
    ADD(b->n_ready, SWAP(p->n_claimed, 0));
}

double td_claim_board_rate(const td_claim_board *b, int32_t group) {
    return (double)LOAD(b->peers[group].rate);
}

double td_claim_board_remaining(const td_claim_board *b) {
    return fmax((double)LOAD(b->ready_kflop), 0) + LOAD(b->unread_kflop);
}

/* Mean size of what can be claimed; *n is how many such make up all that remains. */
static double typical_item(const td_claim_board *b, const td_claimer *c, double *n) {
    double ready = (double)LOAD(b->ready_kflop);
    int64_t n_ready = LOAD(b->n_ready);
    double item = 1;
    if (n_ready > 0 && ready > 0)
        item = ready / (double)n_ready;
    else if (c->n_seen)
        item = fmax(c->seen_kflop * (1 - FORGET), 1);
    /* A hair below, or rounding would make one more of an exact number. */
    *n = fmax(1, ceil(td_claim_board_remaining(b) / item - TIE));
    return item;
}

/* --- who is done when ------------------------------------------------------------------------- */

/* When work that should have been done at `end` will be, if it is in progress. */
static double overdue(double end, double now) {
    return end >= now ? end : now + (now - end);
}

static double own_rate(const td_claimer *c) {
    if (c->n_seen && c->seen_s > 0)
        return c->seen_kflop / c->seen_s;
    return c->in.rate_kflop;
}

/* When the group could begin with more, if it did what it holds first. */
static double own_free_s(const td_claimer *c, double now, double rate, double item) {
    double t = now + (c->in.depth - 1) * item / rate; /* an empty pipeline */
    if (c->n_in_flight)
        t = fmax(t, overdue(c->since_s +
                                ((c->filling ? (c->in.depth - 1) * (double)c->largest_kflop : 0) +
                                 (double)c->in_flight_kflop) /
                                    rate,
                            now));
    return t + (double)c->held_kflop / rate;
}

/* Do the peers complete n items before `finish`? */
static bool peers_are_sooner(const td_claimer *c, double now, double finish, double item,
                             double n) {
    const td_claim_board *b = c->in.board;
    const peer *me = &b->peers[c->in.group];
    double others = (double)(LOAD(b->total_rate) - LOAD(me->rate));
    /* Cheap: not even if all of them were idle. */
    if (others <= 0 || (finish - now) * others < n * item)
        return false;
    double done = 0;
    for (int32_t i = 0; i < b->n_groups && done < n; i++) {
        const peer *p = &b->peers[i];
        double rate = (double)LOAD(p->rate);
        if (p == me || rate <= 0)
            continue;
        double begin = now + (LOAD(p->depth) - 1) * item / rate;
        if (LOAD(p->n_claimed) > 0)
            begin = fmax(begin, overdue(LOAD(p->free_s), now));
        double whole = ceil((finish - begin) * rate / item - TIE) - 1; /* strictly before */
        if (whole > 0)
            done += whole;
    }
    return done >= n;
}

static void tell_peers(td_claimer *c, double now) {
    peer *p = &c->in.board->peers[c->in.group];
    double rate = own_rate(c);
    if (rate > 0 && LOAD(p->live)) {
        set_rate(c->in.board, p, (int64_t)fmin(fmax(rate, 1), 1e15));
        double end = c->n_in_flight ? c->since_s : now;
        if (c->filling || !c->n_in_flight)
            end += (c->in.depth - 1) * (double)c->largest_kflop / rate;
        STORE(p->free_s, end + (double)(c->in_flight_kflop + c->held_kflop) / rate);
    }
}

/* --- a group ---------------------------------------------------------------------------------- */

void td_claimer_init(td_claimer *c, const td_claimer_setup *in) {
    *c = (td_claimer){.in = *in};
    c->in.depth = fmax(in->depth, 1);
    c->max_in_flight = TD_MIN(in->n_slots, in->n_stages + 1);
    td_claim_board *b = in->board;
    peer *p = &b->peers[in->group];
    STORE(p->depth, c->in.depth);
    STORE(p->n_claimed, 0);
    STORE(p->claimed_kflop, 0);
    if (!SWAP(p->live, true))
        ADD(b->n_live, 1);
    tell_peers(c, 0);
}

static const td_claim_item *item_of(const td_claim *claim) {
    return claim->item;
}

/* How many typical items to claim at once. */
static uint32_t claim_size(const td_claimer *c, double rate, double item) {
    const td_claim_board *b = c->in.board;
    if (rate <= 0) /* nothing is known of it: one shows */
        return 1;
    double remaining = td_claim_board_remaining(b);
    double total = fmax((double)LOAD(b->total_rate), rate);
    double n_live = fmax(LOAD(b->n_live), 1);
    double share = 0.25 * remaining * fmin(1 / n_live, rate / total);
    return (uint32_t)fmax(1, fmin(fmin(share, TD_CLAIM_SECONDS * rate) / item, TD_MAX_CLAIM));
}

static void take_more(td_claimer *c, double now) {
    td_claim_board *b = c->in.board;
    double rate = own_rate(c), n, item = typical_item(b, c, &n);
    if (rate > 0) {
        double finish = own_free_s(c, now, rate, item) + item / rate;
        c->left = peers_are_sooner(c, now, finish, item, n);
        if (c->left)
            return;
    }
    c->next_held = 0;
    c->n_held = td_queue_claim(c->in.queue, c->in.group, claim_size(c, rate, item), c->held);
    c->n_claims += c->n_held > 0;
    int64_t kflop = 0;
    for (uint32_t i = 0; i < c->n_held; i++)
        kflop += item_of(&c->held[i])->kflop;
    peer *p = &b->peers[c->in.group];
    c->held_kflop = kflop;
    ADD(p->claimed_kflop, kflop);
    ADD(p->n_claimed, c->n_held);
    ADD(b->ready_kflop, -kflop);
    ADD(b->n_ready, -(int64_t)c->n_held);
}

/* Gives the last of what is held back to the queue. */
static void release_last(td_claimer *c) {
    td_claim_board *b = c->in.board;
    peer *p = &b->peers[c->in.group];
    const td_claim *last = &c->held[--c->n_held];
    int64_t kflop = item_of(last)->kflop; /* before it is somebody else's */
    c->held_kflop -= kflop;
    ADD(p->claimed_kflop, -kflop);
    ADD(p->n_claimed, -1);
    ADD(b->ready_kflop, kflop);
    ADD(b->n_ready, 1);
    td_queue_release(c->in.queue, c->in.group, last->number);
}

void td_claimer_release_held(td_claimer *c, double now) {
    while (c->next_held < c->n_held)
        release_last(c);
    tell_peers(c, now);
}

/* What is held and would be done sooner by others goes back, the last one first. */
static void give_back(td_claimer *c, double now) {
    double rate = own_rate(c);
    while (rate > 0 && c->next_held < c->n_held) {
        double size = (double)item_of(&c->held[c->n_held - 1])->kflop;
        double finish = own_free_s(c, now, rate, size) - RELEASE_MARGIN * size / rate;
        double n = ceil(td_claim_board_remaining(c->in.board) / size - TIE) + 1;
        if (!peers_are_sooner(c, now, finish, size, n))
            return;
        release_last(c);
        c->n_released++;
    }
}

bool td_claimer_next(td_claimer *c, double now, td_claim *out) {
    c->left = false;
    if (c->n_in_flight >= c->max_in_flight || (c->n_in_flight && c->alone_in_flight))
        return false;
    give_back(c, now);
    if (c->next_held == c->n_held)
        take_more(c, now);
    bool got =
        c->next_held < c->n_held && !(c->n_in_flight && item_of(&c->held[c->next_held])->alone);
    if (got)
        *out = c->held[c->next_held++];
    tell_peers(c, now);
    return got;
}

void td_claimer_submitted(td_claimer *c, double now, const td_claim *claim) {
    const td_claim_item *it = item_of(claim);
    if (c->n_in_flight++ == 0) {
        c->since_s = now;
        c->filling = true;
        c->largest_kflop = 0;
    }
    c->alone_in_flight = it->alone;
    c->held_kflop -= it->kflop;
    c->in_flight_kflop += it->kflop;
    c->largest_kflop = TD_MAX(c->largest_kflop, it->kflop);
    tell_peers(c, now);
}

void td_claimer_completed(td_claimer *c, double now, const td_claim_item *it, double predicted_s) {
    td_claim_board *b = c->in.board;
    peer *p = &b->peers[c->in.group];
    /* The first one out of an empty pipeline took the time of all stages. */
    double dt = fmax(now - c->since_s, 0) / (c->filling ? c->in.depth : 1);
    if (dt > 0) {
        if (c->n_seen == 0 && c->in.rate_kflop > 0) {
            c->seen_kflop = PLAN_WEIGHT * (double)it->kflop;
            c->seen_s = c->seen_kflop / c->in.rate_kflop;
            c->seen_predicted_s = PLAN_WEIGHT * predicted_s;
        }
        c->seen_kflop = FORGET * c->seen_kflop + (double)it->kflop;
        c->seen_s = FORGET * c->seen_s + dt;
        c->seen_predicted_s = FORGET * c->seen_predicted_s + predicted_s;
        c->n_seen++;
    }
    c->total_s += dt;
    c->total_predicted_s += predicted_s;
    c->since_s = now;
    c->filling = false;
    c->in_flight_kflop -= it->kflop;
    if (--c->n_in_flight == 0)
        c->alone_in_flight = false;
    ADD(p->claimed_kflop, -it->kflop);
    ADD(p->n_claimed, -1);
    tell_peers(c, now);
}

double td_claimer_nap_s(const td_claimer *c) {
    double rate = own_rate(c);
    if (!c->left || rate <= 0)
        return NAP_MIN_S;
    /* A small part of its own time for a micro-batch: that much is lost if it is needed after
     * all. */
    double item = fmax(c->seen_kflop * (1 - FORGET), 1);
    return fmin(fmax(0.02 * item / rate, NAP_MIN_S), NAP_MAX_S);
}

double td_claimer_correction(const td_claimer *c) {
    if (!c->n_seen)
        return 1;
    return c->seen_predicted_s > 0 ? c->seen_s / c->seen_predicted_s : 0;
}

double td_claimer_expected_s(const td_claimer *c) {
    double rate = own_rate(c);
    if (rate <= 0)
        return 0;
    return ((double)c->in_flight_kflop + (c->in.depth - 1) * (double)c->largest_kflop) / rate;
}

/* --- what follows from the plan --------------------------------------------------------------- */

td_claimer_setup td_claimer_setup_of(const td_plan *plan, int32_t group, int32_t n_slots,
                                     td_claim_board *board, td_queue *queue) {
    const td_plan_group *g = &plan->groups[group];
    double slowest = 0, through = 0;
    for (int32_t i = 0; i < g->n_stages; i++) {
        double s = td_cost_stage_seconds(plan, group, i, &plan->micro_batch);
        slowest = fmax(slowest, s);
        through += s;
    }
    double kflop = td_cost_flops(&plan->cost, &plan->micro_batch) / 1000;
    return (td_claimer_setup){.board = board,
                              .queue = queue,
                              .group = (uint32_t)group,
                              .n_slots = n_slots,
                              .n_stages = g->n_stages,
                              .depth = slowest > 0 ? through / slowest : g->n_stages,
                              .rate_kflop = slowest > 0 ? kflop / slowest : 0};
}

int32_t td_claims_max_open(const td_plan *plan, int64_t shard_samples, double max_bytes) {
    const td_dataset_stats *st = &plan->stats;
    double sum = 0, least = HUGE_VAL;
    for (int32_t g = 0; g < plan->n_groups; g++) {
        double s = td_cost_group_seconds(plan, g, &plan->micro_batch);
        sum += s > 0 ? 1 / s : 0;
        least = fmin(least, s > 0 ? 1 / s : 0);
    }
    double in_slowest = least > 0 ? sum / least : plan->n_groups;
    double rows = (double)TD_MIN(shard_samples, TD_MAX(st->n_dataset_rows, 1));
    double shard_tokens = rows * (double)st->n_tokens / (double)TD_MAX(st->n_dataset_rows, 1);
    double per_shard = shard_tokens / (double)TD_MAX(plan->micro_batch.n_tokens, 1);
    double n = 4 + ceil(TD_OPEN_BATCHES * in_slowest / fmax(per_shard, 1));
    /* Ids and mask at 5 bytes a token, and the same again while they are read; 128 bytes a sample
     * for its places in the shard, the micro-batches and the writer. */
    double shard_bytes = 10 * shard_tokens + 128 * rows;
    if (max_bytes > 0)
        n = fmin(n, floor(max_bytes / fmax(shard_bytes, 1)));
    return (int32_t)fmin(fmax(n, TD_MIN_OPEN), TD_MAX_OPEN);
}
