td_test(test_common SOURCES unit/test_common.c LIBS td_common)
