/* Several files, a folder or a glob: the rows of one dataset, in sorted order. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "suite.h"
#include "base/memory.h"

TestSuite(data_files, .init = data_setup, .fini = data_teardown);

static char SET[160],
    DIR[120]; /* what data.path is set to; a folder without the tokenizer's files */

/* data.path, with DIR for % */
static void set_path(const char *pattern) {
    size_t at = 0;
    for (const char *p = pattern; *p; p++)
        if (*p == '%')
            at += (size_t)snprintf(SET + at, sizeof SET - at, "%s", DIR);
        else
            SET[at++] = *p;
    SET[at] = '\0';
    F.cfg.data.path = SET;
}

static void folder(const char *name) {
    snprintf(DIR, sizeof DIR, "%s/%s", F.dir, name);
    cr_assert_eq(mkdir(DIR, 0777), 0);
}

static void put(const char *name, const char *text) {
    test_write_file(DIR, name, text, strlen(text));
}

static void put_packed(const char *name, const char *text) {
    td_strbuf b = {0};
    put_gzip(&b, text, strlen(text));
    test_write_file(DIR, name, b.data, b.len);
    td_strbuf_free(&b);
}

static void refused(td_status code, const char *setting, const char *says) {
    td_source *s = NULL;
    td_error err = {0};
    set_path(setting);
    td_status rc = td_source_open(&F.cfg, F.tok, &F.lim, &s, &err);
    cr_expect_eq(rc, code, "%s: %d %s", setting, rc, err.text);
    cr_expect(strstr(err.text, says), "%s: not '%s': %s", setting, says, err.text);
    td_source_close(s);
}

/* All shards of data.path as it is set; *hash over ids, ranges and source hashes. */
static int64_t walk(uint64_t *hash) {
    td_source *s = open_source();
    *hash = 14695981039346656037u;
    td_error err;
    uint64_t size, h, read, total;
    OK(td_source_fingerprint(s, &size, &h, &err));
    td_shard *x;
    int64_t rows = 0;
    bool scanned = true;
    while ((x = next_shard(s, !scanned)) != NULL) {
        if (scanned) { /* each shard scanned first, then again with its tokens */
            uint64_t seen = x->source_hash;
            OK(td_source_step_back(s, &err));
            td_shard_free(x);
            x = next_shard(s, true);
            cr_assert_eq(seen, x->source_hash);
        }
        cr_assert_eq(x->row_begin, rows);
        rows = x->row_end;
        for (int64_t i = 0; i < x->n_tokens; i++)
            *hash = (*hash ^ (uint64_t)x->ids[i]) * 1099511628211u;
        *hash = (*hash ^ x->source_hash) * 1099511628211u;
        scanned = !scanned;
        td_shard_free(x);
        td_source_progress(s, &read, &total);
        cr_assert_leq(read, total);
    }
    td_source_progress(s, &read, &total);
    cr_assert_eq(read, total);
    td_source_close(s);
    return rows;
}

Test(data_files, are_the_rows_of_one_file_in_sorted_order) {
    static const char a[] = "\xef\xbb\xbf{\"text\":\"one\"}\r\n\r\n{\"text\":\"two\"}\n",
                      b[] = "{\"text\":\"three\"}\n{\"text\":\"four\"}\n{\"text\":\"five\"}",
                      c[] = "\xef\xbb\xbf{\"text\":\"six\"}\n\n{\"text\":\"seven\"}\n";
    folder("set");
    put("b-2.jsonl", b);
    put("a.jsonl", a);
    put_packed("b.jsonl.gz", c);
    put("empty.jsonl", "");
    put("none.jsonl", "\n\n");
    put("_SUCCESS", "");
    put("dataset_info.json", "{\"x\":1}");
    put("README.md", "about it");
    /* "b-2" sorts before "b." */
    fixture_text(
        &F, "one.jsonl",
        "{\"text\":\"one\"}\r\n{\"text\":\"two\"}\n{\"text\":\"three\"}\n{\"text\":\"four\"}\n"
        "{\"text\":\"five\"}\n{\"text\":\"six\"}\n{\"text\":\"seven\"}\n");
    for (int64_t per = 1; per <= 8; per++) {
        F.cfg.output.shard_samples = per;
        uint64_t want, got;
        F.cfg.data.path = F.path;
        cr_assert_eq(walk(&want), 7);
        static const char *const settings[] = {"%", "%/", "%/*.jsonl*", "%/b*, %/[an]*.jsonl",
                                               "%/b.jsonl.gz,%/b-2.jsonl,\"%/a.jsonl\""};
        for (size_t i = 0; i < TD_ARRAY_LEN(settings); i++) {
            set_path(settings[i]);
            cr_assert_eq(walk(&got), 7, "%s", settings[i]);
            cr_assert_eq(got, want, "%s, %d a shard", settings[i], (int)per);
        }
    }
    F.cfg.data.max_samples = 4;
    set_path("%");
    uint64_t h;
    cr_assert_eq(walk(&h), 4);
}

