/* log.h - lines for a person, on stderr and in the run's log file. Thread-safe.
 *
 * Progress lines overwrite each other on a terminal (td_log_progress); any other line first clears
 * the progress line, so the two never mix.
 */
#ifndef TDGEN_BASE_LOG_H
#define TDGEN_BASE_LOG_H

#include <stdbool.h>
#include "base/status.h"

typedef enum td_log_level {
    TD_LOG_SILENT = -1, /* for td_log_set_level alone: nothing reaches stderr */
    TD_LOG_ERROR,
    TD_LOG_WARN,
    TD_LOG_INFO,
    TD_LOG_DEBUG
} td_log_level;

/* What reaches stderr: in libtdgen TD_LOG_SILENT unless its user asks for more; else quiet = TD_LOG_WARN, default = TD_LOG_INFO, verbose = TD_LOG_DEBUG. The log
 * file always gets TD_LOG_INFO and below, with UTC time stamps. */
void td_log_set_level(td_log_level level);

/* Appends to `path` from now on; NULL closes it. */
td_status td_log_open_file(const char *path, td_error *err);

void td_log(td_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define td_log_error(...) td_log(TD_LOG_ERROR, __VA_ARGS__)
#define td_log_warn(...) td_log(TD_LOG_WARN, __VA_ARGS__)
#define td_log_info(...) td_log(TD_LOG_INFO, __VA_ARGS__)
#define td_log_debug(...) td_log(TD_LOG_DEBUG, __VA_ARGS__)

/* Lines for the log file alone: what a person has seen on stdout. */
void td_log_record(const char *lines);

/* Replaces the terminal's progress line; nothing on a stderr that is no terminal, or when quiet. */
void td_log_progress(const char *line);

/* Progress for those who read later: a line with the time of day into the log file, and on a stderr
 * that is no terminal (a batch log), unless quiet. */
void td_log_periodic(const char *line);

/* True when stderr is a terminal and progress is wanted. */
bool td_log_is_live(void);

#endif
