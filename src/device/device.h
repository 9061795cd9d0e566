/* device.h - the device API: one table of functions per device kind.
 *
 * A *device* holds memory and runs kernels: "cpu:0", "cuda:3". Everything that computes goes
 * through this table; the forward pass (src/model) is written once over it and includes no backend
 * header.
 *
 * Order of use: td_device_enumerate -> td_device_open -> alloc / weight_prepare -> stream_create ->
 * enqueue operations -> event_record -> event_sync -> ... -> destroy in reverse -> close.
 *
 * Asynchrony. Operations that take a td_stream only enqueue: they run in stream order, later, and
 * read their host-side argument structs before they return, but the arrays the arguments point to
 * when they run. The first failure of a stream sticks: later operations of that stream are skipped,
 * and event_sync returns the failure with a text that names device and operation. The caller then
 * destroys the stream. td_event orders streams of any devices of one process with each other.
 * TD_E_DEVICE_LOST instead of TD_E_DEVICE means that the process can no longer use any device of
 * that backend (CUDA's sticky errors: an illegal address, an uncorrectable memory error): what is
 * not committed is to be dropped and the work to go on in a new process.
 *
 * Memory. Pointers are device pointers; only copy_in / copy_out cross to the host. Devices with the
 * same info.domain share an address space (all CPU devices do): weights prepared on one may be used
 * on the others. alloc is aligned to at least 64 bytes.
 *
 * Threads. Enqueue calls on one stream come from one thread at a time; different streams may be
 * driven by different threads. Weights are read-only after preparation and shared freely.
 *
 * Determinism (docs/design.md, invariants): for every operation, the bits of a row of the result depend only
 * on that row's inputs (for attention: on its sequence up to that row), never on its position in
 * the batch, on neighbours, on the number of rows or on the number of threads.
 *
 * Letters: T tokens of a micro-batch, B sequences, C hidden, H / Hkv heads, D head dim, F ffn,
 * V vocabulary, K stored top-k, R rows.
 */
#ifndef TDGEN_DEVICE_DEVICE_H
#define TDGEN_DEVICE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct td_device td_device;
typedef struct td_stream td_stream;
typedef struct td_event td_event;
typedef struct td_weight td_weight;

typedef struct td_device_info {
    char name[32];     /* "cpu:0", "cuda:3" */
    char model[128];   /* what a person calls it: "NVIDIA A100-SXM4-80GB", "Intel Xeon ..." */
    char kind[160];    /* device kind of the record: model or instruction set + library versions */
    int32_t index;     /* number within its backend */
    int32_t domain;    /* devices with equal domain share weights */
    int32_t n_threads; /* CPU devices: worker threads, else 0 */
    /* CPU devices, set between enumeration and opening: the share of its speed at which the device
     * works, resting after each operation; in (0, 1), anything else is full speed. */
    double speed_share;
    uint64_t memory_total_bytes, memory_free_bytes; /* of cpu*N: an Nth of the machine's each */
    bool has_f32, has_bf16, has_f16;                /* compute modes its GEMM offers */
    /* GPUs; zero elsewhere. */
    char uuid[48];              /* "GPU-8f2e...": names one card for good, whatever its index */
    char pci[20];               /* "0000:3b:00.0" */
    int32_t compute_capability; /* 80 for 8.0 */
    int32_t n_multiprocessors;
    uint64_t stream_bytes; /* that each stream takes of the device's memory for itself */
    /* From its clocks and units, nothing measured: dense 16-bit and f32 products, memory. */
    double peak_tflops, peak_tflops_f32, peak_mem_gbs;
    bool narrow_attention; /* in a 16-bit compute mode attention reads q, k and v in that type */
    uint64_t peers; /* bit i: memory of the backend's device i < 64 can be reached directly */
} td_device_info;

/* A host tensor of a checkpoint, row-major, as stored. Borrowed. */
typedef struct td_host_matrix {
    const void *data;
    td_dtype dtype; /* TD_F32, TD_BF16 or TD_F16 */
    int64_t n_rows, n_cols;
} td_host_matrix;

/* --- arguments of the operations -------------------------------------------------------------- */

