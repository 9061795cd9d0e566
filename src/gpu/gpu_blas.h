/* gpu_blas.h - cuBLASLt, opened at run time: the program starts, plans and computes on CPUs on
 * machines that have no CUDA libraries. */
#ifndef TDGEN_GPU_GPU_BLAS_H
#define TDGEN_GPU_GPU_BLAS_H

#include <cublasLt.h>
#include "base/status.h"

/* X(name without its prefix): the functions that are used. */
#define TD_GPU_BLAS_FUNCTIONS(X)                                                                   \
    X(Create)                                                                                      \
    X(Destroy)                                                                                     \
    X(GetVersion)                                                                                  \
    X(GetStatusString)                                                                             \
    X(MatmulDescCreate)                                                                            \
    X(MatmulDescDestroy)                                                                           \
    X(MatmulDescSetAttribute)                                                                      \
    X(MatrixLayoutCreate)                                                                          \
    X(MatrixLayoutDestroy)                                                                         \
    X(MatrixLayoutSetAttribute)                                                                    \
    X(MatmulPreferenceCreate)                                                                      \
    X(MatmulPreferenceDestroy)                                                                     \
    X(MatmulPreferenceSetAttribute)                                                                \
    X(MatmulAlgoGetHeuristic)                                                                      \
    X(MatmulAlgoCheck)                                                                             \
    X(MatmulAlgoConfigGetAttribute)                                                                \
    X(Matmul)

typedef struct td_gpu_blas {
#define TD_GPU_BLAS_MEMBER(name) __typeof__(&cublasLt##name) name;
    TD_GPU_BLAS_FUNCTIONS(TD_GPU_BLAS_MEMBER)
#undef TD_GPU_BLAS_MEMBER
} td_gpu_blas;

/* The functions, loaded at the first call (any thread); NULL with *err set when the library of this
 * build's major version is not to be found. */
const td_gpu_blas *td_gpu_blas_load(td_error *err);

#endif
