/* One mutex guards the stream state; lines are composed outside of it. */
#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include "base/file.h"
#include "base/strbuf.h"
#include "base/text.h"

static struct {
    pthread_mutex_t lock;
    td_log_level level; /* protected by lock, like all below */
    FILE *file;
    bool progress_shown;
} g_log = {.lock = PTHREAD_MUTEX_INITIALIZER, .level = TD_LOG_INFO};

void td_log_set_level(td_log_level level) {
    pthread_mutex_lock(&g_log.lock);
    g_log.level = level;
    pthread_mutex_unlock(&g_log.lock);
}

td_status td_log_open_file(const char *path, td_error *err) {
    FILE *f = NULL;
    if (path) {
        int fd;
        td_status rc = td_file_create(path, TD_CREATE_APPEND, &fd, err);
        if (rc != TD_OK)
            return rc;
        f = fdopen(fd, "a");
        if (!f && close(fd) == 0)
            return td_error_errno(err, TD_E_OUTPUT, errno, "cannot write the log file %s", path);
        setvbuf(f, NULL, _IOLBF, 0);
    }
    pthread_mutex_lock(&g_log.lock);
    FILE *old = g_log.file;
    g_log.file = f;
    pthread_mutex_unlock(&g_log.lock);
    if (old)
        fclose(old);
    return TD_OK;
}

static void write_stamped(FILE *f, const char *tag, const char *line) {
    char stamp[32];
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &tm);
    fprintf(f, "%s %s%s\n", stamp, tag, line);
}

static void clear_progress_locked(void) {
    if (g_log.progress_shown) {
        fputs("\r\033[K", stderr);
        g_log.progress_shown = false;
    }
}

static int terminal_columns(void) {
    struct winsize ws;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 1 ? ws.ws_col : 80;
}

/* A person at a terminal gets lines that fit. A batch log gets one line a message, and once a run is
 * under way (which is when it has a log file) the time of each. */
static void write_stderr_locked(const char *tag, const char *line) {
    td_strbuf text = {0};
    if (!isatty(STDERR_FILENO)) {
        if (g_log.file)
            write_stamped(stderr, tag, line);
        else
            fprintf(stderr, "%s%s\n", tag, line);
        return;
    }
    td_strbuf_puts(&text, tag);
    td_strbuf_puts(&text, line);
    if (text.oom)
        fprintf(stderr, "%s%s\n", tag, line);
    else
        td_text_wrap(text.data, terminal_columns(), 4, stderr);
    td_strbuf_free(&text);
}

void td_log(td_log_level level, const char *fmt, ...) {
    static const char *const tag[] = {"error: ", "warning: ", "", ""};
    char line[2048];
    td_strbuf clean = {0};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    /* Names and texts of files stand in messages: no escape sequence of theirs reaches a terminal. */
    td_text_printable(line, strlen(line), &clean);
    const char *shown =
        clean.oom || !clean.data ? "(a message that did not fit into memory)" : clean.data;
    pthread_mutex_lock(&g_log.lock);
    if (level <= g_log.level) {
        clear_progress_locked();
        write_stderr_locked(tag[level], shown);
    }
    if (g_log.file && level <= TD_LOG_INFO)
        write_stamped(g_log.file, tag[level], shown);
    pthread_mutex_unlock(&g_log.lock);
    td_strbuf_free(&clean);
}

void td_log_record(const char *lines) {
    td_strbuf clean = {0};
    pthread_mutex_lock(&g_log.lock);
    while (g_log.file && *lines) {
        const size_t n = strcspn(lines, "\n");
        td_strbuf_clear(&clean);
        td_text_printable(lines, n, &clean);
        if (n > 0 && !clean.oom && clean.data)
            write_stamped(g_log.file, "", clean.data);
        lines += n + (lines[n] == '\n');
    }
    pthread_mutex_unlock(&g_log.lock);
    td_strbuf_free(&clean);
}

bool td_log_is_live(void) {
    pthread_mutex_lock(&g_log.lock);
    bool live = g_log.level >= TD_LOG_INFO && isatty(STDERR_FILENO);
    pthread_mutex_unlock(&g_log.lock);
    return live;
}

/* Bytes of `line` that fill at most `columns` columns, whole UTF-8 characters of one column each.
 */
static int fitting_bytes(const char *line, int columns) {
    int i = 0;
    for (; line[i]; i++)
        if (((unsigned char)line[i] & 0xc0) != 0x80 && columns-- == 0)
            break;
    return i;
}

void td_log_progress(const char *line) {
    if (!td_log_is_live())
        return;
    /* A wrapped line could not be overwritten by the next one. */
    int columns = terminal_columns() - 1;
    pthread_mutex_lock(&g_log.lock);
    fprintf(stderr, "\r%.*s\033[K", fitting_bytes(line, columns), line);
    fflush(stderr);
    g_log.progress_shown = line[0] != '\0';
    pthread_mutex_unlock(&g_log.lock);
}

void td_log_periodic(const char *line) {
    pthread_mutex_lock(&g_log.lock);
    if (g_log.level >= TD_LOG_INFO && !isatty(STDERR_FILENO))
        write_stderr_locked("", line);
    if (g_log.file)
        write_stamped(g_log.file, "", line);
    pthread_mutex_unlock(&g_log.lock);
}
