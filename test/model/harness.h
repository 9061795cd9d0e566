/* harness.h - runs samples through a session and collects the captured rows in sample order.
 *
 * The suites that use it run on CPU devices, or with TDGEN_TEST_DEVICE=cuda on GPUs, with the same
 * fixtures and the same tolerances. Without such a device they exit 77, SKIPPED. */
#ifndef TDGEN_TEST_MODEL_HARNESS_H
#define TDGEN_TEST_MODEL_HARNESS_H

#include "fixture.h"
#include "model/model.h"

typedef struct hs_samples {
    int32_t n;
    int32_t *offsets; /* [n + 1] */
    int32_t *ids;     /* [offsets[n]] */
} hs_samples;

/* One line of ids per sample. */
hs_samples hs_samples_read(const char *path);
hs_samples hs_samples_random(int32_t n, int32_t min_len, int32_t max_len, int32_t n_vocab,
                             uint64_t seed);
void hs_samples_free(hs_samples *s);

/* One row per token: its target is the next token, or token 5 after the last. */
typedef struct hs_rows {
    int32_t n, K, nT;
    int32_t *topk_ids, *target_rank;
    float *topk_logprobs, *logsumexp, *logsumexp_t, *tail_mass, *target_logprob, *entropy;
    bool narrow_attention; /* of the device that computed them */
} hs_rows;
void hs_rows_free(hs_rows *r);
int32_t hs_target(const hs_samples *s, int32_t sample, int32_t token);
/* True when rows [a0, a0 + n) of a and [b0, b0 + n) of b are the same bytes. */
bool hs_rows_equal(const hs_rows *a, int32_t a0, const hs_rows *b, int32_t b0, int32_t n);

typedef struct hs_setup {
    const char *dir;
    td_dtype compute;
    int32_t n_stages;     /* as many devices */
    int32_t max_tokens;   /* 0: enough for all samples at once */
    int32_t capture_rows; /* 0: 64 */
    int32_t top_k;
    int32_t n_temperatures;
    float temperatures[2];
    int32_t n_valid_vocab; /* 0: all */
} hs_setup;

/* The spec with what follows from the model: vocabulary, all of it valid unless said, hidden size. */
td_capture_spec hs_spec(const td_model_config *cfg, td_capture_spec spec);

/* Runs the samples in order, as many whole samples per micro-batch as fit, slots always full. */
hs_rows hs_run(const hs_setup *setup, const hs_samples *s);

/* False, after saying so loudly, when the device (a CPU under ONEDNN_MAX_CPU_ISA, a V100 for bf16)
 * has no such compute mode. */
bool hs_can_compute(td_dtype compute);
/* Opens n devices. */
void hs_devices_open(td_device **devices, int32_t n);
void hs_devices_close(td_device **devices, int32_t n);
/* Splits the items of the model over the devices. */
void hs_stages(const td_model_config *cfg, td_device **devices, int32_t n, td_stage *stages);

#endif
