/* tdgen merge: the bytes of one worker, or a refusal that shows both sides; death at every system
 * call that writes leaves the sources as they were and a folder that the same merge completes. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test/common.h"
#include "test/record/faults.h"
#include "test/record/fixture.h"
#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"
#include "record/reader.h"

enum { SHARDS = 5, WORKERS = 2 };

WRAP(int, linkat, (int a, const char *from, int b, const char *to, int flags),
     (a, from, b, to, flags), -1)

static char *path_in(const td_fixture *f, const char *name) {
    return td_asprintf("%s/%s", f->dir, name);
}

/* The shards of one worker (all of them with total = 1) into DIR/name. */
static void work(td_fixture *f, const char *name, int64_t worker, int64_t total, int64_t n_shards) {
    td_error err = {0};
    td_output *o = NULL;
    free(f->cfg.output.dir);
    f->cfg.output.dir = path_in(f, name);
    f->cfg.run.worker_id = (int32_t)worker;
    f->cfg.run.total_workers = (int32_t)total;
    OK(td_fixture_open(f, &o, &err));
    for (int64_t k = worker; k < n_shards; k += total) {
        td_shard *s = td_fixture_shard(f, k, (int32_t)f->cfg.output.shard_samples);
        OK(td_fixture_write(f, o, s, f->skip, &err));
        td_fixture_shard_free(s);
    }
    OK(td_output_note_rows(o, n_shards * f->cfg.output.shard_samples, true, &err));
    td_output_close(o);
}

static void write_text(const td_fixture *f, const char *name, const char *text) {
    test_write_file(f->dir, name, text, strlen(text));
}

/* Rewrites the folder's manifest. */
static void set_extent(const td_fixture *f, const char *name, const td_extent *x) {
    td_manifest m;
    td_error err;
    char *dir = path_in(f, name), *text = NULL;
    OK(td_manifest_load(dir, TD_E_OUTPUT, &m, &err));
    OK(td_manifest_text_extended(m.root, x, &text, &err));
    test_write_file(dir, TD_MANIFEST_NAME, text, strlen(text));
    td_manifest_free(&m);
    free(text);
    free(dir);
}

static bool g_assume_complete = true; /* these folders have no status.json */

static td_status merge_all(const td_fixture *f, const char *out, const char *const *names,
                           int32_t n, bool copy, char **text, td_error *err) {
    const char *dirs[8];
    size_t size;
    char *to = path_in(f, out);
    for (int32_t i = 0; i < n; i++)
        dirs[i] = path_in(f, names[i]);
    FILE *log = open_memstream(text, &size);
    *err = (td_error){0};
    td_status rc =
        td_merge(to, dirs, n,
                 &(td_merge_options){.copy = copy, .assume_complete = g_assume_complete}, log, err);
    fclose(log);
    for (int32_t i = 0; i < n; i++)
        free((char *)dirs[i]);
    free(to);
    return rc;
}

static td_status merge_two(const td_fixture *f, const char *out, const char *a, const char *b,
                           td_error *err) {
    char *text = NULL;
    td_status rc = merge_all(f, out, (const char *[]){a, b}, 2, false, &text, err);
    free(text);
    return rc;
}

/* Every file of `a` but the lock, with the same bytes in `b`, and the other way round. */
static void expect_same(const td_fixture *f, const char *a, const char *b) {
    for (int turn = 0; turn < 2; turn++) {
        char *from = path_in(f, turn ? b : a), *to = path_in(f, turn ? a : b);
        DIR *d = opendir(from);
        cr_assert(d, "%s is not there", from);
        for (struct dirent *e; (e = readdir(d));) {
            if (e->d_name[0] == '.' || strcmp(e->d_name, "status.json") == 0)
                continue;
            cr_assert(test_same_file(from, to, e->d_name), "%s differs between %s and %s",
                      e->d_name, from, to);
        }
        closedir(d);
        free(from);
        free(to);
    }
}

static bool passes_verify(const td_fixture *f, const char *name, td_error *err) {
    char *path = path_in(f, name), *text = NULL;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    td_status rc = td_verify(path, &(td_verify_options){0}, out, err);
    fclose(out);
    free(text);
    free(path);
    return rc == TD_OK;
}

