/* cublaslt.cpp - matrix products behind cuBLASLt's interface, on the stream's host thread.
 *
 * op(A) is packed to f32 panels of 16 rows, so that the inner loop is 16 sums side by side over
 * ascending k: every element is one such sum, whatever the shape. The split-K algorithm (number 2)
 * cuts k into as many parts as its configuration says, at places that depend on the number of
 * columns; a caller that must not use it notices by its bits.
 *
 * Refused as on hardware: bf16 before sm_80, unsupported types and epilogues, workspaces that are
 * too small.
 */
#include "engine.h"

#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#include "cublasLt.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"

struct cublasLtContext {
    int alive;
};

namespace {

enum { PANEL = 16, COLUMNS = 4, SPLIT_WORKSPACE_BYTES = 1 << 20 };

/* What the opaque structs hold. */
struct layout {
    int32_t type, order;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch_count;
    int64_t batch_stride;
};
struct desc {
    int32_t compute, scale, pointer_mode, trans_a, trans_b, epilogue, bias_type;
    const void *bias;
};
struct preference {
    uint64_t max_workspace_bytes;
    uint32_t reductions;
    uint32_t alignment[4]; /* of A, B, C, D */
};
struct algorithm {
    int32_t id; /* 1 plain, 2 split-K, 3 plain with another tile */
    uint32_t tile, splits, reduction, swizzling, custom, stages;
};
static_assert(sizeof(layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "");
static_assert(sizeof(desc) <= sizeof(cublasLtMatmulDescOpaque_t), "");
static_assert(sizeof(preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "");
static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t), "");

template <class T, class O> T &in(O *opaque) {
    return *reinterpret_cast<T *>(opaque);
}
template <class T, class O> const T &in(const O *opaque) {
    return *reinterpret_cast<const T *>(opaque);
}

cublasStatus_t enter(const char *name, cublasStatus_t planned) {
    if (pretend_shall_fail(name))
        return planned;
    return pretend_sticky() == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
#define ENTER(name, planned)                                                                       \
    do {                                                                                           \
        const cublasStatus_t entered_ = enter(name, planned);                                      \
        if (entered_ != CUBLAS_STATUS_SUCCESS)                                                     \
            return entered_;                                                                       \
    } while (0)

size_t size_of(int type) {
    return type == CUDA_R_32F ? 4 : type == CUDA_R_16F || type == CUDA_R_16BF ? 2 : 0;
}
float load(const void *p, int type, size_t i) {
    switch (type) {
    case CUDA_R_32F:
        return static_cast<const float *>(p)[i];
    case CUDA_R_16F:
        return pretend_half_bits_to_float(static_cast<const uint16_t *>(p)[i]);
    default:
        return pretend_bf16_bits_to_float(static_cast<const uint16_t *>(p)[i]);
    }
}
void store(void *p, int type, size_t i, float x) {
    switch (type) {
    case CUDA_R_32F:
        static_cast<float *>(p)[i] = x;
        break;
    case CUDA_R_16F:
        static_cast<uint16_t *>(p)[i] = pretend_float_to_half_bits(x);
        break;
    default:
        static_cast<uint16_t *>(p)[i] = pretend_float_to_bf16_bits(x);
    }
}
float to_tf32(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7f800000u) != 0x7f800000u)
        u = (u + 0x0fffu + (u >> 13 & 1)) & 0xffffe000u;
    memcpy(&x, &u, 4);
    return x;
}

