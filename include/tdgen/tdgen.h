/* tdgen.h - libtdgen: teacher logits from C. Versions, errors, logging.
 *
 *   tdgen/teacher.h   opens a teacher and scores token sequences
 *   tdgen/record.h    reads the output folder of a run
 *
 * Both include this header. Link with -ltdgen; examples/ has a program of forty lines for each.
 *
 * Names. Everything public begins with tdgen_ or TDGEN_, and libtdgen.so exports nothing else.
 * (Inside, names begin with td_; the two never meet.)
 *
 * Stability. This is version 0 of the interface: later releases add, they do not alter.
 *   - Structs of options begin with struct_size, which the caller sets (the _INIT macros do), so
 *     that they may grow: a field that is 0 means its default, and a library that does not know a
 *     field which was set refuses the call.
 *   - Structs that the library hands out by const pointer may grow at their end: read them through
 *     the pointer.
 *   - tdgen_error and tdgen_sequence, of which callers make arrays or copies, stay as they are.
 *   - The values of enumerators are fixed.
 *
 * Behaviour. The library does not end the process, installs no signal handlers, changes no
 * allocator, and writes nothing to stderr unless tdgen_set_log_level asks for it. It starts threads
 * of its own while a teacher is open and while its weights are read.
 *
 * Threads. Different handles may be used by different threads at once; one handle by one thread at
 * a time. The functions of this header may be called from any thread.
 */
#ifndef TDGEN_INCLUDE_TDGEN_H
#define TDGEN_INCLUDE_TDGEN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TDGEN_API __attribute__((visibility("default")))
#else
#define TDGEN_API
#endif

/* Of the headers; tdgen_version and tdgen_api_version tell those of the library. */
#define TDGEN_VERSION_MAJOR 0
#define TDGEN_VERSION_MINOR 1
#define TDGEN_VERSION_PATCH 0
#define TDGEN_API_VERSION 0

/* "0.1.0"; static text. */
TDGEN_API const char *tdgen_version(void);
/* The version of this interface: what was compiled against TDGEN_API_VERSION n runs with any
 * library whose number is n or more, as long as the number in libtdgen.so.N is the same. */
TDGEN_API int tdgen_api_version(void);
/* What the library can compute on: "cpu" or "cpu cuda-13.0"; static text. */
TDGEN_API const char *tdgen_backends(void);

/* --- errors ----------------------------------------------------------------------------------- */

/* Values up to 8 agree with the exit codes of the program where both have a meaning. */
typedef enum tdgen_status {
    TDGEN_OK = 0,
    TDGEN_E_INTERNAL = 1, /* a bug, or the system failed (host memory, threads) */
    TDGEN_E_ARGUMENT = 2, /* a call that cannot be right: NULL, a number out of range, an option */
    TDGEN_E_MODEL = 3,    /* the teacher's folder is missing, damaged or not supported */
    TDGEN_E_DATA = 4,     /* the token sequences: an id that the teacher lacks, too many tokens */
    TDGEN_E_DEVICE = 5,   /* there is no such device, or it failed */
    TDGEN_E_FOLDER = 6,   /* there is no output folder, or it cannot be read */
    TDGEN_E_MEMORY = 7,   /* a device has not enough memory; smaller limits may do */
    TDGEN_E_DAMAGED = 8,  /* what is on disk is not what was written */
    TDGEN_E_NUMBERS = 9,  /* the teacher computed a number that is not finite */
    TDGEN_E_STOPPED = 10, /* a callback asked to stop */
    /* A device failed so that this process cannot use any device of its kind any more. */
    TDGEN_E_DEVICE_LOST = 11,
    /* The folder is sound, but its run is not finished (tdgen_record_options.partial). */
    TDGEN_E_UNFINISHED = 12
} tdgen_status;

/* Owned by the caller, filled by a function that fails and untouched otherwise; every `err`
 * parameter may be NULL. The text names the file, tensor, argument or device and says what would
 * work; it ends without a period or newline, and is cut to its room, always NUL-terminated. */
typedef struct tdgen_error {
    tdgen_status code;
    char text[1020];
} tdgen_error;

/* A short noun: "ok", "argument", "model", ...; static text, also for values that are none. */
TDGEN_API const char *tdgen_status_name(tdgen_status status);

/* --- logging ---------------------------------------------------------------------------------- */

typedef enum tdgen_log_level {
    TDGEN_LOG_SILENT = 0, /* what a program begins with */
    TDGEN_LOG_WARNING = 1,
    TDGEN_LOG_INFO = 2,
    TDGEN_LOG_DEBUG = 3
} tdgen_log_level;

/* Lines up to this level go to stderr from now on; a value that is no level counts as
 * TDGEN_LOG_SILENT. One setting for the whole process. */
TDGEN_API void tdgen_set_log_level(tdgen_log_level level);

#ifdef __cplusplus
}
#endif
#endif
