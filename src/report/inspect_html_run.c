/* inspect_html_run.c - the page's part on how the record was made: run.json, status.json,
 * timeline.jsonl. None of them is part of the record: what cannot be read is left out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/format.h"
#include "base/json.h"
#include "base/memory.h"
#include "report/inspect_html.h"

enum { MAX_TIMELINE_BYTES = 1 << 26, MAX_EXECUTIONS = 8, MAX_JSON_BYTES = 1 << 25 };

static json_t *load(const td_page *p, const char *name) {
    char *path = td_asprintf("%s/%s", p->in.dir, name);
    json_t *o = NULL;
    td_error ignored;
    if (path && td_path_exists(path))
        (void)td_json_load_file(path, MAX_JSON_BYTES, TD_E_OUTPUT, &o, &ignored);
    free(path);
    return o;
}

void td_page_put_rate(const td_page *p) {
    json_t *status = load(p, "status.json");
    const double tokens = json_number_value(json_object_get(status, "tokens"));
    const double elapsed = json_number_value(json_object_get(status, "elapsed_s"));
    char rate[16], text[32];
    if (tokens > 0 && elapsed > 0)
        fprintf(p->out, "<dt>rate</dt><dd>%s tokens/s, at work for %s</dd>",
                td_human_count(tokens / elapsed, rate, sizeof rate),
                td_human_seconds(elapsed, text, sizeof text));
    json_decref(status);
}

static void put_command(const td_page *p, const json_t *e) {
    const json_t *command = json_object_get(e, "command");
    for (size_t i = 0; i < json_array_size(command); i++) {
        if (i)
            fputc(' ', p->out);
        td_page_json(p, json_array_get(command, i));
    }
}

static void put_executions(const td_page *p) {
    json_t *history = load(p, "run.json");
    const json_t *list = json_object_get(history, "executions");
    const size_t n = json_array_size(list);
    if (n) {
        fputs("<section id=\"run\"><h2>Executions</h2>\n<table><tr><th class=\"x\">started</th><th "
              "class=\"x\">ended</th><th class=\"x\">host</th><th>exit</th><th class=\"x\">command"
              "</th></tr>",
              p->out);
        for (size_t i = n > MAX_EXECUTIONS ? n - MAX_EXECUTIONS : 0; i < n; i++) {
            const json_t *e = json_array_get(list, i), *ended = json_object_get(e, "ended");
            fputs("<tr><td class=\"x\">", p->out);
            td_page_json(p, json_object_get(e, "started"));
            fputs("</td><td class=\"x\">", p->out);
            if (ended)
                td_page_json(p, ended);
            else
                fputs("(no word: killed, or at work)", p->out);
            fputs("</td><td class=\"x\">", p->out);
            td_page_json(p, json_object_get(e, "host"));
            fprintf(p->out, "</td><td>%lld</td><td class=\"x\">",
                    (long long)json_integer_value(json_object_get(e, "exit_code")));
            put_command(p, e);
            fputs("</td></tr>", p->out);
        }
        fputs("</table>\n", p->out);
        const json_t *report = NULL;
        for (size_t i = n; !report && i-- > 0;)
            report = json_object_get(json_array_get(list, i), "report");
        if (json_is_string(report)) {
            fputs("<details><summary>Plan and closing report of the last one</summary><pre>",
                  p->out);
            const char *s = json_string_value(report), *nl;
            for (; (nl = strchr(s, '\n')) != NULL; s = nl + 1) {
                td_page_text(p, s, (size_t)(nl - s));
                fputc('\n', p->out);
            }
            fputs("</pre></details>\n", p->out);
        }
        fputs("</section>\n", p->out);
    }
    json_decref(history);
}

static double real_at(const json_t *a, size_t i) {
    const double v = json_number_value(json_array_get(a, i));
    return v > 0 ? fmin(v, 1e9) : 0; /* NaN: 0 */
}

static double end_of(const json_t *groups) {
    double end = 0;
    for (size_t g = 0; g < json_array_size(groups); g++) {
        const json_t *s = json_object_get(json_array_get(groups, g), "segments");
        for (size_t i = 0; i < json_array_size(s); i++)
            end = fmax(end, real_at(json_array_get(s, i), 1));
    }
    return end;
}

static double rate_of(const json_t *segment) {
    return real_at(segment, 5) / fmax(1e-6, real_at(segment, 1) - real_at(segment, 0));
}

