/* Leaf helpers: number formats, checked arithmetic, names, errors, atomic files. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/dtype.h"
#include "base/json.h"
#include "base/file.h"
#include "base/format.h"
#include "base/mapped.h"
#include "base/memory.h"
#include "base/path_list.h"
#include "base/text.h"

Test(dtype, f16_round_trips_every_value) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = td_f16_to_f32((uint16_t)h);
        if (isnan(f))
            continue;
        cr_assert_eq(td_f32_to_f16(f), h, "half %04x gave %04x", h, td_f32_to_f16(f));
    }
}

Test(dtype, f16_rounding_is_nearest_even) {
    /* Between two neighbours the midpoint goes to the even one, everything else to the nearer. */
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float a = td_f16_to_f32((uint16_t)h), b = td_f16_to_f32((uint16_t)(h + 1));
        float mid = (float)(((double)a + b) / 2);
        cr_assert_eq(td_f32_to_f16(mid), h & 1 ? h + 1 : h);
        cr_assert_eq(td_f32_to_f16(nextafterf(mid, a)), h);
        cr_assert_eq(td_f32_to_f16(nextafterf(mid, b)), h + 1);
    }
    cr_assert_eq(td_f32_to_f16(65519.996f), 0x7bff);
    cr_assert_eq(td_f32_to_f16(65520.0f), 0x7c00);
    cr_assert_eq(td_f32_to_f16(-INFINITY), 0xfc00);
}

Test(dtype, bf16_rounding_is_nearest_even) {
    cr_assert_eq(td_f32_to_bf16(1.0f), 0x3f80);
    cr_assert_eq(td_f32_to_bf16(1.00390625f), 0x3f80); /* midpoint, even below */
    cr_assert_eq(td_f32_to_bf16(1.01171875f), 0x3f82); /* midpoint, even above */
    cr_assert_eq(td_f32_to_bf16(nextafterf(1.00390625f, 2)), 0x3f81);
    cr_assert(isnan(td_bf16_to_f32(td_f32_to_bf16(NAN))));
    cr_assert_eq(td_f32_to_bf16(INFINITY), 0x7f80);
}

Test(util, checked_arithmetic) {
    size_t r = 7;
    cr_assert_not(td_mul_size(SIZE_MAX / 2, 3, &r));
    cr_assert_eq(r, 7);
    cr_assert(td_mul_size(6, 7, &r));
    cr_assert_eq(r, 42);
    cr_assert_not(td_add_size(SIZE_MAX, 1, &r));
    cr_assert_null(td_realloc_array(NULL, SIZE_MAX, 2));
}

Test(util, nearest_name) {
    const char *const names[] = {"batch_tokens", "seed", "worker_id"};
    cr_assert_str_eq(td_nearest_name("batch_token", names, 3), "batch_tokens");
    cr_assert_str_eq(td_nearest_name("sede", names, 3), "seed");
    cr_assert_null(td_nearest_name("zzzzzzzz", names, 3));
}

Test(util, error_prefix_keeps_code_and_adds_context) {
    td_error e;
    cr_assert_eq(td_error_set(&e, TD_E_DATA, "row %d", 3), TD_E_DATA);
    cr_assert_eq(td_error_prefix(&e, "file %s", "x"), TD_E_DATA);
    cr_assert_str_eq(e.text, "file x: row 3");
    cr_assert_eq(td_error_set(NULL, TD_E_MODEL, "dropped"), TD_E_MODEL);
}

/* Writes beyond it fail with EFBIG. Returns the limit before. */
static struct rlimit file_size_limit(rlim_t n_bytes) {
    struct rlimit old, now;
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    now = (struct rlimit){n_bytes, old.rlim_max};
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &now), 0);
    return old;
}