/* x[t, :] = scale * table[ids[t], :] as f32, or added to what is there (position embeddings). ids
 * are checked by the caller: 0 <= id < V. The product is rounded once, to f32. */
typedef struct td_embed_args {
    const int32_t *ids; /* device I32 [T] */
    const void *table;  /* device [V, C], table_dtype */
    td_dtype table_dtype;
    float *out; /* device F32 [T, C] */
    int32_t n_tokens, n_cols;
    float scale;     /* 1 = none, 0 is refused (Gemma: sqrt(C); Granite: embedding_multiplier) */
    bool accumulate; /* out += */
} td_embed_args;

typedef enum td_norm_kind { TD_NORM_RMS, TD_NORM_LAYER, TD_NORM_NONE } td_norm_kind;

/* TD_NORM_RMS (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * weight, per row.
 * TD_NORM_LAYER (Ba et al. 2016): y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias.
 * TD_NORM_NONE: y = x, a conversion to out_dtype (blocks without a norm before them: OLMo 2);
 * weight and bias are NULL then.
 * Rows may be strided, and are gathered when row_index is given. in == out is allowed when
 * out_dtype is TD_F32 and row_index is NULL (q/k norm in place). */
typedef struct td_norm_args {
    td_norm_kind kind;
    const float *in;          /* device F32; row r starts at in + index(r) * in_stride */
    const int32_t *row_index; /* device I32 [n_rows] or NULL for the identity */
    const float *weight;      /* device F32 [n_cols] */
    const float *bias;        /* device F32 [n_cols] or NULL */
    void *out;                /* device [n_rows, n_cols], row stride out_stride elements */
    td_dtype out_dtype;       /* the compute dtype, or TD_F32 */
    int32_t n_rows, n_cols;
    /* n_inner > 1: each row holds n_inner consecutive vectors of n_cols (heads), all normalised. */
    int32_t n_inner;
    int64_t in_stride, out_stride; /* elements between rows */
    float eps;
    bool accumulate; /* out (F32) += scale * y: norms behind a block (Gemma 2, OLMo 2) */
    float scale;     /* with accumulate */
} td_norm_args;

/* out[M, N] = scale * (in[M, K] * W[N, K]^T + bias[N]), or added to what is there. */
typedef struct td_gemm_args {
    const td_weight *weight;
    const void *in;    /* device [M, K], in the compute dtype of the weight, dense */
    const float *bias; /* device F32 [N] or NULL */
    float *out;        /* device F32 [M, N], dense */
    int32_t n_rows;    /* M */
    float scale;       /* 1 = none (Granite: residual_multiplier); 0 is refused */
    bool accumulate;   /* out += : the residual connection */
} td_gemm_args;

/* Rotary embedding, HF half-rotation layout, in place on the first rotary_dim elements of each
 * head: (a, b) = (x[i], x[i + rotary_dim/2]) -> (a cos - b sin, b cos + a sin).
 * With `out`, x is left alone and the result goes there in out_dtype, dense, followed in each row
 * by the n_plain_heads heads that stand behind the turned ones in x (v), converted only: what
 * attention reads on devices that take q, k and v in the compute dtype. cos_table may be NULL then:
 * nothing is turned (layers without rope). */
typedef struct td_rope_args {
    float *x;              /* device F32, row t starts at x + t * stride; n_heads of head_dim */
    void *out;             /* device [T, (n_heads + n_plain_heads) * head_dim] or NULL: in place */
    td_dtype out_dtype;    /* with out */
    int32_t n_plain_heads; /* with out */
    const int32_t *positions; /* device I32 [T] */
    const float *cos_table;   /* device F32 [n_positions, rotary_dim / 2] */
    const float *sin_table;
    int32_t n_tokens, n_heads, head_dim, rotary_dim;
    int64_t stride;
} td_rope_args;

/* Causal grouped-query attention over packed sequences: softmax(scale * q k^T) v. Query head h uses
 * kv head h / (H / Hkv). window > 0: position i sees j with i - window < j <= i.
 * Scores, softmax and sums are f32. Sums over keys are made tile by tile: with f32 input their
 * rounding error does not grow with the number of keys (docs/numerics.md). With 16-bit q, k and v
 * the probabilities are rounded to that type before they meet v, as every fused kernel does. */
