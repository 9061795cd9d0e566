# What else runs on the CUDA-on-CPU layer beside the suites of the device (pretend.cmake): failures
# at every call, the model's suites, the program end to end.
set(stride 13) # every 13th of some thousand calls
if(NOT td_test_slow)
  set(stride 61)
endif()
td_pretend_test(test_gpu_faults SOURCES device/test_gpu_faults.c LIBS td_model td_device_pretend
                ARGS ${stride})

# Other chips choose other kernels (no bf16 below 8.0, WMMA on 7.0, less shared memory on 7.5 and
# 8.6); without peer access copies go over the host; other seeds run lanes and blocks in other orders.
function(td_pretend_again suite what)
  add_test(NAME test_gpu_${suite}_pretend_${what} COMMAND test_gpu_${suite}_pretend
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(test_gpu_${suite}_pretend_${what} PROPERTIES LABELS pretend
    SKIP_RETURN_CODE 77 ENVIRONMENT "${ARGN}"
    FAIL_REGULAR_EXPRESSION "ERROR: AddressSanitizer;ERROR: LeakSanitizer;runtime error:;WARNING: ThreadSanitizer")
endfunction()
foreach(suite attention gemm moe)
  td_pretend_again(${suite} sm70 "TDGEN_PRETEND_GPUS=Pretend V100:7.0:80:1;TDGEN_PRETEND_SEED=70")
  if(NOT td_test_slow)
    break() # WMMA once; the rest is as on sm_90
  endif()
  td_pretend_again(${suite} sm75 "TDGEN_PRETEND_GPUS=Pretend T4:7.5:40:1;TDGEN_PRETEND_SEED=75")
endforeach()
if(td_test_slow)
  td_pretend_again(attention sm86 "TDGEN_PRETEND_GPUS=Pretend A10:8.6:72:1;TDGEN_PRETEND_SEED=86")
endif()
td_pretend_again(streams no_peer
  "TDGEN_PRETEND_GPUS=Pretend A100:8.0:8:1*3;TDGEN_PRETEND_NO_PEER=1;TDGEN_PRETEND_JITTER=1")
td_pretend_again(streams own_allocations
  "TDGEN_PRETEND_GPUS=Pretend A100:8.0:8:1*2;TDGEN_DEBUG_ALLOC=1")

# What has threads, for ThreadSanitizer too.
set_tests_properties(test_gpu_streams_pretend_no_peer PROPERTIES LABELS "pretend;stress")
add_test(NAME stress_run_pretend COMMAND tdgen_pretend -c conf/demo.ini data.max_samples=24
  data.max_length=64 output.shard_samples=4 run.batch_tokens=128 devices.gpus=0,1,2,3
  devices.gpus_per_model=2 output.dir=${CMAKE_CURRENT_BINARY_DIR}/stress_run_pretend
  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
add_test(NAME stress_run_pretend_clean
  COMMAND ${CMAKE_COMMAND} -E rm -rf ${CMAKE_CURRENT_BINARY_DIR}/stress_run_pretend)
set_tests_properties(stress_run_pretend_clean PROPERTIES FIXTURES_SETUP stress_run_pretend
                                                         LABELS "pretend;stress")
set_tests_properties(stress_run_pretend PROPERTIES FIXTURES_REQUIRED stress_run_pretend
  LABELS "pretend;stress"
  ENVIRONMENT "TDGEN_PRETEND_GPUS=Pretend A100:8.0:8:4*4;TDGEN_PRETEND_JITTER=1;TDGEN_DEBUG_GPU_SPEEDS=clocks"
  FAIL_REGULAR_EXPRESSION
    "ERROR: AddressSanitizer;ERROR: LeakSanitizer;runtime error:;WARNING: ThreadSanitizer")

# The suites of the model; of the families a slice of each kind of block. Two devices, so that
# stages sit apart.
foreach(suite logits families session session_modes)
  if(TDGEN_SANITIZE MATCHES "thread" OR (suite MATCHES "^session" AND NOT td_test_slow))
    continue()
  endif()
  td_test(test_${suite}_pretend SOURCES model/test_${suite}.c model/reference.c model/harness.c
                                        model/fixture.c
          LIBS td_model td_device_pretend ARGS --jobs 2 LABELS pretend)
  set_target_properties(test_${suite}_pretend PROPERTIES LINKER_LANGUAGE CXX)
  set_tests_properties(test_${suite}_pretend PROPERTIES TIMEOUT 900 SKIP_RETURN_CODE 77
    ENVIRONMENT "TDGEN_TEST_DEVICE=cuda;TDGEN_PRETEND_GPUS=Pretend A100:8.0:16:1*2;TDGEN_TEST_FAMILIES=gemma2,gpt2,llama_bias,mistral_window,mixtral,olmo2,phi3_longrope,qwen3_moe_window,smollm3,stablelm_parallel")
endforeach()

if(NOT td_test_slow)
  return()
endif()
add_test(NAME e2e_speeds_pretend COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/e2e/speeds.sh)
set_tests_properties(e2e_speeds_pretend PROPERTIES LABELS pretend TIMEOUT 300
  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
  ENVIRONMENT "TDGEN=$<TARGET_FILE:tdgen_pretend>")
add_test(NAME e2e_gpu_pretend COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/e2e/gpu.sh)
set_tests_properties(e2e_gpu_pretend PROPERTIES LABELS pretend TIMEOUT 1200 SKIP_RETURN_CODE 77
  ENVIRONMENT "TDGEN=$<TARGET_FILE:tdgen_pretend>;TD_SOURCE_DIR=${PROJECT_SOURCE_DIR};TDGEN_DEBUG_GPU_SPEEDS=clocks")

# A slice under Valgrind, which sees what AddressSanitizer does not: device memory that is read, or
# comes back, without having been written. The layer leaves it unfilled for this. Cases in which the
# oracle is oneDNN's product are left out: its code reads past the end of what it packs.
find_program(TDGEN_VALGRIND valgrind)
if(TDGEN_VALGRIND AND NOT TDGEN_SANITIZE)
  set(cases_ops embed norm rope act)
  set(cases_gemm bad_rows plain_weights parts refusals)
  set(cases_attention lengths extreme_scores)
  set(cases_capture random_rows bad_rows tail finished)
  set(cases_moe all_tokens ties refusals)
  set(cases_streams copies arena order arguments empty)
  foreach(suite ops gemm attention capture moe streams)
    add_test(NAME valgrind_gpu_${suite}
      COMMAND ${TDGEN_VALGRIND} -q --error-exitcode=9 $<TARGET_FILE:test_gpu_${suite}_pretend>
              ${cases_${suite}} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(valgrind_gpu_${suite} PROPERTIES LABELS "pretend;valgrind" TIMEOUT 900
      ENVIRONMENT "TDGEN_PRETEND_NO_FILL=1;OMP_NUM_THREADS=1;TDGEN_PRETEND_GPUS=Pretend A100:8.0:8:1*2")
  endforeach()
endif()
