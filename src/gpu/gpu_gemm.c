/* gpu_gemm.c - matrix products through cuBLASLt.
 *
 * out[M, N] = in[M, K] W[N, K]^T, all row-major, is for cuBLAS (column-major) the product
 * D[N, M] = W^T[N, K] in[K, M]: the "TN" layout that every chip has its best kernels for.
 *
 * A row's bits must not depend on M (docs/design.md, invariants). So the algorithm is chosen once per (N, K,
 * dtype, epilogue) from the library's heuristic at one nominal M, never by timing; candidates that
 * split K, or that the library does not accept for every M that can come, are passed over. Within
 * one algorithm a row of the result is one tile row's sum over K in tile order, whatever M is;
 * test_gpu_gemm checks that on the card, for many M and places. Because the algorithm is fixed, M
 * itself needs no rounding up to buckets.
 *
 * f32 products are f32 throughout: TF32 is a compute type of its own in cuBLAS and never asked for.
 */
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu.h"
#include "gpu/gpu_blas.h"
#include "base/convert.h"
#include "base/memory.h"

enum { NOMINAL_ROWS = 4096, MAX_CANDIDATES = 64 };

/* How one kind of product is computed; made once, read by all streams. */
struct td_gpu_plan {
    int64_t n, k;
    td_dtype dtype;
    bool has_bias, accumulate; /* what was asked for */
    bool bias_in_epilogue;     /* else td_gpu_bias follows */
    cublasLtMatmulAlgo_t algo;
    struct td_gpu_plan *next;
};

static cudaDataType_t data_type(td_dtype t) {
    return t == TD_BF16 ? CUDA_R_16BF : t == TD_F16 ? CUDA_R_16F : CUDA_R_32F;
}

/* --- opening ---------------------------------------------------------------------------------- */

td_status td_gpu_check_blas(cublasStatus_t cu, const td_device_info *info, const char *call,
                            td_error *err) {
    if (cu == CUBLAS_STATUS_SUCCESS)
        return TD_OK;
    /* What broke may be the device: then that is the news. The library has a CUDA runtime of its
     * own, so ours has not seen the error; the default stream, on which nothing runs, tells. */
    const cudaError_t device = cudaStreamQuery(NULL);
    if (device == cudaErrorNotReady)
        (void)cudaGetLastError();
    else if (device != cudaSuccess)
        return td_gpu_check(device, info, call, err);
    const td_gpu_blas *blas = td_gpu_blas_load(NULL);
    return td_error_set(err, cu == CUBLAS_STATUS_ALLOC_FAILED ? TD_E_DEVICE_OOM : TD_E_DEVICE,
                        "%s: %s failed: %s", info->name, call,
                        blas ? blas->GetStatusString(cu) : "cuBLASLt is not there");
}

td_status td_gpu_blas_open(td_gpu_device *d, td_error *err) {
    const td_gpu_blas *blas = td_gpu_blas_load(err);
    if (!blas)
        return td_error_prefix(err, "%s", d->base.info.name);
    return td_gpu_check_blas(blas->Create(&d->blas), &d->base.info, "cublasLtCreate", err);
}

void td_gpu_blas_close(td_gpu_device *d) {
    for (td_gpu_plan *p = d->plans, *next; p; p = next) {
        next = p->next;
        free(p);
    }
    d->plans = NULL;
    const td_gpu_blas *blas = td_gpu_blas_load(NULL);
    if (d->blas && blas && td_gpu_use(d, NULL) == TD_OK)
        (void)blas->Destroy(d->blas);
    d->blas = NULL;
}

static cublasStatus_t make_product(const td_gpu_blas *blas, bool with_bias,
                                   cublasLtMatmulDesc_t *out) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue =
        with_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    const int32_t bias_type = CUDA_R_32F;
    cublasStatus_t cu = blas->MatmulDescCreate(out, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!cu)
        cu = blas->MatmulDescSetAttribute(*out, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                          sizeof transposed);
    if (!cu)
        cu = blas->MatmulDescSetAttribute(*out, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                          sizeof epilogue);
    if (!cu && with_bias)
        cu = blas->MatmulDescSetAttribute(*out, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
                                          sizeof bias_type);
    return cu;
}

