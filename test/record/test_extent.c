/* How much of a folder is there: against a count row by row. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/common.h"
#include "fixture.h"
#include "base/file.h"
#include "base/memory.h"
#include "record/extent.h"
#include "record/reader.h"
#include "report/report.h"

enum { MAX_ROWS = 40, MAX_SHARDS = 42 };

typedef struct count {
    int64_t rows_want, rows, shards_want, shards, first_missing;
} count;

/* What the comment of extent.h says, one row after the other. */
static count count_rows(const td_extent *x, const int64_t *row_end) {
    count c = {.first_missing = -1};
    for (int64_t k = 0; k * x->shard_samples < x->n_rows; k++) {
        int64_t whole = 0, there = 0;
        if (k % x->total_workers != x->worker_id)
            continue;
        for (int64_t r = k * x->shard_samples; r < (k + 1) * x->shard_samples; r++) {
            whole += r < x->n_rows;
            there += r < x->n_rows && r < row_end[k];
        }
        c.shards_want++;
        c.rows_want += whole;
        if (there == whole) {
            c.shards++;
            c.rows += whole;
        } else if (c.first_missing < 0) {
            c.first_missing = k;
        }
    }
    return c;
}

Test(extent, counts_are_those_row_by_row) {
    srand(7);
    int n_complete = 0;
    for (int round = 0; round < 20000; round++) {
        td_extent x = {.known = true,
                       .n_rows = rand() % (MAX_ROWS + 1),
                       .shard_samples = 1 + rand() % 9,
                       .total_workers = 1 + rand() % 4};
        x.worker_id = rand() % x.total_workers;
        int64_t row_end[MAX_SHARDS] = {0};
        td_index index = {0};
        const int missing = rand() % 3 ? 0 : rand() % 4;
        for (int64_t k = 0; k < MAX_SHARDS && k * x.shard_samples < MAX_ROWS; k++) {
            const int64_t begin = k * x.shard_samples;
            const bool beyond = begin >= x.n_rows;
            if (k % x.total_workers != x.worker_id &&
                rand() % 4) /* another worker's, mostly away */
                continue;
            if (rand() % 8 < missing || (beyond && rand() % 4))
                continue;
            /* As long as the data, shorter (an earlier max_samples), or longer (a larger one). */
            row_end[k] = rand() % 6 ? TD_MIN(begin + x.shard_samples, TD_MAX(x.n_rows, begin + 1))
                                    : begin + 1 + rand() % x.shard_samples;
            td_index_entry e = {.number = k, .row_begin = begin, .row_end = row_end[k]};
            cr_assert(td_index_set(&index, &e, NULL));
        }
        td_folder_state s;
        td_folder_state_of(&x, &index, &s);
        const count c = count_rows(&x, row_end);
        cr_assert_eq(s.n_rows_want, c.rows_want);
        cr_assert_eq(s.n_rows, c.rows);
        cr_assert_eq(s.n_shards_want, c.shards_want);
        cr_assert_eq(s.n_shards, c.shards);
        cr_assert_eq(s.first_missing, c.first_missing, "round %d: %lld, %lld", round,
                     (long long)s.first_missing, (long long)c.first_missing);
        cr_assert_eq(s.complete, c.first_missing < 0);
        n_complete += s.complete;
        td_index_free(&index);
    }
    cr_assert(n_complete > 2000 && n_complete < 18000, "%d", n_complete);
}

Test(extent, says_how_much_there_is) {
    char text[TD_FOLDER_STATE_TEXT_SIZE];
    td_folder_state s = {.known = true,
                         .n_rows = 3360,
                         .n_rows_want = 8000,
                         .n_shards = 3,
                         .n_shards_want = 8,
                         .first_missing = 3};
    cr_assert_str_eq(td_folder_state_text(&s, text, sizeof text),
                     "42% of 8,000 dataset rows (3 of 8 shards); shard 3 is missing");
    s.n_rows = 7999; /* 100% is for what is complete */
    cr_assert_str_eq(td_folder_state_text(&s, text, sizeof text),
                     "99.9% of 8,000 dataset rows (3 of 8 shards); shard 3 is missing");
    s.n_rows_want = s.n_shards_want = s.first_missing = -1;
    s.n_rows = 1234567;
    cr_assert_str_eq(td_folder_state_text(&s, text, sizeof text),
                     "1,234,567 dataset rows in 3 shards; the run did not come to the end of the "
                     "dataset");
}

static void damage(const td_fixture *f, const char *name) {
    char *path = td_asprintf("%s/%s", f->cfg.output.dir, name);
    cr_assert_eq(unlink(path), 0);
    free(path);
}

static td_status verify(const td_fixture *f, bool partial) {
    td_error err;
    FILE *sink = fopen("/dev/null", "w");
    td_status rc =
        td_verify(f->cfg.output.dir, &(td_verify_options){.partial = partial}, sink, &err);
    fclose(sink);
    return rc;
}

/* The two shards at the end are deleted and their lines with them: nothing else tells. */
Test(extent, a_folder_that_lost_its_last_shards_is_unfinished) {
    td_fixture f;
    td_error err;
    td_index x = {0};
    td_index_faults faults;
    td_fixture_init(&f);
    OK(td_fixture_run(&f, 4, NULL, &err));
    cr_assert_eq(verify(&f, false), TD_OK);
    damage(&f, "shard-000002.safetensors");
    damage(&f, "shard-000003.safetensors");
    OK(td_index_load(f.cfg.output.dir, &x, &faults, &err));
    td_index_remove(&x, 2);
    td_index_remove(&x, 3);
    OK(td_index_rewrite(f.cfg.output.dir, &x, &err));
    td_index_free(&x);
    cr_assert_eq(verify(&f, false), TD_E_UNFINISHED);
    cr_assert_eq(verify(&f, true), TD_OK);
    OK(td_fixture_run(&f, 4, NULL, &err));
    cr_assert_eq(verify(&f, false), TD_OK);
    td_fixture_free(&f);
}

/* More of the data, or another share: the end is to be seen again; the identity stays. */
Test(extent, follows_what_the_run_is_for) {
    td_fixture f;
    td_error err;
    td_output *o = NULL;
    td_manifest m;
    td_fixture_init(&f);
    f.cfg.data.max_samples = 8;
    OK(td_fixture_run(&f, 2, NULL, &err));
    OK(td_manifest_load(f.cfg.output.dir, TD_E_VERIFY, &m, &err));
    const uint64_t fingerprint = m.fingerprint;
    cr_assert_eq(m.extent.n_rows, 8);
    cr_assert_eq(m.extent.max_samples, 8);
    td_manifest_free(&m);
    f.cfg.data.max_samples = 0;
    OK(td_fixture_open(&f, &o, &err));
    OK(td_output_note_rows(o, 12, false, &err)); /* stopped before the end */
    td_output_close(o);
    OK(td_manifest_load(f.cfg.output.dir, TD_E_VERIFY, &m, &err));
    cr_assert_eq(m.extent.n_rows, -1);
    cr_assert_eq(m.extent.n_rows_at_least, 12);
    cr_assert_eq(m.fingerprint, fingerprint);
    td_manifest_free(&m);
    cr_assert_eq(verify(&f, false), TD_E_UNFINISHED);
    td_fixture_free(&f);
}
