# Planning: pure arithmetic over (config, inventory, model config, dataset statistics).
add_library(td_plan STATIC plan/inventory.c plan/cost.c plan/place.c plan/kinds.c plan/auto.c plan/groups.c plan/memory.c
                           plan/plan.c plan/print.c)
target_link_libraries(td_plan PUBLIC td_common td_model_config PRIVATE PkgConfig::inih)

# Built on request: cmake --build build --target bench_plan
add_executable(bench_plan EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tools/bench/bench_plan.c)
target_link_libraries(bench_plan PRIVATE td_plan)
