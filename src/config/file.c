/* file.c - run.ini through inih.
 *
 * inih hands over (section, name, value) without a line number, cuts lines at its buffer, takes an
 * indented line for the continuation of the value above, ignores what stands behind [section], and
 * says nothing of a section without keys. So the file is given to it line by line by our reader,
 * which counts lines, refuses what would not fit, takes indentation away, and checks the section
 * headings; inih remains the one to take `name = value` apart and to drop comments.
 */
#include "config/keys.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"

enum { MAX_FILE_BYTES = 1 << 20 };

typedef struct reader {
    td_config_load_state *st;
    const char *path;
    const char *at, *end;
    int32_t line;     /* number of the line last handed to inih, from 1 */
    char section[80]; /* of that line, for messages about it */
    td_status rc;     /* first failure; the reader then ends the file */
    td_error *err;
} reader;

static void fail_at_line(reader *r, td_status rc) {
    td_error_prefix(r->err, "%s:%d", r->path, (int)r->line);
    r->rc = rc;
}

/* `[name]`, then nothing or a comment. */
static td_status check_heading(reader *r, const char *s, size_t n) {
    const char *close = memchr(s, ']', n);
    if (!close)
        return td_error_set(r->err, TD_E_CONFIG,
                            "a section heading needs a closing bracket: [%.*s]",
                            (int)TD_MIN(n - 1, (size_t)80), s + 1);
    const char *behind = close + 1;
    while (behind < s + n && isspace((unsigned char)*behind))
        behind++;
    if (behind < s + n && *behind != ';' && *behind != '#')
        return td_error_set(r->err, TD_E_CONFIG,
                            "a section heading stands on a line of its own; found '%.*s' behind it",
                            (int)TD_MIN(s + n - behind, 80), behind);
    size_t len = (size_t)(close - s) - 1;
    snprintf(r->section, sizeof r->section, "%.*s", (int)TD_MIN(len, sizeof r->section - 1), s + 1);
    for (size_t i = 0; i < TD_ARRAY_LEN(td_config_sections); i++)
        if (!strcmp(r->section, td_config_sections[i]))
            return TD_OK;
    return td_config_unknown_section(r->section, r->err);
}

static td_status refuse_long_line(reader *r, const char *s, size_t n, size_t most) {
    size_t name_len = strcspn(s, "=: \t\n");
    bool has_name = *r->section && name_len > 0 && name_len < 40;
    return td_error_set(
        r->err, TD_E_CONFIG,
        "the line has %zu characters, at most %zu fit; give this value on the command line, where "
        "any length fits: %s.%.*s=...",
        n, most, has_name ? r->section : "section", has_name ? (int)name_len : 3,
        has_name ? s : "key");
}

/* fgets for inih: one line, never one that inih would have to cut. */
static char *read_line(char *buf, int buf_size, void *stream) {
    reader *r = stream;
    if (r->rc != TD_OK || r->at >= r->end)
        return NULL;
    const char *s = r->at;
    const char *newline = memchr(s, '\n', (size_t)(r->end - s));
    const char *stop = newline ? newline : r->end;
    r->at = newline ? newline + 1 : r->end;
    r->line++;
    if (r->line == 1 && stop - s >= 3 && !memcmp(s, "\xEF\xBB\xBF", 3))
        s += 3;
    while (s < stop && isspace((unsigned char)*s))
        s++;
    while (stop > s && isspace((unsigned char)stop[-1]))
        stop--;
    size_t n = (size_t)(stop - s);
    if (n > 0 && (*s == ';' || *s == '#'))
        n = 0; /* a comment may be of any length */

    td_status rc = TD_OK;
    if (memchr(s, '\0', n))
        rc = td_error_set(r->err, TD_E_CONFIG, "there is a NUL byte; this is not a text file");
    /* inih may append to a buffer that is full without a newline: keep room for it and the NUL. */
    else if (n > (size_t)buf_size - 2)
        rc = refuse_long_line(r, s, n, (size_t)buf_size - 2);
    else if (n > 0 && *s == '[')
        rc = check_heading(r, s, n);
    if (rc != TD_OK) {
        fail_at_line(r, rc);
        return NULL;
    }
    memcpy(buf, s, n);
    buf[n] = '\n';
    buf[n + 1] = '\0';
    return buf;
}

