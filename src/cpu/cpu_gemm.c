/* cpu_gemm.c - matrix products over packed weights, by oneDNN.
 *
 * A weight [N, K] is cut into blocks of N that are packed once, each with the format that the
 * primitive of its shape prefers. A product is a grid of (block of N) x (tile of tile_rows rows);
 * each cell is one single-threaded primitive execution, our threads take cells. The grid, and so
 * the arithmetic of a row, depends on the weight's shape alone: the last tile is completed with
 * zero rows, so that the primitive always sees the same number of rows. That the position in a tile
 * does not matter either is a property of oneDNN's kernels, which test_device_gemm checks.
 *
 * An f32 product sums K by parts of at most PART_K, each part by a primitive of its own: the first
 * writes the tile, the others add to it. How far the library's kernels let one f32 sum run is theirs
 * to choose, by instruction set and shape (1024 with AVX512), and the error grows with it; so the
 * longest run is set here (docs/numerics.md). In bf16 the operands' own rounding is a thousand times
 * that error, and the passes over the tile would cost more: one part.
 *
 * oneDNN reads its thread count from OpenMP's setting of the calling thread, at creation and at
 * execution: it is 1 in all threads of ours, and for the time of weight_prepare in the caller's.
 */
#include <inttypes.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "base/convert.h"
#include "base/memory.h"

enum {
    TILE_ROWS = 128,
    BLOCK_N_MAX = 1024, /* columns of a block: enough cells for many threads, panels near the L2 */
    BLOCK_N_STEP = 64,  /* blocks are multiples of this, as the packed formats are */
    PART_K = 512,       /* elements that one f32 sum runs over */
    PART_K_STEP = 64,
};

/* One shape of product: a part of K by a block of N. */
typedef struct block_kind {
    dnnl_primitive_t primitive; /* NULL: the weight has none of this kind */
    dnnl_memory_desc_t src, weights, dst, scratchpad;
    size_t packed_bytes, scratchpad_bytes;
} block_kind;

/* All full blocks of a weight share their kinds, a narrower last block has its own. Along K: the
 * first part, which writes; those behind it, which add; the last one, where it is shorter. */
enum { FULL_N, LAST_N, N_WIDTHS };
enum { FIRST_K, NEXT_K, LAST_K, N_DEPTHS };

typedef struct cpu_weight {
    td_weight base;
    td_cpu_device *dev;
    int64_t n_blocks, block_n, n_parts, part_k;
    block_kind kinds[N_WIDTHS][N_DEPTHS];
    unsigned char *packed; /* n_blocks panels, panel_bytes apart; in each, its parts one after the
                              other, each in its kind's packed_bytes */
    size_t panel_bytes;
    size_t scratch_bytes; /* per thread: source tile, result tile, oneDNN's own */
    size_t src_tile_bytes, dst_tile_bytes;
} cpu_weight;

static int64_t block_cols(const cpu_weight *w, int64_t block) {
    return TD_MIN(w->block_n, w->base.n_rows - block * w->block_n);
}
static int64_t part_size(const cpu_weight *w, int64_t part) {
    return TD_MIN(w->part_k, w->base.n_cols - part * w->part_k);
}
static int width_of(const cpu_weight *w, int64_t block) {
    return block_cols(w, block) < w->block_n ? LAST_N : FULL_N;
}
static int depth_of(const cpu_weight *w, int64_t part) {
    return part == 0 ? FIRST_K : part_size(w, part) < w->part_k ? LAST_K : NEXT_K;
}

static dnnl_engine_t engine;
static dnnl_status_t engine_status;
static pthread_once_t engine_once = PTHREAD_ONCE_INIT;

static void engine_make(void) {
    engine_status = dnnl_engine_create(&engine, dnnl_cpu, 0);
}

static td_status dnnl_fail(td_error *err, dnnl_status_t st, const char *what) {
    return td_error_set(err, st == dnnl_out_of_memory ? TD_E_DEVICE_OOM : TD_E_DEVICE,
                        "oneDNN: %s failed with status %d", what, (int)st);
}

