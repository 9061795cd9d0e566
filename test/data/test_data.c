/* Shards of random JSONL and text files: nothing is lost, whatever the shard size, the way of
 * reading, or the cut; and packing and detection of formats. */
#include <criterion/criterion.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suite.h"
#include "base/memory.h"
#include "base/strbuf.h"

/* Longer than the line reader's first buffer. */
enum { TD_ROW_LONG = 1300000 };

TestSuite(data, .init = data_setup, .fini = data_teardown);

/* What must hold for each shard, whatever was in the file. */
static void check_shard(const td_shard *s) {
    int64_t tokens = 0, rows = 0;
    int32_t with_rows = 0;
    for (int32_t i = 0; i < s->n_samples; i++) {
        const td_sample *p = &s->samples[i];
        cr_assert_eq(p->token_offset, tokens);
        cr_assert_eq(p->row_offset, rows);
        cr_assert(p->row >= s->row_begin && p->row < s->row_end);
        cr_assert_leq(p->n_tokens, F.cfg.data.max_length);
        int32_t n_rows = 0;
        for (int32_t t = 0; t < p->n_tokens; t++)
            n_rows += t > 0 && s->loss_mask[tokens + t];
        cr_assert_eq(p->n_rows, n_rows);
        if (p->n_tokens)
            cr_assert_eq(s->loss_mask[tokens], 0);
        tokens += p->n_tokens;
        rows += n_rows;
        with_rows += n_rows > 0;
    }
    cr_assert_eq(s->n_tokens, tokens);
    cr_assert_eq(s->n_rows, rows);

    char *seen = td_calloc((size_t)s->n_samples, 1);
    int32_t packed = 0, last_len = INT32_MAX, last_total = INT32_MAX;
    for (int32_t b = 0; b < s->n_batches; b++) {
        const td_micro_batch *m = &s->batches[b];
        int32_t n_tokens = 0, n_rows = 0;
        cr_assert_gt(m->n_samples, 0);
        for (int32_t i = 0; i < m->n_samples; i++) {
            const td_sample *p = &s->samples[m->samples[i]];
            cr_assert_eq(seen[m->samples[i]]++, 0);
            cr_assert_gt(p->n_rows, 0);
            cr_assert_leq(p->n_tokens, last_len);
            /* A batch is closed only when the next sample did not fit. */
            if (b > 0 && i == 0)
                cr_assert_gt((int64_t)last_total + p->n_tokens, F.lim.batch_tokens);
            last_len = p->n_tokens;
            n_tokens += p->n_tokens;
            n_rows += p->n_rows;
        }
        cr_assert_eq(m->n_tokens, n_tokens);
        cr_assert_eq(m->n_rows, n_rows);
        cr_assert(m->n_samples == 1 || n_tokens <= F.lim.batch_tokens);
        packed += m->n_samples;
        last_total = n_tokens;
    }
    cr_assert_eq(packed, with_rows);
    free(seen);
}

/* ---- random files ---- */

typedef struct {
    td_strbuf file;
    td_strbuf *rows; /* what the rows say, in order */
    size_t n, cap;
} corpus;

static void corpus_free(corpus *c) {
    for (size_t i = 0; i < c->n; i++)
        td_strbuf_free(&c->rows[i]);
    free(c->rows);
    td_strbuf_free(&c->file);
}

static td_strbuf *new_row(corpus *c) {
    cr_assert(td_grow((void **)&c->rows, &c->cap, c->n + 1, sizeof *c->rows));
    c->rows[c->n] = (td_strbuf){0};
    td_strbuf_append(&c->rows[c->n], "", 0);
    return &c->rows[c->n++];
}

