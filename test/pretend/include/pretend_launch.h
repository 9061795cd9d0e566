/* pretend_launch.h - the launch seam of src/gpu/launch.cuh on the fiber engine: TD_LAUNCH puts the
 * kernel on the stream's queue, TD_DYNAMIC_SHARED finds the block's memory. */
#ifndef PRETEND_LAUNCH_H
#define PRETEND_LAUNCH_H

#include <new>
#include <tuple>
#include <utility>

#include "cuda_runtime.h"

/* A kernel with its arguments; run() is one thread of it. */
struct pretend_kernel {
    void (*run)(const void *arguments);
    void (*destroy)(void *arguments);
    void *arguments;
    const char *name;
};
/* Checks the launch as CUDA does and enqueues; takes over the arguments in every case. */
cudaError_t pretend_enqueue(const pretend_kernel &kernel, dim3 grid, dim3 block,
                            size_t shared_bytes, cudaStream_t stream);

template <class... P> struct pretend_call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    static void run(const void *self) {
        const pretend_call *c = static_cast<const pretend_call *>(self);
        std::apply(c->kernel, c->arguments);
    }
    static void destroy(void *self) {
        delete static_cast<pretend_call *>(self);
    }
};

template <class... P, class... A>
static inline cudaError_t pretend_launch(const char *name, void (*kernel)(P...), dim3 grid,
                                         dim3 block, size_t shared_bytes, cudaStream_t stream,
                                         A... arguments) {
    static_assert((sizeof(P) + ... + 0) <= 4096, "CUDA takes 4 KiB of kernel arguments");
    auto *call = new pretend_call<P...>{kernel, std::tuple<P...>(static_cast<P>(arguments)...)};
    const pretend_kernel k = {pretend_call<P...>::run, pretend_call<P...>::destroy, call, name};
    return pretend_enqueue(k, grid, block, shared_bytes, stream);
}

/* The file's name stands in the kernel's: some launchers pick the kernel into a variable. */
#define TD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                  \
    pretend_launch(#kernel " of " __FILE_NAME__, kernel, dim3(grid), dim3(block), shared_bytes,    \
                   stream, __VA_ARGS__)
#define TD_DYNAMIC_SHARED(type, name)                                                              \
    type *name = reinterpret_cast<type *>(pretend_now->dynamic_shared)

#endif