Test(data_files, messages_name_the_file_and_its_line) {
    folder("set");
    put("a.jsonl", "{\"text\":\"x\"}\n");
    put_packed("b.jsonl.gz", "{\"text\":\"x\"}\n\n{\"text\":7}\n");
    set_path("%");
    td_source *s = open_source();
    td_error err = {0};
    td_shard *x;
    cr_assert_eq(td_source_next(s, true, &x, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "/set/b.jsonl.gz:3: "), "%s", err.text);
    td_source_close(s);
    /* The first row of each file is looked at before anything is done. */
    put("c.jsonl", "{\"txt\":\"x\"}\n");
    refused(TD_E_DATA, "%", "/set/c.jsonl:1: the row has no \"text\"");
    F.cfg.run.on_bad_sample = TD_BAD_SKIP;
    s = open_source();
    x = next_shard(s, true);
    cr_assert_eq(x->n_samples, 2);
    cr_assert_eq(x->n_bad_rows, 2);
    td_shard_free(x);
    td_source_close(s);
    /* A file that changes after it was looked at. */
    s = open_source();
    put("c.jsonl", "{\"text\":\"longer\"}\n");
    cr_assert_eq(td_source_next(s, true, &x, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "do not change a dataset while it is read"), "%s", err.text);
    td_source_close(s);
    s = open_source();
    snprintf(F.path, sizeof F.path, "%s/c.jsonl", DIR);
    unlink(F.path);
    cr_assert_eq(td_source_next(s, true, &x, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "c.jsonl"), "%s", err.text);
    td_source_close(s);
}

static void fingerprint(const char *setting, uint64_t *size, uint64_t *hash) {
    td_error err;
    set_path(setting);
    td_source *s = open_source();
    OK(td_source_fingerprint(s, size, hash, &err));
    td_source_close(s);
}

Test(data_files, identity_is_content_in_order) {
    uint64_t size[6], hash[6];
    folder("one");
    put("a.txt", "aaaa\n");
    fingerprint("%/a.txt", &size[0], &hash[0]);
    fingerprint("%", &size[1], &hash[1]); /* a folder of one file is that file */
    cr_assert(size[0] == size[1] && hash[0] == hash[1]);
    put("b.txt", "bbbb\n");
    fingerprint("%", &size[2], &hash[2]);
    folder("two");
    put("x.txt", "aaaa\n");
    put("y.txt", "bbbb\n");
    fingerprint("%", &size[3], &hash[3]);
    cr_assert(size[2] == 10 && size[3] == 10 && hash[2] == hash[3]);
    put("a.txt", "bbbb\n");
    fingerprint("%/[ax].txt", &size[4], &hash[4]); /* the other order */
    cr_assert_neq(hash[4], hash[3]);
    put("z.txt", "aaaa\nbbbb\n");
    fingerprint("%/z.txt", &size[5], &hash[5]);
    cr_assert_neq(hash[5], hash[3]);
    size_t n;
    td_source *s = open_source();
    td_source_files(s, &n);
    cr_assert_eq(n, 1);
    td_source_close(s);
}

