/* sim.c - the event loop of a simulated run. The decisions are those of the real code:
 * td_claimer_next and the queue; what is simulated is what takes time.
 *
 * A pipeline is in order, so when a micro-batch is submitted the times at which its stages begin
 * and end follow at once: it begins on a stage when it left the one before and the stage's last one
 * is done. One event for each micro-batch (its completion), one for each nap and failure.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "queue/queue.h"
#include "sim/random.h"
#include "sim/sim.h"
#include "base/memory.h"

enum { QUEUE_CAPACITY = 1 << 14, MAX_STAGES = 64 };

/* An item of the queue. */
typedef struct item {
    td_claim_item claim; /* first */
    int32_t shard;
    int64_t index; /* into the load */
} item;

typedef enum event_kind { EVENT_DONE, EVENT_WAKE, EVENT_FAIL } event_kind;
typedef struct event {
    double at;
    uint64_t serial; /* events of one instant in the order of their making */
    int32_t group;
    event_kind kind;
} event;

typedef struct flight {
    td_claim claim;
    double *begin, *end; /* [n_stages] */
    double predicted_s;
} flight;

typedef struct sim_group {
    td_claimer claimer;
    flight *slots;
    int32_t n_slots, n_stages, head, n_in_flight;
    double *free_s; /* [n_stages] when the stage is done with what it was given */
    double *times;  /* store of begin and end */
    bool failed, asleep,
        waiting; /* asleep: an event will wake it; waiting: whatever appears will */
} sim_group;

typedef struct sim {
    const td_config *cfg;
    const td_plan *plan;
    const td_sim_load *load;
    td_sim_result *out;
    td_queue *queue;
    td_claim_board *board;
    item *items; /* [n_batches] */
    sim_group *groups;
    int64_t n_published, n_done;
    int32_t *shard_left;    /* [n_shards] micro-batches not done */
    int64_t *shard_samples; /* [n_shards] */
    int32_t n_open, max_open, n_opened;
    int64_t fed_samples;
    double fed_kflop;
    event *heap;
    size_t n_events, heap_cap;
    uint64_t serial;
    td_error *err;
    td_status status;
} sim;

/* --- events ----------------------------------------------------------------------------------- */

static bool before(const event *a, const event *b) {
    return a->at != b->at ? a->at < b->at : a->serial < b->serial;
}

