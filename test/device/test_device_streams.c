/* Registry, streams and events: order, waits across streams, sticky failures, timeouts. */
#include <pthread.h>
#include <unistd.h>

#include "fixture.h"
#include "base/memory.h"

Test(device_registry, cpu_devices_split_the_cores) {
    td_error err = {0};
    td_device_info *info;
    int32_t n, one;
    OK(td_device_enumerate("cpu", 0, &info, &n, &err));
    cr_assert_eq(n, 1);
    one = info[0].n_threads;
    cr_assert_geq(one, 1);
    free(info);
    OK(td_device_enumerate("cpu", 3, &info, &n, &err));
    cr_assert_eq(n, 3);
    for (int i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof(name), "cpu:%d", i);
        cr_assert_str_eq(info[i].name, name);
        cr_assert_eq(info[i].n_threads, TD_MAX(one / 3, 1));
        cr_assert_eq(info[i].domain, info[0].domain);
        cr_assert(info[i].has_f32 && !info[i].has_f16);
        cr_assert(!strncmp(info[i].kind, "cpu ", 4) && strstr(info[i].kind, "onednn-"), "%s",
                  info[i].kind);
        cr_assert_gt(info[i].memory_total_bytes, 0);
    }
    free(info);
    cr_assert_eq(td_device_enumerate("cpu", -1, &info, &n, &err), TD_E_CONFIG);
    cr_assert_eq(td_device_enumerate("tpu", 0, &info, &n, &err), TD_E_CONFIG);
    cr_assert(strstr(err.text, "tpu") && strstr(err.text, "cpu"), "%s", err.text);
    td_device *dev;
    td_device_info absent = {.name = "tpu:0"};
    cr_assert_eq(td_device_open(&absent, &dev, &err), TD_E_DEVICE);
    cr_assert(strstr(err.text, "tpu:0"), "%s", err.text);
    cr_assert(strstr(td_device_backends(), "cpu"));
    td_device_close(NULL);
}

Test(device_streams, operations_run_in_order_beyond_the_ring) {
    enum { N = 5000 };
    td_error err = {0};
    fixture f = fixture_open(2);
    static int32_t chain[N + 1];
    chain[0] = 42;
    for (int i = 0; i < N; i++)
        OK(f.ops->copy_peer(f.s, &chain[i + 1], f.dev, &chain[i], sizeof(int32_t), &err));
    fixture_sync(&f);
    cr_assert_eq(chain[N], 42);
    cr_assert_gt(f.ops->stream_busy_s(f.s), 0);
    fixture_close(&f);
}

/* A stage waits for the stage before it, round after round: the value is passed on, never early. */
Test(device_streams, events_order_streams_of_two_devices) {
    enum { ROUNDS = 300 };
    td_error err = {0};
    fixture a = fixture_open(1), b = fixture_open(2);
    td_event *there, *back;
    static int32_t in[ROUNDS], x, out[ROUNDS];
    OK(a.ops->event_create(a.dev, &there, &err));
    OK(b.ops->event_create(b.dev, &back, &err));
    OK(a.ops->stream_wait(a.s, back, &err)); /* never recorded: no wait */
    for (int i = 0; i < ROUNDS; i++) {
        in[i] = i * 7;
        OK(a.ops->copy_in(a.s, &x, &in[i], sizeof(x), &err));
        OK(a.ops->event_record(there, a.s, &err));
        OK(b.ops->stream_wait(b.s, there, &err));
        OK(b.ops->copy_out(b.s, &out[i], &x, sizeof(x), &err));
        OK(b.ops->event_record(back, b.s, &err));
        OK(a.ops->stream_wait(a.s, back, &err));
    }
    OK(b.ops->event_sync(back, 60, &err));
    for (int i = 0; i < ROUNDS; i++)
        cr_assert_eq(out[i], i * 7);
    /* An event may go while its last record is still in flight. */
    OK(a.ops->event_record(there, a.s, &err));
    a.ops->event_destroy(there);
    b.ops->event_destroy(back);
    fixture_close(&a);
    fixture_close(&b);
}