/* One code point into the expected text, and in one of JSON's ways into the file. */
static void put_char(corpus *c, td_strbuf *row, uint32_t cp, uint64_t how) {
    char u[4];
    size_t n = 0;
    if (cp < 0x80) {
        u[n++] = (char)cp;
    } else if (cp < 0x800) {
        u[n++] = (char)(0xc0 | cp >> 6);
        u[n++] = (char)(0x80 | (cp & 63));
    } else if (cp < 0x10000) {
        u[n++] = (char)(0xe0 | cp >> 12);
        u[n++] = (char)(0x80 | ((cp >> 6) & 63));
        u[n++] = (char)(0x80 | (cp & 63));
    } else {
        u[n++] = (char)(0xf0 | cp >> 18);
        u[n++] = (char)(0x80 | ((cp >> 12) & 63));
        u[n++] = (char)(0x80 | ((cp >> 6) & 63));
        u[n++] = (char)(0x80 | (cp & 63));
    }
    td_strbuf_append(row, u, n);
    bool must_escape = cp < 0x20 || cp == '"' || cp == '\\';
    if (!must_escape && how % 4)
        td_strbuf_append(&c->file, u, n);
    else if (cp == '\n' && how % 8)
        td_strbuf_puts(&c->file, "\\n");
    else if (cp == '"' && how % 8)
        td_strbuf_puts(&c->file, "\\\"");
    else if (cp < 0x10000)
        td_strbuf_printf(&c->file, how % 16 < 8 ? "\\u%04x" : "\\u%04X", cp);
    else
        td_strbuf_printf(&c->file, "\\u%04x\\u%04x", 0xd800 + ((cp - 0x10000) >> 10),
                         0xdc00 + ((cp - 0x10000) & 1023));
}

static void put_text(corpus *c, td_strbuf *row, size_t n_chars, uint64_t *rnd) {
    static const uint32_t odd[] = {0,      '\n',   '\r',    '"',      '\\',   0x7f, 0xe9,
                                   0x2028, 0xfeff, 0x1f600, 0x10ffff, 0xffff, '/',  '\t'};
    for (size_t i = 0; i < n_chars; i++) {
        uint64_t r = test_random(rnd);
        uint32_t cp = r % 8 ? 'a' + (uint32_t)(r >> 8) % 26 : odd[(r >> 8) % TD_ARRAY_LEN(odd)];
        put_char(c, row, cp, r >> 40);
    }
}

static corpus random_jsonl(uint64_t seed, size_t n_rows) {
    static const char *const ends[] = {"\n", "\r\n", "\n\n", "\n \t\r\n", " \n"};
    static const char *const before[] = {
        "", "\"n\": 1.5, ", "\"x\":{\"text\":\"no\",\"a\":[1,{}]},", "\"\\u00e9\":null , "};
    static const char *const after[] = {"", ", \"z\": [\"text\", true]", " , \"Text\" : \"no\" "};
    corpus c = {0};
    uint64_t rnd = seed;
    if (seed % 2)
        td_strbuf_puts(&c.file, "\xef\xbb\xbf");
    if (seed % 3 == 0)
        td_strbuf_puts(&c.file, "\n\r\n");
    for (size_t i = 0; i < n_rows; i++) {
        uint64_t r = test_random(&rnd);
        td_strbuf *row = new_row(&c);
        td_strbuf_printf(&c.file, "%s{%s\"text\"%s: \"", r % 5 ? "" : " ", before[r % 4],
                         r % 7 ? "" : "\t");
        /* Mostly short, some empty, now and then longer than the reader's buffer. */
        size_t n = (r >> 8) % 10 == 0 ? 0 : (r >> 12) % 60;
        if ((r >> 20) % 400 == 0)
            n = TD_ROW_LONG;
        put_text(&c, row, n, &rnd);
        td_strbuf_printf(&c.file, "\"%s}", after[(r >> 32) % 3]);
        if (i + 1 < n_rows || seed % 5)
            td_strbuf_puts(&c.file, ends[(r >> 40) % TD_ARRAY_LEN(ends)]);
    }
    cr_assert_not(c.file.oom);
    return c;
}

/* Reads everything, checks each shard, and compares the rows with the corpus. Row i must be
 * BOS (or not) and its bytes. */
static void check_against(const corpus *c, int64_t n_rows, bool bos) {
    td_source *s = open_source();
    int64_t row = -1, number = 0;
    size_t at = 0; /* tokens of the current row that were seen */
    for (td_shard *h; (h = next_shard(s, true));) {
        cr_assert_eq(h->number, number);
        cr_assert_eq(td_source_next_number(s), ++number);
        cr_assert_eq(h->row_begin, h->number * F.cfg.output.shard_samples);
        check_shard(h);
        for (int32_t i = 0; i < h->n_samples; i++) {
            const td_sample *p = &h->samples[i];
            const int32_t *ids = h->ids + p->token_offset;
            if (p->start == 0) {
                row++;
                at = 0;
            }
            cr_assert_eq(p->row, row, "row %lld, expected %lld", (long long)p->row, (long long)row);
            cr_assert_eq((size_t)p->start, at);
            const td_strbuf *text = &c->rows[row];
            for (int32_t t = 0; t < p->n_tokens; t++, at++) {
                if (bos && at == 0)
                    cr_assert_eq(ids[t], BYTE_BOS);
                else
                    cr_assert_eq(ids[t], (uint8_t)text->data[at - bos]);
            }
            bool last = i + 1 == h->n_samples || h->samples[i + 1].start == 0;
            if (last)
                cr_assert_eq(at, text->len + bos);
        }
        cr_assert_eq(h->row_end, row + 1);
        td_shard_free(h);
    }
    cr_assert_eq(row + 1, n_rows);
    td_source_close(s);
}

