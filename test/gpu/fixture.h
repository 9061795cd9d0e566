/* fixture.h - what the suites of the CUDA device share: test_gpu_*.c, plain programs.
 *
 * Every case runs the same operation on the device under test and on the CPU device, the f32
 * oracle, and compares. Inputs of 16-bit types are drawn, rounded to the type and given to the
 * oracle as f32, so both sides start from the same numbers. Tolerances stand beside each comparison
 * and say what they allow for.
 *
 * The convention of these programs, for CTest and for `tools/check --gpu`:
 *   TDGEN_TEST_DEVICE=cuda|cpu  the device under test; cuda when unset. With cpu the oracle is
 *                               compared with itself: a proof of the suites, not of a GPU.
 *   TDGEN_TEST_LARGE=1          adds the sizes of real models: for hardware. Unset (the
 *                               CUDA-on-CPU layer), sizes are small.
 *   arguments                   parts of case names: only such cases run. --list prints the names.
 *   exit code                   0 all passed, 1 some failed, 77 SKIPPED: no such device here
 *                               (CTest: SKIP_RETURN_CODE 77).
 *   last line of stdout         "PROGRAM: N passed, N failed"
 * The suites of the model (test/model) follow TDGEN_TEST_DEVICE too, and exit 77 likewise.
 *
 * Threads: one. A case that fails a call (GT_MUST) is left by longjmp; what it held is freed, the
 * streams are made anew, and the next case runs. A lost device ends the program.
 */
#ifndef TDGEN_TEST_GPU_FIXTURE_H
#define TDGEN_TEST_GPU_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "device/device.h"

enum { GT_SKIPPED = 77 };

/* A device with a stream. */
typedef struct gt_side {
    td_device *dev;
    const td_device_ops *ops;
    td_stream *s;
    td_event *done;
} gt_side;

extern gt_side gt_cpu, gt_dut; /* the oracle, the device under test */
extern bool gt_large;          /* TDGEN_TEST_LARGE=1 */
extern bool gt_fills;          /* new device memory is filled */
extern td_error gt_err;

typedef struct gt_case {
    const char *name;
    void (*run)(void);
} gt_case;

/* main of a suite: opens the devices, runs the cases, closes, prints the last line. */
int gt_main(const char *program, int argc, char **argv, const gt_case *cases, size_t n_cases);

/* Opens device `index` of the backend under test for a case (with a stream); exits 77 without one.
 * False when there are not so many. Closed by gt_side_close. */
bool gt_side_open(gt_side *side, int32_t index);
void gt_side_close(gt_side *side);
int32_t gt_n_devices(void); /* of the backend under test */

/* --- failures --------------------------------------------------------------------------------- */

/* Counts a failure of the running case; the first few are printed. */
void gt_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A call that has to succeed; otherwise the case ends here. */
#define GT_MUST(call) gt_must((call), #call)
void gt_must(td_status st, const char *what);
#define GT_CHECK(cond, ...)                                                                        \
    do {                                                                                           \
        if (!(cond))                                                                               \
            gt_fail(__VA_ARGS__);                                                                  \
    } while (0)

/* --- memory: all of it goes back at the end of the case --------------------------------------- */

void *gt_host(size_t size_bytes); /* zeroed */
/* Device memory that holds a copy of src; with src NULL it is filled with 0xff, NaN to readers (but
 * under Valgrind, TDGEN_PRETEND_NO_FILL=1, which then sees what was never written). On
 * hardware (TDGEN_TEST_LARGE) a fence stands behind it, checked at the end of the case; on the
 * CUDA-on-CPU layer AddressSanitizer stands there. */
void *gt_put(gt_side *side, const void *src, size_t size_bytes);
void gt_get(gt_side *side, void *dst, const void *src, size_t size_bytes); /* waits */
void gt_set(gt_side *side, void *dst, const void *src, size_t size_bytes); /* waits */
void gt_sync(gt_side *side);
/* Gives back all of the case so far: between the turns of a long one. */
void gt_release(void);
/* An [n, k] weight of values that `compute` holds exactly. Destroyed at the end of the case. */
td_weight *gt_weight(gt_side *side, const float *w, int64_t n, int64_t k, td_dtype compute);

/* --- numbers ---------------------------------------------------------------------------------- */

typedef struct gt_rng {
    uint64_t s;
} gt_rng;
uint64_t gt_next(gt_rng *r);
int32_t gt_below(gt_rng *r, int32_t n);
float gt_normal(gt_rng *r); /* about N(0, 1) */
float *gt_floats(gt_rng *r, size_t n);
/* n values rounded to what t holds. */
float *gt_floats_of(gt_rng *r, size_t n, td_dtype t);
void gt_round(float *x, size_t n, td_dtype t);
/* To and from an array of type t. */
void *gt_pack(const float *x, size_t n, td_dtype t);
float *gt_unpack(const void *x, size_t n, td_dtype t);
/* Relative distance of neighbouring numbers of t: 2^-23, 2^-7, 2^-10. */
double gt_ulp(td_dtype t);
/* Compute types of the device under test, f32 first: n of them. */
int32_t gt_computes(td_dtype out[3]);
/* Whether td_rope_args.out and 16-bit attention exist there: everywhere but on CPU devices. */
bool gt_turns_into(void);

/* got[i] within abs + rel * |want[i]| of want[i]; NaN only where NaN is wanted, infinities alike.
 * `cols` for the message. False on a failure, which is counted. */
bool gt_near(const float *got, const float *want, size_t n, int64_t cols, double abs_tol,
             double rel_tol, const char *fmt, ...) __attribute__((format(printf, 7, 8)));
bool gt_same_bits(const void *got, const void *want, size_t size_bytes, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* --- the contract of rows --------------------------------------------------------------------- */

/* Runs an operation over n rows of host data, row_bytes each, into n rows of out_bytes each. */
typedef struct gt_rows {
    const char *name;
    size_t row_bytes, out_bytes;
    void (*run)(const void *rows, int32_t n, void *out, void *ctx);
    void *ctx;
    /* One ordinary row, for the probe and its neighbours. */
    void (*draw)(gt_rng *r, void *row, void *ctx);
    bool hostile; /* neighbours of 0xff bytes (NaN) and of huge numbers are allowed */
} gt_rows;
/* A row's bits, alone and at the first, last and inner places of `counts` rows, among ordinary and
 * hostile neighbours. */
void gt_check_rows(const gt_rows *rows, const int32_t *counts, int32_t n_counts, uint64_t seed);
/* 1, 2, 7, 63, 64, 65, 127, 128, 129, 300, 1000: as many as max allows. */
int32_t gt_row_counts(int32_t max, int32_t out[16]);

#endif