struct shape {
    size_t m, n, k;
};
/* The product's shape, or false where the layouts do not fit each other. */
bool get_shape(const desc &op, const layout &a, const layout &b, const layout &c, const layout &d,
               shape *out) {
    const bool ta = op.trans_a != CUBLAS_OP_N, tb = op.trans_b != CUBLAS_OP_N;
    out->m = ta ? a.cols : a.rows;
    out->k = ta ? a.rows : a.cols;
    out->n = tb ? b.rows : b.cols;
    const size_t k2 = tb ? b.cols : b.rows;
    for (const layout *l : {&a, &b, &c, &d})
        if (l->ld < (int64_t)(l->order == CUBLASLT_ORDER_COL ? l->rows : l->cols))
            return false;
    return out->k == k2 && d.rows == out->m && d.cols == out->n && c.rows == out->m &&
           c.cols == out->n && a.batch_count == d.batch_count && b.batch_count == d.batch_count;
}
bool is_supported(const desc &op, const layout &a, const layout &b, const layout &c,
                  const layout &d) {
    if (a.type != b.type || c.type != d.type || !size_of(a.type) || !size_of(d.type))
        return false;
    if (a.type == CUDA_R_16BF && pretend_device_capability(pretend_current_device()) < 80)
        return false;
    if (d.type != CUDA_R_32F && d.type != a.type)
        return false;
    if (op.scale != CUDA_R_32F || op.pointer_mode != CUBLASLT_POINTER_MODE_HOST)
        return false;
    switch (op.compute) {
    case CUBLAS_COMPUTE_32F:
    case CUBLAS_COMPUTE_32F_PEDANTIC:
    case CUBLAS_COMPUTE_32F_FAST_TF32:
        break;
    default:
        return false;
    }
    if (op.epilogue != CUBLASLT_EPILOGUE_DEFAULT && op.epilogue != CUBLASLT_EPILOGUE_BIAS &&
        op.epilogue != CUBLASLT_EPILOGUE_RELU && op.epilogue != CUBLASLT_EPILOGUE_RELU_BIAS)
        return false;
    /* cuBLASLt takes a bias of D's type, or of A's with 16-bit A and f32 D. */
    if ((op.epilogue & CUBLASLT_EPILOGUE_BIAS) && op.bias_type != d.type && op.bias_type != a.type)
        return false;
    return true;
}

/* out[j][i] += the sum over k in [k0, k1) of panel[k][i] * b[j][k], for COLUMNS columns j of k_all
 * elements each: always as many, so that an element is computed by the same instructions wherever
 * its column stands. */
inline __attribute__((always_inline)) void inner(const float *panel, const float *b, size_t k_all,
                                                 size_t k0, size_t k1, float *out) {
    float acc[COLUMNS][PANEL] = {};
    for (size_t k = k0; k < k1; k++)
        for (size_t j = 0; j < COLUMNS; j++) {
            const float x = b[j * k_all + k];
            for (size_t i = 0; i < PANEL; i++)
                acc[j][i] += panel[k * PANEL + i] * x;
        }
    for (size_t j = 0; j < COLUMNS; j++)
        for (size_t i = 0; i < PANEL; i++)
            out[j * PANEL + i] += acc[j][i];
}
typedef void (*inner_function)(const float *, const float *, size_t, size_t, size_t, float *);
PRETEND_HOT void inner_plain(const float *panel, const float *b, size_t k_all, size_t k0, size_t k1,
                             float *out) {
    inner(panel, b, k_all, k0, k1, out);
}
__attribute__((target("avx2,fma"))) void
inner_avx2(const float *panel, const float *b, size_t k_all, size_t k0, size_t k1, float *out) {
    inner(panel, b, k_all, k0, k1, out);
}
inner_function choose_inner() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? inner_avx2
                                                                           : inner_plain;
}

struct product {
    desc op;
    layout la, lb, lc, ld;
    shape s;
    algorithm algo;
    float alpha, beta;
    const char *a, *b, *c;
    char *d;
};

