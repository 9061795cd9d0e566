/* faults.h - what is remembered of lost devices from one execution of a run to the next.
 *
 * A device that fails so that its process can use no device any more (TD_E_DEVICE_LOST) ends that
 * process. OUT/faults.json carries over what the next one has to know: which devices to leave out,
 * which samples were in flight on the device that failed (the suspects), and how often a process
 * was replaced.
 *
 * Rules:
 *   - a suspect is computed alone, so that a second failure accuses it and nothing else
 *   - a suspect that was alone in flight when a second device failed, or at its third failure, is
 *     to blame itself: the devices that failed with it are given back, and the sample is skipped or
 *     ends the run, as run.on_bad_sample says
 *   - any other failure costs the device: it is left out until the user starts the run again
 *
 * A device is known by its UUID, CPU devices by their name; a sample by its dataset row and the
 * token in that row where it begins, whatever batch_tokens is. The file is ours, but it is read
 * like anybody's: bounded and validated, and one that makes no sense is reported and not used.
 *
 * Threads: one at a time; td_run only reads.
 */
#ifndef TDGEN_FAULTS_H
#define TDGEN_FAULTS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "device/device.h"
#include "base/status.h"

#define TD_FAULTS_NAME "faults.json"
enum {
    TD_FAULTS_MAX_REEXEC = 8, /* executions that may follow the one the user started */
    TD_FAULTS_MAX_TRIES = 3,
    TD_FAULTS_MAX_SUSPECTS = 1 << 16,
    TD_FAULTS_MAX_LOST = 64,
    TD_FAULTS_MAX_MACHINE = 4096,
    TD_DEVICE_KEY_SIZE = 48
};

typedef struct td_suspect {
    int64_t row, start;                 /* td_sample */
    int32_t tries;                      /* failures that it was in flight at */
    char device[2][TD_DEVICE_KEY_SIZE]; /* the first two on which it was, "" = none */
    char name[2][32];                   /* what they were called */
    bool blamed;
} td_suspect;

typedef struct td_lost_device {
    char key[TD_DEVICE_KEY_SIZE], name[32];
    char when[24]; /* UTC, "2026-01-31T12:00:00Z" */
    char why[256];
} td_lost_device;

typedef struct td_faults {
    td_suspect *suspects; /* [n_suspects] by row, then start */
    int32_t n_suspects;
    td_lost_device *lost; /* [n_lost] left out of the plan, in the order in which they failed */
    int32_t n_lost;
    /* The machine as the user's own execution saw it: the key of device i. A card that fell off the
     * bus is not enumerated any more, and the numbers of those behind it shift. */
    char (*machine)[TD_DEVICE_KEY_SIZE]; /* [n_machine] */
    int32_t n_machine;
    char compute[8]; /* resolved there; "auto" must not come to another end without a device */
    int32_t n_reexec;
    int64_t pid; /* of the process that wrote it; a re-execution keeps it */
} td_faults;

/* One failure, as td_run reports it. */
typedef struct td_fault_sample {
    int64_t row, start;
} td_fault_sample;
typedef struct td_fault {
    char key[TD_DEVICE_KEY_SIZE], name[32]; /* of the device that failed; "" = no failure */
    char why[512];
    td_fault_sample *samples; /* [n_samples] in flight there, oldest micro-batch first; owned */
    int32_t n_samples;
} td_fault;
void td_fault_free(td_fault *f); /* NULL and {0} allowed */

/* UUID, or name where there is none. */
const char *td_device_key(const td_device_info *info);
/* Which of n devices failed first: the one that says so itself, else the one that the message of
 * the error names last (the others only waited for it). -1: cannot be told. Entries may be NULL. */
int32_t td_faults_culprit(td_device *const *devices, int32_t n, const char *message);

/* Reads DIR/faults.json; {0} when there is none. A file that makes no sense is TD_E_OUTPUT, with
 * *out {0}: the caller warns and goes on without. */
td_status td_faults_load(const char *dir, td_faults *out, td_error *err);
/* Atomic and durable. */
td_status td_faults_save(const td_faults *f, const char *dir, td_error *err);
void td_faults_remove(const char *dir); /* not there: fine */
void td_faults_free(td_faults *f);      /* {0} and NULL allowed */

/* The user started the run himself: devices get another chance, samples stay suspect. */
void td_faults_forget_devices(td_faults *f);
bool td_faults_is_lost(const td_faults *f, const char *key);
/* NULL: not a suspect. */
const td_suspect *td_faults_find(const td_faults *f, int64_t row, int64_t start);

/* Applies the rules to a failure. *blamed points to the suspect that is to blame, or is NULL: then
 * the device counts as lost. */
td_status td_faults_note(td_faults *f, const td_fault *fault, const td_suspect **blamed,
                         td_error *err);
/* TD_E_MODEL: what a run under on_bad_sample = fail says of a blamed sample. */
td_status td_faults_blame_error(const td_suspect *s, const char *dir, td_error *err);
/* Lines for the closing report; nothing without failures. */
void td_faults_print(const td_faults *f, FILE *out);

#endif
