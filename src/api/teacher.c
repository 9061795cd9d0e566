/* teacher.c - tdgen/teacher.h over a session of one stage.
 *
 * Scoring keeps two micro-batches in flight: while the device computes one, the callback takes what
 * the one before gave. Sequences without rows are in no micro-batch, but in their place when the
 * results are handed out, so the order of callbacks is that of the sequences.
 */
#include "tdgen/teacher.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "base/format.h"
#include "base/memory.h"
#include "device/device.h"
#include "model/model.h"

enum {
    DEFAULT_MAX_TOKENS = 4096,
    LARGEST_MAX_TOKENS = 1 << 24,
    DEFAULT_TOP_K = 16,
    LARGEST_N_THREADS = 4096,
    N_SLOTS = 2,
    /* Rows of logits at a time, as a run has them. */
    CAPTURE_ROWS_CPU = 256,
    CAPTURE_ROWS_GPU = 1024,
    MIN_CAPTURE_ROWS = 16
};
static const int64_t MAX_LOGITS_BYTES = (int64_t)1 << 30;

struct tdgen_teacher {
    td_model_config model;
    td_device *device;
    td_weights *weights;
    td_session *session;
    td_session_limits limits;
    td_capture_spec spec;
    td_dtype compute;
    td_batch_builder batch;
    uint8_t *all_rows;            /* [max_tokens] ones: the mask of a sequence without one */
    int32_t *positions, *targets; /* [max_tokens] of the sequence that is handed out */
    tdgen_teacher_info info;
    bool busy;   /* inside of tdgen_teacher_score */
    bool failed; /* the session cannot be used any more */
};

/* --- opening ---------------------------------------------------------------------------------- */

/* "cuda:3" -> 3; -1 when it is no such name. */
static int32_t index_of(const char *name, const char *backend) {
    size_t n = strlen(backend);
    long long index = 0;
    return strncmp(name, backend, n) == 0 && name[n] == ':' &&
                   td_parse_int(name + n + 1, 0, INT32_MAX, &index)
               ? (int32_t)index
               : -1;
}

static td_status open_one(const char *backend, int32_t index, int32_t n_threads, td_device **out,
                          td_error *err) {
    td_device_info *list = NULL;
    int32_t n = 0;
    td_status rc = td_device_enumerate(backend, 0, &list, &n, err);
    if (rc != TD_OK)
        return rc;
    if (index >= n) {
        rc = td_error_set(err, TD_E_DEVICE,
                          "there is no device %s:%d: this machine has %d that this build can use "
                          "(it computes on: %s)",
                          backend, index, n, td_device_backends());
    } else {
        if (n_threads && list[index].n_threads)
            list[index].n_threads = n_threads;
        rc = td_device_open(&list[index], out, err);
    }
    free(list);
    return rc;
}

static td_status open_device(const char *name, int32_t n_threads, td_device **out, td_error *err) {
    if (!name || strcmp(name, "auto") == 0) {
        td_device_info *list = NULL;
        int32_t n = 0;
        td_status rc = td_device_enumerate("cuda", 0, &list, &n, err);
        free(list);
        return rc != TD_OK ? rc : open_one(n ? "cuda" : "cpu", 0, n_threads, out, err);
    }
    if (strcmp(name, "cpu") == 0)
        return open_one("cpu", 0, n_threads, out, err);
    for (const char *const *b = (const char *const[]){"cpu", "cuda", NULL}; *b; b++) {
        int32_t index = index_of(name, *b);
        if (index >= 0)
            return open_one(*b, index, n_threads, out, err);
    }
    return td_error_set(err, TD_E_CONFIG,
                        "no device is called \"%.60s\", expected \"cpu\", \"cuda:N\" or \"auto\"",
                        name);
}

static bool offers(const td_device_info *d, td_dtype t) {
    return t == TD_F32 ? d->has_f32 : t == TD_BF16 ? d->has_bf16 : d->has_f16;
}

