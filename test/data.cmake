# data/: rows, shards, packing, statistics; a fuzz of the row parsers with a bounded number of turns.
td_test(test_data SOURCES unit/test_data.c unit/test_data_rows.c unit/test_data_tokens.c 
                          unit/test_data_lines.c unit/test_data_stats.c
                          unit/test_data_packed.c unit/test_data_raw.c
                          unit/data_fixture.c
                  LIBS td_data LABELS unit)
td_test(fuzz_jsonl PLAIN SOURCES fuzz/fuzz_jsonl.c unit/data_fixture.c LIBS td_data ARGS 1500 1
                   LABELS fuzz)
target_include_directories(fuzz_jsonl PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/unit)
