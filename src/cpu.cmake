# The CPU device and the registry. The inner loops are compiled once per instruction-set level; which
# one runs is chosen when a device is opened, so the program runs on any x86-64.
add_library(td_device STATIC device.c device_check.c device_speed.c cpu/cpu_device.c cpu/cpu_memory.c cpu/cpu_pool.c
                             cpu/cpu_stream.c cpu/cpu_gemm.c cpu/cpu_ops.c cpu/cpu_moe.c)
target_link_libraries(td_device PUBLIC td_common PRIVATE DNNL::dnnl OpenMP::OpenMP_C)

foreach(level 1 3 4)
  add_library(td_cpu_kernels_v${level} OBJECT cpu/kernels.c cpu/kernels_norm.c cpu/kernels_act.c
                                              cpu/kernels_moe.c cpu/kernels_attention.c
                                              cpu/kernels_capture.c)
  target_link_libraries(td_cpu_kernels_v${level} PRIVATE td_base)
  target_compile_definitions(td_cpu_kernels_v${level} PRIVATE TD_KERNEL_LEVEL=${level})
  target_sources(td_device PRIVATE $<TARGET_OBJECTS:td_cpu_kernels_v${level}>)
endforeach()
target_compile_options(td_cpu_kernels_v1 PRIVATE -march=x86-64)
target_compile_options(td_cpu_kernels_v3 PRIVATE -march=x86-64-v3)
target_compile_options(td_cpu_kernels_v4 PRIVATE -march=x86-64-v4 -mprefer-vector-width=512)
message(STATUS "tdgen: built for CPU devices (${DNNL_LIBRARY})")

# Rates, for a person: not part of the default build.
add_executable(bench_cpu EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tools/bench/bench_cpu.c)
target_link_libraries(bench_cpu PRIVATE td_device DNNL::dnnl OpenMP::OpenMP_C)
