/* against.c - samples of a folder computed again by the teacher: one copy of the model on the
 * devices, two passes over the samples. The second goes the other way, in other micro-batches, each
 * of which begins with tokens that are nobody's, so that no row has the place or the neighbours that
 * it had: by the row property its bits must be those of the first pass. */
#include "app/against.h"

#include <stdlib.h>
#include <string.h>
#include "app/job.h"
#include "base/log.h"
#include "base/memory.h"
#include "report/report.h"

enum { BATCH_TOKENS = 4096, FILLER_TOKENS = 37, MAX_LENGTH = 1 << 20 /* of data.max_length */ };

typedef struct against {
    td_job job;
    td_recheck *recheck;
    const td_recheck_sample *samples;
    int32_t n_samples;
    td_session *session;
    td_batch_builder batch;
    char kind[256];     /* of the group, joined as a run does it */
    int32_t *first_row; /* [n_samples] of the sample in the micro-batch that it was in last */
} against;

/* What plan and session look at; the rest of a configuration is nobody's here. */
static td_status configure(against *a, const char *dir, const td_against_options *opt,
                           td_error *err) {
    int32_t longest = 1;
    for (int32_t i = 0; i < a->n_samples; i++)
        longest = TD_MAX(longest, a->samples[i].n_tokens + FILLER_TOKENS);
    longest = TD_MIN(longest, MAX_LENGTH);
    char *set[] = {td_asprintf("devices.gpus=%s", opt->devices ? opt->devices : "auto"),
                   td_asprintf("model.path=%s", opt->model_dir),
                   td_asprintf("data.path=%s", dir),
                   td_asprintf("output.dir=%s", dir),
                   td_asprintf("data.max_length=%d", longest),
                   td_asprintf("run.batch_tokens=%d", BATCH_TOKENS)};
    td_status rc = TD_OK;
    for (size_t i = 0; i < TD_ARRAY_LEN(set); i++)
        if (!set[i])
            rc = td_error_nomem(err, "the settings", 0);
    if (rc == TD_OK)
        rc = td_job_configure(&a->job, false, NULL, (const char *const *)set, TD_ARRAY_LEN(set),
                              err);
    for (size_t i = 0; i < TD_ARRAY_LEN(set); i++)
        free(set[i]);
    /* What the user typed, before what became of it. */
    return rc != TD_OK && opt->devices ? td_error_prefix(err, "--devices %s", opt->devices) : rc;
}

static td_status find_devices(against *a, const td_against_options *opt, td_error *err) {
    td_status rc = td_job_find_devices(&a->job, err);
    return rc != TD_OK && opt->devices ? td_error_prefix(err, "--devices %s", opt->devices) : rc;
}

/* Is it the teacher of the folder? What is quick to refuse comes before what takes long. */
static td_status check_teacher(against *a, td_error *err) {
    td_job *j = &a->job;
    td_recheck_teacher_hashes have = {.config = &j->model.config_hash};
    char *dir = NULL;
    td_status rc = td_model_locate(j->cfg->model.path, &dir, err);
    if (rc != TD_OK)
        return rc;
    free(j->own_cfg.model.path);
    j->own_cfg.model.path = dir;
    rc = td_model_config_load(dir, &j->model, err);
    if (rc == TD_OK)
        rc = td_recheck_teacher(a->recheck, j->cfg->model.path, &have, err);
    if (rc != TD_OK || !td_recheck_needs_tokenizer(a->recheck))
        return rc;
    rc = td_tokenizer_load(j->cfg->model.path, &j->tok, err);
    if (rc != TD_OK)
        return rc;
    uint64_t hash = td_tokenizer_hash(j->tok), of_bytes = td_tokenizer_bytes_hash(j->tok);
    td_recheck_teacher_hashes tokenizer = {.tokenizer = &hash, .tokenizer_bytes = &of_bytes};
    return td_recheck_teacher(a->recheck, j->cfg->model.path, &tokenizer, err);
}

/* One copy of the model, on as few devices as hold it, in the folder's own compute mode. */
static td_status make_plan(against *a, td_error *err) {
    td_job *j = &a->job;
    td_dtype compute = TD_F32;
    td_status rc = td_recheck_compute(a->recheck, &compute, err);
    if (rc != TD_OK)
        return rc;
    j->capture = *td_recheck_capture(a->recheck);
    j->compute = compute == TD_BF16  ? TD_COMPUTE_BF16
                 : compute == TD_F16 ? TD_COMPUTE_F16
                                     : TD_COMPUTE_F32;
    j->stats = (td_dataset_stats){.n_dataset_rows = a->n_samples, .n_samples = a->n_samples};
    for (int32_t i = 0; i < a->n_samples; i++) {
        j->stats.n_tokens += a->samples[i].n_tokens;
        j->stats.n_record_rows += a->samples[i].n_rows;
    }
    j->stats.max_tokens = j->cfg->data.max_length;
    rc = td_job_make_plan(j, err);
    j->n_groups = TD_MIN(j->n_groups, 1);
    return rc;
}