/* As the plan of a run settles it for a single device. */
static td_status resolve_compute(tdgen_teacher *t, tdgen_compute asked, td_error *err) {
    static const td_dtype dtypes[] = {
        [TDGEN_COMPUTE_F32] = TD_F32, [TDGEN_COMPUTE_BF16] = TD_BF16, [TDGEN_COMPUTE_F16] = TD_F16};
    const td_device_info *d = &t->device->info;
    td_dtype stored = t->model.weight_dtype;
    if (asked != TDGEN_COMPUTE_AUTO) {
        t->compute = dtypes[asked];
        if (!offers(d, t->compute))
            return td_error_set(err, TD_E_DEVICE, "%s (%s) does not compute in %s", d->name,
                                d->model, td_dtype_name(t->compute));
    } else if (stored == TD_F32 || offers(d, stored)) {
        t->compute = stored;
    } else {
        td_dtype other = stored == TD_F16 ? TD_BF16 : TD_F16;
        t->compute = offers(d, other) ? other : TD_F32;
    }
    t->info.compute = t->compute == TD_BF16  ? TDGEN_COMPUTE_BF16
                      : t->compute == TD_F16 ? TDGEN_COMPUTE_F16
                                             : TDGEN_COMPUTE_F32;
    return TD_OK;
}

static td_status set_limits(tdgen_teacher *t, const tdgen_teacher_options *o, td_error *err) {
    const td_device_info *d = &t->device->info;
    const bool on_cpu = strcmp(t->device->ops->backend, "cpu") == 0;
    const td_capture_settings settings = {.mode = TD_CAPTURE_TOPK,
                                          .top_k = o->top_k ? o->top_k : DEFAULT_TOP_K,
                                          .logprob_dtype = TD_F32};
    const td_capture_teacher teacher = {.n_vocab = t->model.n_vocab,
                                        .n_hidden = t->model.n_hidden,
                                        .n_valid = o->n_valid_ids,
                                        .name = t->info.architecture};
    if (settings.top_k > t->model.n_vocab || o->n_valid_ids > t->model.n_vocab)
        return td_error_set(err, TD_E_CONFIG, "%s is %d, but the teacher's vocabulary has %d ids",
                            settings.top_k > t->model.n_vocab ? "top_k" : "n_valid_ids",
                            settings.top_k > t->model.n_vocab ? settings.top_k : o->n_valid_ids,
                            t->model.n_vocab);
    td_status rc = td_capture_resolve(&settings, &teacher, 0, &t->spec, err);
    if (rc != TD_OK)
        return rc;
    int64_t rows = on_cpu ? CAPTURE_ROWS_CPU : CAPTURE_ROWS_GPU;
    while (rows > MIN_CAPTURE_ROWS && rows * 4 * t->model.n_vocab > MAX_LOGITS_BYTES)
        rows /= 2;
    const int32_t max_tokens = o->max_tokens ? o->max_tokens : DEFAULT_MAX_TOKENS;
    t->limits = (td_session_limits){.max_tokens = max_tokens,
                                    .max_seqs = TD_MAX(max_tokens / 2, 1), /* of two tokens each */
                                    .max_rows = max_tokens,
                                    .n_slots = N_SLOTS,
                                    .capture_rows = (int32_t)TD_MIN(rows, max_tokens),
                                    .narrow_attention = d->narrow_attention};
    td_stage_memory m;
    td_stage_memory_estimate(&t->model, t->compute, &t->limits, &t->spec, 0, t->model.n_layers + 2,
                             &m);
    uint64_t buffers = m.activation_bytes + m.workspace_bytes;
    if (on_cpu)
        buffers += td_session_host_bytes(&t->limits, &t->spec);
    t->info.memory_bytes = m.weight_bytes + buffers;
    if (d->memory_free_bytes && t->info.memory_bytes > d->memory_free_bytes) {
        char a[32], b[32], c[32];
        return td_error_set(err, TD_E_DEVICE_OOM,
                            "%s has %s free, but the weights take %s and the buffers for "
                            "max_tokens = %d take %s",
                            d->name, td_human_bytes(d->memory_free_bytes, a, sizeof a),
                            td_human_bytes(m.weight_bytes, b, sizeof b), max_tokens,
                            td_human_bytes(buffers, c, sizeof c));
    }
    return TD_OK;
}

