/* Devices, memory, copies, streams and events of the CUDA backend. With more than one device (the
 * CUDA-on-CPU layer offers any number) also what goes between them. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "fixture.h"
#include "base/memory.h"

enum { MIB = 1 << 20 };

static void case_devices_are_described(void) {
    td_device_info *info;
    int32_t n;
    GT_MUST(td_device_enumerate(gt_dut.ops->backend, 0, &info, &n, &gt_err));
    for (int32_t i = 0; i < n && gt_turns_into(); i++) {
        const td_device_info *d = &info[i];
        char name[32];
        snprintf(name, sizeof(name), "cuda:%d", i);
        GT_CHECK(!strcmp(d->name, name) && d->index == i, "%s, index %d", d->name, d->index);
        GT_CHECK(d->model[0] && strstr(d->kind, d->model), "model %s, kind %s", d->model, d->kind);
        GT_CHECK(!strncmp(d->uuid, "GPU-", 4) && strlen(d->uuid) == 40, "uuid %s", d->uuid);
        GT_CHECK(strlen(d->pci) == 12 && d->pci[4] == ':', "pci %s", d->pci);
        GT_CHECK(d->compute_capability >= 70 && d->n_multiprocessors > 0, "sm_%d with %d",
                 d->compute_capability, d->n_multiprocessors);
        GT_CHECK(d->has_f32 && d->has_bf16 == (d->compute_capability >= 80), "%s: compute modes",
                 d->name);
        GT_CHECK(d->memory_total_bytes > 0 && d->memory_free_bytes <= d->memory_total_bytes,
                 "%s: memory", d->name);
        GT_CHECK(!(d->peers >> i & 1), "%s is its own peer", d->name);
        for (int32_t j = 0; j < i; j++)
            GT_CHECK(strcmp(d->uuid, info[j].uuid) != 0 && d->domain != info[j].domain,
                     "%s and %s are alike", d->name, info[j].name);
    }
    free(info);
    td_device_health h;
    memset(&h, 0xff, sizeof(h));
    if (gt_dut.ops->health) {
        gt_dut.ops->health(gt_dut.dev, &h);
        GT_CHECK(!h.known || (h.temperature_c >= -1 && h.utilization_percent <= 100 &&
                              memchr(h.throttle, 0, sizeof(h.throttle))),
                 "sensors: %d C, %d%%", h.temperature_c, h.utilization_percent);
    }
}

static void case_speed_is_measured(void) {
    td_device_speed speed;
    td_dtype types[3];
    const int32_t n = gt_computes(types);
    /* The layer on the CPU multiplies slowly: one type is enough of it. */
    for (int32_t t = 0; t < (gt_large ? n : 0); t++) {
        GT_MUST(td_device_measure(gt_dut.dev, types[t], &speed, &gt_err));
        GT_CHECK(speed.tflops > 0.1 && speed.mem_gbs > 10, "%s: %g TFLOP/s, %g GB/s",
                 td_dtype_name(types[t]), speed.tflops, speed.mem_gbs);
        printf("    %s: %.1f TFLOP/s, %.0f GB/s\n", td_dtype_name(types[t]), speed.tflops,
               speed.mem_gbs);
    }
}

/* --- memory ----------------------------------------------------------------------------------- */

static void case_copies_of_any_size_and_place(void) {
    static const size_t sizes[] = {0, 1, 2, 3, 4, 255, 4097, 65536, 65537, 3 * MIB + 1};
    gt_rng r = {30};
    const size_t max = 3 * MIB + 64;
    unsigned char *src = gt_host(max), *dst = gt_host(max), *pinned;
    for (size_t i = 0; i < max; i++)
        src[i] = (unsigned char)gt_next(&r);
    void *d = gt_put(&gt_dut, NULL, max), *e = gt_put(&gt_dut, NULL, max);
    GT_MUST(gt_dut.ops->host_alloc(gt_dut.dev, max, (void **)&pinned, &gt_err));
    for (size_t i = 0; i < TD_ARRAY_LEN(sizes); i++)
        for (int shift = 0; shift < 3; shift++) {
            const size_t n = sizes[i];
            memset(dst, 0, max);
            memcpy(pinned, src, max);
            GT_MUST(gt_dut.ops->copy_in(gt_dut.s, (char *)d + shift,
                                        (i % 2 ? pinned : src) + 5 * shift, n, &gt_err));
            GT_MUST(gt_dut.ops->copy_peer(gt_dut.s, (char *)e + 7, gt_dut.dev, (char *)d + shift, n,
                                          &gt_err));
            gt_get(&gt_dut, dst + shift, (char *)e + 7, n);
            gt_same_bits(dst + shift, src + 5 * shift, n, "%zu bytes, shift %d", n, shift);
            GT_CHECK(dst[shift + n] == 0, "%zu bytes: one more was copied", n);
        }
    gt_dut.ops->host_free(gt_dut.dev, pinned);
    gt_dut.ops->host_free(gt_dut.dev, NULL);
    gt_dut.ops->free(gt_dut.dev, NULL);
}

