/* status.c - tdgen status: where a run is, and whether anybody is still at it.
 *
 * status.json is what the process said of itself last. Whether that still holds is told by its time and,
 * on the same host, by the process: one that was killed says "running" for ever. The file is not
 * trusted; all of its texts are made printable.
 */
#include "report/report.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/format.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/process.h"
#include "base/strbuf.h"
#include "base/text.h"
#include "record/reader.h"

#define STATUS_MAX_BYTES ((size_t)16 << 20)
/* A process may miss heartbeats while its file system is slow. */
#define MISSED_BEATS 3
/* A process of another PID namespace cannot be seen: one that wrote just now is there. */
#define FRESH_S 5

typedef struct status {
    const char *dir;
    json_t *said; /* status.json; NULL: there is none */
    td_manifest manifest;
    td_folder_state folder;
    bool has_folder;
    double age_s; /* since the last word; -1: not known */
    td_run_state_seen seen;
} status;

static const char *const SEEN[] = {
    [TD_SEEN_NOTHING] = "no run seen",    [TD_SEEN_WORKING] = "at work", [TD_SEEN_DONE] = "done",
    [TD_SEEN_STOPPED] = "stopped",        [TD_SEEN_FAILED] = "failed",   [TD_SEEN_DIED] = "died",
    [TD_SEEN_SILENT] = "no sign of life",
};

static const char *text_of(const status *s, const char *key, td_strbuf *buf) {
    const json_t *v = json_object_get(s->said, key);
    td_strbuf_clear(buf);
    if (json_is_string(v))
        td_text_printable(json_string_value(v), json_string_length(v), buf);
    return buf->data ? buf->data : "";
}

