/* blame.c - the rules are in blame.h. Failures are rare, so records are searched one by one. */
#include "run/blame.h"

#include <assert.h>
#include <stdlib.h>
#include "base/memory.h"

enum { MAX_WITNESSES = 4, MAX_STRIKES = 2 };

typedef enum sample_state { UNTRIED = 0, TRIED_WELL, PENDING, FAILED } sample_state;

typedef struct sample {
    uint8_t state; /* PENDING: the group that failed over it has yet to pass its probe */
    uint8_t kind;  /* td_failure */
    uint32_t by;
} sample;

/* A work that failed and is not completed. */
typedef struct record {
    uint64_t work;
    uint32_t by[MAX_WITNESSES]; /* the groups that failed over it as a whole, each as often as it
                                   did, and those that hung */
    int32_t n_by;
    bool split;
    sample *samples; /* [n_samples] NULL before the first claimer split it */
    int32_t n_samples;
} record;

typedef struct group {
    td_standing standing;
    uint64_t failed_at; /* counts failures, to find the latest */
    int32_t strikes;    /* failures, not by anybody else's word, since it last completed anything */
    int32_t n_alone;    /* samples that failed alone since it last completed anything */
} group;

struct td_blame {
    group *groups;
    uint32_t n_groups;
    record *records;
    size_t n_records, cap;
    uint64_t n_failures;
};

td_blame *td_blame_create(uint32_t n_groups) {
    td_blame *b = td_calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->n_groups = n_groups;
    b->groups = td_calloc(n_groups, sizeof *b->groups);
    if (!b->groups) {
        free(b);
        return NULL;
    }
    return b;
}

void td_blame_destroy(td_blame *b) {
    if (!b)
        return;
    for (size_t i = 0; i < b->n_records; i++)
        free(b->records[i].samples);
    free(b->records);
    free(b->groups);
    free(b);
}

static record *find(const td_blame *b, uint64_t work) {
    for (size_t i = 0; i < b->n_records; i++)
        if (b->records[i].work == work)
            return &b->records[i];
    return NULL;
}

static void forget(td_blame *b, record *r) {
    free(r->samples);
    *r = b->records[--b->n_records];
}

static void testify(record *r, uint32_t g) {
    if (r->n_by < MAX_WITNESSES)
        r->by[r->n_by++] = g;
}

static bool failed_on(const record *r, uint32_t g) {
    for (int32_t i = 0; i < r->n_by; i++)
        if (r->by[i] == g)
            return true;
    return false;
}

/* Does anybody else speak against this work? */
static bool failed_elsewhere(const record *r, uint32_t g) {
    for (int32_t i = 0; i < r->n_by; i++)
        if (r->by[i] != g)
            return true;
    for (int32_t i = 0; r->samples && i < r->n_samples; i++)
        if (r->samples[i].state == FAILED && r->samples[i].by != g)
            return true;
    return false;
}

/* What a broken device said does not count. */
static void discredit(td_blame *b, uint32_t g) {
    for (size_t k = 0; k < b->n_records; k++) {
        record *r = &b->records[k];
        int32_t n = 0;
        for (int32_t i = 0; i < r->n_by; i++)
            if (r->by[i] != g)
                r->by[n++] = r->by[i];
        r->n_by = n;
        for (int32_t i = 0; r->samples && i < r->n_samples; i++)
            if (r->samples[i].by == g &&
                (r->samples[i].state == FAILED || r->samples[i].state == PENDING))
                r->samples[i].state = UNTRIED;
    }
}

/* Somebody has to play the next try: the one that failed last, unless it failed twice in a row. */
static void need_someone(td_blame *b) {
    group *last = NULL;
    for (uint32_t i = 0; i < b->n_groups; i++) {
        group *g = &b->groups[i];
        if (g->standing == TD_GROUP_WORKS || g->standing == TD_GROUP_PROBES)
            return;
        if (g->standing == TD_GROUP_SUSPENDED && g->strikes < MAX_STRIKES &&
            (!last || g->failed_at > last->failed_at))
            last = g;
    }
    if (last) {
        last->standing = TD_GROUP_PROBES;
        return;
    }
    for (uint32_t i = 0; i < b->n_groups; i++)
        b->groups[i].standing = TD_GROUP_OUT;
}

td_standing td_blame_standing(const td_blame *b, uint32_t g) {
    return b->groups[g].standing;
}

td_care td_blame_care(const td_blame *b, uint64_t work) {
    const record *r = find(b, work);
    return !r ? TD_CARE_NONE : r->split ? TD_CARE_SPLIT : TD_CARE_ALONE;
}