/* Too much is an error by name, and nothing is broken afterwards. */
static void case_out_of_memory(void) {
    if (!gt_turns_into())
        return;
    void *p = NULL;
    const uint64_t total = gt_dut.dev->info.memory_total_bytes;
    for (int i = 0; i < 2; i++) {
        const size_t n = i ? SIZE_MAX - 5 : (size_t)total * 2;
        GT_CHECK(gt_dut.ops->alloc(gt_dut.dev, n, &p, &gt_err) == TD_E_DEVICE_OOM, "%zu bytes", n);
        GT_CHECK(strstr(gt_err.text, gt_dut.dev->info.name), "no device in: %s", gt_err.text);
    }
    td_weight *w;
    void *data;
    GT_CHECK(gt_dut.ops->weight_create(gt_dut.dev, (int64_t)(total >> 14), 4 << 14, TD_F32, &w,
                                       &data, &gt_err) == TD_E_DEVICE_OOM,
             "a weight of sixteen times the memory");
    float x = 3, y = 0;
    gt_get(&gt_dut, &y, gt_put(&gt_dut, &x, 4), 4);
    GT_CHECK(y == 3, "a later allocation holds %g", (double)y);
}

static void case_arena(void) {
    gt_side s;
    if (!gt_dut.ops->reserve || !gt_side_open(&s, 0))
        return;
    /* A small one: pieces of it do not touch each other, free ones are used again and join. */
    enum { N = 12, ARENA = 2 * MIB };
    uint64_t got = 0;
    unsigned char *p[N], fill[20000], back[20000];
    GT_MUST(s.ops->reserve(s.dev, ARENA, &got, &gt_err));
    GT_CHECK(got >= ARENA, "%llu bytes", (unsigned long long)got);
    GT_CHECK(s.ops->reserve(s.dev, ARENA, &got, &gt_err) != TD_OK || getenv("TDGEN_DEBUG_ALLOC"),
             "a second arena");
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++) {
            const size_t n = 1000 * (size_t)(i + 1) + (size_t)round;
            GT_MUST(s.ops->alloc(s.dev, n, (void **)&p[i], &gt_err));
            GT_CHECK((uintptr_t)p[i] % 64 == 0, "not aligned");
            memset(fill, i + 1, sizeof(fill));
            gt_set(&s, p[i], fill, n);
        }
        for (int i = 0; i < N; i++) {
            const size_t n = 1000 * (size_t)(i + 1) + (size_t)round;
            gt_get(&s, back, p[i], n);
            memset(fill, i + 1, sizeof(fill));
            gt_same_bits(back, fill, n, "piece %d", i);
        }
        for (int i = round % 2; i < N; i += 2) /* every second, then the others */
            s.ops->free(s.dev, p[i]);
        for (int i = 1 - round % 2; i < N; i += 2)
            s.ops->free(s.dev, p[i]);
    }
    if (!getenv("TDGEN_DEBUG_ALLOC")) {
        GT_CHECK(s.ops->alloc(s.dev, ARENA + 1, (void **)&p[0], &gt_err) == TD_E_DEVICE_OOM,
                 "more than the arena");
        GT_CHECK(strstr(gt_err.text, s.dev->info.name), "no device in: %s", gt_err.text);
        GT_MUST(s.ops->alloc(s.dev, ARENA, (void **)&p[0], &gt_err)); /* all joined again */
        GT_CHECK(s.ops->alloc(s.dev, 1, (void **)&p[1], &gt_err) == TD_E_DEVICE_OOM,
                 "one more byte");
        s.ops->free(s.dev, p[0]);
    }
    gt_side_close(&s);
    /* More than there is: what there is. */
    if (getenv("TDGEN_DEBUG_ALLOC") || !gt_side_open(&s, 0))
        return;
    const uint64_t total = s.dev->info.memory_total_bytes;
    td_status st = s.ops->reserve(s.dev, 4 * total, &got, &gt_err);
    if (st) { /* a card in use may have nothing left; then it says so */
        GT_CHECK(st == TD_E_DEVICE_OOM, "status %d: %s", (int)st, gt_err.text);
    } else {
        GT_CHECK(got > 0 && got <= total, "%llu of %llu bytes", (unsigned long long)got,
                 (unsigned long long)total);
        GT_MUST(s.ops->alloc(s.dev, got, (void **)&p[0], &gt_err));
        s.ops->free(s.dev, p[0]);
    }
    gt_side_close(&s);
}

