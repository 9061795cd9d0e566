/* A short measurement of what a device reaches, through the device table like everything else. */
#include <stdlib.h>

#include "tdgen/device.h"
#include "tdgen/util.h"

enum { N = 1024, N_ROWS = 2048, MAX_ROUNDS = 64 };
#define BUDGET_S 0.06

typedef struct probe {
    td_device *dev;
    td_stream *stream;
    td_event *event;
    td_weight *weight;
    void *in, *out;
} probe;

static void probe_close(probe *p) {
    const td_device_ops *ops = p->dev->ops;
    if (p->stream)
        ops->stream_destroy(p->stream);
    if (p->event)
        ops->event_destroy(p->event);
    if (p->weight)
        ops->weight_destroy(p->weight);
    ops->free(p->dev, p->in);
    ops->free(p->dev, p->out);
}

static td_status probe_open(probe *p, td_dtype compute, td_error *err) {
    const td_device_ops *ops = p->dev->ops;
    size_t n_in = (size_t)N_ROWS * N * td_dtype_size(compute);
    float *w = td_calloc((size_t)N * N, sizeof *w);
    void *zeros = td_calloc(1, n_in);
    if (!w || !zeros) {
        free(w);
        free(zeros);
        return td_error_nomem(err, "the speed measurement", n_in);
    }
    /* Small, regular values: no denormals, no infinities. */
    for (int32_t i = 0; i < N * N; i++)
        w[i] = (float)(i % 7) * 0.125f;
    td_host_matrix m = {.data = w, .dtype = TD_F32, .n_rows = N, .n_cols = N};
    td_status rc = ops->stream_create(p->dev, &p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_create(p->dev, &p->event, err);
    if (rc == TD_OK)
        rc = ops->weight_prepare(p->dev, &m, 1, compute, &p->weight, err);
    if (rc == TD_OK)
        rc = ops->alloc(p->dev, n_in, &p->in, err);
    if (rc == TD_OK)
        rc = ops->alloc(p->dev, (size_t)N_ROWS * N * sizeof(float), &p->out, err);
    if (rc == TD_OK)
        rc = ops->copy_in(p->stream, p->in, zeros, n_in, err);
    if (rc == TD_OK)
        rc = ops->event_record(p->event, p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_sync(p->event, 0, err);
    free(w);
    free(zeros);
    return rc;
}

/* One product, waited for. */
static td_status probe_gemm(probe *p, double *seconds, td_error *err) {
    const td_device_ops *ops = p->dev->ops;
    td_gemm_args a = {
        .weight = p->weight, .in = p->in, .out = p->out, .n_rows = N_ROWS, .scale = 1};
    double t0 = td_time_s();
    td_status rc = ops->gemm(p->stream, &a, err);
    if (rc == TD_OK)
        rc = ops->event_record(p->event, p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_sync(p->event, 0, err);
    *seconds = td_time_s() - t0;
    return rc;
}

static td_status probe_copy(probe *p, double *seconds, td_error *err) {
    const td_device_ops *ops = p->dev->ops;
    size_t n = (size_t)N_ROWS * N * td_dtype_size(p->weight->compute);
    double t0 = td_time_s();
    td_status rc = ops->copy_peer(p->stream, p->out, p->dev, p->in, n, err);
    if (rc == TD_OK)
        rc = ops->event_record(p->event, p->stream, err);
    if (rc == TD_OK)
        rc = ops->event_sync(p->event, 0, err);
    *seconds = td_time_s() - t0;
    return rc;
}

td_status td_device_measure(td_device *dev, td_dtype compute, td_device_speed *out, td_error *err) {
    probe p = {.dev = dev};
    double gemm_s = 1e30, copy_s = 1e30, s;
    td_status rc = probe_open(&p, compute, err);
    if (rc == TD_OK)
        rc = probe_gemm(&p, &s, err); /* the first pays for cold caches and sleeping threads */
    double until = td_time_s() + BUDGET_S;
    for (int i = 0; rc == TD_OK && i < MAX_ROUNDS && (i < 2 || td_time_s() < until); i++) {
        rc = probe_gemm(&p, &s, err);
        gemm_s = TD_MIN(gemm_s, s);
        if (rc == TD_OK)
            rc = probe_copy(&p, &s, err);
        copy_s = TD_MIN(copy_s, s);
    }
    if (rc == TD_OK) {
        out->tflops = 2.0 * N_ROWS * N * N / gemm_s * 1e-12;
        /* read and written */
        out->mem_gbs = 2.0 * N_ROWS * N * (double)td_dtype_size(compute) / copy_s * 1e-9;
    }
    probe_close(&p);
    return rc;
}
