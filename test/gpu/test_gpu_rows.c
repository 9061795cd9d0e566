/* The contract of rows at the size of large micro-batches: the bits of a row's result do not depend
 * on how many rows there are, on its place, or on its neighbours. The other suites check that row
 * by row and up to 1000; here every row of up to TDGEN_TEST_ROWS (32768 on a GPU day) is compared.
 *
 * The rows of an operation follow a pattern: KINDS different rows in turn, so that each comes to
 * every place of a tile (KINDS is prime, tiles are powers of two), and at every HOSTILE_EVERY-th
 * place a row of NaN or of huge numbers instead. A kind's reference is its row computed alone. The
 * memory of the results is filled beforehand, one row more than asked for, which must stay as it
 * is. What is large lives on the device and is made there by copies; only results come to the host.
 *
 * TDGEN_TEST_ROWS=N  the most rows (of attention: tokens); 300 when unset, 4096 with
 *                    TDGEN_TEST_LARGE=1, which also chooses the sizes of real models. Where
 *                    memory does not suffice for N, a line says SKIPPED and how far it went.
 */
#include <math.h>
#include <stdio.h>

#include "fixture.h"
#include "base/memory.h"

enum { KINDS = 61, HOSTILE_EVERY = 13, PERIOD = KINDS * HOSTILE_EVERY };
enum { MAX_OUTS = 16, MAX_BIG = 32, POOL = (1 << 20) + 7, CHUNK_BYTES = 1 << 26 };
static const int32_t row_counts[] = {2,    7,    63,    64,    129,   1000,
                                     4096, 8192, 16383, 32768, 65536, 131072};

typedef struct row_op row_op;
struct row_op {
    char name[120];
    td_dtype in_type; /* of a row of in_cols numbers; or with `ids` one int32 below KINDS */
    size_t in_cols;
    bool ids;
    int32_t n_outs;
    size_t out_bytes[MAX_OUTS]; /* of a row in each array of the result */
    bool accumulates;           /* onto rows of 0.25; else what stands there is overwritten */
    bool by_chunks;             /* callers begin at any row of an array: that is checked too */
    int32_t unit;               /* tokens of a row: 1, of attention a sequence */
    uint64_t held_bytes;        /* of device memory beside the rows: weights */
    uint64_t scratch_bytes;     /* of device memory per row */
    /* Enqueues n rows; `in` and `outs` point at row `first` of the pattern. */
    void (*enqueue)(const row_op *op, const void *in, int32_t first, int32_t n, void *const *outs);
    void *ctx;
};

/* --- rows ------------------------------------------------------------------------------------- */

static int32_t rows_asked(void) {
    const char *text = getenv("TDGEN_TEST_ROWS");
    char *end;
    if (!text || !*text)
        return gt_large ? 4096 : 300;
    const long n = strtol(text, &end, 10);
    if (*end || n < 2 || n > 1 << 20) {
        printf("    FAILED: TDGEN_TEST_ROWS is '%s', not a number from 2 to 1048576\n", text);
        exit(1);
    }
    return (int32_t)n;
}

static bool is_hostile(const row_op *op, int32_t row) {
    return !op->ids && row % HOSTILE_EVERY == HOSTILE_EVERY - 1;
}

/* The first place of a kind in the pattern. */
static int32_t place_of(const row_op *op, int32_t kind) {
    return is_hostile(op, kind) ? kind + KINDS : kind;
}

/* POOL numbers of about N(0, 1) in type t, for the life of the process. */
static const char *pool_of(td_dtype t) {
    static char *pools[3];
    if (!pools[t]) {
        gt_rng r = {77};
        float *x = malloc(POOL * sizeof(float));
        pools[t] = malloc(POOL * td_dtype_size(t));
        if (!x || !pools[t]) {
            printf("    FAILED: no host memory\n");
            exit(1);
        }
        for (size_t i = 0; i < POOL; i++)
            x[i] = gt_normal(&r);
        memcpy(pools[t], gt_pack(x, POOL, t), POOL * td_dtype_size(t));
        free(x);
    }
    return pools[t];
}

/* n numbers of the pool from number `from` on, around and around. */
static void pool_copy(void *dst, td_dtype t, size_t from, size_t n) {
    const size_t elem = td_dtype_size(t);
    const char *pool = pool_of(t);
    for (size_t done = 0, at = from % POOL; done < n; at = 0) {
        const size_t part = TD_MIN(n - done, POOL - at);
        memcpy((char *)dst + done * elem, pool + at * elem, part * elem);
        done += part;
    }
}

static size_t in_bytes_of(const row_op *op) {
    return op->ids ? 4 : op->in_cols * td_dtype_size(op->in_type);
}

static void write_row(const row_op *op, int32_t row, void *dst) {
    const int32_t kind = row % KINDS;
    if (op->ids)
        memcpy(dst, &kind, 4);
    else if (is_hostile(op, row)) /* NaN; 3.4e38 as f32 and bf16 */
        memset(dst, row / HOSTILE_EVERY % 2 ? 0x7f : 0xff, in_bytes_of(op));
    else
        pool_copy(dst, op->in_type, (size_t)kind * 17041, op->in_cols);
}