td_status td_gpu_stream_blas_open(td_stream *s, td_error *err) {
    const td_gpu_blas *blas = td_gpu_blas_load(err);
    const td_device_info *info = &s->dev->base.info;
    if (!blas)
        return td_error_prefix(err, "%s", info->name);
    td_status rc =
        td_gpu_alloc(&s->dev->base, TD_GPU_BLAS_WORKSPACE_BYTES, &s->blas_workspace, err);
    cublasLtMatrixLayout_t *layouts[] = {&s->layout_w, &s->layout_in, &s->layout_out};
    for (size_t i = 0; rc == TD_OK && i < TD_ARRAY_LEN(layouts); i++)
        rc = td_gpu_check_blas(blas->MatrixLayoutCreate(layouts[i], CUDA_R_32F, 1, 1, 1), info,
                               "cublasLtMatrixLayoutCreate", err);
    for (int i = 0; rc == TD_OK && i < 2; i++)
        rc = td_gpu_check_blas(make_product(blas, i == 1, &s->product[i]), info,
                               "cublasLtMatmulDescCreate", err);
    return rc;
}

void td_gpu_stream_blas_close(td_stream *s) {
    const td_gpu_blas *blas = td_gpu_blas_load(NULL);
    cublasLtMatrixLayout_t layouts[] = {s->layout_w, s->layout_in, s->layout_out};
    for (size_t i = 0; blas && i < TD_ARRAY_LEN(layouts); i++)
        if (layouts[i])
            (void)blas->MatrixLayoutDestroy(layouts[i]);
    for (int i = 0; blas && i < 2; i++)
        if (s->product[i])
            (void)blas->MatmulDescDestroy(s->product[i]);
    td_gpu_free(&s->dev->base, s->blas_workspace);
}

/* --- plans ------------------------------------------------------------------------------------ */

static cublasStatus_t set_layout(const td_gpu_blas *blas, cublasLtMatrixLayout_t l, td_dtype t,
                                 int64_t rows, int64_t cols) {
    const uint32_t type = (uint32_t)data_type(t);
    const uint64_t r = (uint64_t)rows, c = (uint64_t)cols;
    cublasStatus_t cu;
    if ((cu = blas->MatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_TYPE, &type, sizeof type)) !=
            CUBLAS_STATUS_SUCCESS ||
        (cu = blas->MatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_ROWS, &r, sizeof r)) !=
            CUBLAS_STATUS_SUCCESS ||
        (cu = blas->MatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_COLS, &c, sizeof c)) !=
            CUBLAS_STATUS_SUCCESS)
        return cu;
    return blas->MatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_LD, &rows, sizeof rows);
}

/* The stream's three layouts for a product of m rows. */
static cublasStatus_t set_layouts(const td_gpu_blas *blas, td_stream *s, const td_gpu_plan *p,
                                  int64_t m) {
    cublasStatus_t cu;
    if ((cu = set_layout(blas, s->layout_w, p->dtype, p->k, p->n)) != CUBLAS_STATUS_SUCCESS ||
        (cu = set_layout(blas, s->layout_in, p->dtype, p->k, m)) != CUBLAS_STATUS_SUCCESS)
        return cu;
    return set_layout(blas, s->layout_out, TD_F32, p->n, m);
}

/* The stream's description of a product, with the bias in the epilogue or without. */
static cublasStatus_t describe(const td_gpu_blas *blas, td_stream *s, const td_gpu_plan *p,
                               const float *bias, cublasLtMatmulDesc_t *out) {
    *out = s->product[p->bias_in_epilogue];
    return p->bias_in_epilogue ? blas->MatmulDescSetAttribute(
                                     *out, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias)
                               : CUBLAS_STATUS_SUCCESS;
}

/* Did the call itself break, and not just say no to a candidate? Then to take another algorithm
 * would mean other bits than elsewhere. */
static bool is_broken(cublasStatus_t cu) {
    return cu == CUBLAS_STATUS_NOT_INITIALIZED || cu == CUBLAS_STATUS_ALLOC_FAILED ||
           cu == CUBLAS_STATUS_EXECUTION_FAILED || cu == CUBLAS_STATUS_MAPPING_ERROR;
}