static double number_of(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

/* Seconds since 1970 of "2026-01-31T12:00:00Z"; -1: it is no such text. */
static double time_of(const json_t *v) {
    struct tm tm = {0};
    const char *s = json_string_value(v);
    const char *end = s ? strptime(s, "%Y-%m-%dT%H:%M:%SZ", &tm) : NULL;
    return end && !*end ? (double)timegm(&tm) : -1;
}

static td_run_state_seen judge(const status *s) {
    const char *state = json_string_value(json_object_get(s->said, "state"));
    if (!state)
        return TD_SEEN_NOTHING;
    if (strcmp(state, "done") == 0)
        return TD_SEEN_DONE;
    if (strcmp(state, "stopped") == 0)
        return TD_SEEN_STOPPED;
    if (strcmp(state, "failed") == 0)
        return TD_SEEN_FAILED;
    td_process was = {0};
    const td_process self = td_process_self();
    const char *host = json_string_value(json_object_get(s->said, "host"));
    const char *boot = json_string_value(json_object_get(s->said, "boot_id"));
    snprintf(was.host, sizeof was.host, "%s", host ? host : "");
    snprintf(was.boot, sizeof was.boot, "%s", boot ? boot : "");
    was.pid = (long)json_integer_value(json_object_get(s->said, "pid"));
    was.start = (unsigned long long)json_integer_value(json_object_get(s->said, "process_start"));
    if (was.pid > 0 && td_process_is_gone(&was, &self) && (s->age_s < 0 || s->age_s > FRESH_S))
        return TD_SEEN_DIED;
    double beat = number_of(s->said, "heartbeat_s");
    if (beat <= 0)
        beat = 10;
    return s->age_s >= 0 && s->age_s <= MISSED_BEATS * beat ? TD_SEEN_WORKING : TD_SEEN_SILENT;
}

static td_status load(status *s, td_error *err) {
    char *path = td_asprintf("%s/status.json", s->dir);
    char *manifest = td_asprintf("%s/" TD_MANIFEST_NAME, s->dir);
    td_index index = {0};
    td_index_faults faults;
    td_status rc = TD_OK;
    if (!path || !manifest)
        rc = td_error_nomem(err, "a path", strlen(s->dir));
    if (rc == TD_OK && !td_path_exists(path) && !td_path_exists(manifest))
        rc = td_error_set(err, TD_E_OUTPUT,
                          "%s is no output folder of tdgen: it has neither status.json nor "
                          "manifest.json",
                          s->dir);
    if (rc == TD_OK && td_path_exists(path))
        rc = td_json_load_file(path, STATUS_MAX_BYTES, TD_E_OUTPUT, &s->said, err);
    if (rc == TD_OK && s->said && !json_is_object(s->said))
        rc = td_error_set(err, TD_E_OUTPUT, "%s: expected a JSON object", path);
    if (rc == TD_OK && td_path_exists(manifest)) {
        rc = td_manifest_load(s->dir, TD_E_VERIFY, &s->manifest, err);
        if (rc == TD_OK)
            rc = td_index_load(s->dir, &index, &faults, err);
        if (rc == TD_OK)
            rc = td_folder_state_read(s->dir, &s->manifest.extent, &index, TD_E_OUTPUT, &s->folder,
                                      err);
        s->has_folder = rc == TD_OK;
    }
    if (rc == TD_OK) {
        const double at = time_of(json_object_get(s->said, "updated"));
        s->age_s = at < 0 ? -1 : TD_MAX(0.0, difftime(time(NULL), (time_t)at));
        s->seen = judge(s);
    }
    td_index_free(&index);
    free(manifest);
    free(path);
    return rc;
}

static void print_state(const status *s, FILE *out, td_strbuf *buf) {
    char age[32] = "?";
    if (s->age_s >= 0)
        td_human_seconds(s->age_s, age, sizeof age);
    fprintf(out, "  %-9s ", "state");
    switch (s->seen) {
    case TD_SEEN_NOTHING:
        fputs("no status.json: the run was made elsewhere, or merged\n", out);
        break;
    case TD_SEEN_WORKING:
        fputs(text_of(s, "state", buf), out);
        if (json_object_get(s->said, "step"))
            fprintf(out, ": %s", text_of(s, "step", buf));
        fprintf(out, " (seen %s ago)\n", age);
        break;
    case TD_SEEN_DIED:
        fprintf(out, "DIED %s ago, at work until then: run the same command again\n", age);
        break;
    case TD_SEEN_SILENT:
        fprintf(out, "NO SIGN OF LIFE for %s: it died, or its host or file system stands still\n",
                age);
        break;
    default:
        fprintf(out, "%s %s ago\n", SEEN[s->seen], age);
    }
    if (s->said && json_object_get(s->said, "error"))
        fprintf(out, "  %-9s %s\n", "error", text_of(s, "error", buf));
}

static void print_groups(const status *s, FILE *out) {
    const json_t *groups = json_object_get(s->said, "groups"), *g;
    size_t i;
    json_array_foreach((json_t *)groups, i, g) {
        char tokens[16], rate[16];
        if (i == 16) {
            fprintf(out, "  %-9s and %zu more\n", "", json_array_size(groups) - i);
            break;
        }
        const json_t *busy = json_object_get(g, "busy_shares");
        fprintf(out, "  group %-3zu %s tokens, %s tokens/s, idle %.0f%%, busy", i,
                td_human_count(number_of(g, "tokens"), tokens, sizeof tokens),
                td_human_count(number_of(g, "tokens_per_s"), rate, sizeof rate),
                100 * number_of(g, "idle_share"));
        for (size_t k = 0; k < json_array_size(busy) && k < 16; k++)
            fprintf(out, " %.0f%%", 100 * json_number_value(json_array_get(busy, k)));
        fputs(json_is_true(json_object_get(g, "retired")) ? ", RETIRED\n" : "\n", out);
    }
}

static void print_text(const status *s, FILE *out) {
    td_strbuf buf = {0};
    char a[32], b[32], text[TD_FOLDER_STATE_TEXT_SIZE];
    td_text_printable(s->dir, strlen(s->dir), &buf);
    fprintf(out, "%s\n", buf.data ? buf.data : "");
    print_state(s, out, &buf);
    if (s->has_folder)
        fprintf(out, "  %-9s %s%s\n", "folder", s->folder.complete ? "complete, " : "",
                td_folder_state_text(&s->folder, text, sizeof text));
    if (s->said) {
        fprintf(out, "  %-9s %s, ", "process", text_of(s, "host", &buf));
        fprintf(out, "pid %.0f, worker %.0f of %.0f, since ", number_of(s->said, "pid"),
                number_of(s->said, "worker_id"), number_of(s->said, "total_workers"));
        fprintf(out, "%s\n", text_of(s, "started", &buf));
    }
    if (s->said && json_object_get(s->said, "samples")) {
        fprintf(out, "  %-9s ", "progress");
        if (json_object_get(s->said, "fraction"))
            fprintf(out, "%.0f%%, ", 100 * number_of(s->said, "fraction"));
        fprintf(out, "%s samples, %s tokens, ",
                td_human_count(number_of(s->said, "samples"), a, sizeof a),
                td_human_count(number_of(s->said, "tokens"), b, sizeof b));
        fprintf(out, "%s tokens/s",
                td_human_count(number_of(s->said, "tokens_per_s"), a, sizeof a));
        if (s->seen == TD_SEEN_WORKING && json_object_get(s->said, "eta_s"))
            fprintf(out, ", ETA %s", td_human_seconds(number_of(s->said, "eta_s"), a, sizeof a));
        fputc('\n', out);
        if (number_of(s->said, "skipped_samples") > 0)
            fprintf(out, "  %-9s %.0f samples\n", "skipped", number_of(s->said, "skipped_samples"));
        print_groups(s, out);
    }
    td_strbuf_free(&buf);
}

static td_status print_json(const status *s, FILE *out, td_error *err) {
    json_t *folder = json_null();
    if (s->has_folder && s->folder.known)
        folder = json_pack(
            "{s:b, s:I, s:o, s:I, s:o}", "complete", s->folder.complete, "rows",
            (json_int_t)s->folder.n_rows, "rows_expected",
            s->folder.n_rows_want < 0 ? json_null()
                                      : json_integer((json_int_t)s->folder.n_rows_want),
            "shards", (json_int_t)s->folder.n_shards, "shards_expected",
            s->folder.n_shards_want < 0 ? json_null()
                                        : json_integer((json_int_t)s->folder.n_shards_want));
    json_t *o = json_pack("{s:s, s:s, s:f, s:o, s:O?}", "schema", "tdgen-status-1", "seen",
                          SEEN[s->seen], "age_s", s->age_s, "folder", folder, "status", s->said);
    char *text = o ? json_dumps(o, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    if (text)
        fprintf(out, "%s\n", text);
    json_decref(o);
    td_status rc = text ? TD_OK : td_error_nomem(err, "the document", 0);
    free(text);
    return rc;
}

td_status td_status_report(const char *dir, bool json, FILE *out, td_run_state_seen *seen,
                           bool *complete, td_error *err) {
    status s = {.dir = dir, .age_s = -1};
    td_status rc = load(&s, err);
    if (rc == TD_OK && json)
        rc = print_json(&s, out, err);
    else if (rc == TD_OK)
        print_text(&s, out);
    if (rc == TD_OK) {
        *seen = s.seen;
        /* An older folder does not say: then its run's last word counts. */
        *complete = s.has_folder && s.folder.known ? s.folder.complete : s.seen == TD_SEEN_DONE;
    }
    td_manifest_free(&s.manifest);
    json_decref(s.said);
    return rc;
}