typedef struct td_attention_args {
    const void *q, *k, *v;           /* device, in_dtype; row t at base + t * stride elements */
    td_dtype in_dtype;               /* TD_F32; with 16-bit out_dtype, out_dtype where the device
                                        wants it (td_device_info.narrow_attention) */
    int64_t stride;                  /* of q, k and v alike: they are slices of one qkv buffer */
    void *out;                       /* device [T, H * D], out_dtype, dense */
    td_dtype out_dtype;              /* the compute dtype */
    const int32_t *seq_offsets;      /* device I32 [B + 1] */
    const int32_t *seq_offsets_host; /* the same on the host, for the launch shape */
    int32_t n_seqs, n_heads, n_kv_heads, head_dim;
    int32_t window; /* 0 = full */
    float scale;
    float softcap; /* > 0: scores s become softcap * tanh(s / softcap) (Gemma 2); 0 = none */
} td_attention_args;

typedef enum td_act { TD_ACT_SILU, TD_ACT_GELU, TD_ACT_GELU_TANH } td_act;

/* Gated:     out[t, f] = act(in[t, f]) * in[t, F + f], in [T, 2F]
 * Not gated: out[t, f] = act(in[t, f]), in [T, F]
 * GELU is the exact one (erf); GELU_TANH is HF's gelu_new and gelu_pytorch_tanh:
 *   0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
typedef struct td_act_args {
    td_act act;
    bool gated;
    const float *in; /* device F32 [T, 2F] or [T, F] */
    void *out;       /* device [T, F], out_dtype */
    td_dtype out_dtype;
    int32_t n_tokens, n_cols; /* F */
} td_act_args;

/* Mixture-of-experts MLP (Mixtral, Qwen3-MoE): router logits = in * router^T; p = softmax over all
 * experts in f32; the top_k experts by p, and of equal p the lowest expert first, on every device
 * (torch.topk promises no order among equals, and so transformers may take others there); their p,
 * divided by their sum when `normalise`; out[t] += scale * sum over the chosen experts, ascending
 * in number, of p * down_e(act(gate_e(in)) * up_e(in)). Only the chosen experts are computed,
 * tokens grouped per expert; a row's bits do not depend on which rows share its experts. */
typedef struct td_moe_args {
    const td_weight *router; /* [E, C] */
    /* HOST arrays, which live until the operation has run. All weights are of one compute dtype. */
    const td_weight *const *gate_up; /* [E] of [2F, C]: F gate rows, then F up rows */
    const td_weight *const *down;    /* [E] of [C, F] */
    td_act act;
    const void *in; /* device [T, C], compute dtype */
    float *out;     /* device F32 [T, C]; not `in` */
    void *scratch;  /* device, 64-byte aligned, td_moe_scratch_bytes of the largest T */
    int32_t n_tokens, n_cols, n_ffn, n_experts, top_k;
    bool normalise;
    float scale;
} td_moe_args;

/* Bytes of td_moe_args.scratch for up to n_tokens rows, on every device kind (pure: the planner
 * asks too): router logits and choices, two pointers per expert, then per chosen (token, expert)
 * pair one row each of the input and of the activation in the compute dtype, of gate and up and of
 * the result in f32. */
static inline uint64_t td_moe_scratch_bytes(int32_t n_tokens, int32_t n_cols, int32_t n_ffn,
                                            int32_t n_experts, int32_t top_k, td_dtype compute) {
    uint64_t T = (uint64_t)n_tokens, P = T * (uint64_t)top_k, c = td_dtype_size(compute);
    uint64_t C = (uint64_t)n_cols, F = (uint64_t)n_ffn, E = (uint64_t)n_experts;
    return T * E * 4 + P * 16 + (E + 1) * 8 + E * 16 + P * (C * c + F * c + 2 * F * 4 + C * 4) +
           64 * 8;
}

