/* status.h - the one status type and the one error record of the program.
 *
 * A function that can fail returns td_status and takes a caller-owned `td_error *err` as its last
 * parameter (NULL allowed: the text is then dropped). The first function that detects a failure
 * fills the record with td_error_set(); callers that know more (the file, the shard, the device)
 * put it in front with td_error_prefix() and return the same status. Outputs are untouched on
 * failure. No function below main() ends the process.
 *
 * Two kinds of failure of a file are kept apart. *Its content is wrong*: td_error_set, with the code of
 * the room. *It could not be looked at* (opening, reading, memory, a full disk): td_error_errno, which
 * never gives TD_E_VERIFY. So only wrong content makes a shard be computed again or `verify` exit 8.
 *
 * A message names the file, key, tensor or device and says what to do. It has no trailing period
 * or newline.
 */
#ifndef TDGEN_BASE_STATUS_H
#define TDGEN_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum td_status {
    TD_OK = 0,
    TD_E_INTERNAL,   /* a bug or an unexpected failure of the system */
    TD_E_CONFIG,     /* usage or configuration */
    TD_E_MODEL,      /* config.json, weights or tokenizer of the teacher */
    TD_E_DATA,       /* dataset */
    TD_E_DEVICE,     /* a device is missing, failed, or cannot do what was asked */
    TD_E_DEVICE_OOM, /* a device has not enough memory; never fatal by itself */
    TD_E_OUTPUT,     /* output folder: disk, permissions, identity mismatch */
    TD_E_VERIFY,     /* what is on disk is not what was written */
    TD_E_UNFINISHED, /* an output folder is sound, but does not hold all that its run is for */
    TD_E_STOPPED,    /* a signal asked us to stop */
    TD_E_DEVICE_LOST /* a device failed so that this process cannot use any of its kind any more */
} td_status;

typedef struct td_error {
    td_status code;
    char text[1000]; /* NUL-terminated UTF-8; cut, never overrun */
} td_error;

/* The exit codes of the process, in the words of --help; docs/reliability.md has the same (a test
 * compares them), and nothing else lists them all. */
#define TD_EXIT_CODES(X)                                                                           \
    X(OK, 0, "done")                                                                               \
    X(INTERNAL, 1, "internal error")                                                               \
    X(CONFIG, 2, "usage or configuration")                                                         \
    X(MODEL, 3, "model")                                                                           \
    X(DATA, 4, "data")                                                                             \
    X(DEVICE, 5, "device")                                                                         \
    X(OUTPUT, 6, "output folder")                                                                  \
    X(PARTIAL, 7, "finished, but with skipped samples, devices that failed, or nothing recorded")  \
    X(VERIFY, 8, "what is on disk is not what was written")                                        \
    X(HUNG, 9, "a device hung; everything committed is saved, run again")                          \
    X(UNFINISHED, 10, "what is there is sound, but the run is not finished")                       \
    X(STOPPED, 75, "stopped by a signal; everything so far is saved, run again")
enum {
#define TD_EXIT_ENUM(NAME, code, text) TD_EXIT_##NAME = code,
    TD_EXIT_CODES(TD_EXIT_ENUM)
#undef TD_EXIT_ENUM
};

/* Fills *err (if not NULL) and returns `code`, so that `return td_error_set(...)` reads well. */
td_status td_error_set(td_error *err, td_status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* As td_error_set, with ": " and the text of the C library's `errnum` appended: for what the system
 * refused. TD_E_VERIFY becomes TD_E_OUTPUT, since nothing was seen that is wrong. */
td_status td_error_errno(td_error *err, td_status code, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "context: " in front of the text of *err and returns err->code (TD_E_INTERNAL for NULL). */
td_status td_error_prefix(td_error *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The exit code that a status ends the process with. */
int td_status_exit_code(td_status status);

/* A short noun for messages: "configuration", "model", "data", ... */
const char *td_status_name(td_status status);

#ifdef __cplusplus
}
#endif
#endif
