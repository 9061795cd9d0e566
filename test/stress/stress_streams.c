/* stress_streams.c - several streams with pools of their own, events across them, random operations
 * of random sizes, events destroyed in flight, driven by two host threads. Run under
 * ThreadSanitizer as well; GEMM is left out, as oneDNN and libgomp are not instrumented. Exits 0
 * when every value that travelled along a chain of streams arrived. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/device.h"
#include "base/memory.h"

enum { N_STREAMS = 3, ROUNDS = 150, COLS = 64, MAX_ROWS = 400 };

static atomic_int n_failed;

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, err.text);              \
            atomic_fetch_add(&n_failed, 1);                                                        \
        }                                                                                          \
    } while (0)

/* A chain of streams: each adds work of its own and passes one buffer on to the next. */
static void *drive(void *arg) {
    uint32_t seed = (uint32_t)(uintptr_t)arg * 2654435761u + 1;
    td_error err = {0};
    td_device_info *info = NULL;
    td_device *dev[N_STREAMS] = {0};
    td_stream *s[N_STREAMS] = {0};
    int32_t n = 0;
    EXPECT(!td_device_enumerate("cpu", N_STREAMS, &info, &n, &err) && n == N_STREAMS);
    for (int i = 0; i < N_STREAMS; i++) {
        info[i].n_threads = 1 + i; /* pools of 1, 2 and 3 whatever the machine */
        EXPECT(!td_device_open(&info[i], &dev[i], &err));
        EXPECT(!dev[i]->ops->stream_create(dev[i], &s[i], &err));
    }
    const td_device_ops *ops = dev[0]->ops;
    float *x[N_STREAMS], *y[N_STREAMS], w[COLS], host[COLS];
    for (int i = 0; i < N_STREAMS; i++) {
        x[i] = td_calloc(MAX_ROWS * COLS * 2, sizeof(float));
        y[i] = td_calloc(MAX_ROWS * COLS * 2, sizeof(float));
    }
    for (int i = 0; i < COLS; i++)
        w[i] = 1;
    const int32_t offsets[2] = {0, 100};
    for (int round = 0; round < ROUNDS; round++) {
        td_event *e[N_STREAMS];
        float token = (float)round + 0.5f;
        for (int i = 0; i < N_STREAMS; i++) {
            seed = seed * 1664525u + 1013904223u;
            const int32_t rows = 1 + (int32_t)(seed >> 8) % MAX_ROWS;
            EXPECT(!ops->event_create(dev[i], &e[i], &err));
            if (i == 0) {
                for (int c = 0; c < COLS; c++)
                    host[c] = token;
                EXPECT(!ops->copy_in(s[0], x[0], host, sizeof(host), &err));
            } else {
                EXPECT(!ops->stream_wait(s[i], e[i - 1], &err));
                EXPECT(!ops->copy_peer(s[i], x[i], dev[i - 1], x[i - 1], sizeof(host), &err));
            }
            switch (seed >> 30) {
            case 0: {
                td_norm_args a = {.in = x[i],
                                  .weight = w,
                                  .out = y[i],
                                  .n_rows = rows,
                                  .n_cols = COLS,
                                  .n_inner = 1,
                                  .in_stride = COLS,
                                  .out_stride = COLS,
                                  .eps = 1e-5f};
                EXPECT(!ops->norm(s[i], &a, &err));
                break;
            }
            case 1: {
                td_act_args a = {TD_ACT_SILU, true, x[i], y[i], TD_F32, rows, COLS};
                EXPECT(!ops->act(s[i], &a, &err));
                break;
            }
            case 2: {
                td_attention_args a = {.q = x[i],
                                       .k = x[i] + 16,
                                       .v = x[i] + 32,
                                       .stride = COLS,
                                       .out = y[i],
                                       .out_dtype = TD_F32,
                                       .seq_offsets = offsets,
                                       .seq_offsets_host = offsets,
                                       .n_seqs = 1,
                                       .n_heads = 2,
                                       .n_kv_heads = 2,
                                       .head_dim = 8,
                                       .scale = 0.3f};
                EXPECT(!ops->attention(s[i], &a, &err));
                break;
            }
            default: {
                static const int32_t zeros[50];
                td_embed_args a = {zeros, x[i], TD_F32, y[i], TD_MIN(rows, 50), COLS, 1, false};
                EXPECT(!ops->embed(s[i], &a, &err));
            }
            }
            EXPECT(!ops->event_record(e[i], s[i], &err));
        }
        EXPECT(!ops->copy_out(s[N_STREAMS - 1], host, x[N_STREAMS - 1], sizeof(host), &err));
        /* The first stream may not overwrite its buffer before the last one has read it. */
        EXPECT(!ops->event_record(e[N_STREAMS - 1], s[N_STREAMS - 1], &err));
        EXPECT(!ops->stream_wait(s[0], e[N_STREAMS - 1], &err));
        EXPECT(!ops->event_sync(e[N_STREAMS - 1], 60, &err));
        for (int c = 0; c < COLS; c++)
            EXPECT(host[c] == token);
        for (int i = 0; i < N_STREAMS; i++)
            ops->event_destroy(e[i]); /* s[0]'s wait may still refer to the last one */
    }
    for (int i = 0; i < N_STREAMS; i++) {
        ops->stream_destroy(s[i]);
        td_device_close(dev[i]);
        free(x[i]);
        free(y[i]);
    }
    free(info);
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    for (uintptr_t i = 0; i < 2; i++)
        if (pthread_create(&threads[i], NULL, drive, (void *)(i + 1)))
            return 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return atomic_load(&n_failed) ? 1 : 0;
}