/* --- order ------------------------------------------------------------------------------------ */

static void case_operations_run_in_order(void) {
    enum { N = 3000 };
    int32_t first = 42, last = 0;
    int32_t *chain = gt_put(&gt_dut, NULL, (N + 1) * 4);
    gt_set(&gt_dut, chain, &first, 4);
    for (int i = 0; i < N; i++)
        GT_MUST(gt_dut.ops->copy_peer(gt_dut.s, chain + i + 1, gt_dut.dev, chain + i, 4, &gt_err));
    gt_get(&gt_dut, &last, chain + N, 4);
    GT_CHECK(last == 42, "%d came through", last);
    GT_CHECK(gt_dut.ops->stream_busy_s(gt_dut.s) > 0, "the stream was never busy");
}

/* Value i goes from a to b and back, i + 1 only then: never early, never late. `b` may be another
 * device, another stream of the same device, or another handle of it (groups = 0 | 0). */
static void ping_pong(gt_side *a, gt_side *b, const char *what, int rounds) {
    td_event *there, *back;
    enum { C = 600 };
    gt_rng r = {31};
    float *in = gt_floats(&r, (size_t)rounds * C), *out = gt_host((size_t)rounds * C * 4);
    float *x = gt_put(a, NULL, C * 4), *xa = gt_put(a, NULL, C * 4), *y = gt_put(b, NULL, C * 4);
    GT_MUST(a->ops->event_create(a->dev, &there, &gt_err));
    GT_MUST(b->ops->event_create(b->dev, &back, &gt_err));
    GT_MUST(a->ops->stream_wait(a->s, back, &gt_err)); /* never recorded: no wait */
    const td_norm_args convert = {.kind = TD_NORM_NONE,
                                  .in = x,
                                  .out = xa,
                                  .n_rows = 1,
                                  .n_cols = C,
                                  .n_inner = 1,
                                  .in_stride = C,
                                  .out_stride = C};
    for (int i = 0; i < rounds; i++) {
        GT_MUST(a->ops->copy_in(a->s, x, in + (size_t)i * C, C * 4, &gt_err));
        GT_MUST(a->ops->norm(a->s, &convert, &gt_err)); /* a kernel between the copies */
        GT_MUST(a->ops->event_record(there, a->s, &gt_err));
        GT_MUST(b->ops->stream_wait(b->s, there, &gt_err));
        GT_MUST(b->ops->copy_peer(b->s, y, a->dev, xa, C * 4, &gt_err));
        GT_MUST(b->ops->event_record(back, b->s, &gt_err));
        GT_MUST(b->ops->copy_out(b->s, out + (size_t)i * C, y, C * 4, &gt_err));
        GT_MUST(a->ops->stream_wait(a->s, back, &gt_err));
    }
    gt_sync(b);
    gt_sync(a);
    gt_same_bits(out, in, (size_t)rounds * C * 4, "%s", what);
    /* An event may go while its latest record is in flight. */
    GT_MUST(a->ops->event_record(there, a->s, &gt_err));
    a->ops->event_destroy(there);
    b->ops->event_destroy(back);
    gt_release();
}

