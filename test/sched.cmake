td_test(stress_queue PLAIN SOURCES stress/stress_queue.c LIBS td_queue LABELS stress)
