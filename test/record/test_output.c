/* The output folder: lock, identity, resume, repair. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test/common.h"
#include "fixture.h"
#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"

static char *path_in(const td_fixture *f, const char *name) {
    return td_asprintf("%s/%s", f->cfg.output.dir, name);
}

Test(output, a_second_process_is_refused) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o, *p = NULL;
    OK(td_fixture_open(&f, &o, &err));
    cr_assert_eq(td_fixture_open(&f, &p, &err), TD_E_OUTPUT);
    char *pid = td_asprintf("process %ld", (long)getpid());
    cr_assert(strstr(err.text, pid) && strstr(err.text, f.cfg.output.dir), "%s", err.text);
    free(pid);
    td_output_close(o);
    OK(td_fixture_open(&f, &p, &err));
    td_output_close(p);
    td_fixture_free(&f);
}

/* --- identity --------------------------------------------------------------------------------- */

static void set_text(char **field, const char *s) {
    free(*field);
    *field = td_strdup(s);
}

static void change(td_fixture *f, int i) {
    switch (i) {
    case 0:
        f->id.config_hash++;
        break;
    case 1:
        f->weights_hash++;
        break;
    case 2:
        f->teacher.n_vocab++;
        break;
    case 3:
        f->id.compute = TD_BF16;
        break;
    case 4:
        f->id.tokenizer_hash++;
        break;
    case 5:
        f->id.tokenizer_n_vocab++;
        break;
    case 6:
        f->id.dataset_size_bytes++;
        break;
    case 7:
        f->id.dataset_hash++;
        break;
    case 8:
        f->id.format = TD_FORMAT_TEXT;
        break;
    case 9:
        set_text(&f->cfg.data.text_field, "body");
        break;
    case 10:
        f->id.append_eos = true;
        break;
    case 11:
        f->cfg.data.add_special_tokens = false;
        break;
    case 12:
        f->cfg.data.max_length++;
        break;
    case 13:
        f->cfg.data.overflow = TD_OVERFLOW_SPLIT;
        break;
    case 14:
        f->cfg.capture.top_k++;
        break;
    case 15:
        f->cfg.capture.logprob_dtype = TD_F32;
        break;
    case 16:
        f->cfg.capture.temperatures[f->cfg.capture.n_temperatures++] = 0.7;
        break;
    case 17:
        f->cfg.output.shard_samples++;
        break;
    case 18:
        f->cfg.capture.mode = TD_CAPTURE_SAMPLE;
        break;
    case 19:
        set_text(&f->cfg.data.id_field, "id");
        break;
    case 20:
        set_text(&f->cfg.data.ids_field, "ids");
        break;
    case 21:
        set_text(&f->cfg.data.prompt_field, "p");
        set_text(&f->cfg.data.completion_field, "c");
        break;
    case 22:
        f->cfg.capture.mask_padded_vocab = true;
        break;
    default:
        f->id.has_tokenizer = false;
        break;
    }
}

Test(output, every_identity_key_is_compared_and_both_sides_shown) {
    static const char *const key[] = {"model.config_hash",
                                      "model.weights_hash",
                                      "model.n_vocab",
                                      "model.compute",
                                      "tokenizer.hash",
                                      "tokenizer.n_vocab",
                                      "data.size_bytes",
                                      "data.hash",
                                      "data.format",
                                      "data.text_field",
                                      "data.append_eos",
                                      "data.add_special_tokens",
                                      "data.max_length",
                                      "data.overflow",
                                      "capture.top_k",
                                      "capture.logprob_dtype",
                                      "capture.temperatures",
                                      "output.shard_samples",
                                      "capture.mode",
                                      "data.id_field",
                                      "data.ids_field",
                                      "data.prompt_field",
                                      "capture.mask_padded_vocab",
                                      "tokenizer.hash"};
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    OK(td_fixture_run(&f, 1, NULL, &err));
    for (int i = 0; i < (int)TD_ARRAY_LEN(key); i++) {
        td_fixture g;
        td_fixture_init(&g);
        set_text(&g.cfg.output.dir, f.cfg.output.dir);
        change(&g, i);
        td_output *o = NULL;
        err.text[0] = '\0';
        cr_assert_eq(td_fixture_open(&g, &o, &err), TD_E_OUTPUT, "%s was not noticed", key[i]);
        cr_assert(strstr(err.text, key[i]), "%s: %s", key[i], err.text);
        cr_assert(strstr(err.text, "in the folder") && strstr(err.text, "in this run") &&
                      strstr(err.text, "output.dir"),
                  "%s", err.text);
        td_fixture_free(&g);
    }
    td_output *o;
    OK(td_fixture_open(&f, &o, &err));
    td_output_close(o);
    td_fixture_free(&f);
}