/* --- device memory ---------------------------------------------------------------------------- */

/* Not of the fixture, which fills on the host what it allocates: these are gigabytes. */
static void *big[MAX_BIG];
static int32_t n_big;

static void free_big(void) {
    while (n_big > 0)
        gt_dut.ops->free(gt_dut.dev, big[--n_big]);
}

static char *big_alloc(size_t size_bytes) {
    void *p;
    GT_MUST(gt_dut.ops->alloc(gt_dut.dev, size_bytes, &p, &gt_err));
    big[n_big++] = p;
    return p;
}

/* The first `seed_bytes` of dst over and over, up to total_bytes. */
static void repeat(char *dst, size_t seed_bytes, size_t total_bytes) {
    for (size_t have = seed_bytes; have < total_bytes;) {
        const size_t n = TD_MIN(have, total_bytes - have);
        GT_MUST(gt_dut.ops->copy_peer(gt_dut.s, dst + have, gt_dut.dev, dst, n, &gt_err));
        have += n;
    }
}

static td_weight *weight_of(int64_t n, int64_t k, td_dtype t) {
    static size_t from;
    td_weight *w;
    void *host = malloc((size_t)(n * k) * td_dtype_size(t));
    if (!host) {
        printf("    FAILED: no host memory for a weight\n");
        exit(1);
    }
    pool_copy(host, t, from += 60013, (size_t)(n * k));
    const td_host_matrix part = {host, t, n, k};
    const td_status st = gt_dut.ops->weight_prepare(gt_dut.dev, &part, 1, t, &w, &gt_err);
    free(host);
    gt_must(st, "weight_prepare");
    return w;
}

/* --- the check -------------------------------------------------------------------------------- */

typedef struct row_check {
    const row_op *op;
    int32_t max;
    char *in, *alone, *outs[MAX_OUTS]; /* device: max rows; one row; max + 1 rows each */
    char *refs[MAX_OUTS];              /* host: [KINDS] rows, each computed alone */
    char *chunk;                       /* host, pinned */
    size_t chunk_bytes;
    unsigned char untouched[4]; /* what stands in the results beforehand, again and again */
    int64_t n_compared;
} row_check;

static void run(row_check *c, const void *in, int32_t first, int32_t n, int32_t out_first) {
    void *outs[MAX_OUTS];
    for (int32_t j = 0; j < c->op->n_outs; j++) {
        const size_t row = c->op->out_bytes[j];
        gt_set(&gt_dut, c->outs[j], c->untouched, sizeof(c->untouched));
        repeat(c->outs[j], sizeof(c->untouched), (size_t)(out_first + n + 1) * row);
        outs[j] = c->outs[j] + (size_t)out_first * row;
    }
    c->op->enqueue(c->op, in, first, n, outs);
    gt_sync(&gt_dut);
}

static void take_references(row_check *c) {
    const row_op *op = c->op;
    const size_t row = in_bytes_of(op);
    for (int32_t kind = 0; kind < KINDS; kind++) {
        const int32_t at = place_of(op, kind);
        if (at >= c->max)
            continue;
        GT_MUST(gt_dut.ops->copy_peer(gt_dut.s, c->alone, gt_dut.dev, c->in + (size_t)at * row, row,
                                      &gt_err));
        run(c, c->alone, at, 1, 0);
        for (int32_t j = 0; j < op->n_outs; j++)
            gt_get(&gt_dut, c->refs[j] + (size_t)kind * op->out_bytes[j], c->outs[j],
                   op->out_bytes[j]);
    }
    const size_t first_out = op->out_bytes[0];
    GT_CHECK(memcmp(c->refs[0], c->refs[0] + first_out, first_out) != 0,
             "%s: two different rows have the same result", op->name);
}

static bool is_untouched(const row_check *c, const char *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)p[i] != c->untouched[i % sizeof(c->untouched)])
            return false;
    return true;
}

/* Row i of array j, of a run of the rows [first, end). False on a failure, which is counted. */
static bool check_row(row_check *c, int32_t j, const char *got, int32_t i, int32_t first,
                      int32_t end) {
    const row_op *op = c->op;
    const size_t row = op->out_bytes[j];
    const int32_t n = end - first;
    if (i < first || i >= end) {
        const bool good = is_untouched(c, got, row);
        GT_CHECK(good, "%s: %d rows from row %d on also wrote row %d of array %d", op->name, n,
                 first, i, j);
        return good;
    }
    if (is_hostile(op, i))
        return true;
    c->n_compared += j == 0;
    return gt_same_bits(got, c->refs[j] + (size_t)(i % KINDS) * row, row,
                        "%s: row %d among %d from row %d on is not as alone (array %d)", op->name,
                        i, n, first, j);
}

