/* bench_plan - how long planning takes: placement of 130 layers on 8 devices, and groups of mixed
 * machines. Milliseconds, the best of five. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"
#include "base/clock.h"
#include "base/memory.h"

static td_model_config model_of(int32_t n_layers, int32_t n_hidden) {
    td_model_config m = {.n_layers = n_layers,
                         .n_hidden = n_hidden,
                         .n_ffn = 28672,
                         .n_heads = n_hidden / 128,
                         .n_kv_heads = 8,
                         .head_dim = 128,
                         .rotary_dim = 128,
                         .n_vocab = 128256,
                         .max_positions = 8192,
                         .pre_norm = true,
                         .gated = true,
                         .residual_scale = 1,
                         .weight_dtype = TD_BF16};
    snprintf(m.architecture, sizeof m.architecture, "LlamaForCausalLM");
    return m;
}

/* n devices of n_kinds kinds in turn, each with its own memory and speed. */
static void fill(td_plan_device *d, int32_t n, int32_t n_kinds, double memory_gib) {
    for (int32_t i = 0; i < n; i++) {
        int32_t kind = i * n_kinds / n;
        d[i] = (td_plan_device){.index = i,
                                .domain = i,
                                .memory_bytes = (uint64_t)(memory_gib * (1 + kind % 3) * 0x1p30),
                                .tflops = 60 + 37 * kind,
                                .mem_gbs = 900 + 300 * kind,
                                .has_f32 = true,
                                .has_bf16 = true,
                                .has_f16 = true};
        snprintf(d[i].label, sizeof d[i].label, "%d", i);
        snprintf(d[i].type, sizeof d[i].type, "T%d", kind);
    }
}

static void bench(const char *what, int32_t n_layers, int32_t n, int32_t n_kinds, int32_t width,
                  double memory_gib) {
    td_config cfg = {.data.max_length = 8192,
                     .capture.top_k = 64,
                     .output.shard_samples = 1024,
                     .run.batch_tokens = 8192,
                     .run.total_workers = 1,
                     .devices.gpus_per_model = width};
    td_dataset_stats st = {.n_dataset_rows = 1000000,
                           .n_samples = 1000000,
                           .n_tokens = 700000000,
                           .n_record_rows = 699000000,
                           .max_tokens = 8192};
    td_model_config model = model_of(n_layers, 8192);
    td_inventory inv = {.devices = td_calloc((size_t)n, sizeof *inv.devices), .n_devices = n};
    td_plan plan = {0};
    td_error err = {0};
    double best = 1e30;
    if (!inv.devices)
        return;
    fill(inv.devices, n, n_kinds, memory_gib);
    for (int i = 0; i < 5; i++) {
        td_plan_free(&plan);
        double t0 = td_time_s();
        const td_capture_spec capture = {
            .top_k = 64, .n_vocab = model.n_vocab, .n_valid = model.n_vocab};
        const td_plan_input in = {
            .cfg = &cfg, .inventory = &inv, .model = &model, .capture = &capture, .stats = &st};
        if (td_plan_make(&in, &plan, &err) != TD_OK) {
            printf("%-52s %s\n", what, err.text);
            goto done;
        }
        best = fmin(best, td_time_s() - t0);
    }
    printf("%-52s %9.2f ms  %4d groups, %d left over, %.0f tokens/s\n", what, 1e3 * best,
           plan.n_groups, plan.n_leftover, plan.tokens_per_s);
done:
    td_plan_free(&plan);
    free(inv.devices);
}

int main(void) {
    bench("130 layers, one group of 8 equal devices", 130, 8, 1, 8, 60);
    bench("130 layers, one group of 4 + 4", 130, 8, 2, 8, 60);
    bench("130 layers, one group of 8 different devices", 130, 8, 8, 8, 60);
    bench("80 layers, auto, 8 equal devices", 80, 8, 1, 0, 79);
    bench("80 layers, auto, 4 + 4", 80, 8, 2, 0, 31);
    bench("80 layers, auto, 8 different devices", 80, 8, 8, 0, 31);
    bench("80 layers, auto, 64 devices of 3 kinds", 80, 64, 3, 0, 23);
    bench("80 layers, auto, 1000 devices of 5 kinds", 80, 1000, 5, 0, 23);
    return 0;
}
