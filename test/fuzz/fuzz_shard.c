/* Mutations of a valid output folder: verify and inspect must never crash, overrun or accept what
 * changed, whatever the bytes.
 *
 *   fuzz_shard [N_ROUNDS [SEED]]        default 3000 rounds, seed 1: bounded and repeatable
 *
 * Each round spoils one file (bits, bytes, numbers of the header, truncation, growth, repeated
 * parts). Half of the rounds then make the hashes of a shard right again, so that the checks behind
 * the hashes meet the spoilt values as well.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"
#include "test/record/fixture.h"
#include "record/identity.h"
#include "record/shard_file.h"
#include "base/log.h"
#include "base/memory.h"

static uint64_t rng_state;

static uint64_t rnd(uint64_t below) {
    return test_random(&rng_state) % below;
}

static void mutate(char *data, size_t *n, size_t cap) {
    static const int64_t special[] = {0,         -1,        1,  INT32_MAX, INT32_MIN,
                                      INT64_MAX, INT64_MIN, 50, 1 << 20};
    for (uint64_t left = 1 + rnd(4); left && *n > 16; left--) {
        size_t at = rnd(2) ? rnd(*n) : rnd(TD_MIN(*n, (size_t)2600)); /* headers are small */
        switch (rnd(8)) {
        case 0:
        case 1:
            data[at] ^= (char)(1u << rnd(8));
            break;
        case 2:
            data[at] = (char)rnd(256);
            break;
        case 3: { /* a number, where it may be an offset or an id */
            int64_t v = special[rnd(TD_ARRAY_LEN(special))];
            size_t size = rnd(2) ? 8 : 4;
            at = at / size * size;
            if (at + size <= *n)
                memcpy(data + at, &v, size);
            break;
        }
        case 4: { /* a digit of the header */
            for (size_t i = 0; i < 200 && at + i < *n; i++)
                if (data[at + i] >= '0' && data[at + i] <= '9') {
                    data[at + i] = (char)('0' + rnd(10));
                    break;
                }
            break;
        }
        case 5:
            *n = rnd(4) ? *n - rnd(TD_MIN(*n - 1, (size_t)64)) : rnd(*n);
            break;
        case 6: {
            size_t more = TD_MIN((size_t)rnd(64), cap - *n);
            memset(data + *n, (int)rnd(256), more);
            *n += more;
            break;
        }
        default: {
            size_t from = rnd(*n), len = TD_MIN((size_t)rnd(64), *n - TD_MAX(from, at));
            memmove(data + at, data + from, len);
            break;
        }
        }
    }
}

/* Rounds on a run of one mode; returns how many spoilt folders were refused, -1 on a failure. */
static long fuzz_mode(const td_fixture_mode *m, long rounds, FILE *sink) {
    td_fixture f;
    td_error err = {0};
    td_manifest manifest = {0};
    td_shard_file *shard = NULL;
    td_layout layout;
    long n_refused = -1;
    td_fixture_init(&f);
    if (m)
        td_fixture_set_mode(&f, m);
    f.cfg.capture.n_temperatures = 1;
    f.cfg.capture.temperatures[0] = 2;
    f.cfg.data.id_field = td_strdup("id");
    if (td_fixture_run(&f, 2, NULL, &err) != TD_OK ||
        td_manifest_load(f.cfg.output.dir, TD_E_VERIFY, &manifest, &err) != TD_OK) {
        fprintf(stderr, "cannot make a run: %s\n", err.text);
        goto done;
    }
    char *first = td_shard_path(f.cfg.output.dir, 1);
    if (td_shard_file_open(first, &manifest.spec, TD_E_VERIFY, NULL, &shard, &err) != TD_OK) {
        fprintf(stderr, "%s\n", err.text);
        free(first);
        goto done;
    }
    free(first);
    layout = shard->layout;
    td_shard_file_close(shard);
    const char *files[] = {f.cfg.output.zstd ? "shard-000001.safetensors.zst"
                                             : "shard-000001.safetensors",
                           "manifest.json", "shards.jsonl"};
    n_refused = 0;
    for (long i = 0; i < rounds; i++) {
        const char *name = files[rnd(4) ? 0 : 1 + rnd(2)];
        size_t n = 0;
        char *good = test_read_file(f.cfg.output.dir, name, &n), *bad = malloc(n + 512);
        size_t good_n = n;
        MUST(good && bad);
        memcpy(bad, good, n);
        mutate(bad, &n, good_n + 512);
        if (name == files[0] && !f.cfg.output.zstd && rnd(2))
            (void)td_fixture_seal(bad, n, &layout);
        bool changed = n != good_n || memcmp(bad, good, n) != 0;
        test_write_file(f.cfg.output.dir, name, bad, n);
        td_inspect_options opt = {
            .sample = (int64_t)rnd(10) - 1, .n_positions = 100, .n_candidates = 9};
        td_inspect(f.cfg.output.dir, &opt, sink, &err);
        td_status v =
            td_verify(f.cfg.output.dir, &(td_verify_options){.partial = true}, sink, &err);
        /* The index still holds the hash of the good file, so a change is always found. */
        bool wrong = (v == TD_OK) == changed || (changed && v != TD_E_VERIFY);
        if (wrong)
            fprintf(stderr, "%s, round %ld, %s: changed %d, but verify says %s: %s\n",
                    m ? m->name : "topk", i, name, changed, td_status_name(v), err.text);
        n_refused += v == TD_E_VERIFY;
        test_write_file(f.cfg.output.dir, name, good, good_n);
        free(bad);
        free(good);
        if (wrong) {
            n_refused = -1;
            break;
        }
    }
done:
    td_manifest_free(&manifest);
    td_fixture_free(&f);
    return n_refused;
}

int main(int argc, char **argv) {
    /* topk, topp packed and q8, both kinds of sets, both compressed, logits */
    static const int modes[] = {-1, 3, 6, 7, 8};
    long rounds = argc > 1 ? atol(argv[1]) : 3000, n_refused = 0;
    rng_state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    td_log_set_level(TD_LOG_ERROR);
    FILE *sink = fopen("/dev/null", "w");
    if (!sink)
        return 1;
    for (size_t i = 0; i < TD_ARRAY_LEN(modes); i++) {
        long n = fuzz_mode(modes[i] < 0 ? NULL : &td_fixture_modes[modes[i]],
                           rounds / (long)TD_ARRAY_LEN(modes), sink);
        if (n < 0)
            return 1;
        n_refused += n;
    }
    fclose(sink);
    printf("fuzz_shard: %ld rounds, %ld spoilt folders refused, none accepted\n", rounds,
           n_refused);
    return n_refused > rounds / 2 ? 0 : 1;
}