static void case_events_order_streams(void) {
    gt_side other = gt_dut, handle;
    const int rounds = gt_large ? 500 : 60;
    GT_MUST(gt_dut.ops->stream_create(gt_dut.dev, &other.s, &gt_err));
    GT_MUST(gt_dut.ops->event_create(gt_dut.dev, &other.done, &gt_err));
    ping_pong(&gt_dut, &other, "two streams of one device", rounds);
    ping_pong(&other, &gt_dut, "two streams of one device, the other way", rounds);
    gt_dut.ops->stream_destroy(other.s);
    gt_dut.ops->event_destroy(other.done);
    for (int32_t i = 0; i < TD_MIN(gt_n_devices(), 4); i++) {
        gt_side_open(&handle, i);
        char what[80];
        snprintf(what, sizeof(what), "%s with another %s", gt_dut.dev->info.name,
                 handle.dev->info.name);
        ping_pong(&gt_dut, &handle, what, rounds);
        ping_pong(&handle, &gt_dut, what, rounds);
        gt_side_close(&handle);
    }
}

/* All pairs, in one go and again at once, through sizes that need several hops over the host. */
static void case_copies_between_devices(void) {
    static const size_t sizes[] = {1, 4095, 70001, 4 * MIB, 4 * MIB + 1, 13 * MIB + 3};
    const int32_t n = TD_MIN(gt_n_devices(), 4);
    gt_side d[4] = {{0}};
    if (n < 2) {
        printf("    SKIPPED: one device only, nothing was copied between devices\n");
        return;
    }
    gt_rng r = {32};
    const size_t max = 13 * MIB + 3;
    unsigned char *src = gt_host(2 * max), *dst = gt_host(2 * max);
    for (size_t i = 0; i < 2 * max; i++)
        src[i] = (unsigned char)gt_next(&r);
    for (int32_t i = 0; i < n; i++)
        gt_side_open(&d[i], i);
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < n; j++) {
            if (i == j)
                continue;
            for (size_t k = 0; k < TD_ARRAY_LEN(sizes); k++) {
                const size_t m = sizes[k];
                char *a = gt_put(&d[i], src, 2 * m), *b = gt_put(&d[j], NULL, 2 * m);
                GT_MUST(d[j].ops->copy_peer(d[j].s, b, d[i].dev, a, m, &gt_err));
                GT_MUST(d[j].ops->copy_peer(d[j].s, b + m, d[i].dev, a + m, m, &gt_err));
                gt_get(&d[j], dst, b, 2 * m);
                gt_same_bits(dst, src, 2 * m, "%s to %s, twice %zu bytes", d[i].dev->info.name,
                             d[j].dev->info.name, m);
                d[i].ops->event_record(d[i].done, d[i].s, &gt_err);
            }
        }
    gt_release();
    for (int32_t i = 0; i < n; i++)
        gt_side_close(&d[i]);
}

static void case_sync_gives_up_at_its_limit(void) {
    const size_t n = (gt_large ? 256 : 16) * (size_t)MIB;
    const int times = gt_large ? 400 : 60;
    char *x = gt_put(&gt_dut, NULL, n), *y = gt_put(&gt_dut, NULL, n);
    for (int i = 0; i < times; i++)
        GT_MUST(
            gt_dut.ops->copy_peer(gt_dut.s, i % 2 ? x : y, gt_dut.dev, i % 2 ? y : x, n, &gt_err));
    GT_MUST(gt_dut.ops->event_record(gt_dut.done, gt_dut.s, &gt_err));
    GT_CHECK(gt_dut.ops->event_sync(gt_dut.done, 1e-4, &gt_err) == TD_E_DEVICE,
             "the wait did not give up");
    GT_CHECK(strstr(gt_err.text, gt_dut.dev->info.name), "no device in: %s", gt_err.text);
    GT_MUST(gt_dut.ops->event_sync(gt_dut.done, 0, &gt_err));
    GT_MUST(gt_dut.ops->event_sync(gt_dut.done, 1, &gt_err)); /* complete is complete */
}

static void case_arguments_are_copied_at_the_call(void) {
    enum { T = 64, C = 256 };
    gt_rng r = {33};
    float *table = gt_floats(&r, 10 * C), *host = gt_host(T * C * 4);
    int32_t ids[T];
    for (int i = 0; i < T; i++)
        ids[i] = i % 10;
    float *out = gt_put(&gt_dut, NULL, T * C * 4);
    td_embed_args a = {gt_put(&gt_dut, ids, T * 4),
                       gt_put(&gt_dut, table, 10 * C * 4),
                       TD_F32,
                       out,
                       T,
                       C,
                       1,
                       false};
    GT_MUST(gt_dut.ops->embed(gt_dut.s, &a, &gt_err));
    memset(&a, 0xff, sizeof(a));
    gt_get(&gt_dut, host, out, T * C * 4);
    for (int i = 0; i < T; i++)
        gt_same_bits(host + i * C, table + ids[i] * C, C * 4, "row %d", i);
}

