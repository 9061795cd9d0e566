/* Compressed datasets: the same rows as the plain file, whatever they are made of, and files that
 * are not what they should be. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "data/lines.h"
#include "suite.h"
#include "base/memory.h"
#include "base/strbuf.h"

TestSuite(data_packed, .init = data_setup, .fini = data_teardown);

static void put_zstd(td_strbuf *out, const char *data, size_t n) {
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
    size_t cap = ZSTD_compressBound(n);
    char *buf = malloc(cap);
    size_t got = ZSTD_compress2(c, buf, cap, data, n);
    cr_assert_not(ZSTD_isError(got));
    td_strbuf_append(out, buf, got);
    ZSTD_freeCCtx(c);
    free(buf);
}

/* `data` in `parts` members or frames, some empty. */
static td_strbuf pack(bool zstd, const char *data, size_t n, size_t parts) {
    td_strbuf b = {0};
    if (zstd && parts > 1) /* as pzstd: a skippable frame in front */
        td_strbuf_append(&b, "\x50\x2a\x4d\x18\x03\0\0\0abc", 11);
    for (size_t i = 0; i < parts; i++) {
        size_t from = n * i / parts, to = n * (i + 1) / parts;
        (zstd ? put_zstd : put_gzip)(&b, data + from, to - from);
        if (i % 3 == 1)
            (zstd ? put_zstd : put_gzip)(&b, "", 0);
    }
    cr_assert_not(b.oom);
    return b;
}

static const char LETTERS[] =
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the face of the deep.";

static td_strbuf ragged_jsonl(size_t n_bytes) {
    td_strbuf b = {0};
    uint64_t rnd = 5;
    while (b.len < n_bytes) {
        td_strbuf_puts(&b, "{\"text\": \"");
        /* Pieces of a fixed text at random places: quick, and not packed away entirely. */
        for (uint64_t n = test_random(&rnd) % 120; n > 0; n--)
            td_strbuf_append(&b, LETTERS + test_random(&rnd) % (sizeof LETTERS - 9), 8);
        td_strbuf_puts(&b, test_random(&rnd) % 5 ? "\"}\n" : "\"}\r\n\n");
    }
    return b;
}

static void same_shard(const td_shard *a, const td_shard *b) {
    cr_assert_eq(a->number, b->number);
    cr_assert_eq(a->row_begin, b->row_begin);
    cr_assert_eq(a->row_end, b->row_end);
    cr_assert_eq(a->source_hash, b->source_hash);
    cr_assert_eq(a->n_tokens, b->n_tokens);
    if (a->n_tokens)
        cr_assert_arr_eq(a->ids, b->ids, (size_t)a->n_tokens * sizeof *a->ids);
}

Test(data_packed, the_same_shards_as_the_plain_file) {
    td_strbuf plain = ragged_jsonl(1u << 20);
    F.cfg.output.shard_samples = 300;
    for (int k = 0; k < 4; k++) {
        bool zstd = k & 1;
        td_strbuf packed = pack(zstd, plain.data, plain.len, k < 2 ? 1 : 7);
        if (k == 2) /* tape blocks end in zeros */
            td_strbuf_append(&packed, (char[700]){0}, 700);
        fixture_file(&F, "a.jsonl", plain.data, plain.len);
        td_source *a = open_source();
        fixture_file(&F, zstd ? "p.jsonl.zst" : "p.jsonl.gz", packed.data, packed.len);
        td_source *b = open_source(), *scan = open_source();
        cr_assert_eq(td_source_format(b), TD_FORMAT_JSONL);
        uint64_t last = 0, read, total, size;
        for (int i = 0;; i++) {
            td_shard *x = next_shard(a, true), *y = next_shard(b, true),
                     *z = next_shard(scan, false);
            cr_assert_eq(!x, !y);
            cr_assert_eq(!x, !z);
            if (!x)
                break;
            same_shard(x, y);
            cr_assert_eq(x->source_hash, z->source_hash);
            td_source_progress(b, &read, &total);
            cr_assert(read > last && read <= total);
            last = read;
            td_shard_free(z);
            if (i % 2 == 0) { /* the scanned shard has to be computed after all */
                td_error err;
                cr_assert_eq(td_source_step_back(scan, &err), TD_OK, "%s", err.text);
                cr_assert_eq(td_source_next_number(scan), i);
                z = next_shard(scan, true);
                same_shard(x, z);
                td_shard_free(z);
            }
            td_shard_free(x);
            td_shard_free(y);
        }
        td_source_progress(b, &read, &total);
        cr_assert_eq(read, total);
        cr_assert_eq(total, packed.len);
        uint64_t hash;
        cr_assert_eq(td_source_fingerprint(b, &size, &hash, NULL), TD_OK);
        cr_assert_eq(size, packed.len);
        td_source_close(a);
        td_source_close(b);
        td_source_close(scan);
        td_strbuf_free(&packed);
    }
    td_strbuf_free(&plain);
}