void multiply(const product &p) {
    static const inner_function inner_fast = choose_inner();
    const size_t m = p.s.m, n = p.s.n, k = p.s.k;
    const bool tf32 = p.op.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    /* Element (row, col) of a stored matrix is at row * rs + col * cs. */
    const auto strides = [](const layout &l, bool transposed, size_t *rs, size_t *cs) {
        *rs = l.order == CUBLASLT_ORDER_COL ? 1 : (size_t)l.ld;
        *cs = l.order == CUBLASLT_ORDER_COL ? (size_t)l.ld : 1;
        if (transposed)
            std::swap(*rs, *cs);
    };
    size_t ars, acs, brs, bcs, crs, ccs, drs, dcs;
    strides(p.la, p.op.trans_a != CUBLAS_OP_N, &ars, &acs);
    strides(p.lb, p.op.trans_b != CUBLAS_OP_N, &brs, &bcs);
    strides(p.lc, false, &crs, &ccs);
    strides(p.ld, false, &drs, &dcs);
    std::vector<float> bs((n + COLUMNS - 1) / COLUMNS * COLUMNS * k), panel(k * PANEL);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < k; i++) {
            const float x = load(p.b, p.lb.type, i * brs + j * bcs);
            bs[j * k + i] = tf32 ? to_tf32(x) : x;
        }
    const size_t splits = std::max<size_t>(1, std::min<size_t>(p.algo.splits, k));
    /* Where the parts of split-K meet moves with n. */
    std::vector<size_t> cuts(1, 0);
    for (size_t i = 1; i < splits; i++)
        cuts.push_back(std::min(k, std::max(cuts.back(), i * k / splits + n % 3)));
    cuts.push_back(k);
    for (size_t i0 = 0; i0 < m; i0 += PANEL) {
        const size_t rows = std::min<size_t>(PANEL, m - i0);
        for (size_t i = 0; i < PANEL; i++)
            for (size_t q = 0; q < k; q++) {
                const float x = i < rows ? load(p.a, p.la.type, (i0 + i) * ars + q * acs) : 0.0f;
                panel[q * PANEL + i] = tf32 ? to_tf32(x) : x;
            }
        for (size_t j0 = 0; j0 < n; j0 += COLUMNS) {
            const int cols = (int)std::min<size_t>(COLUMNS, n - j0);
            float out[COLUMNS * PANEL] = {};
            for (size_t part = 0; part + 1 < cuts.size(); part++)
                inner_fast(panel.data(), &bs[j0 * k], k, cuts[part], cuts[part + 1], out);
            for (int j = 0; j < cols; j++)
                for (size_t i = 0; i < rows; i++) {
                    const size_t row = i0 + i, col = j0 + (size_t)j;
                    float x = p.alpha * out[(size_t)j * PANEL + i];
                    if (p.beta != 0.0f)
                        x += p.beta * load(p.c, p.lc.type, row * crs + col * ccs);
                    if (p.op.epilogue & CUBLASLT_EPILOGUE_BIAS)
                        x += load(p.op.bias, p.op.bias_type, row);
                    if (p.op.epilogue & CUBLASLT_EPILOGUE_RELU)
                        x = x > 0.0f ? x : 0.0f;
                    store(p.d, p.ld.type, row * drs + col * dcs, x);
                }
        }
    }
}

algorithm make_algorithm(int id) {
    algorithm a = {id, id == 3 ? 20u : 18u, 1, CUBLASLT_REDUCTION_SCHEME_NONE, 0, 0, 4};
    if (id == 2) {
        a.splits = 4;
        a.reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    }
    return a;
}
size_t workspace_of(const algorithm &a) {
    return a.splits > 1 ? SPLIT_WORKSPACE_BYTES : 0;
}

} // namespace

