td_test(test_device_gemm SOURCES device/test_device_gemm.c LIBS td_device LABELS device)
