/* common.c - versions, errors, options and logging of the C API. */
#include "api/api.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "device/device.h"

const char *tdgen_version(void) {
    return TDGEN_VERSION;
}

int tdgen_api_version(void) {
    return TDGEN_API_VERSION;
}

const char *tdgen_backends(void) {
    return td_device_backends();
}

/* --- errors ----------------------------------------------------------------------------------- */

static const tdgen_status STATUS_OF[] = {
    [TD_OK] = TDGEN_OK,
    [TD_E_INTERNAL] = TDGEN_E_INTERNAL,
    [TD_E_CONFIG] = TDGEN_E_ARGUMENT,
    [TD_E_MODEL] = TDGEN_E_MODEL,
    [TD_E_DATA] = TDGEN_E_DATA,
    [TD_E_DEVICE] = TDGEN_E_DEVICE,
    [TD_E_DEVICE_OOM] = TDGEN_E_MEMORY,
    [TD_E_OUTPUT] = TDGEN_E_FOLDER,
    [TD_E_VERIFY] = TDGEN_E_DAMAGED,
    [TD_E_UNFINISHED] = TDGEN_E_UNFINISHED,
    [TD_E_STOPPED] = TDGEN_E_STOPPED,
    [TD_E_DEVICE_LOST] = TDGEN_E_DEVICE_LOST,
};

const char *tdgen_status_name(tdgen_status status) {
    static const char *const names[] = {
        [TDGEN_OK] = "ok",
        [TDGEN_E_INTERNAL] = "internal",
        [TDGEN_E_ARGUMENT] = "argument",
        [TDGEN_E_MODEL] = "model",
        [TDGEN_E_DATA] = "data",
        [TDGEN_E_DEVICE] = "device",
        [TDGEN_E_FOLDER] = "folder",
        [TDGEN_E_MEMORY] = "memory",
        [TDGEN_E_DAMAGED] = "damaged",
        [TDGEN_E_NUMBERS] = "numbers",
        [TDGEN_E_STOPPED] = "stopped",
        [TDGEN_E_DEVICE_LOST] = "device lost",
        [TDGEN_E_UNFINISHED] = "unfinished",
    };
    return (size_t)status < TD_ARRAY_LEN(names) ? names[status] : "unknown";
}

tdgen_status td_api_fail(tdgen_error *err, tdgen_status code, const char *fmt, ...) {
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
        err->code = code;
    }
    return code;
}

tdgen_status td_api_error(tdgen_error *err, td_status rc, const td_error *from) {
    tdgen_status code = (size_t)rc < TD_ARRAY_LEN(STATUS_OF) ? STATUS_OF[rc] : TDGEN_E_INTERNAL;
    return td_api_fail(err, code, "%s", from->text);
}

/* --- options ---------------------------------------------------------------------------------- */

tdgen_status td_api_options(void *known, size_t known_size, size_t least_size, const void *given,
                            const char *name, tdgen_error *err) {
    size_t size;
    if (!given)
        return TDGEN_OK;
    memcpy(&size, given, sizeof size);
    if (size < least_size || size > 4096) /* more than any version will have: not initialised */
        return td_api_fail(err, TDGEN_E_ARGUMENT,
                           "struct_size of %s is %zu, expected %zu: begin with its _INIT", name,
                           size, known_size);
    for (size_t i = known_size; i < size; i++)
        if (((const unsigned char *)given)[i])
            return td_api_fail(err, TDGEN_E_ARGUMENT,
                               "%s sets an option that this library (%s) does not know", name,
                               TDGEN_VERSION);
    memcpy(known, given, TD_MIN(size, known_size));
    return TDGEN_OK;
}

/* --- logging ---------------------------------------------------------------------------------- */

/* The level belongs to base/log, which begins as a program wants it. */
static pthread_once_t g_quiet = PTHREAD_ONCE_INIT;

static void be_quiet(void) {
    td_log_set_level(TD_LOG_SILENT);
}

void td_api_begin(void) {
    pthread_once(&g_quiet, be_quiet);
}

void tdgen_set_log_level(tdgen_log_level level) {
    td_api_begin();
    switch (level) {
    case TDGEN_LOG_WARNING:
        td_log_set_level(TD_LOG_WARN);
        break;
    case TDGEN_LOG_INFO:
        td_log_set_level(TD_LOG_INFO);
        break;
    case TDGEN_LOG_DEBUG:
        td_log_set_level(TD_LOG_DEBUG);
        break;
    default:
        td_log_set_level(TD_LOG_SILENT);
    }
}
