td_test(stress_queue PLAIN SOURCES stress/stress_queue.c LIBS td_queue LABELS stress)
if(TARGET td_sched AND TARGET td_device)
  # One at a time: in parallel Criterion's own runner leaks 48 bytes now and then, and hangs are found by time.
  td_test(test_run SOURCES sched/test_run.c LIBS td_sched td_device ARGS -j1 LABELS sched)
endif()
if(TARGET td_sched AND TARGET td_device)
  td_test(test_faults SOURCES sched/test_faults.c ${PROJECT_SOURCE_DIR}/src/cmd_recover.c
    LIBS td_sched td_device LABELS sched)
endif()
td_test(test_claims SOURCES sched/test_claims.c LIBS td_claims LABELS sched)
td_test(test_blame SOURCES sched/test_blame.c LIBS td_blame LABELS sched)
td_test(test_simulate SOURCES sched/test_simulate.c unit/plan_fixture.c LIBS td_simulate LABELS sched)
td_test(test_timeline SOURCES sched/test_timeline.c LIBS td_sched LABELS sched)
