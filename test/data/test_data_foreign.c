/* Files that are not read, rows that are none: named, with what helps. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "suite.h"
#include "base/log.h"
#include "base/memory.h"

TestSuite(data_foreign, .init = data_setup, .fini = data_teardown);

/* `says` holds % for the folder. */
static void refuse(const char *name, const void *data, size_t n, const char *says) {
    char want[600];
    size_t at = 0;
    td_source *s = NULL;
    td_error err = {0};
    fixture_file(&F, name, data, n);
    for (const char *p = says; *p; p++)
        if (*p == '%')
            at += (size_t)snprintf(want + at, sizeof want - at, "%s", F.dir);
        else
            want[at++] = *p;
    want[at] = '\0';
    td_status rc = td_source_open(&F.cfg, F.tok, &F.lim, &s, &err);
    cr_expect_eq(rc, TD_E_DATA, "%s: %d", name, rc);
    cr_expect(strstr(err.text, want), "%s: not '%s': %s", name, want, err.text);
    cr_expect(strstr(err.text, F.dir), "%s", err.text);
    td_source_close(s);
}

Test(data_foreign, by_content_and_by_name) {
    F.cfg.model.path = "my models/it's";
    static const struct {
        const char *name, *content;
        size_t n;
        const char *says;
    } cases[] = {
        {"my data.jsonl", "PAR1\0\0", 6,
         "is a Parquet file, which is not read directly; this makes a token file of it: tdgen prepare "
         "'%/my data.jsonl' --model 'my models/it'\\''s' --out '%/my data.safetensors' (then set "
         "data.path = %/my data.safetensors)"},
        {"a.pq", "x", 1, "a Parquet file"},
        {"b", "ARROW1\0\0", 8, "an Arrow file"},
        {"c", "\xff\xff\xff\xff\x10\0\0\0", 8, "an Arrow stream"},
        {"d.csv", "text,label\n", 11, "--out %/d.safetensors"},
        {"d.csv", "text,label\n", 11, "data.format = text reads its lines as texts"},
        {"e.tsv", "a\tb\n", 4, "tab-separated"},
        {"f", "PK\x03\x04\0\0[Content_Types].xml", 25, "a spreadsheet"},
        {"f.xlsx", "x", 1, "save it as CSV"},
        {"g", "PK\x03\x04\0\0archive/data.pkl", 22, "a PyTorch file"},
        {"h", "PK\x03\x04\0\0arr_0.npy", 15, "a NumPy array"},
        {"i i", "PK\x03\x04\0\0x.txt", 11, "unzip '%/i i'"},
        {"j", "\x93NUMPY\x01\0", 8, "a NumPy array"},
        {"k", "SQLite format 3\0", 16, "an SQLite database"},
        {"l", "\x80\x04\x95x", 4, "loading a pickle runs the code in it"},
        {"m.pt", "x", 1, "a PyTorch file"},
        {"n", "\x89HDF\r\n\x1a\n", 8, "an HDF5 file"},
        {"o", "BZh91AY&SYxx", 12, "bunzip2 -k %/o"},
        {"p.jsonl", "\xff\xfe{\0}\0", 6, "is UTF-16 text"},
        {"q.jsonl", "{\0\"\0t\0\"\0:\0\"\0x\0\"\0}\0", 18,
         "iconv -f UTF-16LE -t UTF-8 %/q.jsonl > %/q.utf8.jsonl"},
        {"r.txt", "\0h\0e\0l\0l\0o", 10, "UTF-16BE"},
        {"s.txt", "\xff\xfe\0\0x\0\0\0", 8, "UTF-32"},
        {"t", "[\n  {\"text\": 1}]", 16, "one JSON array"},
        {"u.json", "[{\"text\": \"a\"}, {\"text\": \"b\"}]", 30, "tdgen prepare %/u.json"},
        {"v.json", "[\n  {\"text\": 1}]", 16, "one JSON array"},
        {"w.jsonl", "[{\"text\": \"a\"},\n{\"text\": \"b\"}]\n", 31, "one JSON array"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++)
        refuse(cases[i].name, cases[i].content, cases[i].n, cases[i].says);
    /* In a tar archive the name is 257 bytes in. */
    char tar[512] = "a.txt";
    memcpy(tar + 257, "ustar", 5);
    td_strbuf b = {0};
    put_gzip(&b, tar, sizeof tar);
    refuse("x.tar.gz", b.data, b.len, "tar -xf %/x.tar.gz");
    td_strbuf_free(&b);
    /* A text may begin as they do, and a CSV is one when that is asked for. */
    static const char *const fine[] = {"PK is a text", "PAR1", "[Chapter 1]\n{", "BZh91", "%PDF-"};
    for (size_t i = 0; i < TD_ARRAY_LEN(fine); i++) {
        fixture_text(&F, "fine", fine[i]);
        td_source_close(open_source());
    }
    F.cfg.data.format = TD_FORMAT_TEXT;
    fixture_text(&F, "a.csv", "text,label\n");
    td_source *s = open_source();
    cr_assert_eq(td_source_format(s), TD_FORMAT_TEXT);
    td_source_close(s);
}

Test(data_foreign, rows_that_are_none) {
    static const char *const cases[][2] = {
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n",
         "a.jsonl:1: the row is a conversation (\"messages\"), which the chat template of the model makes "
         "tokens of: tdgen prepare %/a.jsonl --model DIR --out %/a.safetensors (then"},
        {"{\"id\":1,\"conversations\":[{\"from\":\"human\",\"value\":\"x\"}]}\n",
         "(\"conversations\")"},
        {"{\"messages\":[]}\n", "(\"messages\")"},
        {"{\"chat log\":[{\"role\":\"user\",\"content\":\"x\"}]}\n",
         "--out %/a.safetensors --messages-field 'chat log'"},
        {"{\"text\":[{\"role\":\"user\",\"content\":\"x\"}]}\n", "--messages-field text"},
        {"{\"instruction\":\"a\",\"output\":\"b\"}\n",
         "set data.text_field, or data.prompt_field = instruction and data.completion_field = output"},
        {"{\"text\":null}\n",
         "is null; a row without text can be left out: run.on_bad_sample = skip"},
        {"{\"text\":7}\n", "is an integer; write it as a string"},
        {"{\"text\":{\"a\":\"b\"}}\n", "is an object; a nested text must be brought to the top"},
        {"{\"text\":[\"a\"]}\n", "is an array; several texts must be joined"},
        {"\"a\"\n\"b\"\n",
         "but is a string; make objects of such rows: jq -c '{text: .}' %/a.jsonl"},
        {"[\"a\"]\n[\"b\"]\n", "but is an array; make objects of such rows"},
        {"[1,2]\n[3]\n", "set data.ids_field = input_ids"},
        {"[{\"role\":\"user\",\"content\":\"x\"}]\n", "jq -c '{messages: .}' %/a.jsonl"},
        {"{\"text\":\"a\"},\n{\"text\":\"b\"},\n",
         "a.jsonl:1: not valid JSON at column 13: end of file expected near ','; a comma ends the line"},
        {"{\n\"text\":\"a\"\n}\n", "jq -c . %/a.jsonl"},
        {"just a text\n", "set data.format = text"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        refuse("a.jsonl", cases[i][0], strlen(cases[i][0]), cases[i][1]);
        F.cfg.run.on_bad_sample = TD_BAD_FAIL;
    }
    td_source *s = NULL;
    td_error err = {0};
    fixture_text(&F, "a.jsonl", cases[0][0]);
    cr_assert_eq(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err), TD_E_DATA);
    cr_assert_not(strstr(err.text, "data.text_field"), "%s", err.text);
    F.cfg.run.on_bad_sample = TD_BAD_SKIP;
    refuse("a.jsonl", "{\"text\":null}\n\n{\"text\":3}\n", 26,
           "none of the first 2 rows is good (run.on_bad_sample = skip): ");
}