Test(data, random_jsonl_keeps_every_byte) {
    for (uint64_t seed = 0; seed < 30; seed++) {
        corpus c = random_jsonl(seed, 1 + seed * 7);
        fixture_file(&F, seed % 2 ? "a.jsonl" : "a.json", c.file.data, c.file.len);
        F.cfg.data.add_special_tokens = seed % 4 < 2;
        F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
        F.cfg.data.max_length = seed % 3 ? 16 + (int32_t)seed : 1 << 24;
        F.lim.batch_tokens = 64;
        static const int64_t sizes[] = {1, 3, 1000};
        for (size_t k = 0; k < 3; k++) {
            F.cfg.output.shard_samples = sizes[k];
            check_against(&c, (int64_t)c.n, F.cfg.data.add_special_tokens);
        }
        corpus_free(&c);
    }
}

Test(data, scanning_gives_the_same_shards) {
    for (uint64_t seed = 100; seed < 110; seed++) {
        corpus c = random_jsonl(seed, 50);
        fixture_file(&F, "a.jsonl", c.file.data, c.file.len);
        F.cfg.output.shard_samples = 1 + (int64_t)seed % 9;
        F.cfg.data.max_samples = seed % 2 ? 0 : 31;
        td_source *a = open_source(), *b = open_source();
        for (;;) {
            td_shard *x = next_shard(a, true), *y = next_shard(b, false);
            cr_assert_eq(!x, !y);
            if (!x)
                break;
            cr_assert_eq(x->number, y->number);
            cr_assert_eq(x->row_begin, y->row_begin);
            cr_assert_eq(x->row_end, y->row_end);
            cr_assert_eq(x->source_hash, y->source_hash);
            cr_assert_null(y->ids);
            td_shard_free(x);
            td_shard_free(y);
        }
        uint64_t read_a, read_b, total;
        td_source_progress(a, &read_a, &total);
        cr_assert_eq(read_a, total);
        td_source_progress(b, &read_b, &total);
        cr_assert_eq(read_a, read_b);
        td_source_close(a);
        td_source_close(b);
        corpus_free(&c);
    }
}

Test(data, scanned_and_tokenised_shards_mix) {
    corpus c = random_jsonl(7, 20);
    fixture_file(&F, "a.jsonl", c.file.data, c.file.len);
    F.cfg.output.shard_samples = 6;
    td_source *s = open_source();
    td_shard *h = next_shard(s, false);
    td_shard_free(h);
    h = next_shard(s, true);
    cr_assert_eq(h->samples[0].row, 6);
    cr_assert_eq((size_t)h->samples[2].n_tokens, c.rows[8].len);
    td_shard_free(h);
    td_source_close(s);
    corpus_free(&c);
}

Test(data, growing_max_samples_keeps_full_shards) {
    corpus c = random_jsonl(11, 40);
    fixture_file(&F, "a.jsonl", c.file.data, c.file.len);
    F.cfg.output.shard_samples = 8;
    uint64_t hash[5] = {0};
    static const int64_t cuts[] = {5, 8, 19, 40, 0, 1000};
    for (size_t k = 0; k < TD_ARRAY_LEN(cuts); k++) {
        F.cfg.data.max_samples = cuts[k];
        int64_t rows = 0, expected = cuts[k] && cuts[k] < 40 ? cuts[k] : 40;
        td_source *s = open_source();
        for (td_shard *h; (h = next_shard(s, true));) {
            rows = h->row_end;
            if (h->row_end - h->row_begin == 8) {
                if (hash[h->number])
                    cr_assert_eq(hash[h->number], h->source_hash);
                hash[h->number] = h->source_hash;
            }
            td_shard_free(h);
        }
        cr_assert_eq(rows, expected);
        td_source_close(s);
    }
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < i; j++)
            cr_assert_neq(hash[i], hash[j]);
    corpus_free(&c);
}