static td_status take_value(reader *r, const char *section, const char *name, const char *value) {
    td_config_load_state *st = r->st;
    if (!*section)
        return td_error_set(r->err, TD_E_CONFIG,
                            "'%.80s' stands before the first section; put it under one of [model] "
                            "[data] [devices] [capture] [output] [run] [simulate]",
                            name);
    int k = td_config_key_index(section, name);
    if (k < 0)
        return td_config_unknown_key(section, name, r->err);
    td_status rc = td_config_set_value(&st->cfg, &td_config_keys[k], value, r->err);
    if (rc != TD_OK) {
        td_error_prefix(r->err, "[%s] %s", section, name);
        return rc;
    }
    if (st->origin[k].line) /* behind the value's own checks, which say more */
        return td_error_set(r->err, TD_E_CONFIG,
                            "[%s] %s is given twice, first in line %d; keep one of them", section,
                            name, (int)st->origin[k].line);
    rc = td_config_keep(st, k, value, r->err);
    if (rc != TD_OK)
        return rc;
    st->origin[k].line = r->line;
    if (td_config_keys[k].type <= TD_KEY_OUTPUT && strstr(value, " #"))
        td_log_warn("%s:%d: [%s] %s is '%s', with the '#': a comment behind a value starts with "
                    "' ;'",
                    r->path, (int)r->line, section, name, value);
    return TD_OK;
}

static int on_value(void *user, const char *section, const char *name, const char *value) {
    reader *r = user;
    if (r->rc != TD_OK)
        return 0;
    td_status rc = take_value(r, section, name, value ? value : "");
    if (rc != TD_OK)
        fail_at_line(r, rc);
    return rc == TD_OK;
}

/* A configuration may come through a pipe: "-", /dev/stdin, bash's <(...). */
static td_status read_text(const char *path, char **data, size_t *n, td_error *err) {
    struct stat st;
    const bool from_stdin = !strcmp(path, "-");
    if (!from_stdin && (stat(path, &st) != 0 || (!S_ISFIFO(st.st_mode) && !S_ISCHR(st.st_mode))))
        return td_file_read(path, MAX_FILE_BYTES, TD_E_CONFIG, data, n, err);
    const int fd = from_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return td_error_errno(err, TD_E_CONFIG, errno, "cannot open %s", path);
    char *text = malloc(MAX_FILE_BYTES + 1);
    size_t at = 0;
    ssize_t got = 1;
    td_status rc = text ? TD_OK : td_error_nomem(err, path, MAX_FILE_BYTES);
    while (rc == TD_OK && got > 0 && at <= MAX_FILE_BYTES) {
        got = read(fd, text + at, MAX_FILE_BYTES + 1 - at);
        if (got < 0 && errno == EINTR)
            got = 1;
        else if (got < 0)
            rc = td_error_errno(err, TD_E_CONFIG, errno, "cannot read %s", path);
        else
            at += (size_t)got;
    }
    if (rc == TD_OK && at > MAX_FILE_BYTES)
        rc = td_error_set(err, TD_E_CONFIG, "%s has more than %d bytes: this is no configuration",
                          path, MAX_FILE_BYTES);
    else if (rc == TD_OK && at == 0)
        rc = td_error_set(err, TD_E_CONFIG, "nothing came from %s",
                          from_stdin ? "standard input" : path);
    if (!from_stdin)
        close(fd);
    if (rc != TD_OK) {
        free(text);
        return rc;
    }
    text[at] = '\0';
    *data = text;
    *n = at;
    return TD_OK;
}

td_status td_config_read_file(td_config_load_state *st, const char *path, td_error *err) {
    char *data = NULL;
    size_t n = 0;
    td_status rc = read_text(path, &data, &n, err);
    if (rc != TD_OK)
        return td_error_prefix(err, "configuration");

    reader r = {.st = st, .path = path, .at = data, .end = data + n, .rc = TD_OK, .err = err};
    int bad_line = ini_parse_stream(read_line, &r, on_value, &r);
    free(data);
    /* inih reports the first line that it could not take apart, which may come before ours. */
    if (bad_line > 0 && (r.rc == TD_OK || bad_line < r.line))
        return td_error_set(err, TD_E_CONFIG,
                            "%s:%d: expected `key = value`, a [section], or a comment that starts "
                            "with ; or #",
                            path, bad_line);
    if (bad_line < 0)
        return td_error_nomem(err, path, n);
    return r.rc;
}