/* Computes the rows [first, end) at once and compares all. False on a failure. */
static bool check_run(row_check *c, int32_t first, int32_t end) {
    const row_op *op = c->op;
    run(c, c->in + (size_t)first * in_bytes_of(op), first, end - first, first);
    for (int32_t j = 0; j < op->n_outs; j++) {
        const size_t row = op->out_bytes[j];
        const int32_t step = (int32_t)TD_MIN(c->chunk_bytes / row, (size_t)(end + 1));
        for (int32_t at = 0; at <= end; at += step) {
            const int32_t n = TD_MIN(step, end + 1 - at);
            gt_get(&gt_dut, c->chunk, c->outs[j] + (size_t)at * row, (size_t)n * row);
            for (int32_t i = 0; i < n; i++)
                if (!check_row(c, j, c->chunk + (size_t)i * row, at + i, first, end))
                    return false;
        }
    }
    return true;
}

/* As many rows as were asked for, or as fit. */
static int32_t rows_that_fit(const row_op *op) {
    const int32_t asked = TD_MAX(rows_asked() / op->unit, 2);
    uint64_t row = in_bytes_of(op) + op->scratch_bytes;
    for (int32_t j = 0; j < op->n_outs; j++)
        row += op->out_bytes[j];
    /* The rest is for the library, the kernels' own scratch, the display. */
    const uint64_t usable = gt_dut.dev->info.memory_free_bytes / 10 * 7;
    const uint64_t fit = usable > op->held_bytes ? (usable - op->held_bytes) / row : 0;
    if (fit >= (uint64_t)asked)
        return asked;
    printf("    SKIPPED: %s: memory for %llu of %d rows\n", op->name, (unsigned long long)fit,
           asked);
    return (int32_t)fit;
}

/* A row_check of `max` rows. What a failing GT_MUST leaves behind, the next check frees, or it
 * leaks: the program fails then anyway. */
static void check(const row_op *op) {
    row_check c = {.op = op, .max = rows_that_fit(op)};
    const size_t row = in_bytes_of(op), n_seed = (size_t)TD_MIN(c.max, PERIOD);
    const float quarter = 0.25f;
    if (c.max < 2)
        return;
    free_big();
    memset(c.untouched, 0xff, sizeof(c.untouched));
    if (op->accumulates)
        memcpy(c.untouched, &quarter, sizeof(c.untouched));
    c.in = big_alloc((size_t)c.max * row);
    c.alone = big_alloc(row);
    for (int32_t j = 0; j < op->n_outs; j++) {
        const size_t out = op->out_bytes[j];
        c.outs[j] = big_alloc((size_t)(c.max + 1) * out);
        c.refs[j] = gt_host(KINDS * out);
        c.chunk_bytes = TD_MAX(c.chunk_bytes, (size_t)(c.max + 1) * out);
        GT_CHECK(out <= CHUNK_BYTES, "%s: a row of %zu bytes", op->name, out);
    }
    c.chunk_bytes = TD_MIN(c.chunk_bytes, (size_t)CHUNK_BYTES);
    void *chunk;
    GT_MUST(gt_dut.ops->host_alloc(gt_dut.dev, c.chunk_bytes, &chunk, &gt_err));
    c.chunk = chunk;
    char *seed = gt_host(n_seed * row);
    for (size_t i = 0; i < n_seed; i++)
        write_row(op, (int32_t)i, seed + i * row);
    gt_set(&gt_dut, c.in, seed, n_seed * row);
    repeat(c.in, n_seed * row, (size_t)c.max * row);

    take_references(&c);
    bool good = true;
    for (size_t i = 0; good && i < TD_ARRAY_LEN(row_counts) && row_counts[i] < c.max; i++)
        good = check_run(&c, 0, row_counts[i]);
    good = good && check_run(&c, 0, c.max);
    if (good && op->by_chunks && c.max > 6)
        good = check_run(&c, 5, c.max);
    if (good)
        printf("    %s: up to %d rows, %lld compared\n", op->name, c.max * op->unit,
               (long long)c.n_compared * op->unit);
    gt_dut.ops->host_free(gt_dut.dev, chunk);
    free_big();
}

/* --- products --------------------------------------------------------------------------------- */

typedef struct product {
    td_weight *weight;
    float *bias; /* device or NULL */
} product;

static void enqueue_product(const row_op *op, const void *in, int32_t first, int32_t n,
                            void *const *outs) {
    const product *p = op->ctx;
    (void)first;
    const td_gemm_args a = {.weight = p->weight,
                            .in = in,
                            .bias = p->bias,
                            .out = outs[0],
                            .n_rows = n,
                            .scale = op->accumulates ? 0.5f : 1,
                            .accumulate = op->accumulates};
    GT_MUST(gt_dut.ops->gemm(gt_dut.s, &a, &gt_err));
}