Test(output, the_appended_token_counts_only_where_it_is_appended) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o;
    f.id.eos_id = 2;
    OK(td_fixture_open(&f, &o, &err));
    td_output_close(o);
    f.id.eos_id = 3;
    OK(td_fixture_open(&f, &o, &err));
    td_output_close(o);
    set_text(&f.cfg.output.dir, f.dir);
    f.id.append_eos = true;
    OK(td_fixture_open(&f, &o, &err));
    td_output_close(o);
    f.id.eos_id = 2;
    cr_assert_eq(td_fixture_open(&f, &o, &err), TD_E_OUTPUT);
    cr_assert(strstr(err.text, "data.eos_id is 3 in the folder and 2 in this run"), "%s", err.text);
    td_fixture_free(&f);
}

Test(output, both_values_stand_in_the_message) {
    td_fixture f;
    td_fixture_init(&f);
    f.cfg.capture.n_temperatures = 1;
    f.cfg.capture.temperatures[0] = 0.7;
    td_error err;
    OK(td_fixture_run(&f, 1, NULL, &err));
    f.cfg.capture.top_k = 9;
    f.cfg.capture.temperatures[0] = 1.5;
    td_output *o;
    cr_assert_eq(td_fixture_open(&f, &o, &err), TD_E_OUTPUT);
    cr_assert(strstr(err.text, "capture.top_k is 8 in the folder and 9 in this run"), "%s",
              err.text);
    cr_assert(strstr(err.text, "capture.temperatures is [0.7] in the folder and [1.5] in this run"),
              "%s", err.text);
    td_fixture_free(&f);
}

Test(output, what_is_free_to_change_is_free) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    int64_t n = -1;
    OK(td_fixture_run(&f, 2, NULL, &err));
    f.cfg.run.batch_tokens = 77;
    f.cfg.run.total_workers = 3;
    f.cfg.run.worker_id = 1;
    f.cfg.run.on_bad_sample = TD_BAD_SKIP;
    f.cfg.data.max_samples = 1000;
    f.cfg.devices.gpus_per_model = 2;
    OK(td_fixture_run(&f, 2, &n, &err));
    cr_assert_eq(n, 0);
    td_fixture_free(&f);
}

/* --- resume ----------------------------------------------------------------------------------- */

Test(output, finished_shards_are_left_untouched) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    int64_t n;
    OK(td_fixture_run(&f, 2, &n, &err));
    cr_assert_eq(n, 2);
    char *p = path_in(&f, "shard-000001.safetensors");
    struct stat before, after;
    cr_assert_eq(stat(p, &before), 0);
    OK(td_fixture_run(&f, 3, &n, &err));
    cr_assert_eq(n, 1);
    cr_assert_eq(stat(p, &after), 0);
    cr_assert(before.st_ino == after.st_ino && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec &&
              before.st_ctim.tv_nsec == after.st_ctim.tv_nsec);
    VERIFY_OK(&f, "afterwards");
    free(p);
    td_fixture_free(&f);
}

Test(output, a_cut_short_shard_is_computed_again_when_max_samples_grows) {
    td_fixture f, whole;
    td_fixture_init(&f);
    td_fixture_init(&whole);
    td_error err;
    td_output *o;
    bool done = true;
    OK(td_fixture_open(&f, &o, &err));
    td_shard *cut = td_fixture_shard(&f, 0, 3);
    OK(td_fixture_write(&f, o, cut, -1, &err));
    OK(td_output_shard_done(o, 0, 0, 4, 1, &done, NULL, &err));
    cr_assert_not(done);
    OK(td_output_shard_done(o, 0, 0, 3, cut->source_hash, &done, NULL, &err));
    cr_assert(done);
    /* a smaller max_samples than before leaves the longer shard alone */
    done = false;
    OK(td_output_shard_done(o, 0, 0, 2, 1, &done, NULL, &err));
    cr_assert(done);
    td_output_close(o);
    int64_t n;
    OK(td_fixture_run(&f, 2, &n, &err));
    cr_assert_eq(n, 2);
    VERIFY_OK(&f, "afterwards");
    OK(td_fixture_run(&whole, 2, &n, &err));
    cr_assert(test_same_file(f.cfg.output.dir, whole.cfg.output.dir, "shards.jsonl"),
              "the grown folder differs from the whole run");
    td_fixture_shard_free(cut);
    td_fixture_free(&f);
    td_fixture_free(&whole);
}