/* --- what the machine offers ------------------------------------------------------------------ */

const char *td_cpu_isa_name(void) {
    static const struct {
        dnnl_cpu_isa_t isa;
        const char *name;
    } names[] = {
        {dnnl_cpu_isa_avx512_core_amx, "avx512_core_amx"},
        {dnnl_cpu_isa_avx512_core_bf16, "avx512_core_bf16"},
        {dnnl_cpu_isa_avx512_core_vnni, "avx512_core_vnni"},
        {dnnl_cpu_isa_avx512_core, "avx512_core"},
        {dnnl_cpu_isa_avx2_vnni, "avx2_vnni"},
        {dnnl_cpu_isa_avx2, "avx2"},
        {dnnl_cpu_isa_avx, "avx"},
        {dnnl_cpu_isa_sse41, "sse41"},
    };
    const unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++)
        if ((isa & (unsigned)names[i].isa) == (unsigned)names[i].isa)
            return names[i].name;
    return "generic";
}

bool td_cpu_isa_has_bf16(void) {
    const unsigned need = (unsigned)dnnl_cpu_isa_avx512_core_bf16;
    return ((unsigned)dnnl_get_effective_cpu_isa() & need) == need;
}

bool td_cpu_runs_level(int level) {
    /* x86-64-v3 and -v4 by their features: clang knows these names from 19 on only. F16C, LZCNT and
     * MOVBE, which it cannot be asked for either, came with or before AVX2 on every processor. */
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return level == 4 ? v4 : level == 3 ? v3 : true;
}

int td_cpu_isa_level(void) {
    const unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();
    const unsigned v4 = (unsigned)dnnl_cpu_isa_avx512_core, v3 = (unsigned)dnnl_cpu_isa_avx2;
    if ((isa & v4) == v4 && td_cpu_runs_level(4))
        return 4;
    return (isa & v3) == v3 && td_cpu_runs_level(3) ? 3 : 1;
}

td_status td_cpu_gemm_thread_create(void **out, td_error *err) {
    pthread_once(&engine_once, engine_make);
    if (engine_status)
        return dnnl_fail(err, engine_status, "creating the CPU engine");
    dnnl_stream_t s;
    dnnl_status_t st = dnnl_stream_create(&s, engine, dnnl_stream_default_flags);
    if (st)
        return dnnl_fail(err, st, "creating a stream");
    *out = s;
    return TD_OK;
}

void td_cpu_gemm_thread_destroy(void *stream) {
    if (stream)
        dnnl_stream_destroy(stream);
}

/* --- weights ---------------------------------------------------------------------------------- */

/* [TILE_ROWS, part_k] x [part_k, n_cols]; rows of the source are row_elems apart. */
static td_status block_kind_make(block_kind *b, int64_t n_cols, int64_t part_k, int64_t row_elems,
                                 td_dtype compute, bool add, td_error *err) {
    const dnnl_data_type_t type = compute == TD_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t src = {TILE_ROWS, part_k}, strides = {row_elems, 1}, weights = {part_k, n_cols};
    dnnl_dims_t dst = {TILE_ROWS, n_cols};
    dnnl_memory_desc_t any;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_matmul_desc_t desc;
    dnnl_status_t st;

    if ((st = dnnl_memory_desc_init_by_strides(&b->src, 2, src, type, strides)) ||
        (st = dnnl_memory_desc_init_by_tag(&any, 2, weights, type, dnnl_format_tag_any)) ||
        (st = dnnl_memory_desc_init_by_tag(&b->dst, 2, dst, dnnl_f32, dnnl_ab)) ||
        (st = dnnl_primitive_attr_create(&attr)) ||
        (st = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user)) ||
        (st = dnnl_post_ops_create(&post)) || (add && (st = dnnl_post_ops_append_sum(post, 1))) ||
        (st = dnnl_primitive_attr_set_post_ops(attr, post)) ||
        (st = dnnl_matmul_desc_init(&desc, &b->src, &any, NULL, &b->dst)) ||
        (st = dnnl_primitive_desc_create(&pd, &desc, attr, engine, NULL)))
        goto out;
    b->weights = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    b->scratchpad = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    b->packed_bytes = (dnnl_memory_desc_get_size(&b->weights) + 63) / 64 * 64;
    b->scratchpad_bytes = (dnnl_memory_desc_get_size(&b->scratchpad) + 63) / 64 * 64;
    st = dnnl_primitive_create(&b->primitive, pd);
