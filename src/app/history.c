/* history.c - see history.h. Nothing here can end a run: what cannot be written is logged. */
#include "app/history.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/process.h"
#include "base/strbuf.h"

#define NAME "run.json"
#define MAX_BYTES ((size_t)32 << 20)

json_t *td_history_load(const char *dir) {
    char *path = td_asprintf("%s/" NAME, dir);
    json_t *o = NULL;
    td_error ignored;
    if (path && td_path_exists(path) &&
        td_json_load_file(path, MAX_BYTES, TD_E_OUTPUT, &o, &ignored) != TD_OK)
        td_log_debug("%s; it is begun anew", ignored.text);
    free(path);
    if (!json_is_object(o) || !json_is_array(json_object_get(o, "executions"))) {
        json_decref(o);
        o = json_pack("{s:i, s:[]}", "schema", 1, "executions");
    }
    return o;
}

static void save(const char *dir, const json_t *history) {
    char *path = td_asprintf("%s/" NAME, dir);
    char *text = history ? json_dumps(history, JSON_INDENT(1)) : NULL;
    td_error err;
    if (path && text && td_file_write_atomic(path, text, strlen(text), false, &err) != TD_OK)
        td_log_debug("%s", err.text);
    free(text);
    free(path);
}

/* --- the teacher's files ---------------------------------------------------------------------- */

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* "" where the folder cannot be looked at. */
static void weights_stamp(const char *dir, char out[17]) {
    char **lines = NULL;
    size_t n = 0, cap = 0;
    td_dir *d = NULL;
    const char *name = NULL;
    td_strbuf all = {0};
    td_error ignored;
    td_status rc = td_dir_open(dir, TD_E_MODEL, &d, &ignored);
    while (rc == TD_OK && (rc = td_dir_next(d, &name, &ignored)) == TD_OK && name) {
        const char *dot = strrchr(name, '.');
        struct stat st;
        if (!dot || (strcmp(dot, ".safetensors") != 0 && strcmp(dot, ".json") != 0))
            continue;
        if (fstatat(td_dir_fd(d), name, &st, 0) != 0 ||
            !td_grow((void **)&lines, &cap, n + 1, sizeof *lines) ||
            !(lines[n] = td_asprintf("%s %lld %lld.%09ld %lld.%09ld\n", name, (long long)st.st_size,
                                     (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
                                     (long long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec))) {
            rc = TD_E_INTERNAL;
            break;
        }
        n++;
    }
    td_dir_close(d);
    if (n)
        qsort(lines, n, sizeof *lines, by_text);
    for (size_t i = 0; i < n; i++) {
        td_strbuf_puts(&all, lines[i]);
        free(lines[i]);
    }
    free(lines);
    out[0] = '\0';
    if (rc == TD_OK && n && !all.oom)
        td_hash_hex(td_hash64(all.data, all.len), out);
    td_strbuf_free(&all);
}

bool td_history_same_weights(const json_t *history, const char *model_path) {
    const char *was = json_string_value(json_object_get(history, "weights_stamp"));
    char is[17];
    weights_stamp(model_path, is);
    return was && is[0] && strcmp(was, is) == 0;
}

/* --- executions ------------------------------------------------------------------------------- */

static json_t *now(void) {
    char text[32];
    time_t t = time(NULL);
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return json_string(text);
}

/* Arguments may hold any bytes. */
static json_t *text_of(const char *s) {
    json_t *v = json_string(s);
    return v ? v : json_string("(not UTF-8)");
}

/* OUT/run.ini: what this run is, for who comes back later. Written where it says something new. */
static void write_effective(const td_config *cfg) {
    char *path = td_asprintf("%s/run.ini", cfg->output.dir);
    char *text =
        td_asprintf("; The effective configuration of the run in this folder, from %s and the\n"
                    "; command line; tdgen -c with this file continues it.\n\n%s",
                    cfg->file, cfg->effective);
    char *have = NULL;
    size_t n = 0;
    td_error err;
    const bool same = path && text && td_path_exists(path) &&
                      td_file_read(path, MAX_BYTES, TD_E_OUTPUT, &have, &n, &err) == TD_OK &&
                      strcmp(have, text) == 0;
    if (path && text && !same &&
        td_file_write_atomic(path, text, strlen(text), false, &err) != TD_OK)
        td_log_debug("%s", err.text);
    free(have);
    free(text);
    free(path);
}

void td_history_begin(td_job *j, char *const *argv) {
    const td_process self = td_process_self();
    json_t *history = td_history_load(j->cfg->output.dir), *command = json_array();
    json_t *list = json_object_get(history, "executions");
    for (int i = 0; argv && argv[i]; i++)
        json_array_append_new(command, text_of(argv[i]));
    weights_stamp(j->cfg->model.path, j->weights_stamp);
    char *cwd = getcwd(NULL, 0);
    json_t *e = json_pack("{s:o, s:o, s:s, s:s, s:I, s:o}", "command", command, "directory",
                          text_of(cwd ? cwd : "?"), "tdgen", TDGEN_VERSION, "host", self.host,
                          "pid", (json_int_t)self.pid, "started", now());
    free(cwd);
    write_effective(j->cfg);
    while (json_array_size(list) >= TD_HISTORY_MAX)
        json_array_remove(list, 0);
    if (e && json_array_append_new(list, e) == 0)
        save(j->cfg->output.dir, history);
    json_decref(history);
}

void td_history_end(const td_job *j, int exit_code, const td_error *err, const char *report) {
    json_t *history = td_history_load(j->cfg->output.dir);
    json_t *list = json_object_get(history, "executions");
    json_t *e = json_array_get(list, json_array_size(list) - 1);
    if (!e || json_integer_value(json_object_get(e, "pid")) != (json_int_t)getpid()) {
        json_decref(history);
        return;
    }
    json_object_set_new(e, "ended", now());
    json_object_set_new(e, "exit_code", json_integer(exit_code));
    if (err && err->code != TD_OK)
        json_object_set_new(e, "error", text_of(err->text));
    if (report)
        json_object_set_new(e, "report", text_of(report));
    if (j->weights_stamp[0] && report)
        json_object_set_new(history, "weights_stamp", json_string(j->weights_stamp));
    save(j->cfg->output.dir, history);
    json_decref(history);
}

int td_history_exit_code(const json_t *history) {
    const json_t *list = json_object_get(history, "executions");
    for (size_t i = json_array_size(list); i-- > 0;) {
        const json_t *code = json_object_get(json_array_get(list, i), "exit_code");
        if (json_is_integer(code) &&
            (json_integer_value(code) == TD_EXIT_OK || json_integer_value(code) == TD_EXIT_PARTIAL))
            return (int)json_integer_value(code);
    }
    return -1;
}