static void setup(td_fixture *f) {
    td_log_set_level(TD_LOG_ERROR);
    td_fixture_init(f);
    f->cfg.data.max_length = 16;
    work(f, "one", 0, 1, SHARDS);
    for (int w = 0; w < WORKERS; w++)
        work(f, w ? "w1" : "w0", w, WORKERS, SHARDS);
}

Test(merge, gives_the_bytes_of_one_worker) {
    td_fixture f;
    td_error err = {0};
    char *text = NULL;
    setup(&f);
    for (int copy = 0; copy < 2; copy++) {
        const char *out = copy ? "copied" : "linked";
        OK(merge_all(&f, out, (const char *[]){"w1", "w0"}, 2, copy, &text, &err));
        cr_assert(strstr(text, copy ? "0 linked, 5 copied" : "5 linked, 0 copied"), "%s", text);
        free(text);
        expect_same(&f, out, "one");
        cr_assert(passes_verify(&f, out, &err), "%s", err.text);
        /* again: nothing to do; and the merged folder is a folder that a run goes on with */
        OK(merge_two(&f, out, "w0", "w1", &err));
        free(f.cfg.output.dir);
        f.cfg.output.dir = path_in(&f, out);
        int64_t n_written = -1;
        OK(td_fixture_run(&f, SHARDS + 1, &n_written, &err));
        cr_assert_eq(n_written, 1);
    }
    td_fixture_free(&f);
}

/* A merge of "w0" and a folder "x" made with one thing changed fails and names both sides. */
static void expect_other(td_fixture *f, const char *key, const char *a, const char *b) {
    td_error err;
    work(f, "x", 1, WORKERS, SHARDS);
    cr_assert_eq(merge_two(f, "out", "w0", "x", &err), TD_E_OUTPUT, "%s was not noticed", key);
    cr_assert(strstr(err.text, key) && strstr(err.text, a) && strstr(err.text, b) &&
                  strstr(err.text, "/w0") && strstr(err.text, "/x"),
              "%s", err.text);
    char *x = path_in(f, "x"), *out = path_in(f, "out");
    cr_assert(!td_path_exists(out), "something was written");
    test_remove_tree(x);
    free(out);
    free(x);
}

Test(merge, another_run_is_refused_with_both_sides) {
    td_fixture f;
    setup(&f);
    f.id.tokenizer_hash = 78;
    expect_other(&f, "tokenizer.json", "000000000000004d", "000000000000004e");
    f.id.tokenizer_hash = 77;
    f.weights_hash = 0x12;
    expect_other(&f, "the teacher's weights", "0000000000abcdef", "0000000000000012");
    f.weights_hash = 0xabcdef;
    f.id.config_hash = 0x4321;
    expect_other(&f, "the teacher's config.json", "0000000000001234", "0000000000004321");
    f.id.config_hash = 0x1234;
    f.id.dataset_hash = 100;
    expect_other(&f, "the dataset's content", "0000000000000063", "0000000000000064");
    f.id.dataset_hash = 99;
    f.cfg.capture.top_k = 4;
    expect_other(&f, "capture.top_k", "is 8 in", "and 4 in");
    f.cfg.capture.top_k = 8;
    td_fixture_free(&f);
}

static void expect_refused(const td_fixture *f, td_status code, const char *out, const char *a,
                           const char *b, const char *says) {
    td_error err;
    cr_assert_eq(merge_two(f, out, a, b, &err), code, "%s + %s: %s", a, b, err.text);
    cr_assert(strstr(err.text, says), "no \"%s\" in: %s", says, err.text);
}

