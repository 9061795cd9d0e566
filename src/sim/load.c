/* load.c - the work of a simulated run: lengths of a stated job or of the real dataset, packed by
 * the data room into the micro-batches that a run would publish. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/random.h"
#include "sim/sim.h"
#include "base/memory.h"

enum { MAX_BATCHES = 1 << 25, MAX_SAMPLES = 1 << 28 };

int32_t td_sim_length(const td_config *cfg, int64_t i) {
    if (cfg->simulate.law == TD_LENGTHS_FIXED)
        return cfg->simulate.fixed_length;
    /* Box and Muller: a normal number of two uniform ones, the first in (0, 1]. */
    uint64_t seed = cfg->simulate.seed;
    double u = 1 - td_sim_uniform(seed, TD_SIM_LENGTH, 2 * (uint64_t)i);
    double v = td_sim_uniform(seed, TD_SIM_LENGTH, 2 * (uint64_t)i + 1);
    double z = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
    double n = round(cfg->simulate.median * exp(cfg->simulate.sigma * z));
    return (int32_t)fmin(fmax(n, 1), cfg->simulate.max_length);
}

void td_sim_stats(const td_config *cfg, int32_t window, td_dataset_stats *out) {
    *out = (td_dataset_stats){.n_dataset_rows = cfg->simulate.n_samples,
                              .n_samples = cfg->simulate.n_samples};
    td_work_size all = {0};
    for (int64_t i = 0; i < cfg->simulate.n_samples; i++) {
        int32_t n = td_sim_length(cfg, i);
        td_work_size_add(&all, n, n - 1, window);
        out->max_tokens = TD_MAX(out->max_tokens, n);
    }
    out->n_tokens = all.n_tokens;
    out->n_record_rows = all.n_rows;
    out->n_pairs = all.n_pairs;
    out->n_pairs_window = all.n_pairs_window;
}

/* Adds the micro-batches of a packed shard. */
static td_status add_shard(td_sim_load *l, const td_shard *sh, int32_t window, td_error *err) {
    size_t need = (size_t)l->n_batches + (size_t)sh->n_batches;
    size_t samples = (size_t)l->n_samples + (size_t)sh->n_samples;
    if (need > MAX_BATCHES || samples > MAX_SAMPLES)
        return td_error_set(err, TD_E_CONFIG,
                            "the job has more than %d micro-batches or %d samples, which is more "
                            "than a simulation holds; lower simulate.n_samples (or "
                            "data.max_samples)",
                            MAX_BATCHES, MAX_SAMPLES);
    if (!td_grow((void **)&l->batches, &l->cap, need, sizeof *l->batches) ||
        !td_grow((void **)&l->samples, &l->samples_cap, samples, sizeof *l->samples))
        return td_error_nomem(err, "the simulated micro-batches", need * sizeof *l->batches);
    for (int32_t i = 0; i < sh->n_samples; i++) {
        const td_sample *m = &sh->samples[i];
        if (m->n_rows > 0) /* the others are in no micro-batch */
            l->samples[l->n_samples++] = (td_sim_sample){m->n_tokens, m->n_rows};
    }
    for (int32_t i = 0; i < sh->n_batches; i++) {
        const td_micro_batch *mb = &sh->batches[i];
        td_sim_batch *b = &l->batches[l->n_batches++];
        *b = (td_sim_batch){.n_samples = mb->n_samples, .shard = l->n_shards};
        for (int32_t k = 0; k < mb->n_samples; k++) {
            const td_sample *s = &sh->samples[mb->samples[k]];
            td_work_size_add(&b->size, s->n_tokens, s->n_rows, window);
        }
        l->n_tokens += mb->n_tokens;
    }
    if (sh->n_batches)
        l->n_shards++;
    return TD_OK;
}

static td_status check_load(td_sim_load *l, const td_config *cfg, bool has_shards, td_status rc,
                            td_error *err) {
    if (rc == TD_OK && l->n_batches == 0 && !has_shards && cfg->run.total_workers > 1)
        rc = td_error_set(err, TD_E_CONFIG,
                          "there is nothing to simulate: the job has no shard for worker %d of %d "
                          "(a shard has %lld rows: output.shard_samples)",
                          cfg->run.worker_id, cfg->run.total_workers,
                          (long long)cfg->output.shard_samples);
    else if (rc == TD_OK && l->n_batches == 0)
        rc = td_error_set(err, TD_E_CONFIG,
                          "there is nothing to simulate: no sample has two tokens or more");
    if (rc != TD_OK)
        td_sim_load_free(l);
    return rc;
}

td_status td_sim_load_make(const td_config *cfg, const td_plan *plan, td_sim_load *out,
                           td_error *err) {
    td_status rc = TD_OK;
    int64_t n = cfg->simulate.n_samples, per_shard = TD_MIN(cfg->output.shard_samples, n);
    td_shard sh = {0};
    bool has_shards = false;
    *out = (td_sim_load){0};
    sh.samples = td_calloc((size_t)per_shard, sizeof *sh.samples);
    if (!sh.samples)
        return td_error_nomem(err, "a simulated shard", (size_t)per_shard * sizeof *sh.samples);
    for (int64_t first = 0, k = 0; rc == TD_OK && first < n; first += per_shard, k++) {
        if (k % cfg->run.total_workers != cfg->run.worker_id)
            continue;
        has_shards = true;
        sh.n_samples = (int32_t)TD_MIN(per_shard, n - first);
        for (int32_t i = 0; i < sh.n_samples; i++) {
            int32_t length = td_sim_length(cfg, first + i);
            sh.samples[i] = (td_sample){.row = first + i, .n_tokens = length, .n_rows = length - 1};
        }
        rc = td_shard_repack(&sh, plan->batch_tokens, NULL, err);
        if (rc == TD_OK)
            rc = add_shard(out, &sh, plan->cost.window, err);
    }
    free(sh.batches);
    free(sh.batch_samples);
    free(sh.samples);
    return check_load(out, cfg, has_shards, rc, err);
}

td_status td_sim_load_from_source(td_source *src, const td_config *cfg, const td_plan *plan,
                                  td_sim_load *out, td_error *err) {
    td_status rc = TD_OK;
    bool has_shards = false;
    *out = (td_sim_load){0};
    for (;;) {
        td_shard *sh;
        bool mine = td_source_next_number(src) % cfg->run.total_workers == cfg->run.worker_id;
        rc = td_source_next(src, mine, &sh, err);
        if (rc != TD_OK || !sh)
            break;
        has_shards = has_shards || mine;
        if (mine)
            rc = add_shard(out, sh, plan->cost.window, err);
        td_shard_free(sh);
        if (rc != TD_OK)
            break;
    }
    return check_load(out, cfg, has_shards, rc, err);
}

void td_sim_load_free(td_sim_load *l) {
    free(l->batches);
    free(l->samples);
    *l = (td_sim_load){0};
}
