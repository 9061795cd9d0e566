/* `tdgen tokenize` as a person runs it: arguments, stdin, stdout, stderr, exit code. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "test/common.h"
#include "app/commands.h"
#include "base/status.h"
#include "base/file.h"
#include "base/memory.h"
#include "test/tokenizer/fixture.h"

typedef struct outcome {
    int code;
    char out[4096], err[1024];
    size_t n_out;
} outcome;

static char *dir;

static char *in_dir(const char *name) {
    return td_asprintf("%s/%s", dir, name);
}

static size_t take_file(const char *name, char *buf, size_t size) {
    size_t n;
    char *data = test_read_file(dir, name, &n), *path = in_dir(name);
    cr_assert(data);
    n = TD_MIN(n, size - 1);
    memcpy(buf, data, n);
    buf[n] = '\0';
    unlink(path);
    free(path);
    free(data);
    return n;
}

/* In a child, since the command reads and writes the standard streams. */
static outcome run(char **argv, const void *input, size_t n) {
    outcome o = {0};
    int argc = 0, status;
    while (argv[argc])
        argc++;
    test_write_file(dir, "in", input, n);
    fflush(NULL);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        char *in = in_dir("in"), *out = in_dir("out"), *err = in_dir("err");
        bool ok =
            freopen(in, "rb", stdin) && freopen(out, "wb", stdout) && freopen(err, "wb", stderr);
        free(in);
        free(out);
        free(err);
        int code = ok ? td_cmd_tokenize(argc, argv) : 99;
        fflush(NULL);
        _exit(code);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status));
    o.code = WEXITSTATUS(status);
    o.n_out = take_file("out", o.out, sizeof o.out);
    take_file("err", o.err, sizeof o.err);
    return o;
}

static void set_up(void) {
    dir = test_temp_dir();
    char *vocab = fixture_byte_vocab(",\"ab\":256");
    char *json = fixture_json(&(fixture_parts){
        .vocab = vocab,
        .merges = "[\"a b\"]",
        .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}",
        .decoder = "{\"type\":\"ByteLevel\"}",
        .added = "[{\"id\":257,\"content\":\"<s>\",\"special\":true}]",
        .post_processor =
            "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},"
            "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[257]}}}"});
    test_write_file(dir, "tokenizer.json", json, strlen(json));
    free(json);
    free(vocab);
}

TestSuite(tokenize_command, .init = set_up);

#define RUN(input, ...) run((char *[]){"tokenize", __VA_ARGS__, NULL}, input, sizeof(input) - 1)

Test(tokenize_command, lines_and_rows) {
    outcome o =
        RUN("ab\n{\"text\": \"a\\nb\"}\n\n{\"n\":1,\"text\":\"\\u0000ab<s>\"}\na\0b\r\nlast",
            "--model", dir);
    cr_expect_eq(o.code, TD_EXIT_OK, "%s", o.err);
    cr_expect_str_eq(o.out, "[257,256]\n[257,97,10,98]\n[257]\n[257,0,256,257]\n[257,97,0,98]\n"
                            "[257,108,97,115,116]\n");
    o = RUN("ab\n", "--no-special", "--model", dir);
    cr_expect_str_eq(o.out, "[256]\n");
    o = RUN("", "--model", dir);
    cr_expect_eq(o.code, TD_EXIT_OK);
    cr_expect_eq(o.n_out, 0);
}

Test(tokenize_command, decode) {
    outcome o = RUN("[257,256,0,10]\n[]\n[195, 169]\n[257]", "--model", dir, "--decode");
    cr_expect_eq(o.code, TD_EXIT_OK, "%s", o.err);
    cr_expect_str_eq(o.out, "\"<s>ab\\u0000\\n\"\n\"\"\n\"é\"\n\"<s>\"\n");
    o = RUN("[257,256]\n", "--model", dir, "--decode", "--no-special");
    cr_expect_str_eq(o.out, "\"ab\"\n");
}

Test(tokenize_command, long_line) {
    enum { N = 100000 };
    char *text = malloc(2 * N);
    for (int i = 0; i < N; i++)
        memcpy(text + 2 * i, i % 50 == 49 ? " a" : "ab", 2);
    outcome o = run((char *[]){"tokenize", "--model", dir, NULL}, text, 2 * N);
    cr_expect_eq(o.code, TD_EXIT_OK);
    cr_expect_eq(strncmp(o.out, "[257,256,256,", 13), 0);
    free(text);
}

Test(tokenize_command, unreadable_lines_are_named) {
    static const struct {
        const char *in, *says;
        bool decode;
    } cases[] = {
        {"ab\n{\"text\": 3}\nab\n",
         "stdin line 2: row: \"text\" must be a string, but is an integer", false},
        {"{\"txt\": \"a\"}\n", "stdin line 1: row: the key \"text\" is missing", false},
        {"a\nb\n{\"text\"\n", "stdin line 3: row: not valid JSON", false},
        {"[1]\nab\n", "stdin line 2: ids: not valid JSON", true},
        {"{}\n", "stdin line 1: expected a JSON array of token ids, but it is an object", true},
        {"[0,1,258]\n", "stdin line 1: item 2 is not a token id (0 to 257)", true},
        {"[\"a\"]\n", "stdin line 1: item 0 is not a token id", true},
        {"[-1]\n", "stdin line 1: item 0 is not a token id", true},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        char *argv[] = {"tokenize", "--model", dir, cases[i].decode ? "--decode" : NULL, NULL};
        outcome o = run(argv, cases[i].in, strlen(cases[i].in));
        cr_expect_eq(o.code, TD_EXIT_DATA, "case %zu", i);
        cr_expect(strstr(o.err, cases[i].says), "case %zu: %s", i, o.err);
    }
    outcome o = RUN("ab\n{\n", "--model", dir);
    cr_expect_str_eq(o.out, "[257,256]\n"); /* what came before is done */
}

Test(tokenize_command, usage_and_model) {
    outcome o = RUN("", "--help");
    cr_expect_eq(o.code, TD_EXIT_OK);
    cr_expect(strstr(o.out, "usage: tdgen tokenize --model DIR") && strstr(o.out, "Exit codes:"));
    o = RUN("", "--no-special");
    cr_expect_eq(o.code, TD_EXIT_CONFIG);
    cr_expect(strstr(o.err, "--model DIR is missing"), "%s", o.err);
    o = RUN("", "--modle", dir);
    cr_expect_eq(o.code, TD_EXIT_CONFIG);
    cr_expect(strstr(o.err, "unknown argument \"--modle\""), "%s", o.err);
    o = RUN("", "--model");
    cr_expect_eq(o.code, TD_EXIT_CONFIG);
    cr_expect(strstr(o.err, "--model needs a folder"), "%s", o.err);
    o = RUN("a\n", "--model", "/nonexistent/folder");
    cr_expect_eq(o.code, TD_EXIT_MODEL);
    cr_expect(strstr(o.err, "/nonexistent/folder/tokenizer.json"), "%s", o.err);
}