static void check_product(int32_t n, int32_t k, td_dtype t, int mode) {
    product p = {.weight = weight_of(n, k, t)};
    gt_rng r = {(uint64_t)n};
    if (mode & 1)
        p.bias = gt_put(&gt_dut, gt_floats(&r, (size_t)n), (size_t)n * 4);
    row_op op = {.in_type = t,
                 .in_cols = (size_t)k,
                 .n_outs = 1,
                 .out_bytes = {(size_t)n * 4},
                 .accumulates = mode & 2,
                 .by_chunks = true,
                 .unit = 1,
                 .held_bytes = p.weight->size_bytes,
                 .enqueue = enqueue_product,
                 .ctx = &p};
    snprintf(op.name, sizeof(op.name), "%s product [N %d, K %d]%s%s", td_dtype_name(t), n, k,
             mode & 1 ? ", bias" : "", mode & 2 ? ", accumulated" : "");
    check(&op);
    gt_dut.ops->weight_destroy(p.weight);
    gt_release();
}

static bool has_type(td_dtype t) {
    td_dtype types[3];
    const int32_t n = gt_computes(types);
    for (int32_t i = 0; i < n; i++)
        if (types[i] == t)
            return true;
    printf("    SKIPPED: this device has no %s\n", td_dtype_name(t));
    return false;
}

/* Of Llama, Qwen, Mistral and GPT-2, as in test_gpu_gemm: cuBLASLt knows many algorithms. */
static void check_products(td_dtype t) {
    static const int32_t real[][2] = {{6144, 4096},  {4096, 4096}, {28672, 4096}, {4096, 14336},
                                      {2560, 2048},  {2048, 2048}, {11008, 2048}, {2048, 8192},
                                      {16384, 2048}, {1024, 1024}, {768, 768},    {3072, 768}};
    static const int32_t small[][2] = {{64, 64}, {100, 37}, {24, 520}, {192, 64}, {1, 1}, {7, 129}};
    if (!has_type(t))
        return;
    for (size_t i = 0; i < TD_ARRAY_LEN(small); i++)
        check_product(small[i][0], small[i][1], t, (int)i % 4);
    for (size_t i = 0; gt_large && i < TD_ARRAY_LEN(real); i++)
        check_product(real[i][0], real[i][1], t, (int)i % 4);
}

static void case_products_bf16(void) {
    check_products(TD_BF16);
}
static void case_products_f16(void) {
    check_products(TD_F16);
}
static void case_products_f32(void) {
    check_products(TD_F32);
}

/* lm_head: results of more than 2^31 numbers. */
static void case_vocabulary(void) {
    for (td_dtype t = TD_F32; t <= TD_F16; t++) {
        if (!has_type(t))
            continue;
        check_product(gt_large ? 128256 : 1003, gt_large ? 4096 : 48, t, 0);
        if (gt_large && t == TD_BF16)
            check_product(151936, 896, t, 0);
    }
}

/* --- what is done to each row by itself ------------------------------------------------------- */

typedef struct plain_op {
    enum { NORM, ACT, ROPE_OUT, ROPE_IN_PLACE, EMBED, CONVERT } what;
    td_norm_args norm;
    td_act_args act;
    td_rope_args rope;
    td_embed_args embed;
    td_dtype out_type;
    const int32_t *positions; /* device, of the pattern */
} plain_op;

static void enqueue_plain(const row_op *op, const void *in, int32_t first, int32_t n,
                          void *const *outs) {
    plain_op *p = op->ctx;
    const td_device_ops *ops = gt_dut.ops;
    switch (p->what) {
    case NORM:
        p->norm.in = in, p->norm.out = outs[0], p->norm.n_rows = n;
        GT_MUST(ops->norm(gt_dut.s, &p->norm, &gt_err));
        break;
    case ACT:
        p->act.in = in, p->act.out = outs[0], p->act.n_tokens = n;
        GT_MUST(ops->act(gt_dut.s, &p->act, &gt_err));
        break;
    case ROPE_IN_PLACE:
        GT_MUST(ops->copy_peer(gt_dut.s, outs[0], gt_dut.dev, in, (size_t)n * op->in_cols * 4,
                               &gt_err));
        p->rope.x = outs[0], p->rope.positions = p->positions + first, p->rope.n_tokens = n;
        GT_MUST(ops->rope(gt_dut.s, &p->rope, &gt_err));
        break;
    case ROPE_OUT:
        p->rope.x = (float *)(uintptr_t)in, p->rope.out = outs[0]; /* only read */
        p->rope.positions = p->positions + first, p->rope.n_tokens = n;
        GT_MUST(ops->rope(gt_dut.s, &p->rope, &gt_err));
        break;
    case EMBED:
        p->embed.ids = in, p->embed.out = outs[0], p->embed.n_tokens = n;
        GT_MUST(ops->embed(gt_dut.s, &p->embed, &gt_err));
        break;
    case CONVERT: {
        const td_convert_args a = {.in = in,
                                   .out = outs[0],
                                   .in_dtype = op->in_type,
                                   .out_dtype = p->out_type,
                                   .n = (int64_t)n * (int64_t)op->in_cols};
        GT_MUST(ops->convert(gt_dut.s, &a, &gt_err));
        break;
    }
    }
}

