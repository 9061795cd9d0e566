/* gpu_blas.c - finds and opens cuBLASLt. */
#include "gpu/gpu_blas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "gpu/gpu.h"
#include "base/memory.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static td_gpu_blas functions;
static td_error failure;
static char version[32];

#ifdef TD_PRETEND_CUDA
static void bind_functions(void) {
#define TD_GPU_BLAS_BIND(name) functions.name = &cublasLt##name;
    TD_GPU_BLAS_FUNCTIONS(TD_GPU_BLAS_BIND)
#undef TD_GPU_BLAS_BIND
}
#else
#define TD_STRING_(x) #x
#define TD_STRING(x) TD_STRING_(x)
#define TD_BLAS_SONAME "libcublasLt.so." TD_STRING(CUBLAS_VER_MAJOR)

static void bind_functions(void) {
    /* The loader's own search first: LD_LIBRARY_PATH, the cache. Then where toolkits install. */
    static const char *const places[] = {
        TD_BLAS_SONAME, "/usr/local/cuda/lib64/" TD_BLAS_SONAME,
        "/usr/local/cuda-" TD_STRING(CUBLAS_VER_MAJOR) "/lib64/" TD_BLAS_SONAME};
    void *lib = NULL;
    for (size_t i = 0; !lib && i < TD_ARRAY_LEN(places); i++)
        lib = dlopen(places[i], RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        td_error_set(&failure, TD_E_DEVICE,
                     "%s cannot be loaded (%s); install the CUDA %d libraries (cuBLAS), or put "
                     "their folder into LD_LIBRARY_PATH",
                     TD_BLAS_SONAME, dlerror(), CUBLAS_VER_MAJOR);
        return;
    }
    /* POSIX's own way from an object pointer to a function pointer. */
#define TD_GPU_BLAS_BIND(name)                                                                     \
    *(void **)&functions.name = dlsym(lib, "cublasLt" #name);                                      \
    if (!functions.name) {                                                                         \
        td_error_set(&failure, TD_E_DEVICE, "%s has no function %s: not a library of CUDA %d",     \
                     TD_BLAS_SONAME, "cublasLt" #name, CUBLAS_VER_MAJOR);                          \
        return;                                                                                    \
    }
    TD_GPU_BLAS_FUNCTIONS(TD_GPU_BLAS_BIND)
#undef TD_GPU_BLAS_BIND
}
#endif

static void load(void) {
    bind_functions();
    if (failure.code != TD_OK)
        return;
    const size_t v = functions.GetVersion();
    snprintf(version, sizeof version, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
}

const td_gpu_blas *td_gpu_blas_load(td_error *err) {
    pthread_once(&once, load);
    if (failure.code == TD_OK)
        return &functions;
    if (err)
        *err = failure;
    return NULL;
}

const char *td_gpu_blas_version(void) {
    pthread_once(&once, load);
    return version;
}