static void push(sim *s, double at, int32_t group, event_kind kind) {
    if (s->status != TD_OK)
        return;
    if (!td_grow((void **)&s->heap, &s->heap_cap, s->n_events + 1, sizeof *s->heap)) {
        s->status = td_error_nomem(s->err, "the events", s->n_events * sizeof *s->heap);
        return;
    }
    event e = {.at = at, .serial = s->serial++, .group = group, .kind = kind};
    size_t i = s->n_events++;
    for (; i > 0 && before(&e, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = e;
}

static event pop(sim *s) {
    event first = s->heap[0], last = s->heap[--s->n_events];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->n_events; i = child) {
        if (child + 1 < s->n_events && before(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (!before(&s->heap[child], &last))
            break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = last;
    return first;
}

static void wake_waiting(sim *s, double now) {
    for (int32_t g = 0; g < s->plan->n_groups; g++) {
        sim_group *grp = &s->groups[g];
        if (!grp->waiting)
            continue;
        grp->waiting = false;
        grp->asleep = true;
        push(s, now, g, EVENT_WAKE);
    }
}

/* --- feeder ----------------------------------------------------------------------------------- */

/* Publishes what there is room for: a new shard only below max_open, as in feeder.c. */
static void feed(sim *s, double now) {
    int64_t before = s->n_published;
    while (s->n_published < s->load->n_batches) {
        item *it = &s->items[s->n_published];
        if (it->shard == s->n_opened) {
            if (s->n_open == s->max_open)
                break;
            s->n_open++;
            s->n_opened++;
            s->fed_samples += s->shard_samples[it->shard];
            for (int64_t i = s->n_published;
                 i < s->load->n_batches && s->items[i].shard == it->shard; i++)
                s->fed_kflop += (double)s->items[i].claim.kflop;
            td_claim_board_set_unread(s->board, s->fed_kflop / (double)s->fed_samples *
                                                    (double)(s->load->n_samples - s->fed_samples));
        }
        if (!td_queue_publish(s->queue, it))
            break;
        td_claim_board_add(s->board, &it->claim);
        s->n_published++;
    }
    if (s->n_published == before)
        return;
    if (s->n_published == s->load->n_batches) {
        td_claim_board_set_unread(s->board, 0);
        td_queue_close(s->queue);
    }
    wake_waiting(s, now);
}

/* --- groups ----------------------------------------------------------------------------------- */

static double noise_of(const td_config *cfg, int64_t index, int32_t stage) {
    double u = td_sim_uniform(cfg->simulate.seed, TD_SIM_NOISE,
                              (uint64_t)index * MAX_STAGES + (uint64_t)stage);
    return 1 + cfg->simulate.noise * (2 * u - 1);
}

static void submit(sim *s, int32_t g, double now, const td_claim *claim) {
    sim_group *grp = &s->groups[g];
    flight *f = &grp->slots[(grp->head + grp->n_in_flight++) % grp->n_slots];
    const item *it = claim->item;
    double at = now;
    f->claim = *claim;
    f->predicted_s = 0;
    for (int32_t i = 0; i < grp->n_stages; i++) {
        double seconds = td_cost_stage_seconds(s->plan, g, i, &it->claim.size);
        f->predicted_s = fmax(f->predicted_s, seconds);
        f->begin[i] = fmax(at, grp->free_s[i]);
        at = f->end[i] = f->begin[i] + seconds * noise_of(s->cfg, it->index, i);
        grp->free_s[i] = at;
    }
    td_claimer_submitted(&grp->claimer, now, claim);
    push(s, at, g, EVENT_DONE);
}

/* The loop of a group's thread (group.c), up to where it would wait. */
static void work(sim *s, int32_t g, double now) {
    sim_group *grp = &s->groups[g];
    td_claim claim;
    if (grp->failed)
        return;
    int64_t released = grp->claimer.n_released;
    while (grp->n_in_flight < grp->n_slots && td_claimer_next(&grp->claimer, now, &claim))
        submit(s, g, now, &claim);
    if (grp->claimer.n_released != released) /* work for those who saw none */
        wake_waiting(s, now);
    if (grp->n_in_flight > 0 || grp->asleep || td_queue_finished(s->queue))
        return;
    /* A real group naps and looks again. Here that is only done when it left work to others; else
     * there is none, and it is told when there is. */
    if (grp->claimer.left) {
        grp->asleep = true;
        push(s, now + td_claimer_nap_s(&grp->claimer), g, EVENT_WAKE);
    } else {
        grp->waiting = true;
    }
}

/* Busy time of [begin, end) into the total and the timeline. */
static void count_busy(sim *s, int32_t g, int32_t stage, double begin, double end) {
    td_sim_group *o = &s->out->groups[g];
    double w = s->out->bin_s;
    if (end <= begin)
        return;
    o->busy_s[stage] += end - begin;
    while (end > w * TD_SIM_BINS) { /* the timeline is full: slices of twice the length */
        for (int32_t k = 0; k < s->plan->n_groups; k++) {
            float *bins = s->out->groups[k].bins;
            for (int i = 0; i < TD_SIM_BINS; i++)
                bins[i] = 2 * i + 1 < TD_SIM_BINS ? bins[2 * i] + bins[2 * i + 1] : 0;
        }
        w = s->out->bin_s *= 2;
    }
    for (int i = (int)(begin / w); i < TD_SIM_BINS && i * w < end; i++)
        o->bins[i] += (float)(fmin(end, (i + 1) * w) - fmax(begin, i * w));
}

static void complete(sim *s, int32_t g, double now) {
    sim_group *grp = &s->groups[g];
    td_sim_group *o = &s->out->groups[g];
    flight *f = &grp->slots[grp->head];
    item *it = f->claim.item;
    for (int32_t i = 0; i < grp->n_stages; i++)
        count_busy(s, g, i, f->begin[i], f->end[i]);
    grp->head = (grp->head + 1) % grp->n_slots;
    grp->n_in_flight--;
    if (!td_queue_begin_commit(s->queue, (uint32_t)g, f->claim.number)) {
        s->status = td_error_set(s->err, TD_E_INTERNAL, "micro-batch %lld is not group %d's",
                                 (long long)it->index, g);
        return;
    }
    o->n_batches++;
    o->n_tokens += it->claim.size.n_tokens;
    o->last_done_s = now;
    td_queue_done(s->queue, (uint32_t)g, f->claim.number);
    td_claimer_completed(&grp->claimer, now, &it->claim, f->predicted_s);
    s->n_done++;
    if (--s->shard_left[it->shard] == 0)
        s->n_open--;
    feed(s, now);
    work(s, g, now);
}

/* A device of the group fails, as in group.c's retire(). */
static void fail_group(sim *s, int32_t g, double now) {
    sim_group *grp = &s->groups[g];
    if (td_queue_finished(s->queue))
        return;
    grp->failed = true;
    grp->waiting = false;
    s->out->groups[g].failed_s = now;
    for (int32_t k = 0; k < grp->n_in_flight; k++) {
        const flight *f = &grp->slots[(grp->head + k) % grp->n_slots];
        for (int32_t i = 0; i < grp->n_stages; i++)
            count_busy(s, g, i, f->begin[i], fmin(f->end[i], now));
        td_queue_fail(s->queue, (uint32_t)g, f->claim.number);
        s->out->n_requeued++;
    }
    s->out->n_requeued += grp->claimer.n_held - grp->claimer.next_held;
    td_claimer_release_held(&grp->claimer, now);
    td_queue_retire(s->queue, (uint32_t)g);
    td_claim_board_retire(s->board, g);
    grp->n_in_flight = 0;
    wake_waiting(s, now);
}

static void run_events(sim *s) {
    double now = 0;
    feed(s, 0);
    for (int32_t g = 0; g < s->plan->n_groups; g++)
        work(s, g, 0);
    while (s->status == TD_OK && s->n_events && !td_queue_finished(s->queue)) {
        event e = pop(s);
        now = e.at;
        sim_group *grp = &s->groups[e.group];
        if (e.kind == EVENT_FAIL) {
            fail_group(s, e.group, now);
        } else if (!grp->failed && e.kind == EVENT_DONE) {
            complete(s, e.group, now);
        } else if (!grp->failed) {
            grp->asleep = false;
            work(s, e.group, now);
        }
    }
    s->out->wall_s = now;
    if (s->status == TD_OK && s->n_done != s->load->n_batches)
        s->status = td_error_set(s->err, TD_E_INTERNAL,
                                 "the simulation stands still with %lld of %lld micro-batches done",
                                 (long long)s->n_done, (long long)s->load->n_batches);
}

/* --- what it is compared with ----------------------------------------------------------------- */

/* Do two groups take the same time for everything? */
static bool same_cost(const td_plan_group *a, const td_plan_group *b) {
    bool same = a->n_stages == b->n_stages;
    for (int32_t i = 0; same && i < a->n_stages; i++)
        same = memcmp(&a->stages[i].cost, &b->stages[i].cost, sizeof a->stages[i].cost) == 0;
    return same;
}

/* Total work over total rate: group g alone needs all[g] seconds at full pipeline; with rates until
 * each failure, the time T with sum of min(T, failed) / all = 1. */
static td_status find_ideal(const sim *s, double *ideal, td_error *err) {
    const td_plan *p = s->plan;
    double *all = td_calloc((size_t)p->n_groups, sizeof *all), rate = 0;
    if (!all)
        return td_error_nomem(err, "the ideal bound", (size_t)p->n_groups * sizeof *all);
    for (int32_t g = 0; g < p->n_groups; g++) {
        int32_t like = g - 1;
        while (like >= 0 && !same_cost(&p->groups[g], &p->groups[like]))
            like--;
        if (like >= 0)
            all[g] = all[like];
        for (int64_t i = 0; like < 0 && i < s->load->n_batches; i++)
            all[g] += td_cost_group_seconds(p, g, &s->load->batches[i].size);
        rate += 1 / all[g];
    }
    double low = 1 / rate, high = low;
    for (bool enough = false; !enough; high *= 2) {
        double done = 0;
        for (int32_t g = 0; g < p->n_groups; g++) {
            double until = s->out->groups[g].failed_s;
            done += (until < 0 ? high : fmin(high, until)) / all[g];
        }
        enough = done >= 1 - 1e-12;
        if (enough)
            break;
    }
    for (int i = 0; i < 100 && low < high; i++) {
        double mid = 0.5 * (low + high), done = 0;
        for (int32_t g = 0; g < p->n_groups; g++) {
            double until = s->out->groups[g].failed_s;
            done += (until < 0 ? mid : fmin(mid, until)) / all[g];
        }
        if (done >= 1)
            high = mid;
        else
            low = mid;
    }
    free(all);
    *ideal = high;
    return TD_OK;
}

/* Without a queue: the samples in dataset order, the same number for each group, which packs its
 * own into shards and micro-batches. */
static td_status find_static(const sim *s, double *out, td_error *err) {
    const td_plan *p = s->plan;
    int64_t n = s->load->n_samples, per_shard = TD_MIN(s->cfg->output.shard_samples, n);
    td_shard sh = {0};
    td_status rc = TD_OK;
    sh.samples = td_calloc((size_t)per_shard, sizeof *sh.samples);
    if (!sh.samples)
        return td_error_nomem(err, "a simulated shard", (size_t)per_shard * sizeof *sh.samples);
    int64_t index = 0;
    *out = 0;
    for (int32_t g = 0; rc == TD_OK && g < p->n_groups; g++) {
        double at[MAX_STAGES] = {0};
        int64_t end = n * (g + 1) / p->n_groups;
        for (int64_t i = n * g / p->n_groups; rc == TD_OK && i < end; i += sh.n_samples) {
            sh.n_samples = (int32_t)TD_MIN(per_shard, end - i);
            for (int32_t k = 0; k < sh.n_samples; k++)
                sh.samples[k] = (td_sample){.n_tokens = s->load->samples[i + k].n_tokens,
                                            .n_rows = s->load->samples[i + k].n_rows};
            rc = td_shard_repack(&sh, p->batch_tokens, NULL, err);
            for (int32_t b = 0; rc == TD_OK && b < sh.n_batches; b++) {
                td_work_size size = {0};
                double t = 0;
                for (int32_t k = 0; k < sh.batches[b].n_samples; k++) {
                    const td_sample *m = &sh.samples[sh.batches[b].samples[k]];
                    td_work_size_add(&size, m->n_tokens, m->n_rows, p->cost.window);
                }
                for (int32_t k = 0; k < p->groups[g].n_stages; k++)
                    t = at[k] = fmax(t, at[k]) +
                                td_cost_stage_seconds(p, g, k, &size) * noise_of(s->cfg, index, k);
                *out = fmax(*out, t);
                index++;
            }
        }
    }
    free(sh.batches);
    free(sh.batch_samples);
    free(sh.samples);
    return rc;
}

/* --- set-up ----------------------------------------------------------------------------------- */

static td_status check(const td_config *cfg, const td_plan *plan, td_error *err) {
    for (int32_t g = 0; g < plan->n_groups; g++) {
        if (td_cost_group_seconds(plan, g, &plan->micro_batch) <= 0)
            return td_error_set(err, TD_E_CONFIG,
                                "the speed of %s is not known, so its time cannot be simulated; "
                                "give tflops (and mem_gbs) in devices.inventory",
                                plan->inventory.devices[plan->groups[g].devices[0]].type);
        if (plan->groups[g].n_stages > MAX_STAGES)
            return td_error_set(err, TD_E_CONFIG, "group %d has %d stages, more than %d", g,
                                plan->groups[g].n_stages, MAX_STAGES);
    }
    if (cfg->simulate.failures >= plan->n_groups)
        return td_error_set(err, TD_E_CONFIG,
                            "simulate.failures = %d, but the plan has %d group%s, and one must "
                            "stay to finish the work",
                            cfg->simulate.failures, plan->n_groups, plan->n_groups == 1 ? "" : "s");
    return TD_OK;
}

static td_status make_group(sim *s, int32_t g, td_error *err) {
    const td_plan *p = s->plan;
    sim_group *grp = &s->groups[g];
    td_sim_group *o = &s->out->groups[g];
    size_t stages = (size_t)p->groups[g].n_stages;
    grp->n_stages = (int32_t)stages;
    grp->n_slots = p->limits.n_slots;
    o->failed_s = -1;
    o->busy_s = td_calloc(stages, sizeof *o->busy_s);
    o->bins = td_calloc(TD_SIM_BINS, sizeof *o->bins);
    grp->free_s = td_calloc(stages, sizeof *grp->free_s);
    grp->slots = td_calloc((size_t)grp->n_slots, sizeof *grp->slots);
    grp->times = td_calloc((size_t)grp->n_slots * 2 * stages, sizeof *grp->times);
    if (!o->busy_s || !o->bins || !grp->free_s || !grp->slots || !grp->times)
        return td_error_nomem(err, "the simulated groups", TD_SIM_BINS * sizeof(float));
    for (int32_t i = 0; i < grp->n_slots; i++) {
        grp->slots[i].begin = grp->times + (size_t)i * 2 * stages;
        grp->slots[i].end = grp->slots[i].begin + stages;
    }
    td_claimer_setup in = td_claimer_setup_of(p, g, grp->n_slots, s->board, s->queue);
    td_claimer_init(&grp->claimer, &in);
    return TD_OK;
}

/* Different groups at random, each at a time in the first nine tenths of the expected wall time. */
static void plan_failures(sim *s, double expected_s) {
    const td_config *cfg = s->cfg;
    uint64_t draw = 0;
    for (int32_t k = 0; k < cfg->simulate.failures;) {
        int32_t g = (int32_t)(td_sim_uniform(cfg->simulate.seed, TD_SIM_FAILURE, draw++) *
                              s->plan->n_groups);
        double at = 0.9 * expected_s * td_sim_uniform(cfg->simulate.seed, TD_SIM_FAILURE, draw++);
        bool twice = false;
        for (size_t i = 0; i < s->n_events; i++)
            twice = twice || s->heap[i].group == g;
        if (twice)
            continue;
        push(s, at, g, EVENT_FAIL);
        k++;
    }
}

static td_status make(sim *s, td_error *err) {
    const td_sim_load *l = s->load;
    size_t n = (size_t)l->n_batches, shards = (size_t)l->n_shards;
    size_t groups = (size_t)s->plan->n_groups;
    s->items = td_calloc(n, sizeof *s->items);
    s->groups = td_calloc(groups, sizeof *s->groups);
    s->out->groups = td_calloc(groups, sizeof *s->out->groups);
    s->shard_left = td_calloc(shards, sizeof *s->shard_left);
    s->shard_samples = td_calloc(shards, sizeof *s->shard_samples);
    if (!s->items || !s->groups || !s->out->groups || !s->shard_left || !s->shard_samples)
        return td_error_nomem(err, "the simulation", n * sizeof *s->items);
    s->out->n_groups = s->plan->n_groups;
    for (size_t i = 0; i < n; i++) {
        const td_sim_batch *b = &l->batches[i];
        s->items[i] = (item){.shard = b->shard, .index = (int64_t)i};
        td_claim_item_init(&s->items[i].claim, &s->plan->cost, &b->size, false);
        s->shard_left[b->shard]++;
        s->shard_samples[b->shard] += b->n_samples;
    }
    td_status rc = td_queue_create(QUEUE_CAPACITY, (uint32_t)groups, &s->queue, err);
    if (rc == TD_OK)
        rc = td_claim_board_create((int32_t)groups, &s->board, err);
    for (int32_t g = 0; rc == TD_OK && g < s->plan->n_groups; g++)
        rc = make_group(s, g, err);
    s->max_open = s->out->max_open = td_claims_max_open(s->plan, s->cfg->output.shard_samples, 0);
    return rc;
}

static void unmake(sim *s) {
    for (int32_t g = 0; s->groups && g < s->plan->n_groups; g++) {
        free(s->groups[g].slots);
        free(s->groups[g].times);
        free(s->groups[g].free_s);
    }
    free(s->groups);
    free(s->items);
    free(s->shard_left);
    free(s->shard_samples);
    free(s->heap);
    td_queue_destroy(s->queue);
    td_claim_board_destroy(s->board);
}

td_status td_simulate(const td_config *cfg, const td_plan *plan, const td_sim_load *load,
                      td_sim_result *out, td_error *err) {
    *out = (td_sim_result){0};
    sim s = {.cfg = cfg, .plan = plan, .load = load, .out = out, .err = err};
    td_status rc = check(cfg, plan, err);
    if (rc == TD_OK)
        rc = make(&s, err);
    if (rc == TD_OK)
        rc = find_ideal(&s, &out->ideal_s, err);
    if (rc == TD_OK)
        rc = find_static(&s, &out->static_s, err);
    if (rc == TD_OK) {
        out->bin_s = out->ideal_s / (TD_SIM_BINS - 10);
        plan_failures(&s, out->ideal_s);
        run_events(&s);
        rc = s.status;
    }
    if (rc == TD_OK && cfg->simulate.failures)
        rc = find_ideal(&s, &out->ideal_s, err);
    for (int32_t g = 0; s.groups && g < plan->n_groups; g++) {
        out->n_claims += s.groups[g].claimer.n_claims;
        out->n_released += s.groups[g].claimer.n_released;
    }
    unmake(&s);
    if (rc != TD_OK)
        td_sim_result_free(out);
    return rc;
}

void td_sim_result_free(td_sim_result *r) {
    for (int32_t g = 0; r->groups && g < r->n_groups; g++) {
        free(r->groups[g].busy_s);
        free(r->groups[g].bins);
    }
    free(r->groups);
    *r = (td_sim_result){0};
}