static td_status check_weights(against *a, td_error *err) {
    uint64_t hash = 0;
    td_status rc = td_weights_hash(a->job.weights, &hash, err);
    return rc == TD_OK ? td_recheck_teacher(a->recheck, a->job.cfg->model.path,
                                            &(td_recheck_teacher_hashes){.weights = &hash}, err)
                       : rc;
}

static td_status make_session(against *a, td_error *err) {
    const td_job *j = &a->job;
    const td_plan_group *g = &j->plan.groups[0];
    td_stage *stages = td_calloc((size_t)g->n_stages, sizeof *stages);
    a->first_row = td_calloc((size_t)a->n_samples, sizeof *a->first_row);
    if (!stages || !a->first_row) {
        free(stages);
        return td_error_nomem(err, "the stages", (size_t)g->n_stages * sizeof *stages);
    }
    td_plan_stages(g, j->devices, stages);
    for (int32_t s = 0; s < g->n_stages; s++) {
        const char *kind = stages[s].device->info.kind;
        size_t n = strlen(a->kind);
        if (!strstr(a->kind, kind))
            snprintf(a->kind + n, sizeof a->kind - n, "%s%s", n ? " + " : "", kind);
    }
    td_status rc = td_session_create(j->weights, stages, g->n_stages, &j->plan.limits,
                                     &j->plan.capture, &a->session, err);
    free(stages);
    return rc == TD_OK ? td_batch_builder_init(&a->batch, &j->plan.limits, err) : rc;
}

/* All samples, in order or from the last to the first; `control` says to what they go. */
static td_status pass(against *a, bool control, td_error *err) {
    td_batch_builder *b = &a->batch;
    const td_session_limits *lim = &a->job.plan.limits;
    const int32_t max_tokens =
        TD_MIN(control ? BATCH_TOKENS * 2 / 3 : BATCH_TOKENS, lim->max_tokens);
    for (int32_t done = 0; done < a->n_samples;) {
        const int32_t first = done;
        td_batch_clear(b);
        if (control) { /* never so much that the sample behind it would not fit */
            const int32_t next = a->samples[a->n_samples - 1 - done].n_tokens;
            const int32_t most = TD_MIN(a->samples[0].n_tokens, FILLER_TOKENS);
            const int32_t n_filler = TD_MIN(most, lim->max_tokens - next);
            if (n_filler > 0)
                td_batch_add(b, a->samples[0].ids, NULL, n_filler, 0, 0);
        }
        for (; done < a->n_samples; done++) {
            const int32_t i = control ? a->n_samples - 1 - done : done;
            const td_recheck_sample *s = &a->samples[i];
            /* room for the first one is certain, however long it is */
            if (done > first && (b->batch.n_tokens + s->n_tokens > max_tokens ||
                                 !td_batch_fits(b, s->n_tokens, s->n_rows)))
                break;
            a->first_row[i] = b->batch.n_rows;
            td_batch_add(b, s->ids, s->loss_mask, s->n_tokens, s->dataset_row, s->start);
        }
        td_captured cap;
        td_status rc = td_session_submit(a->session, 0, &b->batch, err);
        if (rc == TD_OK)
            rc = td_session_wait(a->session, 0, 0, &cap, err);
        for (int32_t k = first; rc == TD_OK && k < done; k++) {
            const int32_t i = control ? a->n_samples - 1 - k : k;
            if (control)
                td_recheck_control(a->recheck, i, &cap, a->first_row[i]);
            else
                rc = td_recheck_compare(a->recheck, i, a->kind, &cap, a->first_row[i], err);
        }
        if (rc != TD_OK)
            return rc;
    }
    return TD_OK;
}

td_status td_against(const char *dir, const td_against_options *opt, FILE *out, td_error *err) {
    static const td_job_step load[] = {td_job_open_weights, td_job_open_devices,
                                       td_job_load_weights};
    against *a = td_calloc(1, sizeof *a);
    if (!a)
        return td_error_nomem(err, "the samples", sizeof *a);
    td_status rc = td_recheck_open(dir, opt->n_samples, opt->seed, &a->recheck, err);
    if (rc != TD_OK)
        goto done;
    a->samples = td_recheck_samples(a->recheck, &a->n_samples);
    if ((rc = configure(a, dir, opt, err)) != TD_OK || (rc = check_teacher(a, err)) != TD_OK ||
        (rc = find_devices(a, opt, err)) != TD_OK || (rc = make_plan(a, err)) != TD_OK ||
        (rc = td_job_take(&a->job, load, TD_ARRAY_LEN(load), err)) != TD_OK ||
        (rc = check_weights(a, err)) != TD_OK || (rc = make_session(a, err)) != TD_OK ||
        (rc = pass(a, false, err)) != TD_OK || (rc = pass(a, true, err)) != TD_OK)
        goto done;
    rc = td_recheck_report(a->recheck, a->kind, out, err);
done:
    td_session_destroy(a->session);
    td_batch_builder_free(&a->batch);
    td_job_close(&a->job);
    td_recheck_close(a->recheck);
    free(a->first_row);
    free(a);
    return rc;
}