/* Does the candidate keep the sum over K in one piece, and take every number of rows? */
static cublasStatus_t check_fit(const td_gpu_blas *blas, td_stream *s, const td_gpu_plan *p,
                                cublasLtMatmulDesc_t desc, const cublasLtMatmulAlgo_t *algo,
                                bool *fit) {
    static const int64_t rows[] = {1, 2, 7, 8, 16, 100, 129, 1024, 8192, 65536};
    int32_t split_k = 0;
    uint32_t reduction = 0;
    size_t n_written;
    *fit = false;
    cublasStatus_t cu = blas->MatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                           &split_k, sizeof split_k, &n_written);
    if (!cu)
        cu = blas->MatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                                                &reduction, sizeof reduction, &n_written);
    bool ok = !cu && (split_k == 0 || split_k == 1) && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
    for (size_t i = 0; ok && i < TD_ARRAY_LEN(rows); i++) {
        cublasLtMatmulHeuristicResult_t r;
        memset(&r, 0, sizeof r);
        cu = set_layouts(blas, s, p, rows[i]);
        if (!cu)
            cu = blas->MatmulAlgoCheck(s->dev->blas, desc, s->layout_w, s->layout_in, s->layout_out,
                                       s->layout_out, algo, &r);
        ok = !cu && r.state == CUBLAS_STATUS_SUCCESS &&
             r.workspaceSize <= TD_GPU_BLAS_WORKSPACE_BYTES;
    }
    *fit = ok;
    return is_broken(cu) ? cu : CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t make_preference(const td_gpu_blas *blas, const td_gpu_plan *p,
                                      cublasLtMatmulPreference_t *out) {
    cublasLtMatmulPreference_t pref;
    const uint64_t workspace = TD_GPU_BLAS_WORKSPACE_BYTES;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    /* Rows begin where the row before ends: K and N decide what all of them are aligned to, and a
     * chunk of rows may begin at any of them. */
    const uint64_t k_bytes = (uint64_t)p->k * td_dtype_size(p->dtype), n_bytes = (uint64_t)p->n * 4;
    const uint32_t in_align = (uint32_t)TD_MIN(k_bytes & (~k_bytes + 1), (uint64_t)256);
    const uint32_t out_align = (uint32_t)TD_MIN(n_bytes & (~n_bytes + 1), (uint64_t)256);
    const struct {
        cublasLtMatmulPreferenceAttributes_t key;
        const void *value;
        size_t size_bytes;
    } settings[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &in_align, sizeof in_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &in_align, sizeof in_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out_align, sizeof out_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out_align, sizeof out_align},
    };
    cublasStatus_t cu = blas->MatmulPreferenceCreate(&pref);
    if (cu)
        return cu;
    for (size_t i = 0; !cu && i < TD_ARRAY_LEN(settings); i++)
        cu = blas->MatmulPreferenceSetAttribute(pref, settings[i].key, settings[i].value,
                                                settings[i].size_bytes);
    if (cu)
        (void)blas->MatmulPreferenceDestroy(pref);
    else
        *out = pref;
    return cu;
}