/* From rows of f32 (or ids) to rows of out_cols numbers of p->out_type. */
static row_op plain(plain_op *p, size_t in_cols, size_t out_cols) {
    return (row_op){.in_type = TD_F32,
                    .in_cols = in_cols,
                    .n_outs = 1,
                    .out_bytes = {out_cols * td_dtype_size(p->out_type)},
                    .unit = 1,
                    .enqueue = enqueue_plain,
                    .ctx = p};
}

static void *device_pool(td_dtype t, size_t n) {
    void *host = gt_host(n * td_dtype_size(t));
    pool_copy(host, t, 4242, n);
    return gt_put(&gt_dut, host, n * td_dtype_size(t));
}

static void case_norms(void) {
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    static const struct {
        td_norm_kind kind;
        int32_t cols, inner;
        bool accumulate;
    } each[] = {{TD_NORM_RMS, 4096, 1, false},
                {TD_NORM_LAYER, 5120, 1, false},
                {TD_NORM_RMS, 128, 40, false},
                {TD_NORM_RMS, 3584, 1, true},
                {TD_NORM_NONE, 2048, 1, false}};
    static const int32_t small_cols[] = {1024, 72, 20, 31, 64};
    for (size_t i = 0; i < TD_ARRAY_LEN(each); i++)
        for (int32_t k = 0; k < n_types; k++) {
            const int32_t cols = gt_large ? each[i].cols : small_cols[i];
            const int32_t width = cols * each[i].inner;
            if (each[i].accumulate && types[k] != TD_F32)
                continue;
            const bool none = each[i].kind == TD_NORM_NONE;
            plain_op p = {.what = NORM, .out_type = types[k]};
            p.norm = (td_norm_args){
                .kind = each[i].kind,
                .weight = none ? NULL : device_pool(TD_F32, (size_t)cols),
                .bias = each[i].kind == TD_NORM_LAYER ? device_pool(TD_F32, (size_t)cols) : NULL,
                .out_dtype = types[k],
                .n_cols = cols,
                .n_inner = each[i].inner,
                .in_stride = width,
                .out_stride = width,
                .eps = 1e-6f,
                .accumulate = each[i].accumulate,
                .scale = each[i].accumulate ? 0.3f : 0};
            row_op op = plain(&p, (size_t)width, (size_t)width);
            op.accumulates = each[i].accumulate;
            snprintf(op.name, sizeof(op.name), "norm %d of %d x %d to %s%s", (int)each[i].kind,
                     each[i].inner, cols, td_dtype_name(types[k]),
                     each[i].accumulate ? ", accumulated" : "");
            check(&op);
            gt_release();
        }
}

static void case_activations(void) {
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (td_act which = TD_ACT_SILU; which <= TD_ACT_GELU_TANH; which++)
        for (int32_t k = 0; k < n_types; k++) {
            const bool gated = ((int)which + k) % 2 == 0;
            const int32_t f = gt_large ? 14336 : 90;
            plain_op p = {.what = ACT, .out_type = types[k]};
            p.act = (td_act_args){.act = which, .gated = gated, .out_dtype = types[k], .n_cols = f};
            row_op op = plain(&p, (size_t)f * (gated ? 2 : 1), (size_t)f);
            snprintf(op.name, sizeof(op.name), "%sactivation %d of %d to %s", gated ? "gated " : "",
                     (int)which, f, td_dtype_name(types[k]));
            check(&op);
            gt_release();
        }
}

static void case_rotation(void) {
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    enum { STEP = 7, POSITIONS = KINDS * STEP };
    const int32_t d = gt_large ? 128 : 20, heads = gt_large ? 40 : 3, n_plain = gt_large ? 8 : 2;
    const int32_t rotary = d - 4, asked = rows_asked();
    int32_t *positions = gt_host((size_t)asked * 4);
    for (int32_t i = 0; i < asked; i++)
        positions[i] = i % KINDS * STEP;
    const int32_t *on_device = gt_put(&gt_dut, positions, (size_t)asked * 4);
    const size_t table = (size_t)POSITIONS * (size_t)rotary / 2;
    const float *cosines = device_pool(TD_F32, table), *sines = device_pool(TD_F32, table);
    for (int32_t k = -1; k < (gt_turns_into() ? n_types : 0); k++) {
        const int32_t behind = k < 0 ? 0 : n_plain, width = (heads + behind) * d;
        const td_dtype type = k < 0 ? TD_F32 : types[k];
        plain_op p = {
            .what = k < 0 ? ROPE_IN_PLACE : ROPE_OUT, .out_type = type, .positions = on_device};
        p.rope = (td_rope_args){.out_dtype = type,
                                .n_plain_heads = behind,
                                .cos_table = cosines,
                                .sin_table = sines,
                                .n_heads = heads,
                                .head_dim = d,
                                .rotary_dim = rotary,
                                .stride = width};
        row_op op = plain(&p, (size_t)width, (size_t)width);
        snprintf(op.name, sizeof(op.name), "rotation of %d + %d heads of %d, %s", heads, behind, d,
                 k < 0 ? "in place" : td_dtype_name(type));
        check(&op);
    }
}