out:
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (post)
        dnnl_post_ops_destroy(post);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return st ? dnnl_fail(err, st, "creating a matrix product") : TD_OK;
}

/* Those kinds that the weight's blocks and parts are of. */
static td_status make_kinds(cpu_weight *w, size_t *scratchpad_bytes, td_error *err) {
    for (int64_t block = 0; block < w->n_blocks; block++)
        for (int64_t part = 0; part < w->n_parts; part++) {
            block_kind *b = &w->kinds[width_of(w, block)][depth_of(w, part)];
            if (b->primitive)
                continue;
            td_status rc = block_kind_make(b, block_cols(w, block), part_size(w, part),
                                           w->base.n_cols, w->base.compute, part > 0, err);
            if (rc != TD_OK)
                return rc;
            *scratchpad_bytes = TD_MAX(*scratchpad_bytes, b->scratchpad_bytes);
        }
    return TD_OK;
}

/* Packs a part of K, which begins at column `first_col`, of the n_cols rows in `rows`. */
static td_status pack_part(const cpu_weight *w, const block_kind *b, int64_t n_cols, int64_t part_k,
                           int64_t first_col, unsigned char *rows, unsigned char *packed,
                           dnnl_stream_t stream, td_error *err) {
    /* As the primitive's [K, N] operand: our rows are its columns. */
    const dnnl_data_type_t type = w->base.compute == TD_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t dims = {part_k, n_cols}, strides = {1, w->base.n_cols};
    dnnl_memory_desc_t plain;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_memory_t from = NULL, to = NULL;
    dnnl_status_t st;
    if ((st = dnnl_memory_desc_init_by_strides(&plain, 2, dims, type, strides)) ||
        (st = dnnl_reorder_primitive_desc_create(&pd, &plain, engine, &b->weights, engine, NULL)) ||
        (st = dnnl_primitive_create(&reorder, pd)) ||
        (st = dnnl_memory_create(&from, &plain, engine,
                                 rows + (size_t)first_col * td_dtype_size(w->base.compute))) ||
        (st = dnnl_memory_create(&to, &b->weights, engine, packed)))
        goto out;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    st = dnnl_primitive_execute(reorder, stream, 2, args);
    if (!st)
        st = dnnl_stream_wait(stream);
out:
    if (to)
        dnnl_memory_destroy(to);
    if (from)
        dnnl_memory_destroy(from);
    if (reorder)
        dnnl_primitive_destroy(reorder);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    return st ? dnnl_fail(err, st, "packing a weight") : TD_OK;
}

/* Packs a block of rows of the matrices. rows: block_n times K elements. */
static td_status pack_block(cpu_weight *w, int64_t block, const td_host_matrix *parts,
                            unsigned char *rows, dnnl_stream_t stream, td_error *err) {
    const int64_t k = w->base.n_cols, n_cols = block_cols(w, block), row = block * w->block_n;
    const size_t row_bytes = (size_t)k * td_dtype_size(w->base.compute);
    const td_host_matrix *part = parts;
    int64_t first = 0; /* row of the weight at which `part` begins */
    for (int64_t i = 0; i < n_cols; i++) {
        for (; row + i >= first + part->n_rows; part++)
            first += part->n_rows;
        const size_t at = (size_t)(row + i - first) * (size_t)k * td_dtype_size(part->dtype);
        (void)td_convert((const unsigned char *)part->data + at, part->dtype,
                         rows + (size_t)i * row_bytes, w->base.compute, (size_t)k);
    }
    unsigned char *packed = w->packed + (size_t)block * w->panel_bytes;
    for (int64_t p = 0; p < w->n_parts; p++) {
        const block_kind *b = &w->kinds[width_of(w, block)][depth_of(w, p)];
        td_status rc =
            pack_part(w, b, n_cols, part_size(w, p), p * w->part_k, rows, packed, stream, err);
        if (rc != TD_OK)
            return rc;
        packed += b->packed_bytes;
    }
    return TD_OK;
}

