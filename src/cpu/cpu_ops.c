/* cpu_ops.c - the operations other than gemm: cut into work items, handed to the level's kernels.
 *
 * Items are runs of rows, or (sequence, block of query rows, head) for attention; what an item is
 * never changes a result, so their sizes are free. Small operations stay on the stream's thread:
 * waking a helper costs some ten microseconds.
 */
#include <math.h>
#include <string.h>

#include "cpu/cpu.h"
#include "base/memory.h"

typedef struct rows_run {
    td_cpu_exec *x;
    const void *args;
    td_cpu_rows_fn fn;
    int64_t n_rows, item_rows;
} rows_run;

static void rows_item(void *ctx, int64_t item, int32_t thread) {
    const rows_run *r = ctx;
    const int64_t begin = item * r->item_rows;
    r->fn(r->x, r->args, begin, TD_MIN(begin + r->item_rows, r->n_rows), thread);
}

void td_cpu_run_rows(td_cpu_exec *x, const void *args, int64_t n_rows, double row_cost,
                     td_cpu_rows_fn fn) {
    enum { ITEM_NS = 20000 };
    rows_run r = {x, args, fn, n_rows, 1};
    r.item_rows = (int64_t)TD_MAX(1.0, ITEM_NS / TD_MAX(row_cost, 1e-3));
    if (r.item_rows > n_rows)
        r.item_rows = TD_MAX(n_rows, 1);
    const int64_t n_items = (n_rows + r.item_rows - 1) / r.item_rows;
    td_cpu_pool_run(x->pool, n_items, n_items < 3 ? 1 : x->n_threads, rows_item, &r);
}

/* --- operations by rows ----------------------------------------------------------------------- */

/* Roughly nanoseconds of a row, by which rows are put together to items. */
static double embed_row_ns(const td_embed_args *a) {
    return 0.5 * a->n_cols;
}
static double norm_row_ns(const td_norm_args *a) {
    return 0.5 * a->n_cols * TD_MAX(a->n_inner, 1);
}
static double rope_row_ns(const td_rope_args *a) {
    return 0.5 * a->n_heads * a->rotary_dim;
}
static double act_row_ns(const td_act_args *a) {
    return 1.5 * a->n_cols;
}
static double convert_row_ns(const td_convert_args *a) {
    (void)a;
    return 0.5;
}

#define EXEC_ROWS(name, n_rows)                                                                    \
    static void name##_rows(td_cpu_exec *x, const void *args, int64_t begin, int64_t end,          \
                            int32_t thread) {                                                      \
        (void)thread;                                                                              \
        x->dev->kernels->name(args, begin, end);                                                   \
    }                                                                                              \
    td_status td_cpu_exec_##name(td_cpu_exec *x, const td_##name##_args *a, td_error *err) {       \
        (void)err;                                                                                 \
        td_cpu_run_rows(x, a, a->n_rows, name##_row_ns(a), name##_rows);                           \
        return TD_OK;                                                                              \
    }
#define EXEC_WHOLE(name, n_rows) /* written out, here or in a file of its own */
#define EXEC(name, NAME, n_rows, how) EXEC_##how(name, n_rows)
TD_DEVICE_OPERATIONS(EXEC)

/* --- capture ---------------------------------------------------------------------------------- */

static void capture_rows(td_cpu_exec *x, const void *args, int64_t begin, int64_t end,
                         int32_t thread) {
    for (int64_t i = begin; i < end; i++)
        x->dev->kernels->capture(args, i, x->scratch[thread].data);
}
td_status td_cpu_exec_capture(td_cpu_exec *x, const td_capture_args *a, td_error *err) {
    td_status rc = td_cpu_scratch_need_all(x, td_cpu_capture_scratch_bytes(a), err);
    if (rc != TD_OK)
        return rc;
    td_cpu_run_rows(x, a, a->n_rows, 3.0 * a->n_valid, capture_rows);
    return TD_OK;
}

/* --- attention -------------------------------------------------------------------------------- */

typedef struct attention_run {
    const td_attention_args *a;
    td_cpu_exec *x;
    int32_t *first_block; /* [n_seqs + 1] blocks of query rows before each sequence */
} attention_run;

static void attention_item(void *ctx, int64_t item, int32_t thread) {
    const attention_run *r = ctx;
    const td_attention_args *a = r->a;
    const int32_t head = (int32_t)(item % a->n_heads);
    /* From the last block down: the long rows of a sequence come first, short work fills the end.
     */
    const int32_t block = r->first_block[a->n_seqs] - 1 - (int32_t)(item / a->n_heads);
    int32_t lo = 0, hi = a->n_seqs - 1; /* the sequence that holds the block */
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo + 1) / 2;
        if (r->first_block[mid] <= block)
            lo = mid;
        else
            hi = mid - 1;
    }
    const int32_t start = a->seq_offsets[lo], len = a->seq_offsets[lo + 1] - start;
    r->x->dev->kernels->attention(a, start, len, head,
                                  (block - r->first_block[lo]) * TD_ATT_QUERIES,
                                  r->x->scratch[thread].data);
}

td_status td_cpu_exec_attention(td_cpu_exec *x, const td_attention_args *a, td_error *err) {
    if (a->n_seqs <= 0)
        return TD_OK;
    td_status rc =
        td_cpu_scratch_need(x, &x->shared, ((size_t)a->n_seqs + 1) * sizeof(int32_t), err);
    if (rc == TD_OK)
        rc = td_cpu_scratch_need_all(x, td_cpu_attention_scratch_bytes(a->head_dim), err);
    if (rc != TD_OK)
        return rc;
    attention_run r = {a, x, x->shared.data};
    r.first_block[0] = 0;
    double work = 0;
    for (int32_t i = 0; i < a->n_seqs; i++) {
        const int32_t len = a->seq_offsets[i + 1] - a->seq_offsets[i];
        r.first_block[i + 1] = r.first_block[i] + (len + TD_ATT_QUERIES - 1) / TD_ATT_QUERIES;
        work += (double)len * len;
    }
    work *= (double)a->n_heads * a->head_dim;
    td_cpu_pool_run(x->pool, (int64_t)r.first_block[a->n_seqs] * a->n_heads,
                    work < 1e6 ? 1 : x->n_threads, attention_item, &r);
    return TD_OK;
}

/* --- the operation of a command --------------------------------------------------------------- */

td_status td_cpu_execute(td_cpu_exec *x, td_op op, const td_cpu_args *args, td_error *err) {
    switch (op) {
    case TD_OP_COPY:
        memcpy(args->copy.dst, args->copy.src, args->copy.size_bytes);
        return TD_OK;
#define EXECUTE(name, NAME, n_rows, how)                                                           \
    case TD_OP_##NAME:                                                                             \
        return td_cpu_exec_##name(x, &args->name, err);
        TD_DEVICE_OPERATIONS(EXECUTE)
    case TD_OP_COUNT:
        break;
    }
    return td_error_set(err, TD_E_INTERNAL, "operation %d is not in the table", (int)op);
}