/* Capture over a chunk of rows of logits, one pass for the sums, one for the selection.
 * First the logits are finished:
 *   z = logits / divisor (Granite); then, with softcap > 0, z = softcap * tanh(z / softcap)
 *   (Gemma 2); then z[v] = -inf for v >= n_valid (ids that no token of the tokenizer has)
 * Definitions, all natural logarithms, per row with finished logits z[0..V):
 *   m = max z; S = sum exp(z - m) accumulated in f64; logsumexp = f32(m + log S)
 *   logprob(v) = fl32(fl32(z[v] - m) - fl32(log S)), the one order of everything:
 *   topk: by logprob descending, ties by the lower id; entries with z = -inf are never taken, free
 *         places hold id -1 and logprob -inf
 *   tail_mass = sum over ids not taken of exp(z - m) / S, summed from those terms in f64
 *   target_logprob = logprob(target); target_rank = number of ids before it in that order
 *   entropy = log S - (1/S) sum exp(z - m) (z - m)
 *   logsumexp_t[i] = f32 of log sum exp(z / T_i)
 * A row with a NaN or +inf among its first n_valid logits (or no finite z) gets logsumexp = NaN and
 * zeros elsewhere; the caller treats its sample as failed. target = -1, or one that is not below
 * n_valid: target_logprob = -inf, rank = -1.
 * Where asked for, also:
 *   top_p      of the top-k only the fewest first ones are kept whose probabilities, exp(logprob)
 *              summed in f64 in their order, reach top_p; at least min_k, at most what there is.
 *              Places behind the n_kept first are free; tail_mass counts what is not kept
 *   draws      n_draws ids, with replacement, from q(v) ~ exp(t (z[v] - m)), t = proposal_power, by
 *              inversion: the first id v with sum of q over the ids up to v above td_draw_uniform
 *              (capture/philox.h); f32 weights, summed in f64 in an order of the device kind's. An
 *              id of probability 0 is never drawn. Stored as the different ids, ascending, and how
 *              often each came; places behind the n_unique first hold id -1, count 0, logprob -inf.
 *              proposal_logsumexp = f32 of log sum_v p(v)^t: log q(v) = t log p(v) - it.
 *              Without a top-k, tail_mass is that of the ids that were not drawn
 *   always     logprob of the given ids; -inf for one that is not below n_valid
 *   dense      z itself (-inf from n_valid on), in dense_dtype. A row whose largest z overflows
 *              there is marked like one with an infinite logit. tail_mass is 0 without a top-k
 */
typedef struct td_capture_args {
    const float *logits;    /* device F32 [n_rows, V], dense */
    const int32_t *targets; /* device I32 [n_rows] */
    int32_t n_rows, n_vocab, top_k, n_temperatures;
    int32_t n_valid;           /* in [1, n_vocab]; n_vocab = no mask */
    float divisor, softcap;    /* 1 and 0 = none */
    const float *temperatures; /* HOST F32 [n_temperatures], copied at the call (at most 16) */
    /* outputs, device, already offset to the chunk's first row */
    int32_t *topk_ids;     /* I32 [n_rows, top_k] */
    float *topk_logprobs;  /* F32 [n_rows, top_k] */
    float *logsumexp;      /* F32 [n_rows] */
    float *logsumexp_t;    /* F32 [n_rows, n_temperatures] or NULL */
    float *tail_mass;      /* F32 [n_rows] */
    float *target_logprob; /* F32 [n_rows] */
    int32_t *target_rank;  /* I32 [n_rows] */
    float *entropy;        /* F32 [n_rows] */

    double top_p; /* 0 = off; needs a top_k */
    int32_t min_k;
    int32_t *n_kept; /* I32 [n_rows] */

    int32_t n_draws; /* 0 = off; at most 1024 */
    float proposal_power;
    uint64_t seed;
    const int64_t *dataset_rows; /* device I64 [n_rows] */
    const int64_t *positions;    /* device I64 [n_rows] token offset within the dataset row */
    int32_t *n_unique;           /* I32 [n_rows] */
    int32_t *draw_ids;           /* I32 [n_rows, n_draws] */
    int32_t *draw_counts;        /* I32 [n_rows, n_draws] */
    float *draw_logprobs;        /* F32 [n_rows, n_draws] */
    float *proposal_logsumexp;   /* F32 [n_rows] or NULL */

    int32_t n_always;          /* 0 = off; at most 64 */
    const int32_t *always_ids; /* HOST [n_always], copied at the call; in [0, V) */
    float *always_logprobs;    /* F32 [n_rows, n_always] */

    void *dense; /* dense_dtype [n_rows, V] or NULL = off */
    td_dtype dense_dtype;
} td_capture_args;