static td_status check_parts(td_device *dev, const td_host_matrix *parts, int32_t n_parts,
                             td_dtype compute, int64_t *n_out, td_error *err) {
    const char *name = dev->info.name;
    if (compute != TD_F32 && !(compute == TD_BF16 && dev->info.has_bf16))
        return td_error_set(err, TD_E_DEVICE,
                            "%s: its matrix products do not offer %s; use model.compute = f32%s",
                            name, td_dtype_name(compute), dev->info.has_bf16 ? " or bf16" : "");
    int64_t n = 0;
    for (int32_t i = 0; i < n_parts; i++) {
        if (parts[i].dtype != TD_F32 && parts[i].dtype != TD_BF16 && parts[i].dtype != TD_F16)
            return td_error_set(err, TD_E_DEVICE, "%s: a weight of type %s cannot be prepared",
                                name, td_dtype_name(parts[i].dtype));
        if (parts[i].n_rows < 1 || parts[i].n_cols < 1 || parts[i].n_cols != parts[0].n_cols ||
            parts[i].n_rows > INT32_MAX - n || parts[i].n_cols > INT32_MAX)
            return td_error_set(err, TD_E_DEVICE,
                                "%s: part %d of a weight is [%" PRId64 ", %" PRId64
                                "], which does not go with the others",
                                name, i, parts[i].n_rows, parts[i].n_cols);
        n += parts[i].n_rows;
    }
    if (n == 0)
        return td_error_set(err, TD_E_DEVICE, "%s: a weight without parts", name);
    *n_out = n;
    return TD_OK;
}

static td_status weight_fill(cpu_weight *w, const td_host_matrix *parts, td_error *err) {
    const char *name = w->dev->base.info.name;
    const int64_t n = w->base.n_rows, k = w->base.n_cols;
    const size_t elem = td_dtype_size(w->base.compute);
    unsigned char *rows = NULL;
    void *stream = NULL, *packed = NULL;
    size_t rows_bytes, all_bytes, scratchpad_bytes = 0;
    td_status rc;

    /* Blocks of equal width, so that no thread ends up with a sliver. */
    const int64_t n_wanted = (n + BLOCK_N_MAX - 1) / BLOCK_N_MAX;
    w->block_n = n;
    if (n_wanted > 1)
        w->block_n =
            ((n + n_wanted - 1) / n_wanted + BLOCK_N_STEP - 1) / BLOCK_N_STEP * BLOCK_N_STEP;
    w->n_blocks = (n + w->block_n - 1) / w->block_n;
    w->n_parts = w->base.compute == TD_F32 ? (k + PART_K - 1) / PART_K : 1;
    w->part_k = k;
    if (w->n_parts > 1)
        w->part_k =
            ((k + w->n_parts - 1) / w->n_parts + PART_K_STEP - 1) / PART_K_STEP * PART_K_STEP;
    w->n_parts = (k + w->part_k - 1) / w->part_k;
    if ((rc = td_cpu_gemm_thread_create(&stream, err)) != TD_OK ||
        (rc = make_kinds(w, &scratchpad_bytes, err)) != TD_OK)
        goto out;

    for (int64_t b = 0; b < w->n_blocks; b += TD_MAX(w->n_blocks - 1, (int64_t)1)) {
        size_t panel = 0; /* of the first and of the last block, which has the other width */
        for (int64_t p = 0; p < w->n_parts; p++)
            panel += w->kinds[width_of(w, b)][depth_of(w, p)].packed_bytes;
        w->panel_bytes = TD_MAX(w->panel_bytes, panel);
    }
    if (!td_mul_size((size_t)w->block_n * elem, (size_t)k, &rows_bytes) ||
        !td_mul_size(w->panel_bytes, (size_t)w->n_blocks, &all_bytes)) {
        rc = td_error_set(err, TD_E_DEVICE_OOM, "weight too large");
        goto out;
    }
    if ((rc = td_cpu_mem_alloc(name, all_bytes, &packed, err)) != TD_OK)
        goto out;
    w->packed = packed;
    w->base.size_bytes = all_bytes;
    void *p = NULL;
    if ((rc = td_cpu_mem_alloc(name, rows_bytes, &p, err)) != TD_OK)
        goto out;
    rows = p;
    for (int64_t b = 0; b < w->n_blocks && rc == TD_OK; b++)
        rc = pack_block(w, b, parts, rows, stream, err);
    w->src_tile_bytes = ((size_t)TILE_ROWS * (size_t)k * elem + 63) / 64 * 64;
    w->dst_tile_bytes = ((size_t)TILE_ROWS * (size_t)w->block_n * sizeof(float) + 63) / 64 * 64;
    w->scratch_bytes = w->src_tile_bytes + w->dst_tile_bytes + scratchpad_bytes;
out:
    td_cpu_mem_free(rows);
    td_cpu_gemm_thread_destroy(stream);
    return rc;
}

