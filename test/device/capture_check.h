/* capture_check.h - what capture gave against a naive f64 reading of the definitions in
 * td_capture_args, for the suites of both kinds of device. */
#ifndef TDGEN_TEST_DEVICE_CAPTURE_CHECK_H
#define TDGEN_TEST_DEVICE_CAPTURE_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "device/device.h"

/* Rows of ties, worst orders and infinities, beginning from ordinary logits [TIES_ROWS, TIES_V]; ids
 * in some are drawn from `rng` (test_xorshift). */
enum { TIES_V = 3000, TIES_K = 48, TIES_ROWS = 8 };
extern const int32_t capture_ties_targets[TIES_ROWS];
void capture_ties(float *z, uint64_t *rng);

/* How logits are finished; n_valid 0 stands for all. */
typedef struct finish {
    int32_t n_valid;
    float divisor, softcap;
} finish;

/* On the host: ids and lps are [n_rows, k], lse_t is [n_rows, n_temps], the others [n_rows]. */
typedef struct outputs {
    int32_t *ids, *rank;
    float *lps, *lse, *lse_t, *tail, *target_lp, *entropy;
} outputs;

/* Arguments that fill `to`; logits and targets are left to the caller. */
td_capture_args capture_args(const outputs *to, int32_t n_rows, int32_t v, int32_t k,
                             const float *temps, int32_t n_temps, finish how);

/* What differs between the devices. */
typedef struct capture_rules {
    void (*fail)(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* may not return */
    double tail_rel, target_abs; /* tolerances of tail_mass, and of target_logprob without top-k */
    bool near_ranks;             /* without top-k log S is unknown to the last bit: so are ties */
} capture_rules;

/* One row of logits that are finished already: everything, ids in their order included. `target` -1
 * stands for none. */
void capture_check_row(const capture_rules *rules, const outputs *o, const float *z, int32_t target,
                       int32_t row, int32_t v, int32_t k, const float *temps, int32_t n_temps);

/* Divided, capped and masked, by the formula, in f64, rounded once: z is [n_rows, v]. */
void capture_finish(const float *logits, double *z, int32_t n_rows, int32_t v, finish how);

/* One finished row (two temperatures), of which n ids are valid. The device's z may differ in its
 * last bits: what was taken must be right up to that, and consistent with itself. */
void capture_check_finished(const capture_rules *rules, const outputs *o, const double *z,
                            int32_t target, int32_t row, int32_t v, int32_t n, int32_t k,
                            const float temps[2]);

#endif
