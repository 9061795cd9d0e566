/* fixture.h - a small run made by hand: config, shards of random tokens, and rows captured from
 * random logits by the definitions of device.h, so that every check of the record holds. */
#ifndef TDGEN_TEST_RECORD_FIXTURE_H
#define TDGEN_TEST_RECORD_FIXTURE_H

#include "record/reader.h"
#include "record/record.h"
#include "report/report.h"

typedef struct td_fixture {
    char dir[64]; /* a fresh folder; output.dir is DIR/out */
    td_config cfg;
    td_capture_teacher teacher;
    td_identity id;
    uint64_t weights_hash;
    int32_t skip; /* td_fixture_run skips this sample of each shard; -1 = none */
} td_fixture;

/* V = 50 words, K = 8, f16, 4 dataset rows a shard. Fields may be changed before use. */
void td_fixture_init(td_fixture *f);
void td_fixture_free(td_fixture *f); /* removes the folder */

/* What the run captures, from cfg and teacher; top_k is cut to the vocabulary. */
td_capture_spec td_fixture_spec(const td_fixture *f);

/* Opens and binds; the status of the first step that fails. */
td_status td_fixture_open(td_fixture *f, td_output **out, td_error *err);

/* Shard `number` of `n_rows` dataset rows, a pure function of its arguments and the config: row 1
 * has one token and so no rows, row 2 has masked tokens. */
td_shard *td_fixture_shard(const td_fixture *f, int64_t number, int32_t n_rows);
void td_fixture_shard_free(td_shard *s);

/* All rows of a sample. Freed with td_fixture_captured_free. */
td_captured td_fixture_capture(const td_fixture *f, const td_shard *s, int32_t sample);
void td_fixture_captured_free(td_captured *c);

/* Open, put all samples but `skip` (-1: none), commit. */
td_status td_fixture_write(td_fixture *f, td_output *o, const td_shard *s, int32_t skip,
                           td_error *err);
/* A whole run: open, n_shards shards of cfg.output.shard_samples rows unless done, close.
 * *n_written (may be NULL) counts those that were not done before. */
td_status td_fixture_run(td_fixture *f, int64_t n_shards, int64_t *n_written, td_error *err);

/* Ways to capture and store, for tests that go through all of them. */
typedef struct td_fixture_mode {
    const char *name;
    td_capture_mode mode;
    td_dtype dense_dtype;
    bool pack, q8, zstd;
    double proposal_power;
} td_fixture_mode;
enum { TD_FIXTURE_MODES = 13 };
extern const td_fixture_mode td_fixture_modes[TD_FIXTURE_MODES];
/* Also two always_ids and one temperature. */
void td_fixture_set_mode(td_fixture *f, const td_fixture_mode *m);

/* The whole file, NULL when it is not there. */
char *td_fixture_read(const char *dir, const char *name, size_t *n);
void td_fixture_remove_tree(const char *dir);

#endif