/* out[i] = in[i] in another type, rounded to nearest even. */
typedef struct td_convert_args {
    const void *in; /* device, in_dtype [n] */
    void *out;      /* device, out_dtype [n]; not `in` */
    td_dtype in_dtype, out_dtype;
    int64_t n;
} td_convert_args;

/* --- the operations --------------------------------------------------------------------------- */

/* Every operation, once: X(name, NAME, n_rows, how). Of a line are made TD_OP_NAME, its name in
 * messages, profiles and TDGEN_DEBUG_FAIL_OP, the slot `name` of the table, which takes a
 * td_name_args, and in each backend what stands between that slot and the computation.
 *
 *   n_rows  the member of the arguments that says how much there is to do; 0 is allowed: nothing
 *   how     ROWS: a row of the result needs nothing of its neighbours, so a backend has one
 *           function that computes rows, and cuts where it likes (of convert, a row is an element).
 *           WHOLE: each backend has a way of its own to divide the work
 *
 * To add one: its arguments above and a line here, its check in device/check.c, its computation in
 * cpu/ and gpu/ (the compiler names what is missing), its tests. */
#define TD_DEVICE_OPERATIONS(X)                                                                    \
    X(embed, EMBED, n_tokens, ROWS)                                                                \
    X(norm, NORM, n_rows, ROWS)                                                                    \
    X(gemm, GEMM, n_rows, WHOLE)                                                                   \
    X(rope, ROPE, n_tokens, ROWS)                                                                  \
    X(attention, ATTENTION, n_seqs, WHOLE)                                                         \
    X(act, ACT, n_tokens, ROWS)                                                                    \
    X(moe, MOE, n_tokens, WHOLE)                                                                   \
    X(capture, CAPTURE, n_rows, WHOLE)                                                             \
    X(convert, CONVERT, n, ROWS)

/* What a profile distinguishes; TD_OP_COPY is copy_in, copy_out and copy_peer. */
#define TD_OP_ENUM(name, NAME, n_rows, how) TD_OP_##NAME,
typedef enum td_op { TD_OP_COPY, TD_DEVICE_OPERATIONS(TD_OP_ENUM) TD_OP_COUNT } td_op;
#undef TD_OP_ENUM

/* "copy", "embed", ...; op < TD_OP_COUNT. */
const char *td_op_name(td_op op);

/* Sensors of a GPU, from NVML; a value that the card does not tell is -1. */
typedef struct td_device_health {
    bool known;
    int32_t utilization_percent, temperature_c, sm_clock_mhz, sm_clock_max_mhz;
    double power_w, power_limit_w;
    int64_t ecc_uncorrected; /* volatile counter */
    int64_t last_xid;        /* 0: none seen since the device was opened */
    char throttle[64];       /* why clocks are held down: "power cap", "thermal"; "" when not */
} td_device_health;

/* --- the table -------------------------------------------------------------------------------- */

