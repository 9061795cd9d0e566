/* fixture.h - a device, a stream and small helpers for the suites of the device API. On CPU devices
 * device memory is host memory, which the helpers use to fill and read it. */
#ifndef TDGEN_TEST_DEVICE_FIXTURE_H
#define TDGEN_TEST_DEVICE_FIXTURE_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"
#include "device/device.h"
#include "base/dtype.h"

typedef struct fixture {
    td_device *dev;
    const td_device_ops *ops;
    td_stream *s;
    td_event *done;
} fixture;

/* n_threads overrides the enumeration's share, so that 1, 2 and 4 run on any machine; `share` is the
 * share of its time that the device works. */
static inline fixture fixture_open_at(int32_t n_threads, double share) {
    td_error err = {0};
    td_device_info *info;
    int32_t n;
    fixture f;
    OK(td_device_enumerate("cpu", 1, &info, &n, &err));
    cr_assert_eq(n, 1);
    if (n_threads)
        info[0].n_threads = n_threads;
    info[0].speed_share = share;
    OK(td_device_open(&info[0], &f.dev, &err));
    free(info);
    f.ops = f.dev->ops;
    OK(f.ops->stream_create(f.dev, &f.s, &err));
    OK(f.ops->event_create(f.dev, &f.done, &err));
    return f;
}

static inline fixture fixture_open(int32_t n_threads) {
    return fixture_open_at(n_threads, 1);
}

static inline void fixture_sync(fixture *f) {
    td_error err = {0};
    OK(f->ops->event_record(f->done, f->s, &err));
    OK(f->ops->event_sync(f->done, 0, &err));
}

static inline void fixture_close(fixture *f) {
    f->ops->stream_destroy(f->s);
    f->ops->event_destroy(f->done);
    td_device_close(f->dev);
}

/* xorshift: the same numbers everywhere. */
typedef struct test_rng {
    uint64_t s;
} test_rng;
static inline uint64_t rng_next(test_rng *r) {
    return test_xorshift(&r->s);
}
static inline int32_t rng_below(test_rng *r, int32_t n) {
    return (int32_t)((rng_next(r) >> 33) % (uint64_t)n);
}
/* Roughly normal, mean 0, deviation 1. */
static inline float rng_normal(test_rng *r) {
    double s = 0;
    for (int i = 0; i < 4; i++)
        s += (double)(rng_next(r) >> 40) / 16777216.0;
    return (float)((s - 2.0) * 1.7320508);
}
static inline float *rng_floats(test_rng *r, size_t n) {
    float *p = malloc((n ? n : 1) * sizeof(float));
    cr_assert(p);
    for (size_t i = 0; i < n; i++)
        p[i] = rng_normal(r);
    return p;
}

static inline td_weight *weight_of(fixture *f, const float *w, int64_t n, int64_t k,
                                   td_dtype compute) {
    td_error err = {0};
    td_weight *out;
    td_host_matrix part = {w, TD_F32, n, k};
    OK(f->ops->weight_prepare(f->dev, &part, 1, compute, &out, &err));
    return out;
}

/* Rows of f32 in the compute type; freed by the caller. */
static inline void *to_compute(const float *x, size_t n, td_dtype compute) {
    char *p = malloc(n * td_dtype_size(compute));
    cr_assert(p);
    for (size_t i = 0; i < n; i++) {
        uint16_t h = td_f32_to_bf16(x[i]);
        if (compute == TD_F32)
            memcpy(p + i * 4, &x[i], 4);
        else
            memcpy(p + i * 2, &h, 2);
    }
    return p;
}

/* The activations by their definitions. */
static inline double act_of(td_act act, double g) {
    if (act == TD_ACT_SILU)
        return g / (1 + exp(-g));
    if (act == TD_ACT_GELU)
        return g * erfc(-g / sqrt(2.0)) / 2;
    const double y = sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g);
    return g / (1 + exp(-2 * y)); /* = 0.5 g (1 + tanh y) */
}

static inline void near(double got, double want, double tol, const char *what, int64_t at) {
    cr_assert(fabs(got - want) <= tol * (1 + fabs(want)), "%s [%lld]: %.9g, expected %.9g", what,
              (long long)at, got, want);
}

#endif