Test(data_files, names_with_any_characters) {
    folder("set");
    put("a, b [1]*.txt", "x\ny\n");
    put("c.txt", "z\n");
    uint64_t h;
    set_path("%/a, b [1]*.txt"); /* is there: means itself */
    cr_assert_eq(walk(&h), 2);
    set_path("\"%/a, b [1]*.txt\" , %/c.txt");
    cr_assert_eq(walk(&h), 3);
    cr_assert(td_dataset_is_there(&F.cfg));
    set_path("%/none, %/n*.txt, \"%/*.txt\"");
    cr_assert_not(td_dataset_is_there(&F.cfg));
}

Test(data_files, what_is_no_dataset_is_refused_by_name) {
    folder("set");
    refused(TD_E_DATA, "%", "it is empty");
    refused(TD_E_DATA, "%/x*.jsonl", "no file in it has such a name");
    refused(TD_E_DATA, "%/no/x*.jsonl", "there is no folder");
    refused(TD_E_DATA, "%/**/*.jsonl", "** is no more than *");
    refused(TD_E_DATA, "%/no.jsonl", "No such file");
    put("a.jsonl", "{\"text\":\"x\"}\n");
    refused(TD_E_CONFIG, "%/a.jsonl,", "is empty");
    refused(TD_E_CONFIG, "\"%/a.jsonl", "not closed");
    refused(TD_E_DATA, "%/a.jsonl, %/b.jsonl", "b.jsonl: No such file");
    refused(TD_E_DATA, "%/a.jsonl, %/*.jsonl", "is named twice");
    put("b.txt", "x\n");
    refused(TD_E_DATA, "%", "b.txt is text; the files of a dataset have one format");
    refused(TD_E_DATA, "%/a*, %/b*", "a.jsonl is jsonl, but ");
    F.cfg.data.format = TD_FORMAT_TEXT; /* then the folder is its text files */
    set_path("%");
    uint64_t h;
    cr_assert_eq(walk(&h), 1);
    F.cfg.data.format = TD_FORMAT_AUTO;
    put("x.parquet", "PAR1");
    refused(TD_E_DATA, "%", "also x.parquet, which is not read directly");
    folder("tables");
    put("x.csv", "a,b\n");
    refused(TD_E_DATA, "%", "tdgen prepare ");
    refused(TD_E_DATA, "%/*.csv", "x.csv is a CSV file");
    folder("saved");
    put("state.json", "{}");
    put("data-00000-of-00001.arrow", "x");
    refused(TD_E_DATA, "%", "save_to_disk");
    folder("deep");
    char sub[160];
    snprintf(sub, sizeof sub, "%s/data", DIR);
    cr_assert_eq(mkdir(sub, 0777), 0);
    refused(TD_E_DATA, "%", "subfolders are not looked into (data)");
    refused(TD_E_DATA, "%/*", "matches folders only");
    folder("other");
    put("notes.md", "x\n");
    refused(TD_E_DATA, "%", "it has notes.md");
    folder("void");
    put("a.jsonl", "");
    refused(TD_E_DATA, "%", "is empty, there are no rows");
    put("b.jsonl", "");
    refused(TD_E_DATA, "%", "all 2 files are empty");
    put("a.jsonl", "\n");
    put("b.jsonl", "\r\n");
    refused(TD_E_DATA, "%", "none of its 2 files has rows");
}

/* A file of ids in DIR; offsets of rows, ending with 0. */
static void put_tokens(const char *name, const int32_t *ids, const int32_t *offsets,
                       size_t n_rows) {
    const fixture_tensor t[] = {{"input_ids", "I32", ids, 4, (size_t)offsets[n_rows]},
                                {"offsets", "I32", offsets, 4, n_rows + 1}};
    char keep[sizeof F.path], moved[200];
    memcpy(keep, F.path, sizeof keep);
    fixture_tensors(&F, name, t, 2);
    snprintf(moved, sizeof moved, "%s/%s", DIR, name);
    cr_assert_eq(rename(F.path, moved), 0);
    memcpy(F.path, keep, sizeof keep);
}