static void put_track(const td_page *p, const json_t *group, size_t g, double end,
                      double max_rate) {
    const json_t *segments = json_object_get(group, "segments");
    int y = (int)g * 28 + 4;
    fprintf(p->out, "<text x=\"150\" y=\"%d\" text-anchor=\"end\">", y + 14);
    td_page_json(p, json_object_get(group, "devices"));
    fputs("</text>\n", p->out);
    for (size_t i = 0; i < json_array_size(segments); i++) {
        const json_t *s = json_array_get(segments, i);
        double a = real_at(s, 0), b = real_at(s, 1);
        fprintf(p->out,
                "<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"20\" opacity=\"%.2f\"><title>"
                "%.2f to %.2f s: shards %.0f to %.0f, %.0f samples, %.0f tokens</title></rect>\n",
                160 + 720 * a / end, y, fmax(0.3, 720 * (b - a) / end),
                0.35 + 0.65 * TD_MIN(1.0, rate_of(s) / max_rate), a, b, real_at(s, 2),
                real_at(s, 3), real_at(s, 4), real_at(s, 5));
    }
}

static void put_execution(const td_page *p, const json_t *line) {
    const json_t *groups = json_object_get(line, "groups");
    time_t started = (time_t)json_integer_value(json_object_get(line, "started"));
    size_t n = TD_MIN(json_array_size(groups), (size_t)256);
    double end = end_of(groups), max_rate = 1e-9;
    struct tm tm;
    char when[32] = "?";
    if (n == 0 || end <= 0)
        return;
    if (gmtime_r(&started, &tm))
        strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", &tm);
    for (size_t g = 0; g < n; g++) {
        const json_t *s = json_object_get(json_array_get(groups, g), "segments");
        for (size_t i = 0; i < json_array_size(s); i++)
            max_rate = fmax(max_rate, rate_of(json_array_get(s, i)));
    }
    fprintf(p->out,
            "<h3>%s, worker %lld</h3>\n<svg viewBox=\"0 0 %d %zu\" width=\"%d\" role=\"img\" "
            "aria-label=\"Timeline of the groups; the numbers are in the table below\">\n",
            when, (long long)json_integer_value(json_object_get(line, "worker_id")), TD_PAGE_WIDTH,
            n * 28 + 24, TD_PAGE_WIDTH);
    for (size_t g = 0; g < n; g++)
        put_track(p, json_array_get(groups, g), g, end, max_rate);
    fprintf(p->out,
            "<line x1=\"160\" x2=\"880\" y1=\"%zu\" y2=\"%zu\"/><text x=\"160\" y=\"%zu\">0</text>"
            "<text x=\"880\" y=\"%zu\" text-anchor=\"end\">%.2f s</text></svg>\n",
            n * 28 + 4, n * 28 + 4, n * 28 + 20, n * 28 + 20, end);
    fputs("<details><summary>As a table</summary><table><tr><th class=\"x\">devices</th>"
          "<th class=\"x\">kind</th><th>samples</th><th>tokens</th><th>at work</th></tr>",
          p->out);
    for (size_t g = 0; g < n; g++) {
        const json_t *group = json_array_get(groups, g), *s = json_object_get(group, "segments");
        double samples = 0, tokens = 0, busy = 0;
        for (size_t i = 0; i < json_array_size(s); i++) {
            samples += real_at(json_array_get(s, i), 4);
            tokens += real_at(json_array_get(s, i), 5);
            busy += real_at(json_array_get(s, i), 1) - real_at(json_array_get(s, i), 0);
        }
        fputs("<tr><td class=\"x\">", p->out);
        td_page_json(p, json_object_get(group, "devices"));
        fputs("</td><td class=\"x\">", p->out);
        td_page_json(p, json_object_get(group, "kind"));
        fprintf(p->out, "</td><td>%.0f</td><td>%.0f</td><td>%.2f s</td></tr>", samples, tokens,
                busy);
    }
    fputs("</table></details>\n", p->out);
}

/* timeline.jsonl is no part of the record: what cannot be read is left out. */
static void put_timeline(const td_page *p) {
    char *path = td_asprintf("%s/timeline.jsonl", p->in.dir), *data = NULL;
    size_t n = 0;
    td_error ignored;
    fputs("<section id=\"timeline\"><h2>Devices over time</h2>\n<p class=\"dim\">One bar for each "
          "group of devices that held a copy of the teacher; the darker, the more tokens per "
          "second.</p>\n",
          p->out);
    if (!path || !td_path_exists(path) ||
        td_file_read(path, MAX_TIMELINE_BYTES, TD_E_OUTPUT, &data, &n, &ignored) != TD_OK) {
        fputs("<p>There is no timeline.jsonl in the folder.</p>\n", p->out);
    } else {
        size_t at = n, lines = 0;
        while (at > 0 && !(data[at - 1] == '\n' && at < n && ++lines == MAX_EXECUTIONS))
            at--;
        for (const char *s = data + at, *nl; (nl = memchr(s, '\n', (size_t)(data + n - s)));
             s = nl + 1) {
            json_t *line = json_loadb(s, (size_t)(nl - s), 0, NULL);
            if (line)
                put_execution(p, line);
            json_decref(line);
        }
    }
    fputs("</section>\n", p->out);
    free(data);
    free(path);
}

void td_page_put_run(const td_page *p) {
    put_executions(p);
    put_timeline(p);
}
