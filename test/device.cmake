td_test(test_device_gemm SOURCES device/test_device_gemm.c LIBS td_device LABELS device)
td_test(test_device_ops SOURCES device/test_device_ops.c LIBS td_device LABELS device)
td_test(test_device_attention SOURCES device/test_device_attention.c LIBS td_device LABELS device)
td_test(test_device_capture SOURCES device/test_device_capture.c LIBS td_device LABELS device)
# A suite of the devices of both kinds (gpu_fixture.h): here on the CPU, in gpu.cmake on the GPU.
td_test(test_device_modes PLAIN SOURCES device/test_device_modes.c device/gpu_fixture.c
        LIBS td_device LABELS device)
if(TARGET test_device_modes)
  set_tests_properties(test_device_modes PROPERTIES ENVIRONMENT TDGEN_TEST_DEVICE=cpu)
endif()
td_test(test_device_moe SOURCES device/test_device_moe.c LIBS td_device LABELS device)
td_test(test_cpu_kernels SOURCES device/test_cpu_kernels.c LIBS td_device LABELS device)
td_test(test_device_streams SOURCES device/test_device_streams.c LIBS td_device LABELS device)
td_test(stress_streams PLAIN SOURCES stress/stress_streams.c LIBS td_device LABELS stress)

# The same suites with the kernels of older instruction sets.
if(TARGET test_device_ops)
  foreach(isa AVX2 SSE41)
    foreach(suite ops attention capture moe)
      add_test(NAME test_device_${suite}_${isa} COMMAND test_device_${suite}
               WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
      set_tests_properties(test_device_${suite}_${isa} PROPERTIES LABELS device
        ENVIRONMENT ONEDNN_MAX_CPU_ISA=${isa}
        FAIL_REGULAR_EXPRESSION "ERROR: AddressSanitizer;ERROR: LeakSanitizer;runtime error:")
    endforeach()
    add_test(NAME test_device_modes_${isa} COMMAND test_device_modes
             WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(test_device_modes_${isa} PROPERTIES LABELS device
      ENVIRONMENT "TDGEN_TEST_DEVICE=cpu;ONEDNN_MAX_CPU_ISA=${isa}"
      FAIL_REGULAR_EXPRESSION "ERROR: AddressSanitizer;ERROR: LeakSanitizer;runtime error:")
  endforeach()
endif()