Test(data, source_hash_sees_the_rows_and_only_them) {
    static const char *const same[] = {"{\"text\":\"a\"}\n{\"text\":\"b\"}\n",
                                       "{\"text\":\"a\"}\n{\"text\":\"b\"}",
                                       "\xef\xbb\xbf{\"text\":\"a\"}\n\n{\"text\":\"b\"}\n \n"};
    static const char *const differ[] = {"{\"text\":\"b\"}\n{\"text\":\"a\"}\n",
                                         "{\"text\":\"a\"}\n{\"text\": \"b\"}\n"};
    uint64_t first = 0;
    for (size_t i = 0; i < 5; i++) {
        fixture_text(&F, "a.jsonl", i < 3 ? same[i] : differ[i - 3]);
        td_source *s = open_source();
        td_shard *h = next_shard(s, true);
        if (i == 0)
            first = h->source_hash;
        cr_assert_eq(h->source_hash == first, i < 3, "variant %zu", i);
        td_shard_free(h);
        td_source_close(s);
    }
}

/* The most heap that was in use after any shard of a file of n_rows rows. (A sanitizer's allocator
 * reports 0; there this only runs the code.) */
static size_t heap_while_reading(int n_rows) {
    td_strbuf b = {0};
    for (int i = 0; i < n_rows; i++)
        td_strbuf_printf(&b, "{\"text\":\"%0*d\"}\n", 1 + i % 200, i);
    fixture_file(&F, "a.jsonl", b.data, b.len);
    td_strbuf_free(&b);
    size_t most = 0;
    td_source *s = open_source();
    for (td_shard *h; (h = next_shard(s, true)); td_shard_free(h)) {
        struct mallinfo2 m = mallinfo2();
        most = TD_MAX(most, m.uordblks + m.hblkhd);
    }
    td_source_close(s);
    return most;
}

Test(data, memory_does_not_grow_with_the_file) {
    F.cfg.output.shard_samples = 200;
    size_t small = heap_while_reading(10000), large = heap_while_reading(150000);
    cr_assert_leq(large, small + 100000, "1.2 MB: %zu bytes of heap, 17 MB: %zu", small, large);
    cr_assert_leq(large, 4u << 20);
}

/* ---- text ---- */

Test(data, text_lines) {
    /* Empty lines are rows; CRLF and LF are no text, a CR alone is; no LF at the end. */
    static const char text[] = "\xef\xbb\xbf"
                               "one\n\ntwo\r\n\r\na\rb\nnul\0nul\nlast\r";
    static const struct {
        const char *s;
        size_t n;
    } rows[] = {{"one", 3},  {"", 0},         {"two", 3},   {"", 0},
                {"a\rb", 3}, {"nul\0nul", 7}, {"last\r", 5}};
    corpus c = {0};
    for (size_t i = 0; i < TD_ARRAY_LEN(rows); i++)
        td_strbuf_append(new_row(&c), rows[i].s, rows[i].n);
    fixture_file(&F, "a.txt", text, sizeof text - 1);
    F.cfg.output.shard_samples = 4;
    check_against(&c, 7, false);
    F.cfg.data.add_special_tokens = true;
    check_against(&c, 7, true);
    corpus_free(&c);
}

Test(data, text_with_bytes_that_are_no_utf8) {
    fixture_text(&F, "a.txt",
                 "a\xff"
                 "b\n");
    td_source *s = open_source();
    td_shard *h = next_shard(s, true);
    static const int32_t expected[] = {'a', 0xef, 0xbf, 0xbd, 'b'};
    cr_assert_eq(h->n_tokens, 5);
    cr_assert_arr_eq(h->ids, expected, sizeof expected);
    td_shard_free(h);
    td_source_close(s);
}

Test(data, text_unit_file_is_one_row) {
    corpus c = {0};
    td_strbuf *row = new_row(&c);
    uint64_t rnd = 5;
    for (int i = 0; i < 300000; i++)
        td_strbuf_printf(row, "%c%s", 'a' + (int)(test_random(&rnd) % 26), i % 9 ? "" : "\r\n");
    fixture_file(&F, "a.txt", row->data, row->len);
    F.cfg.data.text_unit = TD_TEXT_FILE;
    F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
    F.cfg.data.max_length = 1000;
    check_against(&c, 1, false);
    td_source *s = open_source();
    td_shard *h = next_shard(s, false);
    cr_assert_eq(h->row_end, 1);
    td_shard_free(h);
    cr_assert_null(next_shard(s, false));
    td_source_close(s);
    corpus_free(&c);
}