/* The first fit candidate in the heuristic's order. CUBLAS_STATUS_NOT_SUPPORTED: there is none. */
static cublasStatus_t choose_algorithm(const td_gpu_blas *blas, td_stream *s, td_gpu_plan *p,
                                       const float *bias) {
    cublasLtMatmulHeuristicResult_t found[MAX_CANDIDATES];
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulPreference_t pref = NULL;
    int n_found = 0;
    memset(found, 0, sizeof found);
    cublasStatus_t cu = describe(blas, s, p, bias, &desc);
    if (!cu && !(cu = make_preference(blas, p, &pref)) &&
        !(cu = set_layouts(blas, s, p, NOMINAL_ROWS)))
        cu = blas->MatmulAlgoGetHeuristic(s->dev->blas, desc, s->layout_w, s->layout_in,
                                          s->layout_out, s->layout_out, pref, MAX_CANDIDATES, found,
                                          &n_found);
    if (!cu) {
        bool fit = false;
        for (int i = 0; !cu && !fit && i < n_found; i++)
            if (found[i].state == CUBLAS_STATUS_SUCCESS &&
                !(cu = check_fit(blas, s, p, desc, &found[i].algo, &fit)) && fit)
                p->algo = found[i].algo;
        if (!cu && !fit)
            cu = CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (pref)
        (void)blas->MatmulPreferenceDestroy(pref);
    return cu;
}

/* The plan of the product, made at its first use. A scaled bias is added behind the product: the
 * epilogue would not scale it. */
static td_status find_plan(const td_gpu_blas *blas, td_stream *s, const td_gemm_args *a,
                           const td_gpu_plan **out, td_error *err) {
    td_gpu_device *d = s->dev;
    const td_weight *w = a->weight;
    const bool has_bias = a->bias && a->scale == 1.0f;
    td_status rc = TD_OK;
    pthread_mutex_lock(&d->lock);
    td_gpu_plan *p = d->plans;
    while (p && !(p->n == w->n_rows && p->k == w->n_cols && p->dtype == w->compute &&
                  p->has_bias == has_bias && p->accumulate == a->accumulate))
        p = p->next;
    if (!p && !(p = td_calloc(1, sizeof *p)))
        rc = td_error_nomem(err, "plan of a product", sizeof *p);
    if (rc == TD_OK && p->k == 0) {
        *p = (td_gpu_plan){.n = w->n_rows,
                           .k = w->n_cols,
                           .dtype = w->compute,
                           .has_bias = has_bias,
                           .accumulate = a->accumulate,
                           .bias_in_epilogue = has_bias};
        cublasStatus_t cu = choose_algorithm(blas, s, p, a->bias);
        if (cu == CUBLAS_STATUS_NOT_SUPPORTED && has_bias) {
            p->bias_in_epilogue = false;
            cu = choose_algorithm(blas, s, p, NULL);
        }
        if (cu) {
            rc = td_gpu_check_blas(cu, &d->base.info, "cublasLtMatmulAlgoGetHeuristic", err);
            td_error_prefix(err, "a product [rows, %lld] x [%lld, %lld]^T in %s", (long long)p->k,
                            (long long)p->n, (long long)p->k, td_dtype_name(p->dtype));
            free(p);
        } else {
            p->next = d->plans;
            d->plans = p;
        }
    }
    pthread_mutex_unlock(&d->lock);
    if (rc == TD_OK)
        *out = p;
    return rc;
}

/* --- products --------------------------------------------------------------------------------- */

td_status td_gpu_enqueue_gemm(td_stream *s, const td_gemm_args *a, td_error *err) {
    const td_gpu_blas *blas = td_gpu_blas_load(err);
    const td_device_info *info = &s->dev->base.info;
    const td_gpu_weight *w = (const td_gpu_weight *)a->weight;
    const td_gpu_plan *p;
    if (!blas)
        return td_error_prefix(err, "%s", info->name);
    td_status rc = find_plan(blas, s, a, &p, err);
    if (rc != TD_OK)
        return rc;
    cublasLtMatmulDesc_t desc;
    const float alpha = a->scale, beta = a->accumulate ? 1.0f : 0.0f;
    cublasStatus_t cu = describe(blas, s, p, a->bias, &desc);
    if (!cu)
        cu = set_layouts(blas, s, p, a->n_rows);
    if (!cu)
        cu = blas->Matmul(s->dev->blas, desc, &alpha, w->data, s->layout_w, a->in, s->layout_in,
                          &beta, a->out, s->layout_out, a->out, s->layout_out, &p->algo,
                          s->blas_workspace, TD_GPU_BLAS_WORKSPACE_BYTES, s->cuda);
    if (cu) {
        rc = td_gpu_check_blas(cu, info, "cublasLtMatmul", &s->failure);
        if (err)
            *err = s->failure;
        return rc;
    }
    if (a->bias && !p->bias_in_epilogue)
        return td_gpu_end(
            s, td_gpu_bias(a->out, NULL, a->bias, a->n_rows, p->n, a->scale, true, s->cuda),
            "td_gpu_bias", err);
    return TD_OK;
}

/* --- weights ---------------------------------------------------------------------------------- */

td_status td_gpu_weight_create(td_device *dev, int64_t n_rows, int64_t n_cols, td_dtype compute,
                               td_weight **out, void **data, td_error *err) {
    const td_device_info *info = &dev->info;
    size_t n, n_bytes;
    if (n_rows < 1 || n_cols < 1 || n_rows > INT32_MAX || n_cols > INT32_MAX ||
        !(compute == TD_F32 || (compute == TD_BF16 && info->has_bf16) ||
          (compute == TD_F16 && info->has_f16)))
        return td_error_set(err, TD_E_DEVICE, "%s: no weights of [%lld, %lld] in %s", info->name,
                            (long long)n_rows, (long long)n_cols, td_dtype_name(compute));
    if (!td_mul_size((size_t)n_rows, (size_t)n_cols, &n) ||
        !td_mul_size(n, td_dtype_size(compute), &n_bytes))
        return td_error_set(err, TD_E_DEVICE_OOM, "%s: a weight of [%lld, %lld] is too large",
                            info->name, (long long)n_rows, (long long)n_cols);
    td_gpu_weight *w = td_calloc(1, sizeof *w);
    if (!w)
        return td_error_nomem(err, "weight", sizeof *w);
    td_status rc = dev->ops->alloc(dev, n_bytes, &w->data, err);
    if (rc != TD_OK) {
        free(w);
        return rc;
    }
    w->base = (td_weight){.ops = dev->ops,
                          .n_rows = n_rows,
                          .n_cols = n_cols,
                          .compute = compute,
                          .size_bytes = n_bytes};
    w->dev = (td_gpu_device *)dev;
    *out = &w->base;
    *data = w->data;
    return TD_OK;
}

void td_gpu_weight_destroy(td_weight *weight) {
    td_gpu_weight *w = (td_gpu_weight *)weight;
    if (!w)
        return;
    td_gpu_free(&w->dev->base, w->data);
    free(w);
}

/* The simple way, for tests and measurements; checkpoints go through weight_create. */
td_status td_gpu_weight_prepare(td_device *dev, const td_host_matrix *parts, int32_t n_parts,
                                td_dtype compute, td_weight **out, td_error *err) {
    int64_t n_rows = 0;
    size_t most = 0, elem = td_dtype_size(compute);
    td_weight *w = NULL;
    void *data, *host = NULL;
    for (int32_t i = 0; i < n_parts; i++) {
        if (parts[i].n_rows < 1 || parts[i].n_cols < 1 || parts[i].n_cols != parts[0].n_cols ||
            parts[i].dtype > TD_F16)
            return td_error_set(err, TD_E_INTERNAL, "%s: parts of a weight do not go together",
                                dev->info.name);
        n_rows += parts[i].n_rows;
        most = TD_MAX(most, (size_t)parts[i].n_rows * (size_t)parts[i].n_cols);
    }
    if (n_parts < 1)
        return td_error_set(err, TD_E_INTERNAL, "%s: a weight without parts", dev->info.name);
    td_status rc = td_gpu_weight_create(dev, n_rows, parts[0].n_cols, compute, &w, &data, err);
    if (rc != TD_OK)
        return rc;
    if (!(host = td_calloc(most, elem)))
        rc = td_error_nomem(err, "weight", most * elem);
    for (int32_t i = 0; rc == TD_OK && i < n_parts; i++) {
        const size_t n = (size_t)parts[i].n_rows * (size_t)parts[i].n_cols;
        if (!td_convert(parts[i].data, parts[i].dtype, host, compute, n)) {
            rc = td_error_set(err, TD_E_MODEL, "%s: a value of a weight is beyond the range of %s",
                              dev->info.name, td_dtype_name(compute));
            break;
        }
        if ((rc = td_gpu_use((td_gpu_device *)dev, err)) == TD_OK)
            rc = td_gpu_check(cudaMemcpy(data, host, n * elem, cudaMemcpyHostToDevice), &dev->info,
                              "cudaMemcpy", err);
        data = (char *)data + n * elem;
    }
    free(host);
    if (rc != TD_OK)
        td_gpu_weight_destroy(w);
    else
        *out = w;
    return rc;
}