Test(device_streams, arguments_are_copied_at_the_call) {
    td_error err = {0};
    fixture f = fixture_open(1);
    enum { T = 64, C = 256 };
    test_rng r = {12};
    float *table = rng_floats(&r, 10 * C), *out = malloc(sizeof(float) * T * C);
    int32_t ids[T];
    for (int i = 0; i < T; i++)
        ids[i] = i % 10;
    td_embed_args a = {ids, table, TD_F32, out, T, C, 1, false};
    OK(f.ops->embed(f.s, &a, &err));
    memset(&a, 0xff, sizeof(a));
    fixture_sync(&f);
    for (int i = 0; i < T * C; i++)
        cr_assert_eq(out[i], table[ids[i / C] * C + i % C]);
    free(table), free(out);
    fixture_close(&f);
}

Test(device_streams, failure_sticks_and_travels) {
    setenv("TDGEN_DEBUG_FAIL_OP", "cpu:0 copy_in 2", 1);
    td_error err = {0};
    fixture a = fixture_open(1);
    unsetenv("TDGEN_DEBUG_FAIL_OP");
    fixture b = fixture_open(1);
    td_event *e;
    int32_t src = 1, x = 0, y = 0;
    OK(a.ops->event_create(a.dev, &e, &err));
    OK(a.ops->copy_in(a.s, &x, &src, sizeof(x), &err));
    OK(a.ops->event_record(e, a.s, &err));
    OK(a.ops->event_sync(e, 0, &err));
    cr_assert_eq(x, 1);
    src = 2;
    OK(a.ops->copy_in(a.s, &x, &src, sizeof(x), &err)); /* fails */
    OK(a.ops->copy_in(a.s, &y, &src, sizeof(y), &err)); /* skipped */
    OK(a.ops->event_record(e, a.s, &err));
    OK(b.ops->stream_wait(b.s, e, &err));
    OK(b.ops->copy_in(b.s, &y, &src, sizeof(y), &err)); /* skipped: b fails with a */
    cr_assert_eq(a.ops->event_sync(e, 0, &err), TD_E_DEVICE);
    cr_assert(strstr(err.text, "cpu:0: copy_in"), "%s", err.text);
    memset(&err, 0, sizeof(err));
    OK(b.ops->event_record(b.done, b.s, &err));
    cr_assert_eq(b.ops->event_sync(b.done, 0, &err), TD_E_DEVICE);
    cr_assert(strstr(err.text, "waited") && strstr(err.text, "copy_in"), "%s", err.text);
    cr_assert(x == 1 && y == 0);
    /* Sticky: a later record still reports it; a new stream of the device is clean. */
    OK(a.ops->event_record(e, a.s, &err));
    cr_assert_eq(a.ops->event_sync(e, 0, &err), TD_E_DEVICE);
    a.ops->stream_destroy(a.s);
    OK(a.ops->stream_create(a.dev, &a.s, &err));
    OK(a.ops->copy_in(a.s, &y, &src, sizeof(y), &err));
    fixture_sync(&a);
    cr_assert_eq(y, 2);
    a.ops->event_destroy(e);
    fixture_close(&a);
    fixture_close(&b);
}

/* A stream that cannot go on (its event's stream is held up by a wait of its own on a slow copy)
 * makes event_sync return at the limit, naming the device, and complete afterwards. */
Test(device_streams, sync_gives_up_at_its_limit) {
    td_error err = {0};
    fixture f = fixture_open(1);
    enum { MIB = 1 << 20 };
    char *x = malloc(64 * MIB), *y = malloc(64 * MIB);
    memset(x, 1, 64 * MIB);
    for (int i = 0; i < 40; i++)
        OK(f.ops->copy_in(f.s, y, x, 64 * MIB, &err));
    OK(f.ops->event_record(f.done, f.s, &err));
    cr_assert_eq(f.ops->event_sync(f.done, 1e-4, &err), TD_E_DEVICE);
    cr_assert(strstr(err.text, "cpu:0"), "%s", err.text);
    OK(f.ops->event_sync(f.done, 0, &err));
    free(x), free(y);
    fixture_close(&f);
}