static void case_profile(void) {
    if (!gt_dut.ops->stream_profile)
        return;
    enum { N = 64 };
    double seconds[TD_OP_COUNT], sum = 0;
    gt_rng r = {34};
    gt_side s = gt_dut;
    setenv("TDGEN_PROFILE", "1", 1);
    GT_MUST(gt_dut.ops->stream_create(gt_dut.dev, &s.s, &gt_err));
    unsetenv("TDGEN_PROFILE");
    const td_weight *w = gt_weight(&gt_dut, gt_floats(&r, N * N), N, N, TD_F32);
    float *x = gt_put(&s, gt_floats(&r, N * N), N * N * 4), *y = gt_put(&s, NULL, N * N * 4);
    for (int i = 0; i < 30; i++) {
        const td_gemm_args a = {.weight = w, .in = x, .out = y, .n_rows = N, .scale = 1};
        GT_MUST(s.ops->gemm(s.s, &a, &gt_err));
        const td_act_args b = {.in = y, .out = x, .n_tokens = N, .n_cols = N};
        GT_MUST(s.ops->act(s.s, &b, &gt_err));
        const td_convert_args c = {
            .in = x, .out = y, .in_dtype = TD_F32, .out_dtype = TD_BF16, .n = N * N};
        GT_MUST(s.ops->convert(s.s, &c, &gt_err));
    }
    gt_sync(&s);
    s.ops->stream_profile(s.s, seconds);
    for (int i = 0; i < TD_OP_COUNT; i++)
        sum += seconds[i];
    GT_CHECK(seconds[TD_OP_GEMM] > 0 && seconds[TD_OP_ACT] > 0, "gemm %g s, act %g s",
             seconds[TD_OP_GEMM], seconds[TD_OP_ACT]);
    GT_CHECK(seconds[TD_OP_CONVERT] > 0 && seconds[TD_OP_NORM] == 0, "convert %g s, norm %g s",
             seconds[TD_OP_CONVERT], seconds[TD_OP_NORM]);
    GT_CHECK(seconds[TD_OP_CAPTURE] == 0 && fabs(sum - s.ops->stream_busy_s(s.s)) < 1e-6 + sum / 2,
             "sum %g s, busy %g s", sum, s.ops->stream_busy_s(s.s));
    gt_release();
    s.ops->stream_destroy(s.s);
}

/* --- threads ---------------------------------------------------------------------------------- */

enum { PAIR_N = 96, PAIR_ROWS = 50, PAIR_ROUNDS = 12 };

typedef struct worker {
    gt_side side;
    const td_weight *weight; /* shared where the device is */
    float *in, *out, *mid;   /* device */
    float *result;           /* host, [PAIR_ROUNDS][ROWS * N] */
    td_error err;
    td_status st;
} worker;

static void *work(void *arg) {
    worker *w = arg;
    const td_device_ops *ops = w->side.ops;
    for (int i = 0; i < PAIR_ROUNDS && !w->st; i++) {
        const td_gemm_args a = {
            .weight = w->weight, .in = w->in, .out = w->mid, .n_rows = PAIR_ROWS - i, .scale = 1};
        w->st = ops->gemm(w->side.s, &a, &w->err);
        const td_act_args b = {.act = TD_ACT_SILU,
                               .in = w->mid,
                               .out = w->out,
                               .n_tokens = PAIR_ROWS - i,
                               .n_cols = PAIR_N};
        if (!w->st)
            w->st = ops->act(w->side.s, &b, &w->err);
        if (!w->st)
            w->st = ops->copy_out(w->side.s, w->result + (size_t)i * PAIR_ROWS * PAIR_N, w->out,
                                  (size_t)(PAIR_ROWS - i) * PAIR_N * 4, &w->err);
        if (!w->st && i % 3 == 2)
            w->st = ops->event_record(w->side.done, w->side.s, &w->err);
        if (!w->st && i % 3 == 2)
            w->st = ops->event_sync(w->side.done, 300, &w->err);
    }
    return NULL;
}

/* Threads with streams of their own, on handles of one device and of several: the results of one
 * that works alone. */