td_status td_cpu_weight_prepare(td_device *dev, const td_host_matrix *parts, int32_t n_parts,
                                td_dtype compute, td_weight **out, td_error *err) {
    int64_t n = 0;
    td_status rc = check_parts(dev, parts, n_parts, compute, &n, err);
    if (rc != TD_OK)
        return rc;
    cpu_weight *w = td_calloc(1, sizeof(*w));
    if (!w)
        return td_error_nomem(err, "weight", sizeof(*w));
    w->base = (td_weight){dev->ops, n, parts[0].n_cols, compute, 0};
    w->dev = (td_cpu_device *)dev;
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    rc = weight_fill(w, parts, err);
    omp_set_num_threads(threads);
    if (rc != TD_OK) {
        td_error_prefix(err, "%s: weight [%" PRId64 ", %" PRId64 "]", dev->info.name, n,
                        parts[0].n_cols);
        td_cpu_weight_destroy(&w->base);
        return rc;
    }
    *out = &w->base;
    return TD_OK;
}

void td_cpu_weight_destroy(td_weight *weight) {
    cpu_weight *w = (cpu_weight *)weight;
    if (!w)
        return;
    for (int i = 0; i < N_WIDTHS; i++)
        for (int j = 0; j < N_DEPTHS; j++)
            if (w->kinds[i][j].primitive)
                dnnl_primitive_destroy(w->kinds[i][j].primitive);
    td_cpu_mem_free(w->packed);
    free(w);
}

/* --- execution -------------------------------------------------------------------------------- */

typedef struct gemm_run {
    const td_gemm_args *a;     /* [n] */
    const int64_t *first_item; /* [n + 1] cells before each product */
    int32_t n;
    td_cpu_exec *x;
    atomic_int status; /* dnnl_status_t of a failed cell */
} gemm_run;

static int64_t count_tiles(const td_gemm_args *a) {
    return a->n_rows > 0 ? ((int64_t)a->n_rows + TILE_ROWS - 1) / TILE_ROWS : 0;
}

static dnnl_status_t run_primitive(const block_kind *b, dnnl_stream_t stream, void *src,
                                   void *packed, void *dst, void *scratchpad) {
    dnnl_memory_t m[4] = {0};
    dnnl_status_t st;
    if (!(st = dnnl_memory_create(&m[0], &b->src, engine, src)) &&
        !(st = dnnl_memory_create(&m[1], &b->weights, engine, packed)) &&
        !(st = dnnl_memory_create(&m[2], &b->dst, engine, dst)) &&
        !(st = dnnl_memory_create(&m[3], &b->scratchpad, engine, scratchpad))) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, m[0]},
                                  {DNNL_ARG_WEIGHTS, m[1]},
                                  {DNNL_ARG_DST, m[2]},
                                  {DNNL_ARG_SCRATCHPAD, m[3]}};
        st = dnnl_primitive_execute(b->primitive, stream, 4, args);
    }
    for (int i = 0; i < 4; i++)
        if (m[i])
            dnnl_memory_destroy(m[i]);
    return st;
}

