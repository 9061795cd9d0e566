# The suites of the CUDA device (test/device/gpu_fixture.h) on this build's devices; pretend.cmake
# links the same sources with the CUDA-on-CPU layer. Exit 77 is SKIPPED: no such device here.
if(NOT TDGEN_WITH_CUDA)
  return()
endif()
add_library(td_gpu_fixture STATIC device/gpu_fixture.c)
target_link_libraries(td_gpu_fixture PUBLIC td_device)

# One at a time: they measure nothing, but memory of one card is shared.
function(td_gpu_properties)
  set_tests_properties(${ARGN} PROPERTIES LABELS gpu SKIP_RETURN_CODE 77 RESOURCE_LOCK gpu
                                          TIMEOUT 1800)
endfunction()
foreach(suite ops gemm attention capture moe streams)
  td_test(test_gpu_${suite} PLAIN SOURCES device/test_gpu_${suite}.c LIBS td_gpu_fixture td_device)
  td_gpu_properties(test_gpu_${suite})
endforeach()
# The suite of capture's modes, which CPU devices run too (device.cmake).
if(TARGET test_device_modes)
  add_test(NAME test_device_modes_gpu COMMAND test_device_modes WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  td_gpu_properties(test_device_modes_gpu)
endif()
foreach(suite logits session session_modes families)
  if(NOT TDGEN_SANITIZE MATCHES "thread") # Criterion
    add_test(NAME test_${suite}_gpu COMMAND test_${suite} --jobs 1
             WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    td_gpu_properties(test_${suite}_gpu)
    set_tests_properties(test_${suite}_gpu PROPERTIES ENVIRONMENT TDGEN_TEST_DEVICE=cuda)
  endif()
endforeach()
add_test(NAME e2e_gpu COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/e2e/gpu.sh)
td_gpu_properties(e2e_gpu)
set_tests_properties(e2e_gpu PROPERTIES
  ENVIRONMENT "TDGEN=$<TARGET_FILE:tdgen>;TD_SOURCE_DIR=${PROJECT_SOURCE_DIR}")