static void case_threads_with_their_own_streams(void) {
    enum { WORKERS = 4 };
    gt_rng r = {35};
    float *w = gt_floats(&r, PAIR_N * PAIR_N), *in = gt_floats(&r, PAIR_ROWS * PAIR_N);
    worker all[WORKERS + 1];
    memset(all, 0, sizeof(all));
    pthread_t thread[WORKERS];
    const size_t n = PAIR_ROWS * PAIR_N * 4;
    for (int i = 0; i <= WORKERS; i++) {
        worker *k = &all[i];
        gt_side_open(&k->side, i < WORKERS ? i % TD_MIN(2, gt_n_devices()) : 0);
        k->weight = gt_weight(&k->side, w, PAIR_N, PAIR_N, TD_F32);
        k->in = gt_put(&k->side, in, n);
        k->mid = gt_put(&k->side, NULL, n);
        k->out = gt_put(&k->side, NULL, n);
        k->result = gt_host(PAIR_ROUNDS * n);
    }
    work(&all[WORKERS]);
    for (int i = 0; i < WORKERS; i++)
        if (pthread_create(&thread[i], NULL, work, &all[i])) {
            gt_fail("no thread");
            return;
        }
    for (int i = 0; i < WORKERS; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i <= WORKERS; i++)
        if (all[i].st)
            gt_fail("worker %d on %s: %s", i, all[i].side.dev->info.name, all[i].err.text);
    for (int i = 0; i < WORKERS; i++)
        if (!strcmp(all[i].side.dev->info.kind, all[WORKERS].side.dev->info.kind))
            gt_same_bits(all[i].result, all[WORKERS].result, PAIR_ROUNDS * n, "worker %d on %s", i,
                         all[i].side.dev->info.name);
    gt_release();
    for (int i = 0; i <= WORKERS; i++)
        gt_side_close(&all[i].side);
}

/* --- refusals --------------------------------------------------------------------------------- */

static void case_empty_operations(void) {
    const float one[4] = {1, 1, 1, 1};
    gt_side *s = &gt_dut;
    const td_weight *w = gt_weight(s, one, 2, 2, TD_F32);
    float *p = gt_put(s, NULL, 16);
    GT_MUST(s->ops->gemm(s->s, &(td_gemm_args){.weight = w, .scale = 1}, &gt_err));
    GT_MUST(s->ops->embed(s->s, &(td_embed_args){.n_cols = 3, .scale = 1}, &gt_err));
    GT_MUST(s->ops->norm(s->s, &(td_norm_args){.n_cols = 3, .out = p, .weight = p}, &gt_err));
    GT_MUST(
        s->ops->rope(s->s, &(td_rope_args){.n_heads = 1, .head_dim = 4, .rotary_dim = 4}, &gt_err));
    GT_MUST(s->ops->attention(
        s->s, &(td_attention_args){.n_heads = 1, .n_kv_heads = 1, .head_dim = 4}, &gt_err));
    GT_MUST(s->ops->act(s->s, &(td_act_args){.n_cols = 3}, &gt_err));
    GT_MUST(s->ops->capture(
        s->s, &(td_capture_args){.n_vocab = 3, .top_k = 1, .n_valid = 3, .divisor = 1}, &gt_err));
    GT_MUST(s->ops->copy_in(s->s, p, one, 0, &gt_err));
    gt_sync(s);
    s->ops->stream_destroy(NULL);
    s->ops->event_destroy(NULL);
}

static const gt_case cases[] = {
    {"devices_are_described", case_devices_are_described},
    {"speed_is_measured", case_speed_is_measured},
    {"copies_of_any_size_and_place", case_copies_of_any_size_and_place},
    {"out_of_memory", case_out_of_memory},
    {"arena", case_arena},
    {"operations_run_in_order", case_operations_run_in_order},
    {"events_order_streams", case_events_order_streams},
    {"copies_between_devices", case_copies_between_devices},
    {"sync_gives_up_at_its_limit", case_sync_gives_up_at_its_limit},
    {"arguments_are_copied_at_the_call", case_arguments_are_copied_at_the_call},
    {"profile", case_profile},
    {"threads_with_their_own_streams", case_threads_with_their_own_streams},
    {"empty_operations", case_empty_operations},
};

int main(int argc, char **argv) {
    return gt_main("test_gpu_streams", argc, argv, cases, TD_ARRAY_LEN(cases));
}