extern "C" {

const char *cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
        return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
        return "CUBLAS_STATUS_LICENSE_ERROR";
    }
    return "CUBLAS_STATUS_UNKNOWN";
}
const char *cublasLtGetStatusString(cublasStatus_t status) {
    return cublasLtGetStatusName(status);
}
size_t cublasLtGetVersion(void) {
    return CUBLAS_VERSION;
}
size_t cublasLtGetCudartVersion(void) {
    return CUDART_VERSION;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    ENTER("cublasLtCreate", CUBLAS_STATUS_ALLOC_FAILED);
    *handle = new cublasLtContext{1};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    const cublasStatus_t rc = enter("cublasLtDestroy", CUBLAS_STATUS_INTERNAL_ERROR);
    delete handle;
    return rc;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    ENTER("cublasLtMatrixLayoutCreate", CUBLAS_STATUS_ALLOC_FAILED);
    *out = new cublasLtMatrixLayoutOpaque_t();
    in<layout>(*out) = layout{type, CUBLASLT_ORDER_COL, rows, cols, ld, 1, 0};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    delete l;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t opaque,
                                                cublasLtMatrixLayoutAttribute_t attr,
                                                const void *value, size_t size) {
    ENTER("cublasLtMatrixLayoutSetAttribute", CUBLAS_STATUS_INTERNAL_ERROR);
    layout &l = in<layout>(opaque);
    void *to;
    size_t need;
    switch (attr) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        to = &l.type, need = sizeof l.type;
        break;
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        to = &l.order, need = sizeof l.order;
        break;
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        to = &l.rows, need = sizeof l.rows;
        break;
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        to = &l.cols, need = sizeof l.cols;
        break;
    case CUBLASLT_MATRIX_LAYOUT_LD:
        to = &l.ld, need = sizeof l.ld;
        break;
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        to = &l.batch_count, need = sizeof l.batch_count;
        break;
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        to = &l.batch_stride, need = sizeof l.batch_stride;
        break;
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (size != need)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    ENTER("cublasLtMatmulDescCreate", CUBLAS_STATUS_ALLOC_FAILED);
    *out = new cublasLtMatmulDescOpaque_t();
    desc &d = in<desc>(*out);
    d.compute = compute;
    d.scale = scale;
    d.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    d.bias_type = -1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    delete d;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t opaque,
                                              cublasLtMatmulDescAttributes_t attr,
                                              const void *value, size_t size) {
    ENTER("cublasLtMatmulDescSetAttribute", CUBLAS_STATUS_INTERNAL_ERROR);
    desc &d = in<desc>(opaque);
    void *to;
    size_t need = 4;
    switch (attr) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
        to = &d.compute;
        break;
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
        to = &d.scale;
        break;
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        to = &d.pointer_mode;
        break;
    case CUBLASLT_MATMUL_DESC_TRANSA:
        to = &d.trans_a;
        break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        to = &d.trans_b;
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        to = &d.epilogue;
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        to = &d.bias_type;
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        to = &d.bias;
        need = sizeof d.bias;
        break;
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (size != need)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) {
    ENTER("cublasLtMatmulPreferenceCreate", CUBLAS_STATUS_ALLOC_FAILED);
    *out = new cublasLtMatmulPreferenceOpaque_t();
    in<preference>(*out) = preference{0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t opaque,
                                                    cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *value, size_t size) {
    ENTER("cublasLtMatmulPreferenceSetAttribute", CUBLAS_STATUS_INTERNAL_ERROR);
    preference &p = in<preference>(opaque);
    void *to;
    size_t need = 4;
    float waves;
    uint64_t implementations;
    uint32_t search;
    switch (attr) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        to = &p.max_workspace_bytes;
        need = 8;
        break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        to = &p.reductions;
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        to = &p.alignment[attr - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES];
        break;
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
        to = &search;
        break;
    case CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT:
        to = &waves;
        break;
    case CUBLASLT_MATMUL_PREF_IMPL_MASK:
        to = &implementations;
        need = 8;
        break;
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (size != need)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t op,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t wish, int n_wanted,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *n_found) {
    ENTER("cublasLtMatmulAlgoGetHeuristic", CUBLAS_STATUS_INTERNAL_ERROR);
    shape s;
    *n_found = 0;
    if (!handle || n_wanted < 1 ||
        !get_shape(in<desc>(op), in<layout>(a), in<layout>(b), in<layout>(c), in<layout>(d), &s))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!is_supported(in<desc>(op), in<layout>(a), in<layout>(b), in<layout>(c), in<layout>(d)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    const preference &p = in<preference>(wish);
    for (int id : {2, 1, 3}) {
        const algorithm algo = make_algorithm(id);
        if ((algo.reduction & ~p.reductions) || workspace_of(algo) > p.max_workspace_bytes ||
            (algo.splits > 1 && s.k < 64) || *n_found == n_wanted)
            continue;
        cublasLtMatmulHeuristicResult_t &r = results[(*n_found)++];
        memset(&r, 0, sizeof r);
        in<algorithm>(&r.algo) = algo;
        r.workspaceSize = workspace_of(algo);
        r.state = CUBLAS_STATUS_SUCCESS;
        r.wavesCount = 1.0f;
    }
    return *n_found ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasLtMatmulAlgoGetIds(cublasLtHandle_t, cublasComputeType_t, cudaDataType_t,
                                        cudaDataType_t, cudaDataType_t, cudaDataType_t,
                                        cudaDataType_t, int n_wanted, int ids[], int *n_found) {
    ENTER("cublasLtMatmulAlgoGetIds", CUBLAS_STATUS_INTERNAL_ERROR);
    for (*n_found = 0; *n_found < std::min(n_wanted, 3); ++*n_found)
        ids[*n_found] = *n_found + 1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t, cublasComputeType_t, cudaDataType_t,
                                      cudaDataType_t, cudaDataType_t, cudaDataType_t,
                                      cudaDataType_t, int id, cublasLtMatmulAlgo_t *algo) {
    ENTER("cublasLtMatmulAlgoInit", CUBLAS_STATUS_INTERNAL_ERROR);
    if (id < 1 || id > 3)
        return CUBLAS_STATUS_INVALID_VALUE;
    memset(algo, 0, sizeof *algo);
    in<algorithm>(algo) = make_algorithm(id);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t op,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result) {
    ENTER("cublasLtMatmulAlgoCheck", CUBLAS_STATUS_INTERNAL_ERROR);
    shape s;
    if (!handle ||
        !get_shape(in<desc>(op), in<layout>(a), in<layout>(b), in<layout>(c), in<layout>(d), &s))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!is_supported(in<desc>(op), in<layout>(a), in<layout>(b), in<layout>(c), in<layout>(d)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(result, 0, sizeof *result);
    result->algo = *algo;
    result->workspaceSize = workspace_of(in<algorithm>(algo));
    result->state = CUBLAS_STATUS_SUCCESS;
    result->wavesCount = 1.0f;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t config_field(algorithm *a, cublasLtMatmulAlgoConfigAttributes_t attr,
                                   void **field) {
    switch (attr) {
    case CUBLASLT_ALGO_CONFIG_ID:
        *field = &a->id;
        break;
    case CUBLASLT_ALGO_CONFIG_TILE_ID:
        *field = &a->tile;
        break;
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM:
        *field = &a->splits;
        break;
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME:
        *field = &a->reduction;
        break;
    case CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING:
        *field = &a->swizzling;
        break;
    case CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION:
        *field = &a->custom;
        break;
    case CUBLASLT_ALGO_CONFIG_STAGES_ID:
        *field = &a->stages;
        break;
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attr,
                                                    void *value, size_t size, size_t *written) {
    ENTER("cublasLtMatmulAlgoConfigGetAttribute", CUBLAS_STATUS_INTERNAL_ERROR);
    cublasLtMatmulAlgo_t copy = *algo;
    void *field;
    if (written)
        *written = 4;
    if (!size) /* how large is it? */
        return written ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    if (size != 4 || config_field(&in<algorithm>(&copy), attr, &field) != CUBLAS_STATUS_SUCCESS)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, field, 4);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attr,
                                                    const void *value, size_t size) {
    ENTER("cublasLtMatmulAlgoConfigSetAttribute", CUBLAS_STATUS_INTERNAL_ERROR);
    void *field;
    if (size != 4 || attr == CUBLASLT_ALGO_CONFIG_ID ||
        config_field(&in<algorithm>(algo), attr, &field) != CUBLAS_STATUS_SUCCESS)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, 4);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t a, const void *B,
                              cublasLtMatrixLayout_t b, const void *beta, const void *C,
                              cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    ENTER("cublasLtMatmul", CUBLAS_STATUS_EXECUTION_FAILED);
    product p;
    p.op = in<desc>(op);
    p.la = in<layout>(a);
    p.lb = in<layout>(b);
    p.lc = in<layout>(c);
    p.ld = in<layout>(d);
    if (!handle || !A || !B || !D || !alpha || !beta ||
        !get_shape(p.op, p.la, p.lb, p.lc, p.ld, &p.s))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!is_supported(p.op, p.la, p.lb, p.lc, p.ld))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if ((p.op.epilogue & CUBLASLT_EPILOGUE_BIAS) && !p.op.bias)
        return CUBLAS_STATUS_INVALID_VALUE;
    p.algo = algo ? in<algorithm>(algo) : make_algorithm(1);
    if (workspace_of(p.algo) > workspace_bytes || (workspace_of(p.algo) && !workspace))
        return CUBLAS_STATUS_INVALID_VALUE;
    p.alpha = *static_cast<const float *>(alpha);
    p.beta = *static_cast<const float *>(beta);
    if (p.beta != 0.0f && !C)
        return CUBLAS_STATUS_INVALID_VALUE;
    p.a = static_cast<const char *>(A);
    p.b = static_cast<const char *>(B);
    p.c = static_cast<const char *>(C);
    p.d = static_cast<char *>(D);
    if (!p.s.m || !p.s.n)
        return CUBLAS_STATUS_SUCCESS;
    const cudaError_t rc = pretend_enqueue_work("cublasLtMatmul", stream, [p]() mutable {
        const int32_t batches = p.ld.batch_count;
        for (int32_t i = 0; i < batches; i++) {
            multiply(p);
            p.a += p.la.batch_stride * (int64_t)size_of(p.la.type);
            p.b += p.lb.batch_stride * (int64_t)size_of(p.lb.type);
            if (p.c)
                p.c += p.lc.batch_stride * (int64_t)size_of(p.lc.type);
            p.d += p.ld.batch_stride * (int64_t)size_of(p.ld.type);
        }
    });
    return rc == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

} // extern "C"
