# What else runs on the CUDA-on-CPU layer beside the suites of the device (pretend.cmake): failures
# at every call, the model's suites, the program end to end.
td_pretend_test(test_gpu_faults SOURCES device/test_gpu_faults.c LIBS td_model td_device_pretend)

# The suites of the model; of the families a slice of each kind of block. Two devices, so that
# stages sit apart.
foreach(suite logits session families)
  if(TDGEN_SANITIZE MATCHES "thread")
    continue()
  endif()
  td_test(test_${suite}_pretend SOURCES model/test_${suite}.c model/reference.c model/harness.c
                                        model/fixture.c
          LIBS td_model td_device_pretend ARGS --jobs 2 LABELS pretend)
  set_target_properties(test_${suite}_pretend PROPERTIES LINKER_LANGUAGE CXX)
  set_tests_properties(test_${suite}_pretend PROPERTIES TIMEOUT 900 SKIP_RETURN_CODE 77
    ENVIRONMENT "TDGEN_TEST_DEVICE=cuda;TDGEN_PRETEND_GPUS=Pretend A100:8.0:16:1*2;TDGEN_TEST_FAMILIES=gemma2,gpt2,llama_bias,mistral_window,mixtral,olmo2,phi3_longrope,qwen3_moe_window,smollm3,stablelm_parallel")
endforeach()

add_test(NAME e2e_gpu_pretend COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/e2e/gpu.sh)
set_tests_properties(e2e_gpu_pretend PROPERTIES LABELS pretend TIMEOUT 1200 SKIP_RETURN_CODE 77
  ENVIRONMENT "TDGEN=$<TARGET_FILE:tdgen_pretend>;TD_SOURCE_DIR=${PROJECT_SOURCE_DIR}")
