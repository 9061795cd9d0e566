# The capture kernel by itself over the CUDA-on-CPU layer.
td_test(test_gpu_capture_host_pretend PLAIN SOURCES device/test_gpu_capture_host.cpp
        LIBS td_device_pretend LABELS pretend)
# The other modes: the suite of both kinds of device, on two kinds of chip and other orders of lanes.
td_pretend_test(test_device_modes_pretend SOURCES device/test_device_modes.c
                LIBS td_gpu_fixture_pretend td_device_pretend GPUS "Pretend H100:9.0:132:1")
if(TARGET test_device_modes_pretend)
  add_test(NAME test_device_modes_pretend_sm75 COMMAND test_device_modes_pretend
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(test_device_modes_pretend_sm75 PROPERTIES LABELS pretend SKIP_RETURN_CODE 77
    ENVIRONMENT "TDGEN_PRETEND_GPUS=Pretend T4:7.5:40:1;TDGEN_PRETEND_SEED=75"
    FAIL_REGULAR_EXPRESSION "ERROR: AddressSanitizer;ERROR: LeakSanitizer;runtime error:")
endif()
