/* `tdgen tokenize`: text on stdin to token ids on stdout, a line for a line, and back. */
#include "app/commands.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/log.h"
#include "tokenizer/tokenizer.h"
#include "base/memory.h"
#include "base/strbuf.h"

static const char help[] =
    "usage: tdgen tokenize --model DIR [--no-special] [--decode]\n"
    "\n"
    "Turns text into the token ids that the teacher in DIR sees, one JSON array per input line.\n"
    "DIR needs no more than tokenizer.json.\n"
    "\n"
    "Reads stdin, line by line, of any length:\n"
    "  a line that starts with '{' is a JSON object; its field \"text\" is the text\n"
    "  any other line is the text itself, without the line end (LF or CRLF)\n"
    "\n"
    "  --model DIR   Hugging Face model folder, or any folder with a tokenizer.json\n"
    "  --no-special  leave out the special tokens that the tokenizer puts around a text (such as\n"
    "                <s>); special tokens written in the text itself are always recognised\n"
    "  --decode      the other way: reads one JSON array of ids per line and writes the text as a\n"
    "                JSON string; with --no-special, special tokens are left out of the text\n"
    "  --help        this text\n"
    "\n"
    "Example, with the teacher that comes with tdgen:\n"
    "  $ echo 'In the beginning' | tdgen tokenize --model demo/teacher\n"
    "  $ echo '{\"text\": \"two\\nlines\"}' | tdgen tokenize --model demo/teacher\n"
    "  $ echo 'In the beginning' | tdgen tokenize --model demo/teacher |\n"
    "        tdgen tokenize --model demo/teacher --decode\n"
    "\n"
    "Exit codes: 0 done; 1 internal error; 2 wrong usage; 3 no usable tokenizer in DIR; 4 an "
    "input\n"
    "line cannot be read (the message names it; the lines before it are done); 6 stdout cannot be\n"
    "written.\n";

typedef struct options {
    const char *model;
    bool no_special, decode, help;
} options;

static td_status parse(int argc, char **argv, options *o, td_error *err) {
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0)
            o->help = true;
        else if (strcmp(a, "--no-special") == 0)
            o->no_special = true;
        else if (strcmp(a, "--decode") == 0)
            o->decode = true;
        else if (strncmp(a, "--model=", 8) == 0)
            o->model = a + 8;
        else if (strcmp(a, "--model") == 0 && i + 1 < argc)
            o->model = argv[++i];
        else if (strcmp(a, "--model") == 0)
            return td_error_set(err, TD_E_CONFIG, "--model needs a folder behind it");
        else
            return td_error_set(err, TD_E_CONFIG,
                                "unknown argument \"%s\"; tdgen tokenize --help shows the usage",
                                a);
    }
    if (!o->help && (!o->model || !*o->model))
        return td_error_set(err, TD_E_CONFIG,
                            "--model DIR is missing; tdgen tokenize --help shows the usage");
    return TD_OK;
}

typedef struct worker {
    const options *opt;
    td_tokenizer *tok;
    td_tok_scratch *scratch;
    td_ids ids;
    td_strbuf text, out;
} worker;

static td_status bad_line(td_error *err, long long line) {
    td_error_prefix(err, "stdin line %lld", line);
    return TD_E_DATA;
}

static void put_ids(const td_ids *ids, td_strbuf *out) {
    td_strbuf_puts(out, "[");
    for (size_t i = 0; i < ids->n; i++) {
        /* By hand: this is most of the output's cost. */
        char digits[12], *p = digits + sizeof digits;
        uint32_t v = (uint32_t)ids->ids[i];
        do
            *--p = (char)('0' + v % 10);
        while (v /= 10);
        if (i)
            *--p = ',';
        td_strbuf_append(out, p, (size_t)(digits + sizeof digits - p));
    }
    td_strbuf_puts(out, "]\n");
}

static td_status encode_line(worker *w, const char *line, size_t n, td_error *err) {
    json_t *row = NULL;
    const char *text = line;
    if (n > 0 && line[0] == '{') {
        td_status rc = td_json_parse(line, n, "row", TD_E_DATA, &row, err);
        if (rc != TD_OK)
            return rc;
        rc = td_json_get_str(row, "text", "row", TD_E_DATA, &text, err);
        if (rc != TD_OK) {
            json_decref(row);
            return rc;
        }
        n = json_string_length(json_object_get(row, "text"));
    }
    w->ids.n = 0;
    td_status rc =
        td_tokenizer_encode(w->tok, w->scratch, text, n, !w->opt->no_special, &w->ids, err);
    json_decref(row);
    if (rc == TD_OK)
        put_ids(&w->ids, &w->out);
    return rc;
}