Test(data_files, of_tokens) {
    static const int32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const int32_t two[] = {0, 3, 5}, none[] = {0}, one[] = {0, 4};
    folder("run");
    put_tokens("shard-000000.safetensors", ids, two, 2);
    put_tokens("shard-000001.safetensors", ids, none, 0);
    put_tokens("shard-000002.safetensors", ids + 5, one, 1);
    put("manifest.json", "{}");
    put("shards.jsonl", "{}\n");
    F.cfg.output.shard_samples = 2;
    set_path("%"); /* as a folder of tdgen: its shards */
    td_source *s = open_source();
    td_shard *x = next_shard(s, true), *y = next_shard(s, true);
    cr_assert_null(next_shard(s, true));
    cr_assert(x->n_tokens == 5 && y->n_tokens == 4 && y->ids[0] == 6 && y->row_begin == 2);
    td_dataset_stats st;
    td_error err;
    OK(td_dataset_stats_sample(&F.cfg, NULL, &F.lim, &st, &err));
    cr_assert(st.n_dataset_rows == 3 && st.n_tokens == 9 && st.n_files == 3);
    td_shard_free(x);
    td_shard_free(y);
    td_source_close(s);

    folder("raw");
    static const uint16_t raw[] = {1, 2, 3, 4, 5};
    test_write_file(DIR, "a.bin", raw, 10);
    test_write_file(DIR, "b.bin", raw, 6);
    F.cfg.data.max_length = 2; /* rows 1 2, 3 4, 5 and 1 2, 3 */
    set_path("%");
    uint64_t h;
    cr_assert_eq(walk(&h), 5);
    F.cfg.data.document_eos = 3; /* rows 1 2 3, 4 5 and 1 2 3 */
    cr_assert_eq(walk(&h), 3);
    F.cfg.data.document_eos = -1;
    unsigned char idx[34 + 12 + 16] = "MMIDIDX";
    const uint64_t version = 1, n_seq = 1, n_doc = 2, documents[] = {0, 1};
    const int32_t size = 3;
    memcpy(idx + 9, &version, 8);
    idx[17] = 8;
    memcpy(idx + 18, &n_seq, 8);
    memcpy(idx + 26, &n_doc, 8);
    memcpy(idx + 34, &size, 4);
    memcpy(idx + 46, documents, 16);
    test_write_file(DIR, "b.idx", idx, sizeof idx);
    refused(TD_E_DATA, "%", "b.bin has the documents of an .idx file");
    put_tokens("c.safetensors", ids, one, 1);
    refused(TD_E_DATA, "%/[ac]*", "is tokens (raw ids), but ");
}

/* Statistics. */

static td_dataset_stats stats_by(const td_tokenizer *tok) {
    td_dataset_stats st;
    td_error err;
    OK(td_dataset_stats_sample(&F.cfg, tok, &F.lim, &st, &err));
    return st;
}

static td_dataset_stats stats(void) {
    return stats_by(F.tok);
}

/* n rows of `length` letters. */
static void put_rows(const char *name, int n, int length, bool packed) {
    static char letters[1 << 20]; /* more than gzip looks back */
    td_strbuf b = {0};
    uint64_t rnd = (uint64_t)n;
    for (size_t i = letters[0] ? 0 : sizeof letters; i-- > 0;)
        letters[i] = "abcdefghijklmnop"[test_random(&rnd) % 16];
    for (int i = 0; i < n; i++) {
        td_strbuf_puts(&b, "{\"text\":\"");
        for (int k = 0; k < length; k += TD_MIN(length - k, 2000))
            td_strbuf_append(&b, letters + test_random(&rnd) % (sizeof letters - 2000),
                             (size_t)TD_MIN(length - k, 2000));
        td_strbuf_puts(&b, "\"}\n");
    }
    MUST(!b.oom);
    if (packed)
        put_packed(name, b.data);
    else
        test_write_file(DIR, name, b.data, b.len);
    td_strbuf_free(&b);
}

