# The suites of the CUDA device (test/device/gpu_fixture.h): one set of sources, linked with the
# devices of this build and with the CUDA-on-CPU layer. Exit 77 is SKIPPED: no such device here.
add_library(td_gpu_fixture STATIC device/gpu_fixture.c)
target_link_libraries(td_gpu_fixture PUBLIC td_device)
td_test(test_gpu_ops PLAIN SOURCES device/test_gpu_ops.c LIBS td_gpu_fixture td_device LABELS gpu)
td_test(test_gpu_gemm PLAIN SOURCES device/test_gpu_gemm.c LIBS td_gpu_fixture td_device LABELS gpu)
td_test(test_gpu_attention PLAIN SOURCES device/test_gpu_attention.c LIBS td_gpu_fixture td_device LABELS gpu)
td_test(test_gpu_capture PLAIN SOURCES device/test_gpu_capture.c LIBS td_gpu_fixture td_device LABELS gpu)
td_test(test_gpu_moe PLAIN SOURCES device/test_gpu_moe.c LIBS td_gpu_fixture td_device LABELS gpu)
td_test(test_gpu_streams PLAIN SOURCES device/test_gpu_streams.c LIBS td_gpu_fixture td_device LABELS gpu)