/* ---- overflow and packing ---- */

Test(data, overflow) {
    fixture_text(&F, "a.txt", "0123456789\nabc\n01234567\n\n");
    F.cfg.data.max_length = 4;
    static const struct {
        td_overflow how;
        int32_t n;
        struct {
            int64_t row, start;
            int32_t n_tokens, n_rows;
        } s[8];
    } cases[] = {
        {TD_OVERFLOW_TRUNCATE, 4, {{0, 0, 4, 3}, {1, 0, 3, 2}, {2, 0, 4, 3}, {3, 0, 0, 0}}},
        {TD_OVERFLOW_SKIP, 2, {{1, 0, 3, 2}, {3, 0, 0, 0}}},
        {TD_OVERFLOW_SPLIT,
         7,
         {{0, 0, 4, 3},
          {0, 4, 4, 3},
          {0, 8, 2, 1},
          {1, 0, 3, 2},
          {2, 0, 4, 3},
          {2, 4, 4, 3},
          {3, 0, 0, 0}}}};
    for (size_t k = 0; k < TD_ARRAY_LEN(cases); k++) {
        F.cfg.data.overflow = cases[k].how;
        td_source *s = open_source();
        td_shard *h = next_shard(s, true);
        check_shard(h);
        cr_assert_eq(h->n_samples, cases[k].n);
        cr_assert_eq(h->n_overflow_rows, 2);
        for (int32_t i = 0; i < h->n_samples; i++) {
            cr_assert_eq(h->samples[i].row, cases[k].s[i].row);
            cr_assert_eq(h->samples[i].start, cases[k].s[i].start);
            cr_assert_eq(h->samples[i].n_tokens, cases[k].s[i].n_tokens);
            cr_assert_eq(h->samples[i].n_rows, cases[k].s[i].n_rows);
        }
        td_shard_free(h);
        td_source_close(s);
    }
}

Test(data, packing) {
    /* Lengths 3 9 1 5 5 0 2 at 10 tokens: 9 | 5 5 | 3 2; 1 and 0 tokens have nothing to predict. */
    fixture_text(&F, "a.txt", "333\n999999999\n1\n55555\n55555\n\n22\n");
    F.lim.batch_tokens = 10;
    td_source *s = open_source();
    td_shard *h = next_shard(s, true);
    check_shard(h);
    static const int32_t order[] = {1, 3, 4, 0, 6}, sizes[] = {1, 2, 2};
    cr_assert_eq(h->n_batches, 3);
    for (int b = 0; b < 3; b++)
        cr_assert_eq(h->batches[b].n_samples, sizes[b]);
    cr_assert_arr_eq(h->batch_samples, order, sizeof order);
    td_shard_free(h);
    td_source_close(s);

    F.lim.batch_tokens = 4; /* longer samples are micro-batches of their own */
    s = open_source();
    h = next_shard(s, true);
    check_shard(h);
    cr_assert_eq(h->n_batches, 5);
    cr_assert_eq(h->batches[0].n_tokens, 9);
    td_shard_free(h);
    td_source_close(s);
}

/* ---- formats ---- */

Test(data, format_is_found) {
    static const struct {
        const char *name, *content;
        td_data_format format;
    } cases[] = {{"a.JSONL", "{\"text\":\"x\"}", TD_FORMAT_JSONL},
                 {"a.ndjson", "{\"text\":\"x\"}", TD_FORMAT_JSONL},
                 {"a.txt", "{\"text\":\"x\"}", TD_FORMAT_TEXT},
                 {"plain", "hello", TD_FORMAT_TEXT},
                 {"rows", "\xef\xbb\xbf\n  {\"text\":\"x\"}", TD_FORMAT_JSONL}};
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        fixture_text(&F, cases[i].name, cases[i].content);
        td_source *s = open_source();
        cr_assert_eq(td_source_format(s), cases[i].format, "%s", cases[i].name);
        td_source_close(s);
        bool needs = false;
        cr_assert_eq(td_source_needs_tokenizer(&F.cfg, &needs, NULL), TD_OK);
        cr_assert(needs);
    }
    F.cfg.data.ids_field = "text";
    bool needs = true;
    cr_assert_eq(td_source_needs_tokenizer(&F.cfg, &needs, NULL), TD_OK);
    cr_assert_not(needs);
}

