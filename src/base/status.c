/* status.c - the error record, and the exit code of each status. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

td_status td_error_set(td_error *err, td_status code, const char *fmt, ...) {
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
    }
    return code;
}

td_status td_error_errno(td_error *err, td_status code, int errnum, const char *fmt, ...) {
    if (code == TD_E_VERIFY)
        code = TD_E_OUTPUT;
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
        size_t n = strlen(err->text);
        char why[128];
        /* The GNU strerror_r returns the text; unlike strerror it is safe with threads. */
        const char *text = strerror_r(errnum, why, sizeof why);
        snprintf(err->text + n, sizeof err->text - n, ": %s", text);
    }
    return code;
}

td_status td_error_prefix(td_error *err, const char *fmt, ...) {
    if (!err)
        return TD_E_INTERNAL;
    char old[sizeof err->text];
    memcpy(old, err->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    size_t at = n < 0 ? 0 : (size_t)n;
    if (at + 3 < sizeof err->text) {
        size_t room = sizeof err->text - at - 3, len = strnlen(old, room);
        memcpy(err->text + at, ": ", 2);
        memcpy(err->text + at + 2, old, len);
        err->text[at + 2 + len] = '\0';
    }
    return err->code;
}

int td_status_exit_code(td_status status) {
    switch (status) {
    case TD_OK:
        return TD_EXIT_OK;
    case TD_E_INTERNAL:
        return TD_EXIT_INTERNAL;
    case TD_E_CONFIG:
        return TD_EXIT_CONFIG;
    case TD_E_MODEL:
        return TD_EXIT_MODEL;
    case TD_E_DATA:
        return TD_EXIT_DATA;
    case TD_E_DEVICE:
    case TD_E_DEVICE_OOM:
    case TD_E_DEVICE_LOST:
        return TD_EXIT_DEVICE;
    case TD_E_OUTPUT:
        return TD_EXIT_OUTPUT;
    case TD_E_VERIFY:
        return TD_EXIT_VERIFY;
    case TD_E_UNFINISHED:
        return TD_EXIT_UNFINISHED;
    case TD_E_STOPPED:
        return TD_EXIT_STOPPED;
    }
    return TD_EXIT_INTERNAL;
}

const char *td_status_name(td_status status) {
    switch (status) {
    case TD_OK:
        return "ok";
    case TD_E_INTERNAL:
        return "internal error";
    case TD_E_CONFIG:
        return "configuration";
    case TD_E_MODEL:
        return "model";
    case TD_E_DATA:
        return "data";
    case TD_E_DEVICE:
        return "device";
    case TD_E_DEVICE_OOM:
        return "device memory";
    case TD_E_OUTPUT:
        return "output";
    case TD_E_VERIFY:
        return "verification";
    case TD_E_UNFINISHED:
        return "unfinished";
    case TD_E_STOPPED:
        return "stopped";
    case TD_E_DEVICE_LOST:
        return "lost device";
    }
    return "internal error";
}
