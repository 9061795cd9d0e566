add_library(td_queue STATIC sched/queue.c)
target_link_libraries(td_queue PUBLIC td_common)