Test(util, atomic_write_leaves_the_old_file_when_it_fails) {
    char dir[] = "/tmp/tdgen-test-XXXXXX";
    cr_assert(mkdtemp(dir));
    char *path = td_asprintf("%s/f", dir);
    td_error e;
    cr_assert_eq(td_file_write_atomic(path, "one", 3, true, &e), TD_OK);
    const struct rlimit before = file_size_limit(2);
    cr_assert_eq(td_file_write_atomic(path, "two", 3, true, &e), TD_E_OUTPUT);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    cr_assert(strstr(e.text, "f.tmp-"), "%s", e.text);
    char *data;
    size_t n;
    cr_assert_eq(td_file_read(path, 100, TD_E_DATA, &data, &n, &e), TD_OK);
    cr_assert_eq(n, 3);
    cr_assert_str_eq(data, "one");
    cr_assert_eq(td_file_read(path, 2, TD_E_DATA, &data, &n, &e), TD_E_DATA);
    cr_assert(strstr(e.text, "too large"));
    cr_assert_eq(unlink(path) | rmdir(dir), 0, "a temporary file was left");
    free(data);
    free(path);
}

Test(util, what_is_opened_is_regular_and_what_is_created_is_no_link) {
    char dir[] = "/tmp/tdgen-test-XXXXXX";
    cr_assert(mkdtemp(dir));
    char *fifo = td_asprintf("%s/fifo", dir), *link = td_asprintf("%s/link", dir);
    char *file = td_asprintf("%s/file", dir), *data;
    td_error e;
    size_t n;
    int fd;
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    cr_assert_eq(symlink(file, link), 0);
    alarm(20); /* a FIFO without a writer blocks whoever simply opens it */
    cr_assert_eq(td_file_read(fifo, 100, TD_E_MODEL, &data, &n, &e), TD_E_MODEL);
    cr_assert(strstr(e.text, "not a regular file"), "%s", e.text);
    cr_assert_eq(td_file_create(fifo, TD_CREATE_KEEP, &fd, &e), TD_E_OUTPUT);
    cr_assert_eq(td_file_create(link, TD_CREATE_APPEND, &fd, &e), TD_E_OUTPUT);
    cr_assert(strstr(e.text, "symbolic link"), "%s", e.text);
    cr_assert_not(td_path_exists(file), "it was created through the link");
    cr_assert_eq(td_file_create(file, TD_CREATE_NEW, &fd, &e), TD_OK);
    cr_assert_eq(td_temp_check(fd, file, &e), TD_OK);
    cr_assert_eq(unlink(file), 0);
    cr_assert_eq(td_temp_check(fd, file, &e), TD_E_OUTPUT);
    close(fd);
    int other;
    cr_assert_eq(td_file_create(file, TD_CREATE_NEW, &fd, &e), TD_OK);
    cr_assert_eq(rename(file, fifo), 0);
    cr_assert_eq(td_file_create(file, TD_CREATE_NEW, &other, &e), TD_OK);
    cr_assert_eq(td_temp_check(fd, file, &e), TD_E_OUTPUT);
    cr_assert(strstr(e.text, "another process"), "%s", e.text);
    cr_assert_eq(td_file_create(file, TD_CREATE_NEW, &fd, &e), TD_E_OUTPUT);
    cr_assert_eq(unlink(file) | unlink(link) | unlink(fifo) | rmdir(dir), 0);
    free(fifo);
    free(link);
    free(file);
}

Test(util, temporary_names_are_told_from_others) {
    char *a = td_temp_path("shard-000000.safetensors"),
         *b = td_temp_path("shard-000000.safetensors");
    cr_assert_str_neq(a, b);
    cr_assert(td_temp_is_name(a));
    cr_assert(td_temp_is_name("manifest.json.tmp"));
    cr_assert_not(td_temp_is_name("shard-000000.safetensors"));
    cr_assert_not(td_temp_is_name("x.tmp-0123456789abcde"));
    cr_assert_not(td_temp_is_name("x.tmp-0123456789abcdeg"));
    cr_assert_not(td_temp_is_name(".tmp"));
    free(a);
    free(b);
}

