td_test(stress_queue PLAIN SOURCES stress/stress_queue.c LIBS td_queue LABELS stress)
if(TARGET td_sched AND TARGET td_device)
  td_test(test_run SOURCES sched/test_run.c LIBS td_sched td_device LABELS sched)
endif()
if(TARGET td_sched AND TARGET td_device)
  td_test(test_faults SOURCES sched/test_faults.c ${PROJECT_SOURCE_DIR}/src/cmd_recover.c
    LIBS td_sched td_device LABELS sched)
endif()
td_test(test_claims SOURCES sched/test_claims.c LIBS td_claims LABELS sched)