static td_status make_session(tdgen_teacher *t, td_error *err) {
    const td_stage stage = {
        .device = t->device, .item_begin = 0, .item_end = t->model.n_layers + 2};
    const size_t n = (size_t)t->limits.max_tokens;
    t->all_rows = td_calloc(n, sizeof *t->all_rows);
    t->positions = td_calloc(n, sizeof *t->positions);
    t->targets = td_calloc(n, sizeof *t->targets);
    if (!t->all_rows || !t->positions || !t->targets)
        return td_error_nomem(err, "the rows of a sequence", n * 9);
    memset(t->all_rows, 1, n);
    td_status rc = td_weights_load(t->weights, &stage, 1, t->compute, NULL, err);
    if (rc == TD_OK)
        rc = td_session_create(t->weights, &stage, 1, &t->limits, &t->spec, &t->session, err);
    return rc == TD_OK ? td_batch_builder_init(&t->batch, &t->limits, err) : rc;
}

static void fill_info(tdgen_teacher *t) {
    const td_model_config *m = &t->model;
    t->info.device = t->device->info.name;
    t->info.device_kind = t->device->info.kind;
    t->info.max_tokens = t->limits.max_tokens;
    t->info.top_k = t->spec.top_k;
    t->info.n_valid_ids = t->spec.n_valid;
    t->info.n_vocab = m->n_vocab;
    t->info.n_hidden = m->n_hidden;
    t->info.n_layers = m->n_layers;
    t->info.max_positions = m->max_positions;
    t->info.bos_id = m->bos_id;
    t->info.eos_id = m->eos_id;
    t->info.n_params = m->n_params;
}

/* What no teacher and no device could do. */
static tdgen_status check_options(const tdgen_teacher_options *o, tdgen_error *err) {
    const struct {
        const char *name;
        int32_t value, largest;
    } numbers[] = {{"max_tokens", o->max_tokens, LARGEST_MAX_TOKENS},
                   {"top_k", o->top_k, TD_MAX_TOP_K},
                   {"n_valid_ids", o->n_valid_ids, INT32_MAX},
                   {"n_threads", o->n_threads, LARGEST_N_THREADS},
                   {"compute", (int32_t)o->compute, TDGEN_COMPUTE_F16}};
    for (size_t i = 0; i < TD_ARRAY_LEN(numbers); i++)
        if (numbers[i].value < 0 || numbers[i].value > numbers[i].largest)
            return td_api_fail(err, TDGEN_E_ARGUMENT, "%s is %d, expected 0 (default) to %d",
                               numbers[i].name, numbers[i].value, numbers[i].largest);
    return TDGEN_OK;
}

tdgen_status tdgen_teacher_open(const char *dir, const tdgen_teacher_options *options,
                                tdgen_teacher **out, tdgen_error *err) {
    tdgen_teacher_options o = {0};
    td_error why = {0};
    td_api_begin();
    if (!dir || !out)
        return td_api_fail(err, TDGEN_E_ARGUMENT, "tdgen_teacher_open: %s is NULL",
                           dir ? "out" : "dir");
    tdgen_status code =
        td_api_options(&o, sizeof o, sizeof o, options, "tdgen_teacher_options", err);
    if (code == TDGEN_OK)
        code = check_options(&o, err);
    if (code != TDGEN_OK)
        return code;
    tdgen_teacher *t = td_calloc(1, sizeof *t);
    if (!t)
        return td_api_fail(err, TDGEN_E_INTERNAL, "out of memory");
    td_status rc = td_model_config_load(dir, &t->model, &why);
    t->info.architecture = t->model.architecture;
    if (rc != TD_OK || (rc = td_weights_open(dir, &t->model, &t->weights, &why)) != TD_OK ||
        (rc = open_device(o.device, o.n_threads, &t->device, &why)) != TD_OK ||
        (rc = resolve_compute(t, o.compute, &why)) != TD_OK ||
        (rc = set_limits(t, &o, &why)) != TD_OK || (rc = make_session(t, &why)) != TD_OK) {
        tdgen_teacher_close(t);
        return td_api_error(err, rc, &why);
    }
    fill_info(t);
    *out = t;
    return TDGEN_OK;
}