Test(data, unusable_files_are_refused_by_name) {
    static const struct {
        const char *name, *content;
        size_t n;
        const char *says;
    } cases[] = {
        {"a.jsonl.gz", "x", 1, "does not begin as a gzip file"},
        {"a.zst", "x", 1, "does not begin as a zstd file"},
        {"a.jsonl", "\x1f\x8b\x08\0\0\0", 6, "truncated: the file ends at byte 6"},
        {"b.txt", "\x28\xb5\x2f\xfd\0", 5, "truncated: the file ends at byte 5"},
        {"b.jsonl.xz", "x", 1, "is xz-compressed, which is not read"},
        {"b.parquet", "x", 1, "tdgen prepare "},
        {"b.idx", "x", 1, "name the .bin file"},
        {"b.jsonl", "PAR1\0\0", 6, "Parquet"},
        {"c.jsonl", "", 0, "is empty"},
        {"d.jsonl", "\n \n", 3, "has no rows"},
        {"e.txt", "\xef\xbb\xbf", 3, "has no rows"},
        {"blob", "ab\0cd", 5, "data.format"},
        {"f.json", "[\n{\"text\":\"x\"}]", 15, "one JSON array"},
        {"g.json", "{\n\"text\":\"x\"}", 13, "jq -c ."},
    };
    td_error err;
    td_source *s = NULL;
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        fixture_file(&F, cases[i].name, cases[i].content, cases[i].n);
        cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_DATA, "%s",
                     cases[i].name);
        cr_assert(strstr(err.text, cases[i].says), "%s: %s", cases[i].name, err.text);
        cr_assert(strstr(err.text, F.path), "%s", err.text);
    }
    strcpy(F.path, F.dir);
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "looks like the folder of a model"), "%s", err.text);
    strcat(F.path, "/nothing");
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "No such file"), "%s", err.text);
    cr_assert_null(s);
}

Test(data, keys_that_the_format_cannot_serve) {
    td_error err;
    td_source *s = NULL;
    fixture_text(&F, "a.txt", "x\n");
    F.cfg.data.id_field = "id";
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, "data.id_field"), "%s", err.text);
    F.cfg.data.id_field = NULL;
    F.cfg.data.append_eos = true;
    F.lim.eos_id = -1;
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, "data.append_eos"), "%s", err.text);
    td_dataset_stats st;
    cr_assert_eq(td_dataset_stats_sample(&F.cfg, F.tok, &F.lim, &st, &err), TD_E_CONFIG);
    F.lim.eos_id = F.lim.n_vocab;
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, "data.append_eos"), "%s", err.text);
    F.cfg.data.append_eos = false;
    cr_assert_eq(td_source_open(&F.cfg, NULL, &F.lim, &s, &err), TD_E_MODEL);
    cr_assert(strstr(err.text, "tokenizer.json"), "%s", err.text);
    fixture_text(&F, "a.jsonl", "{\"text\":\"x\"}\n");
    F.cfg.data.text_unit = TD_TEXT_FILE;
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, "data.text_unit"), "%s", err.text);
}

Test(data, a_file_that_shrinks_is_an_error) {
    td_strbuf b = {0};
    for (int i = 0; i < 400000; i++)
        td_strbuf_puts(&b, "line\n");
    fixture_file(&F, "a.txt", b.data, b.len);
    td_source *s = open_source();
    fixture_file(&F, "a.txt", b.data, 100); /* the same file, cut */
    td_error err;
    td_shard *h = NULL;
    cr_assert_eq(td_source_next(s, true, &h, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "do not change a dataset"), "%s", err.text);
    cr_assert_eq(td_source_next(s, true, &h, &err), TD_E_INTERNAL);
    td_source_close(s);
    td_strbuf_free(&b);
}

Test(data, fingerprint_covers_both_ends) {
    size_t n = 5 << 20;
    char *text = malloc(n);
    memset(text, 'x', n);
    uint64_t seen[4], size;
    static const size_t at[] = {0, 100, (5 << 20) - 1};
    for (int i = 0; i < 4; i++) {
        if (i)
            text[at[i - 1]] = 'y';
        fixture_file(&F, "a.txt", text, n);
        td_source *s = open_source();
        cr_assert_eq(td_source_fingerprint(s, &size, &seen[i], NULL), TD_OK);
        cr_assert_eq(size, n);
        for (int j = 0; j < i; j++)
            cr_assert_neq(seen[i], seen[j]);
        td_source_close(s);
    }
    free(text);
}
