# The capture kernel by itself over the CUDA-on-CPU layer.
td_test(test_gpu_capture_host_pretend PLAIN SOURCES device/test_gpu_capture_host.cpp
        LIBS td_device_pretend LABELS pretend)
