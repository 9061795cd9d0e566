td_test(test_config SOURCES unit/test_config.c LIBS td_config)
td_test(test_config_messages SOURCES unit/test_config_messages.c LIBS td_config)
td_test(test_config_examples SOURCES unit/test_config_examples.c LIBS td_config)
td_test(fuzz_config SOURCES fuzz/fuzz_config.c LIBS td_config PLAIN ARGS 20000 LABELS fuzz)
