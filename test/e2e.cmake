# The real program, end to end, on the demo teacher.
if(TARGET tdgen)
  # With sanitizers the longest scripts run fewer variants of the same checks.
  set(e2e_brief "")
  if(TDGEN_SANITIZE AND NOT TDGEN_TEST_SLOW)
    set(e2e_brief ";TDGEN_TEST_BRIEF=1")
  endif()
  foreach(script identity errors formats scenarios faults trust simulate)
    add_test(NAME e2e_${script} COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${script}.sh)
    set_tests_properties(e2e_${script} PROPERTIES
      ENVIRONMENT "TDGEN=$<TARGET_FILE:tdgen>;TD_SOURCE_DIR=${PROJECT_SOURCE_DIR}${e2e_brief}"
      LABELS e2e TIMEOUT 900)
  endforeach()
  # The whole program with every thread it has; under ThreadSanitizer this is the race check.
  add_test(NAME stress_run COMMAND tdgen -c conf/demo.ini data.max_samples=24 output.shard_samples=4
    run.batch_tokens=256 devices.gpus=cpu*4 devices.gpus_per_model=2
    output.dir=${CMAKE_CURRENT_BINARY_DIR}/stress_run WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  add_test(NAME stress_run_clean COMMAND ${CMAKE_COMMAND} -E rm -rf ${CMAKE_CURRENT_BINARY_DIR}/stress_run)
  set_tests_properties(stress_run_clean PROPERTIES FIXTURES_SETUP stress_run LABELS stress)
  set_tests_properties(stress_run PROPERTIES FIXTURES_REQUIRED stress_run LABELS stress
    FAIL_REGULAR_EXPRESSION
      "ERROR: AddressSanitizer;ERROR: LeakSanitizer;runtime error:;WARNING: ThreadSanitizer")
  # The same with samples over which devices fail: groups are suspended, probed and reinstated.
  add_test(NAME stress_run_failures COMMAND tdgen -c conf/demo.ini data.max_samples=24
    output.shard_samples=4 run.batch_tokens=256 run.on_bad_sample=skip devices.gpus=cpu*3
    devices.gpus_per_model=1 output.dir=${CMAKE_CURRENT_BINARY_DIR}/stress_run_failures
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  add_test(NAME stress_run_failures_clean
    COMMAND ${CMAKE_COMMAND} -E rm -rf ${CMAKE_CURRENT_BINARY_DIR}/stress_run_failures)
  set_tests_properties(stress_run_failures_clean PROPERTIES FIXTURES_SETUP stress_run_failures
                                                            LABELS stress)
  set_tests_properties(stress_run_failures PROPERTIES FIXTURES_REQUIRED stress_run_failures
    LABELS stress ENVIRONMENT "TDGEN_DEBUG_FAIL_TOKEN=939 fail"
    PASS_REGULAR_EXPRESSION "Skipped samples: 2 in this run"
    FAIL_REGULAR_EXPRESSION
      "ERROR: AddressSanitizer;ERROR: LeakSanitizer;runtime error:;WARNING: ThreadSanitizer")
endif()