Test(data_packed, lines_of_any_buffer_size) {
    static const char text[] = "\xef\xbb\xbf"
                               "one\ntwo\r\n\nlast";
    static const char *const want[] = {"one\n", "two\r\n", "\n", "last"};
    for (size_t size = 1; size < 9; size++)
        for (int zstd = 0; zstd < 2; zstd++) {
            td_strbuf packed = pack(zstd, text, sizeof text - 1, size);
            fixture_file(&F, "a", packed.data, packed.len);
            td_lines l;
            td_error err;
            cr_assert_eq(td_lines_open(&l, F.path, false, &err), TD_OK, "%s", err.text);
            l.read_bytes = size;
            const char *line;
            size_t n;
            for (int round = 0; round < 2; round++) {
                uint64_t second = 0;
                for (size_t i = 0; i < 4; i++) {
                    cr_assert_eq(td_lines_next(&l, &line, &n, &err), TD_OK, "%s", err.text);
                    cr_assert_eq(n, strlen(want[i]));
                    cr_assert_arr_eq(line, want[i], n);
                    if (i == 0)
                        second = td_lines_offset(&l);
                }
                cr_assert_eq(td_lines_next(&l, &line, &n, &err), TD_OK);
                cr_assert_null(line);
                cr_assert_eq(td_lines_file_offset(&l), packed.len);
                cr_assert_eq(td_lines_seek(&l, second, &err), TD_OK, "%s", err.text);
                cr_assert_eq(td_lines_next(&l, &line, &n, &err), TD_OK, "%s", err.text);
                cr_assert_eq(n, strlen(want[1]));
                cr_assert_arr_eq(line, want[1], n);
                cr_assert_eq(td_lines_seek(&l, 0, &err), TD_OK, "%s", err.text);
            }
            td_lines_close(&l);
            td_strbuf_free(&packed);
        }
}

Test(data_packed, the_inner_name_and_content_say_the_format) {
    static const struct {
        const char *name, *text;
        td_data_format format;
    } cases[] = {{"a.txt.gz", "{\"text\":\"x\"}\n", TD_FORMAT_TEXT},
                 {"a.gz", "{\"text\":\"x\"}\n", TD_FORMAT_JSONL},
                 {"a", "words\n", TD_FORMAT_TEXT},
                 {"A.JSONL.ZST", "{\"text\":\"x\"}\n", TD_FORMAT_JSONL}};
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_strbuf p = pack(i % 2, cases[i].text, strlen(cases[i].text), 1);
        fixture_file(&F, cases[i].name, p.data, p.len);
        td_source *s = open_source();
        cr_assert_eq(td_source_format(s), cases[i].format, "%s", cases[i].name);
        td_source_close(s);
        td_strbuf_free(&p);
    }
}

Test(data_packed, a_whole_file_is_one_row) {
    F.cfg.data.text_unit = TD_TEXT_FILE;
    F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
    td_strbuf p = pack(false, "one\ntwo\n", 8, 2);
    fixture_file(&F, "a.txt.gz", p.data, p.len);
    td_source *s = open_source();
    td_shard *h = next_shard(s, true);
    cr_assert_eq(h->row_end, 1);
    cr_assert_eq(h->n_tokens, 8);
    td_shard_free(h);
    cr_assert_null(next_shard(s, true));
    td_source_close(s);
    td_strbuf_free(&p);
    /* Nothing inside is no row. */
    p = pack(true, "", 0, 1);
    fixture_file(&F, "b.txt.zst", p.data, p.len);
    td_error err;
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "has no rows"), "%s", err.text);
    td_strbuf_free(&p);
}

/* Reads all; the error must name the file and hold `says`. */
static void read_bad(const char *says) {
    td_source *s = NULL;
    td_shard *h = NULL;
    td_error err = {0};
    td_status rc = td_source_open(&F.cfg, F.tok, &F.lim, &s, &err);
    while (rc == TD_OK) {
        rc = td_source_next(s, true, &h, &err);
        if (rc == TD_OK && !h)
            break;
        if (rc == TD_OK)
            td_shard_free(h);
    }
    cr_assert_eq(rc, TD_E_DATA, "'%s' was not found", says);
    cr_assert(strstr(err.text, F.path), "%s", err.text);
    cr_assert(strstr(err.text, "byte "), "%s", err.text);
    cr_assert(strstr(err.text, says), "not '%s': %s", says, err.text);
    td_source_close(s);
}

Test(data_packed, broken_files_are_named_with_the_place) {
    td_strbuf plain = ragged_jsonl(1u << 20);
    F.cfg.run.on_bad_sample = TD_BAD_SKIP; /* a broken file is not a bad row */
    for (int zstd = 0; zstd < 2; zstd++) {
        td_strbuf p = pack(zstd, plain.data, plain.len, 3);
        const char *name = zstd ? "a.jsonl.zst" : "a.jsonl.gz";
        const size_t cuts[] = {p.len - 1, p.len - 5, p.len / 2, 40};
        for (size_t i = 0; i < TD_ARRAY_LEN(cuts); i++) {
            fixture_file(&F, name, p.data, cuts[i]);
            read_bad("truncated: the file ends at byte");
        }
        td_strbuf_append(&p, "garbage behind it", 17);
        fixture_file(&F, name, p.data, p.len);
        read_bad("corrupt");
        p.data[p.len / 2] ^= 0x55;
        fixture_file(&F, name, p.data, p.len);
        read_bad("corrupt");
        td_strbuf_free(&p);
    }
    td_strbuf_free(&plain);
}