td_status td_blame_failed(td_blame *b, uint32_t g, td_failure kind, const uint64_t *works,
                          int32_t n, td_error *err) {
    group *grp = &b->groups[g];
    bool same = false, elsewhere = false, guilty = false;
    assert(grp->standing == TD_GROUP_WORKS);
    grp->failed_at = ++b->n_failures;
    for (int32_t i = 0; i < n; i++) {
        record *r = find(b, works[i]);
        if (!r) {
            if (!td_grow((void **)&b->records, &b->cap, b->n_records + 1, sizeof *r))
                return td_error_nomem(err, "the works that failed", (b->n_records + 1) * sizeof *r);
            r = &b->records[b->n_records++];
            *r = (record){.work = works[i]};
        }
        same = same || failed_on(r, g);
        elsewhere = elsewhere || failed_elsewhere(r, g);
        testify(r, g);
        r->split = r->split || r->n_by >= 2 || kind == TD_FAILURE_OOM;
        if (!r->split)
            continue;
        guilty = true;
        for (uint32_t k = 0; k < b->n_groups; k++) {
            if (!failed_on(r, k))
                continue;
            if (b->groups[k].standing == TD_GROUP_SUSPENDED)
                b->groups[k].standing = TD_GROUP_PROBES;
            if (failed_elsewhere(r, k)) /* explained */
                b->groups[k].strikes = 0;
        }
    }
    if (kind == TD_FAILURE_HUNG) {
        grp->standing = TD_GROUP_OUT;
    } else {
        grp->standing = guilty ? TD_GROUP_PROBES : TD_GROUP_SUSPENDED;
        grp->strikes += !elsewhere && !same;
    }
    need_someone(b);
    return TD_OK;
}

void td_blame_probed(td_blame *b, uint32_t g, bool ok) {
    group *grp = &b->groups[g];
    if (!ok) {
        grp->standing = TD_GROUP_OUT;
        discredit(b, g);
        need_someone(b);
        return;
    }
    assert(grp->standing == TD_GROUP_PROBES);
    grp->standing = TD_GROUP_WORKS;
    for (size_t k = 0; k < b->n_records; k++)
        for (int32_t i = 0; b->records[k].samples && i < b->records[k].n_samples; i++) {
            sample *s = &b->records[k].samples[i];
            if (s->state == PENDING && s->by == g)
                s->state = FAILED;
        }
}

static void worked(group *grp) {
    grp->strikes = 0;
    grp->n_alone = 0;
}

void td_blame_completed(td_blame *b, uint32_t g, uint64_t work) {
    record *r = find(b, work);
    bool all_failed = r && r->samples;
    for (int32_t i = 0; all_failed && i < r->n_samples; i++)
        all_failed = r->samples[i].state == FAILED;
    if (!all_failed) /* a work with nothing but bad samples says nothing for the group */
        worked(&b->groups[g]);
    if (!r)
        return;
    record gone = *r;
    gone.samples = NULL;
    forget(b, r);
    for (int32_t i = 0; i < gone.n_by; i++) {
        group *other = &b->groups[gone.by[i]];
        bool waits = other->standing == TD_GROUP_SUSPENDED;
        for (size_t k = 0; waits && k < b->n_records; k++)
            waits = !failed_on(&b->records[k], gone.by[i]);
        if (waits) /* all that it failed over was fine */
            other->standing = TD_GROUP_OUT;
    }
    need_someone(b);
}

td_status td_blame_split(td_blame *b, uint64_t work, int32_t n_samples, td_error *err) {
    record *r = find(b, work);
    assert(r && r->split);
    if (r->samples)
        return TD_OK;
    r->samples = td_calloc((size_t)n_samples, sizeof *r->samples);
    if (!r->samples)
        return td_error_nomem(err, "the samples of a micro-batch",
                              (size_t)n_samples * sizeof *r->samples);
    r->n_samples = n_samples;
    return TD_OK;
}

int32_t td_blame_next_sample(const td_blame *b, uint64_t work) {
    const record *r = find(b, work);
    for (int32_t i = 0; i < r->n_samples; i++)
        if (r->samples[i].state == UNTRIED)
            return i;
    return -1;
}

void td_blame_sample_done(td_blame *b, uint32_t g, uint64_t work, int32_t i) {
    find(b, work)->samples[i].state = TRIED_WELL;
    worked(&b->groups[g]);
}

void td_blame_sample_failed(td_blame *b, uint32_t g, td_failure kind, uint64_t work, int32_t i) {
    record *r = find(b, work);
    group *grp = &b->groups[g];
    assert(grp->standing == TD_GROUP_WORKS && r->samples[i].state == UNTRIED);
    grp->failed_at = ++b->n_failures;
    r->samples[i] = (sample){.state = PENDING, .kind = (uint8_t)kind, .by = g};
    if (kind == TD_FAILURE_HUNG) {
        r->samples[i].state = FAILED;
        grp->standing = TD_GROUP_OUT;
        need_someone(b);
        return;
    }
    grp->standing = TD_GROUP_PROBES;
    if (!failed_elsewhere(r, g))
        grp->n_alone++;
}

bool td_blame_judge(td_blame *b, uint32_t g, uint64_t work) {
    const record *r = find(b, work);
    /* Samples in a row, by nobody else's word: more likely it is the device. */
    if (b->groups[g].n_alone < 2 || failed_elsewhere(r, g))
        return true;
    b->groups[g].standing = TD_GROUP_OUT;
    discredit(b, g);
    need_someone(b);
    return false;
}

bool td_blame_is_blamed(const td_blame *b, uint64_t work, int32_t i, td_failure *kind) {
    const record *r = find(b, work);
    if (!r || !r->samples || r->samples[i].state != FAILED)
        return false;
    if (kind)
        *kind = (td_failure)r->samples[i].kind;
    return true;
}
