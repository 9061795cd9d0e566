add_library(td_queue STATIC sched/queue.c)
target_link_libraries(td_queue PUBLIC td_common)
# Built on request: cmake --build build/release --target bench_queue
add_executable(bench_queue EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tools/bench/bench_queue.c)
target_link_libraries(bench_queue PRIVATE td_queue)

add_library(td_claims STATIC sched/claims.c)
target_link_libraries(td_claims PUBLIC td_queue td_plan)

add_library(td_blame STATIC sched/blame.c)
target_link_libraries(td_blame PUBLIC td_common)

add_library(td_sched STATIC sched/run.c sched/feeder.c sched/group.c sched/recover.c sched/progress.c sched/timeline.c sched/summary.c sched/stop.c
  sched/faults.c sched/watchdog.c sched/health.c)
# A run in virtual time: plan, queue and claims without devices.
add_library(td_simulate STATIC sched/simulate.c sched/sim_load.c sched/sim_print.c)
target_link_libraries(td_simulate PUBLIC td_claims td_plan td_data)
target_link_libraries(td_sched PUBLIC td_simulate td_queue td_blame td_claims td_plan td_data td_model td_record)