Test(data_packed, a_window_beyond_the_limit_is_refused) {
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, 28);
    char buf[256];
    /* Streamed, so that the frame does not know how little is inside. */
    ZSTD_inBuffer in = {"text\n", 5, 0}, none = {"", 0, 0};
    ZSTD_outBuffer out = {buf, sizeof buf, 0};
    cr_assert_not(ZSTD_isError(ZSTD_compressStream2(c, &out, &in, ZSTD_e_flush)));
    cr_assert_eq(ZSTD_compressStream2(c, &out, &none, ZSTD_e_end), 0);
    ZSTD_freeCCtx(c);
    fixture_file(&F, "a.txt.zst", buf, out.pos);
    read_bad("window of more than 128 MiB");
}

/* A small file that would fill memory with one row. */
Test(data_packed, a_bomb_is_refused) {
    const size_t n = (size_t)192 << 20;
    char *text = malloc(n);
    memset(text, 'a', n);
    for (int zstd = 0; zstd < 2; zstd++) {
        td_strbuf b = pack(zstd, text, n, 1);
        td_lines l;
        td_error err = {0};
        const char *line;
        size_t len;
        fixture_file(&F, zstd ? "bomb.jsonl.zst" : "bomb.jsonl.gz", b.data, b.len);
        OK(td_lines_open(&l, F.path, false, &err));
        cr_assert_eq(td_lines_next(&l, &line, &len, &err), TD_E_DATA);
        cr_assert(strstr(err.text, "more than 250 times"), "%s", err.text);
        td_lines_close(&l);
        td_strbuf_free(&b);
    }
    free(text);
}

Test(data_packed, statistics) {
    td_strbuf plain = ragged_jsonl(9u << 20);
    F.cfg.output.shard_samples = 5000;
    fixture_file(&F, "a.jsonl", plain.data, plain.len);
    double rows = 0, tokens = 0;
    td_source *s = open_source();
    for (td_shard *h; (h = next_shard(s, true)); td_shard_free(h)) {
        rows = (double)h->row_end;
        tokens += (double)h->n_tokens;
    }
    td_source_close(s);
    for (int zstd = 0; zstd < 2; zstd++) {
        td_strbuf p = pack(zstd, plain.data, plain.len, 1 + 4 * (size_t)zstd);
        fixture_file(&F, "p.jsonl", p.data, p.len);
        td_dataset_stats st;
        td_error err;
        cr_assert_eq(td_dataset_stats_sample(&F.cfg, F.tok, &F.lim, &st, &err), TD_OK, "%s",
                     err.text);
        cr_assert(st.estimated);
        estimate_near("rows", st.n_dataset_rows, rows, 0.05);
        estimate_near("tokens", st.n_tokens, tokens, 0.05);
        F.cfg.data.max_samples = 3000;
        cr_assert_eq(td_dataset_stats_sample(&F.cfg, F.tok, &F.lim, &st, &err), TD_OK);
        cr_assert_eq(st.n_dataset_rows, 3000);
        cr_assert_not(st.estimated);
        F.cfg.data.max_samples = 15000;
        cr_assert_eq(td_dataset_stats_sample(&F.cfg, NULL, &F.lim, &st, &err), TD_OK);
        estimate_near("rows up to max_samples", st.n_dataset_rows, 15000, 0.001);
        cr_assert(st.estimated && st.tokens_from_bytes);
        F.cfg.data.max_samples = 0;
        td_strbuf_free(&p);
        /* One row of everything. */
        p = pack(zstd, plain.data, plain.len, 3);
        fixture_file(&F, "p.txt", p.data, p.len);
        F.cfg.data.text_unit = TD_TEXT_FILE;
        F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
        cr_assert_eq(td_dataset_stats_sample(&F.cfg, F.tok, &F.lim, &st, &err), TD_OK, "%s",
                     err.text);
        cr_assert(st.estimated);
        estimate_near("tokens of the file", st.n_tokens, (double)plain.len, 0.05);
        F.cfg.data.text_unit = TD_TEXT_LINE;
        F.cfg.data.overflow = TD_OVERFLOW_TRUNCATE;
        td_strbuf_free(&p);
        /* A short one is read to its end. */
        p = pack(zstd, plain.data, 100000, 2);
        fixture_file(&F, "short.txt", p.data, p.len);
        cr_assert_eq(td_dataset_stats_sample(&F.cfg, F.tok, &F.lim, &st, &err), TD_OK);
        cr_assert_not(st.estimated);
        td_strbuf_free(&p);
    }
    td_strbuf_free(&plain);
}