Test(data_files, statistics_look_at_all_in_proportion) {
    F.cfg.data.add_special_tokens = false;
    F.cfg.data.max_length = 200;
    folder("plain");
    put_rows("a.jsonl", 100000, 40, false); /* 5 MB */
    put_rows("b.jsonl", 40000, 290, false); /* 12 MB, 40 thousand of 140 thousand rows */
    put_rows("c.jsonl", 1, 10, false);
    set_path("%");
    td_dataset_stats st = stats();
    cr_assert(st.estimated && st.basis == TD_STATS_SPREAD && st.n_files == 3);
    cr_assert(st.n_rows_read >= 1900 && st.bytes_read < st.bytes_total);
    estimate_near("rows", st.n_dataset_rows, 140001, 0.1);
    estimate_near("tokens", st.n_tokens, 4e6 + 40000 * 200, 0.1);
    estimate_near("rows cut", st.n_overflow_rows, 40000, 0.1);
    estimate_near("tokens lost", st.n_overflow_tokens, 40000 * 90, 0.1);

    folder("packed");
    put_rows("a.jsonl.gz", 30000, 40, true);
    put_rows("b.jsonl.gz", 12000, 290, true);
    set_path("%");
    F.cfg.data.overflow = TD_OVERFLOW_SKIP;
    st = stats();
    cr_assert(st.estimated && st.basis == TD_STATS_FRONT && st.n_files_read == 2);
    estimate_near("packed rows", st.n_dataset_rows, 42000, 0.1);
    estimate_near("packed tokens", st.n_tokens, 30000 * 40, 0.1);
    estimate_near("packed rows skipped", st.n_overflow_rows, 12000, 0.1);
    estimate_near("packed tokens lost", st.n_overflow_tokens, 12000 * 290, 0.1);

    /* Many files of one row each: no row but the first begins behind any place in them. */
    folder("many");
    char name[32];
    for (int i = 0; i < 600; i++) {
        snprintf(name, sizeof name, "%04d.jsonl", i);
        put_rows(name, 1, i % 2 ? 40000 : 20000, false);
    }
    F.cfg.data.max_length = 1 << 20;
    set_path("%");
    st = stats_by(NULL); /* quick: 4 bytes a token */
    cr_assert(st.estimated);
    estimate_near("rows of many", st.n_dataset_rows, 600, 0.1);
    estimate_near("tokens of many", st.n_tokens, 600 * 30000 / 4, 0.1);
    F.cfg.data.format = TD_FORMAT_TEXT;
    F.cfg.data.text_unit = TD_TEXT_FILE;
    set_path("%/*");
    st = stats_by(NULL);
    cr_assert_eq(st.n_dataset_rows, 600);
    estimate_near("tokens of files", st.n_tokens, 600 * 30012 / 4, 0.1);
    F.cfg.data.max_samples = 300;
    cr_assert_eq(stats_by(NULL).n_dataset_rows, 300);
}

Test(data_files, small_ones_are_counted) {
    folder("set");
    put("a.txt", "0123456789\nabc\n");
    put_packed("b.txt.gz", "0123456\n\n");
    set_path("%");
    F.cfg.data.max_length = 5;
    F.cfg.data.add_special_tokens = false;
    td_dataset_stats st = stats();
    cr_assert(!st.estimated && st.basis == TD_STATS_ALL_ROWS);
    cr_assert(st.n_dataset_rows == 4 && st.n_rows_read == 4 && st.n_files == 2);
    cr_assert(st.n_overflow_rows == 2 && st.n_overflow_tokens == 5 + 2 && st.n_tokens == 5 + 3 + 5);
    cr_assert_eq(st.n_record_rows, 4 + 2 + 4);
    F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
    st = stats();
    cr_assert(st.n_overflow_rows == 2 && st.n_overflow_tokens == 0 && st.n_tokens == 20);
    F.cfg.data.overflow = TD_OVERFLOW_SKIP;
    st = stats();
    cr_assert(st.n_overflow_rows == 2 && st.n_overflow_tokens == 17 && st.n_tokens == 3);
}