Test(device_streams, bad_arguments_are_refused_at_the_call) {
    td_error err = {0};
    fixture f = fixture_open(1);
    td_rope_args rope = {.n_tokens = 1, .n_heads = 1, .head_dim = 8, .rotary_dim = 10};
    cr_assert_eq(f.ops->rope(f.s, &rope, &err), TD_E_INTERNAL);
    cr_assert(strstr(err.text, "cpu:0: rope"), "%s", err.text);
    td_attention_args att = {.n_seqs = 1, .n_heads = 3, .n_kv_heads = 2, .head_dim = 8};
    cr_assert_eq(f.ops->attention(f.s, &att, &err), TD_E_INTERNAL);
    td_gemm_args gemm = {.n_rows = 1};
    cr_assert_eq(f.ops->gemm(f.s, &gemm, &err), TD_E_INTERNAL);
    gemm = (td_gemm_args){.weight = (td_weight *)&gemm, .n_rows = 1};
    cr_assert_eq(f.ops->gemm(f.s, &gemm, &err), TD_E_INTERNAL, "a scale that was not set");
    td_act_args act = {.n_tokens = 1, .n_cols = 4, .out_dtype = TD_I32};
    cr_assert_eq(f.ops->act(f.s, &act, &err), TD_E_INTERNAL);
    f.ops->stream_destroy(NULL);
    f.ops->event_destroy(NULL);
    fixture_close(&f);
}

/* A conversion is neither a copy nor a norm. */
Test(device_streams, a_profile_keeps_operations_apart) {
    enum { N = 1 << 20 };
    td_error err = {0};
    double seconds[TD_OP_COUNT], rest = 0;
    setenv("TDGEN_PROFILE", "1", 1);
    fixture f = fixture_open(1);
    unsetenv("TDGEN_PROFILE");
    float *in = td_calloc(N, sizeof *in);
    uint16_t *out = td_calloc(N, sizeof *out);
    cr_assert(in && out);
    const td_convert_args a = {
        .in = in, .out = out, .in_dtype = TD_F32, .out_dtype = TD_BF16, .n = N};
    OK(f.ops->convert(f.s, &a, &err));
    fixture_sync(&f);
    f.ops->stream_profile(f.s, seconds);
    for (td_op op = TD_OP_COPY; op < TD_OP_COUNT; op++)
        rest += op == TD_OP_CONVERT ? 0 : seconds[op];
    cr_assert(seconds[TD_OP_CONVERT] > 0, "convert took no time");
    cr_assert(rest == 0, "%g s of other operations", rest);
    cr_assert_str_eq(td_op_name(TD_OP_CONVERT), "convert");
    cr_assert_str_eq(td_op_name(TD_OP_COPY), "copy");
    free(in), free(out);
    fixture_close(&f);
}

/* Operations with nothing to do are valid everywhere. */
Test(device_streams, empty_operations) {
    td_error err = {0};
    fixture f = fixture_open(2);
    float w[4] = {0};
    td_host_matrix part = {w, TD_F32, 2, 2};
    td_weight *weight;
    OK(f.ops->weight_prepare(f.dev, &part, 1, TD_F32, &weight, &err));
    OK(f.ops->gemm(f.s, &(td_gemm_args){.weight = weight, .scale = 1}, &err));
    OK(f.ops->embed(f.s, &(td_embed_args){.n_cols = 3, .scale = 1}, &err));
    OK(f.ops->norm(f.s, &(td_norm_args){.n_cols = 3, .out = w}, &err));
    OK(f.ops->rope(f.s, &(td_rope_args){.n_heads = 1, .head_dim = 4, .rotary_dim = 4}, &err));
    OK(f.ops->attention(f.s, &(td_attention_args){.n_heads = 1, .n_kv_heads = 1, .head_dim = 4},
                        &err));
    OK(f.ops->act(f.s, &(td_act_args){.n_cols = 3}, &err));
    OK(f.ops->capture(f.s, &(td_capture_args){.n_vocab = 3, .top_k = 1, .n_valid = 3, .divisor = 1},
                      &err));
    OK(f.ops->convert(f.s, &(td_convert_args){.out = w}, &err));
    OK(f.ops->copy_in(f.s, w, w, 0, &err));
    fixture_sync(&f);
    f.ops->weight_destroy(weight);
    fixture_close(&f);
}
