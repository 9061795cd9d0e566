td_test(test_safetensors SOURCES model/test_safetensors.c model/fixture.c LIBS td_safetensors
        LABELS model)
td_test(test_hf_config SOURCES model/test_hf_config.c model/fixture.c LIBS td_model_config
        LABELS model)