Test(output, changed_rows_are_an_error) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o;
    bool done = false;
    OK(td_fixture_run(&f, 1, NULL, &err));
    OK(td_fixture_open(&f, &o, &err));
    cr_assert_eq(td_output_shard_done(o, 0, 0, 4, 12345, &done, NULL, &err), TD_E_OUTPUT);
    cr_assert(strstr(err.text, "the dataset changed"), "%s", err.text);
    cr_assert_not(done);
    cr_assert(td_output_has_shard(o, 0));
    cr_assert_not(td_output_has_shard(o, 1));
    td_shard_totals t;
    td_shard *s = td_fixture_shard(&f, 0, 4);
    OK(td_output_shard_done(o, 0, 0, 4, s->source_hash, &done, &t, &err));
    cr_assert(done && t.n_tokens == s->n_tokens && t.n_rows == s->n_rows && t.n_samples == 4);
    td_fixture_shard_free(s);
    td_output_close(o);
    td_fixture_free(&f);
}

static void flip(const char *path, long at) {
    int fd = open(path, O_RDWR);
    unsigned char c;
    cr_assert(fd >= 0 && pread(fd, &c, 1, at) == 1);
    c ^= 4;
    cr_assert_eq(pwrite(fd, &c, 1, at), 1);
    close(fd);
}

Test(output, a_damaged_shard_is_computed_again) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    OK(td_fixture_run(&f, 3, NULL, &err));
    size_t n_before = 0;
    char *before = test_read_file(f.cfg.output.dir, "shard-000001.safetensors", &n_before);
    char *p = path_in(&f, "shard-000001.safetensors");
    const long at[] = {0, 20, 300, 2600, (long)n_before - 1};
    for (size_t i = 0; i < TD_ARRAY_LEN(at); i++) {
        int64_t n;
        flip(p, at[i]);
        OK(td_fixture_run(&f, 3, &n, &err));
        cr_assert_eq(n, 1, "byte %ld", at[i]);
        size_t n_after = 0;
        char *after = test_read_file(f.cfg.output.dir, "shard-000001.safetensors", &n_after);
        cr_assert(n_before == n_after && memcmp(before, after, n_before) == 0);
        free(after);
        VERIFY_OK(&f, "afterwards");
    }
    cr_assert_eq(truncate(p, 100), 0);
    int64_t n;
    OK(td_fixture_run(&f, 3, &n, &err));
    cr_assert_eq(n, 1);
    free(before);
    free(p);
    td_fixture_free(&f);
}

/* --- repair of the index ---------------------------------------------------------------------- */

typedef void (*harm)(const char *index);

static void remove_it(const char *index) {
    unlink(index);
}
static void tear_it(const char *index) {
    struct stat st;
    cr_assert_eq(stat(index, &st), 0);
    cr_assert_eq(truncate(index, st.st_size - 20), 0);
}
static void empty_it(const char *index) {
    cr_assert_eq(truncate(index, 0), 0);
}
static void damage_it(const char *index) {
    flip(index, 60);
}
static void double_it(const char *index) {
    char *data;
    size_t n;
    td_error err;
    OK(td_file_read(index, 1 << 20, TD_E_OUTPUT, &data, &n, &err));
    FILE *out = fopen(index, "a");
    cr_assert_eq(fwrite(data, 1, n, out), n);
    fclose(out);
    free(data);
}
/* An older line of a shard that was replaced: a crash between rename and index. */
static void stale_line(const char *index) {
    char *data;
    size_t n;
    td_error err;
    OK(td_file_read(index, 1 << 20, TD_E_OUTPUT, &data, &n, &err));
    char *h = strstr(data, "\"file_hash\": \"");
    memcpy(h + 14, "0123456789abcdef", 16);
    FILE *out = fopen(index, "w");
    cr_assert_eq(fwrite(data, 1, n, out), n);
    fclose(out);
    free(data);
}

Test(output, the_index_is_repaired_from_the_shards) {
    static const harm harms[] = {remove_it, tear_it, empty_it, damage_it, double_it, stale_line};
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    OK(td_fixture_run(&f, 3, NULL, &err));
    size_t n_before = 0;
    char *before = test_read_file(f.cfg.output.dir, "shards.jsonl", &n_before);
    char *p = path_in(&f, "shards.jsonl");
    for (size_t i = 0; i < TD_ARRAY_LEN(harms); i++) {
        int64_t n = -1;
        harms[i](p);
        char *text;
        cr_assert_eq(td_fixture_verify(f.cfg.output.dir, &text), TD_E_VERIFY, "harm %zu", i);
        free(text);
        OK(td_fixture_run(&f, 3, &n, &err));
        cr_assert_eq(n, 0, "harm %zu made %lld shards be computed again", i, (long long)n);
        size_t n_after = 0;
        char *after = test_read_file(f.cfg.output.dir, "shards.jsonl", &n_after);
        cr_assert(n_before == n_after && memcmp(before, after, n_after) == 0, "harm %zu", i);
        free(after);
    }
    free(before);
    free(p);
    td_fixture_free(&f);
}