static void case_embedding(void) {
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    const int32_t c = gt_large ? 4096 : 75;
    for (int32_t k = 0; k < n_types; k++) {
        plain_op p = {.what = EMBED, .out_type = TD_F32};
        p.embed = (td_embed_args){.table = device_pool(types[k], (size_t)KINDS * (size_t)c),
                                  .table_dtype = types[k],
                                  .n_cols = c,
                                  .scale = 1.7f};
        row_op op = plain(&p, 1, (size_t)c);
        op.ids = true;
        snprintf(op.name, sizeof(op.name), "embedding of %d in %s", c, td_dtype_name(types[k]));
        check(&op);
        gt_release();
    }
}

static void case_conversion(void) {
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t k = 1; k < n_types; k++) {
        plain_op p = {.what = CONVERT, .out_type = types[k]};
        const size_t cols = gt_large ? 8191 : 33;
        row_op op = plain(&p, cols, cols);
        snprintf(op.name, sizeof(op.name), "conversion of %zu to %s", cols,
                 td_dtype_name(types[k]));
        check(&op);
        gt_release();
    }
}

/* --- attention -------------------------------------------------------------------------------- */

typedef struct heads {
    int32_t h, hkv, d, window;
    float softcap;
} heads;

/* Its arguments but for what the call brings. */
static td_attention_args attention_of(const heads *c, td_dtype t, const void *in, void *out) {
    const size_t elem = td_dtype_size(t);
    const char *x = in;
    return (td_attention_args){.q = x,
                               .k = x + (size_t)c->h * (size_t)c->d * elem,
                               .v = x + (size_t)(c->h + c->hkv) * (size_t)c->d * elem,
                               .in_dtype = t,
                               .stride = (c->h + 2 * c->hkv) * c->d,
                               .out = out,
                               .out_dtype = t,
                               .n_heads = c->h,
                               .n_kv_heads = c->hkv,
                               .head_dim = c->d,
                               .window = c->window,
                               .scale = 2 / sqrtf((float)c->d),
                               .softcap = c->softcap};
}

typedef struct sequences {
    heads shape;
    td_dtype type;
    int32_t *host, *device; /* offsets of sequences that are all as long */
} sequences;

static void enqueue_sequences(const row_op *op, const void *in, int32_t first, int32_t n,
                              void *const *outs) {
    const sequences *s = op->ctx;
    (void)first;
    td_attention_args a = attention_of(&s->shape, s->type, in, outs[0]);
    a.seq_offsets = s->device, a.seq_offsets_host = s->host, a.n_seqs = n;
    GT_MUST(gt_dut.ops->attention(gt_dut.s, &a, &gt_err));
}

static const heads real_heads[] = {{32, 8, 128, 0, 0}, {8, 4, 256, 100, 50}};
static const heads small_heads[] = {{4, 2, 16, 0, 0}, {2, 1, 64, 35, 50}};

/* The types that attention reads on this device. */
static int32_t attention_types(td_dtype out[3]) {
    const int32_t n = gt_computes(out);
    return gt_turns_into() ? n : 1;
}

/* Sequences in a packed batch: each one's result is that of the sequence alone. */
static void case_packed_sequences(void) {
    td_dtype types[3];
    const int32_t n_types = attention_types(types);
    static const int32_t lengths[] = {1, 77, 300};
    for (size_t i = 0; i < TD_ARRAY_LEN(real_heads); i++)
        for (size_t l = 0; l < TD_ARRAY_LEN(lengths); l++)
            for (int32_t k = 0; k < n_types; k++) {
                const int32_t length = gt_large ? lengths[l] : (lengths[l] + 3) / 4;
                const int32_t max = TD_MAX(rows_asked() / length, 2);
                sequences s = {gt_large ? real_heads[i] : small_heads[i], types[k], NULL, NULL};
                const heads *c = &s.shape;
                s.host = gt_host(((size_t)max + 1) * 4);
                for (int32_t j = 0; j <= max; j++)
                    s.host[j] = j * length;
                s.device = gt_put(&gt_dut, s.host, ((size_t)max + 1) * 4);
                row_op op = {.in_type = s.type,
                             .in_cols = (size_t)(length * (c->h + 2 * c->hkv) * c->d),
                             .n_outs = 1,
                             .out_bytes = {(size_t)(length * c->h * c->d) * td_dtype_size(s.type)},
                             .unit = length,
                             .enqueue = enqueue_sequences,
                             .ctx = &s};
                snprintf(op.name, sizeof(op.name), "%s attention, %d/%d heads of %d, lengths of %d",
                         td_dtype_name(s.type), c->h, c->hkv, c->d, length);
                check(&op);
                gt_release();
            }
}

