/* outdir.c - see outdir.h. */
#include "app/outdir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "app/history.h"
#include "base/file.h"
#include "base/format.h"
#include "base/log.h"
#include "base/memory.h"
#include "record/reader.h"

static bool has_manifest(const char *dir) {
    char *path = td_asprintf("%s/manifest.json", dir);
    bool there = path && td_path_exists(path);
    free(path);
    return there;
}

/* The folder as this run would find it, opened for looking. The source stays open. */
static td_status look(td_job *j, td_output **out, td_folder_state *state, td_error *err) {
    td_identity id;
    td_status rc = td_job_open_source(j, err);
    if (rc == TD_OK)
        rc = td_job_identity(j, &id, err);
    if (rc == TD_OK)
        rc = td_output_open_reading(j->cfg, &j->plan.capture, &id, out, err);
    if (rc == TD_OK)
        td_output_state(*out, state);
    return rc;
}

/* Every shard of the share is the right one, of these rows, and sound. */
static td_status prove(td_job *j, td_output *o, const td_folder_state *state, bool *complete,
                       td_error *err) {
    int64_t n_shards = 0;
    td_status rc = TD_OK;
    *complete = false;
    for (;;) {
        td_shard *s = NULL;
        bool done = true;
        if (td_run_stop_requested())
            return td_run_stopped_error(err);
        const int64_t number = td_source_next_number(j->source);
        rc = td_source_next(j->source, false, &s, err);
        if (rc != TD_OK || !s)
            break;
        if (number % j->cfg->run.total_workers == j->cfg->run.worker_id) {
            rc = td_output_shard_done(o, number, s->row_begin, s->row_end, s->source_hash, &done,
                                      NULL, err);
            n_shards++;
        }
        td_shard_free(s);
        if (rc != TD_OK || !done)
            return rc;
    }
    *complete = rc == TD_OK && n_shards == state->n_shards_want;
    return rc;
}

static void say_complete(const td_job *j, td_output *o, const td_folder_state *state, FILE *out) {
    char text[TD_FOLDER_STATE_TEXT_SIZE], size[32];
    td_output_totals t;
    td_output_totals_get(o, &t);
    fprintf(
        out,
        "%s is already complete: %s, %lld samples, %lld tokens, %s, every byte checked. Nothing "
        "was computed or written.\n",
        j->cfg->output.dir, td_folder_state_text(state, text, sizeof text), (long long)t.n_samples,
        (long long)t.n_tokens, td_human_bytes(t.size_bytes, size, sizeof size));
}

td_status td_outdir_complete(td_job *j, FILE *out, bool *complete, int *exit_code, td_error *err) {
    td_output *o = NULL;
    td_folder_state state;
    td_error why = {0};
    json_t *history = NULL;
    td_status rc = TD_OK;
    *complete = false;
    /* A run that lost devices or samples has something to work out. */
    if (!has_manifest(j->cfg->output.dir) || j->recovery.reexecuted ||
        j->recovery.faults.n_suspects)
        return TD_OK;
    if (look(j, &o, &state, &why) != TD_OK)
        goto done; /* the run meets the same refusal, and reports it */
    history = td_history_load(j->cfg->output.dir);
    if (!state.complete || !td_history_same_weights(history, j->cfg->model.path))
        goto done;
    rc = prove(j, o, &state, complete, &why);
    if (rc == TD_E_STOPPED)
        *err = why;
    else
        rc = TD_OK;
    if (*complete) {
        const int was = td_history_exit_code(history);
        *exit_code = was < 0 ? TD_EXIT_OK : was;
        td_output_totals t;
        td_output_totals_get(o, &t);
        if (t.n_rows == 0 && t.n_shards > 0)
            *exit_code = TD_EXIT_PARTIAL; /* nothing recorded is no success, whoever made it */
        if (out)
            say_complete(j, o, &state, out);
        if (out && was == TD_EXIT_PARTIAL)
            fprintf(out,
                    "The run that made it ended with exit code %d, and so does this one: "
                    "%s/run.json has its report.\n",
                    was, j->cfg->output.dir);
    }
done:
    json_decref(history);
    td_output_close(o);
    td_source_close(j->source); /* the run begins at its beginning */
    j->source = NULL;
    return rc;
}

void td_outdir_describe(td_job *j, FILE *out) {
    td_output *o = NULL;
    td_folder_state state;
    td_error why = {0};
    char text[TD_FOLDER_STATE_TEXT_SIZE];
    const char *dir = j->cfg->output.dir;
    fprintf(out, "Model folder:    %s\n", j->cfg->model.path);
    fprintf(out, "Data:            %s\n", j->cfg->data.path);
    if (!td_path_exists(dir)) {
        fprintf(out, "Output folder:   %s, new\n", dir);
        return;
    }
    if (!has_manifest(dir)) {
        fprintf(out, "Output folder:   %s, nothing recorded there yet\n", dir);
        return;
    }
    td_status rc = look(j, &o, &state, &why);
    if (rc != TD_OK)
        fprintf(out, "Output folder:   the run would be REFUSED (exit %d): %s\n",
                td_status_exit_code(rc), why.text);
    else if (state.complete)
        fprintf(out, "Output folder:   %s is complete: %s; the run would only check it\n", dir,
                td_folder_state_text(&state, text, sizeof text));
    else
        fprintf(out, "Output folder:   %s holds %s; the run continues it\n", dir,
                td_folder_state_text(&state, text, sizeof text));
    td_output_close(o);
    td_source_close(j->source);
    j->source = NULL;
}

td_status td_outdir_move_aside(const char *dir, td_error *err) {
    char stamp[32];
    time_t now = time(NULL);
    struct tm tm;
    struct stat st;
    td_folder_lock lock = TD_FOLDER_LOCK_NONE;
    if (lstat(dir, &st) != 0)
        return errno == ENOENT ? TD_OK
                               : td_error_errno(err, TD_E_OUTPUT, errno, "cannot look at %s", dir);
    if (!S_ISDIR(st.st_mode) || !has_manifest(dir))
        return td_error_set(
            err, TD_E_OUTPUT,
            "--restart moves the folder of an earlier run aside, but %s is none (it "
            "has no manifest.json)",
            dir);
    gmtime_r(&now, &tm);
    strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", &tm);
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    char *to = td_asprintf("%.*s.old-%s", (int)n, dir, stamp);
    td_status rc =
        to ? td_folder_lock_write(dir, -1, &lock, err) : td_error_nomem(err, "a path", n);
    if (rc == TD_OK && td_path_exists(to))
        rc = td_error_set(err, TD_E_OUTPUT, "%s is there already: wait a second, then try again",
                          to);
    if (rc == TD_OK && rename(dir, to) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot rename %s to %s", dir, to);
    if (rc == TD_OK)
        td_log_info("%s was moved aside, to %s", dir, to);
    td_folder_lock_release(&lock);
    free(to);
    return rc;
}