static void gemm_cell(void *ctx, int64_t item, int32_t thread) {
    gemm_run *g = ctx;
    int32_t lo = 0, hi = g->n - 1; /* the product that holds the cell: the last that begins by it */
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo + 1) / 2;
        if (g->first_item[mid] <= item)
            lo = mid;
        else
            hi = mid - 1;
    }
    const td_gemm_args *a = &g->a[lo];
    const cpu_weight *w = (const cpu_weight *)a->weight;
    const int64_t cell = item - g->first_item[lo], n_tiles = count_tiles(a);
    const int64_t block = cell / n_tiles, row = cell % n_tiles * TILE_ROWS;
    const int64_t n = w->base.n_rows, n_rows = TD_MIN((int64_t)TILE_ROWS, a->n_rows - row);
    const int64_t n_cols = block_cols(w, block);
    const size_t elem = td_dtype_size(w->base.compute), row_bytes = (size_t)w->base.n_cols * elem;
    unsigned char *packed = w->packed + (size_t)block * w->panel_bytes;
    unsigned char *scratch = g->x->scratch[thread].data;
    unsigned char *src = (unsigned char *)(uintptr_t)a->in + (size_t)row * row_bytes;
    float *tile = (float *)(scratch + w->src_tile_bytes);
    float *out = a->out + row * n + block * w->block_n;

    if (n_rows < TILE_ROWS) {
        memcpy(scratch, src, (size_t)n_rows * row_bytes);
        memset(scratch + (size_t)n_rows * row_bytes, 0, (size_t)(TILE_ROWS - n_rows) * row_bytes);
        src = scratch;
    }
    const bool direct = w->n_blocks == 1 && n_rows == TILE_ROWS && !a->accumulate;
    float *dst = direct ? out : tile;
    for (int64_t part = 0; part < w->n_parts; part++) {
        const block_kind *b = &w->kinds[width_of(w, block)][depth_of(w, part)];
        dnnl_status_t st =
            run_primitive(b, g->x->gemm_streams[thread], src + (size_t)(part * w->part_k) * elem,
                          packed, dst, scratch + w->src_tile_bytes + w->dst_tile_bytes);
        if (st) {
            atomic_store(&g->status, (int)st);
            return;
        }
        packed += b->packed_bytes;
    }
    g->x->dev->kernels->tile_out(out, n, dst, direct ? n : n_cols, n_rows, n_cols,
                                 a->bias ? a->bias + block * w->block_n : NULL, a->scale,
                                 a->accumulate);
}

td_status td_cpu_gemm_batch(td_cpu_exec *x, const td_gemm_args *a, int32_t n, int64_t *first_item,
                            td_error *err) {
    size_t scratch_bytes = 0;
    first_item[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        const cpu_weight *w = (const cpu_weight *)a[i].weight;
        first_item[i + 1] = first_item[i] + count_tiles(&a[i]) * w->n_blocks;
        scratch_bytes = TD_MAX(scratch_bytes, w->scratch_bytes);
    }
    if (n <= 0 || first_item[n] == 0)
        return TD_OK;
    td_status rc = td_cpu_scratch_need_all(x, scratch_bytes, err);
    if (rc != TD_OK)
        return rc;
    gemm_run g = {.a = a, .first_item = first_item, .n = n, .x = x};
    atomic_init(&g.status, 0);
    td_cpu_pool_run(x->pool, first_item[n], x->n_threads, gemm_cell, &g);
    const int failed = atomic_load(&g.status);
    return failed ? dnnl_fail(err, (dnnl_status_t)failed, "a matrix product") : TD_OK;
}

td_status td_cpu_exec_gemm(td_cpu_exec *x, const td_gemm_args *a, td_error *err) {
    int64_t first_item[2];
    return td_cpu_gemm_batch(x, a, 1, first_item, err);
}