/* The first rows of a long sequence, beside the same with other, hostile rows behind them. */
static void check_long(const heads *c, td_dtype t) {
    enum { BEFORE = 37 }; /* tokens of a sequence in front */
    static const int32_t kept_of_64[] = {64, 1, 9, 31, 50};
    const int32_t length = rows_asked(), stride = (c->h + 2 * c->hkv) * c->d;
    const size_t elem = td_dtype_size(t), in_row = (size_t)stride * elem,
                 out_row = (size_t)(c->h * c->d) * elem, n_out = (size_t)length * out_row;
    const int32_t offsets[] = {0, BEFORE, BEFORE + length};
    char *first = gt_host(n_out), *got = gt_host(n_out);
    free_big();
    char *tokens = big_alloc((size_t)length * in_row);
    char *in = big_alloc((size_t)(BEFORE + length) * in_row);
    char *out = big_alloc((size_t)(BEFORE + length) * out_row);
    const size_t n_seed = (size_t)TD_MIN(length, KINDS * 8 + 3);
    char *seed = gt_host(n_seed * in_row);
    pool_copy(seed, t, 99, n_seed * (size_t)stride);
    gt_set(&gt_dut, tokens, seed, n_seed * in_row);
    repeat(tokens, n_seed * in_row, (size_t)length * in_row);
    td_attention_args a = attention_of(c, t, in, out);
    a.seq_offsets = gt_put(&gt_dut, offsets, sizeof(offsets));
    a.seq_offsets_host = offsets, a.n_seqs = 2;
    for (size_t i = 0; i < TD_ARRAY_LEN(kept_of_64); i++) {
        const int32_t kept = (int32_t)TD_MAX((int64_t)length * kept_of_64[i] / 64, 1);
        memset(seed, i % 2 ? 0xff : 0x7f, in_row);
        gt_set(&gt_dut, in, seed, in_row);
        repeat(in, in_row, (size_t)(BEFORE + length) * in_row);
        GT_MUST(gt_dut.ops->copy_peer(gt_dut.s, in + BEFORE * in_row, gt_dut.dev, tokens,
                                      (size_t)kept * in_row, &gt_err));
        GT_MUST(gt_dut.ops->attention(gt_dut.s, &a, &gt_err));
        gt_get(&gt_dut, i ? got : first, out + BEFORE * out_row, (size_t)kept * out_row);
        if (i && !gt_same_bits(got, first, (size_t)kept * out_row,
                               "%s, %d/%d heads of %d: the first %d rows of %d", td_dtype_name(t),
                               c->h, c->hkv, c->d, kept, length))
            break;
    }
    printf("    %s attention, %d/%d heads of %d, one sequence: up to %d rows\n", td_dtype_name(t),
           c->h, c->hkv, c->d, length);
    free_big();
    gt_release();
}

static void case_long_sequence(void) {
    td_dtype types[3];
    const int32_t n_types = attention_types(types);
    static const heads real[] = {{8, 2, 128, 0, 0}, {4, 2, 256, 1024, 50}};
    for (size_t i = 0; i < TD_ARRAY_LEN(real); i++)
        for (int32_t k = 0; k < n_types; k++)
            check_long(gt_large ? &real[i] : &small_heads[i], types[k]);
}

/* --- experts ---------------------------------------------------------------------------------- */

static void enqueue_experts(const row_op *op, const void *in, int32_t first, int32_t n,
                            void *const *outs) {
    td_moe_args a = *(const td_moe_args *)op->ctx;
    (void)first;
    a.in = in, a.out = outs[0], a.n_tokens = n;
    GT_MUST(gt_dut.ops->moe(gt_dut.s, &a, &gt_err));
}

static void check_experts(int32_t e, int32_t top_k, int32_t c, int32_t f, td_dtype t) {
    td_weight **gate_up = gt_host((size_t)e * sizeof(*gate_up)),
              **down = gt_host((size_t)e * sizeof(*down)), *router = weight_of(e, c, t);
    row_op op = {.in_type = t,
                 .in_cols = (size_t)c,
                 .n_outs = 1,
                 .out_bytes = {(size_t)c * 4},
                 .accumulates = true,
                 .unit = 1,
                 .enqueue = enqueue_experts};
    for (int32_t i = 0; i < e; i++) {
        gate_up[i] = weight_of(2 * f, c, t);
        down[i] = weight_of(c, f, t);
        op.held_bytes += gate_up[i]->size_bytes + down[i]->size_bytes;
    }
    op.scratch_bytes = td_moe_scratch_bytes(1000, c, f, e, top_k, t) / 999;
    snprintf(op.name, sizeof(op.name), "%s, %d of %d experts, C %d, F %d", td_dtype_name(t), top_k,
             e, c, f);
    const int32_t max = rows_that_fit(&op);
    td_moe_args a = {.router = router,
                     .gate_up = (const td_weight *const *)gate_up,
                     .down = (const td_weight *const *)down,
                     .act = TD_ACT_SILU,
                     .n_cols = c,
                     .n_ffn = f,
                     .n_experts = e,
                     .top_k = top_k,
                     .normalise = true,
                     .scale = 1};
    GT_MUST(gt_dut.ops->alloc(gt_dut.dev, td_moe_scratch_bytes(max, c, f, e, top_k, t), &a.scratch,
                              &gt_err));
    op.ctx = &a;
    check(&op);
    gt_dut.ops->free(gt_dut.dev, a.scratch);
    for (int32_t i = 0; i < e; i++) {
        gt_dut.ops->weight_destroy(gate_up[i]);
        gt_dut.ops->weight_destroy(down[i]);
    }
    gt_dut.ops->weight_destroy(router);
    gt_release();
}

