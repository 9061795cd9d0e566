/* check.h - counting checks of the layer's self-tests (plain programs). */
#ifndef PRETEND_CHECK_H
#define PRETEND_CHECK_H

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int n_failures, n_checks;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        n_checks++;                                                                                \
        if (!(condition) && n_failures++ < 40) {                                                   \
            printf("FAILED %s:%d %s: ", __FILE__, __LINE__, #condition);                           \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)
#define MUST(call)                                                                                 \
    do {                                                                                           \
        const cudaError_t must_ = (call);                                                          \
        if (must_ != cudaSuccess) {                                                                \
            printf("%s:%d: %s gave %s\n", __FILE__, __LINE__, #call, cudaGetErrorName(must_));     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Array of n elements of device memory that is read and written through copies. */
template <class T> struct device_array {
    T *data = nullptr;
    size_t n;
    explicit device_array(size_t count) : n(count) {
        MUST(cudaMalloc(&data, n * sizeof(T)));
    }
    ~device_array() {
        (void)cudaFree(data);
    }
    device_array(const device_array &) = delete;
    device_array &operator=(const device_array &) = delete;
    void put(const T *from) {
        MUST(cudaMemcpy(data, from, n * sizeof(T), cudaMemcpyHostToDevice));
    }
    void get(T *to) const {
        MUST(cudaMemcpy(to, data, n * sizeof(T), cudaMemcpyDeviceToHost));
    }
};

struct test_stream {
    cudaStream_t s;
    test_stream() {
        MUST(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    }
    ~test_stream() {
        (void)cudaStreamDestroy(s);
    }
    test_stream(const test_stream &) = delete;
    test_stream &operator=(const test_stream &) = delete;
};

/* The suites. */
void test_warp_collectives();
void test_tensor_cores();
void test_numbers();
void test_planted_barriers();
void test_planted_memory();
void test_streams();
void test_runtime_errors();
void test_products();
/* `program planted WHICH` is run as a child, which a sanitizer shall stop. */
int run_planted(const char *which);
int run_race();
void test_under_sanitizers(const char *program);

#endif