void tdgen_teacher_close(tdgen_teacher *t) {
    if (!t)
        return;
    td_session_destroy(t->session);
    td_batch_builder_free(&t->batch);
    td_weights_close(t->weights);
    td_device_close(t->device);
    free(t->all_rows);
    free(t->positions);
    free(t->targets);
    free(t);
}

const tdgen_teacher_info *tdgen_teacher_get_info(const tdgen_teacher *t) {
    return t ? &t->info : NULL;
}

/* --- scoring ---------------------------------------------------------------------------------- */

/* A call: its sequences, and who takes what comes of them. */
typedef struct scoring {
    tdgen_teacher *t;
    const tdgen_sequence *sequences;
    size_t n;
    tdgen_scores_fn fn;
    void *user;
} scoring;

/* Consecutive sequences that are handed out together. */
typedef struct part {
    size_t begin, end;
    bool in_flight; /* else none of them has a row */
} part;

static int32_t count_rows(const tdgen_sequence *s) {
    if (!s->loss_mask)
        return TD_MAX(s->n_ids - 1, 0);
    int32_t n = 0;
    for (int32_t t = 1; t < s->n_ids; t++)
        n += s->loss_mask[t] != 0;
    return n;
}

static tdgen_status check_sequence(const tdgen_teacher *t, const tdgen_sequence *s, size_t i,
                                   tdgen_error *err) {
    const td_model_config *m = &t->model;
    if (s->n_ids < 0 || (s->n_ids > 0 && !s->ids))
        return td_api_fail(err, TDGEN_E_ARGUMENT, "sequence %zu: %s", i,
                           s->n_ids < 0 ? "n_ids is negative" : "ids is NULL");
    if (s->n_ids > t->limits.max_tokens)
        return td_api_fail(err, TDGEN_E_DATA,
                           "sequence %zu has %d tokens, but the teacher was opened for max_tokens "
                           "= %d",
                           i, s->n_ids, t->limits.max_tokens);
    if (m->learned_positions && s->n_ids > m->max_positions)
        return td_api_fail(err, TDGEN_E_DATA,
                           "sequence %zu has %d tokens, but %s has %d learned positions and no "
                           "others",
                           i, s->n_ids, m->architecture, m->max_positions);
    for (int32_t k = 0; k < s->n_ids; k++)
        if (s->ids[k] < 0 || s->ids[k] >= m->n_vocab)
            return td_api_fail(err, TDGEN_E_DATA,
                               "sequence %zu: token %d has the id %d, the vocabulary has %d", i, k,
                               s->ids[k], m->n_vocab);
    return TDGEN_OK;
}

/* Sequences from *next on, as many as fit together, into the batch. */
static part collect(const scoring *c, size_t *next) {
    tdgen_teacher *t = c->t;
    part p = {.begin = *next};
    td_batch_clear(&t->batch);
    for (; *next < c->n; ++*next) {
        const tdgen_sequence *s = &c->sequences[*next];
        const int32_t n_rows = count_rows(s);
        if (n_rows == 0)
            continue;
        if (!td_batch_fits(&t->batch, s->n_ids, n_rows))
            break;
        td_batch_add(&t->batch, s->ids, s->loss_mask ? s->loss_mask : t->all_rows, s->n_ids, 0, 0);
    }
    p.end = *next;
    p.in_flight = t->batch.batch.n_seqs > 0;
    return p;
}

