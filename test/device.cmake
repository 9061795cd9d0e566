td_test(test_device_gemm SOURCES device/test_device_gemm.c LIBS td_device LABELS device)
td_test(test_device_ops SOURCES device/test_device_ops.c LIBS td_device LABELS device)
td_test(test_device_capture SOURCES device/test_device_capture.c LIBS td_device LABELS device)
td_test(test_cpu_kernels SOURCES device/test_cpu_kernels.c LIBS td_device LABELS device)
