# The real program, end to end, on the demo teacher.
if(TARGET tdgen)
  foreach(script identity errors formats scenarios)
    add_test(NAME e2e_${script} COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${script}.sh)
    set_tests_properties(e2e_${script} PROPERTIES
      ENVIRONMENT "TDGEN=$<TARGET_FILE:tdgen>;TD_SOURCE_DIR=${PROJECT_SOURCE_DIR}"
      LABELS e2e TIMEOUT 900)
  endforeach()
endif()