/* Rows of `cap` from `first` on are those of the sequence. */
static tdgen_status hand_out(const scoring *c, size_t sequence, const td_captured *cap,
                             int32_t first, int32_t n_rows, tdgen_error *err) {
    tdgen_teacher *t = c->t;
    const tdgen_sequence *s = &c->sequences[sequence];
    tdgen_scores out = {.sequence = sequence, .n_rows = n_rows, .top_k = t->spec.top_k};
    int32_t r = 0;
    for (int32_t k = 1; k < s->n_ids; k++)
        if (!s->loss_mask || s->loss_mask[k]) {
            t->positions[r] = k - 1;
            t->targets[r++] = s->ids[k];
        }
    for (r = 0; r < n_rows; r++)
        if (!isfinite(cap->logsumexp[first + r]))
            return td_api_fail(err, TDGEN_E_NUMBERS,
                               "sequence %zu: the logits at position %d are not finite in %s",
                               sequence, t->positions[r], td_dtype_name(t->compute));
    out.positions = t->positions;
    out.targets = t->targets;
    if (n_rows) {
        out.target_logprobs = cap->target_logprob + first;
        out.target_ranks = cap->target_rank + first;
        out.logsumexps = cap->logsumexp + first;
        out.entropies = cap->entropy + first;
        out.tail_masses = cap->tail_mass + first;
        out.top_ids = cap->topk_ids + (size_t)first * (size_t)out.top_k;
        out.top_logprobs = cap->topk_logprobs + (size_t)first * (size_t)out.top_k;
    }
    if (c->fn(&out, c->user) != 0)
        return td_api_fail(err, TDGEN_E_STOPPED, "the callback stopped at sequence %zu", sequence);
    return TDGEN_OK;
}

static tdgen_status finish(const scoring *c, const part *p, int32_t slot, tdgen_error *err) {
    td_captured cap = {0};
    td_error why = {0};
    if (p->in_flight) {
        td_status rc = td_session_wait(c->t->session, slot, 0, &cap, &why);
        if (rc != TD_OK) {
            c->t->failed = true;
            return td_api_error(err, rc, &why);
        }
    }
    tdgen_status code = TDGEN_OK;
    int32_t row = 0;
    for (size_t i = p->begin; code == TDGEN_OK && i < p->end; i++) {
        const int32_t n_rows = count_rows(&c->sequences[i]);
        code = hand_out(c, i, &cap, row, n_rows, err);
        row += n_rows;
    }
    return code;
}

static tdgen_status score(const scoring *c, tdgen_error *err) {
    td_session *session = c->t->session;
    tdgen_status code = TDGEN_OK;
    part before = {0}; /* in the other slot */
    int32_t slot = 0;
    for (size_t next = 0; code == TDGEN_OK && (next < c->n || before.begin < before.end);
         slot = 1 - slot) {
        td_error why = {0};
        part now = collect(c, &next);
        td_status rc =
            now.in_flight ? td_session_submit(session, slot, &c->t->batch.batch, &why) : TD_OK;
        if (rc != TD_OK) {
            c->t->failed = true;
            return td_api_error(err, rc, &why);
        }
        code = finish(c, &before, 1 - slot, err);
        before = now;
    }
    /* What was submitted and is not wanted any more leaves its slot free for the next call. */
    td_captured cap;
    if (code != TDGEN_OK && !c->t->failed && before.in_flight &&
        td_session_wait(session, 1 - slot, 0, &cap, NULL) != TD_OK)
        c->t->failed = true;
    return code;
}

tdgen_status tdgen_teacher_score(tdgen_teacher *t, const tdgen_sequence *sequences, size_t n,
                                 tdgen_scores_fn fn, void *user, tdgen_error *err) {
    if (!t || !fn || (n && !sequences))
        return td_api_fail(err, TDGEN_E_ARGUMENT, "tdgen_teacher_score: %s is NULL",
                           !t    ? "the teacher"
                           : !fn ? "fn"
                                 : "sequences");
    if (t->busy)
        return td_api_fail(err, TDGEN_E_ARGUMENT,
                           "tdgen_teacher_score: the teacher is scoring already");
    if (t->failed)
        return td_api_fail(err, TDGEN_E_DEVICE,
                           "the teacher's device failed before; close the teacher");
    tdgen_status code = TDGEN_OK;
    for (size_t i = 0; code == TDGEN_OK && i < n; i++)
        code = check_sequence(t, &sequences[i], i, err);
    if (code != TDGEN_OK)
        return code;
    t->busy = true;
    code = score(&(scoring){.t = t, .sequences = sequences, .n = n, .fn = fn, .user = user}, err);
    t->busy = false;
    return code;
}
