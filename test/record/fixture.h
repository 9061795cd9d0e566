/* fixture.h - a small run made by hand: config, shards of random tokens, and rows captured from
 * random logits by the definitions of device.h, so that every check of the record holds. */
#ifndef TDGEN_TEST_RECORD_FIXTURE_H
#define TDGEN_TEST_RECORD_FIXTURE_H

#include "record/reader.h"
#include "record/layout.h"
#include "record/record.h"
#include "report/report.h"

typedef struct td_fixture {
    const char *dir; /* a fresh folder; output.dir is DIR/out */
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
/* Aborts when there is none. */
const td_fixture_mode *td_fixture_mode_named(const char *name);
/* Also two always_ids and one temperature. */
void td_fixture_set_mode(td_fixture *f, const td_fixture_mode *m);

/* What verify, or a form of inspect, prints of a folder, with its error as the last line; freed by
 * the caller. */
td_status td_fixture_verify(const char *dir, char **text);
typedef td_status (*td_fixture_form)(const char *dir, const td_inspect_options *opt, FILE *out,
                                     td_error *err);
td_status td_fixture_inspect(td_fixture_form form, const char *dir, const td_inspect_options *opt,
                             char **text);
/* In a Criterion suite: verify passes the fixture's output. `what` says when, in the message. */
#define VERIFY_OK(f, what)                                                                         \
    do {                                                                                           \
        char *text_;                                                                               \
        td_status rc_ = td_fixture_verify((f)->cfg.output.dir, &text_);                            \
        cr_assert_eq(rc_, TD_OK, "%s: %s", (what), text_);                                         \
        free(text_);                                                                               \
    } while (0)

/* Writes a hash behind `key` (and `skip` bytes) in a shard's header of n bytes; false when there is
 * no room. */
bool td_fixture_put_hash(char *header, size_t n, const char *key, size_t skip, uint64_t hash);
/* Makes all hashes within a shard of n bytes those of its content, whatever was done to it: what
 * does not fit is left, and false returned. */
bool td_fixture_seal(char *shard, size_t n, const td_layout *l);

#endif