Test(merge, gaps_overlaps_and_unfinished_folders_are_refused) {
    td_fixture f;
    setup(&f);
    work(&f, "short", 1, WORKERS, SHARDS - 2); /* shard 3 is missing, 4 is there */
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "short", "5 shards in");
    set_extent(&f, "short",
               &(td_extent){.known = true, .n_rows = -1, .shard_samples = 4, .total_workers = 1});
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "short", "did not come to the end of the dataset");
    set_extent(&f, "short", &(td_extent){0});
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "short", "shard 3 is in none of the folders");
    work(&f, "late", 3, 4, SHARDS);
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "late", "shard 1 is in none");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "one", "shard 0 is both in");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "one", "byte for byte the same");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "w0", "are the same folder");
    expect_refused(&f, TD_E_OUTPUT, "w0", "w0", "w1", "both the result and one of the folders");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "nothing", "cannot read the folder");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "..", "no output folder of tdgen");
    g_assume_complete = false;
    set_extent(&f, "w0", &(td_extent){0}); /* older folders: status.json says it, or nothing does */
    set_extent(&f, "w1", &(td_extent){0});
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "w1", "--assume-complete");
    write_text(&f, "w1/status.json", "{\"state\": ");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "w1", "status.json: not valid JSON");
    write_text(&f, "w1/status.json", "{\"state\": \"stopped\", \"shards_in_data\": 5}");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "w1", "is not finished");
    write_text(&f, "w1/status.json", "{\"state\": \"done\", \"shards_in_data\": 6}");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "w1",
                   "has 6 shards, the folders hold the first 5");
    write_text(&f, "w0/status.json", "{\"state\": \"done\", \"shards_in_data\": 5}");
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "w1", "5 shards in");
    write_text(&f, "w1/status.json", "{\"state\": \"done\", \"shards_in_data\": 5}");
    /* A folder of another run, and one whose shards belong to nobody, stay as they are. */
    f.cfg.capture.top_k = 4;
    work(&f, "other", 0, 1, 1);
    f.cfg.capture.top_k = 8;
    expect_refused(&f, TD_E_OUTPUT, "other", "w0", "w1", "already holds another run");
    expect_refused(&f, TD_E_OUTPUT, "short", "w0", "w1", "not those of this merge");
    char *orphan = path_in(&f, "orphan");
    td_error err;
    cr_assert_eq(td_mkdir_p(orphan, &err), TD_OK);
    free(orphan);
    write_text(&f, "orphan/shard-000000.safetensors", "x");
    expect_refused(&f, TD_E_OUTPUT, "orphan", "w0", "w1", "whose it is cannot be told");
    OK(merge_two(&f, "out", "w0", "w1", &err));
    td_fixture_free(&f);
}

Test(merge, a_shard_that_max_samples_cut_short_is_a_gap_of_rows) {
    td_fixture f;
    td_error err = {0};
    td_output *o = NULL;
    setup(&f);
    free(f.cfg.output.dir);
    f.cfg.output.dir = path_in(&f, "cut");
    OK(td_fixture_open(&f, &o, &err));
    for (int64_t k = 1; k < SHARDS; k += WORKERS) {
        td_shard *s = td_fixture_shard(&f, k, k == 3 ? 3 : 4);
        OK(td_fixture_write(&f, o, s, -1, &err));
        td_fixture_shard_free(s);
    }
    OK(td_output_note_rows(o, SHARDS * f.cfg.output.shard_samples, true, &err));
    td_output_close(o);
    expect_refused(&f, TD_E_OUTPUT, "out", "w0", "cut", "begins at dataset row 16");
    td_fixture_free(&f);
}

Test(merge, a_damaged_folder_is_refused) {
    static const char *const files[] = {"shard-000003.safetensors", "manifest.json",
                                        "shards.jsonl"};
    td_fixture f;
    td_error err;
    setup(&f);
    for (size_t i = 0; i < TD_ARRAY_LEN(files); i++) {
        char *dir = path_in(&f, "w1"), *path = td_asprintf("%s/%s", dir, files[i]);
        size_t n = 0;
        char *data = test_read_file(dir, files[i], &n);
        int fd = open(path, O_RDWR);
        char c = (char)(data[n / 2] ^ 4);
        cr_assert(fd >= 0 && __real_pwrite(fd, &c, 1, (off_t)(n / 2)) == 1);
        cr_assert_eq(merge_two(&f, "out", "w0", "w1", &err), TD_E_VERIFY, "%s: %s", files[i],
                     err.text);
        cr_assert(strstr(err.text, "/w1"), "%s", err.text);
        cr_assert_eq(__real_pwrite(fd, &data[n / 2], 1, (off_t)(n / 2)), 1);
        close(fd);
        free(data);
        free(path);
        free(dir);
    }
    OK(merge_two(&f, "out", "w0", "w1", &err));
    td_fixture_free(&f);
}