static td_status decode_line(worker *w, const char *line, size_t n, td_error *err) {
    json_t *list = NULL;
    td_status rc = td_json_parse(line, n, "ids", TD_E_DATA, &list, err);
    if (rc != TD_OK)
        return rc;
    w->ids.n = 0;
    if (!json_is_array(list))
        rc = td_error_set(err, TD_E_DATA, "expected a JSON array of token ids, but it is %s",
                          td_json_type_name(list));
    for (size_t i = 0; rc == TD_OK && i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id >= td_tokenizer_n_vocab(w->tok)) {
            rc = td_error_set(err, TD_E_DATA, "item %zu is not a token id (0 to %d)", i,
                              td_tokenizer_n_vocab(w->tok) - 1);
        } else if (!td_grow((void **)&w->ids.ids, &w->ids.cap, w->ids.n + 1, sizeof *w->ids.ids)) {
            rc = td_error_nomem(err, "token ids", w->ids.n * sizeof *w->ids.ids);
        } else {
            w->ids.ids[w->ids.n++] = (int32_t)id;
        }
    }
    json_decref(list);
    td_strbuf_clear(&w->text);
    if (rc == TD_OK)
        rc = td_tokenizer_decode(w->tok, w->ids.ids, w->ids.n, w->opt->no_special, &w->text, err);
    if (rc != TD_OK)
        return rc;
    json_t *s = json_stringn(w->text.data ? w->text.data : "", w->text.len);
    char *dump = s ? json_dumps(s, JSON_ENCODE_ANY) : NULL;
    json_decref(s);
    if (!dump)
        return td_error_nomem(err, "the decoded text", w->text.len);
    td_strbuf_puts(&w->out, dump);
    td_strbuf_puts(&w->out, "\n");
    free(dump);
    return TD_OK;
}

static td_status flush_out(worker *w, td_error *err) {
    if (w->out.oom)
        return td_error_nomem(err, "the output", w->out.len);
    if (w->out.len && fwrite(w->out.data, 1, w->out.len, stdout) != w->out.len)
        return td_error_errno(err, TD_E_OUTPUT, errno, "cannot write to stdout");
    td_strbuf_clear(&w->out);
    return TD_OK;
}

static td_status all_lines(worker *w, td_error *err) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t got;
    long long number = 0;
    td_status rc = TD_OK;
    /* getline, not fgets: a line may hold U+0000 and be longer than any buffer. */
    while (rc == TD_OK && (errno = 0, got = getline(&line, &cap, stdin)) >= 0) {
        size_t n = (size_t)got;
        number++;
        /* LF or CRLF ends a line, as in a run over a text file. */
        if (n > 0 && line[n - 1] == '\n')
            n -= n > 1 && line[n - 2] == '\r' ? 2 : 1;
        rc = w->opt->decode ? decode_line(w, line, n, err) : encode_line(w, line, n, err);
        if (rc == TD_E_DATA)
            rc = bad_line(err, number);
        if (rc == TD_OK)
            rc = flush_out(w, err);
    }
    if (rc == TD_OK && !feof(stdin))
        rc = td_error_errno(err, TD_E_DATA, errno, "cannot read stdin behind line %lld", number);
    free(line);
    if (fflush(stdout) != 0 && rc == TD_OK)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot write to stdout");
    return rc;
}

int td_cmd_tokenize(int argc, char **argv) {
    options opt = {0};
    worker w = {.opt = &opt};
    td_error err = {0};
    td_status rc = parse(argc, argv, &opt, &err);
    if (rc == TD_OK && opt.help) {
        fputs(help, stdout);
        return fflush(stdout) == 0 ? TD_EXIT_OK : TD_EXIT_OUTPUT;
    }
    if (rc == TD_OK)
        rc = td_tokenizer_load(opt.model, &w.tok, &err);
    if (rc == TD_OK && td_tokenizer_note(w.tok))
        td_log_warn("%s: %s", opt.model, td_tokenizer_note(w.tok));
    if (rc == TD_OK)
        rc = td_tok_scratch_create(w.tok, &w.scratch, &err);
    if (rc == TD_OK)
        rc = all_lines(&w, &err);
    if (rc != TD_OK)
        td_log_error("tdgen tokenize: %s", err.text);
    td_ids_free(&w.ids);
    td_strbuf_free(&w.text);
    td_strbuf_free(&w.out);
    td_tok_scratch_free(w.scratch);
    td_tokenizer_free(w.tok);
    return td_status_exit_code(rc);
}