Test(output, a_lost_shard_is_computed_again) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    int64_t n;
    OK(td_fixture_run(&f, 3, NULL, &err));
    char *p = path_in(&f, "shard-000000.safetensors");
    unlink(p);
    OK(td_fixture_run(&f, 3, &n, &err));
    cr_assert_eq(n, 1);
    VERIFY_OK(&f, "afterwards");
    free(p);
    td_fixture_free(&f);
}

Test(output, a_shard_of_another_run_is_not_taken) {
    td_fixture f, g;
    td_fixture_init(&f);
    td_fixture_init(&g);
    g.id.compute = TD_BF16;
    td_error err;
    int64_t n;
    OK(td_fixture_run(&f, 1, NULL, &err));
    OK(td_fixture_run(&g, 2, NULL, &err));
    char *from = path_in(&g, "shard-000001.safetensors"),
         *to = path_in(&f, "shard-000001.safetensors");
    cr_assert_eq(rename(from, to), 0);
    OK(td_fixture_run(&f, 2, &n, &err));
    cr_assert_eq(n, 1);
    VERIFY_OK(&f, "afterwards");
    free(from);
    free(to);
    td_fixture_free(&f);
    td_fixture_free(&g);
}

Test(output, stale_temp_files_go_and_files_of_the_user_stay) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    OK(td_mkdir_p(f.cfg.output.dir, &err));
    static const char *const names[] = {"shard-000003.safetensors.tmp",
                                        "shard-000003.safetensors.tmp-0123456789abcdef",
                                        "manifest.json.tmp",
                                        "shards.jsonl.tmp",
                                        "notes.tmp",
                                        "shard-list.txt"};
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++)
        test_write_file(f.cfg.output.dir, names[i], "x", 1);
    td_output *o;
    OK(td_fixture_open(&f, &o, &err));
    td_output_close(o);
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++) {
        char *p = path_in(&f, names[i]);
        cr_assert_eq(td_path_exists(p), i >= 4, "%s", names[i]);
        free(p);
    }
    td_fixture_free(&f);
}

Test(output, shards_without_a_manifest_and_a_damaged_manifest_are_refused) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o;
    OK(td_fixture_run(&f, 1, NULL, &err));
    char *p = path_in(&f, "manifest.json"), *away = path_in(&f, "manifest.away");
    cr_assert_eq(rename(p, away), 0);
    cr_assert_eq(td_fixture_open(&f, &o, &err), TD_E_OUTPUT);
    cr_assert(strstr(err.text, "no manifest.json"), "%s", err.text);
    cr_assert_eq(rename(away, p), 0);
    flip(p, 40);
    cr_assert_eq(td_fixture_open(&f, &o, &err), TD_E_OUTPUT);
    cr_assert(strstr(err.text, "manifest.json"), "%s", err.text);
    flip(p, 40);
    OK(td_fixture_open(&f, &o, &err));
    td_output_close(o);
    free(p);
    free(away);
    td_fixture_free(&f);
}

Test(output, a_folder_that_cannot_be_made_is_an_error) {
    td_fixture f;
    td_fixture_init(&f);
    td_error err;
    td_output *o;
    FILE *out = fopen(f.cfg.output.dir, "w"); /* a file in its place */
    fclose(out);
    cr_assert_eq(td_fixture_open(&f, &o, &err), TD_E_OUTPUT);
    cr_assert(strstr(err.text, f.cfg.output.dir), "%s", err.text);
    td_fixture_free(&f);
}

Test(output, sizes_for_the_plan) {
    td_capture_spec spec = {.top_k = 64,
                            .logprob_dtype = TD_F16,
                            .n_temperatures = 2,
                            .n_vocab = 1000,
                            .n_valid = 1000};
    /* position 4, ids 256, logprobs 128, lse 4, lse_t 8, tail 4, target 4 + 4, entropy 4 */
    cr_assert_eq(td_record_bytes_per_row(&spec), 416);
    spec.logprob_dtype = TD_F32;
    cr_assert_eq(td_record_bytes_per_row(&spec), 544);
    cr_assert_eq(td_record_bytes_per_token(), 5);
}
