/* The record under threads, for ThreadSanitizer: groups put samples of several open shards at once,
 * whoever puts the last sample of a shard commits it (so commits run beside puts and other
 * commits), while another thread asks for totals and finished shards. Ends with a verification.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "test/record/fixture.h"
#include "base/log.h"

enum { GROUPS = 4, SHARDS = 6, SAMPLES = 24 };

static td_fixture fixture;
static td_output *output;
static td_shard *shards[SHARDS];
static td_shard_writer *writers[SHARDS];
static atomic_int left[SHARDS], next_item, n_failed, n_committed;

static void failed(const td_error *err) {
    fprintf(stderr, "%s\n", err->text);
    atomic_fetch_add(&n_failed, 1);
}

static void *group(void *arg) {
    int kind = *(int *)arg;
    td_error err = {0};
    for (int item; (item = atomic_fetch_add(&next_item, 1)) < SHARDS * SAMPLES;) {
        int k = item % SHARDS; /* neighbours in time are in different shards */
        int32_t i = item / SHARDS;
        td_captured c = td_fixture_capture(&fixture, shards[k], i);
        td_status rc = i == 5 ? td_shard_writer_skip(writers[k], i, &err)
                              : td_shard_writer_put(writers[k], i, kind, &c, 0, &err);
        td_fixture_captured_free(&c);
        if (rc != TD_OK)
            failed(&err);
        /* acq_rel: the last one sees what the others wrote to the writer */
        if (atomic_fetch_sub_explicit(&left[k], 1, memory_order_acq_rel) == 1) {
            if (td_shard_writer_commit(writers[k], &err) != TD_OK)
                failed(&err);
            atomic_fetch_add(&n_committed, 1);
        }
    }
    return NULL;
}

static void *watcher(void *arg) {
    (void)arg;
    td_error err = {0};
    while (atomic_load(&n_committed) < SHARDS) {
        td_output_totals t;
        bool done;
        td_output_totals_get(output, &t);
        const td_shard *s = shards[t.n_shards % SHARDS];
        if (t.n_tokens < 0 || (td_output_has_shard(output, s->number) &&
                               td_output_shard_done(output, s->number, s->row_begin, s->row_end,
                                                    s->source_hash, &done, NULL, &err) != TD_OK))
            failed(&err);
    }
    return NULL;
}

static int run_mode(const td_fixture_mode *mode) {
    static const char *const kinds[GROUPS] = {"b", "a", "b", "c"};
    pthread_t threads[GROUPS], watch;
    int numbers[GROUPS];
    td_error err = {0};
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(&fixture);
    if (mode)
        td_fixture_set_mode(&fixture, mode);
    atomic_store(&next_item, 0);
    atomic_store(&n_committed, 0);
    fixture.cfg.output.shard_samples = SAMPLES;
    if (td_fixture_open(&fixture, &output, &err) != TD_OK)
        goto fail;
    for (int k = 0; k < SHARDS; k++) {
        shards[k] = td_fixture_shard(&fixture, k, SAMPLES);
        atomic_store(&left[k], SAMPLES);
        if (td_shard_writer_open(output, shards[k], kinds, GROUPS, &writers[k], &err) != TD_OK)
            goto fail;
    }
    pthread_create(&watch, NULL, watcher, NULL);
    for (int g = 0; g < GROUPS; g++) {
        numbers[g] = g;
        pthread_create(&threads[g], NULL, group, &numbers[g]);
    }
    for (int g = 0; g < GROUPS; g++)
        pthread_join(threads[g], NULL);
    pthread_join(watch, NULL);
    td_output_close(output);
    if (td_verify(fixture.cfg.output.dir, &(td_verify_options){.partial = true}, stdout, &err) !=
        TD_OK)
        goto fail;
    for (int k = 0; k < SHARDS; k++)
        td_fixture_shard_free(shards[k]);
    td_fixture_free(&fixture);
    return atomic_load(&n_failed) ? 1 : 0;
fail:
    fprintf(stderr, "%s\n", err.text);
    return 1;
}

int main(void) {
    /* Draws, packed and compressed: the side file is written by all threads at once. */
    return run_mode(NULL) || run_mode(td_fixture_mode_named("topk+sample packed, q8, zstd"));
}