static void case_experts(void) {
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t k = 0; k < n_types; k++) {
        check_experts(6, 2, 70, 90, types[k]);
        if (gt_large) {
            check_experts(8, 2, 2048, 4096, types[k]);
            check_experts(128, 8, 2048, 768, types[k]);
        }
    }
}

/* --- capture ---------------------------------------------------------------------------------- */

enum { N_TEMPERATURES = 2, N_ALWAYS = 2 };
static const float temperatures[N_TEMPERATURES] = {2, 0.5f};

typedef struct captured {
    td_capture_args args;
    const int32_t *targets;                  /* device, of the pattern */
    const int64_t *dataset_rows, *positions; /* likewise */
} captured;

static void enqueue_capture(const row_op *op, const void *in, int32_t first, int32_t n,
                            void *const *outs) {
    const captured *c = op->ctx;
    td_capture_args a = c->args;
    a.logits = in, a.n_rows = n, a.targets = c->targets + first;
    a.logsumexp = outs[0], a.tail_mass = outs[1], a.target_logprob = outs[2];
    a.target_rank = outs[3], a.entropy = outs[4], a.logsumexp_t = outs[5];
    a.always_logprobs = outs[6], a.topk_ids = outs[7], a.topk_logprobs = outs[8];
    if (a.top_p > 0)
        a.n_kept = outs[9];
    if (a.n_draws) {
        a.dataset_rows = c->dataset_rows + first, a.positions = c->positions + first;
        a.n_unique = outs[10], a.draw_ids = outs[11], a.draw_counts = outs[12];
        a.draw_logprobs = outs[13], a.proposal_logsumexp = outs[14];
    }
    GT_MUST(gt_dut.ops->capture(gt_dut.s, &a, &gt_err));
}

static void check_capture(int32_t v, int32_t k, double top_p, int32_t n_draws) {
    static const int32_t always[N_ALWAYS] = {1, 77};
    const int32_t asked = rows_asked();
    int32_t *targets = gt_host((size_t)asked * 4);
    int64_t *keys = gt_host((size_t)asked * 8);
    for (int32_t i = 0; i < asked; i++) {
        targets[i] = i % KINDS * 977 % v;
        keys[i] = i % KINDS * 1013;
    }
    captured c = {.targets = gt_put(&gt_dut, targets, (size_t)asked * 4)};
    c.dataset_rows = c.positions = gt_put(&gt_dut, keys, (size_t)asked * 8);
    c.args = (td_capture_args){.n_vocab = v,
                               .n_valid = v - 3,
                               .top_k = k,
                               .divisor = 0.2f,
                               .n_temperatures = N_TEMPERATURES,
                               .temperatures = temperatures,
                               .top_p = top_p,
                               .min_k = top_p > 0,
                               .n_draws = n_draws,
                               .proposal_power = n_draws ? 0.5f : 0,
                               .seed = 5,
                               .n_always = N_ALWAYS,
                               .always_ids = always};
    const size_t top = (size_t)k * 4, drawn = (size_t)n_draws * 4;
    row_op op = {.in_type = TD_F32,
                 .in_cols = (size_t)v,
                 .n_outs = n_draws     ? 15
                           : top_p > 0 ? 10
                                       : 9,
                 .out_bytes = {4, 4, 4, 4, 4, N_TEMPERATURES * 4, N_ALWAYS * 4, top, top, 4, 4,
                               drawn, drawn, drawn, 4},
                 .by_chunks = true,
                 .unit = 1,
                 .enqueue = enqueue_capture,
                 .ctx = &c};
    snprintf(op.name, sizeof(op.name), "capture of %d from %d, top p %g, %d draws", k, v, top_p,
             n_draws);
    check(&op);
    gt_release();
}

static void case_capture(void) {
    check_capture(1500, 17, 0, 0);
    check_capture(1001, 30, 0.9, 0);
    check_capture(1302, 8, 0, 40);
    if (!gt_large)
        return;
    check_capture(128256, 64, 0, 0);
    check_capture(32000, 64, 0.9, 0);
    check_capture(151936, 50, 0, 100);
}

/* --- main ------------------------------------------------------------------------------------- */

/* By value, as tools/gpu_day runs them in this order. */
static const gt_case cases[] = {
    {"products_bf16", case_products_bf16},
    {"vocabulary", case_vocabulary},
    {"capture", case_capture},
    {"packed_sequences", case_packed_sequences},
    {"long_sequence", case_long_sequence},
    {"experts", case_experts},
    {"norms", case_norms},
    {"activations", case_activations},
    {"rotation", case_rotation},
    {"embedding", case_embedding},
    {"conversion", case_conversion},
    {"products_f16", case_products_f16},
    {"products_f32", case_products_f32},
};

int main(int argc, char **argv) {
    return gt_main("test_gpu_rows", argc, argv, cases, TD_ARRAY_LEN(cases));
}
