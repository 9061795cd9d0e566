# The attention kernels through their launchers: on pretend machines, each with the kernels and
# shapes of its chip, and, label gpu, on the first GPU of this one.
if(td_test_slow)
  td_test(test_attention_kernels_pretend PLAIN SOURCES device/test_gpu_attention_kernels.cpp
          LIBS td_device_pretend LABELS device)
  set_target_properties(test_attention_kernels_pretend PROPERTIES LINKER_LANGUAGE CXX)
  foreach(machine T4:7.5:40 V100:7.0:80)
    string(REGEX REPLACE ":.*" "" chip ${machine})
    add_test(NAME test_attention_kernels_${chip} COMMAND test_attention_kernels_pretend
             WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(test_attention_kernels_${chip} PROPERTIES LABELS device
      ENVIRONMENT TDGEN_PRETEND_GPUS=${machine}:1
      FAIL_REGULAR_EXPRESSION "ERROR: AddressSanitizer;ERROR: LeakSanitizer;runtime error:")
  endforeach()
endif()

if(TDGEN_WITH_CUDA)
  td_test(test_gpu_attention_kernels PLAIN SOURCES device/test_gpu_attention_kernels.cpp
          LIBS td_gpu LABELS gpu)
  set_tests_properties(test_gpu_attention_kernels PROPERTIES SKIP_RETURN_CODE 77)
  target_include_directories(test_gpu_attention_kernels PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
endif()
