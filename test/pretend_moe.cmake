# The experts' kernels by themselves: over the CUDA-on-CPU layer, and on GPUs.
if(td_test_slow)
  td_test(test_gpu_moe_host_pretend PLAIN SOURCES device/test_gpu_moe_host.cpp
          LIBS td_device_pretend LABELS pretend)
endif()
if(TDGEN_WITH_CUDA)
  td_test(test_gpu_moe_host PLAIN SOURCES device/test_gpu_moe_host.cpp LIBS td_gpu LABELS gpu)
  target_compile_features(test_gpu_moe_host PRIVATE cxx_std_17)
  set_tests_properties(test_gpu_moe_host PROPERTIES SKIP_RETURN_CODE 77)
endif()