/* Done, although a call failed: the process number in the lock only serves a message. */
enum { TOLERATED = 98 };

static int fork_merge(const td_fixture *f, bool copy, long call, bool fail) {
    pid_t pid = fork();
    if (pid == 0) {
        char *text;
        td_error err;
        countdown = call; /* 0: none */
        fault = call == 0 ? FAULT_NONE : fail ? FAULT_ENOSPC : FAULT_DIE;
        td_status rc =
            merge_all(f, "out", (const char *[]){"w0", "w1"}, WORKERS, copy, &text, &err);
        _exit(rc != TD_OK ? 1 : fault != FAULT_NONE && countdown <= 0 ? TOLERATED : 0);
    }
    int status = 0;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void break_every_call(bool copy, bool fail) {
    td_fixture f;
    td_error err;
    setup(&f);
    long call = 1, n_half = 0;
    for (;; call++) {
        char *out = path_in(&f, "out"), *mark = path_in(&f, "out/merge.json");
        int code = fork_merge(&f, copy, call, fail);
        cr_assert(code == 0 || code == (fail ? 1 : DIED) || (fail && code == TOLERATED),
                  "call %ld: exit %d", call, code);
        if (td_path_exists(mark)) {
            /* Half a merge is taken for nothing else, and is no source of another one. */
            n_half++;
            cr_assert(!passes_verify(&f, "out", &err));
            cr_assert(strstr(err.text, "half a merge"), "%s", err.text);
            cr_assert_eq(merge_two(&f, "elsewhere", "out", "w1", &err), TD_E_OUTPUT);
            cr_assert_eq(merge_two(&f, "out", "one", "one/../one", &err), TD_E_OUTPUT);
            td_output *o = NULL;
            free(f.cfg.output.dir);
            f.cfg.output.dir = path_in(&f, "out");
            cr_assert_eq(td_fixture_open(&f, &o, &err), TD_E_OUTPUT);
            if (call % 4 == 0) { /* the same shards may come from elsewhere */
                char *text = NULL;
                td_status rc = merge_all(&f, "out", (const char *[]){"one"}, 1, false, &text, &err);
                cr_assert_eq(rc, TD_OK, "%s", err.text);
                expect_same(&f, "out", "one");
                free(text);
            }
        }
        cr_assert_eq(fork_merge(&f, copy, 0, false), 0);
        expect_same(&f, "out", "one");
        cr_assert(passes_verify(&f, "out", &err), "call %ld: %s", call, err.text);
        cr_assert(passes_verify(&f, "w0", &err) && passes_verify(&f, "w1", &err), "%s", err.text);
        test_remove_tree(out);
        free(mark);
        free(out);
        if (code == 0)
            break;
    }
    cr_assert_gt(n_half, SHARDS, "only %ld of %ld calls left half a merge", n_half, call);
    td_fixture_free(&f);
}

Test(merge, death_at_every_call_while_linking) {
    break_every_call(false, false);
}
Test(merge, death_at_every_call_while_copying) {
    break_every_call(true, false);
}
Test(merge, full_disk_at_every_call) {
    break_every_call(true, true);
}

Test(merge, a_mark_of_other_shards_is_not_overwritten) {
    td_fixture f;
    td_error err;
    setup(&f);
    /* Dies before the first shard is in place: the mark is there. */
    long call = 1;
    char *mark = path_in(&f, "out/merge.json");
    while (call < 1000 && !td_path_exists(mark))
        fork_merge(&f, false, call++, false);
    work(&f, "v0", 0, WORKERS, 3);
    work(&f, "v1", 1, WORKERS, 3);
    expect_refused(&f, TD_E_OUTPUT, "out", "v0", "v1", "the half of another merge");
    expect_refused(&f, TD_E_OUTPUT, "out", "v0", "v1", "/w1");
    OK(merge_two(&f, "out", "w0", "w1", &err));
    free(mark);
    td_fixture_free(&f);
}
