td_test(test_safetensors SOURCES model/test_safetensors.c model/fixture.c LIBS td_safetensors
        LABELS model)
td_test(test_hf_config SOURCES model/test_hf_config.c model/fixture.c LIBS td_model_config
        LABELS model)
td_test(test_checkpoint SOURCES model/test_checkpoint.c model/fixture.c LIBS td_model LABELS model)
td_test(fuzz_safetensors PLAIN SOURCES fuzz/fuzz_safetensors.c LIBS td_safetensors LABELS fuzz)
td_test(fuzz_hf_config PLAIN SOURCES fuzz/fuzz_hf_config.c LIBS td_model_config LABELS fuzz)
td_test(test_logits SOURCES model/test_logits.c model/harness.c model/fixture.c
        LIBS td_model td_device LABELS model)
td_test(test_session SOURCES model/test_session.c model/reference.c model/harness.c model/fixture.c
        LIBS td_model td_device LABELS model)
td_test(test_session_modes SOURCES model/test_session_modes.c model/reference.c model/harness.c
        model/fixture.c LIBS td_model td_device LABELS model)
td_test(test_weights SOURCES model/test_weights.c model/fake_device.c model/fixture.c
        LIBS td_model td_device LABELS model)
td_test(stress_load PLAIN SOURCES stress/stress_load.c model/fake_device.c LIBS td_model td_device
        LABELS stress)
target_include_directories(stress_load PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
# The same over the CUDA device's own code (test/pretend.cmake).
td_test(stress_load_pretend PLAIN SOURCES stress/stress_load.c LIBS td_model td_device_pretend
        LABELS stress)
target_include_directories(stress_load_pretend PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_definitions(stress_load_pretend PRIVATE STRESS_PRETEND)
set_target_properties(stress_load_pretend PROPERTIES LINKER_LANGUAGE CXX)