Test(data_foreign, why_nothing_is_recorded) {
    static const struct {
        td_data_counts n;
        const char *says;
    } cases[] = {
        {{0, 0, 5, 0}, "every row is bad"},
        {{0, 0, 0, 5}, "data.overflow = skip"},
        {{3, 0, 0, 0}, "empty or of one token"},
        {{3, 9, 3, 0}, "could not be computed"},
        {{3, 9, 0, 0}, "loss_mask"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_strbuf b = {0};
        td_data_why_nothing(&F.cfg, &cases[i].n, &b);
        cr_expect(strstr(b.data, cases[i].says), "%s", b.data);
        td_strbuf_free(&b);
    }
    const td_data_counts masked = {3, 9, 0, 0};
    td_strbuf b = {0};
    F.cfg.data.prompt_field = "p";
    F.cfg.data.completion_field = "c";
    td_data_why_nothing(&F.cfg, &masked, &b);
    cr_expect(strstr(b.data, "data.completion_field = c"), "%s", b.data);
    td_strbuf_clear(&b);
    F.cfg.data.max_length = 1;
    td_data_why_nothing(&F.cfg, &masked, &b);
    cr_expect(strstr(b.data, "data.max_length = 1"), "%s", b.data);
    td_strbuf_free(&b);
}