Test(status, what_the_system_refused_is_never_wrong_content) {
    td_error e;
    cr_assert_eq(td_error_errno(&e, TD_E_VERIFY, EMFILE, "cannot open x"), TD_E_OUTPUT);
    cr_assert_eq(e.code, TD_E_OUTPUT);
    cr_assert_eq(td_error_errno(&e, TD_E_MODEL, EMFILE, "cannot open x"), TD_E_MODEL);
    cr_assert_eq(td_error_set(&e, TD_E_VERIFY, "x is damaged"), TD_E_VERIFY);
}

Test(mapped, an_address_has_the_file_it_belongs_to) {
    static char a[100], b[100];
    td_status code = TD_OK;
    td_mapped_add(a, sizeof a, "a", TD_E_MODEL);
    td_mapped_add(b, sizeof b, "b", TD_E_DATA);
    cr_assert_str_eq(td_mapped_find(a + 99, &code), "a");
    cr_assert_eq(code, TD_E_MODEL);
    cr_assert_str_eq(td_mapped_find(b, &code), "b");
    td_mapped_remove(a);
    cr_assert_null(td_mapped_find(a + 50, &code));
    td_mapped_remove(b);
}

Test(json, errors_name_file_key_and_expectation) {
    json_t *j;
    td_error e;
    const char text[] = "{\"a\": 3, \"s\": \"x\\u0000y\", \"b\": true, \"n\": null}";
    cr_assert_eq(td_json_parse(text, strlen(text), "f.json", TD_E_MODEL, &j, &e), TD_OK);
    int64_t i = -1;
    cr_assert_eq(td_json_get_int(j, "a", 0, 2, "f.json", TD_E_MODEL, &i, &e), TD_E_MODEL);
    cr_assert_str_eq(e.text, "f.json: \"a\" is 3, expected 0 to 2");
    cr_assert_eq(td_json_get_int(j, "s", 0, 2, "f.json", TD_E_MODEL, &i, &e), TD_E_MODEL);
    cr_assert_str_eq(e.text, "f.json: \"s\" must be an integer, but is a string");
    cr_assert_eq(td_json_get_int(j, "zz", 0, 2, "f.json", TD_E_MODEL, &i, &e), TD_E_MODEL);
    cr_assert(strstr(e.text, "\"zz\" is missing"));
    cr_assert_eq(td_json_opt_int(j, "n", 0, 2, "f.json", TD_E_MODEL, &i, &e), TD_OK);
    cr_assert_eq(i, -1);
    cr_assert_eq(json_string_length(json_object_get(j, "s")), 3);
    json_decref(j);
    cr_assert_eq(td_json_parse("{,}", 3, "f.json", TD_E_MODEL, &j, &e), TD_E_MODEL);
    cr_assert(strstr(e.text, "f.json: not valid JSON at line 1"));
}