typedef struct td_device_ops {
    const char *backend; /* "cpu", "cuda" */

    void (*close)(td_device *dev);

    /* size_bytes of uninitialised memory (NaN-filled with TDGEN_DEBUG_ALLOC=1 in the environment).
     */
    td_status (*alloc)(td_device *dev, size_t size_bytes, void **out, td_error *err);
    void (*free)(td_device *dev, void *ptr);
    /* Optional (NULL: alloc serves itself). Takes the arena of size_bytes that all later allocs of
     * this device are cut from, weights included; *got_bytes is what there is, less than asked for
     * when the memory is not there, and allocs past it are TD_E_DEVICE_OOM. Once, before any alloc.
     */
    td_status (*reserve)(td_device *dev, uint64_t size_bytes, uint64_t *got_bytes, td_error *err);
    /* Host memory from which copies run at full speed; plain memory on CPU devices. */
    td_status (*host_alloc)(td_device *dev, size_t size_bytes, void **out, td_error *err);
    void (*host_free)(td_device *dev, void *ptr);

    td_status (*stream_create)(td_device *dev, td_stream **out, td_error *err);
    /* Waits for what is enqueued, then frees. NULL is allowed. */
    void (*stream_destroy)(td_stream *s);
    td_status (*event_create)(td_device *dev, td_event **out, td_error *err);
    void (*event_destroy)(td_event *e);
    /* The event completes when all that is now enqueued on s has run. Re-recording re-arms it. */
    td_status (*event_record)(td_event *e, td_stream *s, td_error *err);
    /* Later operations of s wait for the event's latest record. A failed stream behind the event
     * makes s fail too. */
    td_status (*stream_wait)(td_stream *s, td_event *e, td_error *err);
    /* Blocks the calling host thread; returns the stream's sticky failure. timeout_s <= 0: no
     * limit; on expiry TD_E_DEVICE. */
    td_status (*event_sync)(td_event *e, double timeout_s, td_error *err);

    td_status (*copy_in)(td_stream *s, void *dst_device, const void *src_host, size_t size_bytes,
                         td_error *err);
    td_status (*copy_out)(td_stream *s, void *dst_host, const void *src_device, size_t size_bytes,
                          td_error *err);
    /* From another device of the same backend; s belongs to the destination's device. */
    td_status (*copy_peer)(td_stream *s, void *dst, td_device *src_dev, const void *src,
                           size_t size_bytes, td_error *err);

    /* Packs the rows of `parts`, one after the other, as one [N, K] GEMM weight for `compute`
     * (TD_F32, TD_BF16, TD_F16). Synchronous; the host data may go away afterwards. */
    td_status (*weight_prepare)(td_device *dev, const td_host_matrix *parts, int32_t n_parts,
                                td_dtype compute, td_weight **out, td_error *err);
    /* Optional (NULL: weights have a layout of the device's own, use weight_prepare). A weight
     * whose memory is plain row-major [N, K] in `compute`, to be filled at *data with copy_in. */
    td_status (*weight_create)(td_device *dev, int64_t n_rows, int64_t n_cols, td_dtype compute,
                               td_weight **out, void **data, td_error *err);
    void (*weight_destroy)(td_weight *w);

    /* td_status (*embed)(td_stream *s, const td_embed_args *a, td_error *err), and so on: one slot
     * for each operation. Arguments that cannot be right, or that this kind of device cannot do,
     * are TD_E_INTERNAL at the call. */
#define TD_OP_SLOT(name, NAME, n_rows, how)                                                        \
    td_status (*name)(td_stream *, const td_##name##_args *, td_error *);
    TD_DEVICE_OPERATIONS(TD_OP_SLOT)
#undef TD_OP_SLOT

    /* Seconds the stream has spent executing operations since it was made (for busy shares). */
    double (*stream_busy_s)(const td_stream *s);
    /* Optional. Seconds by operation since the stream was made, when TDGEN_PROFILE=1 was in the
     * environment at stream_create; [TD_OP_COUNT]. */
    void (*stream_profile)(td_stream *s, double seconds[TD_OP_COUNT]);
    /* Optional. Is this the device that made the process lose its devices (TD_E_DEVICE_LOST), and
     * not one that only shares the process with it? */
    bool (*faulted)(const td_device *dev);
    /* Optional. What the device's sensors say now; *out is zeroed where there are none. */
    void (*health)(td_device *dev, td_device_health *out);
} td_device_ops;

/* Backends embed this as their first member; likewise td_weight. */
struct td_device {
    const td_device_ops *ops;
    td_device_info info;
};
struct td_weight {
    const td_device_ops *ops;
    int64_t n_rows, n_cols; /* N, K */
    td_dtype compute;
    size_t size_bytes; /* device memory held */
};

/* --- the registry (backends.c, the only file that asks which backends are compiled in) -------- */

/* The machine's devices of a backend. "cpu": `n_cpu_devices` devices that split the cores (0 = 1).
 * "cuda": in the order of nvidia-smi, that of PCI ids (CUDA_DEVICE_ORDER is set so where the
 * user has not set it; call before other threads read the environment), from among what
 * CUDA_VISIBLE_DEVICES leaves; none when there is no driver (not an error). Creates no context.
 * *out is freed by the caller with free(). */
td_status td_device_enumerate(const char *backend, int32_t n_cpu_devices, td_device_info **out,
                              int32_t *n_out, td_error *err);
/* The number of the device that goes by this name: a UUID ("GPU-8f2e...", "MIG-...") or the beginning
 * of one, or a PCI id ("0000:65:00.0", "65:00.0"). Names of two devices are TD_E_CONFIG, of none
 * TD_E_DEVICE. */
td_status td_device_find(const td_device_info *info, int32_t n, const char *name, int32_t *out,
                         td_error *err);
/* How the backend's devices come to be these in this order, for a person: what of the environment
 * chose or numbered them. "" when there is nothing to say. */
const char *td_device_numbering(const char *backend);
/* Opens the device that an enumeration described. */
td_status td_device_open(const td_device_info *info, td_device **out, td_error *err);
void td_device_close(td_device *dev); /* NULL allowed */
/* "cpu" or "cpu cuda-13.0": the kinds this build can run. */
const char *td_device_backends(void);

/* --- speeds, measured (speed.c) --------------------------------------------------------------- */

typedef struct td_device_speed {
    double tflops;  /* dense products in the given compute mode */
    double mem_gbs; /* copies on the device, read + written */
} td_device_speed;

/* Measures an open device for about a tenth of a second: the best of a few products of
 * [2n, n] x [n, n] and of copies of that size; n is 1024, on GPUs up to 4096 as they are fast. For
 * estimates and for balancing unlike devices; never decides how anything is computed. */
td_status td_device_measure(td_device *dev, td_dtype compute, td_device_speed *out, td_error *err);

/* Of the operations that a CPU device does far from its rate of products and copies: the balance of
 * a pipeline depends on them. */
typedef struct td_device_op_speed {
    double attention_tflops; /* 4 H D FLOPs a query-key pair */
    double capture_gbs;      /* 12 bytes a logit: written once, read twice */
} td_device_op_speed;

/* Measures attention (a sequence of 512 tokens, 4 heads of 64) and capture (64 rows of 4096 logits,
 * top 16) for a few hundredths of a second; an open CPU device. */
td_status td_device_measure_ops(td_device *dev, td_dtype compute, td_device_op_speed *out,
                                td_error *err);

/* --- and kept between runs (speed_cache.c) ---------------------------------------------------- */

/* Of a card, which is found again by its UUID, and only while its kind (model and version of the
 * library that computes) is the same. */
typedef struct td_speed_entry {
    char uuid[48];
    char kind[160];
    char date[11];         /* of the measurement, "2026-03-01" */
    double f32, bf16, f16; /* TFLOP/s of products; 0 = the card does not offer the mode */
    double mem_gbs;        /* 1e9 bytes/s */
} td_speed_entry;

typedef struct td_speed_cache {
    td_speed_entry *entries;
    int32_t n_entries;
} td_speed_cache;

/* $XDG_CACHE_HOME/tdgen/device-speeds.json or ~/.cache/tdgen/device-speeds.json, to be freed; NULL
 * when neither variable is set (absolute). */
char *td_speed_cache_path(void);
/* Entries that make no sense are left out. No file, or a damaged one: *out is empty. Processes may
 * load and store at the same time. */
void td_speed_cache_load(const char *path, td_speed_cache *out);
void td_speed_cache_free(td_speed_cache *c);
/* NULL when the card was not measured, or with another library. Lives as long as the cache. */
const td_speed_entry *td_speed_cache_find(const td_speed_cache *c, const char *uuid,
                                          const char *kind);
/* Adds these to what the file holds now, or replaces them by UUID. Makes the folder. */
td_status td_speed_cache_store(const char *path, const td_speed_entry *entries, int32_t n,
                               td_error *err);

#ifdef __cplusplus
}
#endif
#endif