Test(util, integers_of_the_command_line) {
    long long v = -7;
    cr_expect(td_parse_int("16", 1, 16, &v) && v == 16);
    static const char *const bad[] = {"", "x", "3x", "17", "0", "99999999999999999999", "1.5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect(!td_parse_int(bad[i], 1, 16, &v) && v == 16, "%s", bad[i]);
}

Test(util, lists_of_paths) {
    td_path_item *items;
    size_t n;
    td_error e;
    cr_assert_eq(
        td_path_list_split(" a b.jsonl ,d/*.txt,\"x, \\\"y\\\" \\\\.z\" , c", &items, &n, &e),
        TD_OK);
    static const char *const want[] = {"a b.jsonl", "d/*.txt", "x, \"y\" \\.z", "c"};
    cr_assert_eq(n, 4);
    td_strbuf again = {0};
    for (size_t i = 0; i < n; i++) {
        cr_expect_str_eq(items[i].text, want[i]);
        cr_expect_eq(items[i].quoted, i == 2);
        cr_assert(td_path_list_join(&items[i], &again));
    }
    cr_expect_str_eq(again.data, "a b.jsonl, d/*.txt, \"x, \\\"y\\\" \\\\.z\", c");
    td_path_list_free(items, n);
    static const char *const bad[][2] = {{"a,,b", "is empty"},
                                         {"a,", "is empty"},
                                         {"", "is empty"},
                                         {"\"a", "not closed"},
                                         {"\"a\" b", "expected a comma"},
                                         {"\"\"", "is empty"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_expect_eq(td_path_list_split(bad[i][0], &items, &n, &e), TD_E_CONFIG, "%s", bad[i][0]);
        cr_expect(strstr(e.text, bad[i][1]), "%s: %s", bad[i][0], e.text);
    }
    td_strbuf_free(&again);
}

Test(text, words_of_a_shell) {
    static const char *const cases[][2] = {{"a/b-1.jsonl", "a/b-1.jsonl"},
                                           {"my data", "'my data'"},
                                           {"it's", "'it'\\''s'"},
                                           {"$(x)`y`;*", "'$(x)`y`;*'"},
                                           {"", "''"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_strbuf b = {0};
        cr_assert(td_text_shell_quote(cases[i][0], &b));
        cr_expect_str_eq(b.data, cases[i][1]);
        td_strbuf_free(&b);
    }
}

Test(text, long_lines_flow) {
    static const char lines[] = "Model:           short\n"
                                "Dataset:         1 2 3 4 5 6 7 8 9 a b c d e f\n"
                                "  group 0   cpu:0 1 2 3 4 5 6 7 8 9\n"
                                "  - one two three four five six seven\n"
                                "\n"
                                "a_word_that_is_longer_than_a_line_stays_whole x\n";
    static const char want[] = "Model:           short\n"
                               "Dataset:         1 2 3 4 5 6 7\n"
                               "                 8 9 a b c d e\n"
                               "                 f\n"
                               "  group 0   cpu:0 1 2 3 4 5 6\n"
                               "            7 8 9\n"
                               "  - one two three four five\n"
                               "    six seven\n"
                               "\n"
                               "a_word_that_is_longer_than_a_line_stays_whole\n"
                               "  x\n";
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    td_text_flow(lines, 30, out);
    fclose(out);
    cr_expect_str_eq(text, want);
    free(text);
}

/* docs/reliability.md tells the exit codes in the words of the table that --help prints: all of them, and
 * no other. */
Test(status, exit_codes_are_documented_once) {
    static const char *const rows[] = {
#define ROW(NAME, code, text) "\n| " #code " | " text " |\n",
        TD_EXIT_CODES(ROW)
#undef ROW
    };
    char *docs, *readme;
    size_t n;
    td_error err;
    cr_assert_eq(
        td_file_read(TD_SOURCE_DIR "/docs/reliability.md", 1 << 20, TD_E_CONFIG, &docs, &n, &err),
        TD_OK);
    char *begin = strstr(docs, "## Exit codes\n");
    cr_assert_not_null(begin);
    char *end = strstr(begin, "\n## ");
    cr_assert_not_null(end);
    *end = '\0';
    for (size_t i = 0; i < TD_ARRAY_LEN(rows); i++)
        cr_expect(strstr(begin, rows[i]), "docs/reliability.md has no row%s", rows[i]);
    int n_rows = 0;
    for (char *at = begin; (at = strstr(at, "\n| ")); at++)
        n_rows += at[3] >= '0' && at[3] <= '9';
    cr_expect_eq(n_rows, (int)TD_ARRAY_LEN(rows));
    /* The README sends the reader there, and has no list that could say something else. */
    cr_assert_eq(td_file_read(TD_SOURCE_DIR "/README.md", 1 << 20, TD_E_CONFIG, &readme, &n, &err),
                 TD_OK);
    cr_expect_null(strstr(readme, "1 internal error"));
    free(docs);
    free(readme);
}
